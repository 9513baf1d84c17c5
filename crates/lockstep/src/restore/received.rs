//! Received snapshots. The newest is what the next `--delta` starts from; older ones aren't needed any more, and
//! would keep everything that was changed since.
//!
//! What could go wrong: a snapshot that isn't the restore's, or that somebody needs, is destroyed. So it has to be on
//! a dataset that a restore made, it has to be marked by a restore or have the GUID of a snapshot in the repository,
//! and it must not be one that a backup took here. Snapshots that somebody holds or has cloned stay. If a restore is
//! killed before this, the next one does it.

use std::collections::BTreeSet;

use super::build::Build;
use super::source::{FromRepository, Source};
use crate::error::Result;
use crate::repository::ShippedVolume;
use crate::volume::zfs::{Base, DatasetName, SnapshotName};

/// The property on a snapshot that names the restore that received it.
const RECEIVED: &str = "lockstep:received";

/// Marks a snapshot as received. An unmarked one is known by its GUID, as long as the repository has that.
pub(super) fn mark(build: &Build, snapshot: &SnapshotName) {
    if let Err(error) = build.cx.zfs.set(RECEIVED, &build.id, std::slice::from_ref(snapshot)) {
        tracing::warn!(%snapshot, error = %error.chain(), "it can't be marked as received");
    }
}

/// Destroys what older restores received into datasets that were brought to the set's state. Nothing depends on it: a
/// failure is only a warning.
pub(super) fn remove_older(build: &Build) {
    let Source::Repository(from) = &build.source else { return };
    for placed in &build.placement.volumes {
        let (Some(dataset), Some(shipped)) = (&placed.dataset, from.shipped_volume(placed)) else {
            continue;
        };
        if !build.there.contains(dataset) {
            continue;
        }
        let newest = dataset.snapshot(&placed.origin.name);
        if let Err(error) = remove_before(build, from, shipped, &newest) {
            tracing::warn!(
                %dataset, error = %error.chain(),
                "snapshots that older restores received stay until the next --delta"
            );
        }
    }
}

fn remove_before(
    build: &Build,
    from: &FromRepository,
    shipped: &ShippedVolume,
    newest: &SnapshotName,
) -> Result<()> {
    let (zfs, dataset) = (&build.cx.zfs, &newest.dataset);
    let all = zfs.bases_of(dataset)?;
    let Some(newest) = all.iter().find(|base| base.name == newest.to_string()) else {
        return Ok(());
    };
    let is_older = |base: &&Base| base.createtxg < newest.createtxg;
    let older: Vec<(SnapshotName, String)> = all
        .iter()
        .filter(is_older)
        .filter_map(|base| Some((of_a_set(build, dataset, &base.name)?, base.guid.to_string())))
        .collect();
    if older.is_empty() || !zfs.all_carry(std::slice::from_ref(dataset), "lockstep:restore")? {
        return Ok(());
    }
    let names: Vec<_> = older.iter().map(|(name, _)| name.clone()).collect();
    let received = zfs.carrying(&names, RECEIVED)?;
    let taken = zfs.carrying(&names, "lockstep:owner")?;
    let chain: BTreeSet<String> = match names.iter().all(|name| received.contains(name)) {
        true => BTreeSet::new(),
        false => from.chain(shipped)?.into_iter().collect(),
    };
    let is_received = |(name, guid): &(SnapshotName, String)| {
        (received.contains(name) || chain.contains(guid)) && !taken.contains(name)
    };
    let going: Vec<_> = older.into_iter().filter(is_received).map(|(name, _)| name).collect();
    for (snapshot, standing) in zfs.standing(&going)? {
        if standing.holds > 0 || !standing.clones.is_empty() {
            continue;
        }
        tracing::debug!(%snapshot, "an older restore's, which the next --delta doesn't start from");
        zfs.destroy_unheld(&snapshot)?;
    }
    Ok(())
}

/// Returns the snapshot if it is named like a set's and this state_dir doesn't have that set.
fn of_a_set(build: &Build, dataset: &DatasetName, name: &str) -> Option<SnapshotName> {
    let (_, name) = name.split_once('@')?;
    let set = name.strip_prefix("lockstep-")?;
    let state = &build.cx.state;
    let is_here = state.is_complete(set) || state.is_of_another_cluster(set);
    (!is_here).then(|| dataset.snapshot(name))
}
