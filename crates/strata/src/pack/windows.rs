//! Reads stored frames together with those that follow them in the pack: an increment's frames are small, and a fold of
//! a chain comes back for the next frame of each delta. So many of them are read from the store at once.
//!
//! What could go wrong:
//! - What follows isn't needed and is read for nothing. So the first window of a pack is small, and the next is larger
//!   only if the whole window was used.
//! - Too much memory is used: all windows that are kept take no more than [`ROOM`]. A requested frame keeps its window,
//!   however small its part of it is, so all existing windows are counted, too. And a damaged index may request a frame
//!   of any length, so this is checked before a byte is read.
//! - A window can't be read, for example because its end is damaged. Then each frame is read alone, with its own error.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use bytes::Bytes;

use super::reader::{range, stored};
use crate::error::Result;
use crate::id::Ulid;
use crate::repository::Repository;
use crate::threads;

/// Threads that read from the store.
const THREADS: usize = 8;
/// The size of a pack's first window.
const FIRST: u64 = 128 << 10;
/// The largest size.
const LARGEST: u64 = 1 << 20;
/// The total size of the windows that are kept.
const ROOM: u64 = 8 << 20;
/// About the total size of all existing windows.
const MANY: u64 = 2 * ROOM;
/// A pack is no longer in use once this many frames were requested after its last one.
const LONG_AGO: u64 = 4096;

/// A part of a pack that is being read or has been read.
pub(super) struct Window {
    pack: Ulid,
    start: u64,
    end: u64,
    /// Shorter if the pack ends; `None` if it couldn't be read.
    bytes: OnceLock<Option<Bytes>>,
    /// The total length of all windows, including this one.
    all: Arc<AtomicU64>,
}

impl Drop for Window {
    fn drop(&mut self) {
        self.all.fetch_sub(self.end - self.start, Ordering::Relaxed);
    }
}

impl Window {
    fn holds(&self, at: u64, length: u64) -> bool {
        self.start <= at && at.checked_add(length).is_some_and(|end| end <= self.end)
    }

    /// Returns a frame of its pack as it is stored. Waits until the window has been read.
    pub(super) fn frame(&self, repository: &Repository, at: u64, length: u64) -> Result<Bytes> {
        let slice = |bytes: &Bytes| {
            let start = usize::try_from(at.checked_sub(self.start)?).ok()?;
            let end = start.checked_add(usize::try_from(length).ok()?)?;
            (end <= bytes.len()).then(|| bytes.slice(start..end))
        };
        let come = self.bytes.wait().as_ref().and_then(slice);
        come.map_or_else(|| stored(repository, self.pack, at, length), Ok)
    }
}

/// A window that shall be read. Dropping it ends the wait for it.
struct Wanted(Arc<Window>);

impl Drop for Wanted {
    fn drop(&mut self) {
        self.0.bytes.get_or_init(|| None);
    }
}

/// A pack of which frames are being read.
struct InUse {
    /// Its last window, until no more frames can be in it or its room is needed.
    window: Option<Arc<Window>>,
    /// How large that window was, and where it ended.
    length: u64,
    window_end: u64,
    /// Where the last requested frame ends.
    end: u64,
    /// When that was, as a number of frames.
    at: u64,
}

impl InUse {
    fn kept(&self) -> u64 {
        self.window.as_ref().map_or(0, |_| self.length)
    }

    /// Drops a window that no other frame can be in; returns false if no window follows it in the pack either.
    fn tidy(&mut self) -> bool {
        let end = match self.window.as_ref().and_then(|window| window.bytes.get()) {
            Some(Some(bytes)) => self.window_end - self.length + bytes.len() as u64,
            _ => self.window_end,
        };
        if self.end < end {
            return true;
        }
        self.window = None;
        // If it was cut short, the pack ends there.
        end == self.window_end
    }
}

/// The windows of all packs.
pub(super) struct Windows {
    repository: Repository,
    packs: HashMap<Ulid, InUse>,
    /// The number of requested frames.
    asked: u64,
    /// The total length of all windows, including those that only a frame keeps.
    all: Arc<AtomicU64>,
    /// When this is dropped, the threads end.
    fetch: Sender<Wanted>,
}

impl Windows {
    pub(super) fn new(repository: &Repository) -> Result<Windows> {
        let (fetch, wanted) = channel::<Wanted>();
        let wanted = Arc::new(Mutex::new(wanted));
        for _ in 0..THREADS {
            let (wanted, repository) = (wanted.clone(), repository.clone());
            threads::start(move || {
                loop {
                    let next = wanted.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok(Wanted(window)) = &next else { return };
                    // The requester is gone: its fold has failed.
                    if Arc::strong_count(window) == 1 {
                        continue;
                    }
                    let path = repository.pack_path(window.pack);
                    let bytes = repository.store().get_range(&path, window.start..window.end);
                    window.bytes.get_or_init(|| bytes.ok());
                }
            })?;
        }
        let repository = repository.clone();
        Ok(Windows { repository, packs: HashMap::new(), asked: 0, all: Arc::default(), fetch })
    }

    /// Whether requested frames keep so many windows that some frames must be taken.
    pub(super) fn are_many(&self) -> bool {
        self.all.load(Ordering::Relaxed) >= MANY
    }

    /// Returns the window that a frame will be in.
    pub(super) fn of(&mut self, pack: Ulid, at: u64, length: u64) -> Result<Arc<Window>> {
        let end = range(&self.repository, pack, at, length)?.end;
        self.asked += 1;
        let asked = self.asked;
        if let Some(known) = self.packs.get_mut(&pack)
            && let Some(window) = known.window.as_ref().filter(|window| window.holds(at, length))
        {
            (known.end, known.at) = (end, asked);
            return Ok(window.clone());
        }
        let before = self.packs.remove(&pack);
        self.packs.retain(|_, known| asked - known.at < LONG_AGO && known.tidy());
        let grown = match before {
            // A frame up to one window length after the previous window still counts as following it.
            Some(before) if (before.end..=before.window_end + before.length).contains(&at) => {
                2 * before.length
            }
            _ => FIRST,
        };
        // Packs whose windows were dropped count too: they will need another.
        let share = ROOM / (self.packs.len() as u64 + 1);
        let length = grown.min(LARGEST).min(share).max(length);
        self.make_room(length);
        let window_end = at.saturating_add(length);
        self.all.fetch_add(window_end - at, Ordering::Relaxed);
        let (bytes, all) = (OnceLock::new(), self.all.clone());
        let window = Arc::new(Window { pack, start: at, end: window_end, bytes, all });
        // The threads end only after this.
        let _ = self.fetch.send(Wanted(window.clone()));
        let kept = Some(window.clone());
        self.packs.insert(pack, InUse { window: kept, length, window_end, end, at: asked });
        Ok(window)
    }

    /// Drops windows, the least recently used first.
    fn make_room(&mut self, length: u64) {
        let mut all: u64 = self.packs.values().map(InUse::kept).sum();
        while all + length > ROOM
            && let Some(oldest) =
                self.packs.values_mut().filter(|known| known.window.is_some()).min_by_key(|k| k.at)
        {
            all -= oldest.kept();
            oldest.window = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{ObjectStorage, Retries, Store};

    fn repository() -> Repository {
        let memory = Arc::new(object_store::memory::InMemory::new());
        let storage = ObjectStorage::on(memory, "", Default::default()).unwrap();
        let retries = Retries { tries: 1, first_pause: std::time::Duration::ZERO };
        Repository::new(Store::with_retries(storage, retries), "clusters/main", None).unwrap()
    }

    /// Makes packs in which each byte encodes its offset, in steps of 1 KiB.
    fn pack(repository: &Repository, number: u128, size: usize) -> Ulid {
        let content: Vec<u8> = (0..size).map(|at| (at >> 10) as u8).collect();
        let pack = Ulid(number);
        repository.store().put(&repository.pack_path(pack), &[content.into()]).unwrap();
        pack
    }

    #[test]
    fn neighbours_come_together_and_more_of_them_each_time() {
        let repository = repository();
        let pack = pack(&repository, 1, 5 << 20);
        let mut windows = Windows::new(&repository).unwrap();
        let mut lengths = Vec::new();
        let mut last = 0;
        for at in (0..5 << 10).step_by(10) {
            let window = windows.of(pack, at << 10, 10 << 10).unwrap();
            let frame = window.frame(&repository, at << 10, 10 << 10).unwrap();
            assert!(frame.iter().all(|byte| byte.wrapping_sub(at as u8) < 10));
            if window.start != last || lengths.is_empty() {
                lengths.push((window.end - window.start) >> 10);
                last = window.start;
            }
        }
        assert_eq!(lengths, [128, 256, 512, 1024, 1024, 1024, 1024, 1024]);
        // Elsewhere it starts small again, and a large frame gets what it needs.
        let far = windows.of(pack, 100, 10).unwrap();
        assert_eq!((far.start, far.end), (100, 100 + FIRST));
        let large = windows.of(pack, 1 << 20, 3 << 20).unwrap();
        assert_eq!(large.end - large.start, 3 << 20);
    }

    #[test]
    fn those_of_many_packs_have_their_share_of_the_room() {
        let repository = repository();
        let packs: Vec<_> = (0..300).map(|number| pack(&repository, number, 300 << 10)).collect();
        let mut windows = Windows::new(&repository).unwrap();
        for at in (0..300).step_by(10) {
            for &pack in &packs {
                let window = windows.of(pack, at << 10, 10 << 10).unwrap();
                let frame = window.frame(&repository, at << 10, 10 << 10).unwrap();
                assert!(frame.iter().all(|byte| byte.wrapping_sub(at as u8) < 10));
                let all: u64 = windows.packs.values().map(InUse::kept).sum();
                assert!(all <= ROOM, "{all}");
            }
        }
        // A pack that was read to its end is no longer in use.
        windows.of(pack(&repository, 1000, 1), 0, 1).unwrap();
        assert_eq!(windows.packs.len(), 1);
    }

    #[test]
    fn what_cannot_be_read_with_its_neighbours_is_read_alone() {
        let repository = repository();
        let mut windows = Windows::new(&repository).unwrap();
        let missing = windows.of(Ulid(7), 0, 10).unwrap();
        assert!(missing.frame(&repository, 0, 10).unwrap_err().is_not_found());
        // The index says more than exists.
        let short = pack(&repository, 8, 100);
        let window = windows.of(short, 90, 20).unwrap();
        let error = window.frame(&repository, 90, 20).unwrap_err().to_string();
        assert!(error.contains("it ends at byte 100, 110 are needed"), "{error}");
        assert_eq!(window.frame(&repository, 90, 10).unwrap().len(), 10);
        // Written after its window was read.
        pack(&repository, 7, 10);
        assert_eq!(missing.frame(&repository, 0, 10).unwrap().len(), 10);
    }

    #[test]
    fn a_frame_that_no_pack_can_hold_is_told_before_it_is_read() {
        let repository = repository();
        let pack = pack(&repository, 9, 34 << 20);
        let mut windows = Windows::new(&repository).unwrap();
        // The pack has these 33 MiB, but they aren't a frame.
        for (at, length, why) in [
            (100, 33 << 20, "the index refers to a frame larger than any"),
            (0, u64::MAX, "the index refers to a frame larger than any"),
            (u64::MAX - 5, 10, "beyond the end of any pack"),
        ] {
            let Err(error) = windows.of(pack, at, length) else { panic!("{length} from {at}") };
            assert!(error.to_string().contains(why), "{error}");
        }
        assert_eq!((windows.packs.len(), windows.all.load(Ordering::Relaxed)), (0, 0));
    }
}
