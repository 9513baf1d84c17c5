//! Where an older restore has the volumes of which a part is only a folder: they stay there.
//!
//! Such a volume's folder is named after the first part on it. That part may be gone from the set, and Lockstep once
//! numbered these folders by their position in the set: dropping a tablespace moved all the following ones.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::guard;
use super::placement::{PlacedVolume, Placement};
use crate::context::Context;
use crate::error::Result;
use crate::plan::layout::PartKind;
use crate::set::manifest::{Manifest, SetVolume};
use crate::volume::mounts::Mounts;
use crate::volume::zfs::DatasetName;

/// Returns the folders of those volumes that are at another place below `DIR/volumes` than the one they would get, by
/// their index in the manifest.
pub(super) fn find(
    cx: &Context,
    manifest: &Manifest,
    placement: &Placement,
    parent: Option<&DatasetName>,
) -> Result<BTreeMap<usize, PathBuf>> {
    let volumes = placement.directory.join("volumes");
    let is_in = |place: &Path| place.parent() == Some(&*volumes);
    let there = match parent {
        Some(parent) => guard::there(cx, parent, placement)?,
        None => BTreeSet::new(),
    };
    let mounts = if there.is_empty() { Mounts::parse(b"") } else { Mounts::read()? };
    let mut found = Vec::new();
    for (placed, volume) in placement.volumes.iter().zip(&manifest.volumes) {
        found.push(match &placed.dataset {
            _ if !is_in(&placed.mountpoint) => None,
            Some(dataset) if there.contains(dataset) => {
                mounted(cx, &mounts, dataset)?.into_iter().find(|at| is_in(at))
            }
            Some(_) => None,
            None => linked(&placement.directory, volume),
        });
    }
    Ok(apart(&placement.volumes, found))
}

/// Returns where a dataset is mounted, or would be.
fn mounted(cx: &Context, mounts: &Mounts, dataset: &DatasetName) -> Result<Vec<PathBuf>> {
    let of = mounts.iter().filter(|mount| mount.is_of(dataset.as_str()));
    let mut places: Vec<PathBuf> = of.map(|mount| mount.point.clone()).collect();
    let says = PathBuf::from(cx.zfs.value(dataset, "mountpoint")?);
    if places.is_empty() && says.is_absolute() {
        places.push(guard::real(&says)?);
    }
    Ok(places)
}

/// Returns the folder that the links of the older restore lead into, for one of the volume's parts.
fn linked(directory: &Path, volume: &SetVolume) -> Option<PathBuf> {
    let volumes = directory.join("volumes");
    volume.parts.iter().find_map(|part| {
        let link = match &part.kind {
            PartKind::Data => directory.join("data"),
            PartKind::Wal => directory.join("wal"),
            PartKind::Tablespace { oid, .. } => directory.join("tablespaces").join(oid.to_string()),
        };
        let target = std::fs::read_link(link).ok()?;
        let name = target.strip_prefix(&volumes).ok()?.components().next()?;
        let folder = volumes.join(name);
        let is_folder = folder.symlink_metadata().is_ok_and(|found| found.is_dir());
        (is_folder && target.strip_prefix(&folder).ok()? == part.inside).then_some(folder)
    })
}

/// Assigns each folder to one volume: the first that was found there, and never a folder that another volume gets by
/// its name.
fn apart(placed: &[PlacedVolume], found: Vec<Option<PathBuf>>) -> BTreeMap<usize, PathBuf> {
    let mut taken: BTreeSet<PathBuf> = placed.iter().map(|it| it.mountpoint.clone()).collect();
    let found = found.into_iter().enumerate();
    found
        .filter_map(|(index, place)| Some((index, place?)))
        .filter(|(_, place)| taken.insert(place.clone()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::layout::tests::tablespace;
    use crate::restore::placement::{Naming, place};
    use crate::set::manifest::tests::{manifest, volume};
    use std::os::unix::fs::symlink;

    #[test]
    fn a_folder_stays_where_its_links_lead_and_is_one_volume_s() {
        let scratch = tempfile::tempdir().unwrap();
        let directory = scratch.path().join("kept");
        for folder in ["tablespaces", "volumes/2", "volumes/tablespace-9"] {
            std::fs::create_dir_all(directory.join(folder)).unwrap();
        }
        let link = |oid: u32, to: &str| {
            symlink(
                directory.join("volumes").join(to),
                directory.join(format!("tablespaces/{oid}")),
            )
            .unwrap();
        };
        link(2, "2/two");
        link(3, "2/three");
        link(4, "tablespace-9/four");
        link(5, "5/five");
        link(6, "2/other");
        let volumes = vec![
            volume("t/d", &[(PartKind::Data, "/d", ""), (PartKind::Wal, "/d/pg_wal", "pg_wal")]),
            // The first part on it is new, the second existed.
            volume("t/1", &[(tablespace(1), "/1/one", "one"), (tablespace(2), "/1/two", "two")]),
            volume("t/3", &[(tablespace(3), "/3/three", "three")]),
            volume("t/4", &[(tablespace(4), "/4/four", "four")]),
            volume("t/5", &[(tablespace(5), "/5/five", "five")]),
            volume("t/6", &[(tablespace(6), "/6/six", "six")]),
            volume("t/9", &[(tablespace(9), "/9/nine", "nine")]),
        ];
        let manifest = manifest("20261123T194512Z-k3fa", volumes);
        let placement = place(&manifest, &directory, &[], &Naming::Folders).unwrap();
        let found: Vec<_> =
            manifest.volumes.iter().map(|volume| linked(&directory, volume)).collect();
        let two = directory.join("volumes/2");
        let nine = Some(directory.join("volumes/tablespace-9"));
        assert_eq!(found, [None, Some(two.clone()), Some(two.clone()), nine, None, None, None]);
        // The third's folder is taken by the second; the fourth's belongs to the last by its name.
        assert_eq!(apart(&placement.volumes, found), BTreeMap::from([(1, two)]));
    }
}
