//! Finds the unchanged pages of a changed record, so that they aren't stored again.
//!
//! PostgreSQL changes 8 KiB, and ZFS sends the record around it. A page's tag (`tags.rs`) says whether the page is
//! unchanged. Without a tag, the page is compared with the base's snapshot, if that is on this host.
//!
//! What could go wrong: a page is left to the base, but the fold wouldn't take it from there. So the base's own
//! header must be one from which the object keeps its content, and nothing after the place where the object was cut
//! off counts.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use strata::delta::chain;
use strata::fold::{Headers, Heritage, Rules};

use super::tags::{Known, PAGE, Passed, Stored};
use super::volume::Job;
use crate::error::{Error, Result};
use crate::repository::header::StreamRules;
use crate::repository::ingest::Announced;
use crate::repository::of_strata;

/// How much memory the base's headers may take.
const MEMORY: u64 = 16 << 20;

/// What the passing pages are compared with.
pub struct Pages<'a> {
    tags: Option<Passed<'a>>,
    snapshot: Option<Snapshot<'a>>,
}

impl<'a> Pages<'a> {
    /// Compares with the tags, and with the snapshot where they say nothing.
    #[must_use]
    pub fn new(tags: Option<Passed<'a>>, snapshot: Option<Snapshot<'a>>) -> Self {
        Self { tags, snapshot }
    }

    /// Called when a relation's file begins. Returns whether to pass its blocks to [`Self::changed`].
    ///
    /// # Errors
    /// When the repository or the snapshot can't be read.
    pub fn begin(&mut self, announced: &Announced<'_>) -> Result<bool> {
        let mut is_shown = false;
        if let Some(tags) = &mut self.tags {
            let begun = tags.object(announced.object, announced.header, announced.tail);
            is_shown = self.unless_failed(begun).unwrap_or(false);
        }
        if let Some(snapshot) = &mut self.snapshot {
            is_shown |= snapshot.begin(announced)?;
        }
        Ok(is_shown)
    }

    /// Called when another object begins, whose pages aren't compared.
    pub fn other(&mut self, object: u64) {
        let done = self.tags.as_mut().map_or(Ok(()), |tags| tags.other(object));
        self.unless_failed(done);
    }

    /// Called for a hole in the current file.
    pub fn hole(&mut self, offset: u64, length: u64) {
        let done = self.tags.as_mut().map_or(Ok(()), |tags| tags.unknown(offset, length));
        self.unless_failed(done);
    }

    /// Called for objects that are gone.
    pub fn freed(&mut self, first: u64, count: u64) {
        let done = self.tags.as_mut().map_or(Ok(()), |tags| tags.freed(first, count));
        self.unless_failed(done);
    }

    /// Returns the ranges of a block that differ; `None` means all of it.
    ///
    /// # Errors
    /// When the snapshot can't be read.
    pub fn changed(&mut self, offset: u64, bytes: &[u8]) -> Result<Option<Vec<Range<usize>>>> {
        let block = self.tags.as_mut().map(|tags| tags.block(offset, bytes)).transpose();
        let known = self.unless_failed(block).flatten();
        let mut known =
            known.unwrap_or_else(|| vec![Known::Nothing; bytes.len().div_ceil(PAGE as usize)]);
        if let Some(snapshot) = &mut self.snapshot
            && known.contains(&Known::Nothing)
        {
            snapshot.compare(offset, bytes, &mut known)?;
        }
        Ok(different(&known, bytes.len()))
    }

    /// Returns whether the tags cover everything that went by. If not, they have to be thrown away.
    #[must_use]
    pub fn finish(self) -> bool {
        self.tags.is_some_and(|tags| match tags.finish() {
            Ok(()) => true,
            Err(error) => {
                warn(&error);
                false
            }
        })
    }

    /// After a failure it continues without tags: they save reads, and nothing depends on them.
    fn unless_failed<T>(&mut self, done: Stored<T>) -> Option<T> {
        match done {
            Ok(done) => Some(done),
            Err(error) => {
                warn(&error);
                self.tags = None;
                None
            }
        }
    }
}

fn warn(error: &redb::Error) {
    tracing::warn!(%error, "the tags of pages can't be kept; the snapshot before will be read instead");
}

/// The pages in the base's snapshot.
pub struct Snapshot<'a> {
    job: &'a Job<'a>,
    root: &'a Path,
    headers: Headers<StreamRules>,
    file: Option<Before>,
    old: Vec<u8>,
}

/// The current file as it was in the base.
struct Before {
    file: File,
    /// Its content counts up to here.
    until: u64,
}

impl<'a> Snapshot<'a> {
    /// Opens the snapshot of the delta `base`, which is visible at `root`.
    pub(super) fn open(job: &'a Job<'a>, base: &str, root: &'a Path) -> Result<Self> {
        let strata = &job.shipment.repository.strata;
        let chain = chain(strata, job.image, base, None).map_err(of_strata)?;
        let headers = Headers::open(strata, &chain, StreamRules, MEMORY).map_err(of_strata)?;
        Ok(Self { job, root, headers, file: None, old: Vec::new() })
    }

    /// Returns whether the object's blocks can be compared.
    fn begin(&mut self, announced: &Announced<'_>) -> Result<bool> {
        self.file = None;
        let Some(header) = announced.header else { return Ok(false) };
        if u64::from(header.object.block_size) <= PAGE {
            return Ok(false);
        }
        let Some(before) = self.headers.get(announced.object).map_err(of_strata)? else {
            return Ok(false);
        };
        if !matches!(
            StreamRules.heritage(&before, &header.to_bytes()),
            Heritage::Kept { header: None, .. }
        ) {
            return Ok(false);
        }
        let Some(path) = self.job.walked.path(announced.object) else { return Ok(false) };
        // If the file had another name then, its record is stored whole.
        let Ok(file) = File::open(self.root.join(path)) else { return Ok(false) };
        let metadata = file.metadata().map_err(Error::io("look into", self.root))?;
        if metadata.ino() != announced.object || !metadata.is_file() {
            return Ok(false);
        }
        let until = announced.tail.unwrap_or(u64::MAX).min(metadata.len());
        self.file = Some(Before { file, until });
        Ok(true)
    }

    /// Determines for pages of a block about which nothing is known whether they are unchanged.
    fn compare(&mut self, offset: u64, bytes: &[u8], known: &mut [Known]) -> Result<()> {
        let Some(before) = self.file.as_ref().filter(|before| offset < before.until) else {
            return Ok(());
        };
        let length = usize::try_from(before.until - offset).unwrap_or(usize::MAX).min(bytes.len());
        self.old.resize(length, 0);
        before
            .file
            .read_exact_at(&mut self.old, offset)
            .map_err(Error::io("read the snapshot before at", self.root))?;
        compare(&self.old, bytes, known);
        Ok(())
    }
}

/// Pages beyond the end of `old` stay unknown.
fn compare(old: &[u8], new: &[u8], known: &mut [Known]) {
    for ((n, content), known) in new.chunks(PAGE as usize).enumerate().zip(known) {
        let at = n * PAGE as usize;
        if *known == Known::Nothing
            && let Some(old) = old.get(at..at + content.len())
        {
            *known = if old == content { Known::Same } else { Known::Different };
        }
    }
}

/// Returns the ranges of a block of `length` bytes whose pages differ, neighbours joined; `None` if that is all of
/// it.
fn different(known: &[Known], length: usize) -> Option<Vec<Range<usize>>> {
    let mut ranges: Vec<Range<usize>> = Vec::new();
    for (n, known) in known.iter().enumerate() {
        let start = n * PAGE as usize;
        let range = start..(start + PAGE as usize).min(length);
        match ranges.last_mut() {
            _ if *known == Known::Same => {}
            Some(last) if last.end == range.start => last.end = range.end,
            _ => ranges.push(range),
        }
    }
    match ranges.as_slice() {
        [all] if *all == (0..length) => None,
        _ => Some(ranges),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: usize = PAGE as usize;

    fn ranges(known: &[Known], length: usize) -> Option<Vec<(usize, usize)>> {
        let ranges = different(known, length)?;
        Some(ranges.iter().map(|range| (range.start, range.end)).collect())
    }

    #[test]
    fn pages_that_differ_are_joined() {
        use Known::{Different, Nothing, Same};
        assert_eq!(ranges(&[Same; 5], 5 * SIZE), Some(vec![]));
        assert_eq!(
            ranges(&[Same, Different, Nothing, Same, Different], 5 * SIZE),
            Some(vec![(SIZE, 3 * SIZE), (4 * SIZE, 5 * SIZE)])
        );
        assert_eq!(ranges(&[Different, Nothing], 2 * SIZE), None);
        // The last page may be incomplete.
        assert_eq!(ranges(&[Same, Different], SIZE + 512), Some(vec![(SIZE, SIZE + 512)]));
        assert_eq!(ranges(&[Different, Different], SIZE + 512), None);
        assert_eq!(ranges(&[], 0), Some(vec![]));
    }

    #[test]
    fn only_pages_that_nothing_is_known_about_are_compared() {
        use Known::{Different, Nothing, Same};
        let new: Vec<u8> = (0..4 * SIZE).map(|n| (n / 7) as u8).collect();
        let mut old = new.clone();
        old[SIZE] ^= 1;
        let compared = |old: &[u8], known: &[Known]| {
            let mut known = known.to_vec();
            compare(old, &new, &mut known);
            known
        };
        assert_eq!(compared(&old, &[Nothing; 4]), [Same, Different, Same, Same]);
        assert_eq!(
            compared(&old, &[Different, Same, Nothing, Nothing]),
            [Different, Same, Same, Same]
        );
        // The old file is shorter and ends in the middle of a page.
        assert_eq!(
            compared(&old[..2 * SIZE + 9], &[Nothing; 4]),
            [Same, Different, Nothing, Nothing]
        );
        assert_eq!(compared(&[], &[Nothing; 4]), [Nothing; 4]);
    }
}
