//! Writes content into files: one thread's part of it.

use std::io::IoSlice;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use rustix::fs::OFlags;

use super::content::Work;
use super::make::write_all;
use super::place::Folders;
use crate::error::Result;

/// The unit of comparison, written if it differs.
const STRIDE: usize = 8 << 10;
/// The most pieces that are written in one call; Linux takes 1,024.
const MOST_PIECES: usize = 512;

/// Content for one place in a file. After increments it comes in pieces, from many frames.
pub(super) struct Stretch {
    file: usize,
    offset: u64,
    length: u64,
    pieces: Vec<Bytes>,
}

impl Stretch {
    pub(super) fn new(file: usize, offset: u64, piece: Bytes) -> Self {
        Self { file, offset, length: piece.len() as u64, pieces: vec![piece] }
    }

    /// Appends a piece to the stretch before; returns it if it doesn't follow.
    pub(super) fn lengthen(
        before: Option<&mut Self>,
        file: usize,
        offset: u64,
        piece: Bytes,
    ) -> Option<Bytes> {
        match before {
            Some(before)
                if before.file == file
                    && before.offset + before.length == offset
                    && before.pieces.len() < MOST_PIECES =>
            {
                before.length += piece.len() as u64;
                before.pieces.push(piece);
                None
            }
            _ => Some(piece),
        }
    }
}

/// One thread's tools.
pub(super) struct Writer<'a> {
    work: &'a Work<'a>,
    folders: Folders<'a>,
    /// The file that was written last.
    file: Option<(usize, OwnedFd)>,
    /// What should be there, in one piece, and what is there.
    buffers: (Vec<u8>, Vec<u8>),
}

impl<'a> Writer<'a> {
    pub(super) fn new(work: &'a Work<'a>) -> Self {
        let folders = Folders::new(work.root, work.plan);
        Self { work, folders, file: None, buffers: Default::default() }
    }

    /// Writes a stretch, and those that others leave for its file meanwhile; or leaves it with the thread at that
    /// file.
    pub(super) fn write(&mut self, stretch: Stretch) -> Result<()> {
        let (turns, file) = (&self.work.turns, stretch.file);
        let size = usize::try_from(stretch.length).unwrap_or(usize::MAX);
        let mut next = turns.come(file, size, stretch);
        while let Some(stretch) = next {
            self.write_file(&stretch)?;
            next = turns.next(file);
        }
        Ok(())
    }

    fn write_file(&mut self, stretch: &Stretch) -> Result<()> {
        let Work { plan, root, made, .. } = *self.work;
        let Stretch { file, offset, length, ref pieces } = *stretch;
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
            let (whole, there) = &mut self.buffers;
            let bytes = match &pieces[..] {
                [one] => &one[..],
                pieces => {
                    whole.clear();
                    pieces.iter().for_each(|piece| whole.extend_from_slice(piece));
                    whole
                }
            };
            write_where_it_differs(&fd, bytes, offset, there)
        } else {
            write_pieces(&fd, pieces, offset).map(|()| length)
        };
        self.work.volume.bar.inc(length);
        self.work.volume.has_content.store(true, Ordering::Relaxed);
        self.work.written.fetch_add(written.map_err(failed("write"))?, Ordering::Relaxed);
        self.file = Some((file, fd));
        Ok(())
    }
}

/// Writes all of them one after the other.
fn write_pieces(fd: &OwnedFd, pieces: &[Bytes], mut position: u64) -> rustix::io::Result<()> {
    let mut slices: Vec<_> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
    let mut left = &mut slices[..];
    while !left.is_empty() {
        match rustix::io::pwritev(fd, left, position) {
            Ok(0) => return Err(rustix::io::Errno::IO),
            Ok(length) => {
                IoSlice::advance_slices(&mut left, length);
                position += length as u64;
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Compares with what is there, and writes the strides that differ; returns the bytes written.
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
