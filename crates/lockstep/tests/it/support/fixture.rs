//! A running cluster on its own pools, with a configuration for the program: nearly every test begins with one.

use super::cluster::{Cluster, Stop, bin_of};
use super::command::{OS_USER, command, give_to_postgres, must};
use super::initdb::initdb;
use super::layout::{Layout, Wal};
use super::lockstep::{Lockstep, toml_string};
use super::pools::{Pool, destroy, release_and_destroy};
use super::workspace::Workspace;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// A cluster, its pools, and a configuration of Lockstep for it.
#[derive(Debug)]
pub struct Fixture {
    /// What it was made from.
    pub layout: Layout,
    /// The pools, in the layout's order.
    pub pools: Vec<Pool>,
    /// The datasets that hold the parts, in the layout's order; a mounted pg_wal comes last.
    pub datasets: Vec<String>,
    /// The live server.
    pub cluster: Cluster,
    /// Where archived segments go.
    pub archive: PathBuf,
    /// Lockstep's `state_dir`.
    pub state: PathBuf,
    // Dropped last: it destroys the pools and removes the directory.
    pub(super) workspace: Workspace,
}

impl Fixture {
    /// Makes the pools and the cluster, starts the server, makes the tablespaces, writes the configuration.
    #[track_caller]
    pub fn new(layout: Layout) -> Fixture {
        Fixture::without_cluster(layout).with_data_directory().with_configuration()
    }

    /// The pools and the folders, without a cluster.
    #[track_caller]
    pub(super) fn without_cluster(layout: Layout) -> Fixture {
        let workspace = Workspace::new();
        let root = workspace.root.clone();
        let mnt = workspace.directory("mnt");
        let images = workspace.images();
        let pools: Vec<Pool> = layout
            .pools
            .iter()
            .enumerate()
            .map(|(n, pool)| {
                let name = format!("{}{}", workspace.name, pool.label);
                Pool::create(&name, &images.join(format!("{n}.img")), pool.size)
            })
            .collect();

        let properties = properties();
        let mut datasets = Vec::new();
        for dataset in &layout.datasets {
            let mountpoint = mnt.join(&dataset.mount);
            datasets.push(pools[dataset.pool].dataset(&dataset.name, &mountpoint, &properties));
            give_to_postgres(&mountpoint);
        }

        let cluster = Cluster {
            bin: bin_of(layout.major),
            data: mnt.join(&layout.data),
            socket: workspace.directory("s"),
            port: free_port(),
            log: workspace.directory("log").join("live.log"),
        };
        give_to_postgres(&cluster.socket);
        give_to_postgres(&root.join("log"));
        let archive = workspace.directory("archive");
        give_to_postgres(&archive);
        let state = root.join("state");

        Fixture { layout, pools, datasets, cluster, archive, state, workspace }
    }

    #[track_caller]
    fn with_data_directory(mut self) -> Fixture {
        let mnt = self.mnt();
        let data = self.cluster.data.clone();
        let linked = match &self.layout.wal {
            Wal::Linked(path) => Some(mnt.join(path)),
            _ => None,
        };
        initdb(&self.workspace, &self.cluster.bin, &data, linked.as_deref());
        if let Wal::Mounted { pool, name } = &self.layout.wal {
            let (inside, aside) = (data.join("pg_wal"), mnt.join("pg_wal.aside"));
            must(&mut command("mv", [&inside, &aside]));
            self.datasets.push(self.pools[*pool].dataset(name, &inside, &properties()));
            must(command("cp", ["-aT"]).args([&aside, &inside]));
            fs::remove_dir_all(&aside).expect("a copied directory can be removed");
        }

        let conf = data.join("postgresql.auto.conf");
        fs::write(&conf, self.settings(&self.cluster))
            .unwrap_or_else(|error| panic!("cannot write {conf:?}: {error}"));
        self.cluster.start();
        for (name, path) in &self.layout.tablespaces {
            let path = mnt.join(path);
            owned_directory(&path);
            let path = text(&path);
            // E'' reads backslashes; a plain literal does not.
            self.cluster.execute(&[&format!("CREATE TABLESPACE {name} LOCATION '{path}'")]);
        }
        self
    }

    #[track_caller]
    pub(super) fn with_configuration(self) -> Fixture {
        fs::create_dir(&self.state).expect("the state directory is new");
        fs::write(self.config(), self.configuration("auto", true))
            .expect("the configuration can be written");
        self
    }

    /// The settings of the layout, with one server's port and socket.
    pub(super) fn settings(&self, cluster: &Cluster) -> String {
        let mut all: Vec<(String, String)> = [
            ("port", cluster.port.to_string()),
            ("unix_socket_directories", text(&cluster.socket)),
            ("listen_addresses", String::new()),
            ("shared_buffers", "32MB".to_owned()),
            ("max_connections", "40".to_owned()),
            ("max_wal_size", "512MB".to_owned()),
            ("wal_level", "replica".to_owned()),
            ("log_checkpoints", "on".to_owned()),
            ("log_line_prefix", "%m [%p] ".to_owned()),
            // Half of what a short test writes would be the zeros of new segments; `Layout::zeros` writes them.
            ("wal_init_zero", "off".to_owned()),
            // Before recovery it would open each file of the cluster to sync it.
            ("recovery_init_sync_method", "syncfs".to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into();
        if self.layout.archive {
            let archive = text(&self.archive);
            let copy = format!(
                "test ! -f {archive}/%f && cp %p {archive}/%f.part && mv {archive}/%f.part {archive}/%f"
            );
            all.extend([
                ("archive_mode".to_owned(), "on".to_owned()),
                ("archive_command".to_owned(), copy),
            ]);
        }
        all.extend(self.layout.settings.iter().cloned());
        all.iter().fold(String::new(), |mut lines, (name, value)| {
            let _ = writeln!(lines, "{name} = '{}'", value.replace('\'', "''"));
            lines
        })
    }

    /// The text of the configuration file, which is a contract of the program.
    pub fn configuration(&self, strategy: &str, connects: bool) -> String {
        let cluster = &self.cluster;
        let mut text = format!("state_dir = {}\n\n[clusters.main]\n", toml_string(&self.state));
        let _ = writeln!(text, "data_directory = {}", toml_string(&cluster.data));
        if connects {
            let _ = writeln!(
                text,
                "host = {}\nport = {}\nuser = \"postgres\"",
                toml_string(&cluster.socket),
                cluster.port
            );
        }
        let _ = writeln!(text, "os_user = {OS_USER:?}\nbin_dir = {}", toml_string(&cluster.bin));
        let _ = writeln!(text, "strategy = {strategy:?}\ncheckpoint = \"fast\"");
        text
    }

    /// The configuration file.
    pub fn config(&self) -> PathBuf {
        self.workspace.root.join("lockstep.toml")
    }

    /// The program, with this fixture's configuration.
    pub fn lockstep(&self) -> Lockstep {
        Lockstep::new(&self.config(), &self.cluster.bin)
    }

    /// Where the datasets are mounted.
    pub fn mnt(&self) -> PathBuf {
        self.workspace.root.join("mnt")
    }

    /// The fixture's own directory, removed with it.
    pub fn root(&self) -> &Path {
        &self.workspace.root
    }

    /// A directory that doesn't exist yet, to restore into.
    pub fn target(&self, name: &str) -> PathBuf {
        self.workspace.directory("restored").join(name)
    }

    /// A new directory that postgres owns.
    #[track_caller]
    pub fn owned(&self, name: &str) -> PathBuf {
        let path = self.workspace.root.join(name);
        owned_directory(&path);
        path
    }

    /// The path of a tablespace's directory.
    #[track_caller]
    pub fn tablespace(&self, name: &str) -> PathBuf {
        let found = self.layout.tablespaces.iter().find(|(known, _)| known == name);
        self.mnt().join(&found.unwrap_or_else(|| panic!("no tablespace {name:?} in this layout")).1)
    }

    /// The tables `one` and `two`, with 1 and 2, in the tablespaces ts1 and ts2.
    #[track_caller]
    pub fn row_in_each_tablespace(&self) {
        self.cluster.execute(&[
            "CREATE TABLE one (n int) TABLESPACE ts1",
            "CREATE TABLE two (n int) TABLESPACE ts2",
            "INSERT INTO one VALUES (1)",
            "INSERT INTO two VALUES (2)",
        ]);
    }

    /// pgbench's tables, heaps in the first tablespace and indexes in the last.
    #[track_caller]
    pub fn pgbench_tables(&self, scale: u32) {
        let names = &self.layout.tablespaces;
        let (first, last) =
            (names.first().expect("a tablespace"), names.last().expect("a tablespace"));
        self.cluster.pgbench_tables(scale, &first.0, &last.0);
    }

    /// All snapshots in the fixture's pools, as `dataset@name`.
    #[track_caller]
    pub fn snapshots(&self) -> Vec<String> {
        self.pools.iter().flat_map(Pool::snapshots).collect()
    }

    /// All clones in the fixture's pools.
    #[track_caller]
    pub fn clones(&self) -> Vec<super::pools::Clone> {
        self.pools.iter().flat_map(Pool::clones).collect()
    }

    /// Stops any server that runs below `directory` and destroys the clones that were made from the set's snapshots.
    #[track_caller]
    pub fn discard_restored(&self, directory: &Path, set: &str) {
        let data = directory.join("data");
        let server = Cluster { data, ..self.cluster.clone() };
        if server.is_running() {
            server.stop(Stop::Immediate);
        }
        let suffix = format!("@lockstep-{set}");
        let mut clones: Vec<_> =
            self.clones().into_iter().filter(|clone| clone.origin.ends_with(&suffix)).collect();
        // Children first.
        clones.sort_by_key(|clone| std::cmp::Reverse(clone.name.matches('/').count()));
        for clone in clones {
            destroy(&clone.name);
        }
        let _ = fs::remove_dir_all(directory);
    }

    /// Removes a whole set without the program's knowledge: its snapshots, and its files in `state_dir`.
    #[track_caller]
    pub fn discard_set(&self, set: &str) {
        let suffix = format!("@lockstep-{set}");
        for snapshot in self.snapshots().iter().filter(|name| name.ends_with(&suffix)) {
            release_and_destroy(snapshot);
        }
        remove_named(&self.state, set);
    }

    /// What an interrupted backup, restore or clone left behind; empty if nothing.
    ///
    /// A snapshot or a clone of a set that `lockstep list` knows isn't a leftover; `allowed` names the datasets of
    /// clones that should exist.
    #[track_caller]
    pub fn leftovers(&self, allowed: &[&str]) -> Vec<String> {
        let mut found = Vec::new();
        if self.cluster.is_running() {
            let sessions = "SELECT pid || ' ' || application_name || ' ' || query FROM pg_stat_activity \
                WHERE pid <> pg_backend_pid() AND (query ~ 'pg_(backup_start|start_backup)' OR application_name ~* 'lockstep')";
            found.extend(
                self.cluster
                    .column("postgres", sessions)
                    .iter()
                    .map(|row| format!("session: {row}")),
            );
            if self.layout.major < 15
                && self.cluster.value("postgres", "SELECT pg_is_in_backup()") == "t"
            {
                found.push("exclusive backup mode".to_owned());
            }
            let slots =
                self.cluster.column("postgres", "SELECT slot_name FROM pg_replication_slots");
            found.extend(slots.iter().map(|slot| format!("replication slot: {slot}")));
        }
        let sets = self.lockstep().sets();
        let known = |name: &str| sets.iter().any(|set| name.ends_with(&format!("@lockstep-{set}")));
        found.extend(
            self.snapshots()
                .into_iter()
                .filter(|name| !known(name))
                .map(|name| format!("snapshot: {name}")),
        );
        let clones =
            self.clones().into_iter().filter(|clone| !allowed.contains(&clone.name.as_str()));
        found.extend(clones.map(|clone| format!("clone: {} of {}", clone.name, clone.origin)));
        found
    }

    /// Keeps what explains a failure: logs, manifests, labels, settings. Returns the directory, which is outside the
    /// fixture.
    pub fn keep_evidence(&self, name: &str) -> PathBuf {
        let keep = Path::new(env!("CARGO_TARGET_TMPDIR"))
            .join("evidence")
            .join(format!("{}-{name}", self.workspace.name));
        let root = self.root();
        for part in ["state", "log", "restored", "lockstep.toml"] {
            copy_small(&root.join(part), &keep.join(part), 0);
        }
        let _ = fs::write(keep.join("snapshots.txt"), self.snapshots().join("\n"));
        keep
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let test = std::thread::current().name().unwrap_or("test").replace("::", "-");
            eprintln!("evidence is kept in {}", self.keep_evidence(&test).display());
        } else if self.cluster.is_running() {
            self.cluster.stop(Stop::Immediate);
        }
    }
}

/// Fails with the list if an unfinished set left anything: sessions, slots, snapshots, clones.
#[track_caller]
pub fn assert_clean(fixture: &Fixture) {
    let since = std::time::Instant::now();
    loop {
        let found = fixture.leftovers(&[]);
        if found.is_empty() {
            return;
        }
        // A server ends a session and drops its slot a moment after its client has gone.
        let passes = |what: &String| what.starts_with("session") || what.contains("slot");
        let waits =
            found.iter().all(passes) && since.elapsed() < std::time::Duration::from_secs(20);
        assert!(waits, "left behind:\n  {}", found.join("\n  "));
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

/// A port that nothing listens on at the moment and that no other test server of this process was given: servers
/// without listen_addresses have theirs only in their socket's name.
pub fn free_port() -> u16 {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    let mut given = GIVEN.lock().expect("no test panics while it holds this");
    loop {
        let listener =
            std::net::TcpListener::bind(("127.0.0.1", 0)).expect("the loopback interface is there");
        let port = listener.local_addr().expect("a bound socket has an address").port();
        if given.insert(port) {
            return port;
        }
    }
}

fn properties() -> [(String, String); 2] {
    [("recordsize".to_owned(), "8K".to_owned()), ("atime".to_owned(), "off".to_owned())]
}

#[track_caller]
pub(super) fn owned_directory(path: &Path) {
    fs::create_dir_all(path).unwrap_or_else(|error| panic!("cannot create {path:?}: {error}"));
    fs::set_permissions(path, fs::Permissions::from_mode(0o700))
        .expect("a new directory's mode can be set");
    give_to_postgres(path);
}

pub(super) fn text(path: &Path) -> String {
    path.to_str().expect("the harness' own paths are UTF-8").to_owned()
}

fn remove_named(directory: &Path, name: &str) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if entry.file_name().to_string_lossy().contains(name) {
            let _ = if is_directory { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        } else if is_directory {
            remove_named(&path, name);
        }
    }
}

/// Copies text-like small files, following no links: a cluster's relations and WAL stay where they are.
fn copy_small(from: &Path, to: &Path, depth: usize) {
    const TOO_LARGE: u64 = 2 << 20;
    const TOO_DEEP: usize = 6;
    let Ok(kind) = fs::symlink_metadata(from) else {
        return;
    };
    if kind.is_dir() && depth < TOO_DEEP {
        let skipped = ["base", "global", "pg_wal", "wal", "pg_xact", "pg_subtrans", "pg_multixact"];
        for entry in fs::read_dir(from).into_iter().flatten().flatten() {
            let relations = entry.file_name().to_string_lossy().starts_with("PG_1");
            if !relations && !skipped.iter().any(|name| entry.file_name() == *name) {
                copy_small(&entry.path(), &to.join(entry.file_name()), depth + 1);
            }
        }
    } else if kind.is_file() && kind.len() <= TOO_LARGE {
        let _ = to.parent().map(fs::create_dir_all);
        let _ = fs::copy(from, to);
    }
}
