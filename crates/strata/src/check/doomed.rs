//! The note of what nothing refers to, and since when: what makes a grace time out of single runs.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::document;
use crate::error::Result;
use crate::repository::Repository;

/// Since when nothing has referred to a path.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Doomed {
    format: u32,
    since: BTreeMap<String, u64>,
}

impl Default for Doomed {
    fn default() -> Doomed {
        Doomed { format: 1, since: BTreeMap::new() }
    }
}

impl Doomed {
    /// What was noted. Where that is damaged, everything waits once more.
    pub(super) fn read(repository: &Repository) -> Result<Doomed> {
        let path = path(repository);
        match repository.read_document(&path) {
            Ok(bytes) => Ok(document::read(&path, &bytes).unwrap_or_default()),
            Err(error) if error.is_not_found() => Ok(Doomed::default()),
            Err(error) => Err(error),
        }
    }

    /// Since when, in Unix time; `None` where nothing is noted of the path.
    pub(super) fn since(&self, path: &str) -> Option<u64> {
        self.since.get(path).copied()
    }

    /// Notes a path.
    pub(super) fn note(&mut self, path: &str, since: u64) {
        self.since.insert(path.to_string(), since);
    }

    /// Writes the note, unless it is as it was.
    pub(super) fn write(&self, repository: &Repository, before: &Doomed) -> Result<()> {
        if self.since == before.since {
            return Ok(());
        }
        let path = path(repository);
        repository.store().put(&path, &[document::write(&path, self)?.into()])?;
        Ok(())
    }
}

fn path(repository: &Repository) -> String {
    repository.path("doomed.json")
}
