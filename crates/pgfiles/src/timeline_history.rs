//! `NNNNNNNN.history`: from which timelines a timeline descends, and where each was left.
//!
//! A position alone doesn't identify a place in the WAL: after a promotion two timelines hold different records at the
//! same LSN. A restore that follows the wrong one replays another history without an error. Each line is a switch:
//! parent, position, reason, separated by tabs; blank lines and lines that begin with `#` are skipped. Rules:
//! `timeline.c` (`readTimeLineHistory`, `writeTimeLineHistory`, `tliOfPointInHistory`, `tliSwitchPoint`);
//! `XLogFileReadAnyTLI`, `xlogrecovery.c`.

mod error;

pub use error::TimelineHistoryError;

use crate::lsn::{Lsn, TimelineId, digits, excerpt};
use crate::wal_name::{WalSegment, WalSegmentSize};

/// A timeline and its ancestors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimelineHistory {
    timeline: TimelineId,
    switches: Vec<TimelineSwitch>,
    bytes: Vec<u8>,
}

/// The end of an ancestor, where its child continues.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimelineSwitch {
    /// The ancestor.
    pub timeline: TimelineId,
    /// The first position that no longer belongs to the ancestor.
    pub lsn: Lsn,
    /// Why, as readable text: `no recovery target specified`. Bytes, because a restore point's name in it may be in any
    /// encoding.
    pub reason: Vec<u8>,
}

impl TimelineHistory {
    /// Returns a timeline without ancestors, which has no file; usually timeline 1.
    pub const fn root(timeline: TimelineId) -> Self {
        TimelineHistory { timeline, switches: Vec::new(), bytes: Vec::new() }
    }

    /// Reads the history file of `timeline`.
    ///
    /// # Errors
    /// If a line has no numeric timeline or no position, or if timelines don't increase or aren't below `timeline`, as
    /// PostgreSQL requires. Positions may decrease: PostgreSQL names the target timeline as the parent even if recovery
    /// stopped before that timeline's beginning.
    pub fn parse(timeline: TimelineId, bytes: &[u8]) -> Result<Self, TimelineHistoryError> {
        let mut history = TimelineHistory { bytes: bytes.to_vec(), ..Self::root(timeline) };
        let mut offset = 0;
        for line in bytes.split_inclusive(|&b| b == b'\n') {
            let content = line.strip_suffix(b"\n").unwrap_or(line);
            if let Some(switch) = parse_line(content, offset)? {
                history.push(switch, offset)?;
            }
            offset += line.len();
        }
        Ok(history)
    }

    /// Returns the history of a timeline whose ancestors were left at these positions, oldest first; the file contains
    /// no reasons.
    ///
    /// # Errors
    /// If timelines don't increase, as for [`TimelineHistory::parse`].
    pub fn from_switches(
        timeline: TimelineId,
        switches: impl IntoIterator<Item = (TimelineId, Lsn)>,
    ) -> Result<Self, TimelineHistoryError> {
        let mut history = Self::root(timeline);
        for (timeline, lsn) in switches {
            let offset = history.bytes.len();
            history.push(TimelineSwitch { timeline, lsn, reason: Vec::new() }, offset)?;
            history.bytes.extend_from_slice(format!("{timeline}\t{lsn}\t\n").as_bytes());
        }
        Ok(history)
    }

    /// Adds the switch whose line begins at `offset`.
    fn push(&mut self, switch: TimelineSwitch, offset: usize) -> Result<(), TimelineHistoryError> {
        let TimelineSwitch { timeline, .. } = switch;
        if let Some(last) = self.switches.last()
            && timeline <= last.timeline
        {
            let previous = last.timeline;
            return Err(TimelineHistoryError::NotIncreasing { timeline, previous, offset });
        }
        if timeline >= self.timeline {
            let child = self.timeline;
            return Err(TimelineHistoryError::NotBelowChild { timeline, child, offset });
        }
        self.switches.push(switch);
        Ok(())
    }

    /// Returns the history of `child`, which leaves this timeline at `lsn`. As PostgreSQL does, it is this history's
    /// file, an empty line, and one more line.
    ///
    /// # Errors
    /// If `child` isn't above this timeline, or `reason` contains a newline.
    pub fn branch(
        &self,
        child: TimelineId,
        lsn: Lsn,
        reason: &[u8],
    ) -> Result<Self, TimelineHistoryError> {
        let switch = TimelineSwitch { timeline: self.timeline, lsn, reason: reason.to_vec() };
        let mut bytes = self.bytes.clone();
        if !bytes.is_empty() {
            bytes.push(b'\n');
        }
        bytes.extend_from_slice(format!("{}\t{lsn}\t", self.timeline).as_bytes());
        bytes.extend_from_slice(reason);
        bytes.push(b'\n');

        let branched = Self::parse(child, &bytes)?;
        match branched.switches.split_last() {
            Some((last, before)) if *last == switch && before == self.switches => Ok(branched),
            _ => Err(TimelineHistoryError::NotWritable { reason: excerpt(reason) }),
        }
    }

    /// Returns the file: the bytes that were read, including comments, or what [`TimelineHistory::branch`] made of
    /// them. Empty for a timeline without ancestors, which has no file.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.bytes.clone()
    }

    /// Returns the timeline whose history this is.
    pub const fn timeline(&self) -> TimelineId {
        self.timeline
    }

    /// Returns the ancestors' ends, oldest first.
    pub fn switches(&self) -> &[TimelineSwitch] {
        &self.switches
    }

    /// Returns where `timeline` was left; `None` for the newest one, which continues, and for one that isn't in this
    /// history.
    pub fn switch_point(&self, timeline: TimelineId) -> Option<Lsn> {
        self.switches.iter().find(|switch| switch.timeline == timeline).map(|switch| switch.lsn)
    }

    /// Returns the timeline to which the byte at `lsn` belongs (`tliOfPointInHistory`): the newest that began there or
    /// before.
    pub fn timeline_at(&self, lsn: Lsn) -> TimelineId {
        self.newest_first()
            .find(|(_, begin)| *begin <= lsn)
            .map_or(self.timeline, |(timeline, _)| timeline)
    }

    /// Returns the timeline that the page at `lsn` carries in a segment named after `named`, which is in this history.
    /// From `named`'s beginning on, it is `named`; before that, it is an ancestor, because a segment that contains a
    /// switch begins as a copy of the ancestor's (`XLogInitNewTimeline`, `xlog.c`).
    pub fn timeline_of_page(&self, named: TimelineId, lsn: Lsn) -> TimelineId {
        self.newest_first()
            .find(|(timeline, begin)| *timeline <= named && *begin <= lsn)
            .map_or(named, |(timeline, _)| timeline)
    }

    /// Whether a cluster that has replayed `timeline` up to `lsn` can continue along this history: the byte before
    /// `lsn` or the one at it belongs to `timeline` here. PostgreSQL requires this of a checkpoint and of
    /// minRecoveryPoint (`InitWalRecovery`, `xlogrecovery.c`); otherwise it says "requested timeline is not a child of
    /// this server's history".
    pub fn contains(&self, timeline: TimelineId, lsn: Lsn) -> bool {
        self.timeline_at(lsn) == timeline
            || lsn.checked_sub(1).is_some_and(|before| self.timeline_at(before) == timeline)
    }

    /// Returns the timelines under whose names the segment with that number may be found, best first
    /// (`XLogFileReadAnyTLI`). A segment that contains a switch exists under both names; up to the switch, the newer
    /// one holds what the older one holds.
    pub fn timelines_of_segment(
        &self,
        number: u64,
        size: WalSegmentSize,
    ) -> impl Iterator<Item = TimelineId> {
        self.newest_first()
            .filter(move |(timeline, begin)| {
                WalSegment::containing(*timeline, *begin, size).number <= number
            })
            .map(|(timeline, _)| timeline)
    }

    /// Returns each timeline with its beginning, newest first; the oldest began at [`Lsn::INVALID`].
    fn newest_first(&self) -> impl Iterator<Item = (TimelineId, Lsn)> {
        let timelines = self.switches.iter().map(|switch| switch.timeline).chain([self.timeline]);
        let begins =
            [Lsn::INVALID].into_iter().chain(self.switches.iter().map(|switch| switch.lsn));
        let pairs: Vec<_> = timelines.zip(begins).collect();
        pairs.into_iter().rev()
    }
}

/// Returns `None` for a blank line and a comment.
fn parse_line(line: &[u8], offset: usize) -> Result<Option<TimelineSwitch>, TimelineHistoryError> {
    let line = line.trim_ascii_start();
    if line.is_empty() || line.starts_with(b"#") {
        return Ok(None);
    }
    let (timeline, rest) = word(line);
    let timeline = std::str::from_utf8(timeline)
        .ok()
        .and_then(digits)
        .and_then(|number| u32::try_from(number).ok())
        .and_then(TimelineId::new)
        .ok_or_else(|| TimelineHistoryError::NoTimeline { line: excerpt(line), offset })?;
    let (lsn, rest) = word(rest.trim_ascii_start());
    let lsn = std::str::from_utf8(lsn)
        .ok()
        .and_then(|lsn| lsn.parse().ok())
        .ok_or_else(|| TimelineHistoryError::NoPosition { line: excerpt(line), offset })?;
    let reason = rest.strip_prefix(b"\t").unwrap_or(rest);
    Ok(Some(TimelineSwitch { timeline, lsn, reason: reason.to_vec() }))
}

/// Returns the text up to the next white space, and what follows.
fn word(text: &[u8]) -> (&[u8], &[u8]) {
    let end = text.iter().position(u8::is_ascii_whitespace).unwrap_or(text.len());
    text.split_at(end)
}

#[cfg(test)]
mod tests;
