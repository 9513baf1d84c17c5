//! Makes `lockstep.json` again from what is there: the repository's id and a key that opens a set.
//!
//! What could go wrong: a wrong one would be believed forever. The id is sealed into each key, so a key that opens
//! proves the id; and the key has to prove itself against a manifest. A repository without keys must have a manifest
//! that can be read without one; nothing there proves its id, so the one that this host knows isn't contradicted.
//!
//! Or the host that knew the id is lost with `lockstep.json`, and the right key opens nothing. So the keys' own ids
//! begin with the repository's. Without keys nothing depends on the id, and a new one does.

use std::collections::{BTreeMap, BTreeSet};

use strata::manifest::Manifest;
use strata::store::Store;

use super::super::keys::{self, Source};
use super::super::wrap::{self, DataKey};
use super::super::{Format, of_strata};
use crate::config::RepositoryConfig;
use crate::error::{Error, Result};
use crate::names::random_characters;
use crate::refusal::Refusal;

/// How many manifests of a cluster are tried, newest first.
const TRIED: usize = 16;

/// Returns the id that is named by this host's notes or with `--id`; nothing if neither has one.
///
/// # Errors
/// [`Refusal::OtherId`] when they contradict each other.
pub(super) fn named(name: &str, known: Option<String>, id: Option<&str>) -> Result<Option<String>> {
    match (known, id) {
        (Some(known), Some(id)) if known != id => {
            let (name, id) = (name.to_owned(), id.to_owned());
            Err(Refusal::OtherId { name, known, id }.into())
        }
        (known, id) => Ok(id.map(str::to_owned).or(known)),
    }
}

/// Returns what `lockstep.json` said. `clusters` are those that have anything in the store.
///
/// # Errors
/// When nobody knows the id, the configuration's key opens no slot, or no set can be read with it.
pub(super) fn format(
    store: &Store,
    name: &str,
    config: &RepositoryConfig,
    id: Option<String>,
    clusters: &[String],
) -> Result<Format> {
    let (slots, bad) = keys::list(store)?;
    let Some(source) = Source::of(config) else {
        if !slots.is_empty() || !bad.is_empty() {
            return Err(keys::no_key(name));
        }
        proven(store, name, clusters, None)?;
        return Ok(Format::of(match id {
            Some(id) => id,
            None => new_id(name)?,
        }));
    };
    if slots.is_empty() && bad.is_empty() {
        return Err(match proven(store, name, clusters, None) {
            Ok(()) => keys::not_encrypted(name, &source),
            Err(why) if clusters.is_empty() => why,
            Err(why) => keys::all_gone(name).because(why.chain()),
        });
    }
    let of_slots: BTreeSet<&str> = slots.iter().filter_map(wrap::repository_of).collect();
    let ids = match &id {
        Some(id) => BTreeSet::from([id.as_str()]),
        None => of_slots.clone(),
    };
    if ids.is_empty() && !slots.is_empty() {
        return Err(Error::usage(
            format!("this host doesn't know the id of repository \"{name}\""),
            "run it on a host that ships to it, or name it with --id: `repo init` and `repo list` have shown it",
        ));
    }
    let secret = source.read()?;
    let mut opened = BTreeMap::new();
    for slot in &slots {
        for &id in &ids {
            if let Some(key) = wrap::unwrap(slot, &secret, id)? {
                opened.insert(key.fingerprint(), (id, key));
            }
        }
    }
    let mut why = opens_none(name, &source, &ids, &of_slots, &bad);
    for (fingerprint, (id, key)) in opened {
        match proven(store, name, clusters, Some(&key)) {
            Ok(()) => return Ok(Format::of(id.to_owned()).encrypted(fingerprint)),
            Err(error) => why = error,
        }
    }
    Err(why)
}

/// The error that the configuration's key opened no slot with one of these ids. `of_slots` are those that slots say.
fn opens_none(
    name: &str,
    source: &Source,
    ids: &BTreeSet<&str>,
    of_slots: &BTreeSet<&str>,
    bad: &[(String, Error)],
) -> Error {
    let what = keys::opens_none(source, name);
    if let Some((path, error)) = bad.first() {
        return keys::damaged(&what, path, error);
    }
    let all = |ids: &BTreeSet<&str>| ids.iter().copied().collect::<Vec<_>>().join(", ");
    let hint = match of_slots.is_subset(ids) {
        true => "use the file of another key, or name another id with --id".to_owned(),
        false => format!("use the file of another key; the keys there name {}", all(of_slots)),
    };
    Error::usage(format!("{what} with the id {}", all(ids)), hint)
}

/// Makes the id of a repository without keys that nobody here knows.
fn new_id(name: &str) -> Result<String> {
    let id = random_characters::<16>()?;
    tracing::warn!(
        repository = name,
        "nobody here knows the id that the repository had, so it gets a new one, {id}; on other hosts that know the old one: `repo init NAME --instead-of OLD`"
    );
    Ok(id)
}

/// Checks that there is a set that can be read with this key.
fn proven(store: &Store, name: &str, clusters: &[String], key: Option<&DataKey>) -> Result<()> {
    let mut why = None;
    for cluster in clusters {
        let (store, key) = (store.clone(), key.map(DataKey::for_strata));
        let folder = format!("clusters/{cluster}");
        let repository = strata::Repository::new(store, &folder, key).map_err(of_strata)?;
        let sets = Manifest::list(&repository).map_err(of_strata)?;
        for set in sets.iter().rev().take(TRIED) {
            match Manifest::read(&repository, set) {
                Ok(_) => return Ok(()),
                Err(error) => why = why.or(Some(of_strata(error))),
            }
        }
    }
    let failed = Error::failed(format!(
        "no set of repository \"{name}\" can be read so, and what its lockstep.json was stays unproven"
    ));
    let hint = "put lockstep.json back from a copy of the repository";
    Err(match why {
        Some(error) => failed.because(error.chain()).with_hint(hint),
        None => failed.with_hint(hint),
    })
}
