//! Tells whether two clusters continued separately along one timeline: a pure function of when, and where in the WAL,
//! sets were taken.
//!
//! What could go wrong: PostgreSQL gives a restored cluster the number after the highest timeline whose history its
//! restore_command finds. So two restores of one set can both get timeline 2, with the same history, and nothing in
//! their sets' timelines distinguishes the cluster that lives from the one that was given up. But a primary's WAL
//! only grows: a set that was begun after another had ended begins after that one's end. If it doesn't, they are of
//! two clusters. This is a safety net, not proof: two clusters that each get further before the other's next set look
//! like one.
//!
//! A set that was taken with a wrong clock looks like the same. Nobody may be told to remove the other sets then. The
//! transaction groups of a pool only grow, whatever the clock says: they tell the order in which its snapshots were
//! taken. Where they don't tell, the hint names no set to remove. Sets dated in the future don't count at all.
//!
//! But if a pool itself goes back (`zpool import -T`, a snapshot of a virtual machine's disks), its transaction groups
//! do too: the first set after that looks like one taken earlier with a clock that was ahead, and is the good one.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use jiff::Timestamp;
use pgfiles::lsn::{Lsn, SystemIdentifier, TimelineId};
use serde::{Deserialize, Serialize};

use super::Member;
use crate::context::lockstep;
use crate::plan::strategy::Strategy;
use crate::process::quote;
use crate::retention;
use crate::set::manifest::{Manifest, path_text};

/// The primary that a set was taken from, and when. There is none for a standby's set: a standby may lag behind by
/// any amount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Primary {
    /// When the set was begun.
    pub begun: Timestamp,
    /// When it was complete.
    pub finished: Timestamp,
    /// How far the WAL had come while it was taken; `None` if only an older checkpoint's position is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Lsn>,
    /// The state_dir that took it.
    pub owner: String,
    /// The data directory that it was taken from.
    #[serde(with = "path_text")]
    pub data_directory: PathBuf,
    /// Its first snapshot; `None` in a note of an older version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<Taken>,
}

/// When a snapshot was taken, whatever the clock said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Taken {
    /// In which pool.
    pub pool: String,
    /// The pool's transaction group.
    pub createtxg: u64,
}

impl Primary {
    /// Returns that of a set; `None` for a standby's.
    pub(super) fn of(set: &Manifest) -> Option<Self> {
        // With other strategies, recovery may start at a checkpoint from before the set was begun.
        let at = match set.strategy {
            Strategy::Label => set.start_lsn,
            _ => set.floor(),
        };
        (!set.postgres.standby).then(|| Self {
            begun: set.started_at,
            finished: set.finished_at,
            at,
            owner: set.owner.clone(),
            data_directory: set.postgres.data_directory.clone(),
            snapshot: set
                .volumes
                .iter()
                .min_by_key(|volume| volume.order)
                .map(|volume| Taken { pool: volume.pool.clone(), createtxg: volume.createtxg }),
        })
    }

    fn createtxg(&self) -> Option<u64> {
        self.snapshot.as_ref().map(|taken| taken.createtxg)
    }

    /// Checks whether this set's snapshots are older than the other's; `None` if nobody knows.
    fn is_older(&self, other: &Self) -> Option<bool> {
        let (one, two) = (self.snapshot.as_ref()?, other.snapshot.as_ref()?);
        let is_of_one_pool = self.owner == other.owner && one.pool == two.pool;
        (is_of_one_pool && one.createtxg != two.createtxg).then_some(one.createtxg < two.createtxg)
    }
}

/// Two sets of one timeline that one cluster can't have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Apart {
    timeline: TimelineId,
    earlier: Side,
    later: Side,
    cause: Cause,
}

/// What the order of the snapshots tells.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Cause {
    /// The snapshots of the later set are the younger ones: the cluster went back. These sets that were taken before it
    /// go further in the WAL than where it was begun, oldest first.
    WentBack(Vec<String>),
    /// The clock was ahead when the later set was taken, or the pool went back before that: then these sets, oldest
    /// first, are of what was given up.
    Ahead(Vec<String>),
    /// The clock was behind when the earlier set was taken.
    Behind,
    /// Nobody knows.
    Unknown,
}

/// One of the two.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Side {
    set: String,
    /// Where the earlier one ends, or the later one was begun.
    at: Lsn,
    primary: Primary,
}

/// For each cluster's timelines, by system identifier: the two sets, of which the later one is the newest.
pub(super) type All = BTreeMap<(SystemIdentifier, TimelineId), Apart>;

/// Finds those among these sets. A set dated in the future is reported as that, and says nothing here.
pub(super) fn find(sets: &[Member], now: Timestamp) -> All {
    let mut by_timeline: BTreeMap<_, Vec<(&Member, &Primary)>> = BTreeMap::new();
    for set in sets.iter().filter(|set| !retention::is_ahead(&set.set, now)) {
        // If the clock was set back meanwhile, its times say nothing.
        if let Some(primary) = set.primary.as_ref().filter(|it| it.begun < it.finished) {
            let key = (set.system_identifier, set.timeline);
            by_timeline.entry(key).or_default().push((set, primary));
        }
    }
    let found = by_timeline.into_iter().map(|(key, sets)| (key, of_one(key.1, sets)));
    found.filter_map(|(key, apart)| Some((key, apart?))).collect()
}

fn of_one(timeline: TimelineId, mut sets: Vec<(&Member, &Primary)>) -> Option<Apart> {
    let side = |(set, primary): (&Member, &Primary), at| Side {
        set: set.set.clone(),
        at,
        primary: primary.clone(),
    };
    let all = sets.clone();
    let mut finished = sets.clone();
    finished.sort_by_key(|(set, primary)| (primary.finished, set.set.clone()));
    sets.sort_by_key(|(set, primary)| (primary.begun, set.set.clone()));
    let mut finished = finished.into_iter().peekable();
    let (mut furthest, mut found) = (None::<(Lsn, _)>, None);
    let mut ended = Vec::new();
    for later in sets {
        // Of two sets taken at the same time, nobody knows which position came first.
        while let Some(set) = finished.next_if(|(_, primary)| primary.finished <= later.1.begun) {
            let end = set.0.end.filter(|end| furthest.as_ref().is_none_or(|(far, _)| end > far));
            furthest = end.map(|end| (end, set)).or(furthest);
            ended.push(set);
        }
        if let (Some((end, earlier)), Some(at)) = (furthest, later.1.at)
            && at < end
        {
            let is_ahead = |set: &(&Member, &Primary)| set.0.end.is_some_and(|end| at < end);
            let ahead: Vec<_> = ended.iter().copied().filter(is_ahead).collect();
            found = Some((earlier, end, later, at, ahead));
        }
    }
    let (earlier, end, later, at, ahead) = found?;
    let cause = cause(&all, earlier, later, &ahead);
    Some(Apart { timeline, earlier: side(earlier, end), later: side(later, at), cause })
}

/// Finds out why `later` begins before the end of those that are `ahead`, of which `earlier` is one.
fn cause(
    all: &[(&Member, &Primary)],
    earlier: (&Member, &Primary),
    later: (&Member, &Primary),
    ahead: &[(&Member, &Primary)],
) -> Cause {
    let is_one_place = |it: &Primary| it.data_directory == later.1.data_directory;
    if !ahead.iter().all(|(_, it)| is_one_place(it)) {
        return Cause::Unknown;
    }
    let names = || ahead.iter().map(|(set, _)| set.set.clone()).collect();
    if ahead.iter().all(|(_, it)| it.is_older(later.1) == Some(true)) {
        return Cause::WentBack(names());
    }
    let is_comparable = |it: &Primary| it == later.1 || it.is_older(later.1).is_some();
    let pool: Vec<_> = all.iter().copied().filter(|(_, it)| is_comparable(it)).collect();
    if ahead.iter().any(|(_, it)| it.is_older(later.1) != Some(false)) || !is_in_order(&pool) {
        return Cause::Unknown;
    }
    match (is_explained(&pool, earlier.1), is_explained(&pool, later.1)) {
        (true, false) => Cause::Behind,
        (false, true) => Cause::Ahead(names()),
        _ => Cause::Unknown,
    }
}

/// Checks that the WAL grows with the pool's transaction groups. If the pool was made anew, or the cluster went back
/// at any time, it doesn't.
fn is_in_order(pool: &[(&Member, &Primary)]) -> bool {
    let mut sets = pool.to_vec();
    sets.sort_by_key(|(_, it)| it.createtxg());
    let mut furthest = None;
    sets.into_iter().all(|(set, it)| {
        let is_next = it.at.is_none_or(|at| furthest.is_none_or(|end| end <= at));
        furthest = furthest.max(set.end);
        is_next
    })
}

/// Checks whether the date of this set alone is wrong: without it, the others' dates are in the order of their
/// snapshots, and its own agrees with one of them at least. Else it may be of another pool that had the same name.
fn is_explained(pool: &[(&Member, &Primary)], wrong: &Primary) -> bool {
    let mut others: Vec<_> = pool.iter().map(|(_, it)| *it).filter(|it| *it != wrong).collect();
    others.sort_by_key(|it| it.begun);
    let agrees = |it: &&Primary| wrong.is_older(it) == Some(wrong.begun < it.begun);
    others.is_sorted_by_key(|it| it.createtxg()) && others.iter().any(agrees)
}

impl Apart {
    /// Returns what to do. A set to remove is named only if it is certain which one that is.
    #[must_use]
    pub fn hint(&self) -> String {
        const PLACES: &str = "with --repository NAME and with --local";
        const ROLLED_BACK: &str = "were the cluster's datasets rolled back (`zfs rollback`), or their content replaced by an older state? Then remove the sets of what was given up: ";
        let lockstep = lockstep();
        let sets =
            |all: &[String]| all.iter().map(|set| format!(" --set {set}")).collect::<String>();
        if let Cause::Ahead(given_up) = &self.cause {
            return format!(
                "was the clock ahead when set {0} was taken? `latest` and --target-time go by a set's date: remove it, once a newer backup is there: `{lockstep} prune --set {0}`, {PLACES}. Or did the pool itself go back to an older state (`zpool import -T`, a snapshot of its disks or of the machine)? Then {0} is the living one, and those of what was given up go: `{lockstep} prune{1}`, {PLACES}",
                self.later.set,
                sets(given_up)
            );
        }
        if let Some(wrong) = self.misdated() {
            return format!(
                "is the clock right now? `latest` and --target-time go by a set's date, and this one's is wrong. Remove it, once a newer backup is there: `{lockstep} prune --set {wrong}`, {PLACES}"
            );
        }
        let which = format!(
            "which of the two is the live one? End the backups of the other one, and remove its sets: `{lockstep} prune --set ID`, with --repository NAME or --local. A history of timeline {} that restore_command finds lets the next restore take another number (docs/archive.md)",
            self.timeline
        );
        match &self.cause {
            Cause::WentBack(given_up) => {
                let named = sets(given_up);
                format!("{ROLLED_BACK}`{lockstep} prune{named}`, {PLACES}. Otherwise: {which}")
            }
            _ if self.is_one_place() => format!(
                "was the clock wrong when one of the two was taken? Then remove that set alone: `{lockstep} prune --set ID`, {PLACES}. If it was right: {ROLLED_BACK}the same command. Otherwise: {which}"
            ),
            _ => format!(
                "{which}. If there is only one cluster: was the clock wrong when one of the two was taken? Then remove that set"
            ),
        }
    }

    /// Returns the set that was certainly taken with a wrong clock.
    fn misdated(&self) -> Option<&str> {
        match self.cause {
            Cause::Behind => Some(&self.earlier.set),
            Cause::Ahead(_) | Cause::WentBack(_) | Cause::Unknown => None,
        }
    }

    /// Returns a warning about a chosen set, if it may be the wrong one.
    pub(super) fn doubt(&self, chosen: &str) -> Option<String> {
        if let Cause::Ahead(_) = self.cause {
            let is_it = self.later.set == chosen;
            return is_it.then(|| format!("its date may be wrong: {self}. {}", self.hint()));
        }
        match self.misdated() {
            Some(wrong) => {
                (wrong == chosen).then(|| format!("its date is wrong: {self}. {}", self.hint()))
            }
            None => {
                Some(format!("it may be of the cluster that was given up: {self}. {}", self.hint()))
            }
        }
    }

    /// Checks whether both sets are of one data directory: the cluster in it may have been put back to an older state.
    fn is_one_place(&self) -> bool {
        let of = |side: &Side| (side.primary.owner.clone(), side.primary.data_directory.clone());
        of(&self.earlier) == of(&self.later)
    }
}

/// For use in a sentence: `two clusters went on along timeline 2: set … was begun at …`.
impl fmt::Display for Apart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { timeline, earlier, later, .. } = self;
        match self.cause {
            Cause::Ahead(_) => {
                return write!(
                    f,
                    "the clock was wrong when set {} was taken, or the pool went back before that: by its date it comes after set {}, which goes to {}, but it was begun at {}, and its snapshots are the older ones",
                    later.set, earlier.set, earlier.at, later.at
                );
            }
            Cause::Behind => {
                return write!(
                    f,
                    "the clock was wrong when set {} was taken: by its date it comes before set {}, which was begun at {}, but it goes to {}, and its snapshots are the younger ones",
                    earlier.set, later.set, later.at, earlier.at
                );
            }
            Cause::WentBack(_) | Cause::Unknown => {}
        }
        let whose = |side: &Side| {
            let directory = side.primary.data_directory.display().to_string();
            format!("of {}, by state_dir {}", quote(&directory), side.primary.owner)
        };
        let who = match self.is_one_place() {
            true => "the cluster went back, or two went on,",
            false => "two clusters went on",
        };
        write!(
            f,
            "{who} along timeline {timeline}: set {} ({}) was begun at {}, and set {} ({}), taken before it, goes to {}",
            later.set,
            whose(later),
            later.at,
            earlier.set,
            whose(earlier),
            earlier.at
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::set::branches::Branches;
    use crate::set::manifest::tests::{manifest, volume};

    /// A primary's set that takes two seconds: its recovery starts at 0/`start`000000, and it holds everything up to
    /// 0/`floor`000000.
    fn set(second: u32, start: u64, floor: u64, data: &str) -> Manifest {
        let time = |second| format!("2026-11-23T19:45:{second:02}Z").parse().unwrap();
        let mut set = manifest(&format!("20261123T1945{second:02}Z-k3fa"), vec![]);
        set.postgres.standby = false;
        set.postgres.timeline = TimelineId::new(2).unwrap();
        set.postgres.data_directory = data.into();
        (set.started_at, set.finished_at) = (time(second), time(second + 2));
        set.start_lsn = Some(Lsn::new(start << 24));
        set.floor_lsn = Some(Lsn::new(floor << 24));
        set.stop_lsn = set.floor_lsn;
        in_group(set, second)
    }

    /// The same set, whose snapshot was taken in this transaction group.
    fn in_group(mut set: Manifest, createtxg: u32) -> Manifest {
        set.volumes = vec![volume("tank/data", &[])];
        set.volumes[0].createtxg = createtxg.into();
        set
    }

    /// A time after that of all sets.
    fn now() -> Timestamp {
        "2026-11-24T00:00:00Z".parse().unwrap()
    }

    fn branches(sets: &[Manifest]) -> Branches {
        Branches::of(sets.iter().map(Member::from), now())
    }

    /// Returns what is said about the newest.
    fn said(sets: &[Manifest]) -> Option<String> {
        let branches = branches(sets);
        let again = Branches::of(sets.iter().rev().map(Member::from), now());
        let newest = sets.last().unwrap();
        assert_eq!(branches.apart(newest), again.apart(newest));
        branches.apart(newest).map(ToString::to_string)
    }

    #[test]
    fn two_restores_of_one_set_are_told_apart() {
        let mut sets = vec![set(1, 4, 5, "/first"), set(11, 5, 6, "/first")];
        assert_eq!(said(&sets), None);
        // The other cluster's first set: its WAL has come as far as that of the one that was given up had.
        sets.push(set(21, 5, 6, "/second"));
        let words = said(&sets).unwrap();
        assert!(words.contains("along timeline 2: set 20261123T194521Z-k3fa"), "{words}");
        for word in ["/first", "/second", "begun at 0/5000000", "goes to 0/6000000"] {
            assert!(words.contains(word), "{words}");
        }
        // The first one's timer continues: its newest set shows no conflict, but the two are still there.
        sets.push(set(31, 7, 8, "/first"));
        assert_eq!(said(&sets).unwrap(), words);
        // The sets of the one that was given up are removed.
        assert_eq!(said(&sets[2..3]), None);
        sets.remove(2);
        assert_eq!(said(&sets), None);
    }

    #[test]
    fn a_rollback_of_the_datasets_is_one_cluster_s() {
        let mut sets = vec![set(1, 3, 4, "/a"), set(11, 5, 6, "/a"), set(21, 7, 8, "/a")];
        // The datasets were rolled back to the first one's snapshots.
        sets.push(set(31, 5, 6, "/a"));
        let found = branches(&sets);
        let apart = found.apart(&sets[3]).unwrap();
        assert!(apart.to_string().starts_with("the cluster went back, or two went on, along"));
        let given_up = format!("prune --set {} --set {}`", sets[1].set, sets[2].set);
        assert!(apart.hint().contains(&given_up), "{}", apart.hint());
        // Another state_dir, or another place: two clusters.
        sets[3].owner = "another".into();
        let found = branches(&sets);
        let apart = found.apart(&sets[3]).unwrap();
        assert!(apart.to_string().starts_with("two clusters went on along"), "{apart}");
        assert!(!apart.hint().contains("rolled back"), "{}", apart.hint());
    }

    /// Names what the hint says to remove.
    fn named(found: &Branches, sets: &[Manifest]) -> Vec<usize> {
        let hint = found.apart(&sets[0]).unwrap().hint();
        let is_named = |set: &Manifest| hint.contains(&format!("--set {}", set.set));
        (0..sets.len()).filter(|at| is_named(&sets[*at])).collect()
    }

    /// The disks of the machine went back to before the third set, and the fourth was taken soon after that.
    #[test]
    fn a_pool_that_went_back_is_asked_about() {
        let sets = [
            set(1, 1, 2, "/a"),
            set(11, 3, 4, "/a"),
            set(31, 6, 7, "/a"),
            set(41, 8, 9, "/a"),
            in_group(set(51, 4, 5, "/a"), 15),
        ];
        let found = branches(&sets);
        let hint = found.apart(&sets[0]).unwrap().hint();
        let (good, given_up) =
            (&sets[4].set, format!("--set {} --set {}`", sets[2].set, sets[3].set));
        assert!(hint.contains(&format!("Then {good} is the living one")), "{hint}");
        assert!(hint.contains(&given_up), "{hint}");
        assert!(found.doubt(&sets[4]).unwrap().starts_with("its date may be wrong: the clock"));
    }

    #[test]
    fn the_set_of_a_wrong_clock_is_named_first() {
        // The second one is dated ahead of those that were taken after it.
        let mut sets = vec![
            set(1, 3, 4, "/a"),
            in_group(set(41, 4, 5, "/a"), 11),
            set(21, 5, 6, "/a"),
            set(31, 7, 8, "/a"),
        ];
        let found = branches(&sets);
        let words = found.apart(&sets[0]).unwrap().to_string();
        let begin =
            format!("the clock was wrong when set {} was taken, or the pool went", sets[1].set);
        assert!(words.starts_with(&begin), "{words}");
        let begin = format!("was the clock ahead when set {} was taken? ", sets[1].set);
        let hint = |found: &Branches| found.apart(&sets[0]).unwrap().hint();
        assert!(hint(&found).starts_with(&begin), "{}", hint(&found));
        assert_eq!(found.doubt(&sets[3]), None);
        assert!(found.doubt(&sets[1]).unwrap().starts_with("its date may be wrong: the clock"));
        // As long as its date is in the future, that is what is reported of it.
        let before = "2026-11-23T19:40:00Z".parse().unwrap();
        let mut ahead = sets.clone();
        ahead[1].set = "20261124T194541Z-k3fa".parse().unwrap();
        ahead[1].started_at = "2026-11-24T19:45:41Z".parse().unwrap();
        ahead[1].finished_at = "2026-11-24T19:45:43Z".parse().unwrap();
        assert!(branches(&ahead).apart(&ahead[0]).is_none());
        assert!(Branches::of(sets.iter().map(Member::from), before).apart(&sets[0]).is_none());
        // More sets don't change what is named.
        let more = [&sets[..], &[set(51, 9, 10, "/a")]].concat();
        assert!(hint(&branches(&more)).starts_with(&begin), "{}", hint(&branches(&more)));
        sets.push(more[4].clone());
        // Nobody knows which of these two has the wrong date.
        assert_eq!(named(&branches(&sets[..3]), &sets[..3]), [0; 0]);
        // Nothing tells the order: the question about the clock comes first, and no set is named.
        let untold: Vec<_> = sets.iter().map(|set| in_group(set.clone(), 1)).collect();
        let found = branches(&untold);
        assert_eq!(named(&found, &untold), [0; 0]);
        let hint = found.apart(&untold[0]).unwrap().hint();
        assert!(hint.starts_with("was the clock wrong") && hint.contains("rolled back"), "{hint}");
    }

    #[test]
    fn a_clock_that_was_behind_is_told_from_one_that_was_ahead() {
        // The third one is dated before all others.
        let sets = [
            set(11, 3, 4, "/a"),
            set(21, 5, 6, "/a"),
            in_group(set(1, 7, 8, "/a"), 31),
            set(41, 9, 10, "/a"),
        ];
        assert_eq!(named(&branches(&sets), &sets), [2]);
    }

    #[test]
    fn a_pool_that_was_made_anew_names_no_set() {
        let old = [set(21, 7, 8, "/a"), set(31, 9, 10, "/a")];
        // Its transaction groups begin at the first again, and the cluster in it at an older state.
        let mut sets = old.to_vec();
        sets.push(in_group(set(41, 5, 6, "/a"), 2));
        assert_eq!(named(&branches(&sets), &sets), [0; 0]);
        sets.push(in_group(set(51, 8, 9, "/a"), 25));
        assert_eq!(named(&branches(&sets), &sets), [0; 0]);
    }

    #[test]
    fn one_cluster_s_sets_say_nothing() {
        // Two at once, by two state_dirs: the later one begins before the other ends.
        assert_eq!(said(&[set(1, 4, 6, "/a"), set(2, 5, 7, "/a")]), None);
        // Without a label of its own, recovery may start at the checkpoint before both.
        let ordered = |second, floor| Manifest {
            strategy: Strategy::Ordered,
            stop_lsn: None,
            ..set(second, 4, floor, "/a")
        };
        assert_eq!(said(&[ordered(1, 6), ordered(11, 7)]), None);
        assert!(said(&[ordered(1, 6), ordered(11, 5)]).is_some());
        // And without a connection nobody knows how far it had come.
        let unknown = Manifest { floor_lsn: None, ..ordered(11, 5) };
        assert_eq!(said(&[ordered(1, 6), unknown]), None);
        // Shut down, and taken twice.
        let cold = |second| Manifest {
            strategy: Strategy::Cold,
            floor_lsn: None,
            stop_lsn: None,
            ..set(second, 6, 0, "/a")
        };
        assert_eq!(said(&[set(1, 5, 6, "/a"), cold(11), cold(21), set(31, 7, 8, "/a")]), None);
        // A standby is behind, or its clock is.
        let standby = |second, floor| {
            let mut set = set(second, 4, floor, "/b");
            set.postgres.standby = true;
            set
        };
        assert_eq!(said(&[set(1, 5, 6, "/a"), standby(11, 5)]), None);
        assert_eq!(said(&[standby(1, 7), set(11, 6, 8, "/a")]), None);
        // The clock was set back while one was taken: it doesn't count as one that ended before it began.
        let mut back = set(11, 6, 7, "/a");
        back.finished_at = back.started_at;
        assert_eq!(said(&[set(1, 5, 6, "/a"), back]), None);
        // Another timeline, another cluster.
        let mut other = set(11, 4, 5, "/a");
        other.postgres.timeline = TimelineId::new(3).unwrap();
        assert_eq!(said(&[set(1, 5, 6, "/a"), other.clone()]), None);
        other.postgres.timeline = TimelineId::new(2).unwrap();
        other.postgres.system_identifier = SystemIdentifier::new(8);
        assert_eq!(said(&[set(1, 5, 6, "/a"), other]), None);
    }
}
