//! PostgreSQL 14 to 18: a `label` and an `ordered` set of a cluster under load, each restored, started, checked in full.

mod support;

use support::checker::Checker;
use support::fixture::{Fixture, assert_clean};
use support::layout::two_pools_four_datasets;
use support::ledger::Ledger;
use support::load::{Load, Plan};

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
