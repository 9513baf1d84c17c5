//! A set in a repository: only what a request needs is read from its indexes and frames.

use std::collections::{BTreeMap, BTreeSet};

use sendstream::zpl::FileType;

use super::{Each, Entry, Inside};
use crate::error::{Error, Result};
use crate::plan::layout::PartKind;
use crate::refusal::Refusal;
use crate::repository::peek::Peek;
use crate::repository::{self, Repository, Shipped};
use crate::set::manifest::{Manifest, WalStored};
use crate::volume::zfs::DatasetName;

/// A set in a repository.
pub(super) struct Stored<'a> {
    repository: &'a Repository,
    shipped: &'a Shipped,
    own: BTreeMap<String, u64>,
    /// The images of the volumes looked into so far.
    volumes: BTreeMap<usize, Peek>,
    wants_all: bool,
}

impl<'a> Stored<'a> {
    pub(super) fn new(repository: &'a Repository, shipped: &'a Shipped) -> Self {
        let files = shipped.manifest.files.iter();
        let own = files.map(|(name, file)| (name.clone(), file.bytes)).collect();
        Self { repository, shipped, own, volumes: BTreeMap::new(), wants_all: false }
    }

    fn volume(&mut self, volume: usize) -> Result<&mut Peek> {
        if !self.volumes.contains_key(&volume) {
            let manifest = &self.shipped.manifest;
            let dataset = manifest.volumes.get(volume).map(|volume| &volume.dataset);
            let shipped = self.shipped.volumes.iter().find(|one| Some(&one.dataset) == dataset);
            let shipped = shipped.ok_or_else(|| {
                Error::failed(format!("a volume of set {} isn't in the repository", manifest.set))
            })?;
            if shipped.raw.is_some() {
                return Err(self.stored_raw(&shipped.dataset));
            }
            let mut peek = Peek::open(self.repository, &shipped.image, &shipped.delta)?;
            if self.wants_all {
                peek.load_all()?;
            }
            self.volumes.insert(volume, peek);
        }
        let peek = self.volumes.get_mut(&volume);
        peek.ok_or_else(|| Error::failed("a volume that was opened isn't there"))
    }

    fn stored_raw(&self, dataset: &DatasetName) -> Error {
        let set = self.shipped.manifest.set.to_string();
        Refusal::StoredRaw { set, dataset: dataset.to_string() }.into()
    }

    fn object(&mut self, volume: usize, path: &[Vec<u8>]) -> Result<Option<(&mut Peek, u64)>> {
        let peek = self.volume(volume)?;
        let object = peek.find(path.iter().map(Vec::as_slice))?;
        Ok(object.map(|object| (peek, object)))
    }
}

impl Inside for Stored<'_> {
    fn manifest(&self) -> &Manifest {
        &self.shipped.manifest
    }

    fn check_wal(&self) -> Result<()> {
        let manifest = &self.shipped.manifest;
        let wal = manifest.parts().find(|(_, part)| part.kind == PartKind::Wal);
        let volume = wal.and_then(|(at, _)| manifest.volumes.get(at));
        match volume.filter(|_| manifest.wal.stored == WalStored::Snapshot) {
            Some(volume) => Err(self.stored_raw(&volume.dataset)),
            None => Ok(()),
        }
    }

    fn own_files(&mut self) -> Result<&BTreeMap<String, u64>> {
        Ok(&self.own)
    }

    fn own_content(&mut self, name: &str, each: Each<'_>) -> Result<()> {
        repository::files::content(self.repository, self.shipped.manifest.set.as_str(), name, each)
    }

    fn entry(&mut self, volume: usize, path: &[Vec<u8>]) -> Result<Option<Entry>> {
        let Some((peek, object)) = self.object(volume, path)? else { return Ok(None) };
        let is_stored = !peek.left_out.contains(&object);
        let attributes = &peek.node(object)?.attributes;
        let kind = attributes.file_type();
        let has_size = matches!(kind, FileType::Regular | FileType::Symlink);
        Ok(Some(Entry {
            path: Vec::new(),
            kind,
            mode: attributes.permissions(),
            owner: Some((attributes.uid, attributes.gid)),
            size: has_size.then_some(attributes.size),
            mtime: Some(attributes.mtime),
            target: attributes.symlink.clone().filter(|_| kind == FileType::Symlink),
            is_stored,
        }))
    }

    fn names(&mut self, volume: usize, path: &[Vec<u8>]) -> Result<BTreeSet<Vec<u8>>> {
        let Some((peek, object)) = self.object(volume, path)? else { return Ok(BTreeSet::new()) };
        let children = &peek.node(object)?.children;
        let (names, objects): (_, Vec<u64>) =
            children.iter().map(|(name, object)| (name.to_vec(), object)).unzip();
        // They are needed next.
        peek.load(objects)?;
        Ok(names)
    }

    fn content(&mut self, volume: usize, path: &[Vec<u8>], each: Each<'_>) -> Result<()> {
        match self.object(volume, path)? {
            Some((peek, object)) => peek.content(object, each),
            None => Ok(()),
        }
    }

    fn prepare(&mut self) {
        self.wants_all = true;
    }
}
