//! The sets in a repository: the plan, and its execution under the repository's lease.
//!
//! 1. The manifests of the removed sets are deleted, oldest first, each with the descriptor of its files.
//! 2. Deltas that no set names any more are merged into the next one that a set names.
//! 3. Packs of which little is still needed are rewritten, within a budget.
//! 4. What nothing refers to is collected once its grace time is over, merged-away descriptors included. They aren't
//!    deleted at once: a backup that began before this prune may be about to refer to one, and a restore may be about
//!    to read it. What an interrupted shipment of this host will resume from stays. If a folder has no room for the
//!    second or third step, this step comes first, and they are tried again.
//! 5. If the store locks what is written, the locks of what the kept sets need are extended in time.
//!
//! Whenever the process dies, every set stays restorable, and the next run continues from what it finds. A set whose
//! manifest can't be read is never removed, and stops the second to the fourth step, because nobody knows what it
//! needs. Nothing stops the fifth.
//!
//! A set that isn't whole (the store has lost something that it needs) counts for no rule: it must not use up a place
//! that a restorable set could have. It is removed when its time has come.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use strata::check::{Begun, Doomed, Run, Survey, Terms};
use strata::delta::{Descriptor, IndexOptions, descriptor_path, read_descriptor};
use strata::fold::{Rules, merge};
use strata::manifest::Manifest as Stored;
use strata::read_many;
use strata::repack::{RepackOptions, repack};

use super::chains::{self, Link, Merge};
use super::{Entry, Fate, Outcome, Place, Plan, Request, in_common, local, locks, resolve};
use crate::context::{Context, lockstep};
use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::repository::harm::{self, Harm};
use crate::repository::header::StreamRules;
use crate::repository::kin::{self, Identity, Kin};
use crate::repository::lease::Held;
use crate::repository::seen;
use crate::repository::shipped::FILES_IMAGE;
use crate::repository::{self, Repository, Shipped, of_strata, twice};
use crate::retention::{self, Candidate, Decision, Policy, Reason};
use crate::set::at_work;
use crate::set::branches::{Branches, Member};
use crate::ship::{self, begun};
use crate::steps;
use crate::words::counted;

/// About how much memory a merge may take.
const MEMORY: u64 = 96 << 20;
/// How many deltas are merged at a time: in addition to that memory, a merge takes about 1.5 MiB for each.
const MERGED_AT_ONCE: usize = 64;

/// What was done in a repository besides removing sets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Done {
    /// Deltas merged into a newer one.
    pub merged: u64,
    /// Packs of which little was still needed, and whose live blocks are now in new ones.
    pub repacked: u64,
    /// The total size of these new ones.
    pub repacked_bytes: u64,
    /// How many more such packs there are that didn't fit into the budget.
    pub repack_left: u64,
    /// Objects that were deleted because nothing refers to them.
    pub deleted: u64,
    /// Objects whose grace time isn't over.
    pub waiting: u64,
    /// Objects that would be deleted, but the store still locks them.
    pub locked: u64,
    /// Objects that kept sets need, and whose locks were extended.
    pub locks_prolonged: u64,
    /// What failed, without harm.
    pub problems: Vec<String>,
}

/// The state after everything that nobody needs was removed.
pub(super) struct Tidied {
    /// What was there before.
    pub(super) survey: Survey,
    /// What was deleted.
    pub(super) gone: Vec<String>,
}

/// Makes the plan, shows it, and carries it out.
///
/// # Errors
/// When the repository can't be reached or isn't the known one, another process prunes it, or the command was
/// interrupted.
pub(super) fn prune(
    cx: &Context,
    name: &str,
    request: &Request,
    show: &mut impl FnMut(&Plan),
) -> Result<Outcome> {
    let place = Place::Repository(name.to_owned());
    let policy = cx.cluster.retention.of_repository(name);
    if policy.is_none() && request.sets.is_empty() {
        let plan = Plan::nothing(place);
        show(&plan);
        return Ok(Outcome::of(plan));
    }
    // On this host nobody else ships to it or prunes it, so a lease of this host was left by a dead process.
    let _lock = match request.dry_run {
        true => None,
        false => Some(at_work::lock(cx, name, "prune")?),
    };
    // The policy is that of the known one.
    let repository = repository::open_known(cx, name)?;
    // Before the lease: on this host a repository is locked by its name, and this would be another one's lease.
    if let Some(other) = twice::other_name(cx, &repository) {
        return Err(twice::refusal(&repository, other));
    }
    let lease = match request.dry_run {
        true => None,
        false => Some(Held::take_to_delete(cx, &repository)?),
    };
    steps::reached("prune.leased")?;
    let zone = cx.cluster.retention.time_zone().map_err(Error::failed)?;
    let bases = local::bases(cx)?;
    let policy = policy.filter(|_| request.sets.is_empty());
    let identity = &Identity::here(cx)?;
    if policy.is_some() && !identity.is_known() && !repository.ids()?.is_empty() {
        return Err(kin::nobodys(cx, name));
    }
    let named = match request.sets.is_empty() {
        true => Vec::new(),
        false => resolve(&place, &request.sets, &repository.ids()?)?,
    };
    let named = named.as_slice();
    let (bases, now) = (&bases, Timestamp::now());
    let rules = Choice { policy, named, bases, identity, now, zone: &zone };
    let memory = harm::memory(cx, &repository);
    let mut plan =
        rules.plan_beside(&repository, |sets| harm::of_sets(&repository, &memory, sets))?;
    plan.insist_on(named)?;
    show(&plan);
    steps::reached("prune.planned")?;
    let Some(lease) = lease else {
        return Ok(Outcome::of(plan));
    };
    let clock = || u64::try_from(Timestamp::now().as_second()).unwrap_or(0);
    let work = Work {
        repository: &repository,
        rules: &StreamRules,
        budget: request.max_merge_bytes.unwrap_or(u64::MAX),
        at_once: MERGED_AT_ONCE,
        repack: Some(repository.config.repacks_below())
            .filter(|below| *below > 0)
            .map(|below| ship::repack_options(&repository, below, request.max_repack_bytes)),
        grace: u64::from(repository.config.grace_hours) * 3600,
        now: clock(),
        clock: &clock,
        mark: &|set| in_common::mark_pruned(cx, set, &repository),
        begun: &|| begun::kept(cx, &repository),
        reached: &|step| steps::reached(step),
        still: &|| lease.still("prune.repository-still"),
        confirm: &|| lease.confirm(),
        prolongs: policy.is_some(),
    };
    let (mut removed, mut done) = (Vec::new(), Done::default());
    let carried_out = work.carry_out(&plan, &mut removed, &mut done);
    seen::forget(cx, &repository, &removed);
    let error = match carried_out {
        Ok(()) => lease.was_held().err(),
        Err(error) => Some(lease.blamed(error, lease.confirm())),
    };
    plan.problems.extend(done.problems.iter().cloned());
    Ok(Outcome { plan, removed, done: Some(done), error })
}

/// Decides which sets of a repository are kept.
pub(super) struct Choice<'a> {
    /// The policy; `None` if the named sets are to be removed.
    pub(super) policy: Option<&'a Policy>,
    /// Sets that were named.
    pub(super) named: &'a [String],
    /// Sets that an increment can start from on this host.
    pub(super) bases: &'a BTreeSet<String>,
    /// What this host knows about which cluster it has.
    pub(super) identity: &'a Identity,
    pub(super) now: Timestamp,
    pub(super) zone: &'a jiff::tz::TimeZone,
}

impl Choice<'_> {
    /// Makes the plan. `harmed` returns those of some sets that aren't whole; it is asked only if the policy removes
    /// any.
    pub(super) fn plan_beside(
        &self,
        repository: &Repository,
        harmed: impl Fn(&[&Shipped]) -> Result<Vec<Harm>>,
    ) -> Result<Plan> {
        let (all, damaged) = repository.sets()?;
        let kin = Kin::of(self.identity, &all);
        // Whoever names a set gives it up.
        let is_ours = |set: &Shipped| self.policy.is_none() || kin.has(set);
        let (sets, others): (Vec<_>, Vec<_>) = all.into_iter().partition(is_ours);
        let ids = sets.iter().map(|set| set.manifest.set.to_string());
        let common = ids.filter(|id| self.bases.contains(id));
        let common = retention::newest(common, |id| id, self.now);
        let locks = locks::Known::read(repository)?;
        let until = |set: &Shipped| locks.until(repository, set);
        let mut entries = self.decide(&sets, common.as_deref(), until);
        if self.policy.is_some() && entries.iter().any(|entry| entry.fate == Fate::Remove) {
            let harmed = harmed(&sets.iter().collect::<Vec<_>>())?;
            let why: BTreeMap<_, _> = harmed.into_iter().map(|harm| (harm.set, harm.why)).collect();
            let is_whole = |set: &Shipped| !why.contains_key(set.manifest.set.as_str());
            let whole: Vec<_> = sets.into_iter().filter(is_whole).collect();
            entries.retain(|entry| why.contains_key(&entry.set));
            entries.iter_mut().for_each(|entry| leave_harmed(entry, &why, &repository.name));
            entries.extend(self.decide(&whole, common.as_deref(), until));
        }
        // Whoever names a set that can't be read gives it up.
        let is_named = |set: &String| self.policy.is_none() && self.named.contains(set);
        let mut problems = Vec::new();
        let left: Vec<_> =
            damaged.iter().map(|(set, _)| set).filter(|set| !is_named(set)).collect();
        if let Some(first) = left.first() {
            // A set that the store failed on is most likely whole.
            let failed = |(set, error): &&(String, Error)| {
                left.contains(&set) && matches!(error, Error::Store { .. })
            };
            let gives_up = format!("`{} prune --repository {} --set", lockstep(), repository.name);
            let way_out = match damaged.iter().find(failed) {
                None => format!(
                    "Where a newer lockstep wrote one, use that version; else {gives_up} {first}` gives one up"
                ),
                Some((set, _)) => format!(
                    "The store failed on {set}, which says nothing about the set: run it again once the store works. Only if it never can be read again, {gives_up} {set}` gives it up"
                ),
            };
            problems.push(format!(
                "{} of its sets can't be read: nothing is merged or collected, because nobody knows what they need. {way_out}",
                left.len()
            ));
        }
        entries.extend(damaged.into_iter().map(|(set, error)| Entry {
            fate: match is_named(&set) {
                true => Fate::Remove,
                false => Fate::Left(error.chain()),
            },
            set,
            time: None,
            bytes: None,
        }));
        entries.extend(others.iter().map(anothers));
        entries.sort_by(|a, b| a.set.cmp(&b.set));
        let place = Place::Repository(repository.name.clone());
        let locks_until = self.policy.and_then(|_| locks.due(self.now));
        Ok(Plan { place, configured: true, entries, problems, locks_until })
    }

    /// Decides about the sets that can be read and that the policy covers. `common` is the newest that this host has
    /// too; `locked_until` says of each how long the store locks it. A pure function.
    fn decide(
        &self,
        sets: &[Shipped],
        common: Option<&str>,
        locked_until: impl Fn(&Shipped) -> Option<Timestamp>,
    ) -> Vec<Entry> {
        let branches = Branches::of(sets.iter().map(|set| Member::from(&set.manifest)), self.now);
        let candidate = |set: &Shipped| {
            let id = set.manifest.set.to_string();
            let is_common = common == Some(id.as_str());
            let needed = is_common.then(|| Reason::CommonWith("this host".into()));
            let locked = locked_until(set).filter(|until| *until > self.now);
            let needed = needed.into_iter().chain(locked.map(Reason::LockedUntil)).collect();
            let is_left = branches.left_behind(&set.manifest).is_some();
            let (time, label) = (set.manifest.started_at, set.manifest.label.clone());
            Candidate { id, time, needed, is_left, label }
        };
        let candidates: Vec<_> = sets.iter().map(candidate).collect();
        let decided = match self.policy {
            Some(policy) => retention::decide(&candidates, policy, self.now, self.zone),
            None => retention::decide_named(&candidates, self.named),
        };
        let bytes = |set: &Shipped| set.volumes.iter().map(|volume| volume.stored_bytes).sum();
        let stored: BTreeMap<_, u64> =
            sets.iter().map(|set| (set.manifest.set.as_str(), bytes(set))).collect();
        let entry = |decision: Decision| Entry {
            bytes: stored.get(decision.id.as_str()).copied(),
            set: decision.id,
            time: Some(decision.time),
            fate: match decision.reasons.is_empty() {
                true => Fate::Remove,
                false => Fate::Keep(decision.reasons),
            },
        };
        decided.into_iter().map(entry).collect()
    }
}

/// A set that isn't whole and that the rules keep among all sets is left, and that is a problem. If only its lock keeps
/// it, that isn't to be extended.
fn leave_harmed(entry: &mut Entry, why: &BTreeMap<String, String>, repository: &str) {
    let is_lock = |why: &Reason| matches!(why, Reason::LockedUntil(_));
    if let (Fate::Keep(reasons), Some(why)) = (&entry.fate, why.get(&entry.set))
        && !reasons.iter().all(is_lock)
    {
        entry.fate = Fate::Left(format!(
            "it isn't whole, so it takes no place of another set: {why}; {}",
            harm::hint(repository)
        ));
    }
}

/// Returns the entry for a set of another cluster with the same name: no policy of this cluster covers it.
fn anothers(set: &Shipped) -> Entry {
    let found = set.manifest.postgres.system_identifier;
    let hint = kin::hint(set.manifest.cluster.as_str(), found);
    Entry {
        set: set.manifest.set.to_string(),
        time: Some(set.manifest.started_at),
        fate: Fate::Left(format!("it is of system identifier {found}: {hint}")),
        bytes: None,
    }
}

/// A delta as far as chains are concerned.
fn link(descriptor: &Descriptor) -> Link {
    let bytes = descriptor.files().map(|file| file.size).sum();
    Link { base: descriptor.base.clone(), bytes }
}

/// What is needed to carry out a plan.
pub(super) struct Work<'a, R> {
    pub(super) repository: &'a Repository,
    /// What objects keep from older deltas.
    pub(super) rules: &'a R,
    /// How many bytes of indexes merges may read.
    pub(super) budget: u64,
    /// How many deltas are merged at a time.
    pub(super) at_once: usize,
    /// Which packs are rewritten, and how much of them at most.
    pub(super) repack: Option<RepackOptions>,
    /// The grace time, in seconds.
    pub(super) grace: u64,
    /// When the run began, in Unix time.
    pub(super) now: u64,
    /// The present time: a run may take hours.
    pub(super) clock: &'a dyn Fn() -> u64,
    /// Called before a set is removed.
    pub(super) mark: &'a dyn Fn(&str) -> Result<()>,
    /// Returns what interrupted shipments will resume from.
    pub(super) begun: &'a dyn Fn() -> Result<Begun>,
    /// Called before each step.
    pub(super) reached: &'a dyn Fn(&str) -> Result<()>,
    /// Called before each object is deleted or replaced, and now and then: checks that the lease is still held and
    /// that nobody has interrupted the run.
    pub(super) still: &'a dyn Fn() -> Result<()>,
    /// Checks the lease with the store itself, now.
    pub(super) confirm: &'a dyn Fn() -> Result<()>,
    /// Whether to extend the locks of what the kept sets need: the plan says of each set whether it is kept.
    pub(super) prolongs: bool,
}

impl<R: Rules> Work<'_, R> {
    /// Removes the plan's sets, merges, collects, and extends locks. What was done counts even if the rest fails: a
    /// set that was removed is gone.
    fn carry_out(&self, plan: &Plan, removed: &mut Vec<String>, done: &mut Done) -> Result<()> {
        for set in plan.removed() {
            (self.reached)("prune.repository-set")?;
            (self.still)()?;
            (self.mark)(set)?;
            self.remove(set)?;
            removed.push(set.to_owned());
            self.remove_files(set)?;
        }
        let tidied = self.tidy(plan, done);
        if let Err(interrupted @ Error::Interrupted { .. }) = tidied {
            return Err(interrupted);
        }
        if self.prolongs {
            (self.reached)("prune.repository-locks")?;
            let (still, there) = (self.still_of_strata(), tidied.as_ref().ok());
            let there = there.and_then(Option::as_ref);
            // What became unneeded since the run began was needed then; its locks aren't extended.
            locks::prolong(self.repository, plan, there, self.by_now(), &still, done)?;
        }
        tidied.map(drop).map_err(|error| match error.lacks_room_in_store() {
            true => self.without_room(error),
            false => error,
        })
    }

    /// Explains why there was no room, and what frees some: another run of this command may not.
    fn without_room(&self, error: Error) -> Error {
        let (waiting, since) = Doomed::read(&self.repository.strata).unwrap_or_default().oldest();
        let due = since.and_then(|since| i64::try_from(since.saturating_add(self.grace)).ok());
        let due = due.and_then(|due| Timestamp::from_second(due).ok());
        const BY_HAND: &str = "make room there by removing files that aren't the repository's";
        let hint = due.map_or_else(
            || format!("nothing in it waits to be deleted: {BY_HAND}, or let its retention keep fewer sets"),
            |due| {
                format!(
                    "{} wait for their grace time, the first until {}: a prune after that deletes what is due, and has its room; if that is too late, {BY_HAND}",
                    counted(waiting as u64, "object"),
                    due.strftime("%Y-%m-%d %H:%M:%SZ")
                )
            },
        );
        Error::failed(error.chain()).with_hint(hint)
    }

    /// Merges and collects, unless nobody knows what one of the sets needs.
    fn tidy(&self, plan: &Plan, done: &mut Done) -> Result<Option<Tidied>> {
        // A set that can't be read and wasn't given up.
        if plan.entries.iter().any(|entry| entry.time.is_none() && entry.fate != Fate::Remove) {
            return Ok(None);
        }
        if let Err(error) = self.rewrite(plan, done) {
            // What is due frees room.
            if !error.lacks_room() || self.collect(self.survey(plan)?, done)?.gone.is_empty() {
                return Err(error);
            }
            self.rewrite(plan, done)?;
        }
        (self.reached)("prune.repository-collect")?;
        let mut survey = self.survey(plan)?;
        // What an earlier run left because its budget was spent or it was ended.
        let has_changed = self.has_changed(plan, done);
        let goes_on =
            |repack: &RepackOptions| !has_changed && survey.has_sparse(repack.live_percent);
        let mut full = None;
        if self.repack.as_ref().is_some_and(goes_on) {
            match self.repack(done) {
                Err(error) if error.lacks_room() => full = Some(error),
                repacked => repacked?,
            }
            if done.repacked > 0 || full.is_some() {
                survey = self.survey(plan)?;
            }
        }
        let tidied = self.collect(survey, done)?;
        full.map_or(Ok(Some(tidied)), Err)
    }

    /// Does what takes room: merges, and the rewriting of packs.
    fn rewrite(&self, plan: &Plan, done: &mut Done) -> Result<()> {
        self.merge_all(&mut done.merged)?;
        if self.has_changed(plan, done) { self.repack(done) } else { Ok(()) }
    }

    fn has_changed(&self, plan: &Plan, done: &Done) -> bool {
        done.merged > 0 || plan.removed().next().is_some()
    }

    fn collect(&self, survey: Survey, done: &mut Done) -> Result<Tidied> {
        let (strata, still) = (&self.repository.strata, self.still_of_strata());
        let collected = survey.collect(strata, self.terms(), Run::Real, &still);
        let collected = collected.map_err(of_strata)?;
        done.deleted += collected.deleted.len() as u64;
        done.waiting = collected.waiting.len() as u64;
        done.locked = collected.locked.len() as u64;
        Ok(Tidied { survey, gone: collected.deleted })
    }

    /// Surveys the whole repository, and counts as needed what interrupted shipments will resume from.
    fn survey(&self, plan: &Plan) -> Result<Survey> {
        let survey = locks::survey(self.repository, plan, self.terms());
        let begun = (self.begun)()?;
        let survey = survey.and_then(|survey| survey.with_begun(&self.repository.strata, &begun));
        survey.map_err(of_strata)
    }

    /// Rewrites what is still needed in packs that are mostly dead.
    fn repack(&self, done: &mut Done) -> Result<()> {
        let Some(options) = &self.repack else { return Ok(()) };
        (self.reached)("prune.repository-repack")?;
        let (lines, still) = (Progress::on_stderr(), self.still_of_strata());
        let mut line = lines.told(&self.repository.name);
        let mut told = |done, total| line.bytes(done, total);
        let repacked = repack(&self.repository.strata, options, false, &still, &mut told);
        let repacked = repacked.map_err(of_strata)?;
        done.repacked = repacked.packs.len() as u64;
        done.repacked_bytes = repacked.written;
        done.repack_left = repacked.left;
        done.problems.extend(repacked.damaged.iter().map(|(pack, error)| {
            format!("pack {pack} is left as it is: {error}; `{} repo check --read-data` says what it harms", lockstep())
        }));
        Ok(())
    }

    fn still_of_strata(&self) -> impl Fn() -> strata::Result<()> {
        || (self.still)().map_err(strata::Error::caller)
    }

    fn terms(&self) -> Terms {
        Terms { grace: self.grace, began: self.now, noted: self.by_now() }
    }

    /// Returns the present time, but never one before the run began, even if the clock was set back.
    fn by_now(&self) -> u64 {
        (self.clock)().max(self.now)
    }

    /// The manifest first: from here on, the set doesn't exist.
    fn remove(&self, set: &str) -> Result<()> {
        let strata = &self.repository.strata;
        Stored::delete_if(strata, set, &self.still_of_strata()).map_err(of_strata)
    }

    /// No delta is based on the set's files. But a host that has the lease by now may have shipped the set again, so
    /// the store is asked whose the lease is, whatever it said a moment ago.
    fn remove_files(&self, set: &str) -> Result<()> {
        let strata = &self.repository.strata;
        let files = descriptor_path(strata, FILES_IMAGE, set).map_err(of_strata)?;
        let confirm = || (self.confirm)().map_err(strata::Error::caller);
        strata.store().delete_if(&files, &confirm).map_err(of_strata)
    }

    fn merge_all(&self, merged: &mut u64) -> Result<()> {
        let mut heads: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        Stored::read_all(&self.repository.strata, |stored| {
            for delta in stored.deltas.into_iter().filter(|delta| delta.image != FILES_IMAGE) {
                heads.entry(delta.image).or_default().insert(delta.id);
            }
            Ok(())
        })
        .map_err(of_strata)?;
        let mut budget = self.budget;
        for (image, heads) in heads {
            let mut descriptors = self.descriptors(&image, &heads)?;
            loop {
                let links =
                    descriptors.iter().map(|(id, descriptor)| (id.clone(), link(descriptor)));
                let round = chains::merges(&links.collect(), &heads, self.at_once, budget);
                if round.is_empty() {
                    break;
                }
                let mut into = Vec::new();
                for run in round {
                    into.push(self.merge(&run, &descriptors)?);
                    *merged += run.deltas.len() as u64 - 1;
                    budget = budget.saturating_sub(run.bytes);
                }
                // Not earlier: within its own round, a delta is what it was planned with.
                let replaced = into.into_iter().map(|delta| (delta.id.clone(), delta));
                descriptors.extend(replaced);
            }
        }
        Ok(())
    }

    /// Merges neighbours into the last of them.
    fn merge(&self, run: &Merge, all: &BTreeMap<String, Descriptor>) -> Result<Descriptor> {
        (self.reached)("prune.repository-merge")?;
        let run_of: Vec<_> = run.deltas.iter().filter_map(|id| all.get(id).cloned()).collect();
        let (options, still) = (IndexOptions::default(), self.still_of_strata());
        merge(&self.repository.strata, &run_of, self.rules, MEMORY, &options, &still)
            .map_err(of_strata)
    }

    /// Returns the descriptors of all chains that end in `heads`.
    fn descriptors(
        &self,
        image: &str,
        heads: &BTreeSet<String>,
    ) -> Result<BTreeMap<String, Descriptor>> {
        let mut all = BTreeMap::new();
        let mut round: Vec<String> = heads.iter().cloned().collect();
        while !round.is_empty() {
            let mut bases = BTreeSet::new();
            let read = |id: &String| read_descriptor(&self.repository.strata, image, id);
            read_many::<_, _, Error>(&round, read, |id, descriptor| {
                let descriptor = descriptor.map_err(of_strata)?;
                bases.extend(descriptor.base.clone());
                all.insert(id.clone(), descriptor);
                Ok(())
            })?;
            round = bases.into_iter().filter(|id| !all.contains_key(id)).collect();
        }
        Ok(all)
    }
}

#[cfg(test)]
#[path = "remote_tests.rs"]
pub(super) mod tests;

#[cfg(test)]
#[path = "remote_raw_tests.rs"]
mod raw_tests;

#[cfg(test)]
#[path = "remote_harmed_tests.rs"]
mod harmed_tests;
