//! The content. The fold of the indexes says which part of which frame goes where. Some threads read and open the
//! frames ahead, adjacent parts of a file are gathered, and other threads write them.
//!
//! What could go wrong: memory. The gathered parts belong to frames that the fold keeps anyway, and the amount that
//! waits to be written is bounded.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use strata::fold::{DataSink, Folded};

use super::Volume;
use super::make::Made;
use super::place::Root;
use super::plan::Plan;
use super::turns::Turns;
use super::writing::{Stretch, Writer};
use crate::error::{Error, Result};
use crate::repository::of_strata;
use crate::repository::unfold::read_ahead;
use crate::steps;
use crate::threads;

/// Threads that write files.
const MOST_THREADS: usize = 8;
/// The least that a thread is given at a time, in bytes: a large file is written in few calls, and small files are
/// grouped.
const TOGETHER: u64 = 1 << 20;
/// An extended attribute's value is no longer than this on Linux.
const MOST_XATTR: u64 = 64 << 10;
/// How much may wait for a file that another thread writes, in bytes.
const MOST_LEFT: usize = 8 << 20;

/// The result of filling the files.
#[derive(Default)]
pub(super) struct Filled {
    pub(super) bytes_written: u64,
    pub(super) bytes_read: u64,
    /// Values of extended attributes that are objects of their own.
    pub(super) xattrs: BTreeMap<u64, Vec<u8>>,
}

/// What the threads share.
pub(super) struct Work<'a> {
    pub(super) volume: &'a Volume<'a>,
    pub(super) plan: &'a Plan<'a>,
    pub(super) root: &'a Root,
    pub(super) made: &'a Made,
    stop: AtomicBool,
    failed: Mutex<Option<Error>>,
    pub(super) written: AtomicU64,
    pub(super) turns: Turns<Stretch>,
}

/// Fills the files.
pub(super) fn fill(volume: &Volume<'_>, plan: &Plan, root: &Root, made: &Made) -> Result<Filled> {
    let xattrs = xattr_objects(volume, plan)?;
    let threads = std::thread::available_parallelism().map_or(2, usize::from).min(MOST_THREADS);
    let work = Work {
        volume,
        plan,
        root,
        made,
        stop: AtomicBool::new(false),
        failed: Mutex::new(None),
        written: AtomicU64::new(0),
        turns: Turns::new(MOST_LEFT),
    };
    let (sender, receiver) = sync_channel(threads);
    let receiver = Mutex::new(receiver);
    let (folded, xattrs) = std::thread::scope(|scope| {
        for _ in 0..threads {
            threads::start_in(scope, || work.run(&receiver))?;
        }
        // The sender is dropped with this, and then the threads end.
        let mut gathering = Gathering {
            work: &work,
            xattrs: xattrs.into_iter().map(|(object, size)| (object, vec![0; size])).collect(),
            sender,
            gathered: Vec::new(),
            size: 0,
            current: None,
            holes: 0,
        };
        let folded = read_ahead(volume.repository, volume.tree.chain(), true, &mut gathering)
            .and_then(|frames| gathering.hand_on().map(|()| frames.bytes_read()));
        Ok::<_, Error>((folded, gathering.xattrs))
    })?;
    if let Some(error) = work.failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(error);
    }
    steps::reached("restore.files-read")?;
    let bytes_read = folded.map_err(of_strata)?;
    Ok(Filled { bytes_written: work.written.into_inner(), bytes_read, xattrs })
}

/// Returns the objects that are values of extended attributes, with their sizes.
fn xattr_objects(volume: &Volume<'_>, plan: &Plan) -> Result<BTreeMap<u64, usize>> {
    let mut objects = BTreeMap::new();
    let all = plan.files.iter().map(|f| f.object).chain(plan.folders.iter().map(|f| f.object));
    for object in all {
        let directory = volume.tree.attributes(object)?.xattr_directory;
        if directory == 0 {
            continue;
        }
        for (_, value) in volume.tree.children(directory) {
            let size = volume.tree.attributes(value)?.size;
            if let Some(size) = usize::try_from(size).ok().filter(|_| size <= MOST_XATTR) {
                objects.insert(value, size);
            }
        }
    }
    Ok(objects)
}

/// Where an object's content goes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum To {
    File(usize),
    Xattr(u64),
}

/// Gathers adjacent parts of a file.
struct Gathering<'a> {
    work: &'a Work<'a>,
    xattrs: BTreeMap<u64, Vec<u8>>,
    sender: SyncSender<Vec<Stretch>>,
    gathered: Vec<Stretch>,
    /// Of everything that is gathered.
    size: u64,
    /// Where the current object goes, and its size.
    current: Option<(To, u64)>,
    /// How much of it is holes, as far as is known.
    holes: u64,
}

impl Gathering<'_> {
    fn hand_on(&mut self) -> strata::Result<()> {
        self.size = 0;
        if self.gathered.is_empty() {
            return Ok(());
        }
        let gone = |_| strata::Error::caller("the threads that write have ended");
        self.sender.send(std::mem::take(&mut self.gathered)).map_err(gone)
    }

    /// Fails if a writer has failed or a signal has come.
    fn look_around(&self) -> strata::Result<()> {
        if self.work.stop.load(Ordering::Relaxed) || steps::interrupted() {
            return Err(strata::Error::caller("it was ended"));
        }
        Ok(())
    }

    /// Returns where an object's content goes, if it is wanted.
    fn place_of(&self, object: u64) -> Option<To> {
        let Work { volume, plan, .. } = self.work;
        let to = match plan.file_of(object) {
            Some(file) if plan.files[file].is_regular() => Some(To::File(file)),
            _ if self.xattrs.contains_key(&object) => Some(To::Xattr(object)),
            _ => None,
        };
        to.filter(|_| !volume.zeroed.contains(&object))
    }

    fn keep_xattr(&mut self, object: u64, offset: u64, bytes: &[u8]) {
        let place = self.xattrs.get_mut(&object).zip(usize::try_from(offset).ok());
        let place = place.and_then(|(value, at)| value.get_mut(at..)?.get_mut(..bytes.len()));
        if let Some(place) = place {
            place.copy_from_slice(bytes);
        }
    }
}

impl DataSink for Gathering<'_> {
    fn object(&mut self, folded: &Folded) -> strata::Result<()> {
        self.look_around()?;
        let volume = self.work.volume;
        let size = volume.tree.get(folded.object).map(|attributes| attributes.size);
        let is_counted = !volume.tree.left_out.contains(&folded.object);
        volume.bar.inc(std::mem::take(&mut self.holes));
        self.current = self.place_of(folded.object).zip(size);
        if let Some((To::File(_), size)) = self.current.filter(|_| is_counted) {
            self.holes = size;
        }
        Ok(())
    }

    fn wants_content_of(&mut self, object: u64) -> bool {
        self.place_of(object).is_some()
    }

    fn data(&mut self, _: u64, offset: u64, content: &Bytes) -> strata::Result<()> {
        let Some((to, size)) = self.current else { return Ok(()) };
        // A file may have a gigabyte.
        self.look_around()?;
        // A file's last block may reach past its end.
        let length = (content.len() as u64).min(size.saturating_sub(offset));
        let content = content.slice(..length as usize);
        if content.is_empty() {
            return Ok(());
        }
        if self.work.stop.load(Ordering::Relaxed) {
            return Err(strata::Error::caller("it was ended"));
        }
        self.holes = self.holes.saturating_sub(length);
        let file = match to {
            To::File(file) => file,
            To::Xattr(object) => {
                self.keep_xattr(object, offset, &content);
                return Ok(());
            }
        };
        self.size += length;
        let last = self.gathered.last_mut();
        if let Some(content) = Stretch::lengthen(last, file, offset, content) {
            self.gathered.push(Stretch::new(file, offset, content));
        }
        if self.size >= TOGETHER { self.hand_on() } else { Ok(()) }
    }
}

impl Work<'_> {
    fn run(&self, queue: &Mutex<Receiver<Vec<Stretch>>>) {
        let mut writer = Writer::new(self);
        let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        while let Ok(stretches) = next() {
            // The rest is received and dropped, so that nobody waits for room in the queue.
            if self.stop.load(Ordering::Relaxed) {
                continue;
            }
            if let Err(error) = stretches.into_iter().try_for_each(|one| writer.write(one)) {
                self.stop.store(true, Ordering::Relaxed);
                self.turns.end();
                self.failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
            }
        }
    }
}
