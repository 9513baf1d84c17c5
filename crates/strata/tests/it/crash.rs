//! The program dies at every call to the store, in turn: nothing that a set refers to is missing afterwards, and the
//! next run continues.

use std::sync::Arc;

use crate::support::*;
use strata::check::{CheckOptions, Collected, check};
use strata::delta::{chain, descriptor_path};
use strata::fold::merge;
use strata::lease::HELD;
use strata::manifest::{DeltaId, Manifest};
use strata::repack::{RepackOptions, repack};
use strata::store::testing::{Counting, Fault, Faulty};
use strata::store::{Around, Paced, Storage, StoreError, StoreErrorKind, StoreResult};
use strata::{Error, Repository, Result};

const NOW: u64 = 4_000_000_000;

fn steps(number: usize) -> Vec<Step> {
    let mut random = fastrand::Rng::with_seed(number as u64);
    let mut steps = vec![Step::Create(20, 1, 1, vec![Act::Write(0, 800, number as u8 + 2)])];
    steps.extend((0..10).map(|_| random_step(&mut random)));
    steps
}

/// Returns the images after each of the three deltas, computed without a repository.
fn images() -> Vec<Image> {
    let repository = repository(memory_store());
    let mut image = Image::new();
    (0..3)
        .map(|number| {
            let base = (number > 0).then(|| (number - 1).to_string());
            let id = number.to_string();
            write_delta(&repository, &mut image, &steps(number), &id, base.as_deref(), &small())
                .unwrap();
            image.clone()
        })
        .collect()
}

/// Writes three sets; each run continues where the previous one stopped.
fn write_sets(repository: &Repository, images: &[Image]) -> Result<()> {
    let there = Manifest::list(repository)?;
    for number in 0..3 {
        let id = number.to_string();
        // The second is deleted at the end, when the third exists.
        if there.contains(&id) || (number == 1 && there.contains(&"2".to_string())) {
            continue;
        }
        let base = (number > 0).then(|| (number - 1).to_string());
        let mut image = if number > 0 { images[number - 1].clone() } else { Image::new() };
        write_delta(repository, &mut image, &steps(number), &id, base.as_deref(), &small())?;
        let delta = DeltaId { image: IMAGE.to_string(), id: id.clone() };
        Manifest::new(&id, NOW, vec![delta], serde_json::Value::Null).write(repository)?;
    }
    Ok(())
}

/// Deletes the second set, merges what distinguished it from the third, repacks sparse packs, and collects.
fn prune(repository: &Repository) -> Result<()> {
    Manifest::delete(repository, "1")?;
    let all = chain(repository, IMAGE, "2", None)?;
    if all.len() == 3 {
        merge(repository, &all[1..], &Model, 1 << 20, &small_index(), HELD)?;
    }
    repository.store().delete(&descriptor_path(repository, IMAGE, "1")?)?;
    let options = RepackOptions {
        live_percent: 90,
        frame_size: 700,
        packs: small().packs,
        index: small_index(),
        ..RepackOptions::default()
    };
    repack(repository, &options, false, HELD, &mut |_, _| ())?;
    collect(repository, 0, NOW, false, HELD)?;
    Ok(())
}

fn run(repository: &Repository, images: &[Image]) -> Result<()> {
    write_sets(repository, images)?;
    prune(repository)
}

fn assert_whole(repository: &Repository, images: &[Image], why: &str) {
    let report = check(repository, &CheckOptions { read_data: true, known: vec![] }).unwrap();
    assert!(report.problems.is_empty(), "{why}: {:?}", report.problems);
    assert!(report.foreign.is_empty(), "{why}: {:?}", report.foreign);
    for set in Manifest::list(repository).unwrap() {
        let all = chain(repository, IMAGE, &set, None).unwrap();
        let folded = restored(repository, &all, &Image::new()).unwrap();
        assert_eq!(folded, images[set.parse::<usize>().unwrap()], "{why}: set {set}");
    }
}

fn crashes(fault: Fault) {
    let images = images();
    for at in 0.. {
        let why = format!("{fault:?} at call {at}");
        let inner: Arc<dyn Storage> = memory_store();
        let faulty = Faulty::new(inner.clone(), at, fault);
        let result = run(&repository(Arc::new(faulty.clone())), &images);
        let whole = repository(inner);
        assert_whole(&whole, &images, &why);
        if result.is_ok() && faulty.calls() <= at {
            assert!(at > 40, "only {at} calls");
            return;
        }
        run(&whole, &images).unwrap_or_else(|error| panic!("{why}: the next run: {error}"));
        assert_whole(&whole, &images, &why);
        assert_eq!(Manifest::list(&whole).unwrap(), ["0", "2"], "{why}");
        let report = check(&whole, &CheckOptions::default()).unwrap();
        assert!(report.orphans.is_empty(), "{why}: leftovers stay: {:?}", report.orphans);
    }
}

#[test]
fn the_prune_of_these_sets_has_something_to_repack() {
    let repository = repository(memory_store());
    write_sets(&repository, &images()).unwrap();
    Manifest::delete(&repository, "1").unwrap();
    let all = chain(&repository, IMAGE, "2", None).unwrap();
    merge(&repository, &all[1..], &Model, 1 << 20, &small_index(), HELD).unwrap();
    let options = RepackOptions { live_percent: 90, ..RepackOptions::default() };
    assert!(!repack(&repository, &options, true, HELD, &mut |_, _| ()).unwrap().packs.is_empty());
}

#[test]
fn dead_before_any_call() {
    crashes(Fault::StopBefore);
}

#[test]
fn dead_after_any_call() {
    crashes(Fault::StopAfter);
}

#[test]
fn any_call_fails_once_and_is_not_tried_again() {
    crashes(Fault::FailOnce);
}

#[test]
fn leftovers_wait_for_their_grace_time() {
    let repository = repository(memory_store());
    let images = images();
    write_sets(&repository, &images).unwrap();
    Manifest::delete(&repository, "2").unwrap();
    // The objects are as new as this test, so its clock is set ahead.
    let first = collect(&repository, 100, NOW, false, HELD).unwrap();
    assert!(first.deleted.is_empty() && !first.waiting.is_empty());
    let early = collect(&repository, 100, NOW + 99, false, HELD).unwrap();
    assert_eq!(early, first);
    let dry = collect(&repository, 100, NOW + 100, true, HELD).unwrap();
    assert_eq!(dry.deleted, first.waiting);
    let late = collect(&repository, 100, NOW + 100, false, HELD).unwrap();
    assert_eq!(late.deleted, first.waiting);
    assert!(late.deleted[0].ends_with(".json"), "descriptors go first: {:?}", late.deleted);
    assert!(late.deleted.last().unwrap().contains("/packs/"), "packs go last");
    assert_whole(&repository, &images, "after the collection");
}

/// A pack without a descriptor may belong to a backup that is being written or is continued tomorrow.
#[test]
fn what_is_young_is_not_noted_yet() {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let repository = repository(memory_store());
    let pack = repository.pack_path(strata::Ulid(7));
    repository.store().put(&pack, &["a pack".into()]).unwrap();
    let collected = |at: u64| collect(&repository, 1000, now + at, false, HELD).unwrap();
    assert_eq!(collected(0), Collected::default());
    assert_eq!(collected(900), Collected::default());
    // Older than the grace time now, and noted today.
    assert_eq!(collected(1100).waiting, std::slice::from_ref(&pack));
    assert_eq!(collected(2050).waiting, std::slice::from_ref(&pack));
    assert_eq!(collected(2100).deleted, [pack]);
}

#[test]
fn what_is_referred_to_again_is_not_collected() {
    let repository = repository(memory_store());
    let images = images();
    write_sets(&repository, &images).unwrap();
    let third = Manifest::read(&repository, "2").unwrap();
    Manifest::delete(&repository, "2").unwrap();
    collect(&repository, 100, NOW, false, HELD).unwrap();
    third.write(&repository).unwrap();
    let late = collect(&repository, 100, NOW + 1000, false, HELD).unwrap();
    assert!(late.deleted.is_empty() && late.waiting.is_empty());
    assert_whole(&repository, &images, "after the collection");
}

#[test]
fn a_young_delta_without_a_set_is_a_backup_that_is_being_written() {
    let repository = repository(memory_store());
    let mut image = Image::new();
    write_delta(&repository, &mut image, &steps(0), "0", None, &small()).unwrap();
    // The delta is younger than the grace time, regardless of when it was first seen.
    let collected = collect(&repository, u64::MAX, NOW, false, HELD).unwrap();
    assert_eq!(collected.deleted.len() + collected.waiting.len(), 0);
}

#[test]
fn nothing_is_deleted_while_a_set_cannot_be_read() {
    let repository = repository(memory_store());
    let images = images();
    write_sets(&repository, &images).unwrap();
    Manifest::delete(&repository, "2").unwrap();
    let path = repository.path("sets/0.json");
    repository.store().put(&path, &["{".into()]).unwrap();
    let error = collect(&repository, 0, NOW, false, HELD).unwrap_err();
    assert!(error.to_string().contains("sets/0.json"), "{error}");
    let report = check(&repository, &CheckOptions::default()).unwrap();
    assert_eq!(report.problems.len(), 1);
}

#[test]
fn a_manifest_is_never_written_over() {
    let repository = repository(memory_store());
    let manifest = Manifest::new("x", NOW, vec![], serde_json::json!({"label": "a"}));
    manifest.write(&repository).unwrap();
    let other = Manifest { about: serde_json::Value::Null, ..manifest.clone() };
    let error = other.write(&repository).unwrap_err();
    assert!(
        matches!(&error, Error::Store(error) if error.kind == StoreErrorKind::AlreadyExists),
        "{error}"
    );
    assert_eq!(Manifest::read(&repository, "x").unwrap(), manifest);
}

/// A store that lets nobody delete what was written for this many seconds. With 0, it never lets anybody delete
/// anything in `packs/`, and reports that only when asked to delete.
struct Locked(Arc<dyn Storage>, u64);

impl Around for Locked {
    fn inner(&self) -> &dyn Storage {
        self.0.as_ref()
    }

    fn delete(&self, path: &str) -> StoreResult<()> {
        if self.1 == 0 && path.contains("/packs/") {
            return Err(StoreError::new("delete", path, StoreErrorKind::Retained));
        }
        self.0.delete(path)
    }

    fn locked_seconds(&self, _: &str) -> u64 {
        self.1
    }
}

#[test]
fn what_is_locked_is_collected_when_its_lock_has_ended() {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let locked = Locked(memory_store(), 10_000);
    // Through wrappers that pace and count, too.
    let storage = Arc::new(Counting::new(Arc::new(Paced::new(locked, u64::MAX))));
    let repository = repository(storage);
    let images = images();
    write_sets(&repository, &images).unwrap();
    Manifest::delete(&repository, "2").unwrap();
    // Its grace time is over, but its lock isn't.
    collect(&repository, 100, now + 200, false, HELD).unwrap();
    let early = collect(&repository, 100, now + 9_000, false, HELD).unwrap();
    assert!(early.deleted.is_empty() && early.waiting.is_empty() && early.locked.len() > 3);
    let late = collect(&repository, 100, now + 10_200, false, HELD).unwrap();
    assert_eq!((late.deleted, late.locked), (early.locked, vec![]));
    assert_whole(&repository, &images, "after the collection");
}

#[test]
fn what_the_store_will_not_delete_is_left_and_said() {
    let repository = repository(Arc::new(Locked(memory_store(), 0)));
    let images = images();
    write_sets(&repository, &images).unwrap();
    Manifest::delete(&repository, "2").unwrap();
    let collected = collect(&repository, 0, NOW, false, HELD).unwrap();
    assert!(collected.locked.iter().all(|path| path.contains("/packs/")), "{collected:?}");
    assert!(!collected.locked.is_empty() && !collected.deleted.is_empty(), "{collected:?}");
    // The next run begins with what was left.
    assert_eq!(collect(&repository, 0, NOW, false, HELD).unwrap().locked, collected.locked);
    assert_whole(&repository, &images, "after the collection");
}
