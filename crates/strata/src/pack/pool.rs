//! Reuses the memory of contents: a new allocation costs a page fault for each 4 KiB, and contents that one thread
//! makes and another frees leave more holes in the allocator than the contents are large.
//!
//! What could go wrong: a small content in a large one's memory takes more than its length, by which contents are
//! counted. So memory is reused only for contents that nearly fill it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use crate::frame;

/// The most bytes that are kept for reuse.
const MOST: usize = 4 << 20;

/// Shared by everything that makes contents.
#[derive(Clone, Default)]
pub(super) struct Pool(Arc<Mutex<Vec<Vec<u8>>>>);

impl Pool {
    /// Returns memory for the content of a frame.
    pub(super) fn take(&self, stored: &[u8]) -> Vec<u8> {
        let length = frame::content_length(stored);
        let fits = |spare: &Vec<u8>| {
            length > 0 && (length..=length + length / 8).contains(&spare.capacity())
        };
        let mut spare = self.spare();
        let found = spare.iter().position(fits);
        found.map_or_else(Vec::new, |found| spare.swap_remove(found))
    }

    /// Returns a content whose memory comes back when nobody uses any of it any more.
    pub(super) fn lend(&self, content: Vec<u8>) -> Bytes {
        Bytes::from_owner(Lent { content, pool: self.clone() })
    }

    fn give(&self, content: Vec<u8>) {
        let mut spare = self.spare();
        spare.push(content);
        let mut size: usize = spare.iter().map(Vec::capacity).sum();
        while size > MOST {
            size -= spare.remove(0).capacity();
        }
    }

    fn spare(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Lent {
    content: Vec<u8>,
    pool: Pool,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.content
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.pool.give(std::mem::take(&mut self.content));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_fits_closely_and_nobody_reads_is_used_again() {
        let frame = |length: usize| {
            let compressed = frame::compress(vec![7; length], 1).unwrap();
            let place = frame::Place { path: "x", pack: crate::Ulid(0), at: 0 };
            frame::finish(compressed, place, None).unwrap()
        };
        let pool = Pool::default();
        let content = vec![1; 1000];
        let at = content.as_ptr();
        let content = pool.lend(content);
        let read = content.slice(3..5);
        drop(content);
        assert!(pool.spare().is_empty(), "{read:?} is read still");
        drop(read);
        assert_eq!(pool.take(&frame(300)).capacity(), 0, "too large");
        assert_eq!(pool.take(&frame(1001)).capacity(), 0, "too small");
        let again = pool.take(&frame(950));
        assert_eq!((again.as_ptr(), again.capacity()), (at, 1000));
        (0..100).for_each(|_| drop(pool.lend(Vec::with_capacity(MOST / 10))));
        assert_eq!(pool.spare().len(), 10);
        drop(pool.lend(Vec::with_capacity(MOST + 1)));
        assert!(pool.spare().is_empty());
    }
}
