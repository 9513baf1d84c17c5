//! Compresses frames on several threads; results are taken in the order of the input.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use crate::error::{Error, Result};
use crate::frame::{Compressed, Squeezer};
use crate::threads;

/// One thread, whose frames go in and come out in order.
struct Worker {
    work: SyncSender<Vec<u8>>,
    done: Receiver<Result<Compressed>>,
}

/// Worker `n % workers` gets frame `n`, so that the order needs no sorting.
pub(super) struct Compressor {
    workers: Vec<Worker>,
    given: usize,
    taken: usize,
    /// Used if there are no workers.
    own: Squeezer,
    ready: VecDeque<Compressed>,
}

impl Compressor {
    /// Makes one; with at most one thread the caller's own compresses. With `hashes` each frame's content is hashed
    /// too.
    pub(super) fn new(threads: usize, level: i32, hashes: bool) -> Result<Compressor> {
        let count = if threads > 1 { threads } else { 0 };
        let workers = (0..count)
            .map(|_| {
                let (work, todo) = sync_channel::<Vec<u8>>(1);
                let (finished, done) = sync_channel(1);
                let mut squeezer = Squeezer::new(level, hashes)?;
                threads::start(move || {
                    // Ends when the compressor is dropped, because then one of the channels is closed.
                    for content in todo {
                        if finished.send(squeezer.compress(content)).is_err() {
                            break;
                        }
                    }
                })?;
                Ok(Worker { work, done })
            })
            .collect::<Result<_>>()?;
        let own = Squeezer::new(level, hashes)?;
        Ok(Compressor { workers, given: 0, taken: 0, own, ready: VecDeque::new() })
    }

    /// Whether a frame must be taken before the next can be given.
    pub(super) fn is_full(&self) -> bool {
        let limit = if self.workers.is_empty() { 1 } else { 2 * self.workers.len() };
        self.given - self.taken >= limit
    }

    pub(super) fn give(&mut self, content: Vec<u8>) -> Result<()> {
        if self.workers.is_empty() {
            self.ready.push_back(self.own.compress(content)?);
        } else {
            let worker = &self.workers[self.given % self.workers.len()];
            worker.work.send(content).map_err(|_| gone())?;
        }
        self.given += 1;
        Ok(())
    }

    /// Returns the oldest frame that was given and not taken.
    pub(super) fn take(&mut self) -> Result<Option<Compressed>> {
        if self.taken == self.given {
            return Ok(None);
        }
        let compressed = if self.workers.is_empty() {
            self.ready.pop_front().ok_or_else(gone)?
        } else {
            let worker = &self.workers[self.taken % self.workers.len()];
            worker.done.recv().map_err(|_| gone())??
        };
        self.taken += 1;
        Ok(Some(compressed))
    }
}

fn gone() -> Error {
    Error::caller("a compressing thread ended early")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_out_in_order() {
        for threads in [0, 1, 2, 5] {
            let mut compressor = Compressor::new(threads, 1, false).unwrap();
            let mut taken = 0_u8;
            let mut check = |compressed: Compressed| {
                let place = crate::frame::Place { path: "x", pack: crate::Ulid(0), at: 0 };
                let frame = crate::frame::finish(compressed, place, None).unwrap();
                assert_eq!(crate::frame::open(&frame, place, None).unwrap(), vec![taken; 500]);
                taken += 1;
            };
            for number in 0..50 {
                while compressor.is_full() {
                    check(compressor.take().unwrap().unwrap());
                }
                compressor.give(vec![number; 500]).unwrap();
            }
            while let Some(compressed) = compressor.take().unwrap() {
                check(compressed);
            }
            assert_eq!(taken, 50);
        }
    }
}
