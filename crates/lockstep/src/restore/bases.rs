//! What an existing dataset is rolled back to: its newest snapshot, which has to be in the chain of the set's deltas.

use std::collections::{BTreeMap, BTreeSet};

use strata::delta::Descriptor;

use super::marker::Marker;
use super::may_be_finished;
use super::placement::Placement;
use super::source::FromRepository;
use crate::context::{Context, lockstep_of};
use crate::error::Result;
use crate::names::SetId;
use crate::process::quote;
use crate::refusal::Refusal;
use crate::repository::image::ImageState;
use crate::repository::{ShippedVolume, of_strata};
use crate::volume::zfs::{Base, DatasetName, HOLD_TAG};

impl FromRepository {
    /// Returns what each of the existing datasets is rolled back to. All are checked before the first is changed: if
    /// one can't be brought to the set's state, an older restore stays whole.
    pub(super) fn bases(
        &self,
        cx: &Context,
        placement: &Placement,
        there: &BTreeSet<DatasetName>,
    ) -> Result<BTreeMap<DatasetName, Base>> {
        let mut bases = BTreeMap::new();
        for placed in &placement.volumes {
            let (Some(dataset), Some(shipped)) = (&placed.dataset, self.shipped_volume(placed))
            else {
                continue;
            };
            if there.contains(dataset) {
                let removal = || removal(cx, placement, there);
                bases.insert(dataset.clone(), self.common(cx, dataset, shipped, removal)?);
            }
        }
        Ok(bases)
    }

    /// Returns the newest snapshot of the dataset, which has to be one of the set's chain.
    fn common(
        &self,
        cx: &Context,
        dataset: &DatasetName,
        shipped: &ShippedVolume,
        removal: impl FnOnce() -> Option<String>,
    ) -> Result<Base> {
        let (mut snapshots, bookmarks): (Vec<_>, Vec<_>) =
            cx.zfs.bases_of(dataset)?.into_iter().partition(|base| base.name.contains('@'));
        snapshots.sort_by_key(|base| base.createtxg);
        let chain = self.chain(shipped)?;
        let known = |base: &&Base| chain.contains(&base.guid.to_string());
        if let Some(base) = snapshots.last().filter(known) {
            return match newer(&bookmarks, base) {
                None => Ok(base.clone()),
                Some(bookmark) => Err(Refusal::NewerBookmark {
                    bookmark: bookmark.name.clone(),
                    snapshot: base.name.clone(),
                }
                .into()),
            };
        }
        let newest: Option<Box<str>> = snapshots.last().map(|base| base.name.as_str().into());
        // The newest first: everything that is newer than what the repository knows is in the way.
        let above = snapshots.iter().rev().take_while(|base| !known(base));
        let above: Vec<&str> = above.map(|base| base.name.as_str()).collect();
        let of_set = of_set(cx, dataset, &above)?;
        let began = self.beginning(shipped)?.filter(|began| {
            newest.as_deref().is_some_and(|newest| is_of_an_older_set(newest, began))
        });
        Err(Refusal::NotOnTop {
            dataset: dataset.to_string().into(),
            set: self.shipped.manifest.set.to_string().into(),
            newest,
            known: snapshots.iter().rev().find(known).map(|base| base.name.as_str().into()),
            of_set: of_set.map(Into::into),
            began,
            is_raw: shipped.raw.is_some(),
            removal: removal().map(Into::into),
        }
        .into())
    }

    /// Returns the name, without its dataset, of the snapshot that was sent in full.
    fn beginning(&self, shipped: &ShippedVolume) -> Result<Option<String>> {
        if let Some(chain) = &shipped.raw {
            return Ok(chain.first().map(|link| link.snapshot.clone()));
        }
        let Some(full) = self.deltas(shipped, None)?.into_iter().next() else { return Ok(None) };
        let sent = ImageState::of(&full)?.begin.to_name;
        Ok(sent.split_once('@').map(|(_, own)| own.to_owned()))
    }

    /// Returns the GUIDs of the snapshots in the chain of the set's volume, as far as the repository has them.
    pub(super) fn chain(&self, shipped: &ShippedVolume) -> Result<Vec<String>> {
        if let Some(chain) = &shipped.raw {
            return Ok(chain.iter().map(|link| link.guid.clone()).collect());
        }
        Ok(self.deltas(shipped, None)?.into_iter().map(|delta| delta.id).collect())
    }

    /// Returns the deltas that make up the volume, oldest first; with `since`, only those after that snapshot.
    pub(super) fn deltas(
        &self,
        shipped: &ShippedVolume,
        since: Option<&str>,
    ) -> Result<Vec<Descriptor>> {
        let strata = &self.repository.strata;
        strata::delta::chain(strata, &shipped.image, &shipped.delta, since).map_err(of_strata)
    }
}

/// Returns whose set the first of these snapshots is a part of and how that set is given up, if somebody took it in
/// one: such a snapshot is held, and the set is lost without it. The same command gives up the others of its cluster.
fn of_set(cx: &Context, dataset: &DatasetName, snapshots: &[&str]) -> Result<Option<String>> {
    let Some(newest) = snapshots.first() else { return Ok(None) };
    let tagged = cx.zfs.tagged_snapshots(dataset)?;
    let tags = |snapshot: &&str| {
        let tagged = tagged.iter().find(|one| one.snapshot.to_string() == *snapshot)?;
        Some((tagged.set.parse::<SetId>().ok()?, &tagged.owner))
    };
    let Some((set, owner)) = tags(newest) else { return Ok(None) };
    if owner != cx.state.owner() {
        return Ok(Some(of_a_stranger(&set, owner, newest)));
    }
    let cluster = cx.state.cluster_with(&set);
    let is_configured = cluster.as_ref().is_some_and(|cluster| cx.clusters.contains_key(cluster));
    let ours = snapshots.iter().filter_map(tags).filter(|(_, owner)| *owner == cx.state.owner());
    let sets = ours.map(|(set, _)| set).filter(|set| cx.state.cluster_with(set) == cluster);
    Ok(Some(of_ours(&sets.collect::<Vec<_>>(), cluster.as_deref(), is_configured, newest)))
}

/// `sets`: the snapshot's, and others that are in the way.
fn of_ours(sets: &[SetId], cluster: Option<&str>, is_configured: bool, snapshot: &str) -> String {
    let Some(set) = sets.first() else { return String::new() };
    match cluster {
        Some(cluster) => {
            let before = match is_configured {
                true => "",
                false => "put it back into the configuration, and ",
            };
            let which = match sets.len() {
                1 => "that set".to_owned(),
                number => format!("that set and the {} before it", number - 1),
            };
            let all: String = sets.iter().map(|set| format!(" --set {set}")).collect();
            format!(
                "it is a part of set {set} of cluster \"{cluster}\": if nobody needs {which} here, {before}`{} prune --local{all}`",
                lockstep_of(cluster)
            )
        }
        None => format!(
            "it is a part of set {set}, which this state_dir took and has no manifest of any more: if nobody needs it, {}",
            release(snapshot)
        ),
    }
}

fn of_a_stranger(set: &SetId, owner: &str, snapshot: &str) -> String {
    format!(
        "it is a part of set {set} of another state_dir, {owner}: if nobody needs that set, `prune --local --set {set}` there gives it up; if that state_dir is lost, {}",
        release(snapshot)
    )
}

/// Returns the commands that destroy a set's snapshot without its state_dir.
fn release(snapshot: &str) -> String {
    let snapshot = quote(snapshot);
    format!("`zfs release {HOLD_TAG} {snapshot}; zfs destroy {snapshot}`")
}

/// Returns the commands that remove what is there, if it is an unfinished restore and nothing else is below it. If that
/// can't be told, there are none.
fn removal(cx: &Context, placement: &Placement, there: &BTreeSet<DatasetName>) -> Option<String> {
    let directory = &placement.directory;
    let is_alone = |dataset: &DatasetName| {
        let below = cx.zfs.descendants(dataset);
        below.is_ok_and(|all| all.iter().all(|it| there.contains(it)))
    };
    if may_be_finished(cx, placement, there).unwrap_or(true)
        || Marker::of_older(directory).is_none()
        || !there.iter().all(is_alone)
    {
        return None;
    }
    let datasets = there.iter().map(|name| format!("zfs destroy -r {}", quote(name.as_str())));
    let folder = format!("rm -r {}", quote(&directory.display().to_string()));
    Some(datasets.chain([folder]).collect::<Vec<_>>().join("; "))
}

/// Whether both are snapshots of sets, whose names begin with their time, and `newest` is from an older set than
/// `began`.
fn is_of_an_older_set(newest: &str, began: &str) -> bool {
    let own = newest.split_once('@').map_or("", |(_, own)| own);
    let are_of_sets = [own, began].iter().all(|name| name.starts_with("lockstep-"));
    are_of_sets && own < began
}

/// Returns a bookmark that is newer than this snapshot: ZFS doesn't roll back past one.
fn newer<'a>(bookmarks: &'a [Base], snapshot: &Base) -> Option<&'a Base> {
    bookmarks.iter().find(|bookmark| bookmark.createtxg > snapshot.createtxg)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_that_began_anew_is_told_from_a_step_back() {
        let began = "lockstep-20261124T194512Z-k3fa";
        for (newest, is_older) in [
            ("p/r@lockstep-20261123T194512Z-zzzz", true),
            ("p/r@lockstep-20261125T194512Z-aaaa", false),
            ("p/r@mine", false),
        ] {
            assert_eq!(is_of_an_older_set(newest, began), is_older, "{newest}");
        }
        assert!(!is_of_an_older_set("p/r@lockstep-20261123T194512Z-zzzz", "somebody's"));
    }

    #[test]
    fn a_set_s_snapshot_is_given_up_by_the_cluster_that_took_it() {
        let set: SetId = "20261128T061215Z-akfs".parse().unwrap();
        let older: SetId = "20261127T061215Z-akfs".parse().unwrap();
        let own = std::slice::from_ref(&set);
        let snapshot = "t/sb/data@lockstep-20261128T061215Z-akfs";
        let by_prune = "`lockstep --cluster sb prune --local --set 20261128T061215Z-akfs`";
        let by_hand = format!("`zfs release lockstep {snapshot}; zfs destroy {snapshot}`");
        let hint = of_ours(own, Some("sb"), true, snapshot);
        assert!(hint.ends_with(&format!("needs that set here, {by_prune}")), "{hint}");
        let hint = of_ours(own, Some("sb"), false, snapshot);
        assert!(hint.ends_with(&format!("into the configuration, and {by_prune}")), "{hint}");
        let hint = of_ours(&[set.clone(), older], Some("sb"), true, snapshot);
        let both = "akfs --set 20261127T061215Z-akfs`";
        assert!(hint.contains("that set and the 1 before it") && hint.ends_with(both), "{hint}");
        let hint = of_ours(own, None, false, snapshot);
        assert!(hint.contains("no manifest") && hint.ends_with(&by_hand), "{hint}");
        let hint = of_a_stranger(&set, "f00d", snapshot);
        assert!(hint.contains("another state_dir, f00d:") && hint.ends_with(&by_hand), "{hint}");
    }

    #[test]
    fn a_bookmark_of_a_later_snapshot_is_in_the_way() {
        let base = |name: &str, createtxg| Base { name: name.into(), guid: createtxg, createtxg };
        let snapshot = base("t/d@b", 20);
        let own = [base("t/d#a", 10), base("t/d#b", 20)];
        assert_eq!(newer(&own, &snapshot), None);
        let foreign = base("t/d#foreign", 21);
        assert_eq!(newer(&[own[0].clone(), foreign.clone()], &snapshot), Some(&foreign));
    }
}
