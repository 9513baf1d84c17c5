//! Sets that have lost something they need: deltas, index files or packs, each with its size.
//!
//! What could go wrong: a store loses objects, and the manifests alone still look fine. So a shipment and `check`
//! look at everything that the newest set needs and, if that isn't whole, at all sets. This is noted, and all sets
//! are looked at again until they are whole or gone.
//!
//! Also, while another host writes, what is read may look as if it were gone: a merge replaces a descriptor between
//! the listing of its folder and its reading. So a loss counts only when two looks agree: what a descriptor names was
//! there before it, and never comes back.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::{Path, PathBuf};

use strata::manifest::DeltaId;

use super::whole::{ImageDeltas, Wholeness};
use super::{Repository, Shipped, damage};
use crate::context::{Context, lockstep};
use crate::error::Result;
use crate::files;

/// The most looks in a row. While another host collects, each look may find something else gone; the first delta that
/// is gone stays the first.
const LOOKS: u32 = 5;
/// The folder in the cluster's state that holds the notes.
pub(crate) const FOLDER: &str = "harmed";

/// A set that isn't whole in a repository.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Harm {
    /// The set's id.
    pub set: String,
    /// What is missing.
    pub why: String,
}

/// Says what to do about it.
#[must_use]
pub fn hint(repository: &str) -> String {
    format!(
        "`{} repo check {repository}` says what is missing and how to repair it; until then don't rely on these sets",
        lockstep()
    )
}

/// Where this host remembers what a repository's deltas refer to.
#[must_use]
pub fn memory(cx: &Context, repository: &Repository) -> PathBuf {
    cx.state.path("deltas").join(&repository.name)
}

/// Returns those of these sets that aren't whole and still exist. Two looks in a row have to agree.
///
/// # Errors
/// When the store fails.
pub fn of_sets(repository: &Repository, memory: &Path, sets: &[&Shipped]) -> Result<Vec<Harm>> {
    let mut found = surely(repository, memory, sets)?;
    if !found.is_empty() {
        let there = repository.ids()?;
        found.retain(|harm| there.contains(&harm.set));
    }
    Ok(found)
}

/// The same as [`of_sets`], whether the sets still exist or not.
///
/// # Errors
/// When the store fails.
pub fn surely(repository: &Repository, memory: &Path, sets: &[&Shipped]) -> Result<Vec<Harm>> {
    agreed(|| {
        let wholeness = Wholeness::new(repository, memory).silent(sets.len());
        let mut images = BTreeMap::new();
        let look = |set: &&Shipped| why_not_whole(&wholeness, &mut images, set).transpose();
        sets.iter().filter_map(look).collect()
    })
}

/// Checks whether a set is whole, using what is already known of the repository.
///
/// # Errors
/// When the store fails.
pub fn is_whole<'a>(wholeness: &'a Wholeness<'a>, set: &Shipped) -> Result<bool> {
    Ok(why_not_whole(wholeness, &mut BTreeMap::new(), set)?.is_none())
}

/// Returns what is wrong once two looks in a row agree; nothing if a look finds nothing wrong, or if they never
/// agree.
fn agreed(mut look: impl FnMut() -> Result<Vec<Harm>>) -> Result<Vec<Harm>> {
    let mut before = Vec::new();
    for _ in 0..LOOKS {
        let found = look()?;
        if found.is_empty() || found == before {
            return Ok(found);
        }
        before = found;
    }
    Ok(Vec::new())
}

/// Says what of everything that the set needs is gone or differs from what was written.
fn why_not_whole<'a>(
    wholeness: &'a Wholeness<'a>,
    images: &mut BTreeMap<String, ImageDeltas<'a>>,
    set: &Shipped,
) -> Result<Option<Harm>> {
    for DeltaId { image, id } in set.deltas() {
        let deltas = match images.entry(image) {
            Entry::Occupied(there) => there.into_mut(),
            Entry::Vacant(place) => {
                let deltas = wholeness.image(place.key())?;
                place.insert(deltas)
            }
        };
        if let Some(why) = deltas.why_not_whole(&id)? {
            return Ok(Some(Harm { set: set.manifest.set.to_string(), why }));
        }
    }
    Ok(None)
}

/// Returns all sets of the repository that aren't whole. It looks only if `is_doubtful`, if some weren't whole the
/// last time, which is noted until all are, or if a check has found a damaged pack: the newest set may not need it.
///
/// # Errors
/// When the store fails, or it can't be noted.
pub fn look(cx: &Context, repository: &Repository, is_doubtful: bool) -> Result<Vec<Harm>> {
    let note = cx.state.path(FOLDER).join(&repository.name);
    let memory = memory(cx, repository);
    let is_damaged = !damage::noted(&memory, &repository.id).is_empty();
    if !is_doubtful && !is_damaged && !is_noted(&note, &repository.id) {
        return Ok(Vec::new());
    }
    let (sets, _) = repository.sets()?;
    let found = of_sets(repository, &memory, &sets.iter().collect::<Vec<_>>())?;
    if found.is_empty() {
        files::remove_file(&note)?;
    } else if !is_noted(&note, &repository.id) {
        files::create_directories(&cx.state.path(FOLDER))?;
        files::publish(&note, repository.id.as_bytes())?;
    }
    Ok(found)
}

/// Checks whether the note is there and holds the repository's own id.
fn is_noted(path: &Path, id: &str) -> bool {
    std::fs::read(path).is_ok_and(|noted| noted == id.as_bytes())
}

/// Summarizes many sets in one line: how many there are, and the newest.
#[must_use]
pub fn in_words(found: &[Harm]) -> Option<String> {
    let sets: BTreeMap<&str, &str> =
        found.iter().map(|harm| (harm.set.as_str(), harm.why.as_str())).collect();
    let (set, why) = sets.last_key_value()?;
    Some(match sets.len() {
        1 => format!("set {set} isn't whole there: {why}"),
        count => format!("{count} sets aren't whole there, the newest of them {set}: {why}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gone_is_what_two_looks_in_a_row_find_gone() {
        for (looks, expected) in [
            (&[None][..], None),
            // A merge between a listing and a read.
            (&[Some("x"), None], None),
            (&[Some("x"), Some("x")], Some("x")),
            (&[Some("x"), Some("y"), Some("y")], Some("y")),
            (&[Some("x"), Some("y"), Some("x"), Some("y"), Some("x")], None),
        ] {
            let mut said = looks.iter();
            let harm = |why: &str| Harm { set: "a".into(), why: why.into() };
            let look = || {
                Ok(said.next().expect("no more looks").map(harm).into_iter().collect::<Vec<_>>())
            };
            let found = agreed(look).unwrap();
            assert_eq!(found.first().map(|harm| harm.why.as_str()), expected, "{looks:?}");
            assert_eq!(said.len(), 0, "{looks:?}");
        }
    }
}
