//! Tells which sets are on the branch that the cluster lives on, and which on one that it has left: a pure function
//! of the sets' timelines and the histories that they know.
//!
//! What could go wrong: after a failover, or after a restore that takes the cluster's place, the host that was left
//! keeps running. Its timer takes a set each night, complete and younger than all others, of data that nobody wants
//! any more. So the cluster lives on the highest timeline that it has a set of. A set of another timeline is left
//! behind if its data goes beyond the point where the living branch left that timeline, or if it was taken after the
//! living branch had begun: it holds less than the living branch's sets. If histories don't tell, no set is left
//! behind. A set that can't be read may be of a higher timeline than all others: then nobody knows which set is the
//! latest. Two clusters along one timeline are told apart by their sets' positions in the WAL (`branches/apart.rs`).

mod apart;

use std::collections::BTreeMap;
use std::fmt;

use jiff::Timestamp;
use pgfiles::lsn::{Lsn, SystemIdentifier, TimelineId};
use pgfiles::timeline_history::TimelineHistory;
use serde::{Deserialize, Serialize};

use super::manifest::{Manifest, Switch};
use crate::context::lockstep;
use crate::error::{Error, Result};
use crate::refusal::Refusal;
use crate::words;

pub use apart::{Apart, Primary};

/// What has to be known about a set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    /// Its id.
    pub set: String,
    /// Its cluster's: timelines of two clusters must not be compared.
    pub system_identifier: SystemIdentifier,
    /// The timeline that it was taken on.
    pub timeline: TimelineId,
    /// How far its data goes.
    pub end: Option<Lsn>,
    /// The history of its timeline.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<Switch>,
    /// The primary that it was taken from; `None` for a standby's set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub primary: Option<Primary>,
}

impl From<&Manifest> for Member {
    fn from(set: &Manifest) -> Self {
        Self {
            set: set.set.to_string(),
            system_identifier: set.postgres.system_identifier,
            timeline: set.timeline(),
            end: set.end(),
            history: set.postgres.history.clone(),
            primary: Primary::of(set),
        }
    }
}

/// The branches that the clusters live on, by system identifier.
#[derive(Debug, Clone, Default)]
pub struct Branches {
    living: BTreeMap<SystemIdentifier, Living>,
    apart: apart::All,
    /// Sets that can't be read, and why.
    untold: BTreeMap<String, String>,
}

#[derive(Debug, Clone)]
struct Living {
    timeline: TimelineId,
    oldest: String,
    newest: String,
    /// Along with the set that told it: the newest that can.
    history: Option<(String, TimelineHistory)>,
}

/// Why a set is left behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftBehind {
    /// The set.
    pub set: String,
    /// Its timeline.
    pub timeline: TimelineId,
    /// Where that was left; `None` if it isn't an ancestor.
    pub at: Option<Lsn>,
    /// Its data goes beyond that.
    pub is_beyond: bool,
    /// The timeline that the cluster lives on.
    pub to: TimelineId,
    /// The newest set of that timeline.
    pub newest: String,
}

/// Sets that are left behind and would have been the latest, newest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PassedOver(Vec<LeftBehind>);

impl Branches {
    /// Finds the branches of these sets, in any order.
    #[must_use]
    pub fn of(sets: impl IntoIterator<Item = Member>, now: Timestamp) -> Self {
        let sets: Vec<_> = sets.into_iter().collect();
        let mut all = Self { apart: apart::find(&sets, now), ..Self::default() };
        sets.into_iter().for_each(|set| all.add(set));
        all
    }

    /// Adds sets whose timeline nobody knows, because they can't be read.
    #[must_use]
    pub fn beside<'a>(
        mut self,
        damaged: impl IntoIterator<Item = (impl fmt::Display, &'a Error)>,
    ) -> Self {
        let untold = damaged.into_iter().map(|(set, error)| (set.to_string(), error.chain()));
        self.untold.extend(untold);
        self
    }

    /// Returns the sets whose timeline nobody knows, and why.
    pub fn untold(&self) -> impl Iterator<Item = (&str, &str)> {
        self.untold.iter().map(|(set, why)| (set.as_str(), why.as_str()))
    }

    /// Checks that the latest set is the one that was found: the cluster may live on the timeline of one that can't
    /// be read. `repository` is the place, if it isn't this host.
    ///
    /// # Errors
    /// [`Refusal::LatestUnknown`].
    pub fn assert_told(&self, found: &str, repository: Option<&str>) -> Result<()> {
        let Some((set, why)) = self.untold.last_key_value() else { return Ok(()) };
        Err(Refusal::LatestUnknown {
            set: set.clone(),
            why: why.clone(),
            found: found.to_owned(),
            repository: repository.map(str::to_owned),
        }
        .into())
    }

    /// Returns two sets of this set's timeline that are of two clusters, or of which one's date is wrong.
    #[must_use]
    pub fn apart(&self, set: &Manifest) -> Option<&Apart> {
        self.apart.get(&(set.postgres.system_identifier, set.timeline()))
    }

    /// Whether the sets of this set's timeline are of two clusters, or one of their dates is wrong.
    #[must_use]
    pub fn is_of_two(&self, set: &Member) -> bool {
        self.apart.contains_key(&(set.system_identifier, set.timeline))
    }

    /// Returns a warning about a chosen set, if it may be of the wrong one of two clusters, or its date is wrong.
    #[must_use]
    pub fn doubt(&self, chosen: &Manifest) -> Option<String> {
        self.apart(chosen)?.doubt(chosen.set.as_str())
    }

    fn add(&mut self, set: Member) {
        let history = history(set.timeline, &set.history).map(|told| (set.set.clone(), told));
        let first = || Living {
            timeline: set.timeline,
            oldest: set.set.clone(),
            newest: set.set.clone(),
            history: None,
        };
        let living = self.living.entry(set.system_identifier).or_insert_with(first);
        if living.timeline > set.timeline {
            return;
        }
        if living.timeline < set.timeline {
            *living = first();
        }
        if let Some((by, _)) = &history
            && living.history.as_ref().is_none_or(|(before, _)| before < by)
        {
            living.history = history;
        }
        living.oldest = living.oldest.clone().min(set.set.clone());
        living.newest = living.newest.clone().max(set.set);
    }

    /// Whether a set is left behind, and why.
    #[must_use]
    pub fn left(&self, set: &Member) -> Option<LeftBehind> {
        let living = self.living.get(&set.system_identifier)?;
        let (_, history) = living.history.as_ref().filter(|_| set.timeline < living.timeline)?;
        let at = history.switch_point(set.timeline);
        let is_beyond = match (at, set.end) {
            (None, _) => true,
            (Some(_), Some(end)) => !history.contains(set.timeline, end),
            (Some(_), None) => false,
        };
        (is_beyond || set.set > living.oldest).then(|| LeftBehind {
            set: set.set.clone(),
            timeline: set.timeline,
            at,
            is_beyond,
            to: living.timeline,
            newest: living.newest.clone(),
        })
    }

    /// The same for a manifest.
    #[must_use]
    pub fn left_behind(&self, set: &Manifest) -> Option<LeftBehind> {
        self.left(&set.into())
    }

    /// Returns the first of these sets, newest first, that isn't left behind, and those before it that are.
    #[must_use]
    pub fn newest<T>(
        &self,
        sets: impl IntoIterator<Item = T>,
        manifest: impl Fn(&T) -> &Manifest,
    ) -> (Option<T>, PassedOver) {
        let mut passed_over = Vec::new();
        let found = sets.into_iter().find(|set| {
            let left = self.left_behind(manifest(set));
            passed_over.extend(left.clone());
            left.is_none()
        });
        (found, PassedOver(passed_over))
    }
}

impl PassedOver {
    /// Describes them; `None` if there are none.
    #[must_use]
    pub fn said(&self) -> Option<String> {
        let first = self.0.first()?;
        let sets: Vec<_> = self.0.iter().map(|left| left.set.clone()).collect();
        Some(format!("passed over as \"latest\": {}: {first}", words::a_few(&sets)))
    }
}

impl LeftBehind {
    /// Returns what to do.
    #[must_use]
    pub fn hint(&self) -> String {
        format!(
            "does a host still back up a cluster that a failover or a restore has replaced? End its backups, or make it a standby (pg_rewind, `restore --standby`). If timeline {} is that of a copy and doesn't belong here, remove its sets: `{} prune --set {}`, with --repository NAME or --local",
            self.to,
            lockstep(),
            self.newest
        )
    }

    /// Describes where its timeline was left, for the end of a sentence: `timeline 1, which was left at …`.
    #[must_use]
    pub fn where_left(&self) -> String {
        let Self { timeline, at, is_beyond, to, newest, .. } = self;
        match (at, is_beyond) {
            (Some(at), true) => format!(
                "timeline {timeline}, which was left at {at}, before its end, for timeline {to}, whose newest set is {newest}"
            ),
            (Some(at), false) => format!(
                "timeline {timeline}, which had been left at {at} by then for timeline {to}, whose newest set is {newest}"
            ),
            (None, _) => format!(
                "timeline {timeline}, which isn't on the way to timeline {to}, whose newest set is {newest}"
            ),
        }
    }
}

/// For use in a sentence: `set … is left behind: it is of timeline 1, which …`.
impl fmt::Display for LeftBehind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "set {} is left behind: it is of {}", self.set, self.where_left())
    }
}

/// Makes a timeline's history of what a manifest tells; `None` if it tells nothing, or nonsense.
#[must_use]
pub fn history(of: TimelineId, told: &[Switch]) -> Option<TimelineHistory> {
    let switches = told.iter().map(|switch| (switch.timeline, switch.lsn));
    TimelineHistory::from_switches(of, switches).ok().filter(|_| !told.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A set whose data goes to 0/`end`000000.
    fn member(second: u32, timeline: u32, end: u64, history: &[(u32, u64)]) -> Member {
        let tli = |number| TimelineId::new(number).unwrap();
        let lsn = |high| Lsn::new(high << 24);
        let switch =
            |(timeline, at): &(u32, u64)| Switch { timeline: tli(*timeline), lsn: lsn(*at) };
        Member {
            set: format!("20261123T1945{second:02}Z-k3fa"),
            system_identifier: SystemIdentifier::new(7),
            timeline: tli(timeline),
            end: Some(lsn(end)),
            history: history.iter().map(switch).collect(),
            primary: None,
        }
    }

    /// Returns for each set where its timeline was left.
    fn left(sets: &[Member]) -> Vec<Option<String>> {
        let now = "2026-11-24T00:00:00Z".parse().unwrap();
        // In whatever order they come.
        let branches = Branches::of(sets.iter().rev().cloned(), now);
        let again = Branches::of(sets.iter().cloned(), now);
        let words = |branches: &Branches, set| branches.left(set).map(|left| left.where_left());
        let found: Vec<_> = sets.iter().map(|set| words(&branches, set)).collect();
        assert_eq!(found, sets.iter().map(|set| words(&again, set)).collect::<Vec<_>>());
        found
    }

    fn says(found: &Option<String>, words: &str) -> bool {
        found.as_ref().is_some_and(|found| found.contains(words))
    }

    #[test]
    fn what_the_old_host_takes_after_a_failover_is_left_behind() {
        let sets = [
            member(1, 1, 4, &[]),
            // Taken before anybody was promoted, and ends right there.
            member(2, 1, 5, &[]),
            // The new host didn't get this any more.
            member(3, 1, 6, &[]),
            member(4, 2, 6, &[(1, 5)]),
            member(5, 1, 8, &[]),
            // Its old primary was shut down at the switch, and stays so.
            member(6, 1, 5, &[]),
            member(7, 2, 9, &[(1, 5)]),
        ];
        let found = left(&sets);
        let is_left: Vec<_> = found.iter().map(Option::is_some).collect();
        assert_eq!(is_left, [false, false, true, false, true, true, false], "{found:?}");
        assert!(says(&found[4], "left at 0/5000000, before its end, for timeline 2"), "{found:?}");
        assert!(says(&found[4], &sets[6].set), "{found:?}");
        assert!(says(&found[5], "had been left at 0/5000000 by then"), "{found:?}");
    }

    #[test]
    fn one_timeline_and_unknown_histories_leave_nothing_behind() {
        assert_eq!(left(&[member(1, 1, 4, &[]), member(2, 1, 5, &[])]), [None, None]);
        // Sets from before histories were recorded.
        assert_eq!(left(&[member(1, 2, 4, &[]), member(2, 1, 9, &[])]), [None, None]);
        // One that tells it is enough.
        let told = [member(1, 2, 6, &[(1, 5)]), member(2, 2, 7, &[]), member(3, 1, 9, &[])];
        let found = left(&told);
        assert!(says(&found[2], "timeline 1, which was left at 0/5000000"), "{found:?}");
        assert!(says(&found[2], &told[1].set), "{found:?}");
        // Nonsense counts as nothing.
        assert_eq!(left(&[member(1, 2, 4, &[(2, 3)]), member(2, 1, 9, &[])]), [None, None]);
    }

    #[test]
    fn a_timeline_that_leads_nowhere_is_left_behind_from_its_beginning() {
        // 2 and 3 both come from 1.
        let sets = [
            member(1, 1, 5, &[]),
            member(2, 2, 6, &[(1, 5)]),
            member(3, 3, 6, &[(1, 5)]),
            member(4, 2, 7, &[(1, 5)]),
        ];
        let found = left(&sets);
        assert_eq!((&found[0], &found[2]), (&None, &None));
        assert!(says(&found[1], "isn't on the way to timeline 3"), "{found:?}");
        assert!(says(&found[3], "isn't on the way to timeline 3"), "{found:?}");
    }

    #[test]
    fn clusters_with_another_identifier_are_not_compared() {
        // pg_upgrade begins at timeline 1 again.
        let upgraded =
            Member { system_identifier: SystemIdentifier::new(8), ..member(9, 1, 9, &[]) };
        assert_eq!(left(&[member(1, 2, 4, &[(1, 3)]), upgraded]), [None, None]);
    }

    #[test]
    fn one_that_does_not_say_how_far_it_goes_is_judged_by_when_it_was_taken() {
        let endless = |second| Member { end: None, ..member(second, 1, 0, &[]) };
        let found = left(&[endless(1), member(2, 2, 6, &[(1, 5)]), endless(3)]);
        assert_eq!(found[..2], [None, None]);
        assert!(says(&found[2], "had been left"), "{found:?}");
    }
}
