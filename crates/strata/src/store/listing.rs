//! Lists the objects of a folder.
//!
//! `object_store` leaves out whatever the system fails to look at (a damaged inode, a network file system that doesn't
//! answer, a folder that this user may read but not enter), without an error. What could go wrong: a set's manifest is
//! left out, and what the set needs counts as needed by nobody and is deleted. So the folder is walked here: what has
//! been deleted meanwhile isn't listed, and any other failure is an error that names the file. So is a link that leads
//! nowhere: the disk that somebody has put a folder on isn't mounted.
//!
//! Or a name that no object has (a line break, not UTF-8) makes every listing fail for good. It is listed in other
//! characters, so that it counts as somebody else's.

use std::ffi::OsStr;
use std::fs::{self, Metadata};
use std::io::{Error, ErrorKind, Result};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use super::Listed;
use super::half_written::place_of;

/// A folder that is still to be walked.
struct Folder {
    at: PathBuf,
    /// Its path as that of an object.
    path: String,
    /// The devices and inodes of the folders above it: a link may lead back to one of them.
    above: Vec<(u64, u64)>,
}

/// Passes the objects below `prefix` to `each`, with their paths in the folder, until `each` returns `false`. Links are
/// followed: somebody may have put a folder on another disk.
pub(super) fn list(
    folder: &Path,
    prefix: &str,
    each: &mut dyn FnMut(Listed) -> bool,
) -> Result<()> {
    let path = prefix.trim_matches('/').to_string();
    let mut left = vec![Folder { at: folder.join(&path), path, above: Vec::new() }];
    while let Some(Folder { at, path, mut above }) = left.pop() {
        let Some(itself) = looked_at(&at)?.filter(Metadata::is_dir) else { continue };
        above.push(identity(&itself));
        for named in names(&at)? {
            let (name, found) = named?;
            let Some(metadata) = looked_at(&found)? else { continue };
            let path = if path.is_empty() { name } else { format!("{path}/{name}") };
            let is_loop = metadata.is_dir() && above.contains(&identity(&metadata));
            if metadata.is_dir() && !is_loop {
                left.push(Folder { at: found, path, above: above.clone() });
            } else if is_loop || (metadata.is_file() && place_of(&path).is_none()) {
                let (size, modified) = (metadata.len(), modified(&metadata));
                if !each(Listed { path, size, modified }) {
                    return Ok(());
                }
            }
        }
    }
    Ok(())
}

/// Returns the names of the folders in `prefix`.
pub(super) fn folders(folder: &Path, prefix: &str) -> Result<Vec<String>> {
    let at = folder.join(prefix.trim_matches('/'));
    if !looked_at(&at)?.is_some_and(|metadata| metadata.is_dir()) {
        return Ok(Vec::new());
    }
    let mut all = Vec::new();
    for named in names(&at)? {
        let (name, found) = named?;
        if looked_at(&found)?.is_some_and(|metadata| metadata.is_dir()) {
            all.push(name);
        }
    }
    Ok(all)
}

/// Returns the names in a folder, and the paths that they stand for; none if it has been removed. There may be millions.
fn names(folder: &Path) -> Result<impl Iterator<Item = Result<(String, PathBuf)>>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if is_gone(&error) => None,
        entries => Some(entries.map_err(|error| about(folder, &error))?),
    };
    Ok(entries.into_iter().flatten().map(move |entry| {
        let entry = entry.map_err(|error| about(folder, &error))?;
        Ok((shown(&entry.file_name()), entry.path()))
    }))
}

/// Looks at a file or folder; `None` if it doesn't exist.
fn looked_at(path: &Path) -> Result<Option<Metadata>> {
    match fs::metadata(path) {
        Err(error) if is_gone(&error) => match leading_nowhere(path) {
            Some(link) => Err(Error::other(format!(
                "\"{}\" is a link that leads nowhere: is the disk mounted that it leads to?",
                link.display()
            ))),
            None => Ok(None),
        },
        metadata => metadata.map(Some).map_err(|error| about(path, &error)),
    }
}

/// Returns the link because of which this can't be followed: itself, or a folder on the way to it. No object's name
/// begins with a dot: editors lock files with such links (`.#NAME`).
fn leading_nowhere(path: &Path) -> Option<&Path> {
    path.ancestors().find(|at| {
        let name = at.file_name().unwrap_or_default();
        let is_dead = at.is_symlink() && (*at == path || !at.exists());
        is_dead && !name.as_encoded_bytes().starts_with(b".")
    })
}

fn is_gone(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}

/// The error, with what it is about.
fn about(path: &Path, error: &Error) -> Error {
    Error::new(error.kind(), format!("\"{}\": {error}", path.display()))
}

/// Returns the name; a name that no object has is written in other characters.
fn shown(name: &OsStr) -> String {
    match name.to_str().filter(|name| !name.chars().any(char::is_control)) {
        Some(name) => name.to_string(),
        None => name.to_string_lossy().escape_debug().to_string(),
    }
}

fn identity(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

fn modified(metadata: &Metadata) -> u64 {
    let time = metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    time.map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn all_is_listed_and_a_name_that_no_object_has_is_somebody_elses() {
        let scratch = tempfile::tempdir().unwrap();
        let (folder, disk) = (scratch.path().join("r"), scratch.path().join("disk"));
        fs::create_dir_all(folder.join("a/sets")).unwrap();
        fs::create_dir_all(&disk).unwrap();
        fs::write(disk.join("P"), "pack").unwrap();
        symlink(&disk, folder.join("a/packs")).unwrap();
        symlink("nowhere", folder.join("a/sets/.#x.json")).unwrap();
        symlink("..", folder.join("a/sets/back")).unwrap();
        let odd = OsStr::from_bytes(b"b\xff");
        for name in [OsStr::new("x.json"), OsStr::new("x.json#1"), OsStr::new("Icon\r"), odd] {
            fs::write(folder.join("a/sets").join(name), "12").unwrap();
        }
        let listed = |prefix: &str| {
            let mut found = Vec::new();
            list(&folder, prefix, &mut |listed| {
                found.push(listed.path);
                true
            })
            .unwrap();
            found.sort();
            found
        };
        let all = listed("a");
        assert_eq!(all.len(), 5, "{all:?}");
        assert!(all.contains(&"a/packs/P".to_string()) && all.contains(&"a/sets/x.json".into()));
        assert!(all.contains(&"a/sets/Icon\\r".to_string()), "{all:?}");
        assert!(all.contains(&"a/sets/back".to_string()), "a link that leads back is no folder");
        assert!(all.iter().all(|path| !path.chars().any(char::is_control)));
        assert_eq!(listed(""), all);
        assert!(listed("a/sets/x.json").is_empty() && listed("no/such").is_empty());
        let mut names = folders(&folder, "a").unwrap();
        names.sort();
        assert_eq!(names, ["packs", "sets"]);
        assert!(folders(&folder, "no").unwrap().is_empty());
    }

    #[test]
    fn what_cannot_be_looked_at_is_an_error() {
        let scratch = tempfile::tempdir().unwrap();
        fs::create_dir(scratch.path().join("sets")).unwrap();
        // stat(2) fails with ELOOP, for root too.
        symlink("x.json", scratch.path().join("sets/x.json")).unwrap();
        for prefix in ["", "sets"] {
            let error = list(scratch.path(), prefix, &mut |_| true).unwrap_err();
            assert!(error.to_string().contains("sets/x.json"), "{error}");
        }
        assert!(folders(scratch.path(), "sets").is_err());
    }

    /// With its packs listed and no set, everything in the repository would be unneeded.
    #[test]
    fn a_folder_on_a_disk_that_is_not_mounted_is_an_error() {
        let scratch = tempfile::tempdir().unwrap();
        let (folder, disk) = (scratch.path().join("r"), scratch.path().join("disk"));
        fs::create_dir_all(folder.join("a/packs")).unwrap();
        fs::write(folder.join("a/packs/P"), "pack").unwrap();
        symlink(disk.join("sets"), folder.join("a/sets")).unwrap();
        for prefix in ["", "a", "a/sets"] {
            let error = list(&folder, prefix, &mut |_| true).unwrap_err();
            assert!(error.to_string().contains("a/sets\" is a link that leads nowhere"), "{error}");
        }
        assert!(folders(&folder, "a").is_err() && folders(&folder, "a/sets").is_err());
        fs::create_dir_all(disk.join("sets")).unwrap();
        for prefix in ["", "a", "a/sets"] {
            list(&folder, prefix, &mut |_| true).unwrap();
        }
        assert_eq!(folders(&folder, "a").unwrap().len(), 2);
        // All of a cluster is there: what is below the link isn't merely missing.
        symlink(disk.join("b"), folder.join("b")).unwrap();
        for prefix in ["b", "b/sets"] {
            let error = list(&folder, prefix, &mut |_| true).unwrap_err();
            assert!(error.to_string().contains("r/b\" is a link that leads nowhere"), "{error}");
            folders(&folder, prefix).unwrap_err();
        }
        fs::create_dir(disk.join("b")).unwrap();
        for missing in ["b/sets", "a/no/sets", "a/packs/P/sets"] {
            let mut found = Vec::new();
            let mut each = |listed: Listed| {
                found.push(listed.path);
                true
            };
            list(&folder, missing, &mut each).unwrap();
            assert!(found.is_empty(), "{found:?}");
        }
    }
}
