//! A set on this host: its snapshots, through `.zfs` or a temporary clone, and its own files.
//!
//! What could go wrong: a symbolic link in a snapshot leads to the live cluster, so none is followed. A snapshot or a
//! dataset was renamed to the name of the set's, so each is identified by its GUID before it is looked into.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use sendstream::zpl::{FileType, Timestamp};

use super::{Each, Entry, Inside};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::plan::layout::PartKind;
use crate::postgres::instance::PG_CONTROL;
use crate::set::manifest::Manifest;
use crate::set::own_files::{self, FrozenWal};
use crate::set::verify;
use crate::view::Views;

/// Bytes that are read at a time.
const BLOCK: usize = 1 << 20;

/// A set on this host.
pub(super) struct Frozen<'a> {
    cx: &'a Context<'a>,
    manifest: Manifest,
    /// Filled when first needed.
    own: Option<Own>,
    /// The views of the volumes looked into so far.
    volumes: BTreeMap<usize, Views<'a>>,
}

/// The set's own files.
struct Own {
    /// Where they are.
    paths: BTreeMap<String, PathBuf>,
    sizes: BTreeMap<String, u64>,
}

impl<'a> Frozen<'a> {
    pub(super) fn new(cx: &'a Context<'a>, manifest: Manifest) -> Self {
        Self { cx, manifest, own: None, volumes: BTreeMap::new() }
    }

    /// Returns the root of a volume's snapshot.
    fn root(&mut self, volume: usize) -> Result<&Path> {
        let known = self.manifest.volumes.get(volume);
        let known = known.ok_or_else(|| {
            Error::failed(format!("set {} has no volume {volume}", self.manifest.set))
        })?;
        let name = known.snapshot.clone();
        if !self.volumes.contains_key(&volume) {
            // The name alone proves nothing: another snapshot or dataset may have been renamed to it.
            verify::snapshot(self.cx, &self.manifest, known)?;
            let views = Views::open(self.cx, std::slice::from_ref(&name)).map_err(|error| {
                let hint = "if a repository has the set, use --from repository";
                Error::failed(format!("\"{}\" can't be looked into", known.snapshot))
                    .because(error)
                    .with_hint(hint)
            })?;
            self.volumes.insert(volume, views);
        }
        let seen = self.volumes.get(&volume).and_then(|views| views.path(&name));
        seen.ok_or_else(|| Error::failed(format!("\"{}\" can't be looked into", known.snapshot)))
    }

    /// Returns where a path leads, if every step but the last is a folder.
    fn path(&mut self, volume: usize, path: &[Vec<u8>]) -> Result<Option<PathBuf>> {
        let mut at = self.root(volume)?.to_path_buf();
        for step in path {
            let metadata = std::fs::symlink_metadata(&at).map_err(Error::io("look at", &at))?;
            if !metadata.is_dir() {
                return Ok(None);
            }
            at.push(OsStr::from_bytes(step));
            match std::fs::symlink_metadata(&at) {
                Ok(_) => {}
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
                Err(e) => return Err(Error::io("look at", &at)(e)),
            }
        }
        Ok(Some(at))
    }

    fn own(&mut self) -> Result<&Own> {
        if self.own.is_none() {
            // The same files that a repository gets: all of the set's WAL is among them.
            let mut manifest = self.manifest.clone();
            let frozen = match own_files::wal_in_snapshot(&manifest) {
                Some((volume, inside)) => {
                    let pg_wal = self.root(volume)?.join(inside);
                    let mut parts = manifest.parts();
                    let data = parts.find(|(_, part)| part.kind == PartKind::Data);
                    let data = data.map(|(volume, part)| (volume, part.inside.clone()));
                    // If it can't be read, the manifest has to do.
                    let control = data.and_then(|(volume, inside)| {
                        self.root(volume).ok().map(|root| root.join(inside).join(PG_CONTROL))
                    });
                    Some(FrozenWal::find(&manifest, pg_wal, control.as_deref())?)
                }
                None => None,
            };
            let paths = own_files::take_files(self.cx, &mut manifest, frozen.as_ref())?;
            let files = manifest.files.iter();
            let sizes = files.map(|(name, file)| (name.clone(), file.bytes)).collect();
            self.own = Some(Own { paths, sizes });
        }
        self.own.as_ref().ok_or_else(|| Error::failed("files that were found aren't there"))
    }
}

impl Inside for Frozen<'_> {
    fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    fn own_files(&mut self) -> Result<&BTreeMap<String, u64>> {
        self.own().map(|own| &own.sizes)
    }

    fn own_content(&mut self, name: &str, each: Each<'_>) -> Result<()> {
        let path = self.own()?.paths.get(name).cloned();
        let none = || Error::failed(format!("file \"{name}\" isn't among the set's"));
        read(&path.ok_or_else(none)?, each)
    }

    fn entry(&mut self, volume: usize, path: &[Vec<u8>]) -> Result<Option<Entry>> {
        let Some(path) = self.path(volume, path)? else { return Ok(None) };
        let metadata = std::fs::symlink_metadata(&path).map_err(Error::io("look at", &path))?;
        let kind = FileType::from_mode(metadata.mode().into());
        let has_size = matches!(kind, FileType::Regular | FileType::Symlink);
        let target = match kind {
            FileType::Symlink => {
                let target = std::fs::read_link(&path).map_err(Error::io("read", &path))?;
                Some(target.into_os_string().into_vec())
            }
            _ => None,
        };
        Ok(Some(Entry {
            path: Vec::new(),
            kind,
            mode: u64::from(metadata.mode()) & 0o7777,
            owner: Some((metadata.uid().into(), metadata.gid().into())),
            size: has_size.then_some(metadata.size()),
            mtime: Some(Timestamp {
                seconds: metadata.mtime(),
                nanoseconds: u64::try_from(metadata.mtime_nsec()).unwrap_or(0),
            }),
            target,
            is_stored: true,
        }))
    }

    fn names(&mut self, volume: usize, path: &[Vec<u8>]) -> Result<BTreeSet<Vec<u8>>> {
        let Some(path) = self.path(volume, path)? else { return Ok(BTreeSet::new()) };
        let listed = std::fs::read_dir(&path).map_err(Error::io("list", &path))?;
        let name = |entry: std::io::Result<std::fs::DirEntry>| {
            Ok(entry.map_err(Error::io("list", &path))?.file_name().into_vec())
        };
        listed.map(name).collect()
    }

    fn content(&mut self, volume: usize, path: &[Vec<u8>], each: Each<'_>) -> Result<()> {
        match self.path(volume, path)? {
            Some(path) => read(&path, each),
            None => Ok(()),
        }
    }
}

fn read(path: &Path, each: Each<'_>) -> Result<()> {
    let mut file = File::open(path).map_err(Error::io("read", path))?;
    let mut block = vec![0; BLOCK];
    let mut offset = 0;
    loop {
        let length = file.read(&mut block).map_err(Error::io("read", path))?;
        if length == 0 {
            return Ok(());
        }
        each(offset, &block[..length])?;
        offset += length as u64;
    }
}
