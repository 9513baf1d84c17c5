//! PostgreSQL 14 to 18: a `label` and an `ordered` set of a cluster under load, each restored, started, checked in full;
//! and what only 14 has: exclusive backups.

mod support;

use std::fs;
use support::checker::Checker;
use support::cluster::Stop;
use support::faults::assert_said;
use support::fixture::{Fixture, assert_clean};
use support::layout::{one_pool, two_pools_four_datasets};
use support::ledger::Ledger;
use support::load::{Load, Plan};
use support::lockstep::exit;

const SCALE: u32 = 2;

fn back_up_and_restore(major: u32) {
    let fixture = Fixture::new(two_pools_four_datasets().major(major));
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
