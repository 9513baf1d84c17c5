//! The names of files in `pg_wal` and in an archive, and which segment holds which position.
//!
//! A segment's name is three hexadecimal words: timeline, high, low. How a position becomes high and low depends on the
//! segment size, which the name doesn't contain; with a wrong size every name is well-formed and wrong. So the size is
//! a type that is always required. Rules: `xlog_internal.h` (`XLogFileName`, `XLByteToSeg`, `XLByteToPrevSeg`,
//! `IsXLogFileName` and its neighbours).

use crate::lsn::{Lsn, TimelineId, excerpt};
use std::fmt;

/// Bytes in a WAL segment: a power of two from 1 MiB to 1 GiB (`IsValidWalSegSize`, `xlog_internal.h`), set by initdb
/// or pg_resetwal and recorded in `pg_control` and in each segment's first page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WalSegmentSize(u32);

impl WalSegmentSize {
    /// 16 MiB, initdb's default.
    pub const DEFAULT: WalSegmentSize = WalSegmentSize(16 << 20);
    /// 1 MiB.
    pub const MIN: WalSegmentSize = WalSegmentSize(1 << 20);
    /// 1 GiB.
    pub const MAX: WalSegmentSize = WalSegmentSize(1 << 30);

    /// # Errors
    /// If `bytes` isn't a power of two, is below 1 MiB or above 1 GiB.
    pub const fn new(bytes: u32) -> Result<Self, InvalidWalSegmentSize> {
        if bytes.is_power_of_two() && bytes >= Self::MIN.0 && bytes <= Self::MAX.0 {
            Ok(WalSegmentSize(bytes))
        } else {
            Err(InvalidWalSegmentSize { bytes })
        }
    }

    /// Returns the bytes in a segment.
    pub const fn bytes(self) -> u32 {
        self.0
    }

    /// Returns the segments in 4 GiB, after which the middle word of a name counts up (`XLogSegmentsPerXLogId`).
    const fn per_high_word(self) -> u64 {
        (1 << 32) / self.0 as u64
    }
}

/// 16 MiB.
impl Default for WalSegmentSize {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// The bytes, decimal.
impl fmt::Display for WalSegmentSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The number isn't a WAL segment size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{bytes}\" is not a WAL segment size (a power of two from 1048576 to 1073741824 bytes)")]
pub struct InvalidWalSegmentSize {
    /// What was given.
    pub bytes: u32,
}

/// One segment of one timeline. No server ever writes segment 0; a new cluster begins with number 1.
///
/// Ordered by timeline, then number, which is the order of the names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WalSegment {
    /// The timeline it was written on.
    pub timeline: TimelineId,
    /// How many segments of this size come before it (`XLogSegNo`).
    pub number: u64,
}

impl WalSegment {
    /// Returns the segment that holds the byte at `lsn` (`XLByteToSeg`).
    pub const fn containing(timeline: TimelineId, lsn: Lsn, size: WalSegmentSize) -> Self {
        WalSegment { timeline, number: lsn.as_u64() / size.0 as u64 }
    }

    /// Returns the segment that holds the byte before `lsn` (`XLByteToPrevSeg`): the last one needed to read up to
    /// `lsn`, which is the end of a record and may be the next segment's first byte. Returns segment 0 for
    /// [`Lsn::INVALID`].
    pub const fn ending_at(timeline: TimelineId, lsn: Lsn, size: WalSegmentSize) -> Self {
        WalSegment { timeline, number: lsn.as_u64().saturating_sub(1) / size.0 as u64 }
    }

    /// Returns all segments needed to read the bytes `[from, to)`, in order; none if `to` isn't after `from`.
    pub fn range(
        timeline: TimelineId,
        from: Lsn,
        to: Lsn,
        size: WalSegmentSize,
    ) -> impl DoubleEndedIterator<Item = WalSegment> + Clone {
        let first = Self::containing(timeline, from, size).number;
        let last = Self::ending_at(timeline, to, size).number;
        let after = if from < to { last + 1 } else { first };
        (first..after).map(move |number| WalSegment { timeline, number })
    }

    /// Returns the position of its first byte; the highest position if the number is beyond what 64 bits address.
    pub const fn start(self, size: WalSegmentSize) -> Lsn {
        Lsn::new(self.number.saturating_mul(size.0 as u64))
    }

    /// Returns the position after its last byte, with the same limit.
    pub const fn end(self, size: WalSegmentSize) -> Lsn {
        Lsn::new(self.start(size).as_u64().saturating_add(size.0 as u64))
    }

    /// Returns the following segment of the same timeline.
    pub const fn next(self) -> Self {
        WalSegment { timeline: self.timeline, number: self.number.saturating_add(1) }
    }

    /// Returns the preceding segment of the same timeline; `None` before segment 0.
    pub const fn previous(self) -> Option<Self> {
        match self.number.checked_sub(1) {
            Some(number) => Some(WalSegment { timeline: self.timeline, number }),
            None => None,
        }
    }

    /// Returns its name: 24 upper-case hexadecimal digits (`XLogFileName`).
    pub fn file_name(self, size: WalSegmentSize) -> String {
        let per_word = size.per_high_word();
        format!(
            "{:08X}{:08X}{:08X}",
            self.timeline.get(),
            self.number / per_word,
            self.number % per_word
        )
    }

    /// # Errors
    /// If `name` isn't exactly a segment's name ([`WalFileName::parse`] reads the other kinds), is of timeline 0, or
    /// couldn't have been written with this segment size.
    pub fn parse(name: &str, size: WalSegmentSize) -> Result<Self, WalNameError> {
        match WalFileName::parse(name, size)? {
            WalFileName::Segment(segment) => Ok(segment),
            _ => Err(WalNameError::NotWal { name: excerpt(name.as_bytes()) }),
        }
    }
}

/// What a file in `pg_wal` or in an archive is, according to its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WalFileName {
    /// A whole segment, `000000010000000000000003`.
    Segment(WalSegment),
    /// The beginning of a segment, `….partial`: what pg_receivewal is still writing, or the old timeline's last
    /// segment as archived at a promotion.
    Partial(WalSegment),
    /// A timeline's history, `00000002.history`; see [`TimelineHistory`](crate::TimelineHistory).
    History(TimelineId),
    /// The note that a backup leaves in the archive, `000000010000000000000003.00000028.backup`.
    BackupHistory {
        /// The segment in which the backup starts.
        segment: WalSegment,
        /// The start's bytes into that segment.
        offset: u32,
    },
}

impl WalFileName {
    /// Reads a name without folders. Digits must be upper case, as PostgreSQL writes and requires.
    ///
    /// # Errors
    /// If the name is of none of the four kinds, is of timeline 0, or couldn't have been written with this segment
    /// size.
    pub fn parse(name: &str, size: WalSegmentSize) -> Result<Self, WalNameError> {
        let not_wal = || WalNameError::NotWal { name: excerpt(name.as_bytes()) };
        let timeline_at_start = || {
            let number = hex_word(name, 0).ok_or_else(not_wal)?;
            TimelineId::new(number)
                .ok_or_else(|| WalNameError::TimelineZero { name: excerpt(name.as_bytes()) })
        };
        if name.len() == 16 && name.ends_with(".history") {
            return timeline_at_start().map(WalFileName::History);
        }
        let high = hex_word(name, 8).ok_or_else(not_wal)?;
        let low = hex_word(name, 16).ok_or_else(not_wal)?;
        let timeline = timeline_at_start()?;
        let wrong_size = || WalNameError::WrongSegmentSize { name: excerpt(name.as_bytes()), size };
        if u64::from(low) >= size.per_high_word() {
            return Err(wrong_size());
        }
        let number = u64::from(high) * size.per_high_word() + u64::from(low);
        let segment = WalSegment { timeline, number };
        match name.get(24..).ok_or_else(not_wal)? {
            "" => Ok(WalFileName::Segment(segment)),
            ".partial" => Ok(WalFileName::Partial(segment)),
            rest if rest.len() == 16 && rest.starts_with('.') && rest.ends_with(".backup") => {
                let offset = hex_word(rest, 1).ok_or_else(not_wal)?;
                if offset >= size.bytes() {
                    return Err(wrong_size());
                }
                Ok(WalFileName::BackupHistory { segment, offset })
            }
            _ => Err(not_wal()),
        }
    }

    /// Returns the name as PostgreSQL writes it.
    pub fn file_name(self, size: WalSegmentSize) -> String {
        match self {
            WalFileName::Segment(segment) => segment.file_name(size),
            WalFileName::Partial(segment) => format!("{}.partial", segment.file_name(size)),
            WalFileName::History(timeline) => format!("{:08X}.history", timeline.get()),
            WalFileName::BackupHistory { segment, offset } => {
                format!("{}.{offset:08X}.backup", segment.file_name(size))
            }
        }
    }

    /// Returns the timeline that the name begins with.
    pub fn timeline(self) -> TimelineId {
        match self {
            WalFileName::Segment(segment)
            | WalFileName::Partial(segment)
            | WalFileName::BackupHistory { segment, .. } => segment.timeline,
            WalFileName::History(timeline) => timeline,
        }
    }
}

/// Whether it is the name of a backup history file, for any segment size, by PostgreSQL's own rule
/// (`IsBackupHistoryFileName`).
pub fn is_backup_history(name: &str) -> bool {
    let is_digit = |b: u8| b.is_ascii_digit() || (b'A'..=b'F').contains(&b);
    let start = name.as_bytes().get(..24);
    start.is_some_and(|start| start.iter().all(|b| is_digit(*b)))
        && name.len() > 24 + ".backup".len()
        && name.ends_with(".backup")
}

/// Reads eight upper-case hexadecimal digits at that byte.
fn hex_word(name: &str, at: usize) -> Option<u32> {
    let digits = name.get(at..at.checked_add(8)?)?;
    let plain = digits.bytes().all(|b| b.is_ascii_digit() || (b'A'..=b'F').contains(&b));
    plain.then(|| u32::from_str_radix(digits, 16).ok()).flatten()
}

/// Why a name was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WalNameError {
    /// It is of none of the accepted kinds.
    #[error("\"{name}\" is not the name of a WAL file")]
    NotWal {
        /// The beginning of what was given.
        name: String,
    },
    /// It begins with `00000000`.
    #[error("\"{name}\" names timeline 0, which does not exist")]
    TimelineZero {
        /// The name.
        name: String,
    },
    /// Its last word is higher than this size allows: the cluster's segments are smaller than assumed.
    #[error("\"{name}\" cannot be a WAL file of a cluster with segments of \"{size}\" bytes")]
    WrongSegmentSize {
        /// The name.
        name: String,
        /// The size it was read with.
        size: WalSegmentSize,
    },
}

#[cfg(test)]
mod tests;
