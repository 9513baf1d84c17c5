//! A repository that lost something: nothing is based on what isn't whole, and what is shipped next can be restored.

use crate::support::checker::Checker;
use crate::support::fixture::Fixture;
use crate::support::layout::two_pools_four_datasets;
use crate::support::lockstep::{Lockstep, Set, exit, json_of};
use crate::support::shipping::{NAME, folder, objects, packs, with_options, with_repository};
use std::fs;
use std::path::PathBuf;

const SCALE: u32 = 2;

struct Harmed {
    fixture: Fixture,
    lockstep: Lockstep,
}

impl Harmed {
    fn new() -> Harmed {
        let fixture = Fixture::new(two_pools_four_datasets());
        fixture.pgbench_tables(SCALE);
        let lockstep = with_repository(&fixture);
        Harmed { fixture, lockstep }
    }

    fn backup(&self) -> Set {
        let change = "UPDATE pgbench_accounts SET filler = md5(random()::text) WHERE aid % 50 = 0";
        self.fixture.cluster.execute(&[change]);
        self.lockstep.backup("label")
    }

    /// The same if sets of the repository aren't whole: they are named, and no others.
    #[track_caller]
    fn backup_beside(&self, harmed: &[&Set]) -> Set {
        let change = "UPDATE pgbench_accounts SET filler = md5(random()::text) WHERE aid % 50 = 0";
        self.fixture.cluster.execute(&[change]);
        let backup = ["--json", "backup", "--strategy", "label"];
        let json = json_of(&self.lockstep.expect(exit::PROBLEMS, &backup));
        let set = Set::of(&json);
        assert_eq!(not_whole(&json), ids(harmed), "{json}");
        self.assert_checked(&ids(harmed));
        set
    }

    /// Checks what `check` says about the repository's sets.
    #[track_caller]
    fn assert_checked(&self, harmed: &[&str]) {
        let outcome = self.lockstep.run(&["--json", "check"]);
        let json = json_of(&outcome);
        let findings = json["findings"].as_array().expect("`check --json` has findings");
        let said = findings.iter().map(|finding| finding["what"].to_string());
        let said: Vec<_> = said.filter(|what| what.contains("whole there")).collect();
        assert_eq!(said.len(), usize::from(!harmed.is_empty()), "{json}");
        let newest = harmed.last().copied().unwrap_or_default();
        assert!(said.iter().all(|what| what.contains(newest)), "{said:?}");
        // Who lists the sets, or looks at one of them, learns it too.
        let listed = self.lockstep.run(&["--json", "list", "--from", "repository"]);
        let json = json_of(&listed);
        let damaged = json["damaged"].as_array().expect("`list --json` has damaged sets").iter();
        let damaged = damaged.filter(|set| set["error"].to_string().contains("isn't whole in"));
        let damaged: Vec<_> = damaged.filter_map(|set| set["set"].as_str()).collect();
        assert_eq!(damaged, harmed, "{json}");
        if !harmed.is_empty() {
            // Its label may be gone, too.
            let shown = self.lockstep.run(&["show", newest, "--from", "repository"]);
            let is_told = shown.stderr.contains("isn't whole in");
            assert!(!shown.ok() && is_told, "{}", shown.describe());
        }
    }

    /// The pack with pgbench's tables in it.
    fn largest_pack(&self) -> PathBuf {
        let all = packs(&self.fixture);
        all.into_iter().max_by_key(|(_, size)| *size).expect("there are packs").0
    }

    fn try_restore(&self, set: &Set) -> crate::support::command::Outcome {
        let to = self.fixture.target(&set.id);
        let to = to.to_str().expect("the harness' own paths are UTF-8");
        self.lockstep.run(&[
            "restore",
            &set.id,
            "--from",
            "repository",
            "--as",
            "files",
            "--to",
            to,
        ])
    }

    #[track_caller]
    fn proves(&self, set: &Set) {
        let directory = self.fixture.target(&set.id);
        let more = ["--from", "repository", "--as", "files"];
        let restored = self.lockstep.restore_and_start(&set.id, &directory, &more);
        Checker::new(SCALE).check_and_stop(restored.server()).assert_right(&set.id);
        fs::remove_dir_all(&directory).expect("it can be removed");
    }
}

fn ids<'a>(sets: &[&'a Set]) -> Vec<&'a str> {
    sets.iter().map(|set| set.id.as_str()).collect()
}

/// The sets that `ship --json` or `backup --json` says aren't whole.
fn not_whole(json: &serde_json::Value) -> Vec<&str> {
    let all = json["repositories"][0]["not_whole"].as_array();
    all.into_iter().flatten().filter_map(|harm| harm["set"].as_str()).collect()
}

/// How many volumes were stored in full, according to the output of `ship --json` or `backup --json`.
fn fulls(json: &serde_json::Value) -> usize {
    let volumes = json["repositories"][0]["volumes"].as_array();
    let volumes = volumes.unwrap_or_else(|| panic!("not shipped: {json}"));
    volumes.iter().filter(|volume| volume["base"].is_null()).count()
}

#[test]
fn nothing_is_put_on_top_of_a_chain_that_lost_a_pack_or_a_delta() {
    let harmed = Harmed::new();
    let first = harmed.backup();
    let pack = harmed.largest_pack();
    let second = harmed.backup();
    assert_eq!((fulls(&first.json), fulls(&second.json)), (3, 0));
    fs::remove_file(&pack).expect("the test may delete it");
    assert!(!harmed.try_restore(&second).ok(), "it needs what is gone");

    // Only the volume with the damaged chain is sent in full.
    let change = "UPDATE pgbench_accounts SET filler = 'third' WHERE aid % 70 = 0";
    harmed.fixture.cluster.execute(&[change]);
    harmed.assert_checked(&[&first.id, &second.id]);
    let outcome =
        harmed.lockstep.expect(exit::PROBLEMS, &["--json", "backup", "--strategy", "label"]);
    let name = pack.file_name().and_then(|name| name.to_str()).expect("names are ASCII");
    for words in ["not whole, so nothing new is based on it", name, "is gone"] {
        assert!(outcome.stderr.contains(words), "{words:?}: {}", outcome.describe());
    }
    let third = Set::of(&json_of(&outcome));
    assert_eq!(fulls(&third.json), 1, "{}", third.json);
    assert_eq!(not_whole(&third.json), [&*first.id, &*second.id]);
    harmed.proves(&third);

    // The previous set's delta itself, of all volumes.
    for volume in third.json["repositories"][0]["volumes"].as_array().expect("volumes") {
        let name = format!("{}.json", volume["delta"].as_str().expect("a delta"));
        let all = objects(&harmed.fixture);
        let path = all.keys().find(|path| path.ends_with(&name)).expect("it is there");
        fs::remove_file(path).expect("the test may delete it");
    }
    let fourth = harmed.backup_beside(&[&first, &second, &third]);
    harmed.proves(&fourth);
    // It is reported again, even if the newest set is whole, until they are gone.
    let fifth = harmed.backup_beside(&[&first, &second, &third]);
    assert_eq!(fulls(&fifth.json), 0, "it goes on from what is whole: {}", fifth.json);
    harmed.proves(&fifth);
    let [first, second, third] = [&first, &second, &third].map(|set| set.id.as_str());
    let prune = ["prune", "--repository", NAME, "--set", first, "--set", second, "--set", third];
    harmed.lockstep.run(&prune);
    harmed.assert_checked(&[]);
    harmed.backup();
}

/// `ship --full` replaces what is there, and so repairs what comes after.
#[test]
fn a_set_shipped_in_full_mends_those_that_come_after() {
    let harmed = Harmed::new();
    let first = harmed.backup();
    let pack = harmed.largest_pack();
    let second = harmed.backup();
    let third = harmed.backup();
    fs::remove_file(&pack).expect("the test may delete it");
    for set in [&first, &second, &third] {
        assert!(!harmed.try_restore(set).ok(), "{} needs what is gone", set.id);
    }
    // It exists already: without --full nothing is done, and it isn't reported as well.
    let said = harmed.lockstep.expect(exit::PROBLEMS, &["--json", "ship", &second.id]);
    let shipped = json_of(&said);
    assert_eq!(not_whole(&shipped), ids(&[&first, &second, &third]), "{shipped}");
    assert!(said.stderr.contains("isn't whole") && said.stderr.contains("ship --full"), "{said:?}");
    assert!(!harmed.try_restore(&second).ok());
    let full = ["--json", "ship", "--full", &second.id];
    let shipped = json_of(&harmed.lockstep.expect(exit::PROBLEMS, &full));
    assert_eq!(fulls(&shipped), 3, "{shipped}");
    assert_eq!(not_whole(&shipped), [&*first.id], "what comes before isn't mended");
    harmed.proves(&second);
    harmed.proves(&third);
    let said = harmed.try_restore(&first);
    assert!(!said.ok(), "what comes before is as it was");
    let check = format!("`lockstep repo check {NAME} --read-data`");
    assert!(said.stderr.contains(&check), "{}", said.describe());
    harmed.lockstep.run(&["prune", "--repository", NAME, "--set", &first.id]);
    harmed.assert_checked(&[]);
    // The next set continues from there; a new chain is begun if that is requested.
    let fourth = harmed.backup();
    assert_eq!(fulls(&fourth.json), 0, "{}", fourth.json);
    let fifth = harmed.lockstep.json(&["backup", "--no-ship"]);
    let shipped = harmed.lockstep.json(&["ship", "--full"]);
    assert_eq!((fulls(&shipped), &shipped["set"]), (3, &fifth["set"]), "{shipped}");
    harmed.proves(&fourth);
    harmed.proves(&Set::of(&fifth));
}

/// All deltas, or all packs, are gone: the manifests alone look fine.
#[test]
fn a_repository_that_has_manifests_alone_is_not_well() {
    let harmed = Harmed::new();
    let sets = [harmed.backup(), harmed.backup()];
    let sets = [&sets[0], &sets[1]];
    harmed.assert_checked(&[]);
    for lost in ["packs", "volumes"] {
        let place = folder(&harmed.fixture).join("clusters/main").join(lost);
        let away = harmed.fixture.root().join("away");
        fs::rename(&place, &away).expect("the test may");
        harmed.assert_checked(&ids(&sets));
        let shipped = json_of(&harmed.lockstep.expect(exit::PROBLEMS, &["--json", "ship"]));
        assert_eq!(not_whole(&shipped), ids(&sets), "{lost}: {shipped}");
        fs::rename(&away, &place).expect("the test may");
        harmed.assert_checked(&[]);
        harmed.lockstep.expect(exit::DONE, &["ship"]);
    }
    // A backup finds it too, before anything is noted.
    let place = folder(&harmed.fixture).join("clusters/main/volumes");
    fs::remove_dir_all(place).expect("the test may");
    harmed.backup_beside(&sets);
}

/// A check found a damaged pack, and the newest set, of another chain, doesn't need it.
#[test]
fn what_a_check_found_damaged_is_told_until_a_check_finds_it_good() {
    let harmed = Harmed::new();
    let first = harmed.backup();
    let pack = harmed.largest_pack();
    let second = harmed.backup();
    // Sets of the same second have no order.
    std::thread::sleep(std::time::Duration::from_millis(1100));
    harmed.lockstep.json(&["backup", "--no-ship"]);
    let shipped = harmed.lockstep.json(&["ship", "--full"]);
    assert_eq!(fulls(&shipped), 3, "{shipped}");
    let good = fs::read(&pack).expect("it is readable");
    let mut bad = good.clone();
    bad[good.len() / 2] ^= 1;
    fs::write(&pack, bad).expect("the test may write there");
    harmed.assert_checked(&[]);
    harmed.lockstep.expect(exit::PROBLEMS, &["repo", "check", NAME, "--read-data"]);
    harmed.assert_checked(&[&first.id, &second.id]);
    fs::write(&pack, good).expect("the test may write there");
    harmed.lockstep.expect(exit::DONE, &["repo", "check", NAME]);
    harmed.assert_checked(&[]);
}

/// They can't be restored, so they use up no place of those that can.
#[test]
fn a_prune_keeps_what_can_be_restored_beside_what_is_not_whole() {
    let harmed = Harmed::new();
    // Sets of the same second have no order.
    let backup = || {
        std::thread::sleep(std::time::Duration::from_millis(1100));
        harmed.backup()
    };
    let first = backup();
    let before = packs(&harmed.fixture);
    let second = backup();
    let mut new = packs(&harmed.fixture);
    new.retain(|path, _| !before.contains_key(path));
    let third = backup();
    let lost = new.into_iter().max_by_key(|(_, size)| *size).expect("it stored something").0;
    fs::remove_file(lost).expect("the test may delete it");

    let retention = "\n[clusters.main.retention]\nrepository = { last = 2 }\n";
    let lockstep = with_options(&harmed.fixture, retention);
    let prune = ["--json", "prune", "--repository", NAME];
    for more in [&["--dry-run"][..], &[]] {
        let outcome = lockstep.expect(exit::PROBLEMS, &[&prune[..], more].concat());
        for set in [&second, &third] {
            let words = format!("set {} is left: it isn't whole", set.id);
            assert!(outcome.stderr.contains(&words), "{}", outcome.describe());
        }
        let removed = &json_of(&outcome)["places"][0]["removed"];
        assert_eq!(removed.as_array().map(Vec::len), Some(0), "{}", outcome.describe());
    }
    harmed.proves(&first);
    // Once they are whole, they count.
    lockstep.expect(exit::DONE, &["ship", "--full", "--repository", NAME, &second.id]);
    let pruned = lockstep.json(&["prune", "--repository", NAME]);
    assert_eq!(pruned["places"][0]["removed"], serde_json::json!([first.id]), "{pruned}");
    harmed.proves(&third);
}
