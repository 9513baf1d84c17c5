//! The calls, made through the `object_store` crate.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};
use tokio::runtime::{Builder, Runtime};

use super::half_written::{self, Reach};
use super::listing;
use super::translate::translated;
use super::upload::{Locking, Upload};
use super::{
    CREATE, LIST, Listed, PROLONG, Storage, StoreError, StoreErrorKind, StoreResult, is_passing,
    read_part,
};

/// A file up to this size is put in one call, a larger one in parts of this size.
const PART: u64 = 8 << 20;
/// How many objects of a folder are listed at a time.
const LISTED: usize = 256;

/// How long a call may take.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// The base time of any call, whatever it carries.
    pub call: Duration,
    /// The slowest transfer, in bytes per second, that doesn't count as stalled.
    pub least_rate: u64,
}

impl Default for Timeouts {
    fn default() -> Timeouts {
        Timeouts { call: Duration::from_secs(60), least_rate: 128 << 10 }
    }
}

impl Timeouts {
    fn of(&self, bytes: u64) -> Duration {
        self.call + Duration::from_secs(bytes / self.least_rate.max(1))
    }
}

/// A store of the `object_store` crate, below a prefix.
pub struct ObjectStorage {
    store: Arc<dyn ObjectStore>,
    prefix: String,
    /// The local folder, in which this type makes deletions durable.
    folder: Option<PathBuf>,
    /// What writes locked objects, if written objects may not be deleted for some time.
    locking: Option<Arc<dyn Locking>>,
    calls: Calls,
    timeouts: Timeouts,
}

/// Makes the calls. A call to a network file system may never return, even after its time limit. So whoever is done
/// doesn't wait for it: the program would otherwise never end, nor say why.
struct Calls(Option<Runtime>);

impl Drop for Calls {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

impl ObjectStorage {
    /// Opens a folder. If it doesn't exist, it is created for this process's user alone.
    ///
    /// Written files and their folders are fsynced. `object_store` doesn't do that for deletions, so it is done here:
    /// otherwise a power cut could bring back a manifest whose packs were deleted after it.
    pub fn folder(folder: &FilePath) -> StoreResult<ObjectStorage> {
        let shown = folder.display().to_string();
        let failed = |source: std::io::Error| StoreError {
            source: Some(Box::new(source)),
            ..StoreError::new(CREATE, &shown, StoreErrorKind::Other)
        };
        if !folder.is_dir() {
            // Everything below it is accessible to those who may enter it.
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(folder)
                .map_err(failed)?;
        }
        let folder = folder.canonicalize().map_err(failed)?;
        let local = LocalFileSystem::new_with_prefix(&folder)
            .map_err(|error| translated("open", &shown, error))?
            .with_fsync(true);
        let mut storage = ObjectStorage::on(Arc::new(local), "", Timeouts::default())?;
        storage.folder = Some(folder);
        Ok(storage)
    }

    /// Uses any store, with all paths below `prefix`.
    pub fn on(
        store: Arc<dyn ObjectStore>,
        prefix: &str,
        timeouts: Timeouts,
    ) -> StoreResult<ObjectStorage> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .thread_name("strata-store")
            .build()
            .map_err(|source| StoreError {
                source: Some(Box::new(source)),
                ..StoreError::new("start threads for", prefix, StoreErrorKind::Other)
            })?;
        let (prefix, calls) = (prefix.trim_matches('/').to_string(), Calls(Some(runtime)));
        Ok(ObjectStorage { store, prefix, folder: None, locking: None, calls, timeouts })
    }

    /// Locks what is written from now on, except for what is meant to be deleted or overwritten.
    #[cfg(feature = "aws")]
    pub(super) fn with_locking(mut self, locking: Arc<dyn Locking>) -> ObjectStorage {
        self.locking = Some(locking);
        self
    }

    /// Returns what locks this object, if it is locked.
    fn locking(&self, path: &str) -> Option<&Arc<dyn Locking>> {
        self.locking.as_ref().filter(|_| !is_passing(path))
    }

    /// Returns the client that writes an object.
    fn writer(&self, verb: &'static str, path: &str) -> StoreResult<Arc<dyn ObjectStore>> {
        match self.locking(path) {
            Some(locking) => locking.writer().map_err(|error| translated(verb, path, error)),
            None => Ok(self.store.clone()),
        }
    }

    fn path(&self, verb: &'static str, path: &str) -> StoreResult<Path> {
        let whole = if self.prefix.is_empty() {
            path.to_string()
        } else {
            format!("{}/{path}", self.prefix)
        };
        Path::parse(&whole).map_err(|error| translated(verb, path, error.into()))
    }

    /// Makes a call with its time limit.
    fn call<T>(
        &self,
        verb: &'static str,
        path: &str,
        bytes: u64,
        future: impl Future<Output = object_store::Result<T>>,
    ) -> StoreResult<T> {
        let limit = self.timeouts.of(bytes);
        let Some(runtime) = &self.calls.0 else {
            return Err(StoreError::new(verb, path, StoreErrorKind::Other));
        };
        match runtime.block_on(async { tokio::time::timeout(limit, future).await }) {
            Ok(result) => result.map_err(|error| translated(verb, path, error)),
            Err(_) => Err(StoreError {
                source: Some(format!("no answer within {limit:?}").into()),
                ..StoreError::new(verb, path, StoreErrorKind::TimedOut)
            }),
        }
    }

    /// Lists a local folder. Each part of the listing has a call's time limit.
    fn list_folder(
        &self,
        folder: &FilePath,
        prefix: &str,
        each: &mut dyn FnMut(Listed),
    ) -> StoreResult<()> {
        let Some(runtime) = &self.calls.0 else {
            return Err(StoreError::new(LIST, prefix, StoreErrorKind::Other));
        };
        let (send, parts) = sync_channel::<std::io::Result<Vec<Listed>>>(1);
        let (folder, below) = (folder.to_path_buf(), prefix.to_string());
        runtime.spawn_blocking(move || {
            let mut part = Vec::new();
            let listed = listing::list(&folder, &below, &mut |listed| {
                part.push(listed);
                // Once nobody waits for it any more, it ends.
                part.len() < LISTED || send.send(Ok(std::mem::take(&mut part))).is_ok()
            });
            if !part.is_empty() {
                let _ = send.send(Ok(part));
            }
            // An empty part is the end.
            let _ = send.send(listed.map(|()| Vec::new()));
        });
        loop {
            match parts.recv_timeout(self.timeouts.call) {
                Ok(Ok(part)) if part.is_empty() => return Ok(()),
                Ok(Ok(part)) => part.into_iter().for_each(&mut *each),
                Ok(Err(error)) => return Err(not_listed(prefix, error)),
                Err(RecvTimeoutError::Timeout) => {
                    let source = format!("no answer within {:?}", self.timeouts.call);
                    return Err(StoreError {
                        source: Some(source.into()),
                        ..StoreError::new(LIST, prefix, StoreErrorKind::TimedOut)
                    });
                }
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(StoreError::new(LIST, prefix, StoreErrorKind::Other));
                }
            }
        }
    }

    fn put_parts(&self, path: &str, file: &mut File, length: u64) -> StoreResult<()> {
        let target = self.path("put", path)?;
        let mut upload = match self.locking(path) {
            Some(locking) => self.call("put", path, 0, Upload::locked(locking.as_ref(), target))?,
            None => self.call("put", path, 0, Upload::plain(self.store.as_ref(), &target))?,
        };
        match self.fill(path, file, length, &mut upload) {
            Ok(()) => Ok(()),
            Err(error) => {
                // The uploaded parts are of no use; the first error is the one to report.
                let _ = self.call("abort", path, 0, upload.abort());
                Err(error)
            }
        }
    }

    fn fill(
        &self,
        path: &str,
        file: &mut File,
        length: u64,
        upload: &mut Upload,
    ) -> StoreResult<()> {
        let mut at = 0;
        while at < length {
            let size = PART.min(length - at);
            let part = read_part(file, at, size).map_err(|error| file_failed(path, error))?;
            self.call("put", path, size, upload.put(PutPayload::from(part)))?;
            at += size;
        }
        self.call("put", path, length, upload.complete())
    }
}

impl Storage for ObjectStorage {
    fn put(&self, path: &str, data: &[Bytes]) -> StoreResult<()> {
        let payload: PutPayload = data.iter().cloned().collect();
        let target = self.path("put", path)?;
        let size = payload.content_length() as u64;
        let writer = self.writer("put", path)?;
        self.call("put", path, size, writer.put(&target, payload)).map(|_| ())
    }

    fn put_if_absent(&self, path: &str, data: &Bytes) -> StoreResult<()> {
        let target = self.path(CREATE, path)?;
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        let payload = PutPayload::from(data.clone());
        let writer = self.writer(CREATE, path)?;
        let call = writer.put_opts(&target, payload, options);
        self.call(CREATE, path, data.len() as u64, call).map(|_| ())
    }

    fn put_file(&self, path: &str, file: &mut File, length: u64) -> StoreResult<()> {
        if length > PART {
            return self.put_parts(path, file, length);
        }
        let data = read_part(file, 0, length).map_err(|error| file_failed(path, error))?;
        self.put(path, &[data])
    }

    fn get(&self, path: &str) -> StoreResult<Bytes> {
        self.get_small(path, u64::MAX)
    }

    fn get_small(&self, path: &str, most: u64) -> StoreResult<Bytes> {
        let target = self.path("get", path)?;
        // The time limit depends on the size, which is known once the answer begins. A store that never answers is
        // given up soon.
        let answer = self.call("get", path, 0, self.store.get(&target))?;
        let size = answer.meta.size;
        if size > most {
            return Err(StoreError::new("get", path, StoreErrorKind::TooLarge));
        }
        self.call("get", path, size, answer.bytes())
    }

    fn get_range(&self, path: &str, range: Range<u64>) -> StoreResult<Bytes> {
        let target = self.path("get", path)?;
        let size = range.end.saturating_sub(range.start);
        self.call("get", path, size, self.store.get_range(&target, range))
    }

    fn list(&self, prefix: &str, each: &mut dyn FnMut(Listed)) -> StoreResult<()> {
        let target = self.path(LIST, prefix)?;
        if let Some(folder) = &self.folder {
            return self.list_folder(folder, prefix, each);
        }
        let cut = if self.prefix.is_empty() { 0 } else { self.prefix.len() + 1 };
        let mut stream = self.store.list(Some(&target));
        // Each page of the listing is a separate call.
        while let Some(meta) =
            self.call(LIST, prefix, 0, async { stream.next().await.transpose() })?
        {
            let path: &str = meta.location.as_ref();
            each(Listed {
                path: path.get(cut..).unwrap_or_default().to_string(),
                size: meta.size,
                modified: meta.last_modified.timestamp().try_into().unwrap_or(0),
            });
        }
        Ok(())
    }

    fn folders(&self, prefix: &str) -> StoreResult<Vec<String>> {
        let target = self.path(LIST, prefix)?;
        if let (Some(folder), Some(runtime)) = (&self.folder, &self.calls.0) {
            let (folder, below) = (folder.clone(), prefix.to_string());
            let found = runtime.spawn_blocking(move || listing::folders(&folder, &below));
            let found = self.call(LIST, prefix, 0, async { Ok(found.await?) })?;
            return found.map_err(|error| not_listed(prefix, error));
        }
        let listing = self.store.list_with_delimiter(Some(&target));
        let folders = self.call(LIST, prefix, 0, listing)?.common_prefixes;
        Ok(folders.iter().filter_map(|folder| folder.filename().map(str::to_string)).collect())
    }

    fn delete(&self, path: &str) -> StoreResult<()> {
        let target = self.path("delete", path)?;
        match self.call("delete", path, 0, self.store.delete(&target)) {
            Err(error) if error.kind == StoreErrorKind::NotFound => {}
            result => result?,
        }
        let Some(parent) = self
            .folder
            .as_ref()
            .and_then(|folder| folder.join(path).parent().map(FilePath::to_path_buf))
        else {
            return Ok(());
        };
        match File::open(parent).and_then(|parent| parent.sync_all()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(of_folder("delete", path, error))
            }
            _ => Ok(()),
        }
    }

    fn size(&self, path: &str) -> StoreResult<u64> {
        let target = self.path("look at", path)?;
        self.call("look at", path, 0, self.store.head(&target)).map(|meta| meta.size)
    }

    fn half_written(
        &self,
        prefix: &str,
        reach: Reach,
        each: &mut dyn FnMut(Listed),
    ) -> StoreResult<()> {
        let Some(folder) = &self.folder else { return Ok(()) };
        let listed = half_written::list(folder, prefix, reach, each);
        listed.map_err(|error| of_folder(LIST, prefix, error))
    }

    fn delete_half_written(&self, path: &str) -> StoreResult<()> {
        let Some(folder) = &self.folder else {
            return Err(StoreError::new("delete", path, StoreErrorKind::Unsupported));
        };
        half_written::remove(folder, path).map_err(|error| of_folder("delete", path, error))
    }

    fn locked_seconds(&self, path: &str) -> u64 {
        self.locking(path).map_or(0, |locking| locking.seconds())
    }

    fn lock_until(&self, path: &str, until: u64) -> StoreResult<()> {
        let Some(locking) = self.locking(path) else {
            return Err(StoreError::new(PROLONG, path, StoreErrorKind::Unsupported));
        };
        let target = self.path(PROLONG, path)?;
        self.call(PROLONG, path, 0, locking.prolong(&target, until))
    }
}

/// A folder that can't be listed: what the system says tells whether another try may help.
fn not_listed(prefix: &str, error: std::io::Error) -> StoreError {
    let (store, source) = ("LocalFileSystem", Box::new(error));
    translated(LIST, prefix, object_store::Error::Generic { store, source })
}

fn file_failed(path: &str, error: std::io::Error) -> StoreError {
    of_folder("read the temporary file of", path, error)
}

fn of_folder(verb: &'static str, path: &str, error: std::io::Error) -> StoreError {
    let source = Some(Box::new(error) as Box<_>);
    StoreError { source, ..StoreError::new(verb, path, StoreErrorKind::Other) }
}
