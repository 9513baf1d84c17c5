//! A collection never deletes what a remaining descriptor refers to, whatever interrupts it and whatever remains. It
//! deletes nothing once its lease is lost.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::sync::Arc;

use crate::support::*;
use strata::check::{CheckOptions, Collected, Doomed, check};
use strata::delta::{
    Change, ImageOptions, ImageWriter, IndexOptions, chain, descriptor_path, packs,
};
use strata::fold::{KeepAll, merge};
use strata::lease::{HELD, Still};
use strata::manifest::{DeltaId, Manifest};
use strata::repack::{RepackOptions, repack};
use strata::store::testing::{Call, Counting, Fault, Faulty};
use strata::store::{Around, Listed, Storage, StoreError, StoreErrorKind, StoreResult};
use strata::{Error, Repository, document};

const NOW: u64 = 4_000_000_000;
/// In the order of their names, increments come after, before and between their bases.
const IDS: [&str; 6] = ["5", "7", "1", "6", "2", "9"];

/// Writes a chain of deltas of which a set needs only the first; returns what they fold to.
fn leftovers(storage: Arc<dyn Storage>) -> BTreeMap<String, Image> {
    leftovers_in(&repository(storage))
}

fn leftovers_in(repository: &Repository) -> BTreeMap<String, Image> {
    let (mut image, mut images) = (Image::new(), BTreeMap::new());
    let mut base = None;
    for (number, id) in IDS.into_iter().enumerate() {
        let acts = vec![Act::Write(0, 800, number as u8 + 2)];
        let steps = [Step::Create(number as u64 + 1, 1, 1, acts)];
        write_delta(repository, &mut image, &steps, id, base, &small()).unwrap();
        images.insert(id.to_string(), image.clone());
        base = Some(id);
    }
    let delta = DeltaId { image: IMAGE.to_string(), id: IDS[0].to_string() };
    Manifest::new("a", NOW, vec![delta], serde_json::Value::Null).write(repository).unwrap();
    images
}

/// Returns the ids of the existing descriptors. Each must fold to what it did before.
fn whole(repository: &Repository, images: &BTreeMap<String, Image>, why: &str) -> Vec<String> {
    let mut ids = Vec::new();
    let folder = repository.image_path(IMAGE, "");
    let descriptor = |listed: Listed| {
        let name = listed.path.rsplit('/').next().and_then(|name| name.strip_suffix(".json"));
        ids.extend(name.map(str::to_string));
    };
    repository.store().list(folder.trim_end_matches('/'), descriptor).unwrap();
    ids.sort();
    for id in &ids {
        let all = chain(repository, IMAGE, id, None)
            .unwrap_or_else(|error| panic!("{why}: {id} of {ids:?}: {error}"));
        let folded = restored(repository, &all, &Image::new())
            .unwrap_or_else(|error| panic!("{why}: {id} of {ids:?}: {error}"));
        assert_eq!(folded, images[id], "{why}: {id}");
    }
    ids
}

/// A program that copied the repository left them: no set and no delta has such a name.
#[test]
fn what_has_a_name_that_no_object_has_stops_nothing() {
    let storage = memory_store();
    leftovers(storage.clone());
    let repository = repository(storage);
    let copied = |from: String, to: String| {
        let content = repository.store().get(&from).unwrap();
        repository.store().put(&to, &[content]).unwrap();
        to
    };
    let set = |name: &str| repository.path(&format!("sets/{name}.json"));
    let delta = |name: &str| repository.image_path(IMAGE, &format!("{name}.json"));
    let mut foreign: Vec<String> = Vec::new();
    foreign.extend(["._a", "a (1)", "sub/a"].map(|name| copied(set("a"), set(name))));
    foreign.extend(["._5", "5 (1)"].map(|name| copied(delta("5"), delta(name))));
    foreign.sort();
    assert_eq!(Manifest::list(&repository).unwrap(), ["a"]);
    let report = check(&repository, &CheckOptions::default()).unwrap();
    assert!(report.problems.is_empty(), "{:?}", report.problems);
    assert_eq!(report.foreign, foreign);
    let collected = collect(&repository, 0, NOW, false, HELD).unwrap();
    assert!(!collected.deleted.is_empty());
    for path in &foreign {
        assert!(repository.store().get(path).is_ok(), "{path} was deleted");
    }
}

#[test]
fn increments_go_before_what_they_change() {
    let storage = memory_store();
    let images = leftovers(storage.clone());
    let repository = repository(storage);
    let collected = collect(&repository, 0, NOW, true, HELD).unwrap();
    let path = |id: &str| repository.image_path(IMAGE, &format!("{id}.json"));
    let expected: Vec<_> = IDS[1..].iter().rev().map(|id| path(id)).collect();
    assert_eq!(collected.deleted[..5], expected);
    assert!(collected.deleted[5..].iter().all(|path| !path.ends_with(".json")));
    assert_eq!(collect(&repository, 0, NOW, false, HELD).unwrap(), collected);
    assert_eq!(whole(&repository, &images, "collected"), IDS[..1]);
}

#[test]
fn what_stops_a_collection_leaves_every_descriptor_whole() {
    for fault in [Fault::StopBefore, Fault::StopAfter, Fault::FailOnce] {
        for at in 0.. {
            let why = format!("{fault:?} at call {at}");
            let storage = memory_store();
            let images = leftovers(storage.clone());
            let faulty = Faulty::new(storage.clone(), at, fault);
            let result = collect(&repository(Arc::new(faulty.clone())), 0, NOW, false, HELD);
            let repository = repository(storage);
            whole(&repository, &images, &why);
            if result.is_ok() && faulty.calls() <= at {
                assert!(at > 20, "only {at} calls");
                break;
            }
            collect(&repository, 0, NOW, false, HELD).unwrap();
            assert_eq!(whole(&repository, &images, &why), IDS[..1], "{why}: the next");
        }
    }
}

/// Returns everything that a delta and its bases consist of.
fn needed(repository: &Repository, id: &str) -> Vec<String> {
    let mut paths = Vec::new();
    for descriptor in chain(repository, IMAGE, id, None).unwrap() {
        paths.push(descriptor_path(repository, IMAGE, &descriptor.id).unwrap());
        paths.extend(descriptor.files().map(|file| repository.image_path(IMAGE, &file.name)));
        let pack = |row: strata::delta::PackRow| {
            paths.push(repository.pack_path(row.pack));
            Ok(())
        };
        packs(repository, &descriptor, pack).unwrap();
    }
    paths
}

/// Something was noted, then a set needed it, and now nothing needs it again. It must wait for its grace time again,
/// because a restore of that set may still read it. This holds whatever the set needs and whenever it is removed.
#[test]
fn what_was_needed_in_between_waits_again() {
    for (at, id) in IDS.into_iter().enumerate().skip(1) {
        let repository = repository(memory_store());
        let images = leftovers_in(&repository);
        let first = collect(&repository, 100, NOW, false, HELD).unwrap();
        let again: BTreeSet<String> = needed(&repository, id).into_iter().collect();
        // A set that builds on it is written, as by a shipment, and removed without a collection in between.
        let noted = Doomed::read(&repository).unwrap();
        noted.strike(&repository, again.iter().cloned(), HELD).unwrap();
        let delta = DeltaId { image: IMAGE.to_string(), id: id.to_string() };
        let set = Manifest::new("b", NOW, vec![delta], serde_json::Value::Null);
        set.write(&repository).unwrap();
        Manifest::delete(&repository, "b").unwrap();
        let next = collect(&repository, 100, NOW + 1000, false, HELD).unwrap();
        let waiting: BTreeSet<_> = next.waiting.into_iter().collect();
        let was_waiting = |path: &&String| first.waiting.contains(path);
        assert_eq!(waiting, again.iter().filter(was_waiting).cloned().collect(), "{id}");
        assert_eq!(next.deleted.len(), first.waiting.len() - waiting.len(), "{id}");
        assert_left(&repository, &images, at + 1, id);
        let last = collect(&repository, 100, NOW + 1100, false, HELD).unwrap();
        assert_eq!(last.deleted.len(), waiting.len(), "{id}");
    }
}

/// A store that refuses to delete an object, or reports a lock on it.
struct Refusing {
    inner: Arc<dyn Storage>,
    path: String,
    error: StoreErrorKind,
    /// The lock time of paths with this ending.
    locked: (&'static str, u64),
}

impl Refusing {
    fn new(inner: Arc<dyn Storage>, path: String, error: StoreErrorKind) -> Refusing {
        Refusing { inner, path, error, locked: ("", 0) }
    }
}

impl Around for Refusing {
    fn inner(&self) -> &dyn Storage {
        self.inner.as_ref()
    }

    fn delete(&self, path: &str) -> StoreResult<()> {
        if path == self.path {
            return Err(StoreError::new("delete", path, self.error));
        }
        self.inner.delete(path)
    }

    fn locked_seconds(&self, path: &str) -> u64 {
        if path.ends_with(self.locked.0) { self.locked.1 } else { 0 }
    }
}

/// Checks that everything that deltas of these ids refer to remains, and nothing else.
fn assert_left(repository: &Repository, images: &BTreeMap<String, Image>, count: usize, why: &str) {
    let mut ids: Vec<_> = IDS[..count].to_vec();
    ids.sort_unstable();
    assert_eq!(whole(repository, images, why), ids, "{why}");
    let mut objects = Vec::new();
    repository.store().list("clusters/main", |listed| objects.push(listed.path)).unwrap();
    let packs = objects.iter().filter(|path| path.contains("/packs/")).count();
    let indexes = objects.iter().filter(|path| path.ends_with(".parquet")).count();
    assert_eq!((packs, indexes), (count, 3 * count), "{why}: {objects:#?}");
}

#[test]
fn what_a_descriptor_that_will_not_go_refers_to_stays() {
    for error in [StoreErrorKind::Retained, StoreErrorKind::PermissionDenied] {
        for (at, id) in IDS.into_iter().enumerate().skip(1) {
            let why = format!("{error:?}, {id}");
            let storage = memory_store();
            let images = leftovers(storage.clone());
            let path = repository(storage.clone()).image_path(IMAGE, &format!("{id}.json"));
            let refusing = Refusing::new(storage.clone(), path.clone(), error);
            let result = collect(&repository(Arc::new(refusing)), 0, NOW, false, HELD);
            let repository = repository(storage);
            match error {
                StoreErrorKind::Retained => {
                    let locked = result.unwrap().locked;
                    // Each one's descriptor, pack and three tables.
                    assert!(locked.contains(&path) && locked.len() == 5 * at, "{why}: {locked:?}");
                    assert_left(&repository, &images, at + 1, &why);
                }
                _ => {
                    assert!(result.unwrap_err().to_string().contains(&path), "{why}");
                    whole(&repository, &images, &why);
                }
            }
            collect(&repository, 0, NOW, false, HELD).unwrap();
            assert_left(&repository, &images, 1, &why);
        }
    }
}

#[test]
fn what_a_descriptor_with_a_longer_lock_refers_to_stays() {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let storage = memory_store();
    let images = leftovers(storage.clone());
    // As if a merge had just replaced it: what it refers to is older.
    let locked = ("/6.json", 10_000);
    let refusing = Refusing::new(storage, String::new(), StoreErrorKind::Other);
    let repository = repository(Arc::new(Refusing { locked, ..refusing }));
    collect(&repository, 100, now + 200, false, HELD).unwrap();
    let early = collect(&repository, 100, now + 400, false, HELD).unwrap();
    assert_eq!((early.deleted.len(), early.locked.len()), (10, 15), "{early:?}");
    assert_left(&repository, &images, 4, "locked");
    let late = collect(&repository, 100, now + 11_000, false, HELD).unwrap();
    assert_eq!((late.deleted.len(), late.locked.len()), (15, 0), "{late:?}");
    assert_left(&repository, &images, 1, "the lock has ended");
}

/// Removes what was noted about a delta's descriptor.
fn forget(repository: &Repository, id: &str) {
    let path = repository.path("doomed.json");
    let bytes = repository.store().get(&path).unwrap();
    let mut note: serde_json::Value = document::read(&path, &bytes).unwrap();
    let descriptor = repository.image_path(IMAGE, &format!("{id}.json"));
    note["since"].as_object_mut().unwrap().remove(&descriptor).unwrap();
    repository.store().put(&path, &[document::write(&path, &note).unwrap().into()]).unwrap();
}

#[test]
fn what_a_descriptor_that_waits_refers_to_waits() {
    let storage = memory_store();
    let images = leftovers(storage.clone());
    let repository = repository(storage);
    collect(&repository, 100, NOW, false, HELD).unwrap();
    forget(&repository, "6");
    let early = collect(&repository, 100, NOW + 100, false, HELD).unwrap();
    assert_eq!((early.deleted.len(), early.waiting.len()), (10, 15), "{early:?}");
    assert_left(&repository, &images, 4, "waiting");
    // What was kept because of it doesn't start to wait again.
    let late = collect(&repository, 100, NOW + 200, false, HELD).unwrap();
    assert_eq!((late.deleted.len(), late.waiting.len()), (15, 0), "{late:?}");
    assert_left(&repository, &images, 1, "waited");
}

#[test]
fn while_a_descriptor_that_stays_is_damaged_nothing_goes() {
    let storage = memory_store();
    leftovers(storage.clone());
    let repository = repository(storage);
    collect(&repository, 100, NOW, false, HELD).unwrap();
    forget(&repository, "1");
    let path = repository.image_path(IMAGE, "1.json");
    repository.store().put(&path, &["{".into()]).unwrap();
    let early = collect(&repository, 100, NOW + 100, false, HELD).unwrap();
    assert_eq!((early.deleted.len(), early.waiting.len()), (0, 25), "{early:?}");
    let late = collect(&repository, 100, NOW + 200, false, HELD).unwrap();
    assert_eq!(late.deleted.len(), 25);
    assert_eq!(collect(&repository, 100, NOW + 200, false, HELD).unwrap(), Collected::default());
}

/// No set needs it, so it stops no collection; but while it is young, it may have been misread because it was just
/// written.
#[test]
fn a_young_descriptor_that_is_damaged_ends_no_collection() {
    let storage = memory_store();
    leftovers(storage.clone());
    let repository = repository(storage);
    let written = repository.store();
    let folder = repository.image_path(IMAGE, "");
    let (mut modified, path) = (0, repository.image_path(IMAGE, "9.json"));
    written.put(&path, &["{".into()]).unwrap();
    written
        .list(folder.trim_end_matches('/'), |listed| modified = modified.max(listed.modified))
        .unwrap();
    let early = collect(&repository, 100, modified + 99, false, HELD).unwrap();
    assert_eq!(early.deleted, Vec::<String>::new());
    collect(&repository, 100, modified + 100, false, HELD).unwrap();
    let late = collect(&repository, 100, modified + 200, false, HELD).unwrap();
    assert_eq!((late.deleted.len(), late.waiting.len()), (25, 0), "{late:?}");
    // A damaged one that a set needs stops it.
    written.put(&repository.image_path(IMAGE, "5.json"), &["{".into()]).unwrap();
    let error = collect(&repository, 100, modified + 200, false, HELD).unwrap_err();
    assert!(matches!(error, Error::Damaged { .. }), "{error}");
}

/// Reports that the lease is held for the first `times` calls, and then that it was lost.
fn lost_after(times: usize, asked: &Cell<usize>) -> strata::Result<()> {
    asked.set(asked.get() + 1);
    match asked.get() > times {
        true => Err(Error::LeaseLost { what: "write".into(), owner: "other".into() }),
        false => Ok(()),
    }
}

/// Returns the objects that were deleted or overwritten.
fn changed(counting: &Counting) -> Vec<String> {
    let calls = counting.take().into_iter();
    let descriptor = |call: &Call| call.verb == "put" && call.path.ends_with(".json");
    calls.filter(|call| call.verb == "delete" || descriptor(call)).map(|call| call.path).collect()
}

#[test]
fn nothing_is_deleted_once_the_lease_is_lost() {
    for times in 0.. {
        let storage = memory_store();
        let images = leftovers(storage.clone());
        let counting = Counting::new(storage.clone());
        let asked = Cell::new(0);
        let still = || lost_after(times, &asked);
        let result = collect(&repository(Arc::new(counting.clone())), 0, NOW, false, &still);
        // The first change is the note of what nothing refers to.
        assert_eq!(changed(&counting).len(), times.min(26), "lost after {times}");
        whole(&repository(storage), &images, "lost");
        if result.is_ok() {
            assert_eq!(times, 26);
            return;
        }
        assert!(matches!(result.unwrap_err(), Error::LeaseLost { .. }));
    }
}

#[test]
fn no_descriptor_is_replaced_once_the_lease_is_lost() {
    let storage = memory_store();
    let images = leftovers(storage.clone());
    let counting = Counting::new(storage.clone());
    let repository = repository(Arc::new(counting.clone()));
    let lost = || lost_after(0, &Cell::new(0));
    let all = chain(&repository, IMAGE, IDS[5], None).unwrap();
    let merged = merge(&repository, &all[1..], &Model, 1 << 20, &small_index(), &lost);
    assert!(matches!(merged.unwrap_err(), Error::LeaseLost { .. }));
    // With these options all packs are sparse, and five deltas of a set refer to them.
    let delta = DeltaId { image: IMAGE.to_string(), id: IDS[5].to_string() };
    Manifest::new("b", NOW, vec![delta], serde_json::Value::Null).write(&repository).unwrap();
    let options = RepackOptions {
        live_percent: 101,
        packs: small().packs,
        index: small_index(),
        ..RepackOptions::default()
    };
    // `still` is called before each block moves, too.
    let mut replaced = BTreeSet::new();
    for times in 0.. {
        let asked = Cell::new(0);
        let still =
            || lost_after(times, &asked).inspect_err(|_| assert_eq!(asked.get(), times + 1));
        counting.take();
        match repack(&repository, &options, false, &still, &mut |_, _| ()) {
            Ok(done) => {
                assert!(times > IDS.len() && done.deltas == 6, "{times}: {done:?}");
                break;
            }
            Err(error) => assert!(matches!(error, Error::LeaseLost { .. }), "lost after {times}"),
        }
        replaced.insert(changed(&counting).len());
    }
    assert_eq!(replaced, (0..IDS.len()).collect(), "it ends before any of them");
    assert_eq!(whole(&repository, &images, "lost").len(), IDS.len());
    assert_eq!(repack(&repository, &options, false, HELD, &mut |_, _| ()).unwrap().deltas, 6);
}

#[test]
fn a_long_merge_can_be_ended() {
    let repository = repository(memory_store());
    let deltas = [("1", None), ("2", Some("1"))].map(|(id, base)| {
        let mut writer =
            ImageWriter::new(&repository, IMAGE, id, base, &ImageOptions::default()).unwrap();
        for object in 0..5000 {
            let header = Some("header".into());
            writer.changed(Change { object, header, ..Change::default() }).unwrap();
        }
        writer.finish().unwrap()
    });
    let merging = |still: Still<'_>| {
        merge(&repository, &deltas, &KeepAll, 1 << 20, &IndexOptions::default(), still)
    };
    let asked = Cell::new(0);
    merging(&|| lost_after(0, &asked)).unwrap_err();
    assert_eq!(chain(&repository, IMAGE, "2", None).unwrap(), deltas, "it is as it was");
    asked.set(0);
    merging(&|| lost_after(9, &asked)).unwrap();
    assert_eq!(asked.get(), 2, "in the middle, and before the descriptor");
}

#[test]
fn a_note_that_is_too_large_or_damaged_counts_as_none() {
    for note in [vec![b' '; (64 << 20) + 1], b"{".to_vec()] {
        let storage = memory_store();
        let images = leftovers(storage.clone());
        let repository = repository(storage);
        let path = repository.path("doomed.json");
        collect(&repository, 100, NOW, false, HELD).unwrap();
        repository.store().put(&path, &[note.into()]).unwrap();
        // The grace time starts again.
        let early = collect(&repository, 100, NOW + 100, false, HELD).unwrap();
        assert_eq!((early.deleted.len(), early.waiting.len()), (0, 25));
        let late = collect(&repository, 100, NOW + 200, false, HELD).unwrap();
        assert_eq!((late.deleted.len(), late.waiting.len()), (25, 0));
        assert_left(&repository, &images, 1, "collected");
    }
}

/// Without a grace time, a run leaves what is younger than itself, such as what it has just replaced, to the next run.
/// This doesn't count as locked.
#[test]
fn what_is_younger_than_the_run_waits_for_the_next() {
    let storage = memory_store();
    leftovers(storage.clone());
    let repository = repository(storage);
    let early = collect(&repository, 0, 5, false, HELD).unwrap();
    assert_eq!((early.deleted.len(), early.waiting.len(), early.locked.len()), (0, 25, 0));
    assert_eq!(collect(&repository, 0, NOW, false, HELD).unwrap().deleted.len(), 25);
}

/// A killed writer's files are in no listing; they are deleted all the same once they are old, and nothing else is.
#[test]
fn what_is_half_written_goes_after_the_grace_time() {
    use std::fs;
    use std::time::{Duration, SystemTime, UNIX_EPOCH};
    use strata::check::{CheckOptions, check};
    use strata::store::{ObjectStorage, Store};

    let scratch = tempfile::tempdir().unwrap();
    let store = Store::new(ObjectStorage::folder(scratch.path()).unwrap());
    let repository = Repository::new(store, "clusters/main", None).unwrap();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let pack = "01J00000000000000000000000";
    let half = |path: &str, age: u64| {
        let path = scratch.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, [0; 100]).unwrap();
        let time = UNIX_EPOCH + Duration::from_secs(now - age);
        fs::File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
    };
    let main = |path: &str| format!("clusters/main/{path}");
    let old = [
        main(&format!("packs/{pack}#1")),
        main("sets/a.json#12"),
        main("volumes/i/1.json#1"),
        main("doomed.json#1"),
        main("leases/write/00000000000000000001#1"),
        // Above the parts of all clusters.
        "lockstep.json#1".to_string(),
        "keys/K.json#1".to_string(),
        "leases/reserve#4000000000".to_string(),
        "leases/probe/x#1".to_string(),
    ];
    let stays = [
        // Being written at the moment.
        (main(&format!("packs/{pack}#2")), 3000),
        (main("leases/write/00000000000000000002#1"), 3000),
        ("keys/L.json#1".to_string(), 3000),
        // Not Lockstep's, another cluster's, not half-written.
        (main("packs/mine#1"), 9000),
        (main("notes/x#1"), 9000),
        ("notes.txt#1".to_string(), 9000),
        ("keys/mine#1".to_string(), 9000),
        ("elsewhere/keys/K.json#1".to_string(), 9000),
        ("clusters/other/packs/P#1".to_string(), 9000),
        (main("sets/b.json#"), 9000),
    ];
    old.iter().for_each(|path| half(path, 9000));
    stays.iter().for_each(|(path, age)| half(path, *age));
    let there = |path: &String| scratch.path().join(path).exists();

    let report = check(&repository, &CheckOptions::default()).unwrap();
    assert_eq!(report.half_written.len(), old.len() + 7, "{:?}", report.half_written);
    let mut dry = collect(&repository, 3600, now, true, HELD).unwrap().deleted;
    dry.sort();
    let mut expected = old.to_vec();
    expected.sort();
    assert_eq!(dry, expected);
    assert!(old.iter().all(there));
    let lost: Still<'_> = &|| Err(Error::LeaseLost { what: "w".into(), owner: "o".into() });
    assert!(collect(&repository, 3600, now, false, lost).is_err() && old.iter().all(there));
    assert_eq!(collect(&repository, 3600, now, false, HELD).unwrap().deleted, dry);
    assert!(!old.iter().any(there) && stays.iter().all(|(path, _)| there(path)));
    // Without a grace time, half-written leases stay for an hour: processes that wait for a lease write while another
    // holds it.
    collect(&repository, 0, now, false, HELD).unwrap();
    assert!(!there(&stays[0].0) && stays[1..].iter().all(|(path, _)| there(path)));
}
