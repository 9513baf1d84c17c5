//! PostgreSQL's own files, read and written without a server.
//!
//! | module | file | written by PostgreSQL in |
//! | --- | --- | --- |
//! | [`lsn`] | – (positions and identities, as `pg_lsn` prints them) | `pg_lsn.c`, `xlogdefs.h` |
//! | [`wal_name`] | the names in `pg_wal` and in an archive | `xlog_internal.h` |
//! | [`wal_page`] | the first page of a WAL segment | `xlog_internal.h`, `xlogreader.c` |
//! | [`database_records`] | records in a run of WAL segments | `dbcommands_xlog.h`, `xlogreader.c` |
//! | [`backup_label`] | `backup_label` | `xlogbackup.c`, `xlogrecovery.c` |
//! | [`tablespace_map`] | `tablespace_map` | `xlog.c`, `xlogrecovery.c` |
//! | [`control_file`] | `global/pg_control` | `pg_control.h`, `xlog.c` |
//! | [`timeline_history`] | `pg_wal/NNNNNNNN.history` | `timeline.c` |
//! | [`relation_map`] | `pg_filenode.map` | `relmapper.c` |
//! | [`database_catalog`] | the heap of `pg_database` | `bufpage.h`, `pg_database.h` |
//!
//! The files may be torn, or be of another version or another machine, or not be what their name says. Every reader
//! takes bytes, never panics, allocates no more than it was given, and refuses with an error that names the place and
//! the value. Nothing here opens a file, reads a clock or runs a program; the crate knows nothing of ZFS or of
//! Lockstep.
//!
//! PostgreSQL 13 to 18 are covered, little-endian, 64-bit.

// Input from outside is never trusted: if it is wrong, the result is an error that says what it was.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod backup_label;
pub mod control_file;
pub mod database_catalog;
pub mod database_records;
pub mod lsn;
mod numbers;
pub mod relation_map;
pub mod tablespace_map;
pub mod timeline_history;
pub mod wal_name;
pub mod wal_page;

pub use backup_label::BackupLabel;
pub use control_file::ControlFile;
pub use database_catalog::DatabaseRow;
pub use database_records::DatabaseRecord;
pub use lsn::{Lsn, SystemIdentifier, TimelineId};
pub use relation_map::RelationMap;
pub use tablespace_map::{TablespaceMap, TablespaceMapEntry};
pub use timeline_history::TimelineHistory;
pub use wal_name::{WalFileName, WalSegment, WalSegmentSize};
