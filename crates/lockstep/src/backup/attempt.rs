//! One attempt at a set: the plan's steps, run in order, and how they are undone.

use std::time::{Duration, Instant};

use pgfiles::backup_label::BackupLabel;
use pgfiles::control_file::ControlFile;
use pgfiles::lsn::{Lsn, TimelineId};
use pgfiles::wal_name::WalSegment;

use crate::backup::{Request, certify, standby};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::files;
use crate::names::SetId;
use crate::plan::strategy::{Plan, Step, Strategy, WalSource};
use crate::plan::{Layout, PartKind};
use crate::postgres::copies::Removals;
use crate::postgres::instance::PG_CONTROL;
use crate::postgres::session::{self, Started, Stopped};
use crate::postgres::wal::{self, WalIdentity};
use crate::postgres::{connection, instance, settled};
use crate::refusal::Refusal;
use crate::set::journal::{self, BackupJournal};
use crate::set::manifest::{Manifest, Seconds, SetWal, WalStored};
use crate::set::notes;
use crate::set::own_files::FrozenWal;
use crate::set::unfinished::{self, TAKING};
use crate::steps;
use crate::survey::{self, Survey};
use crate::view::Views;
use crate::volume::zfs::{DatasetName, SnapshotName};

/// How long an `ordered` backup waits for a checkpoint that is under way.
const CHECKPOINT_PATIENCE: Duration = Duration::from_secs(5);

/// An attempt at a set.
pub(super) struct Attempt<'a> {
    pub(super) cx: &'a Context<'a>,
    pub(super) request: &'a Request,
    pub(super) plan: Plan,
    pub(super) survey: Survey,
    pub(super) tries: u32,
    pub(super) set: SetId,
    pub(super) started_at: jiff::Timestamp,
    journal: BackupJournal,
    began: Instant,
    session: Option<Started>,
    /// The connection that holds the replication slot.
    slot: Option<postgres::Client>,
    /// What pg_backup_stop returned.
    pub(super) stopped: Option<Stopped>,
    /// The floor's LSN and the server's time.
    pub(super) floor: Option<(Lsn, jiff::Timestamp)>,
    /// For `ordered` on a standby: the label made from the first pg_control.
    pub(super) own_label: Option<BackupLabel>,
    /// For `ordered` on a standby: pg_control after the last snapshot of data.
    pub(super) last_control: Option<ControlFile>,
    /// The snapshots taken, with the number of their group.
    pub(super) taken: Vec<(usize, SnapshotName, u32)>,
    /// Whether a snapshot carries backup_label as a property.
    pub(super) labelled: bool,
    /// On a standby: how far it had replayed after the last snapshot of data.
    pub(super) replayed: Option<Lsn>,
    /// On a primary: which databases were being removed at that time.
    pub(super) removals: Removals,
    /// The set's own WAL.
    pub(super) wal: SetWal,
    pub(super) seconds: Seconds,
    first_snapshot: Option<Instant>,
    /// When the last snapshot existed, by this host's clock, which is also the server's.
    pub(super) last_snapshot_at: jiff::Timestamp,
}

impl<'a> Attempt<'a> {
    /// Writes the journal; from here on [`Self::undo`] or the next start has something to undo.
    pub(super) fn begin(
        cx: &'a Context<'a>,
        request: &'a Request,
        plan: Plan,
        survey: Survey,
        tries: u32,
        began: Instant,
    ) -> Result<Self> {
        let started_at = jiff::Timestamp::now();
        let set = SetId::new(started_at)?;
        let layout = &survey.facts.layout;
        let datasets = layout.volumes.iter().map(|v| v.dataset.clone()).collect();
        let guid = |pool: &str| Some((pool.to_owned(), cx.zfs.pool_guid(pool)?));
        let pools = layout.pools().into_iter().filter_map(guid).collect();
        let below = common_parent(&plan, &survey);
        let journal = BackupJournal { set: set.clone(), datasets, pools, below, left: None };
        let attempt = Self {
            cx,
            request,
            plan,
            survey,
            tries,
            set,
            started_at,
            journal,
            began,
            session: None,
            slot: None,
            stopped: None,
            floor: None,
            own_label: None,
            last_control: None,
            taken: Vec::new(),
            labelled: false,
            replayed: None,
            removals: Removals::Unknown,
            wal: SetWal::default(),
            seconds: Seconds::default(),
            first_snapshot: None,
            last_snapshot_at: started_at,
        };
        let path = attempt.journal_path();
        journal::write(&path, &attempt.journal)?;
        if let Err(error) = cx.state.assert_own(&attempt.set) {
            // Without it nobody takes the other's snapshots for this attempt's.
            files::remove_file(&path)?;
            return Err(error);
        }
        Ok(attempt)
    }

    /// Runs the plan and publishes the set.
    pub(super) fn run(&mut self) -> Result<Manifest> {
        steps::reached("backup.journal")?;
        for step in self.plan.steps.clone() {
            match step {
                Step::Slot => self.make_slot()?,
                Step::StartBackup { fast } => self.start_backup(fast)?,
                Step::Snapshot { volumes, one_moment } => {
                    self.snapshot(&volumes, one_moment)?;
                    if self.plan.strategy == Strategy::Atomic {
                        self.take_frozen_control();
                    }
                }
                Step::CheckLayout => self.check_layout()?,
                Step::Floor => self.write_floor()?,
                Step::ReplayFloor => self.note_replay()?,
                Step::FirstControl => self.read_first_control()?,
                Step::LastControl => self.read_last_control()?,
                Step::CheckRecovery => self.check_recovery()?,
                Step::SwitchPrimary => self.switch_primary()?,
                Step::StopBackup => self.stop_backup()?,
                Step::TakeWal(source) => self.take_wal(source)?,
                Step::CheckShutDown => self.check_shut_down()?,
            }
        }
        self.check_copies()?;
        let volumes = certify::volumes(self)?;
        let parts = certify::files(self)?;
        self.seconds.total = self.began.elapsed().as_secs_f64();
        let manifest = certify::manifest(self, volumes, parts)?;
        if self.plan.strategy == Strategy::Cold {
            self.check_own_wal(&manifest)?;
        }
        notes::note_pools(self.cx, &manifest);
        steps::reached("backup.manifest")?;
        self.cx.state.publish(&manifest)?;
        steps::reached("backup.published").or_else(after_the_manifest)?;
        certify::mark_complete(self)?;
        files::remove_file(&self.journal_path())?;
        steps::reached("backup.done").or_else(after_the_manifest)?;
        Ok(manifest)
    }

    /// Undoes what this attempt made. What can't be undone now stays in the journal for the next start.
    pub(super) fn undo(&mut self) {
        // Closing the connections ends backup mode and drops the temporary slot.
        self.survey.client = None;
        self.slot = None;
        if self.cx.state.is_complete(self.set.as_str()) {
            return;
        }
        let undone = unfinished::remove_set(self.cx, &self.journal).and_then(|all_seen| {
            if all_seen { files::remove_file(&self.journal_path()) } else { Ok(()) }
        });
        if let Err(error) = undone {
            tracing::warn!(set = %self.set, error = %error.chain(), "left for the next start to remove");
        }
    }

    fn journal_path(&self) -> std::path::PathBuf {
        self.cx.state.path("unfinished").join(format!("{}.json", self.set))
    }

    fn client(&mut self) -> Result<&mut postgres::Client> {
        let missing = || Error::failed("this step needs a connection");
        let client = self.survey.client.as_mut().ok_or_else(missing)?;
        session::hear(client)?;
        Ok(client)
    }

    /// Makes the slot on a connection of its own: a checkpoint that must not keep the slot's WAL any longer ends the
    /// session that holds it (InvalidatePossiblyObsoleteSlot in slot.c), and with it a backup of that session.
    fn make_slot(&mut self) -> Result<()> {
        self.client()?;
        match session::hold_slot(self.cx.cluster, &self.set.slot_name()) {
            Ok((client, reserved)) => {
                self.slot = Some(client);
                if self.plan.strategy == Strategy::Ordered {
                    self.wait_for_checkpoint(reserved)?;
                }
            }
            // Without a slot, the set is still either right or refused: its WAL is checked at the end.
            Err(error) => tracing::warn!(error = %error.chain(), "going on without a slot"),
        }
        steps::reached("backup.slot")
    }

    /// Says that the server has given the slot up meanwhile, which explains why WAL is gone if it is.
    fn tell_lost_slot(&mut self) {
        if let Some(Err(error)) = self.slot.as_mut().map(session::hear) {
            self.slot = None;
            tracing::warn!(
                error = %error.chain(),
                "the server has ended the session that held the replication slot: max_slot_wal_keep_size or idle_replication_slot_timeout may be less than a backup takes, the server's log says; the set's WAL is checked all the same"
            );
        }
    }

    /// Recovery will start at pg_control's redo point, and the slot keeps the WAL from `reserved` on. While a
    /// checkpoint is running, pg_control is outdated until it is done, and the WAL that it points at isn't kept. A
    /// checkpoint that takes long isn't waited for: it removes no WAL before it is done, and the WAL is checked at the
    /// end as always.
    fn wait_for_checkpoint(&mut self, reserved: Lsn) -> Result<()> {
        let deadline = Instant::now() + CHECKPOINT_PATIENCE;
        loop {
            self.survey.facts.control = instance::read_control(&self.cx.cluster.data_directory)?;
            if self.control().checkpoint_copy.redo >= reserved || Instant::now() > deadline {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn start_backup(&mut self, fast: bool) -> Result<()> {
        let plain = format!("lockstep {}", self.set);
        let label = self.request.label.clone().unwrap_or_else(|| plain.clone());
        let major = self.survey.facts.server.as_ref().map_or(0, crate::plan::ServerFacts::major);
        let began = Instant::now();
        let started = session::start(self.client()?, major, (&label, &plain), fast)?;
        self.seconds.checkpoint = began.elapsed().as_secs_f64();
        self.tell_restartpoint(started.start_lsn)?;
        self.session = Some(started);
        steps::reached("backup.started")
    }

    fn snapshot(&mut self, volumes: &[usize], one_moment: bool) -> Result<()> {
        let order = self.taken.last().map_or(1, |(_, _, order)| order + 1);
        steps::reached(&format!("backup.before-snapshot-{order}"))?;
        let began = *self.first_snapshot.get_or_insert_with(Instant::now);
        let name = self.set.snapshot_name();
        let layout = &self.survey.facts.layout;
        let of = |&volume: &usize| (volume, layout.volumes[volume].dataset.snapshot(&name), order);
        let group: Vec<_> = volumes.iter().map(of).collect();
        let snapshots: Vec<_> = group.iter().map(|(_, snapshot, _)| snapshot.clone()).collect();
        let mut properties = vec![
            ("lockstep:owner", self.cx.state.owner().to_owned()),
            ("lockstep:cluster", self.cx.name.to_string()),
            ("lockstep:set", self.set.to_string()),
            ("lockstep:order", order.to_string()),
            ("lockstep:state", TAKING.to_owned()),
        ];
        properties.extend(certify::words(self));
        // The first snapshot taken after the label is known carries it, which costs nothing.
        let labels = if self.labelled { Vec::new() } else { certify::label_properties(self) };
        let labelled = self.labelled || !labels.is_empty();
        properties.extend(labels);
        self.cx.zfs.snapshot(&snapshots, one_moment, &properties)?;
        self.labelled = labelled;
        self.taken.extend(group);
        self.seconds.snapshots = began.elapsed().as_secs_f64();
        self.last_snapshot_at = jiff::Timestamp::now();
        steps::reached(&format!("backup.after-snapshot-{order}"))
    }

    /// Recovery of an atomic set starts where the snapshot's own pg_control says, and there may have been a
    /// checkpoint since the survey. If the survey's checkpoint is still the last one now, it is the snapshot's too;
    /// otherwise the snapshot is looked into. If that fails, the set is still good: whoever uses it looks again.
    fn take_frozen_control(&mut self) {
        let same = |a: &ControlFile, b: &ControlFile| {
            (a.checkpoint, &a.checkpoint_copy) == (b.checkpoint, &b.checkpoint_copy)
                && a.min_recovery_point_timeline == b.min_recovery_point_timeline
        };
        let frozen = instance::read_control(&self.cx.cluster.data_directory).and_then(|now| {
            if same(&now, self.control()) {
                return Ok(None);
            }
            let layout = &self.survey.facts.layout;
            let data = layout.parts.iter().find(|part| part.kind == PartKind::Data);
            let snapshot = self.taken.iter().find_map(|(volume, snapshot, _)| {
                let part = data.filter(|part| part.volume == *volume)?;
                Some((snapshot.clone(), part.inside.clone()))
            });
            let Some((snapshot, inside)) = snapshot else { return Ok(None) };
            let views = Views::open(self.cx, std::slice::from_ref(&snapshot))?;
            views.path(&snapshot).map(|root| instance::read_control(&root.join(inside))).transpose()
        });
        match frozen {
            Ok(Some(control)) => self.survey.facts.control = control,
            Ok(None) => {}
            Err(error) => tracing::warn!(
                error = %error.chain(),
                "a checkpoint came before the snapshot: the manifest says where recovery would have started before it"
            ),
        }
    }

    fn check_layout(&mut self) -> Result<()> {
        let changed = |difference| Refusal::LayoutChanged { difference };
        let before = &self.survey.facts.layout;
        let server = self.survey.facts.server.as_ref().ok();
        let later = survey::parts(self.cx, server).and_then(|parts| {
            steps::reached("backup.parts")?;
            survey::find(self.cx, &parts)
        });
        let later = match later {
            // A link whose target is gone is a tablespace that is just being dropped.
            Err(Error::Io { path, source, .. })
                if source.kind() == std::io::ErrorKind::NotFound =>
            {
                return Err(changed(format!("\"{}\" was dropped", path.display())).into());
            }
            other => other?,
        };
        if let Some(difference) = before.difference(&later) {
            return Err(changed(difference).into());
        }
        if self.survey.client.is_none()
            && let Some(unsettled) = settled::look(&later, self.control())?
        {
            return Err(Refusal::from(unsettled).into());
        }
        if let Some(client) = self.survey.client.as_mut() {
            session::hear(client)?;
            // The server's own list, in case a link is slightly behind it.
            let tablespaces = connection::tablespaces(client)?;
            session::hear(client)?;
            if let Some(difference) = unlike(before, &tablespaces) {
                return Err(changed(difference).into());
            }
        }
        self.note_removals()?;
        steps::reached("backup.layout")
    }

    fn write_floor(&mut self) -> Result<()> {
        let set = self.set.to_string();
        self.floor = Some(session::write_floor(self.client()?, &set)?);
        steps::reached("backup.floor")
    }

    fn stop_backup(&mut self) -> Result<()> {
        let session = self.session.take().ok_or_else(|| Error::failed("no backup was started"))?;
        self.stopped = Some(session.stop(self.client()?)?);
        steps::reached("backup.stopped")
    }

    fn take_wal(&mut self, source: WalSource) -> Result<()> {
        self.tell_lost_slot();
        let identity = self.wal_identity();
        let pg_wal = self.cx.cluster.data_directory.join("pg_wal");
        self.check_one_timeline(self.control())?;
        let (from, to) = self.wal_range()?;
        let needed = wal::segments(identity, from, to);
        let mut here = needed.clone();
        if self.is_standby() {
            let gone = standby::missing(&pg_wal, identity, &needed);
            if !gone.is_empty() {
                let Err(refusal) = wal::check(&pg_wal, identity, &gone) else {
                    return Err(Error::failed("pg_wal keeps changing during the backup"));
                };
                self.wal_from_elsewhere(&gone, refusal)?;
                here.retain(|segment| !gone.contains(segment));
            }
        }
        let name = |segment: &WalSegment| segment.file_name(identity.segment_size);
        self.wal.segments = needed.iter().map(name).collect();
        self.wal.stored = match source {
            WalSource::Frozen => {
                wal::check(&pg_wal, identity, &here)?;
                WalStored::Snapshot
            }
            WalSource::Live => {
                let to = self.cx.state.set_directory(&self.set).join("wal");
                self.wal.segments.extend(wal::copy(&pg_wal, &to, identity, &here)?);
                WalStored::Files
            }
        };
        steps::reached("backup.wal")
    }

    /// Checks for a promotion whose checkpoint is still to come: recovery would begin on the old timeline and end on
    /// the new one, and an `ordered` set names only the segments of one timeline.
    fn check_one_timeline(&self, now: &ControlFile) -> Result<()> {
        let from = self.control().checkpoint_copy.timeline.get();
        let to = now.newest_timeline().get();
        if self.stopped.is_none() && !self.is_standby() && to > from {
            return Err(Refusal::TimelineChanged { from, to }.into());
        }
        Ok(())
    }

    fn check_shut_down(&mut self) -> Result<()> {
        let directory = &self.cx.cluster.data_directory;
        let before = &self.survey.facts.control;
        let now = instance::read_control(directory)?;
        let running = instance::postmaster(directory)?;
        if running.is_some() || now.to_bytes() != before.to_bytes() {
            return Err(Refusal::NotPossible {
                strategy: self.plan.strategy,
                why: "the server was started during the backup".into(),
                needed: "run the backup again, with the server stopped or with strategy label"
                    .into(),
            }
            .into());
        }
        Ok(())
    }

    /// No step of `cold` checks for WAL, and pg_wal's dataset may be unmounted if nobody uses it.
    fn check_own_wal(&self, manifest: &Manifest) -> Result<()> {
        let data = &self.cx.cluster.data_directory;
        let found = FrozenWal::find(manifest, data.join("pg_wal"), Some(&data.join(PG_CONTROL)));
        found.map(drop).map_err(|error| match error {
            Error::Refused(refusal) if matches!(*refusal, Refusal::WalEndsEarly { .. }) => {
                Refusal::NotPossible {
                    strategy: self.plan.strategy,
                    why: refusal.to_string(),
                    needed: "check that all of pg_wal is there and its dataset is mounted; once it was started and shut down cleanly, the server has what it needs".into(),
                }
                .into()
            }
            other => other,
        })
    }

    /// Returns where recovery starts.
    pub(super) fn start_lsn(&self) -> Lsn {
        match &self.stopped {
            Some(stopped) => stopped.label.start_lsn,
            None => self.control().checkpoint_copy.redo,
        }
    }

    /// Returns where a set of the strategy `label` is consistent. A standby's stop LSN is its minRecoveryPoint, which
    /// isn't ahead of everything that replay has changed by the last snapshot.
    pub(super) fn label_end(&self) -> Option<Lsn> {
        let stop = self.stopped.as_ref()?.stop_lsn;
        Some(self.replayed.map_or(stop, |replayed| replayed.max(stop)))
    }

    /// Returns the first and the last byte of WAL to check for: what recovery to the floor needs.
    pub(super) fn wal_range(&self) -> Result<(Lsn, Lsn)> {
        let end = match (self.label_end(), self.floor) {
            (Some(end), _) => end,
            (None, Some((floor, _))) => floor,
            (None, None) => self.end_of_removable()?,
        };
        Ok((self.start_lsn(), end))
    }

    /// Without a floor, recovery continues to the end of what was frozen, and nobody knows where that is. A
    /// checkpoint removes segments in the order in which the folder lists them, which on ZFS isn't that of their
    /// names. So the segment in which recovery starts may still be there while later ones are gone. But a checkpoint
    /// removes only what is before its redo point, and writes that redo point to pg_control first (CreateCheckPoint
    /// in xlog.c). So what was removed by the time of the freeze is before the redo point that pg_control has after
    /// it, and everything from there on was there.
    fn end_of_removable(&self) -> Result<Lsn> {
        let now = instance::read_control(&self.cx.cluster.data_directory)?;
        self.check_one_timeline(&now)?;
        let redo = now.checkpoint_copy.redo.max(self.start_lsn());
        Ok(redo.checked_add(1).unwrap_or(redo))
    }

    pub(super) fn wal_identity(&self) -> WalIdentity {
        let control = self.control();
        let timeline = match &self.stopped {
            Some(stopped) => stopped.label.start_timeline,
            None => control.checkpoint_copy.timeline,
        };
        WalIdentity {
            system_identifier: control.system_identifier,
            segment_size: control.wal_segment_size,
            timeline,
        }
    }

    /// Returns the timeline that the set's data has come to. Between a promotion and the checkpoint after it, recovery
    /// starts on the one before, and pg_control names the new one with minRecoveryPoint (CreateEndOfRecoveryRecord in
    /// xlog.c). Without a floor, only the place is known where recovery starts.
    pub(super) fn timeline(&self) -> TimelineId {
        let has_floor = self.stopped.is_none() && self.floor.is_some();
        if has_floor { self.control().newest_timeline() } else { self.wal_identity().timeline }
    }

    /// Returns whether the server is in recovery.
    pub(super) fn is_standby(&self) -> bool {
        self.survey.facts.is_standby()
    }

    pub(super) fn control(&self) -> &ControlFile {
        &self.survey.facts.control
    }
}

/// Returns the dataset below which a snapshot of one moment is taken, if this ZFS takes it with `-r`.
fn common_parent(plan: &Plan, survey: &Survey) -> Option<DatasetName> {
    let volumes = &survey.facts.layout.volumes;
    plan.steps.iter().find_map(|step| match step {
        Step::Snapshot { volumes: all, one_moment: true }
            if all.len() > 1 && !survey.facts.multi_snapshot =>
        {
            DatasetName::common_ancestor(all.iter().map(|&volume| &volumes[volume].dataset))
        }
        _ => None,
    })
}

/// A signal that arrives when the set is already complete doesn't make it a failure.
fn after_the_manifest(error: Error) -> Result<()> {
    match error {
        Error::Interrupted { .. } => Ok(()),
        other => Err(other),
    }
}

/// How the server's list differs from the layout. A tablespace without a name isn't the server's: a crash in CREATE
/// TABLESPACE leaves its link behind, and so does a standby that couldn't remove the folder of a dropped one.
fn unlike(layout: &Layout, tablespaces: &[(u32, String)]) -> Option<String> {
    let in_layout = |oid: u32| {
        layout
            .parts
            .iter()
            .any(|part| matches!(part.kind, PartKind::Tablespace { oid: o, .. } if o == oid))
    };
    if let Some((oid, name)) = tablespaces.iter().find(|(oid, _)| !in_layout(*oid)) {
        return Some(format!("tablespace {name} ({oid}) was created"));
    }
    layout.parts.iter().find_map(|part| match &part.kind {
        PartKind::Tablespace { oid, name: Some(_) }
            if !tablespaces.iter().any(|(known, _)| known == oid) =>
        {
            Some(format!("{} was dropped", part.kind))
        }
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::layout::tests::{layout, tablespace};

    #[test]
    fn a_link_that_the_server_never_knew_is_no_dropped_tablespace() {
        let named = PartKind::Tablespace { oid: 5, name: Some("a".into()) };
        let parts = [(PartKind::Data, "t/d"), (named, "t/a"), (tablespace(6), "t/b")];
        let layout = layout(&parts);
        let known = [(5, "a".to_owned())];
        assert_eq!(unlike(&layout, &known), None);
        assert_eq!(unlike(&layout, &[]).as_deref(), Some("tablespace a (5) was dropped"));
        let more = [known[0].clone(), (7, "c".to_owned())];
        assert_eq!(unlike(&layout, &more).as_deref(), Some("tablespace c (7) was created"));
    }
}
