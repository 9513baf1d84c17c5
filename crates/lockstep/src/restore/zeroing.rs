//! A stream in which some files are holes, and which is watched as it goes by.

use std::collections::HashSet;

use indicatif::ProgressBar;
use sendstream::Result;
use sendstream::fold::{Piece, Sink, SpillBlock};
use sendstream::record::{Begin, Object};

/// Passes on all but the content of some objects, under another GUID.
pub(super) struct Zeroing<S> {
    inner: S,
    zeroed: HashSet<u64>,
    guid: u64,
    bar: ProgressBar,
}

impl<S> Zeroing<S> {
    /// The content of `zeroed` becomes holes; `bar` shows how much of the rest went by.
    pub(super) fn new(inner: S, zeroed: HashSet<u64>, guid: u64, bar: ProgressBar) -> Self {
        Self { inner, zeroed, guid, bar }
    }

    /// What it was passed on to.
    pub(super) fn into_inner(self) -> S {
        self.inner
    }
}

impl<S: Sink> Sink for Zeroing<S> {
    fn begin(&mut self, begin: &Begin) -> Result<()> {
        self.inner.begin(&Begin { to_guid: self.guid, ..begin.clone() })
    }

    fn freed(&mut self, first: u64, count: u64) -> Result<()> {
        self.inner.freed(first, count)
    }

    fn object(&mut self, header: &Object, bonus: &[u8]) -> Result<()> {
        self.inner.object(header, bonus)
    }

    fn hole(&mut self, object: u64, offset: u64, length: u64) -> Result<()> {
        self.inner.hole(object, offset, length)
    }

    fn piece(&mut self, object: u64, piece: Piece<'_>) -> Result<()> {
        if self.zeroed.contains(&object) {
            return Ok(());
        }
        self.bar.inc(piece.length);
        self.inner.piece(object, piece)
    }

    fn spill(&mut self, spill: SpillBlock<'_>) -> Result<()> {
        self.inner.spill(spill)
    }

    fn object_end(&mut self, object: u64) -> Result<()> {
        self.inner.object_end(object)
    }
}
