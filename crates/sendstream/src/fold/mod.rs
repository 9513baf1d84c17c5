//! Folding: several deltas of one data set, oldest first, become one, newest wins.
//!
//! A delta is anything that lists objects in ascending order and each object's extents in ascending order: a send
//! stream ([`StreamDelta`]), or whatever else a caller has that is sorted so. [`fold`] merges them by (object, offset) and
//! hands the result to a [`Sink`]: a writer of streams ([`StreamSink`]), a file system's tree, a counter. It holds
//! one record of each delta and nothing else, and asks a delta for a block's data only where that block lives on.
//!
//! The rules are those of `zfs receive` (OpenZFS `module/zfs/dmu_recv.c`), taken together over the whole chain;
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

/// What a delta says about objects, in ascending order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// These objects aren't there any more.
    Freed {
        /// The first.
        first: u64,
        /// How many.
        count: u64,
    },
    /// This object is new or changed.
    Changed(Change),
}

impl Entry {
    /// The object, or the first of them.
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
    /// Its properties, where the delta has them.
    pub header: Option<Object>,
    /// Its bonus.
    pub bonus: Vec<u8>,
    /// From here on the object holds nothing older than this delta.
    pub tail: Option<u64>,
}

/// A range of an object in a delta.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Where it begins.
    pub offset: u64,
    /// How long it is; `u64::MAX` is up to the end.
    pub length: u64,
    /// Whether it has data or is a hole.
    pub is_data: bool,
}

impl Extent {
    /// Where it ends.
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(self.length)
    }
}

/// A block as its record has it.
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
    /// Offset in the object.
    pub fn offset(&self) -> u64 {
        match self.header {
            BlockHeader::Write(write) => write.offset,
            BlockHeader::Embedded(write) => write.offset,
        }
    }

    /// Length in the object.
    pub fn length(&self) -> u64 {
        match self.header {
            BlockHeader::Write(write) => write.logical_size,
            BlockHeader::Embedded(write) => write.length,
        }
    }

    /// The block's content.
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

/// A block, or the part of it that lives on.
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

    /// The piece's content.
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
    /// What it is a delta of, and to what.
    fn begin(&self) -> &Begin;

    /// The entry at hand; `None` before the first and after the last.
    fn entry(&self) -> Option<&Entry>;

    /// Goes to the next entry; what is left of the one at hand is passed over.
    fn next_entry(&mut self) -> Result<()>;

    /// The extent at hand of the entry at hand.
    fn extent(&self) -> Option<Extent>;

    /// Goes to the next extent.
    fn next_extent(&mut self) -> Result<()>;

    /// The data of the extent at hand, which has some.
    fn block(&mut self) -> Result<Block<'_>>;

    /// The spill block of the entry at hand, once there are no more extents.
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

/// Takes the result of a fold, in order.
pub trait Sink {
    /// What the result is.
    fn begin(&mut self, begin: &Begin) -> Result<()>;

    /// Objects that aren't there any more; never called for a full result.
    fn freed(&mut self, first: u64, count: u64) -> Result<()> {
        let _ = (first, count);
        Ok(())
    }

    /// An object and its bonus.
    fn object(&mut self, header: &Object, bonus: &[u8]) -> Result<()>;

    /// Whether an object's data is wanted: who would have to fetch it asks before the object comes. It may come all
    /// the same.
    fn wants_content_of(&mut self, object: u64) -> bool {
        let _ = object;
        true
    }

    /// A hole in the object; never called for a full result.
    fn hole(&mut self, object: u64, offset: u64, length: u64) -> Result<()> {
        let _ = (object, offset, length);
        Ok(())
    }

    /// Data in the object.
    fn piece(&mut self, object: u64, piece: Piece<'_>) -> Result<()>;

    /// The object's spill block, after all of its data.
    fn spill(&mut self, spill: SpillBlock<'_>) -> Result<()>;

    /// Nothing follows for this object.
    fn object_end(&mut self, object: u64) -> Result<()> {
        let _ = object;
        Ok(())
    }
}
