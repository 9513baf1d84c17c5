//! Reads frames by range, each once for neighbouring blocks.

use std::collections::VecDeque;

use bytes::Bytes;

use super::Location;
use super::run_reader::{open, stored};
use super::spare::Spare;
use crate::error::{Error, Result};
use crate::frame::{self, HEADER, Opener};
use crate::id::Ulid;
use crate::repository::Repository;

/// A walk over a pack reads this much at a time.
const WINDOW: u64 = 4 << 20;

/// Reads frames, and keeps those read last.
///
/// A fold of many deltas goes forward in a frame of each. So where room is short, what lies before the place that was
/// read last goes first: all deltas' frames then take half the room, and none has to be read again and again.
pub struct FrameReader {
    repository: Repository,
    /// Those used last are at the back.
    kept: VecDeque<Kept>,
    kept_bytes: usize,
    limit: usize,
    frames: u64,
    opener: Opener,
    spare: Spare,
}

/// A frame, or the end of one.
struct Kept {
    pack: Ulid,
    at: u64,
    /// Where in the frame's content the bytes begin.
    from: usize,
    bytes: Bytes,
    /// Up to here, in the bytes, they were read.
    used: usize,
}

impl Kept {
    /// Forgets what was read, where that is half of it or more.
    fn trim(&mut self, spare: &mut Spare) {
        if self.used > 0 && self.used >= self.bytes.len() / 2 {
            let rest = Bytes::copy_from_slice(&self.bytes[self.used..]);
            spare.give_bytes(std::mem::replace(&mut self.bytes, rest));
            self.from += self.used;
            self.used = 0;
        }
    }
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
            opener: Opener::default(),
            spare: Spare::default(),
        }
    }

    /// How many frames were read from the store.
    pub fn frames_read(&self) -> u64 {
        self.frames
    }

    /// The bytes at a location.
    pub fn read(&mut self, location: &Location) -> Result<Bytes> {
        let start = usize::try_from(location.start).unwrap_or(usize::MAX);
        let end = location.start.checked_add(location.size);
        let end = end.and_then(|end| usize::try_from(end).ok()).unwrap_or(usize::MAX);
        if let Some(kept) = self.use_kept(location.pack, location.frame, start)
            && end <= kept.from + kept.bytes.len()
        {
            kept.used = end - kept.from;
            return Ok(kept.bytes.slice(start - kept.from..end - kept.from));
        }
        let content = self.frame(location.pack, location.frame, location.frame_length)?;
        match (start, end) {
            (start, end) if start <= end && end <= content.len() => {
                if let Some(kept) = self.kept.back_mut() {
                    kept.used = end;
                }
                Ok(content.slice(start..end))
            }
            _ => Err(Error::damaged(
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
        if let Some(kept) = self.use_kept(pack, at, 0) {
            return Ok(kept.bytes.clone());
        }
        let stored = stored(&self.repository, pack, at, length)?;
        let content = self.opened(pack, at, &stored)?;
        self.keep(pack, at, content.clone());
        Ok(content)
    }

    /// Whether the bytes at a location are at hand.
    pub(crate) fn has(&self, location: &Location) -> bool {
        let (pack, at) = (location.pack, location.frame);
        let kept = self.kept.iter().rev().find(|kept| kept.pack == pack && kept.at == at);
        kept.is_some_and(|kept| kept.from as u64 <= location.start)
    }

    /// Opens and keeps a frame that was read.
    pub(crate) fn put_stored(&mut self, location: &Location, stored: &[u8]) -> Result<()> {
        let Location { pack, frame, .. } = *location;
        let content = self.opened(pack, frame, stored)?;
        // In the place of a part of it that is kept.
        if let Some(index) =
            self.kept.iter().position(|k| k.pack == location.pack && k.at == location.frame)
            && let Some(part) = self.kept.remove(index)
        {
            self.kept_bytes -= part.bytes.len();
            self.spare.give_bytes(part.bytes);
        }
        self.keep(pack, frame, content);
        Ok(())
    }

    /// The content of a frame that was read.
    fn opened(&mut self, pack: Ulid, at: u64, stored: &[u8]) -> Result<Bytes> {
        let mut content = self.spare.take(stored);
        open(&self.repository, &mut self.opener, pack, at, stored, &mut content)?;
        Ok(Bytes::from(content))
    }

    fn keep(&mut self, pack: Ulid, at: u64, bytes: Bytes) {
        self.frames += 1;
        self.make_room(bytes.len());
        self.kept_bytes += bytes.len();
        self.kept.push_back(Kept { pack, at, from: 0, bytes, used: 0 });
    }

    /// A kept frame whose content is there from `start` on; it is the one used last now.
    fn use_kept(&mut self, pack: Ulid, at: u64, start: usize) -> Option<&mut Kept> {
        let index = self.kept.iter().rposition(|kept| kept.pack == pack && kept.at == at)?;
        let kept = self.kept.remove(index)?;
        if kept.from > start {
            // Its beginning is wanted again: it is read again.
            self.kept_bytes -= kept.bytes.len();
            return None;
        }
        self.kept.push_back(kept);
        self.kept.back_mut()
    }

    /// Makes room for so many bytes: what was read goes first, then whole frames, those used last the last.
    fn make_room(&mut self, bytes: usize) {
        if self.kept_bytes + bytes <= self.limit {
            return;
        }
        self.kept.iter_mut().for_each(|kept| kept.trim(&mut self.spare));
        self.kept.retain(|kept| !kept.bytes.is_empty());
        self.kept_bytes = self.kept.iter().map(|kept| kept.bytes.len()).sum();
        while self.kept_bytes + bytes > self.limit
            && let Some(oldest) = self.kept.pop_front()
        {
            self.kept_bytes -= oldest.bytes.len();
            self.spare.give_bytes(oldest.bytes);
        }
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
    let (mut opener, mut content) = (Opener::default(), Vec::new());
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
        open(repository, &mut opener, pack, at, &stored, &mut content)?;
        each(at, length as u64, &content)?;
        at += length as u64;
    }
    Ok(())
}
