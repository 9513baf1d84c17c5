//! What a restore is asked for.

use std::path::PathBuf;

use super::only::Wanted;
use crate::names::CloneName;
use crate::postgres::target::Recovery;
use crate::volume::zfs::DatasetName;

/// What a restore was asked for.
#[derive(Debug, Clone)]
pub struct Request {
    /// A set's id, its beginning, or `latest`; where left out, the newest from which recovery comes to its target.
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
    /// Its port; a free one is found for `start` where left out.
    pub port: Option<u16>,
    /// Subscriptions go on where the original's data directory is on this host, too.
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
        /// The dataset that they are made below; beside their origins where left out.
        below: Option<DatasetName>,
    },
    /// Datasets, received from a repository. One that has everything can't be brought to a part of it.
    Datasets {
        /// The one named, or the cluster's only one.
        repository: Option<String>,
        /// The dataset that they are received below.
        parent: DatasetName,
        /// Bring what is there to the set's state; only what differs is sent.
        delta: bool,
        /// The databases or tablespaces whose files are restored; those of the others become holes.
        only: Wanted,
    },
    /// Files on any file system, from a repository.
    Files {
        /// The one named, or the cluster's only one.
        repository: Option<String>,
        /// Bring what is at the folder to the set's state; only what differs is written.
        delta: bool,
        /// The databases or tablespaces whose files are restored; those of the others become holes.
        only: Wanted,
    },
}

impl What {
    /// The dataset below which others are made.
    pub(super) fn below(&self) -> Option<&DatasetName> {
        match self {
            Self::Clones { below } => below.as_ref(),
            Self::Datasets { parent, .. } => Some(parent),
            Self::Files { .. } => None,
        }
    }

    /// Whether what is there is brought to the set's state.
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
    /// Settings, over those of the cluster.
    pub settings: Vec<(String, String)>,
}
