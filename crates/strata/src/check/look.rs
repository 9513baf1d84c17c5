//! Looks at deltas: whether what they refer to exists and their indexes are undamaged.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{Check, Place};
use crate::delta::{Delta, DeltaReader, Descriptor, ReadOptions, packs, read_descriptor};
use crate::error::{Error, Result};
use crate::id::Ulid;
use crate::manifest::DeltaId;
use crate::pack::walk;
use crate::store::{Listed, StoreError, StoreErrorKind};

/// After this many looks, a chain that changes each time is reported as it was found.
const LOOKS: usize = 10;

/// After this many extents, the check asks whether to continue.
const EXTENTS: u64 = 1 << 16;

/// A delta that was looked at.
pub(super) struct Seen {
    /// Its base, as far as that is known.
    pub(super) base: Option<DeltaId>,
    /// The hash of its descriptor, if that could be read.
    pub(super) stamp: Option<blake3::Hash>,
}

/// Returns a hash that tells a descriptor from the one that replaces it.
pub(super) fn stamp(descriptor: &Descriptor) -> Option<blake3::Hash> {
    serde_json::to_vec(descriptor).ok().map(|bytes| blake3::hash(&bytes))
}

/// What a look at a delta found.
struct Look {
    seen: Seen,
    /// Index files that it refers to.
    files: Vec<String>,
    packs: Vec<Ulid>,
    /// What is wrong.
    problems: Vec<(Place, Error)>,
}

impl Check<'_> {
    /// Looks at a delta and everything that it is based on.
    pub(super) fn chain(&mut self, set: &str, head: &DeltaId) {
        // What was looked at while the chain was a different one.
        let mut earlier = BTreeSet::new();
        for look in 1..=LOOKS {
            if self.walk(set, head, &mut earlier, look == LOOKS) {
                return;
            }
        }
    }

    /// Goes through a chain, except for what other chains have covered. Returns `false` if the chain changed meanwhile,
    /// so that the problems found say nothing about it.
    fn walk(
        &mut self,
        set: &str,
        head: &DeltaId,
        earlier: &mut BTreeSet<DeltaId>,
        is_last: bool,
    ) -> bool {
        let mut here = BTreeSet::new();
        let mut next = Some(head.clone());
        while let Some(delta) = next.take() {
            let known = self.seen.get(&delta);
            if !here.insert(delta.clone()) || (known.is_some() && !earlier.contains(&delta)) {
                // It is known, or this is a cycle; its problems have been reported.
                return true;
            }
            let known = known.and_then(|seen| seen.stamp);
            let mut look = self.look(&delta, known);
            if !look.problems.is_empty() {
                look = self.look(&delta, known);
            }
            if !self.goes_on(0, 0) {
                // Nothing is reported of a delta that was only partly looked at.
                return true;
            }
            if !look.problems.is_empty() && !is_last {
                match self.still_needs(set, head, &delta, &look.seen) {
                    Some(true) => {}
                    Some(false) => return true,
                    None => return false,
                }
            }
            earlier.insert(delta.clone());
            next = look.seen.base.clone();
            self.note(set, delta, look);
        }
        true
    }

    fn note(&mut self, set: &str, delta: DeltaId, look: Look) {
        if look.seen.stamp.is_some() && !self.seen.contains_key(&delta) {
            self.report.counts.deltas += 1;
        }
        for (place, error) in look.problems {
            self.problem(set, place, error);
        }
        self.files.extend(look.files);
        let naming = Arc::new(delta.clone());
        for pack in look.packs {
            let deltas = self.packs.entry(pack).or_default();
            if deltas.last() != Some(&naming) {
                deltas.push(Arc::clone(&naming));
            }
        }
        self.seen.insert(delta, look.seen);
    }

    /// Looks at one delta, unless its descriptor is the `known` one.
    fn look(&mut self, delta: &DeltaId, known: Option<blake3::Hash>) -> Look {
        let seen = Seen { base: None, stamp: None };
        let mut look = Look { seen, files: Vec::new(), packs: Vec::new(), problems: Vec::new() };
        match read_descriptor(self.repository, &delta.image, &delta.id) {
            Ok(descriptor) => {
                look.seen.stamp = stamp(&descriptor);
                if (known.is_none() || look.seen.stamp != known)
                    && let Err(error) = self.index(delta, &descriptor, &mut look)
                {
                    look.problems.push((Place::Delta(delta.clone()), error));
                }
                let base = descriptor.base.map(|id| DeltaId { image: delta.image.clone(), id });
                look.seen.base = base;
            }
            Err(error) => look.problems.push((Place::Delta(delta.clone()), error)),
        }
        look
    }

    /// Reads a delta's whole index: checks its hashes and its order, and that its frames are within existing packs. If
    /// the check is ended meanwhile, nothing is reported.
    fn index(&mut self, delta: &DeltaId, descriptor: &Descriptor, look: &mut Look) -> Result<()> {
        for file in descriptor.files() {
            let path = self.repository.image_path(&descriptor.image, &file.name);
            if let Err(error) = self.sized(&path, self.inventory.indexes.get(&path), file.size) {
                look.problems.push((Place::Delta(delta.clone()), error));
            }
            look.files.push(path);
        }
        let mut sizes = BTreeMap::new();
        packs(self.repository, descriptor, |row| {
            sizes.insert(row.pack, row.size);
            Ok(())
        })?;
        for (&pack, &size) in &sizes {
            look.packs.push(pack);
            if self.packs.contains_key(&pack) {
                continue;
            }
            let path = self.repository.pack_path(pack);
            if let Err(error) = self.sized(&path, self.inventory.packs.get(&pack), size) {
                look.problems.push((Place::Pack(pack), error));
            }
        }
        let mut reader =
            DeltaReader::new(self.repository, descriptor.clone(), ReadOptions::default());
        let mut extents: u64 = 0;
        reader.next_entry()?;
        while reader.entry().is_some() {
            while let Some(extent) = reader.extent() {
                extents += 1;
                if extents.is_multiple_of(EXTENTS) && !self.goes_on(0, 0) {
                    return Ok(());
                }
                if let Some(block) = &extent.block {
                    let at = block.location;
                    let end = at.frame.checked_add(at.frame_length);
                    if end.is_none_or(|end| sizes.get(&at.pack).is_none_or(|&size| end > size)) {
                        let path = self.repository.pack_path(at.pack);
                        let why = format!("delta \"{}\" has a frame beyond it", descriptor.id);
                        return Err(Error::damaged(&path, at.frame, why));
                    }
                }
                reader.next_extent()?;
            }
            reader.next_entry()?;
        }
        Ok(())
    }

    /// Checks that an object exists with the right size. If the listing says otherwise, the store is queried: the
    /// object may have been written since.
    fn sized(&self, path: &str, listed: Option<&Listed>, size: u64) -> Result<()> {
        if listed.is_some_and(|listed| listed.size == size) {
            return Ok(());
        }
        match self.repository.store().size(path) {
            Ok(found) if found == size => Ok(()),
            Ok(found) => {
                let why = format!("it has {found} bytes, not {size}");
                Err(Error::damaged(path, found.min(size), why))
            }
            Err(error) if error.kind == StoreErrorKind::NotFound => {
                Err(StoreError::new("find", path, StoreErrorKind::NotFound).into())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Reads the chosen packs that exist.
    pub(super) fn read_packs(&mut self, mut is_chosen: impl FnMut(Ulid) -> bool) {
        let chosen = self.packs.keys().filter(|pack| is_chosen(**pack));
        let sized = chosen.filter_map(|pack| Some((*pack, self.inventory.packs.get(pack)?.size)));
        let packs: Vec<_> = sized.collect();
        let total = packs.iter().map(|(_, size)| size).sum();
        let mut before = 0;
        for (pack, size) in packs {
            if !self.goes_on(before, total) {
                return;
            }
            let (mut frames, repository) = (0, self.repository);
            let result = walk(repository, pack, size, |at, length, _| {
                frames += 1;
                match self.goes_on(before + at + length, total) {
                    true => Ok(()),
                    false => Err(Error::caller("the check was ended")),
                }
            });
            before += size;
            self.report.counts.frames += frames;
            if let Err(error) = result
                && !self.report.is_partial
                && let Some(set) = self.set_that_needs(pack)
            {
                self.problem(&set, Place::Pack(pack), error);
            }
        }
        self.goes_on(before, total);
    }
}
