//! Memory of contents that were used, for those that come: a new one costs a page fault for each 4 KiB.
//!
//! What could go wrong: a small content in a large one's memory takes more than whoever counts contents knows of. So
//! only what fits closely is used again.

use bytes::Bytes;

use crate::frame;

/// So many are kept.
const MOST: usize = 8;

#[derive(Default)]
pub(super) struct Spare(Vec<Vec<u8>>);

impl Spare {
    /// Memory for the content of a frame.
    pub(super) fn take(&mut self, stored: &[u8]) -> Vec<u8> {
        let length = frame::content_length(stored);
        let fits = |spare: &Vec<u8>| {
            length > 0 && (length..=length + length / 8).contains(&spare.capacity())
        };
        let found = self.0.iter().position(fits);
        found.map_or_else(Vec::new, |found| self.0.swap_remove(found))
    }

    pub(super) fn give(&mut self, content: Vec<u8>) {
        if self.0.len() == MOST {
            self.0.remove(0);
        }
        self.0.push(content);
    }

    /// Nothing is kept of what somebody still reads.
    pub(super) fn give_bytes(&mut self, content: Bytes) {
        if let Ok(mut content) = content.try_into_mut() {
            // So that nothing is moved.
            content.clear();
            self.give(Vec::from(content));
        }
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
        let mut spare = Spare::default();
        let content = vec![1; 1000];
        let at = content.as_ptr();
        let content = Bytes::from(content);
        let read = content.slice(3..5);
        spare.give_bytes(content.clone());
        assert!(spare.0.is_empty(), "{:?} is read still", read);
        drop(read);
        spare.give_bytes(content);
        assert_eq!(spare.take(&frame(300)).capacity(), 0, "too large");
        assert_eq!(spare.take(&frame(1001)).capacity(), 0, "too small");
        let again = spare.take(&frame(950));
        assert_eq!((again.as_ptr(), again.capacity()), (at, 1000));
        (0..100).for_each(|n| spare.give(Vec::with_capacity(n)));
        assert_eq!(spare.0.len(), MOST);
    }
}
