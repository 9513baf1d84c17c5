//! Deletes what no set has needed for a grace time.
//!
//! What isn't referred to may be what a backup is about to refer to, or what a restore is still reading. So if it was
//! written longer ago than the grace time, it is noted with the time when it was first seen unneeded (`doomed.json`). A
//! later run deletes it if still nothing refers to it and it was noted longer ago than the grace time. A writer that
//! comes to need it strikes it out of the note first ([`Doomed::strike`]). The grace time must be longer than any
//! backup or restore takes; callers list what interrupted writers will continue from ([`Survey::with_begun`]). Only one
//! collector may run at a time: callers hold a lease.
//!
//! If the store locks objects for some time, deleting one before its lock ends would only hide it: it would still be
//! paid for and be of no use to anybody. So such objects are left until their lock has ended.
//!
//! Half-written files that killed writers left in a folder are deleted too, once they are older than the grace time.
//!
//! What could go wrong: there is no room left, not even for the note. What was noted before is due all the same and is
//! deleted first, because a run that must make room can't begin by writing.
//!
//! What could go wrong: a descriptor stays but something that it refers to is deleted, so that the next backup that
//! finds the descriptor publishes a set that can't be restored. So a descriptor that stays, for whatever reason, keeps
//! everything that it refers to. And an increment's descriptor is deleted before its base, and before anything else
//! that it refers to.

use std::collections::{BTreeMap, BTreeSet};

use super::doomed::Doomed;
use super::{Begun, Inventory, Live, Locks, Survey};
use crate::delta::read_descriptor;
use crate::error::{Error, Result};
use crate::id::Ulid;
use crate::lease::Still;
use crate::manifest::DeltaId;
use crate::many::read_many;
use crate::repository::Repository;
use crate::store::{Listed, StoreErrorKind, place_of};

/// Seconds after which a half-written lease is left over: a lease is written in a moment.
const LEASE: u64 = 3600;

/// What a collection did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// What was deleted, in this order.
    pub deleted: Vec<String>,
    /// What no set needs and has been noted, but whose grace time isn't over, or that of a descriptor which refers to
    /// it; or what is younger than the run; or all of it while a young descriptor is damaged.
    pub waiting: Vec<String>,
    /// What no set has needed for the grace time, but the store still locks it or a descriptor which refers to it.
    pub locked: Vec<String>,
}

/// Something that no set needs.
#[derive(Clone, Copy)]
struct Unneeded<'a> {
    listed: &'a Listed,
    what: What<'a>,
}

#[derive(Clone, Copy)]
enum What<'a> {
    Delta(&'a DeltaId),
    Index,
    Pack(Ulid),
}

/// The times of a collection, in seconds; points in time are Unix time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// What is deleted must have been unneeded for this long.
    pub grace: u64,
    /// When the run began: what may be deleted or noted is decided as of then.
    pub began: u64,
    /// The time at which what is noted now counts as unneeded. A long run has merged and replaced things since it
    /// began: their whole grace time is still ahead.
    pub noted: u64,
}

impl Terms {
    /// Returns the terms of a run that begins now.
    pub fn at(grace: u64, now: u64) -> Terms {
        Terms { grace, began: now, noted: now }
    }

    pub(super) fn is_over(&self, since: u64) -> bool {
        self.began.saturating_sub(since) >= self.grace
    }
}

/// Whether anything is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Run {
    /// Only reports what would be deleted.
    Dry,
    /// Deletes it.
    Real,
}

/// Deletes descriptors, then index files, then packs that nothing has referred to for the grace time. What interrupted
/// writers continue from, `begun`, stays.
///
/// If any part of a set can't be read, it stops before anything is deleted, because nobody knows what that part refers
/// to. `still` is called before each deletion.
pub fn collect(
    repository: &Repository,
    begun: &Begun,
    terms: Terms,
    run: Run,
    still: Still<'_>,
) -> Result<Collected> {
    let survey = Survey::take(repository, &BTreeSet::new(), terms)?;
    survey.with_begun(repository, begun)?.collect(repository, terms, run, still)
}

impl Survey {
    /// Deletes what nothing needs, as [`collect`] does.
    pub fn collect(
        &self,
        repository: &Repository,
        terms: Terms,
        run: Run,
        still: Still<'_>,
    ) -> Result<Collected> {
        let Terms { began, noted, .. } = terms;
        let (before, locks) = (Doomed::read(repository)?, Locks::read(repository)?);
        let mut after = Doomed::default();
        let (mut going, mut waiting, mut locked) = (Vec::new(), Vec::new(), Vec::new());
        for item in unneeded(self) {
            let listed = item.listed;
            // What is young may belong to a backup that is being written. (A young descriptor counts as needed anyway.)
            if !terms.is_over(listed.modified) {
                continue;
            }
            let since = before.since(&listed.path).unwrap_or(noted).min(noted);
            after.note(&listed.path, since);
            let seconds = repository.store().locked_seconds(&listed.path);
            // Without a grace time, what this run itself has replaced is left to the next run.
            if !terms.is_over(since) || began < listed.modified {
                waiting.push(item);
            } else if began < locks.ends(&listed.path, listed.modified, Some(since), seconds) {
                locked.push(item);
            } else {
                going.push(item);
            }
        }
        if self.is_doubtful {
            waiting.append(&mut going);
        }
        if !going.is_empty() {
            let kept = Kept::by(repository, &waiting)?;
            waiting.extend(going.extract_if(.., |item| kept.holds(item)));
            let kept = Kept::by(repository, &locked)?;
            locked.extend(going.extract_if(.., |item| kept.holds(item)));
            increments_first(repository, &mut going)?;
        }
        let paths =
            |items: Vec<Unneeded<'_>>| items.iter().map(|i| i.listed.path.clone()).collect();
        let mut collected =
            Collected { deleted: Vec::new(), waiting: paths(waiting), locked: paths(locked) };
        let half_written = half_written(repository, terms)?;
        if run == Run::Dry {
            collected.deleted = half_written.into_iter().chain(paths(going)).collect();
            return Ok(collected);
        }
        for path in half_written {
            repository.store().delete_half_written_if(&path, still)?;
            collected.deleted.push(path);
        }
        // If there is no room for the note, what is due was noted before, and deleting it makes room.
        let noted = match after.clone().write(repository, &before, still) {
            Err(Error::Store(error)) if error.lacks_room() && !going.is_empty() => None,
            noted => Some(noted?),
        };
        let mut kept = Kept::default();
        for item in going {
            let path = item.listed.path.clone();
            if kept.holds(&item) {
                collected.locked.push(path);
                continue;
            }
            match repository.store().delete_if(&path, still) {
                Ok(()) => collected.deleted.push(path),
                // The store knows of a lock that this program doesn't: the bucket's own, or somebody's hold.
                Err(Error::Store(error)) if error.kind == StoreErrorKind::Retained => {
                    kept.add(repository, &[item])?;
                    collected.locked.push(path);
                }
                Err(error) => return Err(error),
            }
        }
        if noted.is_none() {
            after.write(repository, &before, still)?;
        }
        Ok(collected)
    }
}

/// Returns the half-written files in the places of a repository's objects that nobody has touched for the grace time.
/// For leases, and above the parts of all clusters, it is at least an hour, because others write there while this
/// process holds the lease.
fn half_written(repository: &Repository, terms: Terms) -> Result<Vec<String>> {
    let is_due = |listed: &Listed| {
        let Some(place) = place_of(&listed.path) else { return false };
        let is_above = super::is_above(place) && repository.relative(place) == place;
        let is_others_too = is_above || repository.relative(place).starts_with("leases/");
        let grace = if is_others_too { terms.grace.max(LEASE) } else { terms.grace };
        let is_ours = is_above || Inventory::of_one(repository, place).foreign.is_empty();
        is_ours && Terms { grace, ..terms }.is_over(listed.modified)
    };
    let left = super::half_written(repository)?.into_iter();
    Ok(left.filter(is_due).map(|listed| listed.path).collect())
}

/// Returns what isn't needed: descriptors, index files, packs.
fn unneeded(survey: &Survey) -> impl Iterator<Item = Unneeded<'_>> {
    let there = &survey.inventory;
    let deltas = there.deltas.iter().filter(|(delta, _)| !survey.needs_delta(delta));
    let indexes = there.indexes.iter().filter(|(path, _)| !survey.needs_index(path));
    let packs = there.packs.iter().filter(|(pack, _)| !survey.needs_pack(**pack));
    deltas
        .map(|(delta, listed)| Unneeded { listed, what: What::Delta(delta) })
        .chain(indexes.map(|(_, listed)| Unneeded { listed, what: What::Index }))
        .chain(packs.map(|(&pack, listed)| Unneeded { listed, what: What::Pack(pack) }))
}

/// What stays because a remaining descriptor refers to it.
#[derive(Default)]
struct Kept {
    live: Live,
    /// A remaining descriptor is damaged, so it may refer to anything.
    all: bool,
}

impl Kept {
    fn by(repository: &Repository, staying: &[Unneeded<'_>]) -> Result<Kept> {
        let mut kept = Kept::default();
        kept.add(repository, staying)?;
        Ok(kept)
    }

    /// Keeps what the descriptors among these refer to.
    fn add(&mut self, repository: &Repository, staying: &[Unneeded<'_>]) -> Result<()> {
        let deltas = staying.iter().filter_map(|item| match item.what {
            What::Delta(delta) => Some(delta.clone()),
            _ => None,
        });
        let all = &mut self.all;
        self.live.chains(repository, deltas.collect(), |error| {
            *all |= matches!(error, Error::Damaged { .. });
            *all || error.is_not_found()
        })
    }

    fn holds(&self, item: &Unneeded<'_>) -> bool {
        self.all
            || match item.what {
                What::Delta(delta) => self.live.deltas.contains(delta),
                What::Index => self.live.indexes.contains(&item.listed.path),
                What::Pack(pack) => self.live.packs.contains_key(&pack),
            }
    }
}

/// Sorts the descriptors into the order in which they are deleted: none before an increment to it.
fn increments_first(repository: &Repository, going: &mut [Unneeded<'_>]) -> Result<()> {
    let delta = |item: &Unneeded<'_>| match item.what {
        What::Delta(delta) => Some(delta.clone()),
        _ => None,
    };
    let deltas: Vec<DeltaId> = going.iter().filter_map(delta).collect();
    let mut bases: BTreeMap<&DeltaId, Option<DeltaId>> = BTreeMap::new();
    let read = |delta: &&DeltaId| read_descriptor(repository, &delta.image, &delta.id);
    let all: Vec<&DeltaId> = deltas.iter().collect();
    read_many::<_, _, Error>(&all, read, |&delta, descriptor| {
        let base = match descriptor {
            Ok(descriptor) => descriptor.base,
            // Nothing can be an increment to it any more.
            Err(Error::Damaged { .. }) => None,
            Err(error) if error.is_not_found() => None,
            Err(error) => return Err(error),
        };
        bases.insert(delta, base.map(|id| DeltaId { image: delta.image.clone(), id }));
        Ok(())
    })?;
    let mut depths: BTreeMap<&DeltaId, usize> = BTreeMap::new();
    for delta in &deltas {
        let (mut chain, mut seen) = (vec![delta], BTreeSet::from([delta]));
        // Down to a base whose depth is known, one that isn't deleted, or the end of a cycle.
        while let Some(Some(base)) = chain.last().and_then(|delta| bases.get(*delta))
            && let Some((&base, _)) = bases.get_key_value(base)
            && !depths.contains_key(base)
            && seen.insert(base)
        {
            chain.push(base);
        }
        let base = chain.last().and_then(|delta| bases.get(*delta)?.as_ref());
        let depth = base.and_then(|base| depths.get(base)).map_or(0, |depth| depth + 1);
        depths.extend(chain.into_iter().rev().zip(depth..));
    }
    let depth = |item: &Unneeded<'_>| match item.what {
        What::Delta(delta) => depths.get(delta).copied().unwrap_or(0),
        _ => 0,
    };
    let count = deltas.len();
    if let Some(descriptors) = going.get_mut(..count) {
        descriptors.sort_by_key(|item| std::cmp::Reverse(depth(item)));
    }
    Ok(())
}
