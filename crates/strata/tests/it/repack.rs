//! Repacking: the meaning of deltas doesn't change, whatever the packs were like; damaged blocks aren't copied.

use std::collections::BTreeSet;

use crate::support::*;
use strata::Repository;
use strata::check::{CheckOptions, check};
use strata::delta::{chain, descriptor_path, packs};
use strata::fold::merge;
use strata::lease::HELD;
use strata::manifest::{DeltaId, Manifest};
use strata::repack::{RepackOptions, repack};
use strata::store::Store;

const NOW: u64 = 4_000_000_000;

fn options() -> RepackOptions {
    RepackOptions {
        frame_size: 700,
        packs: small().packs,
        index: small_index(),
        ..RepackOptions::default()
    }
}

/// Makes sets with random histories and prunes all but some of them, so that packs have holes.
fn pruned(seed: u64, key: Option<strata::frame::Key>) -> (Repository, Vec<(String, Image)>) {
    let store = Store::shared(memory_store(), no_retries());
    let repository = Repository::new(store, "clusters/main", key).unwrap();
    let mut random = fastrand::Rng::with_seed(seed);
    let (mut image, mut images) = (Image::new(), Vec::new());
    for number in 0..8 {
        let mut steps = vec![Step::Create(30, 1, 1, vec![Act::Write(0, 900, number as u8 + 2)])];
        steps.extend((0..12).map(|_| random_step(&mut random)));
        let id = number.to_string();
        let base = (number > 0).then(|| (number - 1).to_string());
        write_delta(&repository, &mut image, &steps, &id, base.as_deref(), &small()).unwrap();
        images.push((id.clone(), image.clone()));
        let delta = DeltaId { image: IMAGE.to_string(), id: id.clone() };
        Manifest::new(&id, NOW, vec![delta], serde_json::Value::Null).write(&repository).unwrap();
    }
    let kept: BTreeSet<usize> = [random.usize(0..7), 7].into();
    let mut from = 0;
    for &set in &kept {
        let all = chain(&repository, IMAGE, &set.to_string(), None).unwrap();
        let merged: Vec<_> =
            all.into_iter().filter(|delta| delta.id.parse::<usize>().unwrap() >= from).collect();
        merge(&repository, &merged, &Model, 1 << 20, &small_index(), HELD).unwrap();
        from = set + 1;
    }
    for gone in (0..8).filter(|number| !kept.contains(number)) {
        Manifest::delete(&repository, &gone.to_string()).unwrap();
        let path = descriptor_path(&repository, IMAGE, &gone.to_string()).unwrap();
        repository.store().delete(&path).unwrap();
    }
    collect(&repository, 0, NOW, false, HELD).unwrap();
    (repository, images.into_iter().filter(|(id, _)| kept.contains(&id.parse().unwrap())).collect())
}

fn assert_means(repository: &Repository, images: &[(String, Image)], why: &str) {
    for (set, image) in images {
        let all = chain(repository, IMAGE, set, None).unwrap();
        assert_eq!(restored(repository, &all, &Image::new()).unwrap(), *image, "{why}: set {set}");
    }
    let report = check(repository, &CheckOptions { read_data: true, known: vec![] }).unwrap();
    assert!(report.problems.is_empty(), "{why}: {:?}", report.problems);
}

fn stored(repository: &Repository) -> u64 {
    let mut bytes = 0;
    repository.store().list("clusters/main/packs", |listed| bytes += listed.size).unwrap();
    bytes
}

#[test]
fn deltas_mean_the_same_and_sparse_packs_go() {
    let mut rewritten = 0;
    for seed in 0..40 {
        let key = (seed % 2 == 1).then(|| strata::frame::Key::new([5; 32]));
        let (repository, images) = pruned(seed, key);
        let why = format!("seed {seed}");
        assert_means(&repository, &images, &why);
        let before = stored(&repository);
        // At most this many blocks at a time: several batches, or one.
        let blocks = [2, 500_000][(seed / 2 % 2) as usize];
        let options = RepackOptions { blocks, live_percent: 70, ..options() };
        let would = repack(&repository, &options, true, HELD, &mut |_, _| ()).unwrap();
        assert_eq!(stored(&repository), before, "{why}: a dry run writes nothing");
        let mut told = Vec::new();
        let mut tell = |done, total| told.push((done, total));
        let done = repack(&repository, &options, false, HELD, &mut tell).unwrap();
        let total = would.packs.iter().map(|sparse| sparse.live).sum::<u64>();
        assert!(told.is_sorted() && told.iter().all(|(done, of)| done <= of && *of == total));
        assert!(told[0].0 == 0 && told.last().unwrap().0 * 2 > total || total == 0, "{told:?}");
        assert_eq!(done.packs, would.packs, "{why}");
        assert!(done.damaged.is_empty(), "{why}");
        assert_means(&repository, &images, &why);
        // What is replaced waits for its grace time, and is then deleted.
        let waiting = collect(&repository, 100, NOW, false, HELD).unwrap();
        assert!(waiting.deleted.is_empty(), "{why}");
        for sparse in &done.packs {
            let path = repository.pack_path(sparse.packed.pack);
            assert!(waiting.waiting.contains(&path), "{why}: {path} is needed still");
        }
        collect(&repository, 100, NOW + 100, false, HELD).unwrap();
        assert_means(&repository, &images, &why);
        if !done.packs.is_empty() {
            rewritten += 1;
            assert!(done.deltas > 0 && done.written > 0, "{why}");
        }
        let again = repack(&repository, &options, false, HELD, &mut |_, _| ()).unwrap();
        assert!(again.packs.len() <= done.packs.len(), "{why}");
    }
    assert!(rewritten > 20, "only {rewritten} of 40 had anything to do");
}

#[test]
fn the_budget_is_kept_and_the_deadest_packs_go_first() {
    let (repository, images) = pruned(3, None);
    let all = repack(
        &repository,
        &RepackOptions { live_percent: 101, ..options() },
        true,
        HELD,
        &mut |_, _| (),
    )
    .unwrap();
    assert!(all.packs.len() > 2, "{all:?}");
    let share = |at: usize| all.packs[at].live as f64 / all.packs[at].packed.content as f64;
    assert!((1..all.packs.len()).all(|at| share(at - 1) <= share(at)), "{all:?}");
    let max_bytes = all.written / 2;
    let limited = RepackOptions { live_percent: 101, max_bytes, ..options() };
    let some = repack(&repository, &limited, false, HELD, &mut |_, _| ()).unwrap();
    assert!(some.left > 0 && !some.packs.is_empty() && some.packs.len() < all.packs.len());
    assert_eq!(some.packs[0], all.packs[0]);
    let none = RepackOptions { live_percent: 101, max_bytes: 0, ..options() };
    assert_eq!(repack(&repository, &none, false, HELD, &mut |_, _| ()).unwrap().written, 0);
    assert_means(&repository, &images, "after half of it");
}

#[test]
fn what_is_damaged_is_left_and_named() {
    let (repository, images) = pruned(3, None);
    let options = RepackOptions { live_percent: 101, ..options() };
    let all = repack(&repository, &options, true, HELD, &mut |_, _| ()).unwrap();
    let pack = all.packs[1].packed.pack;
    let path = repository.pack_path(pack);
    let mut bytes = repository.store().get(&path).unwrap().to_vec();
    let good = bytes.clone();
    bytes.iter_mut().for_each(|byte| *byte ^= 1);
    repository.store().put(&path, &[bytes.into()]).unwrap();
    let done = repack(&repository, &options, false, HELD, &mut |_, _| ()).unwrap();
    assert_eq!(done.damaged.len(), 1);
    assert_eq!(done.damaged[0].0, pack);
    assert!(done.packs.iter().all(|sparse| sparse.packed.pack != pack));
    // The deltas that named it still name it: once it is put back, everything is as before.
    let mut named = false;
    for (set, _) in &images {
        for descriptor in chain(&repository, IMAGE, set, None).unwrap() {
            packs(&repository, &descriptor, |row| {
                named |= row.pack == pack;
                Ok(())
            })
            .unwrap();
        }
    }
    assert!(named);
    repository.store().put(&path, &[good.into()]).unwrap();
    collect(&repository, 0, NOW, false, HELD).unwrap();
    assert_means(&repository, &images, "with the pack put back");
}

#[test]
fn nothing_is_written_while_a_set_cannot_be_read() {
    let (repository, images) = pruned(3, None);
    let before = stored(&repository);
    let path = descriptor_path(&repository, IMAGE, &images[0].0).unwrap();
    repository.store().put(&path, &["{".into()]).unwrap();
    let options = RepackOptions { live_percent: 101, ..options() };
    repack(&repository, &options, false, HELD, &mut |_, _| ()).unwrap_err();
    assert_eq!(stored(&repository), before);
}
