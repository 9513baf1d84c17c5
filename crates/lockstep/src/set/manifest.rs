//! The manifest of a set: everything that a restore needs to know, and the reason why it may trust it.
//!
//! It is written last; its existence means that the set is complete. It carries a hash of itself and of every file
//! beside it, so that a flipped bit is an error and not another LSN.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use pgfiles::lsn::{Lsn, SystemIdentifier, TimelineId};
use pgfiles::timeline_history::{TimelineHistory, TimelineSwitch};
use pgfiles::wal_name::WalSegmentSize;
use serde::{Deserialize, Serialize};

use super::branches;
use crate::error::{Error, Result};
use crate::names::{ClusterName, SetId};
use crate::plan::layout::PartKind;
use crate::plan::strategy::Strategy;
use crate::plan::warnings::Warning;
use crate::volume::zfs::{DatasetName, Guid, SnapshotName, Standing};

/// The format of this file; another number is refused.
pub const VERSION: u32 = 1;

/// A set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`VERSION`].
    pub version: u32,
    /// Its id.
    pub set: SetId,
    /// The cluster's name in the configuration.
    pub cluster: ClusterName,
    /// The id of the state_dir that made it.
    pub owner: String,
    /// What the user wrote with `--label`.
    pub label: Option<String>,
    /// Why it is consistent.
    pub strategy: Strategy,
    /// The same in words.
    pub consistent_because: String,
    /// Why this strategy was chosen.
    pub chosen_because: String,
    /// Whose data it is.
    pub postgres: PostgresIdentity,
    /// When the backup began, by this host's clock.
    pub started_at: jiff::Timestamp,
    /// When the manifest was written, by this host's clock.
    pub finished_at: jiff::Timestamp,
    /// The earliest time that recovery can be asked for: everything was frozen by then.
    pub consistent_at: Option<jiff::Timestamp>,
    /// The time of its data, for a standby and for a cluster that was shut down, as far as it was known. A standby to
    /// which nothing streams any more yields new sets of old data; so does a data directory that nobody uses any
    /// more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_at: Option<jiff::Timestamp>,
    /// Where recovery starts: the redo location.
    #[serde(with = "lsn_text")]
    pub start_lsn: Option<Lsn>,
    /// label: the end of the end-of-backup record; for a standby its minRecoveryPoint at that time.
    #[serde(with = "lsn_text")]
    pub stop_lsn: Option<Lsn>,
    /// The set holds everything up to here. label and ordered: the smallest LSN at which the restored cluster is
    /// consistent; atomic: that is the end of the WAL in the set, slightly later.
    #[serde(with = "lsn_text")]
    pub floor_lsn: Option<Lsn>,
    /// The snapshots in the order they were taken.
    pub volumes: Vec<SetVolume>,
    /// The set's own WAL.
    pub wal: SetWal,
    /// Files beside the manifest, by name, with their hash.
    pub files: BTreeMap<String, SetFile>,
    /// The plan's warnings.
    pub warnings: Vec<Warning>,
    /// How many attempts it took.
    pub tries: u32,
    /// How long its parts took.
    pub seconds: Seconds,
    /// BLAKE3 of this manifest with this field empty, in hex.
    pub checksum: String,
}

/// Which PostgreSQL.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PostgresIdentity {
    /// 13 to 18; absent where pg_control's catalog version is unknown and no server was asked.
    pub major: Option<u32>,
    /// As text: it doesn't fit a JSON number.
    pub system_identifier: SystemIdentifier,
    /// The timeline the set was taken on.
    pub timeline: TimelineId,
    /// Where its ancestors were left, oldest first; empty if it has none, or they weren't known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<Switch>,
    /// Bytes.
    pub wal_segment_size: u32,
    /// Whether pages carry checksums.
    pub data_checksums: bool,
    /// It was in recovery: a standby.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub standby: bool,
    /// wal_level was `minimal`: PostgreSQL can only recover it as after a crash.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub wal_minimal: bool,
    /// The data directory it was taken from.
    #[serde(with = "path_text")]
    pub data_directory: PathBuf,
}

/// A line of a timeline's history, without the words for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Switch {
    /// The ancestor.
    pub timeline: TimelineId,
    /// The first position that is no longer the ancestor's.
    pub lsn: Lsn,
}

/// One snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetVolume {
    /// The dataset.
    pub dataset: DatasetName,
    /// Its pool.
    pub pool: String,
    /// The snapshot's full name.
    pub snapshot: SnapshotName,
    /// The snapshot's GUID, as text.
    pub guid: Guid,
    /// Its transaction group.
    pub createtxg: u64,
    /// 1 is the first taken; snapshots of one command share a number.
    pub order: u32,
    /// When, by ZFS.
    pub taken_at: jiff::Timestamp,
    /// The parts on it.
    pub parts: Vec<SetPart>,
}

/// A part on a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetPart {
    /// Which part.
    pub kind: PartKind,
    /// Its path as PostgreSQL knew it.
    #[serde(with = "path_text")]
    pub path: PathBuf,
    /// Its path inside the volume.
    #[serde(with = "path_text")]
    pub inside: PathBuf,
}

/// The WAL that the set carries.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetWal {
    /// The segments that recovery to the floor needs, in order, and a timeline's history.
    pub segments: Vec<String>,
    /// `snapshot`: they are in pg_wal's snapshot; `files`: they are beside the manifest.
    pub stored: WalStored,
    /// Those of them that were already gone from pg_wal and that the primary still had: they are beside the manifest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fetched: Vec<String>,
    /// Those of them that are only in the archive: a restore needs a restore_command.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub archived: Vec<String>,
}

/// Where the set's WAL is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WalStored {
    /// In a snapshot of the set.
    #[default]
    Snapshot,
    /// In the folder `wal` beside the manifest.
    Files,
}

/// A file beside the manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetFile {
    /// Its length.
    pub bytes: u64,
    /// BLAKE3 in hex.
    pub blake3: String,
}

/// Durations of a backup.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seconds {
    /// pg_backup_start: nearly all of it is the checkpoint.
    pub checkpoint: f64,
    /// From before the first snapshot to after the last.
    pub snapshots: f64,
    /// From the first look at the cluster to the manifest, for the last attempt.
    pub total: f64,
}

impl From<&TimelineSwitch> for Switch {
    fn from(switch: &TimelineSwitch) -> Self {
        Self { timeline: switch.timeline, lsn: switch.lsn }
    }
}

impl Manifest {
    /// Returns the content of its file: indented JSON with its own checksum.
    ///
    /// # Errors
    /// When a value can't be expressed in JSON.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let mut sealed = self.clone();
        sealed.checksum = self.own_checksum()?;
        let mut bytes = serde_json::to_vec_pretty(&sealed).map_err(json("write the manifest"))?;
        bytes.push(b'\n');
        Ok(bytes)
    }

    /// Reads and checks what [`Self::to_bytes`] wrote.
    ///
    /// # Errors
    /// Why it can't be trusted, in words.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let Versioned { version } = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
        if version != VERSION {
            return Err(format!("format version {version} isn't known to this lockstep"));
        }
        let manifest: Self = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
        let own = manifest.own_checksum().map_err(|e| e.chain())?;
        if own != manifest.checksum {
            return Err(format!("its checksum is {own}, it says {}", manifest.checksum));
        }
        super::names_within::check(&manifest)?;
        Ok(manifest)
    }

    fn own_checksum(&self) -> Result<String> {
        let mut open = self.clone();
        open.checksum = String::new();
        let bytes = serde_json::to_vec(&open).map_err(json("write the manifest"))?;
        Ok(hash(&bytes))
    }

    /// Returns every part with the index of its volume.
    pub fn parts(&self) -> impl Iterator<Item = (usize, &SetPart)> {
        self.volumes.iter().enumerate().flat_map(|(at, v)| v.parts.iter().map(move |p| (at, p)))
    }

    /// Returns the first volume whose snapshot isn't among the existing ones, or is a different one, which is then
    /// returned too.
    #[must_use]
    pub fn first_gone<'a>(
        &'a self,
        there: &'a BTreeMap<SnapshotName, Standing>,
    ) -> Option<(&'a SetVolume, Option<&'a Standing>)> {
        let mut found = self.volumes.iter().map(|of| (of, there.get(&of.snapshot)));
        found.find(|(of, found)| found.is_none_or(|found| found.guid != of.guid))
    }

    /// Returns the smallest LSN that its recovery can target, if known.
    #[must_use]
    pub fn floor(&self) -> Option<Lsn> {
        self.floor_lsn.or(match self.strategy {
            Strategy::Cold => self.start_lsn,
            _ => None,
        })
    }

    /// Returns how far the cluster in the set had come, as far as known.
    #[must_use]
    pub fn end(&self) -> Option<Lsn> {
        self.floor().or(self.stop_lsn).or(self.start_lsn)
    }

    /// Returns the time of its data: when the set was begun, unless its standby lagged behind, or it was shut down.
    #[must_use]
    pub fn data_time(&self) -> jiff::Timestamp {
        self.data_at.map_or(self.started_at, |data| data.min(self.started_at))
    }

    /// Returns the warnings that make it worse than intended.
    pub fn problems(&self) -> impl Iterator<Item = &Warning> {
        self.warnings.iter().filter(|warning| warning.problem)
    }

    /// Returns the timeline that it was taken on.
    #[must_use]
    pub fn timeline(&self) -> TimelineId {
        self.postgres.timeline
    }

    /// Returns its timeline's history; `None` if the manifest doesn't contain it.
    #[must_use]
    pub fn history(&self) -> Option<TimelineHistory> {
        branches::history(self.timeline(), &self.postgres.history)
    }

    /// Returns the cluster's identity and the size of its WAL segments.
    ///
    /// # Errors
    /// When the manifest contains an impossible value.
    pub fn wal_identity(&self) -> Result<crate::postgres::wal::WalIdentity> {
        let wrong = |what: &str| Error::failed(format!("set {}: strange {what}", self.set));
        Ok(crate::postgres::wal::WalIdentity {
            system_identifier: self.postgres.system_identifier,
            segment_size: WalSegmentSize::new(self.postgres.wal_segment_size)
                .map_err(|e| wrong("WAL segment size").because(e))?,
            timeline: self.timeline(),
        })
    }
}

/// Returns the BLAKE3 hash in hex.
#[must_use]
pub fn hash(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex().to_string()
}

/// Returns the length and hash of a file, read in pieces.
///
/// # Errors
/// When it can't be read.
pub fn hash_file(path: &Path) -> Result<SetFile> {
    let mut hasher = blake3::Hasher::new();
    let mut file = std::fs::File::open(path).map_err(Error::io("read", path))?;
    let bytes = std::io::copy(&mut file, &mut hasher).map_err(Error::io("read", path))?;
    Ok(SetFile::hashed(bytes, &hasher))
}

impl SetFile {
    /// Returns the length and hash of what went through the hasher.
    #[must_use]
    pub fn hashed(bytes: u64, hasher: &blake3::Hasher) -> Self {
        Self { bytes, blake3: hasher.finalize().to_hex().to_string() }
    }
}

/// Makes an error for `map_err` on serde_json.
pub fn json(what: &'static str) -> impl FnOnce(serde_json::Error) -> Error {
    move |e| Error::failed(format!("cannot {what}")).because(e)
}

/// LSNs as PostgreSQL prints them.
mod lsn_text {
    use super::Lsn;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(lsn: &Option<Lsn>, to: S) -> Result<S::Ok, S::Error> {
        match lsn {
            Some(lsn) => to.collect_str(lsn),
            None => to.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Lsn>, D::Error> {
        let text = Option::<String>::deserialize(from)?;
        text.map(|text| text.parse().map_err(D::Error::custom)).transpose()
    }
}

/// Paths as text; one that isn't UTF-8 as `{"base64": …}`.
pub(crate) mod path_text {
    use std::os::unix::ffi::OsStringExt;
    use std::path::{Path, PathBuf};

    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    #[derive(Serialize, Deserialize)]
    #[serde(untagged)]
    enum Text {
        Utf8(String),
        Bytes { base64: String },
    }

    pub(crate) fn serialize<S: Serializer>(path: &Path, to: S) -> Result<S::Ok, S::Error> {
        match path.to_str() {
            Some(text) => text.serialize(to),
            None => {
                Text::Bytes { base64: STANDARD.encode(crate::postgres::instance::path_bytes(path)) }
                    .serialize(to)
            }
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<PathBuf, D::Error> {
        match Text::deserialize(from)? {
            Text::Utf8(text) => Ok(text.into()),
            Text::Bytes { base64 } => {
                let bytes = STANDARD.decode(base64).map_err(D::Error::custom)?;
                Ok(std::ffi::OsString::from_vec(bytes).into())
            }
        }
    }
}

/// The configuration that is kept with the manifest if it is outside the data directory.
pub(crate) const CONFIGURATION: [&str; 3] = ["postgresql.conf", "pg_hba.conf", "pg_ident.conf"];

/// Returns the name of such a file in the set.
pub(crate) fn of_configuration(name: &str) -> String {
    format!("config/{name}")
}

/// Lists of paths, each as [`path_text`] writes it.
pub(crate) mod paths_text {
    use std::path::PathBuf;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    struct Text(#[serde(with = "super::path_text")] PathBuf);

    pub(crate) fn serialize<S: Serializer>(paths: &[PathBuf], to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(paths.iter().cloned().map(Text))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Vec<PathBuf>, D::Error> {
        Ok(Vec::<Text>::deserialize(from)?.into_iter().map(|Text(path)| path).collect())
    }
}

#[cfg(test)]
#[path = "manifest_tests.rs"]
pub(crate) mod tests;
