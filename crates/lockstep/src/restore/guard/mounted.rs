//! Checks what is mounted where `--delta` restores to: the older restore's own datasets, each at its place, and
//! nothing else.
//!
//! What could go wrong: somebody has mounted something inside a restored data directory, to look at it or to have its
//! log on a separate disk. It would be emptied as a folder that the set doesn't have; so would a bind mount of a live
//! tablespace. And if the older restore's datasets have other names than the requested ones, new ones would be
//! mounted over some of them, and no server would start on either.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::{older, real};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::process::quote;
use crate::refusal::Refusal;
use crate::restore::placement::Placement;
use crate::volume::mounts::{Mount, Mounts};
use crate::volume::zfs::DatasetName;

/// Refuses mounts inside one of the places that aren't datasets of the restore.
pub(super) fn nothing_inside(
    places: &[PathBuf],
    placement: &Placement,
    mounts: &Mounts,
) -> Result<()> {
    let is_own = |mount: &Mount| {
        placement.volumes.iter().any(|volume| {
            let dataset = volume.dataset.as_ref().map(DatasetName::as_str);
            dataset == Some(&*mount.source) && volume.mountpoint == mount.point
        })
    };
    for place in places {
        let mut found = mounts.below(place).filter(|mount| !mount.is_looked_into());
        if let Some(mount) = found.find(|mount| !is_own(mount)) {
            return Err(Refusal::MountedInside {
                source_name: mount.source.clone(),
                point: mount.point.clone(),
                place: place.clone(),
            }
            .into());
        }
    }
    Ok(())
}

/// Refuses to mount a new dataset over something else. A boot mounts both, in any order: if the other one is on top, or
/// alone, the tablespace is an empty folder.
pub(super) fn nothing_at(placement: &Placement, mounts: &Mounts) -> Result<()> {
    for volume in placement.volumes.iter().filter(|volume| volume.dataset.is_some()) {
        let place = &volume.mountpoint;
        if let Some(mount) = mounts.iter().find(|mount| mount.point == *place) {
            return Err(Error::usage(
                format!(
                    "\"{}\" is mounted at \"{}\", where a dataset of the restore would be mounted over it",
                    mount.source,
                    place.display()
                ),
                "name a folder in it that doesn't exist yet, or unmount it and give it another mount point",
            ));
        }
    }
    Ok(())
}

/// Whether all volumes become folders with files.
pub(super) fn are_files(placement: &Placement) -> bool {
    placement.volumes.iter().all(|volume| volume.dataset.is_none())
}

/// Returns the datasets that ZFS mounts by itself, and where; none on a host without ZFS, where files can be restored.
pub(super) fn known(cx: &Context, placement: &Placement) -> Result<Vec<(DatasetName, PathBuf)>> {
    match cx.zfs.places() {
        Err(error) if are_files(placement) => {
            tracing::debug!(error = %error.chain(), "no datasets are known that belong there");
            Ok(Vec::new())
        }
        known => known,
    }
}

/// Refuses a new restore where a dataset belongs that isn't mounted now: its pool was imported without mounts, or its key
/// isn't loaded. It may be an older restore's. A later boot mounts it there, over the new one's files or in the place of
/// the new one's dataset, and a server starts on a mix of both without an error.
pub(super) fn nothing_belongs_at(
    placement: &Placement,
    mounts: &Mounts,
    known: &[(DatasetName, PathBuf)],
) -> Result<()> {
    let Some((dataset, point)) = belonging(placement, known, mounts) else { return Ok(()) };
    let name = quote(dataset.as_str());
    // A host's own folder, say, of which a replica of another host's dataset has the name.
    let way = match older::is_empty(point).unwrap_or(false) {
        true => format!("or `zfs mount {name}`, and see what it has. If"),
        false => format!(
            "\"{}\" has something now that `zfs mount {name}` would hide, as the next boot does: if",
            point.display()
        ),
    };
    Err(Error::usage(
        format!(
            "dataset \"{dataset}\" belongs at \"{}\", where the restore goes to, and isn't mounted",
            point.display()
        ),
        format!(
            "restore to another folder; {way} it isn't to be mounted there any more: `zfs set canmount=noauto {name}`"
        ),
    ))
}

/// Finds a dataset that isn't mounted, and whose mount point is where a volume goes, or in it; or on the way to a folder
/// of files, below what is mounted there now: it would hide them. New datasets are mounted after it. A pure function.
fn belonging<'a>(
    placement: &Placement,
    known: &'a [(DatasetName, PathBuf)],
    mounts: &Mounts,
) -> Option<&'a (DatasetName, PathBuf)> {
    let is_filled = |point: &Path| {
        placement.volumes.iter().any(|volume| {
            let apart = volume.apart.iter().map(|apart| &apart.folder);
            std::iter::once(&volume.mountpoint).chain(apart).any(|place| point.starts_with(place))
        })
    };
    let hides = |point: &Path| {
        placement.folders().filter(|folder| folder.starts_with(point)).any(|folder| {
            let holds = mounts.holding(folder).map(|mount| mount.point.as_path());
            holds.is_some_and(|holds| point != holds && point.starts_with(holds))
        })
    };
    let belongs = |point: &Path| is_filled(point) || hides(point);
    known.iter().find(|(dataset, point)| belongs(point) && !older::is_mounted(dataset, mounts))
}

/// Checks the datasets. An existing one is rolled back, so it has to belong to an older restore to this very folder.
/// For one that doesn't exist yet, no other may be mounted at its place.
pub(super) fn datasets(
    cx: &Context,
    placement: &Placement,
    there: &BTreeSet<DatasetName>,
    mounts: &Mounts,
) -> Result<()> {
    for volume in &placement.volumes {
        let Some(dataset) = &volume.dataset else { continue };
        if !there.contains(dataset) {
            not_of_another(dataset, &volume.mountpoint, mounts)?;
            continue;
        }
        let mounted = mounts.iter().filter(|mount| mount.is_of(dataset.as_str()));
        let mounted: Vec<_> = mounted.map(|mount| mount.point.clone()).collect();
        let says = PathBuf::from(cx.zfs.value(dataset, "mountpoint")?);
        if let Some(at) = elsewhere(&mounted, says, &volume.mountpoint) {
            let is_its =
                [&at, &volume.mountpoint].iter().all(|it| it.starts_with(&placement.directory));
            return Err(Refusal::DatasetElsewhere {
                dataset: dataset.to_string(),
                is_its,
                at,
                place: volume.mountpoint.clone(),
            }
            .into());
        }
    }
    Ok(())
}

/// Returns where a dataset is if it isn't at `place`. A mounted one has to be mounted there; otherwise its mountpoint
/// property has to say so, whose path may contain links.
fn elsewhere(mounted: &[PathBuf], says: PathBuf, place: &Path) -> Option<PathBuf> {
    if mounted.iter().any(|at| at == place) {
        return None;
    }
    let says_so = says.is_absolute() && real(&says).is_ok_and(|says| says == place);
    match mounted.first() {
        Some(at) => Some(at.clone()),
        None => (!says_so).then_some(says),
    }
}

/// Refuses a dataset that would be made where something else is mounted.
fn not_of_another(dataset: &DatasetName, place: &Path, mounts: &Mounts) -> Result<()> {
    match mounts.iter().find(|mount| mount.point == place) {
        None => Ok(()),
        Some(mount) => Err(Refusal::PlaceOfAnother {
            dataset: dataset.to_string(),
            found: mount.source.clone(),
            place: place.to_path_buf(),
        }
        .into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_mount_at_the_place_is_enough_and_a_property_may_lead_over_links() {
        let scratch = tempfile::tempdir().unwrap();
        let folder = scratch.path().join("guard");
        let place = folder.join("fast/ts");
        std::fs::create_dir_all(&place).unwrap();
        let link = folder.join("link");
        std::os::unix::fs::symlink(folder.join("fast"), &link).unwrap();
        let linked = link.join("ts");
        assert_eq!(real(&linked).unwrap(), place);
        let other = PathBuf::from("/mnt/other");
        assert_eq!(elsewhere(&[other.clone(), place.clone()], linked.clone(), &place), None);
        assert_eq!(elsewhere(&[], linked.clone(), &place), None);
        assert_eq!(elsewhere(std::slice::from_ref(&other), linked, &place), Some(other.clone()));
        assert_eq!(elsewhere(&[], other.clone(), &place), Some(other));
        assert_eq!(elsewhere(&[], "legacy".into(), &place), Some("legacy".into()));
    }

    #[test]
    fn nothing_new_is_mounted_over_something_else() {
        use crate::plan::layout::PartKind::{Data, Wal};
        use crate::restore::placement::{Naming, place};
        use crate::set::manifest::tests::{manifest, volume};
        let volumes =
            vec![volume("t/d", &[(Data, "/d", "")]), volume("t/w", &[(Wal, "/d/pg_wal", "")])];
        let set = manifest("20261123T194512Z-k3fa", volumes);
        let parent = DatasetName::new("t/r").unwrap();
        let placed = |naming| place(&set, Path::new("/r"), &[], &naming).unwrap();
        let at = |point: &str| {
            Mounts::parse(format!("2 1 0:40 / {point} rw - zfs t/mine rw\n").as_bytes())
        };
        let refused = nothing_at(&placed(Naming::Below(&parent)), &at("/r/wal")).unwrap_err();
        assert!(refused.to_string().contains("\"t/mine\" is mounted at \"/r/wal\""), "{refused}");
        assert_eq!(refused.exit_code(), 2);
        assert!(nothing_at(&placed(Naming::Below(&parent)), &at("/r")).is_ok());
        assert!(nothing_at(&placed(Naming::Folders), &at("/r/wal")).is_ok(), "files go into it");
    }

    #[test]
    fn nothing_new_goes_where_a_dataset_belongs_that_is_not_mounted() {
        use crate::plan::layout::PartKind::{Data, Wal};
        use crate::restore::placement::{Naming, place};
        use crate::set::manifest::tests::{manifest, volume};
        let volumes =
            vec![volume("t/d", &[(Data, "/d", "")]), volume("t/w", &[(Wal, "/d/pg_wal", "")])];
        let set = manifest("20261123T194512Z-k3fa", volumes);
        let parent = DatasetName::new("t/r").unwrap();
        let none = Mounts::parse(b"1 0 254:0 / / rw - ext4 /dev/vda rw\n");
        let other = Mounts::parse(
            b"1 0 254:0 / / rw - ext4 /dev/vda rw\n2 1 254:1 / /r rw - ext4 /dev/vdb rw\n",
        );
        let mounted = Mounts::parse(b"2 1 0:40 / /r/data rw - zfs t/old/data rw\n");
        for naming in [Naming::Below(&parent), Naming::Folders] {
            let placed = place(&set, Path::new("/r"), &[], &naming).unwrap();
            let is_found = |point: &str, mounts: &Mounts| {
                let known = [(DatasetName::new("t/old/data").unwrap(), PathBuf::from(point))];
                belonging(&placed, &known, mounts).is_some()
            };
            assert!(is_found("/r/data", &none) && is_found("/r/wal", &none));
            assert!(is_found("/r/data/base", &none));
            assert!(!is_found("/", &none) && !is_found("/r/data2", &none));
            let as_files = matches!(naming, Naming::Folders);
            assert_eq!(is_found("/r", &none), as_files, "it hides files, and no dataset");
            assert!(!is_found("/r", &other), "another is mounted there");
            assert!(!is_found("/r/data", &mounted), "that is checked by what is mounted");
        }
    }
}
