//! Tests tags against a naive model: an image kept page by page, and streams that change it at random.

use std::collections::{BTreeMap, BTreeSet};

use sendstream::ByteOrder;
use sendstream::record::{Object, object_type};

use super::*;
use crate::repository::header::ObjectHeader;

const SIZE: usize = PAGE as usize;

fn header(block_size: u32, generation: u64) -> ObjectHeader {
    let file = Object::plain(0, object_type::PLAIN_FILE, block_size);
    let object = Object { bonus_type: object_type::ZNODE, bonus_len: 264, ..file };
    let mut bonus = vec![0; 264];
    bonus[64..72].copy_from_slice(&generation.to_le_bytes());
    let order = ByteOrder::Little;
    ObjectHeader { object, bonus, order, has_spill_flags: true, ends_spill: false }
}

fn page(seed: u8) -> Vec<u8> {
    vec![seed; SIZE]
}

fn folder(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("lockstep-tags-{}-{name}", std::process::id()));
    files::remove_tree(&folder).unwrap();
    folder
}

const OF: Of<'_> = Of { repository: "r", image: "tank=pg" };

/// Passes a stream by; returns its result.
fn pass<T>(tags: &Tags, to: Option<&str>, stream: impl FnOnce(&mut Passed<'_>) -> T) -> T {
    let transaction = tags.begin().unwrap();
    let mut passed = Passed::open(tags, &transaction).unwrap();
    let given = stream(&mut passed);
    passed.finish().unwrap();
    if let Some(to) = to {
        tags.commit(transaction, to).unwrap();
    }
    given
}

#[test]
fn they_are_of_one_delta_and_nothing_else() {
    let folder = folder("of-one");
    let stored = |passed: &mut Passed<'_>| {
        assert!(passed.object(7, Some(&header(131_072, 5)), None).unwrap());
        passed.block(0, &page(1)).unwrap()
    };
    let tags = Tags::open(&folder, OF, None).unwrap();
    assert!(tags.are_whole());
    assert_eq!(pass(&tags, Some("1"), stored), [Known::Nothing]);
    drop(tags);
    let reopened = |of: Of<'_>, base: &str| {
        let copy = folder.with_extension("copy");
        files::remove_tree(&copy).unwrap();
        std::fs::create_dir(&copy).unwrap();
        for entry in std::fs::read_dir(&folder).unwrap() {
            let name = entry.unwrap().file_name();
            // Under the requested image's name.
            std::fs::copy(folder.join(&name), copy.join(file_name(of.image))).unwrap();
        }
        let tags = Tags::open(&copy, of, Some(base)).unwrap();
        let known = pass(&tags, None, stored);
        (tags.are_whole(), known == [Known::Same])
    };
    assert_eq!(reopened(OF, "1"), (true, true));
    assert_eq!(reopened(OF, "2"), (false, false), "another delta");
    assert_eq!(reopened(Of { repository: "s", ..OF }, "1"), (false, false), "another repository");
    assert_eq!(reopened(Of { image: "tank=other", ..OF }, "1"), (false, false), "another image");
    files::remove_tree(&folder).unwrap();
    files::remove_tree(&folder.with_extension("copy")).unwrap();
}

#[test]
fn what_was_not_committed_never_was() {
    let folder = folder("not-committed");
    let stream = |seed: u8| {
        move |passed: &mut Passed<'_>| {
            passed.object(7, Some(&header(131_072, 5)), None).unwrap();
            passed.block(0, &page(seed)).unwrap()
        }
    };
    let tags = Tags::open(&folder, OF, None).unwrap();
    pass(&tags, Some("1"), stream(1));
    assert_eq!(pass(&tags, None, stream(2)), [Known::Different]);
    drop(tags);
    let tags = Tags::open(&folder, OF, Some("1")).unwrap();
    assert_eq!(pass(&tags, None, stream(1)), [Known::Same]);
    tags.forget();
    assert!(!Tags::open(&folder, OF, Some("1")).unwrap().are_whole());
    files::remove_tree(&folder).unwrap();
}

#[test]
fn a_damaged_file_is_thrown_away() {
    let folder = folder("damaged");
    let tags = Tags::open(&folder, OF, None).unwrap();
    pass(&tags, Some("1"), |_| ());
    drop(tags);
    let path = folder.join(file_name(OF.image));
    std::fs::write(&path, b"no such file").unwrap();
    assert!(!Tags::open(&folder, OF, Some("1")).unwrap().are_whole());
    // Begun and never committed: as if it hadn't happened.
    assert!(!Tags::open(&folder, OF, Some("1")).unwrap().are_whole());
    files::remove_tree(&folder).unwrap();
}

#[test]
fn those_whose_last_use_had_no_end_are_not_used_again() {
    let folder = folder("no-end");
    let tags = Tags::open(&folder, OF, None).unwrap();
    pass(&tags, Some("1"), |_| ());
    drop(tags);
    let reopened = || Tags::open(&folder, OF, Some("1")).unwrap();
    assert!(reopened().are_whole());
    let panicked = std::panic::catch_unwind(|| {
        let _tags = reopened();
        panic!("as on a damaged file")
    });
    panicked.unwrap_err();
    assert!(!reopened().are_whole());
    let left = std::fs::read_dir(&folder).unwrap().count();
    assert_eq!(left, 1, "the file without its mark");
    files::remove_tree(&folder).unwrap();
}

#[test]
fn those_of_other_images_are_swept_away() {
    let folder = folder("swept");
    sweep(&folder, std::iter::empty()).unwrap();
    for image in ["a", "b"] {
        Tags::open(&folder, Of { image, ..OF }, None).unwrap();
    }
    sweep(&folder, ["b".to_owned()].into_iter()).unwrap();
    let left: Vec<_> =
        std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, [&*file_name("b")]);
    files::remove_tree(&folder).unwrap();
}

#[test]
fn a_page_of_zeros_is_known_too_and_a_part_of_one_is_not() {
    let folder = folder("zeros");
    let tags = Tags::open(&folder, OF, None).unwrap();
    let stream = |passed: &mut Passed<'_>| {
        passed.object(7, Some(&header(131_072, 5)), None).unwrap();
        passed.block(0, &[0; SIZE + 512]).unwrap()
    };
    pass(&tags, Some("1"), stream);
    assert_eq!(pass(&tags, None, stream), [Known::Same, Known::Nothing]);
    files::remove_tree(&folder).unwrap();
}

/// A file of the model: its pages, as far as they have content.
#[derive(Clone, Debug, PartialEq)]
struct File {
    generation: u64,
    block_size: u32,
    pages: BTreeMap<u64, Vec<u8>>,
}

#[test]
fn against_a_naive_model() {
    let seed = fastrand::u64(..);
    let mut rng = fastrand::Rng::with_seed(seed);
    let folder = folder("model");
    let (mut same, mut different) = (0, 0);
    for round in 0..40 {
        let mut image: BTreeMap<u64, File> = BTreeMap::new();
        let mut at = 0;
        let mut tags = Tags::open(&folder, OF, None).unwrap();
        for step in 0..12 {
            let what = format!("seed {seed}, round {round}, step {step}");
            let before = image.clone();
            let next = step.to_string();
            // Some shipments never finish.
            let ends = rng.u8(..5) > 0;
            let to = ends.then_some(&*next);
            pass(&tags, to, |passed| {
                let count = if step == 0 { 12 } else { rng.u64(1..6) };
                let objects: BTreeSet<u64> = (0..count).map(|_| rng.u64(1..12)).collect();
                for object in objects {
                    let seen = change(&mut rng, &mut image, object, step, passed);
                    for (page, known, expected, content) in seen {
                        assert_eq!(known, expected, "{what}, {object}, page {page}");
                        different += u32::from(known == Known::Different);
                        if known == Known::Same {
                            // And it is what the repository has of this very file.
                            let (old, new) = (&before[&object], &image[&object]);
                            let is_one = old.generation == new.generation;
                            assert!(
                                is_one && old.pages[&page] == content,
                                "{what}, {object}, {page}"
                            );
                            same += 1;
                        }
                    }
                }
            });
            if ends {
                at = step;
            } else if step == 0 {
                break;
            } else {
                image = before;
            }
            if rng.bool() {
                drop(tags);
                tags = Tags::open(&folder, OF, Some(&at.to_string())).unwrap();
                assert!(tags.are_whole(), "{what}");
            }
        }
    }
    assert!(same > 100 && different > 100, "{same} the same, {different} different");
    files::remove_tree(&folder).unwrap();
}

/// Changes an object at random as a stream would; returns what was said about each page that went by, and what should
/// have been said.
fn change(
    rng: &mut fastrand::Rng,
    image: &mut BTreeMap<u64, File>,
    object: u64,
    step: u64,
    passed: &mut Passed<'_>,
) -> Vec<(u64, Known, Known, Vec<u8>)> {
    const BLOCK: u64 = 4;
    let mut seen = Vec::new();
    let is_there = image.contains_key(&object);
    if is_there && rng.u8(..6) == 0 {
        // Freed, alone or with its neighbours; or another object replaces it without notice.
        let count = rng.u64(1..3);
        if rng.bool() {
            passed.freed(object, count).unwrap();
            (object..object + count).for_each(|gone| drop(image.remove(&gone)));
            if rng.bool() {
                return seen;
            }
        }
        image.remove(&object);
    }
    let is_new = !image.contains_key(&object);
    let file = image.entry(object).or_insert_with(|| File {
        generation: step * 100 + object,
        block_size: BLOCK as u32 * PAGE as u32,
        pages: BTreeMap::new(),
    });
    if rng.u8(..12) == 0 {
        // Its block size changes, so nothing from before counts.
        let sizes = [1, BLOCK, 2 * BLOCK].map(|pages| (pages * PAGE) as u32);
        let others: Vec<_> = sizes.into_iter().filter(|size| *size != file.block_size).collect();
        file.block_size = others[rng.usize(..others.len())];
        file.pages.clear();
    }
    let tail = (!is_new && rng.u8(..3) == 0).then(|| rng.u64(..300) * PAGE + rng.u64(..2) * 512);
    if let Some(tail) = tail {
        file.pages.retain(|page, _| (page + 1) * PAGE <= tail);
    }
    let announced = header(file.block_size, file.generation);
    let is_tagged = passed.object(object, Some(&announced), tail).unwrap();
    assert_eq!(is_tagged, file.block_size as usize > SIZE);
    let mut block = 0;
    // Several rows of tags, including rows that are skipped.
    while block < 100 {
        block += if rng.bool() { 1 } else { rng.u64(1..30) };
        if rng.u8(..4) == 0 {
            let length = if rng.bool() { rng.u64(1..5) } else { rng.u64(50..400) };
            passed.unknown(block * BLOCK * PAGE, length * BLOCK * PAGE).unwrap();
            let gone = block * BLOCK..(block + length) * BLOCK;
            file.pages.retain(|page, _| !gone.contains(page));
            block += length;
            continue;
        }
        let first = block * BLOCK;
        let mut content = Vec::new();
        for number in first..first + BLOCK {
            let kept = file.pages.get(&number).filter(|_| rng.u8(..3) > 0).cloned();
            let new = kept.unwrap_or_else(|| page(rng.u8(..)));
            content.extend_from_slice(&new);
        }
        let known = passed.block(first * PAGE, &content).unwrap();
        for ((number, known), bytes) in (first..).zip(known).zip(content.chunks(SIZE)) {
            let before = if is_tagged { file.pages.insert(number, bytes.to_vec()) } else { None };
            let expected = match before {
                None => Known::Nothing,
                Some(before) if before == bytes => Known::Same,
                Some(_) => Known::Different,
            };
            seen.push((number, known, expected, bytes.to_vec()));
        }
    }
    seen
}
