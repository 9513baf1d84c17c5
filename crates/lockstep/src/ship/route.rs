//! Prepares a volume's shipment: what its snapshot is an increment to, what is known of the base's pages, and which
//! file is which.
//!
//! What could go wrong: a base that isn't what the repository has. So it is found by GUID, never by name, and the
//! stream states again what it is an increment to.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::{Path, PathBuf};

use strata::check::Doomed;
use strata::delta::Descriptor;

use super::Extent;
use super::raw::RawWay;
use super::tags::{Of, PAGE, Tags, or_none};
use super::volume::{Job, Shipment, shipped};
use super::walk::{Walked, walk};
use crate::error::{Error, Result};
use crate::repository::Repository;
use crate::repository::image::{ImageState, image_name};
use crate::repository::shipped::ShippedVolume;
use crate::repository::whole::Wholeness;
use crate::set::manifest::SetVolume;
use crate::volume::zfs::{
    Base, DatasetName, KEPT, KEPT_IF_KNOWN, Properties, SnapshotName, Zfs, is_set, mountpoints_in,
};

/// Returns the datasets' properties that restored copies get too, and where they are mounted, in one command.
///
/// # Errors
/// When ZFS fails.
pub fn properties(
    zfs: &Zfs,
    datasets: &[DatasetName],
) -> Result<(Properties, BTreeMap<DatasetName, PathBuf>)> {
    let names: Vec<_> = datasets.iter().map(DatasetName::to_string).collect();
    let known: Vec<_> = KEPT.into_iter().chain(["mountpoint"]).collect();
    let mut all = zfs.get_known(&names, &known, &KEPT_IF_KNOWN)?;
    let mounted = mountpoints_in(datasets, &all);
    all.values_mut()
        .for_each(|of| of.retain(|name, value| name != "mountpoint" && is_set(name, value)));
    Ok((all, mounted))
}

/// A volume's route, before its shipment begins.
pub struct Route<'a> {
    /// The volume.
    pub volume: &'a SetVolume,
    /// What is noted as needed by nobody, but will be needed.
    pub noted: Vec<String>,
    way: Way,
}

enum Way {
    /// Parsed into objects and blocks.
    Plain(Box<Plain>),
    /// As it is encrypted on disk.
    Raw(Box<RawWay>),
}

struct Plain {
    /// Its delta, if an interrupted shipment already stored it.
    there: Option<Descriptor>,
    /// What it is an increment to.
    base: Option<(Base, ImageState)>,
    /// What the delta that it replaces left out.
    replaced: Option<BTreeSet<(u64, u64)>>,
    /// What is known of the base's pages.
    tags: Option<Tags>,
    /// Which file is which.
    walked: Walked,
}

/// Finds what the volume's snapshot is an increment to: the newest snapshot or bookmark that the repository has too,
/// with its whole chain. With `raw` it is looked for among what was sent raw, otherwise among the rest. A full
/// shipment has no base.
///
/// # Errors
/// When ZFS or the store fails.
pub fn route<'a>(
    bases: &Bases<'_>,
    there: &Wholeness<'_>,
    volume: &'a SetVolume,
    how: How<'_>,
) -> Result<Route<'a>> {
    if how.raw {
        let way = RawWay::find(bases, there, volume, how)?;
        let noted = way.noted(there, volume, how.noted)?;
        return Ok(Route { volume, noted, way: Way::Raw(Box::new(way)) });
    }
    let deltas = there.image(&image_name(&volume.dataset))?;
    let guid = volume.guid.to_string();
    let mut noted = deltas.noted(&guid, how.noted)?;
    if !how.is_full()
        && let Some(descriptor) = deltas.whole(&guid)?
    {
        return Ok(Route { volume, noted, way: plain(Some(descriptor), None, None) });
    }
    // A delta that isn't whole is written again and replaces the old one. The snapshot is the same, and if nothing
    // more is left out, so is what all deltas based on it are folded with.
    let replaced = deltas.left_out(&guid, how.is_full())?;
    if how.is_full() {
        return Ok(Route { volume, noted, way: plain(None, None, replaced) });
    }
    let failed = Cell::new(None);
    let is_known = |base: &Base| {
        deltas.is_whole(&base.guid.to_string()).unwrap_or_else(|error| {
            failed.set(Some(error));
            false
        })
    };
    let found = bases.of(volume, is_known)?;
    let mut base = None;
    for candidate in found {
        if !is_known(&candidate) {
            continue;
        }
        if let Some(descriptor) = deltas.whole(&candidate.guid.to_string())? {
            base = Some((candidate, ImageState::of(&descriptor)?));
            break;
        }
    }
    failed.take().map_or(Ok(()), Err)?;
    if let Some((base, _)) = &base {
        noted.extend(deltas.noted(&base.guid.to_string(), how.noted)?);
    }
    Ok(Route { volume, noted, way: plain(None, base, replaced) })
}

/// How to ship a volume.
#[derive(Debug, Clone, Copy)]
pub struct How<'a> {
    /// As it is encrypted on disk.
    pub raw: bool,
    /// Whether in full, as the beginning of a new chain.
    pub extent: Extent,
    /// After how many increments a raw volume is sent in full again.
    pub raw_full_every: u32,
    /// What nobody needs, as noted by a collection.
    pub noted: &'a Doomed,
    /// Whether the repository has a newer set, which may count on what this one's volumes were.
    pub is_late: bool,
}

impl How<'_> {
    pub(super) fn is_full(&self) -> bool {
        self.extent == Extent::Full
    }
}

fn plain(
    there: Option<Descriptor>,
    base: Option<(Base, ImageState)>,
    replaced: Option<BTreeSet<(u64, u64)>>,
) -> Way {
    Way::Plain(Box::new(Plain { there, base, replaced, tags: None, walked: Walked::default() }))
}

/// What the set's snapshots could be increments to. A dataset may have thousands of candidates, so only their names
/// are listed. The details of the newest are read for all volumes at once, and the others' only if none of these will
/// do.
pub struct Bases<'a> {
    zfs: &'a Zfs,
    newest: BTreeMap<DatasetName, Vec<Base>>,
    older: BTreeMap<DatasetName, Vec<String>>,
    /// The txgs of the set's own snapshots in the present pool: a snapshot that was sent elsewhere and received has
    /// another than the manifest says.
    own: BTreeMap<DatasetName, u64>,
}

/// How many of a dataset's candidates are read at first.
const NEWEST: usize = 4;

impl<'a> Bases<'a> {
    /// Finds the candidates with a name of Lockstep's.
    ///
    /// # Errors
    /// When ZFS fails.
    pub fn find(zfs: &'a Zfs, volumes: &[SetVolume]) -> Result<Self> {
        let datasets: Vec<_> = volumes.iter().map(|volume| volume.dataset.clone()).collect();
        let mut older: BTreeMap<DatasetName, Vec<String>> = BTreeMap::new();
        for (dataset, name) in zfs.base_names(&datasets)? {
            if own_name(&name).starts_with("lockstep-") {
                older.entry(dataset).or_default().push(name);
            }
        }
        let (mut newest, mut own) = (BTreeMap::new(), Vec::new());
        for volume in volumes {
            if let Some(names) = older.get_mut(&volume.dataset) {
                let snapshot = volume.snapshot.clone();
                own.extend(names.iter().filter(|name| **name == snapshot.to_string()).cloned());
                newest.insert(&volume.dataset, take_newest(names, &snapshot.name));
            }
        }
        let asked: Vec<_> = newest.values().flatten().chain(&own).cloned().collect();
        let facts = zfs.bases(&asked)?;
        // One that was removed meanwhile isn't among them.
        let found = |name: &String| facts.iter().find(|base| base.name == *name).cloned();
        let of_dataset = |(dataset, names): (&DatasetName, Vec<String>)| {
            (dataset.clone(), names.iter().filter_map(found).collect())
        };
        let newest = newest.into_iter().map(of_dataset).collect();
        let of_own = |base: Base| {
            let (dataset, _) = base.name.split_once('@')?;
            Some((DatasetName::new(dataset).ok()?, base.createtxg))
        };
        let own = own.iter().filter_map(found).filter_map(of_own).collect();
        Ok(Self { zfs, newest, older, own })
    }

    /// Returns the snapshots and bookmarks that the volume's snapshot could be an increment to, newest first, back to
    /// one that is `known`. If none with Lockstep's own names is, one that somebody renamed may be.
    pub(super) fn of(
        &self,
        volume: &SetVolume,
        known: impl Fn(&Base) -> bool,
    ) -> Result<Vec<Base>> {
        let mut bases = self.newest.get(&volume.dataset).cloned().unwrap_or_default();
        let own = self.own.get(&volume.dataset).copied().unwrap_or(volume.createtxg);
        let before = |base: &Base| base.createtxg < own;
        let is_found = |bases: &[Base]| bases.iter().any(|base| before(base) && known(base));
        if !is_found(&bases) {
            let older = self.older.get(&volume.dataset).map_or(&[][..], Vec::as_slice);
            bases.extend(self.zfs.bases(older)?);
        }
        if !is_found(&bases) {
            // Of all that is there, somebody's redaction bookmarks may have the GUID of a set's snapshot.
            bases = self.zfs.bases_of(&volume.dataset)?;
            bases.retain(|base| {
                let is_asked = base.name.contains('#') && before(base) && known(base);
                !(is_asked && self.zfs.is_redaction(&base.name))
            });
        }
        bases.retain(before);
        // Pages can be compared with a snapshot, but not with a bookmark of it.
        bases.sort_by_key(|base| (std::cmp::Reverse(base.createtxg), base.name.contains('#')));
        Ok(bases)
    }
}

/// Returns what follows the dataset's name.
fn own_name(name: &str) -> &str {
    name.split_once(['@', '#']).map_or("", |(_, own)| own)
}

/// Takes the newest of these names that are before `own`: a set's name begins with its time.
fn take_newest(names: &mut Vec<String>, own: &str) -> Vec<String> {
    names.sort_by(|a, b| own_name(b).cmp(own_name(a)));
    let from = names.partition_point(|name| own_name(name) >= own);
    let to = names.len().min(from + NEWEST);
    names.drain(from..to).collect()
}

impl Route<'_> {
    /// Returns the volume if it isn't there yet and isn't sent raw.
    fn plain_to_send(&mut self) -> Option<&mut Plain> {
        match &mut self.way {
            Way::Plain(plain) if plain.there.is_none() => Some(plain),
            _ => None,
        }
    }

    /// Opens the tags of the volume's pages, if its records are larger than pages. If that fails, it continues
    /// without.
    pub fn open_tags(&mut self, folder: &Path, repository: &Repository, properties: &Properties) {
        let volume = self.volume;
        let Some(plain) = self.plain_to_send() else { return };
        if properties.get(volume.dataset.as_str()).is_some_and(has_small_records) {
            return;
        }
        let image = image_name(&volume.dataset);
        let of = Of { repository: &repository.id, image: &image };
        let base = plain.base.as_ref().map(|(base, _)| base.guid.to_string());
        plain.tags = or_none(Tags::open(folder, of, base.as_deref()));
    }

    /// Returns the image, if it has tags.
    #[must_use]
    pub fn tagged_image(&self) -> Option<String> {
        match &self.way {
            Way::Plain(plain) if plain.there.is_some() || plain.tags.is_some() => {
                Some(image_name(&self.volume.dataset))
            }
            _ => None,
        }
    }

    /// Returns the snapshot to compare pages with, if there is one (a bookmark has no content), the tags don't say
    /// everything, and records are larger than pages. Old files may have larger records than the property says now:
    /// these are stored whole.
    #[must_use]
    pub fn base_snapshot(&self) -> Option<SnapshotName> {
        let Way::Plain(plain) = &self.way else { return None };
        let (base, state) = plain.base.as_ref()?;
        if plain.tags.as_ref().is_some_and(Tags::are_whole) || has_small_records(&state.properties)
        {
            return None;
        }
        let (_, name) = base.name.split_once('@')?;
        Some(self.volume.dataset.snapshot(name))
    }

    /// Walks the volume's snapshot, visible at `root`, if it matters which file is which.
    ///
    /// # Errors
    /// When it isn't visible, or a folder can't be read.
    pub fn look(&mut self, root: Option<&Path>, recovers: bool) -> Result<()> {
        let volume = self.volume;
        let Some(plain) = self.plain_to_send() else { return Ok(()) };
        let root =
            root.ok_or_else(|| Error::failed(format!("{} can't be looked into", volume.snapshot)))?;
        let before = plain.base.as_ref().map(|(_, state)| state.left_out_objects.as_slice());
        let before: HashSet<u64> =
            before.unwrap_or_default().iter().map(|(object, _)| *object).collect();
        plain.walked = walk(root, &volume.parts, recovers, &before)?;
        Ok(())
    }

    /// Ships the volume after [`Self::look`]. The base's snapshot is visible at `base_root`.
    ///
    /// # Errors
    /// When ZFS, the stream or the store fails.
    pub fn ship(self, shipment: &Shipment<'_>, base_root: Option<&Path>) -> Result<ShippedVolume> {
        let (repository, volume) = (shipment.repository, self.volume);
        let Plain { there, base, replaced, mut tags, walked } = match self.way {
            Way::Raw(way) => return way.ship(shipment, volume),
            Way::Plain(plain) => *plain,
        };
        if let Some(descriptor) = there {
            return shipped(repository, volume, descriptor);
        }
        let image = image_name(&volume.dataset);
        let replaced = replaced.as_ref();
        let job = Job { shipment, volume, image: &image, walked: &walked, replaced };
        if let Some((base, state)) = &base {
            let is_tagged = tags.is_some();
            if let Some(descriptor) = job.send(Some((base, state)), base_root, tags)? {
                return shipped(repository, volume, descriptor);
            }
            tracing::info!(
                dataset = %volume.dataset,
                "a file whose content wasn't stored is needed now: all of the volume is sent again"
            );
            let of = Of { repository: &repository.id, image: &image };
            tags = is_tagged.then(|| or_none(Tags::open(shipment.tags, of, None))).flatten();
        }
        let whole = job.send(None, None, tags)?;
        let descriptor = whole.ok_or_else(|| Error::failed("a full stream that isn't whole"))?;
        shipped(repository, volume, descriptor)
    }
}

/// Checks that no record of such a dataset holds more than a page.
fn has_small_records(properties: &BTreeMap<String, String>) -> bool {
    let recordsize = properties.get("recordsize").and_then(|text| text.parse::<u64>().ok());
    recordsize.is_some_and(|size| size <= PAGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_names_before_the_set_are_asked_first() {
        let own = |day: u32| format!("lockstep-202601{day:02}T000000Z-aaaa");
        // Includes its own snapshot and a later one; of day 7, both a snapshot and a bookmark.
        let mut names: Vec<_> = (1..=9).map(|day| format!("tank/pg@{}", own(day))).collect();
        names.push(format!("tank/pg#{}", own(7)));
        let asked = take_newest(&mut names, &own(8));
        let days: Vec<_> = asked.iter().map(|name| &own_name(name)[15..17]).collect();
        assert_eq!(days, ["07", "07", "06", "05"]);
        let left: Vec<_> = names.iter().map(|name| &own_name(name)[15..17]).collect();
        assert_eq!(left, ["09", "08", "04", "03", "02", "01"]);
        assert_eq!(take_newest(&mut vec![], &own(8)), Vec::<String>::new());
    }
}
