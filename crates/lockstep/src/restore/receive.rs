//! A volume out of a repository into a dataset: the fold of its deltas as a send stream, into
//! `zfs receive`. Full, or where the dataset has a snapshot that the repository knows, what changed
//! since.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io::{BufWriter, Write};
use std::process::ChildStdin;

use indicatif::ProgressBar;
use sendstream::fold::StreamSink;
use strata::delta::Descriptor;

use super::build::Build;
use super::placement::{PlacedVolume, Placement};
use super::source::FromRepository;
use super::zeroing::Zeroing;
use super::{control, parked, raw, received};
use crate::error::{Error, Result};
use crate::process::{Piped, quote};
use crate::progress::Progress;
use crate::refusal::Refusal;
use crate::repository::image::ImageState;
use crate::repository::ingest::of_stream;
use crate::repository::tree::{Depth, ImageTree};
use crate::repository::unfold::unfold_chain;
use crate::repository::{ShippedVolume, of_strata};
use crate::set::manifest::Manifest;
use crate::side_by_side::Item;
use crate::steps;
use crate::volume::zfs::{Base, DatasetName, Zfs};

/// A volume that is received beside others, into a dataset that isn't there.
pub(super) struct Fresh<'a> {
    receiving: DatasetName,
    index: usize,
    shipped: &'a ShippedVolume,
    chain: Vec<Descriptor>,
}

/// Those volumes of the set that are received beside others, the largest first: not raw ones, whose
/// segments come one after another, nor those on top of what is there.
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
        let strata = &from.repository.strata;
        let chain = strata::delta::chain(strata, &shipped.image, &shipped.delta, None);
        let chain = chain.map_err(of_strata)?;
        let weight = chain.len();
        items.push(Item { index, weight, work: Fresh { receiving, index, shipped, chain } });
    }
    items.sort_by_key(|item| std::cmp::Reverse(item.work.shipped.stored_bytes));
    Ok(items)
}

/// Receives one of them.
pub(super) fn receive_fresh(
    from: &FromRepository,
    zfs: &Zfs,
    manifest: &Manifest,
    lines: &Progress,
    fresh: &Fresh<'_>,
    should_stop: &dyn Fn() -> bool,
) -> Result<()> {
    let to = To { zfs, manifest, lines, dataset: &fresh.receiving, should_stop };
    receive_plain(from, &to, fresh.shipped, &fresh.chain, None)?;
    steps::reached(&format!("restore.receiving-{}", fresh.index + 1))
}

/// Makes the dataset of what was received, and checks that its snapshot is the set's. `false`: its key
/// isn't loaded, so it isn't mounted.
pub(super) fn create(
    from: &FromRepository,
    build: &Build,
    index: usize,
    placed: &PlacedVolume,
    properties: &[(&str, String)],
) -> Result<bool> {
    let (Some(dataset), Some(shipped)) = (&placed.dataset, from.shipped_volume(placed)) else {
        return Ok(true);
    };
    let zfs = &build.cx.zfs;
    let receiving = from.receiving(&build.id, index).unwrap_or_else(|| dataset.clone());
    if shipped.raw.is_some() {
        raw::receive(from, build, &receiving, shipped, None)?;
        steps::reached(&format!("restore.receiving-{}", index + 1))?;
    }
    let (mut own, mut other): (Vec<_>, Vec<_>) =
        properties.iter().cloned().partition(|(name, _)| name.starts_with("lockstep:"));
    if build.placement.has_data(placed) {
        // Before it has a mount point: where it has one, ZFS may mount it at once.
        own.extend(parked::properties());
    }
    zfs.set_all(&own, &receiving)?;
    zfs.rename(&receiving, dataset)?;
    // What it has by default, or from the dataset above it, need not be set.
    let names: Vec<_> = other.iter().map(|(name, _)| *name).filter(|it| !is_needed(it)).collect();
    let mut has = zfs.get_known(&[dataset.to_string()], &NEEDED, &names)?;
    let has = has.remove(dataset.as_str()).unwrap_or_default();
    // Of a mount point ZFS shows another than was set where the pool was imported below a folder.
    other.retain(|(name, value)| *name == "mountpoint" || has.get(*name) != Some(value));
    let (needed, for_writing): (Vec<_>, Vec<_>) =
        other.into_iter().partition(|(name, _)| is_needed(name));
    zfs.set_all(&needed, dataset)?;
    for (name, value, error) in set_as_far_as_taken(zfs, &for_writing, dataset) {
        tracing::warn!(
            error = %error.chain(),
            "\"{dataset}\" takes no {name}={value}, as its original has it: it is restored without. Another value: `zfs set {name}=… {}`",
            quote(dataset.as_str())
        );
    }
    check(from, build, placed, dataset, shipped)?;
    mount(from, build, placed, dataset, shipped)
}

/// Without these it isn't where it has to be, or can't be written.
const NEEDED: [&str; 2] = ["mountpoint", "readonly"];

fn is_needed(property: &str) -> bool {
    NEEDED.contains(&property)
}

/// Sets properties that say how a dataset's data is written from now on, and gives those that it doesn't take: an older
/// pool or another ZFS may not know a value (zstd, records larger than 128K). What was received is whole without them.
pub(super) fn set_as_far_as_taken<'a>(
    zfs: &Zfs,
    properties: &[(&'a str, String)],
    on: &DatasetName,
) -> Vec<(&'a str, String, Error)> {
    if properties.is_empty() || zfs.set_all(properties, on).is_ok() {
        return Vec::new();
    }
    let one = |(name, value): &(&'a str, String)| {
        let set = zfs.set(name, value, std::slice::from_ref(on));
        set.err().map(|error| (*name, value.clone(), error))
    };
    properties.iter().filter_map(one).collect()
}

/// Brings a dataset that is there to the set's state: what was written to it since goes. `false`: its
/// key isn't loaded, so it isn't mounted.
///
/// A rollback gives pg_control its name back. So the data directory's dataset isn't mounted from then on
/// until it is whole, and stays so where this fails.
pub(super) fn catch_up(
    from: &FromRepository,
    build: &Build,
    placed: &PlacedVolume,
    dataset: &DatasetName,
    shipped: &ShippedVolume,
) -> Result<bool> {
    let zfs = &build.cx.zfs;
    let base = build.bases.get(dataset).ok_or_else(|| {
        Error::failed(format!("nobody looked for what \"{dataset}\" is rolled back to"))
    })?;
    if build.placement.has_data(placed) {
        build.older.is_parked.set(parked::park(zfs, dataset)?);
        build.older.is_changed.set(true);
        roll_back_unmounted(from, build, dataset, shipped, &base.name)?;
        steps::reached("restore.rolled-back")?;
    } else {
        // zfs-fuse can't roll back what isn't mounted; a ZFS that has keys can.
        mount(from, build, placed, dataset, shipped)?;
        build.older.is_changed.set(true);
        zfs.rollback(&base.name)?;
    }
    let id = base.guid.to_string();
    if id != shipped.delta {
        receive(from, build, dataset, shipped, Some(&id))?;
    }
    check(from, build, placed, dataset, shipped)?;
    // Where its key is away it is parked still: `zfs mount -a` would mount it once that is loaded.
    mount(from, build, placed, dataset, shipped)
}

/// Rolls back a dataset that isn't mounted, nor afterwards.
fn roll_back_unmounted(
    from: &FromRepository,
    build: &Build,
    dataset: &DatasetName,
    shipped: &ShippedVolume,
    snapshot: &str,
) -> Result<()> {
    let zfs = &build.cx.zfs;
    let Err(error) = zfs.rollback(snapshot) else { return Ok(()) };
    // zfs-fuse has to have it mounted for a moment, where anything was written to it.
    if !is_open(from, build, dataset, shipped)? || zfs.mount(dataset).is_err() {
        return Err(error);
    }
    let rolled_back = zfs.rollback(snapshot);
    let unmounted = zfs.unmount(dataset);
    if unmounted.is_err() {
        control::hold(&build.placement.data)?;
    }
    rolled_back.and(unmounted)
}

/// Mounts it, if it can be; that of the data directory without its pg_control.
fn mount(
    from: &FromRepository,
    build: &Build,
    placed: &PlacedVolume,
    dataset: &DatasetName,
    shipped: &ShippedVolume,
) -> Result<bool> {
    let zfs = &build.cx.zfs;
    let mount = || match build.placement.has_data(placed) {
        true => parked::mount(zfs, dataset, &build.placement.data),
        false => zfs.mount(dataset),
    };
    if shipped.raw.is_some() {
        return raw::mount(from, build, dataset, shipped, &mount);
    }
    mount().map(|()| true)
}

/// Whether it is in the clear, or its key could be had.
fn is_open(
    from: &FromRepository,
    build: &Build,
    dataset: &DatasetName,
    shipped: &ShippedVolume,
) -> Result<bool> {
    Ok(shipped.raw.is_none() || raw::unlock(from, build, dataset, shipped)?)
}

fn receive(
    from: &FromRepository,
    build: &Build,
    dataset: &DatasetName,
    shipped: &ShippedVolume,
    since: Option<&str>,
) -> Result<()> {
    if shipped.raw.is_some() {
        return raw::receive(from, build, dataset, shipped, since);
    }
    let strata = &from.repository.strata;
    let chain = strata::delta::chain(strata, &shipped.image, &shipped.delta, since);
    let chain = chain.map_err(of_strata)?;
    let to = To {
        zfs: &build.cx.zfs,
        manifest: &build.manifest,
        lines: &Progress::on_stderr(),
        dataset,
        should_stop: &|| false,
    };
    receive_plain(from, &to, shipped, &chain, since)
}

/// Where it goes.
struct To<'a> {
    zfs: &'a Zfs,
    manifest: &'a Manifest,
    lines: &'a Progress,
    dataset: &'a DatasetName,
    /// Beside a signal, which always ends it.
    should_stop: &'a dyn Fn() -> bool,
}

fn receive_plain(
    from: &FromRepository,
    to: &To<'_>,
    shipped: &ShippedVolume,
    chain: &[Descriptor],
    since: Option<&str>,
) -> Result<()> {
    let zeroed = zeroed(from, to.manifest, shipped)?;
    let bar = bar(from, to.lines, shipped, chain, since, &zeroed)?;
    let mut child = to.zfs.receive(to.dataset)?;
    let should_stop = || steps::interrupted() || (to.should_stop)();
    let result = (|| -> Result<_> {
        let stream = StreamSink::new(BufWriter::with_capacity(1 << 20, &mut child));
        let mut sink = Zeroing::new(stream, zeroed, from.guid(shipped)?, bar, &should_stop);
        let unfolded = unfold_chain(&from.repository, chain, since, &mut sink)?;
        let mut output = sink.into_inner().finish().map_err(of_stream)?;
        output.flush().map_err(Error::io("write to", "zfs receive"))?;
        Ok(unfolded)
    })();
    if result.is_err() && should_stop() {
        // What `zfs receive` has says nothing then; it is killed.
        steps::reached("restore.receiving")?;
        return result.map(|_| ());
    }
    let unfolded = ended(result, child)?;
    tracing::debug!(dataset = %to.dataset, ?unfolded, "received");
    Ok(())
}

/// How it ended. Where the pipe broke, what `zfs receive` said is the reason; else its stream only
/// ended early.
pub(super) fn ended<T>(written: Result<T>, child: Piped<ChildStdin>) -> Result<T> {
    match (written, child.finish()) {
        (Err(error), Err(reason)) if error.is_broken_pipe() => Err(reason.into()),
        (Ok(_), Err(reason)) => Err(reason.into()),
        (written, _) => written,
    }
}

/// Shows how much went by. How much it will be is only found out where somebody looks.
fn bar(
    from: &FromRepository,
    lines: &Progress,
    shipped: &ShippedVolume,
    chain: &[Descriptor],
    since: Option<&str>,
    zeroed: &HashSet<u64>,
) -> Result<ProgressBar> {
    if !lines.is_shown() {
        return Ok(ProgressBar::hidden());
    }
    let (strata, image, delta) = (&from.repository.strata, &shipped.image, &shipped.delta);
    let total = match since {
        None => ImageTree::read(&from.repository, image, delta, Depth::Names)?.file_bytes(zeroed),
        // What is written twice in between is counted twice.
        Some(_) => {
            let mut total = 0;
            for delta in chain {
                let count = |row: strata::delta::PackRow| {
                    total += row.live;
                    Ok(())
                };
                strata::delta::packs(strata, delta, count).map_err(of_strata)?;
            }
            total
        }
    };
    Ok(lines.bytes_of(shipped.dataset.as_str(), total))
}

/// The objects that become holes.
fn zeroed(
    from: &FromRepository,
    manifest: &Manifest,
    shipped: &ShippedVolume,
) -> Result<HashSet<u64>> {
    let mut volumes = manifest.volumes.iter();
    let volume = volumes.find(|volume| volume.dataset == shipped.dataset);
    let Some(volume) = volume.filter(|_| !from.only.is_all()) else { return Ok(HashSet::new()) };
    let tree = ImageTree::read(&from.repository, &shipped.image, &shipped.delta, Depth::Names)?;
    from.only.zeroed(&tree, volume)
}

fn check(
    from: &FromRepository,
    build: &Build,
    placed: &PlacedVolume,
    dataset: &DatasetName,
    shipped: &ShippedVolume,
) -> Result<()> {
    let snapshot = dataset.snapshot(&placed.origin.name);
    let found = build.cx.zfs.find_snapshot(&snapshot)?.map(|facts| facts.guid.to_string());
    let expected = from.guid(shipped)?.to_string();
    if found.as_deref() == Some(expected.as_str()) {
        received::mark(build, &snapshot);
        return Ok(());
    }
    Err(Error::failed(format!(
        "what was received as {snapshot} has GUID {}, the set says {expected}",
        found.as_deref().unwrap_or("none"),
    )))
}

/// What each of the datasets that are there is rolled back to. All are looked at before the first is changed:
/// where one can't be brought to the set's state, an older restore stays whole.
pub(super) fn bases(
    from: &FromRepository,
    zfs: &Zfs,
    placement: &Placement,
    there: &BTreeSet<DatasetName>,
) -> Result<BTreeMap<DatasetName, Base>> {
    let mut bases = BTreeMap::new();
    for placed in &placement.volumes {
        let (Some(dataset), Some(shipped)) = (&placed.dataset, from.shipped_volume(placed)) else {
            continue;
        };
        if there.contains(dataset) {
            bases.insert(dataset.clone(), common(from, zfs, dataset, shipped)?);
        }
    }
    Ok(bases)
}

/// The newest snapshot of the dataset, which has to be one that the set's deltas come from.
fn common(
    from: &FromRepository,
    zfs: &Zfs,
    dataset: &DatasetName,
    shipped: &ShippedVolume,
) -> Result<Base> {
    let (mut snapshots, bookmarks): (Vec<_>, Vec<_>) =
        zfs.bases_of(dataset)?.into_iter().partition(|base| base.name.contains('@'));
    snapshots.sort_by_key(|base| base.createtxg);
    let chain = chain(from, shipped)?;
    let known = |base: &&Base| chain.contains(&base.guid.to_string());
    if let Some(base) = snapshots.last().filter(known) {
        return match newer(&bookmarks, base) {
            None => Ok(base.clone()),
            Some(bookmark) => Err(Refusal::NewerBookmark {
                bookmark: bookmark.name.clone(),
                snapshot: base.name.clone(),
            }
            .into()),
        };
    }
    let newest = snapshots.last().map(|base| base.name.clone());
    let began = beginning(from, shipped)?
        .filter(|began| newest.as_deref().is_some_and(|newest| is_of_an_older_set(newest, began)));
    Err(Refusal::NotOnTop {
        dataset: dataset.to_string(),
        set: from.shipped.manifest.set.to_string(),
        newest,
        known: snapshots.iter().rev().find(known).map(|base| base.name.clone()),
        began,
        is_raw: shipped.raw.is_some(),
    }
    .into())
}

/// The name, without its dataset, of the snapshot that was sent in full.
fn beginning(from: &FromRepository, shipped: &ShippedVolume) -> Result<Option<String>> {
    if let Some(chain) = &shipped.raw {
        return Ok(chain.first().map(|link| link.snapshot.clone()));
    }
    let strata = &from.repository.strata;
    let chain = strata::delta::chain(strata, &shipped.image, &shipped.delta, None);
    let Some(full) = chain.map_err(of_strata)?.into_iter().next() else { return Ok(None) };
    let sent = ImageState::of(&full)?.begin.to_name;
    Ok(sent.split_once('@').map(|(_, own)| own.to_owned()))
}

/// Whether both are snapshots of sets, whose names begin with their time, and `newest` is one of an older set than `began`.
fn is_of_an_older_set(newest: &str, began: &str) -> bool {
    let own = newest.split_once('@').map_or("", |(_, own)| own);
    let are_of_sets = [own, began].iter().all(|name| name.starts_with("lockstep-"));
    are_of_sets && own < began
}

/// A bookmark of a snapshot that came after this one: ZFS rolls back over none.
fn newer<'a>(bookmarks: &'a [Base], snapshot: &Base) -> Option<&'a Base> {
    bookmarks.iter().find(|bookmark| bookmark.createtxg > snapshot.createtxg)
}

/// The GUIDs of the snapshots that the set's volume comes from, as far as the repository has them.
pub(super) fn chain(from: &FromRepository, shipped: &ShippedVolume) -> Result<Vec<String>> {
    if let Some(chain) = &shipped.raw {
        return Ok(chain.iter().map(|link| link.guid.clone()).collect());
    }
    let strata = &from.repository.strata;
    let chain = strata::delta::chain(strata, &shipped.image, &shipped.delta, None);
    Ok(chain.map_err(of_strata)?.into_iter().map(|delta| delta.id).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_that_began_anew_is_told_from_a_step_back() {
        let began = "lockstep-20261124T194512Z-k3fa";
        for (newest, is_older) in [
            ("p/r@lockstep-20261123T194512Z-zzzz", true),
            ("p/r@lockstep-20261125T194512Z-aaaa", false),
            ("p/r@mine", false),
        ] {
            assert_eq!(is_of_an_older_set(newest, began), is_older, "{newest}");
        }
        assert!(!is_of_an_older_set("p/r@lockstep-20261123T194512Z-zzzz", "somebody's"));
    }

    #[test]
    fn a_bookmark_of_a_later_snapshot_is_in_the_way() {
        let base = |name: &str, createtxg| Base { name: name.into(), guid: createtxg, createtxg };
        let snapshot = base("t/d@b", 20);
        let own = [base("t/d#a", 10), base("t/d#b", 20)];
        assert_eq!(newer(&own, &snapshot), None);
        let foreign = base("t/d#foreign", 21);
        assert_eq!(newer(&[own[0].clone(), foreign.clone()], &snapshot), Some(&foreign));
    }
}
