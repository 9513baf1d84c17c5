//! A look into a set in a repository, without restoring it.
//!
//! ```text
//! data/…                   the data directory
//! wal/…                    the segments that the set carries
//! tablespaces/OID/…        the tablespaces
//! files/…                  the set's own files: backup_label, wal/SEGMENT, config/…
//! ```
//!
//! What could go wrong: content that isn't stored must not pass for zeros, so it is told apart.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;

use sendstream::zpl::{FileType, Timestamp};

use crate::error::{Error, Result};
use crate::plan::layout::PartKind;
use crate::plan::refusal::Refusal;
use crate::repository::tree::ImageTree;
use crate::repository::{self, Repository, Shipped};
use crate::set::manifest::WalStored;
use crate::steps;
use crate::volume::zfs::DatasetName;

/// A set that is looked into.
pub struct Look<'a> {
    repository: &'a Repository,
    shipped: &'a Shipped,
    /// Of the volumes looked into so far.
    trees: BTreeMap<usize, ImageTree>,
}

/// A name and what is known about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Below the path that was asked for; empty for that itself.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: FileType,
    /// The permissions.
    pub mode: u64,
    /// The owner and the group, of what lay in the cluster.
    pub owner: Option<(u64, u64)>,
    /// Of a file or a link.
    pub size: Option<u64>,
    /// Of what lay in the cluster.
    pub mtime: Option<Timestamp>,
    /// Of a link.
    pub target: Option<Vec<u8>>,
    /// Whether its content is in the repository.
    pub is_stored: bool,
}

/// Where a path leads.
enum Place {
    /// A folder that no file system has: the names in it, the path of each.
    Made(BTreeSet<Vec<u8>>),
    /// One of the set's own files, by its name there.
    Own(String),
    /// In a volume.
    Volume(usize, u64),
}

/// A path as steps; `.` and empty ones go nowhere.
type Steps = Vec<Vec<u8>>;

impl<'a> Look<'a> {
    /// Looks into a set.
    #[must_use]
    pub fn new(repository: &'a Repository, shipped: &'a Shipped) -> Self {
        Self { repository, shipped, trees: BTreeMap::new() }
    }

    /// What is at a path: a folder's names, or the one file; with `deep` all that is below.
    ///
    /// # Errors
    /// When there is nothing of that name, or the repository is damaged.
    pub fn list(
        &mut self,
        path: &[u8],
        deep: bool,
        mut each: impl FnMut(Entry) -> Result<()>,
    ) -> Result<()> {
        let start = steps_of(path)?;
        let place = self.find(&start)?;
        let entry = self.entry(&place, Vec::new())?;
        if entry.kind != FileType::Directory {
            return each(entry);
        }
        // Names in the order of their bytes, each folder's content behind the folder.
        let mut waiting = vec![Vec::new()];
        while let Some(inside) = waiting.pop() {
            steps::reached("look.folder")?;
            let steps: Steps = start.iter().chain(&inside).cloned().collect();
            let mut below = Vec::new();
            if !inside.is_empty() {
                let place = self.find(&steps)?;
                let entry = self.entry(&place, inside.join(&b'/'))?;
                let is_folder = entry.kind == FileType::Directory;
                each(entry)?;
                if !is_folder || !deep {
                    continue;
                }
            }
            for name in self.names(&steps)? {
                let mut path = inside.clone();
                path.push(name);
                below.push(path);
            }
            below.reverse();
            waiting.append(&mut below);
        }
        Ok(())
    }

    /// Writes a file's content; `false`: it isn't stored, and nothing was written.
    ///
    /// # Errors
    /// When it is no file, the repository is damaged, or the writer fails.
    pub fn cat(&mut self, path: &[u8], to: &mut dyn Write) -> Result<bool> {
        let steps = steps_of(path)?;
        let place = self.find(&steps)?;
        let entry = self.entry(&place, Vec::new())?;
        let what = || format!("\"{}\"", path.escape_ascii());
        match entry.kind {
            FileType::Regular => {}
            FileType::Directory => {
                return Err(Error::usage(
                    format!("{} is a folder", what()),
                    "list it with `lockstep ls`",
                ));
            }
            FileType::Symlink => {
                let target = entry.target.unwrap_or_default();
                return Err(Error::usage(
                    format!("{} is a link to \"{}\"", what(), target.escape_ascii()),
                    "name the file itself: data/…, wal/…, tablespaces/OID/…",
                ));
            }
            other => {
                return Err(Error::usage(
                    format!("{} is no file ({other})", what()),
                    "name a file",
                ));
            }
        }
        if !entry.is_stored {
            return Ok(false);
        }
        let mut zeros = ZerosBetween { to, position: 0 };
        match place {
            Place::Volume(volume, object) => {
                let repository = self.repository;
                self.tree(volume)?.content(repository, object, |at, bytes| zeros.put(at, bytes))?;
            }
            Place::Own(name) => {
                let set = self.shipped.manifest.set.as_str();
                repository::files::content(self.repository, set, &name, |at, bytes| {
                    zeros.put(at, bytes)
                })?;
            }
            Place::Made(_) => {}
        }
        zeros.put(entry.size.unwrap_or(0), &[])?;
        Ok(true)
    }

    /// The names in a folder, in the order of their bytes.
    fn names(&mut self, steps: &Steps) -> Result<BTreeSet<Vec<u8>>> {
        Ok(match self.find(steps)? {
            Place::Made(names) => names,
            Place::Own(_) => BTreeSet::new(),
            Place::Volume(volume, object) => {
                let node = self.tree(volume)?.node(object)?;
                node.children.iter().map(|(name, _)| name.clone()).collect()
            }
        })
    }

    fn find(&mut self, steps: &Steps) -> Result<Place> {
        let names: Vec<&[u8]> = steps.iter().map(Vec::as_slice).collect();
        let found = match names.as_slice() {
            [] => Some(self.top()),
            [b"files", rest @ ..] => self.own("", rest),
            [b"wal", rest @ ..] => match self.wal_volume() {
                Some(dataset) => return Err(self.stored_raw(dataset)),
                None => self.own("wal/", rest),
            },
            [b"data", rest @ ..] => self.in_part(|kind| *kind == PartKind::Data, rest)?,
            [b"tablespaces"] => Some(Place::Made(self.tablespaces())),
            [b"tablespaces", oid, rest @ ..] => {
                let is_it = |kind: &PartKind| {
                    matches!(kind, PartKind::Tablespace { oid: known, .. }
                        if known.to_string().as_bytes() == *oid)
                };
                self.in_part(is_it, rest)?
            }
            _ => None,
        };
        found.ok_or_else(|| {
            Error::usage(
                format!(
                    "set {} has nothing at \"{}\"",
                    self.shipped.manifest.set,
                    names.join(&b'/').escape_ascii()
                ),
                "`lockstep ls SET` shows what is there: data, wal, tablespaces/OID, files",
            )
        })
    }

    /// Where the set's WAL is, if it isn't among its files.
    fn wal_volume(&self) -> Option<&DatasetName> {
        let manifest = &self.shipped.manifest;
        let (at, _) = manifest.parts().find(|(_, part)| part.kind == PartKind::Wal)?;
        let is_apart = manifest.wal.stored == WalStored::Snapshot;
        manifest.volumes.get(at).filter(|_| is_apart).map(|volume| &volume.dataset)
    }

    fn top(&self) -> Place {
        let mut names: BTreeSet<Vec<u8>> =
            ["data", "files", "wal"].map(|name| name.as_bytes().to_vec()).into();
        if !self.tablespaces().is_empty() {
            names.insert(b"tablespaces".to_vec());
        }
        Place::Made(names)
    }

    fn tablespaces(&self) -> BTreeSet<Vec<u8>> {
        let oid = |kind: &PartKind| match kind {
            PartKind::Tablespace { oid, .. } => Some(oid.to_string().into_bytes()),
            _ => None,
        };
        self.shipped.manifest.parts().filter_map(|(_, part)| oid(&part.kind)).collect()
    }

    /// One of the set's own files whose names begin with `prefix`, or a folder of such.
    fn own(&self, prefix: &str, rest: &[&[u8]]) -> Option<Place> {
        let name = format!("{prefix}{}", std::str::from_utf8(&rest.join(&b'/')).ok()?);
        let files = &self.shipped.manifest.files;
        if files.contains_key(&name) {
            return Some(Place::Own(name));
        }
        let folder = if rest.is_empty() { prefix.to_owned() } else { format!("{name}/") };
        let below = files.keys().filter_map(|known| known.strip_prefix(&folder));
        let names: BTreeSet<Vec<u8>> =
            below.map(|rest| rest.split('/').next().unwrap_or(rest).as_bytes().to_vec()).collect();
        (rest.is_empty() || !names.is_empty()).then_some(Place::Made(names))
    }

    fn in_part(
        &mut self,
        is_it: impl Fn(&PartKind) -> bool,
        rest: &[&[u8]],
    ) -> Result<Option<Place>> {
        let shipped = self.shipped;
        let part = shipped.manifest.parts().find(|(_, part)| is_it(&part.kind));
        let Some((volume, part)) = part else { return Ok(None) };
        let inside = part.inside.iter().map(OsStrExt::as_bytes);
        let names: Vec<&[u8]> = inside.chain(rest.iter().copied()).collect();
        let object = self.tree(volume)?.find(names);
        Ok(object.map(|object| Place::Volume(volume, object)))
    }

    fn tree(&mut self, volume: usize) -> Result<&ImageTree> {
        if !self.trees.contains_key(&volume) {
            let dataset = self.shipped.manifest.volumes.get(volume).map(|volume| &volume.dataset);
            let shipped = self.shipped.volumes.iter().find(|one| Some(&one.dataset) == dataset);
            let shipped = shipped.ok_or_else(|| {
                Error::failed(format!(
                    "a volume of set {} isn't in the repository",
                    self.shipped.manifest.set
                ))
            })?;
            if shipped.raw.is_some() {
                return Err(self.stored_raw(&shipped.dataset));
            }
            let tree = ImageTree::read(self.repository, &shipped.image, &shipped.delta)?;
            self.trees.insert(volume, tree);
        }
        self.trees.get(&volume).ok_or_else(|| Error::failed("a volume that was read isn't there"))
    }

    fn stored_raw(&self, dataset: &DatasetName) -> Error {
        let set = self.shipped.manifest.set.to_string();
        Refusal::StoredRaw { set, dataset: dataset.to_string() }.into()
    }

    fn entry(&mut self, place: &Place, path: Vec<u8>) -> Result<Entry> {
        let made = Entry {
            path,
            kind: FileType::Directory,
            mode: 0o700,
            owner: None,
            size: None,
            mtime: None,
            target: None,
            is_stored: true,
        };
        Ok(match place {
            Place::Made(_) => made,
            Place::Own(name) => Entry {
                kind: FileType::Regular,
                mode: 0o600,
                size: self.shipped.manifest.files.get(name).map(|file| file.bytes),
                ..made
            },
            Place::Volume(volume, object) => {
                let tree = self.tree(*volume)?;
                let attributes = &tree.node(*object)?.attributes;
                let kind = attributes.file_type();
                let has_size = matches!(kind, FileType::Regular | FileType::Symlink);
                Entry {
                    kind,
                    mode: attributes.permissions(),
                    owner: Some((attributes.uid, attributes.gid)),
                    size: has_size.then_some(attributes.size),
                    mtime: Some(attributes.mtime),
                    target: attributes.symlink.clone().filter(|_| kind == FileType::Symlink),
                    is_stored: !tree.left_out.contains(object),
                    ..made
                }
            }
        })
    }
}

fn steps_of(path: &[u8]) -> Result<Steps> {
    let steps = path.split(|byte| *byte == b'/').filter(|step| !matches!(*step, b"" | b"."));
    let steps: Steps = steps.map(<[u8]>::to_vec).collect();
    if steps.iter().any(|step| step == b"..") {
        return Err(Error::usage(
            format!("\"{}\" leads up", path.escape_ascii()),
            "write the path from the top: data/…, wal/…, tablespaces/OID/…, files/…",
        ));
    }
    Ok(steps)
}

/// Writes blocks in order, with zeros where there are none.
struct ZerosBetween<'a> {
    to: &'a mut dyn Write,
    position: u64,
}

impl ZerosBetween<'_> {
    fn put(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        const ZEROS: &[u8] = &[0; 64 << 10];
        let failed = || Error::io("write to", "standard output");
        while self.position < offset {
            let length = usize::try_from(offset - self.position).unwrap_or(usize::MAX);
            let zeros = &ZEROS[..length.min(ZEROS.len())];
            self.to.write_all(zeros).map_err(failed())?;
            self.position += zeros.len() as u64;
        }
        self.to.write_all(bytes).map_err(failed())?;
        self.position += bytes.len() as u64;
        steps::reached("look.content")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_taken_apart_and_never_lead_up() {
        let steps = |path: &str| steps_of(path.as_bytes()).map(|steps| steps.join(&b'|'));
        assert_eq!(steps("data/base//5/./1259/").unwrap(), b"data|base|5|1259");
        assert_eq!(steps("/").unwrap(), b"");
        assert_eq!(steps("data/..").unwrap_err().exit_code(), 2);
        assert!(steps("data/...").is_ok());
    }

    #[test]
    fn what_lies_between_blocks_is_zeros() {
        let mut out = Vec::new();
        let mut zeros = ZerosBetween { to: &mut out, position: 0 };
        zeros.put(3, b"ab").unwrap();
        zeros.put(5, b"c").unwrap();
        zeros.put(100_000, &[]).unwrap();
        assert_eq!(&out[..7], b"\0\0\0abc\0");
        assert_eq!(out.len(), 100_000);
    }
}
