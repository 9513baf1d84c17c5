//! The sets of this host and of the repositories: whether they are whole, and how old their data is.

use std::collections::{BTreeMap, HashMap};

use super::{Finding, failure, ok, warning, wrong};
use crate::context::Context;
use crate::error::Result;
use crate::repository::{self, Shipped, ShippedVolume, locks};
use crate::restore;
use crate::set::manifest::{Manifest, SetVolume};
use crate::set::removal;
use crate::volume::zfs::Tagged;

/// How many snapshots of a set are named.
const NAMED: usize = 4;

/// The sets of this host.
pub(super) fn here(cx: &Context) -> Result<Vec<Finding>> {
    let (sets, damaged) = cx.state.sets()?;
    let mut all: Vec<_> =
        damaged.iter().map(|(id, error)| failure(&format!("set {id}"), error)).collect();
    for set in &sets {
        // One that is removed beside this isn't a damaged one.
        if let Err(error) = restore::check_set(cx, set)
            && cx.state.is_complete(set.set.as_str())
        {
            all.push(failure(&format!("set {}", set.set), &error));
            all.extend(renamed(cx, set)?);
        }
    }
    let Some(last) = sets.last() else {
        let hint = match cx.cluster.repositories.is_empty() {
            true => "take one: lockstep backup",
            false => {
                "take one: lockstep backup; those of the repositories: lockstep list --from repository"
            }
        };
        // No age is asked for: a monitor would never hear of backups that never began, or of a state_dir that was lost.
        all.push(wrong("sets", "there is no set yet", hint));
        return Ok(all);
    };
    let now = jiff::Timestamp::now();
    let max_age = cx.cluster.max_age_hours;
    all.push(match too_old(last, max_age, now) {
        Some(old) => wrong("sets", format!("the newest set, {}, {}", last.set, old.what), old.hint),
        None => ok("sets", format!("{} sets, the newest is {}", sets.len(), last.set)),
    });
    let problems = last.problems().map(|problem| {
        warning("last backup", format!("set {}: {}", last.set, problem.what), problem.hint.clone())
    });
    all.extend(problems);
    Ok(all)
}

/// Snapshots of a set whose dataset was renamed: the set can't be restored from them, and `prune` finds them.
fn renamed(cx: &Context, set: &Manifest) -> Result<Vec<Finding>> {
    let mut all = Vec::new();
    let names: Vec<_> = set.volumes.iter().map(SetVolume::snapshot_name).collect();
    let there = cx.zfs.standing(&names)?;
    for (volume, snapshot) in set.volumes.iter().zip(names) {
        if !there.contains_key(&snapshot)
            && let Some(now) = removal::renamed(cx, &snapshot, &volume.guid, volume.createtxg)?
        {
            let what = format!("\"{now}\" is of set {}, whose dataset was renamed", set.set);
            let hint = format!(
                "the set restores once its dataset is \"{}\" again; `lockstep prune` removes the snapshot with the set",
                volume.dataset
            );
            all.push(warning("snapshots", what, hint));
        }
    }
    Ok(all)
}

/// Why a set is older than it may be, and what to do.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Old {
    pub(super) what: String,
    pub(super) hint: &'static str,
    /// No newer one was taken; else it is its data that is old.
    pub(super) is_set: bool,
}

/// Whether a set is older than it may be; where the age of its data is known, that counts. A pure function.
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
            "the last that its standby had replayed",
            "does the standby follow its primary? a mirror: `lockstep mirror status`",
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

/// Whether a repository can be reached, how old its newest set is, and whether its store's locks are prolonged. What is
/// in it `repo check` looks at.
pub(super) fn in_repository(cx: &Context, name: &str) -> Vec<Finding> {
    let subject = format!("repository {name}");
    let opened = match repository::open(cx, name) {
        Ok(opened) => opened,
        Err(error) => return vec![failure(&subject, &error)],
    };
    let now = jiff::Timestamp::now();
    let (newest, below) = match opened.newest() {
        Err(error) => (failure(&subject, &error), BTreeMap::new()),
        Ok(None) => {
            let hint = opened.empty_hint();
            let hint = hint.unwrap_or_else(|| "ship one: lockstep ship".into());
            (wrong(&subject, "no set is in it yet", hint), BTreeMap::new())
        }
        Ok(Some(set)) => (
            newest_there(&subject, &set, cx.cluster.max_age_hours, now),
            // What can't be read `repo check` tells.
            opened.sets().map_or_else(|_| BTreeMap::new(), |(sets, _)| damaged_below(&set, &sets)),
        ),
    };
    let below = below.into_iter().map(|(id, pages)| {
        wrong(
            &subject,
            format!("set {id} has {pages} damaged pages, and its newest set stands on it"),
            BELOW_HINT,
        )
    });
    let locks = match locks::overdue(&opened, u64::try_from(now.as_second()).unwrap_or(0)) {
        Ok(None) => None,
        Ok(Some(what)) => Some(warning(&subject, what, locks::OVERDUE_HINT)),
        Err(error) => Some(failure(&subject, &error)),
    };
    std::iter::once(newest).chain(below).chain(locks).collect()
}

const BELOW_HINT: &str = "unless they were written anew since, they are in every set from there on: lockstep show and pg_checksums name them, restore the table from an older set; `lockstep backup --no-ship` and `lockstep ship --full` then look at every page again";

/// The sets with damaged pages that a set's volumes are increments to, with how many: an increment's own pages alone
/// went by. Deltas whose set is gone aren't looked at. A pure function.
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
            // Each is gone through once, whatever a manifest says.
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

fn newest_there(subject: &str, set: &Shipped, max_age: u32, now: jiff::Timestamp) -> Finding {
    let id = &set.manifest.set;
    if let Some(old) = too_old(&set.manifest, max_age, now) {
        let hint = match old.is_set && !set.manifest.postgres.standby {
            true => "does `lockstep backup` say why it ships no more?",
            false => old.hint,
        };
        wrong(subject, format!("its newest set, {id}, {}", old.what), hint)
    } else if set.bad_pages() > 0 {
        wrong(
            subject,
            format!("set {id} has {} damaged pages", set.bad_pages()),
            "lockstep show and pg_checksums name them: restore the table from an older set",
        )
    } else {
        ok(subject, format!("it can be reached, and its newest set is {id}"))
    }
}

/// Snapshots with Lockstep's marks that are of no set here: one line a set. What this state_dir took is told from what
/// another did: that one may have the set still.
pub(super) fn strangers(found: Vec<Tagged>, owner: &str) -> Vec<Finding> {
    let mut by_set: BTreeMap<(String, bool), Vec<String>> = BTreeMap::new();
    for tagged in found {
        let key = (tagged.set, tagged.owner == owner);
        by_set.entry(key).or_default().push(format!("\"{}\"", tagged.snapshot));
    }
    let line = |((set, is_ours), names): ((String, bool), Vec<String>)| {
        let more = names.len().saturating_sub(NAMED);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let named: Vec<_> = names.iter().take(NAMED).map(String::as_str).collect();
        let word = if names.len() == 1 { "snapshot" } else { "snapshots" };
        let (what, hint) = match is_ours {
            true => (
                "was taken by this state_dir, which has no manifest of it any more,",
                "its manifest was lost, or it was given up: no restore takes it from here, a repository may have it. If nobody needs it: zfs release lockstep SNAPSHOT, zfs destroy SNAPSHOT",
            ),
            false => (
                "isn't one of this state_dir,",
                "another host's, or that of a state_dir that was lost: where its owner is still there, `lockstep prune` there removes it. If nobody needs it: zfs release lockstep SNAPSHOT, zfs destroy SNAPSHOT",
            ),
        };
        let named = named.join(", ");
        warning("snapshots", format!("set {set} {what} and has the {word} {named}{more}"), hint)
    };
    by_set.into_iter().map(line).collect()
}
