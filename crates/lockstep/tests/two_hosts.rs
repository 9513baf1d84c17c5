//! Two hosts and one repository: two configurations with a state folder each. Whoever writes is alone, whoever is
//! lost is waited for no longer than its lease lasts, and what one takes away the other doesn't need.

mod support;

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::json;
use strata::lease::Lease;
use strata::store::{ObjectStorage, Store};
use support::checker::Checker;
use support::cluster::Stop;
use support::faults::assert_said;
use support::fixture::Fixture;
use support::layout::two_pools_four_datasets;
use support::lockstep::{Lockstep, Restored, Steps, exit, json_of, toml_string};
use support::shipping::{NAME, folder, other_host, with_options};

const PRUNE: [&str; 3] = ["prune", "--repository", NAME];

struct Hosts {
    fixture: Fixture,
    /// Takes the sets.
    first: Lockstep,
    /// Looks after the repository; the cluster isn't there.
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
    // Sets of one second have no order.
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
    // The second host is in the middle of it.
    steps.hold("prune.repository-merge");
    let mut pruning = second.spawn(&[&PRUNE[..], &["--json"]].concat());
    steps.wait_reached("prune.repository-merge", &mut pruning);
    for arguments in [&PRUNE[..], &["repo", "compact"], &["repo", "check", "--repair"]] {
        let locked = first.expect(exit::LOCKED, arguments);
        assert_said(&locked, &["error: ", "repository \"offsite\"", "until 20", "hint: "]);
    }
    // On the same host a backup is taken as well; shipping is the other's for now.
    let meanwhile = second.expect(exit::PROBLEMS, &["--json", "backup"]);
    assert_eq!(json_of(&meanwhile)["repositories"][0]["complete"], json!(false));
    fixture.discard_set(json_of(&meanwhile)["set"].as_str().expect("an id"));
    // A backup is taken at once, and shipped once the other is done.
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
    let backup = json_of(&backup);
    assert_eq!(backup["repositories"][0]["complete"], true, "{backup}");
    let newest = backup["set"].as_str().expect("an id");
    proves(&hosts, &[&sets[2], newest]);
}

/// The other host would prune while a backup is all but there: it is let in when the set is complete.
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
    // All but the manifest is there: whoever may not write may look, and changes nothing.
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
    let storage = ObjectStorage::folder(&folder(fixture)).expect("a folder");
    let repository = strata::Repository::new(Store::new(storage), "clusters/main", None);
    let repository = repository.expect("a repository");
    let now = || u64::try_from(jiff::Timestamp::now().as_second()).expect("after 1970");
    // A host that took it, and was never seen again.
    let lost = Lease::acquire(&repository, "write", "db2 (lost)", 6, now());
    let lost = lost.expect("nobody has it");
    let begun = Instant::now();
    for host in [first, second] {
        assert_said(&host.expect(exit::LOCKED, &PRUNE), &["db2 (lost)", "has expired"]);
    }
    assert!(begun.elapsed() < Duration::from_secs(5), "the machine is too slow for this test");
    // A shipment waits for as long as it takes.
    let shipped = first.json(&["backup"]);
    assert_eq!(shipped["repositories"][0]["complete"], true, "{shipped}");
    assert!(now() >= lost.expires(), "not before it has expired");
    second.expect(exit::DONE, &PRUNE);
    // Back again, it finds that it isn't its own any more.
    let mut lost = lost;
    assert!(matches!(lost.renew(now()), Err(strata::Error::LeaseLost { .. })));
    let newest = shipped["set"].as_str().expect("an id");
    proves(&hosts, &[newest]);
}

/// What was there before the lease was waited for may be gone after it.
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

/// The program for a restored cluster that serves in the original's place: on another host, as far as it knows.
fn host_of(fixture: &Fixture, restored: &Restored) -> Lockstep {
    let (lockstep, server) = (other_host(fixture, "new", &restored.data), restored.server());
    let path = fixture.root().join("new.toml");
    let text = fs::read_to_string(&path).expect("the configuration");
    let (old, new) = [&fixture.cluster, server]
        .map(|server| format!("host = {}\nport = {}", toml_string(&server.socket), server.port))
        .into();
    assert!(text.contains(&old), "{text}");
    fs::write(&path, text.replace(&old, &new)).expect("it can be written");
    lockstep
}

/// After a failover the old host's timer goes on. Each of its sets is whole, the newest, and of what nobody wants.
#[test]
fn what_the_old_host_of_a_failover_takes_is_left_behind() {
    let fixture = Fixture::new(two_pools_four_datasets());
    fixture.cluster.execute(&["CREATE TABLE marks (id int)"]);
    let retention = "grace_hours = 0\n\n[clusters.main.retention]\nrepository = { last = 1 }\n";
    let old = with_options(&fixture, retention);
    let first = old.backup("label").id;
    let promoted = old.restore_and_start(&first, &fixture.target("promoted"), &[]);
    let new = host_of(&fixture, &promoted);
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
        // Each of the two has its newest, and none the other's.
        let pruned = host.json(&[&PRUNE[..], &["--dry-run"]].concat());
        let sets = pruned["places"][0]["sets"].as_array().expect("sets");
        let kept = sets.iter().filter(|set| set["action"] == "keep").map(|set| &set["set"]);
        assert_eq!(kept.collect::<Vec<_>>(), [&*living, left], "{pruned}");
    }
    promoted.server().stop(Stop::Fast);
}

/// These sets are there, whole, and the last one restores and is right.
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
