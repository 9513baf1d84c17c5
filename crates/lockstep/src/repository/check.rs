//! What `repo check` finds in a repository, worst first, and what `--repair` may do about it.
//!
//! What could go wrong: a finding doesn't say which sets it harms, and somebody restores one of them; or a repair
//! makes things worse. So every set that may be harmed is named, and the repair deletes only what no set refers to,
//! and nothing while a set can't be read.

use std::collections::BTreeSet;
use std::path::Path;

use strata::check::{Begun, CheckOptions, Problem, Report, Run, Terms, Told, check_some, collect};
use strata::error::with_causes;
use strata::frame::Key;
use strata::store::Store;

use super::{Format, Repository, STORE_FAILED, damage, files, keys, lease, locks, of_strata, wrap};
use crate::context::lockstep;
use crate::error::{Error, Result};
use crate::words::{bytes, counted};

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Data is harmed, or the repository may one day fail to open.
    Error,
    /// Nothing is harmed yet, but something should be changed.
    Warning,
    /// Nothing is wrong.
    Note,
}

/// Something that the check found.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// The finding in words, with the object's path.
    pub what: String,
    /// The sets that it may harm.
    pub sets: Vec<String>,
    /// What to do.
    pub hint: Option<String>,
}

/// What was checked, and what was found.
#[derive(Debug, Default)]
pub struct Checked {
    /// The findings, worst first.
    pub findings: Vec<Finding>,
    /// How much was checked.
    pub counts: strata::check::Counts,
    /// Objects that no set needs.
    pub orphans: Vec<String>,
    /// Whether the check was ended before everything was looked at.
    pub is_partial: bool,
}

impl Checked {
    /// Returns the sets that may be harmed.
    #[must_use]
    pub fn harmed(&self) -> BTreeSet<&str> {
        self.findings.iter().flat_map(|finding| &finding.sets).map(String::as_str).collect()
    }

    /// Checks that there is nothing worse than notes.
    #[must_use]
    pub fn is_well(&self) -> bool {
        self.findings.iter().all(|finding| finding.severity == Severity::Note)
    }
}

/// Checks the cluster's part of the repository, its keys, its lease, its locks, and `percent` percent of its packs and
/// of its sets' own files. If `percent` is `None`, no content is read, except for packs that were found damaged before:
/// these are read each time, and noted in `memory`, where this host remembers what deltas refer to. `here` returns the
/// sets that this host has, oldest first; it is only called for the hints, if something is wrong.
///
/// `told` is called with the bytes of packs read so far and in total. Once it returns `false`, the check ends and
/// returns only what it has found so far.
///
/// # Errors
/// When the store can't be listed, its format can't be read, or the system provides no random bytes.
pub fn run(
    repository: &Repository,
    percent: Option<u8>,
    memory: &Path,
    here: &dyn Fn() -> Vec<String>,
    told: Told<'_>,
) -> Result<Checked> {
    let known = vec!["wal/".to_owned()];
    let before = damage::noted(memory, &repository.id);
    let options = CheckOptions { read_data: percent.is_some() || !before.is_empty(), known };
    let mut sampled = sample(percent.unwrap_or(0))?;
    let chosen = |pack: strata::Ulid| before.contains_key(&pack.to_string()) || sampled(pack);
    let report = check_some(&repository.strata, &options, chosen, told);
    let mut report = report.map_err(of_strata)?;
    if options.read_data {
        // Reading takes hours, and another check may have begun or ended meanwhile.
        let noted = damage::noted(memory, &repository.id);
        let after = damage::after(repository, &report, &before);
        let after = damage::beside(after, &before, &noted);
        if after != noted
            && let Err(error) = damage::note(memory, &repository.id, after)
        {
            tracing::warn!(
                "which packs are damaged can't be noted, so other commands don't know: {}",
                error.chain()
            );
        }
    }
    let newest = match report.problems.is_empty() {
        true => None,
        false => repository.ids().ok().and_then(|mut ids| ids.pop()),
    };
    let mut findings = of_report(&report, &repository.name, newest.as_deref(), here);
    if !report.is_partial {
        let (of_sets, is_partial) = of_sets(repository, &report, percent, told)?;
        findings.extend(of_sets);
        report.is_partial = is_partial;
    }
    if !report.is_partial {
        let store = repository.strata.store();
        let format = Format::read(store, &repository.name)?;
        findings.extend(of_keys(store, &repository.name, &format, repository.strata.key())?);
        findings.extend(of_lease(repository)?);
        findings.extend(of_locks(repository));
    }
    // The sort is stable: findings of equal severity stay in the order of the sets.
    findings.sort_by_key(|finding| finding.severity);
    let Report { counts, orphans, is_partial, .. } = report;
    Ok(Checked { findings, counts, orphans, is_partial })
}

/// Chooses `percent` percent of the packs, different ones each time.
fn sample(percent: u8) -> Result<impl FnMut(strata::Ulid) -> bool> {
    let mut chosen = chooser(percent)?;
    Ok(move |pack: strata::Ulid| chosen(&pack.to_bytes()))
}

/// Chooses `percent` percent of the names that it is given, different ones each time.
fn chooser(percent: u8) -> Result<impl FnMut(&[u8]) -> bool> {
    let seed = crate::names::random::<32>()?;
    Ok(move |name: &[u8]| {
        let hash = blake3::keyed_hash(&seed, name);
        let number = u16::from_le_bytes([hash.as_bytes()[0], hash.as_bytes()[1]]);
        u32::from(number) * 100 < u32::from(percent) << 16
    })
}

/// Says what was found; `newest` is the newest set there.
fn of_report(
    report: &Report,
    name: &str,
    newest: Option<&str>,
    here: &dyn Fn() -> Vec<String>,
) -> Vec<Finding> {
    let here = if report.problems.is_empty() { Vec::new() } else { here() };
    let harmful = report.problems.iter().map(|problem| Finding {
        severity: Severity::Error,
        what: match problem.error.is_store_failure() {
            true => with_causes(&problem.error),
            false => problem.error.to_string(),
        },
        sets: problem.sets.clone(),
        hint: Some(what_mends(problem, name, newest, &here)),
    });
    let foreign = report.foreign.iter().map(|path| Finding {
        severity: Severity::Warning,
        what: format!("\"{path}\" isn't one of this repository's objects"),
        sets: Vec::new(),
        hint: Some("look at it, and move it elsewhere".to_owned()),
    });
    let orphans = (!report.orphans.is_empty()).then(|| Finding {
        severity: Severity::Note,
        what: format!(
            "{} that no set needs, of which {} their grace time",
            counted(report.orphans.len() as u64, "object"),
            if report.noted == 1 { "1 waits for".to_owned() } else { format!("{} wait for", report.noted) },
        ),
        sets: Vec::new(),
        hint: Some(
            "objects that no prune has noted yet belong to a backup that is being written, or are left over and too young to tell; `prune`, `repo compact` and `repo check --repair` note it once it is older than the grace time, and delete it when another has passed"
                .to_owned(),
        ),
    });
    harmful.chain(foreign).chain(orphans).chain(of_half_written(report)).collect()
}

/// Reports temporary files that killed writers left in a folder. No listing shows them.
fn of_half_written(report: &Report) -> Option<Finding> {
    let left = &report.half_written;
    let first = left.first()?;
    let size = left.iter().map(|file| file.size).sum();
    Some(Finding {
        severity: Severity::Note,
        what: format!("{} half written ({}), as \"{}\"", counted(left.len() as u64, "file"), bytes(size), first.path),
        sets: Vec::new(),
        hint: Some(
            "from a command that is writing at the moment, or was killed; `prune`, `repo compact` and `repo check --repair` delete them once they are older than the grace time".to_owned(),
        ),
    })
}

/// Says what to do about something that sets need; `newest` is the newest set there.
fn what_mends(problem: &Problem, name: &str, newest: Option<&str>, here: &[String]) -> String {
    const MEANWHILE: &str = "don't restore these sets from here; all other sets still restore";
    if problem.sets.is_empty() {
        return "no set needs it".to_owned();
    }
    if problem.error.is_store_failure() {
        let hint = problem.error.hint().unwrap_or(STORE_FAILED);
        return format!("{hint}; until then {MEANWHILE}");
    }
    // Another host has a newer version, or this one has an older one again: the set is whole.
    if let strata::Error::Format { .. } = problem.error {
        let hint = problem.error.hint().unwrap_or_default();
        return format!("it is whole for all this version can tell: {hint}");
    }
    let (set, lockstep) = (&problem.set, lockstep());
    let manifest = format!("sets/{set}.json");
    if problem.error.object().is_some_and(|object| object.ends_with(&manifest)) {
        return format!(
            "{MEANWHILE}. `{lockstep} prune --repository {name} --set {set}` takes the set out, and `{lockstep} ship --repository {name} {set}` stores it again while this host has it"
        );
    }
    let oldest = here.iter().find(|set| problem.sets.contains(set));
    // Nothing repairs the sets before that one.
    let lost = problem.sets.iter().filter(|set| oldest.is_none_or(|oldest| *set < oldest));
    let lost: Vec<_> = lost.map(|set| format!("--set {set}")).collect();
    let given_up = match lost.is_empty() {
        true => String::new(),
        false => format!(
            ". `{lockstep} prune --repository {name} {}` gives up what can't be repaired",
            lost.join(" ")
        ),
    };
    match oldest {
        // The oldest one: this also repairs what was stored on top of it.
        Some(set) => format!(
            "{MEANWHILE}. `{lockstep} ship --full --repository {name} {set}` stores it again from this host's snapshots, including what later sets need of it{given_up}"
        ),
        // What comes next isn't based on them.
        None if newest.is_some_and(|newest| problem.sets.iter().all(|set| set != newest)) => {
            format!("{MEANWHILE}. This host has none of them any more{given_up}")
        }
        None => format!(
            "{MEANWHILE}. This host has none of them any more: `{lockstep} ship --full --repository {name}` stores the newest set in full{given_up}"
        ),
    }
}

/// Finds sets whose manifest is intact but unintelligible to this version. Of `percent` percent of the others, also
/// finds those whose own files differ from the manifest although every object that holds them is whole. Also returns
/// whether `told` ended the check.
fn of_sets(
    repository: &Repository,
    report: &Report,
    percent: Option<u8>,
    told: Told<'_>,
) -> Result<(Vec<Finding>, bool)> {
    let said: BTreeSet<&str> = report.problems.iter().map(|problem| &*problem.set).collect();
    let harmed: BTreeSet<&str> =
        report.problems.iter().flat_map(|problem| &problem.sets).map(String::as_str).collect();
    let (sets, bad) = repository.sets()?;
    let strange = bad.into_iter().filter(|(set, _)| !said.contains(set.as_str()));
    let mut findings: Vec<_> = strange
        .map(|(set, error)| Finding {
            severity: Severity::Error,
            what: error.chain(),
            sets: vec![set],
            hint: error.hint(),
        })
        .collect();
    let mut chosen = chooser(percent.unwrap_or(0))?;
    for set in &sets {
        let (id, files) = (set.manifest.set.as_str(), &set.manifest.files);
        if files.is_empty() || harmed.contains(id) || !chosen(id.as_bytes()) {
            continue;
        }
        if !told(0, 0) {
            return Ok((findings, true));
        }
        let again = || {
            format!(
                "don't restore this set from here; `{} ship --full --repository {} {id}` stores it again, if it is still on its host",
                lockstep(),
                repository.name
            )
        };
        let (what, hint) = match files::wrong(repository, id, files) {
            Ok(wrong) if wrong.is_empty() => continue,
            Ok(wrong) => (
                format!(
                    "these files of set {id} aren't what its manifest says: {}",
                    wrong.join(", ")
                ),
                again(),
            ),
            Err(Error::Interrupted { .. }) => return Ok((findings, true)),
            Err(error) => {
                let what = format!("the files of set {id} can't be read: {}", error.chain());
                (
                    what,
                    if matches!(error, Error::Store { .. }) {
                        error.hint().unwrap_or_default()
                    } else {
                        again()
                    },
                )
            }
        };
        findings.push(Finding {
            severity: Severity::Error,
            what,
            sets: vec![id.to_owned()],
            hint: Some(hint),
        });
    }
    Ok((findings, false))
}

fn of_keys(store: &Store, name: &str, format: &Format, key: Option<&Key>) -> Result<Vec<Finding>> {
    let (slots, bad) = keys::list(store)?;
    let mut findings: Vec<_> = bad
        .into_iter()
        .map(|(at, error)| Finding {
            severity: Severity::Warning,
            what: error.chain(),
            sets: Vec::new(),
            hint: keys::unread_hint(name, &at, &error),
        })
        .collect();
    let others: Vec<_> = slots.iter().filter(|slot| !is_of(slot, format)).collect();
    if others.is_empty() {
        return Ok(findings);
    }
    let unread = keys::unread(store, key)?;
    findings.extend(others.into_iter().map(|slot| match &unread {
        Some(unread) => Finding {
            severity: Severity::Error,
            what: format!(
                "key \"{}\" opens another data key, and \"{unread}\" can't be read with the repository's own",
                slot.id
            ),
            sets: Vec::new(),
            hint: Some(keys::NOT_USELESS.into()),
        },
        None => Finding {
            severity: Severity::Note,
            what: format!("key \"{}\" is of no use here: it opens another data key", slot.id),
            sets: Vec::new(),
            hint: Some(
                "an interrupted `repo init` left it; `repo check --repair` deletes it".into(),
            ),
        },
    }));
    Ok(findings)
}

/// Reports a lease that is damaged, or that no correct clock wrote: whoever wants to write waits for it.
fn of_lease(repository: &Repository) -> Result<Option<Finding>> {
    let what = lease::doubtful(repository)?;
    let hint = Some(lease::DOUBTFUL_HINT.to_owned());
    Ok(what.map(|what| Finding { severity: Severity::Warning, what, sets: Vec::new(), hint }))
}

/// Checks whether what sets need is locked for long enough. Objects that can't be read for this are reported
/// elsewhere.
fn of_locks(repository: &Repository) -> Option<Finding> {
    let now = u64::try_from(jiff::Timestamp::now().as_second()).unwrap_or(0);
    let what = locks::overdue(repository, now).ok().flatten()?;
    let hint = Some(locks::overdue_hint());
    Some(Finding { severity: Severity::Warning, what, sets: Vec::new(), hint })
}

fn is_of(slot: &wrap::Slot, format: &Format) -> bool {
    format.encryption.as_ref().is_some_and(|with| with.fingerprint == slot.fingerprint)
}

/// What a repair did.
#[derive(Debug, Default, serde::Serialize)]
pub struct Repaired {
    /// The deleted paths, in this order.
    pub deleted: Vec<String>,
    /// Paths that no set needs, but whose grace time isn't over.
    pub waiting: Vec<String>,
    /// Paths that would be deleted, but the store still locks them.
    pub locked: Vec<String>,
}

/// How a repair ended.
#[derive(Debug)]
pub enum Repair {
    /// This was repaired.
    Done(Repaired),
    /// Nothing was deleted: something that says what a set needs is gone or damaged. The error names it.
    Unread(Error),
}

/// Deletes what neither a set nor a running shipment (`begun`) has needed for the grace time, and keys that open
/// nothing. The caller holds the lease; `still` is called before each deletion to check that it still does.
///
/// # Errors
/// When the store fails, and those of `still`.
pub fn repair(
    repository: &Repository,
    begun: &Begun,
    now: u64,
    still: &dyn Fn() -> Result<()>,
) -> Result<Repair> {
    let grace = u64::from(repository.config.grace_hours) * 3600;
    // A key that may open something here stays, even if that something is about to be deleted.
    let store = repository.strata.store();
    let format = Format::read(store, &repository.name)?;
    let (mut others, _) = keys::list(store)?;
    others.retain(|slot| !is_of(slot, &format));
    if !others.is_empty() && keys::unread(store, repository.strata.key())?.is_some() {
        others.clear();
    }
    let of_caller = || still().map_err(strata::Error::caller);
    let terms = Terms::at(grace, now);
    let collected = collect(&repository.strata, begun, terms, Run::Real, &of_caller);
    let collected = match collected {
        Err(error) if is_harm(&error) => return Ok(Repair::Unread(of_strata(error))),
        collected => collected.map_err(of_strata)?,
    };
    let strata::check::Collected { deleted, waiting, locked } = collected;
    let mut repaired = Repaired { deleted, waiting, locked };
    for slot in &others {
        let age = i64::try_from(now).unwrap_or(i64::MAX).saturating_sub(slot.created.as_second());
        // A younger key may be about to become the repository's: `repo init` writes it first.
        let Some(age) = u64::try_from(age).ok().filter(|age| *age >= grace) else { continue };
        let path = format!("keys/{}.json", slot.id);
        if age < store.locked_seconds(&path) {
            repaired.locked.push(path);
        } else {
            still()?;
            keys::forget(store, slot)?;
            repaired.deleted.push(path);
        }
    }
    Ok(Repair::Done(repaired))
}

/// Checks whether an error says that an object is gone or damaged, rather than that the store failed or that the work
/// was ended.
#[must_use]
pub fn is_harm(error: &strata::Error) -> bool {
    let is_damage = matches!(error, strata::Error::Damaged { .. } | strata::Error::Sealed { .. });
    is_damage || error.is_not_found()
}

#[cfg(test)]
mod tests {
    use strata::store::{StoreError, StoreErrorKind};

    use super::*;

    #[test]
    fn a_harmed_manifest_is_stored_again_and_a_harmed_pack_anew() {
        let said = |object: &str| {
            let error = StoreError::new("get", object, StoreErrorKind::NotFound).into();
            let (set, sets) = ("20261126T200000Z".to_owned(), vec!["20261126T200000Z".to_owned()]);
            let here = ["20261126T200000Z".to_owned()];
            what_mends(&Problem { set, sets, error }, "far", None, &here)
        };
        let manifest = said("clusters/main/sets/20261126T200000Z.json");
        assert!(manifest.contains("prune --repository far --set 20261126T200000Z"), "{manifest}");
        let pack = said("clusters/main/packs/a");
        assert!(pack.contains("ship --full") && !pack.contains("prune"), "{pack}");
        let of_newest = |newest: &str, here: &[&str]| {
            let error = StoreError::new("get", "clusters/main/packs/a", StoreErrorKind::NotFound);
            let sets = ["20261126T1", "20261126T2", "20261126T3"].map(str::to_owned).to_vec();
            let problem = Problem { set: "20261126T1".into(), sets, error: error.into() };
            let here: Vec<_> = here.iter().map(|set| (*set).to_owned()).collect();
            what_mends(&problem, "far", Some(newest), &here)
        };
        let of = |here: &[&str]| of_newest("20261126T3", here);
        let some = of(&["20261126T2"]);
        assert!(some.contains("ship --full --repository far 20261126T2"), "{some}");
        assert!(
            some.contains("`lockstep prune --repository far --set 20261126T1` gives"),
            "{some}"
        );
        assert!(of(&[]).contains("--set 20261126T2 --set 20261126T3` gives"));
        // Shipping the newest set in full, for hours, would repair nothing unless it is harmed too.
        assert!(of(&[]).contains("ship --full --repository far`"));
        let older = of_newest("20261126T4", &["20261126T4"]);
        assert!(older.contains("--set 20261126T3` gives") && !older.contains("ship"), "{older}");
        // A newer version is no reason to give up a set.
        for object in ["clusters/main/sets/20261126T200000Z.json", "clusters/main/images/a/b"] {
            let error = strata::Error::Format { object: object.to_owned(), found: 9, known: 1 };
            let (set, sets) = ("20261126T200000Z".to_owned(), vec!["20261126T200000Z".to_owned()]);
            let hint = what_mends(&Problem { set, sets, error }, "far", None, &[]);
            assert!(hint.contains("use the version that wrote it"), "{hint}");
            assert!(!hint.contains("prune") && !hint.contains("ship"), "{hint}");
        }
        // Nor is a store that fails, for now or for good.
        for object in ["clusters/main/sets/20261126T200000Z.json", "clusters/main/packs/a"] {
            let error = StoreError::new("get", object, StoreErrorKind::Other).into();
            let (set, sets) = ("20261126T200000Z".to_owned(), vec!["20261126T200000Z".to_owned()]);
            let hint = what_mends(&Problem { set, sets, error }, "far", None, &[]);
            assert!(hint.contains("run the command again"), "{hint}");
            assert!(!hint.contains("prune") && !hint.contains("ship"), "{hint}");
        }
        // What the store says itself comes first.
        let mut error = StoreError::new("get", "clusters/main/packs/a", StoreErrorKind::Other);
        error.source = Some("403: <Code>InvalidObjectState</Code>".into());
        let (set, sets) = ("20261126T200000Z".to_owned(), vec!["20261126T200000Z".to_owned()]);
        let hint = what_mends(&Problem { set, sets, error: error.into() }, "far", None, &[]);
        assert!(hint.contains("archive") && hint.contains("don't restore these sets"), "{hint}");
    }

    #[test]
    fn a_sample_has_about_as_many_as_it_should() {
        for percent in [0, 1, 10, 50, 100] {
            let mut is_chosen = sample(percent).unwrap();
            let chosen = (0..10_000).filter(|n| is_chosen(strata::Ulid(*n))).count();
            let wanted = usize::from(percent) * 100;
            assert!(chosen.abs_diff(wanted) < 300, "{percent} %: {chosen} of 10000");
            assert!(
                !matches!((percent, chosen), (0, 1..) | (100, ..10_000)),
                "{percent}: {chosen}"
            );
        }
    }
}
