//! Prunes a repository: what is kept folds to the same content, even if the program dies at any call to the store;
//! what nobody needs is gone in the end.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use jiff::tz::TimeZone;
use strata::check::{CheckOptions, check};
use strata::delta::{Change, ImageOptions, ImageWriter, chain};
use strata::fold::{DataSink, Folded, KeepAll, Reading, fold, open_chain};
use strata::pack::{FrameReader, PackOptions};
use strata::repack::RepackOptions;
use strata::store::testing::{Call, Counting, Fault, Faulty, Meanwhile};
use strata::store::{Around, Retries, Storage, Store, StoreError, StoreErrorKind, StoreResult};

use super::*;
use crate::prune::memory_store::Memory;
use crate::repository::Format;
use crate::repository::check::{Finding, Severity};
use crate::repository::shipped::{Pages, Shipped, ShippedVolume};
use crate::set::manifest::tests::manifest;
use crate::volume::zfs::DatasetName;

impl<R: Rules> Work<'_, R> {
    /// Returns what was done; on a failure, only the reason.
    pub(in crate::prune) fn run(&self, plan: &Plan) -> Result<(Vec<String>, Done)> {
        let (mut removed, mut done) = (Vec::new(), Done::default());
        self.carry_out(plan, &mut removed, &mut done).map(|()| (removed, done))
    }
}

impl Choice<'_> {
    /// Makes the plan for sets that are all whole.
    pub(in crate::prune) fn plan(&self, repository: &Repository) -> Result<Plan> {
        self.plan_beside(repository, |_| Ok(Vec::new()))
    }
}

/// Far ahead: everything is older than any grace time.
const NOW: u64 = 4_000_000_000;
const IMAGES: [&str; 2] = ["tank=data", "tank=ts1"];

pub(in crate::prune) fn repository(storage: Arc<dyn Storage>) -> Repository {
    let retries = Retries { tries: 1, first_pause: std::time::Duration::ZERO };
    let strata =
        strata::Repository::new(Store::shared(storage, retries), "clusters/main", None).unwrap();
    let config = toml::from_str("url = 'file:///none'").unwrap();
    Repository { name: "offsite".into(), config, id: "0".into(), strata }
}

/// An image: each object is a list of blocks, each a single byte.
pub(in crate::prune) type Image = BTreeMap<u64, Vec<u8>>;
const BLOCK: usize = 64;

pub(in crate::prune) fn set_id(number: usize) -> String {
    format!("202611{:02}T000000Z-aaaa", number + 1)
}

fn small() -> ImageOptions {
    let packs = PackOptions { pack_size: 2000, level: 1, threads: 1, uploads: 1 };
    ImageOptions { frame_size: 500, packs, ..ImageOptions::default() }
}

/// Returns what each image holds in each set: a few blocks change from one to the next, objects come and go.
pub(in crate::prune) fn history(count: usize) -> Vec<[Image; 2]> {
    let mut random = fastrand::Rng::with_seed(7);
    let mut now = [Image::new(), Image::new()];
    for image in &mut now {
        image.extend((1..6).map(|object| (object, vec![1; 8])));
    }
    let mut all = Vec::new();
    for number in 0..count {
        for image in &mut now {
            for _ in 0..4 {
                let object = random.u64(1..9);
                let blocks = image.entry(object).or_insert_with(|| vec![0; 8]);
                blocks[random.usize(..8)] = u8::try_from(number).unwrap() + 2;
            }
            if random.bool() {
                image.remove(&random.u64(1..9));
            }
        }
        all.push(now.clone());
    }
    all
}

/// Writes the delta between two states, as a send stream would be stored.
fn write(repository: &Repository, image: &str, id: &str, base: Option<(&str, &Image)>, to: &Image) {
    let from = base.map(|(_, from)| from.clone()).unwrap_or_default();
    let base = base.map(|(id, _)| id);
    let mut writer = ImageWriter::new(&repository.strata, image, id, base, &small()).unwrap();
    for object in 1..9 {
        match (from.get(&object), to.get(&object)) {
            (Some(_), None) => writer.freed(object, 1).unwrap(),
            (old, Some(new)) if old != Some(new) => {
                let fresh = old.is_none();
                let header = Some(Bytes::from_static(b"h"));
                writer.changed(Change { object, fresh, header, ..Change::default() }).unwrap();
                let same = |at: usize| old.is_some_and(|old| old[at] == new[at]);
                for at in (0..8).filter(|at| !same(*at)) {
                    writer.data((at * BLOCK) as u64, &[new[at]; BLOCK]).unwrap();
                }
            }
            _ => {}
        }
    }
    writer.finish().unwrap();
}

/// Publishes a set of both images as they are in `state`.
pub(in crate::prune) fn publish(
    repository: &Repository,
    number: usize,
    history: &[[Image; 2]],
    base: Option<usize>,
) {
    let id = set_id(number);
    let mut volumes = Vec::new();
    for (at, image) in IMAGES.into_iter().enumerate() {
        let before = base.map(|base| (base.to_string(), &history[base][at]));
        let before = before.as_ref().map(|(id, image)| (id.as_str(), *image));
        write(repository, image, &number.to_string(), before, &history[number][at]);
        volumes.push(ShippedVolume {
            dataset: DatasetName::new(&image.replace('=', "/")).unwrap(),
            image: image.to_owned(),
            delta: number.to_string(),
            base: base.map(|base| base.to_string()),
            stream_bytes: 1,
            stored_bytes: 100,
            left_out: Vec::new(),
            pages: Pages::default(),
            raw: None,
        });
    }
    let files = ImageWriter::new(&repository.strata, FILES_IMAGE, &id, None, &small());
    let mut files = files.unwrap();
    let header = Some(Bytes::from_static(b"backup_label"));
    files.changed(Change { object: 1, header, ..Change::default() }).unwrap();
    files.data(0, id.as_bytes()).unwrap();
    files.finish().unwrap();
    let mut manifest = manifest(&id, vec![]);
    manifest.started_at = format!("2026-11-{:02}T00:00:00Z", number + 1).parse().unwrap();
    manifest.files = BTreeMap::new();
    repository.publish(&Shipped::new(manifest, volumes)).unwrap();
}

#[derive(Default)]
struct Rebuild(Image);

impl DataSink for Rebuild {
    fn object(&mut self, object: &Folded) -> strata::Result<()> {
        self.0.insert(object.object, vec![0; 8]);
        Ok(())
    }

    fn data(&mut self, object: u64, offset: u64, content: &Bytes) -> strata::Result<()> {
        for (at, bytes) in content.chunks(BLOCK).enumerate() {
            let block = usize::try_from(offset).unwrap() / BLOCK + at;
            assert!(bytes.iter().all(|byte| *byte == bytes[0]));
            self.0.get_mut(&object).unwrap()[block] = bytes[0];
        }
        Ok(())
    }
}

fn folded(repository: &Repository, image: &str, id: &str) -> Image {
    let chain = chain(&repository.strata, image, id, None).unwrap();
    let deltas = open_chain(&repository.strata, &chain, 1 << 20).unwrap();
    let mut frames = FrameReader::new(&repository.strata, 1 << 20);
    let mut rebuild = Rebuild::default();
    fold(deltas, true, &KeepAll, &mut Reading::new(&mut frames, &mut rebuild)).unwrap();
    rebuild.0
}

/// Checks that every set there holds what it held, including its files.
pub(in crate::prune) fn assert_whole(
    memory: &Memory,
    history: &[[Image; 2]],
    why: &str,
) -> Vec<String> {
    let repository = repository(Arc::new(memory.clone()));
    let known = vec!["leases/".into()];
    let report = check(&repository.strata, &CheckOptions { read_data: true, known }).unwrap();
    assert!(report.problems.is_empty(), "{why}: {:?}", report.problems);
    let (sets, damaged) = repository.sets().unwrap();
    assert!(damaged.is_empty(), "{why}: {damaged:?}");
    for set in &sets {
        for (volume, at) in set.volumes.iter().zip(0..) {
            let number: usize = volume.delta.parse().unwrap();
            let image = folded(&repository, &volume.image, &volume.delta);
            assert_eq!(image, history[number][at], "{why}: set {}", set.manifest.set);
        }
    }
    sets.iter().map(|set| set.manifest.set.to_string()).collect()
}

pub(in crate::prune) fn policy(text: &str) -> Policy {
    toml::from_str(text).unwrap()
}

pub(in crate::prune) fn plan(
    repository: &Repository,
    policy: &Policy,
    bases: &[usize],
) -> Result<Plan> {
    let bases = bases.iter().map(|number| set_id(*number)).collect();
    let now = "2026-12-24T00:00:00Z".parse().unwrap();
    let (named, identity, zone) = (&[], &Identity::default(), &TimeZone::UTC);
    Choice { policy: Some(policy), named, bases: &bases, identity, now, zone }.plan(repository)
}

pub(in crate::prune) fn work(repository: &Repository, grace: u64) -> Work<'_, KeepAll> {
    let nothing = &|_: &str| Ok(());
    Work {
        repository,
        rules: &KeepAll,
        budget: u64::MAX,
        at_once: 64,
        repack: None,
        grace,
        now: NOW,
        clock: &|| 0,
        mark: nothing,
        begun: &|| Ok(Begun::default()),
        reached: nothing,
        still: &|| Ok(()),
        confirm: &|| Ok(()),
        prolongs: true,
    }
}

fn prune(repository: &Repository, policy: &Policy, bases: &[usize]) -> Result<(Vec<String>, Done)> {
    work(repository, 0).run(&plan(repository, policy, bases)?)
}

pub(in crate::prune) fn filled(count: usize) -> (Memory, Vec<[Image; 2]>) {
    let (memory, history) = (Memory::default(), history(count));
    let repository = repository(Arc::new(memory.clone()));
    for number in 0..count {
        publish(&repository, number, &history, number.checked_sub(1));
    }
    assert_eq!(assert_whole(&memory, &history, "as written").len(), count);
    (memory, history)
}

#[test]
fn a_set_that_can_not_be_read_stays_until_it_is_named() {
    let (memory, history) = filled(4);
    let repository = repository(Arc::new(memory.clone()));
    let path = format!("clusters/main/sets/{}.json", set_id(1));
    memory.put(&path, &["{".into()]).unwrap();
    let plan = plan(&repository, &policy("last = 1"), &[]).unwrap();
    assert!(plan.problems[0].contains(&format!("--set {}", set_id(1))), "{:?}", plan.problems);
    assert!(plan.removed().all(|set| set != set_id(1)));
    let (bases, named) = (BTreeSet::new(), [set_id(1)]);
    let now = "2026-12-24T00:00:00Z".parse().unwrap();
    let (identity, zone) = (&Identity::default(), &TimeZone::UTC);
    let choice = Choice { policy: None, named: &named, bases: &bases, identity, now, zone };
    let plan = choice.plan(&repository).unwrap();
    assert_eq!(plan.removed().collect::<Vec<_>>(), [set_id(1)]);
    assert!(plan.problems.is_empty(), "{:?}", plan.problems);
    let (removed, done) = work(&repository, 0).run(&plan).unwrap();
    assert_eq!((removed, done.merged), (named.to_vec(), 2), "and all goes on");
    assert_eq!(assert_whole(&memory, &history, "given up"), [0, 2, 3].map(set_id));
}

#[test]
fn removed_sets_go_with_all_that_is_theirs() {
    let (memory, history) = filled(7);
    let repository = repository(Arc::new(memory.clone()));
    // 2026-11-01 is a Sunday: one set is in one week, and six are in the next.
    let (removed, done) = prune(&repository, &policy("last = 2\nweekly = 2"), &[]).unwrap();
    assert_eq!(removed, [1, 2, 3, 4].map(set_id));
    // 1 to 4 are merged into 5, in two images.
    assert_eq!(done.merged, 8);
    assert_eq!(assert_whole(&memory, &history, "pruned"), [0, 5, 6].map(set_id));
    assert_eq!(memory.paths("tank=data/").iter().filter(|p| p.ends_with(".json")).count(), 3);
    let files = memory.paths(FILES_IMAGE);
    assert!([1, 2, 3, 4].iter().all(|n| !files.iter().any(|path| path.contains(&set_id(*n)))));
    let report = check(&repository.strata, &CheckOptions::default()).unwrap();
    assert!(report.orphans.is_empty(), "{:?}", report.orphans);
    // The full delta that all others were based on is removed: the next becomes full.
    let (removed, done) = prune(&repository, &policy("last = 1"), &[]).unwrap();
    assert_eq!((removed.len(), done.merged), (2, 4));
    assert_eq!(assert_whole(&memory, &history, "pruned again"), [set_id(6)]);
    let (removed, done) = prune(&repository, &policy("last = 1"), &[]).unwrap();
    assert_eq!((removed.len(), done), (0, Done::default()));
}

/// What is still needed of packs whose sets are gone is moved to new ones, as far as the budget goes; the old ones
/// are removed like everything that nobody needs.
#[test]
fn packs_that_hardly_live_are_written_anew() {
    let packs = |memory: &Memory| {
        let paths = memory.paths("/packs/");
        paths.iter().map(|path| memory.size(path).unwrap()).sum::<u64>()
    };
    let run = |max_bytes: u64| {
        let (memory, history) = filled(9);
        let repository = repository(Arc::new(memory.clone()));
        let before = packs(&memory);
        let plan = plan(&repository, &policy("last = 1"), &[]).unwrap();
        let options = RepackOptions { live_percent: 100, max_bytes, ..RepackOptions::default() };
        let work = Work { repack: Some(options), ..work(&repository, 0) };
        let (removed, done) = work.run(&plan).unwrap();
        assert_eq!(removed.len(), 8);
        assert_eq!(assert_whole(&memory, &history, "written anew"), [set_id(8)]);
        // Nothing has become unneeded since.
        let again = self::plan(&repository, &policy("last = 1"), &[]).unwrap();
        assert_eq!(work.run(&again).unwrap().1.repacked, 0);
        assert_eq!(assert_whole(&memory, &history, "once more"), [set_id(8)]);
        (done, before, packs(&memory))
    };
    let (kept, before, after) = run(0);
    assert_eq!((kept.repacked, kept.repacked_bytes), (0, 0));
    let (done, _, least) = run(u64::MAX);
    assert!(done.repacked > 1 && done.repacked_bytes > 0, "{done:?}");
    assert!(least < after && after <= before, "{least}, {after} and {before} bytes");
}

/// What a budget or an end leaves undone is continued by a later run, even if nothing has become unneeded since.
#[test]
fn packs_that_were_left_are_written_anew_by_the_next_run() {
    let ends = |step: &str| match step {
        "prune.repository-repack" => Err(Error::Interrupted { step: step.to_owned() }),
        _ => Ok(()),
    };
    for is_ended in [false, true] {
        let (memory, history) = filled(9);
        let counting = Counting::new(Arc::new(memory.clone()));
        let repository = repository(Arc::new(counting.clone()));
        let with = |max_bytes| {
            Some(RepackOptions { live_percent: 100, max_bytes, ..RepackOptions::default() })
        };
        let plan = || plan(&repository, &policy("last = 1"), &[]).unwrap();
        match is_ended {
            true => {
                let ended = Work { repack: with(u64::MAX), reached: &ends, ..work(&repository, 0) };
                ended.run(&plan()).unwrap_err();
            }
            false => {
                let done = Work { repack: with(1), ..work(&repository, 0) }.run(&plan()).unwrap().1;
                assert!(done.repacked == 0 && done.repack_left > 1, "{done:?}");
            }
        }
        let work = Work { repack: with(u64::MAX), ..work(&repository, 0) };
        let (removed, done) = work.run(&plan()).unwrap();
        assert!(removed.is_empty() && done.repacked > 1 && done.repack_left == 0, "{done:?}");
        assert_eq!(assert_whole(&memory, &history, "gone on with"), [set_id(8)]);
        // If nothing is left to do, noticing that costs no request.
        work.run(&plan()).unwrap();
        let calls = |repack| {
            counting.take();
            let done = Work { repack, ..self::work(&repository, 0) }.run(&plan()).unwrap().1;
            assert_eq!(done.repacked, 0);
            counting.take().len()
        };
        assert_eq!(calls(with(u64::MAX)), calls(None));
    }
}

#[test]
fn sets_of_random_policies_stay_as_they_were() {
    for seed in 0..20 {
        let mut random = fastrand::Rng::with_seed(seed);
        let (memory, history) = filled(9);
        let repository = repository(Arc::new(memory.clone()));
        let mut left = 9;
        while left > 1 {
            // Any set may be removed: a plan's policy is one thing, its execution another.
            let mut plan = plan(&repository, &policy("last = 9"), &[]).unwrap();
            for entry in &mut plan.entries {
                if left > 1 && random.u8(..3) == 0 {
                    entry.fate = Fate::Remove;
                    left -= 1;
                }
            }
            // Both runs that one merge takes, and runs that need several rounds.
            let at_once = [2, 3, 64][usize::try_from(seed).unwrap() % 3];
            Work { at_once, ..work(&repository, 0) }.run(&plan).unwrap();
            let sets = assert_whole(&memory, &history, &format!("seed {seed}, {left} left"));
            assert_eq!(sets.len(), left);
        }
    }
}

#[test]
fn the_common_set_is_kept_and_the_next_increment_fits() {
    let (memory, history) = filled(5);
    let repository = repository(Arc::new(memory.clone()));
    // This host has the second set, and one that isn't in the repository.
    let plan_of = plan(&repository, &policy("last = 1"), &[1, 8]).unwrap();
    assert_eq!(plan_of.removed().collect::<Vec<_>>(), [0, 2, 3].map(set_id));
    work(&repository, 0).run(&plan_of).unwrap();
    let mut history = history;
    history.push(history[4].clone());
    publish(&repository, 5, &history, Some(1));
    assert_eq!(assert_whole(&memory, &history, "a branch"), [1, 4, 5].map(set_id));
    // The delta at the branch is removed: it goes into both branches.
    prune(&repository, &policy("last = 2"), &[]).unwrap();
    assert_eq!(assert_whole(&memory, &history, "the branches"), [4, 5].map(set_id));
}

#[test]
fn merged_away_deltas_wait_for_a_backup_that_starts_from_one() {
    let (memory, history) = filled(4);
    let repository = repository(Arc::new(memory.clone()));
    let plan_of = plan(&repository, &policy("last = 1"), &[]).unwrap();
    let (_, done) = work(&repository, 3600).run(&plan_of).unwrap();
    assert!(done.merged == 6 && done.deleted == 0 && done.waiting > 0, "{done:?}");
    // The shipment began before the prune, and ends after it.
    let mut history = history;
    history.push(history[3].clone());
    publish(&repository, 4, &history, Some(2));
    let later = Work { now: NOW + 7200, ..work(&repository, 3600) };
    let (_, done) = later.run(&plan(&repository, &policy("last = 9"), &[]).unwrap()).unwrap();
    assert!(done.deleted > 0, "{done:?}");
    assert_eq!(assert_whole(&memory, &history, "the late one"), [3, 4].map(set_id));
}

/// A run may take longer than the grace time: what it merges away at its end begins to wait then.
#[test]
fn what_a_long_run_merges_away_waits_from_its_end_on() {
    let (memory, history) = filled(4);
    let repository = repository(Arc::new(memory.clone()));
    let run = |rules: &str, begun: u64, took: u64| {
        let plan = plan(&repository, &policy(rules), &[]).unwrap();
        let work = Work { now: begun, clock: &|| begun + took, ..work(&repository, 3600) };
        work.run(&plan).unwrap().1
    };
    let first = run("last = 1", NOW, 3000);
    assert!(first.merged == 6 && first.deleted == 0 && first.waiting > 0, "{first:?}");
    let early = run("last = 1", NOW + 6000, 500);
    assert_eq!((early.deleted, early.waiting), (0, first.waiting), "{early:?}");
    let late = run("last = 1", NOW + 6600, 0);
    assert_eq!((late.deleted, late.waiting), (first.waiting, 0), "{late:?}");
    assert_eq!(assert_whole(&memory, &history, "collected"), [set_id(3)]);
    // With a clock that was set back, nothing is noted as earlier than the beginning of the run.
    publish(&repository, 0, &history, None);
    let plan = plan(&repository, &policy("last = 1"), &[]).unwrap();
    let (begun, clock) = (NOW + 9000, &|| NOW);
    Work { now: begun, clock, ..work(&repository, 3600) }.run(&plan).unwrap();
    let next = run("last = 1", begun + 3599, 0);
    assert!(next.deleted == 0 && next.waiting > 0, "{next:?}");
}

/// A store on which nothing can be written.
struct FullStore(Memory);

impl FullStore {
    fn full(path: &str) -> StoreResult<()> {
        let source = std::io::Error::from(std::io::ErrorKind::StorageFull);
        let error = StoreError::new("put", path, StoreErrorKind::Other);
        Err(StoreError { source: Some(Box::new(source)), ..error })
    }
}

impl Around for FullStore {
    fn inner(&self) -> &dyn Storage {
        &self.0
    }

    fn put(&self, path: &str, _: &[Bytes]) -> StoreResult<()> {
        Self::full(path)
    }

    fn put_if_absent(&self, path: &str, _: &Bytes) -> StoreResult<()> {
        Self::full(path)
    }

    fn put_file(&self, path: &str, _: &mut std::fs::File, _: u64) -> StoreResult<()> {
        Self::full(path)
    }
}

/// The next run would find no room either, so the hint says which waiting objects will free some, and when.
#[test]
fn a_prune_without_room_does_not_recommend_itself() {
    let (memory, _) = filled(6);
    let full = repository(Arc::new(FullStore(memory.clone())));
    let failed = |keeps: &str| {
        let plan = plan(&full, &policy(keeps), &[]).unwrap();
        let error = Work { clock: &|| NOW, ..work(&full, 3600) }.run(&plan).unwrap_err();
        assert!(error.chain().contains("no storage space"), "{}", error.chain());
        error.hint().unwrap()
    };
    let hint = failed("last = 4");
    assert!(hint.contains("nothing in it waits") && !hint.contains("lockstep prune"), "{hint}");
    let open = repository(Arc::new(memory.clone()));
    let done = work(&open, 3600).run(&plan(&open, &policy("last = 3"), &[]).unwrap()).unwrap().1;
    assert!(done.waiting > 0, "{done:?}");
    let hint = failed("last = 1");
    let waiting = format!("{} objects wait for their grace time", done.waiting);
    // An hour after 2096-10-02 07:06:40.
    let words = [&*waiting, "the first until 2096-10-02 08:06:40Z"];
    assert!(words.iter().all(|words| hint.contains(words)), "{hint}");
    assert!(!hint.contains("`lockstep prune`"), "{hint}");
}

/// A store in which the first deletion fails for now.
struct FirstDeleteFails(Memory, AtomicBool);

impl Around for FirstDeleteFails {
    fn inner(&self) -> &dyn Storage {
        &self.0
    }

    fn delete(&self, path: &str) -> StoreResult<()> {
        if self.1.swap(true, Ordering::SeqCst) {
            return self.0.delete(path);
        }
        Err(StoreError::new("delete", path, StoreErrorKind::Transient))
    }
}

/// Once its manifest is gone, another host that now has the lease may ship the set again: the files are then that
/// host's.
#[test]
fn a_set_s_files_go_only_where_the_store_says_that_the_lease_is_held() {
    let (memory, _) = filled(2);
    let files = format!("clusters/main/volumes/{FILES_IMAGE}/{}.json", set_id(0));
    let manifest = format!("clusters/main/sets/{}.json", set_id(0));
    assert!(memory.get(&files).is_ok());
    let lost = || Err(Error::failed("the lease was lost"));
    let run = |storage: Arc<dyn Storage>, still: &dyn Fn() -> Result<()>| {
        let retries = Retries { tries: 3, first_pause: std::time::Duration::ZERO };
        let once = repository(storage.clone());
        let strata =
            strata::Repository::new(Store::shared(storage, retries), "clusters/main", None);
        let repository = Repository { strata: strata.unwrap(), ..once };
        let plan = plan(&repository, &policy("last = 1"), &[]).unwrap();
        let work = Work { still, confirm: &lost, ..work(&repository, 0) };
        assert_eq!(work.run(&plan).unwrap_err().to_string(), "the lease was lost");
    };
    // Deleting the manifest fails for now, and the lease is lost before the next attempt.
    let failing = Arc::new(FirstDeleteFails(memory.clone(), AtomicBool::default()));
    let still = || if failing.1.load(Ordering::SeqCst) { lost() } else { Ok(()) };
    run(failing.clone(), &still);
    assert!(memory.get(&manifest).is_ok() && memory.get(&files).is_ok());
    run(Arc::new(memory.clone()), &|| Ok(()));
    assert!(memory.get(&manifest).is_err() && memory.get(&files).is_ok());
}

#[test]
fn a_set_that_cannot_be_read_stays_and_nothing_is_merged() {
    let (memory, history) = filled(4);
    let repository = repository(Arc::new(memory.clone()));
    let path = format!("clusters/main/sets/{}.json", set_id(1));
    let good = memory.get(&path).unwrap();
    memory.put(&path, &["{".into()]).unwrap();
    let plan_of = plan(&repository, &policy("last = 1"), &[]).unwrap();
    assert!(plan_of.has_problems());
    let (removed, done) = work(&repository, 0).run(&plan_of).unwrap();
    assert_eq!((removed, done), ([0, 2].map(set_id).to_vec(), Done::default()));
    // After the repair it restores.
    memory.put(&path, &[good]).unwrap();
    assert_eq!(assert_whole(&memory, &history, "repaired"), [1, 3].map(set_id));
}

/// A store that fails on one object.
struct FailsOn(Memory, String);

impl Around for FailsOn {
    fn inner(&self) -> &dyn Storage {
        &self.0
    }

    fn get_small(&self, path: &str, most: u64) -> StoreResult<Bytes> {
        match path == self.1 {
            true => Err(StoreError::new("get", path, StoreErrorKind::Other)),
            false => self.0.get_small(path, most),
        }
    }
}

/// Nothing says that such a set is damaged, so nobody is told to give it up.
#[test]
fn a_set_that_the_store_fails_on_is_to_be_read_again() {
    let (memory, history) = filled(4);
    let path = format!("clusters/main/sets/{}.json", set_id(1));
    let failing = repository(Arc::new(FailsOn(memory.clone(), path.clone())));
    let planned = plan(&failing, &policy("last = 1"), &[]).unwrap();
    let [said] = &*planned.problems else { panic!("{:?}", planned.problems) };
    assert!(said.contains("run it again once the store works. Only if it never can"), "{said}");
    let (removed, done) = work(&failing, 0).run(&planned).unwrap();
    assert_eq!((removed, done), ([0, 2].map(set_id).to_vec(), Done::default()));
    assert_eq!(assert_whole(&memory, &history, "failed on"), [1, 3].map(set_id));
}

#[test]
fn a_budget_leaves_the_rest_for_later() {
    let (memory, history) = filled(6);
    let repository = repository(Arc::new(memory.clone()));
    let plan_of = plan(&repository, &policy("last = 1"), &[2]).unwrap();
    let tight = Work { budget: 1, ..work(&repository, 0) };
    assert_eq!(tight.run(&plan_of).unwrap().1.merged, 0);
    assert_eq!(assert_whole(&memory, &history, "nothing merged"), [2, 5].map(set_id));
    let (removed, done) = prune(&repository, &policy("last = 2"), &[]).unwrap();
    assert_eq!((removed.len(), done.merged), (0, 8));
    assert_eq!(assert_whole(&memory, &history, "merged later"), [2, 5].map(set_id));
}

#[test]
fn nothing_is_deleted_or_replaced_once_the_lease_is_lost() {
    let (filled, history) = filled(5);
    for times in 0.. {
        let why = format!("lost after {times}");
        let memory = filled.copy();
        let counting = Counting::new(Arc::new(memory.clone()));
        let repository = repository(Arc::new(counting.clone()));
        let plan = plan(&repository, &policy("last = 1\nweekly = 2"), &[]).unwrap();
        let asked = Cell::new(0);
        let still = || {
            asked.set(asked.get() + 1);
            if asked.get() <= times {
                return Ok(());
            }
            counting.take();
            Err(Error::failed("the lease was lost").with_hint("run it again"))
        };
        let result = Work { still: &still, confirm: &still, ..work(&repository, 0) }.run(&plan);
        let Err(error) = result else {
            assert!(times > 40, "only asked {times} times");
            return;
        };
        // The error keeps its own words and hint, although it came through the crate below.
        assert_eq!(error.to_string(), "the lease was lost");
        assert_eq!(error.hint().as_deref(), Some("run it again"));
        let is_change = |call: &Call| {
            call.verb == "delete" || (call.verb == "put" && call.path.ends_with(".json"))
        };
        let changes: Vec<_> = counting.take().into_iter().filter(is_change).collect();
        assert_eq!(changes, [], "{why}");
        let kept = assert_whole(&memory, &history, &why);
        assert!([0, 4].iter().all(|number| kept.contains(&set_id(*number))), "{why}: {kept:?}");
    }
}

#[test]
fn an_interruption_ends_it_anywhere_and_is_told_from_what_fails() {
    let (filled, history) = filled(5);
    for times in 0.. {
        let memory = filled.copy();
        let repository = repository(Arc::new(memory.clone()));
        let plan = plan(&repository, &policy("last = 1\nweekly = 2"), &[]).unwrap();
        let asked = Cell::new(0);
        let still = || {
            asked.set(asked.get() + 1);
            let step = "prune.repository-still".to_owned();
            (asked.get() <= times).then_some(()).ok_or(Error::Interrupted { step })
        };
        let work = Work { still: &still, confirm: &still, ..work(&repository, 0) };
        let Err(error) = work.run(&plan) else { break };
        assert_eq!((error.exit_code(), asked.get()), (130, times + 1), "{times}: {error}");
        assert_whole(&memory, &history, &format!("interrupted after {times}"));
    }
}

#[test]
fn a_check_beside_a_prune_finds_nothing() {
    let (filled, _) = filled(4);
    let format = Format::new().unwrap();
    for at in 0.. {
        let memory = filled.copy();
        let storage: Arc<dyn Storage> = Arc::new(memory.clone());
        format.create(repository(storage.clone()).strata.store()).unwrap();
        // Not a key, and also removed: it may be listed and then be gone.
        memory.put("keys/a.json", &["{".into()]).unwrap();
        let pruned = repository(storage.clone());
        let meanwhile = Arc::new(Meanwhile::new(storage, at, move || {
            prune(&pruned, &policy("last = 1"), &[]).unwrap();
            memory.delete("keys/a.json").unwrap();
        }));
        let checking = repository(meanwhile.clone());
        let memory = std::path::Path::new("/nowhere");
        let checked =
            crate::repository::check::run(&checking, Some(100), memory, &Vec::new, &mut |_, _| {
                true
            });
        let findings = checked.unwrap().findings;
        let calls = meanwhile.calls();
        // The key is read last.
        let is_late = at + 1 >= calls;
        let is_key = |finding: &Finding| is_late && finding.what.contains("keys/a.json");
        let wrong: Vec<_> = findings
            .iter()
            .filter(|finding| finding.severity != Severity::Note && !is_key(finding))
            .collect();
        assert!(wrong.is_empty(), "pruned before call {at}: {wrong:#?}");
        if calls <= at {
            assert!(at > 40, "only {at} calls");
            return;
        }
    }
}

/// Counts the index files that belong to this delta in its present form.
fn own_indexes(memory: &Memory, delta: &str) -> usize {
    memory.paths(&format!("tank=data/{delta}.")).iter().filter(|p| p.ends_with(".parquet")).count()
}

#[test]
fn a_run_longer_than_a_merge_takes_is_merged_in_rounds() {
    let (filled, history) = filled(12);
    for at_once in [2, 3, 5] {
        let why = format!("{at_once} at once");
        let memory = filled.copy();
        let repository = repository(Arc::new(memory.clone()));
        let plan = plan(&repository, &policy("last = 1"), &[]).unwrap();
        let merges = Cell::new(0);
        let reached = |step: &str| {
            merges.set(merges.get() + u32::from(step == "prune.repository-merge"));
            Ok(())
        };
        let rounds = Work { at_once, reached: &reached, ..work(&repository, 0) };
        let (removed, done) = rounds.run(&plan).unwrap();
        assert_eq!((removed.len(), done.merged), (11, 22), "{why}");
        assert!(merges.get() > 4, "{why}: {} merges", merges.get());
        assert_eq!(assert_whole(&memory, &history, &why), [set_id(11)]);
        // Nothing is left of what the rounds wrote in between.
        assert_eq!(own_indexes(&memory, "11"), 3, "{why}");
        let report = check(&repository.strata, &CheckOptions::default()).unwrap();
        assert!(report.orphans.is_empty(), "{why}: {:?}", report.orphans);
    }
}

#[test]
fn a_budget_may_end_between_rounds_and_the_next_run_goes_on() {
    let (memory, history) = filled(12);
    let repository = repository(Arc::new(memory.clone()));
    let mut plan_of = plan(&repository, &policy("last = 1"), &[]).unwrap();
    let mut merged = Vec::new();
    loop {
        // About two merges a run.
        let tight = Work { at_once: 3, budget: 40_000, ..work(&repository, 0) };
        let done = tight.run(&plan_of).unwrap().1;
        assert_eq!(assert_whole(&memory, &history, &format!("{merged:?}")), [set_id(11)]);
        if done.merged == 0 {
            break;
        }
        merged.push(done.merged);
        plan_of = plan(&repository, &policy("last = 1"), &[]).unwrap();
    }
    assert!(merged.len() > 2 && merged.iter().sum::<u64>() == 22, "{merged:?}");
    let heads = memory.paths("tank=data/").iter().filter(|p| p.ends_with(".json")).count();
    assert_eq!(heads, 1, "all is merged");
}

/// Lets the program die at every call in turn; what is kept is whole, and the next run finishes.
fn dies(fault: Fault, at_once: usize) {
    let (filled, history) = filled(5);
    let policy = policy("last = 1\nweekly = 2");
    let prune = |repository: &Repository| {
        let plan = plan(repository, &policy, &[])?;
        let repack = RepackOptions { live_percent: 100, ..RepackOptions::default() };
        Work { at_once, repack: Some(repack), ..work(repository, 0) }.run(&plan)
    };
    for at in 0.. {
        let why = format!("{fault:?} at call {at}, {at_once} at once");
        let memory = filled.copy();
        let faulty = Faulty::new(Arc::new(memory.clone()), at, fault);
        let result = prune(&repository(Arc::new(faulty.clone())));
        let kept = assert_whole(&memory, &history, &why);
        assert!([0, 4].iter().all(|number| kept.contains(&set_id(*number))), "{why}: {kept:?}");
        if result.is_ok() && faulty.calls() <= at {
            assert!(at > 40, "only {at} calls");
            return;
        }
        let whole = repository(Arc::new(memory.clone()));
        prune(&whole).unwrap_or_else(|e| panic!("{why}: the next: {}", e.chain()));
        assert_eq!(assert_whole(&memory, &history, &why), [0, 4].map(set_id));
        let report = check(&whole.strata, &CheckOptions::default()).unwrap();
        assert!(report.orphans.is_empty(), "{why}: leftovers stay: {:?}", report.orphans);
        let heads = memory.paths("tank=data/").iter().filter(|p| p.ends_with(".json")).count();
        assert_eq!(heads, 2, "{why}: all is merged");
    }
}

#[test]
fn dead_before_any_call() {
    [2, 64].into_iter().for_each(|at_once| dies(Fault::StopBefore, at_once));
}

#[test]
fn dead_after_any_call() {
    [2, 64].into_iter().for_each(|at_once| dies(Fault::StopAfter, at_once));
}

#[test]
fn any_call_fails_once() {
    [2, 64].into_iter().for_each(|at_once| dies(Fault::FailOnce, at_once));
}
