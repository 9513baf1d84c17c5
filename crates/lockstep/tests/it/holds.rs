//! Holds on several snapshots of which one is held already: OpenZFS then holds none of the others.

use crate::support::pools::{Pool, property, release_and_destroy, zfs};
use crate::support::workspace::Workspace;
use lockstep::volume::zfs::{DatasetName, SnapshotName, Zfs};

#[test]
fn what_is_held_already_keeps_no_other_from_being_held() {
    let workspace = Workspace::new();
    let pool = Pool::create(&workspace.name, &workspace.root.join("pool.img"), 128 << 20);
    let snapshots: Vec<SnapshotName> = ["a", "b", "c"]
        .iter()
        .map(|name| {
            let dataset = pool.dataset(name, &workspace.root.join(name), &[]);
            zfs(&["snapshot", &format!("{dataset}@s")]);
            DatasetName::new(&dataset).expect("ZFS took it").snapshot("s")
        })
        .collect();
    let held = || -> Vec<String> {
        snapshots.iter().map(|one| property(&one.to_string(), "userrefs")).collect()
    };
    let ours = Zfs::new();
    ours.hold(&snapshots[1..2]).expect("it can be held");
    assert_eq!(held(), ["0", "1", "0"]);
    for _ in 0..2 {
        ours.hold(&snapshots).expect("holding twice is fine");
        assert_eq!(held(), ["1", "1", "1"]);
    }
    let gone = DatasetName::new(&pool.name).expect("ZFS took it").snapshot("gone");
    let error = ours.hold(&[snapshots[0].clone(), gone]).expect_err("one isn't there");
    assert!(error.to_string().contains("does not exist"), "{error}");
    for snapshot in &snapshots {
        release_and_destroy(&snapshot.to_string());
    }
}
