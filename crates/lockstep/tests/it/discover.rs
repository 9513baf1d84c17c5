//! Where the parts are, and what is refused with its name: parts on other file systems, mounts inside or over a part,
//! links out of the data directory, in-place tablespaces, foreign files, a server that can't be asked, files that no
//! server has left like that.

use crate::support::cluster::{Cluster, Stop};
use crate::support::command::{Running, as_postgres, command, give_to_postgres, must, wait_until};
use crate::support::faults::{Hooks, assert_nothing_remains, assert_said};
use crate::support::fixture::{Fixture, assert_clean};
use crate::support::layout::{one_dataset, one_pool, two_pools_four_datasets};
use crate::support::lockstep::{LIMIT, Lockstep, exit};
use crate::support::pools::{patiently, try_zfs, zfs};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::time::SystemTime;

#[test]
fn what_cannot_be_frozen_is_refused_by_name() {
    let fixture = Fixture::new(two_pools_four_datasets());
    let lockstep = fixture.lockstep();

    // A tablespace on the test's own file system.
    let elsewhere = fixture.owned("elsewhere");
    fixture
        .cluster
        .execute(&[&format!("CREATE TABLESPACE away LOCATION '{}'", elsewhere.display())]);
    for command in ["plan", "backup"] {
        let refused = lockstep.expect(exit::REFUSED, &[command]);
        for word in [
            "tablespace away",
            elsewhere.to_str().expect("UTF-8"),
            "can't be snapshotted",
            "hint: ",
        ] {
            assert!(refused.stderr.contains(word), "no {word:?}: {}", refused.describe());
        }
    }
    fixture.cluster.execute(&["DROP TABLESPACE away"]);

    // A dataset mounted inside the data directory: its files would be in no snapshot of it.
    let inside = fixture.cluster.data.join("base/inside");
    let nested = fixture.pools[1].dataset("nested", &inside, &[]);
    let refused = lockstep.expect(exit::REFUSED, &["backup"]);
    assert!(
        refused.stderr.contains(&nested) && refused.stderr.contains("base/inside"),
        "{}",
        refused.describe()
    );
    // Nor are they in it while that dataset isn't mounted.
    zfs(&["unmount", &nested]);
    let refused = lockstep.expect(exit::REFUSED, &["backup"]);
    let said = format!("\"{nested}\" should be mounted at");
    assert!(refused.stderr.contains(&said), "{}", refused.describe());
    zfs(&["mount", &nested]);
    // If PostgreSQL doesn't need the files after a restore, it is a warning.
    let logs = fixture.cluster.data.join("log");
    zfs(&["set", &format!("mountpoint={}", logs.display()), &nested]);
    let planned = lockstep.json(&["plan"]);
    assert!(planned["warnings"].to_string().contains(&nested), "{planned}");
    lockstep.backup("label");
    patiently("zfs", &["destroy", &nested], || ()).expect("an idle dataset can be destroyed");
    let _ = fs::remove_dir(&inside);
    let _ = fs::remove_dir(&logs);

    // Free space.
    let config = fs::read_to_string(fixture.config()).expect("the configuration is there");
    fs::write(fixture.config(), format!("{config}min_free_mib = 100000000\n"))
        .expect("it can be written");
    let refused = lockstep.expect(exit::REFUSED, &["backup"]);
    assert!(
        refused.stderr.contains("bytes left") && refused.stderr.contains(&fixture.datasets[0]),
        "{}",
        refused.describe()
    );

    // A misspelt key.
    fs::write(fixture.config(), format!("{config}strategi = 1\n")).expect("it can be written");
    let wrong = lockstep.expect(exit::USAGE, &["plan"]);
    assert!(wrong.stderr.contains("strategi"), "{}", wrong.describe());
    fs::write(fixture.config(), config).expect("it can be written");
    assert_clean(&fixture);
}

#[test]
fn without_a_connection_only_what_is_provable_is_taken() {
    let fixture = Fixture::new(two_pools_four_datasets());
    fs::write(fixture.config(), fixture.configuration("auto", false)).expect("it can be written");
    let lockstep = fixture.lockstep();
    let planned = lockstep.json(&["plan"]);
    assert_eq!(planned["strategy"], "ordered", "{planned}");
    let order = planned["order"].as_array().expect("an order");
    let first = order.first().map(ToString::to_string).unwrap_or_default();
    let last = order.last().map(ToString::to_string).unwrap_or_default();
    assert!(first.contains("/data") && last.contains("/wal"), "{planned}");

    fixture.cluster.execute(&["CREATE TABLE seen AS SELECT 41 + 1 AS answer"]);
    let set = lockstep.backup("auto");
    assert_eq!((set.strategy.as_str(), set.floor_lsn), ("ordered", None));
    let directory = fixture.target("unconnected");
    let restored = lockstep.restore_and_start(&set.id, &directory, &[]);
    assert_eq!(restored.server().value("postgres", "SELECT answer FROM seen"), "42");
    fixture.discard_restored(&directory, &set.id);

    // If the strategy that needs a connection is requested, the error says what is missing.
    let refused = lockstep.expect(exit::REFUSED, &["backup", "--strategy", "label"]);
    assert!(refused.stderr.contains("\"host\""), "{}", refused.describe());

    // Nothing is provable if pg_wal must be frozen with the data while a server runs: all reasons are named.
    fixture
        .cluster
        .execute(&["ALTER SYSTEM SET wal_level = minimal", "ALTER SYSTEM SET max_wal_senders = 0"]);
    fixture.cluster.stop(Stop::Fast);
    fixture.cluster.start();
    let refused = lockstep.expect(exit::REFUSED, &["backup"]);
    for word in ["cold:", "label:", "atomic:", "ordered:", "wal_level is minimal", "hint: "] {
        assert!(refused.stderr.contains(word), "no {word:?}: {}", refused.describe());
    }
    assert_clean(&fixture);
}

#[test]
fn tablespaces_in_place_and_foreign_files() {
    let layout = one_dataset().setting("allow_in_place_tablespaces", "on");
    // A tablespace's own dataset, mounted where the others are folders.
    let layout = layout.dataset(0, "all/apart", "all/apart").tablespace("apart", "all/apart/files");
    let fixture = Fixture::new(layout);
    fs::write(fixture.mnt().join("all/somebody's notes.txt"), "x").expect("a file can be written");
    fixture.cluster.execute(&[
        "CREATE TABLESPACE inplace LOCATION ''",
        "CREATE TABLE there (n int) TABLESPACE inplace",
        "INSERT INTO there SELECT generate_series(1, 1000)",
    ]);
    let lockstep = fixture.lockstep();
    let planned = lockstep.json(&["plan"]);
    assert!(
        !planned["volumes"].to_string().contains("inplace"),
        "in place is no part of its own: {planned}"
    );
    let warnings = planned["warnings"].to_string();
    assert!(warnings.contains("also holds \\\"somebody's notes.txt\\\"\""), "{planned}");

    let set = lockstep.backup("label");
    let directory = fixture.target("in place");
    let restored = lockstep.restore_and_start(&set.id, &directory, &[]);
    let server = restored.server();
    assert_eq!(server.value("postgres", "SELECT count(*) FROM there"), "1000");
    assert!(
        server
            .value(
                "postgres",
                "SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname = 'inplace'"
            )
            .starts_with("pg_tblspc/")
    );
    fixture.discard_restored(&directory, &set.id);
    assert_clean(&fixture);
}

/// A database and one of PostgreSQL's own folders behind links, as administrators make them for a faster disk. They
/// would be in no snapshot, and a restored cluster would write to the live one's files.
#[test]
fn links_out_of_the_data_directory_are_refused() {
    let fixture = Fixture::new(two_pools_four_datasets());
    let lockstep = fixture.lockstep();
    fixture.cluster.execute(&["CREATE DATABASE fast"]);
    let oid =
        fixture.cluster.value("postgres", "SELECT oid FROM pg_database WHERE datname = 'fast'");
    let data = &fixture.cluster.data;
    let elsewhere = fixture.owned("fast disk");
    let lead_away = |name: &str| {
        let to = elsewhere.join(name.replace('/', "-"));
        must(&mut command("cp", ["-aT".as_ref(), data.join(name).as_os_str(), to.as_os_str()]));
        fs::remove_dir_all(data.join(name)).expect("a copied folder can be removed");
        symlink(&to, data.join(name)).expect("a link can be made");
        to
    };
    let database = format!("base/{oid}");
    for name in [database.as_str(), "pg_xact"] {
        fixture.cluster.stop(Stop::Fast);
        let to = lead_away(name);
        fixture.cluster.start();
        for arguments in [["plan"], ["backup"]] {
            let refused = lockstep.expect(exit::REFUSED, &arguments);
            let path = data.join(name).display().to_string();
            for word in [&path, &to.display().to_string(), "in no snapshot", "hint: "] {
                assert!(refused.stderr.contains(word), "no {word:?}: {}", refused.describe());
            }
        }
        let checked = lockstep.expect(exit::PROBLEMS, &["check"]);
        assert!(checked.stdout.contains(name), "{}", checked.describe());
        fixture.cluster.stop(Stop::Fast);
        // A set of the stopped cluster would lack them as well.
        lockstep.expect(exit::REFUSED, &["backup", "--strategy", "cold"]);
        fs::remove_file(data.join(name)).expect("a link can be removed");
        fs::rename(&to, data.join(name)).unwrap_or_else(|_| {
            must(&mut command("cp", ["-aT".as_ref(), to.as_os_str(), data.join(name).as_os_str()]));
        });
        fixture.cluster.start();
    }
    // Folders that PostgreSQL recreates may be anywhere.
    fixture.cluster.stop(Stop::Fast);
    lead_away("pg_stat_tmp");
    // Links that don't concern PostgreSQL are only reported, unless they lead into the live cluster.
    symlink("/etc/ssl", data.join("ssl")).expect("a link can be made");
    fixture.cluster.start();
    let set = lockstep.backup("label");
    let warned = set.json["warnings"].to_string();
    assert!(warned.contains("/ssl") && warned.contains("is a link to"), "{warned}");
    let live = data.join("live");
    symlink(data.join("global"), &live).expect("a link can be made");
    lockstep.expect(exit::REFUSED, &["backup"]);
    fs::remove_file(&live).expect("a link can be removed");
    assert_clean(&fixture);
}

/// Something is mounted over the folder in which the datasets are mounted. They are still in the list of mounts, but
/// the files at the data directory's path are different ones.
#[test]
fn datasets_behind_another_mount_are_not_taken_for_the_cluster() {
    let fixture = Fixture::new(two_pools_four_datasets());
    fixture.cluster.stop(Stop::Fast);
    let mnt = fixture.mnt();
    let aside = fixture.root().join("aside");
    must(&mut command("cp", ["-aT".as_ref(), mnt.as_os_str(), aside.as_os_str()]));
    must(&mut command("mount", ["--bind".as_ref(), aside.as_os_str(), mnt.as_os_str()]));
    let outcomes = ["plan", "backup"].map(|command| fixture.lockstep().run(&[command]));
    must(&mut command("umount", [&mnt]));
    for refused in outcomes {
        assert_eq!(refused.code, Some(exit::REFUSED), "{}", refused.describe());
        for word in ["data directory lies at", "can't be snapshotted", "hint: "] {
            assert!(refused.stderr.contains(word), "no {word:?}: {}", refused.describe());
        }
    }
    assert_eq!(fixture.snapshots(), [""; 0], "something else was frozen");
    assert_eq!(fixture.lockstep().backup("auto").strategy, "cold");
    assert_clean(&fixture);
}

/// A stopped server's pg_wal that lacks the segment in which recovery begins, as if its dataset weren't mounted.
#[test]
fn a_cold_set_without_its_wal_is_none() {
    let fixture = Fixture::new(two_pools_four_datasets());
    fixture.cluster.stop(Stop::Fast);
    let pg_wal = fs::canonicalize(fixture.cluster.data.join("pg_wal")).expect("it is there");
    let aside = fixture.root().join("aside");
    fs::create_dir(&aside).expect("it can be made");
    let is_segment = |name: &str| name.len() == 24;
    let names = fs::read_dir(&pg_wal).expect("it can be listed").flatten();
    let names = names.filter_map(|entry| entry.file_name().into_string().ok());
    let names: Vec<_> = names.filter(|name| is_segment(name)).collect();
    assert!(!names.is_empty());
    for name in &names {
        must(&mut command("mv", [pg_wal.join(name), aside.join(name)]));
    }
    let refused = fixture.lockstep().expect(exit::REFUSED, &["backup"]);
    for word in
        ["isn't whole", &names.iter().min().expect("one")[..], "check that all of pg_wal is there"]
    {
        assert!(refused.stderr.contains(word), "no {word:?}: {}", refused.describe());
    }
    assert_clean(&fixture);
    assert_eq!(fixture.snapshots(), [""; 0], "a set that can't be restored");
    for name in &names {
        must(&mut command("mv", [aside.join(name), pg_wal.join(name)]));
    }
    assert_eq!(fixture.lockstep().backup("auto").strategy, "cold");
}

/// After a boot at which a dataset couldn't be mounted, PostgreSQL continues, and the folder at its mount point is
/// empty. Here that folder is on a dataset too, as with inherited mountpoints.
#[test]
fn a_tablespace_whose_dataset_is_not_mounted_is_refused() {
    let fixture = Fixture::new(one_dataset());
    configure_retention(&fixture);
    let lockstep = fixture.lockstep();
    let place = fixture.mnt().join("all/late");
    let dataset = fixture.pools[0].dataset("late", &place, &[]);
    give_to_postgres(&place);
    fixture.cluster.execute(&[
        &format!("CREATE TABLESPACE late LOCATION '{}'", place.display()),
        "CREATE TABLE there TABLESPACE late AS SELECT 1 AS n",
    ]);
    let sets: Vec<_> = (0..2).map(|_| lockstep.backup("label").id).collect();
    fixture.cluster.stop(Stop::Fast);
    patiently("zfs", &["unmount", &dataset], || ()).expect("it is idle");
    fixture.cluster.start();
    assert!(fs::read_dir(&place).expect("a folder is below").next().is_none());

    let said = |words: &[&str]| {
        for command in ["plan", "backup"] {
            let refused = lockstep.expect(exit::REFUSED, &[command]);
            for word in words {
                assert!(refused.stderr.contains(word), "no {word:?}: {}", refused.describe());
            }
        }
        let checked = lockstep.expect(exit::PROBLEMS, &["check"]);
        assert!(checked.stdout.contains(words[0]), "{}", checked.describe());
        lockstep.run(&["prune"]);
        assert!(sets.iter().all(|set| lockstep.sets().contains(set)), "{sets:?} were pruned");
    };
    let not_mounted =
        [&*format!("dataset \"{dataset}\""), "should be mounted, but isn't", "tablespace late"];
    said(&[&not_mounted[..], &["hint: ", "zfs mount"]].concat());
    // A folder from the time before the dataset looks right.
    let version = fs::read_dir(fixture.tablespace("ts1")).expect("a tablespace").flatten().next();
    let version = version.expect("it has a folder").file_name();
    fs::create_dir(place.join(&version)).expect("a folder can be made");
    said(&not_mounted);
    // If no dataset has that mount point (its pool may not be imported), the folder itself is checked.
    fs::remove_dir(place.join(&version)).expect("it is empty");
    zfs(&["set", "mountpoint=none", &dataset]);
    let version = version.to_str().expect("UTF-8");
    said(&[&format!("has no folder \"{version}\""), "tablespace late", "hint: ", "zpool import"]);

    fixture.cluster.stop(Stop::Fast);
    fs::remove_dir(&place).expect("it is empty");
    zfs(&["set", &format!("mountpoint={}", place.display()), &dataset]);
    let _ = try_zfs(&["mount", &dataset]);
    fixture.cluster.start();
    lockstep.expect(exit::DONE, &["backup"]);
    assert_eq!(fixture.cluster.value("postgres", "SELECT n FROM there"), "1");
}

/// Keeps two sets on this host.
fn configure_retention(fixture: &Fixture) {
    let text = fixture.configuration("label", true);
    let text = format!("{text}\n[clusters.main.retention]\nlocal = {{ last = 2 }}\n");
    fs::write(fixture.config(), text).expect("the configuration can be written");
}

/// Checks that plan, check and backup refuse the cluster as it is, with every strategy and with these words, and that
/// nothing is frozen.
#[track_caller]
fn assert_refused(fixture: &Fixture, lockstep: &Lockstep, words: &[&str]) {
    let before = fixture.snapshots();
    let said = lockstep.expect(exit::REFUSED, &["plan"]);
    assert_said(&said, words);
    for strategy in ["auto", "atomic", "ordered", "cold"] {
        let said = lockstep.expect(exit::REFUSED, &["backup", "--strategy", strategy]);
        assert_said(&said, words);
        assert_said(&said, &["error: ", "hint: "]);
    }
    let checked = lockstep.expect(exit::PROBLEMS, &["check"]);
    for word in words {
        assert!(checked.stdout.contains(word), "no {word:?}: {}", checked.describe());
    }
    assert_eq!(fixture.snapshots(), before, "something was frozen");
}

/// Makes a base backup of what is on disk, as far as a server that starts there can tell: the files of a running
/// cluster, among them a pg_control with a later checkpoint than its backup_label's.
#[track_caller]
fn backup_label(cluster: &Cluster) -> String {
    let mut session = cluster.connect("postgres");
    let mut ask = |statement: &str| {
        let row = session.query_one(statement, &[]);
        row.unwrap_or_else(|error| panic!("{statement}: {error}")).get::<_, String>(0)
    };
    ask("SELECT pg_backup_start('copy', true)::text");
    cluster.execute(&["CREATE TABLE later AS SELECT 42 AS answer", "CHECKPOINT"]);
    ask("SELECT labelfile FROM pg_backup_stop(false)")
}

#[test]
fn a_base_backup_that_nobody_has_started_is_refused() {
    let fixture = Fixture::new(one_pool());
    let older = fixture.lockstep().backup("label").id;
    let label = backup_label(&fixture.cluster);
    fixture.cluster.stop(Stop::Immediate);
    let data = &fixture.cluster.data;
    let silent = fixture.root().join("silent.toml");
    let configuration = fixture.configuration("auto", false);
    fs::write(&silent, &configuration).expect("it can be written");
    let silent = Lockstep::new(&silent, &fixture.cluster.bin);

    // It comes while a crashed cluster is frozen.
    let step = "backup.after-snapshot-1";
    let hooks = Hooks::holding(&fixture, step);
    let program = hooks.run_to(step, &["backup", "--strategy", "atomic"]);
    fs::write(data.join("backup_label"), &label).expect("it can be written");
    hooks.steps.release(step);
    let refused = program.wait(LIMIT);
    assert_eq!(refused.code, Some(exit::REFUSED), "{}", refused.describe());
    assert_said(
        &refused,
        &["hasn't yet replayed the base backup", "backup_label\" is still there"],
    );
    assert_nothing_remains(&fixture, &[], "refused at the freeze");

    for lockstep in [&silent, &fixture.lockstep()] {
        assert_refused(
            &fixture,
            lockstep,
            &["hasn't yet replayed the base backup", "start the server"],
        );
    }
    fs::remove_file(data.join("backup_label")).expect("it is there");
    fs::write(data.join("tablespace_map"), "").expect("it can be written");
    assert_refused(&fixture, &silent, &["tablespace_map\" is still there"]);
    fs::remove_file(data.join("tablespace_map")).expect("it is there");
    // As after a power cut.
    assert_eq!(silent.backup("auto").strategy, "atomic");

    // A restore that nobody has started.
    let directory = fixture.target("unstarted");
    let restored = fixture.lockstep().restore(&older, &directory, &[]);
    let moved = fixture.root().join("moved.toml");
    let [from, to] = [data, &restored.data].map(|path| path.display().to_string());
    fs::write(&moved, configuration.replace(&from, &to)).expect("it can be written");
    let moved = Lockstep::new(&moved, &fixture.cluster.bin);
    assert_refused(&fixture, &moved, &["hasn't yet replayed the base backup", &to]);

    // A server that starts replays it.
    fs::write(data.join("backup_label"), &label).expect("it can be written");
    give_to_postgres(&data.join("backup_label"));
    fixture.cluster.start();
    assert_eq!(fixture.cluster.value("postgres", "SELECT answer FROM later"), "42");
    assert_eq!(silent.backup("auto").strategy, "atomic");
}

/// A program that does nothing but have this name and these arguments.
#[track_caller]
fn program_called(fixture: &Fixture, name: &str, arguments: &[&str]) -> Running {
    let path = fixture.owned(&format!("bin-{name}")).join(name);
    fs::write(&path, "#!/bin/sh\nread -r line < \"$HOME\"\n").expect("it can be written");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("it can be set");
    let waits = path.with_extension("waits");
    must(&mut command("mkfifo", [&waits]));
    give_to_postgres(&waits);
    let running = Running::start(as_postgres(&path, arguments).env("HOME", &waits));
    let comm = format!("/proc/{}/comm", running.id());
    wait_until("the program has its name", LIMIT, || {
        fs::read_to_string(&comm).is_ok_and(|comm| name.starts_with(comm.trim_end()))
    });
    running
}

/// Sets when a file was written.
#[track_caller]
fn written(path: &Path, at: SystemTime) {
    let file = fs::File::options().write(true).open(path);
    file.and_then(|file| file.set_modified(at)).unwrap_or_else(|e| panic!("{path:?}: {e}"));
}

/// pg_control says that the cluster is shut down, before and after, while something changes its files.
#[test]
fn a_stopped_cluster_whose_files_are_being_changed_is_refused() {
    let fixture = Fixture::new(two_pools_four_datasets());
    let lockstep = fixture.lockstep();
    fixture.cluster.stop(Stop::Fast);
    let data = &fixture.cluster.data;
    let path = data.display().to_string();
    assert_eq!(lockstep.backup("auto").strategy, "cold");
    // Programs that work on it, or that have a file of it open for writing.
    for (name, argument) in [
        ("pg_rewind", format!("--target-pgdata={path}")),
        ("pg_upgrade", format!("-D{path}")),
        ("pg_combinebackup", path.clone()),
    ] {
        let mut program = program_called(&fixture, name, &["-x", &argument]);
        let words = format!("{name} (process {}) is at work on \"{path}\"", program.id());
        assert_refused(&fixture, &lockstep, &[&words]);
        program.kill();
        program.wait_or_kill(LIMIT);
    }
    let mut elsewhere = program_called(&fixture, "pg_resetwal", &["-D", "/elsewhere"]);
    assert_eq!(lockstep.backup("auto").strategy, "cold", "it works on another cluster");
    elsewhere.kill();
    elsewhere.wait_or_kill(LIMIT);
    let script = "exec 3>>\"$0\"/pg_xact/0000; exec sleep 300";
    let mut writer = Running::start(&mut command("sh", ["-c", script, &path]));
    let comm = format!("/proc/{}/comm", writer.id());
    wait_until("it has the file open", LIMIT, || {
        fs::read_to_string(&comm).is_ok_and(|comm| comm.trim_end() == "sleep")
    });
    let words = format!("sleep (process {}) is at work on \"{path}/pg_xact/0000\"", writer.id());
    assert_refused(&fixture, &lockstep, &[&words]);
    writer.kill();
    writer.wait_or_kill(LIMIT);
    assert_eq!(lockstep.backup("auto").strategy, "cold");

    // What one that was killed leaves.
    let file = data.join("pg_xact/0000");
    let was = fs::metadata(&file).and_then(|found| found.modified()).expect("it is there");
    written(&file, SystemTime::now());
    assert_refused(&fixture, &lockstep, &["pg_xact/0000\" was written after pg_control"]);
    let content = fs::read(&file).expect("it can be read");
    fs::write(&file, "").expect("it can be emptied");
    written(&file, was);
    assert_refused(&fixture, &lockstep, &["pg_xact/0000\" is empty", "run pg_rewind again"]);
    fs::write(&file, content).expect("it can be written");
    written(&file, was);
    let output = data.join("pg_upgrade_output.d");
    fs::create_dir(&output).expect("it can be made");
    let options = data.join("postmaster.opts");
    let given = fs::read_to_string(&options).expect("it can be read");
    fs::write(&options, given.replace('\n', " \"-b\"\n")).expect("it can be written");
    assert_refused(&fixture, &lockstep, &["pg_upgrade hasn't ended well"]);
    fs::write(&options, given).expect("it can be written");

    // It begins after the plan.
    let step = "backup.before-snapshot-2";
    let hooks = Hooks::holding(&fixture, step);
    let program = hooks.run_to(step, &["backup"]);
    written(&file, SystemTime::now());
    hooks.steps.release(step);
    let refused = program.wait(LIMIT);
    assert_eq!(refused.code, Some(exit::REFUSED), "{}", refused.describe());
    assert_said(&refused, &["was written after pg_control"]);
    assert_nothing_remains(&fixture, &[], "refused at the freeze");
    // A server that was started and stopped has written everything.
    fixture.cluster.start();
    fixture.cluster.stop(Stop::Fast);
    assert_eq!(lockstep.backup("auto").strategy, "cold");
}
