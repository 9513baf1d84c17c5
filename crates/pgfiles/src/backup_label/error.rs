//! Why a `backup_label` was refused, with the line and the place, so that a person can look.

use crate::lsn::{Lsn, TimelineId};
use crate::wal_name::WalNameError;

/// Why a `backup_label` was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BackupLabelError {
    /// Neither ASCII nor UTF-8.
    #[error("backup_label is not UTF-8 at offset \"{offset}\"")]
    NotUtf8 {
        /// Bytes from the file's beginning.
        offset: usize,
    },
    /// It belongs to an incremental backup (PostgreSQL 17 and later), which isn't a cluster until pg_combinebackup has
    /// made it one. PostgreSQL refuses it too.
    #[error(
        "backup_label belongs to an incremental backup, which pg_combinebackup must combine with its full backup first"
    )]
    Incremental,
    /// A line is missing, or the file ends within it.
    #[error("backup_label has no complete line \"{line}\" at offset \"{offset}\"")]
    MissingLine {
        /// How the line begins.
        line: &'static str,
        /// Bytes from the file's beginning.
        offset: usize,
    },
    /// A line's value can't be read.
    #[error("invalid value \"{value}\" of \"{line}\" in backup_label at offset \"{offset}\"")]
    InvalidValue {
        /// The line's name.
        line: &'static str,
        /// What was found.
        value: String,
        /// Bytes from the file's beginning.
        offset: usize,
    },
    /// The checkpoint record is before its own redo point.
    #[error("the checkpoint \"{checkpoint}\" in backup_label is before the start \"{start}\"")]
    CheckpointBeforeStart {
        /// `CHECKPOINT LOCATION`.
        checkpoint: Lsn,
        /// `START WAL LOCATION`.
        start: Lsn,
    },
    /// The segment's name and `START TIMELINE` disagree; PostgreSQL refuses this too.
    #[error("backup_label's segment is of timeline \"{name}\" and its start timeline \"{line}\"")]
    TimelinesDiffer {
        /// In the name.
        name: TimelineId,
        /// `START TIMELINE`.
        line: TimelineId,
    },
    /// The segment's name doesn't fit the cluster's segment size.
    #[error("invalid segment name in backup_label")]
    SegmentName(#[source] WalNameError),
    /// The named segment isn't the one that holds the start.
    #[error(
        "backup_label names the segment \"{name}\" but its start \"{start}\" is in \"{holding}\""
    )]
    SegmentDiffers {
        /// The name in the file.
        name: String,
        /// `START WAL LOCATION`.
        start: Lsn,
        /// The segment that holds it.
        holding: String,
    },
    /// With the given start time or label, the file would read back differently.
    #[error("the start time or the label cannot be written into a backup_label")]
    NotWritable,
}
