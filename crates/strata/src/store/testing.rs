//! Stores for tests: one that fails or stops after a number of calls, one that counts and records calls, one in which
//! others do something in between, and one that locks what is written.

mod locking;

pub use locking::Locking;

use std::fs::File;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use super::{Around, Listed, Storage, StoreError, StoreErrorKind, StoreResult};

/// What happens at the call at which a [`Faulty`] store breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// This call and all later ones do nothing, as if the program had died before it.
    StopBefore,
    /// This call is done, but it and all later ones fail, as if the program had died after it.
    StopAfter,
    /// Only this call does nothing and fails for now.
    FailOnce,
    /// Only this call is done, but its answer is lost.
    LoseAnswer,
}

/// A store that breaks at a given call.
#[derive(Clone)]
pub struct Faulty {
    inner: Arc<dyn Storage>,
    calls: Arc<AtomicU64>,
    at: u64,
    fault: Fault,
}

impl Faulty {
    /// Breaks at call `at`; the first is 0.
    pub fn new(inner: Arc<dyn Storage>, at: u64, fault: Fault) -> Faulty {
        Faulty { inner, calls: Arc::default(), at, fault }
    }

    /// Returns the number of calls so far.
    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::SeqCst)
    }

    fn call<T>(
        &self,
        verb: &'static str,
        path: &str,
        call: impl FnOnce() -> StoreResult<T>,
    ) -> StoreResult<T> {
        let number = self.calls.fetch_add(1, Ordering::SeqCst);
        let dead = StoreError::new(verb, path, StoreErrorKind::Other);
        let passing = StoreError::new(verb, path, StoreErrorKind::Transient);
        match (self.fault, number.cmp(&self.at)) {
            (_, std::cmp::Ordering::Less) => call(),
            (Fault::StopBefore, _) | (Fault::StopAfter, std::cmp::Ordering::Greater) => Err(dead),
            (Fault::StopAfter, _) => call().and(Err(dead)),
            (_, std::cmp::Ordering::Greater) => call(),
            (Fault::FailOnce, _) => Err(passing),
            (Fault::LoseAnswer, _) => call().and(Err(passing)),
        }
    }
}

/// A call, as [`Counting`] records it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// The call: `put`, `get`, `list`.
    pub verb: &'static str,
    /// The object.
    pub path: String,
    /// The range that was read, if it was a read of a range.
    pub range: Option<Range<u64>>,
}

/// A store that records its calls.
#[derive(Clone)]
pub struct Counting {
    inner: Arc<dyn Storage>,
    calls: Arc<std::sync::Mutex<Vec<Call>>>,
}

impl Counting {
    /// Records the calls to `inner`.
    pub fn new(inner: Arc<dyn Storage>) -> Counting {
        Counting { inner, calls: Arc::default() }
    }

    /// Returns the calls since they were last taken.
    pub fn take(&self) -> Vec<Call> {
        std::mem::take(&mut *self.calls.lock().unwrap_or_else(|poisoned| poisoned.into_inner()))
    }

    fn note(&self, verb: &'static str, path: &str, range: Option<Range<u64>>) {
        let call = Call { verb, path: path.to_string(), range };
        self.calls.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(call);
    }
}

impl Around for Counting {
    fn inner(&self) -> &dyn Storage {
        self.inner.as_ref()
    }

    fn put(&self, path: &str, data: &[Bytes]) -> StoreResult<()> {
        self.note("put", path, None);
        self.inner.put(path, data)
    }

    fn put_if_absent(&self, path: &str, data: &Bytes) -> StoreResult<()> {
        self.note("put_if_absent", path, None);
        self.inner.put_if_absent(path, data)
    }

    fn put_file(&self, path: &str, file: &mut File, length: u64) -> StoreResult<()> {
        self.note("put_file", path, None);
        self.inner.put_file(path, file, length)
    }

    fn get(&self, path: &str) -> StoreResult<Bytes> {
        self.note("get", path, None);
        self.inner.get(path)
    }

    fn get_small(&self, path: &str, most: u64) -> StoreResult<Bytes> {
        self.note("get", path, None);
        self.inner.get_small(path, most)
    }

    fn get_range(&self, path: &str, range: Range<u64>) -> StoreResult<Bytes> {
        self.note("get_range", path, Some(range.clone()));
        self.inner.get_range(path, range)
    }

    fn list(&self, prefix: &str, each: &mut dyn FnMut(Listed)) -> StoreResult<()> {
        self.note("list", prefix, None);
        self.inner.list(prefix, each)
    }

    fn folders(&self, prefix: &str) -> StoreResult<Vec<String>> {
        self.note("list", prefix, None);
        self.inner.folders(prefix)
    }

    fn delete(&self, path: &str) -> StoreResult<()> {
        self.note("delete", path, None);
        self.inner.delete(path)
    }

    fn size(&self, path: &str) -> StoreResult<u64> {
        self.note("size", path, None);
        self.inner.size(path)
    }

    fn lock_until(&self, path: &str, until: u64) -> StoreResult<()> {
        self.note("lock_until", path, None);
        self.inner.lock_until(path, until)
    }
}

impl Around for Faulty {
    fn inner(&self) -> &dyn Storage {
        self.inner.as_ref()
    }

    fn put(&self, path: &str, data: &[Bytes]) -> StoreResult<()> {
        self.call("put", path, || self.inner.put(path, data))
    }

    fn put_if_absent(&self, path: &str, data: &Bytes) -> StoreResult<()> {
        self.call("create", path, || self.inner.put_if_absent(path, data))
    }

    fn put_file(&self, path: &str, file: &mut File, length: u64) -> StoreResult<()> {
        self.call("put", path, || self.inner.put_file(path, file, length))
    }

    fn get(&self, path: &str) -> StoreResult<Bytes> {
        self.call("get", path, || self.inner.get(path))
    }

    fn get_small(&self, path: &str, most: u64) -> StoreResult<Bytes> {
        self.call("get", path, || self.inner.get_small(path, most))
    }

    fn get_range(&self, path: &str, range: Range<u64>) -> StoreResult<Bytes> {
        self.call("get", path, || self.inner.get_range(path, range))
    }

    fn list(&self, prefix: &str, each: &mut dyn FnMut(Listed)) -> StoreResult<()> {
        self.call("list", prefix, || self.inner.list(prefix, each))
    }

    fn folders(&self, prefix: &str) -> StoreResult<Vec<String>> {
        self.call("list", prefix, || self.inner.folders(prefix))
    }

    fn delete(&self, path: &str) -> StoreResult<()> {
        self.call("delete", path, || self.inner.delete(path))
    }

    fn size(&self, path: &str) -> StoreResult<u64> {
        self.call("look at", path, || self.inner.size(path))
    }

    fn lock_until(&self, path: &str, until: u64) -> StoreResult<()> {
        self.call("prolong the lock of", path, || self.inner.lock_until(path, until))
    }
}

type Action = Box<dyn FnOnce() + Send>;

/// A store in which others do something before a given call.
pub struct Meanwhile {
    inner: Arc<dyn Storage>,
    calls: AtomicU64,
    at: u64,
    action: Mutex<Option<Action>>,
}

impl Meanwhile {
    /// Runs `action` before call `at`; the first is 0.
    pub fn new(
        inner: Arc<dyn Storage>,
        at: u64,
        action: impl FnOnce() + Send + 'static,
    ) -> Meanwhile {
        let action: Action = Box::new(action);
        Meanwhile { inner, calls: AtomicU64::new(0), at, action: Mutex::new(Some(action)) }
    }

    /// Returns the number of calls so far.
    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::SeqCst)
    }

    fn call(&self) -> &dyn Storage {
        let mut action = self.action.lock().unwrap_or_else(PoisonError::into_inner);
        if self.calls.fetch_add(1, Ordering::SeqCst) == self.at
            && let Some(action) = action.take()
        {
            action();
        }
        self.inner.as_ref()
    }
}

impl Around for Meanwhile {
    fn inner(&self) -> &dyn Storage {
        self.call()
    }

    fn locked_seconds(&self, path: &str) -> u64 {
        // This isn't a call to a server, so it doesn't count.
        self.inner.locked_seconds(path)
    }
}
