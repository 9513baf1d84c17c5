//! Raw segments: send streams of encrypted datasets, stored as they came, because nobody can look into them without
//! their key.
//!
//! A segment is a delta without a base in an image of its own: one object whose content is the stream. The segment's
//! chain is the segment that it is an increment to, and so on back to a full stream. The chain is in the segment's
//! `about` and in every set's manifest, and the manifest lists all of it as deltas. So a segment stays as long as any
//! set needs it, and nothing that collects, checks or merges deltas has to know of chains.
//!
//! What could go wrong: a stream that was cut short, or whose bits flipped on the way, is kept as a whole one, and
//! this shows only when it is needed. So the stream is read record by record in passing, checksums included, and only
//! one that reached its end as the expected stream is given a descriptor.
//!
//! Or an increment starts from a snapshot that has the right GUID and other IVs: a snapshot that was received without
//! `-w` keeps its GUID and is encrypted anew. `zfs receive` refuses such an increment behind the old segments
//! (`dsl_crypto_recv_raw_objset_check` in dsl_crypt.c). So each stream's own words about its IVs are compared.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};

use bytes::Bytes;
use sendstream::record::{Begin, ObjsetType};
use sendstream::{Features, NvList, Reader, Value};
use serde::{Deserialize, Serialize};
use strata::delta::{Change, Descriptor, ImageWriter, chain};
use strata::fold::{DataSink, Folded, KeepAll, Reading, fold, open_chain};
use strata::pack::FrameReader;

use super::image::{LONGEST, name_within};
use super::ingest::of_stream;
use super::{Repository, check_command, newer_form, no_deltas, of_strata};
use crate::error::{Error, Result};
use crate::set::manifest::json;
use crate::volume::zfs::{Base, DatasetName};

/// The newest known form.
const VERSION: u32 = 1;
/// The object whose content is the stream.
const STREAM: u64 = 1;
/// The block size of the stream, in bytes.
const BLOCK: usize = 1 << 20;

/// Tells a segment's `about` apart from an image's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The stream as it came.
    Raw,
}

/// A segment of a chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Link {
    /// Its delta: the GUID of the snapshot that the segment leads to, as text.
    pub guid: String,
    /// That snapshot's name without its dataset, which it gets again when it is received.
    pub snapshot: String,
}

/// What a segment's descriptor says about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Segment {
    /// 1.
    pub version: u32,
    /// `raw`.
    pub kind: Kind,
    /// The segments to receive one after another, a full stream first and this one last.
    pub chain: Vec<Link>,
    /// The length of the stream.
    pub stream_bytes: u64,
    /// The stream's BLAKE3 hash, in hex.
    pub blake3: String,
    /// Where the dataset's key was, as ZFS's `keylocation`.
    pub key_location: Option<String>,
    /// Properties of the dataset that matter to PostgreSQL, as `zfs get` printed them.
    pub properties: BTreeMap<String, String>,
}

impl Segment {
    /// Reads it from a descriptor.
    ///
    /// # Errors
    /// When the descriptor isn't a segment's, or its chain is impossible.
    pub fn of(descriptor: &Descriptor) -> Result<Self> {
        let what = || format!("delta \"{}\" of \"{}\"", descriptor.id, descriptor.image);
        let segment: Self = serde_json::from_value(descriptor.about.clone())
            .map_err(|e| Error::failed(format!("{} is strange", what())).because(e))?;
        if segment.version > VERSION {
            return Err(newer_form(&what(), segment.version, VERSION));
        }
        let guids: BTreeSet<_> = segment.chain.iter().map(|link| &link.guid).collect();
        let ends_here = segment.chain.last().is_some_and(|last| last.guid == descriptor.id);
        if !ends_here || guids.len() < segment.chain.len() {
            return Err(Error::failed(format!("{} names an impossible chain", what())));
        }
        if let Some(link) = segment.chain.iter().find(|link| !is_name(&link.snapshot)) {
            let why = format!("{} names a snapshot \"{}\"", what(), link.snapshot.escape_default());
            return Err(Error::failed(why));
        }
        Ok(segment)
    }

    /// Returns it as a descriptor's `about`.
    ///
    /// # Errors
    /// When it can't be expressed in JSON.
    pub fn to_about(&self) -> Result<serde_json::Value> {
        serde_json::to_value(self).map_err(json("describe a segment"))
    }

    /// Returns the segment that this one is an increment to.
    #[must_use]
    pub fn base(&self) -> Option<&Link> {
        self.chain.len().checked_sub(2).and_then(|at| self.chain.get(at))
    }

    /// Checks whether its chain goes on from the segment `guid`, and has others than `before` before that one. If that
    /// one were replaced by an increment on the last of `before`, nobody could receive this one any more.
    #[must_use]
    pub fn goes_on_otherwise(&self, guid: &str, before: &[Link]) -> bool {
        let Some(at) = self.chain.iter().position(|link| link.guid == guid) else { return false };
        let own = self.chain.iter().take(at).map(|link| &link.guid);
        at + 1 < self.chain.len() && own.ne(before.iter().map(|link| &link.guid))
    }

    /// Checks that its whole chain is among these deltas.
    #[must_use]
    pub fn is_whole(&self, there: &[String]) -> bool {
        self.chain.iter().all(|link| there.contains(&link.guid))
    }
}

/// Checks that ZFS could give a snapshot this name.
fn is_name(text: &str) -> bool {
    !text.contains('/') && DatasetName::new(text).is_ok()
}

/// Returns the image name for a dataset's raw segments. No dataset has an `@` in its name.
#[must_use]
pub fn raw_image_name(dataset: &DatasetName) -> String {
    const RAW: &str = "@raw";
    format!("{}{RAW}", name_within(dataset, LONGEST - RAW.len()))
}

/// Returns what the next segment is an increment to: the newest of `bases` (newest first) whose segment is `there`
/// with its whole chain, and that `keeps` allows. `None` means that a full stream is due, also because `full_every`
/// increments came since the last.
///
/// # Errors
/// When `read` fails.
pub fn next_base(
    bases: Vec<Base>,
    there: &[String],
    full_every: u32,
    keeps: impl Fn(&Segment) -> bool,
    read: impl Fn(&str) -> Result<Segment>,
) -> Result<Option<(Base, Segment)>> {
    for base in bases {
        let guid = base.guid.to_string();
        if !there.contains(&guid) {
            continue;
        }
        let segment = read(&guid)?;
        if segment.is_whole(there) && keeps(&segment) {
            let is_due = segment.chain.len() as u64 > u64::from(full_every);
            return Ok((!is_due).then_some((base, segment)));
        }
    }
    Ok(None)
}

/// The result of storing a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ingested {
    /// The snapshot that the stream leads to.
    pub link: Link,
    /// The stream's length.
    pub bytes: u64,
    /// The stream's BLAKE3 hash, in hex.
    pub blake3: String,
    /// What the stream says about IVs.
    pub iv_sets: IvSets,
}

/// Which IVs are in the snapshots that a raw stream starts from and leads to, as it says; `None` if it doesn't.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct IvSets {
    /// `from_ivset_guid`.
    pub from: Option<u64>,
    /// `to_ivset_guid`.
    pub to: Option<u64>,
}

impl IvSets {
    /// Reads them from BEGIN's payload.
    fn of(payload: &[u8]) -> Self {
        let list = NvList::parse(payload).ok();
        let key = list.as_ref().and_then(|list| list.get("crypt_keydata")?.as_list());
        let number = |name| match key?.get(name)? {
            Value::Unsigned(number) if *number != 0 => Some(*number),
            _ => None,
        };
        Self { from: number("from_ivset_guid"), to: number("to_ivset_guid") }
    }

    /// Checks that this stream can be received after the one `before`.
    #[must_use]
    pub fn follow(self, before: Self) -> bool {
        self.from == before.to
    }
}

/// Returns what a stored segment's stream says about IVs. Of its content, only the first block is read.
///
/// # Errors
/// When the segment is missing or damaged, or the store fails.
pub fn stored_iv_sets(repository: &Repository, image: &str, guid: &str) -> Result<IvSets> {
    let chain = chain(&repository.strata, image, guid, None).map_err(of_strata)?;
    let readers = open_chain(&repository.strata, &chain, 8 << 20).map_err(of_strata)?;
    let mut frames = FrameReader::new(&repository.strata, 8 << 20);
    let mut sink = Beginning(None);
    let folded = fold(readers, true, &KeepAll, &mut Reading::new(&mut frames, &mut sink));
    let Some(block) = sink.0 else {
        return folded.map(|()| IvSets::default()).map_err(of_strata);
    };
    let reader = Reader::new(&block[..]).map_err(of_stream)?;
    Ok(IvSets::of(reader.begin_payload()))
}

/// Ends a fold at the first block.
struct Beginning(Option<Bytes>);

impl DataSink for Beginning {
    fn object(&mut self, _: &Folded) -> strata::Result<()> {
        Ok(())
    }

    fn data(&mut self, _: u64, _: u64, content: &Bytes) -> strata::Result<()> {
        self.0 = Some(content.clone());
        Err(strata::Error::caller("the first block is enough"))
    }
}

impl Ingested {
    /// Returns the segment that this stream becomes after `base`.
    #[must_use]
    pub fn behind(
        self,
        base: Option<Segment>,
        key_location: Option<String>,
        properties: BTreeMap<String, String>,
    ) -> Segment {
        let mut chain = base.map(|segment| segment.chain).unwrap_or_default();
        chain.push(self.link);
        let (stream_bytes, blake3) = (self.bytes, self.blake3);
        Segment {
            version: VERSION,
            kind: Kind::Raw,
            chain,
            stream_bytes,
            blake3,
            key_location,
            properties,
        }
    }
}

/// Writes a stream into `writer`, which the caller finishes. The stream has to lead to the snapshot `guid`, from
/// `base` or from nothing. `progress` is called with the number of bytes read.
///
/// # Errors
/// When the stream is damaged, cut short or another than expected, or the store fails.
pub fn ingest(
    input: &mut impl Read,
    writer: &mut ImageWriter,
    guid: &str,
    base: Option<&str>,
    mut progress: impl FnMut(u64) -> Result<()>,
) -> Result<Ingested> {
    let header = Some(Bytes::from_static(b"stream"));
    writer.changed(Change { object: STREAM, header, ..Change::default() }).map_err(of_strata)?;
    let mut keeping = Keeping {
        input,
        writer,
        block: Vec::with_capacity(BLOCK),
        offset: 0,
        hash: blake3::Hasher::new(),
        failed: None,
    };
    let read = (|| -> Result<(Link, IvSets)> {
        let mut reader = Reader::new(&mut keeping).map_err(of_stream)?;
        let link = check(reader.begin(), reader.package().is_some(), guid, base)?;
        let iv_sets = IvSets::of(reader.begin_payload());
        while reader.advance().map_err(of_stream)? {
            progress(reader.bytes_read())?;
        }
        Ok((link, iv_sets))
    })();
    // If the store failed, that is the cause, and the stream merely couldn't be read further.
    if let Some(error) = keeping.failed.take() {
        return Err(error);
    }
    let (link, iv_sets) = read?;
    keeping.flush()?;
    Ok(Ingested {
        link,
        bytes: keeping.offset,
        blake3: keeping.hash.finalize().to_hex().to_string(),
        iv_sets,
    })
}

/// Checks, by its BEGIN, that the stream is the expected one.
fn check(begin: &Begin, is_package: bool, guid: &str, base: Option<&str>) -> Result<Link> {
    let name = String::from_utf8_lossy(&begin.to_name).into_owned();
    let wrong = |what: String| Err(Error::failed(format!("the stream of {name} {what}")));
    if !begin.is_raw() {
        return wrong("isn't raw".into());
    }
    if is_package || begin.features.contains(Features::RESUMING) {
        return wrong("isn't one of a single snapshot, from its beginning".into());
    }
    if begin.objset != ObjsetType::FileSystem {
        return wrong("is of no file system".into());
    }
    if begin.to_guid.to_string() != guid {
        return wrong(format!("has GUID {}, the set says {guid}", begin.to_guid));
    }
    let from = (!begin.is_full()).then(|| begin.from_guid.to_string());
    if from.as_deref() != base {
        let named = |guid: Option<&str>| guid.map_or_else(|| "nothing".into(), str::to_owned);
        return wrong(format!("starts from {}, not {}", named(from.as_deref()), named(base)));
    }
    match name.split_once('@') {
        Some((_, snapshot)) if is_name(snapshot) => {
            Ok(Link { guid: guid.to_owned(), snapshot: snapshot.to_owned() })
        }
        _ => wrong("names no snapshot".into()),
    }
}

/// Passes a stream on to its reader, and stores what goes by.
struct Keeping<'a, R> {
    input: &'a mut R,
    writer: &'a mut ImageWriter,
    block: Vec<u8>,
    /// The offset of what is in the writer.
    offset: u64,
    hash: blake3::Hasher,
    failed: Option<Error>,
}

impl<R> Keeping<'_, R> {
    fn keep(&mut self, mut bytes: &[u8]) -> Result<()> {
        self.hash.update(bytes);
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(BLOCK - self.block.len()));
            self.block.extend_from_slice(now);
            bytes = later;
            if self.block.len() == BLOCK {
                self.flush()?;
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        if !self.block.is_empty() {
            self.writer.data(self.offset, &self.block).map_err(of_strata)?;
            self.offset += self.block.len() as u64;
            self.block.clear();
        }
        Ok(())
    }
}

impl<R: Read> Read for Keeping<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let length = self.input.read(buffer)?;
        self.keep(&buffer[..length]).map_err(|error| {
            self.failed = Some(error);
            std::io::Error::other("the store failed")
        })?;
        Ok(length)
    }
}

/// Writes a segment's stream as it came, and checks its hash once it has all gone by.
///
/// # Errors
/// When the segment is missing or damaged, the store fails, or `to` does.
pub fn copy(
    repository: &Repository,
    image: &str,
    guid: &str,
    to: &mut dyn Write,
) -> Result<Segment> {
    let chain = chain(&repository.strata, image, guid, None).map_err(of_strata)?;
    let descriptor = chain.last().ok_or_else(|| no_deltas(image, guid))?;
    let segment = Segment::of(descriptor)?;
    let base = segment.base().map(|link| link.guid.clone());
    let readers = open_chain(&repository.strata, &chain, 8 << 20).map_err(of_strata)?;
    let mut frames = FrameReader::new(&repository.strata, 8 << 20);
    let (offset, hash, failed) = (0, blake3::Hasher::new(), None);
    let mut sink = ToStream { to, guid, base: base.as_deref(), offset, hash, failed };
    let folded = fold(readers, true, &KeepAll, &mut Reading::new(&mut frames, &mut sink));
    if let Some(error) = sink.failed {
        return Err(Error::io("write to", "zfs receive")(error));
    }
    folded.map_err(of_strata)?;
    if sink.offset != segment.stream_bytes
        || sink.hash.finalize().to_hex().as_str() != segment.blake3
    {
        return Err(Error::failed(format!(
            "segment {guid} of \"{image}\" isn't the stream that was stored"
        ))
        .with_hint(format!("{} says what else is damaged", check_command())));
    }
    Ok(segment)
}

struct ToStream<'a> {
    to: &'a mut dyn Write,
    guid: &'a str,
    base: Option<&'a str>,
    offset: u64,
    hash: blake3::Hasher,
    failed: Option<std::io::Error>,
}

impl DataSink for ToStream<'_> {
    fn object(&mut self, _: &Folded) -> strata::Result<()> {
        Ok(())
    }

    fn data(&mut self, object: u64, offset: u64, content: &Bytes) -> strata::Result<()> {
        if object != STREAM || offset != self.offset {
            return Err(strata::Error::caller(format!(
                "object {object} has a block at {offset}, the stream goes on at {}",
                self.offset
            )));
        }
        if offset == 0 {
            // As before it was stored: whoever can write to a repository without a key could put another stream there,
            // and `zfs receive` makes each dataset of a package, with the properties that it names.
            let reader = Reader::new(&content[..]).map_err(of_stream);
            let checked = reader.and_then(|reader| {
                check(reader.begin(), reader.package().is_some(), self.guid, self.base)
            });
            checked.map_err(strata::Error::caller)?;
        }
        self.hash.update(content);
        self.offset += content.len() as u64;
        self.to.write_all(content).map_err(|error| {
            self.failed = Some(error);
            strata::Error::caller("the reader has gone")
        })
    }
}

#[cfg(test)]
#[path = "raw_tests.rs"]
pub(crate) mod stored_tests;

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(guids: &[u64]) -> Segment {
        Segment {
            version: VERSION,
            kind: Kind::Raw,
            chain: guids
                .iter()
                .map(|guid| Link { guid: guid.to_string(), snapshot: format!("s{guid}") })
                .collect(),
            stream_bytes: 1,
            blake3: String::new(),
            key_location: None,
            properties: BTreeMap::new(),
        }
    }

    /// Returns the GUID that the next segment starts from, given `bases` (newest first) and the `chains` that are
    /// there.
    fn next(bases: &[u64], there: &[u64], chains: &[&[u64]], full_every: u32) -> Option<u64> {
        let base = |guid: &u64| Base { name: format!("t@s{guid}"), guid: *guid, createtxg: *guid };
        let there: Vec<String> = there.iter().map(u64::to_string).collect();
        let read = |guid: &str| {
            let ends = |chain: &&&[u64]| chain.last().is_some_and(|last| last.to_string() == guid);
            Ok(segment(chains.iter().find(ends).expect("only what is there is read")))
        };
        let bases = bases.iter().map(base).collect();
        let found = next_base(bases, &there, full_every, |_| true, read);
        found.unwrap().map(|(base, _)| base.guid)
    }

    #[test]
    fn an_increment_starts_from_the_newest_that_is_there_whole() {
        let chains: [&[u64]; 3] = [&[1], &[1, 2], &[1, 2, 3]];
        assert_eq!(next(&[3, 2, 1], &[1, 2, 3], &chains, 30), Some(3));
        assert_eq!(next(&[4, 2, 1], &[1, 2, 3], &chains, 30), Some(2), "3 isn't on this host");
        assert_eq!(next(&[4], &[1, 2, 3], &chains, 30), None, "nothing in common");
        // The base of 3 is gone, so 3 is of no use; 1 is.
        assert_eq!(next(&[3, 2, 1], &[1, 3], &chains, 30), Some(1));
    }

    /// 2 arrived late, when 3 was there as an increment on 1. Now 3 is damaged, and 4 is an increment on it.
    #[test]
    fn what_is_sent_again_starts_from_where_it_did() {
        let base = |guid: u64| Base { name: format!("t@s{guid}"), guid, createtxg: guid };
        let there = ["1", "2", "4"].map(str::to_owned);
        let read = |guid: &str| Ok(segment(if guid == "2" { &[1, 2] } else { &[1] }));
        let later = segment(&[1, 3, 4]);
        let keeps = |base: &Segment| !later.goes_on_otherwise("3", &base.chain);
        let bases = vec![base(2), base(1)];
        let (found, _) = next_base(bases, &there, 30, keeps, read).unwrap().unwrap();
        assert_eq!(found.guid, 1);
    }

    #[test]
    fn after_so_many_increments_a_full_stream_is_due() {
        let chains: [&[u64]; 3] = [&[1], &[1, 2], &[1, 2, 3]];
        let after = |newest: u64, full_every| next(&[newest], &[1, 2, 3], &chains, full_every);
        assert_eq!((after(1, 2), after(2, 2), after(3, 2)), (Some(1), Some(2), None));
        assert_eq!((after(1, 1), after(2, 1)), (Some(1), None));
    }

    #[test]
    fn what_later_segments_go_on_from_is_replaced_only_by_the_same_increment() {
        let later = segment(&[1, 2, 3, 4]);
        let goes_on = |guid: &str, before: &[u64]| {
            let before = segment(before).chain;
            later.goes_on_otherwise(guid, &before)
        };
        assert!(!goes_on("3", &[1, 2]), "it is the same increment");
        assert!(goes_on("3", &[]), "a full stream can't be received on top of 2");
        assert!(goes_on("3", &[1]) && goes_on("3", &[1, 9]) && goes_on("2", &[]));
        assert!(!goes_on("1", &[]), "it was a full stream");
        // Nothing comes after it, or it isn't in the chain.
        assert!(!goes_on("4", &[]) && !goes_on("5", &[]));
    }

    #[test]
    fn a_chain_ends_where_it_is_named() {
        let descriptor = |about: &Segment| Descriptor {
            format: 1,
            image: "tank=pg@raw".into(),
            id: "2".into(),
            base: None,
            objects: Vec::new(),
            extents: Vec::new(),
            packs: Vec::new(),
            about: about.to_about().unwrap(),
        };
        let whole = segment(&[1, 2]);
        assert_eq!(Segment::of(&descriptor(&whole)).unwrap(), whole);
        assert_eq!(whole.base().unwrap().guid, "1");
        assert_eq!(segment(&[1]).base(), None);
        for wrong in [&[][..], &[2, 1], &[2, 2], &[1]] {
            assert!(Segment::of(&descriptor(&segment(wrong))).is_err(), "{wrong:?}");
        }
        for name in ["", "a/b", "a@b", "-r", "a\nb"] {
            let mut odd = segment(&[1, 2]);
            odd.chain[0].snapshot = name.into();
            assert!(Segment::of(&descriptor(&odd)).is_err(), "{name:?}");
        }
        let name = raw_image_name(&DatasetName::new("tank/my pg").unwrap());
        assert_eq!(name, "tank=my+20pg@raw");
        assert!(strata::check_name("image", &name).is_ok());
        for length in [196, 197, 255] {
            let dataset = DatasetName::new(&"p".repeat(length)).unwrap();
            let name = raw_image_name(&dataset);
            assert!(strata::check_name("image", &name).is_ok(), "{name}");
            assert_eq!(name == format!("{dataset}@raw"), length == 196, "{name}");
        }
    }
}
