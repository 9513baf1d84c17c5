//! A little room that is kept back in a folder, for what makes room there and has to write something first: a file of no
//! use, which goes when there is no room left.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::{create_directories, remove_file};
use crate::error::{Error, Result};

/// Its size: some leases, notes or journals.
const SIZE: usize = 256 << 10;

/// Makes the file; one that is there is fine.
///
/// # Errors
/// When there is no room for it, or the folder can't be written to; then nothing of it is left.
pub fn make(path: &Path) -> Result<()> {
    if path.exists() {
        return Ok(());
    }
    if let Some(folder) = path.parent() {
        create_directories(folder)?;
    }
    // Zeros take no room where a file system compresses.
    let mut bytes = vec![0; SIZE];
    blake3::Hasher::new().update(&crate::names::random::<32>()?).finalize_xof().fill(&mut bytes);
    let mut options = OpenOptions::new();
    let file = options.write(true).create_new(true).mode(0o600).open(path);
    let mut file = match file {
        // Another command has been faster.
        Err(e) if e.kind() == ErrorKind::AlreadyExists => return Ok(()),
        file => file.map_err(Error::io("create", path))?,
    };
    let written = file.write_all(&bytes).and_then(|()| file.sync_all());
    if let Err(error) = written {
        remove_file(path)?;
        return Err(Error::io("write", path)(error));
    }
    Ok(())
}

/// Gives the room away; whether there was any.
///
/// # Errors
/// When the file can't be removed.
pub fn give(path: &Path) -> Result<bool> {
    let is_there = path.exists();
    remove_file(path).map(|()| is_there)
}
