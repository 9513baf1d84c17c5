//! Deletes what no set needs, once that has been so for a grace time.
//!
//! What isn't referred to may be what a backup is about to refer to, or what a restore is still reading. So it is
//! noted with the time when it was first seen so (`doomed.json`), and deleted by a later run, if nothing has come to
//! refer to it and both that and the object's own writing are longer ago than the grace time. The grace time must be
//! longer than any backup or restore takes. One collector at a time: callers hold a lease.
//!
//! Where the store locks objects for some time, a deletion before that would only hide them: they would be paid for,
//! and helped nobody any more. So they are left until their lock has ended.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Inventory, Live};
use crate::document;
use crate::error::Result;
use crate::repository::Repository;
use crate::store::StoreErrorKind;

/// Since when nothing has referred to a path.
#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Doomed {
    format: u32,
    since: BTreeMap<String, u64>,
}

/// What a collection did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Deleted, in this order.
    pub deleted: Vec<String>,
    /// Nothing refers to them, but their grace time isn't over.
    pub waiting: Vec<String>,
    /// Nothing has referred to them for the grace time, but the store lets nobody delete them yet.
    pub locked: Vec<String>,
}

/// Deletes descriptors, then index files, then packs that nothing has referred to for `grace` seconds.
///
/// Whatever of a set can't be read stops it before anything is deleted: nobody knows what that would refer to.
pub fn collect(
    repository: &Repository,
    grace: u64,
    now: u64,
    is_dry_run: bool,
) -> Result<Collected> {
    // First what is there, then what is needed: what is written in between is needed by nobody on this list.
    let inventory = Inventory::take(repository)?;
    let is_old = |time: u64| now.saturating_sub(time) >= grace;
    let mut live = Live::default();
    live.sets(repository)?;
    // A backup that has no manifest yet.
    let young = inventory.deltas.iter().filter(|(_, listed)| !is_old(listed.modified));
    live.chains(repository, young.map(|(delta, _)| delta.clone()).collect(), true)?;
    let deltas = inventory.deltas.iter().filter(|(delta, _)| !live.deltas.contains(delta));
    let indexes = inventory.indexes.iter().filter(|(path, _)| !live.indexes.contains(*path));
    let packs = inventory.packs.iter().filter(|(pack, _)| !live.packs.contains_key(pack));
    // In the order in which they go: nothing that is there ever refers to what isn't.
    let unneeded: Vec<_> = deltas
        .map(|(_, listed)| listed)
        .chain(indexes.map(|(_, listed)| listed))
        .chain(packs.map(|(_, listed)| listed))
        .collect();

    let path = repository.path("doomed.json");
    let before = read_doomed(repository, &path)?;
    let mut after = Doomed { format: 1, since: BTreeMap::new() };
    let mut collected = Collected::default();
    for listed in unneeded {
        let since = before.since.get(&listed.path).copied().unwrap_or(now).min(now);
        after.since.insert(listed.path.clone(), since);
        let lock = repository.store().locked_seconds(&listed.path);
        let list = if !(is_old(since) && is_old(listed.modified)) {
            &mut collected.waiting
        } else if now < listed.modified.saturating_add(lock) {
            &mut collected.locked
        } else {
            &mut collected.deleted
        };
        list.push(listed.path.clone());
    }
    if is_dry_run {
        return Ok(collected);
    }
    if after.since != before.since {
        repository.store().put(&path, &[document::write(&path, &after)?.into()])?;
    }
    for path in std::mem::take(&mut collected.deleted) {
        match repository.store().delete(&path) {
            Ok(()) => collected.deleted.push(path),
            // A lock that the store knows of and we don't: the bucket's own, or somebody's hold.
            Err(error) if error.kind == StoreErrorKind::Retained => collected.locked.push(path),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(collected)
}

/// What was noted. Where that is damaged, everything waits once more.
fn read_doomed(repository: &Repository, path: &str) -> Result<Doomed> {
    match repository.read_document(path) {
        Ok(bytes) => Ok(document::read(path, &bytes).unwrap_or_default()),
        Err(error) if error.is_not_found() => Ok(Doomed::default()),
        Err(error) => Err(error),
    }
}
