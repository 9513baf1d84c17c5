//! Random histories through a repository: what is read from it is what `sendstream`'s own fold makes of the same
//! streams, and what replaying them gives; the same after merges.

use std::path::Path;
use std::sync::Arc;

use lockstep::repository::Repository;
use lockstep::repository::header::StreamRules;
use lockstep::repository::unfold::unfold;
use proptest::prelude::*;
use sendstream::fold::StreamSink;
use strata::delta::{chain, descriptor_path};
use strata::fold::merge;
use strata::lease::HELD;

use super::histories::{State, folded, history, op, receive};
use super::memory_store::Memory;
use super::{IMAGE, repository, small, store, store_tagged};

/// A snapshot from the repository as a stream: a full one, or an increment since another snapshot.
fn unfolded(repository: &Repository, id: &str, since: Option<&str>) -> Vec<u8> {
    let mut sink = StreamSink::new(Vec::new());
    unfold(repository, IMAGE, id, since, &mut sink)
        .unwrap_or_else(|e| panic!("{id} since {since:?}: {}", e.chain()));
    sink.finish().unwrap()
}

/// The state of a receiver that had `state` before.
fn received(state: &State, stream: &[u8]) -> State {
    let mut state = state.clone();
    receive(&mut state, stream);
    state
}

/// Merges a run of the chain that leads to `newest` into its last delta, and removes what was merged.
fn merge_run(repository: &Repository, newest: &str, first: usize, last: usize) -> Vec<String> {
    let strata = &repository.strata;
    let all = chain(strata, IMAGE, newest, None).unwrap();
    merge(strata, &all[first..=last], &StreamRules, 1 << 20, &small().index, HELD).unwrap();
    let gone: Vec<_> = all[first..last].iter().map(|delta| delta.id.clone()).collect();
    for id in &gone {
        strata.store().delete(&descriptor_path(strata, IMAGE, id).unwrap()).unwrap();
    }
    gone
}

/// Stores the streams one after another; returns their ids.
fn store_all(repository: &Repository, streams: &[Vec<u8>], tags: Option<&Path>) -> Vec<String> {
    let mut ids: Vec<String> = Vec::new();
    for stream in streams {
        let id = match tags {
            None => store(repository, stream),
            Some(folder) => {
                let base = ids.last().map(String::as_str);
                store_tagged(repository, folder, stream, base).map(|(id, ..)| id)
            }
        };
        ids.push(id.unwrap_or_else(|e| panic!("{}", e.chain())));
    }
    ids
}

fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(60)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), ..ProptestConfig::default() })]

    #[test]
    fn both_folds_are_as_replaying_everything(
        steps in prop::collection::vec(prop::collection::vec(op(), 0..25), 1..7),
        grouped in any::<bool>(),
        tagged in any::<bool>(),
        cut in any::<prop::sample::Index>(),
        run in any::<(prop::sample::Index, prop::sample::Index)>(),
    ) {
        let (states, streams) = history(&steps, grouped);
        let repository = repository(Arc::new(Memory::default()));
        let folder = tempfile::tempdir().unwrap();
        let ids = store_all(&repository, &streams, tagged.then(|| folder.path()));
        let nothing = State::new();
        for (number, id) in ids.iter().enumerate() {
            let found = received(&nothing, &unfolded(&repository, id, None));
            prop_assert_eq!(&found, &states[number + 1]);
            prop_assert_eq!(&found, &received(&nothing, &folded(&streams[..=number])));
        }
        // From one snapshot to any later one; snapshot n is id n - 1.
        let first = cut.index(ids.len());
        for last in first + 1..ids.len() {
            let since = unfolded(&repository, &ids[last], Some(&ids[first]));
            let found = received(&states[first + 1], &since);
            prop_assert_eq!(&found, &states[last + 1]);
            let theirs = received(&states[first + 1], &folded(&streams[first + 1..=last]));
            prop_assert_eq!(&found, &theirs);
        }
        // A merge doesn't change what is left.
        let ends = [run.0.index(ids.len()), run.1.index(ids.len())];
        let newest = &ids[ids.len() - 1];
        let gone = merge_run(&repository, newest, ends[0].min(ends[1]), ends[0].max(ends[1]));
        for (number, id) in ids.iter().enumerate().filter(|(_, id)| !gone.contains(id)) {
            let found = received(&nothing, &unfolded(&repository, id, None));
            prop_assert_eq!(&found, &states[number + 1]);
        }
    }
}
