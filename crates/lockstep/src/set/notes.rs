//! What this host knows of its sets in repositories: a note beside a set says that it is complete in one, a mark that it
//! was, and was pruned there.
//!
//! What could go wrong: a repository was away, and never had a set. It has neither a note nor a mark, which tells it from
//! one that was there and is gone. A note stays where another host pruned the set.

use std::path::PathBuf;

use crate::context::Context;
use crate::error::{Error, Result};
use crate::files;
use crate::names::SetId;

/// The note that the set is complete in the repository.
#[must_use]
pub(crate) fn shipped(cx: &Context, set: &SetId, repository: &str) -> PathBuf {
    cx.state.set_directory(set).join(format!("shipped.{repository}.json"))
}

/// The mark that it was there.
#[must_use]
pub(crate) fn pruned(cx: &Context, set: &SetId, repository: &str) -> PathBuf {
    cx.state.set_directory(set).join(format!("pruned.{repository}"))
}

/// Notes that the set is in the repository, whatever was before.
///
/// # Errors
/// When that can't be written.
pub(crate) fn note_shipped(cx: &Context, set: &SetId, repository: &str, text: &str) -> Result<()> {
    files::publish(&shipped(cx, set, repository), text.as_bytes())?;
    files::remove_file(&pruned(cx, set, repository))
}

/// Makes the note a mark: the set is about to be removed there. Of a set that isn't on this host there is neither.
///
/// # Errors
/// When that can't be written.
pub(crate) fn mark_pruned(cx: &Context, set: &SetId, repository: &str) -> Result<()> {
    if !cx.state.is_complete(set.as_str()) {
        return files::remove_file(&shipped(cx, set, repository));
    }
    let (note, mark) = (shipped(cx, set, repository), pruned(cx, set, repository));
    match std::fs::rename(&note, &mark) {
        // It came there, and that couldn't be noted.
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => files::publish(&mark, b""),
        renamed => {
            renamed.map_err(Error::io("rename", &note))?;
            files::sync_directory(&cx.state.set_directory(set))
        }
    }
}
