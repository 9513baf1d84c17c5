//! What the tests are based on: real ZFS pools in files, a real PostgreSQL on them, the real program.
//!
//! A test asks for a [`fixture::Fixture`] with a [`layout::Layout`], puts load on its server, runs the program
//! through [`lockstep::Lockstep`], and lets [`checker`] and [`ledger`] judge what was restored. Everything is removed
//! when the fixture is dropped, also in a panic; the next test removes what a killed one left behind. Nothing is
//! skipped here: without ZFS or root, the tests fail.

pub mod by_hand;
pub mod checker;
pub mod cluster;
pub mod command;
pub mod commands;
pub mod desk;
pub mod faults;
pub mod fixture;
pub mod initdb;
pub mod layout;
pub mod ledger;
pub mod load;
pub mod lockstep;
pub mod pools;
pub mod recordings;
pub mod rounds;
pub mod shipping;
pub mod standby;
#[path = "../../../../strata/tests/support/stores/mod.rs"]
pub mod stores;
pub mod trees;
pub mod workspace;
