//! `lockstep prune`: removes sets that no policy keeps, separately on this host and in each repository.
//!
//! For each place a plan is made first, by `retention.rs` alone and from what is there. Then that plan runs, set by
//! set. A place without a policy isn't touched. A failure in one place doesn't keep the others from being pruned.
//!
//! What could go wrong: the snapshot that the next increment to a repository starts from is removed, and everything
//! has to be sent again. So the newest common set is kept on both sides, and a repository that doesn't answer is
//! assumed to have what it was last known to have.

mod bookmarks;
mod chains;
mod in_common;
mod local;
mod locks;
#[cfg(test)]
mod many_tests;
#[cfg(test)]
pub(crate) mod memory_store;
mod remote;

use jiff::Timestamp;

use crate::config::RetentionConfig;
use crate::context::{Context, lockstep};
use crate::error::{Error, Result};
use crate::names::{self, Meant};
use crate::repository;
use crate::retention::Reason;
use crate::set::unfinished;
use crate::ship;
use crate::steps;
use crate::words;

pub use local::overdue;
pub use remote::Done;

/// What `prune` is asked to do.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// Change nothing.
    pub dry_run: bool,
    /// This host's sets.
    pub local: bool,
    /// These repositories. If neither is given: this host and all repositories of the cluster.
    pub repositories: Vec<String>,
    /// Remove exactly these sets, whatever the policy says; the place has to be named too.
    pub sets: Vec<String>,
    /// In each repository, stop merging after reading this many bytes of indexes.
    pub max_merge_bytes: Option<u64>,
    /// In each repository, the most bytes to rewrite of packs that are mostly dead.
    pub max_repack_bytes: u64,
}

/// Where sets are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// On this host.
    Local,
    /// In the repository of this name.
    Repository(String),
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Local => f.write_str("this host"),
            Self::Repository(name) => write!(f, "repository {name}"),
        }
    }
}

/// What happens to a set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// It is kept, for these reasons.
    Keep(Vec<Reason>),
    /// It is removed.
    Remove,
    /// It stays although the policy doesn't keep it, or it is damaged: either is a problem.
    Left(String),
}

/// A set in a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its id.
    pub set: String,
    /// When it was begun; unknown if its manifest can't be read.
    pub time: Option<Timestamp>,
    /// What happens to it.
    pub fate: Fate,
    /// The least number of bytes that only this set uses, if known.
    pub bytes: Option<u64>,
}

/// The plan for a place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The place.
    pub place: Place,
    /// Whether there is a policy for it; without one there are no entries and nothing is touched.
    pub configured: bool,
    /// The sets, oldest first.
    pub entries: Vec<Entry>,
    /// Other problems: a repository that didn't answer.
    pub problems: Vec<String>,
    /// When the extended locks on what the kept sets need will end.
    pub locks_until: Option<Timestamp>,
}

impl Plan {
    /// If sets were named, each has to be there, and one that is needed is a problem.
    fn insist_on(&mut self, named: &[String]) -> Result<()> {
        if let Some(id) = named.iter().find(|id| self.entries.iter().all(|e| e.set != **id)) {
            let list = match &self.place {
                Place::Local => format!("{} list", lockstep()),
                Place::Repository(name) => {
                    format!("{} list --from repository:{name}", lockstep())
                }
            };
            return Err(Error::usage(
                format!("{} has no set \"{id}\"", self.place),
                format!("`{list}` shows those that are there"),
            ));
        }
        for entry in self.entries.iter_mut().filter(|entry| named.contains(&entry.set)) {
            if let Fate::Keep(reasons) = &entry.fate {
                let reasons: Vec<_> = reasons.iter().map(ToString::to_string).collect();
                entry.fate = Fate::Left(format!("it is needed: {}", reasons.join(", ")));
            }
        }
        Ok(())
    }

    fn nothing(place: Place) -> Self {
        let (entries, problems) = (Vec::new(), Vec::new());
        Self { place, configured: false, entries, problems, locks_until: None }
    }

    /// The ids of the sets to be removed, oldest first.
    pub fn removed(&self) -> impl Iterator<Item = &str> {
        let removed = self.entries.iter().filter(|entry| entry.fate == Fate::Remove);
        removed.map(|entry| entry.set.as_str())
    }

    /// Checks whether something stays that should not, or a repository didn't answer.
    #[must_use]
    pub fn has_problems(&self) -> bool {
        let is_left = |entry: &Entry| matches!(entry.fate, Fate::Left(_));
        !self.problems.is_empty() || self.entries.iter().any(is_left)
    }
}

/// The result of pruning a place.
#[derive(Debug)]
pub struct Outcome {
    /// The plan, including what couldn't be removed after all.
    pub plan: Plan,
    /// The sets that were removed.
    pub removed: Vec<String>,
    /// For a repository: what was merged and deleted.
    pub done: Option<Done>,
    /// Why it ended early; what was done until then counts.
    pub error: Option<Error>,
}

impl Outcome {
    /// The outcome of a plan that wasn't carried out.
    fn of(plan: Plan) -> Self {
        Self { plan, removed: Vec::new(), done: None, error: None }
    }
}

/// The places, and how each ended. An error means that nothing was done there. Places after one that was interrupted
/// are omitted.
pub type Report = Vec<(Place, Result<Outcome>)>;

/// Prunes. `show` gets each plan before it is carried out.
///
/// # Errors
/// When nothing is configured for a place that was named, or another process holds the cluster's lock.
pub fn run(cx: &Context, request: &Request, mut show: impl FnMut(&Plan)) -> Result<Report> {
    let places = places(cx, request)?;
    // Before the lock: a repository that doesn't answer must not hold up backups.
    let asked = match places.contains(&Place::Local) && local::is_asked_for(cx, request) {
        true => in_common::ask_all(cx),
        false => Vec::new(),
    };
    steps::reached("prune.asked")?;
    let mut lock = match request.dry_run {
        true => None,
        false => Some(cx.lock("prune")?),
    };
    if !request.dry_run {
        steps::reached("prune.locked")?;
        unfinished::remove(cx)?;
        ship::forget_former(cx)?;
    }
    let mut report = Report::new();
    for place in places {
        let outcome = match &place {
            Place::Local => local::prune(cx, request, &asked, &mut show),
            Place::Repository(name) => {
                // A merge may take hours, and backups continue meanwhile: a repository has its own locks.
                drop(lock.take());
                remote::prune(cx, name, request, &mut show)
            }
        };
        let outcome = match outcome {
            // Nothing was done yet.
            Err(interrupted @ Error::Interrupted { .. }) if report.is_empty() => {
                return Err(interrupted);
            }
            outcome => outcome,
        };
        let error = outcome.as_ref().map_or_else(Some, |outcome| outcome.error.as_ref());
        let is_interrupted = matches!(error, Some(Error::Interrupted { .. }));
        report.push((place, outcome));
        if is_interrupted {
            break;
        }
    }
    Ok(report)
}

/// Resolves sets that were named by id or its beginning to whole ids. A name that matches none stays as it is, for
/// the error that shows it.
///
/// # Errors
/// When a beginning matches several sets, and for `latest`: the next backup would change its meaning.
fn resolve(place: &Place, named: &[String], ids: &[String]) -> Result<Vec<String>> {
    let whole = |which: &String| {
        if which == "latest" {
            return Err(Error::usage(
                "prune takes no \"latest\"",
                "name a set to remove by its id or the beginning of its id: another may be the latest by now",
            ));
        }
        match names::meant(which, ids.iter().map(String::as_str)) {
            Meant::One(id) => Ok(id),
            Meant::Nothing => Ok(which.clone()),
            Meant::Several(all) => Err(Error::usage(
                format!("several sets of {place} begin with \"{which}\""),
                format!("write more of it: {}", words::a_few(&all)),
            )),
        }
    };
    named.iter().map(whole).collect()
}

/// Returns the places to prune. A named place without a policy is an error; if nothing is named and no place has a
/// policy, that is a warning.
fn places(cx: &Context, request: &Request) -> Result<Vec<Place>> {
    let retention = &cx.cluster.retention;
    let unknown = |what: String, key: &str| {
        Error::usage(
            format!("no retention is configured for {what}: nothing is touched"),
            RetentionConfig::hint(&cx.name, key),
        )
    };
    let mut places = Vec::new();
    if request.local {
        if retention.local.is_none() && request.sets.is_empty() {
            return Err(unknown("the sets on this host".into(), "local"));
        }
        places.push(Place::Local);
    }
    for name in repository::of_cluster(cx, &request.repositories)? {
        if retention.of_repository(&name).is_none() && request.sets.is_empty() {
            return Err(unknown(format!("repository \"{name}\""), "repository"));
        }
        places.push(Place::Repository(name));
    }
    if places.is_empty() {
        let has_one = |name: &String| retention.of_repository(name).is_some();
        if retention.local.is_none() && !cx.cluster.repositories.iter().any(has_one) {
            // The state before anybody has thought about it: a nightly cron job shouldn't fail for that.
            let none = unknown(format!("cluster \"{}\"", cx.name), "local");
            tracing::warn!(hint = none.hint(), "{none}; snapshots pile up until a pool is full");
        }
        places.push(Place::Local);
        places.extend(cx.cluster.repositories.iter().cloned().map(Place::Repository));
    }
    Ok(places)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_named_by_their_beginning_and_never_as_the_latest() {
        let ids = ["20261121T000000Z-aaaa", "20261122T000000Z-bbbb", "20261122T000000Z-cccc"];
        let ids = ids.map(str::to_owned);
        let resolve = |named: &str| super::resolve(&Place::Local, &[named.to_owned()], &ids);
        assert_eq!(resolve("20261121").unwrap(), ids[..1]);
        assert_eq!(resolve(&ids[2]).unwrap(), ids[2..]);
        assert_eq!(resolve("2025").unwrap(), ["2025"]);
        let several = resolve("20261122").unwrap_err();
        assert!(
            several.hint().is_some_and(|hint| hint.contains(&ids[1]) && hint.contains(&ids[2]))
        );
        assert_eq!(resolve("latest").unwrap_err().exit_code(), 2);
    }
}
