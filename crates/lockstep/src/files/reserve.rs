//! A little room kept back in a folder, for an operation that frees room there but has to write something first: a
//! file of no use, removed when there is no room left.
//!
//! What could go wrong: its creation is killed. So it gets its name only once it is whole, and a smaller file doesn't
//! count.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::{create_directories, remove_file};
use crate::error::{Error, Result};
use crate::names::random;

/// Its size: enough for some leases, notes or journals.
const SIZE: usize = 256 << 10;

/// Creates the file; one that is there and whole is fine.
///
/// # Errors
/// When there is no room for it, or the folder isn't writable; nothing of it is left then.
pub fn make(path: &Path) -> Result<()> {
    if is_whole(path) {
        return Ok(());
    }
    if let Some(folder) = path.parent() {
        create_directories(folder)?;
    }
    // Zeros would take no room if the file system compresses.
    let mut bytes = vec![0; SIZE];
    blake3::Hasher::new().update(&random::<32>()?).finalize_xof().fill(&mut bytes);
    // Named like what a killed writer leaves in a repository; another command may create one at the same time.
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!("#{}", u32::from_le_bytes(random()?)));
    let new = path.with_file_name(name);
    let mut options = OpenOptions::new();
    let file = options.write(true).create_new(true).mode(0o600).open(&new);
    let mut file = file.map_err(Error::io("create", &new))?;
    let written = file.write_all(&bytes).and_then(|()| file.sync_all());
    let named = written
        .map_err(Error::io("write", &new))
        .and_then(|()| std::fs::rename(&new, path).map_err(Error::io("rename", &new)));
    if let Err(error) = named {
        remove_file(&new)?;
        return Err(error);
    }
    Ok(())
}

fn is_whole(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|metadata| metadata.len() >= SIZE as u64)
}

/// Removes the file; returns whether there was one.
///
/// # Errors
/// When the file can't be removed.
pub fn give(path: &Path) -> Result<bool> {
    let is_there = path.exists();
    remove_file(path).map(|()| is_there)
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
