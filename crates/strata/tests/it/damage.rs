//! Every kind of object is deleted, truncated, flipped or swapped. A check must find it, it must never be read
//! silently, and everything that doesn't need it must still be restorable.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::support::*;
use bytes::Bytes;
use strata::check::{CheckOptions, check, check_some};
use strata::delta::chain;
use strata::frame::Key;
use strata::lease::{HELD, Lease};
use strata::manifest::{DeltaId, Manifest};
use strata::store::testing::{Counting, Fault, Faulty};
use strata::store::{Ending, Storage, Store};
use strata::{Repository, Result};

/// It would be a set that nobody could restore.
#[test]
fn a_manifest_that_could_not_be_read_again_is_not_written() {
    let repository = repository(memory_store());
    let write = |length: usize| {
        Manifest::new("1", 5, Vec::new(), "x".repeat(length).into()).write(&repository)
    };
    let error = write(64 << 20).unwrap_err();
    assert!(error.object().unwrap().ends_with("sets/1.json") && error.hint().is_some(), "{error}");
    assert!(Manifest::list(&repository).unwrap().is_empty());
    write((64 << 20) - 1000).unwrap();
    Manifest::read(&repository, "1").unwrap();
}

struct Damaged {
    storage: Arc<dyn Storage>,
    repository: Repository,
    images: Vec<Image>,
    /// What the restore of each set reads.
    needs: Vec<BTreeSet<String>>,
    objects: BTreeMap<String, Bytes>,
}

fn restore(repository: &Repository, set: usize) -> Result<Image> {
    let manifest = Manifest::read(repository, &set.to_string())?;
    let all = chain(repository, IMAGE, &manifest.deltas[0].id, None)?;
    restored(repository, &all, &Image::new())
}

fn build(key: Option<Key>) -> Damaged {
    let storage = memory_store();
    let counting = Counting::new(storage.clone());
    let store = Store::shared(Arc::new(counting.clone()), no_retries());
    let repository = Repository::new(store, "clusters/main", key).unwrap();
    let (mut image, mut images) = (Image::new(), Vec::new());
    let mut random = fastrand::Rng::with_seed(3);
    for number in 0..3 {
        let mut steps = vec![Step::Create(20 + number, 1, 1, vec![Act::Write(0, 900, 9)])];
        steps.extend(random_steps(&mut random));
        let (base, id) = (number.checked_sub(1).map(|base| base.to_string()), number.to_string());
        write_delta(&repository, &mut image, &steps, &id, base.as_deref(), &small()).unwrap();
        images.push(image.clone());
        let delta = DeltaId { image: IMAGE.to_string(), id: id.clone() };
        Manifest::new(&id, 5, vec![delta], serde_json::json!({"n": number}))
            .write(&repository)
            .unwrap();
    }
    let needs = (0..3)
        .map(|set| {
            counting.take();
            assert_eq!(restore(&repository, set).unwrap(), images[set]);
            counting.take().into_iter().map(|call| call.path).collect()
        })
        .collect();
    let mut paths = Vec::new();
    storage.list("", &mut |listed| paths.push(listed.path)).unwrap();
    let objects =
        paths.into_iter().map(|path| (path.clone(), storage.get(&path).unwrap())).collect();
    Damaged { storage, repository, images, needs, objects }
}

impl Damaged {
    /// Checks the effects of the damage, then undoes it.
    fn look(&self, paths: &[&String], what: &str) {
        let what = format!("{what} {paths:?}");
        let report =
            check(&self.repository, &CheckOptions { read_data: true, known: vec![] }).unwrap();
        // Nothing refers to a manifest: without it its set is gone, and what the set needed is left over.
        let is_gone = what.starts_with("deleted") && paths[0].contains("/sets/");
        let newest = paths[0].ends_with("/2.json");
        let is_found =
            !report.problems.is_empty() || (is_gone && newest && !report.orphans.is_empty());
        assert!(is_found || (is_gone && !newest), "{what}: not found");
        for problem in &report.problems {
            let text = problem.error.to_string();
            assert!(text.contains("clusters/main/"), "{what}: names no object: {text}");
        }
        let harmed: BTreeSet<&String> =
            report.problems.iter().flat_map(|problem| &problem.sets).collect();
        for set in 0..3 {
            match restore(&self.repository, set) {
                Ok(image) => assert_eq!(image, self.images[set], "{what}: set {set} is wrong"),
                Err(error) => {
                    assert!(
                        paths.iter().any(|path| self.needs[set].contains(*path)),
                        "{what}: set {set} doesn't need it: {error}"
                    );
                    assert!(
                        is_gone || harmed.contains(&set.to_string()),
                        "{what}: the check doesn't say that set {set} is harmed: {error}"
                    );
                }
            }
        }
        for path in paths {
            self.put(path, self.objects[*path].clone());
        }
    }

    fn put(&self, path: &str, bytes: Bytes) {
        self.storage.put(path, &[bytes]).unwrap();
    }
}

fn kind(path: &str) -> &str {
    let name = path.rsplit('/').next().unwrap_or_default();
    let folder = path.split('/').nth(2).unwrap_or_default();
    ["objects", "extents", "packs"]
        .into_iter()
        .find(|table| name.contains(&format!(".{table}.")))
        .unwrap_or(folder)
}

fn matrix(key: Option<Key>) {
    let damaged = build(key);
    let kinds: BTreeSet<&str> = damaged.objects.keys().map(|path| kind(path)).collect();
    assert_eq!(kinds.len(), 5, "packs, sets, descriptors, and the tables: {kinds:?}");
    let mut random = fastrand::Rng::with_seed(4);
    for (path, bytes) in &damaged.objects {
        damaged.storage.delete(path).unwrap();
        damaged.look(&[path], "deleted");
        for length in [0, 1, bytes.len() / 2, bytes.len() - 1] {
            damaged.put(path, bytes.slice(..length));
            damaged.look(&[path], "truncated");
        }
        damaged.put(path, [&bytes[..], b"x"].concat().into());
        damaged.look(&[path], "lengthened");
        for at in
            [0, 1, bytes.len() - 1].into_iter().chain((0..12).map(|_| random.usize(..bytes.len())))
        {
            let mut bad = bytes.to_vec();
            bad[at] ^= 1 << (at % 8);
            damaged.put(path, bad.into());
            damaged.look(&[path], &format!("bit flipped in byte {at}"));
        }
        for (other, other_bytes) in &damaged.objects {
            if other > path && kind(other) == kind(path) {
                damaged.put(path, other_bytes.clone());
                damaged.put(other, bytes.clone());
                damaged.look(&[path, other], "swapped");
            }
        }
    }
}

#[test]
fn the_matrix() {
    matrix(None);
}

#[test]
fn the_matrix_of_a_sealed_repository() {
    matrix(Some(Key::new([9; 32])));
}

#[test]
fn another_key_restores_nothing() {
    let damaged = build(Some(Key::new([9; 32])));
    for key in [None, Some(Key::new([8; 32]))] {
        let store = Store::shared(damaged.storage.clone(), no_retries());
        let other = Repository::new(store, "clusters/main", key).unwrap();
        let is_none = other.key().is_none();
        let error = restore(&other, 2).unwrap_err();
        // A code under another key looks the same as that of a changed document.
        assert_eq!(matches!(error, strata::Error::Sealed { .. }), is_none, "{error}");
        assert!(is_none || error.to_string().contains("repository's key"), "{error}");
    }
}

#[test]
fn of_the_packs_those_are_read_that_are_chosen() {
    let damaged = build(None);
    let options = CheckOptions { read_data: true, known: vec![] };
    let all = check(&damaged.repository, &options).unwrap().counts;
    let mut asked = 0;
    let choose = |_| {
        asked += 1;
        asked % 2 == 0
    };
    let mut told = Vec::new();
    let mut tell = |done, total| {
        told.extend((total > 0).then_some((done, total)));
        true
    };
    let half = check_some(&damaged.repository, &options, choose, &mut tell);
    let half = half.unwrap().counts;
    let (first, last) = (told[0], *told.last().unwrap());
    assert!(first.0 == 0 && first.1 > 0 && last == (first.1, first.1), "{told:?}");
    assert!(told.is_sorted() && told.len() as u64 > half.frames, "{told:?}");
    assert_eq!((asked, half.packs), (all.packs, all.packs));
    assert!(half.frames > 0 && half.frames < all.frames, "{half:?} of {all:?}");
    let none = check_some(&damaged.repository, &options, |_| false, &mut |_, _| true);
    let none = none.unwrap().counts;
    assert_eq!(none.frames, 0);
}

#[test]
fn a_check_that_is_ended_says_what_it_has_found() {
    let damaged = build(None);
    let bytes = damaged.objects["clusters/main/sets/0.json"].slice(1..);
    damaged.put("clusters/main/sets/0.json", bytes);
    let options = CheckOptions { read_data: true, known: vec![] };
    let whole = check(&damaged.repository, &options).unwrap();
    assert!(!whole.is_partial && whole.problems.len() == 1);
    let mut found = BTreeSet::new();
    for times in 0.. {
        let mut told = 0;
        let mut tell = |_, _| {
            told += 1;
            told <= times
        };
        let report = check_some(&damaged.repository, &options, |_| true, &mut tell).unwrap();
        if !report.is_partial {
            assert!(times > 10 && report.counts == whole.counts, "{times}: {:?}", report.counts);
            break;
        }
        assert_eq!(told, times + 1, "nothing more is looked at");
        assert_eq!(report.orphans, [""; 0], "nobody knows");
        found.insert((report.problems.len(), report.counts.frames > 0));
    }
    assert_eq!(found, [(0, false), (1, false), (1, true)].into());
}

#[test]
fn what_is_not_read_because_the_program_ends_is_no_finding() {
    let damaged = build(None);
    let options = CheckOptions { read_data: true, known: vec![] };
    let mut partial = 0;
    for at in 0.. {
        let faulty = Faulty::new(damaged.storage.clone(), at, Fault::FailOnce);
        let store = Store::new(faulty.clone()).until(Ending::when(|| true));
        let repository = Repository::new(store, "clusters/main", None).unwrap();
        match check(&repository, &options) {
            Ok(report) => {
                assert!(report.problems.is_empty(), "call {at}: {:?}", report.problems);
                partial += u32::from(report.is_partial);
            }
            Err(error) => assert!(error.to_string().contains("was not tried again"), "{error}"),
        }
        if faulty.calls() <= at {
            break;
        }
    }
    assert!(partial > 0, "none of the calls that count is made once only");
}

#[test]
fn orphans_and_foreign_objects_are_listed() {
    let damaged = build(None);
    damaged.put("clusters/main/wal/1/segment.zst", "x".into());
    damaged.put("clusters/main/lockstep.json", "x".into());
    damaged.put("clusters/main/packs/holiday.jpg", "x".into());
    damaged.put("clusters/main/packs/01ARZ3NDEKTSV4RRFFQ69G5FAV", "x".into());
    let known = vec!["wal/".to_string(), "lockstep.json".to_string()];
    let report = check(&damaged.repository, &CheckOptions { read_data: false, known }).unwrap();
    assert!(report.problems.is_empty());
    assert_eq!(report.foreign, ["clusters/main/packs/holiday.jpg"]);
    assert_eq!(report.orphans, ["clusters/main/packs/01ARZ3NDEKTSV4RRFFQ69G5FAV"]);
}

#[test]
fn what_is_huge_in_the_place_of_a_small_object_is_not_read() {
    let folder = tempfile::tempdir().unwrap();
    let repository = repository(folder_store(folder.path()));
    write_delta(&repository, &mut Image::new(), &[], "0", None, &small()).unwrap();
    let huge = |path: String| {
        let file = folder.path().join(&path);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        // Larger than memory, without bytes on disk.
        std::fs::File::create(file).unwrap().set_len(1 << 42).unwrap();
        path
    };
    let is_named = |error: strata::Error, path: &str| {
        let text = error.to_string();
        assert!(text.contains(path) && text.contains("larger than any"), "{text}");
    };
    let path = huge(repository.image_path(IMAGE, "0.json"));
    is_named(chain(&repository, IMAGE, "0", None).unwrap_err(), &path);
    let path = huge(repository.path("leases/write/00000000000000000001"));
    let seen = Lease::seen(&repository, "write").unwrap().unwrap().damaged.unwrap();
    assert!(seen.contains(&path) && seen.contains("larger than any"), "{seen}");
    huge(repository.path("doomed.json"));
    assert_eq!(collect(&repository, 0, 5, true, HELD).unwrap().deleted, Vec::<String>::new());
    let path = huge(repository.path("sets/a.json"));
    is_named(Manifest::read(&repository, "a").unwrap_err(), &path);
    is_named(check(&repository, &CheckOptions::default()).unwrap().problems.remove(0).error, &path);
}
