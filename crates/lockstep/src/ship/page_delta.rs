//! Pages of a changed record that are as they were: they aren't stored again.
//!
//! PostgreSQL changes 8 KiB, ZFS sends the record around it. The base's snapshot is here, or the
//! stream couldn't be an increment to it, so a page is compared with the page itself: no hash has
//! to be kept in the index (0.2 % of the data at 16 bytes a page), and none can collide.
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

use super::volume::Job;
use crate::error::{Error, Result};
use crate::repository::header::StreamRules;
use crate::repository::ingest::Announced;
use crate::repository::of_strata;

/// What the base's headers may take of memory.
const MEMORY: u64 = 16 << 20;

/// The base's pages.
pub(super) struct Pages<'a> {
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

impl<'a> Pages<'a> {
    /// The pages of the delta `base`, whose snapshot is seen at `root`.
    pub(super) fn open(job: &'a Job<'a>, base: &str, root: &'a Path) -> Result<Self> {
        let strata = &job.shipment.repository.strata;
        let chain = chain(strata, job.image, base, None).map_err(of_strata)?;
        let headers = Headers::open(strata, &chain, StreamRules, MEMORY).map_err(of_strata)?;
        Ok(Self { job, root, headers, file: None, old: Vec::new() })
    }

    /// Whether the object's blocks can be compared.
    pub(super) fn begin(&mut self, announced: &Announced<'_>) -> Result<bool> {
        self.file = None;
        let Some(header) = announced.header else { return Ok(false) };
        if header.object.block_size <= self.job.shipment.geometry.page_size {
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

    /// The ranges of a block that differ; `None`: all of it.
    pub(super) fn changed(
        &mut self,
        offset: u64,
        bytes: &[u8],
    ) -> Result<Option<Vec<Range<usize>>>> {
        let Some(before) = self.file.as_ref().filter(|before| offset < before.until) else {
            return Ok(None);
        };
        let known = usize::try_from(before.until - offset).unwrap_or(usize::MAX).min(bytes.len());
        self.old.resize(known, 0);
        before
            .file
            .read_exact_at(&mut self.old, offset)
            .map_err(Error::io("read the snapshot before at", self.root))?;
        let page = self.job.shipment.geometry.page_size as usize;
        Ok(different(&self.old, bytes, page))
    }
}

/// The ranges of `new` whose pages differ from `old`'s, neighbours joined; `None` where all do. What
/// `old` doesn't reach differs.
fn different(old: &[u8], new: &[u8], page: usize) -> Option<Vec<Range<usize>>> {
    let mut ranges: Vec<Range<usize>> = Vec::new();
    for (n, content) in new.chunks(page.max(1)).enumerate() {
        let range = n * page..n * page + content.len();
        if old.get(range.clone()) == Some(content) {
            continue;
        }
        match ranges.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => ranges.push(range),
        }
    }
    match ranges.as_slice() {
        [all] if *all == (0..new.len()) => None,
        _ => Some(ranges),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_that_differ_are_joined() {
        let new: Vec<u8> = (0..40_u8).collect();
        let with = |changed: &[usize]| {
            let mut old = new.clone();
            changed.iter().for_each(|at| old[*at] ^= 0xff);
            old
        };
        assert_eq!(different(&new, &new, 8), Some(vec![]));
        assert_eq!(different(&with(&[9, 17, 39]), &new, 8), Some(vec![8..24, 32..40]));
        assert_eq!(different(&with(&[0, 8, 16, 24, 32]), &new, 8), None);
        // The old one is shorter.
        let rest = different(&new[..20], &new, 8).unwrap_or_default();
        assert_eq!(
            rest.iter().map(|range| (range.start, range.end)).collect::<Vec<_>>(),
            [(16, 40)]
        );
        assert_eq!(different(&[], &new, 8), None);
        assert_eq!(different(&[], &[], 8), Some(vec![]));
    }
}
