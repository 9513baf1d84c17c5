//! Makes a restored cluster, step by step, and undoes it.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use super::alone::Alone;
use super::as_files::Written;
use super::marker::Marker;
use super::placement::Placement;
use super::source::Source;
use super::{
    Request, Restored, What, control, folders, gone_on, original, owners, parked, received,
    run_server, surplus, tree, unfinished,
};
use crate::context::{Context, lockstep};
use crate::error::{Error, Result};
use crate::files;
use crate::isolation;
use crate::lock::Lock;
use crate::postgres::recovery;
use crate::postgres::target::Recovery;
use crate::process::Credentials;
use crate::set::journal::{self, RestoreJournal};
use crate::set::manifest::Manifest;
use crate::set::state::read_file_of;
use crate::steps;
use crate::volume::mounts::Mounts;
use crate::volume::zfs::{Base, DatasetName};

/// A restore under way.
pub(super) struct Build<'a> {
    pub(super) cx: &'a Context<'a>,
    pub(super) request: &'a Request,
    pub(super) recovery: Recovery,
    /// Settings that recovery needs higher than they are in the set.
    pub(super) raised: Vec<(String, String)>,
    pub(super) manifest: Manifest,
    pub(super) placement: Placement,
    pub(super) id: String,
    pub(super) journal: RestoreJournal,
    pub(super) source: Source,
    /// Those of its datasets that exist already: they are brought to the set's state.
    pub(super) there: BTreeSet<DatasetName>,
    /// What these are rolled back to.
    pub(super) bases: BTreeMap<DatasetName, Base>,
    /// What was done to an older restore so far.
    pub(super) older: Older,
    /// The folders, which no other restore works in.
    alone: Alone,
    /// Everything was made and the server was started, but then the server failed.
    recovery_failed: bool,
    /// Its complete datasets, and whether each was received.
    kept: RefCell<Vec<(DatasetName, bool)>>,
    /// The restore writes files.
    keeps_files: Cell<bool>,
    /// Something was written into a file.
    pub(super) has_content: AtomicBool,
    lock: Option<Lock>,
}

/// What was there before, possibly an older restore.
#[derive(Default)]
pub(super) struct Older {
    /// Its marker.
    marker: Option<Marker>,
    /// Its pg_control was renamed.
    pub(super) is_held: Cell<bool>,
    /// The dataset of its data directory was parked.
    pub(super) is_parked: Cell<bool>,
    /// It was changed.
    pub(super) is_changed: Cell<bool>,
    /// The journal says that it is changed.
    is_announced: Cell<bool>,
}

impl Older {
    /// Returns its marker, if it is a restore of the set's cluster.
    fn of(&self, set: &Manifest, source: &Source) -> Option<&Marker> {
        self.marker.as_ref().filter(|marker| marker.is_of(set, source))
    }
}

/// What was found out before anything was made.
pub(super) struct Plan {
    pub(super) recovery: Recovery,
    pub(super) manifest: Manifest,
    pub(super) placement: Placement,
    pub(super) id: String,
    pub(super) source: Source,
    pub(super) there: BTreeSet<DatasetName>,
    pub(super) bases: BTreeMap<DatasetName, Base>,
    pub(super) alone: Alone,
}

impl<'a> Build<'a> {
    pub(super) fn new(cx: &'a Context<'a>, request: &'a Request, plan: Plan) -> Result<Self> {
        let Plan { recovery, manifest, placement, id, source, there, bases, alone } = plan;
        let mut datasets = datasets(&placement, &source);
        // What existed before isn't Lockstep's to remove.
        datasets.retain(|dataset| !there.contains(dataset));
        datasets.extend(source.receiving(&placement, &id));
        let missing = placement.folders().filter(|path| path.symlink_metadata().is_err());
        let filled = missing.cloned().collect();
        let with_data = placement.volumes.iter().find(|volume| placement.has_data(volume));
        let data_on = with_data.and_then(|volume| volume.dataset.clone());
        let older_data = data_on.as_ref().filter(|dataset| there.contains(dataset));
        let data_guid = older_data.map(|dataset| cx.zfs.guid(dataset)).transpose()?;
        let mounts = Mounts::read()?;
        // A restore as files may go over datasets of an older one.
        let folders = alone.folders.iter().chain(placement.folders());
        let holding = folders.filter_map(|folder| mounts.holding(folder));
        let mounted: BTreeSet<PathBuf> = holding.map(|mount| mount.point.clone()).collect();
        let older = Older { marker: Marker::of_older(&placement.directory), ..Default::default() };
        let before = Marker::read(&placement.directory);
        let journal = RestoreJournal {
            id: id.clone(),
            received: source.received(&placement, &id),
            datasets,
            data: placement.data.clone(),
            places: {
                let mut places = places(&placement);
                // What existed before isn't Lockstep's to remove.
                places.retain(|path| path.symlink_metadata().is_err());
                places
            },
            own: own(&placement, &source),
            leads: placement.links.iter().map(|(_, target)| target.clone()).collect(),
            is_marked: true,
            filled,
            places_of_others: Vec::new(),
            started: false,
            alone_in: alone.folders.clone(),
            kept: Vec::new(),
            keeps_files: false,
            is_over_older: false,
            data_on,
            data_guid,
            identifiers: source.identifiers(&manifest),
            mounted: mounted.into_iter().collect(),
            over: before.map(|marker| marker.restore).unwrap_or_default(),
        };
        Ok(Self {
            cx,
            request,
            recovery,
            raised: Vec::new(),
            manifest,
            placement,
            id,
            journal,
            source,
            there,
            bases,
            older,
            alone,
            recovery_failed: false,
            kept: RefCell::default(),
            keeps_files: Cell::new(false),
            has_content: AtomicBool::new(false),
            lock: None,
        })
    }

    /// Makes the cluster; on an error call [`Self::undo`].
    pub(super) fn run(
        &mut self,
        finally: impl FnOnce(&Restored, &RestoreJournal) -> Result<()>,
    ) -> Result<Restored> {
        let owner = self.cx.os_user()?;
        let lock = unfinished::lock(self.cx, &self.id)?;
        if unfinished::journal_path(self.cx, &self.id).exists() {
            return Err(Error::failed(format!(
                "what an unfinished {} left couldn't be removed yet",
                self.id
            ))
            .with_hint(format!("`{} check` says what keeps it from being removed", lockstep())));
        }
        self.make_places(owner)?;
        self.lock = Some(lock);
        self.write_journal()?;
        steps::reached("restore.journal")?;
        self.make_directories(owner)?;
        let made = self.source.make_volumes(self, owner).inspect_err(|_| self.give_back())?;
        owners::give(self, owner)?;
        let removed = surplus::remove(self)?;
        let written = made.map(|made| Written { removed: made.removed + removed, ..made });
        steps::reached("restore.surplus")?;
        tree::prepare(self, owner)?;
        steps::reached("restore.prepared")?;
        let port = self.port()?;
        self.write_settings(port, owner)?;
        steps::reached("restore.settings")?;
        if !self.recovers_unseen() {
            control::release(&self.placement.data)?;
        }
        steps::reached("restore.control")?;
        let mut restored = Restored {
            set: self.manifest.clone(),
            id: self.id.clone(),
            placement: self.placement.clone(),
            port,
            started: false,
            socket_directory: None,
            recovery_log: Vec::new(),
            holds_subscriptions: self.holds_subscriptions(),
            not_restored: self.source.not_restored(),
            written,
            problems: Vec::new(),
        };
        if self.request.start {
            let started = run_server::start(self, owner, &mut restored);
            self.recovery_failed = started.is_err();
            started?;
            steps::reached("restore.started")?;
        }
        self.source.clean_up()?;
        finally(&restored, &self.journal)?;
        steps::reached("restore.done")?;
        let is_marked = unfinished::mark_ended(self.cx, &self.entry());
        match self.forget() {
            // It is complete, and the next command sees that by its marks.
            Err(error) if is_marked => {
                tracing::warn!(restore = %self.id, error = %error.chain(), "its journal stays for now");
            }
            forgotten => forgotten?,
        }
        received::remove_older(self);
        Ok(restored)
    }

    /// Whether it recovers in a mount namespace which it leaves at the end: pg_control is in its place for nobody else
    /// until then.
    pub(super) fn recovers_unseen(&self) -> bool {
        self.request.start && self.request.clone.is_none() && isolation::possible()
    }

    /// Gives an older restore back if nothing of it has changed yet: its server can start again.
    fn give_back(&self) {
        let Older { marker, is_held, is_parked, is_changed, is_announced } = &self.older;
        if is_changed.get() {
            return;
        }
        let (zfs, directory) = (&self.cx.zfs, &self.placement.directory);
        let given = (|| {
            if is_held.get() {
                let with_data =
                    self.placement.volumes.iter().filter(|v| self.placement.has_data(v));
                for dataset in with_data.filter_map(|volume| volume.dataset.as_ref()) {
                    if !self.there.contains(dataset) {
                        // What was received meanwhile hides what was there, possibly a folder.
                        if zfs.exists(dataset.as_str())? {
                            zfs.unmount(dataset)?;
                        }
                        continue;
                    }
                    if is_parked.get() {
                        parked::release(zfs, dataset)?;
                    }
                    zfs.mount(dataset)?;
                }
                control::release(&self.placement.data)?;
            }
            marker.as_ref().map_or(Ok(()), |marker| marker.write(directory))?;
            // From here on its server may start again, and the next command must not take it for this restore's.
            match is_announced.replace(false) {
                true => self.write_journal(),
                false => Ok(()),
            }
        })();
        if let Err(error) = given {
            tracing::warn!(
                restore = %self.id, error = %error.chain(),
                "the older restore in \"{}\" is unchanged, but no server starts on it: run it again with --delta",
                directory.display()
            );
        }
    }

    /// Returns where the set's own files are.
    pub(super) fn set_directory(&self) -> PathBuf {
        self.source.staging().unwrap_or_else(|| self.cx.state.set_directory(&self.manifest.set))
    }

    /// Reads a file of the set, checked against its hash.
    pub(super) fn read_set_file(&self, name: &str) -> Result<Vec<u8>> {
        read_file_of(&self.set_directory(), &self.manifest, name)
    }

    /// Ends the restore and leaves what was made as it is: another restore continues with that.
    pub(super) fn keep(&mut self) -> Result<()> {
        self.source.clean_up()?;
        unfinished::mark_ended(self.cx, &self.entry());
        self.forget()
    }

    /// Whether its server has been started for those who use the cluster. A clone is nobody's until it has a record.
    pub(super) fn is_theirs(&self) -> bool {
        self.journal.started && self.request.clone.is_none()
    }

    /// Ends a restore that failed or was interrupted when the cluster was complete. It stays, as after a SIGKILL.
    pub(super) fn leave(&mut self, error: Error) -> Error {
        unfinished::mark_ended(self.cx, &self.entry());
        let places = self.journal.places_of_others.iter();
        let left = places
            .map(|path| folders::remove_empty(path))
            .chain([self.source.clean_up()])
            .collect::<Result<()>>()
            .and_then(|()| self.forget());
        if let Err(reason) = left {
            tracing::warn!(restore = %self.id, error = %reason.chain(), "its journal stays for now");
        }
        let directory = self.placement.directory.display();
        let words = format!(
            "The cluster in \"{directory}\" is complete, and somebody may have written to it: it stays"
        );
        error.and_hint(&words).unwrap_or_else(|error| {
            tracing::warn!("{words}");
            error
        })
    }

    fn forget(&self) -> Result<()> {
        files::remove_file(&unfinished::journal_path(self.cx, &self.id))?;
        unfinished::remove_lock(self.cx, &self.id);
        Ok(())
    }

    /// Whether `--delta` could continue with what arrives: it comes from a repository. A restore of a part of the
    /// cluster into datasets can't be continued.
    fn may_go_on(&self) -> bool {
        let what = &self.request.what;
        let is_a_part_of_datasets = matches!(what, What::Datasets { .. }) && what.is_a_part();
        matches!(self.source, Source::Repository(_)) && !is_a_part_of_datasets
    }

    /// Files are written from here on: if the restore is killed, they stay.
    pub(super) fn begins_with_files(&self) -> Result<()> {
        if self.keeps_files.replace(true) {
            return Ok(());
        }
        self.write_journal()
    }

    /// The older restore is changed from here on: if this one is killed, it stays, and no server may start on it.
    pub(super) fn begins_with_older(&self) -> Result<()> {
        if self.there.is_empty() || self.older.is_announced.replace(true) {
            return Ok(());
        }
        self.write_journal()
    }

    /// Records that this dataset is complete: if the restore is killed, it stays. A dataset of pg_wal alone, for
    /// which nothing was received, stays only with others.
    pub(super) fn has_whole(&self, dataset: &DatasetName, was_received: bool) -> Result<()> {
        if !self.may_go_on() || self.there.contains(dataset) {
            return Ok(());
        }
        self.kept.borrow_mut().push((dataset.clone(), was_received));
        self.write_journal()
    }

    /// Whether what was made is worth keeping: some of it came from a repository. An older restore that is still
    /// unchanged has nothing to continue.
    pub(super) fn is_worth_keeping(&self) -> bool {
        if self.lock.is_none() || !self.may_go_on() {
            return false;
        }
        match &self.request.what {
            What::Files { .. } => {
                // An older restore loses its pg_control before anything else.
                let is_changed =
                    || self.older.marker.is_some() && !control::is_in_place(&self.placement.data);
                let came = self.has_content.load(Ordering::Relaxed) || is_changed();
                came && gone_on::is_kept(&self.entry())
            }
            _ if self.older.is_changed.get() => true,
            _ => !self.older.is_held.get() && !self.entry().kept.is_empty(),
        }
    }

    /// Ends a restore that failed or was interrupted. What came from the repository stays, in a state in which no
    /// server starts on it. Says how to continue.
    pub(super) fn keep_received(&mut self, error: Error) -> Error {
        let entry = self.entry();
        if let Err(reason) = gone_on::keep(self.cx, &entry).and_then(|()| self.forget()) {
            tracing::warn!(restore = %self.id, error = %reason.chain(), "the next command puts what was received in order");
        }
        let directory = self.placement.directory.display();
        let is_unrecovered = self.recovery_failed && !matches!(error, Error::Interrupted { .. });
        let words = match is_unrecovered {
            true => format!(
                "What was restored stays in \"{directory}\", with its log/server.log, and no server starts on it: \
                 run it again with --delta and another target, or once the reason is gone"
            ),
            false => gone_on::words(self.cx, &entry),
        };
        error.and_hint(&words).unwrap_or_else(|error| {
            tracing::warn!("{words}");
            error
        })
    }

    /// Returns the current journal entry.
    fn entry(&self) -> RestoreJournal {
        let mut kept = self.kept.borrow().clone();
        // Nothing was received if all of them hold pg_wal alone.
        if !kept.iter().any(|(_, was_received)| *was_received) {
            kept.clear();
        }
        let kept = kept.into_iter().map(|(dataset, _)| dataset).collect();
        RestoreJournal {
            kept,
            keeps_files: self.keeps_files.get(),
            is_over_older: self.older.is_announced.get(),
            ..self.journal.clone()
        }
    }

    /// Undoes everything; what can't be undone now stays in the journal for the next start.
    pub(super) fn undo(&mut self) {
        if self.lock.is_none() {
            return;
        }
        let mut entry = self.entry();
        // A server on an older restore that is still unchanged was started by somebody else: it isn't stopped.
        if !self.older.is_changed.get() {
            entry.data_on = entry.data_on.filter(|dataset| !self.there.contains(dataset));
        }
        if let Err(error) = unfinished::undo(self.cx, &entry) {
            tracing::warn!(
                restore = %self.id, error = %error.chain(), "left for the next start to remove{}",
                unfinished::held_by(&self.journal)
            );
            return;
        }
        if let Err(error) = files::remove_file(&unfinished::journal_path(self.cx, &self.id)) {
            tracing::warn!(error = %error.chain(), "a journal entry stays");
        }
        unfinished::remove_lock(self.cx, &self.id);
    }

    pub(super) fn write_journal(&self) -> Result<()> {
        journal::write(&unfinished::journal_path(self.cx, &self.id), &self.entry())
    }

    /// Makes the folders that only this restore may work in. If another restore was faster, nothing of that one's is
    /// undone: until this one has the folders, its journal names only empty folders.
    fn make_places(&mut self, owner: Option<Credentials>) -> Result<()> {
        if self.alone.is_had() {
            return Ok(());
        }
        let places = self.alone.to_make();
        let path = unfinished::journal_path(self.cx, &self.id);
        let entry = RestoreJournal {
            id: self.id.clone(),
            data: self.placement.directory.clone(),
            alone_in: places.clone(),
            places,
            is_marked: true,
            ..Default::default()
        };
        journal::write(&path, &entry)?;
        let made = self.alone.make(owner);
        if made.is_err() {
            files::remove_file(&path)?;
            unfinished::remove_lock(self.cx, &self.id);
        }
        made
    }

    fn make_directories(&self, owner: Option<Credentials>) -> Result<()> {
        let directory = &self.placement.directory;
        self.marker().write(directory)?;
        // ZFS makes missing folders above a mount point with the umask's mode.
        for volume in self.placement.volumes.iter().filter(|volume| volume.dataset.is_some()) {
            volume.mountpoint.parent().map_or(Ok(()), files::create_open_directories)?;
        }
        for folder in ["log", "run", "tablespaces"] {
            files::create_owned_directory(&self.placement.directory.join(folder), owner)?;
        }
        if self.placement.volumes.iter().any(|v| v.mountpoint.starts_with(self.volumes())) {
            files::create_owned_directory(&self.volumes(), owner)?;
        }
        Ok(())
    }

    fn marker(&self) -> Marker {
        Marker {
            cluster: self.cx.name.to_string(),
            system_identifier: self.manifest.postgres.system_identifier,
            set: self.manifest.set.to_string(),
            begun_at: jiff::Timestamp::now(),
            restore: self.id.clone(),
            before: self.sets_before(),
            tablespaces: self.folders_of_tablespaces(),
            ended: false,
            from_snapshots: matches!(self.source, Source::Snapshots),
        }
    }

    /// Returns the folders outside DIR that tablespaces go to, and, if the older restore wasn't finished, its own.
    fn folders_of_tablespaces(&self) -> Vec<PathBuf> {
        let directory = &self.placement.directory;
        let own = self.placement.tablespaces.values().map(|tablespace| &tablespace.real);
        let own = own.filter(|path| !path.starts_with(directory));
        let older = self.older.of(&self.manifest, &self.source);
        let older = older.filter(|_| !control::is_in_place(&self.placement.data));
        let mut all: Vec<_> =
            own.chain(older.iter().flat_map(|older| &older.tablespaces)).cloned().collect();
        all.sort();
        all.dedup();
        all
    }

    /// Returns the sets whose files may be there: the older restore's, and if that wasn't finished, those before it.
    fn sets_before(&self) -> Vec<String> {
        let Some(older) = self.older.of(&self.manifest, &self.source) else { return Vec::new() };
        let is_finished = control::is_in_place(&self.placement.data);
        let before = older.before.iter().filter(|_| !is_finished);
        let mut sets: Vec<String> = before.chain([&older.set]).cloned().collect();
        sets.sort();
        sets.dedup();
        sets
    }

    /// Whether it restores over an older restore of the same cluster, according to the marker.
    pub(super) fn is_over_an_older_restore(&self) -> bool {
        self.source.is_delta() && self.older.of(&self.manifest, &self.source).is_some()
    }

    /// Returns the set of an unfinished older restore that it continues.
    pub(super) fn unfinished_set(&self) -> Option<String> {
        let older = self.older.of(&self.manifest, &self.source).filter(|_| self.source.is_delta());
        older.filter(|_| !control::is_in_place(&self.placement.data)).map(|it| it.set.clone())
    }

    fn volumes(&self) -> PathBuf {
        self.placement.directory.join("volumes")
    }

    fn port(&self) -> Result<Option<u16>> {
        match self.request.port {
            None if self.request.start => run_server::free_port(self.cx.cluster.port).map(Some),
            port => Ok(port),
        }
    }

    /// Whether the restored cluster is started on the original's host. A clone has settings of its own.
    fn starts_beside_the_original(&self) -> bool {
        let is_here = || !original::here(self.cx, &self.manifest, &self.placement).is_empty();
        let is_asked = self.request.start && self.request.clone.is_none();
        let is_standby = self.recovery.standby.is_some();
        is_asked && !is_standby && is_here()
    }

    /// Whether the restored cluster's subscriptions would take changes that the original should get: they would
    /// continue in the original's slots.
    fn holds_subscriptions(&self) -> bool {
        !self.request.keep_subscriptions && self.starts_beside_the_original()
    }

    /// Writes postgresql.auto.conf.
    pub(super) fn write_settings(
        &self,
        port: Option<u16>,
        owner: Option<Credentials>,
    ) -> Result<()> {
        let mut settings = recovery::lasting(&self.recovery, &self.placement.directory, port);
        settings.extend(recovery::of_older(self.manifest.postgres.major));
        if self.starts_beside_the_original() {
            settings.push(recovery::jobs_of_its_own());
            if !self.request.keep_subscriptions {
                recovery::put(&mut settings, recovery::NO_WORKERS.into(), "0".into());
            }
        }
        let mut places = tree::own_places(&self.manifest, &self.placement)?;
        places.extend(tree::places_of_configuration(&self.manifest, &self.placement));
        let clone = self.request.clone.iter().flat_map(|clone| clone.settings.iter().cloned());
        let passing = recovery::passing(&self.recovery);
        let asked = self.request.settings.iter().cloned();
        let raised = self.raised.iter().cloned();
        let differ = clone.chain(asked).chain(raised);
        for (name, value) in places.into_iter().chain(passing).chain(differ) {
            recovery::put(&mut settings, name, value);
        }
        tree::write_auto_conf(&self.placement.data, &settings, owner)?;
        if let Some(signal) = self.recovery.signal() {
            files::write_owned(&self.placement.data.join(signal), b"", owner)?;
        }
        Ok(())
    }
}

impl Build<'_> {
    /// Ends the recovery settings: the target must not apply again if this cluster becomes a standby.
    pub(super) fn end_recovery_settings(&self, owner: Option<Credentials>) -> Result<()> {
        tree::write_auto_conf(&self.placement.data, &[], owner)
    }
}

/// Returns the datasets that are made, in order.
fn datasets(placement: &Placement, source: &Source) -> Vec<DatasetName> {
    let parent = source.made_parent().into_iter();
    parent.chain(placement.volumes.iter().filter_map(|volume| volume.dataset.clone())).collect()
}

/// Returns folders that are Lockstep's with everything in them.
fn own(placement: &Placement, source: &Source) -> Vec<PathBuf> {
    let mut own = unfinished::own_in(&placement.directory);
    // What existed before isn't Lockstep's to remove.
    own.retain(|path| !source.is_delta() || !path.exists());
    own.extend(source.staging());
    own
}

/// Returns what is made and is empty once the clones are gone, innermost first.
fn places(placement: &Placement) -> Vec<PathBuf> {
    let directory = &placement.directory;
    let mut places: Vec<PathBuf> = placement.links.iter().map(|(link, _)| link.clone()).collect();
    places.extend(placement.volumes.iter().map(|volume| volume.mountpoint.clone()));
    places.extend([directory.join("tablespaces"), directory.join("volumes")]);
    // Folders above a place that don't exist yet are Lockstep's too.
    let tops: Vec<&Path> = std::iter::once(directory.as_path())
        .chain(placement.tablespaces.values().map(|t| t.link.as_path()))
        .collect();
    for top in tops {
        places.extend(
            top.ancestors()
                .take_while(|path| path.symlink_metadata().is_err())
                .map(Path::to_path_buf),
        );
    }
    places.sort_by_key(|path| std::cmp::Reverse(path.components().count()));
    places.dedup();
    places
}
