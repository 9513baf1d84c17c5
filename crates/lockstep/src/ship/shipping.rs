//! Ships one set into one repository, under its lease: its volumes and its own files side by side, and then the
//! manifest that makes it complete.

use std::cell::Cell;
use std::ops::Range;
use std::path::{Path, PathBuf};

use pgfiles::ControlFile;
use pgfiles::lsn::{Lsn, SystemIdentifier};
use sendstream::pages::PageGeometry;
use strata::check::Doomed;
use strata::delta::descriptor_path;

use super::raw::Encrypted;
use super::route::{self, Bases, How, Route, route};
use super::volume::Shipment;
use super::{Extent, begun, full, journals, lost, note, options, tags};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::plan::layout::PartKind;
use crate::plan::strategy::Strategy;
use crate::postgres::instance::{self, PG_CONTROL};
use crate::progress::Progress;
use crate::repository::lease::Held;
use crate::repository::shipped::FILES_IMAGE;
use crate::repository::whole::Wholeness;
use crate::repository::{self, Repository, Shipped, ShippedVolume, harm, kin, of_strata};
use crate::set::at_work;
use crate::set::manifest::{Manifest, SetVolume};
use crate::set::own_files::{FrozenWal, take_files, wal_in_snapshot};
use crate::side_by_side::{Item, Limits, side_by_side};
use crate::steps;
use crate::threads;
use crate::view::Views;
use crate::volume::zfs::SnapshotName;

/// How many volumes are sent at the same time.
const VOLUMES_AT_ONCE: usize = 2;

/// A set being shipped.
#[derive(Clone, Copy)]
pub(super) struct Shipping<'a> {
    pub(super) cx: &'a Context<'a>,
    pub(super) manifest: &'a Manifest,
    pub(super) repository: &'a Repository,
    /// The repository's lease.
    pub(super) held: &'a Held,
    /// The set in the repository, if it is already there.
    pub(super) there: Option<&'a Shipped>,
    pub(super) extent: Extent,
    /// Set if something that it could be based on isn't whole there.
    pub(super) doubt: &'a Cell<bool>,
}

impl<'a> Shipping<'a> {
    /// Ships the older set of which a full shipment was begun, if there is one: the new set is then an increment.
    pub(super) fn finish_before(&self) -> Result<Option<Shipped>> {
        let Self { cx, manifest, repository, held, .. } = *self;
        let Some(before) = begun::before(cx, manifest, repository)? else { return Ok(None) };
        at_work::note(cx, &repository.name, &[&before, manifest])?;
        tracing::info!(set = %before.set, "its full shipment was interrupted, and is finished first");
        let older = Shipping { manifest: &before, there: None, extent: Extent::Increment, ..*self };
        match older.store_and_publish() {
            // Whatever is wrong with that set must not hold up newer ones.
            Err(error) if !matches!(error, Error::Interrupted { .. }) => {
                tracing::warn!(set = %before.set, error = %error.chain(), "it can't be finished");
                held.check().map(|()| None)
            }
            finished => finished.map(Some),
        }
    }

    /// Stores the whole set, and then publishes its manifest.
    pub(super) fn store_and_publish(&self) -> Result<Shipped> {
        let Self { cx, repository, held, there, .. } = *self;
        let formerly = match there {
            Some(_) => Vec::new(),
            None => self.formerly()?,
        };
        let shipped = Shipped { formerly, ..self.store()? };
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

    /// Returns the cluster's former identifiers to record in the set. Called under the lease, so that nobody else's
    /// first set comes in between.
    fn formerly(&self) -> Result<Vec<SystemIdentifier>> {
        let Self { cx, manifest, repository, .. } = *self;
        let newest = match repository.newest() {
            Ok(newest) => newest,
            // The next older set that can be read records them as well.
            Err(_) => {
                let passed_over = |set: &str, error: &Error| {
                    tracing::warn!(%set, error = %error.chain(), "a set that can't be read doesn't say whose it is");
                };
                repository.choose(|_| true, |sets| Ok(sets.into_iter().next()), passed_over)?
            }
        };
        kin::formerly(manifest, newest.as_ref(), &cx.cluster.formerly, &repository.name)
    }

    fn store(&self) -> Result<Shipped> {
        let Self { cx, manifest, repository, held, there, .. } = *self;
        let encrypted = Encrypted::find(cx, repository, manifest)?;
        let keeps_wal = encrypted.keeps_wal(manifest);
        let mut routes = self.routes(&encrypted)?;
        let datasets: Vec<_> =
            manifest.volumes.iter().map(|volume| volume.dataset.clone()).collect();
        let (properties, mounted) = route::properties(&cx.zfs, &datasets)?;
        let tags = cx.state.path("tags").join(&repository.name);
        if repository.config.page_delta && repository.config.page_hashes {
            routes.iter_mut().for_each(|route| route.open_tags(&tags, repository, &properties));
        }
        tags::or_none(tags::sweep(&tags, routes.iter().filter_map(Route::tagged_image)));
        if let Err(error) = journals::sweep(cx) {
            tracing::warn!("journals of sets that are gone stay: {}", error.chain());
        }
        // The set's snapshots, followed by those that pages are compared with.
        let open = manifest.volumes.iter().filter(|volume| encrypted.is_open(volume));
        let mut looked_into: Vec<_> = open.map(|volume| volume.snapshot.clone()).collect();
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
            let volumes = threads::start_in(scope, move || ship_volumes(&shipment, routes, &seen))?;
            let files = take_files(cx, &mut manifest, frozen.as_ref()).and_then(|names| {
                if let Some(there) = there {
                    full::assert_same_files(there, &manifest, &repository.name)?;
                }
                let set = manifest.set.as_str();
                repository::files::store(
                    repository,
                    set,
                    &manifest.files,
                    &names,
                    &options,
                    &confirm,
                )
            });
            Ok::<_, Error>((volumes.join(), files))
        })?;
        let ended = |_| Error::failed("the thread of the volumes ended early; its words are above");
        let volumes = volumes.map_err(ended)??;
        files?;
        Ok(Shipped::new(manifest, volumes))
    }

    /// Returns the routes of the volumes to store. It is doubtful whether all sets are whole if the newest isn't, or
    /// something else that could be a base. A full shipment has no base.
    fn routes(&self, encrypted: &Encrypted) -> Result<Vec<Route<'a>>> {
        let Self { cx, manifest, repository, extent, doubt, .. } = *self;
        let noted = Doomed::read(&repository.strata).map_err(of_strata)?;
        let keeps_wal = encrypted.keeps_wal(manifest);
        let bases = Bases::find(&cx.zfs, &manifest.volumes)?;
        let memory = harm::memory(cx, repository);
        let wholeness = Wholeness::new(repository, &memory);
        let stored = manifest.volumes.iter().filter(|volume| keeps_wal || !is_wal_alone(volume));
        let is_newer = |set: &String| set.as_str() > manifest.set.as_str();
        // Only what is stored raw asks for it.
        let has_raw = manifest.volumes.iter().any(|volume| encrypted.is_raw(&volume.dataset));
        let is_late = has_raw && repository.ids()?.last().is_some_and(is_newer);
        let find = |volume: &'a SetVolume| {
            let raw = encrypted.is_raw(&volume.dataset);
            let raw_full_every = repository.config.raw_full_every;
            let how = How { raw, extent, raw_full_every, noted: &noted, is_late };
            route(&bases, &wholeness, volume, how)
        };
        let routes = stored.map(find).collect::<Result<Vec<_>>>()?;
        if extent == Extent::Increment {
            // A set whose manifest can't be read is reported elsewhere.
            let newest = repository.newest().ok().flatten();
            let is_whole = newest.map_or(Ok(true), |newest| harm::is_whole(&wholeness, &newest))?;
            doubt.set(doubt.get() || !is_whole || wholeness.has_found());
        }
        self.strike_needed(&routes, noted.clone())?;
        Ok(routes)
    }

    /// Removes the notes that nobody needs what the set is about to need. If it is ever unneeded again, its grace
    /// time starts from the beginning.
    fn strike_needed(&self, routes: &[Route<'_>], noted: Doomed) -> Result<()> {
        let Self { cx, manifest, repository, held, .. } = *self;
        if noted.is_empty() {
            return Ok(());
        }
        let strata = &repository.strata;
        let mut packs = begun::kept(cx, repository)?.packs;
        // Of a set that is older than one that is there, nothing else protects them.
        packs.extend(begun::packs(cx, repository, manifest)?);
        let files =
            descriptor_path(strata, FILES_IMAGE, manifest.set.as_str()).map_err(of_strata)?;
        let again = routes.iter().flat_map(|route| route.noted.iter().cloned());
        let again =
            again.chain(packs.into_iter().map(|pack| strata.pack_path(pack))).chain([files]);
        let still = || held.confirm().map_err(strata::Error::caller);
        noted.strike(strata, again, &still).map_err(of_strata)
    }
}

/// Returns the set's WAL, if it is only in pg_wal's snapshot.
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

/// pg_wal's own volume isn't stored unless raw: the set carries the segments that it needs.
fn is_wal_alone(volume: &SetVolume) -> bool {
    volume.parts.iter().all(|part| part.kind == PartKind::Wal)
}

/// Returns the LSNs whose pages a restored cluster rewrites regardless of their content: those that it replays, if
/// the WAL has full page images. pg_backup_start makes sure of that, or refuses (`do_pg_backup_start` in xlog.c);
/// otherwise the last checkpoint's record says it in full_page_writes.
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
        // The floor is before the snapshots; what was written up to them is replayed too. The range ends where the
        // WAL ends: nearly any garbage is a later LSN.
        Strategy::Atomic => match frozen.and_then(|frozen| frozen.replayed(manifest)) {
            Some((start, end)) => start.as_u64()..end.as_u64(),
            None => start..u64::MAX,
        },
        Strategy::Label | Strategy::Ordered => start..manifest.floor_lsn.map_or(0, Lsn::as_u64),
    }
}

/// Returns the snapshot's own pg_control; none if the data directory can't be looked into.
fn control(manifest: &Manifest, views: &Views) -> Result<Option<ControlFile>> {
    let data = part_seen(manifest, views, &PartKind::Data);
    data.map(|data| instance::read_control(&data)).transpose()
}

/// Returns how the cluster's pages are laid out.
fn geometry(control: &ControlFile) -> PageGeometry {
    PageGeometry {
        page_size: control.block_size,
        pages_per_segment: control.relation_segment_blocks,
    }
}

/// Returns where a part of the set can be looked into.
fn part_seen(manifest: &Manifest, views: &Views, kind: &PartKind) -> Option<PathBuf> {
    let (at, part) = manifest.parts().find(|(_, part)| part.kind == *kind)?;
    let root = views.path(&manifest.volumes.get(at)?.snapshot)?;
    Some(root.join(&part.inside))
}

/// Walks all the snapshots at once, because a walk mostly waits, each for something else.
fn look(routes: &mut [Route<'_>], views: &Views, recovers: bool) -> Result<()> {
    std::thread::scope(|scope| {
        let walks: Vec<_> = routes
            .iter_mut()
            .map(|route| {
                let root = views.path(&route.volume.snapshot).map(Path::to_path_buf);
                threads::start_in(scope, move || route.look(root.as_deref(), recovers))
            })
            .collect();
        let ended = |_| Err(Error::failed("a walk ended early; its words are above"));
        walks.into_iter().try_for_each(|walk| walk?.join().unwrap_or_else(ended))
    })
}

/// Ships the volumes, a few at a time; once one has failed, no other is begun.
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

    /// A page that is damaged in the snapshot and that recovery doesn't rewrite is a bad page.
    #[test]
    fn pages_are_only_written_anew_where_wal_has_them_whole() {
        let bytes = include_bytes!("../../../pgfiles/testdata/15/production.pg_control");
        let mut control = ControlFile::parse(bytes).unwrap();
        let mut set = manifest("20261101T000000Z-aaaa", vec![]);
        (set.start_lsn, set.floor_lsn) = (Some(Lsn::new(100)), Some(Lsn::new(900)));
        for (strategy, full_page_writes, expected) in [
            (Strategy::Ordered, true, 100..900),
            (Strategy::Ordered, false, 0..0),
            (Strategy::Atomic, true, 100..u64::MAX),
            (Strategy::Atomic, false, 0..0),
            // pg_backup_start makes the server write them, or refuses.
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
