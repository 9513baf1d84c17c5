//! The name of pg_control. No server starts without it; so until a restored cluster is complete (its volumes, links,
//! WAL, label and settings), pg_control has another name.
//!
//! What could go wrong: the restore is killed, the machine loses power or its disk is full, and somebody starts what
//! is there. With pg_control in place but without the label or recovery.signal, it would come up without an error and
//! be corrupt, or archive into the original's archive.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::files;
use crate::postgres::instance::PG_CONTROL;

/// Its name meanwhile, next to its own place.
pub(super) const UNDER_WAY: &str = "pg_control.lockstep";

/// Returns where it is meanwhile.
pub(super) fn held(data: &Path) -> PathBuf {
    data.join(PG_CONTROL).with_file_name(UNDER_WAY)
}

/// Takes the name away; returns whether it was there.
pub(super) fn hold(data: &Path) -> Result<bool> {
    rename(&data.join(PG_CONTROL), &held(data))
}

/// Gives the name back: the last step. A second call does nothing.
pub(super) fn release(data: &Path) -> Result<()> {
    rename(&held(data), &data.join(PG_CONTROL)).map(|_| ())
}

fn rename(from: &Path, to: &Path) -> Result<bool> {
    match std::fs::rename(from, to) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        other => other.map_err(Error::io("rename", from))?,
    }
    to.parent().map_or(Ok(()), files::sync_directory).map(|()| true)
}
