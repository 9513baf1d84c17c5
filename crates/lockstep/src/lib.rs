//! Consistent backup sets of a PostgreSQL cluster that lies on several ZFS datasets, and clusters
//! restored from them.
//!
//! Data flows one way: the facts of a cluster ([`survey`]) become a plan ([`plan`]), the plan is
//! run ([`backup`]) and leaves a set ([`set`]); a set becomes a cluster ([`restore`], [`clone`]).
//! Programs are started in [`process`] alone.

// It panics where stdout is gone or full: `say!` of `cli::output` is for that.
#![cfg_attr(not(test), deny(clippy::print_stdout))]
// What comes from outside is never taken for granted: it ends in an error that says what it was.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod adopt;
pub mod backup;
pub mod check;
pub mod cli;
pub mod clone;
pub mod config;
pub mod context;
pub mod error;
pub mod files;
pub mod first_wal;
pub mod isolation;
pub mod lock;
pub mod look;
pub mod mirror;
pub mod names;
pub mod plan;
pub mod postgres;
pub mod process;
pub mod progress;
pub mod prune;
pub mod refusal;
pub mod repository;
pub mod restore;
pub mod retention;
pub mod set;
pub mod ship;
mod side_by_side;
pub mod steps;
pub mod survey;
mod view;
pub mod volume;
pub mod words;
