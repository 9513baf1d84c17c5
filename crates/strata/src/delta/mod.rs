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

    /// Returns the first object after the entry; `u64::MAX` means that the entry covers all that follow.
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
    /// Nothing of an older object with this number counts: no content, header or spill.
    pub fresh: bool,
    /// Its properties, if the delta has them; opaque.
    pub header: Option<Bytes>,
    /// From this offset on, the object holds nothing older than this delta.
    pub tail: Option<u64>,
    /// What belongs to the object besides its content, if the delta has it; opaque.
    pub spill: Option<Bytes>,
}

/// A range of an object: a block, a part of one, or a hole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Where it begins.
    pub offset: u64,
    /// How long it is; for a hole, `u64::MAX` means to the end.
    pub length: u64,
    /// The block; `None` for a hole.
    pub block: Option<Block>,
}

/// A block as it was written. An extent may be only a part of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Block {
    /// Where its bytes are.
    pub location: Location,
    /// How much of it comes before the extent.
    pub skip: u64,
    /// How long it is in the object.
    pub length: u64,
    /// How its bytes become its content: 0 means that they are the content; other values are the caller's.
    pub form: u64,
    /// What the caller knows about the whole block (its pages' hashes); opaque.
    pub note: Option<Bytes>,
}

impl Extent {
    /// Returns where it ends.
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(self.length)
    }

    /// Makes a hole.
    pub fn hole(offset: u64, length: u64) -> Extent {
        Extent { offset, length, block: None }
    }

    /// Returns the part of it between two offsets that are both within it.
    pub(crate) fn part(&self, from: u64, to: u64) -> Extent {
        let block = self.block.as_ref().map(|block| Block {
            skip: block.skip + from.saturating_sub(self.offset),
            ..block.clone()
        });
        let length = if to == u64::MAX { u64::MAX } else { to.saturating_sub(from) };
        Extent { offset: from, length, block }
    }

    /// Returns where the extent's own bytes are, if its block's bytes are its content.
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
    /// Returns the current entry; `None` before the first and after the last.
    fn entry(&self) -> Option<&Entry>;

    /// Moves to the next entry and passes over what is left of the current one.
    fn next_entry(&mut self) -> Result<()>;

    /// Returns the current extent of the current entry.
    fn extent(&self) -> Option<&Extent>;

    /// Moves to the next extent.
    fn next_extent(&mut self) -> Result<()>;

    /// Passes over all or some of the entries before the last one that begins at or before `object`; never moves back.
    /// It may skip the extents of what it passed over, as [`Delta::leave_extents`] does.
    fn seek(&mut self, object: u64) -> Result<()> {
        let _ = object;
        if self.entry().is_none() { self.next_entry() } else { Ok(()) }
    }

    /// Skips the extents of the current entry and of those that follow.
    fn leave_extents(&mut self) {}

    /// Reads extents again, starting with those of the current entry.
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
