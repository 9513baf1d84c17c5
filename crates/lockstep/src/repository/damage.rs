//! Packs that are there with their size, and that a check has read and found damaged.
//!
//! What could go wrong: a check reads a few percent of the packs, other ones each time. It finds a damaged one, and the
//! next check calls everything well. Meanwhile nothing else reads packs: increments are based on the damage, and `prune`
//! keeps the sets that need it and removes those that can be restored. So such packs are noted on this host. What needs
//! one isn't whole, and each check reads it again, until it is good or nothing needs it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use strata::check::{Problem, Report};

use super::Repository;
use crate::error::Result;
use crate::files;
use crate::set::manifest::json;

/// The form of the note; a note in any other form is ignored.
const VERSION: u32 = 1;
/// Its name beside what is remembered of images, none of which has a space in its name.
const NAME: &str = "damaged packs.json";

/// Packs by name, and what is wrong with each.
pub type Damaged = BTreeMap<String, String>;

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Note {
    version: u32,
    /// The repository's own id.
    repository: String,
    packs: Damaged,
}

fn path(memory: &Path) -> PathBuf {
    memory.join(NAME)
}

/// Returns the packs that are noted; `memory` is where this host remembers what the repository's deltas refer to.
#[must_use]
pub fn noted(memory: &Path, repository: &str) -> Damaged {
    let bytes = std::fs::read(path(memory)).unwrap_or_default();
    let note = serde_json::from_slice::<Note>(&bytes).ok();
    let note = note.filter(|note| note.version == VERSION && note.repository == repository);
    note.map(|note| note.packs).unwrap_or_default()
}

/// Notes these packs and no others.
///
/// # Errors
/// When the note can't be written.
pub fn note(memory: &Path, repository: &str, packs: Damaged) -> Result<()> {
    if packs.is_empty() {
        return files::remove_file(&path(memory));
    }
    files::create_directories(memory)?;
    let note = Note { version: VERSION, repository: repository.to_owned(), packs };
    let bytes = serde_json::to_vec(&note).map_err(json("note which packs are damaged"))?;
    files::publish(&path(memory), &bytes)
}

/// Returns what is to be noted after a check that has read at least the packs noted `before`.
#[must_use]
pub fn after(repository: &Repository, report: &Report, before: &Damaged) -> Damaged {
    let folder = repository.strata.path("packs/");
    // Only packs that are known to be needed were read again. Of a set or delta that couldn't be read, because the store
    // failed for a moment perhaps, nobody knows what it needs.
    let is_about_packs = report.problems.iter().all(|problem| pack_of(problem, &folder).is_some());
    let mut now = match is_about_packs && !report.is_partial {
        true => Damaged::new(),
        false => before.clone(),
    };
    for problem in &report.problems {
        let Some(pack) = pack_of(problem, &folder) else { continue };
        let error = &problem.error;
        if matches!(error, strata::Error::Damaged { .. } | strata::Error::Sealed { .. }) {
            now.insert(pack.to_owned(), error.to_string());
        } else if let Some(why) = before.get(pack) {
            // The store fails: that doesn't make it good.
            now.insert(pack.to_owned(), why.clone());
        }
    }
    now
}

/// Returns what is to be noted if another check of the repository may have ended during this one, which began with what
/// was noted `before` and would note `after`. What that one found stays `noted`: each reads other packs.
#[must_use]
pub fn beside(after: Damaged, before: &Damaged, noted: &Damaged) -> Damaged {
    let of_others = noted.iter().filter(|(pack, _)| !before.contains_key(*pack));
    let of_others = of_others.map(|(pack, why)| (pack.clone(), why.clone()));
    of_others.chain(after).collect()
}

/// The pack that a problem is about; `folder` is that of the packs.
fn pack_of<'a>(problem: &'a Problem, folder: &str) -> Option<&'a str> {
    problem.error.object()?.strip_prefix(folder)
}
