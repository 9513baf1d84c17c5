//! A volume out of a repository into a dataset: the fold of its deltas as a send stream, into
//! `zfs receive`. Full, or where the dataset has a snapshot that the repository knows, what changed
//! since.

use std::io::{BufWriter, Write};

use sendstream::fold::StreamSink;

use super::build::Build;
use super::placement::PlacedVolume;
use super::source::FromRepository;
use crate::error::{Error, Result};
use crate::repository::ingest::of_stream;
use crate::repository::unfold::unfold;
use crate::repository::{ShippedVolume, of_strata};
use crate::volume::zfs::{Base, DatasetName};

/// Fills the dataset, and checks that its snapshot is the set's.
pub(super) fn volume(
    from: &FromRepository,
    build: &Build,
    placed: &PlacedVolume,
    dataset: &DatasetName,
    shipped: &ShippedVolume,
    exists: bool,
) -> Result<()> {
    let zfs = &build.cx.zfs;
    let since = if exists { Some(common(from, build, dataset, shipped)?) } else { None };
    if let Some(base) = since.as_ref().filter(|base| base.guid.to_string() == shipped.delta) {
        // It is there already; what was written since goes.
        zfs.rollback(&base.name)?;
    } else {
        let mut child = zfs.receive(dataset)?;
        let since = since.map(|base| base.guid.to_string());
        let result = (|| {
            let mut sink = StreamSink::new(BufWriter::with_capacity(1 << 20, &mut child));
            let unfolded = unfold(
                &from.repository,
                &shipped.image,
                &shipped.delta,
                since.as_deref(),
                &mut sink,
            )?;
            let mut output = sink.finish().map_err(of_stream)?;
            output.flush().map_err(Error::io("write to", "zfs receive"))?;
            Ok(unfolded)
        })();
        // What `zfs receive` said is the reason; the pipe only breaks.
        let unfolded = match (result, child.finish()) {
            (Err(error @ Error::Interrupted { .. }), _) => return Err(error),
            (_, Err(reason)) => return Err(reason.into()),
            (result, Ok(())) => result?,
        };
        tracing::debug!(%dataset, ?unfolded, "received");
    }
    zfs.mount(dataset)?;
    let snapshot = dataset.snapshot(&placed.origin.name);
    let found = zfs.find_snapshot(&snapshot)?.map(|facts| facts.guid.to_string());
    if found.as_deref() != Some(shipped.delta.as_str()) {
        return Err(Error::failed(format!(
            "what was received as {snapshot} has GUID {}, the set says {}",
            found.as_deref().unwrap_or("none"),
            shipped.delta
        )));
    }
    Ok(())
}

/// The newest snapshot of the dataset, which has to be one that the set's deltas come from.
fn common(
    from: &FromRepository,
    build: &Build,
    dataset: &DatasetName,
    shipped: &ShippedVolume,
) -> Result<Base> {
    let mut snapshots = build.cx.zfs.bases_of(dataset)?;
    snapshots.retain(|base| base.name.contains('@'));
    snapshots.sort_by_key(|base| base.createtxg);
    let strata = &from.repository.strata;
    let chain = strata::delta::chain(strata, &shipped.image, &shipped.delta, None);
    let chain = chain.map_err(of_strata)?;
    let newest = snapshots.pop();
    let known = |base: &Base| chain.iter().any(|delta| delta.id == base.guid.to_string());
    match newest {
        Some(base) if known(&base) => Ok(base),
        other => Err(Error::failed(format!(
            "\"{dataset}\" can't be brought to set {}: its newest snapshot {} isn't one of those \
             that the repository has before it",
            build.manifest.set,
            other.map_or_else(|| "(it has none)".to_owned(), |base| base.name)
        ))
        .with_hint(
            "destroy the newer snapshots if nothing needs them, or restore to another dataset",
        )),
    }
}
