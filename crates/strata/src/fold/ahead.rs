//! Reads the data of a fold's result ahead of its consumer: several frames are being read while one is written.
//!
//! The fold is cheap, but a frame isn't: from a bucket each is a round trip, and each must be decompressed. So the
//! fold's events wait in a queue, in order, while other threads read and open the frames that they name.
//!
//! What could go wrong:
//! - More memory is used than intended. The queue is bounded by its number of events, by the bytes that these hold
//!   themselves (headers, spills, notes), and by the frames that were requested and not used yet.
//! - There are more deltas than the reader can keep a frame of. Then a frame is forgotten that an event in the queue
//!   needs and that a later event may request again. It is read again; another frame is never returned for it, because
//!   the reader knows frames by their place. The reader also knows which frames the queue needs, and forgets others
//!   first.

use std::collections::VecDeque;

use bytes::Bytes;

use super::data::block_content;
use super::{DataSink, Folded, Sink};
use crate::delta::Extent;
use crate::error::Result;
use crate::pack::{Ahead, FrameReader, Location};

/// The most events that wait.
const EVENTS: usize = 16 << 10;
/// Bytes that waiting events may hold themselves: a header has 300, but a spill can have 128 KiB. One event may always
/// wait.
const EVENT_BYTES: usize = 4 << 20;

enum Event {
    Freed(u64, u64),
    Object(Folded),
    Hole { object: u64, offset: u64, length: u64 },
    Data { object: u64, offset: u64, location: Location },
    Formed(u64, Extent),
    ObjectEnd(u64),
}

impl Event {
    /// Returns the bytes that it holds besides its own size.
    fn held(&self) -> usize {
        let length = |bytes: &Option<Bytes>| bytes.as_ref().map_or(0, Bytes::len);
        match self {
            Event::Object(object) => length(&object.header) + length(&object.spill),
            Event::Formed(_, extent) => {
                extent.block.as_ref().map_or(0, |block| length(&block.note))
            }
            _ => 0,
        }
    }

    /// Extends it by what follows it in the object and in its frame; returns false if `more` doesn't follow it.
    fn grow(&mut self, of: u64, at: u64, more: &Location) -> bool {
        match self {
            Event::Data { object, offset, location }
                if *object == of
                    && *offset + location.size == at
                    && (location.pack, location.frame) == (more.pack, more.frame)
                    && location.start + location.size == more.start =>
            {
                location.size += more.size;
                true
            }
            _ => false,
        }
    }
}

/// Turns a fold's result into a [`DataSink`]'s input as [`super::Reading`] does, but reads ahead.
///
/// [`DataSink::skips`] and [`DataSink::wants_extents`] aren't called, because their answers may depend on data that the
/// sink hasn't received yet; [`DataSink::wants_content_of`] is.
pub struct ReadingAhead<'a, S> {
    frames: &'a mut FrameReader,
    sink: &'a mut S,
    events: VecDeque<Event>,
    /// The bytes that all events hold.
    held: usize,
    ahead: Ahead,
    /// Whether the content of the current object is wanted.
    is_wanted: bool,
}

impl<'a, S: DataSink> ReadingAhead<'a, S> {
    /// Keeps frames in `frames` and passes data to `sink`.
    ///
    /// # Errors
    /// When the system starts no threads for it.
    pub fn new(frames: &'a mut FrameReader, sink: &'a mut S) -> Result<ReadingAhead<'a, S>> {
        let (events, ahead) = (VecDeque::new(), frames.ahead()?);
        Ok(ReadingAhead { frames, sink, events, held: 0, ahead, is_wanted: true })
    }

    /// Passes on what still waits. Call it when the fold is done.
    pub fn finish(mut self) -> Result<()> {
        while let Some(event) = self.events.pop_front() {
            self.give(event)?;
        }
        Ok(())
    }

    fn push(&mut self, event: Event) -> Result<()> {
        self.held += event.held();
        self.events.push_back(event);
        while self.is_full()
            && let Some(event) = self.events.pop_front()
        {
            self.held -= event.held();
            self.give(event)?;
        }
        Ok(())
    }

    fn is_full(&self) -> bool {
        self.ahead.is_full() || self.events.len() > EVENTS || self.held > EVENT_BYTES
    }

    fn ask(&mut self, location: &Location) -> Result<()> {
        self.frames.will_read(location);
        if self.frames.has(location) { Ok(()) } else { self.ahead.ask(location) }
    }

    fn take(&mut self, location: &Location) -> Result<()> {
        if let Some(content) = self.ahead.take(location)? {
            self.frames.put(location, content);
        }
        self.frames.was_read(location);
        Ok(())
    }

    fn give(&mut self, event: Event) -> Result<()> {
        match event {
            Event::Freed(first, count) => self.sink.freed(first, count),
            Event::Object(object) => self.sink.object(&object),
            Event::ObjectEnd(object) => self.sink.object_end(object),
            Event::Hole { object, offset, length } => self.sink.hole(object, offset, length),
            Event::Data { object, offset, location } => {
                self.take(&location)?;
                self.sink.data(object, offset, &self.frames.read_on(&location)?)
            }
            Event::Formed(object, extent) => {
                let Some(block) = &extent.block else { return Ok(()) };
                self.take(&block.location)?;
                let bytes = self.frames.read_on(&block.location)?;
                self.sink.formed(object, &extent, &bytes)
            }
        }
    }
}

impl<S: DataSink> Sink for ReadingAhead<'_, S> {
    fn freed(&mut self, first: u64, count: u64) -> Result<()> {
        self.push(Event::Freed(first, count))
    }

    fn object(&mut self, object: &Folded) -> Result<()> {
        self.is_wanted = self.sink.wants_content_of(object.object);
        self.push(Event::Object(object.clone()))
    }

    fn wants_extents(&mut self) -> bool {
        self.is_wanted
    }

    fn extent(&mut self, object: u64, extent: &Extent) -> Result<()> {
        let Extent { offset, length, .. } = *extent;
        match &extent.block {
            None => self.push(Event::Hole { object, offset, length }),
            Some(block) if block.form != 0 => {
                self.ask(&block.location)?;
                self.push(Event::Formed(object, extent.clone()))
            }
            Some(_) => {
                let location = block_content(object, extent)?;
                if self.events.back_mut().is_some_and(|last| last.grow(object, offset, &location)) {
                    return Ok(());
                }
                self.ask(&location)?;
                self.push(Event::Data { object, offset, location })
            }
        }
    }

    fn object_end(&mut self, object: u64) -> Result<()> {
        self.push(Event::ObjectEnd(object))
    }
}
