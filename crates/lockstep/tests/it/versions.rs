//! PostgreSQL 14 to 18: a `label` and an `ordered` set of a cluster under load, each restored, started, checked in full;
//! and what only some of them have: exclusive backups, and reasons to give up a replication slot.

use crate::support::checker::Checker;
use crate::support::cluster::Stop;
use crate::support::command::wait_until;
use crate::support::faults::{Hooks, assert_nothing_remains, assert_said};
use crate::support::fixture::{Fixture, assert_clean};
use crate::support::layout::{Layout, one_pool, two_pools_four_datasets};
use crate::support::ledger::Ledger;
use crate::support::load::{Load, Plan};
use crate::support::lockstep::{LIMIT, Set, exit, json_of};
use std::fs;
use std::time::Duration;

const SCALE: u32 = 2;

fn back_up_and_restore(major: u32) {
    let fixture = Fixture::new(two_pools_four_datasets().major(major).zeros());
    let running = fixture
        .cluster
        .value("postgres", "SELECT current_setting('server_version_num')::int / 10000");
    assert_eq!(running, major.to_string(), "the server isn't of the version that is tested");
    fixture.pgbench_tables(SCALE);
    let ledger = Ledger::create(&fixture.cluster, "ts1", "ts2");
    let writers = ledger.start(&fixture.cluster);
    let load =
        Load::start(&fixture.cluster, &["ts1", "ts2", "pg_default"], &Plan::all(u64::from(major)));
    ledger.wait_for(60);

    let lockstep = fixture.lockstep();
    let taken = ["label", "ordered"].map(|strategy| {
        let set = lockstep.backup(strategy);
        assert_eq!(set.strategy, strategy);
        assert!(set.floor_lsn.is_some(), "no floor: {}", set.json);
        let expected = ledger.expected(set.floor_lsn);
        (set, expected)
    });
    load.stop();
    writers.stop();
    assert_clean(&fixture);
    for (set, expected) in taken {
        let directory = fixture.target(&set.strategy);
        let restored = lockstep.restore_and_start(&set.id, &directory, &[]);
        let verdict =
            Checker::new(SCALE).with_ledger(&ledger, expected).check_and_stop(restored.server());
        verdict.assert_right(&format!("{} on PostgreSQL {major}", set.strategy));
        assert!(
            verdict.ledger_rows > 50,
            "the ledger had hardly any rows: {}",
            verdict.ledger_rows
        );
    }
}

#[test]
fn postgresql_14() {
    back_up_and_restore(14);
}

#[test]
fn postgresql_15() {
    back_up_and_restore(15);
}

#[test]
fn postgresql_16() {
    back_up_and_restore(16);
}

#[test]
fn postgresql_17() {
    back_up_and_restore(17);
}

#[test]
fn postgresql_18() {
    back_up_and_restore(18);
}

/// Another tool's exclusive backup leaves a backup_label in the live data directory, and the cluster is none the less
/// one that runs. After a crash nobody can tell it from a base backup, and neither can PostgreSQL.
#[test]
fn an_exclusive_backup_of_postgresql_14_is_no_base_backup() {
    let fixture = Fixture::new(one_pool().major(14));
    let cluster = &fixture.cluster;
    cluster.execute(&["CREATE TABLE seen AS SELECT 42 AS answer"]);
    cluster.execute(&["SELECT pg_start_backup('another tool', true, true)", "CHECKPOINT"]);
    assert!(cluster.data.join("backup_label").exists());
    let label = fixture.lockstep().backup("label");
    fs::write(fixture.config(), fixture.configuration("auto", false)).expect("it can be written");
    let lockstep = fixture.lockstep();
    let sets = [label, lockstep.backup("auto"), lockstep.backup("ordered")];
    assert_eq!(sets.each_ref().map(|set| set.strategy.as_str()), ["label", "atomic", "ordered"]);
    for set in sets {
        let directory = fixture.target(&set.strategy);
        let restored = lockstep.restore_and_start(&set.id, &directory, &[]);
        assert_eq!(restored.server().value("postgres", "SELECT answer FROM seen"), "42");
        restored.server().stop(Stop::Immediate);
    }
    cluster.kill();
    let refused = lockstep.expect(exit::REFUSED, &["backup"]);
    assert_said(&refused, &["hasn't yet replayed the base backup", "hint: "]);
}

/// Lets the server give up the slot of a backup that is held, and the backup go on.
#[track_caller]
fn without_its_slot(layout: Layout, strategy: &str, give_up: &[&str]) {
    let fixture = Fixture::new(layout);
    fixture.cluster.execute(&["CREATE TABLE seen AS SELECT 42 AS answer"]);
    // On a busy machine, the backup's own checkpoint may already be too late for the slot: it's looked for before.
    let hooks = Hooks::holding(&fixture, "backup.slot");
    let step = "backup.before-snapshot-1";
    hooks.steps.hold(step);
    let arguments = ["--json", "backup", "--strategy", strategy];
    let mut program = hooks.run_to("backup.slot", &arguments);
    let slots = || fixture.cluster.value("postgres", "SELECT count(*) FROM pg_replication_slots");
    assert_eq!(slots(), "1");
    hooks.steps.release("backup.slot");
    hooks.steps.wait_reached(step, &mut program);
    wait_until("the server gives the slot up", LIMIT, || {
        fixture.cluster.execute(give_up);
        std::thread::sleep(Duration::from_millis(100));
        slots() == "0"
    });
    hooks.steps.release(step);
    let taken = program.wait(LIMIT);
    assert_eq!(taken.code, Some(exit::DONE), "{}", taken.describe());
    assert_said(&taken, &["has ended the session that held the replication slot"]);
    let set = Set::of(&json_of(&taken));
    assert_nothing_remains(&fixture, &[], "the slot was given up");
    let directory = fixture.target("restored");
    let restored = fixture.lockstep().restore_and_start(&set.id, &directory, &[]);
    assert_eq!(restored.server().value("postgres", "SELECT answer FROM seen"), "42");
}

/// pg_wal still has what the set needs.
#[test]
fn a_slot_that_was_idle_for_too_long_ends_no_backup() {
    for strategy in ["label", "ordered"] {
        let layout = two_pools_four_datasets().major(18).setting("wal_keep_size", "1GB");
        let layout = layout.setting("idle_replication_slot_timeout", "1s");
        without_its_slot(layout, strategy, &["CHECKPOINT"]);
    }
}

/// The WAL is gone with the slot: the set is taken again, from a later checkpoint.
#[test]
fn a_slot_that_would_keep_too_much_ends_no_backup() {
    let layout = two_pools_four_datasets().setting("max_slot_wal_keep_size", "16MB");
    let layout = layout.setting("min_wal_size", "32MB").setting("max_wal_size", "64MB");
    let write = ["CREATE TABLE IF NOT EXISTS filler (n int)", "INSERT INTO filler VALUES (1)"];
    let give_up = [&write[..], &["SELECT pg_switch_wal()", "CHECKPOINT"]].concat();
    without_its_slot(layout, "label", &give_up);
}
