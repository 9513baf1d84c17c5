//! Tells whether two clusters continued separately along one timeline: a pure function of when, and where in the WAL,
//! sets were taken.
//!
//! What could go wrong: PostgreSQL gives a restored cluster the number after the highest timeline whose history its
//! restore_command finds. So two restores of one set can both get timeline 2, with the same history, and nothing in
//! their sets' timelines distinguishes the cluster that lives from the one that was given up. But a primary's WAL
//! only grows: a set that was begun after another had ended begins after that one's end. If it doesn't, they are of
//! two clusters. This is a safety net, not proof: two clusters that each get further before the other's next set look
//! like one.

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
        })
    }
}

/// Two sets of one timeline that one cluster can't have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Apart {
    timeline: TimelineId,
    earlier: Side,
    later: Side,
    /// The sets taken before the later one that go further in the WAL than where it was begun, oldest first.
    ahead: Vec<String>,
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

/// Finds those among these sets.
pub(super) fn find(sets: &[Member]) -> All {
    let mut by_timeline: BTreeMap<_, Vec<(&Member, &Primary)>> = BTreeMap::new();
    for set in sets {
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
            ended.push(set.0);
        }
        if let (Some((end, earlier)), Some(at)) = (furthest, later.1.at)
            && at < end
        {
            let (earlier, later) = (side(earlier, end), side(later, at));
            let ahead = ended.iter().filter(|set| set.end.is_some_and(|end| at < end));
            let ahead = ahead.map(|set| set.set.clone()).collect();
            found = Some(Apart { timeline, earlier, later, ahead });
        }
    }
    found
}

impl Apart {
    /// Returns what to do.
    #[must_use]
    pub fn hint(&self) -> String {
        let lockstep = lockstep();
        let rolled_back = match self.is_one_place() {
            true => {
                let named: String = self.ahead.iter().map(|set| format!(" --set {set}")).collect();
                format!(
                    "were the cluster's datasets rolled back (`zfs rollback`), or their content replaced by an older state? Then remove the sets of what was given up: `{lockstep} prune{named}`, with --repository NAME and with --local. Otherwise: "
                )
            }
            false => String::new(),
        };
        format!(
            "{rolled_back}which of the two is the live one? End the backups of the other one, and remove its sets: `{lockstep} prune --set ID`, with --repository NAME or --local. A history of timeline {} that restore_command finds lets the next restore take another number (docs/archive.md). If there is only one cluster: was the clock wrong when one of the two was taken? Then remove that set",
            self.timeline
        )
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
    use crate::set::manifest::tests::manifest;

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
        set
    }

    /// Returns what is said about the newest.
    fn said(sets: &[Manifest]) -> Option<String> {
        let branches = Branches::of(sets.iter().map(Member::from));
        let again = Branches::of(sets.iter().rev().map(Member::from));
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
        let branches = Branches::of(sets.iter().map(Member::from));
        let apart = branches.apart(&sets[3]).unwrap();
        assert!(apart.to_string().starts_with("the cluster went back, or two went on, along"));
        let given_up = format!("prune --set {} --set {}`", sets[1].set, sets[2].set);
        assert!(apart.hint().contains(&given_up), "{}", apart.hint());
        // Another state_dir, or another place: two clusters.
        sets[3].owner = "another".into();
        let branches = Branches::of(sets.iter().map(Member::from));
        let apart = branches.apart(&sets[3]).unwrap();
        assert!(apart.to_string().starts_with("two clusters went on along"), "{apart}");
        assert!(!apart.hint().contains("rolled back"), "{}", apart.hint());
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
