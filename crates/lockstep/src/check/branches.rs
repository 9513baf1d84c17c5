//! Checks that the newest set of a place, and the cluster on this host, are on the branch that the cluster lives on,
//! and that no two clusters continue along it: a pure function.

use pgfiles::control_file::ControlFile;
use pgfiles::lsn::TimelineId;

use super::{Finding, wrong};
use crate::set::branches::{Branches, Member};
use crate::set::manifest::Manifest;
use crate::set::unread;

/// Returns what is wrong with a place whose sets have these branches; `control` is pg_control of this host's data
/// directory.
pub(super) fn check(
    subject: &str,
    branches: &Branches,
    newest: Option<&Manifest>,
    control: Option<&ControlFile>,
) -> Vec<Finding> {
    let set = newest.and_then(|set| branches.left_behind(set));
    let here = control.and_then(|control| branches.left(&running(control)));
    let apart = newest.and_then(|set| branches.apart(set));
    let apart = apart.map(|apart| wrong(subject, apart.to_string(), apart.hint()));
    let set = set.map(|left| wrong(subject, format!("its newest {left}"), left.hint()));
    let here = here.map(|left| {
        wrong(subject, format!("this host's cluster is on {}", left.where_left()), left.hint())
    });
    set.into_iter().chain(here).chain(apart).collect()
}

/// Reports sets of a repository that can't be read: nobody knows their timeline, and therefore not which set is
/// `latest`.
pub(super) fn untold(subject: &str, branches: &Branches, repository: &str) -> Vec<Finding> {
    let one = |(set, why): (&str, &str)| {
        let what =
            format!("set {set} can't be read, so it is unknown which set is `latest`: {why}");
        wrong(subject, what, unread::ways_out(set, Some(repository)))
    };
    branches.untold().map(one).collect()
}

/// Represents a running cluster as a set taken before all others: its time doesn't matter.
fn running(control: &ControlFile) -> Member {
    let checkpoint = &control.checkpoint_copy;
    let replayed = TimelineId::new(control.min_recovery_point_timeline);
    Member {
        set: String::new(),
        system_identifier: control.system_identifier,
        timeline: replayed.map_or(checkpoint.timeline, |on| on.max(checkpoint.timeline)),
        end: Some(control.checkpoint.max(control.min_recovery_point)),
        history: Vec::new(),
        primary: None,
    }
}
