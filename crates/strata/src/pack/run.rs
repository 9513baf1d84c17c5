//! Neighbouring frames that wait to be read, taken together: a store that is far away is asked less often the slower it
//! answers.
//!
//! What could go wrong: threads that wait for each other. One that has taken a frame which is no neighbour never waits for
//! the queue before it has read that one, for what comes next may depend on it.

use std::sync::mpsc::Receiver;
use std::sync::{Mutex, PoisonError};

use crate::id::Ulid;

/// A frame's pack, its offset in it, its length.
pub type FramePlace = (Ulid, u64, u64);

/// Frames that are read at once at most: their contents are in memory together.
const FRAMES: usize = 8;

/// One of several threads' place at a queue of frames.
pub struct Runs<'a, T> {
    queue: &'a Mutex<Receiver<T>>,
    /// Taken, and no neighbour of what it was taken with.
    left: Option<T>,
}

impl<'a, T> Runs<'a, T> {
    /// At the queue.
    pub fn of(queue: &'a Mutex<Receiver<T>>) -> Runs<'a, T> {
        Runs { queue, left: None }
    }

    /// What comes next, with what waits behind it as long as their frames are neighbours. Waits for the first; `None`
    /// when nothing will come any more.
    pub fn next(&mut self, place: impl Fn(&T) -> FramePlace) -> Option<Vec<T>> {
        let (first, queue) = match self.left.take() {
            Some(left) => match self.queue.try_lock() {
                Ok(queue) => (left, queue),
                // Somebody waits there for what may only come once this one is read.
                Err(_) => return Some(vec![left]),
            },
            None => {
                let queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
                (queue.recv().ok()?, queue)
            }
        };
        let (pack, at, length) = place(&first);
        let (mut run, mut end) = (vec![first], at.checked_add(length));
        while run.len() < FRAMES
            && let Ok(next) = queue.try_recv()
        {
            let (of, at, length) = place(&next);
            if of != pack || end != Some(at) {
                self.left = Some(next);
                break;
            }
            end = at.checked_add(length);
            run.push(next);
        }
        Some(run)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::sync_channel;

    use super::*;

    #[test]
    fn neighbours_come_together_and_nothing_is_lost() {
        let (sender, receiver) = sync_channel(100);
        let pack = |number| Ulid(number);
        let frames = [(1, 0, 10), (1, 10, 5), (1, 15, 5), (1, 30, 5), (2, 35, 5), (2, 40, 1)];
        for (number, at, length) in frames {
            sender.send((pack(number), at, length)).unwrap();
        }
        (0..20).for_each(|n| sender.send((pack(3), n, 1)).unwrap());
        drop(sender);
        let queue = Mutex::new(receiver);
        let mut runs = Runs::of(&queue);
        let mut lengths = Vec::new();
        let mut all = Vec::new();
        while let Some(run) = runs.next(|place| *place) {
            lengths.push(run.len());
            all.extend(run);
        }
        assert_eq!(lengths, [3, 1, 2, 8, 8, 4]);
        assert_eq!(all.len(), 26);
        assert!(all.is_sorted());
    }

    #[test]
    fn what_is_left_over_is_read_while_another_thread_waits_for_more() {
        let (sender, receiver) = sync_channel(100);
        sender.send((Ulid(1), 0, 1)).unwrap();
        sender.send((Ulid(1), 7, 1)).unwrap();
        let queue = Mutex::new(receiver);
        let mut runs = Runs::of(&queue);
        assert_eq!(runs.next(|place| *place).unwrap().len(), 1);
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| Runs::of(&queue).next(|place| *place));
            while queue.try_lock().is_ok() {
                std::thread::yield_now();
            }
            // The sender sends no more before this one has come.
            assert_eq!(runs.next(|place| *place), Some(vec![(Ulid(1), 7, 1)]));
            drop(sender);
            assert_eq!(waits.join().unwrap(), None);
        });
    }
}
