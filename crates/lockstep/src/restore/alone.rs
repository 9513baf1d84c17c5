//! One restore at a time in a place. Its folders are locked with flock(2) on the folder itself: that works whatever
//! state_dir the other restore uses, leaves nothing behind, and ends with the process.
//!
//! What could go wrong: two `--delta` runs of a timer overlap. Each would find an older restore and fill it with its
//! own set, and both would succeed on a mix of the two.

use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::{folders, unfinished};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::files;
use crate::lock::{Lock, LockError};
use crate::process::Credentials;
use crate::refusal::Refusal;
use crate::volume::zfs::DatasetName;

/// The folders that a restore has to itself.
pub(super) struct Alone {
    /// All of them.
    pub(super) folders: Vec<PathBuf>,
    /// Those that didn't exist when they were looked at.
    missing: Vec<PathBuf>,
    held: Vec<Lock>,
}

impl Alone {
    /// Locks those of the folders that exist; makes none.
    pub(super) fn in_folders(folders: Vec<PathBuf>) -> Result<Self> {
        let (there, missing): (Vec<_>, Vec<_>) =
            folders.iter().cloned().partition(|folder| folder.is_dir());
        let held = there.iter().map(|folder| lock(folder)).collect::<Result<_>>()?;
        Ok(Self { folders, missing, held })
    }

    /// Whether all of them existed and are locked.
    pub(super) fn is_had(&self) -> bool {
        self.missing.is_empty()
    }

    /// Returns what [`Self::make`] will make, innermost first.
    pub(super) fn to_make(&self) -> Vec<PathBuf> {
        let steps = self.missing.iter().flat_map(|folder| folder.ancestors());
        let mut steps: Vec<_> =
            steps.filter(|path| !path.exists()).map(Path::to_path_buf).collect();
        steps.sort_by_key(|path| std::cmp::Reverse(path.components().count()));
        steps.dedup();
        steps
    }

    /// Makes the missing folders and locks them; on an error it leaves none of them. A folder that somebody else made
    /// meanwhile is theirs: nobody has checked what it holds.
    pub(super) fn make(&mut self, owner: Option<Credentials>) -> Result<()> {
        let mut made = self.to_make();
        made.retain(|path| !self.missing.contains(path));
        let missing = std::mem::take(&mut self.missing);
        let result = missing.iter().try_for_each(|folder| {
            if let Some(parent) = folder.parent() {
                files::create_open_directories(parent)?;
            }
            match std::fs::create_dir(folder) {
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                    lock(folder)?;
                    return Err(Refusal::DirectoryNotEmpty { path: folder.clone() }.into());
                }
                other => other.map_err(Error::io("create", folder))?,
            }
            made.insert(0, folder.clone());
            self.held.push(lock(folder)?);
            files::create_owned_directory(folder, owner)
        });
        if result.is_err() {
            made.iter().try_for_each(|path| folders::remove_empty(path))?;
        }
        result
    }
}

/// Locks these folders; returns `None` if a restore works in any of them. Folders that don't exist are nobody's.
pub(super) fn nobody_in(folders: &[PathBuf]) -> Result<Option<Vec<Lock>>> {
    let mut held = Vec::new();
    for folder in folders.iter().filter(|folder| folder.is_dir()) {
        match Lock::of_folder(folder) {
            Ok(lock) => held.push(lock),
            Err(LockError::Held(_)) => return Ok(None),
            Err(LockError::Failed(error)) => return Err(error),
        }
    }
    Ok(Some(held))
}

fn lock(folder: &Path) -> Result<Lock> {
    Lock::of_folder(folder).map_err(|error| match error {
        LockError::Held(holder) => {
            Error::PlaceInUse { place: format!("\"{}\"", folder.display()), holder }
        }
        LockError::Failed(error) => error,
    })
}

/// Holds a folder of locks that apply to all restores of the host, whatever their state_dir or cluster.
const HOST: &str = "/run/lock";

/// The dataset below which a restore is alone: two would receive for hours before ZFS refuses one of them its names.
pub(super) struct AloneBelow<'a> {
    cx: &'a Context<'a>,
    id: String,
    _lock: Lock,
    /// The host-wide lock, with its file. It is missing if another user owns that folder, and a container has a
    /// folder of its own; then the lock in state_dir keeps apart those that share it.
    host: Option<(PathBuf, Lock)>,
}

impl<'a> AloneBelow<'a> {
    pub(super) fn dataset(cx: &'a Context<'a>, parent: &DatasetName) -> Result<Self> {
        let id = format!("below-{}", parent.as_str().replace('/', "%"));
        let in_use = |holder| Error::PlaceInUse { place: format!("dataset \"{parent}\""), holder };
        let lock = unfinished::lock(cx, &id).map_err(|error| match error {
            Error::Locked { holder, .. } => in_use(holder),
            other => other,
        })?;
        let mut alone = Self { cx, id, _lock: lock, host: None };
        match folder_of_host(Path::new(HOST)) {
            Ok(folder) => {
                let path = folder.join(format!("{}.lock", alone.id));
                let command = format!("restore of cluster \"{}\"", cx.name);
                let lock = Lock::take(&path, &command).map_err(|error| match error {
                    LockError::Held(holder) => in_use(holder),
                    LockError::Failed(error) => error,
                })?;
                alone.host = Some((path, lock));
            }
            Err(error) => tracing::debug!(
                error = %error.chain(),
                "restores below dataset \"{parent}\" that go by another state_dir aren't kept apart"
            ),
        }
        Ok(alone)
    }
}

/// Returns the folder of the host-wide locks, and makes it if needed. Anybody may be able to write to `place`, so a
/// link, or a folder that isn't this user's alone, is refused.
fn folder_of_host(place: &Path) -> Result<PathBuf> {
    let own = rustix::process::geteuid().as_raw();
    let folder = place.join(match own {
        0 => "lockstep".to_owned(),
        _ => format!("lockstep-{own}"),
    });
    let mut builder = std::fs::DirBuilder::new();
    match builder.mode(0o700).create(&folder) {
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
        other => other.map_err(Error::io("create", &folder))?,
    }
    let found = folder.symlink_metadata().map_err(Error::io("look at", &folder))?;
    if !found.is_dir() || found.uid() != own || found.mode() & 0o022 != 0 {
        return Err(Error::failed(format!(
            "\"{}\" isn't this user's own folder",
            folder.display()
        )));
    }
    Ok(folder)
}

impl Drop for AloneBelow<'_> {
    fn drop(&mut self) {
        if let Some((path, _)) = &self.host {
            let _ = files::remove_file(path);
        }
        unfinished::remove_lock(self.cx, &self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_s_locks_lie_in_a_folder_that_is_nobody_else_s() {
        let scratch = tempfile::tempdir().unwrap();
        let folder = folder_of_host(scratch.path()).unwrap();
        assert_eq!(folder.metadata().unwrap().mode() & 0o777, 0o700);
        assert_eq!(folder_of_host(scratch.path()).unwrap(), folder);
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        std::fs::set_permissions(&folder, open).unwrap();
        assert!(folder_of_host(scratch.path()).is_err());
        std::fs::remove_dir(&folder).unwrap();
        std::os::unix::fs::symlink(scratch.path(), &folder).unwrap();
        assert!(folder_of_host(scratch.path()).is_err());
        assert!(folder_of_host(&scratch.path().join("none")).is_err());
    }
}
