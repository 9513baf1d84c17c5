//! `lockstep check`: checks that backups of this cluster work, and that restores of them would.
//!
//! It prints one finding a line, worst first. It changes nothing, except for a small file that it writes and removes
//! again where a backup writes (`check/writable.rs`). A monitor that looks only at the exit code has to notice what
//! goes wrong silently: backups that have stopped, an archive that gets nothing, a standby that doesn't follow. So
//! these are errors, and only hints are warnings.

mod archive;
mod branches;
mod copies;
mod leftovers;
mod programs;
mod sets;
mod space;
mod writable;

use std::collections::BTreeSet;

use pgfiles::wal_name::is_backup_history;
use serde::Serialize;

use crate::clone;
use crate::config::{ClusterConfig, RetentionConfig, StrategyChoice};
use crate::context::{Context, lockstep, program};
use crate::error::{Error, Result};
use crate::plan::facts::{Facts, Following, NoServer, PrimarySeen, ServerFacts};
use crate::plan::strategy;
use crate::plan::warnings::{ANOTHER_SERVER, low_space};
use crate::postgres::connection;
use crate::prune;
use crate::refusal::Refusal;
use crate::restore::strays;
use crate::set::unfinished;
use crate::survey;
use crate::words::{bytes, counted};

/// How bad a finding is; ordered so that the worst sorts first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Somebody should look: a backup or restore would fail, or isn't worth what its owner thinks.
    Error,
    /// It works, but could be better.
    Warning,
    /// All is well.
    Ok,
}

/// One line of output.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What was checked: `connection`, `wal_level`.
    pub subject: String,
    /// What was found.
    pub what: String,
    /// What to do.
    pub hint: Option<String>,
}

/// Checks everything.
///
/// # Errors
/// Only when ZFS or the state can't be read at all; the rest are findings.
pub fn run(cx: &Context) -> Result<Vec<Finding>> {
    let mut all = Vec::new();
    match survey::take(cx) {
        Ok(survey) => {
            all.extend(of_facts(&survey.facts, cx.cluster.strategy));
            all.extend(space::of_pools(cx, &survey.facts));
            if let Ok(server) = &survey.facts.server {
                all.extend(archive::check(cx, server));
            }
            if survey.facts.is_standby() {
                all.push(of_standby(&survey.facts));
            }
            if survey.facts.is_standby() || survey.facts.primary.is_some() {
                all.extend(of_primary(cx, survey.facts.primary.as_ref()));
            }
            all.push(programs::check(cx, survey.facts.control.major_version()));
            let datasets: Vec<_> =
                survey.facts.layout.volumes.iter().map(|v| v.dataset.clone()).collect();
            let owner = cx.state.owner();
            let strangers = unfinished::strangers(cx, &datasets);
            all.extend(or_failure(strangers.map(|found| sets::strangers(found, owner))));
            let strays = strays::find(cx, &datasets);
            all.extend(or_failure(strays.map(|found| leftovers::strays(&found, &datasets, owner))));
        }
        Err(error) => all.push(failure("layout", &error)),
    }
    all.push(writable::state(cx));
    all.extend(of_retention(cx.name.as_str(), cx.cluster));
    all.extend(of_prune(cx));
    all.extend(of_grace(cx));
    all.extend(sets::here(cx)?);
    all.extend(cx.cluster.repositories.iter().flat_map(|name| sets::in_repository(cx, name)));
    all.extend(copies::find(cx));
    all.extend(or_failure(leftovers::find(cx)));
    all.extend(leftovers::of_no_cluster(cx)?);
    all.extend(or_failure(of_clones(cx)));
    if let Err(error) = cx.os_user() {
        all.push(failure("os_user", &error));
    }
    Ok(ordered(all))
}

/// Finds places from which nothing is ever removed; a pure function.
fn of_retention(name: &str, cluster: &ClusterConfig) -> Vec<Finding> {
    let retention = &cluster.retention;
    let key = |key: &str| {
        format!(
            "{}; then `{} prune` after each backup",
            RetentionConfig::hint(name, key),
            lockstep()
        )
    };
    let here = retention.local.is_none().then(|| {
        warning(
            "retention",
            "no retention is configured for this host: its snapshots pile up until a pool is full",
            key("local"),
        )
    });
    let without =
        cluster.repositories.iter().filter(|name| retention.of_repository(name).is_none());
    let there = without.map(|repository| {
        warning(
            "retention",
            format!("no retention is configured for repository \"{repository}\": it only grows"),
            key("repository"),
        )
    });
    here.into_iter().chain(there).collect()
}

/// For how many days sets may be overdue: somebody may well prune once a week.
const DUE_DAYS: i64 = 8;

/// Finds sets that should have been gone for long: nothing runs `prune`.
fn of_prune(cx: &Context) -> Option<Finding> {
    let at = jiff::Timestamp::now() - jiff::SignedDuration::from_hours(DUE_DAYS * 24);
    let due = match prune::overdue(cx, at) {
        Ok(due) => due,
        Err(error) => return Some(failure("retention", &error)),
    };
    due.first().map(|oldest| {
        let due = counted(due.len() as u64, "set");
        warning(
            "retention",
            format!("by the retention of this host {due} could have been removed more than {DUE_DAYS} days ago, the oldest is {oldest}"),
            format!("does the timer of `{0} prune` run? `{0} prune --local --dry-run` says what would go", lockstep()),
        )
    })
}

/// Finds repositories without a grace time.
fn of_grace(cx: &Context) -> Vec<Finding> {
    let has_none = |name: &&String| cx.repositories.get(*name).is_some_and(|r| r.grace_hours == 0);
    let all = cx.cluster.repositories.iter().filter(has_none);
    all.map(|name| {
        warning(
            "grace_hours",
            format!("repositories.{name}.grace_hours is 0: `prune` may delete what a backup or a restore needs that runs at the same time"),
            "make it longer than any of them takes",
        )
    })
    .collect()
}

/// Sorts the worst first; a subject with a problem isn't reported as ok as well.
fn ordered(mut all: Vec<Finding>) -> Vec<Finding> {
    let bad = all.iter().filter(|finding| finding.severity != Severity::Ok);
    let bad: BTreeSet<_> = bad.map(|finding| finding.subject.clone()).collect();
    all.retain(|finding| finding.severity != Severity::Ok || !bad.contains(&finding.subject));
    all.sort();
    all.dedup();
    all
}

fn finding(severity: Severity, subject: &str, what: String, hint: Option<String>) -> Finding {
    Finding { severity, subject: subject.to_owned(), what, hint }
}

fn ok(subject: &str, what: impl Into<String>) -> Finding {
    finding(Severity::Ok, subject, what.into(), None)
}

fn warning(subject: &str, what: impl Into<String>, hint: impl Into<String>) -> Finding {
    finding(Severity::Warning, subject, what.into(), Some(hint.into()))
}

fn wrong(subject: &str, what: impl Into<String>, hint: impl Into<String>) -> Finding {
    finding(Severity::Error, subject, what.into(), Some(hint.into()))
}

fn failure(subject: &str, error: &Error) -> Finding {
    finding(Severity::Error, subject, error.chain(), error.hint())
}

/// A journal that can't be read doesn't hide what else there is.
fn or_failure(found: Result<Vec<Finding>>) -> Vec<Finding> {
    found.unwrap_or_else(|error| vec![failure(leftovers::SUBJECT, &error)])
}

/// Checks that a standby follows; a pure function.
fn of_standby(facts: &Facts) -> Finding {
    let following = match &facts.server {
        Ok(server) => server.following.as_ref(),
        Err(_) if facts.is_shut_down() => {
            return wrong(
                "standby",
                "it is stopped: its sets are as old as it is",
                "start it; a mirror with `lockstep mirror start`",
            );
        }
        Err(_) => None,
    };
    let Some(Following { streams, should_stream, replayed, paused, .. }) = following else {
        let since = facts.last_data().map_or_else(String::new, |time| {
            let time = time.strftime("%Y-%m-%d %H:%M:%SZ");
            format!("; its last restartpoint is at the primary's checkpoint of {time}")
        });
        return ok("standby", format!("no server can be asked whether it follows{since}"));
    };
    if *paused {
        return warning(
            "standby",
            format!("replay is paused at {replayed}: its sets are as old as that"),
            "SELECT pg_wal_replay_resume() on the standby",
        );
    }
    if let (true, Some(PrimarySeen::Behind(behind))) = (streams, &facts.primary) {
        return warning(
            "standby",
            format!(
                "it streams, has replayed up to {replayed}, and is {} behind its primary",
                bytes(*behind)
            ),
            "if it stays so: does the server that it streams from follow the primary?",
        );
    }
    match (streams, should_stream) {
        (true, _) => ok("standby", format!("it streams, and has replayed up to {replayed}")),
        (false, false) => ok(
            "standby",
            format!("it gets WAL only from restore_command; it has replayed up to {replayed}"),
        ),
        (false, true) => wrong(
            "standby",
            format!("nothing streams to it; it has replayed up to {replayed}"),
            "its sets are as old as what it replays: is primary_conninfo right, and its primary there? if it gets WAL only from restore_command, remove primary_conninfo",
        ),
    }
}

/// Checks that a standby's primary answers and is one. If the survey couldn't ask it, it is tried here.
fn of_primary(cx: &Context, seen: Option<&PrimarySeen>) -> Option<Finding> {
    const CHECK: &str = "check primary and primary_password_file of this cluster";
    Some(match seen {
        Some(PrimarySeen::Reached | PrimarySeen::Behind(_)) => ok("primary", "it can be asked"),
        Some(PrimarySeen::Unreachable(why)) => wrong(
            "primary",
            why.clone(),
            format!("backups work without it, and count as old as the last commit; {CHECK}"),
        ),
        Some(PrimarySeen::InRecovery) => wrong(
            "primary",
            "the server that \"primary\" names is itself in recovery",
            "name the primary, even if the standby streams from another standby",
        ),
        Some(PrimarySeen::Beside) => wrong(
            "primary",
            "this server was promoted, and the primary that \"primary\" names goes on without it",
            format!(
                "its sets lack what is written there. If this is the primary now, stop the other one, or take primary out of this cluster's configuration. Else make it a standby again (a mirror with `{} mirror recreate {} --discard-writes`): what was written to it since is nowhere else, so if somebody may need that, take a set of it first: {} backup",
                program(),
                cx.name,
                lockstep()
            ),
        ),
        None => match connection::connect_primary(cx.cluster)? {
            Ok(_) => ok("primary", "it takes a connection"),
            Err(no_server) => {
                warning("primary", no_server.words(), format!("backups work without it; {CHECK}"))
            }
        },
    })
}

/// Returns what the facts of a survey say; a pure function.
fn of_facts(facts: &Facts, choice: StrategyChoice) -> Vec<Finding> {
    let mut all = of_plan(facts, choice);
    match &facts.server {
        Ok(server) => all.extend(of_server(server, choice)),
        Err(NoServer::Failed(why)) => all.push(wrong(
            "connection",
            format!("cannot connect: {why}"),
            "check host, port, user and password_file of this cluster",
        )),
        Err(another @ NoServer::Another(_)) => all.push(match choice {
            StrategyChoice::Auto => wrong("connection", another.words(), ANOTHER_SERVER),
            // The plan's warning says it.
            _ => ok("connection", "the cluster is shut down"),
        }),
        Err(other) => all.push(ok("connection", other.words())),
    }
    all.extend(facts.server.iter().flat_map(of_wal_keepers));
    // The plan's warnings say the rest.
    let lacking = facts.configuration.warnings.iter().filter(|warning| warning.problem);
    all.extend(lacking.map(|w| wrong("configuration", w.what.clone(), w.hint.clone())));
    for volume in &facts.layout.volumes {
        all.push(ok(
            space::SUBJECT,
            format!("{} has {} left", volume.dataset, bytes(volume.available)),
        ));
    }
    all
}

/// Says how a backup would be taken now.
fn of_plan(facts: &Facts, choice: StrategyChoice) -> Vec<Finding> {
    let mut all = Vec::new();
    match strategy::choose(facts, choice) {
        Ok(plan) => {
            all.push(ok("strategy", format!("{}: {}", plan.strategy, plan.chosen_because)));
            // Problems have a subject of their own below.
            let low = low_space(facts);
            let hints = plan.warnings.into_iter().filter(|warning| !warning.problem);
            all.extend(hints.map(|w| {
                let subject = if low.contains(&w) { space::SUBJECT } else { "plan" };
                warning(subject, w.what, w.hint)
            }));
        }
        Err(refusal) => {
            let subject = match &refusal {
                Refusal::NoSpace { .. } | Refusal::Reserved { .. } => space::SUBJECT,
                _ => "strategy",
            };
            all.push(failure(subject, &Error::from(refusal)));
        }
    }
    all
}

/// Returns what the server says about itself.
fn of_server(server: &ServerFacts, choice: StrategyChoice) -> Vec<Finding> {
    let mut all = Vec::new();
    all.push(ok("connection", format!("PostgreSQL {}", server.version)));
    all.push(match server.may_backup {
        true => ok("rights", "this user may call the backup functions"),
        // As in a backup: an explicitly requested strategy doesn't need this right.
        false => finding(
            match choice {
                StrategyChoice::Auto => Severity::Error,
                _ => Severity::Warning,
            },
            "rights",
            "this user may not call pg_backup_start and pg_backup_stop".into(),
            Some(format!(
                "{} TO it; docs/configuration.md, \"Rights\", has all that it needs",
                connection::grant_execute(server.version_num)
            )),
        ),
    });
    all.push(match server.wal_level.as_str() {
        "minimal" => warning(
            "wal_level",
            "wal_level is minimal",
            "set it to replica and restart; until then sets restore to their own end alone",
        ),
        level => ok("wal_level", format!("wal_level is {level}")),
    });
    if server.full_page_writes && !server.in_recovery {
        all.push(ok("full_page_writes", "full_page_writes is on"));
    }
    if server.archive_mode != "off" {
        all.push(match server.archiver.as_str() {
            "" => wrong(
                "archiving",
                format!("archive_mode is {} and nothing archives", server.archive_mode),
                "WAL piles up in pg_wal: set archive_command, or archive_mode = off",
            ),
            archiver => {
                ok("archiving", format!("archive_mode is {}, by {archiver}", server.archive_mode))
            }
        });
    }
    all
}

/// Finds what keeps WAL from being recycled until the pool is full.
fn of_wal_keepers(server: &ServerFacts) -> Vec<Finding> {
    let mut all: Vec<_> = server
        .idle_slots
        .iter()
        .map(|(name, kept)| {
            warning(
                "slots",
                format!("slot \"{name}\" is used by nobody and keeps {} of WAL", bytes(*kept)),
                "pg_drop_replication_slot, unless its reader comes back",
            )
        })
        .collect();
    if let Some(name) = &server.archive_failed {
        all.push(of_archive_failed(name));
    }
    all
}

fn of_archive_failed(name: &str) -> Finding {
    let hint = "the server's log has the reason; WAL piles up in pg_wal meanwhile";
    if !is_backup_history(name) {
        let what = format!("WAL segment {name} could not be archived, and none was since");
        return wrong("archiving", what, hint);
    }
    wrong(
        "archiving",
        format!("backup history file {name} could not be archived, and nothing was since"),
        format!(
            "{hint}. Where this cluster was restored by an older Lockstep and the archive has the original's file of that name, remove \"pg_wal/{name}\" and \"pg_wal/archive_status/{name}.ready\""
        ),
    )
}

fn of_clones(cx: &Context) -> Result<Vec<Finding>> {
    let (records, unread) = clone::list(cx)?;
    let unread = unread.iter().map(|(_, error)| failure("clones", error));
    let stopped = records.iter().filter(|record| record.is_running(&cx.zfs) == Some(false));
    let stopped = stopped.map(|record| {
        let destroy = clone::destroy_command(&record.name, false);
        let hint = match record.leads_out() {
            None => format!(
                "to have it again, start it with pg_ctl, in the data directory that `{} clone list` shows; if nobody needs what was written to it: {destroy}",
                lockstep()
            ),
            Some(place) => format!(
                "start no server there: a link in its pg_tblspc leads to \"{}\", and if that is a tablespace of the original, the server would write to it; if nobody needs what was written to the clone: {destroy}",
                place.display()
            ),
        };
        warning("clones", format!("clone \"{}\" doesn't run", record.name), hint)
    });
    Ok(unread.chain(stopped).collect())
}

#[cfg(test)]
#[path = "check/tests.rs"]
mod tests;
