//! Databases whose files are copied by replay: are the files that it copies in the set as replay needs them?
//!
//! A copy in the WAL (ALTER DATABASE … SET TABLESPACE; CREATE DATABASE up to version 14, and later with `STRATEGY
//! file_copy`) is replayed by removing the new folder and copying the old one as it is on disk at that time. If the
//! old one doesn't exist, PostgreSQL silently creates it, empty (dbase_redo and recovery_create_dbdir in
//! dbcommands.c). In crash recovery this can't happen: both commands make a checkpoint before they commit, and the
//! old folder is removed after that, so recovery begins after the copy. A backup's recovery begins before the copy,
//! with folders that were frozen later: what was written to the old one since then is copied too, and what was
//! removed from it is missing.
//!
//! What could go wrong: a removal in progress has no record yet, because a primary writes the record after the
//! removal.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;

use pgfiles::database_records::{Change, DatabaseRecord, Folder, Next, Records};
use pgfiles::lsn::Lsn;
use pgfiles::wal_name::WalSegment;
use pgfiles::wal_page::{LONG_HEADER_SIZE, SegmentHeader};

use super::wal::WalIdentity;
use crate::error::{Error, Result};
use crate::files;
use crate::steps;

/// How many pages are read at once.
const PAGES: usize = 32;

/// The OID of `pg_default` (`pg_tablespace.dat`).
const PG_DEFAULT: u32 = 1663;

/// What is known about removals that have no record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Removals {
    /// There are none: in recovery, the record comes first.
    Recorded,
    /// The server was asked after the last snapshot of data: these databases are being removed.
    UnderWay(BTreeSet<u32>),
    /// Nobody could be asked.
    Unknown,
}

/// The first copy whose source may have been changed or removed when it was frozen, in words; a pure function. If
/// recovery of a set replays it, the set may lose the database.
#[must_use]
pub fn lost(records: &[DatabaseRecord], removals: &Removals) -> Option<String> {
    records.iter().enumerate().find_map(|(at, record)| {
        let Change::Copy { from, to } = &record.change else { return None };
        let is_removed = |later: &DatabaseRecord| matches!(&later.change, Change::Drop(folders) if folders.contains(from));
        let database = from.database;
        let why = if from.database == to.database {
            format!(
                "database {database} was moved from {} to {}",
                tablespace(*from),
                tablespace(*to)
            )
        } else if records[at..].iter().any(is_removed) {
            format!("database {} was copied from {database}, which was removed", to.database)
        } else if records[at..].iter().any(|later| later.change == Change::Write(database)) {
            format!("database {} was copied from {database}, which was written to after that", to.database)
        } else {
            match removals {
                Removals::UnderWay(databases) if databases.contains(&database) => format!(
                    "database {} was copied from {database}, which is being removed",
                    to.database
                ),
                Removals::Unknown => format!(
                    "database {} was copied from {database}, and without a connection nobody can tell whether that is being removed",
                    to.database
                ),
                _ => return None,
            }
        };
        Some(format!("{why} (WAL at {})", record.at))
    })
}

fn tablespace(folder: Folder) -> String {
    match folder.tablespace {
        PG_DEFAULT => "pg_default".into(),
        oid => format!("tablespace {oid}"),
    }
}

/// Reads the records from the one at `start` to the one that begins at `until`, or the first after it, from segments
/// in any of these folders. Also returns how far it came: less than `until` if the WAL ends earlier.
///
/// # Errors
/// When a segment can't be read; [`Error::Interrupted`] between two of them.
pub fn read(
    folders: &[PathBuf],
    identity: WalIdentity,
    start: Lsn,
    until: Lsn,
) -> Result<(Vec<DatabaseRecord>, Lsn)> {
    let mut records = Records::new(start, until, identity.segment_size);
    let mut segment = WalSegment::containing(identity.timeline, start, identity.segment_size);
    let mut from = start;
    // This can be gigabytes, if checkpoints are far apart.
    steps::reached("backup.copies")?;
    while let Some((path, file)) = open(folders, &segment.file_name(identity.segment_size))? {
        let first = segment.start(identity.segment_size);
        let inside = from.bytes_since(first).unwrap_or(0);
        match read_segment(file, first, inside, &mut records).map_err(Error::io("read", &path))? {
            Next::End => break,
            Next::Page | Next::Segment => {}
        }
        steps::reached("backup.copies-segment")?;
        segment = segment.next();
        from = segment.start(identity.segment_size);
    }
    let end = records.end();
    Ok((records.into_found(), end))
}

fn open(folders: &[PathBuf], name: &str) -> Result<Option<(PathBuf, File)>> {
    for folder in folders {
        let path = folder.join(name);
        match File::open(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            other => {
                let file = other.map_err(Error::io("read", &path))?;
                return Ok(Some((path, file)));
            }
        }
    }
    Ok(None)
}

/// Reads a segment from the page on that contains the byte `inside` it.
fn read_segment(
    mut file: File,
    first: Lsn,
    inside: u64,
    records: &mut Records,
) -> std::io::Result<Next> {
    let mut header = [0; LONG_HEADER_SIZE];
    file.read_exact(&mut header)?;
    // A segment that waits to be used.
    let Ok(header) = SegmentHeader::parse(&header) else { return Ok(Next::End) };
    let page = header.block_size as usize;
    let mut at = inside - inside % page as u64;
    file.seek(SeekFrom::Start(at))?;
    let mut buffer = vec![0; PAGES * page];
    loop {
        let length = files::fill(&mut file, &mut buffer)?;
        for page in buffer[..length].chunks_exact(page) {
            let Some(address) = first.checked_add(at) else { return Ok(Next::End) };
            match records.page(address, page) {
                Next::Page => at += page.len() as u64,
                other => return Ok(other),
            }
        }
        if length < buffer.len() {
            return Ok(Next::Page);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn folder(tablespace: u32, database: u32) -> Folder {
        Folder { tablespace, database }
    }

    fn copy(from: Folder, to: Folder) -> DatabaseRecord {
        DatabaseRecord { at: Lsn::new(0x0300_0028), change: Change::Copy { from, to } }
    }

    fn drop_of(folders: &[Folder]) -> DatabaseRecord {
        let change = Change::Drop(folders.iter().copied().collect());
        DatabaseRecord { at: Lsn::new(0x0300_0100), change }
    }

    #[test]
    fn a_database_that_was_moved_may_be_lost_whatever_else_is_known() {
        let moved = [copy(folder(16384, 5), folder(PG_DEFAULT, 5))];
        for removals in [Removals::Recorded, Removals::UnderWay(BTreeSet::new()), Removals::Unknown]
        {
            assert_eq!(
                lost(&moved, &removals).as_deref(),
                Some("database 5 was moved from tablespace 16384 to pg_default (WAL at 0/3000028)")
            );
        }
    }

    #[test]
    fn a_copy_is_whole_while_its_source_stays_as_it_was() {
        let none = Removals::UnderWay(BTreeSet::new());
        let (template, new) = (folder(PG_DEFAULT, 1), folder(PG_DEFAULT, 16390));
        let made = copy(template, new);
        assert_eq!(lost(std::slice::from_ref(&made), &none), None);
        assert_eq!(lost(std::slice::from_ref(&made), &Removals::Recorded), None);
        // The folder removed is the copy, another database, or was removed before.
        for other in [new, folder(PG_DEFAULT, 2), folder(16384, 1)] {
            assert_eq!(lost(&[made.clone(), drop_of(&[other])], &none), None);
        }
        assert_eq!(lost(&[drop_of(&[template]), made.clone()], &none), None);
        let gone = [made.clone(), drop_of(&[folder(16384, 1), template])];
        let said = lost(&gone, &none).unwrap();
        assert!(said.starts_with("database 16390 was copied from 1, which was removed"), "{said}");
        let said = lost(std::slice::from_ref(&made), &Removals::UnderWay([1].into())).unwrap();
        assert!(said.contains("which is being removed"), "{said}");
        let said = lost(std::slice::from_ref(&made), &Removals::Unknown).unwrap();
        assert!(said.contains("without a connection"), "{said}");
        assert_eq!(lost(&[drop_of(&[template])], &Removals::Unknown), None);
        let write = |database| DatabaseRecord {
            at: Lsn::new(0x0300_0200),
            change: Change::Write(database),
        };
        assert_eq!(lost(&[write(1), made.clone(), write(2)], &none), None);
        let said = lost(&[made, write(1)], &none).unwrap();
        assert!(said.contains("copied from 1, which was written to after that"), "{said}");
    }
}
