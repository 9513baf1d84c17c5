//! Repacking: if little of a pack's content is live, the live blocks are written again, so that the pack can be
//! deleted.
//!
//! Merged deltas leave blocks behind that nothing refers to any more, between others that are live. A pack can only be
//! deleted as a whole, so its live blocks move: first into new packs, then each delta that names them gets a new index,
//! and its descriptor replaces the old one in one step. From then on nothing refers to the old packs and index files,
//! and [`collect`](crate::check::collect) deletes them after their grace time. Until then, a process that has read the
//! old descriptor can still read what it names.
//!
//! What could go wrong: a damaged block is written again as if it were good, so frames are opened and their hashes
//! checked, and a damaged pack is reported and left as it is. A delta must mean the same afterwards, so entries and
//! extents are copied as they are and only places change. Only one repacking may run at a time, and none during a merge
//! or a collection: callers hold the lease of these.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::check::Live;
use crate::delta::{
    Delta, DeltaReader, DeltaWriter, Descriptor, Entry, IndexOptions, ReadOptions, packs,
    read_descriptor,
};
use crate::error::{Error, Result};
use crate::id::Ulid;
use crate::lease::Still;
use crate::manifest::DeltaId;
use crate::many::read_many;
use crate::pack::{FrameReader, Location, PackOptions, PackWriter, Packed, Placed};
use crate::repository::Repository;

/// What is repacked, and how.
#[derive(Clone, Debug)]
pub struct RepackOptions {
    /// Packs are repacked if less than this percentage of their content is live.
    pub live_percent: u64,
    /// About how many bytes may be written to the store.
    pub max_bytes: u64,
    /// Blocks that move at a time, 100 bytes of memory each; the indexes that name them are rewritten each time.
    pub blocks: usize,
    /// A frame is closed when its content has reached this size.
    pub frame_size: usize,
    /// The new packs.
    pub packs: PackOptions,
    /// The new indexes.
    pub index: IndexOptions,
}

impl Default for RepackOptions {
    fn default() -> RepackOptions {
        RepackOptions {
            live_percent: 50,
            max_bytes: u64::MAX,
            blocks: 500_000,
            frame_size: 1 << 20,
            packs: PackOptions::default(),
            index: IndexOptions::default(),
        }
    }
}

/// A pack of which little is live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sparse {
    /// The pack.
    pub packed: Packed,
    /// How many bytes of its content deltas refer to.
    pub live: u64,
}

impl Sparse {
    /// Returns about how much its live blocks take in the store, assuming that they compress as well as the others.
    fn stored(&self) -> u64 {
        let share = u128::from(self.packed.size) * u128::from(self.live);
        u64::try_from(share / u128::from(self.packed.content.max(1))).unwrap_or(u64::MAX)
    }
}

/// What was done, or would be.
#[derive(Debug, Default)]
pub struct Repacked {
    /// Packs that nothing refers to any more, or wouldn't in a dry run; the least live first.
    pub packs: Vec<Sparse>,
    /// How many more packs have little live content but didn't fit into the budget.
    pub left: u64,
    /// Deltas that got a new index.
    pub deltas: u64,
    /// Bytes of new packs; in a dry run an estimate.
    pub written: u64,
    /// Packs whose live content can't be read, and why; they are left as they are.
    pub damaged: Vec<(Ulid, Error)>,
}

/// Rewrites what is live in sparse packs, as far as the budget goes.
///
/// If any of a set's deltas can't be read, it stops before anything is written. `still` is called before each block
/// moves and before each descriptor is replaced. While blocks move, `told` is called with the number of bytes that have
/// moved and their total.
pub fn repack(
    repository: &Repository,
    options: &RepackOptions,
    is_dry_run: bool,
    still: Still<'_>,
    told: &mut dyn FnMut(u64, u64),
) -> Result<Repacked> {
    let mut live = Live::default();
    live.sets(repository)?;
    let mut sparse: Vec<Sparse> = live
        .packs
        .values()
        .map(|&(packed, live)| Sparse { packed, live })
        .filter(|sparse| is_sparse(sparse, options.live_percent))
        .collect();
    // First those that free the most for what is written.
    sparse.sort_by(|a, b| {
        let product = |a: &Sparse, b: &Sparse| u128::from(a.live) * u128::from(b.packed.content);
        product(a, b).cmp(&product(b, a)).then(a.packed.pack.cmp(&b.packed.pack))
    });
    let mut repacked = Repacked::default();
    let mut chosen = VecDeque::new();
    let mut estimate = 0_u64;
    for sparse in sparse {
        let with = estimate.saturating_add(sparse.stored());
        if with > options.max_bytes {
            repacked.left += 1;
        } else {
            estimate = with;
            chosen.push_back(sparse);
        }
    }
    if is_dry_run {
        repacked.packs = chosen.into();
        repacked.written = estimate;
        return Ok(repacked);
    }
    let mut deltas = naming(repository, &live, &chosen)?;
    let mut changed = BTreeSet::new();
    // Blocks that several deltas name are counted for each of them but move once.
    let total = chosen.iter().map(|sparse| sparse.live).sum();
    let mut moved_bytes = 0;
    told(moved_bytes, total);
    while !chosen.is_empty() {
        let (moves, batch) = Moves::of(repository, &deltas, &mut chosen, options.blocks)?;
        let mut moving = |bytes| {
            still()?;
            moved_bytes += bytes;
            told(moved_bytes.min(total), total);
            Ok(())
        };
        let (moves, packed) = copy(repository, moves, options, &mut repacked.damaged, &mut moving)?;
        repacked.written += packed.iter().map(|packed| packed.size).sum::<u64>();
        for (index, (descriptor, named)) in deltas.iter_mut().enumerate() {
            if batch.iter().any(|sparse| named.contains(&sparse.packed.pack)) {
                let with = &options.index;
                *descriptor = rewrite(repository, descriptor, &moves, &packed, with, still)?;
                changed.insert(index);
            }
        }
        let is_damaged =
            |pack| repacked.damaged.iter().any(|(damaged, _): &(Ulid, Error)| *damaged == pack);
        let moved: Vec<_> =
            batch.into_iter().filter(|sparse| !is_damaged(sparse.packed.pack)).collect();
        repacked.packs.extend(moved);
    }
    repacked.deltas = changed.len() as u64;
    Ok(repacked)
}

pub(crate) fn is_sparse(sparse: &Sparse, percent: u64) -> bool {
    u128::from(sparse.live) * 100 < u128::from(sparse.packed.content) * u128::from(percent)
}

type Naming = Vec<(Descriptor, BTreeSet<Ulid>)>;

/// Returns the deltas that name blocks in one of these packs, and in which packs.
fn naming(repository: &Repository, live: &Live, chosen: &VecDeque<Sparse>) -> Result<Naming> {
    let chosen: BTreeSet<Ulid> = chosen.iter().map(|sparse| sparse.packed.pack).collect();
    let mut naming = Vec::new();
    let deltas: Vec<_> = live.deltas.iter().filter(|_| !chosen.is_empty()).collect();
    let read = |delta: &&DeltaId| {
        let descriptor = read_descriptor(repository, &delta.image, &delta.id)?;
        let mut named = BTreeSet::new();
        packs(repository, &descriptor, |row| {
            named.extend(Some(row.pack).filter(|pack| chosen.contains(pack)));
            Ok(())
        })?;
        Ok((descriptor, named))
    };
    read_many(&deltas, read, |_, found: Result<_>| {
        naming.extend(Some(found?).filter(|(_, named)| !named.is_empty()));
        Ok::<_, Error>(())
    })?;
    Ok(naming)
}

/// A block's place, in the order of blocks in the store.
type Place = (Ulid, u64, u64, u64, u64);

fn place(at: &Location) -> Place {
    (at.pack, at.frame, at.start, at.size, at.frame_length)
}

/// Blocks that move, and their new places.
#[derive(Default)]
struct Moves {
    /// Ascending.
    from: Vec<Place>,
    to: Vec<Option<Location>>,
}

/// Places that are being gathered; some occur several times.
struct Gathering {
    from: Vec<Place>,
    limit: usize,
    /// When there are this many, they are sorted.
    most: usize,
}

impl Gathering {
    fn new(limit: usize) -> Gathering {
        Gathering { from: Vec::new(), limit, most: 2 * limit.max(1) }
    }

    /// Adds a place. If there are too many, `less` names the pack whose places are dropped, as long as it has one to
    /// name.
    fn push(&mut self, place: Place, mut less: impl FnMut() -> Option<Ulid>) {
        self.from.push(place);
        if self.from.len() < self.most {
            return;
        }
        self.sort();
        while self.from.len() > self.limit
            && let Some(pack) = less()
        {
            self.from.retain(|place| place.0 != pack);
        }
        // The last pack stays, however many blocks it has: sorting all of them for each new one would take forever.
        self.most = 2 * self.limit.max(self.from.len()).max(1);
    }

    fn sort(&mut self) {
        self.from.sort_unstable();
        self.from.dedup();
    }
}

impl Moves {
    /// Returns the blocks of as many of the packs as there is memory for, and these packs, which are taken from
    /// `chosen`.
    fn of(
        repository: &Repository,
        deltas: &Naming,
        chosen: &mut VecDeque<Sparse>,
        limit: usize,
    ) -> Result<(Moves, Vec<Sparse>)> {
        let mut batch: Vec<Sparse> = chosen.drain(..).collect();
        let mut wanted: BTreeSet<Ulid> = batch.iter().map(|sparse| sparse.packed.pack).collect();
        let mut gathering = Gathering::new(limit);
        for (descriptor, named) in deltas {
            if named.is_disjoint(&wanted) {
                continue;
            }
            each_block(repository, descriptor, |location| {
                if !wanted.contains(&location.pack) {
                    return;
                }
                // The packs with the most live content wait for the next round.
                gathering.push(place(location), || {
                    let last = batch.pop_if(|_| wanted.len() > 1)?;
                    wanted.remove(&last.packed.pack);
                    chosen.push_front(last);
                    Some(last.packed.pack)
                });
            })?;
        }
        gathering.sort();
        let from = gathering.from;
        let to = vec![None; from.len()];
        Ok((Moves { from, to }, batch))
    }

    fn get(&self, location: &Location) -> Option<Location> {
        let index = self.from.binary_search(&place(location)).ok()?;
        self.to.get(index).copied().flatten()
    }
}

/// Passes the place of each block of a delta to `each`.
fn each_block(
    repository: &Repository,
    descriptor: &Descriptor,
    mut each: impl FnMut(&Location),
) -> Result<()> {
    let mut reader = DeltaReader::new(repository, descriptor.clone(), ReadOptions::default());
    reader.next_entry()?;
    while reader.entry().is_some() {
        while let Some(extent) = reader.extent() {
            extent.block.iter().for_each(|block| each(&block.location));
            reader.next_extent()?;
        }
        reader.next_entry()?;
    }
    Ok(())
}

/// Writes the blocks into new packs, all of which are in the store when it returns.
fn copy(
    repository: &Repository,
    mut moves: Moves,
    options: &RepackOptions,
    damaged: &mut Vec<(Ulid, Error)>,
    moving: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<(Moves, Vec<Packed>)> {
    let mut frames = FrameReader::new(repository, 0);
    let mut copying = Copying {
        packs: PackWriter::new(repository, options.packs, None)?,
        content: Vec::new(),
        inside: Vec::new(),
        unplaced: VecDeque::new(),
    };
    let frame_size = options.frame_size.clamp(1, crate::frame::MAX_CONTENT / 2);
    for index in 0..moves.from.len() {
        let (pack, frame, start, size, frame_length) = moves.from[index];
        moving(size)?;
        if damaged.last().is_some_and(|(damaged, _)| *damaged == pack) {
            continue;
        }
        let bytes = match frames.read(&Location { pack, frame, frame_length, start, size }) {
            Ok(bytes) => bytes,
            Err(error) if error.is_not_found() || matches!(error, Error::Damaged { .. }) => {
                damaged.push((pack, error));
                continue;
            }
            Err(error) => return Err(error),
        };
        if !copying.content.is_empty() && copying.content.len() + bytes.len() > frame_size {
            copying.close_frame(&mut moves.to)?;
        }
        let start = copying.content.len() as u64;
        moves.to[index] = Some(Location { start, size, ..Location::default() });
        copying.content.extend_from_slice(&bytes);
        copying.inside.push(index);
    }
    let packed = copying.finish(&mut moves.to)?;
    for (place, to) in moves.from.iter().zip(&mut moves.to) {
        if damaged.iter().any(|(damaged, _)| *damaged == place.0) {
            *to = None;
        }
    }
    Ok((moves, packed))
}

/// Frames that are being written.
struct Copying {
    packs: PackWriter,
    /// Content of the frame that is being filled, and which blocks are in it.
    content: Vec<u8>,
    inside: Vec<usize>,
    /// The blocks of frames that have no place yet, oldest first.
    unplaced: VecDeque<Vec<usize>>,
}

impl Copying {
    fn close_frame(&mut self, to: &mut [Option<Location>]) -> Result<()> {
        if self.content.is_empty() {
            return Ok(());
        }
        self.unplaced.push_back(std::mem::take(&mut self.inside));
        let unplaced = &mut self.unplaced;
        self.packs.push(std::mem::take(&mut self.content), &mut |placed| {
            settle(unplaced, to, placed);
        })
    }

    fn finish(mut self, to: &mut [Option<Location>]) -> Result<Vec<Packed>> {
        self.close_frame(to)?;
        let unplaced = &mut self.unplaced;
        self.packs.finish(&mut |placed| settle(unplaced, to, placed))
    }
}

/// Records the place of the oldest frame, and so of its blocks.
fn settle(unplaced: &mut VecDeque<Vec<usize>>, to: &mut [Option<Location>], placed: Placed) {
    for index in unplaced.pop_front().unwrap_or_default() {
        if let Some(Some(location)) = to.get_mut(index) {
            (location.pack, location.frame) = (placed.pack, placed.at);
            location.frame_length = placed.length;
        }
    }
}

/// Writes a delta's index with the new places, and replaces its descriptor.
fn rewrite(
    repository: &Repository,
    old: &Descriptor,
    moves: &Moves,
    packed: &[Packed],
    options: &IndexOptions,
    still: Still<'_>,
) -> Result<Descriptor> {
    let mut sizes: BTreeMap<Ulid, Packed> = BTreeMap::new();
    packs(repository, old, |row| {
        sizes.insert(row.pack, row.packed());
        Ok(())
    })?;
    sizes.extend(packed.iter().map(|&packed| (packed.pack, packed)));
    let base = old.base.as_deref();
    let mut writer = DeltaWriter::new(repository, &old.image, &old.id, base, options)?;
    writer.about(old.about.clone());
    let mut reader = DeltaReader::new(repository, old.clone(), ReadOptions::default());
    reader.next_entry()?;
    while let Some(entry) = reader.entry() {
        match entry {
            Entry::Freed { first, count } => writer.freed(*first, *count)?,
            Entry::Changed(change) => writer.changed(change.clone())?,
        }
        while let Some(extent) = reader.extent() {
            let mut extent = extent.clone();
            if let Some(block) = &mut extent.block
                && let Some(to) = moves.get(&block.location)
            {
                block.location = to;
            }
            writer.extent(extent)?;
            reader.next_extent()?;
        }
        reader.next_entry()?;
    }
    writer.finish_if(sizes.into_values(), still)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_blocks_of_one_pack_are_sorted_a_few_times_however_many_they_are() {
        let mut gathering = Gathering::new(10);
        let mut sorted = 0;
        for at in 0..100_000 {
            gathering.push((Ulid(1), at / 2, 0, 1, 1), || {
                sorted += 1;
                None
            });
        }
        gathering.sort();
        assert_eq!(gathering.from.len(), 50_000);
        assert!((5..40).contains(&sorted), "sorted {sorted} times");
    }

    #[test]
    fn packs_are_left_out_until_the_others_fit() {
        let mut gathering = Gathering::new(10);
        let mut packs = vec![1, 2, 3];
        for at in 0..20 {
            gathering.push((Ulid(at % 3 + 1), at as u64, 0, 1, 1), || packs.pop().map(Ulid));
        }
        assert_eq!(packs, [1]);
        gathering.sort();
        let mut left: Vec<_> = gathering.from.iter().map(|place| place.0.0).collect();
        left.dedup();
        assert_eq!((left, gathering.from.len()), (vec![1], 7));
    }
}
