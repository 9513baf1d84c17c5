//! Where the repository's objects are: a small, blocking interface to any object store.
//!
//! A [`Storage`] makes single calls. The rest of the crate uses [`Store`], which retries calls that failed for a
//! transient reason. [`Storage`] documents what each call promises; the suite in `tests/it/store.rs` checks every
//! implementation against that.

mod around;
#[cfg(feature = "cloud")]
mod cloud;
mod half_written;
mod listing;
mod object;
mod paced;
#[cfg(feature = "aws")]
mod prolong;
pub mod testing;
mod translate;
mod upload;

pub use around::Around;
#[cfg(feature = "cloud")]
pub use cloud::{CloudOptions, Secret};
pub use half_written::{Reach, place_of};
pub use object::{ObjectStorage, Timeouts};
pub use paced::Paced;

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;

use crate::lease::Still;

/// Why a call failed, as far as callers distinguish it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StoreErrorKind {
    /// There is no such object.
    NotFound,
    /// There is no such bucket or container.
    NoBucket,
    /// A create-only write found an existing object.
    AlreadyExists,
    /// The object is larger than the caller accepts.
    TooLarge,
    /// The store lets nobody delete or replace the object for some time.
    Retained,
    /// This store doesn't support the call.
    Unsupported,
    /// The store knows the caller and refuses the request.
    PermissionDenied,
    /// The store doesn't know the caller.
    Unauthenticated,
    /// The call exceeded its time limit.
    TimedOut,
    /// It could have been retried, but the program was asked to end.
    Ending,
    /// It may succeed when tried again.
    Transient,
    /// It won't succeed when tried again.
    Other,
}

/// A call to the store that failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {verb} \"{path}\": {}", self.words())]
pub struct StoreError {
    /// The call: `put`, `get`, `list`.
    pub verb: &'static str,
    /// The object.
    pub path: String,
    /// Why, as far as callers distinguish it.
    pub kind: StoreErrorKind,
    /// The store's own message.
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl StoreError {
    /// Makes an error without a message of the store's own.
    pub fn new(verb: &'static str, path: &str, kind: StoreErrorKind) -> StoreError {
        StoreError { verb, path: path.to_string(), kind, source: None }
    }

    /// Whether there was no room for what was to be written.
    pub fn lacks_room(&self) -> bool {
        self.source.as_deref().is_some_and(|error| translate::lacks_room(error))
    }

    /// Whether nothing says that the call has ended: it may still have its effect.
    fn is_unanswered(&self) -> bool {
        match self.kind {
            StoreErrorKind::TimedOut => true,
            StoreErrorKind::Transient => {
                self.source.as_deref().is_some_and(|error| translate::is_unanswered(error))
            }
            _ => false,
        }
    }

    fn words(&self) -> &'static str {
        match self.kind {
            StoreErrorKind::NotFound => "it does not exist",
            StoreErrorKind::NoBucket => "there is no such bucket",
            StoreErrorKind::AlreadyExists => "it exists already",
            StoreErrorKind::TooLarge => "it is larger than any valid one",
            StoreErrorKind::Retained => "the store does not let it be replaced or deleted yet",
            StoreErrorKind::Unsupported => "this store does not support that",
            StoreErrorKind::PermissionDenied => "permission denied",
            StoreErrorKind::Unauthenticated => "the credentials are missing or wrong",
            StoreErrorKind::TimedOut => "the store did not answer in time",
            StoreErrorKind::Ending => {
                "the store failed, and it was not tried again because the program is ending"
            }
            StoreErrorKind::Transient => "the store failed for now",
            StoreErrorKind::Other => "the store failed",
        }
    }

    /// Returns what to do about it, if there is something.
    pub fn hint(&self) -> Option<&'static str> {
        let words = self.source.as_ref().map(ToString::to_string).unwrap_or_default();
        if let Some(code) = translate::Code::of(&words).filter(|code| code.kind == self.kind) {
            return Some(code.hint);
        }
        if let Some(hint) = self.source.as_deref().and_then(|e| translate::hint_of_cause(e)) {
            return Some(hint);
        }
        if self.verb == LIST && self.source.as_deref().is_some_and(|e| translate::is_odd_name(e)) {
            return Some(ODD_NAME);
        }
        if self.verb == CREATE && self.source.as_deref().is_some_and(|e| translate::lacks_links(e))
        {
            return Some(NO_LINKS);
        }
        Some(match self.kind {
            StoreErrorKind::NotFound => {
                "check the repository to see whether anything else is missing"
            }
            StoreErrorKind::PermissionDenied if self.verb == PROLONG => {
                "do these credentials have the right s3:PutObjectRetention? (with s3:GetObjectRetention, locks that are longer already are recognized)"
            }
            StoreErrorKind::PermissionDenied if self.verb == LIST => {
                "may this user, or these credentials, list what is there? (s3:ListBucket belongs to the bucket itself, not to its objects)"
            }
            StoreErrorKind::PermissionDenied => {
                "may this user, or these credentials, read, write and delete there?"
            }
            StoreErrorKind::Unauthenticated => {
                "are the store's credentials set (for S3: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)?"
            }
            StoreErrorKind::TimedOut | StoreErrorKind::Transient => {
                "try again later: what was stored already is kept"
            }
            _ => return None,
        })
    }
}

/// The result of a call to the store.
pub type StoreResult<T> = std::result::Result<T, StoreError>;

/// An object in a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its path.
    pub path: String,
    /// Its size.
    pub size: u64,
    /// When it was last written, in seconds of Unix time.
    pub modified: u64,
}

/// A store's single calls.
///
/// A write is either complete or not visible. Once a write or deletion has returned, it survives a power cut, and the
/// next read or listing by anyone shows it.
pub trait Storage: Send + Sync {
    /// Writes an object, replacing an existing one.
    fn put(&self, path: &str, data: &[Bytes]) -> StoreResult<()>;
    /// Writes an object that doesn't exist yet; otherwise the error is `AlreadyExists`. Of several concurrent calls
    /// exactly one succeeds.
    fn put_if_absent(&self, path: &str, data: &Bytes) -> StoreResult<()>;
    /// Writes an object from the start of a file, as [`Storage::put`] does.
    fn put_file(&self, path: &str, file: &mut File, length: u64) -> StoreResult<()>;
    /// Reads an object.
    fn get(&self, path: &str) -> StoreResult<Bytes>;
    /// Reads an object of at most `most` bytes. For a larger one the error is `TooLarge`, and it isn't read: anything
    /// may be in the place of a small object.
    fn get_small(&self, path: &str, most: u64) -> StoreResult<Bytes>;
    /// Reads a range of an object; if the range goes beyond the object's end, the result is an error or shorter.
    fn get_range(&self, path: &str, range: Range<u64>) -> StoreResult<Bytes>;
    /// Passes all objects below a folder to `each`, in no order. `prefix` consists of whole segments.
    fn list(&self, prefix: &str, each: &mut dyn FnMut(Listed)) -> StoreResult<()>;
    /// Returns the names of the folders in a folder, in no order. If the store has real folders, empty ones are
    /// included. `prefix` consists of whole segments.
    fn folders(&self, prefix: &str) -> StoreResult<Vec<String>>;
    /// Deletes an object; it succeeds if the object doesn't exist.
    fn delete(&self, path: &str) -> StoreResult<()>;
    /// Returns an object's size.
    fn size(&self, path: &str) -> StoreResult<u64>;
    /// Passes all half-written files in or below a folder to `each`, whether their writers were killed or still run; no
    /// listing shows these files. `prefix` consists of whole segments. A store that can't have such files passes none.
    fn half_written(
        &self,
        _prefix: &str,
        _reach: Reach,
        _each: &mut dyn FnMut(Listed),
    ) -> StoreResult<()> {
        Ok(())
    }
    /// Deletes such a file, and nothing else.
    fn delete_half_written(&self, path: &str) -> StoreResult<()> {
        Err(StoreError::new("delete", path, StoreErrorKind::Unsupported))
    }
    /// Returns for how many seconds at most, after an object was written, the store lets nobody delete it for good.
    fn locked_seconds(&self, path: &str) -> u64;
    /// Locks an object until `until` (Unix time), so that nobody can delete it for good before. A longer lock stays.
    fn lock_until(&self, path: &str, _until: u64) -> StoreResult<()> {
        Err(StoreError::new(PROLONG, path, StoreErrorKind::Unsupported))
    }
}

/// In a folder, put-if-absent is link(2).
const NO_LINKS: &str = "has this file system hard links? objects that must not replace another are made with them, and CIFS, exFAT, FAT and many FUSE file systems have none: use ext4, XFS, ZFS or NFS, or an object store";

/// `object_store` lists nothing of a bucket in which it takes one object's name for wrong.
const ODD_NAME: &str = "the name isn't one of Lockstep's: another program has put that object there; remove it, or give it another name, with the store's own tools";

/// The verb for listing.
const LIST: &str = "list";

/// The verb for putting an object where there is none.
const CREATE: &str = "create";

/// The verb for prolonging a lock.
const PROLONG: &str = "prolong the lock of";

/// Whether an object is meant to be deleted or overwritten: leases end, and the notes of a collection change with each
/// run. These are never locked.
///
/// Only their place in the store's root or in a cluster's folder distinguishes them: clusters, images and deltas may
/// have any of these names, and everything that belongs to them is locked.
fn is_passing(path: &str) -> bool {
    let of_cluster = path.strip_prefix("clusters/").and_then(|rest| rest.split_once('/'));
    let inside = of_cluster.map_or(path, |(_, inside)| inside);
    inside.starts_with("leases/") || matches!(inside, "doomed.json" | "locks.json")
}

/// How often, and at what intervals, a call is tried again.
#[derive(Clone, Copy, Debug)]
pub struct Retries {
    /// The total number of tries.
    pub tries: u32,
    /// The pause before the second try; it doubles before each further one, and each is varied a little so that many
    /// callers that failed together don't retry together.
    pub first_pause: Duration,
}

/// The tries of a call that timed out each time, and of a first look.
const FEW_TRIES: u32 = 5;

impl Default for Retries {
    /// Nearly a minute in total, so that a server that is restarted or busy doesn't end a restore of hours.
    fn default() -> Retries {
        Retries { tries: 9, first_pause: Duration::from_millis(200) }
    }
}

/// Tells whether the program was asked to end. From then on, nothing waits.
#[derive(Clone)]
pub struct Ending(Arc<dyn Fn() -> bool + Send + Sync>);

impl Ending {
    /// Calls `is_over`, often.
    pub fn when(is_over: impl Fn() -> bool + Send + Sync + 'static) -> Ending {
        Ending(Arc::new(is_over))
    }

    fn is_over(&self) -> bool {
        (self.0)()
    }

    /// Sleeps until the pause is over or the program is asked to end; returns whether the program continues.
    fn sleep(&self, pause: Duration) -> bool {
        const LOOK: Duration = Duration::from_millis(50);
        let since = Instant::now();
        while !self.is_over() {
            match pause.checked_sub(since.elapsed()).filter(|left| !left.is_zero()) {
                Some(left) => std::thread::sleep(left.min(LOOK)),
                None => return true,
            }
        }
        false
    }
}

impl Default for Ending {
    /// The program is never asked to end.
    fn default() -> Ending {
        Ending::when(|| false)
    }
}

/// Returns between three and five quarters of a pause.
fn spread(pause: Duration) -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    pause * 3 / 4 + pause / 2 * (now.subsec_nanos() % 1000) / 1000
}

/// A store that retries its calls. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    storage: Arc<dyn Storage>,
    retries: Retries,
    ending: Ending,
    /// A call that changes something was given up without an answer. All clones know.
    in_doubt: Arc<AtomicBool>,
}

impl Store {
    /// Makes a store on `storage`.
    pub fn new(storage: impl Storage + 'static) -> Store {
        Store::with_retries(storage, Retries::default())
    }

    /// Does the same, with other retries.
    pub fn with_retries(storage: impl Storage + 'static, retries: Retries) -> Store {
        Store::shared(Arc::new(storage), retries)
    }

    /// Makes a store on a storage that others share.
    pub fn shared(storage: Arc<dyn Storage>, retries: Retries) -> Store {
        Store { storage, retries, ending: Ending::default(), in_doubt: Arc::default() }
    }

    /// Returns the same store, which doesn't retry a failed call once the program was asked to end.
    pub fn until(self, ending: Ending) -> Store {
        Store { ending, ..self }
    }

    /// Returns the same store with few retries, for a first look: if nobody answers, the caller shall know soon.
    pub fn impatient(&self) -> Store {
        let tries = self.retries.tries.min(FEW_TRIES);
        Store { retries: Retries { tries, ..self.retries }, ..self.clone() }
    }

    /// Whether a call that changes something was given up without an answer: it may still have its effect.
    pub fn is_in_doubt(&self) -> bool {
        self.in_doubt.load(Ordering::SeqCst)
    }

    /// Notes such a call.
    fn changing<T>(&self, result: StoreResult<T>) -> StoreResult<T> {
        if matches!(&result, Err(error) if error.kind == StoreErrorKind::TimedOut) {
            self.in_doubt.store(true, Ordering::SeqCst);
        }
        result
    }

    /// The same for a call that deletes or replaces: a lost connection counts too. A new object that comes late harms
    /// nobody.
    fn replacing<T>(&self, result: StoreResult<T>) -> StoreResult<T> {
        if matches!(&result, Err(error) if error.is_unanswered()) {
            self.in_doubt.store(true, Ordering::SeqCst);
        }
        result
    }

    fn tries_of(&self, kind: StoreErrorKind) -> u32 {
        match kind {
            StoreErrorKind::Transient => self.retries.tries,
            StoreErrorKind::TimedOut => self.retries.tries.min(FEW_TRIES),
            _ => 1,
        }
    }

    fn again<T>(&self, mut call: impl FnMut(u32) -> StoreResult<T>) -> StoreResult<T> {
        let mut pause = self.retries.first_pause;
        let mut tried = 0;
        loop {
            match call(tried) {
                Err(error) if tried + 1 < self.tries_of(error.kind) => {
                    if !self.ending.sleep(spread(pause)) {
                        return Err(StoreError { kind: StoreErrorKind::Ending, ..error });
                    }
                    pause = (pause * 2).min(Duration::from_secs(30));
                    tried += 1;
                }
                result => return result,
            }
        }
    }

    /// Makes a call that only a lease's holder may make: `still` is called before each try, because a minute may pass
    /// between two.
    fn held<T>(
        &self,
        path: &str,
        still: Still<'_>,
        mut call: impl FnMut() -> StoreResult<T>,
    ) -> crate::Result<T> {
        let mut lost = None;
        let result = self.again(|_| match still() {
            Ok(()) => call(),
            Err(error) => {
                lost = Some(error);
                Err(StoreError::new("write or delete", path, StoreErrorKind::Other))
            }
        });
        match lost {
            Some(error) => Err(error),
            None => Ok(result?),
        }
    }

    /// Writes an object, replacing an existing one.
    pub fn put(&self, path: &str, data: &[Bytes]) -> StoreResult<()> {
        self.again(|_| self.changing(self.storage.put(path, data)))
    }

    /// Does the same, and calls `still` before each try.
    pub fn put_if(&self, path: &str, data: &[Bytes], still: Still<'_>) -> crate::Result<()> {
        self.held(path, still, || self.replacing(self.storage.put(path, data)))
    }

    /// Writes an object that doesn't exist yet; otherwise the error is `AlreadyExists`.
    ///
    /// A try whose answer was lost may have written the object. So after such a try, an object with the same bytes
    /// counts as written by this call: callers whose objects could be equal by chance put something unique into them.
    pub fn put_if_absent(&self, path: &str, data: impl Into<Bytes>) -> StoreResult<()> {
        let data = data.into();
        let mut retried = false;
        let result = self.again(|tried| {
            retried = tried > 0;
            self.changing(self.storage.put_if_absent(path, &data))
        });
        match result {
            Err(error) if retried && error.kind == StoreErrorKind::AlreadyExists => {
                match self.get_small(path, data.len() as u64) {
                    Ok(there) if there == data => Ok(()),
                    Err(failed) if failed.kind != StoreErrorKind::TooLarge => Err(failed),
                    _ => Err(error),
                }
            }
            result => result,
        }
    }

    /// Writes an object from the start of a file.
    pub fn put_file(&self, path: &str, file: &mut File, length: u64) -> StoreResult<()> {
        self.again(|_| self.changing(self.storage.put_file(path, file, length)))
    }

    /// Reads an object.
    pub fn get(&self, path: &str) -> StoreResult<Bytes> {
        self.again(|_| self.storage.get(path))
    }

    /// Reads an object of at most `most` bytes; for a larger one the error is [`StoreErrorKind::TooLarge`], and it
    /// isn't read.
    pub fn get_small(&self, path: &str, most: u64) -> StoreResult<Bytes> {
        self.again(|_| self.storage.get_small(path, most))
    }

    /// Reads a range of an object.
    pub fn get_range(&self, path: &str, range: Range<u64>) -> StoreResult<Bytes> {
        self.again(|_| self.storage.get_range(path, range.clone()))
    }

    /// Passes all objects below a folder to `each`. If a try broke off, an object may come twice.
    pub fn list(&self, prefix: &str, mut each: impl FnMut(Listed)) -> StoreResult<()> {
        self.again(|_| self.storage.list(prefix, &mut each))
    }

    /// Returns the names of the folders in a folder, ascending, without listing what is below them.
    pub fn folders(&self, prefix: &str) -> StoreResult<Vec<String>> {
        let mut names = self.again(|_| self.storage.folders(prefix))?;
        names.sort();
        names.dedup();
        Ok(names)
    }

    /// Deletes an object; it succeeds if the object doesn't exist.
    pub fn delete(&self, path: &str) -> StoreResult<()> {
        self.again(|_| self.replacing(self.storage.delete(path)))
    }

    /// Does the same, and calls `still` before each try.
    pub fn delete_if(&self, path: &str, still: Still<'_>) -> crate::Result<()> {
        self.held(path, still, || self.replacing(self.storage.delete(path)))
    }

    /// Passes all half-written files in or below a folder to `each`, whether their writers were killed or still run. A
    /// file may come twice.
    pub fn half_written(
        &self,
        prefix: &str,
        reach: Reach,
        mut each: impl FnMut(Listed),
    ) -> StoreResult<()> {
        self.again(|_| self.storage.half_written(prefix, reach, &mut each))
    }

    /// Deletes such a file, and calls `still` before each try.
    pub fn delete_half_written_if(&self, path: &str, still: Still<'_>) -> crate::Result<()> {
        self.held(path, still, || self.changing(self.storage.delete_half_written(path)))
    }

    /// Returns for how many seconds at most, after an object was written, the store lets nobody delete it for good.
    pub fn locked_seconds(&self, path: &str) -> u64 {
        self.storage.locked_seconds(path)
    }

    /// Locks an object until `until` (Unix time), so that nobody can delete it for good before. A longer lock stays.
    pub fn lock_until(&self, path: &str, until: u64) -> StoreResult<()> {
        self.again(|_| self.storage.lock_until(path, until))
    }

    /// Returns an object's size.
    pub fn size(&self, path: &str) -> StoreResult<u64> {
        self.again(|_| self.storage.size(path))
    }
}

/// Reads the next part of a file that is being put.
fn read_part(file: &mut File, at: u64, length: u64) -> std::io::Result<Bytes> {
    let mut part = vec![0; usize::try_from(length).unwrap_or(usize::MAX)];
    file.seek(SeekFrom::Start(at))?;
    file.read_exact(&mut part)?;
    Ok(part.into())
}

#[cfg(test)]
mod tests {
    use super::is_passing;

    #[test]
    fn what_passes_is_told_by_its_place_and_not_by_its_name() {
        for passing in [
            "leases/probe/x",
            "clusters/main/leases/write/00000000000000000001",
            "clusters/main/doomed.json",
            "clusters/main/locks.json",
            "clusters/leases/leases/write/1",
            "clusters/locks.json/locks.json",
        ] {
            assert!(is_passing(passing), "{passing}");
        }
        for kept in [
            "lockstep.json",
            "keys/leases.json",
            "clusters/leases/packs/x",
            "clusters/leases/sets/x.json",
            "clusters/locks.json/sets/x.json",
            "clusters/doomed.json/volumes/tank/1.json",
            "clusters/main/volumes/leases/1.json",
            "clusters/main/volumes/doomed.json/1.json",
            "clusters/main/sets/locks.json",
            "clusters/main/volumes/tank/locks.json",
        ] {
            assert!(!is_passing(kept), "{kept}");
        }
    }
}
