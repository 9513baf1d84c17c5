//! Frames that will be needed soon: other threads read them from the store and open them in the order of the requests,
//! which is about the order in which they are taken.
//!
//! What could go wrong:
//! - A frame is taken that no thread opens yet, because it was requested a second time, after others. It is opened at
//!   once: waiting for its turn, which comes only when something is taken, would never end.
//! - More memory is used than intended. What was requested is bounded in number, in stored bytes, and in the bytes of
//!   the windows that it is in; what is open of it is bounded in number and in bytes.

use std::collections::{HashMap, VecDeque};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use super::Location;
use super::pool::Pool;
use super::reader::open;
use super::windows::{Window, Windows};
use crate::error::{Error, Result};
use crate::frame::Opener;
use crate::id::Ulid;
use crate::repository::Repository;
use crate::threads;

/// The most frames that are being opened or are open and wait.
const OPEN: usize = 8;
/// The same in bytes: frames have about 1 MiB, but hold a record of 16 MiB in one piece. One may always be open.
const OPEN_BYTES: u64 = 16 << 20;
/// The most threads that open frames.
const THREADS: usize = 4;
/// The most frames that were requested and not taken yet.
const MOST: usize = 256;
/// The same in stored bytes.
const MOST_STORED: u64 = 8 << 20;

type Key = (Ulid, u64);

/// A frame that shall be opened.
struct Closed {
    window: Arc<Window>,
    pack: Ulid,
    at: u64,
    length: u64,
    /// The least size of its content, as far as known.
    size: u64,
    to: SyncSender<Result<Bytes>>,
}

/// A frame that was requested.
struct Asked {
    length: u64,
    size: u64,
    content: Receiver<Result<Bytes>>,
}

/// See the module.
pub(crate) struct Ahead {
    windows: Windows,
    asked: HashMap<Key, Asked>,
    /// The requested frames that no thread opens yet, in order.
    closed: VecDeque<Closed>,
    /// Stored bytes of all requested frames.
    stored: u64,
    /// Content bytes of the frames that are being opened or are open.
    open: u64,
    /// When this is dropped, the threads end.
    to_open: SyncSender<Closed>,
}

impl Ahead {
    /// Makes one whose contents get their memory from `pool`.
    pub(super) fn new(repository: &Repository, pool: &Pool) -> Result<Ahead> {
        // Room for as many as are ever in it, so that sending never blocks.
        let (to_open, closed) = sync_channel::<Closed>(OPEN);
        let closed = Arc::new(Mutex::new(closed));
        let count = std::thread::available_parallelism().map_or(2, usize::from).min(THREADS);
        for _ in 0..count {
            let (closed, repository, pool) = (closed.clone(), repository.clone(), pool.clone());
            threads::start(move || {
                let mut opener = Opener::default();
                loop {
                    let next = closed.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok(Closed { window, pack, at, length, to, .. }) = next else { return };
                    let opened = window.frame(&repository, at, length).and_then(|stored| {
                        let mut content = pool.take(&stored);
                        open(&repository, &mut opener, pack, at, &stored, &mut content)?;
                        Ok(pool.lend(content))
                    });
                    // If the fold has failed, nobody is waiting any more.
                    let _ = to.send(opened);
                }
            })?;
        }
        Ok(Ahead {
            windows: Windows::new(repository)?,
            asked: HashMap::new(),
            closed: VecDeque::new(),
            stored: 0,
            open: 0,
            to_open,
        })
    }

    /// Whether something must be taken before more is requested.
    pub(crate) fn is_full(&self) -> bool {
        self.asked.len() >= MOST || self.stored >= MOST_STORED || self.windows.are_many()
    }

    /// Requests a frame, unless it was requested already.
    pub(crate) fn ask(&mut self, location: &Location) -> Result<()> {
        let Location { pack, frame: at, frame_length: length, .. } = *location;
        if self.asked.contains_key(&(pack, at)) {
            return Ok(());
        }
        let window = self.windows.of(pack, at, length)?;
        let (to, content) = sync_channel(1);
        // A block is within one frame, so the frame is at least as large.
        let size = length.max(location.size);
        self.asked.insert((pack, at), Asked { length, size, content });
        self.stored += length;
        self.closed.push_back(Closed { window, pack, at, length, size, to });
        self.open_more()
    }

    /// Takes the content of a requested frame; `None` if it wasn't requested.
    pub(crate) fn take(&mut self, location: &Location) -> Result<Option<Bytes>> {
        let (pack, at) = (location.pack, location.frame);
        let Some(asked) = self.asked.remove(&(pack, at)) else {
            return Ok(None);
        };
        let is_it = |closed: &Closed| (closed.pack, closed.at) == (pack, at);
        if let Some(closed) =
            self.closed.iter().position(is_it).and_then(|at| self.closed.remove(at))
        {
            self.open(closed)?;
        }
        let content = asked.content.recv().map_err(|_| gone())??;
        self.stored -= asked.length;
        self.open -= asked.size;
        self.open_more()?;
        Ok(Some(content))
    }

    fn open_more(&mut self) -> Result<()> {
        // All other requested frames are being opened or are open.
        while self.asked.len() - self.closed.len() < OPEN
            && let Some(next) = self.closed.front()
            && (self.open == 0 || self.open + next.size <= OPEN_BYTES)
            && let Some(closed) = self.closed.pop_front()
        {
            self.open(closed)?;
        }
        Ok(())
    }

    fn open(&mut self, closed: Closed) -> Result<()> {
        self.open += closed.size;
        self.to_open.send(closed).map_err(|_| gone())
    }
}

fn gone() -> Error {
    Error::caller("a thread that opens frames ended early")
}
