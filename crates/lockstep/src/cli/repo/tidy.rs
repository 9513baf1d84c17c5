//! `lockstep repo list|check|compact`.

use clap::Args;
use serde_json::{Value, json};
use strata::check::{Begun, Collected, Run, Terms, collect};
use strata::manifest::Manifest;
use strata::repack::{Repacked, repack};
use strata::store::{Listed, Reach};

use super::super::Done;
use super::super::output::{self, JSON_VERSION};
use super::meant;
use crate::config::parse_most_bytes;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::repository::check::{self, Checked, Repair, Repaired, Severity};
use crate::repository::lease::Held;
use crate::repository::{self, Repository, harm, of_strata};
use crate::set::{at_work, verify};
use crate::ship::{self, begun};
use crate::steps;
use crate::words::{bytes, counted};

#[derive(Debug, Args)]
pub(super) struct Check {
    /// The repository; without this, all of the cluster's
    name: Option<String>,
    /// Also read the packs, or this percentage of them
    #[arg(
        long, value_name = "PERCENT", num_args = 0..=1, require_equals = true,
        default_missing_value = "100", value_parser = clap::value_parser!(u8).range(1..=100)
    )]
    read_data: Option<u8>,
    /// Delete what no set has needed for the grace time (grace_hours)
    #[arg(long)]
    repair: bool,
}

#[derive(Debug, Args)]
pub(super) struct Compact {
    /// The repository; without this, all of the cluster's
    name: Option<String>,
    /// Print what would be done; do nothing
    #[arg(long)]
    dry_run: bool,
    /// Rewrite at most this much, such as 10GiB; with 0 only delete
    #[arg(long, value_name = "BYTES", value_parser = parse_most_bytes)]
    max_bytes: Option<u64>,
    /// Rewrite packs in which less than this percentage is still needed
    #[arg(
        long, value_name = "PERCENT", default_value = "50",
        value_parser = clap::value_parser!(u8).range(1..=100)
    )]
    live: u8,
}

/// The command that holds the lock, as others are shown it.
const REPAIR: &str = "repo check --repair";

/// The result for one repository, as text and as JSON, and whether it is well.
struct Told {
    text: String,
    value: Value,
    is_well: bool,
    /// Why it ended early; what was found until then is reported all the same.
    ended: Option<Error>,
}

/// Does something with each of these repositories; if one fails, the others are still done.
fn each(
    cx: &Context,
    name: Option<&str>,
    json: bool,
    mut work: impl FnMut(&str) -> Result<Told>,
) -> Result<Done> {
    let names = meant(cx, name)?;
    let (mut values, mut done, mut ended) = (Vec::new(), Done::Well, None);
    for name in &names {
        match work(name) {
            Ok(told) => {
                if !told.is_well {
                    done = Done::WithProblems;
                }
                if !json {
                    // The findings matter even if the reader has gone.
                    told.text.lines().for_each(|line| output::say!("{line}"));
                }
                values.push(told.value);
                match told.ended {
                    None => {}
                    Some(error)
                        if names.len() == 1 || matches!(error, Error::Interrupted { .. }) =>
                    {
                        ended = Some(error);
                    }
                    Some(error) => {
                        output::error(&error);
                        done = Done::WithProblems;
                    }
                }
            }
            Err(interrupted @ Error::Interrupted { .. }) => ended = Some(interrupted),
            Err(error) if names.len() == 1 => return Err(error),
            Err(error) => {
                output::error(&error);
                values.push(json!({"repository": name, "error": error.chain()}));
                done = Done::WithProblems;
            }
        }
        if ended.is_some() {
            break;
        }
    }
    if json && !(values.is_empty() && ended.is_some()) {
        output::print_json(&json!({"version": JSON_VERSION, "repositories": values}))?;
    }
    ended.map_or(Ok(done), Err)
}

/// What would be removed but can't be yet.
fn locked(count: usize) -> String {
    let what = if count == 1 {
        "is locked in the store, and is deleted"
    } else {
        "are locked in the store, and are deleted"
    };
    format!("{} {what} later", counted(count as u64, "object"))
}

/// Returns the ids of this host's sets that are whole, oldest first; none if ZFS can't be asked.
fn whole_here(cx: &Context) -> Vec<String> {
    let Ok((mut here, _)) = cx.state.sets() else { return Vec::new() };
    let Ok(damaged) = verify::damaged(cx, &here) else { return Vec::new() };
    here.retain(|manifest| !damaged.contains_key(&manifest.set));
    here.sort_by_key(|manifest| manifest.started_at);
    here.iter().map(|manifest| manifest.set.to_string()).collect()
}

fn now() -> u64 {
    u64::try_from(jiff::Timestamp::now().as_second()).unwrap_or(0)
}

/// Exclusive write access to the cluster's part of the repository, on this host and all others.
struct Alone {
    lease: Held,
    _lock: crate::lock::Lock,
}

impl Alone {
    fn take(cx: &Context, repository: &Repository, command: &str) -> Result<Self> {
        let lock = at_work::lock(cx, &repository.name, command)?;
        let lease = Held::take_to_delete(cx, repository)?;
        Ok(Self { lease, _lock: lock })
    }

    /// Returns what was done if the lease was held all the time, otherwise why it failed.
    fn ended<T>(&self, done: Result<T>) -> Result<T> {
        match done {
            Ok(done) => self.lease.was_held().map(|()| done),
            Err(error) => Err(self.lease.blamed(error, self.lease.confirm())),
        }
    }
}

pub(super) fn list(cx: &Context, name: Option<&str>, json: bool) -> Result<Done> {
    let mut table = output::table(&["repository", "sets", "size", "encrypted", "id", "url"]);
    let done = each(cx, name, json, |name| {
        let repository = repository::open(cx, name)?;
        let sets = Manifest::list(&repository.strata).map_err(of_strata)?.len();
        let (mut size, mut seen) = (0, std::collections::BTreeSet::new());
        let (folder, store) = (repository.strata.path(""), repository.strata.store());
        let folder = folder.trim_end_matches('/');
        let mut add = |listed: Listed| {
            // A listing that was retried returns some entries twice.
            if seen.insert(blake3::hash(listed.path.as_bytes()).as_bytes()[..8].to_vec()) {
                size += listed.size;
            }
        };
        let listed = store.list(folder, &mut add);
        let listed = listed.and_then(|()| store.half_written(folder, Reach::Below, &mut add));
        listed.map_err(|error| of_strata(error.into()))?;
        if sets == 0
            && let Some(hint) = repository.empty_hint()
        {
            output::tell!("hint: repository {name} has no set of cluster \"{}\": {hint}", cx.name);
        }
        let encrypted = repository.strata.key().is_some();
        let url = repository.config.url.clone();
        let value = json!({
            "repository": name, "url": url, "id": repository.id, "sets": sets, "bytes": size,
            "encrypted": encrypted,
        });
        table.add_row([
            name.to_owned(),
            sets.to_string(),
            bytes(size),
            if encrypted { "yes" } else { "no" }.to_owned(),
            repository.id,
            url,
        ]);
        Ok(Told { text: String::new(), value, is_well: true, ended: None })
    })?;
    if !json {
        steps::end_with_the_reader();
        output::print_table(&table);
    }
    Ok(done)
}

impl Check {
    pub(super) fn run(&self, cx: &Context, json: bool) -> Result<Done> {
        if let (Some(name), Some(100)) = (&self.name, self.read_data)
            && repository::config(cx, name).is_err()
            && matches!(name.trim_end_matches('%').parse(), Ok(1..=100_u8))
        {
            let percent = name.trim_end_matches('%');
            return Err(Error::usage(
                format!("no repository \"{name}\" in the configuration"),
                format!("for {percent} % of the packs write --read-data={percent}"),
            ));
        }
        each(cx, self.name.as_deref(), json, |name| {
            let repository = repository::open(cx, name)?;
            if self.repair {
                // Reading takes hours and ships nothing meanwhile, so whoever can't repair learns that first.
                drop(Alone::take(cx, &repository, REPAIR)?);
                steps::reached("check.tried")?;
            }
            let lines = Progress::on_stderr();
            let mut line = lines.told(name);
            let told = &mut |n, of| {
                line.bytes(n, of);
                steps::passed("check.read").is_ok()
            };
            let (memory, here) = (harm::memory(cx, &repository), || whole_here(cx));
            let checked = check::run(&repository, self.read_data, &memory, &here, told)?;
            drop(line);
            // Report the findings however the repair ends.
            let (repaired, unread, ended) = match self.repaired(cx, &repository, &checked) {
                Ok(None) => (None, None, None),
                Ok(Some(Repair::Done(repaired))) => (Some(repaired), None, None),
                // The findings say what is wrong, and the ways out.
                Ok(Some(Repair::Unread(why))) if !checked.harmed().is_empty() => {
                    (None, Some(why), None)
                }
                Ok(Some(Repair::Unread(error))) | Err(error) => (None, None, Some(error)),
            };
            let failed = ended.as_ref().filter(|_| !checked.is_partial).or(unread.as_ref());
            let mut text = self.words(name, &checked, repaired.as_ref());
            if unread.is_some() {
                text.push_str(&format!(
                    "repair   {name}: nothing is deleted while these sets are harmed, because what they need can't be told\n"
                ));
            }
            Ok(Told {
                text,
                value: json!({
                    "repository": name, "findings": checked.findings, "orphans": checked.orphans,
                    "harmed": checked.harmed(), "repaired": repaired, "partial": checked.is_partial,
                    "error": failed.map(Error::chain),
                    "counts": {
                        "sets": checked.counts.sets, "deltas": checked.counts.deltas,
                        "packs": checked.counts.packs, "frames": checked.counts.frames,
                    },
                }),
                is_well: checked.is_well(),
                ended,
            })
        })
    }

    /// Repairs what the check found, where that was asked for.
    fn repaired(
        &self,
        cx: &Context,
        repository: &Repository,
        checked: &Checked,
    ) -> Result<Option<Repair>> {
        if checked.is_partial {
            return Err(Error::Interrupted { step: "check.read".to_owned() });
        }
        if !self.repair {
            return Ok(None);
        }
        let alone = Alone::take(cx, repository, REPAIR)?;
        let begun = begun::kept(cx, repository)?;
        let still = || alone.lease.still("repair.still");
        alone.ended(check::repair(repository, &begun, now(), &still)).map(Some)
    }

    /// One line per finding, the worst first; then what was checked.
    fn words(&self, name: &str, checked: &Checked, repaired: Option<&Repaired>) -> String {
        let mut text = String::new();
        let mut line = |words: String| {
            text.push_str(&words);
            text.push('\n');
        };
        for finding in &checked.findings {
            let severity = match finding.severity {
                Severity::Error => "error",
                Severity::Warning => "warning",
                Severity::Note => "note",
            };
            let sets = match finding.sets.len() {
                0 => String::new(),
                _ => format!("; harms {}", finding.sets.join(", ")),
            };
            let hint = finding.hint.as_ref().map_or(String::new(), |hint| format!(" ({hint})"));
            line(format!("{severity:<8} {name}: {}{sets}{hint}", finding.what));
        }
        if let Some(repaired) = repaired {
            line(format!(
                "repair   {name}: {} deleted, {} for the grace time to be over",
                counted(repaired.deleted.len() as u64, "object"),
                match repaired.waiting.len() {
                    1 => "1 waits".to_owned(),
                    n => format!("{n} wait"),
                },
            ));
            if !repaired.locked.is_empty() {
                line(format!("repair   {name}: {}", locked(repaired.locked.len())));
            }
        }
        let counts = &checked.counts;
        let read = match self.read_data {
            None => "their data was not read (--read-data)".to_owned(),
            Some(_) => format!("{} read", counted(counts.frames, "frame")),
        };
        let read = match checked.is_partial {
            true => format!("{read}; it was ended there, and the rest was not checked"),
            false => read,
        };
        line(format!(
            "{:<8} {name}: {}, {}, {}; {read}",
            match (checked.is_partial, checked.is_well()) {
                (true, _) => "partial",
                (_, true) => "ok",
                (_, false) => "checked",
            },
            counted(counts.sets, "set"),
            counted(counts.deltas, "delta"),
            counted(counts.packs, "pack"),
        ));
        text
    }
}

impl Compact {
    pub(super) fn run(&self, cx: &Context, json: bool) -> Result<Done> {
        each(cx, self.name.as_deref(), json, |name| {
            let repository = repository::open(cx, name)?;
            let alone = match self.dry_run {
                true => None,
                false => Some(Alone::take(cx, &repository, "repo compact")?),
            };
            let begun = begun::kept(cx, &repository)?;
            let compacted = self.compact(&repository, &begun, alone.as_ref());
            match &alone {
                Some(alone) => alone.ended(compacted),
                None => compacted,
            }
        })
    }

    /// Completes an error of the collection: if sets are harmed, the check says how to repair them.
    fn not_collected(repository: &Repository, error: strata::Error) -> Error {
        let is_harm = check::is_harm(&error);
        match of_strata(error) {
            Error::Failed { what, source, .. } if is_harm => {
                Error::Failed { what, hint: Some(harm::hint(&repository.name)), source }
            }
            error => error,
        }
    }

    fn compact(
        &self,
        repository: &Repository,
        begun: &Begun,
        alone: Option<&Alone>,
    ) -> Result<Told> {
        let still = || {
            let step = "compact.still";
            let held = alone.map_or_else(|| steps::passed(step), |alone| alone.lease.still(step));
            held.map_err(strata::Error::caller)
        };
        let grace = u64::from(repository.config.grace_hours) * 3600;
        let strata = &repository.strata;
        let run = if self.dry_run { Run::Dry } else { Run::Real };
        let collected = || collect(strata, begun, Terms::at(grace, now()), run, &still);
        let failed = |error| Self::not_collected(repository, error);
        let before = collected().map_err(failed)?;
        steps::reached("compact.collected")?;
        let lines = Progress::on_stderr();
        let mut line = lines.told(&repository.name);
        let mut told = |done, total| line.bytes(done, total);
        let options =
            ship::repack_options(repository, self.live, self.max_bytes.unwrap_or(u64::MAX));
        let repacked = repack(strata, &options, self.dry_run, &still, &mut told);
        drop(line);
        let repacked = repacked.map_err(of_strata)?;
        steps::reached("compact.repacked")?;
        // What was replaced now begins its waiting period.
        let after = match self.dry_run {
            true => before.clone(),
            false => collected().map_err(failed)?,
        };
        Ok(self.told(repository, before.deleted.len(), &after, &repacked))
    }

    fn told(&self, at: &Repository, deleted: usize, left: &Collected, done: &Repacked) -> Told {
        let (name, waiting) = (&at.name, left.waiting.len());
        let replaced: u64 = done.packs.iter().map(|sparse| sparse.packed.size).sum();
        let damaged: Vec<_> = done
            .damaged
            .iter()
            .map(|(pack, error)| {
                Error::failed(format!("pack {pack} is left as it is: {error}")).chain()
            })
            .collect();
        let would = if self.dry_run { "would be " } else { "" };
        let mut text = format!(
            "repository {name}: {} {would}deleted, {} for {} hours without a set to be over\n",
            counted(deleted as u64, "object"),
            if waiting == 1 { "1 waits".to_owned() } else { format!("{waiting} wait") },
            at.config.grace_hours,
        );
        if !left.locked.is_empty() {
            text.push_str(&format!("repository {name}: {}\n", locked(left.locked.len())));
        }
        text.push_str(&format!(
            "repository {name}: {} of {} {would}written anew as {}, which frees {}",
            bytes(replaced),
            counted(done.packs.len() as u64, "pack"),
            bytes(done.written),
            bytes(replaced.saturating_sub(done.written)),
        ));
        if done.left > 0 {
            text.push_str(&format!("; {} more beyond --max-bytes", counted(done.left, "pack")));
        }
        text.push('\n');
        damaged.iter().for_each(|line| text.push_str(&format!("error    {name}: {line}\n")));
        let value = json!({
            "repository": name, "dry_run": self.dry_run, "deleted": deleted, "waiting": waiting,
            "locked": left.locked.len(), "packs": done.packs.len(), "replaced_bytes": replaced, "written_bytes": done.written,
            "deltas": done.deltas, "left": done.left, "damaged": damaged,
        });
        Told { text, value, is_well: damaged.is_empty(), ended: None }
    }
}
