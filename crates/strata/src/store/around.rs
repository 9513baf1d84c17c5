//! A store that wraps another one and passes on every call that it doesn't override.
//!
//! What could go wrong: a wrapper forgets to pass on a call, and the call's default is taken for the answer of the
//! store inside. So none of [`Storage`]'s defaults is used here: each call is passed on.

use std::fs::File;
use std::ops::Range;

use bytes::Bytes;

use super::{Listed, Reach, Storage, StoreResult};

/// A store that wraps another one: the calls are those of [`Storage`], and each is passed on unless overridden.
pub trait Around: Send + Sync {
    /// Returns the store inside. Each call asks for it exactly once, so it can be used to count calls.
    fn inner(&self) -> &dyn Storage;

    /// See [`Storage::put`].
    fn put(&self, path: &str, data: &[Bytes]) -> StoreResult<()> {
        self.inner().put(path, data)
    }

    /// See [`Storage::put_if_absent`].
    fn put_if_absent(&self, path: &str, data: &Bytes) -> StoreResult<()> {
        self.inner().put_if_absent(path, data)
    }

    /// See [`Storage::put_file`].
    fn put_file(&self, path: &str, file: &mut File, length: u64) -> StoreResult<()> {
        self.inner().put_file(path, file, length)
    }

    /// See [`Storage::get`].
    fn get(&self, path: &str) -> StoreResult<Bytes> {
        self.inner().get(path)
    }

    /// See [`Storage::get_small`].
    fn get_small(&self, path: &str, most: u64) -> StoreResult<Bytes> {
        self.inner().get_small(path, most)
    }

    /// See [`Storage::get_range`].
    fn get_range(&self, path: &str, range: Range<u64>) -> StoreResult<Bytes> {
        self.inner().get_range(path, range)
    }

    /// See [`Storage::list`].
    fn list(&self, prefix: &str, each: &mut dyn FnMut(Listed)) -> StoreResult<()> {
        self.inner().list(prefix, each)
    }

    /// See [`Storage::folders`].
    fn folders(&self, prefix: &str) -> StoreResult<Vec<String>> {
        self.inner().folders(prefix)
    }

    /// See [`Storage::delete`].
    fn delete(&self, path: &str) -> StoreResult<()> {
        self.inner().delete(path)
    }

    /// See [`Storage::size`].
    fn size(&self, path: &str) -> StoreResult<u64> {
        self.inner().size(path)
    }

    /// See [`Storage::half_written`].
    fn half_written(
        &self,
        prefix: &str,
        reach: Reach,
        each: &mut dyn FnMut(Listed),
    ) -> StoreResult<()> {
        self.inner().half_written(prefix, reach, each)
    }

    /// See [`Storage::delete_half_written`].
    fn delete_half_written(&self, path: &str) -> StoreResult<()> {
        self.inner().delete_half_written(path)
    }

    /// See [`Storage::locked_seconds`].
    fn locked_seconds(&self, path: &str) -> u64 {
        self.inner().locked_seconds(path)
    }

    /// See [`Storage::lock_until`].
    fn lock_until(&self, path: &str, until: u64) -> StoreResult<()> {
        self.inner().lock_until(path, until)
    }
}

impl<T: Around> Storage for T {
    fn put(&self, path: &str, data: &[Bytes]) -> StoreResult<()> {
        Around::put(self, path, data)
    }

    fn put_if_absent(&self, path: &str, data: &Bytes) -> StoreResult<()> {
        Around::put_if_absent(self, path, data)
    }

    fn put_file(&self, path: &str, file: &mut File, length: u64) -> StoreResult<()> {
        Around::put_file(self, path, file, length)
    }

    fn get(&self, path: &str) -> StoreResult<Bytes> {
        Around::get(self, path)
    }

    fn get_small(&self, path: &str, most: u64) -> StoreResult<Bytes> {
        Around::get_small(self, path, most)
    }

    fn get_range(&self, path: &str, range: Range<u64>) -> StoreResult<Bytes> {
        Around::get_range(self, path, range)
    }

    fn list(&self, prefix: &str, each: &mut dyn FnMut(Listed)) -> StoreResult<()> {
        Around::list(self, prefix, each)
    }

    fn folders(&self, prefix: &str) -> StoreResult<Vec<String>> {
        Around::folders(self, prefix)
    }

    fn delete(&self, path: &str) -> StoreResult<()> {
        Around::delete(self, path)
    }

    fn size(&self, path: &str) -> StoreResult<u64> {
        Around::size(self, path)
    }

    fn half_written(
        &self,
        prefix: &str,
        reach: Reach,
        each: &mut dyn FnMut(Listed),
    ) -> StoreResult<()> {
        Around::half_written(self, prefix, reach, each)
    }

    fn delete_half_written(&self, path: &str) -> StoreResult<()> {
        Around::delete_half_written(self, path)
    }

    fn locked_seconds(&self, path: &str) -> u64 {
        Around::locked_seconds(self, path)
    }

    fn lock_until(&self, path: &str, until: u64) -> StoreResult<()> {
        Around::lock_until(self, path, until)
    }
}
