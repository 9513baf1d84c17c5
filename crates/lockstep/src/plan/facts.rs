//! What is known when a plan is made: the layout, pg_control on disk, and what the server says.

use std::path::PathBuf;

use pgfiles::control_file::{ControlFile, DbState};
use pgfiles::lsn::SystemIdentifier;

use super::layout::{Layout, Volume};
use super::warnings::Warning;
use crate::config::CheckpointMode;
use crate::volume::zfs::DatasetName;

/// Everything that a plan is based on.
#[derive(Debug)]
pub struct Facts {
    /// Where the parts of the cluster are.
    pub layout: Layout,
    /// pg_control, read from the data directory.
    pub control: ControlFile,
    /// The process in postmaster.pid, if it is running.
    pub postmaster: Option<u32>,
    /// Links in the data directory that don't concern PostgreSQL, and where they lead.
    pub links: Vec<(PathBuf, PathBuf)>,
    /// `standby.signal` is in the data directory.
    pub standby_signal: bool,
    /// `backup_label` is in the data directory: of a standby, it is a base backup that hasn't been replayed yet.
    pub backup_label: bool,
    /// Why the files of a cluster that no server answers for can't be taken as they are.
    pub unsettled: Option<Unsettled>,
    /// `primary` is configured, so a standby's primary can be asked.
    pub has_primary: bool,
    /// What the primary says, if the standby itself could be asked, or is none any more.
    pub primary: Option<PrimarySeen>,
    /// The server's facts, or why there are none.
    pub server: Result<ServerFacts, NoServer>,
    /// The configuration that no snapshot has.
    pub configuration: Configuration,
    /// ZFS takes several snapshots in one command.
    pub multi_snapshot: bool,
    /// `checkpoint` in the configuration.
    pub checkpoint: CheckpointMode,
    /// Free space that a volume must have, in bytes.
    pub min_free: u64,
    /// Repositories of the cluster whose folder is on one of its volumes, and that volume.
    pub repositories_within: Vec<(String, DatasetName)>,
}

impl Facts {
    /// Returns the space that a volume must have left, in bytes. On pg_wal's volume a primary needs more:
    /// pg_backup_start and pg_backup_stop each begin a segment, which is written in full, and the snapshot keeps those
    /// before.
    #[must_use]
    pub fn space_needed(&self, volume: &Volume) -> u64 {
        let wal = self.layout.wal_volume().and_then(|at| self.layout.volumes.get(at));
        let has_wal = wal.is_some_and(|wal| wal.dataset == volume.dataset);
        let switches = has_wal && self.min_free > 0 && !self.is_shut_down() && !self.is_standby();
        let segments =
            if switches { 2 * u64::from(self.control.wal_segment_size.bytes()) } else { 0 };
        self.min_free.saturating_add(segments)
    }

    /// The cluster is shut down: no server runs on it, and pg_control says that it ended cleanly.
    #[must_use]
    pub fn is_shut_down(&self) -> bool {
        self.postmaster.is_none() && was_shut_down(&self.control)
    }

    /// The time that the data of a standby or of a stopped cluster has reached, as far as that is known at `now`. An
    /// idle primary's last commit is old, so a standby that has replayed all that its primary wrote is up to date.
    /// Without `primary`, a standby counts as up to date if it streams and has replayed all it received. That can be
    /// wrong: another standby, whose own primary is dead, continues to stream too, and can't be told from an idle
    /// primary.
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

    /// The last time that a standby's data is known to have reached: its last replayed commit if it answers, its
    /// checkpoint if it is stopped (the same for a stopped primary) or can't be asked: then nobody says whether it still
    /// follows, and this is its last restartpoint's. Its data is at least that new.
    #[must_use]
    pub fn last_data(&self) -> Option<jiff::Timestamp> {
        if !self.is_standby() && !self.is_shut_down() {
            return None;
        }
        let checkpoint = jiff::Timestamp::from_second(self.control.checkpoint_copy.time).ok();
        match &self.server {
            Ok(server) => server.following.as_ref()?.last_commit.or(checkpoint),
            Err(_) => checkpoint,
        }
    }

    /// The server is a standby, according to itself or to the files on disk.
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

/// pg_control says that the cluster ended cleanly. A server writes another state before it changes anything, and
/// writes this one last of all.
#[must_use]
pub fn was_shut_down(control: &ControlFile) -> bool {
    matches!(control.state, DbState::ShutDowned | DbState::ShutDownedInRecovery)
}

/// What shows that the files in the data directory aren't those that its last server left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unsettled {
    /// What was found.
    pub what: String,
    /// What to do.
    pub needed: String,
}

/// Why there is no connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoServer {
    /// The configuration has no `host`.
    NotConfigured,
    /// No server runs on the cluster, so no connection was tried.
    NotRunning,
    /// No server runs on the cluster, but another server answers at `host`: how it differs.
    Another(String),
    /// A connection was tried and failed: the reason.
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

/// What a connected server says about itself.
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
    /// This user may make a replication slot, and one is available.
    pub may_slot: bool,
    /// Tablespaces outside the data directory: OID and name.
    pub tablespaces: Vec<(u32, String)>,
    /// Slots that nobody uses and that keep WAL: name, bytes.
    pub idle_slots: Vec<(String, u64)>,
    /// The last segment that couldn't be archived, if none was archived after it.
    pub archive_failed: Option<String>,
    /// How it follows its primary, if it is a standby.
    pub following: Option<Following>,
    /// The three files that Debian keeps in /etc.
    pub config_files: ConfigFiles,
}

/// What a standby's primary says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PrimarySeen {
    /// It couldn't be asked: the reason.
    Unreachable(String),
    /// The server that `primary` names is in recovery itself.
    InRecovery,
    /// The standby has replayed everything that the primary had written when it was asked.
    Reached,
    /// The standby hasn't replayed this many bytes of it.
    Behind(u64),
    /// The server isn't a standby any more, and the primary goes on beside it.
    Beside,
}

/// How a standby follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Following {
    /// A WAL receiver is running.
    pub streams: bool,
    /// `primary_conninfo` is set, so it is meant to stream. Otherwise only an archive feeds it.
    pub should_stream: bool,
    /// Everything that was received is replayed.
    pub caught_up: bool,
    /// Somebody paused replay.
    pub paused: bool,
    /// The LSN that it has replayed to, as PostgreSQL prints it.
    pub replayed: String,
    /// The time of the last replayed commit; `None` if none was replayed since its start.
    pub last_commit: Option<jiff::Timestamp>,
}

impl ServerFacts {
    /// The major version: 15 for 15.4.
    #[must_use]
    pub fn major(&self) -> u32 {
        self.version_num / 10_000
    }
}

/// The configuration that is outside the data directory, or includes what is: it is kept with the set.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Configuration {
    /// Names, such as postgresql.conf, and contents.
    pub files: Vec<(&'static str, Vec<u8>)>,
    /// What is less than it should be.
    pub warnings: Vec<Warning>,
}

/// Where the server's configuration files are.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ConfigFiles {
    /// `config_file`.
    pub config: PathBuf,
    /// `hba_file`.
    pub hba: PathBuf,
    /// `ident_file`.
    pub ident: PathBuf,
}
