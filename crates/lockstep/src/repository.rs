//! The repository: where sets are kept outside this host, as deltas of block changes.
//!
//! ```text
//! lockstep.json                    format, id, encryption; made once, by `repo init`
//! keys/ID.json                     the data key, wrapped by one secret each
//! clusters/NAME/…                  docs/repository-format.md
//! ```
//!
//! `strata` stores images and knows neither ZFS nor PostgreSQL. The code here turns a send stream into an image, and
//! an image into a send stream.

pub mod check;
pub(crate) mod damage;
pub mod files;
mod format;
pub mod harm;
pub mod header;
pub mod image;
pub mod ingest;
pub mod init;
pub mod keys;
pub mod kin;
pub mod known;
pub mod lease;
pub mod locks;
pub mod peek;
pub mod raw;
pub(crate) mod reserve;
pub mod secret;
pub(crate) mod seen;
pub mod shipped;
pub mod stores;
pub mod tree;
pub mod twice;
pub mod unfold;
pub mod went_back;
pub mod whole;
pub mod wrap;

use crate::config::{Place, RepositoryConfig};
use crate::context::{Context, lockstep};
use crate::error::{self, Error, Result};

use strata::store::{StoreError, StoreErrorKind};

pub use format::{Encryption, Format};
pub use shipped::{Shipped, ShippedVolume};
pub use stores::store;

/// A cluster's part of an opened repository.
pub struct Repository {
    /// The repository's name in the configuration.
    pub name: String,
    /// The repository's table in the configuration.
    pub config: RepositoryConfig,
    /// The repository's own id.
    pub id: String,
    /// The cluster's folder in the repository.
    pub strata: strata::Repository,
}

/// Returns the configuration table of the repository `name`.
///
/// # Errors
/// When there is no repository of that name.
pub fn config<'a>(cx: &Context<'a>, name: &str) -> Result<&'a RepositoryConfig> {
    cx.repositories.get(name).ok_or_else(|| {
        let known = cx.repositories.keys().cloned().collect::<Vec<_>>().join(", ");
        Error::usage(
            format!("no repository \"{name}\" in the configuration"),
            format!("it has: {}", if known.is_empty() { "none" } else { &known }),
        )
    })
}

/// Returns the named repositories, in the given order and each once, if all of them are among the cluster's. Only
/// these can be shipped to or pruned: the base of the next increment is kept for the cluster's own repositories
/// alone.
///
/// # Errors
/// When one isn't among the cluster's repositories.
pub fn of_cluster(cx: &Context, names: &[String]) -> Result<Vec<String>> {
    let known = &cx.cluster.repositories;
    let Some(other) = names.iter().find(|name| !known.contains(name)) else {
        return Ok(each_once(names.to_vec()));
    };
    let has =
        format!("it has: {}", if known.is_empty() { "none".into() } else { known.join(", ") });
    let hint = match cx.repositories.contains_key(other) {
        true => format!("name it in clusters.{}.repositories too; {has}", cx.name),
        false => has,
    };
    Err(Error::usage(format!("cluster \"{}\" has no repository \"{other}\"", cx.name), hint))
}

/// Removes duplicates and keeps the first of each.
pub(crate) fn each_once<T: PartialEq>(all: Vec<T>) -> Vec<T> {
    all.into_iter().fold(Vec::new(), |mut seen, one| {
        if !seen.contains(&one) {
            seen.push(one);
        }
        seen
    })
}

/// Checks that a repository's folder can be touched.
///
/// # Errors
/// [`crate::refusal::Refusal::PoolSuspended`] when it is on a suspended pool.
pub fn reachable(cx: &Context, config: &RepositoryConfig) -> Result<()> {
    match config.place() {
        Ok(Place::Folder(folder)) => cx.zfs.reachable(&folder),
        _ => Ok(()),
    }
}

/// Opens the repository `name` for the cluster of `cx`.
///
/// # Errors
/// When there is none of that name, it was never created, or it can't be opened.
pub fn open(cx: &Context, name: &str) -> Result<Repository> {
    let config = config(cx, name)?;
    reachable(cx, config)?;
    let store = store(config, name)?;
    let format = known::format(cx, &store.impatient(), name)?;
    let key = keys::open(&store, name, config, &format)?.map(|opened| opened.key.for_strata());
    let folder = format!("clusters/{}", cx.name);
    let strata = strata::Repository::new(store, &folder, key).map_err(of_strata)?;
    known::note_first(cx, name, &format.id);
    Ok(Repository { name: name.to_owned(), config: config.clone(), id: format.id, strata })
}

/// Opens the repository `name`, if it is the one that this cluster knows under its name. What removes, or relies on,
/// something because of what is there, or isn't, opens it so.
///
/// # Errors
/// As [`open`]; [`Refusal::RepositoryAway`](crate::refusal::Refusal::RepositoryAway) when another one is in its place.
pub fn open_known(cx: &Context, name: &str) -> Result<Repository> {
    let repository = open(cx, name)?;
    match known::of_this(cx, name).filter(|known| known.id != repository.id) {
        Some(known) => Err(known.is_away(name, Some(repository.id))),
        None => Ok(repository),
    }
}

/// Opens the repository that the user means: the one named, or the cluster's only one.
///
/// # Errors
/// A usage error when the cluster has none, or has several and none is named; see [`open`].
pub fn open_meant(cx: &Context, name: Option<&str>) -> Result<Repository> {
    let names = &cx.cluster.repositories;
    match (name, names.as_slice()) {
        (Some(name), _) => open(cx, name),
        (None, [only]) => open(cx, only),
        (None, []) => Err(Error::usage(
            format!("cluster \"{}\" has no repository", cx.name),
            "name it: --from repository:NAME",
        )),
        (None, several) => Err(Error::usage(
            format!("cluster \"{}\" has several repositories", cx.name),
            format!("choose with --from repository:NAME: {}", several.join(", ")),
        )),
    }
}

/// Returns the command that looks for damage, as written in hints that don't know the repository's name.
pub(crate) fn check_command() -> String {
    format!("`{} repo check --read-data`", lockstep())
}

/// Completes an error of a restore of the set `which` from the repository `name`: the hint shows the check command as
/// it is typed, and names the other repositories in which this host has seen the set.
#[must_use]
pub fn named(cx: &Context, name: &str, which: Option<&str>, error: Error) -> Error {
    let Error::Failed { what, hint: Some(hint), source } = error else { return error };
    let unnamed = check_command();
    if !hint.contains(&unnamed) {
        return Error::Failed { what, hint: Some(hint), source };
    }
    let mut hint =
        hint.replace(&unnamed, &format!("`{} repo check {name} --read-data`", lockstep()));
    let others = cx.cluster.repositories.iter().filter(|other| *other != name);
    let has_it: Vec<_> = others
        .filter(|other| seen::has(&seen::path(cx, other), which))
        .map(|other| format!("--from repository:{other}"))
        .collect();
    if !has_it.is_empty() {
        hint = format!("{hint}. Elsewhere it is, too: {}", has_it.join(", "));
    }
    Error::Failed { what, hint: Some(hint), source }
}

/// Converts an error of the repository crate into one of this program's, with its hint. An error that was this
/// program's own to begin with is returned unchanged.
pub fn of_strata(error: strata::Error) -> Error {
    let error = match error {
        strata::Error::Caller(own) => match own.downcast() {
            Ok(own) => return *own,
            Err(other) => strata::Error::Caller(other),
        },
        error => error,
    };
    if let strata::Error::Store(StoreError { kind: StoreErrorKind::Ending, verb, path, .. }) =
        &error
    {
        return Error::Interrupted { step: format!("{verb} {path}") };
    }
    let hint = match &error {
        strata::Error::Damaged { .. } => Some(format!(
            "{} says what else is damaged, and which sets it harms; what doesn't need this object still restores",
            check_command()
        )),
        error if error.is_not_found() => Some(format!(
            "is the repository whole? {} says what is missing, and which sets it harms",
            check_command()
        )),
        strata::Error::Store(error) if error.lacks_room() => error.hint().map(|hint| {
            let it = lockstep();
            format!(
                "{hint}; `{it} prune` and `{it} repo compact --max-bytes 0` delete what no set has needed for the \
                 grace time, even if there is no room left"
            )
        }),
        error => error.hint().map(str::to_owned),
    };
    let is_store_failure = error.is_store_failure();
    let failed = match is_store_failure {
        true => Error::Store { what: error.to_string(), hint: None, source: None },
        false => Error::failed(error.to_string()),
    };
    let failed = match std::error::Error::source(&error) {
        Some(source) => failed.because(error::kept(source)),
        None => failed,
    };
    match hint {
        Some(hint) => failed.with_hint(hint),
        None if is_store_failure => failed.with_hint(STORE_FAILED),
        None => failed,
    }
}

/// What to do if a store fails and nothing more is known.
pub(crate) const STORE_FAILED: &str = "this says nothing about the object: look at what holds the repository (its disk, its mount, its server), and run the command again";

fn no_deltas(image: &str, delta: &str) -> Error {
    Error::failed(format!("the chain of \"{image}\" to \"{delta}\" has no deltas"))
}

/// The error for something that a later version wrote in a form unknown to this one; `known` is the newest known
/// form.
fn newer_form(what: &str, found: impl std::fmt::Display, known: u32) -> Error {
    Error::failed(format!("{what} has form {found}, this lockstep knows {known}"))
        .with_hint("use the version that wrote it, or a newer one")
}

fn of_store(error: strata::store::StoreError) -> Error {
    of_strata(error.into())
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_is_named_twice_is_meant_once() {
        assert_eq!(super::each_once(vec!["b", "a", "b", "b", "a"]), ["b", "a"]);
    }
}
