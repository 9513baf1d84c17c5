//! The files that a killed writer leaves in a folder.
//!
//! `object_store` writes a file as `NAME#1` (or with the next free number) next to its final path, and renames it once
//! it is complete. If the process is killed before that, the file stays: no listing shows such a name, and no call
//! deletes it. So this module walks the folder. It returns or removes only such files and follows no link anywhere.

use std::fs::{self, Metadata};
use std::io::{Error, ErrorKind, Result};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use super::Listed;

/// Returns the path that a half-written file was to get; `None` if the name isn't that of a half-written file.
pub fn place_of(path: &str) -> Option<&str> {
    let (place, number) = path.rsplit_once('#')?;
    let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    (is_number && !place.is_empty() && !place.ends_with('/')).then_some(place)
}

/// How far to search for such files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Only in the folder itself.
    Folder,
    /// In the folder and in all folders below it.
    Below,
}

/// Passes the half-written files in or below `prefix` to `each`, with their paths in the folder.
pub(super) fn list(
    folder: &Path,
    prefix: &str,
    reach: Reach,
    each: &mut dyn FnMut(Listed),
) -> Result<()> {
    let Some(top) = inside(folder, prefix)? else { return Ok(()) };
    let mut left = vec![(top, prefix.trim_matches('/').to_string())];
    while let Some((folder, path)) = left.pop() {
        let entries = match fs::read_dir(&folder) {
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            // No object has a name that isn't UTF-8.
            let Ok(name) = entry.file_name().into_string() else { continue };
            let path = if path.is_empty() { name } else { format!("{path}/{name}") };
            let kind = entry.file_type()?;
            if kind.is_dir() {
                if reach == Reach::Below {
                    left.push((entry.path(), path));
                }
            } else if kind.is_file() && place_of(&path).is_some() {
                match entry.metadata() {
                    // It has been renamed in the meantime.
                    Err(error) if error.kind() == ErrorKind::NotFound => {}
                    metadata => {
                        let metadata = metadata?;
                        let (size, modified) = (metadata.len(), modified(&metadata));
                        each(Listed { path, size, modified });
                    }
                }
            }
        }
    }
    Ok(())
}

/// Removes a half-written file; succeeds if it doesn't exist.
pub(super) fn remove(folder: &Path, path: &str) -> Result<()> {
    let (above, name) = path.rsplit_once('/').unwrap_or(("", path));
    let Some(above) = inside(folder, above)? else { return Ok(()) };
    let path = above.join(name);
    let metadata = match fs::symlink_metadata(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        metadata => metadata?,
    };
    if !metadata.is_file() || place_of(name).is_none() {
        return Err(Error::other("it is not a half-written file"));
    }
    fs::remove_file(&path)
}

/// Returns the path of a folder below another one; `None` if it doesn't exist or a link leads to it.
fn inside(folder: &Path, path: &str) -> Result<Option<PathBuf>> {
    let mut at = folder.to_path_buf();
    for segment in path.split('/').filter(|segment| !segment.is_empty()) {
        if segment == "." || segment == ".." {
            return Ok(None);
        }
        at.push(segment);
        let is_folder = match fs::symlink_metadata(&at) {
            Err(error) if error.kind() == ErrorKind::NotFound => false,
            metadata => metadata?.is_dir(),
        };
        if !is_folder {
            return Ok(None);
        }
    }
    Ok(Some(at))
}

fn modified(metadata: &Metadata) -> u64 {
    let time = metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    // A file without a time counts as young.
    time.map_or(u64::MAX, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_that_a_writing_left_are_found_and_removed() {
        let scratch = tempfile::tempdir().unwrap();
        let (folder, other) = (scratch.path().join("r"), scratch.path().join("elsewhere"));
        for made in [folder.join("a/packs"), folder.join("a/packs/d#1"), other.clone()] {
            fs::create_dir_all(made).unwrap();
        }
        let link = |to: &Path, at: &str| std::os::unix::fs::symlink(to, folder.join(at)).unwrap();
        fs::write(other.join("x#1"), b"theirs").unwrap();
        link(&other, "a/linked");
        link(&other.join("x#1"), "a/packs/link#1");
        link(&folder.join("a"), "b");
        for name in ["P", "P#1", "Q#12", "#1", "P#", "P#1x", "d#1/R#3"] {
            fs::write(folder.join("a/packs").join(name), name).unwrap();
        }
        let within = |prefix: &str, reach: Reach| {
            let mut found = Vec::new();
            list(&folder, prefix, reach, &mut |listed| found.push(listed.path)).unwrap();
            found.sort();
            found
        };
        let found = |prefix: &str| within(prefix, Reach::Below);
        let all = ["a/packs/P#1", "a/packs/Q#12", "a/packs/d#1/R#3"];
        assert_eq!(found("a"), all);
        assert_eq!(found(""), all);
        assert_eq!(within("a/packs", Reach::Folder), all[..2]);
        assert!(within("", Reach::Folder).is_empty() && within("a", Reach::Folder).is_empty());
        assert!(found("b").is_empty() && found("a/linked").is_empty() && found("no").is_empty());
        for refused in ["a/packs/P", "a/packs/d#1", "a/packs/link#1"] {
            assert!(remove(&folder, refused).is_err(), "{refused}");
        }
        for nowhere in ["a/linked/x#1", "b/packs/P#1", "a/packs/N#1", "../elsewhere/x#1"] {
            remove(&folder, nowhere).unwrap();
        }
        assert!(found("a") == all && other.join("x#1").exists());
        remove(&folder, "a/packs/P#1").unwrap();
        assert_eq!(found("a"), all[1..]);
    }
    /// The name is internal to `object_store` and undocumented: a later version may choose another.
    #[test]
    fn it_is_what_a_killed_upload_leaves() {
        use object_store::ObjectStoreExt;
        use object_store::local::LocalFileSystem;
        use object_store::path::Path;

        let scratch = tempfile::tempdir().unwrap();
        let store = LocalFileSystem::new_with_prefix(scratch.path()).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut upload = store.put_multipart(&Path::from("packs/P")).await.unwrap();
            upload.put_part(vec![0; 100].into()).await.unwrap();
            // As if the process had been killed.
            std::mem::forget(upload);
        });
        let mut found = Vec::new();
        list(scratch.path(), "", Reach::Below, &mut |listed| found.push(listed)).unwrap();
        let [left] = &found[..] else { panic!("{found:?}") };
        assert_eq!((place_of(&left.path), left.size), (Some("packs/P"), 100));
    }
}
