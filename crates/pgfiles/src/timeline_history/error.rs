//! Why a history file was refused, with the line and the place, so that a person can look.

use crate::lsn::TimelineId;

/// Why a history file was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TimelineHistoryError {
    /// A line doesn't begin with a timeline.
    #[error("no timeline in the history file's line \"{line}\" at offset \"{offset}\"")]
    NoTimeline {
        /// The line's beginning.
        line: String,
        /// Where it begins, in bytes from the file's beginning.
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
        /// The previous line's timeline.
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
    /// With this reason, the file would read back differently.
    #[error("the reason \"{reason}\" cannot be written into a history file")]
    NotWritable {
        /// The reason's beginning.
        reason: String,
    },
}
