//! What killed restores and clones left behind: servers, clones, folders. Found at the next start
//! by the journal and removed; a restore that still runs holds a lock of its own.

use std::path::{Path, PathBuf};

use pgfiles::control_file::DbState;

use crate::context::Context;
use crate::error::{Error, Result};
use crate::files;
use crate::lock::{Lock, LockError};
use crate::postgres::{instance, server};
use crate::set::journal::{self, RestoreJournal};

/// Where a restore's journal entry lies.
#[must_use]
pub fn journal_path(cx: &Context, id: &str) -> PathBuf {
    cx.state.path("restores").join(format!("{id}.json"))
}

fn lock_path(cx: &Context, id: &str) -> PathBuf {
    cx.state.path("restores").join(format!("{id}.lock"))
}

/// Takes the lock that says that a restore is alive.
///
/// # Errors
/// [`Error::Locked`] when one of this id is.
pub fn lock(cx: &Context, id: &str) -> Result<Lock> {
    Lock::take(&lock_path(cx, id), id).map_err(|error| match error {
        LockError::Held(holder) => {
            Error::Locked { cluster: format!("{}/{id}", cx.name), holder, is_lease: false }
        }
        LockError::Failed(error) => error,
    })
}

/// Removes a lock's file once its restore has ended.
pub fn remove_lock(cx: &Context, id: &str) {
    let _ = files::remove_file(&lock_path(cx, id));
}

/// Removes what restores that were killed left behind. What can't be removed now (somebody else's snapshot
/// on a clone) is warned of and stays in its journal: it must keep nobody from a backup or a restore.
///
/// # Errors
/// When the journals can't be read, or a signal has come.
pub fn remove(cx: &Context) -> Result<()> {
    for (path, entry) in journal::read_all::<RestoreJournal>(&cx.state.path("restores"))? {
        let held = match Lock::take(&lock_path(cx, &entry.id), "clean-up") {
            Err(LockError::Held(_)) => continue,
            Err(LockError::Failed(error)) => return Err(error),
            Ok(lock) => lock,
        };
        // Between the reading and the lock it may have ended well, and be somebody's by now.
        if journal::read::<RestoreJournal>(&path)?.as_ref() != Some(&entry) {
            drop(held);
            remove_lock(cx, &entry.id);
            continue;
        }
        if is_in_use(&entry) {
            tracing::warn!(
                restore = %entry.id, data = %entry.data.display(),
                "an unfinished restore is a cluster of its own by now: it stays, and isn't Lockstep's any more"
            );
            files::remove_tree(&cx.state.path("staging").join(&entry.id))?;
            forget(&path, cx, &entry, held)?;
            continue;
        }
        tracing::warn!(restore = %entry.id, "removing what an unfinished restore left");
        match undo(cx, &entry) {
            Err(error) if !matches!(error, Error::Interrupted { .. }) => {
                tracing::warn!(restore = %entry.id, error = %error.chain(), "it stays for now");
                continue;
            }
            undone => undone?,
        }
        if let Some(name) = entry.id.strip_prefix("clone-") {
            // A clone is remembered a moment before its journal entry goes.
            files::remove_file(&cx.state.path("clones").join(format!("{name}.json")))?;
        }
        forget(&path, cx, &entry, held)?;
    }
    Ok(())
}

fn forget(path: &Path, cx: &Context, entry: &RestoreJournal, held: Lock) -> Result<()> {
    files::remove_file(path)?;
    drop(held);
    remove_lock(cx, &entry.id);
    Ok(())
}

/// Whether a restore was killed, or its machine, when the server had ended recovery: people may have
/// written to it since. A clone nobody was told of is thrown away.
fn is_in_use(entry: &RestoreJournal) -> bool {
    let has_signal = entry.data.join("recovery.signal").exists();
    entry.started
        && !entry.id.starts_with("clone-")
        && !has_signal
        && instance::read_control(&entry.data).is_ok_and(|control| {
            use DbState::{InProduction, ShutDowned, ShuttingDown};
            matches!(control.state, InProduction | ShuttingDown | ShutDowned)
        })
}

/// Stops the server, destroys the clones, removes the folders.
///
/// # Errors
/// When one of them stays.
pub fn undo(cx: &Context, entry: &RestoreJournal) -> Result<()> {
    server::stop(&entry.data, server::Stop::Immediate)?;
    destroy_datasets(cx, entry)?;
    remove_folders(entry)
}

/// Destroys the clones, the last made first.
///
/// # Errors
/// When one stays.
pub fn destroy_datasets(cx: &Context, entry: &RestoreJournal) -> Result<()> {
    if entry.received.is_empty() {
        return cx.zfs.destroy_clones(&entry.datasets, &entry.id);
    }
    for dataset in entry.datasets.iter().rev() {
        let of = |name: &&String| name.split('@').next() == Some(dataset.as_str());
        for name in entry.received.iter().filter(of) {
            cx.zfs.destroy_received(dataset, name, &entry.id)?;
        }
        cx.zfs.destroy_clone(dataset, &entry.id)?;
    }
    Ok(())
}

/// Removes the folders, which are empty once the clones are gone.
///
/// # Errors
/// When one stays.
pub fn remove_folders(entry: &RestoreJournal) -> Result<()> {
    entry.own.iter().try_for_each(|path| files::remove_tree(path))?;
    entry.emptied.iter().try_for_each(|path| files::empty_directory(path))?;
    entry.places.iter().chain(&entry.places_of_others).try_for_each(|path| remove_place(path))
}

/// Removes a link or an empty folder; a folder that somebody put something into stays.
pub(super) fn remove_place(path: &Path) -> Result<()> {
    match std::fs::symlink_metadata(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(Error::io("look at", path)(e)),
        Ok(metadata) if metadata.is_dir() => match std::fs::remove_dir(path) {
            Err(e) if e.kind() == std::io::ErrorKind::DirectoryNotEmpty => Ok(()),
            Err(e) if e.kind() == std::io::ErrorKind::ResourceBusy => Ok(()),
            other => other.map_err(Error::io("remove", path)),
        },
        Ok(metadata) if metadata.is_symlink() => files::remove_file(path),
        Ok(_) => Ok(()),
    }
}
