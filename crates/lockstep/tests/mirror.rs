//! Mirrors: ZFS standbys of a primary on plain folders, with two tablespaces. Made under load, backed up and restored as
//! new primaries, cut off from their primary, behind their WAL, on another timeline, interrupted at every step.

mod support;

use rustix::process::Signal;
use serde_json::Value;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use support::by_hand::write_as_postgres;
use support::checker::Checker;
use support::cluster::{Cluster, Stop};
use support::command::{command, give_to_postgres, must, run, wait_until};
use support::layout::empty_pools;
use support::ledger::{Expected, Ledger};
use support::load::{Load, Plan};
use support::lockstep::{LIMIT, Lockstep, Set, Steps, exit, json_of};
use support::pools::zfs;
use support::standby::{Alone, set};
use support::workspace::processes_of;

const SCALE: u32 = 2;
/// The user of nobody's, of every Linux.
const NOBODY: u32 = 65534;
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

/// Waits until the mirror has replayed all that the primary has written by now.
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

/// All of a cluster's data and definitions but the places of its tablespaces.
#[track_caller]
fn dump(cluster: &Cluster) -> String {
    let text = must(&mut cluster.tool("pg_dumpall", ["--no-sync"]));
    let lines = text.lines().filter(|line| !line.starts_with("CREATE TABLESPACE"));
    // From 15.14 on a random word opens and closes each dump.
    lines.filter(|line| !line.contains("restrict ")).collect::<Vec<_>>().join("\n")
}

/// Datasets, slots, folders, processes and files of a mirror that shouldn't be there any more.
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

#[test]
fn followed_backed_up_and_restored_as_a_new_primary() {
    let alone = Alone::new(empty_pools());
    alone.primary.pgbench_tables(SCALE, "ts1", "ts2");
    let ledger = Ledger::create(&alone.primary, "ts1", "ts2");
    let writers = ledger.start(&alone.primary);
    let load = Load::start(&alone.primary, &["ts1", "ts2"], &Plan::to_be_followed(3));
    let made = create(&alone, "main");
    assert_eq!(made["slot"], "lockstep_mirror_main", "{made}");
    create(&alone, "other");
    let lockstep = alone.fixture.lockstep();
    let listed = lockstep.json(&["mirror", "list"]);
    assert_eq!(listed["mirrors"].as_array().map(Vec::len), Some(2), "{listed}");
    let elsewhere = format!("{}/main-ts2", alone.fixture.pools[1].name);
    assert_eq!(zfs(&["get", "-H", "-o", "value", "recordsize", &elsewhere]).trim(), "8K");

    // A set under load.
    let loaded = backup(&lockstep, "main");
    assert_eq!(loaded.strategy, "label");
    assert_eq!(loaded.volumes.len(), 4, "{}", loaded.json);
    let (to, restored) = restore(&alone, "main", &loaded);
    let expected = Expected { by_lsn: loaded.floor_lsn, ..Expected::default() };
    let checker = Checker::new(SCALE).with_ledger(&ledger, expected);
    checker.check_and_stop(&restored).assert_right("a mirror's set under load");
    alone.fixture.discard_restored(&to, &loaded.id);

    // And one of the same moment as the primary's own dump.
    load.stop();
    writers.stop();
    for name in ["main", "other"] {
        // Autovacuum goes on for a while after the load.
        let since = Instant::now();
        let seen = loop {
            let (seen, code) = status(&alone, name);
            assert_eq!(
                (&seen["state"]["state"], code),
                (&"follows".into(), Some(exit::DONE)),
                "{seen}"
            );
            if seen["lag_bytes"] == 0 || since.elapsed() > PATIENCE {
                break seen;
            }
            thread::sleep(Duration::from_millis(300));
        };
        assert_eq!((&seen["lag_bytes"], &seen["lag_seconds"]), (&0.into(), &0.0.into()), "{seen}");
    }
    let theirs = dump(&alone.primary);
    let still = backup(&lockstep, "main");
    let (to, restored) = restore(&alone, "main", &still);
    assert!(dump(&restored) == theirs, "the restored cluster isn't the primary");
    let setting = |name: &str| restored.value("postgres", &format!("SHOW {name}"));
    assert_eq!(setting("cluster_name"), "", "the mirror's own settings aren't in its sets");
    assert_eq!(setting("primary_conninfo"), "");
    assert_eq!(setting("shared_buffers"), "32MB", "it has the primary's settings");
    restored.stop(Stop::Immediate);
    alone.fixture.discard_restored(&to, &still.id);

    // Stopped, started, and taken away only when that is meant.
    lockstep.expect(exit::DONE, &["mirror", "stop", "main"]);
    let (seen, code) = status(&alone, "main");
    assert_eq!(
        (&seen["state"]["state"], code),
        (&"stopped".into(), Some(exit::PROBLEMS)),
        "{seen}"
    );
    lockstep.expect(exit::DONE, &["mirror", "start", "main"]);
    wait_for_state(&alone, "main", "follows");
    let refused = lockstep.expect(exit::REFUSED, &["mirror", "destroy", "main"]);
    assert!(refused.stderr.contains("has 2 backup sets"), "{}", refused.describe());
    zfs(&["snapshot", &format!("{}/data@mine", dataset(&alone, "main"))]);
    let refused = lockstep.expect(exit::REFUSED, &["mirror", "destroy", "main", "--with-sets"]);
    assert!(refused.stderr.contains("data@mine\" is of no set"), "{}", refused.describe());
    wait_for_state(&alone, "main", "follows");
    zfs(&["destroy", &format!("{}/data@mine", dataset(&alone, "main"))]);
    lockstep.expect(exit::DONE, &["mirror", "destroy", "main", "--with-sets"]);
    lockstep.expect(exit::DONE, &["mirror", "destroy", "other"]);
    assert_gone(&alone, "main", "both destroyed");
}

/// A folder whose name is too long for a socket has it in /tmp, where everybody gets to: only os_user and root may come
/// in there, for the mirror asks nobody for a password.
#[test]
fn nobody_else_gets_to_a_socket_in_tmp() {
    let alone = Alone::new(empty_pools());
    let folder = alone.fixture.mnt().join("x".repeat(90));
    let mut asked = create_words(&alone, "main");
    let at = asked.iter().position(|word| word == "--directory").expect("it is said");
    asked[at + 1] = folder.display().to_string();
    alone.fixture.lockstep().json(&words(&asked));
    let data = folder.join("data");
    let mirror = Cluster::running_in(&data, &alone.primary.bin, &folder.join("log/server.log"));
    assert_eq!(mirror.socket, Path::new("/tmp"));
    let socket = format!("/tmp/.s.PGSQL.{}", mirror.port);
    let mode = fs::metadata(&socket).expect("the server runs").permissions().mode();
    assert_eq!(mode & 0o777, 0o700, "{socket}");
    let mut psql = command(mirror.bin.join("psql"), ["-wXAtc", "SELECT current_user"]);
    psql.uid(NOBODY).gid(NOBODY).current_dir("/").env("PGHOST", "/tmp");
    psql.env("PGPORT", mirror.port.to_string()).env("PGUSER", "postgres");
    let outcome = run(psql.env("PGDATABASE", "postgres"));
    assert!(!outcome.ok(), "anybody is a superuser: {}", outcome.describe());
    assert!(outcome.stderr.contains("Permission denied"), "{}", outcome.describe());
    // os_user, and Lockstep as root.
    assert_eq!(must(&mut mirror.tool("psql", ["-XAtc", "SELECT current_user"])).trim(), "postgres");
    wait_for_state(&alone, "main", "follows");
    assert_eq!(backup(&alone.fixture.lockstep(), "main").strategy, "label");
}

/// A mirror is a second cluster: what names none is told, and its sets go where they should.
#[test]
fn beside_a_cluster_that_was_alone() {
    let alone = Alone::new(empty_pools());
    let config = alone.fixture.config();
    let state = fs::read_to_string(&config).expect("it was written");
    let url = alone.fixture.root().join("repository");
    let rest = format!(
        "\n[clusters.own]\ndata_directory = \"/nosuch\"\n\n[repositories.offsite]\nurl = \"file://{}\"\n",
        url.display()
    );
    fs::write(&config, format!("{state}{rest}")).expect("it can be written");
    let lockstep = alone.fixture.lockstep();
    let mut asked = create_words(&alone, "main");
    asked.extend(["--repository".into(), "nosuch".into()]);
    let unknown = lockstep.expect(exit::USAGE, &words(&asked));
    assert!(unknown.stderr.contains("no repository \"nosuch\""), "{}", unknown.describe());
    asked.pop();
    asked.push("offsite".into());
    let made = lockstep.expect(exit::DONE, &words(&asked));
    assert!(made.stderr.contains("--cluster own"), "{}", made.describe());
    let file = alone.fixture.root().join("lockstep.d/main.toml");
    let file = fs::read_to_string(file).expect("it is registered");
    assert!(file.contains("repositories = [\"offsite\"]"), "{file}");
    lockstep.expect(exit::DONE, &of_cluster("main", &["repo", "init"]));
    let set = backup(&lockstep, "main");
    assert_eq!(set.json["repositories"][0]["complete"], true, "{}", set.json);
    let which = lockstep.expect(exit::USAGE, &["list"]);
    assert!(which.stderr.contains("default_cluster"), "{}", which.describe());
    fs::write(&config, format!("default_cluster = \"main\"\n{state}{rest}"))
        .expect("it can be written");
    assert_eq!(lockstep.sets(), [set.id]);
}

#[test]
fn primary_dies_for_a_while() {
    let alone = Alone::new(empty_pools());
    alone.primary.pgbench_tables(SCALE, "ts1", "ts2");
    create(&alone, "main");
    alone.primary.kill();
    let seen = wait_for_state(&alone, "main", "primary-unreachable");
    assert_eq!(seen["running"], true, "{seen}");
    // Its sets go on meanwhile, and it is said that their data is old.
    let lockstep = alone.fixture.lockstep();
    let taken = |words: &str| {
        let json = of_cluster("main", &["--json", "backup"]);
        let outcome = lockstep.expect(exit::PROBLEMS, &json);
        assert!(outcome.stderr.contains(words), "{}", outcome.describe());
        let set = Set::of(&json_of(&outcome));
        assert_eq!(set.json["warnings"][0]["problem"], true, "{}", set.json);
        assert!(set.json["data_at"].as_str() < set.json["started_at"].as_str(), "{}", set.json);
        set
    };
    let set = taken("nothing streams to this standby");
    let checked = lockstep.expect(exit::PROBLEMS, &of_cluster("main", &["check"]));
    assert!(checked.stdout.contains("ERROR    standby: nothing streams"), "{}", checked.describe());
    lockstep.expect(exit::DONE, &["mirror", "stop", "main"]);
    assert_eq!(taken("the standby is stopped").strategy, "cold");
    let checked = lockstep.expect(exit::PROBLEMS, &of_cluster("main", &["check"]));
    assert!(checked.stdout.contains("ERROR    standby: it is stopped"), "{}", checked.describe());
    lockstep.expect(exit::DONE, &["mirror", "start", "main"]);
    // It has come up without its primary, and goes on looking for it.
    let seen = wait_for_state(&alone, "main", "primary-unreachable");
    assert_eq!(seen["running"], true, "{seen}");
    alone.primary.start();
    alone.primary.execute(&["CREATE TABLE after (n int)", "INSERT INTO after VALUES (7)"]);
    catch_up(&alone, "main");
    assert_eq!(server_of(&alone, "main").value("postgres", "SELECT n FROM after"), "7");
    wait_for_state(&alone, "main", "follows");
    let (_, restored) = restore(&alone, "main", &set);
    Checker::new(SCALE).check_and_stop(&restored).assert_right("a set without a primary");
}

/// The slot is dropped and the WAL recycled while the mirror is down: it can't follow any more, and says so. What it was
/// before is still in its sets after it was made new.
#[test]
fn behind_its_wal_and_made_new() {
    let alone = Alone::new(empty_pools().setting("min_wal_size", "32MB"));
    alone.primary.pgbench_tables(SCALE, "ts1", "ts2");
    create(&alone, "main");
    catch_up(&alone, "main");
    let lockstep = alone.fixture.lockstep();
    let old = backup(&lockstep, "main");
    lockstep.expect(exit::DONE, &["mirror", "stop", "main"]);
    let drop_slot = "SELECT pg_drop_replication_slot('lockstep_mirror_main')";
    wait_until("the slot is free", PATIENCE, || {
        alone.primary.connect("postgres").batch_execute(drop_slot).is_ok()
    });
    for _ in 0..6 {
        alone.primary.execute(&[
            "CREATE TABLE big AS SELECT i, md5(i::text) FROM generate_series(1, 100000) AS i",
            "DROP TABLE big",
            "SELECT pg_switch_wal()",
            "CHECKPOINT",
        ]);
    }
    // Started with a new slot, which keeps nothing of what it needs.
    lockstep.expect(exit::DONE, &["mirror", "start", "main"]);
    let seen = wait_for_state(&alone, "main", "wal-gone");
    assert_eq!(seen["hint"], "lockstep mirror recreate main", "{seen}");
    let shown = lockstep.expect(exit::PROBLEMS, &["mirror", "status"]);
    assert!(shown.stdout.contains("has already been removed"), "{}", shown.describe());
    // Each run has a log of its own: what was said before is past.
    lockstep.expect(exit::DONE, &["mirror", "stop", "main"]);
    lockstep.expect(exit::DONE, &["mirror", "start", "main"]);
    let log = fs::read_to_string(directory(&alone, "main").join("log/server.log"));
    let starts = log.unwrap_or_default().matches("starting PostgreSQL").count();
    assert_eq!(starts, 1, "a log begins with its server");
    wait_for_state(&alone, "main", "wal-gone");

    alone.primary.execute(&["CREATE TABLE after (n int)", "INSERT INTO after VALUES (7)"]);
    let made = lockstep.expect(exit::DONE, &["mirror", "recreate", "main"]);
    assert!(made.stdout.contains("fresh base backup"), "{}", made.describe());
    wait_for_state(&alone, "main", "follows");
    catch_up(&alone, "main");
    assert_eq!(server_of(&alone, "main").value("postgres", "SELECT n FROM after"), "7");
    let new = backup(&lockstep, "main");
    for (set, table) in [(&old, "f"), (&new, "t")] {
        let (to, restored) = restore(&alone, "main", set);
        let there = "SELECT to_regclass('after') IS NOT NULL";
        assert_eq!(restored.value("postgres", there), table, "set {}", set.id);
        Checker::new(SCALE).check_and_stop(&restored).assert_right("around a recreate");
        alone.fixture.discard_restored(&to, &set.id);
    }
}

/// A tablespace that the primary gets later is replayed at its own path, which here is the primary's own folder: the
/// mirror must stop rather than write there.
#[test]
fn tablespace_made_on_the_primary_later() {
    let alone = Alone::new(empty_pools());
    alone.primary.pgbench_tables(SCALE, "ts1", "ts2");
    create(&alone, "main");
    catch_up(&alone, "main");
    let path = alone.fixture.root().join("p/ts3");
    fs::create_dir(&path).expect("a folder can be made");
    give_to_postgres(&path);
    alone.primary.execute(&[
        &format!("CREATE TABLESPACE ts3 LOCATION '{}'", path.display()),
        "CREATE TABLE late TABLESPACE ts3 AS SELECT i FROM generate_series(1, 1000) AS i",
    ]);
    let seen = wait_for_state(&alone, "main", "stopped");
    let hint = seen["hint"].as_str().unwrap_or_default();
    assert!(hint.contains("mirror recreate") && !hint.contains("writable"), "{seen}");
    alone.primary.execute(&["CHECKPOINT"]);
    assert_eq!(alone.primary.value("postgres", "SELECT count(*) FROM late"), "1000");
    let lockstep = alone.fixture.lockstep();
    // Nor may anybody let it in.
    let registration = alone.fixture.root().join("lockstep.d/main.toml");
    let registered = fs::read_to_string(&registration).expect("it is registered");
    let named = format!("{registered}\n[clusters.main.clone]\nwritable = [{:?}]\n", path);
    fs::write(&registration, named).expect("it can be written");
    for words in ["start", "recreate"] {
        let refused = lockstep.expect(exit::REFUSED, &["mirror", words, "main"]);
        assert!(refused.stderr.contains("isn't this mirror's"), "{}", refused.describe());
    }
    assert_eq!(alone.primary.value("postgres", "SELECT count(*) FROM late"), "1000");
    fs::write(&registration, registered).expect("it can be written");
    lockstep.expect(exit::DONE, &["mirror", "recreate", "main"]);
    wait_for_state(&alone, "main", "follows");
    let set = backup(&lockstep, "main");
    assert_eq!(set.volumes.len(), 5, "{}", set.json);
    let (_, restored) = restore(&alone, "main", &set);
    assert_eq!(restored.value("postgres", "SELECT count(*) FROM late"), "1000");
    Checker::new(SCALE).check_and_stop(&restored).assert_right("with a tablespace made later");
}

/// Debian keeps the configuration in /etc, where no base backup sees it.
#[test]
fn primary_with_its_configuration_elsewhere() {
    let alone = Alone::new(empty_pools());
    alone.primary.pgbench_tables(SCALE, "ts1", "ts2");
    alone.primary.stop(Stop::Fast);
    let etc = alone.fixture.root().join("etc");
    fs::create_dir(&etc).expect("a folder can be made");
    for name in ["postgresql.conf", "pg_hba.conf", "pg_ident.conf"] {
        fs::rename(alone.primary.data.join(name), etc.join(name)).expect("it can be moved");
    }
    let conf = etc.join("postgresql.conf");
    let mut text = fs::read_to_string(&conf).expect("it has a text");
    text.push_str(&format!(
        "data_directory = '{}'\nmaintenance_work_mem = '33MB'\n",
        alone.primary.data.display()
    ));
    fs::write(&conf, text).expect("it can be written");
    for path in [etc.clone(), conf, etc.join("pg_hba.conf"), etc.join("pg_ident.conf")] {
        give_to_postgres(&path);
    }
    let by_etc = Cluster { data: etc, ..alone.primary.clone() };
    by_etc.start();
    create(&alone, "main");
    catch_up(&alone, "main");
    let setting = "SHOW maintenance_work_mem";
    assert_eq!(server_of(&alone, "main").value("postgres", setting), "33MB");
    let set = backup(&alone.fixture.lockstep(), "main");
    let (_, restored) = restore(&alone, "main", &set);
    // It accepted connections; pg_hba.conf, which nobody knows, lets nobody in but its owner.
    let conf = fs::read_to_string(restored.data.join("postgresql.conf")).unwrap_or_default();
    assert!(conf.contains("maintenance_work_mem = '33MB'"), "what is restored has it too: {conf}");
    assert!(!conf.contains("data_directory"), "{conf}");
    by_etc.stop(Stop::Immediate);
}

/// Its primary is lost, and a standby that was behind the mirror takes its place: pg_rewind brings the mirror back.
#[test]
fn another_way_than_its_primary() {
    let alone = Alone::new(empty_pools());
    alone.primary.pgbench_tables(SCALE, "ts1", "ts2");
    create(&alone, "main");
    catch_up(&alone, "main");
    let heir = alone.another_standby();
    heir.stop(Stop::Fast);
    alone.primary.execute(&["CREATE TABLE lost (n int)", "INSERT INTO lost VALUES (1)"]);
    catch_up(&alone, "main");
    alone.primary.stop(Stop::Immediate);

    // The heir takes over the address.
    let (port, socket) = (alone.primary.port, alone.primary.socket.display());
    set(&heir, &format!("port = {port}\nunix_socket_directories = '{socket}'\n"));
    let heir = Cluster { port, socket: alone.primary.socket.clone(), ..heir };
    heir.start();
    heir.execute(&["SELECT pg_promote()", "CREATE TABLE kept (n int)", "CHECKPOINT"]);
    let lockstep = alone.fixture.lockstep();
    let seen = wait_for_state(&alone, "main", "diverged");
    assert_eq!(seen["hint"], "lockstep mirror recreate main", "{seen}");
    let made = lockstep.expect(exit::DONE, &["mirror", "recreate", "main"]);
    assert!(made.stdout.contains("after pg_rewind"), "{}", made.describe());
    let seen = wait_for_state(&alone, "main", "follows");
    assert_eq!(seen["running"], true, "{seen}");
    let tables = "SELECT coalesce(to_regclass('lost')::text, '') || ' ' || coalesce(to_regclass('kept')::text, '')";
    let mirror = server_of(&alone, "main");
    wait_until("the mirror is the heir's", PATIENCE, || {
        mirror.value("postgres", tables) == " kept"
    });
    let set = backup(&lockstep, "main");
    let (_, restored) = restore(&alone, "main", &set);
    Checker::new(SCALE).check_and_stop(&restored).assert_right("after pg_rewind");

    // It loses its way again, and meanwhile the heir has a tablespace on this very host: pg_rewind would link that.
    let path = alone.fixture.root().join("m/ts3");
    fs::create_dir(&path).expect("a folder can be made");
    give_to_postgres(&path);
    lockstep.expect(exit::DONE, &["mirror", "stop", "main"]);
    heir.execute(&[
        &format!("CREATE TABLESPACE ts3 LOCATION '{}'", path.display()),
        "CREATE TABLE late TABLESPACE ts3 AS SELECT i FROM generate_series(1, 1000) AS i",
        "CHECKPOINT",
    ]);
    part_ways(&heir);
    let before = files_below(&path);
    let made = lockstep.expect(exit::DONE, &["mirror", "recreate", "main"]);
    assert!(made.stdout.contains("fresh base backup"), "{}", made.describe());
    assert_eq!(files_below(&path), before, "somebody wrote to the live tablespace");
    wait_for_state(&alone, "main", "follows");
    heir.stop(Stop::Immediate);
}

/// A primary on a timeline of its own, as after a failover.
#[track_caller]
fn part_ways(primary: &Cluster) {
    primary.stop(Stop::Fast);
    write_as_postgres(&primary.data.join("standby.signal"), "");
    primary.start();
    primary.execute(&["SELECT pg_promote()", "CHECKPOINT"]);
}

/// The files below a folder with their inodes, sizes and times.
fn files_below(folder: &Path) -> Vec<(PathBuf, u64, u64, i64)> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let found = entry.metadata().expect("it can be looked at");
        if found.is_dir() {
            all.extend(files_below(&entry.path()));
        } else {
            all.push((entry.path(), found.ino(), found.size(), found.ctime_nsec()));
        }
    }
    all.sort();
    all
}

const SECRET: &str = r"ge'h\eim :7";

/// A primary over TCP and TLS alone, with a password: it is in no log, on no command line, and in nobody else's reach.
#[test]
fn password_and_tls() {
    let alone = Alone::new(empty_pools());
    let data = &alone.primary.data;
    let (certificate, key) = (data.join("server.crt"), data.join("server.key"));
    let path = |path: &Path| path.to_str().expect("the harness' own paths are UTF-8").to_owned();
    must(command("openssl", ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]).args(
        [
            "-subj",
            "/CN=localhost",
            "-addext",
            "subjectAltName=DNS:localhost",
            "-keyout",
            &path(&key),
            "-out",
            &path(&certificate),
        ],
    ));
    for file in [&certificate, &key] {
        give_to_postgres(file);
        must(command("chmod", ["600", &path(file)]).current_dir("/"));
    }
    // The client side reads it as another user.
    let authority = alone.fixture.root().join("authority.crt");
    fs::copy(&certificate, &authority).expect("a certificate can be copied");
    must(&mut command("chmod", ["644", &path(&authority)]));
    let hba = "local all all trust\nhostssl all all 127.0.0.1/32 scram-sha-256\nhostssl replication all 127.0.0.1/32 scram-sha-256\n";
    fs::write(data.join("pg_hba.conf"), hba).expect("pg_hba.conf can be written");
    set(
        &alone.primary,
        "listen_addresses = '127.0.0.1'\nssl = on\npassword_encryption = 'scram-sha-256'\n",
    );
    alone.primary.stop(Stop::Fast);
    alone.primary.start();
    let quoted = SECRET.replace('\'', "''");
    alone.primary.execute(&[
        &format!("CREATE ROLE mirror LOGIN REPLICATION PASSWORD '{quoted}'"),
        "GRANT pg_read_all_settings TO mirror",
    ]);
    let password = alone.fixture.root().join("password");
    fs::write(&password, format!("{SECRET}\n")).expect("a file can be written");

    let mut arguments = create_words(&alone, "main");
    let conninfo = |host: &str, more: &str| {
        format!("host={host} hostaddr=127.0.0.1 port={} user=mirror {more}", alone.primary.port)
    };
    let verified =
        conninfo("localhost", &format!("sslmode=verify-full sslrootcert={}", path(&authority)));
    arguments[4] = verified.clone();
    let lockstep = alone.fixture.lockstep();
    let refused = lockstep.expect(exit::FAILED, &words(&arguments));
    assert!(refused.stderr.contains("password"), "{}", refused.describe());
    arguments.extend(["--password-file".to_owned(), path(&password), "--verbose".to_owned()]);
    arguments[4] = format!("{verified} password=x");
    let refused = lockstep.expect(exit::USAGE, &words(&arguments));
    assert!(refused.stderr.contains("--password-file"), "{}", refused.describe());
    // A certificate of another name is refused where names count, and only there.
    let another = |mode: &str| {
        conninfo("another", &format!("sslmode={mode} sslrootcert={}", path(&authority)))
    };
    let dry = |from: String| {
        let mut words: Vec<String> = arguments.clone();
        words[4] = from;
        words.push("--dry-run".to_owned());
        lockstep.run(&words.iter().map(String::as_str).collect::<Vec<_>>())
    };
    assert_eq!(dry(another("verify-full")).code, Some(exit::FAILED));
    assert_eq!(dry(another("verify-ca")).code, Some(exit::DONE));
    assert_eq!(dry(conninfo("localhost", "sslmode=disable")).code, Some(exit::FAILED));
    assert_eq!(dry(conninfo("localhost", "")).code, Some(exit::DONE));

    arguments[4] = verified;
    let done = AtomicBool::new(false);
    let (made, seen) = thread::scope(|scope| {
        let watch = scope.spawn(|| command_lines_until(&done));
        let made = lockstep.run(&words(&arguments));
        done.store(true, Ordering::Relaxed);
        (made, watch.join().expect("the watcher doesn't panic"))
    });
    assert_eq!(made.code, Some(exit::DONE), "{}", made.describe());
    assert!(seen.contains("pg_basebackup"), "nobody watched");
    let secret_parts = [SECRET, r"ge'h\\eim", r"ge'h\eim \:7", "eim :7"];
    for (what, text) in
        [("a command line", &seen), ("stderr", &made.stderr), ("stdout", &made.stdout)]
    {
        for part in secret_parts {
            assert!(!text.contains(part), "the password is on {what}");
        }
    }
    wait_for_state(&alone, "main", "follows");
    // Where libpq reads it, it is nobody else's.
    let passfile = directory(&alone, "main").join("passfile");
    let mode = fs::metadata(&passfile)
        .map(|found| std::os::unix::fs::PermissionsExt::mode(&found.permissions()));
    assert_eq!(mode.map(|mode| mode & 0o777).ok(), Some(0o600));
    for file in ["main/log/server.log", "main/log/fill.log", "main/data/postgresql.auto.conf"] {
        let text = fs::read_to_string(alone.fixture.mnt().join(file)).unwrap_or_default();
        assert!(!text.contains("eim"), "the password is in {file}");
    }
    let set = backup(&lockstep, "main");
    assert_eq!(set.strategy, "label");
    lockstep.expect(exit::DONE, &["mirror", "destroy", "main", "--with-sets"]);
    assert_gone(&alone, "main", "destroyed");
}

/// All command lines of this machine's processes, looked at again and again.
fn command_lines_until(done: &AtomicBool) -> String {
    let mut seen = String::new();
    while !done.load(Ordering::Relaxed) {
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            if !line.is_empty() && !seen.contains(&line) {
                seen.push_str(&line);
                seen.push('\n');
            }
        }
        thread::sleep(Duration::from_millis(5));
    }
    seen
}

/// A dataset that isn't mounted (after a reboot, with a key to be loaded) leaves an empty folder in its place, on another
/// file system: nothing is written there.
#[test]
fn a_dataset_that_is_not_mounted() {
    let alone = Alone::new(empty_pools());
    create(&alone, "main");
    let lockstep = alone.fixture.lockstep();
    lockstep.expect(exit::DONE, &["mirror", "stop", "main"]);
    let elsewhere = format!("{}/main-ts2", alone.fixture.pools[1].name);
    let folder = directory(&alone, "main").join("ts-ts2");
    zfs(&["unmount", &elsewhere]);
    let (seen, code) = status(&alone, "main");
    assert_eq!((&seen["state"]["state"], code), (&"not-mounted".into(), Some(exit::PROBLEMS)));
    for words in ["start", "recreate"] {
        let refused = lockstep.expect(exit::REFUSED, &["mirror", words, "main"]);
        for said in [&format!("\"{elsewhere}\" isn't mounted at"), "hint: zfs mount"] {
            assert!(refused.stderr.contains(said), "{said:?}: {}", refused.describe());
        }
    }
    let left = fs::read_dir(&folder).into_iter().flatten().count();
    assert_eq!(left, 0, "something was written below the mount point");
    zfs(&["mount", &elsewhere]);
    lockstep.expect(exit::DONE, &["mirror", "recreate", "main"]);
    wait_for_state(&alone, "main", "follows");
}

/// A set whose manifest can't be read goes with its mirror as any other; and a mirror that can't be taken away yet keeps no
/// other from being made.
#[test]
fn destroyed_with_a_set_that_can_not_be_read() {
    let alone = Alone::new(empty_pools());
    create(&alone, "main");
    let lockstep = alone.fixture.lockstep();
    backup(&lockstep, "main");
    let set = backup(&lockstep, "main");
    let manifest = format!("state/clusters/main/sets/{}/manifest.json", set.id);
    fs::write(alone.fixture.root().join(manifest), "{").expect("it can be written");
    let foreign = format!("{}/data@theirs", dataset(&alone, "main"));
    let steps = Steps::new(alone.fixture.root().join("steps"));
    let step = "mirror.destroy-recorded";
    steps.hold(step);
    let destroy = ["mirror", "destroy", "main", "--with-sets"];
    let mut running = lockstep.clone().with_steps(&steps).spawn(&destroy);
    steps.wait_reached(step, &mut running);
    running.kill();
    let _ = running.wait_or_kill(LIMIT);
    zfs(&["snapshot", &foreign]);
    zfs(&["hold", "theirs", &foreign]);
    let made = lockstep.expect(exit::DONE, &words(&create_words(&alone, "other")));
    assert!(made.stderr.contains("stays for now"), "{}", made.describe());
    lockstep.expect(exit::DONE, &["mirror", "destroy", "other"]);
    zfs(&["release", "theirs", &foreign]);
    zfs(&["destroy", &foreign]);
    lockstep.expect(exit::DONE, &destroy);
    assert_gone(&alone, "main", "destroyed with a set that can't be read");
}

#[test]
fn refusals() {
    let alone = Alone::new(empty_pools());
    alone.primary.execute(&["CREATE ROLE plain LOGIN"]);
    let lockstep = alone.fixture.lockstep();
    let with = |place: usize, word: &str| {
        let mut all = create_words(&alone, "main");
        all[place] = word.to_owned();
        all
    };
    let pool = &alone.fixture.pools[0].name;
    zfs(&["create", "-o", "mountpoint=none", &format!("{pool}/there")]);
    fs::create_dir(directory(&alone, "full")).expect("a folder can be made");
    fs::write(directory(&alone, "full").join("x"), "x").expect("a file can be written");
    let full = directory(&alone, "full").display().to_string();
    let socket = alone.primary.socket.display();
    let plain = format!("host={socket} port={} user=plain", alone.primary.port);
    let cases = [
        (with(4, "host=/nowhere user=x"), exit::FAILED, "primary"),
        (with(4, &plain), exit::REFUSED, "may not replicate"),
        (with(4, "postgresql://a@b/c"), exit::USAGE, "keywords"),
        (with(6, &format!("{pool}/there")), exit::REFUSED, "exists"),
        (with(6, &format!("{pool}/no/such")), exit::REFUSED, "no parent"),
        (with(8, &full), exit::REFUSED, "isn't empty"),
        (with(10, &format!("ts9={pool}/x")), exit::USAGE, "no tablespace \"ts9\""),
        (with(2, "a/b"), exit::USAGE, "a/b"),
    ];
    for (arguments, code, said) in &cases {
        let refused = lockstep.expect(*code, &words(arguments));
        assert!(refused.stderr.contains(said), "{said:?}: {}", refused.describe());
        assert!(refused.stderr.contains("hint: "), "{}", refused.describe());
    }
    for name in ["status", "start", "stop", "destroy", "recreate"] {
        let refused = lockstep.expect(exit::USAGE, &["mirror", name, "nobody"]);
        assert!(refused.stderr.contains("no mirror \"nobody\""), "{}", refused.describe());
    }
    zfs(&["destroy", &format!("{pool}/there")]);
    fs::remove_dir_all(directory(&alone, "full")).expect("a folder can be removed");
    assert_gone(&alone, "main", "refused");
    create(&alone, "main");
    let again = lockstep.expect(exit::REFUSED, &words(&create_words(&alone, "main")));
    assert!(again.stderr.contains("already"), "{}", again.describe());
}

/// SIGKILL, and a signal, at every step of `mirror create`; SIGKILL at every step of `mirror destroy`.
#[test]
fn ended_at_each_step() {
    let alone = Alone::new(empty_pools());
    let arguments = create_words(&alone, "main");
    let arguments = words(&arguments);
    let lockstep = alone.fixture.lockstep();
    let hooks = |name: &str| Steps::new(alone.fixture.root().join(name));
    let watched = hooks("watched");
    lockstep.clone().with_steps(&watched).expect(exit::DONE, &arguments);
    let creating = watched.all_reached();
    let watched = hooks("watched");
    lockstep.clone().with_steps(&watched).expect(exit::DONE, &["mirror", "destroy", "main"]);
    let destroying = watched.all_reached();
    assert_gone(&alone, "main", "destroyed");
    println!("create: {}; destroy: {}", creating.join(" "), destroying.join(" "));
    assert!(creating.len() >= 8 && destroying.len() >= 4, "is it built with its test hooks?");

    let held = |step: &str, arguments: &[&str]| {
        let steps = hooks("held");
        steps.hold(step);
        let mut running = lockstep.clone().with_steps(&steps).spawn(arguments);
        steps.wait_reached(step, &mut running);
        (steps, running)
    };
    for (number, step) in creating.iter().enumerate() {
        let (_, mut running) = held(step, &arguments);
        running.kill();
        let _ = running.wait_or_kill(LIMIT);
        // What a user would do: try again, or give up.
        if step == "mirror.done" {
            lockstep.expect(exit::DONE, &["mirror", "destroy", "main"]);
        } else {
            let (seen, _) = status(&alone, "main");
            assert_eq!(seen["state"]["state"], "unfinished", "killed at {step}: {seen}");
            if number % 3 == 0 {
                create(&alone, "main");
                wait_for_state(&alone, "main", "follows");
            }
            lockstep.expect(exit::DONE, &["mirror", "destroy", "main"]);
        }
        assert_gone(&alone, "main", &format!("killed at {step}, next start"));
    }
    for step in creating.iter().filter(|step| *step != "mirror.done").step_by(2) {
        let (steps, running) = held(step, &arguments);
        running.signal(Signal::TERM);
        steps.release(step);
        let outcome = running.wait(LIMIT);
        assert_eq!(outcome.code, Some(exit::INTERRUPTED), "{step}: {}", outcome.describe());
        assert_gone(&alone, "main", &format!("told to stop at {step}"));
    }
    for step in &destroying {
        create(&alone, "main");
        let (_, mut running) = held(step, &["mirror", "destroy", "main"]);
        running.kill();
        let _ = running.wait_or_kill(LIMIT);
        let again = lockstep.run(&["mirror", "destroy", "main"]);
        assert!(again.ok() || again.stderr.contains("no mirror"), "{}", again.describe());
        assert_gone(&alone, "main", &format!("destroy killed at {step}"));
    }
}
