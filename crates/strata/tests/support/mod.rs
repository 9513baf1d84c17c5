//! A naive image, random histories of it, and a comparison of the repository's fold with it.
#![allow(dead_code, reason = "each test takes what it needs")]

pub mod contract;
pub mod stores;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use strata::check::{self, Begun, Collected, Run, Terms};
use strata::delta::{Change, Descriptor, ImageOptions, ImageWriter, IndexOptions};
use strata::fold::{
    DataSink, Folded, Heritage, Reading, ReadingAhead, Rules, fold, is_full, open_chain,
};
use strata::lease::Still;
use strata::pack::{FrameReader, PackOptions};
use strata::store::{ObjectStorage, Retries, Storage, Store};
use strata::{Repository, Result};

/// Collects what nothing needs now, if no writer was interrupted.
pub fn collect(
    repository: &Repository,
    grace: u64,
    now: u64,
    is_dry_run: bool,
    still: Still<'_>,
) -> Result<Collected> {
    let run = if is_dry_run { Run::Dry } else { Run::Real };
    check::collect(repository, &Begun::default(), Terms::at(grace, now), run, still)
}

pub const IMAGE: &str = "image";
/// Offsets are small, so that many ranges overlap.
pub const SPACE: u64 = 4096;

/// A header of one byte each: generation, block size, whether it has a spill, an arbitrary byte, slots.
pub struct Model;

/// Block sizes between which an object may change; it keeps the smallest that it had.
pub const KINDRED: std::ops::RangeInclusive<u8> = 8..=9;
/// No object has more slots.
pub const MOST_SLOTS: u64 = 4;

/// Whether two headers belong to the same object.
fn is_same(older: &[u8], newer: &[u8]) -> bool {
    let kindred = KINDRED.contains(&older[1]) && KINDRED.contains(&newer[1]);
    older[0] == newer[0] && (older[1] == newer[1] || kindred)
}

impl Rules for Model {
    fn heritage(&self, older: &[u8], newer: &[u8]) -> Heritage {
        if !is_same(older, newer) {
            return Heritage::Dropped;
        }
        let header = (older[1] < newer[1])
            .then(|| Bytes::from([&newer[..1], &older[1..2], &newer[2..]].concat()));
        Heritage::Kept { header, spill: true }
    }

    fn slots(&self, header: &[u8]) -> u64 {
        header[4].into()
    }

    fn most_slots(&self) -> u64 {
        MOST_SLOTS
    }

    fn has_spill(&self, header: &[u8]) -> bool {
        header[2] != 0
    }
}

#[derive(Clone, Default, PartialEq, Eq)]
pub struct Object {
    pub header: Vec<u8>,
    pub spill: Option<Vec<u8>>,
    /// Zeros are holes.
    pub content: Vec<u8>,
}

impl std::fmt::Debug for Object {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut runs = Vec::new();
        for run in self.content.chunk_by(|a, b| a == b) {
            let from = runs.last().map_or(0, |(_, to, _)| *to);
            runs.push((from, from + run.len(), run[0]));
        }
        runs.retain(|(_, _, byte)| *byte != 0);
        write!(f, "{:?} {:?} {runs:?}", self.header, self.spill)
    }
}

impl Object {
    fn slots(&self) -> u64 {
        self.header[4].into()
    }
}

pub type Image = BTreeMap<u64, Object>;

/// What happens to one object in a step.
#[derive(Clone, Debug)]
pub enum Act {
    /// Offset, length, byte.
    Write(u64, u64, u8),
    Hole(u64, u64),
    Truncate(u64),
    Header(u8),
    /// Another block size of the same object: what the sender says and the receiver needn't adopt.
    Block(u8),
    Spill(u8),
}

#[derive(Clone, Debug)]
pub enum Step {
    Free(u64, u64),
    /// Another object with this number: its generation and block size.
    Create(u64, u8, u8, Vec<Act>),
    /// The same with several slots: what was in them is gone, whether the stream says so or not.
    Wide(u64, u8, u8, Vec<Act>),
    Change(u64, Vec<Act>),
}

pub fn folder_store(folder: &Path) -> Arc<dyn Storage> {
    Arc::new(ObjectStorage::folder(folder).unwrap())
}

/// Makes a store without a folder or fsync, for many short histories.
pub fn memory_store() -> Arc<dyn Storage> {
    let memory = Arc::new(object_store::memory::InMemory::new());
    Arc::new(ObjectStorage::on(memory, "", Default::default()).unwrap())
}

pub fn no_retries() -> Retries {
    Retries { tries: 1, first_pause: std::time::Duration::ZERO }
}

pub fn repository(storage: Arc<dyn Storage>) -> Repository {
    Repository::new(Store::shared(storage, no_retries()), "clusters/main", None).unwrap()
}

/// Returns options with small limits, so that a short history has many frames, packs, row groups and files.
pub fn small() -> ImageOptions {
    ImageOptions {
        frame_size: 700,
        packs: PackOptions { pack_size: 3000, level: 1, threads: 2, uploads: 1 },
        index: small_index(),
        resume: None,
    }
}

pub fn small_index() -> IndexOptions {
    IndexOptions { group_rows: 7, group_bytes: 500, file_groups: 3, spool: None }
}

/// What one delta says about an object.
#[derive(Default)]
struct Said {
    change: Change,
    block: Option<u8>,
    /// Ascending; `None` is a hole.
    extents: BTreeMap<u64, (u64, Option<Vec<u8>>)>,
}

/// Applies a step's acts to the image and writes the delta as a sender would: sorted, with only the final state.
pub fn write_delta(
    repository: &Repository,
    image: &mut Image,
    steps: &[Step],
    id: &str,
    base: Option<&str>,
    options: &ImageOptions,
) -> Result<Descriptor> {
    let before = image.clone();
    let mut said: BTreeMap<u64, Said> = BTreeMap::new();
    let mut touched: BTreeMap<u64, bool> = BTreeMap::new();
    for step in steps {
        match step {
            Step::Free(first, count) => {
                for number in *first..first + count {
                    image.remove(&number);
                    said.remove(&number);
                    touched.insert(number, false);
                }
            }
            Step::Create(number, generation, block, acts)
            | Step::Wide(number, generation, block, acts) => {
                let is_wide = matches!(step, Step::Wide(..));
                let slots = if is_wide { 2 + number % (MOST_SLOTS - 1) } else { 1 };
                // The object whose slots reach here, and the objects in the slots that it takes.
                let reaching = image.range(..number).next_back();
                let reaching = reaching.filter(|(at, object)| *at + object.slots() > *number);
                let reaching = reaching.map(|(at, _)| *at);
                for gone in reaching.into_iter().chain(number + 1..number + slots) {
                    image.remove(&gone);
                    said.remove(&gone);
                    touched.insert(gone, false);
                }
                let header = vec![*generation, *block, 1, 0, slots as u8];
                image.insert(
                    *number,
                    Object { header, content: vec![0; SPACE as usize], spill: None },
                );
                touched.insert(*number, true);
                let change = Change { fresh: true, ..Change::default() };
                said.insert(*number, Said { change, ..Said::default() });
                act(image, &mut said, *number, acts);
            }
            Step::Change(number, acts) if image.contains_key(number) => {
                touched.insert(*number, true);
                act(image, &mut said, *number, acts);
            }
            Step::Change(..) => {}
        }
    }
    let mut writer = ImageWriter::new(repository, IMAGE, id, base, options)?;
    let mut taken = 0;
    for (number, is_there) in touched {
        if !is_there {
            // What is in another object's slots needn't be freed; half of it is.
            if number >= taken || number % 2 == 0 {
                writer.freed(number, 1)?;
            }
            continue;
        }
        let Some(object) = image.get_mut(&number) else { continue };
        taken = number + object.slots();
        let mut said = said.remove(&number).unwrap_or_default();
        let mut header = object.header.clone();
        if let Some(block) = said.block {
            header[1] = block;
            // A new object has the block size that its sender says.
            let before = if said.change.fresh { block } else { object.header[1] };
            object.header[1] = before.min(block);
        }
        // Mark it as another object, unless the headers already differ.
        let old = before.get(&number);
        let is_other =
            old.is_some_and(|old| is_same(&old.header, &object.header) && said.change.fresh);
        said.change.object = number;
        said.change.fresh = is_other;
        said.change.header = Some(header.into());
        let spill = said.change.spill.take();
        writer.changed(said.change)?;
        for (offset, (length, data)) in said.extents {
            match data {
                Some(data) => writer.data(offset, &data)?,
                None => writer.hole(offset, length)?,
            }
        }
        if let Some(spill) = spill {
            writer.spill(spill)?;
        }
    }
    writer.finish()
}

/// Cuts a range out of what was said, and keeps what is outside of it.
fn cut(extents: &mut BTreeMap<u64, (u64, Option<Vec<u8>>)>, from: u64, to: u64) {
    let overlapping: Vec<u64> = extents
        .iter()
        .filter(|(at, (length, _))| **at < to && at.saturating_add(*length) > from)
        .map(|(at, _)| *at)
        .collect();
    for at in overlapping {
        let (length, data) = extents.remove(&at).unwrap();
        let end = at.saturating_add(length);
        if at < from {
            let data = data.clone().map(|data| data[..(from - at) as usize].to_vec());
            extents.insert(at, (from - at, data));
        }
        if end > to {
            let length = if length == u64::MAX { u64::MAX } else { end - to };
            extents.insert(to, (length, data.map(|data| data[(to - at) as usize..].to_vec())));
        }
    }
}

fn act(image: &mut Image, said: &mut BTreeMap<u64, Said>, number: u64, acts: &[Act]) {
    let object = image.get_mut(&number).unwrap();
    let said = said.entry(number).or_default();
    for act in acts {
        match *act {
            Act::Write(offset, length, byte) => {
                let range = offset as usize..(offset + length) as usize;
                object.content[range.clone()].fill(byte);
                object.content[range.start] = byte.wrapping_add(1) | 1;
                cut(&mut said.extents, offset, offset + length);
                let data = object.content[range].to_vec();
                said.extents.insert(offset, (length, Some(data)));
            }
            Act::Hole(offset, length) => {
                object.content[offset as usize..(offset + length) as usize].fill(0);
                cut(&mut said.extents, offset, offset + length);
                said.extents.insert(offset, (length, None));
            }
            Act::Truncate(offset) => {
                object.content[offset as usize..].fill(0);
                cut(&mut said.extents, offset, u64::MAX);
                said.change.tail = Some(said.change.tail.unwrap_or(offset).min(offset));
                if offset % 2 == 0 {
                    // Half of the truncations are also recorded as a hole, so that both forms are tested.
                    said.extents.insert(offset, (u64::MAX, None));
                }
            }
            Act::Header(byte) => object.header[3] = byte,
            Act::Block(block) => {
                if KINDRED.contains(&object.header[1]) {
                    said.block = Some(block);
                }
            }
            Act::Spill(0) => {
                object.header[2] = 0;
                object.spill = None;
                said.change.spill = None;
            }
            Act::Spill(byte) => {
                object.header[2] = 1;
                object.spill = Some(vec![byte; 20]);
                said.change.spill = object.spill.clone().map(Bytes::from);
            }
        }
        // What goes up to the end is the last thing that is said.
        if let Some((&at, _)) = said.extents.iter().find(|(_, (length, _))| *length == u64::MAX)
            && said.extents.range(at + 1..).next().is_some()
        {
            let next = *said.extents.range(at + 1..).next().unwrap().0;
            let (_, data) = said.extents.remove(&at).unwrap();
            said.extents.insert(at, (next - at, data));
            let (&last, (length, _)) = said.extents.iter().next_back().unwrap();
            said.extents.insert(last + length, (u64::MAX, None));
        }
    }
}

/// Builds the image that a fold reports, and checks the order of the reports.
#[derive(Default)]
pub struct Rebuild {
    pub image: Image,
    pub is_increment: bool,
    last: Option<u64>,
    position: u64,
}

impl DataSink for Rebuild {
    fn freed(&mut self, first: u64, count: u64) -> Result<()> {
        assert!(self.is_increment, "a full result frees nothing");
        assert!(self.last.is_none_or(|last| last < first));
        self.last = Some(first + (count - 1));
        self.image.retain(|number, _| !(first..first.saturating_add(count)).contains(number));
        Ok(())
    }

    fn object(&mut self, object: &Folded) -> Result<()> {
        assert!(self.last.is_none_or(|last| last < object.object));
        assert!(object.fresh || self.is_increment);
        self.last = Some(object.object);
        self.position = 0;
        if object.fresh {
            self.image.remove(&object.object);
        }
        let ours = self
            .image
            .entry(object.object)
            .or_insert_with(|| Object { content: vec![0; SPACE as usize], ..Object::default() });
        if let Some(header) = &object.header {
            if !ours.header.is_empty() && !is_same(&ours.header, header) {
                *ours = Object { content: vec![0; SPACE as usize], ..Object::default() };
            }
            let block = ours.header.get(1).map_or(header[1], |block| header[1].min(*block));
            ours.header = header.to_vec();
            ours.header[1] = block;
        }
        if let Some(spill) = &object.spill {
            assert_ne!(ours.header[2], 0, "a spill of an object that has none");
            ours.spill = Some(spill.to_vec());
        }
        if ours.header[2] == 0 {
            ours.spill = None;
        }
        let slots = ours.slots();
        self.image.retain(|at, _| !(object.object + 1..object.object + slots).contains(at));
        Ok(())
    }

    fn hole(&mut self, object: u64, offset: u64, length: u64) -> Result<()> {
        assert!(self.is_increment && offset >= self.position);
        self.position = offset.saturating_add(length);
        let end = self.position.min(SPACE);
        if offset < end {
            self.image.get_mut(&object).unwrap().content[offset as usize..end as usize].fill(0);
        }
        Ok(())
    }

    fn data(&mut self, object: u64, offset: u64, content: &Bytes) -> Result<()> {
        assert!(offset >= self.position && !content.is_empty());
        self.position = offset + content.len() as u64;
        let range = offset as usize..offset as usize + content.len();
        self.image.get_mut(&object).unwrap().content[range].copy_from_slice(content);
        Ok(())
    }
}

/// Returns the image that a chain folds to, from `base` if it is an increment.
pub fn restored(repository: &Repository, chain: &[Descriptor], base: &Image) -> Result<Image> {
    let image = restored_by(repository, chain, base, false, 1 << 20)?;
    // The result is the same with read-ahead, even if only the current frame is kept.
    assert_eq!(image, restored_by(repository, chain, base, true, 0)?, "read ahead");
    Ok(image)
}

/// Does the same with this many bytes of frames kept, with read-ahead or without.
pub fn restored_by(
    repository: &Repository,
    chain: &[Descriptor],
    base: &Image,
    ahead: bool,
    kept: usize,
) -> Result<Image> {
    let is_full = is_full(chain);
    let image = if is_full { Image::new() } else { base.clone() };
    let mut rebuild = Rebuild { image, is_increment: !is_full, ..Rebuild::default() };
    let mut frames = FrameReader::new(repository, kept);
    let deltas = open_chain(repository, chain, 1 << 20)?;
    if ahead {
        let mut reading = ReadingAhead::new(&mut frames, &mut rebuild)?;
        fold(deltas, is_full, &Model, &mut reading)?;
        reading.finish()?;
    } else {
        fold(deltas, is_full, &Model, &mut Reading::new(&mut frames, &mut rebuild))?;
    }
    Ok(rebuild.image)
}

/// Returns a random step on few objects.
pub fn random_step(random: &mut fastrand::Rng) -> Step {
    let number = random.u64(1..12);
    let acts =
        |random: &mut fastrand::Rng| (0..random.usize(0..5)).map(|_| random_act(random)).collect();
    let block = |random: &mut fastrand::Rng| *random.choice(&[1, 2, 8, 9]).unwrap_or(&1);
    match random.u8(0..10) {
        0 => Step::Free(number, random.u64(1..4)),
        1 => Step::Wide(number, random.u8(1..4), block(random), acts(random)),
        2..4 => Step::Create(number, random.u8(1..4), block(random), acts(random)),
        _ => Step::Change(number, acts(random)),
    }
}

fn random_act(random: &mut fastrand::Rng) -> Act {
    let offset = random.u64(..SPACE - 1);
    let length = random.u64(1..=(SPACE - offset).min(900));
    match random.u8(0..10) {
        0..5 => Act::Write(offset, length, random.u8(2..)),
        5 => Act::Hole(offset, length),
        6 => Act::Truncate(offset),
        7 => match random.bool() {
            true => Act::Header(random.u8(..)),
            false => Act::Block(random.u8(KINDRED)),
        },
        8 => Act::Spill(random.u8(..)),
        _ => Act::Spill(0),
    }
}

pub fn random_steps(random: &mut fastrand::Rng) -> Vec<Step> {
    (0..random.usize(0..15)).map(|_| random_step(random)).collect()
}

/// Does the same with more steps that remove what older deltas have: holes and truncations after writes.
pub fn dense_steps(random: &mut fastrand::Rng) -> Vec<Step> {
    let mut steps = random_steps(random);
    for _ in 0..random.usize(0..8) {
        let (from, offset) = (random.u64(..SPACE / 2), random.u64(..SPACE / 2));
        let write = Act::Write(from, SPACE / 2, random.u8(2..));
        let hole = Act::Hole(offset, random.u64(1..SPACE / 2));
        let act = *random.choice(&[0, 1, 2]).unwrap_or(&0);
        let act = [write, hole, Act::Truncate(offset)].into_iter().nth(act).unwrap();
        steps.push(Step::Change(random.u64(1..12), vec![act]));
    }
    steps
}
