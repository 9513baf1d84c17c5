//! The finished tree.

use std::collections::BTreeMap;

use super::attributes::{Attributes, FileType};
use crate::error::{Error, Result};
use crate::nvlist::NvList;

/// A contiguous part of a file that has data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Where it begins in the object.
    pub offset: u64,
    /// How long it is.
    pub length: u64,
}

/// An object that is a file, a directory or a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node<T> {
    /// Its attributes.
    pub attributes: Attributes,
    /// A directory's names.
    pub children: Children,
    /// A file's data; the gaps are holes. Blocks may go beyond the file's size.
    pub runs: Vec<Run>,
    /// What the [`ContentVisitor`](super::ContentVisitor) made of the content.
    pub content: Option<T>,
}

/// A directory's names and their objects, in the order of the names' bytes. One buffer holds all names, because a
/// directory may have a million.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Children {
    names: Vec<u8>,
    /// Where each name ends, and its object.
    ends: Vec<u32>,
    objects: Vec<u64>,
}

impl Children {
    /// Returns how many there are.
    pub fn len(&self) -> usize {
        self.objects.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.objects.is_empty()
    }

    /// Returns the name and the object at an index.
    pub fn get(&self, at: usize) -> Option<(&[u8], u64)> {
        let start = at.checked_sub(1).and_then(|before| self.ends.get(before));
        let (start, end) = (start.copied().unwrap_or(0), *self.ends.get(at)?);
        Some((self.names.get(start as usize..end as usize)?, *self.objects.get(at)?))
    }

    /// Returns all of them.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], u64)> {
        (0..self.len()).filter_map(|at| self.get(at))
    }

    /// Returns the object of a name.
    pub fn find(&self, name: &[u8]) -> Option<u64> {
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = low + (high - low) / 2;
            let (found, object) = self.get(middle)?;
            match found.cmp(name) {
                std::cmp::Ordering::Equal => return Some(object),
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
            }
        }
        None
    }

    /// Appends a name; the caller keeps the order. A name that would make the directory too large is left out.
    pub(super) fn push(&mut self, name: &[u8], object: u64) {
        if let Ok(end) = u32::try_from(self.names.len() + name.len()) {
            self.names.extend_from_slice(name);
            self.ends.push(end);
            self.objects.push(object);
        }
    }
}

/// Where the value of an extended attribute is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum XattrValue {
    /// The value itself.
    Inline(Vec<u8>),
    /// In this object, which is a file.
    Object(u64),
}

/// A name in the tree.
#[derive(Clone, Debug)]
pub struct Entry<'a, T> {
    /// The path from the root, `.` for the root itself.
    pub path: &'a [u8],
    /// Its object; the same for every hard link.
    pub object: u64,
    /// The object.
    pub node: &'a Node<T>,
}

/// A file system, or a volume.
#[derive(Clone, Debug)]
pub struct Tree<T> {
    pub(super) nodes: BTreeMap<u64, Node<T>>,
    pub(super) root: u64,
    /// The volume's size, if this is a volume.
    pub(super) volume: Option<u64>,
}

impl<T> Tree<T> {
    /// Returns the object number of the root directory; for a volume, that of its data.
    pub fn root(&self) -> u64 {
        self.root
    }

    /// Returns the volume's size; `None` for a file system.
    pub fn volume_size(&self) -> Option<u64> {
        self.volume
    }

    /// Returns an object.
    pub fn node(&self, object: u64) -> Option<&Node<T>> {
        self.nodes.get(&object)
    }

    /// Returns all objects, named or not.
    pub fn nodes(&self) -> impl Iterator<Item = (u64, &Node<T>)> {
        self.nodes.iter().map(|(object, node)| (*object, node))
    }

    /// Returns a link's target.
    pub fn symlink(&self, object: u64) -> Option<&[u8]> {
        self.node(object)?.attributes.symlink.as_deref()
    }

    /// Returns names and values of a file's extended attributes, of both kinds.
    pub fn xattrs(&self, object: u64) -> Result<Vec<(Vec<u8>, XattrValue)>> {
        let Some(node) = self.node(object) else {
            return Ok(Vec::new());
        };
        let mut found = Vec::new();
        if let Some(packed) = &node.attributes.xattrs {
            let list = NvList::parse(packed)?;
            for (name, value) in list.pairs() {
                let value = value.as_bytes().unwrap_or_default().to_vec();
                found.push((name.to_vec(), XattrValue::Inline(value)));
            }
        }
        if let Some(directory) = self.node(node.attributes.xattr_directory) {
            let names = directory.children.iter();
            found.extend(names.map(|(name, object)| (name.to_vec(), XattrValue::Object(object))));
        }
        found.sort_by(|(a, _), (b, _)| a.cmp(b));
        Ok(found)
    }

    /// Calls `visit` for every name, parents before children, names in the order of their bytes.
    pub fn walk(&self, mut visit: impl FnMut(Entry<'_, T>) -> Result<()>) -> Result<()> {
        let root = self
            .nodes
            .get(&self.root)
            .ok_or_else(|| Error::object(self.root, "the root directory is missing"))?;
        visit(Entry { path: b".", object: self.root, node: root })?;
        let mut seen = std::collections::BTreeSet::from([self.root]);
        let mut path = Vec::new();
        // Directories on the path down, the length of each one's path, and the next name in each.
        let mut stack = vec![(root, 0usize, 0usize)];
        while let Some((directory, length, next)) = stack.last_mut() {
            path.truncate(*length);
            let Some((name, object)) = directory.children.get(*next) else {
                stack.pop();
                continue;
            };
            *next += 1;
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(name);
            let Some(node) = self.nodes.get(&object) else {
                let why = format!("it has the name \"{}\" but is missing", path.escape_ascii());
                return Err(Error::object(object, why));
            };
            visit(Entry { path: &path, object, node })?;
            if node.attributes.file_type() == FileType::Directory {
                if !seen.insert(object) {
                    return Err(Error::object(object, "this directory is in two places"));
                }
                let length = path.len();
                stack.push((node, length, 0));
            }
        }
        Ok(())
    }
}
