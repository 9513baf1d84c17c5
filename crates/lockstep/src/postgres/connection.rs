//! The connection to the server, and what the server says about itself.
//!
//! Timeouts that a DBA set for applications would end the session in the middle of a backup, so the session switches
//! them off. What could go wrong: the server that answers belongs to another cluster. So its data directory and
//! system identifier are compared with those on disk.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use pgfiles::lsn::SystemIdentifier;
use postgres::error::SqlState;
use postgres::tls::{MakeTlsConnect, TlsConnect};
use postgres::{Client, NoTls, Socket};

use super::conninfo::Conninfo;
use super::row::column;
use super::text::Text;
use super::waiting::LOOK;
use super::{session, tls};
use crate::config::ClusterConfig;
use crate::error::{Error, Result};
use crate::plan::facts::{ConfigFiles, NoServer, ServerFacts};
use crate::{steps, threads};

/// How long connecting may take, if the connection string doesn't say.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a server that has taken the connection may take until it has let the user in: as long as PostgreSQL itself
/// allows by default (authentication_timeout).
const ANSWER: Duration = Duration::from_secs(60);

/// How often connecting to a standby is tried if its replay ends the session.
const CONNECT_TRIES: u32 = 5;

/// Connects according to the configuration.
///
/// # Errors
/// [`NoServer`] with the reason, also for an unreadable password file.
pub fn connect(config: &ClusterConfig) -> Result<Client, NoServer> {
    let host = config.host.as_deref().ok_or(NoServer::NotConfigured)?;
    let mut options = postgres::Config::new();
    options.host(host).port(config.port).user(&config.user).dbname(&config.dbname);
    options.connect_timeout(CONNECT_TIMEOUT);
    open(options, config.password_file.as_deref(), NoTls).map_err(|no_server| match no_server {
        NoServer::Failed(why) => {
            let ClusterConfig { port, user, .. } = config;
            NoServer::Failed(format!("host \"{host}\", port {port}, user \"{user}\": {why}"))
        }
        other => other,
    })
}

/// Connects to a standby's primary; `None` where the configuration names none.
///
/// # Errors
/// As [`connect`].
pub fn connect_primary(config: &ClusterConfig) -> Option<Result<Client, NoServer>> {
    let conninfo = Conninfo::parse(config.primary.as_deref()?)
        .map_err(|why| NoServer::Failed(format!("\"primary\" isn't understood: {why}")));
    let password_file = config.primary_password_file.as_deref();
    Some(conninfo.and_then(|conninfo| connect_to(&conninfo, password_file)))
}

/// Connects according to a connection string; keywords that only concern libpq are ignored. Those that would protect
/// the connection are refused before ([`Conninfo::for_lockstep`]).
///
/// # Errors
/// As [`connect`].
pub fn connect_to(conninfo: &Conninfo, password_file: Option<&Path>) -> Result<Client, NoServer> {
    let not_understood = |why: String| NoServer::Failed(format!("the connection string: {why}"));
    let options = options(conninfo).map_err(|e| not_understood(words(&e)))?;
    let tls = tls::connector(conninfo).map_err(not_understood)?;
    let is_elsewhere = password_file.is_none() && conninfo.get("passfile").is_some();
    open(options, password_file, tls).map_err(|no_server| match no_server {
        NoServer::Failed(why) if is_elsewhere && why.contains(NO_PASSWORD) => {
            NoServer::Failed(format!(
                "{why}: Lockstep doesn't read passfile; name a file with the password alone in primary_password_file (mirror create: --password-file)"
            ))
        }
        other => other,
    })
}

/// The driver's words where the server asks for a password and none was given.
const NO_PASSWORD: &str = "password missing";

/// The driver's options for a connection string.
fn options(conninfo: &Conninfo) -> Result<postgres::Config, postgres::Error> {
    let known = KNOWN.iter().filter_map(|name| Some((name, conninfo.get(name)?)));
    let mut known = known.fold(Conninfo::default(), |all, (name, value)| all.with(name, value));
    // TLS in the driver needs a host, whose name isn't verified then (tls::connector).
    if let (None | Some(""), Some(address)) = (conninfo.get("host"), conninfo.get("hostaddr")) {
        known = known.without("hostaddr").with("host", address);
    }
    // 0 is what the system has.
    if let Some(count) = conninfo.get("keepalives_count").filter(|count| *count != "0") {
        known = known.with("keepalives_retries", count);
    }
    // To libpq it is in milliseconds, to the driver in seconds.
    let timeout = conninfo.get("tcp_user_timeout").and_then(|text| text.parse::<u64>().ok());
    if let Some(timeout) = timeout {
        known = known.with("tcp_user_timeout", &timeout.div_ceil(1000).to_string());
    }
    if conninfo.get("target_session_attrs") == Some("primary") {
        known = known.with("target_session_attrs", "read-write");
    }
    // The TLS connector does the verification.
    let known = match conninfo.get("sslmode") {
        Some("verify-ca" | "verify-full") => known.with("sslmode", "require"),
        Some(mode @ ("disable" | "prefer" | "require")) => known.with("sslmode", mode),
        _ => known,
    };
    let mut options = known.to_string().parse::<postgres::Config>()?;
    if options.get_dbname().is_none() {
        options.dbname("postgres");
    }
    // 0 means no limit, and the driver then has none either.
    if conninfo.get("connect_timeout").is_none() {
        options.connect_timeout(CONNECT_TIMEOUT);
    }
    Ok(options)
}

/// The keywords of a connection string that have the same names in the driver.
const KNOWN: [&str; 13] = [
    "host",
    "hostaddr",
    "port",
    "user",
    "dbname",
    "options",
    "connect_timeout",
    "tcp_user_timeout",
    "keepalives",
    "keepalives_idle",
    "keepalives_interval",
    "target_session_attrs",
    "channel_binding",
];

fn open<T>(
    mut options: postgres::Config,
    password_file: Option<&Path>,
    tls: T,
) -> Result<Client, NoServer>
where
    T: MakeTlsConnect<Socket> + Clone + Send + Sync + 'static,
    T::TlsConnect: Send,
    T::Stream: Send,
    <T::TlsConnect as TlsConnect<Socket>>::Future: Send,
{
    options.application_name("lockstep");
    if let Some(path) = password_file {
        let text = std::fs::read_to_string(path).map_err(|e| {
            NoServer::Failed(format!("cannot read the password file \"{}\": {e}", path.display()))
        })?;
        options.password(text.lines().next().unwrap_or_default());
    }
    let failed = |error: postgres::Error| NoServer::Failed(words(&error));
    let limit = limit(&options);
    let mut tries = 1;
    let mut client = loop {
        match connect_in_time(&options, &tls, limit).map_err(NoServer::Failed)? {
            // A standby may end a session that has just begun, if replay must continue.
            Err(error)
                if error.code() == Some(&SqlState::T_R_SERIALIZATION_FAILURE)
                    && tries < CONNECT_TRIES =>
            {
                tries += 1;
            }
            other => break other.map_err(failed)?,
        }
    };
    // This is a statement of its own because it applies from the next one on: a hot standby refuses serializable
    // transactions.
    client.batch_execute("SET default_transaction_isolation = 'read committed'").map_err(failed)?;
    client.batch_execute(QUIET).map_err(failed)?;
    Ok(client)
}

/// How long connecting may take in all; `None` where the connection string sets no limit.
fn limit(options: &postgres::Config) -> Option<Duration> {
    let hosts = u32::try_from(options.get_hosts().len().max(1)).unwrap_or(u32::MAX);
    Some(options.get_connect_timeout()?.saturating_mul(hosts).saturating_add(ANSWER))
}

/// Connects. The driver's own timeout ends with the socket's connection, which the kernel makes for a server that hangs,
/// too: `check` would wait for ever, and nobody would be told anything any more.
///
/// # Errors
/// The reason in words if nothing has come by then, or a signal has; the inner one is the driver's.
fn connect_in_time<T>(
    options: &postgres::Config,
    tls: &T,
    limit: Option<Duration>,
) -> Result<Result<Client, postgres::Error>, String>
where
    T: MakeTlsConnect<Socket> + Clone + Send + Sync + 'static,
    T::TlsConnect: Send,
    T::Stream: Send,
    <T::TlsConnect as TlsConnect<Socket>>::Future: Send,
{
    let (done, is_done) = channel();
    let (own, tls) = (options.clone(), tls.clone());
    // If it hangs, it ends with this process.
    let connect = move || drop(done.send(own.connect(tls)));
    threads::start(connect).map_err(|error| error.chain())?;
    let since = Instant::now();
    loop {
        match is_done.recv_timeout(LOOK) {
            Ok(connected) => return Ok(connected),
            Err(RecvTimeoutError::Disconnected) => return Err("its thread ended early".into()),
            Err(RecvTimeoutError::Timeout) if steps::interrupted() => {
                return Err("interrupted".into());
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
        if let Some(limit) = limit.filter(|limit| since.elapsed() >= *limit) {
            return Err(format!(
                "it has not answered for {} s: does the server hang, or its storage?",
                limit.as_secs()
            ));
        }
    }
}

/// An error with its cause, which this crate's `Display` leaves out.
fn words(error: &postgres::Error) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

/// No timeout may end the session, no synchronous standby may delay its commits, and names are only looked up in
/// pg_catalog.
const QUIET: &str = "
    SELECT pg_catalog.set_config(name, value, false)
      FROM (VALUES ('statement_timeout', '0'), ('lock_timeout', '0'),
                   ('idle_in_transaction_session_timeout', '0'), ('idle_session_timeout', '0'),
                   ('transaction_timeout', '0'), ('synchronous_commit', 'local'),
                   ('search_path', 'pg_catalog')) AS wanted (name, value)
     WHERE pg_catalog.current_setting(name, true) IS NOT NULL";

/// Asks the server for everything that a plan considers.
///
/// # Errors
/// When a statement fails.
pub fn facts(client: &mut Client) -> Result<ServerFacts> {
    let ask = "the server's settings and this user's rights";
    let row = client.query_one(FACTS, &[]).map_err(|e| {
        let is_forbidden = e.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE);
        let error = Error::sql(format!("cannot ask for {ask}"), e);
        match is_forbidden {
            true => error.with_hint(
                "GRANT pg_read_all_settings TO the user of the configuration; docs/configuration.md, \"Rights\", has all that it needs",
            ),
            false => error,
        }
    })?;
    let bytes = |name: &str| column::<Option<Text>>(&row, name).map(Option::unwrap_or_default);
    let text = |name: &str| bytes(name).map(|text| text.lossy());
    let on = |name: &str| text(name).map(|text| text == "on");
    let version_num = u32::try_from(column::<i32>(&row, "version_num")?).unwrap_or(0);
    let in_recovery: bool = column(&row, "in_recovery")?;
    let free_slots = column::<i64>(&row, "free_slots")?;
    let archiver = [text("archive_library")?, text("archive_command")?];
    Ok(ServerFacts {
        version_num,
        version: text("version")?,
        system_identifier: SystemIdentifier::new(
            column::<i64>(&row, "system_identifier")?.cast_unsigned(),
        ),
        data_directory: bytes("data_directory")?.into_path(),
        in_recovery,
        full_page_writes: on("full_page_writes")?,
        wal_level: text("wal_level")?,
        archive_mode: text("archive_mode")?,
        archiver: archiver.into_iter().find(|a| !a.is_empty()).unwrap_or_default(),
        fsync: on("fsync")?,
        may_backup: may_backup(client, version_num)?,
        may_slot: column::<bool>(&row, "may_replicate")? && free_slots > 0,
        tablespaces: tablespaces(client)?,
        idle_slots: idle_slots(client)?,
        archive_failed: column::<Option<Text>>(&row, "archive_failed")?.map(|name| name.lossy()),
        following: if in_recovery { Some(session::following(client)?) } else { None },
        config_files: ConfigFiles {
            config: bytes("config_file")?.into_path(),
            hba: bytes("hba_file")?.into_path(),
            ident: bytes("ident_file")?.into_path(),
        },
    })
}

// current_setting(…, true) returns NULL for a setting that this version doesn't have. For one that the user may not
// see it is an error (GetConfigOptionByName in guc.c).
const FACTS: &str = "
    SELECT current_setting('server_version_num')::int AS version_num,
           current_setting('server_version') AS version,
           (SELECT system_identifier FROM pg_control_system()) AS system_identifier,
           current_setting('data_directory', true) AS data_directory,
           pg_is_in_recovery() AS in_recovery,
           current_setting('full_page_writes') AS full_page_writes,
           current_setting('wal_level') AS wal_level,
           current_setting('archive_mode') AS archive_mode,
           current_setting('archive_command', true) AS archive_command,
           current_setting('archive_library', true) AS archive_library,
           current_setting('fsync') AS fsync,
           current_setting('config_file', true) AS config_file,
           current_setting('hba_file', true) AS hba_file,
           current_setting('ident_file', true) AS ident_file,
           (SELECT rolsuper OR rolreplication FROM pg_roles WHERE rolname = current_user) AS may_replicate,
           (SELECT last_failed_wal FROM pg_stat_archiver
             WHERE last_failed_time > coalesce(last_archived_time, '-infinity')
               AND current_setting('archive_mode') <> 'off') AS archive_failed,
           current_setting('max_replication_slots')::bigint
             - (SELECT count(*) FROM pg_replication_slots) AS free_slots";

/// The functions of the backup API, by their names in this version.
const fn backup_functions(version_num: u32) -> (&'static str, &'static str) {
    if version_num >= 150_000 {
        ("pg_backup_start(text, boolean)", "pg_backup_stop(boolean)")
    } else {
        ("pg_start_backup(text, boolean, boolean)", "pg_stop_backup(boolean, boolean)")
    }
}

/// The statement that grants a user the right to call them.
#[must_use]
pub fn grant_execute(version_num: u32) -> String {
    let (start, stop) = backup_functions(version_num);
    format!("GRANT EXECUTE ON FUNCTION {start}, {stop}")
}

fn may_backup(client: &mut Client, version_num: u32) -> Result<bool> {
    let (start, stop) = backup_functions(version_num);
    let row = client
        .query_one(
            "SELECT has_function_privilege($1, 'EXECUTE') AND has_function_privilege($2, 'EXECUTE')",
            &[&start, &stop],
        )
        .map_err(|e| Error::sql("cannot ask for the right to take backups", e))?;
    column(&row, 0)
}

/// The tablespaces outside the data directory, by OID.
///
/// # Errors
/// When the statement fails.
pub fn tablespaces(client: &mut Client) -> Result<Vec<(u32, String)>> {
    // The location of an in-place tablespace (PostgreSQL 15) is pg_tblspc/OID: it is in the data directory and isn't a
    // part of its own. That of another one is what its link says, which may be a relative path that somebody made.
    let rows = client
        .query(
            "SELECT oid, spcname::text FROM pg_tablespace
              WHERE pg_tablespace_location(oid) <> ''
               AND pg_tablespace_location(oid) NOT LIKE 'pg_tblspc/%' ORDER BY oid",
            &[],
        )
        .map_err(|e| Error::sql("cannot list the tablespaces", e))?;
    rows.iter().map(|row| Ok((column(row, 0)?, column::<Text>(row, 1)?.lossy()))).collect()
}

/// The databases that somebody is removing a folder of: DROP DATABASE and ALTER DATABASE … SET TABLESPACE hold such a
/// lock until that is done (dropdb and movedb in dbcommands.c).
///
/// # Errors
/// When the statement fails.
pub fn databases_being_removed(client: &mut Client) -> Result<BTreeSet<u32>> {
    let rows = client
        .query(
            "SELECT objid FROM pg_locks
              WHERE locktype = 'object' AND classid = 'pg_database'::regclass
                AND mode = 'AccessExclusiveLock' AND granted",
            &[],
        )
        .map_err(|e| Error::sql("cannot ask which databases are being removed", e))?;
    rows.iter().map(|row| column(row, 0)).collect()
}

fn idle_slots(client: &mut Client) -> Result<Vec<(String, u64)>> {
    let rows = client
        .query(
            "SELECT slot_name::text,
                    pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn()
                                         ELSE pg_current_wal_lsn() END, restart_lsn)::bigint
               FROM pg_replication_slots WHERE NOT active AND restart_lsn IS NOT NULL ORDER BY 2 DESC",
            &[],
        )
        .map_err(|e| Error::sql("cannot list the replication slots", e))?;
    let slot = |row: &postgres::Row| {
        Ok((column::<Text>(row, 0)?.lossy(), column::<i64>(row, 1)?.max(0).unsigned_abs()))
    };
    rows.iter().map(slot).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use postgres::config::TargetSessionAttrs;

    /// The kernel connects to a server that is stopped, or that its storage keeps, and nobody answers.
    #[test]
    fn a_server_that_hangs_is_given_up() {
        let scratch = tempfile::tempdir().unwrap();
        let socket = scratch.path().join(".s.PGSQL.5432");
        let _listens = std::os::unix::net::UnixListener::bind(socket).unwrap();
        let mut options = postgres::Config::new();
        options.host_path(scratch.path()).user("postgres").connect_timeout(CONNECT_TIMEOUT);
        assert_eq!(limit(&options), Some(Duration::from_secs(70)));
        let given_up = connect_in_time(&options, &NoTls, Some(Duration::from_millis(200)));
        assert!(given_up.err().unwrap().contains("not answered"));
        // One that isn't there is told at once.
        options = postgres::Config::new();
        options.host_path(scratch.path().join("none")).user("postgres");
        assert_eq!(limit(&options), None);
        assert!(connect_in_time(&options, &NoTls, None).unwrap().is_err());
    }

    #[test]
    fn a_connection_string_means_what_it_means_to_libpq() {
        let of = |text: &str| options(&Conninfo::parse_known(text).unwrap()).unwrap();
        let plain = of("host=a");
        assert_eq!(plain.get_connect_timeout(), Some(&CONNECT_TIMEOUT));
        assert_eq!(plain.get_dbname(), Some("postgres"));
        assert_eq!(plain.get_keepalives_retries(), None);
        let own = of("host=a connect_timeout=60 keepalives_count=3 dbname=x");
        assert_eq!(own.get_connect_timeout(), Some(&Duration::from_secs(60)));
        assert_eq!(own.get_keepalives_retries(), Some(3));
        assert_eq!(own.get_dbname(), Some("x"));
        let host = |text: &str| vec![postgres::config::Host::Tcp(text.to_owned())];
        assert_eq!(of("hostaddr=::1").get_hosts(), host("::1"));
        let both = of("host=a hostaddr=::1");
        assert_eq!((both.get_hosts(), both.get_hostaddrs().len()), (&*host("a"), 1));
        let patience = |text: &str| of(text).get_tcp_user_timeout().copied();
        assert_eq!(patience("host=a tcp_user_timeout=30000"), Some(Duration::from_secs(30)));
        assert_eq!(patience("host=a tcp_user_timeout=1"), Some(Duration::from_secs(1)));
        assert_eq!(patience("host=a tcp_user_timeout=0"), None);
        let none = of("host=a connect_timeout=0 keepalives_count=0");
        assert_eq!((none.get_connect_timeout(), none.get_keepalives_retries()), (None, None));
        for (text, attributes) in [
            ("primary", TargetSessionAttrs::ReadWrite),
            ("read-write", TargetSessionAttrs::ReadWrite),
            ("read-only", TargetSessionAttrs::ReadOnly),
            ("any", TargetSessionAttrs::Any),
        ] {
            let options = of(&format!("host=a,b target_session_attrs={text}"));
            assert_eq!(options.get_target_session_attrs(), attributes, "{text}");
        }
    }
}
