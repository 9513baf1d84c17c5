//! What happens to a stream's objects while they go by: they are left out, checked, compared.
//!
//! What could go wrong: a delta replaces an existing one, and leaves out what that one had. Deltas based on it
//! silently count on that. So the replacement leaves out no more than the original did.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;

use indicatif::ProgressBar;
use sendstream::pages::{PageChecker, Segment};

use super::page_delta::Pages;
use super::volume::Job;
use crate::error::{Error, Result};
use crate::postgres::classify::Class;
use crate::repository::header::ObjectHeader;
use crate::repository::image::ImageState;
use crate::repository::ingest::{Announced, Content, Visitor};
use crate::repository::shipped::Pages as Checked;
use crate::steps;

/// How many bytes of the stream pass between two checks whether to stop.
pub(super) const STRIDE: u64 = 8 << 20;

/// Tells which relation's file an object is.
type Lookup<'a> = Box<dyn FnMut(u64) -> Option<Segment<u64>> + 'a>;

/// Watches the objects go by.
pub(super) struct Passing<'a> {
    job: &'a Job<'a>,
    checker: Option<PageChecker<u64, Lookup<'a>>>,
    /// Objects left out in the base and needed now, unless the stream creates them again: by generation.
    doubtful: HashMap<u64, u64>,
    /// Objects left out, with their generations.
    left_out: BTreeMap<u64, u64>,
    /// What the replaced delta left out: no more than that may be left out.
    replaced: Option<&'a BTreeSet<(u64, u64)>>,
    /// Whether an increment isn't enough.
    pub(super) needs_full: bool,
    pages: Pages<'a>,
    /// Whether the object's blocks hold whole pages.
    holds_pages: bool,
    bar: ProgressBar,
    read: u64,
}

impl<'a> Passing<'a> {
    pub(super) fn new(job: &'a Job<'a>, base: Option<&ImageState>, pages: Pages<'a>) -> Self {
        let walked = job.walked;
        let before = base.map(|state| state.left_out_objects.as_slice()).unwrap_or_default();
        let is_left_out =
            |object: u64| matches!(walked.classes.get(&object), Some(Class::LeftOut(_)));
        let replaced = job.replaced;
        // The replaced delta had it.
        let is_missed = |left_out: &(u64, u64)| {
            is_left_out(left_out.0) && replaced.is_some_and(|had_not| !had_not.contains(left_out))
        };
        let checker = job.shipment.checks_pages.then(|| {
            let lookup = move |object: u64| match walked.classes.get(&object) {
                Some(Class::Pages(number)) => Some(Segment { path: object, number: *number }),
                _ => None,
            };
            PageChecker::new(job.shipment.geometry, Box::new(lookup) as Lookup<'_>)
                .with_checksums()
                .replayed(job.shipment.replayed.clone())
        });
        Self {
            job,
            checker,
            doubtful: before
                .iter()
                .filter(|pair| walked.needed.contains(&pair.0) || is_missed(pair))
                .copied()
                .collect(),
            left_out: before.iter().filter(|(object, _)| is_left_out(*object)).copied().collect(),
            replaced,
            needs_full: false,
            pages,
            holds_pages: true,
            bar: job.shipment.progress.bytes(job.volume.dataset.as_str()),
            read: 0,
        }
    }

    /// Checks that nothing needed now was left out before.
    pub(super) fn is_whole(&self) -> bool {
        self.doubtful.is_empty()
    }

    fn may_leave_out(&self, object: u64, generation: Option<u64>) -> bool {
        let left_out = (object, generation.unwrap_or_default());
        self.replaced.is_none_or(|had_not| had_not.contains(&left_out))
    }

    /// Returns what was left out, the result of the checksums, and whether all pages have their tags.
    pub(super) fn finish(self) -> (Vec<(u64, u64)>, Checked, bool) {
        self.bar.finish_and_clear();
        let are_tagged = self.pages.finish();
        let walked = self.job.walked;
        let pages = self.checker.map(PageChecker::finish).map(|report| Checked {
            checked: report.good + report.wrong(),
            bad: report.wrong(),
            replayed: report.replayed,
            bad_pages: report
                .bad_pages
                .iter()
                .map(|page| {
                    let path = walked.path(page.path);
                    let words = || format!("object {}", page.path);
                    (path.map_or_else(words, |path| path.display().to_string()), page.block)
                })
                .collect(),
            not_checked: None,
        });
        (self.left_out.into_iter().collect(), pages.unwrap_or_default(), are_tagged)
    }
}

impl Visitor for Passing<'_> {
    fn object(&mut self, announced: &Announced<'_>) -> Result<Content> {
        let object = announced.object;
        // With half a page in one block and half in the next, a snapshot may hold only one of them new.
        let page_size = self.job.shipment.geometry.page_size;
        self.holds_pages =
            announced.header.is_none_or(|header| header.object.block_size >= page_size);
        let generation = announced.header.and_then(ObjectHeader::generation);
        if let Some(before) = self.doubtful.get(&object) {
            if *before == 0 || generation.is_none_or(|now| now == *before) {
                self.needs_full = true;
                return Err(Error::failed("all of the volume is needed"));
            }
            self.doubtful.remove(&object);
        }
        match self.job.walked.classes.get(&object) {
            Some(Class::LeftOut(_)) if self.may_leave_out(object, generation) => {
                self.pages.other(object);
                // If this record doesn't say which file it is, it is the one already known.
                let known = self.left_out.get(&object).copied().unwrap_or_default();
                self.left_out.insert(object, generation.unwrap_or(known));
                Ok(Content::LeftOut)
            }
            Some(Class::Pages(_)) if self.pages.begin(announced)? => Ok(Content::Changed),
            Some(Class::Pages(_)) => Ok(Content::Stored),
            _ => {
                self.pages.other(object);
                Ok(Content::Stored)
            }
        }
    }

    fn changed(&mut self, offset: u64, bytes: &[u8]) -> Result<Option<Vec<Range<usize>>>> {
        self.pages.changed(offset, bytes)
    }

    fn hole(&mut self, offset: u64, length: u64) {
        self.pages.hole(offset, length);
    }

    fn freed(&mut self, first: u64, count: u64) {
        self.pages.freed(first, count);
    }

    fn content(&mut self, object: u64, offset: u64, bytes: &[u8]) {
        if let Some(checker) = self.checker.as_mut().filter(|_| self.holds_pages) {
            checker.content(object, offset, bytes);
        }
    }

    fn progress(&mut self, bytes: u64) -> Result<()> {
        if bytes - self.read >= STRIDE {
            self.bar.set_position(bytes);
            (self.job.shipment.check)()?;
            self.read = bytes;
            steps::reached("ship.progress")?;
        }
        Ok(())
    }
}
