//! Collects the facts of a cluster as they are now: disk, server, ZFS. It changes nothing.

mod configuration;

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use pgfiles::control_file::ControlFile;
use pgfiles::lsn::Lsn;
use postgres::Client;

use crate::config::Place;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::mirror::record::refuse_incomplete;
use crate::plan::facts::{Facts, NoServer, PrimarySeen, ServerFacts, was_shut_down};
use crate::plan::layout::{Layout, PartKind};
use crate::postgres::links::{self, Link};
use crate::postgres::{connection, identity, instance, running, session, settled};
use crate::process::quote;
use crate::refusal::Refusal;
use crate::restore::control;
use crate::volume::discover::{self, PartPath, discover};
use crate::volume::zfs::DatasetName;

/// How long a standby may take to replay what its primary had written when it was asked.
const REPLAY_PATIENCE: Duration = Duration::from_secs(3);

/// Facts, with the connection on which they were read.
pub struct Survey {
    /// What is known.
    pub facts: Facts,
    /// The open connection, if there is one.
    pub client: Option<Client>,
}

/// Reads everything.
///
/// # Errors
/// When the disk or ZFS can't be read, a part can't be snapshotted or isn't where its dataset is, a link leads
/// outside the parts, or the server that answers is another one.
pub fn take(cx: &Context) -> Result<Survey> {
    let directory = &cx.cluster.data_directory;
    // Before the server is asked, too: it doesn't answer.
    reachable(cx)?;
    refuse_incomplete(cx)?;
    let control = instance::read_control(directory).map_err(|error| no_cluster(cx, error))?;
    let postmaster = instance::postmaster(directory)?;
    let is_seen = postmaster.is_some();
    let (server, mut client) = ask_server(cx, &control, is_seen)?;
    let primary = match (&server, client.as_mut()) {
        (Ok(server), Some(client)) if server.in_recovery => {
            ask_primary(cx, &control, client, server)?
        }
        (Ok(server), Some(_)) => beside(cx, server),
        _ => None,
    };
    let configuration = configuration::find(cx, &control, server.as_ref().ok(), client.as_mut())?;
    let layout = layout(cx, server.as_ref().ok())?;
    check_places(cx, &layout, &control)?;
    let multi_snapshot = match layout.volumes.first() {
        Some(volume) => cx.zfs.multi_snapshot(volume.pool())?,
        None => false,
    };
    let repositories_within = repositories_within(cx, &layout);
    let unsettled = match server {
        Ok(_) => None,
        Err(_) => settled::look(&layout, &control)?,
    };
    let facts = Facts {
        layout,
        control,
        postmaster,
        links: links::find(directory)?.others.into_iter().map(|l| (l.path, l.target)).collect(),
        standby_signal: directory.join("standby.signal").exists(),
        backup_label: directory.join("backup_label").exists(),
        unsettled,
        has_primary: cx.cluster.primary.is_some(),
        primary,
        server,
        configuration,
        multi_snapshot,
        checkpoint: cx.cluster.checkpoint,
        min_free: cx.cluster.min_free(),
        repositories_within,
    };
    Ok(Survey { facts, client })
}

/// Finds the cluster's repositories whose folder is on one of its volumes. What can't be looked at is reported once it
/// is needed.
fn repositories_within(cx: &Context, layout: &Layout) -> Vec<(String, DatasetName)> {
    let device = |path: &Path| std::fs::metadata(path).ok().map(|metadata| metadata.dev());
    let volume_of = |folder: &Path| {
        let is_it = device(folder).filter(|_| cx.zfs.suspended_at(folder).is_none())?;
        let mut volumes = layout.volumes.iter();
        volumes.find(|volume| device(&volume.mountpoint) == Some(is_it))
    };
    let mut found = Vec::new();
    for name in &cx.cluster.repositories {
        if let Some(Ok(Place::Folder(folder))) = cx.repositories.get(name).map(|it| it.place())
            && let Some(volume) = volume_of(&folder)
        {
            found.push((name.clone(), volume.dataset.clone()));
        }
    }
    found
}

/// Without pg_control there is no cluster: the configuration points elsewhere.
fn no_cluster(cx: &Context, error: Error) -> Error {
    let directory = cx.cluster.data_directory.display();
    let is_absent = matches!(&error, Error::Io { source, .. }
        if matches!(source.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory));
    let key = format!("clusters.{}.data_directory", cx.name);
    if control::is_held(&cx.cluster.data_directory) {
        return Error::usage(
            format!(
                "{key} \"{directory}\" is a restore that hasn't ended: its pg_control is called {}",
                control::UNDER_WAY
            ),
            "wait for it if it still runs; else continue it: the same restore with --delta. No pg_resetwal: nothing is damaged",
        );
    }
    match is_absent {
        false => error,
        true => Error::usage(
            format!("{key} \"{directory}\" isn't a data directory: it has no global/pg_control"),
            format!(
                "is {key} right, and its dataset mounted? `zfs mount -a` mounts what isn't mounted"
            ),
        ),
    }
}

/// Checks that no part of the cluster is on a suspended pool. What can't be read now is reported once it is needed.
fn reachable(cx: &Context) -> Result<()> {
    let directory = &cx.cluster.data_directory;
    cx.zfs.reachable(directory)?;
    let parts = instance::parts(directory, None).unwrap_or_default();
    parts.iter().try_for_each(|part| cx.zfs.reachable(&part.path))
}

/// Reads only the layout.
///
/// # Errors
/// As [`take`].
pub fn layout(cx: &Context, server: Option<&ServerFacts>) -> Result<Layout> {
    find(cx, &parts(cx, server)?)
}

/// Returns where the parts are, according to the data directory and the server.
///
/// # Errors
/// As [`take`].
pub fn parts(cx: &Context, server: Option<&ServerFacts>) -> Result<Vec<PartPath>> {
    let data_directory = &cx.cluster.data_directory;
    reachable(cx)?;
    if let Some(Link { path, target }) = links::find(data_directory)?.strays.into_iter().next() {
        return Err(Refusal::StrayLink { path, target }.into());
    }
    instance::parts(data_directory, server)
}

/// Finds the datasets that hold them.
///
/// # Errors
/// As [`take`].
pub fn find(cx: &Context, parts: &[PartPath]) -> Result<Layout> {
    discover(&cx.zfs, parts).map_err(|error| match &error {
        Error::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
            let hint = away(cx, parts).unwrap_or_else(|| {
                "is its dataset mounted, and its pool imported? `zpool import` shows those that could be".into()
            });
            error.with_hint(hint)
        }
        _ => error,
    })
}

/// Says what to do if a part is missing because its pool in the newest set isn't imported.
fn away(cx: &Context, parts: &[PartPath]) -> Option<String> {
    let newest = cx.state.sets().ok()?.0.pop()?;
    let is_gone = |path: &Path| parts.iter().any(|part| part.path == path && !path.exists());
    let mut volumes = newest.volumes.iter();
    let volume = volumes.find(|volume| volume.parts.iter().any(|part| is_gone(&part.path)))?;
    let is_away = !cx.zfs.exists(&volume.pool).ok()?;
    is_away.then(|| {
        let pool = &volume.pool;
        format!("pool \"{pool}\", on which it was, isn't imported: zpool import {}", quote(pool))
    })
}

/// Checks that the parts' files are on their datasets. This isn't repeated after the last snapshot: mounting or
/// unmounting a dataset meanwhile changes the layout.
fn check_places(cx: &Context, layout: &Layout, control: &ControlFile) -> Result<()> {
    discover::check_mounted(&cx.zfs, layout)?;
    let is_reachable = |path: &Path| cx.zfs.suspended_at(path).is_none();
    if let Some((pid, part)) = running::seen_elsewhere(&layout.parts, is_reachable)? {
        let (part, path) = (part.kind.clone(), part.path.clone());
        return Err(Refusal::SeenElsewhere { part, path, pid }.into());
    }
    // TABLESPACE_VERSION_DIRECTORY in common/relpath.h; CREATE TABLESPACE always makes it.
    let Some(major) = control.major_version() else { return Ok(()) };
    let expected = format!("PG_{major}_{}", control.catalog_version);
    for part in &layout.parts {
        let PartKind::Tablespace { oid, .. } = part.kind else { continue };
        if part.real_path.join(&expected).is_dir() {
            continue;
        }
        // DROP TABLESPACE removes the folder before the link.
        let links = instance::tablespace_links(&cx.cluster.data_directory)?;
        if links.iter().any(|(known, _)| *known == oid) {
            let path = part.real_path.clone();
            return Err(Refusal::NoVersionFolder { part: part.kind.clone(), path, expected }.into());
        }
    }
    Ok(())
}

type Answer = (Result<ServerFacts, NoServer>, Option<Client>);

/// Asks the server. One whose process isn't visible may run in another PID namespace (a container's): unless
/// pg_control says that the cluster was shut down, whatever answers at `host` is asked whether it is this cluster.
fn ask_server(cx: &Context, control: &ControlFile, is_seen: bool) -> Result<Answer> {
    let may_run = cx.cluster.host.is_some() && !was_shut_down(control);
    if !is_seen && !may_run {
        let another = another(cx, control).map(NoServer::Another);
        return Ok((Err(another.unwrap_or(NoServer::NotRunning)), None));
    }
    let mut client = match connection::connect(cx.cluster) {
        Ok(client) => client,
        Err(why) => return Ok((Err(why), None)),
    };
    let facts = connection::facts(&mut client)?;
    session::hear(&mut client)?;
    same_cluster(cx, control, &facts)?;
    same_server(cx, &mut client)?;
    session::hear(&mut client)?;
    Ok((Ok(facts), Some(client)))
}

/// Says how the server that answers at `host` while this cluster is shut down differs: after an upgrade or a move,
/// the old data directory could be backed up forever.
fn another(cx: &Context, control: &ControlFile) -> Option<String> {
    let mut client = connection::connect(cx.cluster).ok()?;
    let facts = connection::facts(&mut client).ok()?;
    let same = same_cluster(cx, control, &facts).and_then(|()| same_server(cx, &mut client));
    match same {
        Err(Error::Refused(refusal)) => match *refusal {
            Refusal::WrongServer { difference } | Refusal::OtherServer { difference, .. } => {
                Some(difference)
            }
            _ => None,
        },
        // This very cluster, just started: the check of pg_control after the snapshots will show it.
        _ => None,
    }
}

/// Asks the standby's primary how far it is, and the standby whether it is as far. A standby that streams from
/// another one keeps streaming when their primary is dead.
fn ask_primary(
    cx: &Context,
    control: &ControlFile,
    standby: &mut Client,
    server: &ServerFacts,
) -> Result<Option<PrimarySeen>> {
    let Some(connected) = connection::connect_primary(cx.cluster) else { return Ok(None) };
    let mut primary = match connected {
        Ok(client) => client,
        Err(no_server) => return Ok(Some(PrimarySeen::Unreachable(no_server.words()))),
    };
    let written = match session::flushed(&mut primary, server.system_identifier) {
        Ok(Some(lsn)) => lsn,
        Ok(None) => return Ok(Some(PrimarySeen::InRecovery)),
        Err(error) => return Ok(Some(PrimarySeen::Unreachable(error.chain()))),
    };
    let (theirs, own) = match session::timeline(&mut primary, control.wal_segment_size) {
        Ok(theirs) => (theirs, control.newest_timeline()),
        Err(error) => return Ok(Some(PrimarySeen::Unreachable(error.chain()))),
    };
    // A former primary that came back by itself: who has all that it wrote isn't current by that.
    if theirs < own {
        return Ok(Some(PrimarySeen::Unreachable(format!(
            "it is on timeline {theirs}, and the standby on {own}: a failover has left it behind"
        ))));
    }
    let deadline = Instant::now() + REPLAY_PATIENCE;
    loop {
        let replayed = session::replayed(standby)?.0.unwrap_or(Lsn::INVALID);
        if replayed >= written {
            return Ok(Some(PrimarySeen::Reached));
        }
        if Instant::now() > deadline {
            let behind = written.bytes_since(replayed).unwrap_or(0);
            return Ok(Some(PrimarySeen::Behind(behind)));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Looks whether `primary` names another primary of this cluster: then this server was its standby, and was promoted
/// although no failover took place. After a failover nobody answers there, or a standby does, or, if it is an address
/// that moves, this very server.
fn beside(cx: &Context, server: &ServerFacts) -> Option<PrimarySeen> {
    let mut primary = connection::connect_primary(cx.cluster)?.ok()?;
    session::flushed(&mut primary, server.system_identifier).ok()??;
    let difference = identity::difference(&mut primary, &cx.cluster.data_directory).ok()?;
    difference.map(|_| PrimarySeen::Beside)
}

fn same_cluster(cx: &Context, control: &ControlFile, server: &ServerFacts) -> Result<()> {
    if server.system_identifier != control.system_identifier {
        let difference = format!(
            "its system identifier is {}, that of \"{}\" is {}",
            server.system_identifier,
            cx.cluster.data_directory.display(),
            control.system_identifier
        );
        return Err(Refusal::WrongServer { difference }.into());
    }
    // A user without pg_read_all_settings sees no data_directory; the identifier has to be enough then.
    if server.data_directory.as_os_str().is_empty() {
        return Ok(());
    }
    let configured = &cx.cluster.data_directory;
    let configured = std::fs::canonicalize(configured).map_err(Error::io("find", configured))?;
    // A folder that doesn't exist here at all is on another host.
    if std::fs::canonicalize(&server.data_directory).ok() != Some(configured) {
        let difference = format!(
            "its data_directory is \"{}\", the configured one is \"{}\"",
            server.data_directory.display(),
            cx.cluster.data_directory.display()
        );
        return Err(Refusal::WrongServer { difference }.into());
    }
    Ok(())
}

/// The same cluster and the same path aren't enough: a standby shares both with its primary.
fn same_server(cx: &Context, client: &mut Client) -> Result<()> {
    let data_directory = &cx.cluster.data_directory;
    match identity::difference(client, data_directory)? {
        None => Ok(()),
        Some(difference) => {
            let data_directory = data_directory.clone();
            Err(Refusal::OtherServer { data_directory, difference }.into())
        }
    }
}
