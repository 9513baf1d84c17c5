//! `lockstep backup`.

use clap::Args;
use serde_json::{Value, json};

use super::output::{self, JSON_VERSION, say};
use super::{Done, plan, ship};
use crate::backup::{self, Request};
use crate::config::StrategyChoice;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::retention;
use crate::set::branches::{Apart, Branches, LeftBehind, Member};
use crate::set::manifest::Manifest;
use crate::ship::Extent;

#[derive(Debug, Args)]
pub(super) struct Backup {
    /// The strategy that makes the set consistent; without this, the one from the configuration
    #[arg(long, value_enum)]
    strategy: Option<StrategyChoice>,
    /// A label for the set, shown by `list`
    #[arg(long, value_name = "TEXT")]
    label: Option<String>,
    /// Keep the set on this host only; don't ship it to any repository
    #[arg(long)]
    no_ship: bool,
    /// Print the plan that would run, and take no backup
    #[arg(long)]
    dry_run: bool,
}

impl Backup {
    pub(super) fn run(&self, cx: &Context, json: bool) -> Result<Done> {
        let strategy = self.strategy.unwrap_or(cx.cluster.strategy);
        if self.dry_run {
            plan::show(cx, strategy, json)?;
            return Ok(Done::Well);
        }
        let label = self.label.clone();
        if label.as_deref().is_some_and(|text| text.chars().any(char::is_control)) {
            return Err(Error::usage(
                "the label holds a control character",
                "write it in one line",
            ));
        }
        if label.as_deref().is_some_and(|text| text.len() > 200) {
            return Err(Error::usage("the label is longer than 200 bytes", "shorten it"));
        }
        let manifest = backup::run(cx, &Request { strategy, label })?;
        let (sets, _) = cx.state.sets()?;
        let branches = Branches::of(sets.iter().map(Member::from), jiff::Timestamp::now());
        let left = branches.left_behind(&manifest);
        let (left, apart) = (left.as_ref(), branches.apart(&manifest));
        if self.no_ship || cx.cluster.repositories.is_empty() {
            if json {
                let mut value = as_json(&manifest);
                ship::put_branch(&mut value, left, apart);
                output::print_json(&value)?;
            } else {
                crate::steps::end_with_the_reader();
                as_text(&manifest);
            }
            return Ok(done(&sets, &manifest, left, apart));
        }
        if !json {
            as_text(&manifest);
        }
        let outcomes =
            crate::ship::run(cx, &manifest, &cx.cluster.repositories, Extent::Increment)?;
        if json {
            let mut value = as_json(&manifest);
            ship::put_branch(&mut value, left, apart);
            value["repositories"] = ship::as_json(&outcomes);
            output::print_json(&value)?;
        } else {
            crate::steps::end_with_the_reader();
            ship::as_text(&outcomes);
        }
        ship::tell_failures(&outcomes);
        Ok(match ship::done(&outcomes) {
            Done::Well => done(&sets, &manifest, left, apart),
            problems => problems,
        })
    }
}

/// Returns exit code 3 where the set is less than was meant: its data is old, there was no connection, this host's
/// own sets say that its timeline was left, or two clusters continue along its timeline; these two are reported here.
/// Also where another set is dated later than now, because that one would be taken for the newest.
fn done(
    sets: &[Manifest],
    manifest: &Manifest,
    left: Option<&LeftBehind>,
    apart: Option<&Apart>,
) -> Done {
    ship::tell_branch("", left, apart);
    let now = jiff::Timestamp::now();
    let is_ahead = |set: &&Manifest| retention::is_ahead(set.set.as_str(), now);
    let ahead: Vec<_> = sets.iter().filter(is_ahead).collect();
    for set in &ahead {
        let hint = retention::ahead_hint(set.set.as_str(), "--local");
        tracing::error!("set {} is dated later than now: {hint}", set.set);
    }
    let is_of_the_living = left.is_none() && apart.is_none();
    let is_well = manifest.problems().next().is_none() && ahead.is_empty() && is_of_the_living;
    if is_well { Done::Well } else { Done::WithProblems }
}

/// A set as `backup --json` and `list --json` print it.
pub(super) fn as_json(manifest: &Manifest) -> Value {
    let lsn = |lsn: Option<pgfiles::lsn::Lsn>| lsn.map(|lsn| lsn.to_string());
    let volumes: Vec<_> = manifest
        .volumes
        .iter()
        .map(|volume| {
            let parts: Vec<_> = volume.parts.iter().map(|part| part.kind.id()).collect();
            json!({
                "dataset": volume.dataset, "pool": volume.pool, "snapshot": volume.snapshot,
                "guid": volume.guid, "createtxg": volume.createtxg, "order": volume.order,
                "taken_at": volume.taken_at, "parts": parts,
            })
        })
        .collect();
    json!({
        "version": JSON_VERSION, "set": manifest.set, "cluster": manifest.cluster,
        "label": manifest.label, "strategy": manifest.strategy,
        "started_at": manifest.started_at, "finished_at": manifest.finished_at,
        "consistent_at": manifest.consistent_at, "data_at": manifest.data_at,
        "start_lsn": lsn(manifest.start_lsn), "stop_lsn": lsn(manifest.stop_lsn),
        "floor_lsn": lsn(manifest.floor_lsn), "timeline": manifest.postgres.timeline,
        "volumes": volumes, "wal": manifest.wal, "tries": manifest.tries,
        "warnings": manifest.warnings, "seconds": manifest.seconds,
    })
}

fn as_text(manifest: &Manifest) {
    say!("set {} is complete", manifest.set);
    say!("  strategy   {}", manifest.strategy);
    say!("  snapshots  {} in {:.3} s", manifest.volumes.len(), manifest.seconds.snapshots);
    if let Some(start) = manifest.start_lsn {
        say!("  starts at  {start}");
    }
    if let Some(floor) = manifest.floor_lsn {
        say!("  consistent {floor}");
    }
    say!(
        "  took       {:.2} s, of which {:.2} s for the checkpoint",
        manifest.seconds.total,
        manifest.seconds.checkpoint
    );
    for problem in manifest.problems() {
        say!("  PROBLEM    {}", problem.what);
    }
}
