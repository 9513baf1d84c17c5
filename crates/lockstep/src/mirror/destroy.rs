//! `mirror destroy`, and the removal of what an unfinished `create` left.
//!
//! Only datasets that carry the mirror's mark as their own property are destroyed, and none with a snapshot that
//! somebody may still want: sets are removed only if that is explicitly requested.

use std::collections::{BTreeMap, BTreeSet};

use super::create::refuse;
use super::primary::Primary;
use super::record::{Home, Kind, PROPERTY, Phase, Record};
use super::{fill, serve};
use crate::away;
use crate::config::Config;
use crate::context::{Context, program};
use crate::error::{Error, Result};
use crate::files;
use crate::names::ClusterName;
use crate::set::journal::BackupJournal;
use crate::set::unfinished as sets;
use crate::set::{at_work, removal};
use crate::steps;
use crate::volume::zfs::DatasetName;

/// How a destroy ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destroyed {
    /// What must be run on the primary, if that couldn't be reached.
    pub left_on_primary: Option<String>,
}

/// What a destroy may take along or leave.
#[derive(Debug, Clone, Copy)]
pub struct Also {
    /// Its sets go with it.
    pub with_sets: bool,
    /// Pools that aren't imported are gone for good.
    pub is_lost: bool,
}

/// Removes a mirror.
///
/// # Errors
/// [`crate::refusal::Refusal::Mirror`] while it has sets or foreign snapshots, or a dataset of it has another name; or
/// when a pool of it isn't there, or something can't be removed.
pub fn run(home: &Home, config: &Config, name: &ClusterName, also: Also) -> Result<Destroyed> {
    let Also { with_sets, is_lost } = also;
    home.find(name)?;
    let _lock = home.lock(name, "mirror destroy")?;
    let mut record = home.find(name)?;
    check_there(home, &record, is_lost)?;
    {
        let cluster = record.as_cluster()?;
        let cx = Context::open_as(config, name.clone(), &cluster)?;
        let _sets = cx.lock("mirror destroy")?;
        check_sets(home, &record, &cx, with_sets)?;
        record.phase = Phase::Destroying;
        home.write(&record)?;
        steps::reached("mirror.destroy-recorded")?;
        if with_sets {
            remove_sets(&cx, &record)?;
        }
    }
    take_away(home, &record, steps::reached)
}

/// Finishes what a killed `create` or `destroy` left half done; `own` is the mirror whose lock the caller holds. If
/// the remains of another mirror can't be removed now, that is only logged.
///
/// # Errors
/// When something of `own` can't be removed, the records can't be read, or an interruption came.
pub fn unfinished(home: &Home, own: Option<&ClusterName>) -> Result<()> {
    for mut record in home.records()? {
        if !matches!(record.phase, Phase::Making | Phase::Destroying) {
            continue;
        }
        let _lock = match own {
            Some(own) if *own == record.name => None,
            _ => match home.lock(&record.name, "clean-up") {
                Ok(lock) => Some(lock),
                Err(Error::Locked { .. }) => continue,
                Err(error) => {
                    let error = error.chain();
                    tracing::warn!(mirror = %record.name, %error, "an unfinished mirror can't be locked");
                    continue;
                }
            },
        };
        if let Err(error) = check_there(home, &record, false) {
            if own == Some(&record.name) {
                return Err(error);
            }
            tracing::warn!(mirror = %record.name, error = %error.chain(), "what is left of it stays for now");
            continue;
        }
        // It may have been finished between reading the record and taking the lock.
        let is_still = |known: &Record| known.name == record.name && known.phase == record.phase;
        if !home.records()?.iter().any(is_still) {
            continue;
        }
        if record.phase == Phase::Making && record.was_complete(&home.zfs)? {
            tracing::warn!(
                mirror = %record.name,
                "it is complete, but its record is from before that: was state_dir put back from a copy? The mirror stays"
            );
            record.phase = Phase::Ready;
            home.write(&record)?;
            continue;
        }
        tracing::warn!(mirror = %record.name, "removing what an unfinished mirror left");
        match take_away(home, &record, |_| Ok(())) {
            Ok(Destroyed { left_on_primary: Some(statement) }) => {
                tracing::warn!("the primary can't be reached; run there: {statement}");
            }
            Ok(_) => {}
            Err(error @ Error::Interrupted { .. }) => return Err(error),
            Err(error) if own == Some(&record.name) => return Err(error),
            Err(error) => tracing::warn!(
                mirror = %record.name,
                error = %error.chain(),
                "it can't be removed yet: `lockstep mirror destroy` says why"
            ),
        }
    }
    Ok(())
}

fn check_there(home: &Home, record: &Record, is_lost: bool) -> Result<()> {
    record.check_answers(&home.zfs)?;
    let datasets = record.places.iter().map(|place| &place.dataset);
    let what = format!("mirror \"{}\"", record.name);
    let give_up = format!("{} mirror destroy {} --lost", program(), record.name);
    away::refuse(&home.zfs, datasets, &what, &give_up, is_lost)?;
    record.check_not_renamed(home)
}

fn check_sets(home: &Home, record: &Record, cx: &Context, with_sets: bool) -> Result<()> {
    let (good, damaged) = cx.state.sets()?;
    let count = good.len() + damaged.len();
    if count > 0 && !with_sets {
        return refuse(
            format!("mirror \"{}\" has {count} backup sets", record.name),
            "they would be destroyed with it: add --with-sets if nobody needs them",
        );
    }
    if let Some((set, repository)) = at_work::all(cx)?.into_iter().next() {
        return refuse(
            format!("set {set} is being shipped to repository {repository}"),
            "wait for it, or stop it: nothing was changed",
        );
    }
    for place in &record.places {
        // Somebody else's by now: it stays, with whatever is on it.
        if !record.has(place, &home.zfs)? {
            continue;
        }
        if let Some(clone) = home.zfs.clones_of(&place.dataset)?.first() {
            return refuse(
                format!("\"{clone}\" is a clone of a snapshot of \"{}\"", place.dataset),
                "destroy restored clusters and clones of its sets first",
            );
        }
        let ours: Vec<_> = good.iter().map(|set| set.set.snapshot_name()).collect();
        let damaged: Vec<_> = damaged.iter().map(|(set, _)| set.snapshot_name()).collect();
        let snapshots = home.zfs.snapshots_of(&place.dataset)?;
        for snapshot in &snapshots {
            let name = snapshot.to_string();
            let known = ours.iter().chain(&damaged).any(|set| name.ends_with(&format!("@{set}")));
            if !known {
                return refuse(
                    format!("snapshot \"{name}\" belongs to no set"),
                    "destroy it with zfs if nobody needs it",
                );
            }
        }
        // What can't be destroyed is found first: half of a set, or a mirror without its server, is of no use.
        for (snapshot, standing) in home.zfs.standing(&snapshots)? {
            if let Some(why) = removal::stands(&snapshot, &standing, 1) {
                return refuse(
                    why,
                    "release the hold with zfs if nobody needs it: nothing was changed",
                );
            }
        }
        let is_own = |below: &DatasetName| record.places.iter().any(|it| it.dataset == *below);
        let mut below = home.zfs.children(&place.dataset)?.into_iter();
        if let Some(below) = below.find(|below| !is_own(below)) {
            return refuse(
                format!("\"{below}\" is below \"{}\"", place.dataset),
                "zfs rename it elsewhere, or destroy it if nobody needs it: nothing was changed",
            );
        }
    }
    Ok(())
}

/// Removes all sets, including unreadable ones: their snapshots are on the mirror's datasets and would keep these
/// from being destroyed.
fn remove_sets(cx: &Context, record: &Record) -> Result<()> {
    let (good, damaged) = cx.state.sets()?;
    let places: Vec<_> = record.places.iter().map(|place| place.dataset.clone()).collect();
    let read = good.into_iter().map(|set| {
        // Its datasets may have had other names when the set was taken.
        let taken_on = set.volumes.iter().map(|volume| volume.dataset.clone());
        let datasets: BTreeSet<_> = taken_on.chain(places.iter().cloned()).collect();
        (set.set, datasets.into_iter().collect())
    });
    for (set, datasets) in read.chain(damaged.into_iter().map(|(set, _)| (set, places.clone()))) {
        let pools = BTreeMap::new();
        sets::remove_set(cx, &BackupJournal { set, datasets, pools, below: None, left: None })?;
        steps::reached("mirror.destroy-set")?;
    }
    Ok(())
}

/// Removes everything that the record names. If this undoes what a signal interrupted, `reached` must ignore that
/// signal.
pub(super) fn take_away(
    home: &Home,
    record: &Record,
    reached: impl Fn(&str) -> Result<()>,
) -> Result<Destroyed> {
    // Somebody may have given up on it, and have another cluster there, or under its name, by now.
    if record.has_data(&home.zfs)? {
        fill::end_fillers(record);
        serve::stop(record)?;
    }
    reached("mirror.destroy-stopped")?;
    let left_on_primary = drop_slot(record);
    if record.is_registered(&home.zfs)? {
        files::remove_file(&record.registration)?;
    } else if record.registration.exists() {
        tracing::warn!(
            "\"{}\" stays, because it may be another cluster's by now: remove it if it isn't",
            record.registration.display()
        );
    }
    reached("mirror.destroy-unregistered")?;
    // The top holds the mount points of the others, so it goes last.
    for place in record.places.iter().filter(|place| place.kind != Kind::Top) {
        destroy_own(home, record, &place.dataset)?;
        remove_folder(&place.directory)?;
    }
    for place in record.places.iter().filter(|place| place.kind == Kind::Top) {
        destroy_own(home, record, &place.dataset)?;
    }
    reached("mirror.destroy-datasets")?;
    for folder in &record.made_folders {
        remove_folder(folder)?;
    }
    files::remove_file(&home.record_path(&record.name))?;
    home.remove_lock(&record.name);
    Ok(Destroyed { left_on_primary })
}

/// Destroys a dataset of the mirror's. One of its name that doesn't carry its mark is somebody else's by now.
fn destroy_own(home: &Home, record: &Record, dataset: &DatasetName) -> Result<()> {
    let name = record.name.as_str();
    if !home.zfs.destroy_carrying(dataset, PROPERTY, name)? {
        tracing::warn!(
            "dataset \"{dataset}\" stays: it doesn't carry {PROPERTY}={name}, so it isn't this mirror's"
        );
    }
    Ok(())
}

/// Drops the slot, if it has one. Returns the statement to run by hand if that failed.
fn drop_slot(record: &Record) -> Option<String> {
    if record.slot.is_empty() {
        return None;
    }
    let connected = record
        .conninfo()
        .and_then(|conninfo| Primary::connect(&conninfo, record.password_file.as_deref()));
    let dropped = connected.and_then(|mut primary| {
        if let Some(difference) = primary.difference(&record.system_identifier)? {
            tracing::warn!(slot = %record.slot, "{difference}: a slot there isn't this mirror's, and stays");
            return Ok(());
        }
        primary.drop_slot(&record.slot)
    });
    let error = dropped.err()?;
    tracing::warn!(error = %error.chain(), slot = %record.slot, "the slot stays on the primary, and keeps WAL there");
    Some(format!("SELECT pg_drop_replication_slot('{}');", record.slot.replace('\'', "''")))
}

/// Removes an empty folder. One that isn't empty, or doesn't exist, is no error.
fn remove_folder(path: &std::path::Path) -> Result<()> {
    use std::io::ErrorKind;
    // On a file system that is mounted read-only, rmdir(2) says so even if there is no such folder.
    if path.symlink_metadata().is_err_and(|e| e.kind() == ErrorKind::NotFound) {
        return Ok(());
    }
    match std::fs::remove_dir(path) {
        Err(e)
            if matches!(
                e.kind(),
                ErrorKind::NotFound | ErrorKind::DirectoryNotEmpty | ErrorKind::ResourceBusy
            ) =>
        {
            Ok(())
        }
        other => other.map_err(Error::io("remove", path)),
    }
}
