//! Checks that a folder is an older restore of the same cluster, so that `--delta` may remove from it what the set
//! doesn't have.

use std::collections::{BTreeSet, HashSet};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use pgfiles::lsn::SystemIdentifier;
use pgfiles::wal_name::{WalSegment, WalSegmentSize};

use super::Asked;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::files;
use crate::plan::layout::PartKind;
use crate::postgres::instance;
use crate::refusal::Refusal;
use crate::repository::tree::{Depth, ImageTree};
use crate::repository::{Repository, Shipped};
use crate::restore::control;
use crate::restore::marker::{self, Marker};
use crate::restore::placement::Placement;
use crate::restore::source::Source;
use crate::volume::mounts::Mounts;
use crate::volume::zfs::DatasetName;

/// What a restore makes in DIR.
const IN_DIRECTORY: [&str; 7] =
    ["data", "wal", "tablespaces", "volumes", "log", "run", marker::NAME];

/// The folder that a ZFS with `snapdir=visible` shows in a dataset's root; nobody can remove it.
const SNAPSHOTS: &str = ".zfs";

/// Whether a folder is empty.
pub(super) fn is_empty(folder: &Path) -> Result<bool> {
    Ok(files::list(folder)?.iter().all(|path| path.ends_with(SNAPSHOTS)))
}

/// Checks that what the folders hold looks like an older restore of this cluster, or is nothing.
pub(super) fn check(cx: &Context, asked: &Asked<'_>, there: &BTreeSet<DatasetName>) -> Result<()> {
    let &Asked { manifest, placement, .. } = asked;
    directory(&placement.directory)?;
    let wanted = manifest.postgres.system_identifier;
    let made_of = Marker::read(&placement.directory).filter(|marker| marker.from_snapshots);
    if let Some(marker) = made_of
        && !is_empty(&placement.data)?
    {
        // Its datasets are clones; it may be somebody's cluster by now, and its snapshots aren't the repository's.
        let what = format!("the restore of set {} from snapshots", marker.set);
        return Err(strange(&placement.directory, what));
    }
    let older = Marker::of_older(&placement.directory);
    if let Some(marker) = older.as_ref().filter(|marker| !marker.is_of(manifest, asked.source)) {
        let (of, found) = (&marker.cluster, marker.system_identifier);
        let what = format!("a restore of cluster \"{of}\", {found}; the set is of {wanted}");
        return Err(strange(&placement.directory, what));
    }
    // The older restore's may lie elsewhere in its volume than the set's.
    let linked = std::fs::canonicalize(placement.directory.join("data")).ok();
    let linked = linked.filter(|linked| *linked != placement.data);
    for data in [&placement.data].into_iter().chain(&linked) {
        if is_empty(data)? {
            continue;
        }
        let strange_to_it = |found: &SystemIdentifier| !asked.source.is_cluster(manifest, *found);
        if let Some(found) = cluster_of(data, &placement.directory)?.filter(strange_to_it) {
            return Err(strange(data, format!("the cluster {found}, the set is of {wanted}")));
        }
        // An interrupted restore may lack pg_control, but it has other parts of a data directory.
        if !data.join("PG_VERSION").exists() && !data.join("global").is_dir() {
            return Err(strange(data, "something other than a data directory".to_owned()));
        }
    }
    let own = Own { directory: &placement.directory, older, there, mounts: Mounts::read()? };
    for (oid, tablespace) in &placement.tablespaces {
        if !own.has(&tablespace.real) {
            tablespace_is_its(asked, *oid, &tablespace.real, own.older.as_ref())?;
        }
    }
    if placement.wal.starts_with(&placement.data) {
        return Ok(());
    }
    // A dataset of pg_wal alone isn't rolled back, so marks have to say whose it is.
    match unmarked(cx, placement, there)? {
        None if own.older.is_some() && own.has(&placement.wal) => return Ok(()),
        Some(dataset) if !is_mounted(&dataset, &own.mounts) => {
            let what = format!("dataset \"{dataset}\", which no restore made and isn't mounted");
            return Err(strange(&placement.wal, what));
        }
        _ => {}
    }
    let segment_size = manifest.wal_identity()?.segment_size;
    holds(&placement.wal, "pg_wal", |name| is_of_wal(name, segment_size))
}

/// Returns the existing dataset of pg_wal if no restore has made it: of the same name, it may be somebody else's by
/// now.
fn unmarked(
    cx: &Context,
    placement: &Placement,
    there: &BTreeSet<DatasetName>,
) -> Result<Option<DatasetName>> {
    for volume in &placement.volumes {
        if let Some(dataset) = volume.dataset.as_ref().filter(|dataset| there.contains(dataset))
            && placement.wal.starts_with(&volume.mountpoint)
            && !cx.zfs.all_carry(std::slice::from_ref(dataset), "lockstep:restore")?
        {
            return Ok(Some(dataset.clone()));
        }
    }
    Ok(None)
}

/// Refuses files where a dataset would be made or mounted: depending on the ZFS it couldn't be mounted over them, or
/// would hide them.
pub(super) fn no_files_for_a_dataset(
    placement: &Placement,
    there: &BTreeSet<DatasetName>,
    mounts: &Mounts,
) -> Result<()> {
    for volume in &placement.volumes {
        let Some(dataset) = volume.dataset.as_ref().filter(|name| !is_mounted(name, mounts)) else {
            continue;
        };
        // A link there is the older restore's, and is removed (super::links).
        if !volume.mountpoint.is_symlink() && !is_empty(&volume.mountpoint)? {
            return Err(Refusal::PlaceNotEmpty {
                dataset: dataset.to_string(),
                is_there: there.contains(dataset),
                place: volume.mountpoint.clone(),
            }
            .into());
        }
    }
    Ok(())
}

/// Refuses files where a restore's datasets belong that aren't mounted: these couldn't be mounted over the files any
/// more, or would hide them. `known` are those that [`super::mounted::known`] returns.
pub(super) fn no_dataset_for_files(
    cx: &Context,
    placement: &Placement,
    mounts: &Mounts,
    known: &[(DatasetName, PathBuf)],
) -> Result<()> {
    let folders: Vec<_> = placement.folders().chain([&placement.directory]).collect();
    for (dataset, place) in known {
        let place = super::real(place)?;
        if folders.iter().any(|folder| place.starts_with(folder))
            && !is_mounted(dataset, mounts)
            && cx.zfs.all_carry(std::slice::from_ref(dataset), "lockstep:restore")?
        {
            return Err(Refusal::PlaceOfUnmounted { dataset: dataset.to_string(), place }.into());
        }
    }
    Ok(())
}

pub(super) fn is_mounted(dataset: &DatasetName, mounts: &Mounts) -> bool {
    mounts.iter().any(|mount| mount.is_of(dataset.as_str()))
}

/// Refuses a folder with files where the set needs a link: it would have to be removed, and may be somebody's. What an
/// older restore of this cluster made there and this one removes is its own.
pub(super) fn no_files_for_a_link(
    asked: &Asked<'_>,
    surplus: &[PathBuf],
    mounts: &Mounts,
) -> Result<()> {
    let &Asked { manifest, placement, .. } = asked;
    let is_ours = Marker::of_older(&placement.directory)
        .is_some_and(|marker| marker.is_of(manifest, asked.source));
    for (link, target) in &placement.links {
        if let Some(mount) = mounts.iter().find(|mount| mount.point == *link) {
            return Err(Error::usage(
                format!(
                    "\"{}\" is mounted at \"{}\", and this set needs a link to \"{}\" there",
                    mount.source,
                    link.display(),
                    target.display()
                ),
                "destroy it if nothing needs it any more, or restore to another --dataset and --to: nothing was changed",
            ));
        }
        let is_removed = is_ours && surplus.contains(link);
        if link.symlink_metadata().is_ok_and(|found| found.is_dir())
            && !is_removed
            && !is_empty(link)?
        {
            let holds =
                format!("files, and this set needs a link to \"{}\" there", target.display());
            return Err(strange(link, holds));
        }
    }
    Ok(())
}

/// Tells which places belong to the older restore with everything in them, even files that users had put into the
/// original.
struct Own<'a> {
    directory: &'a Path,
    /// Its marker, if it is of the same cluster.
    older: Option<Marker>,
    /// Its datasets, already checked: what was written to them since is rolled back.
    there: &'a BTreeSet<DatasetName>,
    mounts: Mounts,
}

impl Own<'_> {
    /// Whether the place belongs to it. What is mounted in DIR and isn't a dataset of the restore belongs to somebody
    /// else.
    fn has(&self, place: &Path) -> bool {
        let Some(mount) = self.mounts.holding(place) else { return false };
        let is_there = |dataset: &DatasetName| dataset.as_str() == mount.source;
        if mount.is_zfs() && self.there.iter().any(is_there) {
            return true;
        }
        let is_on_its_own =
            mount.point != self.directory && mount.point.starts_with(self.directory);
        self.older.is_some() && place.starts_with(self.directory) && !is_on_its_own
    }
}

/// Checks a tablespace's folder that the older restore doesn't own: that one must have had its tablespace there, for
/// nothing in a tablespace says whose it is.
fn tablespace_is_its(
    asked: &Asked<'_>,
    oid: u32,
    folder: &Path,
    older: Option<&Marker>,
) -> Result<()> {
    tablespace_holds(asked, oid, folder, older)?;
    let directory = &asked.placement.directory;
    let is_named = |older: &Marker| {
        folder.starts_with(directory) || older.tablespaces.iter().any(|it| it == folder)
    };
    if is_empty(folder)?
        || older.is_some_and(is_named)
        || has_link(&asked.placement.data, oid, folder)
    {
        return Ok(());
    }
    let what = "files, and no older restore in DIR has its tablespace there";
    Err(strange(folder, what.to_owned()))
}

/// Checks what is in a tablespace's folder: it may hold PostgreSQL's files, and files that this set or a set that was
/// restored there has in it.
fn tablespace_holds(
    asked: &Asked<'_>,
    oid: u32,
    folder: &Path,
    older: Option<&Marker>,
) -> Result<()> {
    // PG_15_202209061: one folder for each version (TABLESPACE_VERSION_DIRECTORY in catalog.h).
    let known = |name: &str| name.starts_with("PG_");
    let what = "a tablespace";
    let (refused, Source::Repository(from)) = (holds(folder, what, known), asked.source) else {
        return holds(folder, what, known);
    };
    if refused.is_ok() || from.parent.is_some() {
        return refused;
    }
    // Only now, because the names of a volume have to be read from the repository.
    let mut names = names_in(&from.repository, &from.shipped, oid)?;
    for set in older.iter().flat_map(|older| older.before.iter().chain([&older.set])) {
        match from.repository.read_if_there(set) {
            Ok(Some(shipped)) => names.extend(names_in(&from.repository, &shipped, oid)?),
            Ok(None) => {}
            Err(error) => {
                tracing::debug!(%set, error = %error.chain(), "a set that was restored here")
            }
        }
    }
    holds(folder, what, |name| known(name) || names.contains(name.as_bytes()))
}

/// Whether a finished restore's own link leads to the tablespace. As long as one isn't finished, its links are those
/// of the set's cluster.
fn has_link(data: &Path, oid: u32, folder: &Path) -> bool {
    let link = data.join("pg_tblspc").join(oid.to_string());
    control::is_in_place(data) && std::fs::canonicalize(link).is_ok_and(|it| it == folder)
}

/// Returns the names at the top of a tablespace in a set.
fn names_in(repository: &Repository, set: &Shipped, oid: u32) -> Result<HashSet<Vec<u8>>> {
    let is_it =
        |kind: &PartKind| matches!(kind, PartKind::Tablespace { oid: other, .. } if *other == oid);
    let Some((volume, part)) = set.manifest.parts().find(|(_, part)| is_it(&part.kind)) else {
        return Ok(HashSet::new());
    };
    let dataset = &set.manifest.volumes[volume].dataset;
    let shipped = set.volumes.iter().find(|shipped| shipped.dataset == *dataset);
    let Some(shipped) = shipped.filter(|shipped| shipped.raw.is_none()) else {
        return Ok(HashSet::new());
    };
    let tree = ImageTree::read(repository, &shipped.image, &shipped.delta, Depth::Names)?;
    let folder = tree.find(part.inside.iter().map(OsStrExt::as_bytes));
    let children = folder.into_iter().flat_map(|folder| tree.children(folder));
    Ok(children.map(|(name, _)| name.to_vec()).collect())
}

/// Returns the system identifier of the cluster that an older restore is of. In an unfinished restore it comes from
/// pg_control under its other name, or, if that has no content yet, from the marker.
fn cluster_of(data: &Path, directory: &Path) -> Result<Option<SystemIdentifier>> {
    if control::is_in_place(data) {
        return Ok(Some(instance::read_control(data)?.system_identifier));
    }
    let held = control::read(data).ok().map(|control| control.system_identifier);
    Ok(held.or_else(|| Some(Marker::read(directory)?.system_identifier)))
}

/// Checks DIR itself: a restore has a data directory in it, or only the marker if it didn't get that far.
fn directory(directory: &Path) -> Result<()> {
    holds(directory, "a restore", |name| IN_DIRECTORY.contains(&name))?;
    let has_data = directory.join("data").symlink_metadata().is_ok();
    if is_empty(directory)? || has_data || Marker::read(directory).is_some() {
        return Ok(());
    }
    Err(strange(directory, "no data directory".to_owned()))
}

/// Whether PostgreSQL has such a name in pg_wal.
fn is_of_wal(name: &str, segment_size: WalSegmentSize) -> bool {
    let known = [".history", ".partial", ".backup"].iter().any(|end| name.ends_with(end))
        // A restore_command's files have these names first (xlogarchive.c, timeline.c).
        || ["archive_status", "summaries", "RECOVERYXLOG", "RECOVERYHISTORY"].contains(&name)
        || name.starts_with("xlogtemp.");
    known || WalSegment::parse(name, segment_size).is_ok()
}

fn holds(folder: &Path, what: &str, known: impl Fn(&str) -> bool) -> Result<()> {
    let all = files::list(folder)?;
    let mut names = all.iter().filter_map(|path| path.file_name());
    let is_known = |name: &str| name == SNAPSHOTS || known(name);
    match names.find(|name| !name.to_str().is_some_and(is_known)) {
        None => Ok(()),
        Some(name) => {
            Err(strange(folder, format!("\"{}\", which isn't part of {what}", name.display())))
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
    fn what_postgresql_leaves_in_pg_wal_is_known() {
        let size = WalSegmentSize::default();
        for name in [
            "000000010000000000000002",
            "00000002.history",
            "archive_status",
            "RECOVERYXLOG",
            "RECOVERYHISTORY",
            "xlogtemp.4711",
        ] {
            assert!(is_of_wal(name, size), "{name}");
        }
        assert!(!is_of_wal("thesis.tex", size));
    }

    #[test]
    fn only_what_a_restore_makes_is_in_its_folder() {
        let scratch = tempfile::tempdir().unwrap();
        let folder = scratch.path().join("older");
        let make = |name: &str| std::fs::create_dir_all(folder.join(name)).unwrap();
        assert!(directory(&folder).is_ok(), "it isn't there");
        make(".zfs/snapshot");
        assert!(directory(&folder).is_ok() && is_empty(&folder).unwrap());
        make("log");
        make("run");
        let error = directory(&folder).unwrap_err();
        assert!(error.to_string().contains("no data directory"), "{error}");
        assert_eq!(error.exit_code(), 4);
        make("data");
        assert!(directory(&folder).is_ok());
        std::fs::write(folder.join("passwd"), b"root").unwrap();
        let error = directory(&folder).unwrap_err();
        assert!(error.to_string().contains("\"passwd\", which isn't part of a restore"), "{error}");
    }
}
