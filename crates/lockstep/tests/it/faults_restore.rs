//! A restore that is interrupted, whose recovery fails, or that must not begin: what it says, and that nothing is
//! left behind.

use crate::support::by_hand::write_as_postgres;
use crate::support::cluster::{Cluster, Stop};
use crate::support::command::{Running, command, must, run, wait_until};
use crate::support::commands::pretending;
use crate::support::faults::{
    Hooks, assert_nothing_remains, assert_said, entries, kill_at, restore_arguments,
    server_by_hand, signal_at, walk,
};
use crate::support::fixture::Fixture;
use crate::support::layout::{one_pool, two_pools_four_datasets};
use crate::support::lockstep::{LIMIT, Steps, exit, json_of};
use crate::support::pools::{property, try_zfs, zfs};
use crate::support::shipping::{configured, discard, other_host, with_repository};
use crate::support::workspace::processes_of;
use rustix::process::Signal;
use std::fs;
use std::path::Path;
use std::time::Duration;

/// A cluster with a row in each tablespace, and a set of it.
fn with_set(strategy: &str) -> (Fixture, String) {
    let fixture = Fixture::new(two_pools_four_datasets().archive().setting("autovacuum", "off"));
    fixture.row_in_each_tablespace();
    let set = fixture.lockstep().backup(strategy).id;
    (fixture, set)
}

#[track_caller]
fn assert_restores(fixture: &Fixture, set: &str, name: &str) {
    let to = fixture.target(name);
    let restored = fixture.lockstep().restore_and_start(set, &to, &[]);
    let rows = "SELECT (SELECT sum(n) FROM one) || ' ' || (SELECT sum(n) FROM two)";
    assert_eq!(restored.server().value("postgres", rows), "1 2", "set {set}");
    restored.server().stop(Stop::Immediate);
    fixture.discard_restored(&to, set);
}

/// SIGKILL at every step, then SIGINT or SIGTERM at every step; the next start is alternately a backup and a restore.
#[test]
fn ended_at_each_step() {
    let (fixture, set) = with_set("label");
    let to = fixture.target("cut off");
    let arguments = restore_arguments(&set, &to, &["--start"]);
    let hooks = Hooks::new(&fixture);
    hooks.lockstep().expect(exit::DONE, &arguments);
    let steps = hooks.steps.all_reached();
    assert!(steps.len() >= 9, "is it built with its test hooks? {steps:?}");
    println!("{} steps: {}", steps.len(), steps.join(" "));
    fixture.discard_restored(&to, &set);
    // From here on, a kill leaves a server that has recovered: see tests/restore_guard.rs.
    let in_use = ["restore.moved", "restore.started", "restore.done"];
    let postmaster = fixture.cluster.postmaster();
    let other = fixture.target("next start");
    for (number, step) in steps.iter().enumerate() {
        if !in_use.contains(&step.as_str()) {
            kill_at(&fixture, step, &arguments);
        }
        if number % 2 == 0 {
            let next = fixture.lockstep().backup("ordered").id;
            assert_nothing_remains(&fixture, &[], &format!("killed at {step}, next backup"));
            fixture.discard_set(&next);
        } else {
            // To the same path: what a user would try next.
            fixture.lockstep().restore(&set, &to, &[]);
            fixture.discard_restored(&to, &set);
            assert_nothing_remains(&fixture, &[], &format!("killed at {step}, next restore"));
        }
        let signal = if number % 2 == 0 { Signal::TERM } else { Signal::INT };
        let (_, outcome) = signal_at(&fixture, step, signal, &arguments);
        let after = format!("{signal:?} at {step}");
        assert_eq!(outcome.code, Some(exit::INTERRUPTED), "{after}: {}", outcome.describe());
        assert_said(&outcome, &["error: interrupted"]);
        if in_use.contains(&step.as_str()) {
            // Its server was started for its users, who may have written to it.
            assert_said(&outcome, &["is complete, and somebody may have written to it: it stays"]);
            let data = fs::canonicalize(to.join("data")).expect("it stays");
            let log = to.join("log/server.log");
            let restored = if data.join("postmaster.pid").exists() {
                Cluster::running_in(&data, &fixture.cluster.bin, &log)
            } else {
                let stopped = server_by_hand(&fixture, &data);
                stopped.start();
                stopped
            };
            assert_eq!(restored.value("postgres", "SELECT sum(n) FROM one"), "1", "{after}");
            fixture.discard_restored(&to, &set);
        }
        assert_nothing_remains(&fixture, &[], &after);
    }
    assert_eq!(fixture.cluster.postmaster(), postmaster, "PostgreSQL runs on");
    assert!(!other.exists());
    assert_restores(&fixture, &set, "at the end");
}

/// Starts a restore whose recovery waits for a segment that never comes, and returns once it does.
fn restore_that_waits(fixture: &Fixture, set: &str, to: &Path) -> Running {
    let come = fixture.owned("come");
    let command = format!("touch {}/%f; sleep 600", come.display());
    let arguments = restore_arguments(set, to, &["--start", "--restore-command", &command]);
    let mut program = fixture.lockstep().spawn(&arguments);
    wait_until("recovery asks for a segment", LIMIT, || {
        assert!(program.is_running(), "it didn't wait");
        !entries(&come).is_empty()
    });
    program
}

/// During recovery there is a server, but no step of the program.
#[test]
fn ended_in_recovery() {
    let (fixture, set) = with_set("label");
    let to = fixture.target("in recovery");

    let program = restore_that_waits(&fixture, &set, &to);
    program.signal(Signal::INT);
    let outcome = program.wait(LIMIT);
    assert_eq!(outcome.code, Some(exit::INTERRUPTED), "{}", outcome.describe());
    assert_nothing_remains(&fixture, &[], "SIGINT in recovery");

    fs::remove_dir_all(fixture.root().join("come")).expect("the test may remove it");
    let mut program = restore_that_waits(&fixture, &set, &to);
    // Another command must not take a restore that runs for one that was killed.
    let meanwhile = fixture.lockstep().backup("label").id;
    assert!(program.is_running() && to.join("data").exists(), "a backup ended a running restore");
    program.kill();
    program.wait(LIMIT);
    assert!(!processes_of(&to).is_empty(), "the killed program's server is there still");
    let checked = fixture.lockstep().run(&["check"]);
    assert!(checked.stdout.contains("cut off"), "{}", checked.describe());
    assert_restores(&fixture, &meanwhile, "next start");
    assert_nothing_remains(&fixture, &[], "SIGKILL in recovery, next start");

    // Recovery can't reach its target: the set's own WAL ends before it, or there is no such restore point.
    for target in [
        &["--target-name", "nosuch"][..],
        &["--target-xid", "4000000"],
        &["--target-time", "2999-01-01T00:00:00Z"],
        &["--target-lsn", "FF/0"],
    ] {
        let arguments = [target, &["--start"]].concat();
        let failed =
            fixture.lockstep().expect(exit::FAILED, &restore_arguments(&set, &to, &arguments));
        let reason = "recovery ended before configured recovery target was reached";
        assert_said(&failed, &["error: ", reason, "hint: ", "--restore-command"]);
        assert_nothing_remains(&fixture, &[], &format!("{target:?}"));
    }
    // A restore_command that is killed ends recovery.
    let failed = fixture.lockstep().expect(
        exit::FAILED,
        &restore_arguments(&set, &to, &["--start", "--restore-command", "kill -TERM $$"]),
    );
    assert_said(&failed, &["error: ", "ended in recovery"]);
    assert_nothing_remains(&fixture, &[], "a failing restore_command");
    // A port that is taken.
    let port = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("there is a port");
    let taken = port.local_addr().expect("it has an address").port().to_string();
    let failed = fixture
        .lockstep()
        .expect(exit::USAGE, &restore_arguments(&set, &to, &["--start", "--port", &taken]));
    assert_said(&failed, &[&format!("error: port {taken} is taken"), "hint: ", "--port"]);
    assert_nothing_remains(&fixture, &[], "a port that is taken");
    assert_restores(&fixture, &set, "at the end");
}

/// If no set is named, restore_command is asked for histories before there is a server. It may hang, and it may leave
/// a process behind that keeps its output open.
#[test]
fn a_restore_command_that_does_not_end() {
    let (fixture, _) = with_set("label");
    let to = fixture.target("asked");
    let come = fixture.owned("come");
    let time = fixture.cluster.value("postgres", "SELECT clock_timestamp()");
    let arguments = |command: &'static str| {
        let to = to.to_str().expect("UTF-8").to_owned();
        let command = format!("touch {}/%f; {command}", come.display());
        ["restore", "--dry-run", "--to", &to, "--target-time", &time, "--restore-command", &command]
            .map(str::to_owned)
    };
    let hangs = arguments("sleep 613; false");
    let hangs = hangs.each_ref().map(String::as_str);
    let is_asleep = || run(&mut command("pgrep", ["-fx", "sleep 613"])).ok();
    for signal in [Signal::INT, Signal::TERM] {
        let mut program = fixture.lockstep().spawn(&hangs);
        wait_until("a history is asked for", LIMIT, || {
            assert!(program.is_running(), "it didn't wait");
            is_asleep()
        });
        program.signal(signal);
        let outcome = program.wait(Duration::from_secs(20));
        assert_eq!(outcome.code, Some(exit::INTERRUPTED), "{}", outcome.describe());
        assert!(!is_asleep(), "{}", outcome.describe());
    }
    assert!(come.join("00000002.history").exists());
    let leaves = arguments("sleep 613 & false");
    let planned = fixture.lockstep().expect(exit::DONE, &leaves.each_ref().map(String::as_str));
    assert!(is_asleep(), "it was waited for: {}", planned.describe());
    must(&mut command("pkill", ["-fx", "sleep 613"]));
    // The user is told what is being waited for.
    let slow = arguments("sleep 11; false");
    let planned = fixture.lockstep().expect(exit::DONE, &slow.each_ref().map(String::as_str));
    assert_said(&planned, &["waiting for restore_command, which was asked for 00000002.history"]);
    assert_nothing_remains(&fixture, &[], "histories");
}

/// The last checkpoint after recovery takes as long as there is to write. A signal ends that too.
#[test]
fn ended_in_the_last_checkpoint() {
    let (fixture, set) = with_set("label");
    let to = fixture.target("slow");
    let step = "restore.recovered";
    let hooks = Hooks::holding(&fixture, step);
    let mut program = hooks.run_to(step, &restore_arguments(&set, &to, &["--start"]));
    let is_checkpointer = |pid: &u32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains("checkpointer")
    };
    let found = processes_of(&to).into_iter().find(is_checkpointer).expect("the server runs");
    let pid = rustix::process::Pid::from_raw(found.cast_signed()).expect("it has a number");
    rustix::process::kill_process(pid, Signal::STOP).expect("it may be stopped");
    hooks.steps.release(step);
    std::thread::sleep(std::time::Duration::from_secs(2));
    assert!(program.is_running(), "it waits");
    program.signal(Signal::INT);
    let outcome = program.wait(std::time::Duration::from_secs(60));
    assert_eq!(outcome.code, Some(exit::INTERRUPTED), "{}", outcome.describe());
    assert_nothing_remains(&fixture, &[], "SIGINT in the last checkpoint");
}

/// Something that the original's host had is missing on this one: everything is restored, but doesn't start as it is.
#[test]
fn what_does_n_t_start_as_the_original_did_stays() {
    let (fixture, _) = with_set("ordered");
    let address = ["ALTER SYSTEM SET listen_addresses = '192.0.2.10'"];
    fixture.cluster.execute(&[&address[..], &["ALTER SYSTEM SET logging_collector = on"]].concat());
    let lockstep = fixture.lockstep();
    let set = lockstep.backup("label").id;
    let to = fixture.target("stays");
    let mut arguments = restore_arguments(&set, &to, &["--start"]);
    let outcome = lockstep.expect(exit::PROBLEMS, &arguments);
    // The reason is only in the collector's log.
    let reason = "could not create any TCP/IP sockets";
    assert_said(
        &outcome,
        &["problem: the cluster is restored", reason, "hint: ", "--setting NAME=VALUE"],
    );
    assert!(outcome.stdout.contains("pg_ctl -D"), "{}", outcome.describe());
    let data = to.join("data");
    assert!(data.join("global/pg_control").exists() && !data.join("recovery.signal").exists());
    lockstep.expect(exit::DONE, &["list"]);
    assert!(data.exists(), "it isn't taken away by the next command");
    let server = server_by_hand(&fixture, &data);
    let auto = data.join("postgresql.auto.conf");
    let settings = fs::read_to_string(&auto).expect("it is there");
    write_as_postgres(&auto, &format!("{settings}\nlisten_addresses = ''\n"));
    server.start();
    server.stop(Stop::Immediate);
    fixture.discard_restored(&to, &set);

    arguments.extend(["--setting", "Listen_Addresses=", "--setting", "work_mem=7MB"]);
    lockstep.expect(exit::DONE, &arguments);
    let server = Cluster::running_in(&data, &fixture.cluster.bin, &to.join("log/server.log"));
    assert_eq!(server.value("postgres", "SHOW listen_addresses"), "");
    assert_eq!(server.value("postgres", "SHOW work_mem"), "7MB");
    server.stop(Stop::Fast);
    server.start();
    assert_eq!(server.value("postgres", "SHOW work_mem"), "7MB", "it lasts");
    server.stop(Stop::Immediate);
    for (wrong, words) in [
        ("port=1", "--port"),
        ("recovery_target_xid=7", "--target-"),
        ("include_dir=/etc", "is no setting"),
        ("x", "NAME=VALUE"),
    ] {
        let refused =
            lockstep.expect(exit::USAGE, &restore_arguments(&set, &to, &["--setting", wrong]));
        assert_said(&refused, &[words]);
    }
    fixture.discard_restored(&to, &set);

    // What keeps it from beginning recovery can be overridden in the same way; for a clone, in the configuration.
    let missing = ["--start", "--setting", "shared_preload_libraries=nowhere"];
    let failed = lockstep.expect(exit::FAILED, &restore_arguments(&set, &to, &missing));
    assert_said(&failed, &["\"nowhere\"", "hint: ", "--setting NAME=VALUE"]);
    let settings =
        "\n[clusters.main.clone]\nsettings = { shared_preload_libraries = \"nowhere\" }\n";
    let configured = configured(&fixture, &[], settings);
    let failed = configured.expect(exit::FAILED, &["clone", "create", "dev", "--set", &set]);
    assert_said(&failed, &["\"nowhere\"", "hint: ", "[clusters.NAME.clone]"]);
}

/// On a host without the original's folders, these are made temporarily.
#[test]
fn a_shutdown_at_the_target_leaves_no_folder_of_the_original_s() {
    let (fixture, set) = with_set("label");
    let lockstep = with_repository(&fixture);
    lockstep.expect(exit::DONE, &["ship", &set]);
    fixture.cluster.stop(Stop::Fast);
    let place = fixture.tablespace("ts2");
    let is_there = |dataset: &&String| {
        property(dataset, "mountpoint") == place.to_str().expect("the harness' own paths are UTF-8")
    };
    let dataset = fixture.datasets.iter().find(is_there).expect("ts2 has one of its own");
    zfs(&["unmount", dataset]);
    let _ = fs::remove_dir(&place);
    assert!(!place.exists());
    let to = fixture.target("elsewhere");
    let host = other_host(&fixture, "elsewhere", &to.join("data"));
    let shut_down = ["--target-immediate", "--target-action", "shutdown"];
    let more = [&["--from", "repository", "--as", "files", "--start"], &shut_down[..]].concat();
    let outcome = host.expect(exit::DONE, &restore_arguments(&set, &to, &more));
    assert!(!place.exists(), "an empty folder stays in {place:?}");
    // The printed command starts it, as a primary.
    let mut lines = outcome.stdout.lines();
    let command_line = lines.find(|line| line.contains("recovery_target_action=promote"));
    must(&mut command("sh", ["-c", command_line.expect("it is printed")]));
    let data = fs::canonicalize(to.join("data")).expect("it is there");
    let log = to.join("log/server.log");
    let promoted = Cluster::running_in(&data, &fixture.cluster.bin, &log);
    wait_until("it is promoted", LIMIT, || {
        promoted.value("postgres", "SELECT pg_is_in_recovery()") == "f"
    });
    promoted.stop(Stop::Fast);
}

/// Places that a restored cluster must not be put.
#[test]
fn refused_places() {
    let (fixture, set) = with_set("ordered");
    let lockstep = fixture.lockstep();
    let used = fixture.owned("used");
    fs::write(used.join("thesis.tex"), "all of it").expect("the test may write there");
    let before = walk(&used);
    let refused = lockstep.expect(exit::REFUSED, &restore_arguments(&set, &used, &["--start"]));
    assert_said(&refused, &["error: ", "used", "isn't empty", "hint: "]);
    assert!(walk(&used) == before, "a refused restore touched {used:?}");

    let to = fixture.target("elsewhere");
    let place = format!("ts1={}", used.display());
    let refused =
        lockstep.expect(exit::REFUSED, &restore_arguments(&set, &to, &["--tablespace", &place]));
    assert_said(&refused, &["error: ", "used", "isn't empty", "hint: "]);
    assert!(walk(&used) == before, "a refused restore touched {used:?}");

    // The cluster itself, and folders in each of its parts.
    let live = fixture.cluster.data.clone();
    let parts = [
        live.clone(),
        live.join("base"),
        live.join("new/folder"),
        fixture.mnt().join("wal/pg_wal/new"),
        fixture.tablespace("ts1").join("new"),
        fixture.tablespace("ts2").join("new/folder"),
    ];
    for place in &parts {
        let refused = lockstep.expect(exit::REFUSED, &restore_arguments(&set, place, &[]));
        assert_said(&refused, &["error: ", &place.display().to_string(), "hint: "]);
    }
    let link = fixture.root().join("link");
    std::os::unix::fs::symlink(fixture.tablespace("ts1"), &link).expect("a link can be made");
    for place in [fixture.tablespace("ts2").join("new"), link.join("new")] {
        let place = format!("ts1={}", place.display());
        let refused = lockstep
            .expect(exit::REFUSED, &restore_arguments(&set, &to, &["--tablespace", &place]));
        assert_said(&refused, &["error: ", "inside", "hint: "]);
    }
    // Nobody knows where a path leads that goes through a folder which doesn't exist.
    let back = fixture.root().join("gone/..");
    let inside = live.strip_prefix(fixture.root()).expect("it is there").join("new");
    for place in [back.join(&inside), back.join("beside")] {
        let refused = lockstep.expect(exit::USAGE, &restore_arguments(&set, &place, &[]));
        assert_said(&refused, &["error: ", "goes back (..)", "hint: "]);
    }
    let place = format!("ts1={}", back.join(&inside).display());
    lockstep.expect(exit::USAGE, &restore_arguments(&set, &to, &["--tablespace", &place]));
    for (folder, name) in
        [(live, "new"), (fixture.tablespace("ts1"), "new"), (fixture.tablespace("ts2"), "new")]
    {
        assert!(!folder.join(name).exists(), "a refused restore made something in {folder:?}");
    }

    let file = fixture.root().join("file");
    fs::write(&file, "").expect("the test may write there");
    lockstep.expect(exit::USAGE, &restore_arguments(&set, &file, &[]));
    lockstep.expect(exit::USAGE, &restore_arguments("nosuch", &to, &[]));
    lockstep.expect(exit::USAGE, &restore_arguments(&set, &to, &["--tablespace", "nosuch=/x"]));
    assert_nothing_remains(&fixture, &[], "refused restores");
    // An empty folder is allowed.
    fs::create_dir(&to).expect("the test may make it");
    let restored = lockstep.restore(&set, &to, &[]);
    assert!(restored.data.starts_with(&to));
    fixture.discard_restored(&to, &set);
    assert_restores(&fixture, &set, "at the end");
}

/// Its links are the original's. So the data directory's dataset must not be one that is mounted at boot before
/// pg_control has been renamed, whatever the form of the restore and wherever it ends.
#[test]
fn a_data_directory_is_parked_until_pg_control_has_lost_its_name() {
    let fixture = Fixture::new(one_pool());
    let lockstep = with_repository(&fixture);
    let first = lockstep.backup("label").id;
    fixture.cluster.execute(&["CREATE TABLE later AS SELECT 7 AS n"]);
    let second = lockstep.backup("label").id;
    let pool = fixture.pools[0].name.clone();
    let parent = format!("{pool}/back");
    let dataset = format!("{parent}/data");
    let to = fixture.target("r");
    let control = to.join("data/global/pg_control");
    let held = to.join("data/global/pg_control.lockstep");
    let form = ["--from", "repository", "--as", "zfs", "--dataset", &parent];
    let delta = [&form[..], &["--delta"]].concat();
    let kill = |step: &str, arguments: &[&str]| {
        let hooks = Hooks::holding(&fixture, step);
        let mut program = lockstep.clone().with_steps(&hooks.steps).spawn(arguments);
        hooks.steps.wait_reached(step, &mut program);
        program.kill();
        program.wait(LIMIT);
    };

    // New datasets: killed after the command that sets the mount point, and where pg_control has been renamed.
    let case = format!("\"set mountpoint=\"*\" {dataset}\") zfs \"$@\"; kill -9 $PPID; exit;;");
    let killed = pretending(&fixture, &lockstep, "mountpoint", &case);
    let outcome = killed.run(&restore_arguments(&first, &to, &form));
    assert_eq!(outcome.code, None, "{}", outcome.describe());
    assert_eq!(property(&dataset, "canmount"), "noauto", "it has a mount point");
    lockstep.run(&["list"]);
    // What was complete by then has stayed.
    kill("restore.held", &restore_arguments(&first, &to, &delta));
    assert_eq!(property(&dataset, "canmount"), "noauto", "a new one");
    assert!(held.exists() && !control.exists(), "a new one");
    lockstep.restore(&first, &to, &delta);
    let marks = || (property(&dataset, "canmount"), property(&dataset, "lockstep:canmount"));
    assert_eq!(marks(), ("on".to_owned(), "-".to_owned()));

    // Brought to another state: first mounting it fails, then the restore is killed where pg_control has been
    // renamed.
    let refuse =
        format!("\"mount {dataset}\") echo \"cannot mount '$2': not today\" >&2; exit 1;;");
    let arguments = restore_arguments(&second, &to, &delta);
    let outcome = pretending(&fixture, &lockstep, "mount", &refuse).run(&arguments);
    assert_eq!(outcome.code, Some(exit::FAILED), "{}", outcome.describe());
    assert_eq!(marks(), ("noauto".to_owned(), "on".to_owned()), "{}", outcome.describe());
    assert_eq!(property(&dataset, "mounted"), "no");
    kill("restore.held", &arguments);
    assert_eq!(marks(), ("noauto".to_owned(), "on".to_owned()));
    assert!(held.exists() && !control.exists(), "brought to another state");
    let restored = lockstep.restore_and_start(&second, &to, &delta);
    assert_eq!(restored.server().value("postgres", "SELECT n FROM later"), "7");
    restored.server().stop(Stop::Fast);
    assert_eq!(marks(), ("on".to_owned(), "-".to_owned()));

    // Whatever ZFS or a server couldn't write to is reported before anything is changed.
    let children = zfs(&["list", "-H", "-r", "-o", "name", &parent]);
    let tablespace =
        children.lines().find(|name| name.contains("/tablespace-")).expect("a tablespace");
    // zfs-fuse says `off` as long as the dataset is mounted.
    wait_until("it is unmounted", LIMIT, || try_zfs(&["unmount", tablespace]).is_ok());
    zfs(&["set", "readonly=on", tablespace]);
    let assert_refused = |has: &str, hint: &str| {
        for more in [&["--dry-run"][..], &[]] {
            let more = [&delta[..], more].concat();
            let outcome = lockstep.run(&restore_arguments(&second, &to, &more));
            assert_eq!(outcome.code, Some(exit::REFUSED), "{}", outcome.describe());
            let hint = format!("`zfs set {hint} {tablespace}`");
            assert_said(&outcome, &[&format!("\"{tablespace}\" has {has}"), &hint]);
            assert!(control.exists(), "{}", outcome.describe());
        }
    };
    assert_refused("readonly=on", "readonly=off");
    zfs(&["inherit", "readonly", tablespace]);
    zfs(&["set", "canmount=off", tablespace]);
    assert_refused("canmount=off", "canmount=on");

    // Clones are made in the same way as new datasets.
    let clone = fixture.target("clone");
    kill("restore.held", &restore_arguments(&second, &clone, &[]));
    let all = zfs(&["list", "-H", "-o", "canmount,mountpoint", "-r", &pool]);
    let place = clone.join("data").display().to_string();
    assert!(all.lines().any(|line| line == format!("noauto\t{place}")), "{all}");
    assert!(!clone.join("data/global/pg_control").exists());
    lockstep.restore(&second, &clone, &[]);
    let all = zfs(&["list", "-H", "-o", "canmount,mountpoint", "-r", &pool]);
    assert!(all.lines().any(|line| line == format!("on\t{place}")), "{all}");
}

/// Datasets that were received completely stay and aren't received again: after a kill, a hang-up, and with a backup
/// in between.
#[test]
fn datasets_that_are_whole_are_gone_on_with() {
    let (fixture, _) = with_set("label");
    let lockstep = with_repository(&fixture);
    let set = lockstep.backup("label").id;
    let parent = format!("{}/back", fixture.pools[0].name);
    let to = fixture.target("r");
    let form = ["--from", "repository", "--as", "zfs", "--dataset", &parent];
    let delta = [&form[..], &["--delta"]].concat();
    let to_step = |step: &str, more: &[&str]| {
        let hooks = Hooks::holding(&fixture, step);
        let arguments = restore_arguments(&set, &to, more);
        let mut program = lockstep.clone().with_steps(&hooks.steps).spawn(&arguments);
        hooks.steps.wait_reached(step, &mut program);
        program
    };
    let journals = || {
        let mut all = entries(&fixture.state.join("clusters/main/restores"));
        all.retain(|path| path.extension().is_some_and(|end| end == "json"));
        all.len()
    };
    let there = || match try_zfs(&["list", "-H", "-r", "-o", "name", &parent]) {
        Ok(listed) => listed.lines().skip(1).map(str::to_owned).collect::<Vec<_>>(),
        Err(_) => Vec::new(),
    };
    // If none is complete, nothing stays.
    let mut program = to_step("restore.fetched", &form);
    program.kill();
    program.wait(LIMIT);
    lockstep.expect(exit::DONE, &["backup", "--no-ship"]);
    assert!(there().is_empty() && !to.exists() && journals() == 0);

    // A step at which several are complete, not only pg_wal's, which is made first.
    let hooks = Hooks::new(&fixture);
    let hooked = lockstep.clone().with_steps(&hooks.steps);
    hooked.expect(exit::DONE, &restore_arguments(&set, &to, &form));
    discard(&fixture, &to, &parent);
    let mut all: Vec<_> = (1..=4).map(|n| format!("restore.received-{n}")).collect();
    all.sort_by_key(|step| hooks.steps.reached(step));
    let step = &all[2];
    for signal in [Signal::KILL, Signal::HUP] {
        let program = to_step(step, &form);
        let kept: Vec<_> = there().into_iter().filter(|name| !name.contains("receiving")).collect();
        program.signal(signal);
        let outcome = program.wait(LIMIT);
        match signal {
            Signal::HUP => {
                assert_eq!(outcome.code, Some(exit::INTERRUPTED), "{}", outcome.describe());
                let rid = format!("`zfs destroy -r {parent}; rm -r ");
                assert_said(&outcome, &["What was received stays", "--delta continues", &rid]);
                assert_eq!(journals(), 0, "{}", outcome.describe());
            }
            _ => assert_eq!(journals(), 1),
        }
        let next = lockstep.expect(exit::DONE, &["backup", "--no-ship"]);
        if signal == Signal::KILL {
            assert_said(&next, &["a restore was cut off", "--delta continues with it"]);
        }
        assert_eq!(there(), kept, "{signal:?}: {}", next.describe());
        assert!(kept.len() >= 2, "{kept:?}");
        let checked = lockstep.run(&["check"]).stdout;
        assert!(!checked.contains("unfinished"), "{checked}");
        assert!(!to.join("data/global/pg_control").exists(), "a server would start");
        for dataset in &kept {
            zfs(&["set", "test:kept=yes", dataset]);
        }
        let refused = lockstep.expect(exit::REFUSED, &restore_arguments(&set, &to, &form));
        assert_said(&refused, &["exists already", "--delta"]);
        let dry = [&delta[..], &["--dry-run"]].concat();
        let planned = lockstep.expect(exit::DONE, &restore_arguments(&set, &to, &dry));
        let words = format!("dataset {} is there", kept[0]);
        for words in ["would go on with what an unfinished restore", &words] {
            assert!(planned.stdout.contains(words), "{}", planned.describe());
        }
        // Interrupted once more.
        let mut program = to_step("restore.control", &delta);
        program.kill();
        program.wait(LIMIT);
        let restored = lockstep.restore_and_start(&set, &to, &delta);
        let rows = "SELECT (SELECT sum(n) FROM one) || ' ' || (SELECT sum(n) FROM two)";
        assert_eq!(restored.server().value("postgres", rows), "1 2", "{signal:?}");
        restored.server().stop(Stop::Fast);
        for dataset in &kept {
            assert_eq!(property(dataset, "test:kept"), "yes", "{dataset} was received again");
        }
        discard(&fixture, &to, &parent);
    }
}

/// A pool that doesn't know a property value of the original's: what was received stays, and the problem is reported.
#[test]
fn a_property_that_the_target_does_not_take_is_no_reason_to_throw_it_away() {
    let (fixture, _) = with_set("label");
    let lockstep = with_repository(&fixture);
    // Like zstd for a pool without it.
    for dataset in &fixture.datasets {
        zfs(&["set", "compression=zle", dataset]);
    }
    let set = lockstep.backup("label").id;
    let old = format!("{}-old", fixture.pools[0].name);
    let image = fixture.root().join("old.img");
    fs::File::create(&image).and_then(|file| file.set_len(1 << 30)).expect("a sparse file");
    let image = image.to_str().expect("UTF-8");
    must(&mut command("zpool", ["create", "-o", "version=19", "-m", "none", &old, image]));
    let to = fixture.target("old");
    let parent = format!("{old}/r");
    let form = ["--from", "repository", "--as", "zfs", "--dataset", &parent, "--start"];
    let outcome = lockstep.expect(exit::DONE, &restore_arguments(&set, &to, &form));
    let data = format!("{parent}/data");
    let takes = format!("\"{data}\" doesn't accept its original's compression=zle");
    assert_said(&outcome, &[&takes, &format!("`zfs set compression=… {data}`")]);
    let server = Cluster::running_in(
        &fs::canonicalize(to.join("data")).expect("it is there"),
        &fixture.cluster.bin,
        &to.join("log/server.log"),
    );
    assert_eq!(server.value("postgres", "SELECT sum(n) FROM two"), "2");
    server.stop(Stop::Fast);
    discard(&fixture, &to, &parent);
    must(&mut command("zpool", ["destroy", &old]));
}

/// A process that restore_command leaves running keeps recovery's namespace, and with it the datasets: it is named.
#[test]
fn what_a_restore_command_leaves_running_is_named() {
    let (fixture, set) = with_set("label");
    let to = fixture.target("left");
    let end = |command_line: &str| {
        let found = run(&mut command("pgrep", ["-fx", command_line])).stdout;
        found.lines().for_each(|pid| drop(run(&mut command("kill", [pid]))));
    };
    let leaves = "setsid sleep 615 >/dev/null 2>&1 & false";
    let more = ["--start", "--restore-command", leaves];
    let outcome = fixture.lockstep().expect(exit::DONE, &restore_arguments(&set, &to, &more));
    let named = ["left running by recovery", "(sleep 615)", "are busy"];
    assert_said(&outcome, &named);
    end("sleep 615");
    fixture.discard_restored(&to, &set);

    // If the restore is interrupted, such a process keeps its clones from being destroyed; they are once it has gone.
    let leaves = "setsid sleep 616 >/dev/null 2>&1 & sleep 617";
    let more = ["--start", "--restore-command", leaves];
    let mut program = fixture.lockstep().spawn(&restore_arguments(&set, &to, &more));
    wait_until("recovery asks for a segment", LIMIT, || {
        assert!(program.is_running(), "it didn't wait");
        run(&mut command("pgrep", ["-fx", "sleep 616"])).ok()
    });
    program.signal(Signal::INT);
    let outcome = program.wait(LIMIT);
    assert_eq!(outcome.code, Some(exit::INTERRUPTED), "{}", outcome.describe());
    let named = ["left for the next start to remove: mounted in another", "(sleep 616)"];
    assert_said(&outcome, &named);
    end("sleep 61[67]");
    fixture.discard_set(&fixture.lockstep().backup("label").id);
    assert_nothing_remains(&fixture, &[], "once it is gone");
}

/// When the snapshot is taken, an index on an unlogged table is being built: it has a main fork, and its init fork
/// comes with the WAL.
fn an_unlogged_index_is_being_built(major: u32) {
    let fixture = Fixture::new(two_pools_four_datasets().major(major));
    let lockstep = with_repository(&fixture);
    let cluster = &fixture.cluster;
    cluster.execute(&[
        "CREATE UNLOGGED TABLE u TABLESPACE ts2 AS SELECT n FROM generate_series(1, 10) n",
        "CREATE FUNCTION waits(int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS 'BEGIN PERFORM pg_advisory_xact_lock(7); RETURN $1; END'",
    ]);
    let mut holder = cluster.connect("postgres");
    holder.batch_execute("SELECT pg_advisory_lock(7)").expect("nobody has it");
    let steps = Steps::new(fixture.root().join("steps"));
    steps.hold("backup.layout");
    let set = std::thread::scope(|scope| {
        let building =
            scope.spawn(|| cluster.execute(&["CREATE INDEX ui ON u (waits(n)) TABLESPACE ts1"]));
        wait_until("the index is being built", LIMIT, || {
            let waiting =
                "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted";
            cluster.value("postgres", waiting) == "1"
        });
        let mut running = lockstep.clone().with_steps(&steps).spawn(&["--json", "backup"]);
        steps.wait_reached("backup.layout", &mut running);
        holder.batch_execute("SELECT pg_advisory_unlock(7)").expect("it has it");
        building.join().expect("the index can be built");
        steps.release("backup.layout");
        let outcome = running.wait(LIMIT);
        assert!(outcome.ok(), "{}", outcome.describe());
        json_of(&outcome)["set"].as_str().expect("an id").to_owned()
    });
    let assert_works = |server: &Cluster, what: &str| {
        assert_eq!(server.value("postgres", "SELECT count(*) FROM u"), "0", "{what}");
        server.execute(&["INSERT INTO u VALUES (1)", "CHECKPOINT"]);
        let found = "SET enable_seqscan = off; SELECT waits(n) FROM u WHERE waits(n) = 1";
        server.execute(&[found]);
    };
    let parent = format!("{}/r", fixture.pools[0].name);
    let forms = [
        ("clones", vec![]),
        ("files", vec!["--from", "repository", "--as", "files"]),
        ("zfs", vec!["--from", "repository", "--as", "zfs", "--dataset", &parent]),
    ];
    for (form, more) in forms {
        let directory = fixture.target(form);
        let restored = lockstep.restore_and_start(&set, &directory, &more);
        assert_works(restored.server(), form);
        let log = fs::read_to_string(directory.join("log/server.log")).expect("its log");
        let met = log.matches(": File exists").count();
        assert_eq!(met, 1, "{major} {form}: {log}");
        restored.server().stop(Stop::Fast);
        match form {
            "zfs" => discard(&fixture, &directory, &parent),
            _ => fixture.discard_restored(&directory, &set),
        }
    }
    let clone = lockstep.clone_create("dev", &["--set", &set]);
    assert_works(clone.server(), "a clone");
    lockstep.expect(exit::DONE, &["clone", "destroy", "dev"]);
}

#[test]
fn an_unlogged_index_is_being_built_14() {
    an_unlogged_index_is_being_built(14);
}

#[test]
fn an_unlogged_index_is_being_built_17() {
    an_unlogged_index_is_being_built(17);
}
