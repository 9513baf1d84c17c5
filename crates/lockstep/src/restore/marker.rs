//! `DIR/.lockstep-restore`: says that Lockstep restored to a folder, and which cluster and set.
//!
//! It is written before anything else is made there, and it stays. `--delta` removes and overwrites, so it has to
//! know that a restore made what it finds; and so does the command that removes what a killed restore left. A dataset
//! carries a property for that; a folder can't.

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use pgfiles::lsn::SystemIdentifier;
use serde::{Deserialize, Serialize};

use super::source::Source;
use crate::error::Result;
use crate::files;
use crate::set::manifest::{Manifest, json, paths_text};

/// Its name in DIR.
pub(super) const NAME: &str = ".lockstep-restore";

/// More than it ever has; a larger file isn't a marker.
const MOST: u64 = 64 << 10;

/// Its content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Marker {
    /// The cluster's name in the configuration.
    pub(super) cluster: String,
    /// The cluster, by its system identifier.
    pub(super) system_identifier: SystemIdentifier,
    /// The set that is there, or was to be restored there.
    pub(super) set: String,
    /// When its restore began.
    pub(super) begun_at: Timestamp,
    /// The id of the restore; empty if an older Lockstep wrote it.
    #[serde(default)]
    pub(super) restore: String,
    /// The sets that were there before; several if restores were interrupted. Their files may still be there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) before: Vec<String>,
    /// The folders outside DIR that its tablespaces go to. An older Lockstep doesn't write them.
    #[serde(default, skip_serializing_if = "Vec::is_empty", with = "paths_text")]
    pub(super) tablespaces: Vec<PathBuf>,
    /// The restore has ended, and what is there stays. An older Lockstep doesn't write this.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) ended: bool,
    /// It was restored from snapshots: `--delta` neither continues with it nor changes it. An older Lockstep wrote no
    /// marker then.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) from_snapshots: bool,
}

/// Returns its path.
pub(super) fn path(directory: &Path) -> PathBuf {
    directory.join(NAME)
}

impl Marker {
    /// Reads the one in a folder. An unreadable one counts as none: then the folder isn't known to be a restore.
    pub(super) fn read(directory: &Path) -> Option<Self> {
        let path = path(directory);
        let metadata = std::fs::symlink_metadata(&path).ok()?;
        if !metadata.is_file() || metadata.len() > MOST {
            return None;
        }
        serde_json::from_slice(&std::fs::read(&path).ok()?).ok()
    }

    /// Reads the one of a restore from a repository, which `--delta` may change.
    pub(super) fn of_older(directory: &Path) -> Option<Self> {
        Self::read(directory).filter(|marker| !marker.from_snapshots)
    }

    /// Whether it is of the same cluster as this set from this source.
    pub(super) fn is_of(&self, set: &Manifest, source: &Source) -> bool {
        source.is_cluster(set, self.system_identifier)
    }

    /// Writes it, replacing an older one.
    pub(super) fn write(&self, directory: &Path) -> Result<()> {
        let bytes = serde_json::to_vec(self).map_err(json("write the restore's marker"))?;
        files::publish(&path(directory), &bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_marker_says_nothing() {
        let scratch = tempfile::tempdir().unwrap();
        let folder = scratch.path().join("marker");
        std::fs::create_dir_all(&folder).unwrap();
        assert_eq!(Marker::read(&folder), None);
        let marker = Marker {
            cluster: "main".into(),
            system_identifier: SystemIdentifier::new(7),
            set: "20261123T194512Z-k3fa".into(),
            begun_at: Timestamp::UNIX_EPOCH,
            restore: "restore-ab12".into(),
            before: Vec::new(),
            tablespaces: vec!["/srv/ts".into()],
            ended: false,
            from_snapshots: false,
        };
        let text = serde_json::to_string(&marker).unwrap();
        assert!(!text.contains("ended") && !text.contains("snapshots"), "as an older one has it");
        let ended = Marker { ended: true, ..marker.clone() };
        ended.write(&folder).unwrap();
        assert_eq!(Marker::read(&folder), Some(ended.clone()));
        assert_eq!(Marker::of_older(&folder), Some(ended.clone()));
        let clones = Marker { from_snapshots: true, ..ended };
        clones.write(&folder).unwrap();
        assert_eq!(Marker::of_older(&folder), None);
        assert_eq!(Marker::read(&folder), Some(clones));
        marker.write(&folder).unwrap();
        assert_eq!(Marker::read(&folder), Some(marker.clone()));
        std::fs::rename(path(&folder), folder.join("other")).unwrap();
        std::os::unix::fs::symlink(folder.join("other"), path(&folder)).unwrap();
        assert_eq!(Marker::read(&folder), None, "a link");
        // It takes the link's place, and what the link led to stays.
        std::fs::write(folder.join("other"), b"else").unwrap();
        marker.write(&folder).unwrap();
        assert_eq!(std::fs::read(folder.join("other")).unwrap(), b"else");
        for bytes in [&b""[..], b"{}", b"\xff"] {
            std::fs::write(path(&folder), bytes).unwrap();
            assert_eq!(Marker::read(&folder), None);
        }
    }
}
