//! Which sets a shipment works on, so that `prune` leaves them on this host meanwhile.
//!
//! A note beside the shipment's lock names them, and counts as long as the lock is held: a killed shipment's counts
//! for nothing. What could go wrong: a set is about to be removed as its shipment begins. So a shipment writes its note
//! and then looks whether the set is still there; a removal withdraws the manifest and then looks for the note. One of
//! the two sees the other.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::manifest::Manifest;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::files;
use crate::lock::Lock;

/// The lock of shipping to a repository: one shipment or prune of it at a time on this host.
///
/// # Errors
/// [`Error::Locked`] with who holds it.
pub fn lock(cx: &Context, repository: &str, command: &str) -> Result<Lock> {
    let path = cx.state.path(&format!("ship-{repository}.lock"));
    let what = format!("cluster \"{}\" for repository \"{repository}\"", cx.name);
    Lock::take_or_refuse(&path, what, command)
}

/// The note; it goes with the shipment.
pub(crate) struct AtWork {
    path: PathBuf,
}

impl AtWork {
    /// Notes the set that a shipment works on from here on; its lock is held.
    ///
    /// # Errors
    /// When it can't be written, or the set is being removed.
    pub(crate) fn on(cx: &Context, repository: &str, set: &Manifest) -> Result<Self> {
        let at_work = Self { path: path(cx, repository) };
        note(cx, repository, &[set]).map(|()| at_work)
    }
}

/// The same, of a shipment that works on one set before another.
///
/// # Errors
/// Those.
pub(crate) fn note(cx: &Context, repository: &str, sets: &[&Manifest]) -> Result<()> {
    let text: String = sets.iter().map(|manifest| format!("{}\n", manifest.set)).collect();
    files::publish(&path(cx, repository), text.as_bytes())?;
    match sets.iter().find(|manifest| !cx.state.is_complete(manifest.set.as_str())) {
        Some(gone) => Err(Error::failed(format!("set {} is no more on this host", gone.set))),
        None => Ok(()),
    }
}

impl Drop for AtWork {
    fn drop(&mut self) {
        // One that stays says nothing without the lock.
        let _ = files::remove_file(&self.path);
    }
}

/// The sets that are being shipped right now, each with the repository it goes to: the first, where it goes to several.
///
/// # Errors
/// When a lock can't be tried.
pub(crate) fn all(cx: &Context) -> Result<BTreeMap<String, String>> {
    let mut all = BTreeMap::new();
    for name in &cx.cluster.repositories {
        let noted = std::fs::read_to_string(path(cx, name)).unwrap_or_default();
        if noted.is_empty() {
            continue;
        }
        match lock(cx, name, "prune") {
            Err(Error::Locked { .. }) => {}
            tried => {
                drop(tried?);
                continue;
            }
        }
        for set in noted.lines() {
            all.entry(set.to_owned()).or_insert_with(|| name.clone());
        }
    }
    Ok(all)
}

fn path(cx: &Context, repository: &str) -> PathBuf {
    cx.state.path(&format!("ship-{repository}.sets"))
}
