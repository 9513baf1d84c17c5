//! Reports interrupted work that isn't undone yet, and what keeps it from being undone; and sets that nobody looks
//! after any more.

use std::collections::BTreeMap;
use std::path::Path;

use serde::de::DeserializeOwned;

use super::{Finding, failure, warning};
use crate::clone;
use crate::context::{Context, lockstep, lockstep_of};
use crate::error::Result;
use crate::lock::Lock;
use crate::restore::unfinished::{InTheWay, Whose};
use crate::restore::{self, strays};
use crate::set::journal::{self, BackupJournal, RemovalJournal, RestoreJournal};
use crate::set::unfinished::{self, NO_MANIFEST};
use crate::steps;
use crate::volume::zfs::{Away, DatasetName, Made};

pub(super) const SUBJECT: &str = "unfinished";

/// Returns a finding for each journal whose command isn't running any more.
pub(super) fn find(cx: &Context) -> Result<Vec<Finding>> {
    // In this order: what has begun by now holds its lock, or has ended and removed its journal.
    let backups = journal::read_all::<BackupJournal>(&cx.state.path("unfinished"))?;
    let removals = journal::read_all::<RemovalJournal>(&cx.state.path("removals"))?;
    let restores = journal::read_all::<RestoreJournal>(&cx.state.path("restores"))?;
    steps::reached("check.journals")?;
    // Only looked at: a backup that starts at this moment has to get the lock.
    let running = Lock::is_held(&cx.state.path("lock"))?;
    let mut all = Vec::new();
    if !running {
        for (path, entry) in backups {
            if !is_there(&path, &entry)? {
                continue;
            }
            // If its manifest is there, the set is complete all the same.
            let is_lost = match cx.state.is_complete(entry.set.as_str()) {
                true => Ok(false),
                false => unfinished::is_marked_complete(cx, &entry),
            };
            all.push(match is_lost {
                Ok(true) => warning(
                    "snapshots",
                    format!("set {}: {NO_MANIFEST}", entry.set),
                    unfinished::adopt(),
                ),
                Ok(false) => of_backup(&entry),
                // Its pool may be suspended.
                Err(error) => failure(SUBJECT, &error),
            });
        }
        for (path, entry) in removals {
            if !is_there(&path, &entry)? {
                continue;
            }
            all.push(warning(
                SUBJECT,
                format!("the removal of set {} was cut off", entry.set),
                format!(
                    "the next prune or backup finishes it, once nothing depends on its snapshots and its pools are imported; if one of them is gone for good: {} prune --local --set {}",
                    lockstep(),
                    entry.set
                ),
            ));
        }
    }
    for (path, entry) in restores {
        if restore::unfinished::is_alive(cx, &entry.id)? || !is_there(&path, &entry)? {
            continue;
        }
        if let Some(pool) = restore::unfinished::suspended(cx, &entry) {
            let what = format!(
                "{} was cut off, and pool \"{pool}\", which has something of it, is suspended",
                entry.id
            );
            let hint = format!("`{}`, once its disks are back", Away::Suspended.command(&pool));
            all.push(warning(SUBJECT, what, hint));
            continue;
        }
        match restore::unfinished::whose_now(cx, &entry)? {
            // The next command forgets it.
            Whose::Ended => {}
            Whose::Ours => {
                let entry = restore::gone_on::still_there(cx, &entry)?;
                let goes = restore::gone_on::without_kept(&entry);
                let has_data = restore::unfinished::has_data(cx, &entry)?;
                let in_the_way = restore::unfinished::in_the_way(cx, &goes)?;
                let words = restore::gone_on::words(cx, &entry);
                all.push(of_restore(&entry, has_data, &words, &in_the_way));
            }
            other => all.push(of_what_stays(&entry, &path, other)),
        }
    }
    Ok(all)
}

/// Whether a journal is still as it was read.
fn is_there<T: DeserializeOwned + PartialEq>(path: &Path, entry: &T) -> Result<bool> {
    Ok(journal::read::<T>(path)?.as_ref() == Some(entry))
}

/// Finds sets of clusters that were renamed in the configuration, or removed from it: no command sees them, and their
/// snapshots stay.
pub(super) fn of_no_cluster(cx: &Context) -> Result<Vec<Finding>> {
    let all = cx.state.other_clusters()?.into_iter();
    let unknown = all.filter(|(name, _)| !cx.clusters.contains_key(name));
    let say = |(name, sets): (String, usize)| {
        let what = format!(
            "state_dir has {sets} sets of cluster \"{name}\", which isn't in the configuration: nothing prunes them, and their snapshots stay"
        );
        let hint = format!(
            "was it renamed? a cluster keeps its name: [clusters.{name}]. To be rid of them: with that table in the configuration, {} prune --local --set ID for each",
            lockstep_of(&name)
        );
        warning("sets", what, hint)
    };
    Ok(unknown.map(say).collect())
}

/// Returns a finding for each restore or clone whose datasets nobody here knows; `datasets` are the cluster's. A pure
/// function.
pub(super) fn strays(found: &[Made], datasets: &[DatasetName], owner: &str) -> Vec<Finding> {
    let mut by_restore: BTreeMap<(&str, &str), Vec<&Made>> = BTreeMap::new();
    for made in found {
        by_restore.entry((&made.restore, &made.owner)).or_default().push(made);
    }
    let line = |((restore, of), made): ((&str, &str), Vec<&Made>)| {
        let names: Vec<_> = made.iter().map(|made| format!("\"{}\"", made.dataset)).collect();
        let whose = match of == owner {
            true => "was made by this state_dir, which has neither journal nor record of it",
            false => "isn't one of this state_dir",
        };
        let what = format!("{restore} {whose}, and has {}", names.join(", "));
        let is_of_this =
            |made: &&Made| made.origin.as_ref().is_some_and(|of| datasets.contains(&of.dataset));
        let hint = match clone::name_in(restore).filter(|_| made.iter().all(is_of_this)) {
            Some(name) => format!(
                "it was made before state_dir was lost or came back from a copy (or another state_dir has it, or makes it now). If nobody needs it: {}",
                clone::destroy_command(name, of != owner)
            ),
            None => format!(
                "what a killed command left, or of a state_dir that was lost (or another host's command is at work). If nobody needs it, stop its server where one runs, and then: {}",
                strays::commands(&made)
            ),
        };
        warning(SUBJECT, what, hint)
    };
    by_restore.into_iter().map(line).collect()
}

fn of_backup(entry: &BackupJournal) -> Finding {
    let what = format!("backup {} was cut off", entry.set);
    match &entry.left {
        None => warning(SUBJECT, what, "the next backup removes what it left"),
        Some(why) => warning(
            SUBJECT,
            format!("{what}, and what it left could not be removed: {why}"),
            "destroy the clone or release the hold with zfs: the next backup removes the rest",
        ),
    }
}

/// `has_data`: what is in its data directory is still the restore's. `words`: what is said of one that stays.
fn of_restore(
    entry: &RestoreJournal,
    has_data: bool,
    words: &str,
    in_the_way: &[InTheWay],
) -> Finding {
    let what = format!("{} was cut off", entry.id);
    match in_the_way {
        [] if restore::gone_on::is_kept(entry)
            && has_data
            && restore::control::is_in_place(&entry.data) =>
        {
            warning(
                SUBJECT,
                format!("{what}, and its pg_control is in place"),
                format!(
                    "start no server in \"{}\": the next restore, prune or backup takes pg_control its name away, and says how to continue",
                    entry.data.display()
                ),
            )
        }
        [] if restore::gone_on::is_kept(entry) => warning(SUBJECT, what, words),
        [] => warning(SUBJECT, what, "the next restore, prune or backup removes what it left"),
        all => warning(
            SUBJECT,
            format!("{what}, and what it left can't be removed: {}", InTheWay::of_all(all)),
            "destroy that with zfs, if nobody needs it: the next restore, prune or backup removes the rest",
        ),
    }
}

/// Returns a finding for a restore or clone of which the next command removes nothing.
fn of_what_stays(entry: &RestoreJournal, journal: &Path, whose: Whose) -> Finding {
    let (id, data, journal) = (&entry.id, entry.data.display(), journal.display());
    let (is, hint) = match whose {
        Whose::Unseen(why) => (
            format!("what it left can't be seen: {why}"),
            format!(
                "import the pool or mount the dataset, and start no server in \"{data}\" before the next restore, prune or backup has put it in order; if it is gone for good, remove \"{journal}\""
            ),
        ),
        Whose::Configured(cluster) => (
            format!("\"{data}\" may be cluster \"{cluster}\" of the configuration by now"),
            format!(
                "if it is, remove \"{journal}\"; if nobody needs it, remove what that file names"
            ),
        ),
        Whose::Unknown(error) => (
            format!(
                "\"{data}\" may be a cluster of its own by now, and its pg_control can't be read: {}",
                error.chain()
            ),
            format!("load its key, mount it; or, if nobody needs it, remove it and \"{journal}\""),
        ),
        Whose::TakenOver => (
            format!("another restore has continued with what it left in \"{data}\""),
            "the next restore, prune or backup forgets this one, and what is there stays".into(),
        ),
        Whose::Ours | Whose::Ended | Whose::Theirs => (
            format!("\"{data}\" is a cluster of its own by now"),
            "the next restore, prune or backup forgets this restore, and the cluster stays".into(),
        ),
    };
    warning(SUBJECT, format!("{id} was cut off, and {is}"), hint)
}
