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
use crate::set::state;
use crate::set::verify;

/// Chooses a set on this host. If none is named, a set with a missing snapshot is skipped.
///
/// # Errors
/// [`Error::Usage`] if there is none, or it has to be named; an error when a set can't be read.
pub(super) fn here(cx: &Context, named: Option<&str>, recovery: &Recovery) -> Result<Manifest> {
    match by_name(named, recovery)? {
        Some("latest") if asks_for_a_number(recovery) => {
            return cx.state.newest(&cx.identifiers());
        }
        Some(named) => return cx.find(named),
        None => {}
    }
    let (mut sets, damaged) = cx.state.sets()?;
    sets.reverse();
    let read = |set: &Manifest, name: &str| cx.state.read_set_file(set, name);
    let timelines = Timelines::new(recovery, ask(cx, recovery), Box::new(read));
    let mut choice = Choice { recovery, timelines, left: None };
    let identifiers = cx.identifiers();
    let (own, others) = state::of_cluster(sets, &identifiers);
    let mut found = choice.among(own, |set| set, |set| is_whole(cx, set))?;
    // The target may be of before pg_upgrade.
    if found.is_none() {
        found = choice.among(others, |set| set, |set| is_whole(cx, set))?;
    }
    if let Some(found) = found.as_ref().filter(|_| !identifiers.is_empty()) {
        state::tell_another(found, &identifiers);
    }
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
    left: Option<(Left, Member)>,
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
                Way::Leads if is_whole(set)? => {
                    self.check_cluster(set)?;
                    return Ok(Some(fitting.swap_remove(at)));
                }
                Way::Leads => {}
                Way::Left(left) => {
                    tracing::info!("passed over: {left}");
                    self.left.get_or_insert_with(|| (left, set.into()));
                }
                Way::Unknown(missing) => {
                    let fitting: Vec<_> = fitting[at..].iter().map(&manifest).collect();
                    return Err(unknown(self.recovery, missing, &fitting));
                }
            }
        }
        Ok(None)
    }

    /// Checks that no newer set of another cluster was skipped for its timeline. A history doesn't say whose it is, and
    /// an archive keeps those of before pg_upgrade, or of before an initdb, where the new cluster begins at timeline 1
    /// again: by them its sets are of a timeline that was left, and only the earlier cluster's lead on. Recovery from
    /// those never comes to the target, or to the same LSN in the earlier cluster's WAL.
    fn check_cluster(&self, found: &Manifest) -> Result<()> {
        let own = found.postgres.system_identifier;
        let another = |(_, newer): &&(Left, Member)| newer.system_identifier != own;
        let Some((left, newer)) = self.left.as_ref().filter(another) else { return Ok(()) };
        Err(Error::usage(
            format!(
                "{left}; the newest set on the way, {}, is of an earlier cluster: its system identifier is {own}, that of set {} is {}",
                found.set, newer.set, newer.system_identifier
            ),
            format!(
                "does restore_command find histories (NNNNNNNN.history) of the earlier cluster's timelines? Move them out of the archive, to where its own segments are; or name set {} and its timeline: --target-timeline {}. If recovery is to begin with the earlier cluster: name set {}",
                newer.set, newer.timeline, found.set
            ),
        ))
    }

    fn none(&self, whose: &str, place: &str) -> Error {
        let timeline = self.recovery.asked_timeline();
        let timeline = timeline.map_or_else(String::new, |it| format!(" on timeline {it}"));
        let mut hint = format!(
            "`{} list` shows the sets, with --from repository those of a repository; recovery only goes forward, so the set has to be older than the target",
            lockstep()
        );
        if let Some((left, _)) = &self.left {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::set::manifest::tests::manifest;
    use pgfiles::lsn::{Lsn, SystemIdentifier, TimelineId};

    /// A set that is consistent at 0/`end`000000.
    fn set(second: u32, cluster: u64, timeline: u32, end: u64) -> Manifest {
        let mut set = manifest(&format!("20261123T1945{second:02}Z-k3fa"), Vec::new());
        set.postgres.system_identifier = SystemIdentifier::new(cluster);
        set.postgres.timeline = TimelineId::new(timeline).unwrap();
        set.floor_lsn = Some(Lsn::new(end << 24));
        set.files.clear();
        set
    }

    /// The archive has the history of timeline 2, which left 1 at 0/5000000.
    fn chosen(timeline: Option<&str>, sets: &[Manifest]) -> Result<Option<String>> {
        let recovery = Recovery {
            target: Target::Lsn(Lsn::new(u64::MAX)),
            timeline: timeline.map(str::to_owned),
            ..Recovery::default()
        };
        let ask = |of: TimelineId| Ok((of.get() == 2).then(|| b"1\t0/5000000\tx\n".to_vec()));
        let read = |_: &Manifest, _: &str| -> Result<Vec<u8>> { Err(Error::failed("none")) };
        let timelines = Timelines::new(&recovery, Box::new(ask), Box::new(read));
        let mut choice = Choice { recovery: &recovery, timelines, left: None };
        let found = choice.among(sets.to_vec(), |set| set, |_| Ok(true))?;
        Ok(found.map(|set| set.set.to_string()))
    }

    #[test]
    fn histories_of_before_pg_upgrade_lead_to_no_set_of_before_it() {
        let old = [set(3, 7, 2, 6), set(2, 7, 1, 4)];
        let new = [set(8, 8, 1, 10), set(7, 8, 1, 9)];
        let all = [&new[..], &old].concat();
        let error = chosen(None, &all).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        let said = format!("{}\n{}", error, error.hint().unwrap());
        for words in [new[0].set.as_str(), old[0].set.as_str(), "--target-timeline 1"] {
            assert!(said.contains(words), "{words}: {said}");
        }
        assert_eq!(chosen(Some("1"), &all).unwrap(), Some(new[0].set.to_string()));
        // Within one cluster a set of a timeline that was left is passed over.
        let left = [&[set(4, 7, 1, 8)][..], &old].concat();
        assert_eq!(chosen(None, &left).unwrap(), Some(old[0].set.to_string()));
    }
}
