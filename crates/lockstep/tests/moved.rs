//! Datasets that were sent elsewhere and have their old names again, and datasets below one that is readonly: sets restore
//! as before, and the next shipment is an increment.

mod support;

use serde_json::json;
use support::cluster::Stop;
use support::command::{command, must};
use support::fixture::Fixture;
use support::layout::two_pools_four_datasets;
use support::lockstep::exit;
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
