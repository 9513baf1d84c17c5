//! Datasets that a restore or clone has made and that nobody here knows: a killed command left them after the next
//! one had looked, or they belong to a state_dir that was lost.

use std::collections::BTreeSet;

use super::unfinished::is_receiving;
use crate::clone::Record;
use crate::context::Context;
use crate::error::Result;
use crate::process::quote;
use crate::set::journal::{self, RestoreJournal};
use crate::volume::zfs::{DatasetName, Made};

/// Finds such datasets: this state_dir's, and those of another one that are clones of this cluster's. A restore that
/// has ended is somebody's cluster; a clone belongs to Lockstep only.
///
/// # Errors
/// When ZFS fails, or a journal can't be read.
pub fn find(cx: &Context, datasets: &[DatasetName]) -> Result<Vec<Made>> {
    // List the datasets first, then what is known of them: what is made in between isn't considered.
    let mut found = cx.zfs.unended()?;
    let is_ours = |made: &Made| made.owner == cx.state.owner();
    found.retain(|made| {
        is_ours(made) || made.origin.as_ref().is_some_and(|of| datasets.contains(&of.dataset))
    });
    if found.is_empty() {
        return Ok(found);
    }
    let mut known: BTreeSet<DatasetName> = BTreeSet::new();
    // A clone's journal is removed once its record exists.
    for folder in cx.state.of_all_clusters("restores")? {
        let all = journal::read_all::<RestoreJournal>(&folder)?;
        known.extend(all.into_iter().flat_map(|(_, entry)| entry.datasets));
    }
    for folder in cx.state.of_all_clusters("clones")? {
        // A damaged one doesn't say what it knows; `clone list` and `check` of its cluster name it.
        let (all, _) = journal::read_each::<Record>(&folder)?;
        known.extend(all.into_iter().flat_map(|(_, record)| record.made.datasets));
    }
    found.retain(|made| !known.contains(&made.dataset));
    // Leave out those that have ended meanwhile, or are gone.
    let there = if found.is_empty() { Vec::new() } else { cx.zfs.unended()? };
    found.retain(|made| there.contains(made));
    Ok(found)
}

/// Names datasets below `parent` that a killed restore was receiving and that nobody here knows: they carry no mark
/// yet. No other restore of this host works below `parent`.
///
/// # Errors
/// When ZFS fails, or a journal can't be read.
pub(super) fn name_half_received(cx: &Context, parent: &DatasetName) -> Result<()> {
    let mut found = cx.zfs.children(parent)?;
    found.retain(is_receiving);
    if found.is_empty() {
        return Ok(());
    }
    for folder in cx.state.of_all_clusters("restores")? {
        for (_, entry) in journal::read_all::<RestoreJournal>(&folder)? {
            found.retain(|dataset| !entry.datasets.contains(dataset));
        }
    }
    for dataset in found {
        tracing::warn!(
            "\"{dataset}\" is what a killed restore with another state_dir was receiving; if nobody needs it: `zfs destroy -r {}`",
            quote(dataset.as_str())
        );
    }
    Ok(())
}

/// Returns the commands that destroy them, the last made first.
#[must_use]
pub fn commands(found: &[&Made]) -> String {
    let all =
        found.iter().rev().map(|made| format!("zfs destroy {}", quote(made.dataset.as_str())));
    all.collect::<Vec<_>>().join("; ")
}
