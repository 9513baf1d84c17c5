//! Prunes a repository whose store locks what is written: what is kept stays locked, and the rest is removed in the
//! end.

use std::sync::Arc;

use jiff::tz::TimeZone;
use strata::manifest::Manifest as Stored;
use strata::store::testing::{Counting, Fault, Faulty, Locking};
use strata::store::{Storage, StoreErrorKind};

use super::super::memory_store::Memory;
use super::super::remote::tests::{
    assert_whole, filled, history, policy, repository, set_id, work,
};
use super::super::remote::{Choice, Work};
use super::*;
use crate::repository::Format;
use crate::repository::kin::Identity;

/// How long the store locks an object.
const N: u64 = 1000;

/// When the sets were shipped.
fn shipped(memory: &Memory) -> u64 {
    let repository = repository(Arc::new(memory.clone()));
    let (sets, _) = repository.sets().unwrap();
    u64::try_from(sets.last().unwrap().shipped_at.as_second()).unwrap()
}

fn planned(repository: &Repository, rules: &str, now: u64) -> Plan {
    let (policy, bases) = (policy(rules), BTreeSet::new());
    let now = locks::date(now).unwrap();
    let (named, identity, zone) = (&[], &Identity::default(), &TimeZone::UTC);
    Choice { policy: Some(&policy), named, bases: &bases, identity, now, zone }
        .plan(repository)
        .unwrap()
}

fn pruned(storage: Arc<dyn Storage>, rules: &str, now: u64) -> Result<(Vec<String>, Done)> {
    let repository = repository(storage);
    let plan = planned(&repository, rules, now);
    Work { now, ..work(&repository, 0) }.run(&plan)
}

fn made(count: usize) -> (Memory, Locking, u64) {
    let (memory, _) = filled(count);
    let locking = Locking::new(Arc::new(memory.clone()), N);
    let repository = repository(Arc::new(locking.clone()));
    Format::new().unwrap().create(repository.strata.store()).unwrap();
    memory.put("keys/a.json", &["{}".into()]).unwrap();
    let shipped = shipped(&memory);
    (memory, locking, shipped)
}

/// Returns what is there, apart from temporary objects, and isn't locked until then.
fn unlocked(memory: &Memory, locking: &Locking, until: u64) -> Vec<String> {
    let prolonged = locking.prolonged();
    let mut paths = memory.paths("");
    paths.retain(|path| !path.ends_with("/locks.json") && !path.ends_with("/doomed.json"));
    paths.retain(|path| prolonged.get(path) != Some(&until));
    paths
}

#[test]
fn all_that_is_kept_is_locked_and_it_is_said_before() {
    let (memory, locking, shipped) = made(4);
    let now = shipped + N / 4;
    let counting = Counting::new(Arc::new(locking.clone()));
    let plan = planned(&repository(Arc::new(counting.clone())), "last = 9", now);
    assert_eq!(plan.locks_until, locks::date(now + N));
    assert!(counting.take().iter().all(|call| matches!(call.verb, "get" | "list")), "a plan only");
    let (_, done) = pruned(Arc::new(locking.clone()), "last = 9", now).unwrap();
    assert_eq!(unlocked(&memory, &locking, now + N), [""; 0]);
    let all = memory.paths("").len() as u64 - 1;
    assert_eq!((done.locks_prolonged, done.problems), (all, Vec::new()), "the note isn't one");
    // Not again until it is due.
    let later = now + N / 2;
    assert_eq!(
        planned(&repository(Arc::new(locking.clone())), "last = 9", later).locks_until,
        None
    );
    let (_, done) = pruned(Arc::new(locking.clone()), "last = 9", later).unwrap();
    assert_eq!(done, Done::default());
    let (_, done) = pruned(Arc::new(locking.clone()), "last = 9", later + 1).unwrap();
    assert_eq!(done.locks_prolonged, all);
}

#[test]
fn a_set_that_only_its_lock_keeps_goes_in_the_end() {
    let (_, locking, shipped) = made(4);
    let prune = |rules, after| pruned(Arc::new(locking.clone()), rules, shipped + after).unwrap();
    prune("last = 9", 10);
    // An extension is due again, and all sets but one are kept for their locks alone.
    let (removed, done) = prune("last = 1", 600);
    assert!(removed.is_empty() && done.locks_prolonged > 0, "{done:?}");
    assert!(prune("last = 1", 1009).0.is_empty());
    let repository = repository(Arc::new(locking.clone()));
    let plan = planned(&repository, "last = 1", shipped + 1009);
    let reasons = format!("{:?}", plan.entries[0].fate);
    assert!(reasons.contains("LockedUntil"), "{reasons}");
    let (removed, done) = prune("last = 1", 1010);
    // What only they needed had been left out by then: each one's files, a pack and three tables.
    assert_eq!((removed, done.merged, done.deleted), ([0, 1, 2].map(set_id).to_vec(), 6, 12));
    // What was merged away was still needed when the second run began.
    assert!(done.locked > 0, "{done:?}");
    let (_, late) = prune("last = 1", 1599);
    assert_eq!((late.deleted, late.locked), (0, done.locked));
    let (_, late) = prune("last = 1", 1600);
    assert_eq!((late.deleted, late.locked), (done.locked, 0));
    assert_eq!(Stored::list(&repository.strata).unwrap(), [set_id(3)]);
}

#[test]
fn what_cannot_be_read_stops_no_prolongation() {
    let (memory, locking, shipped) = made(4);
    memory.put(&format!("clusters/main/sets/{}.json", set_id(1)), &["{".into()]).unwrap();
    let now = shipped + N / 2;
    let (_, done) = pruned(Arc::new(locking.clone()), "last = 9", now).unwrap();
    assert!(done.merged == 0 && done.problems.is_empty(), "{done:?}");
    // Everything but the files of the set that nobody can read.
    let left = unlocked(&memory, &locking, now + N);
    let own = |path: &String| path.contains("@files") || path.contains("/packs/");
    assert!(left.len() == 5 && left.iter().all(own), "{left:?}");
    // A broken chain makes the prune fail, but everything else is locked.
    let (memory, locking, shipped) = made(4);
    memory.delete("clusters/main/volumes/tank=data/1.json").unwrap();
    let now = shipped + N / 2;
    pruned(Arc::new(locking.clone()), "last = 9", now).unwrap_err();
    let left = unlocked(&memory, &locking, now + N);
    assert!(!left.is_empty() && left.iter().all(|path| !path.contains("tank=ts1")), "{left:?}");
}

#[test]
fn what_is_needed_again_is_locked_also_while_nothing_can_be_tidied() {
    let (memory, locking, shipped) = made(4);
    let storage: Arc<dyn Storage> = Arc::new(locking.clone());
    let manifest = |number| format!("clusters/main/sets/{}.json", set_id(number));
    // The newest set has no manifest yet when everything is locked.
    let newest = memory.get(&manifest(3)).unwrap();
    memory.delete(&manifest(3)).unwrap();
    let (now, repository) = (shipped + N / 2, repository(storage.clone()));
    let plan = planned(&repository, "last = 9", now);
    Work { now, grace: N, ..work(&repository, 0) }.run(&plan).unwrap();
    let needed_by_nobody = unlocked(&memory, &locking, now + N);
    assert!(!needed_by_nobody.is_empty());
    memory.put(&manifest(3), &[newest]).unwrap();
    memory.put(&manifest(0), &["{".into()]).unwrap();
    let (_, done) = pruned(storage, "last = 9", now + 1).unwrap();
    assert_eq!((done.merged, done.locks_prolonged), (0, needed_by_nobody.len() as u64));
    // What was written since has its own lock.
    assert_eq!(unlocked(&memory, &locking, now + N), [manifest(3)]);
}

#[test]
fn what_fails_is_said_and_sets_go_all_the_same() {
    let (_, locking, shipped) = made(4);
    locking.refuse(Some(StoreErrorKind::PermissionDenied));
    let storage: Arc<dyn Storage> = Arc::new(locking.clone());
    let (removed, done) = pruned(storage.clone(), "last = 2", shipped + N).unwrap();
    assert_eq!((removed.len(), done.locks_prolonged), (2, 0));
    let problem = &done.problems[0];
    assert!(
        problem.contains("s3:PutObjectRetention") && problem.contains("next prune"),
        "{problem}"
    );
    locking.refuse(None);
    let (_, done) = pruned(storage, "last = 2", shipped + N).unwrap();
    assert!(done.locks_prolonged > 20 && done.problems.is_empty(), "{done:?}");
}

#[test]
fn dead_at_any_call_the_next_run_locks_all() {
    let (filled, _, shipped) = made(3);
    let (states, now) = (history(3), shipped + N);
    for fault in [Fault::StopBefore, Fault::StopAfter, Fault::FailOnce] {
        for at in 0.. {
            let why = format!("{fault:?} at call {at}");
            let memory = filled.copy();
            let locking = Locking::new(Arc::new(memory.clone()), N);
            let faulty = Faulty::new(Arc::new(locking.clone()), at, fault);
            let repository = repository(Arc::new(faulty.clone()));
            let bases = BTreeSet::new();
            let (policy, zone) = (policy("last = 2"), &TimeZone::UTC);
            let (at_now, identity) = (locks::date(now).unwrap(), &Identity::default());
            let choice = Choice {
                policy: Some(&policy),
                named: &[],
                bases: &bases,
                identity,
                now: at_now,
                zone,
            };
            let first = choice.plan(&repository);
            let first = first.and_then(|plan| Work { now, ..work(&repository, 0) }.run(&plan));
            assert_whole(&memory, &states, &why);
            let second = pruned(Arc::new(locking.clone()), "last = 2", now + 1).unwrap().1;
            assert!(second.problems.is_empty(), "{why}: {second:?}");
            let wanted = [now + N, now + 1 + N];
            let prolonged = locking.prolonged();
            assert!(prolonged.values().all(|until| wanted.contains(until)), "{why}");
            // Only to this store's clock are the index files old that the second run's merge wrote.
            let left: Vec<_> = memory
                .paths("/packs/")
                .into_iter()
                .filter(|path| !prolonged.contains_key(path))
                .collect();
            assert_eq!(left, [""; 0], "{why}");
            if first.is_ok() && faulty.calls() <= at {
                assert!(at > 40, "only {at} calls");
                break;
            }
        }
    }
}

#[test]
fn that_nobody_prolongs_is_said() {
    let (memory, locking, shipped) = made(3);
    let repository = repository(Arc::new(locking.clone()));
    let overdue = |after: u64| locks::overdue(&repository, shipped + after).unwrap();
    assert_eq!(overdue(700), None, "young");
    assert!(overdue(800).unwrap().contains("end soon"));
    pruned(Arc::new(locking.clone()), "last = 9", shipped + 800).unwrap();
    assert_eq!(overdue(800 + 750), None);
    assert!(overdue(800 + 751).unwrap().contains("weren't prolonged"));
    assert!(overdue(800 + 1000).unwrap().contains("have ended"));
    let open = super::super::remote::tests::repository(Arc::new(memory));
    assert_eq!(locks::overdue(&open, u64::MAX).unwrap(), None, "it locks nothing");
}
