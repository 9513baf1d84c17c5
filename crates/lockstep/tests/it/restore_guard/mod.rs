//! Mistyped restores: `--delta` removes and rolls back, so anything that isn't an older restore is refused before
//! anything is changed, and the cluster next to it keeps running.

mod cut_off;
mod older;
mod others;
mod theirs;

use crate::support::checker::Checker;
use crate::support::cluster::{Cluster, Stop};
use crate::support::command::{Outcome, as_postgres, command, must, run, wait_until};
use crate::support::commands::without_zfs;
use crate::support::faults::{
    Hooks, assert_nothing_remains, assert_said, differences, entries, kill_at, restore_arguments,
    server_by_hand, signal_at, walk,
};
use crate::support::fixture::Fixture;
use crate::support::layout::{Layout, Wal, one_pool, two_pools_four_datasets};
use crate::support::lockstep::{LIMIT, Lockstep, Set, exit, json_of, toml_string};
use crate::support::pools::{patiently, property, zfs};
use crate::support::shipping::{discard, with_repository};
use rustix::process::Signal;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

const SCALE: u32 = 1;
const FILES: [&str; 5] = ["--from", "repository", "--as", "files", "--delta"];

/// A cluster whose folders and datasets are named like those of a restore, a set of it in a repository, and rows
/// written after the set.
fn live() -> (Fixture, Lockstep, Set) {
    let fixture = Fixture::new(one_pool());
    fixture.pgbench_tables(SCALE);
    let lockstep = with_repository(&fixture);
    let set = lockstep.backup("label");
    fixture.cluster.execute(&["CREATE TABLE later AS SELECT 7 AS n", "CHECKPOINT"]);
    (fixture, lockstep, set)
}

#[track_caller]
fn assert_refused(outcome: &Outcome, words: &[&str]) {
    assert_eq!(outcome.code, Some(exit::REFUSED), "{}", outcome.describe());
    assert_said(outcome, &[&["error: ", "hint: "], words].concat());
}

#[track_caller]
fn assert_lives_on(fixture: &Fixture) {
    assert_eq!(fixture.cluster.value("postgres", "SELECT n FROM later"), "7");
    fixture.cluster.execute(&["CHECKPOINT", "UPDATE later SET n = 7"]);
}

#[test]
fn a_live_cluster_is_neither_rolled_back_nor_written_over() {
    let (fixture, lockstep, set) = live();
    let pool = fixture.pools[0].name.clone();
    // Its datasets are below the parent that somebody gave by mistake.
    let parent = format!("{pool}/pg");
    let to = fixture.target("r");
    let zfs = ["--from", "repository", "--as", "zfs", "--delta", "--dataset", &parent];
    let outcome = lockstep.run(&restore_arguments(&set.id, &to, &zfs));
    assert_refused(&outcome, &["is mounted at", &format!("{parent}/data")]);
    assert_lives_on(&fixture);
    // A restore fills DIR/data, DIR/wal and DIR/tablespaces: here, two of them are live.
    let outcome = lockstep.run(&restore_arguments(&set.id, &fixture.mnt(), &FILES));
    assert_refused(&outcome, &["would fill", "of cluster \"main\""]);
    assert_lives_on(&fixture);
    // A folder that merely contains a live part, given for a tablespace.
    let around = format!("ts1={}", fixture.mnt().display());
    let more = [&FILES[..], &["--tablespace", &around]].concat();
    let outcome = lockstep.run(&restore_arguments(&set.id, &to, &more));
    assert_refused(&outcome, &["would fill", "of cluster \"main\""]);
    assert_lives_on(&fixture);
    assert!(!to.exists(), "{} was made", to.display());
}

/// Folders for tablespaces are checked before anything is made.
#[test]
fn a_tablespace_is_not_sent_to_any_place() {
    // ts1 is a folder of its dataset, ts2 the whole dataset.
    let fixture = Fixture::new(two_pools_four_datasets());
    let lockstep = with_repository(&fixture);
    let set = lockstep.backup("label");
    let parent = format!("{}/back", fixture.pools[0].name);
    let to = fixture.target("r");
    let files = ["--from", "repository", "--as", "files"];
    let zfs = ["--from", "repository", "--as", "zfs", "--dataset", &parent];
    let refused = |form: &[&str], tablespace: &str, place: &Path, words: &[&str]| {
        let place = format!("{tablespace}={}", place.display());
        let more = [form, &["--tablespace", &place]].concat();
        let outcome = lockstep.run(&restore_arguments(&set.id, &to, &more));
        assert_eq!(outcome.code, Some(exit::USAGE), "{}", outcome.describe());
        assert_said(&outcome, &[&["hint: "], words].concat());
    };
    // Inside DIR, no later --delta would recognize it.
    for form in [&[][..], &files, &zfs] {
        refused(form, "ts1", &to.join("foo"), &["which the restore fills"]);
    }
    // A link that leads nowhere and a file aren't folders, and no folder can be made in them.
    let link = fixture.root().join("dl");
    symlink(fixture.root().join("nowhere"), &link).expect("a link can be made");
    let file = fixture.root().join("file");
    fs::write(&file, "us").expect("it can be written");
    let delta = [&zfs[..], &["--delta"]].concat();
    for form in [&[][..], &files, &zfs, &delta] {
        for tablespace in ["ts1", "ts2"] {
            for place in [link.clone(), link.join("in")] {
                refused(form, tablespace, &place, &["is a symbolic link that leads to no folder"]);
            }
        }
        refused(form, "ts2", &file.join("in"), &["isn't a folder"]);
    }
    let outcome = lockstep.run(&restore_arguments(&set.id, &link, &files));
    assert_eq!(outcome.code, Some(exit::USAGE), "{}", outcome.describe());
    assert!(link.is_symlink() && !fixture.root().join("nowhere").exists());
    // One existing folder for two tablespaces.
    let shared = fixture.owned("shared");
    let both = ["ts1", "ts2"].map(|name| format!("{name}={}", shared.display()));
    let twice = [&files[..], &["--tablespace", &both[0], "--tablespace", &both[1]]].concat();
    let over = [&files[..], &["--tablespace", &both[0]]].concat();
    for (to, more) in [(&to, &twice), (&shared, &over)] {
        let outcome = lockstep.run(&restore_arguments(&set.id, to, more));
        assert_eq!(outcome.code, Some(exit::USAGE), "{}", outcome.describe());
        assert_said(&outcome, &["lie in one another"]);
    }
    assert!(!to.exists(), "{} was made", to.display());
}

/// A dry run refuses what the restore would.
#[test]
fn nothing_is_restored_to_a_read_only_file_system() {
    let (fixture, lockstep, set) = live();
    let mount = fixture.owned("ro");
    let path = mount.display().to_string();
    must(&mut command("mount", ["-t", "tmpfs", "-o", "mode=755", "small", &path]));
    fs::create_dir(mount.join("there")).expect("a folder can be made");
    must(&mut command("mount", ["-o", "remount,ro", &path]));
    let parent = format!("{}/back", fixture.pools[0].name);
    let zfs = ["--from", "repository", "--as", "zfs", "--dataset", &parent];
    for form in [&[][..], &FILES, &zfs] {
        for to in ["there", "there/r"] {
            for more in [&["--dry-run"][..], &[]] {
                let more = [form, more].concat();
                let outcome = lockstep.run(&restore_arguments(&set.id, &mount.join(to), &more));
                assert_eq!(outcome.code, Some(exit::FAILED), "{}", outcome.describe());
                assert_said(&outcome, &["Read-only file system", "hint: mount it for writing"]);
            }
        }
    }
    assert_nothing_remains(&fixture, &[], "nothing was restored");
    must(&mut command("umount", [&path]));
}

/// The file system of an older restore's tablespace has become read-only since, as ext4 does after an error.
#[test]
fn an_older_restore_stays_whole_if_one_of_its_places_is_read_only() {
    let (fixture, lockstep, set) = live();
    let mount = fixture.owned("fast");
    let path = mount.display().to_string();
    must(&mut command("mount", ["-t", "tmpfs", "-o", "mode=755", "fast", &path]));
    let to = fixture.target("r");
    let place = format!("ts1={}", mount.join("ts").display());
    let sent = ["--tablespace", &place];
    lockstep.restore(&set.id, &to, &[&FILES[..4], &sent].concat());
    must(&mut command("mount", ["-o", "remount,ro", &path]));
    let before = walk(&to);
    for more in [&["--dry-run"][..], &[]] {
        let more = [&FILES[..], &sent, more].concat();
        let outcome = lockstep.run(&restore_arguments(&set.id, &to, &more));
        assert_eq!(outcome.code, Some(exit::FAILED), "{}", outcome.describe());
        assert_said(&outcome, &["Read-only file system", "hint: mount it for writing"]);
        let changed = differences(&before, &walk(&to));
        assert!(changed.is_empty(), "{changed:?}: {}", outcome.describe());
    }
    must(&mut command("mount", ["-o", "remount,rw", &path]));
    lockstep.restore(&set.id, &to, &[&FILES[..], &sent].concat());
    must(&mut command("umount", [&path]));
}

/// An older restore, as it is after an import without mounts, or before its key is loaded. Its folder is free.
#[test]
fn nothing_is_restored_to_where_a_dataset_belongs_that_is_not_mounted() {
    let (fixture, lockstep, set) = live();
    let pool = fixture.pools[0].name.clone();
    let (old, parent) = (format!("{pool}/old"), format!("{pool}/back"));
    let to = fixture.target("r");
    let at = format!("mountpoint={}", to.join("data").display());
    zfs(&["create", "-o", &at, &old]);
    patiently("zfs", &["unmount", &old], || ()).expect("nobody uses it");
    fs::remove_dir_all(&to).expect("only empty folders are there");
    let as_zfs = ["--from", "repository", "--as", "zfs", "--dataset", &parent];
    for form in [&[][..], &FILES[..4], &as_zfs] {
        for more in [&["--dry-run"][..], &[]] {
            let more = [form, more].concat();
            let outcome = lockstep.run(&restore_arguments(&set.id, &to, &more));
            assert_eq!(outcome.code, Some(exit::USAGE), "{}", outcome.describe());
            let words = ["isn't mounted", "hint: restore to another folder", "zfs mount"];
            assert_said(&outcome, &[&[old.as_str()], &words[..]].concat());
            assert!(!to.exists(), "{} was made", to.display());
        }
    }
    zfs(&["set", "canmount=noauto", &old]);
    lockstep.restore(&set.id, &to, &FILES[..4]);
    zfs(&["destroy", &old]);
    assert_lives_on(&fixture);
}

/// DIR is somebody's own dataset, with an older restore: once it is mounted again, it hides what is below.
#[test]
fn no_files_are_restored_below_a_dataset_that_is_not_mounted() {
    let (fixture, lockstep, set) = live();
    let own = format!("{}/own", fixture.pools[0].name);
    let to = fixture.target("r");
    zfs(&["create", "-o", &format!("mountpoint={}", to.display()), &own]);
    lockstep.restore(&set.id, &to, &FILES[..4]);
    patiently("zfs", &["unmount", &own], || ()).expect("nobody uses it");
    for form in [&FILES[..4], &FILES] {
        for more in [&["--dry-run"][..], &[]] {
            let outcome = lockstep.run(&restore_arguments(&set.id, &to, &[form, more].concat()));
            assert_eq!(outcome.code, Some(exit::USAGE), "{}", outcome.describe());
            assert_said(&outcome, &[own.as_str(), "isn't mounted", "zfs mount"]);
            assert!(!to.join("data").exists(), "{}", outcome.describe());
        }
    }
    // As a replica of another host's /srv: what is in the folder now would be hidden.
    let theirs = to.join("theirs");
    fs::write(&theirs, "").expect("the test may");
    let outcome = lockstep.run(&restore_arguments(&set.id, &to.join("r"), &FILES[..4]));
    assert_eq!(outcome.code, Some(exit::USAGE), "{}", outcome.describe());
    assert_said(&outcome, &["hint: restore to another folder", "would hide", "canmount=noauto"]);
    fs::remove_file(&theirs).expect("the test may");
    zfs(&["mount", &own]);
    lockstep.restore(&set.id, &to, &FILES);
    patiently("zfs", &["destroy", &own], || ()).expect("nobody uses it");
    assert_lives_on(&fixture);
}

/// A folder that isn't a restore keeps everything in it, and its owner and mode too; an empty one keeps these.
#[test]
fn a_folder_that_was_there_keeps_its_owner_and_mode() {
    let (fixture, lockstep, set) = live();
    let etc = fixture.root().join("etc");
    fs::create_dir(&etc).expect("a folder can be made");
    fs::write(etc.join("passwd"), "root").expect("it can be written");
    fs::set_permissions(&etc, fs::Permissions::from_mode(0o755)).expect("it is ours");
    let before = walk(&etc);
    let parent = format!("{}/back", fixture.pools[0].name);
    let zfs = ["--from", "repository", "--as", "zfs", "--delta", "--dataset", &parent];
    for more in [&FILES[..], &[&FILES[..], &["--dry-run"]].concat(), &zfs] {
        let outcome = lockstep.run(&restore_arguments(&set.id, &etc, more));
        assert_refused(&outcome, &["isn't an older restore", "\"passwd\"", "part of a restore"]);
        assert!(walk(&etc) == before, "{more:?} touched {etc:?}");
    }
    // Nor is it enough that its folders have the same names as a restore's.
    let var = fixture.root().join("var");
    fs::create_dir_all(var.join("log")).expect("folders can be made");
    let outcome = lockstep.run(&restore_arguments(&set.id, &var, &FILES));
    assert_refused(&outcome, &["isn't an older restore", "no data directory"]);

    let empty = fixture.root().join("empty");
    fs::create_dir(&empty).expect("a folder can be made");
    fs::set_permissions(&empty, fs::Permissions::from_mode(0o755)).expect("it is ours");
    let is_ours = || {
        let found = fs::metadata(&empty).expect("it is there");
        (found.uid(), found.mode() & 0o7777) == (0, 0o755)
    };
    for more in [&FILES[..4], &FILES] {
        let restored = lockstep.restore_and_start(&set.id, &empty, more);
        assert!(is_ours(), "{more:?} changed {empty:?}");
        restored.server().stop(Stop::Fast);
    }
    // A place that only root may enter is of no use to postgres.
    let closed = fixture.root().join("closed");
    fs::create_dir(&closed).expect("a folder can be made");
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).expect("it is ours");
    let outcome = lockstep.run(&restore_arguments(&set.id, &closed, &FILES));
    assert_eq!(outcome.code, Some(exit::USAGE), "{}", outcome.describe());
    assert_said(&outcome, &["can't enter it", "hint: chown "]);
    assert_lives_on(&fixture);
}

/// The path of a restored tablespace in DIR, with links resolved.
fn tablespace_of(fixture: &Fixture, to: &Path, name: &str) -> PathBuf {
    let query = format!("SELECT oid FROM pg_tablespace WHERE spcname = '{name}'");
    let oid = fixture.cluster.value("postgres", &query);
    fs::canonicalize(to.join("tablespaces").join(oid)).expect("it is there")
}

/// Next to the original, a restored cluster disables its subscriptions and says so, unless it is told otherwise.
#[test]
fn subscriptions_rest_beside_the_original() {
    let fixture = Fixture::new(one_pool());
    let lockstep = fixture.lockstep();
    fixture.cluster.execute(&["ALTER SYSTEM SET max_logical_replication_workers = 3"]);
    let set = lockstep.backup("label").id;
    let to = fixture.target("r");
    let workers = "SELECT setting FROM pg_settings WHERE name = 'max_logical_replication_workers'";
    for (more, setting) in [(&[][..], "0"), (&["--keep-subscriptions"], "3")] {
        let restored = lockstep.restore_and_start(&set, &to, more);
        assert_eq!(restored.json["subscriptions_held"], setting == "0");
        assert_eq!(restored.server().value("postgres", workers), setting);
        let settings = fs::read_to_string(restored.data.join("postgresql.auto.conf"));
        let settings = settings.expect("it is there");
        // The comment is above its settings.
        let (_, ours) = settings.split_once("# written by lockstep restore:").expect("the comment");
        assert!(ours.contains("port = ") && ours.contains("archive_mode"), "{settings}");
        // pg_cron would connect to the original's port, which its table of jobs has.
        let jobs = restored.server().value("postgres", "SHOW cron.use_background_workers");
        assert_eq!(jobs, "on", "{more:?}");
        if setting == "0" {
            restored.server().execute(&["ALTER SYSTEM RESET max_logical_replication_workers"]);
        }
        restored.server().stop(Stop::Fast);
        fixture.discard_restored(&to, &set);
    }
    // Without starting a server, the option would do nothing.
    lockstep.expect(exit::USAGE, &restore_arguments(&set, &to, &["--keep-subscriptions"]));
    // With its own configuration, for a drill: the original is where the set was taken.
    let text = fs::read_to_string(fixture.config()).expect("the configuration");
    let data = |path: &Path| format!("data_directory = {}", toml_string(path));
    let drill = text.replace(&data(&fixture.cluster.data), &data(&to.join("data")));
    assert_ne!(text, drill);
    let path = fixture.root().join("drill.toml");
    fs::write(&path, drill).expect("it can be written");
    let drill = Lockstep::new(&path, &fixture.cluster.bin);
    let restored = drill.restore_and_start(&set, &to, &[]);
    assert_eq!(restored.json["subscriptions_held"], true);
    assert_eq!(restored.server().value("postgres", workers), "0");
    restored.server().stop(Stop::Fast);
}

/// Publishers don't send again what the original has confirmed to them since the set: where a subscriber's subscriptions
/// go on, somebody has to look at its tables.
#[test]
fn subscriptions_that_go_on_lack_what_was_sent_since() {
    let fixture = Fixture::new(one_pool());
    let lockstep = fixture.lockstep();
    // What a subscription leaves behind.
    fixture.cluster.execute(&[
        "SELECT pg_replication_origin_create('of_a_publisher')",
        "SELECT pg_replication_origin_advance('of_a_publisher', '0/1000000')",
    ]);
    let set = lockstep.backup("label").id;
    let to = fixture.target("r");
    let held = lockstep.restore_and_start(&set, &to, &[]);
    assert!(held.json.get("problems").is_none(), "they rest: {}", held.json);
    held.server().stop(Stop::Fast);
    fixture.discard_restored(&to, &set);

    let options = ["--start", "--keep-subscriptions"];
    let arguments = [&["--json"], &restore_arguments(&set, &to, &options)[..]].concat();
    let outcome = lockstep.expect(exit::PROBLEMS, &arguments);
    assert_said(&outcome, &["problem: the cluster's subscriptions go on", "hint: compare"]);
    lockstep.restored(&json_of(&outcome)).server().stop(Stop::Fast);

    // Whoever starts it, or ends the rest, does so later.
    for (name, options) in [("unstarted", &[][..]), ("resting", &["--start"][..])] {
        let to = fixture.target(name);
        let arguments = [&["--json"], &restore_arguments(&set, &to, options)[..]].concat();
        let outcome = lockstep.expect(exit::DONE, &arguments);
        assert_said(&outcome, &["its subscriptions lack it once they are active"]);
        if name == "resting" {
            lockstep.restored(&json_of(&outcome)).server().stop(Stop::Fast);
        }
    }
}

/// Options that only work together with others are refused without them, so that none is silently ignored.
#[test]
fn options_that_would_do_nothing_are_refused() {
    let fixture = Fixture::new(one_pool());
    let lockstep = fixture.lockstep();
    let set = lockstep.backup("label").id;
    let used = fixture.owned("used");
    fs::write(used.join("thesis.tex"), "all of it").expect("it can be written");
    let outcome = lockstep.run(&restore_arguments(&set, &used, &["--delta"]));
    assert_eq!(outcome.code, Some(exit::USAGE), "{}", outcome.describe());
    assert_said(&outcome, &["--delta needs --from repository", "hint: "]);
    for action in ["pause", "shutdown"] {
        let to = fixture.target("r");
        let outcome = lockstep.run(&restore_arguments(&set, &to, &["--target-action", action]));
        assert_eq!(outcome.code, Some(exit::USAGE), "{}", outcome.describe());
        assert_said(&outcome, &["without a target", "PostgreSQL promotes"]);
        assert!(!to.exists());
    }
}

/// Recovery has ended when the program is killed: people may be using the server.
#[test]
fn a_server_that_has_recovered_outlives_the_program() {
    let fixture = Fixture::new(two_pools_four_datasets());
    fixture.pgbench_tables(SCALE);
    let set = fixture.lockstep().backup("label").id;
    let to = fixture.target("in use");
    let arguments = restore_arguments(&set, &to, &["--start"]);
    kill_at(&fixture, "restore.started", &arguments);
    // The next command finds the journal.
    let next = fixture.lockstep().backup("label").id;
    let data = fs::canonicalize(to.join("data")).expect("the restore is there still");
    let server = Cluster::running_in(&data, &fixture.cluster.bin, &to.join("log/server.log"));
    server.execute(&["CREATE TABLE ours AS SELECT 1 AS n"]);
    // It belongs to somebody, and nobody is told to destroy it.
    let checked = fixture.lockstep().expect(exit::DONE, &["check"]);
    assert!(!checked.stdout.contains("zfs destroy"), "{}", checked.describe());
    fixture.discard_set(&fixture.lockstep().backup("label").id);
    assert_eq!(server.value("postgres", "SELECT n FROM ours"), "1");
    // As long as it hasn't recovered, it is the remains of a killed program.
    let other = fixture.target("not yet");
    kill_at(&fixture, "restore.settings", &restore_arguments(&set, &other, &["--start"]));
    fixture.discard_set(&fixture.lockstep().backup("label").id);
    assert!(!other.exists(), "{} is left", other.display());
    server.stop(Stop::Fast);
    fixture.discard_restored(&to, &set);
    fixture.discard_set(&next);
}

/// What an unfinished restore left can't be opened: that doesn't prevent another restore, and it is removed once that
/// is possible.
#[test]
fn what_can_not_be_opened_stays_for_now() {
    let fixture = Fixture::new(one_pool());
    let lockstep = with_repository(&fixture);
    let set = lockstep.backup("label");
    let to = fixture.target("r");
    let hooks = Hooks::holding(&fixture, "restore.journal");
    let mut program =
        lockstep.clone().with_steps(&hooks.steps).spawn(&restore_arguments(&set.id, &to, &FILES));
    hooks.steps.wait_reached("restore.journal", &mut program);
    program.kill();
    program.wait(LIMIT);
    assert!(to.exists());
    fs::set_permissions(&to, fs::Permissions::from_mode(0o000)).expect("it is ours");
    // As root without the capabilities that open everything: a failing disk refuses in the same way.
    let config = fixture.root().join("shipping.toml");
    let mut next = command("setpriv", ["--bounding-set", "-dac_override,-dac_read_search"]);
    next.arg(env!("CARGO_BIN_EXE_lockstep")).arg("--config").arg(&config);
    next.args(["restore", "no-such-set", "--to"]).arg(fixture.target("other"));
    let outcome = run(next.args(["--from", "repository", "--as", "files"]));
    assert_eq!(outcome.code, Some(exit::USAGE), "{}", outcome.describe());
    assert_said(&outcome, &["stays for now", "no-such-set"]);
    assert!(to.exists());
    let other = fixture.target("other");
    lockstep.expect(exit::USAGE, &restore_arguments("no-such-set", &other, &FILES));
    assert!(!to.exists(), "{} is left", to.display());
}

/// A port that is used without TCP, and programs of another version, are found before anything is made.
#[test]
fn what_keeps_a_server_from_its_start_is_found_first() {
    let fixture = Fixture::new(one_pool());
    let set = fixture.lockstep().backup("label").id;
    let to = fixture.target("r");
    let taken = fixture.cluster.port.to_string();
    for more in [&["--start", "--port", &taken][..], &["--start", "--port", &taken, "--dry-run"]] {
        let outcome = fixture.lockstep().expect(exit::USAGE, &restore_arguments(&set, &to, more));
        assert_said(
            &outcome,
            &[&format!("port {taken} is taken"), ".lock\" is of process", "hint: "],
        );
        assert!(!to.exists());
    }
    // As after an upgrade: bin_dir has the new version, and the set's own programs are in their usual place.
    let bin = fixture.root().join("new");
    fs::create_dir(&bin).expect("the test may");
    fs::write(bin.join("postgres"), "#!/bin/sh\necho 'postgres (PostgreSQL) 99.1'\n")
        .expect("it may");
    fs::set_permissions(bin.join("postgres"), fs::Permissions::from_mode(0o755)).expect("ours");
    let text = fs::read_to_string(fixture.config()).expect("it is there");
    let own = fixture.cluster.bin.display().to_string();
    let config = fixture.root().join("upgraded.toml");
    fs::write(&config, text.replace(&own, &bin.display().to_string())).expect("the test may");
    let upgraded = Lockstep::new(&config, &fixture.cluster.bin);
    let program = fixture.cluster.bin.join("pg_ctl").display().to_string();
    let restored = upgraded.expect(exit::DONE, &restore_arguments(&set, &to, &[]));
    assert!(restored.stdout.contains(&program), "{}", restored.describe());
    fixture.discard_restored(&to, &set);
    upgraded.restore_and_start(&set, &to, &[]);
    fixture.discard_restored(&to, &set);
}

/// The terminal is closed: as after ^C, nothing is left; with `nohup` it continues.
#[test]
fn a_hangup_ends_it_tidily() {
    let fixture = Fixture::new(two_pools_four_datasets());
    let set = fixture.lockstep().backup("label").id;
    let to = fixture.target("hung up");
    let arguments = restore_arguments(&set, &to, &["--start"]);
    let (_, outcome) = signal_at(&fixture, "restore.recovered", Signal::HUP, &arguments);
    assert_eq!(outcome.code, Some(exit::INTERRUPTED), "{}", outcome.describe());
    assert_nothing_remains(&fixture, &[], "SIGHUP");
}

/// From the moment that its server is there for others, they may write to it; whatever ends the program then, from
/// snapshots or a repository.
#[test]
fn a_cluster_that_was_handed_over_outlives_a_late_failure() {
    let (fixture, lockstep, set) = live();
    let folder = fixture.state.join("clusters/main/restores");
    let is_journal = |path: &PathBuf| path.extension().is_some_and(|end| end == "json");
    for (name, form) in [("clones", &[][..]), ("files", &FILES[..4])] {
        for fails in [false, true] {
            let to = fixture.target(&format!("{name}-{fails}"));
            let arguments = restore_arguments(&set.id, &to, &[form, &["--start"]].concat());
            let hooks = Hooks::holding(&fixture, "restore.started");
            let mut program = lockstep.clone().with_steps(&hooks.steps).spawn(&arguments);
            hooks.steps.wait_reached("restore.started", &mut program);
            let data = fs::canonicalize(to.join("data")).expect("it is there");
            let log = to.join("log/server.log");
            let server = Cluster::running_in(&data, &fixture.cluster.bin, &log);
            server.execute(&["CREATE TABLE precious AS SELECT 5 AS n"]);
            let aside = fixture.root().join("aside");
            if fails {
                // Its journal can't be removed.
                let journal = entries(&folder).into_iter().find(is_journal).expect("it is there");
                fs::rename(&journal, &aside).expect("the test may");
                fs::create_dir_all(journal.join("in the way")).expect("the test may");
                hooks.steps.release("restore.started");
            } else {
                // It goes on by itself: released, it may be faster than its signal.
                program.signal(Signal::TERM);
            }
            let outcome = program.wait(LIMIT);
            let code = if fails { exit::DONE } else { exit::INTERRUPTED };
            assert_eq!(outcome.code, Some(code), "{}", outcome.describe());
            if fails {
                assert_said(&outcome, &["its journal stays for now"]);
                let journal = entries(&folder).into_iter().find(is_journal).expect("it stays");
                fs::remove_dir_all(&journal).expect("the test may");
                fs::rename(&aside, &journal).expect("the test may");
            } else {
                assert_said(
                    &outcome,
                    &["is complete, and somebody may have written to it: it stays"],
                );
            }
            let next = lockstep.run(&["prune", "--local", "--set", "no-such"]);
            let left: Vec<_> = entries(&folder).into_iter().filter(is_journal).collect();
            assert!(left.is_empty(), "{left:?}: {}", next.describe());
            assert_eq!(server.value("postgres", "SELECT n FROM precious"), "5", "{name} {fails}");
            server.stop(Stop::Fast);
            fixture.discard_restored(&to, &set.id);
        }
    }
    assert_lives_on(&fixture);
}

/// Its folder is on its own file system, inside one that servers usually write to.
#[test]
fn a_server_on_a_dataset_below_var_tmp_may_write() {
    let fixture = Fixture::new(one_pool());
    assert!(fixture.root().starts_with("/var/tmp"), "{:?}", fixture.root());
    let set = fixture.lockstep().backup("label").id;
    let (dataset, at) = (format!("{}/own", fixture.pools[0].name), fixture.root().join("own"));
    zfs(&["create", "-o", &format!("mountpoint={}", at.display()), &dataset]);
    let directory = at.join("r");
    let restored = fixture.lockstep().restore_and_start(&set, &directory, &[]);
    restored.server().execute(&["CREATE TABLE written (n int)"]);
    restored.server().stop(Stop::Fast);
}

/// The path of pg_control in a restored data directory.
fn control(data: &Path) -> PathBuf {
    data.join("global/pg_control")
}
