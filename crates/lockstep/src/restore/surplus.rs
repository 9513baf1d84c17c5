//! What an older restore made in DIR and the set doesn't have any more: tablespaces that were dropped, and folders of
//! volumes that are gone.
//!
//! What could go wrong: a link leads to a folder that is another tablespace's by now, or something is mounted there.
//! Links are removed and never followed, and a mount stays with all the folders above it; only its owner may destroy
//! a dataset. Names that no restore uses stay, too.

use std::path::{Path, PathBuf};

use super::as_files;
use super::build::Build;
use super::control;
use super::placement::Placement;
use crate::error::{Error, Result};
use crate::files;
use crate::process::quote;
use crate::volume::mounts::Mounts;
use crate::volume::zfs::{DatasetName, Zfs};

/// Returns the places in DIR that a restore has made and this one doesn't fill.
pub(super) fn find(placement: &Placement) -> Result<Vec<PathBuf>> {
    let directory = &placement.directory;
    let mut all = vec![directory.join("wal")];
    for (folder, is_known) in
        [("tablespaces", is_oid as fn(&str) -> bool), ("volumes", is_of_a_volume)]
    {
        let entries = files::list(&directory.join(folder))?.into_iter();
        all.extend(
            entries.filter(|path| {
                path.file_name().and_then(|name| name.to_str()).is_some_and(is_known)
            }),
        );
    }
    all.retain(|path| path.symlink_metadata().is_ok() && !is_filled(placement, path));
    all.sort();
    Ok(all)
}

fn is_oid(name: &str) -> bool {
    name.parse::<u32>().is_ok()
}

/// Named after a part, or by a number as in the past.
fn is_of_a_volume(name: &str) -> bool {
    ["data", "wal"].contains(&name) || is_oid(name.strip_prefix("tablespace-").unwrap_or(name))
}

/// Whether the restore has something there. A folder in place of a link isn't that link.
fn is_filled(placement: &Placement, path: &Path) -> bool {
    let real = placement.volumes.iter().map(|volume| &volume.mountpoint);
    let real = real.chain(placement.tablespaces.values().map(|tablespace| &tablespace.real));
    let mut real = real.chain([&placement.data, &placement.wal]);
    let mut links = placement.links.iter().map(|(link, _)| link).chain(&placement.wal_link);
    real.any(|place| place.starts_with(path)) || (path.is_symlink() && links.any(|it| it == path))
}

/// Whether an older restore made this link, and this one needs a folder there: what was a folder of its volume has a
/// volume of its own by now. Nothing else in DIR that a restore fills may be a link.
pub(super) fn is_link_for_a_folder(placement: &Placement, path: &Path) -> bool {
    let directory = &placement.directory;
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let is_known = match path.parent() {
        Some(parent) if parent == directory => ["data", "wal"].contains(&name),
        Some(parent) => parent == directory.join("tablespaces") && is_oid(name),
        None => false,
    };
    let is_wanted = placement.links.iter().any(|(link, _)| link == path);
    let leads_into_it = std::fs::read_link(path).is_ok_and(|target| target.starts_with(directory));
    is_known && !is_wanted && leads_into_it
}

/// Removes all such links before the first volume is changed. From here on the older restore is changed, and nothing
/// starts on it.
///
/// With the set's data directory in place, a link to its pg_wal would lead on to the original's: if the restore ended
/// there, `--delta` would refuse to continue.
pub(super) fn make_room(build: &Build) -> Result<()> {
    if !build.is_over_an_older_restore() {
        return Ok(());
    }
    let folders = build.placement.volumes.iter().map(|volume| &volume.mountpoint);
    for link in folders.filter(|folder| is_link_for_a_folder(&build.placement, folder)) {
        build.older.is_changed.set(true);
        if *link == build.placement.directory.join("data") {
            // The older restore's data directory, which lies elsewhere.
            control::hold(link)?;
        }
        files::remove_file(link)?;
    }
    Ok(())
}

/// Removes them if the older restore's marker says that they are Lockstep's; returns how many names were removed.
pub(super) fn remove(build: &Build) -> Result<u64> {
    if !build.is_over_an_older_restore() {
        return Ok(0);
    }
    let mounts = Mounts::read()?;
    let mut removed = 0;
    for path in find(&build.placement)? {
        removed += remove_one(&path, &build.placement, &mounts)?;
    }
    if let Some(parent) = build.source.parent() {
        name_datasets(&build.cx.zfs, parent, &build.placement)?;
    }
    Ok(removed)
}

fn remove_one(path: &Path, placement: &Placement, mounts: &Mounts) -> Result<u64> {
    let found = path.symlink_metadata().map_err(Error::io("look at", path))?;
    if found.is_symlink() {
        return files::remove_file(path).map(|()| 1);
    }
    if !found.is_dir() {
        return Ok(0);
    }
    if let Some(mount) = mounts.iter().find(|mount| mount.point.starts_with(path)) {
        // More is said about datasets below.
        if !mount.is_zfs() {
            stays(path, &format!("\"{}\" is mounted there", mount.source));
        }
        return Ok(0);
    }
    // If datasets are mounted, a folder is empty, or holds what somebody put there while they weren't mounted.
    if placement.volumes.iter().all(|volume| volume.dataset.is_none()) {
        return as_files::remove(&placement.directory, path);
    }
    match std::fs::remove_dir(path) {
        Err(e) if e.kind() == std::io::ErrorKind::DirectoryNotEmpty => {
            stays(path, "it is a folder that isn't empty");
            Ok(0)
        }
        other => other.map(|()| 1).map_err(Error::io("remove", path)),
    }
}

fn stays(path: &Path, why: &str) {
    tracing::warn!("the set has nothing at \"{}\" any more, but it stays: {why}", path.display());
}

/// Names the older restore's datasets that the set doesn't have.
fn name_datasets(zfs: &Zfs, parent: &DatasetName, placement: &Placement) -> Result<()> {
    let mut children = zfs.children(parent)?;
    children.retain(|child| !placement.volumes.iter().any(|it| it.dataset.as_ref() == Some(child)));
    for dataset in children {
        let is_here =
            Path::new(&zfs.value(&dataset, "mountpoint")?).starts_with(&placement.directory);
        if is_here && zfs.all_carry(std::slice::from_ref(&dataset), "lockstep:restore")? {
            tracing::warn!(
                "dataset \"{dataset}\" is of an older set; this one doesn't have it, but it stays: \
                 if nobody needs it, `zfs destroy -r {}`",
                quote(dataset.as_str())
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::layout::PartKind::{Data, Wal};
    use crate::plan::layout::tests::tablespace;
    use crate::restore::placement::{Naming, place};
    use crate::set::manifest::tests::{manifest, volume};
    use std::os::unix::fs::symlink;

    /// A restore of tablespace 1, a folder of its volume, over one that had more.
    fn over(directory: &Path) -> Placement {
        let volumes = vec![
            volume("t/d", &[(Data, "/d", ""), (Wal, "/d/pg_wal", "pg_wal")]),
            volume("t/1", &[(tablespace(1), "/1/one", "one")]),
        ];
        let manifest = manifest("20261123T194512Z-k3fa", volumes);
        place(&manifest, directory, &[], &Naming::Folders).unwrap()
    }

    #[test]
    fn what_the_set_does_not_have_goes_and_no_link_is_followed() {
        let scratch = tempfile::tempdir().unwrap();
        let directory = scratch.path().canonicalize().unwrap().join("surplus");
        let made = |name: &str| {
            std::fs::create_dir_all(directory.join(name)).unwrap();
            std::fs::write(directory.join(name).join("file"), b"kept").unwrap();
        };
        let live = ["data", "volumes/tablespace-1/one", "volumes/mine", "tablespaces/notes"];
        live.iter().for_each(|name| made(name));
        for name in ["tablespaces/1", "tablespaces/3", "volumes/4", "volumes/wal", "wal"] {
            made(name);
        }
        let one = directory.join("volumes/tablespace-1/one");
        symlink(&one, directory.join("tablespaces/2")).unwrap();
        symlink(&one, directory.join("tablespaces/3/link")).unwrap();
        let placement = over(&directory);
        let found = find(&placement).unwrap();
        let names: Vec<_> =
            found.iter().map(|path| path.strip_prefix(&directory).unwrap()).collect();
        // A folder in place of the link to a volume has to be removed as well.
        let gone =
            ["tablespaces/1", "tablespaces/2", "tablespaces/3", "volumes/4", "volumes/wal", "wal"];
        assert_eq!(names, gone.map(Path::new));
        let mounts = Mounts::parse(b"");
        let removed: u64 =
            found.iter().map(|path| remove_one(path, &placement, &mounts).unwrap()).sum();
        assert_eq!(removed, 12);
        for name in live {
            assert!(directory.join(name).join("file").exists(), "{name}");
        }
        assert_eq!(find(&placement).unwrap(), Vec::<PathBuf>::new());
        symlink(&one, directory.join("tablespaces/1")).unwrap();
        assert_eq!(find(&placement).unwrap(), Vec::<PathBuf>::new(), "its link is wanted");
    }

    #[test]
    fn a_link_that_a_restore_made_makes_room_for_a_folder() {
        let scratch = tempfile::tempdir().unwrap();
        let directory = scratch.path().canonicalize().unwrap().join("room");
        std::fs::create_dir_all(directory.join("tablespaces")).unwrap();
        let placement = over(&directory);
        let (own, foreign) = (directory.join("volumes/data/15/pg_wal"), scratch.path());
        for (name, target, makes_room) in [
            ("data", &*own, true),
            ("tablespaces/7", &own, true),
            // These are wanted.
            ("wal", &own, false),
            ("tablespaces/1", &own, false),
            ("tablespaces/notes", &own, false),
            ("log", &own, false),
            ("tablespaces/8", foreign, false),
        ] {
            let link = directory.join(name);
            symlink(target, &link).unwrap();
            assert_eq!(is_link_for_a_folder(&placement, &link), makes_room, "{name}");
        }
        assert!(!is_link_for_a_folder(&placement, &directory.join("volumes")));
    }

    #[test]
    fn what_has_a_mount_in_it_stays() {
        let scratch = tempfile::tempdir().unwrap();
        let directory = scratch.path().canonicalize().unwrap().join("mounted");
        std::fs::create_dir_all(directory.join("volumes/4/disk")).unwrap();
        let placement = over(&directory);
        let found = find(&placement).unwrap();
        let line =
            format!("9 1 8:1 / {}/volumes/4/disk rw - ext4 /dev/sdz rw\n", directory.display());
        let mounts = Mounts::parse(line.as_bytes());
        assert_eq!(mounts.iter().count(), 1);
        assert_eq!(remove_one(&found[0], &placement, &mounts).unwrap(), 0);
        assert!(directory.join("volumes/4/disk").exists());
    }
}
