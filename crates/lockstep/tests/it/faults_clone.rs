//! Throwaway servers: interrupted at each step, several at once, and what a replayed CREATE TABLESPACE does to the
//! live cluster on the same host: nothing. The tests also show that it would do harm without the mount namespace.

use crate::support::cluster::{Cluster, Stop};
use crate::support::command::{command, give_to_postgres, must, wait_until};
use crate::support::faults::{
    Hooks, assert_nothing_remains, assert_restorable, assert_said, differences, entries, kill_at,
    restore_arguments, server_by_hand, signal_at, walk,
};
use crate::support::fixture::Fixture;
use crate::support::layout::two_pools_four_datasets;
use crate::support::lockstep::{LIMIT, Lockstep, Set, exit, json_of, toml_string};
use crate::support::pools::{destroy as destroy_dataset, patiently, zfs};
use crate::support::workspace::processes_of;
use rustix::process::Signal;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

fn quiet() -> Fixture {
    // What a checkpoint or a vacuum writes would look like damage done by a clone.
    let layout = two_pools_four_datasets().archive().setting("autovacuum", "off");
    let fixture = Fixture::new(layout.setting("checkpoint_timeout", "1h"));
    fixture.row_in_each_tablespace();
    fixture
}

const ROWS: &str = "SELECT (SELECT sum(n) FROM one) || ' ' || (SELECT sum(n) FROM two)";

/// SIGKILL and a signal at every step of `clone create`, SIGKILL at every step of `clone destroy`.
#[test]
fn ended_at_each_step() {
    let fixture = quiet();
    let lockstep = fixture.lockstep();
    let set = lockstep.backup("ordered").id;
    let (create, destroy) = (["clone", "create", "dev"], ["clone", "destroy", "dev"]);
    let hooks = Hooks::new(&fixture);
    hooks.lockstep().expect(exit::DONE, &create);
    let creating = hooks.steps.all_reached();
    let hooks = Hooks::new(&fixture);
    hooks.lockstep().expect(exit::DONE, &destroy);
    let destroying = hooks.steps.all_reached();
    println!("create: {}; destroy: {}", creating.join(" "), destroying.join(" "));
    assert!(creating.len() >= 10 && destroying.len() >= 3, "is it built with its test hooks?");
    assert_nothing_remains(&fixture, &[], "a clone destroyed");
    let postmaster = fixture.cluster.postmaster();
    for (number, step) in creating.iter().enumerate() {
        kill_at(&fixture, step, &create);
        if number % 2 == 0 {
            // What a user would try next: the same name again.
            lockstep.clone_create("dev", &[]);
            lockstep.expect(exit::DONE, &destroy);
        } else {
            lockstep.restore(&set, &fixture.target("next"), &[]);
            fixture.discard_restored(&fixture.target("next"), &set);
        }
        assert_nothing_remains(&fixture, &[], &format!("killed at {step}, next start"));
        let listed = lockstep.json(&["clone", "list"]);
        assert_eq!(
            listed["clones"].as_array().map(Vec::len),
            Some(0),
            "killed at {step}: {listed}"
        );
        let signal = if number % 2 == 0 { Signal::INT } else { Signal::TERM };
        let (_, outcome) = signal_at(&fixture, step, signal, &create);
        let after = format!("{signal:?} at {step}");
        assert_eq!(outcome.code, Some(exit::INTERRUPTED), "{after}: {}", outcome.describe());
        assert_nothing_remains(&fixture, &[], &after);
    }
    for step in &destroying {
        lockstep.clone_create("dev", &[]);
        let hooks = kill_at(&fixture, step, &destroy);
        // Destroying again finishes what was begun; if it was finished, there is nothing to destroy.
        let done = hooks.steps.reached("clone.destroy-done").is_some();
        lockstep.expect(if done { exit::USAGE } else { exit::DONE }, &destroy);
        assert_nothing_remains(&fixture, &[], &format!("killed at {step}, destroyed again"));
    }
    assert_eq!(fixture.cluster.postmaster(), postmaster, "PostgreSQL runs on");
    let clone = lockstep.clone_create("dev", &["--set", &set]);
    assert_eq!(clone.server().value("postgres", ROWS), "1 2");
    lockstep.expect(exit::DONE, &destroy);
}

/// A signal that comes before the server has written its postmaster.pid: only its process is known by then.
#[test]
fn ended_while_its_server_begins() {
    let fixture = quiet();
    fixture.lockstep().backup("label");
    let (bin, real) = (fixture.owned("bin"), &fixture.cluster.bin);
    for program in entries(real) {
        let name = program.file_name().expect("a program has a name");
        if name != "postgres" {
            symlink(&program, bin.join(name)).expect("a link can be made");
        }
    }
    // In the server's namespace /tmp can be written to.
    let begins = PathBuf::from(format!("/tmp/lockstep-begins-{}", std::process::id()));
    let script = format!(
        "#!/bin/sh\nif [ \"$1\" = -D ]; then\n  : > {}\n  i=0\n  while [ $i -lt 600 ]; do sleep 0.1; i=$((i + 1)); done\nfi\nexec {} \"$@\"\n",
        begins.display(),
        real.join("postgres").display()
    );
    let slow = bin.join("postgres");
    fs::write(&slow, script).expect("it can be written");
    fs::set_permissions(&slow, fs::Permissions::from_mode(0o755)).expect("it is ours");
    let config = fixture.root().join("slow.toml");
    let text = fs::read_to_string(fixture.config()).expect("the configuration");
    fs::write(&config, text.replace(&toml_string(real), &toml_string(&bin))).expect("written");
    let lockstep = Lockstep::new(&config, real);
    for signal in [Signal::INT, Signal::TERM] {
        let program = lockstep.spawn(&["clone", "create", "dev"]);
        wait_until("the server begins", LIMIT, || begins.exists());
        program.signal(signal);
        let outcome = program.wait(LIMIT);
        assert_eq!(outcome.code, Some(exit::INTERRUPTED), "{}", outcome.describe());
        assert!(!outcome.stderr.contains("left for the next start"), "{}", outcome.describe());
        assert_nothing_remains(&fixture, &[], &format!("{signal:?} while its server begins"));
        fs::remove_file(&begins).expect("it is there");
    }
}

/// Two clones at the same time are two servers, and either one can be destroyed first.
#[test]
fn several_clones() {
    let fixture = quiet();
    let lockstep = fixture.lockstep();
    let set = lockstep.backup("label").id;
    for older_first in [true, false] {
        let older = lockstep.clone_create("older", &[]);
        let newer = lockstep.clone_create("newer", &["--set", &set]);
        for clone in [&older, &newer] {
            assert_eq!(clone.server().value("postgres", ROWS), "1 2");
            clone.server().execute(&[
                "INSERT INTO one VALUES (10)",
                "INSERT INTO two VALUES (10)",
                "CHECKPOINT",
            ]);
        }
        assert_eq!(
            fixture.cluster.value("postgres", ROWS),
            "1 2",
            "a clone wrote to the live cluster"
        );

        let taken = lockstep.expect(exit::USAGE, &["clone", "create", "older"]);
        assert_said(&taken, &["error: ", "clone \"older\"", "hint: ", "clone destroy older"]);
        let listed = lockstep.json(&["clone", "list"]);
        let names: Vec<_> = listed["clones"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|clone| (clone["name"].as_str(), clone["running"].as_bool()))
            .collect();
        assert_eq!(names, [(Some("newer"), Some(true)), (Some("older"), Some(true))], "{listed}");

        let (first, second, stays) =
            if older_first { ("older", "newer", &newer) } else { ("newer", "older", &older) };
        lockstep.expect(exit::DONE, &["clone", "destroy", first]);
        assert_eq!(stays.server().value("postgres", ROWS), "11 12", "{second} outlives {first}");
        // It doesn't matter whether the server was stopped or crashed.
        if older_first {
            stays.server().stop(Stop::Fast)
        } else {
            stays.server().kill()
        }
        let listed = lockstep.json(&["clone", "list"]);
        assert_eq!(listed["clones"][0]["running"].as_bool(), Some(false), "{listed}");
        let checked = lockstep.run(&["check"]);
        assert!(
            checked.stdout.contains(&format!("clone \"{second}\" doesn't run; to have it again")),
            "{}",
            checked.describe()
        );
        if older_first {
            assert_not_gone_while_renamed(&fixture, &lockstep, second);
        }
        lockstep.expect(exit::DONE, &["clone", "destroy", second]);
        assert_nothing_remains(&fixture, &[], "both clones destroyed");
    }
    let unknown = lockstep.expect(exit::USAGE, &["clone", "destroy", "older"]);
    assert_said(&unknown, &["error: ", "no clone \"older\"", "hint: "]);

    // The same name, twice at the same time.
    let step = "restore.prepared";
    let hooks = Hooks::holding(&fixture, step);
    let first = hooks.run_to(step, &["clone", "create", "twice"]);
    let second = lockstep.expect(exit::LOCKED, &["clone", "create", "twice"]);
    assert_said(&second, &["error: ", &format!("process {}", first.id())]);
    // Another name doesn't wait, and doesn't take the first clone for an unfinished one.
    lockstep.clone_create("once", &[]);
    hooks.steps.release(step);
    let first = first.wait(LIMIT);
    assert_eq!(first.code, Some(exit::DONE), "{}", first.describe());
    lockstep.expect(exit::DONE, &["clone", "destroy", "twice"]);
    lockstep.expect(exit::DONE, &["clone", "destroy", "once"]);
    assert_nothing_remains(&fixture, &[], "all clones destroyed");
}

/// While one `clone destroy` is held up, another destroys the clone, and one of its name is made: that stays, and is known.
#[test]
fn another_of_its_name_stays() {
    let fixture = quiet();
    let lockstep = fixture.lockstep();
    lockstep.backup("label");
    lockstep.clone_create("dev", &[]);
    let (step, destroy) = ("clone.destroy-found", ["clone", "destroy", "dev"]);
    let hooks = Hooks::holding(&fixture, step);
    let held_up = hooks.run_to(step, &destroy);
    lockstep.expect(exit::DONE, &destroy);
    let newer = lockstep.clone_create("dev", &[]);
    hooks.steps.release(step);
    let late = held_up.wait(LIMIT);
    assert_eq!(late.code, Some(exit::FAILED), "{}", late.describe());
    assert_said(&late, &["error: ", "destroyed by another command", "hint: ", "clone list"]);
    assert_eq!(newer.server().value("postgres", ROWS), "1 2");
    let listed = lockstep.json(&["clone", "list"]);
    assert_eq!(listed["clones"][0]["name"], "dev", "{listed}");
    lockstep.expect(exit::DONE, &destroy);
    assert_nothing_remains(&fixture, &[], "both destroyed");
}

/// Somebody has renamed one of a stopped clone's datasets: perhaps to keep it.
fn assert_not_gone_while_renamed(fixture: &Fixture, lockstep: &Lockstep, clone: &str) {
    let mut all = fixture.clones().into_iter().map(|found| found.name);
    let dataset = all.find(|name| name.ends_with("tablespace-16384")).expect("a tablespace's");
    let kept = format!("{}/kept", dataset.split('/').next().expect("a pool"));
    patiently("zfs", &["rename", &dataset, &kept], || ()).expect("it is idle");
    let refused = lockstep.expect(exit::FAILED, &["clone", "destroy", clone]);
    let said = format!("\"{dataset}\" was renamed, and \"{kept}\" carries its mark");
    assert_said(&refused, &[&said, "hint: ", "zfs inherit lockstep:restore"]);
    let listed = lockstep.json(&["clone", "list"]);
    assert_eq!(listed["clones"][0]["name"], clone, "{listed}");
    patiently("zfs", &["rename", &kept, &dataset], || ()).expect("it is idle");
}

/// `zfs promote` of a clone's datasets takes along the snapshots of its set and of all older ones.
#[test]
fn a_promoted_clone_goes_once_its_snapshots_are_back() {
    let fixture = quiet();
    let lockstep = fixture.lockstep();
    let [older, newer] = [(); 2].map(|()| lockstep.backup("label").id);
    lockstep.clone_create("dev", &[]);
    let originals: Vec<_> = fixture
        .clones()
        .into_iter()
        .map(|clone| {
            zfs(&["promote", &clone.name]);
            clone.origin.split_once('@').expect("it is a snapshot").0.to_owned()
        })
        .collect();
    let checked = lockstep.expect(exit::PROBLEMS, &["check"]);
    assert!(!checked.stdout.contains("was renamed"), "{}", checked.describe());
    let failed = lockstep.expect(exit::FAILED, &["clone", "destroy", "dev"]);
    assert!(!failed.stderr.contains("zfs destroy"), "{}", failed.describe());
    for original in &originals {
        let way_out = format!("zfs promote {original}");
        assert_said(&failed, &[&format!("`{way_out}`")]);
        assert!(checked.stdout.contains(&way_out), "{way_out}: {}", checked.describe());
        zfs(&["promote", original]);
    }
    for set in [&older, &newer] {
        assert_restorable(&fixture, set);
    }
    lockstep.expect(exit::DONE, &["clone", "destroy", "dev"]);
    assert_nothing_remains(&fixture, &[], "destroyed after it was promoted");
}

/// While a pool is away, nobody can tell that the clone's datasets are gone: they come back with it.
#[test]
fn a_clone_whose_pool_is_away_is_not_called_gone() {
    let fixture = quiet();
    let lockstep = fixture.lockstep();
    lockstep.backup("label");
    let destroy = ["clone", "destroy", "dev"];
    let lost = ["clone", "destroy", "dev", "--lost"];
    let (away, images) = (&fixture.pools[1].name, &fixture.pools[1].image);
    let folder = images.parent().and_then(Path::to_str).expect("the harness' own paths are UTF-8");
    lockstep.clone_create("dev", &[]).server().kill();
    fixture.cluster.stop(Stop::Fast);
    patiently("zpool", &["export", away], || ()).expect("it is idle");
    let refused = lockstep.expect(exit::FAILED, &destroy);
    let words = format!("pool \"{away}\" isn't imported");
    let way = format!("hint: zpool import {away}");
    assert_said(
        &refused,
        &["\"dev\" can't be destroyed", &words, &way, "clone destroy dev --lost"],
    );
    let listed = lockstep.json(&["clone", "list"]);
    assert_eq!(listed["clones"][0]["name"].as_str(), Some("dev"), "{listed}");
    must(&mut command("zpool", ["import", "-d", folder, away]));
    assert_eq!(fixture.clones().len(), 4, "nothing was changed");
    lockstep.expect(exit::DONE, &destroy);
    assert_nothing_remains(&fixture, &[], "with both pools");

    // Nobody should have to keep the record of a pool that is gone for good.
    fixture.cluster.start();
    lockstep.clone_create("dev", &[]).server().kill();
    fixture.cluster.stop(Stop::Fast);
    patiently("zpool", &["export", away], || ()).expect("it is idle");
    let given_up = lockstep.expect(exit::DONE, &lost);
    assert_said(&given_up, &[&words, "if it comes back"]);
    assert_eq!(lockstep.json(&["clone", "list"])["clones"], serde_json::json!([]));
    must(&mut command("zpool", ["import", "-d", folder, away]));
    let left = fixture.clones();
    assert_eq!(left.len(), 2, "{left:?}");
    left.iter().for_each(|clone| destroy_dataset(&clone.name));
}

/// Two clusters have a clone of one name: what is printed for one must not destroy the other's.
#[test]
fn printed_commands_name_the_cluster_where_there_are_several() {
    let fixture = quiet();
    fixture.lockstep().backup("label");
    let path = fixture.config();
    let alone = fs::read_to_string(&path).expect("the configuration");
    let nowhere = toml_string(&fixture.root().join("nowhere"));
    let both = format!(
        "default_cluster = \"other\"\n{alone}\n[clusters.other]\ndata_directory = {nowhere}\n"
    );
    fs::write(&path, &both).expect("it can be written");
    let lockstep = fixture.lockstep();
    let made = lockstep.expect(exit::DONE, &["--cluster", "main", "clone", "create", "dev"]);
    let printed = made.stdout.lines().find_map(|line| line.strip_prefix("when you are done: "));
    let printed = printed.expect("it says how to destroy it");
    assert_eq!(printed, "lockstep --cluster main clone destroy dev");
    let again = lockstep.expect(exit::USAGE, &["--cluster", "main", "clone", "create", "dev"]);
    assert_said(&again, &[printed]);
    let unknown =
        ["--cluster", "main", "prune", "--local", "--set", "20260101T000000Z-aaaa", "--dry-run"];
    let unknown = lockstep.expect(exit::USAGE, &unknown);
    assert_said(&unknown, &["hint: `lockstep --cluster main list`"]);
    let typed: Vec<&str> = printed.split(' ').skip(1).collect();
    lockstep.expect(exit::DONE, &typed);
    // With one cluster the name would say nothing.
    fs::write(&path, &alone).expect("it can be written");
    let made = lockstep.expect(exit::DONE, &["clone", "create", "dev"]);
    let printed = "when you are done: lockstep clone destroy dev\n";
    assert!(made.stdout.contains(printed), "{}", made.describe());
    lockstep.expect(exit::DONE, &["clone", "destroy", "dev"]);
    assert_nothing_remains(&fixture, &[], "at the end");
}

/// A folder for a tablespace, next to ts1's files on the same dataset.
fn place(fixture: &Fixture, name: &str) -> PathBuf {
    let path = fixture.mnt().join("ts1").join(name);
    fs::create_dir(&path).expect("a folder can be made beside a tablespace");
    give_to_postgres(&path);
    path
}

/// Makes a tablespace with a table of one row, and waits until all of it is on disk.
fn create_tablespace(fixture: &Fixture, name: &str) -> PathBuf {
    let path = place(fixture, name);
    fixture.cluster.execute(&[
        &format!("CREATE TABLESPACE {name} LOCATION '{}'", path.display()),
        &format!("CREATE TABLE in_{name} (n int) TABLESPACE {name}"),
        &format!("INSERT INTO in_{name} VALUES (7)"),
        &format!("SELECT pg_create_restore_point('after {name}')"),
        "CHECKPOINT",
    ]);
    path
}

/// An ordered set whose WAL creates a tablespace: after the data was frozen, but before pg_wal is.
fn set_with_new_tablespace(fixture: &Fixture, name: &str) -> (Set, PathBuf) {
    let step = "backup.floor";
    let hooks = Hooks::holding(fixture, step);
    let program = hooks.run_to(step, &["--json", "backup", "--strategy", "ordered"]);
    let path = create_tablespace(fixture, name);
    hooks.steps.release(step);
    let taken = program.wait(LIMIT);
    assert_eq!(taken.code, Some(exit::DONE), "{}", taken.describe());
    (Set::of(&json_of(&taken)), path)
}

/// Ends the current segment and waits until it is archived.
fn archive_everything(fixture: &Fixture) {
    let segment = fixture.cluster.value("postgres", "SELECT pg_walfile_name(pg_switch_wal())");
    wait_until("the last segment is archived", LIMIT, || fixture.archive.join(&segment).exists());
}

fn restore_command(fixture: &Fixture) -> String {
    format!("cp {}/%f %p", fixture.archive.display())
}

/// Waits for the end of recovery: a server started by hand accepts connections as soon as it is consistent, before
/// everything is replayed.
fn wait_for_the_end_of_recovery(server: &Cluster) {
    wait_until("recovery has ended", LIMIT, || {
        server.value("postgres", "SELECT pg_is_in_recovery()") == "f"
    });
}

/// Starts a clone as `check` says after a reboot, outside of its namespace, and writes to its tablespace; `place` is the
/// original's.
#[track_caller]
fn started_outside(fixture: &Fixture, lockstep: &Lockstep, server: &Cluster, place: &Path) {
    let ts3 = server.value("postgres", "SELECT oid FROM pg_tablespace WHERE spcname = 'ts3'");
    server.stop(Stop::Fast);
    let link = server.data.join("pg_tblspc").join(ts3);
    let own = fs::read_link(&link).expect("a link");
    // In clones that older versions made, it leads to the original's.
    for (target, words) in [(place, "start no server there"), (&*own, "start it with pg_ctl")] {
        fs::remove_file(&link).expect("the test may");
        symlink(target, &link).expect("the test may");
        let checked = lockstep.run(&["check"]);
        assert!(checked.stdout.contains(words), "{}", checked.describe());
    }
    let by_hand =
        Cluster { log: fixture.root().join("log").join("clone-by-hand.log"), ..server.clone() };
    by_hand.start();
    // Its socket is where the configuration says now.
    let server = Cluster::running_in(&by_hand.data, &by_hand.bin, &by_hand.log);
    assert_eq!(server.value("postgres", "SELECT sum(n) FROM in_ts3"), "107");
    server.execute(&["INSERT INTO in_ts3 VALUES (1000)", "CHECKPOINT"]);
}

/// The path of a new tablespace is known from the set's WAL or from the live cluster: the clone gets its own folder
/// there, with the data in it.
#[test]
fn replayed_create_tablespace_leaves_the_live_one_alone() {
    let fixture = quiet();
    let lockstep = fixture.lockstep();
    let older = lockstep.backup("label").id;
    let (set, path) = set_with_new_tablespace(&fixture, "ts3");
    archive_everything(&fixture);
    fixture.cluster.execute(&["CHECKPOINT"]);
    let live = [path, fixture.tablespace("ts1"), fixture.tablespace("ts2")];
    let before = live.each_ref().map(|path| walk(path));
    assert!(before[0].len() > 3, "the new tablespace has files: {:?}", before[0].keys());

    let command = restore_command(&fixture);
    let archive = ["--set", older.as_str(), "--restore-command", &command];
    for (what, more) in
        [("the set's own WAL", &["--set", set.id.as_str()][..]), ("the archive", &archive)]
    {
        let clone = lockstep.clone_create("dev", more);
        let server = clone.server();
        assert_eq!(server.value("postgres", "SELECT sum(n) FROM in_ts3"), "7", "{what}");
        server.execute(&[
            "INSERT INTO in_ts3 VALUES (100)",
            "INSERT INTO one VALUES (100)",
            "CREATE TABLE more (n int) TABLESPACE ts3",
            "CHECKPOINT",
        ]);
        assert_eq!(server.value("postgres", "SELECT sum(n) FROM in_ts3"), "107", "{what}");
        for (path, before) in live.iter().zip(&before) {
            assert_eq!(
                differences(before, &walk(path)),
                Vec::<PathBuf>::new(),
                "{what}: a clone touched {path:?}"
            );
        }
        started_outside(&fixture, &lockstep, server, &live[0]);
        for (path, before) in live.iter().zip(&before) {
            assert_eq!(
                differences(before, &walk(path)),
                Vec::<PathBuf>::new(),
                "{what}: a clone that was started by hand touched {path:?}"
            );
        }
        lockstep.expect(exit::DONE, &["clone", "destroy", "dev"]);
        assert_nothing_remains(&fixture, &[], what);
        for (path, before) in live.iter().zip(&before) {
            assert_eq!(
                differences(before, &walk(path)),
                Vec::<PathBuf>::new(),
                "{what}: destroying touched {path:?}"
            );
        }
    }

    // A restored cluster leaves its namespace once it has recovered, but keeps its own folder for the tablespace.
    let to = fixture.target("stays");
    let restored = lockstep.restore_and_start(&set.id, &to, &[]);
    let server = restored.server();
    assert_eq!(server.value("postgres", "SELECT sum(n) FROM in_ts3"), "7");
    let location = server.value(
        "postgres",
        "SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname = 'ts3'",
    );
    assert!(location.starts_with(to.to_str().expect("UTF-8")), "ts3 is at {location}");
    server.execute(&["INSERT INTO in_ts3 VALUES (100)", "CHECKPOINT"]);
    server.stop(Stop::Fast);
    for (path, before) in live.iter().zip(&before) {
        assert_eq!(
            differences(before, &walk(path)),
            Vec::<PathBuf>::new(),
            "a restore touched {path:?}"
        );
    }
    fixture.discard_restored(&to, &set.id);

    // The live cluster still reads from disk what it wrote.
    fixture.cluster.stop(Stop::Fast);
    fixture.cluster.start();
    assert_eq!(fixture.cluster.value("postgres", "SELECT sum(n) FROM in_ts3"), "7");

    // This proves that the comparison would notice: the same set, started by hand without a namespace, replays CREATE
    // TABLESPACE into the live folder. This cluster is lost now.
    fixture.cluster.stop(Stop::Fast);
    let before = walk(&live[0]);
    let by_hand = server_by_hand(&fixture, &lockstep.restore(&set.id, &to, &[]).data);
    by_hand.start();
    wait_for_the_end_of_recovery(&by_hand);
    let harm = differences(&before, &walk(&live[0]));
    by_hand.stop(Stop::Immediate);
    assert!(!harm.is_empty(), "without a namespace nothing happened: this test proves nothing");
    fixture.discard_restored(&to, &set.id);
}

/// Killed after recovery, while the server is still in its namespace: its links lead to the live tablespaces, so it
/// mustn't be kept as a cluster. Killed once the links are right, it is one.
#[test]
fn a_restore_killed_around_its_move_never_reaches_the_live_tablespaces() {
    let fixture = quiet();
    let lockstep = fixture.lockstep();
    let (set, path) = set_with_new_tablespace(&fixture, "ts3");
    fixture.cluster.execute(&["CHECKPOINT"]);
    let before = walk(&path);
    let to = fixture.target("killed");
    let port = crate::support::fixture::free_port().to_string();
    let arguments = restore_arguments(&set.id, &to, &["--start", "--port", &port]);
    kill_at(&fixture, "restore.recovered", &arguments);
    assert!(!processes_of(&to).is_empty(), "its server runs");
    // Following its links, it would write to the live cluster's files.
    let data = fs::canonicalize(to.join("data")).expect("it is there");
    let leads_to = |data: &std::path::Path| {
        let links = fs::read_dir(data.join("pg_tblspc")).expect("it is there").flatten();
        links.filter_map(|link| fs::read_link(link.path()).ok()).any(|target| target == path)
    };
    assert!(leads_to(&data), "then this test proves nothing");
    let next = lockstep.expect(exit::DONE, &["--json", "backup"]);
    assert_said(&next, &["removing what an unfinished restore left: dataset "]);
    assert!(processes_of(&to).is_empty() && !to.exists(), "{}", next.describe());
    fixture.discard_set(json_of(&next)["set"].as_str().expect("an id"));

    kill_at(&fixture, "restore.moved", &arguments);
    let next = lockstep.expect(exit::DONE, &["--json", "backup"]);
    assert_said(&next, &["is a cluster of its own by now"]);
    fixture.discard_set(json_of(&next)["set"].as_str().expect("an id"));
    let data = fs::canonicalize(to.join("data")).expect("it stays");
    assert!(!leads_to(&data), "its links lead to the live cluster's tablespace");
    let server = server_by_hand(&fixture, &data);
    server.start();
    wait_for_the_end_of_recovery(&server);
    assert_eq!(server.value("postgres", "SELECT sum(n) FROM in_ts3"), "7");
    server.execute(&["INSERT INTO in_ts3 VALUES (100)", "CHECKPOINT"]);
    server.stop(Stop::Fast);
    assert_eq!(differences(&before, &walk(&path)), Vec::<PathBuf>::new(), "{path:?} was touched");
    fixture.discard_restored(&to, &set.id);
}

/// At its target, a restored server waits in its namespace or is shut down there; its next start is outside of it.
#[test]
fn a_restore_that_waits_at_its_target_leads_to_its_own_tablespaces() {
    let fixture = quiet();
    let lockstep = fixture.lockstep();
    let (set, path) = set_with_new_tablespace(&fixture, "ts3");
    fixture.cluster.execute(&["CHECKPOINT"]);
    let before = walk(&path);
    for action in ["pause", "shutdown"] {
        let to = fixture.target(action);
        let target = ["--target-name", "after ts3", "--target-action", action, "--start"];
        let restored = lockstep.restore(&set.id, &to, &target);
        let links = fs::read_dir(restored.data.join("pg_tblspc")).expect("it is there").flatten();
        for link in links {
            let leads = fs::read_link(link.path()).expect("a link");
            assert!(leads.starts_with(&to), "{action}: {:?} leads to {leads:?}", link.path());
        }
        if action == "pause" {
            let server = restored.server();
            assert_eq!(server.value("postgres", "SELECT sum(n) FROM in_ts3"), "7");
            server.value("postgres", "SELECT pg_wal_replay_resume()");
            wait_for_the_end_of_recovery(server);
            server.execute(&["INSERT INTO in_ts3 VALUES (100)", "CHECKPOINT"]);
            server.stop(Stop::Fast);
            let server = server_by_hand(&fixture, &restored.data);
            server.start();
            assert_eq!(server.value("postgres", "SELECT sum(n) FROM in_ts3"), "107");
            server.execute(&["INSERT INTO in_ts3 VALUES (1000)", "CHECKPOINT"]);
            server.stop(Stop::Fast);
        }
        assert_eq!(differences(&before, &walk(&path)), Vec::<PathBuf>::new(), "{action}");
        fixture.discard_restored(&to, &set.id);
    }
}

/// A path that isn't known in advance: created and dropped again before the clone is made, with the WAL only in the
/// archive. Somebody else has files there now. Recovery fails, and the files are unchanged.
#[test]
fn replayed_create_tablespace_at_an_unknown_path() {
    let fixture = quiet();
    let lockstep = fixture.lockstep();
    let set = lockstep.backup("label").id;
    let path = create_tablespace(&fixture, "gone");
    let table = fixture.cluster.value("postgres", "SELECT pg_relation_filepath('in_gone')");
    fixture.cluster.execute(&["DROP TABLE in_gone", "DROP TABLESPACE gone"]);
    archive_everything(&fixture);
    // pg_tblspc/OID/PG_15_…/DATABASE/FILE: another cluster may well have a file with that name.
    let names: Vec<_> = table.split('/').skip(2).collect();
    let foreign = path.join(names.join("/"));
    fs::create_dir_all(path.join(names[..2].join("/"))).expect("the test may make it");
    fs::write(&foreign, "another cluster's table").expect("the test may write there");
    (0..3).for_each(|n| give_to_postgres(&path.join(names[..=n].join("/"))));
    let before = walk(&path);

    let command = restore_command(&fixture);
    let failed = lockstep.expect(
        exit::FAILED,
        &["clone", "create", "dev", "--set", &set, "--restore-command", &command],
    );
    assert_said(
        &failed,
        &["error: ", &path.display().to_string(), "Read-only file system", "hint: "],
    );
    assert_eq!(
        differences(&before, &walk(&path)),
        Vec::<PathBuf>::new(),
        "a clone touched {path:?}"
    );
    assert_nothing_remains(&fixture, &[], "recovery failed in a clone");
    let to = fixture.target("fails");
    let more = ["--start", "--restore-command", command.as_str()];
    let failed = lockstep.expect(exit::FAILED, &restore_arguments(&set, &to, &more));
    assert_said(&failed, &["error: ", "Read-only file system", "hint: "]);
    assert_eq!(
        differences(&before, &walk(&path)),
        Vec::<PathBuf>::new(),
        "a restore touched {path:?}"
    );
    assert_nothing_remains(&fixture, &[], "recovery failed in a restore");
    assert!(processes_of(&to).is_empty());
    // Without that WAL, there is no such record.
    let clone = lockstep.clone_create("dev", &["--set", &set]);
    assert_eq!(clone.server().value("postgres", ROWS), "1 2");
    lockstep.expect(exit::DONE, &["clone", "destroy", "dev"]);

    // By hand, without a namespace, the same recovery overwrites the files.
    let more = ["--restore-command", command.as_str()];
    let by_hand = server_by_hand(&fixture, &lockstep.restore(&set, &to, &more).data);
    by_hand.start();
    wait_for_the_end_of_recovery(&by_hand);
    by_hand.stop(Stop::Immediate);
    assert!(
        fs::read(&foreign).ok() != Some(b"another cluster's table".to_vec()),
        "without a namespace nothing happened: this test proves nothing"
    );
    fixture.discard_restored(&to, &set);
}

/// After the set, a tablespace was dropped, another one made in its folder by a path over a symbolic link, and that
/// dropped too. At a target in between, the restored cluster's leads to its own folder.
#[test]
fn a_tablespace_made_by_another_path_to_its_folder_leads_to_the_restored_one() {
    let fixture = quiet();
    let lockstep = fixture.lockstep();
    let set = lockstep.backup("label").id;
    let (path, alias) = (fixture.tablespace("ts2"), fixture.mnt().join("alias"));
    std::os::unix::fs::symlink(&path, &alias).expect("its name is free");
    fixture.cluster.execute(&[
        "DROP TABLE two",
        "DROP TABLESPACE ts2",
        &format!("CREATE TABLESPACE again LOCATION '{}'", alias.display()),
        "CREATE TABLE in_again (n int) TABLESPACE again",
        "INSERT INTO in_again VALUES (7)",
        "SELECT pg_create_restore_point('again')",
        "DROP TABLE in_again",
        "DROP TABLESPACE again",
        &format!("CREATE TABLESPACE ts2 LOCATION '{}'", path.display()),
        "CREATE TABLE two (n int) TABLESPACE ts2",
        "CHECKPOINT",
    ]);
    archive_everything(&fixture);
    let before = walk(&path);
    let (to, command) = (fixture.target("alias"), restore_command(&fixture));
    let options = ["--target-name", "again", "--restore-command", &command];
    let restored = lockstep.restore_and_start(&set, &to, &options);
    let server = restored.server();
    assert_eq!(server.value("postgres", "SELECT sum(n) FROM in_again"), "7");
    server.execute(&["CREATE TABLE more (n int) TABLESPACE again", "CHECKPOINT"]);
    server.stop(Stop::Fast);
    assert_eq!(differences(&before, &walk(&path)), Vec::<PathBuf>::new(), "{path:?} was touched");
    fixture.discard_restored(&to, &set);
}

/// Nobody can connect to a server that was shut down, so no clone is made that is said to accept connections.
#[test]
fn a_clone_isn_t_shut_down_at_its_target() {
    let fixture = quiet();
    let lockstep = fixture.lockstep();
    let set = lockstep.backup("label").id;
    let create = ["clone", "create", "dev", "--set", &set, "--target-immediate"];
    let arguments = [&create[..], &["--target-action", "shutdown"]].concat();
    let refused = lockstep.expect(exit::USAGE, &arguments);
    assert_said(&refused, &["error: --target-action shutdown", "hint: ", "pause"]);
    assert_nothing_remains(&fixture, &[], "a clone that would be shut down");
}

/// pg_cron connects to where its table says: a clone's would run each job a second time, in the original. Its versions
/// before 1.6 know only the second of these settings.
#[test]
fn a_clone_does_not_run_jobs_in_the_original() {
    let fixture = quiet();
    let lockstep = fixture.lockstep();
    lockstep.backup("label");
    let clone = lockstep.clone_create("dev", &[]);
    let value = |name: &str| clone.server().value("postgres", &format!("SHOW {name}"));
    assert_eq!(value("cron.launch_active_jobs"), "off");
    assert_eq!(value("cron.use_background_workers"), "on");
    lockstep.expect(exit::DONE, &["clone", "destroy", "dev"]);
    assert_nothing_remains(&fixture, &[], "a clone that runs no jobs");
}
