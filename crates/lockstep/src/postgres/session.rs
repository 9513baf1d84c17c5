//! The backup session as types: only a stopped backup can return a label.
//!
//! A non-exclusive backup belongs to its connection (xlogfuncs.c): if that ends early, for whatever reason,
//! PostgreSQL leaves backup mode by itself. The temporary slot belongs to a connection of its own in the same way. So
//! nothing has to be undone here after an error; it is enough to drop the connections.

use pgfiles::backup_label::BackupLabel;
use pgfiles::lsn::{Lsn, SystemIdentifier, TimelineId};
use pgfiles::wal_name::{WalSegment, WalSegmentSize};
use postgres::Client;
use postgres::error::SqlState;
use postgres::fallible_iterator::FallibleIterator;

use super::connection;
use super::row::column;
use super::text::Text;
use super::waiting::{until_interrupted, was_interrupted};
use crate::config::ClusterConfig;
use crate::error::{Error, Result};
use crate::plan::facts::Following;
use crate::refusal::Refusal;

/// The server's clock as RFC 3339, whatever its DateStyle and TimeZone. On a standby whose clock is behind the
/// primary's, the last replayed commit counts, so that no commit of the set is later.
const NOW: &str = r#"to_char(greatest(clock_timestamp(), pg_last_xact_replay_timestamp())
    AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')"#;

/// A backup that has begun.
#[derive(Debug)]
pub struct Started {
    /// The redo location of the backup's checkpoint.
    pub start_lsn: Lsn,
    major: u32,
}

/// A backup that has ended.
#[derive(Debug)]
pub struct Stopped {
    /// The end of the end-of-backup record.
    pub stop_lsn: Lsn,
    /// backup_label, byte for byte.
    pub label_file: Vec<u8>,
    /// The same, parsed.
    pub label: BackupLabel,
    /// tablespace_map, byte for byte; empty where there are no tablespaces.
    pub tablespace_map: Vec<u8>,
    /// The server's clock at the end.
    pub stopped_at: jiff::Timestamp,
}

/// Receives what the server sent since the last statement: that it shuts down, or that somebody ended this session.
/// Otherwise the next statement would only report "broken pipe", and the reason would be lost.
///
/// Call it after a statement as well, once its rows are dropped: the client tells the server lazily that it is done
/// with a statement, and must not be the one to discover at that moment that the server is gone.
///
/// # Errors
/// The server's reason to end the session.
pub fn hear(client: &mut Client) -> Result<()> {
    let mut notifications = client.notifications();
    let mut waiting = notifications.timeout_iter(std::time::Duration::from_millis(1));
    while waiting.next().map_err(|e| Error::sql("the server ended the session", e))?.is_some() {}
    Ok(())
}

/// pg_backup_start; on 13 and 14 pg_start_backup(…, exclusive => false). `plain` is the label to use if the
/// database's encoding lacks characters of `label`.
///
/// # Errors
/// The server's reason; [`Error::Interrupted`] while waiting for a spread checkpoint.
pub fn start(
    client: &mut Client,
    major: u32,
    (label, plain): (&str, &str),
    fast: bool,
) -> Result<Started> {
    let statement = if major >= 15 {
        "SELECT pg_backup_start($1, fast => $2)::text"
    } else {
        "SELECT pg_start_backup($1, fast => $2, exclusive => false)::text"
    };
    let mut begin = |label: &str| {
        until_interrupted(client, |client| client.query_one(statement, &[&label, &fast]))
    };
    let row = match begin(label) {
        // The manifest keeps the user's words; backup_label doesn't need them.
        Err(e) if e.code() == Some(&SqlState::UNTRANSLATABLE_CHARACTER) => begin(plain),
        other => other,
    };
    let row = row.map_err(|e| match was_interrupted(&e) {
        true => Error::Interrupted { step: "backup.started".into() },
        false => refused("pg_backup_start failed", e),
    })?;
    let start_lsn = lsn(column(&row, 0)?)?;
    drop(row);
    hear(client)?;
    Ok(Started { start_lsn, major })
}

impl Started {
    /// pg_backup_stop(wait_for_archive => false); the set carries its own WAL.
    ///
    /// # Errors
    /// The server's reason.
    pub fn stop(self, client: &mut Client) -> Result<Stopped> {
        let function = if self.major >= 15 {
            "pg_backup_stop(wait_for_archive => false)"
        } else {
            "pg_stop_backup(exclusive => false, wait_for_archive => false)"
        };
        // Both files are bytes: a path may be in any encoding and must not be converted.
        client
            .batch_execute("SET client_encoding = 'SQL_ASCII'")
            .map_err(|e| Error::sql("cannot set client_encoding", e))?;
        let statement = format!("SELECT lsn::text, labelfile, spcmapfile, {NOW} FROM {function}");
        let row =
            client.query_one(&statement, &[]).map_err(|e| refused("pg_backup_stop failed", e))?;
        let (label, map): (Text, Option<Text>) = (column(&row, 1)?, column(&row, 2)?);
        // The user's words in it are in the database's encoding; the rest is ASCII.
        let label_words = label.lossy();
        let label_file = label.into_bytes();
        let label = BackupLabel::parse(label_words.as_bytes()).map_err(|e| {
            Error::failed("the backup_label that pg_backup_stop returned isn't understood")
                .because(e)
        })?;
        Ok(Stopped {
            stop_lsn: lsn(column(&row, 0)?)?,
            label_file,
            label,
            tablespace_map: map.unwrap_or_default().into_bytes(),
            stopped_at: time(column(&row, 3)?)?,
        })
    }
}

/// A temporary physical slot on a new connection, with which it ends, and the LSN from which on it keeps the WAL. That
/// LSN is the redo point of the newest checkpoint, also of one that is still being made (ReplicationSlotReserveWal in
/// slot.c takes the shared RedoRecPtr, which CreateCheckPoint in xlog.c sets at its beginning), so pg_control may be
/// one checkpoint behind it.
///
/// # Errors
/// The server's reason.
pub fn hold_slot(config: &ClusterConfig, name: &str) -> Result<(Client, Lsn)> {
    let mut client = connection::connect(config).map_err(|no_server| {
        Error::failed(format!("the slot's own connection: {}", no_server.words()))
    })?;
    // The sessions of one backup are told apart in pg_stat_activity.
    client
        .batch_execute("SET application_name = 'lockstep slot'")
        .map_err(|e| Error::sql("cannot set application_name", e))?;
    let row = client
        .query_one(
            "SELECT lsn::text FROM pg_create_physical_replication_slot($1, true, true)",
            &[&name],
        )
        .map_err(|e| Error::sql(format!("cannot make the temporary slot \"{name}\""), e))?;
    let reserved = lsn(column(&row, 0)?)?;
    // While a row is held, the server's end of the statement stays unread.
    drop(row);
    hear(&mut client)?;
    Ok((client, reserved))
}

/// Writes a record to the WAL, flushes it, and returns its end and the server's time. Every page that was written to
/// its file before this call has a smaller LSN.
///
/// # Errors
/// The server's reason.
pub fn write_floor(client: &mut Client, set: &str) -> Result<(Lsn, jiff::Timestamp)> {
    // A transactional message gets a transaction id, so its commit is flushed. Its LSN is the end of a whole record,
    // which a flush position need not be.
    let row = client
        .query_one(
            &format!("SELECT pg_logical_emit_message(true, 'lockstep', $1)::text, {NOW}"),
            &[&format!("floor of set {set}")],
        )
        .map_err(|e| Error::sql("cannot write the floor's WAL record", e))?;
    let floor = (lsn(column(&row, 0)?)?, time(column(&row, 1)?)?);
    drop(row);
    hear(client)?;
    Ok(floor)
}

/// How far a standby has replayed (the end of a whole record), and the time. The set holds all of it, because replay
/// reads what is in pg_wal.
///
/// # Errors
/// The server's reason.
pub fn replayed(client: &mut Client) -> Result<(Option<Lsn>, jiff::Timestamp)> {
    let row = client
        .query_one(&format!("SELECT pg_last_wal_replay_lsn()::text, {NOW}"), &[])
        .map_err(|e| Error::sql("cannot ask how far the standby has replayed", e))?;
    let replayed = column::<Option<&str>>(&row, 0)?.map(lsn).transpose()?;
    let replayed = (replayed, time(column(&row, 1)?)?);
    drop(row);
    hear(client)?;
    Ok(replayed)
}

/// How far a primary's WAL is flushed, which is what standbys receive; `None` if it is in recovery itself.
///
/// # Errors
/// The server's reason, or that it belongs to another cluster.
pub fn flushed(client: &mut Client, cluster: SystemIdentifier) -> Result<Option<Lsn>> {
    let row = client
        .query_one(
            "SELECT CASE WHEN NOT pg_is_in_recovery() THEN pg_current_wal_flush_lsn()::text END,
                    (SELECT system_identifier FROM pg_control_system())",
            &[],
        )
        .map_err(|e| Error::sql("cannot ask the primary how far it is", e))?;
    let found = SystemIdentifier::new(column::<i64>(&row, 1)?.cast_unsigned());
    if found != cluster {
        return Err(Error::failed(format!(
            "it is of another cluster: its system identifier is {found}, the standby's is {cluster}"
        )));
    }
    column::<Option<&str>>(&row, 0)?.map(lsn).transpose()
}

/// The timeline on which a primary with segments of this size writes.
///
/// # Errors
/// The server's reason.
pub fn timeline(client: &mut Client, size: WalSegmentSize) -> Result<TimelineId> {
    // pg_control has it only once the first checkpoint after a promotion is done.
    let row = client
        .query_one("SELECT pg_walfile_name(pg_current_wal_flush_lsn())", &[])
        .map_err(|e| Error::sql("cannot ask the primary for its timeline", e))?;
    let segment = WalSegment::parse(column(&row, 0)?, size);
    let failed = |e| Error::failed("the server returned a strange name of a segment").because(e);
    segment.map(|segment| segment.timeline).map_err(failed)
}

/// Asks a standby how it follows.
///
/// # Errors
/// The server's reason.
pub fn following(client: &mut Client) -> Result<Following> {
    // A user who may not see the receiver's state still sees its process. One who may not see primary_conninfo gets
    // no value; then it counts as set, because a standby usually has one.
    let row = client
        .query_one(
            r#"SELECT EXISTS (SELECT FROM pg_stat_wal_receiver
                              WHERE pid IS NOT NULL AND coalesce(status, 'streaming') = 'streaming'),
                      coalesce((SELECT setting <> '' FROM pg_settings WHERE name = 'primary_conninfo'), true),
                      coalesce(pg_last_wal_receive_lsn() <= pg_last_wal_replay_lsn(), true),
                      coalesce(pg_last_wal_replay_lsn()::text, '0/0'),
                      CASE WHEN pg_is_in_recovery() THEN pg_is_wal_replay_paused() ELSE false END,
                      to_char(pg_last_xact_replay_timestamp() AT TIME ZONE 'UTC',
                              'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')"#,
            &[],
        )
        .map_err(|e| Error::sql("cannot ask how the standby follows", e))?;
    let following = Following {
        streams: column(&row, 0)?,
        should_stream: column(&row, 1)?,
        caught_up: column(&row, 2)?,
        replayed: column(&row, 3)?,
        paused: column(&row, 4)?,
        last_commit: column::<Option<&str>>(&row, 5)?.map(time).transpose()?,
    };
    drop(row);
    hear(client)?;
    Ok(following)
}

/// The error of the backup functions if the backup is, or became, invalid: a standby was promoted, or WAL was written
/// with full_page_writes=off (xlog.c, ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE).
fn refused(what: &str, error: postgres::Error) -> Error {
    match error.as_db_error() {
        Some(said) if *said.code() == SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE => {
            Refusal::ByPostgres {
                reason: said.message().to_owned(),
                advice: said.hint().map(str::to_owned),
            }
            .into()
        }
        None if error.is_closed() => Error::sql(what, error)
            .with_hint("the server or this connection ended: the server's log says why. Is a file system full?"),
        _ => Error::sql(what, error),
    }
}

fn lsn(text: &str) -> Result<Lsn> {
    text.parse().map_err(|e| {
        Error::failed(format!("the server returned a strange LSN {text:?}")).because(e)
    })
}

fn time(text: &str) -> Result<jiff::Timestamp> {
    text.parse().map_err(|e| {
        Error::failed(format!("the server returned a strange time {text:?}")).because(e)
    })
}
