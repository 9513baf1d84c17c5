//! `lockstep adopt`.

use std::collections::BTreeSet;

use clap::Args;
use serde_json::{Value, json};

use super::Done;
use super::output::{self, JSON_VERSION, say};
use crate::adopt::{self, Adopted, Report, Request};
use crate::context::{Context, lockstep};
use crate::error::Result;

#[derive(Debug, Args)]
pub(super) struct Adopt {
    /// Sets, by id or the beginning of one, including sets on this host that carry another state_dir's marks; without
    /// this, all sets of the repositories whose snapshots are on this host
    #[arg(value_name = "SET")]
    sets: Vec<String>,
    /// Adopt from this repository only; without this, from all of the cluster's. May be given several times
    #[arg(long = "repository", value_name = "NAME")]
    repositories: Vec<String>,
    /// Print what would be adopted; change nothing
    #[arg(long)]
    dry_run: bool,
}

impl Adopt {
    pub(super) fn run(&self, cx: &Context, json: bool) -> Result<Done> {
        let request = Request {
            sets: self.sets.clone(),
            repositories: self.repositories.clone(),
            dry_run: self.dry_run,
        };
        let report = adopt::run(cx, &request)?;
        if json {
            output::print_json(&as_json(&report, self.dry_run))?;
        } else {
            as_text(&report, self.dry_run);
        }
        for (what, error) in &report.failed {
            tracing::warn!("{what} isn't adopted: {}", error.chain());
        }
        // A set that was named on the command line is stored elsewhere.
        let missed = !self.sets.is_empty() && !report.elsewhere.is_empty();
        let is_well = report.failed.is_empty() && !missed;
        Ok(if is_well { Done::Well } else { Done::WithProblems })
    }
}

fn as_json(report: &Report, dry_run: bool) -> Value {
    let adopted = |one: &Adopted| json!({"set": one.set, "repositories": one.repositories, "owners": one.owners, "was_here": one.was_here});
    let marked = report.marked.iter().map(|(set, owners)| json!({"set": set, "owners": owners}));
    let elsewhere = report.elsewhere.iter().map(|(set, why)| json!({"set": set, "missing": why}));
    let failed =
        report.failed.iter().map(|(what, error)| json!({"what": what, "error": error.chain()}));
    json!({
        "version": JSON_VERSION, "dry_run": dry_run, "known": report.known,
        "adopted": report.adopted.iter().map(adopted).collect::<Vec<_>>(),
        "marked": marked.collect::<Vec<_>>(),
        "elsewhere": elsewhere.collect::<Vec<_>>(), "failed": failed.collect::<Vec<_>>(),
    })
}

fn as_text(report: &Report, dry_run: bool) {
    let would = if dry_run { "would be" } else { "is" };
    let joined = |owners: &BTreeSet<String>| {
        owners.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
    };
    for Adopted { set, repositories, owners, was_here } in &report.adopted {
        if *was_here {
            let of = joined(owners);
            say!("set {set}, which is here with the marks of state_dir {of}, {would} this host's");
            continue;
        }
        let by = match owners.is_empty() {
            true => String::new(),
            false => format!(", which state_dir {} took,", joined(owners)),
        };
        say!(
            "set {set}{by} {would} this host's, with what repository {} has",
            repositories.join(", ")
        );
    }
    for (set, owners) in &report.marked {
        say!(
            "set {set} is here with the marks of state_dir {}: where that one is gone, `{} adopt {set}` makes it this host's",
            joined(owners),
            lockstep()
        );
    }
    for (set, missing) in &report.elsewhere {
        say!("set {set} is in the repository alone: {missing}");
    }
    if report.adopted.is_empty() {
        say!("nothing to adopt; {} sets are this host's already", report.known);
    }
}
