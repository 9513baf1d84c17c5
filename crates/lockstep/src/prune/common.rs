//! The newest set that this host and a repository both have: what the next increment starts from.

use std::collections::BTreeSet;

use crate::context::Context;
use crate::error::Result;
use crate::repository::{self, Repository};
use crate::retention;
use crate::set::notes;

/// What this host has in common with a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Common {
    /// The repository.
    pub(super) repository: String,
    /// The newest set that both have.
    pub(super) newest: Option<String>,
    /// Why it couldn't be asked; then `newest` is what it was last known to have.
    pub(super) problem: Option<String>,
}

/// Asks every repository of the cluster; `local` are the sets that an increment can start from on this host.
pub(super) fn with_all(cx: &Context, local: &BTreeSet<String>) -> Vec<Common> {
    cx.cluster.repositories.iter().map(|name| with_one(cx, name, local)).collect()
}

fn with_one(cx: &Context, name: &str, local: &BTreeSet<String>) -> Common {
    let there = repository::open(cx, name).and_then(|repository| repository.ids());
    let now = jiff::Timestamp::now();
    let newest = |is_there: &dyn Fn(&String) -> bool| {
        retention::newest(local.iter().filter(|id| is_there(id)), |id| id, now)
    };
    let (newest, problem) = match there {
        Ok(there) => {
            let there: BTreeSet<_> = there.into_iter().collect();
            (newest(&|id| there.contains(id)), None)
        }
        Err(error) => {
            let why = format!(
                "repository {name} can't be asked what it has ({}): the newest set that it was known to have is kept",
                error.chain()
            );
            (newest(&|id| was_shipped(cx, id, name)), Some(why))
        }
    };
    Common { repository: name.to_owned(), newest: newest.cloned(), problem }
}

/// Whether the set was seen complete in the repository: shipping writes that down.
fn was_shipped(cx: &Context, set: &str, repository: &str) -> bool {
    set.parse().is_ok_and(|set| notes::is_shipped(cx, &set, repository, None))
}

/// Notes that the set is no longer complete in the repository, but was: it is about to be removed there.
///
/// # Errors
/// When that can't be noted.
pub(super) fn forget_shipped(cx: &Context, set: &str, repository: &Repository) -> Result<()> {
    match set.parse() {
        Ok(set) => notes::mark_pruned(cx, &set, &repository.name, &repository.id),
        Err(_) => Ok(()),
    }
}
