//! A set in a repository: what its manifest there says in addition to the deltas that it names.

use pgfiles::lsn::SystemIdentifier;
use serde::{Deserialize, Serialize};
use strata::delta::Descriptor;
use strata::manifest::{DeltaId, Manifest as Stored};
use strata::read_many;

use super::raw::{Link, Segment};
use super::{Repository, kin, newer_form, of_store, of_strata};
use crate::context::{Context, lockstep};
use crate::error::{Error, Result};
use crate::names::{self, Meant};
use crate::retention;
use crate::set::branches::Branches;
use crate::set::manifest::{Manifest, json};
use crate::set::names_within;
use crate::steps;
use crate::volume::zfs::{DatasetName, Guid, SnapshotName};
use crate::words;

/// The newest known form.
const VERSION: u32 = 1;

/// How many manifests are read before checking whether the right one is among them.
const LOOKED_AT: usize = 16;

/// The image that holds the files that belong to manifests; its deltas are named by sets. No dataset has an `@` in
/// its name.
pub const FILES_IMAGE: &str = "@files";

/// A set in a repository.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shipped {
    /// 1.
    pub version: u32,
    /// The set's manifest as it is on the host that took it, except that all of its WAL is in files. If the WAL is in
    /// a volume that is stored raw, it stays there.
    pub manifest: Manifest,
    /// When it was shipped, by the host's clock.
    pub shipped_at: jiff::Timestamp,
    /// The volumes that were stored. A volume with pg_wal alone isn't.
    pub volumes: Vec<ShippedVolume>,
    /// System identifiers that the cluster had before this set's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub formerly: Vec<SystemIdentifier>,
}

/// A stored volume.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShippedVolume {
    /// The dataset; it is in the manifest as well.
    pub dataset: DatasetName,
    /// Its image.
    pub image: String,
    /// Its delta: the snapshot's GUID, as text.
    pub delta: String,
    /// The delta that this one changes; none if this one holds the whole volume.
    pub base: Option<String>,
    /// The length of the stream from `zfs send`, in bytes.
    pub stream_bytes: u64,
    /// What was stored in packs, in bytes.
    pub stored_bytes: u64,
    /// Files whose content isn't stored, by reason, with their number and total size.
    pub left_out: Vec<LeftOut>,
    /// Pages that were read, and how many of them are wrong.
    pub pages: Pages,
    /// The segments, a full stream first, if the encrypted dataset is stored as it was sent. All of them are needed,
    /// and `image` is theirs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub raw: Option<Vec<Link>>,
}

impl ShippedVolume {
    /// Creates a volume that is stored raw.
    #[must_use]
    pub fn raw(
        dataset: DatasetName,
        descriptor: Descriptor,
        segment: Segment,
        stored: u64,
    ) -> Self {
        Self {
            dataset,
            image: descriptor.image,
            delta: descriptor.id,
            base: segment.base().map(|base| base.guid.clone()),
            stream_bytes: segment.stream_bytes,
            stored_bytes: stored,
            left_out: Vec::new(),
            pages: Pages { not_checked: Some("raw".into()), ..Pages::default() },
            raw: Some(segment.chain),
        }
    }

    /// Returns the deltas that it names; those that they are based on are needed too.
    fn deltas(&self) -> impl Iterator<Item = DeltaId> {
        let guids: Vec<_> = match &self.raw {
            None => vec![&self.delta],
            Some(chain) => chain.iter().map(|link| &link.guid).collect(),
        };
        guids.into_iter().map(|id| DeltaId { image: self.image.clone(), id: id.clone() })
    }
}

/// Files whose content isn't stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeftOut {
    /// Why PostgreSQL doesn't need it.
    pub why: String,
    /// How many files.
    pub files: u64,
    /// Their sizes.
    pub bytes: u64,
}

/// The result of the page checksums.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pages {
    /// Pages whose checksum was computed.
    pub checked: u64,
    /// Pages whose checksum is wrong.
    pub bad: u64,
    /// The first of them: path in the volume and block number.
    pub bad_pages: Vec<(String, u32)>,
    /// Pages whose checksum is wrong too, but which recovery rewrites from the set's WAL.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub replayed: u64,
    /// Why no page was checked, if none could be: `raw`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_checked: Option<String>,
}

/// For serde: a count of zero isn't written, as before it was counted.
fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// A set whose manifest can't be read, and why.
pub type Damaged = (String, Error);

impl Repository {
    /// Reads a set's manifest.
    ///
    /// # Errors
    /// When it isn't there, is damaged, or of a newer form.
    pub fn read(&self, set: &str) -> Result<Shipped> {
        self.shipped(set, Stored::read(&self.strata, set).map_err(of_strata)?)
    }

    pub(super) fn shipped(&self, set: &str, stored: Stored) -> Result<Shipped> {
        let shipped: Shipped = serde_json::from_value(stored.about).map_err(|e| {
            Error::failed(format!("set {set} in repository \"{}\" is strange", self.name))
                .because(e)
        })?;
        if shipped.version > VERSION {
            let what = format!("set {set} in repository \"{}\"", self.name);
            return Err(newer_form(&what, shipped.version, VERSION));
        }
        // In `clusters/NAME/`, a manifest of another cluster was put there by somebody.
        let cluster = self.cluster();
        shipped.check(set, &cluster).map_err(|why| {
            Error::failed(format!(
                "the manifest of set {set} in repository \"{}\" isn't one of Lockstep's: {why}",
                self.name
            ))
            .with_hint(whose(shipped.manifest.cluster.as_str(), &cluster))
        })?;
        Ok(shipped)
    }

    /// Reads a set's manifest, if the set is there.
    ///
    /// # Errors
    /// When it is damaged, of a newer form, or the store fails.
    pub fn read_if_there(&self, set: &str) -> Result<Option<Shipped>> {
        match Stored::read(&self.strata, set) {
            Err(error) if error.is_not_found() => Ok(None),
            stored => self.shipped(set, stored.map_err(of_strata)?).map(Some),
        }
    }

    /// Returns all sets, oldest first, and those that can't be read. A set that is removed meanwhile is in neither.
    ///
    /// # Errors
    /// When the store can't be listed.
    pub fn sets(&self) -> Result<(Vec<Shipped>, Vec<Damaged>)> {
        let (mut good, mut bad) = (Vec::new(), Vec::new());
        let ids = self.ids()?;
        read_many(
            &ids,
            |id| self.read_if_there(id),
            |id, shipped| {
                match shipped {
                    Ok(shipped) => good.extend(shipped),
                    Err(error) => bad.push((id.clone(), error)),
                }
                steps::reached("repository.set")
            },
        )?;
        Ok((good, bad))
    }

    /// Returns the ids of all sets, oldest first.
    ///
    /// # Errors
    /// When the store can't be listed.
    pub fn ids(&self) -> Result<Vec<String>> {
        Stored::list(&self.strata).map_err(of_strata)
    }

    /// Returns the newest set, if there is one. A set dated in the future counts only if all are.
    ///
    /// # Errors
    /// When the store fails or its manifest can't be read.
    pub fn newest(&self) -> Result<Option<Shipped>> {
        let ids = self.ids()?;
        let newest = retention::newest(&ids, |id| id, jiff::Timestamp::now());
        newest.map(|id| self.read(id)).transpose()
    }

    /// Passes the sets whose id is `wanted` to `choose`, some at a time, newest first, until it accepts one. Those
    /// that can't be read are passed to `passed_over`, as far as they were looked at.
    ///
    /// # Errors
    /// When the store can't be listed, the command was interrupted, or `choose` fails.
    pub fn choose(
        &self,
        wanted: impl Fn(&str) -> bool,
        mut choose: impl FnMut(Vec<Shipped>) -> Result<Option<Shipped>>,
        passed_over: impl Fn(&str, &Error),
    ) -> Result<Option<Shipped>> {
        let mut ids = self.ids()?;
        ids.retain(|id| wanted(id));
        // The right one is near the end, if it exists at all.
        for part in ids.rchunks(LOOKED_AT) {
            let mut sets = Vec::new();
            read_many(
                part,
                |id| self.read_if_there(id),
                |id, shipped| {
                    match shipped {
                        Ok(shipped) => sets.extend(shipped),
                        Err(error) => passed_over(id, &error),
                    }
                    steps::reached("repository.set")
                },
            )?;
            sets.reverse();
            if let Some(chosen) = choose(sets)? {
                return Ok(Some(chosen));
            }
        }
        Ok(None)
    }

    /// Returns the cluster whose part this is, by its folder: `clusters/NAME/`.
    fn cluster(&self) -> String {
        let folder = self.strata.path("");
        folder.trim_end_matches('/').rsplit('/').next().unwrap_or_default().to_owned()
    }

    /// Returns the clusters that have a folder in the repository, including this one if it has.
    ///
    /// # Errors
    /// When the store can't be listed.
    pub fn clusters(&self) -> Result<Vec<String>> {
        self.strata.store().folders("clusters").map_err(of_store)
    }

    /// What to look at when there is no set: a mistyped name looks like a cluster that was never shipped.
    #[must_use]
    pub fn empty_hint(&self) -> Option<String> {
        let (mut others, own) = (self.clusters().unwrap_or_default(), self.cluster());
        others.retain(|name| *name != own);
        (!others.is_empty()).then(|| {
            format!("clusters that are in it: {}; is this one called so?", words::a_few(&others))
        })
    }

    /// Returns the newest set of this host's cluster, or with `branches` the newest that isn't left behind. A newer
    /// set that can't be read isn't skipped, because it may be the one. With `branches`, neither is an older one,
    /// because it may tell which one it is. It warns of those that are passed over because they are dated in the
    /// future: on a host whose clock is behind, these may be all that matter.
    ///
    /// # Errors
    /// [`Error::Usage`] when there is none, or it isn't clear whose is meant; when the store fails, or there is such
    /// an unreadable set.
    pub fn newest_of(&self, cx: &Context, branches: Option<&Branches>) -> Result<Shipped> {
        let newest = self.find_newest_of(cx, branches)?;
        let (ids, chosen) = (self.ids()?, newest.manifest.set.as_str());
        let place = format!("--repository {}", self.name);
        if let Some(said) = retention::passed_over(&ids, chosen, &place, jiff::Timestamp::now()) {
            tracing::warn!("{said}");
        }
        Ok(newest)
    }

    fn find_newest_of(&self, cx: &Context, branches: Option<&Branches>) -> Result<Shipped> {
        let identity = kin::Identity::here(cx)?;
        if let Some(newest) = self.newest_if_of(&identity)
            && branches.is_none_or(|branches| {
                branches.untold().next().is_none()
                    && branches.left_behind(&newest.manifest).is_none()
            })
        {
            return Ok(newest);
        }
        let now = jiff::Timestamp::now();
        let (sets, damaged) = self.sets()?;
        let kin = kin::meant(&identity, &sets, &self.name)?;
        let ours: Vec<_> = sets.into_iter().filter(|set| kin.has(set)).collect();
        let found = match branches {
            Some(branches) => {
                let sets = retention::newest_first(ours, |set| set.manifest.set.as_str(), now);
                let (newest, passed_over) = branches.newest(sets, |set| &set.manifest);
                if let Some(said) = passed_over.said() {
                    tracing::warn!("{said}");
                }
                newest
            }
            None => retention::newest(ours, |set| set.manifest.set.as_str(), now),
        };
        let newest = found.as_ref().map(|set| set.manifest.set.as_str());
        if let Some(error) = retention::newest_damaged(damaged, newest, String::as_str, now) {
            return Err(error);
        }
        if let (Some(newest), Some(branches)) = (newest, branches) {
            branches.assert_told(newest, Some(&self.name))?;
        }
        found.ok_or_else(|| {
            let hint = self.empty_hint();
            let ship = || format!("ship one with `{} backup`", lockstep());
            self.none("latest", &hint.unwrap_or_else(ship))
        })
    }

    fn none(&self, which: &str, hint: &str) -> Error {
        let what = format!("repository \"{}\" has no set \"{which}\"", self.name);
        Error::usage(what, hint)
    }

    /// Returns the set that a user means: an id, an id's unique beginning, or `latest`, the newest set of this host's
    /// cluster that the cluster hasn't left behind.
    ///
    /// # Errors
    /// [`Error::Usage`] when there is none, or it isn't clear whose is meant.
    pub fn find(&self, cx: &Context, which: &str) -> Result<Shipped> {
        if which == "latest" {
            let branches = self.branches(cx)?;
            let newest = self.newest_of(cx, Some(&branches))?;
            if let Some(doubt) = branches.doubt(&newest.manifest) {
                tracing::warn!(set = %newest.manifest.set, "{doubt}");
            }
            if retention::is_ahead(newest.manifest.set.as_str(), jiff::Timestamp::now()) {
                tracing::warn!(set = %newest.manifest.set, "the newest set is dated later than now: its host's clock was wrong, or this one's is");
            }
            return Ok(newest);
        }
        let none = |hint: &str| self.none(which, hint);
        let ids = self.ids()?;
        match names::meant(which, ids.iter().map(String::as_str)) {
            Meant::One(id) => self.read(&id),
            Meant::Nothing => {
                let hint = if ids.is_empty() { self.empty_hint() } else { None };
                let list = || format!("`{} list --from repository:{}`", lockstep(), self.name);
                Err(none(&hint.unwrap_or_else(list)))
            }
            Meant::Several(all) => Err(Error::usage(
                format!("several sets of repository \"{}\" begin with \"{which}\"", self.name),
                format!("write more of it: {}", words::a_few(&all)),
            )),
        }
    }

    /// Writes a set's manifest: from here on the set is in the repository.
    ///
    /// # Errors
    /// When the store fails or has it already.
    pub fn publish(&self, shipped: &Shipped) -> Result<()> {
        let id = shipped.manifest.set.as_str();
        let deltas = shipped.deltas().collect();
        let about = serde_json::to_value(shipped).map_err(json("write the manifest"))?;
        let created = u64::try_from(shipped.manifest.finished_at.as_second()).unwrap_or(0);
        Stored::new(id, created, deltas, about).write(&self.strata).map_err(of_strata)
    }

    /// Deletes the manifest of a set if it is still this one.
    ///
    /// # Errors
    /// When the store fails, or what is there can't be read.
    pub(crate) fn withdraw(&self, shipped: &Shipped) -> Result<()> {
        let id = shipped.manifest.set.as_str();
        if self.read_if_there(id)?.as_ref() == Some(shipped) {
            Stored::delete(&self.strata, id).map_err(of_strata)?;
        }
        Ok(())
    }
}

/// Explains how a manifest of the cluster `of` may have come into the folder of `cluster`.
fn whose(of: &str, cluster: &str) -> String {
    const ANOTHER: &str = "somebody else may have written it: look at who can write to the repository, and restore another set";
    match of == cluster {
        true => ANOTHER.to_owned(),
        false => format!(
            "was the cluster renamed, and its folder in the repository with it? Then call both \"{of}\" again. Else {ANOTHER}"
        ),
    }
}

impl Shipped {
    /// Creates one in the current form.
    #[must_use]
    pub fn new(manifest: Manifest, volumes: Vec<ShippedVolume>) -> Self {
        Self {
            version: VERSION,
            manifest,
            shipped_at: jiff::Timestamp::now(),
            volumes,
            formerly: Vec::new(),
        }
    }

    /// Checks that everything it names is what and where it should be.
    fn check(&self, set: &str, cluster: &str) -> Result<(), String> {
        let (of, says) = (&self.manifest.cluster, &self.manifest.set);
        if says.as_str() != set || of.as_str() != cluster {
            return Err(format!("it is that of set {says} of cluster \"{of}\""));
        }
        names_within::check(&self.manifest)?;
        let raw = || self.volumes.iter().filter_map(|volume| volume.raw.as_deref()).flatten();
        let deltas = self.volumes.iter().map(|volume| &volume.delta);
        deltas
            .chain(raw().map(|link| &link.guid))
            .try_for_each(|id| id.parse::<Guid>().map(drop))?;
        raw().try_for_each(|link| SnapshotName::check(&link.snapshot))
    }

    /// Returns the deltas that it names; those that they are based on are needed too.
    pub(crate) fn deltas(&self) -> impl Iterator<Item = DeltaId> {
        let files = DeltaId { image: FILES_IMAGE.into(), id: self.manifest.set.to_string() };
        self.volumes.iter().flat_map(ShippedVolume::deltas).chain([files])
    }

    /// Returns the number of wrong pages in all volumes.
    #[must_use]
    pub fn bad_pages(&self) -> u64 {
        self.volumes.iter().map(|volume| volume.pages.bad).sum()
    }

    /// Returns the volumes that nobody can look into.
    pub fn raw(&self) -> impl Iterator<Item = &ShippedVolume> {
        self.volumes.iter().filter(|volume| volume.raw.is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::set::manifest::tests::manifest;

    #[test]
    fn a_later_form_says_what_to_use() {
        let error = newer_form("set a", 2, VERSION);
        assert_eq!(error.to_string(), "set a has form 2, this lockstep knows 1");
        assert!(error.hint().is_some_and(|hint| hint.contains("a newer one")));
    }

    #[test]
    fn a_delta_that_is_no_guid_is_refused() {
        let id = "20261123T194512Z-k3fa";
        let stored = |delta: &str| ShippedVolume {
            dataset: DatasetName::new("t/pg").unwrap(),
            image: "t=pg".into(),
            delta: delta.into(),
            base: None,
            stream_bytes: 1,
            stored_bytes: 1,
            left_out: Vec::new(),
            pages: Pages::default(),
            raw: None,
        };
        let check = |volume| {
            let shipped = Shipped::new(manifest(id, Vec::new()), vec![volume]);
            shipped.check(id, shipped.manifest.cluster.as_str())
        };
        assert_eq!(check(stored("17")), Ok(()));
        assert_eq!(check(stored("17a")), Err("\"17a\" is no GUID".into()));
        let link = Link { guid: "x".into(), snapshot: "s".into() };
        let raw = ShippedVolume { raw: Some(vec![link]), ..stored("17") };
        assert_eq!(check(raw), Err("\"x\" is no GUID".into()));
    }

    #[test]
    fn another_set_s_or_cluster_s_manifest_is_refused() {
        let id = "20261123T194512Z-k3fa";
        let shipped = Shipped::new(manifest(id, Vec::new()), Vec::new());
        let cluster = shipped.manifest.cluster.to_string();
        assert_eq!(shipped.check(id, &cluster), Ok(()));
        let error = shipped.check(id, "another").unwrap_err();
        assert!(error.contains(&format!("of cluster \"{cluster}\"")), "{error}");
        assert!(shipped.check("20261123T194513Z-k3fa", &cluster).is_err());
        // A rename is likelier than an attack.
        let hint = whose(&cluster, "another");
        assert!(hint.starts_with("was the cluster renamed") && hint.contains(&cluster), "{hint}");
        assert!(!whose(&cluster, &cluster).contains("renamed"));
    }
}
