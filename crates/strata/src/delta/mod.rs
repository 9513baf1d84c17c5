//! Deltas: what changed in an image since another delta, sorted by object and offset.
//!
//! A delta is an index: Parquet files whose rows are in ascending order (`rows.rs` names the columns), and a
//! descriptor, a small JSON object that is written last and names them with their hashes. [`DeltaWriter`] takes
//! entries in order; [`ImageWriter`] takes block data too and packs it; [`DeltaReader`] reads in order, with one row
//! group at a time in memory.

mod descriptor;
mod image;
mod reader;
mod rows;
mod table_reader;
mod table_writer;
mod writer;

pub use descriptor::{Descriptor, IndexFile, chain, descriptor_path, read_descriptor};
pub use image::{ImageOptions, ImageWriter};
pub use reader::{DeltaReader, ReadOptions, packs};
pub use rows::PackRow;
pub use writer::{DeltaWriter, IndexOptions};

use bytes::Bytes;

use crate::error::Result;
use crate::pack::Location;

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

    /// The first object after it; `u64::MAX` stands for all that there are.
    pub fn end(&self) -> u64 {
        match self {
            Entry::Freed { first, count } => first.saturating_add(*count),
            Entry::Changed(change) => change.object.saturating_add(1),
        }
    }
}

/// An object that is new or changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Its number.
    pub object: u64,
    /// Nothing of an older object of this number counts: neither content nor header nor spill.
    pub fresh: bool,
    /// Its properties, where the delta has them; opaque.
    pub header: Option<Bytes>,
    /// From here on the object holds nothing older than this delta.
    pub tail: Option<u64>,
    /// What belongs to the object beside its content, where the delta has it; opaque.
    pub spill: Option<Bytes>,
}

/// A range of an object: a block, a part of one, or a hole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Where it begins.
    pub offset: u64,
    /// How long it is; `u64::MAX` is up to the end, for a hole.
    pub length: u64,
    /// The block; `None` for a hole.
    pub block: Option<Block>,
}

/// A block as it was written, of which an extent may be a part.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Block {
    /// Where its bytes are.
    pub location: Location,
    /// How much of it comes before the extent.
    pub skip: u64,
    /// How long it is in the object.
    pub length: u64,
    /// How its bytes become its content: 0, they are it; else the caller's.
    pub form: u64,
    /// What the caller knows about the whole block (its pages' hashes); opaque.
    pub note: Option<Bytes>,
}

impl Extent {
    /// Where it ends.
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(self.length)
    }

    /// A hole.
    pub fn hole(offset: u64, length: u64) -> Extent {
        Extent { offset, length, block: None }
    }

    /// The part of it between two offsets, both within it.
    pub(crate) fn part(&self, from: u64, to: u64) -> Extent {
        let block = self.block.as_ref().map(|block| Block {
            skip: block.skip + from.saturating_sub(self.offset),
            ..block.clone()
        });
        let length = if to == u64::MAX { u64::MAX } else { to.saturating_sub(from) };
        Extent { offset: from, length, block }
    }

    /// Where the extent's own bytes are, if its block's bytes are its content.
    pub fn content(&self) -> Option<Location> {
        let block = self.block.as_ref().filter(|block| block.form == 0)?;
        let start = block.location.start.checked_add(block.skip)?;
        (block.skip.checked_add(self.length)? <= block.location.size).then_some(Location {
            start,
            size: self.length,
            ..block.location
        })
    }
}

/// Objects in ascending order, and each object's extents in ascending order.
pub trait Delta {
    /// The entry at hand; `None` before the first and after the last.
    fn entry(&self) -> Option<&Entry>;

    /// Goes to the next entry; what is left of the one at hand is passed over.
    fn next_entry(&mut self) -> Result<()>;

    /// The extent at hand of the entry at hand.
    fn extent(&self) -> Option<&Extent>;

    /// Goes to the next extent.
    fn next_extent(&mut self) -> Result<()>;

    /// Passes over entries before the last one that begins at `object` or before it, or over fewer; never back. What
    /// was passed over may have left its extents behind, as [`Delta::leave_extents`] does.
    fn seek(&mut self, object: u64) -> Result<()> {
        let _ = object;
        if self.entry().is_none() { self.next_entry() } else { Ok(()) }
    }

    /// The extents of the entry at hand, and of those that follow, aren't wanted.
    fn leave_extents(&mut self) {}

    /// They are wanted again, from those of the entry at hand on.
    fn meet_extents(&mut self) -> Result<()> {
        Ok(())
    }
}

macro_rules! delegated {
    ($($of:ty),*) => {$(
        impl<D: Delta + ?Sized> Delta for $of {
            fn entry(&self) -> Option<&Entry> {
                (**self).entry()
            }

            fn next_entry(&mut self) -> Result<()> {
                (**self).next_entry()
            }

            fn extent(&self) -> Option<&Extent> {
                (**self).extent()
            }

            fn next_extent(&mut self) -> Result<()> {
                (**self).next_extent()
            }

            fn seek(&mut self, object: u64) -> Result<()> {
                (**self).seek(object)
            }

            fn leave_extents(&mut self) {
                (**self).leave_extents();
            }

            fn meet_extents(&mut self) -> Result<()> {
                (**self).meet_extents()
            }
        }
    )*};
}

delegated!(Box<D>, &mut D);
