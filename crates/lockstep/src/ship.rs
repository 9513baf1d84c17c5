//! Shipping: a set's way from this host into its repositories.
//!
//! Packs and indexes first, the manifest last: it exists, so the set is complete there. What an
//! interrupted shipment stored is used by the next one, or collected by `prune`.
//!
//! What could go wrong: a repository that can't be reached must not stop the others, nor make the
//! set on this host any less.

pub(crate) mod begun;
mod full;
mod journals;
mod lost;
mod missing;
pub mod page_delta;
mod passing;
mod raw;
mod route;
pub mod tags;
mod volume;
mod walk;

use std::cell::Cell;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pgfiles::ControlFile;
use pgfiles::lsn::Lsn;
use sendstream::pages::PageGeometry;
use strata::check::Doomed;
use strata::delta::{ImageOptions, descriptor_path};
use strata::pack::PackOptions;
use strata::repack::RepackOptions;

use crate::context::Context;
use crate::error::{Error, Result};
use crate::files;
use crate::plan::layout::PartKind;
use crate::plan::strategy::Strategy;
use crate::postgres::instance::{self, PG_CONTROL};
use crate::progress::Progress;
use crate::repository::harm::Harm;
use crate::repository::lease::Held;
use crate::repository::shipped::FILES_IMAGE;
use crate::repository::whole::Wholeness;
use crate::repository::{self, Repository, Shipped, ShippedVolume, harm, kin, known, of_strata};
use crate::set::at_work::{self, AtWork};
use crate::set::branches::{Apart, LeftBehind};
use crate::set::manifest::{Manifest, SetVolume};
use crate::set::notes;
use crate::set::own_files::{FrozenWal, take_files, wal_in_snapshot};
use crate::set::unread;
use crate::side_by_side::{Item, Limits, side_by_side};
use crate::steps;
use crate::view::Views;
use crate::volume::zfs::SnapshotName;

pub use missing::{Missing, missing};

use raw::Encrypted;
use route::{Bases, How, Route, route};
use volume::Shipment;

/// Volumes that are sent at the same time.
const VOLUMES_AT_ONCE: usize = 2;
/// Bytes of a pack. With two volumes at once, a pack on its way each, and frames in work this is
/// what bounds the memory.
const PACK_SIZE: u64 = 24 << 20;
/// How long another host's lease is waited for.
const PATIENCE: Duration = Duration::from_secs(600);

/// What became of a set in a repository.
#[derive(Debug)]
pub struct Outcome {
    /// The repository's name.
    pub repository: String,
    /// The set there, or why it isn't.
    pub result: Result<Shipped>,
    /// It was there already, and nothing was sent.
    pub already: bool,
    /// It was there already, whether or not it could be replaced.
    pub was_there: bool,
    /// An older set whose full shipment had been interrupted, and was finished first.
    pub finished_first: Option<Shipped>,
    /// What failed is the set itself, as far as can be told: the repository may take others.
    pub is_of_the_set: bool,
    /// The set is there, and of a timeline that its cluster has left.
    pub left: Option<LeftBehind>,
    /// The set is there, and of a timeline along which two clusters went on.
    pub apart: Option<Apart>,
    /// Sets of the repository that aren't whole there.
    pub harmed: Vec<Harm>,
}

impl Outcome {
    /// Of a set whose manifest can't be read.
    #[must_use]
    pub fn damaged(repository: &str, error: Error) -> Self {
        Self {
            repository: repository.to_owned(),
            result: Err(error),
            already: false,
            was_there: false,
            finished_first: None,
            is_of_the_set: true,
            left: None,
            apart: None,
            harmed: Vec::new(),
        }
    }

    /// Whether it is there, of what one cluster lives on, every page is right, also of what it may stand on, and all other
    /// sets are whole there.
    #[must_use]
    pub fn is_well(&self) -> bool {
        let is_well = |shipped: &Shipped| shipped.bad_pages() == 0;
        self.left.is_none()
            && self.apart.is_none()
            && self.harmed.is_empty()
            && self.result.as_ref().is_ok_and(is_well)
            && self.finished_first.as_ref().is_none_or(is_well)
    }
}

/// Ships a set to the repositories named, one after another. With `full` all of its volumes' content,
/// also where it is there already: deltas that are there are replaced.
///
/// # Errors
/// Only when it is interrupted; what fails is in the outcomes.
pub fn run(
    cx: &Context,
    manifest: &Manifest,
    names: &[String],
    full: bool,
) -> Result<Vec<Outcome>> {
    let mut outcomes = Vec::new();
    for name in names {
        let mut beside = Beside::default();
        let (result, already) = match ship(cx, manifest, name, full, &mut beside) {
            Err(error @ Error::Interrupted { .. }) => return Err(error),
            Err(error) => (Err(error), false),
            Ok((shipped, already)) => (Ok(shipped), already),
        };
        let Beside { finished_first, is_of_the_set, was_there, left, apart, harmed } = beside;
        let repository = name.clone();
        outcomes.push(Outcome {
            repository,
            result,
            already,
            was_there,
            finished_first,
            is_of_the_set,
            left,
            apart,
            harmed,
        });
    }
    Ok(outcomes)
}

/// What is told of a shipment however it ends.
#[derive(Default)]
struct Beside {
    finished_first: Option<Shipped>,
    is_of_the_set: bool,
    left: Option<LeftBehind>,
    apart: Option<Apart>,
    was_there: bool,
    harmed: Vec<Harm>,
}

impl Beside {
    /// Looks whether all sets are whole, where that `is_doubtful` or some weren't the last time. What was shipped is there in
    /// any case.
    fn look_for_harm(&mut self, cx: &Context, repository: &Repository, is_doubtful: bool) {
        match harm::look(cx, repository, is_doubtful) {
            Ok(harmed) => self.harmed = harmed,
            Err(error) => {
                tracing::warn!(repository = %repository.name, error = %error.chain(), "whether all sets are whole there nobody knows");
            }
        }
    }

    /// Looks whether a set that is there is of a timeline that its cluster has left, or along which another one goes on. It is
    /// there in any case.
    fn look(&mut self, cx: &Context, repository: &Repository, shipped: &Shipped) {
        let (name, set) = (&repository.name, &shipped.manifest.set);
        match repository.branches(cx) {
            Ok(branches) => {
                for (other, why) in branches.untold() {
                    tracing::warn!(
                        "repository {name}: set {other} can't be read, and whether the cluster lives on its timeline nobody knows: {why}. {}",
                        unread::ways_out(other, Some(name))
                    );
                }
                self.left = branches.left_behind(&shipped.manifest);
                self.apart = branches.apart(&shipped.manifest).cloned();
            }
            Err(error) => {
                tracing::warn!(%set, error = %error.chain(), "it is there, and nobody knows whether its cluster has left its timeline");
            }
        }
    }
}

/// The set there, and whether it was there already.
fn ship(
    cx: &Context,
    manifest: &Manifest,
    name: &str,
    full: bool,
    beside: &mut Beside,
) -> Result<(Shipped, bool)> {
    let _lock = at_work::lock(cx, name, "ship")?;
    let repository = repository::open(cx, name)?;
    let there = repository.read_if_there(manifest.set.as_str())?;
    if let Some(there) = &there
        && !full
    {
        (beside.was_there, beside.is_of_the_set) = (true, true);
        let whole = lost::there(cx, &repository, there);
        beside.look_for_harm(cx, &repository, whole.is_err());
        whole?;
        note(cx, there, &repository);
        beside.look(cx, &repository, there);
        return Ok((there.clone(), true));
    }
    beside.was_there = there.is_some();
    beside.is_of_the_set = true;
    let _at_work = AtWork::on(cx, name, manifest)?;
    missing::assert_whole(cx, manifest)?;
    beside.is_of_the_set = false;
    let held = Held::take(cx, &repository, PATIENCE)?;
    steps::reached("ship.leased")?;
    // While the lease was waited for, its holder may have removed the set.
    let there = repository.read_if_there(manifest.set.as_str())?;
    beside.was_there = there.is_some();
    let doubt = &Cell::new(false);
    match &there {
        Some(there) => full::may_be_replaced(there, name)?,
        None if !full => {
            beside.finished_first = finish_before(cx, manifest, &repository, &held, doubt)?;
        }
        None => {}
    }
    let stored = store_and_publish(cx, manifest, &repository, &held, there.as_ref(), full, doubt);
    let stored = stored.map_err(|error| {
        let confirmed = held.confirm();
        // A store that lists still: the next set's lease tells whether it can be written to.
        beside.is_of_the_set = confirmed.is_ok();
        held.blamed(error, confirmed)
    });
    let shipped = match (stored, &there) {
        (Err(error), Some(there)) if held.check().is_err() => {
            Err(lost::replaced(cx, &repository, there, error))
        }
        (stored, _) => stored,
    }?;
    beside.look(cx, &repository, &shipped);
    beside.look_for_harm(cx, &repository, doubt.get());
    Ok((shipped, false))
}

/// `there`: its manifest, where it has one in the repository.
fn store_and_publish(
    cx: &Context,
    manifest: &Manifest,
    repository: &Repository,
    held: &Held,
    there: Option<&Shipped>,
    full: bool,
    doubt: &Cell<bool>,
) -> Result<Shipped> {
    let formerly = match there {
        Some(_) => Vec::new(),
        None => formerly(cx, manifest, repository)?,
    };
    let stored = store(cx, manifest, repository, held, there, full, doubt)?;
    let shipped = Shipped { formerly, ..stored };
    steps::reached("ship.stored")?;
    held.confirm()?;
    match there {
        // Its manifest stays: it names the same deltas.
        Some(there) => full::assert_same_volumes(there, &shipped, &repository.name)?,
        None => {
            steps::reached("ship.publishing")?;
            repository.publish(&shipped)?;
            if let Err(lost) = held.confirm()
                && held.check().is_err()
            {
                lost::published(cx, repository, &shipped, lost)?;
            }
        }
    }
    steps::reached("ship.published")?;
    note(cx, &shipped, repository);
    Ok(shipped)
}

/// What the set says of its cluster's former identifiers. Under the lease: nobody else's first set comes in between.
fn formerly(cx: &Context, manifest: &Manifest, repository: &Repository) -> Result<Vec<String>> {
    let newest = match repository.newest() {
        Ok(newest) => newest,
        // The next older one that can be read says it as well.
        Err(_) => {
            let passed_over = |set: &str, error: &Error| {
                tracing::warn!(%set, error = %error.chain(), "a set that can't be read doesn't say whose it is");
            };
            repository.choose(|_| true, |sets| Ok(sets.into_iter().next()), passed_over)?
        }
    };
    kin::formerly(manifest, newest.as_ref(), &cx.cluster.formerly, &repository.name)
}

/// Ships the older set of which a full was begun, if there is one: the new one is an increment then.
fn finish_before(
    cx: &Context,
    manifest: &Manifest,
    repository: &Repository,
    held: &Held,
    doubt: &Cell<bool>,
) -> Result<Option<Shipped>> {
    let Some(before) = begun::before(cx, manifest, repository)? else { return Ok(None) };
    at_work::note(cx, &repository.name, &[&before, manifest])?;
    tracing::info!(set = %before.set, "its full shipment was interrupted, and is finished first");
    match store_and_publish(cx, &before, repository, held, None, false, doubt) {
        // Whatever is wrong with that set must not keep newer ones away.
        Err(error) if !matches!(error, Error::Interrupted { .. }) => {
            tracing::warn!(set = %before.set, error = %error.chain(), "it can't be finished");
            held.check().map(|()| None)
        }
        finished => finished.map(Some),
    }
}

/// Removes what is known of the pages, deltas and sets of repositories that nothing is shipped to any more. It is found out
/// anew should one come back.
///
/// # Errors
/// When it can't be listed or removed.
pub(crate) fn forget_former(cx: &Context) -> Result<()> {
    let known = [("seen", ".json"), (known::FOLDER, ".json"), (harm::FOLDER, "")];
    for (folder, end) in [("tags", ""), ("deltas", "")].into_iter().chain(known) {
        let folder = cx.state.path(folder);
        let entries = match std::fs::read_dir(&folder) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            entries => entries.map_err(Error::io("list", &folder))?,
        };
        for entry in entries {
            let entry = entry.map_err(Error::io("list", &folder))?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            let Some(name) = name.strip_suffix(end) else { continue };
            if cx.cluster.repositories.iter().any(|own| own == name) {
                continue;
            }
            // One that began with another configuration may work on it still.
            match at_work::lock(cx, name, "prune") {
                Err(Error::Locked { .. }) => {}
                lock => {
                    let _lock = lock?;
                    files::remove_tree(&entry.path())?;
                }
            }
        }
    }
    Ok(())
}

/// Notes that the set is there. That it can't be noted makes it no less so: the next shipment sees it.
fn note(cx: &Context, shipped: &Shipped, repository: &Repository) {
    let (set, Repository { name, id, .. }) = (&shipped.manifest.set, repository);
    if let Err(error) = notes::note_shipped(cx, set, name, id, shipped.shipped_at) {
        tracing::warn!(%set, "it is in repository {name}, and that can't be noted: {}", error.chain());
    }
}

fn store(
    cx: &Context,
    manifest: &Manifest,
    repository: &Repository,
    held: &Held,
    there: Option<&Shipped>,
    full: bool,
    doubt: &Cell<bool>,
) -> Result<Shipped> {
    let encrypted = Encrypted::find(cx, repository, manifest)?;
    let keeps_wal = encrypted.keeps_wal(manifest);
    let mut routes = routes(cx, manifest, repository, &encrypted, full, held, doubt)?;
    let datasets: Vec<_> = manifest.volumes.iter().map(|volume| volume.dataset.clone()).collect();
    let (properties, mounted) = route::properties(&cx.zfs, &datasets)?;
    let tags = cx.state.path("tags").join(&repository.name);
    if repository.config.page_delta && repository.config.page_hashes {
        routes.iter_mut().for_each(|route| route.open_tags(&tags, repository, &properties));
    }
    tags::or_none(tags::sweep(&tags, routes.iter().filter_map(Route::tagged_image)));
    if let Err(error) = journals::sweep(cx) {
        tracing::warn!("journals of sets that are gone stay: {}", error.chain());
    }
    // The set's snapshots, and behind them those that pages are compared with.
    let open = manifest.volumes.iter().filter(|volume| encrypted.is_open(volume));
    let mut looked_into: Vec<_> = open.map(SetVolume::snapshot_name).collect();
    if repository.config.page_delta {
        looked_into.extend(routes.iter().filter_map(Route::base_snapshot));
    }
    let views = Views::open_in(cx, &looked_into, &mounted)?;
    steps::reached("ship.views")?;
    look(&mut routes, &views, manifest.strategy != Strategy::Cold)?;
    let options = options(repository);
    let journals = cx.state.path("shipping");
    let check = || held.check();
    let confirm = || {
        steps::reached("ship.replacing")?;
        held.confirm()
    };
    let control = control(manifest, &views)?;
    let frozen = if keeps_wal { None } else { frozen_wal(manifest, &views)? };
    let shipment = Shipment {
        zfs: &cx.zfs,
        repository,
        options: options.clone(),
        journals: &journals,
        tags: &tags,
        geometry: control.as_ref().map(geometry).unwrap_or_default(),
        checks_pages: manifest.postgres.data_checksums && control.is_some(),
        replayed: replayed(manifest, frozen.as_ref(), control.as_ref()),
        check: &check,
        confirm: &confirm,
        progress: &Progress::on_stderr(),
        properties: &properties,
        key_locations: encrypted.key_locations(),
    };
    let paths = views.paths();
    let mut manifest = manifest.clone();
    let (volumes, files) = std::thread::scope(|scope| {
        let seen = |name: &SnapshotName| paths.get(name).map(PathBuf::as_path);
        let volumes = scope.spawn(move || ship_volumes(&shipment, routes, &seen));
        let files = take_files(cx, &mut manifest, frozen.as_ref()).and_then(|names| {
            if let Some(there) = there {
                full::assert_same_files(there, &manifest, &repository.name)?;
            }
            let set = manifest.set.as_str();
            repository::files::store(repository, set, &manifest.files, &names, &options, &confirm)
        });
        (volumes.join(), files)
    });
    let ended = |_| Error::failed("the thread of the volumes ended early; its words are above");
    let volumes = volumes.map_err(ended)??;
    files?;
    Ok(Shipped::new(manifest, volumes))
}

/// The ways of the volumes that are stored. There is `doubt` whether all sets are whole where the newest isn't, or something
/// else that could be gone on from: `full` goes on from nothing.
fn routes<'a>(
    cx: &Context,
    manifest: &'a Manifest,
    repository: &Repository,
    encrypted: &Encrypted,
    full: bool,
    held: &Held,
    doubt: &Cell<bool>,
) -> Result<Vec<Route<'a>>> {
    let noted = Doomed::read(&repository.strata).map_err(of_strata)?;
    let keeps_wal = encrypted.keeps_wal(manifest);
    let bases = Bases::find(&cx.zfs, &manifest.volumes)?;
    let memory = harm::memory(cx, repository);
    let wholeness = Wholeness::new(repository, &memory);
    let stored = manifest.volumes.iter().filter(|volume| keeps_wal || !is_wal_alone(volume));
    let find = |volume: &'a SetVolume| {
        let raw = encrypted.is_raw(&volume.dataset);
        let raw_full_every = repository.config.raw_full_every;
        let how = How { raw, full, raw_full_every, noted: &noted };
        route(&bases, &wholeness, volume, how)
    };
    let routes = stored.map(find).collect::<Result<Vec<_>>>()?;
    if !full {
        // One whose manifest can't be read is told elsewhere.
        let newest = repository.newest().ok().flatten();
        let is_whole = newest.map_or(Ok(true), |newest| harm::is_whole(&wholeness, &newest))?;
        doubt.set(doubt.get() || !is_whole || wholeness.has_found());
    }
    need(cx, manifest, repository, &routes, noted.clone(), held)?;
    Ok(routes)
}

/// What nobody needed, which the set will need, isn't noted as such any more: should it be needed by nobody once more, its
/// grace time begins anew.
fn need(
    cx: &Context,
    manifest: &Manifest,
    repository: &Repository,
    routes: &[Route<'_>],
    noted: Doomed,
    held: &Held,
) -> Result<()> {
    if noted.is_empty() {
        return Ok(());
    }
    let strata = &repository.strata;
    let packs = begun::kept(cx, repository)?.packs;
    let files = descriptor_path(strata, FILES_IMAGE, manifest.set.as_str()).map_err(of_strata)?;
    let again = routes.iter().flat_map(|route| route.noted.iter().cloned());
    let again = again.chain(packs.into_iter().map(|pack| strata.pack_path(pack))).chain([files]);
    let still = || held.confirm().map_err(strata::Error::caller);
    noted.strike(strata, again, &still).map_err(of_strata)
}

/// The set's WAL, where it lies in pg_wal's snapshot alone.
fn frozen_wal(manifest: &Manifest, views: &Views<'_>) -> Result<Option<FrozenWal>> {
    if wal_in_snapshot(manifest).is_none() {
        return Ok(None);
    }
    let pg_wal = part_seen(manifest, views, &PartKind::Wal).ok_or_else(|| {
        Error::failed(format!("pg_wal of set {} can't be looked into", manifest.set))
    })?;
    let data = part_seen(manifest, views, &PartKind::Data);
    let control = data.map(|data| data.join(PG_CONTROL));
    FrozenWal::find(manifest, pg_wal, control.as_deref()).map(Some)
}

/// pg_wal's own volume isn't stored, unless raw: the set carries the segments that it needs.
fn is_wal_alone(volume: &SetVolume) -> bool {
    volume.parts.iter().all(|part| part.kind == PartKind::Wal)
}

/// How deltas and packs of this repository are written.
#[must_use]
pub fn options(repository: &Repository) -> ImageOptions {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = repository.config.threads.unwrap_or(cores).max(1);
    let level = repository.config.compression_level;
    let packs = PackOptions { pack_size: PACK_SIZE, level, threads, uploads: 1 };
    ImageOptions { packs, ..ImageOptions::default() }
}

/// How packs of this repository are written anew of which less than so many percent lives.
#[must_use]
pub fn repack_options(repository: &Repository, live_percent: u8, max_bytes: u64) -> RepackOptions {
    let images = options(repository);
    RepackOptions {
        live_percent: u64::from(live_percent),
        max_bytes,
        frame_size: images.frame_size,
        packs: images.packs,
        index: images.index,
        ..RepackOptions::default()
    }
}

/// The LSNs whose pages a restored cluster writes anew, whatever is in them: those that it replays, where WAL has
/// whole pages. pg_backup_start sees to that, or refuses (`do_pg_backup_start` in xlog.c); else it is what
/// the last checkpoint's record says of full_page_writes.
fn replayed(
    manifest: &Manifest,
    frozen: Option<&FrozenWal>,
    control: Option<&ControlFile>,
) -> Range<u64> {
    let start = manifest.start_lsn.map_or(u64::MAX, Lsn::as_u64);
    let has_whole_pages = manifest.strategy == Strategy::Label
        || control.is_some_and(|control| control.checkpoint_copy.full_page_writes);
    if !has_whole_pages {
        return 0..0;
    }
    match manifest.strategy {
        Strategy::Cold => 0..0,
        // The floor lies before the snapshots; what was written up to them is replayed too. Up to the
        // end of the WAL and no further: nearly any garbage is a later LSN.
        Strategy::Atomic => match frozen.and_then(|frozen| frozen.replayed(manifest)) {
            Some((start, end)) => start.as_u64()..end.as_u64(),
            None => start..u64::MAX,
        },
        Strategy::Label | Strategy::Ordered => start..manifest.floor_lsn.map_or(0, Lsn::as_u64),
    }
}

/// The snapshot's own pg_control; none where the data directory can't be looked into.
fn control(manifest: &Manifest, views: &Views) -> Result<Option<ControlFile>> {
    let data = part_seen(manifest, views, &PartKind::Data);
    data.map(|data| instance::read_control(&data)).transpose()
}

/// How the cluster's pages are laid out.
fn geometry(control: &ControlFile) -> PageGeometry {
    PageGeometry {
        page_size: control.block_size,
        pages_per_segment: control.relation_segment_blocks,
    }
}

/// Where a part of the set can be looked into.
fn part_seen(manifest: &Manifest, views: &Views, kind: &PartKind) -> Option<PathBuf> {
    let (at, part) = manifest.parts().find(|(_, part)| part.kind == *kind)?;
    let root = views.path(&manifest.volumes.get(at)?.snapshot_name())?;
    Some(root.join(&part.inside))
}

/// Walks the snapshots, all at once: what a walk waits for is mostly somewhere else.
fn look(routes: &mut [Route<'_>], views: &Views, recovers: bool) -> Result<()> {
    std::thread::scope(|scope| {
        let walks: Vec<_> = routes
            .iter_mut()
            .map(|route| {
                let root = views.path(&route.volume.snapshot_name()).map(Path::to_path_buf);
                scope.spawn(move || route.look(root.as_deref(), recovers))
            })
            .collect();
        let ended = |_| Err(Error::failed("a walk ended early; its words are above"));
        walks.into_iter().try_for_each(|walk| walk.join().unwrap_or_else(ended))
    })
}

/// Ships the volumes, a few at a time; once one has failed no other is begun.
fn ship_volumes<'a>(
    shipment: &Shipment<'_>,
    routes: Vec<Route<'_>>,
    seen: &(dyn Fn(&SnapshotName) -> Option<&'a Path> + Sync),
) -> Result<Vec<ShippedVolume>> {
    let count = routes.len();
    let item = |(index, work)| Item { index, weight: 1, work };
    let items = routes.into_iter().enumerate().map(item).collect();
    let limits = Limits { items: VOLUMES_AT_ONCE, weight: VOLUMES_AT_ONCE };
    let one = |route: Route<'_>, _: &dyn Fn() -> bool| {
        let base_root = route.base_snapshot().and_then(|name| seen(&name));
        route.ship(shipment, base_root)
    };
    side_by_side(limits, items, one, |shipped| (0..count).map(|at| shipped.wait(at)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::set::manifest::tests::manifest;

    /// A page that is damaged in the snapshot and that recovery doesn't write anew is a bad page.
    #[test]
    fn pages_are_only_written_anew_where_wal_has_them_whole() {
        let bytes = include_bytes!("../../pgfiles/testdata/15/production.pg_control");
        let mut control = ControlFile::parse(bytes).unwrap();
        let mut set = manifest("20261101T000000Z-aaaa", vec![]);
        (set.start_lsn, set.floor_lsn) = (Some(Lsn::new(100)), Some(Lsn::new(900)));
        for (strategy, full_page_writes, expected) in [
            (Strategy::Ordered, true, 100..900),
            (Strategy::Ordered, false, 0..0),
            (Strategy::Atomic, true, 100..u64::MAX),
            (Strategy::Atomic, false, 0..0),
            // pg_backup_start has them written, or refuses.
            (Strategy::Label, false, 100..900),
            (Strategy::Cold, true, 0..0),
        ] {
            set.strategy = strategy;
            control.checkpoint_copy.full_page_writes = full_page_writes;
            let found = replayed(&set, None, Some(&control));
            assert_eq!(found, expected, "{strategy:?}, {full_page_writes}");
        }
        set.strategy = Strategy::Ordered;
        assert_eq!(replayed(&set, None, None), 0..0, "nobody knows");
    }
}
