//! Mirrors: ZFS standbys of primaries that aren't on ZFS, several on one host.
//!
//! A mirror is a physical standby on datasets of its own, made by pg_basebackup, fed through a slot on its primary.
//! It is a cluster of the configuration like any other: `lockstep --cluster NAME backup` takes its sets. Settings
//! that differ from the primary's are only on its server's command line, so that a cluster restored from its sets has
//! the primary's own configuration.

pub mod create;
pub mod destroy;
mod fill;
mod primary;
pub mod record;
pub mod recreate;
mod room;
pub mod serve;
mod settings;
pub mod status;
pub mod verdict;

pub use record::{Home, Record};
