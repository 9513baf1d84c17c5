//! A backup that is interrupted, or loses its server, its pool, its WAL or its layout: what it says, and that nothing
//! is left behind.

use crate::support::cluster::{Cluster, Stop};
use crate::support::command::{
    Running, as_postgres, command, give_to_postgres, must, run, wait_until,
};
use crate::support::faults::{
    Hooks, assert_nothing_remains, assert_restorable, assert_said, entries, kill_at,
    restore_arguments, signal_at, steps_of, wait_for_no_session,
};
use crate::support::fixture::{Fixture, free_port};
use crate::support::layout::{DatasetSpec, Layout, PoolSpec, one_pool, two_pools_four_datasets};
use crate::support::lockstep::{LIMIT, Lockstep, Set, exit, json_of};
use crate::support::pools::{path_with_turns, patiently, property, try_zfs, zfs};
use lockstep::error::Error;
use lockstep::postgres::row::column;
use std::fs;
use std::path::PathBuf;

use rustix::process::Signal;
use std::time::{Duration, Instant};

/// A cluster with a row in each tablespace. Only the tests write to it.
fn quiet(layout: Layout) -> Fixture {
    let fixture = Fixture::new(layout.setting("autovacuum", "off"));
    fixture.row_in_each_tablespace();
    fixture
}

/// Restores the set with a server and reads both tables.
#[track_caller]
fn assert_restores(fixture: &Fixture, set: &str) {
    let to = fixture.target(&format!("proof-{set}"));
    let restored = fixture.lockstep().restore_and_start(set, &to, &[]);
    let rows = "SELECT (SELECT sum(n) FROM one) || ' ' || (SELECT sum(n) FROM two)";
    assert_eq!(restored.server().value("postgres", rows), "1 2", "set {set}");
    restored.server().stop(Stop::Immediate);
    fixture.discard_restored(&to, set);
}

fn backup_arguments(strategy: &str) -> [&str; 4] {
    ["--json", "backup", "--strategy", strategy]
}

/// SIGKILL at every step, then SIGINT or SIGTERM at every step.
fn ended_at_each_step(strategy: &str) {
    let fixture = quiet(two_pools_four_datasets());
    let arguments = backup_arguments(strategy);
    let (steps, outcome) = steps_of(&fixture, &arguments, 12);
    let older = Set::of(&json_of(&outcome)).id;
    println!("{strategy}: {} steps: {}", steps.len(), steps.join(" "));
    let postmaster = fixture.cluster.postmaster();
    let mut survivor = None;
    for step in &steps {
        let known = fixture.lockstep().sets();
        let hooks = kill_at(&fixture, step, &arguments);
        wait_for_no_session(&fixture);
        assert_eq!(fixture.cluster.postmaster(), postmaster, "{step}: PostgreSQL runs on");
        let published = hooks.steps.reached("backup.published").is_some();
        let new = added(&known, &fixture.lockstep().sets());
        assert_eq!(new.len(), usize::from(published), "killed at {step}: {new:?}");
        // The next start.
        let next = fixture.lockstep().backup(strategy);
        assert_nothing_remains(&fixture, &[], &format!("killed at {step}, next start"));
        assert_restorable(&fixture, &older);
        assert_restorable(&fixture, &next.id);
        fixture.discard_set(&next.id);
        for set in new {
            assert_restorable(&fixture, &set);
            assert_complete(&fixture, &set);
            if let Some(former) = survivor.replace(set) {
                fixture.discard_set(&former);
            }
        }
    }
    for (number, step) in steps.iter().enumerate() {
        let known = fixture.lockstep().sets();
        let signal = if number % 2 == 0 { Signal::INT } else { Signal::TERM };
        let (hooks, outcome) = signal_at(&fixture, step, signal, &arguments);
        let published = hooks.steps.reached("backup.published").is_some();
        let expected = if published { exit::DONE } else { exit::INTERRUPTED };
        assert_eq!(outcome.code, Some(expected), "{signal:?} at {step}: {}", outcome.describe());
        let new = added(&known, &fixture.lockstep().sets());
        assert_eq!(new.len(), usize::from(published), "{signal:?} at {step}: {new:?}");
        if !published {
            assert_said(&outcome, &["error: interrupted", "hint: nothing is left of it"]);
        }
        // Immediately, without another start in between.
        assert_nothing_remains(&fixture, &[], &format!("{signal:?} at {step}"));
        new.iter().for_each(|set| fixture.discard_set(set));
    }
    assert_eq!(fixture.cluster.postmaster(), postmaster, "PostgreSQL runs on");
    assert_restores(&fixture, &older);
    assert_restores(&fixture, &survivor.expect("a kill after the manifest leaves a set"));
    assert_nothing_remains(&fixture, &[], "at the end");
}

fn added(before: &[String], after: &[String]) -> Vec<String> {
    after.iter().filter(|set| !before.contains(set)).cloned().collect()
}

/// Checks that the next start has marked the snapshots of a set whose backup was killed after its manifest was
/// written.
#[track_caller]
fn assert_complete(fixture: &Fixture, set: &str) {
    let suffix = format!("@lockstep-{set}");
    let snapshots: Vec<_> =
        fixture.snapshots().into_iter().filter(|name| name.ends_with(&suffix)).collect();
    assert_eq!(snapshots.len(), 4, "{snapshots:?}");
    for snapshot in snapshots {
        assert_eq!(property(&snapshot, "lockstep:state"), "complete", "{snapshot}");
    }
}

#[test]
fn label_ended_at_each_step() {
    ended_at_each_step("label");
}

#[test]
fn ordered_ended_at_each_step() {
    ended_at_each_step("ordered");
}

/// Starts a server that crashed, once its last backend is gone and init has reaped its postmaster: PostgreSQL takes a
/// dead postmaster that hasn't been reaped for a running one.
#[track_caller]
fn start_again(cluster: &Cluster) {
    let since = Instant::now();
    loop {
        let outcome = cluster.try_start();
        if outcome.ok() {
            return;
        }
        let log = cluster.log_tail();
        let words = ["pre-existing shared memory block", "\"postmaster.pid\" already exists"];
        let waits = words.iter().any(|words| log.contains(words));
        assert!(waits && since.elapsed() < LIMIT, "{}\n--- its log\n{log}", outcome.describe());
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// The server stops, crashes, or ends the program's session at several moments of a backup.
#[test]
fn server_lost_during_a_backup() {
    let fixture = quiet(two_pools_four_datasets());
    let older = fixture.lockstep().backup("label").id;
    let terminate = "SELECT count(*) FROM (SELECT pg_terminate_backend(pid, 20000) FROM pg_stat_activity \
                     WHERE application_name = 'lockstep') AS ended";
    type Fault = fn(&Cluster, &str);
    let faults: [(&str, Fault); 3] = [
        ("session terminated", |cluster, terminate| {
            assert_eq!(cluster.value("postgres", terminate), "1");
        }),
        ("server stopped", |cluster, _| cluster.stop(Stop::Fast)),
        ("server crashed", |cluster, _| cluster.kill()),
    ];
    for (strategy, step) in [
        ("label", "backup.started"),
        ("label", "backup.before-snapshot-2"),
        ("label", "backup.layout"),
        ("ordered", "backup.slot"),
        ("ordered", "backup.layout"),
    ] {
        for (what, fault) in faults {
            let hooks = Hooks::holding(&fixture, step);
            let program = hooks.run_to(step, &backup_arguments(strategy));
            fault(&fixture.cluster, terminate);
            hooks.steps.release(step);
            let outcome = program.wait(LIMIT);
            let after = format!("{what} at {step} of {strategy}");
            assert_eq!(outcome.code, Some(exit::FAILED), "{after}: {}", outcome.describe());
            assert_said(&outcome, &["error: "]);
            // A backend that briefly outlives a killed postmaster may still send a message.
            let words = match what {
                "server crashed" => &["unexpected postmaster exit", "connection closed"][..],
                _ => &["terminating connection due to administrator command"],
            };
            let said = words.iter().any(|words| outcome.stderr.contains(words));
            assert!(said, "{after}: none of {words:?} is said: {}", outcome.describe());
            assert_nothing_remains(&fixture, &[], &after);
            if !fixture.cluster.is_running() {
                start_again(&fixture.cluster);
                assert_nothing_remains(&fixture, &[], &format!("{after}, server started again"));
            }
        }
    }
    wait_for_no_session(&fixture);
    assert_restores(&fixture, &older);
    let newer = fixture.lockstep().backup("label").id;
    assert_restores(&fixture, &newer);
}

/// A full pool makes PostgreSQL PANIC, so no snapshot is taken in a pool with less than `min_free_mib`.
#[test]
fn pool_without_space() {
    let fixture = quiet(two_pools_four_datasets().pool_size(448 << 20));
    let older = fixture.lockstep().backup("label").id;
    let ts2 = fixture.datasets.iter().find(|name| name.ends_with("/ts2")).expect("a dataset ts2");
    let free = || property(ts2, "available").parse::<u64>().expect("a number of bytes");
    let ballast = fixture.tablespace("ts2").join("ballast");
    while free() > 250 << 20 {
        let more = fs::OpenOptions::new().create(true).append(true).open(&ballast);
        let written = more.and_then(|mut file| {
            std::io::Write::write_all(&mut file, &vec![0xA5; 16 << 20])?;
            file.sync_all()
        });
        written.expect("the pool isn't full yet");
    }
    for strategy in ["auto", "label", "ordered"] {
        let refused = fixture.lockstep().expect(exit::REFUSED, &["backup", "--strategy", strategy]);
        // pg_wal's dataset is in the same pool; either may be named.
        assert_said(&refused, &["error: dataset", &fixture.pools[1].name, "bytes left", "hint: "]);
        assert_nothing_remains(&fixture, &[], "refused for want of space");
    }
    // A server on clones would write to it too.
    let to = fixture.target("clones");
    let to = to.to_str().expect("the harness' own paths are UTF-8");
    for words in [&["clone", "create", "full"][..], &["restore", "latest", "--to", to, "--dry-run"]]
    {
        let refused = fixture.lockstep().expect(exit::REFUSED, words);
        assert_said(&refused, &["bytes left", "hint: free space"]);
    }
    let space = || {
        let checked = fixture.lockstep().run(&["check"]);
        let lines = checked.stdout.lines().filter(|line| line.contains(" space: "));
        (checked.code, lines.map(str::to_owned).collect::<Vec<_>>())
    };
    let (code, lines) = space();
    let is_told = lines.iter().any(|line| line.starts_with("ERROR") && line.contains("bytes left"));
    assert!(code == Some(exit::PROBLEMS) && is_told, "{lines:?}");
    fixture.cluster.execute(&["CREATE TABLE still_running (n int)", "CHECKPOINT"]);
    fs::remove_file(&ballast).expect("the ballast can be thrown off");
    wait_until("ZFS gives the space back", Duration::from_secs(60), || free() > 300 << 20);
    let (code, lines) = space();
    let warns =
        |words: &str| lines.iter().any(|line| line.starts_with("warning") && line.contains(words));
    // Less than four times min_free_mib.
    assert!(code == Some(exit::DONE) && warns("has only"), "{lines:?}");
    let newer = fixture.lockstep().backup("label").id;
    assert_restores(&fixture, &older);
    assert_restores(&fixture, &newer);
}

/// A third pool with one tablespace that no session has open.
fn with_pool_to_lose() -> Layout {
    let mut layout = two_pools_four_datasets();
    layout.pools.push(PoolSpec { label: "c".to_owned(), size: 1 << 30 });
    layout.datasets.push(DatasetSpec { pool: 2, name: "ts3".to_owned(), mount: "ts3".to_owned() });
    layout.tablespaces.push(("ts3".to_owned(), "ts3".to_owned()));
    layout
}

/// Removes the third pool while it is in use.
#[track_caller]
fn lose_pool(fixture: &Fixture) {
    let point = fixture.tablespace("ts3");
    must(&mut crate::support::command::command("umount", ["-l", point.to_str().expect("UTF-8")]));
    let name = fixture.pools[2].name.as_str();
    // zfs-fuse notices the end of a mount after a while, and until then refuses with various messages.
    let since = Instant::now();
    while let Err(error) = patiently("zpool", &["export", "-f", name], || ()) {
        assert!(since.elapsed() < Duration::from_secs(30), "{error}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[track_caller]
fn find_pool(fixture: &Fixture) {
    let images = fixture.root().join("images");
    let images = images.to_str().expect("the harness' own paths are UTF-8");
    if let Err(error) = patiently("zpool", &["import", "-d", images, &fixture.pools[2].name], || ())
    {
        panic!("{error}");
    }
    assert!(
        fixture.tablespace("ts3").join("PG_15_202209061").exists(),
        "the pool is back, its dataset isn't mounted"
    );
}

/// A pool disappears between two snapshots, before or after its own. What can be removed is removed at once, the rest
/// when the pool is back.
#[test]
fn pool_lost_between_two_snapshots() {
    let fixture = quiet(with_pool_to_lose());
    let older = fixture.lockstep().backup("ordered");
    let ts3 = older.volumes.iter().find(|volume| volume.dataset.ends_with("/ts3"));
    let order = ts3.expect("a volume for ts3").order;
    for strategy in ["label", "ordered"] {
        for (step, has_snapshot) in [("before", false), ("after", true)] {
            let step = format!("backup.{step}-snapshot-{order}");
            let after = format!("pool lost at {step} of {strategy}");
            let hooks = Hooks::holding(&fixture, &step);
            let program = hooks.run_to(&step, &backup_arguments(strategy));
            fixture.cluster.execute(&["CHECKPOINT"]);
            lose_pool(&fixture);
            hooks.steps.release(&step);
            let outcome = program.wait(LIMIT);
            assert!(
                matches!(outcome.code, Some(exit::FAILED | exit::REFUSED)),
                "{after}: {}",
                outcome.describe()
            );
            assert_said(&outcome, &["error: ", "ts3"]);
            // The other pools are clean at once, and no session is left.
            wait_for_no_session(&fixture);
            let left: Vec<_> =
                fixture.pools[..2].iter().flat_map(|pool| pool.snapshots()).collect();
            assert!(left.iter().all(|name| name.ends_with(&older.id)), "{after}: {left:?}");
            // Without the pool, a backup is refused or fails, but forgets nothing.
            let without = fixture.lockstep().run(&["backup", "--strategy", strategy]);
            assert!(
                matches!(without.code, Some(exit::FAILED | exit::REFUSED)),
                "{after}: {}",
                without.describe()
            );

            find_pool(&fixture);
            let orphans = fixture.pools[2].snapshots().len() - 1;
            assert_eq!(orphans, usize::from(has_snapshot), "{after}: what came back with the pool");
            let next = fixture.lockstep().backup(strategy).id;
            assert_nothing_remains(&fixture, &[], &format!("{after}, pool back, next start"));
            fixture.discard_set(&next);
        }
    }
    fixture.cluster.execute(&["CREATE TABLE three (n int) TABLESPACE ts3"]);
    assert_restores(&fixture, &older.id);
    let newer = fixture.lockstep().backup("label").id;
    assert_restores(&fixture, &newer);
}

/// Ends the segment that recovery would start in and deletes it, as if it had been recycled. The server continues in
/// the next one.
#[track_caller]
fn lose_first_segment(fixture: &Fixture) -> String {
    let name = fixture
        .cluster
        .value("postgres", "SELECT pg_walfile_name(redo_lsn) FROM pg_control_checkpoint()");
    fixture.cluster.execute(&[
        "CREATE TABLE IF NOT EXISTS filler (n int)",
        "INSERT INTO filler VALUES (1)",
        "SELECT pg_switch_wal()",
        "INSERT INTO filler VALUES (2)",
    ]);
    let path = fixture.mnt().join("wal/pg_wal").join(&name);
    fs::remove_file(&path).unwrap_or_else(|error| panic!("cannot delete {path:?}: {error}"));
    name
}

#[test]
fn wal_segment_gone_before_it_was_taken() {
    let fixture = quiet(two_pools_four_datasets());
    let older = fixture.lockstep().backup("label").id;
    // An ordered set starts at the last checkpoint, which another try doesn't move: the segment stays lost.
    let step = "backup.before-snapshot-1";
    let hooks = Hooks::holding(&fixture, step);
    let program = hooks.run_to(step, &backup_arguments("ordered"));
    let segment = lose_first_segment(&fixture);
    hooks.steps.release(step);
    let refused = program.wait(LIMIT);
    assert_eq!(refused.code, Some(exit::REFUSED), "{}", refused.describe());
    assert_said(&refused, &["error: ", &segment, "gone", "hint: "]);
    let again = refused.stderr.matches("taking the set again").count();
    assert_eq!(again, 2, "three tries: {}", refused.describe());
    assert_nothing_remains(&fixture, &[], "refused for a lost segment");
    // After a checkpoint everything works again.
    fixture.cluster.execute(&["CHECKPOINT"]);
    let ordered = fixture.lockstep().backup("ordered");
    assert_eq!(ordered.tries, 1);

    // pg_backup_start makes its own checkpoint, so the second try of a label set begins after the gap.
    let step = "backup.started";
    let hooks = Hooks::holding(&fixture, step);
    let program = hooks.run_to(step, &backup_arguments("label"));
    let segment = lose_first_segment(&fixture);
    hooks.steps.release(step);
    let taken = program.wait(LIMIT);
    assert_eq!(taken.code, Some(exit::DONE), "{}", taken.describe());
    assert_said(&taken, &[&segment, "taking the set again"]);
    let label = Set::of(&json_of(&taken));
    assert_eq!(label.tries, 2, "{}", label.json);
    assert_nothing_remains(&fixture, &[], "taken at the second try");
    for set in [&older, &ordered.id, &label.id] {
        assert_restores(&fixture, set);
    }
}

/// Lets a backup run from try to try, and makes one of `changes` at the same step of each of the first tries.
#[track_caller]
fn backup_with_changes(
    fixture: &Fixture,
    strategy: &str,
    changes: &[Change],
) -> crate::support::command::Outcome {
    const HERE: &str = "backup.before-snapshot-2";
    const BEHIND: &str = "backup.after-snapshot-2";
    let hooks = Hooks::new(fixture);
    hooks.steps.hold(HERE);
    let mut program = hooks.lockstep().spawn(&backup_arguments(strategy));
    for (number, change) in changes.iter().enumerate() {
        hooks.steps.wait_reached(HERE, &mut program);
        hooks.forget(HERE);
        // Also held after the step, so that the step can be held again before it is reached again.
        hooks.steps.hold(BEHIND);
        change.make(fixture, number);
        hooks.steps.release(HERE);
        hooks.steps.wait_reached(BEHIND, &mut program);
        hooks.forget(BEHIND);
        if number + 1 < changes.len() {
            hooks.steps.hold(HERE);
        }
        hooks.steps.release(BEHIND);
    }
    program.wait(LIMIT)
}

/// What happens to the tablespaces in the middle of a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    Created,
    Dropped,
    Moved,
}

/// The path of one of the test's own tablespaces: next to ts1's files, on the same dataset.
fn place(fixture: &Fixture, name: &str) -> PathBuf {
    let path = fixture.mnt().join("ts1").join(name);
    if !path.exists() {
        fs::create_dir(&path).expect("a folder can be made beside a tablespace");
        give_to_postgres(&path);
    }
    path
}

fn create(fixture: &Fixture, name: &str) {
    let path = place(fixture, name);
    fixture.cluster.execute(&[&format!("CREATE TABLESPACE {name} LOCATION '{}'", path.display())]);
}

impl Change {
    fn make(self, fixture: &Fixture, number: usize) {
        match self {
            Change::Created => create(fixture, &format!("new{number}")),
            Change::Dropped => fixture.cluster.execute(&[&format!("DROP TABLESPACE old{number}")]),
            Change::Moved => {
                // As an administrator does it: first the files are moved, then the link.
                let oid = fixture.cluster.value(
                    "postgres",
                    &format!("SELECT oid FROM pg_tablespace WHERE spcname = 'old{number}'"),
                );
                let from = place(fixture, &format!("old{number}"));
                let to = place(fixture, &format!("moved{number}"));
                fs::remove_dir(&to).expect("it is new");
                fs::rename(&from, &to).expect("on the same dataset a folder can be renamed");
                let link = fixture.cluster.data.join("pg_tblspc").join(oid);
                fs::remove_file(&link).expect("a tablespace has a link");
                std::os::unix::fs::symlink(&to, &link).expect("a link can be made anew");
            }
        }
    }
}

#[test]
fn layout_changes_in_the_middle() {
    let fixture = quiet(two_pools_four_datasets());
    let older = fixture.lockstep().backup("label").id;
    for strategy in ["label", "ordered"] {
        for change in [Change::Created, Change::Dropped, Change::Moved] {
            let what = format!("{change:?} during {strategy}");
            (0..3).for_each(|number| create(&fixture, &format!("old{number}")));
            let once = backup_with_changes(&fixture, strategy, &[change]);
            assert_eq!(once.code, Some(exit::DONE), "{what} once: {}", once.describe());
            let set = Set::of(&json_of(&once));
            assert_eq!(set.tries, 2, "{what} once: {}", set.json);
            assert_nothing_remains(&fixture, &[], &format!("{what} once"));
            if change == Change::Created {
                assert_restores(&fixture, &set.id);
            }
            fixture.discard_set(&set.id);
            forget_tablespaces(&fixture);

            (0..3).for_each(|number| create(&fixture, &format!("old{number}")));
            let thrice = backup_with_changes(&fixture, strategy, &[change; 3]);
            assert_eq!(thrice.code, Some(exit::REFUSED), "{what} thrice: {}", thrice.describe());
            let word = format!("{change:?}").to_lowercase();
            assert_said(
                &thrice,
                &["error: ", "3 times in a row", "tablespace", &format!("was {word}"), "hint: "],
            );
            assert_nothing_remains(&fixture, &[], &format!("{what} thrice"));
            forget_tablespaces(&fixture);
        }
    }
    assert_restores(&fixture, &older);
}

/// The link has been read, but when its folder is looked up, that is gone.
#[test]
fn a_tablespace_is_dropped_while_it_is_looked_for() {
    let fixture = quiet(two_pools_four_datasets());
    create(&fixture, "old0");
    let step = "backup.parts";
    let hooks = Hooks::holding(&fixture, step);
    let program = hooks.run_to(step, &backup_arguments("label"));
    let folder = place(&fixture, "old0");
    fixture.cluster.execute(&["DROP TABLESPACE old0"]);
    fs::remove_dir(&folder).expect("a dropped tablespace's folder is empty");
    hooks.steps.release(step);
    let taken = program.wait(LIMIT);
    assert_eq!(taken.code, Some(exit::DONE), "{}", taken.describe());
    let folder = folder.display().to_string();
    assert_said(&taken, &["taking the set again", &folder, "was dropped"]);
    let set = Set::of(&json_of(&taken));
    assert_eq!(set.tries, 2, "{}", set.json);
    assert_nothing_remains(&fixture, &[], "taken at the second try");
    assert_restores(&fixture, &set.id);
}

/// As if a role was dropped under its session: the catalogs have NULL where they normally have a value.
#[test]
fn what_a_server_leaves_out_is_an_error_that_names_it() {
    let fixture = Fixture::new(one_pool());
    let statement = "SELECT NULL::boolean AS may_replicate, count(*) FROM pg_class";
    let row = fixture.cluster.connect("postgres").query_one(statement, &[]);
    let row = row.expect("the statement is right");
    let said = |error: Error| error.chain();
    let null = column::<bool>(&row, "may_replicate").map_err(said);
    assert!(null.as_ref().is_err_and(|chain| chain.contains("no good may_replicate")), "{null:?}");
    assert_eq!(column::<Option<bool>>(&row, 0).map_err(said), Ok(None));
    let other = column::<bool>(&row, 1).map_err(said);
    assert!(other.as_ref().is_err_and(|chain| chain.contains("no good count")), "{other:?}");
    let none = column::<bool>(&row, "nothing").map_err(said);
    assert!(none.as_ref().is_err_and(|chain| chain.contains("nothing")), "{none:?}");
}

/// Drops all tablespaces except the layout's own, with their folders.
fn forget_tablespaces(fixture: &Fixture) {
    let others = "SELECT spcname FROM pg_tablespace WHERE spcname ~ '^(old|new)'";
    for name in fixture.cluster.column("postgres", others) {
        fixture.cluster.execute(&[&format!("DROP TABLESPACE {name}")]);
    }
    for path in entries(&fixture.mnt().join("ts1")) {
        if path != fixture.tablespace("ts1") {
            fs::remove_dir(&path).expect("a dropped tablespace's folder is empty");
        }
    }
}

/// The second of two backups is told who holds the lock; the first isn't disturbed.
#[test]
fn locked_wrong_server_and_no_server() {
    let fixture = quiet(two_pools_four_datasets());
    let step = "backup.before-snapshot-2";
    let hooks = Hooks::holding(&fixture, step);
    let first: Running = hooks.run_to(step, &backup_arguments("label"));
    let second = fixture.lockstep().expect(exit::LOCKED, &["backup"]);
    let holder = format!("process {} (lockstep backup)", first.id());
    assert_said(&second, &["error: ", "\"main\"", &holder, "hint: "]);
    // Read-only commands are allowed meanwhile, and none of them takes the running backup for an unfinished one.
    for (words, code) in [("list", exit::DONE), ("plan", exit::DONE), ("check", exit::PROBLEMS)] {
        let seen = fixture.lockstep().expect(code, &[words]);
        assert!(!seen.stdout.contains("cut off"), "{}", seen.describe());
        // There is no set yet, and that is the only finding.
        assert!(!seen.stdout.contains("snapshots: set"), "{}", seen.describe());
    }
    hooks.steps.release(step);
    let first = first.wait(LIMIT);
    assert_eq!(first.code, Some(exit::DONE), "{}", first.describe());
    let set = Set::of(&json_of(&first)).id;
    assert_restores(&fixture, &set);

    // The configured address leads to another cluster.
    let other = other_cluster(&fixture);
    let wrong = |host: &Cluster| {
        let text = fixture.configuration("auto", true);
        let text = text
            .replace(&format!("port = {}", fixture.cluster.port), &format!("port = {}", host.port));
        let path = fixture.root().join("wrong.toml");
        fs::write(&path, text).expect("a configuration can be written");
        Lockstep::new(&path, &fixture.cluster.bin)
    };
    for words in [&["plan"][..], &["backup"], &["backup", "--strategy", "ordered"]] {
        let refused = wrong(&other).expect(exit::REFUSED, words);
        assert_said(&refused, &["error: ", "another cluster", "system identifier", "hint: "]);
    }
    let checked = wrong(&other).expect(exit::PROBLEMS, &["check"]);
    assert!(checked.stdout.contains("another cluster"), "{}", checked.describe());
    other.stop(Stop::Immediate);

    // Nobody answers there although the cluster runs: label is refused, and ordered says that it has no connection.
    let refused = wrong(&other).expect(exit::REFUSED, &["backup", "--strategy", "label"]);
    assert_said(&refused, &["error: strategy label", "no connection", "hint: "]);
    let snapshots = fixture.snapshots();
    assert!(snapshots.iter().all(|name| name.ends_with(&set)), "{snapshots:?}");
    assert_nothing_remains(&fixture, &[], "refused backups");
    // A set is better than none, but isn't what was intended: everybody is told, and the set records it.
    let lost = wrong(&other);
    let address =
        format!("host \"{}\", port {}, user \"postgres\"", other.socket.display(), other.port);
    let taken = lost.expect(exit::PROBLEMS, &["--json", "backup"]);
    assert_said(&taken, &["can't be connected to", &address, "strategy ordered instead"]);
    let without = Set::of(&json_of(&taken));
    assert_eq!(without.strategy, "ordered");
    assert_eq!(without.json["warnings"][0]["problem"], true, "{}", without.json);
    for words in [&["plan"][..], &["backup", "--dry-run"], &["show", "latest"]] {
        let said = lost.expect(exit::DONE, words);
        assert!(said.stdout.contains("PROBLEM: the server runs and can't"), "{}", said.describe());
    }
    let checked = lost.expect(exit::PROBLEMS, &["check"]);
    assert!(checked.stdout.contains(&address), "{}", checked.describe());
    // A strategy that was explicitly requested is no surprise.
    let meant = lost.backup("ordered");
    assert_restores(&fixture, &without.id);
    assert_restores(&fixture, &meant.id);
}

/// A server in a container: its process can't be seen from here (in this test Lockstep sees only its own), but it
/// answers. If it doesn't, a set without the intended connection is a problem.
#[test]
fn a_server_in_another_pid_namespace() {
    let fixture = quiet(two_pools_four_datasets());
    let contained = |config: &std::path::Path, words: &[&str]| {
        let mut unshare = command("unshare", ["--pid", "--fork", "--mount-proc"]);
        unshare.arg(env!("CARGO_BIN_EXE_lockstep")).arg("--config").arg(config).args(words);
        run(unshare.env("PATH", path_with_turns()))
    };
    let taken = contained(&fixture.config(), &["--json", "backup"]);
    assert_eq!(taken.code, Some(exit::DONE), "{}", taken.describe());
    let set = Set::of(&json_of(&taken));
    assert_eq!(set.strategy, "label", "{}", set.json);
    let text = fixture.configuration("auto", true);
    let lost = fixture.root().join("lost.toml");
    let port = format!("port = {}", fixture.cluster.port);
    fs::write(&lost, text.replace(&port, "port = 1")).expect("a configuration can be written");
    let taken = contained(&lost, &["--json", "backup"]);
    assert_eq!(taken.code, Some(exit::PROBLEMS), "{}", taken.describe());
    assert_said(&taken, &["pg_control says \"in production\"", "port 1", "ordered instead"]);
    // One that was shut down isn't asked.
    fixture.cluster.stop(Stop::Fast);
    assert_eq!(fixture.lockstep().backup("auto").strategy, "cold");
    fixture.cluster.start();
    assert_restores(&fixture, &set.id);
}

fn other_cluster(fixture: &Fixture) -> Cluster {
    let data = fixture.owned("other");
    let options = [
        "-D",
        data.to_str().expect("the harness' own paths are UTF-8"),
        "-A",
        "trust",
        "-U",
        "postgres",
        "--no-sync",
    ];
    must(&mut as_postgres(fixture.cluster.bin.join("initdb"), options));
    let port = free_port();
    let socket = fixture.cluster.socket.display();
    let settings = format!(
        "port = {port}\nunix_socket_directories = '{socket}'\nlisten_addresses = ''\nshared_buffers = '16MB'\n"
    );
    crate::support::by_hand::write_as_postgres(&data.join("postgresql.auto.conf"), &settings);
    let log = fixture.root().join("log/other.log");
    let other = Cluster { data, port, log, ..fixture.cluster.clone() };
    other.start();
    other
}

/// The parts of a set, damaged in each way: the set is refused and named, and other sets aren't affected.
#[test]
fn damaged_sets() {
    let fixture = quiet(two_pools_four_datasets());
    let whole = fixture.lockstep().backup("label");
    let damaged = fixture.lockstep().backup("label");
    let folder = fixture.state.join("clusters/main/sets").join(&damaged.id);
    let manifest = folder.join("manifest.json");
    let bytes = fs::read(&manifest).expect("a set has a manifest");
    let mut wounds: Vec<(String, Vec<u8>)> = Vec::new();
    for at in [0, 1, bytes.len() / 4, bytes.len() / 2, bytes.len() - 3] {
        wounds.push((format!("cut at {at}"), bytes[..at].to_vec()));
    }
    // Inside a digit of the first LSN, of a GUID, of the checksum; and wherever.
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let inside =
        |key: &str| text.find(key).unwrap_or_else(|| panic!("no {key} in {text}")) + key.len() + 5;
    for at in
        [inside("\"start_lsn\""), inside("\"guid\""), inside("\"checksum\""), bytes.len() / 3, 2]
    {
        let mut flipped = bytes.clone();
        flipped[at] ^= 1;
        wounds.push((format!("bit flipped at {at}"), flipped));
    }
    let to = fixture.target("damaged");
    let restore = restore_arguments(&damaged.id, &to, &[]);
    for (what, wound) in &wounds {
        fs::write(&manifest, wound).expect("the test may write there");
        let refused = fixture.lockstep().expect(exit::REFUSED, &restore);
        assert_said(&refused, &["error: ", &damaged.id, "manifest.json", "hint: "]);
        let listed = fixture.lockstep().expect(exit::PROBLEMS, &["list"]);
        assert!(listed.stdout.contains(&whole.id), "{what}: {}", listed.describe());
        assert_said(&listed, &[&damaged.id]);
        let checked = fixture.lockstep().expect(exit::PROBLEMS, &["check"]);
        assert!(
            checked.stdout.contains(&format!("set {}", damaged.id)),
            "{what}: {}",
            checked.describe()
        );
        // The newest set is damaged: an older one isn't silently used instead.
        fixture.lockstep().expect(exit::REFUSED, &["show", "latest"]);
        assert_restorable(&fixture, &whole.id);
    }
    fs::write(&manifest, &bytes).expect("the test may write there");
    assert_restorable(&fixture, &damaged.id);

    for name in ["backup_label", "tablespace_map"] {
        let path = folder.join(name);
        let kept = fs::read(&path).expect("a label set has it");
        let mut flipped = kept.clone();
        flipped[kept.len() / 2] ^= 4;
        for wound in [None, Some(&flipped)] {
            match wound {
                None => fs::remove_file(&path).expect("the test may delete there"),
                Some(wound) => fs::write(&path, wound).expect("the test may write there"),
            }
            let refused = fixture.lockstep().expect(exit::REFUSED, &restore);
            assert_said(&refused, &["error: ", &damaged.id, name, "hint: "]);
            let checked = fixture.lockstep().expect(exit::PROBLEMS, &["check"]);
            assert!(
                checked.stdout.contains(&format!("set {}", damaged.id)),
                "{name}: {}",
                checked.describe()
            );
            assert_restorable(&fixture, &whole.id);
        }
        fs::write(&path, &kept).expect("the test may write there");
    }
    assert_restorable(&fixture, &damaged.id);

    // A manifest that is gone: its snapshots stay and are reported.
    fs::rename(&manifest, folder.join("aside")).expect("the test may rename there");
    let checked = fixture.lockstep().run(&["check"]);
    assert!(checked.stdout.contains(&damaged.volumes[0].snapshot), "{}", checked.describe());
    let next = fixture.lockstep().backup("label").id;
    let snapshots = fixture.snapshots();
    for volume in &damaged.volumes {
        assert!(snapshots.contains(&volume.snapshot), "{} was removed", volume.snapshot);
    }
    fixture.discard_set(&next);
    fs::rename(folder.join("aside"), &manifest).expect("the test may rename there");

    // A snapshot that somebody destroyed despite the hold.
    let snapshot = &damaged.volumes[2].snapshot;
    assert!(try_zfs(&["destroy", snapshot]).is_err(), "{snapshot} isn't held");
    zfs(&["release", "lockstep", snapshot]);
    zfs(&["destroy", snapshot]);
    let refused = fixture.lockstep().expect(exit::REFUSED, &restore);
    assert_said(&refused, &["error: ", &damaged.id, snapshot, "hint: "]);
    let checked = fixture.lockstep().expect(exit::PROBLEMS, &["check"]);
    assert!(checked.stdout.contains(snapshot), "{}", checked.describe());
    assert!(!to.exists() && fixture.clones().is_empty(), "a refused restore left something");
    assert_restores(&fixture, &whole.id);
}

/// A spread checkpoint takes minutes, and systemd kills what needs more than 90 seconds to stop.
#[test]
fn a_signal_ends_it_while_a_spread_checkpoint_is_waited_for() {
    let fixture = quiet(one_pool().setting("checkpoint_timeout", "15min"));
    let config = fixture.root().join("spread.toml");
    let text = fixture.configuration("label", true);
    fs::write(&config, text.replace("\"fast\"", "\"spread\"")).expect("it can be written");
    let lockstep = Lockstep::new(&config, &fixture.cluster.bin);
    for signal in [Signal::INT, Signal::TERM] {
        // This many dirty pages make the checkpoint long.
        fixture.cluster.execute(&[
            "DROP TABLE IF EXISTS much",
            "CREATE TABLE much AS SELECT repeat(md5(n::text), 30) FROM generate_series(1, 20000) n",
        ]);
        let mut program = lockstep.spawn(&["backup"]);
        let asked = "SELECT count(*)::text FROM pg_stat_activity WHERE query LIKE '%pg_backup_start(%' AND pid <> pg_backend_pid()";
        wait_until("it waits for its checkpoint", LIMIT, || {
            assert!(program.is_running(), "it didn't wait");
            fixture.cluster.value("postgres", asked) == "1"
        });
        let began = Instant::now();
        program.signal(signal);
        let outcome = program.wait(LIMIT);
        assert_eq!(outcome.code, Some(exit::INTERRUPTED), "{}", outcome.describe());
        // The rest of the checkpoint would take minutes.
        assert!(began.elapsed() < Duration::from_secs(60), "{}", outcome.describe());
        assert_nothing_remains(&fixture, &[], "interrupted while it waited");
    }
    fixture.lockstep().backup("label");
}

/// The user's words are kept wherever they can be stored.
#[test]
fn a_label_that_the_database_has_no_characters_for() {
    let fixture = quiet(one_pool());
    let latin = "CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0";
    fixture.cluster.execute(&[latin]);
    let config = fixture.root().join("latin.toml");
    let text = fixture.configuration("label", true);
    fs::write(&config, text.replace("os_user", "dbname = \"latin\"\nos_user")).expect("written");
    let lockstep = Lockstep::new(&config, &fixture.cluster.bin);
    let set = Set::of(&lockstep.json(&["backup", "--label", "前 upgrade"]));
    assert_eq!(lockstep.json(&["show", &set.id])["label"], "前 upgrade", "{}", set.json);
    assert_restores(&fixture, &set.id);
}
