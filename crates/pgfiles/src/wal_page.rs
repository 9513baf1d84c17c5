//! The first page of a WAL segment: does the file hold what its name says?
//!
//! A recycled segment keeps its old content under a new name until it is overwritten; two clusters may share an archive
//! by mistake; a copy may be truncated. The long header at the beginning of each segment (`XLogLongPageHeaderData`,
//! `xlog_internal.h`) reveals all of these. The rules are those of `XLogReaderValidatePageHeader` (`xlogreader.c`),
//! which PostgreSQL itself applies only during recovery, when it is too late to take the right file.
//!
//! A recycled segment may have come from anywhere. Mostly it is from an older position of the same timeline. But at the
//! end of a recovery, the old timeline's segments beyond the switch become future segments of the new timeline, in the
//! order in which the folder lists them (`RemoveNonParentXlogFiles`, `xlog.c`). So a later position may get an earlier
//! name, and a segment may even keep its position: then only the timeline of its pages reveals it.

use crate::lsn::{Lsn, SystemIdentifier, TimelineId};
use crate::wal_name::{InvalidWalSegmentSize, WalSegment, WalSegmentSize};

/// Bytes of the long header.
pub const LONG_HEADER_SIZE: usize = 40;

/// `XLP_LONG_HEADER`: set on a segment's first page.
pub(crate) const LONG_HEADER: u16 = 0x0002;
/// `XLP_ALL_FLAGS` of PostgreSQL 9.3 to 18: any other bit means noise.
const ALL_FLAGS: u16 = 0x000F;

/// `XLOG_PAGE_MAGIC` of each major version.
const MAGICS: [(u16, u32); 6] =
    [(0xD106, 13), (0xD10D, 14), (0xD110, 15), (0xD113, 16), (0xD116, 17), (0xD118, 18)];

/// The header of a segment's first page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SegmentHeader {
    /// PostgreSQL's major version, derived from the magic.
    pub major_version: u32,
    /// `xlp_magic`, which every major version changes.
    pub magic: u16,
    /// `xlp_info`, flag bits.
    pub info: u16,
    /// The timeline of the page's first record.
    pub timeline: TimelineId,
    /// The position of the page's first byte.
    pub page_addr: Lsn,
    /// How many bytes of a record that began on the previous page are still here.
    pub remaining_length: u32,
    /// The cluster that wrote it.
    pub system_identifier: SystemIdentifier,
    /// The cluster's segment size.
    pub segment_size: WalSegmentSize,
    /// Bytes in a WAL page (`XLOG_BLCKSZ`), 8192 unless compiled otherwise.
    pub block_size: u32,
}

impl SegmentHeader {
    /// Reads the header from a segment's beginning; [`LONG_HEADER_SIZE`] bytes are enough.
    ///
    /// # Errors
    /// If there are too few bytes, or they can't be the beginning of a segment: all zeros (a segment created before its
    /// use), an unknown magic, no long header, values out of range.
    pub fn parse(bytes: &[u8]) -> Result<Self, WalPageError> {
        let header: &[u8; LONG_HEADER_SIZE] =
            bytes.first_chunk().ok_or(WalPageError::TooShort { length: bytes.len() })?;
        if header.iter().all(|&b| b == 0) {
            return Err(WalPageError::AllZero);
        }
        let magic = u16_at(header, 0);
        let Some(major_version) = major_of_magic(magic) else {
            return Err(match major_of_magic(magic.swap_bytes()) {
                Some(_) => WalPageError::ForeignEndianness,
                None => WalPageError::UnknownMagic { magic },
            });
        };
        let info = u16_at(header, 2);
        if info & LONG_HEADER == 0 || info & !ALL_FLAGS != 0 {
            return Err(WalPageError::InvalidInfo { info });
        }
        let segment_size = u32_at(header, 32);
        let block_size = u32_at(header, 36);
        if !block_size.is_power_of_two() || !(1024..=65536).contains(&block_size) {
            return Err(WalPageError::InvalidBlockSize { bytes: block_size });
        }
        Ok(SegmentHeader {
            major_version,
            magic,
            info,
            timeline: TimelineId::new(u32_at(header, 4)).ok_or(WalPageError::TimelineZero)?,
            page_addr: Lsn::new(u64_at(header, 8)),
            remaining_length: u32_at(header, 16),
            system_identifier: SystemIdentifier::new(u64_at(header, 24)),
            segment_size: WalSegmentSize::new(segment_size)
                .map_err(WalPageError::InvalidSegmentSize)?,
            block_size,
        })
    }
}

/// Checks that a segment's beginning belongs to `expected`, to a cluster with this segment size, and, if an identifier
/// is given, to this very cluster. The header's timeline may be lower than the name's: after a switch the new
/// timeline's first segment is a copy of the old one's.
///
/// # Errors
/// If [`SegmentHeader::parse`] refuses, or what it finds differs from what is expected.
pub fn check_segment_header(
    bytes: &[u8],
    expected: WalSegment,
    size: WalSegmentSize,
    system_identifier: Option<SystemIdentifier>,
) -> Result<SegmentHeader, WalPageError> {
    let header = SegmentHeader::parse(bytes)?;
    if let Some(expected) = system_identifier
        && header.system_identifier != expected
    {
        return Err(WalPageError::OtherCluster { found: header.system_identifier, expected });
    }
    if header.segment_size != size {
        return Err(WalPageError::OtherSegmentSize { found: header.segment_size, expected: size });
    }
    if header.page_addr != expected.start(size) {
        return Err(WalPageError::OtherPosition {
            found: header.page_addr,
            expected: expected.start(size),
        });
    }
    if header.timeline > expected.timeline {
        return Err(WalPageError::OtherTimeline {
            found: header.timeline,
            expected: expected.timeline,
        });
    }
    Ok(header)
}

pub(crate) fn major_of_magic(magic: u16) -> Option<u32> {
    MAGICS.iter().find(|(known, _)| *known == magic).map(|(_, major)| *major)
}

fn u16_at(bytes: &[u8; LONG_HEADER_SIZE], at: usize) -> u16 {
    u16::from_le_bytes(std::array::from_fn(|i| bytes[at + i]))
}

fn u32_at(bytes: &[u8; LONG_HEADER_SIZE], at: usize) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]))
}

fn u64_at(bytes: &[u8; LONG_HEADER_SIZE], at: usize) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]))
}

/// Why a segment's beginning was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WalPageError {
    /// Fewer bytes than the header has.
    #[error(
        "a WAL segment's first page header has {LONG_HEADER_SIZE} bytes, but only \"{length}\" were found"
    )]
    TooShort {
        /// Bytes given.
        length: usize,
    },
    /// The segment was created before its use and holds nothing yet.
    #[error("the WAL segment contains only zeros so far")]
    AllZero,
    /// The magic belongs to no version from 13 to 18.
    #[error("unknown WAL page magic \"{magic:04X}\" at offset 0")]
    UnknownMagic {
        /// What was found.
        magic: u16,
    },
    /// A big-endian machine wrote it.
    #[error("the WAL segment was written on a machine of the other byte order")]
    ForeignEndianness,
    /// Not the first page of a segment, or noise.
    #[error("invalid WAL page flags \"{info:04X}\" at offset 2")]
    InvalidInfo {
        /// What was found.
        info: u16,
    },
    /// Timeline 0.
    #[error("invalid timeline \"0\" at offset 4")]
    TimelineZero,
    /// The segment size is out of range.
    #[error("invalid value at offset 32")]
    InvalidSegmentSize(#[source] InvalidWalSegmentSize),
    /// The page size is out of range.
    #[error("invalid WAL page size \"{bytes}\" at offset 36")]
    InvalidBlockSize {
        /// What was found.
        bytes: u32,
    },
    /// Another cluster's WAL.
    #[error("the WAL segment belongs to the cluster \"{found}\", not to \"{expected}\"")]
    OtherCluster {
        /// In the header.
        found: SystemIdentifier,
        /// The expected one.
        expected: SystemIdentifier,
    },
    /// A cluster with another segment size.
    #[error(
        "the WAL segment is of a cluster with segments of \"{found}\" bytes, not \"{expected}\""
    )]
    OtherSegmentSize {
        /// In the header.
        found: WalSegmentSize,
        /// The expected one.
        expected: WalSegmentSize,
    },
    /// A recycled segment that still holds its old content, or a misnamed one.
    #[error("the WAL segment begins at \"{found}\", not at \"{expected}\" as its name says")]
    OtherPosition {
        /// In the header.
        found: Lsn,
        /// By its name.
        expected: Lsn,
    },
    /// A recycled segment that got its own position again on a later timeline.
    #[error(
        "the WAL segment begins on timeline \"{found}\", not on \"{expected}\": it was written before it got its name"
    )]
    EarlierTimeline {
        /// In the header.
        found: TimelineId,
        /// By the timeline's history.
        expected: TimelineId,
    },
    /// A later timeline than its name's.
    #[error(
        "the WAL segment is of timeline \"{found}\", later than \"{expected}\" as its name says"
    )]
    OtherTimeline {
        /// In the header.
        found: TimelineId,
        /// By its name.
        expected: TimelineId,
    },
}

#[cfg(test)]
mod tests;
