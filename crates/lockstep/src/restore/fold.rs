//! Folds a volume's deltas into one send stream for `zfs receive`: in full, or what changed since a snapshot that the
//! dataset has.

use std::collections::{BTreeSet, HashSet};
use std::io::{BufWriter, Write};
use std::process::ChildStdin;

use indicatif::ProgressBar;
use sendstream::fold::StreamSink;
use strata::delta::Descriptor;

use super::build::Build;
use super::source::FromRepository;
use super::zeroing::Zeroing;
use crate::error::{Error, Result};
use crate::process::Piped;
use crate::progress::Progress;
use crate::repository::ingest::of_stream;
use crate::repository::tree::{Depth, ImageTree};
use crate::repository::unfold::unfold_chain;
use crate::repository::{ShippedVolume, of_strata};
use crate::set::manifest::Manifest;
use crate::side_by_side::Item;
use crate::steps;
use crate::volume::zfs::{DatasetName, Zfs};

/// A volume that is received in parallel with others, into a new dataset.
pub(super) struct Fresh<'a> {
    receiving: DatasetName,
    index: usize,
    shipped: &'a ShippedVolume,
    chain: Vec<Descriptor>,
}

/// Returns those volumes of the set that are received in parallel, largest first. Raw ones aren't among them, because
/// their segments come one after another, nor those on top of an existing dataset.
pub(super) fn fresh<'a>(
    from: &'a FromRepository,
    build: &Build,
    there: &BTreeSet<DatasetName>,
) -> Result<Vec<Item<Fresh<'a>>>> {
    let mut items = Vec::new();
    for (index, placed) in build.placement.volumes.iter().enumerate() {
        let (Some(dataset), Some(shipped)) = (&placed.dataset, from.shipped_volume(placed)) else {
            continue;
        };
        let Some(receiving) = from.receiving(&build.id, index) else { continue };
        if shipped.raw.is_some() || there.contains(dataset) {
            continue;
        }
        let chain = from.deltas(shipped, None)?;
        let weight = chain.len();
        items.push(Item { index, weight, work: Fresh { receiving, index, shipped, chain } });
    }
    items.sort_by_key(|item| std::cmp::Reverse(item.work.shipped.stored_bytes));
    Ok(items)
}

impl Fresh<'_> {
    /// Receives it.
    pub(super) fn receive(
        &self,
        from: &FromRepository,
        manifest: &Manifest,
        zfs: &Zfs,
        lines: &Progress,
        should_stop: &dyn Fn() -> bool,
    ) -> Result<()> {
        let Self { shipped, chain, .. } = self;
        let fold = Fold { from, manifest, shipped, chain, since: None };
        fold.receive(zfs, &self.receiving, lines, should_stop)?;
        steps::reached(&format!("restore.receiving-{}", self.index + 1))
    }
}

/// What is folded.
pub(super) struct Fold<'a> {
    pub(super) from: &'a FromRepository,
    pub(super) manifest: &'a Manifest,
    pub(super) shipped: &'a ShippedVolume,
    /// The deltas, oldest first.
    pub(super) chain: &'a [Descriptor],
    /// The snapshot that they follow.
    pub(super) since: Option<&'a str>,
}

impl Fold<'_> {
    /// Receives it. `should_stop` ends it; so does a signal.
    pub(super) fn receive(
        &self,
        zfs: &Zfs,
        dataset: &DatasetName,
        lines: &Progress,
        should_stop: &dyn Fn() -> bool,
    ) -> Result<()> {
        let Self { from, shipped, chain, since, .. } = *self;
        let zeroed = self.zeroed()?;
        let bar = self.bar(lines, &zeroed)?;
        let mut child = zfs.receive(dataset)?;
        let should_stop = || steps::interrupted() || should_stop();
        let result = (|| -> Result<_> {
            let stream = StreamSink::new(BufWriter::with_capacity(1 << 20, &mut child));
            let mut sink = Zeroing::new(stream, zeroed, from.guid(shipped)?, bar, &should_stop);
            let unfolded = unfold_chain(&from.repository, chain, since, &mut sink)?;
            let mut output = sink.into_inner().finish().map_err(of_stream)?;
            output.flush().map_err(Error::io("write to", "zfs receive"))?;
            Ok(unfolded)
        })();
        if result.is_err() && should_stop() {
            // Then what `zfs receive` says doesn't matter; it is killed.
            steps::reached("restore.receiving")?;
            return result.map(|_| ());
        }
        let unfolded = ended(result, child)?;
        tracing::debug!(%dataset, ?unfolded, "received");
        Ok(())
    }

    /// Shows the progress. The total is only computed if somebody looks.
    fn bar(&self, lines: &Progress, zeroed: &HashSet<u64>) -> Result<ProgressBar> {
        if !lines.is_shown() {
            return Ok(ProgressBar::hidden());
        }
        let total = match self.since {
            None => self.tree()?.file_bytes(zeroed),
            // What is written twice in between is counted twice.
            Some(_) => {
                let mut total = 0;
                for delta in self.chain {
                    let count = |row: strata::delta::PackRow| {
                        total += row.live;
                        Ok(())
                    };
                    let strata = &self.from.repository.strata;
                    strata::delta::packs(strata, delta, count).map_err(of_strata)?;
                }
                total
            }
        };
        Ok(lines.bytes_of(self.shipped.dataset.as_str(), total))
    }

    /// Returns the objects that become holes.
    fn zeroed(&self) -> Result<HashSet<u64>> {
        let mut volumes = self.manifest.volumes.iter();
        let volume = volumes.find(|volume| volume.dataset == self.shipped.dataset);
        let is_a_part = !self.from.only.is_all();
        let Some(volume) = volume.filter(|_| is_a_part) else { return Ok(HashSet::new()) };
        self.from.only.zeroed(&self.tree()?, volume)
    }

    fn tree(&self) -> Result<ImageTree> {
        let Self { from, shipped, .. } = self;
        ImageTree::read(&from.repository, &shipped.image, &shipped.delta, Depth::Names)
    }
}

/// Returns how it ended. If the pipe broke, the reason is what `zfs receive` said; otherwise that only saw its stream
/// end early.
pub(super) fn ended<T>(written: Result<T>, child: Piped<ChildStdin>) -> Result<T> {
    match (written, child.finish()) {
        (Err(error), Err(reason)) if error.is_broken_pipe() => Err(reason.into()),
        (Ok(_), Err(reason)) => Err(reason.into()),
        (written, _) => written,
    }
}
