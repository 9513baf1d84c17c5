//! Makes `lockstep.json` again from what is there: the id that a host knows, and a key that opens a set.
//!
//! What could go wrong: a wrong one would be believed forever. The id is sealed into each key, so a key that opens
//! proves the id; and the key has to prove itself against a manifest. A repository without keys must have a manifest
//! that can be read without one.

use std::collections::BTreeMap;

use strata::manifest::Manifest;
use strata::store::Store;

use super::super::keys::{self, Source};
use super::super::wrap::{self, DataKey};
use super::super::{Format, of_strata};
use crate::config::RepositoryConfig;
use crate::error::{Error, Result};

/// How many manifests of a cluster are tried, newest first.
const TRIED: usize = 16;

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
    let Some(id) = id else {
        return Err(Error::usage(
            format!("this host doesn't know the id of repository \"{name}\""),
            "run it on a host that ships to it, or name it with --id: `lockstep repo list` has shown it",
        ));
    };
    let (slots, _) = keys::list(store)?;
    let Some(source) = Source::of(config) else {
        if !slots.is_empty() {
            return Err(Error::usage(
                format!("repository \"{name}\" is encrypted, and its configuration has no key"),
                format!("set key_file or passphrase_file in [repositories.{name}]"),
            ));
        }
        return proven(store, name, clusters, None).map(|()| Format::of(id));
    };
    let secret = source.read()?;
    let mut opened = BTreeMap::new();
    for slot in &slots {
        if let Some(key) = wrap::unwrap(slot, &secret, &id)? {
            opened.insert(key.fingerprint(), key);
        }
    }
    let mut why = Error::usage(
        format!("the {source} opens no key of repository \"{name}\" with the id \"{id}\""),
        "use the file of another key, or name another id with --id",
    );
    for (fingerprint, key) in opened {
        match proven(store, name, clusters, Some(&key)) {
            Ok(()) => return Ok(Format::of(id).encrypted(fingerprint)),
            Err(error) => why = error,
        }
    }
    Err(why)
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
