//! What is needed: by sets, and by what is being written.
//!
//! What could go wrong: something that is needed and isn't found to be, which is then deleted. So whatever of a set
//! can't be read is an error.

use std::collections::{BTreeMap, BTreeSet};

use crate::delta::{packs, read_descriptor};
use crate::error::Result;
use crate::id::Ulid;
use crate::manifest::{DeltaId, Manifest};
use crate::pack::Packed;
use crate::repository::Repository;

/// What is needed.
#[derive(Default)]
pub(crate) struct Live {
    pub(crate) deltas: BTreeSet<DeltaId>,
    pub(crate) indexes: BTreeSet<String>,
    /// Packs, and how many bytes of content deltas name in them; what two name is counted twice.
    pub(crate) packs: BTreeMap<Ulid, (Packed, u64)>,
}

impl Live {
    /// Notes all that sets need.
    pub(crate) fn sets(&mut self, repository: &Repository) -> Result<()> {
        for set in Manifest::list(repository)? {
            for delta in Manifest::read(repository, &set)?.deltas {
                self.chain(repository, delta, false)?;
            }
        }
        Ok(())
    }

    /// Notes a delta and all that it comes from. With `may_end` it may end where a delta isn't there.
    pub(crate) fn chain(
        &mut self,
        repository: &Repository,
        delta: DeltaId,
        may_end: bool,
    ) -> Result<()> {
        let mut next = Some(delta);
        while let Some(delta) = next.take() {
            if self.deltas.contains(&delta) {
                return Ok(());
            }
            let descriptor = match read_descriptor(repository, &delta.image, &delta.id) {
                Err(error) if may_end && error.is_not_found() => return Ok(()),
                result => result?,
            };
            for file in descriptor.files() {
                self.indexes.insert(repository.image_path(&delta.image, &file.name));
            }
            packs(repository, &descriptor, |row| {
                self.packs.entry(row.pack).or_insert((row.packed(), 0)).1 += row.live;
                Ok(())
            })?;
            next = descriptor.base.map(|id| DeltaId { image: delta.image.clone(), id });
            self.deltas.insert(delta);
        }
        Ok(())
    }
}
