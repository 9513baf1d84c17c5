//! Restores that were mistyped: `--delta` removes and rolls back, so what isn't an older restore is refused before
//! anything is changed, and the cluster beside it goes on.

mod support;

use rustix::process::Signal;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use support::checker::Checker;
use support::cluster::{Cluster, Stop};
use support::command::{Outcome, as_postgres, command, must, run, wait_until};
use support::commands::without_zfs;
use support::faults::{
    Hooks, assert_nothing_remains, assert_said, differences, entries, kill_at, restore_arguments,
    server_by_hand, signal_at, walk,
};
use support::fixture::Fixture;
use support::layout::{one_pool, two_pools_four_datasets};
use support::lockstep::{LIMIT, Lockstep, Set, exit, json_of, toml_string};
use support::pools::{property, zfs};
use support::shipping::with_repository;

const SCALE: u32 = 1;
const FILES: [&str; 5] = ["--from", "repository", "--as", "files", "--delta"];

/// A cluster whose folders and datasets are called what a restore's are, a set of it in a repository, and rows that
/// came after the set.
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
    // Its datasets, below the parent that somebody meant to write otherwise.
    let parent = format!("{pool}/pg");
    let to = fixture.target("r");
    let zfs = ["--from", "repository", "--as", "zfs", "--delta", "--dataset", &parent];
    let outcome = lockstep.run(&restore_arguments(&set.id, &to, &zfs));
    assert_refused(&outcome, &["is mounted at", &format!("{parent}/data")]);
    assert_lives_on(&fixture);
    // DIR/data, DIR/wal and DIR/tablespaces are what the restore fills: here two of them are live.
    let outcome = lockstep.run(&restore_arguments(&set.id, &fixture.mnt(), &FILES));
    assert_refused(&outcome, &["would fill", "of cluster \"main\""]);
    assert_lives_on(&fixture);
    // A folder that only holds a live part, as a tablespace's.
    let around = format!("ts1={}", fixture.mnt().display());
    let more = [&FILES[..], &["--tablespace", &around]].concat();
    let outcome = lockstep.run(&restore_arguments(&set.id, &to, &more));
    assert_refused(&outcome, &["would fill", "of cluster \"main\""]);
    assert_lives_on(&fixture);
    assert!(!to.exists(), "{} was made", to.display());
}

#[test]
fn what_is_no_older_restore_is_left_alone() {
    let (fixture, lockstep, set) = live();
    let folder = fixture.owned("home");
    let photo = folder.join("data/photo.jpg");
    fs::create_dir(folder.join("data")).expect("a folder can be made");
    fs::write(&photo, "us").expect("it can be written");
    let outcome = lockstep.run(&restore_arguments(&set.id, &folder, &FILES));
    assert_refused(&outcome, &["isn't an older restore", "something else than a data directory"]);

    let other = fixture.owned("tables");
    fs::write(other.join("thesis.tex"), "all of it").expect("it can be written");
    let place = format!("ts1={}", other.display());
    let to = fixture.target("r");
    let more = [&FILES[..], &["--tablespace", &place]].concat();
    let outcome = lockstep.run(&restore_arguments(&set.id, &to, &more));
    assert_refused(&outcome, &["isn't an older restore", "thesis.tex"]);

    // Two tablespaces in one folder: the second would remove what the first has.
    let shared = fixture.root().join("shared").display().to_string();
    let (one, two) = (format!("ts1={shared}"), format!("ts2={shared}/in"));
    let more = [&FILES[..], &["--tablespace", &one, "--tablespace", &two]].concat();
    let outcome = lockstep.run(&restore_arguments(&set.id, &to, &more));
    assert_eq!(outcome.code, Some(exit::USAGE), "{}", outcome.describe());
    assert_said(&outcome, &["lie in one another"]);

    // A link in the place of pg_wal, by whoever owns the folder.
    let outside = fixture.owned("outside");
    fs::write(outside.join("passwd"), "root").expect("it can be written");
    fs::create_dir_all(&to).expect("a folder can be made");
    symlink(&outside, to.join("wal")).expect("a link can be made");
    let outcome = lockstep.run(&restore_arguments(&set.id, &to, &FILES));
    assert_eq!(outcome.code, Some(exit::USAGE), "{}", outcome.describe());
    assert_said(&outcome, &["is a symbolic link"]);

    for kept in [photo, other.join("thesis.tex"), outside.join("passwd")] {
        assert!(kept.exists(), "{} is gone", kept.display());
    }
    assert_lives_on(&fixture);
}

/// The folders that are named for tablespaces have to be possible ones before anything is made.
#[test]
fn a_tablespace_is_not_sent_to_any_place() {
    // ts1 is a folder of its dataset, ts2 all of it.
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
    // Inside DIR no --delta would know it again.
    for form in [&[][..], &files, &zfs] {
        refused(form, "ts1", &to.join("foo"), &["which the restore fills"]);
    }
    // A link that leads nowhere, and a file, are no folders, nor can one be made in them.
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
    // One folder for two, which is there.
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

/// A folder that is no restore keeps all that it has, its owner and its mode too; and one that is empty keeps these.
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
        assert_refused(&outcome, &["isn't an older restore", "\"passwd\"", "nothing of a restore"]);
        assert!(walk(&etc) == before, "{more:?} touched {etc:?}");
    }
    // Nor are the folders of something else enough that have the names of a restore's.
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
    // What only root may enter is no place for postgres.
    let closed = fixture.root().join("closed");
    fs::create_dir(&closed).expect("a folder can be made");
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).expect("it is ours");
    let outcome = lockstep.run(&restore_arguments(&set.id, &closed, &FILES));
    assert_eq!(outcome.code, Some(exit::USAGE), "{}", outcome.describe());
    assert_said(&outcome, &["can't enter it", "hint: chown "]);
    assert_lives_on(&fixture);
}

/// The place in DIR that a restored tablespace has without links.
fn tablespace_of(fixture: &Fixture, to: &Path, name: &str) -> PathBuf {
    let query = format!("SELECT oid FROM pg_tablespace WHERE spcname = '{name}'");
    let oid = fixture.cluster.value("postgres", &query);
    fs::canonicalize(to.join("tablespaces").join(oid)).expect("it is there")
}

fn bind(from: &Path, at: &Path) {
    must(command("mount", ["--bind"]).arg(from).arg(at));
}

fn unmount(at: &Path) {
    must(command("umount", [at.as_os_str()]).current_dir("/"));
}

/// What somebody has mounted inside a restored cluster isn't the restore's to empty; it may be the original.
#[test]
fn what_is_mounted_inside_an_older_restore_is_left_alone() {
    let (fixture, lockstep, set) = live();
    let to = fixture.target("r");
    let data = lockstep.restore(&set.id, &to, &FILES[..4]).data;
    let data = fs::canonicalize(data).expect("it is there");
    let disk = fixture.owned("disk");
    fs::create_dir(disk.join("sub")).expect("a folder can be made");
    fs::write(disk.join("sub/gold"), "all of it").expect("it can be written");
    let look = data.join("look");
    fs::create_dir(&look).expect("a folder can be made");
    let ts1 = fixture.tablespace("ts1");
    let dry = [&FILES[..], &["--dry-run"]].concat();
    for from in [&disk, &ts1] {
        for at in [&look, &data.join("base")] {
            bind(from, at);
            let before = walk(from);
            for more in [&dry, &FILES[..]] {
                let outcome = lockstep.run(&restore_arguments(&set.id, &to, more));
                let (at, hint) =
                    (at.display().to_string(), format!("hint: `umount {}", at.display()));
                assert_refused(&outcome, &["is mounted at", &at, &hint]);
            }
            assert!(walk(from) == before, "{from:?} was changed");
            unmount(at);
        }
    }
    // Where a restored tablespace is, the original's own.
    let place = tablespace_of(&fixture, &to, "ts1");
    bind(&ts1, &place);
    for more in [&dry, &FILES[..]] {
        let outcome = lockstep.run(&restore_arguments(&set.id, &to, more));
        assert_refused(&outcome, &["would fill", "of cluster \"main\""]);
    }
    unmount(&place);
    assert_lives_on(&fixture);

    // Mounted after all was looked at.
    let hooks = Hooks::holding(&fixture, "restore.fetched");
    let hooked = lockstep.clone().with_steps(&hooks.steps);
    let mut program = hooked.spawn(&restore_arguments(&set.id, &to, &FILES));
    hooks.steps.wait_reached("restore.fetched", &mut program);
    bind(&disk, &look);
    hooks.steps.release("restore.fetched");
    let outcome = program.wait(LIMIT);
    assert_eq!(outcome.code, Some(exit::FAILED), "{}", outcome.describe());
    assert_said(&outcome, &["cannot remove", "/look\"", "busy"]);
    assert!(disk.join("sub/gold").exists(), "{}", outcome.describe());
    unmount(&look);

    // Beside datasets a dataset.
    let parent = format!("{}/back", fixture.pools[0].name);
    let zfs = ["--from", "repository", "--as", "zfs", "--delta", "--dataset", &parent];
    let to = fixture.target("z");
    let data = lockstep.restore(&set.id, &to, &zfs).data;
    let (own, at) = (format!("{}/log", fixture.pools[0].name), data.join("pg_log"));
    must(&mut command("zfs", ["create", "-o", &format!("mountpoint={}", at.display()), &own]));
    let outcome = lockstep.run(&restore_arguments(&set.id, &to, &zfs));
    assert_refused(&outcome, &[&format!("\"{own}\" is mounted at")]);
    assert!(control(&data).exists(), "{}", outcome.describe());
    wait_until("it is unmounted", LIMIT, || run(&mut command("zfs", ["unmount", &own])).ok());
    let restored = lockstep.restore_and_start(&set.id, &to, &zfs);
    Checker::new(SCALE).check_and_stop(restored.server()).assert_right("with nothing in it");
    assert_lives_on(&fixture);
}

/// Datasets of another name are none of the older restore's: that stays what it is.
#[test]
fn a_mistyped_dataset_leaves_the_older_restore_whole() {
    let (fixture, lockstep, first) = live();
    let pool = fixture.pools[0].name.clone();
    let to = fixture.target("r");
    const ZFS: [&str; 5] = ["--from", "repository", "--as", "zfs", "--delta"];
    let run = |set: &str, name: &str, more: &[&str]| {
        let parent = format!("{pool}/{name}");
        let more = [&ZFS[..], &["--dataset", &parent], more].concat();
        lockstep.run(&restore_arguments(set, &to, &more))
    };
    assert!(run(&first.id, "back", &[]).ok());
    let second = lockstep.backup("label").id;
    let before = walk(&to);
    let refused = |name: &str, is: &str| {
        for more in [&["--dry-run"][..], &[]] {
            let outcome = run(&second, name, more);
            let (missing, found) = (format!("\"{pool}/{name}/"), format!("\"{pool}/{is}/"));
            let hint = format!("--dataset {pool}/{is}");
            assert_refused(&outcome, &[&missing, "isn't there", &found, "was it renamed", &hint]);
            let changed = differences(&before, &walk(&to));
            assert!(changed.is_empty(), "{changed:?}: {}", outcome.describe());
        }
        let listed =
            support::command::run(&mut command("zfs", ["list", &format!("{pool}/{name}")]));
        assert!(!listed.ok(), "{} was made", name);
    };
    refused("typo", "back");
    let rename = ["rename", &format!("{pool}/back"), &format!("{pool}/renamed")];
    wait_until("it is renamed", LIMIT, || support::command::run(&mut command("zfs", rename)).ok());
    refused("back", "renamed");
    let parent = format!("{pool}/renamed");
    let more = [&ZFS[..], &["--dataset", &parent]].concat();
    let restored = lockstep.restore_and_start(&second, &to, &more);
    assert_eq!(restored.server().value("postgres", "SELECT n FROM later"), "7");
    restored.server().stop(Stop::Fast);
    assert_lives_on(&fixture);
}

/// Datasets over an older restore's files: where that fails, these are what they were.
#[test]
fn files_that_datasets_could_not_replace_are_given_back() {
    let (fixture, lockstep, set) = live();
    let to = fixture.target("r");
    let data = lockstep.restore(&set.id, &to, &FILES[..4]).data;
    let parent = format!("{}/over", fixture.pools[0].name);
    let zfs = ["--from", "repository", "--as", "zfs", "--delta", "--dataset", &parent];
    let failing = without_zfs(&fixture, &lockstep, "mount");
    let outcome = failing.run(&restore_arguments(&set.id, &to, &zfs));
    assert_eq!(outcome.code, Some(exit::FAILED), "{}", outcome.describe());
    assert!(control(&data).exists(), "{}", outcome.describe());
    assert!(!run(&mut command("zfs", ["list", &parent])).ok(), "{}", outcome.describe());
    let server = server_by_hand(&fixture, &data);
    server.start();
    assert_eq!(server.value("postgres", "SELECT count(*) FROM pgbench_accounts"), "100000");
    server.stop(Stop::Fast);
    assert_lives_on(&fixture);
}

/// Beside the original a restored cluster leaves its subscriptions alone, and says so; unless it is told otherwise.
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
        // The comment stands above what it speaks of.
        let (_, ours) = settings.split_once("# written by lockstep restore:").expect("the comment");
        assert!(ours.contains("port = ") && ours.contains("archive_mode"), "{settings}");
        if setting == "0" {
            restored.server().execute(&["ALTER SYSTEM RESET max_logical_replication_workers"]);
        }
        restored.server().stop(Stop::Fast);
        fixture.discard_restored(&to, &set);
    }
    // Asked for without a server of its own it would do nothing.
    lockstep.expect(exit::USAGE, &restore_arguments(&set, &to, &["--keep-subscriptions"]));
    // A configuration of its own, for a drill: the original is where the set was taken.
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

/// Options that go together only with others say so, and nothing is switched off by them.
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

/// Where a restored data directory has pg_control.
fn control(data: &Path) -> PathBuf {
    data.join("global/pg_control")
}

/// Over an older restore nothing is undone: what is left by a kill must not start.
#[test]
fn a_delta_that_is_killed_leaves_nothing_that_starts() {
    let (fixture, lockstep, set) = live();
    let parent = format!("{}/back", fixture.pools[0].name);
    for form in ["files", "zfs"] {
        let to = fixture.target(form);
        let mut more = vec!["--from", "repository", "--as", form];
        if form == "zfs" {
            more.extend(["--dataset", &parent]);
        }
        let restored = lockstep.restore(&set.id, &to, &more);
        let data = restored.data.clone();
        assert!(control(&data).exists(), "{form}: a whole restore has pg_control");
        more.push("--delta");
        for step in ["restore.received-1", "restore.prepared", "restore.settings"] {
            let hooks = Hooks::holding(&fixture, step);
            let hooked = lockstep.clone().with_steps(&hooks.steps);
            let mut program = hooked.spawn(&restore_arguments(&set.id, &to, &more));
            hooks.steps.wait_reached(step, &mut program);
            program.kill();
            program.wait(LIMIT);
            assert!(!control(&data).exists(), "{form}: pg_control is there at {step}");
        }
        // The same once more goes on.
        let restored = lockstep.restore_and_start(&set.id, &to, &more);
        Checker::new(SCALE).check_and_stop(restored.server()).assert_right(form);
    }
}

/// A rollback gives pg_control its name back, and the links are the original's until the end: meanwhile, and where it
/// ends early, nothing starts there.
#[test]
fn a_dataset_that_is_rolled_back_starts_nobody_s_server() {
    let fixture = Fixture::new(one_pool());
    fixture.pgbench_tables(SCALE);
    let lockstep = with_repository(&fixture);
    // Clean sets need no label: what is there would start and look well.
    let cold = || {
        fixture.cluster.stop(Stop::Fast);
        let set = lockstep.backup("cold").id;
        fixture.cluster.start();
        set
    };
    let first = cold();
    let parent = format!("{}/back", fixture.pools[0].name);
    let mut more = vec!["--from", "repository", "--as", "zfs", "--dataset", &parent];
    let to = fixture.target("r");
    lockstep.restore(&first, &to, &more);
    fixture.cluster.execute(&["CREATE TABLE later AS SELECT 7 AS n"]);
    let second = cold();
    more.push("--delta");
    let arguments = restore_arguments(&second, &to, &more);
    let dataset = format!("{parent}/data");
    let assert_starts_nothing = |when: &str| {
        assert!(!control(&to.join("data")).exists(), "{when}: pg_control is there");
        assert_eq!(property(&dataset, "mounted"), "no", "{when}");
        assert_eq!(property(&dataset, "canmount"), "noauto", "{when}: a reboot mounts it");
        let server = Cluster { data: to.join("data"), ..fixture.cluster.clone() };
        assert!(!server.try_start().ok(), "{when}: a server starts beside the original");
    };

    let outcome = without_zfs(&fixture, &lockstep, "receive").run(&arguments);
    assert_eq!(outcome.code, Some(exit::FAILED), "{}", outcome.describe());
    assert_said(&outcome, &["no receive today"]);
    assert_starts_nothing("zfs receive failed");
    // Written to meanwhile, so that it has to be rolled back.
    wait_until("it can be mounted", LIMIT, || run(&mut command("zfs", ["mount", &dataset])).ok());
    fs::write(to.join("data/PG_VERSION"), "99").expect("it can be written");
    let hooks = Hooks::holding(&fixture, "restore.rolled-back");
    let mut program = lockstep.clone().with_steps(&hooks.steps).spawn(&arguments);
    hooks.steps.wait_reached("restore.rolled-back", &mut program);
    assert_starts_nothing("while it is received");
    program.kill();
    program.wait(LIMIT);
    assert_starts_nothing("killed");

    let restored = lockstep.restore_and_start(&second, &to, &more);
    assert_eq!(restored.server().value("postgres", "SELECT n FROM later"), "7");
    Checker::new(SCALE).check_and_stop(restored.server()).assert_right("the second set");
    assert_eq!(property(&dataset, "canmount"), "on");
    assert_eq!(property(&dataset, "lockstep:canmount"), "-");
    assert_lives_on(&fixture);
}

/// What can't be brought to the set's state is found out before anything of it is changed: its server starts as before.
#[test]
fn a_delta_that_does_not_fit_leaves_the_older_restore_whole() {
    let (fixture, lockstep, first) = live();
    let second = lockstep.backup("label");
    let parent = format!("{}/back", fixture.pools[0].name);
    let mut more = vec!["--from", "repository", "--as", "zfs", "--dataset", &parent];
    let to = fixture.target("r");
    let data = lockstep.restore(&second.id, &to, &more).data;
    more.push("--delta");
    let before = walk(&to);
    let assert_whole = |when: &str| {
        let changed = differences(&before, &walk(&to));
        assert!(changed.is_empty(), "{when}: {changed:?}");
    };
    // Back in time.
    for more in [&more[..], &[&more[..], &["--dry-run"]].concat()] {
        let outcome = lockstep.run(&restore_arguments(&first.id, &to, more));
        assert_refused(&outcome, &["can't be brought to set", "--delta goes forward only"]);
        assert_whole("an older set");
    }
    // A snapshot of somebody's on the last of the datasets alone.
    let third = lockstep.backup("label");
    let children = must(&mut command("zfs", ["list", "-H", "-r", "-o", "name", &parent]));
    let dataset = children.lines().filter(|name| name.contains("/tablespace-")).max();
    let snapshot = format!("{}@mine", dataset.expect("a tablespace's dataset"));
    must(&mut command("zfs", ["snapshot", &snapshot]));
    let arguments = restore_arguments(&third.id, &to, &more);
    let outcome = lockstep.run(&arguments);
    let hint = format!("`zfs destroy {snapshot}`");
    assert_refused(&outcome, &["can't be brought to set", "destroy what is newer than", &hint]);
    assert_whole("a snapshot that the repository doesn't know");
    must(&mut command("zfs", ["destroy", &snapshot]));

    // Where pg_control has lost its name already, it gets it back.
    let marker = fs::read(to.join(".lockstep-restore")).expect("it is there");
    let outcome = without_zfs(&fixture, &lockstep, "unmount").run(&arguments);
    assert_eq!(outcome.code, Some(exit::FAILED), "{}", outcome.describe());
    assert_said(&outcome, &["no unmount today"]);
    assert!(control(&data).exists(), "pg_control is gone");
    assert_eq!(property(&format!("{parent}/data"), "canmount"), "on");
    assert_eq!(fs::read(to.join(".lockstep-restore")).expect("it is there"), marker);
    let server = server_by_hand(&fixture, &data);
    server.start();
    assert_eq!(server.value("postgres", "SELECT n FROM later"), "7");
    server.stop(Stop::Fast);
    let restored = lockstep.restore_and_start(&third.id, &to, &more);
    Checker::new(SCALE).check_and_stop(restored.server()).assert_right("the third set");
    assert_lives_on(&fixture);
}

/// WAL that goes below a dataset's mount point is hidden by its next mount.
#[test]
fn an_unmounted_dataset_of_pg_wal_gets_its_wal_all_the_same() {
    let (fixture, lockstep, set) = live();
    let parent = format!("{}/back", fixture.pools[0].name);
    let mut more = vec!["--from", "repository", "--as", "zfs", "--dataset", &parent];
    let to = fixture.target("r");
    lockstep.restore(&set.id, &to, &more);
    let wal = format!("{parent}/wal");
    must(&mut command("zfs", ["unmount", &wal]));
    more.push("--delta");
    lockstep.restore(&set.id, &to, &more);
    assert_eq!(property(&wal, "mounted"), "yes");
    must(&mut command("zfs", ["unmount", &wal]));
    assert_eq!(entries(&to.join("wal")), Vec::<PathBuf>::new(), "WAL lies below the mount point");
    let restored = lockstep.restore_and_start(&set.id, &to, &more);
    assert_eq!(property(&wal, "mounted"), "yes");
    Checker::new(SCALE).check_and_stop(restored.server()).assert_right("with its WAL");
    assert_lives_on(&fixture);
}

/// An unfinished restore is of a cluster, too: another cluster's set isn't put over it.
#[test]
fn an_unfinished_restore_of_another_cluster_is_left_alone() {
    let (fixture, lockstep, set) = live();
    let to = fixture.target("r");
    let hooks = Hooks::holding(&fixture, "restore.prepared");
    let mut program =
        lockstep.clone().with_steps(&hooks.steps).spawn(&restore_arguments(&set.id, &to, &FILES));
    hooks.steps.wait_reached("restore.prepared", &mut program);
    program.kill();
    program.wait(LIMIT);
    // As if it were of another: the host's state doesn't know of it, and its names don't tell.
    fs::remove_dir_all(fixture.state.join("clusters/main/restores")).expect("it is there");
    let held = to.join("data/global/pg_control.lockstep");
    let marker = to.join(".lockstep-restore");
    let text = fs::read_to_string(&marker).expect("it is there");
    let other = fixture.owned("other");
    must(&mut as_postgres(fixture.cluster.bin.join("initdb"), [Path::new("-D"), &other]));
    let other = fs::read(control(&other)).expect("a data directory has it");
    let refused = || {
        let before = walk(&to);
        let outcome = lockstep.run(&restore_arguments(&set.id, &to, &FILES));
        assert_refused(&outcome, &["isn't an older restore", "holds the cluster "]);
        assert!(walk(&to) == before, "a refused restore changed {to:?}");
    };
    fs::write(&held, other).expect("it can be written");
    refused();
    // Where pg_control has no content yet the marker says so.
    fs::write(&held, b"").expect("it can be written");
    let json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let id = json["system_identifier"].as_str().expect("it says so");
    fs::write(&marker, text.replace(id, "4711")).expect("it can be written");
    refused();
    fs::write(&marker, text).expect("it can be written");
    let restored = lockstep.restore_and_start(&set.id, &to, &FILES);
    Checker::new(SCALE).check_and_stop(restored.server()).assert_right("gone on with");
    assert_lives_on(&fixture);
}

/// Recovery has ended and the program is killed: people may use the server by now.
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
    // It is somebody's, and nobody is told to destroy it.
    let checked = fixture.lockstep().expect(exit::DONE, &["check"]);
    assert!(!checked.stdout.contains("zfs destroy"), "{}", checked.describe());
    fixture.discard_set(&fixture.lockstep().backup("label").id);
    assert_eq!(server.value("postgres", "SELECT n FROM ours"), "1");
    // While it hasn't recovered, it is what a killed program left.
    let other = fixture.target("not yet");
    kill_at(&fixture, "restore.settings", &restore_arguments(&set, &other, &["--start"]));
    fixture.discard_set(&fixture.lockstep().backup("label").id);
    assert!(!other.exists(), "{} is left", other.display());
    server.stop(Stop::Fast);
    fixture.discard_restored(&to, &set);
    fixture.discard_set(&next);
}

/// What an unfinished restore left can't be looked at: that keeps nobody from a restore, and is removed when it can.
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
    // As root without what opens all doors: a disk that fails says no as well.
    let config = fixture.root().join("shipping.toml");
    let mut next = command("setpriv", ["--bounding-set", "-dac_override,-dac_read_search"]);
    next.arg(env!("CARGO_BIN_EXE_lockstep")).arg("--config").arg(&config);
    next.args(["restore", "no-such-set", "--to"]).arg(fixture.target("other"));
    let outcome = run(next.args(["--from", "repository", "--as", "files"]));
    assert_eq!(outcome.code, Some(exit::USAGE), "{}", outcome.describe());
    assert_said(&outcome, &["it stays for now", "no-such-set"]);
    assert!(to.exists());
    let other = fixture.target("other");
    lockstep.expect(exit::USAGE, &restore_arguments("no-such-set", &other, &FILES));
    assert!(!to.exists(), "{} is left", to.display());
}

/// What a file of root's, mode 0600, is after all: whose it is, its mode, its content.
fn victim(fixture: &Fixture) -> (PathBuf, impl Fn() + use<>) {
    let path = fixture.root().join("victim");
    fs::write(&path, "secret = 'of root'\n").expect("the test may");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("it is ours");
    let untouched = {
        let path = path.clone();
        move || {
            let found = path.metadata().expect("it is there");
            assert_eq!((found.uid(), found.mode() & 0o777), (0, 0o600));
            let text = fs::read_to_string(&path).expect("it is readable");
            assert_eq!(text, "secret = 'of root'\n");
        }
    };
    (path, untouched)
}

fn ln(target: &Path, link: &Path) {
    must(as_postgres("ln", ["-sfn"]).args([target, link]));
}

/// os_user may write to the folder of its restore: a link there leads root nowhere.
#[test]
fn a_link_in_an_older_restore_leads_root_nowhere() {
    let (fixture, lockstep, set) = live();
    let (victim, untouched) = victim(&fixture);
    let to = fixture.target("r");
    lockstep.restore(&set.id, &to, &FILES[..4]);
    let arguments = restore_arguments(&set.id, &to, &[&FILES[..], &["--start"]].concat());
    let log = to.join("log/server.log");
    for target in [&victim, &fixture.root().join("no such file")] {
        ln(target, &log);
        let outcome = lockstep.expect(exit::FAILED, &arguments);
        assert_said(&outcome, &["log/server.log\" is a symbolic link", "hint: "]);
        untouched();
        assert!(!fixture.root().join("no such file").exists(), "{}", outcome.describe());
    }
    fs::remove_file(&log).expect("it is a link");
    // The same with the folder, which would be given away; it is put there behind what looks for links.
    let folder = fixture.root().join("folder");
    fs::create_dir(&folder).expect("the test may");
    let step = "restore.journal";
    let hooks = Hooks::holding(&fixture, step);
    let mut program = lockstep.clone().with_steps(&hooks.steps).spawn(&arguments);
    hooks.steps.wait_reached(step, &mut program);
    must(as_postgres("mv", ["-T"]).args([&to.join("log"), &to.join("log.old")]));
    ln(&folder, &to.join("log"));
    hooks.steps.release(step);
    let outcome = program.wait(LIMIT);
    assert_eq!(outcome.code, Some(exit::FAILED), "{}", outcome.describe());
    assert_said(&outcome, &["goes over a symbolic link that root hasn't made", "hint: "]);
    let found = folder.metadata().expect("it is there");
    assert_eq!((found.uid(), found.mode() & 0o777), (0, 0o755));
    assert!(entries(&folder).is_empty(), "{}", outcome.describe());
    fs::remove_file(to.join("log")).expect("it is a link");
    fs::rename(to.join("log.old"), to.join("log")).expect("the test may");
    lockstep.expect(exit::DONE, &arguments);
}

/// A superuser of the database can name any file as the cluster's configuration, and os_user can link to any: what they
/// can't read is neither kept nor restored.
#[test]
fn root_reads_nothing_for_others() {
    let (fixture, lockstep, _) = live();
    let (victim, untouched) = victim(&fixture);
    let data = &fixture.cluster.data;
    let ident = format!("ALTER SYSTEM SET ident_file = '{}'", victim.display());
    fixture.cluster.execute(&[&ident]);
    fixture.cluster.stop(Stop::Fast);
    fixture.cluster.start();
    let taken = lockstep.expect(exit::PROBLEMS, &["--json", "backup"]);
    assert_said(&taken, &["pg_ident.conf is", "can't read, so it isn't in the set"]);
    let id = json_of(&taken)["set"].as_str().expect("an id").to_owned();
    fs::write(data.join("auto.saved"), fs::read(data.join("postgresql.auto.conf")).expect("there"))
        .expect("the test may");
    ln(&victim, &data.join("postgresql.auto.conf"));
    let linked = json_of(&lockstep.expect(exit::PROBLEMS, &["--json", "backup"]));
    let linked = linked["set"].as_str().expect("an id").to_owned();
    let snapshots: &[&str] = &[];
    for (set, form) in [(&id, snapshots), (&linked, snapshots), (&linked, &FILES[..4])] {
        let to = fixture.target("r");
        let outcome = lockstep.expect(exit::DONE, &restore_arguments(set, &to, form));
        if *set == linked {
            assert_said(&outcome, &["postgresql.auto.conf\" isn't taken over", "symbolic link"]);
        }
        let seen = must(as_postgres("cat", ["--"]).arg(to.join("data/postgresql.auto.conf")));
        assert!(seen.contains("archive_mode") && !seen.contains("secret"), "{seen}");
        for name in ["pg_ident.conf", "pg_hba.conf"] {
            let seen = must(as_postgres("cat", ["--"]).arg(to.join("data").join(name)));
            assert!(!seen.contains("secret"), "{name}: {seen}");
        }
        untouched();
        fixture.discard_restored(&to, set);
    }
}

/// What is included may name the original's data directory: the command that a restore prints must not start that one.
/// And settings needn't be UTF-8.
#[test]
fn a_data_directory_in_an_included_file_does_not_count() {
    let (fixture, lockstep, _) = live();
    let data = fixture.cluster.data.clone();
    fs::create_dir(data.join("conf.d")).expect("the test may");
    let line = format!("data_directory = '{}'\n", data.display());
    fs::write(data.join("conf.d/50.conf"), line).expect("the test may");
    for (name, line) in [
        ("postgresql.conf", &b"include_dir = 'conf.d'\n"[..]),
        ("postgresql.auto.conf", b"event_source = '\xe9v\xe9nement'\n"),
    ] {
        let text = fs::read(data.join(name)).expect("it is there");
        fs::write(data.join(name), [&text, line].concat()).expect("the test may");
    }
    must(command("chown", ["-R", "postgres:"]).args([data.join("conf.d")]));
    fixture.cluster.stop(Stop::Fast);
    fixture.cluster.start();
    assert_eq!(
        fixture.cluster.value("postgres", "SHOW data_directory"),
        data.display().to_string()
    );
    let set = lockstep.backup("label").id;
    // With the original running, and without: then nothing would keep a server from its files.
    for running in [true, false] {
        let to = fixture.target(if running { "beside" } else { "alone" });
        if !running {
            fixture.cluster.stop(Stop::Fast);
        }
        let before = fs::read(control(&data)).expect("it is there");
        let restored = lockstep.restore_and_start(&set, &to, &[]);
        let asked = restored.server().value("postgres", "SHOW data_directory");
        assert_eq!(asked, restored.data.display().to_string());
        restored.server().stop(Stop::Fast);
        let directory = to.join("data").display().to_string();
        let program = fixture.cluster.bin.join("postgres");
        let says = must(&mut as_postgres(program, ["-D", &directory, "-C", "data_directory"]));
        assert_eq!(says.trim(), restored.data.display().to_string());
        assert!(running || fs::read(control(&data)).expect("it is there") == before);
        let auto = fs::read(restored.data.join("postgresql.auto.conf")).expect("it is there");
        let wanted = b"event_source = '\xe9v\xe9nement'\n";
        assert!(auto.windows(wanted.len()).any(|bytes| bytes == wanted), "{}", auto.escape_ascii());
    }
}

/// A port in use without TCP, and programs of another version: found before anything is made.
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
    // As after an upgrade: bin_dir is the new version's, and the set's own programs lie in their usual place.
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

/// The terminal goes: as after ^C nothing is left; with `nohup` it goes on.
#[test]
fn a_hangup_ends_it_tidily() {
    let fixture = Fixture::new(two_pools_four_datasets());
    let set = fixture.lockstep().backup("label").id;
    let to = fixture.target("hung up");
    let arguments = restore_arguments(&set, &to, &["--start"]);
    let (_, outcome) = signal_at(&fixture, "restore.started", Signal::HUP, &arguments);
    assert_eq!(outcome.code, Some(exit::INTERRUPTED), "{}", outcome.describe());
    assert_nothing_remains(&fixture, &[], "SIGHUP");
}

/// Its folder is on a file system of its own, inside one that servers usually write to.
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
