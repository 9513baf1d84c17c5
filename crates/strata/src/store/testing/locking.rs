//! A store that locks objects, as S3's compliance mode does: locks are prolonged and never shortened.

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::super::{Around, PROLONG, Storage, StoreError, StoreErrorKind, StoreResult, is_passing};

/// Locks what is put into `inner` for some seconds, and records what is prolonged. It deletes whatever it is told to;
/// `inner` says when an object was written, and the test decides by which clock.
#[derive(Clone)]
pub struct Locking {
    inner: Arc<dyn Storage>,
    seconds: u64,
    prolonged: Arc<Mutex<BTreeMap<String, u64>>>,
    refusal: Arc<Mutex<Refusal>>,
}

/// How prolonging an object's lock fails, if it does.
type Refusal = Box<dyn FnMut(&str) -> Option<StoreErrorKind> + Send>;

impl Locking {
    /// Locks for this many seconds from the time of writing.
    pub fn new(inner: Arc<dyn Storage>, seconds: u64) -> Locking {
        let refusal: Refusal = Box::new(|_| None);
        Locking {
            inner,
            seconds,
            prolonged: Arc::default(),
            refusal: Arc::new(Mutex::new(refusal)),
        }
    }

    /// Returns the same store, used with another lock time.
    pub fn for_seconds(&self, seconds: u64) -> Locking {
        Locking { seconds, ..self.clone() }
    }

    /// Returns what was prolonged, and until when.
    pub fn prolonged(&self) -> BTreeMap<String, u64> {
        self.locks().clone()
    }

    /// Makes every later prolongation fail like this; with `None` they succeed.
    pub fn refuse(&self, kind: Option<StoreErrorKind>) {
        self.refuse_where(move |_| kind);
    }

    /// Makes later prolongations fail as `refusal` says for each path.
    pub fn refuse_where(
        &self,
        refusal: impl FnMut(&str) -> Option<StoreErrorKind> + Send + 'static,
    ) {
        *self.refusal.lock().unwrap_or_else(PoisonError::into_inner) = Box::new(refusal);
    }

    fn locks(&self) -> MutexGuard<'_, BTreeMap<String, u64>> {
        self.prolonged.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A rewritten object is another version with its own lock.
    fn written(&self, path: &str, result: StoreResult<()>) -> StoreResult<()> {
        if result.is_ok() {
            self.locks().remove(path);
        }
        result
    }
}

impl Around for Locking {
    fn inner(&self) -> &dyn Storage {
        self.inner.as_ref()
    }

    fn put(&self, path: &str, data: &[Bytes]) -> StoreResult<()> {
        self.written(path, self.inner.put(path, data))
    }

    fn put_if_absent(&self, path: &str, data: &Bytes) -> StoreResult<()> {
        self.written(path, self.inner.put_if_absent(path, data))
    }

    fn put_file(&self, path: &str, file: &mut File, length: u64) -> StoreResult<()> {
        self.written(path, self.inner.put_file(path, file, length))
    }

    fn locked_seconds(&self, path: &str) -> u64 {
        if is_passing(path) { 0 } else { self.seconds }
    }

    fn lock_until(&self, path: &str, until: u64) -> StoreResult<()> {
        let mut refusal = self.refusal.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kind) = refusal(path) {
            return Err(StoreError::new(PROLONG, path, kind));
        }
        if self.inner.size(path).is_err() {
            return Err(StoreError::new(PROLONG, path, StoreErrorKind::NotFound));
        }
        let mut locks = self.locks();
        let lock = locks.entry(path.to_string()).or_insert(0);
        *lock = until.max(*lock);
        Ok(())
    }
}
