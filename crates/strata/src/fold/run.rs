//! The merge itself.

use super::layers::{Layer, Merged, merge_headers};
use super::{Folded, Rules, Sink};
use crate::delta::{Delta, Extent};
use crate::error::{Error, Result};

/// Folds deltas, oldest first, into one. With `is_full` the oldest has no base, so the result is a whole image;
/// otherwise it is an increment to the base of the oldest.
pub fn fold<D: Delta>(
    deltas: Vec<D>,
    is_full: bool,
    rules: &impl Rules,
    sink: &mut impl Sink,
) -> Result<()> {
    let mut layers: Vec<Layer<D>> = deltas.into_iter().map(Layer::new).collect();
    // Newest first from here on: the first layer that knows wins.
    layers.reverse();
    let mut freed = Freed { is_full, range: None, claimed_until: 0 };
    // All objects below this are done.
    let mut next = 0;
    let mut is_begun = false;
    while let Some(wanted) = sink.wanted(next)? {
        for layer in &mut layers {
            if wanted > next {
                layer.seek(wanted, rules)?;
            } else if !is_begun {
                layer.delta.next_entry()?;
            }
            layer.catch_up(wanted, rules)?;
        }
        (next, is_begun) = (wanted, true);
        let Some(object) = layers.iter().filter_map(|layer| layer.next_object(next)).min() else {
            break;
        };
        if object > next && sink.wanted(object)? != Some(object) {
            next = object;
            continue;
        }
        if layers.iter().any(|layer| layer.has_object(object)) {
            merge_object(&mut layers, object, rules, &mut freed, sink)?;
            next = object.saturating_add(1);
        } else {
            // Only freed ranges here; they extend to the nearest object where anything changes.
            let boundaries = layers.iter().filter_map(|layer| layer.next_boundary(object));
            next = boundaries.min().unwrap_or(u64::MAX);
            freed.add(object, next - object, sink)?;
        }
        if next == u64::MAX {
            break;
        }
    }
    freed.flush(sink)
}

/// Merges freed ranges that touch.
struct Freed {
    is_full: bool,
    range: Option<(u64, u64)>,
    /// Below this are slots of an object that was passed on: they are freed with it, never on their own.
    claimed_until: u64,
}

impl Freed {
    fn add(&mut self, first: u64, count: u64, sink: &mut impl Sink) -> Result<()> {
        let end = first.saturating_add(count);
        let first = first.max(self.claimed_until);
        let count = end.saturating_sub(first);
        if self.is_full || count == 0 {
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

fn merge_object<D: Delta>(
    layers: &mut [Layer<D>],
    object: u64,
    rules: &impl Rules,
    freed: &mut Freed,
    sink: &mut impl Sink,
) -> Result<()> {
    let Merged { layers: among, header, spill, fresh } = merge_headers(layers, object, rules);
    if among.is_empty() {
        // Only layers below a freed range have it.
        return freed.add(object, 1, sink);
    }
    freed.flush(sink)?;
    if let Some(header) = &header {
        freed.claimed_until = object.saturating_add(rules.slots(header).max(1));
    } else if freed.is_full {
        return Err(Error::NoHeader { object });
    }
    let nothing_below = freed.is_full || fresh;
    sink.object(&Folded { object, fresh: nothing_below, header, spill })?;
    if sink.wants_extents() {
        for &index in &among {
            layers[index].delta.meet_extents()?;
        }
        merge_content(layers, &among, object, nothing_below, sink)?;
    } else {
        layers.iter_mut().for_each(|layer| layer.delta.leave_extents());
    }
    sink.object_end(object)
}

/// What covers an offset in an object.
enum Cover {
    /// A layer's extent.
    Extent(usize),
    /// A layer's tail: nothing older counts.
    Tail,
}

/// Merges the extents of `among`, newest first. Each layer counts as two: its extents, and below them its tail, from
/// which on nothing older counts.
fn merge_content<D: Delta>(
    layers: &mut [Layer<D>],
    among: &[usize],
    object: u64,
    nothing_below: bool,
    sink: &mut impl Sink,
) -> Result<()> {
    let mut position = 0;
    // Holes that touch are passed as one.
    let mut hole: Option<(u64, u64)> = None;
    while position != u64::MAX {
        // The nearest offset at which a layer above the one that covers `position` begins.
        let mut limit = u64::MAX;
        let mut cover = None;
        for &index in among {
            let layer = &mut layers[index];
            while layer
                .delta
                .extent()
                .is_some_and(|extent| extent.end() <= position && extent.length != u64::MAX)
            {
                layer.delta.next_extent()?;
            }
            if let Some(extent) = layer.delta.extent() {
                if extent.offset <= position {
                    limit = limit.min(extent.end());
                    cover = Some(Cover::Extent(index));
                    break;
                }
                limit = limit.min(extent.offset);
            }
            if let Some(tail) = layer.change().and_then(|change| change.tail) {
                if tail <= position {
                    cover = Some(Cover::Tail);
                    break;
                }
                limit = limit.min(tail);
            }
        }
        let extent = match cover {
            Some(Cover::Extent(index)) => layers[index].delta.extent(),
            _ => None,
        };
        match (cover, extent.filter(|extent| extent.block.is_some())) {
            (_, Some(extent)) => {
                flush_hole(&mut hole, object, sink)?;
                sink.extent(object, &extent.part(position, limit))?;
            }
            (Some(_), None) if !nothing_below => match &mut hole {
                Some((_, end)) => *end = limit,
                None => hole = Some((position, limit)),
            },
            _ => flush_hole(&mut hole, object, sink)?,
        }
        position = limit;
    }
    flush_hole(&mut hole, object, sink)
}

fn flush_hole(hole: &mut Option<(u64, u64)>, object: u64, sink: &mut impl Sink) -> Result<()> {
    match hole.take() {
        Some((offset, u64::MAX)) => sink.extent(object, &Extent::hole(offset, u64::MAX)),
        Some((offset, end)) => sink.extent(object, &Extent::hole(offset, end - offset)),
        None => Ok(()),
    }
}
