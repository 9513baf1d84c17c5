//! Tells which sets are on the way to the timeline that recovery will follow.
//!
//! What could go wrong: after a recovery to a point in time, the cluster continues on a new timeline, and there are
//! sets of the old timeline that are younger than its beginning. Recovery from such a set ends with an error if it
//! follows the new timeline. If it follows the old one, it leads to a state that the cluster as it is now never had.
//! Only histories show this: PostgreSQL gets them from restore_command, and a set of a later timeline carries its
//! own, or its manifest tells it. A set that they don't cover isn't chosen automatically. After pg_upgrade, a cluster
//! has another system identifier and begins at timeline 1 again: timelines are recorded by identifier, and say
//! nothing about another identifier's.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;

use pgfiles::lsn::{Lsn, SystemIdentifier, TimelineId};
use pgfiles::timeline_history::TimelineHistory;

use crate::error::{Error, Result};
use crate::postgres::target::Recovery;
use crate::set::branches::{self, Member};
use crate::set::manifest::Manifest;
use crate::words;

/// Asks for a timeline's history; `None` if it isn't available.
pub(super) type Ask<'a> = Box<dyn Fn(TimelineId) -> Result<Option<Vec<u8>>> + 'a>;
/// Reads a file of a set.
pub(super) type ReadFile<'a> = Box<dyn Fn(&Manifest, &str) -> Result<Vec<u8>> + 'a>;

/// How many sets are remembered for a timeline's history: one of them may be damaged.
const CARRIERS: usize = 3;

/// A timeline of a cluster, by its system identifier.
type Line = (SystemIdentifier, TimelineId);

/// What is known of the timelines.
pub(super) struct Timelines<'a> {
    recovery: &'a Recovery,
    /// Gets histories from restore_command.
    ask: Ask<'a>,
    read: ReadFile<'a>,
    asked: RefCell<BTreeMap<TimelineId, Option<TimelineHistory>>>,
    /// What the manifests of sets tell.
    told: BTreeMap<Line, TimelineHistory>,
    /// For each timeline, the sets that carry its history.
    carriers: BTreeMap<Line, Vec<Manifest>>,
    /// For each cluster, the latest timeline of a set that recovery could begin with.
    latest: BTreeMap<SystemIdentifier, TimelineId>,
}

/// Whether a set is on the way.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// It is on the way.
    Leads,
    /// Its timeline was left before the set's end.
    Left(Left),
    /// The history of this timeline is needed to tell.
    Unknown(TimelineId),
}

/// Where a set's timeline was left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Left {
    set: String,
    timeline: TimelineId,
    /// `None` if it isn't an ancestor.
    at: Option<Lsn>,
    to: TimelineId,
}

/// For use in a sentence: `set … is of timeline 1, which was left …`.
impl fmt::Display for Left {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Left { set, timeline, at, to } = self;
        match at {
            Some(at) => write!(
                f,
                "set {set} is of timeline {timeline}, which was left at {at}, before the set's end, on the way to timeline {to}"
            ),
            None => write!(
                f,
                "set {set} is of timeline {timeline}, which isn't on the way to timeline {to}"
            ),
        }
    }
}

impl<'a> Timelines<'a> {
    pub(super) fn new(recovery: &'a Recovery, ask: Ask<'a>, read: ReadFile<'a>) -> Self {
        let (told, carriers) = (BTreeMap::new(), BTreeMap::new());
        let (asked, latest) = (RefCell::default(), BTreeMap::new());
        Self { recovery, ask, read, asked, told, carriers, latest }
    }

    /// Records a set, from which recovery `could_begin`.
    pub(super) fn learn(&mut self, set: &Manifest, could_begin: bool) {
        let line = line_of(set);
        if could_begin {
            self.could_begin(&line);
        }
        if let Some(history) = set.history() {
            self.told.entry(line).or_insert(history);
        }
        if set.files.contains_key(&history_of(set.timeline())) {
            let carriers = self.carriers.entry(line).or_default();
            if carriers.len() < CARRIERS {
                carriers.push(set.clone());
            }
        }
    }

    /// Records what a set that recovery could begin with tells of its timeline. If a set doesn't tell where its
    /// timeline comes from, recording it would only make others unknown.
    pub(super) fn learn_told(&mut self, set: &Member) {
        if let Some(history) = branches::history(set.timeline, &set.history) {
            let line = (set.system_identifier, set.timeline);
            self.could_begin(&line);
            self.told.entry(line).or_insert(history);
        }
    }

    fn could_begin(&mut self, (cluster, timeline): &Line) {
        let latest = self.latest.entry(*cluster).or_insert(*timeline);
        *latest = (*latest).max(*timeline);
    }

    /// Whether a set is on the way to the timeline that recovery from it would follow, and, unless a timeline was
    /// given by number, also to the latest timeline of which there is a set of its cluster.
    ///
    /// # Errors
    /// When a history is damaged.
    pub(super) fn way(&self, set: &Manifest) -> Result<Way> {
        let own = set.timeline();
        let asked = self.recovery.timeline.as_deref().unwrap_or("latest");
        if let Some(number) = asked.parse().ok().and_then(TimelineId::new) {
            return self.to(set, number);
        }
        let followed = if asked == "current" { own } else { self.newest_from(own)? };
        match (self.to(set, followed)?, self.latest.get(&set.postgres.system_identifier)) {
            (Way::Leads, Some(latest)) if *latest > followed => self.to(set, *latest),
            (way, _) => Ok(way),
        }
    }

    fn to(&self, set: &Manifest, to: TimelineId) -> Result<Way> {
        let own = set.timeline();
        if to == own {
            return Ok(Way::Leads);
        }
        let left = |at| Left { set: set.set.to_string(), timeline: own, at, to };
        // No timeline leads to one with a lower number.
        if to < own {
            return Ok(Way::Left(left(None)));
        }
        let Some(history) = self.history(set, to)? else { return Ok(Way::Unknown(to)) };
        let at = history.switch_point(own);
        let left = left(at);
        Ok(match set.end() {
            _ if at.is_none() => Way::Left(left),
            None => Way::Unknown(to),
            Some(end) if history.contains(own, end) => Way::Leads,
            Some(_) => Way::Left(left),
        })
    }

    /// Finds the newest timeline as PostgreSQL does (findNewestTimeLine in timeline.c): the last before the first
    /// that doesn't exist.
    fn newest_from(&self, own: TimelineId) -> Result<TimelineId> {
        let mut newest = own;
        while let Some(next) = newest.get().checked_add(1).and_then(TimelineId::new)
            && self.asked_for(next)?.is_some()
        {
            newest = next;
        }
        Ok(newest)
    }

    /// Returns the history of a timeline of the set's cluster.
    fn history(&self, set: &Manifest, of: TimelineId) -> Result<Option<TimelineHistory>> {
        if let Some(history) = self.asked_for(of)? {
            return Ok(Some(history));
        }
        let line = (set.postgres.system_identifier, of);
        if let Some(told) = self.told.get(&line) {
            return Ok(Some(told.clone()));
        }
        let name = history_of(of);
        for set in self.carriers.get(&line).into_iter().flatten() {
            match (self.read)(set, &name) {
                Ok(bytes) => return parsed(of, &bytes, &format!("of set {}", set.set)).map(Some),
                Err(error @ Error::Interrupted { .. }) => return Err(error),
                Err(error) => {
                    tracing::warn!(set = %set.set, error = %error.chain(), "its timeline's history can't be read");
                }
            }
        }
        Ok(None)
    }

    fn asked_for(&self, of: TimelineId) -> Result<Option<TimelineHistory>> {
        if let Some(known) = self.asked.borrow().get(&of) {
            return Ok(known.clone());
        }
        let bytes = (self.ask)(of)?;
        let history = bytes.map(|bytes| parsed(of, &bytes, "that restore_command gave"));
        let history = history.transpose()?;
        self.asked.borrow_mut().insert(of, history.clone());
        Ok(history)
    }
}

/// Returns the error for histories that don't tell which set in `fitting` is right.
pub(super) fn unknown(recovery: &Recovery, missing: TimelineId, fitting: &[&Manifest]) -> Error {
    let named = |set: &&Manifest| format!("{} (timeline {})", set.set, set.timeline());
    let sets: Vec<String> = fitting.iter().map(named).collect();
    let name = format!("{:08X}.history", missing.get());
    Error::usage(
        format!(
            "can't tell which of these sets is on the way to {} without {name}: {}",
            recovery.target,
            words::a_few(&sets)
        ),
        format!(
            "name one of them, with its timeline in --target-timeline, or give a --restore-command that finds {name}"
        ),
    )
}

fn line_of(set: &Manifest) -> Line {
    (set.postgres.system_identifier, set.timeline())
}

/// Returns the name of its history file in a set.
fn history_of(timeline: TimelineId) -> String {
    format!("wal/{:08X}.history", timeline.get())
}

fn parsed(of: TimelineId, bytes: &[u8], whose: &str) -> Result<TimelineHistory> {
    TimelineHistory::parse(of, bytes).map_err(|error| {
        Error::failed(format!("the history of timeline {of} {whose} is damaged"))
            .because(error)
            .with_hint("recovery along it needs it whole: look for another copy, in pg_wal of a server of that timeline, or name a set and --target-timeline")
    })
}

#[cfg(test)]
#[path = "timelines_tests.rs"]
mod tests;
