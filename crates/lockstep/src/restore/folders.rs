//! The folders and links of a killed restore or a clone: which of them go, and in which order.
//!
//! What could go wrong: somebody has made something in one of them (`others.rs`), or the removal is killed half way.
//! So the marker goes last in DIR: until then the next command knows that the rest is the restore's.

use std::path::{Path, PathBuf};

use super::{gone_on, marker, others};
use crate::error::{Error, Result};
use crate::files;
use crate::set::journal::RestoreJournal;

/// Removes the folders, which are empty once the clones are gone. What others have made there stays.
///
/// # Errors
/// When one stays.
pub fn remove_folders(entry: &RestoreJournal) -> Result<()> {
    let (markers, own): (Vec<_>, Vec<_>) =
        own_folders(entry).partition(|path| path.ends_with(marker::NAME));
    let places = entry.filled.iter().chain(&entry.places).chain(&entry.places_of_others);
    let holds_directory =
        |path: &&PathBuf| gone_on::directory(entry).is_some_and(|it| it.starts_with(path));
    let (around, places): (Vec<_>, Vec<_>) = places.filter(goes(entry)).partition(holds_directory);
    own.into_iter().try_for_each(|path| files::remove_tree(path))?;
    places.into_iter().try_for_each(|path| remove_place(entry, path))?;
    // The last thing in DIR: without it, the next command would leave the rest there.
    markers.into_iter().try_for_each(|path| files::remove_file(path))?;
    around.into_iter().try_for_each(|path| remove_place(entry, path))
}

/// Returns what a restore makes in DIR for itself.
pub(crate) fn own_in(directory: &Path) -> Vec<PathBuf> {
    ["log", "run", marker::NAME].map(|name| directory.join(name)).to_vec()
}

/// Returns the folders that go with what is in them. In DIR they do only if it is the restore's.
pub(super) fn own_folders(entry: &RestoreJournal) -> impl Iterator<Item = &PathBuf> {
    let (are_away, directory) = (others::are_away(entry), gone_on::directory(entry));
    let is_own =
        move |path: &&PathBuf| are_away || directory.is_none_or(|it| !path.starts_with(it));
    // A restore makes none of them a link.
    let all = entry.own.iter().chain(others::written(entry)).filter(|path| !path.is_symlink());
    all.filter(is_own)
}

/// Returns which links and empty folders go: none in DIR if it is somebody else's by now.
pub(super) fn goes(entry: &RestoreJournal) -> impl Fn(&&PathBuf) -> bool {
    let is_theirs = others::whose(entry) == others::Whose::Theirs;
    let theirs = gone_on::directory(entry).filter(|_| is_theirs);
    move |path| theirs.is_none_or(|theirs| !path.starts_with(theirs))
}

/// Removes a link that the restore made, or an empty folder; a folder that somebody put something into stays.
fn remove_place(entry: &RestoreJournal, path: &Path) -> Result<()> {
    match path.is_symlink() {
        true if others::are_away(entry) && others::is_link_of(entry, path) => {
            files::remove_file(path)
        }
        true => Ok(()),
        false => remove_empty(path),
    }
}

/// Removes an empty folder; one that somebody put something into stays, and so does what isn't a folder.
pub(super) fn remove_empty(path: &Path) -> Result<()> {
    use std::io::ErrorKind;
    match std::fs::symlink_metadata(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        Err(e) => Err(Error::io("look at", path)(e)),
        Ok(found) if found.is_dir() => match std::fs::remove_dir(path) {
            Err(e)
                if matches!(e.kind(), ErrorKind::DirectoryNotEmpty | ErrorKind::ResourceBusy) =>
            {
                Ok(())
            }
            other => other.map_err(Error::io("remove", path)),
        },
        Ok(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Killed before its marker was there, or the marker is gone, with what somebody has made in DIR by then.
    #[test]
    fn nothing_is_removed_from_a_folder_that_is_somebody_else_s() {
        use std::os::unix::fs::symlink;
        let scratch = tempfile::tempdir().unwrap();
        let folder = scratch.path().join("given up");
        let made = |name: &str| {
            std::fs::create_dir_all(folder.join(name)).unwrap();
            folder.join(name)
        };
        let entry = RestoreJournal {
            id: "restore-1".into(),
            is_marked: true,
            alone_in: vec![folder.clone()],
            own: vec![made("log"), made("run"), marker::path(&folder)],
            places: vec![folder.join("data"), made("tablespaces"), folder.clone()],
            leads: vec![made("volumes/data/15")],
            ..Default::default()
        };
        symlink(&entry.leads[0], folder.join("data")).unwrap();
        std::fs::write(folder.join("log/server.log"), b"theirs").unwrap();
        remove_folders(&entry).unwrap();
        for name in ["data", "log/server.log", "run", "tablespaces", "volumes/data/15"] {
            assert!(folder.join(name).symlink_metadata().is_ok(), "{name}");
        }
        assert_eq!(
            own_folders(&entry).count() + entry.places.iter().filter(goes(&entry)).count(),
            0
        );
        let of = |id: &str| {
            let text = format!(
                r#"{{"cluster":"c","system_identifier":"7","set":"s","begun_at":"2026-01-01T00:00:00Z","restore":"{id}"}}"#
            );
            std::fs::write(marker::path(&folder), text).unwrap();
        };
        of("restore-2");
        remove_folders(&entry).unwrap();
        assert!(folder.join("data").is_symlink() && folder.join("log/server.log").exists());
        // With its own marker they are the restore's, except for a link that leads elsewhere.
        of("restore-1");
        std::fs::remove_file(folder.join("data")).unwrap();
        symlink(scratch.path(), folder.join("data")).unwrap();
        remove_folders(&entry).unwrap();
        assert!(folder.join("data").is_symlink() && !folder.join("log").exists());
        assert!(!marker::path(&folder).exists(), "it goes last, and what is left is theirs");
    }
}
