//! One volume's way into the repository: what its snapshot is an increment to, the stream, the delta.
//! One whose dataset is encrypted may go raw (`raw.rs`).

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::process::ChildStdout;

use redb::WriteTransaction;
use sendstream::Reader;
use sendstream::fold::{Delta, StreamDelta};
use sendstream::pages::PageGeometry;
use strata::delta::{Descriptor, ImageOptions, ImageWriter, read_descriptor};

use super::page_delta::{Pages, Snapshot};
use super::passing::Passing;
use super::raw::RawWay;
use super::tags::{Of, PAGE, Passed, Tags};
use super::walk::{Walked, walk};
use crate::error::{Error, Result};
use crate::process::Piped;
use crate::progress::Progress;
use crate::repository::image::{ImageState, StreamBegin, image_name};
use crate::repository::ingest::{ingest, of_stream};
use crate::repository::shipped::ShippedVolume;
use crate::repository::{Repository, of_strata};
use crate::set::manifest::SetVolume;
use crate::steps;
use crate::volume::zfs::{Base, DatasetName, Properties, SendSpec, SnapshotName, Zfs};

/// Content of an increment's frames. A restore goes forward in a frame of each delta at the same time,
/// and keeps them all: of a hundred increments' 25 MiB, where frames of 1 MiB would not fit.
const INCREMENT_FRAME: usize = 256 << 10;
/// Properties of a dataset that its restored copy gets too.
const PROPERTIES: [&str; 7] = [
    "recordsize",
    "compression",
    "atime",
    "logbias",
    "primarycache",
    "xattr",
    "redundant_metadata",
];

/// What is the same for all volumes of a set.
pub struct Shipment<'a> {
    /// ZFS.
    pub zfs: &'a Zfs,
    /// Where it goes.
    pub repository: &'a Repository,
    /// How packs and indexes are written.
    pub options: ImageOptions,
    /// Where it is remembered what an interrupted shipment has stored.
    pub journals: &'a Path,
    /// Where the tags of pages are.
    pub tags: &'a Path,
    /// The pages.
    pub geometry: PageGeometry,
    /// They carry checksums.
    pub checks_pages: bool,
    /// The LSNs that recovery replays.
    pub replayed: Range<u64>,
    /// The restored cluster goes through recovery.
    pub recovers: bool,
    /// Asked now and then whether to go on.
    pub check: &'a (dyn Fn() -> Result<()> + Sync),
    /// What is shown meanwhile.
    pub progress: &'a Progress,
    /// The datasets' properties that go along.
    pub properties: &'a Properties,
    /// Where the keys of datasets that go raw are.
    pub key_locations: &'a BTreeMap<DatasetName, String>,
}

/// The properties of datasets that their restored copies get too, all in one command.
///
/// # Errors
/// When ZFS fails.
pub fn properties(zfs: &Zfs, routes: &[Route<'_>]) -> Result<Properties> {
    let names: Vec<_> = routes.iter().map(|route| route.volume.dataset.to_string()).collect();
    let (known, optional) = PROPERTIES.split_at(PROPERTIES.len() - 1);
    let mut all = zfs.get_known(&names, known, optional.first().unwrap_or(&""))?;
    all.values_mut().for_each(|of| of.retain(|_, value| value != "-"));
    Ok(all)
}

/// A volume's way, before it is begun.
pub struct Route<'a> {
    /// The volume.
    pub volume: &'a SetVolume,
    way: Way,
}

enum Way {
    /// Taken apart.
    Plain {
        /// Its delta is there, from a shipment that was interrupted behind it.
        there: Option<Descriptor>,
        /// What it is an increment to.
        base: Option<(Base, ImageState)>,
        /// What is known of the base's pages.
        tags: Option<Tags>,
    },
    /// As it is encrypted on disk.
    Raw(RawWay),
}

/// Finds what the volume's snapshot is an increment to: the newest snapshot or bookmark that the
/// repository has too. With `raw` among what was sent raw, else among the rest.
///
/// # Errors
/// When ZFS or the store fails.
pub fn route<'a>(
    bases: &Bases<'_>,
    repository: &Repository,
    volume: &'a SetVolume,
    raw: bool,
) -> Result<Route<'a>> {
    if raw {
        return Ok(Route { volume, way: Way::Raw(RawWay::find(bases, repository, volume)?) });
    }
    let image = image_name(&volume.dataset);
    let ids = deltas(repository, &image)?;
    let read = |id: &str| read_descriptor(&repository.strata, &image, id).map_err(of_strata);
    if ids.contains(&volume.guid) {
        let there = Some(read(&volume.guid)?);
        return Ok(Route { volume, way: Way::Plain { there, base: None, tags: None } });
    }
    let is_known = |base: &Base| ids.contains(&base.guid.to_string());
    let base = match bases.of(volume, is_known)?.into_iter().find(is_known) {
        Some(base) => {
            let state = ImageState::of(&read(&base.guid.to_string())?)?;
            Some((base, state))
        }
        None => None,
    };
    Ok(Route { volume, way: Way::Plain { there: None, base, tags: None } })
}

/// What the set's snapshots could be increments to.
pub struct Bases<'a> {
    zfs: &'a Zfs,
    /// Those that have a name of Lockstep's.
    own: BTreeMap<DatasetName, Vec<Base>>,
}

impl<'a> Bases<'a> {
    /// Finds those with a name of Lockstep's, of all volumes at once.
    ///
    /// # Errors
    /// When ZFS fails.
    pub fn find(zfs: &'a Zfs, volumes: &[SetVolume]) -> Result<Self> {
        let datasets: Vec<_> = volumes.iter().map(|volume| volume.dataset.clone()).collect();
        let own = zfs.bases_of_all(&datasets, |name| name.starts_with("lockstep-"))?;
        Ok(Self { zfs, own })
    }

    /// The snapshots and bookmarks that the volume's snapshot could be an increment to, newest first.
    /// Where none of Lockstep's own names is `known`, one that somebody renamed may be.
    pub(super) fn of(
        &self,
        volume: &SetVolume,
        known: impl Fn(&Base) -> bool,
    ) -> Result<Vec<Base>> {
        let mut bases = self.own.get(&volume.dataset).cloned().unwrap_or_default();
        if !bases.iter().any(known) {
            bases = self.zfs.bases_of(&volume.dataset)?;
        }
        bases.retain(|base| base.createtxg < volume.createtxg);
        bases.sort_by_key(|base| std::cmp::Reverse(base.createtxg));
        Ok(bases)
    }
}

impl Route<'_> {
    /// Opens the tags of the volume's pages, where its records are larger than these.
    ///
    /// # Errors
    /// When the folder can't be written to.
    pub fn open_tags(
        &mut self,
        folder: &Path,
        repository: &Repository,
        properties: &Properties,
    ) -> Result<()> {
        let Way::Plain { there: None, base, tags } = &mut self.way else { return Ok(()) };
        if properties.get(self.volume.dataset.as_str()).is_some_and(has_small_records) {
            return Ok(());
        }
        let image = image_name(&self.volume.dataset);
        let of = Of { repository: &repository.id, image: &image };
        let base = base.as_ref().map(|(base, _)| base.guid.to_string());
        *tags = Some(Tags::open(folder, of, base.as_deref())?);
        Ok(())
    }

    /// The image, where it has tags.
    #[must_use]
    pub fn tagged_image(&self) -> Option<String> {
        match &self.way {
            Way::Plain { there, tags, .. } if there.is_some() || tags.is_some() => {
                Some(image_name(&self.volume.dataset))
            }
            _ => None,
        }
    }

    /// The snapshot to compare pages with: where there is one (a bookmark has no content), tags don't
    /// say all, and records are larger than pages. Old files may have larger ones than the property
    /// says now: these are stored whole.
    #[must_use]
    pub fn base_snapshot(&self) -> Option<SnapshotName> {
        let Way::Plain { base: Some((base, state)), tags, .. } = &self.way else { return None };
        if tags.as_ref().is_some_and(Tags::are_whole) || has_small_records(&state.properties) {
            return None;
        }
        let (_, name) = base.name.split_once('@')?;
        Some(self.volume.dataset.snapshot(name))
    }

    /// Ships the volume. Its snapshot is seen at `root`, the base's at `base_root`.
    ///
    /// # Errors
    /// When ZFS, the stream or the store fails.
    pub fn ship(
        self,
        shipment: &Shipment<'_>,
        root: &Path,
        base_root: Option<&Path>,
    ) -> Result<ShippedVolume> {
        let (repository, volume) = (shipment.repository, self.volume);
        let (there, base, mut tags) = match self.way {
            Way::Raw(way) => return way.ship(shipment, volume),
            Way::Plain { there, base, tags } => (there, base, tags),
        };
        if let Some(descriptor) = there {
            return shipped(repository, volume, descriptor);
        }
        let image = image_name(&volume.dataset);
        let walked = walk(root, &volume.parts, shipment.recovers)?;
        let job = Job { shipment, volume, image: &image, walked: &walked };
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
            tags = is_tagged.then(|| Tags::open(shipment.tags, of, None)).transpose()?;
        }
        let whole = job.send(None, None, tags)?;
        let descriptor = whole.ok_or_else(|| Error::failed("a full stream that isn't whole"))?;
        shipped(repository, volume, descriptor)
    }
}

/// No record of such a dataset holds more than a page.
fn has_small_records(properties: &BTreeMap<String, String>) -> bool {
    let recordsize = properties.get("recordsize").and_then(|text| text.parse::<u64>().ok());
    recordsize.is_some_and(|size| size <= PAGE)
}

/// The deltas of an image.
pub(super) fn deltas(repository: &Repository, image: &str) -> Result<Vec<String>> {
    let mut ids = Vec::new();
    let folder = repository.strata.path(&format!("volumes/{image}"));
    repository
        .strata
        .store()
        .list(&folder, |listed| {
            let name = listed.path.rsplit('/').next().unwrap_or_default();
            ids.extend(name.strip_suffix(".json").map(str::to_owned));
        })
        .map_err(|error| of_strata(error.into()))?;
    Ok(ids)
}

/// One volume being shipped.
pub(super) struct Job<'a> {
    pub(super) shipment: &'a Shipment<'a>,
    pub(super) volume: &'a SetVolume,
    pub(super) image: &'a str,
    pub(super) walked: &'a Walked,
}

impl Job<'_> {
    /// Sends and stores; `None` where the increment isn't enough.
    fn send(
        &self,
        base: Option<(&Base, &ImageState)>,
        base_root: Option<&Path>,
        tags: Option<Tags>,
    ) -> Result<Option<Descriptor>> {
        let repository = self.shipment.repository;
        let config = &repository.config;
        let spec = SendSpec {
            snapshot: &self.volume.snapshot_name(),
            base: base.map(|(base, _)| base.name.as_str()),
            raw: false,
            nice: config.nice,
            ionice: config.ionice,
        };
        let base_id = base.map(|(base, _)| base.guid.to_string());
        let journal = format!("{}-{}-{}.jsonl", repository.name, self.image, self.volume.guid);
        let mut options = ImageOptions {
            resume: Some(self.shipment.journals.join(journal)),
            ..self.shipment.options.clone()
        };
        if base.is_some() {
            options.frame_size = INCREMENT_FRAME;
        }
        let mut writer = ImageWriter::new(
            &repository.strata,
            self.image,
            &self.volume.guid,
            base_id.as_deref(),
            &options,
        )
        .map_err(of_strata)?;
        let snapshot = match (&base_id, base_root) {
            (Some(id), Some(root)) => Some(Snapshot::open(self, id, root)?),
            _ => None,
        };
        let transaction = tags.as_ref().map(Tags::begin).transpose()?;
        let passed = tags.as_ref().zip(transaction.as_ref());
        let passed =
            passed.map(|(tags, transaction)| Passed::open(tags, transaction)).transpose()?;
        let pages = Pages::new(passed, snapshot);
        let mut child = self.shipment.zfs.send(&spec)?;
        let mut passing = Passing::new(self, base.map(|(_, state)| state), pages);
        let outcome = (|| {
            let reader = Reader::new(&mut child).map_err(of_stream)?;
            let mut delta = StreamDelta::new(reader).map_err(of_stream)?;
            let begin = delta.begin().clone();
            let bytes = ingest(&mut delta, &mut writer, &mut passing)?;
            Ok((begin, bytes))
        })();
        if passing.needs_full {
            return Ok(None);
        }
        let (begin, stream_bytes) = sent(outcome, child)?;
        if !passing.is_whole() {
            return Ok(None);
        }
        if begin.to_guid.to_string() != self.volume.guid {
            return Err(Error::failed(format!(
                "the stream of {} has GUID {}, the set says {}",
                self.volume.snapshot, begin.to_guid, self.volume.guid
            )));
        }
        let begin = StreamBegin::after(&begin, base.map(|(_, state)| &state.begin));
        let properties = self.shipment.properties.get(self.volume.dataset.as_str()).cloned();
        let mut state = ImageState::new(begin, properties.unwrap_or_default());
        state.stream_bytes = stream_bytes;
        state.left_out.clone_from(&self.walked.left_out);
        let are_tagged;
        (state.left_out_objects, state.pages, are_tagged) = passing.finish();
        writer.about(state.to_about()?);
        steps::reached("ship.stream")?;
        let descriptor = writer.finish().map_err(of_strata)?;
        // Only now: tags of what isn't in the repository would leave out what it needs.
        steps::reached("ship.delta")?;
        if let Some((tags, transaction)) = tags.zip(transaction) {
            keep(tags, transaction, are_tagged, &self.volume.guid);
        }
        Ok(Some(descriptor))
    }
}

/// Keeps the tags as the state after `delta`, or throws them away: nothing depends on them.
fn keep(tags: Tags, transaction: WriteTransaction, are_tagged: bool, delta: &str) {
    if are_tagged {
        match tags.commit(transaction, delta) {
            Ok(()) => return,
            Err(error) => {
                tracing::warn!(error = %error.chain(), "the next shipment will do without")
            }
        }
    } else {
        drop(transaction);
    }
    tags.forget();
}

/// What the manifest says about a delta that is there.
fn shipped(
    repository: &Repository,
    volume: &SetVolume,
    descriptor: Descriptor,
) -> Result<ShippedVolume> {
    let state = ImageState::of(&descriptor)?;
    let stored_bytes = stored_bytes(repository, &descriptor)?;
    Ok(ShippedVolume {
        dataset: volume.dataset.clone(),
        image: descriptor.image,
        delta: descriptor.id,
        base: descriptor.base,
        stream_bytes: state.stream_bytes,
        stored_bytes,
        left_out: state.left_out,
        pages: state.pages,
        raw: None,
    })
}

/// How a stream ended. What `zfs send` said on its way out is the reason, where the stream only ended early.
pub(super) fn sent<T>(read: Result<T>, child: Piped<ChildStdout>) -> Result<T> {
    match (read, child.finish()) {
        (Err(_), Err(reason)) if !reason.stderr().is_empty() => Err(reason.into()),
        (Ok(_), Err(reason)) => Err(reason.into()),
        (read, _) => read,
    }
}

/// The bytes of the packs that a delta lies in.
pub(super) fn stored_bytes(repository: &Repository, descriptor: &Descriptor) -> Result<u64> {
    let mut bytes = 0;
    strata::delta::packs(&repository.strata, descriptor, |row| {
        bytes += row.size;
        Ok(())
    })
    .map_err(of_strata)?;
    Ok(bytes)
}
