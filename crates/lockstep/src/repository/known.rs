//! Remembers, by its id, which repository this host knows under a name.
//!
//! What could go wrong: a repository's disk isn't mounted, and its folder is one on the disk below; or the URL leads
//! to another bucket. A new repository created there would look just like the one that can't be reached. So the id is
//! written down once the repository was opened, and anyone who means another one has to name it.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use strata::store::Store;

use super::{Format, format, init, seen};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::files;
use crate::refusal::Refusal;
use crate::set::manifest::json;

/// The form of the note; a note in any other form is ignored.
const VERSION: u32 = 1;
/// Its folder in the cluster's state.
pub(crate) const FOLDER: &str = "known";

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Note {
    version: u32,
    /// The repository's own id.
    repository: String,
}

/// A repository that this host has seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// Its id.
    pub id: String,
    /// Its newest set, as far as this host has seen.
    pub newest: Option<String>,
}

impl Known {
    /// The error that this isn't what is at the URL of repository `name`: `found` is the id of what is.
    #[must_use]
    pub fn is_away(self, name: &str, found: Option<String>) -> Error {
        let Self { id, newest } = self;
        Refusal::RepositoryAway { name: name.to_owned(), found, id, newest }.into()
    }
}

/// Returns what a cluster of this state_dir knows under the name: this cluster first, else any other.
#[must_use]
pub fn of(cx: &Context, name: &str) -> Option<Known> {
    let in_folder = |folder: PathBuf| {
        let path = folder.join(format!("{name}.json"));
        read(&path).map(|id| Known { id, newest: None }).or_else(|| seen::known(&path))
    };
    of_this(cx, name).or_else(|| {
        let others = [FOLDER, seen::FOLDER].map(|folder| cx.state.of_all_clusters(folder));
        others.into_iter().flatten().flatten().find_map(in_folder)
    })
}

/// Returns what this cluster knows under the name.
#[must_use]
pub fn of_this(cx: &Context, name: &str) -> Option<Known> {
    let seen = seen::known(&seen::path(cx, name));
    let Some(id) = read(&path(cx, name)) else { return seen };
    let newest = seen.filter(|seen| seen.id == id).and_then(|seen| seen.newest);
    Some(Known { id, newest })
}

/// Writes down which repository it is, whatever was known before.
///
/// # Errors
/// When the note can't be written.
pub fn note(cx: &Context, name: &str, id: &str) -> Result<()> {
    files::create_directories(&cx.state.path(FOLDER))?;
    let note = Note { version: VERSION, repository: id.to_owned() };
    let bytes = serde_json::to_vec(&note).map_err(json("write down a repository's id"))?;
    files::publish(&path(cx, name), &bytes)
}

/// The same, but only if nothing is known yet. A failure changes nothing else.
pub(super) fn note_first(cx: &Context, name: &str, id: &str) {
    if read(&path(cx, name)).is_some() {
        return;
    }
    let id = of_this(cx, name).map_or_else(|| id.to_owned(), |known| known.id);
    if let Err(error) = note(cx, name, &id) {
        tracing::debug!(repository = name, error = %error.chain(), "its id isn't written down");
    }
}

/// Returns what `lockstep.json` says about the repository `name`.
///
/// # Errors
/// When there is no such file: it alone is gone and the rest is there, it belongs to the repository that can't be
/// reached, or there never was one. Those of [`Format::find`].
pub fn format(cx: &Context, store: &Store, name: &str) -> Result<Format> {
    if let Some(format) = Format::find(store, name)? {
        return Ok(format);
    }
    let clusters = init::clusters(store)?;
    if !clusters.is_empty() {
        return Err(init::header_gone(name, &clusters));
    }
    Err(match of(cx, name) {
        Some(known) => known.is_away(name, None),
        None => format::never_made(name),
    })
}

fn path(cx: &Context, name: &str) -> PathBuf {
    cx.state.path(FOLDER).join(format!("{name}.json"))
}

fn read(path: &std::path::Path) -> Option<String> {
    let note: Note = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
    Some(note.repository).filter(|_| note.version == VERSION)
}
