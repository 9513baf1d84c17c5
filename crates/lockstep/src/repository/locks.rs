//! How long the store locks what a repository's sets need, and whether these locks are extended in time.
//!
//! What could go wrong: nobody prunes, so nobody extends the locks, and nobody notices. So the checks look at it.

use jiff::Timestamp;
use strata::check::{Locks, lock_seconds};
use strata::manifest::Manifest as Stored;

use super::{Repository, of_store, of_strata};
use crate::context::lockstep;
use crate::error::Result;

/// The hint for locks that should have been extended.
pub fn overdue_hint() -> String {
    format!(
        "`{} prune` prolongs locks where a retention is set for this repository: does its timer run, and what does it say?",
        lockstep()
    )
}

/// Lists what is worth keeping besides the clusters' parts: the repository's own format, and its keys.
///
/// # Errors
/// When the store fails.
pub fn of_all_clusters(repository: &Repository) -> Result<Vec<String>> {
    let mut paths = vec![super::format::PATH.to_owned()];
    let store = repository.strata.store();
    store.list(super::keys::FOLDER, |listed| paths.push(listed.path)).map_err(of_store)?;
    Ok(paths)
}

/// Says in words that locks should have been extended by now: less than a quarter of their time is left.
///
/// # Errors
/// When the store fails, or the oldest set's manifest is needed for that and can't be read.
pub fn overdue(repository: &Repository, now: u64) -> Result<Option<String>> {
    let strata = &repository.strata;
    let seconds = lock_seconds(strata);
    if seconds == 0 {
        return Ok(None);
    }
    let noted = Locks::read(strata).map_err(of_strata)?.all_until(seconds);
    let until = match noted {
        Some(until) => until,
        // They have never been extended: the first locks to end are the oldest set's.
        None => match Stored::list(strata).map_err(of_strata)?.first() {
            None => return Ok(None),
            Some(oldest) => {
                let shipped = repository.read(oldest)?.shipped_at.as_second();
                u64::try_from(shipped).unwrap_or(0).saturating_add(seconds)
            }
        },
    };
    Ok((now.saturating_add(seconds / 4) > until).then(|| {
        let shown =
            date(until).map_or_else(String::new, |at| at.strftime(" (%Y-%m-%d)").to_string());
        let when = if until <= now { "have ended" } else { "end soon" };
        format!("the store's locks on what its sets need {when}{shown}, and weren't prolonged")
    }))
}

/// Converts Unix time to a timestamp, if it is in range.
#[must_use]
pub fn date(seconds: u64) -> Option<Timestamp> {
    Timestamp::from_second(i64::try_from(seconds).ok()?).ok()
}
