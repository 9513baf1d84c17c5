//! Frames as they are stored, several neighbours in one read, and their contents.

use bytes::Bytes;

use super::spare::Spare;
use crate::error::{Error, Result};
use crate::frame::{HEADER, MAX_CONTENT, Opener, Place};
use crate::id::Ulid;
use crate::repository::Repository;

/// One thread's tools for reading neighbouring frames: what it allocates is used again, for a restore goes through
/// terabytes of contents, and to get the memory of each anew costs more than to decompress into it.
pub struct RunReader {
    repository: Repository,
    opener: Opener,
    spare: Spare,
}

impl RunReader {
    /// Reads nothing yet.
    pub fn new(repository: &Repository) -> RunReader {
        RunReader {
            repository: repository.clone(),
            opener: Opener::default(),
            spare: Spare::default(),
        }
    }

    /// Neighbouring frames of a pack as they are stored, each by its offset and length, in one read. Each has its own
    /// error; what is strange about one of them is found where it is read alone.
    pub fn read(&self, pack: Ulid, frames: &[(u64, u64)]) -> Vec<Result<Bytes>> {
        stored_run(&self.repository, pack, frames)
    }

    /// The content of a frame that was read. Give it back once it was used.
    pub fn open(&mut self, pack: Ulid, at: u64, stored: &[u8]) -> Result<Vec<u8>> {
        let mut content = self.spare.take(stored);
        open(&self.repository, &mut self.opener, pack, at, stored, &mut content)?;
        Ok(content)
    }

    /// Takes a content back, so that the next needs no memory of its own.
    pub fn give_back(&mut self, content: Vec<u8>) {
        self.spare.give(content);
    }
}

/// A frame as it is stored.
pub(super) fn stored(repository: &Repository, pack: Ulid, at: u64, length: u64) -> Result<Bytes> {
    let path = repository.pack_path(pack);
    if length > (MAX_CONTENT + HEADER + 16) as u64 {
        return Err(Error::damaged(&path, at, "the index wants a frame larger than any"));
    }
    let end = at.checked_add(length);
    let end = end.ok_or_else(|| Error::damaged(&path, at, "no pack is as long"))?;
    repository.read(&path, at..end)
}

/// The content of a frame that was read, in the place of what was in `content`.
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

/// See [`RunReader::read`].
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
                stored(repository, pack, at, length)
            }
        })
        .collect()
}
