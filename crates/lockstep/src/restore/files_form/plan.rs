//! Which names a volume has: a flat copy of its tree, checked.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use sendstream::zpl::FileType;

use super::Volume;
use crate::error::{Error, Result};
use crate::repository::tree::check_name;

/// What pg_control is called until everything else is on disk.
const CONTROL_UNDER_WAY: &[u8] = b"pg_control.lockstep";

/// A volume's names.
pub(super) struct Plan {
    /// Parents before their children; the first is the root.
    pub(super) folders: Vec<Folder>,
    /// All that isn't a folder.
    pub(super) files: Vec<File>,
    /// The files' places in [`Plan::files`], by object.
    pub(super) by_object: HashMap<u64, usize>,
    /// The file that gets its name last: its place in [`Plan::files`], and the name.
    pub(super) control: Option<(usize, Vec<u8>)>,
}

/// A folder.
pub(super) struct Folder {
    pub(super) parent: usize,
    pub(super) name: Vec<u8>,
    pub(super) object: u64,
    /// Those in it.
    pub(super) folders: Vec<usize>,
    pub(super) files: Vec<usize>,
    /// Further names of files that have their first one elsewhere, or here: file, name.
    pub(super) links: Vec<(usize, Vec<u8>)>,
}

/// A file of any other kind.
pub(super) struct File {
    pub(super) folder: usize,
    pub(super) name: Vec<u8>,
    pub(super) object: u64,
    pub(super) kind: FileType,
    pub(super) is_regular: bool,
    /// It has more names than this one.
    pub(super) is_linked: bool,
}

impl Plan {
    pub(super) fn new(volume: &Volume<'_>) -> Result<Self> {
        let tree = &volume.tree.tree;
        let root = Folder::new(0, Vec::new(), tree.root());
        let mut plan = Self {
            folders: vec![root],
            files: Vec::new(),
            by_object: HashMap::new(),
            control: None,
        };
        let mut folders = HashMap::from([(tree.root(), 0)]);
        let mut at = 0;
        while let Some(folder) = plan.folders.get(at) {
            let node = volume.tree.node(folder.object)?;
            for (name, object) in &node.children {
                check_name(name)?;
                let kind = volume.tree.node(*object)?.attributes.file_type();
                if kind == FileType::Directory {
                    let new = plan.folders.len();
                    if folders.insert(*object, new).is_some() {
                        return Err(Error::failed(format!(
                            "the folder \"{}\" is in two places in the repository",
                            name.escape_ascii()
                        )));
                    }
                    plan.folders.push(Folder::new(at, name.clone(), *object));
                    plan.folders[at].folders.push(new);
                } else if let Some(first) = plan.by_object.get(object).copied() {
                    plan.files[first].is_linked = true;
                    plan.folders[at].links.push((first, name.clone()));
                } else {
                    let new = plan.files.len();
                    plan.by_object.insert(*object, new);
                    plan.files.push(File {
                        folder: at,
                        name: name.clone(),
                        object: *object,
                        kind,
                        is_regular: kind == FileType::Regular,
                        is_linked: false,
                    });
                    plan.folders[at].files.push(new);
                }
            }
            at += 1;
        }
        plan.put_control_last(volume);
        Ok(plan)
    }

    fn put_control_last(&mut self, volume: &Volume<'_>) {
        let Some(inside) = volume.data_inside else { return };
        let path: Vec<&[u8]> =
            inside.iter().map(OsStrExt::as_bytes).chain([&b"global"[..], b"pg_control"]).collect();
        let file = volume.tree.find(path).and_then(|object| self.by_object.get(&object).copied());
        if let Some(file) = file.filter(|file| !self.files[*file].is_linked) {
            let name = std::mem::replace(&mut self.files[file].name, CONTROL_UNDER_WAY.to_vec());
            self.control = Some((file, name));
        }
    }

    /// A folder's path below the root, for messages.
    pub(super) fn folder_path(&self, folder: usize) -> PathBuf {
        let names = self.steps_to(folder);
        names.iter().map(|name| OsStr::from_bytes(name)).collect()
    }

    /// A file's path below the root, for messages.
    pub(super) fn file_path(&self, file: &File) -> PathBuf {
        self.folder_path(file.folder).join(OsStr::from_bytes(&file.name))
    }

    /// The names on the way from the root to a folder.
    pub(super) fn steps_to(&self, mut folder: usize) -> Vec<&[u8]> {
        let mut names = Vec::new();
        while folder != 0 {
            names.push(&*self.folders[folder].name);
            folder = self.folders[folder].parent;
        }
        names.reverse();
        names
    }
}

impl Folder {
    fn new(parent: usize, name: Vec<u8>, object: u64) -> Self {
        let (folders, files, links) = (Vec::new(), Vec::new(), Vec::new());
        Self { parent, name, object, folders, files, links }
    }
}
