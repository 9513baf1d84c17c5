//! `--delta` over the remains of an older restore: they belong to that restore and are complete, or nothing starts on
//! them.

use super::*;
use crate::support::shipping::packs;

#[test]
fn what_is_no_older_restore_is_left_alone() {
    let (fixture, lockstep, set) = live();
    let folder = fixture.owned("home");
    let photo = folder.join("data/photo.jpg");
    fs::create_dir(folder.join("data")).expect("a folder can be made");
    fs::write(&photo, "us").expect("it can be written");
    let outcome = lockstep.run(&restore_arguments(&set.id, &folder, &FILES));
    assert_refused(&outcome, &["isn't an older restore", "something other than a data directory"]);

    let other = fixture.owned("tables");
    fs::write(other.join("thesis.tex"), "all of it").expect("it can be written");
    let place = format!("ts1={}", other.display());
    let to = fixture.target("r");
    let more = [&FILES[..], &["--tablespace", &place]].concat();
    let outcome = lockstep.run(&restore_arguments(&set.id, &to, &more));
    assert_refused(&outcome, &["isn't an older restore", "thesis.tex"]);

    // Two tablespaces in one folder: the second would remove the files of the first.
    let shared = fixture.root().join("shared").display().to_string();
    let (one, two) = (format!("ts1={shared}"), format!("ts2={shared}/in"));
    let more = [&FILES[..], &["--tablespace", &one, "--tablespace", &two]].concat();
    let outcome = lockstep.run(&restore_arguments(&set.id, &to, &more));
    assert_eq!(outcome.code, Some(exit::USAGE), "{}", outcome.describe());
    assert_said(&outcome, &["lie in one another"]);

    // A link in place of pg_wal, made by the folder's owner.
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

/// A cluster that was restored from snapshots may be in use, with data that no set has.
#[test]
fn a_restore_from_snapshots_is_left_alone() {
    let (fixture, lockstep, set) = live();
    let to = fixture.target("r");
    let restored = lockstep.restore_and_start(&set.id, &to, &[]);
    restored.server().execute(&["CREATE TABLE mine AS SELECT 1 AS n"]);
    restored.server().stop(Stop::Fast);
    let before = walk(&to);
    for more in [&["--dry-run"][..], &[]] {
        let more = [&FILES[..], more].concat();
        let outcome = lockstep.run(&restore_arguments(&set.id, &to, &more));
        let words = ["isn't an older restore", &set.id, "from snapshots"];
        assert_refused(&outcome, &words);
        let changed = differences(&before, &walk(&to));
        assert!(changed.is_empty(), "{changed:?}: {}", outcome.describe());
    }
    fixture.discard_restored(&to, &set.id);
    assert_lives_on(&fixture);
}

fn bind(from: &Path, at: &Path) {
    must(command("mount", ["--bind"]).arg(from).arg(at));
}

fn unmount(at: &Path) {
    must(command("umount", [at.as_os_str()]).current_dir("/"));
}

/// A restore must not empty what somebody has mounted inside a restored cluster; it may be the original.
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
    // The original's tablespace is mounted over a restored one.
    let place = tablespace_of(&fixture, &to, "ts1");
    bind(&ts1, &place);
    for more in [&dry, &FILES[..]] {
        let outcome = lockstep.run(&restore_arguments(&set.id, &to, more));
        assert_refused(&outcome, &["would fill", "of cluster \"main\""]);
    }
    unmount(&place);
    assert_lives_on(&fixture);

    // Mounted after everything was checked.
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

    // A dataset next to datasets.
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

/// Datasets of another name don't belong to the older restore, which stays as it is.
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
            assert_refused(&outcome, &[&missing, "doesn't exist", &found, "was it renamed", &hint]);
            let changed = differences(&before, &walk(&to));
            assert!(changed.is_empty(), "{changed:?}: {}", outcome.describe());
        }
        let listed =
            crate::support::command::run(&mut command("zfs", ["list", &format!("{pool}/{name}")]));
        assert!(!listed.ok(), "{} was made", name);
    };
    refused("typo", "back");
    let rename = ["rename", &format!("{pool}/back"), &format!("{pool}/renamed")];
    wait_until("it is renamed", LIMIT, || {
        crate::support::command::run(&mut command("zfs", rename)).ok()
    });
    refused("back", "renamed");
    let parent = format!("{pool}/renamed");
    let more = [&ZFS[..], &["--dataset", &parent]].concat();
    let restored = lockstep.restore_and_start(&second, &to, &more);
    assert_eq!(restored.server().value("postgres", "SELECT n FROM later"), "7");
    restored.server().stop(Stop::Fast);
    assert_lives_on(&fixture);
}

/// Datasets over an older restore's files, whole or cut off: they couldn't be mounted there, or would hide them.
#[test]
fn files_are_not_replaced_by_datasets() {
    let (fixture, lockstep, set) = live();
    let parent = format!("{}/over", fixture.pools[0].name);
    let zfs = ["--from", "repository", "--as", "zfs", "--delta", "--dataset", &parent];
    let to = fixture.target("cut off");
    let hooks = Hooks::holding(&fixture, "restore.files-filled");
    let hooked = lockstep.clone().with_steps(&hooks.steps);
    let mut program = hooked.spawn(&restore_arguments(&set.id, &to, &FILES[..4]));
    hooks.steps.wait_reached("restore.files-filled", &mut program);
    program.kill();
    program.wait(LIMIT);
    // The next command puts it in order.
    lockstep.expect(exit::DONE, &["backup", "--no-ship"]);
    let whole = fixture.target("r");
    let data = lockstep.restore(&set.id, &whole, &FILES[..4]).data;
    for to in [&to, &whole] {
        let before = walk(to);
        for more in [&["--dry-run"][..], &[]] {
            let more = [&zfs[..], more].concat();
            let outcome = lockstep.run(&restore_arguments(&set.id, to, &more));
            let words = [&format!("\"{parent}/"), "isn't empty", "--as files --delta"];
            assert_refused(&outcome, &words);
            let changed = differences(&before, &walk(to));
            assert!(changed.is_empty(), "{changed:?}: {}", outcome.describe());
            assert!(!run(&mut command("zfs", ["list", &parent])).ok(), "{}", outcome.describe());
        }
    }
    let restored = lockstep.restore_and_start(&set.id, &to, &FILES);
    Checker::new(SCALE).check_and_stop(restored.server()).assert_right("as the hint says");
    let server = server_by_hand(&fixture, &data);
    server.start();
    assert_eq!(server.value("postgres", "SELECT count(*) FROM pgbench_accounts"), "100000");
    server.stop(Stop::Fast);
    assert_lives_on(&fixture);
}

/// Over an older restore nothing is undone, so what a kill leaves must not start.
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
        // Running it again continues.
        let restored = lockstep.restore_and_start(&set.id, &to, &more);
        Checker::new(SCALE).check_and_stop(restored.server()).assert_right(form);
    }
}

/// A rollback gives pg_control its name back, and the links are the original's until the end: meanwhile, and if it is
/// interrupted, nothing must start there.
#[test]
fn a_dataset_that_is_rolled_back_starts_nobody_s_server() {
    let fixture = Fixture::new(one_pool());
    fixture.pgbench_tables(SCALE);
    let lockstep = with_repository(&fixture);
    // Clean sets need no label: what is there would start and look right.
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
    // Written to meanwhile, so that it must be rolled back.
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

/// If something can't be brought to the set's state, that is found before anything is changed: its server starts as
/// before.
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
    // Somebody's snapshot, only on the last of the datasets.
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

    // If pg_control has been renamed already, it gets its name back.
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

/// A set that isn't whole in the repository isn't restored over a finished restore, also if that isn't mounted (its key
/// isn't loaded, or its pool was imported without mounts).
#[test]
fn a_harmed_set_is_not_restored_over_datasets_that_are_not_mounted() {
    let (fixture, lockstep, first) = live();
    let parent = format!("{}/back", fixture.pools[0].name);
    let mut more = vec!["--from", "repository", "--as", "zfs", "--dataset", &parent];
    let to = fixture.target("r");
    let data = lockstep.restore(&first.id, &to, &more).data;
    let written = data.join("written_since");
    fs::write(&written, "kept").expect("the test may");
    let before = packs(&fixture);
    let second = lockstep.backup("label");
    let mut lost: Vec<PathBuf> = packs(&fixture).into_keys().collect();
    lost.retain(|path| !before.contains_key(path));
    assert!(!lost.is_empty(), "the second set has packs of its own");
    let dataset = format!("{parent}/data");
    more.push("--delta");
    let arguments = restore_arguments(&second.id, &to, &more);
    // Without the set's own files nothing would be changed anyway: so one pack at a time.
    for path in &lost {
        let away = path.with_extension("away");
        fs::rename(path, &away).expect("it can be renamed");
        patiently("zfs", &["unmount", &dataset], || ()).expect("nobody is in it");
        let outcome = lockstep.run(&arguments);
        assert_eq!(outcome.code, Some(exit::FAILED), "{}", outcome.describe());
        assert_said(&outcome, &["isn't whole in repository", "was not changed"]);
        assert_eq!(property(&dataset, "canmount"), "on");
        must(&mut command("zfs", ["mount", &dataset]));
        assert_eq!(fs::read(&written).expect("it was rolled back"), b"kept");
        assert!(control(&data).exists(), "pg_control is gone");
        fs::rename(&away, path).expect("it can be renamed");
    }
    let restored = lockstep.restore_and_start(&second.id, &to, &more);
    Checker::new(SCALE).check_and_stop(restored.server()).assert_right("the second set");
    assert_lives_on(&fixture);
}

/// WAL written below a dataset's mount point is hidden when that is mounted again.
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
    // Of the same name, it is somebody else's: its marks say so.
    patiently("zfs", &["destroy", &wal], || ()).expect("it isn't mounted");
    let mountpoint = format!("mountpoint={}", to.join("wal").display());
    must(&mut command("zfs", ["create", "-o", &mountpoint, &wal]));
    let theirs = to.join("wal/theirs");
    fs::write(&theirs, "kept").expect("the test may");
    let delta = || lockstep.run(&restore_arguments(&set.id, &to, &more));
    assert_refused(&delta(), &["\"theirs\", which isn't part of pg_wal"]);
    patiently("zfs", &["unmount", &wal], || ()).expect("nobody is in it");
    assert_refused(&delta(), &["which no restore made and isn't mounted"]);
    must(&mut command("zfs", ["mount", &wal]));
    assert_eq!(fs::read(&theirs).expect("it is there"), b"kept");
    fs::remove_file(&theirs).expect("the test may");
    let restored = lockstep.restore_and_start(&set.id, &to, &more);
    assert_eq!(property(&wal, "mounted"), "yes");
    Checker::new(SCALE).check_and_stop(restored.server()).assert_right("with its WAL");
    assert_lives_on(&fixture);
}

/// An unfinished restore belongs to a cluster too: another cluster's set isn't put over it.
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
    // As if it belonged to another cluster: the host's state doesn't know it, and its names don't tell.
    fs::remove_dir_all(fixture.state.join("clusters/main/restores")).expect("it is there");
    let held = to.join("data/global/pg_control.lockstep");
    let marker = to.join(".lockstep-restore");
    let text = fs::read_to_string(&marker).expect("it is there");
    let other = fixture.owned("other");
    must(&mut as_postgres(fixture.cluster.bin.join("initdb"), [Path::new("-D"), &other]));
    let other = fs::read(control(&other)).expect("a data directory has it");
    let refused = |holds: &str| {
        let before = walk(&to);
        let outcome = lockstep.run(&restore_arguments(&set.id, &to, &FILES));
        assert_refused(&outcome, &["isn't an older restore", holds]);
        assert!(walk(&to) == before, "a refused restore changed {to:?}");
    };
    fs::write(&held, other).expect("it can be written");
    refused("holds the cluster ");
    // If pg_control has no content yet, the marker tells.
    fs::write(&held, b"").expect("it can be written");
    let json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let id = json["system_identifier"].as_str().expect("it says so");
    fs::write(&marker, text.replace(id, "4711")).expect("it can be written");
    refused("holds a restore of cluster \"main\", 4711");
    fs::write(&marker, text).expect("it can be written");
    let restored = lockstep.restore_and_start(&set.id, &to, &FILES);
    Checker::new(SCALE).check_and_stop(restored.server()).assert_right("gone on with");
    assert_lives_on(&fixture);
}

/// A folder where the set needs a link has to be removed for it: it may be somebody's cluster.
#[test]
fn a_folder_is_not_replaced_by_a_link() {
    let fixture = Fixture::new(two_pools_four_datasets());
    fixture.pgbench_tables(SCALE);
    let lockstep = with_repository(&fixture);
    let set = lockstep.backup("label");
    let made = fixture.target("made");
    let data = lockstep.restore(&set.id, &made, &FILES[..4]).data;
    assert!(made.join("data").is_symlink(), "the data directory is a folder of its dataset");
    // A copy of the same cluster, in a folder that looks like a restore's.
    let theirs = fixture.owned("theirs");
    must(&mut command("cp", [Path::new("-a"), &data, &theirs.join("data")]));
    fs::create_dir(theirs.join("log")).expect("a folder can be made");
    let before = walk(&theirs);
    for more in [&["--dry-run"][..], &[]] {
        let more = [&FILES[..], more].concat();
        let outcome = lockstep.run(&restore_arguments(&set.id, &theirs, &more));
        assert_refused(&outcome, &["isn't an older restore", "needs a link to"]);
        let said = outcome.describe();
        assert!(!said.contains("rm -r"), "{said}");
        let changed = differences(&before, &walk(&theirs));
        assert!(changed.is_empty(), "{changed:?}: {said}");
    }
    // An empty one is in nobody's use.
    let empty = fixture.owned("empty");
    fs::create_dir(empty.join("data")).expect("a folder can be made");
    let restored = lockstep.restore_and_start(&set.id, &empty, &FILES);
    Checker::new(SCALE).check_and_stop(restored.server()).assert_right("over an empty folder");
}

/// Files at the mount points of an older restore's datasets would be hidden by them, or keep them from being mounted.
#[test]
fn files_and_datasets_that_are_not_mounted_do_not_mix() {
    let (fixture, lockstep, set) = live();
    let parent = format!("{}/back", fixture.pools[0].name);
    let zfs = ["--from", "repository", "--as", "zfs", "--dataset", &parent, "--delta"];
    let to = fixture.target("r");
    lockstep.restore(&set.id, &to, &zfs[..6]);
    let data = format!("{parent}/data");
    for dataset in [&data, &format!("{parent}/wal")] {
        must(&mut command("zfs", ["unmount", dataset]));
    }
    let before = walk(&to);
    for more in [&["--dry-run"][..], &[]] {
        let more = [&FILES[..], more].concat();
        let outcome = lockstep.run(&restore_arguments(&set.id, &to, &more));
        let words = [&format!("dataset \"{parent}/"), "isn't mounted", "zfs mount"];
        assert_refused(&outcome, &words);
        let changed = differences(&before, &walk(&to));
        assert!(changed.is_empty(), "{changed:?}: {}", outcome.describe());
    }
    // Files of the same cluster are there all the same.
    let copied = lockstep.restore(&set.id, &fixture.target("copied"), &FILES[..4]).data;
    must(&mut command("cp", [Path::new("-aT"), &copied, &to.join("data")]));
    let before = walk(&to);
    for more in [&["--dry-run"][..], &[]] {
        let more = [&zfs[..], more].concat();
        let outcome = lockstep.run(&restore_arguments(&set.id, &to, &more));
        let words = [&format!("dataset \"{data}\" isn't mounted"), "isn't empty"];
        assert_refused(&outcome, &words);
        let changed = differences(&before, &walk(&to));
        assert!(changed.is_empty(), "{changed:?}: {}", outcome.describe());
    }
    let below = to.join("data").display().to_string();
    must(&mut command("find", [&below, "-mindepth", "1", "-delete"]));
    let restored = lockstep.restore_and_start(&set.id, &to, &zfs);
    Checker::new(SCALE).check_and_stop(restored.server()).assert_right("over the datasets");
    assert_lives_on(&fixture);
}

/// pg_wal was a folder of the data directory and gets a dataset of its own: where the older restore has a link that it
/// made itself, this one needs a folder.
#[test]
fn a_link_that_the_older_restore_made_is_no_reason_to_refuse_it() {
    let fixture = Fixture::new(Layout { wal: Wal::Inside, ..two_pools_four_datasets() });
    fixture.cluster.execute(&["CREATE TABLE later TABLESPACE ts1 AS SELECT 7 AS n"]);
    let lockstep = with_repository(&fixture);
    let first = lockstep.backup("label").id;
    let parent = format!("{}/back", fixture.pools[0].name);
    let zfs_form = ["--from", "repository", "--as", "zfs", "--dataset", &parent];
    let (files, datasets) = (fixture.target("files"), fixture.target("zfs"));
    let (early, parent_of_early) =
        (fixture.target("early"), format!("{}/early", fixture.pools[0].name));
    let early_form = ["--from", "repository", "--as", "zfs", "--dataset", &parent_of_early];
    let early_files = fixture.target("early-files");
    let forms = [
        (&files, &FILES[..4], "restore.surplus"),
        (&early_files, &FILES[..4], "restore.files-made"),
        (&datasets, &zfs_form[..], "restore.surplus"),
        (&early, &early_form[..], "restore.received-1"),
    ];
    for (to, form, _) in forms {
        lockstep.restore(&first, to, form);
        assert_eq!(fs::read_link(to.join("wal")).ok(), Some(to.join("volumes/data/pg/pg_wal")));
    }
    fixture.cluster.stop(Stop::Fast);
    let (inside, own) = (fixture.cluster.data.join("pg_wal"), fixture.mnt().join("wal"));
    must(command("cp", ["-aT"]).args([&inside, &own]));
    fs::remove_dir_all(&inside).expect("it was copied");
    symlink(&own, &inside).expect("the test may");
    fixture.cluster.start();
    let second = lockstep.backup("label").id;
    let over = |set: &str, to: &Path, form: &[&str]| {
        let more = [form, &["--delta"]].concat();
        let dry = [&more[..], &["--dry-run"]].concat();
        lockstep.expect(exit::DONE, &restore_arguments(set, to, &dry));
        let restored = lockstep.restore_and_start(set, to, &more);
        assert_eq!(restored.server().value("postgres", "SELECT n FROM later"), "7");
        restored.server().stop(Stop::Fast);
    };
    // Killed in between, nothing starts on it, and the same command continues.
    for (to, form, step) in forms {
        let more = [form, &["--delta"]].concat();
        let hooks = Hooks::holding(&fixture, step);
        let program = lockstep.clone().with_steps(&hooks.steps);
        let mut program = program.spawn(&restore_arguments(&second, to, &more));
        hooks.steps.wait_reached(step, &mut program);
        program.kill();
        program.wait(LIMIT);
        over(&second, to, form);
        let wal = to.join("wal").symlink_metadata().expect("it is there");
        assert!(wal.is_dir());
    }
    // And back to the older set, for which a dataset would have to go.
    over(&first, &files, &FILES[..4]);
    assert!(files.join("wal").is_symlink());
    over(&second, &files, &FILES[..4]);
    // A link that no restore made.
    let wal = files.join("wal");
    fs::rename(&wal, fixture.root().join("aside")).expect("the test may");
    symlink(fixture.root().join("aside"), &wal).expect("the test may");
    let arguments = restore_arguments(&second, &files, &FILES);
    let outcome = lockstep.expect(exit::USAGE, &arguments);
    assert_said(&outcome, &["wal\" is a symbolic link", "no restore of this cluster made it"]);
    discard(&fixture, &datasets, &parent);
    discard(&fixture, &early, &parent_of_early);
}

/// Two tablespaces were folders of one dataset, whose copy is named after the first. That one has a dataset of its own
/// by now, whose copy gets the same name: the way out is said.
#[test]
fn a_dataset_that_is_named_after_a_part_that_left_it() {
    let layout = two_pools_four_datasets();
    let fixture = Fixture::new(Layout {
        tablespaces: vec![("ts1".into(), "ts1/one".into()), ("ts2".into(), "ts1/two".into())],
        ..layout
    });
    let lockstep = with_repository(&fixture);
    let first = lockstep.backup("label").id;
    let parent = format!("{}/back", fixture.pools[0].name);
    let form = ["--from", "repository", "--as", "zfs", "--dataset", &parent, "--delta"];
    let to = fixture.target("r");
    lockstep.restore(&first, &to, &form[..6]);
    fixture.cluster.stop(Stop::Fast);
    let (was, own) = (fixture.mnt().join("ts1/one"), fixture.mnt().join("ts2"));
    must(command("cp", ["-aT"]).args([&was, &own]));
    fs::remove_dir_all(&was).expect("it was copied");
    for link in entries(&fixture.cluster.data.join("pg_tblspc")) {
        if fs::read_link(&link).is_ok_and(|target| target == was) {
            fs::remove_file(&link).expect("the test may");
            symlink(&own, &link).expect("the test may");
        }
    }
    fixture.cluster.start();
    let second = lockstep.backup("label").id;
    let before = walk(&to);
    let outcome = lockstep.run(&restore_arguments(&second, &to, &form));
    assert_refused(&outcome, &["is mounted at", "restore to another --dataset and --to"]);
    let changed = differences(&before, &walk(&to));
    assert!(changed.is_empty(), "{changed:?}: {}", outcome.describe());
    discard(&fixture, &to, &parent);
}
