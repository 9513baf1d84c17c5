//! The deltas of a fold, and what each says about the current object.

use std::ops::Range;

use super::{Heritage, Rules};
use crate::delta::{Change, Delta, Entry};
use crate::error::Result;
use bytes::Bytes;

/// A delta, and what it said about objects before the current one.
pub(super) struct Layer<D> {
    pub(super) delta: D,
    /// The slots that its last object takes after the first; they hold no other object.
    claimed: Range<u64>,
}

impl<D: Delta> Layer<D> {
    pub(super) fn new(delta: D) -> Layer<D> {
        Layer { delta, claimed: 0..0 }
    }

    /// Passes over most of what is before `next`, if the delta can. What remains is enough to know what the layer says
    /// about `next`: a freed range or an object's slots may begin before it.
    pub(super) fn seek(&mut self, next: u64, rules: &impl Rules) -> Result<()> {
        let first = next.saturating_sub(rules.most_slots().max(1) - 1);
        match self.delta.entry() {
            Some(entry) if entry.end() > first => Ok(()),
            _ => self.delta.seek(first),
        }
    }

    /// Passes over everything before `next`.
    pub(super) fn catch_up(&mut self, next: u64, rules: &impl Rules) -> Result<()> {
        loop {
            match self.delta.entry() {
                Some(entry) if entry.end() <= next => {
                    if let Entry::Changed(Change { object, header: Some(header), .. }) = entry {
                        let end = object.saturating_add(rules.slots(header).max(1));
                        self.claimed = object.saturating_add(1)..end;
                    }
                }
                _ => return Ok(()),
            }
            self.delta.next_entry()?;
        }
    }

    /// Returns the first object from `next` on that the layer says something about.
    pub(super) fn next_object(&self, next: u64) -> Option<u64> {
        let entry = self.delta.entry().map(|entry| entry.object().max(next));
        let claimed = Some(self.claimed.start.max(next)).filter(|at| self.claimed.contains(at));
        entry.into_iter().chain(claimed).min()
    }

    pub(super) fn has_object(&self, object: u64) -> bool {
        self.change().is_some_and(|change| change.object == object)
    }

    /// Returns the first object after `object` from which the layer says something else.
    pub(super) fn next_boundary(&self, object: u64) -> Option<u64> {
        let entry = self.delta.entry().map(|entry| match entry {
            Entry::Freed { first, .. } if *first <= object => entry.end(),
            entry => entry.object(),
        });
        let claimed = [self.claimed.start, self.claimed.end];
        entry.into_iter().chain(claimed).filter(|&at| at > object).min()
    }

    /// Whether the layer says that nothing older of this object remains.
    pub(super) fn ends_older(&self, object: u64) -> bool {
        let freed = matches!(self.delta.entry(), Some(entry @ Entry::Freed { first, .. })
            if (*first..entry.end()).contains(&object));
        freed || self.claimed.contains(&object)
    }

    pub(super) fn change(&self) -> Option<&Change> {
        match self.delta.entry() {
            Some(Entry::Changed(change)) => Some(change),
            _ => None,
        }
    }
}

/// What the layers say about one object.
pub(super) struct Merged {
    /// The layers whose content counts, newest first.
    pub(super) layers: Vec<usize>,
    pub(super) header: Option<Bytes>,
    pub(super) spill: Option<Bytes>,
    /// Nothing of the base's object counts.
    pub(super) fresh: bool,
}

/// Merges what is known about an object apart from its content. `layers` are newest first.
pub(super) fn merge_headers<D: Delta>(
    layers: &[Layer<D>],
    object: u64,
    rules: &impl Rules,
) -> Merged {
    let mut merged = Merged { layers: Vec::new(), header: None, spill: None, fresh: false };
    let mut spill_kept = true;
    for (index, layer) in layers.iter().enumerate() {
        let Some(change) = layer.change().filter(|change| change.object == object) else {
            if layer.ends_older(object) {
                merged.fresh = true;
                break;
            }
            continue;
        };
        if let Some(header) = &change.header {
            if let Some(newer) = &merged.header {
                match rules.heritage(header, newer) {
                    Heritage::Dropped => {
                        merged.fresh = true;
                        break;
                    }
                    Heritage::Kept { header: changed, spill } => {
                        spill_kept &= spill;
                        if changed.is_some() {
                            merged.header = changed;
                        }
                    }
                }
            }
            merged.header.get_or_insert_with(|| header.clone());
        }
        merged.layers.push(index);
        if merged.spill.is_none() && spill_kept {
            merged.spill = change.spill.clone();
        }
        if change.fresh {
            merged.fresh = true;
            break;
        }
    }
    if merged.header.as_ref().is_some_and(|header| !rules.has_spill(header)) {
        merged.spill = None;
    }
    merged
}
