//! Round after round into a repository: load of every kind, sets shipped, sets pruned at random on the host and in
//! the repository, and those that are left restored in either form, compared with the contents of their snapshots,
//! started and checked in full.
//!
//! `LOCKSTEP_TORTURE_ROUNDS` says how many sets (8, or as many as [`Rounds`] lets a slow machine begin),
//! `LOCKSTEP_TORTURE_SEED` which choices (it is printed), `LOCKSTEP_TORTURE_REPOSITORY` where to ship to instead of a
//! folder: the lines of the repository's table, beginning with its url.

use crate::support::checker::Checker;
use crate::support::command::{command, must};
use crate::support::fixture::{Fixture, assert_clean};
use crate::support::layout::two_pools_four_datasets;
use crate::support::ledger::{Expected, Ledger};
use crate::support::load::{Load, Plan};
use crate::support::lockstep::{Lockstep, Set};
use crate::support::rounds::Rounds;
use crate::support::shipping::{NAME, assert_received_as, discard, tree, with_options};
use std::collections::BTreeMap;
use std::fs;

const SCALE: u32 = 2;
const DEFAULT_ROUNDS: u64 = 8;
/// The approximate number of sets in the repository at the same time.
const KEPT: usize = 6;

/// What is known about a set: the set, what its cluster must hold, and the contents of its snapshots.
struct Known {
    set: Set,
    expected: Expected,
    trees: BTreeMap<String, BTreeMap<String, String>>,
}

#[test]
fn sets_pruned_at_random_and_any_left_restores() {
    let rounds = Rounds::of("shipments", DEFAULT_ROUNDS);
    let seed = rounds.seed;
    let mut random = fastrand::Rng::with_seed(seed);
    let fixture = Fixture::new(two_pools_four_datasets().zeros());
    // Half of them with records of several pages, of which only the changed pages are stored.
    for (dataset, place) in fixture.datasets.iter().zip(&fixture.layout.datasets) {
        if ["data", "ts1"].contains(&place.mount.as_str()) {
            must(&mut command("zfs", ["set", "recordsize=128K", dataset]));
        }
    }
    fixture.pgbench_tables(SCALE);
    let lockstep = configured(&fixture);
    let ledger = Ledger::create(&fixture.cluster, "ts1", "ts2");
    let mut known: BTreeMap<String, Known> = BTreeMap::new();
    for round in 0..rounds.count {
        if rounds.end_after(usize::try_from(round).expect("few rounds"), 3) {
            break;
        }
        let writers = ledger.start(&fixture.cluster);
        let load =
            Load::start(&fixture.cluster, &["ts1", "ts2", "pg_default"], &Plan::all(seed ^ round));
        std::thread::sleep(std::time::Duration::from_millis(random.u64(..2000)));
        let set = lockstep.backup(["label", "ordered"][random.usize(..2)]);
        let expected = ledger.expected(set.floor_lsn);
        load.stop();
        writers.stop();
        assert_eq!(set.json["repositories"][0]["complete"], true, "round {round}: {}", set.json);
        let trees = trees(&fixture, &set);
        known.insert(set.id.clone(), Known { set, expected, trees });

        // The newest stays on both sides.
        while known.len() > KEPT || (known.len() > 2 && random.u8(..3) == 0) {
            let victim = random.usize(..known.len() - 1);
            let id = known.keys().nth(victim).cloned().expect("one of them");
            lockstep.json(&["prune", "--repository", NAME, "--set", &id]);
            known.remove(&id);
        }
        let local = lockstep.sets();
        for id in &local[..local.len() - 1] {
            if random.bool() {
                lockstep.json(&["prune", "--local", "--set", id]);
            }
        }
        assert_clean(&fixture);
        if random.u8(..4) == 0 {
            lockstep.json(&["repo", "compact", NAME]);
        }
        let chosen = random.usize(..known.len());
        let chosen = known.values().nth(chosen).expect("one of them");
        let form = ["zfs", "files"][random.usize(..2)];
        println!("round {round}: {} sets, {} as {form}", known.len(), chosen.set.id);
        prove(&fixture, &lockstep, &ledger, chosen, form);
    }
    let checked = lockstep.json(&["repo", "check", NAME, "--read-data"]);
    println!("{checked}");
    // All that are left, each in the form that it hasn't been restored in by chance.
    for (n, one) in known.values().enumerate() {
        prove(&fixture, &lockstep, &ledger, one, ["files", "zfs"][n % 2]);
    }
}

fn configured(fixture: &Fixture) -> Lockstep {
    match std::env::var("LOCKSTEP_TORTURE_REPOSITORY") {
        Err(_) => with_options(fixture, "grace_hours = 0"),
        Ok(table) => {
            let mut text = fixture.configuration("auto", true);
            text.push_str(&format!("repositories = [\"{NAME}\"]\n\n[repositories.{NAME}]\n"));
            text.push_str(&format!("{table}\ngrace_hours = 0\n"));
            let path = fixture.root().join("shipping.toml");
            fs::write(&path, text).expect("the configuration can be written");
            let lockstep = Lockstep::new(&path, &fixture.cluster.bin);
            lockstep.json(&["repo", "init", NAME]);
            lockstep
        }
    }
}

fn trees(fixture: &Fixture, set: &Set) -> BTreeMap<String, BTreeMap<String, String>> {
    let stored = set.volumes.iter().filter(|volume| volume.parts != ["wal"]);
    stored.map(|volume| (volume.snapshot.clone(), tree(fixture, &volume.snapshot))).collect()
}

fn prove(fixture: &Fixture, lockstep: &Lockstep, ledger: &Ledger, one: &Known, form: &str) {
    let set = &one.set;
    let parent = format!("{}/back", fixture.pools[0].name);
    let directory = fixture.target(&format!("{form}-{}", set.id));
    let mut more = vec!["--from", "repository", "--as", form];
    if form == "zfs" {
        more.extend(["--dataset", &parent]);
    }
    let restored = lockstep.restore_and_start(&set.id, &directory, &more);
    if form == "zfs" {
        assert_received_as(fixture, set, &parent, &|snapshot| one.trees[snapshot].clone());
    }
    let checker = Checker::new(SCALE).with_ledger(ledger, one.expected);
    checker.check_and_stop(restored.server()).assert_right(&format!("{} as {form}", set.id));
    if form == "zfs" {
        discard(fixture, &directory, &parent);
    } else {
        fs::remove_dir_all(&directory).expect("it can be removed");
    }
}
