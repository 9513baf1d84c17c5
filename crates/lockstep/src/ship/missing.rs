//! Which of this host's sets a repository lacks.
//!
//! What could go wrong: a set that never got there is older than one that did, so the next backup alone doesn't make up
//! for it. And a set that was there and was pruned must not come back, but one that the repository's storage lost must.

use std::collections::BTreeSet;

use super::full;
use crate::context::{Context, lockstep};
use crate::error::{Error, Result};
use crate::names::SetId;
use crate::repository::went_back::{self, WentBack};
use crate::repository::{self, Repository};
use crate::set::manifest::Manifest;
use crate::set::notes;
use crate::set::removal;
use crate::set::verify;

/// A set that a repository lacks, or why it can't be shipped.
pub type Missing = (SetId, Result<Manifest>);

/// Returns the sets of this host that a repository lacks, oldest first: those younger than its newest, older ones that
/// this host doesn't know to have been there, and those whose id another host's set has there. Damaged ones come with
/// what is wrong.
///
/// # Errors
/// When the repository or this host's sets can't be listed.
pub fn missing(cx: &Context, name: &str) -> Result<Vec<Missing>> {
    let repository = repository::open(cx, name)?;
    // If its storage went back, what it lost is no longer noted as being there.
    went_back::look(cx, &repository)?;
    let there: BTreeSet<_> = repository.ids()?.into_iter().collect();
    let (sets, damaged) = cx.state.sets()?;
    let damaged = damaged.into_iter().map(|(set, error)| {
        let error = of_no_use(&set, &error, "");
        (set, Err(error))
    });
    let mut all: Vec<Missing> = sets.into_iter().map(|set| (set.set.clone(), Ok(set))).collect();
    all.extend(damaged);
    let mut missing = Vec::new();
    for (set, manifest) in all {
        let is_noted = notes::is_shipped(cx, &set, name, Some(&repository.id));
        let is_pruned = notes::is_pruned(cx, &set, name, Some(&repository.id));
        // Only what nobody noted may be another host's.
        let is_in_doubt = there.contains(set.as_str()) && !is_noted && !is_pruned;
        let is_missing = is_missing(&set, &there, Known { is_noted, is_pruned })
            || (is_in_doubt && is_of_another(&repository, manifest.as_ref().ok())?);
        if is_missing {
            missing.push((set, manifest));
        }
    }
    missing.sort_by(|(a, _), (b, _)| a.cmp(b));
    Ok(missing)
}

/// Whether the set of this id there is another host's. Then this one never got there, and shipping it says so.
fn is_of_another(repository: &Repository, manifest: Option<&Manifest>) -> Result<bool> {
    let Some(manifest) = manifest else { return Ok(false) };
    match repository.read_if_there(manifest.set.as_str()) {
        Ok(Some(there)) => Ok(full::assert_same_set(&there, manifest, &repository.name).is_err()),
        Err(error @ (Error::Store { .. } | Error::Interrupted { .. })) => Err(error),
        // One that can't be read is reported elsewhere.
        Ok(None) | Err(_) => Ok(false),
    }
}

/// Returns the sets that a repository's storage lost and that aren't there again, once everything that this host has
/// was shipped. If this host has none of them any more, that is the last time.
///
/// # Errors
/// When the repository can't be read.
pub fn lost_for_good(cx: &Context, name: &str) -> Result<Option<WentBack>> {
    went_back::after_shipping(cx, &repository::open(cx, name)?)
}

/// What this host knows about a set in a repository.
#[derive(Clone, Copy)]
struct Known {
    /// It was seen complete there.
    is_noted: bool,
    /// It was pruned there, by this host.
    is_pruned: bool,
}

/// `there` are the ids of a repository's sets. If there are none, the repository may be a new one, and what is known
/// is about another. A set that is noted, isn't there, and is younger than all that are was lost rather than pruned:
/// `prune` keeps the newest.
fn is_missing(set: &SetId, there: &BTreeSet<String>, known: Known) -> bool {
    // Ids sort by time.
    match there.last() {
        None => true,
        Some(newest) if newest.as_str() < set.as_str() => !known.is_pruned,
        Some(_) => !there.contains(set.as_str()) && !known.is_noted && !known.is_pruned,
    }
}

/// Checks that the set's snapshots are still on this host.
///
/// # Errors
/// When one is missing, or ZFS fails.
pub(super) fn assert_whole(cx: &Context, manifest: &Manifest) -> Result<()> {
    manifest.volumes.iter().try_for_each(|volume| cx.zfs.answers(&volume.dataset))?;
    let asks = "is its pool not imported, or was it destroyed or renamed by hand? ";
    let incomplete = verify::incomplete(cx, std::slice::from_ref(manifest))?;
    let Some((set, error)) = incomplete.first() else { return Ok(()) };
    Err(match way_back(cx, manifest)? {
        Some(way_back) => Error::failed(error.chain()).with_hint(way_back),
        None => of_no_use(set, error, asks),
    })
}

/// Returns how the set can be shipped after all, if one of its snapshots moved with its dataset: the set is good, so
/// nobody shall be told how to be rid of it.
fn way_back(cx: &Context, manifest: &Manifest) -> Result<Option<String>> {
    let moved = removal::moved(cx, manifest.volumes.iter())?.into_iter().next();
    Ok(moved.map(|(was, now)| {
        format!(
            "it is \"{now}\" now: the set can be shipped once that is \"{was}\" again; `{} check` says how",
            lockstep()
        )
    }))
}

/// Says what is wrong with a set, with a hint for users who ship rather than restore.
fn of_no_use(set: &SetId, error: &Error, asks: &str) -> Error {
    Error::failed(error.chain()).with_hint(format!(
        "{asks}it can't be shipped as it is; to be rid of it: {} prune --local --set {set}",
        lockstep()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_never_was_there_is_missing_and_what_was_pruned_isn_t() {
        let ids = ["20261121T000000Z-aaaa", "20261122T000000Z-bbbb", "20261123T000000Z-cccc"];
        let sets = ids.map(|id| id.parse::<SetId>().unwrap());
        let there = BTreeSet::from([ids[1].to_owned()]);
        for (at, is_noted, is_pruned, expected) in [
            (0, false, false, true),
            (0, true, false, false),
            (0, false, true, false),
            // It is there, and nobody noted that.
            (1, false, false, false),
            (1, true, false, false),
            (2, false, false, true),
            (2, true, false, true),
            (2, false, true, false),
        ] {
            let found = is_missing(&sets[at], &there, Known { is_noted, is_pruned });
            assert_eq!(found, expected, "{}, {is_noted}, {is_pruned}", ids[at]);
        }
        let known = Known { is_noted: true, is_pruned: true };
        assert!(is_missing(&sets[0], &BTreeSet::new(), known), "a repository that was made anew");
    }
}
