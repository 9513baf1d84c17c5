//! Owners, modes, times and extended attributes.
//!
//! Files first, then folders from the innermost out, because making and filling a file changes its folder's times.
//! Owner before mode: changing the owner clears set-user-id.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{AtFlags, Gid, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT, Uid, XattrFlags};
use rustix::io::Errno;
use sendstream::zpl::{Attributes, FileType, XattrValue};

use super::Volume;
use super::content::Filled;
use super::make::Made;
use super::place::{Folders, Root};
use super::plan::Plan;
use crate::error::{Error, Result};
use crate::steps;

/// Files between two checks whether to stop.
const LOOK_AROUND: usize = 1024;

/// What a full file system may still report as free, in bytes: it reserves some space for itself.
const ROOM: u64 = 16 << 20;

/// Gives everything its attributes.
pub(super) fn finish(
    volume: &Volume<'_>,
    plan: &Plan,
    root: &Root,
    made: &Made,
    filled: &Filled,
) -> Result<()> {
    let giver = Giver {
        volume,
        root,
        values: &filled.xattrs,
        may_chown: rustix::process::geteuid().is_root(),
        warned: AtomicBool::new(false),
    };
    let asks_each = !syncfs_tells();
    if asks_each {
        // In one call, so that the files have nothing to wait for.
        root.sync()?;
    }
    let mut folders = Folders::new(root, plan);
    for (at, file) in plan.files.iter().enumerate() {
        if at % LOOK_AROUND == 0 {
            steps::reached("restore.files-attributes")?;
        }
        if made.passed_over.contains(&at) {
            continue;
        }
        let attributes = &*volume.tree.attributes(file.object)?;
        let path = || plan.file_path(file);
        let folder = folders.get(file.folder)?;
        if file.is_regular() {
            let fd = root.file(plan, file, folder, OFlags::RDONLY)?;
            giver.give(&fd, file.object, attributes, &path)?;
            if asks_each {
                rustix::fs::fdatasync(&fd).map_err(root.failed("sync", path))?;
            }
        } else {
            giver.give_by_name(folder, file.name, file.object, attributes, &path)?;
        }
    }
    for (at, folder) in plan.folders.iter().enumerate().rev() {
        let attributes = &*volume.tree.attributes(folder.object)?;
        let fd = root.folder(plan, at)?;
        giver.give(&fd, folder.object, attributes, &|| plan.folder_path(at))?;
    }
    Ok(())
}

/// Whether syncfs(2) reports what couldn't be written. Before Linux 5.8 only the file itself reports it.
fn syncfs_tells() -> bool {
    is_from_5_8(&rustix::system::uname().release().to_string_lossy())
}

/// Whether a kernel of this release is 5.8 or newer; one that isn't understood counts as older.
fn is_from_5_8(release: &str) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) >= (5, 8),
        _ => false,
    }
}

struct Giver<'a> {
    volume: &'a Volume<'a>,
    root: &'a Root,
    /// Values of extended attributes that are objects.
    values: &'a BTreeMap<u64, Vec<u8>>,
    may_chown: bool,
    warned: AtomicBool,
}

impl Giver<'_> {
    fn give(
        &self,
        fd: &OwnedFd,
        object: u64,
        attributes: &Attributes,
        path: &dyn Fn() -> PathBuf,
    ) -> Result<()> {
        let failed = |verb| self.root.failed(verb, path);
        self.give_xattrs(&Place { fd, name: None }, object, path)?;
        if let Some((uid, gid)) = self.owner(attributes)? {
            rustix::fs::fchown(fd, Some(uid), Some(gid)).map_err(failed("change the owner of"))?;
        }
        rustix::fs::fchmod(fd, mode(attributes)).map_err(failed("chmod"))?;
        rustix::fs::futimens(fd, &times(attributes)).map_err(failed("set the times of"))
    }

    /// Sets the attributes of a link or a pipe, which can't be opened.
    fn give_by_name(
        &self,
        folder: &OwnedFd,
        name: &[u8],
        object: u64,
        attributes: &Attributes,
        path: &dyn Fn() -> PathBuf,
    ) -> Result<()> {
        let failed = |verb| self.root.failed(verb, path);
        let name = OsStr::from_bytes(name);
        self.give_xattrs(&Place { fd: folder, name: Some(name) }, object, path)?;
        if let Some((uid, gid)) = self.owner(attributes)? {
            rustix::fs::chownat(folder, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
                .map_err(failed("change the owner of"))?;
        }
        if attributes.file_type() != FileType::Symlink {
            // It was made here a moment ago, in a folder that nobody else can enter.
            rustix::fs::chmodat(folder, name, mode(attributes), AtFlags::empty())
                .map_err(failed("chmod"))?;
        }
        rustix::fs::utimensat(folder, name, &times(attributes), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(failed("set the times of"))
    }

    fn owner(&self, attributes: &Attributes) -> Result<Option<(Uid, Gid)>> {
        if !self.may_chown {
            return Ok(None);
        }
        // To the system, all bits set means "leave it as it is".
        let id = |number: u64| {
            u32::try_from(number).ok().filter(|id| *id != u32::MAX).ok_or_else(|| {
                Error::failed(format!("{number} in the repository is no user or group"))
            })
        };
        let (uid, gid) = (id(attributes.uid)?, id(attributes.gid)?);
        let (uid, gid) = self.volume.owners.map_or((uid, gid), |owners| owners.of(uid, gid));
        Ok(Some((Uid::from_raw(uid), Gid::from_raw(gid))))
    }

    fn give_xattrs(
        &self,
        place: &Place<'_>,
        object: u64,
        path: &dyn Fn() -> PathBuf,
    ) -> Result<()> {
        let wanted = self.volume.tree.xattrs(object)?;
        let wanted: Vec<(Vec<u8>, XattrValue)> =
            wanted.into_iter().map(|(name, value)| (qualified(name), value)).collect();
        // Whatever is made here inherits the default access control list of the folder that it is made in: that of an
        // older restore, or of the one that DIR is in.
        self.remove_xattrs(place, &wanted, path)?;
        for (name, value) in &wanted {
            let value = match value {
                XattrValue::Inline(value) => Some(value),
                XattrValue::Object(object) => self.values.get(object),
            };
            let set = value.map_or(Err(Errno::TOOBIG), |value| place.set_xattr(name, value));
            match set {
                Ok(()) => {}
                Err(errno) if ends_it(errno, place.fd, value.map_or(0, Vec::len)) => {
                    return Err(self.root.failed("write an attribute of", path)(errno));
                }
                Err(errno) => self.warn(&name.escape_ascii().to_string(), errno, path),
            }
        }
        Ok(())
    }

    /// Removes the attributes that the set doesn't have, access control lists among them: a right that was withdrawn
    /// mustn't stay. What the system keeps for itself (`security.*`) stays.
    fn remove_xattrs(
        &self,
        place: &Place<'_>,
        wanted: &[(Vec<u8>, XattrValue)],
        path: &dyn Fn() -> PathBuf,
    ) -> Result<()> {
        let mut names = vec![0; 64 << 10];
        let length = match place.list_xattrs(&mut names) {
            Ok(length) => length,
            Err(Errno::OPNOTSUPP) => return Ok(()),
            Err(errno) => return Err(self.root.failed("list the attributes of", path)(errno)),
        };
        let found = names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
        for name in found.filter(|name| is_kept_in_sets(name)) {
            if wanted.iter().any(|(known, _)| known == name) {
                continue;
            }
            match place.remove_xattr(name) {
                // XFS also lists an access control list as `trusted.SGI_ACL_FILE`, which is gone with it.
                Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
                Err(errno) => return Err(self.root.failed("remove an attribute of", path)(errno)),
            }
        }
        Ok(())
    }

    fn warn(&self, name: &str, errno: Errno, path: &dyn Fn() -> PathBuf) {
        if self.warned.swap(true, Ordering::Relaxed) {
            return;
        }
        tracing::warn!(
            path = %path().display(), attribute = %name, error = %errno,
            "extended attributes can't be restored here; the first of them is named"
        );
    }
}

/// What extended attributes are given to.
struct Place<'a> {
    /// The file or folder itself, or the folder that `name` is in.
    fd: &'a OwnedFd,
    /// A link or a pipe, which can't be opened.
    name: Option<&'a OsStr>,
}

impl Place<'_> {
    /// Its path, for the calls that take no open file: they don't follow a link at its end.
    fn path(&self, name: &OsStr) -> PathBuf {
        Path::new("/proc/self/fd").join(self.fd.as_raw_fd().to_string()).join(name)
    }

    fn set_xattr(&self, xattr: &[u8], value: &[u8]) -> rustix::io::Result<()> {
        let (xattr, flags) = (OsStr::from_bytes(xattr), XattrFlags::empty());
        match self.name {
            None => rustix::fs::fsetxattr(self.fd, xattr, value, flags),
            Some(name) => rustix::fs::lsetxattr(self.path(name), xattr, value, flags),
        }
    }

    fn list_xattrs(&self, into: &mut [u8]) -> rustix::io::Result<usize> {
        match self.name {
            None => rustix::fs::flistxattr(self.fd, into),
            Some(name) => rustix::fs::llistxattr(self.path(name), into),
        }
    }

    fn remove_xattr(&self, xattr: &[u8]) -> rustix::io::Result<()> {
        match self.name {
            None => rustix::fs::fremovexattr(self.fd, OsStr::from_bytes(xattr)),
            Some(name) => rustix::fs::lremovexattr(self.path(name), OsStr::from_bytes(xattr)),
        }
    }
}

/// Whether a set has the attributes of this name, so that a missing one means that the original had none.
fn is_kept_in_sets(name: &[u8]) -> bool {
    let lists: [&[u8]; 2] = [b"system.posix_acl_access", b"system.posix_acl_default"];
    name.starts_with(b"user.") || name.starts_with(b"trusted.") || lists.contains(&name)
}

/// Whether the restore must end because an attribute of this size couldn't be written, for a reason other than the
/// attribute itself. ext4 reports "no space" for an attribute that is larger than it takes; so on that error the file
/// system is asked for its free space.
fn ends_it(errno: Errno, fd: &OwnedFd, size: usize) -> bool {
    match errno {
        Errno::NOSPC => {
            let needed = u64::try_from(size).unwrap_or(u64::MAX).saturating_add(ROOM);
            let left = rustix::fs::fstatvfs(fd).map(|it| it.f_bavail.saturating_mul(it.f_frsize));
            left.is_ok_and(|left| left < needed)
        }
        other => matches!(other, Errno::IO | Errno::DQUOT),
    }
}

/// Adds the namespace to a name in FreeBSD's form, which has none and means the user namespace.
fn qualified(name: Vec<u8>) -> Vec<u8> {
    let spaces: [&[u8]; 4] = [b"user.", b"security.", b"trusted.", b"system."];
    if spaces.iter().any(|space| name.starts_with(space)) {
        return name;
    }
    [&b"user."[..], &name].concat()
}

fn mode(attributes: &Attributes) -> Mode {
    Mode::from_raw_mode(u32::try_from(attributes.permissions()).unwrap_or(0) as rustix::fs::RawMode)
}

fn times(attributes: &Attributes) -> Timestamps {
    let mtime = attributes.mtime;
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec {
            tv_sec: mtime.seconds,
            tv_nsec: i64::try_from(mtime.nanoseconds).unwrap_or(0).min(999_999_999),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_has_attributes_of_its_own() {
        let scratch = tempfile::tempdir().unwrap();
        let file = scratch.path().join("file");
        std::fs::write(&file, "").unwrap();
        std::os::unix::fs::symlink(&file, scratch.path().join("link")).unwrap();
        let folder = OwnedFd::from(std::fs::File::open(scratch.path()).unwrap());
        let place = Place { fd: &folder, name: Some(OsStr::new("link")) };
        let list = || {
            let mut names = [0; 4096];
            let length = place.list_xattrs(&mut names).unwrap();
            names[..length].windows(11).any(|name| name == b"trusted.own")
        };
        match place.set_xattr(b"trusted.own", b"value") {
            // Only root may, and not on each file system.
            Err(Errno::PERM | Errno::OPNOTSUPP) => return,
            set => set.unwrap(),
        }
        assert!(list());
        let mut names = [0; 4096];
        let of_file = rustix::fs::listxattr(&file, &mut names[..]).unwrap();
        assert!(!names[..of_file].starts_with(b"trusted.own"), "it isn't the file's");
        place.remove_xattr(b"trusted.own").unwrap();
        assert!(!list());
    }

    #[test]
    fn before_linux_5_8_each_file_is_asked() {
        for new in ["5.8.0", "5.10.0-28-amd64", "6.1.0", "10.0"] {
            assert!(is_from_5_8(new), "{new}");
        }
        for old in ["4.18.0-553.el8_10.x86_64", "5.4.0-150-generic", "5.7.19", "5", "", "x.9"] {
            assert!(!is_from_5_8(old), "{old}");
        }
    }

    #[test]
    fn an_attribute_that_is_too_large_is_told_from_a_full_file_system() {
        let scratch = tempfile::tempdir().unwrap();
        let fd = OwnedFd::from(std::fs::File::create(scratch.path().join("f")).unwrap());
        assert!(!ends_it(Errno::NOSPC, &fd, 20_000), "there is room here");
        assert!(ends_it(Errno::NOSPC, &fd, usize::MAX));
        assert!(ends_it(Errno::IO, &fd, 1) && ends_it(Errno::DQUOT, &fd, 1));
        assert!(!ends_it(Errno::OPNOTSUPP, &fd, 1) && !ends_it(Errno::TOOBIG, &fd, 1));
    }
}
