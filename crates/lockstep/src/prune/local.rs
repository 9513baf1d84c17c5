//! The sets on this host: what is wrong with each or depends on it, the plan, and its execution.
//!
//! A set that isn't whole (a snapshot is gone or replaced by another, or a file of its own is gone or cut) counts for
//! no rule: it must not use up a place that a restorable set could have. It is removed when its time has come.
//!
//! What could go wrong: a data directory is lost, a container's start makes a new cluster there by itself, and the sets
//! of that push out the ones that are needed now. So no policy removes a set of another cluster, as in a repository.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use super::in_common::{self, Asked, Common};
use super::{Entry, Fate, Outcome, Place, Plan, Request, bookmarks, resolve};
use crate::context::{Context, lockstep};
use crate::error::{Error, Result};
use crate::names::SetId;
use crate::repository::kin::{Identity, Kin};
use crate::restore;
use crate::retention::{self, Candidate, Decision, Reason};
use crate::set::at_work;
use crate::set::branches::{Branches, Member};
use crate::set::manifest::{Manifest, SetVolume};
use crate::set::removal::{self, CutOff, Removal};
use crate::set::unread::{self, Unread};
use crate::set::verify;
use crate::ship::begun;
use crate::steps;
use crate::volume::zfs::{Away, DatasetName, SnapshotName, Standing};
use crate::words::counted;

/// Makes the plan, shows it, and carries it out. `asked` is what the repositories have.
///
/// # Errors
/// When the state or ZFS can't be read, or the command was interrupted.
pub(super) fn prune(
    cx: &Context,
    request: &Request,
    asked: &[Asked],
    show: &mut impl FnMut(&Plan),
) -> Result<Outcome> {
    let policy = cx.cluster.retention.local.as_ref();
    if !is_asked_for(cx, request) {
        let plan = Plan::nothing(Place::Local);
        show(&plan);
        return Ok(Outcome::of(plan));
    }
    let zone = cx.cluster.retention.time_zone().map_err(Error::failed)?;
    let mut facts = Facts::take(cx, asked)?;
    if !request.sets.is_empty() {
        // Whoever names a set gives it up.
        facts.anothers.clear();
    }
    if request.dry_run {
        // Otherwise it is gone by now.
        facts.pass_over(&restore::unfinished::to_be_undone(cx)?);
    }
    let damaged = facts.damaged.iter().map(|(id, _)| id);
    let begun = facts.begun.iter().map(CutOff::set);
    let all = facts.sets.iter().map(|set| &set.set).chain(damaged).chain(begun);
    let ids = all.map(ToString::to_string);
    let named = resolve(&Place::Local, &request.sets, &ids.collect::<Vec<_>>())?;
    let decide = |is_counted: &dyn Fn(&Facts, &Manifest) -> bool| {
        let own = facts.sets.iter().filter(|set| !facts.is_anothers(set));
        let counted: Vec<_> = own.filter(|set| is_counted(&facts, set)).collect();
        let now = Timestamp::now();
        let candidates = facts.candidates(&counted, &named, now);
        match policy.filter(|_| request.sets.is_empty()) {
            Some(policy) => retention::decide(&candidates, policy, now, &zone),
            None => retention::decide_named(&candidates, &named),
        }
    };
    let whole = decide(&|facts, set| facts.broken(set).is_none());
    let all = decide(&|_, _| true);
    let mut plan = facts.plan(&whole, &all, &named);
    plan.problems.extend(facts.cut_off(&named, request.dry_run));
    plan.insist_on(&named)?;
    let is_going = |(set, _): &&(String, Reason)| plan.removed().any(|going| going == set);
    for (set, why) in facts.shipped.iter().filter(is_going) {
        if let Reason::Begun(name) = why {
            tracing::warn!(%set, "what was stored of it in repository {name} is of no more use");
        }
    }
    for id in plan.removed() {
        facts.tell_what_stays(id);
    }
    facts.find_unread(cx, &mut plan)?;
    show(&plan);
    steps::reached("prune.planned")?;
    let mut removed = Vec::new();
    let error = match request.dry_run {
        true => None,
        false => facts.carry_out(cx, asked, &mut plan, &named, &mut removed).err(),
    };
    Ok(Outcome { removed, error, ..Outcome::of(plan) })
}

/// Checks whether anything may be removed on this host.
pub(super) fn is_asked_for(cx: &Context, request: &Request) -> bool {
    cx.cluster.retention.local.is_some() || !request.sets.is_empty()
}

/// Returns the sets of this host that could already have been removed at that time, by the present policy and by what
/// is known of the repositories without asking them. A set that something depends on is kept.
///
/// # Errors
/// When the state or ZFS can't be read.
pub fn overdue(cx: &Context, at: Timestamp) -> Result<Vec<String>> {
    let Some(policy) = &cx.cluster.retention.local else { return Ok(Vec::new()) };
    let (sets, _) = cx.state.sets()?;
    if sets.iter().all(|set| set.started_at > at) {
        return Ok(Vec::new());
    }
    let zone = cx.cluster.retention.time_zone().map_err(Error::failed)?;
    let mut facts = Facts::look(cx)?;
    facts.sets.retain(|set| set.started_at <= at);
    facts.find_shipped(cx)?;
    facts.commons = in_common::with_all(cx, &in_common::unasked(cx), &facts.bases(cx)?);
    let own = facts.sets.iter().filter(|set| !facts.is_anothers(set));
    let whole: Vec<_> = own.filter(|set| facts.broken(set).is_none()).collect();
    let decided = retention::decide(&facts.candidates(&whole, &[], at), policy, at, &zone);
    let going = |set: &&Manifest| {
        let is_kept = |one: &Decision| one.id == set.set.as_str() && one.is_kept();
        !decided.iter().any(is_kept) && facts.in_the_way(set, false).is_none()
    };
    Ok(whole.iter().copied().filter(going).map(|set| set.set.to_string()).collect())
}

fn away_in_words(set: &SetId, pool: &str, why: Away) -> String {
    format!(
        "pool \"{pool}\" {}: {}; if it is gone for good: {} prune --local --set {}",
        why.state(),
        why.command(pool),
        lockstep(),
        set
    )
}

/// Reports a snapshot that isn't removed with its set.
fn tell_given_up(set: &str, snapshot: &SnapshotName, why: Away) {
    tracing::warn!(
        "set {set} is given up: pool \"{}\" {}, and still has \"{snapshot}\" if it comes back",
        snapshot.dataset.pool(),
        why.state()
    );
}

/// Returns the sets of another cluster than the one in the data directory, and why no policy removes them. If
/// pg_control can't be read, the newest set tells which cluster this is.
fn anothers(cx: &Context, sets: &[Manifest]) -> BTreeMap<String, String> {
    let kin = Kin::of(&Identity::of(cx, sets), &[]);
    let others = sets.iter().filter(|set| !kin.has_identifier(set.postgres.system_identifier));
    let why = |set: &Manifest| {
        let found = set.postgres.system_identifier;
        let why = format!(
            "it is of system identifier {found}, and this host's cluster is another: is the right one in \"{}\"? If it is, and is the same from before pg_upgrade or a dump and restore: formerly = [\"{found}\"] in [clusters.{}]; to be rid of the set: {} prune --local --set {}",
            cx.cluster.data_directory.display(),
            cx.name,
            lockstep(),
            set.set
        );
        (set.set.to_string(), why)
    };
    others.map(why).collect()
}

/// What is on this host.
struct Facts {
    owner: String,
    sets: Vec<Manifest>,
    damaged: Vec<(SetId, String)>,
    /// Sets of another cluster than this host's, and why no policy removes them.
    anothers: BTreeMap<String, String>,
    /// What is wrong with the files beside manifests, by set.
    files: BTreeMap<String, String>,
    /// Sets whose removal was cut off, and couldn't be finished yet.
    begun: Vec<CutOff>,
    /// Where the snapshots of damaged sets that will be removed are.
    unread: BTreeMap<String, Unread>,
    standing: BTreeMap<SnapshotName, Standing>,
    /// Snapshots that moved with their dataset or a promoted clone, by their name in the manifest.
    moved: BTreeMap<SnapshotName, (SnapshotName, Standing)>,
    /// Pools that aren't imported, or are suspended.
    away: BTreeMap<String, Away>,
    /// Why nothing can be destroyed in a pool, by its name.
    read_only: BTreeMap<String, String>,
    commons: Vec<Common>,
    /// Common sets that bookmarks can replace.
    replaceable: BTreeSet<String>,
    /// Sets that shipments work on, or will resume.
    shipped: Vec<(String, Reason)>,
}

/// Returns the sets that an increment can start from on this host: those whose snapshots or bookmarks are here.
///
/// # Errors
/// When the state or ZFS can't be read.
pub(super) fn bases(cx: &Context) -> Result<BTreeSet<String>> {
    Facts::look(cx)?.bases(cx)
}

impl Facts {
    /// Reads what is on this host.
    fn look(cx: &Context) -> Result<Self> {
        let (sets, damaged) = cx.state.sets()?;
        let volumes = sets.iter().flat_map(|set| &set.volumes);
        let named: Vec<_> = volumes.map(|volume| volume.snapshot.clone()).collect();
        let standing = cx.zfs.standing(&named)?;
        let away = cx.zfs.all_away(named.iter().map(|snapshot| snapshot.dataset.pool()))?;
        let files = sets.iter().filter_map(|set| {
            let wrong = verify::file_sizes(cx, set).err()?;
            Some((set.set.to_string(), wrong.chain()))
        });
        let files = files.collect();
        Ok(Self {
            owner: cx.state.owner().to_owned(),
            anothers: anothers(cx, &sets),
            files,
            sets,
            damaged: damaged.into_iter().map(|(id, e)| (id, e.chain())).collect(),
            begun: Vec::new(),
            unread: BTreeMap::new(),
            standing,
            moved: BTreeMap::new(),
            away,
            read_only: BTreeMap::new(),
            commons: Vec::new(),
            replaceable: BTreeSet::new(),
            shipped: Vec::new(),
        })
    }

    /// Looks for the snapshots that aren't where they were.
    fn find_moved(&mut self, cx: &Context) -> Result<()> {
        let is_gone = |volume: &&SetVolume| {
            let found = self.standing.get(&volume.snapshot);
            found.is_none_or(|found| found.guid != volume.guid)
        };
        let volumes = self.sets.iter().flat_map(|set| &set.volumes);
        let gone: Vec<_> = volumes.filter(is_gone).map(removal::recorded).collect();
        let renamed = removal::renamed(cx, &gone)?;
        let mut standing = cx.zfs.standing(&renamed.values().cloned().collect::<Vec<_>>())?;
        self.moved = renamed
            .into_iter()
            .filter_map(|(name, now)| {
                let found = standing.remove(&now)?;
                Some((name, (now, found)))
            })
            .collect();
        Ok(())
    }

    /// Returns why nobody knows whether the snapshot exists: its pool isn't imported, nor found under another name, or
    /// it is suspended.
    fn away(&self, volume: &SetVolume) -> Option<Away> {
        let away = self.away.get(&volume.pool).copied();
        away.filter(|_| !self.moved.contains_key(&volume.snapshot))
    }

    fn is_away(&self, volume: &SetVolume) -> bool {
        self.away(volume).is_some()
    }

    /// Ignores clones that are destroyed before anything is removed.
    fn pass_over(&mut self, going: &BTreeSet<DatasetName>) {
        let moved = self.moved.values_mut().map(|(_, standing)| standing);
        for standing in self.standing.values_mut().chain(moved) {
            standing.clones.retain(|clone| !going.contains(clone));
        }
    }

    /// Returns the set's snapshot as it is now, by its present name.
    fn found<'a>(&'a self, volume: &'a SetVolume) -> Option<(&'a SnapshotName, &'a Standing)> {
        let name = &volume.snapshot;
        let there = self.standing.get(name).filter(|standing| standing.guid == volume.guid);
        let moved = || self.moved.get(name).map(|(now, standing)| (now, standing));
        there.map(|standing| (name, standing)).or_else(moved)
    }

    /// The same, with what concerns repositories.
    fn take(cx: &Context, asked: &[Asked]) -> Result<Self> {
        let mut facts = Self::look(cx)?;
        facts.begun = removal::cut_off(cx)?;
        facts.find_moved(cx)?;
        let found = facts.standing.keys().chain(facts.moved.values().map(|(now, _)| now));
        let pools: BTreeSet<_> = found.map(|found| found.dataset.pool().to_owned()).collect();
        facts.read_only.extend(pools.into_iter().filter_map(|pool| {
            let why = removal::read_only(cx, std::iter::once(pool.as_str()))?;
            Some((pool, why))
        }));
        facts.find_shipped(cx)?;
        facts.commons = in_common::with_all(cx, asked, &facts.bases(cx)?);
        for set in &facts.sets {
            let id = set.set.to_string();
            let is_here = !set.volumes.iter().any(|volume| facts.is_away(volume));
            if is_here && facts.is_common(&id) && bookmarks::can_replace(cx, set)? {
                facts.replaceable.insert(id);
            }
        }
        Ok(facts)
    }

    /// Finds the sets that shipments work on, or will resume.
    fn find_shipped(&mut self, cx: &Context) -> Result<()> {
        for (set, repository) in at_work::all(cx)? {
            self.shipped.push((set, Reason::BeingShipped(repository)));
        }
        for name in &cx.cluster.repositories {
            let is_whole = |set: &Manifest| self.broken(set).is_none();
            let begun = begun::newest(cx, name, &self.sets, is_whole);
            let begun = begun.map(|set| (set.set.to_string(), Reason::Begun(name.clone())));
            self.shipped.extend(begun);
        }
        Ok(())
    }

    fn bases(&self, cx: &Context) -> Result<BTreeSet<String>> {
        let bases = self.sets.iter().filter(|set| self.is_base(set));
        let mut bases: BTreeSet<_> = bases.map(|set| set.set.to_string()).collect();
        bases.extend(bookmarks::there(cx)?);
        Ok(bases)
    }

    /// No increment can start from a set that isn't whole; but a pool that isn't imported may come back.
    fn is_base(&self, set: &Manifest) -> bool {
        set.volumes.iter().all(|volume| {
            let standing = self.standing.get(&volume.snapshot);
            self.is_away(volume) || standing.is_some_and(|standing| standing.guid == volume.guid)
        })
    }

    fn is_anothers(&self, set: &Manifest) -> bool {
        self.anothers.contains_key(set.set.as_str())
    }

    fn is_common(&self, id: &str) -> bool {
        self.commons.iter().any(|common| common.newest.as_deref() == Some(id))
    }

    /// A set that is `named` is also removed if its shipment was begun, or if its pool is gone, and no increment can
    /// start from it until the pool comes back: whoever names it accepts that.
    fn candidates(&self, sets: &[&Manifest], named: &[String], now: Timestamp) -> Vec<Candidate> {
        let branches = Branches::of(sets.iter().map(|set| Member::from(*set)), now);
        let candidate = |set: &&Manifest| {
            let id = set.set.to_string();
            let common = self.commons.iter().filter(|c| c.newest.as_deref() == Some(id.as_str()));
            let reasons =
                common.map(|c| Reason::CommonWith(format!("repository {}", c.repository)));
            let is_away = set.volumes.iter().any(|volume| self.is_away(volume));
            let is_no_start = named.contains(&id) && is_away;
            let mut needed: Vec<_> = match self.replaceable.contains(&id) || is_no_start {
                true => Vec::new(),
                false => reasons.collect(),
            };
            let shipped = self.shipped.iter().filter(|(shipped, _)| *shipped == id);
            let is_given_up = |why: &Reason| matches!(why, Reason::Begun(_)) && named.contains(&id);
            needed.extend(shipped.map(|(_, why)| why.clone()).filter(|why| !is_given_up(why)));
            let is_left = branches.left_behind(set).is_some();
            let label = set.label.clone();
            Candidate { time: set.started_at, id, needed, is_left, label }
        };
        sets.iter().map(candidate).collect()
    }

    /// Returns why the set can't be restored any more. While its pool isn't imported, nobody knows what is gone.
    fn broken(&self, set: &Manifest) -> Option<String> {
        let away = |volume| self.away(volume).map(|why| away_in_words(&set.set, &volume.pool, why));
        if let Some(why) = set.volumes.iter().find_map(away) {
            return Some(why);
        }
        let rid = format!("; to be rid of the set: {} prune --local --set {}", lockstep(), set.set);
        let Some((volume, found)) = set.first_gone(&self.standing) else {
            return self.files.get(set.set.as_str()).map(|why| format!("{why}{rid}"));
        };
        let name = &volume.snapshot;
        if let Some((now, standing)) = self.moved.get(name) {
            return Some(removal::comes_back(&volume.dataset, now, standing).unwrap_or_else(
                || format!("\"{name}\" is \"{now}\" now: {}", removal::renaming(name, now)),
            ));
        }
        Some(match found {
            None => format!("\"{name}\" is gone{rid}"),
            Some(_) => format!("\"{name}\" is another snapshot{rid}"),
        })
    }

    /// Returns what keeps the set from being removed. A named set is given up even if its pool isn't imported, or one
    /// of its snapshots moved with a promoted clone.
    fn in_the_way(&self, set: &Manifest, is_named: bool) -> Option<String> {
        set.volumes.iter().find_map(|volume| {
            if let Some(why) = self.away(volume) {
                return (!is_named).then(|| away_in_words(&set.set, &volume.pool, why));
            }
            let (snapshot, standing) = self.found(volume)?;
            if let Some(why) = self.read_only.get(snapshot.dataset.pool()) {
                return Some(why.clone());
            }
            if standing.owner != self.owner {
                return Some(format!(
                    "\"{snapshot}\" belongs to another state_dir; if that one is gone, or no longer has the set: {} adopt {}",
                    lockstep(),
                    set.set
                ));
            }
            match removal::promoted(&volume.dataset, snapshot, standing) {
                Some(why) => (!is_named).then_some(why),
                None => removal::stands(snapshot, standing, 1),
            }
        })
    }

    /// Reports which snapshots of a set that is given up can't be removed with it.
    fn tell_what_stays(&self, id: &str) {
        let set = self.sets.iter().filter(|set| set.set.as_str() == id);
        for volume in set.flat_map(|set| &set.volumes) {
            let Some(why) = self.away(volume) else { continue };
            tell_given_up(id, &volume.snapshot, why);
        }
        for begun in self.begun.iter().filter(|begun| begun.set().as_str() == id) {
            for (dataset, why) in &begun.waits_for {
                tell_given_up(id, &dataset.snapshot(&begun.set().snapshot_name()), *why);
            }
        }
        let set = self.sets.iter().filter(|set| set.set.as_str() == id);
        for volume in set.flat_map(|set| &set.volumes) {
            if let Some((now, standing)) = self.moved.get(&volume.snapshot)
                && let Some(why) = removal::promoted(&volume.dataset, now, standing)
            {
                tracing::warn!("set {id} is given up, and one of its snapshots stays: {why}");
            }
        }
    }

    /// Describes the removals that were cut off and that nobody has `named` to have them finished.
    fn cut_off(&self, named: &[String], is_dry_run: bool) -> Vec<String> {
        let is_named = |set: &SetId| named.iter().any(|id| id == set.as_str());
        // In a dry run those that wait for nothing weren't continued yet.
        let is_stuck = |begun: &&CutOff| !is_dry_run || !begun.waits_for.is_empty();
        let stuck = self.begun.iter().filter(|begun| !is_named(begun.set())).filter(is_stuck);
        let words = |begun: &CutOff| {
            let set = begun.set();
            let way = begun.waits_for.first_key_value();
            let way = way.map(|(dataset, why)| away_in_words(set, dataset.pool(), *why));
            format!(
                "the removal of set {set} was begun, and can't be finished for now{}",
                way.map_or_else(String::new, |way| format!(": {way}"))
            )
        };
        stuck.map(words).collect()
    }

    /// Finds the snapshots of damaged sets that will be removed, and reports which of them stay.
    fn find_unread(&mut self, cx: &Context, plan: &mut Plan) -> Result<()> {
        for (id, _) in &self.damaged {
            if !plan.removed().any(|going| going == id.as_str()) {
                continue;
            }
            let found = unread::find(cx, id, &self.sets)?;
            for copy in &found.copies {
                tracing::warn!(
                    "\"{copy}\" is a copy of a snapshot of set {id}: it is somebody's, and stays"
                );
            }
            plan.problems.extend(found.problems());
            self.unread.insert(id.to_string(), found);
        }
        Ok(())
    }

    fn bytes(&self, set: &Manifest) -> u64 {
        let of = |volume| self.found(volume).map_or(0, |(_, standing)| standing.used);
        set.volumes.iter().map(of).sum()
    }

    fn plan(&self, whole: &[Decision], all: &[Decision], named: &[String]) -> Plan {
        let is_named = |set: &Manifest| named.iter().any(|id| id == set.set.as_str());
        let kept = |decisions: &[Decision], set: &Manifest| {
            let found = decisions.iter().find(|decision| decision.id == set.set.as_str());
            found.filter(|decision| decision.is_kept()).map(|decision| decision.reasons.clone())
        };
        let fate = |set: &Manifest| match (self.broken(set), self.in_the_way(set, is_named(set))) {
            _ if self.is_anothers(set) => {
                Fate::Left(self.anothers.get(set.set.as_str()).cloned().unwrap_or_default())
            }
            (None, way) => match (kept(whole, set), way) {
                (Some(reasons), _) => Fate::Keep(reasons),
                (None, Some(why)) => Fate::Left(why),
                (None, None) => Fate::Remove,
            },
            (Some(_), _) if !named.is_empty() && !is_named(set) => {
                Fate::Keep(vec![Reason::NotNamed])
            }
            (Some(why), way) => match (kept(all, set), way) {
                // Whoever named it is told why it is needed.
                (Some(reasons), _) if is_named(set) => Fate::Keep(reasons),
                (Some(_), _) => Fate::Left(why),
                (None, Some(why)) => Fate::Left(why),
                (None, None) => Fate::Remove,
            },
        };
        let mut entries: Vec<_> = self
            .sets
            .iter()
            .map(|set| Entry {
                set: set.set.to_string(),
                time: Some(set.started_at),
                fate: fate(set),
                bytes: Some(self.bytes(set)),
            })
            .collect();
        entries.extend(self.damaged.iter().map(|(id, why)| Entry {
            set: id.to_string(),
            time: None,
            fate: if named.is_empty() {
                Fate::Left(format!(
                    "{why}; to be rid of it: {} prune --local --set {id}",
                    lockstep()
                ))
            } else if named.iter().any(|named| named == id.as_str()) {
                Fate::Remove
            } else {
                Fate::Keep(vec![Reason::NotNamed])
            },
            bytes: None,
        }));
        let begun = self.begun.iter().map(|begun| begun.set().to_string());
        entries.extend(begun.filter(|id| named.contains(id)).map(|set| Entry {
            set,
            time: None,
            fate: Fate::Remove,
            bytes: None,
        }));
        entries.sort_by(|a, b| a.set.cmp(&b.set));
        let problems = self.commons.iter().filter_map(|common| common.problem.clone()).collect();
        Plan { place: Place::Local, configured: true, entries, problems, locks_until: None }
    }

    /// Removes what the plan says, oldest first. What can't be removed is recorded in the plan.
    fn carry_out(
        &self,
        cx: &Context,
        asked: &[Asked],
        plan: &mut Plan,
        named: &[String],
        removed: &mut Vec<String>,
    ) -> Result<()> {
        let mut given_way = 0;
        for entry in plan.entries.iter_mut().filter(|entry| entry.fate == Fate::Remove) {
            // One at least, so that each prune comes further; and whoever named sets has few.
            let may_stay = named.is_empty() && !removed.is_empty();
            if given_way > 0 || (may_stay && cx.state.is_waited_for()) {
                given_way += 1;
                continue;
            }
            steps::reached("prune.set")?;
            // One whose removal was begun, or that can't be read, is no start for an increment.
            let is_set = self.sets.iter().any(|set| set.set.as_str() == entry.set);
            let since = in_common::shipped_since(cx, asked, &entry.set).filter(|_| is_set);
            if let Some(name) = since {
                entry.fate = match named.is_empty() {
                    true => Fate::Keep(vec![Reason::BeingShipped(name.to_owned())]),
                    false => Fate::Left(format!(
                        "it was shipped to repository {name} just now: run it again"
                    )),
                };
                continue;
            }
            match self.remove(cx, &entry.set, named.contains(&entry.set)) {
                Ok(Removal::Done) => removed.push(entry.set.clone()),
                Ok(Removal::Left(why)) => entry.fate = Fate::Left(why),
                Ok(Removal::Unfinished(why)) => {
                    entry.fate = Fate::Left(format!("{why}; the next start removes the rest"));
                }
                Err(interrupted @ Error::Interrupted { .. }) => return Err(interrupted),
                Err(error) => {
                    let hint = error.hint().map(|hint| format!("; {hint}"));
                    entry.fate = Fate::Left(error.chain() + &hint.unwrap_or_default());
                }
            }
        }
        if given_way > 0 {
            tracing::warn!(
                "a backup waits for the cluster's lock: {} more that would be removed stay until the next prune",
                counted(given_way, "set")
            );
        }
        bookmarks::clear(cx, &self.commons)
    }

    fn remove(&self, cx: &Context, id: &str, is_named: bool) -> Result<Removal> {
        let Some(set) = self.sets.iter().find(|set| set.set.as_str() == id) else {
            return match self.begun.iter().find(|cut_off| cut_off.set().as_str() == id) {
                Some(cut_off) => cut_off.give_up(cx),
                None => self.remove_damaged(cx, id),
            };
        };
        let common = self.commons.iter().filter(|common| common.newest.as_deref() == Some(id));
        let repositories: Vec<_> = common.map(|common| common.repository.clone()).collect();
        if !repositories.is_empty() && self.replaceable.contains(id) {
            bookmarks::make(cx, set, repositories)?;
        }
        let given_up = if is_named { self.given_up(set) } else { Vec::new() };
        removal::remove(cx, set, given_up)
    }

    /// Returns the datasets whose snapshots stay if the set is removed all the same. A pool that was there when this
    /// was found out and is exported meanwhile isn't given up.
    fn given_up(&self, set: &Manifest) -> Vec<DatasetName> {
        let is_given_up = |volume: &&SetVolume| {
            let promoted = |(snapshot, standing): (&SnapshotName, &Standing)| {
                removal::promoted(&volume.dataset, snapshot, standing).is_some()
            };
            self.is_away(volume) || self.found(volume).is_some_and(promoted)
        };
        set.volumes.iter().filter(is_given_up).map(|volume| volume.dataset.clone()).collect()
    }

    /// Its manifest doesn't say where its snapshots are. What was found when it was planned is removed.
    fn remove_damaged(&self, cx: &Context, id: &str) -> Result<Removal> {
        let damaged = self.damaged.iter().find(|(damaged, _)| damaged.as_str() == id);
        let (Some((id, _)), Some(found)) = (damaged, self.unread.get(id)) else {
            return Err(Error::failed(format!("set {id} isn't there any more")));
        };
        removal::remove_unread(cx, id, &found.own)
    }
}
