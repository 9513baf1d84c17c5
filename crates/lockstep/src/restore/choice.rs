//! Chooses the set that a restore begins with: the requested one, or the newest from which recovery reaches its
//! target.
//!
//! What could go wrong: recovery only goes forward, so a set that is younger than the target can't be used. A much
//! older one makes recovery replay more WAL than necessary. One on a timeline that was left before the target leads
//! elsewhere ([`super::timelines`]). No manifest tells which set comes before a transaction or a restore point; then
//! the set has to be named.

use super::history_command;
use super::timelines::{Ask, Left, Timelines, Way, unknown};
use crate::context::{Context, lockstep};
use crate::error::{Error, Result};
use crate::plan::strategy::Strategy;
use crate::postgres::target::{Recovery, Target};
use crate::refusal::Refusal;
use crate::repository::{self, Repository, Shipped};
use crate::set::branches::{Branches, Member};
use crate::set::manifest::Manifest;
use crate::set::verify;

/// Chooses a set on this host. If none is named, a set with a missing snapshot is skipped.
///
/// # Errors
/// [`Error::Usage`] if there is none, or it has to be named; an error when a set can't be read.
pub(super) fn here(cx: &Context, named: Option<&str>, recovery: &Recovery) -> Result<Manifest> {
    match by_name(named, recovery)? {
        Some("latest") if asks_for_a_number(recovery) => return cx.state.newest(),
        Some(named) => return cx.state.find(named),
        None => {}
    }
    let (mut sets, damaged) = cx.state.sets()?;
    sets.reverse();
    let read = |set: &Manifest, name: &str| cx.state.read_set_file(set, name);
    let timelines = Timelines::new(recovery, ask(cx, recovery), Box::new(read));
    let mut choice = Choice { recovery, timelines, left: None };
    let found = choice.among(sets, |set| set, |set| is_whole(cx, set))?;
    for (id, error) in damaged {
        if found.as_ref().is_none_or(|found| found.set < id) {
            passed_over(id.as_str(), &error);
        }
    }
    found.ok_or_else(|| choice.none(&format!("cluster \"{}\"", cx.name), " on this host"))
}

/// Chooses a set of a repository.
///
/// # Errors
/// Those of [`here`], and when the store fails.
pub(super) fn stored(
    cx: &Context,
    repository: &Repository,
    named: Option<&str>,
    recovery: &Recovery,
) -> Result<Shipped> {
    match by_name(named, recovery)? {
        Some("latest") if asks_for_a_number(recovery) => return repository.newest_of(cx, None),
        Some(named) => return repository.find(cx, named),
        None => {}
    }
    // A set's id begins with the time when the set was begun.
    let is_younger = |id: &str| match &recovery.target {
        Target::Time(time) => id > format!("{}~", time.strftime("%Y%m%dT%H%M%SZ")).as_str(),
        _ => false,
    };
    let read = |set: &Manifest, name: &str| {
        let mut bytes = Vec::new();
        repository::files::content(repository, set.set.as_str(), name, |_, part| {
            bytes.extend_from_slice(part);
            Ok(())
        })?;
        Ok(bytes)
    };
    let mut timelines = Timelines::new(recovery, ask(cx, recovery), Box::new(read));
    let kin = repository.kin(cx)?;
    // The newest sets may all be on a timeline that was left.
    let is_before = |set: &Member| match &recovery.target {
        Target::Lsn(lsn) => set.end.is_some_and(|end| end <= *lsn),
        _ => !is_younger(&set.set),
    };
    let (members, untold) = repository.members(cx)?;
    for (set, error) in &untold {
        tracing::warn!(%set, error = %error.chain(), "a set can't be read, so its timeline is unknown: the cluster may live on it");
    }
    let branches = Branches::of(members.iter().cloned(), jiff::Timestamp::now());
    let members = members.iter().filter(|set| kin.has_identifier(set.system_identifier));
    members.filter(|set| is_before(set)).for_each(|set| timelines.learn_told(set));
    let mut choice = Choice { recovery, timelines, left: None };
    let among = |mut sets: Vec<Shipped>| {
        sets.retain(|set| kin.has(set));
        choice.among(sets, |set| &set.manifest, |_| Ok(true))
    };
    let found = repository.choose(|id| !is_younger(id), among, passed_over)?;
    if let Some(set) = &found
        && let Some(doubt) = branches.doubt(&set.manifest)
    {
        tracing::warn!(set = %set.manifest.set, "{doubt}");
    }
    found.ok_or_else(|| choice.none(&format!("repository \"{}\"", repository.name), ""))
}

/// Checks that the end of a primary's set without a label or a minRecoveryPoint is on the way to the timeline that
/// recovery follows. By these PostgreSQL checks any other set. Of this one it knows the checkpoint only: it replays the
/// set's own WAL to its end, of whatever timeline that is, and goes on as if it were on the one to follow.
///
/// # Errors
/// As [`check_end`].
pub(super) fn check_way(cx: &Context, set: &Manifest, recovery: &Recovery) -> Result<()> {
    match is_checked_here(set, recovery) {
        true => check_end(cx, set, recovery),
        false => Ok(()),
    }
}

/// Checks that the end of a set, as the manifest tells it, is on the way to the timeline that recovery follows.
///
/// # Errors
/// [`Error::Usage`] if it isn't; an error when a history can't be read.
pub(super) fn check_end(cx: &Context, set: &Manifest, recovery: &Recovery) -> Result<()> {
    let read = Box::new(|_: &Manifest, _: &str| Ok(Vec::new()));
    let timelines = Timelines::new(recovery, ask(cx, recovery), read);
    let Way::Left(left) = timelines.way(set)? else { return Ok(()) };
    let before =
        "take a set from before that: with --target-time and no set given, Lockstep finds it";
    let hint = match recovery.standby {
        Some(_) => before.to_owned(),
        None => format!(
            "{before}; or give --target-timeline {} to recover along the set's own",
            set.timeline()
        ),
    };
    Err(Error::usage(left.to_string(), hint))
}

/// Whether PostgreSQL wouldn't notice that the set isn't on the way.
pub(super) fn is_checked_here(set: &Manifest, recovery: &Recovery) -> bool {
    let knows_no_end = match set.strategy {
        Strategy::Atomic => true,
        // A floor becomes minRecoveryPoint; without a connection there is none.
        Strategy::Ordered => set.floor_lsn.is_none(),
        Strategy::Label | Strategy::Cold => false,
    };
    knows_no_end && !set.postgres.standby && recovery.signal().is_some()
}

/// Returns the name of the set; `None` if its position before the target decides.
fn by_name<'a>(named: Option<&'a str>, recovery: &Recovery) -> Result<Option<&'a str>> {
    match (named, &recovery.target) {
        (Some(named), _) => Ok(Some(named)),
        (None, Target::Time(_) | Target::Lsn(_)) => Ok(None),
        (None, Target::End | Target::Immediate) => Ok(Some("latest")),
        (None, Target::Xid(_) | Target::Name(_)) => Err(Error::usage(
            format!("no manifest tells which set was taken before {}", recovery.target),
            format!("name one that was taken before it: `{} list` shows them", lockstep()),
        )),
    }
}

/// Whether the timeline is given as a number. It may be one that was left; then every set on it counts.
fn asks_for_a_number(recovery: &Recovery) -> bool {
    recovery.asked_timeline().is_some()
}

/// Returns how histories are asked for.
fn ask<'a>(cx: &'a Context, recovery: &'a Recovery) -> Ask<'a> {
    match &recovery.restore_command {
        Some(command) => Box::new(|timeline| history_command::fetch(cx, command, timeline)),
        None => Box::new(|_| Ok(None)),
    }
}

/// A choice among sets, newest first.
struct Choice<'a> {
    recovery: &'a Recovery,
    timelines: Timelines<'a>,
    /// The first set that was skipped for its timeline.
    left: Option<Left>,
}

impl Choice<'_> {
    /// Returns the first set that fits, is on the way to the target, and is complete.
    fn among<S>(
        &mut self,
        sets: Vec<S>,
        manifest: impl Fn(&S) -> &Manifest,
        is_whole: impl Fn(&Manifest) -> Result<bool>,
    ) -> Result<Option<S>> {
        for set in &sets {
            let set = manifest(set);
            self.timelines.learn(set, self.recovery.comes_from(set));
        }
        let mut fitting = sets;
        fitting.retain(|set| self.recovery.comes_from(manifest(set)));
        for at in 0..fitting.len() {
            let set = manifest(&fitting[at]);
            match self.timelines.way(set)? {
                Way::Leads if is_whole(set)? => return Ok(Some(fitting.swap_remove(at))),
                Way::Leads => {}
                Way::Left(left) => {
                    tracing::info!("passed over: {left}");
                    self.left.get_or_insert(left);
                }
                Way::Unknown(missing) => {
                    let fitting: Vec<_> = fitting[at..].iter().map(&manifest).collect();
                    return Err(unknown(self.recovery, missing, &fitting));
                }
            }
        }
        Ok(None)
    }

    fn none(&self, whose: &str, place: &str) -> Error {
        let timeline = self.recovery.asked_timeline();
        let timeline = timeline.map_or_else(String::new, |it| format!(" on timeline {it}"));
        let mut hint = format!(
            "`{} list` shows the sets, with --from repository those of a repository; recovery only goes forward, so the set has to be older than the target",
            lockstep()
        );
        if let Some(left) = &self.left {
            hint.push_str(&format!("; {left}: give the timeline to follow with --target-timeline"));
        }
        let target = &self.recovery.target;
        let what =
            format!("{whose} has no set{place} from which recovery comes to {target}{timeline}");
        Error::usage(what, hint)
    }
}

/// Whether a set's snapshots exist; logs a set of which one doesn't.
fn is_whole(cx: &Context, set: &Manifest) -> Result<bool> {
    let gone = |refusal: &Refusal| {
        matches!(refusal, Refusal::SnapshotMissing { .. } | Refusal::SnapshotSwapped { .. })
    };
    match verify::snapshots(cx, set) {
        Err(Error::Refused(refusal)) if gone(&refusal) => {
            passed_over(set.set.as_str(), &Error::Refused(refusal));
            Ok(false)
        }
        other => other.map(|()| true),
    }
}

fn passed_over(id: &str, error: &Error) {
    tracing::warn!(set = %id, error = %error.chain(), "a set that can't be restored is passed over");
}
