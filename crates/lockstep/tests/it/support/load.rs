//! Load on a live cluster: pgbench, and DDL that creates, moves, rewrites and drops files.
//!
//! Tablespaces are created and dropped by [`TablespaceChurn`], one change at a time: Lockstep takes a set again if
//! the layout changed meanwhile, at most three times, so a loop without pauses would make every backup fail.

use super::cluster::{Cluster, full};
use super::command::{Outcome, Running};
use rustix::process::Signal;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// The amount of load.
#[derive(Debug, Clone)]
pub struct Plan {
    /// pgbench's sessions; 0: no pgbench.
    pub clients: u32,
    /// Transactions per second; `None` for as many as possible.
    pub rate: Option<u32>,
    /// Tables and indexes that come and go.
    pub tables: bool,
    /// Databases that are made by copying files, and dropped.
    pub databases: bool,
    /// The pause after each statement of the table churn.
    pub pause: Duration,
    /// Whether the load waits for standbys that lag behind.
    pub followed: bool,
    /// For the choices that the churn makes.
    pub seed: u64,
}

impl Plan {
    /// All kinds, at a pace that leaves the machine some capacity.
    pub fn all(seed: u64) -> Plan {
        Plan {
            clients: 4,
            rate: Some(500),
            tables: true,
            databases: true,
            pause: Duration::from_millis(15),
            followed: false,
            seed,
        }
    }
}

impl Plan {
    /// Load that a standby on the same machine can follow, however slow the machine is.
    pub fn to_be_followed(seed: u64) -> Plan {
        Plan {
            rate: Some(200),
            pause: Duration::from_millis(50),
            followed: true,
            ..Plan::all(seed)
        }
    }
}

/// Load, until stopped or dropped.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    reins: Arc<Reins>,
    errors: Arc<Mutex<Vec<String>>>,
    threads: Vec<JoinHandle<()>>,
}

/// How far a standby may lag behind before the load waits for it, and when it has caught up again, in bytes of WAL.
const LAG: std::ops::Range<i64> = 16 << 20..64 << 20;

/// Stops the load and lets it continue. Two may hold it, and it runs while neither does.
#[derive(Debug, Default)]
struct Reins {
    holders: Mutex<[bool; 2]>,
    pgbench: Mutex<Option<Running>>,
}

/// Who holds the load.
#[derive(Debug, Clone, Copy)]
enum Holder {
    Test,
    Lag,
}

impl Reins {
    fn set(&self, holder: Holder, holds: bool) {
        let mut holders = self.holders.lock().expect("nobody panics with the reins");
        let before = holders.contains(&true);
        holders[holder as usize] = holds;
        if before != holders.contains(&true)
            && let Some(pgbench) = self.pgbench().as_ref()
        {
            pgbench.signal(if before { Signal::CONT } else { Signal::STOP });
        }
    }

    fn held(&self) -> bool {
        self.holders.lock().expect("nobody panics with the reins").contains(&true)
    }

    fn pgbench(&self) -> MutexGuard<'_, Option<Running>> {
        self.pgbench.lock().expect("nobody panics with the reins")
    }
}

impl Load {
    /// Starts it on a cluster that has pgbench's tables; the churn uses these tablespaces.
    #[track_caller]
    pub fn start(cluster: &Cluster, tablespaces: &[&str], plan: &Plan) -> Load {
        let mut load = Load {
            stop: Arc::default(),
            reins: Arc::default(),
            errors: Arc::default(),
            threads: Vec::new(),
        };
        if plan.databases {
            prepare_template(cluster);
        }
        if plan.clients > 0 {
            let clients = plan.clients.to_string();
            let mut pgbench = cluster.tool(
                "pgbench",
                ["-n", "-M", "prepared", "-T", "36000", "-j", "2", "-c", &clients],
            );
            if let Some(rate) = plan.rate {
                pgbench.args(["-R", &rate.to_string()]);
            }
            *load.reins.pgbench() = Some(Running::start(pgbench.arg("postgres")));
        }
        if plan.tables {
            for n in 0..2 {
                let tablespaces: Vec<String> =
                    tablespaces.iter().map(|name| (*name).to_owned()).collect();
                load.thread(cluster, plan, n, move |churn| churn.tables(&tablespaces, n));
            }
        }
        if plan.databases {
            load.thread(cluster, plan, 7, Churn::databases);
        }
        if plan.followed {
            load.thread(cluster, plan, 9, Churn::wait_for_standbys);
        }
        load
    }

    fn thread(
        &mut self,
        cluster: &Cluster,
        plan: &Plan,
        n: u64,
        work: impl Fn(&mut Churn) -> Result<(), postgres::Error> + Send + 'static,
    ) {
        let mut churn = Churn {
            cluster: cluster.clone(),
            random: fastrand::Rng::with_seed(plan.seed.wrapping_add(n)),
            pause: plan.pause,
            stop: Arc::clone(&self.stop),
            reins: Arc::clone(&self.reins),
        };
        let errors = Arc::clone(&self.errors);
        self.threads.push(thread::spawn(move || {
            if let Err(error) = work(&mut churn) {
                errors.lock().expect("no churn panics with the list locked").push(full(&error));
            }
        }));
    }

    /// Stops everything after the current statements, with sessions and transactions left open, so that the checks
    /// have the machine to themselves.
    pub fn pause(&self) {
        self.reins.set(Holder::Test, true);
    }

    /// Lets it continue.
    pub fn resume(&self) {
        self.reins.set(Holder::Test, false);
    }

    /// Fails if the load has had an error so far.
    #[track_caller]
    pub fn assert_well(&mut self) {
        let errors = self.errors.lock().expect("no churn panics with the list locked").clone();
        assert!(errors.is_empty(), "the load on the live cluster failed: {errors:?}");
        let runs = self.reins.pgbench().as_mut().is_none_or(Running::is_running);
        assert!(runs, "pgbench on the live cluster ended by itself");
    }

    /// Stops it. Fails if the load itself had an error: then it tested less than it claims, or the live cluster was
    /// harmed.
    #[track_caller]
    pub fn stop(self) {
        let (errors, pgbench) = self.stop_anyway();
        assert!(errors.is_empty(), "the load on the live cluster failed: {errors:?}");
        if let Some(outcome) = pgbench {
            assert!(outcome.signal.is_some(), "pgbench ended by itself: {}", outcome.describe());
        }
    }

    /// Stops it and returns its errors, for tests in which the server goes away.
    pub fn stop_anyway(mut self) -> (Vec<String>, Option<Outcome>) {
        let outcome = self.end();
        let errors = self.errors.lock().expect("no churn panics with the list locked").clone();
        (errors, outcome)
    }

    fn end(&mut self) -> Option<Outcome> {
        self.stop.store(true, Ordering::Relaxed);
        // A stopped process wouldn't handle SIGTERM.
        self.resume();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
        // What held it last may have failed meanwhile.
        self.reins.set(Holder::Lag, false);
        let pgbench = self.reins.pgbench().take();
        pgbench.map(|mut pgbench| {
            pgbench.terminate();
            // Not `wait`: this runs in `drop` too, where a second panic would hide the first.
            pgbench.wait_or_kill(Duration::from_secs(60)).0
        })
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.end();
    }
}

struct Churn {
    cluster: Cluster,
    random: fastrand::Rng,
    pause: Duration,
    stop: Arc<AtomicBool>,
    reins: Arc<Reins>,
}

impl Churn {
    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    fn one_of<'a>(&mut self, names: &'a [String]) -> &'a str {
        &names[self.random.usize(..names.len())]
    }

    /// Tables with an index and a toast table: filled, rewritten, moved, truncated, dropped.
    fn tables(&mut self, tablespaces: &[String], n: u64) -> Result<(), postgres::Error> {
        let mut client = self.cluster.try_connect("postgres")?;
        let mut number = 0_u64;
        // A churn that is started again on the same cluster must not meet its own tables.
        let prefix = format!("churn_{n}_{}", self.random.u32(..));
        let mut live: Vec<String> = Vec::new();
        while self.goes_on() {
            let statement = if live.len() < 3 || (live.len() < 12 && self.random.u8(..10) < 3) {
                number += 1;
                let name = format!("{prefix}_{number}");
                let (heap, index) =
                    (self.one_of(tablespaces).to_owned(), self.one_of(tablespaces).to_owned());
                let rows = self.random.u32(50..1500);
                live.push(name.clone());
                format!(
                    "CREATE TABLE {name} TABLESPACE {heap} AS SELECT i, md5(i::text) AS m, repeat(md5(i::text), (i % 97 / 90) * 100) AS t \
                     FROM generate_series(1, {rows}) AS i; CREATE INDEX {name}_i ON {name} (i, m) TABLESPACE {index}"
                )
            } else {
                let place = self.random.usize(..live.len());
                let name = live[place].clone();
                match self.random.u8(..12) {
                    0 | 1 => {
                        live.swap_remove(place);
                        format!("DROP TABLE {name}")
                    }
                    2 => format!(
                        "TRUNCATE {name}; INSERT INTO {name} SELECT i, 'again', '' FROM generate_series(1, 300) AS i"
                    ),
                    3 => format!("VACUUM FULL {name}"),
                    4 => format!("ALTER TABLE {name} SET TABLESPACE {}", self.one_of(tablespaces)),
                    5 => {
                        format!("ALTER INDEX {name}_i SET TABLESPACE {}", self.one_of(tablespaces))
                    }
                    6 => format!(
                        "DROP INDEX {name}_i; CREATE INDEX {name}_i ON {name} (m) TABLESPACE {}",
                        self.one_of(tablespaces)
                    ),
                    7 => format!("VACUUM {name}"),
                    8 if self.random.u8(..6) == 0 => "CHECKPOINT".to_owned(),
                    9 => format!("DELETE FROM {name} WHERE i % 3 = 0"),
                    10 if self.random.u8(..6) == 0 => "VACUUM FULL pgbench_tellers".to_owned(),
                    _ => format!(
                        "INSERT INTO {name} SELECT i, md5(i::text), 'more' FROM generate_series(1, 200) AS i"
                    ),
                }
            };
            client.batch_execute(&statement)?;
            self.done();
        }
        for name in live {
            client.batch_execute(&format!("DROP TABLE {name}"))?;
        }
        Ok(())
    }

    /// Databases that are made by copying the template's files: their blocks are not in the WAL.
    fn databases(&mut self) -> Result<(), postgres::Error> {
        let mut client = self.cluster.try_connect("postgres")?;
        let major: i32 = client
            .query_one("SELECT current_setting('server_version_num')::int / 10000", &[])?
            .get(0);
        let strategy = if major >= 15 { "STRATEGY file_copy" } else { "" };
        let prefix = format!("churn_{}", self.random.u32(..));
        let mut live: Vec<String> = Vec::new();
        let mut number = 0;
        while self.goes_on() {
            if live.len() >= 2 {
                client.batch_execute(&format!("DROP DATABASE {}", live.remove(0)))?;
            } else {
                number += 1;
                let name = format!("{prefix}_{number}");
                client.batch_execute(&format!(
                    "CREATE DATABASE {name} TEMPLATE churn_template {strategy}"
                ))?;
                live.push(name);
            }
            self.done();
            for _ in 0..20 {
                if self.goes_on() {
                    thread::sleep(Duration::from_millis(50));
                }
            }
        }
        for name in live {
            client.batch_execute(&format!("DROP DATABASE {name}"))?;
        }
        Ok(())
    }

    /// Holds the load while a standby lags behind: one process replays what several have written, and on a slow machine
    /// the distance would grow until a test that waits for the standby gives up.
    fn wait_for_standbys(&mut self) -> Result<(), postgres::Error> {
        let mut client = self.cluster.try_connect("postgres")?;
        let lag = "SELECT coalesce(max(pg_wal_lsn_diff(pg_current_wal_lsn(), replay_lsn)), 0)::bigint FROM pg_stat_replication";
        while self.goes_on() {
            let lag: i64 = client.query_one(lag, &[])?.get(0);
            if lag > LAG.end {
                self.reins.set(Holder::Lag, true);
            } else if lag < LAG.start {
                self.reins.set(Holder::Lag, false);
            }
            thread::sleep(Duration::from_millis(100));
        }
        self.reins.set(Holder::Lag, false);
        Ok(())
    }

    fn done(&self) {
        thread::sleep(self.pause);
        while self.reins.held() && self.goes_on() {
            thread::sleep(Duration::from_millis(10));
        }
    }
}

/// The template of the database churn: it has some tables of its own and is never written to again. What is written to
/// a template during a backup may get into databases that were copied from it before (PostgreSQL's own caveat, see
/// `docs/consistency.md`). Nobody has ever connected to it, for then autovacuum would: on its visits it vacuums what
/// the last ANALYZE left, and notes there what it finds in the shared catalogs, which the churn keeps changing
/// (`do_start_worker` in `autovacuum.c` passes over a database without statistics).
#[track_caller]
fn prepare_template(cluster: &Cluster) {
    let there =
        cluster.column("postgres", "SELECT 1 FROM pg_database WHERE datname = 'churn_template'");
    if there.is_empty() {
        cluster.execute(&["CREATE DATABASE churn_origin"]);
        let made = "CREATE TABLE t AS SELECT i, md5(i::text) AS m FROM generate_series(1, 5000) AS i; CREATE INDEX ON t (m)";
        cluster
            .connect("churn_origin")
            .batch_execute(made)
            .expect("the template's table can be made");
        cluster
            .connect("churn_origin")
            .batch_execute("VACUUM (FREEZE, ANALYZE)")
            .expect("the template can be vacuumed");
        cluster.execute(&[
            "CREATE DATABASE churn_template TEMPLATE churn_origin IS_TEMPLATE true",
            "DROP DATABASE churn_origin",
        ]);
    }
}

/// A tablespace that is made and dropped again below a directory on one of the cluster's datasets.
#[derive(Debug)]
pub struct TablespaceChurn {
    cluster: Cluster,
    below: std::path::PathBuf,
    number: u32,
    present: bool,
}

impl TablespaceChurn {
    /// Nothing is made yet. `below` must exist and be on one of the layout's datasets.
    pub fn new(cluster: &Cluster, below: &Path) -> TablespaceChurn {
        TablespaceChurn {
            cluster: cluster.clone(),
            below: below.to_owned(),
            number: 0,
            present: false,
        }
    }

    /// Drops the tablespace if it exists; otherwise makes a new one, with a table in it.
    #[track_caller]
    pub fn toggle(&mut self) {
        if self.present {
            let n = self.number;
            self.cluster.execute(&[
                &format!("DROP TABLE passing_{n}"),
                &format!("DROP TABLESPACE passing_{n}"),
            ]);
            let _ = std::fs::remove_dir_all(self.below.join(format!("passing_{n}")));
        } else {
            self.number += 1;
            let n = self.number;
            let path = self.below.join(format!("passing_{n}"));
            std::fs::create_dir(&path)
                .unwrap_or_else(|error| panic!("cannot create {path:?}: {error}"));
            super::command::give_to_postgres(&path);
            self.cluster.execute(&[
                &format!("CREATE TABLESPACE passing_{n} LOCATION '{}'", path.display()),
                &format!("CREATE TABLE passing_{n} TABLESPACE passing_{n} AS SELECT i FROM generate_series(1, 2000) AS i"),
                &format!("CREATE INDEX ON passing_{n} (i) TABLESPACE passing_{n}"),
            ]);
        }
        self.present = !self.present;
    }

    /// Reads the tablespace's table on the live server: a server that was restored on the same host
    /// and replayed the tablespace's creation must not have touched it.
    #[track_caller]
    pub fn assert_unharmed(&self) {
        if self.present {
            let query = format!("SELECT count(*) FROM passing_{}", self.number);
            assert_eq!(
                self.cluster.value("postgres", &query),
                "2000",
                "the live cluster's tablespace was harmed"
            );
        }
    }
}
