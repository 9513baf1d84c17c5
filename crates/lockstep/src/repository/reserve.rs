//! A little room that is kept back in a repository's folder, for the lease of whoever makes room there.
//!
//! What could go wrong: the folder's file system is full. What nothing needs could be deleted, but nobody may delete without
//! a lease, and the lease has to be written. So a file of no use lies there; a collection that finds no room for its lease
//! removes it first, and it is made again once there is room. Shipments don't touch it: they would fill its room too.
//!
//! Or its making is killed. So it gets its name once it is whole, what is smaller isn't it, and what was left goes like
//! all that was half written.

use std::fs::OpenOptions;
use std::io::Write;
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
    let Some(path) = path(repository).filter(|path| !is_whole(path)) else { return };
    if let Err(error) = make(&path) {
        tracing::debug!(repository = repository.name, "nothing is kept back: {}", error.chain());
    }
}

fn is_whole(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|metadata| metadata.len() >= SIZE as u64)
}

fn make(path: &Path) -> Result<()> {
    if let Some(folder) = path.parent() {
        files::create_directories(folder)?;
    }
    // Zeros take no room where a file system compresses.
    let mut bytes = vec![0; SIZE];
    blake3::Hasher::new().update(&crate::names::random::<32>()?).finalize_xof().fill(&mut bytes);
    // As what a killed writing leaves is called; another cluster may make one at the same time.
    let number = u32::from_le_bytes(crate::names::random()?);
    let new = path.with_file_name(format!("reserve#{number}"));
    let mut options = OpenOptions::new();
    let file = options.write(true).create_new(true).mode(0o600).open(&new);
    let mut file = file.map_err(Error::io("create", &new))?;
    let written = file.write_all(&bytes).and_then(|()| file.sync_all());
    let named = written
        .map_err(Error::io("write", &new))
        .and_then(|()| std::fs::rename(&new, path).map_err(Error::io("rename", &new)));
    if let Err(error) = named {
        files::remove_file(&new)?;
        return Err(error);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_whose_making_was_killed_is_made_anew() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("leases/reserve");
        assert!(!is_whole(&path));
        for left in [0, SIZE - 1] {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, vec![1; left]).unwrap();
            assert!(!is_whole(&path), "{left}");
            make(&path).unwrap();
            assert!(is_whole(&path));
        }
        // Two at once are one.
        make(&path).unwrap();
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }
}
