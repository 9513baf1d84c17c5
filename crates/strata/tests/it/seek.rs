//! Folds of which only a part is wanted: they report the same about that part as a fold of everything, whatever they
//! pass over, and they read little.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::support::*;
use strata::delta::{
    Block, Change, Delta, DeltaReader, DeltaWriter, Descriptor, Extent, ImageOptions, ImageWriter,
    IndexOptions, ReadOptions, chain,
};
use strata::fold::{Folded, Lookup, Sink, fold, is_full, merge, open_chain};
use strata::lease::HELD;
use strata::pack::{Location, PackOptions, Packed};
use strata::store::testing::Counting;
use strata::{Repository, Result, Ulid};

/// What a fold reports about the wanted objects.
#[derive(Default)]
struct Told {
    /// `None` means all.
    objects: Option<BTreeSet<u64>>,
    /// Objects wanted without extents.
    bare: BTreeSet<u64>,
    said: BTreeMap<u64, (Folded, Vec<Extent>)>,
    current: Option<u64>,
}

impl Sink for Told {
    fn wanted(&mut self, from: u64) -> Result<Option<u64>> {
        let Some(objects) = &self.objects else { return Ok(Some(from)) };
        Ok(objects.range(from..).next().copied())
    }

    fn object(&mut self, object: &Folded) -> Result<()> {
        let known = self.said.insert(object.object, (object.clone(), Vec::new()));
        assert!(known.is_none(), "object {} comes twice", object.object);
        self.current = Some(object.object);
        Ok(())
    }

    fn wants_extents(&mut self) -> bool {
        self.current.is_some_and(|object| !self.bare.contains(&object))
    }

    fn extent(&mut self, object: u64, extent: &Extent) -> Result<()> {
        self.said.get_mut(&object).unwrap().1.push(extent.clone());
        Ok(())
    }
}

fn everything(repository: &Repository, chain: &[Descriptor]) -> Told {
    let mut told = Told::default();
    let deltas = open_chain(repository, chain, 1 << 20).unwrap();
    fold(deltas, is_full(chain), &Model, &mut told).unwrap();
    told
}

/// Chooses some of the possible object numbers, and some of them without extents.
fn choice(random: &mut fastrand::Rng) -> Told {
    let share = random.u8(1..9);
    let mut some = |share| (0..40).filter(|_| random.u8(0..10) < share).collect::<BTreeSet<u64>>();
    let (objects, bare) = (some(share), some(4));
    Told { objects: Some(objects).filter(|_| share > 1), bare, ..Told::default() }
}

/// Looks into a chain several times, at objects in any order.
fn look(repository: &Repository, chain: &[Descriptor], random: &mut fastrand::Rng, why: &str) {
    let all = everything(repository, chain).said;
    let mut lookup = Lookup::open(repository, chain, 1 << 20).unwrap();
    for _ in 0..6 {
        let mut told = choice(random);
        lookup.fold(&Model, &mut told).unwrap();
        let mut expected = all.clone();
        expected.retain(|at, _| told.objects.as_ref().is_none_or(|some| some.contains(at)));
        for (at, (_, extents)) in &mut expected {
            if told.bare.contains(at) {
                extents.clear();
            }
        }
        assert_eq!(told.said, expected, "{why}: {:?} of it, bare {:?}", told.objects, told.bare);
    }
}

fn history(seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let repository = repository(memory_store());
    let mut image = Image::new();
    let count = random.u64(2..7);
    // A row group for each row, or for a few rows, so that row groups and files end everywhere.
    let (group_rows, file_groups) = (random.usize(1..5), random.usize(1..4));
    let index = IndexOptions { group_rows, file_groups, ..small_index() };
    let options = ImageOptions { index: index.clone(), ..small() };
    for number in 0..count {
        let mut steps = random_steps(&mut random);
        // Ranges that begin before the wanted objects, and objects in row groups of their own.
        if random.bool() {
            steps.push(Step::Free(random.u64(1..30), random.u64(1..20)));
        }
        let far = |random: &mut fastrand::Rng| random.u64(12..36);
        steps.push(Step::Wide(far(&mut random), 1, 1, vec![Act::Write(0, 30, 7)]));
        steps.push(Step::Create(far(&mut random), 2, 1, vec![Act::Write(9, 900, 5)]));
        let base = number.checked_sub(1).map(|base| base.to_string());
        let id = number.to_string();
        write_delta(&repository, &mut image, &steps, &id, base.as_deref(), &options).unwrap();
    }
    let newest = (count - 1).to_string();
    let whole = chain(&repository, IMAGE, &newest, None).unwrap();
    look(&repository, &whole, &mut random, &format!("seed {seed}"));
    let after = random.u64(..count - 1).to_string();
    let rest = chain(&repository, IMAGE, &newest, Some(&after)).unwrap();
    look(&repository, &rest, &mut random, &format!("seed {seed} after {after}"));
    merge(&repository, &rest, &Model, 1 << 20, &index, HELD).unwrap();
    let merged = chain(&repository, IMAGE, &newest, None).unwrap();
    look(&repository, &merged, &mut random, &format!("seed {seed} merged"));
}

#[test]
fn what_is_passed_over_changes_nothing() {
    let rounds = std::env::var("STRATA_ROUNDS").ok().and_then(|text| text.parse().ok());
    for seed in 0..rounds.unwrap_or(150) {
        history(seed);
    }
}

/// Writes a delta of many row groups: `objects` with this many extents each, of which the `at`th has other content.
fn large(repository: &Repository, id: &str, base: Option<&str>, objects: std::ops::Range<u64>) {
    let options = ImageOptions {
        frame_size: 64 << 10,
        packs: PackOptions { pack_size: 1 << 20, level: 1, threads: 2, uploads: 1 },
        index: IndexOptions { group_rows: 2000, file_groups: 50, ..IndexOptions::default() },
        resume: None,
    };
    let mut random = fastrand::Rng::with_seed(objects.end);
    let mut writer = ImageWriter::new(repository, IMAGE, id, base, &options).unwrap();
    for object in objects {
        let mut header = vec![1, 1, 0, 0, 1];
        header.extend((0..200).map(|_| random.u8(..)));
        let header = Some(header.into());
        writer.changed(Change { object, header, ..Change::default() }).unwrap();
        for block in 0..400 {
            let content: Vec<u8> = (0..random.usize(8..24)).map(|_| random.u8(..)).collect();
            writer.data(block * 8192 + random.u64(..4096), &content).unwrap();
        }
    }
    writer.finish().unwrap();
}

#[test]
fn one_object_of_many_row_groups_takes_few_reads() {
    let counting = Counting::new(memory_store());
    let repository = repository(Arc::new(counting.clone()));
    large(&repository, "0", None, 0..2500);
    large(&repository, "1", Some("0"), 300..2500);
    let all = chain(&repository, IMAGE, "1", None).unwrap();
    let files = all.iter().flat_map(|delta| delta.objects.iter().chain(&delta.extents));
    let (count, size) = files.fold((0, 0), |(count, size), file| (count + 1, size + file.size));
    assert!(count > 6 && size > 8 << 20, "{count} files of {size} bytes are no test");
    let expected = everything(&repository, &all).said;
    let read = |counting: &Counting| -> (usize, u64) {
        let mut calls = counting.take();
        calls.retain(|call| call.path.contains("/volumes/"));
        let bytes = calls.iter().filter_map(|call| call.range.as_ref());
        (calls.len(), bytes.map(|range| range.end - range.start).sum())
    };
    for object in [1, 299, 300, 1731, 2499, 2500] {
        let mut lookup = Lookup::open(&repository, &all, 64 << 20).unwrap();
        let mut first = Told { objects: Some([object].into()), ..Told::default() };
        counting.take();
        lookup.fold(&Model, &mut first).unwrap();
        let (reads, bytes) = read(&counting);
        assert_eq!(first.said.get(&object), expected.get(&object));
        eprintln!("object {object}: {reads} reads of {bytes} bytes; all of it has {size} bytes");
        // The footers and row groups of two tables of two deltas; sometimes a neighbouring row group.
        assert!(reads <= 16, "object {object} took {reads} reads");
        assert!(bytes < size / 8, "object {object} took {bytes} of {size} bytes");
        // What was read stays open.
        let mut again = Told { objects: Some([object].into()), ..Told::default() };
        lookup.fold(&Model, &mut again).unwrap();
        assert_eq!(again.said, first.said);
        let (reads, _) = read(&counting);
        assert!(reads <= 4, "object {object} again took {reads} reads");
    }
    // Headers only: no extents are read.
    let mut bare = Told { bare: (0..2500).collect(), ..Told::default() };
    let mut lookup = Lookup::open(&repository, &all, 64 << 20).unwrap();
    lookup.fold(&Model, &mut bare).unwrap();
    assert_eq!(bare.said.len(), 2500);
    let extents = counting.take().into_iter().filter(|call| call.path.contains(".extents."));
    assert!(extents.count() <= 4, "extents were read though none were wanted");
}

#[test]
fn row_groups_of_few_rows_and_of_many_are_read_as_they_were_written() {
    let mut random = fastrand::Rng::with_seed(5);
    for rows in [1, 4095, 4096, 4097, 9000] {
        let repository = repository(memory_store());
        let mut packs: Vec<_> = (0..3).map(|_| Ulid::new().unwrap()).collect();
        packs.sort();
        let options = IndexOptions::default();
        let mut writer = DeltaWriter::new(&repository, IMAGE, "0", None, &options).unwrap();
        let mut written = Vec::new();
        for number in 0..rows {
            if number % 100 == 0 {
                let header = (number % 300 == 0).then(|| vec![number as u8; 30].into());
                writer.changed(Change { object: number, header, ..Change::default() }).unwrap();
            }
            let location = Location {
                pack: packs[(number * 3 / rows) as usize],
                frame: number,
                frame_length: random.u64(1..100),
                start: random.u64(..100),
                size: 10,
            };
            let note = random.bool().then(|| vec![number as u8; random.usize(1..20)].into());
            let block = Block { location, length: 10, note, ..Block::default() };
            let block = (random.u8(..5) > 0).then_some(block);
            let extent = Extent { offset: number * 20, length: 10, block };
            written.push((number / 100 * 100, extent.clone()));
            writer.extent(extent).unwrap();
        }
        let packed = |pack| Packed { pack, size: 1 << 20, content: 1 << 20 };
        writer.finish(packs.into_iter().map(packed)).unwrap();
        let descriptor = chain(&repository, IMAGE, "0", None).unwrap().remove(0);
        let mut reader = DeltaReader::new(&repository, descriptor, ReadOptions::default());
        for _ in 0..2 {
            let mut read = Vec::new();
            reader.next_entry().unwrap();
            while let Some(entry) = reader.entry().cloned() {
                while let Some(extent) = reader.extent().cloned() {
                    read.push((entry.object(), extent));
                    reader.next_extent().unwrap();
                }
                reader.next_entry().unwrap();
            }
            assert_eq!(read, written, "{rows} rows");
            reader.rewind();
        }
    }
}
