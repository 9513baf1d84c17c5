//! The steps that only a backup of a standby has: reading pg_control before the first and after the last snapshot,
//! checking that it still is a standby on the same timeline, and getting WAL from elsewhere.
//!
//! What could go wrong: a restartpoint between two snapshots recycles WAL that the set needs. That WAL is then looked
//! for on the primary and in its archive, and the set is refused if it is in neither.

use std::collections::BTreeSet;
use std::path::Path;

use pgfiles::backup_label::{BackupFrom, BackupLabel};
use pgfiles::control_file::{ControlFile, DbState};
use pgfiles::lsn::Lsn;
use pgfiles::wal_name::WalSegment;
use postgres::Client;

use super::attempt::Attempt;
use crate::error::{Error, Result};
use crate::files;
use crate::postgres::row::column;
use crate::postgres::session;
use crate::postgres::wal::{self, WalIdentity};
use crate::postgres::{connection, copies, instance, wal_run};
use crate::refusal::Refusal;
use crate::steps;

/// How much of a WAL segment is requested at once.
const CHUNK: u32 = 16 << 20;

impl Attempt<'_> {
    /// Notes how far the standby has replayed: all of that is in the snapshot.
    pub(super) fn note_replay(&mut self) -> Result<()> {
        let least = self.read_control()?.min_recovery_point;
        let (replayed, time) = self.may_have_replayed()?;
        self.floor = Some((replayed.max(least), time));
        steps::reached("backup.floor")
    }

    /// Returns how far replay may have come, and the time. minRecoveryPoint says less: it is moved ahead of pages, but
    /// not of pg_filenode.map, of a database's folder that is removed, or, without hot_standby, of pg_xact
    /// (relmap_redo, dbase_redo, xact_redo_commit). They are ahead of it until the next commit is replayed, which
    /// recovery_min_apply_delay puts off.
    ///
    /// If the server can't be asked, it is the end of the WAL that is there, unless another timeline was taken before.
    fn may_have_replayed(&mut self) -> Result<(Lsn, jiff::Timestamp)> {
        if let Some(client) = self.survey.client.as_mut() {
            let (replayed, time) = session::replayed(client)?;
            return Ok((replayed.unwrap_or(Lsn::INVALID), time));
        }
        let (identity, start) = (self.wal_identity(), self.start_lsn());
        let folder = [self.cx.cluster.data_directory.join("pg_wal")];
        let (_, end) = copies::read(&folder, identity, start, Lsn::new(u64::MAX))?;
        let is_left = wal_run::left_before(&folder[0], identity, end)?.is_some();
        Ok((if is_left { Lsn::INVALID } else { end }, jiff::Timestamp::now()))
    }

    /// Reports how far back recovery of the set will start: a standby can't write a checkpoint, so pg_backup_start
    /// makes a restartpoint at the last one that was replayed.
    pub(super) fn tell_restartpoint(&mut self, start: Lsn) -> Result<()> {
        if let (true, Some(client)) = (self.is_standby(), self.survey.client.as_mut())
            && let (Some(replayed), _) = session::replayed(client)?
        {
            let behind = replayed.bytes_since(start).unwrap_or(0);
            tracing::info!(
                "the restartpoint is at {start}, the last checkpoint that was replayed, {} of WAL back; CHECKPOINT on the primary makes a newer one",
                crate::words::bytes(behind)
            );
        }
        Ok(())
    }

    /// Reads the label's checkpoint. Older than the snapshot's own pg_control is right, newer would not be.
    pub(super) fn read_first_control(&mut self) -> Result<()> {
        self.survey.facts.control = self.read_control()?;
        let control = self.control();
        let label = BackupLabel::from_control_file(
            control,
            BackupFrom::Standby,
            &self.started_at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string(),
            &format!("lockstep {}", self.set),
        )
        .map_err(|e| Error::failed("no backup_label can be made from pg_control").because(e))?;
        self.own_label = Some(label);
        steps::reached("backup.first-control")
    }

    /// Reads the end of the set, after every snapshot of data.
    pub(super) fn read_last_control(&mut self) -> Result<()> {
        let control = self.read_control()?;
        still_a_standby(&control, self.wal_identity())?;
        let start = self.start_lsn();
        if control.min_recovery_point == Lsn::INVALID || control.min_recovery_point < start {
            return Err(Error::failed(format!(
                "pg_control has minRecoveryPoint {} before its redo point {start}",
                control.min_recovery_point
            ))
            .with_hint("is the standby still being set up? take the backup once it has reached consistency"));
        }
        let (replayed, time) = self.may_have_replayed()?;
        self.floor = Some((replayed.max(control.min_recovery_point), time));
        self.last_control = Some(control);
        steps::reached("backup.last-control")
    }

    /// pg_backup_stop has already refused an earlier promotion; this is for the other strategies.
    pub(super) fn check_recovery(&mut self) -> Result<()> {
        still_a_standby(&self.read_control()?, self.wal_identity())?;
        steps::reached("backup.recovery-checked")
    }

    fn read_control(&self) -> Result<ControlFile> {
        instance::read_control(&self.cx.cluster.data_directory)
    }

    /// The segment with the end of the set isn't in any archive before it is full, which may take long on a quiet
    /// primary. The set doesn't need it, but point-in-time recovery beyond the set does.
    pub(super) fn switch_primary(&mut self) -> Result<()> {
        let switched = self.primary().and_then(|mut client| {
            client
                .query_one("SELECT pg_switch_wal()::text", &[])
                .map(drop)
                .map_err(|e| Error::sql("pg_switch_wal failed", e))
        });
        if let Err(error) = switched {
            tracing::warn!(error = %error.chain(), "the primary didn't switch its WAL segment: its archive gets the set's last one later");
        }
        Ok(())
    }

    /// Connects to the primary of this very cluster. After a pg_upgrade another one may answer at its address: what that
    /// one has archived proves nothing, although its segments have the same names.
    fn primary(&self) -> Result<Client> {
        let failed = |why: String| Error::failed(format!("primary: {why}"));
        let mut client = match connection::connect_primary(self.cx.cluster) {
            None => return Err(Error::failed("no \"primary\" is configured")),
            Some(connected) => connected.map_err(|no_server| failed(no_server.words()))?,
        };
        session::flushed(&mut client, self.control().system_identifier)
            .map_err(|error| failed(error.chain()))?;
        Ok(client)
    }

    /// Copies segments that this host no longer has from the primary, and notes those that are at least in its
    /// archive. If neither can be shown, returns `refusal`.
    pub(super) fn wal_from_elsewhere(
        &mut self,
        missing: &[WalSegment],
        refusal: Error,
    ) -> Result<()> {
        let identity = self.wal_identity();
        let mut client = match self.primary() {
            Ok(client) => client,
            Err(error) => {
                tracing::warn!(error = %error.chain(), "WAL is gone from the standby's pg_wal");
                return Err(refusal);
            }
        };
        let to = self.cx.state.set_directory(&self.set).join("wal");
        files::create_directories(&to)?;
        for segment in missing {
            let name = segment.file_name(identity.segment_size);
            match fetch(&mut client, &name, identity, &to) {
                Ok(()) => {
                    wal::check(&to, identity, &[*segment])?;
                    self.wal.fetched.push(name);
                }
                Err(error) => {
                    tracing::debug!(error = %error.chain(), %name, "not on the primary");
                    files::remove_file(&to.join(&name))?;
                    if !is_archived(&mut client, &name)? {
                        return Err(refusal);
                    }
                    self.wal.archived.push(name);
                }
            }
        }
        files::sync_directory(&to)
    }
}

/// Checks that pg_control says that recovery continues, on the timeline on which the set began.
fn still_a_standby(control: &ControlFile, identity: WalIdentity) -> Result<()> {
    if !matches!(control.state, DbState::InArchiveRecovery | DbState::ShutDownedInRecovery) {
        return Err(Refusal::Promoted { state: control.state.as_str() }.into());
    }
    let (from, to) = (identity.timeline.get(), control.min_recovery_point_timeline);
    if from != to {
        return Err(Refusal::TimelineChanged { from, to }.into());
    }
    Ok(())
}

/// Reads a segment from the primary's pg_wal; that requires pg_read_server_files.
fn fetch(client: &mut Client, name: &str, identity: WalIdentity, to: &Path) -> Result<()> {
    use std::io::Write as _;
    let path = to.join(name);
    let mut file = std::fs::File::create(&path).map_err(Error::io("create", &path))?;
    let size = identity.segment_size.bytes();
    for offset in (0..size).step_by(CHUNK as usize) {
        let length = i64::from(CHUNK.min(size - offset));
        let row = client
            .query_one(
                "SELECT pg_read_binary_file('pg_wal/' || $1, $2, $3)",
                &[&name, &i64::from(offset), &length],
            )
            .map_err(|e| Error::sql(format!("cannot read {name} from the primary's pg_wal"), e))?;
        let bytes: &[u8] = column(&row, 0)?;
        file.write_all(bytes).map_err(Error::io("write", &path))?;
    }
    file.sync_all().map_err(Error::io("sync", &path))
}

/// Checks that the primary's archiver has stored the segment.
fn is_archived(client: &mut Client, name: &str) -> Result<bool> {
    let row = client
        .query_one("SELECT last_archived_wal FROM pg_stat_archiver", &[])
        .map_err(|e| Error::sql("cannot ask the primary what is archived", e))?;
    let last: Option<&str> = column(&row, 0)?;
    Ok(last.is_some_and(|last| proves(last, name)))
}

/// Whether an archive whose newest file is `last` has the segment `name`: it is filled in order (pgarch.c), so the same
/// or a later segment on the same timeline is proof. A history or backup file may be the last one: its name has another
/// form, or is longer. `NAME.partial` is the last part of a timeline, of which nobody archives the whole (xlog.c,
/// `CleanupAfterArchiveRecovery`).
fn proves(last: &str, name: &str) -> bool {
    let same_timeline = last.get(..8).is_some_and(|timeline| Some(timeline) == name.get(..8));
    let whole = !last.ends_with(".partial");
    same_timeline && last.get(..24).is_some_and(|last| last > name || (last == name && whole))
}

/// Returns the segments that `pg_wal` doesn't have.
pub(super) fn missing(
    pg_wal: &Path,
    identity: WalIdentity,
    needed: &[WalSegment],
) -> Vec<WalSegment> {
    let there: BTreeSet<String> = std::fs::read_dir(pg_wal)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    let gone = |segment: &&WalSegment| !there.contains(&segment.file_name(identity.segment_size));
    needed.iter().filter(gone).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::proves;

    #[test]
    fn an_archive_has_what_comes_before_its_newest_segment_and_no_partial_one() {
        let name = "0000000100000000000000A0";
        for last in [name, "0000000100000000000000A1", "0000000100000000000000A0.00000028.backup"] {
            assert!(proves(last, name), "{last}");
        }
        assert!(proves("0000000100000000000000A1.partial", name));
        let no_proof = [
            "00000001000000000000009F",
            "0000000100000000000000A0.partial",
            "00000001.history",
            "0000000200000000000000A1",
            "",
        ];
        for last in no_proof {
            assert!(!proves(last, name), "{last}");
        }
    }
}
