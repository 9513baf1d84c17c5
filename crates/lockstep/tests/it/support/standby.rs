//! A streaming standby on ZFS pools, with a primary on plain folders: the standby is what is backed up.
//!
//! Both are on this host, so all tablespaces must exist at the base backup: one that is created later would be
//! replayed at the primary's own path.

use super::cluster::{Cluster, Stop};
use super::command::{must, wait_until};
use super::fixture::{Fixture, free_port, owned_directory, text};
use super::initdb::initdb;
use super::layout::{Layout, Wal};
use super::lockstep::{Lockstep, toml_string};
use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

/// How long replay may lag behind.
const CATCH_UP: Duration = Duration::from_secs(240);

/// A standby with its primary.
#[derive(Debug)]
pub struct Standby {
    /// The standby's fixture: its cluster, its pools, Lockstep's configuration for it.
    pub fixture: Fixture,
    /// The primary: on plain folders, archiving into the fixture's archive.
    pub primary: Cluster,
    /// The server that the standby streams from, if it isn't the primary: a standby on plain folders.
    pub middle: Option<Cluster>,
}

impl Standby {
    /// A standby that streams from its primary.
    #[track_caller]
    pub fn new(layout: Layout) -> Standby {
        Standby::make(layout, false)
    }

    /// A standby that streams from another one.
    #[track_caller]
    pub fn cascading(layout: Layout) -> Standby {
        Standby::make(layout, true)
    }

    fn make(layout: Layout, cascading: bool) -> Standby {
        let fixture = Fixture::without_cluster(layout.archive());
        let primary = start_primary(&fixture);
        let middle = cascading.then(|| {
            let middle = server(&fixture, "m");
            let spaces = fixture.layout.tablespaces.iter().map(|(name, _)| {
                let path = fixture.root().join("m").join(name);
                owned_directory(&path);
                (tablespace_of("p", &fixture, name), path)
            });
            let spaces: Vec<_> = spaces.collect();
            base_backup(&fixture, &primary, &middle, &spaces, None);
            middle.start();
            middle
        });
        let mnt = fixture.mnt();
        let (above, folder) = match &middle {
            Some(middle) => (middle, "m"),
            None => (&primary, "p"),
        };
        let spaces: Vec<_> = fixture
            .layout
            .tablespaces
            .iter()
            .map(|(name, path)| {
                let path = mnt.join(path);
                owned_directory(&path);
                (tablespace_of(folder, &fixture, name), path)
            })
            .collect();
        let wal = match &fixture.layout.wal {
            Wal::Inside => None,
            Wal::Linked(path) => Some(mnt.join(path)),
            Wal::Mounted { .. } => panic!("pg_basebackup wants an empty data directory"),
        };
        base_backup(&fixture, above, &fixture.cluster, &spaces, wal);
        fixture.cluster.start();
        let fixture = fixture.with_configuration();
        Standby { fixture, primary, middle }
    }

    /// Waits until the standby has replayed everything that the primary has written by now.
    #[track_caller]
    pub fn catch_up(&self) {
        let now = self.primary.value("postgres", "SELECT pg_current_wal_flush_lsn()");
        let query = format!("SELECT pg_last_wal_replay_lsn() >= '{now}'");
        wait_until(&format!("the standby has replayed {now}"), CATCH_UP, || {
            self.ask(&query).as_deref() == Some("t")
        });
    }

    /// Asks the standby; `None` if replay ended the session, as it does when it lags behind.
    pub fn ask(&self, query: &str) -> Option<String> {
        let mut client = self.fixture.cluster.try_connect("postgres").ok()?;
        let messages = client.simple_query(query).ok()?;
        messages.iter().find_map(|message| match message {
            postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        })
    }

    /// Makes a checkpoint on the primary, and then a restartpoint on the standby.
    #[track_caller]
    pub fn restartpoint(&self) {
        self.primary.execute(&["CHECKPOINT"]);
        self.catch_up();
        wait_until("a restartpoint is made", CATCH_UP, || {
            let client = self.fixture.cluster.try_connect("postgres");
            client.is_ok_and(|mut client| client.batch_execute("CHECKPOINT").is_ok())
        });
    }

    /// The program with a configuration in which the standby can't be asked.
    #[track_caller]
    pub fn silent(&self) -> Lockstep {
        self.configured("silent", &self.fixture.configuration("auto", false))
    }

    /// The program with a configuration that names the primary too.
    #[track_caller]
    pub fn with_primary(&self) -> Lockstep {
        let mut text = self.fixture.configuration("auto", true);
        let (host, port) = (self.primary.socket.display(), self.primary.port);
        let conninfo = format!("host={host} port={port} user=postgres");
        let _ = writeln!(text, "primary = {}", toml_string(conninfo.as_ref()));
        self.configured("primary", &text)
    }

    /// The program with a configuration whose host leads to the primary.
    #[track_caller]
    pub fn led_to_the_primary(&self) -> Lockstep {
        let (here, there) = (&self.fixture.cluster, &self.primary);
        let address =
            |of: &Cluster| format!("host = {}\nport = {}\n", toml_string(&of.socket), of.port);
        let text = self.fixture.configuration("auto", true);
        self.configured("led-astray", &text.replace(&address(here), &address(there)))
    }

    fn configured(&self, name: &str, text: &str) -> Lockstep {
        let path = self.fixture.root().join(format!("{name}.toml"));
        fs::write(&path, text).expect("the configuration can be written");
        Lockstep::new(&path, &self.fixture.cluster.bin)
    }

    /// Adds a line to the standby's settings, in effect after the next start.
    #[track_caller]
    pub fn setting(&self, name: &str, value: &str) {
        append(&self.fixture.cluster, &format!("{name} = '{value}'\n"));
    }

    /// Stops the standby cleanly and starts it again.
    #[track_caller]
    pub fn restart(&self) {
        self.fixture.cluster.stop(Stop::Fast);
        self.fixture.cluster.start();
    }
}

impl Drop for Standby {
    fn drop(&mut self) {
        for server in [Some(&self.primary), self.middle.as_ref()].into_iter().flatten() {
            if server.is_running() && !std::thread::panicking() {
                server.stop(Stop::Immediate);
            }
        }
    }
}

/// A primary on plain folders, and empty pools.
#[derive(Debug)]
pub struct Alone {
    /// The pools; its own cluster was never made.
    pub fixture: Fixture,
    /// The primary, archiving into the fixture's archive.
    pub primary: Cluster,
}

impl Alone {
    /// Starts the primary.
    #[track_caller]
    pub fn new(layout: Layout) -> Alone {
        let fixture = Fixture::without_cluster(layout.archive());
        let primary = start_primary(&fixture);
        let state = format!("state_dir = {}\n", toml_string(&fixture.state));
        fs::create_dir(&fixture.state).expect("the state directory is new");
        fs::write(fixture.config(), state).expect("the configuration can be written");
        Alone { fixture, primary }
    }

    /// The primary's connection string.
    pub fn conninfo(&self) -> String {
        let (host, port) = (self.primary.socket.display(), self.primary.port);
        format!("host={host} port={port} user=postgres")
    }

    /// Starts another standby of the primary, on plain folders, with its own slot.
    #[track_caller]
    pub fn another_standby(&self) -> Cluster {
        let other = server(&self.fixture, "m");
        let spaces = self.fixture.layout.tablespaces.iter().map(|(name, _)| {
            let path = tablespace_of("m", &self.fixture, name);
            owned_directory(&path);
            (tablespace_of("p", &self.fixture, name), path)
        });
        let spaces: Vec<_> = spaces.collect();
        base_backup(&self.fixture, &self.primary, &other, &spaces, None);
        other.start();
        other
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        if self.primary.is_running() && !std::thread::panicking() {
            self.primary.stop(Stop::Immediate);
        }
    }
}

/// Adds settings at the end of a server's file, where they take effect.
#[track_caller]
pub fn set(cluster: &Cluster, lines: &str) {
    append(cluster, lines);
}

fn server(fixture: &Fixture, folder: &str) -> Cluster {
    let root = fixture.root();
    owned_directory(&root.join(folder));
    owned_directory(&root.join(format!("{folder}s")));
    Cluster {
        bin: fixture.cluster.bin.clone(),
        data: root.join(folder).join("data"),
        socket: root.join(format!("{folder}s")),
        port: free_port(),
        log: root.join("log").join(format!("{folder}.log")),
    }
}

fn tablespace_of(folder: &str, fixture: &Fixture, name: &str) -> PathBuf {
    fixture.root().join(folder).join(name)
}

#[track_caller]
fn start_primary(fixture: &Fixture) -> Cluster {
    let primary = server(fixture, "p");
    initdb(&fixture.workspace, &primary.bin, &primary.data, None);
    append(&primary, &fixture.settings(&primary));
    primary.start();
    for (name, _) in &fixture.layout.tablespaces {
        let path = tablespace_of("p", fixture, name);
        owned_directory(&path);
        let path = text(&path);
        primary.execute(&[&format!("CREATE TABLESPACE {name} LOCATION '{path}'")]);
    }
    primary
}

/// Runs pg_basebackup; the result can be started as a standby with its own slot.
#[track_caller]
fn base_backup(
    fixture: &Fixture,
    from: &Cluster,
    to: &Cluster,
    spaces: &[(PathBuf, PathBuf)],
    wal: Option<PathBuf>,
) {
    owned_directory(&to.data);
    let slot = format!("to_{}", to.port);
    let mut arguments = vec!["-D".to_owned(), text(&to.data)];
    arguments
        .extend(["-X", "stream", "-c", "fast", "--no-sync", "-R", "-C", "-S"].map(str::to_owned));
    arguments.push(slot);
    for (old, new) in spaces {
        arguments.push("-T".to_owned());
        arguments.push(format!("{}={}", text(old), text(new)));
    }
    if let Some(wal) = wal {
        owned_directory(&wal);
        arguments.push(format!("--waldir={}", text(&wal)));
    }
    must(&mut from.tool("pg_basebackup", arguments));
    // Of two lines the later counts. Replay is one process. If it syncs each of a database's files, it falls ever
    // further behind a primary that doesn't wait for zfs-fuse; a snapshot holds what was written, synced or not.
    append(to, &format!("{}fsync = off\n", fixture.settings(to)));
}

#[track_caller]
fn append(cluster: &Cluster, lines: &str) {
    let path = cluster.data.join("postgresql.auto.conf");
    let conf = OpenOptions::new().append(true).open(&path);
    conf.and_then(|mut conf| conf.write_all(lines.as_bytes()))
        .unwrap_or_else(|error| panic!("cannot write {path:?}: {error}"));
}
