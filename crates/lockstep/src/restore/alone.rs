//! One restore at a time at a place. Its folders are locked, each by flock(2) on the folder itself: that
//! holds whatever state_dir the other one goes by, leaves nothing behind and goes with the process.
//!
//! What could go wrong: two `--delta` of a timer that overlap. Each would find an older restore, fill it
//! with its own set, and both would end well on a mix of two.

use std::path::{Path, PathBuf};

use super::unfinished;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::files;
use crate::lock::{Lock, LockError};
use crate::plan::refusal::Refusal;
use crate::process::Credentials;
use crate::volume::zfs::DatasetName;

/// The folders that a restore is alone in.
pub(super) struct Alone {
    /// All of them.
    pub(super) folders: Vec<PathBuf>,
    /// Those that weren't there when they were looked at.
    missing: Vec<PathBuf>,
    held: Vec<Lock>,
}

impl Alone {
    /// Locks those of the folders that are there; nothing is made.
    pub(super) fn in_folders(folders: Vec<PathBuf>) -> Result<Self> {
        let (there, missing): (Vec<_>, Vec<_>) =
            folders.iter().cloned().partition(|folder| folder.is_dir());
        let held = there.iter().map(|folder| lock(folder)).collect::<Result<_>>()?;
        Ok(Self { folders, missing, held })
    }

    /// Whether all of them were there and are locked.
    pub(super) fn is_had(&self) -> bool {
        self.missing.is_empty()
    }

    /// What [`Self::make`] will make, the innermost first.
    pub(super) fn to_make(&self) -> Vec<PathBuf> {
        let steps = self.missing.iter().flat_map(|folder| folder.ancestors());
        let mut steps: Vec<_> =
            steps.filter(|path| !path.exists()).map(Path::to_path_buf).collect();
        steps.sort_by_key(|path| std::cmp::Reverse(path.components().count()));
        steps.dedup();
        steps
    }

    /// Makes those that weren't there, and locks them; on an error none of them is left. One that another
    /// made meanwhile is that one's: nobody has looked at what it holds.
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
            made.iter().try_for_each(|path| unfinished::remove_place(path))?;
        }
        result
    }
}

/// Whether no restore works in any of these folders. Folders that aren't there are nobody's.
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

/// The dataset below which a restore is alone: two of one cluster would receive for hours before ZFS
/// refuses one of them its names.
pub(super) struct AloneBelow<'a> {
    cx: &'a Context<'a>,
    id: String,
    _lock: Lock,
}

impl<'a> AloneBelow<'a> {
    pub(super) fn dataset(cx: &'a Context<'a>, parent: &DatasetName) -> Result<Self> {
        let id = format!("below-{}", parent.as_str().replace('/', "%"));
        let lock = unfinished::lock(cx, &id).map_err(|error| match error {
            Error::Locked { holder, .. } => {
                Error::PlaceInUse { place: format!("dataset \"{parent}\""), holder }
            }
            other => other,
        })?;
        Ok(Self { cx, id, _lock: lock })
    }
}

impl Drop for AloneBelow<'_> {
    fn drop(&mut self) {
        unfinished::remove_lock(self.cx, &self.id);
    }
}
