//! From paths to a layout: path → mount → dataset → pool, with the facts that a plan considers.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::mounts::{Mount, Mounts, inside};
use super::zfs::{DatasetName, Zfs};
use crate::error::{Error, Result};
use crate::plan::layout::{Layout, NestedMount, Part, PartKind, Reserved, Volume};
use crate::refusal::Refusal;

/// A part whose volume isn't known yet: which part, and the path as PostgreSQL knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartPath {
    /// Which part.
    pub kind: PartKind,
    /// The setting, or the target of the link.
    pub path: PathBuf,
}

/// Folders of a data directory whose contents a restored cluster doesn't need (basebackup.c excludes the same); a
/// file system mounted there needn't be in the set.
pub(crate) const HARMLESS: [&str; 4] = ["pg_stat_tmp", "log", "pg_log", "pg_replslot"];

/// Finds the volume of each part.
///
/// # Errors
/// [`Refusal::NotSnapshottable`] for a part on a file system other than ZFS, [`Refusal::HiddenMount`] for one whose
/// files aren't the dataset's; otherwise when a path or ZFS can't be read.
pub fn discover(zfs: &Zfs, paths: &[PartPath]) -> Result<Layout> {
    let mounts = Mounts::read()?;
    let mut layout = Layout::default();
    for PartPath { kind, path } in paths {
        let real_path = std::fs::canonicalize(path).map_err(Error::io("find", path))?;
        let Some(mount) = mounts.holding(&real_path).filter(|mount| mount.is_zfs()) else {
            let mount = mounts.holding(&real_path);
            return Err(Refusal::NotSnapshottable {
                part: kind.clone(),
                path: real_path.clone(),
                fs_type: mount.map_or("an unknown file system", |m| m.fs_type.as_str()).into(),
                source_name: mount.map_or("?", |m| m.source.as_str()).into(),
            }
            .into());
        };
        // The list of mounts and the file must agree, or other files would be frozen.
        let device = device(&real_path)?;
        if device != mount.device {
            return Err(Refusal::HiddenMount {
                part: kind.clone(),
                path: real_path,
                dataset: mount.source.clone(),
                device,
                expected: mount.device,
            }
            .into());
        }
        let dataset = DatasetName::new(&mount.source).map_err(Error::failed)?;
        let known = layout.volumes.iter().position(|volume| volume.dataset == dataset);
        let volume = known.unwrap_or_else(|| {
            layout.volumes.push(Volume {
                dataset,
                guid: 0,
                mountpoint: mount.point.clone(),
                recordsize: 0,
                available: 0,
                lacking: None,
                sync: String::new(),
                nested: Vec::new(),
                foreign: Vec::new(),
            });
            layout.volumes.len() - 1
        });
        let inside = inside(mount, &real_path);
        layout.parts.push(Part {
            kind: kind.clone(),
            path: path.clone(),
            real_path,
            volume,
            inside,
        });
    }
    add_properties(zfs, &mut layout)?;
    add_nested(&mounts, &mut layout);
    add_foreign(&mounts, &mut layout)?;
    Ok(layout)
}

/// Refuses a part that isn't where its dataset would be. After a boot at which the dataset couldn't be mounted,
/// PostgreSQL continues in the folder below. A server that sees other mounts than this process (in a container) may
/// see the dataset.
///
/// # Errors
/// [`Refusal::NotMounted`], or when ZFS can't be asked.
pub fn check_mounted(zfs: &Zfs, layout: &Layout) -> Result<()> {
    let places = zfs.places()?;
    if let Some(refusal) = layout.parts.iter().find_map(|part| not_mounted(layout, part, &places)) {
        return Err(refusal.into());
    }
    let mounts = Mounts::read()?;
    // One that is mounted is among the nested mounts; without its folder it was never mounted. A place outside of the
    // parts may be on a suspended pool, so it isn't looked at.
    let missing = |(dataset, point): &(DatasetName, PathBuf)| {
        let refusal = inside_of(layout, dataset, point)?;
        let is_mounted = mounts.iter().any(|mount| mount.is_of(dataset.as_str()));
        (!is_mounted && point.is_dir()).then_some(refusal)
    };
    match places.iter().find_map(missing) {
        Some(refusal) => Err(refusal.into()),
        None => Ok(()),
    }
}

/// Refuses a dataset whose place is strictly inside a part, unless PostgreSQL doesn't need its files or another part is
/// there. A pure function.
fn inside_of(layout: &Layout, dataset: &DatasetName, point: &Path) -> Option<Refusal> {
    if layout.parts.iter().any(|part| part.real_path.starts_with(point)) {
        return None;
    }
    let holds = |part: &&Part| point.starts_with(&part.real_path) && !is_harmless(part, point);
    let part = layout.parts.iter().find(holds)?;
    Some(Refusal::NestedNotMounted {
        dataset: dataset.to_string(),
        point: point.to_path_buf(),
        part: part.kind.clone(),
    })
}

/// Whether PostgreSQL doesn't need what is at this place in a part.
fn is_harmless(part: &Part, point: &Path) -> bool {
    let is_in = |name: &&str| point.starts_with(part.real_path.join(name));
    part.kind == PartKind::Data && HARMLESS.iter().any(is_in)
}

/// Finds a dataset that would be mounted on the path to the part, below what is mounted. It doesn't matter whether it
/// is mounted at all: if it was mounted in the wrong order, its parent hides it. A pure function.
fn not_mounted(layout: &Layout, part: &Part, places: &[(DatasetName, PathBuf)]) -> Option<Refusal> {
    let volume = layout.volumes.get(part.volume)?;
    let is_on_the_way = |point: &Path| {
        point != volume.mountpoint
            && point.starts_with(&volume.mountpoint)
            && part.real_path.starts_with(point)
    };
    let (dataset, _) = places.iter().find(|(_, point)| is_on_the_way(point))?;
    Some(Refusal::NotMounted {
        part: part.kind.clone(),
        path: part.real_path.clone(),
        dataset: dataset.to_string(),
        on: volume.dataset.to_string(),
    })
}

/// The file system that holds a path, by the kernel's device numbers.
fn device(path: &Path) -> Result<(u32, u32)> {
    let number = std::fs::metadata(path).map_err(Error::io("look at", path))?.dev();
    Ok((rustix::fs::major(number), rustix::fs::minor(number)))
}

/// The properties that show whether a reservation leaves room for a snapshot.
const RESERVED: [&str; 3] = ["refreservation", "usedbyrefreservation", "refquota"];

fn add_properties(zfs: &Zfs, layout: &mut Layout) -> Result<()> {
    let names: Vec<_> = layout.volumes.iter().map(|v| v.dataset.to_string()).collect();
    let needed = [&["guid", "recordsize", "available"][..], &RESERVED].concat();
    let all = zfs.get_known(&names, &needed, &["sync"])?;
    for volume in &mut layout.volumes {
        let name = volume.dataset.to_string();
        let value = |property: &str| {
            all.get(&name).and_then(|of| of.get(property)).cloned().unwrap_or_default()
        };
        let number = |property: &str| {
            value(property).parse::<u64>().map_err(|_| {
                Error::failed(format!(
                    "zfs says {:?} for {property} of \"{name}\"",
                    value(property)
                ))
            })
        };
        volume.guid = number("guid")?;
        volume.recordsize = number("recordsize")?;
        volume.available = number("available")?;
        // With a refquota, `available` doesn't tell how much there is outside of the dataset.
        if number("refquota")? == 0 {
            volume.lacking = Reserved::lacking(
                number("refreservation")?,
                number("usedbyrefreservation")?,
                volume.available,
            );
        }
        volume.sync = value("sync");
    }
    Ok(())
}

/// Mounts strictly inside a part that hold no other part. A server may see the part at another place, where the same
/// dataset is mounted too (a bind mount doesn't have what is mounted below the original).
fn add_nested(mounts: &Mounts, layout: &mut Layout) {
    let mut found = Vec::new();
    let is_seen =
        |mount: &Mount| !mount.is_looked_into() && mounts.holding(&mount.point) == Some(mount);
    for part in &layout.parts {
        let mut add = |mount: &Mount, here: &Path| {
            let nested = NestedMount {
                point: mount.point.clone(),
                source: mount.source.clone(),
                part: part.kind.clone(),
                harmless: is_harmless(part, here),
            };
            found.push((part.volume, nested));
        };
        for mount in mounts.below(&part.real_path).filter(|mount| is_seen(mount)) {
            let is_part = layout.parts.iter().any(|other| {
                mounts.holding(&other.real_path).is_some_and(|holds| holds.id == mount.id)
            });
            if !is_part {
                add(mount, &mount.point);
            }
        }
        for elsewhere in mounts.other_places(&part.real_path) {
            for mount in mounts.below(&elsewhere).filter(|mount| is_seen(mount)) {
                let Ok(inside) = mount.point.strip_prefix(&elsewhere) else { continue };
                let here = part.real_path.join(inside);
                if !layout.parts.iter().any(|other| other.real_path.starts_with(&here)) {
                    add(mount, &here);
                }
            }
        }
    }
    for (volume, nested) in found {
        let known = &mut layout.volumes[volume].nested;
        if !known.iter().any(|other| other.point == nested.point) {
            known.push(nested);
        }
    }
}

/// Names in a volume's root that don't lead to a part. What is mounted there is in no snapshot of the volume.
fn add_foreign(mounts: &Mounts, layout: &mut Layout) -> Result<()> {
    for index in 0..layout.volumes.len() {
        let inside: Vec<PathBuf> = layout.parts_on(index).map(|p| p.inside.clone()).collect();
        if inside.iter().any(|path| path.as_os_str().is_empty()) {
            continue;
        }
        let volume = &mut layout.volumes[index];
        // A bind mount shows a folder of the dataset, and not its root.
        let is_root = |mount: &Mount| mount.root == Path::new("/");
        if !mounts.holding(&volume.mountpoint).is_some_and(is_root) {
            continue;
        }
        let entries =
            std::fs::read_dir(&volume.mountpoint).map_err(Error::io("list", &volume.mountpoint))?;
        for entry in entries {
            let entry = entry.map_err(Error::io("list", &volume.mountpoint))?;
            let name = entry.file_name();
            let leads = inside.iter().any(|path| path.starts_with(Path::new(&name)));
            let is_mounted = || mounts.iter().any(|mount| mount.point == entry.path());
            if !leads && !is_mounted() && name != ".zfs" && name != "lost+found" {
                volume.foreign.push(name.to_string_lossy().into_owned());
            }
        }
        volume.foreign.sort();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::layout::tests::{layout, tablespace};

    #[test]
    fn a_dataset_whose_place_is_inside_a_part_has_to_be_mounted() {
        let mut all = layout(&[(PartKind::Data, "t/d"), (PartKind::Wal, "t/w")]);
        all.parts[0].real_path = "/t/d".into();
        all.parts[1].real_path = "/t/d/pg_wal".into();
        let dataset = DatasetName::new("u/x").unwrap();
        let found = |point: &str| inside_of(&all, &dataset, Path::new(point));
        for point in ["/t/d/base/5", "/t/d/pg_wal/archive_status"] {
            assert!(found(point).unwrap().to_string().contains(point));
        }
        for point in ["/t/d", "/t", "/t/d/pg_wal", "/t/d/log/x", "/t/d/pg_replslot", "/t/data"] {
            assert_eq!(found(point), None, "{point}");
        }
    }

    /// pg_wal can be a bind mount of a folder of its dataset.
    #[test]
    fn what_a_bind_mount_shows_is_not_foreign() {
        let scratch = tempfile::tempdir().unwrap();
        let point = scratch.path().join("data");
        std::fs::create_dir_all(point.join("archive_status")).unwrap();
        let mut all = layout(&[(PartKind::Wal, "t/w")]);
        all.parts[0].inside = "pg".into();
        all.volumes[0].mountpoint = point.clone();
        for (root, foreign) in [("/pg", &[][..]), ("/", &["archive_status"][..])] {
            let mounts = format!(
                "1 0 8:1 / / rw - ext4 /dev/vda rw\n2 1 0:40 {root} {} rw - zfs t/w rw\n",
                point.display()
            );
            add_foreign(&Mounts::parse(mounts.as_bytes()), &mut all).unwrap();
            assert_eq!(all.volumes[0].foreign, foreign, "{root}");
        }
    }

    #[test]
    fn what_is_mounted_where_the_dataset_is_mounted_a_second_time_counts() {
        let mounts = b"1 0 8:1 / / rw - ext4 /dev/vda rw\n\
            2 1 0:40 / /t rw - zfs t/d rw\n3 2 0:41 / /t/data/base/5 rw - zfs t/x rw\n\
            4 2 0:42 / /t/data/pg_wal rw - zfs t/w rw\n5 2 0:43 / /t/data/log rw - zfs t/l rw\n\
            6 1 0:40 / /alias rw - zfs t/d rw\n7 6 0:42 / /alias/data/pg_wal rw - zfs t/w rw\n";
        let mut all = layout(&[(PartKind::Data, "t/d"), (PartKind::Wal, "t/w")]);
        all.parts[0].real_path = "/alias/data".into();
        all.parts[1].real_path = "/alias/data/pg_wal".into();
        add_nested(&Mounts::parse(mounts), &mut all);
        let nested = &all.volumes[0].nested;
        let found: Vec<_> = nested.iter().map(|it| (it.source.as_str(), it.harmless)).collect();
        assert_eq!(found, [("t/x", false), ("t/l", true)]);
        assert_eq!(all.volumes[1].nested, []);
    }

    #[test]
    fn a_dataset_whose_place_is_on_the_way_has_to_be_the_part_s() {
        let mut all = layout(&[(PartKind::Data, "t/d"), (tablespace(5), "t/ts")]);
        all.parts[1].real_path = "/t/ts/one/files".into();
        let found = |places: &[(&str, &str)]| {
            let places = places
                .iter()
                .map(|(name, point)| (DatasetName::new(name).unwrap(), PathBuf::from(point)));
            let refusal = not_mounted(&all, &all.parts[1], &places.collect::<Vec<_>>());
            refusal.map(|refusal| refusal.to_string())
        };
        let own = ("t/ts", "/t/ts");
        let beside = [(DatasetName::new("t/ts/one").unwrap(), PathBuf::from("/t/ts/one"))];
        let hint = not_mounted(&all, &all.parts[1], &beside).unwrap().hint();
        for words in ["`zfs mount t/ts/one`", "keep a copy of the folder", "are a mixture"] {
            assert!(hint.contains(words), "{words}: {hint}");
        }
        assert!(found(&[own, ("t/ts/one", "/t/ts/one")]).unwrap().contains("\"t/ts/one\""));
        assert!(found(&[("u/x", "/t/ts/one/files")]).is_some());
        // The same; above; beside; below; a copy with the same mount point.
        let others = ["/t/ts", "/t", "/t/ts/on", "/t/ts/one/files/PG_15", "/t/ts/two"];
        for point in others {
            assert_eq!(found(&[own, ("u/x", point)]), None, "{point}");
        }
    }
}
