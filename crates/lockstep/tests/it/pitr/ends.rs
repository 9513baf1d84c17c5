//! Where recovery ends too early: restore_command lacks something, or the archive has a gap; Lockstep says so.

use super::*;

/// PostgreSQL takes anything that makes a restore_command fail for the end of the archive. The server has all groups
/// of its user; if the command lacks a permission that it needs, that is reported.
#[test]
fn what_keeps_restore_command_from_its_work_is_said() {
    let history = History::new();
    let (fixture, set) = (&history.fixture, history.set.id.as_str());
    let groups = must(&mut command("id", ["-G", "postgres"]));
    let group = groups.split_whitespace().nth(1).expect("postgres has a supplementary group");
    let archive = fixture.archive.to_str().expect("the harness' own paths are UTF-8");
    must(&mut command("chown", ["-R", &format!("root:{group}"), archive]));
    must(&mut command("chmod", ["-R", "u=rwX,g=rX,o=", archive]));
    assert_eq!(history.rows_at("group", &[]), numbers(6), "it is the group's");

    let directory = fixture.target("problem");
    let problem = |command: &str, words: &str, hint: &str| {
        let options = ["--start", "--restore-command", command];
        let arguments = [&["--json"], &restore_arguments(set, &directory, &options)[..]].concat();
        let outcome = fixture.lockstep().expect(exit::PROBLEMS, &arguments);
        assert_said(&outcome, &["problem: recovery ended at LSN", words, "hint: ", hint]);
        let json = json_of(&outcome);
        assert!(json["problems"][0]["what"].as_str().is_some_and(|what| what.contains(words)));
        assert_eq!(rows(fixture.lockstep().restored(&json).server()), numbers(0), "it stays");
        fixture.discard_restored(&directory, set);
    };
    // The command's own log, on a file system that the server in its namespace may not write to.
    let log = fixture.mnt().join("log of it");
    fixture.pools[0].dataset("log", &log, &[]);
    give_to_postgres(&log);
    let logs = format!("echo %f >> '{}/log' && {}", log.display(), history.restore_command());
    problem(&logs, "Read-only file system", "clone.writable");
    let writable = format!("\n[clusters.main.clone]\nwritable = [{}]\n", toml_string(&log));
    let allowed = configured(fixture, &[], &writable);
    let allowed = allowed.with_environment("AWS_SECRET_ACCESS_KEY", Path::new("hunter2"));
    let restored = allowed.restore_and_start(set, &directory, &["--restore-command", &logs]);
    assert_eq!(rows(restored.server()), numbers(6));
    // A server that stays has its user's environment, and none of the stores' variables.
    let pid = restored.server().postmaster().expect("it runs");
    let environment = fs::read(format!("/proc/{pid}/environ")).expect("it can be looked at");
    let environment = String::from_utf8_lossy(&environment).into_owned();
    let has = |variable: &str| environment.split('\0').any(|known| known == variable);
    assert!(has("USER=postgres") && !environment.contains("hunter2"), "{environment:?}");
    assert!(restored.json.get("problems").is_none(), "{}", restored.json);
    fixture.discard_restored(&directory, set);

    must(&mut command("chmod", ["0700", archive]));
    problem(&history.restore_command(), "Permission denied", "os_user");
    let copy = history.restore_command();
    let create = ["clone", "create", "dev", "--set", set, "--restore-command", &copy];
    let created = fixture.lockstep().expect(exit::PROBLEMS, &create);
    assert_said(&created, &["problem: ", "Permission denied"]);
    fixture.lockstep().expect(exit::DONE, &["clone", "destroy", "dev"]);
    // An archive that has nothing more may be all right.
    let options = ["--start", "--restore-command", "false"];
    let ended =
        fixture.lockstep().expect(exit::DONE, &restore_arguments(set, &directory, &options));
    assert_said(&ended, &["restore_command delivered no WAL"]);
    fixture.discard_restored(&directory, set);
}

/// PostgreSQL ends recovery where it can't read a segment, and is promoted there. It is reported that the archive
/// continues after that point, and what the lost server hadn't archived.
#[test]
fn what_lies_behind_the_end_of_recovery_is_said() {
    let history = History::new();
    let (fixture, set) = (&history.fixture, history.set.id.as_str());
    let segments = [7, 8, 9].map(|row| {
        insert(&fixture.cluster, row);
        let segment = fixture.cluster.value("postgres", "SELECT pg_walfile_name(pg_switch_wal())");
        wait_until("it is archived", LIMIT, || fixture.archive.join(&segment).exists());
        segment
    });
    let [before, harmed, last] = &segments;
    let (archive, whole) = (fixture.archive.display(), history.restore_command());
    let directory = fixture.target("behind");
    let restore = |command: &str, code| {
        let options = ["--start", "--restore-command", command];
        let arguments = [&["--json"], &restore_arguments(set, &directory, &options)[..]].concat();
        let outcome = fixture.lockstep().expect(code, &arguments);
        let rows = rows(fixture.lockstep().restored(&json_of(&outcome)).server());
        fixture.discard_restored(&directory, set);
        (outcome, rows)
    };
    for instead in [
        "head -c 16777216 /dev/zero > %p".to_owned(),
        format!("cp {archive}/{before} %p"),
        "exit 1".to_owned(),
    ] {
        let command = format!("if test %f = {harmed}; then {instead}; else {whole}; fi");
        let (outcome, rows) = restore(&command, exit::PROBLEMS);
        assert_said(&outcome, &["problem: recovery ended at LSN", "the archive continues", last]);
        assert_eq!(rows, numbers(7), "{instead}");
    }
    let zeros =
        format!("if test %f = {last}; then head -c 16777216 /dev/zero > %p; else {whole}; fi");
    let (outcome, rows) = restore(&zeros, exit::DONE);
    assert_said(&outcome, &["check whether it is damaged", last]);
    assert_eq!(rows, numbers(8));

    insert(&fixture.cluster, 10);
    fixture.cluster.stop(Stop::Immediate);
    let words = "has transactions after";
    let (outcome, rows) = restore(&whole, exit::DONE);
    assert_eq!(rows, numbers(9));
    let pg_wal = fs::canonicalize(fixture.cluster.data.join("pg_wal")).expect("it is there");
    let too = format!("{whole} || cp {}/%f %p", pg_wal.display());
    assert_said(&outcome, &[words, "--restore-command '", "/pg_wal/%f %p'"]);
    let (outcome, rows) = restore(&too, exit::DONE);
    assert_eq!(rows, numbers(10));
    assert!(!outcome.stderr.contains(words), "{}", outcome.describe());
}

/// The primary's timeline was left while the set was being taken: a standby that lacked the last records was promoted. By
/// its label PostgreSQL would check only where the set begins, and find its end in the set's own WAL.
#[test]
fn a_timeline_that_was_left_within_the_set_is_not_followed() {
    let history = History::new();
    let (fixture, set) = (&history.fixture, &history.set);
    let (id, floor) = (set.id.as_str(), set.floor_lsn.expect("label knows its end"));
    // Before the end of the end-of-backup record, and after the checkpoint.
    let promoted = format!("1\t{}\tno recovery target specified\n", Lsn(floor.0 - 8));
    write_as_postgres(&fixture.archive.join("00000002.history"), &promoted);
    // The new timeline's first segment isn't full yet, and the old host is gone.
    let archive = fixture.archive.display();
    let command = format!("case %f in *.history) cp {archive}/%f %p;; *) exit 1;; esac");
    let directory = fixture.target("left within");
    let start = ["--start", "--restore-command", &command];
    let refused =
        fixture.lockstep().expect(exit::FAILED, &restore_arguments(id, &directory, &start));
    let words = ["does not contain minimum recovery point", "hint: set", "--target-timeline 1"];
    assert_said(&refused, &words);

    let along = ["--target-timeline", "1", "--restore-command", &command];
    let restored = fixture.lockstep().restore_and_start(id, &directory, &along);
    assert_eq!(rows(restored.server()), numbers(0));
    fixture.discard_restored(&directory, id);
}

/// With archive_mode = always PostgreSQL archives in recovery, too: what the archive has just delivered, which an
/// archive_command that doesn't overwrite would never get past.
#[test]
fn what_the_archive_delivered_is_not_archived_again() {
    let fixture = Fixture::new(one_pool().archive().setting("archive_mode", "always"));
    let lockstep = fixture.lockstep();
    fixture.cluster.execute(&["CREATE TABLE marks (id int PRIMARY KEY)"]);
    let set = lockstep.backup("label").id;
    for row in 0..3 {
        insert(&fixture.cluster, row);
        let segment = fixture.cluster.value("postgres", "SELECT pg_walfile_name(pg_switch_wal())");
        wait_until("it is archived", LIMIT, || fixture.archive.join(&segment).exists());
    }
    fixture.cluster.stop(Stop::Immediate);
    let command = format!("cp {}/%f %p", fixture.archive.display());
    let directory = fixture.target("always");
    let options = ["--keep-archiving", "--restore-command", &command];
    let restored = lockstep.restore_and_start(&set, &directory, &options);
    assert_eq!(rows(restored.server()), numbers(2));
    let own = restored.server().value("postgres", "SELECT pg_walfile_name(pg_switch_wal())");
    wait_until("its own WAL is archived", LIMIT, || fixture.archive.join(&own).exists());
    assert_eq!(restored.server().value("postgres", "SHOW archive_mode"), "always", "it stays");
    restored.server().stop(Stop::Fast);
    fixture.discard_restored(&directory, &set);
}

/// It goes on along its timeline, into an archive that has the segments before: none of them is archived again.
#[test]
fn a_cold_set_that_goes_on_knows_what_is_archived() {
    let fixture = Fixture::new(one_pool().archive().setting("wal_keep_size", "256MB"));
    let lockstep = fixture.lockstep();
    for row in 0..3 {
        fixture.cluster.execute(&[&format!("CREATE TABLE t{row} ()")]);
        let segment = fixture.cluster.value("postgres", "SELECT pg_walfile_name(pg_switch_wal())");
        wait_until("it is archived", LIMIT, || fixture.archive.join(&segment).exists());
    }
    // A shutdown ends the segment that is being written, and it is archived once the last checkpoint has passed.
    fixture.cluster.execute(&["CREATE TABLE last ()"]);
    fixture.cluster.stop(Stop::Fast);
    let status = |data: &Path| {
        let entries = fs::read_dir(data.join("pg_wal/archive_status")).expect("it is there");
        let mut names: Vec<_> = entries.flatten().map(|entry| entry.file_name()).collect();
        names.sort();
        names
    };
    let before = status(&fixture.cluster.data);
    assert!(!before.is_empty(), "some segments are archived, and still there");
    let set = lockstep.backup("cold");
    let directory = fixture.target("goes on");
    lockstep.expect(exit::DONE, &restore_arguments(&set.id, &directory, &[]));
    assert_eq!(status(&directory.join("data")), before);
    fixture.discard_restored(&directory, &set.id);
}

/// A cluster that was shut down is consistent before any record is replayed: PostgreSQL finds none at which to end.
#[test]
fn a_cold_set_is_recovered_to_where_it_is_consistent() {
    let fixture = Fixture::new(one_pool());
    fixture.cluster.execute(&["CREATE TABLE seen AS SELECT 42 AS answer"]);
    fixture.cluster.stop(Stop::Fast);
    let lockstep = fixture.lockstep();
    let set = lockstep.backup("cold");
    let immediate = ["--target-immediate"];
    let restored = lockstep.restore_and_start(&set.id, &fixture.target("cold"), &immediate);
    assert_eq!(restored.server().value("postgres", "SELECT answer FROM seen"), "42");
    let timeline = "SELECT left(pg_walfile_name(pg_current_wal_lsn()), 8)";
    assert_eq!(restored.server().value("postgres", timeline), "00000002");
    restored.server().stop(Stop::Immediate);

    // As it is, it goes on along its timeline; but not if it archives what the original may have archived meanwhile.
    for (name, options, expected) in
        [("as it is", &[][..], "00000001"), ("archives", &["--keep-archiving"][..], "00000002")]
    {
        let restored = lockstep.restore_and_start(&set.id, &fixture.target(name), options);
        assert_eq!(restored.server().value("postgres", "SELECT answer FROM seen"), "42", "{name}");
        assert_eq!(restored.server().value("postgres", timeline), expected, "{name}");
        restored.server().stop(Stop::Immediate);
    }
}
