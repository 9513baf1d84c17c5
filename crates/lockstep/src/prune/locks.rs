//! Locks of a repository's store as far as pruning is concerned: until when a set can't be removed, and how what kept
//! sets need stays locked.
//!
//! What could go wrong: a set that the policy doesn't keep stays because of its lock, its lock is extended because it
//! is there, and so it never goes. So the lock of a set that is kept for its lock alone isn't extended.

use std::collections::BTreeSet;

use jiff::Timestamp;
use strata::check::{Locks, Prolonging, Survey, Terms, lock_seconds};

use super::remote::{Done, Tidied};
use super::{Fate, Plan};
use crate::error::Result;
use crate::repository::shipped::Shipped;
use crate::repository::{Repository, locks, of_strata};
use crate::retention::Reason;

/// What is known of a repository's locks.
pub(super) struct Known {
    locks: Locks,
    seconds: u64,
}

impl Known {
    pub(super) fn read(repository: &Repository) -> Result<Self> {
        let seconds = lock_seconds(&repository.strata);
        Ok(Self { locks: Locks::read(&repository.strata).map_err(of_strata)?, seconds })
    }

    /// Returns until when the store lets nobody delete a set's manifest, if the store locks what is written.
    ///
    /// Removing the set before that would free no space, and lose the set.
    pub(super) fn until(&self, repository: &Repository, set: &Shipped) -> Option<Timestamp> {
        if self.seconds == 0 {
            return None;
        }
        let path = repository.strata.path(&format!("sets/{}.json", set.manifest.set));
        let shipped = u64::try_from(set.shipped_at.as_second()).unwrap_or(0);
        locks::date(self.locks.ends(&path, shipped, None, self.seconds))
    }

    /// Returns until when everything that is kept would be locked, if an extension is due.
    pub(super) fn due(&self, now: Timestamp) -> Option<Timestamp> {
        let now = u64::try_from(now.as_second()).unwrap_or(0);
        let is_due = self.locks.is_due(now, self.seconds);
        is_due.then(|| locks::date(now.saturating_add(self.seconds))).flatten()
    }
}

/// Returns the sets that are kept for another reason than their locks, and those of which nothing is known.
fn kept(plan: &Plan) -> BTreeSet<String> {
    let is_kept = |fate: &Fate| match fate {
        Fate::Keep(reasons) => reasons.iter().any(|why| !matches!(why, Reason::LockedUntil(_))),
        Fate::Left(_) => true,
        Fate::Remove => false,
    };
    let kept = plan.entries.iter().filter(|entry| is_kept(&entry.fate));
    kept.map(|entry| entry.set.clone()).collect()
}

/// Surveys the whole repository, and separates what the kept sets need from the rest.
pub(super) fn survey(repository: &Repository, plan: &Plan, terms: Terms) -> strata::Result<Survey> {
    Survey::take(&repository.strata, &kept(plan), terms)
}

/// Extends the locks of what the kept sets need, if that is due. If the repository couldn't be tidied up, that is no
/// reason to let them end: they are extended for whatever can be read.
///
/// # Errors
/// Those of `still`. Any other failure is noted in `done`, and the next run tries again.
pub(super) fn prolong(
    repository: &Repository,
    plan: &Plan,
    tidied: Option<&Tidied>,
    now: u64,
    still: &dyn Fn() -> strata::Result<()>,
    done: &mut Done,
) -> Result<()> {
    if lock_seconds(&repository.strata) == 0 {
        return Ok(());
    }
    let mut read_anew = None;
    let prepared = locks::of_all_clusters(repository).and_then(|more| {
        if tidied.is_none() {
            read_anew = readable(repository, plan, now)?;
        }
        let gone = tidied.map(|tidied| tidied.gone.clone()).unwrap_or_default();
        Ok(Prolonging { more, gone, now })
    });
    let failed = match (prepared, tidied.map(|tidied| &tidied.survey).or(read_anew.as_ref())) {
        (Err(error), _) => Some(error),
        (Ok(_), None) => None,
        (Ok(what), Some(survey)) => {
            let prolonged = survey.prolong(&repository.strata, &what, still).map_err(of_strata)?;
            done.locks_prolonged = prolonged.count;
            prolonged.failed.map(of_strata)
        }
    };
    done.problems.extend(failed.map(|error| {
        let hint = error.hint().map_or_else(String::new, |hint| format!(" ({hint})"));
        format!(
            "the store's locks on what the sets need could not all be prolonged, the next prune tries again: {}{hint}",
            error.chain()
        )
    }));
    Ok(())
}

/// Returns what the kept sets need, as far as it can be read; none if no extension is due yet and nothing was left
/// out that they may need by now.
fn readable(repository: &Repository, plan: &Plan, now: u64) -> Result<Option<Survey>> {
    let strata = &repository.strata;
    let noted = Locks::read(strata).map_err(of_strata)?;
    if !noted.is_due(now, lock_seconds(strata)) && !noted.leaves_any() {
        return Ok(None);
    }
    Survey::take_readable(strata, &kept(plan)).map(Some).map_err(of_strata)
}

#[cfg(test)]
#[path = "locks_tests.rs"]
mod tests;
