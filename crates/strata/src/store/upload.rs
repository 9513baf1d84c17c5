//! Uploads in parts, and objects that the store lets nobody delete for some time.
//!
//! A lock is set when an object's upload begins, and `object_store` can set it only by headers that a client sends with
//! every request. So a second client begins uploads, and the first one sends the parts, which must not carry a lock.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use object_store::{MultipartUpload, ObjectStore, ObjectStoreExt, PutPayload, Result};

/// Writes objects that nobody may delete for some time.
pub(super) trait Locking: Send + Sync {
    /// Returns for how long at most nobody may delete an object.
    fn seconds(&self) -> u64;
    /// Returns a client that locks what is written through it.
    fn writer(&self) -> Result<Arc<dyn ObjectStore>>;
    /// Returns the same for uploads in parts.
    fn beginner(&self) -> Result<Arc<dyn MultipartStore>>;
    /// Returns the client that sends parts.
    fn parts(&self) -> Arc<dyn MultipartStore>;
    /// Locks an existing object until `until` (Unix time), unless its lock lasts longer.
    fn prolong<'a>(&'a self, path: &'a Path, until: u64) -> BoxFuture<'a, Result<()>>;
}

/// An upload in progress.
pub(super) enum Upload {
    Plain(Box<dyn MultipartUpload>),
    Locked { store: Arc<dyn MultipartStore>, path: Path, id: String, parts: Vec<PartId> },
}

impl Upload {
    pub(super) async fn plain(store: &dyn ObjectStore, path: &Path) -> Result<Upload> {
        Ok(Upload::Plain(store.put_multipart(path).await?))
    }

    pub(super) async fn locked(locking: &dyn Locking, path: Path) -> Result<Upload> {
        let id = locking.beginner()?.create_multipart(&path).await?;
        Ok(Upload::Locked { store: locking.parts(), path, id, parts: Vec::new() })
    }

    /// Sends the next part.
    pub(super) async fn put(&mut self, data: PutPayload) -> Result<()> {
        match self {
            Upload::Plain(upload) => upload.put_part(data).await,
            Upload::Locked { store, path, id, parts } => {
                parts.push(store.put_part(path, id, parts.len(), data).await?);
                Ok(())
            }
        }
    }

    /// Completes the object from its parts.
    pub(super) async fn complete(&mut self) -> Result<()> {
        match self {
            Upload::Plain(upload) => upload.complete().await.map(|_| ()),
            Upload::Locked { store, path, id, parts } => {
                store.complete_multipart(path, id, std::mem::take(parts)).await.map(|_| ())
            }
        }
    }

    /// Discards the parts.
    pub(super) async fn abort(&mut self) -> Result<()> {
        match self {
            Upload::Plain(upload) => upload.abort().await,
            Upload::Locked { store, path, id, .. } => store.abort_multipart(path, id).await,
        }
    }
}
