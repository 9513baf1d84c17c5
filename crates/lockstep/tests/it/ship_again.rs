//! A set that is shipped again in full, and files stored with a set that were damaged before it is shipped: what the
//! repository has never gets worse.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use crate::support::cluster::Stop;
use crate::support::fixture::Fixture;
use crate::support::layout::two_pools_four_datasets;
use crate::support::lockstep::{Lockstep, Set, exit};
use crate::support::shipping::{NAME, folder, objects, with_repository};
use lockstep::config::RepositoryConfig;
use lockstep::repository::{Repository, files};
use lockstep::set::manifest::hash_file;
use strata::delta::ImageOptions;
use strata::store::{ObjectStorage, Retries, Store};

const FROM: [&str; 4] = ["--from", "repository", "--as", "files"];

fn volume<'a>(set: &'a Set, fixture: &Fixture, mount: &str) -> &'a serde_json::Value {
    let volumes = set.json["repositories"][0]["volumes"].as_array().expect("it was shipped");
    let is_it = |volume: &&serde_json::Value| {
        let dataset = volume["dataset"].as_str().expect("a name");
        dataset.starts_with(&fixture.pools[0].name) && dataset.ends_with(mount)
    };
    volumes.iter().find(is_it).expect("it is among them")
}

/// The rows of the unlogged table when the set is restored.
fn rows(fixture: &Fixture, lockstep: &Lockstep, set: &Set) -> String {
    let directory = fixture.target(&set.id);
    let restored = lockstep.restore_and_start(&set.id, &directory, &FROM);
    let rows = restored.server().value("postgres", "SELECT count(*) FROM passing");
    restored.server().stop(Stop::Fast);
    fs::remove_dir_all(&directory).expect("it can be removed");
    rows
}

/// A set of a stopped cluster needs unlogged tables, one of a running cluster doesn't. Shipping the middle one in
/// full must not take from the later one what that has from before both.
#[test]
fn a_full_in_the_place_of_an_increment_leaves_out_no_more_than_that_did() {
    let fixture = Fixture::new(two_pools_four_datasets());
    let lockstep = with_repository(&fixture);
    fixture.cluster.execute(&[
        "CREATE UNLOGGED TABLE passing TABLESPACE ts1 AS SELECT generate_series(1, 20000) n",
    ]);
    fixture.cluster.stop(Stop::Fast);
    lockstep.backup("cold");
    fixture.cluster.start();
    let running = lockstep.backup("label");
    fixture.cluster.stop(Stop::Fast);
    let stopped = lockstep.backup("cold");
    fixture.cluster.start();
    let ts1 = volume(&stopped, &fixture, "ts1");
    assert!(!ts1["base"].is_null(), "an increment: {ts1}");
    assert_eq!(rows(&fixture, &lockstep, &stopped), "20000");

    lockstep.expect(exit::DONE, &["ship", "--full", &running.id]);
    assert_eq!(rows(&fixture, &lockstep, &stopped), "20000", "after a full of the set before");
    assert_eq!(rows(&fixture, &lockstep, &running), "0", "unlogged tables end with recovery");

    // The same if what it replaces is completely gone.
    let name =
        format!("{}.json", volume(&running, &fixture, "ts1")["delta"].as_str().expect("a delta"));
    let all = objects(&fixture);
    fs::remove_file(all.keys().find(|path| path.ends_with(&name)).expect("it is there"))
        .expect("the test may delete it");
    lockstep.expect(exit::DONE, &["ship", "--full", &running.id]);
    assert_eq!(rows(&fixture, &lockstep, &stopped), "20000", "after a full of one that was gone");
}

fn beside(fixture: &Fixture, set: &str, name: &str) -> PathBuf {
    let mut waiting = vec![fixture.state.clone()];
    while let Some(folder) = waiting.pop() {
        for entry in fs::read_dir(&folder).expect("state_dir can be listed").flatten() {
            let path = entry.path();
            if path.is_dir() {
                waiting.push(path);
            } else if path.ends_with(format!("{set}/{name}")) {
                return path;
            }
        }
    }
    panic!("no {name} of {set} in {}", fixture.state.display());
}

#[test]
fn files_that_are_not_what_the_manifest_says_are_not_shipped() {
    let fixture = Fixture::new(two_pools_four_datasets());
    let lockstep = with_repository(&fixture);
    let good = lockstep.backup("label");
    let set = Set::of(&lockstep.json(&["backup", "--strategy", "label", "--no-ship"]));
    let words = "isn't what its manifest says";
    for (id, ship) in [(&set.id, &["ship"][..]), (&good.id, &["ship", "--full"])] {
        let label = beside(&fixture, id, "backup_label");
        let mut content = fs::read(&label).expect("it can be read");
        content[7] ^= 1;
        fs::write(&label, &content).expect("it can be written");
        let mut arguments = ship.to_vec();
        arguments.push(id);
        let outcome = lockstep.expect(exit::PROBLEMS, &arguments);
        assert!(outcome.stderr.contains(words), "{}", outcome.describe());
    }
    let sets = lockstep.json(&["list", "--from", "repository"]);
    assert_eq!(sets["sets"].as_array().map(Vec::len), Some(1), "{sets}");
    // What was good is still as good.
    let restored = lockstep.restore_and_start(&good.id, &fixture.target("good"), &FROM);
    restored.server().stop(Stop::Fast);
}

/// Every object is whole, and still the set can't be restored.
#[test]
fn a_check_that_reads_data_compares_a_sets_files_with_its_manifest() {
    let fixture = Fixture::new(two_pools_four_datasets());
    let lockstep = with_repository(&fixture);
    let (first, second) = (lockstep.backup("label"), lockstep.backup("label"));
    lockstep.expect(exit::DONE, &["repo", "check", "--read-data"]);

    let other = fixture.root().join("another label");
    fs::write(&other, "START WAL LOCATION: 0/0").expect("it can be written");
    let name = || "backup_label".to_owned();
    let hashes = BTreeMap::from([(name(), hash_file(&other).expect("it can be read"))]);
    let storage = ObjectStorage::folder(&folder(&fixture)).expect("it is a folder");
    let store = Store::shared(Arc::new(storage), Retries::default());
    let repository = Repository {
        name: "test".into(),
        config: toml::from_str::<RepositoryConfig>("url = 'file:///unused'").expect("a URL"),
        id: "test".into(),
        strata: strata::Repository::new(store, "clusters/main", None).expect("it is one"),
    };
    let names = BTreeMap::from([(name(), other)]);
    files::store(&repository, &first.id, &hashes, &names, &ImageOptions::default(), &|| Ok(()))
        .expect("it can be stored");

    lockstep.expect(exit::DONE, &["repo", "check"]);
    let outcome = lockstep.run(&["--json", "repo", "check", "--read-data"]);
    assert!(!outcome.ok(), "{}", outcome.describe());
    let said = &outcome.stdout;
    let words =
        format!("these files of set {} aren't what its manifest says: backup_label", first.id);
    assert!(said.contains(&words) && !said.contains(&second.id), "{}", outcome.describe());
    // The hint's command repairs this set, not the newest.
    let mends = ["ship", "--full", "--repository", NAME, &first.id];
    assert!(said.contains(&mends.join(" ")), "{}", outcome.describe());
    lockstep.expect(exit::DONE, &mends);
    lockstep.expect(exit::DONE, &["repo", "check", "--read-data"]);
}
