//! `backup_label`: where recovery of a base backup begins.
//!
//! With this file in the data directory, PostgreSQL starts replay at the checkpoint named in it instead of the one in
//! `pg_control`, and won't be consistent before the backup's end. Without it, a base backup can start silently corrupt.
//! So the file is read strictly, all seven lines in PostgreSQL's order, and written byte for byte as PostgreSQL writes
//! it: `build_backup_content` (`xlogbackup.c`; up to 14 `do_pg_start_backup`, `xlog.c`), read by `read_backup_label`
//! (`xlogrecovery.c`; up to 14 `xlog.c`). The lines are the same in 13 to 18; 17 added those of incremental backups.

mod error;

pub use error::BackupLabelError;

use crate::control_file::ControlFile;
use crate::lsn::{Lsn, TimelineId, digits, excerpt};
use crate::wal_name::{WalSegment, WalSegmentSize};
use std::fmt;
use std::str::FromStr;

/// Bytes that PostgreSQL allows in a label (`MAXPGPATH`).
const MAX_LABEL: usize = 1024;

/// The content of a `backup_label`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BackupLabel {
    /// The redo point: replay begins here.
    pub start_lsn: Lsn,
    /// The name of the segment that holds it, as written; [`BackupLabel::start_segment`] parses it.
    pub start_segment_name: String,
    /// The checkpoint record with this redo point; at or after `start_lsn`.
    pub checkpoint_lsn: Lsn,
    /// How the backup was started.
    pub method: BackupMethod,
    /// What the backup was taken from.
    pub from: BackupFrom,
    /// When it began, as PostgreSQL's log time zone prints it: `2026-03-01 12:00:00 UTC`.
    pub start_time: String,
    /// The user's name for it; may contain newlines.
    pub label: String,
    /// The timeline of `start_lsn`.
    pub start_timeline: TimelineId,
}

/// `BACKUP METHOD`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BackupMethod {
    /// `streamed`: pg_basebackup or the non-exclusive functions; the only one from 15 on.
    Streamed,
    /// `pg_start_backup`: the exclusive functions of 13 and 14, which left the file in the live data directory.
    PgStartBackup,
}

impl BackupMethod {
    /// Returns the word in the file.
    pub const fn as_str(self) -> &'static str {
        match self {
            BackupMethod::Streamed => "streamed",
            BackupMethod::PgStartBackup => "pg_start_backup",
        }
    }
}

/// `BACKUP FROM`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BackupFrom {
    /// `primary`: recovery is consistent at the end-of-backup record.
    Primary,
    /// `standby`: recovery is consistent at the minRecoveryPoint of the backup's `pg_control`.
    Standby,
}

impl BackupFrom {
    /// Returns the word in the file.
    pub const fn as_str(self) -> &'static str {
        match self {
            BackupFrom::Primary => "primary",
            BackupFrom::Standby => "standby",
        }
    }
}

impl BackupLabel {
    /// Makes the label of a backup that begins at the checkpoint in `pg_control`, for a backup taken without the
    /// server's functions. `start_time` is text such as `2026-03-01 12:00:00 UTC`.
    ///
    /// # Errors
    /// If `label` is longer than the 1024 bytes that PostgreSQL allows, or if the file couldn't be read back because of
    /// a newline in `start_time` or a line in `label` that PostgreSQL would take for one of its own.
    pub fn from_control_file(
        control: &ControlFile,
        from: BackupFrom,
        start_time: &str,
        label: &str,
    ) -> Result<Self, BackupLabelError> {
        if label.len() > MAX_LABEL {
            return Err(BackupLabelError::NotWritable);
        }
        let redo = control.checkpoint_copy.redo;
        let timeline = control.checkpoint_copy.timeline;
        let written = BackupLabel {
            start_lsn: redo,
            start_segment_name: WalSegment::containing(timeline, redo, control.wal_segment_size)
                .file_name(control.wal_segment_size),
            checkpoint_lsn: control.checkpoint,
            method: BackupMethod::Streamed,
            from,
            start_time: start_time.to_owned(),
            label: label.to_owned(),
            start_timeline: timeline,
        };
        let read = Self::parse(&written.to_bytes())?;
        if read == written { Ok(written) } else { Err(BackupLabelError::NotWritable) }
    }

    /// Reads the file.
    ///
    /// # Errors
    /// If it isn't exactly what PostgreSQL 13 to 18 writes for a full backup. An incremental backup's label is refused
    /// with [`BackupLabelError::Incremental`].
    pub fn parse(bytes: &[u8]) -> Result<Self, BackupLabelError> {
        let text = std::str::from_utf8(bytes)
            .map_err(|error| BackupLabelError::NotUtf8 { offset: error.valid_up_to() })?;
        if text.lines().any(|line| line.starts_with("INCREMENTAL FROM")) {
            return Err(BackupLabelError::Incremental);
        }
        let mut lines = Lines { rest: text, offset: 0 };

        let (start, at) = lines.field("START WAL LOCATION: ")?;
        let (start_lsn, name) = start
            .strip_suffix(')')
            .and_then(|start| start.split_once(" (file "))
            .ok_or_else(|| invalid("START WAL LOCATION", start, at))?;
        let start_lsn = lsn("START WAL LOCATION", start_lsn, at)?;
        let name_timeline =
            segment_name_timeline(name).ok_or_else(|| invalid("START WAL LOCATION", start, at))?;

        let (checkpoint, at) = lines.field("CHECKPOINT LOCATION: ")?;
        let checkpoint_lsn = lsn("CHECKPOINT LOCATION", checkpoint, at)?;
        if checkpoint_lsn < start_lsn {
            return Err(BackupLabelError::CheckpointBeforeStart {
                checkpoint: checkpoint_lsn,
                start: start_lsn,
            });
        }

        let (method, at) = lines.field("BACKUP METHOD: ")?;
        let method = [BackupMethod::Streamed, BackupMethod::PgStartBackup]
            .into_iter()
            .find(|known| known.as_str() == method)
            .ok_or_else(|| invalid("BACKUP METHOD", method, at))?;

        let (from, at) = lines.field("BACKUP FROM: ")?;
        let from = [BackupFrom::Primary, BackupFrom::Standby]
            .into_iter()
            .find(|known| known.as_str() == from)
            .ok_or_else(|| invalid("BACKUP FROM", from, at))?;

        let (start_time, _) = lines.field("START TIME: ")?;
        let (label, timeline, at) = lines.label_and_timeline()?;
        let start_timeline = digits(timeline)
            .and_then(|number| u32::try_from(number).ok())
            .and_then(TimelineId::new)
            .ok_or_else(|| invalid("START TIMELINE", timeline, at))?;
        if name_timeline != start_timeline {
            return Err(BackupLabelError::TimelinesDiffer {
                name: name_timeline,
                line: start_timeline,
            });
        }

        Ok(BackupLabel {
            start_lsn,
            start_segment_name: name.to_owned(),
            checkpoint_lsn,
            method,
            from,
            start_time: start_time.to_owned(),
            label: label.to_owned(),
            start_timeline,
        })
    }

    /// Returns the segment where replay begins, which must hold `start_lsn`.
    ///
    /// # Errors
    /// If the name doesn't fit the segment size, or names another segment than the one that holds `start_lsn`.
    pub fn start_segment(&self, size: WalSegmentSize) -> Result<WalSegment, BackupLabelError> {
        let named = WalSegment::parse(&self.start_segment_name, size)
            .map_err(BackupLabelError::SegmentName)?;
        let holding = WalSegment::containing(self.start_timeline, self.start_lsn, size);
        if named == holding {
            Ok(named)
        } else {
            Err(BackupLabelError::SegmentDiffers {
                name: self.start_segment_name.clone(),
                start: self.start_lsn,
                holding: holding.file_name(size),
            })
        }
    }

    /// Returns the file, byte for byte as PostgreSQL writes it.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.to_string().into_bytes()
    }
}

/// The file's text.
impl fmt::Display for BackupLabel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "START WAL LOCATION: {} (file {})", self.start_lsn, self.start_segment_name)?;
        writeln!(f, "CHECKPOINT LOCATION: {}", self.checkpoint_lsn)?;
        writeln!(f, "BACKUP METHOD: {}", self.method.as_str())?;
        writeln!(f, "BACKUP FROM: {}", self.from.as_str())?;
        writeln!(f, "START TIME: {}", self.start_time)?;
        writeln!(f, "LABEL: {}", self.label)?;
        writeln!(f, "START TIMELINE: {}", self.start_timeline)
    }
}

/// Like [`BackupLabel::parse`], for text from `pg_backup_stop`.
impl FromStr for BackupLabel {
    type Err = BackupLabelError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text.as_bytes())
    }
}

/// The rest of the file, line by line.
struct Lines<'a> {
    rest: &'a str,
    offset: usize,
}

impl<'a> Lines<'a> {
    /// Returns the next line's value and its offset; the line must begin with `prefix` and end with a newline.
    fn field(&mut self, prefix: &'static str) -> Result<(&'a str, usize), BackupLabelError> {
        let missing =
            || BackupLabelError::MissingLine { line: prefix.trim_end(), offset: self.offset };
        let value = self.rest.strip_prefix(prefix).ok_or_else(missing)?;
        let (value, rest) = value.split_once('\n').ok_or_else(missing)?;
        let at = self.offset + prefix.len();
        self.rest = rest;
        self.offset = at + value.len() + 1;
        Ok((value, at))
    }

    /// Returns the last two fields. The label is the user's text and may contain newlines, so only the file's last line
    /// is certain to be the timeline's.
    fn label_and_timeline(&mut self) -> Result<(&'a str, &'a str, usize), BackupLabelError> {
        const TIMELINE: &str = "\nSTART TIMELINE: ";
        let label = self
            .rest
            .strip_prefix("LABEL: ")
            .ok_or(BackupLabelError::MissingLine { line: "LABEL:", offset: self.offset })?;
        let missing = || BackupLabelError::MissingLine {
            line: "START TIMELINE:",
            offset: self.offset + self.rest.len(),
        };
        let label = label.strip_suffix('\n').ok_or_else(missing)?;
        let (label, timeline) = label.rsplit_once(TIMELINE).ok_or_else(missing)?;
        Ok((label, timeline, self.offset + "LABEL: ".len() + label.len() + TIMELINE.len()))
    }
}

/// Returns the timeline in a segment's name. The name's other words can't be checked without the segment size.
fn segment_name_timeline(name: &str) -> Option<TimelineId> {
    let upper_hex = |b: u8| b.is_ascii_digit() || (b'A'..=b'F').contains(&b);
    (name.len() == 24 && name.bytes().all(upper_hex))
        .then(|| u32::from_str_radix(name.get(..8)?, 16).ok().and_then(TimelineId::new))
        .flatten()
}

fn lsn(line: &'static str, text: &str, offset: usize) -> Result<Lsn, BackupLabelError> {
    text.parse().map_err(|_| invalid(line, text, offset))
}

fn invalid(line: &'static str, value: &str, offset: usize) -> BackupLabelError {
    BackupLabelError::InvalidValue { line, value: excerpt(value.as_bytes()), offset }
}

#[cfg(test)]
mod tests;
