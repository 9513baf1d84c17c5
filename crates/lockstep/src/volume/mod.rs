//! What can be snapshotted on its own, and how to find it for a path.
//!
//! `mounts` turns a path into the mount that holds it, `discover` turns the mount into a ZFS dataset with the facts a
//! plan needs, `zfs` runs the programs. What could go wrong: a path seems to be on one dataset and is on another that
//! is mounted deeper.

pub mod discover;
pub mod mounts;
pub mod zfs;
