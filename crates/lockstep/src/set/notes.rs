//! What this host knows of its sets in repositories: a note beside a set says that it is complete in one, a mark that it
//! was, and was pruned there.
//!
//! What could go wrong: a repository was away, and never had a set. It has neither a note nor a mark, which tells it from
//! one that was there and is gone. A note stays where another host pruned the set. And a repository was made anew under its
//! name: so both say of which they are, by the repository's own id. One of an older Lockstep, which says nothing, counts.
//! Or it has another name in the configuration by now: so by its id what was noted under the old one counts as well. But
//! what was made by copying a repository has its id too: what is noted under a name that the cluster still has for one is of
//! that one alone.

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
        || !of_other_names(cx, set, Kind::Shipped, id).is_empty()
}

/// Whether that is noted of what was shipped then: another host may have pruned it, and it was shipped anew.
#[must_use]
pub(crate) fn is_shipped_then(
    cx: &Context,
    set: &SetId,
    repository: &str,
    id: &str,
    then: jiff::Timestamp,
) -> bool {
    let noted = || Note::read(&shipped(cx, set, repository)).shipped_at;
    is_shipped(cx, set, repository, Some(id)) && noted().is_none_or(|at| at == then)
}

/// Whether it is marked to have been pruned there.
#[must_use]
pub(crate) fn is_pruned(cx: &Context, set: &SetId, repository: &str, id: Option<&str>) -> bool {
    is_there(&pruned(cx, set, repository), id)
        || !of_other_names(cx, set, Kind::Pruned, id).is_empty()
}

/// Whether the set is noted to be in a repository under a name that the cluster has no more: one that can't be asked for its
/// id may have had it.
#[must_use]
pub(crate) fn is_shipped_to_a_former_name(cx: &Context, set: &SetId) -> bool {
    let folder = cx.state.set_directory(set);
    !of_former_names(&folder, Kind::Shipped, &cx.cluster.repositories).is_empty()
}

/// The notes, or marks, of this repository from when it had another name.
fn of_other_names(cx: &Context, set: &SetId, kind: Kind, id: Option<&str>) -> Vec<PathBuf> {
    let Some(id) = id else { return Vec::new() };
    let all = of_former_names(&cx.state.set_directory(set), kind, &cx.cluster.repositories);
    all.into_iter().filter(|path| Note::read(path).repository.as_deref() == Some(id)).collect()
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Shipped,
    Pruned,
}

/// Those in a set's folder whose repositories are none of `names` (any more).
fn of_former_names(folder: &Path, kind: Kind, names: &[String]) -> Vec<PathBuf> {
    let is_one = |entry: &std::fs::DirEntry| {
        let file = entry.file_name();
        let name = file.to_str().and_then(|file| match kind {
            Kind::Shipped => file.strip_prefix("shipped.")?.strip_suffix(".json"),
            Kind::Pruned => file.strip_prefix("pruned."),
        });
        name.is_some_and(|name| !names.iter().any(|known| known == name))
    };
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter(is_one).map(|entry| entry.path()).collect()
}

/// Removes what was noted and marked of the repository when it had another name.
fn forget_other_names(cx: &Context, set: &SetId, id: &str) -> Result<()> {
    let all = [Kind::Shipped, Kind::Pruned].map(|kind| of_other_names(cx, set, kind, Some(id)));
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
    forget_other_names(cx, set, id)
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
    forget_other_names(cx, set, id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_under_names_that_are_there_no_more_are_told_from_others() {
        let scratch = tempfile::tempdir().unwrap();
        for name in ["shipped.near.json", "shipped.far.json", "pruned.near", "pruned.old.json"] {
            std::fs::write(scratch.path().join(name), "").unwrap();
        }
        let of = |kind, names: &[&str]| {
            let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
            let mut all = of_former_names(scratch.path(), kind, &names);
            all.sort();
            let name = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
            all.iter().map(name).collect::<Vec<_>>()
        };
        assert_eq!(of(Kind::Shipped, &[]), ["shipped.far.json", "shipped.near.json"]);
        assert_eq!(of(Kind::Shipped, &["near"]), ["shipped.far.json"]);
        assert_eq!(of(Kind::Pruned, &["near"]), ["pruned.old.json"]);
        assert!(of(Kind::Shipped, &["near", "far"]).is_empty());
        // A name may end as the note's does.
        assert!(of(Kind::Pruned, &["near", "old.json"]).is_empty());
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
