//! A store in memory, for tests that let a program die at any call to it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use strata::store::{Listed, Storage, StoreError, StoreErrorKind, StoreResult};

/// A store in memory, which can be copied as it is.
#[derive(Clone, Default)]
pub(crate) struct Memory(Arc<Mutex<BTreeMap<String, Bytes>>>);

impl Memory {
    /// Returns another store with the same content.
    pub(crate) fn copy(&self) -> Memory {
        Memory(Arc::new(Mutex::new(self.0.lock().unwrap().clone())))
    }

    /// Returns the paths that contain `part`.
    pub(crate) fn paths(&self, part: &str) -> Vec<String> {
        let all = self.0.lock().unwrap();
        all.keys().filter(|path| path.contains(part)).cloned().collect()
    }
}

fn none<T>(path: &str) -> StoreResult<T> {
    Err(StoreError::new("get", path, StoreErrorKind::NotFound))
}

impl Storage for Memory {
    fn put(&self, path: &str, data: &[Bytes]) -> StoreResult<()> {
        self.0.lock().unwrap().insert(path.to_owned(), data.concat().into());
        Ok(())
    }

    fn put_if_absent(&self, path: &str, data: &Bytes) -> StoreResult<()> {
        let mut all = self.0.lock().unwrap();
        if all.contains_key(path) {
            return Err(StoreError::new("create", path, StoreErrorKind::AlreadyExists));
        }
        all.insert(path.to_owned(), data.clone());
        Ok(())
    }

    fn put_file(&self, path: &str, file: &mut File, length: u64) -> StoreResult<()> {
        let mut bytes = vec![0; usize::try_from(length).unwrap()];
        file.seek(SeekFrom::Start(0)).and_then(|_| file.read_exact(&mut bytes)).unwrap();
        self.put(path, &[bytes.into()])
    }

    fn get(&self, path: &str) -> StoreResult<Bytes> {
        self.0.lock().unwrap().get(path).cloned().map_or_else(|| none(path), Ok)
    }

    fn get_small(&self, path: &str, most: u64) -> StoreResult<Bytes> {
        match self.get(path)? {
            bytes if bytes.len() as u64 <= most => Ok(bytes),
            _ => Err(StoreError::new("get", path, StoreErrorKind::TooLarge)),
        }
    }

    fn get_range(&self, path: &str, range: Range<u64>) -> StoreResult<Bytes> {
        let all = self.get(path)?;
        let end = range.end.min(all.len() as u64);
        Ok(all.slice(usize::try_from(range.start.min(end)).unwrap()..usize::try_from(end).unwrap()))
    }

    fn list(&self, prefix: &str, each: &mut dyn FnMut(Listed)) -> StoreResult<()> {
        let below = format!("{prefix}/");
        for (path, bytes) in self.0.lock().unwrap().clone() {
            if path.starts_with(&below) {
                each(Listed { path, size: bytes.len() as u64, modified: 1 });
            }
        }
        Ok(())
    }

    fn folders(&self, prefix: &str) -> StoreResult<Vec<String>> {
        let (all, below) = (self.0.lock().unwrap(), format!("{prefix}/"));
        let inside = all.keys().filter_map(|path| path.strip_prefix(&below)?.split_once('/'));
        Ok(inside.map(|(folder, _)| folder.to_owned()).collect())
    }

    fn delete(&self, path: &str) -> StoreResult<()> {
        self.0.lock().unwrap().remove(path);
        Ok(())
    }

    fn size(&self, path: &str) -> StoreResult<u64> {
        self.get(path).map(|bytes| bytes.len() as u64)
    }

    fn locked_seconds(&self, _: &str) -> u64 {
        0
    }
}
