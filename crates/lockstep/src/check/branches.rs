//! Whether the newest set of a place, and what runs on this host, is of the branch that the cluster lives on: a pure
//! function.

use pgfiles::control_file::ControlFile;
use pgfiles::lsn::TimelineId;

use super::{Finding, wrong};
use crate::set::branches::{Branches, Member};
use crate::set::manifest::Manifest;

/// What is wrong with a place whose sets have these branches; `control` is pg_control of this host's data directory.
pub(super) fn check(
    subject: &str,
    branches: &Branches,
    newest: Option<&Manifest>,
    control: Option<&ControlFile>,
) -> Vec<Finding> {
    let set = newest.and_then(|set| branches.left_behind(set));
    let here = control.and_then(|control| branches.left(&running(control)));
    let set = set.map(|left| wrong(subject, format!("its newest {left}"), left.hint()));
    let here = here.map(|left| {
        wrong(subject, format!("this host's cluster is on {}", left.where_left()), left.hint())
    });
    set.into_iter().chain(here).collect()
}

/// A cluster as if it were a set that was taken before all others: when it was has nothing to say.
fn running(control: &ControlFile) -> Member {
    let checkpoint = &control.checkpoint_copy;
    let replayed = TimelineId::new(control.min_recovery_point_timeline);
    Member {
        set: String::new(),
        system_identifier: control.system_identifier.to_string(),
        timeline: replayed.map_or(checkpoint.timeline, |on| on.max(checkpoint.timeline)),
        end: Some(control.checkpoint.max(control.min_recovery_point)),
        history: Vec::new(),
    }
}
