//! The set that a restore begins with: the one that is named, or the newest from which recovery comes to its target.
//!
//! What could go wrong: recovery goes forward only, so a set that is younger than the target can't be taken; and one
//! that is much older makes it replay more WAL than it must. Which set lies before a transaction or a restore point no
//! manifest tells: there it has to be named.

use crate::context::Context;
use crate::error::{Error, Result};
use crate::postgres::target::{Recovery, Target};
use crate::repository::{Repository, Shipped};
use crate::set::manifest::Manifest;

/// A set of this host.
///
/// # Errors
/// [`Error::Usage`] where there is none, or it has to be named; when it can't be read.
pub(super) fn here(cx: &Context, named: Option<&str>, recovery: &Recovery) -> Result<Manifest> {
    if let Some(named) = by_name(named, recovery)? {
        return cx.state.find(named);
    }
    let (sets, damaged) = cx.state.sets()?;
    let found = sets.into_iter().rev().find(|set| recovery.comes_from(set));
    for (id, error) in damaged {
        if found.as_ref().is_none_or(|found| found.set < id) {
            passed_over(id.as_str(), &error);
        }
    }
    found.ok_or_else(|| none(&format!("cluster \"{}\"", cx.name), " on this host", recovery))
}

/// A set of a repository.
///
/// # Errors
/// Those of [`here`], and when the store fails.
pub(super) fn stored(
    cx: &Context,
    repository: &Repository,
    named: Option<&str>,
    recovery: &Recovery,
) -> Result<Shipped> {
    if let Some(named) = by_name(named, recovery)? {
        return repository.find(cx, named);
    }
    // A set's id begins with the time when it was begun.
    let is_younger = |id: &str| match &recovery.target {
        Target::Time(time) => id > format!("{}~", time.strftime("%Y%m%dT%H%M%SZ")).as_str(),
        _ => false,
    };
    let kin = repository.kin(cx)?;
    let fits = |set: &Shipped| kin.has(set) && recovery.comes_from(&set.manifest);
    let found = repository.newest_that(|id| !is_younger(id), fits, passed_over)?;
    found.ok_or_else(|| none(&format!("repository \"{}\"", repository.name), "", recovery))
}

/// What the set is called; nothing where its place before the target decides.
fn by_name<'a>(named: Option<&'a str>, recovery: &Recovery) -> Result<Option<&'a str>> {
    match (named, &recovery.target) {
        (Some(named), _) => Ok(Some(named)),
        (None, Target::Time(_) | Target::Lsn(_)) => Ok(None),
        (None, Target::End | Target::Immediate) => Ok(Some("latest")),
        (None, Target::Xid(_) | Target::Name(_)) => Err(Error::usage(
            format!("which set lies before {} no manifest tells", recovery.target),
            "name one that was taken before it: `lockstep list` shows them",
        )),
    }
}

fn passed_over(id: &str, error: &Error) {
    tracing::warn!(set = %id, error = %error.chain(), "a set that can't be read is passed over");
}

fn none(whose: &str, place: &str, recovery: &Recovery) -> Error {
    let timeline = match &recovery.timeline {
        Some(timeline) if timeline.parse::<u32>().is_ok() => format!(" on timeline {timeline}"),
        _ => String::new(),
    };
    Error::usage(
        format!(
            "{whose} has no set{place} from which recovery comes to {}{timeline}",
            recovery.target
        ),
        "`lockstep list` shows the sets, with --from repository those of one: recovery goes forward only",
    )
}
