//! A send stream in which some files are replaced by holes, and whose progress is observed.

use std::collections::HashSet;

use indicatif::ProgressBar;
use sendstream::fold::{Piece, Sink, SpillBlock};
use sendstream::record::{Begin, Object};
use sendstream::{Error, Result};

/// Bytes between two checks whether to stop.
const STRIDE: u64 = 8 << 20;

/// Passes on everything except the content of some objects, under another GUID.
pub(super) struct Zeroing<'a, S> {
    inner: S,
    should_stop: &'a dyn Fn() -> bool,
    zeroed: HashSet<u64>,
    guid: u64,
    bar: ProgressBar,
    /// Bytes since the last check.
    passed: u64,
}

impl<'a, S> Zeroing<'a, S> {
    /// The content of `zeroed` becomes holes; `bar` shows how much of the rest was passed on; ends with an error once
    /// it `should_stop`.
    pub(super) fn new(
        inner: S,
        zeroed: HashSet<u64>,
        guid: u64,
        bar: ProgressBar,
        should_stop: &'a dyn Fn() -> bool,
    ) -> Self {
        Self { inner, should_stop, zeroed, guid, bar, passed: 0 }
    }

    fn go_on(&self) -> Result<()> {
        if (self.should_stop)() { Err(Error::other("asked to stop")) } else { Ok(()) }
    }

    /// Returns the inner sink.
    pub(super) fn into_inner(self) -> S {
        self.inner
    }
}

impl<S: Sink> Sink for Zeroing<'_, S> {
    fn begin(&mut self, begin: &Begin) -> Result<()> {
        self.inner.begin(&Begin { to_guid: self.guid, ..begin.clone() })
    }

    fn freed(&mut self, first: u64, count: u64) -> Result<()> {
        self.inner.freed(first, count)
    }

    fn object(&mut self, header: &Object, bonus: &[u8]) -> Result<()> {
        self.go_on()?;
        self.inner.object(header, bonus)
    }

    fn wants_content_of(&mut self, object: u64) -> bool {
        !self.zeroed.contains(&object) && self.inner.wants_content_of(object)
    }

    fn hole(&mut self, object: u64, offset: u64, length: u64) -> Result<()> {
        self.inner.hole(object, offset, length)
    }

    fn piece(&mut self, object: u64, piece: Piece<'_>) -> Result<()> {
        if self.zeroed.contains(&object) {
            return Ok(());
        }
        self.bar.inc(piece.length);
        self.passed += piece.length;
        if self.passed >= STRIDE {
            self.passed = 0;
            self.go_on()?;
        }
        self.inner.piece(object, piece)
    }

    fn spill(&mut self, spill: SpillBlock<'_>) -> Result<()> {
        self.inner.spill(spill)
    }

    fn object_end(&mut self, object: u64) -> Result<()> {
        self.inner.object_end(object)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use sendstream::fold::{Block, BlockHeader};
    use sendstream::record::Write;

    use super::*;

    /// Counts what arrives.
    #[derive(Default)]
    struct Counting(u64);

    impl Sink for Counting {
        fn begin(&mut self, _: &Begin) -> Result<()> {
            Ok(())
        }
        fn object(&mut self, _: &Object, _: &[u8]) -> Result<()> {
            Ok(())
        }
        fn piece(&mut self, _: u64, piece: Piece<'_>) -> Result<()> {
            self.0 += piece.length;
            Ok(())
        }
        fn spill(&mut self, _: SpillBlock<'_>) -> Result<()> {
            Ok(())
        }
    }

    #[test]
    fn in_the_midst_of_one_large_file_it_stops_when_asked() {
        let asked = Cell::new(false);
        let should_stop = || asked.get();
        let mut sink = Zeroing::new(
            Counting::default(),
            HashSet::from([7]),
            1,
            ProgressBar::hidden(),
            &should_stop,
        );
        let payload = vec![1; 1 << 20];
        let mut put = |object: u64, n: u64| {
            let (offset, length) = (n << 20, 1 << 20);
            let header = Write::plain(object, 19, offset, length);
            let block = Block { header: BlockHeader::Write(&header), payload: &payload };
            sink.piece(object, Piece { offset, length, block })
        };
        (0..40).for_each(|n| put(8, n).unwrap());
        (0..40).for_each(|n| put(7, n).unwrap());
        asked.set(true);
        let stopped = (40..80).find(|n| put(8, *n).is_err());
        assert!(stopped.is_some_and(|n| n < 40 + (STRIDE >> 20)), "{stopped:?}");
        let passed = sink.into_inner().0;
        assert!((40 << 20..80 << 20).contains(&passed), "what was zeroed isn't among {passed}");
    }
}
