//! What the tests stand on: real ZFS pools made of files, a real PostgreSQL on them, the real program.
//!
//! A test asks for a [`fixture::Fixture`] with a [`layout::Layout`], puts load on its server, runs the program
//! through [`lockstep::Lockstep`], and has what was restored judged by [`checker`] and [`ledger`].
//! Everything is thrown away when the fixture is dropped, also in a panic; what a killed test left behind
//! is removed by the next one. Nothing here skips: without ZFS, without root, the tests fail.

#![allow(dead_code, reason = "each test file uses its own part of the harness")]

pub mod by_hand;
pub mod checker;
pub mod cluster;
pub mod command;
pub mod commands;
pub mod faults;
pub mod fixture;
pub mod layout;
pub mod ledger;
pub mod load;
pub mod lockstep;
pub mod pools;
pub mod shipping;
pub mod standby;
#[path = "../../../strata/tests/support/stores/mod.rs"]
pub mod stores;
pub mod trees;
pub mod workspace;
