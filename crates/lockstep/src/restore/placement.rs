//! Where everything of a restored cluster goes: turns a manifest and a folder into mount points and links. A pure
//! function; nothing is made here.
//!
//! ```text
//! DIR/data               the data directory
//! DIR/wal                pg_wal
//! DIR/tablespaces/OID    the tablespaces
//! DIR/volumes/PART       a volume of which a part is only a folder, named after the first part on it;
//!                        the above are then links into it
//! ```
//!
//! When volumes become folders, a tablespace that is sent elsewhere is a real folder there, even if it is only a
//! folder of its volume. A dataset is mounted as a whole: there it's a link into the dataset.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::plan::layout::PartKind;
use crate::set::manifest::{Manifest, SetPart};
use crate::volume::zfs::{DatasetName, SnapshotName};

/// Where things go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    /// DIR.
    pub directory: PathBuf,
    /// The volumes, in the manifest's order.
    pub volumes: Vec<PlacedVolume>,
    /// Links to make: (link, what it points at).
    pub links: Vec<(PathBuf, PathBuf)>,
    /// The data directory without links.
    pub data: PathBuf,
    /// pg_wal without links.
    pub wal: PathBuf,
    /// What PGDATA/pg_wal has to point to; `None` if it is a folder in the data directory.
    pub wal_link: Option<PathBuf>,
    /// The tablespaces, by OID.
    pub tablespaces: BTreeMap<u32, PlacedTablespace>,
}

impl Placement {
    /// Returns the folders that volumes become, if they become folders.
    pub fn folders(&self) -> impl Iterator<Item = &PathBuf> {
        let volumes = self.volumes.iter().filter(|volume| volume.dataset.is_none());
        volumes.flat_map(|volume| {
            let apart = volume.apart.iter().map(|apart| &apart.folder);
            std::iter::once(&volume.mountpoint).chain(apart)
        })
    }

    /// Whether the data directory is on this volume.
    #[must_use]
    pub fn has_data(&self, volume: &PlacedVolume) -> bool {
        self.data.starts_with(&volume.mountpoint)
    }
}

/// A volume's new place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlacedVolume {
    /// The snapshot that it becomes a copy of.
    pub origin: SnapshotName,
    /// The dataset that it becomes; `None` if it becomes a plain folder.
    pub dataset: Option<DatasetName>,
    /// Its mount point, or the folder.
    pub mountpoint: PathBuf,
    /// Its folders that go elsewhere.
    pub apart: Vec<FolderElsewhere>,
}

/// A folder of a volume that becomes a folder elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FolderElsewhere {
    /// Its path in the volume.
    pub inside: PathBuf,
    /// The folder that it becomes.
    pub folder: PathBuf,
}

impl PlacedVolume {
    /// Returns where a path of the volume is.
    #[must_use]
    pub fn place_of(&self, inside: &Path) -> PathBuf {
        place_of(&self.mountpoint, self.apart.iter(), inside)
    }
}

/// Returns where a path of a volume is whose folder is `top`, except for what is `apart`.
pub(super) fn place_of<'a>(
    top: &'a Path,
    apart: impl Iterator<Item = &'a FolderElsewhere>,
    inside: &Path,
) -> PathBuf {
    let apart = apart.filter(|apart| inside.starts_with(&apart.inside));
    let (top, inside) = match apart.max_by_key(|apart| apart.inside.components().count()) {
        Some(apart) => (&*apart.folder, inside.strip_prefix(&apart.inside).unwrap_or(inside)),
        None => (top, inside),
    };
    // join with an empty path leaves a trailing slash.
    if inside.as_os_str().is_empty() { top.to_path_buf() } else { top.join(inside) }
}

/// A tablespace's old and new places.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlacedTablespace {
    /// The path in the original cluster.
    pub original: PathBuf,
    /// What pg_tblspc/OID points to.
    pub link: PathBuf,
    /// The same without links.
    pub real: PathBuf,
}

/// Names of the new datasets.
#[derive(Debug, Clone, Copy)]
pub enum Naming<'a> {
    /// For clones: below `parent` if it is in the origin's pool, otherwise next to each volume's dataset.
    Clones {
        /// `restore-ab12` or `clone-CLUSTER-NAME`.
        name: &'a str,
        /// `--dataset`.
        parent: Option<&'a DatasetName>,
    },
    /// Below this dataset, each named after its first part: `POOL/PATH/data`.
    Below(&'a DatasetName),
    /// None: plain folders.
    Folders,
}

/// Lays out `manifest` under `directory`, with tablespaces at the places in `elsewhere`.
///
/// # Errors
/// [`Error::Usage`] for a tablespace that the set doesn't have, or a folder that can't be its alone.
pub fn place(
    manifest: &Manifest,
    directory: &Path,
    elsewhere: &[(String, PathBuf)],
    naming: &Naming<'_>,
) -> Result<Placement> {
    place_over(manifest, directory, elsewhere, naming, &BTreeMap::new())
}

/// Does the same over an older restore, in which volumes of which a part is only a folder may have a place in
/// `DIR/volumes` already: `kept`, by their index in the manifest.
///
/// # Errors
/// As [`place`].
pub(super) fn place_over(
    manifest: &Manifest,
    directory: &Path,
    elsewhere: &[(String, PathBuf)],
    naming: &Naming<'_>,
    kept: &BTreeMap<usize, PathBuf>,
) -> Result<Placement> {
    let elsewhere = resolve(manifest, elsewhere)?;
    apart(directory, &elsewhere)?;
    let part_path = |kind: &PartKind| match kind {
        PartKind::Data => directory.join("data"),
        PartKind::Wal => directory.join("wal"),
        PartKind::Tablespace { oid, .. } => {
            elsewhere.get(oid).cloned().unwrap_or_else(|| usual_place(directory, *oid))
        }
    };
    let mut volumes = Vec::new();
    for (index, volume) in manifest.volumes.iter().enumerate() {
        let root = volume.parts.iter().find(|part| part.inside.as_os_str().is_empty());
        let part = volume.parts.first();
        let part = part.map_or_else(|| index.to_string(), |part| part.kind.id());
        volumes.push(PlacedVolume {
            origin: volume.snapshot.clone(),
            mountpoint: match root {
                Some(part) => part_path(&part.kind),
                None => kept
                    .get(&index)
                    .cloned()
                    .unwrap_or_else(|| directory.join("volumes").join(&part)),
            },
            dataset: match naming {
                Naming::Clones { name, parent } => {
                    Some(clone_name(&volume.dataset, &part, name, *parent))
                }
                Naming::Below(parent) => Some(parent.child(&part)),
                Naming::Folders => None,
            },
            apart: match naming {
                Naming::Folders => apart_in(&volume.parts, &elsewhere, directory),
                Naming::Clones { .. } | Naming::Below(_) => Vec::new(),
            },
        });
    }
    let real = |volume: usize, part: &SetPart| volumes[volume].place_of(&part.inside);
    let missing = |what: &str| Error::failed(format!("set {} names no {what}", manifest.set));
    let find = |kind: PartKind| manifest.parts().find(move |(_, part)| part.kind == kind);
    let (data_volume, data_part) = find(PartKind::Data).ok_or_else(|| missing("data directory"))?;
    let (wal_volume, wal_part) = find(PartKind::Wal).ok_or_else(|| missing("pg_wal"))?;
    let data = real(data_volume, data_part);
    let wal_in_data =
        wal_volume == data_volume && wal_part.inside == data_part.inside.join("pg_wal");
    let mut links = Vec::new();
    let mut tablespaces = BTreeMap::new();
    for (volume, part) in manifest.parts() {
        let path = part_path(&part.kind);
        let real = real(volume, part);
        if path != real {
            links.push((path.clone(), real.clone()));
        }
        if let PartKind::Tablespace { oid, .. } = part.kind {
            let original = part.path.clone();
            tablespaces.insert(oid, PlacedTablespace { original, link: path, real });
        }
    }
    Ok(Placement {
        directory: directory.to_path_buf(),
        wal: if wal_in_data { data.join("pg_wal") } else { real(wal_volume, wal_part) },
        wal_link: (!wal_in_data).then(|| directory.join("wal")),
        volumes,
        links,
        data,
        tablespaces,
    })
}

/// Returns where it would go by default.
fn usual_place(directory: &Path, oid: u32) -> PathBuf {
    directory.join("tablespaces").join(oid.to_string())
}

/// Returns the tablespaces of a volume that are only folders of it and are sent elsewhere.
fn apart_in(
    parts: &[SetPart],
    elsewhere: &BTreeMap<u32, PathBuf>,
    directory: &Path,
) -> Vec<FolderElsewhere> {
    let is_folder = |part: &&SetPart| !part.inside.as_os_str().is_empty();
    let apart = parts.iter().filter(is_folder).filter_map(|part| {
        let PartKind::Tablespace { oid, .. } = part.kind else { return None };
        let folder = elsewhere.get(&oid).filter(|path| **path != usual_place(directory, oid))?;
        Some(FolderElsewhere { inside: part.inside.clone(), folder: folder.clone() })
    });
    apart.collect()
}

/// Checks that each given folder is its tablespace's alone: otherwise the restore of one would remove the files of
/// the other. In DIR, `--delta` has to know every name.
fn apart(directory: &Path, elsewhere: &BTreeMap<u32, PathBuf>) -> Result<()> {
    let own =
        ["data", "wal", "log", "run", "tablespaces", "volumes"].map(|name| directory.join(name));
    let nested = |a: &Path, b: &Path| a.starts_with(b) || b.starts_with(a);
    for (oid, path) in elsewhere {
        if *path == usual_place(directory, *oid) {
            continue;
        }
        let mut others = elsewhere.iter().filter(|(other, _)| *other != oid).map(|(_, path)| path);
        let other = others.find(|other| nested(path, other));
        if let Some(other) = other.or_else(|| own.iter().find(|own| nested(path, own))) {
            return Err(Error::usage(
                format!(
                    "\"{}\" of tablespace {oid} and \"{}\" lie in one another",
                    path.display(),
                    other.display()
                ),
                "give each tablespace a folder of its own",
            ));
        }
        if path.starts_with(directory) {
            return Err(Error::usage(
                format!(
                    "\"{}\" of tablespace {oid} lies in \"{}\", which the restore fills",
                    path.display(),
                    directory.display()
                ),
                format!(
                    "leave out its --tablespace, then it goes to \"{}\"; or name a folder outside",
                    usual_place(directory, *oid).display()
                ),
            ));
        }
    }
    Ok(())
}

/// Resolves `--tablespace OID_OR_NAME=DIR` to OIDs.
fn resolve(manifest: &Manifest, elsewhere: &[(String, PathBuf)]) -> Result<BTreeMap<u32, PathBuf>> {
    let mut by_oid = BTreeMap::new();
    for (which, path) in elsewhere {
        let oid = find_tablespace(manifest, which)?;
        if by_oid.insert(oid, path.clone()).is_some() {
            return Err(Error::usage(
                format!("tablespace \"{which}\" is named twice"),
                "give each tablespace one --tablespace",
            ));
        }
    }
    Ok(by_oid)
}

/// Returns a tablespace's OID, by OID or name.
///
/// # Errors
/// [`Error::Usage`] for one that the set doesn't have.
pub fn find_tablespace(manifest: &Manifest, which: &str) -> Result<u32> {
    let oid = manifest.parts().find_map(|(_, part)| match &part.kind {
        PartKind::Tablespace { oid, name }
            if oid.to_string() == which || name.as_deref() == Some(which) =>
        {
            Some(*oid)
        }
        _ => None,
    });
    oid.ok_or_else(|| {
        let known: Vec<_> = manifest
            .parts()
            .filter(|(_, part)| matches!(part.kind, PartKind::Tablespace { .. }))
            .map(|(_, part)| part.kind.to_string())
            .collect();
        Error::usage(
            format!("set {} has no tablespace \"{which}\"", manifest.set),
            format!("it has: {}", if known.is_empty() { "none".into() } else { known.join(", ") }),
        )
    })
}

fn clone_name(
    dataset: &DatasetName,
    part: &str,
    name: &str,
    parent: Option<&DatasetName>,
) -> DatasetName {
    // A clone is in its origin's pool; --dataset can only name a place in one pool.
    let parent = parent.filter(|parent| parent.pool() == dataset.pool()).cloned();
    let parent = parent.or_else(|| dataset.parent()).unwrap_or_else(|| dataset.clone());
    parent.child(&format!("lockstep-{name}-{part}"))
}

#[cfg(test)]
#[path = "placement_tests.rs"]
mod tests;
