//! A set becomes a standby: it follows its primary over the network or only from the archive, continues after a
//! restart, and takes over when it is promoted. And what can't be a standby: a part of a cluster, or one next to its
//! original.

use crate::support::cluster::{Cluster, Stop};
use crate::support::command::{command, give_to_postgres, must, wait_until};
use crate::support::faults::{Hooks, assert_said, restore_arguments};
use crate::support::fixture::{Fixture, free_port};
use crate::support::layout::two_pools_four_datasets;
use crate::support::lockstep::{LIMIT, Lockstep, exit, json_of};
use crate::support::shipping::{other_host, with_repository};
use std::fs;
use std::path::PathBuf;

const ROWS: &str = "SELECT (SELECT sum(n) FROM one) || ' ' || (SELECT count(*) FROM two)";
const FILES: [&str; 4] = ["--from", "repository", "--as", "files"];

fn prepare() -> (Fixture, Lockstep) {
    let fixture = Fixture::new(two_pools_four_datasets().archive());
    fixture.cluster.execute(&[
        "CREATE TABLE one (n int) TABLESPACE ts1",
        "CREATE TABLE two (n int) TABLESPACE ts2",
        "INSERT INTO one VALUES (1)",
        "INSERT INTO two SELECT generate_series(1, 20000)",
    ]);
    let lockstep = with_repository(&fixture);
    (fixture, lockstep)
}

/// The original as if it were on another host: its data directory isn't recognized. A running server doesn't read
/// this file any more.
struct Elsewhere(PathBuf);

impl Elsewhere {
    fn new(fixture: &Fixture) -> Elsewhere {
        let version = fixture.cluster.data.join("PG_VERSION");
        fs::rename(&version, version.with_extension("away")).expect("it is there");
        Elsewhere(version)
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        // It is needed to stop the server.
        let _ = fs::rename(self.0.with_extension("away"), &self.0);
    }
}

fn primary(cluster: &Cluster) -> String {
    format!("host={} port={} user=postgres", cluster.socket.display(), cluster.port)
}

#[track_caller]
fn comes_to(standby: &Cluster, rows: &str) {
    wait_until("the standby has what its primary has", LIMIT, || {
        standby.value("postgres", ROWS) == rows
    });
    assert_eq!(standby.value("postgres", "SELECT pg_is_in_recovery()"), "t");
}

#[test]
fn a_set_becomes_a_standby_that_streams() {
    let (fixture, lockstep) = prepare();
    let first = lockstep.backup("label").id;
    fixture.cluster.value("postgres", "SELECT pg_create_physical_replication_slot('back', true)");
    fixture.cluster.execute(&["INSERT INTO one VALUES (10)"]);
    let second = lockstep.backup("ordered").id;
    fixture.cluster.execute(&["INSERT INTO one VALUES (100)"]);
    let _elsewhere = Elsewhere::new(&fixture);
    let from = primary(&fixture.cluster);
    let parent = format!("{}/standby", fixture.pools[0].name);
    for (form, set) in [("files", &first), ("zfs", &second)] {
        let to = fixture.target(form);
        let host = other_host(&fixture, form, &to.join("data"));
        let mut more = vec!["--from", "repository", "--as", form, "--standby", "--primary", &from];
        more.extend(["--slot", "back"]);
        if form == "zfs" {
            more.extend(["--dataset", &parent]);
        }
        let restored = host.restore_and_start(set, &to, &more);
        let standby = restored.server();
        assert_eq!(restored.json["standby"], true, "{form}: {}", restored.json);
        comes_to(standby, &fixture.cluster.value("postgres", ROWS));
        let receiver = "SELECT status || ' ' || slot_name FROM pg_stat_wal_receiver";
        wait_until("it streams over its slot", LIMIT, || {
            standby.column("postgres", receiver) == ["streaming back"]
        });
        // The settings that it was made with survive a restart, and it archives once it is a primary.
        standby.stop(Stop::Fast);
        standby.start();
        fixture.cluster.execute(&["INSERT INTO one VALUES (1000)", "DELETE FROM two WHERE n = 7"]);
        comes_to(standby, &fixture.cluster.value("postgres", ROWS));
        assert_eq!(standby.value("postgres", "SHOW archive_mode"), "on", "{form}");
        must(
            &mut standby
                .tool("pg_ctl", ["-D", to.join("data").to_str().expect("UTF-8"), "-w", "promote"]),
        );
        standby.execute(&["INSERT INTO one VALUES (5)"]);
        must(&mut standby.tool("pg_amcheck", ["--install-missing", "--heapallindexed", "--all"]));
        standby.stop(Stop::Fast);
        // The folder is brought to a set again, now as a cluster of its own.
        more.truncate(4);
        more.push("--delta");
        if form == "zfs" {
            more.extend(["--dataset", &parent]);
        }
        let restored = host.restore_and_start(&second, &to, &more);
        assert_eq!(restored.server().value("postgres", "SHOW primary_conninfo"), "", "{form}");
        assert_eq!(restored.server().value("postgres", ROWS), "11 20000", "{form}");
        restored.server().stop(Stop::Fast);
        fixture.cluster.execute(&["INSERT INTO two VALUES (7)"]);
    }
}

/// Without any connection to its primary.
#[test]
fn a_set_becomes_a_standby_that_the_archive_feeds() {
    let (fixture, lockstep) = prepare();
    let set = lockstep.backup("label").id;
    let _elsewhere = Elsewhere::new(&fixture);
    let to = fixture.target("fed");
    let host = other_host(&fixture, "fed", &to.join("data"));
    let archive = format!("cp {}/%f %p", fixture.archive.display());
    let more = [&FILES[..], &["--standby", "--restore-command", &archive]].concat();
    let restored = host.restore_and_start(&set, &to, &more);
    for rows in ["11 20000", "111 20000"] {
        let next = if rows.starts_with("11 ") { "10" } else { "100" };
        fixture.cluster.execute(&[&format!("INSERT INTO one VALUES ({next})")]);
        fixture.cluster.value("postgres", "SELECT pg_switch_wal()");
        comes_to(restored.server(), rows);
    }
    restored.server().stop(Stop::Fast);
}

/// The least values that a standby needs were raised after the set. PostgreSQL halts replay at that point, and after
/// that doesn't even start with less.
#[test]
fn a_standby_has_what_its_primary_was_raised_to() {
    let (fixture, lockstep) = prepare();
    let set = lockstep.backup("label").id;
    fixture.cluster.execute(&["ALTER SYSTEM SET max_connections = 60"]);
    fixture.cluster.stop(Stop::Fast);
    fixture.cluster.start();
    fixture.cluster.execute(&["INSERT INTO one VALUES (10)"]);
    let _elsewhere = Elsewhere::new(&fixture);
    let to = fixture.target("raised");
    let step = "restore.recovered";
    let hooks = Hooks::holding(&fixture, step);
    let host = other_host(&fixture, "raised", &to.join("data")).with_steps(&hooks.steps);
    let (from, port) = (primary(&fixture.cluster), free_port().to_string());
    let more = ["--standby", "--primary", &from, "--start", "--port", &port];
    let mut arguments = restore_arguments(&set, &to, &FILES);
    arguments.extend(more);
    let mut program = host.spawn(&arguments);
    hooks.steps.wait_reached(step, &mut program);
    let log = to.join("log/server.log");
    let said = |words: &str| std::fs::read_to_string(&log).is_ok_and(|text| text.contains(words));
    wait_until("replay halts", LIMIT, || said("recovery has paused"));
    hooks.steps.release(step);
    let outcome = program.wait(LIMIT);
    assert_eq!(outcome.code, Some(exit::DONE), "{}", outcome.describe());
    assert_said(&outcome, &["max_connections becomes 60"]);
    let standby = Cluster::running_in(&to.join("data"), &fixture.cluster.bin, &log);
    comes_to(&standby, &fixture.cluster.value("postgres", ROWS));
    standby.stop(Stop::Fast);
    standby.start();
    assert_eq!(standby.value("postgres", "SHOW max_connections"), "60");
    standby.stop(Stop::Fast);
}

/// A tablespace that the primary made just after the set is replayed by the server that recovers to a consistent
/// state.
#[test]
fn a_tablespace_made_just_after_the_set() {
    let (fixture, lockstep) = prepare();
    let set = lockstep.backup("label").id;
    let mount = fixture.mnt().join("later");
    fixture.pools[0].dataset("later", &mount, &[]);
    let folder = mount.join("files");
    let make = || {
        fs::create_dir(&folder).expect("it isn't there");
        give_to_postgres(&folder);
    };
    make();
    fixture.cluster.execute(&[
        &format!("CREATE TABLESPACE later LOCATION '{}'", folder.display()),
        "CREATE TABLE three TABLESPACE later AS SELECT generate_series(1, 100) n",
    ]);
    let segment = fixture.cluster.value("postgres", "SELECT pg_walfile_name(pg_switch_wal())");
    wait_until("it is archived", LIMIT, || fixture.archive.join(&segment).exists());
    fixture.cluster.stop(Stop::Fast);
    let _elsewhere = Elsewhere::new(&fixture);
    // The primary's own folder, which doesn't exist on the standby's host.
    fs::rename(&folder, folder.with_extension("primary")).expect("nobody uses it");
    let archive = format!("cp {}/%f %p", fixture.archive.display());
    let more = [&FILES[..], &["--standby", "--restore-command", &archive]].concat();
    for n in 1..=4 {
        make();
        let to = fixture.target(&format!("later-{n}"));
        let host = other_host(&fixture, &format!("later-{n}"), &to.join("data"));
        let restored = host.restore_and_start(&set, &to, &more);
        let standby = restored.server();
        let there = "SELECT count(*) FROM pg_tables WHERE tablename = 'three'";
        wait_until("the standby comes to it", LIMIT, || standby.value("postgres", there) == "1");
        assert_eq!(standby.value("postgres", "SELECT count(*) FROM three"), "100");
        standby.stop(Stop::Immediate);
        fs::remove_dir_all(&folder).expect("nobody uses it");
    }
}

#[test]
fn what_can_t_be_a_standby_is_refused_before_anything_is_made() {
    let (fixture, lockstep) = prepare();
    let set = lockstep.backup("label").id;
    let to = fixture.target("r");
    let from = primary(&fixture.cluster);
    let host = other_host(&fixture, "host", &to.join("data"));
    let arguments = |more: &[&str]| -> Vec<String> {
        let all = [&FILES[..], more].concat();
        restore_arguments(&set, &to, &all).into_iter().map(str::to_owned).collect()
    };
    let refused = |lockstep: &Lockstep, code: i32, more: &[&str], words: &[&str]| {
        let all = arguments(more);
        let outcome = lockstep.expect(code, &all.iter().map(String::as_str).collect::<Vec<_>>());
        assert_said(&outcome, words);
        assert!(!to.exists(), "{more:?}: {}", outcome.describe());
        outcome
    };
    let beside =
        ["the original cluster runs on this host", "hint: make the standby on another host"];
    refused(&lockstep, exit::REFUSED, &["--standby", "--primary", &from], &beside);
    // Whatever the configuration names, the set says where it was taken.
    refused(&host, exit::REFUSED, &["--standby", "--primary", &from], &beside);
    let usage = |more: &[&str], words: &[&str]| refused(&host, exit::USAGE, more, words);
    usage(&["--standby"], &["nothing to follow", "hint: name its primary"]);
    usage(&["--standby", "--primary", &from, "--target-immediate"], &["cannot be used with"]);
    usage(&["--primary", &from], &["--standby"]);
    let part = ["--standby", "--primary", &from, "--only-database", "postgres"];
    usage(&part, &["would have only a part of it"]);
    let secret = ["--standby", "--primary", "host=db1 password=hunter2"];
    let outcome = usage(&secret, &["the keyword password", "hint: "]);
    assert!(!outcome.stderr.contains("hunter2"), "{}", outcome.describe());
    let secret = ["--standby", "--primary", "host=db1 sslpassword=hunter2"];
    let outcome = usage(&secret, &["the keyword sslpassword", "hint: "]);
    assert!(!outcome.stderr.contains("hunter2"), "{}", outcome.describe());
    // PostgreSQL would only report these once everything is restored, or again and again in its log.
    for nobody in ["", " ", "host= user=x", "user=x"] {
        usage(&["--standby", "--primary", nobody], &["names no host", "hint: "]);
    }
    usage(&["--standby", "--primary", "hosst=a"], &["the keyword \"hosst\"", "hint: "]);
    for slot in ["", "Bad-Slot"] {
        usage(&["--standby", "--primary", &from, "--slot", slot], &["'--slot <SLOT>'"]);
    }
    for command in ["", " "] {
        usage(&["--standby", "--restore-command", command], &["'--restore-command <CMD>'"]);
    }
}

/// It is restored and accepts readers, but its data doesn't change any more: that is reported, with the server's
/// reason.
#[test]
fn a_standby_to_which_nothing_streams_is_a_problem() {
    let (fixture, lockstep) = prepare();
    let set = lockstep.backup("label").id;
    let _elsewhere = Elsewhere::new(&fixture);
    let from = primary(&fixture.cluster);
    let nobody = format!("host={} port=1 user=postgres", fixture.cluster.socket.display());
    let archive = format!("cp {}/%f %p", fixture.archive.display());
    let slot = "replication slot \"later\" does not exist";
    for (name, more, words) in [
        ("slot", ["--primary", &from, "--slot", "later"], slot),
        ("nobody", ["--primary", &nobody, "--restore-command", &archive], "could not connect to"),
    ] {
        let to = fixture.target(name);
        let host = other_host(&fixture, name, &to.join("data"));
        let port = free_port().to_string();
        let start = ["--standby", "--start", "--port", &port];
        let all = [&FILES[..], &start, &more].concat();
        let mut arguments = restore_arguments(&set, &to, &all);
        arguments.push("--json");
        let outcome = host.expect(exit::PROBLEMS, &arguments);
        assert_said(&outcome, &["nothing streams to the standby: ", words]);
        let json = json_of(&outcome);
        assert_eq!(json["started"], true, "{json}");
        let what = json["problems"][0]["what"].as_str();
        assert!(what.is_some_and(|what| what.contains(words)), "{json}");
        let log = to.join("log/server.log");
        let standby = Cluster::running_in(&to.join("data"), &fixture.cluster.bin, &log);
        if name == "slot" {
            // It keeps trying.
            let make = "SELECT pg_create_physical_replication_slot('later')";
            fixture.cluster.value("postgres", make);
            fixture.cluster.execute(&["INSERT INTO one VALUES (10)"]);
            comes_to(&standby, "11 20000");
        }
        standby.stop(Stop::Fast);
    }
}

/// The role of docs/configuration.md, "Rights", sees that there is a WAL receiver, but not how it does.
#[test]
fn a_standby_streams_though_its_role_may_not_see_that() {
    let (fixture, lockstep) = prepare();
    fixture
        .cluster
        .execute(&["CREATE ROLE backup LOGIN REPLICATION", "GRANT pg_read_all_settings TO backup"]);
    let set = lockstep.backup("label").id;
    let _elsewhere = Elsewhere::new(&fixture);
    let to = fixture.target("role");
    let host = other_host(&fixture, "role", &to.join("data"));
    let file = fixture.root().join("role.toml");
    let text = fs::read_to_string(&file).expect("the configuration");
    let other = text.replace("\nuser = \"postgres\"", "\nuser = \"backup\"");
    assert_ne!(text, other);
    fs::write(&file, other).expect("it can be written");
    let from = primary(&fixture.cluster);
    let more = [&FILES[..], &["--standby", "--primary", &from]].concat();
    let restored = host.restore_and_start(&set, &to, &more);
    assert!(restored.json["problems"].is_null(), "{}", restored.json);
    comes_to(restored.server(), "1 20000");
    restored.server().stop(Stop::Fast);
}

/// After a crash of the machine, the number in postmaster.pid belongs to another process.
#[test]
fn a_number_that_is_another_s_by_now_is_no_server() {
    let (fixture, lockstep) = prepare();
    let set = lockstep.backup("label").id;
    let to = fixture.target("n");
    let host = other_host(&fixture, "host", &to.join("data"));
    let restored = host.restore_and_start(&set, &to, &FILES);
    let file = to.join("data/postmaster.pid");
    let text = fs::read_to_string(&file).expect("it runs");
    let (pid, rest) = text.split_once('\n').expect("it has lines");
    let delta = [&FILES[..], &["--delta"]].concat();
    let refused = host.expect(exit::USAGE, &restore_arguments(&set, &to, &delta));
    let words = format!("process {pid}");
    assert_said(&refused, &["a server runs in", &words, "/postmaster.pid\"", "hint: stop"]);
    // As in a container, whose process has another number outside.
    fs::write(&file, format!("{}\n{rest}", std::process::id())).expect("the test may");
    let refused = host.expect(exit::USAGE, &restore_arguments(&set, &to, &delta));
    assert_said(&refused, &["a server runs in", &words, "hint: stop"]);
    fs::write(&file, &text).expect("the test may");
    restored.server().stop(Stop::Fast);

    let mut other = command("sleep", ["600"]).spawn().expect("it can be started");
    let stale = format!("{}\n{rest}", other.id());
    fs::write(&file, &stale).expect("the test may");
    host.restore(&set, &to, &delta);
    assert!(!file.exists());
    // The original is down, but what it left says otherwise.
    fixture.cluster.stop(Stop::Fast);
    let of_original = fixture.cluster.data.join("postmaster.pid");
    fs::write(&of_original, &stale).expect("the test may");
    let standby = ["--standby", "--primary", "host=db1 user=x"];
    host.restore(&set, &fixture.target("s"), &[&FILES[..], &standby].concat());
    fs::remove_file(&of_original).expect("the test may");
    other.kill().expect("it is ours");
    other.wait().expect("it is ours");
}
