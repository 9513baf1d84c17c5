//! A repository pruned by policy: what is kept can be received as the snapshots were, space is freed, both sides
//! still have the base of the next increment, and two prunes never run at once.

use std::fs;

use crate::support::checker::Checker;
use crate::support::cluster::Stop;
use crate::support::command::{LIMIT, command, must, wait_until};
use crate::support::faults::assert_said;
use crate::support::fixture::Fixture;
use crate::support::layout::two_pools_four_datasets;
use crate::support::ledger::{Expected, Ledger};
use crate::support::load::{Load, Plan};
use crate::support::lockstep::{Lockstep, Set, exit, json_of};
use crate::support::pools::zfs;
use crate::support::shipping::{
    self, NAME, assert_received, discard, folder, objects, packs, s3_table, with_options,
};
use lockstep::set::manifest::Manifest;
use serde_json::Value;

const SCALE: u32 = 1;

/// The program with a repository, whose leftovers are removed at once, and this retention policy.
fn configured(fixture: &Fixture, retention: &str) -> Lockstep {
    with_options(fixture, &format!("grace_hours = 0\n\n[clusters.main.retention]\n{retention}\n"))
}

/// The ids of a place's sets with this action.
fn with_action(json: &Value, place: usize, action: &str) -> Vec<String> {
    let sets = json["places"][place]["sets"].as_array().expect("a list of sets");
    let of = sets.iter().filter(|set| set["action"] == action);
    of.map(|set| set["set"].as_str().expect("a text").to_owned()).collect()
}

/// As `list` and `prune` sort them: by id; two of the same second have no order of their own.
fn sorted(sets: &[&String]) -> Vec<String> {
    let mut ids: Vec<_> = sets.iter().map(|id| (*id).clone()).collect();
    ids.sort();
    ids
}

/// The reasons why a set is kept.
fn reasons(json: &Value, place: usize, set: &str) -> String {
    let sets = json["places"][place]["sets"].as_array().expect("a list of sets");
    let found = sets.iter().find(|found| found["set"] == set);
    found.unwrap_or_else(|| panic!("{set} isn't in {json}"))["reasons"].to_string()
}

/// Sets a set's date back by this many days, as if it had been taken then.
fn age(fixture: &Fixture, set: &str, days: i64) {
    let path = fixture.state.join("clusters/main/sets").join(set).join("manifest.json");
    let mut manifest = Manifest::parse(&fs::read(&path).expect("a manifest")).expect("a good one");
    let seconds = manifest.started_at.as_second() - days * 86_400;
    manifest.started_at = jiff::Timestamp::from_second(seconds).expect("a time");
    fs::write(&path, manifest.to_bytes().expect("a manifest")).expect("it can be written");
}

/// An increment can't start from something on a pool that is gone for good, even if it is the newest common set.
#[test]
fn the_newest_common_set_is_given_up_by_name_where_its_pool_is_gone() {
    let fixture = Fixture::new(two_pools_four_datasets());
    let lockstep = configured(&fixture, "local = { last = 1 }");
    let set = lockstep.backup("label").id;
    fixture.cluster.stop(Stop::Fast);
    let gone = &fixture.pools[1];
    must(&mut command("zpool", ["export", &gone.name]));
    lockstep.expect(exit::PROBLEMS, &["prune", "--local"]);
    assert_eq!(lockstep.sets(), [&*set], "by a policy nothing of it goes");
    let named = ["prune", "--local", "--set", &set];
    let outcome = lockstep.expect(exit::DONE, &named);
    assert_said(&outcome, &["is given up", &gone.name]);
    assert!(lockstep.sets().is_empty());
    assert_eq!(fixture.pools[0].snapshots(), [""; 0], "what is there went");
    let folder = gone.image.parent().and_then(|folder| folder.to_str()).expect("a folder");
    must(&mut command("zpool", ["import", "-d", folder, &gone.name]));
    for snapshot in gone.snapshots() {
        zfs(&["release", "lockstep", &snapshot]);
        zfs(&["destroy", &snapshot]);
    }
}

/// Two names of one folder, which their URLs don't show: the one name's policy would remove what the other's keeps. A
/// copy of the folder has the same id, and is a repository of its own.
#[test]
fn one_repository_under_two_names_is_not_pruned() {
    let fixture = Fixture::new(two_pools_four_datasets());
    let there = folder(&fixture);
    let (link, copy) = (fixture.root().join("link"), fixture.root().join("copy"));
    std::os::unix::fs::symlink(&there, &link).expect("a link can be made");
    let table =
        |path: &std::path::Path| format!("url = \"file://{}\"\ngrace_hours = 0", path.display());
    let retention = "\n[clusters.main.retention]\nlocal = { last = 3 }\nrepository = { last = 3 }\nrepositories = { two = { last = 1 } }\n";
    let both = |second: &std::path::Path| {
        shipping::configured(&fixture, &[("one", table(&there)), ("two", table(second))], retention)
    };
    let lockstep = both(&link);
    lockstep.expect(exit::DONE, &["repo", "init", "one"]);
    let made = lockstep.expect(exit::DONE, &["repo", "init", "two"]);
    assert_said(&made, &["\"two\" and \"one\" are one"]);
    let sets = [(); 2].map(|()| lockstep.backup("label").id);
    for more in [&[][..], &["--dry-run"]] {
        let refused = lockstep.run(&[&["prune"], more].concat());
        assert_ne!(refused.code, Some(exit::DONE), "{}", refused.describe());
        assert_said(&refused, &["are one: both lead to the repository with the id", "hint: "]);
    }
    let checked = lockstep.expect(exit::PROBLEMS, &["check"]);
    assert!(checked.stdout.contains("\"one\" and \"two\" are one"), "{}", checked.describe());
    let list = lockstep.json(&["list", "--from", "repository:one"]);
    assert_eq!(list["sets"].as_array().map(Vec::len), Some(2), "nothing was removed: {list}");

    must(&mut command("cp", ["-a".as_ref(), there.as_os_str(), copy.as_os_str()]));
    let lockstep = both(&copy);
    let newest = lockstep.backup("label").id;
    lockstep.expect(exit::DONE, &["prune"]);
    let checked = lockstep.run(&["check"]);
    assert!(!checked.stdout.contains("\" are one"), "{}", checked.describe());
    for (name, left) in [("one", 3), ("two", 1)] {
        let list = lockstep.json(&["list", "--from", &format!("repository:{name}")]);
        assert_eq!(list["sets"].as_array().map(Vec::len), Some(left), "{sets:?}, {newest}: {list}");
    }
}

#[test]
fn what_somebody_asks_for_stays_on_both_sides() {
    let fixture = Fixture::new(two_pools_four_datasets());
    let backup = |lockstep: &Lockstep, label: &[&str]| {
        Set::of(&lockstep.json(&[&["backup"], label].concat())).id
    };
    let lockstep = configured(&fixture, "local = { last = 1 }");
    let labelled = backup(&lockstep, &["--label", "before-upgrade"]);
    let named = backup(&lockstep, &[]);
    let (plain, newest) = (backup(&lockstep, &["--label", "nightly"]), backup(&lockstep, &[]));
    let keep = |patterns: &str| {
        let rules = format!("{{ last = 1, keep = [{patterns}] }}");
        configured(&fixture, &format!("local = {rules}\nrepository = {rules}"))
    };
    let lockstep = keep(&format!("'before-*', '{named}'"));
    let run = lockstep.json(&["prune"]);
    for place in [0, 1] {
        assert_eq!(with_action(&run, place, "remove"), std::slice::from_ref(&plain), "{run}");
        assert_eq!(reasons(&run, place, &labelled), r#"["keep \"before-*\""]"#);
        assert_eq!(reasons(&run, place, &named), format!(r#"["keep \"{named}\""]"#));
    }
    let to = fixture.target("kept");
    lockstep.restore(&labelled, &to, &[]);
    fixture.discard_restored(&to, &labelled);

    // Naming a set gives it up, and so does removing the pattern.
    lockstep.expect(exit::DONE, &["prune", "--repository", NAME, "--set", &labelled]);
    let run = keep("").json(&["prune"]);
    assert_eq!(with_action(&run, 0, "keep"), [newest], "{run}");
    assert_eq!(with_action(&run, 1, "remove"), [named], "{run}");
}

#[test]
fn what_is_kept_comes_back_as_it_was() {
    let fixture = Fixture::new(two_pools_four_datasets());
    fixture.pgbench_tables(SCALE);
    let ledger = Ledger::create(&fixture.cluster, "ts1", "ts2");
    let lockstep = configured(&fixture, "repository = { last = 1, yearly = 9 }");
    let load = Load::start(&fixture.cluster, &["ts1", "ts2"], &Plan::all(11));
    let writers = ledger.start(&fixture.cluster);
    let mut sets: Vec<(Set, Expected)> = Vec::new();
    for days in [800, 0, 0, 0, 0] {
        ledger.wait_for(5);
        let set = Set::of(&lockstep.json(&["backup", "--strategy", "label", "--no-ship"]));
        let expected = ledger.expected(set.floor_lsn);
        age(&fixture, &set.id, days);
        lockstep.expect(exit::DONE, &["ship", &set.id]);
        sets.push((set, expected));
    }
    load.stop();
    writers.stop();
    let id = |at: usize| sets[at].0.id.clone();
    let proves = |at: usize| {
        let (set, expected) = &sets[at];
        let parent = format!("{}/r{at}", fixture.pools[0].name);
        let to = fixture.target(&set.id);
        let more = ["--from", "repository", "--as", "zfs", "--dataset", &parent];
        let restored = lockstep.restore_and_start(&set.id, &to, &more);
        assert_received(&fixture, set, &parent);
        let checker = Checker::new(SCALE).with_ledger(&ledger, *expected);
        checker.check_and_stop(restored.server()).assert_right(&set.id);
        discard(&fixture, &to, &parent);
    };

    // Three in the middle are removed, merged into the one after them.
    let before = objects(&fixture);
    let arguments = ["prune", "--repository", NAME, "--json"];
    let planned = lockstep.json(&["prune", "--repository", NAME, "--dry-run"]);
    assert_eq!(objects(&fixture), before, "a dry run changes nothing");
    let run = json_of(&lockstep.expect(exit::DONE, &arguments));
    assert_eq!(planned["places"][0]["sets"], run["places"][0]["sets"], "what was planned was run");
    assert_eq!(with_action(&run, 0, "remove"), sorted(&[&id(1), &id(2), &id(3)]));
    assert_eq!(with_action(&run, 0, "keep"), sorted(&[&id(0), &id(4)]));
    // Three volumes are stored.
    assert_eq!(run["places"][0]["merged"], 9, "{run}");
    assert_eq!(lockstep.sets().len(), 5, "this host's sets are another matter");
    proves(0);
    proves(4);

    // The full one is removed too, so the last becomes full.
    let full: u64 = packs(&fixture).values().sum();
    let lockstep = configured(&fixture, "repository = { last = 1 }");
    let run = json_of(&lockstep.expect(exit::DONE, &arguments));
    assert_eq!(run["places"][0]["removed"], serde_json::json!([id(0)]));
    assert_eq!(run["places"][0]["merged"], 3, "{run}");
    let left: u64 = packs(&fixture).values().sum();
    println!("packs: {full} bytes, then {left}");
    proves(4);
    // What is shipped next is an increment, and can be restored too.
    let next = lockstep.backup("label");
    let volumes = next.json["repositories"][0]["volumes"].as_array().expect("volumes");
    assert!(volumes.iter().all(|volume| volume["base"].is_string()), "{}", next.json);
    let to = fixture.target("next");
    let parent = format!("{}/next", fixture.pools[0].name);
    let more = ["--from", "repository", "--as", "zfs", "--dataset", &parent];
    lockstep.restore(&next.id, &to, &more);
    assert_received(&fixture, &next, &parent);
    discard(&fixture, &to, &parent);
}

#[test]
fn the_newest_common_set_stays_on_both_sides() {
    let fixture = Fixture::new(two_pools_four_datasets().setting("autovacuum", "off"));
    let lockstep = configured(&fixture, "local = { last = 1 }\nrepository = { last = 1 }");
    let first = lockstep.backup("label").id;
    let alone = |_: u32| Set::of(&lockstep.json(&["backup", "--no-ship"])).id;
    let rest: Vec<_> = (0..2).map(alone).collect();
    let run = json_of(&lockstep.expect(exit::DONE, &["prune", "--json"]));
    assert_eq!(lockstep.sets(), sorted(&[&first, &rest[1]]));
    assert!(reasons(&run, 0, &first).contains("newest in common with repository offsite"));
    assert!(reasons(&run, 1, &first).contains("newest in common with this host"));

    // A repository that can't be asked is assumed to still have what it had.
    let (there, away) = (folder(&fixture), fixture.root().join("away"));
    fs::rename(&there, &away).expect("a folder can be renamed");
    let outcome = lockstep.expect(exit::PROBLEMS, &["prune", "--json"]);
    assert_said(&outcome, &["repository offsite can't be asked what it has", "error: "]);
    let run = json_of(&outcome);
    assert!(reasons(&run, 0, &first).contains("newest in common"), "{run}");
    assert!(run["places"][1]["error"].is_string(), "{run}");
    assert_eq!(lockstep.sets(), sorted(&[&first, &rest[1]]));
    // Whatever opened it made it again, empty.
    let _ = fs::remove_dir_all(&there);
    fs::rename(&away, &there).expect("a folder can be renamed");

    // The next increment starts there; after that it isn't needed any more.
    let next = lockstep.backup("label");
    let volumes = next.json["repositories"][0]["volumes"].as_array().expect("volumes");
    assert!(volumes.iter().all(|volume| volume["base"].is_string()), "{}", next.json);
    let run = json_of(&lockstep.expect(exit::DONE, &["prune", "--json"]));
    assert_eq!(lockstep.sets(), [next.id.as_str()]);
    assert_eq!(with_action(&run, 1, "remove"), [first]);
    assert_eq!(with_action(&run, 1, "keep"), std::slice::from_ref(&next.id));
    // The repository's newest set is older than those of this host: it stays the common one.
    alone(0);
    lockstep.expect(exit::DONE, &["prune"]);
    assert!(lockstep.sets().contains(&next.id));
    // A repository without a policy is reported and left alone.
    let lockstep = configured(&fixture, "local = { last = 1 }");
    let before = objects(&fixture);
    let outcome = lockstep.expect(exit::DONE, &["prune"]);
    assert!(
        outcome
            .stdout
            .contains("repository offsite: no retention is configured, nothing is touched"),
        "{}",
        outcome.describe()
    );
    assert_eq!(objects(&fixture), before);
    lockstep.expect(exit::USAGE, &["prune", "--repository", NAME]);
}

/// The repository's disk isn't mounted, and below its mount point is another repository: nothing is removed because of
/// what that one has or lacks, and no WAL counts as unneeded.
#[test]
fn another_repository_in_its_place_decides_nothing() {
    let fixture = Fixture::new(two_pools_four_datasets());
    let lockstep = configured(&fixture, "local = { last = 1 }\nrepository = { last = 1 }");
    let older = lockstep.backup("label").id;
    fixture.cluster.execute(&["SELECT pg_switch_wal()"]);
    // Sets of the same second have no order.
    std::thread::sleep(std::time::Duration::from_millis(1100));
    let common = lockstep.backup("label").id;
    lockstep.expect(exit::DONE, &["prune", "--local", "--set", &older]);
    let first_wal = || lockstep.json(&["list", "--first-wal"])["first_wal"].clone();
    let (kept_from, id) = (first_wal(), lockstep.json(&["repo", "list"]));
    let id = id["repositories"][0]["id"].as_str().expect("an id").to_owned();

    let (there, away) = (folder(&fixture), fixture.root().join("away"));
    fs::rename(&there, &away).expect("a folder can be renamed");
    let other = shipping::other_host(&fixture, "other", &fixture.cluster.data);
    other.expect(exit::DONE, &["repo", "init"]);
    let newest = Set::of(&lockstep.json(&["backup", "--no-ship"])).id;
    let prune = ["prune", "--repository", NAME];
    let planned = [&prune[..], &["--dry-run"]].concat();
    for arguments in [&["list", "--first-wal"][..], &prune[..], &planned[..]] {
        let refused = lockstep.expect(exit::REFUSED, arguments);
        assert_said(&refused, &["isn't at its URL", &id, "is its file system mounted"]);
        assert_eq!(refused.stdout, "", "{}", refused.describe());
    }
    let outcome = lockstep.expect(exit::PROBLEMS, &["prune", "--local"]);
    assert_said(&outcome, &["can't be asked what it has", "isn't at its URL"]);
    assert_eq!(
        lockstep.sets(),
        sorted(&[&common, &newest]),
        "the base of the next increment stays"
    );

    let _ = fs::remove_dir_all(&there);
    fs::rename(&away, &there).expect("a folder can be renamed");
    assert_eq!(first_wal(), kept_from);
    lockstep.expect(exit::DONE, &prune);
    let shipped = lockstep.json(&["ship"]);
    let volumes = shipped["repositories"][0]["volumes"].as_array().expect("volumes");
    assert!(volumes.iter().all(|volume| volume["base"].is_string()), "{shipped}");
}

/// Nothing says under its new name what it has, so it is assumed to have what was shipped to a name that no longer
/// exists.
#[test]
fn a_repository_that_was_renamed_and_is_away_is_believed_to_have_what_it_had() {
    let fixture = Fixture::new(two_pools_four_datasets());
    let table = |name| (name, format!("url = \"file://{}\"", folder(&fixture).display()));
    let retention = "\n[clusters.main.retention]\nlocal = { last = 1 }\n";
    let lockstep = shipping::configured(&fixture, &[table(NAME)], retention);
    lockstep.expect(exit::DONE, &["repo", "init"]);
    let [_, common] = [(); 2].map(|()| lockstep.backup("label").id);
    let lockstep = shipping::configured(&fixture, &[table("renamed")], retention);
    let (there, away) = (folder(&fixture), fixture.root().join("away"));
    fs::rename(&there, &away).expect("a folder can be renamed");
    let newest = Set::of(&lockstep.json(&["backup", "--no-ship"])).id;
    lockstep.expect(exit::PROBLEMS, &["prune", "--local"]);
    assert_eq!(lockstep.sets(), sorted(&[&common, &newest]));
    let _ = fs::remove_dir_all(&there);
    fs::rename(&away, &there).expect("a folder can be renamed");
    let shipped = lockstep.json(&["ship"]);
    let volumes = shipped["repositories"][0]["volumes"].as_array().expect("volumes");
    assert!(volumes.iter().all(|volume| volume["base"].is_string()), "{shipped}");
}

/// Neither side may take a set for the newest common one if no increment can start from it.
#[test]
fn a_set_that_is_not_whole_here_is_no_common_one() {
    let fixture = Fixture::new(two_pools_four_datasets().setting("autovacuum", "off"));
    let lockstep = configured(&fixture, "local = { last = 1 }\nrepository = { last = 1 }");
    let (whole, broken) = (lockstep.backup("label"), lockstep.backup("label"));
    let snapshot = &broken.volumes[0].snapshot;
    must(&mut command("zfs", ["release", "lockstep", snapshot]));
    must(&mut command("zfs", ["destroy", snapshot]));
    let run = json_of(&lockstep.run(&["prune", "--json"]));
    assert!(reasons(&run, 0, &whole.id).contains("newest in common with"), "{run}");
    assert!(reasons(&run, 1, &whole.id).contains("newest in common with this host"), "{run}");
    assert!(!reasons(&run, 1, &broken.id).contains("newest in common"), "{run}");
    let next = lockstep.backup("label");
    let volumes = next.json["repositories"][0]["volumes"].as_array().expect("volumes");
    assert!(volumes.iter().all(|volume| volume["base"].is_string()), "{}", next.json);
}

/// What was removed is gone and is reported, even if the merging after it fails.
#[test]
fn what_was_removed_is_said_beside_an_error() {
    let fixture = Fixture::new(two_pools_four_datasets().setting("autovacuum", "off"));
    let lockstep = configured(&fixture, "repository = { last = 9 }");
    let sets: Vec<_> = (0..4).map(|_| lockstep.backup("label")).collect();
    let volume = &sets[2].json["repositories"][0]["volumes"][0];
    let text = |name: &str| volume[name].as_str().expect("a text").to_owned();
    let (image, delta) = (text("image"), text("delta"));
    let is_its = |path: &&std::path::PathBuf| {
        let folder = path.parent().and_then(|parent| parent.file_name());
        path.ends_with(format!("{delta}.json")) && folder.is_some_and(|name| *name == *image)
    };
    let all = objects(&fixture);
    let descriptor = all.keys().find(is_its).unwrap_or_else(|| panic!("{volume}: {all:?}"));
    fs::write(folder(&fixture).join(descriptor), "junk").expect("the test may write there");
    let words = |id: &str| ["prune", "--repository", NAME, "--set", id].map(str::to_owned);
    let run = |id: &str, more: &[&str]| {
        let words = words(id);
        let words: Vec<_> = words.iter().map(String::as_str).chain(more.iter().copied()).collect();
        let outcome = lockstep.expect(exit::FAILED, &words);
        assert_said(&outcome, &["is damaged"]);
        outcome
    };
    let told = json_of(&run(&sets[0].id, &["--json"]));
    let place = &told["places"][0];
    assert_eq!(place["removed"], serde_json::json!([sets[0].id]), "{told}");
    assert!(place["error"].as_str().is_some_and(|why| why.contains("is damaged")), "{told}");
    assert_eq!(with_action(&told, 0, "remove"), [sets[0].id.clone()]);
    let outcome = run(&sets[1].id, &[]);
    assert!(outcome.stdout.contains("1 set removed"), "{}", outcome.describe());
}

#[test]
fn one_at_a_time() {
    let fixture = Fixture::new(two_pools_four_datasets().setting("autovacuum", "off"));
    let lockstep = configured(&fixture, "repository = { last = 1 }");
    let sets: Vec<_> = (0..2).map(|_| lockstep.backup("label").id).collect();
    let storage = strata::store::ObjectStorage::folder(&folder(&fixture)).expect("a folder");
    let store = strata::store::Store::new(storage);
    let repository = strata::Repository::new(store, "clusters/main", None).expect("a repository");
    let now = u64::try_from(jiff::Timestamp::now().as_second()).expect("after 1970");
    let lease = strata::lease::Lease::acquire(&repository, "write", "db2 (other)", 600, now);
    let lease = lease.expect("nobody has it");
    let before = objects(&fixture);
    let arguments = ["prune", "--repository", NAME];
    let locked = lockstep.expect(exit::LOCKED, &arguments);
    assert_said(&locked, &["error: ", "db2 (other)", "until 20", "hint: "]);
    assert_eq!(objects(&fixture), before, "nothing is touched");
    // A dry run doesn't need the lease.
    let planned = lockstep.json(&["prune", "--repository", NAME, "--dry-run"]);
    assert_eq!(with_action(&planned, 0, "remove"), [sets[0].clone()]);
    lease.release(now).expect("it is ours");
    lockstep.expect(exit::DONE, &arguments);
    let run = lockstep.json(&arguments);
    assert_eq!(with_action(&run, 0, "keep"), [sets[1].clone()]);
}

/// Most data is dead once these sets are gone: the packs that held it free their space.
#[test]
fn packs_of_sets_that_went_are_written_anew() {
    let fixture = Fixture::new(two_pools_four_datasets());
    fixture.pgbench_tables(1);
    let options = "grace_hours = 0\nrepack_below = 90\n\n[clusters.main.retention]\n\
                   repository = { last = 1 }\n";
    let lockstep = with_options(&fixture, options);
    let mut newest = String::new();
    for round in 0..4 {
        let change = format!("UPDATE pgbench_accounts SET filler = md5(aid::text || {round})");
        fixture.cluster.execute(&[&change, "VACUUM pgbench_accounts", "CHECKPOINT"]);
        newest = lockstep.backup("label").id;
    }
    let sum = "SELECT sum(hashtext(filler)) FROM pgbench_accounts";
    let expected = fixture.cluster.value("postgres", sum);
    let size = || packs(&fixture).values().sum::<u64>();
    let before = size();
    // The first run may not write anything and says so; the next one continues although it removes nothing.
    let budget = ["prune", "--repository", NAME, "--max-repack-bytes", "1"];
    let said = lockstep.expect(exit::DONE, &budget).stdout;
    assert!(said.contains("left for the next prune (--max-repack-bytes)"), "{said}");
    let pruned = lockstep.json(&["prune", "--repository", NAME]);
    let place = &pruned["places"][0];
    assert_eq!(place["removed"], serde_json::json!([]), "{place}");
    assert!(place["repacked"].as_u64() > Some(0), "{place}");
    assert_eq!(place["repack_left"], 0, "{place}");
    // The replaced packs are removed by the next run: they were still needed when this one looked.
    lockstep.json(&["prune", "--repository", NAME]);
    assert!(size() < before * 2 / 3, "{} of {before} bytes are left", size());
    lockstep.expect(exit::DONE, &["repo", "check", "--read-data"]);
    let restored = lockstep.restore_and_start(
        &newest,
        &fixture.target("newest"),
        &["--from", "repository", "--as", "files"],
    );
    assert_eq!(restored.server().value("postgres", sum), expected);
    restored.server().stop(Stop::Fast);
}

/// Gives a set that isn't shipped yet another id, as if it had been taken at that time.
fn taken_at(fixture: &Fixture, set: &str, id: &str) {
    let sets = fixture.state.join("clusters/main/sets");
    let path = sets.join(set).join("manifest.json");
    let text = fs::read_to_string(&path).expect("a manifest").replace(set, id);
    let mut manifest: Value = serde_json::from_str(&text).expect("JSON");
    let day = format!("{}-{}-{}", &id[..4], &id[4..6], &id[6..8]);
    for name in ["started_at", "finished_at", "consistent_at"] {
        manifest[name] = format!("{day}T00:00:00Z").into();
    }
    // Its checksum is computed again.
    manifest["checksum"] = "".into();
    let manifest: Manifest = serde_json::from_value(manifest).expect("a manifest");
    fs::write(&path, manifest.to_bytes().expect("a manifest")).expect("it can be written");
    fs::rename(sets.join(set), sets.join(id)).expect("it can be renamed");
    for volume in &manifest.volumes {
        let snapshot = format!("{}@lockstep-{id}", volume.dataset);
        zfs(&["rename", &format!("{}@lockstep-{set}", volume.dataset), &snapshot]);
        zfs(&["set", &format!("lockstep:set={id}"), &snapshot]);
    }
}

/// A clock was ahead once: until that date the set isn't the newest, is reported everywhere, and can be removed.
#[test]
fn a_set_that_is_dated_later_than_now() {
    let fixture = Fixture::new(two_pools_four_datasets().setting("autovacuum", "off"));
    let lockstep = configured(&fixture, "local = { last = 1 }\nrepository = { last = 1 }");
    let taken = Set::of(&lockstep.json(&["backup", "--no-ship"])).id;
    let ahead = "20990101T000000Z-aaaa";
    taken_at(&fixture, &taken, ahead);
    lockstep.expect(exit::DONE, &["ship", ahead]);
    // The only common set is still needed.
    let needed = lockstep.expect(exit::PROBLEMS, &["prune", "--local", "--set", ahead]);
    assert_said(&needed, &["newest in common with repository offsite"]);

    let outcome = lockstep.expect(exit::PROBLEMS, &["--json", "backup"]);
    assert_said(&outcome, &[ahead, "dated later than now", "lockstep prune --local --set"]);
    let next = Set::of(&json_of(&outcome));
    let volumes = next.json["repositories"][0]["volumes"].as_array().expect("volumes");
    assert!(volumes.iter().all(|volume| volume["base"].is_string()), "{}", next.json);
    for from in ["snapshots", "repository"] {
        let shown = lockstep.json(&["show", "latest", "--from", from]);
        assert_eq!(shown["set"], *next.id, "{from}");
        let shown = lockstep.expect(exit::DONE, &["show", "latest", "--from", from]);
        assert!(shown.stderr.contains(ahead) && shown.stderr.contains("passed over"), "{from}");
    }
    let checked = lockstep.expect(exit::PROBLEMS, &["check"]).stdout;
    for place in ["--local", "--repository offsite"] {
        let words = format!("lockstep prune {place} --set {ahead}");
        assert!(checked.contains(&words), "{checked}");
    }
    lockstep.expect(exit::DONE, &["prune"]);
    assert_eq!(lockstep.sets(), [&*next.id, ahead], "no policy takes it away");
    for place in [&["--local"][..], &["--repository", NAME]] {
        lockstep.expect(exit::DONE, &[&["prune", "--set", ahead], place].concat());
    }
    assert_eq!(lockstep.sets(), [&*next.id]);
    let checked = lockstep.expect(exit::DONE, &["check"]).stdout;
    assert!(!checked.contains("later than now"), "{checked}");
    let last = Set::of(&lockstep.json(&["backup"]));
    let volumes = last.json["repositories"][0]["volumes"].as_array().expect("volumes");
    assert!(volumes.iter().all(|volume| volume["base"].is_string()), "{}", last.json);
    let to = fixture.target("last");
    let parent = format!("{}/last", fixture.pools[0].name);
    lockstep.restore(&last.id, &to, &["--from", "repository", "--as", "zfs", "--dataset", &parent]);
    assert_received(&fixture, &last, &parent);
    discard(&fixture, &to, &parent);
}

/// What is remembered about the pages of a repository that nothing is shipped to any more takes space, and so do the
/// locks of killed commands.
#[test]
fn what_nobody_uses_any_more_goes() {
    let fixture = Fixture::new(two_pools_four_datasets());
    let lockstep = configured(&fixture, "local = { last = 1 }");
    lockstep.backup("label");
    let cluster = fixture.state.join("clusters/main");
    let of = |name: &str| ["tags", "deltas"].map(|kind| cluster.join(kind).join(name));
    let (own, former) = (of(NAME), of("former"));
    let seen = |name: &str| cluster.join("seen").join(format!("{name}.json"));
    assert!(seen(NAME).exists(), "the set's timeline was looked at");
    fs::copy(seen(NAME), seen("former")).expect("it can be copied");
    for folder in own.iter().chain(&former) {
        fs::create_dir_all(folder).expect("it can be made");
        fs::write(folder.join("known"), "").expect("it can be written");
    }
    let locks =
        ["name-dev.lock", "below-tank%main.lock"].map(|name| cluster.join("restores").join(name));
    for lock in &locks {
        fs::write(lock, "process 1 (lockstep restore)").expect("it can be written");
    }
    lockstep.expect(exit::DONE, &["prune", "--dry-run"]);
    assert!(former.iter().chain(&locks).all(|path| path.exists()), "a dry run changes nothing");
    assert!(seen("former").exists());
    lockstep.expect(exit::DONE, &["prune"]);
    assert!(!former.iter().chain(&locks).any(|path| path.exists()));
    assert!(!seen("former").exists() && seen(NAME).exists());
    assert!(own.iter().all(|folder| folder.join("known").exists()), "it is shipped to still");
}

/// No listing shows what a killed shipment left half written in a folder; `repo check` and `repo list` count it, and a
/// prune deletes it once it is old.
#[test]
fn what_a_killed_shipment_left_half_written_is_counted_and_goes() {
    let fixture = Fixture::new(two_pools_four_datasets());
    let lockstep = with_options(
        &fixture,
        "grace_hours = 1\n\n[clusters.main.retention]\nrepository = { last = 5 }\n",
    );
    lockstep.backup("label");
    let size = || {
        let listed = lockstep.json(&["repo", "list"]);
        listed["repositories"][0]["bytes"].as_u64().expect("a number")
    };
    let before = size();
    let pack = packs(&fixture).into_keys().next().expect("a pack");
    let half = |number: u64, hours: u64| {
        let path = std::path::PathBuf::from(format!("{}#{number}", pack.display()));
        fs::write(&path, vec![1; 1 << 20]).expect("it can be written");
        let time = std::time::SystemTime::now() - std::time::Duration::from_secs(hours * 3600 + 60);
        let file = fs::File::options().write(true).open(&path).expect("it is there");
        file.set_modified(time).expect("it can be dated");
        path
    };
    let (old, young) = (half(1, 1), half(2, 0));
    assert_eq!(size() - before, 2 << 20);
    let checked = lockstep.expect(exit::DONE, &["repo", "check"]);
    assert!(checked.stdout.contains("2 files half written (2.0 MiB)"), "{}", checked.describe());
    let pruned = lockstep.json(&["prune", "--repository", NAME]);
    assert_eq!(pruned["places"][0]["deleted"], 1, "{pruned}");
    assert!(!old.exists() && young.exists() && pack.exists());
}

/// Not a byte is left: the space for what a prune writes comes from what is due, and the space for its lease from the
/// reserve.
#[test]
fn a_full_folder_gets_room_again() {
    let fixture = Fixture::new(two_pools_four_datasets());
    let at = folder(&fixture);
    fs::create_dir(&at).expect("a folder can be made");
    let path = at.to_str().expect("the harness' own paths are UTF-8").to_owned();
    must(&mut command("mount", ["-t", "tmpfs", "-o", "size=96m", "small", path.as_str()]));
    let lockstep = configured(&fixture, "local = { last = 9 }\nrepository = { last = 2 }");
    let sets = [(); 3].map(|()| {
        fixture
            .cluster
            .execute(&["CREATE TABLE IF NOT EXISTS t (n int)", "INSERT INTO t VALUES (1)"]);
        lockstep.backup("label").id
    });
    // Then nothing needs what was stored for the last set at first.
    lockstep.expect(exit::DONE, &["ship", "--full", &sets[2]]);
    let fill = || {
        use std::io::Write;
        let mut file = fs::File::options().create(true).append(true).open(at.join("filler"));
        let file = file.as_mut().expect("it can be made");
        for size in [1 << 20, 4096, 1] {
            while file.write_all(&vec![1; size]).is_ok() {}
        }
    };
    let prune = ["prune", "--repository", NAME];
    let reserve = at.join("leases/reserve");
    fill();
    // Shipments may not use it.
    assert!(reserve.exists());
    let pruned = lockstep.json(&prune);
    let place = &pruned["places"][0];
    assert_eq!(place["removed"], serde_json::json!([sets[0]]), "{pruned}");
    assert!(place["error"].is_null() && place["deleted"].as_u64() > Some(0), "{pruned}");
    assert!(place["merged"].as_u64() > Some(0), "{pruned}");
    lockstep.expect(exit::DONE, &["repo", "check", "--read-data"]);
    // It exists again with the next lease.
    lockstep.backup("label");
    assert!(reserve.exists());

    // One whose making was killed: it frees no space, and the next lease completes it.
    fs::write(&reserve, "").expect("it can be cut off");
    lockstep.expect(exit::DONE, &["repo", "compact"]);
    assert_eq!(fs::metadata(&reserve).expect("it is there").len(), 256 << 10);
    fs::write(&reserve, "").expect("it can be cut off");
    fill();
    let failed = lockstep.expect(exit::FAILED, &prune);
    assert_said(&failed, &["No space left on device", "there isn't even room for the lease"]);
    // A folder that was full before anything was reserved.
    assert!(!reserve.exists());
    fill();
    let failed = lockstep.expect(exit::FAILED, &prune);
    assert_said(&failed, &["No space left on device", "there isn't even room for the lease"]);
    let shipped = lockstep.expect(exit::PROBLEMS, &["backup"]);
    assert_said(&shipped, &["No space left on device", "lockstep prune"]);
    let file = fs::File::options().write(true).open(at.join("filler")).expect("it is there");
    let length = file.metadata().expect("it is ours").len();
    file.set_len(length - (16 << 10)).expect("it can be cut off");
    drop(file);
    // The program accepts the command in the hint.
    let hint = shipped.stderr.lines().find(|line| line.contains("even if there is no room"));
    let hint = hint.unwrap_or_else(|| panic!("{}", shipped.describe()));
    let commands: Vec<_> =
        hint.split('`').filter_map(|words| words.strip_prefix("lockstep ")).collect();
    assert_eq!(commands.len(), 2, "{hint}");
    for words in commands {
        lockstep.expect(exit::DONE, &words.split(' ').collect::<Vec<_>>());
    }
    must(&mut command("umount", [path.as_str()]));
}

/// Waiting for a repository doesn't keep anybody from taking a backup.
#[test]
fn a_repository_that_never_answers_keeps_no_backup_from_being_taken() {
    let fixture = Fixture::new(two_pools_four_datasets());
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free");
    silent.set_nonblocking(true).expect("it can be asked");
    let port = silent.local_addr().expect("it has an address").port();
    let table = s3_table(fixture.root(), port, "bucket", "timeout_seconds = 4");
    let retention = "\n[clusters.main.retention]\nlocal = { last = 1 }\n";
    let lockstep = shipping::configured(&fixture, &[("far", table)], retention);
    let first = Set::of(&lockstep.json(&["backup", "--no-ship"])).id;
    let mut pruning = lockstep.spawn(&["prune", "--local"]);
    wait_until("the repository is asked", LIMIT, || silent.accept().is_ok());
    let second = Set::of(&lockstep.json(&["backup", "--no-ship"])).id;
    assert!(pruning.is_running(), "it has waited for an answer until here");
    let outcome = pruning.wait(LIMIT);
    assert_eq!(outcome.code, Some(exit::PROBLEMS), "{}", outcome.describe());
    assert_said(&outcome, &["repository far can't be asked what it has"]);
    // A set that was taken meanwhile counts.
    assert!(outcome.stdout.contains(&first), "{}", outcome.describe());
    assert_eq!(lockstep.sets(), [second]);
}
