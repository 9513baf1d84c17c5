//! Reads the data of a fold's result ahead of who takes it: several frames are on their way while one is written.
//!
//! The fold is cheap, a frame is not: from a bucket each is a round trip, and all have to be decompressed. So the
//! fold's events wait in a queue, in their order, while threads read the frames that they name.
//!
//! What could go wrong: more memory than was meant. The queue is bounded by the content of the frames that were asked
//! for and not used yet, and by its events. A frame that was asked for and then forgotten by the reader is read
//! again, never given for another: the reader knows frames by their place.

use std::collections::{HashMap, VecDeque};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread;

use bytes::Bytes;

use super::data::block_content;
use super::{DataSink, Folded, Sink};
use crate::delta::Extent;
use crate::error::{Error, Result};
use crate::id::Ulid;
use crate::pack::{FrameReader, Location, Runs, stored_run};
use crate::repository::Repository;

/// Frames that are on their way, or have come and wait: of about 1 MiB each.
const FRAMES: usize = 16;
/// Threads that fetch them.
const THREADS: usize = 4;
/// Events that wait at most.
const EVENTS: usize = 16 << 10;

enum Event {
    Freed(u64, u64),
    Object(Folded),
    Extent(u64, Extent),
    ObjectEnd(u64),
}

/// A frame that is wanted, and who waits for it.
struct Wanted {
    pack: Ulid,
    at: u64,
    length: u64,
    to: SyncSender<Result<Bytes>>,
}

/// Makes a [`DataSink`] of a fold's result as [`super::Reading`] does, reading ahead.
///
/// Every block is read: [`DataSink::skips`] isn't asked, since what it would say may depend on what the sink has not
/// been given yet.
pub struct ReadingAhead<'a, S> {
    frames: &'a mut FrameReader,
    sink: &'a mut S,
    events: VecDeque<Event>,
    coming: HashMap<(Ulid, u64), Receiver<Result<Bytes>>>,
    /// Ends with this: then the threads end too.
    fetch: SyncSender<Wanted>,
}

impl<'a, S: DataSink> ReadingAhead<'a, S> {
    /// Reads from `repository`, keeps what was read in `frames`, gives to `sink`.
    pub fn new(
        repository: &Repository,
        frames: &'a mut FrameReader,
        sink: &'a mut S,
    ) -> ReadingAhead<'a, S> {
        // As many as may be on their way, so that asking never waits.
        let (fetch, wanted) = sync_channel::<Wanted>(FRAMES);
        let wanted = Arc::new(Mutex::new(wanted));
        for _ in 0..THREADS {
            let (wanted, repository) = (wanted.clone(), repository.clone());
            thread::spawn(move || {
                let mut runs = Runs::of(&wanted);
                while let Some(run) = runs.next(|one: &Wanted| (one.pack, one.at, one.length)) {
                    let frames: Vec<_> = run.iter().map(|one| (one.at, one.length)).collect();
                    let pack = run.first().map_or(Ulid(0), |one| one.pack);
                    let stored = stored_run(&repository, pack, &frames);
                    for (one, stored) in run.into_iter().zip(stored) {
                        // Nobody waits any more where the fold has failed.
                        let _ = one.to.send(stored);
                    }
                }
            });
        }
        let (events, coming) = (VecDeque::new(), HashMap::new());
        ReadingAhead { frames, sink, events, coming, fetch }
    }

    /// Gives what still waits. To be called when the fold is done.
    pub fn finish(mut self) -> Result<()> {
        while let Some(event) = self.events.pop_front() {
            self.give(event)?;
        }
        Ok(())
    }

    fn push(&mut self, event: Event) -> Result<()> {
        self.events.push_back(event);
        while (self.coming.len() >= FRAMES || self.events.len() > EVENTS)
            && let Some(event) = self.events.pop_front()
        {
            self.give(event)?;
        }
        Ok(())
    }

    fn ask(&mut self, location: &Location) -> Result<()> {
        let key = (location.pack, location.frame);
        if self.coming.contains_key(&key) || self.frames.has(location) {
            return Ok(());
        }
        let (to, from) = sync_channel(1);
        let Location { pack, frame: at, frame_length: length, .. } = *location;
        self.fetch.send(Wanted { pack, at, length, to }).map_err(|_| gone())?;
        self.coming.insert(key, from);
        Ok(())
    }

    fn give(&mut self, event: Event) -> Result<()> {
        match event {
            Event::Freed(first, count) => self.sink.freed(first, count),
            Event::Object(object) => self.sink.object(&object),
            Event::ObjectEnd(object) => self.sink.object_end(object),
            Event::Extent(object, extent) => match &extent.block {
                None => self.sink.hole(object, extent.offset, extent.length),
                Some(block) => {
                    let key = (block.location.pack, block.location.frame);
                    if let Some(frame) = self.coming.remove(&key) {
                        let stored = frame.recv().map_err(|_| gone())??;
                        // Opened here: contents that were made by one thread and are forgotten by another leave the
                        // allocator with holes, more of them than the contents are.
                        self.frames.put_stored(&block.location, &stored)?;
                    }
                    if block.form != 0 {
                        let bytes = self.frames.read(&block.location)?;
                        return self.sink.formed(object, &extent, &bytes);
                    }
                    let content = block_content(object, &extent)?;
                    self.sink.data(object, extent.offset, &self.frames.read(&content)?)
                }
            },
        }
    }
}

fn gone() -> Error {
    Error::caller("a thread that reads frames ended early")
}

impl<S: DataSink> Sink for ReadingAhead<'_, S> {
    fn freed(&mut self, first: u64, count: u64) -> Result<()> {
        self.push(Event::Freed(first, count))
    }

    fn object(&mut self, object: &Folded) -> Result<()> {
        self.push(Event::Object(object.clone()))
    }

    fn extent(&mut self, object: u64, extent: &Extent) -> Result<()> {
        if let Some(block) = &extent.block {
            self.ask(&block.location)?;
        }
        self.push(Event::Extent(object, extent.clone()))
    }

    fn object_end(&mut self, object: u64) -> Result<()> {
        self.push(Event::ObjectEnd(object))
    }
}
