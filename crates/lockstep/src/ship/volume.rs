//! Ships one volume into the repository: the stream, the pages that go by, the delta. A volume whose dataset is
//! encrypted may be sent raw (`raw.rs`).

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::ops::Range;
use std::path::Path;
use std::process::ChildStdout;

use redb::WriteTransaction;
use sendstream::Reader;
use sendstream::fold::{Delta, StreamDelta};
use sendstream::pages::PageGeometry;
use strata::delta::{Descriptor, ImageOptions, ImageWriter};

use super::page_delta::{Pages, Snapshot};
use super::passing::Passing;
use super::tags::{Passed, Tags, or_none};
use super::walk::Walked;
use crate::error::{Error, Result};
use crate::process::Piped;
use crate::progress::Progress;
use crate::repository::image::{ImageState, StreamBegin};
use crate::repository::ingest::{ingest, of_stream};
use crate::repository::shipped::ShippedVolume;
use crate::repository::{Repository, of_strata};
use crate::set::manifest::SetVolume;
use crate::steps;
use crate::volume::zfs::{Base, DatasetName, Guid, Properties, SendSpec, Zfs};

/// The content size of an increment's frames. A restore reads a frame of each delta at the same time and keeps them
/// all: for a hundred increments 25 MiB, whereas frames of 1 MiB wouldn't fit.
const INCREMENT_FRAME: usize = 256 << 10;

/// What all volumes of a set have in common.
pub struct Shipment<'a> {
    /// ZFS.
    pub zfs: &'a Zfs,
    /// The destination.
    pub repository: &'a Repository,
    /// How packs and indexes are written.
    pub options: ImageOptions,
    /// Where it is remembered what an interrupted shipment has stored.
    pub journals: &'a Path,
    /// Where the tags of pages are.
    pub tags: &'a Path,
    /// The layout of pages.
    pub geometry: PageGeometry,
    /// Whether pages carry checksums.
    pub checks_pages: bool,
    /// The LSNs that recovery replays.
    pub replayed: Range<u64>,
    /// Called now and then to check whether to continue.
    pub check: &'a (dyn Fn() -> Result<()> + Sync),
    /// Called before a delta is written, because it may replace one that sets need.
    pub confirm: &'a (dyn Fn() -> Result<()> + Sync),
    /// Shows the progress.
    pub progress: &'a Progress,
    /// The datasets' properties to store.
    pub properties: &'a Properties,
    /// Where the keys of datasets that are sent raw are.
    pub key_locations: &'a BTreeMap<DatasetName, String>,
}

/// One volume being shipped.
pub(super) struct Job<'a> {
    pub(super) shipment: &'a Shipment<'a>,
    pub(super) volume: &'a SetVolume,
    pub(super) image: &'a str,
    pub(super) walked: &'a Walked,
    /// What the delta that it replaces left out.
    pub(super) replaced: Option<&'a BTreeSet<(u64, u64)>>,
}

impl Job<'_> {
    /// Sends and stores the volume; `None` if the increment isn't enough.
    pub(super) fn send(
        &self,
        base: Option<(&Base, &ImageState)>,
        base_root: Option<&Path>,
        tags: Option<Tags>,
    ) -> Result<Option<Descriptor>> {
        let repository = self.shipment.repository;
        let config = &repository.config;
        let spec = SendSpec {
            snapshot: &self.volume.snapshot,
            base: base.map(|(base, _)| base.name.as_str()),
            raw: false,
            nice: config.nice,
            ionice: config.ionice,
        };
        let base_id = base.map(|(base, _)| base.guid.to_string());
        let mut writer = self.writer(base_id.as_deref())?;
        let snapshot = match (&base_id, base_root) {
            (Some(id), Some(root)) => Some(Snapshot::open(self, id, root)?),
            _ => None,
        };
        let transaction = tags.as_ref().and_then(|tags| or_none(tags.begin()));
        let passed = tags.as_ref().zip(transaction.as_ref());
        let passed =
            passed.and_then(|(tags, transaction)| or_none(Passed::open(tags, transaction)));
        let pages = Pages::new(passed, snapshot);
        let mut sent = Sent::new(self.shipment.zfs.send(&spec)?);
        let mut passing = Passing::new(self, base.map(|(_, state)| state), pages);
        let outcome = (|| {
            let reader = Reader::new(&mut sent).map_err(of_stream)?;
            let mut delta = StreamDelta::new(reader).map_err(of_stream)?;
            let begin = delta.begin().clone();
            let bytes = ingest(&mut delta, &mut writer, &mut passing)?;
            Ok((begin, bytes))
        })();
        if passing.needs_full {
            return Ok(None);
        }
        let (begin, stream_bytes) = sent.end(outcome)?;
        if !passing.is_whole() {
            return Ok(None);
        }
        self.assert_asked_for(begin.from_guid, begin.to_guid, base.map(|(base, _)| base.guid))?;
        let begin = StreamBegin::after(&begin, base.map(|(_, state)| &state.begin));
        let properties = self.shipment.properties.get(self.volume.dataset.as_str()).cloned();
        let mut state = ImageState::new(begin, properties.unwrap_or_default());
        state.stream_bytes = stream_bytes;
        state.left_out.clone_from(&self.walked.left_out);
        let are_tagged;
        (state.left_out_objects, state.pages, are_tagged) = passing.finish();
        writer.about(state.to_about()?);
        steps::reached("ship.stream")?;
        let still = || (self.shipment.confirm)().map_err(strata::Error::caller);
        let descriptor = writer.finish_if(&still).map_err(of_strata)?;
        // Not earlier: tags of pages that aren't in the repository would leave out what it needs.
        steps::reached("ship.delta")?;
        if let Some(tags) = tags {
            keep(tags, transaction.filter(|_| are_tagged), &self.volume.guid.to_string());
        }
        Ok(Some(descriptor))
    }

    /// Creates the writer of its delta, which resumes where an interrupted shipment stopped.
    fn writer(&self, base: Option<&str>) -> Result<ImageWriter> {
        let repository = self.shipment.repository;
        let journal = journal_name(&repository.name, self.image, self.volume);
        let mut options = ImageOptions {
            resume: Some(self.shipment.journals.join(journal)),
            ..self.shipment.options.clone()
        };
        if base.is_some() {
            options.frame_size = INCREMENT_FRAME;
        }
        ImageWriter::new(
            &repository.strata,
            self.image,
            &self.volume.guid.to_string(),
            base,
            &options,
        )
        .map_err(of_strata)
    }

    /// Checks the snapshot: it may have been replaced by another of the same name since the set was taken.
    fn assert_asked_for(&self, from: u64, to: u64, base: Option<u64>) -> Result<()> {
        let snapshot = &self.volume.snapshot;
        if Guid::new(to) != self.volume.guid {
            return Err(Error::failed(format!(
                "the stream of {snapshot} has GUID {to}, the set says {}",
                self.volume.guid
            )));
        }
        if from != base.unwrap_or(0) {
            let asked = base.map_or_else(|| "a full one".to_owned(), |base| base.to_string());
            return Err(Error::failed(format!(
                "the stream of {snapshot} is an increment to {from}, expected was {asked}"
            )));
        }
        Ok(())
    }
}

/// Keeps the tags as the state after `delta`, if they cover everything that went by; otherwise they are thrown away:
/// nothing depends on them.
fn keep(tags: Tags, passed: Option<WriteTransaction>, delta: &str) {
    let kept = passed.and_then(|transaction| or_none(tags.commit(transaction, delta)));
    if kept.is_none() {
        tags.forget();
    }
}

/// Returns what the manifest says about an existing delta.
pub(super) fn shipped(
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

/// Returns the name of the file that remembers what an interrupted shipment of the volume has stored.
pub(super) fn journal_name(repository: &str, image: &str, volume: &SetVolume) -> String {
    file_name(&format!("{repository}-{image}"), &volume.guid.to_string())
}

/// Returns a journal's name. If a file can't have it, with the `.old` of its predecessor, a hash is used instead.
fn file_name(of: &str, guid: &str) -> String {
    const LONGEST: usize = 255 - ".old".len();
    let name = format!("{of}-{guid}.jsonl");
    if name.len() <= LONGEST {
        return name;
    }
    let hash = blake3::hash(of.as_bytes()).to_hex();
    format!("{}-{guid}.jsonl", hash.get(..32).unwrap_or_default())
}

/// The stream from `zfs send`, and whether it has ended.
pub(super) struct Sent {
    child: Piped<ChildStdout>,
    has_ended: bool,
}

impl Sent {
    pub(super) fn new(child: Piped<ChildStdout>) -> Self {
        Self { child, has_ended: false }
    }

    /// Returns how it went. If the stream ended early, the reason is what `zfs send` reported when it exited. If
    /// nobody read on, it only reports a broken pipe.
    pub(super) fn end<T>(self, read: Result<T>) -> Result<T> {
        match (read, self.child.finish()) {
            (Err(error @ Error::Interrupted { .. }), _) => Err(error),
            (Err(_), Err(reason)) if self.has_ended && !reason.stderr().is_empty() => {
                Err(reason.into())
            }
            (Ok(_), Err(reason)) => Err(reason.into()),
            (read, _) => read,
        }
    }
}

impl Read for Sent {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.child.read(buffer)?;
        self.has_ended |= read == 0 && !buffer.is_empty();
        Ok(read)
    }
}

/// Returns the size of the packs that hold a delta.
pub(super) fn stored_bytes(repository: &Repository, descriptor: &Descriptor) -> Result<u64> {
    let mut bytes = 0;
    strata::delta::packs(&repository.strata, descriptor, |row| {
        bytes += row.size;
        Ok(())
    })
    .map_err(of_strata)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::Program;

    #[test]
    fn a_journal_s_name_is_no_longer_than_a_file_s() {
        let guid = u64::MAX.to_string();
        let name = |length: usize| file_name(&"n".repeat(length), &guid);
        assert_eq!(name(224), format!("{}-{guid}.jsonl", "n".repeat(224)));
        assert!(name(224).len() == 251 && name(225).len() < 60 && name(225) != name(226));
        assert!(name(500).ends_with(&format!("-{guid}.jsonl")), "it says of which snapshot it is");
    }

    #[test]
    fn a_reader_that_gave_up_says_why_and_one_that_was_left_says_what_the_sender_said() {
        // Complains as `zfs send` does.
        let complains = || Program::new("sh").args(["-c", "trap '' PIPE; yes"]);
        let mut sent = Sent::new(complains().read_from().unwrap());
        sent.read_exact(&mut [0; 10]).unwrap();
        let full = sent.end::<()>(Err(Error::failed("no space left"))).unwrap_err();
        assert_eq!(full.to_string(), "no space left");
        let sent = Sent::new(complains().read_from().unwrap());
        let interrupted = Error::Interrupted { step: "ship.progress".into() };
        assert_eq!(sent.end::<()>(Err(interrupted)).unwrap_err().exit_code(), 130);

        let ends = Program::new("sh").args(["-c", "echo x; echo 'pool suspended' >&2; exit 1"]);
        let mut sent = Sent::new(ends.read_from().unwrap());
        std::io::copy(&mut sent, &mut std::io::sink()).unwrap();
        let early = sent.end::<()>(Err(Error::failed("the stream ends early"))).unwrap_err();
        assert!(early.chain().contains("pool suspended"), "{}", early.chain());
        let mut sent = Sent::new(ends.read_from().unwrap());
        std::io::copy(&mut sent, &mut std::io::sink()).unwrap();
        assert!(sent.end(Ok(())).unwrap_err().chain().contains("pool suspended"));
    }
}
