//! The content: the fold of the indexes says which part of which frame goes where; several threads
//! read frames, each once, and write the parts into the files.
//!
//! A pack's frames lie in the order of the fold, and a frame's parts may be interrupted by those of
//! other packs. So for each pack the parts of the frame at hand are gathered, and handed on when
//! the next frame begins. Only places are gathered, never data.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};

use strata::Ulid;
use strata::delta::Extent;
use strata::fold::{Folded, Sink, fold, open_chain};
use strata::pack::Runs;

use super::Volume;
use super::make::Made;
use super::place::Root;
use super::plan::Plan;
use super::turns::Turns;
use super::writing::{Left, Writer};
use crate::error::{Error, Result};
use crate::repository::header::StreamRules;
use crate::repository::of_strata;
use crate::repository::unfold::INDEX_MEMORY;
use crate::steps;

/// Threads that read frames and write files; each holds a few frames as they are stored, and a content.
const MOST_THREADS: usize = 8;
/// Frames that wait.
const QUEUE: usize = 32;
/// Packs of which a frame is gathered at the same time.
const MOST_BATCHES: usize = 1024;
/// Parts that are gathered at the same time.
const MOST_PARTS: usize = 256 << 10;
/// An extended attribute's value is no longer than this on Linux.
const MOST_XATTR: u64 = 64 << 10;
/// Contents that wait for a file which another thread writes, in bytes.
const MOST_LEFT: usize = 16 << 20;
/// Objects between two looks at whether to stop.
const LOOK_AROUND: u64 = 1024;

/// What became of the content.
#[derive(Default)]
pub(super) struct Filled {
    pub(super) bytes_written: u64,
    pub(super) bytes_read: u64,
    /// Values of extended attributes that are objects of their own.
    pub(super) xattrs: BTreeMap<u64, Vec<u8>>,
}

/// A part of a frame, and where it goes.
#[derive(Clone, Copy)]
pub(super) struct Part {
    pub(super) to: To,
    pub(super) offset: u64,
    pub(super) start: usize,
    pub(super) size: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum To {
    File(usize),
    Xattr(u64),
}

/// Parts of one frame.
pub(super) struct Batch {
    pub(super) pack: Ulid,
    pub(super) frame: u64,
    pub(super) length: u64,
    pub(super) parts: Vec<Part>,
}

impl Batch {
    /// Adds a part; true where it only makes the one before it longer. Blocks that are neighbours in
    /// the frame and in the file are written in one call: a full frame of 8 KiB blocks is one write
    /// and not 128, each of which would wait for the file's lock.
    fn add(&mut self, part: Part) -> bool {
        if let Some(last) = self.parts.last_mut()
            && last.to == part.to
            && last.offset + last.size as u64 == part.offset
            && last.start + last.size == part.start
        {
            last.size += part.size;
            return true;
        }
        self.parts.push(part);
        false
    }
}

/// What the threads share.
pub(super) struct Work<'a> {
    pub(super) volume: &'a Volume<'a>,
    pub(super) plan: &'a Plan<'a>,
    pub(super) root: &'a Root,
    pub(super) made: &'a Made,
    stop: AtomicBool,
    failed: Mutex<Option<Error>>,
    pub(super) xattrs: Mutex<BTreeMap<u64, Vec<u8>>>,
    pub(super) written: AtomicU64,
    pub(super) read: AtomicU64,
    pub(super) turns: Turns<Left>,
}

/// Fills the files.
pub(super) fn fill(volume: &Volume<'_>, plan: &Plan, root: &Root, made: &Made) -> Result<Filled> {
    let strata = &volume.repository.strata;
    let xattrs = xattr_objects(volume, plan)?;
    let readers = open_chain(strata, volume.tree.chain(), INDEX_MEMORY).map_err(of_strata)?;
    let threads = std::thread::available_parallelism().map_or(2, usize::from).min(MOST_THREADS);
    let work = Work {
        volume,
        plan,
        root,
        made,
        stop: AtomicBool::new(false),
        failed: Mutex::new(None),
        xattrs: Mutex::new(xattrs.iter().map(|(object, size)| (*object, vec![0; *size])).collect()),
        written: AtomicU64::new(0),
        read: AtomicU64::new(0),
        turns: Turns::new(MOST_LEFT),
    };
    let (sender, receiver) = sync_channel(QUEUE.max(2 * threads));
    let receiver = Mutex::new(receiver);
    let folded = std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| work.run(&receiver));
        }
        let mut sink = Gathering {
            work: &work,
            xattrs: xattrs.keys().copied().collect(),
            sender,
            open: HashMap::new(),
            parts: 0,
            current: None,
            holes: 0,
            seen: 0,
        };
        // The sender goes with the sink, and with the sender the threads end.
        fold(readers, true, &StreamRules, &mut sink).and_then(|()| sink.hand_on_all())
    });
    if let Some(error) = work.failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(error);
    }
    steps::reached("restore.files-read")?;
    folded.map_err(of_strata)?;
    Ok(Filled {
        bytes_written: work.written.into_inner(),
        bytes_read: work.read.into_inner(),
        xattrs: work.xattrs.into_inner().unwrap_or_else(PoisonError::into_inner),
    })
}

/// Objects that are the values of extended attributes, with their sizes.
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

/// Gathers the parts of frames.
struct Gathering<'a> {
    work: &'a Work<'a>,
    xattrs: HashSet<u64>,
    sender: SyncSender<Batch>,
    open: HashMap<Ulid, Batch>,
    /// In all that is open.
    parts: usize,
    /// Where the object at hand goes, and its size.
    current: Option<(To, u64)>,
    /// How much of it is holes, as far as is known.
    holes: u64,
    seen: u64,
}

impl Gathering<'_> {
    fn hand_on(&mut self, batch: Batch) -> strata::Result<()> {
        self.parts -= batch.parts.len();
        let gone = |_| strata::Error::caller("the threads that write have ended");
        self.sender.send(batch).map_err(gone)
    }

    fn hand_on_all(&mut self) -> strata::Result<()> {
        let mut all: Vec<Batch> = std::mem::take(&mut self.open).into_values().collect();
        // Neighbours on disk are written by neighbours in time.
        all.sort_by_key(|batch| (batch.pack, batch.frame));
        all.into_iter().try_for_each(|batch| self.hand_on(batch))
    }
}

impl Sink for Gathering<'_> {
    fn object(&mut self, folded: &Folded) -> strata::Result<()> {
        self.seen += 1;
        if self.work.stop.load(Ordering::Relaxed)
            || (self.seen.is_multiple_of(LOOK_AROUND) && steps::interrupted())
        {
            return Err(strata::Error::caller("it was ended"));
        }
        let (volume, plan) = (self.work.volume, self.work.plan);
        let to = match plan.file_of(folded.object) {
            Some(file) if plan.files[file].is_regular() => Some(To::File(file)),
            _ if self.xattrs.contains(&folded.object) => Some(To::Xattr(folded.object)),
            _ => None,
        };
        let size = volume.tree.get(folded.object).map(|attributes| attributes.size);
        let is_counted = !volume.tree.left_out.contains(&folded.object);
        volume.bar.inc(std::mem::take(&mut self.holes));
        self.current = to.filter(|_| !volume.zeroed.contains(&folded.object)).zip(size);
        if let Some((To::File(_), size)) = self.current.filter(|_| is_counted) {
            self.holes = size;
        }
        Ok(())
    }

    fn wants_extents(&mut self) -> bool {
        self.current.is_some()
    }

    fn extent(&mut self, object: u64, extent: &Extent) -> strata::Result<()> {
        let Some((to, size)) = self.current else { return Ok(()) };
        // A file's last block may reach past its end.
        let length = extent.length.min(size.saturating_sub(extent.offset));
        if extent.block.is_none() || length == 0 {
            return Ok(());
        }
        if self.work.stop.load(Ordering::Relaxed) {
            return Err(strata::Error::caller("it was ended"));
        }
        let strange = || {
            let at = extent.offset;
            strata::Error::caller(format!("the block at {at} of object {object} is strange"))
        };
        let location = extent.content().ok_or_else(strange)?;
        let part = Part {
            to,
            offset: extent.offset,
            start: usize::try_from(location.start).map_err(|_| strange())?,
            size: usize::try_from(length).map_err(|_| strange())?,
        };
        match self.open.get_mut(&location.pack) {
            Some(batch) if batch.frame == location.frame => {
                if batch.add(part) {
                    return Ok(());
                }
            }
            _ => {
                let batch = Batch {
                    pack: location.pack,
                    frame: location.frame,
                    length: location.frame_length,
                    parts: vec![part],
                };
                if let Some(before) = self.open.insert(location.pack, batch) {
                    self.hand_on(before)?;
                }
            }
        }
        self.parts += 1;
        self.holes = self.holes.saturating_sub(length);
        if self.parts > MOST_PARTS || self.open.len() > MOST_BATCHES {
            self.hand_on_all()?;
        }
        Ok(())
    }
}

impl Work<'_> {
    fn run(&self, queue: &Mutex<Receiver<Batch>>) {
        let mut writer = Writer::new(self);
        let mut runs = Runs::of(queue);
        while let Some(run) = runs.next(|batch| (batch.pack, batch.frame, batch.length)) {
            // The rest is taken and dropped, so that nobody waits for room in the queue.
            if self.stop.load(Ordering::Relaxed) {
                continue;
            }
            if let Err(error) = writer.write_run(run) {
                self.stop.store(true, Ordering::Relaxed);
                self.turns.end();
                self.failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
            }
        }
    }
}
