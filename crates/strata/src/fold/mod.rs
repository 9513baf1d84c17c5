//! Folding: the deltas of a chain, oldest first, become one image, in which the newest wins.
//!
//! [`fold`] merges indexes by (object, offset) and passes the result to a [`Sink`] in order; it reads no block data and
//! holds a row group of each delta. Only the caller knows what an object's header means: its [`Rules`] say when an
//! object keeps what older deltas had in it. [`DataSink`] receives the data that is still live, and each frame is read
//! once as far as the order allows; [`merge`] writes the fold of neighbouring deltas as one delta, without reading
//! data.

mod ahead;
mod compact;
mod data;
mod headers;
mod layers;
mod lookup;
mod run;

pub use ahead::ReadingAhead;
pub use compact::merge;
pub use data::{DataSink, Reading};
pub use headers::Headers;
pub use lookup::Lookup;
pub use run::fold;

use bytes::Bytes;

use crate::delta::{DeltaReader, Descriptor, Extent, ReadOptions};
use crate::error::{Error, Result};
use crate::repository::Repository;

/// What an object in a newer delta inherits from the one in an older delta.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heritage {
    /// It is the same object: what isn't overwritten stays.
    Kept {
        /// The header to continue with, if it isn't the newer one unchanged.
        header: Option<Bytes>,
        /// Whether the older object's spill stays if the newer has none.
        spill: bool,
    },
    /// The number was given to another object: nothing stays.
    Dropped,
}

/// Rules for what only the caller knows about objects.
///
/// Heritage must be transitive: if b keeps from a and c keeps from b, then c keeps from a. Then the order in which the
/// deltas of a chain are merged makes no difference.
pub trait Rules {
    /// Returns what a newer header leaves of an object with the same number in an older delta. `newer` is the fold's
    /// result so far, from the newest delta down.
    fn heritage(&self, older: &[u8], newer: &[u8]) -> Heritage;

    /// Returns how many object numbers the object takes: those after its own hold no other object.
    fn slots(&self, header: &[u8]) -> u64 {
        let _ = header;
        1
    }

    /// Returns the most that [`Rules::slots`] returns for any header. This many numbers before an object must be read
    /// to know about it. By default, all of them are.
    fn most_slots(&self) -> u64 {
        u64::MAX
    }

    /// Whether an object with this header can have a spill.
    fn has_spill(&self, header: &[u8]) -> bool {
        let _ = header;
        true
    }
}

/// Rules for objects that stay the same until they are freed.
#[derive(Clone, Copy, Debug, Default)]
pub struct KeepAll;

impl Rules for KeepAll {
    fn heritage(&self, _: &[u8], _: &[u8]) -> Heritage {
        Heritage::Kept { header: None, spill: true }
    }

    fn most_slots(&self) -> u64 {
        1
    }
}

/// An object of the result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Folded {
    /// Its number.
    pub object: u64,
    /// Nothing of the base's object with this number counts; always set in a full result.
    pub fresh: bool,
    /// Its header; every object of a full result has one.
    pub header: Option<Bytes>,
    /// Its spill.
    pub spill: Option<Bytes>,
}

/// Receives the result of a fold, in order.
pub trait Sink {
    /// Receives objects that no longer exist; never called for a full result.
    fn freed(&mut self, first: u64, count: u64) -> Result<()> {
        let _ = (first, count);
        Ok(())
    }

    /// Receives an object.
    fn object(&mut self, object: &Folded) -> Result<()>;

    /// Returns the first wanted object from `from` on; `None` if no more are wanted. The others aren't passed, and no
    /// more of the index is read than needed.
    fn wanted(&mut self, from: u64) -> Result<Option<u64>> {
        Ok(Some(from))
    }

    /// Whether the extents of the current object are wanted.
    fn wants_extents(&mut self) -> bool {
        true
    }

    /// Receives an extent of the current object; a hole only if the base may have something there.
    fn extent(&mut self, object: u64, extent: &Extent) -> Result<()>;

    /// Ends the object: nothing more follows for it.
    fn object_end(&mut self, object: u64) -> Result<()> {
        let _ = object;
        Ok(())
    }
}

/// Opens a chain for [`fold`], oldest first, and checks that the deltas follow each other.
///
/// `memory` is about what their indexes may take in total; each delta takes at least a row group of each table.
pub fn open_chain(
    repository: &Repository,
    chain: &[Descriptor],
    memory: u64,
) -> Result<Vec<DeltaReader>> {
    for (older, newer) in chain.iter().zip(chain.iter().skip(1)) {
        if newer.base.as_deref() != Some(&*older.id) || newer.image != older.image {
            let why = format!(
                "delta \"{}\" changes \"{}\", but comes after \"{}\"",
                newer.id,
                newer.base.as_deref().unwrap_or("nothing"),
                older.id
            );
            return Err(Error::Chain { image: newer.image.clone(), why });
        }
    }
    // Half is for the bytes of two tables as they are in the files; the rest is for decoded rows.
    let read_ahead = memory / 4 / chain.len().max(1) as u64;
    let options = ReadOptions { read_ahead: read_ahead.min(4 << 20) };
    Ok(chain
        .iter()
        .map(|descriptor| DeltaReader::new(repository, descriptor.clone(), options))
        .collect())
}

/// Whether a chain's fold is a whole image, not an increment to one.
pub fn is_full(chain: &[Descriptor]) -> bool {
    chain.first().is_some_and(|first| first.base.is_none())
}
