//! Folding: the deltas of a chain, oldest first, become one image, newest wins.
//!
//! [`fold`] merges indexes by (object, offset) and gives the result to a [`Sink`] in order; it reads no block data and
//! holds a row group of each delta. What an object's header means is the caller's: [`Rules`] says when an object
//! keeps what older deltas had in it. [`DataSink`] reads the data that lives on, each frame once as far as the order
//! allows; [`merge`] writes the fold of neighbouring deltas as one delta, without reading data.

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

/// What an object of a newer delta has from an older one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heritage {
    /// It is the same object: what isn't written over stays.
    Kept {
        /// The header to go on with, where it isn't the newer one as it is.
        header: Option<Bytes>,
        /// Whether the older object's spill stays where the newer has none.
        spill: bool,
    },
    /// The number was given to another object: nothing stays.
    Dropped,
}

/// What only the caller knows about objects.
///
/// Heritage must hold over several steps: where b keeps from a and c from b, c keeps from a. Then it makes no
/// difference which deltas of a chain are merged first.
pub trait Rules {
    /// What a header leaves of an object of the same number in an older delta. `newer` is what the fold has come to
    /// so far, from the newest delta down.
    fn heritage(&self, older: &[u8], newer: &[u8]) -> Heritage;

    /// How many object numbers the object takes: those after its own hold no other.
    fn slots(&self, header: &[u8]) -> u64 {
        let _ = header;
        1
    }

    /// The most that [`Rules::slots`] says of any header. So many numbers before an object have to be looked at to
    /// know about it; where nobody says how many, all are.
    fn most_slots(&self) -> u64 {
        u64::MAX
    }

    /// Whether an object with this header has a spill at all.
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
    /// Nothing of the base's object of this number counts; always set in a full result.
    pub fresh: bool,
    /// Its header; an object of a full result has one.
    pub header: Option<Bytes>,
    /// Its spill.
    pub spill: Option<Bytes>,
}

/// Takes the result of a fold, in order.
pub trait Sink {
    /// Objects that aren't there any more; never called for a full result.
    fn freed(&mut self, first: u64, count: u64) -> Result<()> {
        let _ = (first, count);
        Ok(())
    }

    /// An object.
    fn object(&mut self, object: &Folded) -> Result<()>;

    /// The first object that is wanted, of those from `from` on; none where no more are. The others aren't given, and
    /// of the index no more is read than it takes.
    fn wanted(&mut self, from: u64) -> Result<Option<u64>> {
        Ok(Some(from))
    }

    /// Whether the parts of the object at hand are wanted.
    fn wants_extents(&mut self) -> bool {
        true
    }

    /// A part of the object at hand; a hole only where the base may have something there.
    fn extent(&mut self, object: u64, extent: &Extent) -> Result<()>;

    /// Nothing follows for this object.
    fn object_end(&mut self, object: u64) -> Result<()> {
        let _ = object;
        Ok(())
    }
}

/// Opens a chain for [`fold`], oldest first, after checking that the deltas follow each other.
///
/// `memory` is what their index may take in all, about; no delta takes less than a row group of each table.
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
    // Half for the bytes as they are in the files, of two tables; the rest for what is decoded.
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
