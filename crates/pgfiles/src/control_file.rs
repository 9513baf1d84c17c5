//! `global/pg_control`: what the cluster is and where its recovery begins.
//!
//! Every decision about a cluster that isn't running depends on this file: its state, its last checkpoint, how far its
//! data files are ahead. PostgreSQL writes it in place, in less than a disk sector, with a CRC at the end. If it is
//! read while it is being written, it may still be torn; the CRC shows that, and the caller should then read it again.
//! The layout is the C struct `ControlFileData` (`pg_control.h`) as a 64-bit little-endian compiler lays it out. The
//! version number at offset 8 distinguishes the layouts: 1300 (PostgreSQL 13 to 16), 1700 (17), 1800 (18).
//! `ReadControlFile` and `WriteControlFile` are in `xlog.c`, the frontend's `get_controlfile` in `controldata_utils.c`.

mod error;
mod layout;

pub use error::ControlFileError;

use crate::lsn::{Lsn, SystemIdentifier, TimelineId};
use crate::wal_name::WalSegmentSize;
use layout::{Fields, Layout};

/// Bytes of the file (`PG_CONTROL_FILE_SIZE`): far more than are used, followed by zeros.
pub const PG_CONTROL_FILE_SIZE: usize = 8192;

/// The checkpoint position of a control file made unusable by [`ControlFile::with_checkpoint_unusable`]: `0/DEAD`.
///
/// It is in segment 0, which no server ever writes (`BootStrapXLOG`, `xlog.c`, begins with segment 1), whatever the
/// segment size, so neither pg_wal nor an archive can ever hold a record there. It has the form of a real position, so
/// PostgreSQL looks for the record and reports that it found none.
pub const UNUSABLE_CHECKPOINT: Lsn = Lsn::new(0xDEAD);

/// The content of `pg_control`. Names are PostgreSQL's, spelled as here.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ControlFile {
    /// The cluster.
    pub system_identifier: SystemIdentifier,
    /// The format: 1300, 1700 or 1800.
    pub pg_control_version: u32,
    /// The system catalogs' format, a date and a digit; each major version has its own.
    pub catalog_version: u32,
    /// What the server was doing when it last wrote the file.
    pub state: DbState,
    /// When that was, seconds since 1970.
    pub time: i64,
    /// The last checkpoint's record. Crash recovery begins there.
    pub checkpoint: Lsn,
    /// A copy of that record.
    pub checkpoint_copy: CheckPoint,
    /// The counter that stands in for a position in unlogged relations.
    pub unlogged_lsn: Lsn,
    /// On a standby and in archive recovery: the data files may hold changes up to here, and the cluster is consistent
    /// once replay has reached it. [`Lsn::INVALID`] otherwise.
    pub min_recovery_point: Lsn,
    /// Its timeline; 0 if there is none.
    pub min_recovery_point_timeline: u32,
    /// The start of the backup that is being recovered; [`Lsn::INVALID`] if none is.
    pub backup_start_point: Lsn,
    /// The end of the backup that is being recovered, if it came from a standby.
    pub backup_end_point: Lsn,
    /// Whether replay must meet an end-of-backup record before the cluster is consistent.
    pub backup_end_required: bool,
    /// `wal_level` when the server last started or changed it.
    pub wal_level: WalLevel,
    /// `wal_log_hints`, likewise.
    pub wal_log_hints: bool,
    /// `max_connections`, likewise.
    pub max_connections: i32,
    /// `max_worker_processes`, likewise.
    pub max_worker_processes: i32,
    /// `max_wal_senders`, likewise.
    pub max_wal_senders: i32,
    /// `max_prepared_transactions`, likewise.
    pub max_prepared_transactions: i32,
    /// `max_locks_per_transaction`, likewise.
    pub max_locks_per_transaction: i32,
    /// `track_commit_timestamp`, likewise.
    pub track_commit_timestamp: bool,
    /// The widest alignment in bytes, 8.
    pub max_align: u32,
    /// Bytes in a data page (`BLCKSZ`).
    pub block_size: u32,
    /// Data pages in a relation's segment file.
    pub relation_segment_blocks: u32,
    /// Bytes in a WAL page (`XLOG_BLCKSZ`).
    pub wal_block_size: u32,
    /// Bytes in a WAL segment.
    pub wal_segment_size: WalSegmentSize,
    /// Bytes of a name (`NAMEDATALEN`).
    pub name_data_length: u32,
    /// Columns an index may have.
    pub index_max_keys: u32,
    /// Bytes of a chunk in a TOAST table.
    pub toast_max_chunk_size: u32,
    /// Bytes of a chunk in pg_largeobject.
    pub large_object_block_size: u32,
    /// Whether eight-byte values are passed by value.
    pub float8_by_value: bool,
    /// 0 if data pages have no checksums, otherwise their version.
    pub data_checksum_version: u32,
    /// Whether `char` was signed on the machine that made the cluster; from 18 on.
    pub default_char_signedness: Option<bool>,
    /// The cluster's random bytes for authentication that is bound to fail.
    pub mock_authentication_nonce: [u8; 32],
    layout: Layout,
    raw: Box<[u8; PG_CONTROL_FILE_SIZE]>,
}

/// The body of a checkpoint record, as copied into `pg_control` (`CheckPoint`, `pg_control.h`).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CheckPoint {
    /// Where replay begins; at or before the record itself.
    pub redo: Lsn,
    /// The timeline.
    pub timeline: TimelineId,
    /// The previous timeline, if this record began a new one; otherwise the same. 0 is possible in a file made by hand.
    pub prev_timeline: u32,
    /// Whether `full_page_writes` was on.
    pub full_page_writes: bool,
    /// `wal_level` at the checkpoint; from 17 on.
    pub wal_level: Option<WalLevel>,
    /// The next transaction, all 64 bits: epoch in the upper half.
    pub next_xid: u64,
    /// The next OID.
    pub next_oid: u32,
    /// The next multixact.
    pub next_multi: u32,
    /// The next multixact's offset.
    pub next_multi_offset: u32,
    /// The oldest transaction that isn't frozen anywhere.
    pub oldest_xid: u32,
    /// The database that holds it.
    pub oldest_xid_db: u32,
    /// The oldest multixact.
    pub oldest_multi: u32,
    /// The database that holds it.
    pub oldest_multi_db: u32,
    /// When, seconds since 1970.
    pub time: i64,
    /// The oldest transaction with a commit timestamp.
    pub oldest_commit_ts_xid: u32,
    /// The newest one.
    pub newest_commit_ts_xid: u32,
    /// The oldest transaction still running at an online checkpoint; 0 if not known.
    pub oldest_active_xid: u32,
}

/// What a server was doing when it last wrote `pg_control` (`DBState`, `pg_control.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DbState {
    /// Starting for the first time.
    StartingUp,
    /// Shut down cleanly: no recovery is needed.
    ShutDowned,
    /// A standby, shut down cleanly.
    ShutDownedInRecovery,
    /// Shutting down.
    ShuttingDown,
    /// In crash recovery.
    InCrashRecovery,
    /// In archive recovery: a standby, or a restore in progress.
    InArchiveRecovery,
    /// A primary that runs, or one that crashed.
    InProduction,
}

impl DbState {
    fn from_number(number: u32) -> Option<Self> {
        Some(match number {
            0 => DbState::StartingUp,
            1 => DbState::ShutDowned,
            2 => DbState::ShutDownedInRecovery,
            3 => DbState::ShuttingDown,
            4 => DbState::InCrashRecovery,
            5 => DbState::InArchiveRecovery,
            6 => DbState::InProduction,
            _ => return None,
        })
    }

    /// Returns the state as `pg_controldata` prints it in English.
    pub const fn as_str(self) -> &'static str {
        match self {
            DbState::StartingUp => "starting up",
            DbState::ShutDowned => "shut down",
            DbState::ShutDownedInRecovery => "shut down in recovery",
            DbState::ShuttingDown => "shutting down",
            DbState::InCrashRecovery => "in crash recovery",
            DbState::InArchiveRecovery => "in archive recovery",
            DbState::InProduction => "in production",
        }
    }
}

/// `wal_level` (`xlog.h`), lowest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WalLevel {
    /// Enough for crash recovery only: bulk loads are not in the WAL, and no backup by replay is possible.
    Minimal,
    /// Enough for archiving and standbys.
    Replica,
    /// Enough for logical decoding too.
    Logical,
}

impl WalLevel {
    fn from_number(number: u32) -> Option<Self> {
        Some(match number {
            0 => WalLevel::Minimal,
            1 => WalLevel::Replica,
            2 => WalLevel::Logical,
            _ => return None,
        })
    }

    /// Returns the level as the setting is spelled.
    pub const fn as_str(self) -> &'static str {
        match self {
            WalLevel::Minimal => "minimal",
            WalLevel::Replica => "replica",
            WalLevel::Logical => "logical",
        }
    }
}

impl ControlFile {
    /// Reads the whole file.
    ///
    /// # Errors
    /// If it isn't [`PG_CONTROL_FILE_SIZE`] bytes long, is of an unknown version or from a machine of the other byte
    /// order, its CRC is wrong (perhaps torn by a concurrent write: read it again), or a value is out of range.
    pub fn parse(bytes: &[u8]) -> Result<Self, ControlFileError> {
        let raw: Box<[u8; PG_CONTROL_FILE_SIZE]> = Box::new(
            bytes.try_into().map_err(|_| ControlFileError::WrongLength { length: bytes.len() })?,
        );
        let layout = Layout::of(&raw)?;
        layout.check_crc(&raw)?;
        Fields { raw: &raw, layout }.read()
    }

    /// Returns the bytes that were read.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.raw.to_vec()
    }

    /// Returns PostgreSQL's major version, 13 to 18. For format 1300 the catalog version decides; `None` means that it
    /// belongs to no release (a beta, a fork).
    pub fn major_version(&self) -> Option<u32> {
        layout::major_version(self.pg_control_version, self.catalog_version)
    }

    /// Whether the cluster was made from a base backup and hasn't yet replayed it to its end. Until it has, it is
    /// consistent nowhere (`backupStartPoint` and its neighbours, reset by ReachedEndOfBackup in xlogrecovery.c).
    pub fn is_in_backup_recovery(&self) -> bool {
        self.backup_start_point != Lsn::INVALID
            || self.backup_end_point != Lsn::INVALID
            || self.backup_end_required
    }

    /// Returns the newest timeline that it names, which recovery from it follows (InitWalRecovery in xlogrecovery.c):
    /// between a promotion and the checkpoint after it, that is minRecoveryPoint's and not the checkpoint's.
    pub fn newest_timeline(&self) -> TimelineId {
        let checkpoint = self.checkpoint_copy.timeline;
        TimelineId::new(self.min_recovery_point_timeline)
            .map_or(checkpoint, |min| min.max(checkpoint))
    }

    /// Returns the file with its checkpoint set to [`UNUSABLE_CHECKPOINT`] and everything else unchanged, including the
    /// copy of the checkpoint record. With this file, a cluster starts if it has a `backup_label`, which names the
    /// checkpoint itself, and refuses to start without one.
    pub fn with_checkpoint_unusable(&self) -> Vec<u8> {
        self.rewritten(&[(layout::CHECKPOINT, &UNUSABLE_CHECKPOINT.as_u64().to_le_bytes())])
    }

    /// Returns the file with another minRecoveryPoint, the position that replay must reach before the cluster is
    /// consistent. PostgreSQL observes it in archive recovery.
    pub fn with_min_recovery_point(&self, lsn: Lsn, timeline: TimelineId) -> Vec<u8> {
        self.rewritten(&[
            (layout::MIN_RECOVERY_POINT, &lsn.as_u64().to_le_bytes()),
            (layout::MIN_RECOVERY_POINT_TLI, &timeline.get().to_le_bytes()),
        ])
    }

    /// Returns the file with some bytes replaced and a matching CRC.
    fn rewritten(&self, changes: &[(usize, &[u8])]) -> Vec<u8> {
        let mut bytes = self.to_bytes();
        for (at, value) in changes {
            for (target, byte) in bytes.iter_mut().skip(*at).zip(*value) {
                *target = *byte;
            }
        }
        self.layout.write_crc(&mut bytes);
        bytes
    }
}

#[cfg(test)]
mod tests;
