//! Two hosts and one repository: two configurations, each with its own state folder. Only one writes at a time, a
//! lost one is waited for only until its lease expires, and neither needs what the other removes. One that stood
//! still for longer replaces and publishes nothing that isn't whole.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::support::checker::Checker;
use crate::support::cluster::Stop;
use crate::support::command::Running;
use crate::support::faults::assert_said;
use crate::support::fixture::Fixture;
use crate::support::layout::two_pools_four_datasets;
use crate::support::lockstep::{Lockstep, Restored, Steps, exit, json_of, toml_string};
use crate::support::shipping::{NAME, folder, objects, other_host, packs, with_options};
use serde_json::json;
use strata::check::{self, Begun, Collected, Doomed, Run, Terms};
use strata::lease::{HELD, Lease};
use strata::manifest::Manifest;
use strata::store::{ObjectStorage, Store};

const PRUNE: [&str; 3] = ["prune", "--repository", NAME];

struct Hosts {
    fixture: Fixture,
    /// The host that takes the sets.
    first: Lockstep,
    /// The host that maintains the repository; the cluster isn't there.
    second: Lockstep,
    steps: Steps,
}

fn hosts() -> Hosts {
    let fixture = Fixture::new(two_pools_four_datasets());
    fixture.pgbench_tables(1);
    let retention = "grace_hours = 0\n\n[clusters.main.retention]\nrepository = { last = 1 }\n";
    let first = with_options(&fixture, retention);
    let root = fixture.root();
    let text = fs::read_to_string(root.join("shipping.toml")).expect("the configuration");
    let state = |path: PathBuf| format!("{:?}", path.to_str().expect("UTF-8"));
    let other = text.replace(&state(fixture.state.clone()), &state(root.join("other-state")));
    assert_ne!(text, other, "the state folder stands in it");
    let path = root.join("other.toml");
    fs::write(&path, other).expect("it can be written");
    let steps = Steps::new(root.join("steps"));
    let second = Lockstep::new(&path, &fixture.cluster.bin).with_steps(&steps);
    Hosts { fixture, first, second, steps }
}

fn pause() {
    // Sets of the same second have no order.
    std::thread::sleep(Duration::from_millis(1100));
}

#[test]
fn two_prunes_are_never_at_once_and_a_backup_waits_for_one() {
    let hosts = hosts();
    let Hosts { fixture, first, second, steps } = &hosts;
    let mut sets = Vec::new();
    for _ in 0..3 {
        sets.push(first.backup("label").id);
        fixture.cluster.execute(&["UPDATE pgbench_accounts SET filler = 'x' WHERE aid % 97 = 0"]);
        pause();
    }
    // The second host is in the middle of a prune.
    steps.hold("prune.repository-merge");
    let mut pruning = second.spawn(&[&PRUNE[..], &["--json"]].concat());
    steps.wait_reached("prune.repository-merge", &mut pruning);
    for arguments in [&PRUNE[..], &["repo", "compact"], &["repo", "check", "--repair"]] {
        let locked = first.expect(exit::LOCKED, arguments);
        assert_said(&locked, &["error: ", "repository \"offsite\"", "until 20", "hint: "]);
    }
    // On the same host, a backup is taken as well; it isn't shipped because the other has the lease.
    let meanwhile = second.expect(exit::PROBLEMS, &["--json", "backup"]);
    assert_eq!(json_of(&meanwhile)["repositories"][0]["complete"], json!(false));
    fixture.discard_set(json_of(&meanwhile)["set"].as_str().expect("an id"));
    // A backup is taken at once, and shipped when the other is done.
    let ours = Steps::new(fixture.root().join("our-steps"));
    let mut backup = first.clone().with_steps(&ours).spawn(&["--json", "backup"]);
    ours.wait_reached("lease.waiting", &mut backup);
    assert!(backup.is_running());
    steps.release("prune.repository-merge");
    let pruned = pruning.wait(Duration::from_secs(120));
    assert!(pruned.ok(), "{}", pruned.describe());
    assert_eq!(json_of(&pruned)["places"][0]["removed"], json!(sets[..2]));
    let backup = backup.wait(Duration::from_secs(120));
    assert!(backup.ok(), "{}", backup.describe());
    assert_said(&backup, &["in repository \"offsite\" is in use by", "waiting up to 600 seconds"]);
    let backup = json_of(&backup);
    assert_eq!(backup["repositories"][0]["complete"], true, "{backup}");
    let newest = backup["set"].as_str().expect("an id");
    proves(&hosts, &[&sets[2], newest]);
}

/// Sets that another host removes, even the newest, aren't a storage that went back to an older state.
#[test]
fn what_another_host_prunes_is_not_called_lost() {
    let hosts = hosts();
    let Hosts { fixture, first, second, .. } = &hosts;
    let mut sets = Vec::new();
    for _ in 0..3 {
        sets.push(first.backup("label").id);
        pause();
    }
    let backup = || {
        let outcome = first.expect(exit::DONE, &["--json", "backup"]);
        assert_eq!(json_of(&outcome)["repositories"][0]["went_back"], json!(null));
        pause();
    };
    second.expect(exit::DONE, &[&PRUNE[..], &["--set", &sets[2]]].concat());
    backup();
    second.expect(exit::DONE, &PRUNE);
    backup();
    // This host's own prune, of what it has and of what only the repository has.
    first.expect(exit::DONE, &["prune", "--local", "--set", &sets[0]]);
    first.expect(exit::DONE, &PRUNE);
    backup();
    // Nor are leases that somebody removed by hand.
    let leases = folder(fixture).join("clusters/main/leases");
    fs::remove_dir_all(leases).expect("they can be removed");
    let checked = first.run(&["check"]);
    assert!(!checked.stdout.contains("went back"), "{}", checked.describe());
    backup();
}

/// This host has seen the sets, and another one removes them; then the leases are removed by hand.
#[test]
fn what_another_host_prunes_is_not_called_lost_by_one_that_saw_it() {
    let hosts = hosts();
    let Hosts { fixture, first, second, .. } = &hosts;
    for _ in 0..2 {
        second.backup("label");
        pause();
    }
    first.backup("label");
    second.expect(exit::DONE, &PRUNE);
    let leases = folder(fixture).join("clusters/main/leases");
    fs::remove_dir_all(leases).expect("they can be removed");
    let checked = first.run(&["check"]);
    assert!(!checked.stdout.contains("went back"), "{}", checked.describe());
    pause();
    let said = json_of(&first.expect(exit::DONE, &["--json", "backup"]));
    assert_eq!(said["repositories"][0]["went_back"], json!(null), "{said}");
}

/// The other host wants to prune when a backup is almost complete: it is let in when the set is.
#[test]
fn a_backup_during_a_prune_loses_nothing() {
    let hosts = hosts();
    let Hosts { fixture, first, second, .. } = &hosts;
    let old = first.backup("label").id;
    pause();
    let ours = Steps::new(fixture.root().join("our-steps"));
    ours.hold("ship.stored");
    let mut backup = first.clone().with_steps(&ours).spawn(&["--json", "backup"]);
    ours.wait_reached("ship.stored", &mut backup);
    // Everything except the manifest is there: a host that may not write may look, and changes nothing.
    second.expect(exit::LOCKED, &PRUNE);
    let looked = second.json(&[&PRUNE[..], &["--dry-run"]].concat());
    assert_eq!(looked["places"][0]["sets"][0]["action"], "keep", "{looked}");
    ours.release("ship.stored");
    let backup = backup.wait(Duration::from_secs(120));
    assert!(backup.ok(), "{}", backup.describe());
    let newest = json_of(&backup)["set"].as_str().expect("an id").to_owned();
    let pruned = second.json(&PRUNE);
    assert_eq!(pruned["places"][0]["removed"], json!([old]), "{pruned}");
    proves(&hosts, &[&newest]);
}

#[test]
fn a_lost_hosts_lease_expires() {
    let hosts = hosts();
    let Hosts { fixture, first, second, .. } = &hosts;
    first.backup("label");
    pause();
    let repository = opened(fixture);
    // A host that took the lease and was never seen again.
    let lost = Lease::acquire(&repository, "write", "db2 (lost)", 6, now());
    let lost = lost.expect("nobody has it");
    let begun = Instant::now();
    for host in [first, second] {
        assert_said(&host.expect(exit::LOCKED, &PRUNE), &["db2 (lost)", "has expired"]);
    }
    assert!(begun.elapsed() < Duration::from_secs(5), "the machine is too slow for this test");
    // A shipment waits as long as necessary.
    let shipped = first.json(&["backup"]);
    assert_eq!(shipped["repositories"][0]["complete"], true, "{shipped}");
    assert!(now() >= lost.expires(), "not before it has expired");
    second.expect(exit::DONE, &PRUNE);
    // When it comes back, it finds that the lease is no longer its own.
    let mut lost = lost;
    assert!(matches!(lost.renew(now()), Err(strata::Error::LeaseLost { .. })));
    let newest = shipped["set"].as_str().expect("an id");
    proves(&hosts, &[newest]);
}

/// What existed before waiting for the lease may be gone afterwards.
#[test]
fn a_set_that_is_pruned_while_it_waits_is_shipped_anew() {
    let hosts = hosts();
    let Hosts { fixture, first, second, steps } = &hosts;
    let old = first.backup("label").id;
    pause();
    let newest = first.backup("label").id;
    steps.hold("prune.planned");
    let mut pruning = second.spawn(&PRUNE);
    steps.wait_reached("prune.planned", &mut pruning);
    let ours = Steps::new(fixture.root().join("our-steps"));
    let mut shipping = first.clone().with_steps(&ours).spawn(&["ship", "--full", &old]);
    ours.wait_reached("lease.waiting", &mut shipping);
    steps.release("prune.planned");
    let pruned = pruning.wait(Duration::from_secs(120));
    assert!(pruned.ok(), "{}", pruned.describe());
    let shipped = shipping.wait(Duration::from_secs(120));
    assert!(shipped.ok(), "{}", shipped.describe());
    proves(&hosts, &[&old, &newest]);
}

/// The program for a restored cluster that replaces the original; as far as it knows, it is on another host.
fn host_of(fixture: &Fixture, name: &str, restored: &Restored) -> Lockstep {
    let (lockstep, server) = (other_host(fixture, name, &restored.data), restored.server());
    let path = fixture.root().join(format!("{name}.toml"));
    let text = fs::read_to_string(&path).expect("the configuration");
    let (old, new) = [&fixture.cluster, server]
        .map(|server| format!("host = {}\nport = {}", toml_string(&server.socket), server.port))
        .into();
    assert!(text.contains(&old), "{text}");
    fs::write(&path, text.replace(&old, &new)).expect("it can be written");
    lockstep
}

/// After a failover the old host's timer continues. Each of its sets is whole and the newest, but of data that nobody
/// wants.
#[test]
fn what_the_old_host_of_a_failover_takes_is_left_behind() {
    let fixture = Fixture::new(two_pools_four_datasets());
    fixture.cluster.execute(&["CREATE TABLE marks (id int)"]);
    let retention = "grace_hours = 0\n\n[clusters.main.retention]\nrepository = { last = 1 }\n";
    let old = with_options(&fixture, retention);
    let first = old.backup("label").id;
    let promoted = old.restore_and_start(&first, &fixture.target("promoted"), &[]);
    let new = host_of(&fixture, "new", &promoted);
    fixture.cluster.execute(&["INSERT INTO marks VALUES (1)", "CHECKPOINT"]);
    promoted.server().execute(&["INSERT INTO marks VALUES (100)", "CHECKPOINT"]);
    pause();
    let living = new.backup("label");
    assert_eq!(living.json["timeline"], 2, "{}", living.json);
    let living = living.id;
    pause();
    let backup = old.expect(exit::PROBLEMS, &["--json", "backup"]);
    assert_said(&backup, &["is left behind: it is of timeline 1", &living, "hint: "]);
    let backup = json_of(&backup);
    let (left, shipped) = (backup["set"].as_str().expect("an id"), &backup["repositories"][0]);
    assert_eq!(shipped["complete"], true, "{shipped}");
    let why = shipped["left_behind"].as_str().expect("why");
    assert!(why.contains("for timeline 2"), "{why}");
    old.expect(exit::PROBLEMS, &["ship", left]);

    let to = fixture.target("planned");
    let to = to.to_str().expect("UTF-8");
    let plan = ["--json", "restore", "--from", "repository", "--to", to, "--dry-run"];
    for host in [&old, &new] {
        for (more, id) in [
            (&["latest"][..], &*living),
            (&[], &living),
            (&["--target-immediate"], &living),
            (&[left], left),
            (&["--target-timeline", "1"], left),
        ] {
            let planned = host.expect(exit::DONE, &[&plan[..], more].concat());
            assert_eq!(json_of(&planned)["set"], *id, "{more:?}");
            let is_told = planned.stderr.contains("passed over") && planned.stderr.contains(left);
            assert_eq!(is_told, id == living, "{}", planned.describe());
        }
        let shown = host.json(&["show", "latest", "--from", "repository"]);
        assert_eq!(shown["set"], living);
        let listed = host.expect(exit::DONE, &["list", "--from", "repository"]);
        assert!(listed.stdout.contains("TIMELINE"), "{}", listed.describe());
        let checked = host.expect(exit::PROBLEMS, &["check"]);
        let newest = format!("its newest set {left} is left behind");
        assert!(checked.stdout.contains(&newest), "{}", checked.describe());
        let itself = checked.stdout.contains("this host's cluster is on timeline 1");
        assert_eq!(itself, std::ptr::eq(host, &old), "{}", checked.describe());
        // Each of the two has its own newest set, and none of the other's.
        let pruned = host.json(&[&PRUNE[..], &["--dry-run"]].concat());
        let sets = pruned["places"][0]["sets"].as_array().expect("sets");
        let kept = sets.iter().filter(|set| set["action"] == "keep").map(|set| &set["set"]);
        assert_eq!(kept.collect::<Vec<_>>(), [&*living, left], "{pruned}");
    }
    // The original's tablespaces are on clones that a restore has made.
    let more = ["--from", "repository", "--as", "files"];
    let restored = new.restore_and_start("latest", &fixture.target("back"), &more);
    let rows = restored.server().column("postgres", "SELECT id FROM marks ORDER BY id");
    assert_eq!(rows, ["100"]);
    restored.server().stop(Stop::Fast);
    assert_eq!(promoted.server().value("postgres", "SELECT sum(id) FROM marks"), "100");
    promoted.server().stop(Stop::Fast);

    // The living branch's only manifest is damaged. A host that has read it before knows that the branch existed; one
    // that hasn't doesn't choose.
    let manifest = folder(&fixture).join("clusters/main/sets").join(format!("{living}.json"));
    let text = fs::read_to_string(&manifest).expect("it is there");
    fs::write(&manifest, text.replace("main", "mxin")).expect("it can be written");
    let fresh = other_host(&fixture, "fresh", &fixture.root().join("nowhere"));
    let latest = ["show", "latest", "--from", "repository"];
    let named = format!("lockstep prune --repository {NAME} --set {living}");
    let refused = fresh.expect(exit::REFUSED, &latest);
    assert_said(&refused, &[&living, "it is unknown which set is the latest", left, &named]);
    fresh.expect(exit::REFUSED, &[&plan[..], &["latest"]].concat());
    fresh.expect(exit::DONE, &[&plan[..], &[left]].concat());
    assert_said(&old.expect(exit::FAILED, &latest), &[&living, "damaged"]);
    fs::remove_dir_all(fixture.state.join("clusters/main/seen")).expect("it is there");
    let shipped = old.expect(exit::DONE, &["ship", left]);
    assert_said(&shipped, &[&living, "can't be read", &named]);
    let checked = old.expect(exit::PROBLEMS, &["check"]);
    let said = format!("set {living} can't be read, so it is unknown which set is `latest`");
    assert!(checked.stdout.contains(&said), "{}", checked.describe());
}

/// Two restores of one set, and PostgreSQL gives both the same timeline: nothing in the histories of their sets tells
/// which one was given up, and its timer continues.
#[test]
fn two_restores_of_one_set_are_told_by_their_places_in_the_wal() {
    let fixture = Fixture::new(two_pools_four_datasets());
    let original = with_options(&fixture, "grace_hours = 0\n");
    let set = original.backup("label").id;
    let restored = ["first", "second"]
        .map(|name| original.restore_and_start(&set, &fixture.target(name), &[]));
    let [first, second] =
        [0, 1].map(|at| host_of(&fixture, ["first-host", "second-host"][at], &restored[at]));
    let given_up = first.backup("label");
    assert_eq!(given_up.json["timeline"], 2);
    pause();
    let backup = second.expect(exit::PROBLEMS, &["--json", "backup"]);
    let living = json_of(&backup)["set"].as_str().expect("an id").to_owned();
    let directories = [&restored[0], &restored[1]].map(|one| one.data.to_str().expect("UTF-8"));
    let words = [
        "two clusters went on along timeline 2",
        &given_up.id,
        &living,
        directories[0],
        directories[1],
        "hint: which of the two is the live one?",
    ];
    assert_said(&backup, &words);
    let why = json_of(&backup)["repositories"][0]["apart"].clone();
    assert!(why.as_str().is_some_and(|why| why.contains(&living)), "{why}");
    pause();
    assert_said(&first.expect(exit::PROBLEMS, &["backup"]), &words);
    for host in [&first, &second] {
        assert_said(
            &host.expect(exit::DONE, &["show", "latest", "--from", "repository"]),
            &words[..5],
        );
        let checked = host.expect(exit::PROBLEMS, &["check"]);
        assert!(checked.stdout.contains(words[0]), "{}", checked.describe());
    }
    // Do what the hint says: the other one's sets are removed, and everything is well.
    let sets = fs::read_dir(fixture.root().join("state-first-host/clusters/main/sets"));
    for entry in sets.expect("it can be listed").flatten() {
        let id = entry.file_name().into_string().expect("an id");
        second.expect(exit::DONE, &[&PRUNE[..], &["--set", &id]].concat());
    }
    second.expect(exit::DONE, &["ship"]);
    let shown = second.expect(exit::DONE, &["--json", "show", "latest", "--from", "repository"]);
    assert_eq!(json_of(&shown)["set"], *living);
    assert!(!shown.stderr.contains("two clusters"), "{}", shown.describe());
    restored.iter().for_each(|one| one.server().stop(Stop::Fast));
}

/// A repository couldn't be reached, and the newest set here is of a timeline that was left: `ship` ships that one,
/// and says so.
#[test]
fn what_is_shipped_without_a_name_is_the_newest_here() {
    let fixture = Fixture::new(two_pools_four_datasets());
    let old = with_options(&fixture, "grace_hours = 0\n");
    let set = old.backup("label").id;
    let promoted = old.restore_and_start(&set, &fixture.target("promoted"), &[]);
    host_of(&fixture, "new", &promoted);
    // The same state_dir, whose configuration was changed for a while.
    let path = fixture.root().join("new.toml");
    let text = fs::read_to_string(&path).expect("the configuration");
    let state = toml_string(&fixture.root().join("state-new"));
    fs::write(&path, text.replace(&state, &toml_string(&fixture.state)))
        .expect("it can be written");
    let new = Lockstep::new(&path, &fixture.cluster.bin);
    let living = new.backup("label").id;
    pause();
    promoted.server().stop(Stop::Fast);
    let backup = json_of(&old.expect(exit::PROBLEMS, &["--json", "backup", "--no-ship"]));
    let left = backup["set"].as_str().expect("an id");
    let shipped = old.expect(exit::PROBLEMS, &["--json", "ship"]);
    assert_said(&shipped, &["is left behind", left, &living]);
    let shipped = json_of(&shipped);
    assert_eq!(shipped["set"], *left);
    assert_eq!(shipped["repositories"][0]["complete"], true, "{shipped}");
    assert_eq!(json_of(&old.expect(exit::DONE, &["--json", "ship", "latest"]))["set"], *living);
}

/// What nobody needs is removed, whatever an interrupted shipment may have begun.
fn collect(repository: &strata::Repository, grace: u64, at: u64) -> strata::Result<Collected> {
    check::collect(repository, &Begun::default(), Terms::at(grace, at), Run::Real, HELD)
}

fn now() -> u64 {
    u64::try_from(jiff::Timestamp::now().as_second()).expect("after 1970")
}

fn opened(fixture: &Fixture) -> strata::Repository {
    let storage = ObjectStorage::folder(&folder(fixture)).expect("a folder");
    let repository = strata::Repository::new(Store::new(storage), "clusters/main", None);
    repository.expect("a repository")
}

/// Another host's lease: by its clock it is a thousand seconds later, and the previous holder stood still.
fn taken_over(repository: &strata::Repository) -> Lease {
    Lease::acquire(repository, "write", "db2 (other)", 300, now() + 1000).expect("it has expired")
}

/// A store's descriptors, of images and of sets' files.
fn descriptors(fixture: &Fixture) -> BTreeMap<PathBuf, Vec<u8>> {
    let all = objects(fixture).into_keys().filter(|path| {
        path.extension().is_some_and(|end| end == "json")
            && path.to_str().is_some_and(|path| path.contains("/volumes/"))
    });
    all.map(|path| (path.clone(), fs::read(&path).expect("it can be read"))).collect()
}

#[test]
fn who_stood_still_replaces_no_delta() {
    let hosts = hosts();
    let Hosts { fixture, first, .. } = &hosts;
    let set = first.backup("label").id;
    let repository = opened(fixture);
    let before = descriptors(fixture);
    let ours = Steps::new(fixture.root().join("our-steps"));
    let hooked = first.clone().with_steps(&ours);
    let full = ["--json", "ship", "--full", &set];
    // Everything except the descriptors is there.
    ours.hold("ship.replacing");
    let mut shipping = hooked.spawn(&full);
    ours.wait_reached("ship.replacing", &mut shipping);
    let other = taken_over(&repository);
    ours.release("ship.replacing");
    let outcome = shipping.wait(Duration::from_secs(120));
    assert_eq!(outcome.code, Some(exit::PROBLEMS), "{}", outcome.describe());
    assert_said(&outcome, &["was not replaced", "was lost to \"db2 (other)\"", "hint: "]);
    assert_eq!(json_of(&outcome)["repositories"][0]["was_there"], true, "{}", outcome.describe());
    assert_eq!(descriptors(fixture), before);
    other.release(now()).expect("it is ours");

    // It stood still just after the store's answer, and what it had stored was collected.
    let old: Vec<_> = packs(fixture).into_keys().collect();
    ours.hold("ship.stored");
    let mut shipping = hooked.spawn(&full);
    ours.wait_reached("ship.stored", &mut shipping);
    let other = taken_over(&repository);
    let new = packs(fixture).into_keys().filter(|pack| !old.contains(pack));
    new.for_each(|pack| fs::remove_file(pack).expect("the test may delete it"));
    other.release(now()).expect("it is ours");
    ours.release("ship.stored");
    let outcome = shipping.wait(Duration::from_secs(120));
    assert_eq!(outcome.code, Some(exit::PROBLEMS), "{}", outcome.describe());
    assert_said(&outcome, &["isn't whole any more", "is gone", "hint: ", "ship --full"]);
    let shipped = first.json(&["ship", "--full", &set]);
    assert_eq!(shipped["repositories"][0]["complete"], true, "{shipped}");
    proves(&hosts, &[&set]);
}

/// A backup that stands still when everything except the manifest is stored.
fn held_at_publishing(hooked: &Lockstep, ours: &Steps) -> Running {
    pause();
    ours.hold("ship.publishing");
    let mut backup = hooked.spawn(&["--json", "backup", "--strategy", "label"]);
    ours.wait_reached("ship.publishing", &mut backup);
    backup
}

#[test]
fn who_stood_still_publishes_nothing_that_is_not_whole() {
    let hosts = hosts();
    let Hosts { fixture, first, .. } = &hosts;
    let old = first.backup("label").id;
    let repository = opened(fixture);
    let ours = Steps::new(fixture.root().join("our-steps"));
    let hooked = first.clone().with_steps(&ours);
    for is_collected in [true, false] {
        let backup = held_at_publishing(&hooked, &ours);
        let other = taken_over(&repository);
        if is_collected {
            let collected = collect(&repository, 0, now() + 1_000_000);
            assert!(collected.expect("it can be collected").deleted.len() > 10);
        }
        other.release(now()).expect("it is ours");
        ours.release("ship.publishing");
        let outcome = backup.wait(Duration::from_secs(120));
        let complete = json_of(&outcome)["repositories"][0]["complete"] == true;
        assert_eq!(complete, !is_collected, "{}", outcome.describe());
        if is_collected {
            assert_said(
                &outcome,
                &["was collected by another host", "is gone", "its manifest was withdrawn"],
            );
            let there = Manifest::list(&repository).expect("a list");
            assert_eq!(there, std::slice::from_ref(&old));
        }
    }
    // What was taken back is stored again.
    let missing = first.json(&["ship", "--missing"]);
    assert_eq!(missing["sets"].as_array().map(Vec::len), Some(1), "{missing}");
    let sets = Manifest::list(&repository).expect("a list");
    assert_eq!(sets.len(), 3);
    proves(&hosts, &sets.iter().map(String::as_str).collect::<Vec<_>>());
}

/// The other host works for a long time. What isn't whole is taken back before waiting for it. What was whole, and
/// whose program is killed while it waits, is checked by the next shipment.
#[test]
fn who_stood_still_waits_for_nobody_to_take_back_what_is_not_whole() {
    let hosts = hosts();
    let Hosts { fixture, first, .. } = &hosts;
    let old = first.backup("label").id;
    let repository = opened(fixture);
    let ours = Steps::new(fixture.root().join("our-steps"));
    let hooked = first.clone().with_steps(&ours);
    let backup = held_at_publishing(&hooked, &ours);
    let other = taken_over(&repository);
    let collected = collect(&repository, 0, now() + 1_000_000);
    assert!(collected.expect("it can be collected").deleted.len() > 10);
    ours.release("ship.publishing");
    let outcome = backup.wait(Duration::from_secs(120));
    assert_said(&outcome, &["was collected by another host", "its manifest was withdrawn"]);
    let there = || Manifest::list(&repository).expect("a list");
    assert_eq!(there(), std::slice::from_ref(&old));
    other.release(now()).expect("it is ours");

    let before = packs(fixture);
    let mut backup = held_at_publishing(&hooked, &ours);
    let other = taken_over(&repository);
    ours.release("ship.publishing");
    ours.wait_reached("lease.inheriting", &mut backup);
    backup.kill();
    let sets = there();
    assert_eq!((sets.len(), &sets[0]), (2, &old));
    let new = packs(fixture).into_keys().find(|pack| !before.contains_key(pack)).expect("packs");
    fs::remove_file(&new).expect("the test may delete it");
    other.release(now()).expect("it is ours");
    let harmed = first.expect(exit::PROBLEMS, &["ship", &sets[1]]);
    assert_said(&harmed, &["isn't whole", "is gone", "hint: ", "ship --full"]);
    first.expect(exit::PROBLEMS, &["ship", &sets[1]]);
    let shipped = first.json(&["ship", "--full", &sets[1]]);
    assert_eq!(shipped["repositories"][0]["complete"], true, "{shipped}");
    let shipped = first.json(&["ship", &sets[1]]);
    assert_eq!(shipped["repositories"][0]["already"], true, "{shipped}");
    proves(&hosts, &[&old, &sets[1]]);
}

/// Objects that a set depends on and that were noted as unneeded get their whole grace time again.
#[test]
fn a_shipment_strikes_out_what_it_needs_of_the_note() {
    let hosts = hosts();
    let Hosts { fixture, first, .. } = &hosts;
    first.backup("label");
    pause();
    let second = first.backup("label").id;
    pause();
    let repository = opened(fixture);
    let noted = || Doomed::read(&repository).expect("a note");
    let collected = |at: u64| collect(&repository, 3600, now() + at).expect("collected");
    let own = |id: &str| {
        let set = Manifest::read(&repository, id).expect("a manifest");
        set.deltas.into_iter().filter(|delta| delta.image != "@files").collect::<Vec<_>>()
    };
    let deltas = own(&second);
    let path = |delta: &strata::manifest::DeltaId| {
        strata::delta::descriptor_path(&repository, &delta.image, &delta.id).expect("a path")
    };
    Manifest::delete(&repository, &second).expect("it can be deleted");
    let waiting = collected(10_000).waiting;
    assert!(deltas.iter().all(|delta| noted().since(&path(delta)).is_some()), "{waiting:?}");
    // Its descriptors still exist: the next set is an increment on top of them.
    let third = first.backup("label");
    assert_eq!(third.json["repositories"][0]["complete"], true, "{}", third.json);
    assert!(deltas.iter().all(|delta| noted().since(&path(delta)).is_none()));
    let files = waiting.iter().filter(|path| path.contains("/@files/"));
    assert!(files.clone().count() > 0 && files.clone().all(|at| noted().since(at).is_some()));
    // It is removed before anybody has looked again.
    Manifest::delete(&repository, &third.id).expect("it can be deleted");
    let later = collected(20_000);
    let is_of_chain = |at: &String| deltas.iter().any(|delta| *at == path(delta));
    assert!(!later.deleted.iter().any(is_of_chain), "{later:?}");
    assert_eq!(later.waiting.iter().filter(|at| is_of_chain(at)).count(), deltas.len());
}

#[test]
fn what_another_host_takes_away_is_not_called_damage() {
    let hosts = hosts();
    let Hosts { fixture, first, second, steps } = &hosts;
    for _ in 0..2 {
        first.backup("label");
        fixture.cluster.execute(&["UPDATE pgbench_accounts SET filler = 'x' WHERE aid % 97 = 0"]);
        pause();
    }
    steps.hold("prune.repository-merge");
    let mut pruning = second.spawn(&PRUNE);
    steps.wait_reached("prune.repository-merge", &mut pruning);
    let other = taken_over(&opened(fixture));
    let indexes =
        objects(fixture).into_keys().filter(|path| path.to_string_lossy().contains(".packs."));
    indexes.for_each(|path| fs::remove_file(path).expect("the test may delete it"));
    steps.release("prune.repository-merge");
    let outcome = pruning.wait(Duration::from_secs(120));
    assert_eq!(outcome.code, Some(exit::FAILED), "{}", outcome.describe());
    assert_said(&outcome, &["was lost to \"db2 (other)\"", "hint: "]);
    assert!(!outcome.stderr.contains("is the repository whole"), "{}", outcome.describe());
    other.release(now()).expect("it is ours");
}

/// These sets are there and whole, and the last one restores and is right.
fn proves(hosts: &Hosts, sets: &[&str]) {
    let Hosts { fixture, first, second, .. } = hosts;
    let checked = &second.json(&["repo", "check", "--read-data"])["repositories"][0];
    assert_eq!(checked["harmed"], json!([]), "{checked}");
    let listed = second.json(&["list", "--from", "repository"]);
    let ids: Vec<_> =
        listed["sets"].as_array().expect("sets").iter().map(|set| set["set"].clone()).collect();
    assert_eq!(json!(ids), json!(sets));
    let set = sets.last().expect("one");
    let more = ["--from", "repository", "--as", "files"];
    let restored = first.restore_and_start(set, &fixture.target("back"), &more);
    Checker::new(1).check_and_stop(restored.server()).assert_right(set);
}
