//! From facts to a plan: pure functions without a clock, processes or SQL.
//!
//! `layout` describes where everything is, `facts` what is known about the server. `strategy` decides why a set will
//! be consistent and in which order it is taken, or (as a [`Refusal`](crate::refusal::Refusal)) why it can't be.
//! `lockstep plan` prints exactly the plan that `lockstep backup` runs.

pub mod explain;
pub mod facts;
pub mod layout;
mod standby;
pub mod strategy;
pub mod warnings;

pub use facts::{Facts, ServerFacts};
pub use layout::{Layout, Part, PartKind, Volume};
pub use strategy::{Plan, Step, Strategy, WalSource};
