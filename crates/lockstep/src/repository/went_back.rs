//! Notices that a repository's storage went back to an older state: it was rolled back, or replaced by an older copy.
//!
//! What could go wrong: what is left is whole, and the next increment starts from it. The sets that came after it look
//! as if another host had pruned them, and nobody misses them. But a lease's generations only grow, with each shipment
//! and each prune of any host. So this host notes the highest one that it wrote. If the highest one there is lower, the
//! storage went back, and of the sets that were in it some may be lost. Which ones is noted too, until they are there
//! again: the shipments that follow raise the generation past what was noted.
//!
//! Or the storage that went back is replaced by the later state after all, whose generation is higher: then what was
//! shipped in between is gone in turn. But each time that the lease is taken it gets a token of its own. So this host
//! notes its last one as well. If the highest generation is this host's and has another token, or has the number that
//! was noted and another token, it was written to another copy.
//!
//! A generation that is lower or has another token isn't enough: somebody may have removed the leases by hand, or
//! state_dir came back from an older copy. So there is a loss only if a set is gone as well that this host shipped or
//! saw there, and that no prune has removed: it is younger than what is left of those that were seen. A prune keeps the
//! newest.
//!
//! Or what is left has a set that a host shipped whose clock was hours ahead: it would look younger than all that were
//! lost. So what is dated in the future doesn't count.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use strata::lease::Written;

use super::{Repository, lease, seen};
use crate::context::{Context, lockstep};
use crate::error::Result;
use crate::files;
use crate::names::SetId;
use crate::retention;
use crate::set::manifest::json;
use crate::set::notes;

/// The form of the note; a note in any other form is ignored.
const VERSION: u32 = 1;
/// Its folder in the cluster's state.
pub(crate) const FOLDER: &str = "generations";

/// What this host remembers about a repository's lease.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Note {
    version: u32,
    /// The repository's own id.
    repository: String,
    /// The highest generation that this host wrote there.
    generation: u64,
    /// That generation's token; `None` in a note of an older version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    token: Option<String>,
    /// The sets that were lost when the storage went back, and aren't there again.
    lost: BTreeSet<String>,
}

/// Sets that a repository lost because its storage went back to an older state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WentBack {
    /// Their ids, oldest first.
    pub lost: Vec<String>,
    /// Those of them that are still on this host.
    pub here: Vec<String>,
}

impl WentBack {
    fn of(cx: &Context, lost: BTreeSet<String>) -> Option<Self> {
        let lost: Vec<_> = lost.into_iter().collect();
        let here = lost.iter().filter(|set| cx.state.is_complete(set)).cloned().collect();
        (!lost.is_empty()).then_some(Self { lost, here })
    }

    /// Says what happened, for use after the repository's name.
    #[must_use]
    pub fn in_words(&self) -> String {
        let what = match &self.lost[..] {
            [set] => format!("set {set} was in it, and isn't any more"),
            [first, .., last] => format!(
                "{} sets that were in it, from {first} to {last}, aren't any more",
                self.lost.len()
            ),
            [] => "sets that were in it aren't any more".to_owned(),
        };
        format!("its storage went back to an older state: {what}")
    }

    /// Says what to do about it.
    #[must_use]
    pub fn hint(&self, repository: &str) -> String {
        let command = format!("`{} ship --missing --repository {repository}`", lockstep());
        let what = match (self.here.len(), self.lost.len()) {
            (0, _) => format!(
                "this host has none of them any more: nothing here can bring them back, and {command} ends this message"
            ),
            (here, lost) if here == lost => format!("{command} brings them back from this host"),
            (here, lost) => {
                format!("{command} brings back the {here} of {lost} that this host still has")
            }
        };
        format!(
            "was it rolled back, or is an older copy of it at this URL? If the later state still exists, put that there; else {what}"
        )
    }
}

/// The hint once `ship --missing` has shipped what it could and forgotten the rest.
pub const FOR_GOOD: &str = "this host has none of them any more, so nothing here can bring them back; this isn't reported again";

/// Where the note of a repository is.
#[derive(Debug)]
pub(super) struct Place {
    path: PathBuf,
    repository: String,
}

impl Place {
    /// Notes which generation there is now that the lease was given back.
    pub(super) fn given_back(&self, generation: u64) {
        let Some(note) = read(&self.path).filter(|note| note.repository == self.repository) else {
            return;
        };
        if note.generation < generation {
            publish(&self.path, &Note { generation, ..note });
        }
    }
}

/// Compares what was there when the lease was taken with what was noted, and notes the lease's own generation and
/// token.
///
/// # Errors
/// When the store fails.
pub(super) fn taken(
    cx: &Context,
    repository: &Repository,
    there: Option<&Written>,
    generation: u64,
    token: String,
) -> Result<Place> {
    let before = recall(cx, repository);
    let now = compare(cx, repository, &before, there)?;
    keep(cx, repository, &before, &Note { generation, token: Some(token), ..now });
    Ok(Place { path: path(cx, &repository.name), repository: repository.id.clone() })
}

/// Compares the highest generation in the repository with what was noted, and returns the sets that were lost.
///
/// # Errors
/// When the store fails.
pub fn look(cx: &Context, repository: &Repository) -> Result<Option<WentBack>> {
    // In this order: a backup that runs meanwhile notes a generation only after it was written.
    let before = recall(cx, repository);
    let there = match before.generation {
        0 => None,
        _ => lease::latest(repository)?,
    };
    let now = compare(cx, repository, &before, there.as_ref())?;
    keep(cx, repository, &before, &now);
    Ok(WentBack::of(cx, now.lost))
}

/// Returns the sets that are noted as lost and aren't there again. The store is asked only if there are any.
///
/// # Errors
/// When the store fails.
pub fn lost(cx: &Context, repository: &Repository) -> Result<Option<WentBack>> {
    let before = recall(cx, repository);
    let now = without_what_is_there(repository, before.clone())?;
    keep(cx, repository, &before, &now);
    Ok(WentBack::of(cx, now.lost))
}

/// The same once everything that this host has was shipped. If it has none of them any more, they are forgotten:
/// nothing can bring them back.
///
/// # Errors
/// When the store fails.
pub fn after_shipping(cx: &Context, repository: &Repository) -> Result<Option<WentBack>> {
    let found = lost(cx, repository)?;
    if found.as_ref().is_some_and(|found| found.here.is_empty()) {
        let before = recall(cx, repository);
        keep(cx, repository, &before, &Note { lost: BTreeSet::new(), ..before.clone() });
    }
    Ok(found)
}

/// Warns of what is noted as lost.
pub(super) fn warn(cx: &Context, repository: &Repository) {
    if let Some(found) = WentBack::of(cx, recall(cx, repository).lost) {
        let (name, what) = (&repository.name, found.in_words());
        tracing::warn!("repository {name}: {what}. {}", found.hint(name));
    }
}

/// Returns what is to be noted; `there` is the highest generation in the repository.
fn compare(
    cx: &Context,
    repository: &Repository,
    before: &Note,
    there: Option<&Written>,
) -> Result<Note> {
    let mut now = before.clone();
    let is_another = before.is_of_another_state(there, &lease::owner(cx));
    if is_another {
        now.generation = there.map_or(0, |there| there.generation);
        now.token = there.map(|there| there.token.clone());
    }
    // If the later state was put back while sets are lost, what was shipped to the older one is gone in turn.
    if is_another || (!before.lost.is_empty() && newest_is_gone(cx, repository)?) {
        now.lost.extend(gone(cx, repository)?);
    }
    without_what_is_there(repository, now)
}

impl Note {
    /// Checks whether the highest generation in the repository doesn't follow from the noted one: the storage went
    /// back, or is another copy. `own` is this host's name in leases. A pure function.
    fn is_of_another_state(&self, there: Option<&Written>, own: &str) -> bool {
        let Some(there) = there else { return self.generation > 0 };
        // A damaged generation has no token.
        let is_known = !there.token.is_empty();
        let differs = is_known && self.token.as_ref().is_some_and(|token| *token != there.token);
        let is_ours = there.owner == own || there.generation == self.generation;
        there.generation < self.generation || (is_ours && differs)
    }
}

fn without_what_is_there(repository: &Repository, mut note: Note) -> Result<Note> {
    if !note.lost.is_empty() {
        for id in repository.ids()? {
            note.lost.remove(&id);
        }
    }
    Ok(note)
}

/// Returns the sets that this host shipped or saw there, and that aren't there, now that the storage went back.
///
/// Another host may have pruned some of them. A storage that went back lost its newest sets, and a prune keeps the
/// newest. So a set that was noted as shipped counts if it was shipped after all that are left, and one that was seen
/// if it is younger than those that are left of what was seen. If none of these is left, it has to be younger than all.
fn gone(cx: &Context, repository: &Repository) -> Result<BTreeSet<String>> {
    let (name, id) = (&repository.name, &repository.id);
    let there: BTreeSet<_> = repository.ids()?.into_iter().collect();
    let (sets, _) = repository.sets()?;
    let now = jiff::Timestamp::now();
    let last = sets.iter().map(|set| set.shipped_at).filter(|at| *at <= now).max();
    let is_later =
        |at: Option<jiff::Timestamp>| at.is_none_or(|at| last.is_none_or(|last| at > last));
    let mut gone = seen::ids(cx, repository);
    let left = newest_until(gone.intersection(&there), now);
    let newest = left.or_else(|| newest_until(&there, now)).cloned();
    gone.retain(|set| newest.as_ref().is_none_or(|newest| set > newest));
    let here = cx.state.complete()?;
    let shipped = here.iter().filter(|set| {
        notes::shipped(cx, set, name, id).is_some_and(|note| is_later(note.shipped_at))
    });
    gone.extend(shipped.map(ToString::to_string));
    let is_pruned = |set: &str| {
        set.parse::<SetId>().is_ok_and(|set| notes::is_pruned(cx, &set, name, Some(id)))
    };
    gone.retain(|set| !there.contains(set) && !is_pruned(set));
    Ok(gone)
}

/// Returns the newest of these sets that isn't dated in the future. A pure function.
fn newest_until<'a>(
    sets: impl IntoIterator<Item = &'a String>,
    now: jiff::Timestamp,
) -> Option<&'a String> {
    sets.into_iter().filter(|set| !retention::is_ahead(set, now)).max()
}

/// Checks whether the newest set that is noted as shipped there is gone, and all that are there are older.
fn newest_is_gone(cx: &Context, repository: &Repository) -> Result<bool> {
    let (name, id) = (&repository.name, &repository.id);
    let here = cx.state.complete()?;
    let is_noted = |set: &&SetId| notes::is_shipped(cx, set, name, Some(id));
    let Some(noted) = here.iter().rev().find(is_noted) else { return Ok(false) };
    let there = repository.ids()?;
    let newest = newest_until(&there, jiff::Timestamp::now());
    Ok(newest.is_none_or(|newest| newest.as_str() < noted.as_str()))
}

/// Writes the note, and removes what says that the lost sets are there. A failure is reported; what the command does
/// goes on.
fn keep(cx: &Context, repository: &Repository, before: &Note, now: &Note) {
    let (name, id) = (&repository.name, &repository.id);
    if now == before || !publish(&path(cx, name), now) {
        return;
    }
    for set in &now.lost {
        let Ok(set) = set.parse::<SetId>() else { continue };
        if let Err(error) = notes::forget_shipped(cx, &set, name, id) {
            tracing::warn!(%set, "it isn't in repository {name} any more, and that can't be noted: {}", error.chain());
        }
    }
}

/// Returns what is noted of the repository: under its name, or else under one that the cluster no longer uses.
fn recall(cx: &Context, repository: &Repository) -> Note {
    let of_it = |path: &Path| read(path).filter(|note| note.repository == repository.id);
    seen::under_any_name(cx, repository, FOLDER, of_it).unwrap_or_else(|| Note {
        version: VERSION,
        repository: repository.id.clone(),
        ..Note::default()
    })
}

fn path(cx: &Context, repository: &str) -> PathBuf {
    cx.state.path(FOLDER).join(format!("{repository}.json"))
}

fn read(path: &Path) -> Option<Note> {
    let note: Note = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
    Some(note).filter(|note| note.version == VERSION)
}

/// Writes the note, and returns whether that succeeded. If it didn't, the next command compares with the older one.
fn publish(path: &Path, note: &Note) -> bool {
    let written = serde_json::to_vec(note).map_err(json("note a lease's generation"));
    let written = written.and_then(|bytes| {
        path.parent().map_or(Ok(()), files::create_directories)?;
        files::publish(path, &bytes)
    });
    if let Err(error) = &written {
        tracing::warn!(
            "whether a repository's storage goes back can't be noted: {}",
            error.chain()
        );
    }
    written.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_state_is_told_by_its_generation_or_its_token() {
        let noted = |token: Option<&str>| Note {
            generation: 8,
            token: token.map(str::to_owned),
            ..Note::default()
        };
        let there = |generation, owner: &str, token: &str| {
            Some(Written { generation, owner: owner.to_owned(), token: token.to_owned() })
        };
        for (there, expected) in [
            (None, true),
            (there(7, "us", "a"), true),
            (there(8, "us", "a"), false),
            (there(9, "us", "a"), false),
            (there(9, "us", "b"), true),
            (there(8, "they", "b"), true),
            // Nothing in it says whether it was written after ours.
            (there(9, "they", "b"), false),
            (there(9, "us", ""), false),
        ] {
            let found = noted(Some("a")).is_of_another_state(there.as_ref(), "us");
            assert_eq!(found, expected, "{there:?}");
        }
        let older = noted(None);
        assert!(!older.is_of_another_state(there(9, "us", "b").as_ref(), "us"));
        assert!(older.is_of_another_state(there(7, "us", "b").as_ref(), "us"));
        assert!(!Note::default().is_of_another_state(None, "us"));
    }

    /// Shipped by a host whose clock was hours ahead, it isn't younger than what was lost.
    #[test]
    fn what_is_dated_in_the_future_is_not_the_newest_that_is_left() {
        let now = "2026-11-28T12:00:00Z".parse().unwrap();
        let [older, ahead] = ["20261128T100000Z-aaaa", "20261128T170000Z-bbbb"].map(str::to_owned);
        let there = [older.clone(), ahead.clone()];
        assert_eq!(newest_until(&there, now), Some(&older));
        assert_eq!(newest_until([&ahead], now), None);
        let later = "2026-11-28T18:00:00Z".parse().unwrap();
        assert_eq!(newest_until(&there, later), Some(&ahead));
    }
}
