//! The offset of each field of `ControlFileData`, in the three formats of PostgreSQL 13 to 18.
//!
//! They differ little: 17 put `wal_level` into padding of the checkpoint's copy, 18 put a byte before the nonce, which
//! moves the CRC. A wrong offset would read a plausible number from the neighbouring field; the tests compare every
//! field with `pg_controldata`'s output for real files of each version.

use super::error::ControlFileError;
use super::{CheckPoint, ControlFile, DbState, PG_CONTROL_FILE_SIZE, WalLevel};
use crate::lsn::{Lsn, SystemIdentifier, TimelineId};
use crate::wal_name::WalSegmentSize;

/// Offset of `checkPoint`.
pub(super) const CHECKPOINT: usize = 32;
/// Offset of `minRecoveryPoint`.
pub(super) const MIN_RECOVERY_POINT: usize = 136;
/// Offset of `minRecoveryPointTLI`.
pub(super) const MIN_RECOVERY_POINT_TLI: usize = 144;

/// `FLOATFORMAT_VALUE`, at offset 208: detects a machine with other floating-point numbers.
const FLOAT_FORMAT: f64 = 1_234_567.0;

/// Catalog versions of the releases that share format 1300 (`catversion.h`).
const CATALOG_VERSIONS: [(u32, u32); 4] =
    [(202_007_201, 13), (202_107_181, 14), (202_209_061, 15), (202_307_071, 16)];

type Raw = [u8; PG_CONTROL_FILE_SIZE];

/// The formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    V1300,
    V1700,
    V1800,
}

impl Layout {
    pub(super) fn of(raw: &Raw) -> Result<Self, ControlFileError> {
        let version = u32::from_le_bytes(array(raw, 8));
        Self::of_version(version).ok_or_else(|| match Self::of_version(version.swap_bytes()) {
            Some(_) => ControlFileError::ForeignEndianness { version: version.swap_bytes() },
            None => ControlFileError::UnknownVersion { version },
        })
    }

    fn of_version(version: u32) -> Option<Self> {
        match version {
            1300 => Some(Layout::V1300),
            1700 => Some(Layout::V1700),
            1800 => Some(Layout::V1800),
            _ => None,
        }
    }

    /// Returns the offset of `mock_authentication_nonce`.
    fn nonce(self) -> usize {
        match self {
            Layout::V1300 | Layout::V1700 => 256,
            Layout::V1800 => 257,
        }
    }

    /// Returns the offset of `crc`, which covers all bytes before it.
    pub(super) fn crc(self) -> usize {
        match self {
            Layout::V1300 | Layout::V1700 => 288,
            Layout::V1800 => 292,
        }
    }

    pub(super) fn check_crc(self, raw: &Raw) -> Result<(), ControlFileError> {
        let stored = u32::from_le_bytes(array(raw, self.crc()));
        let computed = crc32c::crc32c(&raw[..self.crc()]);
        if stored == computed {
            Ok(())
        } else {
            Err(ControlFileError::WrongCrc { stored, computed })
        }
    }

    pub(super) fn write_crc(self, bytes: &mut [u8]) {
        let (covered, rest) = bytes.split_at_mut(self.crc());
        let crc = crc32c::crc32c(covered);
        for (target, byte) in rest.iter_mut().zip(crc.to_le_bytes()) {
            *target = byte;
        }
    }
}

pub(super) fn major_version(pg_control_version: u32, catalog_version: u32) -> Option<u32> {
    match pg_control_version {
        1700 => Some(17),
        1800 => Some(18),
        _ => CATALOG_VERSIONS
            .iter()
            .find(|(known, _)| *known == catalog_version)
            .map(|(_, major)| *major),
    }
}

/// Reads fields by offset; offsets are this file's constants, all far below the file's size.
pub(super) struct Fields<'a> {
    pub(super) raw: &'a Raw,
    pub(super) layout: Layout,
}

impl Fields<'_> {
    pub(super) fn read(&self) -> Result<ControlFile, ControlFileError> {
        let float_format = f64::from_le_bytes(array(self.raw, 208));
        if float_format != FLOAT_FORMAT {
            return Err(ControlFileError::ForeignFloats { found: float_format.to_string() });
        }
        Ok(ControlFile {
            system_identifier: SystemIdentifier::new(self.u64(0)),
            pg_control_version: self.u32(8),
            catalog_version: self.u32(12),
            state: DbState::from_number(self.u32(16)).ok_or_else(|| self.invalid("state", 16))?,
            time: self.i64(24),
            checkpoint: self.lsn(CHECKPOINT),
            checkpoint_copy: self.checkpoint_copy()?,
            unlogged_lsn: self.lsn(128),
            min_recovery_point: self.lsn(MIN_RECOVERY_POINT),
            min_recovery_point_timeline: self.u32(MIN_RECOVERY_POINT_TLI),
            backup_start_point: self.lsn(152),
            backup_end_point: self.lsn(160),
            backup_end_required: self.bool("backupEndRequired", 168)?,
            wal_level: self.wal_level("wal_level", 172)?,
            wal_log_hints: self.bool("wal_log_hints", 176)?,
            max_connections: self.i32(180),
            max_worker_processes: self.i32(184),
            max_wal_senders: self.i32(188),
            max_prepared_transactions: self.i32(192),
            max_locks_per_transaction: self.i32(196),
            track_commit_timestamp: self.bool("track_commit_timestamp", 200)?,
            max_align: self.u32(204),
            block_size: self.page_size("blcksz", 216)?,
            relation_segment_blocks: self.u32(220),
            wal_block_size: self.page_size("xlog_blcksz", 224)?,
            wal_segment_size: WalSegmentSize::new(self.u32(228))
                .map_err(|_| self.invalid("xlog_seg_size", 228))?,
            name_data_length: self.u32(232),
            index_max_keys: self.u32(236),
            toast_max_chunk_size: self.u32(240),
            large_object_block_size: self.u32(244),
            float8_by_value: self.bool("float8ByVal", 248)?,
            data_checksum_version: self.u32(252),
            default_char_signedness: match self.layout {
                Layout::V1300 | Layout::V1700 => None,
                Layout::V1800 => Some(self.bool("default_char_signedness", 256)?),
            },
            mock_authentication_nonce: array(self.raw, self.layout.nonce()),
            layout: self.layout,
            raw: Box::new(*self.raw),
        })
    }

    fn checkpoint_copy(&self) -> Result<CheckPoint, ControlFileError> {
        Ok(CheckPoint {
            redo: self.lsn(40),
            timeline: TimelineId::new(self.u32(48))
                .ok_or_else(|| self.invalid("checkPointCopy.ThisTimeLineID", 48))?,
            prev_timeline: self.u32(52),
            full_page_writes: self.bool("checkPointCopy.fullPageWrites", 56)?,
            wal_level: match self.layout {
                Layout::V1300 => None,
                Layout::V1700 | Layout::V1800 => {
                    Some(self.wal_level("checkPointCopy.wal_level", 60)?)
                }
            },
            next_xid: self.u64(64),
            next_oid: self.u32(72),
            next_multi: self.u32(76),
            next_multi_offset: self.u32(80),
            oldest_xid: self.u32(84),
            oldest_xid_db: self.u32(88),
            oldest_multi: self.u32(92),
            oldest_multi_db: self.u32(96),
            time: self.i64(104),
            oldest_commit_ts_xid: self.u32(112),
            newest_commit_ts_xid: self.u32(116),
            oldest_active_xid: self.u32(120),
        })
    }

    fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(array(self.raw, at))
    }

    fn i32(&self, at: usize) -> i32 {
        i32::from_le_bytes(array(self.raw, at))
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(array(self.raw, at))
    }

    fn i64(&self, at: usize) -> i64 {
        i64::from_le_bytes(array(self.raw, at))
    }

    fn lsn(&self, at: usize) -> Lsn {
        Lsn::new(self.u64(at))
    }

    fn bool(&self, field: &'static str, at: usize) -> Result<bool, ControlFileError> {
        match self.raw[at] {
            0 => Ok(false),
            1 => Ok(true),
            value => Err(ControlFileError::InvalidValue { field, value: value.into(), offset: at }),
        }
    }

    fn wal_level(&self, field: &'static str, at: usize) -> Result<WalLevel, ControlFileError> {
        WalLevel::from_number(self.u32(at)).ok_or_else(|| self.invalid(field, at))
    }

    /// Reads a power of two from 1 to 64 KiB, as `configure` allows.
    fn page_size(&self, field: &'static str, at: usize) -> Result<u32, ControlFileError> {
        let bytes = self.u32(at);
        let legal = bytes.is_power_of_two() && (1024..=65536).contains(&bytes);
        legal.then_some(bytes).ok_or_else(|| self.invalid(field, at))
    }

    fn invalid(&self, field: &'static str, offset: usize) -> ControlFileError {
        ControlFileError::InvalidValue { field, value: self.u32(offset), offset }
    }
}

fn array<const N: usize>(raw: &Raw, at: usize) -> [u8; N] {
    std::array::from_fn(|i| raw[at + i])
}
