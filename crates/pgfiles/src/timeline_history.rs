//! `NNNNNNNN.history`: from which timelines a timeline descends, and where each was left.
//!
//! A position alone doesn't name a place in the WAL: after a promotion two timelines hold different records at the same
//! LSN. A restore that follows the wrong one replays another history without an error. One line a switch: parent,
//! position, reason, separated by tabs; lines that begin with `#` and blank ones are skipped. Rules: `timeline.c`
//! (`readTimeLineHistory`, `writeTimeLineHistory`, `tliOfPointInHistory`, `tliSwitchPoint`).

use crate::lsn::{Lsn, TimelineId, digits, excerpt};

/// A timeline and its ancestors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimelineHistory {
    timeline: TimelineId,
    switches: Vec<TimelineSwitch>,
}

/// The end of an ancestor: from here on its child goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimelineSwitch {
    /// The ancestor.
    pub timeline: TimelineId,
    /// The first position that is no longer the ancestor's.
    pub lsn: Lsn,
    /// Why, for people: `no recovery target specified`. Bytes, for a restore point's name in it may be in any
    /// encoding.
    pub reason: Vec<u8>,
}

impl TimelineHistory {
    /// A timeline without ancestors, which has no file: timeline 1 as a rule.
    pub const fn root(timeline: TimelineId) -> Self {
        TimelineHistory {
            timeline,
            switches: Vec::new(),
        }
    }

    /// Reads the history file of `timeline`.
    ///
    /// # Errors
    /// Where a line lacks its numeric timeline or its position, timelines don't increase or aren't below `timeline`
    /// (as PostgreSQL demands), or positions decrease.
    pub fn parse(timeline: TimelineId, bytes: &[u8]) -> Result<Self, TimelineHistoryError> {
        let mut switches: Vec<TimelineSwitch> = Vec::new();
        let mut offset = 0;
        for line in bytes.split_inclusive(|&b| b == b'\n') {
            let content = line.strip_suffix(b"\n").unwrap_or(line);
            if let Some(switch) = parse_line(content, offset)? {
                if let Some(last) = switches.last() {
                    if switch.timeline <= last.timeline {
                        return Err(TimelineHistoryError::NotIncreasing {
                            timeline: switch.timeline,
                            previous: last.timeline,
                            offset,
                        });
                    }
                    if switch.lsn < last.lsn {
                        return Err(TimelineHistoryError::PositionDecreases {
                            lsn: switch.lsn,
                            previous: last.lsn,
                            offset,
                        });
                    }
                }
                if switch.timeline >= timeline {
                    return Err(TimelineHistoryError::NotBelowChild {
                        timeline: switch.timeline,
                        child: timeline,
                        offset,
                    });
                }
                switches.push(switch);
            }
            offset += line.len();
        }
        Ok(TimelineHistory { timeline, switches })
    }

    /// The history of `child`, which leaves this timeline at `lsn`.
    ///
    /// # Errors
    /// Where `child` isn't above this timeline, `lsn` is before this timeline's beginning, or `reason` holds a newline.
    pub fn branch(
        &self,
        child: TimelineId,
        lsn: Lsn,
        reason: &[u8],
    ) -> Result<Self, TimelineHistoryError> {
        let mut switches = self.switches.clone();
        switches.push(TimelineSwitch {
            timeline: self.timeline,
            lsn,
            reason: reason.to_vec(),
        });
        let branched = TimelineHistory {
            timeline: child,
            switches,
        };
        let read = Self::parse(child, &branched.to_bytes())?;
        if read == branched {
            Ok(branched)
        } else {
            Err(TimelineHistoryError::NotWritable {
                reason: excerpt(reason),
            })
        }
    }

    /// The file, as PostgreSQL writes it: before each line but the first a blank one. Comments of a file that was
    /// read are not kept.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for switch in &self.switches {
            if !bytes.is_empty() {
                bytes.push(b'\n');
            }
            bytes.extend_from_slice(format!("{}\t{}\t", switch.timeline, switch.lsn).as_bytes());
            bytes.extend_from_slice(&switch.reason);
            bytes.push(b'\n');
        }
        bytes
    }

    /// The timeline whose history this is.
    pub const fn timeline(&self) -> TimelineId {
        self.timeline
    }

    /// The ancestors' ends, oldest first.
    pub fn switches(&self) -> &[TimelineSwitch] {
        &self.switches
    }

    /// Where `timeline` was left; `None` for the newest one, which goes on, and for one that isn't in this history.
    pub fn switch_point(&self, timeline: TimelineId) -> Option<Lsn> {
        self.switches
            .iter()
            .find(|switch| switch.timeline == timeline)
            .map(|switch| switch.lsn)
    }

    /// The timeline to which the byte at `lsn` belongs (`tliOfPointInHistory`).
    pub fn timeline_at(&self, lsn: Lsn) -> TimelineId {
        self.switches
            .iter()
            .find(|switch| lsn < switch.lsn)
            .map_or(self.timeline, |switch| switch.timeline)
    }

    /// Whether a cluster that has reached `lsn` on `timeline` can go on along this history: `timeline` is in it and
    /// was left at `lsn` or later.
    pub fn contains(&self, timeline: TimelineId, lsn: Lsn) -> bool {
        if timeline == self.timeline {
            return true;
        }
        self.switch_point(timeline).is_some_and(|left| lsn <= left)
    }
}

/// `None` for a blank line and a comment.
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
        .ok_or_else(|| TimelineHistoryError::NoTimeline {
            line: excerpt(line),
            offset,
        })?;
    let (lsn, rest) = word(rest.trim_ascii_start());
    let lsn = std::str::from_utf8(lsn)
        .ok()
        .and_then(|lsn| lsn.parse().ok())
        .ok_or_else(|| TimelineHistoryError::NoPosition {
            line: excerpt(line),
            offset,
        })?;
    let reason = rest.strip_prefix(b"\t").unwrap_or(rest);
    Ok(Some(TimelineSwitch {
        timeline,
        lsn,
        reason: reason.to_vec(),
    }))
}

/// Up to the next white space, and what follows.
fn word(text: &[u8]) -> (&[u8], &[u8]) {
    let end = text
        .iter()
        .position(u8::is_ascii_whitespace)
        .unwrap_or(text.len());
    text.split_at(end)
}

/// Why a history file was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TimelineHistoryError {
    /// A line doesn't begin with a timeline.
    #[error("no timeline in the history file's line \"{line}\" at offset \"{offset}\"")]
    NoTimeline {
        /// The line's beginning.
        line: String,
        /// Where it begins, bytes from the file's beginning.
        offset: usize,
    },
    /// A line has no position after the timeline.
    #[error("no WAL position in the history file's line \"{line}\" at offset \"{offset}\"")]
    NoPosition {
        /// The line's beginning.
        line: String,
        /// Where it begins.
        offset: usize,
    },
    /// Timelines must increase from line to line.
    #[error(
        "timeline \"{timeline}\" follows \"{previous}\" in the history file at offset \"{offset}\""
    )]
    NotIncreasing {
        /// The line's timeline.
        timeline: TimelineId,
        /// The line before's.
        previous: TimelineId,
        /// Where the line begins.
        offset: usize,
    },
    /// A timeline can't descend from itself or from a later one.
    #[error(
        "the history file of timeline \"{child}\" names \"{timeline}\" as an ancestor at offset \"{offset}\""
    )]
    NotBelowChild {
        /// The line's timeline.
        timeline: TimelineId,
        /// The file's timeline.
        child: TimelineId,
        /// Where the line begins.
        offset: usize,
    },
    /// A timeline can't be left before it began.
    #[error("position \"{lsn}\" follows \"{previous}\" in the history file at offset \"{offset}\"")]
    PositionDecreases {
        /// The line's position.
        lsn: Lsn,
        /// The line before's.
        previous: Lsn,
        /// Where the line begins.
        offset: usize,
    },
    /// The reason would make a file that reads differently.
    #[error("the reason \"{reason}\" cannot be written into a history file")]
    NotWritable {
        /// The reason's beginning.
        reason: String,
    },
}
