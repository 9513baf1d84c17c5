//! `lockstep ship`, and how the result of shipping a set to its repositories is shown.

use clap::Args;
use serde_json::{Value, json};

use super::Done;
use super::output::{self, JSON_VERSION, say, tell};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::names::SetId;
use crate::repository::went_back::{FOR_GOOD, WentBack};
use crate::repository::{Shipped, ShippedVolume, harm};
use crate::set::branches::{Apart, LeftBehind};
use crate::ship::{self, Extent, Outcome};
use crate::words::bytes;

#[derive(Debug, Args)]
pub(super) struct Ship {
    /// A set's id, the beginning of one, or `latest`; without this, the newest set on this host
    #[arg(value_name = "SET")]
    set: Option<String>,
    /// Ship to this repository only; without this, to all of the cluster's. May be given several times
    #[arg(long = "repository", value_name = "NAME")]
    repositories: Vec<String>,
    /// Ship every set that never was in the repository or that its storage lost, oldest first; for when a repository
    /// was unreachable for a while, or went back to an older state
    #[arg(long, conflicts_with_all = ["set", "full"])]
    missing: bool,
    /// Store all content of the set's volumes as the beginning of new chains, even if the set is there already; for use
    /// after damage
    #[arg(long)]
    full: bool,
}

impl Ship {
    pub(super) fn run(&self, cx: &Context, json: bool) -> Result<Done> {
        let names = match self.repositories.is_empty() {
            true => cx.cluster.repositories.clone(),
            // A mistyped name is an error of usage, not a repository that failed.
            false => crate::repository::of_cluster(cx, &self.repositories)?,
        };
        if names.is_empty() {
            return Err(Error::usage(
                format!("cluster \"{}\" has no repository", cx.name),
                format!("add repositories = [\"NAME\"] to [clusters.{}]", cx.name),
            ));
        }
        if self.missing {
            return ship_missing(cx, &names, json);
        }
        let manifest = match &self.set {
            // Also a set of a timeline that was left: the outcome for the repository reports that.
            None => cx.state.newest(&[])?,
            Some(set) => cx.find(set)?,
        };
        crate::restore::unfinished::remove(cx)?;
        let extent = if self.full { Extent::Full } else { Extent::Increment };
        let outcomes = ship::run(cx, &manifest, &names, extent)?;
        if json {
            output::print_json(&of_set(&manifest.set, &outcomes))?;
        } else {
            crate::steps::end_with_the_reader();
            say!("set {}", manifest.set);
            as_text(&outcomes);
        }
        tell_failures(&outcomes);
        Ok(done(&outcomes))
    }
}

/// Ships what each repository lacks, one repository after the other. What was done is reported even if an
/// interruption came.
fn ship_missing(cx: &Context, names: &[String], json: bool) -> Result<Done> {
    crate::restore::unfinished::remove(cx)?;
    let mut told =
        Told { json, sets: Vec::new(), failed: Vec::new(), lost: Vec::new(), done: Done::Well };
    let mut interrupted = None;
    for name in names {
        match told.ship_to(cx, name) {
            Err(error @ Error::Interrupted { .. }) => {
                interrupted = Some(error);
                break;
            }
            Err(error) => {
                output::error(&error);
                told.failed.push(json!({
                    "repository": name, "error": error.chain(), "hint": error.hint(),
                }));
                told.done = Done::WithProblems;
            }
            Ok(()) => {}
        }
    }
    if json {
        let partial = interrupted.is_some();
        let mut value = json!({
            "version": JSON_VERSION, "sets": told.sets, "failed": told.failed, "partial": partial,
        });
        if !told.lost.is_empty() {
            value["went_back"] = told.lost.into();
        }
        output::print_json(&value)?;
    }
    interrupted.map_or(Ok(told.done), Err)
}

/// The results for the sets that repositories lacked.
struct Told {
    json: bool,
    sets: Vec<Value>,
    /// Repositories that couldn't be asked which sets they lack.
    failed: Vec<Value>,
    /// What repositories lost that isn't there again.
    lost: Vec<Value>,
    done: Done,
}

impl Told {
    /// Ships every set that a repository lacks. A set with a problem doesn't hold up the others; if the repository
    /// fails, no further set is tried.
    fn ship_to(&mut self, cx: &Context, name: &str) -> Result<()> {
        let sets = ship::missing(cx, name)?;
        if sets.is_empty() && !self.json {
            say!("repository {name}: each of this host's sets is there, or was and is pruned");
        }
        for (set, manifest) in sets {
            let mut outcomes = match manifest {
                Ok(manifest) => ship::run(cx, &manifest, &[name.to_owned()], Extent::Increment)?,
                Err(error) => vec![Outcome::damaged(name, error)],
            };
            // What was lost is reported once, after everything was shipped.
            outcomes.iter_mut().for_each(|one| one.beside.went_back = None);
            self.tell(&set, &outcomes);
            if outcomes.iter().any(|one| one.result.is_err() && !one.beside.is_of_the_set) {
                return Ok(());
            }
        }
        if let Some(lost) = ship::lost_for_good(cx, name)? {
            let hint = match lost.here.is_empty() {
                true => FOR_GOOD.to_owned(),
                false => lost.hint(name),
            };
            tell_lost(name, &lost, &hint);
            self.lost.push(json!({"repository": name, "lost": lost.lost, "here": lost.here}));
            self.done = Done::WithProblems;
        }
        Ok(())
    }

    fn tell(&mut self, set: &SetId, outcomes: &[Outcome]) {
        if self.json {
            self.sets.push(of_set(set, outcomes));
        } else {
            say!("set {set}");
            as_text(outcomes);
        }
        tell_failures(outcomes);
        if let Done::WithProblems = done(outcomes) {
            self.done = Done::WithProblems;
        }
    }
}

fn of_set(set: &SetId, outcomes: &[Outcome]) -> Value {
    json!({"version": JSON_VERSION, "set": set, "repositories": as_json(outcomes)})
}

/// Exit code 3 where a repository failed, a page is wrong, the set's timeline was left, two clusters continue along
/// its timeline, or sets aren't whole there or were lost.
pub(super) fn done(outcomes: &[Outcome]) -> Done {
    if outcomes.iter().all(Outcome::is_well) { Done::Well } else { Done::WithProblems }
}

/// The results for a set, as `backup --json` and `ship --json` print them.
pub(super) fn as_json(outcomes: &[Outcome]) -> Value {
    let one = |outcome: &Outcome| {
        let mut value = match &outcome.result {
            Ok(shipped) => json!({
                "repository": outcome.repository, "complete": true, "bad_pages": shipped.bad_pages(),
                "already": outcome.already, "shipped_at": shipped.shipped_at,
                "volumes": shipped.volumes,
            }),
            Err(error) => json!({
                "repository": outcome.repository, "complete": false, "error": error.chain(),
                "hint": error.hint(), "was_there": outcome.beside.was_there,
            }),
        };
        put_branch(&mut value, outcome.beside.left.as_ref(), outcome.beside.apart.as_ref());
        if !outcome.beside.harmed.is_empty() {
            value["not_whole"] = json!(outcome.beside.harmed);
        }
        if let Some(lost) = &outcome.beside.went_back {
            value["went_back"] = json!(lost);
        }
        if let Some(first) = &outcome.beside.finished_first {
            value["finished_first"] = json!({
                "set": first.manifest.set, "bad_pages": first.bad_pages(),
                "shipped_at": first.shipped_at, "volumes": first.volumes,
            });
        }
        value
    };
    outcomes.iter().map(one).collect()
}

/// The same for people.
pub(super) fn as_text(outcomes: &[Outcome]) {
    for outcome in outcomes {
        if let Some(first) = &outcome.beside.finished_first {
            say!(
                "  repository {}: set {}, whose shipment had been interrupted, was finished first",
                outcome.repository,
                first.manifest.set
            );
            shipped_as_text(&outcome.repository, first, false);
        }
        match &outcome.result {
            Ok(shipped) => {
                shipped_as_text(&outcome.repository, shipped, outcome.already);
                if outcome.beside.left.is_some() {
                    // stderr says why.
                    say!("  LEFT BEHIND in {}", outcome.repository);
                }
            }
            // stderr says why.
            Err(_) if outcome.beside.was_there => {
                say!("  repository {}: there already, and NOT replaced", outcome.repository);
            }
            Err(_) => say!("  repository {}: NOT there", outcome.repository),
        }
    }
}

/// Adds what is wrong with a set's timeline to the JSON value.
pub(super) fn put_branch(value: &mut Value, left: Option<&LeftBehind>, apart: Option<&Apart>) {
    if let Some(left) = left {
        value["left_behind"] = left.to_string().into();
    }
    if let Some(apart) = apart {
        value["apart"] = apart.to_string().into();
    }
}

/// Prints the same as text; `place` says where.
pub(super) fn tell_branch(place: &str, left: Option<&LeftBehind>, apart: Option<&Apart>) {
    if let Some(left) = left {
        tell!("error: {place}{left}");
        tell!("hint: {}", left.hint());
    }
    if let Some(apart) = apart {
        tell!("error: {place}{apart}");
        tell!("hint: {}", apart.hint());
    }
}

/// Prints as text, once, why a set isn't in a repository or is of no use there.
pub(super) fn tell_failures(outcomes: &[Outcome]) {
    for outcome in outcomes {
        let place = format!("repository {}: ", outcome.repository);
        tell_branch(&place, outcome.beside.left.as_ref(), outcome.beside.apart.as_ref());
        if let Some(what) = harm::in_words(&outcome.beside.harmed) {
            tell!("error: {place}{what}");
            tell!("hint: {}", harm::hint(&outcome.repository));
        }
        if let Some(lost) = &outcome.beside.went_back {
            tell_lost(&outcome.repository, lost, &lost.hint(&outcome.repository));
        }
        if let Err(error) = &outcome.result {
            let (repository, why) = (&outcome.repository, error.chain());
            match outcome.beside.was_there {
                true => {
                    tell!("error: the set was not replaced in repository {repository}: {why}")
                }
                false => tell!("error: the set isn't in repository {repository}: {why}"),
            }
            if let Some(hint) = error.hint() {
                tell!("hint: {hint}");
            }
        }
    }
}

/// Prints as text which sets a repository lost.
fn tell_lost(repository: &str, lost: &WentBack, hint: &str) {
    tell!("error: repository {repository}: {}", lost.in_words());
    tell!("hint: {hint}");
}

/// How a volume that is stored raw, so that nobody can look into it, is stored.
pub(super) fn raw_in_words(volume: &ShippedVolume) -> Option<String> {
    let increments = match volume.raw.as_ref()?.len() {
        0 | 1 => "a full stream".to_owned(),
        2 => "a full stream and 1 increment".to_owned(),
        count => format!("a full stream and {} increments", count - 1),
    };
    Some(format!("raw, encrypted as on disk: {increments}; pages not checked"))
}

fn shipped_as_text(repository: &str, shipped: &Shipped, already: bool) {
    let sum = |of: fn(&ShippedVolume) -> u64| -> u64 { shipped.volumes.iter().map(of).sum() };
    let kind = match shipped.volumes.iter().filter(|volume| volume.base.is_none()).count() {
        0 => "incremental".to_owned(),
        full if full == shipped.volumes.len() => "full".to_owned(),
        full => format!("{full} of {} volumes full", shipped.volumes.len()),
    };
    match already {
        true => say!(
            "  repository {repository}: there already, since {}; nothing was sent",
            shipped.shipped_at.strftime("%Y-%m-%d %H:%M:%SZ")
        ),
        false => say!(
            "  repository {repository}: {kind}, {} sent, {} stored",
            bytes(sum(|volume| volume.stream_bytes)),
            bytes(sum(|volume| volume.stored_bytes)),
        ),
    }
    for volume in &shipped.volumes {
        if let Some(words) = raw_in_words(volume) {
            say!("             {}: {words}", volume.dataset);
        }
    }
    say_damaged_pages(&shipped.volumes);
}

/// Names the pages with wrong checksums.
pub(super) fn say_damaged_pages(volumes: &[ShippedVolume]) {
    for volume in volumes.iter().filter(|volume| volume.pages.bad > 0) {
        say!("  DAMAGED PAGES in {}: {}", volume.dataset, volume.pages.bad);
        for (path, block) in &volume.pages.bad_pages {
            say!("             {path} block {block}");
        }
    }
}
