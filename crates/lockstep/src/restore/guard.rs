//! What a restore must not touch: the clusters of the configuration, folders that hold anything but an older restore,
//! datasets that are mounted elsewhere, and whatever a link leads to.
//!
//! What could go wrong: a mistyped folder or dataset. `--delta` removes what the set doesn't have, and rolls datasets
//! back; so everything that would be changed is checked before the first change.

mod enter;
mod live;
mod mounted;
mod older;

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

use super::control;
use super::marker::Marker;
use super::placement::Placement;
use super::source::Source;
use super::surplus;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::files;
use crate::postgres::server;
use crate::process::quote;
use crate::refusal::Refusal;
use crate::set::manifest::Manifest;
use crate::steps;
use crate::volume::mounts::Mounts;
use crate::volume::zfs::DatasetName;

use live::Live;

/// What a restore is about to do.
pub(super) struct Asked<'a> {
    pub(super) manifest: &'a Manifest,
    pub(super) placement: &'a Placement,
    /// The folders that were given for tablespaces, as returned by [`real`].
    pub(super) tablespaces: &'a [(String, PathBuf)],
    /// Where the volumes come from.
    pub(super) source: &'a Source,
    /// An older restore may exist there.
    pub(super) delta: bool,
}

/// Checks every place that the restore would change; returns those of its datasets that exist already.
pub(super) fn check(cx: &Context, asked: &Asked<'_>) -> Result<BTreeSet<DatasetName>> {
    let &Asked { placement, delta, .. } = asked;
    let there = match asked.source.parent() {
        Some(parent) => there(cx, parent, placement)?,
        None => BTreeSet::new(),
    };
    if let Some(dataset) = there.iter().next().filter(|_| !delta) {
        return Err(Refusal::DatasetExists { dataset: dataset.to_string() }.into());
    }
    let mut live = live::live(cx)?;
    if delta {
        live = live::without_asked(cx, live, asked, &there)?;
    }
    let named = asked.tablespaces.iter().map(|(_, path)| path.as_path());
    for path in std::iter::once(&*placement.directory).chain(named.clone()) {
        outside(&live, path)?;
        if !(delta && is_older_link(placement, path)) {
            folder_or_nothing(path)?;
        }
        // A dataset can be mounted at a folder that is there, wherever that is.
        if path == placement.directory || !path.exists() {
            files::refuse_read_only(path)?;
        }
        if !delta && !older::is_empty(path)? {
            return Err(in_use(path, placement));
        }
        no_folder_for_a_link(placement, path)?;
    }
    if let Some(owner) = cx.os_user()? {
        // A tablespace's folder gets the owner and mode that it has in the set; DIR keeps its own.
        let above = named.filter_map(Path::parent);
        let mut folders = std::iter::once(&*placement.directory).chain(above);
        folders.try_for_each(|folder| enter::check(folder, owner, &cx.cluster.os_user))?;
    }
    steps::reached("restore.checked")?;
    if delta {
        links(asked)?;
        // An older restore may have any of them on a file system of its own.
        placement.folders().try_for_each(|folder| files::refuse_read_only(folder))?;
    }
    let mut places = all(placement).map(real).collect::<Result<Vec<_>>>()?;
    let mounts = Mounts::read()?;
    let filled = places.len();
    let surplus = if delta { surplus::find(placement)? } else { Vec::new() };
    // These are removed, unless they are links, which aren't followed.
    places.extend(surplus.iter().filter(|path| !path.is_symlink()).cloned());
    if let Some((place, live)) = live::overlap(&places, &live, &mounts) {
        return Err(Refusal::DirectoryHoldsCluster {
            path: place.clone(),
            cluster: live.cluster.clone(),
            part: live.kind.clone(),
            at: live.path.clone(),
        }
        .into());
    }
    if !delta {
        mounted::nothing_at(placement, &mounts)?;
        mounted::nothing_belongs_at(placement, &mounts, &mounted::known(cx, placement)?)?;
        return Ok(there);
    }
    mounted::nothing_inside(&places[..filled], placement, &mounts)?;
    if let Some(pid) = server::running(&placement.data)? {
        return Err(runs(&placement.data, pid));
    }
    // By its own paths: an older restore may have its data directory elsewhere in DIR, and a folder for a tablespace
    // may be another cluster's by now.
    if let Some((place, part, server)) = live::used(&cx.zfs, &places, &mounts)? {
        return Err(match server.data.starts_with(&placement.directory) {
            true => runs(&server.data, server.pid),
            false => Refusal::DirectoryHoldsServer {
                path: place.clone(),
                part: part.kind,
                at: part.path,
                data: server.data,
                pid: server.pid,
            }
            .into(),
        });
    }
    mounted::datasets(cx, placement, &there, &mounts)?;
    older::check(cx, asked, &there)?;
    older::no_files_for_a_link(asked, &surplus, &mounts)?;
    older::no_files_for_a_dataset(placement, &there, &mounts)?;
    if mounted::are_files(placement) {
        let known = mounted::known(cx, placement)?;
        older::no_dataset_for_files(cx, placement, &mounts, &known)?;
        // Of an older restore on somebody's own dataset nothing is seen while that isn't mounted.
        mounted::nothing_belongs_at(placement, &mounts, &known)?;
    }
    Ok(there)
}

/// Refuses to change an older restore on which somebody has started a server since [`check`] looked: reading what is needed
/// of the repository may have taken long. Call it just before pg_control loses its name.
pub(super) fn not_started(placement: &Placement) -> Result<()> {
    // The older restore's data directory may lie elsewhere in its volume than the set's.
    let linked = std::fs::canonicalize(placement.directory.join("data")).ok();
    for data in std::iter::once(&placement.data).chain(&linked) {
        if let Some(pid) = server::running(data)? {
            return Err(runs(data, pid));
        }
    }
    Ok(())
}

fn runs(data: &Path, pid: u32) -> Error {
    Error::usage(
        format!("a server runs in \"{}\": process {pid}", data.display()),
        format!(
            "stop it first: what it has in memory would be written over the restored files. The server's file is \"{}\"",
            data.join("postmaster.pid").display()
        ),
    )
}

/// Refuses a target folder inside a live cluster.
fn outside(live: &[Live], path: &Path) -> Result<()> {
    if let Some(live) = live.iter().find(|live| path.starts_with(&live.path)) {
        return Err(Refusal::DirectoryInsideCluster {
            path: path.to_path_buf(),
            cluster: live.cluster.clone(),
            part: live.kind.clone(),
        }
        .into());
    }
    Ok(())
}

/// Refuses a target that isn't a folder and can't be made, for the path or anything above it. [`real`] has already
/// followed the links that lead somewhere.
fn folder_or_nothing(path: &Path) -> Result<()> {
    let found = path.ancestors().find_map(|step| Some((step, step.symlink_metadata().ok()?)));
    match found {
        Some((step, found)) if found.is_symlink() => Err(Error::usage(
            format!("\"{}\" is a symbolic link that leads to no folder", step.display()),
            "remove it, or make the folder that it leads to",
        )),
        Some((step, found)) if !found.is_dir() => Err(Error::usage(
            format!("\"{}\" isn't a folder", step.display()),
            "name a folder that is empty or doesn't exist yet",
        )),
        _ => Ok(()),
    }
}

/// Whether an older restore made this link: for a tablespace that is a folder of a dataset, which may not be mounted
/// now.
fn is_older_link(placement: &Placement, path: &Path) -> bool {
    std::fs::read_link(path).is_ok_and(|target| target.starts_with(&placement.directory))
}

/// Refuses an existing folder where a link has to be made: a tablespace that is only a folder of its dataset is
/// reached by a link, and the folder would have to be removed.
fn no_folder_for_a_link(placement: &Placement, path: &Path) -> Result<()> {
    let Some((_, target)) = placement.links.iter().find(|(link, _)| link == path) else {
        return Ok(());
    };
    if !path.symlink_metadata().is_ok_and(|found| found.is_dir()) {
        return Ok(());
    }
    Err(Error::usage(
        format!(
            "\"{}\" exists, but the restore has to make it a link to \"{}\": the tablespace is a folder of the dataset that is mounted there",
            path.display(),
            target.display()
        ),
        format!(
            "rmdir {}, or leave out --tablespace; with --as files the tablespace itself goes there",
            quote(&path.display().to_string())
        ),
    ))
}

/// Returns the error for a folder that isn't empty: it may well be an older restore.
fn in_use(path: &Path, placement: &Placement) -> Error {
    let marker = Marker::of_older(path).filter(|_| path == placement.directory);
    match marker {
        Some(marker) => Refusal::DirectoryHoldsRestore {
            path: path.to_path_buf(),
            set: marker.set,
            is_unfinished: !control::is_in_place(&placement.data),
        }
        .into(),
        None => Refusal::DirectoryNotEmpty { path: path.to_path_buf() }.into(),
    }
}

/// Returns every place that a restore fills or makes a link.
fn all(placement: &Placement) -> impl Iterator<Item = &Path> {
    let volumes = placement.volumes.iter().map(|volume| volume.mountpoint.as_path());
    let links = placement.links.iter().map(|(link, _)| link.as_path());
    let tablespaces = placement.tablespaces.values().flat_map(|t| [&*t.link, &*t.real]);
    let own = [&*placement.data, &*placement.wal].into_iter();
    own.chain(volumes).chain(links).chain(tablespaces)
}

/// Makes a path absolute and resolves the links in the part that exists.
///
/// # Errors
/// [`Error::Usage`] if `..` follows a part that doesn't exist.
pub(super) fn real(path: &Path) -> Result<PathBuf> {
    let path = std::path::absolute(path).map_err(Error::io("find", path))?;
    let Some(existing) = path.ancestors().find(|ancestor| ancestor.exists()) else {
        return Ok(path);
    };
    let base = std::fs::canonicalize(existing).map_err(Error::io("find", existing))?;
    let rest = path.strip_prefix(existing).unwrap_or(Path::new(""));
    if rest.components().any(|step| step == Component::ParentDir) {
        // Once the part before it is made, it may lead somewhere else, into a live cluster for example.
        return Err(Error::usage(
            format!("\"{}\" goes back (..) from a folder that isn't there", path.display()),
            "write it without \"..\"",
        ));
    }
    Ok(if rest.as_os_str().is_empty() { base } else { base.join(rest) })
}

/// Returns the folder that was given for a tablespace, as [`real`] does. If an older restore to `directory` made it a
/// link, the result is the link itself, not its target.
pub(super) fn place_of_tablespace(path: &Path, directory: &Path) -> Result<PathBuf> {
    let place = real(path)?;
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) if path.is_symlink() && place.starts_with(directory) => {
            Ok(real(parent)?.join(name))
        }
        _ => Ok(place),
    }
}

/// Refuses links inside an older restore: what a planted link leads to must not be written to. One that the older
/// restore made where this one needs a folder is removed.
fn links(asked: &Asked<'_>) -> Result<()> {
    let &Asked { manifest, placement, .. } = asked;
    let older = Marker::of_older(&placement.directory);
    let is_over = older.is_some_and(|older| older.is_of(manifest, asked.source));
    let own = |name: &&str| placement.directory.join(name);
    let mut folders: Vec<PathBuf> =
        ["log", "run", "tablespaces", "volumes"].iter().map(own).collect();
    for (placed, volume) in placement.volumes.iter().zip(&manifest.volumes) {
        let is_own = placed.mountpoint.starts_with(&placement.directory);
        folders.extend(is_own.then(|| placed.mountpoint.clone()));
        // Each step down to a part; nothing is followed below it.
        for part in &volume.parts {
            let steps = part.inside.ancestors().filter(|path| !path.as_os_str().is_empty());
            folders.extend(steps.map(|inside| placed.place_of(inside)));
        }
    }
    // pg_wal inside the data directory is turned from a link into a folder together with the rest.
    let is_replaced = |path: &Path| {
        path != placement.data && path.starts_with(&placement.data)
            || is_over && surplus::is_link_for_a_folder(placement, path)
    };
    match folders.into_iter().find(|path| !is_replaced(path) && path.is_symlink()) {
        None => Ok(()),
        Some(path) => Err(Error::usage(
            format!("\"{}\" is a symbolic link", path.display()),
            "no restore of this cluster made it: remove it, or restore to another folder",
        )),
    }
}

/// Returns those of the restore's datasets that exist, with one command.
pub(super) fn there(
    cx: &Context,
    parent: &DatasetName,
    placement: &Placement,
) -> Result<BTreeSet<DatasetName>> {
    let children = cx.zfs.children(parent)?;
    let wanted = placement.volumes.iter().filter_map(|volume| volume.dataset.clone());
    Ok(wanted.filter(|dataset| children.contains(dataset)).collect())
}
