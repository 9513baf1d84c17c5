//! What this host knows about its sets in repositories. A note beside a set says that it is complete in a repository;
//! a mark says that it was, and was pruned there.
//!
//! What could go wrong: a repository wasn't reachable, and never had a set. Then there is neither a note nor a mark,
//! which distinguishes it from a set that was there and is gone. A note stays when another host prunes the set. Or a
//! repository was created again under its name: so notes and marks carry the repository's own id. Those of an older
//! Lockstep carry none, and count. Or it has another name in the configuration by now: so what was noted under the
//! old name counts too, if the id is the same. But a copy of a repository has the same id: what is noted under a name
//! that the cluster still uses belongs to the repository of that name only.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::manifest::{Manifest, json};
use super::state::State;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::files;
use crate::names::SetId;
use crate::volume::zfs::Guid;

/// What is recorded about a set in a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The note that it is complete there.
    Shipped,
    /// The mark that it was there.
    Pruned,
}

impl Kind {
    fn file_name(self, repository: &str) -> String {
        match self {
            Self::Shipped => format!("shipped.{repository}.json"),
            Self::Pruned => format!("pruned.{repository}"),
        }
    }

    /// Returns the repository that a file with this name is for; `None` if it is another file, or was never finished.
    fn repository_of(self, file_name: &str) -> Option<&str> {
        if files::is_temporary(file_name) {
            return None;
        }
        match self {
            Self::Shipped => file_name.strip_prefix("shipped.")?.strip_suffix(".json"),
            Self::Pruned => file_name.strip_prefix("pruned."),
        }
    }

    fn path(self, cx: &Context, set: &SetId, repository: &str) -> PathBuf {
        cx.state.set_directory(set).join(self.file_name(repository))
    }
}

/// The content of a note, and of a mark as far as known. An unreadable note still counts as one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Note {
    /// Since when the set has been there.
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

    /// Whether it is for the repository with this id; always, if the repository's id isn't available.
    fn is_of(&self, id: Option<&str>) -> bool {
        let of = self.repository.as_deref();
        of.is_none() || id.is_none() || of == id
    }
}

/// The note of the pools that a set is in.
const POOLS: &str = "pools.json";

/// Notes the GUIDs of the pools that a set is in, by their names: what `zpool split` makes of one has another. Nothing
/// else depends on it.
pub(crate) fn note_pools(cx: &Context, manifest: &Manifest) {
    let set = &manifest.set;
    let pools = manifest.volumes.iter().map(|volume| volume.pool.as_str());
    let guids: BTreeMap<_, _> =
        pools.filter_map(|pool| Some((pool, cx.zfs.pool_guid(pool)?))).collect();
    let noted = (|| {
        let bytes = serde_json::to_vec(&guids).map_err(json("write a note"))?;
        files::publish(&cx.state.set_directory(set).join(POOLS), &bytes)
    })();
    if let Err(error) = noted {
        tracing::debug!(%set, error = %error.chain(), "its pools aren't noted");
    }
}

/// Returns the GUID of a pool of the set, when the set was taken; `None` if that wasn't noted.
pub(crate) fn pool_guid(cx: &Context, set: &SetId, pool: &str) -> Option<Guid> {
    let bytes = std::fs::read(cx.state.set_directory(set).join(POOLS)).ok()?;
    serde_json::from_slice::<BTreeMap<String, Guid>>(&bytes).ok()?.remove(pool)
}

/// Whether there is a note that the set is in the repository, which has this id.
#[must_use]
pub(crate) fn is_shipped(cx: &Context, set: &SetId, repository: &str, id: Option<&str>) -> bool {
    is_there(&Kind::Shipped.path(cx, set, repository), id)
        || !of_other_names(cx, set, Kind::Shipped, id).is_empty()
}

/// Whether there is a mark that it was pruned there.
#[must_use]
pub(crate) fn is_pruned(cx: &Context, set: &SetId, repository: &str, id: Option<&str>) -> bool {
    is_there(&Kind::Pruned.path(cx, set, repository), id)
        || !of_other_names(cx, set, Kind::Pruned, id).is_empty()
}

/// Whether there is a note that the set is in a repository under a name that the cluster no longer uses: a repository
/// whose id can't be determined may have had that name.
#[must_use]
pub(crate) fn is_shipped_to_a_former_name(cx: &Context, set: &SetId) -> bool {
    let folder = cx.state.set_directory(set);
    !of_former_names(&folder, Kind::Shipped, &cx.cluster.repositories).is_empty()
}

/// Returns the notes, or marks, of this repository from when it had another name.
fn of_other_names(cx: &Context, set: &SetId, kind: Kind, id: Option<&str>) -> Vec<PathBuf> {
    let Some(id) = id else { return Vec::new() };
    let all = of_former_names(&cx.state.set_directory(set), kind, &cx.cluster.repositories);
    let of_id = all.into_iter().filter(|(_, note)| note.repository.as_deref() == Some(id));
    of_id.map(|(path, _)| path).collect()
}

/// Returns those in a set's folder whose repositories aren't (or are no longer) among `names`.
fn of_former_names(folder: &Path, kind: Kind, names: &[String]) -> Vec<(PathBuf, Note)> {
    let mut all = all_of(folder, kind);
    all.retain(|(repository, _)| !names.contains(repository));
    let path =
        |(repository, note): (String, Note)| (folder.join(kind.file_name(&repository)), note);
    all.into_iter().map(path).collect()
}

/// Returns those in a set's folder, by the names that their repositories had.
fn all_of(folder: &Path, kind: Kind) -> Vec<(String, Note)> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let of_kind = entries.filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        Some((kind.repository_of(&name)?.to_owned(), Note::read(&entry.path())))
    });
    of_kind.collect()
}

/// A repository that has a set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct InRepository {
    /// Its name.
    pub(crate) repository: String,
    /// Since when; `None` if its note can't be read.
    pub(crate) shipped_at: Option<jiff::Timestamp>,
    /// The repository's own id, if the note has it.
    #[serde(skip)]
    pub(crate) id: Option<String>,
}

/// Returns the repositories that have a set, as far as this host knows, and since when.
#[must_use]
pub(crate) fn shipped_to(state: &State, set: &SetId) -> Vec<InRepository> {
    let notes = all_of(&state.set_directory(set), Kind::Shipped).into_iter();
    let known = notes.map(|(repository, note)| {
        let Note { shipped_at, repository: id } = note;
        InRepository { repository, shipped_at, id }
    });
    let mut all: Vec<_> = known.collect();
    all.sort_by(|a, b| a.repository.cmp(&b.repository));
    all
}

/// Does the same for people: leaves out notes about a repository that was since created again under its name, and
/// about one that the configuration no longer has. The newest note of any set tells a repository's present id, and so
/// its present name.
///
/// # Errors
/// When the sets can't be listed.
pub(crate) fn known_in(state: &State, sets: &[&SetId]) -> Result<Vec<Vec<InRepository>>> {
    let mut ids: BTreeMap<String, (Option<jiff::Timestamp>, String)> = BTreeMap::new();
    for known in state.complete()?.iter().flat_map(|set| shipped_to(state, set)) {
        let Some(id) = known.id else { continue };
        let newest = ids.entry(known.repository).or_default();
        *newest = (*newest).clone().max((known.shipped_at, id));
    }
    let is_now = |known: &InRepository| {
        let now = ids.get(&known.repository).map(|(_, id)| id);
        known.id.is_none() || known.id.as_ref() == now
    };
    let renamed = |known: InRepository| {
        if state.repositories.contains(&known.repository) {
            return Some(known);
        }
        let has_it = |name: &&String| ids.get(*name).map(|(_, id)| id) == known.id.as_ref();
        let now = state.repositories.iter().find(has_it).filter(|_| known.id.is_some())?;
        Some(InRepository { repository: now.clone(), ..known })
    };
    let of = |set: &&SetId| -> Vec<_> {
        let known = shipped_to(state, set).into_iter().filter(is_now);
        let mut known: Vec<_> = known.filter_map(renamed).collect();
        known.sort_by(|a, b| a.repository.cmp(&b.repository));
        known.dedup_by(|a, b| a.repository == b.repository);
        known
    };
    Ok(sets.iter().map(of).collect())
}

/// Removes notes and marks about the repository from when it had another name.
fn forget_other_names(cx: &Context, set: &SetId, id: &str) -> Result<()> {
    let all = [Kind::Shipped, Kind::Pruned].map(|kind| of_other_names(cx, set, kind, Some(id)));
    all.iter().flatten().try_for_each(|path| files::remove_file(path))
}

fn is_there(path: &Path, id: Option<&str>) -> bool {
    path.exists() && Note::read(path).is_of(id)
}

/// Notes that the set is in the repository, whatever was recorded before.
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
    note.write(&Kind::Shipped.path(cx, set, repository))?;
    files::remove_file(&Kind::Pruned.path(cx, set, repository))?;
    forget_other_names(cx, set, id)
}

/// Returns the note that the set is in the repository, which has this id.
pub(crate) fn shipped(cx: &Context, set: &SetId, repository: &str, id: &str) -> Option<Note> {
    let own = Kind::Shipped.path(cx, set, repository);
    let of_other_names = || of_other_names(cx, set, Kind::Shipped, Some(id)).into_iter().next();
    let path = Some(own).filter(|own| is_there(own, Some(id))).or_else(of_other_names)?;
    Some(Note::read(&path))
}

/// Removes the note: the set was there, and isn't any more.
///
/// # Errors
/// When that can't be done.
pub(crate) fn forget_shipped(cx: &Context, set: &SetId, repository: &str, id: &str) -> Result<()> {
    let own = Kind::Shipped.path(cx, set, repository);
    let own = Some(own).filter(|own| is_there(own, Some(id)));
    let all = own.into_iter().chain(of_other_names(cx, set, Kind::Shipped, Some(id)));
    all.into_iter().try_for_each(|path| files::remove_file(&path))
}

/// Turns the note into a mark: the set is about to be removed there. A set that isn't on this host has neither.
///
/// # Errors
/// When that can't be written.
pub(crate) fn mark_pruned(cx: &Context, set: &SetId, repository: &str, id: &str) -> Result<()> {
    let [note, mark] = [Kind::Shipped, Kind::Pruned].map(|kind| kind.path(cx, set, repository));
    if !cx.state.is_complete(set.as_str()) {
        files::remove_file(&note)?;
    } else if is_there(&note, Some(id)) {
        std::fs::rename(&note, &mark).map_err(Error::io("rename", &note))?;
        files::sync_directory(&cx.state.set_directory(set))?;
    } else {
        // It got there, but that couldn't be noted; an existing note is about another repository.
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
            all.sort_by(|a, b| a.0.cmp(&b.0));
            let name = |(path, _): &(PathBuf, Note)| {
                path.file_name().unwrap().to_str().unwrap().to_owned()
            };
            all.iter().map(name).collect::<Vec<_>>()
        };
        assert_eq!(of(Kind::Shipped, &[]), ["shipped.far.json", "shipped.near.json"]);
        assert_eq!(of(Kind::Shipped, &["near"]), ["shipped.far.json"]);
        assert_eq!(of(Kind::Pruned, &["near"]), ["pruned.old.json"]);
        assert!(of(Kind::Shipped, &["near", "far"]).is_empty());
        // A name may end like the note's.
        assert!(of(Kind::Pruned, &["near", "old.json"]).is_empty());
    }

    #[test]
    fn what_was_never_finished_is_no_note() {
        for kind in [Kind::Shipped, Kind::Pruned] {
            let name = kind.file_name("off.site");
            assert_eq!(kind.repository_of(&name), Some("off.site"));
            assert_eq!(kind.repository_of(&format!("{name}.4711.tmp")), None);
        }
        assert_eq!(Kind::Shipped.repository_of("pruned.near"), None);
        assert_eq!(Kind::Pruned.repository_of("shipped.near.json"), None);
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
        // Those of an older Lockstep, and unreadable ones.
        for text in ["{\"shipped_at\":\"2026-11-21T01:00:00Z\"}\n", "", "\u{0}"] {
            std::fs::write(&path, text).unwrap();
            assert!(is(Some("b")), "{text:?}");
        }
    }
}
