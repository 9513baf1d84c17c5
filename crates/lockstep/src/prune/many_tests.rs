//! Measures how many calls to its store a repository of many sets costs, and how many of them run at once.
//!
//! `LOCKSTEP_SETS` is the number of sets, `LOCKSTEP_SETS_MS` how long each call takes; `LOCKSTEP_SETS_FOLDER` is a
//! folder for the repository, if it shouldn't be in memory.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use strata::delta::{Change, DeltaWriter, ImageOptions, ImageWriter};
use strata::repack::{RepackOptions, repack};
use strata::store::{Around, Listed, ObjectStorage, Retries, Storage, Store, StoreResult};

use super::remote::{Choice, Work};
use crate::prune::memory_store::Memory;
use crate::repository::Repository;
use crate::repository::header::StreamRules;
use crate::repository::kin::Identity;
use crate::repository::shipped::{FILES_IMAGE, Pages, Shipped, ShippedVolume};
use crate::retention::Policy;
use crate::set::branches::Member;
use crate::set::manifest::tests::manifest;
use crate::volume::zfs::DatasetName;

const IMAGES: [&str; 2] = ["tank=data", "tank=ts1"];
const FIRST: i64 = 1_700_000_000;

/// A store far away: every call takes its time. Counts the calls, how many run at once, and how many began
/// while no other ran.
#[derive(Clone)]
struct FarAway {
    inner: Arc<dyn Storage>,
    delay: Duration,
    calls: Arc<Mutex<BTreeMap<&'static str, usize>>>,
    running: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
    alone: Arc<AtomicUsize>,
}

impl FarAway {
    fn new(inner: Arc<dyn Storage>) -> Self {
        let (running, most, alone) = (Arc::default(), Arc::default(), Arc::default());
        Self { inner, delay: Duration::ZERO, calls: Arc::default(), running, most, alone }
    }

    fn call<T>(&self, verb: &'static str, run: impl FnOnce() -> T) -> T {
        let others = self.running.fetch_add(1, Ordering::SeqCst);
        self.most.fetch_max(others + 1, Ordering::SeqCst);
        self.alone.fetch_add(usize::from(others == 0), Ordering::SeqCst);
        *self.calls.lock().unwrap().entry(verb).or_default() += 1;
        if !self.delay.is_zero() {
            std::thread::sleep(self.delay);
        }
        let result = run();
        self.running.fetch_sub(1, Ordering::SeqCst);
        result
    }

    /// Returns what `run` costs: its calls by kind, and the most at once.
    fn cost<T>(&self, what: &str, run: impl FnOnce() -> T) -> (T, usize, usize) {
        self.calls.lock().unwrap().clear();
        self.most.store(0, Ordering::SeqCst);
        self.alone.store(0, Ordering::SeqCst);
        let begun = Instant::now();
        let result = run();
        let (calls, most) = (self.calls.lock().unwrap().clone(), self.most.load(Ordering::SeqCst));
        eprintln!("{what}: {:.2?}, {calls:?}, {most} at once", begun.elapsed());
        (result, calls.values().sum(), most)
    }
}

impl Around for FarAway {
    fn inner(&self) -> &dyn Storage {
        self.inner.as_ref()
    }

    fn put(&self, path: &str, data: &[Bytes]) -> StoreResult<()> {
        self.call("put", || self.inner.put(path, data))
    }

    fn put_if_absent(&self, path: &str, data: &Bytes) -> StoreResult<()> {
        self.call("put", || self.inner.put_if_absent(path, data))
    }

    fn put_file(&self, path: &str, file: &mut File, length: u64) -> StoreResult<()> {
        self.call("put", || self.inner.put_file(path, file, length))
    }

    fn get(&self, path: &str) -> StoreResult<Bytes> {
        self.call("get", || self.inner.get(path))
    }

    fn get_small(&self, path: &str, most: u64) -> StoreResult<Bytes> {
        self.call("get", || self.inner.get_small(path, most))
    }

    fn get_range(&self, path: &str, range: Range<u64>) -> StoreResult<Bytes> {
        self.call("get", || self.inner.get_range(path, range))
    }

    fn list(&self, prefix: &str, each: &mut dyn FnMut(Listed)) -> StoreResult<()> {
        self.call("list", || self.inner.list(prefix, each))
    }

    fn delete(&self, path: &str) -> StoreResult<()> {
        self.call("delete", || self.inner.delete(path))
    }

    fn size(&self, path: &str) -> StoreResult<u64> {
        self.call("size", || self.inner.size(path))
    }
}

fn repository(storage: Arc<dyn Storage>) -> Repository {
    let retries = Retries { tries: 1, first_pause: Duration::ZERO };
    let store = Store::shared(storage, retries);
    Repository {
        name: "offsite".into(),
        config: toml::from_str("url = 'file:///none'").unwrap(),
        id: "0".into(),
        strata: strata::Repository::new(store, "clusters/main", None).unwrap(),
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// A delta of one object.
fn write(repository: &Repository, image: &str, id: &str, base: Option<&str>) {
    let options = strata::delta::IndexOptions::default();
    let mut writer = DeltaWriter::new(&repository.strata, image, id, base, &options).unwrap();
    let header = Some(Bytes::from_static(b"h"));
    writer.changed(Change { object: 1, header, ..Change::default() }).unwrap();
    writer.finish([]).unwrap();
}

/// Publishes a set each hour, each an increment to the previous one.
fn publish(repository: &Repository, at: u64) {
    let time = jiff::Timestamp::from_second(FIRST + i64::try_from(at).unwrap() * 3600).unwrap();
    let id = time.strftime("%Y%m%dT%H%M%SZ-aaaa").to_string();
    let base = at.checked_sub(1).map(|base| base.to_string());
    let mut volumes = Vec::new();
    for image in IMAGES {
        write(repository, image, &at.to_string(), base.as_deref());
        volumes.push(ShippedVolume {
            dataset: DatasetName::new(&image.replace('=', "/")).unwrap(),
            image: image.to_owned(),
            delta: at.to_string(),
            base: base.clone(),
            stream_bytes: 1,
            stored_bytes: 100,
            left_out: Vec::new(),
            pages: Pages::default(),
            raw: None,
        });
    }
    write(repository, FILES_IMAGE, &id, None);
    let mut manifest = manifest(&id, vec![]);
    manifest.started_at = time;
    manifest.files = BTreeMap::new();
    repository.publish(&Shipped::new(manifest, volumes)).unwrap();
}

#[test]
fn many_sets_are_read_many_at_a_time_and_few_times_each() {
    let sets = number("LOCKSTEP_SETS").unwrap_or(60);
    let inner: Arc<dyn Storage> = match std::env::var_os("LOCKSTEP_SETS_FOLDER") {
        Some(folder) => Arc::new(ObjectStorage::folder(folder.as_ref()).unwrap()),
        None => Arc::new(Memory::default()),
    };
    let written = repository(inner.clone());
    (0..sets).for_each(|at| publish(&written, at));
    // Only the oldest has content.
    let (image, options) = (IMAGES[0], ImageOptions::default());
    let mut writer = ImageWriter::new(&written.strata, image, "0", None, &options).unwrap();
    let header = Some(Bytes::from_static(b"h"));
    writer.changed(Change { object: 1, header, ..Change::default() }).unwrap();
    writer.data(0, b"content").unwrap();
    writer.finish().unwrap();
    let mut far = FarAway::new(inner);
    far.delay = Duration::from_millis(number("LOCKSTEP_SETS_MS").unwrap_or(2));
    let repository = repository(Arc::new(far.clone()));
    let count = usize::try_from(sets).unwrap();

    let ((listed, damaged), calls, most) = far.cost("list", || repository.sets().unwrap());
    assert_eq!((listed.len(), damaged.len()), (count, 0));
    assert_eq!(calls, count + 1, "one look, and each manifest once");
    assert!((8..=16).contains(&most), "{most} at once");

    let policy: Policy = toml::from_str("last = 1000000").unwrap();
    let bases = [listed[count - 1].manifest.set.to_string()].into();
    let choice = Choice {
        policy: Some(&policy),
        named: &[],
        bases: &bases,
        identity: &Identity::default(),
        now: jiff::Timestamp::from_second(FIRST * 2).unwrap(),
        zone: &jiff::tz::TimeZone::UTC,
    };
    let (plan, calls, _) = far.cost("prune, plan", || choice.plan(&repository).unwrap());
    assert_eq!(calls, count + 1);
    let work = Work {
        repository: &repository,
        rules: &StreamRules,
        budget: u64::MAX,
        at_once: 64,
        repack: None,
        grace: 24 * 3600,
        now: 4_000_000_000,
        clock: &|| 0,
        mark: &|_| Ok(()),
        begun: &|| Ok(Default::default()),
        reached: &|_| Ok(()),
        still: &|| Ok(()),
        confirm: &|| Ok(()),
        prolongs: true,
    };
    let (done, calls, most) = far.cost("prune, nothing to do", || work.run(&plan).unwrap());
    assert!(done.0.is_empty() && done.1.deleted == 0, "{done:?}");
    // Manifests twice; per set, the descriptors of three deltas, two of them twice, and a table of packs.
    assert!(calls <= count * 10 + 20, "{calls} calls for {count} sets");
    assert!((8..=16).contains(&most), "{most} at once");

    let (sparse, calls, _) = far.cost("prune, which packs hardly live", || {
        let options = RepackOptions { live_percent: 25, ..RepackOptions::default() };
        repack(&repository.strata, &options, true, &|| Ok(()), &mut |_, _| ()).unwrap()
    });
    assert!(sparse.packs.is_empty(), "{sparse:?}");
    // The manifests; per set, the descriptors of three deltas and the table of packs.
    assert!(calls <= count * 8 + 20, "{calls} calls for {count} sets");
    let (repacked, calls, _) = far.cost("prune, rewrite a pack", || {
        let options = RepackOptions { live_percent: 101, ..RepackOptions::default() };
        repack(&repository.strata, &options, false, &|| Ok(()), &mut |_, _| ()).unwrap()
    });
    assert_eq!((repacked.packs.len(), repacked.deltas), (1, 1), "{repacked:?}");
    assert!(calls <= count * 14 + 40, "{calls} calls for {count} sets");
    let alone = far.alone.load(Ordering::SeqCst);
    assert!(alone < count, "{alone} of {calls} calls one after another");

    let (found, calls, _) = far.cost("ship, find the set", || {
        repository.read_if_there(&listed[count - 1].manifest.set.to_string()).unwrap()
    });
    assert_eq!((found.as_ref(), calls), (listed.last(), 1));
    let (_, calls, _) = far.cost("restore, find the newest", || repository.newest().unwrap());
    assert_eq!(calls, 2);
    // And whether its timeline was left: each manifest is read once.
    let (state, newest) = (tempfile::tempdir().unwrap(), listed.last().unwrap());
    let seen = state.path().join("seen/offsite.json");
    for expected in [count + 1, 1] {
        let (members, calls, _) =
            far.cost("ship, which timeline lives", || repository.members_seen(&seen).unwrap());
        assert_eq!((members.0.len(), members.1.len(), calls), (count, 0, expected));
        assert_eq!(members.0.last(), Some(&Member::from(&newest.manifest)));
    }
    // A file that isn't one of ours counts as nothing.
    std::fs::write(&seen, "{").unwrap();
    repository.members_seen(&seen).unwrap();
    let again = Repository { id: "another".into(), ..repository };
    let (_, calls, _) = far.cost("another repository", || again.members_seen(&seen).unwrap());
    assert_eq!(calls, count + 1);
}
