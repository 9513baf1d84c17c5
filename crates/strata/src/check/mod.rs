//! Checking a repository, and clearing away what nothing refers to.

mod collect;
mod doomed;
mod inventory;
mod live;

pub use collect::{Collected, collect};
pub use inventory::Inventory;
pub(crate) use live::Live;

use std::collections::{BTreeMap, BTreeSet};

use crate::delta::{Delta, DeltaReader, Descriptor, ReadOptions, packs, read_descriptor};
use crate::error::{Error, Result};
use crate::id::Ulid;
use crate::manifest::{DeltaId, Manifest};
use crate::pack::walk;
use crate::repository::Repository;

/// What a check does beside looking at what is there.
#[derive(Clone, Debug, Default)]
pub struct CheckOptions {
    /// Read all packs, not only the indexes.
    pub read_data: bool,
    /// Paths and folders (`wal/`) that others keep in the repository's folder.
    pub known: Vec<String>,
}

/// What a check found.
#[derive(Debug, Default)]
pub struct Report {
    /// What is wrong, and the sets that it harms.
    pub problems: Vec<Problem>,
    /// What no set needs: leftovers, or a backup that is being written.
    pub orphans: Vec<String>,
    /// What nobody knows.
    pub foreign: Vec<String>,
    /// Sets, deltas, packs and frames that were looked at.
    pub counts: Counts,
}

/// How much was looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Manifests.
    pub sets: u64,
    /// Deltas whose indexes were read.
    pub deltas: u64,
    /// Packs that are referred to.
    pub packs: u64,
    /// Frames that were read.
    pub frames: u64,
}

/// Something wrong.
#[derive(Debug)]
pub struct Problem {
    /// The set through which it was found.
    pub set: String,
    /// All sets that it may harm: whose manifest it is in, whose chain has the delta, or one that names the pack.
    pub sets: Vec<String>,
    /// What is wrong.
    pub error: Error,
}

/// What a problem is in.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Manifest(String),
    Delta(DeltaId),
    Pack(Ulid),
}

struct Check<'a> {
    repository: &'a Repository,
    options: &'a CheckOptions,
    inventory: Inventory,
    report: Report,
    /// What each problem of the report is in.
    places: Vec<Place>,
    /// What each set consists of.
    sets: BTreeMap<String, Vec<DeltaId>>,
    /// Deltas that were looked at, and their bases as far as they are known.
    seen: BTreeMap<DeltaId, Option<DeltaId>>,
    /// Packs that are referred to, by which set first, and by which deltas.
    packs: BTreeMap<Ulid, (String, Vec<DeltaId>)>,
    /// Index files that are referred to.
    files: BTreeSet<String>,
}

/// Checks everything that a set refers to, and lists what none does.
///
/// The error is that of a store that can't be listed; whatever is wrong with an object is in the report. Memory is
/// in proportion to the number of objects.
pub fn check(repository: &Repository, options: &CheckOptions) -> Result<Report> {
    check_some(repository, options, |_| true)
}

/// The same, and of the packs only those are read that `is_chosen`.
pub fn check_some(
    repository: &Repository,
    options: &CheckOptions,
    is_chosen: impl FnMut(Ulid) -> bool,
) -> Result<Report> {
    let mut check = Check {
        repository,
        options,
        inventory: Inventory::take(repository)?,
        report: Report::default(),
        places: Vec::new(),
        sets: BTreeMap::new(),
        seen: BTreeMap::new(),
        packs: BTreeMap::new(),
        files: BTreeSet::new(),
    };
    for set in check.inventory.sets.clone() {
        check.report.counts.sets += 1;
        match Manifest::read(repository, &set) {
            Ok(manifest) => {
                check.sets.insert(set.clone(), manifest.deltas.clone());
                manifest.deltas.into_iter().for_each(|delta| check.chain(&set, delta));
            }
            Err(error) => check.problem(&set, Place::Manifest(set.clone()), error),
        }
    }
    if options.read_data {
        check.read_packs(is_chosen);
    }
    Ok(check.finish())
}

impl Check<'_> {
    fn problem(&mut self, set: &str, place: Place, error: Error) {
        self.report.problems.push(Problem { set: set.to_string(), sets: Vec::new(), error });
        self.places.push(place);
    }

    /// Looks at a delta and at all that it comes from.
    fn chain(&mut self, set: &str, delta: DeltaId) {
        let mut next = Some(delta);
        while let Some(delta) = next.take() {
            if self.seen.contains_key(&delta) {
                // Known, or a circle; what was wrong with it has been said.
                return;
            }
            self.seen.insert(delta.clone(), None);
            match read_descriptor(self.repository, &delta.image, &delta.id) {
                Ok(descriptor) => {
                    self.report.counts.deltas += 1;
                    if let Err(error) = self.index(set, &delta, &descriptor) {
                        self.problem(set, Place::Delta(delta.clone()), error);
                    }
                    next = descriptor.base.map(|id| DeltaId { image: delta.image.clone(), id });
                    self.seen.insert(delta, next.clone());
                }
                Err(error) => self.problem(set, Place::Delta(delta), error),
            }
        }
    }

    /// Reads a delta's index whole: its hashes, its order, and whether its frames lie within packs that are there.
    fn index(&mut self, set: &str, delta: &DeltaId, descriptor: &Descriptor) -> Result<()> {
        for file in descriptor.files() {
            let path = self.repository.image_path(&descriptor.image, &file.name);
            self.files.insert(path.clone());
            match self.inventory.indexes.get(&path) {
                Some(listed) if listed.size == file.size => {}
                Some(listed) => {
                    let why = format!("it has {} bytes, not {}", listed.size, file.size);
                    let error = Error::damaged(&path, listed.size.min(file.size), why);
                    self.problem(set, Place::Delta(delta.clone()), error);
                }
                None => self.missing(set, Place::Delta(delta.clone()), &path),
            }
        }
        let mut sizes = BTreeMap::new();
        packs(self.repository, descriptor, |row| {
            sizes.insert(row.pack, row.size);
            Ok(())
        })?;
        for (&pack, &size) in &sizes {
            if let Some((_, deltas)) = self.packs.get_mut(&pack) {
                deltas.push(delta.clone());
                continue;
            }
            self.packs.insert(pack, (set.to_string(), vec![delta.clone()]));
            let path = self.repository.pack_path(pack);
            match self.inventory.packs.get(&pack).map(|listed| listed.size) {
                Some(found) if found == size => {}
                Some(found) => {
                    let why = format!("it has {found} bytes, not {size}");
                    let error = Error::damaged(&path, found.min(size), why);
                    self.problem(set, Place::Pack(pack), error);
                }
                None => self.missing(set, Place::Pack(pack), &path),
            }
        }
        let mut reader =
            DeltaReader::new(self.repository, descriptor.clone(), ReadOptions::default());
        reader.next_entry()?;
        while reader.entry().is_some() {
            while let Some(extent) = reader.extent() {
                if let Some(block) = &extent.block {
                    let at = block.location;
                    let end = at.frame.checked_add(at.frame_length);
                    if end.is_none_or(|end| sizes.get(&at.pack).is_none_or(|&size| end > size)) {
                        let path = self.repository.pack_path(at.pack);
                        let why = format!("delta \"{}\" has a frame beyond it", descriptor.id);
                        return Err(Error::damaged(&path, at.frame, why));
                    }
                }
                reader.next_extent()?;
            }
            reader.next_entry()?;
        }
        Ok(())
    }

    fn missing(&mut self, set: &str, place: Place, path: &str) {
        let kind = crate::store::StoreErrorKind::NotFound;
        self.problem(set, place, crate::store::StoreError::new("find", path, kind).into());
    }

    /// Reads the packs that are there and chosen.
    fn read_packs(&mut self, mut is_chosen: impl FnMut(Ulid) -> bool) {
        let packs = std::mem::take(&mut self.packs);
        for (&pack, (set, _)) in packs.iter().filter(|(pack, _)| is_chosen(**pack)) {
            if let Some(size) = self.inventory.packs.get(&pack).map(|listed| listed.size) {
                let mut frames = 0;
                let result = walk(self.repository, pack, size, |_, _, _| {
                    frames += 1;
                    Ok(())
                });
                self.report.counts.frames += frames;
                if let Err(error) = result {
                    self.problem(set, Place::Pack(pack), error);
                }
            }
        }
        self.packs = packs;
    }

    /// Says of each problem which sets it may harm.
    fn harm(&mut self) {
        if self.places.is_empty() {
            return;
        }
        // The problems of each delta, with those of the packs that it names.
        let mut of_delta: BTreeMap<&DeltaId, Vec<usize>> = BTreeMap::new();
        for (index, place) in self.places.iter().enumerate() {
            let deltas = match place {
                Place::Manifest(set) => {
                    self.report.problems[index].sets.push(set.clone());
                    continue;
                }
                Place::Delta(delta) => std::slice::from_ref(delta),
                Place::Pack(pack) => self.packs.get(pack).map_or(&[][..], |(_, deltas)| deltas),
            };
            deltas.iter().for_each(|delta| of_delta.entry(delta).or_default().push(index));
        }
        for (set, deltas) in &self.sets {
            let mut harmed: BTreeSet<usize> = BTreeSet::new();
            for delta in deltas {
                let (mut next, mut steps) = (Some(delta), 0);
                // A circle has no more deltas than there are.
                while let Some(delta) = next.filter(|_| steps <= self.seen.len()) {
                    harmed.extend(of_delta.get(delta).into_iter().flatten());
                    next = self.seen.get(delta).and_then(Option::as_ref);
                    steps += 1;
                }
            }
            for &index in &harmed {
                self.report.problems[index].sets.push(set.clone());
            }
        }
    }

    fn finish(mut self) -> Report {
        self.harm();
        self.report.counts.packs = self.packs.len() as u64;
        let orphans = &mut self.report.orphans;
        let packs = self.inventory.packs.keys().filter(|pack| !self.packs.contains_key(pack));
        orphans.extend(packs.map(|&pack| self.repository.pack_path(pack)));
        let indexes = self.inventory.indexes.keys().filter(|path| !self.files.contains(*path));
        orphans.extend(indexes.cloned());
        let deltas =
            self.inventory.deltas.iter().filter(|(delta, _)| !self.seen.contains_key(delta));
        orphans.extend(deltas.map(|(_, listed)| listed.path.clone()));
        let known = |path: &String| {
            let path = self.repository.relative(path);
            self.options.known.iter().any(|known| {
                path == known || (known.ends_with('/') && path.starts_with(known.as_str()))
            })
        };
        self.report.foreign = self.inventory.foreign.into_iter().filter(|at| !known(at)).collect();
        self.report
    }
}
