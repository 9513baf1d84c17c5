//! What a fold does with slots, changing headers, and blocks in a caller's form, on deltas in memory.

use bytes::Bytes;
use strata::delta::{Block, Change, Delta, Entry, Extent};
use strata::fold::{Folded, Heritage, KeepAll, Rules, Sink, fold};
use strata::pack::Location;
use strata::{Error, Result};

/// A delta in memory.
struct Memory {
    entries: std::vec::IntoIter<(Entry, Vec<Extent>)>,
    entry: Option<Entry>,
    extents: std::vec::IntoIter<Extent>,
    extent: Option<Extent>,
}

fn memory(entries: Vec<(Entry, Vec<Extent>)>) -> Memory {
    let (entries, extents) = (entries.into_iter(), Vec::new().into_iter());
    Memory { entries, entry: None, extents, extent: None }
}

impl Delta for Memory {
    fn entry(&self) -> Option<&Entry> {
        self.entry.as_ref()
    }

    fn next_entry(&mut self) -> Result<()> {
        let (entry, extents) = self.entries.next().unzip();
        self.entry = entry;
        self.extents = extents.unwrap_or_default().into_iter();
        self.next_extent()
    }

    fn extent(&self) -> Option<&Extent> {
        self.extent.as_ref()
    }

    fn next_extent(&mut self) -> Result<()> {
        self.extent = self.extents.next();
        Ok(())
    }
}

/// What a fold reports, as text.
#[derive(Default)]
struct Told(Vec<String>);

impl Sink for Told {
    fn freed(&mut self, first: u64, count: u64) -> Result<()> {
        self.0.push(format!("freed {first}+{count}"));
        Ok(())
    }

    fn object(&mut self, object: &Folded) -> Result<()> {
        let (header, spill) = (object.header.as_deref(), object.spill.as_deref());
        let fresh = if object.fresh { " fresh" } else { "" };
        self.0.push(format!("object {} {header:?} {spill:?}{fresh}", object.object));
        Ok(())
    }

    fn extent(&mut self, _: u64, extent: &Extent) -> Result<()> {
        self.0.push(match &extent.block {
            None => format!("hole {}+{}", extent.offset, extent.length),
            Some(block) => {
                let content = extent.content().map(|at| at.start);
                let (skip, form) = (block.skip, block.form);
                format!("data {}+{} {skip} of {form} {content:?}", extent.offset, extent.length)
            }
        });
        Ok(())
    }
}

fn told(deltas: Vec<Memory>, is_full: bool, rules: &impl Rules) -> Vec<String> {
    let mut told = Told::default();
    fold(deltas, is_full, rules, &mut told).unwrap();
    told.0
}

fn changed(object: u64, header: &'static [u8]) -> Entry {
    Entry::Changed(Change { object, header: Some(Bytes::from_static(header)), ..Change::default() })
}

fn data(offset: u64, length: u64, form: u64) -> Extent {
    let location = Location { start: 1000, size: length, ..Location::default() };
    let block = Block { location, length, form, ..Block::default() };
    Extent { offset, length, block: Some(block) }
}

/// The header's first byte is how many slots the object takes; the second is its block size, of which the smallest
/// counts.
struct Slots;

impl Rules for Slots {
    fn heritage(&self, older: &[u8], newer: &[u8]) -> Heritage {
        let header = (older[1] < newer[1])
            .then(|| Bytes::from([&newer[..1], &older[1..2], &newer[2..]].concat()));
        Heritage::Kept { header, spill: false }
    }

    fn slots(&self, header: &[u8]) -> u64 {
        header[0].into()
    }
}

#[test]
fn an_object_of_several_slots_ends_older_objects_in_them() {
    let older = || {
        memory(vec![
            (changed(4, &[1, 9]), vec![data(0, 10, 0)]),
            (changed(5, &[1, 9]), vec![data(0, 10, 0)]),
            (changed(6, &[1, 9]), vec![data(0, 10, 0)]),
            (changed(7, &[1, 9]), vec![data(0, 10, 0)]),
        ])
    };
    let newer = || memory(vec![(changed(4, &[3, 9]), vec![])]);
    let whole = told(vec![older(), newer()], true, &Slots);
    assert_eq!(
        whole,
        [
            "object 4 Some([3, 9]) None fresh",
            "data 0+10 0 of 0 Some(1000)",
            "object 7 Some([1, 9]) None fresh",
            "data 0+10 0 of 0 Some(1000)"
        ]
    );
    // What the slots ended is freed once they no longer belong to the object.
    let newest = || memory(vec![(changed(4, &[1, 9]), vec![])]);
    let step = told(vec![newer(), newest()], false, &Slots);
    assert_eq!(step, ["object 4 Some([1, 9]) None", "freed 5+2"]);
    // While they do, it isn't freed separately.
    let step = told(vec![older(), newer()], false, &Slots);
    assert!(!step.iter().any(|line| line.starts_with("freed")), "{step:?}");
}

#[test]
fn a_header_is_rewritten_from_the_newest_down() {
    let spilled = |object, header| {
        let Entry::Changed(change) = changed(object, header) else { unreachable!() };
        Entry::Changed(Change { spill: Some(Bytes::from_static(b"s")), ..change })
    };
    let deltas = vec![
        memory(vec![(spilled(1, &[1, 2, 0]), vec![])]),
        memory(vec![(changed(1, &[1, 9, 1]), vec![])]),
        memory(vec![(changed(1, &[1, 5, 2]), vec![])]),
    ];
    assert_eq!(told(deltas, true, &Slots), ["object 1 Some([1, 2, 2]) None fresh"]);
    let deltas = vec![
        memory(vec![(spilled(1, &[1, 2, 0]), vec![])]),
        memory(vec![(changed(1, &[1, 9, 1]), vec![])]),
    ];
    assert_eq!(told(deltas, true, &KeepAll), ["object 1 Some([1, 9, 1]) Some([115]) fresh"]);
}

#[test]
fn a_block_that_is_cut_keeps_its_whole() {
    let deltas = || {
        vec![
            memory(vec![(changed(1, &[1, 1]), vec![data(0, 100, 0), data(100, 100, 7)])]),
            memory(vec![(changed(1, &[1, 1]), vec![data(40, 10, 0), Extent::hole(120, 10)])]),
        ]
    };
    let pieces = [
        "data 0+40 0 of 0 Some(1000)",
        "data 40+10 0 of 0 Some(1000)",
        "data 50+50 50 of 0 Some(1050)",
        "data 100+20 0 of 7 None",
        "data 130+70 30 of 7 None",
    ];
    assert_eq!(told(deltas(), true, &KeepAll)[1..], pieces);
    let mut increment = pieces.to_vec();
    increment.insert(4, "hole 120+10");
    assert_eq!(told(deltas(), false, &KeepAll)[1..], increment);
}

#[test]
fn freed_ranges_join_and_split_around_what_is_there() {
    let deltas = || {
        vec![
            memory(vec![(Entry::Freed { first: 3, count: 7 }, vec![])]),
            memory(vec![
                (Entry::Freed { first: 0, count: 4 }, vec![]),
                (changed(5, &[1, 1]), vec![]),
                (Entry::Freed { first: 8, count: u64::MAX - 8 }, vec![]),
            ]),
        ]
    };
    let header = "object 5 Some([1, 1]) None fresh";
    assert_eq!(
        told(deltas(), false, &KeepAll),
        ["freed 0+5", header, &format!("freed 6+{}", u64::MAX - 6)]
    );
    assert_eq!(told(deltas(), true, &KeepAll), [header]);
}

#[test]
fn content_without_a_header_is_refused_in_a_whole_image() {
    let bare = || {
        let entry = Entry::Changed(Change { object: 9, ..Change::default() });
        vec![memory(vec![(entry, vec![data(0, 1, 0)])])]
    };
    let error = fold(bare(), true, &KeepAll, &mut Told::default()).unwrap_err();
    assert!(matches!(error, Error::NoHeader { object: 9 }), "{error}");
    assert_eq!(told(bare(), false, &KeepAll).len(), 2);
}
