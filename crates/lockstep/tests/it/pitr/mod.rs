//! Recovery to a point in time: each kind of target ends where it should, and the next row is absent.

mod ends;
mod settings;

use crate::support::by_hand::write_as_postgres;
use crate::support::cluster::{Cluster, Stop};
use crate::support::command::{command, give_to_postgres, must, wait_until};
use crate::support::faults::{assert_said, restore_arguments};
use crate::support::fixture::Fixture;
use crate::support::layout::{Layout, one_pool, two_pools_four_datasets};
use crate::support::lockstep::{LIMIT, Lsn, Set, Steps, exit, json_of, toml_string};
use crate::support::pools::release_and_destroy;
use crate::support::shipping::{configured, with_repository};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

/// A name that must be quoted in a configuration file.
const RESTORE_POINT: &str = "before the migration; it's \\ 5";

/// The possible targets around a row's transaction.
#[derive(Debug, Clone)]
struct Mark {
    xid: String,
    /// A WAL position after its commit and before the next row's.
    lsn: String,
    /// A time between its commit and the next row's.
    time: String,
}

/// A cluster with an archive, a set, and rows 1 to 6 written after it: row 0 is in the set.
struct History {
    fixture: Fixture,
    set: Set,
    /// Of rows 0 to 6.
    marks: Vec<Mark>,
}

impl History {
    fn new() -> History {
        History::on_version(15)
    }

    fn on_version(major: u32) -> History {
        let fixture = Fixture::new(two_pools_four_datasets().archive().major(major));
        let cluster = &fixture.cluster;
        cluster.execute(&["CREATE TABLE marks (id int PRIMARY KEY) TABLESPACE ts2"]);
        let mut marks = vec![insert(cluster, 0)];
        let set = fixture.lockstep().backup("label");
        marks.extend((1..=5).map(|id| insert(cluster, id)));
        let quoted = RESTORE_POINT.replace('\'', "''");
        cluster.execute(&[&format!("SELECT pg_create_restore_point('{quoted}')")]);
        marks.push(insert(cluster, 6));
        let history = History { fixture, set, marks };
        history.archive_everything(&history.fixture.cluster, 1);
        history
    }

    /// Ends the current segment and waits until it is in the archive.
    fn archive_everything(&self, server: &Cluster, timeline: u32) {
        let segment = server.value("postgres", "SELECT pg_walfile_name(pg_switch_wal())");
        assert!(
            segment.starts_with(&format!("{timeline:08X}")),
            "{segment} isn't of timeline {timeline}"
        );
        let archived = self.fixture.archive.join(&segment);
        wait_until(&format!("{segment} is archived"), Duration::from_secs(60), || {
            archived.exists()
        });
    }

    fn restore_command(&self) -> String {
        format!("cp {}/%f %p", self.fixture.archive.display())
    }

    /// Restores with these options and the archive, and returns the rows that exist.
    #[track_caller]
    fn rows_at(&self, name: &str, options: &[&str]) -> Vec<String> {
        let directory = self.fixture.target(name);
        let command = self.restore_command();
        let options: Vec<&str> =
            options.iter().copied().chain(["--restore-command", &command]).collect();
        let restored =
            self.fixture.lockstep().restore_and_start(&self.set.id, &directory, &options);
        let rows = rows(restored.server());
        self.fixture.discard_restored(&directory, &self.set.id);
        rows
    }

    /// The error of a restore that must not succeed; nothing may be left of it.
    #[track_caller]
    fn refused(&self, name: &str, codes: &[i32], options: &[&str]) -> String {
        let directory = self.fixture.target(name);
        let to = directory.to_str().expect("the harness' own paths are UTF-8").to_owned();
        let arguments: Vec<&str> = ["restore", &self.set.id, "--to", &to]
            .into_iter()
            .chain(options.iter().copied())
            .collect();
        let outcome = self.fixture.lockstep().run(&arguments);
        assert!(
            outcome.code.is_some_and(|code| codes.contains(&code)),
            "expected {codes:?}: {}",
            outcome.describe()
        );
        assert!(
            outcome.stderr.contains("error: ") && outcome.stderr.contains("hint: "),
            "{}",
            outcome.describe()
        );
        assert_eq!(self.fixture.clones(), [], "clones are left: {}", outcome.describe());
        assert!(is_empty(&directory), "{directory:?} is left: {}", outcome.describe());
        outcome.stderr
    }
}

#[test]
fn targets_land_where_they_should() {
    let history = History::new();
    let mark = |row: usize| &history.marks[row];

    let promote = ["--target-action", "promote"];
    let at = |name: &str, option: &str, value: &str| {
        history.rows_at(name, &[&[option, value], &promote[..]].concat())
    };
    assert_eq!(
        at("time", "--target-time", &mark(2).time),
        numbers(2),
        "a time between rows 2 and 3"
    );
    assert_eq!(at("lsn", "--target-lsn", &mark(3).lsn), numbers(3), "an LSN between rows 3 and 4");
    assert_eq!(at("xid", "--target-xid", &mark(4).xid), numbers(4), "the transaction of row 4");
    let before = ["--target-xid", &mark(4).xid, "--target-exclusive"];
    assert_eq!(history.rows_at("before", &before), numbers(3), "without the transaction of row 4");
    assert_eq!(
        at("name", "--target-name", RESTORE_POINT),
        numbers(5),
        "a restore point between rows 5 and 6"
    );
    let immediate =
        history.rows_at("immediate", &["--target-immediate", "--target-action", "promote"]);
    assert_eq!(immediate, numbers(0), "the end of the backup");
    assert_eq!(history.rows_at("everything", &[]), numbers(6), "the end of the archive");

    // Without an archive, the set still has the data that it was taken with.
    let directory = history.fixture.target("alone");
    let alone = history.fixture.lockstep().restore_and_start(&history.set.id, &directory, &[]);
    assert_eq!(rows(alone.server()), numbers(0), "the set alone");
    assert_eq!(alone.server().value("postgres", "SELECT pg_is_in_recovery()"), "f");
    history.fixture.discard_restored(&directory, &history.set.id);
}

/// If no set is named, the newest one is used from which recovery reaches the target, from this host or a repository.
#[test]
fn a_target_finds_its_set() {
    let history = History::new();
    let lockstep = with_repository(&history.fixture);
    lockstep.expect(exit::DONE, &["ship", &history.set.id]);
    let newer = lockstep.backup("label");
    assert!(newer.id > history.set.id, "two sets of one second have no order");
    let directory = history.fixture.target("planned");
    let to = directory.to_str().expect("the harness' own paths are UTF-8");
    let mark = |row: usize| &history.marks[row];
    let now = jiff::Timestamp::now().to_string();
    let plan = ["restore", "--to", to, "--dry-run"];
    for from in [&[][..], &["--from", "repository"]] {
        for (options, id) in [
            (&["--target-time", &mark(2).time][..], &history.set.id),
            (&["--target-lsn", &mark(3).lsn], &history.set.id),
            (&["--target-time", &now], &newer.id),
            (&["--target-lsn", "FF/0"], &newer.id),
            (&["--target-immediate"], &newer.id),
            (&[], &newer.id),
        ] {
            let planned = lockstep.json(&[&plan[..], from, options].concat());
            assert_eq!(planned["set"].as_str(), Some(id.as_str()), "{options:?} {from:?}");
        }
        for (options, said) in [
            (["--target-time", "2001-01-01 00:00:00Z"], "from which recovery comes to time"),
            (["--target-lsn", "0/1"], "from which recovery comes to LSN 0/1"),
            (["--target-xid", &mark(4).xid], "which set was taken before transaction"),
        ] {
            let refused = lockstep.expect(exit::USAGE, &[&plan[..], from, &options].concat());
            assert!(refused.stderr.contains(said), "{}", refused.describe());
            assert!(refused.stderr.contains("hint: "), "{}", refused.describe());
        }
    }
    // A time is reported as it was understood.
    let (time, zone) = (&mark(2).time, "Europe/Berlin");
    let there = lockstep.clone().with_environment("TZ", Path::new(zone));
    let moment: jiff::Timestamp = time.replace("+00", "Z").parse().expect("the server's, in UTC");
    let local = moment.in_tz(zone).expect("a zone").strftime("%Y-%m-%d %H:%M:%S%.f%:z").to_string();
    let (written, named) = (local.clone(), format!("{}[{zone}]", &local[..local.len() - 6]));
    for time in [time, &written, &named] {
        let planned = there.json(&[&plan[..], &["--target-time", time]].concat());
        assert_eq!(planned["target_time"], moment.to_string(), "{time}");
        assert_eq!(planned["target_time_local"], local, "{time}");
        let said = there.expect(exit::DONE, &[&plan[..], &["--target-time", time]].concat());
        let expected = format!("recovery would end at {moment}, here {local}");
        assert!(said.stdout.contains(&expected), "{}", said.describe());
    }
    // In another zone it would be another moment.
    let lost = lockstep.clone().with_environment("TZ", Path::new("Nonsense/Zone"));
    let bare = [&plan[..], &["--target-time", "2025-11-27 14:29:49"]].concat();
    let refused = lost.expect(exit::USAGE, &bare);
    assert!(
        refused.stderr.contains("Nonsense/Zone")
            || refused.stderr.contains("this host's isn't known"),
        "{}",
        refused.describe()
    );
    // A set that lacks a snapshot is passed over, and so is one whose manifest can't be read.
    destroy_a_snapshot(&newer);
    let planned =
        lockstep.expect(exit::DONE, &[&["--json"], &plan[..], &["--target-time", &now]].concat());
    assert_eq!(json_of(&planned)["set"].as_str(), Some(history.set.id.as_str()));
    let said = &planned.stderr;
    assert!(said.contains("is passed over") && said.contains(&newer.id), "{said}");
    history.fixture.discard_set(&newer.id);
}

/// A cluster was recovered to a moment and continued along timeline 2; a set of timeline 1 is younger than that
/// moment.
#[test]
fn a_set_behind_the_branch_is_not_found() {
    let history = History::new();
    let fixture = &history.fixture;
    let lockstep = with_repository(fixture);
    let behind = lockstep.backup("label");
    for set in [&history.set, &behind] {
        lockstep.expect(exit::DONE, &["ship", &set.id]);
    }
    history.archive_everything(&fixture.cluster, 1);
    let directory = fixture.target("promoted");
    let command = history.restore_command();
    let options = ["--target-name", RESTORE_POINT, "--restore-command", &command];
    let restored = lockstep.restore_and_start(&history.set.id, &directory, &options);
    let promoted = restored.server();
    archive_as_new_primary(fixture, promoted);
    let mark = insert(promoted, 100);
    promoted.execute(&["INSERT INTO marks VALUES (101)"]);
    history.archive_everything(promoted, 2);
    promoted.stop(Stop::Fast);

    let planned = fixture.target("planned");
    let to = planned.to_str().expect("the harness' own paths are UTF-8");
    let restore = ["restore", "--to", to, "--target-time", &mark.time, "--restore-command"];
    let first = &history.set.id;
    let blind = format!("case %f in *.history) exit 1;; esac; {command}");
    for from in [&[][..], &["--from", "repository"]] {
        for (options, id) in [
            (&[][..], first),
            (&["--target-timeline", "latest"], first),
            (&["--target-timeline", "2"], first),
            // These ask for the timeline of the younger set.
            (&["--target-timeline", "1"], &behind.id),
            (&["--target-timeline", "current"], &behind.id),
        ] {
            let arguments = [&restore[..], &[&command, "--dry-run"], options, from].concat();
            let planned = lockstep.json(&arguments);
            assert_eq!(planned["set"].as_str(), Some(id.as_str()), "{options:?} {from:?}");
        }
        // A command that fails to answer isn't one that answers no (such as ssh's if the host can't be reached).
        for (broken, words) in [
            ("case %f in *.history) echo host is away >&2; exit 255;; esac", "host is away"),
            ("/no/such/command %f %p", "/no/such/command"),
        ] {
            let arguments = [&restore[..], &[broken, "--dry-run"], from].concat();
            let failed = lockstep.expect(exit::FAILED, &arguments);
            assert!(failed.stderr.contains(words), "{}", failed.describe());
            assert!(failed.stderr.contains("hint: PostgreSQL too"), "{}", failed.describe());
        }
        // If the archive doesn't have the history, nothing is guessed.
        let timeline = ["--dry-run", "--target-timeline", "2"];
        let arguments = [&restore[..], &[&blind], &timeline, from].concat();
        let refused = lockstep.expect(exit::USAGE, &arguments);
        for words in [first, &behind.id, "00000002.history", "hint: name one of them"] {
            assert!(refused.stderr.contains(words), "{words}: {}", refused.describe());
        }
    }
    // Only root can enter state_dir; the command, which postgres runs, finds the history all the same.
    let only_ours = |mode| fs::set_permissions(&fixture.state, fs::Permissions::from_mode(mode));
    only_ours(0o700).expect("it is ours");
    let planned_there = lockstep.json(&[&restore[..], &[&command, "--dry-run"]].concat());
    assert_eq!(planned_there["set"].as_str(), Some(first.as_str()));
    only_ours(0o755).expect("it is ours");
    let found =
        lockstep.expect(exit::DONE, &[&["--json"], &restore[..], &[&command, "--start"]].concat());
    let found = lockstep.restored(&json_of(&found));
    let expected: Vec<String> = (0..=5).chain([100]).map(|id| id.to_string()).collect();
    assert_eq!(rows(found.server()), expected);
    fixture.discard_restored(&planned, first);

    // The younger set, explicitly named: PostgreSQL refuses, and the hint says what to do.
    let named = [&["restore", &behind.id], &restore[1..], &[&command, "--start"]].concat();
    let refused = lockstep.expect(exit::FAILED, &named);
    let hint = refused.stderr.split("hint: ").last().unwrap_or_default();
    assert!(hint.contains("--target-timeline 1"), "{}", refused.describe());
    assert!(!hint.contains("remov"), "{}", refused.describe());
    let staging = fixture.state.join("clusters/main/staging");
    assert!(is_empty(&staging), "a history stays in {staging:?}");
}

/// Without the program's knowledge.
fn destroy_a_snapshot(set: &Set) {
    let volume = set.volumes.first().expect("a set has volumes");
    release_and_destroy(&volume.snapshot);
}

/// A server that pauses at the target takes connections, shows the target's state, and can be promoted.
#[test]
fn pause_waits_at_the_target() {
    let history = History::new();
    let directory = history.fixture.target("paused");
    let command = history.restore_command();
    let lsn = history.marks[2].lsn.clone();
    let options = ["--target-lsn", &lsn, "--target-action", "pause", "--restore-command", &command];
    let restored =
        history.fixture.lockstep().restore_and_start(&history.set.id, &directory, &options);
    let server = restored.server();
    wait_until("recovery pauses at its target", Duration::from_secs(30), || {
        server.value("postgres", "SELECT pg_is_wal_replay_paused()") == "t"
    });
    assert_eq!(server.value("postgres", "SELECT pg_is_in_recovery()"), "t");
    assert_eq!(rows(server), numbers(2));
    server.execute(&["SELECT pg_wal_replay_resume()"]);
    wait_until("a resumed recovery ends", Duration::from_secs(60), || {
        server.value("postgres", "SELECT pg_is_in_recovery()") == "f"
    });
    assert_eq!(
        rows(server),
        numbers(2),
        "it goes on from the target, not from the end of the archive"
    );
}

/// A restored cluster was promoted and used; later the set is restored along each of the timelines.
#[test]
fn timelines_after_a_promotion() {
    let history = History::new();
    let fixture = &history.fixture;
    let directory = fixture.target("promoted");
    let command = history.restore_command();
    let options = [
        "--target-name",
        RESTORE_POINT,
        "--target-action",
        "promote",
        "--restore-command",
        &command,
    ];
    let restored = fixture.lockstep().restore_and_start(&history.set.id, &directory, &options);
    let promoted = restored.server();
    wait_until("it is promoted", Duration::from_secs(60), || {
        promoted.value("postgres", "SELECT pg_is_in_recovery()") == "f"
    });
    assert_eq!(
        promoted.value("postgres", "SHOW archive_mode"),
        "off",
        "a restored cluster must not write to the live one's archive"
    );
    promoted.execute(&["INSERT INTO marks VALUES (100)"]);
    archive_as_new_primary(fixture, promoted);
    history.archive_everything(promoted, 2);
    promoted.stop(Stop::Fast);

    let expected_new: Vec<String> = (0..=5).chain([100]).map(|id| id.to_string()).collect();
    let rows_of =
        |name: &str, timeline: &str| history.rows_at(name, &["--target-timeline", timeline]);
    assert_eq!(
        rows_of("latest", "latest"),
        expected_new,
        "the new timeline has row 100 and never had row 6"
    );
    assert_eq!(rows_of("second", "2"), expected_new, "the same, by its number");
    assert_eq!(
        rows_of("first", "1"),
        numbers(6),
        "the old timeline has row 6 and never had row 100"
    );
}

#[test]
fn targets_that_cannot_be_are_refused() {
    let history = History::new();
    let floor = history.set.floor_lsn.expect("a label set has a floor").to_string();
    let command = history.restore_command();

    // Before the set's consistent point: the error names the earliest possible one.
    assert!(
        Lsn::parse(&history.marks[0].lsn) < Lsn::parse(&floor),
        "row 0 was written before the backup's end"
    );
    let lsn = history.refused(
        "lsn",
        &[exit::REFUSED],
        &["--target-lsn", &history.marks[0].lsn, "--restore-command", &command],
    );
    assert!(
        lsn.contains(&floor) && lsn.contains(&history.marks[0].lsn),
        "the floor {floor} isn't named: {lsn}"
    );
    let time = history.refused(
        "time",
        &[exit::REFUSED],
        &["--target-time", &history.marks[0].time, "--restore-command", &command],
    );
    let day = fixture_day(&history);
    assert!(
        time.contains(&floor) || time.contains(&day),
        "the earliest possible time isn't named: {time}"
    );

    // Beyond the set's own WAL, and without an archive: PostgreSQL refuses to start, and that must be the message.
    let beyond = history.refused(
        "beyond",
        &[exit::FAILED, exit::REFUSED],
        &["--target-lsn", &history.marks[3].lsn, "--start"],
    );
    assert!(
        beyond.contains("--restore-command") || beyond.contains("restore_command"),
        "what would help isn't said: {beyond}"
    );
    let unknown = ["--target-name", "no such point", "--restore-command", &command, "--start"];
    let unknown = history.refused("unknown", &[exit::FAILED], &unknown);
    assert!(
        unknown.contains("recovery ended before configured recovery target was reached"),
        "PostgreSQL's reason isn't given: {unknown}"
    );
    assert!(unknown.contains("SELECT pg_switch_wal()"), "what would help isn't said: {unknown}");

    // A variable that isn't set is neither a target nor a command, and no restore point has such a name.
    let long = "x".repeat(64);
    for (name, options) in [
        ("name", ["--target-name", "", "--restore-command", &command]),
        ("long", ["--target-name", &long, "--restore-command", &command]),
        ("command", ["--target-immediate", "--start", "--restore-command", " "]),
        ("empty time", ["--target-time", "", "--restore-command", &command]),
        ("timeline", ["--target-timeline", "", "--restore-command", &command]),
        ("exclusive", ["--target-immediate", "--target-exclusive", "--restore-command", &command]),
        ("no target", ["--target-exclusive", "--start", "--restore-command", &command]),
        // PostgreSQL would take it for an octal number.
        ("octal", ["--target-timeline", "010", "--restore-command", &command]),
    ] {
        history.refused_usage(name, &options);
    }

    // Two targets are an error.
    let both = ["--target-lsn", &history.marks[3].lsn, "--target-xid", &history.marks[3].xid];
    history.refused_usage("both", &both);
}

/// An atomic set is one moment: its data files are from the end of its WAL, so no target before that end can be
/// right, even slightly before. The backup is held right before the snapshot while rows are committed and written
/// out.
#[test]
fn atomic_set_allows_no_target_before_its_moment() {
    // After row 1: PostgreSQL meets the commits of rows 2 and 3 while it replays the set's own WAL, and refuses.
    // After row 3: it meets no commit there, so only Lockstep can know that the target has passed.
    for checkpoint_behind in [1, 3] {
        let held = "backup.before-snapshot-1";
        let during = During::new(one_pool().archive(), "atomic", held, checkpoint_behind);
        let history = &during.history;
        let command = history.restore_command();
        for row in [1, 2] {
            let mark = &history.marks[row];
            for (option, value) in [("--target-lsn", &mark.lsn), ("--target-time", &mark.time)] {
                let options = [
                    option,
                    value,
                    "--restore-command",
                    &command,
                    "--target-action",
                    "promote",
                    "--start",
                ];
                history.refused(&format!("row{row}{option}"), &[exit::REFUSED], &options);
            }
        }
        // The next row was committed after the set, so that is a valid target.
        let options = ["--target-lsn", &during.after.lsn, "--target-action", "promote"];
        assert_eq!(history.rows_at("after", &options), numbers(4));
    }
}

/// An ordered set's data files are older than its floor, and its WAL is younger: any target between the floor and the
/// freezing of pg_wal is valid.
#[test]
fn ordered_set_allows_targets_from_its_floor_on() {
    let during =
        During::new(two_pools_four_datasets().archive(), "ordered", "backup.before-snapshot-4", 1);
    let history = &during.history;
    for row in 1..=3 {
        let options = ["--target-lsn", &history.marks[row].lsn, "--target-action", "promote"];
        assert_eq!(
            history.rows_at(&format!("row{row}"), &options),
            numbers(i32::try_from(row).expect("small"))
        );
    }
    let options = ["--target-lsn", &during.after.lsn, "--target-action", "promote"];
    assert_eq!(history.rows_at("after", &options), numbers(4));
}

/// Without a connection an ordered set has no floor, and PostgreSQL doesn't know where it ends: it would replay all of the
/// set's own WAL, also what comes after the place where its timeline was left.
#[test]
fn ordered_set_without_a_floor_follows_no_timeline_that_left_its_own_before() {
    let fixture = Fixture::new(two_pools_four_datasets().archive().setting("autovacuum", "off"));
    let cluster = &fixture.cluster;
    cluster.execute(&["CREATE TABLE marks (id int PRIMARY KEY) TABLESPACE ts2", "CHECKPOINT"]);
    let left = insert(cluster, 0);
    insert(cluster, 1);
    let silent = fixture.root().join("silent.toml");
    fs::write(&silent, fixture.configuration("ordered", false)).expect("it can be written");
    let lockstep = crate::support::lockstep::Lockstep::new(&silent, &cluster.bin);
    let set = lockstep.backup("ordered");
    assert_eq!(set.floor_lsn, None);

    // A standby that had row 0 was promoted.
    let promoted = format!("1\t{}\tno recovery target specified\n", left.lsn);
    write_as_postgres(&fixture.archive.join("00000002.history"), &promoted);
    let command = format!("cp {}/%f %p", fixture.archive.display());
    let directory = fixture.target("left");
    let options = ["--start", "--restore-command", &command];
    let refused = lockstep.expect(exit::USAGE, &restore_arguments(&set.id, &directory, &options));
    assert_said(&refused, &["of timeline 1, which was left at", "--target-timeline 1"]);
    assert!(is_empty(&directory), "{directory:?} is left: {}", refused.describe());

    let along = ["--target-timeline", "1", "--restore-command", &command];
    let restored = lockstep.restore_and_start(&set.id, &directory, &along);
    assert_eq!(rows(restored.server()), numbers(1));
    fixture.discard_restored(&directory, &set.id);
}

/// A set during which rows 1 to 3 were committed, with a checkpoint after one of them; rows 4 and 5 came after it.
struct During {
    history: History,
    /// Of row 4.
    after: Mark,
}

impl During {
    fn new(layout: Layout, strategy: &str, held: &str, checkpoint_behind: i32) -> During {
        let fixture = Fixture::new(layout);
        let cluster = &fixture.cluster;
        cluster.execute(&["CREATE TABLE marks (id int PRIMARY KEY) TABLESPACE ts2"]);
        let mut marks = vec![insert(cluster, 0)];
        let steps = Steps::new(fixture.root().join("steps"));
        steps.hold(held);
        let lockstep = fixture.lockstep().with_steps(&steps);
        let mut backup = lockstep.spawn(&["--json", "backup", "--strategy", strategy]);
        steps.wait_reached(held, &mut backup);
        for id in 1..=3 {
            marks.push(insert(cluster, id));
            if id == checkpoint_behind {
                cluster.execute(&["CHECKPOINT"]);
            }
        }
        steps.release(held);
        let outcome = backup.wait(LIMIT);
        assert!(outcome.ok(), "{}", outcome.describe());
        let set = Set::of(&json_of(&outcome));
        let after = insert(cluster, 4);
        insert(cluster, 5);
        let history = History { fixture, set, marks };
        history.archive_everything(&history.fixture.cluster, 1);
        During { history, after }
    }
}

impl History {
    #[track_caller]
    fn refused_usage(&self, name: &str, options: &[&str]) {
        let directory = self.fixture.target(name);
        let to = directory.to_str().expect("the harness' own paths are UTF-8");
        let arguments: Vec<&str> = ["restore", &self.set.id, "--to", to]
            .into_iter()
            .chain(options.iter().copied())
            .collect();
        self.fixture.lockstep().expect(exit::USAGE, &arguments);
        assert!(is_empty(&directory), "{directory:?} is left");
    }
}

fn rows(server: &Cluster) -> Vec<String> {
    server.column("postgres", "SELECT id FROM marks ORDER BY id")
}

fn numbers(last: i32) -> Vec<String> {
    (0..=last).map(|id| id.to_string()).collect()
}

fn is_empty(directory: &Path) -> bool {
    fs::read_dir(directory).map_or(true, |mut entries| entries.next().is_none())
}

/// The server's date, in UTC.
fn fixture_day(history: &History) -> String {
    history
        .fixture
        .cluster
        .value("postgres", "SELECT to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD')")
}

/// Makes a promoted cluster write to the archive, as an administrator does who keeps it.
fn archive_as_new_primary(fixture: &Fixture, server: &Cluster) {
    let conf = server.data.join("postgresql.auto.conf");
    let settings = fs::read_to_string(&conf).expect("a restored cluster has settings");
    let archive = fixture.archive.display();
    let on = format!(
        "archive_mode = on\narchive_command = 'test ! -f {archive}/%f && cp %p {archive}/%f'\n"
    );
    write_as_postgres(&conf, &format!("{settings}\n{on}"));
    let data = server.data.to_str().expect("the harness' own paths are UTF-8");
    must(&mut server.tool("pg_ctl", ["-D", data, "-l", "/dev/null", "-w", "restart"]));
    // It wasn't archiving when it was promoted, so its history wasn't queued.
    let history: PathBuf = server.data.join("pg_wal/00000002.history");
    let archived = fixture.archive.join("00000002.history");
    if !archived.exists() {
        fs::copy(&history, &archived).unwrap_or_else(|error| panic!("no {history:?}: {error}"));
        give_to_postgres(&archived);
    }
}

/// Commits a row, with pauses around the time and the position that are noted after it.
fn insert(cluster: &Cluster, id: i32) -> Mark {
    let mut client = cluster.connect("postgres");
    let mut transaction = client.transaction().expect("a transaction can be begun");
    transaction.execute("INSERT INTO marks VALUES ($1)", &[&id]).expect("a row can be inserted");
    let xid = transaction
        .query_one("SELECT pg_current_xact_id()::text", &[])
        .expect("it has an id")
        .get(0);
    transaction.commit().expect("it can be committed");
    thread::sleep(Duration::from_millis(100));
    let row =
        client.query_one("SELECT pg_current_wal_insert_lsn()::text, clock_timestamp()::text", &[]);
    let row = row.expect("the server says where and when it is");
    thread::sleep(Duration::from_millis(100));
    Mark { xid, lsn: row.get(0), time: row.get(1) }
}
