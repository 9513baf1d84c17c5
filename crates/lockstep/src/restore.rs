//! A restore, from the set to a cluster, whose server is started where that is asked for. Its data are clones of this
//! host's snapshots, or come out of a repository: datasets, or files on any file system.
//!
//! Everything is named in a journal before it is made. Where something goes wrong, all that was made is taken away again, at
//! once or by the next start; but for datasets that wait for their keys, and for what came out of a repository, with which
//! `--delta` goes on. The set's snapshots are only read. What an older restore left is changed by one that is
//! to bring it to the set's state alone, and from its first change on no server starts on it until all of it is there.

mod alone;
pub mod as_files;
mod bases;
mod beforehand;
mod behind;
mod build;
mod choice;
mod control;
mod fetched;
mod fold;
pub(crate) mod gone_on;
mod guard;
mod history_command;
mod kept;
mod marker;
pub mod only;
mod original;
mod owners;
mod parked;
pub mod placement;
mod prepared;
mod raw;
mod receive;
mod received;
mod request;
pub mod run_server;
pub mod source;
mod standby;
pub mod strays;
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
use crate::set::journal::RestoreJournal;
use crate::set::manifest::Manifest;
use crate::set::verify;
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
    /// Of this set.
    pub set: Manifest,
    /// Where everything would be.
    pub placement: Placement,
    /// The set of an unfinished restore that it would go on with.
    pub goes_on: Option<String>,
    /// The datasets that are there, and would be brought to the set's state.
    pub there: BTreeSet<DatasetName>,
}

/// A restored cluster.
#[derive(Debug, Clone)]
pub struct Restored {
    /// The set it was made from.
    pub set: Manifest,
    /// The id on its clones.
    pub id: String,
    /// Where everything is.
    pub placement: Placement,
    /// The port, where one was set.
    pub port: Option<u16>,
    /// The server runs.
    pub started: bool,
    /// Where its socket is, where the server runs.
    pub socket_directory: Option<PathBuf>,
    /// What recovery said, in its own words.
    pub recovery_log: Vec<String>,
    /// max_logical_replication_workers is 0, so that it takes nothing from the original's publishers.
    pub holds_subscriptions: bool,
    /// What it has by name alone.
    pub not_restored: only::NotRestored,
    /// What was written, where it became files.
    pub written: Option<as_files::Written>,
    /// It is there, and somebody should look.
    pub problems: Vec<Problem>,
}

/// What is the matter with a cluster that was restored, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// What it is, with the words of who said so.
    pub what: String,
    /// What to do about it.
    pub hint: String,
}

/// Restores a set.
///
/// # Errors
/// When the set can't be trusted, the target can't be reached, the place is in use, or anything
/// fails on the way; then nothing is left behind, but for what came out of a repository: `--delta` goes
/// on with that.
pub fn run(cx: &Context, request: &Request) -> Result<Restored> {
    run_then(cx, request, |_, _| Ok(()))
}

/// The same, with a last step that belongs to it: when `finally` fails, all is undone.
///
/// # Errors
/// As [`run`].
pub fn run_then(
    cx: &Context,
    request: &Request,
    finally: impl FnOnce(&Restored, &RestoreJournal) -> Result<()>,
) -> Result<Restored> {
    unfinished::remove(cx)?;
    let _alone = match &request.what {
        What::Datasets { parent, .. } => Some(AloneBelow::dataset(cx, parent)?),
        What::Clones { .. } | What::Files { .. } => None,
    };
    let mut build = prepare(cx, request, Alone::in_folders)?;
    match build.run(finally) {
        Ok(mut restored) => {
            restored.problems.extend(standby::does_not_stream(cx, request, &restored));
            Ok(restored)
        }
        // What was received can go on once the keys are there.
        Err(Error::Refused(refusal)) if matches!(*refusal, Refusal::KeysNotLoaded { .. }) => {
            build.keep()?;
            received::remove_older(&build);
            Err(Error::Refused(refusal))
        }
        // And so can what came out of a repository, which may have taken hours.
        Err(error) if build.is_worth_keeping() => Err(build.keep_received(error)),
        Err(error) => {
            build.undo();
            Err(error)
        }
    }
}

/// A server on clones writes into the same pools as the original: these need as much left as for a backup.
fn check_space(cx: &Context, placement: &Placement) -> Result<()> {
    let clones = placement.volumes.iter().filter_map(|volume| volume.dataset.as_ref());
    let parents: BTreeSet<_> = clones.filter_map(DatasetName::parent).collect();
    let needed = cx.cluster.min_free_mib << 20;
    for parent in parents {
        let available = cx.zfs.bytes(&parent, "available")?;
        if available < needed {
            let dataset = parent.to_string();
            return Err(Refusal::NoSpace { dataset, available, needed }.into());
        }
    }
    Ok(())
}

/// What [`run`] would do: the checks and the layout, with nothing made.
///
/// # Errors
/// As [`run`] before it makes anything.
pub fn plan(cx: &Context, request: &Request) -> Result<Planned> {
    let build = prepare(cx, request, |_| Alone::in_folders(Vec::new()))?;
    let goes_on = build.unfinished_set();
    Ok(Planned { set: build.manifest, placement: build.placement, goes_on, there: build.there })
}

/// Everything that can be found out before anything is made; `alone` keeps others from the folders that are
/// looked at.
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
    // A standby that was shut down would go on with its primary's timeline.
    recovery.set_is_shut_down =
        manifest.strategy == crate::plan::Strategy::Cold && !manifest.postgres.standby;
    recovery.set_is_minimal = manifest.postgres.wal_minimal;
    recovery.check(&manifest)?;
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
    // Two clusters' datasets may lie beside one another, and both have a clone of this name.
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
    // Before the folders are locked: of one that was named twice we would be the other restore ourselves.
    let mut placement = placement::place(&manifest, &directory, &tablespaces, &naming)?;
    if recovery.standby.is_some() {
        standby::check(cx, request, &manifest, &placement)?;
    }
    let mut folders = vec![directory.clone()];
    if matches!(request.what, What::Files { .. }) {
        // A dataset's mount point can't be held: it couldn't be unmounted.
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
    if matches!(source, Source::Snapshots) {
        check_space(cx, &placement)?;
    }
    if request.start {
        instance::bin_dir_of(cx.cluster.bin_dir.as_deref(), manifest.postgres.major)?;
    }
    if let Some(port) = request.port.filter(|_| request.start) {
        run_server::check_port(port, &run_server::sockets(cx, &directory))?;
    }
    let bases = source.bases(&cx.zfs, &placement, &there)?;
    Build::new(cx, request, Plan { recovery, manifest, placement, id, source, there, bases, alone })
}

/// The set, and where its volumes come from.
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
    let makes_parent = match &parent {
        Some(parent) => !cx.zfs.exists(parent.as_str())?,
        None => false,
    };
    let from = FromRepository {
        repository,
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

/// What is stored raw can be received as a whole alone.
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
