//! A check during a prune: what is removed, merged, repacked and collected while it reads must not be reported. What is
//! really missing at that time must be.

use std::sync::Arc;

use crate::support::*;
use strata::check::{CheckOptions, Report, check};
use strata::delta::{chain, packs};
use strata::fold::merge;
use strata::lease::HELD;
use strata::manifest::{DeltaId, Manifest};
use strata::repack::{RepackOptions, repack};
use strata::store::Storage;
use strata::store::testing::Meanwhile;
use strata::{Repository, Ulid};

const NOW: u64 = 4_000_000_000;

/// Writes a chain of sets, each with blocks of its own in the image.
fn written(sets: usize) -> Arc<dyn Storage> {
    let storage = memory_store();
    let repository = repository(storage.clone());
    let mut image = Image::new();
    for number in 0..sets {
        let byte = number as u8 + 2;
        let mut steps =
            vec![Step::Create(20 + number as u64, 1, 1, vec![Act::Write(0, 900, byte)])];
        // Half of what the previous set wrote is overwritten, so its packs become sparse.
        if number > 0 {
            steps.push(Step::Change(19 + number as u64, vec![Act::Write(0, 700, byte)]));
        }
        let (base, id) = (number.checked_sub(1).map(|base| base.to_string()), number.to_string());
        write_delta(&repository, &mut image, &steps, &id, base.as_deref(), &small()).unwrap();
        let delta = DeltaId { image: IMAGE.to_string(), id: id.clone() };
        Manifest::new(&id, NOW, vec![delta], serde_json::Value::Null).write(&repository).unwrap();
    }
    storage
}

/// Keeps only these sets: the others' deltas are merged into them, packs are repacked, and leftovers are deleted.
fn prune(repository: &Repository, kept: &[usize]) {
    for set in Manifest::list(repository).unwrap() {
        if !kept.contains(&set.parse().unwrap()) {
            Manifest::delete(repository, &set).unwrap();
        }
    }
    let mut from = 0;
    for set in kept {
        let all = chain(repository, IMAGE, &set.to_string(), None).unwrap();
        let run: Vec<_> =
            all.into_iter().filter(|delta| delta.id.parse::<usize>().unwrap() >= from).collect();
        if run.len() > 1 {
            merge(repository, &run, &Model, 1 << 20, &small_index(), HELD).unwrap();
        }
        from = set + 1;
    }
    let options = RepackOptions {
        live_percent: 101,
        packs: small().packs,
        index: small_index(),
        ..RepackOptions::default()
    };
    repack(repository, &options, false, HELD, &mut |_, _| ()).unwrap();
    collect(repository, 0, NOW, false, HELD).unwrap();
}

/// Returns the report of a check during which `action` runs before call `at`; `None` if it took fewer calls.
fn checked(at: u64, action: impl Fn(&Repository) + Send + 'static) -> Option<Report> {
    let inner = written(5);
    let plain = repository(inner.clone());
    let meanwhile = Arc::new(Meanwhile::new(inner, at, move || action(&plain)));
    let options = CheckOptions { read_data: true, known: vec![] };
    let report = check(&repository(meanwhile.clone()), &options).unwrap();
    (meanwhile.calls() > at).then_some(report)
}

#[test]
fn what_is_pruned_while_a_check_reads_is_no_finding() {
    for kept in [&[0, 2, 4][..], &[1, 4], &[4], &[0], &[2], &[0, 1, 2, 3, 4]] {
        for at in 0.. {
            let Some(report) = checked(at, move |repository| prune(repository, kept)) else {
                assert!(at > 25, "only {at} calls");
                break;
            };
            let why = format!("{kept:?} kept, pruned before call {at}");
            assert!(report.problems.is_empty(), "{why}: {:#?}", report.problems);
            assert!(report.counts.sets >= kept.len() as u64, "{why}");
        }
    }
}

/// Returns a pack that the last set needs.
fn last_pack(repository: &Repository) -> Ulid {
    let all = chain(repository, IMAGE, "4", None).unwrap();
    let mut last = None;
    packs(repository, all.last().unwrap(), |row| {
        last = Some(row.pack);
        Ok(())
    })
    .unwrap();
    last.unwrap()
}

#[test]
fn what_is_lost_beside_a_prune_is_a_finding() {
    let mut found = 0;
    for at in 0.. {
        let report = checked(at, |repository| {
            // Its packs stay, so the check, which listed them, reads this one later.
            Manifest::delete(repository, "1").unwrap();
            let all = chain(repository, IMAGE, "2", None).unwrap();
            merge(repository, &all[1..], &Model, 1 << 20, &small_index(), HELD).unwrap();
            collect(repository, 0, NOW, false, HELD).unwrap();
            let path = repository.pack_path(last_pack(repository));
            repository.store().delete(&path).unwrap();
        });
        let Some(report) = report else {
            // This pack is read last.
            assert!(at > 25 && found == at, "found {found} times in {at} calls");
            break;
        };
        for problem in report.problems {
            assert!(problem.error.to_string().contains("/packs/"), "before call {at}: {problem:?}");
            assert_eq!(problem.sets, ["4"], "before call {at}");
            found += 1;
        }
    }
}
