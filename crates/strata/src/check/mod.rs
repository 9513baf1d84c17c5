//! Checks a repository, and deletes what nothing refers to.
//!
//! A check takes no lease: sets may be pruned and deltas merged while it reads. So before something is reported as
//! missing or damaged, it is looked at again: whether a set still needs it, and how it is in the store now, not how it
//! was listed.

mod again;
mod collect;
mod doomed;
mod inventory;
mod live;
mod locks;
mod look;
mod prolong;
mod survey;

pub use collect::{Collected, Run, Terms, collect};
pub use doomed::Doomed;
pub use inventory::Inventory;
pub(crate) use live::Live;
pub use locks::{Locks, lock_seconds};
pub use prolong::{Prolonged, Prolonging};
pub use survey::{Begun, Survey};

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::id::Ulid;
use crate::manifest::{DeltaId, Manifest};
use crate::repository::Repository;
use crate::store::{Listed, Reach, StoreErrorKind};
use look::Seen;

/// Options of a check.
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
    /// What is wrong, and which sets it affects.
    pub problems: Vec<Problem>,
    /// What no set needs: leftovers, or parts of a backup that is being written.
    pub orphans: Vec<String>,
    /// How many of these a collection has noted; they wait for their grace time.
    pub noted: usize,
    /// Half-written files, of writers that were killed or still run.
    pub half_written: Vec<Listed>,
    /// Objects of no known kind.
    pub foreign: Vec<String>,
    /// How many sets, deltas, packs and frames were looked at.
    pub counts: Counts,
    /// The check was ended early; then it isn't known what no set needs.
    pub is_partial: bool,
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
    /// All sets that it may affect: the manifest's own, those whose chains have the delta, or those whose chains name
    /// the pack.
    pub sets: Vec<String>,
    /// What is wrong.
    pub error: Error,
}

/// Where a problem is.
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
    /// Where each problem of the report is.
    places: Vec<Place>,
    /// What each set consists of.
    sets: BTreeMap<String, Vec<DeltaId>>,
    /// Deltas that were looked at.
    seen: BTreeMap<DeltaId, Seen>,
    /// Packs that are referred to, and by which deltas. There may be millions of them, of a few deltas.
    packs: BTreeMap<Ulid, Vec<Arc<DeltaId>>>,
    /// Index files that are referred to.
    files: BTreeSet<String>,
    /// The packs that sets needed when a pack was found that couldn't be read.
    needed: Option<BTreeSet<Ulid>>,
    told: Told<'a>,
}

/// Called with the number of bytes of packs that have been read and their total; both are 0 while indexes are read.
/// `false` ends the check.
pub type Told<'a> = &'a mut dyn FnMut(u64, u64) -> bool;

/// Checks everything that sets refer to, and lists what none does.
///
/// It returns an error if the store can't be listed. Whatever is wrong with an object is in the report, unless no set
/// needs the object any more by then. Memory is proportional to the number of objects.
pub fn check(repository: &Repository, options: &CheckOptions) -> Result<Report> {
    check_some(repository, options, |_| true, &mut |_, _| true)
}

/// Does the same, but reads only the packs that `is_chosen` selects. Once `told` returns `false`, it ends with what it
/// has found so far.
pub fn check_some(
    repository: &Repository,
    options: &CheckOptions,
    is_chosen: impl FnMut(Ulid) -> bool,
    told: Told<'_>,
) -> Result<Report> {
    let mut check = Check {
        repository,
        options,
        inventory: Inventory::take(repository)?,
        report: Report { half_written: half_written(repository)?, ..Report::default() },
        places: Vec::new(),
        sets: BTreeMap::new(),
        seen: BTreeMap::new(),
        packs: BTreeMap::new(),
        files: BTreeSet::new(),
        needed: None,
        told,
    };
    for set in check.inventory.sets.keys().cloned().collect::<Vec<_>>() {
        if !check.goes_on(0, 0) {
            break;
        }
        match again::manifest(repository, &set) {
            Ok(None) => continue,
            Ok(Some(manifest)) => {
                check.sets.insert(set.clone(), manifest.deltas.clone());
                manifest.deltas.into_iter().for_each(|delta| check.chain(&set, &delta));
            }
            Err(error) => check.problem(&set, Place::Manifest(set.clone()), error),
        }
        check.report.counts.sets += 1;
    }
    if options.read_data {
        check.read_packs(is_chosen);
    }
    check.finish()
}

/// The folders of objects above the parts of all clusters: docs/repository-format.md.
const ABOVE: [&str; 4] = ["", "keys", "leases", "leases/probe"];

/// Whether a path is that of an object above the parts of all clusters.
fn is_above(path: &str) -> bool {
    match path.rsplit_once('/') {
        None => path == "lockstep.json",
        Some(("keys", name)) => name.ends_with(".json"),
        Some(("leases", name)) => name == "reserve",
        Some((folder, _)) => folder == "leases/probe",
    }
}

/// Returns the half-written files, of writers that were killed or still run, in the repository and above the parts of
/// all clusters.
fn half_written(repository: &Repository) -> Result<Vec<Listed>> {
    let mut all = BTreeMap::new();
    let mut add = |listed: Listed| {
        all.insert(listed.path.clone(), listed);
    };
    let (store, folder) = (repository.store(), repository.path(""));
    store.half_written(folder.trim_end_matches('/'), Reach::Below, &mut add)?;
    if !folder.is_empty() {
        for above in ABOVE {
            store.half_written(above, Reach::Folder, &mut add)?;
        }
    }
    Ok(all.into_values().collect())
}

impl Check<'_> {
    /// Whether the check continues.
    fn goes_on(&mut self, read: u64, total: u64) -> bool {
        self.report.is_partial = self.report.is_partial || !(self.told)(read, total);
        !self.report.is_partial
    }

    fn problem(&mut self, set: &str, place: Place, error: Error) {
        // An object that couldn't be read because the program is ending may be fine.
        if matches!(&error, Error::Store(error) if error.kind == StoreErrorKind::Ending) {
            self.report.is_partial = true;
            return;
        }
        self.report.problems.push(Problem { set: set.to_string(), sets: Vec::new(), error });
        self.places.push(place);
    }

    /// Determines for each problem which sets it may affect.
    fn harm(&mut self) -> Result<()> {
        if self.places.is_empty() {
            return Ok(());
        }
        // Some sets may have been removed since they were read.
        let there: BTreeSet<String> = Manifest::list(self.repository)?.into_iter().collect();
        self.sets.retain(|set, _| there.contains(set));
        // The problems of each delta, including those of the packs that it names.
        let mut of_delta: BTreeMap<&DeltaId, Vec<usize>> = BTreeMap::new();
        for (index, place) in self.places.iter().enumerate() {
            let deltas: Vec<&DeltaId> = match place {
                Place::Manifest(set) => {
                    self.report.problems[index].sets.push(set.clone());
                    continue;
                }
                Place::Delta(delta) => vec![delta],
                Place::Pack(pack) => {
                    self.packs.get(pack).into_iter().flatten().map(|delta| &**delta).collect()
                }
            };
            deltas.into_iter().for_each(|delta| of_delta.entry(delta).or_default().push(index));
        }
        for (set, deltas) in &self.sets {
            let mut harmed: BTreeSet<usize> = BTreeSet::new();
            for delta in deltas {
                let (mut next, mut steps) = (Some(delta), 0);
                // A cycle has no more deltas than were seen.
                while let Some(delta) = next.filter(|_| steps <= self.seen.len()) {
                    harmed.extend(of_delta.get(delta).into_iter().flatten());
                    next = self.seen.get(delta).and_then(|seen| seen.base.as_ref());
                    steps += 1;
                }
            }
            for &index in &harmed {
                self.report.problems[index].sets.push(set.clone());
            }
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Report> {
        self.harm()?;
        self.report.counts.packs = self.packs.len() as u64;
        if self.report.is_partial {
            return Ok(self.report);
        }
        let orphans = &mut self.report.orphans;
        let packs = self.inventory.packs.keys().filter(|pack| !self.packs.contains_key(pack));
        orphans.extend(packs.map(|&pack| self.repository.pack_path(pack)));
        let indexes = self.inventory.indexes.keys().filter(|path| !self.files.contains(*path));
        orphans.extend(indexes.cloned());
        let deltas =
            self.inventory.deltas.iter().filter(|(delta, _)| !self.seen.contains_key(delta));
        orphans.extend(deltas.map(|(_, listed)| listed.path.clone()));
        if !orphans.is_empty() {
            let noted = doomed::Doomed::read(self.repository)?;
            self.report.noted = orphans.iter().filter(|path| noted.since(path).is_some()).count();
        }
        let known = |path: &String| {
            let path = self.repository.relative(path);
            self.options.known.iter().any(|known| {
                path == known || (known.ends_with('/') && path.starts_with(known.as_str()))
            })
        };
        self.report.foreign = self.inventory.foreign.into_iter().filter(|at| !known(at)).collect();
        Ok(self.report)
    }
}
