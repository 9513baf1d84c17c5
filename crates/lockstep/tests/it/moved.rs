//! Datasets that were sent elsewhere and have their old names again, datasets below a readonly one, pools that were
//! imported below a folder, and a state_dir that was lost or put back: sets restore as before, and the next shipment
//! is an increment. Also datasets that a restore can't use as they are: that is reported before anything is made or
//! changed.

use crate::support::cluster::Stop;
use crate::support::command::{Outcome, command, must};
use crate::support::commands::{continuing, pretending, suspending, unhealthy};
use crate::support::faults::{
    assert_nothing_remains, assert_said, differences, restore_arguments, walk,
};
use crate::support::fixture::Fixture;
use crate::support::layout::{one_pool, two_pools_four_datasets};
use crate::support::lockstep::{LIMIT, Lockstep, Steps, exit, toml_string};
use crate::support::pools::{
    destroy, path_with_turns, patiently, property, release_and_destroy, try_zfs, zfs,
};
use crate::support::shipping::{folder, other_host, with_options, with_repository};
use serde_json::json;
use std::fs;
use std::path::Path;

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
    let (dataset, old) = receive_anew(&fixture);
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
    // The copy now belongs to the set. The original belongs to nobody, and the test removes it.
    let snapshots = fixture.pools.iter().flat_map(|pool| pool.snapshots());
    for snapshot in snapshots.filter(|name| name.starts_with(&format!("{old}@"))) {
        crate::support::pools::release_and_destroy(&snapshot);
    }
    zfs(&["destroy", &old]);
    zfs(&["destroy", &format!("{dataset}@moved")]);
}

/// A pool may have readonly=on at its top, while datasets that are written to override it: what Lockstep makes must
/// do so too.
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
    crate::support::shipping::discard(&fixture, &directory, &parent);
    for pool in &fixture.pools {
        zfs(&["set", "readonly=off", &pool.name]);
    }
}

/// If state_dir is lost, what is left of its sets is adopted with the repository's help: they can be restored from
/// the snapshots, are the base of the next increment, and are removed by policy, as before.
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
    // A damaged manifest is written again.
    let manifest = fixture.state.join("clusters/main/sets").join(&second).join("manifest.json");
    fs::write(&manifest, "{").expect("it can be written");
    lockstep.expect(exit::DONE, &["adopt", &second]);
    assert_eq!(lockstep.json(&["list"])["damaged"], json!([]));
    // Nobody can vouch for a set that no repository has.
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

    // Now it is only in the repository, and nothing of it is made here.
    let named = lockstep.run(&["adopt", &first]);
    assert_eq!(named.code, Some(exit::PROBLEMS), "{}", named.describe());
    assert!(named.stdout.contains("is in the repository alone"), "{}", named.describe());
    assert!(!lockstep.sets().contains(&first));
    lockstep.expect(exit::USAGE, &["adopt", "2031"]);
    for snapshot in left.iter().filter(|name| name.contains(lost)) {
        crate::support::pools::release_and_destroy(snapshot);
    }
}

/// Puts a copy of ts1's dataset, with all its snapshots, in the place of the original; returns the name of both. The server
/// is stopped.
#[track_caller]
fn receive_anew(fixture: &Fixture) -> (String, String) {
    let place = fixture.layout.datasets.iter().position(|dataset| dataset.mount == "ts1");
    let dataset = &fixture.datasets[place.expect("it has ts1")];
    let (old, new) = (format!("{dataset}-old"), format!("{dataset}-new"));
    let mountpoint = property(dataset, "mountpoint");
    zfs(&["snapshot", &format!("{dataset}@moved")]);
    let send = format!("zfs send -R {dataset}@moved | zfs receive -u {new}");
    must(&mut command("sh", ["-c", &send]));
    zfs(&["unmount", dataset]);
    zfs(&["set", "mountpoint=none", dataset]);
    zfs(&["rename", dataset, &old]);
    zfs(&["rename", &new, dataset]);
    zfs(&["set", &format!("mountpoint={mountpoint}"), dataset]);
    let _ = try_zfs(&["mount", dataset]);
    (dataset.clone(), old)
}

/// Snapshots that were received, as another host's pool brings them, have other transaction groups than the manifest says.
/// Once they are adopted, they are found after a `zfs rename` all the same.
#[test]
fn an_adopted_set_is_found_after_a_rename() {
    let fixture = Fixture::new(two_pools_four_datasets());
    let lockstep = with_repository(&fixture);
    let [first, _] = [(); 2].map(|()| lockstep.backup("label").id);
    fixture.cluster.stop(Stop::Fast);
    let (dataset, old) = receive_anew(&fixture);
    let renamed = format!("{dataset}-renamed");
    // Who took them is gone, with its snapshots.
    let snapshots = || fixture.pools.iter().flat_map(|pool| pool.snapshots());
    for snapshot in snapshots().filter(|name| name.starts_with(&format!("{old}@"))) {
        release_and_destroy(&snapshot);
    }
    destroy(&old);
    fs::remove_dir_all(&fixture.state).expect("it is there");
    lockstep.expect(exit::DONE, &["adopt"]);
    patiently("zfs", &["rename", &dataset, &renamed], || ()).expect("nobody uses it");
    let _ = try_zfs(&["mount", &renamed]);
    let checked = lockstep.run(&["check"]);
    let said = format!("\"{renamed}@lockstep-{first}\"");
    assert!(checked.stdout.contains(&said), "{said}: {}", checked.describe());
    lockstep.expect(exit::DONE, &["prune", "--local", "--set", &first]);
    let left: Vec<_> = snapshots().filter(|name| name.ends_with(&first)).collect();
    assert_eq!(left, [""; 0]);
    patiently("zfs", &["rename", &renamed, &dataset], || ()).expect("nobody uses it");
    let _ = try_zfs(&["mount", &dataset]);
    destroy(&format!("{dataset}@moved"));
    fixture.cluster.start();
}

/// The set is good: whoever wants to use it is told what its snapshot is called now, and not how to be rid of the set.
#[test]
fn nobody_is_told_to_remove_a_set_whose_dataset_was_renamed() {
    let fixture = Fixture::new(two_pools_four_datasets());
    let lockstep = fixture.lockstep();
    let set = lockstep.backup("label");
    fixture.cluster.stop(Stop::Fast);
    let place = fixture.layout.datasets.iter().position(|dataset| dataset.mount == "ts2");
    let dataset = &fixture.datasets[place.expect("it has ts2")];
    let renamed = format!("{dataset}-renamed");
    patiently("zfs", &["rename", dataset, &renamed], || ()).expect("nobody uses it");
    let to = fixture.target("r");
    let way_back = format!("it is \"{renamed}@lockstep-{}\" now", set.id);
    for (arguments, code) in [
        (restore_arguments(&set.id, &to, &[]), exit::REFUSED),
        (vec!["clone", "create", "c", "--set", &set.id], exit::REFUSED),
        (vec!["show", &set.id], exit::PROBLEMS),
    ] {
        let outcome = lockstep.run(&arguments);
        assert_eq!(outcome.code, Some(code), "{}", outcome.describe());
        assert_said(&outcome, &[&way_back]);
        assert!(!outcome.stderr.contains("prune --local"), "{}", outcome.describe());
    }
    patiently("zfs", &["rename", &renamed, dataset], || ()).expect("nobody uses it");
    let restored = lockstep.restore_and_start(&set.id, &to, &[]);
    restored.server().stop(Stop::Fast);
}

/// The program with the same configuration, but this state_dir.
fn with_state(fixture: &Fixture, name: &str) -> Lockstep {
    let text = fs::read_to_string(fixture.root().join("shipping.toml")).expect("the configuration");
    let state = toml_string(&fixture.root().join(name));
    let path = fixture.root().join(format!("{name}.toml"));
    fs::write(&path, text.replace(&toml_string(&fixture.state), &state))
        .expect("it can be written");
    Lockstep::new(&path, &fixture.cluster.bin)
}

/// A state_dir was believed lost, another one adopted its sets, and then it came back; or it came back without its
/// own id.
#[test]
fn sets_with_another_state_dir_s_marks_are_taken_back_by_name() {
    let fixture = Fixture::new(two_pools_four_datasets());
    let lockstep = with_repository(&fixture);
    let [first, second] = [(); 2].map(|()| lockstep.backup("label").id);
    let other = with_state(&fixture, "other");
    assert_eq!(other.json(&["adopt"])["adopted"].as_array().map(Vec::len), Some(2));
    let owners = |set: &str| -> Vec<String> {
        let snapshots = fixture.snapshots().into_iter().filter(|name| name.ends_with(set));
        snapshots.map(|name| property(&name, "lockstep:owner")).collect()
    };
    let owner = |state: &Path| fs::read_to_string(state.join("owner")).expect("it has an id");
    let (own, theirs) = (owner(&fixture.state), owner(&fixture.root().join("other")));
    assert!(owners(&first).iter().all(|found| found == theirs.trim()));

    // As far as anybody knows, both are in use: only sets that are named are taken from the other one.
    let removal = ["prune", "--local", "--set", &first];
    let left = lockstep.expect(exit::PROBLEMS, &removal);
    assert_said(&left, &["belongs to another state_dir", &format!("lockstep adopt {first}")]);
    let asked = lockstep.json(&["adopt"]);
    assert_eq!((&asked["adopted"], &asked["known"]), (&json!([]), &json!(2)));
    assert_eq!(asked["marked"][0], json!({"set": first, "owners": [theirs.trim()]}));
    let said = lockstep.expect(exit::DONE, &["adopt"]).stdout;
    assert!(said.contains(&format!("`lockstep adopt {first}` makes it")), "{said}");
    lockstep.expect(exit::DONE, &["adopt", &first, "--dry-run"]);
    assert!(owners(&first).iter().all(|found| found == theirs.trim()));
    // The repository isn't needed for it.
    let away = fixture.root().join("away");
    fs::rename(folder(&fixture), &away).expect("it can be renamed");
    let said = lockstep.expect(exit::DONE, &["adopt", &first]).stdout;
    assert!(said.contains(&format!("state_dir {}, is this host's", theirs.trim())), "{said}");
    fs::rename(&away, folder(&fixture)).expect("it can be renamed");
    assert!(owners(&first).iter().all(|found| found == own.trim()));
    assert!(owners(&second).iter().all(|found| found == theirs.trim()), "it wasn't named");
    assert_said(&other.expect(exit::PROBLEMS, &removal), &["belongs to another state_dir"]);
    lockstep.expect(exit::DONE, &removal);
    assert!(owners(&first).is_empty());

    // Its own id is lost.
    fs::remove_file(fixture.state.join("owner")).expect("it is there");
    let refused = lockstep.expect(exit::FAILED, &["prune", "--local"]);
    assert_said(&refused, &["owner\" is missing", &format!("echo {}", own.trim())]);
    // It begins anew with another one.
    fs::write(fixture.state.join("owner"), "0123456789abcdef\n").expect("it can be written");
    lockstep.expect(exit::DONE, &["adopt", &second]);
    let new = owner(&fixture.state);
    assert!(owners(&second).iter().all(|found| found == new.trim()), "{:?}", owners(&second));
    assert_eq!(lockstep.json(&["adopt"])["known"], 1);
    // A set that isn't whole here isn't adopted.
    let snapshots = fixture.snapshots();
    let gone = snapshots.iter().find(|name| name.ends_with(&second)).expect("it is there");
    crate::support::pools::release_and_destroy(gone);
    let failed = other.expect(exit::PROBLEMS, &["adopt", &second]);
    assert_said(&failed, &["isn't adopted", gone, "isn't here"]);
    lockstep.expect(exit::DONE, &["prune", "--local", "--set", &second]);
}

/// A removal is killed, or held up, and another state_dir adopts the set: the first one's next step, or its next
/// command, leaves it.
#[test]
fn a_set_that_another_state_dir_has_adopted_is_not_removed() {
    let fixture = Fixture::new(two_pools_four_datasets());
    let lockstep = with_repository(&fixture);
    let [first, _] = [(); 2].map(|()| lockstep.backup("label").id);
    let of_first = || -> Vec<_> {
        fixture.snapshots().into_iter().filter(|name| name.ends_with(&first)).collect()
    };
    let (before, removal) = (of_first(), ["prune", "--local", "--set", &first]);
    for (step, is_killed) in
        [("prune.withdrawn", true), ("prune.released", true), ("prune.released", false)]
    {
        let case = format!("{step}, killed: {is_killed}");
        let steps = Steps::new(fixture.root().join("steps"));
        steps.hold(step);
        let mut program = lockstep.clone().with_steps(&steps).spawn(&removal);
        steps.wait_reached(step, &mut program);
        let held_up = match is_killed {
            true => {
                program.kill();
                program.wait(LIMIT);
                None
            }
            false => Some(program),
        };
        let other = with_state(&fixture, &format!("{step}-{is_killed}"));
        other.expect(exit::DONE, &["adopt"]);
        match held_up {
            None => {
                let next = lockstep.run(&["backup", "--no-ship"]);
                assert_said(&next, &["belongs to another state_dir by now"]);
            }
            Some(program) => {
                steps.release(step);
                let left = program.wait(LIMIT);
                assert_eq!(left.code, Some(exit::PROBLEMS), "{case}: {}", left.describe());
            }
        }
        assert_eq!(of_first(), before, "{case}");
        let holds = before.iter().map(|name| property(name, "userrefs"));
        assert!(holds.into_iter().all(|holds| holds == "1"), "{case}: not held");
        // Both have it now; this one takes it back.
        lockstep.expect(exit::DONE, &["adopt", &first]);
    }
    lockstep.expect(exit::DONE, &removal);
    assert_eq!(of_first(), [""; 0]);
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

#[track_caller]
fn assert_refused(code: i32, outcome: &Outcome, words: &[&str]) {
    assert_eq!(outcome.code, Some(code), "{}", outcome.describe());
    assert_said(outcome, &[&["error: ", "hint: "], words].concat());
}

/// `zpool import -R` puts a folder before each mount point, including those that Lockstep sets.
#[test]
fn a_pool_below_a_folder_has_its_datasets_where_they_are_looked_for() {
    let fixture = Fixture::new(one_pool());
    let lockstep = with_repository(&fixture);
    fixture
        .cluster
        .execute(&["CREATE TABLE rows TABLESPACE ts1 AS SELECT generate_series(1, 9) n"]);
    fixture.cluster.stop(Stop::Fast);
    let root = fixture.root().to_str().expect("the harness' own paths are UTF-8");
    let images = fixture.root().join("images");
    let pool = fixture.pools[0].name.clone();
    // Everything is where it was, although the mount points don't say so.
    let places: Vec<_> = fixture.datasets.iter().map(|it| property(it, "mountpoint")).collect();
    patiently("zpool", &["export", &pool], || ()).expect("it can be exported");
    let import = ["import", "-R", root, "-d", images.to_str().expect("UTF-8"), &pool];
    must(command("zpool", import).env("PATH", path_with_turns()));
    for (dataset, place) in fixture.datasets.iter().zip(&places) {
        let inside = place.strip_prefix(root).expect("it lies in the test's folder");
        let words = ["set", &format!("mountpoint={inside}"), dataset];
        patiently("zfs", &words, || ()).expect("nobody uses it");
        let _ = crate::support::pools::try_zfs(&["mount", dataset]);
        assert_eq!(property(dataset, "mountpoint"), *place);
    }
    fixture.cluster.start();
    let set = lockstep.backup("label");
    let rows = "SELECT count(*) FROM rows";

    let directory = fixture.target("clones");
    let restored = lockstep.restore_and_start(&set.id, &directory, &[]);
    assert_eq!(restored.server().value("postgres", rows), "9");
    fixture.discard_restored(&directory, &set.id);
    let clone = lockstep.clone_create("dev", &["--set", &set.id]);
    assert_eq!(clone.server().value("postgres", rows), "9");
    lockstep.expect(exit::DONE, &["clone", "destroy", "dev"]);

    let parent = format!("{pool}/back");
    let directory = fixture.target("received");
    let mut more = vec!["--from", "repository", "--as", "zfs", "--dataset", &parent];
    let restored = lockstep.restore_and_start(&set.id, &directory, &more);
    assert_eq!(restored.server().value("postgres", rows), "9");
    restored.server().stop(Stop::Fast);
    fixture.cluster.execute(&["INSERT INTO rows VALUES (10)"]);
    let second = lockstep.backup("label");
    more.push("--delta");
    let restored = lockstep.restore_and_start(&second.id, &directory, &more);
    assert_eq!(restored.server().value("postgres", rows), "10");
    restored.server().stop(Stop::Fast);
    crate::support::shipping::discard(&fixture, &directory, &parent);

    // Nothing of the pool can be mounted elsewhere.
    let outside = fixture.root().with_extension("outside");
    more.pop();
    for form in [&[][..], &more[..], &[&more[..], &["--dry-run"]].concat()] {
        let outcome = lockstep.run(&restore_arguments(&set.id, &outside, form));
        assert_refused(exit::USAGE, &outcome, &["can't be mounted at", "altroot", root]);
        assert!(!outside.exists());
    }
    assert_nothing_remains(&fixture, &[], "a pool below a folder");
}

/// What ZFS would only refuse half way is found out first: keys that aren't loaded, an interrupted receive, a place
/// that doesn't exist.
#[test]
fn what_zfs_would_refuse_half_way_is_said_before() {
    let fixture = Fixture::new(one_pool());
    let plain = with_repository(&fixture);
    let first = plain.backup("label").id;
    let (locked, begun) = (fixture.root().join("locked"), fixture.root().join("begun"));
    let answers = format!(
        r#""get -Hp -o name,property,value encryption,keystatus,encryptionroot "*)
  shift 5
  for dataset; do
    set -- off - -
    ! grep -qxF "$dataset" '{locked}' || set -- aes-256-gcm unavailable "$dataset"
    printf '%s\tencryption\t%s\n%s\tkeystatus\t%s\n%s\tencryptionroot\t%s\n' "$dataset" "$1" "$dataset" "$2" "$dataset" "$3"
  done;;
"get -Hp -o name,property,value receive_resume_token "*)
  shift 5
  for dataset; do
    token=-
    ! grep -qxF "$dataset" '{begun}' || token=1-abc
    printf '%s\treceive_resume_token\t%s\n' "$dataset" "$token"
  done;;"#,
        locked = locked.display(),
        begun = begun.display()
    );
    let lockstep = pretending(&fixture, &plain, "pretended", &answers);
    let only = |locked_one: &str, begun_one: &str| {
        fs::write(&locked, locked_one).expect("it can be written");
        fs::write(&begun, begun_one).expect("it can be written");
    };
    let to = fixture.target("r");
    let refused = |code: i32, more: &[&str], words: &[&str]| {
        for more in [more, &[more, &["--dry-run"]].concat()] {
            let outcome = lockstep.run(&restore_arguments(&first, &to, more));
            assert_refused(code, &outcome, words);
            assert!(!to.exists(), "{} was made", to.display());
        }
    };
    // Of the dataset that is cloned.
    let origin = fixture.datasets.iter().find(|it| it.ends_with("/data")).expect("it has one");
    only(origin, "");
    let words = ["keys aren't loaded", &format!("`zfs load-key {origin}`")];
    refused(exit::REFUSED, &[], &words);
    refused(exit::REFUSED, &["--start"], &words);
    let outcome = lockstep.run(&["clone", "create", "dev"]);
    assert_refused(exit::REFUSED, &outcome, &words);
    // Of the dataset above.
    let pool = fixture.pools[0].name.clone();
    let above = format!("{pool}/safe");
    zfs(&["create", "-o", "mountpoint=none", &above]);
    only(&above, "");
    let zfs_form = |dataset| ["--from", "repository", "--as", "zfs", "--dataset", dataset];
    let parent = format!("{above}/r");
    let words = ["keys aren't loaded", &format!("`zfs load-key {above}`")];
    refused(exit::REFUSED, &zfs_form(&above), &words);
    refused(exit::REFUSED, &zfs_form(&parent), &words);
    // There is no such place.
    only("", "");
    let (deep, nowhere) = (format!("{pool}/a/b/c"), "no-such-pool/r");
    let words = [&*format!("\"{pool}/a/b\" isn't there"), &format!("`zfs create -p {pool}/a/b`")];
    refused(exit::USAGE, &zfs_form(&deep), &words);
    let words = ["pool \"no-such-pool\"", "`zpool import no-such-pool`"];
    refused(exit::USAGE, &zfs_form(nowhere), &words);
    refused(exit::USAGE, &["--dataset", nowhere], &words);
    refused(exit::USAGE, &["--dataset", &deep], &[&format!("\"{deep}\" isn't there")]);
    assert_nothing_remains(&fixture, &[], "refused restores");

    // Of an older restore, which stays as it is.
    let mut more = zfs_form(&parent).to_vec();
    lockstep.restore(&first, &to, &more);
    let second = plain.backup("label").id;
    more.push("--delta");
    let before = walk(&to);
    let data = format!("{parent}/data");
    let wal = format!("{parent}/wal");
    for (is_locked, is_begun, words) in [
        (&*data, "", ["keys aren't loaded", &*format!("`zfs load-key {data}`")]),
        (&*wal, "", ["keys aren't loaded", &*format!("`zfs load-key {wal}`")]),
        ("", &*data, ["interrupted receive", &*format!("`zfs receive -A {data}`")]),
    ] {
        only(is_locked, is_begun);
        for more in [&more[..], &[&more[..], &["--dry-run"]].concat()] {
            let outcome = lockstep.run(&restore_arguments(&second, &to, more));
            assert_refused(exit::REFUSED, &outcome, &words);
        }
        let changed = differences(&before, &walk(&to));
        assert!(changed.is_empty(), "{words:?}: {changed:?}");
        assert_eq!(property(&data, "mounted"), "yes");
        assert_eq!(property(&data, "canmount"), "on");
    }
    only("", "");
    let restored = lockstep.restore_and_start(&second, &to, &more);
    restored.server().stop(Stop::Fast);
    crate::support::shipping::discard(&fixture, &to, &parent);
}

/// A disk dies during a backup, which is killed then. What it left waits for the pool, and other sets are pruned meanwhile.
#[test]
fn what_a_killed_backup_left_on_a_suspended_pool_waits_for_it() {
    let fixture = Fixture::new(two_pools_four_datasets());
    let plain = with_options(
        &fixture,
        "[clusters.main.retention]
local = { last = 1 }",
    );
    plain.backup("label");
    let steps = Steps::new(fixture.root().join("steps"));
    steps.hold("backup.after-snapshot-1");
    let mut killed = plain.clone().with_steps(&steps).spawn(&["backup", "--no-ship"]);
    steps.wait_reached("backup.after-snapshot-1", &mut killed);
    killed.kill();
    killed.wait(LIMIT);
    let pool = &fixture.pools[0].name;
    let lockstep = suspending(&fixture, &plain, pool);
    let pruned = lockstep.expect(exit::PROBLEMS, &["prune", "--local"]);
    assert_said(&pruned, &["what it left stays for now"]);
    assert!(!pruned.stderr.contains("removing what"), "{}", pruned.describe());
    // The pool is back.
    plain.expect(exit::DONE, &["backup", "--no-ship"]);
    let checked = plain.run(&["check"]);
    assert!(!checked.stdout.contains("was cut off"), "{}", checked.describe());
}

/// A pool that has lost its disks is suspended. What reads a file there waits until the pool is cleared, and can't be
/// killed; a pipe into which nobody writes stands for that. Whatever needs the pool is refused, the rest works.
#[test]
fn what_is_on_a_suspended_pool_is_not_touched() {
    let fixture = Fixture::new(two_pools_four_datasets());
    let plain = with_options(&fixture, "[clusters.main.retention]\nlocal = { last = 1 }");
    let first = plain.backup("label").id;
    let set = plain.backup("label").id;
    fixture.cluster.stop(Stop::Fast);
    let data = &fixture.cluster.data;
    let control = data.join("global/pg_control");
    let kept = data.join("global/pg_control.kept");
    fs::rename(&control, &kept).expect("it can be renamed");
    must(&mut command("mkfifo", [&control]));
    let pool = &fixture.pools[0].name;
    let lockstep = suspending(&fixture, &plain, pool);
    let state = format!("pool \"{pool}\" is suspended");
    let way = format!("zpool clear {pool}");
    let words = [&*state, &*way];

    // Whether or not `zpool list` says it.
    let unlisted = continuing(&fixture, &plain, pool);
    let checked = unlisted.expect(exit::PROBLEMS, &["check"]);
    assert!(checked.stdout.contains(&state), "{}", checked.describe());
    assert_refused(exit::REFUSED, &unlisted.run(&["backup"]), &words);

    // The monitor sees it, and everything else that there is to see.
    let checked = lockstep.expect(exit::PROBLEMS, &["check"]);
    for said in
        [&*state, &way, &format!("zpool status {pool}"), "state_dir can be written to", &set]
    {
        assert!(checked.stdout.contains(said), "{said}: {}", checked.describe());
    }
    let listed = lockstep.expect(exit::PROBLEMS, &["list"]);
    for said in [&*set, &first, &state, &way, "--from repository"] {
        let all = format!("{}{}", listed.stdout, listed.stderr);
        assert!(all.contains(said), "{said}: {}", listed.describe());
    }
    let pruned = lockstep.expect(exit::PROBLEMS, &["prune", "--local", "--dry-run"]);
    let all = format!("{}{}", pruned.stdout, pruned.stderr);
    assert!(all.contains(&state) && all.contains(&way), "{}", pruned.describe());
    let named = ["prune", "--local", "--set", &first, "--dry-run"];
    let named = lockstep.expect(exit::DONE, &named);
    assert_said(&named, &["is given up", &state]);

    // What needs the pool: the snapshots, or a place there.
    let to = fixture.target("files");
    let there = data.with_file_name("r");
    let zfs_form = ["--from", "repository", "--as", "zfs", "--dataset", &format!("{pool}/r")];
    let files = ["--from", "repository", "--as", "files"];
    assert_refused(exit::REFUSED, &lockstep.run(&["backup"]), &words);
    for (to, more) in [(&to, &[][..]), (&to, &zfs_form), (&there, &files)] {
        for more in [more, &[more, &["--dry-run"]].concat()] {
            let outcome = lockstep.run(&restore_arguments("latest", to, more));
            assert_refused(exit::REFUSED, &outcome, &words);
        }
    }
    // The server would get its tablespaces in a place there.
    let starting = [&files[..], &["--start"]].concat();
    let outcome = lockstep.run(&restore_arguments("latest", &to, &starting));
    assert_refused(exit::REFUSED, &outcome, &words);
    // What doesn't need it: this is why one has a repository.
    lockstep.expect(exit::DONE, &restore_arguments("latest", &to, &files));
    assert!(to.join("data/PG_VERSION").exists());
    fs::remove_dir_all(&to).expect("it can be removed");

    fs::rename(&kept, &control).expect("it can be renamed");

    // Nor does another cluster stand in the way: its links aren't read.
    let other = data.with_file_name("other");
    fs::create_dir_all(other.join("global")).expect("a folder can be made");
    fs::create_dir(&to).expect("a folder can be made");
    std::os::unix::fs::symlink(&to, other.join("pg_wal")).expect("a link can be made");
    let configuration = fixture.root().join("shipping.toml");
    let mut text = fs::read_to_string(&configuration).expect("it is there");
    text.push_str(&format!("\n[clusters.other]\ndata_directory = {}\n", toml_string(&other)));
    let two = fixture.root().join("two.toml");
    fs::write(&two, text).expect("it can be written");
    let two = Lockstep::new(&two, &fixture.cluster.bin);
    let arguments = restore_arguments("latest", &to, &files);
    let arguments = [&["--cluster", "main"], &arguments[..]].concat();
    let refused = two.run(&[&arguments[..], &["--dry-run"]].concat());
    assert_refused(exit::REFUSED, &refused, &["\"other\""]);
    unhealthy(&fixture, &two, pool).expect(exit::DONE, &arguments);

    fixture.cluster.start();
    plain.expect(exit::DONE, &["list"]);
}

/// A restore that is a cluster of the configuration by now, and has taken a set: only that cluster can give it up.
#[test]
fn a_restore_that_takes_sets_of_its_own() {
    let fixture = Fixture::new(one_pool());
    let lockstep = with_repository(&fixture);
    let first = lockstep.backup("label").id;
    let parent = format!("{}/copy", fixture.pools[0].name);
    let to = fixture.target("copy");
    let zfs_form = ["--from", "repository", "--as", "zfs", "--dataset", &parent];
    let restored = lockstep.restore_and_start(&first, &to, &zfs_form);
    restored.server().stop(Stop::Fast);
    let configuration = fixture.root().join("shipping.toml");
    let text = fs::read_to_string(&configuration).expect("it is there");
    let copy = format!("\n[clusters.copy]\ndata_directory = {}\n", toml_string(&restored.data));
    let two = fixture.root().join("two.toml");
    fs::write(&two, format!("{text}{copy}")).expect("it can be written");
    let two = Lockstep::new(&two, &fixture.cluster.bin);
    let taken = two.json(&["--cluster", "copy", "backup", "--strategy", "cold"]);
    let taken = taken["set"].as_str().expect("an id");
    fixture.cluster.execute(&["CREATE TABLE later AS SELECT 7 AS n"]);
    let latest = lockstep.backup("label").id;

    let delta = [&zfs_form[..], &["--delta"]].concat();
    let delta = restore_arguments(&latest, &to, &delta);
    let as_main = [&["--cluster", "main"], &delta[..]].concat();
    let prune = ["--cluster", "copy", "prune", "--local", "--set", taken];
    let by_prune = format!("`lockstep {}`", prune.join(" "));
    let refused = two.expect(exit::REFUSED, &as_main);
    assert_said(&refused, &["of cluster \"copy\"", &by_prune, "restore to another --dataset"]);
    assert!(!refused.stderr.contains("zfs destroy"), "{}", refused.describe());
    // The same where the cluster was taken out of the configuration.
    let refused = lockstep.expect(exit::REFUSED, &delta);
    assert_said(&refused, &["put it back into the configuration", &by_prune]);
    // Another host sees only that it isn't its own.
    let stranger = other_host(&fixture, "stranger", &fixture.root().join("nowhere"));
    let refused = stranger.expect(exit::REFUSED, &delta);
    assert_said(&refused, &["of another state_dir", taken, "zfs release lockstep"]);

    two.expect(exit::DONE, &prune);
    let port = crate::support::fixture::free_port().to_string();
    let as_main = [&as_main[..], &["--start", "--port", &port]].concat();
    let restored = two.restored(&two.json(&as_main));
    let server = restored.server();
    assert_eq!(server.value("postgres", "SELECT n FROM later"), "7");
    server.stop(Stop::Fast);
}
