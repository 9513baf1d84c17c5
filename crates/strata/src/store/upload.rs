//! An object put in parts, and objects that the store lets nobody delete for some time.
//!
//! Whether an object is locked is said where its upload begins; `object_store` can say so only with the headers that
//! a client of it sends with everything. So there is a second client that begins uploads, and the first one sends
//! the parts, which no lock belongs to.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use object_store::{MultipartUpload, ObjectStore, ObjectStoreExt, PutPayload, Result};

/// Writes objects that nobody may delete for some time.
pub(super) trait Locking: Send + Sync {
    /// Nobody may delete it for so long, at most.
    fn seconds(&self) -> u64;
    /// Whoever writes through it locks what is written.
    fn writer(&self) -> Result<Arc<dyn ObjectStore>>;
    /// The same, for uploads in parts.
    fn beginner(&self) -> Result<Arc<dyn MultipartStore>>;
    /// Sends parts.
    fn parts(&self) -> Arc<dyn MultipartStore>;
    /// Locks what is there until `until` (Unix time), unless it is locked for longer.
    fn prolong<'a>(&'a self, path: &'a Path, until: u64) -> BoxFuture<'a, Result<()>>;
}

/// An upload that has begun.
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

    /// Makes the parts an object.
    pub(super) async fn complete(&mut self) -> Result<()> {
        match self {
            Upload::Plain(upload) => upload.complete().await.map(|_| ()),
            Upload::Locked { store, path, id, parts } => {
                store.complete_multipart(path, id, std::mem::take(parts)).await.map(|_| ())
            }
        }
    }

    /// Lets the parts go.
    pub(super) async fn abort(&mut self) -> Result<()> {
        match self {
            Upload::Plain(upload) => upload.abort().await,
            Upload::Locked { store, path, id, .. } => store.abort_multipart(path, id).await,
        }
    }
}
