//! The WAL that goes along with a set: what the snapshot's own pg_control asks for, whatever the cluster did since it
//! was first looked at.

mod support;

use pgfiles::control_file::ControlFile;
use std::fs;
use support::checker::Checker;
use support::cluster::{Cluster, Stop};
use support::fixture::Fixture;
use support::layout::{Layout, one_dataset, one_pool, two_pools_four_datasets};
use support::lockstep::{LIMIT, Lsn, Set, Steps, exit, json_of};
use support::shipping::with_repository;
use support::standby::Standby;

const SCALE: u32 = 2;
const FILES: [&str; 4] = ["--from", "repository", "--as", "files"];

fn control(cluster: &Cluster) -> ControlFile {
    let bytes = fs::read(cluster.data.join("global/pg_control")).expect("pg_control can be read");
    ControlFile::parse(&bytes).expect("pg_control isn't torn")
}

/// A checkpoint completes after the survey, and what it made needless is gone before the snapshot.
#[test]
fn a_checkpoint_between_the_first_look_and_an_atomic_snapshot() {
    let layout = one_pool().setting("max_wal_size", "48MB").setting("min_wal_size", "32MB");
    let fixture = Fixture::new(layout);
    fixture.pgbench_tables(SCALE);
    let lockstep = with_repository(&fixture);
    let steps = Steps::new(fixture.root().join("steps"));
    steps.hold("backup.before-snapshot-1");
    let mut running =
        lockstep.clone().with_steps(&steps).spawn(&["--json", "backup", "--strategy", "atomic"]);
    steps.wait_reached("backup.before-snapshot-1", &mut running);
    let before =
        fixture.cluster.value("postgres", "SELECT redo_wal_file FROM pg_control_checkpoint()");
    let first = fixture.cluster.data.join("pg_wal").join(&before);
    fixture.cluster.execute(&["CREATE TABLE late (n int)"]);
    for n in 0..12 {
        fixture.cluster.execute(&[
            &format!("INSERT INTO late VALUES ({n})"),
            "SELECT pg_switch_wal()",
            "CHECKPOINT",
        ]);
        if !first.exists() {
            break;
        }
    }
    assert!(!first.exists(), "{before} is still there");
    let redo = Lsn(control(&fixture.cluster).checkpoint_copy.redo.as_u64());
    steps.release("backup.before-snapshot-1");
    let outcome = running.wait(LIMIT);
    assert_eq!(outcome.code, Some(exit::DONE), "{}", outcome.describe());
    let set = Set::of(&json_of(&outcome));
    assert_eq!(set.start_lsn, Some(redo), "{}", set.json);
    let shown = lockstep.json(&["show", &set.id, "--from", "repository"]);
    assert_eq!(shown["start_lsn"], redo.to_string(), "{shown}");
    let rows = fixture.cluster.value("postgres", "SELECT count(*) FROM late");
    let directory = fixture.target("back");
    let restored = lockstep.restore_and_start(&set.id, &directory, &FILES);
    assert_eq!(restored.server().value("postgres", "SELECT count(*) FROM late"), rows);
    Checker::new(SCALE).check_and_stop(restored.server()).assert_right("from the repository");
    let ls = lockstep.json(&["ls", &set.id, "wal"]);
    assert!(ls.to_string().contains("0000000100"), "{ls}");
}

/// A standby whose checkpoint is still that of the old timeline, while its data files hold changes of the new one.
fn promoted_a_moment_ago(layout: Layout) -> Standby {
    // A checkpoint that may take its time: there are thousands of pages to write.
    let standby =
        Standby::new(layout.setting("checkpoint_timeout", "1h").setting("max_wal_size", "4GB"));
    standby.primary.pgbench_tables(SCALE, "ts1", "ts2");
    standby.primary.execute(&["UPDATE pgbench_accounts SET filler = 'before'"]);
    standby.catch_up();
    let cluster = &standby.fixture.cluster;
    let late = "CREATE TABLE late AS SELECT generate_series(1, 1000) n";
    cluster.execute(&["SELECT pg_promote()", late]);
    assert_is_between(cluster);
    standby
}

#[track_caller]
fn assert_is_between(cluster: &Cluster) {
    let is = control(cluster);
    assert_eq!(is.checkpoint_copy.timeline.get(), 1, "the checkpoint has come");
    assert_eq!(is.min_recovery_point_timeline, 2);
}

#[test]
fn an_atomic_set_of_a_standby_promoted_a_moment_ago() {
    let standby = promoted_a_moment_ago(one_dataset());
    let cluster = &standby.fixture.cluster;
    let lockstep = with_repository(&standby.fixture);
    let set = lockstep.backup("atomic");
    assert_eq!(set.json["repositories"][0]["complete"], true, "{}", set.json);
    assert_is_between(cluster);
    let shown = lockstep.json(&["show", &set.id, "--from", "repository"]);
    let wal = shown["wal"]["segments"].to_string();
    for name in ["\"00000001000000", "\"00000002000000", "00000002.history"] {
        assert!(wal.contains(name), "{name}: {wal}");
    }
    let directory = standby.fixture.target("back");
    let restored = lockstep.restore_and_start(&set.id, &directory, &FILES);
    let count = "SELECT count(*) FROM late";
    assert_eq!(restored.server().value("postgres", count), "1000");
    Checker::new(SCALE).check_and_stop(restored.server()).assert_right("from the repository");
    cluster.stop(Stop::Immediate);
}

/// An ordered set names the segments of one timeline: it is refused until there is a checkpoint on the new one.
#[test]
fn an_ordered_set_of_a_standby_promoted_a_moment_ago_waits_for_a_checkpoint() {
    let standby = promoted_a_moment_ago(two_pools_four_datasets());
    let cluster = &standby.fixture.cluster;
    let lockstep = standby.fixture.lockstep();
    let refused = lockstep.expect(exit::REFUSED, &["backup", "--strategy", "ordered"]);
    for words in ["from timeline 1 to 2", "CHECKPOINT makes one"] {
        assert!(refused.stderr.contains(words), "{words:?}: {}", refused.describe());
    }
    cluster.execute(&["CHECKPOINT"]);
    let set = lockstep.backup("ordered");
    let restored = lockstep.restore_and_start(&set.id, &standby.fixture.target("back"), &[]);
    let count = "SELECT count(*) FROM late";
    assert_eq!(restored.server().value("postgres", count), "1000");
    restored.server().stop(Stop::Immediate);
}
