//! Frames that will be needed soon: read from the store and opened by other threads, in the order in which they were
//! asked for, which is about that in which they are taken.
//!
//! What could go wrong:
//! - One is taken that nobody opens yet, for it was asked for a second time behind others: it is opened at once. Waiting
//!   for its turn, which comes when something is taken, would be for ever.
//! - More memory than was meant. What was asked for is bounded in number, in the bytes that are stored, and in those of
//!   the windows that it is in; what is open of it in number and in bytes.

use std::collections::{HashMap, VecDeque};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use bytes::Bytes;

use super::Location;
use super::pool::Pool;
use super::reader::open;
use super::windows::{Window, Windows};
use crate::error::{Error, Result};
use crate::frame::Opener;
use crate::id::Ulid;
use crate::repository::Repository;

/// Frames that are being opened, or are open and wait.
const OPEN: usize = 8;
/// The same in bytes: frames are of about 1 MiB, but hold a record of 16 MiB in one piece. One may always be open.
const OPEN_BYTES: u64 = 16 << 20;
/// Threads that open them, at most.
const THREADS: usize = 4;
/// Frames that were asked for and not taken yet.
const MOST: usize = 256;
/// The same in bytes as they are stored.
const MOST_STORED: u64 = 8 << 20;

type Key = (Ulid, u64);

/// A frame that is to be opened.
struct Closed {
    window: Arc<Window>,
    pack: Ulid,
    at: u64,
    length: u64,
    /// As much as is known to be in it.
    size: u64,
    to: SyncSender<Result<Bytes>>,
}

/// A frame that was asked for.
struct Asked {
    length: u64,
    size: u64,
    content: Receiver<Result<Bytes>>,
}

/// See the module.
pub(crate) struct Ahead {
    windows: Windows,
    asked: HashMap<Key, Asked>,
    /// Those that nobody opens yet, in order.
    closed: VecDeque<Closed>,
    /// What all that was asked for takes in the store.
    stored: u64,
    /// What is in all that is being opened, or is open.
    open: u64,
    /// The threads end with it.
    to_open: SyncSender<Closed>,
}

impl Ahead {
    /// Contents get their memory from `pool`.
    pub(super) fn new(repository: &Repository, pool: &Pool) -> Ahead {
        // As many as are ever in it, so that nobody waits.
        let (to_open, closed) = sync_channel::<Closed>(OPEN);
        let closed = Arc::new(Mutex::new(closed));
        let threads = thread::available_parallelism().map_or(2, usize::from).min(THREADS);
        for _ in 0..threads {
            let (closed, repository, pool) = (closed.clone(), repository.clone(), pool.clone());
            thread::spawn(move || {
                let mut opener = Opener::default();
                loop {
                    let next = closed.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok(Closed { window, pack, at, length, to, .. }) = next else { return };
                    let opened = window.frame(&repository, at, length).and_then(|stored| {
                        let mut content = pool.take(&stored);
                        open(&repository, &mut opener, pack, at, &stored, &mut content)?;
                        Ok(pool.lend(content))
                    });
                    // Nobody waits any more where the fold has failed.
                    let _ = to.send(opened);
                }
            });
        }
        Ahead {
            windows: Windows::new(repository),
            asked: HashMap::new(),
            closed: VecDeque::new(),
            stored: 0,
            open: 0,
            to_open,
        }
    }

    /// Whether something has to be taken before more is asked for.
    pub(crate) fn is_full(&self) -> bool {
        self.asked.len() >= MOST || self.stored >= MOST_STORED || self.windows.are_many()
    }

    /// Asks for a frame, if it wasn't asked for yet.
    pub(crate) fn ask(&mut self, location: &Location) -> Result<()> {
        let Location { pack, frame: at, frame_length: length, .. } = *location;
        if self.asked.contains_key(&(pack, at)) {
            return Ok(());
        }
        let window = self.windows.of(pack, at, length)?;
        let (to, content) = sync_channel(1);
        // A block is in one frame, so it is at least as large.
        let size = length.max(location.size);
        self.asked.insert((pack, at), Asked { length, size, content });
        self.stored += length;
        self.closed.push_back(Closed { window, pack, at, length, size, to });
        self.open_more()
    }

    /// Takes the content of a frame that was asked for; `None` where it wasn't.
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
        // All others that were asked for are being opened, or are open.
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
