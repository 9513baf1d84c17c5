//! A little room kept back in a repository's folder, for the lease of a command that frees room there.
//!
//! What could go wrong: the folder's file system is full. Unneeded objects could be deleted, but nobody may delete
//! without a lease, and the lease has to be written. So a file without any use is kept there. A collection that finds
//! no room for its lease removes it first, and it is created again once there is room. Shipments don't touch it: they
//! would fill its room too.
//!
//! Or its creation is killed. So it gets its name only once it is whole, a smaller file doesn't count, and leftovers
//! are removed like everything half written.

use std::path::PathBuf;

use super::Repository;
use crate::config::Place;
use crate::error::Result;
use crate::files::reserve;

/// Where the reserve is, if the repository is a folder.
fn path(repository: &Repository) -> Option<PathBuf> {
    match repository.config.place() {
        Ok(Place::Folder(folder)) => Some(folder.join("leases/reserve")),
        _ => None,
    }
}

/// Creates the reserve if it is missing and there is room. The holder of the lease does this.
pub(crate) fn keep(repository: &Repository) {
    let Some(path) = path(repository) else { return };
    if let Err(error) = reserve::make(&path) {
        tracing::debug!(repository = repository.name, "nothing is kept back: {}", error.chain());
    }
}

/// Removes the reserve; returns whether there was one.
///
/// # Errors
/// When the file can't be removed.
pub(crate) fn give(repository: &Repository) -> Result<bool> {
    let Some(path) = path(repository).filter(|path| path.exists()) else { return Ok(false) };
    tracing::warn!(
        repository = repository.name,
        "there is no room for a lease: what was kept back for it is used"
    );
    reserve::give(&path)
}
