//! Many small objects at once: read one after another, nearly all of their cost is waiting for the store.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Calls to the store at the same time.
const AT_ONCE: usize = 16;
/// The most results that wait for their turn.
const WAITING: usize = 8 * AT_ONCE;

/// Reads something for each item, several at a time, and passes it to `take` in the items' order. The first error of
/// `take` ends it; a few more items may have been read by then.
pub fn read_many<T: Sync, R: Send, E>(
    items: &[T],
    read: impl Fn(&T) -> R + Sync,
    mut take: impl FnMut(&T, R) -> Result<(), E>,
) -> Result<(), E> {
    for part in items.chunks(WAITING) {
        let next = AtomicUsize::new(0);
        let done = Mutex::new(part.iter().map(|_| None).collect::<Vec<Option<R>>>());
        let work = || {
            while let Some((at, item)) =
                Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|at| Some((at, part.get(at)?)))
            {
                let result = read(item);
                if let Some(place) = done.lock().unwrap_or_else(PoisonError::into_inner).get_mut(at)
                {
                    *place = Some(result);
                }
            }
        };
        match part {
            [_] => work(),
            _ => std::thread::scope(|scope| {
                let mut starts = (0..AT_ONCE.min(part.len()))
                    .map(|_| std::thread::Builder::new().spawn_scoped(scope, work));
                // If the system starts no more threads, this one does the rest.
                if starts.any(|started| started.is_err()) {
                    work();
                }
            }),
        }
        let done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
        part.iter()
            .zip(done.into_iter().flatten())
            .try_for_each(|(item, result)| take(item, result))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_order_and_no_more_at_once_than_allowed() {
        let (running, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let items: Vec<usize> = (0..1000).collect();
        let read = |item: &usize| {
            most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            std::thread::sleep(std::time::Duration::from_micros(*item as u64 % 7 * 100));
            running.fetch_sub(1, Ordering::SeqCst);
            item * 2
        };
        let mut taken = Vec::new();
        let all: Result<(), ()> = read_many(&items, read, |item, result| {
            assert_eq!(result, item * 2);
            taken.push(*item);
            Ok(())
        });
        assert!(all.is_ok());
        assert_eq!(taken, items);
        let most = most.into_inner();
        assert!((2..=AT_ONCE).contains(&most), "{most} at once");
    }

    #[test]
    fn the_first_error_ends_it() {
        let read = AtomicUsize::new(0);
        let items: Vec<usize> = (0..10_000).collect();
        let count = |item: &usize| (read.fetch_add(1, Ordering::SeqCst), *item).1;
        let end = read_many(&items, count, |_, at| if at == 20 { Err(at) } else { Ok(()) });
        assert_eq!(end, Err(20));
        assert!(read.into_inner() <= WAITING);
    }
}
