//! Looks into a set without restoring it.
//!
//! ```text
//! data/…                   the data directory
//! wal/…                    the segments that the set carries
//! tablespaces/OID/…        the tablespaces
//! files/…                  the set's own files: backup_label, wal/SEGMENT, config/…
//! ```
//!
//! The paths are the same whether the set is in a repository (`look/stored.rs`) or on this host (`look/frozen.rs`).
//! What could go wrong: content that isn't stored must not pass for zeros, so it is marked as such.

mod frozen;
mod stored;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;

use sendstream::zpl::{FileType, Timestamp};

use crate::context::{Context, lockstep};
use crate::error::{Error, Result};
use crate::plan::layout::PartKind;
use crate::repository::{Repository, Shipped};
use crate::set::manifest::Manifest;
use crate::steps;

/// A set that is looked into.
pub struct Look<'a> {
    inside: Box<dyn Inside + 'a>,
}

/// A name and what is known about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Below the requested path; empty for that path itself.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: FileType,
    /// The permissions.
    pub mode: u64,
    /// The owner and the group, for what was in the cluster.
    pub owner: Option<(u64, u64)>,
    /// For a file or a link.
    pub size: Option<u64>,
    /// For what was in the cluster.
    pub mtime: Option<Timestamp>,
    /// For a link.
    pub target: Option<Vec<u8>>,
    /// Whether its content is there.
    pub is_stored: bool,
}

/// Takes content in order: its offset in the file, and the bytes. The gaps are zeros.
type Each<'a> = &'a mut dyn FnMut(u64, &[u8]) -> Result<()>;

/// Where a set is looked into.
trait Inside {
    fn manifest(&self) -> &Manifest;

    /// Returns the set's own files, stored beside the manifest, by name, with their sizes.
    fn own_files(&mut self) -> Result<&BTreeMap<String, u64>>;

    /// Checks that the set's WAL is among them; in a set that is stored raw it isn't.
    ///
    /// # Errors
    /// Says where the WAL is instead.
    fn check_wal(&self) -> Result<()> {
        Ok(())
    }

    /// Reads the content of one of them.
    fn own_content(&mut self, name: &str, each: Each<'_>) -> Result<()>;

    /// Returns what is at a path from a volume's root; its `path` is left empty.
    fn entry(&mut self, volume: usize, path: &[Vec<u8>]) -> Result<Option<Entry>>;

    /// Returns the names in a folder of a volume.
    fn names(&mut self, volume: usize, path: &[Vec<u8>]) -> Result<BTreeSet<Vec<u8>>>;

    /// Reads the content of a regular file of a volume.
    fn content(&mut self, volume: usize, path: &[Vec<u8>], each: Each<'_>) -> Result<()>;

    /// Called before everything is read.
    fn prepare(&mut self) {}
}

/// Where a path leads.
enum Place {
    /// A virtual folder that exists in no file system, with the names in it.
    Made(BTreeSet<Vec<u8>>),
    /// One of the set's own files, by its name there, and its size.
    Own(String, u64),
    /// In a volume: its index, and the path from its root.
    Volume(usize, Steps),
}

/// A path as steps; `.` and empty steps are dropped.
type Steps = Vec<Vec<u8>>;

impl<'a> Look<'a> {
    /// Looks into a set in a repository.
    #[must_use]
    pub fn into_repository(repository: &'a Repository, shipped: &'a Shipped) -> Self {
        Self { inside: Box::new(stored::Stored::new(repository, shipped)) }
    }

    /// Looks into a set on this host.
    #[must_use]
    pub fn into_snapshots(cx: &'a Context<'a>, manifest: Manifest) -> Self {
        Self { inside: Box::new(frozen::Frozen::new(cx, manifest)) }
    }

    /// The set's id.
    #[must_use]
    pub fn set(&self) -> &str {
        self.inside.manifest().set.as_str()
    }

    /// Lists what is at a path: a folder's names, or the one file; with `deep` everything below it.
    ///
    /// # Errors
    /// When there is nothing of that name, or it can't be read.
    pub fn list(
        &mut self,
        path: &[u8],
        deep: bool,
        mut each: impl FnMut(Entry) -> Result<()>,
    ) -> Result<()> {
        if deep {
            self.inside.prepare();
        }
        let start = steps_of(path)?;
        let (place, entry) = self.find(&start)?;
        if entry.kind != FileType::Directory {
            return each(entry);
        }
        // Names in byte order, each folder's content after the folder.
        let mut waiting: Vec<Steps> = self.below(&place, &Vec::new())?;
        while let Some(inside) = waiting.pop() {
            steps::reached("look.folder")?;
            let steps: Steps = start.iter().chain(&inside).cloned().collect();
            let (place, mut entry) = self.find(&steps)?;
            entry.path = inside.join(&b'/');
            let is_folder = entry.kind == FileType::Directory;
            each(entry)?;
            if is_folder && deep {
                waiting.append(&mut self.below(&place, &inside)?);
            }
        }
        Ok(())
    }

    /// Returns the paths of what is in a folder, last first.
    fn below(&mut self, place: &Place, inside: &Steps) -> Result<Vec<Steps>> {
        let names = match place {
            Place::Made(names) => names.clone(),
            Place::Own(..) => BTreeSet::new(),
            Place::Volume(volume, path) => self.inside.names(*volume, path)?,
        };
        let path = |name: Vec<u8>| inside.iter().cloned().chain([name]).collect();
        Ok(names.into_iter().rev().map(path).collect())
    }

    /// Writes a file's content; returns `false` if it isn't stored, and then nothing was written.
    ///
    /// # Errors
    /// When it isn't a file, it can't be read, or the writer fails.
    pub fn cat(&mut self, path: &[u8], to: &mut dyn Write) -> Result<bool> {
        let (place, entry) = self.find(&steps_of(path)?)?;
        let what = || format!("\"{}\"", path.escape_ascii());
        match entry.kind {
            FileType::Regular => {}
            FileType::Directory => {
                return Err(Error::usage(
                    format!("{} is a folder", what()),
                    format!("list it with `{} ls`", lockstep()),
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
            Place::Volume(volume, path) => {
                self.inside.content(volume, &path, &mut |at, bytes| zeros.put(at, bytes))?;
            }
            Place::Own(name, _) => {
                self.inside.own_content(&name, &mut |at, bytes| zeros.put(at, bytes))?;
            }
            Place::Made(_) => {}
        }
        zeros.put(entry.size.unwrap_or(0), &[])?;
        Ok(true)
    }

    fn find(&mut self, steps: &Steps) -> Result<(Place, Entry)> {
        let names: Vec<&[u8]> = steps.iter().map(Vec::as_slice).collect();
        let found = match names.as_slice() {
            [] => Some(Place::Made(self.top())),
            [b"files", rest @ ..] => self.own("", rest)?,
            [b"wal", rest @ ..] => {
                self.inside.check_wal()?;
                self.own("wal/", rest)?
            }
            [b"data", rest @ ..] => self.in_part(|kind| *kind == PartKind::Data, rest),
            [b"tablespaces"] => Some(Place::Made(self.tablespaces())),
            [b"tablespaces", oid, rest @ ..] => {
                let is_it = |kind: &PartKind| {
                    matches!(kind, PartKind::Tablespace { oid: known, .. }
                        if known.to_string().as_bytes() == *oid)
                };
                self.in_part(is_it, rest)
            }
            _ => None,
        };
        let made = Entry {
            path: Vec::new(),
            kind: FileType::Directory,
            mode: 0o700,
            owner: None,
            size: None,
            mtime: None,
            target: None,
            is_stored: true,
        };
        let entry = match &found {
            None => None,
            Some(Place::Made(_)) => Some(made),
            Some(Place::Own(_, size)) => {
                Some(Entry { kind: FileType::Regular, mode: 0o600, size: Some(*size), ..made })
            }
            Some(Place::Volume(volume, path)) => self.inside.entry(*volume, path)?,
        };
        found.zip(entry).ok_or_else(|| {
            Error::usage(
                format!(
                    "set {} has nothing at \"{}\"",
                    self.set(),
                    names.join(&b'/').escape_ascii()
                ),
                format!(
                    "`{} ls {}` shows what is there: data, wal, tablespaces/OID, files",
                    lockstep(),
                    self.set()
                ),
            )
        })
    }

    fn top(&self) -> BTreeSet<Vec<u8>> {
        let mut names: BTreeSet<Vec<u8>> =
            ["data", "files", "wal"].map(|name| name.as_bytes().to_vec()).into();
        if !self.tablespaces().is_empty() {
            names.insert(b"tablespaces".to_vec());
        }
        names
    }

    fn tablespaces(&self) -> BTreeSet<Vec<u8>> {
        let oid = |kind: &PartKind| match kind {
            PartKind::Tablespace { oid, .. } => Some(oid.to_string().into_bytes()),
            _ => None,
        };
        self.inside.manifest().parts().filter_map(|(_, part)| oid(&part.kind)).collect()
    }

    /// Finds one of the set's own files whose names begin with `prefix`, or a folder of such files.
    fn own(&mut self, prefix: &str, rest: &[&[u8]]) -> Result<Option<Place>> {
        let Ok(rest_of_name) = String::from_utf8(rest.join(&b'/')) else { return Ok(None) };
        let name = format!("{prefix}{rest_of_name}");
        let files = self.inside.own_files()?;
        if let Some(size) = files.get(&name) {
            return Ok(Some(Place::Own(name, *size)));
        }
        let folder = if rest.is_empty() { prefix.to_owned() } else { format!("{name}/") };
        let below = files.keys().filter_map(|known| known.strip_prefix(&folder));
        let names: BTreeSet<Vec<u8>> =
            below.map(|rest| rest.split('/').next().unwrap_or(rest).as_bytes().to_vec()).collect();
        Ok((rest.is_empty() || !names.is_empty()).then_some(Place::Made(names)))
    }

    fn in_part(&self, is_it: impl Fn(&PartKind) -> bool, rest: &[&[u8]]) -> Option<Place> {
        let (volume, part) = self.inside.manifest().parts().find(|(_, part)| is_it(&part.kind))?;
        let inside = part.inside.iter().map(OsStrExt::as_bytes);
        Some(Place::Volume(
            volume,
            inside.chain(rest.iter().copied()).map(<[u8]>::to_vec).collect(),
        ))
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
