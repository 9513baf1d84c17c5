//! Backups of standbys: hot and silent, cascading, promoted meanwhile, with a primary without full_page_writes, on a
//! new timeline, short of WAL; and the proof that pg_control must be read a second time.

use crate::support::by_hand::{ByHand, write_as_postgres};
use crate::support::checker::Checker;
use crate::support::cluster::Stop;
use crate::support::command::{Running, wait_until};
use crate::support::fixture::assert_clean;
use crate::support::layout::{one_dataset, two_pools_four_datasets};
use crate::support::ledger::{Expected, Ledger, Writers};
use crate::support::load::{Load, Plan};
use crate::support::lockstep::{LIMIT, Lockstep, Set, Steps, exit, json_of};
use crate::support::standby::Standby;
use pgfiles::backup_label::{BackupFrom, BackupLabel};
use pgfiles::control_file::ControlFile;
use std::fs;
use std::thread;
use std::time::Duration;

const SCALE: u32 = 2;

/// Tables, a ledger that is being written, and a standby that has all of it.
fn loaded(standby: &Standby) -> (Ledger, Writers, Load) {
    standby.primary.pgbench_tables(SCALE, "ts1", "ts2");
    let ledger = Ledger::create(&standby.primary, "ts1", "ts2");
    let writers = ledger.start(&standby.primary);
    let load =
        Load::start(&standby.primary, &["ts1", "ts2", "pg_default"], &Plan::to_be_followed(7));
    ledger.wait_for(60);
    standby.catch_up();
    (ledger, writers, load)
}

#[track_caller]
fn assert_restores(standby: &Standby, set: &Set, ledger: &Ledger, more: &[&str]) {
    let expected = Expected { by_lsn: set.floor_lsn, ..Expected::default() };
    let directory = standby.fixture.target(&set.id);
    let restored = standby.fixture.lockstep().restore_and_start(&set.id, &directory, more);
    let verdict =
        Checker::new(SCALE).with_ledger(ledger, expected).check_and_stop(restored.server());
    verdict.assert_right(&format!("set {} ({})", set.id, set.strategy));
    assert!(verdict.ledger_rows > 50, "hardly any rows: {}", verdict.ledger_rows);
    standby.fixture.discard_restored(&directory, &set.id);
}

/// A set that is taken, but with a problem to report.
#[track_caller]
fn with_a_problem(lockstep: &Lockstep, words: &str) -> Set {
    let outcome = lockstep.expect(exit::PROBLEMS, &["--json", "backup"]);
    let set = Set::of(&json_of(&outcome));
    let problem = &set.json["warnings"][0];
    assert_eq!(problem["problem"], true, "{}", set.json);
    assert!(problem["what"].to_string().contains(words), "{}", set.json);
    assert!(outcome.stderr.contains(words), "{}", outcome.describe());
    set
}

/// `label` and `ordered` with a connection, and the strategy chosen without one.
fn every_way(standby: &Standby, silent: &str) {
    let (ledger, writers, load) = loaded(standby);
    let asked = standby.fixture.lockstep();
    let taken = [asked.backup("auto"), asked.backup("ordered"), standby.silent().backup("auto")];
    let strategies: Vec<_> = taken.iter().map(|set| set.strategy.as_str()).collect();
    assert_eq!(strategies, ["label", "ordered", silent]);
    load.stop();
    writers.stop();
    assert_clean(&standby.fixture);
    for set in &taken {
        assert_restores(standby, set, &ledger, &[]);
    }
}

fn on_version(major: u32) {
    every_way(&Standby::new(two_pools_four_datasets().major(major)), "ordered");
}

#[test]
fn postgresql_14() {
    on_version(14);
}

#[test]
fn postgresql_15() {
    on_version(15);
}

#[test]
fn postgresql_16() {
    on_version(16);
}

#[test]
fn postgresql_17() {
    on_version(17);
}

#[test]
fn postgresql_18() {
    on_version(18);
}

#[test]
fn a_standby_of_a_standby() {
    every_way(&Standby::cascading(two_pools_four_datasets()), "ordered");
}

/// A standby that streams from another one continues to stream when their primary is dead: its own claim to be
/// current is worth nothing.
#[test]
fn a_standby_of_a_standby_whose_primary_is_dead() {
    let standby = Standby::cascading(two_pools_four_datasets());
    standby.primary.execute(&["CREATE TABLE one (n int)"]);
    standby.catch_up();
    let asked = standby.with_primary();
    let age = |set: &Set| {
        let time = |name: &str| set.json[name].as_str().map(|text| text.parse().expect("a time"));
        let (data, begun): (Option<jiff::Timestamp>, _) = (time("data_at"), time("started_at"));
        begun.expect("it began").duration_since(data.expect("it says of when its data is"))
    };
    thread::sleep(Duration::from_secs(5));
    let set = Set::of(&asked.json(&["backup"]));
    assert!(age(&set).as_secs() < 4, "an idle primary's standby is current: {}", set.json);
    // Paused replay is reported.
    standby.fixture.cluster.execute(&["SELECT pg_wal_replay_pause()"]);
    let said = asked.run(&["backup", "--dry-run"]);
    assert!(said.stdout.contains("replay is paused"), "{}", said.describe());
    standby.fixture.cluster.execute(&["SELECT pg_wal_replay_resume()"]);
    standby.primary.stop(Stop::Immediate);
    let set = with_a_problem(&asked, "the standby's primary can't be asked");
    assert!(age(&set).as_secs() >= 5, "{}", set.json);
    let streams = "SELECT count(*) FROM pg_stat_wal_receiver WHERE status = 'streaming'";
    assert_eq!(standby.ask(streams).as_deref(), Some("1"), "it doesn't notice");
    let checked = asked.expect(exit::PROBLEMS, &["check"]);
    assert!(checked.stdout.contains("ERROR    primary: "), "{}", checked.describe());
    // Without `primary`, this can't be told from an idle primary, and that is reported.
    let unaware = standby.fixture.lockstep().expect(exit::DONE, &["backup"]);
    let words = "nobody notices that their primary is dead";
    let said = standby.fixture.lockstep().run(&["plan"]).stdout;
    assert!(said.contains(words) || unaware.stderr.contains(words), "{said}");
}

/// pg_wal shares its dataset with everything: it is copied.
#[test]
fn everything_on_one_dataset() {
    let standby = Standby::new(one_dataset());
    every_way(&standby, "atomic");
    promoted_without_a_checkpoint(&standby);
}

/// Until the checkpoint that follows a promotion, pg_control names the end of recovery, and PostgreSQL would call an
/// `atomic` set of that time consistent there, although it has pages that are newer.
fn promoted_without_a_checkpoint(standby: &Standby) {
    let cluster = &standby.fixture.cluster;
    let which = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'";
    let pid =
        cluster.value("postgres", which).parse().ok().and_then(rustix::process::Pid::from_raw);
    let signal = |signal| {
        rustix::process::kill_process(pid.expect("a process"), signal).expect("it is there");
    };
    signal(rustix::process::Signal::STOP);
    cluster.execute(&["SELECT pg_promote()", "CREATE TABLE since AS SELECT 1 AS n"]);
    let control = fs::read(cluster.data.join("global/pg_control")).expect("it can be read");
    let control = ControlFile::parse(&control).expect("it is whole");
    assert_eq!(
        (control.checkpoint_copy.timeline.get(), control.min_recovery_point_timeline),
        (1, 2)
    );
    let set = standby.fixture.lockstep().backup("atomic");
    signal(rustix::process::Signal::CONT);
    let of = |id: &str| {
        let shown = standby.fixture.lockstep().json(&["show", id]);
        (
            shown["postgres"]["timeline"].as_u64(),
            shown["postgres"]["history"][0]["timeline"].as_u64(),
        )
    };
    assert_eq!(of(&set.id), (Some(2), Some(1)), "it isn't one of the timeline that was left");
    let to = standby.fixture.target("promoted");
    let lockstep = standby.fixture.lockstep();
    // Along the old timeline, recovery would end before the set's newest pages.
    let path = to.to_str().expect("the harness' own paths are UTF-8");
    let along = ["restore", &set.id, "--to", path, "--start", "--target-timeline", "1"];
    let refused = lockstep.expect(exit::USAGE, &along);
    assert!(refused.stderr.contains("isn't on the way to timeline 1"), "{}", refused.describe());
    let restored = lockstep.restore_and_start(&set.id, &to, &["--target-immediate"]);
    assert_eq!(restored.server().value("postgres", "SELECT n FROM since"), "1");
    standby.fixture.discard_restored(&to, &set.id);
}

/// pg_control names a new timeline with the first page that is flushed on it. Before that, an `atomic` set would be
/// called one of the old timeline, beyond its end.
#[test]
fn a_new_timeline_on_which_nothing_was_flushed() {
    let standby = Standby::cascading(one_dataset());
    let middle = standby.middle.as_ref().expect("a cascade has one");
    standby.primary.execute(&["CREATE TABLE rows AS SELECT 1 AS n"]);
    standby.restartpoint();
    standby.primary.stop(Stop::Immediate);
    middle.execute(&["SELECT pg_promote()", "INSERT INTO rows VALUES (2)"]);
    let followed = || {
        let now = middle.value("postgres", "SELECT pg_current_wal_flush_lsn()");
        let followed = format!("SELECT pg_last_wal_replay_lsn() >= '{now}'");
        wait_until("the standby has followed", Duration::from_secs(60), || {
            standby.ask(&followed).as_deref() == Some("t")
        });
    };
    followed();
    let lockstep = standby.fixture.lockstep();
    let refused = lockstep.expect(exit::REFUSED, &["backup", "--strategy", "atomic"]);
    for words in ["timeline", "hint: take the backup again after a checkpoint"] {
        assert!(refused.stderr.contains(words), "{words}: {}", refused.describe());
    }
    middle.execute(&["CHECKPOINT"]);
    followed();
    standby.fixture.cluster.execute(&["CHECKPOINT"]);
    let set = lockstep.backup("atomic");
    let to = standby.fixture.target("followed");
    let restored = lockstep.restore_and_start(&set.id, &to, &[]);
    assert_eq!(restored.server().value("postgres", "SELECT sum(n) FROM rows"), "3");
    standby.fixture.discard_restored(&to, &set.id);
}

/// With hot_standby=off it accepts no connection at all, and the primary isn't asked anything.
#[test]
fn without_hot_standby() {
    let standby = Standby::new(two_pools_four_datasets());
    let (ledger, writers, load) = loaded(&standby);
    standby.setting("hot_standby", "off");
    standby.fixture.cluster.stop(Stop::Fast);
    // pg_ctl waits for a connection that is never accepted.
    let _ = standby.fixture.cluster.try_start();
    let set = with_a_problem(&standby.fixture.lockstep(), "can't be connected to: host ");
    assert_eq!(set.strategy, "ordered", "{}", set.json);
    load.stop();
    writers.stop();
    assert_restores(&standby, &set, &ledger, &[]);
    let refused =
        standby.fixture.lockstep().expect(exit::REFUSED, &["backup", "--strategy", "label"]);
    assert!(refused.stderr.contains("no connection"), "{}", refused.describe());
}

/// A standby that was shut down is cold; a cluster restored from it is a primary on its own timeline.
#[test]
fn shut_down() {
    let standby = Standby::new(two_pools_four_datasets());
    let (ledger, writers, load) = loaded(&standby);
    load.stop();
    writers.stop();
    standby.catch_up();
    standby.fixture.cluster.stop(Stop::Fast);
    let set = with_a_problem(&standby.fixture.lockstep(), "the standby is stopped");
    assert_eq!(set.strategy, "cold", "{}", set.json);
    let meant = standby.fixture.lockstep().backup("cold");
    assert_eq!(meant.json["warnings"][0]["problem"], serde_json::Value::Null, "{}", meant.json);
    let directory = standby.fixture.target("cold");
    let restored = standby.fixture.lockstep().restore_and_start(&set.id, &directory, &[]);
    let timeline = "SELECT timeline_id FROM pg_control_checkpoint()";
    restored.server().execute(&["CHECKPOINT"]);
    assert_eq!(restored.server().value("postgres", timeline), "2");
    let everything = Expected { none_after: Some(ledger.attempted()), ..Expected::default() };
    let checker = Checker::new(SCALE).with_ledger(&ledger, everything);
    checker.check_and_stop(restored.server()).assert_right("a standby shut down");
}

/// pg_rewind writes pg_control last. Until then, and for good if it is killed, pg_control says that the cluster is
/// shut down, while files are empty or half written.
#[test]
fn a_rewind_that_has_not_ended() {
    let standby = Standby::new(two_pools_four_datasets().setting("wal_keep_size", "1GB"));
    let cluster = &standby.fixture.cluster;
    standby.primary.execute(&[
        "CREATE TABLE filler AS SELECT g, repeat('x', 500) AS pad FROM generate_series(1, 40000) g",
    ]);
    standby.catch_up();
    cluster.execute(&["SELECT pg_promote()"]);
    cluster.execute(&["CREATE TABLE ours AS SELECT 1 AS n", "UPDATE filler SET pad = 'y'"]);
    cluster.stop(Stop::Fast);
    standby.primary.execute(&["UPDATE filler SET pad = 'z'", "CHECKPOINT"]);
    let lockstep = standby.fixture.lockstep();
    assert_eq!(lockstep.backup("cold").strategy, "cold");

    let first = cluster.data.join("global/pg_filenode.map");
    let time = || fs::metadata(&first).and_then(|found| found.modified()).expect("it is there");
    let was = time();
    let target = format!("--target-pgdata={}", cluster.data.display());
    let (host, port) = (standby.primary.socket.display(), standby.primary.port);
    let source = format!("--source-server=host={host} port={port} user=postgres dbname=postgres");
    let mut rewind = Running::start(&mut cluster.tool("pg_rewind", [target, source]));
    while time() == was && rewind.is_running() {}
    if !rewind.is_running() {
        panic!("it ended before it was held: {}", rewind.wait(LIMIT).describe());
    }
    rewind.signal(rustix::process::Signal::STOP);
    let refused = lockstep.expect(exit::REFUSED, &["backup"]);
    let words = format!("pg_rewind (process {}) is at work on", rewind.id());
    assert!(refused.stderr.contains(&words), "{}", refused.describe());
    rewind.kill();
    rewind.wait_or_kill(LIMIT);
    let refused = lockstep.expect(exit::REFUSED, &["backup"]);
    let words = "something has changed the files of the cluster since it was shut down";
    assert!(refused.stderr.contains(words), "{}", refused.describe());
}

/// Takes a backup that is held before its last snapshot of data, does something, and lets it finish.
#[track_caller]
fn meanwhile(
    standby: &Standby,
    lockstep: Lockstep,
    strategy: &str,
    act: impl FnOnce(),
) -> crate::support::command::Outcome {
    let steps = Steps::new(standby.fixture.root().join("steps"));
    steps.hold("backup.before-snapshot-3");
    let lockstep = lockstep.with_steps(&steps);
    let mut running = lockstep.spawn(&["--json", "backup", "--strategy", strategy]);
    steps.wait_reached("backup.before-snapshot-3", &mut running);
    act();
    steps.release("backup.before-snapshot-3");
    running.wait(LIMIT)
}

#[test]
fn promoted_in_the_middle() {
    for (strategy, asks) in [("label", true), ("ordered", true), ("ordered", false)] {
        let standby = Standby::new(two_pools_four_datasets());
        standby.primary.pgbench_tables(SCALE, "ts1", "ts2");
        standby.catch_up();
        let lockstep = if asks { standby.fixture.lockstep() } else { standby.silent() };
        let outcome = meanwhile(&standby, lockstep, strategy, || {
            standby.fixture.cluster.execute(&["SELECT pg_promote()"]);
        });
        assert_eq!(outcome.code, Some(exit::REFUSED), "{}", outcome.describe());
        assert!(
            outcome.stderr.contains("the standby was promoted during"),
            "{}",
            outcome.describe()
        );
        assert!(outcome.stderr.contains("hint: "), "{}", outcome.describe());
        assert_eq!(standby.fixture.lockstep().sets(), [""; 0], "a set of a promoted standby");
        assert_clean(&standby.fixture);
        // It is a primary now, and is backed up as one.
        let set = standby.fixture.lockstep().backup("auto");
        assert_eq!(set.strategy, "label");
        let to = standby.fixture.target("primary");
        let restored = standby.fixture.lockstep().restore_and_start(&set.id, &to, &[]);
        Checker::new(SCALE).check_and_stop(restored.server()).assert_right("after the promotion");
    }
}

/// Nobody failed over: the primary goes on, and its promoted standby's sets would be the latest.
#[test]
fn promoted_beside_its_primary() {
    let standby = Standby::new(two_pools_four_datasets());
    let lockstep = standby.with_primary();
    standby.fixture.cluster.execute(&["SELECT pg_promote()"]);
    for command in ["backup", "check"] {
        let told = lockstep.expect(exit::PROBLEMS, &[command]);
        let said = format!("{}{}", told.stdout, told.stderr);
        assert!(said.contains("this server was promoted, and the primary"), "{}", told.describe());
    }
    standby.primary.stop(Stop::Fast);
    lockstep.expect(exit::DONE, &["backup"]);
}

/// The configured host leads to the primary, which has the standby's system identifier and the same data_directory.
/// Its backup functions would be called while the standby's files are frozen.
#[test]
fn the_host_leads_to_the_primary() {
    let standby = Standby::new(two_pools_four_datasets());
    let (here, there) = (&standby.fixture.cluster, &standby.primary);
    // A running server doesn't care where its folder is; its path now leads to the standby's.
    let aside = there.data.with_file_name("elsewhere");
    fs::rename(&there.data, &aside).expect("a folder can be renamed");
    std::os::unix::fs::symlink(&here.data, &there.data).expect("a link can be made");
    let lockstep = standby.led_to_the_primary();
    for strategy in ["auto", "label", "ordered"] {
        for command in ["plan", "backup"] {
            let refused = lockstep.expect(exit::REFUSED, &[command, "--strategy", strategy]);
            let data = here.data.display().to_string();
            for words in ["isn't the one that runs in", &data, "hint: host leads to another server"]
            {
                assert!(refused.stderr.contains(words), "{words:?}: {}", refused.describe());
            }
        }
    }
    let checked = lockstep.expect(exit::PROBLEMS, &["check"]);
    assert!(checked.stdout.contains("isn't the one that runs in"), "{}", checked.describe());
    assert_eq!(standby.fixture.snapshots(), [""; 0], "something was frozen");
    // The link would be in the way when the primary is stopped.
    fs::remove_file(&there.data).expect("a link can be removed");
    fs::rename(&aside, &there.data).expect("a folder can be renamed");
    // It recognizes its own server at once, even right after a promotion.
    assert_eq!(standby.fixture.lockstep().backup("auto").strategy, "label");
    here.execute(&["SELECT pg_promote()"]);
    assert_eq!(standby.fixture.lockstep().backup("auto").strategy, "label");
}

/// From the WAL that it replays, PostgreSQL knows that the primary had full_page_writes off, and reports it.
#[test]
fn full_page_writes_off_on_the_primary() {
    let standby = Standby::new(two_pools_four_datasets());
    let (ledger, writers, load) = loaded(&standby);
    let switch = |to: &str| {
        let alter = format!("ALTER SYSTEM SET full_page_writes = {to}");
        standby.primary.execute(&[&alter, "SELECT pg_reload_conf()", "SELECT pg_sleep(1)"]);
        standby.primary.execute(&["CHECKPOINT"]);
        standby.catch_up();
    };
    switch("off");
    let refused =
        standby.fixture.lockstep().expect(exit::REFUSED, &["backup", "--strategy", "label"]);
    for words in ["full_page_writes=off", "hint: ", "CHECKPOINT on the primary"] {
        assert!(refused.stderr.contains(words), "{words:?}: {}", refused.describe());
    }
    assert_clean(&standby.fixture);
    switch("on");
    // Off and on again between the first snapshot and the end is just as wrong.
    let outcome = meanwhile(&standby, standby.fixture.lockstep(), "label", || {
        switch("off");
        switch("on");
    });
    assert_eq!(outcome.code, Some(exit::REFUSED), "{}", outcome.describe());
    assert!(outcome.stderr.contains("during online backup"), "{}", outcome.describe());
    let set = standby.fixture.lockstep().backup("label");
    load.stop();
    writers.stop();
    assert_restores(&standby, &set, &ledger, &[]);
}

/// The server that the standby follows is promoted between two sets: the second set is on the new timeline.
#[test]
fn timeline_switch_between_two_sets() {
    let standby = Standby::cascading(two_pools_four_datasets());
    let (ledger, writers, load) = loaded(&standby);
    let lockstep = standby.fixture.lockstep();
    let before = lockstep.backup("label");
    load.stop();
    writers.stop();
    standby.catch_up();
    let middle = standby.middle.as_ref().expect("a cascade has one");
    standby.primary.stop(Stop::Immediate);
    middle.execute(&["SELECT pg_promote()", "CHECKPOINT"]);
    let now = middle.value("postgres", "SELECT pg_current_wal_flush_lsn()");
    let followed = format!("SELECT pg_last_wal_replay_lsn() >= '{now}'");
    wait_until("the standby has followed", Duration::from_secs(60), || {
        standby.ask(&followed).as_deref() == Some("t")
    });
    let after = [lockstep.backup("label"), lockstep.backup("ordered")];
    for (set, timeline) in [(&before, 1), (&after[0], 2), (&after[1], 2)] {
        let shown = lockstep.json(&["show", &set.id]);
        assert_eq!(shown["postgres"]["timeline"], timeline, "{shown}");
        assert_restores(&standby, set, &ledger, &[]);
    }
    // The former primary comes back by itself: the standby has all that is written there.
    standby.primary.start();
    with_a_problem(&standby.with_primary(), "a failover has left it behind");
}

/// Restartpoints recycled WAL that the set needs: it is fetched from the primary, or is known to be archived, or
/// there is no set.
#[test]
fn wal_that_the_standby_has_no_more() {
    let standby = Standby::new(two_pools_four_datasets().setting("wal_keep_size", "2GB"));
    let (ledger, writers, load) = loaded(&standby);
    // The first needed segment must be a complete one, so that neither server is still writing it.
    let forget = |servers: &[&crate::support::cluster::Cluster]| {
        let redo = "SELECT redo_wal_file FROM pg_control_checkpoint()";
        let segment = standby.ask(redo).expect("the standby can be asked");
        standby.primary.execute(&["SELECT pg_switch_wal()"]);
        standby.catch_up();
        for server in servers {
            let _ = fs::remove_file(server.data.join("pg_wal").join(&segment));
        }
        segment
    };
    let here = &standby.fixture.cluster;

    let outcome = meanwhile(&standby, standby.fixture.lockstep(), "ordered", || {
        forget(&[here]);
        standby.restartpoint();
    });
    // After the refusal, the set was taken again, from a later redo point.
    let again = Set::of(&json_of(&outcome));
    assert!(again.tries > 1, "{}", again.json);

    let mut segment = String::new();
    let outcome =
        meanwhile(&standby, standby.with_primary(), "ordered", || segment = forget(&[here]));
    let fetched = Set::of(&json_of(&outcome));
    let shown = standby.fixture.lockstep().json(&["show", &fetched.id]);
    assert_eq!(shown["wal"]["fetched"], serde_json::json!([segment]), "{shown}");

    standby.primary.execute(&["SELECT pg_switch_wal()"]);
    standby.restartpoint();
    let outcome = meanwhile(&standby, standby.with_primary(), "ordered", || {
        segment = forget(&[here]);
        let archived = standby.fixture.archive.join(&segment);
        wait_until("the segment is archived", Duration::from_secs(30), || archived.exists());
        let known = format!("SELECT last_archived_wal >= '{segment}' FROM pg_stat_archiver");
        wait_until("the archiver says so", Duration::from_secs(30), || {
            standby.primary.value("postgres", &known) == "t"
        });
        let _ = fs::remove_file(standby.primary.data.join("pg_wal").join(&segment));
    });
    let archived = Set::of(&json_of(&outcome));
    let shown = standby.fixture.lockstep().json(&["show", &archived.id]);
    assert_eq!(shown["wal"]["archived"], serde_json::json!([segment]), "{shown}");
    load.stop();
    writers.stop();

    assert_restores(&standby, &again, &ledger, &[]);
    assert_restores(&standby, &fetched, &ledger, &[]);
    let to = standby.fixture.target("archived");
    let to = to.to_str().expect("the harness' own paths are UTF-8");
    let restore = ["restore", &archived.id, "--to", to];
    let refused = standby.fixture.lockstep().expect(exit::REFUSED, &restore);
    for words in [segment.as_str(), "--restore-command"] {
        assert!(refused.stderr.contains(words), "{words:?}: {}", refused.describe());
    }
    let copy = format!("cp {}/%f %p", standby.fixture.archive.display());
    assert_restores(&standby, &archived, &ledger, &["--restore-command", &copy]);
}

/// With pg_control as the first snapshot caught it, recovery ends before the pages of the later ones: PostgreSQL
/// calls the cluster consistent, but it isn't. That is why pg_control is read a second time. Here a standby has
/// replayed everything, and has made a restartpoint of the very last record: with that record its set becomes
/// consistent, and PostgreSQL no longer looks for a target.
#[test]
fn consistent_with_the_last_record_of_all() {
    let standby = Standby::new(two_pools_four_datasets().setting("autovacuum", "off"));
    standby.primary.execute(&["CREATE TABLE rows AS SELECT generate_series(1, 1000) n"]);
    // Nothing is written after the checkpoint: its record is the last one.
    standby.restartpoint();
    let set = standby.silent().backup("auto");
    let lockstep = standby.fixture.lockstep();
    let directory = standby.fixture.target("paused");
    let to = directory.to_str().expect("the harness' own paths are UTF-8");
    let pause = ["--target-immediate", "--target-action", "pause"];
    let words = [&["restore", &set.id, "--to", to, "--start"], &pause[..]].concat();
    let refused = lockstep.expect(exit::FAILED, &words);
    for words in [
        "before configured recovery target was reached",
        "hint: it became consistent with the last record",
    ] {
        assert!(refused.stderr.contains(words), "{words}: {}", refused.describe());
    }
    let directory = standby.fixture.target("immediate");
    let restored = lockstep.restore_and_start(&set.id, &directory, &["--target-immediate"]);
    let server = restored.server();
    assert_eq!(server.value("postgres", "SELECT count(*) FROM rows"), "1000");
    assert_eq!(server.value("postgres", "SELECT pg_is_in_recovery()"), "f");
    assert_eq!(server.value("postgres", "SHOW recovery_target"), "");
    standby.fixture.discard_restored(&directory, &set.id);
    // An archive that has nothing more when recovery first asks it, and later has.
    standby.primary.execute(&["INSERT INTO rows SELECT generate_series(1, 100)"]);
    let more = standby.primary.value("postgres", "SELECT pg_walfile_name(pg_switch_wal())");
    let archive = &standby.fixture.archive;
    wait_until("it is archived", Duration::from_secs(30), || archive.join(&more).exists());
    let asked = standby.fixture.owned("asked");
    let command = format!(
        "f={}/first; test -e $f || echo $PPID > $f; test $(cat $f) != $PPID && cp {}/%f %p",
        asked.display(),
        archive.display()
    );
    let options = ["--target-immediate", "--restore-command", &command];
    let restored = lockstep.restore_and_start(&set.id, &directory, &options);
    assert!(asked.join("first").exists());
    assert_eq!(restored.server().value("postgres", "SELECT count(*) FROM rows"), "1000");
    standby.fixture.discard_restored(&directory, &set.id);
}

#[test]
fn the_first_pg_control_alone_is_silently_corrupt() {
    const TRIES: u32 = 6;
    let standby = Standby::new(two_pools_four_datasets().setting("wal_keep_size", "2GB"));
    let fixture = &standby.fixture;
    standby.primary.pgbench_tables(SCALE, "ts1", "ts2");
    let plan = Plan { databases: false, ..Plan::to_be_followed(1) };
    let load = Load::start(&standby.primary, &["ts1", "ts2", "pg_default"], &plan);
    let mut caught = 0;
    for (n, second_look) in (0..TRIES).flat_map(|n| [(n, false), (n, true)]) {
        thread::sleep(Duration::from_secs(1));
        // Recovery should have a second or two of WAL to replay, on a slow machine too.
        standby.restartpoint();
        let control = || {
            let bytes = fs::read(fixture.cluster.data.join("global/pg_control"));
            ControlFile::parse(&bytes.expect("pg_control can be read")).expect("pg_control")
        };
        let first = control();
        let mut set = ByHand::new(fixture, &format!("first{n}{second_look}"));
        set.snapshot("data");
        for mount in ["ts1", "ts2"] {
            thread::sleep(Duration::from_millis(400));
            // Writes every page that replay has changed.
            standby.restartpoint();
            set.snapshot(mount);
        }
        let last = control();
        set.snapshot("wal");

        let server = set.assemble();
        let label = BackupLabel::from_control_file(
            &first,
            BackupFrom::Standby,
            "2026-01-01 00:00:00 UTC",
            "by hand",
        );
        let label = label.expect("a label can be made").to_bytes();
        write_as_postgres(
            &server.data.join("backup_label"),
            std::str::from_utf8(&label).expect("a label is text"),
        );
        fs::remove_file(server.data.join("standby.signal")).expect("a standby has its signal");
        write_as_postgres(&server.data.join("recovery.signal"), "");
        if second_look {
            fs::write(server.data.join("global/pg_control"), last.to_bytes())
                .expect("pg_control can be written");
        }
        let conf = server.data.join("postgresql.auto.conf");
        let settings = fs::read_to_string(&conf).expect("it has settings");
        write_as_postgres(
            &conf,
            &format!(
                "{settings}\nrestore_command = 'false'\nrecovery_target = 'immediate'\nrecovery_target_action = 'promote'\n"
            ),
        );
        server.start();
        let recovery = "SELECT NOT pg_is_in_recovery()";
        let mut has_died = false;
        wait_until("recovery ends", Duration::from_secs(60), || {
            let ended = server.try_connect("postgres").ok().and_then(|mut client| {
                client.query_one(recovery, &[]).ok().map(|row| row.get::<_, bool>(0))
            });
            // If PostgreSQL notices it at all: "xlog flush request … is not satisfied".
            has_died = !second_look && ended.is_none() && !server.is_running();
            ended == Some(true) || has_died
        });
        if has_died {
            println!("try {n}: {}", server.log_tail());
            caught += 1;
            set.discard();
            continue;
        }
        let verdict = Checker::new(SCALE).check_running(&server);
        server.stop(Stop::Immediate);
        set.discard();
        if second_look {
            verdict.assert_right("with the last pg_control, by hand");
        } else if !verdict.violations.is_empty() {
            println!("try {n}: {:?}", verdict.violations[0]);
            caught += 1;
        }
        if caught > 0 && second_look {
            break;
        }
    }
    load.stop();
    assert!(caught > 0, "{TRIES} sets with the first pg_control, and nothing wrong with any");
}

/// `check` says whether the standby follows, and whether its primary can be asked.
#[test]
fn check_says_how_the_standby_follows() {
    let standby = Standby::new(two_pools_four_datasets());
    let lockstep = standby.with_primary();
    let found = |subject: &str| {
        let checked = json_of(&lockstep.run(&["--json", "check"]));
        let findings = checked["findings"].as_array().expect("a list").clone();
        let finding = findings.iter().find(|finding| finding["subject"] == subject);
        finding.unwrap_or_else(|| panic!("nothing about {subject}: {checked}")).clone()
    };
    assert_eq!(found("standby")["severity"], "ok");
    assert_eq!(found("primary")["severity"], "ok");
    standby.primary.stop(Stop::Immediate);
    wait_until("the stream has ended", Duration::from_secs(20), || {
        found("standby")["severity"] == "error"
    });
    assert_eq!(found("primary")["severity"], "error");
    lockstep.expect(exit::PROBLEMS, &["check"]);
    // The standby can still be backed up, and it is reported that its data is old.
    let set = with_a_problem(&lockstep, "nothing streams to this standby");
    assert_eq!(set.strategy, "label");
    assert!(set.json["data_at"].is_string(), "{}", set.json);
    let to = standby.fixture.target("alone");
    let restored = standby.fixture.lockstep().restore_and_start(&set.id, &to, &[]);
    assert_eq!(restored.server().value("postgres", "SELECT 1"), "1");
    restored.server().stop(Stop::Immediate);
}

/// Replaying a move copies the old folder, which replay itself has removed by then. A restartpoint must come first,
/// and only the strategy `label` makes one.
#[test]
fn a_database_moved_on_the_primary() {
    let table = "CREATE TABLE t AS SELECT generate_series(1, 100) AS n";
    let prepared = |layout| {
        let standby = Standby::new(layout);
        standby.primary.execute(&["CREATE DATABASE shop TABLESPACE ts2"]);
        standby.primary.connect("shop").batch_execute(table).expect("a table can be made");
        standby.restartpoint();
        standby
    };
    let has_all = |standby: &Standby, set: &Set| {
        let directory = standby.fixture.target(&set.id);
        let restored = standby.fixture.lockstep().restore_and_start(&set.id, &directory, &[]);
        assert_eq!(
            restored.server().value("shop", "SELECT count(*) FROM t"),
            "100",
            "{}",
            set.json
        );
        standby.fixture.discard_restored(&directory, &set.id);
    };
    let refused = |lockstep: &Lockstep, strategy: &str| {
        let outcome = lockstep.expect(exit::REFUSED, &["backup", "--strategy", strategy]);
        assert!(outcome.stderr.contains("was moved from"), "{}", outcome.describe());
        assert!(outcome.stderr.contains("a restartpoint here"), "{}", outcome.describe());
    };
    let move_to = |standby: &Standby, space: &str| {
        standby.primary.execute(&[&format!("ALTER DATABASE shop SET TABLESPACE {space}")]);
        standby.catch_up();
    };

    let standby = prepared(two_pools_four_datasets());
    let steps = Steps::new(standby.fixture.root().join("steps-of-changes"));
    let step = "backup.after-snapshot-1";
    steps.hold(step);
    let lockstep = standby.fixture.lockstep();
    let arguments = ["--json", "backup", "--strategy", "label"];
    let mut program = lockstep.clone().with_steps(&steps).spawn(&arguments);
    steps.wait_reached(step, &mut program);
    move_to(&standby, "pg_default");
    steps.release(step);
    let outcome = program.wait(LIMIT);
    assert!(outcome.stderr.contains("was moved from"), "{}", outcome.describe());
    let set = Set::of(&json_of(&outcome));
    assert_eq!(set.tries, 2, "{}", set.json);
    has_all(&standby, &set);
    standby.restartpoint();
    move_to(&standby, "ts1");
    refused(&lockstep, "ordered");
    refused(&standby.silent(), "ordered");
    assert_clean(&standby.fixture);
    standby.restartpoint();
    has_all(&standby, &lockstep.backup("ordered"));

    let standby = prepared(one_dataset());
    move_to(&standby, "ts1");
    refused(&standby.fixture.lockstep(), "atomic");
    standby.restartpoint();
    has_all(&standby, &standby.fixture.lockstep().backup("atomic"));
}

/// Replay writes pg_filenode.map at once, and moves minRecoveryPoint with the commit that follows. While that is put
/// off, the map names files that recovery to minRecoveryPoint doesn't make.
#[test]
fn a_map_that_is_ahead_of_the_minimum() {
    let standby = Standby::new(two_pools_four_datasets().setting("autovacuum", "off"));
    let shop = |statement: &str| {
        let mut client = standby.primary.connect("shop");
        client.batch_execute(statement).unwrap_or_else(|error| panic!("{statement}: {error}"));
    };
    standby.primary.execute(&["CREATE DATABASE shop"]);
    shop("CREATE TABLE t AS SELECT 1 AS n");
    let oid = standby.primary.value("shop", "SELECT oid FROM pg_database WHERE datname = 'shop'");
    standby.restartpoint();
    let delay = "ALTER SYSTEM SET recovery_min_apply_delay = '1h'";
    standby.fixture.cluster.execute(&[delay, "SELECT pg_reload_conf()"]);
    let steps = Steps::new(standby.fixture.root().join("steps-of-the-map"));
    steps.hold("backup.started");
    let asked = standby.fixture.lockstep();
    let arguments = ["--json", "backup", "--strategy", "label"];
    let mut program = asked.clone().with_steps(&steps).spawn(&arguments);
    steps.wait_reached("backup.started", &mut program);
    let map = standby.fixture.cluster.data.join(format!("base/{oid}/pg_filenode.map"));
    let read = || fs::read(&map).expect("a database has a map");
    let before = read();
    shop("VACUUM FULL pg_class");
    wait_until("the map is replayed", LIMIT, || read() != before);
    steps.release("backup.started");
    let label = Set::of(&json_of(&program.wait(LIMIT)));
    for set in [label, asked.backup("ordered"), standby.silent().backup("ordered")] {
        let directory = standby.fixture.target(&set.id);
        let restored = asked.restore_and_start(&set.id, &directory, &["--target-immediate"]);
        assert_eq!(restored.server().value("shop", "SELECT n FROM t"), "1", "{}", set.json);
        standby.fixture.discard_restored(&directory, &set.id);
    }
}

/// A hot standby accepts no serializable transaction, whatever its settings ask for.
#[test]
fn serializable_by_default() {
    let standby = Standby::new(one_dataset());
    standby.setting("default_transaction_isolation", "serializable");
    standby.restart();
    assert_eq!(standby.fixture.lockstep().backup("auto").strategy, "label");
}
