//! Checks that a set is still what its manifest says: every snapshot by GUID, every file by hash.
//!
//! A GUID is created with a snapshot and stays with its content: `zfs receive` keeps it (dmu_recv.c), so a pool that
//! was sent elsewhere and took the old one's name still has the set. The transaction group belongs to the pool.

use std::collections::BTreeMap;
use std::path::Path;

use crate::context::Context;
use crate::error::{Error, Result};
use crate::names::SetId;
use crate::refusal::Refusal;
use crate::set::manifest::{Manifest, SetFile, SetVolume, hash_file};
use crate::set::removal;
use crate::volume::zfs::{Away, Guid, SnapshotName};

/// Checks the snapshots against the manifest.
pub(crate) fn snapshots(cx: &Context, manifest: &Manifest) -> Result<()> {
    manifest.volumes.iter().try_for_each(|volume| snapshot(cx, manifest, volume))
}

/// Checks the snapshot of one volume.
pub(crate) fn snapshot(cx: &Context, manifest: &Manifest, volume: &SetVolume) -> Result<()> {
    let found = match cx.zfs.find_snapshot(&volume.snapshot) {
        Ok(Some(found)) => found,
        other => match (cx.zfs.away(&volume.pool)?, other) {
            (None, Err(error)) => return Err(error),
            (away, _) => {
                let moved = match away {
                    None => moved(cx, &[volume]),
                    Some(_) => Moved::new(),
                };
                return Err(missing(cx, manifest, volume, away, &moved).into());
            }
        },
    };
    if found.guid != volume.guid {
        return Err(swapped(cx, manifest, volume, found.guid).into());
    }
    Ok(())
}

/// A set that isn't complete, and why.
type Incomplete = (SetId, Error);

/// Returns the sets with a snapshot that is gone or replaced, with few commands for all of them.
pub(crate) fn incomplete(cx: &Context, sets: &[Manifest]) -> Result<Vec<Incomplete>> {
    look(cx, sets).map(|(incomplete, _)| incomplete)
}

/// Returns the same, and how many bytes are used only by the snapshots of each set.
pub(crate) fn look(cx: &Context, sets: &[Manifest]) -> Result<(Vec<Incomplete>, Vec<u64>)> {
    let snapshots = |set: &Manifest| {
        set.volumes.iter().map(|volume| volume.snapshot.clone()).collect::<Vec<_>>()
    };
    let named: Vec<_> = sets.iter().flat_map(snapshots).collect();
    let standing = cx.zfs.standing(&named)?;
    let pools = sets.iter().flat_map(|set| &set.volumes).map(|of| of.pool.as_str());
    let away = cx.zfs.all_away(pools)?;
    let gone = sets.iter().filter_map(|set| set.first_gone(&standing));
    let gone = gone.filter_map(|(volume, found)| found.is_none().then_some(volume));
    // Of those on a pool that isn't available nobody knows.
    let gone = gone.filter(|volume| !away.contains_key(&volume.pool));
    let moved = moved(cx, &gone.collect::<Vec<_>>());
    let why = |set: &Manifest| {
        let (volume, found) = set.first_gone(&standing)?;
        // It may be removed at the same time, and not exist any more.
        if !cx.state.is_complete(set.set.as_str()) {
            return None;
        }
        Some(match found {
            None => missing(cx, set, volume, away.get(&volume.pool).copied(), &moved),
            Some(found) => swapped(cx, set, volume, found.guid),
        })
    };
    let incomplete = sets.iter().filter_map(|set| Some((set.set.clone(), why(set)?.into())));
    let used = |snapshot| standing.get(&snapshot).map_or(0, |standing| standing.used);
    let own = sets.iter().map(|set| snapshots(set).into_iter().map(used).sum());
    Ok((incomplete.collect(), own.collect()))
}

/// Returns the refusal for a snapshot that doesn't exist: if its pool isn't available, nobody knows whether it is
/// gone.
fn missing(
    cx: &Context,
    set: &Manifest,
    volume: &SetVolume,
    away: Option<Away>,
    moved: &Moved,
) -> Refusal {
    let (id, snapshot) = (set.set.to_string(), volume.snapshot.to_string());
    let repositories = cx.state.repositories_with(&set.set);
    match away {
        Some(why) => {
            Refusal::PoolAway { set: id, pool: volume.pool.clone(), why, snapshot, repositories }
        }
        None => {
            let now = moved.get(&volume.snapshot).map(ToString::to_string);
            Refusal::SnapshotMissing { set: id, snapshot, now, repositories }
        }
    }
}

/// Present names of snapshots that are gone, by their old ones.
type Moved = BTreeMap<SnapshotName, SnapshotName>;

/// Finds those that went along with their dataset, which was renamed: such a set is good, and nobody shall be told how to
/// be rid of it. That they are gone is an error anyway, so failing to look is none.
fn moved(cx: &Context, gone: &[&SetVolume]) -> Moved {
    if gone.is_empty() {
        return Moved::new();
    }
    let gone: Vec<_> = gone.iter().map(|volume| removal::recorded(volume)).collect();
    removal::renamed(cx, &gone).unwrap_or_else(|error| {
        tracing::debug!(error = %error.chain(), "can't look for snapshots that moved");
        Moved::new()
    })
}

/// Returns the refusal for a snapshot that has the right name but is another one.
fn swapped(cx: &Context, set: &Manifest, volume: &SetVolume, found: Guid) -> Refusal {
    Refusal::SnapshotSwapped {
        set: set.set.to_string(),
        snapshot: volume.snapshot.to_string(),
        expected: format!("GUID {}", volume.guid),
        found: format!("GUID {found}"),
        repositories: cx.state.repositories_with(&set.set),
    }
}

/// Checks that a set is still what its manifest says: every snapshot by GUID, every file by hash.
///
/// # Errors
/// Says what is gone or changed.
pub(crate) fn set(cx: &Context, manifest: &Manifest) -> Result<()> {
    snapshots(cx, manifest)?;
    files(cx, manifest)
}

/// Returns those of these sets that aren't what their manifests say any more, and why, with few commands for all of
/// them. A set that is removed meanwhile isn't among them.
///
/// # Errors
/// When ZFS fails.
pub(crate) fn damaged(cx: &Context, sets: &[Manifest]) -> Result<BTreeMap<SetId, Error>> {
    let mut found: BTreeMap<_, _> = incomplete(cx, sets)?.into_iter().collect();
    for set in sets {
        if !found.contains_key(&set.set)
            && let Err(error) = files(cx, set)
            && cx.state.is_complete(set.set.as_str())
        {
            found.insert(set.set.clone(), error);
        }
    }
    Ok(found)
}

/// Checks the files beside the manifest.
pub(crate) fn files(cx: &Context, manifest: &Manifest) -> Result<()> {
    files_by(cx, manifest, |path, expected| Ok(hash_file(path)? == *expected))
}

/// Does the same without reading them: whoever lists many sets sees what is gone or cut.
pub(crate) fn file_sizes(cx: &Context, manifest: &Manifest) -> Result<()> {
    files_by(cx, manifest, |path, expected| {
        let found = std::fs::metadata(path).map_err(Error::io("look at", path))?;
        Ok(found.len() == expected.bytes)
    })
}

fn files_by(
    cx: &Context,
    manifest: &Manifest,
    is_same: impl Fn(&Path, &SetFile) -> Result<bool>,
) -> Result<()> {
    let directory = cx.state.set_directory(&manifest.set);
    for (name, expected) in &manifest.files {
        let path = directory.join(name);
        let why = match is_same(&path, expected) {
            Ok(true) => continue,
            Ok(false) => format!("\"{}\" was changed", path.display()),
            Err(error) => error.chain(),
        };
        let (set, repositories) =
            (manifest.set.to_string(), cx.state.repositories_with(&manifest.set));
        return Err(Refusal::SetDamaged { set, why, repositories }.into());
    }
    Ok(())
}
