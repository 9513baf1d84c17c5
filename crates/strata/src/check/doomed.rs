//! The note of what nothing refers to, and since when. It carries a grace time from one run to the next.
//!
//! What could go wrong: something that is noted becomes needed, and then unneeded again before the next collection. By
//! the old note it would be deleted at once, while others may be reading it. So a writer of a set that needs something
//! noted strikes it out first ([`Doomed::strike`]).

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::document;
use crate::error::{Error, Result};
use crate::lease::Still;
use crate::repository::{MAX_DOCUMENT, Repository};

/// Paths that nothing refers to, and since when.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Doomed {
    format: u32,
    since: BTreeMap<String, u64>,
}

impl Default for Doomed {
    fn default() -> Doomed {
        Doomed { format: 1, since: BTreeMap::new() }
    }
}

impl Doomed {
    /// Reads the note. If it is damaged, or larger than any that is written, it counts as empty and every grace time
    /// starts again.
    pub fn read(repository: &Repository) -> Result<Doomed> {
        read_note(repository, &path(repository))
    }

    /// Returns the Unix time since which a path is noted; `None` if it isn't.
    pub fn since(&self, path: &str) -> Option<u64> {
        self.since.get(path).copied()
    }

    /// Returns how many paths are noted, and since when the oldest is.
    pub fn oldest(&self) -> (usize, Option<u64>) {
        (self.since.len(), self.since.values().copied().min())
    }

    /// Notes a path.
    pub(super) fn note(&mut self, path: &str, since: u64) {
        self.since.insert(path.to_string(), since);
    }

    /// Whether nothing is noted.
    pub fn is_empty(&self) -> bool {
        self.since.is_empty()
    }

    /// Strikes out what a set that is about to be written will need. If it becomes unneeded after that, its grace time
    /// starts again. The caller holds the lease of collections; `still` is called before the note is written.
    pub fn strike(
        self,
        repository: &Repository,
        needed: impl IntoIterator<Item = String>,
        still: Still<'_>,
    ) -> Result<()> {
        let mut after = self.clone();
        for path in needed {
            after.since.remove(&path);
        }
        after.write(repository, &self, still)
    }

    /// Writes the note, unless it is unchanged; `still` is called before.
    pub(super) fn write(
        mut self,
        repository: &Repository,
        before: &Doomed,
        still: Still<'_>,
    ) -> Result<()> {
        self.shrink(MAX_DOCUMENT);
        if self.since == before.since {
            return Ok(());
        }
        let path = path(repository);
        repository.store().put_if(&path, &[document::write(&path, &self)?.into()], still)
    }

    /// Drops the newest entries until the note has at most `most` bytes: what was noted first is deleted first, and
    /// makes room for the others.
    fn shrink(&mut self, most: u64) {
        let mut left = most.saturating_sub(FRAME);
        if self.since.keys().map(|path| size(path)).sum::<u64>() <= left {
            return;
        }
        let mut all: Vec<_> = std::mem::take(&mut self.since).into_iter().collect();
        all.sort_by(|a, b| (a.1, &a.0).cmp(&(b.1, &b.0)));
        let fits = |(path, _): &(String, u64)| {
            let size = size(path);
            let fits = size <= left;
            left = left.saturating_sub(size);
            fits
        };
        self.since = all.into_iter().take_while(fits).collect();
    }
}

/// Returns a note that may be lost: the default if it doesn't exist, is damaged, or is larger than any that is written.
pub(super) fn read_note<T: DeserializeOwned + Default>(
    repository: &Repository,
    path: &str,
) -> Result<T> {
    match repository.read_document(path) {
        Ok(bytes) => Ok(document::read(path, &bytes).unwrap_or_default()),
        Err(Error::Damaged { .. }) => Ok(T::default()),
        Err(error) if error.is_not_found() => Ok(T::default()),
        Err(error) => Err(error),
    }
}

/// Returns the most bytes that a path and its time take in a note: the path quoted and escaped, a colon, a number of up
/// to 20 digits, a comma.
pub(super) fn size(path: &str) -> u64 {
    path.len() as u64 + path.bytes().filter(|byte| needs_escape(*byte)).count() as u64 * 5 + 24
}

/// At least the size of an empty note, in bytes.
const FRAME: u64 = 256;

fn needs_escape(byte: u8) -> bool {
    byte < 0x20 || byte == b'"' || byte == b'\\'
}

fn path(repository: &Repository) -> String {
    repository.path("doomed.json")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_keeps_the_oldest_that_fit() {
        let mut all = Doomed::default();
        for number in 0..1000_u64 {
            // Not in the order of their paths, and with characters that JSON escapes.
            all.note(&format!("packs/\"{}\u{1}", number * 7919 % 1000), 1000 - number);
        }
        for most in [0, 300, 5000, 20_000, 1 << 20] {
            let mut note = Doomed { format: 1, since: all.since.clone() };
            note.shrink(most);
            let size = document::write("doomed.json", &note).unwrap().len() as u64;
            assert!(size <= most.max(FRAME), "{size} of {most}");
            let kept = note.since.len() as u64;
            assert!(kept == 1000 || size + FRAME + 60 * kept > most, "{kept} of {most}");
            let oldest = |since: &&u64| **since <= kept;
            assert_eq!(note.since.values().filter(oldest).count() as u64, kept, "{most}");
        }
    }
}
