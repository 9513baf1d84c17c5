//! Shows the checker and the program's own guards the errors that they must catch. A judge that never says no proves
//! nothing.

use crate::support::by_hand::{ByHand, write_as_postgres};
use crate::support::checker::{Checker, Verdict};
use crate::support::cluster::{Cluster, Stop};
use crate::support::faults::assert_said;
use crate::support::fixture::{Fixture, free_port};
use crate::support::layout::two_pools_four_datasets;
use crate::support::ledger::{Expected, Ledger, Row, Wrong, judge};
use crate::support::load::{Load, Plan};
use crate::support::lockstep::{Lsn, Set, exit};
use crate::support::pools::{destroy, property, zfs};
use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, SystemTime};

const SCALE: u32 = 3;

/// As much load as the machine can give: the more is written between two snapshots, the more certainly the naive
/// order fails.
fn heavy() -> Plan {
    Plan { rate: None, databases: false, ..Plan::all(1) }
}

/// WAL segments are kept, because restores by hand have no slot that keeps them.
fn loaded_fixture() -> (Fixture, Ledger) {
    let fixture = Fixture::new(two_pools_four_datasets().setting("wal_keep_size", "2GB"));
    fixture.pgbench_tables(SCALE);
    let ledger = Ledger::create(&fixture.cluster, "ts1", "ts2");
    (fixture, ledger)
}

/// The order that looks right but isn't: tablespaces, a checkpoint, the data directory, pg_wal; no label. The server
/// starts without an error, and the checker must say what is wrong.
#[test]
fn naive_order_is_caught() {
    const TRIES: u32 = 6;
    let (fixture, ledger) = loaded_fixture();
    let writers = ledger.start(&fixture.cluster);
    let load = Load::start(&fixture.cluster, &["ts1", "ts2", "pg_default"], &heavy());
    let mut caught: Option<Verdict> = None;
    for n in 0..TRIES {
        thread::sleep(Duration::from_secs(1));
        let mut naive = ByHand::new(&fixture, &format!("naive{n}"));
        naive.snapshot("ts1");
        thread::sleep(Duration::from_millis(300));
        naive.snapshot("ts2");
        thread::sleep(Duration::from_millis(300));
        fixture.cluster.execute(&["CHECKPOINT"]);
        naive.snapshot("data");
        let frozen = SystemTime::now();
        naive.snapshot("wal");

        let server = naive.assemble();
        server.start();
        let expected = Expected { by_time: Some(frozen), ..Expected::default() };
        let verdict = Checker::new(SCALE).with_ledger(&ledger, expected).check_running(&server);
        server.stop(Stop::Immediate);
        naive.discard();
        if !verdict.violations.is_empty() {
            println!(
                "try {n}: {} violations, the first: {:?}",
                verdict.violations.len(),
                verdict.violations[0]
            );
            caught = Some(verdict);
            break;
        }
        println!("try {n}: not corrupt by luck");
    }
    load.stop();
    writers.stop();
    assert!(
        caught.is_some(),
        "{TRIES} naive sets under load, and the checker found nothing wrong with any"
    );
}

/// The right order, by hand and under the same load, passes the same checker: so restoring isn't what corrupts.
#[test]
fn label_by_hand_is_right() {
    let (fixture, ledger) = loaded_fixture();
    let writers = ledger.start(&fixture.cluster);
    let load = Load::start(&fixture.cluster, &["ts1", "ts2", "pg_default"], &heavy());
    ledger.wait_for(120);

    let mut right = ByHand::new(&fixture, "right");
    let mut session = fixture.cluster.connect("postgres");
    session
        .execute("SELECT pg_backup_start('by hand', true)", &[])
        .expect("a backup can be started");
    for mount in ["ts1", "ts2", "data"] {
        thread::sleep(Duration::from_millis(300));
        right.snapshot(mount);
    }
    let stopping = SystemTime::now();
    let stop = session
        .query_one("SELECT lsn::text, labelfile FROM pg_backup_stop(false)", &[])
        .expect("it can be stopped");
    let (stop_lsn, label): (String, String) = (stop.get(0), stop.get(1));
    right.snapshot("wal");
    let attempted = ledger.attempted();

    let server = right.assemble();
    // The links are rewritten, so the label is used without its map.
    write_as_postgres(&server.data.join("backup_label"), &label);
    server.start();
    load.stop();
    writers.stop();
    let expected = Expected {
        by_time: Some(stopping),
        by_lsn: Some(Lsn::parse(&stop_lsn)),
        none_after: Some(attempted),
    };
    let verdict = Checker::new(SCALE).with_ledger(&ledger, expected).check_and_stop(&server);
    verdict.assert_right("a label and all its WAL, by hand");
    assert!(verdict.ledger_rows > 100, "the ledger had hardly any rows: {}", verdict.ledger_rows);
    right.discard();
}

/// The ledger's rule by itself, without a server: each error that it must report.
#[test]
fn ledger_reports_each_wrong() {
    let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    let committed = |n: u64| Row { committed: Some((at(n), Lsn(n * 100))) };
    let book = [committed(1), committed(2), committed(3), Row { committed: None }, committed(5)];
    let everything = Expected { by_time: Some(at(5)), ..Expected::default() };
    let rows = |ids: &[i64]| ids.iter().map(|id| (*id, true)).collect::<Vec<_>>();
    let never = (1 << 40) + 10;

    assert_eq!(judge(&book, &rows(&[1, 2, 3, 4, 5]), everything), []);
    assert_eq!(
        judge(&book, &rows(&[1, 2, 3, 5]), everything),
        [],
        "row 4 may be there or not: its commit never returned"
    );
    assert_eq!(judge(&book, &rows(&[1, 2, 3]), everything), [Wrong::Missing(5)]);
    assert_eq!(judge(&book, &rows(&[1, 3]), Expected::default()), [Wrong::Hole(2)]);
    assert_eq!(
        judge(&book, &rows(&[1, 2]), Expected { by_lsn: Some(Lsn(300)), ..Expected::default() }),
        [Wrong::Missing(3)]
    );
    assert_eq!(
        judge(&book, &rows(&[1, 2]), Expected { by_lsn: Some(Lsn(299)), ..Expected::default() }),
        []
    );
    assert_eq!(judge(&book, &rows(&[1, 2, 3, 5, 6]), everything), [Wrong::Unknown(6)]);
    assert_eq!(
        judge(&book, &rows(&[1, 2, 3]), Expected { none_after: Some(2), ..Expected::default() }),
        [Wrong::Unknown(3)]
    );
    assert_eq!(
        judge(&book, &rows(&[1, 2, 3, 5, never]), everything),
        [Wrong::NeverCommitted(never)]
    );
    assert_eq!(judge(&book, &rows(&[1, 2, 2, 3, 5]), everything), [Wrong::Twice(2)]);
    assert_eq!(
        judge(&book, &[(1, true), (2, false), (3, true), (5, true)], everything),
        [Wrong::Damaged(2)]
    );
}

/// If the snapshot of one dataset is replaced by another set's, under the right name, the set must be refused.
#[test]
fn swapped_snapshot_is_refused() {
    let (fixture, ledger) = loaded_fixture();
    let writers = ledger.start(&fixture.cluster);
    let lockstep = fixture.lockstep();
    let older = lockstep.backup("label");
    ledger.wait_for(20);
    let newer = lockstep.backup("label");
    writers.stop();

    let volume = |set: &Set| {
        let found = set.volumes.iter().find(|volume| volume.dataset.ends_with("/ts1"));
        found.unwrap_or_else(|| panic!("no volume for ts1 in {}", set.json)).clone()
    };
    let (belongs, foreign) = (volume(&older), volume(&newer));
    assert_eq!(
        property(&belongs.snapshot, "guid"),
        belongs.guid,
        "`backup --json` gives the snapshot's own GUID"
    );
    for snapshot in [&belongs.snapshot, &foreign.snapshot] {
        zfs(&["release", "lockstep", snapshot]);
    }
    destroy(&belongs.snapshot);
    zfs(&["rename", &foreign.snapshot, &belongs.snapshot]);

    let directory = fixture.target("swapped");
    let to = directory.to_str().expect("the harness' own paths are UTF-8");
    let refused = lockstep.expect(exit::REFUSED, &["restore", &older.id, "--to", to]);
    for named in [&belongs.dataset, &belongs.guid, &foreign.guid] {
        assert!(
            refused.stderr.contains(named.as_str()),
            "{named:?} isn't named: {}",
            refused.describe()
        );
    }
    assert!(
        refused.stderr.contains("error: ") && refused.stderr.contains("hint: "),
        "{}",
        refused.describe()
    );

    // Nor are another set's files shown as this one's; the other volumes are still the set's own.
    let oid =
        fixture.cluster.value("postgres", "SELECT oid FROM pg_tablespace WHERE spcname = 'ts1'");
    let (folder, file) =
        (format!("tablespaces/{oid}"), format!("{}:tablespaces/{oid}/x", older.id));
    for arguments in [&["ls", &older.id, &folder][..], &["cat", &file]] {
        let refused = lockstep.expect(exit::REFUSED, arguments);
        assert_said(&refused, &["isn't the one of set", &belongs.guid, &foreign.guid, "hint: "]);
    }
    lockstep.expect(exit::DONE, &["ls", &older.id, "data"]);

    // The newer set now lacks its snapshot; that must not be covered up.
    let incomplete = lockstep.run(&["restore", &newer.id, "--to", to]);
    assert!(
        !incomplete.ok() && incomplete.stderr.contains(&foreign.dataset),
        "{}",
        incomplete.describe()
    );
    assert!(fixture.clones().is_empty(), "clones of refused restores: {:?}", fixture.clones());
    assert!(
        !directory.exists() || fs::read_dir(&directory).is_ok_and(|mut left| left.next().is_none()),
        "{directory:?} is left"
    );
}

/// Somebody removes backup_label from a restored cluster because "it doesn't start". It must not start then either,
/// because it would start from a checkpoint that its tablespaces don't match.
#[test]
fn restored_set_without_its_label_does_not_start() {
    let (fixture, ledger) = loaded_fixture();
    let writers = ledger.start(&fixture.cluster);
    let lockstep = fixture.lockstep();
    let set = lockstep.backup("label");
    writers.stop();

    // The same start by hand works if nothing was removed: the label makes the difference.
    let whole =
        start_by_hand(&fixture, &lockstep.restore(&set.id, &fixture.target("whole"), &[]).data);
    whole.start();
    whole.stop(Stop::Fast);

    for also in [None, Some("tablespace_map"), Some("recovery.signal")] {
        let name = format!("without-{}", also.unwrap_or("label"));
        let data = lockstep.restore(&set.id, &fixture.target(&name), &[]).data;
        fs::remove_file(data.join("backup_label")).expect("a restored label set has its label");
        if let Some(also) = also {
            let _ = fs::remove_file(data.join(also));
        }
        let server = start_by_hand(&fixture, &data);
        let outcome = server.try_start();
        assert!(!outcome.ok(), "started from a wrong checkpoint: {}", outcome.describe());
        let log = server.log_tail();
        assert!(
            log.contains("could not locate a valid checkpoint record"),
            "its log says something else:\n{log}"
        );
    }
}

/// A restored cluster that wasn't started, as an administrator would start it: on its own port.
fn start_by_hand(fixture: &Fixture, data: &Path) -> Cluster {
    let port = free_port();
    let conf = data.join("postgresql.auto.conf");
    let settings = fs::read_to_string(&conf).unwrap_or_default();
    write_as_postgres(&conf, &format!("{settings}\nport = {port}\n"));
    let name =
        data.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy().into_owned();
    let log = fixture.root().join("log").join(format!("{name}.log"));
    Cluster { data: data.to_owned(), port, log, ..fixture.cluster.clone() }
}
