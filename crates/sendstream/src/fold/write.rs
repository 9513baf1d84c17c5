//! Writes the result of a fold as a send stream.

use std::io::Write as IoWrite;

use super::{BlockHeader, Piece, Sink, SpillBlock};
use crate::compress::Decompressor;
use crate::error::{Error, Result};
use crate::record::{Begin, Free, FreeObjects, Header, Object, Write};
use crate::writer::Writer;

/// Writes the result of a fold as a send stream that `zfs receive` accepts.
#[derive(Debug)]
pub struct StreamSink<W> {
    state: State<W>,
    record_checksums: bool,
    decompressor: Decompressor,
    /// The current object's block size.
    block_size: u64,
    kind: u32,
    /// A hole that isn't written yet, so that holes that touch can be joined.
    hole: Option<Free>,
}

#[derive(Debug)]
enum State<W> {
    Idle(W),
    Writing(Writer<W>),
    Moving,
}

impl<W: IoWrite> StreamSink<W> {
    /// Writes to `output`.
    pub fn new(output: W) -> StreamSink<W> {
        StreamSink {
            state: State::Idle(output),
            record_checksums: true,
            decompressor: Decompressor::new(),
            block_size: 0,
            kind: 0,
            hole: None,
        }
    }

    /// Leaves out the checksum in each record.
    pub fn without_record_checksums(mut self) -> StreamSink<W> {
        self.record_checksums = false;
        self
    }

    /// Writes END.
    pub fn finish(mut self) -> Result<W> {
        self.flush_hole()?;
        match self.state {
            State::Writing(writer) => writer.finish(),
            State::Idle(output) => Ok(output),
            State::Moving => Err(Error::other("the stream could not be begun")),
        }
    }

    fn writer(&mut self) -> Result<&mut Writer<W>> {
        match &mut self.state {
            State::Writing(writer) => Ok(writer),
            _ => Err(Error::other("a record before BEGIN")),
        }
    }

    fn flush_hole(&mut self) -> Result<()> {
        match self.hole.take() {
            Some(hole) => self.writer()?.record(&Header::Free(hole), &[]),
            None => Ok(()),
        }
    }
}

impl<W: IoWrite> Sink for StreamSink<W> {
    fn begin(&mut self, begin: &Begin) -> Result<()> {
        let State::Idle(output) = std::mem::replace(&mut self.state, State::Moving) else {
            return Err(Error::other("BEGIN a second time"));
        };
        let mut writer = Writer::new(output, begin, &[])?;
        if !self.record_checksums {
            writer = writer.without_record_checksums();
        }
        self.state = State::Writing(writer);
        Ok(())
    }

    fn freed(&mut self, first: u64, count: u64) -> Result<()> {
        self.flush_hole()?;
        self.writer()?.record(&Header::FreeObjects(FreeObjects { first, count }), &[])
    }

    fn object(&mut self, header: &Object, bonus: &[u8]) -> Result<()> {
        self.flush_hole()?;
        self.block_size = header.block_size.into();
        self.kind = header.kind;
        self.writer()?.record(&Header::Object(header.clone()), bonus)
    }

    fn hole(&mut self, object: u64, offset: u64, length: u64) -> Result<()> {
        match &mut self.hole {
            Some(hole)
                if hole.object == object
                    && hole.offset.checked_add(hole.length) == Some(offset) =>
            {
                hole.length =
                    if length == u64::MAX { u64::MAX } else { hole.length.saturating_add(length) };
            }
            _ => {
                self.flush_hole()?;
                self.hole = Some(Free { object, offset, length });
            }
        }
        if offset == 0 && length == u64::MAX {
            // The whole object: there is nothing to join.
            self.flush_hole()?;
        }
        Ok(())
    }

    fn piece(&mut self, object: u64, piece: Piece<'_>) -> Result<()> {
        self.flush_hole()?;
        let block = piece.block;
        let fits = self.block_size == 0 || piece.length <= self.block_size;
        if piece.is_whole() && fits {
            let header = match block.header {
                BlockHeader::Write(write) => Header::Write(write.clone()),
                BlockHeader::Embedded(write) => Header::WriteEmbedded(*write),
            };
            return self.writer()?.record(&header, block.payload);
        }
        // This is a part of a block, or a large block of an object that has small ones. It becomes new records, without
        // the whole block's checksum and compression.
        let kind = match block.header {
            BlockHeader::Write(write) => write.kind,
            BlockHeader::Embedded(_) => self.kind,
        };
        let step = if self.block_size == 0 { piece.length } else { self.block_size };
        let mut decompressor = std::mem::take(&mut self.decompressor);
        let content = piece.content(&mut decompressor)?;
        let mut offset = piece.offset;
        let mut rest = content;
        while !rest.is_empty() {
            // Up to the next block boundary.
            let length = (step - offset % step).min(rest.len() as u64);
            let (now, later) = rest.split_at(length as usize);
            let write = Write::plain(object, kind, offset, length);
            self.writer()?.record(&Header::Write(write), now)?;
            offset += length;
            rest = later;
        }
        self.decompressor = decompressor;
        Ok(())
    }

    fn spill(&mut self, spill: SpillBlock<'_>) -> Result<()> {
        self.flush_hole()?;
        self.writer()?.record(&Header::Spill(*spill.header), spill.payload)
    }

    fn object_end(&mut self, _object: u64) -> Result<()> {
        self.flush_hole()?;
        self.block_size = 0;
        Ok(())
    }
}
