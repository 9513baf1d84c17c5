//! Checks that everything a delta needs is there: the deltas that it is based on, their index files and their packs,
//! each with its size. Nothing is put on top of a delta that isn't whole.
//!
//! What could go wrong: a half-done collection, object locks that ran out one by one, a lost pack. A delta on top of
//! such a chain would be published as complete, and so would everything after it.
//!
//! It costs little. The image's folder is listed; only those deltas are read that weren't there the last time; and
//! packs are asked for one by one or, if they are many, listed. What deltas refer to is remembered on this host, and
//! verified before anything is reported as missing. No content is read; but what needs a pack that a check has found
//! damaged isn't whole either (`damage.rs`).

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use strata::check::Doomed;
use strata::delta::{Descriptor, packs, read_descriptor};
use strata::store::StoreErrorKind;
use strata::{read_many, store::StoreError};

use super::damage::{self, Damaged};
use super::image::ImageState;
use super::shipped::FILES_IMAGE;
use super::{Repository, of_store, of_strata};
use crate::context::lockstep;
use crate::error::Result;
use crate::files;

/// How many packs are asked for one by one; beyond this, they are listed.
const FEW: usize = 16;

/// The form of what is remembered on this host.
const VERSION: u32 = 1;

/// Examines one repository, each object once.
pub struct Wholeness<'a> {
    repository: &'a Repository,
    /// Where this host remembers what deltas refer to.
    memory: &'a Path,
    packs: RefCell<Packs>,
    /// Packs that a check has found damaged.
    damaged: Damaged,
    /// Images that were listed.
    images: RefCell<BTreeMap<String, Listing>>,
    /// Doesn't report what isn't whole: the caller does.
    is_silent: bool,
    /// Many sets are examined: of sets' own files, too, everything unknown is read.
    is_of_many: bool,
    /// Something was found that isn't whole.
    has_found: Cell<bool>,
}

/// Names in an image's folder, with size and time.
type Listing = BTreeMap<String, (u64, u64)>;

#[derive(Default)]
struct Packs {
    /// By name; `None` if it isn't there.
    sizes: BTreeMap<String, Option<u64>>,
    are_listed: bool,
}

/// What a delta refers to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Refers {
    /// The descriptor's size: another size or time means that the delta was written again.
    size: u64,
    modified: u64,
    base: Option<String>,
    /// Index files and packs, with their sizes.
    files: Vec<(String, u64)>,
    packs: Vec<(String, u64)>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Remembered {
    version: u32,
    /// The repository's own id.
    repository: String,
    deltas: BTreeMap<String, Refers>,
}

/// The deltas of an image.
pub struct ImageDeltas<'a> {
    of: &'a Wholeness<'a>,
    image: String,
    /// The content of its folder.
    listed: Listing,
    /// What deltas refer to, or what is wrong with them.
    known: RefCell<BTreeMap<String, Result<Refers, String>>>,
    /// Whether some of that is remembered from the last time.
    is_remembered: Cell<bool>,
    /// The findings; `None` means that the delta is whole.
    found: RefCell<BTreeMap<String, Option<String>>>,
}

impl<'a> Wholeness<'a> {
    /// Looks at nothing yet. `memory` is a folder of this repository's own.
    #[must_use]
    pub fn new(repository: &'a Repository, memory: &'a Path) -> Self {
        Self {
            repository,
            memory,
            packs: RefCell::default(),
            damaged: damage::noted(memory, &repository.id),
            images: RefCell::default(),
            is_silent: false,
            is_of_many: false,
            has_found: Cell::new(false),
        }
    }

    /// The same for this many sets, without reporting what isn't whole.
    #[must_use]
    pub fn silent(self, sets: usize) -> Self {
        Self { is_silent: true, is_of_many: sets > 1, ..self }
    }

    /// Returns whether something was found that exists and isn't whole.
    #[must_use]
    pub fn has_found(&self) -> bool {
        self.has_found.get()
    }

    fn listed(&self, image: &str) -> Result<Listing> {
        if let Some(listed) = self.images.borrow().get(image) {
            return Ok(listed.clone());
        }
        let folder = self.repository.strata.path(&format!("volumes/{image}"));
        let mut listed = BTreeMap::new();
        let list = self.repository.strata.store().list(&folder, |object| {
            let name = object.path.rsplit('/').next().unwrap_or_default();
            listed.insert(name.to_owned(), (object.size, object.modified));
        });
        list.map_err(of_store)?;
        self.images.borrow_mut().insert(image.to_owned(), listed.clone());
        Ok(listed)
    }

    /// Lists an image's deltas.
    ///
    /// # Errors
    /// When the store fails.
    pub fn image(&'a self, image: &str) -> Result<ImageDeltas<'a>> {
        let listed = self.listed(image)?;
        let mut known = recall(&self.path(image), &self.repository.id);
        known.retain(|id, refers| {
            listed.get(&descriptor_name(id)) == Some(&(refers.size, refers.modified))
        });
        Ok(ImageDeltas {
            of: self,
            image: image.to_owned(),
            listed,
            is_remembered: Cell::new(!known.is_empty()),
            known: RefCell::new(known.into_iter().map(|(id, refers)| (id, Ok(refers))).collect()),
            found: RefCell::default(),
        })
    }

    fn path(&self, image: &str) -> PathBuf {
        self.memory.join(format!("{image}.json"))
    }

    /// Finds the sizes of packs.
    fn ask(&self, names: &BTreeSet<&str>) -> Result<()> {
        let mut packs = self.packs.borrow_mut();
        let unknown: Vec<&str> =
            names.iter().copied().filter(|name| !packs.sizes.contains_key(*name)).collect();
        if packs.are_listed || unknown.is_empty() {
            return Ok(());
        }
        let (strata, store) = (&self.repository.strata, self.repository.strata.store());
        if unknown.len() > FEW {
            let list = store.list(&strata.path("packs"), |object| {
                let name = object.path.rsplit('/').next().unwrap_or_default();
                packs.sizes.insert(name.to_owned(), Some(object.size));
            });
            packs.are_listed = true;
            return list.map_err(of_store);
        }
        let size = |name: &&str| store.size(&strata.path(&format!("packs/{name}")));
        let asked = read_many::<_, _, StoreError>(&unknown, size, |name, size| {
            let size = match size {
                Err(error) if error.kind == StoreErrorKind::NotFound => None,
                size => Some(size?),
            };
            packs.sizes.insert((*name).to_owned(), size);
            Ok(())
        });
        asked.map_err(of_store)
    }
}

impl ImageDeltas<'_> {
    /// Returns the deltas, whole or not.
    pub fn ids(&self) -> impl Iterator<Item = &str> {
        let names = self.listed.keys().filter_map(|name| name.strip_suffix(".json"));
        names.filter(|id| strata::check_name("delta", id).is_ok())
    }

    /// Checks that a delta exists, whole or not.
    #[must_use]
    pub fn has(&self, id: &str) -> bool {
        self.listed.contains_key(&descriptor_name(id))
    }

    /// Returns the delta's descriptor, if it exists and is whole. One that isn't whole is reported once.
    ///
    /// # Errors
    /// When the store fails.
    pub fn whole(&self, id: &str) -> Result<Option<Descriptor>> {
        if !self.is_whole(id)? {
            return Ok(None);
        }
        match read_descriptor(&self.of.repository.strata, &self.image, id) {
            Err(error) if is_harm(&error) => {
                self.tell(id, &error.to_string());
                self.found.borrow_mut().insert(id.to_owned(), Some(error.to_string()));
                Ok(None)
            }
            read => read.map(Some).map_err(of_strata),
        }
    }

    /// Returns what a delta that is about to be replaced left out, by object and generation: deltas based on it count
    /// on all the rest. Nothing if that can't be read any more; `None` if there is no such delta. A delta that is
    /// gone counts as existing if others are based on it; with `thorough`, this also looks at those whose base isn't
    /// known yet.
    ///
    /// # Errors
    /// When the store fails.
    pub fn left_out(&self, id: &str, thorough: bool) -> Result<Option<BTreeSet<(u64, u64)>>> {
        if !self.has(id) {
            if thorough {
                self.read_unknown(|_| true)?;
            }
            let known = self.known.borrow();
            let mut bases =
                known.values().filter_map(|refers| refers.as_ref().ok()?.base.as_deref());
            return Ok(bases.any(|base| base == id).then(BTreeSet::new));
        }
        let descriptor = match read_descriptor(&self.of.repository.strata, &self.image, id) {
            Err(error) if is_harm(&error) => return Ok(Some(BTreeSet::new())),
            read => read.map_err(of_strata)?,
        };
        let left_out = ImageState::of(&descriptor).map(|state| state.left_out_objects);
        Ok(Some(left_out.unwrap_or_default().into_iter().collect()))
    }

    /// Checks that the delta exists and is whole. One that isn't whole is reported once.
    ///
    /// # Errors
    /// When the store fails.
    pub fn is_whole(&self, id: &str) -> Result<bool> {
        if !self.has(id) {
            return Ok(false);
        }
        if let Some(found) = self.found.borrow().get(id) {
            return Ok(found.is_none());
        }
        if !self.walk(id)? && self.is_remembered.replace(false) {
            // What is remembered may be wrong.
            self.known.borrow_mut().clear();
            self.found.borrow_mut().clear();
            self.walk(id)?;
        }
        let why = self.found.borrow().get(id).cloned().flatten();
        if let Some(why) = &why {
            self.tell(id, why);
        }
        Ok(why.is_none())
    }

    /// Returns why a delta is missing or isn't whole.
    ///
    /// # Errors
    /// When the store fails.
    pub fn why_not_whole(&self, id: &str) -> Result<Option<String>> {
        if self.is_whole(id)? {
            return Ok(None);
        }
        let why = self.found.borrow().get(id).cloned().flatten();
        Ok(Some(why.unwrap_or_else(|| format!("delta \"{id}\" is gone"))))
    }

    /// Returns what of a delta and its whole chain is `noted` as needed by nobody. For a missing delta, that is only
    /// its name.
    ///
    /// # Errors
    /// When the store fails.
    pub fn noted(&self, id: &str, noted: &Doomed) -> Result<Vec<String>> {
        let (mut found, mut seen) = (Vec::new(), BTreeSet::new());
        let mut next = Some(id.to_owned()).filter(|_| !noted.is_empty());
        let strata = &self.of.repository.strata;
        let mut look = |path: String| found.extend(noted.since(&path).map(|_| path));
        while let Some(id) = next.take().filter(|id| seen.insert(id.clone())) {
            look(strata.image_path(&self.image, &descriptor_name(&id)));
            if !self.has(&id) {
                break;
            }
            let Ok(refers) = self.refers(&id)? else { break };
            let files = refers.files.iter();
            files.for_each(|(name, _)| look(strata.image_path(&self.image, name)));
            refers.packs.iter().for_each(|(name, _)| look(strata.path(&format!("packs/{name}"))));
            next = refers.base;
        }
        Ok(found)
    }

    fn tell(&self, id: &str, why: &str) {
        self.of.has_found.set(true);
        if self.of.is_silent {
            return;
        }
        tracing::warn!(
            repository = %self.of.repository.name, image = %self.image, delta = %id,
            "not whole, so nothing new is based on it: {why}; `{} repo check {}` says which sets it harms",
            lockstep(),
            self.of.repository.name
        );
    }

    /// Follows the delta's chain back, and records what is found for each delta in it.
    fn walk(&self, id: &str) -> Result<bool> {
        let (mut chain, mut why) = (Vec::<(String, Refers)>::new(), None);
        let mut next = Some(id.to_owned());
        while let Some(id) = next.take() {
            if let Some(found) = self.found.borrow().get(&id) {
                why.clone_from(found);
                break;
            }
            if chain.iter().any(|(seen, _)| *seen == id) {
                why = Some(format!("delta \"{id}\" comes from itself"));
                break;
            }
            match self.refers(&id)? {
                Ok(refers) => {
                    next.clone_from(&refers.base);
                    chain.push((id, refers));
                }
                Err(wrong) => {
                    why = Some(wrong.clone());
                    self.found.borrow_mut().insert(id, Some(wrong));
                    break;
                }
            }
        }
        let needed = chain.iter().flat_map(|(_, refers)| &refers.packs);
        self.of.ask(&needed.map(|(name, _)| name.as_str()).collect())?;
        for (id, refers) in chain.iter().rev() {
            why = why.or_else(|| self.lacks(id, refers));
            self.found.borrow_mut().insert(id.clone(), why.clone());
        }
        Ok(why.is_none())
    }

    /// Returns which of the delta's own files are missing or known to be damaged.
    fn lacks(&self, id: &str, refers: &Refers) -> Option<String> {
        let packs = self.of.packs.borrow();
        let files = refers
            .files
            .iter()
            .map(|(name, size)| (name, *size, self.listed.get(name).map(|(size, _)| *size)));
        let packs = refers
            .packs
            .iter()
            .map(|(name, size)| (name, *size, packs.sizes.get(name).copied().flatten()));
        let Some((name, size, found)) =
            files.chain(packs).find(|(_, size, found)| *found != Some(*size))
        else {
            let damaged = |(name, _): &(String, u64)| self.of.damaged.get(name);
            let why = refers.packs.iter().find_map(damaged)?;
            return Some(format!("{why}, as a check has found, and delta \"{id}\" needs it"));
        };
        Some(match found {
            None => format!("\"{name}\" of delta \"{id}\" is gone"),
            Some(found) => format!("\"{name}\" of delta \"{id}\" has {found} bytes, not {size}"),
        })
    }

    /// Returns what a delta refers to, or what is wrong with it. If that isn't known, all other unknown deltas are
    /// read along with it: most of them are in the same chain. Each of the sets' own files is alone.
    fn refers(&self, id: &str) -> Result<Result<Refers, String>> {
        if !self.known.borrow().contains_key(id) {
            let is_alone = self.image == FILES_IMAGE && !self.of.is_of_many;
            self.read_unknown(|other| other == id || !is_alone)?;
        }
        let gone = || Err(format!("delta \"{id}\" is gone"));
        Ok(self.known.borrow().get(id).cloned().unwrap_or_else(gone))
    }

    /// Reads the deltas that are `wanted` and for which it isn't yet known what they refer to.
    fn read_unknown(&self, wanted: impl Fn(&str) -> bool) -> Result<()> {
        let unknown: Vec<String> = {
            let known = self.known.borrow();
            let unknown = self.ids().filter(|id| !known.contains_key(*id) && wanted(id));
            unknown.map(str::to_owned).collect()
        };
        let (strata, image, listed) = (&self.of.repository.strata, &self.image, &self.listed);
        let read = |id: &String| read(strata, image, id, listed.get(&descriptor_name(id)));
        read_many(&unknown, read, |id, refers| {
            let refers = match refers {
                Err(error) if is_harm(&error) => Err(error.to_string()),
                refers => Ok(refers.map_err(of_strata)?),
            };
            self.known.borrow_mut().insert(id.clone(), refers);
            Ok::<_, crate::error::Error>(())
        })?;
        self.remember();
        Ok(())
    }

    /// Keeps what is known for the next time. Nothing depends on it.
    fn remember(&self) {
        let known = self.known.borrow();
        let whole = known
            .iter()
            .filter_map(|(id, refers)| Some((id.clone(), refers.as_ref().ok().cloned()?)));
        let remembered = Remembered {
            version: VERSION,
            repository: self.of.repository.id.clone(),
            deltas: whole.collect(),
        };
        let kept = files::create_directories(self.of.memory).and_then(|()| {
            let bytes = serde_json::to_vec(&remembered)
                .map_err(crate::set::manifest::json("remember what deltas refer to"))?;
            files::publish(&self.of.path(&self.image), &bytes)
        });
        if let Err(error) = kept {
            tracing::debug!(error = %error.chain(), "what deltas refer to is read again the next time");
        }
    }
}

fn descriptor_name(id: &str) -> String {
    format!("{id}.json")
}

/// The object is damaged or gone, as opposed to a store that fails for now.
fn is_harm(error: &strata::Error) -> bool {
    use strata::Error::{Chain, Damaged, Invalid, Order};
    error.is_not_found()
        || matches!(error, Damaged { .. } | Chain { .. } | Invalid { .. } | Order { .. })
}

fn read(
    strata: &strata::Repository,
    image: &str,
    id: &str,
    listed: Option<&(u64, u64)>,
) -> strata::Result<Refers> {
    let descriptor = read_descriptor(strata, image, id)?;
    let mut named = Vec::new();
    packs(strata, &descriptor, |row| {
        named.push((row.pack.to_string(), row.size));
        Ok(())
    })?;
    let (size, modified) = listed.copied().unwrap_or_default();
    let files = descriptor.files().map(|file| (file.name.clone(), file.size)).collect();
    Ok(Refers { size, modified, base: descriptor.base, files, packs: named })
}

/// Returns what was remembered; nothing if it is another repository's, malformed or missing.
fn recall(path: &Path, repository: &str) -> BTreeMap<String, Refers> {
    let bytes = std::fs::read(path).unwrap_or_default();
    match serde_json::from_slice::<Remembered>(&bytes) {
        Ok(known) if known.version == VERSION && known.repository == repository => known.deltas,
        _ => BTreeMap::new(),
    }
}

#[cfg(test)]
#[path = "whole_tests.rs"]
mod tests;
