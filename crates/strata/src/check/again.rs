//! Looking again: whether what was found wrong is needed by now. It may have been pruned, merged or repacked while the
//! check was reading, and deleted then.

use std::collections::BTreeSet;

use super::look::{Seen, stamp};
use super::{Check, Live};
use crate::delta::{Descriptor, chain, packs, read_descriptor};
use crate::error::Result;
use crate::id::Ulid;
use crate::manifest::{DeltaId, Manifest};
use crate::repository::Repository;

/// A chain that changes while it is read is read again; so often at most in a row.
const LOOKS: usize = 10;

/// The manifest of a set that was listed; none where it has been removed since.
pub(super) fn manifest(repository: &Repository, set: &str) -> Result<Option<Manifest>> {
    let read = || match Manifest::read(repository, set) {
        Err(error) if error.is_not_found() => Ok(None),
        result => result.map(Some),
    };
    // What can't be read may be about to go.
    read().or_else(|_| read())
}

impl Check<'_> {
    /// Whether the set is there and has this delta, as it was `seen`, in the chain that ends with `head`; none where it
    /// isn't in there any more, or is another one.
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

    /// The first set that needs a pack as things are now.
    pub(super) fn set_that_needs(&mut self, pack: Ulid) -> Option<String> {
        if self.needed.is_none() {
            self.look_what_is_needed();
        }
        if self.needed.as_ref().is_some_and(|needed| !needed.contains(&pack)) {
            return None;
        }
        let (_, naming) = self.packs.get(&pack)?;
        let naming: BTreeSet<&DeltaId> = naming.iter().collect();
        let needs = |(set, heads): &(&String, &Vec<DeltaId>)| {
            heads.iter().filter(|head| self.came_from(head, &naming)).any(|head| {
                !matches!(manifest(self.repository, set), Ok(None))
                    // Whatever can't be read may name it.
                    && self.chain_names(head, pack, &naming).unwrap_or(true)
            })
        };
        let found = self.sets.iter().find(needs).map(|(set, _)| set.clone());
        if found.is_none() {
            // It has only now become so; and so have others, most likely.
            self.look_what_is_needed();
        }
        found
    }

    /// Notes which packs sets need as things are now, so that what went by the thousand needn't be asked for one by
    /// one. Where that can't be told, they are.
    fn look_what_is_needed(&mut self) {
        let mut live = Live::default();
        self.needed = Some(match live.sets(self.repository) {
            Ok(()) => live.packs.into_keys().collect(),
            Err(_) => self.packs.keys().copied().collect(),
        });
    }

    /// Whether one of these deltas was in the chain when it was looked at.
    fn came_from(&self, head: &DeltaId, these: &BTreeSet<&DeltaId>) -> bool {
        let (mut next, mut steps) = (Some(head), 0);
        // A circle has no more deltas than there are.
        while let Some(delta) = next.filter(|_| steps <= self.seen.len()) {
            if these.contains(delta) {
                return true;
            }
            next = self.seen.get(delta).and_then(|seen| seen.base.as_ref());
            steps += 1;
        }
        false
    }

    /// Whether a delta of the chain, as it is now, names the pack; `naming` did when they were looked at.
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
