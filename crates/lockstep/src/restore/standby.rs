//! A restore that becomes a standby. Its recovery never ends, so it does outside the mount namespace what a restore's
//! own server does inside for a while. The primary is checked last: no WAL arriving isn't an error.
//!
//! What could go wrong: on the primary's own host, a CREATE TABLESPACE from after the restore is replayed, and the
//! standby would share the primary's folder. Or a part of a cluster, which can't replay changes to the rest.

use std::time::{Duration, Instant, SystemTime};

use super::build::Build;
use super::placement::Placement;
use super::{Problem, Request, Restored, original};
use crate::config::ClusterConfig;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::postgres::connection;
use crate::postgres::row::column;
use crate::postgres::server::{self, Outcome, Server};
use crate::refusal::Refusal;
use crate::set::manifest::Manifest;
use crate::{files, steps};

/// Refuses what couldn't follow a primary, and what would replay into the original's folders.
///
/// # Errors
/// [`Error::Usage`] for a part of a cluster; [`Refusal::StandbyBesideOriginal`].
pub(super) fn check(
    cx: &Context,
    request: &Request,
    manifest: &Manifest,
    placement: &Placement,
) -> Result<()> {
    if request.what.is_a_part() {
        return Err(Error::usage(
            "a standby replays changes to the whole cluster, but this one would have only a part of it",
            "leave out --standby, or restore all of the set",
        ));
    }
    for data in original::here(cx, manifest, placement) {
        cx.zfs.reachable(&data)?;
        if let Some(pid) = server::running(&data)? {
            return Err(Refusal::StandbyBesideOriginal { data, pid }.into());
        }
    }
    Ok(())
}

/// Whether a server that has ended had reached everything that a restore waits for.
fn is_far_enough(server: &Server) -> bool {
    let is_consistent =
        server.said().iter().any(|line| line.contains("consistent recovery state reached"));
    is_consistent && server.lower_setting().is_none()
}

/// Waits until it is consistent and lets readers in. Replay continues meanwhile, and may end at what it can't replay
/// in its namespace.
pub(super) fn follow(build: &Build, server: &mut Server) -> Result<Outcome> {
    let waited = server.wait_for_standby(|words| tracing::info!("recovery: {words}"));
    match waited {
        Ok(()) => Ok(Outcome::Follows),
        // What comes after that point is to be replayed outside its namespace, where a new tablespace's path is its
        // own.
        Err(Error::Failed { .. }) if is_far_enough(server) => {
            tracing::info!(
                "it was consistent, and ended at what it can't replay in its namespace: it continues outside"
            );
            Ok(Outcome::Follows)
        }
        Err(error) => Err(super::run_server::explain(build, server, error)),
    }
}

/// How long WAL may take to stream: PostgreSQL retries every five seconds (wal_retrieve_retry_interval).
const STREAMS_WITHIN: Duration = Duration::from_secs(8);
/// The server's message (walreceiver.c).
const STREAMS: &str = "started streaming WAL from primary";

/// Returns a problem if nothing streams to a standby that was started; `None` if WAL streams, if restore_command
/// feeds it meanwhile, or if that can't be determined.
pub(super) fn does_not_stream(
    cx: &Context,
    request: &Request,
    restored: &Restored,
) -> Option<Problem> {
    let why = why_not_streaming(cx, request, restored)?;
    let hint = match why.contains("has already been removed") {
        true => {
            "its primary no longer has WAL that it needs: restore with --restore-command, which fetches it from an archive, or restore a newer set"
        }
        false => {
            "it keeps trying: check the primary and its pg_hba.conf, make the slot there, or change primary_conninfo and primary_slot_name here with ALTER SYSTEM and pg_reload_conf()"
        }
    };
    Some(Problem { what: format!("nothing streams to the standby: {why}"), hint: hint.into() })
}

/// Returns the reason, in the server's words.
fn why_not_streaming(cx: &Context, request: &Request, restored: &Restored) -> Option<String> {
    let standby = request.recovery.standby.as_ref()?;
    if standby.primary.is_none() || !restored.started {
        return None;
    }
    let host = restored.socket_directory.as_ref()?.to_str()?.to_owned();
    let port = restored.port.unwrap_or(cx.cluster.port);
    let server = ClusterConfig { host: Some(host), port, ..cx.cluster.clone() };
    let log = restored.placement.directory.join("log/server.log");
    let until = Instant::now() + STREAMS_WITHIN;
    loop {
        let asked = streams(&server);
        let said = files::tail(&log);
        let said = since_start(&said);
        if asked == Some(true) || asked.is_none() && said.iter().any(|line| line.contains(STREAMS))
        {
            return None;
        }
        if Instant::now() >= until || steps::interrupted() {
            let is_fed = request.recovery.restore_command.is_some();
            // A server that starts removes what an older one's collector left there.
            let data = &restored.placement.data;
            let own = match data.join("current_logfiles").exists() {
                true => server::collected(data, SystemTime::UNIX_EPOCH),
                false => Vec::new(),
            };
            let said = if own.is_empty() { said } else { since_start(&own) };
            if asked.is_none() && said.iter().any(|line| line.contains(STREAMS)) {
                return None;
            }
            return match why(said) {
                Some(words) => Some(words),
                None if is_fed || asked.is_none() => None,
                None => Some(last_words(said)),
            };
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Asks the server itself; `None` if it doesn't accept connections, or has a WAL receiver whose state this user may not
/// see (pg_read_all_stats).
fn streams(server: &ClusterConfig) -> Option<bool> {
    let mut client = connection::connect(server).ok()?;
    let rows = client.query("SELECT status = 'streaming' FROM pg_stat_wal_receiver", &[]).ok()?;
    match rows.first() {
        None => Some(false),
        Some(row) => column::<Option<bool>>(row, 0).ok()?,
    }
}

/// Returns what a log says since the last start of the server.
fn since_start(log: &[String]) -> &[String] {
    let begin = log.iter().rposition(|line| line.contains("starting PostgreSQL "));
    &log[begin.unwrap_or(0)..]
}

/// Returns the end of a log that may be in any language.
fn last_words(said: &[String]) -> String {
    match said.iter().rev().find(|line| !line.trim().is_empty()) {
        Some(line) => format!("its log ends with \"{}\"", line.trim()),
        None => "its server doesn't say why".into(),
    }
}

/// Returns the last message of the process that should receive WAL (walreceiver.c, libpqwalreceiver.c).
fn why(said: &[String]) -> Option<String> {
    const OF_IT: [&str; 5] =
        ["the primary", "WAL stream", "WAL segment", "replication slot", "timeline"];
    let is_of_it = |words: &&str| OF_IT.iter().any(|of_it| words.contains(of_it));
    let mut failed = said.iter().rev().filter_map(|line| {
        let (_, words) = line.split_once("FATAL:  ").or_else(|| line.split_once("ERROR:  "))?;
        Some(words)
    });
    failed.find(is_of_it).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn why_nothing_streams_is_told_in_the_server_s_words() {
        let lines = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
        let before = "t [1] FATAL:  could not receive data from WAL stream: old\n\
                      t [1] LOG:  starting PostgreSQL 15.18 on x86_64\n";
        let said = |text: &str| why(since_start(&lines(&format!("{before}{text}"))));
        assert_eq!(said("t [2] FATAL:  the database system is starting up"), None);
        assert_eq!(said("t [2] FATAL:  no pg_hba.conf entry for host \"[local]\""), None);
        for words in [
            "could not connect to the primary server: invalid connection option \"hosst\"",
            "could not start WAL streaming: ERROR:  replication slot \"s\" does not exist",
            "requested WAL segment 000000010000000000000002 has already been removed",
        ] {
            let text =
                format!("t [2] FATAL:  {words}\nt [2] LOG:  waiting for WAL to become available");
            assert_eq!(said(&text).as_deref(), Some(words));
        }
        let german = lines("t [2] FATAL:  konnte nicht mit dem Primärserver verbinden\n\n");
        assert_eq!(why(&german), None);
        assert!(last_words(&german).ends_with("Primärserver verbinden\""));
        assert_eq!(last_words(&[]), "its server doesn't say why");
    }
}
