//! One repository under two of a cluster's names: one copy where two are meant, and each name has its own policy.
//!
//! The configuration refuses two tables with the same URL. A symbolic link, a second mount or another name of a server
//! hides it. Both names have the same id then. So does a copy of a repository, which is a repository of its own once
//! somebody writes to it. The lease tells: each holder leaves a token there that no other has.

use super::{Repository, known, lease, open};
use crate::context::Context;
use crate::error::Error;

/// Returns the other name of the cluster that leads to this repository, or to a copy to which nobody has written
/// since. What can't be opened is no answer.
#[must_use]
pub fn other_name<'a>(cx: &'a Context, repository: &Repository) -> Option<&'a str> {
    let names = cx.cluster.repositories.iter().filter(|name| **name != repository.name);
    let mut same = names.filter(|name| {
        known::of_this(cx, name).is_some_and(|known| known.id == repository.id)
            && has_same_lease(cx, name, repository)
    });
    same.next().map(String::as_str)
}

fn has_same_lease(cx: &Context, name: &str, repository: &Repository) -> bool {
    // Nobody has written to a new one, and a damaged lease has no token.
    let token = |repository: &Repository| match lease::latest(repository) {
        Ok(None) => Some(String::new()),
        Ok(Some(written)) => Some(written.token).filter(|token| !token.is_empty()),
        Err(_) => None,
    };
    let Ok(other) = open(cx, name) else { return false };
    other.id == repository.id && token(&other).is_some_and(|its| token(repository) == Some(its))
}

/// What is wrong, in words.
#[must_use]
pub fn in_words(repository: &Repository, other: &str) -> String {
    let Repository { name, id, .. } = repository;
    format!(
        "repositories \"{name}\" and \"{other}\" are one: both lead to the repository with the id {id}"
    )
}

/// What to do about it.
pub const HINT: &str = "take one of the names out of the cluster's repositories, or give it a place of its own; a copy of a repository counts as one of its own from its first backup on";

/// The refusal to remove anything: the sets that one name's policy keeps would go with those of the other's.
#[must_use]
pub fn refusal(repository: &Repository, other: &str) -> Error {
    Error::usage(in_words(repository, other), HINT)
}
