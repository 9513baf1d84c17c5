//! Notices that two repositories of a cluster are one place: by a link, another mount, another name of the server.
//!
//! What could go wrong: each has a policy of its own, and the stricter one removes what the other keeps. A copy of a
//! repository has the same id, so an id that is the same proves nothing. But each time that a lease is taken it gets a
//! token of its own: two places with the same last token are one, or nothing was written to either since it was
//! copied.

use super::{Repository, known, lease, open};
use crate::context::Context;
use crate::error::{Error, Result};

/// Checks that no other repository of the cluster is this one. Whoever holds the lease gets proof; else a copy that
/// nothing has been shipped to yet looks the same. One that can't be opened isn't looked at.
///
/// # Errors
/// [`Error::Usage`] that names both; when this repository's store fails.
pub fn assert_once(cx: &Context, repository: &Repository) -> Result<()> {
    let mut others = with_its_id(cx, &repository.name, &repository.id).peekable();
    if others.peek().is_none() {
        return Ok(());
    }
    let Some(last) = lease::latest(repository)?.filter(|last| !last.token.is_empty()) else {
        return Ok(());
    };
    let is_it = |name: &&String| {
        let there = open(cx, name).and_then(|other| lease::latest(&other));
        there.is_ok_and(|there| there.as_ref() == Some(&last))
    };
    match others.find(is_it) {
        None => Ok(()),
        Some(other) => Err(Error::usage(
            format!("repositories \"{}\" and \"{other}\" are the same place", repository.name),
            "keep only one of the two in the configuration: the policy of one would remove what the other's keeps. If one was copied from the other, take a backup first: then they differ",
        )),
    }
}

/// Returns the cluster's other repositories that have this id, as far as this host knows.
pub fn with_its_id<'a>(cx: &'a Context, name: &str, id: &str) -> impl Iterator<Item = &'a String> {
    let others = cx.cluster.repositories.iter().filter(move |other| *other != name);
    others.filter(move |other| known::of_this(cx, other).is_some_and(|known| known.id == id))
}
