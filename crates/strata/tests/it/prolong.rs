//! Locks are prolonged for everything that kept sets need, in time, and for nothing else; whatever interrupts a run,
//! the next one continues.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::support::*;
use strata::check::{Collected, Locks, Prolonged, Prolonging, Run, Survey, Terms, check};
use strata::delta::ImageOptions;
use strata::lease::HELD;
use strata::manifest::{DeltaId, Manifest};
use strata::pack::PackOptions;
use strata::store::testing::{Call, Counting, Fault, Faulty, Locking};
use strata::store::{Listed, Storage, StoreErrorKind};
use strata::{Error, Repository};

/// How long the store locks what is written, in seconds.
const N: u64 = 100_000;

fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
}

/// A time at which what is written now is no longer quite new: new objects have locks of their own.
fn soon() -> u64 {
    now() + 100
}

/// Makes sets `0` to `4`: a chain of increments, and one set without increments.
fn filled() -> Locking {
    let locking = Locking::new(memory_store(), N);
    let repository = repository(Arc::new(locking.clone()));
    let mut image = Image::new();
    for number in 0..5_u8 {
        let acts = vec![Act::Write(0, 800, number + 2)];
        let steps = [Step::Create(u64::from(number) + 1, 1, 1, acts)];
        let id = number.to_string();
        let base = (1..4).contains(&number).then(|| (number - 1).to_string());
        let mut alone = Image::new();
        let image = if base.is_some() || number == 0 { &mut image } else { &mut alone };
        write_delta(&repository, image, &steps, &id, base.as_deref(), &small()).unwrap();
        publish(&repository, &id);
    }
    repository.store().put("lockstep.json", &["{}".into()]).unwrap();
    locking
}

fn publish(repository: &Repository, id: &str) {
    let delta = DeltaId { image: IMAGE.to_string(), id: id.to_string() };
    Manifest::new(id, 1, vec![delta], serde_json::Value::Null).write(repository).unwrap();
}

fn sets(ids: &[&str]) -> BTreeSet<String> {
    ids.iter().map(ToString::to_string).collect()
}

/// Does what a prune does: collects at once, and prolongs.
fn tend(storage: Arc<dyn Storage>, kept: &[&str], now: u64) -> (Collected, Prolonged) {
    let repository = repository(storage);
    let survey = Survey::take(&repository, &sets(kept), Terms::at(0, now)).unwrap();
    let collected = survey.collect(&repository, Terms::at(0, now), Run::Real, HELD).unwrap();
    let gone = collected.deleted.clone();
    let what = Prolonging { more: vec!["lockstep.json".into()], gone, now };
    let prolonged = survey.prolong(&repository, &what, HELD).unwrap();
    (collected, prolonged)
}

fn well(storage: &Locking, kept: &[&str], now: u64) -> (Collected, u64) {
    let (collected, prolonged) = tend(Arc::new(storage.clone()), kept, now);
    assert!(prolonged.failed.is_none(), "{:?}", prolonged.failed);
    (collected, prolonged.count)
}

/// Returns the deltas in the sets' chains.
fn chain_of(kept: &[&str]) -> BTreeSet<String> {
    let upto = kept.iter().filter(|id| **id != "4").map(|id| id.parse::<u8>().unwrap());
    let mut all: BTreeSet<_> = (0..=upto.max().unwrap_or(0)).map(|n| n.to_string()).collect();
    all.extend(kept.iter().map(ToString::to_string));
    all
}

/// Returns each object, and whether these sets need it.
fn needed(storage: &Locking, kept: &[&str]) -> BTreeMap<String, bool> {
    let chains = chain_of(kept);
    let repository = repository(Arc::new(storage.clone()));
    let mut packs = BTreeSet::new();
    for id in &chains {
        let descriptor = strata::delta::read_descriptor(&repository, IMAGE, id).unwrap();
        let pack = |row: strata::delta::PackRow| {
            packs.insert(row.pack.to_string());
            Ok(())
        };
        strata::delta::packs(&repository, &descriptor, pack).unwrap();
    }
    let mut all = BTreeMap::new();
    let each = |listed: Listed| {
        let name = listed.path.rsplit('/').next().unwrap();
        let id = name.split('.').next().unwrap();
        let is_needed = match &listed.path {
            path if path.contains("/sets/") => kept.contains(&id),
            path if path.contains("/packs/") => packs.contains(name),
            path if path.contains("/volumes/") => chains.contains(id),
            path => path == "lockstep.json",
        };
        all.insert(listed.path, is_needed);
    };
    repository.store().list("", each).unwrap();
    all
}

/// Checks that everything these sets need is locked until `until`, and nothing else is.
#[track_caller]
fn assert_locked(storage: &Locking, kept: &[&str], until: u64, why: &str) {
    let prolonged = storage.prolonged();
    for (path, is_needed) in needed(storage, kept) {
        let lock = prolonged.get(&path).copied();
        assert_eq!(lock, is_needed.then_some(until), "{why}: {path}");
    }
}

#[test]
fn what_kept_sets_need_is_prolonged_and_nothing_else() {
    let storage = filled();
    let later = now() + N / 3;
    // 3 and 4 are about to be deleted; of 3, that is only what 2 doesn't have.
    let (_, count) = well(&storage, &["0", "2"], later);
    assert_locked(&storage, &["0", "2"], later + N, "prolonged");
    let expected = needed(&storage, &["0", "2"]).values().filter(|is_needed| **is_needed).count();
    assert_eq!(count, expected as u64);
}

#[test]
fn nothing_is_asked_again_until_half_of_the_time_is_over() {
    let storage = filled();
    let kept = ["0", "1", "2", "3", "4"];
    let first = soon();
    let (_, count) = well(&storage, &kept, first);
    for later in [first + 1, first + N / 2] {
        let counting = Counting::new(Arc::new(storage.clone()));
        assert_eq!(tend(Arc::new(counting.clone()), &kept, later).1.count, 0);
        let asks = |call: &&Call| call.verb == "lock_until" || call.verb == "put";
        let calls = counting.take();
        assert_eq!(calls.iter().find(asks), None);
        let reads = calls.iter().filter(|call| call.path.ends_with("locks.json")).count();
        assert_eq!(reads, 2, "by the collection and the prolongation");
    }
    let second = first + N / 2 + 1;
    assert_eq!(well(&storage, &kept, second).1, count);
    assert_locked(&storage, &kept, second + N, "again");
}

#[test]
fn a_lost_or_damaged_note_only_costs_requests() {
    let storage = filled();
    let kept = ["3", "4"];
    let (_, count) = well(&storage, &kept, soon());
    let path = "clusters/main/locks.json";
    storage.delete(path).unwrap();
    assert_eq!(well(&storage, &kept, soon() + 10).1, count);
    storage.put(path, &["{".into()]).unwrap();
    let last = soon() + 20;
    assert_eq!(well(&storage, &kept, last).1, count);
    assert_locked(&storage, &kept, last + N, "lost twice");
    assert_eq!(well(&storage, &kept, last).1, 0);
}

#[test]
fn interrupted_at_every_call_it_goes_on() {
    let kept = ["0", "2", "4"];
    for fault in [Fault::StopBefore, Fault::StopAfter, Fault::FailOnce, Fault::LoseAnswer] {
        for at in 0.. {
            let why = format!("{fault:?} at call {at}");
            let storage = filled();
            let time = soon();
            let faulty = Faulty::new(Arc::new(storage.clone()), at, fault);
            let failing = repository(Arc::new(faulty.clone()));
            let survey = match Survey::take_readable(&failing, &sets(&kept)) {
                Ok(survey) => survey,
                Err(_) => continue,
            };
            let what = Prolonging { more: vec!["lockstep.json".into()], gone: vec![], now: time };
            let first = survey.prolong(&failing, &what, HELD).unwrap();
            let before = storage.prolonged();
            well(&storage, &kept, time + 5);
            // Nothing is shortened; a continued run locks until the same time as when it began.
            assert!(before.iter().all(|(path, lock)| storage.prolonged()[path] >= *lock), "{why}");
            let until: BTreeSet<_> = storage.prolonged().into_values().collect();
            assert!(until.iter().all(|until| [time + N, time + 5 + N].contains(until)), "{why}");
            let all = needed(&storage, &kept).into_iter().filter(|(_, is_needed)| *is_needed);
            let left: Vec<_> =
                all.filter(|(at, _)| !storage.prolonged().contains_key(at)).collect();
            // A survey that couldn't read something has handled the rest; what it missed is noted as left out and
            // locked now.
            assert_eq!(left, [], "{why}");
            assert_eq!(well(&storage, &kept, time + 6).1, 0, "{why}: and then it is done");
            if first.failed.is_none() && faulty.calls() <= at {
                assert!(at > 30, "only {at} calls");
                break;
            }
        }
    }
}

/// Makes the note look as if the last run had ended after this pack.
fn as_if_it_had_ended_behind(storage: &Locking, pack: &str) {
    let path = "clusters/main/locks.json";
    let mut note: serde_json::Value =
        strata::document::read(path, &storage.get(path).unwrap()).unwrap();
    note["runs"][0]["done"] = false.into();
    note["runs"][0]["packs"] = pack.rsplit('/').next().unwrap().into();
    storage.put(path, &[strata::document::write(path, &note).unwrap().into()]).unwrap();
}

#[test]
fn what_lies_before_where_a_run_goes_on_and_was_left_out_is_not_forgotten() {
    for at in 0.. {
        let (storage, time) = (filled(), soon());
        well(&storage, &["4"], time);
        let last = needed(&storage, &[]).into_keys().rfind(|path| path.contains("/packs/"));
        as_if_it_had_ended_behind(&storage, &last.unwrap());
        let failing = Faulty::new(Arc::new(storage.clone()), at, Fault::StopBefore);
        let repository = repository(Arc::new(failing.clone()));
        let what = Prolonging { more: vec!["lockstep.json".into()], gone: vec![], now: time + 1 };
        if let Ok(survey) = Survey::take(&repository, &sets(&["3", "4"]), Terms::at(0, time + 1)) {
            survey.prolong(&repository, &what, HELD).unwrap();
        }
        well(&storage, &["3", "4"], time + 2);
        assert_locked(&storage, &["3", "4"], time + N, &format!("dead at call {at}"));
        if failing.calls() <= at {
            assert!(at > 30, "only {at} calls");
            break;
        }
    }
}

#[test]
fn an_interrupted_run_goes_on_behind_the_packs_that_it_has_done() {
    let storage = filled();
    let (kept, time) = (["3", "4"], soon());
    let repository = repository(Arc::new(storage.clone()));
    let survey = Survey::take(&repository, &sets(&kept), Terms::at(0, time)).unwrap();
    let what = Prolonging { more: vec![], gone: vec![], now: time };
    assert!(survey.prolong(&repository, &what, HELD).unwrap().failed.is_none());
    let packs: Vec<_> =
        storage.prolonged().into_keys().filter(|at| at.contains("/packs/")).collect();
    let behind = packs.len() / 2;
    as_if_it_had_ended_behind(&storage, &packs[behind]);
    let counting = Counting::new(Arc::new(storage.clone()));
    assert!(tend(Arc::new(counting.clone()), &kept, time + 9).1.failed.is_none());
    let asked = counting.take().into_iter().filter(|call| call.verb == "lock_until");
    let asked: Vec<_> = asked.map(|call| call.path).filter(|at| at.contains("/packs/")).collect();
    assert_eq!(asked.len(), packs.len() - behind - 1);
    assert!(packs[behind + 1..].iter().all(|pack| asked.contains(pack)));
    assert_locked(&storage, &kept, time + N, "in two");
}

#[test]
fn what_was_needed_by_nobody_is_prolonged_as_soon_as_it_is() {
    let storage = filled();
    let repository = repository(Arc::new(storage.clone()));
    let old = storage.get("clusters/main/sets/4.json").unwrap();
    Manifest::delete(&repository, "4").unwrap();
    let time = soon();
    // 4 is dead, 2 and 3 are about to be deleted; all have long locks, so nothing is deleted.
    let (collected, _) = well(&storage, &["0", "1"], time);
    assert!(collected.deleted.is_empty() && !collected.locked.is_empty(), "{collected:?}");
    assert_locked(&storage, &["0", "1"], time + N, "two sets");
    // A set that needs what existed before, and one that is kept after all.
    storage.put("clusters/main/sets/4.json", &[old]).unwrap();
    let (_, count) = well(&storage, &["0", "1", "2", "4"], time + 10);
    assert!(count > 5, "{count}");
    let mut expected = needed(&storage, &["0", "1", "2", "4"]);
    // Its manifest is new and has a lock of its own.
    expected.insert("clusters/main/sets/4.json".to_string(), false);
    for (path, is_needed) in expected {
        let lock = storage.prolonged().get(&path).copied();
        assert_eq!(lock, is_needed.then_some(time + N), "{path}");
    }
    assert_eq!(well(&storage, &["0", "1", "2", "4"], time + 20).1, 0);
}

#[test]
fn what_was_prolonged_is_deleted_when_that_lock_has_ended() {
    let storage = filled();
    let repository = repository(Arc::new(storage.clone()));
    let time = now() + N / 4;
    well(&storage, &["0", "1", "2", "3"], time);
    // 4 was left out, so its own lock counts. 3 wasn't.
    Manifest::delete(&repository, "3").unwrap();
    Manifest::delete(&repository, "4").unwrap();
    let (early, _) = well(&storage, &["0", "1", "2"], time + 100);
    assert!(early.deleted.is_empty() && early.locked.len() == 10, "{early:?}");
    let own_ended = now() + N + 1;
    let (own, _) = well(&storage, &["0", "1", "2"], own_ended);
    assert!(own.deleted.len() == 5 && own.locked.len() == 5, "{own:?}");
    assert!(own.deleted[0].ends_with("/4.json"), "{own:?}");
    // What is dead wasn't prolonged in the meantime.
    assert_eq!(well(&storage, &["0", "1", "2"], time + N - 1).0.locked.len(), 5);
    let (late, _) = well(&storage, &["0", "1", "2"], time + N);
    assert!(late.deleted.len() == 5 && late.locked.is_empty(), "{late:?}");
    assert!(late.deleted[0].ends_with("/3.json"), "{late:?}");
    let report = check(&repository, &Default::default()).unwrap();
    assert!(report.problems.is_empty(), "{:?}", report.problems);
    assert_eq!(report.foreign, [""; 0], "the note is known");
}

#[test]
fn a_set_that_is_about_to_go_is_not_kept_for_its_lock_for_ever() {
    let storage = filled();
    let repository = repository(Arc::new(storage.clone()));
    let manifest = repository.path("sets/3.json");
    let first = soon();
    well(&storage, &["0", "1", "2", "3", "4"], first);
    // From here on only its lock keeps it, through any number of runs.
    for time in [first + N / 2 + 1, first + N - 1] {
        well(&storage, &["0", "1", "2", "4"], time);
        let locks = Locks::read(&repository).unwrap();
        assert_eq!(locks.ends(&manifest, first - 100, None, N), first + N);
        assert_eq!(storage.prolonged()[&manifest], first + N);
    }
}

#[test]
fn what_fails_is_said_and_nothing_is_lost() {
    let kept = ["0", "1", "2", "3", "4"];
    for kind in [StoreErrorKind::PermissionDenied, StoreErrorKind::Unsupported] {
        let storage = filled();
        storage.refuse(Some(kind));
        let counting = Counting::new(Arc::new(storage.clone()));
        let (collected, prolonged) = tend(Arc::new(counting.clone()), &kept, soon());
        assert_eq!((collected, prolonged.count), (Collected::default(), 0));
        let error = prolonged.failed.unwrap();
        assert!(error.to_string().starts_with("cannot prolong the lock of \"lockstep"), "{error}");
        let is_denied = kind == StoreErrorKind::PermissionDenied;
        assert_eq!(error.hint().is_some_and(|h| h.contains("s3:PutObjectRetention")), is_denied);
        let asked = counting.take().iter().filter(|call| call.verb == "lock_until").count();
        assert!(asked <= 128, "all would be answered the same: {asked}");
        storage.refuse(None);
        assert!(well(&storage, &kept, soon()).1 > 20);
    }
    // A missing object is reported each time, and the rest is done once.
    let storage = filled();
    let pack = needed(&storage, &["4"]).into_keys().find(|path| path.contains("/packs/")).unwrap();
    storage.delete(&pack).unwrap();
    for count in [true, false] {
        let (_, prolonged) = tend(Arc::new(storage.clone()), &kept, soon());
        assert_eq!(prolonged.count > 20, count);
        assert!(prolonged.failed.unwrap().to_string().contains(&pack));
    }
}

/// Does what a prune does if there is nothing to collect and the store may fail.
fn prolong(storage: &Locking, kept: &[&str], now: u64) -> Prolonged {
    let repository = repository(Arc::new(storage.clone()));
    let survey = Survey::take(&repository, &sets(kept), Terms::at(0, now)).unwrap();
    let what = Prolonging { more: vec!["lockstep.json".into()], gone: vec![], now };
    survey.prolong(&repository, &what, HELD).unwrap()
}

/// Writes a delta without a base, with this many packs.
fn delta_of_packs(repository: &Repository, id: &str, packs: u64) {
    let create = |at| Step::Create(at + 1, 1, 1, vec![Act::Write(0, 800, 2)]);
    let steps: Vec<_> = (0..packs).map(create).collect();
    let packs = PackOptions { pack_size: 1, ..small().packs };
    let options = ImageOptions { packs, ..small() };
    write_delta(repository, &mut Image::new(), &steps, id, None, &options).unwrap();
}

#[test]
fn what_is_needed_again_does_not_hide_how_far_an_interrupted_run_is() {
    const PACKS: u64 = 400;
    let storage = Locking::new(memory_store(), N);
    let repository = repository(Arc::new(storage.clone()));
    repository.store().put("lockstep.json", &["{}".into()]).unwrap();
    delta_of_packs(&repository, "0", PACKS);
    publish(&repository, "0");
    // It belongs to a backup that is being written: its packs come after those of the set.
    delta_of_packs(&repository, "4", PACKS);
    let time = soon();
    storage.refuse(Some(StoreErrorKind::Transient));
    assert!(prolong(&storage, &["0"], time).failed.is_some());
    publish(&repository, "4");
    let kept = ["0", "4"];
    let mut locked = 0;
    storage.refuse_where(move |_| {
        locked += 1;
        (locked > 300).then_some(StoreErrorKind::Transient)
    });
    assert!(prolong(&storage, &kept, time + 1).failed.is_some());
    storage.refuse(None);
    assert_eq!(Locks::read(&repository).unwrap().all_until(N), None, "it hasn't ended");
    let last = prolong(&storage, &kept, time + 2);
    assert!(last.failed.is_none(), "{:?}", last.failed);
    assert_eq!(Locks::read(&repository).unwrap().all_until(N), Some(time + N));
    let packs = storage.prolonged().into_keys().filter(|path| path.contains("/packs/"));
    assert_eq!(packs.count() as u64, 2 * PACKS);
    assert_eq!(prolong(&storage, &kept, time + 3).count, 0);
}

#[test]
fn what_will_not_be_locked_keeps_nothing_else_from_it() {
    let kept = ["0", "1", "2", "3", "4"];
    let in_order = |storage: &Locking| {
        let all = needed(storage, &kept).into_iter().filter(|(_, is_needed)| *is_needed);
        all.map(|(path, _)| path).filter(|path| path != "lockstep.json").collect::<Vec<_>>()
    };
    for kind in [StoreErrorKind::PermissionDenied, StoreErrorKind::Retained, StoreErrorKind::Other]
    {
        for at in (0..in_order(&filled()).len()).step_by(3) {
            let (storage, time) = (filled(), soon());
            let all = in_order(&storage);
            let (refused, repository) = (all[at].clone(), repository(Arc::new(storage.clone())));
            let one = refused.clone();
            storage.refuse_where(move |path| (path == one).then_some(kind));
            for again in 0..2 {
                let error = prolong(&storage, &kept, time + again).failed.unwrap().to_string();
                assert!(error.contains(&refused), "{error}");
                let is_open = |path: &&String| !storage.prolonged().contains_key(*path);
                assert_eq!(all.iter().filter(is_open).collect::<Vec<_>>(), [&refused], "{kind:?}");
                assert_eq!(Locks::read(&repository).unwrap().all_until(N), None, "not all is");
            }
            storage.refuse(None);
            well(&storage, &kept, time + 2);
            assert_locked(&storage, &kept, time + N, &format!("{kind:?}: {refused}"));
            assert_eq!(Locks::read(&repository).unwrap().all_until(N), Some(time + N));
            assert_eq!(well(&storage, &kept, time + 3).1, 0, "and then it is done");
        }
    }
}

#[test]
fn who_may_lock_nothing_asks_a_few_times_only() {
    let storage = Locking::new(memory_store(), N);
    let repository = repository(Arc::new(storage.clone()));
    repository.store().put("lockstep.json", &["{}".into()]).unwrap();
    delta_of_packs(&repository, "0", 400);
    publish(&repository, "0");
    storage.refuse(Some(StoreErrorKind::PermissionDenied));
    for again in 0..3 {
        let counting = Counting::new(Arc::new(storage.clone()));
        let (_, prolonged) = tend(Arc::new(counting.clone()), &["0"], soon() + again);
        assert_eq!((prolonged.count, prolonged.failed.is_some()), (0, true));
        let asked = counting.take().iter().filter(|call| call.verb == "lock_until").count();
        assert!(asked < 300, "{asked}");
    }
    storage.refuse(None);
    assert!(well(&storage, &["0"], soon() + 3).1 > 400);
}

#[test]
fn what_is_needed_again_and_will_not_be_locked_counts_as_not_locked() {
    let (storage, time) = (filled(), soon());
    let repository = repository(Arc::new(storage.clone()));
    well(&storage, &["0"], time);
    let until = || Locks::read(&repository).unwrap().all_until(N);
    assert_eq!(until(), Some(time + N));
    let set = "clusters/main/sets/1.json";
    storage.refuse_where(move |path| (path == set).then_some(StoreErrorKind::PermissionDenied));
    let prolonged = prolong(&storage, &["0", "1"], time + 1);
    assert!(prolonged.failed.unwrap().to_string().contains(set) && prolonged.count > 0);
    assert_eq!(until(), None);
    storage.refuse(None);
    // No pack is locked again because of it.
    let counting = Counting::new(Arc::new(storage.clone()));
    assert!(tend(Arc::new(counting.clone()), &["0", "1"], time + 2).1.failed.is_none());
    let packs = |call: &&Call| call.verb == "lock_until" && call.path.contains("/packs/");
    assert_eq!(counting.take().iter().find(packs), None);
    assert_eq!(until(), Some(time + N));
    assert_locked(&storage, &["0", "1"], time + N, "at last");
}

#[test]
fn who_has_lost_the_lease_leaves_it() {
    for times in 0.. {
        let storage = filled();
        let counting = Counting::new(Arc::new(storage.clone()));
        let repository = repository(Arc::new(counting.clone()));
        let survey = Survey::take(&repository, &sets(&["3", "4"]), Terms::at(0, soon())).unwrap();
        let asked = Cell::new(0);
        let still = || {
            asked.set(asked.get() + 1);
            match asked.get() > times {
                true => Err(Error::LeaseLost { what: "write".into(), owner: "other".into() }),
                false => Ok(()),
            }
        };
        let what = Prolonging { now: soon(), ..Prolonging::default() };
        let result = survey.prolong(&repository, &what, &still);
        let puts = counting.take().iter().filter(|call| call.verb == "put").count();
        match result {
            Ok(done) => {
                assert!(done.failed.is_none() && times == 3 && puts == 2, "{times}, {puts}");
                return;
            }
            Err(error) => assert!(matches!(error, Error::LeaseLost { .. }), "{error}"),
        }
        assert_eq!(puts, times.min(1), "lost after {times}");
    }
}

#[test]
fn a_store_that_locks_nothing_is_asked_nothing() {
    let storage = filled().for_seconds(0);
    let counting = Counting::new(Arc::new(storage.clone()));
    assert_eq!(tend(Arc::new(counting.clone()), &["3"], now()).1.count, 0);
    assert!(counting.take().iter().all(|call| !call.path.ends_with("locks.json")));
    let error = memory_store().lock_until("x", 1).unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Unsupported);
}
