//! A little room that is kept back in a repository's folder, for the lease of whoever makes room there.
//!
//! What could go wrong: the folder's file system is full. What nothing needs could be deleted, but nobody may delete without
//! a lease, and the lease has to be written. So a file of no use lies there; a collection that finds no room for its lease
//! removes it first, and it is made again once there is room. Shipments don't touch it: they would fill its room too.
//!
//! Or its making is killed. So it gets its name once it is whole, what is smaller isn't it, and what was left goes like
//! all that was half written.

use std::path::PathBuf;

use super::Repository;
use crate::config::Place;
use crate::error::Result;
use crate::files::reserve;

/// Where it lies, where there is a folder.
fn path(repository: &Repository) -> Option<PathBuf> {
    match repository.config.place() {
        Ok(Place::Folder(folder)) => Some(folder.join("leases/reserve")),
        _ => None,
    }
}

/// Keeps it back, where it isn't and there is room: whoever has the lease does.
pub(crate) fn keep(repository: &Repository) {
    let Some(path) = path(repository) else { return };
    if let Err(error) = reserve::make(&path) {
        tracing::debug!(repository = repository.name, "nothing is kept back: {}", error.chain());
    }
}

/// Gives the room away; whether there was any.
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
