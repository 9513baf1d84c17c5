//! Whether what a killed restore left can be seen now.
//!
//! What could go wrong: after a reboot its pool isn't imported, or its dataset isn't mounted because its key isn't
//! loaded. What isn't there then looks like what is gone, and its journal is forgotten. Later it comes back with
//! pg_control in its place, and with links that a killed recovery made to the original's tablespaces.

use super::{others, parked};
use crate::context::Context;
use crate::error::Result;
use crate::set::journal::RestoreJournal;
use crate::volume::mounts::Mounts;
use crate::volume::zfs::DatasetName;

/// Returns which of its pools aren't imported or are suspended, for people; `None` if all can be seen.
pub(super) fn pools_away(cx: &Context, entry: &RestoreJournal) -> Result<Option<String>> {
    let datasets = entry.datasets.iter().chain(&entry.data_on);
    let away = cx.zfs.all_away(datasets.map(DatasetName::pool))?;
    let words = away.iter().map(|(pool, why)| format!("pool \"{pool}\" {}", why.state()));
    Ok((!away.is_empty()).then(|| words.collect::<Vec<_>>().join(", ")))
}

/// Returns what isn't mounted and may hold what the restore made, for people. A parked dataset is left out: nothing
/// mounts it before `--delta` continues with it.
pub(super) fn not_mounted(cx: &Context, entry: &RestoreJournal) -> Result<Option<String>> {
    let mounts = Mounts::read()?;
    let is_point = |point: &_| mounts.iter().any(|mount| mount.point == *point);
    if let Some(point) = entry.mounted.iter().find(|point| !is_point(*point)) {
        return Ok(Some(format!("nothing is mounted on \"{}\"", point.display())));
    }
    let Some(dataset) = &entry.data_on else { return Ok(None) };
    let is_it = |source: &str| source == dataset.as_str();
    let is_seen = mounts.iter().any(|mount| mount.is_zfs() && is_it(&mount.source))
        // Of the same name, it may be somebody else's by now.
        || !others::has_dataset(cx, entry, dataset)?
        || parked::is_parked(&cx.zfs, dataset)?;
    Ok((!is_seen).then(|| format!("dataset \"{dataset}\" isn't mounted")))
}
