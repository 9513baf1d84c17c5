//! Records which sets a shipment works on, so that `prune` leaves them on this host meanwhile.
//!
//! A note next to the shipment's lock names them, and is valid as long as the lock is held: a killed shipment's note
//! means nothing. What could go wrong: a set is about to be removed as its shipment begins. So a shipment writes its
//! note and then checks that the set still exists; a removal withdraws the manifest and then checks for the note. One
//! of the two sees the other.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::manifest::Manifest;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::files;
use crate::lock::Lock;

/// Takes the lock for shipping to a repository: one shipment or prune of it at a time on this host.
///
/// # Errors
/// [`Error::Locked`] with its holder; an error when a killed shipment's note can't be removed.
pub fn lock(cx: &Context, repository: &str, command: &str) -> Result<Lock> {
    let what = format!("cluster \"{}\" for repository \"{repository}\"", cx.name);
    let lock = Lock::take_or_refuse(&lock_path(cx, repository), what, command)?;
    // With this lock held, a killed shipment's note would become valid again.
    files::remove_file(&path(cx, repository))?;
    Ok(lock)
}

/// The note; it is removed with the shipment.
pub(crate) struct AtWork {
    path: PathBuf,
}

impl AtWork {
    /// Notes the set that a shipment works on from here on; its lock has to be held.
    ///
    /// # Errors
    /// When it can't be written, or the set is being removed.
    pub(crate) fn on(cx: &Context, repository: &str, set: &Manifest) -> Result<Self> {
        let at_work = Self { path: path(cx, repository) };
        note(cx, repository, &[set]).map(|()| at_work)
    }
}

/// Does the same for a shipment that works on one set before another.
///
/// # Errors
/// As [`AtWork::on`].
pub(crate) fn note(cx: &Context, repository: &str, sets: &[&Manifest]) -> Result<()> {
    let text: String = sets.iter().map(|manifest| format!("{}\n", manifest.set)).collect();
    files::publish(&path(cx, repository), text.as_bytes())?;
    match sets.iter().find(|manifest| !cx.state.is_complete(manifest.set.as_str())) {
        Some(gone) => Err(Error::failed(format!("set {} is no longer on this host", gone.set))),
        None => Ok(()),
    }
}

impl Drop for AtWork {
    fn drop(&mut self) {
        // A note that stays means nothing without the lock.
        let _ = files::remove_file(&self.path);
    }
}

/// Returns the sets that are being shipped right now, each with its repository; the first if it goes to several. The
/// current configuration doesn't matter: a shipment continues with the one that it began with.
///
/// # Errors
/// When a note can't be read, or a lock can't be checked.
pub(crate) fn all(cx: &Context) -> Result<BTreeMap<String, String>> {
    let mut all = BTreeMap::new();
    for name in repositories(&cx.state.path(""), ".sets")? {
        for set in being_shipped_to(cx, &name)?.unwrap_or_default().lines() {
            all.entry(set.to_owned()).or_insert_with(|| name.clone());
        }
    }
    Ok(all)
}

/// Returns what is being shipped to a repository right now, if anything: the requested set, and since when.
///
/// # Errors
/// As [`all`].
pub(crate) fn since(cx: &Context, repository: &str) -> Result<Option<(String, Timestamp)>> {
    let Some(sets) = being_shipped_to(cx, repository)? else { return Ok(None) };
    let path = lock_path(cx, repository);
    // Its holder wrote it when taking it.
    let taken = std::fs::metadata(&path).and_then(|metadata| metadata.modified());
    let taken = Timestamp::try_from(taken.map_err(Error::io("look at", &path))?);
    let set = sets.lines().last().map(str::to_owned);
    Ok(set.zip(taken.ok()))
}

/// Returns the note of a running shipment.
fn being_shipped_to(cx: &Context, repository: &str) -> Result<Option<String>> {
    let path = path(cx, repository);
    let sets = match std::fs::read_to_string(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        read => read.map_err(Error::io("read", &path))?,
    };
    Ok(Lock::is_held(&lock_path(cx, repository))?.then_some(sets))
}

/// Returns the repositories for which this folder has a file of ours that ends like this: a note, or a lock.
fn repositories(folder: &Path, end: &str) -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(folder).map_err(Error::io("list", folder))? {
        let name = entry.map_err(Error::io("list", folder))?.file_name();
        let name = name.to_str().and_then(|name| name.strip_prefix("ship-"));
        names.extend(name.and_then(|name| name.strip_suffix(end)).map(str::to_owned));
    }
    Ok(names)
}

/// Whether another command of this cluster ships to, or prunes, a repository of any other name right now.
///
/// # Errors
/// When the locks can't be listed or checked.
pub(crate) fn is_any_beside(cx: &Context, repository: &str) -> Result<bool> {
    is_held_beside(&cx.state.path(""), repository)
}

fn is_held_beside(folder: &Path, repository: &str) -> Result<bool> {
    for name in repositories(folder, ".lock")?.iter().filter(|name| *name != repository) {
        if Lock::is_held(&folder.join(lock_name(name)))? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn path(cx: &Context, repository: &str) -> PathBuf {
    cx.state.path(&format!("ship-{repository}.sets"))
}

fn lock_path(cx: &Context, repository: &str) -> PathBuf {
    cx.state.path(&lock_name(repository))
}

fn lock_name(repository: &str) -> String {
    format!("ship-{repository}.lock")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_under_another_name_is_seen() {
        let scratch = tempfile::tempdir().unwrap();
        let is_beside = |name: &str| is_held_beside(scratch.path(), name).unwrap();
        assert!(!is_beside("one"));
        let held = Lock::take(&scratch.path().join("ship-one.lock"), "prune").unwrap();
        assert!(is_beside("two") && !is_beside("one"), "its own lock is this command's");
        drop(held);
        assert!(!is_beside("two"), "what was left by a dead one means nothing");
    }
}
