//! Prunes raw segments in a repository: a segment stays as long as any kept set's chain contains it.

use std::sync::Arc;

use strata::check::{CheckOptions, check};
use strata::store::Storage;
use strata::store::testing::{Fault, Faulty};

use super::tests::{plan, policy, set_id, work};
use super::*;
use crate::prune::memory_store::Memory;
use crate::repository::raw::stored_tests::{image, publish, received, repository, stream};

/// Two chains and the beginning of a third: what each set's segment is an increment to.
const BASES: [Option<u64>; 7] = [None, Some(1), Some(2), None, Some(4), Some(5), None];
/// The sets' chains.
const CHAINS: [&[u64]; 7] = [&[1], &[1, 2], &[1, 2, 3], &[4], &[4, 5], &[4, 5, 6], &[7]];

fn filled() -> Memory {
    let memory = Memory::default();
    let repository = repository(Arc::new(memory.clone()));
    for ((number, from), guid) in BASES.into_iter().enumerate().zip(1..) {
        publish(&repository, &set_id(number), &stream(guid, from)).unwrap();
    }
    memory
}

/// Returns the segments that are there, after checking that every set's stream is whole and nothing is left over.
fn segments(memory: &Memory, why: &str) -> Vec<u64> {
    let repository = repository(Arc::new(memory.clone()));
    let options = CheckOptions { read_data: true, known: vec!["leases/".into()] };
    let report = check(&repository.strata, &options).unwrap();
    assert!(report.problems.is_empty(), "{why}: {:?}", report.problems);
    for set in repository.sets().unwrap().0 {
        let id = set.manifest.set.as_str();
        let number = (0..7).find(|number| set_id(*number) == id).unwrap();
        let streams = CHAINS[number].iter().map(|guid| {
            let at = usize::try_from(*guid).unwrap() - 1;
            stream(*guid, BASES[at])
        });
        assert!(received(&repository, id).unwrap().into_iter().eq(streams), "{why}: {id}");
    }
    let names = memory.paths(&format!("/{}/", image()));
    let number = |path: &String| path.rsplit('/').next()?.strip_suffix(".json")?.parse().ok();
    names.iter().filter_map(number).collect()
}

fn remove(repository: &Repository, rules: &str, bases: &[usize]) -> Result<(Vec<String>, Done)> {
    let plan = plan(repository, &policy(rules), bases)?;
    work(repository, 0).run(&plan)
}

#[test]
fn a_segment_stays_as_long_as_a_set_needs_it() {
    let memory = filled();
    let repository = repository(Arc::new(memory.clone()));
    assert_eq!(segments(&memory, "as written"), [1, 2, 3, 4, 5, 6, 7]);
    // The newest set, and the one in common with this host, which is the third.
    let (removed, done) = remove(&repository, "last = 1", &[2]).unwrap();
    assert_eq!(removed, [0, 1, 3, 4, 5].map(set_id));
    assert_eq!(done.merged, 0, "raw segments are never merged");
    assert_eq!(segments(&memory, "two left"), [1, 2, 3, 7]);
    assert!(done.deleted > 0);
    // The next one starts from the common set, whose whole chain is there.
    publish(&repository, "20261108T000000Z-aaaa", &stream(8, Some(3))).unwrap();
    assert_eq!(received(&repository, "20261108T000000Z-aaaa").unwrap().len(), 4);
}

#[test]
fn the_newest_chain_alone_is_left_in_the_end() {
    let memory = filled();
    let repository = repository(Arc::new(memory.clone()));
    remove(&repository, "last = 2", &[]).unwrap();
    assert_eq!(segments(&memory, "last = 2"), [4, 5, 6, 7]);
    remove(&repository, "last = 1", &[]).unwrap();
    assert_eq!(segments(&memory, "last = 1"), [7]);
    let report = check(&repository.strata, &CheckOptions::default()).unwrap();
    assert!(report.orphans.is_empty(), "{:?}", report.orphans);
}

#[test]
fn dead_at_any_call() {
    for fault in [Fault::StopBefore, Fault::StopAfter, Fault::FailOnce] {
        for at in 0.. {
            let why = format!("{fault:?} at call {at}");
            let memory = filled();
            let faulty = Faulty::new(Arc::new(memory.clone()) as Arc<dyn Storage>, at, fault);
            let died = remove(&repository(Arc::new(faulty.clone())), "last = 2", &[]);
            let left = segments(&memory, &why);
            assert!([4, 5, 6, 7].iter().all(|guid| left.contains(guid)), "{why}: {left:?}");
            if died.is_ok() && faulty.calls() <= at {
                assert!(at > 30, "only {at} calls");
                break;
            }
            remove(&repository(Arc::new(memory.clone())), "last = 2", &[]).unwrap();
            assert_eq!(segments(&memory, &why), [4, 5, 6, 7]);
        }
    }
}
