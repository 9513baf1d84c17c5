//! The run of WAL that a recovery reads from `pg_wal`: from its redo location on, through every timeline on its way,
//! as far as WAL is written.
//!
//! What could go wrong: a run that ends early is taken for everything there is, and recovery then ends before pages
//! that are already in the set. So the run must reach as far as the data files do, and only a segment that doesn't
//! exist or waits to be used is an end; one that can't be read is an error. A segment that waits to be used, if taken
//! for a written one, would make a run look longer than it is: so its pages must be on the timeline that the history
//! says. And if the data files may reach to the end of the WAL, a missing segment is that end only if no segment
//! comes after it: a checkpoint may have removed segments in the middle before pg_wal was frozen.

use std::collections::BTreeSet;
use std::path::Path;

use pgfiles::lsn::{Lsn, TimelineId};
use pgfiles::timeline_history::TimelineHistory;
use pgfiles::wal_name::{WalFileName, WalSegment, WalSegmentSize};

use super::wal::{Found, WalIdentity, first_page, history, look};
use crate::error::{Error, Result};
use crate::refusal::Refusal;

/// A recovery, as far as its WAL is concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The set, for errors.
    pub set: String,
    /// Where recovery begins: the redo location.
    pub start: Lsn,
    /// The data files may hold changes up to here: every byte before it is needed.
    pub needed: Lsn,
    /// The newest timeline that pg_control names; recovery also goes through its ancestors.
    pub timeline: TimelineId,
    /// The data files may hold changes up to the end of the WAL, wherever that is.
    pub to_the_end: bool,
}

/// The WAL that exists for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// The segments, in the order of their positions; a segment in which a timeline ends is included for both
    /// timelines if it exists.
    pub segments: Vec<WalSegment>,
    /// Where the last one ends.
    pub end: Lsn,
}

/// Finds the run. `is_elsewhere` knows the names of segments that the set has from elsewhere.
///
/// # Errors
/// [`Refusal::WalEndsEarly`] if the run doesn't reach what is needed; also when an existing segment or history can't
/// be read, or isn't what its name says.
pub fn run(
    pg_wal: &Path,
    identity: WalIdentity,
    wanted: &Wanted,
    is_elsewhere: &dyn Fn(&str) -> bool,
) -> Result<Run> {
    let size = identity.segment_size;
    let history = history(pg_wal, size, wanted.timeline)?;
    let from = WalSegment::containing(wanted.timeline, wanted.start, size).number;
    let follow = |history: &TimelineHistory, from: u64| {
        let mut found = BTreeSet::new();
        let mut number = from;
        while let Some(segments) =
            at(pg_wal, identity, history, number, number == from, is_elsewhere)?
        {
            found.extend(segments.into_iter().map(|segment| (segment.number, segment.timeline)));
            number += 1;
        }
        let timeline = history.timelines_of_segment(number, size).next().unwrap_or(wanted.timeline);
        let next = WalSegment { timeline, number };
        if wanted.to_the_end
            && let Some(behind) = behind_a_gap(pg_wal, size, next)?
        {
            return Err(ends_early(wanted, size, next, wanted.needed.max(behind.start(size))));
        }
        Ok((found, next))
    };
    let (mut found, next) = follow(&history, from)?;
    let after = next.number;
    if after == from || next.start(size) < wanted.needed {
        return Err(ends_early(wanted, size, next, wanted.needed));
    }
    // A promotion writes the new history before pg_control mentions it, and a standby has its primary's history
    // before it switches. Recovery may choose that timeline, so its existing segments are included.
    for newer in newer(pg_wal, identity, &history, wanted.needed)? {
        let begin = newer.switches().last().map_or(Lsn::INVALID, |switch| switch.lsn);
        let begin = WalSegment::containing(newer.timeline(), begin, size).number;
        found.extend(follow(&newer, begin.max(from))?.0);
    }
    let last = found.last().map_or(after, |(number, _)| number + 1).max(after);
    Ok(Run {
        segments: found
            .into_iter()
            .map(|(number, timeline)| WalSegment { timeline, number })
            .collect(),
        end: WalSegment { timeline: wanted.timeline, number: last }.start(size),
    })
}

fn ends_early(wanted: &Wanted, size: WalSegmentSize, missing: WalSegment, needed: Lsn) -> Error {
    let missing = missing.file_name(size);
    let (set, start) = (wanted.set.clone(), wanted.start);
    Refusal::WalEndsEarly { set, missing, start, needed }.into()
}

/// The first segment after a missing one, on its timeline or a later one. Names that PostgreSQL makes in advance
/// follow the newest segment without a gap (InstallXLogFileSegment in xlog.c takes the first free one), also on the
/// new timeline after a recovery. Remains of an older timeline don't count.
fn behind_a_gap(
    pg_wal: &Path,
    size: WalSegmentSize,
    missing: WalSegment,
) -> Result<Option<WalSegment>> {
    let names = super::wal::names(pg_wal)?;
    let segments = names.iter().filter_map(|name| WalSegment::parse(name, size).ok());
    let behind = segments
        .filter(|other| other.timeline >= missing.timeline && other.number >= missing.number);
    let next = behind.min_by_key(|segment| segment.number);
    Ok(next.filter(|segment| segment.number > missing.number))
}

/// The segments of this number, if the one that recovery reads exists: that of the newest timeline that has begun by
/// then.
fn at(
    pg_wal: &Path,
    identity: WalIdentity,
    history: &TimelineHistory,
    number: u64,
    is_first: bool,
    is_elsewhere: &dyn Fn(&str) -> bool,
) -> Result<Option<Vec<WalSegment>>> {
    let size = identity.segment_size;
    let mut segments = Vec::new();
    for (nth, timeline) in history.timelines_of_segment(number, size).enumerate() {
        let segment = WalSegment { timeline, number };
        // What comes after a timeline's end belongs to another future.
        let ends = history.switch_point(timeline);
        if ends.is_some_and(|end| WalSegment::ending_at(timeline, end, size).number < number) {
            continue;
        }
        match look(pg_wal, identity, segment, first_page(history, identity, segment, is_first))? {
            Found::Written => segments.push(segment),
            _ if is_elsewhere(&segment.file_name(size)) => {}
            _ if nth == 0 => return Ok(None),
            _ => {}
        }
    }
    Ok(Some(segments))
}

/// Returns the newest timeline in `pg_wal` for which the cluster's own one was left before `needed`.
///
/// # Errors
/// When pg_wal or a history in it can't be read.
pub(crate) fn left_before(
    pg_wal: &Path,
    identity: WalIdentity,
    needed: Lsn,
) -> Result<Option<TimelineId>> {
    let own = TimelineHistory::root(identity.timeline);
    let newer = newer(pg_wal, identity, &own, Lsn::INVALID)?.into_iter();
    let left =
        newer.filter(|newer| newer.switch_point(identity.timeline).is_some_and(|end| end < needed));
    Ok(left.map(|newer| newer.timeline()).max())
}

/// The histories of timelines that continue from this one, at `needed` or later.
fn newer(
    pg_wal: &Path,
    identity: WalIdentity,
    of: &TimelineHistory,
    needed: Lsn,
) -> Result<Vec<TimelineHistory>> {
    let mut found = Vec::new();
    for name in super::wal::names(pg_wal)? {
        match WalFileName::parse(&name, identity.segment_size) {
            Ok(WalFileName::History(timeline)) if timeline > of.timeline() => {
                let newer = history(pg_wal, identity.segment_size, timeline)?;
                if newer.switch_point(of.timeline()).is_some_and(|end| end >= needed) {
                    found.push(newer);
                }
            }
            _ => {}
        }
    }
    Ok(found)
}

#[cfg(test)]
#[path = "wal_run_tests.rs"]
mod tests;
