//! The newest set that this host and a repository both have: what the next increment starts from.
//!
//! What could go wrong: a repository doesn't answer for minutes, and a process that holds the cluster's lock
//! meanwhile blocks backups. So the repositories are asked before the lock is taken ([`Asked`]). Their answers may be
//! outdated by then: a set that was shipped since isn't known as common yet, and an older one is kept instead. But after
//! a first shipment there is no older one, so what was shipped since isn't removed either ([`shipped_since`]).

use std::collections::BTreeSet;

use crate::context::Context;
use crate::error::{Error, Result};
use crate::repository::{self, Repository};
use crate::retention;
use crate::set::notes;

/// What this host has in common with a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Common {
    /// The repository's name.
    pub(super) repository: String,
    /// The newest set that both have.
    pub(super) newest: Option<String>,
    /// Why it couldn't be asked; `newest` is then what it was last known to have.
    pub(super) problem: Option<String>,
}

/// What a repository has, or why it couldn't be asked.
pub(super) struct Asked {
    repository: String,
    /// The sets of this host that were known to be there before it was asked.
    noted: BTreeSet<String>,
    there: Result<BTreeSet<String>>,
}

/// Asks every repository of the cluster.
pub(super) fn ask_all(cx: &Context) -> Vec<Asked> {
    // If they can't be listed, nothing is removed anyway.
    let sets = cx.state.complete().unwrap_or_default();
    let ask = |name: &String| {
        let noted = sets.iter().map(ToString::to_string).filter(|id| was_shipped(cx, id, name));
        let noted = noted.collect();
        // What another one in its place has says nothing about it.
        let there = repository::open_known(cx, name).and_then(|repository| repository.ids());
        Asked { repository: name.clone(), noted, there: there.map(BTreeSet::from_iter) }
    };
    cx.cluster.repositories.iter().map(ask).collect()
}

/// Asks none of them: what each was last known to have counts.
pub(super) fn unasked(cx: &Context) -> Vec<Asked> {
    let unasked = |name: &String| {
        let there = Err(Error::failed("it wasn't asked"));
        Asked { repository: name.clone(), noted: BTreeSet::new(), there }
    };
    cx.cluster.repositories.iter().map(unasked).collect()
}

/// Returns what each has in common with this host; `local` are the sets that an increment can start from here.
pub(super) fn with_all(cx: &Context, asked: &[Asked], local: &BTreeSet<String>) -> Vec<Common> {
    asked.iter().map(|asked| with_one(cx, asked, local)).collect()
}

fn with_one(cx: &Context, asked: &Asked, local: &BTreeSet<String>) -> Common {
    let name = asked.repository.as_str();
    let now = jiff::Timestamp::now();
    let newest = |is_there: &dyn Fn(&String) -> bool| {
        retention::newest(local.iter().filter(|id| is_there(id)), |id| id, now)
    };
    let (newest, problem) = match &asked.there {
        Ok(there) => (newest(&|id| there.contains(id)), None),
        Err(error) => {
            let why = format!(
                "repository {name} can't be asked what it has ({}): the newest set that it was known to have is kept",
                error.chain()
            );
            let known = newest(&|id| was_shipped(cx, id, name));
            // It may have had another name until now: what was noted under that name is all that is known of it.
            (known.or_else(|| newest(&|id| was_shipped_elsewhere(cx, id))), Some(why))
        }
    };
    Common { repository: name.to_owned(), newest: newest.cloned(), problem }
}

/// Returns the repository that has got this set of this host since it was asked, if any: the next increment may start
/// from the set, and from no other.
pub(super) fn shipped_since<'a>(cx: &Context, asked: &'a [Asked], set: &str) -> Option<&'a str> {
    let has_got_it =
        |asked: &&Asked| !asked.noted.contains(set) && was_shipped(cx, set, &asked.repository);
    asked.iter().find(has_got_it).map(|asked| asked.repository.as_str())
}

/// Checks whether the set was seen complete in the repository: shipping notes that.
fn was_shipped(cx: &Context, set: &str, repository: &str) -> bool {
    set.parse().is_ok_and(|set| notes::is_shipped(cx, &set, repository, None))
}

/// The same for a repository that the cluster no longer has under that name.
fn was_shipped_elsewhere(cx: &Context, set: &str) -> bool {
    set.parse().is_ok_and(|set| notes::is_shipped_to_a_former_name(cx, &set))
}

/// Notes that the set was complete in the repository, but is about to be removed there.
///
/// # Errors
/// When that can't be noted.
pub(super) fn mark_pruned(cx: &Context, set: &str, repository: &Repository) -> Result<()> {
    match set.parse() {
        Ok(set) => notes::mark_pruned(cx, &set, &repository.name, &repository.id),
        Err(_) => Ok(()),
    }
}
