//! What was begun and isn't finished yet, written before the first thing is made.
//!
//! A journal entry lets the next process undo what a killed one left: it names every dataset and folder before they
//! are made.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use pgfiles::lsn::SystemIdentifier;

use super::manifest::{json, path_text, paths_text};
use crate::error::{Error, Result};
use crate::files;
use crate::names::SetId;
use crate::volume::zfs::{DatasetName, Guid};

/// A backup that has begun.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupJournal {
    /// The set.
    pub set: SetId,
    /// The datasets on which it may have snapshots.
    pub datasets: Vec<DatasetName>,
    /// The GUIDs of their pools, by which these are known under another name. Older versions don't record them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub pools: BTreeMap<String, Guid>,
    /// A ZFS that takes only one snapshot per command uses `-r` to make simultaneous ones: on all datasets at and
    /// below this one, even those that aren't the cluster's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub below: Option<DatasetName>,
    /// What couldn't be removed at the last attempt, and why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left: Option<String>,
}

/// A set's removal that has begun.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemovalJournal {
    /// The set.
    pub set: SetId,
    /// Its snapshots: the dataset and the GUID, as text.
    pub snapshots: Vec<(DatasetName, Guid)>,
    /// Their transaction groups, in the same order: a copy in the same pool has the same GUID.
    #[serde(default)]
    pub createtxgs: Vec<u64>,
    /// Those of its datasets whose snapshots are given up: their pool wasn't imported when the removal began, or a `zfs
    /// promote` had moved them elsewhere.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub given_up: Vec<DatasetName>,
    /// The same for all of its datasets, as an older Lockstep wrote it.
    #[serde(default, skip_serializing)]
    pub gives_up: bool,
}

impl RemovalJournal {
    /// Whether its snapshot of this dataset is given up: it isn't waited for, and stays where it is.
    #[must_use]
    pub fn gives_up(&self, dataset: &DatasetName) -> bool {
        self.gives_up || self.given_up.contains(dataset)
    }
}

/// Bookmarks that replace a removed set's snapshots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BookmarkRecord {
    /// The set.
    pub set: SetId,
    /// When it was begun.
    pub started_at: jiff::Timestamp,
    /// The repositories whose next increment starts there.
    pub repositories: Vec<String>,
    /// The dataset and the snapshot's GUID, as text.
    pub bookmarks: Vec<(DatasetName, Guid)>,
    /// Those of its datasets whose bookmark was there before: it serves as well, and is somebody else's (syncoid names
    /// its bookmarks like this). Older versions don't record them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub others: Vec<DatasetName>,
}

impl BookmarkRecord {
    /// Returns those that Lockstep made.
    pub fn own(&self) -> impl Iterator<Item = &(DatasetName, Guid)> {
        self.bookmarks.iter().filter(|(dataset, _)| !self.others.contains(dataset))
    }
}

/// A restore or clone that has begun.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RestoreJournal {
    /// Its id; every clone carries it as `lockstep:restore`.
    pub id: String,
    /// The clones, in the order they are made.
    pub datasets: Vec<DatasetName>,
    /// The restored data directory, in which a server may run.
    #[serde(with = "path_text")]
    pub data: PathBuf,
    /// Links, mount points and folders that are empty once the clones are gone, innermost first. They are only
    /// removed when they are empty.
    #[serde(with = "paths_text")]
    pub places: Vec<PathBuf>,
    /// Folders that are Lockstep's with everything in them.
    #[serde(with = "paths_text")]
    pub own: Vec<PathBuf>,
    /// Folders that it makes and fills with files. Once it has begun with that (`keeps_files`), those in DIR are
    /// Lockstep's with everything in them. Older versions have them in `own`.
    #[serde(default, with = "paths_text")]
    pub filled: Vec<PathBuf>,
    /// What its links lead to: of the links in `places`, only those are removed that lead there.
    #[serde(default, skip_serializing_if = "Vec::is_empty", with = "paths_text")]
    pub leads: Vec<PathBuf>,
    /// Its marker is the first thing that it makes in DIR, and the last that is removed: without it, DIR is somebody
    /// else's by now. Older versions wrote none for a restore from snapshots, and didn't record what links lead to.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_marked: bool,
    /// Empty folders made as mount points where tablespaces of the original cluster were.
    #[serde(with = "paths_text")]
    pub places_of_others: Vec<PathBuf>,
    /// Its server has ended recovery, and links and settings are right: it is somebody's cluster.
    #[serde(default)]
    pub started: bool,
    /// Snapshots that come with what is received into the datasets.
    #[serde(default)]
    pub received: Vec<String>,
    /// Folders that are locked while a restore works in them: this one, or another that has taken over.
    #[serde(default, with = "paths_text")]
    pub alone_in: Vec<PathBuf>,
    /// Its complete datasets, from a repository: they stay, and `--delta` continues with them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kept: Vec<DatasetName>,
    /// It restores files from a repository: the part of the data directory that exists stays, and `--delta` continues
    /// with it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub keeps_files: bool,
    /// It changes an older restore, or is about to: that stays, and `--delta` continues with it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_over_older: bool,
    /// The dataset of its data directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_on: Option<DatasetName>,
    /// The GUID of that dataset, if it existed before: it carries the mark of an older restore, or none. Older versions
    /// don't record it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_guid: Option<Guid>,
    /// The system identifiers of the set's cluster, also those that it had before or has had since. Older versions
    /// don't record them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub identifiers: Vec<SystemIdentifier>,
    /// Where the file systems that hold its folders are mounted: without them nothing can be seen of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty", with = "paths_text")]
    pub mounted: Vec<PathBuf>,
    /// The restore whose marker was in DIR when it began.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub over: String,
}

/// Writes an entry durably.
///
/// # Errors
/// When it can't be written.
pub fn write<T: Serialize>(path: &Path, entry: &T) -> Result<()> {
    files::publish(path, &serde_json::to_vec(entry).map_err(json("write the journal"))?)
}

/// Reads one entry; `None` if it doesn't exist any more.
///
/// # Errors
/// When it can't be read.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let bytes = match std::fs::read(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(Error::io("read", path))?,
    };
    serde_json::from_slice(&bytes).map(Some).map_err(|e| {
        Error::failed(format!("\"{}\" is damaged", path.display())).because(e).with_hint(
            "it names what an unfinished run left; look at it, clean up by hand, remove it",
        )
    })
}

/// Reads all entries of a folder, with their paths.
///
/// # Errors
/// When the folder or an entry can't be read.
pub fn read_all<T: DeserializeOwned>(folder: &Path) -> Result<Vec<(PathBuf, T)>> {
    let (all, unread) = read_each(folder)?;
    match unread.into_iter().next() {
        Some((_, error)) => Err(error),
        None => Ok(all),
    }
}

/// Entries with their paths, and those that can't be read.
type Each<T> = (Vec<(PathBuf, T)>, Vec<(PathBuf, Error)>);

/// Reads all entries of a folder; one that can't be read doesn't hide the others.
///
/// # Errors
/// When the folder can't be read.
pub fn read_each<T: DeserializeOwned>(folder: &Path) -> Result<Each<T>> {
    let (mut all, mut unread) = (Vec::new(), Vec::new());
    for entry in std::fs::read_dir(folder).map_err(Error::io("list", folder))? {
        let path = entry.map_err(Error::io("list", folder))?.path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        match read(&path) {
            Ok(entry) => all.extend(entry.map(|entry| (path, entry))),
            Err(error) => unread.push((path, error)),
        }
    }
    Ok((all, unread))
}
