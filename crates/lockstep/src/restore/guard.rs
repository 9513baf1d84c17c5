//! What a restore must not touch: the clusters of the configuration, folders that hold something else
//! than an older restore, datasets that are mounted elsewhere, and whatever a link leads to.
//!
//! What could go wrong: a mistyped folder or dataset. `--delta` removes what the set doesn't have, and
//! rolls datasets back; so before the first change everything that would be changed is looked at.

use std::path::{Path, PathBuf};

use pgfiles::wal_name::WalSegment;

use super::placement::Placement;
use super::tree;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::files;
use crate::plan::layout::PartKind;
use crate::plan::refusal::Refusal;
use crate::postgres::instance::{self, PG_CONTROL};
use crate::set::manifest::Manifest;
use crate::steps;
use crate::volume::mounts::Mounts;

/// A part of a cluster of the configuration, by its real path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Live {
    cluster: String,
    kind: PartKind,
    path: PathBuf,
}

/// The folder as an absolute path without links; it must not be in a live cluster, and unless it may
/// hold something it must be empty or not there.
pub(super) fn directory(live: &[Live], path: &Path, may_hold: bool) -> Result<PathBuf> {
    let real = real(path)?;
    if let Some(live) = live.iter().find(|live| real.starts_with(&live.path)) {
        return Err(Refusal::DirectoryInsideCluster {
            path: real,
            cluster: live.cluster.clone(),
            part: live.kind.clone(),
        }
        .into());
    }
    if real.is_dir() && !may_hold && !files::is_empty_directory(&real)? {
        return Err(Refusal::DirectoryNotEmpty { path: real }.into());
    }
    if real.exists() && !real.is_dir() {
        return Err(Error::usage(
            format!("\"{}\" isn't a folder", real.display()),
            "name a folder that is empty or doesn't exist yet",
        ));
    }
    steps::reached("restore.checked")?;
    Ok(real)
}

/// Looks at every place that the restore would change. `delta`: what is there may be an older restore.
pub(super) fn places(
    cx: &Context,
    mut live: Vec<Live>,
    manifest: &Manifest,
    placement: &Placement,
    delta: bool,
) -> Result<()> {
    links(manifest, placement)?;
    let places = all(placement).map(real).collect::<Result<Vec<_>>>()?;
    // An older restore may be a cluster of the configuration by now: then it is what was asked for.
    let target = real(&placement.data)?;
    let is_target = |part: &Live| part.kind == PartKind::Data && part.path == target;
    let asked = live.iter().filter(|part| is_target(part)).map(|part| part.cluster.clone());
    let asked: Vec<_> = asked.filter(|cluster| cluster != cx.name.as_str()).collect();
    live.retain(|part| !asked.contains(&part.cluster));
    if let Some((place, live)) = overlap(&places, &live) {
        return Err(Refusal::DirectoryHoldsCluster {
            path: place.clone(),
            cluster: live.cluster.clone(),
            part: live.kind.clone(),
            at: live.path.clone(),
        }
        .into());
    }
    if !delta {
        return Ok(());
    }
    if instance::postmaster(&placement.data)?.is_some() {
        return Err(Error::usage(
            format!("a server runs in \"{}\"", placement.data.display()),
            "stop it first: what it has in memory would be written over the restored files",
        ));
    }
    datasets(cx, placement)?;
    older_restore(manifest, placement)
}

/// Every place that a restore fills, or makes a link of.
fn all(placement: &Placement) -> impl Iterator<Item = &Path> {
    let volumes = placement.volumes.iter().map(|volume| volume.mountpoint.as_path());
    let links = placement.links.iter().map(|(link, _)| link.as_path());
    let tablespaces = placement.tablespaces.values().flat_map(|t| [&*t.link, &*t.real]);
    let own = [&*placement.data, &*placement.wal].into_iter();
    own.chain(volumes).chain(links).chain(tablespaces)
}

/// A place that is a live part, lies in one, or holds one.
fn overlap<'a>(places: &'a [PathBuf], live: &'a [Live]) -> Option<(&'a PathBuf, &'a Live)> {
    let touches =
        |place: &Path, live: &Live| place.starts_with(&live.path) || live.path.starts_with(place);
    places.iter().find_map(|place| Some((place, live.iter().find(|live| touches(place, live))?)))
}

/// The parts of the clusters of the configuration. Where a data directory is gone there is nothing to
/// be spared.
pub(super) fn live(cx: &Context) -> Result<Vec<Live>> {
    let mut all = Vec::new();
    let others = cx.clusters.iter().filter(|(name, _)| **name != *cx.name.as_str());
    let own = (cx.name.as_str(), cx.cluster);
    for (name, cluster) in others.map(|(name, cluster)| (name.as_str(), cluster)).chain([own]) {
        let data = &cluster.data_directory;
        if !data.is_dir() {
            continue;
        }
        let parts = match instance::parts(data, None) {
            // Of another cluster that looks strange, at least this.
            Err(_) if name != cx.name.as_str() => Vec::new(),
            other => other?,
        };
        let parts = parts.into_iter().map(|part| (part.kind, part.path));
        for (kind, path) in parts.chain([(PartKind::Data, data.clone())]) {
            if let Ok(path) = std::fs::canonicalize(path) {
                all.push(Live { cluster: name.to_owned(), kind, path });
            }
        }
    }
    Ok(all)
}

/// An absolute path without the links of what is there of it.
fn real(path: &Path) -> Result<PathBuf> {
    let path = std::path::absolute(path).map_err(Error::io("find", path))?;
    let Some(existing) = path.ancestors().find(|ancestor| ancestor.exists()) else {
        return Ok(path);
    };
    let base = std::fs::canonicalize(existing).map_err(Error::io("find", existing))?;
    let rest = path.strip_prefix(existing).unwrap_or(Path::new(""));
    Ok(if rest.as_os_str().is_empty() { base } else { base.join(rest) })
}

/// Whoever put a link into an older restore must not have what it leads to written to.
fn links(manifest: &Manifest, placement: &Placement) -> Result<()> {
    let own = |name: &&str| placement.directory.join(name);
    let mut folders: Vec<PathBuf> =
        ["log", "run", "tablespaces", "volumes"].iter().map(own).collect();
    for (placed, volume) in placement.volumes.iter().zip(&manifest.volumes) {
        let is_own = placed.mountpoint.starts_with(&placement.directory);
        folders.extend(is_own.then(|| placed.mountpoint.clone()));
        // Each step down to a part; below it nothing is followed.
        for part in &volume.parts {
            let mut path = placed.mountpoint.clone();
            for step in &part.inside {
                path.push(step);
                folders.push(path.clone());
            }
        }
    }
    // pg_wal inside the data directory is turned from a link into a folder with the rest of it.
    let is_replaced = |path: &Path| path != placement.data && path.starts_with(&placement.data);
    match folders.into_iter().find(|path| !is_replaced(path) && path.is_symlink()) {
        None => Ok(()),
        Some(path) => Err(Error::usage(
            format!("\"{}\" is a symbolic link", path.display()),
            "remove it, or restore to the folder that it leads to",
        )),
    }
}

/// A dataset that is there is rolled back: it has to be that of an older restore to this very folder.
fn datasets(cx: &Context, placement: &Placement) -> Result<()> {
    let mounts = Mounts::read()?;
    for volume in &placement.volumes {
        let Some(dataset) = &volume.dataset else { continue };
        if !cx.zfs.exists(dataset.as_str())? {
            continue;
        }
        let says = cx.zfs.value(dataset, "mountpoint")?;
        let mut at = vec![PathBuf::from(&says)];
        let mounted =
            mounts.iter().filter(|mount| mount.is_zfs() && mount.source == dataset.as_str());
        at.extend(mounted.map(|mount| mount.point.clone()));
        if let Some(other) = at.into_iter().find(|at| *at != volume.mountpoint) {
            return Err(Refusal::DatasetElsewhere {
                dataset: dataset.to_string(),
                at: other,
                place: volume.mountpoint.clone(),
            }
            .into());
        }
    }
    Ok(())
}

/// What the folders hold has to look like an older restore of this cluster, or be nothing.
fn older_restore(manifest: &Manifest, placement: &Placement) -> Result<()> {
    let data = &placement.data;
    if !tree::list(data)?.is_empty() {
        let wanted = &manifest.postgres.system_identifier;
        if data.join(PG_CONTROL).exists() {
            let found = instance::read_control(data)?.system_identifier.to_string();
            if found != *wanted {
                return Err(strange(data, format!("the cluster {found}, the set is of {wanted}")));
            }
        } else if !data.join("PG_VERSION").exists() && !data.join("global").is_dir() {
            // An interrupted restore has no pg_control, but the rest of a data directory.
            return Err(strange(data, "something else than a data directory".to_owned()));
        }
    }
    for tablespace in placement.tablespaces.values() {
        // PG_15_202209061: one folder for each version (TABLESPACE_VERSION_DIRECTORY in catalog.h).
        check_holds(&tablespace.real, "a tablespace", |name| name.starts_with("PG_"))?;
    }
    if placement.wal.starts_with(data) {
        return Ok(());
    }
    let segment_size = manifest.wal_identity()?.segment_size;
    check_holds(&placement.wal, "pg_wal", |name| {
        let known = [".history", ".partial", ".backup"].iter().any(|end| name.ends_with(end))
            || ["archive_status", "summaries"].contains(&name)
            || name.starts_with("xlogtemp.");
        known || WalSegment::parse(name, segment_size).is_ok()
    })
}

fn check_holds(folder: &Path, what: &str, known: impl Fn(&str) -> bool) -> Result<()> {
    let all = tree::list(folder)?;
    let mut names = all.iter().filter_map(|path| path.file_name());
    match names.find(|name| !name.to_str().is_some_and(&known)) {
        None => Ok(()),
        Some(name) => {
            Err(strange(folder, format!("\"{}\", which is nothing of {what}", name.display())))
        }
    }
}

fn strange(folder: &Path, holds: String) -> Error {
    Refusal::NotAnOlderRestore { path: folder.to_path_buf(), holds }.into()
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
        let touches = |place: &str| overlap(&[PathBuf::from(place)], &live).is_some();
        assert!(touches("/srv/pg/main"));
        assert!(touches("/srv/pg/main/base"));
        assert!(touches("/srv/pg"));
        assert!(!touches("/srv/pg/main2"));
        assert!(!touches("/srv/pg2"));
    }
}
