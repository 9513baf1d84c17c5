//! Lets one thread at a time write a file.
//!
//! Most file systems let one writer into a file at a time, and the others spin in the kernel until it is done. So a
//! thread that has something for a file that another thread is writing leaves it there and continues with the next
//! frame. The writing thread writes that too.
//!
//! What could go wrong:
//! - Memory: the amount left at files is bounded, and a thread that would exceed it waits. Nobody waits forever: the
//!   thread at a file never waits for anything before everything left there is written.
//! - The thread at a file fails. [`Turns::end`] wakes those who wait, and forgets what was left.

use std::collections::{HashMap, VecDeque};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Which files have a thread at them, and what was left there.
pub(super) struct Turns<T> {
    state: Mutex<State<T>>,
    room: Condvar,
    limit: usize,
}

struct State<T> {
    /// Files that a thread is at.
    files: HashMap<usize, VecDeque<(usize, T)>>,
    /// Of everything that was left, in bytes.
    size: usize,
    is_ended: bool,
}

impl<T> Turns<T> {
    /// At most `limit` bytes are left at any time, or one item that is larger.
    pub(super) fn new(limit: usize) -> Self {
        let state = State { files: HashMap::new(), size: 0, is_ended: false };
        Self { state: Mutex::new(state), room: Condvar::new(), limit }
    }

    /// Comes to a file with an item of so many bytes. If nobody is at the file, the item is returned: the caller is
    /// at the file now, and has to call [`Turns::next`] until nothing is left. Otherwise the item was left there, or
    /// everything was ended.
    pub(super) fn come(&self, file: usize, size: usize, thing: T) -> Option<T> {
        let mut state = self.state();
        loop {
            let has_room = state.size == 0 || state.size + size <= self.limit;
            if state.is_ended {
                return None;
            }
            match state.files.get_mut(&file) {
                None => {
                    state.files.insert(file, VecDeque::new());
                    return Some(thing);
                }
                Some(left) if has_room => {
                    left.push_back((size, thing));
                    state.size += size;
                    return None;
                }
                Some(_) => {
                    state = self.room.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }

    /// Returns what was left at the file that the caller is at; after `None` the caller isn't there any more.
    pub(super) fn next(&self, file: usize) -> Option<T> {
        let mut state = self.state();
        let left = state.files.get_mut(&file).and_then(VecDeque::pop_front);
        match &left {
            Some((size, _)) => state.size -= size,
            None => drop(state.files.remove(&file)),
        }
        drop(state);
        self.room.notify_all();
        left.map(|(_, thing)| thing)
    }

    /// Ends it: nothing is written any more.
    pub(super) fn end(&self) {
        self.state().is_ended = true;
        self.room.notify_all();
    }

    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn one_at_a_time_is_at_a_file_and_all_that_is_left_is_done() {
        let turns = Turns::new(50);
        let at: [AtomicUsize; 3] = Default::default();
        let done: [AtomicUsize; 3] = Default::default();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for number in 0..3000_usize {
                        let file = number / 7 % 3;
                        let mut next = turns.come(file, number % 40, number);
                        while let Some(number) = next {
                            assert_eq!(number / 7 % 3, file);
                            assert_eq!(at[file].fetch_add(1, Ordering::SeqCst), 0);
                            std::hint::black_box((0..number % 50).sum::<usize>());
                            at[file].fetch_sub(1, Ordering::SeqCst);
                            done[file].fetch_add(1, Ordering::SeqCst);
                            next = turns.next(file);
                        }
                    }
                });
            }
        });
        let done: usize = done.iter().map(|done| done.load(Ordering::SeqCst)).sum();
        assert_eq!(done, 4 * 3000);
        let state = turns.state();
        assert_eq!((state.size, state.files.len()), (0, 0));
    }

    #[test]
    fn whoever_finds_no_room_waits_until_some_was_written_or_all_is_ended() {
        let turns = Turns::new(10);
        assert_eq!(turns.come(1, 9, "a"), Some("a"));
        assert_eq!(turns.come(1, 9, "b"), None);
        let begun = Barrier::new(2);
        let may_go_on = AtomicBool::new(false);
        let come = |size, thing| {
            begun.wait();
            let given_back = turns.come(1, size, thing);
            assert!(may_go_on.swap(false, Ordering::SeqCst), "{thing} didn't wait");
            given_back
        };
        // Gives a thread that doesn't wait the time to be noticed; nothing depends on it.
        let allow = || {
            begun.wait();
            std::thread::sleep(std::time::Duration::from_millis(20));
            may_go_on.store(true, Ordering::SeqCst);
        };
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| come(2, "c"));
            allow();
            assert_eq!(turns.next(1), Some("b"));
            assert_eq!(waits.join().unwrap(), None);
            let waits = scope.spawn(|| come(9, "d"));
            allow();
            turns.end();
            assert_eq!(waits.join().unwrap(), None);
        });
        assert_eq!(turns.come(2, 1, "e"), None);
    }
}
