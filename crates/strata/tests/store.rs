//! What every store promises, and what the face over it adds.

mod support;

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use strata::store::testing::{Counting, Fault, Faulty};
use strata::store::{Listed, ObjectStorage, Retries, Storage, Store, StoreErrorKind};
use support::folder_store;

/// The contract, as every implementation keeps it.
fn contract(storage: &dyn Storage) {
    let bytes = |text: &'static str| Bytes::from_static(text.as_bytes());
    assert_eq!(storage.get("a/x").unwrap_err().kind, StoreErrorKind::NotFound);
    assert_eq!(storage.size("a/x").unwrap_err().kind, StoreErrorKind::NotFound);
    storage.delete("a/x").unwrap();

    storage.put("a/x", &[bytes("one"), bytes("two")]).unwrap();
    assert_eq!(storage.get("a/x").unwrap(), "onetwo");
    storage.put("a/x", &[bytes("three")]).unwrap();
    assert_eq!(storage.get("a/x").unwrap(), "three", "written over");
    assert_eq!(storage.size("a/x").unwrap(), 5);
    assert_eq!(storage.get_range("a/x", 1..3).unwrap(), "hr");
    assert!(
        storage.get_range("a/x", 3..9).is_err_and(|_| true)
            || storage.get_range("a/x", 3..9).unwrap().len() == 2
    );

    storage.put_if_absent("a/y", &bytes("first")).unwrap();
    let again = storage.put_if_absent("a/y", &bytes("second")).unwrap_err();
    assert_eq!(again.kind, StoreErrorKind::AlreadyExists);
    assert!(again.to_string().contains("\"a/y\""), "{again}");
    assert_eq!(storage.get("a/y").unwrap(), "first");

    let mut file = tempfile::tempfile().unwrap();
    let large: Vec<u8> = (0..20 << 20).map(|index: u32| (index / 7) as u8).collect();
    file.write_all(&large).unwrap();
    storage.put_file("b/large", &mut file, large.len() as u64).unwrap();
    assert!(storage.get("b/large").unwrap() == large);
    storage.put_file("b/small", &mut file, 10).unwrap();
    assert_eq!(storage.get("b/small").unwrap(), large[..10]);

    let list = |prefix: &str| {
        let mut listed = Vec::new();
        storage.list(prefix, &mut |Listed { path, size, .. }| listed.push((path, size))).unwrap();
        listed.sort();
        listed
    };
    assert_eq!(list("a"), [("a/x".to_string(), 5), ("a/y".to_string(), 5)]);
    assert_eq!(list("").len(), 4);
    assert_eq!(list("nothing"), []);
    storage.delete("a/x").unwrap();
    assert_eq!(list("a").len(), 1);
}

#[test]
fn a_folder_keeps_the_contract() {
    let folder = tempfile::tempdir().unwrap();
    contract(&ObjectStorage::folder(folder.path()).unwrap());
}

#[test]
fn a_store_below_a_prefix_keeps_the_contract() {
    let memory = Arc::new(object_store::memory::InMemory::new());
    contract(&ObjectStorage::on(memory.clone(), "some/prefix", Default::default()).unwrap());
    contract(&ObjectStorage::on(memory, "other", Default::default()).unwrap());
}

#[test]
fn create_only_has_one_winner() {
    let folder = tempfile::tempdir().unwrap();
    let storage = folder_store(folder.path());
    for round in 0..20 {
        let path = format!("race/{round}");
        let wins: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|number: u8| {
                    let (storage, path) = (storage.clone(), path.clone());
                    scope.spawn(move || {
                        storage.put_if_absent(&path, &Bytes::from(vec![number])).is_ok()
                    })
                })
                .collect();
            threads
                .into_iter()
                .filter(|_| true)
                .map(|thread| usize::from(thread.join().unwrap()))
                .sum()
        });
        assert_eq!(wins, 1);
    }
}

fn twice() -> Retries {
    Retries { tries: 2, first_pause: Duration::from_millis(1) }
}

#[test]
fn what_passes_is_tried_again_and_what_does_not_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let inner = folder_store(folder.path());
    let passing = Faulty::new(inner.clone(), 0, Fault::FailOnce);
    Store::with_retries(passing.clone(), twice()).put("x", &["a".into()]).unwrap();
    assert_eq!(passing.calls(), 2);
    let for_good = Faulty::new(inner, 0, Fault::StopBefore);
    Store::with_retries(for_good.clone(), twice()).put("y", &["a".into()]).unwrap_err();
    assert_eq!(for_good.calls(), 1);
}

#[test]
fn a_create_whose_answer_was_lost_is_ours_only_with_our_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let inner = folder_store(folder.path());
    let lossy = || Store::with_retries(Faulty::new(inner.clone(), 0, Fault::LoseAnswer), twice());
    lossy().put_if_absent("x", "ours").unwrap();
    let failing = Store::with_retries(Faulty::new(inner.clone(), 0, Fault::FailOnce), twice());
    let error = failing.put_if_absent("x", "other").unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::AlreadyExists);
}

#[test]
fn a_folder_that_may_not_be_written_says_so() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("file"), "x").unwrap();
    let storage = ObjectStorage::folder(folder.path()).unwrap();
    let error = storage.put("file/below", &["a".into()]).unwrap_err();
    assert!(error.to_string().contains("\"file/below\""), "{error}");
    let error = ObjectStorage::folder(&folder.path().join("file")).err().unwrap();
    assert!(std::error::Error::source(&error).is_some(), "the system's words are kept: {error}");
}

#[test]
fn a_stalled_call_times_out() {
    let slow = object_store::throttle::ThrottledStore::new(
        object_store::memory::InMemory::new(),
        object_store::throttle::ThrottleConfig {
            wait_put_per_call: Duration::from_secs(60),
            ..Default::default()
        },
    );
    let timeouts = strata::store::Timeouts { call: Duration::from_millis(50), least_rate: 1 << 20 };
    let storage = ObjectStorage::on(Arc::new(slow), "", timeouts).unwrap();
    let error = storage.put("x", &["a".into()]).unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::TimedOut);
    assert!(error.hint().is_some());
}

#[test]
fn calls_are_recorded() {
    let folder = tempfile::tempdir().unwrap();
    let counting = Counting::new(folder_store(folder.path()));
    let store = Store::new(counting.clone());
    store.put("x", &["abc".into()]).unwrap();
    store.get_range("x", 0..2).unwrap();
    let calls = counting.take();
    assert_eq!(calls.len(), 2);
    assert_eq!((calls[1].verb, calls[1].range.clone()), ("get_range", Some(0..2)));
    assert!(counting.take().is_empty());
}
