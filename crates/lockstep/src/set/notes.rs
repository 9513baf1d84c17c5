//! What this host knows of its sets in repositories: a note beside a set says that it is complete in one, a mark that it
//! was, and was pruned there.
//!
//! What could go wrong: a repository was away, and never had a set. It has neither a note nor a mark, which tells it from
//! one that was there and is gone. A note stays where another host pruned the set. And a repository was made anew under its
//! name: so both say of which they are, by the repository's own id. One of an older Lockstep, which says nothing, counts.
//! Or it has another name in the configuration by now: so by its id what was noted under the old one counts as well.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::manifest::json;
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

/// What a note says, and a mark where that is known. A note that can't be read is one all the same.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Note {
    /// Since when the set is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) shipped_at: Option<jiff::Timestamp>,
    /// The repository's own id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) repository: Option<String>,
}

impl Note {
    pub(crate) fn read(path: &Path) -> Self {
        let bytes = std::fs::read(path).unwrap_or_default();
        serde_json::from_slice(&bytes).unwrap_or_default()
    }

    fn write(&self, path: &Path) -> Result<()> {
        let mut bytes = serde_json::to_vec(self).map_err(json("write a note"))?;
        bytes.push(b'\n');
        files::publish(path, &bytes)
    }

    /// Whether it is of the repository of this id; where the repository can't be asked, whichever it is.
    fn is_of(&self, id: Option<&str>) -> bool {
        let of = self.repository.as_deref();
        of.is_none() || id.is_none() || of == id
    }
}

/// Whether the set is noted to be in the repository, which has this id.
#[must_use]
pub(crate) fn is_shipped(cx: &Context, set: &SetId, repository: &str, id: Option<&str>) -> bool {
    is_there(&shipped(cx, set, repository), id)
        || !of_other_names(cx, set, "shipped.", repository, id).is_empty()
}

/// Whether it is marked to have been pruned there.
#[must_use]
pub(crate) fn is_pruned(cx: &Context, set: &SetId, repository: &str, id: Option<&str>) -> bool {
    is_there(&pruned(cx, set, repository), id)
        || !of_other_names(cx, set, "pruned.", repository, id).is_empty()
}

/// The notes, or marks, of this repository from when it had another name.
fn of_other_names(
    cx: &Context,
    set: &SetId,
    kind: &str,
    repository: &str,
    id: Option<&str>,
) -> Vec<PathBuf> {
    let Some(id) = id else { return Vec::new() };
    let now = [shipped(cx, set, repository), pruned(cx, set, repository)];
    of_id(&cx.state.set_directory(set), kind, id)
        .into_iter()
        .filter(|path| !now.contains(path))
        .collect()
}

/// Those in a set's folder that are of the repository of this id.
fn of_id(folder: &Path, kind: &str, id: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let is_of_kind =
        |name: &std::ffi::OsStr| name.to_str().is_some_and(|name| name.starts_with(kind));
    let all = entries.filter(|entry| is_of_kind(&entry.file_name())).map(|entry| entry.path());
    all.filter(|path| Note::read(path).repository.as_deref() == Some(id)).collect()
}

/// Removes what was noted and marked of the repository when it had another name.
fn forget_other_names(cx: &Context, set: &SetId, repository: &str, id: &str) -> Result<()> {
    let all =
        ["shipped.", "pruned."].map(|kind| of_other_names(cx, set, kind, repository, Some(id)));
    all.iter().flatten().try_for_each(|path| files::remove_file(path))
}

fn is_there(path: &Path, id: Option<&str>) -> bool {
    path.exists() && Note::read(path).is_of(id)
}

/// Notes that the set is in the repository, whatever was before.
///
/// # Errors
/// When that can't be written.
pub(crate) fn note_shipped(
    cx: &Context,
    set: &SetId,
    repository: &str,
    id: &str,
    shipped_at: jiff::Timestamp,
) -> Result<()> {
    let note = Note { shipped_at: Some(shipped_at), repository: Some(id.to_owned()) };
    note.write(&shipped(cx, set, repository))?;
    files::remove_file(&pruned(cx, set, repository))?;
    forget_other_names(cx, set, repository, id)
}

/// Makes the note a mark: the set is about to be removed there. Of a set that isn't on this host there is neither.
///
/// # Errors
/// When that can't be written.
pub(crate) fn mark_pruned(cx: &Context, set: &SetId, repository: &str, id: &str) -> Result<()> {
    let (note, mark) = (shipped(cx, set, repository), pruned(cx, set, repository));
    if !cx.state.is_complete(set.as_str()) {
        files::remove_file(&note)?;
    } else if is_there(&note, Some(id)) {
        std::fs::rename(&note, &mark).map_err(Error::io("rename", &note))?;
        files::sync_directory(&cx.state.set_directory(set))?;
    } else {
        // It came there, and that couldn't be noted; what is noted is of another.
        Note { repository: Some(id.to_owned()), shipped_at: None }.write(&mark)?;
        files::remove_file(&note)?;
    }
    forget_other_names(cx, set, repository, id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_counts_under_whatever_name_its_repository_had() {
        let scratch = tempfile::tempdir().unwrap();
        let note = |name: &str, id: &str| {
            let note = Note { shipped_at: None, repository: Some(id.into()) };
            note.write(&scratch.path().join(name)).unwrap();
        };
        note("shipped.near.json", "a");
        note("shipped.far.json", "b");
        note("pruned.near", "b");
        std::fs::write(scratch.path().join("shipped.old.json"), "").unwrap();
        let of = |kind, id| of_id(scratch.path(), kind, id);
        assert_eq!(of("shipped.", "a"), [scratch.path().join("shipped.near.json")]);
        assert_eq!(of("pruned.", "b"), [scratch.path().join("pruned.near")]);
        assert!(of("pruned.", "a").is_empty() && of("shipped.", "c").is_empty());
    }

    #[test]
    fn a_note_of_another_repository_of_the_same_name_is_none() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("shipped.offsite.json");
        let is = |id| is_there(&path, id);
        assert!(!is(None) && !is(Some("a")), "there is none");
        let note = Note { shipped_at: None, repository: Some("a".into()) };
        note.write(&path).unwrap();
        assert_eq!(Note::read(&path), note);
        assert_eq!([is(Some("a")), is(Some("b")), is(None)], [true, false, true]);
        // Those of an older Lockstep, and what can't be read.
        for text in ["{\"shipped_at\":\"2026-11-21T01:00:00Z\"}\n", "", "\u{0}"] {
            std::fs::write(&path, text).unwrap();
            assert!(is(Some("b")), "{text:?}");
        }
    }
}
