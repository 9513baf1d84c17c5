//! The names that a volume has: a flat copy of its tree, checked.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use sendstream::zpl::FileType;

use super::Volume;
use crate::error::{Error, Result};
use crate::repository::tree::check_name;
use crate::restore::control;

/// A volume's names, borrowed from its tree.
pub(super) struct Plan<'a> {
    /// Parents before their children; the first is the root.
    pub(super) folders: Vec<Folder<'a>>,
    /// Folders that are elsewhere: the index in [`Plan::folders`], and in [`Volume::apart`].
    apart: Vec<(usize, usize)>,
    /// Everything but folders; those of a folder are adjacent.
    pub(super) files: Vec<File<'a>>,
    /// The files' indexes in [`Plan::files`], by object.
    by_object: Vec<(u64, usize)>,
    /// What gets its name last: its folder's index in [`Plan::folders`], and the name.
    pub(super) control: Option<(usize, &'a [u8])>,
}

/// A folder.
pub(super) struct Folder<'a> {
    pub(super) parent: usize,
    pub(super) name: &'a [u8],
    pub(super) object: u64,
    /// The folders in it.
    pub(super) folders: Vec<usize>,
    pub(super) files: Range<usize>,
    /// Further names of files whose first name is elsewhere or in this folder: file, name.
    pub(super) links: Vec<(usize, &'a [u8])>,
}

/// A file of any kind but a folder.
pub(super) struct File<'a> {
    pub(super) folder: usize,
    pub(super) name: &'a [u8],
    pub(super) object: u64,
    pub(super) kind: FileType,
    /// It has more names than this one.
    pub(super) is_linked: bool,
}

impl File<'_> {
    pub(super) fn is_regular(&self) -> bool {
        self.kind == FileType::Regular
    }
}

impl<'a> Plan<'a> {
    pub(super) fn new(volume: &Volume<'a>) -> Result<Self> {
        let tree = volume.tree;
        let mut plan = Self {
            folders: vec![Folder::new(0, &[], tree.root())],
            apart: Vec::new(),
            files: Vec::new(),
            by_object: Vec::new(),
            control: None,
        };
        let mut folders = HashMap::from([(tree.root(), 0)]);
        // The indexes of files that may have further names.
        let mut linked = HashMap::new();
        let of_control = volume.data_inside.and_then(|inside| {
            tree.find(inside.iter().map(OsStrExt::as_bytes).chain([&b"global"[..]]))
        });
        let mut at = 0;
        while let Some(folder) = plan.folders.get(at) {
            let object = folder.object;
            let has_control = Some(object) == of_control;
            plan.folders[at].files = plan.files.len()..plan.files.len();
            for (name, object) in tree.children(object) {
                check_name(name)?;
                if has_control && name == control::UNDER_WAY.as_bytes() {
                    // Somebody has copied it out of an unfinished restore. pg_control itself has this name for now.
                    tracing::warn!(
                        "the set's \"global/{}\" isn't restored: it is of an unfinished restore",
                        control::UNDER_WAY
                    );
                    continue;
                }
                let attributes = tree.attributes(object)?;
                let kind = attributes.file_type();
                if kind == FileType::Directory {
                    let new = plan.folders.len();
                    if folders.insert(object, new).is_some() {
                        return Err(Error::failed(format!(
                            "the folder \"{}\" is in two places in the repository",
                            name.escape_ascii()
                        )));
                    }
                    plan.folders.push(Folder::new(at, name, object));
                    plan.folders[at].folders.push(new);
                } else if let Some(first) = linked.get(&object).copied() {
                    let file: &mut File<'_> = &mut plan.files[first];
                    file.is_linked = true;
                    plan.folders[at].links.push((first, name));
                } else {
                    let new = plan.files.len();
                    if attributes.links != 1 {
                        linked.insert(object, new);
                    }
                    plan.files.push(File { folder: at, name, object, kind, is_linked: false });
                }
            }
            plan.folders[at].files.end = plan.files.len();
            at += 1;
        }
        plan.by_object = plan.files.iter().enumerate().map(|(at, f)| (f.object, at)).collect();
        plan.by_object.sort_unstable();
        if let Some(twice) = plan.by_object.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            let path = plan.file_path(&plan.files[twice[1].1]);
            return Err(Error::failed(format!(
                "\"{}\" in the repository is a second name of a file that has but one",
                path.display()
            )));
        }
        plan.put_control_last(of_control.and_then(|object| folders.get(&object).copied()));
        plan.put_apart(volume, &folders)?;
        Ok(plan)
    }

    /// Records the folders that are elsewhere than in their parent.
    fn put_apart(&mut self, volume: &Volume<'_>, folders: &HashMap<u64, usize>) -> Result<()> {
        for (which, apart) in volume.apart.iter().enumerate() {
            let object = volume.tree.find(apart.inside.iter().map(OsStrExt::as_bytes));
            let Some(at) = object.and_then(|object| folders.get(&object).copied()) else {
                return Err(Error::failed(format!(
                    "the repository has no folder \"{}\" in the volume of \"{}\"",
                    apart.inside.display(),
                    volume.folder.display()
                )));
            };
            let parent = self.folders[at].parent;
            self.folders[parent].folders.retain(|folder| *folder != at);
            self.apart.push((at, which));
        }
        Ok(())
    }

    /// Whether a folder is the root, or is elsewhere than in its parent.
    pub(super) fn is_top(&self, folder: usize) -> bool {
        folder == 0 || self.which_apart(folder).is_some()
    }

    fn which_apart(&self, folder: usize) -> Option<usize> {
        self.apart.iter().find(|(at, _)| *at == folder).map(|(_, which)| *which)
    }

    /// Returns the top that a folder is below, the root or one of [`Volume::apart`], and the names on the way.
    pub(super) fn way_to(&self, folder: usize) -> (Option<usize>, Vec<&[u8]>) {
        let (top, names) = self.below(folder, |folder| self.is_top(folder));
        (self.which_apart(top), names)
    }

    /// Returns the index of an object's file.
    pub(super) fn file_of(&self, object: u64) -> Option<usize> {
        let at = self.by_object.binary_search_by_key(&object, |(known, _)| *known).ok()?;
        self.by_object.get(at).map(|(_, file)| *file)
    }

    /// It may also be a further name of a file: somebody keeps a copy of hard links (`cp -al`).
    fn put_control_last(&mut self, folder: Option<usize>) {
        let Some(at) = folder else { return };
        let Folder { files, links, .. } = &mut self.folders[at];
        let names = self.files[files.clone()].iter_mut().map(|file| &mut file.name);
        let mut names = names.chain(links.iter_mut().map(|(_, name)| name));
        if let Some(name) = names.find(|name| ***name == b"pg_control"[..]) {
            self.control = Some((at, std::mem::replace(name, control::UNDER_WAY.as_bytes())));
        }
    }

    /// Returns a folder's path below the root, for messages.
    pub(super) fn folder_path(&self, folder: usize) -> PathBuf {
        let names = self.steps_to(folder);
        names.iter().map(|name| OsStr::from_bytes(name)).collect()
    }

    /// Returns a file's path below the root, for messages.
    pub(super) fn file_path(&self, file: &File<'_>) -> PathBuf {
        self.folder_path(file.folder).join(OsStr::from_bytes(file.name))
    }

    /// Returns the names on the way from the root to a folder.
    pub(super) fn steps_to(&self, folder: usize) -> Vec<&[u8]> {
        self.below(folder, |folder| folder == 0).1
    }

    /// Returns the first top at or above the folder, and the names on the way down from it.
    fn below(&self, mut folder: usize, is_top: impl Fn(usize) -> bool) -> (usize, Vec<&[u8]>) {
        let mut names = Vec::new();
        while !is_top(folder) {
            names.push(self.folders[folder].name);
            folder = self.folders[folder].parent;
        }
        names.reverse();
        (folder, names)
    }
}

impl<'a> Folder<'a> {
    fn new(parent: usize, name: &'a [u8], object: u64) -> Self {
        Self { parent, name, object, folders: Vec::new(), files: 0..0, links: Vec::new() }
    }
}
