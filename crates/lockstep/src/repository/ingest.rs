//! Turns a send stream into a delta, block by block as the records arrive. Nothing is held in memory but what the
//! stream's reader and the pack's writer hold.
//!
//! What could go wrong: a stream ends early or has a flipped bit. `sendstream` then fails before the delta is
//! finished, so no descriptor is written and nothing refers to what was packed.

use std::io::Read;
use std::ops::Range;

use sendstream::Decompressor;
use sendstream::fold::{Delta, Entry, StreamDelta};
use strata::delta::{Change, ImageWriter};

use super::header::ObjectHeader;
use super::of_strata;
use crate::error::{self, Error, Result};

/// What to do with an object's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// It is stored.
    Stored,
    /// Of each block, only what [`Visitor::changed`] names is stored; the rest is as it was in the base.
    Changed,
    /// It isn't stored: the object becomes a hole.
    LeftOut,
}

/// An object that begins.
#[derive(Debug)]
pub struct Announced<'a> {
    /// Its number.
    pub object: u64,
    /// Its header, if its record was in the stream.
    pub header: Option<&'a ObjectHeader>,
    /// From this offset on, nothing of the base's object counts.
    pub tail: Option<u64>,
}

/// Watches a stream's objects go by, and decides about them.
pub trait Visitor {
    /// Called when an object begins.
    ///
    /// # Errors
    /// To end the whole stream.
    fn object(&mut self, announced: &Announced<'_>) -> Result<Content>;

    /// Returns the ranges of a block that differ from the base's; `None` means all of it.
    ///
    /// # Errors
    /// To end the whole stream.
    fn changed(&mut self, offset: u64, bytes: &[u8]) -> Result<Option<Vec<Range<usize>>>>;

    /// Called for a hole in the object, in order with its blocks; never in a full stream.
    fn hole(&mut self, offset: u64, length: u64);

    /// Called for objects that are gone; never in a full stream.
    fn freed(&mut self, first: u64, count: u64);

    /// Called with content of the object, in ascending order.
    fn content(&mut self, object: u64, offset: u64, bytes: &[u8]);

    /// Called with the number of bytes of the stream read so far.
    ///
    /// # Errors
    /// To end the whole stream.
    fn progress(&mut self, bytes: u64) -> Result<()>;
}

/// Writes a stream into `writer`, which the caller finishes. Returns the number of bytes read.
///
/// # Errors
/// When the stream is damaged or of a kind that can't be looked into, or the store fails.
pub fn ingest<R: Read>(
    delta: &mut StreamDelta<R>,
    writer: &mut ImageWriter,
    visitor: &mut impl Visitor,
) -> Result<u64> {
    let begin = delta.begin().clone();
    let is_full = begin.is_full();
    let mut decompressor = Decompressor::new();
    loop {
        delta.next_entry().map_err(of_stream)?;
        visitor.progress(delta.reader().bytes_read())?;
        let Some(entry) = delta.entry() else { break };
        let change = match entry {
            Entry::Freed { first, count } => {
                if !is_full {
                    visitor.freed(*first, *count);
                    writer.freed(*first, *count).map_err(of_strata)?;
                }
                continue;
            }
            Entry::Changed(change) => change,
        };
        let object = change.object;
        let header = change.header.as_ref().map(|record| ObjectHeader {
            object: sendstream::record::Object { object: 0, ..record.clone() },
            bonus: change.bonus.clone(),
            order: begin.order,
            has_spill_flags: begin.has_spill_flags(),
            ends_spill: false,
        });
        let announced = Announced { object, header: header.as_ref(), tail: change.tail };
        let content = visitor.object(&announced)?;
        let tail = match content {
            Content::Stored | Content::Changed => change.tail.filter(|_| !is_full),
            Content::LeftOut => (!is_full).then_some(0),
        };
        let header = header.map(|header| header.to_bytes());
        let stored = Change { object, fresh: false, header, tail, spill: None };
        writer.changed(stored).map_err(of_strata)?;
        while let Some(extent) = delta.extent() {
            if content == Content::LeftOut {
                delta.next_extent().map_err(of_stream)?;
                continue;
            }
            if extent.is_data {
                let block = delta.block().map_err(of_stream)?;
                let offset = block.offset();
                let bytes = block.content(&mut decompressor).map_err(of_stream)?;
                visitor.content(object, offset, bytes);
                let changed = match content {
                    Content::Changed => visitor.changed(offset, bytes)?,
                    _ => None,
                };
                store(writer, offset, bytes, changed)?;
            } else if !is_full {
                visitor.hole(extent.offset, extent.length);
                writer.hole(extent.offset, extent.length).map_err(of_strata)?;
            }
            delta.next_extent().map_err(of_stream)?;
            visitor.progress(delta.reader().bytes_read())?;
        }
        if let Some(spill) = delta.spill() {
            writer.spill(spill.payload.to_vec().into()).map_err(of_strata)?;
        }
    }
    Ok(delta.reader().bytes_read())
}

fn store(
    writer: &mut ImageWriter,
    offset: u64,
    bytes: &[u8],
    changed: Option<Vec<Range<usize>>>,
) -> Result<()> {
    let Some(ranges) = changed else {
        return writer.data(offset, bytes).map_err(of_strata);
    };
    for range in ranges {
        let at = offset + range.start as u64;
        let part = bytes.get(range).unwrap_or_default();
        writer.data(at, part).map_err(of_strata)?;
    }
    Ok(())
}

/// Converts an error of the stream crate into one of this program's, with its hint.
pub fn of_stream(error: sendstream::Error) -> Error {
    let hint = error.hint().map(str::to_owned);
    let source = std::error::Error::source(&error).map(error::kept);
    let failed = Error::failed(error.to_string());
    let failed = match source {
        Some(source) => failed.because(source),
        None => failed,
    };
    match hint {
        Some(hint) => failed.with_hint(hint),
        None => failed,
    }
}
