//! `lockstep prune`.

use clap::{ArgGroup, Args};
use serde_json::{Value, json};

use super::Done;
use super::output::{self, JSON_VERSION, say, tell};
use crate::config::parse_most_bytes;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::prune::{self, Entry, Fate, Outcome, Place, Plan, Report, Request};
use crate::words::bytes;

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("place").multiple(true)))]
pub(super) struct Prune {
    /// Print what would be removed, and why the rest is kept; remove nothing
    #[arg(long)]
    dry_run: bool,
    /// Prune the sets on this host
    #[arg(long, group = "place")]
    local: bool,
    /// Prune the sets in this repository; without --local and --repository, all places are pruned
    #[arg(long, value_name = "NAME", group = "place")]
    repository: Vec<String>,
    /// Remove this set (its id or the beginning of one) whatever the policy says; needs --local or --repository
    #[arg(long = "set", value_name = "ID", requires = "place")]
    sets: Vec<String>,
    /// In each repository, stop merging after reading this many bytes of indexes; 0 merges nothing
    #[arg(long, value_name = "BYTES", value_parser = parse_most_bytes)]
    max_merge_bytes: Option<u64>,
    /// In each repository, rewrite at most this much of packs that are mostly dead (repack_below), 0 for none; the
    /// next prune continues
    #[arg(long, value_name = "BYTES", value_parser = parse_most_bytes, default_value = "10GiB")]
    max_repack_bytes: u64,
}

impl Prune {
    pub(super) fn run(&self, cx: &Context, as_json: bool) -> Result<Done> {
        let request = Request {
            dry_run: self.dry_run,
            local: self.local,
            repositories: self.repository.clone(),
            sets: self.sets.clone(),
            max_merge_bytes: self.max_merge_bytes,
            max_repack_bytes: self.max_repack_bytes,
        };
        let report = prune::run(cx, &request, |plan| {
            if !as_json {
                show(plan, self.dry_run);
            }
        })?;
        if as_json {
            let places: Vec<_> = report.iter().map(|(place, how)| place_json(place, how)).collect();
            output::print_json(&json!({
                "version": JSON_VERSION, "cluster": cx.name, "dry_run": self.dry_run,
                "places": places,
            }))?;
        }
        end(report, as_json, self.dry_run)
    }
}

/// Reports the result of each place. The exit code is the worst one: interrupted, then locked, then with problems.
fn end(report: Report, as_json: bool, dry_run: bool) -> Result<Done> {
    let mut done = Done::Well;
    let (alone, mut locked) = (report.len() == 1, None);
    for (place, outcome) in report {
        let error = match outcome {
            Ok(outcome) => {
                if !as_json && !dry_run {
                    summary(&outcome);
                }
                if warn(&place, &outcome.plan) {
                    done = Done::WithProblems;
                }
                outcome.error
            }
            Err(error) => Some(error),
        };
        match error {
            None => {}
            Some(error) if alone || matches!(error, Error::Interrupted { .. }) => {
                return Err(error);
            }
            Some(error @ Error::Locked { .. }) if locked.is_none() => locked = Some(error),
            Some(error) => {
                output::error(&error);
                done = Done::WithProblems;
            }
        }
    }
    locked.map_or(Ok(done), Err)
}

/// Prints what is wrong at a place; returns whether anything is.
fn warn(place: &Place, plan: &Plan) -> bool {
    for problem in &plan.problems {
        tell!("warning: {place}: {problem}");
    }
    for entry in &plan.entries {
        if let Fate::Left(why) = &entry.fate {
            tell!("warning: {place}: set {} is left: {why}", entry.set);
        }
    }
    plan.has_problems()
}

fn show(plan: &Plan, dry_run: bool) {
    if !plan.configured {
        say!("{}: no retention is configured, nothing is touched\n", plan.place);
        return;
    }
    say!("{}", plan.place);
    // In a repository, later sets may still use the blocks of a set that is removed.
    let size = match plan.place {
        Place::Local => "own bytes",
        Place::Repository(_) => "stored for it",
    };
    let mut table = output::table(&["set", "taken", size, "plan", "why"]);
    for entry in &plan.entries {
        let (fate, why) = match &entry.fate {
            Fate::Keep(_) => ("keep", reasons(entry).join(", ")),
            Fate::Remove if dry_run => ("would remove", String::new()),
            Fate::Remove => ("remove", String::new()),
            Fate::Left(why) => ("left", why.clone()),
        };
        table.add_row([
            entry.set.clone(),
            entry.time.map_or_else(String::new, |t| t.strftime("%Y-%m-%d %H:%M:%SZ").to_string()),
            entry.bytes.map_or_else(String::new, bytes),
            fate.to_owned(),
            why,
        ]);
    }
    output::print_table(&table);
    if let Some(until) = plan.locks_until {
        let would = if dry_run { "would be" } else { "is" };
        let until = until.strftime("%Y-%m-%d %H:%MZ");
        say!("what the kept sets need {would} locked in the store until {until}");
    }
    say!();
}

fn summary(outcome: &Outcome) {
    if !outcome.plan.configured {
        return;
    }
    let place = &outcome.plan.place;
    let sets = |count: usize| if count == 1 { "1 set".into() } else { format!("{count} sets") };
    say!("{place}: {} removed", sets(outcome.removed.len()));
    if let Some(done) = &outcome.done {
        say!(
            "{place}: {} deltas merged, {} objects deleted, {} wait for their grace time",
            done.merged,
            done.deleted,
            done.waiting
        );
        if done.repacked > 0 {
            let (packs, written) = (done.repacked, bytes(done.repacked_bytes));
            say!("{place}: {packs} packs with little live data rewritten as {written}");
        }
        if done.repack_left > 0 {
            let left = done.repack_left;
            say!(
                "{place}: {left} more have little live data and are left for the next prune (--max-repack-bytes)"
            );
        }
        if done.locked > 0 {
            say!("{place}: {} objects are locked in the store, and are deleted later", done.locked);
        }
        if done.locks_prolonged > 0 {
            say!("{place}: locks of {} objects prolonged", done.locks_prolonged);
        }
    }
}

fn reasons(entry: &Entry) -> Vec<String> {
    match &entry.fate {
        Fate::Keep(reasons) => reasons.iter().map(ToString::to_string).collect(),
        _ => Vec::new(),
    }
}

fn place_json(place: &Place, outcome: &Result<Outcome>) -> Value {
    let (kind, repository) = match place {
        Place::Local => ("local", None),
        Place::Repository(name) => ("repository", Some(name)),
    };
    let outcome = match outcome {
        Ok(outcome) => outcome,
        Err(error) => {
            return json!({
                "place": kind, "repository": repository, "configured": true, "sets": [],
                "problems": [], "removed": [], "merged": null, "deleted": null, "waiting": null,
                "repacked": null, "repacked_bytes": null, "repack_left": null, "locked": null, "locks_until": null, "locks_prolonged": null,
                "error": error.chain(),
            });
        }
    };
    let sets: Vec<_> = outcome.plan.entries.iter().map(entry_json).collect();
    let done = outcome.done.as_ref();
    json!({
        "place": kind, "repository": repository, "configured": outcome.plan.configured,
        "sets": sets, "problems": outcome.plan.problems, "removed": outcome.removed,
        "merged": done.map(|done| done.merged), "deleted": done.map(|done| done.deleted),
        "waiting": done.map(|done| done.waiting), "locked": done.map(|done| done.locked),
        "repacked": done.map(|done| done.repacked),
        "repacked_bytes": done.map(|done| done.repacked_bytes),
        "repack_left": done.map(|done| done.repack_left),
        "locks_until": outcome.plan.locks_until,
        "locks_prolonged": done.map(|done| done.locks_prolonged),
        "error": outcome.error.as_ref().map(Error::chain),
    })
}

fn entry_json(entry: &Entry) -> Value {
    let (action, why) = match &entry.fate {
        Fate::Keep(_) => ("keep", None),
        Fate::Remove => ("remove", None),
        Fate::Left(why) => ("left", Some(why)),
    };
    json!({
        "set": entry.set, "taken_at": entry.time, "action": action,
        "reasons": reasons(entry), "why": why, "own_bytes": entry.bytes,
    })
}
