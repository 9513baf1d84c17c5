//! Reads frames by range, each once for neighbouring blocks.

use std::collections::VecDeque;

use bytes::Bytes;

use super::Location;
use crate::error::{Error, Result};
use crate::frame::{self, HEADER, MAX_CONTENT, Place};
use crate::id::Ulid;
use crate::repository::Repository;

/// A walk over a pack reads this much at a time.
const WINDOW: u64 = 4 << 20;

/// Reads frames, and keeps those read last.
pub struct FrameReader {
    repository: Repository,
    /// Those used last are at the back.
    kept: VecDeque<(Ulid, u64, Bytes)>,
    kept_bytes: usize,
    limit: usize,
    frames: u64,
}

impl FrameReader {
    /// Keeps frames of `limit` bytes in all, and at least one.
    pub fn new(repository: &Repository, limit: usize) -> FrameReader {
        FrameReader {
            repository: repository.clone(),
            kept: VecDeque::new(),
            kept_bytes: 0,
            limit,
            frames: 0,
        }
    }

    /// How many frames were read from the store.
    pub fn frames_read(&self) -> u64 {
        self.frames
    }

    /// The bytes at a location.
    pub fn read(&mut self, location: &Location) -> Result<Bytes> {
        let content = self.frame(location.pack, location.frame, location.frame_length)?;
        let range = usize::try_from(location.start)
            .ok()
            .zip(location.start.checked_add(location.size).and_then(|end| end.try_into().ok()))
            .filter(|&(start, end)| start <= end && end <= content.len());
        match range {
            Some((start, end)) => Ok(content.slice(start..end)),
            None => Err(Error::damaged(
                &self.repository.pack_path(location.pack),
                location.frame,
                format!(
                    "the index wants {} bytes from {} on of a frame that has {}",
                    location.size,
                    location.start,
                    content.len()
                ),
            )),
        }
    }

    /// A frame's content.
    pub fn frame(&mut self, pack: Ulid, at: u64, length: u64) -> Result<Bytes> {
        let kept = self.kept.iter().rposition(|kept| kept.0 == pack && kept.1 == at);
        if let Some(kept) = kept.and_then(|index| self.kept.remove(index)) {
            let content = kept.2.clone();
            self.kept.push_back(kept);
            return Ok(content);
        }
        let path = self.repository.pack_path(pack);
        if length > (MAX_CONTENT + HEADER + 16) as u64 {
            return Err(Error::damaged(&path, at, "the index wants a frame larger than any"));
        }
        let end = at.checked_add(length);
        let end = end.ok_or_else(|| Error::damaged(&path, at, "no pack is as long"))?;
        let stored = self.repository.read(&path, at..end)?;
        let place = Place { path: &path, pack, at };
        let content = Bytes::from(frame::open(&stored, place, self.repository.key())?);
        self.frames += 1;
        while self.kept_bytes + content.len() > self.limit
            && let Some((_, _, oldest)) = self.kept.pop_front()
        {
            self.kept_bytes -= oldest.len();
        }
        self.kept_bytes += content.len();
        self.kept.push_back((pack, at, content.clone()));
        Ok(content)
    }
}

/// Reads a pack of `size` bytes from end to end and gives each frame's offset and length in it, and its content.
///
/// Every byte of a pack belongs to a frame, so nothing in it stays unread.
pub fn walk(
    repository: &Repository,
    pack: Ulid,
    size: u64,
    mut each: impl FnMut(u64, u64, &[u8]) -> Result<()>,
) -> Result<()> {
    let path = repository.pack_path(pack);
    let (mut at, mut window) = (0, Bytes::new());
    while at < size {
        if window.len() < HEADER {
            window = repository.read(&path, at..size.min(at + WINDOW))?;
        }
        let length = frame::length(&window)
            .ok_or_else(|| Error::damaged(&path, at, "no frame begins here"))?;
        if window.len() < length {
            let end = at + (length as u64).max(WINDOW);
            if at + length as u64 > size {
                return Err(Error::damaged(&path, at, "the pack ends in this frame"));
            }
            window = repository.read(&path, at..size.min(end))?;
        }
        let stored = window.split_to(length);
        let place = Place { path: &path, pack, at };
        each(at, length as u64, &frame::open(&stored, place, repository.key())?)?;
        at += length as u64;
    }
    Ok(())
}
