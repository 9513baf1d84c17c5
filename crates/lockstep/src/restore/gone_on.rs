//! What a restore had received from a repository when it was cut off. It stays, and the same command with `--delta`
//! continues with it.
//!
//! What could go wrong: hours of receiving are thrown away because a connection was lost, a disk was full or a store
//! wasn't reachable, and the outage starts over. Or what stays is mistaken for a cluster: so pg_control keeps its
//! other name, or gets it again. Complete datasets stay. A half-received one is destroyed, because nothing can be
//! received on top of it.

use std::path::{Path, PathBuf};

use super::folders::remove_empty;
use super::unfinished::{MADE_BY, destroy_datasets, is_receiving, say_ended, stop};
use super::{control, marker, others};
use crate::context::Context;
use crate::error::Result;
use crate::files;
use crate::process::quote;
use crate::set::journal::RestoreJournal;
use crate::volume::zfs::DatasetName;

/// Whether something arrived that `--delta` continues with.
#[must_use]
pub fn is_kept(entry: &RestoreJournal) -> bool {
    let has_datasets = entry.is_over_older || !entry.kept.is_empty();
    has_datasets || (entry.keeps_files && is_begun(&entry.data))
}

/// Whether something may have arrived that `--delta` continues with, once it can be seen.
pub(super) fn may_be_kept(entry: &RestoreJournal) -> bool {
    entry.keeps_files || is_kept(entry)
}

/// Whether a later restore recognizes a folder as a data directory (guard/older.rs).
fn is_begun(data: &Path) -> bool {
    data.join("PG_VERSION").exists() || data.join("global").is_dir()
}

/// Returns the datasets under their own names that stay after the restore has ended, and the one that was made above
/// them.
pub(super) fn staying(entry: &RestoreJournal) -> Vec<&DatasetName> {
    let is_kept = |name: &DatasetName| {
        let mut kept = entry.kept.iter();
        kept.any(|kept| kept == name || kept.parent().as_ref() == Some(name))
    };
    let own = entry.datasets.iter().filter(|name| !is_receiving(name));
    own.filter(|name| entry.kept.is_empty() || is_kept(name)).collect()
}

/// Returns the same entry with only what doesn't stay.
#[must_use]
pub fn without_kept(entry: &RestoreJournal) -> RestoreJournal {
    if !is_kept(entry) {
        return entry.clone();
    }
    // Of what it made next to an older restore, nothing is complete.
    let stays = match entry.is_over_older && entry.kept.is_empty() {
        true => Vec::new(),
        false => staying(entry),
    };
    let goes = entry.datasets.iter().filter(|name| !stays.contains(name));
    RestoreJournal {
        datasets: goes.cloned().collect(),
        places: Vec::new(),
        own: Vec::new(),
        filled: Vec::new(),
        ..entry.clone()
    }
}

/// Returns the same entry with only what is still there of what `--delta` continues with, and without what has become
/// somebody else's: who gives up on the restore destroys its datasets, and may make others of the same names.
///
/// # Errors
/// When ZFS fails.
pub fn still_there(cx: &Context, entry: &RestoreJournal) -> Result<RestoreJournal> {
    let mut entry = entry.clone();
    for dataset in std::mem::take(&mut entry.kept) {
        if others::has_made(cx, &entry, &dataset)? {
            entry.kept.push(dataset);
        }
    }
    if let Some(dataset) = entry.data_on.as_ref().filter(|_| entry.is_over_older) {
        entry.is_over_older = others::has_dataset(cx, &entry, dataset)?;
    }
    for dataset in std::mem::take(&mut entry.datasets) {
        // A half-received one can't carry a mark yet; its name has the restore's id.
        if is_receiving(&dataset) || cx.zfs.carries(&dataset, MADE_BY, &entry.id)? != Some(false) {
            entry.datasets.push(dataset);
        }
    }
    Ok(entry)
}

/// Puts what stays in order: no server runs or starts on it, what is half received is removed, and its marker says
/// that this restore has ended. Then only the journal has to be removed.
///
/// # Errors
/// When a server doesn't stop, a half-received dataset can't be destroyed, pg_control can't be renamed, or it can't be
/// recorded there that it has ended.
pub(super) fn keep(cx: &Context, entry: &RestoreJournal) -> Result<()> {
    stop(cx, entry)?;
    if others::has_data(cx, entry)? {
        control::hold(&entry.data)?;
    }
    let goes = without_kept(entry);
    destroy_datasets(cx, &goes)?;
    files::remove_tree(&cx.state.path("staging").join(&entry.id))?;
    entry.places_of_others.iter().try_for_each(|path| remove_empty(path))?;
    let mut stays = entry.clone();
    stays.datasets.retain(|dataset| !goes.datasets.contains(dataset));
    say_ended(cx, &stays)
}

/// Returns DIR.
pub(super) fn directory(entry: &RestoreJournal) -> Option<&Path> {
    entry.alone_in.first().map(PathBuf::as_path)
}

/// Says that it stays, how to continue, and how to remove it; the last isn't said when it continues an older restore.
#[must_use]
pub fn words(cx: &Context, entry: &RestoreJournal) -> String {
    // Whatever else is below them would be destroyed too.
    let is_alone = |top: &&DatasetName| {
        let below = cx.zfs.descendants(top);
        below.is_ok_and(|all| all.iter().all(|it| entry.datasets.contains(it)))
    };
    words_if(entry, staying(entry).iter().all(is_alone))
}

/// `are_alone`: nothing that isn't the restore's is below its datasets.
fn words_if(entry: &RestoreJournal, are_alone: bool) -> String {
    let directory = directory(entry).unwrap_or(&entry.data);
    let stays = format!(
        "What was received stays in \"{}\", and no server starts on it: the same command with --delta continues with it",
        directory.display()
    );
    if entry.is_over_older
        || !are_alone
        || !entry.own.contains(&marker::path(directory))
        || !is_own(entry, directory)
        || !others::are_away(entry)
    {
        return stays;
    }
    let all = staying(entry);
    let is_below = |name: &DatasetName| name.parent().is_some_and(|above| all.contains(&&above));
    let datasets = all.iter().filter(|name| !is_below(name));
    let datasets = datasets.map(|name| format!("zfs destroy -r {}", quote(name.as_str())));
    let folder = format!("rm -r {}", quote(&directory.display().to_string()));
    let commands: Vec<_> = datasets.chain([folder]).collect();
    // They may have become another cluster's since.
    let tablespaces = entry.alone_in.iter().skip(1).map(|it| format!("\"{}\"", it.display()));
    let tablespaces: Vec<_> = tablespaces.collect();
    let and = match tablespaces.is_empty() {
        true => String::new(),
        false => format!("; and empty {}, if nothing else uses it", tablespaces.join(", ")),
    };
    format!("{stays}. To remove it: `{}`{and}", commands.join("; "))
}

/// Whether everything in DIR is this restore's: there was no data directory in it before.
fn is_own(entry: &RestoreJournal, directory: &Path) -> bool {
    let mut made = entry.places.iter().chain(&entry.own).chain(&entry.filled);
    made.any(|path| *path == directory.join("data"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(texts: &[&str]) -> Vec<DatasetName> {
        texts.iter().map(|text| DatasetName::new(text).unwrap()).collect()
    }

    #[test]
    fn what_is_whole_stays_with_what_is_above_it() {
        let receiving = "p/r/lockstep-receiving-restore-1-0";
        let mut entry = RestoreJournal {
            datasets: names(&["p/r", "p/r/data", "p/r/wal", receiving]),
            own: vec!["/r/.lockstep-restore".into(), "/r/log".into()],
            places: vec!["/r/data".into()],
            alone_in: vec!["/r".into()],
            ..Default::default()
        };
        assert!(!is_kept(&entry));
        assert_eq!(without_kept(&entry), entry);
        entry.kept = names(&["p/r/wal"]);
        assert!(is_kept(&entry));
        let goes = without_kept(&entry);
        assert_eq!(goes.datasets, names(&["p/r/data", receiving]));
        assert!(goes.own.is_empty());
        assert!(words_if(&entry, true).ends_with("To remove it: `zfs destroy -r p/r; rm -r /r`"));
        // Somebody else has a dataset below.
        assert!(words_if(&entry, false).ends_with("continues with it"));
        // The dataset above existed before: it isn't the restore's.
        entry.datasets.remove(0);
        assert!(words_if(&entry, true).ends_with("`zfs destroy -r p/r/wal; rm -r /r`"));
        // Somebody's data directory was there before, without a marker.
        let theirs = RestoreJournal { places: Vec::new(), ..entry.clone() };
        assert!(words_if(&theirs, true).ends_with("continues with it"));
        // An older restore was there before.
        entry.own.clear();
        assert!(words_if(&entry, true).ends_with("continues with it"));
        // It stays, and what was made next to it is incomplete.
        entry = RestoreJournal { is_over_older: true, kept: Vec::new(), ..entry };
        assert!(is_kept(&entry));
        assert_eq!(without_kept(&entry).datasets, entry.datasets);
        assert!(words_if(&entry, true).ends_with("continues with it"));
    }

    #[test]
    fn files_stay_once_they_are_known_as_a_data_directory() {
        let scratch = tempfile::tempdir().unwrap();
        let data = scratch.path().join("data");
        let entry = RestoreJournal { keeps_files: true, data: data.clone(), ..Default::default() };
        assert!(!is_kept(&entry));
        std::fs::create_dir_all(data.join("global")).unwrap();
        assert!(is_kept(&entry));
        assert!(!is_kept(&RestoreJournal { keeps_files: false, ..entry }));
    }
}
