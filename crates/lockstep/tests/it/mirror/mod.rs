//! Mirrors: ZFS standbys of a primary on plain folders, with two tablespaces.

mod another_primary;
mod broken;
mod create;

use crate::support::cluster::Cluster;
use crate::support::command::{must, wait_until};
use crate::support::lockstep::{Lockstep, Set, json_of};
use crate::support::pools::zfs;
use crate::support::standby::Alone;
use crate::support::workspace::processes_of;
use serde_json::Value;
use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

const SCALE: u32 = 2;
const PATIENCE: Duration = Duration::from_secs(120);

fn dataset(alone: &Alone, name: &str) -> String {
    format!("{}/{name}", alone.fixture.pools[0].name)
}

fn directory(alone: &Alone, name: &str) -> PathBuf {
    alone.fixture.mnt().join(name)
}

/// `mirror create NAME` with the second tablespace in the second pool.
fn create_words(alone: &Alone, name: &str) -> Vec<String> {
    let elsewhere = format!("ts2={}/{name}-ts2", alone.fixture.pools[1].name);
    let directory = directory(alone, name).display().to_string();
    let bin = alone.primary.bin.display().to_string();
    [
        "mirror",
        "create",
        name,
        "--from",
        &alone.conninfo(),
        "--dataset",
        &dataset(alone, name),
        "--directory",
        &directory,
        "--tablespace",
        &elsewhere,
        "--bin-dir",
        &bin,
    ]
    .map(str::to_owned)
    .to_vec()
}

fn words(words: &[String]) -> Vec<&str> {
    words.iter().map(String::as_str).collect()
}

#[track_caller]
fn create(alone: &Alone, name: &str) -> Value {
    alone.fixture.lockstep().json(&words(&create_words(alone, name)))
}

#[track_caller]
fn server_of(alone: &Alone, name: &str) -> Cluster {
    let data = directory(alone, name).join("data");
    let log = directory(alone, name).join("log/server.log");
    Cluster::running_in(&data, &alone.primary.bin, &log)
}

/// One mirror's part of `mirror status --json`, and the exit code.
#[track_caller]
fn status(alone: &Alone, name: &str) -> (Value, Option<i32>) {
    let outcome = alone.fixture.lockstep().run(&["--json", "mirror", "status", name]);
    (json_of(&outcome)["mirrors"][0].clone(), outcome.code)
}

#[track_caller]
fn wait_for_state(alone: &Alone, name: &str, state: &str) -> Value {
    let since = Instant::now();
    loop {
        let (seen, _) = status(alone, name);
        if seen["state"]["state"] == state {
            return seen;
        }
        assert!(since.elapsed() < PATIENCE, "never {state}: {seen}");
        thread::sleep(Duration::from_millis(300));
    }
}

/// Waits until the mirror has replayed everything that the primary has written by now.
#[track_caller]
fn catch_up(alone: &Alone, name: &str) {
    let now = alone.primary.value("postgres", "SELECT pg_current_wal_flush_lsn()");
    let query = format!("SELECT pg_last_wal_replay_lsn() >= '{now}'");
    let mirror = server_of(alone, name);
    wait_until(&format!("{name} has replayed {now}"), PATIENCE, || {
        mirror
            .try_connect("postgres")
            .is_ok_and(|mut client| client.query_one(&query, &[]).is_ok_and(|row| row.get(0)))
    });
}

fn of_cluster<'a>(name: &'a str, rest: &[&'a str]) -> Vec<&'a str> {
    ["--cluster", name].into_iter().chain(rest.iter().copied()).collect()
}

#[track_caller]
fn backup(lockstep: &Lockstep, name: &str) -> Set {
    Set::of(&lockstep.json(&of_cluster(name, &["backup"])))
}

#[track_caller]
fn restore(alone: &Alone, name: &str, set: &Set) -> (PathBuf, Cluster) {
    let to = alone.fixture.target(&set.id);
    let target = to.to_str().expect("the harness' own paths are UTF-8");
    let restored = ["restore", &set.id, "--to", target, "--start"];
    let lockstep = alone.fixture.lockstep();
    let json = lockstep.json(&of_cluster(name, &restored));
    (to, lockstep.restored(&json).server().clone())
}

/// All data and definitions of a cluster, except the paths of its tablespaces.
#[track_caller]
fn dump(cluster: &Cluster) -> String {
    let text = must(&mut cluster.tool("pg_dumpall", ["--no-sync"]));
    let lines = text.lines().filter(|line| !line.starts_with("CREATE TABLESPACE"));
    // From 15.14 on, each dump begins and ends with a random word.
    lines.filter(|line| !line.contains("restrict ")).collect::<Vec<_>>().join("\n")
}

/// Checks that the datasets, slots, folders, processes and files of a mirror are gone.
#[track_caller]
fn assert_gone(alone: &Alone, name: &str, when: &str) {
    let mut left: Vec<String> = Vec::new();
    for pool in &alone.fixture.pools {
        let listed = zfs(&["list", "-H", "-o", "name", "-t", "all", "-r", &pool.name]);
        left.extend(listed.lines().filter(|line| *line != pool.name).map(str::to_owned));
    }
    if alone.primary.is_running() {
        left.extend(alone.primary.column("postgres", "SELECT slot_name FROM pg_replication_slots"));
    }
    let folder = directory(alone, name);
    left.extend(processes_of(&folder).iter().map(|pid| format!("process {pid}")));
    left.extend(folder.exists().then(|| folder.display().to_string()));
    for below in ["lockstep.d", "state/mirrors"] {
        let files = fs::read_dir(alone.fixture.root().join(below)).into_iter().flatten().flatten();
        left.extend(files.map(|entry| entry.path().display().to_string()));
    }
    assert!(left.is_empty(), "{when}: left behind: {left:?}");
}
