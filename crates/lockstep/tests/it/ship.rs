//! Sets in a repository: shipped while the cluster is under load, restored as datasets, compared with the snapshots
//! file by file, started and checked.

use std::fs;

use crate::support::checker::Checker;
use crate::support::cluster::Stop;
use crate::support::commands::pretending;
use crate::support::fixture::Fixture;
use crate::support::layout::{Layout, nested_wal, two_pools_four_datasets};
use crate::support::ledger::{Expected, Ledger};
use crate::support::load::{Load, Plan};
use crate::support::lockstep::{Lockstep, Set, exit, json_of};
use crate::support::pools::zfs;
use crate::support::shipping::{NAME, assert_received, discard, folder, packs, with_repository};
use serde_json::json;

const SCALE: u32 = 2;

struct Prepared {
    fixture: Fixture,
    ledger: Ledger,
    lockstep: Lockstep,
}

fn prepare(layout: Layout) -> Prepared {
    let fixture = Fixture::new(layout);
    fixture.pgbench_tables(SCALE);
    let ledger = Ledger::create(&fixture.cluster, "ts1", "ts2");
    let lockstep = with_repository(&fixture);
    Prepared { fixture, ledger, lockstep }
}

impl Prepared {
    fn parent(&self, name: &str) -> String {
        format!("{}/{name}", self.fixture.pools[0].name)
    }

    /// Restores a set from the repository into datasets, compares, starts and checks.
    fn proves(&self, set: &Set, expected: Expected) {
        let parent = self.parent(&format!("r{}", &set.id[set.id.len() - 4..]));
        let directory = self.fixture.target(&set.id);
        let more = ["--from", "repository", "--as", "zfs", "--dataset", &parent];
        let restored = self.lockstep.restore_and_start(&set.id, &directory, &more);
        assert_received(&self.fixture, set, &parent);
        let checker = Checker::new(SCALE).with_ledger(&self.ledger, expected);
        checker.check_and_stop(restored.server()).assert_right(&set.id);
        discard(&self.fixture, &directory, &parent);
    }
}

/// Other tools remove their snapshots, and `prune` removes sets, while a shipment looks for what it is an increment to.
#[test]
fn a_snapshot_that_is_gone_when_its_guid_is_asked_for() {
    let fixture = Fixture::new(two_pools_four_datasets());
    let lockstep = with_repository(&fixture);
    let dataset = &fixture.datasets[0];
    for name in ["one", "two", "three"] {
        zfs(&["snapshot", &format!("{dataset}@{name}")]);
    }
    // When this is asked for, it is gone.
    let without = |snapshot: &str, name: &str| {
        let cases = format!(
            "'get -Hp -o name,property,value guid,createtxg '*'{snapshot}'*)\n\
             zfs release lockstep '{snapshot}'; zfs destroy '{snapshot}'; exec zfs \"$@\";;"
        );
        pretending(&fixture, &lockstep, name, &cases)
    };
    let older = without(&format!("{dataset}@two"), "theirs").backup("label").id;
    lockstep.backup("label");
    let last = without(&format!("{dataset}@lockstep-{older}"), "own").backup("label");
    let shipped = &last.json["repositories"][0];
    assert_eq!(shipped["complete"], true, "{}", last.json);
    let volumes = shipped["volumes"].as_array().expect("volumes");
    assert!(volumes.iter().all(|volume| volume["base"] != json!(null)), "increments: {shipped}");
    for name in ["one", "three"] {
        zfs(&["destroy", &format!("{dataset}@{name}")]);
    }
    let left = fixture.snapshots();
    assert!(!left.contains(&format!("{dataset}@two")), "it wasn't asked for: {left:?}");
    assert!(!left.contains(&format!("{dataset}@lockstep-{older}")), "{left:?}");
}

/// Only the user of this process should see these.
#[test]
fn sets_and_a_repository_s_folder_are_private() {
    use std::os::unix::fs::PermissionsExt;
    let fixture = Fixture::new(two_pools_four_datasets());
    let lockstep = with_repository(&fixture);
    lockstep.expect(crate::support::lockstep::exit::DONE, &["backup", "--no-ship"]);
    let alone = lockstep.json(&["list"])["sets"][0]["in_repositories"].clone();
    assert_eq!(alone, serde_json::json!([]), "it was shipped nowhere");
    // This host knows where a set is stored without asking the store.
    lockstep.backup("label");
    let listed = lockstep.json(&["list"])["sets"][1]["in_repositories"].clone();
    assert_eq!(listed[0]["repository"], crate::support::shipping::NAME, "{listed}");
    assert!(listed[0]["shipped_at"].is_string(), "{listed}");
    let done = crate::support::lockstep::exit::DONE;
    let table = lockstep.expect(done, &["list"]).stdout;
    assert!(
        table.contains("REPOSITORIES") && table.contains(crate::support::shipping::NAME),
        "{table}"
    );
    let shown = lockstep.expect(done, &["show", "latest"]).stdout;
    assert!(shown.contains("offsite: since "), "{shown}");
    // Without its name `ship` would ship the newest one.
    let older = lockstep.sets()[0].clone();
    let shown = lockstep.expect(done, &["show", &older]).stdout;
    let way = format!(" ship {older} --repository offsite` brings it there");
    assert!(shown.contains("offsite: no; ") && shown.contains(&way), "{shown}");
    for folder in
        [crate::support::shipping::folder(&fixture), fixture.state.join("clusters/main/sets")]
    {
        let mode = std::fs::metadata(&folder).expect("it is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o700, "{}", folder.display());
    }
    // WAL from the repository has the mode that PostgreSQL gives it.
    let to = fixture.target("private");
    let words = ["restore", "latest", "--from", "repository", "--to"];
    let to = to.to_str().expect("the harness' own paths are UTF-8");
    lockstep.expect(done, &[&words[..], &[to]].concat());
    let restored = std::path::Path::new(to).join("data/pg_wal");
    let files = fs::read_dir(&restored).expect("it is there").flatten();
    let modes = files.filter_map(|file| file.metadata().ok().filter(|of| of.is_file()));
    let modes: Vec<_> = modes.map(|of| of.permissions().mode() & 0o7777).collect();
    assert!(!modes.is_empty() && modes.iter().all(|mode| *mode == 0o600), "{modes:?}");
}

#[test]
fn sets_under_load_come_back_as_datasets() {
    let prepared = prepare(two_pools_four_datasets());
    let writers = prepared.ledger.start(&prepared.fixture.cluster);
    let load = Load::start(&prepared.fixture.cluster, &["ts1", "ts2", "pg_default"], &Plan::all(7));
    let mut sets = Vec::new();
    for strategy in ["label", "ordered", "label"] {
        let set = prepared.lockstep.backup(strategy);
        let expected = prepared.ledger.expected(set.floor_lsn);
        let there = &set.json["repositories"][0];
        assert_eq!(there["complete"], true, "{there}");
        assert_eq!(there["bad_pages"], 0, "{there}");
        let full = there["volumes"].as_array().expect("volumes");
        assert_eq!(full.len(), 3, "pg_wal's volume isn't stored: {there}");
        assert!(full.iter().all(|volume| volume["base"].is_null() == sets.is_empty()), "{there}");
        sets.push((set, expected));
    }
    load.stop();
    writers.stop();
    // What was printed then is what the repository says now.
    let then = &sets[0].0.json["repositories"][0]["volumes"];
    let listed = prepared.lockstep.json(&["list", "--from", "repository"]);
    assert_eq!(listed["sets"][0]["stored"], *then);
    let id = sets[0].0.id.as_str();
    let shown = prepared.lockstep.json(&["show", id, "--from", "repository"]);
    assert_eq!((&shown["stored"], shown["set"].as_str()), (then, Some(id)));
    assert_eq!(shown["wal"]["stored"], "files");
    let told = prepared.lockstep.expect(0, &["show", id, "--from", "repository"]).stdout;
    assert!(told.contains("START WAL LOCATION") && told.contains(": block by block"), "{told}");
    // Not the newest first: each needs its own fold.
    for (set, expected) in sets {
        prepared.proves(&set, expected);
    }
}

/// A file's content was left out because of its place, then it is moved to where everything is kept: an increment
/// wouldn't have its content.
#[test]
fn what_was_left_out_and_is_needed_comes_whole() {
    let prepared = prepare(two_pools_four_datasets());
    let data = &prepared.fixture.cluster.data;
    let (left_out, kept) = (data.join("pg_stat_tmp/x"), data.join("x"));
    std::fs::write(&left_out, vec![7; 300_000]).expect("it is writable");
    let first = prepared.lockstep.backup("label");
    let left = &first.json["repositories"][0]["volumes"][0]["left_out"];
    assert!(left.to_string().contains("state of the running server"), "{left}");
    std::fs::rename(&left_out, &kept).expect("it can be moved");
    let second = prepared.lockstep.backup("label");
    let volumes = second.json["repositories"][0]["volumes"].as_array().expect("volumes");
    let is_full: Vec<bool> = volumes.iter().map(|volume| volume["base"].is_null()).collect();
    assert_eq!(is_full.iter().filter(|full| **full).count(), 1, "{volumes:?}");
    for set in [second, first] {
        prepared.proves(&set, Expected::default());
    }
}

/// After a clean shutdown, unlogged tables are kept: no increment has what the previous set left out of them.
#[test]
fn a_cold_set_with_an_unlogged_table_begins_a_new_chain() {
    let prepared = prepare(nested_wal());
    let cluster = &prepared.fixture.cluster;
    cluster.execute(&["CREATE UNLOGGED TABLE u AS SELECT n FROM generate_series(1, 1000) n"]);
    let first = prepared.lockstep.backup("label");
    let parent = prepared.parent("kept");
    let directory = prepared.fixture.target("kept");
    let mut more = vec!["--from", "repository", "--as", "zfs", "--dataset", &parent];
    prepared.lockstep.restore(&first.id, &directory, &more);
    cluster.stop(Stop::Fast);
    let second = prepared.lockstep.backup("cold");
    let volumes = second.json["repositories"][0]["volumes"].as_array().expect("volumes");
    let is_full = volumes.iter().any(|volume| volume["base"].is_null());
    assert!(is_full, "an increment would do: {volumes:?}");
    more.push("--delta");
    let to = directory.to_str().expect("UTF-8");
    let arguments = ["restore", &second.id, "--to", to].into_iter().chain(more);
    let refused = prepared.lockstep.expect(exit::REFUSED, &arguments.collect::<Vec<_>>()).stderr;
    let older = format!(
        "@lockstep-{} is older than lockstep-{}, the snapshot with which",
        first.id, second.id
    );
    for words in [older.as_str(), "was sent there again", "leave out --delta"] {
        assert!(refused.contains(words), "{words}: {refused}");
    }
    discard(&prepared.fixture, &directory, &parent);
    let directory = prepared.fixture.target("cold");
    let more = ["--from", "repository", "--as", "zfs", "--dataset", &parent];
    let restored = prepared.lockstep.restore_and_start(&second.id, &directory, &more);
    assert_eq!(restored.server().value("postgres", "SELECT count(*) FROM u"), "1000");
    restored.server().stop(Stop::Fast);
    discard(&prepared.fixture, &directory, &parent);
    cluster.start();
}

#[test]
fn an_unchanged_cluster_ships_next_to_nothing() {
    let prepared = prepare(nested_wal());
    prepared.fixture.cluster.stop(Stop::Fast);
    let first = prepared.lockstep.backup("cold");
    let before: u64 = packs(&prepared.fixture).values().sum();
    let second = prepared.lockstep.backup("cold");
    let after: u64 = packs(&prepared.fixture).values().sum();
    assert!(after - before < before / 20, "{before} bytes, then {} more", after - before);
    assert_eq!(second.json["repositories"][0]["already"], false, "{}", second.json);
    // If a set exists already, that is said, and not what it cost then.
    let again = prepared.lockstep.json(&["ship", &second.id])["repositories"][0].clone();
    assert_eq!(again["already"], true, "{again}");
    assert_eq!(again["shipped_at"], second.json["repositories"][0]["shipped_at"], "{again}");
    let said = prepared.lockstep.expect(0, &["ship", &second.id]).stdout;
    assert!(said.contains("there already, since") && !said.contains("sent,"), "{said}");
    prepared.fixture.cluster.start();
    for set in [first, second] {
        prepared.proves(&set, Expected::default());
    }
}

/// While the repository can't be reached, sets stay on this host; then they are shipped in order, each based on the
/// one before.
#[test]
fn what_a_repository_missed_is_made_up_for() {
    let fixture = Fixture::new(two_pools_four_datasets());
    let lockstep = with_repository(&fixture);
    let mut sets = vec![lockstep.backup("label").id];
    let away = fixture.root().join("away");
    fs::rename(folder(&fixture), &away).expect("it can be moved");
    for _ in 0..2 {
        let taken = lockstep.expect(exit::PROBLEMS, &["--json", "backup"]);
        sets.push(json_of(&taken)["set"].as_str().expect("an id").to_owned());
    }
    let missing = ["ship", "--missing", "--json"];
    let failed = lockstep.expect(exit::PROBLEMS, &missing);
    assert!(failed.stderr.contains("mounted?"), "{}", failed.describe());
    fs::rename(&away, folder(&fixture)).expect("it can be moved");
    sets.sort();

    let shipped = lockstep.json(&missing);
    let shipped = shipped["sets"].as_array().expect("a list").clone();
    let ids: Vec<_> = shipped.iter().map(|one| one["set"].as_str().expect("an id")).collect();
    assert_eq!(ids, sets[1..]);
    for one in &shipped {
        let there = &one["repositories"][0];
        assert_eq!(
            (&there["complete"], &there["already"]),
            (&json!(true), &json!(false)),
            "{there}"
        );
        let volumes = there["volumes"].as_array().expect("volumes");
        assert!(volumes.iter().all(|volume| !volume["base"].is_null()), "increments: {there}");
    }
    let listed = lockstep.json(&["list", "--from", "repository"]);
    let there: Vec<_> = listed["sets"].as_array().expect("a list").iter().collect();
    assert_eq!(
        there.iter().map(|set| set["set"].as_str().expect("an id")).collect::<Vec<_>>(),
        sets
    );
    let again = lockstep.expect(exit::DONE, &["ship", "--missing"]);
    assert!(
        again.stdout.contains("each of this host's sets is there, or was and is pruned"),
        "{}",
        again.describe()
    );
    // A set that was there and was pruned isn't shipped again.
    let prune = ["prune", "--repository", NAME, "--set", &sets[0]];
    lockstep.expect(exit::DONE, &prune);
    assert_eq!(lockstep.json(&missing)["sets"].as_array().map(Vec::len), Some(0));

    // The same repository under a mistyped cluster name: it looks empty, but isn't.
    let path = fixture.root().join("shipping.toml");
    let text = fs::read_to_string(&path).expect("the configuration");
    fs::write(&path, text.replace("[clusters.main", "[clusters.mian")).expect("it can be written");
    let listed = lockstep.expect(exit::DONE, &["list", "--from", "repository"]);
    let said = "clusters that are in it: main; is this one called so?";
    assert!(listed.stderr.contains(said), "{}", listed.describe());
    let to = fixture.target("mistyped");
    let to = to.to_str().expect("the harness' own paths are UTF-8");
    for set in ["latest", &sets[1]] {
        let words = ["restore", set, "--to", to, "--from", "repository"];
        let refused = lockstep.expect(exit::USAGE, &words);
        assert!(refused.stderr.contains(said), "{}", refused.describe());
    }
    fs::write(&path, text).expect("it can be written");
}
