//! What was interrupted and can't be removed because somebody else has put something on it: the next backup says so
//! and is taken all the same, `check` names it, and it is removed once nothing is in the way.

use crate::support::cluster::Stop;
use crate::support::command::{command, must, wait_until};
use crate::support::commands::pretending;
use crate::support::faults::{
    assert_nothing_remains, assert_restorable, assert_said, entries, kill_at, restore_arguments,
    server_by_hand, signal_at, wait_for_no_session,
};
use crate::support::fixture::Fixture;
use crate::support::layout::{one_pool, two_pools_four_datasets};
use crate::support::lockstep::{LIMIT, Lockstep, Set, Steps, exit, json_of, toml_string};
use crate::support::pools::{patiently, property, release_and_destroy, zfs};
use crate::support::shipping::{discard, other_host, with_repository};
use crate::support::workspace::is_at_work_on;
use rustix::process::Signal;
use std::fs;
use std::path::{Path, PathBuf};

#[test]
fn a_killed_backup_whose_snapshot_somebody_holds() {
    let fixture = Fixture::new(two_pools_four_datasets());
    let lockstep = fixture.lockstep();
    kill_at(&fixture, "backup.manifest", &["backup", "--strategy", "label"]);
    wait_for_no_session(&fixture);
    let killed = fixture.snapshots();
    assert_eq!(killed.len(), 4, "{killed:?}");
    zfs(&["hold", "mine", &killed[1]]);
    for _ in 0..2 {
        let outcome = lockstep.expect(exit::DONE, &["--json", "backup", "--strategy", "label"]);
        assert_said(&outcome, &["stays for now", "somebody else holds", &killed[1]]);
        let set = Set::of(&json_of(&outcome)).id;
        assert_restorable(&fixture, &set);
        let checked = lockstep.expect(exit::DONE, &["check"]);
        let words = format!("could not be removed: somebody else holds \"{}\"", killed[1]);
        assert!(checked.stdout.contains(&words), "{}", checked.describe());
        fixture.discard_set(&set);
        // The others are gone.
        assert_eq!(fixture.snapshots(), killed[1..2]);
    }
    zfs(&["release", "mine", &killed[1]]);
    let set = lockstep.backup("label").id;
    assert_nothing_remains(&fixture, &[], "once nobody holds it");
    assert_restorable(&fixture, &set);
}

/// Its snapshots went along with a dataset that was renamed, and with a pool that was imported under another name. A
/// copy is somebody's.
#[test]
fn a_killed_backup_whose_dataset_and_pool_were_renamed() {
    let fixture = Fixture::new(two_pools_four_datasets());
    kill_at(&fixture, "backup.manifest", &["backup", "--strategy", "label"]);
    wait_for_no_session(&fixture);
    let killed = fixture.snapshots();
    assert_eq!(killed.len(), 4, "{killed:?}");
    fixture.cluster.stop(Stop::Fast);
    let dataset = |mount: &str| {
        let place = fixture.layout.datasets.iter().position(|dataset| dataset.mount == mount);
        &fixture.datasets[place.expect("it has that")]
    };
    let ts1 = dataset("ts1");
    let (renamed, copy) = (format!("{ts1}-renamed"), format!("{ts1}-copy"));
    let snapshot = killed.iter().find(|name| name.starts_with(&format!("{ts1}@")));
    let send = format!("zfs send {} | zfs receive -u {copy}", snapshot.expect("it has one"));
    must(&mut command("sh", ["-c", &send]));
    let rename = |from: &str, to: &str| {
        for words in [&["unmount", from][..], &["rename", from, to], &["mount", to]] {
            patiently("zfs", words, || ()).expect("nobody is in it");
        }
    };
    rename(ts1, &renamed);
    let pool = &fixture.pools[1];
    let images = pool.image.parent().and_then(Path::to_str).expect("UTF-8");
    let other = format!("{}-renamed", pool.name);
    patiently("zpool", &["export", &pool.name], || ()).expect("it is idle");
    must(&mut command("zpool", ["import", "-d", images, &pool.name, &other]));
    fixture.cluster.start();
    let set = fixture.lockstep().backup("label").id;
    let all = zfs(&["list", "-H", "-t", "snapshot", "-o", "name"]);
    let id = killed[0].split_once('@').expect("a snapshot").1;
    let left: Vec<_> = all.lines().filter(|name| name.ends_with(id)).collect();
    assert_eq!(left, [format!("{copy}@{id}")]);
    assert_restorable(&fixture, &set);
    zfs(&["destroy", "-r", &copy]);
    fixture.lockstep().expect(exit::DONE, &["prune", "--local", "--set", &set]);
    fixture.cluster.stop(Stop::Fast);
    rename(&renamed, ts1);
    patiently("zpool", &["export", &other], || ()).expect("it is idle");
    must(&mut command("zpool", ["import", "-d", images, &other, &pool.name]));
    assert_nothing_remains(&fixture, &[], "under other names");
}

#[test]
fn a_killed_backup_whose_snapshot_somebody_cloned() {
    let fixture = Fixture::new(two_pools_four_datasets());
    kill_at(&fixture, "backup.manifest", &["backup", "--strategy", "ordered"]);
    wait_for_no_session(&fixture);
    let killed = fixture.snapshots();
    let clone = format!("{}/mine", fixture.pools[0].name);
    zfs(&["clone", "-o", "mountpoint=none", &killed[0], &clone]);
    let outcome = fixture.lockstep().expect(exit::DONE, &["backup", "--strategy", "ordered"]);
    assert_said(&outcome, &["stays for now", &format!("\"{clone}\" is a clone of")]);
    zfs(&["destroy", &clone]);
    fixture.lockstep().backup("ordered");
    assert_nothing_remains(&fixture, &[], "once the clone is gone");
}

#[test]
fn a_killed_restore_of_whose_clone_somebody_took_a_snapshot() {
    let fixture = Fixture::new(two_pools_four_datasets());
    let lockstep = fixture.lockstep();
    let set = lockstep.backup("label").id;
    let to = fixture.target("cut off");
    kill_at(&fixture, "restore.prepared", &restore_arguments(&set, &to, &[]));
    let clone = fixture.clones()[0].name.clone();
    let foreign = format!("{clone}@auto-2026-01-01");
    zfs(&["snapshot", &foreign]);
    let outcome = lockstep.expect(exit::DONE, &["--json", "backup", "--strategy", "label"]);
    assert_said(&outcome, &["stays for now", &clone]);
    assert_restorable(&fixture, &Set::of(&json_of(&outcome)).id);
    let checked = lockstep.expect(exit::DONE, &["check"]);
    let words = format!("can't be removed: \"{foreign}\" isn't Lockstep's");
    assert!(checked.stdout.contains(&words), "{}", checked.describe());
    // A clone that will be written to belongs to a cluster, and snapshots of it are taken like of any other.
    assert_eq!(property(&clone, "com.sun:auto-snapshot"), "-");
    zfs(&["destroy", &foreign]);
    lockstep.backup("label");
    assert_nothing_remains(&fixture, &[], "once the snapshot is gone");
}

/// What was being received still belongs to a killed restore, even if another one continues with the rest.
#[test]
fn what_was_received_for_a_restore_that_another_host_took_over_keeps_nobody() {
    let fixture = Fixture::new(two_pools_four_datasets());
    let lockstep = with_repository(&fixture);
    let set = lockstep.backup("label").id;
    let to = fixture.target("taken over");
    let parent = format!("{}/back", fixture.pools[0].name);
    let steps = Steps::new(fixture.root().join("steps"));
    steps.hold("restore.receiving-1");
    let more = ["--from", "repository", "--as", "zfs", "--dataset", &parent];
    let mut program =
        lockstep.clone().with_steps(&steps).spawn(&restore_arguments(&set, &to, &more));
    steps.wait_reached("restore.receiving-1", &mut program);
    program.kill();
    assert_eq!(program.wait(LIMIT).signal, Some(9));
    // Two are received at a time, and the killed program's own `zfs` may still be at it.
    wait_until("no `zfs` of the killed program is left", LIMIT, || !is_at_work_on(&parent));
    let all = zfs(&["list", "-H", "-o", "name"]);
    let mut received = all.lines().filter(|name| name.contains("lockstep-receiving-"));
    let received = received.next().expect("one volume was received").to_owned();
    // The other one may have had its name already, and no mount yet.
    let whole =
        |name: &&str| name.starts_with(&format!("{parent}/")) && !name.contains("receiving");
    for dataset in all.lines().filter(whole) {
        if property(dataset, "mounted") != "yes" {
            zfs(&["mount", dataset]);
        }
    }
    let foreign = format!("{received}@auto-2026-01-01");
    zfs(&["snapshot", &foreign]);
    let other = other_host(&fixture, "other", &fixture.root().join("lost"));
    other.restore(&set, &to, &["--from", "repository", "--as", "files", "--delta"]);
    for command in [&["backup", "--no-ship"][..], &["clone", "create", "beside"]] {
        let outcome = lockstep.expect(exit::DONE, command);
        assert_said(&outcome, &["another restore has continued with", "stays for now", &received]);
    }
    lockstep.expect(exit::DONE, &["clone", "destroy", "beside"]);
    zfs(&["destroy", &foreign]);
    lockstep.expect(exit::DONE, &["backup", "--no-ship"]);
    let to = to.to_str().expect("the harness' own paths are UTF-8");
    assert_nothing_remains(&fixture, &[to], "once the snapshot is gone");
    let all = zfs(&["list", "-H", "-o", "name"]);
    assert!(!all.contains("lockstep-receiving-"), "{all}");
}

/// A killed restore's clones and a killed shipment's views depend on a set's snapshots: `prune` removes them first,
/// and a dry run removes nothing.
#[test]
fn a_set_goes_although_a_restore_or_a_shipment_of_it_was_killed() {
    let fixture = Fixture::new(two_pools_four_datasets());
    let lockstep = with_repository(&fixture);
    let [first, second] = [(); 2].map(|()| Set::of(&lockstep.json(&["backup", "--no-ship"])).id);
    let to = fixture.target("cut off");
    kill_at(&fixture, "restore.prepared", &restore_arguments(&first, &to, &["--start"]));
    let steps = Steps::new(fixture.root().join("steps"));
    steps.hold("ship.views");
    let mut program = lockstep.clone().with_steps(&steps).spawn(&["ship", &second]);
    steps.wait_reached("ship.views", &mut program);
    program.kill();
    assert_eq!(program.wait(LIMIT).signal, Some(9));
    let clones = fixture.clones().len();
    assert!(clones >= 4, "{clones}");
    for set in [&first, &second] {
        let words = ["prune", "--local", "--set", set];
        // It looks, removes nothing, and knows that these clones will be gone.
        let there = fixture.clones();
        let planned = lockstep.expect(exit::DONE, &[&words[..], &["--dry-run"]].concat());
        assert!(planned.stdout.contains("would remove"), "{}", planned.describe());
        assert_eq!(fixture.clones().len(), there.len(), "a dry run changes nothing");
        lockstep.expect(exit::DONE, &words);
        assert!(fixture.clones().is_empty(), "{:?}", fixture.clones());
    }
    assert!(lockstep.sets().is_empty());
    assert_nothing_remains(&fixture, &[], "pruned");
}

/// If ZFS takes one snapshot per command, one moment means a recursive snapshot, which includes datasets that belong
/// to somebody else.
#[test]
fn strays_of_a_recursive_snapshot_are_not_left_on_foreign_datasets() {
    if Path::new("/dev/zfs").exists() {
        eprintln!("SKIPPED: this ZFS takes several snapshots in one command, and makes no strays");
        return;
    }
    let fixture = Fixture::new(one_pool());
    let foreign = fixture.pools[0].dataset("pg/not ours", &fixture.mnt().join("other"), &[]);
    zfs(&["snapshot", &format!("{foreign}@mine")]);
    let arguments = ["backup", "--strategy", "atomic"];
    let is_stray = |name: &String| name.starts_with(&format!("{foreign}@lockstep-"));
    kill_at(&fixture, "backup.strays", &arguments);
    assert!(fixture.snapshots().iter().any(is_stray), "{:?}", fixture.snapshots());
    let set = fixture.lockstep().backup("atomic").id;
    zfs(&["destroy", &format!("{foreign}@mine")]);
    assert_nothing_remains(&fixture, &[], "after a kill, at the next start");
    assert!(!fixture.snapshots().iter().any(is_stray), "{:?}", fixture.snapshots());
    assert_restorable(&fixture, &set);
    let (_, outcome) = signal_at(&fixture, "backup.strays", Signal::TERM, &arguments);
    assert_eq!(outcome.code, Some(exit::INTERRUPTED), "{}", outcome.describe());
    assert_nothing_remains(&fixture, &[], "after a signal, at once");
}

/// The clones that a shipment looks into exist only for a moment; no scheduled snapshots should be taken of them.
#[test]
fn views_are_passed_over_by_automatic_snapshots() {
    let fixture = Fixture::new(two_pools_four_datasets());
    let steps = Steps::new(fixture.root().join("steps"));
    steps.hold("ship.views");
    let lockstep = with_repository(&fixture).with_steps(&steps);
    let mut program = lockstep.spawn(&["backup"]);
    steps.wait_reached("ship.views", &mut program);
    let views = fixture.clones();
    // If ZFS shows its snapshots in a folder, none are needed.
    assert!(Path::new("/dev/zfs").exists() || views.len() == 4, "{views:?}");
    for view in &views {
        assert_eq!(property(&view.name, "com.sun:auto-snapshot"), "false", "{}", view.name);
    }
    steps.release("ship.views");
    let outcome = program.wait(LIMIT);
    assert_eq!(outcome.code, Some(exit::DONE), "{}", outcome.describe());
    assert_nothing_remains(&fixture, &[], "after a shipment");
}

/// Runs a command, and then replaces state_dir by its copy from when the command was at `step`.
fn with_state_of(fixture: &Fixture, lockstep: &Lockstep, step: &str, arguments: &[&str]) {
    let steps = Steps::new(fixture.root().join("steps"));
    steps.hold(step);
    let mut program = lockstep.clone().with_steps(&steps).spawn(arguments);
    steps.wait_reached(step, &mut program);
    let copy = fixture.root().join("copy");
    must(command("cp", ["-a"]).args([&fixture.state, &copy]));
    steps.release(step);
    let outcome = program.wait(LIMIT);
    assert_eq!(outcome.code, Some(exit::DONE), "{}", outcome.describe());
    fs::remove_dir_all(&fixture.state).expect("the test may remove it");
    fs::rename(&copy, &fixture.state).expect("it can be renamed");
}

/// The journals of restores.
fn journals(fixture: &Fixture) -> Vec<PathBuf> {
    let mut all = entries(&fixture.state.join("clusters/main/restores"));
    all.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
    all
}

/// Makes of a restore from snapshots one of an older version, which wrote no marker and recorded less of it in the
/// journal, or in a clone's record.
fn is_an_older_version_s(directory: &Path, journal: &Path) {
    fs::remove_file(directory.join(".lockstep-restore")).expect("it is there");
    let text = fs::read(journal).expect("it can be read");
    let mut all: serde_json::Value = serde_json::from_slice(&text).expect("it is JSON");
    let own = if all["made"].is_object() { &mut all["made"] } else { &mut all };
    let own = own.as_object_mut().expect("an object");
    assert!(own.remove("is_marked").is_some() && own.remove("leads").is_some());
    fs::write(journal, all.to_string()).expect("it can be written");
}

/// A state_dir that is put back from a copy made while a restore ran has its journal, but what the restore made is a
/// cluster in use by then.
#[test]
fn what_a_restore_made_stays_when_its_journal_comes_back() {
    let fixture = Fixture::new(two_pools_four_datasets().setting("autovacuum", "off"));
    fixture.cluster.execute(&["CREATE TABLE one TABLESPACE ts1 AS SELECT 1 AS n"]);
    let lockstep = with_repository(&fixture);
    let set = Set::of(&lockstep.json(&["backup"])).id;
    let parent = format!("{}/back", fixture.pools[0].name);
    let zfs_form = ["--from", "repository", "--as", "zfs", "--dataset", &parent];
    let forms = [
        ("clones", &[][..]),
        ("files", &["--from", "repository", "--as", "files"]),
        ("zfs", &zfs_form),
    ];
    for (name, form) in forms {
        let to = fixture.target(name);
        let arguments = restore_arguments(&set, &to, form);
        with_state_of(&fixture, &lockstep, "restore.control", &arguments);
        assert_eq!(journals(&fixture).len(), 1, "{name}");
        let checked = lockstep.run(&["check"]).stdout;
        assert!(!checked.contains("cut off"), "{name}: {checked}");
        let outcome = lockstep.expect(exit::DONE, &["backup", "--no-ship"]);
        assert_said(&outcome, &["a restore that has ended", "stays"]);
        assert!(to.join("data/global/pg_control").exists(), "{name} is gone");
        assert_eq!(journals(&fixture), [""; 0].map(PathBuf::from), "{name}");
    }
    assert_eq!(fixture.clones().len(), 4);
    zfs(&["list", &format!("{parent}/data"), &format!("{parent}/wal")]);

    // One that an older Lockstep restored has no mark; its server shows that it is in use, and so does the
    // configuration.
    let to = fixture.target("clones");
    let unmarked = |arguments: &[&str]| {
        with_state_of(&fixture, &lockstep, "restore.control", arguments);
        for clone in fixture.clones() {
            zfs(&["inherit", "lockstep:ended", &clone.name]);
        }
        is_an_older_version_s(&to, &journals(&fixture)[0]);
    };
    fixture.discard_restored(&to, &set);
    unmarked(&restore_arguments(&set, &to, &[]));
    let data = fs::canonicalize(to.join("data")).expect("it was restored");
    let server = server_by_hand(&fixture, &data);
    server.start();
    let outcome = lockstep.expect(exit::DONE, &["backup", "--no-ship"]);
    assert_said(&outcome, &["a cluster of its own by now"]);
    assert_eq!(server.value("postgres", "SELECT n FROM one"), "1");
    server.stop(Stop::Fast);
    fixture.discard_restored(&to, &set);

    unmarked(&restore_arguments(&set, &to, &[]));
    let server = server_by_hand(&fixture, &data);
    server.start();
    wait_until("it has recovered", LIMIT, || {
        server.value("postgres", "SELECT pg_is_in_recovery()") == "f"
    });
    server.stop(Stop::Fast);
    let path = fixture.root().join("shipping.toml");
    let text = fs::read_to_string(&path).expect("the configuration");
    let more = format!("{text}\n[clusters.restored]\ndata_directory = {}\n", toml_string(&data));
    fs::write(&path, &more).expect("it can be written");
    let outcome = lockstep.expect(exit::DONE, &["--cluster", "main", "backup", "--no-ship"]);
    assert_said(&outcome, &["may be cluster \"restored\"", "stays for now"]);
    assert!(data.join("global/pg_control").exists() && journals(&fixture).len() == 1);
    fs::write(&path, text).expect("it can be written");
    // Nobody uses it: what the journal names is removed.
    lockstep.expect(exit::DONE, &["backup", "--no-ship"]);
    assert!(!data.exists() && journals(&fixture).is_empty());
    discard(&fixture, &fixture.target("zfs"), &parent);
}

/// A backup whose snapshots are marked complete had written its manifest: the copy of state_dir is older.
#[test]
fn a_set_that_is_marked_complete_stays_when_its_journal_comes_back() {
    let fixture = Fixture::new(two_pools_four_datasets());
    let lockstep = fixture.lockstep();
    let arguments = ["backup", "--strategy", "label"];
    with_state_of(&fixture, &lockstep, "backup.manifest", &arguments);
    assert!(lockstep.sets().is_empty());
    let snapshots = fixture.snapshots();
    assert_eq!(snapshots.len(), 4, "{snapshots:?}");
    let checked = lockstep.run(&["check"]).stdout;
    assert!(checked.contains("marked complete") && checked.contains("lockstep adopt"), "{checked}");
    let outcome = lockstep.expect(exit::DONE, &["--json", "backup", "--strategy", "label"]);
    assert_said(&outcome, &["marked complete", "lockstep adopt"]);
    let there = fixture.snapshots();
    assert!(snapshots.iter().all(|name| there.contains(name)), "{there:?}");
    let checked = lockstep.run(&["check"]).stdout;
    assert!(checked.contains(&snapshots[0]), "{checked}");
    fixture.discard_set(&Set::of(&json_of(&outcome)).id);
    snapshots.iter().for_each(|name| release_and_destroy(name));
}

/// Lockstep must be able to remove a clone, so no scheduled snapshots should be taken of it. One that somebody took
/// all the same is reported while the clone's server still runs.
#[test]
fn a_clone_of_which_somebody_took_a_snapshot_says_so() {
    let fixture = Fixture::new(two_pools_four_datasets());
    let lockstep = fixture.lockstep();
    let set = lockstep.backup("label").id;
    let clone = lockstep.clone_create("dev", &["--set", &set]);
    let datasets = fixture.clones();
    assert_eq!(datasets.len(), 4, "{datasets:?}");
    for dataset in &datasets {
        assert_eq!(property(&dataset.name, "com.sun:auto-snapshot"), "false", "{}", dataset.name);
    }
    let foreign = format!("{}@autosnap_2026-01-01", datasets[1].name);
    zfs(&["snapshot", &foreign]);
    let outcome = lockstep.expect(exit::FAILED, &["clone", "destroy", "dev"]);
    let command = format!("`zfs destroy {foreign}`");
    assert_said(&outcome, &["error: clone \"dev\"", "isn't Lockstep's", "hint: ", &command]);
    assert_eq!(fixture.clones().len(), 4);
    assert_eq!(clone.server().value("postgres", "SELECT 1"), "1");
    zfs(&["destroy", &foreign]);
    lockstep.expect(exit::DONE, &["clone", "destroy", "dev"]);
    assert_nothing_remains(&fixture, &[], "once the snapshot is gone");
}

/// What somebody has mounted meanwhile in the remains of a killed restore isn't emptied together with them. The
/// restore hadn't become a cluster yet; otherwise it would stay.
#[test]
fn what_is_mounted_in_what_a_killed_restore_left_stays() {
    let fixture = Fixture::new(two_pools_four_datasets());
    let lockstep = with_repository(&fixture);
    let set = Set::of(&lockstep.json(&["backup"])).id;
    let to = fixture.target("r");
    let form = ["--from", "repository", "--as", "files"];
    let steps = Steps::new(fixture.root().join("steps"));
    steps.hold("restore.fetched");
    let arguments = restore_arguments(&set, &to, &form);
    let mut program = lockstep.clone().with_steps(&steps).spawn(&arguments);
    steps.wait_reached("restore.fetched", &mut program);
    program.kill();
    program.wait(LIMIT);
    let disk = fixture.owned("disk");
    fs::write(disk.join("gold"), "all of it").expect("it can be written");
    let look = fs::canonicalize(to.join("log")).expect("it is there").join("look");
    fs::create_dir(&look).expect("a folder can be made");
    must(command("mount", ["--bind"]).args([&disk, &look]));
    let outcome = lockstep.expect(exit::DONE, &["backup", "--no-ship"]);
    assert_said(&outcome, &["is mounted at", "/look", "stays for now"]);
    assert!(disk.join("gold").exists(), "{}", outcome.describe());
    must(&mut command("umount", [&look]));
    lockstep.expect(exit::DONE, &["backup", "--no-ship"]);
    assert!(!to.exists());
}

/// A running `zfs` isn't killed with the program: the next command waits for it, and removes what it made after all.
#[test]
fn what_zfs_makes_once_its_command_was_killed_goes_as_well() {
    let fixture = Fixture::new(two_pools_four_datasets());
    let lockstep = fixture.lockstep();
    let set = lockstep.backup("label").id;
    let to = fixture.target("late");
    let (backup, restore) =
        (vec!["backup", "--strategy", "label"], restore_arguments(&set, &to, &[]));
    for (subcommand, arguments) in [("snapshot", backup), ("clone", restore)] {
        let [begun, done] =
            ["begun", "done"].map(|name| fixture.root().join(format!("{subcommand}-{name}")));
        let cases = format!(
            "\"{subcommand} -o\"*) touch '{}'; sleep 4; zfs \"$@\"; touch '{}';;",
            begun.display(),
            done.display()
        );
        let slow = pretending(&fixture, &lockstep, &format!("slow-{subcommand}"), &cases);
        let mut program = slow.spawn(&arguments);
        wait_until("zfs is at work", LIMIT, || begun.exists());
        program.kill();
        assert_eq!(program.wait(LIMIT).signal, Some(9));
        assert!(!done.exists());
        let next = lockstep.backup("label").id;
        assert!(done.exists(), "{subcommand} goes on still");
        fixture.discard_set(&next);
        let left = fixture.snapshots().into_iter().filter(|name| !name.ends_with(&set));
        assert_eq!(left.collect::<Vec<_>>(), [""; 0], "{subcommand}");
        assert!(fixture.clones().is_empty(), "{subcommand}: {:?}", fixture.clones());
    }
    fixture.discard_set(&set);
    assert_nothing_remains(&fixture, &[], "once zfs has ended");
}

/// The same for a `zfs receive` that had all of its stream when Lockstep was killed: what it makes carries no mark yet.
#[test]
fn what_zfs_still_receives_for_a_killed_restore_is_waited_for() {
    let fixture = Fixture::new(one_pool());
    let lockstep = with_repository(&fixture);
    let set = lockstep.backup("label").id;
    let (to, parent) = (fixture.target("late"), format!("{}/late", fixture.pools[0].name));
    zfs(&["create", "-o", "mountpoint=none", &parent]);
    let [stream, begun] = ["stream", "begun"].map(|name| fixture.root().join(name));
    let cases = format!(
        "\"receive -u \"*) cat >'{0}'.$$; touch '{1}'; sleep 4; zfs \"$@\" <'{0}'.$$; exit;;",
        stream.display(),
        begun.display()
    );
    let slow = pretending(&fixture, &lockstep, "slow-receive", &cases);
    let more = ["--from", "repository", "--as", "zfs", "--dataset", &parent];
    let mut program = slow.spawn(&restore_arguments(&set, &to, &more));
    wait_until("zfs has all of a stream", LIMIT, || begun.exists());
    program.kill();
    assert_eq!(program.wait(LIMIT).signal, Some(9));
    lockstep.backup("label");
    std::thread::sleep(std::time::Duration::from_secs(6));
    let left = zfs(&["list", "-H", "-o", "name", "-r", &parent]);
    assert_eq!(left.trim(), parent, "zfs went on");
    zfs(&["destroy", &parent]);
}

/// What no journal and no record knows is reported, with the command that removes it, and doesn't stop other commands
/// half way.
#[test]
fn what_nobody_here_knows_is_named() {
    let fixture = Fixture::new(one_pool());
    let lockstep = fixture.lockstep();
    let set = lockstep.backup("label");
    let owner = fs::read_to_string(fixture.state.join("owner")).expect("it has a name");
    let (snapshot, pool) = (&set.volumes[0].snapshot, &fixture.pools[0].name);
    let clone = |name: &str, id: &str, owner: &str, more: &[&str]| {
        let dataset = format!("{pool}/{name}");
        let marks = [format!("lockstep:restore={id}"), format!("lockstep:owner={owner}")];
        let mut arguments =
            vec!["clone", "-o", "mountpoint=none", "-o", &marks[0], "-o", &marks[1]];
        arguments.extend(more);
        arguments.extend([snapshot.as_str(), &dataset]);
        zfs(&arguments);
        dataset
    };
    let ours = clone("lockstep-restore-ab12-data", "restore-ab12", owner.trim(), &[]);
    let theirs = clone("lockstep-clone-dev-data", "clone-dev", "another", &[]);
    let ended = ["-o", "lockstep:ended=restore-cd34"];
    let somebodys = clone("restored", "restore-cd34", owner.trim(), &ended);
    let begun = format!("{}@lockstep-20200101T000000Z-aaaa", set.volumes[0].dataset);
    let owned = format!("lockstep:owner={}", owner.trim());
    let marks = ["lockstep:set=20200101T000000Z-aaaa", "lockstep:state=taking", &owned];
    let marks = marks.iter().flat_map(|mark| ["-o", mark]);
    zfs(&["snapshot"].into_iter().chain(marks).chain([begun.as_str()]).collect::<Vec<_>>());

    let checked = lockstep.expect(exit::DONE, &["check"]);
    for words in [
        format!(
            "restore-ab12 was made by this state_dir, which has neither journal nor record of it, and has \"{ours}\""
        ),
        format!("clone-dev isn't one of this state_dir, and has \"{theirs}\""),
        format!("zfs destroy {}", lockstep::process::quote(&ours)),
        format!(
            "was begun by this state_dir and never complete, its journal is gone, and has the snapshot \"{begun}\""
        ),
    ] {
        assert!(checked.stdout.contains(&words), "{words}: {}", checked.describe());
    }
    assert!(!checked.stdout.contains(&somebodys), "{}", checked.describe());

    let refused = lockstep.expect(exit::USAGE, &["clone", "create", "dev"]);
    let command = "lockstep clone destroy dev --lost";
    assert_said(&refused, &["that this state_dir doesn't know", &theirs, command]);
    // It isn't where a clone would be: somebody may have taken it over.
    let command = format!("zfs destroy {}", lockstep::process::quote(&theirs));
    let refused = lockstep.expect(exit::USAGE, &["clone", "destroy", "dev"]);
    assert_said(&refused, &["by another state_dir", &theirs, "--lost"]);
    let refused = lockstep.expect(exit::FAILED, &["clone", "destroy", "dev", "--lost"]);
    assert_said(&refused, &["aren't mounted where a clone has them", &command]);
    for dataset in [ours, theirs, somebodys, begun] {
        zfs(&["destroy", &dataset]);
    }
    let checked = lockstep.expect(exit::DONE, &["check"]);
    assert!(!checked.stdout.contains("this state_dir"), "{}", checked.describe());
    // A damaged journal doesn't hide what else there is.
    for folder in ["unfinished", "removals", "restores"] {
        let journal = fixture.state.join("clusters/main").join(folder).join("damaged.json");
        fs::write(&journal, "").expect("the test may");
        let checked = lockstep.expect(exit::PROBLEMS, &["check"]);
        for words in ["damaged.json\" is damaged", "connection: PostgreSQL", "space: "] {
            assert!(checked.stdout.contains(words), "{folder}: {}", checked.describe());
        }
        fs::remove_file(&journal).expect("it is there");
    }
    // One that is running is known.
    let made = lockstep.clone_create("dev", &[]);
    let checked = lockstep.expect(exit::DONE, &["check"]);
    assert!(!checked.stdout.contains("this state_dir"), "{}", checked.describe());
    lockstep.expect(exit::DONE, &["clone", "destroy", "dev"]);
    drop(made);
}

/// Another cluster's clone, or another state_dir's, has the name that a clone would get: whatever fails, it stays.
#[test]
fn a_clone_takes_nothing_of_another_that_has_its_name() {
    let fixture = Fixture::new(two_pools_four_datasets());
    let text = fixture.configuration("label", true);
    let (_, main) = text.split_once("[clusters.main]").expect("its table");
    let both = format!("{text}\n[clusters.shop]{main}");
    fs::write(fixture.config(), both).expect("the configuration can be written");
    let lockstep = fixture.lockstep();
    let of = |cluster: &str, arguments: &[&str]| -> Vec<String> {
        ["--json", "--cluster", cluster].iter().chain(arguments).map(ToString::to_string).collect()
    };
    let run = |code: i32, cluster: &str, arguments: &[&str]| {
        let all = of(cluster, arguments);
        lockstep.expect(code, &all.iter().map(String::as_str).collect::<Vec<_>>())
    };
    run(exit::DONE, "main", &["backup"]);
    run(exit::DONE, "shop", &["backup"]);
    let create = ["clone", "create", "dev"];
    let made = lockstep.restored(&json_of(&run(exit::DONE, "main", &create)));
    made.server().execute(&["CREATE TABLE work AS SELECT generate_series(1, 10) i"]);
    let is_whole =
        || assert_eq!(made.server().value("postgres", "SELECT count(*) FROM work"), "10");
    let other = lockstep.restored(&json_of(&run(exit::DONE, "shop", &create)));
    other.server().execute(&["CREATE TABLE work ()"]);
    is_whole();
    run(exit::DONE, "shop", &["clone", "destroy", "dev"]);
    is_whole();

    // The existing dataset is named, and nothing is made.
    let datasets = fixture.clones().into_iter().map(|clone| clone.name);
    let first = datasets.min().expect("the clone has datasets");
    let taken = first.replace("clone-main-dev", "clone-shop-dev");
    assert_ne!(first, taken);
    zfs(&["create", "-o", "mountpoint=none", "-o", "lockstep:restore=clone-dev", &taken]);
    let before = fixture.clones().len();
    let refused = run(exit::REFUSED, "shop", &create);
    assert_said(&refused, &[&format!("dataset \"{taken}\" exists already")]);
    // One that appeared in between, marked as an older version does it.
    zfs(&["destroy", &taken]);
    let hooks = crate::support::faults::Hooks::holding(&fixture, "restore.journal");
    let all = of("shop", &create);
    let all: Vec<_> = all.iter().map(String::as_str).collect();
    let program = hooks.run_to("restore.journal", &all);
    zfs(&["create", "-o", "mountpoint=none", "-o", "lockstep:restore=clone-dev", &taken]);
    hooks.steps.release("restore.journal");
    let failed = program.wait(LIMIT);
    assert_eq!(failed.code, Some(exit::FAILED), "{}", failed.describe());
    assert_said(&failed, &["that restore didn't make this dataset", &taken]);
    zfs(&["destroy", &taken]);
    assert_eq!(fixture.clones().len(), before);
    run(exit::DONE, "shop", &["backup"]);
    is_whole();
    run(exit::DONE, "main", &["clone", "destroy", "dev"]);
    assert!(fixture.clones().is_empty(), "{:?}", fixture.clones());
}

/// state_dir was lost while a clone was running, or is put back from a copy made before or while it was made.
#[test]
fn a_clone_that_state_dir_has_forgotten() {
    let fixture = Fixture::new(two_pools_four_datasets());
    let lockstep = fixture.lockstep();
    lockstep.backup("label");
    let state = fixture.state.join("clusters/main");
    let create = ["--json", "clone", "create", "dev"];
    let hooks = crate::support::faults::Hooks::holding(&fixture, "restore.settings");
    let program = hooks.run_to("restore.settings", &create);
    let journals = entries(&state.join("restores"));
    let journal = journals.iter().find(|path| path.extension().is_some_and(|end| end == "json"));
    let journal = journal.expect("a journal");
    let copy = fs::read(journal).expect("it can be read");
    hooks.steps.release("restore.settings");
    let made = program.wait(LIMIT);
    assert_eq!(made.code, Some(exit::DONE), "{}", made.describe());
    let made = lockstep.restored(&json_of(&made));
    made.server().execute(&["CREATE TABLE work AS SELECT generate_series(1, 10) i"]);
    let is_whole =
        || assert_eq!(made.server().value("postgres", "SELECT count(*) FROM work"), "10");
    fs::write(journal, copy).expect("it can be written");
    fs::remove_file(state.join("clones/dev.json")).expect("its record");
    assert_said(
        &lockstep.expect(exit::DONE, &["backup"]),
        &["did state_dir come back from a copy"],
    );
    is_whole();

    let named = |command: &str| {
        let checked = lockstep.expect(exit::DONE, &["check"]);
        let datasets = fixture.clones();
        assert_eq!(datasets.len(), 4, "{datasets:?}");
        for words in datasets.iter().map(|clone| clone.name.as_str()).chain([command]) {
            assert!(checked.stdout.contains(words), "{words}: {}", checked.describe());
        }
        let refused = lockstep.expect(exit::USAGE, &create);
        assert_said(&refused, &["that this state_dir doesn't know", command]);
        is_whole();
    };
    named("lockstep clone destroy dev");
    // A damaged record knows as little, and hides nothing else.
    let record = state.join("clones/dev.json");
    fs::write(&record, "").expect("it can be written");
    let checked = lockstep.expect(exit::PROBLEMS, &["check"]);
    let datasets = fixture.clones();
    let names = datasets.iter().map(|clone| clone.name.as_str());
    for words in names.chain(["the record of clone \"dev\" can't be read", "connection: "]) {
        assert!(checked.stdout.contains(words), "{words}: {}", checked.describe());
    }
    let listed = lockstep.expect(exit::PROBLEMS, &["--json", "clone", "list"]);
    assert_said(&listed, &["clones/dev.json\" is damaged", "hint: ", "clone destroy dev"]);
    assert_eq!(json_of(&listed)["damaged"][0]["name"], "dev");
    is_whole();
    fs::remove_file(&record).expect("it is there");
    // Another state_dir is another owner.
    let owner = fixture.state.join("owner");
    let own = fs::read(&owner).expect("it has a name");
    fs::write(&owner, "anotherstatedir0\n").expect("it can be written");
    named("lockstep clone destroy dev --lost");
    let refused = lockstep.expect(exit::USAGE, &["clone", "destroy", "dev"]);
    assert_said(&refused, &["by another state_dir", "lockstep clone destroy dev --lost"]);
    is_whole();
    lockstep.expect(exit::DONE, &["clone", "destroy", "dev", "--lost"]);
    fs::write(&owner, own).expect("it can be written");
    assert_nothing_remains(&fixture, &[], "a forgotten clone was destroyed");

    // What was promoted belongs to somebody.
    lockstep.clone_create("dev", &[]).server().stop(Stop::Fast);
    fs::remove_file(state.join("clones/dev.json")).expect("its record");
    let clones = fixture.clones();
    for clone in &clones {
        zfs(&["promote", &clone.name]);
    }
    let checked = lockstep.run(&["check"]);
    assert!(!checked.stdout.contains("clone destroy"), "{}", checked.describe());
    lockstep.expect(exit::USAGE, &["clone", "destroy", "dev"]);
    for clone in &clones {
        let (original, _) = clone.origin.split_once('@').expect("a snapshot");
        zfs(&["promote", original]);
    }
    fs::write(&record, "{").expect("it can be written");
    lockstep.expect(exit::DONE, &["clone", "destroy", "dev"]);
    assert_nothing_remains(&fixture, &[], "it is a clone again, and was destroyed");
    fs::write(&record, "{").expect("it can be written");
    let refused = lockstep.expect(exit::FAILED, &["clone", "destroy", "dev"]);
    assert_said(
        &refused,
        &["dev.json\" is damaged", "clone destroy dev --lost removes the record"],
    );
    lockstep.expect(exit::DONE, &["clone", "destroy", "dev", "--lost"]);
    assert!(!record.exists());

    // As older versions made them, without a random mark.
    for is_known in [true, false] {
        lockstep.clone_create("dev", &[]);
        let path = state.join("clones/dev.json");
        is_an_older_version_s(&state.join("clone-data/dev"), &path);
        let text = fs::read_to_string(&path).expect("its record");
        let id = property(&fixture.clones()[0].name, "lockstep:restore");
        fs::write(&path, text.replace(&id, "clone-dev")).expect("it can be written");
        for clone in fixture.clones() {
            zfs(&["set", "lockstep:restore=clone-dev", &clone.name]);
        }
        assert_eq!(lockstep.json(&["clone", "list"])["clones"][0]["name"], "dev");
        if !is_known {
            fs::remove_file(&path).expect("it is there");
        }
        lockstep.expect(exit::DONE, &["clone", "destroy", "dev"]);
        assert_nothing_remains(&fixture, &[], "an older version's clone was destroyed");
    }
}
