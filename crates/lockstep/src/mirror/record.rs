//! What Lockstep remembers about a mirror, in state_dir, and the lock of whoever works on it.
//!
//! ```text
//! mirrors/NAME.json       the record; it is there before the first thing of the mirror is
//! mirrors/NAME.lock       flock: one command on a mirror at a time
//! ```
//!
//! The record is the journal too: it names every dataset, folder and slot before they are made, and [`Phase`] says
//! whether they are complete. What could go wrong: the record names something that somebody else has made meanwhile.
//! So datasets are destroyed only if they carry the mirror's mark.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::config::{self, ClusterConfig, Config};
use crate::context::{Context, program};
use crate::error::{Error, Result};
use crate::files;
use crate::lock::Lock;
use crate::names::ClusterName;
use crate::postgres::conninfo::{Conninfo, passfile_line};
use crate::postgres::users;
use crate::process::{Credentials, quote};
use crate::refusal::Refusal;
use crate::set::journal;
use crate::volume::mounts::Mounts;
use crate::volume::zfs::{DatasetName, Zfs};

/// The user property that every dataset of a mirror carries.
pub const PROPERTY: &str = "lockstep:mirror";

/// The property of the top dataset that says that the mirror was complete once. A copy of state_dir may bring back
/// the record from when the mirror was being made.
const COMPLETE: &str = "lockstep:mirror-complete";

/// What to do about a dataset that isn't mounted.
pub(super) const HOW_TO_MOUNT: &str = "zfs mount it (zpool import its pool first if that isn't imported, and zfs load-key if it is encrypted); anything mounted over it, or written to the folder meanwhile, has to be removed before";

/// How far a mirror is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// It is being made. If nobody holds its lock, that was interrupted.
    Making,
    /// It is complete.
    Ready,
    /// Its data is being replaced.
    Recreating,
    /// It is being removed.
    Destroying,
}

/// What is on one of a mirror's datasets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The folder around the others: sockets, log, pg_hba.conf.
    Top,
    /// The data directory.
    Data,
    /// pg_wal.
    Wal,
    /// A tablespace.
    Tablespace {
        /// Its OID.
        oid: u32,
        /// Its name when the mirror was made.
        name: String,
        /// Its path on the primary.
        location: String,
    },
}

/// A dataset and where it is mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// What is on it.
    pub kind: Kind,
    /// The dataset.
    pub dataset: DatasetName,
    /// Its mount point.
    pub directory: PathBuf,
}

/// The settings of which a hot standby must have at least the primary's value (hot-standby.html, "Administrator's
/// Overview").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StandbySettings {
    /// The setting.
    pub max_connections: u32,
    /// The setting.
    pub max_worker_processes: u32,
    /// The setting.
    pub max_wal_senders: u32,
    /// The setting.
    pub max_prepared_transactions: u32,
    /// The setting.
    pub max_locks_per_transaction: u32,
}

impl StandbySettings {
    /// Raises one of them; returns whether it had to be raised.
    pub fn raise(&mut self, name: &str, needed: u32) -> bool {
        let setting = match name {
            "max_connections" => &mut self.max_connections,
            "max_worker_processes" => &mut self.max_worker_processes,
            "max_wal_senders" => &mut self.max_wal_senders,
            "max_prepared_transactions" => &mut self.max_prepared_transactions,
            "max_locks_per_transaction" => &mut self.max_locks_per_transaction,
            _ => return false,
        };
        needed > std::mem::replace(setting, needed.max(*setting))
    }
}

/// A mirror.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its name, which is its cluster's in the configuration.
    pub name: ClusterName,
    /// How far it is.
    pub phase: Phase,
    /// When it was made.
    pub created_at: jiff::Timestamp,
    /// The primary, without a password.
    pub primary: String,
    /// The file with the password, read at create, start and recreate.
    pub password_file: Option<PathBuf>,
    /// The physical slot on the primary; empty until `create` is about to make it, and if it found somebody else's of
    /// that name.
    pub slot: String,
    /// The primary's system identifier, as text because it doesn't fit a JSON number.
    pub system_identifier: String,
    /// Its datasets; the top first.
    pub places: Vec<Place>,
    /// Folders above the mount point that Lockstep made, the innermost first.
    pub made_folders: Vec<PathBuf>,
    /// The folder with its socket.
    pub socket_directory: PathBuf,
    /// Its port, which is part of its socket's name.
    pub port: u16,
    /// The superuser of the cluster, as whom Lockstep connects.
    pub superuser: String,
    /// The database that Lockstep connects to.
    pub dbname: String,
    /// The user that owns its files and runs its server.
    pub os_user: String,
    /// Where its `postgres` is.
    pub bin_dir: PathBuf,
    /// The fallback when streaming breaks.
    pub restore_command: Option<String>,
    /// The primary's values, now or when it was last asked.
    pub standby_settings: StandbySettings,
    /// Settings requested with `--setting`; they override those of Lockstep.
    pub settings: Vec<(String, String)>,
    /// The file that registers it as a cluster of the configuration.
    pub registration: PathBuf,
    /// The repositories that its sets were to be shipped to when it was made; the file may say something else by now.
    #[serde(default)]
    pub repositories: Vec<String>,
}

impl Record {
    /// Records on the mirror itself that it is complete. This only matters when a copy of state_dir is used, so a
    /// failure doesn't harm the mirror.
    pub(super) fn mark_complete(&self, zfs: &Zfs) {
        let marked = self.place_of(&Kind::Top).map_or(Ok(()), |top| {
            zfs.set(COMPLETE, self.name.as_str(), std::slice::from_ref(&top.dataset))
        });
        if let Err(error) = marked {
            tracing::warn!(mirror = %self.name, error = %error.chain(), "its dataset couldn't be marked as complete");
        }
    }

    /// Whether it was complete once, whatever this record says.
    pub(super) fn was_complete(&self, zfs: &Zfs) -> Result<bool> {
        let Some(top) = self.place_of(&Kind::Top) else { return Ok(false) };
        Ok(zfs.carries(&top.dataset, COMPLETE, self.name.as_str())? == Some(true))
    }

    fn place_of(&self, kind: &Kind) -> Option<&Place> {
        self.places.iter().find(|place| place.kind == *kind)
    }

    /// The folder of this kind.
    fn directory_of(&self, kind: &Kind) -> PathBuf {
        self.place_of(kind).map(|place| place.directory.clone()).unwrap_or_default()
    }

    /// The folder around everything.
    #[must_use]
    pub fn top(&self) -> PathBuf {
        self.directory_of(&Kind::Top)
    }

    /// The data directory.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.directory_of(&Kind::Data)
    }

    /// The folder of pg_wal.
    #[must_use]
    pub fn wal(&self) -> PathBuf {
        self.directory_of(&Kind::Wal)
    }

    /// The working directory of programs that fill the mirror. Nobody else works there, so they can be found if
    /// Lockstep is killed.
    #[must_use]
    pub fn run_directory(&self) -> PathBuf {
        self.top().join("run")
    }

    /// The server's log.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.top().join("log/server.log")
    }

    /// The log of the server's previous run, which no longer matters for its state.
    #[must_use]
    pub fn older_log(&self) -> PathBuf {
        self.log().with_extension("log.old")
    }

    /// The ids of os_user.
    ///
    /// # Errors
    /// When it doesn't exist, or this process may not become it.
    pub fn credentials(&self) -> Result<Option<Credentials>> {
        users::credentials(&self.os_user)
    }

    /// The table of the configuration that makes this mirror a cluster.
    ///
    /// # Errors
    /// When a path isn't UTF-8.
    pub fn as_toml(&self) -> Result<String> {
        let path = |path: &Path| {
            let text = path.to_str().map(|text| toml::Value::String(text.to_owned()));
            text.ok_or_else(|| Error::failed(format!("\"{}\" isn't UTF-8", path.display())))
        };
        let mut keys = toml::Table::new();
        keys.insert("data_directory".into(), path(&self.data())?);
        keys.insert("host".into(), path(&self.socket_directory)?);
        keys.insert("port".into(), i64::from(self.port).into());
        keys.insert("user".into(), self.superuser.clone().into());
        keys.insert("dbname".into(), self.dbname.clone().into());
        keys.insert("os_user".into(), self.os_user.clone().into());
        keys.insert("bin_dir".into(), path(&self.bin_dir)?);
        keys.insert("primary".into(), self.primary.clone().into());
        if let Some(file) = &self.password_file {
            keys.insert("primary_password_file".into(), path(file)?);
        }
        if !self.repositories.is_empty() {
            keys.insert("repositories".into(), self.repositories.clone().into());
        }
        let mut clusters = toml::Table::new();
        clusters.insert(self.name.to_string(), keys.into());
        let mut all = toml::Table::new();
        all.insert("clusters".into(), clusters.into());
        Ok(format!("# written by lockstep mirror create {}\n{all}", self.name))
    }

    /// The mirror as a cluster of a configuration.
    ///
    /// # Errors
    /// When a path isn't UTF-8.
    pub fn as_cluster(&self) -> Result<ClusterConfig> {
        let mut config = Config::parse(&self.as_toml()?).map_err(Error::failed)?;
        config
            .clusters
            .remove(self.name.as_str())
            .ok_or_else(|| Error::failed(format!("mirror \"{}\" is no cluster", self.name)))
    }

    /// Whether its own dataset is mounted where its data directory is.
    pub(super) fn has_data(&self, zfs: &Zfs) -> Result<bool> {
        let Some(place) = self.place_of(&Kind::Data) else { return Ok(false) };
        let mounts = Mounts::read()?;
        let mount = mounts.holding(&place.directory);
        Ok(mount.is_some_and(|mount| mount.is_of(place.dataset.as_str()))
            && self.has(place, zfs)?)
    }

    /// Whether the dataset is there and carries the mirror's mark: its name alone doesn't say that.
    pub(super) fn has(&self, place: &Place, zfs: &Zfs) -> Result<bool> {
        Ok(zfs.carries(&place.dataset, PROPERTY, self.name.as_str())? == Some(true))
    }

    /// Whether the file that registers it is its own: it is as it was written, or names its data directory, whose
    /// dataset is there, mounted or not.
    pub(super) fn is_registered(&self, zfs: &Zfs) -> Result<bool> {
        let text = std::fs::read_to_string(&self.registration).unwrap_or_default();
        if text == self.as_toml()? {
            return Ok(true);
        }
        let all: toml::Table = text.parse().unwrap_or_default();
        let own = all.get("clusters").and_then(|all| all.get(self.name.as_str()));
        let data = own.and_then(|own| own.get("data_directory")).and_then(toml::Value::as_str);
        let is_its = data.is_some_and(|data| Path::new(data) == self.data());
        let Some(place) = self.place_of(&Kind::Data).filter(|_| is_its) else { return Ok(false) };
        self.has(place, zfs)
    }

    /// The file with the primary's password for libpq, mode 0600, owned by os_user. It is in the top folder, which is
    /// in no set and which os_user can reach; it needn't be able to reach state_dir.
    #[must_use]
    pub fn passfile(&self) -> PathBuf {
        self.top().join("passfile")
    }

    /// Writes libpq's password file again from the first line of `password_file`, if that is set.
    ///
    /// # Errors
    /// When the one can't be read or the other can't be written.
    pub fn write_passfile(&self) -> Result<()> {
        let Some(source) = &self.password_file else { return Ok(()) };
        let text = std::fs::read_to_string(source).map_err(|e| {
            Error::usage(
                format!("cannot read the password file \"{}\": {e}", source.display()),
                "name a file with the password in its first line",
            )
        })?;
        let line = passfile_line(text.lines().next().unwrap_or_default());
        files::write_secret(&self.passfile(), line.as_bytes(), self.credentials()?)
    }

    /// Which of its datasets isn't visible at its directory, in words: it isn't mounted (its key isn't loaded, its
    /// pool isn't imported), or something else is mounted over it. A dataset that was destroyed doesn't count.
    ///
    /// # Errors
    /// When ZFS or the list of mounts can't be read.
    pub fn unmounted(&self, zfs: &Zfs) -> Result<Option<String>> {
        let mounts = Mounts::read()?;
        for Place { dataset, directory, .. } in &self.places {
            // A folder that doesn't exist, or leads elsewhere, isn't the dataset's mount point.
            let seen = std::fs::canonicalize(directory).ok();
            let holding = seen.as_ref().and_then(|path| Some((mounts.holding(path)?, path)));
            let is_seen = holding.is_some_and(|(mount, path)| {
                mount.source == dataset.as_str() && mount.point == *path
            });
            if !is_seen && (zfs.exists(dataset.as_str())? || !zfs.exists(dataset.pool())?) {
                let directory = directory.display();
                return Ok(Some(format!("dataset \"{dataset}\" isn't mounted at \"{directory}\"")));
            }
        }
        Ok(None)
    }

    /// Returns which of its pools is suspended, if one is: what touches a file there waits for good.
    #[must_use]
    pub fn suspended(&self, zfs: &Zfs) -> Option<&str> {
        let mut pools = self.places.iter().map(|place| place.dataset.pool());
        pools.find(|pool| zfs.suspended().contains(*pool))
    }

    /// Refuses to touch a mirror if one of its pools is suspended.
    ///
    /// # Errors
    /// [`Refusal::PoolSuspended`].
    pub fn check_answers(&self, zfs: &Zfs) -> Result<()> {
        self.places.iter().try_for_each(|place| zfs.answers(&place.dataset))
    }

    /// Refuses to touch a mirror if one of its datasets isn't mounted: what is written to its directory would go to
    /// the file system below. Also if another dataset has the name of one: its files are somebody else's.
    ///
    /// # Errors
    /// [`Refusal::Mirror`] with the dataset; also as [`Self::unmounted`].
    pub(super) fn check_mounted(&self, zfs: &Zfs) -> Result<()> {
        if let Some(what) = self.unmounted(zfs)? {
            return Err(Refusal::Mirror { what, needed: HOW_TO_MOUNT.into() }.into());
        }
        self.check_own(zfs)
    }

    /// Refuses to touch a mirror if one of its places is somebody else's by now: who gives up on a mirror destroys its
    /// datasets, and may make a cluster on others of the same names, or in its folders.
    ///
    /// # Errors
    /// [`Refusal::Mirror`] with the dataset or the folder; also when ZFS fails.
    pub(crate) fn check_own(&self, zfs: &Zfs) -> Result<()> {
        let name = &self.name;
        let mounts = Mounts::read()?;
        for Place { dataset, directory, .. } in &self.places {
            // One that was moved with `zfs send -R` has the mark, too.
            let (what, if_its) = match zfs.was_given(dataset, PROPERTY, name.as_str())? {
                Some(true) => continue,
                Some(false) => (
                    format!(
                        "dataset \"{dataset}\" isn't this mirror's: it doesn't carry {PROPERTY}={name}"
                    ),
                    format!("`zfs set {PROPERTY}={name} {}`", quote(dataset.as_str())),
                ),
                None if self.is_free(directory)? => continue,
                // It was renamed.
                None if self.is_marked(&mounts, directory, zfs)? => continue,
                None => (
                    format!(
                        "dataset \"{dataset}\" is gone, and what is in \"{}\" isn't this mirror's",
                        directory.display()
                    ),
                    "move it away".into(),
                ),
            };
            let needed = format!(
                "if the mirror was given up, `{} mirror destroy {name}` forgets it and leaves what isn't its own; if nobody else needs what is there: {if_its}",
                program()
            );
            return Err(Refusal::Mirror { what, needed }.into());
        }
        Ok(())
    }

    /// Refuses to make or destroy its datasets if one was renamed. Its server runs on that all the same, but datasets
    /// are made and destroyed by name: another would be made in its place, or it would stay, with its server and with
    /// the snapshots of its sets, and nobody would know it any more.
    ///
    /// # Errors
    /// [`Refusal::Mirror`] with the dataset; also when ZFS fails.
    pub(super) fn check_not_renamed(&self, home: &Home) -> Result<()> {
        let (zfs, name) = (&home.zfs, self.name.as_str());
        let mut gone = None;
        for Place { dataset, .. } in &self.places {
            if zfs.was_given(dataset, PROPERTY, name)? != Some(true) {
                gone = gone.or(Some(dataset));
            }
        }
        let Some(gone) = gone else { return Ok(()) };
        for found in zfs.all_with(PROPERTY, name)? {
            let is_known = self.places.iter().any(|place| place.dataset == found);
            if is_known || zfs.carries(&found, "lockstep:owner", &home.owner)? != Some(true) {
                continue;
            }
            let quoted = quote(found.as_str());
            return Err(Refusal::Mirror {
                what: format!("dataset \"{gone}\" was renamed, and \"{found}\" carries {PROPERTY}={name}"),
                needed: format!(
                    "`zfs rename` it back, and then run it again: nothing was changed. If it isn't the mirror's any more: `zfs inherit {PROPERTY} {quoted}`"
                ),
            }
            .into());
        }
        Ok(())
    }

    /// Whether what is mounted on a folder carries the mirror's mark.
    fn is_marked(&self, mounts: &Mounts, folder: &Path, zfs: &Zfs) -> Result<bool> {
        let real = std::fs::canonicalize(folder).map_err(Error::io("find", folder))?;
        let mount = mounts.holding(&real).filter(|mount| mount.is_zfs() && mount.point == real);
        let Some(dataset) = mount.and_then(|mount| DatasetName::new(&mount.source).ok()) else {
            return Ok(false);
        };
        Ok(zfs.was_given(&dataset, PROPERTY, self.name.as_str())? == Some(true))
    }

    /// Whether a folder of the mirror's holds nothing but the way to others of its folders.
    fn is_free(&self, folder: &Path) -> Result<bool> {
        let is_way =
            |path: &PathBuf| self.places.iter().any(|place| place.directory.starts_with(path));
        Ok(files::list(folder)?.iter().all(is_way))
    }

    /// The connection string with the password file that Lockstep keeps.
    ///
    /// # Errors
    /// When the string isn't one.
    pub fn conninfo(&self) -> Result<Conninfo> {
        let parsed = Conninfo::parse(&self.primary).map_err(|why| {
            Error::failed(format!("the connection string of mirror \"{}\": {why}", self.name))
        })?;
        Ok(match &self.password_file {
            Some(_) => parsed.with("passfile", &self.passfile().display().to_string()),
            None => parsed,
        })
    }
}

/// Refuses a cluster that is a mirror which is being made, removed or given new data, or was when that was interrupted.
/// With half of its data replaced, pg_control says "shut down" until the end; and the next `mirror` command removes
/// what isn't complete, with its registration: a set of it would then be of no cluster.
///
/// # Errors
/// [`Refusal::Mirror`] for such a mirror; an error when its record can't be read.
pub(crate) fn refuse_incomplete(cx: &Context) -> Result<()> {
    let path = cx.state.of_host("mirrors").join(format!("{}.json", cx.name));
    let record = journal::read::<Record>(&path)?;
    let Some(record) = record.filter(|record| record.data() == cx.cluster.data_directory) else {
        return Ok(());
    };
    let (is, command, does) = match record.phase {
        Phase::Ready => return Ok(()),
        // state_dir came back from a copy.
        Phase::Making if record.was_complete(&cx.zfs)? => return Ok(()),
        Phase::Recreating => ("is half old and half new", "recreate", "replaces its data"),
        Phase::Making => ("isn't complete", "create", "makes it"),
        Phase::Destroying => ("is being removed", "destroy", "removes it"),
    };
    let (name, program) = (record.name, program());
    Err(Refusal::Mirror {
        what: format!("mirror \"{name}\" {is}"),
        needed: format!(
            "`{program} mirror {command} {name}` {does}: wait for it if it runs; if it was interrupted, run it again"
        ),
    }
    .into())
}

/// Where this host's mirrors are recorded and registered.
#[derive(Debug)]
pub struct Home {
    /// state_dir.
    pub state_dir: PathBuf,
    /// The configuration file.
    pub file: PathBuf,
    /// The folder beside it.
    pub registrations: PathBuf,
    /// The id of this state_dir.
    pub owner: String,
    /// ZFS.
    pub zfs: Zfs,
}

impl Home {
    /// Opens it, and makes what is missing.
    ///
    /// # Errors
    /// When state_dir can't be used; [`Refusal::PoolSuspended`] when it is on a suspended pool.
    pub fn open(config: &Config, file: &Path) -> Result<Self> {
        let state_dir = config.state_dir.clone();
        let zfs = Zfs::new();
        zfs.reachable(&state_dir)?;
        files::create_open_directories(&state_dir)?;
        files::create_directories(&state_dir.join("mirrors"))?;
        files::keep_private(&state_dir.join("mirrors"))?;
        let file = std::path::absolute(file).map_err(Error::io("find", file))?;
        Ok(Self {
            owner: crate::set::state::owner_of(&state_dir)?,
            registrations: config::folder_beside(&file),
            file,
            state_dir,
            zfs,
        })
    }

    /// The configuration as it is now.
    ///
    /// # Errors
    /// As [`Config::read`].
    pub fn configuration(&self) -> Result<Config> {
        Config::read(&self.file)
    }

    fn path(&self, name: &ClusterName, extension: &str) -> PathBuf {
        self.state_dir.join("mirrors").join(format!("{name}.{extension}"))
    }

    /// The record's file.
    #[must_use]
    pub fn record_path(&self, name: &ClusterName) -> PathBuf {
        self.path(name, "json")
    }

    /// Takes the lock of a mirror; the `zfs` commands run under it hold it too.
    ///
    /// # Errors
    /// [`Error::Locked`] when somebody is working on it.
    pub fn lock(&self, name: &ClusterName, command: &str) -> Result<Lock> {
        let what = format!("cluster \"mirror {name}\"");
        let lock = Lock::take_or_refuse(&self.path(name, "lock"), what, command)?;
        self.zfs.work_under(&lock);
        Ok(lock)
    }

    /// Whether somebody is working on the mirror at this moment. It only looks: a command that starts at this moment
    /// gets the lock, and nobody else who looks takes this for work.
    #[must_use]
    pub fn is_locked(&self, name: &ClusterName) -> bool {
        Lock::is_held(&self.path(name, "lock")).unwrap_or(true)
    }

    /// Removes a lock file.
    pub fn remove_lock(&self, name: &ClusterName) {
        let _ = files::remove_file(&self.path(name, "lock"));
    }

    /// All records, by name.
    ///
    /// # Errors
    /// When one can't be read.
    pub fn records(&self) -> Result<Vec<Record>> {
        let all = journal::read_all::<Record>(&self.state_dir.join("mirrors"))?;
        let mut all: Vec<_> = all.into_iter().map(|(_, record)| record).collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(all)
    }

    /// The record of `name`.
    ///
    /// # Errors
    /// [`Error::Usage`] when there is no such mirror.
    pub fn find(&self, name: &ClusterName) -> Result<Record> {
        let all = self.records()?;
        let known = all.iter().map(|r| r.name.to_string()).collect::<Vec<_>>().join(", ");
        all.into_iter().find(|record| record.name == *name).ok_or_else(|| {
            let known = if known.is_empty() { "there is none yet".into() } else { known };
            Error::usage(format!("there is no mirror \"{name}\""), format!("mirrors: {known}"))
        })
    }

    /// Writes a record durably.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn write(&self, record: &Record) -> Result<()> {
        journal::write(&self.record_path(&record.name), record)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn record() -> Record {
        let place = |kind, leaf: &str| Place {
            kind,
            dataset: DatasetName::new(&format!("tank/m{leaf}")).unwrap(),
            directory: format!("/m{leaf}").into(),
        };
        let ts = Kind::Tablespace { oid: 16401, name: "ts".into(), location: "/p/ts".into() };
        Record {
            name: "m".parse().unwrap(),
            phase: Phase::Ready,
            created_at: jiff::Timestamp::UNIX_EPOCH,
            primary: "host=p user='a b'".into(),
            password_file: Some("/etc/lockstep/p".into()),
            slot: "lockstep_mirror_m".into(),
            system_identifier: "7".into(),
            places: vec![
                place(Kind::Top, ""),
                place(Kind::Data, "/data"),
                place(Kind::Wal, "/wal"),
                place(ts, "/ts-ts"),
            ],
            made_folders: Vec::new(),
            socket_directory: "/m/run".into(),
            port: 5501,
            superuser: "postgres".into(),
            dbname: "postgres".into(),
            os_user: "postgres".into(),
            bin_dir: "/bin".into(),
            restore_command: None,
            standby_settings: StandbySettings {
                max_connections: 100,
                max_worker_processes: 8,
                max_wal_senders: 10,
                max_prepared_transactions: 0,
                max_locks_per_transaction: 64,
            },
            settings: Vec::new(),
            registration: "/etc/lockstep/lockstep.d/m.toml".into(),
            repositories: vec!["offsite".into()],
        }
    }

    #[test]
    fn a_record_is_a_cluster_of_the_configuration() {
        let cluster = record().as_cluster().unwrap();
        assert_eq!(cluster.data_directory, Path::new("/m/data"));
        assert_eq!((cluster.host.as_deref(), cluster.port), (Some("/m/run"), 5501));
        assert_eq!(cluster.repositories, ["offsite"]);
        assert_eq!(cluster.primary.as_deref(), Some("host=p user='a b'"));
        assert_eq!(cluster.primary_password_file.as_deref(), Some(Path::new("/etc/lockstep/p")));
    }

    /// `mirror status` in a loop must make no `mirror start` fail, and two at a time must not both say "busy".
    #[test]
    fn whoever_looks_at_a_mirror_is_in_nobody_s_way() {
        let scratch = tempfile::tempdir().unwrap();
        std::fs::create_dir(scratch.path().join("mirrors")).unwrap();
        let home = Home {
            state_dir: scratch.path().to_path_buf(),
            file: "/etc/lockstep/lockstep.toml".into(),
            registrations: "/etc/lockstep/lockstep.d".into(),
            owner: "o".into(),
            zfs: Zfs::new(),
        };
        let (name, lock) = (record().name, scratch.path().join("mirrors/m.lock"));
        assert!(!home.is_locked(&name) && !lock.exists());
        let held = home.lock(&name, "mirror start").unwrap();
        assert!(home.is_locked(&name));
        drop(held);
        let text = std::fs::read_to_string(&lock).unwrap();
        assert!(!home.is_locked(&name));
        assert_eq!(std::fs::read_to_string(&lock).unwrap(), text, "it took the lock");
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let text = serde_json::to_string(&record()).unwrap();
        assert_eq!(serde_json::from_str::<Record>(&text).unwrap(), record());
    }
}
