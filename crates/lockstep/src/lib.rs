//! Consistent backup sets of a PostgreSQL cluster on several ZFS datasets, and clusters restored from them.
//!
//! Data flows one way: the facts of a cluster ([`survey`]) become a plan ([`plan`]); running the plan ([`backup`])
//! leaves a set ([`set`]); a set becomes a cluster ([`restore`], [`clone`]). Only [`process`] starts programs.

// These macros panic if stdout is closed or full: use `say!` of `cli::output` instead.
#![cfg_attr(not(test), deny(clippy::print_stdout))]
// Input from outside is never taken for granted: if it is wrong, it ends in an error that names it.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod adopt;
mod away;
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
mod threads;
mod view;
pub mod volume;
pub mod words;
