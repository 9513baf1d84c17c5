//! The clusters of the configuration, by the real paths of their parts, and which of them a restore may fill.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::{Asked, real};
use crate::context::Context;
use crate::error::Result;
use crate::plan::layout::PartKind;
use crate::postgres::instance;
use crate::postgres::running::{self, Running};
use crate::restore::control;
use crate::restore::marker::Marker;
use crate::restore::placement::Placement;
use crate::volume::discover::PartPath;
use crate::volume::mounts::{self, Mounts};
use crate::volume::zfs::{DatasetName, Suspended, Zfs};

/// A part of a cluster of the configuration, or of a server that runs, by its real path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Live {
    /// The cluster's name; of a server its data directory.
    pub(super) cluster: String,
    pub(super) kind: PartKind,
    pub(super) path: PathBuf,
}

/// Returns the parts of the clusters of the configuration. If a data directory is gone, there is nothing to protect. If
/// it is on a suspended pool, only its path is known: looking into it would take until the pool is cleared.
pub(super) fn live(cx: &Context) -> Result<Vec<Live>> {
    let mut all = Vec::new();
    let others = cx.clusters.iter().filter(|(name, _)| **name != *cx.name.as_str());
    let own = (cx.name.as_str(), cx.cluster);
    for (name, cluster) in others.map(|(name, cluster)| (name.as_str(), cluster)).chain([own]) {
        let data = &cluster.data_directory;
        if let Some(Suspended { path, .. }) = cx.zfs.suspended_at(data) {
            all.push(Live { cluster: name.to_owned(), kind: PartKind::Data, path });
            continue;
        }
        if !data.is_dir() {
            continue;
        }
        let parts = match instance::parts(data, None) {
            // An unfinished restore: its links are still those of the set's cluster.
            _ if is_unfinished(data) => Vec::new(),
            // For another cluster whose parts can't be determined, at least the data directory.
            Err(_) if name != cx.name.as_str() => Vec::new(),
            other => other?,
        };
        let parts = parts.into_iter().map(|part| (part.kind, part.path));
        for (kind, path) in parts.chain([(PartKind::Data, data.clone())]) {
            let path = match cx.zfs.suspended_at(&path) {
                Some(Suspended { path, .. }) => Some(path),
                None => std::fs::canonicalize(path).ok(),
            };
            all.extend(path.map(|path| Live { cluster: name.to_owned(), kind, path }));
        }
    }
    Ok(all)
}

/// Finds a place that is a part of a server that runs here, is inside one, or contains one.
pub(super) fn used<'a>(
    zfs: &Zfs,
    places: &'a [PathBuf],
    mounts: &Mounts,
) -> Result<Option<(&'a PathBuf, Live, Running)>> {
    for server in running::all(zfs)? {
        let real = |part: PartPath| {
            let path = std::fs::canonicalize(part.path).ok()?;
            Some(Live { cluster: server.data.display().to_string(), kind: part.kind, path })
        };
        let parts: Vec<Live> = server.parts(zfs).into_iter().filter_map(real).collect();
        if let Some((place, part)) = overlap(places, &parts, mounts) {
            return Ok(Some((place, part.clone(), server)));
        }
    }
    Ok(None)
}

/// Whether a restore was begun in this data directory and hasn't ended.
pub(super) fn is_unfinished(data: &Path) -> bool {
    control::held(data).exists() && !control::is_in_place(data)
}

/// Leaves out the clusters that `--delta` was asked to bring to the set's state, because they are older restores:
/// with another name in the configuration or, on a host that is kept to take over, with this one.
pub(super) fn without_asked(
    cx: &Context,
    live: Vec<Live>,
    asked: &Asked<'_>,
    there: &BTreeSet<DatasetName>,
) -> Result<Vec<Live>> {
    let placement = asked.placement;
    let target = real(&placement.data)?;
    let is_target = |part: &Live| part.kind == PartKind::Data && part.path == target;
    let targets = live.iter().filter(|part| is_target(part)).map(|part| part.cluster.clone());
    let mut targets: BTreeSet<String> = targets.collect();
    let own = cx.name.as_str();
    let mut parts = live.iter().filter(|part| part.cluster == own);
    if !parts.all(|part| is_placed(part, placement)) {
        targets.remove(own);
    }
    // A standby of the same cluster may be there as well, and not come from a restore.
    if !targets.is_empty() && !is_ours(cx, asked, there)? {
        targets.clear();
    }
    Ok(live.into_iter().filter(|part| !targets.contains(&part.cluster)).collect())
}

/// Whether the part is exactly where the restore puts it.
fn is_placed(part: &Live, placement: &Placement) -> bool {
    let place = match &part.kind {
        PartKind::Data => Some(&placement.data),
        PartKind::Wal => Some(&placement.wal),
        PartKind::Tablespace { oid, .. } => match placement.tablespaces.get(oid) {
            Some(tablespace) => Some(&tablespace.real),
            // A tablespace that was dropped since: where an older restore had put it.
            None => {
                let own = ["tablespaces", "volumes"].map(|name| placement.directory.join(name));
                return own.iter().any(|own| part.path.starts_with(own));
            }
        },
    };
    place.and_then(|place| real(place).ok()).is_some_and(|place| place == part.path)
}

/// Whether a restore made what is there: the datasets carry the mark, a folder has the marker, or pg_control has the
/// name that only a restore gives it.
fn is_ours(cx: &Context, asked: &Asked<'_>, there: &BTreeSet<DatasetName>) -> Result<bool> {
    let &Asked { manifest, placement, source, .. } = asked;
    let datasets: Vec<DatasetName> =
        placement.volumes.iter().filter_map(|volume| volume.dataset.clone()).collect();
    if !datasets.is_empty() {
        let there: Vec<_> =
            datasets.into_iter().filter(|dataset| there.contains(dataset)).collect();
        return cx.zfs.all_carry(&there, "lockstep:restore");
    }
    let marker = Marker::of_older(&placement.directory);
    Ok(is_unfinished(&placement.data) || marker.is_some_and(|it| it.is_of(manifest, source)))
}

/// Finds a place that is a live part, is inside one, or contains one: by its path, and by what it is mounted from,
/// because a bind mount may lead into a live part.
pub(super) fn overlap<'a, 'b>(
    places: &'a [PathBuf],
    live: &'b [Live],
    mounts: &Mounts,
) -> Option<(&'a PathBuf, &'b Live)> {
    let nested = |a: &Path, b: &Path| a.starts_with(b) || b.starts_with(a);
    let lies = |path: &Path| {
        let mount = mounts.holding(path)?;
        Some((mount.device, mounts::inside(mount, path)))
    };
    places.iter().find_map(|place| {
        let there = lies(place);
        let touches = |live: &&Live| {
            let same = there.as_ref().zip(lies(&live.path));
            nested(place, &live.path) || same.is_some_and(|(a, b)| a.0 == b.0 && nested(&a.1, &b.1))
        };
        Some((place, live.iter().find(touches)?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_that_is_in_or_around_a_live_part_is_found() {
        let live = [Live {
            cluster: "main".into(),
            kind: PartKind::Data,
            path: PathBuf::from("/srv/pg/main"),
        }];
        let mounts = Mounts::parse(
            b"1 0 8:1 / / rw - ext4 /dev/sda rw\n2 1 8:2 / /srv/pg rw - zfs t/pg rw\n\
              3 1 8:2 /main/base /look rw - zfs t/pg rw\n4 1 8:2 /other /else rw - zfs t/pg rw\n",
        );
        let touches = |place: &str| overlap(&[PathBuf::from(place)], &live, &mounts).is_some();
        assert!(touches("/srv/pg/main"));
        assert!(touches("/srv/pg/main/base"));
        assert!(touches("/srv/pg"));
        assert!(!touches("/srv/pg/main2"));
        assert!(!touches("/srv/pg2"));
        // Over a bind mount.
        assert!(touches("/look") && touches("/look/x"));
        assert!(!touches("/else"));
    }
}
