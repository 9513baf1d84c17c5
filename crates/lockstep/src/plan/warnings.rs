//! What a cluster's owner should know, although it doesn't stop a backup.

use crate::words::bytes;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::facts::{Facts, Following, NoServer, PrimarySeen};
use super::layout::Volume;
use super::strategy::Strategy;
use crate::config::StrategyChoice;
use crate::postgres::file_settings::Doubt;

/// A thing worth knowing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Warning {
    /// What was found, with the value.
    pub what: String,
    /// What follows, or what to do.
    pub hint: String,
    /// Somebody should look at it: the set is less than was intended. `backup` then ends with exit code 3.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub problem: bool,
}

fn warning(what: impl Into<String>, hint: impl Into<String>) -> Warning {
    Warning { what: what.into(), hint: hint.into(), problem: false }
}

fn problem(what: impl Into<String>, hint: impl Into<String>) -> Warning {
    Warning { problem: true, ..warning(what, hint) }
}

/// All warnings that follow from the facts, problems first.
#[must_use]
pub fn of(facts: &Facts, strategy: Strategy, choice: StrategyChoice) -> Vec<Warning> {
    let mut all: Vec<_> = no_connection(facts, strategy, choice).into_iter().collect();
    all.extend(another_server(facts, choice));
    all.extend(no_right(facts, strategy, choice));
    all.extend(beside_primary(facts));
    all.extend(old_data(facts, choice));
    all.extend(facts.configuration.warnings.iter().cloned());
    all.extend(layout(facts));
    all.extend(server(facts, strategy));
    if facts.control.data_checksum_version == 0 {
        all.push(warning(
            "data checksums are off",
            "a bad page can't be told from a good one; enable them with pg_checksums while the server is stopped",
        ));
    }
    all
}

/// A running server should have been asked but couldn't be. A set taken without it is just as consistent, but isn't
/// what its owner expects, unless the strategy was explicitly requested.
fn no_connection(facts: &Facts, strategy: Strategy, choice: StrategyChoice) -> Option<Warning> {
    let Err(NoServer::Failed(why)) = &facts.server else { return None };
    let what = match facts.postmaster {
        Some(_) => format!("the server runs and can't be connected to: {why}"),
        None => format!(
            "pg_control says \"{}\", no process here runs the server, and it can't be connected to: {why}",
            facts.control.state.as_str()
        ),
    };
    if choice != StrategyChoice::Auto {
        return Some(warning(
            what,
            format!("strategy {strategy} was asked for and needs no connection"),
        ));
    }
    let crashed = match facts.postmaster {
        Some(_) => "",
        None => "did it crash, or run in a container of its own? ",
    };
    Some(problem(
        what,
        format!(
            "{crashed}the set is taken with strategy {strategy} instead; check host, port, user and password_file of this cluster; where no connection is meant, take host out or set strategy = \"{strategy}\""
        ),
    ))
}

/// The server was asked, but this user may not take backups there. A set of another strategy is just as consistent,
/// but isn't what the connection was configured for.
fn no_right(facts: &Facts, strategy: Strategy, choice: StrategyChoice) -> Option<Warning> {
    let may_not = facts.server.as_ref().is_ok_and(|server| !server.may_backup);
    (may_not && choice == StrategyChoice::Auto).then(|| {
        problem(
            "this user may not call pg_backup_start and pg_backup_stop",
            format!(
                "the set is taken with strategy {strategy} instead; GRANT EXECUTE on both functions to the user, as the PostgreSQL manual shows for backups, or set strategy = \"{strategy}\""
            ),
        )
    })
}

/// A data directory that is no longer used gives good sets of old data for ever.
fn another_server(facts: &Facts, choice: StrategyChoice) -> Option<Warning> {
    let Err(no_server @ NoServer::Another(_)) = &facts.server else { return None };
    let what = no_server.words();
    Some(match choice {
        StrategyChoice::Auto => problem(what, ANOTHER_SERVER),
        _ => warning(what, "the set is about as old as the last checkpoint"),
    })
}

/// Warns that WAL which only the archive has may move or copy a database.
#[must_use]
pub fn unread_wal(segments: &[String]) -> Warning {
    warning(
        format!(
            "WAL of the set is in the archive alone ({}): whether it moves or copies a database isn't looked at",
            segments.join(", ")
        ),
        "where ALTER DATABASE SET TABLESPACE or DROP DATABASE came shortly before the backup, take another one",
    )
}

/// Warns that a configuration file outside the data directory isn't in the set, because its server couldn't read it.
#[must_use]
pub fn unread_configuration(name: &str, path: &Path, why: &str) -> Warning {
    problem(
        format!(
            "{name} is \"{}\", which, with what it includes, the data directory's owner can't read, so it isn't in the set: {why}",
            path.display()
        ),
        "let them read it, as the server has to; see who set hba_file or ident_file to it",
    )
}

/// Warns that the set may lack what a configuration file in the data directory includes.
#[must_use]
pub fn unread_include(name: &str, path: &Path, why: &str) -> Warning {
    problem(
        format!(
            "not everything that {name} (\"{}\") includes can be read, and what is outside the data directory isn't in the set: {why}",
            path.display()
        ),
        "the server doesn't start with it either: correct what it includes, and let the data directory's owner read that",
    )
}

/// Warns of configuration files that no server starts with; `None` if there are no errors.
#[must_use]
pub fn wrong_configuration(errors: &[String]) -> Option<Warning> {
    (!errors.is_empty()).then(|| {
        problem(
            format!("the configuration has errors: {}", errors.join(", ")),
            "the server that runs has what it read before; neither it nor what is restored from the set starts again with these files: correct them, and take another set",
        )
    })
}

/// Warns that the settings of a postgresql.conf outside the data directory may not all be its own.
#[must_use]
pub fn doubtful_settings(doubt: &Doubt) -> Warning {
    problem(
        format!("{}; the set has what the server runs with in place of that", doubt.words()),
        doubt.hint(),
    )
}

/// Warns that a set has no postgresql.conf of its own: it lies outside the data directory, where only the server says.
/// `unread`: why a server that runs doesn't say it.
#[must_use]
pub fn no_configuration(taken_from: Option<&str>, unread: Option<&str>) -> Warning {
    let why = match unread {
        Some(why) => format!("its settings can't be read: {why}"),
        None => "without a connection nobody says where".into(),
    };
    let what = format!("postgresql.conf lies outside the data directory, and {why}");
    match taken_from {
        Some(set) => Warning {
            problem: unread.is_some(),
            ..warning(
                format!("{what}: the set has the configuration of set {set}"),
                "changes that were made since aren't in it",
            )
        },
        None => problem(
            format!("{what}: the set has no configuration"),
            "a restore of it runs with PostgreSQL's defaults; take a set while the server runs and can be connected to: later ones then have its configuration",
        ),
    }
}

/// The hint for another server that answers for a cluster that is shut down.
pub const ANOTHER_SERVER: &str = "was the cluster upgraded or moved? then set data_directory (and bin_dir) to where it is now; where this one is kept as it is, take host out, or set strategy = \"cold\"";

/// A standby that no longer follows gives good sets of old data.
fn old_data(facts: &Facts, choice: StrategyChoice) -> Vec<Warning> {
    if !facts.is_standby() {
        return Vec::new();
    }
    let of = match facts.last_data() {
        Some(time) => format!("{}", time.strftime("%Y-%m-%d %H:%M:%SZ")),
        None => "an unknown time".into(),
    };
    match &facts.server {
        Ok(server) => {
            let Some(following) = &server.following else { return Vec::new() };
            let paused = following.paused.then(|| {
                warning(
                    format!("replay is paused: the last replayed commit is of {of}"),
                    "the set is as old as that; SELECT pg_wal_replay_resume() on the standby",
                )
            });
            behind_primary(facts.primary.as_ref(), following, &of)
                .into_iter()
                .chain(paused)
                .collect()
        }
        Err(_) if facts.is_shut_down() => {
            let what = format!("the standby is stopped: its last checkpoint is of {of}");
            // It was stopped for this backup.
            vec![match choice {
                StrategyChoice::Cold => warning(what, "the set is about as old as that"),
                _ => problem(
                    what,
                    "the set is about as old as that; start it (a mirror with `mirror start`), or ask for --strategy cold where it is stopped for the backup",
                ),
            }]
        }
        Err(_) => Vec::new(),
    }
}

/// A standby that was promoted by mistake gives good sets, night after night, that lack everything its primary has
/// written since. They are of a higher timeline, and so the latest.
fn beside_primary(facts: &Facts) -> Option<Warning> {
    (facts.primary == Some(PrimarySeen::Beside)).then(|| {
        problem(
            "this server was promoted, and the primary that \"primary\" names goes on without it",
            "its sets lack what is written there. If this is the primary now, stop the other one, or take primary out of this cluster's configuration. Else make it a standby again (a mirror: `mirror recreate NAME --discard-writes`): what was written to it since is nowhere else, so if somebody may need that, keep a set of it until they have it out of it, and only then remove the sets of its timeline",
        )
    })
}

/// Why a standby that answers may have old data; `of` is the time of its last replayed commit.
fn behind_primary(
    primary: Option<&PrimarySeen>,
    following: &Following,
    of: &str,
) -> Option<Warning> {
    match (following, primary) {
        (Following { streams: false, should_stream: true, .. }, _) => Some(problem(
            format!("nothing streams to this standby: its last replayed commit is of {of}"),
            "the set is as old as that; is primary_conninfo right, and its primary there? `mirror status` says it of a mirror",
        )),
        (_, Some(PrimarySeen::Unreachable(why))) => Some(problem(
            format!(
                "the standby's primary can't be asked: {why}; the last replayed commit is of {of}"
            ),
            "what streams may come from another standby: the set counts as that old; check primary and primary_password_file of this cluster, or take primary out where it isn't to be asked",
        )),
        (_, Some(PrimarySeen::InRecovery)) => Some(problem(
            format!(
                "what \"primary\" names is in recovery itself; the last replayed commit is of {of}"
            ),
            "the set counts as that old; name the primary, also where the standby streams from another standby",
        )),
        (_, Some(PrimarySeen::Behind(behind))) => Some(warning(
            format!(
                "the standby hasn't replayed {} that its primary has written; the last replayed commit is of {of}",
                bytes(*behind)
            ),
            "the set is as old as that; where it stays so, does what the standby streams from follow the primary?",
        )),
        (_, Some(PrimarySeen::Reached | PrimarySeen::Beside) | None) => None,
    }
}

fn layout(facts: &Facts) -> Vec<Warning> {
    let mut all = Vec::new();
    for (path, target) in &facts.links {
        all.push(warning(
            format!("\"{}\" is a link to \"{}\"", path.display(), target.display()),
            "what lies there is in no snapshot of the set: the restored link leads to the same place",
        ));
    }
    for (repository, volume) in &facts.repositories_within {
        all.push(warning(
            format!("repository \"{repository}\" is on \"{volume}\", which is backed up into it"),
            "each set stores again what the one before has stored, and the pool's loss takes both: move the repository to another dataset, better in another pool",
        ));
    }
    for (index, volume) in facts.layout.volumes.iter().enumerate() {
        let name = &volume.dataset;
        let holds_data = facts.layout.own_wal_volume() != Some(index);
        if !volume.foreign.is_empty() {
            all.push(warning(
                format!("dataset \"{name}\" also holds {}", list(&volume.foreign)),
                "its snapshots keep these files too; give the cluster datasets of its own",
            ));
        }
        for nested in &volume.nested {
            all.push(warning(
                format!("\"{}\" is mounted at \"{}\"", nested.source, nested.point.display()),
                "its files aren't in the set; PostgreSQL doesn't need them after a restore",
            ));
        }
        if holds_data && volume.recordsize < u64::from(facts.control.block_size) {
            all.push(warning(
                format!("dataset \"{name}\" has recordsize {}", volume.recordsize),
                "a page of PostgreSQL spans records: it can be torn without full_page_writes",
            ));
        }
        if volume.sync == "disabled" {
            all.push(warning(
                format!("dataset \"{name}\" has sync=disabled"),
                match goes_back_as_one(facts) {
                    true => UNSYNCED,
                    false => UNSYNCED_APART,
                },
            ));
        }
    }
    all.extend(low_space(facts));
    all
}

const UNSYNCED: &str =
    "a power cut loses committed transactions, and a set taken in the last seconds";
const UNSYNCED_APART: &str = "a power cut can corrupt the live cluster without an error, and loses a set taken in the last seconds: this dataset goes back by seconds and others of the cluster don't, or not as far, so pages may be newer than the WAL, or the WAL than pg_control; `zfs set sync=standard` on all of them";

/// Whether a power cut takes all volumes back to one moment: without `sync` a dataset goes back to its pool's last
/// transaction group, and with it a dataset keeps what was synced since.
fn goes_back_as_one(facts: &Facts) -> bool {
    let layout = &facts.layout;
    layout.pools().len() == 1 && layout.volumes.iter().all(|volume| volume.sync == "disabled")
}

/// Warns of volumes that have little space left, but more than a backup insists on.
#[must_use]
pub fn low_space(facts: &Facts) -> Vec<Warning> {
    let is_low = |volume: &&Volume| volume.available < facts.space_needed(volume).saturating_mul(4);
    let low = facts.layout.volumes.iter().filter(is_low);
    low.map(|volume| {
        warning(
            format!("dataset \"{}\" has only {} left", volume.dataset, bytes(volume.available)),
            "snapshots keep what is overwritten; a full pool makes PostgreSQL PANIC",
        )
    })
    .collect()
}

const NO_FLOOR: &str = "targets inside it can't be checked before recovery";

fn server(facts: &Facts, strategy: Strategy) -> Vec<Warning> {
    let server = match &facts.server {
        Ok(server) => server,
        // A standby's pg_control says where the set is consistent.
        Err(_) if facts.is_standby() => return Vec::new(),
        Err(NoServer::Failed(_)) => {
            return vec![warning("the set has no floor LSN", NO_FLOOR)];
        }
        Err(NoServer::Another(_)) => return Vec::new(),
        Err(no_server) if strategy != Strategy::Cold => {
            return vec![warning(
                no_server.words(),
                format!("the set has no floor LSN: {NO_FLOOR}"),
            )];
        }
        Err(_) => return Vec::new(),
    };
    let mut all = Vec::new();
    if !server.fsync {
        all.push(warning("fsync is off", "a power cut can corrupt the live cluster"));
    }
    if server.in_recovery && !facts.has_primary {
        all.push(warning(
            "no \"primary\" is configured for this standby",
            "WAL that the standby has no more can't be fetched, a quiet primary's archive gets the set's last segment late, and where the standby streams from another one nobody notices that their primary is dead",
        ));
    }
    if !server.full_page_writes && !server.in_recovery {
        all.push(warning(
            "full_page_writes is off",
            "pg_backup_start forces it for the backup; the other strategies rest on ZFS writing a record whole",
        ));
    }
    if server.archive_mode == "off" && !server.in_recovery {
        all.push(warning(
            "archive_mode is off",
            "sets restore to their own end; point-in-time recovery beyond it needs an archive",
        ));
    }
    if !server.may_slot && strategy != Strategy::Atomic {
        all.push(warning(
            "no temporary replication slot can be made",
            "WAL that the set needs may be recycled meanwhile; such a set is refused and taken again",
        ));
    }
    all
}

fn list(names: &[String]) -> String {
    let shown: Vec<_> = names.iter().take(4).map(|name| format!("\"{name}\"")).collect();
    let more = names.len() - shown.len();
    match more {
        0 => shown.join(", "),
        _ => format!("{} and {more} more", shown.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lists_are_cut() {
        let names: Vec<String> = (0..6).map(|n| n.to_string()).collect();
        assert_eq!(list(&names), "\"0\", \"1\", \"2\", \"3\" and 2 more");
    }
}
