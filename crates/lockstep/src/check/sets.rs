//! Checks the sets of this host and of the repositories: whether they are whole, and how old their data is.

use std::collections::{BTreeMap, HashMap};

use pgfiles::control_file::ControlFile;

use super::{Finding, branches, failure, ok, warning, writable, wrong};
use crate::context::{Context, lockstep};
use crate::error::{Error, Result};
use crate::names::SetId;
use crate::refusal::elsewhere;
use crate::repository::kin::{self, Identity, Kin};
use crate::repository::lease;
use crate::repository::{self, Repository, Shipped, ShippedVolume, harm, locks, twice, went_back};
use crate::retention;
use crate::set::at_work;
use crate::set::branches::{Branches, Member};
use crate::set::manifest::Manifest;
use crate::set::unfinished::TAKING;
use crate::set::verify;
use crate::set::{notes, removal};
use crate::steps;
use crate::volume::zfs::Tagged;

/// How many snapshots of a set are named in a finding.
const NAMED: usize = 4;

/// Checks the sets of this host.
pub(super) fn here(cx: &Context) -> Result<Vec<Finding>> {
    let (sets, damaged) = cx.state.sets()?;
    let mut all: Vec<_> =
        damaged.iter().map(|(id, error)| failure(&format!("set {id}"), error)).collect();
    let mut found = verify::damaged(cx, &sets)?;
    let broken = sets.iter().filter_map(|set| Some((&set.set, (set, found.remove(&set.set)?))));
    let broken: BTreeMap<_, _> = broken.collect();
    let mut renamed = renamed(cx, broken.values().map(|(set, _)| *set))?;
    for (id, (_, error)) in &broken {
        let renamed = renamed.remove(*id).unwrap_or_default();
        let found = failure(&format!("set {id}"), error);
        // Its pool can't be imported under the old name while it is imported under another.
        let hint = found.hint.filter(|_| renamed.is_empty());
        all.push(Finding { hint, ..found });
        all.extend(renamed);
    }
    let now = jiff::Timestamp::now();
    all.extend(sets.iter().filter_map(|set| ahead("sets", set, "--local", now)));
    let whole = sets.iter().filter(|set| !broken.contains_key(&set.set));
    let newest = retention::newest(whole, |set| set.set.as_str(), now);
    if newest.is_none() && !sets.is_empty() {
        let what = format!("none of the {} sets here can be restored", sets.len());
        // The cluster may be down: then no other set can be taken.
        let in_repository = sets
            .iter()
            .rev()
            .find_map(|set| elsewhere(set.set.as_str(), &cx.state.repositories_with(&set.set)));
        let hint = match in_repository {
            Some(way) => {
                format!("{way}; once the cluster runs, take another set: {} backup", lockstep())
            }
            None => format!("take one: {} backup", lockstep()),
        };
        all.push(wrong("sets", what, hint));
        return Ok(all);
    }
    let Some(last) = newest else {
        let hint = match cx.cluster.repositories.first() {
            None => format!("take one: {} backup", lockstep()),
            Some(name) => format!(
                "take one: {0} backup; those of a repository: {0} list --from repository:{name}",
                lockstep()
            ),
        };
        // This doesn't depend on max_age_hours: otherwise a monitor would never notice that backups never began, or
        // that state_dir was lost.
        all.push(wrong("sets", "there is no set yet", hint));
        return Ok(all);
    };
    let max_age = cx.cluster.max_age_hours;
    let number = match broken.len() {
        0 => format!("{} sets", sets.len()),
        broken => format!("{} sets, {broken} of them not whole", sets.len()),
    };
    let which = if broken.is_empty() { "" } else { " that is whole" };
    all.push(match too_old(last, max_age, now) {
        Some(old) => {
            wrong("sets", format!("the newest set{which}, {}, {}", last.set, old.what), old.hint)
        }
        None => ok("sets", format!("{number}, the newest{which} is {}", last.set)),
    });
    let control = cx.control().ok();
    let timelines = Branches::of(sets.iter().map(Member::from), now);
    all.extend(branches::check("sets", &timelines, Some(last), control.as_ref()));
    all.extend(control.and_then(|control| of_another(cx, last, &sets, &control)));
    let problems = last.problems().map(|problem| {
        warning("last backup", format!("set {}: {}", last.set, problem.what), problem.hint.clone())
    });
    all.extend(problems);
    Ok(all)
}

/// Checks whether the cluster in the data directory is another one than when the newest set was taken.
fn of_another(
    cx: &Context,
    newest: &Manifest,
    sets: &[Manifest],
    control: &ControlFile,
) -> Option<Finding> {
    let (of_set, now) = (newest.postgres.system_identifier, control.system_identifier);
    (of_set != now).then(|| {
        let own = sets.iter().rev().find(|set| set.postgres.system_identifier == now);
        let of_it = match own {
            None => "there is no set of it".to_owned(),
            Some(own) => format!("the newest set of it is {}", own.set),
        };
        let what = format!(
            "the newest set, {}, is of system identifier {of_set}, and the cluster in \"{}\" is {now}: {of_it}",
            newest.set,
            cx.cluster.data_directory.display()
        );
        let hint = match own {
            None => format!(
                "is data_directory right? after pg_upgrade, or a dump and restore: formerly = [\"{of_set}\"] in [clusters.{}], and {} backup",
                cx.name,
                lockstep()
            ),
            // By `formerly` the later cluster's sets would be the latest of this one.
            Some(_) => format!(
                "is data_directory right? if the former cluster was put back, after pg_upgrade or an initdb: {} backup",
                lockstep()
            ),
        };
        wrong("sets", what, hint)
    })
}

/// Reports a set dated in the future, and what to do about it at `place`.
fn ahead(subject: &str, set: &Manifest, place: &str, now: jiff::Timestamp) -> Option<Finding> {
    let id = set.set.as_str();
    retention::is_ahead(id, now).then(|| {
        let what =
            format!("set {id} is dated later than now, {}", now.strftime("%Y-%m-%d %H:%M:%SZ"));
        wrong(subject, what, retention::ahead_hint(id, place))
    })
}

/// Finds snapshots of these sets whose dataset or pool was renamed: the sets can't be restored from them, and `prune`
/// finds them.
fn renamed<'a>(
    cx: &Context,
    sets: impl Iterator<Item = &'a Manifest>,
) -> Result<BTreeMap<SetId, Vec<Finding>>> {
    let volumes: Vec<_> =
        sets.flat_map(|set| set.volumes.iter().map(move |volume| (set, volume))).collect();
    let renamed = removal::moved(cx, volumes.iter().map(|(_, volume)| *volume))?;
    let standing = cx.zfs.standing(&renamed.values().cloned().collect::<Vec<_>>())?;
    let mut all: BTreeMap<SetId, Vec<Finding>> = BTreeMap::new();
    for (set, volume) in volumes {
        if let Some(now) = renamed.get(&volume.snapshot) {
            let promoted =
                standing.get(now).and_then(|s| removal::comes_back(&volume.dataset, now, s));
            let (what, hint) = match promoted {
                Some(what) => (
                    what,
                    format!(
                        "then set {0} is whole again; to be rid of the set: {1} prune --local --set {0}",
                        set.set,
                        lockstep()
                    ),
                ),
                None => (
                    format!(
                        "\"{now}\" is of set {}: {}",
                        set.set,
                        removal::renaming(&volume.snapshot, now)
                    ),
                    format!(
                        "the set restores once its dataset is \"{}\" again; `{} prune` removes the snapshot with the set",
                        volume.dataset,
                        lockstep()
                    ),
                ),
            };
            all.entry(set.set.clone()).or_default().push(warning("snapshots", what, hint));
        }
    }
    Ok(all)
}

/// Why a set is older than allowed, and what to do.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Old {
    pub(super) what: String,
    pub(super) hint: &'static str,
    /// Whether no newer set was taken; otherwise it is the set's data that is old.
    pub(super) is_set: bool,
}

/// Checks whether a set is older than allowed; if the age of its data is known, that counts. A pure function.
pub(super) fn too_old(set: &Manifest, max_age_hours: u32, now: jiff::Timestamp) -> Option<Old> {
    let hours = |time| now.duration_since(time).as_hours();
    let is_too_old = |time| hours(time) >= i64::from(max_age_hours);
    let data = set.data_time();
    let is_set = is_too_old(set.started_at);
    if !is_set && !is_too_old(data) {
        return None;
    }
    let (of, hint) = if is_set && (data == set.started_at || !set.postgres.standby) {
        ("", "does the timer run? look at its log, or raise max_age_hours")
    } else if set.postgres.standby {
        (
            "the last that its standby is known to have replayed",
            "does the standby follow its primary? a mirror: `lockstep mirror status`. One that can't be asked counts as old as its last restartpoint: set host, port and user",
        )
    } else {
        (
            "the cluster was shut down, and its last checkpoint",
            "is data_directory where the cluster is now? one that is stopped for long: raise max_age_hours",
        )
    };
    let what = match is_set {
        true => format!("is {} hours old", hours(set.started_at)),
        false => format!(
            "holds data that is {} hours old: {of} is of {}",
            hours(data),
            data.strftime("%Y-%m-%d %H:%M:%SZ")
        ),
    };
    Some(Old { what, hint, is_set })
}

/// Checks that a repository can be reached, is the known one and hasn't gone back to an older state, how old its newest
/// set is and whether it is whole, whether a repository in a folder can be written to, and whether its store's locks
/// are extended. `repo check` looks at the rest.
pub(super) fn in_repository(cx: &Context, name: &str) -> Vec<Finding> {
    let subject = format!("repository {name}");
    let opened = match repository::open(cx, name) {
        Ok(opened) => opened,
        Err(error) => return vec![failure(&subject, &error)],
    };
    // A repository that can't be reached, and another one in its place, look alike.
    let another = repository::known::of_this(cx, name)
        .filter(|known| known.id != opened.id)
        .map(|known| failure(&subject, &known.is_away(name, Some(opened.id.clone()))));
    let now = jiff::Timestamp::now();
    // Before anything else: what was seen there the last time shows what is gone.
    let lost = match went_back::look(cx, &opened) {
        Ok(None) => None,
        Ok(Some(lost)) => Some(wrong(&subject, lost.in_words(), lost.hint(name))),
        Err(error) => Some(failure(&subject, &error)),
    };
    let sets = match of_sets(cx, &opened, &subject, now) {
        Ok(found) => found,
        Err(error) => vec![failure(&subject, &error)],
    };
    let locks = match locks::overdue(&opened, u64::try_from(now.as_second()).unwrap_or(0)) {
        Ok(None) => None,
        Ok(Some(what)) => Some(warning(&subject, what, locks::overdue_hint())),
        Err(error) => Some(failure(&subject, &error)),
    };
    let lease = match lease::doubtful(&opened) {
        Ok(None) => None,
        Ok(Some(what)) => Some(warning(&subject, what, lease::DOUBTFUL_HINT)),
        Err(error) => Some(failure(&subject, &error)),
    };
    let writable = writable::repository(&opened, &subject);
    let same = twice::other_name(cx, &opened)
        .map(|other| wrong(&subject, twice::in_words(&opened, other), twice::HINT));
    let another = another.into_iter().chain(same);
    another.chain(lost).chain(sets).chain(locks).chain(lease).chain(writable).collect()
}

/// Checks that everything that the newest set needs is there; if it isn't or wasn't the last time, checks all sets.
fn whole(cx: &Context, opened: &Repository, subject: &str, newest: &Shipped) -> Option<Finding> {
    let memory = harm::memory(cx, opened);
    let is_whole = harm::of_sets(opened, &memory, &[newest]).map(|found| found.is_empty());
    match is_whole.and_then(|is_whole| harm::look(cx, opened, !is_whole)) {
        Ok(found) => Some(wrong(subject, harm::in_words(&found)?, harm::hint(&opened.name))),
        Err(error) => Some(failure(subject, &error)),
    }
}

/// Returns what the sets in a repository say about it.
fn of_sets(
    cx: &Context,
    opened: &Repository,
    subject: &str,
    now: jiff::Timestamp,
) -> Result<Vec<Finding>> {
    let is_ahead = |set: &Manifest| retention::is_ahead(set.set.as_str(), now);
    // In this order: a backup that runs meanwhile notes a set only after it is there.
    let (mut here, _) = cx.state.sets()?;
    let is_noted = |set: &Manifest| notes::is_shipped(cx, &set.set, &opened.name, Some(&opened.id));
    let noted = here.iter().rev().find(|set| !is_ahead(set) && is_noted(set));
    let noted = noted.map(|set| set.set.clone());
    steps::reached("check.noted")?;
    let (sets, damaged) = opened.sets()?;
    let max_age = cx.cluster.max_age_hours;
    let kin = Kin::of(&Identity::of(cx, &here), &sets);
    let (mut ours, others): (Vec<_>, Vec<_>) = sets.into_iter().partition(|set| kin.has(set));
    let place = format!("--repository {}", opened.name);
    let ahead = ours.iter().filter_map(|set| ahead(subject, &set.manifest, &place, now));
    let mut all: Vec<_> = ahead.collect();
    // What was shipped since then shows how old the newest is.
    if ours.iter().any(|set| !is_ahead(&set.manifest)) {
        ours.retain(|set| !is_ahead(&set.manifest));
    }
    here.retain(|set| !is_ahead(set));
    let damaged_ids = damaged.iter().map(|(id, _)| id.as_str());
    let ids = ours.iter().map(|set| set.manifest.set.as_str()).chain(damaged_ids);
    let newest_id = retention::newest(ids, |id| id, now).map(str::to_owned);
    let control = cx.control().ok();
    let last = ours.last().map(|set| &set.manifest);
    match opened.branches(cx) {
        Ok(timelines) => {
            all.extend(branches::check(subject, &timelines, last, control.as_ref()));
            all.extend(branches::untold(subject, &timelines, &opened.name));
        }
        Err(error) => all.push(failure(subject, &error)),
    }
    all.extend(unreadable(subject, &damaged, &opened.name));
    match (ours.last(), damaged.last()) {
        // Which the newest is, its manifest would say.
        (newest, Some((id, _)))
            if newest.is_none_or(|newest| newest.manifest.set.as_str() < id.as_str()) => {}
        (Some(set), _) => {
            all.push(newest_there(&opened.name, subject, set, max_age, now));
            all.extend(whole(cx, opened, subject, set));
            all.extend(damaged_below(set, &ours).into_iter().map(|(id, pages)| {
                let what = format!(
                    "set {id} has {pages} damaged pages, and its newest set is based on it"
                );
                wrong(subject, what, below_hint(&opened.name, &id))
            }));
        }
        (None, _) if others.is_empty() => {
            // A first full shipment may take days until a set is there.
            all.push(match at_work::since(cx, &opened.name)? {
                Some((set, since)) => ok(
                    subject,
                    format!(
                        "no set is in it yet; {set} is being shipped since {}",
                        since.strftime("%Y-%m-%d %H:%M:%SZ")
                    ),
                ),
                None => {
                    let hint = opened.empty_hint();
                    let hint = hint.unwrap_or_else(|| format!("ship one: {} ship", lockstep()));
                    wrong(subject, "no set is in it yet", hint)
                }
            });
        }
        (None, _) => {}
    }
    all.extend(of_others(cx.name.as_str(), subject, &others));
    let is_there =
        |set: &Manifest| others.iter().chain(&ours).any(|there| there.manifest.set == set.set);
    let noted = here.iter().find(|set| Some(&set.set) == noted.as_ref());
    let this = ThisHost {
        sets: &here,
        noted: noted.map(|set| (set, is_there(set))),
        there: ours.iter().rev().map(|set| &set.manifest).find(|m| m.owner == cx.state.owner()),
    };
    all.extend(this.check(subject, newest_id.as_deref(), max_age, now));
    Ok(all)
}

/// Reports sets whose manifests can't be read, the newest first.
fn unreadable(subject: &str, damaged: &[(String, Error)], repository: &str) -> Vec<Finding> {
    let named = damaged.iter().rev().take(NAMED);
    let mut all: Vec<_> = named.map(|(_, error)| failure(subject, error)).collect();
    if let Some(more) = damaged.len().checked_sub(NAMED).filter(|more| *more > 0) {
        let what = format!("so can't the manifests of {more} older sets");
        let hint = format!("`{} repo check {repository}` names them", lockstep());
        all.push(wrong(subject, what, hint));
    }
    all
}

/// Reports sets of another cluster that has the same name.
fn of_others(cluster: &str, subject: &str, others: &[Shipped]) -> Option<Finding> {
    let newest = &others.last()?.manifest;
    let found = newest.postgres.system_identifier;
    let what = format!(
        "{} of its sets are of another cluster: the newest of them, {}, is of system identifier {found}",
        others.len(),
        newest.set
    );
    Some(wrong(subject, what, kin::hint(cluster, found)))
}

/// What this host has done for a repository to which others may ship as well.
pub(super) struct ThisHost<'a> {
    /// This host's sets, oldest first.
    pub(super) sets: &'a [Manifest],
    /// The newest of them that is noted as shipped there, and whether it is still there, whichever cluster it belongs
    /// to.
    pub(super) noted: Option<(&'a Manifest, bool)>,
    /// The newest set that this host took and that is there.
    pub(super) there: Option<&'a Manifest>,
}

impl ThisHost<'_> {
    /// Checks that what this host shipped is there, and that its shipments still arrive; `newest` is the newest set's
    /// id there. A pure function.
    pub(super) fn check(
        &self,
        subject: &str,
        newest: Option<&str>,
        max_age: u32,
        now: jiff::Timestamp,
    ) -> Option<Finding> {
        if let Some((noted, false)) = self.noted
            && newest.is_none_or(|newest| *newest < *noted.set.as_str())
        {
            let newest = newest.map_or_else(String::new, |id| format!(": its newest is {id}"));
            return Some(wrong(
                subject,
                format!("set {} was shipped to it, and isn't in it any more{newest}", noted.set),
                format!(
                    "did its storage go back to an older state, or did somebody remove the set? {0} repo check, then {0} ship --missing",
                    lockstep()
                ),
            ));
        }
        // A noted set that is gone was removed by another host's prune: it had arrived.
        let noted = self.noted.map(|(noted, _)| noted);
        let arrived = noted.into_iter().chain(self.there).max_by_key(|set| &set.set);
        let is_newer = |id: &str| arrived.is_none_or(|arrived| *arrived.set.as_str() < *id);
        // If nobody else ships, the newest set's age shows it.
        if !newest.is_some_and(is_newer) || !is_newer(self.sets.last()?.set.as_str()) {
            return None;
        }
        let since = arrived.or_else(|| self.sets.first())?;
        let hours = now.duration_since(since.started_at).as_hours();
        let what = match arrived {
            Some(set) => {
                format!(
                    "the newest set that this host shipped to it, {}, is {hours} hours old",
                    set.set
                )
            }
            None => {
                format!("no set of this host is in it, and the oldest here is {hours} hours old")
            }
        };
        (hours >= i64::from(max_age)).then(|| {
            wrong(
                subject,
                format!("{what}: others ship to it, this host doesn't"),
                format!(
                    "does `{0} backup` say why? {0} ship --missing makes up for it",
                    lockstep()
                ),
            )
        })
    }
}

/// The command that names a set's damaged pages.
fn show(repository: &str, id: &str) -> String {
    format!("`{} show {id} --from repository:{repository}`", lockstep())
}

fn below_hint(repository: &str, id: &str) -> String {
    format!(
        "unless they were rewritten since, they are in every later set too: {1} and pg_checksums name them; restore the table from an older set; `{0} backup --no-ship` and `{0} ship --full` then look at every page again",
        lockstep(),
        show(repository, id)
    )
}

/// Returns the sets with damaged pages that a set's volumes are based on, with the number of pages: only an
/// increment's own pages went by. Deltas whose set is gone aren't looked at. A pure function.
pub(super) fn damaged_below(newest: &Shipped, sets: &[Shipped]) -> BTreeMap<String, u64> {
    let mut there: HashMap<(&str, &str), (&Shipped, &ShippedVolume)> = HashMap::new();
    for set in sets.iter().filter(|set| set.manifest.set != newest.manifest.set) {
        for volume in &set.volumes {
            there.insert((&volume.image, &volume.delta), (set, volume));
        }
    }
    let mut found = BTreeMap::new();
    for mut volume in &newest.volumes {
        while let Some(base) = &volume.base
            // Each is visited only once, whatever a manifest says.
            && let Some((set, below)) = there.remove(&(&*volume.image, &**base))
        {
            if below.pages.bad > 0 {
                *found.entry(set.manifest.set.to_string()).or_default() += below.pages.bad;
            }
            volume = below;
        }
    }
    found
}

/// How somebody is rid of a snapshot that no state_dir has a set for.
const BY_HAND: &str = "zfs release lockstep SNAPSHOT, zfs destroy SNAPSHOT";

fn newest_there(
    repository: &str,
    subject: &str,
    set: &Shipped,
    max_age: u32,
    now: jiff::Timestamp,
) -> Finding {
    let id = &set.manifest.set;
    if let Some(old) = too_old(&set.manifest, max_age, now) {
        let hint = match old.is_set && !set.manifest.postgres.standby {
            true => format!("does `{} backup` say why it ships no more?", lockstep()),
            false => old.hint.to_owned(),
        };
        wrong(subject, format!("its newest set, {id}, {}", old.what), hint)
    } else if set.bad_pages() > 0 {
        wrong(
            subject,
            format!("set {id} has {} damaged pages", set.bad_pages()),
            format!(
                "{} and pg_checksums name them: restore the table from an older set",
                show(repository, id.as_str())
            ),
        )
    } else {
        ok(subject, format!("it can be reached, and its newest set is {id}"))
    }
}

/// Finds snapshots with Lockstep's marks that belong to no set here: one line a set. Those that this state_dir took
/// are distinguished from those of another, which may still have the set.
pub(super) fn strangers(found: Vec<Tagged>, owner: &str) -> Vec<Finding> {
    let mut by_set: BTreeMap<(String, bool, bool), Vec<String>> = BTreeMap::new();
    for tagged in found {
        let key = (tagged.set, tagged.owner == owner, tagged.state == TAKING);
        by_set.entry(key).or_default().push(format!("\"{}\"", tagged.snapshot));
    }
    let line = |((set, is_ours, is_begun), names): ((String, bool, bool), Vec<String>)| {
        let more = names.len().saturating_sub(NAMED);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let named: Vec<_> = names.iter().take(NAMED).map(String::as_str).collect();
        let word = if names.len() == 1 { "snapshot" } else { "snapshots" };
        let lockstep = lockstep();
        let (what, hint) = match is_ours {
            true if is_begun => (
                "was begun by this state_dir and never complete, its journal is gone,",
                "what a killed backup left, of no use to anybody: zfs destroy SNAPSHOT (one that is held: zfs release lockstep SNAPSHOT before)".to_owned(),
            ),
            true => (
                "was taken by this state_dir, which has no manifest of it any more,",
                format!("its manifest was lost, or it was given up. Where a repository has the set, `{lockstep} adopt` takes it up again. If nobody needs it: {BY_HAND}"),
            ),
            false => (
                "isn't one of this state_dir,",
                format!("another host's, or that of a state_dir that was lost: where its owner is still there, `prune` there removes it; else `{lockstep} adopt` takes up what a repository has. If nobody needs it: {BY_HAND}"),
            ),
        };
        let named = named.join(", ");
        warning("snapshots", format!("set {set} {what} and has the {word} {named}{more}"), hint)
    };
    by_set.into_iter().map(line).collect()
}
