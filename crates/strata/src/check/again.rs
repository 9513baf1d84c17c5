//! Looking again: whether a set still needs what was found wrong. It may have been pruned, merged or repacked, and then
//! deleted, while the check was reading.

use std::collections::BTreeSet;

use super::look::{Seen, stamp};
use super::{Check, Live};
use crate::delta::{Descriptor, chain, packs, read_descriptor};
use crate::error::Result;
use crate::id::Ulid;
use crate::manifest::{DeltaId, Manifest};
use crate::repository::Repository;

/// How often in a row a chain that changes while it is read is read again.
const LOOKS: usize = 10;

/// Returns the manifest of a listed set; `None` if it has been removed since.
pub(super) fn manifest(repository: &Repository, set: &str) -> Result<Option<Manifest>> {
    let read = || match Manifest::read(repository, set) {
        Err(error) if error.is_not_found() => Ok(None),
        result => result.map(Some),
    };
    // A manifest that can't be read may be about to be deleted.
    read().or_else(|_| read())
}

impl Check<'_> {
    /// Whether the set exists and its chain that ends with `head` has this delta as it was `seen`. `None` if the chain
    /// no longer has it or has another version.
    pub(super) fn still_needs(
        &self,
        set: &str,
        head: &DeltaId,
        delta: &DeltaId,
        seen_as: &Seen,
    ) -> Option<bool> {
        if matches!(manifest(self.repository, set), Ok(None)) {
            return Some(false);
        }
        let (mut at, mut seen) = (head.id.clone(), BTreeSet::new());
        while at != delta.id {
            if !seen.insert(at.clone()) {
                return None;
            }
            at = read_descriptor(self.repository, &head.image, &at).ok()?.base?;
        }
        let now = read_descriptor(self.repository, &delta.image, &delta.id).ok();
        (now.as_ref().and_then(stamp) == seen_as.stamp).then_some(true)
    }

    /// Returns the first set that needs a pack now.
    pub(super) fn set_that_needs(&mut self, pack: Ulid) -> Option<String> {
        if self.needed.is_none() {
            self.look_what_is_needed();
        }
        if self.needed.as_ref().is_some_and(|needed| !needed.contains(&pack)) {
            return None;
        }
        let naming = self.packs.get(&pack)?;
        let naming: BTreeSet<&DeltaId> = naming.iter().map(|delta| &**delta).collect();
        let needs = |(set, heads): &(&String, &Vec<DeltaId>)| {
            heads.iter().filter(|head| self.came_from(head, &naming)).any(|head| {
                !matches!(manifest(self.repository, set), Ok(None))
                    // A chain that can't be read may name it.
                    && self.chain_names(head, pack, &naming).unwrap_or(true)
            })
        };
        let found = self.sets.iter().find(needs).map(|(set, _)| set.clone());
        if found.is_none() {
            // It has only just become unneeded, and most likely so have others.
            self.look_what_is_needed();
        }
        found
    }

    /// Notes which packs sets need now, so that thousands of missing packs needn't be looked up one by one. If that
    /// can't be determined, they are.
    fn look_what_is_needed(&mut self) {
        let mut live = Live::default();
        self.needed = Some(match live.sets(self.repository) {
            Ok(()) => live.packs.into_keys().collect(),
            Err(_) => self.packs.keys().copied().collect(),
        });
    }

    /// Whether one of these deltas was in the chain when the chain was looked at.
    fn came_from(&self, head: &DeltaId, these: &BTreeSet<&DeltaId>) -> bool {
        let (mut next, mut steps) = (Some(head), 0);
        // A cycle has no more deltas than were seen.
        while let Some(delta) = next.filter(|_| steps <= self.seen.len()) {
            if these.contains(delta) {
                return true;
            }
            next = self.seen.get(delta).and_then(|seen| seen.base.as_ref());
            steps += 1;
        }
        false
    }

    /// Whether a delta of the chain, as it is now, names the pack; those in `naming` did when they were looked at.
    fn chain_names(&self, head: &DeltaId, pack: Ulid, naming: &BTreeSet<&DeltaId>) -> Result<bool> {
        let names = |descriptor: &Descriptor| -> Result<bool> {
            let delta = DeltaId { image: head.image.clone(), id: descriptor.id.clone() };
            let seen = self.seen.get(&delta).and_then(|seen| seen.stamp);
            if seen.is_some() && seen == stamp(descriptor) {
                return Ok(naming.contains(&delta));
            }
            let mut is_named = false;
            packs(self.repository, descriptor, |row| {
                is_named |= row.pack == pack;
                Ok(())
            })?;
            Ok(is_named)
        };
        let all = || -> Result<bool> {
            for descriptor in chain(self.repository, &head.image, &head.id, None)? {
                if names(&descriptor)? {
                    return Ok(true);
                }
            }
            Ok(false)
        };
        let mut result = all();
        for _ in 1..LOOKS {
            if !matches!(&result, Err(error) if error.is_not_found()) {
                break;
            }
            result = all();
        }
        result
    }
}
