//! Frames that will be needed soon: read from the store and opened by other threads, and taken in the order in which they
//! were asked for.
//!
//! What could go wrong: more memory than was meant. What was asked for is bounded in the bytes that are stored and in
//! number, what is open of it in number.

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

/// Frames that are being opened, or are open and wait: of about 1 MiB each.
const OPEN: usize = 8;
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
    to: SyncSender<Result<Bytes>>,
}

/// See the module.
pub(crate) struct Ahead {
    windows: Windows,
    asked: HashMap<Key, (u64, Receiver<Result<Bytes>>)>,
    /// Those that nobody opens yet, in order.
    closed: VecDeque<Closed>,
    /// What all that was asked for takes in the store.
    stored: u64,
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
                    let Ok(Closed { window, pack, at, length, to }) = next else { return };
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
            to_open,
        }
    }

    /// Whether something has to be taken before more is asked for.
    pub(crate) fn is_full(&self) -> bool {
        self.asked.len() >= MOST || self.stored >= MOST_STORED
    }

    /// Asks for a frame, if it wasn't asked for yet.
    pub(crate) fn ask(&mut self, location: &Location) -> Result<()> {
        let Location { pack, frame: at, frame_length: length, .. } = *location;
        if self.asked.contains_key(&(pack, at)) {
            return Ok(());
        }
        let window = self.windows.of(pack, at, length);
        let (to, from) = sync_channel(1);
        self.asked.insert((pack, at), (length, from));
        self.stored += length;
        self.closed.push_back(Closed { window, pack, at, length, to });
        self.open_more()
    }

    /// Takes the content of a frame that was asked for; `None` where it wasn't.
    pub(crate) fn take(&mut self, location: &Location) -> Result<Option<Bytes>> {
        let Some((length, from)) = self.asked.remove(&(location.pack, location.frame)) else {
            return Ok(None);
        };
        let content = from.recv().map_err(|_| gone())??;
        self.stored -= length;
        self.open_more()?;
        Ok(Some(content))
    }

    fn open_more(&mut self) -> Result<()> {
        // All others that were asked for are being opened, or are open.
        while self.asked.len() - self.closed.len() < OPEN
            && let Some(closed) = self.closed.pop_front()
        {
            self.to_open.send(closed).map_err(|_| gone())?;
        }
        Ok(())
    }
}

fn gone() -> Error {
    Error::caller("a thread that opens frames ended early")
}
