//! The name of pg_control. No server starts without it; so until a restored cluster is complete (its volumes, links,
//! WAL, label and settings), pg_control has another name. Where Lockstep recovers it in a mount namespace, it keeps
//! that name until recovery has ended: in the namespace it is shown at its place, where there is only an empty file
//! for everybody else.
//!
//! What could go wrong: the restore is killed, the machine loses power or its disk is full, and somebody starts what
//! is there. With pg_control in place but without the label or recovery.signal, it would come up without an error and
//! be corrupt, or archive into the original's archive; and what recovery replayed in the namespace has links to the
//! original's tablespaces.

use std::path::{Path, PathBuf};

use pgfiles::control_file::ControlFile;

use crate::error::{Error, Result};
use crate::files;
use crate::isolation::Bind;
use crate::postgres::instance::{self, PG_CONTROL};
use crate::process::Credentials;

/// Its name meanwhile, next to its own place.
pub(crate) const UNDER_WAY: &str = "pg_control.lockstep";

/// Returns where it is meanwhile.
pub(super) fn held(data: &Path) -> PathBuf {
    data.join(PG_CONTROL).with_file_name(UNDER_WAY)
}

/// Whether it is in its place: a server starts there.
pub(crate) fn is_in_place(data: &Path) -> bool {
    data.join(PG_CONTROL).metadata().is_ok_and(|found| found.len() > 0)
}

/// Whether a restore took its name away and hasn't given it back: it runs, or is unfinished.
pub(crate) fn is_held(data: &Path) -> bool {
    !is_in_place(data) && held(data).exists()
}

/// Reads it, whatever its name is now.
///
/// # Errors
/// As [`instance::read_control`].
pub(super) fn read(data: &Path) -> Result<ControlFile> {
    let held = held(data);
    match is_in_place(data) || !held.exists() {
        true => instance::read_control(data),
        false => instance::read_control_at(&held),
    }
}

/// Takes the name away; returns whether it was there.
pub(super) fn hold(data: &Path) -> Result<bool> {
    let (place, held) = (data.join(PG_CONTROL), held(data));
    if !is_in_place(data) && held.exists() {
        return files::remove_file(&place).map(|()| false);
    }
    rename(&place, &held)
}

/// Puts an empty file in its place and returns what a mount namespace has to show there. A server outside ends at
/// once with `read 0 of 296` (ReadControlFile in xlog.c).
pub(super) fn keep_place(data: &Path, owner: Option<Credentials>) -> Result<Bind> {
    hold(data)?;
    let at = data.join(PG_CONTROL);
    files::write_owned(&at, b"", owner)?;
    Ok(Bind { from: held(data), at })
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
