//! A little room that is kept back in a repository's folder, for the lease of whoever makes room there.
//!
//! What could go wrong: the folder's file system is full. What nothing needs could be deleted, but nobody may delete without
//! a lease, and the lease has to be written. So a file of no use lies there; a collection that finds no room for its lease
//! removes it first, and it is made again once there is room. Shipments don't touch it: they would fill its room too.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::Repository;
use crate::config::Place;
use crate::error::{Error, Result};
use crate::files;

/// Its size: some leases and notes.
const SIZE: usize = 256 << 10;

/// Where it lies, where there is a folder.
fn path(repository: &Repository) -> Option<PathBuf> {
    match repository.config.place() {
        Ok(Place::Folder(folder)) => Some(folder.join("leases/reserve")),
        _ => None,
    }
}

/// Keeps it back, where it isn't and there is room: whoever has the lease does.
pub(crate) fn keep(repository: &Repository) {
    let Some(path) = path(repository).filter(|path| !path.exists()) else { return };
    if let Err(error) = make(&path) {
        tracing::debug!(repository = repository.name, "nothing is kept back: {}", error.chain());
    }
}

fn make(path: &Path) -> Result<()> {
    if let Some(folder) = path.parent() {
        files::create_directories(folder)?;
    }
    // Zeros take no room where a file system compresses.
    let mut bytes = vec![0; SIZE];
    blake3::Hasher::new().update(&crate::names::random::<32>()?).finalize_xof().fill(&mut bytes);
    let mut options = OpenOptions::new();
    let file = options.write(true).create_new(true).mode(0o600).open(path);
    let mut file = match file {
        // Another cluster's has been faster.
        Err(e) if e.kind() == ErrorKind::AlreadyExists => return Ok(()),
        file => file.map_err(Error::io("create", path))?,
    };
    let written = file.write_all(&bytes).and_then(|()| file.sync_all());
    if let Err(error) = written {
        files::remove_file(path)?;
        return Err(Error::io("write", path)(error));
    }
    Ok(())
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
    files::remove_file(&path).map(|()| true)
}
