//! Stores the files that belong to a set's manifest (label, tablespace map, pg_control, configuration, WAL) as one
//! image. Each file is an object with its name in the header. So they are compressed, sealed, checked and collected
//! like everything else.
//!
//! What could go wrong: a file that was damaged on this host is stored as it is, and the set can't be restored
//! although every object is whole. So each file is compared with the manifest while it is read, before anything
//! stored counts.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use strata::delta::{Change, Extent, ImageOptions, ImageWriter, chain};
use strata::fold::{DataSink, Folded, KeepAll, Reading, fold, open_chain};
use strata::pack::FrameReader;

use super::shipped::FILES_IMAGE;
use super::{Repository, of_strata};
use crate::error::{Error, Result};
use crate::files;
use crate::refusal::Refusal;
use crate::set::manifest::{SetFile, hash_file};

/// The block size of a file, in bytes.
const BLOCK: usize = 1 << 20;

/// Stores `names`, each read from the path given with it, if they match `expected`. `still` is called before they
/// replace others that the set may have.
///
/// # Errors
/// [`Refusal::SetDamaged`] when a file doesn't match; when one can't be read or the store fails.
pub fn store(
    repository: &Repository,
    set: &str,
    expected: &BTreeMap<String, SetFile>,
    names: &BTreeMap<String, PathBuf>,
    options: &ImageOptions,
    still: &dyn Fn() -> Result<()>,
) -> Result<()> {
    let mut writer =
        ImageWriter::new(&repository.strata, FILES_IMAGE, set, None, options).map_err(of_strata)?;
    for (object, (name, path)) in (1..).zip(names) {
        let mut hasher = blake3::Hasher::new();
        let header = Some(name.clone().into_bytes().into());
        writer.changed(Change { object, header, ..Change::default() }).map_err(of_strata)?;
        let mut file = File::open(path).map_err(Error::io("read", path))?;
        let mut block = vec![0; BLOCK];
        let mut offset = 0;
        loop {
            let length = files::fill(&mut file, &mut block).map_err(Error::io("read", path))?;
            if length == 0 {
                break;
            }
            hasher.update(&block[..length]);
            writer.data(offset, &block[..length]).map_err(of_strata)?;
            offset += length as u64;
        }
        if expected.get(name) != Some(&SetFile::hashed(offset, &hasher)) {
            let why = format!("\"{}\" isn't what its manifest says", path.display());
            return Err(Refusal::damaged(set, why).into());
        }
    }
    let still = || still().map_err(strata::Error::caller);
    writer.finish_if(&still).map(|_| ()).map_err(of_strata)
}

/// Reads the set's files into `sink`.
fn read(repository: &Repository, set: &str, sink: &mut impl DataSink) -> Result<()> {
    let chain = chain(&repository.strata, FILES_IMAGE, set, None).map_err(of_strata)?;
    let readers = open_chain(&repository.strata, &chain, 8 << 20).map_err(of_strata)?;
    let mut frames = FrameReader::new(&repository.strata, 8 << 20);
    fold(readers, true, &KeepAll, &mut Reading::new(&mut frames, sink)).map_err(of_strata)
}

/// Writes the set's files below `directory`, and checks each against `expected`.
///
/// # Errors
/// When one is missing or differs, the store fails, or a file can't be written.
pub fn fetch(
    repository: &Repository,
    set: &str,
    expected: &BTreeMap<String, SetFile>,
    directory: &Path,
) -> Result<()> {
    let mut sink = ToFiles { directory, expected, current: None };
    read(repository, set, &mut sink)?;
    for (name, expected) in expected {
        let path = directory.join(name);
        if hash_file(&path)? != *expected {
            return Err(Error::failed(format!(
                "file \"{name}\" of set {set} in repository \"{}\" isn't what its manifest says",
                repository.name
            )));
        }
    }
    Ok(())
}

/// Returns those of the set's files that are missing or differ from the manifest.
///
/// # Errors
/// When the store fails, or the objects that hold them are damaged.
pub fn wrong(
    repository: &Repository,
    set: &str,
    expected: &BTreeMap<String, SetFile>,
) -> Result<Vec<String>> {
    let mut sink = Hashes { found: BTreeMap::new(), current: None };
    read(repository, set, &mut sink)?;
    let found = sink.found;
    let is_wrong = |(name, file): &(&String, &SetFile)| found.get(*name) != Some(*file);
    Ok(expected.iter().filter(is_wrong).map(|(name, _)| name.clone()).collect())
}

/// Computes the sizes and hashes of a set's files.
struct Hashes {
    found: BTreeMap<String, SetFile>,
    current: Option<(String, u64, blake3::Hasher)>,
}

impl DataSink for Hashes {
    fn object(&mut self, object: &Folded) -> strata::Result<()> {
        let name = object.header.as_deref().map(|name| String::from_utf8_lossy(name).into_owned());
        self.current = name.map(|name| (name, 0, blake3::Hasher::new()));
        Ok(())
    }

    fn data(&mut self, _: u64, _: u64, content: &Bytes) -> strata::Result<()> {
        if let Some((_, bytes, hasher)) = &mut self.current {
            *bytes += content.len() as u64;
            hasher.update(content);
        }
        Ok(())
    }

    fn object_end(&mut self, _: u64) -> strata::Result<()> {
        if let Some((name, bytes, hasher)) = self.current.take() {
            self.found.insert(name, SetFile::hashed(bytes, &hasher));
        }
        Ok(())
    }
}

/// Passes the content of one of the set's files to `each`, in order.
///
/// # Errors
/// When it isn't there, the store fails, or `each` does.
pub fn content(
    repository: &Repository,
    set: &str,
    name: &str,
    each: impl FnMut(u64, &[u8]) -> Result<()>,
) -> Result<()> {
    let mut sink = OneFile { name, each, is_at_hand: false, was_there: false, failed: None };
    let folded = read(repository, set, &mut sink);
    if let Some(error) = sink.failed {
        return Err(error);
    }
    folded?;
    if sink.was_there {
        return Ok(());
    }
    Err(Error::failed(format!(
        "file \"{name}\" of set {set} isn't in repository \"{}\"",
        repository.name
    )))
}

struct OneFile<'a, F> {
    name: &'a str,
    each: F,
    is_at_hand: bool,
    was_there: bool,
    failed: Option<Error>,
}

impl<F: FnMut(u64, &[u8]) -> Result<()>> DataSink for OneFile<'_, F> {
    fn object(&mut self, object: &Folded) -> strata::Result<()> {
        self.is_at_hand = object.header.as_deref() == Some(self.name.as_bytes());
        self.was_there |= self.is_at_hand;
        Ok(())
    }

    fn skips(&mut self, _: u64, _: &Extent) -> strata::Result<bool> {
        Ok(!self.is_at_hand)
    }

    fn data(&mut self, _: u64, offset: u64, content: &Bytes) -> strata::Result<()> {
        (self.each)(offset, content).map_err(|error| {
            self.failed = Some(error);
            strata::Error::caller("the reader failed")
        })
    }
}

struct ToFiles<'a> {
    directory: &'a Path,
    expected: &'a BTreeMap<String, SetFile>,
    current: Option<(File, PathBuf)>,
}

impl DataSink for ToFiles<'_> {
    fn object(&mut self, object: &Folded) -> strata::Result<()> {
        self.current = None;
        let name = object.header.as_deref().and_then(|name| std::str::from_utf8(name).ok());
        // Only names in the manifest, which can't lead outside the folder (`names_within.rs`).
        let Some(name) = name.filter(|name| self.expected.contains_key(*name)) else {
            return Ok(());
        };
        let path = self.directory.join(name);
        let create = || -> Result<File> {
            if let Some(parent) = path.parent() {
                files::create_directories(parent)?;
            }
            File::create(&path).map_err(Error::io("create", &path))
        };
        let file = create().map_err(strata::Error::caller)?;
        self.current = Some((file, path));
        Ok(())
    }

    fn data(&mut self, _: u64, _: u64, content: &Bytes) -> strata::Result<()> {
        match &mut self.current {
            Some((file, path)) => file
                .write_all(content)
                .map_err(Error::io("write", &*path))
                .map_err(strata::Error::caller),
            None => Ok(()),
        }
    }
}
