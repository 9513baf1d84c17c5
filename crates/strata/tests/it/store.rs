//! What every store promises, and what the interface above it adds.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::support::contract::contract;
use crate::support::folder_store;
use bytes::Bytes;
use strata::Repository;
use strata::check::Inventory;
use strata::lease::HELD;
use strata::manifest::Manifest;
use strata::store::testing::{Counting, Fault, Faulty};
use strata::store::{Ending, ObjectStorage, Paced, Retries, Storage, Store, StoreErrorKind};

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

/// A manifest that isn't listed is that of a set which was removed: what it needs would be deleted.
#[test]
fn what_the_system_cannot_look_at_is_not_left_out_of_a_listing() {
    use std::os::unix::ffi::OsStrExt;

    let folder = tempfile::tempdir().unwrap();
    let store = Store::with_retries(ObjectStorage::folder(folder.path()).unwrap(), twice());
    let repository = Repository::new(store.clone(), "clusters/main", None).unwrap();
    Manifest::new("a-set", 1, vec![], serde_json::Value::Null).write(&repository).unwrap();
    let sets = folder.path().join("clusters/main/sets");
    // What a Mac leaves there, and a name that isn't UTF-8, are somebody else's.
    std::fs::write(sets.join("Icon\r"), "").unwrap();
    std::fs::write(sets.join(std::ffi::OsStr::from_bytes(b"\xff")), "").unwrap();
    assert_eq!(Manifest::list(&repository).unwrap(), ["a-set"]);
    assert_eq!(Inventory::take(&repository).unwrap().foreign.len(), 2);
    assert_eq!(store.folders("clusters").unwrap(), ["main"]);
    // More than are passed on at a time.
    for number in 0..600 {
        store.put(&format!("clusters/main/packs/{number}"), &["a".into()]).unwrap();
    }
    let mut packs = 0;
    store.list("clusters/main/packs", |listed| packs += listed.size).unwrap();
    assert_eq!(packs, 600);
    // stat(2) fails with ELOOP, as it does with EIO for a damaged inode.
    std::os::unix::fs::symlink("b-set.json", sets.join("b-set.json")).unwrap();
    let error = Manifest::list(&repository).unwrap_err();
    let words = format!("{error}: {}", std::error::Error::source(&error).unwrap());
    assert!(words.contains("b-set.json"), "{words}");
    assert!(Inventory::take(&repository).is_err());
}

/// A store that never answers.
fn stalled() -> ObjectStorage {
    let slow = object_store::throttle::ThrottledStore::new(
        object_store::memory::InMemory::new(),
        object_store::throttle::ThrottleConfig {
            wait_put_per_call: Duration::from_secs(60),
            wait_get_per_call: Duration::from_secs(60),
            ..Default::default()
        },
    );
    let timeouts = strata::store::Timeouts { call: Duration::from_millis(50), least_rate: 1 << 20 };
    ObjectStorage::on(Arc::new(slow), "", timeouts).unwrap()
}

#[test]
fn a_stalled_call_times_out() {
    let error = stalled().put("x", &["a".into()]).unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::TimedOut);
    assert!(error.hint().is_some());
}

/// As on a network file system whose server is gone: the system doesn't answer at all.
#[test]
fn nobody_waits_for_a_call_that_never_returns() {
    let folder = tempfile::tempdir().unwrap();
    // Opening a pipe waits for somebody who writes to it.
    let pipe = folder.path().join("x");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let local = object_store::local::LocalFileSystem::new_with_prefix(folder.path()).unwrap();
    let timeouts = strata::store::Timeouts { call: Duration::from_millis(50), least_rate: 1 << 20 };
    let storage = ObjectStorage::on(Arc::new(local), "", timeouts).unwrap();
    let (done, is_done) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        let kind = storage.get("x").unwrap_err().kind;
        drop(storage);
        let _ = done.send(kind);
    });
    let kind = is_done.recv_timeout(Duration::from_secs(10));
    // Ends the wait, so that a failure ends, too: opened for both it waits for nobody.
    drop(std::fs::File::options().read(true).write(true).open(&pipe).unwrap());
    thread.join().unwrap();
    assert_eq!(kind, Ok(StoreErrorKind::TimedOut));
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

#[test]
fn a_paced_store_keeps_the_contract_and_the_limit() {
    let memory = Arc::new(object_store::memory::InMemory::new());
    let on = |prefix: &str| ObjectStorage::on(memory.clone(), prefix, Default::default()).unwrap();
    contract(&Paced::new(on("a"), 1 << 30));
    let paced = Store::new(Paced::new(on("b"), 1 << 20));
    let begun = Instant::now();
    // Two threads share the limit; the very last object may be sent at once.
    std::thread::scope(|scope| {
        for thread in 0..2 {
            let paced = &paced;
            scope.spawn(move || {
                for number in 0..4 {
                    let data = Bytes::from(vec![0; 64 << 10]);
                    paced.put(&format!("{thread}/{number}"), &[data]).unwrap();
                }
            });
        }
    });
    let least = Duration::from_secs_f64(7.0 / 16.0);
    assert!(begun.elapsed() >= least, "8 objects of 64 KiB took {:?}", begun.elapsed());
    let begun = Instant::now();
    paced.put_if_absent("lease", "small").unwrap();
    // A descriptor: whose the lease is was asked before.
    paced.put_if("descriptor", &["small".into()], HELD).unwrap();
    assert!(begun.elapsed() < Duration::from_millis(50), "what is small doesn't wait");
}

#[test]
fn whoever_ends_waits_no_more() {
    let over = Arc::new(AtomicBool::new(false));
    let asked = over.clone();
    let ending = Ending::when(move || asked.load(Ordering::SeqCst));
    let counting = Counting::new(Arc::new(stalled()));
    let store = Store::new(counting.clone()).until(ending.clone());
    let end = || {
        std::thread::sleep(Duration::from_millis(300));
        over.store(true, Ordering::SeqCst);
    };
    let begun = Instant::now();
    let error = std::thread::scope(|scope| {
        scope.spawn(end);
        store.get("x").unwrap_err()
    });
    assert_eq!(error.kind, StoreErrorKind::Ending);
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    // From then on, each call is tried once.
    counting.take();
    assert_eq!(store.get("x").unwrap_err().kind, StoreErrorKind::Ending);
    assert_eq!(counting.take().len(), 1);

    // A call that waits for its turn is made at once.
    over.store(false, Ordering::SeqCst);
    let memory = Arc::new(object_store::memory::InMemory::new());
    let paced = Paced::new(ObjectStorage::on(memory, "", Default::default()).unwrap(), 1);
    let paced = paced.until(ending);
    let bytes = || Bytes::from(vec![0; 64 << 10]);
    paced.put("a", &[bytes()]).unwrap();
    let begun = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(end);
        paced.put("b", &[bytes()]).unwrap();
    });
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
}
