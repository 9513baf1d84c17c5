//! The state of this host's mirrors: asked of the mirror, of its primary, and read from its log.

use std::path::Path;
use std::time::{Duration, Instant};

use postgres::Client;

use super::primary::{Position, Primary};
use super::record::{Home, Record};
use super::serve;
use super::verdict::{Own, Seen, Theirs, Verdict, judge, lag_bytes, wal_gone};
use crate::config::ClusterConfig;
use crate::error::{Error, Result};
use crate::files;
use crate::names::ClusterName;
use crate::postgres::connection;
use crate::postgres::row::column;

/// How long replay is watched where the log says that WAL is gone but an archive may have it. PostgreSQL tries the
/// archive again every five seconds (wal_retrieve_retry_interval).
const REPLAY_PATIENCE: Duration = Duration::from_secs(8);

/// A mirror as it is now.
#[derive(Debug, Clone)]
pub struct Status {
    /// What is remembered of it.
    pub record: Record,
    /// What was seen.
    pub seen: Seen,
    /// The conclusion.
    pub verdict: Verdict,
    /// Bytes of WAL that the primary has written and the mirror hasn't replayed; unknown if it is itself in recovery.
    pub lag_bytes: Option<u64>,
    /// 0 where it has replayed everything; otherwise how old the last replayed commit is.
    pub lag_seconds: Option<f64>,
}

impl Status {
    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        let is_free = |path: &Path| match files::is_empty_directory(path) {
            Ok(is_empty) => is_empty,
            Err(_) => !path.exists() && !path.is_symlink(),
        };
        self.verdict.hint(self.record.name.as_str(), is_free)
    }
}

/// Looks at one mirror, or at all.
///
/// # Errors
/// When there is no such mirror, or the records can't be read.
pub fn look(home: &Home, name: Option<&ClusterName>) -> Result<Vec<Status>> {
    let records = match name {
        Some(name) => vec![home.find(name)?],
        None => home.records()?,
    };
    records.into_iter().map(|record| look_at(home, record)).collect()
}

fn look_at(home: &Home, record: Record) -> Result<Status> {
    let cluster = record.as_cluster()?;
    // A file on a suspended pool can't be looked at without waiting for good.
    let suspended = record.suspended(&home.zfs).map(str::to_owned);
    let answers = suspended.is_none();
    let running = answers && serve::is_running(&record).unwrap_or(false);
    let own = if running { ask_mirror(&cluster) } else { Err("it isn't running".into()) };
    let log = if answers { files::tail(&record.log()) } else { Vec::new() };
    let is_fed = match &own {
        Ok(before) if record.restore_command.is_some() && !before.streams => {
            wal_gone(&log).is_some() && goes_on(&cluster, before)
        }
        _ => false,
    };
    let seen = Seen {
        phase: record.phase,
        busy: home.is_locked(&record.name),
        unmounted: if answers { record.unmounted(&home.zfs)? } else { None },
        suspended,
        running,
        log,
        is_fed,
        own,
        primary: ask_primary(&record),
    };
    let primary = seen.primary.as_ref().ok().filter(|theirs| !theirs.in_recovery);
    let current = primary.map(|theirs| theirs.current.as_str());
    let own = seen.own.as_ref().ok();
    let replayed = own.and_then(|own| own.replayed.as_deref());
    let lag = current.zip(replayed).and_then(|(current, replayed)| lag_bytes(current, replayed));
    let age = own.and_then(|own| own.last_commit_age);
    let lag_seconds = if lag == Some(0) { Some(0.0) } else { age };
    let verdict = judge(&seen);
    Ok(Status { record, seen, verdict, lag_bytes: lag, lag_seconds })
}

fn ask_mirror(cluster: &ClusterConfig) -> Result<Own, String> {
    let mut client = connection::connect(cluster).map_err(|no_server| no_server.words())?;
    own_facts(&mut client).map_err(|error| error.chain())
}

fn own_facts(client: &mut Client) -> Result<Own> {
    let row = client
        .query_one(
            "SELECT pg_is_in_recovery() AS in_recovery,
                    EXISTS (SELECT FROM pg_stat_wal_receiver WHERE status = 'streaming') AS streams,
                    CASE WHEN pg_is_in_recovery() THEN pg_is_wal_replay_paused() ELSE false END AS paused,
                    pg_last_wal_receive_lsn()::text AS received,
                    pg_last_wal_replay_lsn()::text AS replayed,
                    (SELECT timeline_id FROM pg_control_checkpoint()) AS timeline,
                    extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp())::float8 AS age",
            &[],
        )
        .map_err(|e| Error::sql("it can't be queried", e))?;
    Ok(Own {
        in_recovery: column(&row, "in_recovery")?,
        streams: column(&row, "streams")?,
        paused: column(&row, "paused")?,
        received: column(&row, "received")?,
        replayed: column(&row, "replayed")?,
        timeline: u32::try_from(column::<i32>(&row, "timeline")?).unwrap_or(0),
        last_commit_age: column::<Option<f64>>(&row, "age")?.map(|age| age.max(0.0)),
    })
}

/// Whether replay continues without streaming. It is watched for longer than PostgreSQL waits before it tries the
/// archive again.
fn goes_on(cluster: &ClusterConfig, before: &Own) -> bool {
    let until = Instant::now() + REPLAY_PATIENCE;
    while Instant::now() < until {
        std::thread::sleep(Duration::from_millis(500));
        match ask_mirror(cluster) {
            Ok(now) if now.replayed != before.replayed => return true,
            Ok(_) => {}
            Err(_) => return false,
        }
    }
    false
}

fn ask_primary(record: &Record) -> Result<Theirs, String> {
    let asked = || {
        let conninfo = record.conninfo()?;
        let mut primary = Primary::connect(&conninfo, record.password_file.as_deref())?;
        primary.check_is(&record.system_identifier)?;
        let Position { lsn: current, in_recovery, .. } = primary.position()?;
        Ok(Theirs { current, in_recovery, slot: primary.slot(&record.slot)? })
    };
    asked().map_err(|error: crate::error::Error| error.chain())
}
