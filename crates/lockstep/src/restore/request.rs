//! The options of a restore.

use std::path::PathBuf;

use super::only::Wanted;
use crate::names::CloneName;
use crate::postgres::target::Recovery;
use crate::volume::zfs::DatasetName;

/// The options of a restore.
#[derive(Debug, Clone)]
pub struct Request {
    /// A set's id, its beginning, or `latest`; if left out, the newest set from which recovery reaches its target.
    pub set: Option<String>,
    /// What its data becomes, and where it comes from.
    pub what: What,
    /// The folder that gets the cluster.
    pub to: PathBuf,
    /// Where recovery ends.
    pub recovery: Recovery,
    /// Tablespaces that go elsewhere: OID or name, folder.
    pub tablespaces: Vec<(String, PathBuf)>,
    /// Start the server and wait until it accepts connections.
    pub start: bool,
    /// Its port; if left out, a free one is found for `start`.
    pub port: Option<u16>,
    /// Subscriptions continue even if the original's data directory is on this host.
    pub keep_subscriptions: bool,
    /// Settings that differ from the original's.
    pub settings: Vec<(String, String)>,
    /// A throwaway server: its name and the settings that differ. It stays in its mount namespace.
    pub clone: Option<CloneOptions>,
}

/// What the data becomes, and where it comes from.
#[derive(Debug, Clone)]
pub enum What {
    /// Writable clones of this host's snapshots.
    Clones {
        /// The dataset that they are made below; if left out, next to their origins.
        below: Option<DatasetName>,
    },
    /// Datasets, received from a repository. Datasets with a complete restore can't be brought to a part of the
    /// cluster.
    Datasets {
        /// The given one, or the cluster's only one.
        repository: Option<String>,
        /// The dataset that they are received below.
        parent: DatasetName,
        /// Bring existing datasets to the set's state; only what differs is sent.
        delta: bool,
        /// The databases or tablespaces whose files are restored; those of the others become holes.
        only: Wanted,
    },
    /// Files on any file system, from a repository.
    Files {
        /// The given one, or the cluster's only one.
        repository: Option<String>,
        /// Bring what is in the folder to the set's state; only what differs is written.
        delta: bool,
        /// The databases or tablespaces whose files are restored; those of the others become holes.
        only: Wanted,
    },
}

impl What {
    /// Returns the dataset below which others are made.
    pub(super) fn below(&self) -> Option<&DatasetName> {
        match self {
            Self::Clones { below } => below.as_ref(),
            Self::Datasets { parent, .. } => Some(parent),
            Self::Files { .. } => None,
        }
    }

    /// Whether what exists is brought to the set's state.
    pub(super) fn is_delta(&self) -> bool {
        match self {
            Self::Clones { .. } => false,
            Self::Datasets { delta, .. } | Self::Files { delta, .. } => *delta,
        }
    }

    /// Whether some of its files become holes.
    pub(super) fn is_a_part(&self) -> bool {
        match self {
            Self::Clones { .. } => false,
            Self::Datasets { only, .. } | Self::Files { only, .. } => !only.is_all(),
        }
    }
}

/// What is special about a throwaway server.
#[derive(Debug, Clone)]
pub struct CloneOptions {
    /// The clone's name.
    pub name: CloneName,
    /// Settings that override those of the cluster.
    pub settings: Vec<(String, String)>,
}
