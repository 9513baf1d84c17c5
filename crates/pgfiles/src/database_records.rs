//! WAL records that copy and remove the folders of databases (`dbcommands_xlog.h`), read from a run of WAL.
//!
//! PostgreSQL replays a copy (CREATE DATABASE up to version 14 and with `STRATEGY file_copy`, ALTER DATABASE … SET
//! TABLESPACE in every version) by copying what is on disk at that time. If the source folder doesn't exist, it creates
//! an empty one (`dbase_redo`, `dbcommands.c`). So these records are needed to find out whether a recovery loses a
//! database.
//!
//! What was written to the copied database after the copy matters, too: if the files already contain it, replay copies
//! it along. So for each copied database, the first record that touches it afterwards is reported.
//!
//! The reader takes page after page, of 8 KiB or of the size in the segments. It keeps only the records of this one
//! resource manager, and what the others say of a copied database's blocks. A record counts only if its CRC is right
//! and it names the previous record as its predecessor; otherwise the WAL ends there (`XLogReadRecord`,
//! `xlogreader.c`).

use std::collections::BTreeSet;
use std::fmt;

use crate::lsn::Lsn;
use crate::numbers::{number_16, number_32, number_64};
use crate::wal_name::WalSegmentSize;
use crate::wal_page::{LONG_HEADER, LONG_HEADER_SIZE, major_of_magic};

/// `SizeOfXLogRecord`.
const RECORD_HEADER: usize = 24;
const SHORT_HEADER: usize = 24;
/// `XLP_FIRST_IS_CONTRECORD` and `XLP_FIRST_IS_OVERWRITE_CONTRECORD`.
const CONTINUED: u16 = 0x0001;
const OVERWRITTEN: u16 = 0x0008;
/// `XLogRecordMaxSize`.
const LONGEST: usize = 1020 << 20;
/// A record about a database's folders has a few bytes for each tablespace; a longer one isn't such a record.
const LONGEST_KEPT: usize = 1 << 20;
/// The most that the headers of a record's blocks take: 33 of them (`XLR_MAX_BLOCK_ID`), each with an image and a
/// relation, after the origin and the transaction (`xlogrecord.h`).
const LONGEST_HEADERS: usize = 33 * (4 + 7 + 12 + 4) + 8;

/// What comes before a record's data besides the headers of its blocks (`xlogrecord.h`).
const ORIGIN: u8 = 253;
const TOP_TRANSACTION: u8 = 252;

/// Resource managers (`rmgrlist.h`).
const RM_XLOG: u8 = 0;
const RM_SMGR: u8 = 2;
const RM_DATABASE: u8 = 4;
const XLOG_SWITCH: u8 = 0x40;

/// A database's folder in a tablespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Folder {
    /// The tablespace's OID; 1663 is `pg_default`, the folder `base`.
    pub tablespace: u32,
    /// The database's OID.
    pub database: u32,
}

/// As `pg_waldump` prints it: `1663/16385`.
impl fmt::Display for Folder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.tablespace, self.database)
    }
}

/// What a record does to folders.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// One is copied, file by file.
    Copy {
        /// What is copied.
        from: Folder,
        /// What it becomes.
        to: Folder,
    },
    /// These folders are removed.
    Drop(BTreeSet<Folder>),
    /// The first change of any relation of this database since it was last copied.
    Write(u32),
}

/// A record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatabaseRecord {
    /// Where it begins.
    pub at: Lsn,
    /// What it does.
    pub change: Change,
}

/// Whether and where the WAL continues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// With the next page.
    Page,
    /// With the first page of the next segment.
    Segment,
    /// It ends, or nothing more is needed.
    End,
}

/// Reads the records of a run of WAL, a page at a time.
#[derive(Debug)]
pub struct Records {
    start: Lsn,
    until: Lsn,
    size: WalSegmentSize,
    /// The end of the last complete record.
    end: Lsn,
    previous: Option<Lsn>,
    begun: Option<Begun>,
    found: Vec<DatabaseRecord>,
    /// Databases that were copied and not written to since.
    sources: BTreeSet<u32>,
}

/// A record of which only a part has been read.
#[derive(Debug)]
struct Begun {
    at: Lsn,
    total: usize,
    seen: usize,
    header: [u8; RECORD_HEADER],
    /// The CRC of what follows the header.
    crc: u32,
    body: Vec<u8>,
    /// How many bytes of the body are kept if the record isn't about databases.
    keeps: usize,
    major: u32,
}

impl Records {
    /// Reads from the record that begins at `start` through the record that begins at `until`, or the first one after
    /// it. Pages must be passed starting with the one that holds `start`.
    #[must_use]
    pub const fn new(start: Lsn, until: Lsn, size: WalSegmentSize) -> Self {
        Self {
            start,
            until,
            size,
            end: start,
            previous: None,
            begun: None,
            found: Vec::new(),
            sources: BTreeSet::new(),
        }
    }

    /// Returns the end of the last record that was read completely, or the start if there was none.
    #[must_use]
    pub const fn end(&self) -> Lsn {
        self.end
    }

    /// Returns what was found.
    #[must_use]
    pub fn into_found(self) -> Vec<DatabaseRecord> {
        self.found
    }

    /// Reads the next page; `address` is the position of its first byte.
    pub fn page(&mut self, address: Lsn, page: &[u8]) -> Next {
        self.read(address, page).unwrap_or(Next::End)
    }

    /// Returns `None` if what comes isn't WAL any more.
    fn read(&mut self, address: Lsn, page: &[u8]) -> Option<Next> {
        let major = major_of_magic(number_16(page, 0)?)?;
        let info = number_16(page, 2)?;
        if number_64(page, 8)? != address.as_u64() {
            return None;
        }
        let header = if info & LONG_HEADER == 0 { SHORT_HEADER } else { LONG_HEADER_SIZE };
        let mut at = header;
        let is_first = self.begun.is_none() && self.previous.is_none();
        if info & OVERWRITTEN != 0 {
            // The rest of the record was never written: another record is in its place.
            self.begun = None;
        }
        if let Some(mut begun) = self.begun.take() {
            let rest = begun.total - begun.seen;
            if info & CONTINUED == 0 || number_32(page, 16)? as usize != rest {
                return None;
            }
            begun.take(page.get(at..)?);
            if begun.seen < begun.total {
                self.begun = Some(begun);
                return Some(Next::Page);
            }
            at = aligned(header + rest);
            if let Some(next) = self.finish(begun, address.checked_add(at as u64)?)? {
                return Some(next);
            }
        } else if is_first {
            let inside =
                usize::try_from(self.start.as_u64().checked_sub(address.as_u64())?).ok()?;
            at = at.max(inside);
        } else if info & CONTINUED != 0 {
            return None;
        }
        while at < page.len() {
            let total = number_32(page, at)? as usize;
            if !(RECORD_HEADER..=LONGEST).contains(&total) {
                return None;
            }
            let mut begun = Begun {
                at: address.checked_add(at as u64)?,
                total,
                seen: 0,
                header: [0; RECORD_HEADER],
                crc: 0,
                body: Vec::new(),
                keeps: if self.sources.is_empty() { 0 } else { LONGEST_HEADERS },
                major,
            };
            begun.take(page.get(at..)?);
            if begun.seen < total {
                self.begun = Some(begun);
                break;
            }
            at = aligned(at + total);
            if let Some(next) = self.finish(begun, address.checked_add(at as u64)?)? {
                return Some(next);
            }
        }
        Some(Next::Page)
    }

    /// Handles a complete record. Returns what comes after it, if that isn't simply the next record on the page.
    fn finish(&mut self, begun: Begun, end: Lsn) -> Option<Option<Next>> {
        let computed = crc32c::crc32c_append(begun.crc, &begun.header[..20]);
        let previous = Lsn::new(number_64(&begun.header, 8)?);
        if computed != number_32(&begun.header, 20)?
            || self.previous.is_some_and(|known| known != previous)
        {
            return None;
        }
        let (info, manager) = (begun.header[16] & 0xf0, begun.header[17]);
        let is_switch = (manager, info) == (RM_XLOG, XLOG_SWITCH);
        self.previous = Some(begun.at);
        // It extends to the end of its segment.
        let bytes = u64::from(self.size.bytes());
        let behind = end.as_u64().checked_next_multiple_of(bytes).map_or(end, Lsn::new);
        self.end = if is_switch { behind } else { end };
        let change = match manager {
            RM_DATABASE => change(begun.major, info, &begun.body),
            _ => self.written(&begun, manager, info).map(Change::Write),
        };
        match &change {
            Some(Change::Copy { from, .. }) => _ = self.sources.insert(from.database),
            Some(Change::Write(database)) => _ = self.sources.remove(database),
            _ => {}
        }
        self.found.extend(change.map(|change| DatabaseRecord { at: begun.at, change }));
        Some(match () {
            () if self.end > self.until => Some(Next::End),
            () if is_switch => Some(Next::Segment),
            () => None,
        })
    }

    /// Returns the copied database that a record changes.
    fn written(&self, begun: &Begun, manager: u8, info: u8) -> Option<u32> {
        if self.sources.is_empty() {
            return None;
        }
        // Both begin with a relation, except that a truncation names a block first (`storage_xlog.h`).
        let own = || match (manager, info) {
            (RM_SMGR, 0x10) => number_32(main_data(&begun.body)?, 4),
            (RM_SMGR, 0x20) => number_32(main_data(&begun.body)?, 8),
            _ => None,
        };
        let is_source = |database: &u32| self.sources.contains(database);
        let mut blocks = BlockDatabases { body: &begun.body, at: 0, major: begun.major };
        blocks.find(is_source).or_else(|| own().filter(is_source))
    }
}

/// The databases of the blocks that a record changes, read from the blocks' headers (`DecodeXLogRecord`,
/// `xlogreader.c`).
struct BlockDatabases<'a> {
    body: &'a [u8],
    at: usize,
    major: u32,
}

impl Iterator for BlockDatabases<'_> {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        const MOST: u8 = 32;
        const HAS_IMAGE: u8 = 0x10;
        const SAME_RELATION: u8 = 0x80;
        const HAS_HOLE: u8 = 0x01;
        loop {
            match *self.body.get(self.at)? {
                ORIGIN => self.at += 3,
                TOP_TRANSACTION => self.at += 5,
                0..=MOST => {
                    let flags = *self.body.get(self.at + 1)?;
                    self.at += 4;
                    if flags & HAS_IMAGE != 0 {
                        let image = *self.body.get(self.at + 4)?;
                        // 15 replaced one method with three (`BKPIMAGE_COMPRESSED`).
                        let compressed = if self.major >= 15 { 0x1c } else { 0x02 };
                        let has_length = image & HAS_HOLE != 0 && image & compressed != 0;
                        self.at += if has_length { 7 } else { 5 };
                    }
                    // Without a relation, it is that of the previous block, which was returned already. The block's
                    // number comes last.
                    if flags & SAME_RELATION == 0 {
                        let database = self.at + 4;
                        self.at += 16;
                        return number_32(self.body, database);
                    }
                    self.at += 4;
                }
                _ => return None,
            }
        }
    }
}

impl Begun {
    /// Takes the record's part of a page.
    fn take(&mut self, bytes: &[u8]) {
        let bytes = &bytes[..bytes.len().min(self.total - self.seen)];
        let of_header = bytes.len().min(RECORD_HEADER.saturating_sub(self.seen));
        let (header, body) = bytes.split_at(of_header);
        if !header.is_empty() {
            self.header[self.seen..self.seen + of_header].copy_from_slice(header);
        }
        self.seen += bytes.len();
        self.crc = crc32c::crc32c_append(self.crc, body);
        let is_database = self.seen > RECORD_HEADER && self.header[17] == RM_DATABASE;
        let most =
            if is_database && self.total <= LONGEST_KEPT { LONGEST_KEPT } else { self.keeps };
        let room = most.saturating_sub(self.body.len());
        self.body.extend_from_slice(&body[..body.len().min(room)]);
    }
}

/// Returns what a record of the database manager does; `None` if nothing is copied or removed.
fn change(major: u32, info: u8, body: &[u8]) -> Option<Change> {
    let data = main_data(body)?;
    let folder = |tablespace, database| -> Option<Folder> {
        Some(Folder {
            tablespace: number_32(data, tablespace)?,
            database: number_32(data, database)?,
        })
    };
    // 15 inserted CREATE_WAL_LOG between the two.
    let drop = if major >= 15 { 0x20 } else { 0x10 };
    if info == 0 {
        return Some(Change::Copy { from: folder(12, 8)?, to: folder(4, 0)? });
    }
    if info != drop {
        return None;
    }
    let count = (number_32(data, 4)? as usize).min(data.len() / 4);
    let folders = (0..count).filter_map(|index| folder(8 + 4 * index, 0));
    Some(Change::Drop(folders.collect()))
}

/// Returns a record's own data, after its origin and the headers of blocks, of which these records have none
/// (`DecodeXLogRecord`, `xlogreader.c`).
fn main_data(body: &[u8]) -> Option<&[u8]> {
    const SHORT_DATA: u8 = 255;
    const LONG_DATA: u8 = 254;
    let mut at = 0;
    loop {
        let id = *body.get(at)?;
        let length = match id {
            SHORT_DATA => usize::from(*body.get(at + 1)?),
            LONG_DATA => number_32(body, at + 1)? as usize,
            ORIGIN => {
                at += 3;
                continue;
            }
            TOP_TRANSACTION => {
                at += 5;
                continue;
            }
            _ => return None,
        };
        return body.get(body.len().checked_sub(length)?..);
    }
}

/// `MAXALIGN`.
const fn aligned(length: usize) -> usize {
    (length + 7) & !7
}

#[cfg(test)]
mod tests;
