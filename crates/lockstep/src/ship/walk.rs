//! Walks a snapshot to learn which object is which file. ZFS's object numbers are the files' inode numbers, and a
//! folder's listing has them (`zfs_readdir` in `zfs_vnops_os.c`). More has to be known only of the few files whose
//! content isn't stored now, or wasn't before.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, DirEntry, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, openat};

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
    let device = device_of(&open(&top, Path::new(""))?, &top)?;
    let mut waiting = vec![PathBuf::new()];
    while let Some(inside) = waiting.pop() {
        let kind = folder_of(parts, &inside);
        let path = root.join(&inside);
        let folder = open(&top, &inside)?;
        if device_of(&folder, &path)? != device {
            if device_of(&open(&top, Path::new(""))?, &top)? != device {
                return Err(mounted_anew(root));
            }
            // A mount point of another file system.
            continue;
        }
        let (names, found) = list(&folder, &path, &inside, &mut waiting)?;
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
            let metadata =
                entry.metadata().map_err(Error::io("look at", path.join(entry.file_name())))?;
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
    if device_of(&open(&top, Path::new(""))?, &top)? != device {
        return Err(mounted_anew(root));
    }
    Ok(walked)
}

/// The longest part of a path that is opened at once: PATH_MAX less the longest name.
const AT_ONCE: usize = 4096 - 256;

/// Opens a folder of the snapshot. In a snapshot a path may be longer than a system call takes.
fn open(top: &Path, inside: &Path) -> Result<File> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let failed = Error::io("open", top.join(inside));
    let mut folder = match rustix::fs::open(top, flags, Mode::empty()) {
        Ok(folder) => folder,
        Err(e) => return Err(failed(e.into())),
    };
    let mut part = PathBuf::new();
    let mut names = inside.iter().peekable();
    while let Some(name) = names.next() {
        part.push(name);
        if names.peek().is_some() && part.as_os_str().len() < AT_ONCE {
            continue;
        }
        folder = match openat(&folder, &part, flags | OFlags::NOFOLLOW, Mode::empty()) {
            Ok(folder) => folder,
            Err(e) => return Err(failed(e.into())),
        };
        part.clear();
    }
    Ok(folder.into())
}

/// Lists a folder's files with their names. Subfolders are added to those still to walk.
fn list(
    folder: &File,
    path: &Path,
    inside: &Path,
    waiting: &mut Vec<PathBuf>,
) -> Result<(Vec<String>, Vec<DirEntry>)> {
    let (mut names, mut found) = (Vec::new(), Vec::new());
    let opened = format!("/proc/self/fd/{}", folder.as_raw_fd());
    for entry in fs::read_dir(opened).map_err(Error::io("list", path))? {
        let entry = entry.map_err(Error::io("list", path))?;
        let kind = entry.file_type().map_err(Error::io("look at", path.join(entry.file_name())))?;
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

fn device_of(folder: &File, path: &Path) -> Result<u64> {
    Ok(folder.metadata().map_err(Error::io("look at", path))?.dev())
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

    #[test]
    fn a_path_may_be_longer_than_a_system_call_takes() {
        let root = tempfile::tempdir().unwrap();
        let mut folder = open(root.path(), Path::new("")).unwrap();
        let mut inside = PathBuf::new();
        for _ in 0..60 {
            let name = "d".repeat(200);
            rustix::fs::mkdirat(&folder, &name, Mode::RWXU).unwrap();
            let flags = OFlags::RDONLY | OFlags::DIRECTORY;
            folder = openat(&folder, &name, flags, Mode::empty()).unwrap().into();
            inside.push(name);
        }
        rustix::fs::mkdirat(&folder, "at the bottom", Mode::RWXU).unwrap();
        assert!(fs::symlink_metadata(root.path().join(&inside)).is_err());
        let (folder, mut waiting) = (open(root.path(), &inside).unwrap(), Vec::new());
        list(&folder, &root.path().join(&inside), &inside, &mut waiting).unwrap();
        assert_eq!(waiting, [inside.join("at the bottom")]);
        let (kind, data) = (PartKind::Data, PathBuf::new());
        let data = SetPart { kind, path: root.path().to_path_buf(), inside: data };
        walk(root.path(), &[data], true, &HashSet::new()).unwrap();
    }
}
