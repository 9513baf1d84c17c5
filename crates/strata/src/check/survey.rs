//! What is in a repository, and what of it is needed by the sets that are kept and by others that still exist.

use std::collections::BTreeSet;

use super::{Inventory, Live, Terms};
use crate::delta::descriptor_path;
use crate::error::{Error, Result};
use crate::id::Ulid;
use crate::manifest::{DeltaId, Manifest};
use crate::many::read_many;
use crate::pack::Packed;
use crate::repack::{Sparse, is_sparse};
use crate::repository::Repository;
use crate::store::Listed;

/// What an interrupted writer continues from, though nothing refers to it yet.
#[derive(Clone, Debug, Default)]
pub struct Begun {
    /// Packs that are complete in the store.
    pub packs: BTreeSet<Ulid>,
    /// Deltas that were finished, if they exist.
    pub deltas: BTreeSet<DeltaId>,
}

/// A survey of a whole repository.
pub struct Survey {
    pub(super) inventory: Inventory,
    /// Sets that are kept.
    pub(super) sets: BTreeSet<String>,
    /// What they need.
    pub(super) kept: Live,
    /// What others need in addition: sets that are about to be deleted, and backups that have no manifest yet.
    pub(super) rest: Live,
    /// A young descriptor is damaged, so it may refer to anything.
    pub(super) is_doubtful: bool,
}

impl Survey {
    /// Surveys the repository. `kept` are the sets that stay; for the other objects it determines only what nothing
    /// needs. Deltas younger than the grace time count as those of backups without a manifest yet.
    ///
    /// If any part of a set can't be read, that is an error, because nobody knows what that part refers to. If a young
    /// delta that no set needs is damaged, nothing is deleted as long as it is young.
    pub fn take(repository: &Repository, kept: &BTreeSet<String>, terms: Terms) -> Result<Survey> {
        // First what exists, then what is needed: what is written in between isn't listed, and so isn't deleted.
        let inventory = Inventory::take(repository)?;
        let (mut of_kept, mut of_others) = (BTreeSet::new(), BTreeSet::new());
        Manifest::read_all(repository, |manifest| {
            let is_kept = kept.contains(&manifest.id);
            let deltas = if is_kept { &mut of_kept } else { &mut of_others };
            deltas.extend(manifest.deltas);
            Ok(())
        })?;
        let mut survey = Survey::empty(inventory, kept);
        survey.kept.chains(repository, of_kept, |_| false)?;
        survey.rest.chains_beside(repository, of_others, &survey.kept, |_| false)?;
        let deltas = &survey.inventory.deltas;
        let young = deltas.iter().filter(|(_, listed)| !terms.is_over(listed.modified));
        let young = young.map(|(delta, _)| delta.clone()).collect();
        let is_doubtful = &mut survey.is_doubtful;
        survey.rest.chains_beside(repository, young, &survey.kept, |error| {
            let is_damaged = matches!(error, Error::Damaged { .. });
            *is_doubtful |= is_damaged;
            is_damaged || error.is_not_found()
        })?;
        Ok(survey)
    }

    /// Returns the same survey, in which what interrupted writers continue from counts as needed.
    ///
    /// # Errors
    /// If reading one of the deltas fails. A damaged one is useless and isn't needed.
    pub fn with_begun(mut self, repository: &Repository, begun: &Begun) -> Result<Survey> {
        let there = &self.inventory.deltas;
        let deltas = begun.deltas.iter().filter(|delta| there.contains_key(delta)).cloned();
        let is_of_no_use =
            |error: &Error| error.is_not_found() || matches!(error, Error::Damaged { .. });
        self.rest.chains_beside(repository, deltas.collect(), &self.kept, is_of_no_use)?;
        for pack in begun.packs.iter().filter(|pack| self.inventory.packs.contains_key(pack)) {
            let packed = Packed { pack: *pack, size: 0, content: 0 };
            self.rest.packs.entry(*pack).or_insert((packed, 0));
        }
        Ok(self)
    }

    /// Does the same without what can't be read and without what others need: good for protecting what the kept sets
    /// need, but not for deciding what to delete.
    pub fn take_readable(repository: &Repository, kept: &BTreeSet<String>) -> Result<Survey> {
        let mut survey = Survey::empty(Inventory::take(repository)?, kept);
        let ids: Vec<_> = kept.iter().cloned().collect();
        let mut deltas = BTreeSet::new();
        let read = |id: &String| Manifest::read(repository, id);
        read_many::<_, _, Error>(&ids, read, |_, manifest| {
            deltas.extend(manifest.map(|manifest| manifest.deltas).unwrap_or_default());
            Ok(())
        })?;
        survey.kept.chains(repository, deltas, |_| true)?;
        Ok(survey)
    }

    /// Whether kept sets need a pack of whose content less than this percentage is live.
    pub fn has_sparse(&self, live_percent: u64) -> bool {
        self.kept.packs.iter().any(|(pack, &(packed, live))| {
            let others = self.rest.packs.get(pack).map_or(0, |(_, live)| *live);
            is_sparse(&Sparse { packed, live: live.saturating_add(others) }, live_percent)
        })
    }

    fn empty(inventory: Inventory, kept: &BTreeSet<String>) -> Survey {
        let (kept, rest) = (kept.clone(), Live::default());
        Survey { inventory, sets: kept, kept: Live::default(), rest, is_doubtful: false }
    }

    pub(super) fn needs_delta(&self, delta: &DeltaId) -> bool {
        self.kept.deltas.contains(delta) || self.rest.deltas.contains(delta)
    }

    pub(super) fn needs_index(&self, path: &str) -> bool {
        self.kept.indexes.contains(path) || self.rest.indexes.contains(path)
    }

    pub(super) fn needs_pack(&self, pack: Ulid) -> bool {
        self.kept.packs.contains_key(&pack) || self.rest.packs.contains_key(&pack)
    }

    /// Returns the objects that the kept sets need and that aren't known to be locked until `until`, if written objects
    /// are locked for `seconds`: packs after `from`, index files, descriptors, manifests.
    pub(super) fn to_lock<'a>(
        &'a self,
        repository: &'a Repository,
        from: Option<Ulid>,
        until: u64,
        seconds: u64,
    ) -> impl Iterator<Item = String> + 'a {
        let is_short = move |listed: Option<&Listed>| {
            listed.is_none_or(|listed| listed.modified.saturating_add(seconds) < until)
        };
        let there = &self.inventory;
        let packs =
            self.kept.packs.keys().filter(move |pack| from.is_none_or(|from| **pack > from));
        let packs = packs.filter(move |pack| is_short(there.packs.get(pack)));
        let indexes = self.kept.indexes.iter().filter(move |at| is_short(there.indexes.get(*at)));
        let deltas = self.kept.deltas.iter().filter(move |delta| is_short(there.deltas.get(delta)));
        let sets = self.sets.iter().filter(move |set| is_short(there.sets.get(*set)));
        packs
            .map(|pack| repository.pack_path(*pack))
            .chain(indexes.cloned())
            // An invalid name is in no chain.
            .chain(deltas.filter_map(|at| descriptor_path(repository, &at.image, &at.id).ok()))
            .chain(sets.map(|set| repository.path(&format!("sets/{set}.json"))))
    }

    /// Returns the last pack that the kept sets need.
    pub(super) fn last_kept_pack(&self) -> Option<Ulid> {
        self.kept.packs.keys().next_back().copied()
    }

    /// Returns what exists and no kept set needs, except for what is `gone` by now.
    pub(super) fn left_out<'a>(
        &'a self,
        gone: &'a BTreeSet<&str>,
    ) -> impl Iterator<Item = String> + 'a {
        let there = &self.inventory;
        let packs = there.packs.iter().filter(|(pack, _)| !self.kept.packs.contains_key(pack));
        let indexes = there.indexes.iter().filter(|(at, _)| !self.kept.indexes.contains(*at));
        let deltas = there.deltas.iter().filter(|(delta, _)| !self.kept.deltas.contains(delta));
        let sets = there.sets.iter().filter(|(set, _)| !self.sets.contains(*set));
        let packs = packs.map(|(_, listed)| listed);
        let all = packs
            .chain(indexes.map(|(_, listed)| listed))
            .chain(deltas.map(|(_, listed)| listed))
            .chain(sets.map(|(_, listed)| listed));
        all.filter(|listed| !gone.contains(listed.path.as_str())).map(|listed| listed.path.clone())
    }

    /// Whether a kept set needs what is at this path.
    pub(super) fn is_kept(&self, repository: &Repository, path: &str) -> bool {
        let of_path = Inventory::of_one(repository, path);
        of_path.sets.keys().any(|set| self.sets.contains(set)) || has(&self.kept, &of_path)
    }

    /// Whether something else that still exists needs it.
    pub(super) fn is_needed_by_others(&self, repository: &Repository, path: &str) -> bool {
        has(&self.rest, &Inventory::of_one(repository, path))
    }
}

/// Whether one of these is needed.
fn has(live: &Live, these: &Inventory) -> bool {
    these.packs.keys().any(|pack| live.packs.contains_key(pack))
        || these.indexes.keys().any(|path| live.indexes.contains(path))
        || these.deltas.keys().any(|delta| live.deltas.contains(delta))
}
