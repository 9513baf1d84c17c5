//! Writes a delta with its data: blocks into frames, frames into packs, their places into the index.

use std::collections::VecDeque;
use std::path::PathBuf;

use bytes::Bytes;

use super::descriptor::Descriptor;
use super::writer::{DeltaWriter, IndexOptions};
use super::{Block, Change, Extent};
use crate::error::Result;
use crate::lease::{HELD, Still};
use crate::pack::{Location, PackOptions, PackWriter, Placed};
use crate::repository::Repository;

/// The most extents that may wait for their frame: at this number the frame is closed before it is full.
const WAITING: usize = 16 << 10;

/// How an image is written.
#[derive(Clone, Debug)]
pub struct ImageOptions {
    /// A frame is closed when its content has reached this size.
    pub frame_size: usize,
    /// The packs.
    pub packs: PackOptions,
    /// The index.
    pub index: IndexOptions,
    /// A local file that records what is stored, so that the same image isn't sent again after an interruption.
    pub resume: Option<PathBuf>,
}

impl Default for ImageOptions {
    fn default() -> ImageOptions {
        ImageOptions {
            frame_size: 1 << 20,
            packs: PackOptions::default(),
            index: IndexOptions::default(),
            resume: None,
        }
    }
}

/// Writes a delta and its data. After a crash before [`ImageWriter::finish`], all that exists of it is packs that
/// nothing refers to.
pub struct ImageWriter {
    delta: DeltaWriter,
    packs: PackWriter,
    frame_size: usize,
    /// Content of the frame that is being filled.
    content: Vec<u8>,
    /// Extents whose bytes are in it, and the holes between them.
    waiting: Vec<(u64, Extent)>,
    /// The extents of frames that have no place yet, oldest first.
    unplaced: VecDeque<Vec<(u64, Extent)>>,
    resume: Option<PathBuf>,
}

impl ImageWriter {
    /// Starts a delta named `id`, which changes `base`.
    pub fn new(
        repository: &Repository,
        image: &str,
        id: &str,
        base: Option<&str>,
        options: &ImageOptions,
    ) -> Result<ImageWriter> {
        Ok(ImageWriter {
            delta: DeltaWriter::new(repository, image, id, base, &options.index)?,
            packs: PackWriter::new(repository, options.packs, options.resume.as_deref())?,
            resume: options.resume.clone(),
            frame_size: options.frame_size.clamp(1, crate::frame::MAX_CONTENT / 2),
            content: Vec::new(),
            waiting: Vec::new(),
            unplaced: VecDeque::new(),
        })
    }

    /// Records that these objects no longer exist.
    pub fn freed(&mut self, first: u64, count: u64) -> Result<()> {
        self.delta.freed(first, count)
    }

    /// Records that this object is new or changed; its extents follow.
    pub fn changed(&mut self, change: Change) -> Result<()> {
        self.delta.changed(change)
    }

    /// Sets the spill of the current object.
    pub fn spill(&mut self, spill: Bytes) -> Result<()> {
        self.delta.spill(spill)
    }

    /// Adds a hole in the current object.
    pub fn hole(&mut self, offset: u64, length: u64) -> Result<()> {
        let object = self.delta.claim_extent(offset, length, false)?;
        self.wait(object, Extent::hole(offset, length))
    }

    /// Adds a block of the current object; `content` is its content as it is.
    pub fn data(&mut self, offset: u64, content: &[u8]) -> Result<()> {
        self.block(offset, content.len() as u64, 0, None, content)
    }

    /// Adds a block of the current object: `length` bytes of it, written as `bytes` in the form `form`.
    pub fn block(
        &mut self,
        offset: u64,
        length: u64,
        form: u64,
        note: Option<Bytes>,
        bytes: &[u8],
    ) -> Result<()> {
        let object = self.delta.claim_extent(offset, length, true)?;
        if !self.content.is_empty() && self.content.len() + bytes.len() > self.frame_size {
            self.close_frame()?;
        }
        // The frame's place is filled in later.
        let location = Location {
            start: self.content.len() as u64,
            size: bytes.len() as u64,
            ..Location::default()
        };
        let block = Block { location, skip: 0, length, form, note };
        self.content.extend_from_slice(bytes);
        self.wait(object, Extent { offset, length, block: Some(block) })
    }

    fn wait(&mut self, object: u64, extent: Extent) -> Result<()> {
        self.waiting.push((object, extent));
        if self.content.len() >= self.frame_size || self.waiting.len() >= WAITING {
            self.close_frame()?;
        }
        Ok(())
    }

    fn close_frame(&mut self) -> Result<()> {
        let waiting = std::mem::take(&mut self.waiting);
        if waiting.iter().all(|(_, extent)| extent.block.is_none()) {
            // Holes alone need no frame, but must not overtake the blocks before them.
            match self.unplaced.back_mut() {
                Some(last) if last.len() < 2 * WAITING => {
                    last.extend(waiting);
                    return Ok(());
                }
                Some(_) => {}
                None => {
                    return waiting
                        .into_iter()
                        .try_for_each(|(object, extent)| self.delta.write_extent(object, extent));
                }
            }
        }
        // Allocated at its expected size: growing step by step would copy it twice.
        let next = Vec::with_capacity(self.frame_size.min(self.content.len() * 2));
        let content = std::mem::replace(&mut self.content, next);
        self.unplaced.push_back(waiting);
        let mut placed = Vec::new();
        self.packs.push(content, &mut |place| placed.push(place))?;
        place(&mut self.delta, &mut self.unplaced, placed)
    }

    /// Sets what the caller knows about the image's state, for its descriptor.
    pub fn about(&mut self, about: serde_json::Value) {
        self.delta.about(about);
    }

    /// Stores what is left: packs, then the index, then the descriptor, with which the delta exists.
    pub fn finish(self) -> Result<Descriptor> {
        self.finish_if(HELD)
    }

    /// Does the same, and calls `still` before each try to write the descriptor, which may replace one that sets need.
    pub fn finish_if(mut self, still: Still<'_>) -> Result<Descriptor> {
        self.close_frame()?;
        let mut placed = Vec::new();
        let packed = self.packs.finish(&mut |place| placed.push(place))?;
        place(&mut self.delta, &mut self.unplaced, placed)?;
        let descriptor = self.delta.finish_if(packed, still)?;
        if let Some(resume) = &self.resume {
            PackWriter::forget(resume);
        }
        Ok(descriptor)
    }
}

/// Writes the extents of frames whose place is known now.
fn place(
    delta: &mut DeltaWriter,
    unplaced: &mut VecDeque<Vec<(u64, Extent)>>,
    placed: Vec<Placed>,
) -> Result<()> {
    for Placed { pack, at, length } in placed {
        for (object, mut extent) in unplaced.pop_front().unwrap_or_default() {
            if let Some(block) = &mut extent.block {
                let location = &mut block.location;
                (location.pack, location.frame, location.frame_length) = (pack, at, length);
            }
            delta.write_extent(object, extent)?;
        }
    }
    Ok(())
}
