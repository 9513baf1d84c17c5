//! One volume's way into the repository: what its snapshot is an increment to, the stream, the delta.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use sendstream::Reader;
use sendstream::fold::{Delta, StreamDelta};
use sendstream::pages::{PageChecker, PageGeometry, Segment};
use strata::delta::{Descriptor, ImageOptions, ImageWriter, read_descriptor};

use super::classify::Class;
use super::walk::{Walked, walk};
use crate::error::{Error, Result};
use crate::repository::image::{ImageState, StreamBegin, image_name};
use crate::repository::ingest::{Content, Visitor, ingest, of_stream};
use crate::repository::shipped::{Pages, ShippedVolume};
use crate::repository::{Repository, of_strata};
use crate::set::manifest::SetVolume;
use crate::steps;
use crate::volume::zfs::{Base, SendSpec, Zfs};

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
/// Between two looks at whether to stop, in bytes of the stream.
const STRIDE: u64 = 8 << 20;

/// What is the same for all volumes of a set.
pub struct Shipment<'a> {
    /// Where it goes.
    pub repository: &'a Repository,
    /// How packs and indexes are written.
    pub options: ImageOptions,
    /// The pages, where they carry checksums.
    pub pages: Option<PageGeometry>,
    /// The restored cluster goes through recovery.
    pub recovers: bool,
    /// Told how many bytes more of a stream were read.
    pub progress: &'a (dyn Fn(&str, u64) -> Result<()> + Sync),
}

/// Ships one volume, if its delta isn't there yet.
///
/// # Errors
/// When ZFS, the stream or the store fails.
pub fn ship(shipment: &Shipment<'_>, volume: &SetVolume, root: &Path) -> Result<ShippedVolume> {
    let repository = shipment.repository;
    let image = image_name(&volume.dataset);
    match read_descriptor(&repository.strata, &image, &volume.guid) {
        // From a shipment that was interrupted behind it.
        Ok(descriptor) => return shipped(repository, volume, descriptor),
        Err(error) if error.is_not_found() => {}
        Err(error) => return Err(of_strata(error)),
    }
    let zfs = Zfs::new();
    let base = base(&zfs, repository, volume, &image)?;
    let walked = walk(root, &volume.parts, shipment.recovers)?;
    let job = Job { shipment, volume, image: &image, zfs: &zfs, walked: &walked };
    if let Some((base, state)) = &base {
        if let Some(descriptor) = job.send(Some((base, state)))? {
            return shipped(repository, volume, descriptor);
        }
        tracing::info!(
            dataset = %volume.dataset,
            "a file whose content wasn't stored is needed now: all of the volume is sent again"
        );
    }
    let whole = job.send(None)?;
    let descriptor = whole.ok_or_else(|| Error::failed("a full stream that isn't whole"))?;
    shipped(repository, volume, descriptor)
}

/// The newest snapshot or bookmark that the repository has too, with its state there.
fn base(
    zfs: &Zfs,
    repository: &Repository,
    volume: &SetVolume,
    image: &str,
) -> Result<Option<(Base, ImageState)>> {
    let mut bases = zfs.bases_of(&volume.dataset)?;
    bases.retain(|base| base.createtxg < volume.createtxg && base.guid.to_string() != volume.guid);
    bases.sort_by_key(|base| std::cmp::Reverse(base.createtxg));
    let there = deltas(repository, image)?;
    for base in bases {
        let id = base.guid.to_string();
        if there.contains(&id) {
            let descriptor = read_descriptor(&repository.strata, image, &id).map_err(of_strata)?;
            return Ok(Some((base, ImageState::of(&descriptor)?)));
        }
    }
    Ok(None)
}

/// The deltas of an image.
fn deltas(repository: &Repository, image: &str) -> Result<Vec<String>> {
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

struct Job<'a> {
    shipment: &'a Shipment<'a>,
    volume: &'a SetVolume,
    image: &'a str,
    zfs: &'a Zfs,
    walked: &'a Walked,
}

impl Job<'_> {
    /// Sends and stores; `None` where the increment isn't enough.
    fn send(&self, base: Option<(&Base, &ImageState)>) -> Result<Option<Descriptor>> {
        let repository = self.shipment.repository;
        let config = &repository.config;
        let spec = SendSpec {
            snapshot: &self.volume.snapshot_name(),
            base: base.map(|(base, _)| base.name.as_str()),
            nice: config.nice,
            ionice: config.ionice,
        };
        let base_id = base.map(|(base, _)| base.guid.to_string());
        let mut writer = ImageWriter::new(
            &repository.strata,
            self.image,
            &self.volume.guid,
            base_id.as_deref(),
            &self.shipment.options,
        )
        .map_err(of_strata)?;
        let mut child = self.zfs.send(&spec)?;
        let mut passing = Passing::new(self, base.map(|(_, state)| state));
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
        let (begin, stream_bytes) = match outcome {
            Ok(read) => read,
            // What `zfs send` said on its way out is the reason; the stream only ends early.
            Err(error) => {
                return Err(match child.finish() {
                    Err(reason) if !reason.stderr().is_empty() => reason.into(),
                    _ => error,
                });
            }
        };
        child.finish()?;
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
        let mut state = ImageState::new(begin, self.properties()?);
        state.stream_bytes = stream_bytes;
        state.left_out.clone_from(&self.walked.left_out);
        (state.left_out_objects, state.pages) = passing.finish();
        writer.about(state.to_about()?);
        steps::reached("ship.stream")?;
        Ok(Some(writer.finish().map_err(of_strata)?))
    }

    fn properties(&self) -> Result<BTreeMap<String, String>> {
        let name = self.volume.dataset.to_string();
        let (known, optional) = PROPERTIES.split_at(PROPERTIES.len() - 1);
        let mut all = self.zfs.get_known(
            std::slice::from_ref(&name),
            known,
            optional.first().unwrap_or(&""),
        )?;
        let mut of = all.remove(&name).unwrap_or_default();
        of.retain(|_, value| value != "-");
        Ok(of)
    }
}

/// What the manifest says about a delta that is there.
fn shipped(
    repository: &Repository,
    volume: &SetVolume,
    descriptor: Descriptor,
) -> Result<ShippedVolume> {
    let state = ImageState::of(&descriptor)?;
    let mut stored_bytes = 0;
    strata::delta::packs(&repository.strata, &descriptor, |row| {
        stored_bytes += row.size;
        Ok(())
    })
    .map_err(of_strata)?;
    Ok(ShippedVolume {
        dataset: volume.dataset.clone(),
        image: descriptor.image,
        delta: descriptor.id,
        base: descriptor.base,
        stream_bytes: state.stream_bytes,
        stored_bytes,
        left_out: state.left_out,
        pages: state.pages,
    })
}

/// Sees the objects go by.
struct Passing<'a> {
    job: &'a Job<'a>,
    checker: Option<PageChecker<u64, Box<dyn FnMut(u64) -> Option<Segment<u64>> + 'a>>>,
    /// Left out in the base and needed now, unless the stream makes it anew: by generation.
    doubtful: HashMap<u64, u64>,
    /// Left out, with their generations.
    left_out: BTreeMap<u64, u64>,
    needs_full: bool,
    read: u64,
}

impl<'a> Passing<'a> {
    fn new(job: &'a Job<'a>, base: Option<&ImageState>) -> Self {
        let walked = job.walked;
        let before = base.map(|state| state.left_out_objects.as_slice()).unwrap_or_default();
        let is_left_out =
            |object: u64| matches!(walked.classes.get(&object), Some(Class::LeftOut(_)));
        let checker = job.shipment.pages.map(|geometry| {
            let lookup = move |object: u64| match walked.classes.get(&object) {
                Some(Class::Pages(number)) => Some(Segment { path: object, number: *number }),
                _ => None,
            };
            PageChecker::new(geometry, Box::new(lookup) as Box<dyn FnMut(u64) -> _>)
        });
        Self {
            job,
            checker,
            doubtful: before
                .iter()
                .filter(|(object, _)| walked.stored.contains(object))
                .copied()
                .collect(),
            left_out: before.iter().filter(|(object, _)| is_left_out(*object)).copied().collect(),
            needs_full: false,
            read: 0,
        }
    }

    /// Nothing that is needed now was left out before.
    fn is_whole(&self) -> bool {
        self.doubtful.is_empty()
    }

    fn finish(self) -> (Vec<(u64, u64)>, Pages) {
        let walked = self.job.walked;
        let pages = self.checker.map(PageChecker::finish).map(|report| Pages {
            checked: report.good + report.bad + report.without_checksum,
            bad: report.wrong(),
            bad_pages: report
                .bad_pages
                .iter()
                .map(|page| (walked.path(page.path), page.block))
                .collect(),
        });
        (self.left_out.into_iter().collect(), pages.unwrap_or_default())
    }
}

impl Visitor for Passing<'_> {
    fn object(&mut self, object: u64, generation: Option<u64>) -> Result<Content> {
        if let Some(before) = self.doubtful.get(&object) {
            if generation.is_none_or(|now| now == *before) {
                self.needs_full = true;
                return Err(Error::failed("all of the volume is needed"));
            }
            self.doubtful.remove(&object);
        }
        if let Some(Class::LeftOut(_)) = self.job.walked.classes.get(&object) {
            self.left_out.insert(object, generation.unwrap_or_default());
            return Ok(Content::LeftOut);
        }
        Ok(Content::Stored)
    }

    fn content(&mut self, object: u64, offset: u64, bytes: &[u8]) {
        if let Some(checker) = &mut self.checker {
            checker.content(object, offset, bytes);
        }
    }

    fn progress(&mut self, bytes: u64) -> Result<()> {
        if bytes - self.read >= STRIDE {
            (self.job.shipment.progress)(self.job.volume.dataset.as_str(), bytes - self.read)?;
            self.read = bytes;
            steps::reached("ship.progress")?;
        }
        Ok(())
    }
}
