//! Where things are in a repository, and helpers that read them whole or by range.

use std::ops::Range;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::document::{self, Proof};
use crate::error::{Error, Result};
use crate::frame::Key;
use crate::id::{Ulid, check_name};
use crate::store::Store;

/// Small objects (descriptors, manifests, leases) that are larger than this are refused.
pub(crate) const MAX_DOCUMENT: u64 = 64 << 20;

/// A repository in a folder of a store. Cheap to clone.
#[derive(Clone)]
pub struct Repository {
    store: Store,
    folder: String,
    key: Option<Key>,
}

impl Repository {
    /// Makes the repository in `folder` (empty for the store's root). It doesn't look at what is there.
    pub fn new(store: Store, folder: &str, key: Option<Key>) -> Result<Repository> {
        let folder = folder.trim_matches('/');
        for segment in folder.split('/').filter(|_| !folder.is_empty()) {
            check_name("folder of a repository", segment)?;
        }
        let folder = if folder.is_empty() { String::new() } else { format!("{folder}/") };
        Ok(Repository { store, folder, key })
    }

    /// Returns the store that it is in.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Returns the data key, if frames are sealed.
    pub fn key(&self) -> Option<&Key> {
        self.key.as_ref()
    }

    /// Returns the path of anything in it.
    pub fn path(&self, rest: &str) -> String {
        format!("{}{rest}", self.folder)
    }

    /// Returns the path of a pack.
    pub fn pack_path(&self, pack: Ulid) -> String {
        self.path(&format!("packs/{pack}"))
    }

    /// Returns the path of an image's folder, or of something in it.
    pub fn image_path(&self, image: &str, rest: &str) -> String {
        self.path(&format!("volumes/{image}/{rest}"))
    }

    /// Returns the part of a path that is below the repository's folder.
    pub(crate) fn relative<'a>(&self, path: &'a str) -> &'a str {
        path.strip_prefix(&self.folder).unwrap_or(path)
    }

    /// Reads a range; if the object ends before the range does, that is damage.
    pub(crate) fn read(&self, path: &str, range: Range<u64>) -> Result<Bytes> {
        let wanted = range.end.saturating_sub(range.start);
        if wanted == 0 {
            return Ok(Bytes::new());
        }
        let short = |size: u64| {
            let why = format!("it ends at byte {size}, {} are needed", range.end);
            Error::damaged(path, size.min(range.start), why)
        };
        match self.store.get_range(path, range.clone()) {
            Ok(bytes) if bytes.len() as u64 == wanted => Ok(bytes),
            Ok(bytes) => Err(short(range.start + bytes.len() as u64)),
            Err(error) if error.kind == crate::store::StoreErrorKind::NotFound => Err(error.into()),
            // Stores report in many ways that a range goes beyond the end.
            Err(error) => match self.store.size(path) {
                Ok(size) if size < range.end => Err(short(size)),
                _ => Err(error.into()),
            },
        }
    }

    /// Returns how manifests and descriptors are proven to be as written: by the key, if there is one.
    fn proof<'a>(&'a self, path: &'a str) -> Proof<'a> {
        match &self.key {
            Some(key) => Proof::Key(key, self.relative(path)),
            None => Proof::Hash,
        }
    }

    /// Returns the bytes of a manifest or descriptor. One that nobody could read again isn't written.
    pub(crate) fn write_proven(&self, path: &str, body: &impl Serialize) -> Result<Vec<u8>> {
        let bytes = document::write_with(path, body, self.proof(path))?;
        if bytes.len() as u64 > MAX_DOCUMENT {
            let why = format!("it has {} bytes, and may have {MAX_DOCUMENT}", bytes.len());
            return Err(Error::TooLarge { object: path.to_string(), why });
        }
        Ok(bytes)
    }

    /// Reads a manifest or descriptor.
    pub(crate) fn read_proven<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        document::read_with(path, &self.read_document(path)?, self.proof(path))
    }

    /// Reads a small object whole.
    pub(crate) fn read_document(&self, path: &str) -> Result<Bytes> {
        self.store.get_small(path, MAX_DOCUMENT).map_err(|error| match error.kind {
            crate::store::StoreErrorKind::TooLarge => {
                Error::damaged(path, MAX_DOCUMENT, "it is larger than any valid one")
            }
            _ => error.into(),
        })
    }
}
