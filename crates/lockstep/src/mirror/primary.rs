//! What a mirror asks its primary for: its identity, its tablespaces, the settings that a standby must match, and its
//! slots.

use pgfiles::lsn::SystemIdentifier;
use postgres::Client;
use postgres::error::SqlState;

use super::record::StandbySettings;
use crate::error::{Error, Result};
use crate::postgres::connection;
use crate::postgres::conninfo::Conninfo;
use crate::postgres::file_settings::{self, FileSettings};
use crate::postgres::row::column;
use crate::postgres::text::Text;

/// A connection to a primary.
pub(super) struct Primary {
    client: Client,
}

/// The facts from which a mirror is planned.
#[derive(Debug, Clone)]
pub(super) struct Facts {
    pub major: u32,
    pub system_identifier: SystemIdentifier,
    /// OID, name and location of the tablespaces outside the data directory.
    pub tablespaces: Vec<(u32, String, String)>,
    pub settings: StandbySettings,
    /// The bootstrap superuser.
    pub superuser: String,
    pub dbname: String,
    pub may_replicate: bool,
    /// It is itself a standby.
    pub in_recovery: bool,
    pub free_slots: i64,
    pub free_senders: i64,
    /// The size of all databases, in bytes.
    pub size: u64,
    /// full_page_writes; without it the mirror can't be backed up with `label`.
    pub full_page_writes: bool,
    /// synchronous_standby_names.
    pub synchronous: String,
    /// Pages have checksums or hint bits are logged, so pg_rewind can be used.
    pub may_rewind: bool,
}

impl Facts {
    /// Says so if commits on the primary may wait for the mirror with this slot, which is its application_name too.
    /// `*` is every standby, and also pg_basebackup, which with a slot reports what it has synced
    /// (SyncRepGetStandbyPriority in syncrep.c, ReceiveXlogStream in receivelog.c).
    pub(super) fn waits_for(&self, slot: &str) -> Option<String> {
        let is_it = |name: &str| name == "*" || name.eq_ignore_ascii_case(slot);
        let between = |c: char| c.is_ascii_whitespace() || ",()".contains(c);
        let mut names = self.synchronous.split(between).map(|name| name.trim_matches('"'));
        names.any(is_it).then(|| {
            format!(
                "the primary's synchronous_standby_names is \"{}\", which makes the mirror a synchronous standby: the primary reports as committed what only the mirror may have, and waits for it where no other standby answers",
                self.synchronous
            )
        })
    }

    /// Warns if they may.
    pub(super) fn warn_if_it_waits_for(&self, slot: &str) {
        if let Some(what) = self.waits_for(slot) {
            tracing::warn!("{what}: {NAME_STANDBYS}");
        }
    }
}

/// What to do about it.
pub(super) const NAME_STANDBYS: &str = "name the standbys that commits shall wait for in synchronous_standby_names, and reload the primary's configuration";

/// A slot as the primary shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// A WAL sender is using it.
    pub active: bool,
    /// `reserved`, `extended`, `unreserved` or `lost`.
    pub wal_status: Option<String>,
    /// Why it was invalidated, as PostgreSQL 17 and later say it: `wal_removed`, `idle_timeout`.
    pub invalidation_reason: Option<String>,
    /// The oldest WAL it keeps.
    pub restart_lsn: Option<String>,
    /// Bytes of WAL that it keeps.
    pub kept_bytes: Option<i64>,
    /// Bytes that can still be written before the slot is lost; `None` if there is no limit.
    pub safe_bytes: Option<i64>,
}

impl Slot {
    /// Whether it keeps nothing any more, and can't be used again.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.wal_status.as_deref() == Some("lost")
    }
}

/// How far its WAL is.
pub(super) struct Position {
    /// It is itself a standby, and this is what it has replayed.
    pub in_recovery: bool,
    pub lsn: String,
    pub timeline: i32,
}

impl Primary {
    /// Connects.
    ///
    /// # Errors
    /// When the primary can't be reached.
    pub(super) fn connect(
        conninfo: &Conninfo,
        password_file: Option<&std::path::Path>,
    ) -> Result<Self> {
        match connection::connect_to(conninfo, password_file) {
            Ok(client) => Ok(Self { client }),
            Err(no_server) => {
                let why = no_server.words();
                let hint = match why.contains("TLS handshake") {
                    true => {
                        "check sslmode, sslrootcert, sslcert and host in --from, and the primary's ssl_cert_file; `psql` with the same connection string says what libpq thinks of it"
                    }
                    false => "check --from and --password-file, and pg_hba.conf of the primary",
                };
                Err(Error::failed(format!("the primary: {why}")).with_hint(hint))
            }
        }
    }

    /// Checks that it is the cluster with this system identifier.
    ///
    /// # Errors
    /// When it is another one, or the statement fails.
    pub(super) fn check_is(&mut self, system_identifier: &str) -> Result<()> {
        self.difference(system_identifier)?.map_or(Ok(()), |words| Err(Error::failed(words)))
    }

    /// Says so if it isn't the cluster with this system identifier. After a pg_upgrade another one answers at its
    /// address: a mirror can't follow that, and slots there are none of the mirror's.
    ///
    /// # Errors
    /// When the statement fails.
    pub(super) fn difference(&mut self, system_identifier: &str) -> Result<Option<String>> {
        let row = self
            .client
            .query_one("SELECT system_identifier FROM pg_control_system()", &[])
            .map_err(|e| Error::sql("cannot ask the primary which cluster it is", e))?;
        let found = SystemIdentifier::new(column::<i64>(&row, 0)?.cast_unsigned()).to_string();
        Ok((found != system_identifier).then(|| {
            format!(
                "what answers there is another cluster: its system identifier is {found}, the mirror's is {system_identifier}"
            )
        }))
    }

    /// Asks for all facts.
    ///
    /// # Errors
    /// When a statement fails.
    pub(super) fn facts(&mut self) -> Result<Facts> {
        let row = self
            .client
            .query_one(FACTS, &[])
            .map_err(|e| Error::sql("cannot ask the primary for its settings", e))?;
        let number =
            |name: &str| column::<i32>(&row, name).map(|number| u32::try_from(number).unwrap_or(0));
        let tablespaces = self
            .client
            .query(
                "SELECT oid, spcname::text, pg_tablespace_location(oid) FROM pg_tablespace
                  WHERE pg_tablespace_location(oid) LIKE '/%' ORDER BY oid",
                &[],
            )
            .map_err(|e| Error::sql("cannot list the primary's tablespaces", e))?;
        Ok(Facts {
            major: number("version_num")? / 10_000,
            system_identifier: SystemIdentifier::new(
                column::<i64>(&row, "system_identifier")?.cast_unsigned(),
            ),
            tablespaces: tablespaces.iter().map(tablespace).collect::<Result<_>>()?,
            settings: StandbySettings {
                max_connections: number("max_connections")?,
                max_worker_processes: number("max_worker_processes")?,
                max_wal_senders: number("max_wal_senders")?,
                max_prepared_transactions: number("max_prepared_transactions")?,
                max_locks_per_transaction: number("max_locks_per_transaction")?,
            },
            superuser: column::<Text>(&row, "superuser")?.lossy(),
            dbname: column::<Text>(&row, "dbname")?.lossy(),
            may_replicate: column(&row, "may_replicate")?,
            in_recovery: column(&row, "in_recovery")?,
            free_slots: column(&row, "free_slots")?,
            free_senders: column(&row, "free_senders")?,
            size: column::<i64>(&row, "size")?.max(0).unsigned_abs(),
            full_page_writes: column(&row, "full_page_writes")?,
            synchronous: column::<Text>(&row, "synchronous")?.lossy(),
            may_rewind: column(&row, "may_rewind")?,
        })
    }

    /// The settings of its postgresql.conf, with includes resolved, for a data directory that has no such file
    /// (Debian keeps it in /etc).
    pub(super) fn file_settings(&mut self) -> FileSettings {
        let settings = file_settings::read(&mut self.client).unwrap_or_else(|error| {
            tracing::warn!(
                error = %error.chain(),
                "the primary's postgresql.conf lies outside its data directory and can't be read over SQL: the mirror, and what is restored of it, has defaults"
            );
            FileSettings::default()
        });
        if let Some(doubt) = &settings.doubt {
            tracing::warn!(
                "of the primary: {}; the mirror, and what is restored of it, has what the primary runs with in place of that: {}",
                doubt.words(),
                doubt.hint()
            );
        }
        settings
    }

    /// Returns the slot `name`.
    ///
    /// # Errors
    /// When a statement fails.
    pub(super) fn slot(&mut self, name: &str) -> Result<Option<Slot>> {
        let row = self
            .client
            .query_opt(
                "SELECT active, wal_status, to_jsonb(it) ->> 'invalidation_reason', restart_lsn::text,
                        safe_wal_size,
                        pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn()
                                             ELSE pg_current_wal_lsn() END, restart_lsn)::bigint
                   FROM pg_replication_slots AS it WHERE slot_name = $1",
                &[&name],
            )
            .map_err(|e| Error::sql("cannot look at the slot on the primary", e))?;
        let Some(row) = row else { return Ok(None) };
        Ok(Some(Slot {
            active: column(&row, 0)?,
            wal_status: column(&row, 1)?,
            invalidation_reason: column(&row, 2)?,
            restart_lsn: column(&row, 3)?,
            safe_bytes: column(&row, 4)?,
            kept_bytes: column(&row, 5)?,
        }))
    }

    /// Makes the physical slot, which keeps WAL from then on.
    ///
    /// # Errors
    /// The primary's reason.
    pub(super) fn make_slot(&mut self, name: &str) -> Result<()> {
        match self.make_new_slot(name)? {
            true => Ok(()),
            false => Err(Error::failed(format!("the primary has a slot \"{name}\" already"))),
        }
    }

    /// The same; returns whether it was made: not if there is one of that name, which is somebody else's.
    ///
    /// # Errors
    /// The primary's reason.
    pub(super) fn make_new_slot(&mut self, name: &str) -> Result<bool> {
        let made =
            self.client.execute("SELECT pg_create_physical_replication_slot($1, true)", &[&name]);
        match made {
            Err(e) if e.code() == Some(&SqlState::DUPLICATE_OBJECT) => Ok(false),
            made => made.map(|_| true).map_err(|e| {
                Error::sql(format!("cannot make the slot \"{name}\" on the primary"), e)
            }),
        }
    }

    /// Drops the slot; it is no error if it doesn't exist. A sender that still uses it is ended first.
    ///
    /// # Errors
    /// The primary's reason.
    pub(super) fn drop_slot(&mut self, name: &str) -> Result<()> {
        let mut tries = 50;
        loop {
            tries -= 1;
            let dropped = self.client.execute(
                "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots
                  WHERE slot_name = $1",
                &[&name],
            );
            match dropped {
                Ok(_) => return Ok(()),
                // The mirror's receiver ended a moment ago, and its sender hasn't noticed yet.
                Err(e) if e.code() == Some(&SqlState::OBJECT_IN_USE) && tries > 0 => {
                    std::thread::sleep(std::time::Duration::from_millis(200));
                }
                Err(e) => {
                    return Err(Error::sql(format!("cannot drop the slot \"{name}\""), e));
                }
            }
        }
    }

    /// Returns the position of its WAL.
    ///
    /// # Errors
    /// When the statement fails.
    pub(super) fn position(&mut self) -> Result<Position> {
        let row = self
            .client
            .query_one(
                "SELECT pg_is_in_recovery(),
                        CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn()
                             ELSE pg_current_wal_lsn() END::text,
                        (SELECT timeline_id FROM pg_control_checkpoint())",
                &[],
            )
            .map_err(|e| Error::sql("cannot ask the primary how far it is", e))?;
        Ok(Position {
            in_recovery: column(&row, 0)?,
            lsn: column(&row, 1)?,
            timeline: column(&row, 2)?,
        })
    }
}

/// Reads a tablespace; its location is given to pg_basebackup as text.
fn tablespace(row: &postgres::Row) -> Result<(u32, String, String)> {
    let (name, location) = (column::<Text>(row, 1)?.lossy(), column::<Text>(row, 2)?);
    let shown = location.lossy();
    let location = String::from_utf8(location.into_bytes()).map_err(|_| {
        Error::failed(format!(
            "tablespace {name} of the primary is at \"{shown}\", which isn't UTF-8"
        ))
        .with_hint("move it to a path that is, on the primary")
    })?;
    Ok((column(row, 0)?, name, location))
}

const FACTS: &str = "
    SELECT current_setting('server_version_num')::int AS version_num,
           (SELECT system_identifier FROM pg_control_system()) AS system_identifier,
           current_setting('max_connections')::int AS max_connections,
           current_setting('max_worker_processes')::int AS max_worker_processes,
           current_setting('max_wal_senders')::int AS max_wal_senders,
           current_setting('max_prepared_transactions')::int AS max_prepared_transactions,
           current_setting('max_locks_per_transaction')::int AS max_locks_per_transaction,
           (SELECT rolname::text FROM pg_roles WHERE oid = 10) AS superuser,
           current_database()::text AS dbname,
           (SELECT rolsuper OR rolreplication FROM pg_roles WHERE rolname = current_user) AS may_replicate,
           pg_is_in_recovery() AS in_recovery,
           current_setting('max_replication_slots')::bigint
             - (SELECT count(*) FROM pg_replication_slots) AS free_slots,
           current_setting('max_wal_senders')::bigint
             - (SELECT count(*) FROM pg_stat_replication) AS free_senders,
           (SELECT coalesce(sum(pg_database_size(oid)), 0)::bigint FROM pg_database
             WHERE has_database_privilege(oid, 'CONNECT')) AS size,
           current_setting('full_page_writes') = 'on' AS full_page_writes,
           current_setting('synchronous_standby_names') AS synchronous,
           current_setting('data_checksums') = 'on' OR current_setting('wal_log_hints') = 'on' AS may_rewind";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_standby_is_the_mirror_too() {
        let facts = |names: &str| Facts {
            major: 15,
            system_identifier: SystemIdentifier::new(7),
            tablespaces: Vec::new(),
            settings: crate::mirror::record::tests::record().standby_settings,
            superuser: "postgres".into(),
            dbname: "postgres".into(),
            may_replicate: true,
            in_recovery: false,
            free_slots: 1,
            free_senders: 2,
            size: 0,
            full_page_writes: true,
            synchronous: names.into(),
            may_rewind: true,
        };
        for names in ["*", "\"*\"", "ANY 1 (*)", "FIRST 2 (s1, *)", "2(s1,LOCKSTEP_mirror_m)"] {
            let said = facts(names).waits_for("lockstep_mirror_m").expect(names);
            assert!(said.contains(names), "{said}");
        }
        for names in ["", "s1", "ANY 1 (s1, s2)", "\"a*b\"", "lockstep_mirror_main"] {
            assert_eq!(facts(names).waits_for("lockstep_mirror_m"), None, "{names}");
        }
    }
}
