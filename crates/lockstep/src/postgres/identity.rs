//! Checks whether the server that answers is the one that runs in the local data directory.
//!
//! What could go wrong: the name in `host` moves to another node (an address that moves with a failover, a proxy,
//! DNS). A standby has its primary's system identifier, and usually the same data_directory too. The backup would
//! then be started on one node while the other one's files are frozen: a set that restores without an error and is
//! corrupt.
//!
//! So the server is asked what it reads in its pg_control (the functions of pg_controldata.c, which everybody may
//! call), and when it started. No two servers have the same pg_control: a primary has no minRecoveryPoint, and each
//! writes its own checkpoints and restartpoints at its own times.

use std::path::Path;
use std::time::Duration;

use pgfiles::control_file::{ControlFile, DbState};
use pgfiles::lsn::Lsn;
use postgres::Client;
use postgres::error::SqlState;

use super::instance;
use super::row::column;
use crate::error::{Error, Result};

/// How often the server is asked again if pg_control was written meanwhile. A standby writes it with nearly every
/// page that it flushes.
const TRIES: u32 = 100;
const PAUSE: Duration = Duration::from_millis(20);

/// How many comparisons must agree that the servers differ: a promotion ends recovery in shared memory first, and
/// writes pg_control a moment later (StartupXLOG, xlog.c).
const AGREE: u32 = 10;

/// The accepted difference in seconds between two start times. postmaster.pid has the time at which the postmaster
/// began (MyStartTime). pg_postmaster_start_time() is the time at which it was ready to start others
/// (PostmasterMain), which is later if it had many temporary files to remove. A negative difference is from a clock
/// that was set back.
const STARTED: std::ops::RangeInclusive<i64> = -5..=900;

/// What distinguishes a running server from all others of its cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// `pg_control_last_modified`, in seconds since 1970.
    pub control_time: i64,
    /// Checkpoint, redo point and minRecoveryPoint. Not as text, because PostgreSQL's versions write LSNs
    /// differently.
    pub positions: [Lsn; 3],
    /// The timeline of minRecoveryPoint.
    pub timeline: u32,
    /// It is in recovery, according to itself or to pg_control's state.
    pub in_recovery: bool,
    /// When its postmaster began, in seconds since 1970; `None` if unknown.
    pub started: Option<i64>,
}

impl Identity {
    /// The identity according to the files of a data directory: pg_control and the third line of postmaster.pid.
    #[must_use]
    pub fn of_files(control: &ControlFile, started: Option<i64>) -> Self {
        Self {
            control_time: control.time,
            positions: [
                control.checkpoint,
                control.checkpoint_copy.redo,
                control.min_recovery_point,
            ],
            timeline: control.min_recovery_point_timeline,
            in_recovery: matches!(control.state, DbState::InArchiveRecovery),
            started,
        }
    }

    /// How a server differs from the files, if it does; a pure function.
    #[must_use]
    pub fn difference(&self, files: &Self) -> Option<String> {
        let recovery = |is: bool| if is { "in recovery" } else { "not in recovery" };
        if self.in_recovery != files.in_recovery {
            return Some(format!(
                "it says that it is {}, and pg_control there says {}",
                recovery(self.in_recovery),
                recovery(files.in_recovery)
            ));
        }
        let names = ["checkpoint", "redo point", "minRecoveryPoint"];
        let positions = self.positions.iter().zip(&files.positions).zip(names);
        let unlike = positions.into_iter().find(|((own, there), _)| own != there);
        if let Some(((own, there), name)) = unlike {
            return Some(format!("its pg_control has the {name} {own}, the one there {there}"));
        }
        if self.timeline != files.timeline {
            return Some(format!(
                "its pg_control has the timeline of minRecoveryPoint {}, the one there {}",
                self.timeline, files.timeline
            ));
        }
        if self.control_time != files.control_time {
            return Some(format!(
                "its pg_control was written at {}, the one there at {} (seconds since 1970)",
                self.control_time, files.control_time
            ));
        }
        let (own, there) = (self.started?, files.started?);
        (!STARTED.contains(&(own - there))).then(|| {
            format!(
                "it was started at {own}, and postmaster.pid there says {there} (seconds since 1970)"
            )
        })
    }
}

/// How the server differs from the one that runs in `data_directory`; `None` if it is that one.
///
/// # Errors
/// When a statement fails, pg_control can't be read, or it is written all the time.
pub fn difference(client: &mut Client, data_directory: &Path) -> Result<Option<String>> {
    let mut agreed = 0;
    for _ in 0..TRIES {
        let before = instance::read_control(data_directory)?;
        let server = ask(client)?;
        let after = instance::read_control(data_directory)?;
        let started = instance::postmaster_start(data_directory);
        let unlike = |control| server.as_ref()?.difference(&Identity::of_files(control, started));
        if server.is_some() {
            let (Some(_), Some(difference)) = (unlike(&before), unlike(&after)) else {
                return Ok(None);
            };
            // If it was written between the two reads, this comparison doesn't count.
            agreed = if before.to_bytes() == after.to_bytes() { agreed + 1 } else { 0 };
            if agreed >= AGREE {
                return Ok(Some(difference));
            }
        }
        std::thread::sleep(PAUSE);
    }
    Err(Error::failed(format!(
        "pg_control in \"{}\" is written so often that nobody can tell whether the server that answers is the one that writes it",
        data_directory.display()
    ))
    .with_hint("take the backup again; if it fails again, check that data_directory is this server's own"))
}

/// The server's identity; `None` if its own read of pg_control was torn by a write.
fn ask(client: &mut Client) -> Result<Option<Identity>> {
    let row = match client.query_one(IDENTITY, &[]) {
        // "calculated CRC checksum does not match value stored in file"
        Err(error) if error.code() == Some(&SqlState::INTERNAL_ERROR) => return Ok(None),
        other => other.map_err(|e| Error::sql("cannot ask which server this is", e))?,
    };
    let lsn = |name: &str| {
        column::<String>(&row, name)?
            .parse::<Lsn>()
            .map_err(|e| Error::failed(format!("the server returned a strange {name}")).because(e))
    };
    Ok(Some(Identity {
        control_time: column(&row, "control_time")?,
        positions: [lsn("checkpoint")?, lsn("redo")?, lsn("min_recovery")?],
        timeline: u32::try_from(column::<i32>(&row, "timeline")?).unwrap_or(0),
        in_recovery: column(&row, "in_recovery")?,
        started: Some(column(&row, "started")?),
    }))
}

const IDENTITY: &str = "
    SELECT extract(epoch FROM s.pg_control_last_modified)::bigint AS control_time,
           c.checkpoint_lsn::text AS checkpoint,
           c.redo_lsn::text AS redo,
           r.min_recovery_end_lsn::text AS min_recovery,
           r.min_recovery_end_timeline AS timeline,
           pg_is_in_recovery() AS in_recovery,
           floor(extract(epoch FROM pg_postmaster_start_time()))::bigint AS started
      FROM pg_control_system() s, pg_control_checkpoint() c, pg_control_recovery() r";

#[cfg(test)]
mod tests {
    use super::*;

    fn standby() -> Identity {
        Identity {
            control_time: 1_700_000_000,
            positions: ["0/5000060", "0/5000028", "0/6000000"].map(|lsn| lsn.parse().unwrap()),
            timeline: 1,
            in_recovery: true,
            started: Some(1_699_990_000),
        }
    }

    #[test]
    fn a_server_is_itself() {
        assert_eq!(standby().difference(&standby()), None);
        let unknown = Identity { started: None, ..standby() };
        assert_eq!(standby().difference(&unknown), None);
        let slow = Identity { started: Some(1_699_990_600), ..standby() };
        assert_eq!(slow.difference(&standby()), None, "ten minutes of temporary files");
    }

    #[test]
    fn its_primary_or_another_standby_is_not() {
        let primary = Identity {
            positions: ["0/5000060", "0/5000028", "0/0"].map(|lsn| lsn.parse().unwrap()),
            timeline: 0,
            in_recovery: false,
            ..standby()
        };
        let said = primary.difference(&standby()).unwrap();
        assert_eq!(
            said,
            "it says that it is not in recovery, and pg_control there says in recovery"
        );
        let later = Identity { started: Some(1_699_991_000), ..standby() };
        assert!(later.difference(&standby()).unwrap().contains("it was started at 1699991000"));
        let earlier = Identity { started: Some(1_699_989_000), ..standby() };
        assert!(earlier.difference(&standby()).is_some());
        let written = Identity { control_time: 1_700_000_001, ..standby() };
        assert!(written.difference(&standby()).unwrap().contains("was written at 1700000001"));
        for at in 0..3 {
            let mut other = standby();
            other.positions[at] = Lsn::new(7);
            assert!(other.difference(&standby()).unwrap().contains(" 0/7, the one there "));
        }
        let other = Identity { timeline: 7, ..standby() };
        assert!(other.difference(&standby()).unwrap().contains(" 7, the one there 1"));
    }
}
