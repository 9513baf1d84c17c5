//! What is in folders that were opened: by name, in the opened one, without following a link out of it.
//!
//! What could go wrong: somebody else owns the folder, and exchanges what is in it for links while root works there. A
//! path would then lead elsewhere; an open folder doesn't.

use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, StatxAttributes, StatxFlags};
use rustix::io::Errno;

use super::theirs::open_theirs;
use crate::error::{Error, Result};

/// Opens a folder, and nothing else.
pub(crate) const FOLDER: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Removes what is in a folder and `goes`, with everything below it; a missing folder is fine. Nothing is removed where
/// something is mounted.
pub(crate) fn remove_in(path: &Path, goes: impl Fn(&[u8]) -> bool) -> Result<()> {
    let Some(folder) = open_theirs(path)? else { return Ok(()) };
    let names = list(&folder).map_err(|errno| Error::io("list", path)(errno.into()))?;
    // A ZFS with `snapdir=visible` shows this in a dataset's root: nobody can remove it.
    for name in names.into_iter().filter(|name| name != b".zfs" && goes(name)) {
        let failed =
            |errno: Errno| Error::io("remove", path.join(OsStr::from_bytes(&name)))(errno.into());
        remove(&folder, &name).map_err(failed)?;
    }
    Ok(())
}

/// Removes a name and, if it is a folder, everything below it; returns how many names were removed. Links are
/// removed, never followed, and nothing is removed where something is mounted.
pub(crate) fn remove(folder: impl AsFd, name: &[u8]) -> rustix::io::Result<u64> {
    let folder = folder.as_fd();
    let name = OsStr::from_bytes(name);
    match rustix::fs::unlinkat(folder, name, AtFlags::empty()) {
        Ok(()) => return Ok(1),
        Err(Errno::NOENT) => return Ok(0),
        // The error for a folder differs from system to system.
        Err(errno) => {
            let stat = rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)?;
            if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
                return Err(errno);
            }
        }
    }
    let mut count = 1;
    let inner = rustix::fs::openat(folder, name, FOLDER, Mode::empty())?;
    if is_mounted(folder, &inner)? {
        return Err(Errno::BUSY);
    }
    for entry in list(&inner)? {
        count += remove(&inner, &entry)?;
    }
    rustix::fs::unlinkat(folder, name, AtFlags::REMOVEDIR)?;
    Ok(count)
}

/// Whether something is mounted on `inner`, a folder in `outer`. It may be of the same file system (a bind mount),
/// which kernels from 5.8 on report.
pub(crate) fn is_mounted(outer: impl AsFd, inner: impl AsFd) -> rustix::io::Result<bool> {
    let root = StatxAttributes::MOUNT_ROOT;
    match rustix::fs::statx(&inner, c"", AtFlags::EMPTY_PATH, StatxFlags::empty()) {
        Ok(found) if found.stx_attributes_mask.contains(root) => {
            Ok(found.stx_attributes.contains(root))
        }
        _ => Ok(rustix::fs::fstat(outer)?.st_dev != rustix::fs::fstat(inner)?.st_dev),
    }
}

/// Returns the names in a folder.
pub(crate) fn list(folder: impl AsFd) -> rustix::io::Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if !matches!(name, b"." | b"..") {
            names.push(name.to_vec());
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{lchown, symlink};

    #[test]
    fn nothing_is_removed_behind_a_link_of_theirs() {
        assert!(rustix::process::geteuid().is_root(), "run as root: it makes another user's files");
        let scratch = tempfile::tempdir().unwrap();
        let (live, link) = (scratch.path().join("live"), scratch.path().join("pg_notify"));
        std::fs::create_dir_all(live.join("folder")).unwrap();
        std::fs::write(live.join("0000"), b"needed").unwrap();
        symlink(&live, &link).unwrap();
        lchown(&link, Some(65534), Some(65534)).unwrap();
        assert!(remove_in(&link, |_| true).is_err());
        assert!(remove_in(&link.join("folder"), |_| true).is_err());
        assert!(live.join("0000").exists() && live.join("folder").exists());
        remove_in(&live, |name| name == b"folder").unwrap();
        assert!(live.join("0000").exists() && !live.join("folder").exists());
        remove_in(&live.join("missing"), |_| true).unwrap();
        symlink(scratch.path(), live.join("out")).unwrap();
        remove_in(&live, |_| true).unwrap();
        assert!(crate::files::is_empty_directory(&live).unwrap() && link.is_symlink());
    }
}
