//! Datasets that were sent elsewhere and have their old names again, datasets below one that is readonly, and a state_dir
//! that was lost: sets restore as before, and the next shipment is an increment.

mod support;

use serde_json::json;
use std::fs;
use support::cluster::Stop;
use support::command::{command, must};
use support::fixture::Fixture;
use support::layout::two_pools_four_datasets;
use support::lockstep::{LIMIT, Lockstep, Steps, exit};
use support::pools::zfs;
use support::shipping::with_repository;

/// As `zfs send -R | zfs receive` moves a pool to other disks: names and GUIDs stay, transaction groups don't.
#[test]
fn a_dataset_that_was_received_has_its_sets() {
    let fixture = Fixture::new(two_pools_four_datasets());
    let lockstep = with_repository(&fixture);
    fixture
        .cluster
        .execute(&["CREATE TABLE rows TABLESPACE ts1 AS SELECT generate_series(1, 5000) n"]);
    lockstep.backup("label");
    fixture.cluster.execute(&["INSERT INTO rows VALUES (5001)"]);
    let unshipped = lockstep.json(&["backup", "--no-ship"]);
    let unshipped = unshipped["set"].as_str().expect("an id");
    fixture.cluster.stop(Stop::Fast);
    let place = fixture.layout.datasets.iter().position(|dataset| dataset.mount == "ts1");
    let dataset = &fixture.datasets[place.expect("it has ts1")];
    let (old, new) = (format!("{dataset}-old"), format!("{dataset}-new"));
    let mountpoint = support::pools::property(dataset, "mountpoint");
    zfs(&["snapshot", &format!("{dataset}@moved")]);
    let send = format!("zfs send -R {dataset}@moved | zfs receive -u {new}");
    must(&mut command("sh", ["-c", &send]));
    zfs(&["unmount", dataset]);
    zfs(&["set", "mountpoint=none", dataset]);
    zfs(&["rename", dataset, &old]);
    zfs(&["rename", &new, dataset]);
    zfs(&["set", &format!("mountpoint={mountpoint}"), dataset]);
    let _ = support::pools::try_zfs(&["mount", dataset]);
    fixture.cluster.start();

    let checked = lockstep.run(&["check", "--json"]);
    assert!(!checked.stdout.contains("isn't the one of set"), "{}", checked.describe());
    let directory = fixture.target("moved");
    let restored = lockstep.restore_and_start(unshipped, &directory, &[]);
    assert_eq!(restored.server().value("postgres", "SELECT count(*) FROM rows"), "5001");
    fixture.discard_restored(&directory, unshipped);
    let shipped = &lockstep.json(&["ship", unshipped])["repositories"][0];
    let volumes = shipped["volumes"].as_array().expect("volumes");
    assert!(volumes.iter().all(|volume| volume["base"] != json!(null)), "increments: {shipped}");
    // The copy is the set's now; what it was received from is nobody's, and the test's to remove.
    let snapshots = fixture.pools.iter().flat_map(|pool| pool.snapshots());
    for snapshot in snapshots.filter(|name| name.starts_with(&format!("{old}@"))) {
        support::pools::release_and_destroy(&snapshot);
    }
    zfs(&["destroy", &old]);
    zfs(&["destroy", &format!("{dataset}@moved")]);
}

/// A pool may have readonly=on at its top, and what is written says otherwise: so must what Lockstep makes.
#[test]
fn what_is_made_below_a_readonly_dataset_can_be_written() {
    let fixture = Fixture::new(two_pools_four_datasets());
    let lockstep = with_repository(&fixture);
    fixture
        .cluster
        .execute(&["CREATE TABLE rows TABLESPACE ts1 AS SELECT generate_series(1, 1000) n"]);
    let set = lockstep.backup("label");
    for dataset in &fixture.datasets {
        zfs(&["set", "readonly=off", dataset]);
    }
    for pool in &fixture.pools {
        zfs(&["set", "readonly=on", &pool.name]);
    }
    let rows = "SELECT count(*) FROM rows";
    let directory = fixture.target("clones");
    let restored = lockstep.restore_and_start(&set.id, &directory, &[]);
    assert_eq!(restored.server().value("postgres", rows), "1000");
    fixture.discard_restored(&directory, &set.id);
    lockstep.expect(exit::DONE, &["clone", "create", "dev"]);
    lockstep.expect(exit::DONE, &["clone", "destroy", "dev"]);
    let parent = format!("{}/back", fixture.pools[0].name);
    let directory = fixture.target("received");
    let from = ["--from", "repository", "--as", "zfs", "--dataset", &parent];
    let restored = lockstep.restore_and_start(&set.id, &directory, &from);
    assert_eq!(restored.server().value("postgres", rows), "1000");
    restored.server().stop(Stop::Fast);
    support::shipping::discard(&fixture, &directory, &parent);
    for pool in &fixture.pools {
        zfs(&["set", "readonly=off", &pool.name]);
    }
}

/// What is left of sets where state_dir is gone is taken up from the repository: restored from the snapshots, the beginning of
/// the next increment, and removed by policy, as before.
#[test]
fn a_lost_state_dir_s_sets_are_taken_up() {
    let fixture = Fixture::new(two_pools_four_datasets());
    let lockstep = with_repository(&fixture);
    let insert = |n: u32| fixture.cluster.execute(&[&format!("INSERT INTO rows VALUES ({n})")]);
    fixture.cluster.execute(&["CREATE TABLE rows (n int) TABLESPACE ts1"]);
    insert(1);
    let first = lockstep.backup("label").id;
    insert(10);
    let second = lockstep.backup("ordered").id;
    let lost = lockstep.json(&["backup", "--no-ship"]);
    let lost = lost["set"].as_str().expect("an id");
    fs::remove_dir_all(&fixture.state).expect("it is there");

    let checked = lockstep.run(&["check"]);
    assert!(checked.stdout.contains("`lockstep adopt` takes up"), "{}", checked.describe());
    let dry = lockstep.json(&["adopt", "--dry-run"]);
    assert_eq!(dry["adopted"].as_array().map(Vec::len), Some(2), "{dry}");
    assert_eq!(dry["adopted"][0]["owners"].as_array().map(Vec::len), Some(1), "{dry}");
    assert!(lockstep.sets().is_empty(), "a dry run took something up");
    for step in ["adopt.fetched", "adopt.marked"] {
        kill_at(&fixture, &lockstep, step);
        assert!(lockstep.sets().is_empty(), "{step}: half a set");
    }
    let taken = lockstep.json(&["adopt"]);
    assert_eq!(taken["adopted"].as_array().map(Vec::len), Some(2), "{taken}");
    assert_eq!(lockstep.sets(), [&*first, &*second]);
    assert_eq!(lockstep.json(&["adopt"])["known"], 2);
    // A manifest that is damaged is written anew.
    let manifest = fixture.state.join("clusters/main/sets").join(&second).join("manifest.json");
    fs::write(&manifest, "{").expect("it can be written");
    lockstep.expect(exit::DONE, &["adopt", &second]);
    assert_eq!(lockstep.json(&["list"])["damaged"], json!([]));
    // What no repository has nobody can vouch for.
    let checked = lockstep.run(&["check"]);
    assert!(checked.stdout.contains(lost), "{}", checked.describe());

    let directory = fixture.target("first");
    let restored = lockstep.restore_and_start(&first, &directory, &[]);
    assert_eq!(restored.server().value("postgres", "SELECT sum(n) FROM rows"), "1");
    fixture.discard_restored(&directory, &first);
    let next = lockstep.json(&["backup"]);
    let volumes = &next["repositories"][0]["volumes"];
    let volumes = volumes.as_array().expect("volumes");
    assert!(volumes.iter().all(|volume| volume["base"] != json!(null)), "increments: {next}");
    lockstep.expect(exit::DONE, &["prune", "--local", "--set", &first]);
    let left: Vec<_> = fixture.pools.iter().flat_map(|pool| pool.snapshots()).collect();
    assert!(!left.iter().any(|name| name.contains(&first)), "{left:?}");

    // Now it is in the repository alone, and nothing of it is made here.
    let named = lockstep.run(&["adopt", &first]);
    assert_eq!(named.code, Some(exit::PROBLEMS), "{}", named.describe());
    assert!(named.stdout.contains("is in the repository alone"), "{}", named.describe());
    assert!(!lockstep.sets().contains(&first));
    lockstep.expect(exit::USAGE, &["adopt", "2031"]);
    for snapshot in left.iter().filter(|name| name.contains(lost)) {
        support::pools::release_and_destroy(snapshot);
    }
}

fn kill_at(fixture: &Fixture, lockstep: &Lockstep, step: &str) {
    let steps = Steps::new(fixture.root().join("steps"));
    steps.hold(step);
    let mut program = lockstep.clone().with_steps(&steps).spawn(&["adopt"]);
    steps.wait_reached(step, &mut program);
    program.kill();
    program.wait(LIMIT);
    steps.release(step);
}
