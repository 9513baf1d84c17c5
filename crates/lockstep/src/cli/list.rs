//! `lockstep list` and `lockstep show`.

use clap::Args;
use serde_json::json;

use super::output::{self, JSON_VERSION};
use super::{Done, backup};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::restore::source::{self, From};
use crate::set::manifest::{Manifest, WalStored};

#[derive(Debug, Args)]
pub(super) struct List {
    /// Where to look: snapshots, repository or repository:NAME
    #[arg(long, value_name = "FROM", default_value = "snapshots", value_parser = From::parse)]
    from: From,
}

impl List {
    pub(super) fn run(&self, cx: &Context, as_json: bool) -> Result<Done> {
        match &self.from {
            From::Snapshots => {
                let (sets, damaged) = cx.state.sets()?;
                list(&sets, damaged, as_json)
            }
            From::Repository(name) => {
                let repository = source::open_repository(cx, name.as_deref())?;
                let (sets, damaged) = repository.sets()?;
                let sets: Vec<_> = sets.into_iter().map(|shipped| shipped.manifest).collect();
                list(&sets, damaged, as_json)
            }
        }
    }
}

/// Lists the sets, oldest first; damaged ones are named on stderr and make exit code 3.
fn list<T: serde::Serialize>(
    sets: &[Manifest],
    damaged: Vec<(T, Error)>,
    as_json: bool,
) -> Result<Done> {
    if as_json {
        let sets: Vec<_> = sets.iter().map(backup::as_json).collect();
        let damaged: Vec<_> =
            damaged.iter().map(|(set, e)| json!({"set": set, "error": e.chain()})).collect();
        output::print_json(&json!({"version": JSON_VERSION, "sets": sets, "damaged": damaged}))?;
    } else {
        let mut table =
            output::table(&["set", "taken", "strategy", "volumes", "consistent at", "label"]);
        for set in sets {
            table.add_row([
                set.set.to_string(),
                set.started_at.strftime("%Y-%m-%d %H:%M:%SZ").to_string(),
                set.strategy.to_string(),
                set.volumes.len().to_string(),
                set.floor_lsn.or(set.start_lsn).map_or_else(String::new, |lsn| lsn.to_string()),
                set.label.clone().unwrap_or_default(),
            ]);
        }
        output::print_table(&table);
    }
    for (_, error) in &damaged {
        output::error(error);
    }
    Ok(if damaged.is_empty() { Done::Well } else { Done::WithProblems })
}

#[derive(Debug, Args)]
pub(super) struct Show {
    /// A set's id, its beginning, or `latest`
    #[arg(value_name = "SET")]
    set: String,
}

impl Show {
    pub(super) fn run(&self, cx: &Context, json: bool) -> Result<Done> {
        let manifest = cx.state.find(&self.set)?;
        if json {
            output::print_json(&manifest)?;
        } else {
            certificate(cx, &manifest)?;
        }
        Ok(Done::Well)
    }
}

fn certificate(cx: &Context, set: &Manifest) -> Result<()> {
    let line = |name: &str, value: String| println!("{name:<18} {value}");
    line("set", set.set.to_string());
    line(
        "cluster",
        format!("{} (system identifier {})", set.cluster, set.postgres.system_identifier),
    );
    if let Some(major) = set.postgres.major {
        line("postgresql", major.to_string());
    }
    if let Some(label) = &set.label {
        line("label", label.clone());
    }
    if set.postgres.standby {
        line("taken from", "a standby".into());
    }
    line("strategy", format!("{} ({})", set.strategy, set.chosen_because));
    line("begun", set.started_at.to_string());
    line("finished", set.finished_at.to_string());
    for (name, lsn) in [
        ("recovery starts", set.start_lsn),
        ("backup ends", set.stop_lsn),
        ("consistent from", set.floor_lsn),
    ] {
        if let Some(lsn) = lsn {
            line(name, format!("{lsn} on timeline {}", set.postgres.timeline));
        }
    }
    if let Some(time) = set.consistent_at {
        line("consistent at", time.to_string());
    }
    println!("\nconsistent because\n  {}\n", set.consistent_because);
    let mut table = output::table(&["order", "snapshot", "guid", "createtxg", "taken", "holds"]);
    for volume in &set.volumes {
        let parts: Vec<_> = volume.parts.iter().map(|part| part.kind.to_string()).collect();
        table.add_row([
            volume.order.to_string(),
            volume.snapshot.clone(),
            volume.guid.clone(),
            volume.createtxg.to_string(),
            volume.taken_at.strftime("%H:%M:%SZ").to_string(),
            parts.join(", "),
        ]);
    }
    output::print_table(&table);
    let stored = match set.wal.stored {
        WalStored::Snapshot => "in pg_wal's snapshot".to_owned(),
        WalStored::Files => {
            format!("in \"{}\"", cx.state.set_directory(&set.set).join("wal").display())
        }
    };
    if let (Some(first), Some(last)) = (set.wal.segments.first(), set.wal.segments.last()) {
        let count = set.wal.segments.len();
        let files = if count == 1 { "file" } else { "files" };
        println!("\nits own WAL: {count} {files} {stored}\n  {first} to {last}");
    }
    for (names, place) in [
        (&set.wal.fetched, "came from the primary"),
        (&set.wal.archived, "in the archive alone: a restore needs --restore-command"),
    ] {
        if !names.is_empty() {
            println!("  {place}: {}", names.join(", "));
        }
    }
    if set.files.contains_key("backup_label") {
        let label = cx.state.read_set_file(set, "backup_label")?;
        println!("\nbackup_label");
        String::from_utf8_lossy(&label).lines().for_each(|line| println!("  {line}"));
    }
    if !set.warnings.is_empty() {
        println!("\nwarnings");
    }
    for warning in &set.warnings {
        println!("  - {}: {}", warning.what, warning.hint);
    }
    Ok(())
}
