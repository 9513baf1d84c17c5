//! Settings that were changed after the set: recovery goes over them, and ends where it should.

use super::*;

/// After the set, two settings were raised that a server with readers must keep up with. PostgreSQL halts recovery
/// there, from 14 on with the message of a pause, which isn't the target.
fn raised_settings(major: u32) {
    let mut history = History::on_version(major);
    let cluster = &history.fixture.cluster;
    cluster.execute(&[
        "ALTER SYSTEM SET max_connections = 60",
        "ALTER SYSTEM SET max_worker_processes = 20",
    ]);
    cluster.stop(Stop::Fast);
    cluster.start();
    let behind: Vec<_> = (7..=8).map(|id| insert(cluster, id)).collect();
    history.marks.extend(behind);
    history.archive_everything(&history.fixture.cluster, 1);
    let lsn = history.marks[7].lsn.clone();
    let command = history.restore_command();
    let target = ["--target-lsn", &lsn, "--restore-command", &command, "--target-action"];
    let (fixture, set) = (&history.fixture, &history.set.id);
    let to = |action: &str, name: &str| {
        let options = [&target[..], &[action, "--start"]].concat();
        let restored = fixture.lockstep().restore(set, &fixture.target(name), &options);
        (restored.data.clone(), restored)
    };
    let auto = |data: &Path| {
        let text = fs::read_to_string(data.join("postgresql.auto.conf")).expect("it is there");
        text.lines().filter(|line| line.starts_with("max_")).collect::<Vec<_>>().join(" ")
    };
    let raised = "max_connections = '60' max_worker_processes = '20'";

    let (data, promoted) = to("promote", "promote");
    assert_eq!(rows(promoted.server()), numbers(7));
    assert!(!auto(&data).contains("60"), "it is as the set was: {}", auto(&data));
    fixture.discard_restored(&fixture.target("promote"), set);

    let (data, paused) = to("pause", "pause");
    let server = paused.server();
    assert_eq!(rows(server), numbers(7));
    wait_until("recovery pauses at its target", Duration::from_secs(30), || {
        server.value("postgres", "SELECT pg_is_wal_replay_paused()") == "t"
    });
    assert!(auto(&data).ends_with(raised), "later starts need it too: {}", auto(&data));
    server.execute(&["SELECT pg_wal_replay_resume()"]);
    wait_until("a resumed recovery ends", Duration::from_secs(60), || {
        server.value("postgres", "SELECT pg_is_in_recovery()") == "f"
    });
    assert_eq!(rows(server), numbers(7));
    fixture.discard_restored(&fixture.target("pause"), set);

    let (data, _) = to("shutdown", "shutdown");
    assert!(auto(&data).ends_with(raised), "{}", auto(&data));
    fixture.discard_restored(&fixture.target("shutdown"), set);

    for action in ["promote", "pause"] {
        let options = [&["--set", set.as_str()], &target[..], &[action]].concat();
        let clone = fixture.lockstep().clone_create("dev", &options);
        assert_eq!(rows(clone.server()), numbers(7), "{action}");
        fixture.lockstep().expect(exit::DONE, &["clone", "destroy", "dev"]);
    }
}

#[test]
fn raised_settings_14() {
    raised_settings(14);
}

#[test]
fn raised_settings_15() {
    raised_settings(15);
}

#[test]
fn raised_settings_18() {
    raised_settings(18);
}

/// After the set, room for prepared transactions was made and used. If nobody will read, PostgreSQL doesn't compare
/// settings: it reaches the transaction for which it has no room.
fn room_for_prepared_transactions(major: u32) {
    let history = History::on_version(major);
    let (fixture, cluster) = (&history.fixture, &history.fixture.cluster);
    cluster.execute(&["ALTER SYSTEM SET max_prepared_transactions = 10"]);
    cluster.stop(Stop::Fast);
    cluster.start();
    let seven = ["BEGIN", "INSERT INTO marks VALUES (7)", "PREPARE TRANSACTION 'seven'"];
    cluster.execute(&[&seven[..], &["COMMIT PREPARED 'seven'"]].concat());
    insert(cluster, 8);
    history.archive_everything(cluster, 1);
    assert_eq!(history.rows_at("prepared", &[]), numbers(8));
    let command = history.restore_command();
    let options = ["--set", &history.set.id, "--restore-command", &command];
    let clone = fixture.lockstep().clone_create("dev", &options);
    assert_eq!(rows(clone.server()), numbers(8));
    assert_eq!(clone.server().value("postgres", "SHOW max_prepared_transactions"), "10");
    fixture.lockstep().expect(exit::DONE, &["clone", "destroy", "dev"]);
}

#[test]
fn room_for_prepared_transactions_15() {
    room_for_prepared_transactions(15);
}

#[test]
fn room_for_prepared_transactions_18() {
    room_for_prepared_transactions(18);
}

/// The set is of a cluster with `hot_standby = off`, perhaps from its time as a standby. With that PostgreSQL shuts a server
/// down where it is told to pause.
#[test]
fn a_pause_lets_readers_in_whatever_the_original_has() {
    let history = History::new();
    let (fixture, cluster) = (&history.fixture, &history.fixture.cluster);
    cluster.execute(&["ALTER SYSTEM SET hot_standby = off"]);
    let set = fixture.lockstep().backup("label");
    let mark = insert(cluster, 7);
    insert(cluster, 8);
    history.archive_everything(cluster, 1);
    let command = history.restore_command();
    let target =
        ["--target-lsn", &mark.lsn, "--target-action", "pause", "--restore-command", &command];
    let options = [&["--set", set.id.as_str()][..], &target].concat();
    let clone = fixture.lockstep().clone_create("dev", &options);
    assert_eq!(rows(clone.server()), numbers(7));
    fixture.lockstep().expect(exit::DONE, &["clone", "destroy", "dev"]);

    let directory = fixture.target("paused");
    let restored = fixture.lockstep().restore_and_start(&set.id, &directory, &target);
    assert_eq!(rows(restored.server()), numbers(7));
    assert_eq!(restored.server().value("postgres", "SELECT pg_is_in_recovery()"), "t");
    fixture.discard_restored(&directory, &set.id);
}
