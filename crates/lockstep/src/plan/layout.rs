//! Where everything is: the parts of a cluster and the volumes that hold them.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::volume::zfs::DatasetName;

/// A part of a cluster: something that PostgreSQL allows to be elsewhere.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PartKind {
    /// The data directory.
    Data,
    /// pg_wal; it is always a part, even if it is inside the data directory.
    Wal,
    /// A tablespace outside the data directory.
    Tablespace {
        /// Its OID: the name of its link in pg_tblspc.
        oid: u32,
        /// Its name, if a server could be asked.
        name: Option<String>,
    },
}

impl PartKind {
    /// A short name without blanks: `data`, `wal`, `tablespace-16401`.
    #[must_use]
    pub fn id(&self) -> String {
        match self {
            Self::Data => "data".into(),
            Self::Wal => "wal".into(),
            Self::Tablespace { oid, .. } => format!("tablespace-{oid}"),
        }
    }
}

impl fmt::Display for PartKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Data => f.write_str("data directory"),
            Self::Wal => f.write_str("pg_wal"),
            Self::Tablespace { oid, name: Some(name) } => write!(f, "tablespace {name} ({oid})"),
            Self::Tablespace { oid, name: None } => write!(f, "tablespace {oid}"),
        }
    }
}

/// A part and its location.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Which part.
    pub kind: PartKind,
    /// The path as PostgreSQL knows it: the setting, or the target of the link, byte for byte.
    pub path: PathBuf,
    /// The same path with links resolved.
    pub real_path: PathBuf,
    /// Index into [`Layout::volumes`].
    pub volume: usize,
    /// The path inside the volume; empty where the part is the volume's root.
    pub inside: PathBuf,
}

/// The unit of a snapshot: a ZFS dataset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Its name.
    pub dataset: DatasetName,
    /// The dataset's GUID.
    pub guid: u64,
    /// Where it is mounted.
    pub mountpoint: PathBuf,
    /// `recordsize` in bytes; it applies to new files.
    pub recordsize: u64,
    /// Bytes that can still be written.
    pub available: u64,
    /// Why a reservation leaves no space for a snapshot, if that is so.
    pub lacking: Option<Reserved>,
    /// `sync`: standard, always or disabled.
    pub sync: String,
    /// Other mounts below a part; this volume's snapshots don't contain their files.
    pub nested: Vec<NestedMount>,
    /// Names in the volume's root that belong to no part.
    pub foreign: Vec<String>,
}

/// A dataset whose `refreservation` leaves too little space for a snapshot. The reservation must still hold when a
/// snapshot keeps everything that the dataset has now. So a snapshot reserves once more what only the dataset has and
/// no older snapshot does, outside of what is reserved already (`dsl_dataset_snapshot_reserve_space` in
/// dsl_dataset.c).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reserved {
    /// The bytes that a snapshot needs.
    pub needed: u64,
    /// The bytes available outside of the reservation.
    pub left: u64,
}

impl Reserved {
    /// Returns the shortage if a snapshot needs more than there is; `unused` is `usedbyrefreservation`, the
    /// reservation minus what only the dataset has.
    #[must_use]
    pub fn lacking(reservation: u64, unused: u64, available: u64) -> Option<Self> {
        let needed = reservation.saturating_sub(unused);
        let left = available.saturating_sub(unused);
        (needed > left).then_some(Self { needed, left })
    }
}

impl Volume {
    /// The pool.
    #[must_use]
    pub fn pool(&self) -> &str {
        self.dataset.pool()
    }
}

/// A mount inside a part that isn't a part itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NestedMount {
    /// The mount point.
    pub point: PathBuf,
    /// What is mounted.
    pub source: String,
    /// The part that it is in.
    pub part: PartKind,
    /// PostgreSQL recreates its contents at startup (pg_stat_tmp and the like) or never needs them again (logs).
    pub harmless: bool,
}

/// The parts and the volumes of one cluster.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Layout {
    /// The data directory, pg_wal, the tablespaces by OID.
    pub parts: Vec<Part>,
    /// The volumes, in the order of the parts that use them first.
    pub volumes: Vec<Volume>,
}

impl Layout {
    /// The parts on a volume.
    pub fn parts_on(&self, volume: usize) -> impl Iterator<Item = &Part> {
        self.parts.iter().filter(move |part| part.volume == volume)
    }

    /// The volume that holds pg_wal.
    #[must_use]
    pub fn wal_volume(&self) -> Option<usize> {
        self.parts.iter().find(|part| part.kind == PartKind::Wal).map(|part| part.volume)
    }

    /// The volume of pg_wal, if it holds nothing else of the cluster.
    #[must_use]
    pub fn own_wal_volume(&self) -> Option<usize> {
        let volume = self.wal_volume()?;
        self.parts_on(volume).all(|part| part.kind == PartKind::Wal).then_some(volume)
    }

    /// The volumes that hold data: all except pg_wal's own volume; the data directory's first.
    #[must_use]
    pub fn data_volumes(&self) -> Vec<usize> {
        let own = self.own_wal_volume();
        (0..self.volumes.len()).filter(|volume| Some(*volume) != own).collect()
    }

    /// The pools, each once, in the order of the volumes.
    #[must_use]
    pub fn pools(&self) -> Vec<&str> {
        let mut pools = Vec::new();
        for volume in &self.volumes {
            if !pools.contains(&volume.pool()) {
                pools.push(volume.pool());
            }
        }
        pools
    }

    /// How `later` differs, if it does: a part added, gone or moved. Free space and properties may differ.
    #[must_use]
    pub fn difference(&self, later: &Self) -> Option<String> {
        let find = |layout: &Self, kind: &PartKind| {
            let part = layout.parts.iter().find(|part| part.kind.id() == kind.id())?;
            let volume = layout.volumes.get(part.volume)?;
            Some((part.path.clone(), volume.dataset.clone(), volume.guid, part.inside.clone()))
        };
        for part in &later.parts {
            match find(self, &part.kind) {
                None => return Some(format!("{} was created", part.kind)),
                was if was != find(later, &part.kind) => {
                    return Some(format!("{} was moved", part.kind));
                }
                Some(_) => {}
            }
        }
        let gone = self.parts.iter().find(|part| find(later, &part.kind).is_none())?;
        Some(format!("{} was dropped", gone.kind))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A layout for tests: (part, dataset) pairs; each part is its dataset's root unless the
    /// dataset is named twice.
    pub(crate) fn layout(parts: &[(PartKind, &str)]) -> Layout {
        let mut result = Layout::default();
        for (kind, dataset) in parts {
            let dataset = DatasetName::new(dataset).unwrap();
            let known = result.volumes.iter().position(|v| v.dataset == dataset);
            let volume = known.unwrap_or_else(|| {
                result.volumes.push(Volume {
                    mountpoint: format!("/{dataset}").into(),
                    guid: result.volumes.len() as u64 + 1,
                    dataset: dataset.clone(),
                    recordsize: 8192,
                    available: 1 << 40,
                    lacking: None,
                    sync: "standard".into(),
                    nested: vec![],
                    foreign: vec![],
                });
                result.volumes.len() - 1
            });
            let path: PathBuf = format!("/{dataset}/{}", kind.id()).into();
            result.parts.push(Part {
                kind: kind.clone(),
                real_path: path.clone(),
                path,
                volume,
                inside: PathBuf::from(kind.id()),
            });
        }
        result
    }

    pub(crate) fn tablespace(oid: u32) -> PartKind {
        PartKind::Tablespace { oid, name: None }
    }

    #[test]
    fn pg_wal_has_a_volume_of_its_own_or_not() {
        let apart = layout(&[(PartKind::Data, "t/d"), (PartKind::Wal, "t/w")]);
        assert_eq!(apart.own_wal_volume(), Some(1));
        assert_eq!(apart.data_volumes(), [0]);
        let shared = layout(&[(PartKind::Data, "t/d"), (PartKind::Wal, "t/d")]);
        assert_eq!((shared.wal_volume(), shared.own_wal_volume()), (Some(0), None));
        assert_eq!(shared.data_volumes(), [0]);
    }

    #[test]
    fn a_changed_layout_is_told_in_words() {
        let base = [(PartKind::Data, "t/d"), (PartKind::Wal, "t/w"), (tablespace(5), "u/a")];
        let now = layout(&base);
        assert_eq!(now.difference(&layout(&base)), None);
        let said = |parts: &[(PartKind, &str)]| now.difference(&layout(parts)).unwrap();
        assert_eq!(said(&base[..2]), "tablespace 5 was dropped");
        let mut more = base.to_vec();
        more.push((tablespace(6), "u/a"));
        assert_eq!(said(&more), "tablespace 6 was created");
        let mut moved = base.to_vec();
        moved[2].1 = "u/b";
        assert_eq!(said(&moved), "tablespace 5 was moved");
        let mut full = now.clone();
        full.volumes[0].available = 0;
        assert_eq!(now.difference(&full), None);
    }
}
