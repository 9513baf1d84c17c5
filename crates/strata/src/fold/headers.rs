//! The resulting headers of a chain's objects, without their extents.

use bytes::Bytes;

use super::layers::{Layer, merge_headers};
use super::{Rules, open_chain};
use crate::delta::{Delta, DeltaReader, Descriptor};
use crate::error::Result;
use crate::repository::Repository;

/// Looks up headers of a whole image, in ascending order of objects.
pub struct Headers<R> {
    /// Newest first.
    layers: Vec<Layer<DeltaReader>>,
    rules: R,
}

impl<R: Rules> Headers<R> {
    /// Opens a chain, oldest first. Its object tables are read only as far as lookups need; `memory` is about what they
    /// may take.
    pub fn open(
        repository: &Repository,
        chain: &[Descriptor],
        rules: R,
        memory: u64,
    ) -> Result<Headers<R>> {
        let without_extents =
            |descriptor: &Descriptor| Descriptor { extents: Vec::new(), ..descriptor.clone() };
        let chain: Vec<Descriptor> = chain.iter().map(without_extents).collect();
        let readers = open_chain(repository, &chain, memory)?;
        let mut layers: Vec<_> = readers.into_iter().map(Layer::new).collect();
        for layer in &mut layers {
            layer.delta.next_entry()?;
        }
        layers.reverse();
        Ok(Headers { layers, rules })
    }

    /// Returns the header of an object; `None` if the image has no such object. Objects before the last one looked up
    /// can't be looked up any more.
    pub fn get(&mut self, object: u64) -> Result<Option<Bytes>> {
        for layer in &mut self.layers {
            layer.catch_up(object, &self.rules)?;
        }
        Ok(merge_headers(&self.layers, object, &self.rules).header)
    }
}
