//! The merge itself.

use super::rules::{Heritage, heritage};
use super::{Change, Delta, Entry, Sink, SpillBlock};
use crate::bytes::ByteOrder;
use crate::error::{Error, ErrorKind, Result};
use crate::feature::Features;
use crate::record::{Begin, Object, Spill, object_type};

/// Folds deltas, oldest first, into one.
///
/// If the first is a full stream, the result is full; otherwise it is an increment to the base of the first.
pub fn fold<D: Delta>(mut deltas: Vec<D>, sink: &mut impl Sink) -> Result<()> {
    let begin = folded_begin(&deltas)?;
    sink.begin(&begin)?;
    let is_full = begin.is_full();
    for delta in &mut deltas {
        delta.next_entry()?;
    }
    let mut layers: Vec<Layer<D>> = deltas.into_iter().map(Layer::new).collect();
    // Newest first from here on: the first layer that knows wins.
    layers.reverse();
    let mut freed = Freed::default();
    // All objects below this are done.
    let mut next = 0;
    loop {
        for layer in &mut layers {
            layer.catch_up(next)?;
        }
        let Some(object) = layers.iter().filter_map(|layer| layer.next_object(next)).min() else {
            break;
        };
        if !layers.iter().any(|layer| layer.has_object(object)) {
            // Only freed ranges here; they extend to the nearest object where anything changes.
            let until = layers
                .iter()
                .filter_map(|layer| layer.next_boundary(object))
                .min()
                .unwrap_or(u64::MAX);
            freed.add(object, until - object, is_full, sink)?;
            next = until;
            continue;
        }
        merge_object(&mut layers, object, &begin, &mut freed, sink)?;
        next = object + 1;
    }
    freed.flush(sink)
}

/// Returns the BEGIN of the result; refuses deltas that don't follow each other.
fn folded_begin<D: Delta>(deltas: &[D]) -> Result<Begin> {
    let chain = |why: String| Error::new(ErrorKind::Chain { why });
    let (Some(first), Some(last)) = (deltas.first(), deltas.last()) else {
        return Err(chain("there is nothing to fold".to_string()));
    };
    for (older, newer) in deltas.iter().zip(deltas.iter().skip(1)) {
        let (older, newer) = (older.begin(), newer.begin());
        if newer.from_guid != older.to_guid {
            return Err(chain(format!(
                "the stream of \"{}\" is an increment to GUID {}, but comes after \"{}\" with GUID {}",
                newer.to_name.escape_ascii(),
                newer.from_guid,
                older.to_name.escape_ascii(),
                older.to_guid
            )));
        }
        if newer.order != older.order || newer.objset != older.objset {
            return Err(chain("the streams are of different kinds or byte orders".to_string()));
        }
    }
    let mut begin = last.begin().clone();
    begin.from_guid = first.begin().from_guid;
    for delta in deltas {
        begin.features = begin.features.union(delta.begin().features);
    }
    begin.features = begin.features.without(Features::HOLDS);
    if begin.is_full() {
        begin.flags &= !(Begin::FLAG_CLONE | Begin::FLAG_FREERECORDS);
    }
    Ok(begin)
}

/// Freed ranges that touch are written as one.
#[derive(Default)]
struct Freed {
    range: Option<(u64, u64)>,
    /// Below this are slots of an object that is written: they are freed with it, never on their own.
    claimed_until: u64,
}

impl Freed {
    fn add(&mut self, first: u64, count: u64, is_full: bool, sink: &mut impl Sink) -> Result<()> {
        let end = first.saturating_add(count);
        let first = first.max(self.claimed_until);
        let count = end.saturating_sub(first);
        if is_full || count == 0 {
            return Ok(());
        }
        match &mut self.range {
            Some((start, length)) if *start + *length == first => *length += count,
            _ => {
                self.flush(sink)?;
                self.range = Some((first, count));
            }
        }
        Ok(())
    }

    fn flush(&mut self, sink: &mut impl Sink) -> Result<()> {
        match self.range.take() {
            Some((first, count)) => sink.freed(first, count),
            None => Ok(()),
        }
    }
}

/// A delta, and what it said about objects before the current one.
struct Layer<D> {
    delta: D,
    /// The slots that the last object takes after the first; they hold no other object.
    claimed: std::ops::Range<u64>,
}

impl<D: Delta> Layer<D> {
    fn new(delta: D) -> Layer<D> {
        Layer { delta, claimed: 0..0 }
    }

    /// Passes over everything before `next`.
    fn catch_up(&mut self, next: u64) -> Result<()> {
        loop {
            let done = match self.delta.entry() {
                None => false,
                Some(Entry::Freed { first, count }) => first + count <= next,
                Some(Entry::Changed(change)) => {
                    let done = change.object < next;
                    if done && let Some(header) = &change.header {
                        self.claimed = change.object + 1..change.object + header.slots();
                    }
                    done
                }
            };
            if !done {
                return Ok(());
            }
            self.delta.next_entry()?;
        }
    }

    /// Returns the first object from `next` on that the layer says something about.
    fn next_object(&self, next: u64) -> Option<u64> {
        self.delta.entry().map(|entry| entry.object().max(next))
    }

    fn has_object(&self, object: u64) -> bool {
        matches!(self.delta.entry(), Some(Entry::Changed(change)) if change.object == object)
    }

    /// Returns the first object after `object` from which the layer says something else.
    fn next_boundary(&self, object: u64) -> Option<u64> {
        match self.delta.entry()? {
            Entry::Freed { first, count } if *first <= object => Some(first + count),
            entry => Some(entry.object()),
        }
    }

    /// Whether the layer says that nothing older of this object remains.
    fn ends_older(&self, object: u64) -> bool {
        let freed = matches!(self.delta.entry(), Some(Entry::Freed { first, count })
            if (*first..first + count).contains(&object));
        freed || self.claimed.contains(&object)
    }

    fn change(&self) -> Option<&Change> {
        match self.delta.entry() {
            Some(Entry::Changed(change)) => Some(change),
            _ => None,
        }
    }
}

/// The result of merging the layers' headers of one object.
struct Merged {
    /// The layers whose content counts, newest first.
    layers: Vec<usize>,
    header: Option<(Object, Vec<u8>)>,
    /// Something that the base of an incremental result may have in the object is gone.
    emptied: bool,
    /// The layers whose spill block the newest header may have.
    spill_layers: Vec<usize>,
}

fn merge_headers<D: Delta>(layers: &[Layer<D>], object: u64, order: ByteOrder) -> Merged {
    let mut merged =
        Merged { layers: Vec::new(), header: None, emptied: false, spill_layers: Vec::new() };
    // The header of the oldest layer so far.
    let mut nearest: Option<(&Object, &[u8])> = None;
    let mut block_size = u32::MAX;
    let mut spill_kept = true;
    for (index, layer) in layers.iter().enumerate() {
        if !layer.has_object(object) {
            if layer.ends_older(object) {
                merged.emptied = true;
                break;
            }
            continue;
        }
        let Some(change) = layer.change() else {
            continue;
        };
        if let Some(header) = &change.header {
            let older = (header, &change.bonus[..]);
            if let Some(newer) = nearest {
                match heritage(older, newer, order) {
                    Heritage::Kept => {}
                    Heritage::KeptInBlocksOf(size) => block_size = block_size.min(size),
                    Heritage::Dropped => {
                        merged.emptied = true;
                        break;
                    }
                }
                // Without the flags, an object whose properties change loses its spill block.
                let (old, new) = (older.0, newer.0);
                if (old.bonus_type, old.bonus_len, old.block_size)
                    != (new.bonus_type, new.bonus_len, new.block_size)
                {
                    spill_kept = false;
                }
            }
            nearest = Some(older);
            merged.header.get_or_insert_with(|| (header.clone(), change.bonus.clone()));
        }
        merged.layers.push(index);
        if spill_kept || layer.delta.begin().has_spill_flags() {
            merged.spill_layers.push(index);
        }
    }
    if let Some((header, _)) = &mut merged.header {
        header.block_size = header.block_size.min(block_size);
    }
    merged
}

fn merge_object<D: Delta>(
    layers: &mut [Layer<D>],
    object: u64,
    begin: &Begin,
    freed: &mut Freed,
    sink: &mut impl Sink,
) -> Result<()> {
    let merged = merge_headers(layers, object, begin.order);
    if merged.layers.is_empty() {
        // Only layers below a freed range have it.
        return freed.add(object, 1, begin.is_full(), sink);
    }
    freed.flush(sink)?;
    // The newest layer decides whether there is a spill block.
    let newest_flags = merged
        .layers
        .iter()
        .map(|&index| &layers[index])
        .find(|layer| layer.change().is_some_and(|change| change.header.is_some()))
        .map(|layer| layer.delta.begin().has_spill_flags());
    if let Some((header, bonus)) = &merged.header {
        sink.object(header, bonus)?;
        freed.claimed_until = object + header.slots();
    } else if begin.is_full() {
        return Err(Error::object(
            object,
            "it has content but no properties in any of the streams",
        ));
    }
    if merged.emptied && !begin.is_full() {
        sink.hole(object, 0, u64::MAX)?;
    }
    merge_content(layers, &merged.layers, object, begin.is_full(), sink)?;
    // All of the object's content has been passed, so its spill blocks are available.
    for &index in &merged.layers {
        while layers[index].delta.extent().is_some() {
            layers[index].delta.next_extent()?;
        }
    }
    let flagged = merged.header.as_ref().is_some_and(|(header, _)| header.has_spill());
    let spill_layers = match newest_flags {
        Some(true) if flagged => &merged.layers[..],
        Some(true) => &[],
        _ => &merged.spill_layers[..],
    };
    let spilled = merge_spill(layers, spill_layers, begin.is_full(), sink)?;
    if let (Some((header, _)), Some(flags)) = (&merged.header, newest_flags)
        && !begin.is_full()
        && !spilled
        && !tells_of_no_spill(header, flags, begin)
    {
        return Err(Error::new(ErrorKind::Chain {
            why: format!(
                "whether the spill block of object {object} stays can't be determined: one of these increments comes from OpenZFS before 0.8, another from a later version"
            ),
        }));
    }
    if flagged && !spilled && begin.is_full() {
        return Err(Error::object(object, "its spill block is in none of the streams"));
    }
    sink.object_end(object)
}

/// Whether an increment with this BEGIN is right about the spill block of an object that has no SPILL record. The
/// object's record comes from a stream in which the spill flags are valid (`flags`) or not.
///
/// Without the flags, no SPILL record means that the spill block is unchanged. With them, it means that there is none,
/// and `zfs receive` removes it. An object whose attributes aren't system attributes never has one.
pub fn tells_of_no_spill(header: &Object, flags: bool, begin: &Begin) -> bool {
    flags == begin.has_spill_flags() || header.bonus_type != object_type::SA
}

/// Merges the spill blocks: the newest counts. In an incremental result it is unmodified only if it is so in every
/// layer.
fn merge_spill<D: Delta>(
    layers: &[Layer<D>],
    among: &[usize],
    is_full: bool,
    sink: &mut impl Sink,
) -> Result<bool> {
    let mut found = among.iter().filter_map(|&index| {
        let layer = &layers[index].delta;
        layer.spill().map(|spill| (spill, layer.begin().has_spill_flags()))
    });
    let Some((newest, has_flags)) = found.next() else {
        return Ok(false);
    };
    let unmodified = |spill: &SpillBlock<'_>| spill.header.flags & Spill::FLAG_UNMODIFIED != 0;
    let mut flags = newest.header.flags & !Spill::FLAG_UNMODIFIED;
    if !is_full && has_flags && unmodified(&newest) && found.all(|(older, _)| unmodified(&older)) {
        flags |= Spill::FLAG_UNMODIFIED;
    }
    let header = Spill { flags, ..*newest.header };
    sink.spill(SpillBlock { header: &header, payload: newest.payload })?;
    Ok(true)
}

/// Merges the extents of `among`, newest first. Each layer counts as two: its extents, and below them its tail, from
/// which on nothing older counts.
fn merge_content<D: Delta>(
    layers: &mut [Layer<D>],
    among: &[usize],
    object: u64,
    is_full: bool,
    sink: &mut impl Sink,
) -> Result<()> {
    let mut position = 0;
    loop {
        // The nearest offset at which a layer above the one that covers `position` begins.
        let mut limit = u64::MAX;
        let mut winner = None;
        for &index in among {
            let layer = &mut layers[index];
            while layer
                .delta
                .extent()
                .is_some_and(|extent| extent.end() <= position && extent.end() != u64::MAX)
            {
                layer.delta.next_extent()?;
            }
            if let Some(extent) = layer.delta.extent() {
                if extent.offset <= position {
                    winner = Some((index, extent.is_data, extent.end().min(limit)));
                    break;
                }
                limit = limit.min(extent.offset);
            }
            if let Some(tail) = layer.change().and_then(|change| change.tail) {
                if tail <= position {
                    winner = Some((index, false, limit));
                    break;
                }
                limit = limit.min(tail);
            }
        }
        let end = match winner {
            None => limit,
            Some((index, true, end)) => {
                let block = layers[index].delta.block()?;
                let piece = super::Piece { offset: position, length: end - position, block };
                sink.piece(object, piece)?;
                end
            }
            Some((_, false, end)) => {
                if !is_full {
                    let length = if end == u64::MAX { u64::MAX } else { end - position };
                    sink.hole(object, position, length)?;
                }
                end
            }
        };
        if end == u64::MAX {
            return Ok(());
        }
        position = end;
    }
}
