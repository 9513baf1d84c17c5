//! Folding: several deltas of one data set, oldest first, become one, in which the newest wins.
//!
//! A delta is anything that lists objects in ascending order and each object's extents in ascending order: a send
//! stream ([`StreamDelta`]), or whatever else a caller has that is sorted this way. [`fold`] merges them by (object,
//! offset) and passes the result to a [`Sink`]: a writer of streams ([`StreamSink`]), a file system's tree, a counter.
//! It holds one record of each delta and nothing else, and requests a block's data from a delta only if that block is
//! part of the result.
//!
//! The rules are those of `zfs receive` (OpenZFS `module/zfs/dmu_recv.c`), combined over the whole chain;
//! `docs/sendstream.md` of this repository lists them.

mod merge;
mod rules;
mod stream;
mod write;

pub use merge::{fold, tells_of_no_spill};
pub use rules::{Heritage, generation, heritage};
pub use stream::StreamDelta;
pub use write::StreamSink;

use crate::compress::Decompressor;
use crate::error::{Error, Result};
use crate::record::{Begin, Object, Spill, Write, WriteEmbedded};

/// An entry of a delta, about one or several objects. Entries are in ascending order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// These objects no longer exist.
    Freed {
        /// The first object.
        first: u64,
        /// How many objects.
        count: u64,
    },
    /// This object is new or changed.
    Changed(Change),
}

impl Entry {
    /// Returns the object, or the first of several.
    pub fn object(&self) -> u64 {
        match self {
            Entry::Freed { first, .. } => *first,
            Entry::Changed(change) => change.object,
        }
    }
}

/// An object that is new or changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Its number.
    pub object: u64,
    /// Its properties, if the delta has them.
    pub header: Option<Object>,
    /// Its bonus.
    pub bonus: Vec<u8>,
    /// From this offset on, the object holds nothing older than this delta.
    pub tail: Option<u64>,
}

/// A range of an object in a delta.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Where it begins.
    pub offset: u64,
    /// How long it is; `u64::MAX` means to the end.
    pub length: u64,
    /// Whether it has data or is a hole.
    pub is_data: bool,
}

impl Extent {
    /// Returns where it ends.
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(self.length)
    }
}

/// A block as in its record.
#[derive(Clone, Copy, Debug)]
pub struct Block<'a> {
    /// What it is.
    pub header: BlockHeader<'a>,
    /// The record's payload.
    pub payload: &'a [u8],
}

/// The record of a block.
#[derive(Clone, Copy, Debug)]
pub enum BlockHeader<'a> {
    /// WRITE.
    Write(&'a Write),
    /// WRITE_EMBEDDED.
    Embedded(&'a WriteEmbedded),
}

impl<'a> Block<'a> {
    /// Returns its offset in the object.
    pub fn offset(&self) -> u64 {
        match self.header {
            BlockHeader::Write(write) => write.offset,
            BlockHeader::Embedded(write) => write.offset,
        }
    }

    /// Returns its length in the object.
    pub fn length(&self) -> u64 {
        match self.header {
            BlockHeader::Write(write) => write.logical_size,
            BlockHeader::Embedded(write) => write.length,
        }
    }

    /// Returns the block's content.
    pub fn content<'b>(&self, decompressor: &'b mut Decompressor) -> Result<&'b [u8]>
    where
        'a: 'b,
    {
        match self.header {
            BlockHeader::Write(write) if write.compression == 0 => Ok(self.payload),
            BlockHeader::Write(write) => decompressor.decompress(
                write.compression,
                self.payload,
                write.logical_size as usize,
            ),
            BlockHeader::Embedded(write) => {
                let packed =
                    self.payload.get(..write.physical_size as usize).unwrap_or(self.payload);
                decompressor.decompress_padded(
                    write.compression,
                    packed,
                    write.logical_size as usize,
                    write.length as usize,
                )
            }
        }
    }
}

/// A block, or the part of it that is still live.
#[derive(Clone, Copy, Debug)]
pub struct Piece<'a> {
    /// Offset in the object.
    pub offset: u64,
    /// Length in the object.
    pub length: u64,
    /// The whole block.
    pub block: Block<'a>,
}

impl<'a> Piece<'a> {
    /// Whether it is all of the block.
    pub fn is_whole(&self) -> bool {
        self.offset == self.block.offset() && self.length == self.block.length()
    }

    /// Returns the piece's content.
    pub fn content<'b>(&self, decompressor: &'b mut Decompressor) -> Result<&'b [u8]>
    where
        'a: 'b,
    {
        let skip = self.offset.saturating_sub(self.block.offset()) as usize;
        let whole = self.block.content(decompressor)?;
        skip.checked_add(self.length as usize)
            .and_then(|end| whole.get(skip..end))
            .ok_or_else(|| Error::other("a piece lies outside its block"))
    }
}

/// A spill block: header and payload.
#[derive(Clone, Copy, Debug)]
pub struct SpillBlock<'a> {
    /// The record.
    pub header: &'a Spill,
    /// The block.
    pub payload: &'a [u8],
}

/// Objects in ascending order, extents in ascending order.
pub trait Delta {
    /// Returns what it is a delta of, and to what.
    fn begin(&self) -> &Begin;

    /// Returns the current entry; `None` before the first and after the last.
    fn entry(&self) -> Option<&Entry>;

    /// Moves to the next entry and passes over what is left of the current one.
    fn next_entry(&mut self) -> Result<()>;

    /// Returns the current extent of the current entry.
    fn extent(&self) -> Option<Extent>;

    /// Moves to the next extent.
    fn next_extent(&mut self) -> Result<()>;

    /// Returns the block of the current extent, which must have data.
    fn block(&mut self) -> Result<Block<'_>>;

    /// Returns the spill block of the current entry, once there are no more extents.
    fn spill(&self) -> Option<SpillBlock<'_>>;
}

impl<D: Delta + ?Sized> Delta for &mut D {
    fn begin(&self) -> &Begin {
        (**self).begin()
    }

    fn entry(&self) -> Option<&Entry> {
        (**self).entry()
    }

    fn next_entry(&mut self) -> Result<()> {
        (**self).next_entry()
    }

    fn extent(&self) -> Option<Extent> {
        (**self).extent()
    }

    fn next_extent(&mut self) -> Result<()> {
        (**self).next_extent()
    }

    fn block(&mut self) -> Result<Block<'_>> {
        (**self).block()
    }

    fn spill(&self) -> Option<SpillBlock<'_>> {
        (**self).spill()
    }
}

/// Receives the result of a fold, in order.
pub trait Sink {
    /// Receives the BEGIN of the result.
    fn begin(&mut self, begin: &Begin) -> Result<()>;

    /// Receives objects that no longer exist; never called for a full result.
    fn freed(&mut self, first: u64, count: u64) -> Result<()> {
        let _ = (first, count);
        Ok(())
    }

    /// Receives an object and its bonus.
    fn object(&mut self, header: &Object, bonus: &[u8]) -> Result<()>;

    /// Whether an object's data is wanted. A caller that would have to fetch the data asks before it passes the object.
    /// Data may come even if it isn't wanted.
    fn wants_content_of(&mut self, object: u64) -> bool {
        let _ = object;
        true
    }

    /// Receives a hole in the object; never called for a full result.
    fn hole(&mut self, object: u64, offset: u64, length: u64) -> Result<()> {
        let _ = (object, offset, length);
        Ok(())
    }

    /// Receives data of the object.
    fn piece(&mut self, object: u64, piece: Piece<'_>) -> Result<()>;

    /// Receives the object's spill block, after all of its data.
    fn spill(&mut self, spill: SpillBlock<'_>) -> Result<()>;

    /// Ends the object: nothing more follows for it.
    fn object_end(&mut self, object: u64) -> Result<()> {
        let _ = object;
        Ok(())
    }
}
