//! Walks a snapshot to learn which object is which file. ZFS's object numbers are the files' inode numbers, and a
//! folder's listing has them (`zfs_readdir` in `zfs_vnops_os.c`). More has to be known only of the few files whose
//! content isn't stored now, or wasn't before.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, DirEntry};
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::postgres::classify::{self, Class, Folder};
use crate::repository::shipped::LeftOut;
use crate::set::manifest::SetPart;

/// The files of a volume that aren't simply stored.
#[derive(Debug, Default)]
pub struct Walked {
    /// By object.
    pub classes: HashMap<u64, Class>,
    /// Of the files that a base left out, those whose content is stored now.
    pub needed: HashSet<u64>,
    /// A summary of what is left out.
    pub left_out: Vec<LeftOut>,
    /// Where relations' files are: their folders and names.
    folders: Vec<PathBuf>,
    names: HashMap<u64, (u32, Box<str>)>,
}

impl Walked {
    /// Returns the path of a relation's file in its volume.
    #[must_use]
    pub fn path(&self, object: u64) -> Option<PathBuf> {
        let (folder, name) = self.names.get(&object)?;
        Some(self.folders.get(*folder as usize)?.join(&**name))
    }
}

/// Walks the snapshot at `root`, of a volume with these parts; `before` are the objects that its base left out.
///
/// # Errors
/// When a folder can't be read.
pub fn walk(
    root: &Path,
    parts: &[SetPart],
    recovers: bool,
    before: &HashSet<u64>,
) -> Result<Walked> {
    let mut walked = Walked::default();
    let mut left_out: BTreeMap<classify::Why, (u64, u64)> = BTreeMap::new();
    // From inside: a snapshot in `.zfs` is mounted by the first look into it, and may be mounted again.
    let top = root.join("");
    let device = device_of(&top)?;
    let mut waiting = vec![PathBuf::new()];
    while let Some(inside) = waiting.pop() {
        let kind = folder_of(parts, &inside);
        let path = root.join(&inside);
        if device_of(&path)? != device {
            if device_of(&top)? != device {
                return Err(mounted_anew(root));
            }
            // A mount point of another file system.
            continue;
        }
        let (names, found) = list(&path, &inside, &mut waiting)?;
        let at = u32::try_from(walked.folders.len()).unwrap_or(u32::MAX);
        let mut has_relations = false;
        let classes: Vec<Class> = classify::files(kind, &names, recovers).collect();
        for ((class, name), entry) in classes.into_iter().zip(names).zip(found) {
            let object = entry.ino();
            if class == Class::Other && !before.contains(&object) {
                continue;
            }
            if let Class::Pages(_) = class {
                has_relations = true;
                walked.names.insert(object, (at, name.into()));
                walked.classes.insert(object, class);
                if !before.contains(&object) {
                    continue;
                }
            }
            let metadata = entry.metadata().map_err(Error::io("look at", entry.path()))?;
            match class {
                // A file with two names would be left out only if both say so; there are no such files.
                Class::LeftOut(why) if metadata.nlink() == 1 => {
                    let sum = left_out.entry(why).or_default();
                    *sum = (sum.0 + 1, sum.1 + metadata.len());
                    walked.classes.insert(object, class);
                }
                // A file truncated to nothing (a dropped relation's, until the next checkpoint) needs nothing.
                _ if metadata.len() > 0 && before.contains(&object) => {
                    walked.needed.insert(object);
                }
                _ => {}
            }
        }
        if has_relations {
            walked.folders.push(inside);
        }
    }
    walked.left_out = left_out
        .into_iter()
        .map(|(why, (files, bytes))| LeftOut { why: why.words().to_owned(), files, bytes })
        .collect();
    if device_of(&top)? != device {
        return Err(mounted_anew(root));
    }
    Ok(walked)
}

/// Lists a folder's files with their names. Subfolders are added to those still to walk.
fn list(
    path: &Path,
    inside: &Path,
    waiting: &mut Vec<PathBuf>,
) -> Result<(Vec<String>, Vec<DirEntry>)> {
    let (mut names, mut found) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(path).map_err(Error::io("list", path))? {
        let entry = entry.map_err(Error::io("list", path))?;
        let kind = entry.file_type().map_err(Error::io("look at", entry.path()))?;
        if kind.is_dir() {
            waiting.push(inside.join(entry.file_name()));
        } else if kind.is_file() {
            // A name that isn't UTF-8 isn't PostgreSQL's.
            names.push(entry.file_name().to_string_lossy().into_owned());
            found.push(entry);
        }
    }
    Ok((names, found))
}

fn device_of(path: &Path) -> Result<u64> {
    Ok(fs::symlink_metadata(path).map_err(Error::io("look at", path))?.dev())
}

fn mounted_anew(root: &Path) -> Error {
    let path = root.display();
    Error::failed(format!("the snapshot at \"{path}\" was mounted again while it was being read"))
        .with_hint("ship the set again; `zfs_expire_snapshot` says how soon ZFS unmounts snapshots that nobody looks into")
}

/// Returns what a folder is, by the innermost part that contains it.
fn folder_of(parts: &[SetPart], inside: &Path) -> Folder {
    let within = parts.iter().filter(|part| inside.starts_with(&part.inside));
    let innermost = within.max_by_key(|part| part.inside.components().count());
    innermost.map_or(Folder::Plain, |part| {
        let rest = inside.strip_prefix(&part.inside).unwrap_or(inside);
        classify::folder(&part.kind, rest)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::layout::PartKind;

    /// A path may lead to another device than the entry itself shows; so does an automount, seen from outside.
    #[test]
    fn what_is_looked_through_is_what_is_seen_from_inside() {
        let name = format!("lockstep-walk-{}", std::process::id());
        let (root, there) = (std::env::temp_dir().join(&name), Path::new("/dev/shm").join(&name));
        fs::create_dir_all(there.join("base/5")).unwrap();
        fs::write(there.join("base/5/16384"), "a relation").unwrap();
        let _ = fs::remove_file(&root);
        std::os::unix::fs::symlink(&there, &root).unwrap();
        let (kind, inside) = (PartKind::Data, PathBuf::new());
        let data = SetPart { kind, path: root.clone(), inside };
        let walked = walk(&root, &[data], true, &HashSet::new());
        fs::remove_dir_all(&there).unwrap();
        fs::remove_file(&root).unwrap();
        let walked = walked.unwrap();
        assert_eq!(walked.classes.len(), 1, "{walked:?}");
    }
}
