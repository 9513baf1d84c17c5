//! Reads the data of a fold's result as it comes.

use bytes::Bytes;

use super::{Folded, Sink};
use crate::delta::{Block, Extent};
use crate::error::{Error, Result};
use crate::pack::{FrameReader, Location};

/// Receives the result of a fold with its data.
pub trait DataSink {
    /// Receives objects that no longer exist; never called for a full result.
    fn freed(&mut self, first: u64, count: u64) -> Result<()> {
        let _ = (first, count);
        Ok(())
    }

    /// Returns the first wanted object from `from` on, like [`Sink::wanted`].
    fn wanted(&mut self, from: u64) -> Result<Option<u64>> {
        Ok(Some(from))
    }

    /// Receives an object.
    fn object(&mut self, object: &Folded) -> Result<()>;

    /// Whether the content of the current object is wanted, like [`Sink::wants_extents`].
    fn wants_extents(&mut self) -> bool {
        true
    }

    /// Whether the content of an object is wanted when reading ahead; called before the object is passed.
    fn wants_content_of(&mut self, object: u64) -> bool {
        let _ = object;
        true
    }

    /// Receives a hole where the base may have data.
    fn hole(&mut self, object: u64, offset: u64, length: u64) -> Result<()> {
        let _ = (object, offset, length);
        Ok(())
    }

    /// Whether a block's data shall stay unread; then [`DataSink::data`] isn't called for it.
    fn skips(&mut self, object: u64, extent: &Extent) -> Result<bool> {
        let _ = (object, extent);
        Ok(false)
    }

    /// Receives content of the object.
    fn data(&mut self, object: u64, offset: u64, content: &Bytes) -> Result<()>;

    /// Receives a part of a block in one of the caller's forms: the extent, and the whole block's bytes.
    fn formed(&mut self, object: u64, extent: &Extent, bytes: &Bytes) -> Result<()> {
        let _ = bytes;
        let form = extent.block.as_ref().map_or(0, |block| block.form);
        Err(Error::caller(format!(
            "object {object} has a block at {} in form {form}, which is not known here",
            extent.offset
        )))
    }

    /// Ends the object: nothing more follows for it.
    fn object_end(&mut self, object: u64) -> Result<()> {
        let _ = object;
        Ok(())
    }
}

/// Turns a fold's result into a [`DataSink`]'s input by reading frames.
pub struct Reading<'a, S> {
    frames: &'a mut FrameReader,
    sink: &'a mut S,
}

impl<'a, S: DataSink> Reading<'a, S> {
    /// Reads with `frames` and passes data to `sink`.
    pub fn new(frames: &'a mut FrameReader, sink: &'a mut S) -> Reading<'a, S> {
        Reading { frames, sink }
    }

    fn block(&mut self, object: u64, extent: &Extent, block: &Block) -> Result<()> {
        if block.form != 0 {
            let bytes = self.frames.read(&block.location)?;
            return self.sink.formed(object, extent, &bytes);
        }
        let content = block_content(object, extent)?;
        self.sink.data(object, extent.offset, &self.frames.read(&content)?)
    }
}

/// Returns where an extent's part of its block's content is.
pub(super) fn block_content(object: u64, extent: &Extent) -> Result<Location> {
    extent.content().ok_or_else(|| Error::Invalid {
        what: "extent",
        value: format!("{object}/{}+{}", extent.offset, extent.length),
        expected: "within its block",
    })
}

impl<S: DataSink> Sink for Reading<'_, S> {
    fn freed(&mut self, first: u64, count: u64) -> Result<()> {
        self.sink.freed(first, count)
    }

    fn wanted(&mut self, from: u64) -> Result<Option<u64>> {
        self.sink.wanted(from)
    }

    fn object(&mut self, object: &Folded) -> Result<()> {
        self.sink.object(object)
    }

    fn wants_extents(&mut self) -> bool {
        self.sink.wants_extents()
    }

    fn extent(&mut self, object: u64, extent: &Extent) -> Result<()> {
        match &extent.block {
            Some(_) if self.sink.skips(object, extent)? => Ok(()),
            Some(block) => self.block(object, extent, block),
            None => self.sink.hole(object, extent.offset, extent.length),
        }
    }

    fn object_end(&mut self, object: u64) -> Result<()> {
        self.sink.object_end(object)
    }
}
