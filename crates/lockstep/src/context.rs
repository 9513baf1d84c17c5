//! What every command on a cluster works with: the configuration, the state, ZFS.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::OnceLock;

use pgfiles::control_file::ControlFile;
use pgfiles::lsn::SystemIdentifier;

use crate::config::{ClusterConfig, Config, RepositoryConfig};
use crate::error::Result;
use crate::lock::Lock;
use crate::names::ClusterName;
use crate::postgres::{instance, users};
use crate::process::{Credentials, quote};
use crate::set::manifest::Manifest;
use crate::set::state::State;
use crate::volume::zfs::Zfs;

/// The program as printed commands name it, if it isn't just its name.
static PROGRAM: OnceLock<String> = OnceLock::new();
/// How printed commands begin, if it isn't just that.
static BEGINNING: OnceLock<String> = OnceLock::new();

/// Returns the beginning of a command that is printed for somebody to type: `lockstep`. If the command line names a
/// configuration, `--config` follows it, and if the configuration has several clusters, `--cluster` and the name of
/// the one that this program works on: the same name of a clone may mean another cluster's.
#[must_use]
pub fn lockstep() -> &'static str {
    BEGINNING.get().map_or_else(program, String::as_str)
}

/// The same for a command that works on the cluster of this name.
#[must_use]
pub fn lockstep_of(cluster: &str) -> String {
    format!("{} --cluster {cluster}", program())
}

/// The same for a command that takes no `--cluster`, as those of `mirror` do.
#[must_use]
pub fn program() -> &'static str {
    PROGRAM.get().map_or("lockstep", String::as_str)
}

/// Makes the commands that this program prints from now on name the configuration.
pub fn name_configuration(file: &Path) {
    PROGRAM.get_or_init(|| format!("lockstep --config {}", quote(&file.display().to_string())));
}

/// The cluster a command works on.
#[derive(Debug)]
pub struct Context<'a> {
    /// Its name in the configuration.
    pub name: ClusterName,
    /// Its table in the configuration.
    pub cluster: &'a ClusterConfig,
    /// All clusters of the configuration.
    pub clusters: &'a BTreeMap<String, ClusterConfig>,
    /// All repositories of the configuration.
    pub repositories: &'a BTreeMap<String, RepositoryConfig>,
    /// Its folder under state_dir.
    pub state: State,
    /// ZFS.
    pub zfs: Zfs,
}

impl<'a> Context<'a> {
    /// Opens the context of the cluster `name`, or of the only one.
    ///
    /// # Errors
    /// When there is no such cluster, or its state can't be opened.
    pub fn open(config: &'a Config, name: Option<&str>) -> Result<Self> {
        let (name, cluster) = config.cluster(name)?;
        Self::open_as(config, name, cluster)
    }

    /// Opens the context of a cluster that may not be in the configuration yet, or no longer is.
    ///
    /// # Errors
    /// When its state can't be opened; [`crate::refusal::Refusal::PoolSuspended`] when it is on a suspended pool.
    pub fn open_as(
        config: &'a Config,
        name: ClusterName,
        cluster: &'a ClusterConfig,
    ) -> Result<Self> {
        let zfs = Zfs::remembering_in(&config.state_dir);
        zfs.reachable(&config.state_dir)?;
        let state = State::open(&config.state_dir, &name)?.with_repositories(&cluster.repositories);
        let (clusters, repositories) = (&config.clusters, &config.repositories);
        Ok(Self { name, cluster, clusters, repositories, state, zfs })
    }

    /// Makes the commands that this program prints from now on name the cluster, if the configuration has others.
    pub fn name_in_commands(&self) {
        if self.clusters.len() > 1 {
            // Hints are made in places that know no context; a program works on one cluster.
            BEGINNING.get_or_init(|| lockstep_of(self.name.as_str()));
        }
    }

    /// Takes the cluster's lock for `command`; the `zfs` commands run under it hold it too.
    ///
    /// # Errors
    /// [`crate::error::Error::Locked`] with who holds it.
    pub fn lock(&self, command: &str) -> Result<Lock> {
        let lock = self.state.lock(command)?;
        self.zfs.work_under(&lock);
        Ok(lock)
    }

    /// The same, but a prune that has the lock is waited for until it has removed the set that it is at.
    ///
    /// # Errors
    /// [`crate::error::Error::Locked`] with who holds it; when the command was interrupted.
    pub fn lock_before_prune(&self, command: &str) -> Result<Lock> {
        let lock = self.state.lock_before_prune(command)?;
        self.zfs.work_under(&lock);
        Ok(lock)
    }

    /// Reads the pg_control of the cluster.
    ///
    /// # Errors
    /// When it can't be read; [`crate::refusal::Refusal::PoolSuspended`] when its pool is suspended.
    pub fn control(&self) -> Result<ControlFile> {
        self.zfs.reachable(&self.cluster.data_directory)?;
        instance::read_control(&self.cluster.data_directory)
    }

    /// Returns the system identifiers of the cluster in the data directory, the former ones too; none if its pg_control
    /// can't be read.
    #[must_use]
    pub fn identifiers(&self) -> Vec<SystemIdentifier> {
        let Ok(control) = self.control() else { return Vec::new() };
        let formerly = self.cluster.formerly.iter().copied();
        [control.system_identifier].into_iter().chain(formerly).collect()
    }

    /// Finds the set on this host that a user means. `latest` is of the cluster in the data directory, if there are
    /// sets of it.
    ///
    /// # Errors
    /// As [`State::find`].
    pub fn find(&self, which: &str) -> Result<Manifest> {
        self.state.find(which, &self.identifiers())
    }

    /// Returns the user who owns what is restored and runs servers; `None` if this process is that user.
    ///
    /// # Errors
    /// When `os_user` doesn't exist, or this process can't run programs as that user.
    pub fn os_user(&self) -> Result<Option<Credentials>> {
        users::credentials(&self.cluster.os_user)
    }
}
