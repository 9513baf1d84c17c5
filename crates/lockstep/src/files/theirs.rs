//! Works in folders that another user may write to: a data directory, the folder of a restore, a mirror's.
//!
//! What could go wrong: that user puts a symbolic link where root is about to write, change the owner or read, and it
//! leads to one of root's files. So a path is followed step by step, each folder opened by its name in the one
//! before. A link that root or this process's own user made is followed: `/srv` may be one, and restores make some.
//! Another user's isn't, and the last name of a path is never taken for what it links to.

use std::ffi::{OsStr, OsString};
use std::fs::{File, Permissions};
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Gid, IFlags, Mode, OFlags, Uid};
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::process::{Credentials, Program};

/// A folder on the path.
const FOLDER: OFlags =
    OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// A file itself, without waiting for a pipe's other end.
const FILE: OFlags =
    OFlags::NOFOLLOW.union(OFlags::NONBLOCK).union(OFlags::CLOEXEC).union(OFlags::NOCTTY);
/// The most links in one path, as the kernel counts them (MAXSYMLINKS).
const MOST_LINKS: u32 = 40;
/// The size of a hole in bytes: what file systems allocate at once, or a multiple of it.
const HOLE: usize = 64 << 10;
/// Larger than any configuration file, in bytes.
const MOST: u64 = 64 << 20;

/// A name in a folder that was reached without following another user's link.
struct Place<'a> {
    folder: OwnedFd,
    name: &'a OsStr,
    path: &'a Path,
}

impl<'a> Place<'a> {
    fn find(path: &'a Path) -> Result<Self> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(Error::failed(format!("\"{}\" names no file", path.display())));
        };
        Ok(Self { folder: go_to(parent, false).map_err(on_the_way(path))?, name, path })
    }

    fn failed(&self, verb: &'static str) -> impl FnOnce(Errno) -> Error {
        let path = self.path.to_path_buf();
        move |errno| Error::io(verb, path)(errno.into())
    }

    fn open(&self, flags: OFlags, mode: u16) -> rustix::io::Result<File> {
        let mode = Mode::from_raw_mode(mode.into());
        rustix::fs::openat(&self.folder, self.name, FILE | flags, mode).map(File::from)
    }

    /// Creates a new file, and replaces a file or link of this name.
    fn create(&self) -> Result<File> {
        self.remove()?;
        self.open(OFlags::RDWR | OFlags::CREATE | OFlags::EXCL, 0o600)
            .map_err(self.failed("create"))
    }

    fn write(&self, bytes: &[u8], mode: u32, owner: Option<Credentials>) -> Result<()> {
        let mut file = self.create()?;
        file.write_all(bytes).map_err(Error::io("write", self.path))?;
        finish(&file, self.path, mode, owner)
    }

    fn remove(&self) -> Result<()> {
        let unlink = || rustix::fs::unlinkat(&self.folder, self.name, AtFlags::empty());
        match unlink() {
            Err(Errno::NOENT) => Ok(()),
            Err(Errno::PERM) if loosen(&self.folder, self.name) => {
                unlink().map_err(self.failed("remove"))
            }
            other => other.map_err(self.failed("remove")),
        }
    }
}

/// Clears from a plain file the flags that keep even root from changing and removing it (`chattr +i`, `+a`). On
/// postgresql.auto.conf they are the known way to forbid ALTER SYSTEM, and a restored copy has them too. Returns
/// whether there were any.
pub(crate) fn loosen(folder: impl AsFd, name: &OsStr) -> bool {
    const FIXED: IFlags = IFlags::IMMUTABLE.union(IFlags::APPEND);
    let opened = rustix::fs::openat(folder, name, FILE | OFlags::RDONLY, Mode::empty());
    let Ok(file) = opened.map(File::from) else { return false };
    let is_plain = file.metadata().is_ok_and(|found| found.is_file());
    let Ok(flags) = rustix::fs::ioctl_getflags(&file) else { return false };
    is_plain && flags.intersects(FIXED) && rustix::fs::ioctl_setflags(&file, flags - FIXED).is_ok()
}

/// Opens the folder at the end of a path, for the names in it; with `make`, missing ones are created.
fn go_to(path: &Path, make: bool) -> rustix::io::Result<OwnedFd> {
    let mut ahead = steps(path);
    let mut at = rustix::fs::openat(CWD, ".", FOLDER, Mode::empty())?;
    let mut followed = 0;
    while let Some(step) = ahead.pop() {
        match rustix::fs::openat(&at, &step, FOLDER, Mode::empty()) {
            Ok(next) => at = next,
            Err(Errno::NOENT) if make => {
                rustix::fs::mkdirat(&at, &step, Mode::from_raw_mode(0o777))?;
                ahead.push(step);
            }
            Err(Errno::NOTDIR | Errno::LOOP) => {
                // The owner and the target are read from one and the same link: looked up by name, it could be
                // another each time.
                let itself = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let link = rustix::fs::openat(&at, &step, itself, Mode::empty())?;
                let found = rustix::fs::fstat(&link)?;
                if FileType::from_raw_mode(found.st_mode) != FileType::Symlink {
                    return Err(Errno::NOTDIR);
                }
                let is_ours = [0, rustix::process::geteuid().as_raw()].contains(&found.st_uid);
                followed += 1;
                if !is_ours || followed > MOST_LINKS {
                    return Err(Errno::LOOP);
                }
                let target = rustix::fs::readlinkat(&link, "", Vec::new())?;
                ahead.extend(steps(Path::new(&OsString::from_vec(target.into_bytes()))));
            }
            Err(errno) => return Err(errno),
        }
    }
    Ok(at)
}

/// Returns the steps of a path, the first one last. That of an absolute path is `/`, whatever the current folder.
fn steps(path: &Path) -> Vec<OsString> {
    path.components().rev().map(|step| step.as_os_str().to_owned()).collect()
}

fn on_the_way(path: &Path) -> impl FnOnce(Errno) -> Error {
    move |errno| match errno {
        Errno::LOOP => Error::failed(format!(
            "the path \"{}\" contains a symbolic link that root hasn't made",
            path.display()
        ))
        .with_hint("see who put it there (`namei -l` shows it), and remove it"),
        errno => Error::io("go to", path)(errno.into()),
    }
}

fn give(file: impl AsFd, path: &Path, owner: Option<Credentials>) -> Result<()> {
    let Some(Credentials { uid, gid }) = owner else { return Ok(()) };
    rustix::fs::fchown(file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
        .map_err(|errno| Error::io("change the owner of", path)(errno.into()))
}

/// Writes a file of PostgreSQL's into a restored tree: with the mode that belongs to its folder, owned by `owner`,
/// synced.
///
/// # Errors
/// When it can't be written.
pub fn write_owned(path: &Path, bytes: &[u8], owner: Option<Credentials>) -> Result<()> {
    let place = Place::find(path)?;
    let folder = rustix::fs::fstat(&place.folder).map_err(place.failed("look at the folder of"))?;
    place.write(bytes, mode_within(folder.st_mode), owner)
}

/// Writes a file that is for its owner alone, whatever its folder: mode 0600, owned by `owner`, synced.
///
/// # Errors
/// When it can't be written.
pub fn write_secret(path: &Path, bytes: &[u8], owner: Option<Credentials>) -> Result<()> {
    Place::find(path)?.write(bytes, 0o600, owner)
}

/// Returns the mode of PostgreSQL's files in a folder of this mode: the group may read them if it may enter the folder
/// (SetDataDirectoryCreatePerm in file_perm.c; a data directory is 0700 or, after `initdb --allow-group-access`, 0750).
#[must_use]
pub fn mode_within(folder: u32) -> u32 {
    if folder & 0o777 == 0o750 { 0o640 } else { 0o600 }
}

/// Copies a file into a restored tree: with this mode, owned by `owner`, synced.
///
/// # Errors
/// When it can't be read or written; the source must be a file itself.
pub fn copy_owned(from: &Path, to: &Path, mode: u32, owner: Option<Credentials>) -> Result<()> {
    let mut source = open_itself(from).map_err(Error::io("read", from))?;
    let mut file = Place::find(to)?.create()?;
    std::io::copy(&mut source, &mut file).map_err(Error::io("copy", from))?;
    finish(&file, to, mode, owner)
}

/// Copies a file, with holes where it is zero: mode 0600, synced. The unused rest of a WAL segment can be a gigabyte.
///
/// # Errors
/// As [`copy_owned`].
pub fn copy_with_holes(from: &Path, to: &Path) -> Result<()> {
    let mut source = open_itself(from).map_err(Error::io("read", from))?;
    let file = Place::find(to)?.create()?;
    let mut block = vec![0; HOLE];
    let mut copy = || -> std::io::Result<()> {
        let mut size = 0;
        loop {
            let read = super::fill(&mut source, &mut block)?;
            let found = &block[..read];
            if found.is_empty() {
                return file.set_len(size);
            }
            if found.iter().any(|byte| *byte != 0) {
                file.write_all_at(found, size)?;
            }
            size += read as u64;
        }
    };
    copy().map_err(Error::io("copy", from))?;
    finish(&file, to, 0o600, None)
}

fn finish(file: &File, path: &Path, mode: u32, owner: Option<Credentials>) -> Result<()> {
    file.set_permissions(Permissions::from_mode(mode)).map_err(Error::io("chmod", path))?;
    file.sync_all().map_err(Error::io("sync", path))?;
    give(file, path, owner)
}

/// Opens a plain file given by the caller, and never what a link leads to.
fn open_itself(path: &Path) -> std::io::Result<File> {
    let file = File::from(rustix::fs::open(path, FILE | OFlags::RDONLY, Mode::empty())?);
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(std::io::Error::other("it isn't a plain file")),
    }
}

/// Opens a log to append to and to read, created for `owner` if it is missing.
///
/// # Errors
/// When its name is taken by anything but a plain file of the owner's with this name alone.
pub fn open_log(path: &Path, owner: Option<Credentials>) -> Result<File> {
    let place = Place::find(path)?;
    let flags = OFlags::RDWR | OFlags::APPEND;
    match place.open(flags | OFlags::CREATE | OFlags::EXCL, 0o644) {
        Ok(file) => return give(&file, path, owner).map(|()| file),
        Err(Errno::EXIST) => {}
        Err(errno) => return Err(place.failed("create")(errno)),
    }
    let strange = |why: &str| {
        Error::failed(format!("\"{}\" {why}: no log is written there", path.display()))
            .with_hint("see who put it there, and move it away")
    };
    let file = match place.open(flags, 0) {
        Err(Errno::LOOP) => return Err(strange("is a symbolic link")),
        Err(Errno::NXIO | Errno::ISDIR) => return Err(strange("isn't a plain file")),
        other => other.map_err(place.failed("open"))?,
    };
    let found = file.metadata().map_err(Error::io("look at", path))?;
    if !found.is_file() || found.nlink() != 1 {
        return Err(strange("isn't a plain file with only this name"));
    }
    match owner.filter(|owner| owner.uid != found.uid()) {
        Some(_) => Err(strange("belongs to somebody else")),
        None => Ok(file),
    }
}

/// Creates a folder of mode 0700 that belongs to `owner`, and those above it.
///
/// # Errors
/// When it can't be created.
pub fn create_owned_directory(path: &Path, owner: Option<Credentials>) -> Result<()> {
    let (folder, mode) = open_folder(path, true)?;
    // A folder that is already right may be where nothing can be changed.
    if mode & 0o7777 != 0o700 {
        change_mode(&folder, path, 0o700)?;
    }
    give(&folder, path, owner)
}

/// Lets the group enter a folder that only its owner may enter, and list it: mode 0750.
///
/// # Errors
/// When the system refuses.
pub fn let_group_enter(path: &Path) -> Result<()> {
    let (folder, mode) = open_folder(path, false)?;
    if mode & 0o777 == 0o700 { change_mode(&folder, path, 0o750) } else { Ok(()) }
}

/// Removes a folder's access control lists, also the one that what is made in it would inherit.
///
/// # Errors
/// When the system refuses.
pub fn remove_access_lists(path: &Path) -> Result<()> {
    let (folder, _) = open_folder(path, false)?;
    for name in ["system.posix_acl_access", "system.posix_acl_default"] {
        match rustix::fs::fremovexattr(&folder, name) {
            Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
            Err(errno) => return Err(Error::io("remove an attribute of", path)(errno.into())),
        }
    }
    Ok(())
}

/// Opens a folder for the names in it, without following another user's link on the way or at its end. `None`: it is
/// missing.
///
/// # Errors
/// When it is no folder, or the system refuses.
pub(crate) fn open_theirs(path: &Path) -> Result<Option<OwnedFd>> {
    match go_to(path, false) {
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(on_the_way(path)(errno)),
        Ok(way) => rustix::fs::openat(&way, ".", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .map(Some)
            .map_err(|errno| Error::io("open", path)(errno.into())),
    }
}

/// Opens a folder itself, and returns its mode; with `make`, missing ones are created.
fn open_folder(path: &Path, make: bool) -> Result<(OwnedFd, u32)> {
    let failed = |verb: &'static str| move |errno: Errno| Error::io(verb, path)(errno.into());
    let way = go_to(path, make).map_err(on_the_way(path))?;
    let folder = rustix::fs::openat(&way, ".", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(failed("open"))?;
    let mode = rustix::fs::fstat(&folder).map_err(failed("look at"))?.st_mode;
    Ok((folder, mode))
}

fn change_mode(folder: &OwnedFd, path: &Path, mode: u32) -> Result<()> {
    rustix::fs::fchmod(folder, Mode::from_raw_mode(mode))
        .map_err(|errno| Error::io("chmod", path)(errno.into()))
}

/// Removes a file of a restored tree, whatever its flags; a missing one is fine.
///
/// # Errors
/// When it can't be removed.
pub fn remove_owned(path: &Path) -> Result<()> {
    Place::find(path)?.remove()
}

/// Creates a link, and replaces a file or link of this name.
///
/// # Errors
/// When the system refuses.
pub fn link(path: &Path, target: &Path) -> Result<()> {
    let place = Place::find(path)?;
    place.remove()?;
    rustix::fs::symlinkat(target, &place.folder, place.name).map_err(place.failed("link"))
}

/// Returns who may read the files of a data directory: its owner, whom its server runs as. `None` if this process
/// isn't root, and can't read more than it should.
///
/// # Errors
/// When the data directory can't be inspected.
pub fn reader_of(data: &Path) -> Result<Option<Credentials>> {
    let found = data.metadata().map_err(Error::io("look at", data))?;
    let is_root = rustix::process::geteuid().is_root();
    Ok(is_root.then(|| Credentials { uid: found.uid(), gid: found.gid() }))
}

/// Reads a file only if `reader` may read it, because root could read more. `None` means that it isn't there.
///
/// # Errors
/// [`Error::Command`] when `reader` may not read it.
pub fn read_as(path: &Path, reader: Option<Credentials>) -> Result<Option<Vec<u8>>> {
    let failed = Error::io("read", path);
    match std::fs::metadata(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Ok(found) if !found.is_file() => {
            return Err(failed(std::io::Error::other("it is no file")));
        }
        other => other.map(drop).map_err(Error::io("look at", path))?,
    }
    let Some(reader) = reader else {
        return File::open(path).map_err(failed).and_then(|file| all_of(file, path)).map(Some);
    };
    // The owner of a file may read it by any path.
    let own =
        open_itself(path).ok().filter(|file| file.metadata().is_ok_and(|m| m.uid() == reader.uid));
    if let Some(file) = own {
        return all_of(file, path).map(Some);
    }
    let mut cat = Program::new("cat").arg("--").arg(path).as_user(Some(reader)).read_from()?;
    let bytes = all_of(&mut cat, path)?;
    cat.finish()?;
    Ok(Some(bytes))
}

/// Reads a whole file. A part of it could be mistaken for the whole.
fn all_of(file: impl Read, path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(MOST + 1).read_to_end(&mut bytes).map_err(Error::io("read", path))?;
    if bytes.len() as u64 > MOST {
        let most = MOST >> 20;
        let what = format!("\"{}\" has more than {most} MiB", path.display());
        return Err(
            Error::failed(what).with_hint("no configuration file is that large: see what it is")
        );
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{chown, symlink};

    const NOBODY: Credentials = Credentials { uid: 65534, gid: 65534 };

    /// Creates a folder owned by nobody inside one of ours.
    fn theirs() -> (tempfile::TempDir, std::path::PathBuf) {
        assert!(rustix::process::geteuid().is_root(), "run as root: it makes another user's files");
        let scratch = tempfile::tempdir().unwrap();
        std::fs::set_permissions(scratch.path(), Permissions::from_mode(0o755)).unwrap();
        let folder = scratch.path().join("theirs");
        create_owned_directory(&folder, Some(NOBODY)).unwrap();
        std::fs::write(scratch.path().join("victim"), b"secret").unwrap();
        std::fs::set_permissions(scratch.path().join("victim"), Permissions::from_mode(0o600))
            .unwrap();
        std::fs::create_dir(scratch.path().join("ours")).unwrap();
        (scratch, folder)
    }

    fn put(target: &Path, link: &Path) {
        symlink(target, link).unwrap();
        std::os::unix::fs::lchown(link, Some(NOBODY.uid), Some(NOBODY.gid)).unwrap();
    }

    fn untouched(scratch: &Path) {
        let found = scratch.join("victim").metadata().unwrap();
        assert_eq!((found.uid(), found.mode() & 0o777), (0, 0o600));
        assert_eq!(std::fs::read(scratch.join("victim")).unwrap(), b"secret");
        let folder = scratch.join("ours").metadata().unwrap();
        assert_eq!((folder.uid(), folder.mode() & 0o777), (0, 0o755));
        assert_eq!(std::fs::read_dir(scratch.join("ours")).unwrap().count(), 0);
    }

    #[test]
    fn a_link_of_theirs_leads_nowhere() {
        let (scratch, folder) = theirs();
        let (ours, victim) = (scratch.path().join("ours"), scratch.path().join("victim"));
        put(&ours, &folder.join("way"));
        let through = folder.join("way/file");
        let refused = [
            write_owned(&through, b"x", Some(NOBODY)),
            copy_owned(&victim, &through, 0o600, Some(NOBODY)),
            open_log(&through, Some(NOBODY)).map(drop),
            create_owned_directory(&folder.join("way"), Some(NOBODY)),
            create_owned_directory(&through, Some(NOBODY)),
            link(&through, &victim),
            open_theirs(&folder.join("way")).map(drop),
            open_theirs(&through).map(drop),
        ];
        for error in refused.map(Result::unwrap_err) {
            assert!(error.to_string().contains("a symbolic link that root hasn't made"), "{error}");
        }
        untouched(scratch.path());
        // A name that is a link is replaced or refused.
        let name = folder.join("name");
        put(&victim, &name);
        assert!(open_log(&name, Some(NOBODY)).unwrap_err().to_string().contains("symbolic link"));
        assert!(read_as(&name, Some(NOBODY)).is_err(), "they may not read it");
        assert!(copy_owned(&name, &folder.join("copy"), 0o600, Some(NOBODY)).is_err());
        write_owned(&name, b"new", Some(NOBODY)).unwrap();
        assert_eq!(read_as(&name, Some(NOBODY)).unwrap().unwrap(), b"new");
        untouched(scratch.path());
    }

    #[test]
    fn a_file_that_may_not_be_changed_makes_room() {
        let (_scratch, folder) = theirs();
        for flag in [IFlags::IMMUTABLE, IFlags::APPEND] {
            let name = folder.join("postgresql.auto.conf");
            write_owned(&name, b"old", Some(NOBODY)).unwrap();
            rustix::fs::ioctl_setflags(File::open(&name).unwrap(), flag)
                .expect("the folder for temporary files is on a file system that has such flags");
            assert!(std::fs::remove_file(&name).is_err(), "{flag:?} keeps it");
            write_owned(&name, b"new", Some(NOBODY)).unwrap();
            assert_eq!(std::fs::read(&name).unwrap(), b"new");
            rustix::fs::ioctl_setflags(File::open(&name).unwrap(), flag).unwrap();
            remove_owned(&name).unwrap();
            assert!(!name.exists());
            remove_owned(&name).unwrap();
        }
    }

    #[test]
    fn the_group_that_may_enter_a_data_directory_may_read_what_is_written_there() {
        let (scratch, folder) = theirs();
        let mode = |path: &Path| path.metadata().unwrap().mode() & 0o7777;
        let_group_enter(&folder).unwrap();
        assert_eq!(mode(&folder), 0o750);
        for (of_folder, of_file) in [(0o700, 0o600), (0o750, 0o640), (0o755, 0o600)] {
            std::fs::set_permissions(&folder, Permissions::from_mode(of_folder)).unwrap();
            write_owned(&folder.join("backup_label"), b"x", Some(NOBODY)).unwrap();
            assert_eq!(mode(&folder.join("backup_label")), of_file, "in a folder of {of_folder:o}");
            write_secret(&folder.join("passfile"), b"x", Some(NOBODY)).unwrap();
            assert_eq!(mode(&folder.join("passfile")), 0o600, "in a folder of {of_folder:o}");
        }
        untouched(scratch.path());
    }

    #[test]
    fn a_copy_with_holes_has_the_same_bytes() {
        let scratch = tempfile::tempdir().unwrap();
        let (from, to) = (scratch.path().join("from"), scratch.path().join("to"));
        for (begin, zeros, end) in [(0, 0, 0), (1, 0, 0), (HOLE, 40 * HOLE, 3), (7, 9 * HOLE, 0)] {
            let bytes = [vec![1; begin], vec![0; zeros], vec![2; end]].concat();
            std::fs::write(&from, &bytes).unwrap();
            copy_with_holes(&from, &to).unwrap();
            assert!(std::fs::read(&to).unwrap() == bytes, "{begin} {zeros} {end}");
            let stored = to.metadata().unwrap().blocks() * 512;
            assert!(stored <= (begin + end + 2 * HOLE) as u64, "{stored} of {}", bytes.len());
        }
        symlink(&from, scratch.path().join("link")).unwrap();
        assert!(copy_with_holes(&scratch.path().join("link"), &to).is_err());
    }

    #[test]
    fn a_link_of_ours_is_a_way() {
        let (scratch, folder) = theirs();
        let way = scratch.path().join("way");
        symlink("theirs/../theirs", &way).unwrap();
        write_owned(&way.join("file"), b"x", Some(NOBODY)).unwrap();
        assert_eq!(folder.join("file").metadata().unwrap().uid(), NOBODY.uid);
        create_owned_directory(&way.join("a/b"), Some(NOBODY)).unwrap();
        assert_eq!(folder.join("a/b").metadata().unwrap().mode() & 0o7777, 0o700);
        symlink("round", scratch.path().join("round")).unwrap();
        assert!(write_owned(&scratch.path().join("round/file"), b"x", None).is_err());
    }

    #[test]
    fn a_log_that_is_not_theirs_alone_is_left() {
        let (scratch, folder) = theirs();
        let log = folder.join("server.log");
        std::fs::hard_link(scratch.path().join("victim"), &log).unwrap();
        assert!(open_log(&log, Some(NOBODY)).is_err(), "another name of it");
        untouched(scratch.path());
        std::fs::remove_file(&log).unwrap();
        std::fs::write(&log, b"").unwrap();
        assert!(open_log(&log, Some(NOBODY)).is_err(), "it belongs to root");
        chown(&log, Some(NOBODY.uid), None).unwrap();
        open_log(&log, Some(NOBODY)).unwrap().write_all(b"line\n").unwrap();
        open_log(&log, Some(NOBODY)).unwrap().write_all(b"more\n").unwrap();
        assert_eq!(std::fs::read(&log).unwrap(), b"line\nmore\n");
        std::fs::remove_file(&log).unwrap();
        open_log(&log, Some(NOBODY)).unwrap();
        assert_eq!(log.metadata().unwrap().uid(), NOBODY.uid);
    }

    #[test]
    fn what_they_may_read_is_read() {
        let (scratch, folder) = theirs();
        let open = scratch.path().join("open");
        std::fs::write(&open, b"all").unwrap();
        put(&open, &folder.join("link"));
        assert_eq!(read_as(&folder.join("link"), Some(NOBODY)).unwrap().unwrap(), b"all");
        assert_eq!(read_as(&folder.join("none"), Some(NOBODY)).unwrap(), None);
        assert!(read_as(&scratch.path().join("victim"), Some(NOBODY)).is_err());
        assert!(read_as(&folder, Some(NOBODY)).is_err(), "a folder");
        assert_eq!(read_as(&scratch.path().join("victim"), None).unwrap().unwrap(), b"secret");
    }

    #[test]
    fn what_is_too_large_is_refused_and_not_cut() {
        let (scratch, folder) = theirs();
        let (own, other) = (folder.join("own"), scratch.path().join("other"));
        for path in [&own, &other] {
            std::fs::write(path, b"").unwrap();
            File::options().write(true).open(path).unwrap().set_len(MOST + 1).unwrap();
        }
        chown(&own, Some(NOBODY.uid), None).unwrap();
        for (path, reader) in [(&own, Some(NOBODY)), (&other, Some(NOBODY)), (&other, None)] {
            let error = read_as(path, reader).unwrap_err();
            assert!(error.to_string().contains("has more than 64 MiB"), "{error}");
        }
        File::options().write(true).open(&own).unwrap().set_len(MOST).unwrap();
        assert_eq!(read_as(&own, Some(NOBODY)).unwrap().unwrap().len() as u64, MOST);
    }
}
