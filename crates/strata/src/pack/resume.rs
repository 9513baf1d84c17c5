//! Records what an interrupted writer has stored, so that the same content isn't sent again.
//!
//! A journal in a local file has a line for each pack that is complete in the store: its frames with the hashes of
//! their content. A writer of the same content gets the frames' places from there. The first content that differs ends
//! that; nothing is taken from elsewhere in the order.
//!
//! What could go wrong: the journal is wrong. So its packs are looked up in the store, with their sizes, and a frame is
//! hashed again whenever it is read. The journal can't pass off a frame as another content, because the content's hash
//! must match.
//!
//! Or there is no room for the journal. It only saves time, so the writing goes on without it: what was recorded until
//! then counts.

use std::collections::{BTreeSet, VecDeque};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::writer::{Packed, Placed};
use crate::error::{Error, Result};
use crate::frame::content_hash;
use crate::id::Ulid;
use crate::repository::Repository;

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    pack: String,
    size: u64,
    /// Bytes of content in it.
    content: u64,
    /// Hash of the content, offset, length.
    frames: VecDeque<(String, u64, u64)>,
}

/// The journal that is being written, and an earlier one that is being used up.
pub(super) struct Resume {
    repository: Repository,
    /// `None` once it couldn't be written.
    written: Option<File>,
    before: Option<BufReader<File>>,
    /// The earlier journal's path.
    old: PathBuf,
    line: Option<(Ulid, Line)>,
    /// Frames of that line that were used.
    used: VecDeque<(String, u64, u64)>,
    /// Frames of the pack that is being filled.
    frames: VecDeque<(String, u64, u64)>,
}

/// A frame whose content was stored before.
pub(super) struct Known {
    pub(super) placed: Placed,
    /// Its pack, given with the pack's first frame.
    pub(super) packed: Option<Packed>,
}

impl Resume {
    /// Continues the journal at `path`, or begins one.
    pub(super) fn open(repository: &Repository, path: &Path) -> Result<Resume> {
        let failed = |verb| move |source| Error::Spool { verb, source };
        let old = beside(path);
        let size = |path: &Path| fs::metadata(path).map_or(0, |metadata| metadata.len());
        // A journal that was interrupted while using up another is the shorter of the two.
        if size(path) >= size(&old) && size(path) > 0 {
            fs::rename(path, &old).map_err(failed("rename"))?;
        }
        let before = File::open(&old).ok().map(BufReader::new);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(failed("create the folder of"))?;
        }
        let written = File::create(path).ok();
        let repository = repository.clone();
        let (used, frames) = (VecDeque::new(), VecDeque::new());
        Ok(Resume { repository, written, before, old, line: None, used, frames })
    }

    /// Removes the journal, whose contents are in a delta now.
    pub(super) fn remove(path: &Path) {
        // If it can't be removed, it only takes up space.
        let _ = fs::remove_file(path);
        let _ = fs::remove_file(beside(path));
    }

    /// Returns the packs that the journal at `path` and the earlier one name. A line that can't be read is the end, as
    /// it is for a writer that continues.
    pub(super) fn packs(path: &Path) -> Result<BTreeSet<Ulid>> {
        /// The frames aren't kept: a journal may be larger than memory.
        #[derive(Deserialize)]
        struct Named {
            pack: String,
        }
        let failed = |source| Error::Spool { verb: "read", source };
        let mut packs = BTreeSet::new();
        for path in [path, &beside(path)] {
            let mut journal = match File::open(path) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                file => BufReader::new(file.map_err(failed)?),
            };
            let mut line = Vec::new();
            while journal.read_until(b'\n', &mut line).map_err(failed)? > 0 {
                let named = serde_json::from_slice::<Named>(&line).ok();
                let Some(pack) = named.and_then(|named| named.pack.parse().ok()) else { break };
                packs.insert(pack);
                line.clear();
            }
        }
        Ok(packs)
    }

    /// Returns where this content is, if it comes next in what was stored before.
    pub(super) fn find(&mut self, content: &[u8]) -> Result<Option<Known>> {
        if self.before.is_none() {
            return Ok(None);
        }
        if self.line.as_ref().is_none_or(|(_, line)| line.frames.is_empty()) {
            self.keep_used()?;
            self.line = self.next_line()?;
        }
        let hash = in_hex(content_hash(content));
        match &mut self.line {
            Some((pack, line)) if line.frames.front().is_some_and(|frame| frame.0 == hash) => {
                let is_first = self.used.is_empty();
                let packed = Packed { pack: *pack, size: line.size, content: line.content };
                let frame = line.frames.pop_front().unwrap_or_default();
                let placed = Placed { pack: *pack, at: frame.1, length: frame.2 };
                self.used.push_back(frame);
                Ok(Some(Known { placed, packed: is_first.then_some(packed) }))
            }
            _ => {
                self.keep_used()?;
                self.before = None;
                // Everything useful in it is in the new journal now. If the old one stayed, it could be longer than
                // the new one ever gets. Then it would be used again each time, and what is stored from here on never.
                if self.written.is_some() {
                    let _ = fs::remove_file(&self.old);
                }
                Ok(None)
            }
        }
    }

    /// Writes what was used of the current pack to the new journal; frames of other content would end the journal
    /// there.
    fn keep_used(&mut self) -> Result<()> {
        let frames = std::mem::take(&mut self.used);
        match self.line.take() {
            Some((_, line)) if !frames.is_empty() => self.append(&Line { frames, ..line }),
            _ => Ok(()),
        }
    }

    /// Returns the next pack that is still in the store.
    fn next_line(&mut self) -> Result<Option<(Ulid, Line)>> {
        let Some(before) = &mut self.before else { return Ok(None) };
        let mut text = String::new();
        // A truncated last line, or anything else that can't be read, is the end.
        if before.read_line(&mut text).is_err() {
            return Ok(None);
        }
        let Ok(line) = serde_json::from_str::<Line>(&text) else { return Ok(None) };
        let Ok(pack) = line.pack.parse::<Ulid>() else { return Ok(None) };
        let path = self.repository.pack_path(pack);
        match self.repository.store().size(&path) {
            Ok(size) if size == line.size => {}
            Ok(_) => return Ok(None),
            Err(error) if error.kind == crate::store::StoreErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        Ok(Some((pack, line)))
    }

    /// Records a frame that was put into the current pack.
    pub(super) fn framed(&mut self, hash: u128, at: u64, length: u64) {
        self.frames.push_back((in_hex(hash), at, length));
    }

    /// Returns the frames of the current pack, which is being uploaded now.
    pub(super) fn take_frames(&mut self) -> VecDeque<(String, u64, u64)> {
        std::mem::take(&mut self.frames)
    }

    /// Records a pack that is complete in the store.
    pub(super) fn stored(
        &mut self,
        packed: Packed,
        frames: VecDeque<(String, u64, u64)>,
    ) -> Result<()> {
        self.append(&Line {
            pack: packed.pack.to_string(),
            content: packed.content,
            size: packed.size,
            frames,
        })
    }

    fn append(&mut self, line: &Line) -> Result<()> {
        let mut text = serde_json::to_string(line).map_err(Error::caller)?;
        text.push('\n');
        // A line that is cut off is the end.
        if let Some(written) = &mut self.written
            && written.write_all(text.as_bytes()).is_err()
        {
            self.written = None;
        }
        Ok(())
    }
}

fn in_hex(hash: u128) -> String {
    format!("{hash:032x}")
}

fn beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".old");
    name.into()
}
