//! Frames as they are stored, each with those that follow it in the pack: an increment's frames are small, and whoever
//! folds a chain comes back for the next one of each delta. So a store is asked for many of them at once.
//!
//! What could go wrong:
//! - What follows isn't wanted, and was read for nothing. So the first window of a pack is small, and only one that was
//!   gone through makes the next one larger.
//! - Memory: all windows that are kept take no more than [`ROOM`]. A frame that is waited for keeps its own, however small
//!   it is in it, so all that there are are counted, too. And an index that is damaged may want a frame of any length: it
//!   is told before a byte is read.
//! - A window can't be read, for its end is damaged, say. Then each frame is read alone, with its own error.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;

use bytes::Bytes;

use super::reader::{range, stored};
use crate::error::Result;
use crate::id::Ulid;
use crate::repository::Repository;

/// Threads that ask the store.
const THREADS: usize = 8;
/// The first window of a pack.
const FIRST: u64 = 128 << 10;
/// The largest.
const LARGEST: u64 = 1 << 20;
/// Of all windows that are kept.
const ROOM: u64 = 8 << 20;
/// Of all that there are, about.
const MANY: u64 = 2 * ROOM;
/// A pack that so many frames were asked for since isn't in use any more.
const LONG_AGO: u64 = 4096;

/// A part of a pack that is on its way, or has come.
pub(super) struct Window {
    pack: Ulid,
    start: u64,
    end: u64,
    /// Shorter where the pack ends; `None` where it couldn't be read.
    bytes: OnceLock<Option<Bytes>>,
    /// What all windows are long, this one among them.
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

    /// A frame of its pack as it is stored. Waits until the window has come.
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

/// A window that is to be read. Nobody waits for it for ever.
struct Wanted(Arc<Window>);

impl Drop for Wanted {
    fn drop(&mut self) {
        self.0.bytes.get_or_init(|| None);
    }
}

/// A pack that frames are read of.
struct InUse {
    /// Its last window, until nothing more can follow in it, or its room is needed.
    window: Option<Arc<Window>>,
    /// How large it was, and where it ended.
    length: u64,
    window_end: u64,
    /// Where the frame ends that was asked for last.
    end: u64,
    /// When it was, by the number of frames.
    at: u64,
}

impl InUse {
    fn kept(&self) -> u64 {
        self.window.as_ref().map_or(0, |_| self.length)
    }

    /// Forgets a window that no other frame can be in; false where none follows it in the pack either.
    fn tidy(&mut self) -> bool {
        let end = match self.window.as_ref().and_then(|window| window.bytes.get()) {
            Some(Some(bytes)) => self.window_end - self.length + bytes.len() as u64,
            _ => self.window_end,
        };
        if self.end < end {
            return true;
        }
        self.window = None;
        // Where it came short the pack ends.
        end == self.window_end
    }
}

/// The windows of all packs.
pub(super) struct Windows {
    repository: Repository,
    packs: HashMap<Ulid, InUse>,
    /// Frames that were asked for.
    asked: u64,
    /// What all windows are long, also those that only a frame keeps.
    all: Arc<AtomicU64>,
    /// The threads end with it.
    fetch: Sender<Wanted>,
}

impl Windows {
    pub(super) fn new(repository: &Repository) -> Windows {
        let (fetch, wanted) = channel::<Wanted>();
        let wanted = Arc::new(Mutex::new(wanted));
        for _ in 0..THREADS {
            let (wanted, repository) = (wanted.clone(), repository.clone());
            thread::spawn(move || {
                loop {
                    let next = wanted.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok(Wanted(window)) = &next else { return };
                    // Whoever wanted it has gone: a fold that failed.
                    if Arc::strong_count(window) == 1 {
                        continue;
                    }
                    let path = repository.pack_path(window.pack);
                    let bytes = repository.store().get_range(&path, window.start..window.end);
                    window.bytes.get_or_init(|| bytes.ok());
                }
            });
        }
        let repository = repository.clone();
        Windows { repository, packs: HashMap::new(), asked: 0, all: Arc::default(), fetch }
    }

    /// Whether frames that are waited for keep so many windows that it is time to take some.
    pub(super) fn are_many(&self) -> bool {
        self.all.load(Ordering::Relaxed) >= MANY
    }

    /// The window that a frame will be in.
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
            // Where the end of the one before was not wanted, the one that follows it was.
            Some(before) if (before.end..=before.window_end + before.length).contains(&at) => {
                2 * before.length
            }
            _ => FIRST,
        };
        // Those whose window is gone come back for another.
        let share = ROOM / (self.packs.len() as u64 + 1);
        let length = grown.min(LARGEST).min(share).max(length);
        self.make_room(length);
        let window_end = at.saturating_add(length);
        self.all.fetch_add(window_end - at, Ordering::Relaxed);
        let (bytes, all) = (OnceLock::new(), self.all.clone());
        let window = Arc::new(Window { pack, start: at, end: window_end, bytes, all });
        // The threads end after this only.
        let _ = self.fetch.send(Wanted(window.clone()));
        let kept = Some(window.clone());
        self.packs.insert(pack, InUse { window: kept, length, window_end, end, at: asked });
        Ok(window)
    }

    /// Forgets windows, those used last the last.
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

    /// Packs in which the byte at each place says where that is, in steps of 1 KiB.
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
        let mut windows = Windows::new(&repository);
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
        // Elsewhere it begins small, and a large frame gets what it takes.
        let far = windows.of(pack, 100, 10).unwrap();
        assert_eq!((far.start, far.end), (100, 100 + FIRST));
        let large = windows.of(pack, 1 << 20, 3 << 20).unwrap();
        assert_eq!(large.end - large.start, 3 << 20);
    }

    #[test]
    fn those_of_many_packs_have_their_share_of_the_room() {
        let repository = repository();
        let packs: Vec<_> = (0..300).map(|number| pack(&repository, number, 300 << 10)).collect();
        let mut windows = Windows::new(&repository);
        for at in (0..300).step_by(10) {
            for &pack in &packs {
                let window = windows.of(pack, at << 10, 10 << 10).unwrap();
                let frame = window.frame(&repository, at << 10, 10 << 10).unwrap();
                assert!(frame.iter().all(|byte| byte.wrapping_sub(at as u8) < 10));
                let all: u64 = windows.packs.values().map(InUse::kept).sum();
                assert!(all <= ROOM, "{all}");
            }
        }
        // A pack that was read to its end is in use no longer.
        windows.of(pack(&repository, 1000, 1), 0, 1).unwrap();
        assert_eq!(windows.packs.len(), 1);
    }

    #[test]
    fn what_cannot_be_read_with_its_neighbours_is_read_alone() {
        let repository = repository();
        let mut windows = Windows::new(&repository);
        let missing = windows.of(Ulid(7), 0, 10).unwrap();
        assert!(missing.frame(&repository, 0, 10).unwrap_err().is_not_found());
        // The index says more than there is.
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
        let mut windows = Windows::new(&repository);
        // 33 MiB are there, and are no frame.
        for (at, length, why) in [
            (100, 33 << 20, "the index wants a frame larger than any"),
            (0, u64::MAX, "the index wants a frame larger than any"),
            (u64::MAX - 5, 10, "no pack is as long"),
        ] {
            let Err(error) = windows.of(pack, at, length) else { panic!("{length} from {at}") };
            assert!(error.to_string().contains(why), "{error}");
        }
        assert_eq!((windows.packs.len(), windows.all.load(Ordering::Relaxed)), (0, 0));
    }
}
