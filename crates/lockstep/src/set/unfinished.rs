//! What killed backups left behind, found at the next start and removed.
//!
//! Only snapshots that this state_dir made are touched, and only those of sets that are neither
//! complete nor marked complete: where a manifest was lost, its snapshots stay and `check` says so.

use std::collections::BTreeSet;

use super::journal::{self, BackupJournal};
use super::removal;
use crate::context::Context;
use crate::error::Result;
use crate::files;
use crate::volume::zfs::{DatasetName, Tagged};

/// The state of a snapshot while its set is being taken.
pub const TAKING: &str = "taking";
/// The state of a snapshot whose set has its manifest.
pub const COMPLETE: &str = "complete";

/// Removes what unfinished backups left, and finishes the removals of sets; call it with the
/// cluster's lock held.
///
/// # Errors
/// When a journal can't be read or a snapshot can't be destroyed.
pub fn remove(cx: &Context) -> Result<()> {
    removal::unfinished(cx)?;
    let folder = cx.state.path("unfinished");
    for (path, entry) in journal::read_all::<BackupJournal>(&folder)? {
        if cx.state.is_complete(entry.set.as_str()) {
            // Killed after the manifest: the set is good, only its marks are missing.
            let name = entry.set.snapshot_name();
            let snapshots: Vec<_> = entry.datasets.iter().map(|d| d.snapshot(&name)).collect();
            cx.zfs.set("lockstep:state", COMPLETE, &snapshots)?;
        } else {
            tracing::warn!(set = %entry.set, "removing what an unfinished backup left");
            if !remove_set(cx, &entry)? {
                continue;
            }
        }
        files::remove_file(&path)?;
    }
    Ok(())
}

/// Removes an unfinished set; `false` when a dataset couldn't be looked at (its pool is gone), so
/// that the journal must stay until it is back.
///
/// # Errors
/// When a snapshot is there and can't be destroyed.
pub fn remove_set(cx: &Context, entry: &BackupJournal) -> Result<bool> {
    let name = entry.set.snapshot_name();
    let mut all_seen = true;
    for dataset in &entry.datasets {
        if cx.zfs.exists(dataset.as_str())? {
            cx.zfs.destroy_snapshot(&dataset.snapshot(&name))?;
            continue;
        }
        // A dataset destroyed by its owner took its snapshots along; a pool that is merely
        // exported may come back with them.
        if !cx.zfs.exists(dataset.pool())? {
            tracing::warn!(%dataset, set = %entry.set, "its pool is away; its snapshot is removed when it is back");
            all_seen = false;
        }
    }
    files::remove_tree(&cx.state.set_directory(&entry.set))?;
    Ok(all_seen)
}

/// Snapshots on `datasets` that carry Lockstep's marks and belong to no set of this state_dir.
///
/// # Errors
/// When ZFS fails.
pub fn strangers(cx: &Context, datasets: &[DatasetName]) -> Result<Vec<Tagged>> {
    let mut found = Vec::new();
    for dataset in datasets.iter().collect::<BTreeSet<_>>() {
        for tagged in cx.zfs.tagged_snapshots(dataset)? {
            if tagged.owner != cx.state.owner() || !cx.state.is_complete(&tagged.set) {
                found.push(tagged);
            }
        }
    }
    Ok(found)
}
