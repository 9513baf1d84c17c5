//! The note of which locks were prolonged, and until when (`locks.json`), so that the store needn't be queried for
//! every object each time.
//!
//! A *run* prolongs the locks of everything that is kept, all until the same time. What was written after it has its
//! own lock, which ends later. What existed and wasn't kept is noted as *left out*, because a later set may come to
//! need it. What is kept and can't be locked is noted as left out too; a run that met such a thing isn't done.
//!
//! The note proves nothing and may be lost. Then all locks are prolonged once more, and objects whose locks were
//! prolonged before may be deleted while they are locked, which only hides them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::doomed::{read_note, size};
use crate::document;
use crate::error::Result;
use crate::repository::Repository;

/// The most bytes that the list of what was left out may have.
pub(super) const MOST_LEFT: u64 = 8 << 20;

/// A prolongation of all locks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Run {
    /// When it began; for a run that was restarted, when it first began.
    at: u64,
    /// Until when it locks.
    until: u64,
    /// Whether it has completed.
    done: bool,
    /// If it hasn't completed, the last pack whose lock has been prolonged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    packs: Option<String>,
}

/// What is known of locks that were prolonged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Locks {
    format: u32,
    /// Oldest first; only the last may be incomplete.
    runs: Vec<Run>,
    /// What runs have left out, and since when.
    left: BTreeMap<String, u64>,
}

impl Default for Locks {
    fn default() -> Locks {
        Locks { format: 1, runs: Vec::new(), left: BTreeMap::new() }
    }
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Nothing: everything that is kept is locked for long enough.
    Nothing,
    /// Continue the last run after this pack.
    GoOn(Option<String>),
    /// Prolong all locks.
    Begin,
}

/// Returns for how many seconds the store locks what is worth keeping; 0 if it locks nothing.
pub fn lock_seconds(repository: &Repository) -> u64 {
    repository.store().locked_seconds(&repository.path("sets/any.json"))
}

impl Locks {
    /// Reads the note; it is empty if the store locks nothing, or if the note is lost or damaged.
    pub fn read(repository: &Repository) -> Result<Locks> {
        if lock_seconds(repository) == 0 {
            return Ok(Locks::default());
        }
        read_note(repository, &path(repository))
    }

    pub(super) fn write(&self, repository: &Repository) -> Result<()> {
        let path = path(repository);
        repository.store().put(&path, &[document::write(&path, self)?.into()])?;
        Ok(())
    }

    /// Returns when an object's lock ends at the latest. The object was written at `modified`, nothing that is kept has
    /// needed it from `since` on, and the store locks for this many `seconds`.
    pub fn ends(&self, path: &str, modified: u64, since: Option<u64>, seconds: u64) -> u64 {
        let own = modified.saturating_add(seconds);
        if seconds == 0 {
            return own;
        }
        let left = self.left.get(path).copied();
        let out = left.into_iter().chain(since).min().unwrap_or(u64::MAX);
        let prolonged = self.runs.iter().filter(|run| run.at < out).map(|run| run.until);
        prolonged.max().unwrap_or(0).max(own)
    }

    /// Returns the time until which everything that is kept is locked at least, as far as a completed run ensures it;
    /// what was written since is locked for at least as long.
    pub fn all_until(&self, seconds: u64) -> Option<u64> {
        let done = self.runs.iter().rfind(|run| run.done)?;
        // What was written since is locked for the time that is configured now.
        Some(done.until.min(done.at.saturating_add(seconds)))
    }

    /// Whether anything was left out, which a set may need now.
    pub fn leaves_any(&self) -> bool {
        !self.left.is_empty()
    }

    /// Whether all locks must be prolonged or a run hasn't completed: at least half of the lock time must always
    /// remain.
    pub fn is_due(&self, now: u64, seconds: u64) -> bool {
        self.next(now, seconds) != Next::Nothing
    }

    pub(super) fn next(&self, now: u64, seconds: u64) -> Next {
        let is_enough = |until: u64| now.saturating_add(seconds / 2) <= until;
        match self.runs.last() {
            _ if seconds == 0 => Next::Nothing,
            Some(run)
                if !run.done
                    && is_enough(run.until)
                    && run.until <= now.saturating_add(seconds) =>
            {
                Next::GoOn(run.packs.clone())
            }
            Some(run) if run.done && self.all_until(seconds).is_some_and(is_enough) => {
                Next::Nothing
            }
            _ => Next::Begin,
        }
    }

    /// Notes that a run begins; returns until when it locks.
    pub(super) fn begin(&mut self, now: u64, seconds: u64) -> u64 {
        let until = now.saturating_add(seconds);
        // What an incomplete run has prolonged is prolonged again, so that one entry covers both.
        let unfinished = self.runs.pop_if(|run| !run.done);
        let at = unfinished.map_or(now, |run| run.at.min(now));
        self.runs.retain(|run| run.until > now);
        self.runs.push(Run { at, until, done: false, packs: None });
        until
    }

    /// Returns until when the last run locks.
    pub(super) fn until(&self) -> Option<u64> {
        self.runs.last().map(|run| run.until)
    }

    /// Notes how far the last run has come; this never goes back.
    pub(super) fn reached(&mut self, pack: &str) {
        if let Some(run) = self.runs.last_mut()
            && run.packs.as_deref().is_none_or(|before| before < pack)
        {
            run.packs = Some(pack.to_string());
        }
    }

    /// Notes that the last run has completed.
    pub(super) fn end(&mut self) {
        if let Some(run) = self.runs.last_mut() {
            (run.done, run.packs) = (true, None);
        }
    }

    /// Notes that the last run isn't complete after all, and continues after this pack.
    pub(super) fn reopen(&mut self, packs: Option<String>) {
        if let Some(run) = self.runs.last_mut() {
            (run.done, run.packs) = (false, packs);
        }
    }

    /// Returns what was left out.
    pub(super) fn left(&self) -> impl Iterator<Item = &String> {
        self.left.keys()
    }

    /// Notes that something is no longer left out.
    pub(super) fn taken(&mut self, path: &str) {
        self.left.remove(path);
    }

    /// Notes that something is left out.
    pub(super) fn leave(&mut self, path: String, now: u64) {
        self.left.entry(path).or_insert(now);
    }

    /// Replaces the list of what is left out, as far as `most` bytes hold it; what was on the list before comes first.
    pub(super) fn leave_these(&mut self, paths: impl Iterator<Item = String>, now: u64, most: u64) {
        let before = std::mem::take(&mut self.left);
        let mut room = most.saturating_sub(before.keys().map(|path| size(path)).sum());
        self.left = paths
            .filter_map(|path| {
                if let Some(since) = before.get(&path).copied() {
                    return Some((path, since));
                }
                room = room.checked_sub(size(&path))?;
                Some((path, now))
            })
            .collect();
    }

    /// Whether something is noted as left out.
    pub(super) fn is_left(&self, path: &str) -> bool {
        self.left.contains_key(path)
    }
}

fn path(repository: &Repository) -> String {
    repository.path("locks.json")
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1000;

    fn done(at: u64, seconds: u64) -> Locks {
        let mut locks = Locks::default();
        locks.begin(at, seconds);
        locks.end();
        locks
    }

    #[test]
    fn half_of_the_time_is_left_always() {
        assert_eq!(Locks::default().next(5000, S), Next::Begin);
        assert_eq!(Locks::default().next(5000, 0), Next::Nothing, "nothing is locked");
        let locks = done(5000, S);
        assert_eq!(locks.next(5500, S), Next::Nothing);
        assert_eq!(locks.next(5501, S), Next::Begin);
        // If locks shall last longer from now on, at once. If shorter, what was written since ends earlier.
        assert_eq!(locks.next(5001, 4 * S), Next::Begin);
        assert_eq!(locks.next(5050, S / 10), Next::Nothing);
        assert_eq!(locks.next(5051, S / 10), Next::Begin);
    }

    #[test]
    fn an_unfinished_run_goes_on_while_that_is_of_use() {
        let mut locks = done(5000, S);
        assert_eq!(locks.begin(5600, S), 6600);
        assert_eq!(locks.next(5700, S), Next::GoOn(None));
        locks.reached("P");
        locks.reached("O");
        assert_eq!(locks.next(6100, S), Next::GoOn(Some("P".into())));
        assert_eq!(locks.next(6101, S), Next::Begin);
        assert_eq!(locks.next(5700, S / 2), Next::Begin, "it asks for more than now");
        assert_eq!(locks.all_until(S), Some(6000), "the one that was done counts");
        // A restarted run covers what both may have locked.
        assert_eq!(locks.begin(6200, S), 7200);
        assert_eq!(locks.ends("x", 0, Some(5601), S), 7200);
        assert_eq!(locks.ends("x", 0, Some(5600), S), S);
    }

    #[test]
    fn a_lock_ends_when_the_last_run_that_may_have_prolonged_it_says() {
        let mut locks = done(5000, S);
        locks.begin(5600, S);
        locks.end();
        locks.leave("left".into(), 5600);
        assert_eq!(locks.ends("x", 5700, None, S), 6700, "its own is longer");
        assert_eq!(locks.ends("x", 100, None, S), 6600);
        assert_eq!(locks.ends("x", 100, Some(5550), S), 6000, "dead when the second began");
        assert_eq!(locks.ends("x", 100, Some(5000), S), 1100);
        assert_eq!(locks.ends("left", 100, None, S), 6000);
        assert_eq!(locks.ends("left", 100, Some(4000), S), 1100);
        assert_eq!(locks.ends("x", 100, None, 0), 100, "the store locks nothing any more");
        // Only this much of what is left out is noted, starting with what was noted before.
        let paths = ["a", "left", "b"].map(str::to_string);
        locks.leave_these(paths.into_iter(), 5700, size("left") + size("a") + 1);
        assert_eq!(locks.left, [("a".to_string(), 5700), ("left".to_string(), 5600)].into());
        // Runs whose locks have ended are forgotten.
        locks.begin(6300, S);
        assert_eq!(locks.runs.len(), 2);
    }
}
