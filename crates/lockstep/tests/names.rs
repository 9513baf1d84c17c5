//! Names that have to be quoted somewhere on their way: spaces, dots, colons, a newline, a backslash.

mod support;

use std::fs;
use support::checker::Checker;
use support::fixture::{Fixture, assert_clean};
use support::layout::odd_names;
use support::ledger::Ledger;
use support::lockstep::exit;

const SCALE: u32 = 1;

#[test]
fn odd_names_go_through_backup_restore_and_clone() {
    let fixture = Fixture::new(odd_names());
    fixture.pgbench_tables(SCALE);
    let ledger = Ledger::create(&fixture.cluster, "ts1", "ts2");
    let writers = ledger.start(&fixture.cluster);
    let lockstep = fixture.lockstep();

    let plan = lockstep.expect(exit::DONE, &["plan"]);
    for dataset in &fixture.datasets {
        assert!(
            plan.stdout.contains(dataset.as_str()),
            "`plan` doesn't show {dataset:?}: {}",
            plan.describe()
        );
    }
    let planned = lockstep.json(&["plan"]);
    assert!(planned.is_object(), "{planned}");

    for strategy in ["label", "ordered"] {
        let set = lockstep.backup(strategy);
        let expected = ledger.expected(set.floor_lsn);
        let mut datasets: Vec<_> =
            set.volumes.iter().map(|volume| volume.dataset.clone()).collect();
        let mut all = fixture.datasets.clone();
        datasets.sort();
        all.sort();
        assert_eq!(datasets, all, "every dataset, and none twice");

        let directory = fixture.target(&format!("re stored: {strategy}.1"));
        let restored = lockstep.restore_and_start(&set.id, &directory, &[]);
        let server = restored.server();
        let mut places = server.column(
            "postgres",
            "SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname LIKE 'ts%'",
        );
        places.sort();
        places.dedup();
        assert_eq!(places.len(), 2, "two tablespaces at two places: {places:?}");
        for link in fs::read_dir(restored.data.join("pg_tblspc"))
            .expect("a data directory has pg_tblspc")
            .flatten()
        {
            let place =
                fs::read_link(link.path()).expect("a tablespace that isn't in place is a link");
            assert!(place.starts_with(&directory), "{place:?} isn't the restored cluster's own");
        }
        let verdict = Checker::new(SCALE).with_ledger(&ledger, expected).check_and_stop(server);
        verdict.assert_right(strategy);
        assert!(verdict.ledger_rows > 2, "the ledger had hardly any rows");
        fixture.discard_restored(&directory, &set.id);
    }

    let clone = lockstep.clone_create("try-out", &[]);
    assert_eq!(clone.server().value("postgres", "SELECT count(*) FROM pgbench_accounts"), "100000");
    lockstep.expect(exit::DONE, &["clone", "destroy", "try-out"]);
    writers.stop();
    assert_clean(&fixture);
}

/// A backup's own text may hold anything that a label may.
#[test]
fn odd_label_is_kept() {
    let fixture = Fixture::new(odd_names());
    let lockstep = fixture.lockstep();
    let text = "before v1.5: \"quoted\" 'too' \\ back %p ünïcode";
    let taken = lockstep.json(&["backup", "--strategy", "label", "--label", text]);
    let set = taken["set"].as_str().expect("a set has an id");
    let shown = lockstep.json(&["show", set]).to_string();
    let quoted = serde_json::Value::from(text).to_string();
    assert!(shown.contains(quoted.trim_matches('"')), "{text:?} isn't shown: {shown}");
}
