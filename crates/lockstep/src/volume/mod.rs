//! What can be snapshotted alone, and how a path is found on it.
//!
//! `mounts` turns a path into the mount that holds it, `discover` turns the mount into a ZFS
//! dataset with the facts a plan needs, `zfs` runs the programs. What could go wrong: a path that
//! looks as if it lay on a dataset and lies on another that is mounted deeper.

pub mod discover;
pub mod mounts;
pub mod zfs;
