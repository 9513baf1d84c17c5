//! Mirrors: ZFS standbys of primaries that aren't on ZFS, several on one host.
//!
//! A mirror is a physical standby on datasets of its own, made by pg_basebackup, kept by a slot on
//! its primary, and a cluster of the configuration like any other: its sets are taken with
//! `lockstep --cluster NAME backup`. What differs from the primary is on its server's command line
//! alone, so that what is restored of its sets has the primary's own configuration.

pub mod create;
pub mod destroy;
mod fill;
mod primary;
pub mod record;
pub mod recreate;
mod room;
pub mod serve;
pub mod status;
pub mod verdict;

pub use record::{Home, Record};
