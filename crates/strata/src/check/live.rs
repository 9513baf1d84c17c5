//! What is needed by sets, and by what is being written.
//!
//! What could go wrong: something that is needed isn't found to be, and is then deleted. So if any part of a set can't
//! be read, that is an error.

use std::collections::{BTreeMap, BTreeSet};

use crate::delta::{IndexFile, PackRow, packs, read_descriptor};
use crate::error::{Error, Result};
use crate::id::Ulid;
use crate::manifest::{DeltaId, Manifest};
use crate::many::read_many;
use crate::pack::Packed;
use crate::repository::Repository;

/// What a delta needs.
struct Needs {
    indexes: Vec<String>,
    packs: Vec<PackRow>,
    base: Option<String>,
}

fn needs(repository: &Repository, delta: &DeltaId) -> Result<Needs> {
    let descriptor = read_descriptor(repository, &delta.image, &delta.id)?;
    let path = |file: &IndexFile| repository.image_path(&delta.image, &file.name);
    let mut needs =
        Needs { indexes: descriptor.files().map(path).collect(), packs: Vec::new(), base: None };
    packs(repository, &descriptor, |row| {
        needs.packs.push(row);
        Ok(())
    })?;
    needs.base = descriptor.base;
    Ok(needs)
}

/// What is needed.
#[derive(Default)]
pub(crate) struct Live {
    pub(crate) deltas: BTreeSet<DeltaId>,
    pub(crate) indexes: BTreeSet<String>,
    /// Packs, and how many bytes of their content deltas refer to; what two deltas refer to is counted twice.
    pub(crate) packs: BTreeMap<Ulid, (Packed, u64)>,
}

impl Live {
    /// Notes everything that sets need.
    pub(crate) fn sets(&mut self, repository: &Repository) -> Result<()> {
        let mut named = BTreeSet::new();
        Manifest::read_all(repository, |manifest| {
            named.extend(manifest.deltas);
            Ok(())
        })?;
        self.chains(repository, named, |_| false)
    }

    /// Notes deltas and everything that they are based on. A chain may end at a delta that can't be read, if `may_end`
    /// says so.
    pub(crate) fn chains(
        &mut self,
        repository: &Repository,
        deltas: BTreeSet<DeltaId>,
        may_end: impl FnMut(&Error) -> bool,
    ) -> Result<()> {
        self.chains_beside(repository, deltas, &Live::default(), may_end)
    }

    /// Does the same, except for what others know already.
    pub(crate) fn chains_beside(
        &mut self,
        repository: &Repository,
        deltas: BTreeSet<DeltaId>,
        others: &Live,
        mut may_end: impl FnMut(&Error) -> bool,
    ) -> Result<()> {
        let mut next = deltas;
        let is_known = |ours: &BTreeSet<DeltaId>, delta: &DeltaId| {
            ours.contains(delta) || others.deltas.contains(delta)
        };
        // Most of the bases are among these, so this takes few rounds.
        while !next.is_empty() {
            let round: Vec<_> =
                next.into_iter().filter(|delta| !is_known(&self.deltas, delta)).collect();
            next = BTreeSet::new();
            let needs = |delta: &DeltaId| needs(repository, delta);
            read_many::<_, _, Error>(&round, needs, |delta, needs| {
                let needs = match needs {
                    Err(error) if may_end(&error) => return Ok(()),
                    result => result?,
                };
                self.indexes.extend(needs.indexes);
                for row in needs.packs {
                    self.packs.entry(row.pack).or_insert((row.packed(), 0)).1 += row.live;
                }
                next.extend(needs.base.map(|id| DeltaId { image: delta.image.clone(), id }));
                self.deltas.insert(delta.clone());
                Ok(())
            })?;
        }
        Ok(())
    }
}
