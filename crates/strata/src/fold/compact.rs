//! Merges neighbouring deltas into one. It works on their indexes alone: no data is read or written.

use std::collections::BTreeMap;

use super::{Folded, Rules, Sink, fold, is_full, open_chain};
use crate::delta::{Change, DeltaWriter, Descriptor, Extent, IndexOptions, packs};
use crate::error::{Error, Result};
use crate::lease::Still;
use crate::repository::Repository;

/// After this many objects and extents, `still` is called.
const ASKED_AFTER: u64 = 4096;

/// Writes the fold of neighbouring deltas, oldest first, and replaces the newest with it.
///
/// The merged delta has the newest's id and the oldest's base; holes and frees that matter to older deltas are kept.
/// Its descriptor replaces the newest's in one step. The other deltas stay: delete their descriptors once no set needs
/// them, and [`collect`](crate::check::collect) deletes the files. `still` is called now and then, and before the
/// descriptor is replaced.
pub fn merge(
    repository: &Repository,
    deltas: &[Descriptor],
    rules: &impl Rules,
    memory: u64,
    options: &IndexOptions,
    still: Still<'_>,
) -> Result<Descriptor> {
    let (Some(oldest), Some(newest)) = (deltas.first(), deltas.last()) else {
        return Err(Error::Invalid {
            what: "number of deltas to merge",
            value: "0".to_string(),
            expected: "1 or more",
        });
    };
    let mut sizes = BTreeMap::new();
    for delta in deltas {
        packs(repository, delta, |row| {
            sizes.insert(row.pack, row.packed());
            Ok(())
        })?;
    }
    let base = oldest.base.as_deref();
    let readers = open_chain(repository, deltas, memory)?;
    let writer = DeltaWriter::new(repository, &newest.image, &newest.id, base, options)?;
    let mut sink = Writing { writer, is_full: is_full(deltas), still, written: 0 };
    fold(readers, is_full(deltas), rules, &mut sink)?;
    sink.writer.about(newest.about.clone());
    sink.writer.finish_if(sizes.into_values(), still)
}

struct Writing<'a> {
    writer: DeltaWriter,
    is_full: bool,
    still: Still<'a>,
    /// The number of objects and extents so far.
    written: u64,
}

impl Writing<'_> {
    /// Calls `still` now and then, so that a merge of hours can be ended.
    fn ask(&mut self) -> Result<()> {
        self.written += 1;
        if self.written.is_multiple_of(ASKED_AFTER) { (self.still)() } else { Ok(()) }
    }
}

impl Sink for Writing<'_> {
    fn freed(&mut self, first: u64, count: u64) -> Result<()> {
        self.writer.freed(first, count)
    }

    fn object(&mut self, object: &Folded) -> Result<()> {
        self.ask()?;
        self.writer.changed(Change {
            object: object.object,
            // Nothing is older than a delta without a base.
            fresh: object.fresh && !self.is_full,
            header: object.header.clone(),
            // The tail has become a hole.
            tail: None,
            spill: object.spill.clone(),
        })
    }

    fn extent(&mut self, _: u64, extent: &Extent) -> Result<()> {
        self.ask()?;
        self.writer.extent(extent.clone())
    }
}
