//! Restores a set as a cluster, and starts its server if requested. The data are clones of this host's snapshots, or
//! come from a repository: as datasets, or as files on any file system.
//!
//! Everything is named in a journal before it is made. If something goes wrong, all that was made is removed again,
//! at once or by the next start. Two things stay: datasets that wait for their keys, and what came from a repository,
//! which `--delta` continues with. The set's snapshots are only read. Only a restore that brings it to the set's
//! state changes what an older restore left, and from the first change on no server starts on it until it is
//! complete.

mod alone;
pub mod as_files;
mod bases;
mod beforehand;
mod behind;
mod build;
mod choice;
pub(crate) mod control;
mod fetched;
mod fold;
mod folders;
pub(crate) mod gone_on;
mod guard;
mod history_command;
mod kept;
mod marker;
pub mod only;
mod original;
mod others;
mod own_places;
mod owners;
mod parked;
pub mod placement;
mod prepared;
mod raw;
mod receive;
mod received;
mod request;
pub mod run_server;
mod seen;
pub mod source;
mod standby;
pub mod strays;
mod subscriptions;
mod surplus;
mod timelines;
mod tree;
pub mod unfinished;
mod whole_pages;
mod zeroing;

use std::collections::BTreeSet;
use std::path::PathBuf;

use crate::context::Context;
use crate::error::{Error, Result};
use crate::names::random_suffix;
use crate::postgres::instance;
use crate::refusal::Refusal;
use crate::repository;
use crate::repository::Shipped;
use crate::repository::harm;
use crate::repository::kin::{Identity, Kin};
use crate::set::journal::RestoreJournal;
use crate::set::manifest::Manifest;
use crate::set::verify;
use crate::volume::mounts::Mounts;
use crate::volume::zfs::DatasetName;

pub(crate) use parked::{SUBCOMMAND as HOLD, run_hold as hold};
pub(crate) use tree::write_auto_conf;

pub use request::{CloneOptions, Request, What};

use alone::{Alone, AloneBelow};
use build::{Build, Plan};
use placement::{Naming, Placement};
use source::{FromRepository, Source};

/// What a restore would make.
#[derive(Debug, Clone)]
pub struct Planned {
    /// The set it would be made from.
    pub set: Manifest,
    /// Where everything would be.
    pub placement: Placement,
    /// The set of an unfinished restore that it would continue.
    pub goes_on: Option<String>,
    /// The datasets that exist already, and would be brought to the set's state.
    pub there: BTreeSet<DatasetName>,
}

/// A restored cluster.
#[derive(Debug, Clone)]
pub struct Restored {
    /// The set it was made from.
    pub set: Manifest,
    /// The id that its clones carry.
    pub id: String,
    /// Where everything is.
    pub placement: Placement,
    /// The port, if one was set.
    pub port: Option<u16>,
    /// Whether the server runs.
    pub started: bool,
    /// Where its socket is, if the server runs.
    pub socket_directory: Option<PathBuf>,
    /// What the server said during recovery, in its own words.
    pub recovery_log: Vec<String>,
    /// max_logical_replication_workers is 0, so that it takes nothing from the original's publishers.
    pub holds_subscriptions: bool,
    /// What exists in it by name only.
    pub not_restored: only::NotRestored,
    /// What was written, if it was restored as files.
    pub written: Option<as_files::Written>,
    /// The restore succeeded, but somebody should look at these.
    pub problems: Vec<Problem>,
}

/// A problem with a restored cluster, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The problem, in the words of the program that reported it.
    pub what: String,
    /// What to do about it.
    pub hint: String,
}

/// Restores a set.
///
/// # Errors
/// When the set can't be trusted, the target can't be reached, the place is in use, or anything fails on the way.
/// Then nothing is left, except what came from a repository: `--delta` continues with that.
pub fn run(cx: &Context, request: &Request) -> Result<Restored> {
    run_then(cx, request, |_, _| Ok(()))
}

/// The same, with a final step that belongs to it: if `finally` fails, everything is undone.
///
/// # Errors
/// As [`run`].
pub fn run_then(
    cx: &Context,
    request: &Request,
    finally: impl FnOnce(&Restored, &RestoreJournal) -> Result<()>,
) -> Result<Restored> {
    reachable(cx, request)?;
    unfinished::remove(cx)?;
    let _alone = match &request.what {
        What::Datasets { parent, .. } => {
            let alone = AloneBelow::dataset(cx, parent)?;
            strays::name_half_received(cx, parent)?;
            Some(alone)
        }
        What::Clones { .. } | What::Files { .. } => None,
    };
    let mut build = prepare(cx, request, Alone::in_folders)?;
    match build.run(finally) {
        Ok(mut restored) => {
            restored.problems.extend(standby::does_not_stream(cx, request, &restored));
            restored.problems.extend(subscriptions::go_on(request, &restored));
            restored.problems.extend(only::renamed::problem(request, &restored));
            Ok(restored)
        }
        // Its server has been started for them: whatever went wrong since, they may have written to it.
        Err(error) if build.is_theirs() => Err(build.leave(error)),
        // What was received can be continued once the keys are loaded.
        Err(Error::Refused(refusal)) if matches!(*refusal, Refusal::KeysNotLoaded { .. }) => {
            build.keep()?;
            received::remove_older(&build);
            Err(Error::Refused(refusal))
        }
        // So can what came from a repository, which may have taken hours.
        Err(error) if build.is_worth_keeping() => Err(build.keep_received(error)),
        Err(error) => {
            build.undo();
            Err(error)
        }
    }
}

/// Checks that nothing is to be made on a suspended pool.
fn reachable(cx: &Context, request: &Request) -> Result<()> {
    let tablespaces = request.tablespaces.iter().map(|(_, path)| path);
    tablespaces.chain([&request.to]).try_for_each(|path| cx.zfs.reachable(path))?;
    request.what.below().map_or(Ok(()), |parent| cx.zfs.answers(parent))
}

/// Checks the space in the pools: a server on clones writes into the same pools as the original, so they need as much
/// free space as for a backup.
fn check_space(cx: &Context, placement: &Placement) -> Result<()> {
    let clones = placement.volumes.iter().filter_map(|volume| volume.dataset.as_ref());
    let parents: BTreeSet<_> = clones.filter_map(DatasetName::parent).collect();
    let needed = cx.cluster.min_free();
    for parent in parents {
        let available = cx.zfs.bytes(&parent, "available")?;
        if available < needed {
            let dataset = parent.to_string();
            return Err(Refusal::NoSpace { dataset, available, needed }.into());
        }
    }
    Ok(())
}

/// Returns what [`run`] would do: makes the checks and the layout, and nothing else.
///
/// # Errors
/// As [`run`] before it makes anything.
pub fn plan(cx: &Context, request: &Request) -> Result<Planned> {
    reachable(cx, request)?;
    let build = prepare(cx, request, |_| Alone::in_folders(Vec::new()))?;
    let goes_on = build.unfinished_set();
    Ok(Planned { set: build.manifest, placement: build.placement, goes_on, there: build.there })
}

/// Finds out everything that can be found out before anything is made; `alone` keeps other restores out of the
/// folders that are looked at.
fn prepare<'a>(
    cx: &'a Context,
    request: &'a Request,
    alone: impl FnOnce(Vec<PathBuf>) -> Result<Alone>,
) -> Result<Build<'a>> {
    let id = match &request.clone {
        Some(clone) => crate::clone::new_id(&clone.name)?,
        None => format!("restore-{}", random_suffix()?),
    };
    let (manifest, source) = open_source(cx, request, &id)?;
    let mut recovery = request.recovery.clone();
    // A standby that was shut down would continue on its primary's timeline.
    recovery.set_is_shut_down =
        manifest.strategy == crate::plan::Strategy::Cold && !manifest.postgres.standby;
    recovery.set_is_minimal = manifest.postgres.wal_minimal;
    recovery.check(&manifest)?;
    choice::check_way(cx, &manifest, &recovery)?;
    match &source {
        Source::Snapshots => verify::set(cx, &manifest)?,
        Source::Repository(from) if !from.only.is_all() => {
            whole_pages::check(&from.repository, &from.shipped, &recovery, request.start)?;
        }
        Source::Repository(_) => {}
    }
    let directory = guard::real(&request.to)?;
    let elsewhere = request.tablespaces.iter();
    let tablespaces = elsewhere
        .map(|(which, path)| Ok((which.clone(), guard::place_of_tablespace(path, &directory)?)));
    let tablespaces = tablespaces.collect::<Result<Vec<_>>>()?;
    // Two clusters' datasets may have the same parent, and both clusters may have a clone of this name.
    let name = match &request.clone {
        Some(clone) => format!("clone-{}-{}", cx.name, clone.name),
        None => id.clone(),
    };
    let naming = match &source {
        Source::Snapshots => Naming::Clones { name: &name, parent: request.what.below() },
        Source::Repository(from) => match &from.parent {
            Some(parent) => Naming::Below(parent),
            None => Naming::Folders,
        },
    };
    // Before the folders are locked: if one were named twice, we would be the other restore ourselves.
    let mut placement = placement::place(&manifest, &directory, &tablespaces, &naming)?;
    if recovery.standby.is_some() {
        standby::check(cx, request, &manifest, &placement)?;
    }
    let mut folders = vec![directory.clone()];
    if matches!(request.what, What::Files { .. }) {
        // A dataset's mount point can't be locked: then it couldn't be unmounted.
        folders.extend(tablespaces.iter().map(|(_, path)| path.clone()));
    }
    let alone = alone(folders)?;
    if request.what.is_delta() {
        let kept = kept::find(cx, &manifest, &placement, source.parent())?;
        placement = placement::place_over(&manifest, &directory, &tablespaces, &naming, &kept)?;
    }
    let there = guard::check(
        cx,
        &guard::Asked {
            manifest: &manifest,
            placement: &placement,
            tablespaces: &tablespaces,
            source: &source,
            delta: request.what.is_delta(),
        },
    )?;
    beforehand::check(cx, request.what.below(), &source, &placement, &there)?;
    match &source {
        Source::Snapshots => check_space(cx, &placement)?,
        Source::Repository(from) => check_whole(cx, from, &placement, &there)?,
    }
    if request.start {
        // It becomes a word of the server's command line, which is UTF-8.
        if let Some(path) = Some(&placement.data).filter(|path| path.to_str().is_none()) {
            return Err(Error::usage(
                format!("\"{}\" isn't UTF-8: no server can be started there", path.display()),
                "restore to another folder, or leave out --start",
            ));
        }
        // The server gets the restored tablespaces there, in its own namespace.
        let originals = placement.tablespaces.values().map(|tablespace| &tablespace.original);
        originals.into_iter().try_for_each(|path| cx.zfs.reachable(path))?;
        let bin_dir = cx.cluster.bin_dir.as_deref();
        instance::bin_dir_of(bin_dir, manifest.postgres.major, cx.os_user()?)?;
    }
    if let Some(port) = request.port.filter(|_| request.start) {
        run_server::check_port(port, &run_server::sockets(cx, &directory))?;
    }
    let bases = source.bases(cx, &placement, &there)?;
    Build::new(cx, request, Plan { recovery, manifest, placement, id, source, there, bases, alone })
}

/// Opens the set, and the source of its volumes.
fn open_source(cx: &Context, request: &Request, id: &str) -> Result<(Manifest, Source)> {
    let (set, recovery) = (request.set.as_deref(), &request.recovery);
    let (name, parent, delta, wanted) = match &request.what {
        What::Clones { .. } => return Ok((choice::here(cx, set, recovery)?, Source::Snapshots)),
        What::Datasets { repository, parent, delta, only } => {
            (repository, Some(parent.clone()), *delta, only)
        }
        What::Files { repository, delta, only } => (repository, None, *delta, only),
    };
    let repository = repository::open_meant(cx, name.as_deref())?;
    let shipped = choice::stored(cx, &repository, set, recovery)?;
    if parent.is_none() || !wanted.is_all() {
        refuse_raw(&shipped)?;
    }
    let (only, not_restored) = only::Only::find(&repository, &shipped, wanted)?;
    let kin = match delta {
        true => repository.kin_of(cx, &shipped)?,
        false => Kin::of_set(&shipped, &Identity::default(), &[]),
    };
    let makes_parent = match &parent {
        Some(parent) => !cx.zfs.exists(parent.as_str())?,
        None => false,
    };
    let from = FromRepository {
        repository,
        kin,
        parent,
        makes_parent,
        staging: cx.state.path("staging").join(id),
        delta,
        only,
        not_restored,
        shipped,
    };
    Ok((from.shipped.manifest.clone(), Source::Repository(Box::new(from))))
}

/// Checks, before a finished older restore is changed, that the repository has all that the set needs: otherwise that
/// restore would be lost, and nothing could complete it.
fn check_whole(
    cx: &Context,
    from: &FromRepository,
    placement: &Placement,
    there: &BTreeSet<DatasetName>,
) -> Result<()> {
    if !from.delta || !may_be_finished(cx, placement, there)? {
        return Ok(());
    }
    let memory = harm::memory(cx, &from.repository);
    let harmed = harm::of_sets(&from.repository, &memory, &[&from.shipped])?;
    let Some(harm) = harmed.into_iter().next() else { return Ok(()) };
    Err(Error::failed(format!(
        "set {} isn't whole in repository {}: {}. What is in \"{}\" was not changed",
        harm.set,
        from.repository.name,
        harm.why,
        placement.directory.display()
    ))
    .with_hint(format!("{}; or restore another set", harm::hint(&from.repository.name))))
}

/// Whether the older restore is finished, as far as can be seen: the data directory's dataset may not be mounted (its
/// key isn't loaded, or its pool was imported without mounts). That of an unfinished one is parked.
fn may_be_finished(
    cx: &Context,
    placement: &Placement,
    there: &BTreeSet<DatasetName>,
) -> Result<bool> {
    if control::is_in_place(&placement.data) {
        return Ok(true);
    }
    let with_data = placement.volumes.iter().find(|volume| placement.has_data(volume));
    let dataset = with_data.and_then(|volume| volume.dataset.as_ref());
    let Some(dataset) = dataset.filter(|dataset| there.contains(*dataset)) else {
        return Ok(false);
    };
    let mounts = Mounts::read()?;
    let is_mounted = mounts.iter().any(|mount| mount.is_of(dataset.as_str()));
    Ok(!is_mounted && !parked::is_parked(&cx.zfs, dataset)?)
}

/// Refuses a set with raw volumes: what is stored raw can only be received as a whole.
fn refuse_raw(shipped: &Shipped) -> Result<()> {
    match shipped.raw().next() {
        None => Ok(()),
        Some(volume) => Err(Refusal::StoredRaw {
            set: shipped.manifest.set.to_string(),
            dataset: volume.dataset.to_string(),
        }
        .into()),
    }
}
