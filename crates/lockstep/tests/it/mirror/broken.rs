//! Mirrors that are cut off from their primary, lack WAL that is gone, or aren't mounted; interrupted at every step.

use super::{
    PATIENCE, SCALE, assert_gone, backup, catch_up, create, create_words, dataset, directory,
    of_cluster, restore, server_of, status, wait_for_state, words,
};
use crate::support::checker::Checker;
use crate::support::cluster::{Cluster, Stop};
use crate::support::command::{as_postgres, command, give_to_postgres, must, wait_until};
use crate::support::faults::assert_said;
use crate::support::fixture::free_port;
use crate::support::layout::empty_pools;
use crate::support::lockstep::{LIMIT, Set, Steps, exit, json_of};
use crate::support::pools::{patiently, zfs};
use crate::support::shipping::discard;
use crate::support::standby::Alone;
use rustix::process::Signal;
use std::fs;
use std::path::Path;

#[test]
fn primary_dies_for_a_while() {
    let alone = Alone::new(empty_pools());
    alone.primary.pgbench_tables(SCALE, "ts1", "ts2");
    create(&alone, "main");
    alone.primary.kill();
    let seen = wait_for_state(&alone, "main", "primary-unreachable");
    assert_eq!(seen["running"], true, "{seen}");
    // Its sets continue meanwhile, with a message that their data is old.
    let lockstep = alone.fixture.lockstep();
    let taken = |words: &str| {
        let json = of_cluster("main", &["--json", "backup"]);
        let outcome = lockstep.expect(exit::PROBLEMS, &json);
        assert!(outcome.stderr.contains(words), "{}", outcome.describe());
        let set = Set::of(&json_of(&outcome));
        assert_eq!(set.json["warnings"][0]["problem"], true, "{}", set.json);
        assert!(set.json["data_at"].as_str() < set.json["started_at"].as_str(), "{}", set.json);
        set
    };
    let set = taken("nothing streams to this standby");
    let checked = lockstep.expect(exit::PROBLEMS, &of_cluster("main", &["check"]));
    assert!(checked.stdout.contains("ERROR    standby: nothing streams"), "{}", checked.describe());
    lockstep.expect(exit::DONE, &["mirror", "stop", "main"]);
    assert_eq!(taken("the standby is stopped").strategy, "cold");
    let checked = lockstep.expect(exit::PROBLEMS, &of_cluster("main", &["check"]));
    assert!(checked.stdout.contains("ERROR    standby: it is stopped"), "{}", checked.describe());
    lockstep.expect(exit::DONE, &["mirror", "start", "main"]);
    // It has started without its primary, and keeps looking for it.
    let seen = wait_for_state(&alone, "main", "primary-unreachable");
    assert_eq!(seen["running"], true, "{seen}");
    alone.primary.start();
    alone.primary.execute(&["CREATE TABLE after (n int)", "INSERT INTO after VALUES (7)"]);
    catch_up(&alone, "main");
    assert_eq!(server_of(&alone, "main").value("postgres", "SELECT n FROM after"), "7");
    wait_for_state(&alone, "main", "follows");
    let (_, restored) = restore(&alone, "main", &set);
    Checker::new(SCALE).check_and_stop(&restored).assert_right("a set without a primary");
}

/// The primary's setting was raised, which halts the mirror, and lowered again: the current value isn't enough to
/// replay that.
#[test]
fn primary_raised_and_lowered_again() {
    let alone = Alone::new(empty_pools());
    create(&alone, "main");
    let restart_with = |connections: &str| {
        let set = format!("ALTER SYSTEM SET max_connections = {connections}");
        alone.primary.execute(&[&set]);
        alone.primary.stop(Stop::Fast);
        alone.primary.start();
    };
    let before = alone.primary.value("postgres", "SHOW max_connections");
    restart_with("60");
    let log = directory(&alone, "main").join("log/server.log");
    wait_until("the mirror halts", PATIENCE, || {
        fs::read_to_string(&log).is_ok_and(|text| text.contains("recovery has paused"))
    });
    restart_with(&before);
    let lockstep = alone.fixture.lockstep();
    lockstep.expect(exit::DONE, &["mirror", "stop", "main"]);
    let started = lockstep.expect(exit::DONE, &["mirror", "start", "main"]);
    assert!(started.stderr.contains("max_connections becomes 60"), "{}", started.describe());
    alone.primary.execute(&["CREATE TABLE after AS SELECT 7 AS n"]);
    catch_up(&alone, "main");
    let mirror = server_of(&alone, "main");
    assert_eq!(mirror.value("postgres", "SELECT n FROM after"), "7");
    assert_eq!(mirror.value("postgres", "SHOW max_connections"), "60");
}

/// PostgreSQL 18 can end a slot that nothing uses for a while. A new one serves as well, as long as the WAL is there.
#[test]
fn its_slot_was_not_used_for_too_long() {
    let layout = empty_pools().major(18);
    let alone = Alone::new(
        layout.setting("idle_replication_slot_timeout", "1s").setting("wal_keep_size", "512MB"),
    );
    create(&alone, "main");
    catch_up(&alone, "main");
    let lockstep = alone.fixture.lockstep();
    lockstep.expect(exit::DONE, &["mirror", "stop", "main"]);
    let lost = "SELECT wal_status = 'lost' FROM pg_replication_slots";
    wait_until("the slot is invalidated", PATIENCE, || {
        alone.primary.execute(&["SELECT pg_switch_wal()", "CHECKPOINT"]);
        alone.primary.value("postgres", lost) == "t"
    });
    let (seen, code) = status(&alone, "main");
    assert_eq!(
        (&seen["state"]["state"], code),
        (&"slot-lost".into(), Some(exit::PROBLEMS)),
        "{seen}"
    );
    assert!(seen["words"].to_string().contains("idle_replication_slot_timeout"), "{seen}");
    assert!(seen["hint"].to_string().contains("lockstep mirror start main"), "{seen}");
    lockstep.expect(exit::DONE, &["mirror", "start", "main"]);
    alone.primary.execute(&["CREATE TABLE after AS SELECT 7 AS n"]);
    catch_up(&alone, "main");
    assert_eq!(server_of(&alone, "main").value("postgres", "SELECT n FROM after"), "7");
    wait_for_state(&alone, "main", "follows");
}

/// The slot is dropped and the WAL recycled while the mirror is down: it can't follow any more, and says so. After it
/// was recreated, its old sets still have its old data.
#[test]
fn behind_its_wal_and_made_new() {
    let alone = Alone::new(empty_pools().setting("min_wal_size", "32MB"));
    alone.primary.pgbench_tables(SCALE, "ts1", "ts2");
    create(&alone, "main");
    catch_up(&alone, "main");
    let lockstep = alone.fixture.lockstep();
    let old = backup(&lockstep, "main");
    lockstep.expect(exit::DONE, &["mirror", "stop", "main"]);
    let drop_slot = "SELECT pg_drop_replication_slot('lockstep_mirror_main')";
    wait_until("the slot is free", PATIENCE, || {
        alone.primary.connect("postgres").batch_execute(drop_slot).is_ok()
    });
    for _ in 0..6 {
        alone.primary.execute(&[
            "CREATE TABLE big AS SELECT i, md5(i::text) FROM generate_series(1, 100000) AS i",
            "DROP TABLE big",
            "SELECT pg_switch_wal()",
            "CHECKPOINT",
        ]);
    }
    // Started with a new slot, which keeps none of the WAL that it needs.
    lockstep.expect(exit::DONE, &["mirror", "start", "main"]);
    let seen = wait_for_state(&alone, "main", "wal-gone");
    assert_eq!(seen["hint"], "lockstep mirror recreate main", "{seen}");
    let shown = lockstep.expect(exit::PROBLEMS, &["mirror", "status"]);
    assert!(shown.stdout.contains("has already been removed"), "{}", shown.describe());
    // Each run has its own log: earlier messages don't count.
    lockstep.expect(exit::DONE, &["mirror", "stop", "main"]);
    lockstep.expect(exit::DONE, &["mirror", "start", "main"]);
    let log = fs::read_to_string(directory(&alone, "main").join("log/server.log"));
    let starts = log.unwrap_or_default().matches("starting PostgreSQL").count();
    assert_eq!(starts, 1, "a log begins with its server");
    wait_for_state(&alone, "main", "wal-gone");

    alone.primary.execute(&["CREATE TABLE after (n int)", "INSERT INTO after VALUES (7)"]);
    // Interrupted half way: pg_control may still say "shut down".
    let steps = Steps::new(alone.fixture.root().join("steps"));
    steps.hold("mirror.recreate-slot");
    let mut running = lockstep.clone().with_steps(&steps).spawn(&["mirror", "recreate", "main"]);
    steps.wait_reached("mirror.recreate-slot", &mut running);
    running.signal(Signal::TERM);
    let outcome = running.wait(LIMIT);
    assert_eq!(outcome.code, Some(exit::INTERRUPTED), "{}", outcome.describe());
    for words in [&["backup", "--strategy", "cold"][..], &["backup"], &["plan"]] {
        let refused = lockstep.expect(exit::REFUSED, &of_cluster("main", words));
        let said = &refused.stderr;
        assert!(said.contains("is half old and half new"), "{}", refused.describe());
        assert!(said.contains("mirror recreate main"), "{}", refused.describe());
    }
    let checked = lockstep.run(&of_cluster("main", &["check"]));
    assert!(checked.stdout.contains("is half old and half new"), "{}", checked.describe());
    let made = lockstep.expect(exit::DONE, &["mirror", "recreate", "main"]);
    assert!(made.stdout.contains("fresh base backup"), "{}", made.describe());
    wait_for_state(&alone, "main", "follows");
    catch_up(&alone, "main");
    assert_eq!(server_of(&alone, "main").value("postgres", "SELECT n FROM after"), "7");
    let new = backup(&lockstep, "main");
    for (set, table) in [(&old, "f"), (&new, "t")] {
        let (to, restored) = restore(&alone, "main", set);
        let there = "SELECT to_regclass('after') IS NOT NULL";
        assert_eq!(restored.value("postgres", there), table, "set {}", set.id);
        Checker::new(SCALE).check_and_stop(&restored).assert_right("around a recreate");
        alone.fixture.discard_restored(&to, &set.id);
    }
}

/// A tablespace that the primary gets later is replayed at the same path, which here is the primary's own folder: the
/// mirror must stop rather than write there.
#[test]
fn tablespace_made_on_the_primary_later() {
    let alone = Alone::new(empty_pools());
    alone.primary.pgbench_tables(SCALE, "ts1", "ts2");
    create(&alone, "main");
    catch_up(&alone, "main");
    let path = alone.fixture.root().join("p/ts3");
    fs::create_dir(&path).expect("a folder can be made");
    give_to_postgres(&path);
    alone.primary.execute(&[
        &format!("CREATE TABLESPACE ts3 LOCATION '{}'", path.display()),
        "CREATE TABLE late TABLESPACE ts3 AS SELECT i FROM generate_series(1, 1000) AS i",
    ]);
    let seen = wait_for_state(&alone, "main", "stopped");
    let hint = seen["hint"].as_str().unwrap_or_default();
    assert!(hint.contains("mirror recreate") && !hint.contains("writable"), "{seen}");
    alone.primary.execute(&["CHECKPOINT"]);
    assert_eq!(alone.primary.value("postgres", "SELECT count(*) FROM late"), "1000");
    let lockstep = alone.fixture.lockstep();
    // Nor may the configuration permit it.
    let registration = alone.fixture.root().join("lockstep.d/main.toml");
    let registered = fs::read_to_string(&registration).expect("it is registered");
    let named = format!("{registered}\n[clusters.main.clone]\nwritable = [{:?}]\n", path);
    fs::write(&registration, named).expect("it can be written");
    for words in ["start", "recreate"] {
        let refused = lockstep.expect(exit::REFUSED, &["mirror", words, "main"]);
        assert!(refused.stderr.contains("isn't this mirror's"), "{}", refused.describe());
    }
    assert_eq!(alone.primary.value("postgres", "SELECT count(*) FROM late"), "1000");
    fs::write(&registration, registered).expect("it can be written");
    lockstep.expect(exit::DONE, &["mirror", "recreate", "main"]);
    wait_for_state(&alone, "main", "follows");
    let set = backup(&lockstep, "main");
    assert_eq!(set.volumes.len(), 5, "{}", set.json);
    let (_, restored) = restore(&alone, "main", &set);
    assert_eq!(restored.value("postgres", "SELECT count(*) FROM late"), "1000");
    Checker::new(SCALE).check_and_stop(&restored).assert_right("with a tablespace made later");
}

/// A tablespace of the primary with the name of one that was renamed, or at the path of one that was dropped, gets a
/// dataset of its own.
#[test]
fn tablespaces_that_changed_names_and_paths() {
    let alone = Alone::new(empty_pools());
    create(&alone, "main");
    catch_up(&alone, "main");
    let primary = &alone.primary;
    let of = |what: &str, name: &str| {
        primary.value(
            "postgres",
            &format!("SELECT {what} FROM pg_tablespace WHERE spcname = '{name}'"),
        )
    };
    let freed = of("pg_tablespace_location(oid)", "ts2");
    let path = alone.fixture.root().join("p/ts3");
    fs::create_dir(&path).expect("a folder can be made");
    give_to_postgres(&path);
    primary.execute(&[
        "CREATE TABLE old TABLESPACE ts1 AS SELECT 1 AS n",
        "ALTER TABLESPACE ts1 RENAME TO told",
        &format!("CREATE TABLESPACE ts1 LOCATION '{}'", path.display()),
        "CREATE TABLE new TABLESPACE ts1 AS SELECT 2 AS n",
        "DROP TABLESPACE ts2",
        &format!("CREATE TABLESPACE ts2 LOCATION '{freed}'"),
        "CREATE TABLE again TABLESPACE ts2 AS SELECT 3 AS n",
    ]);
    wait_for_state(&alone, "main", "stopped");
    let lockstep = alone.fixture.lockstep();
    lockstep.expect(exit::DONE, &["mirror", "recreate", "main"]);
    wait_for_state(&alone, "main", "follows");
    catch_up(&alone, "main");
    let sum =
        "SELECT (SELECT n FROM old) || ' ' || (SELECT n FROM new) || ' ' || (SELECT n FROM again)";
    assert_eq!(server_of(&alone, "main").value("postgres", sum), "1 2 3");
    let top = directory(&alone, "main");
    for (name, folder) in [("told", "ts-ts1"), ("ts1", "ts-ts1-"), ("ts2", "ts-ts2-")] {
        let oid = of("oid", name);
        let own = if folder.ends_with('-') { format!("{folder}{oid}") } else { folder.to_owned() };
        let link = fs::read_link(top.join("data/pg_tblspc").join(&oid)).ok();
        assert_eq!(link, Some(top.join(&own)), "{name}");
        let there =
            zfs(&["list", "-H", "-o", "name", &format!("{}/{own}", dataset(&alone, "main"))]);
        assert!(there.contains(&own), "{there}");
    }
    assert_eq!(backup(&lockstep, "main").volumes.len(), 5);
    // Nothing is new on the primary.
    lockstep.expect(exit::DONE, &["mirror", "recreate", "main"]);
    wait_for_state(&alone, "main", "follows");
    lockstep.expect(exit::DONE, &["mirror", "destroy", "main", "--with-sets"]);
    assert_gone(&alone, "main", "destroyed with tablespaces that changed");
}

/// Somebody's shell is in the folder of the mirror's socket, where programs that fill the mirror run too.
#[test]
fn who_is_in_its_folder_is_left_alone() {
    let alone = Alone::new(empty_pools());
    create(&alone, "main");
    let run = directory(&alone, "main").join("run");
    let mut somebody =
        command("sleep", ["614"]).current_dir(&run).spawn().expect("sleep(1) is there");
    alone.fixture.lockstep().expect(exit::DONE, &["mirror", "recreate", "main"]);
    let ended = somebody.try_wait().expect("it can be asked");
    somebody.kill().expect("it is ours");
    somebody.wait().expect("it was killed");
    assert_eq!(ended, None, "it was ended");
}

/// A dataset that isn't mounted (after a reboot, because its key isn't loaded) leaves an empty folder in its place,
/// on another file system: nothing is written there.
#[test]
fn a_dataset_that_is_not_mounted() {
    let alone = Alone::new(empty_pools());
    create(&alone, "main");
    let lockstep = alone.fixture.lockstep();
    lockstep.expect(exit::DONE, &["mirror", "stop", "main"]);
    let elsewhere = format!("{}/main-ts2", alone.fixture.pools[1].name);
    let folder = directory(&alone, "main").join("ts-ts2");
    zfs(&["unmount", &elsewhere]);
    let (seen, code) = status(&alone, "main");
    assert_eq!((&seen["state"]["state"], code), (&"not-mounted".into(), Some(exit::PROBLEMS)));
    for words in ["start", "recreate"] {
        let refused = lockstep.expect(exit::REFUSED, &["mirror", words, "main"]);
        for said in [&format!("\"{elsewhere}\" isn't mounted at"), "hint: zfs mount"] {
            assert!(refused.stderr.contains(said), "{said:?}: {}", refused.describe());
        }
    }
    let left = fs::read_dir(&folder).into_iter().flatten().count();
    assert_eq!(left, 0, "something was written below the mount point");
    // Another dataset has its name and place by now: what is in it is somebody else's.
    let (own, theirs) = (format!("{elsewhere}-own"), folder.join("theirs"));
    let mountpoint = format!("mountpoint={}", folder.display());
    patiently("zfs", &["rename", &elsewhere, &own], || ()).expect("it is idle");
    zfs(&["create", "-o", &mountpoint, &elsewhere]);
    fs::write(&theirs, "precious").expect("it can be written");
    for words in ["start", "recreate"] {
        let refused = lockstep.expect(exit::REFUSED, &["mirror", words, "main"]);
        assert_said(&refused, &[&format!("\"{elsewhere}\" isn't this mirror's"), "zfs set"]);
    }
    assert_eq!(fs::read_to_string(&theirs).expect("it is there"), "precious");
    patiently("zfs", &["destroy", &elsewhere], || ()).expect("it is idle");
    patiently("zfs", &["rename", &own, &elsewhere], || ()).expect("it is idle");
    zfs(&["mount", &elsewhere]);
    // Under another name it is the mirror's all the same: its mark says so.
    let renamed = format!("{elsewhere}-renamed");
    let rename = |from: &str, to: &str| {
        for words in [&["unmount", from][..], &["rename", from, to], &["mount", to]] {
            patiently("zfs", words, || ()).expect("nobody is in it");
        }
    };
    rename(&elsewhere, &renamed);
    lockstep.expect(exit::DONE, &["mirror", "start", "main"]);
    backup(&lockstep, "main");
    // But what makes or destroys datasets goes by the name.
    for words in ["recreate", "destroy"] {
        let refused = lockstep.expect(exit::REFUSED, &["mirror", words, "main"]);
        let said = format!("\"{elsewhere}\" was renamed, and \"{renamed}\" carries");
        assert_said(&refused, &[&said, "`zfs rename` it back", "nothing was changed"]);
        wait_for_state(&alone, "main", "follows");
    }
    lockstep.expect(exit::DONE, &["mirror", "stop", "main"]);
    rename(&renamed, &elsewhere);
    lockstep.expect(exit::DONE, &["mirror", "recreate", "main"]);
    wait_for_state(&alone, "main", "follows");
    // A set that was taken under the other name goes with it.
    lockstep.expect(exit::DONE, &["mirror", "destroy", "main", "--with-sets"]);
    assert_gone(&alone, "main", "destroyed after a rename and back");
}

/// Users edit the file that registers a mirror, and destroy one whose key they have lost, or of which a pool is gone.
#[test]
fn destroyed_while_its_data_is_not_mounted_and_a_pool_is_away() {
    let alone = Alone::new(empty_pools());
    create(&alone, "main");
    let lockstep = alone.fixture.lockstep();
    let registration = alone.fixture.root().join("lockstep.d/main.toml");
    let text = fs::read_to_string(&registration).expect("it is registered");
    fs::write(&registration, format!("{text}# mine\n")).expect("it can be written");
    lockstep.expect(exit::DONE, &["mirror", "stop", "main"]);
    zfs(&["unmount", &format!("{}/data", dataset(&alone, "main"))]);
    let (away, image) = (&alone.fixture.pools[1].name, &alone.fixture.pools[1].image);
    patiently("zpool", &["export", away], || ()).expect("it is idle");
    let refused = lockstep.expect(exit::FAILED, &["mirror", "destroy", "main"]);
    let words = format!("\"main\" can't be destroyed: pool \"{away}\" isn't imported");
    assert_said(&refused, &[&words, "mirror destroy main --lost"]);
    assert!(registration.exists(), "nothing was changed");
    let destroyed = lockstep.expect(exit::DONE, &["mirror", "destroy", "main", "--lost"]);
    assert_said(&destroyed, &["isn't imported: if it comes back"]);
    assert!(!destroyed.stderr.contains("stays"), "{}", destroyed.describe());
    let folder = image.parent().and_then(Path::to_str).expect("the harness' own paths are UTF-8");
    // Elsewhere: the folders that it is mounted on stay.
    let elsewhere = alone.fixture.root().join("elsewhere").display().to_string();
    must(&mut command("zpool", ["import", "-R", &elsewhere, "-d", folder, away]));
    patiently("zfs", &["destroy", &format!("{away}/main-ts2")], || ()).expect("it is idle");
    // The import has mounted it in its place once more.
    for place in ["main/ts-ts2", "main"] {
        let _ = fs::remove_dir(directory(&alone, "main").with_file_name(place));
    }
    assert_gone(&alone, "main", "destroyed while its data wasn't mounted");
}

/// A set whose manifest can't be read is removed with its mirror like any other, and a mirror that can't be removed
/// yet doesn't keep others from being made.
#[test]
fn destroyed_with_a_set_that_can_not_be_read() {
    let alone = Alone::new(empty_pools());
    create(&alone, "main");
    let lockstep = alone.fixture.lockstep();
    backup(&lockstep, "main");
    let set = backup(&lockstep, "main");
    let manifest = format!("state/clusters/main/sets/{}/manifest.json", set.id);
    fs::write(alone.fixture.root().join(manifest), "{").expect("it can be written");
    let foreign = format!("{}/data@theirs", dataset(&alone, "main"));
    let steps = Steps::new(alone.fixture.root().join("steps"));
    let step = "mirror.destroy-recorded";
    steps.hold(step);
    let destroy = ["mirror", "destroy", "main", "--with-sets"];
    let mut running = lockstep.clone().with_steps(&steps).spawn(&destroy);
    steps.wait_reached(step, &mut running);
    running.kill();
    let _ = running.wait_or_kill(LIMIT);
    let refused = lockstep.expect(exit::REFUSED, &of_cluster("main", &["backup"]));
    assert!(refused.stderr.contains("is being removed"), "{}", refused.describe());
    zfs(&["snapshot", &foreign]);
    zfs(&["hold", "theirs", &foreign]);
    let made = lockstep.expect(exit::DONE, &words(&create_words(&alone, "other")));
    assert!(made.stderr.contains("it can't be removed yet"), "{}", made.describe());
    lockstep.expect(exit::DONE, &["mirror", "destroy", "other"]);
    zfs(&["release", "theirs", &foreign]);
    zfs(&["destroy", &foreign]);
    lockstep.expect(exit::DONE, &destroy);
    assert_gone(&alone, "main", "destroyed with a set that can't be read");
}

/// state_dir is replaced by a copy from when the mirror was being made.
#[test]
fn one_that_was_complete_is_not_taken_for_half_made() {
    let alone = Alone::new(empty_pools());
    create(&alone, "main");
    let record = alone.fixture.state.join("mirrors/main.json");
    let text = fs::read_to_string(&record).expect("its record");
    let ready = "\"phase\":\"ready\"";
    assert!(text.contains(ready), "{text}");
    fs::write(&record, text.replace(ready, "\"phase\":\"making\"")).expect("it can be written");
    let lockstep = alone.fixture.lockstep();
    let made = lockstep.expect(exit::DONE, &words(&create_words(&alone, "other")));
    assert!(made.stderr.contains("was state_dir put back from a copy"), "{}", made.describe());
    wait_for_state(&alone, "main", "follows");
    lockstep.expect(exit::DONE, &["mirror", "destroy", "other"]);
    lockstep.expect(exit::DONE, &["mirror", "destroy", "main"]);
    assert_gone(&alone, "main", "destroyed");
}

#[test]
fn what_was_made_where_a_mirror_was_given_up_stays() {
    given_up(false);
}

#[test]
fn what_was_made_on_datasets_of_a_mirror_s_names_stays() {
    given_up(true);
}

/// Somebody gives up on a killed mirror, and makes a cluster of its name in its folder, or on datasets of its names.
fn given_up(on_datasets: bool) {
    let alone = Alone::new(empty_pools());
    let lockstep = alone.fixture.lockstep();
    let steps = Steps::new(alone.fixture.root().join("steps"));
    steps.hold("mirror.registered");
    let create = create_words(&alone, "main");
    let mut running = lockstep.clone().with_steps(&steps).spawn(&words(&create));
    steps.wait_reached("mirror.registered", &mut running);
    running.kill();
    let _ = running.wait_or_kill(LIMIT);
    // It would take sets that the next command leaves without a cluster.
    let refused = lockstep.expect(exit::REFUSED, &of_cluster("main", &["backup"]));
    assert!(refused.stderr.contains("isn't complete"), "{}", refused.describe());
    let mirror = server_of(&alone, "main");
    mirror.stop(Stop::Immediate);
    // The second is mounted inside the first.
    for name in [format!("{}/main-ts2", alone.fixture.pools[1].name), dataset(&alone, "main")] {
        discard(&alone.fixture, &directory(&alone, "main"), &name);
    }
    let data = directory(&alone, "main").join("data");
    if on_datasets {
        let mountpoint = format!("mountpoint={}", directory(&alone, "main").display());
        zfs(&["create", "-o", &mountpoint, &dataset(&alone, "main")]);
        zfs(&["create", &format!("{}/data", dataset(&alone, "main"))]);
    } else {
        fs::create_dir_all(&data).expect("the test may");
    }
    for folder in [&directory(&alone, "main"), &data] {
        give_to_postgres(folder);
    }
    let initdb = ["-A", "trust", "--no-sync", "-U", "postgres", "-D"];
    let path = data.to_str().expect("the harness' own paths are UTF-8");
    must(&mut as_postgres(alone.primary.bin.join("initdb"), initdb.iter().chain([&path])));
    let port = free_port();
    let settings = format!(
        "port = {port}\nlisten_addresses = ''\nunix_socket_directories = '{}'\n",
        alone.primary.socket.display()
    );
    fs::write(data.join("postgresql.auto.conf"), settings).expect("the test may");
    let theirs = Cluster { data: data.clone(), port, ..alone.primary.clone() };
    theirs.start();
    theirs.execute(&["CREATE TABLE mine AS SELECT 3 AS n"]);
    let registration = alone.fixture.root().join("lockstep.d/main.toml");
    let text = format!("[clusters.main]\ndata_directory = \"{path}\"\nport = {port}\n");
    fs::write(&registration, &text).expect("the test may");
    let record = alone.fixture.state.join("mirrors/main.json");
    let recorded = fs::read(&record).expect("its record");
    let made = lockstep.expect(exit::DONE, &words(&create_words(&alone, "other")));
    assert!(made.stderr.contains("removing what an unfinished mirror left"), "{}", made.describe());
    assert_eq!(theirs.value("postgres", "SELECT n FROM mine"), "3", "{}", made.describe());
    assert_eq!(fs::read_to_string(&registration).expect("it stays"), text);
    let said = format!("\"{}\" stays", registration.display());
    assert!(made.stderr.contains(&said), "{}", made.describe());
    // Nor does a record of a complete mirror make it the mirror's.
    let ready = String::from_utf8_lossy(&recorded).replace("\"making\"", "\"ready\"");
    fs::write(&record, &ready).expect("the test may");
    for command in ["recreate", "start", "stop"] {
        let refused = of_cluster("main", &["mirror", command, "main"]);
        let refused = lockstep.expect(exit::REFUSED, &refused);
        assert_said(&refused, &["isn't this mirror's", "mirror destroy main"]);
        assert_eq!(theirs.value("postgres", "SELECT n FROM mine"), "3", "{}", refused.describe());
    }
    if on_datasets {
        // Nor does what they have there keep the mirror from being given up by its name.
        fs::write(&record, recorded).expect("the test may");
        let theirs_on = format!("{}/data", dataset(&alone, "main"));
        zfs(&["snapshot", &format!("{theirs_on}@theirs")]);
        let given_up = of_cluster("main", &["mirror", "destroy", "main", "--with-sets"]);
        let given_up = lockstep.expect(exit::DONE, &given_up);
        let said = format!("dataset \"{theirs_on}\" stays");
        assert!(given_up.stderr.contains(&said), "{}", given_up.describe());
        assert_eq!(theirs.value("postgres", "SELECT n FROM mine"), "3");
        assert!(!record.exists(), "{}", given_up.describe());
    } else {
        fs::remove_file(&record).expect("the test may");
    }
    theirs.stop(Stop::Immediate);
    lockstep.expect(exit::DONE, &of_cluster("main", &["mirror", "destroy", "other"]));
}

/// SIGKILL, and a signal, at every step of `mirror create`; SIGKILL at every step of `mirror destroy`.
#[test]
fn ended_at_each_step() {
    let alone = Alone::new(empty_pools());
    let arguments = create_words(&alone, "main");
    let arguments = words(&arguments);
    let lockstep = alone.fixture.lockstep();
    let hooks = |name: &str| Steps::new(alone.fixture.root().join(name));
    let watched = hooks("watched");
    lockstep.clone().with_steps(&watched).expect(exit::DONE, &arguments);
    let creating = watched.all_reached();
    let watched = hooks("watched");
    lockstep.clone().with_steps(&watched).expect(exit::DONE, &["mirror", "destroy", "main"]);
    let destroying = watched.all_reached();
    assert_gone(&alone, "main", "destroyed");
    println!("create: {}; destroy: {}", creating.join(" "), destroying.join(" "));
    assert!(creating.len() >= 8 && destroying.len() >= 4, "is it built with its test hooks?");

    let held = |step: &str, arguments: &[&str]| {
        let steps = hooks("held");
        steps.hold(step);
        let mut running = lockstep.clone().with_steps(&steps).spawn(arguments);
        steps.wait_reached(step, &mut running);
        running
    };
    for (number, step) in creating.iter().enumerate() {
        let mut running = held(step, &arguments);
        running.kill();
        let _ = running.wait_or_kill(LIMIT);
        // What a user would do: try again, or give up.
        if step == "mirror.done" {
            lockstep.expect(exit::DONE, &["mirror", "destroy", "main"]);
        } else {
            let (seen, _) = status(&alone, "main");
            assert_eq!(seen["state"]["state"], "unfinished", "killed at {step}: {seen}");
            if number % 3 == 0 {
                create(&alone, "main");
                wait_for_state(&alone, "main", "follows");
            }
            lockstep.expect(exit::DONE, &["mirror", "destroy", "main"]);
        }
        assert_gone(&alone, "main", &format!("killed at {step}, next start"));
    }
    let every_other = creating.iter().filter(|step| *step != "mirror.done").step_by(2);
    let launched = creating.iter().filter(|step| *step == "mirror.launched");
    for step in every_other.chain(launched) {
        // It goes on by itself: released, it may be faster than its signal.
        let running = held(step, &arguments);
        running.signal(Signal::TERM);
        let outcome = running.wait(LIMIT);
        assert_eq!(outcome.code, Some(exit::INTERRUPTED), "{step}: {}", outcome.describe());
        assert_gone(&alone, "main", &format!("told to stop at {step}"));
    }
    for step in &destroying {
        create(&alone, "main");
        let mut running = held(step, &["mirror", "destroy", "main"]);
        running.kill();
        let _ = running.wait_or_kill(LIMIT);
        let again = lockstep.run(&["mirror", "destroy", "main"]);
        assert!(again.ok() || again.stderr.contains("no mirror"), "{}", again.describe());
        assert_gone(&alone, "main", &format!("destroy killed at {step}"));
    }
}
