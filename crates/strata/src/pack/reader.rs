//! Reads frames by range, each once for neighbouring blocks.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ops::Range;

use bytes::Bytes;

use super::pool::Pool;
use super::{Ahead, Location};
use crate::error::{Error, Result};
use crate::frame::{self, HEADER, MAX_CONTENT, Opener, Place};
use crate::id::Ulid;
use crate::repository::Repository;

/// A walk over a pack reads this many bytes at a time.
const WINDOW: u64 = 4 << 20;

/// Reads frames, and keeps those that were read last.
///
/// A fold of many deltas moves forward in a frame of each. So if room is short, what is before the last position in
/// each frame is dropped first: then the frames of all deltas take half the room, and none must be read again and
/// again.
pub struct FrameReader {
    repository: Repository,
    /// By pack and offset.
    kept: HashMap<(Ulid, u64), Kept>,
    kept_bytes: usize,
    limit: usize,
    /// How many announced reads of each are still to come.
    soon: HashMap<(Ulid, u64), u32>,
    /// The number of uses of kept frames.
    uses: u64,
    frames: u64,
    stored: u64,
    opener: Opener,
    pool: Pool,
}

/// A frame, or the end of one.
struct Kept {
    /// Where in the frame's content the bytes begin.
    from: usize,
    bytes: Bytes,
    /// Up to where in the bytes they were read.
    used: usize,
    /// When it was last used, as a number of uses.
    last: u64,
}

impl Kept {
    /// Drops what was read, if that is at least half of it.
    fn trim(&mut self) {
        if self.used > 0 && self.used >= self.bytes.len() / 2 {
            self.bytes = Bytes::copy_from_slice(&self.bytes[self.used..]);
            self.from += self.used;
            self.used = 0;
        }
    }
}

impl FrameReader {
    /// Makes a reader that keeps frames of `limit` bytes in total, and at least one.
    pub fn new(repository: &Repository, limit: usize) -> FrameReader {
        FrameReader {
            repository: repository.clone(),
            kept: HashMap::new(),
            kept_bytes: 0,
            limit,
            soon: HashMap::new(),
            uses: 0,
            frames: 0,
            stored: 0,
            opener: Opener::default(),
            pool: Pool::default(),
        }
    }

    /// Returns a reader-ahead for frames that will be read soon; the memory of their contents is reused here.
    ///
    /// # Errors
    /// When the system starts no threads for it.
    pub(crate) fn ahead(&self) -> Result<Ahead> {
        Ahead::new(&self.repository, &self.pool)
    }

    /// Returns how many frames were read from the store.
    pub fn frames_read(&self) -> u64 {
        self.frames
    }

    /// Returns how many bytes they take in the store.
    pub fn bytes_read(&self) -> u64 {
        self.stored
    }

    /// Returns the bytes at a location.
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
                if let Some(kept) = self.kept.get_mut(&(location.pack, location.frame)) {
                    kept.used = end;
                }
                Ok(content.slice(start..end))
            }
            _ => Err(Error::damaged(
                &self.repository.pack_path(location.pack),
                location.frame,
                format!(
                    "the index refers to {} bytes from {} on in a frame that has {}",
                    location.size,
                    location.start,
                    content.len()
                ),
            )),
        }
    }

    /// Does the same for a caller that moves forward in each frame: a frame that was read to its end isn't kept any
    /// longer.
    pub(crate) fn read_on(&mut self, location: &Location) -> Result<Bytes> {
        let bytes = self.read(location)?;
        let key = (location.pack, location.frame);
        if self.kept.get(&key).is_some_and(|kept| kept.used == kept.bytes.len()) {
            self.forget(key);
        }
        Ok(bytes)
    }

    /// Returns a frame's content.
    pub fn frame(&mut self, pack: Ulid, at: u64, length: u64) -> Result<Bytes> {
        if let Some(kept) = self.use_kept(pack, at, 0) {
            return Ok(kept.bytes.clone());
        }
        let stored = stored(&self.repository, pack, at, length)?;
        let mut content = self.pool.take(&stored);
        open(&self.repository, &mut self.opener, pack, at, &stored, &mut content)?;
        let content = self.pool.lend(content);
        self.keep(pack, at, length, content.clone());
        Ok(content)
    }

    /// Whether the bytes at a location are in memory.
    pub(crate) fn has(&self, location: &Location) -> bool {
        let kept = self.kept.get(&(location.pack, location.frame));
        kept.is_some_and(|kept| kept.from as u64 <= location.start)
    }

    /// Keeps a frame that was read elsewhere.
    pub(crate) fn put(&mut self, location: &Location, content: Bytes) {
        self.keep(location.pack, location.frame, location.frame_length, content);
    }

    /// Announces one more read of a frame soon: others make room first.
    pub(crate) fn will_read(&mut self, location: &Location) {
        *self.soon.entry((location.pack, location.frame)).or_default() += 1;
    }

    /// Records that one of the announced reads has happened.
    pub(crate) fn was_read(&mut self, location: &Location) {
        if let Entry::Occupied(mut soon) = self.soon.entry((location.pack, location.frame)) {
            *soon.get_mut() -= 1;
            if *soon.get() == 0 {
                soon.remove();
            }
        }
    }

    fn keep(&mut self, pack: Ulid, at: u64, length: u64, bytes: Bytes) {
        self.frames += 1;
        self.stored += length;
        // It may replace a kept part of the same frame.
        self.forget((pack, at));
        self.make_room(bytes.len());
        self.kept_bytes += bytes.len();
        self.uses += 1;
        self.kept.insert((pack, at), Kept { from: 0, bytes, used: 0, last: self.uses });
    }

    /// Returns a kept frame whose content is present from `start` on, and marks it as the last used.
    fn use_kept(&mut self, pack: Ulid, at: u64, start: usize) -> Option<&mut Kept> {
        self.uses += 1;
        if self.kept.get(&(pack, at))?.from > start {
            // Its beginning is needed again, so it must be read again.
            self.forget((pack, at));
            return None;
        }
        let kept = self.kept.get_mut(&(pack, at))?;
        kept.last = self.uses;
        Some(kept)
    }

    fn forget(&mut self, key: (Ulid, u64)) {
        self.kept_bytes -= self.kept.remove(&key).map_or(0, |kept| kept.bytes.len());
    }

    /// Makes room for this many bytes. It first drops what was read, then whole frames; frames that will be read soon
    /// come last, and among equals the last used come last.
    fn make_room(&mut self, bytes: usize) {
        if self.kept_bytes + bytes <= self.limit {
            return;
        }
        self.kept.values_mut().for_each(Kept::trim);
        self.kept.retain(|_, kept| !kept.bytes.is_empty());
        self.kept_bytes = self.kept.values().map(|kept| kept.bytes.len()).sum();
        while self.kept_bytes + bytes > self.limit
            && let Some((&oldest, _)) =
                self.kept.iter().min_by_key(|(key, kept)| (self.soon.contains_key(*key), kept.last))
        {
            self.forget(oldest);
        }
    }
}

/// Returns where a frame is in its pack, according to the index. Call it before reading, because it checks the length
/// that will be read.
pub(super) fn range(
    repository: &Repository,
    pack: Ulid,
    at: u64,
    length: u64,
) -> Result<Range<u64>> {
    let damaged = |why| Error::damaged(&repository.pack_path(pack), at, why);
    if length > (MAX_CONTENT + HEADER + 16) as u64 {
        return Err(damaged("the index refers to a frame larger than any valid one"));
    }
    let end = at
        .checked_add(length)
        .ok_or_else(|| damaged("the index refers to a frame beyond the end of any pack"))?;
    Ok(at..end)
}

/// Returns a frame as it is stored.
pub(super) fn stored(repository: &Repository, pack: Ulid, at: u64, length: u64) -> Result<Bytes> {
    repository.read(&repository.pack_path(pack), range(repository, pack, at, length)?)
}

/// Opens a frame that was read; its content replaces that of `content`.
pub(super) fn open(
    repository: &Repository,
    opener: &mut Opener,
    pack: Ulid,
    at: u64,
    stored: &[u8],
    content: &mut Vec<u8>,
) -> Result<()> {
    let path = repository.pack_path(pack);
    opener.open(stored, Place { path: &path, pack, at }, repository.key(), content)
}

/// Reads a pack of `size` bytes from end to end and passes each frame's offset, length and content to `each`.
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
