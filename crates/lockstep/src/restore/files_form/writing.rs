//! Frames into files: one thread's part of it.
//!
//! What could go wrong: an index that names more than its frame has. It is looked at before anything of the frame is
//! written.

use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use rustix::fs::OFlags;
use strata::Ulid;
use strata::pack::RunReader;

use super::content::{Batch, Part, To, Work};
use super::make::write_all;
use super::place::Folders;
use crate::error::{Error, Result};
use crate::repository::of_strata;

/// What is compared, and written where it differs.
const STRIDE: usize = 8 << 10;

/// Parts of a content for one file, left with the thread that writes it.
pub(super) struct Left {
    content: Arc<Vec<u8>>,
    parts: Vec<Part>,
}

/// One thread's tools.
pub(super) struct Writer<'a> {
    work: &'a Work<'a>,
    frames: RunReader,
    folders: Folders<'a>,
    /// The file that was written last.
    file: Option<(usize, OwnedFd)>,
    buffer: Vec<u8>,
}

impl<'a> Writer<'a> {
    pub(super) fn new(work: &'a Work<'a>) -> Self {
        Self {
            work,
            frames: RunReader::new(&work.volume.repository.strata),
            folders: Folders::new(work.root, work.plan),
            file: None,
            buffer: Vec::new(),
        }
    }

    /// Reads neighbouring frames and writes their parts.
    pub(super) fn write_run(&mut self, run: Vec<Batch>) -> Result<()> {
        let places: Vec<_> = run.iter().map(|batch| (batch.frame, batch.length)).collect();
        let pack = run.first().map_or(Ulid(0), |batch| batch.pack);
        let stored = self.frames.read(pack, &places);
        for (batch, stored) in run.into_iter().zip(stored) {
            let stored = stored.map_err(of_strata)?;
            let content = self.frames.open(pack, batch.frame, &stored).map_err(of_strata)?;
            drop(stored);
            self.write(&batch, content)?;
        }
        Ok(())
    }

    fn write(&mut self, batch: &Batch, content: Vec<u8>) -> Result<()> {
        self.work.read.fetch_add(batch.length, Ordering::Relaxed);
        if let Some(part) = batch.parts.iter().find(|part| part.of(&content).is_none()) {
            return Err(Error::failed(format!(
                "pack {} at {}: the index wants {} bytes from {} on of a frame that has {}",
                batch.pack,
                batch.frame,
                part.size,
                part.start,
                content.len()
            )));
        }
        let content = Arc::new(content);
        for parts in batch.parts.chunk_by(|one, next| one.to == next.to) {
            match parts.first().map(|part| part.to) {
                Some(To::File(file)) => self.file_parts(file, &content, parts)?,
                Some(To::Xattr(object)) => self.xattr_parts(object, &content, parts),
                None => {}
            }
        }
        self.give_back(content);
        Ok(())
    }

    /// Writes parts of a file, and those that others leave meanwhile; or leaves them with who is at it.
    fn file_parts(&mut self, file: usize, content: &Arc<Vec<u8>>, parts: &[Part]) -> Result<()> {
        let turns = &self.work.turns;
        let left = Left { content: content.clone(), parts: parts.to_vec() };
        let mut next = turns.come(file, content.len(), left);
        while let Some(Left { content, parts }) = next {
            for part in &parts {
                self.write_file(file, part.offset, part.of(&content).unwrap_or_default())?;
            }
            self.give_back(content);
            next = turns.next(file);
        }
        Ok(())
    }

    fn xattr_parts(&self, object: u64, content: &[u8], parts: &[Part]) {
        let mut xattrs = self.work.xattrs.lock().unwrap_or_else(PoisonError::into_inner);
        for part in parts {
            let bytes = part.of(content).unwrap_or_default();
            let place = usize::try_from(part.offset).ok();
            let place = xattrs
                .get_mut(&object)
                .zip(place)
                .and_then(|(value, at)| value.get_mut(at..)?.get_mut(..bytes.len()));
            if let Some(place) = place {
                place.copy_from_slice(bytes);
            }
        }
    }

    /// The content's memory is used again once nobody else has it.
    fn give_back(&mut self, content: Arc<Vec<u8>>) {
        if let Some(content) = Arc::into_inner(content) {
            self.frames.give_back(content);
        }
    }

    fn write_file(&mut self, file: usize, offset: u64, bytes: &[u8]) -> Result<()> {
        let Work { plan, root, made, .. } = *self.work;
        let exists = made.existing.contains(&file);
        let entry = &plan.files[file];
        let fd = match self.file.take() {
            Some((known, fd)) if known == file => fd,
            _ => {
                let flags = if exists { OFlags::RDWR } else { OFlags::WRONLY };
                root.file(plan, entry, self.folders.get(entry.folder)?, flags)?
            }
        };
        let failed = |verb| root.failed(verb, || plan.file_path(entry));
        let written = if exists {
            write_where_it_differs(&fd, bytes, offset, &mut self.buffer)
        } else {
            write_all(&fd, bytes, offset).map(|()| bytes.len() as u64)
        };
        self.work.volume.bar.inc(bytes.len() as u64);
        self.work.written.fetch_add(written.map_err(failed("write"))?, Ordering::Relaxed);
        self.file = Some((file, fd));
        Ok(())
    }
}

impl Part {
    /// Its bytes in the frame's content.
    fn of<'c>(&self, content: &'c [u8]) -> Option<&'c [u8]> {
        content.get(self.start..self.start.checked_add(self.size)?)
    }
}

/// Compares with what is there, and writes the strides that differ; gives the bytes written.
fn write_where_it_differs(
    fd: &OwnedFd,
    bytes: &[u8],
    offset: u64,
    buffer: &mut Vec<u8>,
) -> rustix::io::Result<u64> {
    buffer.resize(bytes.len(), 0);
    let mut there = 0;
    while there < bytes.len() {
        match rustix::io::pread(fd, &mut buffer[there..], offset + there as u64) {
            Ok(0) => break,
            Ok(length) => there += length,
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    if buffer[..there] == *bytes {
        return Ok(0);
    }
    let differs = |at: usize| {
        let end = (at + STRIDE).min(bytes.len());
        end > there || buffer[at..end] != bytes[at..end]
    };
    let (mut written, mut at) = (0, 0);
    while at < bytes.len() {
        if !differs(at) {
            at += STRIDE;
            continue;
        }
        let from = at;
        while at < bytes.len() && differs(at) {
            at += STRIDE;
        }
        let changed = &bytes[from..at.min(bytes.len())];
        write_all(fd, changed, offset + from as u64)?;
        written += changed.len() as u64;
    }
    Ok(written)
}
