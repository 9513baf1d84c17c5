//! `lockstep plan`.

use clap::Args;
use serde_json::json;

use super::Done;
use super::output::{self, JSON_VERSION, say};
use crate::backup;
use crate::config::StrategyChoice;
use crate::context::Context;
use crate::error::Result;
use crate::plan::facts::NoServer;
use crate::plan::{self, Facts, explain};
use crate::words::bytes;

#[derive(Debug, Args)]
pub(super) struct Plan {
    /// Show the plan for this strategy
    #[arg(long, value_enum)]
    strategy: Option<StrategyChoice>,
}

impl Plan {
    pub(super) fn run(&self, cx: &Context, json: bool) -> Result<Done> {
        show(cx, self.strategy.unwrap_or(cx.cluster.strategy), json)?;
        Ok(Done::Well)
    }
}

/// Shows the plan that a backup would run.
pub(super) fn show(cx: &Context, choice: StrategyChoice, json: bool) -> Result<()> {
    let (plan, survey) = backup::plan(cx, choice)?;
    if json {
        return output::print_json(&as_json(cx, &plan, &survey.facts));
    }
    as_text(cx, &plan, &survey.facts);
    Ok(())
}

fn as_json(cx: &Context, plan: &plan::Plan, facts: &Facts) -> serde_json::Value {
    let layout = &facts.layout;
    let volumes: Vec<_> = layout
        .volumes
        .iter()
        .enumerate()
        .map(|(index, volume)| {
            let parts: Vec<_> = layout
                .parts_on(index)
                .map(|part| json!({"part": part.kind.id(), "path": part.path.display().to_string()}))
                .collect();
            json!({
                "dataset": volume.dataset, "pool": volume.pool(), "mountpoint": volume.mountpoint.display().to_string(),
                "recordsize": volume.recordsize, "available": volume.available, "parts": parts,
            })
        })
        .collect();
    let steps: Vec<_> = plan.steps.iter().map(|step| explain::step(step, layout)).collect();
    let order: Vec<Vec<_>> = plan
        .groups()
        .map(|group| group.iter().map(|&volume| &layout.volumes[volume].dataset).collect())
        .collect();
    json!({
        "version": JSON_VERSION, "cluster": cx.name, "strategy": plan.strategy,
        "chosen_because": plan.chosen_because,
        "consistent_because": explain::why_consistent(plan.strategy, facts.is_standby()),
        "system_identifier": facts.control.system_identifier.to_string(),
        "volumes": volumes, "order": order, "steps": steps, "warnings": plan.warnings,
    })
}

fn as_text(cx: &Context, plan: &plan::Plan, facts: &Facts) {
    let layout = &facts.layout;
    let server = match (&facts.server, facts.postmaster) {
        (Ok(server), _) if server.in_recovery => {
            format!("PostgreSQL {}, connected, a standby", server.version)
        }
        (Ok(server), _) => format!("PostgreSQL {}, connected", server.version),
        (Err(why), Some(pid)) => format!("running (process {pid}), {}", why.words()),
        (Err(why @ NoServer::Failed(_)), None) => {
            format!("not seen to run, {}, {}", facts.control.state.as_str(), why.words())
        }
        (Err(NoServer::Another(difference)), None) => {
            format!(
                "not running, {}; another server answers: {difference}",
                facts.control.state.as_str()
            )
        }
        (Err(_), None) => format!("not running, {}", facts.control.state.as_str()),
    };
    say!("cluster {}: {server}", cx.name);
    say!("system identifier {}\n", facts.control.system_identifier);
    let mut table = output::table(&["dataset", "holds", "path", "recordsize", "free"]);
    for (index, volume) in layout.volumes.iter().enumerate() {
        for (row, part) in layout.parts_on(index).enumerate() {
            let first = |text: String| if row == 0 { text } else { String::new() };
            table.add_row([
                first(volume.dataset.to_string()),
                part.kind.to_string(),
                output::path(&part.path),
                first(output::recordsize(volume.recordsize)),
                first(bytes(volume.available)),
            ]);
        }
    }
    output::print_table(&table);
    say!("\nstrategy: {} ({})", plan.strategy, plan.chosen_because);
    for (number, step) in plan.steps.iter().enumerate() {
        say!("  {}. {}", number + 1, explain::step(step, layout));
    }
    say!(
        "\nwhy the set is consistent:\n  {}",
        explain::why_consistent(plan.strategy, facts.is_standby())
    );
    if !plan.warnings.is_empty() {
        say!("\nwarnings:");
    }
    for warning in &plan.warnings {
        let mark = if warning.problem { "PROBLEM: " } else { "" };
        say!("  - {mark}{}\n    {}", warning.what, warning.hint);
    }
}
