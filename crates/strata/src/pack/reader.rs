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
    fn trim(&mut self) {
        if self.used > 0 && self.used >= self.bytes.len() / 2 {
            self.bytes = Bytes::copy_from_slice(&self.bytes[self.used..]);
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
        let content = FrameReader::fetch(&self.repository, pack, at, length)?;
        self.keep(pack, at, content.clone());
        Ok(content)
    }

    /// A frame's content, out of the store.
    fn fetch(repository: &Repository, pack: Ulid, at: u64, length: u64) -> Result<Bytes> {
        let stored = FrameReader::stored(repository, pack, at, length)?;
        FrameReader::opened(repository, pack, at, &stored)
    }

    /// A frame as it is stored.
    fn stored(repository: &Repository, pack: Ulid, at: u64, length: u64) -> Result<Bytes> {
        let path = repository.pack_path(pack);
        if length > (MAX_CONTENT + HEADER + 16) as u64 {
            return Err(Error::damaged(&path, at, "the index wants a frame larger than any"));
        }
        let end = at.checked_add(length);
        let end = end.ok_or_else(|| Error::damaged(&path, at, "no pack is as long"))?;
        repository.read(&path, at..end)
    }

    /// The content of a frame that was read.
    pub(crate) fn opened(
        repository: &Repository,
        pack: Ulid,
        at: u64,
        stored: &[u8],
    ) -> Result<Bytes> {
        let path = repository.pack_path(pack);
        let place = Place { path: &path, pack, at };
        frame::open(stored, place, repository.key()).map(Bytes::from)
    }

    /// Neighbouring frames of a pack as they are stored, each by its offset and length, in one read. Each has its own
    /// error; what is strange about one of them is found where it is read alone.
    pub(crate) fn stored_run(
        repository: &Repository,
        pack: Ulid,
        frames: &[(u64, u64)],
    ) -> Vec<Result<Bytes>> {
        let end = |&(at, length): &(u64, u64)| at.checked_add(length);
        let are_neighbours =
            frames.windows(2).all(|two| matches!(two, [one, next] if end(one) == Some(next.0)));
        let whole = match frames {
            [first, .., last] if are_neighbours => end(last).map(|end| first.0..end),
            _ => None,
        };
        let read = whole.map(|range| repository.read(&repository.pack_path(pack), range));
        let mut rest = read.and_then(Result::ok);
        frames
            .iter()
            .map(|&(at, length)| match &mut rest {
                Some(bytes) if bytes.len() as u64 >= length => Ok(bytes.split_to(length as usize)),
                _ => {
                    rest = None;
                    FrameReader::stored(repository, pack, at, length)
                }
            })
            .collect()
    }

    /// The contents of neighbouring frames of a pack, each by its offset and length, read at once. Each has its own
    /// error.
    pub fn fetch_run(
        repository: &Repository,
        pack: Ulid,
        frames: &[(u64, u64)],
    ) -> Vec<Result<Bytes>> {
        let stored = FrameReader::stored_run(repository, pack, frames);
        let opened = |(frame, stored): (&(u64, u64), Result<Bytes>)| {
            FrameReader::opened(repository, pack, frame.0, &stored?)
        };
        frames.iter().zip(stored).map(opened).collect()
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
        let content = FrameReader::opened(&self.repository, pack, frame, stored)?;
        // In the place of a part of it that is kept.
        if let Some(index) =
            self.kept.iter().position(|k| k.pack == location.pack && k.at == location.frame)
            && let Some(part) = self.kept.remove(index)
        {
            self.kept_bytes -= part.bytes.len();
        }
        self.keep(pack, frame, content);
        Ok(())
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
        self.kept.iter_mut().for_each(Kept::trim);
        self.kept.retain(|kept| !kept.bytes.is_empty());
        self.kept_bytes = self.kept.iter().map(|kept| kept.bytes.len()).sum();
        while self.kept_bytes + bytes > self.limit
            && let Some(oldest) = self.kept.pop_front()
        {
            self.kept_bytes -= oldest.bytes.len();
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
