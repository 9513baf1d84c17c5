//! Mirrors whose primary is lost, or is another server than before: on another timeline, at another address, of another
//! cluster; and mirrors that were promoted themselves.

use super::{
    PATIENCE, SCALE, backup, catch_up, create, create_words, directory, restore, server_of, status,
    wait_for_state, words,
};
use crate::support::by_hand::write_as_postgres;
use crate::support::checker::Checker;
use crate::support::cluster::{Cluster, Stop};
use crate::support::command::{give_to_postgres, must, wait_until};
use crate::support::faults::{assert_said, kill_at};
use crate::support::layout::empty_pools;
use crate::support::lockstep::exit;
use crate::support::standby::{Alone, set};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Loses the primary: a standby that was behind the mirror takes over its address, with more settings, and its place.
#[track_caller]
fn heir_of(alone: &Alone, more: &str) -> Cluster {
    let heir = alone.another_standby();
    heir.stop(Stop::Fast);
    alone.primary.execute(&["CREATE TABLE lost (n int)", "INSERT INTO lost VALUES (1)"]);
    catch_up(alone, "main");
    alone.primary.stop(Stop::Immediate);
    let (port, socket) = (alone.primary.port, alone.primary.socket.display());
    set(&heir, &format!("port = {port}\nunix_socket_directories = '{socket}'\n{more}"));
    let heir = Cluster { port, socket: alone.primary.socket.clone(), ..heir };
    heir.start();
    heir.execute(&["SELECT pg_promote()", "CREATE TABLE kept (n int)", "CHECKPOINT"]);
    heir
}

/// The primary is lost, and a standby that was behind the mirror takes its place: pg_rewind brings the mirror back.
#[test]
fn another_way_than_its_primary() {
    let alone = Alone::new(empty_pools());
    alone.primary.pgbench_tables(SCALE, "ts1", "ts2");
    create(&alone, "main");
    catch_up(&alone, "main");
    let heir = heir_of(&alone, "");
    let lockstep = alone.fixture.lockstep();
    let seen = wait_for_state(&alone, "main", "diverged");
    // It still has the table that the heir never got.
    let hint = seen["hint"].as_str().unwrap_or_default();
    let (first, then) = (hint.find("--cluster main backup"), hint.find("mirror recreate main"));
    assert!(first.is_some() && first < then, "{seen}");
    let made = lockstep.expect(exit::DONE, &["mirror", "recreate", "main"]);
    assert!(made.stdout.contains("after pg_rewind"), "{}", made.describe());
    let seen = wait_for_state(&alone, "main", "follows");
    assert_eq!(seen["running"], true, "{seen}");
    let tables = "SELECT coalesce(to_regclass('lost')::text, '') || ' ' || coalesce(to_regclass('kept')::text, '')";
    let mirror = server_of(&alone, "main");
    wait_until("the mirror is the heir's", PATIENCE, || {
        mirror.value("postgres", tables) == " kept"
    });
    let set = backup(&lockstep, "main");
    let (_, restored) = restore(&alone, "main", &set);
    Checker::new(SCALE).check_and_stop(&restored).assert_right("after pg_rewind");

    // It diverges again, and meanwhile the heir has a tablespace on this very host, which pg_rewind would link.
    let path = alone.fixture.root().join("m/ts3");
    fs::create_dir(&path).expect("a folder can be made");
    give_to_postgres(&path);
    lockstep.expect(exit::DONE, &["mirror", "stop", "main"]);
    heir.execute(&[
        &format!("CREATE TABLESPACE ts3 LOCATION '{}'", path.display()),
        "CREATE TABLE late TABLESPACE ts3 AS SELECT i FROM generate_series(1, 1000) AS i",
        "CHECKPOINT",
    ]);
    part_ways(&heir);
    let before = files_below(&path);
    let made = lockstep.expect(exit::DONE, &["mirror", "recreate", "main"]);
    assert!(made.stdout.contains("fresh base backup"), "{}", made.describe());
    assert_eq!(files_below(&path), before, "somebody wrote to the live tablespace");
    wait_for_state(&alone, "main", "follows");
    heir.stop(Stop::Immediate);
}

/// The primary is lost, and a standby on another address takes its place.
#[test]
fn another_server_than_its_primary() {
    let alone = Alone::new(empty_pools());
    create(&alone, "main");
    let heir = alone.another_standby();
    catch_up(&alone, "main");
    let lockstep = alone.fixture.lockstep();
    // Of a standby there can be a mirror, but not one that is known to follow.
    let mut of_standby = create_words(&alone, "second");
    let from = format!("host={} port={} user=postgres", heir.socket.display(), heir.port);
    let named = of_standby.iter_mut().find(|word| **word == alone.conninfo()).expect("--from");
    named.clone_from(&from);
    of_standby.push("--dry-run".to_owned());
    let planned = lockstep.expect(exit::DONE, &words(&of_standby));
    assert!(planned.stderr.contains("is itself a standby"), "{}", planned.describe());
    // The slot may be another host's mirror's.
    heir.execute(&["SELECT pg_create_physical_replication_slot('lockstep_mirror_main', true)"]);
    let to_heir = ["mirror", "recreate", "main", "--from", &from];
    let refused = lockstep.expect(exit::REFUSED, &to_heir);
    assert_said(&refused, &["is itself a standby", "has a slot"]);
    alone.primary.stop(Stop::Immediate);
    heir.execute(&["SELECT pg_promote()", "CREATE TABLE kept (n int)", "CHECKPOINT"]);
    let seen = wait_for_state(&alone, "main", "primary-unreachable");
    assert!(seen["hint"].as_str().is_some_and(|hint| hint.contains("--from")), "{seen}");
    let bad = ["mirror", "recreate", "main", "--from", "host=/nowhere user=postgres"];
    lockstep.expect(exit::FAILED, &bad);
    assert_eq!(status(&alone, "main").0["running"], true, "nothing was changed");
    let refused = lockstep.expect(exit::REFUSED, &to_heir);
    assert_said(&refused, &["has a slot \"lockstep_mirror_main\" already", "hint: another mirror"]);
    assert_eq!(status(&alone, "main").0["running"], true, "nothing was changed");
    heir.execute(&["SELECT pg_drop_replication_slot('lockstep_mirror_main')"]);
    let made = lockstep.expect(exit::DONE, &to_heir);
    assert!(made.stderr.contains("pg_drop_replication_slot"), "{}", made.describe());
    wait_for_state(&alone, "main", "follows");
    let kept = "SELECT coalesce(to_regclass('kept')::text, '')";
    let mirror = server_of(&alone, "main");
    wait_until("the mirror has the heir's", PATIENCE, || mirror.value("postgres", kept) == "kept");
    // Backups ask the new one, too.
    let file = alone.fixture.root().join("lockstep.d/main.toml");
    let text = fs::read_to_string(&file).expect("it is registered");
    assert!(text.contains(&format!("port={}", heir.port)), "{text}");
    backup(&lockstep, "main");
    // From now on without being told.
    lockstep.expect(exit::DONE, &["mirror", "recreate", "main"]);
    lockstep.expect(exit::DONE, &["mirror", "destroy", "main", "--with-sets"]);
    let slots = "SELECT slot_name FROM pg_replication_slots WHERE slot_name LIKE 'lockstep%'";
    assert_eq!(heir.column("postgres", slots), [""; 0]);
    heir.stop(Stop::Immediate);
}

/// After pg_rewind the mirror needs WAL from before the failover, which the new primary has removed by now.
#[test]
fn another_way_than_its_primary_whose_wal_is_gone() {
    let alone = Alone::new(empty_pools());
    // pg_rewind itself looks for the last common checkpoint in the mirror's own WAL.
    let mut arguments = create_words(&alone, "main");
    arguments.extend(["--setting", "wal_keep_size=4GB"].map(str::to_owned));
    let lockstep = alone.fixture.lockstep();
    lockstep.expect(exit::DONE, &words(&arguments));
    let heir = heir_of(&alone, "wal_keep_size = 0\narchive_mode = off\n");
    for _ in 0..8 {
        heir.execute(&["INSERT INTO kept VALUES (1)", "SELECT pg_switch_wal()"]);
    }
    heir.execute(&["CHECKPOINT", "CHECKPOINT"]);
    let made = lockstep.expect(exit::DONE, &["mirror", "recreate", "main"]);
    assert!(made.stderr.contains("needs after pg_rewind"), "{}", made.describe());
    assert!(made.stdout.contains("fresh base backup"), "{}", made.describe());
    catch_up(&alone, "main");
    assert_eq!(server_of(&alone, "main").value("postgres", "SELECT count(*) FROM kept"), "8");
    heir.stop(Stop::Immediate);
}

/// As after pg_upgrade: another cluster answers at the primary's address. A slot that was made there would keep its WAL
/// for ever, and one that is there belongs to another mirror.
#[test]
fn another_cluster_at_the_primary_s_address() {
    let alone = Alone::new(empty_pools());
    create(&alone, "main");
    alone.primary.stop(Stop::Fast);
    let data = alone.fixture.owned("upgraded").join("data");
    let words = ["-D", data.to_str().expect("the harness' own paths are UTF-8"), "-U", "postgres"];
    must(&mut alone.primary.tool("initdb", words));
    let (port, socket) = (alone.primary.port, alone.primary.socket.clone());
    let log = alone.primary.log.with_file_name("upgraded.log");
    let other = Cluster { bin: alone.primary.bin.clone(), data, socket, port, log };
    let socket = other.socket.display();
    set(&other, &format!("port = {port}\nunix_socket_directories = '{socket}'\n"));
    other.start();
    let seen = wait_for_state(&alone, "main", "primary-unreachable");
    assert!(seen["words"].as_str().is_some_and(|it| it.contains("another cluster")), "{seen}");
    let lockstep = alone.fixture.lockstep();
    lockstep.expect(exit::DONE, &["mirror", "stop", "main"]);
    let started = lockstep.expect(exit::DONE, &["mirror", "start", "main"]);
    assert!(started.stderr.contains("another cluster"), "{}", started.describe());
    let slots = "SELECT slot_name FROM pg_replication_slots";
    assert_eq!(other.column("postgres", slots), [""; 0]);
    let make = "SELECT pg_create_physical_replication_slot('lockstep_mirror_main', true)";
    other.execute(&[make]);
    let gone = lockstep.expect(exit::DONE, &["mirror", "destroy", "main"]);
    assert!(gone.stderr.contains("another cluster"), "{}", gone.describe());
    assert_eq!(other.column("postgres", slots), ["lockstep_mirror_main"]);
    other.stop(Stop::Immediate);
}

/// A mirror is promoted because its primary is lost, people write to it, and the old primary comes back. What the hint of
/// `mirror status` names must not destroy that unasked.
#[test]
fn promoted_and_written_to() {
    let alone = Alone::new(empty_pools());
    create(&alone, "main");
    catch_up(&alone, "main");
    let mirror = server_of(&alone, "main");
    mirror.execute(&["SELECT pg_promote()", "CREATE TABLE precious (n int)"]);
    let lockstep = alone.fixture.lockstep();
    let seen = wait_for_state(&alone, "main", "promoted");
    let hint = seen["hint"].as_str().expect("there is one");
    assert!(hint.contains("backup") && hint.contains("--discard-writes"), "{seen}");
    for is_stopped in [false, true] {
        if is_stopped {
            lockstep.expect(exit::DONE, &["mirror", "stop", "main"]);
        }
        let refused = lockstep.expect(exit::REFUSED, &["mirror", "recreate", "main"]);
        assert_said(
            &refused,
            &["error: ", "was promoted", "hint: ", "--discard-writes", "prune --local"],
        );
    }
    lockstep.expect(exit::DONE, &["mirror", "start", "main"]);
    let precious = "SELECT count(*) FROM precious";
    assert_eq!(server_of(&alone, "main").value("postgres", precious), "0");
    lockstep.expect(exit::DONE, &["mirror", "recreate", "main", "--discard-writes"]);
    wait_for_state(&alone, "main", "follows");
}

/// The same after a `mirror recreate` that was killed once it had started the server: that goes on.
#[test]
fn promoted_after_a_recreate_that_was_cut_off() {
    let alone = Alone::new(empty_pools());
    create(&alone, "main");
    let lockstep = alone.fixture.lockstep();
    let recreate = ["mirror", "recreate", "main"];
    kill_at(&alone.fixture, "mirror.launched", &recreate);
    let pid = directory(&alone, "main").join("data/postmaster.pid");
    wait_until("its server takes connections", PATIENCE, || {
        let text = fs::read_to_string(&pid).unwrap_or_default();
        text.lines().nth(7).is_some_and(|state| state.trim() == "ready")
    });
    let mirror = server_of(&alone, "main");
    mirror.execute(&["SELECT pg_promote()", "CREATE TABLE precious (n int)"]);
    let refused = lockstep.expect(exit::REFUSED, &recreate);
    assert_said(&refused, &["error: ", "was promoted", "hint: ", "pg_dump", "--discard-writes"]);
    assert_eq!(mirror.value("postgres", "SELECT count(*) FROM precious"), "0");
    // As after a reboot: nothing starts it.
    lockstep.expect(exit::DONE, &["mirror", "stop", "main"]);
    let refused = lockstep.expect(exit::REFUSED, &recreate);
    let words = ["error: ", "was promoted", "hint: ", "zfs snapshot", "--discard-writes"];
    assert_said(&refused, &words);
    lockstep.expect(exit::DONE, &["mirror", "recreate", "main", "--discard-writes"]);
    wait_for_state(&alone, "main", "follows");
}

/// A `mirror recreate` was killed once it had the primary's data, and the next one while it emptied that: nobody has
/// promoted it.
#[test]
fn half_emptied_by_a_recreate_that_was_cut_off() {
    let alone = Alone::new(empty_pools());
    create(&alone, "main");
    let lockstep = alone.fixture.lockstep();
    let recreate = ["mirror", "recreate", "main"];
    let data = directory(&alone, "main").join("data");
    for step in ["mirror.recreate-filled", "mirror.recreate-emptying"] {
        kill_at(&alone.fixture, step, &recreate);
        assert!(!data.join("standby.signal").exists(), "{step}");
    }
    // In which order the rest goes, the file system says.
    fs::remove_file(data.join("backup_label")).expect("each base backup has one");
    lockstep.expect(exit::DONE, &recreate);
    wait_for_state(&alone, "main", "follows");
}

/// Puts a primary on its own timeline, as after a failover.
#[track_caller]
fn part_ways(primary: &Cluster) {
    primary.stop(Stop::Fast);
    write_as_postgres(&primary.data.join("standby.signal"), "");
    primary.start();
    primary.execute(&["SELECT pg_promote()", "CHECKPOINT"]);
}

/// The files below a folder with their inodes, sizes and times.
fn files_below(folder: &Path) -> Vec<(PathBuf, u64, u64, i64)> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let found = entry.metadata().expect("it can be looked at");
        if found.is_dir() {
            all.extend(files_below(&entry.path()));
        } else {
            all.push((entry.path(), found.ino(), found.size(), found.ctime_nsec()));
        }
    }
    all.sort();
    all
}
