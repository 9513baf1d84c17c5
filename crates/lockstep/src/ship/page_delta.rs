//! Pages of a changed record that are as they were: they aren't stored again.
//!
//! PostgreSQL changes 8 KiB, ZFS sends the record around it. Whether a page is as it was is said by its
//! tag (`tags.rs`); where there is none and the base's snapshot is here, by the page itself in that.
//!
//! What could go wrong: leaving a page to the base where the fold wouldn't take it from there. So
//! the base's own header must be one that the object keeps its content from, and nothing behind the
//! place where the object was cut off counts.

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

/// What the base's headers may take of memory.
const MEMORY: u64 = 16 << 20;

/// What the pages that go by are compared with.
pub struct Pages<'a> {
    tags: Option<Passed<'a>>,
    snapshot: Option<Snapshot<'a>>,
}

impl<'a> Pages<'a> {
    /// Compared with the tags, and with the snapshot where they say nothing.
    #[must_use]
    pub fn new(tags: Option<Passed<'a>>, snapshot: Option<Snapshot<'a>>) -> Self {
        Self { tags, snapshot }
    }

    /// A relation's file begins. Gives whether its blocks are to be shown to [`Self::changed`].
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

    /// Another object begins; its content isn't told apart.
    pub fn other(&mut self, object: u64) {
        let done = self.tags.as_mut().map_or(Ok(()), |tags| tags.other(object));
        self.unless_failed(done);
    }

    /// A hole in the file at hand.
    pub fn hole(&mut self, offset: u64, length: u64) {
        let done = self.tags.as_mut().map_or(Ok(()), |tags| tags.unknown(offset, length));
        self.unless_failed(done);
    }

    /// These objects are gone.
    pub fn freed(&mut self, first: u64, count: u64) {
        let done = self.tags.as_mut().map_or(Ok(()), |tags| tags.freed(first, count));
        self.unless_failed(done);
    }

    /// The ranges of a block that differ; `None`: all of it.
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

    /// Whether all that went by is in the tags. They have to be thrown away where it isn't.
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

    /// Without tags it goes on: they save reads, and nothing depends on them.
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

/// The file at hand as it was.
struct Before {
    file: File,
    /// Up to here its content counts.
    until: u64,
}

impl<'a> Snapshot<'a> {
    /// Of the delta `base`, whose snapshot is seen at `root`.
    pub(super) fn open(job: &'a Job<'a>, base: &str, root: &'a Path) -> Result<Self> {
        let strata = &job.shipment.repository.strata;
        let chain = chain(strata, job.image, base, None).map_err(of_strata)?;
        let headers = Headers::open(strata, &chain, StreamRules, MEMORY).map_err(of_strata)?;
        Ok(Self { job, root, headers, file: None, old: Vec::new() })
    }

    /// Whether the object's blocks can be compared.
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
        // Where the file had another name then, its record is stored whole.
        let Ok(file) = File::open(self.root.join(path)) else { return Ok(false) };
        let metadata = file.metadata().map_err(Error::io("look into", self.root))?;
        if metadata.ino() != announced.object || !metadata.is_file() {
            return Ok(false);
        }
        let until = announced.tail.unwrap_or(u64::MAX).min(metadata.len());
        self.file = Some(Before { file, until });
        Ok(true)
    }

    /// Says of the pages of a block that nothing is known about whether they are as they were.
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

/// Pages that `old` doesn't reach are left as they are.
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

/// The ranges of a block of `length` bytes whose pages aren't the same, neighbours joined; `None` where
/// that is all of it.
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
        // The last page may be a part of one.
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
        // The old one is shorter, in the midst of a page.
        assert_eq!(
            compared(&old[..2 * SIZE + 9], &[Nothing; 4]),
            [Same, Different, Nothing, Nothing]
        );
        assert_eq!(compared(&[], &[Nothing; 4]), [Nothing; 4]);
    }
}
