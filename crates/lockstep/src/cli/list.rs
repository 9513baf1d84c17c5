//! `lockstep list` and `lockstep show`.

use clap::Args;
use serde::Serialize;
use serde_json::json;

use super::output::{self, JSON_VERSION};
use super::{Done, backup, ship};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::repository::{Shipped, ShippedVolume, files};
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
                let sets: Vec<_> = sets.iter().map(|set| (set, None)).collect();
                list(&sets, damaged, as_json)
            }
            From::Repository(name) => {
                let repository = source::open_repository(cx, name.as_deref())?;
                let (sets, damaged) = repository.sets()?;
                let sets: Vec<_> = sets.iter().map(|set| (&set.manifest, Some(set))).collect();
                list(&sets, damaged, as_json)
            }
        }
    }
}

/// Lists the sets, oldest first, with what a repository says of them; damaged ones are named on stderr
/// and make exit code 3.
fn list<T: serde::Serialize>(
    sets: &[(&Manifest, Option<&Shipped>)],
    damaged: Vec<(T, Error)>,
    as_json: bool,
) -> Result<Done> {
    if as_json {
        let one = |(set, shipped): &(&Manifest, Option<&Shipped>)| {
            let mut value = backup::as_json(set);
            if let Some(Stored { shipped_at, stored }) = shipped.map(Stored::of) {
                value["shipped_at"] = json!(shipped_at);
                value["stored"] = json!(stored);
            }
            value
        };
        let sets: Vec<_> = sets.iter().map(one).collect();
        let damaged: Vec<_> =
            damaged.iter().map(|(set, e)| json!({"set": set, "error": e.chain()})).collect();
        output::print_json(&json!({"version": JSON_VERSION, "sets": sets, "damaged": damaged}))?;
    } else {
        let mut table =
            output::table(&["set", "taken", "strategy", "volumes", "consistent at", "label"]);
        for (set, shipped) in sets {
            let raw = shipped.map_or(0, |shipped| shipped.raw().count());
            table.add_row([
                set.set.to_string(),
                set.started_at.strftime("%Y-%m-%d %H:%M:%SZ").to_string(),
                set.strategy.to_string(),
                match raw {
                    0 => set.volumes.len().to_string(),
                    raw => format!("{}, {raw} raw", set.volumes.len()),
                },
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

/// A set as `show --json` prints it: as it is kept, in that order.
#[derive(Serialize)]
struct Shown<'a> {
    #[serde(flatten)]
    manifest: &'a Manifest,
    #[serde(flatten)]
    stored: Option<Stored<'a>>,
}

/// How a set's volumes are stored.
#[derive(Serialize)]
struct Stored<'a> {
    shipped_at: jiff::Timestamp,
    stored: &'a [ShippedVolume],
}

impl<'a> Stored<'a> {
    fn of(shipped: &'a Shipped) -> Self {
        Self { shipped_at: shipped.shipped_at, stored: &shipped.volumes }
    }
}

#[derive(Debug, Args)]
pub(super) struct Show {
    /// A set's id, its beginning, or `latest`
    #[arg(value_name = "SET")]
    set: String,
    /// Where to look: snapshots, repository or repository:NAME
    #[arg(long, value_name = "FROM", default_value = "snapshots", value_parser = From::parse)]
    from: From,
}

impl Show {
    pub(super) fn run(&self, cx: &Context, as_json: bool) -> Result<Done> {
        let there = match &self.from {
            From::Snapshots => None,
            From::Repository(name) => {
                let repository = source::open_repository(cx, name.as_deref())?;
                let shipped = repository.find(&self.set)?;
                Some((repository, shipped))
            }
        };
        let manifest = match &there {
            None => cx.state.find(&self.set)?,
            Some((_, shipped)) => shipped.manifest.clone(),
        };
        if as_json {
            let shipped = there.as_ref().map(|(_, shipped)| shipped);
            output::print_json(&Shown { manifest: &manifest, stored: shipped.map(Stored::of) })?;
            return Ok(Done::Well);
        }
        let label = match &there {
            _ if !manifest.files.contains_key("backup_label") => Vec::new(),
            None => cx.state.read_set_file(&manifest, "backup_label")?,
            Some((repository, _)) => {
                let (mut label, set) = (Vec::new(), manifest.set.as_str());
                files::content(repository, set, "backup_label", |_, bytes| {
                    label.extend_from_slice(bytes);
                    Ok(())
                })?;
                label
            }
        };
        let beside = match &there {
            None => format!("\"{}\"", cx.state.set_directory(&manifest.set).join("wal").display()),
            Some((repository, _)) => format!("repository {}", repository.name),
        };
        certificate(&manifest, &label, &beside);
        if let Some((repository, shipped)) = &there {
            println!("\nin repository {} since {}", repository.name, shipped.shipped_at);
            for volume in &shipped.volumes {
                let how = ship::raw_in_words(volume).unwrap_or_else(|| "block by block".into());
                println!("  {}: {how}", volume.dataset);
            }
        }
        Ok(Done::Well)
    }
}

/// All about a set, with its label; `beside` is where its files are.
fn certificate(set: &Manifest, label: &[u8], beside: &str) {
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
        WalStored::Files => format!("in {beside}"),
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
    if !label.is_empty() {
        println!("\nbackup_label");
        String::from_utf8_lossy(label).lines().for_each(|line| println!("  {line}"));
    }
    if !set.warnings.is_empty() {
        println!("\nwarnings");
    }
    for warning in &set.warnings {
        println!("  - {}: {}", warning.what, warning.hint);
    }
}
