//! Writes files so that a crash leaves the old one or the new one, never half of either.
//!
//! [`publish`] is the one place that makes something durable under its final name: temporary
//! name, fsync of the file, rename, fsync of the folder.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

pub(crate) mod opened;
pub(crate) mod reserve;
mod theirs;

pub(crate) use theirs::loosen;
pub use theirs::{
    copy_owned, copy_with_holes, create_owned_directory, let_group_enter, link, mode_within,
    open_log, read_as, reader_of, remove_access_lists, remove_owned, write_owned, write_secret,
};

use crate::error::{Error, Result};
use crate::names::{is_number, random_characters};
use crate::volume::mounts::{Mount, Mounts};

/// Checks whether [`publish`] gives files this name before they are whole.
pub(crate) fn is_temporary(file_name: &str) -> bool {
    writer_of(file_name).is_some()
}

/// Returns the process id of the [`publish`] that did.
fn writer_of(file_name: &str) -> Option<u32> {
    let (_, process) = file_name.strip_suffix(".tmp")?.rsplit_once('.')?;
    process.parse().ok().filter(|_| is_number(process))
}

/// Writes `bytes` to `path` durably and atomically, readable only by its owner.
///
/// # Errors
/// When any of the steps fails; then `path` is as it was.
pub fn publish(path: &Path, bytes: &[u8]) -> Result<()> {
    publish_by(path, bytes, "", |temporary| {
        fs::rename(temporary, path).map_err(Error::io("rename into place", path))
    })
}

/// The same, unless a file is there by then: that stays. Returns whether there was none.
///
/// # Errors
/// As [`publish`].
pub fn publish_first(path: &Path, bytes: &[u8]) -> Result<bool> {
    let own = format!(".{}", random_characters::<8>()?);
    publish_by(path, bytes, &own, |temporary| {
        let is_first = match fs::hard_link(temporary, path) {
            Ok(()) => true,
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => false,
            // A file system without hard links.
            Err(_) => {
                let renamed = fs::rename(temporary, path).map(|()| true);
                return renamed.map_err(Error::io("rename into place", path));
            }
        };
        remove_file(temporary)?;
        Ok(is_first)
    })
}

/// Writes a temporary file, lets `place` give it its name, and makes that durable.
fn publish_by<T>(
    path: &Path,
    bytes: &[u8],
    own: &str,
    place: impl FnOnce(&Path) -> Result<T>,
) -> Result<T> {
    let parent = path.parent().unwrap_or(Path::new("."));
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!("{own}.{}.tmp", std::process::id()));
    let temporary = parent.join(name);
    let written = (|| {
        // Newly created: in a folder that another user may write to, whatever has the name could be a link.
        let _ = fs::remove_file(&temporary);
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)
            .map_err(Error::io("create", &temporary))?;
        file.write_all(bytes).map_err(Error::io("write", &temporary))?;
        file.sync_all().map_err(Error::io("sync", &temporary))?;
        let placed = place(&temporary)?;
        sync_directory(parent)?;
        Ok(placed)
    })();
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written
}

/// From what age a temporary file counts as abandoned: [`publish`] takes a moment, and the process in a container has
/// another id than here.
const HALF_WRITTEN: Duration = Duration::from_secs(3600);

/// Removes the temporary files in a folder that a killed [`publish`] has left.
///
/// # Errors
/// When the folder can't be listed, or one of them can't be removed.
pub fn remove_half_written(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder).map_err(Error::io("list", folder))? {
        let entry = entry.map_err(Error::io("list", folder))?;
        let process = entry.file_name().to_str().and_then(writer_of);
        let is_dead =
            process.is_some_and(|process| !Path::new(&format!("/proc/{process}")).exists());
        if !is_dead {
            continue;
        }
        let written = entry.metadata().and_then(|found| found.modified());
        if written.is_ok_and(|at| at.elapsed().is_ok_and(|age| age > HALF_WRITTEN)) {
            remove_file(&entry.path())?;
        }
    }
    Ok(())
}

/// Reads until the buffer is full or the file ends; returns the number of bytes read.
///
/// # Errors
/// When it can't be read.
pub fn fill(file: &mut File, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut length = 0;
    while length < buffer.len() {
        match file.read(&mut buffer[length..])? {
            0 => break,
            more => length += more,
        }
    }
    Ok(length)
}

/// How much of a log's end is read.
const LOG_TAIL: u64 = 64 << 10;

/// Returns the last lines of a log; none if it can't be read.
pub fn tail(path: &Path) -> Vec<String> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|mut file| {
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL)))?;
        file.read_to_end(&mut bytes)
    });
    match read {
        Ok(_) => String::from_utf8_lossy(&bytes).lines().map(str::to_owned).collect(),
        Err(_) => Vec::new(),
    }
}

/// Makes a folder's entries durable.
///
/// # Errors
/// When the folder can't be opened or synced.
pub fn sync_directory(path: &Path) -> Result<()> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(Error::io("sync", path))
}

/// `mkdir -p`.
///
/// # Errors
/// When a component is missing and can't be created.
pub fn create_directories(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(Error::io("create", path))
}

/// The same if others need access: created folders get mode 0755, whatever the umask.
///
/// # Errors
/// When a component is missing and can't be created.
pub fn create_open_directories(path: &Path) -> Result<()> {
    let missing: Vec<_> = path.ancestors().take_while(|path| !path.exists()).collect();
    for path in missing.into_iter().rev() {
        match fs::create_dir(path) {
            // Another process has just created it.
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => continue,
            other => other.map_err(Error::io("create", path))?,
        }
        let open = fs::Permissions::from_mode(0o755);
        fs::set_permissions(path, open).map_err(Error::io("chmod", path))?;
    }
    Ok(())
}

/// Whether two paths lead to one and the same file or folder. What can't be looked at isn't.
#[must_use]
pub fn are_one(one: &Path, other: &Path) -> bool {
    let identity = |path: &Path| fs::metadata(path).map(|found| (found.dev(), found.ino()));
    match (identity(one), identity(other)) {
        (Ok(one), Ok(other)) => one == other,
        _ => false,
    }
}

/// Removes a file; a missing one is fine.
///
/// # Errors
/// When it exists and can't be removed.
pub fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", path)(e)),
        _ => Ok(()),
    }
}

/// Removes a folder and everything in it, or a file; a missing one is fine.
///
/// # Errors
/// When something in it can't be removed, or is mounted.
pub fn remove_tree(path: &Path) -> Result<()> {
    match fs::symlink_metadata(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Ok(found) if found.is_dir() => assert_nothing_mounted(path, "removed", |_, _| true)?,
        _ => {}
    }
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotADirectory => remove_file(path),
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", path)(e)),
        _ => Ok(()),
    }
}

/// Refuses if anything is mounted in a folder, perhaps a user's own bind mount: it would be emptied too. `counts` is
/// called with the mount point and the folder.
fn assert_nothing_mounted(
    folder: &Path,
    becomes: &str,
    counts: impl Fn(&Path, &Path) -> bool,
) -> Result<()> {
    let real = fs::canonicalize(folder).map_err(Error::io("find", folder))?;
    let mounts = Mounts::read()?;
    let is_in = |mount: &&Mount| mount.point.starts_with(&real) && counts(&mount.point, &real);
    let Some(mount) = mounts.iter().filter(is_in).find(|mount| !mount.is_looked_into()) else {
        return Ok(());
    };
    let (point, folder) = (mount.point.display(), folder.display());
    Err(Error::failed(format!(
        "\"{}\" is mounted at \"{point}\", in \"{folder}\", which is to be {becomes}",
        mount.source
    ))
    .with_hint("unmount it: its files would be removed with the rest"))
}

/// Empties a folder, which itself stays; a missing one is fine.
///
/// # Errors
/// When something in it can't be removed, or is mounted.
pub fn empty_directory(path: &Path) -> Result<()> {
    if !path.exists() {
        return Ok(());
    }
    // The folder itself may be the root of a file system.
    assert_nothing_mounted(path, "emptied", |point, folder| point != folder)?;
    opened::remove_in(path, |_| true)
}

/// Checks that a folder is empty.
///
/// # Errors
/// When it can't be listed.
pub fn is_empty_directory(path: &Path) -> Result<bool> {
    Ok(fs::read_dir(path).map_err(Error::io("list", path))?.next().is_none())
}

/// Returns what is in a folder; nothing if the folder doesn't exist.
///
/// # Errors
/// When it can't be listed.
pub fn list(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(folder) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(Error::io("list", folder))?,
    };
    entries.map(|entry| Ok(entry.map_err(Error::io("list", folder))?.path())).collect()
}

/// Refuses a path where nothing can be made, because its file system is mounted read-only: the path, or the first
/// folder above it that is there. Whatever else may be in the way is left to whoever makes it.
///
/// # Errors
/// As if the folder had been made.
pub fn refuse_read_only(path: &Path) -> Result<()> {
    use rustix::fs::{Access, AtFlags, CWD, accessat};
    let there = path.ancestors().find(|folder| folder.exists());
    let found = there.map(|folder| accessat(CWD, folder, Access::WRITE_OK, AtFlags::EACCESS));
    match found {
        Some(Err(errno @ rustix::io::Errno::ROFS)) => Err(Error::io("create", path)(errno.into())),
        _ => Ok(()),
    }
}

/// Renames a file, and replaces what has the new name; a missing source is fine.
///
/// # Errors
/// When the system refuses.
pub fn rename_over(from: &Path, to: &Path) -> Result<()> {
    match fs::rename(from, to) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(Error::io("rename", from)),
    }
}

/// Makes a folder accessible to this process's user alone.
///
/// # Errors
/// When the system refuses.
pub fn keep_private(path: &Path) -> Result<()> {
    // A folder that is already private may be where nothing can be changed.
    let mode = fs::metadata(path).map_err(Error::io("look at", path))?.permissions().mode();
    if mode & 0o7777 == 0o700 {
        return Ok(());
    }
    match fs::set_permissions(path, fs::Permissions::from_mode(0o700)) {
        // It can still be looked at, and nothing new comes into it.
        Err(e) if e.kind() == std::io::ErrorKind::ReadOnlyFilesystem => Ok(()),
        other => other.map_err(Error::io("chmod", path)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_process_was_writing_goes_and_nothing_else() {
        let scratch = tempfile::tempdir().unwrap();
        let old = std::time::SystemTime::now() - 2 * HALF_WRITTEN;
        // No process id is greater than 2^22.
        let (left, alive) = ("r.json.9999999.tmp", format!("r.json.{}.tmp", std::process::id()));
        let (young, other) = ("s.json.9999999.tmp", "r.json");
        for (name, is_old) in [(left, true), (&*alive, true), (young, false), (other, true)] {
            let file = File::create(scratch.path().join(name)).unwrap();
            if is_old {
                file.set_modified(old).unwrap();
            }
        }
        remove_half_written(scratch.path()).unwrap();
        let stays = |name: &str| scratch.path().join(name).exists();
        assert!(!stays(left), "its process is gone, and it is old");
        assert!(stays(&alive) && stays(young) && stays(other));
    }

    #[test]
    fn publish_replaces_whole_files_and_leaves_no_temporary() {
        let dir = std::env::temp_dir().join(format!("lockstep-files-{}", std::process::id()));
        create_directories(&dir).unwrap();
        let path = dir.join("manifest.json");
        publish(&path, b"one").unwrap();
        publish(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1);
        assert!(publish(&dir.join("no/such/folder/x"), b"").is_err());
        // A link planted under the temporary name isn't followed.
        let temporary = dir.join(format!("manifest.json.{}.tmp", std::process::id()));
        std::os::unix::fs::symlink(dir.join("victim"), &temporary).unwrap();
        publish(&path, b"three").unwrap();
        assert!(!dir.join("victim").exists());
        remove_tree(&path).unwrap();
        assert!(!path.exists(), "a file goes as a folder does");
        remove_tree(&dir).unwrap();
    }
}
