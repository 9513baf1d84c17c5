//! Databases that recovery copies from others, file by file: CREATE DATABASE up to PostgreSQL 14, and later with
//! `STRATEGY file_copy`. Replay removes the copy's folder and copies the other one's as it is on disk at that time
//! (`dbase_redo` in dbcommands.c).
//!
//! What could go wrong: what a wanted database is copied from is a hole, and so the wanted one becomes one too. So the
//! set's own WAL is read for such copies, and what they are made from is restored with them.

use std::collections::BTreeMap;

use pgfiles::database_records::{Change, Folder, Next, Records};
use pgfiles::lsn::Lsn;
use pgfiles::wal_name::WalSegment;
use pgfiles::wal_page::{LONG_HEADER_SIZE, SegmentHeader};

use super::Only;
use crate::error::Result;
use crate::repository::{Repository, Shipped, files};
use crate::steps;

/// A copy that recovery makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Copied {
    from: Folder,
    to: Folder,
}

/// Returns the copies that recovery of a set makes, oldest first, as far as its own WAL tells.
pub(super) fn in_wal(repository: &Repository, shipped: &Shipped) -> Result<Vec<Copied>> {
    let manifest = &shipped.manifest;
    let Some(start) = manifest.start_lsn else { return Ok(Vec::new()) };
    let identity = manifest.wal_identity()?;
    let size = identity.segment_size;
    // The newest timeline's segment has what is before the switch, too.
    let mut segments: BTreeMap<u64, WalSegment> = BTreeMap::new();
    for name in manifest.wal.segments.iter().filter(|name| !manifest.wal.archived.contains(name)) {
        let Ok(segment) = WalSegment::parse(name, size) else { continue };
        let known = segments.entry(segment.number).or_insert(segment);
        if segment.timeline > known.timeline {
            *known = segment;
        }
    }
    let mut records = Records::new(start, Lsn::new(u64::MAX), size);
    let mut number = WalSegment::containing(identity.timeline, start, size).number;
    while let Some(segment) = segments.get(&number) {
        steps::passed("restore.copies-segment")?;
        let mut pages = Pages::new(&mut records, segment.start(size), start);
        let name = format!("wal/{}", segment.file_name(size));
        files::content(repository, manifest.set.as_str(), &name, |offset, content| {
            pages.take(offset, content);
            Ok(())
        })?;
        if pages.next == Next::End {
            break;
        }
        number += 1;
    }
    let found = records.into_found().into_iter();
    Ok(found
        .filter_map(|record| match record.change {
            Change::Copy { from, to } => Some(Copied { from, to }),
            _ => None,
        })
        .collect())
}

/// Cuts the content of a segment into pages.
struct Pages<'a> {
    records: &'a mut Records,
    first: Lsn,
    /// No record is wanted before it.
    start: Lsn,
    /// The bytes in a page, once the first one was seen.
    page: usize,
    /// Where `rest` begins in the segment.
    at: u64,
    rest: Vec<u8>,
    next: Next,
}

impl<'a> Pages<'a> {
    const fn new(records: &'a mut Records, first: Lsn, start: Lsn) -> Self {
        Self { records, first, start, page: 0, at: 0, rest: Vec::new(), next: Next::Page }
    }

    fn take(&mut self, offset: u64, content: &[u8]) {
        if self.next != Next::Page {
            return;
        }
        self.rest.extend_from_slice(content);
        // What is left out is zeros, and WAL ends there.
        let is_next = offset == self.at + (self.rest.len() - content.len()) as u64;
        if !is_next {
            self.next = Next::End;
            return;
        }
        if self.page == 0 {
            if self.rest.len() < LONG_HEADER_SIZE {
                return;
            }
            let Ok(header) = SegmentHeader::parse(&self.rest) else {
                self.next = Next::End;
                return;
            };
            self.page = header.block_size as usize;
        }
        let mut used = 0;
        for page in self.rest.chunks_exact(self.page) {
            let next = match self.first.checked_add(self.at) {
                None => Next::End,
                Some(at) if at.checked_add(page.len() as u64) <= Some(self.start) => Next::Page,
                Some(at) => self.records.page(at, page),
            };
            used += page.len();
            self.at += page.len() as u64;
            if next != Next::Page {
                self.next = next;
                break;
            }
        }
        self.rest.drain(..used);
    }
}

impl Only {
    /// Adds what wanted databases are copied from, and what those are.
    pub(super) fn add_sources(&mut self, copies: &[Copied]) {
        for Copied { from, to } in copies.iter().rev() {
            if !self.wants(to.database) || !self.wants_in(to.tablespace) {
                continue;
            }
            if !self.wants(from.database) {
                self.databases.iter_mut().for_each(|all| _ = all.insert(from.database));
                tracing::info!(
                    "database {} is restored too: recovery copies it to database {}",
                    from.database,
                    to.database
                );
            }
            let without = self.without_tablespaces.as_mut();
            if without.is_some_and(|without| without.remove(&from.tablespace)) {
                tracing::info!(
                    "tablespace {} is restored too: recovery copies database {} from there",
                    from.tablespace,
                    to.database
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_wanted_database_is_copied_from_is_restored_too() {
        let folder = |tablespace, database| Folder { tablespace, database };
        let copy = |from, to| Copied { from, to };
        let copies = [
            copy(folder(1663, 16_384), folder(1663, 16_390)),
            copy(folder(16_500, 16_390), folder(1663, 16_391)),
            copy(folder(1663, 16_385), folder(16_501, 16_392)),
        ];
        let mut only = Only::of(Some(&[1, 16_391]), None);
        only.add_sources(&copies);
        assert_eq!(only, Only::of(Some(&[1, 16_384, 16_390, 16_391]), None));
        let mut only = Only::of(Some(&[1, 16_384]), None);
        only.add_sources(&copies);
        assert_eq!(only, Only::of(Some(&[1, 16_384]), None), "it isn't a copy itself");
        let mut only = Only::of(None, Some(&[16_500, 16_501]));
        only.add_sources(&copies);
        assert_eq!(only, Only::of(None, Some(&[16_501])));
    }
}
