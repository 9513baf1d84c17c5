//! The tests of the whole repository, as one program: what they share is compiled and linked once. Those that count
//! memory have an allocator of their own, so each of them is a program.

#[path = "../support/mod.rs"]
mod support;

mod azure;
mod check;
mod collect;
mod cost;
mod crash;
mod damage;
mod fold;
mod gcs;
mod histories;
mod leases;
mod prolong;
mod repack;
mod resume;
mod s3;
mod seek;
mod store;
