//! What others have made meanwhile of the folders of a killed restore.
//!
//! What could go wrong: a restore is killed, and somebody gives up on it, removes its folder and makes a cluster there;
//! or a folder that was meant for a tablespace becomes that of another cluster. Lockstep's next command would remove
//! what they hold, stop their server, or take pg_control its name away. So nothing in DIR is touched unless the
//! restore's marker is there, or nothing but folders. A dataset of the right name may be somebody else's too: it has to
//! carry the restore's mark, or be the very one that the restore found there. A link goes only if it leads where the
//! restore made it lead. And outside DIR nothing else goes but empty folders: a restore writes into those only once the
//! data directory is there, and then all of it stays for `--delta`.

use std::path::{Path, PathBuf};

use pgfiles::control_file::ControlFile;

use super::marker::Marker;
use super::unfinished::MADE_BY;
use super::{control, gone_on};
use crate::context::Context;
use crate::error::Result;
use crate::files;
use crate::postgres::instance;
use crate::set::journal::RestoreJournal;
use crate::volume::mounts::Mounts;
use crate::volume::zfs::DatasetName;

/// Whose DIR is by now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whose {
    /// This restore's.
    Its,
    /// That of the older restore which this one was about to change.
    Older,
    /// Somebody else's.
    Theirs,
}

/// Returns whose DIR is. If the journal names none, as for a view of a snapshot, the rest of it is this restore's.
pub(super) fn whose(entry: &RestoreJournal) -> Whose {
    let Some(directory) = gone_on::directory(entry) else { return Whose::Its };
    if directory.is_symlink() {
        return Whose::Theirs;
    }
    // An older Lockstep's restore from snapshots.
    let needs_none = !entry.is_marked && entry.received.is_empty() && entry.filled.is_empty();
    match Marker::read(directory) {
        Some(marker) if marker.restore == entry.id => Whose::Its,
        Some(marker) if !entry.over.is_empty() && marker.restore == entry.over => Whose::Older,
        None if needs_none || has_only_folders(directory) => Whose::Its,
        _ => Whose::Theirs,
    }
}

/// Whether there is nothing in it but folders; they may have been made before the marker, or outlived it.
fn has_only_folders(folder: &Path) -> bool {
    let is_one = |path: &PathBuf| {
        // A ZFS with `snapdir=visible` shows this in a dataset's root.
        path.ends_with(".zfs")
            || path.symlink_metadata().is_ok_and(|found| found.is_dir()) && has_only_folders(path)
    };
    files::list(folder).is_ok_and(|all| all.iter().all(is_one))
}

/// Whether DIR is this restore's.
pub(super) fn are_away(entry: &RestoreJournal) -> bool {
    whose(entry) == Whose::Its
}

/// Whether the files of a data directory there are of another cluster than those that the restore wrote: pg_control
/// gets its name last, and then it is the set's.
fn is_another_cluster(entry: &RestoreJournal) -> bool {
    let mut own = entry.identifiers.clone();
    if own.is_empty() {
        let marker = gone_on::directory(entry).and_then(Marker::read);
        let marker = marker.filter(|marker| marker.restore == entry.id);
        own.extend(marker.map(|marker| marker.system_identifier));
    }
    let is_strange = |found: ControlFile| !own.contains(&found.system_identifier);
    !own.is_empty()
        && control::is_in_place(&entry.data)
        && instance::read_control(&entry.data).is_ok_and(is_strange)
}

/// Whether a dataset is one that this restore has made.
///
/// # Errors
/// When ZFS fails.
pub(super) fn has_made(
    cx: &Context,
    entry: &RestoreJournal,
    dataset: &DatasetName,
) -> Result<bool> {
    Ok(cx.zfs.carries(dataset, MADE_BY, &entry.id)? == Some(true))
}

/// Whether the dataset of its data directory is still this restore's: one that it has made, or the one that was there.
///
/// # Errors
/// When ZFS fails.
pub(super) fn has_dataset(
    cx: &Context,
    entry: &RestoreJournal,
    dataset: &DatasetName,
) -> Result<bool> {
    if entry.datasets.contains(dataset) {
        return has_made(cx, entry, dataset);
    }
    if !cx.zfs.exists(dataset.as_str())? {
        return Ok(false);
    }
    match entry.data_guid {
        Some(guid) => Ok(cx.zfs.guid(dataset)? == guid),
        // An older Lockstep's: the dataset carries the mark of the restore before, or of one before that.
        None => Ok(entry.is_over_older
            && whose(entry) != Whose::Theirs
            && cx.zfs.all_carry(std::slice::from_ref(dataset), MADE_BY)?),
    }
}

/// Whether what is where its data directory was to be is this restore's: its dataset is mounted there, or, as files,
/// DIR is its, and the cluster is the set's.
///
/// # Errors
/// When the mounts can't be read, or ZFS fails.
pub(crate) fn has_data(cx: &Context, entry: &RestoreJournal) -> Result<bool> {
    let Some(dataset) = &entry.data_on else {
        return Ok(are_away(entry) && !is_another_cluster(entry));
    };
    let mounts = Mounts::read()?;
    let mount = mounts.holding(&entry.data);
    Ok(mount.is_some_and(|mount| mount.is_of(dataset.as_str())) && has_dataset(cx, entry, dataset)?)
}

/// Whether a link leads where this restore made it lead.
pub(super) fn is_link_of(entry: &RestoreJournal, path: &Path) -> bool {
    let is_in_directory = |target: &Path| {
        !entry.is_marked && gone_on::directory(entry).is_some_and(|it| target.starts_with(it))
    };
    std::fs::read_link(path)
        .is_ok_and(|target| entry.leads.contains(&target) || is_in_directory(&target))
}

/// Returns the folders in DIR that it has written files into, if it has begun with that.
pub(super) fn written(entry: &RestoreJournal) -> impl Iterator<Item = &PathBuf> {
    let directory = gone_on::directory(entry);
    let is_inside = move |path: &Path| directory.is_some_and(|it| path.starts_with(it));
    entry.filled.iter().filter(move |path| entry.keeps_files && is_inside(path))
}

/// Whether a restore of files has lost its marker, and there is something in its folders; or there is another cluster,
/// which may be in its dataset.
pub(super) fn have_made_something(cx: &Context, entry: &RestoreJournal) -> Result<bool> {
    if entry.data_on.is_some() {
        return Ok(is_another_cluster(entry) && has_data(cx, entry)?);
    }
    if whose(entry) != Whose::Theirs {
        return Ok(entry.keeps_files && is_another_cluster(entry));
    }
    // If it went over an older restore, the data directory isn't one that it made.
    let data = Some(&entry.data).filter(|_| entry.keeps_files);
    for path in written(entry).chain(data) {
        if !files::list(path)?.is_empty() {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn marker(directory: &Path, of: &str) {
        let text = format!(
            r#"{{"cluster":"main","system_identifier":"7","set":"s","begun_at":"2026-01-01T00:00:00Z","restore":"{of}"}}"#
        );
        std::fs::write(super::super::marker::path(directory), text).unwrap();
    }

    #[test]
    fn a_folder_is_its_with_its_marker_or_with_nothing_but_folders() {
        let scratch = tempfile::tempdir().unwrap();
        let directory = scratch.path().join("r");
        let entry = RestoreJournal {
            id: "restore-1".into(),
            is_marked: true,
            over: "restore-0".into(),
            alone_in: vec![directory.clone()],
            ..Default::default()
        };
        assert_eq!(whose(&RestoreJournal::default()), Whose::Its, "it has no DIR");
        assert_eq!(whose(&entry), Whose::Its, "nothing is there");
        std::fs::create_dir_all(directory.join("tablespaces/16384")).unwrap();
        assert_eq!(whose(&entry), Whose::Its);
        symlink("/srv", directory.join("tablespaces/16385")).unwrap();
        assert_eq!(whose(&entry), Whose::Theirs);
        let unmarked = RestoreJournal { is_marked: false, ..entry.clone() };
        assert_eq!(whose(&unmarked), Whose::Its, "an older version's");
        for (of, found) in [
            ("restore-1", Whose::Its),
            ("restore-0", Whose::Older),
            ("restore-2", Whose::Theirs),
            ("", Whose::Theirs),
        ] {
            marker(&directory, of);
            assert_eq!(whose(&entry), found, "{of}");
        }
        assert_eq!(whose(&unmarked), Whose::Theirs, "with another's marker");
        marker(&directory, "restore-1");
        let linked = RestoreJournal { alone_in: vec![scratch.path().join("link")], ..entry };
        symlink(&directory, scratch.path().join("link")).unwrap();
        assert_eq!(whose(&linked), Whose::Theirs, "somebody's link");
    }

    #[test]
    fn a_link_is_its_if_it_leads_where_it_was_made_to_lead() {
        let scratch = tempfile::tempdir().unwrap();
        let (directory, link) = (scratch.path().join("r"), scratch.path().join("link"));
        let entry = RestoreJournal {
            is_marked: true,
            alone_in: vec![directory.clone()],
            leads: vec![directory.join("volumes/data/15")],
            ..Default::default()
        };
        let unmarked = RestoreJournal { is_marked: false, leads: Vec::new(), ..entry.clone() };
        for (target, is_its, is_an_older_version_s) in [
            (directory.join("volumes/data/15"), true, true),
            (directory.join("volumes/data/16"), false, true),
            (scratch.path().join("mine"), false, false),
        ] {
            let _ = std::fs::remove_file(&link);
            symlink(&target, &link).unwrap();
            assert_eq!(is_link_of(&entry, &link), is_its, "{target:?}");
            assert_eq!(is_link_of(&unmarked, &link), is_an_older_version_s, "{target:?}");
        }
    }
}
