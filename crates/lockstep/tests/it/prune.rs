//! Sets removed by policy: what is kept can be restored, what is removed is gone completely, nothing of anybody
//! else's is touched, and an interrupted removal is finished by the next start.

use std::fs;
use std::path::Path;

use crate::support::checker::Checker;
use crate::support::cluster::Stop;
use crate::support::command::{Outcome, command, must, wait_until};
use crate::support::faults::{
    Hooks, assert_nothing_remains, assert_restorable, assert_said, kill_at, signal_at,
};
use crate::support::fixture::{Fixture, assert_clean};
use crate::support::layout::{one_dataset, two_pools_four_datasets};
use crate::support::ledger::{Expected, Ledger};
use crate::support::load::{Load, Plan};
use crate::support::lockstep::{LIMIT, Lockstep, Set, exit, json_of};
use crate::support::pools::{destroy, patiently, property, release_and_destroy, try_zfs, zfs};
use lockstep::set::manifest::Manifest;
use rustix::process::Signal;
use serde_json::Value;

const SCALE: u32 = 1;

/// A quiet cluster with this retention policy.
fn quiet(retention: &str) -> Fixture {
    let fixture = Fixture::new(two_pools_four_datasets().setting("autovacuum", "off"));
    configure(&fixture, retention);
    fixture
}

/// Writes the configuration with these lines for retention, and `more` in the cluster's table.
fn configure(fixture: &Fixture, retention: &str) {
    configure_with(fixture, "", retention);
}

fn configure_with(fixture: &Fixture, cluster: &str, retention: &str) {
    let text = fixture.configuration("label", true);
    let text = format!("{text}{cluster}\n[clusters.main.retention]\n{retention}\n");
    fs::write(fixture.config(), text).expect("the configuration can be written");
}

/// The place's sets, as `prune --json` reports them.
fn told(json: &Value, place: usize) -> Vec<(String, String)> {
    let sets = json["places"][place]["sets"].as_array().expect("a list of sets");
    let text = |set: &Value, name: &str| set[name].as_str().expect("a text").to_owned();
    sets.iter().map(|set| (text(set, "set"), text(set, "action"))).collect()
}

/// As `list` and `prune` sort them: by id; two of the same second have no order of their own.
fn sorted(sets: &[&Set]) -> Vec<String> {
    let mut ids: Vec<_> = sets.iter().map(|set| set.id.clone()).collect();
    ids.sort();
    ids
}

fn with_action<'a>(told: &'a [(String, String)], action: &str) -> Vec<&'a str> {
    told.iter().filter(|(_, of)| of == action).map(|(set, _)| set.as_str()).collect()
}

/// Sets a set's date back by this many hours, as if it had been taken then.
fn age(fixture: &Fixture, set: &str, hours: i64) {
    let path = fixture.state.join("clusters/main/sets").join(set).join("manifest.json");
    let mut manifest = Manifest::parse(&fs::read(&path).expect("a manifest")).expect("a good one");
    let seconds = manifest.started_at.as_second() - hours * 3600;
    manifest.started_at = jiff::Timestamp::from_second(seconds).expect("a time");
    fs::write(&path, manifest.to_bytes().expect("a manifest")).expect("it can be written");
}

/// The sets that snapshots exist of, each once.
fn sets_with_snapshots(fixture: &Fixture) -> Vec<String> {
    let names = fixture.snapshots().into_iter();
    let names = names.filter_map(|name| Some(name.split_once("@lockstep-")?.1.to_owned()));
    let mut sets: Vec<_> = names.collect();
    sets.sort();
    sets.dedup();
    sets
}

/// Takes sets under load, sets their dates back at random, and prunes by a policy with every rule.
#[test]
fn what_is_kept_restores() {
    let seed = std::env::var("LOCKSTEP_PRUNE_SEED").ok().and_then(|text| text.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..1_000_000));
    println!("LOCKSTEP_PRUNE_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let fixture = Fixture::new(two_pools_four_datasets());
    configure(&fixture, "local = { last = 1, within = '30h', daily = 2, weekly = 2 }");
    fixture.pgbench_tables(SCALE);
    let ledger = Ledger::create(&fixture.cluster, "ts1", "ts2");
    let load = Load::start(&fixture.cluster, &["ts1", "ts2"], &Plan::all(seed));
    let writers = ledger.start(&fixture.cluster);
    let lockstep = fixture.lockstep();
    let mut sets: Vec<(Set, Expected)> = Vec::new();
    for number in 0..7 {
        ledger.wait_for(5);
        let set = lockstep.backup(if number % 2 == 0 { "label" } else { "ordered" });
        let expected = ledger.expected(set.floor_lsn);
        sets.push((set, expected));
    }
    load.stop();
    writers.stop();
    // Ids sort by time, and so do the dates.
    let mut hours: Vec<i64> = (0..6).map(|_| random.i64(1..24 * 21)).collect();
    hours.sort_unstable_by(|a, b| b.cmp(a));
    for ((set, _), hours) in sets.iter().zip(hours) {
        age(&fixture, &set.id, hours);
    }
    let dry = lockstep.expect(exit::DONE, &["prune", "--dry-run", "--json"]);
    let planned = json_of(&dry);
    assert_eq!(lockstep.sets().len(), 7, "a dry run removes nothing");
    let text = lockstep.expect(exit::DONE, &["prune", "--dry-run"]);
    let run = json_of(&lockstep.expect(exit::DONE, &["prune", "--json"]));
    assert_eq!(planned["places"][0]["sets"], run["places"][0]["sets"], "what was planned was run");
    let all = told(&run, 0);
    let (kept, removed) = (with_action(&all, "keep"), with_action(&all, "remove"));
    assert_eq!(run["places"][0]["removed"], serde_json::json!(removed));
    println!("kept {kept:?}, removed {removed:?}");
    for set in &removed {
        let line = text.stdout.lines().find(|line| line.contains(set)).expect("it is in the table");
        assert!(line.contains("would remove"), "{line}");
    }
    assert!(kept.contains(&sets[6].0.id.as_str()), "the newest is always kept");
    assert_eq!(lockstep.sets(), kept);
    assert_eq!(sets_with_snapshots(&fixture), kept);
    assert_nothing_remains(&fixture, &[], "pruned");
    let again = json_of(&lockstep.expect(exit::DONE, &["prune", "--json"]));
    assert_eq!(again["places"][0]["removed"], serde_json::json!([]), "nothing is left to do");
    // The oldest and the newest that are left, and one in between.
    let mut proven = vec![kept[0], kept[random.usize(..kept.len())], kept[kept.len() - 1]];
    proven.dedup();
    for id in proven {
        assert_restorable(&fixture, id);
        let (_, expected) = sets.iter().find(|(set, _)| set.id == id).expect("it was taken");
        let to = fixture.target(id);
        let restored = lockstep.restore_and_start(id, &to, &[]);
        let checker = Checker::new(SCALE).with_ledger(&ledger, *expected);
        checker.check_and_stop(restored.server()).assert_right(id);
        fixture.discard_restored(&to, id);
    }
    let checked = lockstep.run(&["check"]);
    assert!(!checked.stdout.contains("unfinished"), "{}", checked.describe());
    assert_clean(&fixture);
}

/// Nothing configured, nothing kept, a policy for another place: nothing is touched.
#[test]
fn without_a_policy_nothing_is_touched() {
    let fixture = quiet("");
    let lockstep = fixture.lockstep();
    let set = lockstep.backup("label").id;
    for arguments in [&["prune", "--local"][..], &["prune", "--local", "--dry-run"]] {
        let refused = lockstep.expect(exit::USAGE, arguments);
        assert_said(&refused, &["no retention is configured", "nothing is touched", "hint: "]);
    }
    // What README has cron run each night, before anybody has configured retention.
    for arguments in [&["prune"][..], &["prune", "--dry-run"]] {
        let outcome = lockstep.expect(exit::DONE, arguments);
        assert_said(&outcome, &["no retention is configured for cluster \"main\"", "pile up"]);
        assert!(outcome.stdout.contains("this host: no retention"), "{}", outcome.describe());
    }
    let told = lockstep.json(&["prune"]);
    assert_eq!(told["places"][0]["configured"], false, "{told}");
    let checked = lockstep.expect(exit::DONE, &["check"]);
    let warns = "retention: no retention is configured for this host";
    assert!(checked.stdout.contains(warns), "{}", checked.describe());
    configure(&fixture, "repository = { last = 1 }");
    lockstep.expect(exit::USAGE, &["prune", "--local"]);
    let unknown = lockstep.expect(exit::USAGE, &["prune", "--repository", "nosuch"]);
    assert_said(&unknown, &["no repository \"nosuch\""]);
    for (retention, word) in [
        ("local = {}", "local keeps nothing"),
        ("local = { last = 0, daily = 0 }", "local keeps nothing"),
        ("local = { lst = 1 }", "lst"),
        ("local = { within = '7' }", "within"),
    ] {
        configure(&fixture, retention);
        assert_said(&lockstep.expect(exit::USAGE, &["prune"]), &[word]);
    }
    configure(&fixture, "local = { last = 1 }");
    let checked = lockstep.expect(exit::DONE, &["check"]);
    assert!(!checked.stdout.contains(warns), "{}", checked.describe());
    let mut lock = fixture.state.join("clusters/main").into_os_string();
    lock.push("/lock");
    let lock = fs::File::options().read(true).write(true).open(lock).expect("a backup has made it");
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive)
        .expect("nobody has it");
    lockstep.expect(exit::LOCKED, &["prune"]);
    lockstep.expect(exit::DONE, &["prune", "--dry-run"]);
    assert_eq!(lockstep.sets(), [set]);
}

#[track_caller]
fn assert_left(outcome: &Outcome, set: &str, words: &[&str]) {
    assert_eq!(outcome.code, Some(exit::PROBLEMS), "{}", outcome.describe());
    assert_said(outcome, &[&format!("set {set} is left: ")]);
    assert_said(outcome, words);
}

/// Clones of three kinds, a foreign hold, foreign snapshots, and a snapshot that no longer belongs to the set.
#[test]
fn what_is_somebody_s_stays() {
    let fixture = quiet("local = { last = 1 }");
    let lockstep = fixture.lockstep();
    let sets: Vec<Set> = (0..6).map(|_| lockstep.backup("label")).collect();
    let [cloned, restored, by_hand, held, swapped, newest] = &sets[..] else {
        panic!("six sets were taken")
    };
    // Foreign: by name, by property, and by neither.
    let dataset = &fixture.datasets[0];
    let foreign = [
        format!("{dataset}@daily-2026-11-24"),
        format!("{dataset}@lockstep-by-hand"),
        format!("{dataset}@lockstep-20200101T000000Z-aaaa"),
    ];
    zfs(&["snapshot", &foreign[0]]);
    zfs(&["snapshot", &foreign[1]]);
    let properties = ["-o", "lockstep:owner=other", "-o", "lockstep:set=20200101T000000Z-aaaa"];
    zfs(&[&["snapshot"], &properties[..], &[&foreign[2]]].concat());
    let guids: Vec<_> = foreign.iter().map(|name| property(name, "guid")).collect();

    lockstep.clone_create("dev", &["--set", &cloned.id]);
    let to = fixture.target("kept");
    lockstep.restore(&restored.id, &to, &[]);
    let last = by_hand.in_order()[3];
    let own = format!("{}/own", last.dataset.split('/').next().expect("a pool"));
    zfs(&["clone", &last.snapshot, &own]);
    let held_one = &held.in_order()[2].snapshot;
    zfs(&["hold", "mine", held_one]);
    let gone = &swapped.in_order()[1].snapshot;
    release_and_destroy(gone);
    zfs(&["snapshot", gone]);
    let instead = property(gone, "guid");

    let planned = lockstep.expect(exit::PROBLEMS, &["prune", "--dry-run", "--json"]);
    let outcome = lockstep.run(&["prune", "--json"]);
    let run = json_of(&outcome);
    assert_eq!(json_of(&planned)["places"][0]["sets"], run["places"][0]["sets"]);
    let all = told(&run, 0);
    assert_eq!(with_action(&all, "keep"), [&newest.id]);
    assert_eq!(with_action(&all, "left"), sorted(&[cloned, restored, by_hand, held]));
    assert_eq!(with_action(&all, "remove"), [&swapped.id]);
    assert_left(&outcome, &cloned.id, &["is a clone of"]);
    assert_left(&outcome, &restored.id, &["is a clone of"]);
    assert_left(&outcome, &by_hand.id, &[&format!("\"{own}\" is a clone of")]);
    assert_left(&outcome, &held.id, &["somebody else holds", held_one]);
    // Those that are left are whole; the foreign snapshot in a removed set's place belongs to somebody.
    for set in [cloned, restored, by_hand, held, newest] {
        assert_restorable(&fixture, &set.id);
    }
    assert_eq!(property(gone, "guid"), instead);
    let left: Vec<_> =
        fixture.snapshots().into_iter().filter(|name| name.ends_with(&swapped.id)).collect();
    assert_eq!(left, std::slice::from_ref(gone), "all of the set's own are gone");

    lockstep.expect(exit::DONE, &["clone", "destroy", "dev"]);
    fixture.discard_restored(&to, &restored.id);
    destroy(&own);
    zfs(&["release", "mine", held_one]);
    let run = json_of(&lockstep.expect(exit::DONE, &["prune", "--json"]));
    assert_eq!(with_action(&told(&run, 0), "remove").len(), 4);
    assert_eq!(lockstep.sets(), [newest.id.as_str()]);
    for (name, guid) in foreign.iter().zip(&guids) {
        assert_eq!(&property(name, "guid"), guid, "{name} is somebody's");
        destroy(name);
    }
    destroy(gone);
    assert_nothing_remains(&fixture, &[], "pruned");
}

/// A set that can't be read or restored doesn't count for a policy, and is removed or kept, whichever is safe.
#[test]
fn a_damaged_set_counts_for_nothing() {
    let fixture = quiet("local = { last = 2 }");
    let lockstep = fixture.lockstep();
    let sets: Vec<Set> = (0..4).map(|_| lockstep.backup("label")).collect();
    // The newest set has lost a snapshot, the one before it its manifest.
    release_and_destroy(&sets[3].volumes[0].snapshot);
    let manifest = fixture.state.join("clusters/main/sets").join(&sets[2].id).join("manifest.json");
    let good = fs::read(&manifest).expect("a manifest");
    fs::write(&manifest, "{\"version\": 1").expect("the test may write there");
    let outcome = lockstep.run(&["prune", "--json"]);
    let all = told(&json_of(&outcome), 0);
    assert_eq!(with_action(&all, "keep"), sorted(&[&sets[0], &sets[1]]));
    assert_left(&outcome, &sets[2].id, &["damaged"]);
    assert_left(&outcome, &sets[3].id, &["is gone"]);
    fs::write(&manifest, good).expect("the test may write there");
    // There are two newer sets now, so the broken one is due.
    let newer: Vec<Set> = (0..2).map(|_| lockstep.backup("label")).collect();
    lockstep.expect(exit::DONE, &["prune"]);
    assert_eq!(lockstep.sets(), sorted(&[&newer[0], &newer[1]]));
    assert_eq!(sets_with_snapshots(&fixture), lockstep.sets());
    assert_nothing_remains(&fixture, &[], "pruned");
}

/// A set whose manifest can't be read doesn't tell where its snapshots are. If it is named, it is removed with them,
/// and with no others.
#[test]
fn a_damaged_set_is_removed_where_it_is_named() {
    let fixture = quiet("local = { last = 5 }");
    let lockstep = fixture.lockstep();
    let sets: Vec<Set> = (0..3).map(|_| lockstep.backup("label")).collect();
    let manifest =
        |set: &Set| fixture.state.join("clusters/main/sets").join(&set.id).join("manifest.json");
    let good = fs::read_to_string(manifest(&sets[1])).expect("a manifest");
    // One that is truncated, and one that still says where they are; but nothing in it is believed.
    fs::write(manifest(&sets[0]), &good[..good.len() / 2]).expect("the test may write there");
    let changed = good.replacen("\"tries\"", "\"Tries\"", 1);
    assert_ne!(changed, good);
    fs::write(manifest(&sets[1]), changed).expect("the test may write there");
    for set in &sets[..2] {
        let outcome = lockstep.expect(exit::PROBLEMS, &["prune", "--json"]);
        let way_out = format!("lockstep prune --local --set {}", set.id);
        assert_left(&outcome, &set.id, &["damaged", &way_out]);
        let words = ["prune", "--local", "--set", &set.id, "--json"];
        let outcome = lockstep.expect(exit::DONE, &[&words[..], &["--dry-run"]].concat());
        assert_eq!(with_action(&told(&json_of(&outcome), 0), "remove"), [&set.id]);
        assert!(manifest(set).exists() && sets_with_snapshots(&fixture).contains(&set.id));
        // What depends on it keeps it, as for any other set.
        let snapshot = &set.volumes[0].snapshot;
        zfs(&["hold", "mine", snapshot]);
        let outcome = lockstep.expect(exit::PROBLEMS, &words);
        assert_left(&outcome, &set.id, &["somebody else holds", snapshot]);
        zfs(&["release", "mine", snapshot]);
        lockstep.expect(exit::DONE, &words);
        assert!(!sets_with_snapshots(&fixture).contains(&set.id));
    }
    assert_eq!(lockstep.sets(), [sets[2].id.clone()]);
    assert_eq!(sets_with_snapshots(&fixture), lockstep.sets());
    lockstep.expect(exit::DONE, &["prune"]);
    assert_nothing_remains(&fixture, &[], "pruned");
}

/// SIGKILL at every step, then a signal; the next start is a prune or a backup.
#[test]
fn ended_at_each_step() {
    let fixture = quiet("local = { last = 1 }");
    let lockstep = fixture.lockstep();
    let foreign = format!("{}@mine", fixture.datasets[1]);
    zfs(&["snapshot", &foreign]);
    lockstep.backup("label");
    let mut newest = lockstep.backup("label").id;
    let prune = ["prune"];
    let hooks = Hooks::new(&fixture);
    hooks.lockstep().expect(exit::DONE, &prune);
    let steps = hooks.steps.all_reached();
    println!("{} steps: {}", steps.len(), steps.join(" "));
    assert!(steps.len() >= 10, "is it built with its test hooks? {steps:?}");
    for (number, step) in steps.iter().enumerate() {
        let old = newest;
        newest = lockstep.backup("label").id;
        if number % 3 == 2 {
            let signal = if number % 2 == 0 { Signal::INT } else { Signal::TERM };
            let (_, outcome) = signal_at(&fixture, step, signal, &prune);
            let code = outcome.code;
            assert!(code == Some(exit::INTERRUPTED) || code == Some(exit::DONE), "{step}");
        } else {
            kill_at(&fixture, step, &prune);
        }
        // Whole or no set at all.
        let listed = lockstep.sets();
        assert!(listed.contains(&newest), "{step}: {listed:?}");
        listed.iter().for_each(|set| assert_restorable(&fixture, set));
        let withdrawn = !listed.contains(&old);
        if number % 2 == 0 {
            lockstep.expect(exit::DONE, &prune);
        } else {
            newest = lockstep.backup("label").id;
        }
        let after = format!("ended at {step}, next start");
        assert_nothing_remains_but(&fixture, &foreign, &after);
        assert!(!withdrawn || !sets_with_snapshots(&fixture).contains(&old), "{after}");
        lockstep.expect(exit::DONE, &prune);
        assert_eq!(lockstep.sets(), [newest.as_str()], "{after}");
        assert_eq!(sets_with_snapshots(&fixture), [newest.as_str()], "{after}");
        assert_eq!(
            property(&foreign.replace("@mine", &format!("@lockstep-{newest}")), "userrefs"),
            "1"
        );
    }
    assert!(try_zfs(&["list", &foreign]).is_ok(), "it is somebody's");
    destroy(&foreign);
    assert_nothing_remains(&fixture, &[], "at the end");
}

#[track_caller]
fn assert_nothing_remains_but(fixture: &Fixture, foreign: &str, after: &str) {
    crate::support::faults::wait_for_no_session(fixture);
    let mut found = crate::support::faults::remains(fixture, &[]);
    found.retain(|what| *what != format!("snapshot: {foreign}"));
    assert!(found.is_empty(), "{after}: this is left:\n  {}", found.join("\n  "));
}

/// A clone that appears between the plan and the removal: everything is put back.
#[test]
fn a_clone_at_the_last_moment() {
    let fixture = quiet("local = { last = 1 }");
    let lockstep = fixture.lockstep();
    let (old, newest) = (lockstep.backup("label"), lockstep.backup("label"));
    let third = old.in_order()[2];
    let own = format!("{}/own", third.dataset.split('/').next().expect("a pool"));
    for step in ["prune.journal", "prune.withdrawn", "prune.looked"] {
        let hooks = Hooks::holding(&fixture, step);
        let program = hooks.run_to(step, &["prune"]);
        zfs(&["clone", &third.snapshot, &own]);
        hooks.steps.release(step);
        let outcome = program.wait(crate::support::lockstep::LIMIT);
        assert_left(&outcome, &old.id, &["is a clone of"]);
        assert_eq!(lockstep.sets(), sorted(&[&old, &newest]), "{step}");
        assert_restorable(&fixture, &old.id);
        for volume in &old.volumes {
            assert_eq!(property(&volume.snapshot, "userrefs"), "1", "{} is held", volume.snapshot);
        }
        destroy(&own);
        assert_nothing_remains(&fixture, &[], step);
    }
    // Killed when the manifest was gone, followed by a clone: the next start puts it back too, even where a snapshot is
    // marked to go with its last hold.
    zfs(&["destroy", "-d", &old.in_order()[0].snapshot]);
    kill_at(&fixture, "prune.withdrawn", &["prune"]);
    zfs(&["clone", &third.snapshot, &own]);
    let taken = lockstep.backup("label");
    assert_eq!(lockstep.sets(), sorted(&[&old, &newest, &taken]));
    destroy(&own);
    // With one snapshot gone it isn't whole: the removal continues once the clone has gone, and no backup waits for
    // it.
    kill_at(&fixture, "prune.destroyed-1", &["prune"]);
    zfs(&["clone", &third.snapshot, &own]);
    lockstep.backup("label");
    let outcome = lockstep.run(&["check"]);
    assert!(outcome.stdout.contains(&format!("the removal of set {} was cut off", old.id)));
    destroy(&own);
    lockstep.expect(exit::DONE, &["prune"]);
    assert_eq!(lockstep.sets().len(), 1);
    assert_nothing_remains(&fixture, &[], "at the end");
}

/// A first prune may remove sets for hours: a backup that begins meanwhile waits for one of them.
#[test]
fn a_prune_gives_way_to_a_backup() {
    let fixture = quiet("local = { last = 1 }");
    let lockstep = fixture.lockstep();
    let before = [(); 4].map(|()| lockstep.backup("label"));
    let hooks = Hooks::holding(&fixture, "prune.set");
    let pruning = hooks.run_to("prune.set", &["prune"]);
    let waiting = Hooks::new(&fixture);
    let mut backup = waiting.lockstep().spawn(&["backup", "--strategy", "label"]);
    waiting.steps.wait_reached("lock.waiting", &mut backup);
    hooks.steps.release("prune.set");
    let pruned = pruning.wait(LIMIT);
    assert_eq!(pruned.code, Some(exit::DONE), "{}", pruned.describe());
    assert!(pruned.stderr.contains("2 sets more"), "{}", pruned.describe());
    let taken = backup.wait(LIMIT);
    assert!(taken.ok(), "{}", taken.describe());
    assert_eq!(lockstep.sets().len(), before.len(), "one is gone, and one is new");
    lockstep.expect(exit::DONE, &["prune"]);
    assert_eq!(lockstep.sets().len(), 1);
}

/// A pool that is gone for good, or came back under another name: nobody should have to keep its sets for ever.
#[test]
fn a_set_whose_pool_is_gone_is_given_up_where_it_is_named() {
    let fixture = quiet("local = { last = 1 }");
    let lockstep = fixture.lockstep();
    let sets = [lockstep.backup("label"), lockstep.backup("label")];
    let ids = sorted(&sets.each_ref());
    fixture.cluster.stop(Stop::Fast);
    let gone = &fixture.pools[1].name;
    let images = fixture.pools[1].image.parent().expect("a folder").to_owned();
    must(&mut command("zpool", ["export", gone]));
    let left = json_of(&lockstep.expect(exit::PROBLEMS, &["prune", "--json"]));
    // The same for the kept set and the other: each is whole again once its pool is back.
    for set in left["places"][0]["sets"].as_array().expect("a list of sets") {
        let why = set["why"].as_str().expect("both are left");
        let words = format!("pool \"{gone}\" isn't imported: zpool import {gone}");
        assert!(why.contains(&words) && why.contains("prune --local --set"), "{left}");
    }
    let to = fixture.target("away");
    let to = to.to_str().expect("the harness' own paths are UTF-8");
    let listed = lockstep.run(&["list"]);
    let checked = lockstep.run(&["check"]);
    let restored = lockstep.expect(exit::REFUSED, &["restore", &ids[0], "--to", to]);
    for outcome in [listed, checked, restored] {
        let said = format!("{}{}", outcome.stdout, outcome.stderr);
        let words = format!("pool \"{gone}\" isn't imported");
        assert!(said.contains(&words) && !said.contains("destroyed by hand"), "{said}");
    }
    let named = ["--json", "prune", "--local", "--set", &ids[0], "--set", &ids[1]];
    let dry = lockstep.expect(exit::DONE, &[&named[..], &["--dry-run"]].concat());
    assert!(dry.stderr.contains("is given up") && dry.stderr.contains(gone), "{}", dry.describe());
    assert_eq!(lockstep.sets(), ids, "a dry run removes nothing");
    let run = lockstep.expect(exit::DONE, &named);
    let removed = &json_of(&run)["places"][0]["removed"];
    assert_eq!(*removed, serde_json::json!(ids), "{}", run.describe());
    assert!(run.stderr.contains("is given up"), "{}", run.describe());
    assert!(lockstep.sets().is_empty());
    assert_eq!(fixture.pools[0].snapshots(), [""; 0], "what is there went");
    let removals = fixture.state.join("clusters/main/removals");
    assert_eq!(fs::read_dir(removals).expect("it is there").count(), 0, "nothing is left to do");
    let folder = images.to_str().expect("the harness' own paths are UTF-8");
    must(&mut command("zpool", ["import", "-d", folder, gone]));
    fixture.pools[1].snapshots().iter().for_each(|snapshot| release_and_destroy(snapshot));
}

/// A set that is named isn't given up on a pool that was there: one that is exported meanwhile comes back.
#[test]
fn a_named_set_whose_pool_goes_meanwhile_is_not_forgotten() {
    let fixture = quiet("");
    let lockstep = fixture.lockstep();
    let set = lockstep.backup("label");
    fixture.cluster.stop(Stop::Fast);
    kill_at(&fixture, "prune.withdrawn", &["prune", "--local", "--set", &set.id]);
    assert!(lockstep.sets().is_empty());
    let (away, image) = (&fixture.pools[1].name, &fixture.pools[1].image);
    let folder = image.parent().and_then(Path::to_str).expect("the harness' own paths are UTF-8");
    patiently("zpool", &["export", away], || ()).expect("it is idle");
    let next = ["prune", "--local", "--set", "20260101T000000Z-aaaa"];
    let outcome = lockstep.expect(exit::USAGE, &next);
    assert_said(&outcome, &["finishing the removal", &format!("pool \"{away}\" isn't imported")]);
    let checked = lockstep.run(&["check"]).stdout;
    assert!(checked.contains(&format!("the removal of set {} was cut off", set.id)), "{checked}");
    must(&mut command("zpool", ["import", "-d", folder, away]));
    assert_eq!(fixture.pools[1].snapshots().len(), 2, "they came back with their pool");
    lockstep.expect(exit::USAGE, &next);
    assert_nothing_remains(&fixture, &[], "with both pools");
}

/// The pool of a removal that was cut off is gone for good: whoever names the set again gives it up.
#[test]
fn a_removal_that_was_cut_off_is_given_up_where_its_set_is_named() {
    let fixture = quiet("local = { last = 1 }");
    let lockstep = fixture.lockstep();
    let set = lockstep.backup("label");
    fixture.cluster.stop(Stop::Fast);
    kill_at(&fixture, "prune.withdrawn", &["prune", "--local", "--set", &set.id]);
    let (away, image) = (&fixture.pools[1].name, &fixture.pools[1].image);
    let folder = image.parent().and_then(Path::to_str).expect("the harness' own paths are UTF-8");
    patiently("zpool", &["export", away], || ()).expect("it is idle");
    let waits = lockstep.expect(exit::PROBLEMS, &["--json", "prune"]);
    let problem = json_of(&waits)["places"][0]["problems"][0].to_string();
    let way = format!("prune --local --set {}", set.id);
    assert!(problem.contains("was begun") && problem.contains(&way), "{}", waits.describe());
    assert!(lockstep.run(&["check"]).stdout.contains(&way));

    let named = ["--json", "prune", "--local", "--set", &set.id];
    let dry = lockstep.expect(exit::DONE, &[&named[..], &["--dry-run"]].concat());
    assert_said(&dry, &["is given up", away]);
    assert_eq!(with_action(&told(&json_of(&dry), 0), "remove"), [&set.id]);
    let run = lockstep.expect(exit::DONE, &named);
    assert_said(&run, &["is given up", away]);
    assert_eq!(json_of(&run)["places"][0]["removed"], serde_json::json!([set.id]));
    assert!(!lockstep.run(&["check"]).stdout.contains("was cut off"));
    let removals = fixture.state.join("clusters/main/removals");
    assert_eq!(fs::read_dir(removals).expect("it is there").count(), 0, "nothing is left to do");
    must(&mut command("zpool", ["import", "-d", folder, away]));
    fixture.pools[1].snapshots().iter().for_each(|snapshot| release_and_destroy(snapshot));
}

/// The only set, without a manifest: its snapshots are where the cluster is. Copies that `zfs send -p` made have
/// their names, marks and GUIDs, but belong to somebody.
#[test]
fn the_only_set_is_removed_though_its_manifest_says_nothing() {
    let fixture = quiet("");
    let lockstep = fixture.lockstep();
    let set = lockstep.backup("label");
    let snapshot = &set.in_order()[1].snapshot;
    let copies = [0, 1].map(|at| format!("{}/copy", fixture.pools[at].name));
    for copy in &copies {
        let line = format!("zfs send -p '{snapshot}' | zfs receive -u '{copy}'");
        must(&mut command("sh", ["-c", &line]));
        let copied = format!("{copy}@lockstep-{}", set.id);
        for name in ["guid", "lockstep:owner", "lockstep:set"] {
            assert_eq!(property(&copied, name), property(snapshot, name), "{name}");
        }
    }
    let folder = fixture.state.join("clusters/main/sets").join(&set.id);
    fs::write(folder.join("manifest.json"), "").expect("the test may write there");
    let words = ["prune", "--local", "--set", &set.id, "--json"];
    let dry = lockstep.expect(exit::DONE, &[&words[..], &["--dry-run"]].concat());
    assert_eq!(with_action(&told(&json_of(&dry), 0), "remove"), [&set.id]);
    let run = lockstep.expect(exit::DONE, &words);
    let mut left = fixture.snapshots();
    left.sort();
    let mut copied = copies.each_ref().map(|copy| format!("{copy}@lockstep-{}", set.id));
    copied.sort();
    assert_eq!(left, copied);
    for copied in &copied {
        assert_said(&run, &[&format!("\"{copied}\" is a copy")]);
    }
    assert!(lockstep.sets().is_empty() && !folder.exists());
    copies.iter().for_each(|copy| {
        zfs(&["destroy", "-r", copy]);
    });
    assert_nothing_remains(&fixture, &[], "pruned");
}

/// What is on a pool that isn't imported can't be found: that is reported, and `check` knows whose it is when the
/// pool is back.
#[test]
fn a_damaged_set_whose_pool_is_away_leaves_nothing_unsaid() {
    let fixture = quiet("");
    let lockstep = fixture.lockstep();
    let (set, other) = (lockstep.backup("label"), lockstep.backup("label"));
    let manifest = fixture.state.join("clusters/main/sets").join(&set.id).join("manifest.json");
    fs::write(manifest, "").expect("the test may write there");
    fixture.cluster.stop(Stop::Fast);
    let away = &fixture.pools[1].name;
    let images = fixture.pools[1].image.parent().expect("a folder").to_owned();
    let its = |pool: usize| -> Vec<String> {
        let all = fixture.pools[pool].snapshots().into_iter();
        all.filter(|name| name.ends_with(&set.id)).collect()
    };
    let left = its(1);
    assert!(!left.is_empty());
    must(&mut command("zpool", ["export", away]));
    let words = ["prune", "--local", "--set", &set.id];
    let said = format!("pool \"{away}\" isn't imported, and keeps what it has of set {}", set.id);
    for more in [&["--dry-run"][..], &[]] {
        let outcome = lockstep.expect(exit::PROBLEMS, &[&words[..], more].concat());
        assert_said(&outcome, &[&said]);
    }
    assert_eq!(its(0), [""; 0], "what is there went");
    let folder = images.to_str().expect("the harness' own paths are UTF-8");
    must(&mut command("zpool", ["import", "-d", folder, away]));
    assert_eq!(its(1), left);
    // One that another state_dir took is a different matter.
    let foreign = format!("{}@lockstep-20200101T000000Z-aaaa", fixture.datasets[0]);
    let properties = ["-o", "lockstep:owner=other", "-o", "lockstep:set=20200101T000000Z-aaaa"];
    zfs(&[&["snapshot"], &properties[..], &[&foreign]].concat());
    fixture.cluster.start();
    let checked = lockstep.run(&["check"]).stdout;
    let words = format!("set {} was taken by this state_dir, which has no manifest", set.id);
    assert!(checked.contains(&words) && checked.contains(&left[0]), "{checked}");
    let words = "set 20200101T000000Z-aaaa isn't one of this state_dir, and has";
    assert!(checked.contains(words), "{checked}");
    left.iter().for_each(|snapshot| release_and_destroy(snapshot));
    destroy(&foreign);
    lockstep.expect(exit::DONE, &["prune", "--local", "--set", &other.id]);
    assert_nothing_remains(&fixture, &[], "at the end");
}

/// `zfs rename` renames the snapshots too, and a manifest knows the old name.
#[test]
fn a_set_is_removed_wholly_after_its_dataset_was_renamed() {
    let fixture = quiet("local = { last = 1 }");
    let lockstep = fixture.lockstep();
    let old = lockstep.backup("label");
    let place = fixture.layout.datasets.iter().position(|dataset| dataset.mount == "ts2");
    let dataset = &fixture.datasets[place.expect("it has ts2")];
    let renamed = format!("{dataset}-renamed");
    // A copy in the same pool has the same name and GUID, and stays.
    let copy = format!("{dataset}-copy");
    let snapshot = format!("{dataset}@lockstep-{}", old.id);
    must(&mut command("sh", ["-c", &format!("zfs send {snapshot} | zfs receive -u {copy}")]));
    fixture.cluster.stop(Stop::Fast);
    rename(dataset, &renamed);
    fixture.cluster.start();
    let newer = lockstep.backup("label");
    let checked = lockstep.expect(exit::PROBLEMS, &["check"]).stdout;
    let words = format!("{renamed}@lockstep-{}\" is of set {}", old.id, old.id);
    assert!(checked.contains(&words), "{checked}");
    lockstep.expect(exit::DONE, &["prune"]);
    assert_eq!(lockstep.sets(), [&*newer.id]);
    let of_it: Vec<_> =
        fixture.snapshots().into_iter().filter(|name| name.contains(&old.id)).collect();
    assert_eq!(of_it, [format!("{copy}@lockstep-{}", old.id)]);
    zfs(&["destroy", "-r", &copy]);
    fixture.cluster.stop(Stop::Fast);
    rename(&renamed, dataset);
}

/// Splits a disk off a pool and imports it in the pool's place: `zpool split` makes a pool of it that has the same
/// snapshots, with the same GUIDs and transaction groups. `prune` takes it for somebody's copy.
fn assert_a_copy_by_split_stays(fixture: &Fixture, lockstep: &Lockstep, set: &str) {
    let pool = &fixture.pools[1];
    let (image, other) = (&pool.image, pool.image.with_extension("other"));
    let file = fs::File::create(&other).expect("it can be made");
    file.set_len(image.metadata().expect("it is there").len()).expect("it is sparse");
    let text = |path: &std::path::Path| path.to_str().expect("UTF-8").to_owned();
    let (name, copy) = (&*pool.name, format!("{}-copy", pool.name));
    must(&mut command("zpool", ["attach", name, &text(image), &text(&other)]));
    wait_until("the new disk has everything", LIMIT, || {
        let said = must(&mut command("zpool", ["status", name]));
        !said.contains("in progress") && !said.contains("DEGRADED")
    });
    must(&mut command("zpool", ["split", name, &copy]));
    patiently("zpool", &["export", name], || ()).expect("it is idle");
    let (images, aside) = (text(image.parent().expect("a folder")), fixture.target("aside"));
    must(&mut command("zpool", ["import", "-d", &images, "-R", &text(&aside), &copy]));
    let pruned = lockstep.expect(exit::PROBLEMS, &["prune"]);
    assert_said(&pruned, &[&format!("pool \"{name}\" isn't imported")]);
    let left = zfs(&["list", "-H", "-t", "snapshot", "-o", "name", "-r", &copy]);
    assert!(left.contains(&format!("@lockstep-{set}")), "{left}");
    patiently("zpool", &["destroy", &copy], || ()).expect("it is idle");
    fs::remove_file(&other).expect("nobody needs it any more");
}

/// `zpool import OLD NEW` takes all of a pool's snapshots along.
#[test]
fn a_set_is_removed_wholly_after_its_pool_was_imported_under_another_name() {
    let fixture = quiet("local = { last = 1 }");
    let lockstep = fixture.lockstep();
    let old = lockstep.backup("label");
    let next = lockstep.backup("label");
    let pool = &fixture.pools[1];
    let images = pool.image.parent().expect("a folder").to_str().expect("UTF-8");
    let renamed = format!("{}-renamed", pool.name);
    fixture.cluster.stop(Stop::Fast);
    assert_a_copy_by_split_stays(&fixture, &lockstep, &old.id);
    must(&mut command("zpool", ["import", "-d", images, &pool.name, &renamed]));
    fixture.cluster.start();
    let newer = lockstep.backup("label");
    let checked = lockstep.expect(exit::PROBLEMS, &["check"]).stdout;
    let words = format!("pool \"{}\" was imported under another name", pool.name);
    assert!(checked.contains(&words) && checked.contains(&renamed), "{checked}");
    let planned = json_of(&lockstep.expect(exit::DONE, &["--json", "prune", "--dry-run"]));
    assert_eq!(with_action(&told(&planned, 0), "remove"), [&*old.id, &*next.id], "{planned}");
    lockstep.expect(exit::DONE, &["prune"]);
    assert_eq!(lockstep.sets(), [&*newer.id]);
    assert_restorable(&fixture, &newer.id);
    fixture.cluster.stop(Stop::Fast);
    patiently("zpool", &["export", &renamed], || ()).expect("it is idle");
    must(&mut command("zpool", ["import", "-d", images, &renamed, &pool.name]));
    let left = fixture.snapshots();
    let is_old = |name: &String| name.contains(&old.id) || name.contains(&next.id);
    assert!(!left.iter().any(is_old), "{left:?}");
    // Back under its first name, it has the other's snapshots.
    lockstep.expect(exit::DONE, &["prune", "--local", "--set", &newer.id]);
    assert_eq!(fixture.snapshots(), [""; 0]);
}

/// If somebody renamed a snapshot of a set, it is theirs: it stays, and Lockstep no longer holds it.
#[test]
fn a_renamed_snapshot_stays_and_is_let_go() {
    let fixture = quiet("local = { last = 1 }");
    let lockstep = fixture.lockstep();
    let first = lockstep.backup("label");
    lockstep.backup("label");
    let old = &first.volumes[0].snapshot;
    let kept = format!("{}@keepme", old.split_once('@').expect("a snapshot").0);
    zfs(&["rename", old, &kept]);
    let outcome = lockstep.expect(exit::DONE, &["prune", "--local", "--set", &first.id]);
    assert_said(&outcome, &[&format!("\"{kept}\" is a snapshot of the set"), "it stays"]);
    assert!(!lockstep.sets().contains(&first.id));
    let left = fixture.snapshots();
    assert!(left.contains(&kept) && !left.iter().any(|name| name.contains(&first.id)), "{left:?}");
    // A destroy can't remove what Lockstep holds.
    zfs(&["destroy", &kept]);
}

/// `zfs promote` of a clone moves the snapshots to the clone; the dataset itself is then a clone of one of them.
#[test]
fn a_set_whose_snapshot_went_with_a_promoted_clone() {
    let fixture = quiet("local = { last = 1 }");
    let lockstep = fixture.lockstep();
    let [first, old, _] = [(); 3].map(|()| lockstep.backup("label"));
    let place = fixture.layout.datasets.iter().position(|dataset| dataset.mount == "ts2");
    let dataset = &fixture.datasets[place.expect("it has ts2")];
    let clone = format!("{}/theirs", fixture.pools[1].name);
    let snapshot = format!("{dataset}@lockstep-{}", old.id);
    zfs(&["clone", "-o", "mountpoint=none", &snapshot, &clone]);
    zfs(&["promote", &clone]);

    let words = format!("zfs promote {dataset}");
    let checked = lockstep.expect(exit::PROBLEMS, &["check"]).stdout;
    assert!(checked.contains(&words), "{checked}");
    // The older one went along, and comes back with it.
    assert!(!checked.contains("was renamed"), "{checked}");
    let planned = json_of(&lockstep.expect(exit::PROBLEMS, &["--json", "prune", "--dry-run"]));
    let told = told(&planned, 0);
    assert_eq!(with_action(&told, "remove"), [&*first.id], "{planned}");
    assert_eq!(with_action(&told, "left"), [&*old.id], "{planned}");
    assert!(planned.to_string().contains(&words), "{planned}");
    let run = json_of(&lockstep.expect(exit::PROBLEMS, &["--json", "prune"]));
    assert_eq!(run["places"][0]["sets"], planned["places"][0]["sets"], "what was planned was run");
    // The way back.
    zfs(&["promote", dataset]);
    assert_restorable(&fixture, &old.id);
    zfs(&["promote", &clone]);
    // Naming a set gives it up; what is in the way stays.
    let named = ["prune", "--local", "--set", &old.id];
    lockstep.expect(exit::DONE, &[&named[..], &["--dry-run"]].concat());
    let outcome = lockstep.expect(exit::DONE, &named);
    assert_said(&outcome, &["is given up", &format!("{clone}@lockstep-{}", old.id)]);
    assert!(!lockstep.sets().contains(&old.id));
    let of_it: Vec<_> =
        fixture.snapshots().into_iter().filter(|name| name.contains(&old.id)).collect();
    assert_eq!(of_it, [format!("{clone}@lockstep-{}", old.id)]);
    // Lockstep has no hold on it.
    zfs(&["promote", dataset]);
    zfs(&["destroy", &clone]);
    zfs(&["destroy", &snapshot]);
}

/// Renames a dataset that is no longer used; zfs-fuse says for a moment that it is busy.
#[track_caller]
/// state_dir is full: the command that makes room there has space reserved for its own journal.
#[test]
fn a_set_is_removed_where_state_dir_is_full() {
    let fixture = Fixture::new(one_dataset());
    let small = fixture.owned("small");
    let path = small.to_str().expect("UTF-8");
    must(&mut command("mount", ["-t", "tmpfs", "-o", "size=96m,mode=755", "small", path]));
    let (state, small_state) = (fixture.state.display().to_string(), format!("{path}/state"));
    let text = fs::read_to_string(fixture.config()).expect("the configuration");
    let config = fixture.root().join("small.toml");
    fs::write(&config, text.replace(&state, &small_state)).expect("it can be written");
    let lockstep = crate::support::lockstep::Lockstep::new(&config, &fixture.cluster.bin);
    let sets = [(); 2].map(|()| lockstep.backup("label").id);
    let fill = small.join("fill");
    let fill_up = || {
        // The last page as well.
        let mut file = fs::File::create(&fill).expect("a file");
        while std::io::Write::write(&mut file, &[1; 4096]).is_ok_and(|n| n > 0) {}
    };
    let remove = |set: &str| lockstep.run(&["prune", "--local", "--set", set]);
    fill_up();
    let done = remove(&sets[0]);
    assert_eq!(done.code, Some(exit::DONE), "{}", done.describe());
    assert_said(&done, &["the space reserved there for removals is used"]);
    // Without the reserve there is no way, except what the message says.
    fs::remove_file(&fill).expect("it is there");
    let reserve = small.join("state/clusters/main/reserve");
    fs::remove_file(&reserve).unwrap_or_default();
    fill_up();
    let left = remove(&sets[1]);
    assert_eq!(left.code, Some(exit::PROBLEMS), "{}", left.describe());
    assert!(left.describe().contains("free a few KiB"), "{}", left.describe());
    fs::remove_file(&fill).expect("it is there");
    let done = remove(&sets[1]);
    assert_eq!(done.code, Some(exit::DONE), "{}", done.describe());
    assert!(reserve.exists(), "it is kept back again");
    must(&mut command("umount", [path]));
}

fn rename(from: &str, to: &str) {
    for words in [&["umount", from][..], &["rename", from, to], &["mount", to]] {
        wait_until("zfs is no longer busy", LIMIT, || match try_zfs(words) {
            Err(why) => why.contains("not currently mounted") || why.contains("already mounted"),
            Ok(_) => true,
        });
    }
}
