//! Checks that the next backup can be written: state_dir, and a repository in a folder.
//!
//! What could go wrong: a file system that is full, or was mounted read-only after an error, can still be read.
//! Everything that a check reads is right, and the next backup fails. So a small file is written and removed again.
//! Nothing is written to an object store for a check: each put costs, and what is locked there can't be removed.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::{Finding, failure, ok, warning, wrong};
use crate::config::Place;
use crate::context::{Context, lockstep};
use crate::error::{Error, Result};
use crate::files;
use crate::repository::Repository;
use crate::words::bytes;

/// About the size of a set's manifest.
const SMALL: [u8; 16 << 10] = [0; 16 << 10];
/// One segment of WAL. Less left is an error.
const LEAST: u64 = 16 << 20;
/// Less left is a warning.
const LITTLE: u64 = 8 * LEAST;

/// Checks that state_dir can be written to.
pub(super) fn state(cx: &Context) -> Finding {
    let (subject, folder) = ("state", cx.state.path(""));
    match look(&folder) {
        Err(error) => failure(subject, &error),
        Ok(left) => little(
            subject,
            &folder,
            left,
            "make room there: a set's own WAL lies in it, and page hashes of what is shipped",
        )
        .unwrap_or_else(|| {
            ok(subject, format!("state_dir can be written to, and has {} left", bytes(left)))
        }),
    }
}

/// Returns what is wrong with writing to a repository, if that can be determined.
pub(super) fn repository(opened: &Repository, subject: &str) -> Option<Finding> {
    let Ok(Place::Folder(folder)) = opened.config.place() else { return None };
    match look(&folder) {
        Err(error) => Some(failure(subject, &error)),
        Ok(left) => {
            let hint = format!("make room there: `{} prune`, or more disk", lockstep());
            little(subject, &folder, left, &hint)
        }
    }
}

/// Writes a small file into a folder and removes it; returns how many bytes are left there.
fn look(folder: &Path) -> Result<u64> {
    // Always the same name: what a killed check leaves, the next one removes.
    let path = folder.join(".lockstep-check");
    let _ = std::fs::remove_file(&path);
    let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
    match made {
        // Another check runs at the same time.
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
        made => {
            let written = write_out(&path, made);
            let removed = files::remove_file(&path);
            written.and(removed)?;
        }
    }
    let stat = rustix::fs::statvfs(folder)
        .map_err(|e| Error::io("look at the file system of", folder)(e.into()))?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

fn write_out(path: &Path, made: std::io::Result<File>) -> Result<()> {
    let mut file = made.map_err(Error::io("create", path))?;
    file.write_all(&SMALL).map_err(Error::io("write", path))?;
    file.sync_all().map_err(Error::io("sync", path))
}

/// Returns a finding about a folder with this much left.
fn little(subject: &str, folder: &Path, left: u64, hint: &str) -> Option<Finding> {
    let what = format!("\"{}\" has only {} left", folder.display(), bytes(left));
    match left {
        ..LEAST => Some(wrong(subject, what, hint)),
        LEAST..LITTLE => Some(warning(subject, what, hint)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Severity;

    #[test]
    fn a_folder_that_can_be_written_to_is_left_as_it_was() {
        let scratch = tempfile::tempdir().unwrap();
        assert!(look(scratch.path()).unwrap() > 0);
        assert!(files::is_empty_directory(scratch.path()).unwrap());
        std::fs::write(scratch.path().join(".lockstep-check"), "killed").unwrap();
        assert!(look(scratch.path()).unwrap() > 0);
        assert!(files::is_empty_directory(scratch.path()).unwrap());
        assert!(look(&scratch.path().join("no such folder")).is_err());
    }

    #[test]
    fn little_is_a_warning_and_less_than_a_segment_an_error() {
        let severity = |left| little("state", Path::new("/s"), left, "x").map(|f| f.severity);
        assert_eq!(severity(0), Some(Severity::Error));
        assert_eq!(severity(LEAST), Some(Severity::Warning));
        assert_eq!(severity(LITTLE), None);
    }
}
