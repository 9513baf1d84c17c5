//! The WAL stored with a set: what the snapshot's own pg_control asks for, whatever the cluster did since the survey.

use crate::support::by_hand::write_as_postgres;
use crate::support::checker::Checker;
use crate::support::cluster::{Cluster, Stop};
use crate::support::command::{command, must, wait_until};
use crate::support::fixture::Fixture;
use crate::support::layout::{Layout, one_dataset, one_pool, two_pools_four_datasets};
use crate::support::lockstep::{LIMIT, Lockstep, Lsn, Set, Steps, exit, json_of};
use crate::support::shipping::with_repository;
use crate::support::standby::Standby;
use pgfiles::control_file::ControlFile;
use pgfiles::wal_name::{WalSegment, WalSegmentSize};
use pgfiles::wal_page::SegmentHeader;
use std::fs;
use std::time::Duration;

const SCALE: u32 = 2;
const FILES: [&str; 4] = ["--from", "repository", "--as", "files"];

fn control(cluster: &Cluster) -> ControlFile {
    let bytes = fs::read(cluster.data.join("global/pg_control")).expect("pg_control can be read");
    ControlFile::parse(&bytes).expect("pg_control isn't torn")
}

/// A checkpoint completes after the survey, and the WAL that it made unnecessary is removed before the snapshot.
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

/// A standby whose checkpoint is still on the old timeline while its data files have changes of the new one.
fn promoted_a_moment_ago(layout: Layout) -> Standby {
    // The checkpoint may take a while: thousands of pages must be written.
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

/// An ordered set names the segments of one timeline, so it is refused until there is a checkpoint on the new one.
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

/// A checkpoint during the freezing of pg_wal removes segments in the order of the folder, which isn't the order of
/// their names: the one in which recovery begins may still exist while a later one is gone.
#[test]
fn an_ordered_set_with_a_gap_in_its_wal() {
    let fixture = Fixture::new(two_pools_four_datasets().setting("wal_keep_size", "1GB"));
    fixture.pgbench_tables(SCALE);
    let cluster = &fixture.cluster;
    cluster.execute(&["CREATE TABLE late (n int) TABLESPACE ts2", "CHECKPOINT"]);
    let path = fixture.root().join("silent.toml");
    fs::write(&path, fixture.configuration("ordered", false)).expect("it can be written");
    let silent = Lockstep::new(&path, &cluster.bin);
    // Held before pg_wal is frozen, with one of the segments after the first removed.
    let taken = |is_done: bool| {
        let steps = Steps::new(fixture.root().join("steps"));
        let step = "backup.before-snapshot-3";
        steps.hold(step);
        let mut running = silent.clone().with_steps(&steps).spawn(&["--json", "backup"]);
        steps.wait_reached(step, &mut running);
        let segment = "SELECT pg_walfile_name(pg_current_wal_lsn())";
        let names: Vec<_> = (0..4)
            .map(|n| {
                let name = cluster.value("postgres", segment);
                let row = format!("INSERT INTO late VALUES ({n})");
                cluster.execute(&[&row, "SELECT pg_switch_wal()"]);
                name
            })
            .collect();
        if is_done {
            cluster.execute(&["CHECKPOINT"]);
        }
        fs::remove_file(cluster.data.join("pg_wal").join(&names[2])).expect("it was written");
        steps.release(step);
        (names[2].clone(), running.wait(LIMIT))
    };
    // pg_control has a later redo point: nothing before that is certain to exist.
    let (gone, outcome) = taken(true);
    assert_eq!(outcome.code, Some(exit::DONE), "{}", outcome.describe());
    for words in ["taking the set again", &gone] {
        assert!(outcome.stderr.contains(words), "{words:?}: {}", outcome.describe());
    }
    let set = Set::of(&json_of(&outcome));
    assert_eq!(set.tries, 2, "{}", set.json);
    let restored = silent.restore_and_start(&set.id, &fixture.target("whole"), &[]);
    assert_eq!(restored.server().value("postgres", "SELECT count(*) FROM late"), "4");
    Checker::new(SCALE).check_and_stop(restored.server()).assert_right("the second try");
    // A set from before this check existed has this in its snapshot.
    let (gone, outcome) = taken(false);
    assert_eq!(outcome.code, Some(exit::DONE), "{}", outcome.describe());
    let set = Set::of(&json_of(&outcome)).id;
    let to = fixture.target("holed").display().to_string();
    for words in [&["restore", &set, "--to", &to][..], &["ls", &set, "wal"]] {
        let refused = silent.expect(exit::REFUSED, words);
        assert!(refused.stderr.contains(&gone), "{}", refused.describe());
    }
}

/// Recovers the cluster to a point in time by hand, as PostgreSQL's manual describes: the earlier data files, pg_wal
/// as it is, and recovery to `target`, where a new timeline begins.
fn recover_to(fixture: &Fixture, snapshot: &str, target: &str) {
    let cluster = &fixture.cluster;
    cluster.stop(Stop::Fast);
    for dataset in fixture.datasets.iter().filter(|name| !name.ends_with("/wal")) {
        let name = format!("{dataset}@{snapshot}");
        must(&mut command("zfs", ["rollback", "-r", &name]));
        must(&mut command("zfs", ["destroy", &name]));
    }
    write_as_postgres(&cluster.data.join("recovery.signal"), "");
    let conf = cluster.data.join("postgresql.auto.conf");
    let settings = fs::read_to_string(&conf).expect("it has settings");
    let archive = fixture.archive.display();
    write_as_postgres(
        &conf,
        &format!(
            "{settings}\nrestore_command = 'cp {archive}/%f %p'\nrecovery_target_lsn = '{target}'\nrecovery_target_action = 'promote'\n"
        ),
    );
    cluster.start();
    wait_until("recovery has ended", Duration::from_secs(60), || {
        cluster.value("postgres", "SELECT pg_is_in_recovery()") == "f"
    });
}

/// At the end of a recovery, PostgreSQL turns the old timeline's segments into future ones of the new timeline, in
/// the order in which the folder lists them: a later position may get an earlier name. They wait to be used, and are
/// no damage.
#[test]
fn after_a_recovery_to_a_point_in_time() {
    let fixture = Fixture::new(one_pool().archive());
    fixture.pgbench_tables(SCALE);
    let cluster = &fixture.cluster;
    cluster.execute(&["CREATE TABLE marks (n int) TABLESPACE ts2", "CHECKPOINT"]);
    cluster.stop(Stop::Fast);
    for dataset in fixture.datasets.iter().filter(|name| !name.ends_with("/wal")) {
        must(&mut command("zfs", ["snapshot", &format!("{dataset}@before")]));
    }
    cluster.start();
    cluster.execute(&["INSERT INTO marks VALUES (1)"]);
    let target = cluster.value("postgres", "SELECT pg_current_wal_insert_lsn()");
    for n in 0..14 {
        cluster.execute(&[
            &format!("INSERT INTO marks VALUES ({})", 100 + n),
            "SELECT pg_switch_wal()",
        ]);
    }
    recover_to(&fixture, "before", &target);
    let rows = "SELECT string_agg(n::text, ',' ORDER BY n) FROM marks";
    assert_eq!(cluster.value("postgres", rows), "1", "what came behind the target");
    let pg_wal = fs::read_dir(cluster.data.join("pg_wal")).expect("pg_wal can be listed");
    let size = WalSegmentSize::DEFAULT;
    let is_ahead = |path: &std::path::Path| {
        let name = path.file_name()?.to_str()?;
        let segment = WalSegment::parse(name, size).ok()?;
        let header = SegmentHeader::parse(&fs::read(path).ok()?).ok()?;
        Some(segment.timeline > header.timeline && header.page_addr > segment.start(size))
    };
    let ahead = pg_wal.flatten().filter(|entry| is_ahead(&entry.path()) == Some(true)).count();
    assert!(ahead > 0, "no later segment got an earlier name");

    let lockstep = with_repository(&fixture);
    for (n, strategy) in [(2, "atomic"), (3, "cold")] {
        cluster.execute(&[&format!("INSERT INTO marks VALUES ({n})")]);
        if strategy == "cold" {
            cluster.stop(Stop::Fast);
        }
        let set = lockstep.backup(strategy);
        let ls = lockstep.json(&["ls", &set.id, "wal"]);
        assert!(ls.to_string().contains("0000000200"), "{ls}");
        for (how, from) in [("files", &FILES[..]), ("clones", &[][..])] {
            let directory = fixture.target(&format!("{strategy}-{how}"));
            let restored = lockstep.restore_and_start(&set.id, &directory, from);
            let found = restored.server().value("postgres", rows);
            let expected = if n == 2 { "1,2" } else { "1,2,3" };
            assert_eq!(found, expected, "{strategy} from {how}");
            let checker = Checker::new(SCALE);
            checker.check_and_stop(restored.server()).assert_right(&format!("{strategy}, {how}"));
            fixture.discard_restored(&directory, &set.id);
        }
    }
}
