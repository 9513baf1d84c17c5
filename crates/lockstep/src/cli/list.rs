//! `lockstep list` and `lockstep show`.

use clap::Args;
use serde::Serialize;
use serde_json::json;

use super::output::{self, JSON_VERSION, say, tell};
use super::{Done, backup, ship};
use crate::context::{Context, lockstep};
use crate::error::{Error, Result};
use crate::first_wal;
use crate::names::SetId;
use crate::plan::strategy::Strategy;
use crate::repository;
use crate::repository::{Shipped, ShippedVolume, files};
use crate::restore::source::Origin;
use crate::set::manifest::{Manifest, WalStored};
use crate::set::notes::{self, InRepository};
use crate::set::verify;
use crate::words::bytes;

#[derive(Debug, Args)]
pub(super) struct List {
    /// Where to look: snapshots (on this host), repository or repository:NAME
    #[arg(long, value_name = "FROM", default_value = "snapshots", value_parser = Origin::parse)]
    from: Origin,
    /// Print only the first WAL segment that any set on this host or in the cluster's repositories needs: a WAL archive
    /// has to be kept from there on
    #[arg(long, conflicts_with = "from")]
    first_wal: bool,
}

/// Standby data that is this much older than its set is worth a warning: the standby doesn't follow, or replay is
/// paused.
const OLD_DATA: jiff::SignedDuration = jiff::SignedDuration::from_hours(1);

/// A set in a list, and what is known about where it is stored.
struct Listed<'a> {
    manifest: &'a Manifest,
    /// In the repository that was asked.
    stored: Option<&'a Shipped>,
    /// For a set on this host: the repositories that have it too, as far as this host knows.
    elsewhere: Option<Vec<InRepository>>,
    /// Whether all of its snapshots exist.
    is_whole: bool,
    /// On this host, the bytes that only this set holds; in a repository, the bytes that were stored for it.
    own_bytes: u64,
}

impl List {
    pub(super) fn run(&self, cx: &Context, as_json: bool) -> Result<Done> {
        if self.first_wal {
            let segment = first_wal::find(cx)?;
            match as_json {
                true => {
                    output::print_json(&json!({"version": JSON_VERSION, "first_wal": segment}))?
                }
                false => say!("{segment}"),
            }
            return Ok(Done::Well);
        }
        match &self.from {
            Origin::Snapshots => {
                let (sets, mut damaged) = cx.state.sets()?;
                let (incomplete, own) = verify::look(cx, &sets)?;
                damaged.extend(incomplete);
                for set in &sets {
                    if damaged.iter().all(|(id, _)| *id != set.set)
                        && let Err(error) = verify::file_sizes(cx, set)
                        // It may be removed at the same time.
                        && cx.state.is_complete(set.set.as_str())
                    {
                        damaged.push((set.set.clone(), error));
                    }
                }
                let mut listed = Vec::new();
                let ids: Vec<_> = sets.iter().map(|set| &set.set).collect();
                let known = notes::known_in(&cx.state, &ids)?;
                for ((manifest, own_bytes), known) in sets.iter().zip(own).zip(known) {
                    let elsewhere = Some(known);
                    let is_whole = damaged.iter().all(|(id, _)| *id != manifest.set);
                    listed.push(Listed { manifest, stored: None, elsewhere, is_whole, own_bytes });
                }
                list(&listed, damaged, as_json)
            }
            Origin::Repository(name) => {
                let repository = repository::open_meant(cx, name.as_deref())?;
                let (sets, mut damaged) = repository.sets()?;
                let harmed = not_whole(cx, &repository);
                let mut listed = Vec::new();
                for set in &sets {
                    let (manifest, stored) = (&set.manifest, Some(set));
                    let own_bytes = set.volumes.iter().map(|volume| volume.stored_bytes).sum();
                    let is_whole = harmed.iter().all(|(id, _)| id != manifest.set.as_str());
                    let elsewhere = None;
                    listed.push(Listed { manifest, stored, elsewhere, is_whole, own_bytes });
                }
                if sets.is_empty()
                    && damaged.is_empty()
                    && let Some(hint) = repository.empty_hint()
                {
                    tell!("hint: it has no set of cluster \"{}\"; {hint}", cx.name);
                }
                damaged.extend(harmed);
                list(&listed, damaged, as_json)
            }
        }
    }
}

/// Returns the sets that aren't whole in a repository. They are looked for only if some weren't the last time: then a
/// shipment, or `check`, noted that.
fn not_whole(cx: &Context, repository: &repository::Repository) -> Vec<(String, Error)> {
    let harmed = repository::harm::look(cx, repository, false).unwrap_or_else(|error| {
        tracing::warn!(error = %error.chain(), "some sets weren't whole there, and whether they are now can't be told");
        Vec::new()
    });
    let error = |set: &str, why: &str| {
        let what = format!("set {set} isn't whole in repository {}: {why}", repository.name);
        Error::failed(what).with_hint(repository::harm::hint(&repository.name))
    };
    harmed.into_iter().map(|harm| (harm.set.clone(), error(&harm.set, &harm.why))).collect()
}

impl Listed<'_> {
    fn as_json(&self) -> serde_json::Value {
        let mut value = backup::as_json(self.manifest);
        if let Some(Stored { shipped_at, stored }) = self.stored.map(Stored::of) {
            value["shipped_at"] = json!(shipped_at);
            value["stored"] = json!(stored);
        }
        value["own_bytes"] = json!(self.own_bytes);
        if let Some(elsewhere) = &self.elsewhere {
            value["in_repositories"] = json!(elsewhere);
        }
        value
    }

    /// Why somebody should look at it, in a few words.
    fn problems(&self) -> String {
        let data = self.manifest.data_time();
        let mut words = Vec::new();
        if !self.is_whole {
            words.push("incomplete".into());
        }
        if self.manifest.started_at.duration_since(data) > OLD_DATA {
            words.push(format!("data of {}", data.strftime("%Y-%m-%d %H:%M:%SZ")));
        }
        match self.manifest.problems().count() {
            0 => {}
            1 => words.push("1 problem".into()),
            count => words.push(format!("{count} problems")),
        }
        match self.stored.map_or(0, Shipped::bad_pages) {
            0 => {}
            pages => words.push(format!("{pages} damaged pages")),
        }
        words.join(", ")
    }
}

/// Lists the sets, oldest first; damaged ones are named on stderr and cause exit code 3. Empty columns are left out.
fn list<T: serde::Serialize>(
    sets: &[Listed<'_>],
    damaged: Vec<(T, Error)>,
    as_json: bool,
) -> Result<Done> {
    if as_json {
        let sets: Vec<_> = sets.iter().map(Listed::as_json).collect();
        let damaged: Vec<_> =
            damaged.iter().map(|(set, e)| json!({"set": set, "error": e.chain()})).collect();
        output::print_json(&json!({"version": JSON_VERSION, "sets": sets, "damaged": damaged}))?;
    } else {
        print_table(sets);
    }
    for (_, error) in &damaged {
        output::error(error);
    }
    Ok(if damaged.is_empty() { Done::Well } else { Done::WithProblems })
}

fn print_table(sets: &[Listed<'_>]) {
    let has_problems = sets.iter().any(|set| !set.problems().is_empty());
    let is_elsewhere = |set: &Listed<'_>| set.elsewhere.as_ref().is_some_and(|all| !all.is_empty());
    let has_repositories = sets.iter().any(is_elsewhere);
    // As in `prune`: in a repository, later sets may still use the blocks of this one.
    let size = match sets.iter().any(|set| set.stored.is_some()) {
        true => "stored for it",
        false => "own bytes",
    };
    let first = sets.first().map(|set| set.manifest.postgres.timeline);
    let has_timelines = sets.iter().any(|set| Some(set.manifest.postgres.timeline) != first);
    let mut head = vec!["set", "taken", "strategy", "volumes", size, "floor lsn"];
    head.extend(has_timelines.then_some("timeline"));
    head.extend(has_repositories.then_some("repositories"));
    head.extend(has_problems.then_some("problems"));
    head.push("label");
    let mut table = output::table(&head);
    for listed in sets {
        let set = listed.manifest;
        let raw = listed.stored.map_or(0, |shipped| shipped.raw().count());
        let mut row = vec![
            set.set.to_string(),
            set.started_at.strftime("%Y-%m-%d %H:%M:%SZ").to_string(),
            set.strategy.to_string(),
            match raw {
                0 => set.volumes.len().to_string(),
                raw => format!("{}, {raw} raw", set.volumes.len()),
            },
            bytes(listed.own_bytes),
            // The set holds everything up to this LSN. If no server was asked, only recovery itself knows how far it
            // goes.
            set.floor_lsn.map_or_else(|| "-".into(), |lsn| lsn.to_string()),
        ];
        if has_timelines {
            row.push(set.postgres.timeline.to_string());
        }
        if has_repositories {
            row.push(match listed.elsewhere.as_deref() {
                None | Some([]) => "-".into(),
                Some(all) => names_of(all),
            });
        }
        if has_problems {
            let problems = listed.problems();
            row.push(if problems.is_empty() { "-".into() } else { problems });
        }
        row.push(set.label.clone().unwrap_or_default());
        table.add_row(row);
    }
    output::print_table(&table);
}

fn names_of(all: &[InRepository]) -> String {
    all.iter().map(|known| known.repository.as_str()).collect::<Vec<_>>().join(", ")
}

/// A set as `show --json` prints it: the manifest's fields in the order in which they are stored.
#[derive(Serialize)]
struct Shown<'a> {
    #[serde(flatten)]
    manifest: &'a Manifest,
    #[serde(flatten)]
    stored: Option<Stored<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    in_repositories: Option<&'a [InRepository]>,
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
    /// A set's id, the beginning of one, or `latest`
    #[arg(value_name = "SET")]
    set: String,
    /// Where to look: snapshots (on this host), repository or repository:NAME
    #[arg(long, value_name = "FROM", default_value = "snapshots", value_parser = Origin::parse)]
    from: Origin,
}

impl Show {
    pub(super) fn run(&self, cx: &Context, as_json: bool) -> Result<Done> {
        let there = match &self.from {
            Origin::Snapshots => None,
            Origin::Repository(name) => {
                let repository = repository::open_meant(cx, name.as_deref())?;
                let shipped = repository.find(cx, &self.set)?;
                Some((repository, shipped))
            }
        };
        let manifest = match &there {
            None => cx.find(&self.set)?,
            Some((_, shipped)) => shipped.manifest.clone(),
        };
        let elsewhere = match &there {
            None => notes::known_in(&cx.state, &[&manifest.set])?.pop(),
            Some(_) => None,
        };
        let incomplete = match &there {
            None => {
                let mut incomplete = verify::incomplete(cx, std::slice::from_ref(&manifest))?;
                let damaged = verify::files(cx, &manifest).err();
                incomplete.extend(damaged.map(|error| (manifest.set.clone(), error)));
                incomplete
            }
            Some((repository, _)) => {
                let mut harmed = not_whole(cx, repository);
                harmed.retain(|(id, _)| id == manifest.set.as_str());
                harmed.into_iter().map(|(_, error)| (manifest.set.clone(), error)).collect()
            }
        };
        let done = if incomplete.is_empty() { Done::Well } else { Done::WithProblems };
        for (_, error) in &incomplete {
            output::error(error);
        }
        if as_json {
            let shipped = there.as_ref().map(|(_, shipped)| shipped);
            output::print_json(&Shown {
                manifest: &manifest,
                stored: shipped.map(Stored::of),
                in_repositories: elsewhere.as_deref(),
            })?;
            return Ok(done);
        }
        let label = match &there {
            _ if !manifest.files.contains_key("backup_label") => Vec::new(),
            // If it is damaged, that was said above.
            None => cx.state.read_set_file(&manifest, "backup_label").unwrap_or_default(),
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
        if let Some(elsewhere) = elsewhere.filter(|_| !cx.cluster.repositories.is_empty()) {
            say!("\nin repositories, as far as this host knows");
            show_repositories(&manifest.set, &cx.cluster.repositories, &elsewhere);
        }
        if let Some((repository, shipped)) = &there {
            say!("\nin repository {} since {}", repository.name, shipped.shipped_at);
            for volume in &shipped.volumes {
                let how = ship::raw_in_words(volume).unwrap_or_else(|| "block by block".into());
                say!("  {}: {how}", volume.dataset);
            }
            ship::say_damaged_pages(&shipped.volumes);
        }
        Ok(done)
    }
}

/// Shows the configured repositories first, including those that don't have the set. Without its name `ship` would ship
/// the newest one.
fn show_repositories(set: &SetId, configured: &[String], known: &[InRepository]) {
    for name in configured.iter().filter(|name| known.iter().all(|k| k.repository != **name)) {
        say!("  {name}: no; `{} ship {set} --repository {name}` brings it there", lockstep());
    }
    for InRepository { repository, shipped_at, .. } in known {
        match shipped_at {
            Some(time) => say!("  {repository}: since {time}"),
            None => say!("  {repository}: yes"),
        }
    }
}

/// Prints everything about a set, with its label; `beside` is where its files are.
fn certificate(set: &Manifest, label: &[u8], beside: &str) {
    show_facts(set);
    say!("\nconsistent because\n  {}\n", set.consistent_because);
    show_volumes(set);
    show_wal(set, beside);
    if !label.is_empty() {
        say!("\nbackup_label");
        String::from_utf8_lossy(label).lines().for_each(|line| say!("  {line}"));
    }
    if !set.warnings.is_empty() {
        say!("\nwarnings");
    }
    for warning in &set.warnings {
        let mark = if warning.problem { "PROBLEM: " } else { "" };
        say!("  - {mark}{}: {}", warning.what, warning.hint);
    }
}

/// Prints which cluster and which time the set is of.
fn show_facts(set: &Manifest) {
    let line = |name: &str, value: String| say!("{name:<18} {value}");
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
        ("floor LSN", set.floor_lsn),
    ] {
        if let Some(lsn) = lsn {
            line(name, format!("{lsn} on timeline {}", set.postgres.timeline));
        }
    }
    if let Some(time) = set.consistent_at {
        line(
            "earliest target",
            format!("{time} (the earliest time that recovery can be asked for)"),
        );
    }
    if let Some(time) = set.data_at {
        let why = match (set.strategy, set.postgres.standby) {
            (Strategy::Cold, false) => "the cluster's last checkpoint",
            _ => "as far as its standby had replayed",
        };
        line("data of", format!("{time} ({why})"));
    }
}

fn show_volumes(set: &Manifest) {
    let mut table = output::table(&["order", "snapshot", "guid", "createtxg", "taken", "holds"]);
    for volume in &set.volumes {
        let parts: Vec<_> = volume.parts.iter().map(|part| part.kind.to_string()).collect();
        table.add_row([
            volume.order.to_string(),
            volume.snapshot.to_string(),
            volume.guid.to_string(),
            volume.createtxg.to_string(),
            volume.taken_at.strftime("%H:%M:%SZ").to_string(),
            parts.join(", "),
        ]);
    }
    output::print_table(&table);
}

fn show_wal(set: &Manifest, beside: &str) {
    let stored = match set.wal.stored {
        WalStored::Snapshot => "in pg_wal's snapshot".to_owned(),
        WalStored::Files => format!("in {beside}"),
    };
    if let (Some(first), Some(last)) = (set.wal.segments.first(), set.wal.segments.last()) {
        let count = set.wal.segments.len();
        let files = if count == 1 { "file" } else { "files" };
        say!("\nits own WAL: {count} {files} {stored}\n  {first} to {last}");
    }
    for (names, place) in [
        (&set.wal.fetched, "came from the primary"),
        (&set.wal.archived, "in the archive alone: a restore needs --restore-command"),
    ] {
        if !names.is_empty() {
            say!("  {place}: {}", names.join(", "));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::set::manifest::tests::manifest;

    #[test]
    fn a_list_says_which_sets_somebody_should_look_at() {
        let mut set = manifest("20261105T110000Z-aaaa", vec![]);
        let words = |set: &Manifest| {
            let (stored, elsewhere, is_whole) = (None, None, true);
            Listed { manifest: set, stored, elsewhere, is_whole, own_bytes: 0 }.problems()
        };
        assert_eq!(words(&set), "");
        set.warnings[0].problem = true;
        assert_eq!(words(&set), "1 problem");
        let old = set.started_at - jiff::SignedDuration::from_hours(30);
        set.data_at = Some(old);
        let said = words(&set);
        assert!(said.starts_with("data of ") && said.ends_with("Z, 1 problem"), "{said}");
        set.warnings.clear();
        set.data_at = Some(set.started_at - jiff::SignedDuration::from_mins(5));
        assert_eq!(words(&set), "", "a little behind is what standbys are");
    }
}
