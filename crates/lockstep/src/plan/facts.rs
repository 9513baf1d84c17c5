//! What is known when a plan is made: the layout, pg_control on disk, and the server's own words.

use std::path::PathBuf;

use pgfiles::control_file::{ControlFile, DbState};
use pgfiles::lsn::SystemIdentifier;

use super::layout::Layout;
use crate::config::CheckpointMode;

/// All that a plan rests on.
#[derive(Debug)]
pub struct Facts {
    /// What lies where.
    pub layout: Layout,
    /// pg_control, read from the data directory.
    pub control: ControlFile,
    /// The process in postmaster.pid, where it runs.
    pub postmaster: Option<u32>,
    /// Links in the data directory that PostgreSQL has nothing to do with, and where they lead.
    pub links: Vec<(PathBuf, PathBuf)>,
    /// `standby.signal` lies in the data directory.
    pub standby_signal: bool,
    /// `backup_label` lies in the data directory: a base backup that nobody has replayed yet.
    pub backup_label: bool,
    /// `primary` is configured: where a standby's primary can be asked.
    pub has_primary: bool,
    /// What it says, where the standby itself could be asked.
    pub primary: Option<PrimarySeen>,
    /// The server's facts, or why there are none.
    pub server: Result<ServerFacts, NoServer>,
    /// ZFS takes several snapshots in one command.
    pub multi_snapshot: bool,
    /// `checkpoint` of the configuration.
    pub checkpoint: CheckpointMode,
    /// Space that a volume must have left, in bytes.
    pub min_free: u64,
}

impl Facts {
    /// The cluster is shut down: nobody runs it, and pg_control says that it ended in order.
    #[must_use]
    pub fn is_shut_down(&self) -> bool {
        self.postmaster.is_none() && was_shut_down(&self.control)
    }

    /// Of what time the data of a standby or of a cluster that is shut down is, as far as that is known at
    /// `now`: an idle primary's last commit is old, so one that has replayed all that its primary wrote is
    /// as new as can be. Without `primary` it is taken for that where it streams and has replayed all it
    /// got: another standby, whose own primary is dead, goes on streaming too, and nobody can tell it from
    /// an idle primary.
    #[must_use]
    pub fn data_at(&self, now: jiff::Timestamp) -> Option<jiff::Timestamp> {
        let following = self.server.as_ref().ok().and_then(|server| server.following.as_ref());
        let Some(following) = following else { return self.last_data() };
        let is_new = match &self.primary {
            Some(seen) => *seen == PrimarySeen::Reached,
            None => following.streams && following.caught_up,
        };
        if is_new { Some(now) } else { self.last_data() }
    }

    /// The last that a standby is known to have: of one that answers its last replayed commit, of one
    /// that is stopped its checkpoint, as of a primary that is stopped; what it has is as new as that at least.
    #[must_use]
    pub fn last_data(&self) -> Option<jiff::Timestamp> {
        if !self.is_standby() && !self.is_shut_down() {
            return None;
        }
        let checkpoint = jiff::Timestamp::from_second(self.control.checkpoint_copy.time).ok();
        match &self.server {
            Ok(server) => server.following.as_ref()?.last_commit.or(checkpoint),
            Err(_) => checkpoint.filter(|_| self.is_shut_down()),
        }
    }

    /// The server is a standby, as it says itself or as the disk says.
    #[must_use]
    pub fn is_standby(&self) -> bool {
        match &self.server {
            Ok(server) => server.in_recovery,
            Err(_) => {
                self.standby_signal
                    || matches!(
                        self.control.state,
                        DbState::InArchiveRecovery | DbState::ShutDownedInRecovery
                    )
            }
        }
    }
}

/// pg_control says that the cluster ended in order. A server writes another state before it changes
/// anything, and this one last of all.
#[must_use]
pub fn was_shut_down(control: &ControlFile) -> bool {
    matches!(control.state, DbState::ShutDowned | DbState::ShutDownedInRecovery)
}

/// Why there is no connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoServer {
    /// The configuration has no `host`.
    NotConfigured,
    /// Nobody runs the cluster, so nothing was tried.
    NotRunning,
    /// Nobody runs the cluster, and another server answers at `host`: how it differs.
    Another(String),
    /// It was tried: the reason.
    Failed(String),
}

impl NoServer {
    /// In words.
    #[must_use]
    pub fn words(&self) -> String {
        match self {
            Self::NotConfigured => "no \"host\" is configured".into(),
            Self::NotRunning => "the server isn't running".into(),
            Self::Another(difference) => {
                format!(
                    "the cluster is shut down, and another server answers at \"host\": {difference}"
                )
            }
            Self::Failed(why) => format!("no connection: {why}"),
        }
    }
}

/// What a connected server says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerFacts {
    /// `server_version_num`, such as 150018.
    pub version_num: u32,
    /// `server_version`.
    pub version: String,
    /// From pg_control_system().
    pub system_identifier: SystemIdentifier,
    /// The setting `data_directory`.
    pub data_directory: PathBuf,
    /// pg_is_in_recovery().
    pub in_recovery: bool,
    /// The setting.
    pub full_page_writes: bool,
    /// The setting: minimal, replica or logical.
    pub wal_level: String,
    /// The setting: off, on or always.
    pub archive_mode: String,
    /// `archive_command` or `archive_library`, whichever is set.
    pub archiver: String,
    /// The setting.
    pub fsync: bool,
    /// This user may call pg_backup_start and pg_backup_stop.
    pub may_backup: bool,
    /// This user may make a replication slot, and one is free.
    pub may_slot: bool,
    /// Tablespaces outside the data directory: OID and name.
    pub tablespaces: Vec<(u32, String)>,
    /// Slots that nobody uses and that keep WAL: name, bytes.
    pub idle_slots: Vec<(String, u64)>,
    /// The segment whose archiving failed last, where none was archived since.
    pub archive_failed: Option<String>,
    /// How it follows its primary, where it is a standby.
    pub following: Option<Following>,
    /// The three files that Debian keeps in /etc.
    pub config_files: ConfigFiles,
}

/// What a standby's primary says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PrimarySeen {
    /// It can't be asked: why.
    Unreachable(String),
    /// What `primary` names is in recovery itself.
    InRecovery,
    /// The standby has replayed all that it had written when it was asked.
    Reached,
    /// So many bytes of that the standby hasn't replayed.
    Behind(u64),
}

/// How a standby follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Following {
    /// A WAL receiver is at work.
    pub streams: bool,
    /// It is meant to: `primary_conninfo` is set. Else an archive alone feeds it.
    pub should_stream: bool,
    /// All that was received is replayed.
    pub caught_up: bool,
    /// Somebody paused replay.
    pub paused: bool,
    /// How far it has replayed, as PostgreSQL prints it.
    pub replayed: String,
    /// The time of the last commit that was replayed; `None` where none was since its start.
    pub last_commit: Option<jiff::Timestamp>,
}

impl ServerFacts {
    /// The major version: 15 of 15.4.
    #[must_use]
    pub fn major(&self) -> u32 {
        self.version_num / 10_000
    }
}

/// Where the server's configuration lies.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ConfigFiles {
    /// `config_file`.
    pub config: PathBuf,
    /// `hba_file`.
    pub hba: PathBuf,
    /// `ident_file`.
    pub ident: PathBuf,
}
