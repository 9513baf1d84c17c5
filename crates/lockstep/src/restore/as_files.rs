//! Restores a volume from a repository into a folder of any file system.
//!
//! First the names: folders and empty files of the right size. Then the content: several threads, each frame of the
//! repository read once. Last owners, modes and times. If the folder isn't empty, only what differs is written. The
//! next volume doesn't have to wait until this one is on disk.
//!
//! What could go wrong:
//! - The folder holds a symbolic link that somebody put there: every step on the way down is opened without following
//!   links, so nothing is written or removed outside.
//! - It is interrupted half way: pg_control doesn't have its name yet (`control.rs`).
//! - Memory: names and attributes are held, and a few frames for each thread; never a whole file.

mod content;
mod finish;
mod make;
#[cfg(test)]
mod memory_tests;
pub(super) mod place;
mod plan;
mod turns;
mod writing;

use std::collections::HashSet;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use indicatif::ProgressBar;
use rustix::fs::Mode;

use super::owners::Owners;
use super::placement::FolderElsewhere;
use crate::error::{Error, Result};
use crate::files::opened;
use crate::repository::Repository;
use crate::repository::tree::ImageTree;
use crate::steps;
use crate::words::bytes;

use place::Root;
use plan::Plan;

/// The result of a restore of files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Written {
    /// Regular files that are there now.
    pub files: u64,
    /// Bytes that were written into them.
    pub bytes_written: u64,
    /// Bytes that were read from the repository's packs.
    pub bytes_read: u64,
    /// Files and folders that weren't in the set and were removed.
    pub removed: u64,
}

impl Written {
    pub(super) fn add(&mut self, other: Self) {
        self.files += other.files;
        self.bytes_written += other.bytes_written;
        self.bytes_read += other.bytes_read;
        self.removed += other.removed;
    }
}

/// A volume that is restored as a folder.
pub(super) struct Volume<'a> {
    pub(super) repository: &'a Repository,
    /// Its files.
    pub(super) tree: &'a ImageTree,
    /// The folder.
    pub(super) folder: &'a Path,
    /// The data directory inside it, if this volume holds it.
    pub(super) data_inside: Option<&'a Path>,
    /// Bring what is in the folder to the set's state.
    pub(super) delta: bool,
    /// Folders of the volume that become folders elsewhere.
    pub(super) apart: &'a [FolderElsewhere],
    /// Folders of other volumes, which may be inside this one.
    pub(super) others: &'a [PathBuf],
    /// The files' new owners, if they differ from the set's.
    pub(super) owners: Option<Owners>,
    /// Files that become holes.
    pub(super) zeroed: &'a HashSet<u64>,
    /// Set as soon as something is written into a file.
    pub(super) has_content: &'a AtomicBool,
    /// Shows how much of the content is there.
    pub(super) bar: ProgressBar,
}

/// What was restored, and may not be on disk yet.
pub(super) struct Unsynced(Root);

impl Unsynced {
    /// Waits until all of it is on disk.
    pub(super) fn sync(&self) -> Result<()> {
        self.0.sync()
    }
}

/// Warns if so many bytes may not fit into the folder; a file system that compresses may take more than it has left.
pub(super) fn say_where_it_may_not_fit(folder: &Path, total: u64) {
    let there = folder.ancestors().find(|folder| folder.exists());
    let Some(Ok(space)) = there.map(rustix::fs::statvfs) else { return };
    let left = space.f_bavail.saturating_mul(space.f_frsize);
    if left < total {
        let (folder, left, total) = (folder.display(), bytes(left), bytes(total));
        tracing::warn!(
            "\"{folder}\" has {left} left, and up to {total} are written: it may not fit"
        );
    }
}

/// Removes a folder of DIR with everything in it, without following a link on the way there or in it; returns how
/// many names were removed.
pub(super) fn remove(directory: &Path, path: &Path) -> Result<u64> {
    let steps = path.strip_prefix(directory).unwrap_or(path);
    let steps: Vec<&[u8]> = steps.iter().map(OsStrExt::as_bytes).collect();
    let Some((name, way)) = steps.split_last() else { return Ok(0) };
    let failed = |e: rustix::io::Errno| Error::io("remove", path)(e.into());
    let top = rustix::fs::open(directory, opened::FOLDER, Mode::empty()).map_err(failed)?;
    let folder = place::descend(&top, way).map_err(failed)?;
    opened::remove(&folder, name).map_err(failed)
}

/// Restores a volume; leaves its pg_control under a temporary name.
pub(super) fn restore(volume: &Volume<'_>) -> Result<(Written, Unsynced)> {
    let plan = Plan::new(volume)?;
    let root = Root::open(volume.folder, volume.apart)?;
    if volume.delta {
        make::remove_control(&root, &plan)?;
    }
    let made = make::make(volume, &plan, &root)?;
    steps::reached("restore.files-made")?;
    let filled = content::fill(volume, &plan, &root, &made)?;
    steps::reached("restore.files-filled")?;
    finish::finish(volume, &plan, &root, &made, &filled)?;
    let written = Written {
        files: plan.files.iter().filter(|file| file.is_regular()).count() as u64,
        bytes_written: made.bytes_zeroed + filled.bytes_written,
        bytes_read: filled.bytes_read,
        removed: made.removed,
    };
    Ok((written, Unsynced(root)))
}
