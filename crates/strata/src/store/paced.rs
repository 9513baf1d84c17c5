//! A store that limits the bytes sent per second.
//!
//! A caller waits while the bytes before are still being paid for; an object itself is sent as fast as the network
//! allows. So over any period no more is sent than the limit allows plus one object, and what is small. All users of
//! the same store share the limit, and retries count again.
//!
//! What could go wrong: a descriptor waits for minutes behind packs, and replaces another one when the lease, which was
//! looked at just before, is somebody else's by then. So what is small is paid for and doesn't wait.

use std::fs::File;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::{Around, Ending, Storage, StoreResult};

/// About the size of a request without a payload.
const REQUEST: u64 = 1 << 10;

/// Objects with fewer bytes don't wait.
const SMALL: u64 = 64 << 10;

/// Paces what is sent to `inner`.
pub struct Paced<S> {
    inner: S,
    bytes_per_second: u64,
    /// When everything sent so far is paid for.
    paid: Mutex<Option<Instant>>,
    ending: Ending,
}

impl<S: Storage> Paced<S> {
    /// Sends at most this many bytes per second; 0 counts as 1.
    pub fn new(inner: S, bytes_per_second: u64) -> Paced<S> {
        let (bytes_per_second, ending) = (bytes_per_second.max(1), Ending::default());
        Paced { inner, bytes_per_second, paid: Mutex::new(None), ending }
    }

    /// Removes the limit once the program was asked to end.
    pub fn until(self, ending: Ending) -> Paced<S> {
        Paced { ending, ..self }
    }

    /// Waits until `bytes` may be sent.
    fn pace(&self, bytes: u64) {
        self.ending.sleep(self.pay(bytes));
    }

    /// Counts `bytes`, and returns how long they would have to wait.
    fn pay(&self, bytes: u64) -> Duration {
        let cost = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
        let now = Instant::now();
        let mut paid = self.paid.lock().unwrap_or_else(PoisonError::into_inner);
        let start = paid.map_or(now, |paid| paid.max(now));
        *paid = Some(start + cost);
        start.saturating_duration_since(now)
    }
}

impl<S: Storage> Around for Paced<S> {
    fn inner(&self) -> &dyn Storage {
        &self.inner
    }

    fn put(&self, path: &str, data: &[Bytes]) -> StoreResult<()> {
        let bytes: u64 = data.iter().map(|part| part.len() as u64).sum();
        if bytes < SMALL {
            self.pay(bytes);
        } else {
            self.pace(bytes);
        }
        self.inner.put(path, data)
    }

    fn put_if_absent(&self, path: &str, data: &Bytes) -> StoreResult<()> {
        // It is small, and a lease that waited here could be lost.
        self.inner.put_if_absent(path, data)
    }

    fn put_file(&self, path: &str, file: &mut File, length: u64) -> StoreResult<()> {
        self.pace(length);
        self.inner.put_file(path, file, length)
    }

    fn lock_until(&self, path: &str, until: u64) -> StoreResult<()> {
        // Each is small, but there are millions.
        self.pace(REQUEST);
        self.inner.lock_until(path, until)
    }
}
