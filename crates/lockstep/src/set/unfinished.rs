//! Finds what killed commands left behind at the next start, and removes it.
//!
//! Of backups, only snapshots that this state_dir made are touched, and only those of sets that are neither complete
//! nor marked complete: if a manifest was lost, its snapshots stay and `check` reports it.

use std::collections::BTreeSet;

use super::journal::{self, BackupJournal, RemovalJournal};
use super::removal;
use crate::context::{Context, lockstep};
use crate::error::{Error, Result};
use crate::files;
use crate::restore;
use crate::steps;
use crate::volume::zfs::{DatasetName, SnapshotName, Tagged};

/// The state of a snapshot while its set is being taken.
pub const TAKING: &str = "taking";
/// The state of a snapshot whose set has its manifest.
pub const COMPLETE: &str = "complete";

/// The reason for keeping a set of which only its backup's journal exists.
pub const NO_MANIFEST: &str = "it is marked complete, but this state_dir has no manifest of it (did state_dir come back from a copy?)";
/// What to do about it.
#[must_use]
pub fn adopt() -> String {
    format!("`{} adopt` brings it back if a repository has it", lockstep())
}

/// Whether one of the snapshots of a begun backup is marked as belonging to a complete set: it gets that mark once
/// the manifest exists.
///
/// # Errors
/// When ZFS fails.
pub fn is_marked_complete(cx: &Context, entry: &BackupJournal) -> Result<bool> {
    let (snapshots, _) = snapshots_of(cx, entry)?;
    let datasets: BTreeSet<_> = snapshots.into_iter().map(|snapshot| snapshot.dataset).collect();
    for dataset in &datasets {
        let tagged = cx.zfs.tagged_snapshots(dataset)?;
        let is_of_it = |one: &Tagged| one.set == entry.set.as_str() && one.state == COMPLETE;
        if tagged.iter().any(is_of_it) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Removes what killed commands left, and finishes the removals of sets; call it with the cluster's lock held. It
/// begins with what depends on snapshots: a killed shipment or restore left clones, and their set couldn't be
/// removed. What somebody else blocks is reported, stays in its journal, and isn't a failure: it must not prevent a
/// backup.
///
/// # Errors
/// When a journal can't be read or written, or an interruption came.
pub fn remove(cx: &Context) -> Result<()> {
    restore::unfinished::remove(cx)?;
    removal::unfinished(cx)?;
    removal::keep_room(cx);
    let folder = cx.state.path("unfinished");
    for (path, entry) in journal::read_all::<BackupJournal>(&folder)? {
        let done = if cx.state.is_complete(entry.set.as_str()) {
            // Killed after the manifest: the set is good, only its marks are missing.
            snapshots_of(cx, &entry).and_then(|(snapshots, away)| {
                cx.zfs.set("lockstep:state", COMPLETE, &snapshots).map(|()| away.is_empty())
            })
        } else {
            // If its pool is suspended, nobody can tell.
            is_marked_complete(cx, &entry).and_then(|is_complete| {
                if is_complete {
                    tracing::warn!(set = %entry.set, "{NO_MANIFEST}, and its snapshots stay: {}", adopt());
                    return Ok(true);
                }
                tracing::warn!(set = %entry.set, "removing what an unfinished backup left");
                remove_set(cx, &entry)
            })
        };
        match done {
            Ok(true) => files::remove_file(&path)?,
            Ok(false) => {}
            Err(interrupted @ Error::Interrupted { .. }) => return Err(interrupted),
            Err(error) => {
                let why = error.chain();
                tracing::warn!(set = %entry.set, "what it left stays for now: {why}");
                journal::write(&path, &BackupJournal { left: Some(why), ..entry })?;
            }
        }
    }
    Ok(())
}

/// Removes an unfinished set. Returns `false` when a dataset couldn't be checked (its pool is gone), so that the
/// journal must stay until it is back.
///
/// # Errors
/// When a snapshot exists and can't be destroyed; the others are gone then.
pub fn remove_set(cx: &Context, entry: &BackupJournal) -> Result<bool> {
    let name = entry.set.snapshot_name();
    let (mut there, away) = snapshots_of(cx, entry)?;
    for dataset in &away {
        tracing::warn!(%dataset, set = %entry.set, "its pool isn't imported; its snapshot is removed once it is");
    }
    if let Some(parent) = &entry.below {
        // Killed between the recursive snapshot and the removal of its strays.
        there.extend(cx.zfs.snapshots_named(parent, |found| found == name)?);
        there.sort();
        there.dedup();
    }
    let left = destroy(cx, &there)?;
    files::remove_tree(&cx.state.set_directory(&entry.set))?;
    if !left.is_empty() {
        return Err(Error::failed(left.join("; ")).with_hint(
            "destroy the clone or release the hold with zfs: the next backup removes the rest",
        ));
    }
    Ok(away.is_empty())
}

/// Returns where the snapshots of a begun backup may be, and those of its datasets whose pool isn't imported. A `zfs
/// rename` takes the snapshots along, and so does a `zpool import` under another name: there they are known by their
/// marks, which a copy doesn't have as its own.
fn snapshots_of(
    cx: &Context,
    entry: &BackupJournal,
) -> Result<(Vec<SnapshotName>, Vec<DatasetName>)> {
    let name = entry.set.snapshot_name();
    let (mut there, mut away, mut pools) = (Vec::new(), Vec::new(), BTreeSet::new());
    for dataset in &entry.datasets {
        if cx.zfs.exists(dataset.as_str())? {
            there.push(dataset.snapshot(&name));
            continue;
        }
        // If its owner destroyed the dataset, its snapshots are gone too; a pool that is merely exported may come
        // back with them.
        match pool_now(cx, entry, dataset)? {
            Some(pool) => drop(pools.insert(pool)),
            None => away.push(dataset.clone()),
        }
    }
    for pool in &pools {
        let named = cx.zfs.snapshots_named(pool, |found| found == name)?;
        there.extend(cx.zfs.carrying(&named, "lockstep:owner")?);
    }
    there.sort();
    there.dedup();
    Ok((there, away))
}

/// Returns the pool of a dataset by its present name; `None` if it isn't imported.
fn pool_now(
    cx: &Context,
    entry: &BackupJournal,
    dataset: &DatasetName,
) -> Result<Option<DatasetName>> {
    let name = dataset.pool();
    if cx.zfs.exists(name)? {
        return DatasetName::new(name).map(Some).map_err(Error::failed);
    }
    let Some(guid) = entry.pools.get(name) else { return Ok(None) };
    let is_it = |pool: &DatasetName| cx.zfs.pool_guid(pool.as_str()) == Some(*guid);
    Ok(cx.zfs.pools()?.into_iter().find(is_it))
}

/// Destroys the existing ones, and returns what keeps the others. Dependents are checked first: a snapshot that
/// somebody holds is "busy", and `zfs destroy` is retried while it is.
fn destroy(cx: &Context, snapshots: &[SnapshotName]) -> Result<Vec<String>> {
    for snapshot in snapshots {
        cx.zfs.release(snapshot)?;
    }
    let mut left = Vec::new();
    for (snapshot, standing) in cx.zfs.standing(snapshots)? {
        if let Some(why) = removal::stands(&snapshot, &standing, 0) {
            left.push(why);
        } else if let Err(error) = cx.zfs.destroy_snapshot(&snapshot) {
            left.push(format!("\"{snapshot}\" can't be destroyed: {}", error.chain()));
        }
    }
    Ok(left)
}

/// Returns snapshots on `datasets` that carry Lockstep's marks and belong to no set of this state_dir, nor to one
/// that is being taken or removed. A backup or prune may begin, or end, meanwhile: what is known is looked at before the
/// snapshots are listed and after that.
///
/// # Errors
/// When ZFS fails, or a journal can't be read.
pub fn strangers(cx: &Context, datasets: &[DatasetName]) -> Result<Vec<Tagged>> {
    let taken = journal::read_all::<BackupJournal>(&cx.state.path("unfinished"))?;
    let removed = journal::read_all::<RemovalJournal>(&cx.state.path("removals"))?;
    let at_work: BTreeSet<_> = taken
        .into_iter()
        .map(|(_, entry)| entry.set)
        .chain(removed.into_iter().map(|(_, entry)| entry.set))
        .map(|set| set.to_string())
        .collect();
    steps::reached("check.at-work")?;
    let mut found = Vec::new();
    for dataset in datasets.iter().collect::<BTreeSet<_>>() {
        for tagged in cx.zfs.tagged_snapshots(dataset)? {
            let is_ours = at_work.contains(&tagged.set) || cx.state.is_known(&tagged.set);
            if tagged.owner != cx.state.owner() || !is_ours {
                found.push(tagged);
            }
        }
    }
    Ok(found)
}
