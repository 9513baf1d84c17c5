//! Prepared transactions of databases that aren't restored.
//!
//! Nobody can connect to such a database, and a prepared transaction can only be ended from there: it would block
//! DROP DATABASE, and vacuum, for good. So its file is removed before recovery begins, which amounts to ROLLBACK
//! PREPARED: if recovery doesn't find the file, it takes the transaction as ended (PrepareRedoRemove in twophase.c),
//! also when the WAL ends it. A transaction that was prepared after the set's checkpoint is only in the WAL, and
//! comes back.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use super::build::Build;
use super::only::Only;
use super::source::Source;
use crate::error::{Error, Result};
use crate::files;

/// The folder with a file for each prepared transaction.
const FOLDER: &str = "pg_twophase";
/// TWOPHASE_MAGIC in twophase.c, the same since PostgreSQL 10.
const MAGIC: u32 = 0x57F9_4534;

/// Removes the prepared transactions of databases that aren't restored.
pub(super) fn remove_others(build: &Build) -> Result<()> {
    match &build.source {
        Source::Repository(from) => remove_but(&from.only, &build.placement.data.join(FOLDER)),
        Source::Snapshots => Ok(()),
    }
}

fn remove_but(only: &Only, folder: &Path) -> Result<()> {
    if only.is_all() {
        return Ok(());
    }
    for path in files::list(folder)? {
        let Some(database) = database_of(&path)?.filter(|database| !only.wants(*database)) else {
            continue;
        };
        tracing::info!(
            "prepared transaction {} of database {database}, which isn't restored, is rolled back",
            path.file_name().unwrap_or_default().display()
        );
        files::remove_owned(&path)?;
    }
    Ok(())
}

/// Returns the OID of a prepared transaction's database, from the beginning of its file (TwoPhaseFileHeader): magic
/// number, length, xid, database. A file that begins otherwise is left to PostgreSQL.
fn database_of(path: &Path) -> Result<Option<u32>> {
    let metadata = path.symlink_metadata().map_err(Error::io("look at", path))?;
    if !metadata.is_file() {
        return Ok(None);
    }
    let mut header = [0; 16];
    let mut file = File::open(path).map_err(Error::io("open", path))?;
    match file.read_exact(&mut header) {
        Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other.map_err(Error::io("read", path))?,
    }
    let [magic, _, _, database] =
        [0, 4, 8, 12].map(|at| u32::from_ne_bytes([0, 1, 2, 3].map(|byte| header[at + byte])));
    Ok((magic == MAGIC).then_some(database))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_those_of_databases_that_are_not_restored_go() {
        let scratch = tempfile::tempdir().unwrap();
        let folder = scratch.path();
        let write = |name: &str, numbers: [u32; 5]| {
            let bytes: Vec<u8> = numbers.iter().flat_map(|it| it.to_ne_bytes()).collect();
            std::fs::write(folder.join(name), bytes).unwrap();
        };
        write("0000000000000301", [MAGIC, 20, 0x301, 16_384, 0]);
        write("0000000000000302", [MAGIC, 20, 0x302, 16_385, 0]);
        write("0000000000000303", [MAGIC + 1, 20, 0x303, 16_385, 0]);
        std::fs::write(folder.join("0000000000000304"), b"short").unwrap();
        remove_but(&Only::of(None, None), folder).unwrap();
        remove_but(&Only::of(None, Some(&[16_500])), folder).unwrap();
        assert_eq!(files::list(folder).unwrap().len(), 4);
        remove_but(&Only::of(Some(&[16_384]), None), folder).unwrap();
        let left = files::list(folder).unwrap();
        assert_eq!(left.len(), 3);
        assert!(left.iter().all(|path| !path.ends_with("0000000000000302")), "{left:?}");
    }
}
