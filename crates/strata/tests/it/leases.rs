//! Leases: one holder, expiry, renewal and takeover, in spite of races.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use crate::support::{folder_store, memory_store, repository};
use strata::lease::Lease;
use strata::store::testing::{Fault, Faulty};
use strata::store::{Around, Listed, Storage, StoreError, StoreErrorKind, StoreResult};
use strata::{Error, Repository};

#[test]
fn a_lease_is_held_renewed_given_back_and_taken_over() {
    let folder = tempfile::tempdir().unwrap();
    let repository = repository(folder_store(folder.path()));
    let take = |owner: &str, now| Lease::acquire(&repository, "prune", owner, 60, now);
    let mut first = take("first", 1000).unwrap();
    let error = take("second", 1059).unwrap_err();
    assert!(
        matches!(&error, Error::Leased { owner, until: 1060, .. } if owner == "first"),
        "{error}"
    );
    assert!(error.hint().is_some());
    first.renew(1050).unwrap();
    assert_eq!(first.expires(), 1110);
    assert!(take("second", 1109).is_err());
    first.release(1100).unwrap();
    // Given back, it is free at once.
    let mut second = take("second", 1100).unwrap();
    // Another lease is independent.
    Lease::acquire(&repository, "backup", "first", 60, 1100).unwrap();
    // A lost host keeps it until it expires, and no longer.
    let third = take("third", 1160).unwrap();
    let error = second.renew(1161).unwrap_err();
    assert!(matches!(&error, Error::LeaseLost { owner, .. } if owner == "third"), "{error}");
    assert!(second.release(1162).is_err());
    third.release(1163).unwrap();
    let mut objects = 0;
    repository.store().list("clusters/main/leases/prune", |_| objects += 1).unwrap();
    assert_eq!(objects, 1, "generations don't pile up");
}

#[test]
fn the_store_says_whose_it_is_whatever_the_clock_says() {
    let repository = repository(memory_store());
    let take = |owner: &str, now| Lease::acquire(&repository, "prune", owner, 60, now);
    let mut first = take("first", 1000).unwrap();
    first.confirm().unwrap();
    first.renew(1050).unwrap();
    first.confirm().unwrap();
    // By the second host's clock it has expired, because the first one's clock stopped.
    let second = take("second", 5000).unwrap();
    assert!(first.expires() > 1051);
    let lost = first.confirm().unwrap_err();
    assert!(matches!(&lost, Error::LeaseLost { owner, .. } if owner == "second"), "{lost}");
    second.confirm().unwrap();
    // The same holds if it was given back since.
    second.release(5001).unwrap();
    assert!(first.confirm().is_err());
}

#[test]
fn of_many_exactly_one_takes_an_expired_lease() {
    let folder = tempfile::tempdir().unwrap();
    let repository = repository(folder_store(folder.path()));
    for round in 0..25_u64 {
        let now = 1000 + round * 100;
        let wins: u32 = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..12)
                .map(|number| {
                    let repository = &repository;
                    scope.spawn(move || {
                        let owner = format!("host{number}");
                        u32::from(Lease::acquire(repository, "prune", &owner, 100, now).is_ok())
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(wins, 1, "round {round}");
    }
}

#[test]
fn a_renewal_and_a_takeover_never_both_succeed() {
    let folder = tempfile::tempdir().unwrap();
    let repository = repository(folder_store(folder.path()));
    for round in 0..40_u64 {
        let what = format!("lease{round}");
        let mut held = Lease::acquire(&repository, &what, "old", 10, 100).unwrap();
        // The old holder's clock is slow: both believe that they may have it.
        let (renewed, taken) = std::thread::scope(|scope| {
            let renewal = scope.spawn(|| held.renew(105).is_ok());
            let takeover =
                scope.spawn(|| Lease::acquire(&repository, &what, "new", 10, 110).is_ok());
            (renewal.join().unwrap(), takeover.join().unwrap())
        });
        assert!(renewed != taken, "round {round}: renewed {renewed}, taken over {taken}");
    }
}

#[test]
fn what_a_lease_guards_is_never_done_by_two() {
    let folder = tempfile::tempdir().unwrap();
    let repository = repository(folder_store(folder.path()));
    let (inside, done) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for number in 0..8 {
            let (repository, inside, done) = (&repository, &inside, &done);
            scope.spawn(move || {
                for _ in 0..15 {
                    let owner = format!("host{number}");
                    let Ok(mut lease) = Lease::acquire(repository, "prune", &owner, 1000, 5) else {
                        continue;
                    };
                    assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "two at once");
                    lease.renew(6).unwrap();
                    std::thread::yield_now();
                    inside.fetch_sub(1, Ordering::SeqCst);
                    lease.release(7).unwrap();
                    done.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
    });
    assert!(done.into_inner() > 0);
}

/// Returns what others see: until when the lease is held, or that it isn't.
fn seen(repository: &Repository, now: u64) -> Option<u64> {
    match Lease::acquire(repository, "prune", "other", 60, now) {
        Err(Error::Leased { until, .. }) => Some(until),
        result => {
            result.unwrap();
            None
        }
    }
}

#[test]
fn whose_answer_was_lost_goes_by_what_the_store_says() {
    // The calls of taking the lease: a listing, the put, a listing, a get, a listing.
    for at in 5..10 {
        let why = format!("lost at call {at}");
        let storage = memory_store();
        let whole = repository(storage.clone());
        let faulty = Faulty::new(storage, at, Fault::LoseAnswer);
        let held = repository(Arc::new(faulty.clone()));
        let mut lease = Lease::acquire(&held, "prune", "first", 60, 1000).unwrap();
        assert_eq!(faulty.calls(), 5);
        // One answer is lost, and the next try is made later.
        if lease.renew(1020).is_err() {
            assert_eq!(lease.expires(), 1060, "{why}: on the safe side");
            lease.confirm().unwrap();
            lease.renew(1030).unwrap();
            assert_eq!(lease.expires(), 1090, "{why}");
        }
        assert_eq!(seen(&whole, 1031), Some(lease.expires()), "{why}");
        lease.release(1040).unwrap();
        assert_eq!(seen(&whole, 1040), None, "{why}: given back");
    }
}

#[test]
fn what_was_given_back_is_free_also_where_a_renewal_lost_its_answer() {
    let storage = memory_store();
    let whole = repository(storage.clone());
    let faulty = Faulty::new(storage, 5, Fault::LoseAnswer);
    let mut lease =
        Lease::acquire(&repository(Arc::new(faulty)), "prune", "first", 60, 1000).unwrap();
    lease.renew(1020).unwrap_err();
    assert_eq!(seen(&whole, 1021), Some(1080));
    lease.release(1030).unwrap();
    assert_eq!(seen(&whole, 1030), None);
}

#[test]
fn what_is_known_to_be_dead_is_taken_over_unless_it_goes_on() {
    let repository = repository(memory_store());
    assert_eq!(Lease::seen(&repository, "prune").unwrap(), None);
    let mut first = Lease::acquire(&repository, "prune", "first", 60, 1000).unwrap();
    let before = Lease::seen(&repository, "prune").unwrap().unwrap();
    assert_eq!((before.owner.as_str(), before.expires), ("first", 1060));
    first.renew(1010).unwrap();
    let take = |seen| Lease::take_over(&repository, "prune", "second", 60, 1011, seen);
    assert!(matches!(take(&before), Err(Error::Leased { until: 1070, .. })), "it was renewed");
    let second = take(&Lease::seen(&repository, "prune").unwrap().unwrap()).unwrap();
    assert!(matches!(first.renew(1012), Err(Error::LeaseLost { .. })));
    second.release(1013).unwrap();
    assert_eq!(Lease::seen(&repository, "prune").unwrap(), None);
}

#[test]
fn a_damaged_lease_counts_as_held_and_can_be_taken_over() {
    let repository = repository(memory_store());
    let take = |owner: &str| Lease::acquire(&repository, "prune", owner, 60, 1000);
    let path = |generation| format!("clusters/main/leases/prune/{generation:020}");
    let good = |generation| repository.store().get(&path(generation)).unwrap().to_vec();
    let damage = |generation, bytes: &[u8]| {
        let store = repository.store();
        store.put(&path(generation), &[bytes.to_vec().into()]).unwrap();
    };
    // Whoever holds it goes on: the next generation can be read again.
    let mut held = take("first").unwrap();
    let whole = good(1);
    damage(1, b"");
    assert!(matches!(take("second"), Err(Error::Leased { .. })));
    let seen = Lease::seen(&repository, "prune").unwrap().unwrap();
    assert!(seen.damaged.is_some_and(|why| why.contains(&path(1))));
    held.confirm().unwrap();
    held.renew(1010).unwrap();
    assert_eq!(Lease::seen(&repository, "prune").unwrap().unwrap().owner, "first");
    held.release(1020).unwrap();
    // Whoever doesn't is taken over, however it was damaged: cut, longer, another one's, or given back.
    let mut last = 3;
    for bytes in [&b""[..], &[&good(3)[..], b"x"].concat(), &whole] {
        damage(last, bytes);
        let seen = Lease::seen(&repository, "prune").unwrap().unwrap();
        assert!(seen.damaged.is_some() && seen.generation == last, "{seen:?}");
        assert!(take("second").is_err(), "it has no end");
        let taken = Lease::take_over(&repository, "prune", "second", 60, 1030, &seen).unwrap();
        assert!(Lease::take_over(&repository, "prune", "third", 60, 1030, &seen).is_err());
        taken.release(1040).unwrap();
        last += 2;
    }
    take("third").unwrap();
}

/// A store that lets nobody delete, and counts how often that was tried.
struct Kept(Arc<dyn Storage>, Arc<AtomicU64>);

impl Around for Kept {
    fn inner(&self) -> &dyn Storage {
        self.0.as_ref()
    }

    fn delete(&self, path: &str) -> StoreResult<()> {
        self.1.fetch_add(1, Ordering::SeqCst);
        Err(StoreError::new("delete", path, StoreErrorKind::Retained))
    }
}

/// A bucket's retention, or credentials that may not delete: generations pile up there, but not the requests.
#[test]
fn where_nothing_can_be_deleted_a_step_tries_it_once() {
    let tried = Arc::new(AtomicU64::new(0));
    let repository = repository(Arc::new(Kept(memory_store(), tried.clone())));
    for round in 0..50 {
        let mut lease = Lease::acquire(&repository, "prune", "first", 60, round).unwrap();
        lease.renew(round).unwrap();
        lease.release(round).unwrap();
    }
    let tried = tried.load(Ordering::SeqCst);
    assert!(tried <= 150, "{tried} refusals for 150 steps");
}

/// A folder whose names were read before a step of another holder, and looked at after it: each listing lacks as many of
/// the highest as are said here, and then none.
struct Late(Arc<dyn Storage>, Arc<Mutex<VecDeque<usize>>>);

impl Around for Late {
    fn inner(&self) -> &dyn Storage {
        self.0.as_ref()
    }

    fn list(&self, prefix: &str, each: &mut dyn FnMut(Listed)) -> StoreResult<()> {
        let mut all = Vec::new();
        self.0.list(prefix, &mut |listed| all.push(listed))?;
        all.sort_by(|a, b| a.path.cmp(&b.path));
        let gone = self.1.lock().unwrap().pop_front().unwrap_or(0);
        all.truncate(all.len().saturating_sub(gone));
        all.into_iter().for_each(each);
        Ok(())
    }
}

#[test]
fn what_a_listing_lacks_gives_nobody_the_lease_and_takes_it_from_nobody() {
    let (storage, lacking) = (memory_store(), Arc::new(Mutex::new(VecDeque::new())));
    let late = repository(Arc::new(Late(storage.clone(), lacking.clone())));
    let lacks = |how_many: &[usize]| lacking.lock().unwrap().extend(how_many);
    let mut held = Lease::acquire(&late, "prune", "first", 60, 1000).unwrap();
    (0..4).for_each(|_| held.renew(1000).unwrap());
    // It sees no generation, takes the first, and then sees that one alone.
    lacks(&[9, 1]);
    let error = Lease::acquire(&late, "prune", "second", 60, 1000).unwrap_err();
    assert!(matches!(&error, Error::Leased { owner, .. } if owner == "first"), "{error}");
    held.renew(1000).unwrap();
    // The next holder has deleted what was just written.
    lacks(&[9]);
    held.release(1001).unwrap();
    Lease::acquire(&repository(storage), "prune", "second", 60, 1001).unwrap();
}

/// A network file system that lists folders as they were when this was kept, and opens files as they are.
struct Cached(Arc<dyn Storage>, Arc<Mutex<Option<Vec<Listed>>>>);

impl Around for Cached {
    fn inner(&self) -> &dyn Storage {
        self.0.as_ref()
    }

    fn list(&self, prefix: &str, each: &mut dyn FnMut(Listed)) -> StoreResult<()> {
        let kept = self.1.lock().unwrap().clone();
        match kept {
            Some(kept) => kept.into_iter().for_each(each),
            None => self.0.list(prefix, each)?,
        }
        Ok(())
    }
}

#[test]
fn a_listing_of_a_minute_ago_does_not_say_whose_the_lease_is() {
    let (storage, cache) = (memory_store(), Arc::new(Mutex::new(None)));
    let here = repository(Arc::new(Cached(storage.clone(), cache.clone())));
    let there = repository(storage.clone());
    let first = Lease::acquire(&here, "prune", "first", 60, 1000).unwrap();
    let mut listed = Vec::new();
    storage.list("clusters/main/leases/prune", &mut |one| listed.push(one)).unwrap();
    *cache.lock().unwrap() = Some(listed);
    first.confirm().unwrap();
    let second = Lease::acquire(&there, "prune", "second", 60, 5000).unwrap();
    let lost = first.confirm().unwrap_err();
    assert!(matches!(&lost, Error::LeaseLost { .. }), "{lost}");
    second.confirm().unwrap();
}

/// A disk that was unmounted leaves an empty folder, an older state has an older generation: neither is the storage in
/// which the lease was taken.
#[test]
fn a_renewal_takes_no_lease_where_it_was_not_held() {
    for older in [None, Some(3)] {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().join("disk");
        let repository = repository(folder_store(&at));
        for round in 0..5 {
            let lease = Lease::acquire(&repository, "prune", "first", 60, round).unwrap();
            lease.release(round).unwrap();
        }
        let mut lease = Lease::acquire(&repository, "prune", "first", 60, 1000).unwrap();
        let leases = at.join("clusters/main/leases/prune");
        let latest = leases.join(format!("{:020}", lease.generation()));
        let there = std::fs::read(&latest).unwrap();
        std::fs::remove_dir_all(&at).unwrap();
        if let Some(older) = older {
            std::fs::create_dir_all(&leases).unwrap();
            std::fs::write(leases.join(format!("{older:020}")), &there).unwrap();
        }
        let lost = lease.renew(1010).unwrap_err();
        assert!(matches!(&lost, Error::LeaseLost { .. }), "{older:?}: {lost}");
        lease.confirm().unwrap_err();
        let next = leases.join(format!("{:020}", lease.generation() + 1));
        assert!(!next.exists(), "{older:?}: it left a lease there");
    }
}
