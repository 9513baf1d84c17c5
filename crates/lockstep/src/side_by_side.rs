//! Runs a few long pieces of work at the same time, and what follows each of them one after the other.
//!
//! `zfs send` and `zfs receive` take one core and wait in between; with several volumes, the others needn't wait
//! along. What comes after (names, properties, mounts) is done one volume at a time.
//!
//! What could go wrong: too many run at once, and the memory isn't bounded any more. So each has a weight, and what
//! runs together weighs no more than a limit. Or one fails, and the rest continue for hours for nothing. So they are
//! asked to stop.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::error::{Error, Result};
use crate::threads;

/// A piece of work.
#[derive(Debug)]
pub(crate) struct Item<T> {
    /// The number by which it is asked for.
    pub index: usize,
    /// Its weight. An item that weighs more than the limit runs alone.
    pub weight: usize,
    /// The work itself.
    pub work: T,
}

/// How much runs at the same time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// The most items.
    pub items: usize,
    /// Their greatest total weight.
    pub weight: usize,
}

/// The handle to wait for work in progress.
pub(crate) struct Progressing<T, R> {
    state: Mutex<State<T, R>>,
    changed: Condvar,
}

struct State<T, R> {
    waiting: VecDeque<Item<T>>,
    /// Number and total weight of those that run.
    running: (usize, usize),
    /// The results of those that have ended well, until they are waited for.
    done: BTreeMap<usize, R>,
    /// Why no more work is begun, if that isn't the caller's own doing.
    failed: Option<Error>,
    is_over: bool,
}

/// Does the work with `one`, in the given order, and meanwhile `rest` on this thread; `rest` waits for an item with
/// [`Progressing::wait`]. `one` checks now and then, by its second argument, whether it should stop.
///
/// # Errors
/// The first error of any of them.
pub(crate) fn side_by_side<T: Send, R: Send, All>(
    limits: Limits,
    work: Vec<Item<T>>,
    one: impl Fn(T, &dyn Fn() -> bool) -> Result<R> + Sync,
    rest: impl FnOnce(&Progressing<T, R>) -> Result<All>,
) -> Result<All> {
    let threads = limits.items.max(1).min(work.len());
    let progressing = Progressing {
        state: Mutex::new(State {
            waiting: work.into(),
            running: (0, 0),
            done: BTreeMap::new(),
            failed: None,
            is_over: false,
        }),
        changed: Condvar::new(),
    };
    let rest = std::thread::scope(|scope| {
        for _ in 0..threads {
            if let Err(error) = threads::start_in(scope, || progressing.work(limits, &one)) {
                progressing.locked().failed = Some(error);
                break;
            }
        }
        let rest = rest(&progressing);
        // If it failed, what still runs is for nothing.
        progressing.locked().is_over = true;
        progressing.changed.notify_all();
        rest
    });
    let failed = progressing.locked().failed.take();
    match failed {
        Some(error) => Err(error),
        None => rest,
    }
}

impl<T, R> Progressing<T, R> {
    /// Waits until the item is done, and returns its result; only once.
    ///
    /// # Errors
    /// When it or another failed, which [`side_by_side`] then returns, or there is no such item.
    pub(crate) fn wait(&self, index: usize) -> Result<R> {
        let is_waiting = |waiting: &VecDeque<Item<T>>| waiting.iter().any(|it| it.index == index);
        self.wait_until(|done| done.remove(&index), is_waiting)
    }

    /// Waits for whichever item is done next, and returns its index and its result.
    ///
    /// # Errors
    /// When one failed, which [`side_by_side`] then returns, or none is left.
    pub(crate) fn wait_any(&self) -> Result<(usize, R)> {
        self.wait_until(BTreeMap::pop_first, |waiting| !waiting.is_empty())
    }

    fn wait_until<Taken>(
        &self,
        take: impl Fn(&mut BTreeMap<usize, R>) -> Option<Taken>,
        is_waiting: impl Fn(&VecDeque<Item<T>>) -> bool,
    ) -> Result<Taken> {
        let mut state = self.locked();
        loop {
            if let Some(taken) = take(&mut state.done) {
                return Ok(taken);
            }
            let is_to_come = state.running.0 > 0 || is_waiting(&state.waiting);
            if state.failed.is_some() || !is_to_come {
                return Err(Error::failed("a volume before it failed"));
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn work(&self, limits: Limits, one: &impl Fn(T, &dyn Fn() -> bool) -> Result<R>) {
        while let Some(item) = self.next(limits) {
            let should_stop = || {
                let state = self.locked();
                state.is_over || state.failed.is_some()
            };
            // However it ends, its weight is released.
            let mut ending =
                Ending { of: self, item: item.index, weight: item.weight, result: None };
            ending.result = Some(one(item.work, &should_stop));
        }
    }

    /// Returns the next item that may begin; none if nothing is left to do.
    fn next(&self, limits: Limits) -> Option<Item<T>> {
        let mut state = self.locked();
        loop {
            if state.is_over || state.failed.is_some() {
                return None;
            }
            let weight = state.waiting.front()?.weight;
            if state.running.0 == 0 || state.running.1.saturating_add(weight) <= limits.weight {
                let item = state.waiting.pop_front()?;
                state.running.0 += 1;
                state.running.1 = state.running.1.saturating_add(weight);
                return Some(item);
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn locked(&self) -> MutexGuard<'_, State<T, R>> {
        // A thread that panicked has left nothing half done in there.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reports how an item ended, even if its thread panicked.
struct Ending<'a, T, R> {
    of: &'a Progressing<T, R>,
    item: usize,
    weight: usize,
    result: Option<Result<R>>,
}

impl<T, R> Drop for Ending<'_, T, R> {
    fn drop(&mut self) {
        let mut state = self.of.locked();
        state.running.0 -= 1;
        state.running.1 = state.running.1.saturating_sub(self.weight);
        match self.result.take() {
            Some(Ok(done)) => drop(state.done.insert(self.item, done)),
            // `rest` has failed and says why: this one only did as it was told.
            Some(Err(_)) if state.is_over => {}
            // Of those that were asked to stop, the first has said why.
            Some(Err(error)) => drop(state.failed.get_or_insert(error)),
            None => {
                let ended = || Error::failed("a volume's thread ended early; its words are above");
                state.failed.get_or_insert_with(ended);
            }
        }
        self.of.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use super::*;

    fn items(weights: &[usize]) -> Vec<Item<usize>> {
        let item = |(index, weight): (usize, &usize)| Item { index, weight: *weight, work: index };
        weights.iter().enumerate().map(item).collect()
    }

    /// Runs them, each until `together` run at once; returns the most that did, and their greatest weight.
    fn most(limits: Limits, weights: &[usize], together: usize) -> (usize, usize) {
        let meet = Barrier::new(together);
        let (running, weighing) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let most = Mutex::new((0, 0));
        let one = |index: usize, _: &dyn Fn() -> bool| {
            let now = running.fetch_add(1, Ordering::SeqCst) + 1;
            let weight = weighing.fetch_add(weights[index], Ordering::SeqCst) + weights[index];
            let mut most = most.lock().unwrap();
            *most = (most.0.max(now), most.1.max(weight));
            drop(most);
            meet.wait();
            // Gives one too many time to be seen; nothing waits for this.
            std::thread::sleep(Duration::from_millis(5));
            running.fetch_sub(1, Ordering::SeqCst);
            weighing.fetch_sub(weights[index], Ordering::SeqCst);
            Ok(())
        };
        side_by_side(limits, items(weights), one, |progressing| {
            (0..weights.len()).rev().try_for_each(|index| progressing.wait(index))
        })
        .unwrap();
        most.into_inner().unwrap()
    }

    #[test]
    fn no_more_at_once_than_the_limits_say() {
        let limits = Limits { items: 2, weight: 10 };
        assert_eq!(most(limits, &[1; 6], 2), (2, 2));
        assert_eq!(most(limits, &[6, 6, 6], 1), (1, 6));
        // An item that weighs more than the limit isn't left out: it runs alone.
        assert_eq!(most(limits, &[1, 30, 1], 1), (1, 30));
        assert_eq!(most(limits, &[], 1), (0, 0));
    }

    #[test]
    fn the_first_that_is_done_is_the_first_that_is_taken() {
        let limits = Limits { items: 2, weight: 10 };
        let (end, ended) = channel();
        let ended = Mutex::new(ended);
        let one = |index: usize, _: &dyn Fn() -> bool| {
            if index == 0 {
                // Until both others were taken.
                ended.lock().unwrap().recv().unwrap();
            }
            Ok(index)
        };
        let order = side_by_side(limits, items(&[1, 1, 1]), one, |ending| {
            let mut order = vec![ending.wait_any()?.0, ending.wait_any()?.0];
            end.send(()).unwrap();
            order.push(ending.wait_any()?.0);
            assert!(ending.wait_any().is_err(), "there are three");
            Ok(order)
        });
        assert_eq!(order.unwrap(), [1, 2, 0]);
    }

    #[test]
    fn one_that_fails_ends_the_others_and_is_the_one_that_is_told() {
        let limits = Limits { items: 2, weight: 10 };
        let both = Barrier::new(2);
        let one = |index: usize, should_stop: &dyn Fn() -> bool| -> Result<()> {
            both.wait();
            if index == 1 {
                return Err(Error::failed("the second is damaged"));
            }
            assert_eq!(index, 0, "no other is begun");
            while !should_stop() {
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(Error::failed("asked to stop"))
        };
        let waited = side_by_side(limits, items(&[1; 5]), one, |progressing| progressing.wait(0));
        assert!(waited.unwrap_err().to_string().contains("the second is damaged"));
    }

    #[test]
    fn what_comes_after_fails_and_nothing_goes_on() {
        let limits = Limits { items: 1, weight: 10 };
        let one = |_: usize, should_stop: &dyn Fn() -> bool| {
            let begun = std::time::Instant::now();
            while !should_stop() && begun.elapsed() < Duration::from_secs(30) {
                std::thread::sleep(Duration::from_millis(1));
            }
            assert!(should_stop());
            Ok(())
        };
        let rest = |_: &Progressing<usize, ()>| Err::<(), _>(Error::failed("the rest"));
        let error = side_by_side(limits, items(&[1; 3]), one, rest).unwrap_err();
        assert!(error.to_string().contains("the rest"));
    }

    #[test]
    fn one_that_stops_as_asked_doesn_t_hide_why() {
        let limits = Limits { items: 2, weight: 10 };
        let one = |index: usize, should_stop: &dyn Fn() -> bool| -> Result<()> {
            let begun = std::time::Instant::now();
            while index == 1 && !should_stop() && begun.elapsed() < Duration::from_secs(30) {
                std::thread::sleep(Duration::from_millis(1));
            }
            if index == 1 { Err(Error::failed("asked to stop")) } else { Ok(()) }
        };
        let rest = |ending: &Progressing<usize, ()>| -> Result<()> {
            ending.wait(0)?;
            Err(Error::failed("the dataset exists"))
        };
        let error = side_by_side(limits, items(&[1; 2]), one, rest).unwrap_err();
        assert_eq!(error.to_string(), "the dataset exists");
    }

    #[test]
    fn a_panic_is_passed_on_and_what_was_never_given_is_an_error() {
        let limits = Limits { items: 2, weight: 10 };
        let panics = |_: usize, _: &dyn Fn() -> bool| -> Result<()> { panic!("in a test") };
        let caught = std::panic::catch_unwind(|| {
            side_by_side(limits, items(&[1]), panics, |progressing| progressing.wait(0))
        });
        // `wait` has returned, and then the scope passes the panic on.
        let words = caught.unwrap_err();
        assert_eq!(words.downcast_ref::<&str>(), Some(&"a scoped thread panicked"));
        let fine = |_: usize, _: &dyn Fn() -> bool| Ok(());
        let error = side_by_side(limits, items(&[1]), fine, |progressing| progressing.wait(9));
        assert_eq!(error.unwrap_err().to_string(), "a volume before it failed");
    }
}
