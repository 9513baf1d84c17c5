//! Writes packs: compresses on several threads, and uploads while more is read.

use std::collections::{BTreeSet, VecDeque};
use std::path::Path;
use std::thread::JoinHandle;

use bytes::Bytes;

use super::compressor::Compressor;
use super::resume::Resume;
use crate::error::{Error, Result};
use crate::frame::{Place, finish};
use crate::id::Ulid;
use crate::repository::Repository;
use crate::store::StoreResult;
use crate::threads;

/// How packs are written.
///
/// Memory: `(1 + uploads) * pack_size`, and four frames a thread.
#[derive(Clone, Copy, Debug)]
pub struct PackOptions {
    /// A pack is closed when it has reached this size.
    pub pack_size: u64,
    /// zstd's level.
    pub level: i32,
    /// Threads that compress; with one or none the caller's own does.
    pub threads: usize,
    /// Packs that are being uploaded while the next is filled.
    pub uploads: usize,
}

impl Default for PackOptions {
    fn default() -> PackOptions {
        PackOptions { pack_size: 64 << 20, level: 3, threads: 1, uploads: 1 }
    }
}

/// Where a frame was placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// The pack.
    pub pack: Ulid,
    /// Its offset in it.
    pub at: u64,
    /// Its length in it.
    pub length: u64,
}

/// A pack that is complete in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packed {
    /// The pack.
    pub pack: Ulid,
    /// Its size.
    pub size: u64,
    /// How many bytes of content its frames hold.
    pub content: u64,
}

struct Upload {
    packed: Packed,
    frames: VecDeque<(String, u64, u64)>,
    thread: JoinHandle<StoreResult<()>>,
}

/// Writes frames into packs.
pub struct PackWriter {
    repository: Repository,
    options: PackOptions,
    compressor: Compressor,
    pack: Ulid,
    frames: Vec<Bytes>,
    length: u64,
    content: u64,
    uploads: VecDeque<Upload>,
    stored: Vec<Packed>,
    resume: Option<Resume>,
}

impl PackWriter {
    /// Makes a writer, which writes nothing yet. With a journal at `resume`, it doesn't store again what a writer of
    /// the same content stored before it was interrupted.
    pub fn new(
        repository: &Repository,
        options: PackOptions,
        resume: Option<&Path>,
    ) -> Result<PackWriter> {
        Ok(PackWriter {
            resume: resume.map(|path| Resume::open(repository, path)).transpose()?,
            repository: repository.clone(),
            options,
            compressor: Compressor::new(options.threads, options.level, resume.is_some())?,
            pack: Ulid::new()?,
            frames: Vec::new(),
            length: 0,
            content: 0,
            uploads: VecDeque::new(),
            stored: Vec::new(),
        })
    }

    /// Takes a frame's content, and calls `placed` for each frame, in the order given, once it has its place.
    pub fn push(&mut self, content: Vec<u8>, placed: &mut impl FnMut(Placed)) -> Result<()> {
        if let Some(resume) = &mut self.resume {
            // What was stored before comes first, while nothing is in the compressor.
            if let Some(known) = resume.find(&content)? {
                self.stored.extend(known.packed);
                placed(known.placed);
                return Ok(());
            }
        }
        while self.compressor.is_full() {
            self.place(placed)?;
        }
        self.compressor.give(content)
    }

    /// Places the oldest frame; returns false if there is none.
    fn place(&mut self, placed: &mut impl FnMut(Placed)) -> Result<bool> {
        let Some(compressed) = self.compressor.take()? else {
            return Ok(false);
        };
        self.content += compressed.content_length();
        let hash = compressed.content_hash();
        let path = self.repository.pack_path(self.pack);
        let place = Place { path: &path, pack: self.pack, at: self.length };
        let frame = finish(compressed, place, self.repository.key())?;
        let length = frame.len() as u64;
        placed(Placed { pack: self.pack, at: self.length, length });
        if let (Some(resume), Some(hash)) = (&mut self.resume, hash) {
            resume.framed(hash, self.length, length);
        }
        self.frames.push(frame.into());
        self.length += length;
        if self.length >= self.options.pack_size {
            self.upload()?;
        }
        Ok(true)
    }

    /// Starts the upload of the current pack.
    fn upload(&mut self) -> Result<()> {
        if self.frames.is_empty() {
            return Ok(());
        }
        while self.uploads.len() >= self.options.uploads.max(1) {
            self.wait_for_one()?;
        }
        let packed = Packed { pack: self.pack, size: self.length, content: self.content };
        let path = self.repository.pack_path(self.pack);
        let frames = std::mem::take(&mut self.frames);
        let store = self.repository.store().clone();
        let thread = threads::start(move || store.put(&path, &frames))?;
        let frames = self.resume.as_mut().map(Resume::take_frames).unwrap_or_default();
        self.uploads.push_back(Upload { packed, frames, thread });
        self.pack = Ulid::new()?;
        (self.length, self.content) = (0, 0);
        Ok(())
    }

    fn wait_for_one(&mut self) -> Result<()> {
        if let Some(upload) = self.uploads.pop_front() {
            upload
                .thread
                .join()
                .map_err(|_| Error::caller("an uploading thread ended early"))??;
            if let Some(resume) = &mut self.resume {
                resume.stored(upload.packed, upload.frames)?;
            }
            self.stored.push(upload.packed);
        }
        Ok(())
    }

    /// Returns the packs that a journal names, from which a writer of the same content would continue.
    ///
    /// # Errors
    /// If the journal exists and can't be read.
    pub fn stored_before(resume: &Path) -> Result<BTreeSet<Ulid>> {
        Resume::packs(resume)
    }

    /// Removes a journal whose contents are in a delta now.
    pub fn forget(resume: &Path) {
        Resume::remove(resume);
    }

    /// Places what is left and waits until every pack is in the store.
    pub fn finish(mut self, placed: &mut impl FnMut(Placed)) -> Result<Vec<Packed>> {
        while self.place(placed)? {}
        self.upload()?;
        while !self.uploads.is_empty() {
            self.wait_for_one()?;
        }
        Ok(std::mem::take(&mut self.stored))
    }
}
