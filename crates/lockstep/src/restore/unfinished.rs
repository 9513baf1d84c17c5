//! What killed restores and clones left behind: servers, clones, folders. The next start finds it by the journal and
//! removes it; a restore that still runs holds a lock of its own.
//!
//! What could go wrong: a state_dir that is restored from a copy made while a restore ran has its journal, and by
//! then what the restore made is somebody's cluster. So a restore records on its datasets and in its folder when it
//! has ended; and nothing is undone where somebody else's server runs, or where a cluster of the configuration is.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::folders::{goes, own_folders, remove_empty};
use super::marker::Marker;
use super::{alone, control, gone_on, others, seen};

pub(crate) use super::folders::own_in;
pub use super::folders::remove_folders;
pub(crate) use super::others::has_data;
use crate::clone;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::files;
use crate::isolation::left;
use crate::lock::{Lock, LockError};
use crate::postgres::{instance, server};
use crate::process::quote;
use crate::set::journal::{self, RestoreJournal};
use crate::volume::zfs::{DatasetName, SnapshotName, Standing};

/// The property that names the ended restore that a dataset belongs to.
const ENDED: &str = "lockstep:ended";
/// The property that names the restore that made a dataset.
pub(super) const MADE_BY: &str = "lockstep:restore";

/// Returns the path of a restore's journal entry.
#[must_use]
pub fn journal_path(cx: &Context, id: &str) -> PathBuf {
    cx.state.path("restores").join(format!("{id}.json"))
}

fn lock_path(cx: &Context, id: &str) -> PathBuf {
    cx.state.path("restores").join(format!("{id}.lock"))
}

/// Takes the lock that says that a restore is alive; the ZFS commands that it runs hold it too.
///
/// # Errors
/// [`Error::Locked`] when a restore with this id is alive.
pub fn lock(cx: &Context, id: &str) -> Result<Lock> {
    let what = format!("cluster \"{}/{id}\"", cx.name);
    let lock = Lock::take_or_refuse(&lock_path(cx, id), what, id)?;
    cx.zfs.work_under(&lock);
    Ok(lock)
}

/// Whether the restore of this id is alive. Doesn't take the lock.
///
/// # Errors
/// When the lock can't be checked.
pub fn is_alive(cx: &Context, id: &str) -> Result<bool> {
    Lock::is_held(&lock_path(cx, id))
}

/// Removes a lock's file once its restore has ended.
pub fn remove_lock(cx: &Context, id: &str) {
    let _ = files::remove_file(&lock_path(cx, id));
}

/// Removes what killed restores left behind. What can't be removed now (because of somebody else's snapshot on a
/// clone) is reported as a warning and stays in its journal: it must not block any backup or restore.
///
/// # Errors
/// When the journals can't be read, or a signal has come.
pub fn remove(cx: &Context) -> Result<()> {
    for (path, entry) in journal::read_all::<RestoreJournal>(&cx.state.path("restores"))? {
        match remove_one(cx, &path, &entry) {
            Err(error) if !matches!(error, Error::Interrupted { .. }) => {
                let kind = kind(&entry.id);
                tracing::warn!(
                    id = %entry.id, error = %error.chain(),
                    "what an unfinished {kind} left stays for now{}", held_by(&entry)
                );
            }
            removed => removed?,
        }
    }
    for folder in ["unfinished", "removals", "bookmarks", "restores", "clones"] {
        files::remove_half_written(&cx.state.path(folder))?;
    }
    remove_locks(cx)
}

fn remove_one(cx: &Context, path: &Path, entry: &RestoreJournal) -> Result<()> {
    let held = match Lock::take(&lock_path(cx, &entry.id), "clean-up") {
        Err(LockError::Held(_)) => return Ok(()),
        Err(LockError::Failed(error)) => return Err(error),
        Ok(lock) => lock,
    };
    // Between the reading and the lock it may have succeeded, and be somebody's by now.
    if journal::read::<RestoreJournal>(path)?.as_ref() != Some(entry) {
        // While the lock is held: a process that waits for it must not find another file than one that comes later.
        remove_lock(cx, &entry.id);
        drop(held);
        return Ok(());
    }
    if let Some(pool) = suspended(cx, entry) {
        tracing::warn!(
            id = %entry.id, data = %entry.data.display(),
            "pool \"{pool}\" is suspended: what an unfinished {} left there stays for now", kind(&entry.id)
        );
        return Ok(());
    }
    let _alone = match alone::nobody_in(&entry.alone_in) {
        Ok(Some(held)) => held,
        Ok(None) => {
            tracing::warn!(
                id = %entry.id, data = %entry.data.display(),
                "another restore works where an unfinished one left something: that stays for now"
            );
            return Ok(());
        }
        Err(error) => {
            tracing::warn!(
                id = %entry.id, data = %entry.data.display(), error = %error.chain(),
                "can't tell whether another restore works where an unfinished one left something: that stays for now"
            );
            return Ok(());
        }
    };
    match whose_now(cx, entry)? {
        Whose::Unseen(why) => {
            tracing::warn!(
                id = %entry.id, data = %entry.data.display(), journal = %path.display(),
                "what an unfinished {} left can't be seen: {why}. It stays for now, and no server should be started \
                 on it. If it is gone for good, remove the journal",
                kind(&entry.id)
            );
            return Ok(());
        }
        Whose::TakenOver => {
            tracing::warn!(
                id = %entry.id, data = %entry.data.display(),
                "another restore has continued with what an unfinished one left: it belongs to that one now"
            );
            destroy_datasets(cx, &received_only(entry))?;
            return leave(path, cx, entry, held);
        }
        Whose::Ended => {
            tracing::warn!(
                id = %entry.id, data = %entry.data.display(),
                "this is the journal of a restore that has ended: did state_dir come back from a copy? What the restore made stays"
            );
            return forget_restore(path, cx, entry, held);
        }
        Whose::Configured(cluster) => {
            tracing::warn!(
                id = %entry.id, data = %entry.data.display(), journal = %path.display(),
                "an unfinished restore may be cluster \"{cluster}\" of the configuration by now: it stays for now. \
                 If it is, remove the journal; if nobody needs it, remove what the journal names"
            );
            return Ok(());
        }
        Whose::Theirs => {
            tracing::warn!(
                id = %entry.id, data = %entry.data.display(),
                "an unfinished restore is a cluster of its own by now: it stays, and isn't Lockstep's any more"
            );
            destroy_datasets(cx, &received_only(entry))?;
            return leave(path, cx, entry, held);
        }
        Whose::Unknown(error) => {
            tracing::warn!(
                id = %entry.id, data = %entry.data.display(), error = %error.chain(),
                journal = %path.display(),
                "an unfinished restore may be a cluster of its own by now, and its pg_control can't be read: \
                 it stays for now. Load its key, mount it; or, if nobody needs it, remove it and its journal"
            );
            return Ok(());
        }
        Whose::Ours => {}
    }
    let entry = &gone_on::still_there(cx, entry)?;
    if gone_on::is_kept(entry) {
        gone_on::keep(cx, entry)?;
        tracing::warn!(id = %entry.id, "a restore was cut off. {}", gone_on::words(cx, entry));
        return forget(path, cx, entry, held);
    }
    tracing::warn!(
        id = %entry.id,
        "removing what an unfinished {} left: {}",
        kind(&entry.id),
        left(entry)
    );
    undo(cx, entry)?;
    // A clone's record is written just before its journal entry is removed.
    clone::forget(cx, &entry.id)?;
    forget(path, cx, entry, held)
}

/// Returns the suspended pool on which a restore made something: that can't be looked at until the pool is cleared.
pub(crate) fn suspended(cx: &Context, entry: &RestoreJournal) -> Option<String> {
    let folders = entry.alone_in.iter().chain(&entry.places).chain(&entry.own);
    let folders = folders.chain(&entry.filled);
    let mut folders = folders.chain(&entry.mounted).chain([&entry.data]);
    let datasets = || entry.datasets.iter().chain(&entry.data_on);
    let dataset = || datasets().find(|dataset| cx.zfs.answers(dataset).is_err());
    let folder = folders.find_map(|folder| cx.zfs.suspended_at(folder));
    folder.map(|it| it.pool).or_else(|| dataset().map(|it| it.pool().to_owned()))
}

/// Removes lock files of killed commands that have no journal: for a clone's name, or a place for datasets.
fn remove_locks(cx: &Context) -> Result<()> {
    let folder = cx.state.path("restores");
    for entry in std::fs::read_dir(&folder).map_err(Error::io("list", &folder))? {
        let path = entry.map_err(Error::io("list", &folder))?.path();
        let is_lock = path.extension().is_some_and(|extension| extension == "lock");
        if !is_lock || path.with_extension("json").exists() || Lock::is_held(&path)? {
            continue;
        }
        // While the lock is held: the next process must not find another file than one that waits for it.
        if let Ok(_held) = Lock::take(&path, "clean-up") {
            files::remove_file(&path)?;
        }
    }
    Ok(())
}

fn forget(path: &Path, cx: &Context, entry: &RestoreJournal, held: Lock) -> Result<()> {
    files::remove_file(path)?;
    remove_lock(cx, &entry.id);
    drop(held);
    Ok(())
}

/// Forgets a restore whose cluster stays.
fn forget_restore(path: &Path, cx: &Context, entry: &RestoreJournal, held: Lock) -> Result<()> {
    files::remove_tree(&cx.state.path("staging").join(&entry.id))?;
    entry.places_of_others.iter().try_for_each(|path| remove_empty(path))?;
    forget(path, cx, entry, held)
}

/// Forgets a restore whose cluster stays, once it is recorded there that it has ended: without that, what it made
/// would be taken for strays.
fn leave(path: &Path, cx: &Context, entry: &RestoreJournal, held: Lock) -> Result<()> {
    match say_ended(cx, entry) {
        Err(error) if !matches!(error, Error::Interrupted { .. }) => {
            tracing::warn!(id = %entry.id, error = %error.chain(), "its journal stays for now");
            Ok(())
        }
        said => said.and_then(|()| forget_restore(path, cx, entry, held)),
    }
}

/// Whether a later restore has overwritten this one's marker with its own: a restore with another state_dir, which
/// doesn't know this journal. One from snapshots continues with nothing: DIR was empty.
fn is_taken_over(entry: &RestoreJournal) -> bool {
    let mut markers = entry.alone_in.iter().filter_map(|folder| Marker::read(folder));
    // Until it wrote its own, there was that of the restore before it.
    let known = ["", &entry.over, &entry.id];
    markers.any(|marker| !marker.from_snapshots && !known.contains(&marker.restore.as_str()))
}

/// Returns the same entry with only those datasets that no other restore continues with.
fn received_only(entry: &RestoreJournal) -> RestoreJournal {
    let mut entry = entry.clone();
    entry.datasets.retain(is_receiving);
    entry
}

/// Whether it has the name of a dataset that is being received.
pub(super) fn is_receiving(dataset: &DatasetName) -> bool {
    dataset.as_str().contains("lockstep-receiving-")
}

/// Returns the datasets that [`remove`] would destroy, without changing anything.
///
/// # Errors
/// When a journal can't be read, or ZFS fails.
pub fn to_be_undone(cx: &Context) -> Result<BTreeSet<DatasetName>> {
    let mut all = BTreeSet::new();
    for (_, entry) in journal::read_all::<RestoreJournal>(&cx.state.path("restores"))? {
        let lock = lock_path(cx, &entry.id);
        // Only looks: a restore that begins at this moment gets them.
        let mut locks = entry.alone_in.iter().filter(|folder| folder.is_dir()).chain([&lock]);
        if suspended(cx, &entry).is_some()
            || locks.any(|lock| Lock::is_held(lock).unwrap_or(true))
            || !matches!(whose_now(cx, &entry)?, Whose::Ours)
        {
            continue;
        }
        all.extend(gone_on::without_kept(&gone_on::still_there(cx, &entry)?).datasets);
    }
    Ok(all)
}

/// Returns which command had this id.
fn kind(id: &str) -> &'static str {
    match id.split_once('-') {
        Some(("clone", _)) => "clone",
        Some(("view", _)) => "look into a set's snapshots",
        _ => "restore",
    }
}

/// Lists what is removed, for people: datasets and folders, without those inside another.
fn left(entry: &RestoreJournal) -> String {
    let folders = entry.places.iter().filter(goes(entry)).chain(own_folders(entry));
    let mut folders: Vec<&Path> = folders.map(PathBuf::as_path).collect();
    folders.retain(|path| path.symlink_metadata().is_ok());
    let all = folders.clone();
    folders.retain(|path| !all.iter().any(|outer| outer != path && path.starts_with(outer)));
    folders.sort();
    folders.dedup();
    let datasets = entry.datasets.iter().filter(|name| !is_receiving(name));
    let datasets: Vec<_> = datasets.map(|name| format!("dataset {name}")).collect();
    let folders = folders.iter().map(|path| format!("\"{}\"", path.display()));
    let all: Vec<_> = datasets.into_iter().chain(folders).collect();
    if all.is_empty() { "nothing".into() } else { all.join(", ") }
}

/// Records on the datasets of a restore and in its folder that it has ended, because the journal may come back with
/// an older copy of state_dir. That takes such a copy, so the restore is no worse if this can't be recorded.
/// Returns whether it is recorded.
pub(super) fn mark_ended(cx: &Context, entry: &RestoreJournal) -> bool {
    let marked = mark_folders_ended(entry)
        .and_then(|()| cx.zfs.set(ENDED, &entry.id, &gone_on::staying(entry)));
    if let Err(error) = &marked {
        tracing::warn!(restore = %entry.id, error = %error.chain(), "can't record there that it has ended");
    }
    marked.is_ok()
}

/// Records that a restore has ended wherever it made something. What is another's by now, or gone, isn't touched.
pub(super) fn say_ended(cx: &Context, entry: &RestoreJournal) -> Result<()> {
    mark_folders_ended(entry)?;
    let mut ours = Vec::new();
    for dataset in entry.datasets.iter().filter(|name| !is_receiving(name)) {
        if others::has_made(cx, entry, dataset)? {
            ours.push(dataset);
        }
    }
    cx.zfs.set(ENDED, &entry.id, &ours)
}

/// Records it in its folders, if the markers are this restore's.
fn mark_folders_ended(entry: &RestoreJournal) -> Result<()> {
    for folder in &entry.alone_in {
        if let Some(own) = Marker::read(folder).filter(|marker| marker.restore == entry.id) {
            Marker { ended: true, ..own }.write(folder)?;
        }
    }
    Ok(())
}

/// Whether a restore or a clone's creation has ended, according to what it recorded where it made something.
///
/// # Errors
/// When ZFS fails.
pub(crate) fn has_ended(cx: &Context, entry: &RestoreJournal) -> Result<bool> {
    let mut markers = entry.alone_in.iter().filter_map(|folder| Marker::read(folder));
    if markers.any(|marker| marker.ended && marker.restore == entry.id) {
        return Ok(true);
    }
    for dataset in &entry.datasets {
        if cx.zfs.carries(dataset, ENDED, &entry.id)? == Some(true) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whose the remains of a killed restore are.
#[derive(Debug)]
pub(crate) enum Whose {
    /// Lockstep's: it is removed, or put in order for `--delta`.
    Ours,
    /// It can't be seen now, for this reason.
    Unseen(String),
    /// Another restore's, which has continued with it.
    TakenOver,
    /// The restore wasn't killed: it has ended.
    Ended,
    /// It may be this cluster of the configuration.
    Configured(String),
    /// Its recovery had ended and its links and settings were right: people may have written to it.
    Theirs,
    /// Like `Theirs`, but its present state can't be determined.
    Unknown(Error),
}

/// Like [`whose`], but also considers a running server, the configuration, and what can be seen.
///
/// # Errors
/// When ZFS fails.
pub(crate) fn whose_now(cx: &Context, entry: &RestoreJournal) -> Result<Whose> {
    if let Some(why) = seen::pools_away(cx, entry)? {
        return Ok(Whose::Unseen(why));
    }
    if is_taken_over(entry) {
        return Ok(Whose::TakenOver);
    }
    if has_ended(cx, entry)? {
        return Ok(Whose::Ended);
    }
    let found = whose(entry, |dataset| others::has_made(cx, entry, dataset))?;
    if !matches!(found, Whose::Ours) || entry.id.starts_with("clone-") {
        return Ok(found);
    }
    let server = match instance::postmaster(&entry.data) {
        Ok(server) => server.map(u32::cast_signed),
        Err(error) => return Ok(Whose::Unknown(error)),
    };
    Ok(match server.filter(|pid| server::runs_in(*pid, &entry.data)) {
        Some(pid) if is_own(pid) => Whose::Ours,
        Some(_) => Whose::Theirs,
        None => match configured(cx, entry) {
            Some(cluster) => Whose::Configured(cluster),
            None => whose_folders(cx, entry)?,
        },
    })
}

/// Looks at what nobody's server runs in.
fn whose_folders(cx: &Context, entry: &RestoreJournal) -> Result<Whose> {
    // What is destroyed doesn't have to be mounted.
    if gone_on::may_be_kept(entry)
        && let Some(why) = seen::not_mounted(cx, entry)?
    {
        return Ok(Whose::Unseen(why));
    }
    Ok(if others::have_made_something(cx, entry)? { Whose::Theirs } else { Whose::Ours })
}

/// Whether Lockstep has started this server for a recovery: such a server got settings on its command line that
/// nobody else would use.
fn is_own(pid: i32) -> bool {
    let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    // Empty: it has just ended.
    command.is_empty() || command.split(|byte| *byte == 0).any(|word| word == b"lc_messages=C")
}

/// Returns the cluster of the configuration whose data directory this is, unless it isn't even recovered.
fn configured(cx: &Context, entry: &RestoreJournal) -> Option<String> {
    let is_there = |name: &str| entry.data.join(name).exists();
    if !control::is_in_place(&entry.data) || BEFORE_RECOVERY.iter().any(|name| is_there(name)) {
        return None;
    }
    let data = std::fs::canonicalize(&entry.data).ok()?;
    let is_it = |path: &Path| {
        cx.zfs.suspended_at(path).is_none()
            && std::fs::canonicalize(path).is_ok_and(|path| path == data)
    };
    let mut clusters = cx.clusters.iter();
    clusters.find(|(_, cluster)| is_it(&cluster.data_directory)).map(|(name, _)| name.clone())
}

/// Files in a data directory that hasn't begun recovery; the latter stays until recovery ends.
const BEFORE_RECOVERY: [&str; 2] = ["backup_label", "recovery.signal"];

/// A clone that nobody was told about is thrown away, and so is a server that was still in its namespace: its links
/// may lead to the original's tablespaces.
fn whose(entry: &RestoreJournal, is_its: impl Fn(&DatasetName) -> Result<bool>) -> Result<Whose> {
    if !entry.started || entry.id.starts_with("clone-") {
        return Ok(Whose::Ours);
    }
    // It hasn't even begun recovery: what pg_control says is the snapshot's state.
    if BEFORE_RECOVERY.iter().any(|name| entry.data.join(name).exists()) {
        return Ok(Whose::Ours);
    }
    let error = match instance::read_control(&entry.data) {
        Ok(_) => return Ok(Whose::Theirs),
        Err(error) => error,
    };
    // Somebody may have removed everything.
    let mut is_there = entry.datasets.is_empty() && entry.data.symlink_metadata().is_ok();
    for dataset in &entry.datasets {
        is_there = is_there || is_its(dataset)?;
    }
    Ok(if is_there { Whose::Unknown(error) } else { Whose::Ours })
}

/// Describes what keeps its datasets busy, as far as can be seen, for people: processes of other mount namespaces.
pub(super) fn held_by(entry: &RestoreJournal) -> String {
    match &left::with_mounted(&entry.datasets)[..] {
        [] => String::new(),
        all => format!(
            ": mounted in another mount namespace, by {}, which restore_command may have left running",
            left::named(all)
        ),
    }
}

/// Stops the server, destroys the clones, removes the folders.
///
/// # Errors
/// When one of them stays.
pub fn undo(cx: &Context, entry: &RestoreJournal) -> Result<()> {
    stop(cx, entry)?;
    if let Err(error) = destroy_datasets(cx, entry) {
        hold_what_stays(cx, entry)?;
        return Err(error);
    }
    remove_folders(entry)
}

/// Stops the server in its data directory, if that is still this restore's.
///
/// # Errors
/// When it doesn't stop, or ZFS fails.
pub fn stop(cx: &Context, entry: &RestoreJournal) -> Result<()> {
    match others::has_data(cx, entry)? {
        true => server::stop(&entry.data, server::Stop::Immediate),
        false => Ok(()),
    }
}

/// Takes pg_control's name away if the data directory's dataset couldn't be destroyed: its links may lead to the
/// original's tablespaces.
fn hold_what_stays(cx: &Context, entry: &RestoreJournal) -> Result<()> {
    let Some(dataset) = &entry.data_on else { return Ok(()) };
    if others::has_data(cx, entry)? && others::has_made(cx, entry, dataset)? {
        control::hold(&entry.data)?;
    }
    Ok(())
}

/// Destroys the clones, the last made first. What doesn't carry this restore's mark is somebody else's, and stays.
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

/// A snapshot or dataset that somebody else made on or below those of a restore: while it exists, no `zfs destroy`
/// removes these.
#[derive(Debug)]
pub struct InTheWay {
    /// Its name.
    pub name: String,
    /// What it is.
    pub is: String,
    /// The command that removes it, if nobody needs it.
    pub way_out: String,
}

impl InTheWay {
    /// Describes a snapshot that isn't the restore's. If a `zfs promote` of the restore's dataset moved the original's
    /// snapshots there, the clone of the newest of them is the original itself, and they all go back with it.
    fn snapshot(snapshot: &SnapshotName, standing: Option<&Standing>) -> Self {
        let name = snapshot.to_string();
        let clone = standing.and_then(|standing| Some((standing, standing.goes_with.first()?)));
        match clone {
            Some((standing, clone)) => Self {
                name,
                is: match standing.clones.contains(clone) {
                    true => {
                        format!(
                            "is the origin of \"{clone}\", and `zfs promote` moves it back there"
                        )
                    }
                    false => format!(
                        "is older than the origin of \"{clone}\", and `zfs promote` moves both there"
                    ),
                },
                way_out: format!("zfs promote {}", quote(clone.as_str())),
            },
            None => Self {
                is: "isn't Lockstep's".into(),
                way_out: format!("zfs destroy {}", quote(&name)),
                name,
            },
        }
    }

    /// Describes all of them, for people.
    #[must_use]
    pub fn of_all(all: &[Self]) -> String {
        let words: Vec<_> = all.iter().map(|it| format!("\"{}\" {}", it.name, it.is)).collect();
        words.join("; ")
    }
}

/// Returns what keeps a restore's datasets from being destroyed.
///
/// # Errors
/// When ZFS fails.
pub fn in_the_way(cx: &Context, entry: &RestoreJournal) -> Result<Vec<InTheWay>> {
    let mut found = Vec::new();
    for dataset in &entry.datasets {
        if !cx.zfs.exists(dataset.as_str())? {
            continue;
        }
        let mut foreign = cx.zfs.snapshots_of(dataset)?;
        foreign.retain(|snapshot| !entry.received.contains(&snapshot.to_string()));
        let standing = cx.zfs.standing(&foreign)?;
        for snapshot in foreign {
            found.push(InTheWay::snapshot(&snapshot, standing.get(&snapshot)));
        }
        let below = cx.zfs.descendants(dataset)?.into_iter().filter(|d| d != dataset);
        let foreign = below.filter(|below| !entry.datasets.contains(below));
        found.extend(foreign.map(|below| InTheWay {
            name: below.to_string(),
            is: format!("is below \"{dataset}\""),
            way_out: format!("zfs destroy {}", quote(below.as_str())),
        }));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::zfs::Guid;

    /// Destroying it would destroy its clones too: `zfs destroy` itself then proposes -R.
    #[test]
    fn what_the_original_stands_on_is_promoted_back_and_not_destroyed() {
        let [clone, original] =
            ["t/clone", "t/pg/data"].map(|name| DatasetName::new(name).unwrap());
        let snapshot = clone.snapshot("lockstep-20261101T000000Z-aaaa");
        let of = |clones: &[DatasetName], goes_with: &[DatasetName]| {
            let standing = Standing {
                guid: Guid::new(7),
                used: 0,
                holds: 1,
                owner: "o".into(),
                clones: clones.to_vec(),
                goes_with: goes_with.into(),
            };
            InTheWay::snapshot(&snapshot, Some(&standing))
        };
        let original = [original];
        for standing in [of(&original, &original), of(&[], &original)] {
            assert_eq!(standing.way_out, "zfs promote t/pg/data", "{}", standing.is);
        }
        assert_eq!(of(&[], &[]).way_out, format!("zfs destroy {snapshot}"));
    }

    fn entry(id: &str, data: PathBuf, started: bool) -> RestoreJournal {
        RestoreJournal {
            id: id.into(),
            datasets: Vec::new(),
            data,
            places: Vec::new(),
            own: Vec::new(),
            places_of_others: Vec::new(),
            started,
            ..Default::default()
        }
    }

    #[test]
    fn what_can_t_be_looked_at_is_not_taken_for_nobody_s() {
        let scratch = tempfile::tempdir().unwrap();
        let data = scratch.path().join("whose");
        let asked = |entry: &RestoreJournal, there: bool| whose(entry, |_| Ok(there)).unwrap();
        let gone = entry("restore-1", data.clone(), true);
        assert!(matches!(asked(&gone, false), Whose::Ours), "all of it is gone");
        // A dataset whose key isn't loaded: its mount point is empty, or doesn't exist.
        let mut locked = gone.clone();
        locked.datasets.push(DatasetName::new("p/data").unwrap());
        assert!(matches!(asked(&locked, true), Whose::Unknown(_)));
        assert!(matches!(asked(&locked, false), Whose::Ours));
        std::fs::create_dir_all(&data).unwrap();
        assert!(
            matches!(asked(&gone, false), Whose::Unknown(_)),
            "it is there, without pg_control"
        );
        assert!(matches!(asked(&entry("restore-1", data.clone(), false), true), Whose::Ours));
        assert!(matches!(asked(&entry("clone-dev", data.clone(), true), true), Whose::Ours));
        // A frozen "in production" doesn't count before recovery has begun.
        std::fs::write(data.join("backup_label"), b"").unwrap();
        assert!(matches!(asked(&gone, true), Whose::Ours));
    }

    #[test]
    fn what_is_removed_is_named_once() {
        let scratch = tempfile::tempdir().unwrap();
        let folder = scratch.path().join("left");
        std::fs::create_dir_all(folder.join("log")).unwrap();
        let mut entry = entry("restore-1", folder.join("data"), false);
        assert_eq!(left(&entry), "nothing");
        entry.datasets.push(DatasetName::new("p/data").unwrap());
        entry.datasets.push(DatasetName::new("p/lockstep-receiving-restore-1-0").unwrap());
        entry.places = vec![folder.join("not there"), folder.clone()];
        entry.own = vec![folder.join("log")];
        assert_eq!(left(&entry), format!("dataset p/data, \"{}\"", folder.display()));
        // It has lost its marker, so what is in DIR is somebody else's.
        std::fs::write(folder.join("log/theirs"), b"").unwrap();
        entry.datasets.clear();
        entry.places.clear();
        entry.alone_in = vec![folder.clone()];
        entry.filled = vec![folder.join("data")];
        assert_eq!(left(&entry), "nothing");
        assert_eq!(kind("view-ab12"), "look into a set's snapshots");
        assert_eq!(kind("restore-ab12"), "restore");
    }
}
