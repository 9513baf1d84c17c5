//! Checks for what ZFS would otherwise refuse half way, before anything is made or changed, also with `--dry-run`.
//!
//! What could go wrong: with a key that isn't loaded, a dataset can be rolled back but not mounted; a large cluster
//! could be received in full before the first mount fails.

use std::collections::BTreeSet;

use super::placement::{PlacedVolume, Placement};
use super::source::{FromRepository, Source};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::process::quote;
use crate::refusal::Refusal;
use crate::volume::zfs::{DatasetName, Zfs};
use sendstream::Features;

/// Asks ZFS whether the datasets can be made below `asked` (`--dataset`), and whether those in `there` can be
/// changed.
pub(super) fn check(
    cx: &Context,
    asked: Option<&DatasetName>,
    source: &Source,
    placement: &Placement,
    there: &BTreeSet<DatasetName>,
) -> Result<()> {
    let zfs = &cx.zfs;
    if let Some(asked) = asked {
        place(zfs, asked, source)?;
    }
    if matches!(source, Source::Snapshots) {
        names_are_free(zfs, placement)?;
    }
    nobody_receives(zfs, there)?;
    settings(zfs, placement, there)?;
    own_keys(zfs, source, placement, there)?;
    keys(zfs, source, placement, there)?;
    features(zfs, source, placement)?;
    for volume in &placement.volumes {
        if let Some(dataset) = volume.dataset.as_ref().filter(|dataset| !there.contains(dataset)) {
            zfs.mountpoint_for(dataset, &volume.mountpoint)?;
        }
    }
    Ok(())
}

/// Checks the parent dataset: it has to exist, unless the receive makes it below one that exists.
fn place(zfs: &Zfs, asked: &DatasetName, source: &Source) -> Result<()> {
    let above = match source {
        Source::Snapshots => Some(asked.clone()),
        // Plain folders have no dataset.
        Source::Repository(from) if from.parent.is_none() => return Ok(()),
        Source::Repository(from) => above(from, asked),
    };
    match above {
        Some(above) if zfs.exists(above.as_str())? => Ok(()),
        Some(above) if zfs.exists(above.pool())? => Err(Error::usage(
            format!("dataset \"{above}\" isn't there, and --dataset \"{asked}\" needs it"),
            format!(
                "look at `zfs list` for how it is spelled, or make it: `zfs create -p {}`",
                quote(above.as_str())
            ),
        )),
        _ => Err(Error::usage(
            format!("pool \"{}\" of --dataset \"{asked}\" isn't there", asked.pool()),
            format!(
                "`zpool list` shows the imported pools; if it is only exported: `zpool import {}`",
                quote(asked.pool())
            ),
        )),
    }
}

/// What a stream may need, and the feature of the pool without which `zfs receive` refuses it
/// (recv_begin_check_feature_flags_impl in dmu_recv.c).
const FEATURES: [(Features, &str); 4] = [
    (Features::LARGE_BLOCKS, "large_blocks"),
    (Features::LARGE_DNODE, "large_dnode"),
    (Features::LONGNAME, "longname"),
    (Features::LARGE_MICROZAP, "large_microzap"),
];

/// Checks that the pools have the features that the streams need.
fn features(zfs: &Zfs, source: &Source, placement: &Placement) -> Result<()> {
    let Source::Repository(from) = source else { return Ok(()) };
    for volume in &placement.volumes {
        let Some(dataset) = &volume.dataset else { continue };
        let Some(shipped) = from.shipped_volume(volume).filter(|it| it.raw.is_none()) else {
            continue;
        };
        let needed = Features(from.state(shipped)?.begin.features);
        let needed = FEATURES.iter().filter(|(feature, _)| needed.contains(*feature));
        let lacks = |name: &&str| zfs.lacks_feature(dataset.pool(), name);
        let lacking: Vec<_> = needed.map(|(_, name)| *name).filter(lacks).collect();
        if !lacking.is_empty() {
            let pool = dataset.pool().to_owned();
            return Err(Refusal::PoolLacksFeature { pool, lacking }.into());
        }
    }
    Ok(())
}

/// Refuses a name that a clone would get and that exists: that dataset is somebody else's, whatever made it.
fn names_are_free(zfs: &Zfs, placement: &Placement) -> Result<()> {
    let datasets: Vec<_> = placement.volumes.iter().filter_map(|v| v.dataset.as_ref()).collect();
    let parents: BTreeSet<_> = datasets.iter().filter_map(|dataset| dataset.parent()).collect();
    for parent in parents {
        let children = zfs.children(&parent)?;
        if let Some(dataset) = datasets.iter().find(|dataset| children.contains(dataset)) {
            return Err(Refusal::CloneExists { dataset: dataset.to_string() }.into());
        }
    }
    Ok(())
}

/// Returns the existing dataset below which the restore's are made; none if the pool itself would have to be made.
fn above(from: &FromRepository, parent: &DatasetName) -> Option<DatasetName> {
    if from.makes_parent { parent.parent() } else { Some(parent.clone()) }
}

/// Refuses a dataset that somebody is receiving into: of two `zfs receive` the second fails.
fn nobody_receives(zfs: &Zfs, there: &BTreeSet<DatasetName>) -> Result<()> {
    let datasets: Vec<_> = there.iter().cloned().collect();
    match zfs.begun_receives(&datasets)?.into_iter().next() {
        None => Ok(()),
        Some(dataset) => Err(Refusal::ReceiveBegun { dataset: dataset.to_string() }.into()),
    }
}

/// Checks that ZFS unmounts and mounts the existing datasets at their places, and that they can be written to.
fn settings(zfs: &Zfs, placement: &Placement, there: &BTreeSet<DatasetName>) -> Result<()> {
    let names: Vec<_> = there.iter().map(DatasetName::to_string).collect();
    let all = zfs.get(&names, &["mountpoint", "readonly", "canmount"])?;
    for volume in &placement.volumes {
        let Some(dataset) = volume.dataset.as_ref().filter(|dataset| there.contains(dataset))
        else {
            continue;
        };
        let has = |property: &str, value: &str| {
            all.get(dataset.as_str()).and_then(|of| of.get(property)).is_some_and(|it| it == value)
        };
        let name = quote(dataset.as_str());
        let (property, value, why, commands) = if has("mountpoint", "legacy") {
            let place = quote(&volume.mountpoint.display().to_string());
            let value = quote(&zfs.mountpoint_for(dataset, &volume.mountpoint)?);
            let commands = format!("`umount {place}`, `zfs set mountpoint={value} {name}`");
            ("mountpoint", "legacy", "ZFS can't unmount and mount it", commands)
        } else if has("readonly", "on") {
            let why = "the restore writes to it, and so does the server in recovery";
            ("readonly", "on", why, format!("`zfs set readonly=off {name}`"))
        } else if has("canmount", "off") {
            let why = "it has to be mounted for the restore and for the server";
            ("canmount", "off", why, format!("`zfs set canmount=on {name}`"))
        } else {
            continue;
        };
        return Err(Refusal::SetOtherwise {
            dataset: dataset.to_string(),
            property,
            value: value.to_owned(),
            why,
            commands,
        }
        .into());
    }
    Ok(())
}

/// Refuses an existing dataset that was received raw if its key was replaced by that of a dataset above. Its own key
/// is the original's, and the next increment would bring the original's again. Only an encryption root is asked for
/// its key, so nobody could load it.
fn own_keys(
    zfs: &Zfs,
    source: &Source,
    placement: &Placement,
    there: &BTreeSet<DatasetName>,
) -> Result<()> {
    let Source::Repository(from) = source else { return Ok(()) };
    let is_raw = |volume: &&PlacedVolume| {
        from.shipped_volume(volume).is_some_and(|shipped| shipped.raw.is_some())
    };
    let raw = placement.volumes.iter().filter(is_raw).filter_map(|volume| volume.dataset.clone());
    let raw: Vec<_> = raw.filter(|dataset| there.contains(dataset)).collect();
    let encrypted = zfs.encryption(&raw)?;
    match encrypted.into_iter().find(|(dataset, encryption)| encryption.root != *dataset) {
        None => Ok(()),
        Some((dataset, encryption)) => Err(Refusal::KeyChanged {
            dataset: dataset.to_string(),
            root: encryption.root.to_string(),
        }
        .into()),
    }
}

/// Checks that keys are loaded for what is cloned, written to or made. What is received raw brings its own key, and
/// waits for it.
fn keys(
    zfs: &Zfs,
    source: &Source,
    placement: &Placement,
    there: &BTreeSet<DatasetName>,
) -> Result<()> {
    let mut needed = BTreeSet::new();
    for volume in &placement.volumes {
        let Some(dataset) = &volume.dataset else { continue };
        let Source::Repository(from) = source else {
            // A clone is encrypted like its origin, wherever it is made.
            needed.insert(volume.origin.dataset.clone());
            continue;
        };
        if from.shipped_volume(volume).is_some_and(|shipped| shipped.raw.is_some()) {
            continue;
        }
        if there.contains(dataset) {
            needed.insert(dataset.clone());
        } else {
            needed.extend(from.parent.as_ref().and_then(|parent| above(from, parent)));
        }
    }
    if let Some(parent) = source.made_parent() {
        needed.extend(parent.parent());
    }
    let needed: Vec<_> = needed.into_iter().collect();
    let mut away = zfs.encryption(&needed)?;
    away.retain(|_, encryption| !encryption.key_loaded);
    if away.is_empty() {
        return Ok(());
    }
    let roots: BTreeSet<_> = away.values().map(|encryption| encryption.root.to_string()).collect();
    Err(Refusal::KeysAway {
        datasets: away.keys().map(DatasetName::to_string).collect(),
        roots: roots.into_iter().collect(),
    }
    .into())
}
