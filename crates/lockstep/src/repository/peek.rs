//! Reads single files of an image. Names are looked up folder by folder, and no more of the indexes is read than that
//! takes.
//!
//! What could go wrong: a folder names an object that isn't there, or the tables that say how attributes are stored
//! are missing. Both are errors, never an empty file.

use std::collections::{BTreeSet, HashSet};

use bytes::Bytes;
use sendstream::fold::Sink as _;
use sendstream::zpl::{NoContent, Node, TreeBuilder};
use strata::delta::{Extent, chain};
use strata::fold::{DataSink, Folded, Lookup, Reading};
use strata::pack::FrameReader;

use super::header::StreamRules;
use super::image::ImageState;
use super::ingest::of_stream;
use super::tree::{FRAME_MEMORY, Names};
use super::unfold::INDEX_MEMORY;
use super::{Repository, no_deltas, of_strata};
use crate::error::{Error, Result};

/// Steps on the way to the attribute tables: the master node, the list of tables, the tables.
const STEPS_TO_TABLES: usize = 3;

/// An image that is being read.
pub struct Peek {
    builder: TreeBuilder<NoContent>,
    lookup: Lookup,
    frames: FrameReader,
    /// Objects whose content isn't stored.
    pub left_out: HashSet<u64>,
    /// Objects that were looked for, whether found or not.
    seen: HashSet<u64>,
    has_all: bool,
}

impl Peek {
    /// Opens an image as it was at a delta.
    ///
    /// # Errors
    /// When the chain is broken or damaged, or it holds no file system.
    pub fn open(repository: &Repository, image: &str, delta: &str) -> Result<Self> {
        let chain = chain(&repository.strata, image, delta, None).map_err(of_strata)?;
        let newest = chain.last().ok_or_else(|| no_deltas(image, delta))?;
        let state = ImageState::of(newest)?;
        let mut builder = TreeBuilder::new(NoContent);
        builder.begin(&state.begin.begin(None)?).map_err(of_stream)?;
        let mut peek = Self {
            builder,
            lookup: Lookup::open(&repository.strata, &chain, INDEX_MEMORY).map_err(of_strata)?,
            frames: FrameReader::new(&repository.strata, FRAME_MEMORY),
            left_out: state.left_out_objects.iter().map(|(object, _)| *object).collect(),
            seen: HashSet::new(),
            has_all: false,
        };
        for _ in 0..STEPS_TO_TABLES {
            let missing = peek.builder.missing();
            peek.load(missing)?;
        }
        if peek.builder.missing().is_empty() {
            return Ok(peek);
        }
        Err(Error::failed(format!(
            "image \"{image}\" has no tables of attributes: it can't be read"
        )))
    }

    /// Reads what is known about objects, in one pass.
    ///
    /// # Errors
    /// When the image is damaged or the store fails.
    pub fn load(&mut self, objects: impl IntoIterator<Item = u64>) -> Result<()> {
        if self.has_all {
            return Ok(());
        }
        let wanted: BTreeSet<u64> =
            objects.into_iter().filter(|object| self.seen.insert(*object)).collect();
        if wanted.is_empty() {
            return Ok(());
        }
        self.fold_names(Some(&wanted))
    }

    /// Reads what is known about all objects.
    ///
    /// # Errors
    /// When the image is damaged or the store fails.
    pub fn load_all(&mut self) -> Result<()> {
        if !std::mem::replace(&mut self.has_all, true) {
            self.fold_names(None)?;
        }
        Ok(())
    }

    fn fold_names(&mut self, wanted: Option<&BTreeSet<u64>>) -> Result<()> {
        let mut names = Names::new(&mut self.builder, wanted, false);
        let mut reading = Reading::new(&mut self.frames, &mut names);
        self.lookup.fold(&StreamRules, &mut reading).map_err(of_strata)
    }

    /// Returns a file or folder.
    ///
    /// # Errors
    /// When the image has its name but not the object, is damaged, or the store fails.
    pub fn node(&mut self, object: u64) -> Result<&Node<()>> {
        self.load([object])?;
        self.builder.node(object).ok_or_else(|| {
            Error::failed(format!("object {object} has a name but isn't in the repository"))
        })
    }

    /// Returns the object at a path of names.
    ///
    /// # Errors
    /// When the image is damaged or the store fails.
    pub fn find<'a>(&mut self, names: impl IntoIterator<Item = &'a [u8]>) -> Result<Option<u64>> {
        let root = self.builder.root();
        let mut at = root.ok_or_else(|| Error::failed("the file system names no root"))?;
        for name in names {
            match self.node(at)?.children.find(name) {
                Some(found) => at = found,
                None => return Ok(None),
            }
        }
        Ok(Some(at))
    }

    /// Passes the content of one file to `each`, in order; what isn't passed is zeros.
    ///
    /// # Errors
    /// When the image is damaged, the store fails, or `each` does.
    pub fn content(
        &mut self,
        object: u64,
        each: impl FnMut(u64, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let size = self.node(object)?.attributes.size;
        let mut sink = Content { object, size, each, failed: None };
        let mut reading = Reading::new(&mut self.frames, &mut sink);
        let folded = self.lookup.fold(&StreamRules, &mut reading);
        match sink.failed {
            Some(error) => Err(error),
            None => folded.map_err(of_strata),
        }
    }

    /// Returns the whole content of a small file.
    ///
    /// # Errors
    /// When it is larger than `limit`, the image is damaged or the store fails.
    pub fn small_file(&mut self, object: u64, limit: u64) -> Result<Vec<u8>> {
        let size = self.node(object)?.attributes.size;
        let length = usize::try_from(size).ok().filter(|_| size <= limit).ok_or_else(|| {
            Error::failed(format!("object {object} has {size} bytes, expected up to {limit}"))
        })?;
        let mut file = vec![0; length];
        self.content(object, |offset, bytes| {
            let room = usize::try_from(offset).ok().and_then(|at| file.get_mut(at..));
            if let Some(room) = room.and_then(|room| room.get_mut(..bytes.len())) {
                room.copy_from_slice(bytes);
            }
            Ok(())
        })?;
        Ok(file)
    }
}

/// Collects one file's content.
struct Content<F> {
    object: u64,
    size: u64,
    each: F,
    failed: Option<Error>,
}

impl<F: FnMut(u64, &[u8]) -> Result<()>> DataSink for Content<F> {
    fn wanted(&mut self, from: u64) -> strata::Result<Option<u64>> {
        Ok(Some(self.object).filter(|object| *object >= from))
    }

    fn object(&mut self, _: &Folded) -> strata::Result<()> {
        Ok(())
    }

    fn skips(&mut self, _: u64, extent: &Extent) -> strata::Result<bool> {
        Ok(extent.offset >= self.size)
    }

    fn data(&mut self, _: u64, offset: u64, content: &Bytes) -> strata::Result<()> {
        // A file's last block may reach past its end.
        let room = usize::try_from(self.size.saturating_sub(offset)).unwrap_or(usize::MAX);
        (self.each)(offset, &content[..content.len().min(room)]).map_err(|error| {
            self.failed = Some(error);
            strata::Error::caller("the reader failed")
        })
    }
}
