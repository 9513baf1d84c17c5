//! One lock a cluster, held by flock(2): it goes with its process, whatever ends that.
//!
//! The file's text says who holds it, for the message of exit code 11; it is never trusted for
//! more than that.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

use crate::error::{Error, Result};

/// A held lock; dropping it lets go.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// Why a lock wasn't had.
#[derive(Debug)]
pub enum LockError {
    /// Somebody holds it: the text they left.
    Held(String),
    /// The file couldn't be used.
    Failed(Error),
}

impl Lock {
    /// Takes the lock at `path` without waiting, as `command`.
    ///
    /// # Errors
    /// [`LockError::Held`] when it is taken.
    pub fn take(path: &Path, command: &str) -> Result<Self, LockError> {
        let mut file = open(path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            // Its last holder may have removed the file between our opening and locking it: then
            // the lock is on a file that nobody else will find.
            Ok(()) if !is_still_at(&file, path) => return Self::take(path, command),
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut holder = String::new();
                let _ = file.read_to_string(&mut holder);
                let holder = holder.trim();
                return Err(LockError::Held(if holder.is_empty() {
                    "a process that has only just begun".into()
                } else {
                    holder.to_owned()
                }));
            }
            Err(e) => return Err(LockError::Failed(Error::io("lock", path)(e.into()))),
        }
        let text = format!(
            "process {} (lockstep {command}) since {}\n",
            std::process::id(),
            jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ")
        );
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| file.write_all(text.as_bytes()))
            .map_err(|e| LockError::Failed(Error::io("write", path)(e)))?;
        Ok(Self { _file: file })
    }
}

fn open(path: &Path) -> Result<File, LockError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(|e| LockError::Failed(Error::io("open", path)(e)))
}

fn is_still_at(file: &File, path: &Path) -> bool {
    let identity = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino());
    match (file.metadata(), std::fs::metadata(path)) {
        (Ok(open), Ok(named)) => identity(open) == identity(named),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_caller_is_told_who_holds_it() {
        let path = std::env::temp_dir().join(format!("lockstep-lock-{}", std::process::id()));
        let first = Lock::take(&path, "backup").unwrap();
        match Lock::take(&path, "backup") {
            Err(LockError::Held(holder)) => {
                assert!(
                    holder.contains(&format!("process {} (lockstep backup)", std::process::id()))
                );
            }
            other => panic!("{other:?}"),
        }
        drop(first);
        assert!(Lock::take(&path, "backup").is_ok());
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_lock_on_a_removed_file_is_no_lock() {
        let path = std::env::temp_dir().join(format!("lockstep-unlinked-{}", std::process::id()));
        let file = open(&path).unwrap();
        assert!(is_still_at(&file, &path));
        std::fs::remove_file(&path).unwrap();
        assert!(!is_still_at(&file, &path));
        let other = open(&path).unwrap();
        assert!(!is_still_at(&file, &path) && is_still_at(&other, &path));
        std::fs::remove_file(path).unwrap();
    }
}
