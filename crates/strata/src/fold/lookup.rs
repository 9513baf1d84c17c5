//! Looks up single objects of a chain, in any order.

use super::{Rules, Sink, fold, is_full, open_chain};
use crate::delta::{DeltaReader, Descriptor};
use crate::error::Result;
use crate::repository::Repository;

/// A chain that is folded several times, each time for what a sink wants of it. The parts of the indexes that were read
/// last stay open in between, so small tables of a delta are read only once.
pub struct Lookup {
    readers: Vec<DeltaReader>,
    is_full: bool,
}

impl Lookup {
    /// Opens a chain, oldest first; `memory` is about what its indexes may take.
    pub fn open(repository: &Repository, chain: &[Descriptor], memory: u64) -> Result<Lookup> {
        Ok(Lookup { readers: open_chain(repository, chain, memory)?, is_full: is_full(chain) })
    }

    /// Folds it from the beginning.
    pub fn fold(&mut self, rules: &impl Rules, sink: &mut impl Sink) -> Result<()> {
        self.readers.iter_mut().for_each(DeltaReader::rewind);
        fold(self.readers.iter_mut().collect(), self.is_full, rules, sink)
    }
}
