//! `lockstep check`: whether backups of this cluster work, and restores of them would.
//!
//! One finding a line, worst first. It looks and changes nothing.

mod leftovers;

use serde::Serialize;

use crate::clone;
use crate::config::StrategyChoice;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::plan::facts::{Facts, NoServer, ServerFacts};
use crate::plan::strategy;
use crate::plan::warnings::bytes;
use crate::postgres::connection;
use crate::postgres::session::{self, Following};
use crate::repository::{self, Repository, locks};
use crate::restore;
use crate::set::manifest::Manifest;
use crate::set::unfinished;
use crate::survey;

/// How bad a finding is; ordered so that the worst sorts first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// A backup or restore would fail.
    Error,
    /// It works, and something should be done.
    Warning,
    /// As it should be.
    Ok,
}

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Finding {
    /// How bad.
    pub severity: Severity,
    /// What was looked at: `connection`, `wal_level`.
    pub subject: String,
    /// What was found.
    pub what: String,
    /// What to do.
    pub hint: Option<String>,
}

/// Looks at everything.
///
/// # Errors
/// Only when ZFS or the state can't be read at all; the rest are findings.
pub fn run(cx: &Context) -> Result<Vec<Finding>> {
    let mut all = Vec::new();
    match survey::take(cx) {
        Ok(mut survey) => {
            all.extend(of_facts(&survey.facts, cx.cluster.strategy));
            if survey.facts.is_standby() {
                all.extend(of_standby(cx, survey.client.as_mut())?);
            }
            let datasets: Vec<_> =
                survey.facts.layout.volumes.iter().map(|v| v.dataset.clone()).collect();
            for stranger in unfinished::strangers(cx, &datasets)? {
                all.push(warning(
                    "sets",
                    format!("snapshot \"{}\" belongs to no set of this state_dir", stranger.snapshot),
                    "another host's, or its manifest was lost: if nobody needs it, release and destroy it with zfs",
                ));
            }
        }
        Err(error) => all.push(failure("layout", &error)),
    }
    all.extend(of_sets(cx)?);
    for name in &cx.cluster.repositories {
        all.extend(of_repository(cx, name));
    }
    all.extend(leftovers::find(cx)?);
    all.extend(of_clones(cx)?);
    if let Err(error) = cx.os_user() {
        all.push(failure("os_user", &error));
    }
    all.sort();
    Ok(all)
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

fn failure(subject: &str, error: &Error) -> Finding {
    finding(Severity::Error, subject, error.chain(), error.hint())
}

/// Whether a standby follows, and whether its primary can be asked.
fn of_standby(cx: &Context, client: Option<&mut postgres::Client>) -> Result<Vec<Finding>> {
    let mut all = Vec::new();
    if let Some(client) = client {
        all.push(match session::following(client)? {
            Following { streams: true, replayed } => {
                ok("standby", format!("it streams, and has replayed up to {replayed}"))
            }
            Following { streams: false, replayed } => warning(
                "standby",
                format!("nothing streams to it; it has replayed up to {replayed}"),
                "its sets are as old as what it replays: is primary_conninfo right, and its primary there? a standby fed by restore_command alone is fine",
            ),
        });
    }
    match connection::connect_primary(cx.cluster) {
        None => {}
        Some(Ok(_)) => all.push(ok("primary", "it takes a connection")),
        Some(Err(no_server)) => all.push(warning(
            "primary",
            no_server.words(),
            "backups work without it; check primary and primary_password_file of this cluster",
        )),
    }
    Ok(all)
}

/// What the facts of a survey say; a pure function.
fn of_facts(facts: &Facts, choice: StrategyChoice) -> Vec<Finding> {
    let mut all = Vec::new();
    match strategy::choose(facts, choice) {
        Ok(plan) => {
            all.push(ok("strategy", format!("{}: {}", plan.strategy, plan.chosen_because)));
            all.extend(plan.warnings.into_iter().map(|w| warning("plan", w.what, w.hint)));
        }
        Err(refusal) => all.push(failure("strategy", &Error::from(refusal))),
    }
    match &facts.server {
        Ok(server) => {
            all.push(ok("connection", format!("PostgreSQL {}", server.version)));
            all.push(match server.may_backup {
                true => ok("rights", "this user may call the backup functions"),
                false => warning(
                    "rights",
                    "this user may not call pg_backup_start and pg_backup_stop",
                    "GRANT EXECUTE on both functions to it",
                ),
            });
            all.push(match server.wal_level.as_str() {
                "minimal" => {
                    warning("wal_level", "wal_level is minimal", "set it to replica and restart")
                }
                level => ok("wal_level", format!("wal_level is {level}")),
            });
            if server.full_page_writes && !server.in_recovery {
                all.push(ok("full_page_writes", "full_page_writes is on"));
            }
            if server.archive_mode != "off" {
                all.push(match server.archiver.as_str() {
                    "" => warning(
                        "archiving",
                        format!("archive_mode is {} and nothing archives", server.archive_mode),
                        "WAL piles up in pg_wal: set archive_command, or archive_mode = off",
                    ),
                    archiver => ok(
                        "archiving",
                        format!("archive_mode is {}, by {archiver}", server.archive_mode),
                    ),
                });
            }
        }
        Err(NoServer::Failed(why)) => all.push(finding(
            Severity::Error,
            "connection",
            format!("cannot connect: {why}"),
            Some("check host, port, user and password_file of this cluster".into()),
        )),
        Err(other) => all.push(ok("connection", other.words())),
    }
    all.extend(facts.server.iter().flat_map(of_wal_keepers));
    for volume in &facts.layout.volumes {
        all.push(ok("space", format!("{} has {} left", volume.dataset, bytes(volume.available))));
    }
    all
}

/// What keeps WAL from being recycled, until the pool is full.
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
    if let Some(segment) = &server.archive_failed {
        all.push(warning(
            "archiving",
            format!("WAL segment {segment} could not be archived"),
            "the server's log has the reason; WAL piles up in pg_wal meanwhile",
        ));
    }
    all
}

fn of_sets(cx: &Context) -> Result<Vec<Finding>> {
    let (sets, damaged) = cx.state.sets()?;
    let mut all: Vec<_> =
        damaged.iter().map(|(id, error)| failure(&format!("set {id}"), error)).collect();
    for set in &sets {
        if let Err(error) = restore::check_set(cx, set) {
            all.push(failure(&format!("set {}", set.set), &error));
        }
    }
    let hours = |set: &Manifest| jiff::Timestamp::now().duration_since(set.started_at).as_hours();
    all.push(match sets.last() {
        Some(last) if hours(last) >= i64::from(cx.cluster.max_age_hours) => warning(
            "sets",
            format!("the newest set, {}, is {} hours old", last.set, hours(last)),
            "does the timer run? look at its log, or raise max_age_hours",
        ),
        Some(last) => ok("sets", format!("{} sets, the newest is {}", sets.len(), last.set)),
        None => warning("sets", "there is no set yet", "take one: lockstep backup"),
    });
    Ok(all)
}

/// Whether a repository can be reached, how old its newest set is, and whether its store's locks are prolonged. What is
/// in it `repo check` looks at.
fn of_repository(cx: &Context, name: &str) -> Vec<Finding> {
    let subject = format!("repository {name}");
    let opened = repository::open(cx, name);
    let newest = opened.as_ref().map_or(Ok(None), Repository::newest);
    let now = jiff::Timestamp::now();
    let seconds = u64::try_from(now.as_second()).unwrap_or(0);
    let locks = opened.as_ref().map(|repository| locks::overdue(repository, seconds));
    let locks = match locks {
        Ok(Ok(Some(what))) => Some(warning(&subject, what, locks::OVERDUE_HINT)),
        Ok(Err(error)) => Some(failure(&subject, &error)),
        _ => None,
    };
    let newest = opened.and(newest);
    let age = match newest {
        Err(error) => failure(&subject, &error),
        Ok(None) => warning(&subject, "no set is in it yet", "ship one: lockstep ship"),
        Ok(Some(set)) => {
            let hours = now.duration_since(set.manifest.started_at).as_hours();
            let id = &set.manifest.set;
            if hours >= i64::from(cx.cluster.max_age_hours) {
                let what = format!("its newest set, {id}, is {hours} hours old");
                warning(&subject, what, "does `lockstep backup` say why it ships no more?")
            } else if set.bad_pages() > 0 {
                let what = format!("set {id} has {} damaged pages", set.bad_pages());
                warning(
                    &subject,
                    what,
                    "lockstep show and pg_checksums name them: restore the table from an older set",
                )
            } else {
                ok(&subject, format!("it can be reached, and its newest set is {id}"))
            }
        }
    };
    std::iter::once(age).chain(locks).collect()
}

fn of_clones(cx: &Context) -> Result<Vec<Finding>> {
    Ok(clone::list(cx)?
        .into_iter()
        .filter(|record| !record.is_running())
        .map(|record| {
            warning(
                "clones",
                format!("clone \"{}\" doesn't run", record.name),
                format!("lockstep clone destroy {}", record.name),
            )
        })
        .collect())
}
