//! Passes the fold of a chain to anything that accepts the content of a send stream: a writer of streams, a builder
//! of trees, a writer of files.

use bytes::Bytes;
use sendstream::fold::{Block, BlockHeader, Piece, Sink, SpillBlock, tells_of_no_spill};
use sendstream::record::{Begin, Object, Sealed, Spill, Write, object_type};
use strata::delta::{Descriptor, chain};
use strata::fold::{DataSink, Folded, ReadingAhead, fold, open_chain};
use strata::pack::FrameReader;

use super::header::{ObjectHeader, StreamRules};
use super::image::ImageState;
use super::{Repository, of_strata};
use crate::error::{Error, Result};

/// How much memory the indexes of a chain may take, in bytes.
pub const INDEX_MEMORY: u64 = 64 << 20;
/// How many bytes of frames are kept: neighbouring blocks of one object are in few frames.
const FRAME_MEMORY: usize = 40 << 20;

/// The result of folding a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unfolded {
    /// Deltas in the chain.
    pub deltas: usize,
    /// Frames that were read from the store.
    pub frames: u64,
}

/// Folds the chain of a delta into `sink`: the whole image, or with `since` what changed since that delta. It takes
/// no more memory than [`INDEX_MEMORY`], 40 MiB of frames, and what is read ahead (30 MiB).
///
/// # Errors
/// When the chain is broken or damaged, the store fails, or the sink does.
pub fn unfold(
    repository: &Repository,
    image: &str,
    delta: &str,
    since: Option<&str>,
    sink: &mut impl Sink,
) -> Result<Unfolded> {
    let chain = chain(&repository.strata, image, delta, since).map_err(of_strata)?;
    unfold_chain(repository, &chain, since, sink)
}

/// The same for a chain that was already read.
///
/// # Errors
/// As [`unfold`].
pub fn unfold_chain(
    repository: &Repository,
    chain: &[Descriptor],
    since: Option<&str>,
    sink: &mut impl Sink,
) -> Result<Unfolded> {
    let newest = chain.last().ok_or_else(|| Error::failed("nothing lies between the two"))?;
    let state = ImageState::of(newest)?;
    let from = since.map(guid).transpose()?;
    let begin = state.begin.begin(from)?;
    sink.begin(&begin).map_err(super::ingest::of_stream)?;
    run(repository, chain, since.map(|_| begin), sink)
}

fn run(
    repository: &Repository,
    chain: &[Descriptor],
    increment: Option<Begin>,
    sink: &mut impl Sink,
) -> Result<Unfolded> {
    let is_full = increment.is_none();
    let mut to = ToStream::new(sink, increment);
    let frames = read_ahead(repository, chain, is_full, &mut to).map_err(of_strata)?;
    Ok(Unfolded { deltas: chain.len(), frames: frames.frames_read() })
}

/// Folds a chain into `sink` with its data read ahead; returns the reader of that data.
///
/// # Errors
/// As [`unfold`].
pub fn read_ahead(
    repository: &Repository,
    chain: &[Descriptor],
    is_full: bool,
    sink: &mut impl DataSink,
) -> strata::Result<FrameReader> {
    let readers = open_chain(&repository.strata, chain, INDEX_MEMORY)?;
    let mut frames = FrameReader::new(&repository.strata, FRAME_MEMORY);
    let mut reading = ReadingAhead::new(&mut frames, sink)?;
    fold(readers, is_full, &StreamRules, &mut reading)?;
    reading.finish()?;
    Ok(frames)
}

fn guid(text: &str) -> Result<u64> {
    text.parse().map_err(|_| Error::failed(format!("\"{text}\" is no GUID")))
}

/// Turns what a fold yields into what a stream holds.
pub(super) struct ToStream<'a, S> {
    pub(super) sink: &'a mut S,
    /// The BEGIN of an increment; none if the whole image is sent.
    increment: Option<Begin>,
    /// The type of the current object.
    kind: u32,
    /// Its spill block, which comes after its content.
    spill: Option<Bytes>,
    /// Its block size; 0 if its header isn't known.
    block_size: u64,
    /// Parts of a block from several deltas, until the block is whole: its record is written once.
    gathered: (u64, Vec<u8>),
}

type Folding<T> = strata::Result<T>;

/// Converts an error of the sink into one of the fold.
fn of_sink(error: sendstream::Error) -> strata::Error {
    strata::Error::caller(error)
}

/// The error that no increment can describe an object's spill block correctly.
fn between_versions(object: u64) -> Error {
    Error::failed(format!(
        "it can't be told whether the spill block of object {object} stays: what is stored since the older snapshot is partly of OpenZFS before 0.8, partly of a later one"
    ))
    .with_hint("restore it again without --delta: the whole image is right")
}

impl<'a, S: Sink> ToStream<'a, S> {
    pub(super) fn new(sink: &'a mut S, increment: Option<Begin>) -> Self {
        let kind = object_type::PLAIN_FILE;
        Self { sink, increment, kind, spill: None, block_size: 0, gathered: (0, Vec::new()) }
    }

    /// Writes what was gathered.
    fn flush(&mut self, object: u64) -> Folding<()> {
        let (offset, content) = std::mem::take(&mut self.gathered);
        if !content.is_empty() {
            self.piece(object, offset, content.len() as u64, &content)?;
        }
        self.gathered.1 = content;
        self.gathered.1.clear();
        Ok(())
    }

    /// Handles a piece of the current object, which is a block of its own.
    pub(super) fn piece(
        &mut self,
        object: u64,
        offset: u64,
        length: u64,
        payload: &[u8],
    ) -> Folding<()> {
        let write = Write::plain(object, self.kind, offset, length);
        let block = Block { header: BlockHeader::Write(&write), payload };
        self.sink.piece(object, Piece { offset, length, block }).map_err(of_sink)
    }
}

impl<S: Sink> DataSink for ToStream<'_, S> {
    fn freed(&mut self, first: u64, count: u64) -> Folding<()> {
        self.sink.freed(first, count).map_err(of_sink)
    }

    fn object(&mut self, folded: &Folded) -> Folding<()> {
        self.spill = folded.spill.clone();
        let Some(header) = &folded.header else {
            // Only content, of a file whose properties are unchanged.
            self.kind = object_type::PLAIN_FILE;
            self.block_size = 0;
            return Ok(());
        };
        let header = ObjectHeader::parse(header).ok_or_else(|| {
            strata::Error::caller(format!("the header of object {} is damaged", folded.object))
        })?;
        match &self.increment {
            _ if self.spill.is_some() => {}
            None if header.has_spill_flags && header.object.has_spill() => {
                let why = format!("the spill block of object {} is in no delta", folded.object);
                return Err(strata::Error::caller(why));
            }
            Some(begin) if !tells_of_no_spill(&header.object, header.has_spill_flags, begin) => {
                return Err(strata::Error::caller(between_versions(folded.object)));
            }
            _ => {}
        }
        self.kind = header.object.kind;
        self.block_size = header.object.block_size.into();
        let object = Object { object: folded.object, ..header.object };
        self.sink.object(&object, &header.bonus).map_err(of_sink)?;
        if folded.fresh && self.increment.is_some() {
            self.sink.hole(folded.object, 0, u64::MAX).map_err(of_sink)?;
        }
        Ok(())
    }

    fn wants_content_of(&mut self, object: u64) -> bool {
        // An increment's holes count even if its data doesn't.
        self.increment.is_some() || self.sink.wants_content_of(object)
    }

    fn hole(&mut self, object: u64, offset: u64, length: u64) -> Folding<()> {
        self.flush(object)?;
        self.sink.hole(object, offset, length).map_err(of_sink)
    }

    fn data(&mut self, object: u64, mut offset: u64, content: &Bytes) -> Folding<()> {
        let (size, mut content) = (self.block_size, &content[..]);
        while !content.is_empty() {
            let is_next = offset == self.gathered.0 + self.gathered.1.len() as u64;
            if !self.gathered.1.is_empty() && !is_next {
                self.flush(object)?;
            }
            let left = if size == 0 { u64::MAX } else { size - offset % size };
            let length =
                usize::try_from(left).map_or(content.len(), |left| left.min(content.len()));
            let (now, later) = content.split_at(length);
            let ends = size == 0 || (offset + length as u64).is_multiple_of(size);
            if ends && self.gathered.1.is_empty() {
                self.piece(object, offset, length as u64, now)?;
            } else {
                if self.gathered.1.is_empty() {
                    self.gathered.0 = offset;
                }
                self.gathered.1.extend_from_slice(now);
                if ends {
                    self.flush(object)?;
                }
            }
            offset += length as u64;
            content = later;
        }
        Ok(())
    }

    fn object_end(&mut self, object: u64) -> Folding<()> {
        self.flush(object)?;
        if let Some(payload) = self.spill.take() {
            let header = Spill {
                object,
                length: payload.len() as u64,
                flags: 0,
                compression: 0,
                compressed_size: 0,
                sealed: Sealed::default(),
                kind: object_type::SA,
            };
            let block = SpillBlock { header: &header, payload: &payload };
            self.sink.spill(block).map_err(of_sink)?;
        }
        self.sink.object_end(object).map_err(of_sink)
    }
}
