//! Finds the snapshots of a set whose manifest can't be read: only their own marks tell which they are.
//!
//! What could go wrong: `zfs send -p` copies name, marks and GUID, so a copy that somebody made looks like the set's
//! own snapshot. A received copy can be recognized (`zfs get` names the source of each property). A pool that was
//! split or copied as a whole can't. So a snapshot only counts as the set's on a pool that this cluster is on or has
//! sets on, and only if there aren't two of it.

use std::collections::{BTreeMap, BTreeSet};

use super::manifest::Manifest;
use crate::context::{Context, lockstep};
use crate::error::Result;
use crate::names::SetId;
use crate::process::quote;
use crate::survey;
use crate::volume::zfs::{Away, Marked, SnapshotName};

/// Returns what to do about a set whose manifest can't be read, in a repository or on this host.
#[must_use]
pub fn ways_out(set: &str, repository: Option<&str>) -> String {
    let lockstep = lockstep();
    // To an older version, a good set looks like a damaged one.
    const NEWER: &str = "where a newer lockstep wrote it, use that version: the set is good";
    match repository {
        Some(name) => {
            format!("{NEWER}; else `{lockstep} prune --repository {name} --set {set}` gives it up")
        }
        None => format!(
            "{NEWER}; else `{lockstep} adopt {set}` writes its manifest again, from a repository that has the set; `{lockstep} prune --local --set {set}` gives it up"
        ),
    }
}

/// What was found of a set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unread {
    set: SetId,
    /// Its snapshots.
    pub own: Vec<Marked>,
    /// Received copies, which are somebody's.
    pub copies: Vec<SnapshotName>,
    /// Snapshots that may be its own or copies.
    pub unclear: Vec<SnapshotName>,
    /// Pools that can't be searched, and may have some of its snapshots.
    pub away: BTreeMap<String, Away>,
}

/// Looks for the snapshots of a set in all imported pools; `others` are the readable sets of the cluster.
///
/// # Errors
/// When ZFS fails.
pub fn find(cx: &Context, set: &SetId, others: &[Manifest]) -> Result<Unread> {
    let of_others = others.iter().flat_map(|other| &other.volumes);
    let mut pools: BTreeSet<_> = of_others.map(|volume| volume.pool.clone()).collect();
    pools.extend(cx.state.datasets_named(set).iter().map(|dataset| dataset.pool().to_owned()));
    match survey::layout(cx, None) {
        Ok(layout) => pools.extend(layout.pools().into_iter().map(str::to_owned)),
        // The cluster may be gone, or its pool not available.
        Err(error) => tracing::debug!(error = %error.chain(), "where the cluster is isn't known"),
    }
    let away = cx.zfs.all_away(pools.iter().map(String::as_str))?;
    let found = cx.zfs.marked_snapshots(set.as_str(), cx.state.owner())?;
    Ok(sort(set, found, &pools, away))
}

/// Tells which are the set's own. A pure function.
fn sort(
    set: &SetId,
    found: Vec<Marked>,
    pools: &BTreeSet<String>,
    away: BTreeMap<String, Away>,
) -> Unread {
    let (set, unclear) = (set.clone(), Vec::new());
    let (own, copies): (Vec<_>, Vec<_>) = found.into_iter().partition(|one| one.is_local);
    let copies = copies.into_iter().map(|one| one.snapshot).collect();
    let mut all = Unread { set, own: Vec::new(), copies, unclear, away };
    for one in &own {
        let alike = own.iter().filter(|other| other.facts.guid == one.facts.guid).count();
        match alike == 1 && pools.contains(one.snapshot.dataset.pool()) {
            true => all.own.push(one.clone()),
            false => all.unclear.push(one.snapshot.clone()),
        }
    }
    all
}

impl Unread {
    /// Returns what stays, or may stay, when the set is removed.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let (set, lockstep) = (&self.set, lockstep());
        let mut problems = Vec::new();
        if self.own.is_empty() && self.unclear.is_empty() {
            problems.push(format!(
                "no snapshot of set {set} was found on the pools that are imported, and its manifest doesn't say where they are: `{lockstep} check` names those that turn up"
            ));
        }
        problems.extend(self.away.iter().map(|(pool, why)| {
            format!(
                "pool \"{pool}\" {}, and keeps what it has of set {set}: `{}` before the set is removed, or `{lockstep} check` afterwards names the snapshots",
                why.state(),
                why.command(pool)
            )
        }));
        problems.extend(self.unclear.iter().map(|snapshot| {
            let name = snapshot.to_string();
            let name = quote(&name);
            format!(
                "\"{snapshot}\" stays: it has the marks of set {set}, and may be somebody's copy. If nobody needs it: `zfs release lockstep {name}`, `zfs destroy {name}`"
            )
        }));
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::zfs::{DatasetName, Guid, SnapshotFacts};

    const ID: &str = "20261121T000000Z-aaaa";

    fn marked(dataset: &str, guid: u64, is_local: bool) -> Marked {
        let set: SetId = ID.parse().unwrap();
        let snapshot = DatasetName::new(dataset).unwrap().snapshot(&set.snapshot_name());
        let facts = SnapshotFacts { guid: Guid::new(guid), createtxg: 7, creation: 0 };
        Marked { snapshot, facts, is_local }
    }

    fn sorted(found: Vec<Marked>, away: &[&str]) -> [Vec<String>; 4] {
        let away = away.iter().map(|pool| ((*pool).to_owned(), Away::NotImported)).collect();
        let pools = ["tank", "fast"].map(str::to_owned).into();
        let all = sort(&ID.parse().unwrap(), found, &pools, away);
        let own: Vec<_> = all.own.iter().map(|one| one.snapshot.clone()).collect();
        let datasets = |of: &[SnapshotName]| of.iter().map(|one| one.dataset.to_string()).collect();
        [datasets(&own), datasets(&all.copies), datasets(&all.unclear), all.problems()]
    }

    #[test]
    fn a_copy_is_never_taken_for_the_set_s_own() {
        let [own, copies, unclear, problems] = sorted(
            vec![
                marked("tank/data", 1, true),
                marked("fast/wal", 2, true),
                marked("tank/received", 1, false),
                marked("usb/received", 2, false),
            ],
            &[],
        );
        assert_eq!(
            (own, copies),
            (
                vec!["tank/data".into(), "fast/wal".into()],
                vec!["tank/received".to_owned(), "usb/received".into()]
            )
        );
        assert!(unclear.is_empty() && problems.is_empty(), "{unclear:?} {problems:?}");
        // Two that can't be told apart, and one on a pool that nothing of this cluster is known to be on.
        let found = vec![
            marked("tank/data", 1, true),
            marked("fast/data", 1, true),
            marked("usb/wal", 2, true),
            marked("tank/ts", 3, true),
        ];
        let [own, _, unclear, problems] = sorted(found, &[]);
        assert_eq!(own, ["tank/ts"]);
        assert_eq!(unclear, ["tank/data", "fast/data", "usb/wal"]);
        assert_eq!(problems.len(), 3, "{problems:?}");
    }

    #[test]
    fn who_has_an_older_version_is_not_told_to_give_up_a_good_set() {
        for repository in [None, Some("far")] {
            let said = ways_out(ID, repository);
            let (newer, gives_up) = (said.find("newer lockstep"), said.find("prune --"));
            assert!(newer.is_some() && newer < gives_up, "{said}");
        }
    }

    #[test]
    fn what_is_not_found_is_said() {
        let [_, _, _, problems] = sorted(vec![], &[]);
        assert!(problems[0].contains("no snapshot of set"), "{problems:?}");
        let [own, _, _, problems] = sorted(vec![marked("tank/data", 1, true)], &["fast"]);
        assert_eq!(own, ["tank/data"]);
        assert!(problems.len() == 1 && problems[0].contains("\"fast\" isn't imported"));
        // If there is only a copy, that is as good as nothing.
        let [_, _, _, problems] = sorted(vec![marked("tank/copy", 1, false)], &[]);
        assert_eq!(problems.len(), 1, "{problems:?}");
    }
}
