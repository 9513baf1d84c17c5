//! Where a restored cluster's volumes come from, and what they become: clones of snapshots, received
//! datasets, plain folders.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use pgfiles::lsn::SystemIdentifier;

use super::as_files::{self, Unsynced, Written};
use super::build::Build;
use super::only::{NotRestored, Only};
use super::owners::Owners;
use super::placement::{PlacedVolume, Placement};
use super::receive::{self, Receiving};
use super::{control, fold, guard, parked, raw, surplus};
use crate::context::{Context, lockstep};
use crate::error::{Error, Result};
use crate::files;
use crate::plan::layout::PartKind;
use crate::process::Credentials;
use crate::progress::Progress;
use crate::refusal::Refusal;
use crate::repository::image::ImageState;
use crate::repository::kin::Kin;
use crate::repository::tree::{Depth, ImageTree};
use crate::repository::{self, Repository, Shipped, ShippedVolume, of_strata};
use crate::set::manifest::{Manifest, SetVolume};
use crate::side_by_side::{Limits, side_by_side};
use crate::steps;
use crate::threads;
use crate::volume::mounts::Mounts;
use crate::volume::zfs::{
    Base, CloneSpec, DatasetName, SnapshotName, Zfs, is_kept, while_received,
};

/// Volumes that are received at the same time, and the deltas that are folded for them: with a fold's fixed memory
/// and 0.8 MiB for each delta this keeps two of them below 256 MiB.
const AT_ONCE: Limits = Limits { items: 2, weight: 220 };

/// The source of a set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// This host's snapshots.
    Snapshots,
    /// A repository: the given one, or the cluster's only one.
    Repository(Option<String>),
}

impl Origin {
    /// Reads `snapshots`, `repository` or `repository:NAME`.
    ///
    /// # Errors
    /// For anything else, says what to write.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "snapshots" => Ok(Self::Snapshots),
            None if text == "repository" => Ok(Self::Repository(None)),
            Some(("repository", name)) if !name.is_empty() => {
                Ok(Self::Repository(Some(name.to_owned())))
            }
            _ => Err("write snapshots, repository or repository:NAME".into()),
        }
    }
}

/// A source that was opened.
pub(super) enum Source {
    /// Snapshots.
    Snapshots,
    /// A repository.
    Repository(Box<FromRepository>),
}

/// A set in a repository, to be restored.
pub(super) struct FromRepository {
    pub(super) repository: Repository,
    pub(super) shipped: Shipped,
    /// The system identifiers of the set's cluster.
    pub(super) kin: Kin,
    /// The dataset below which the volumes are received; `None` if they become folders.
    pub(super) parent: Option<DatasetName>,
    /// The parent doesn't exist yet.
    pub(super) makes_parent: bool,
    /// A temporary folder for the set's own files during the restore.
    pub(super) staging: PathBuf,
    /// What exists is brought to the set's state.
    pub(super) delta: bool,
    /// Which parts of it are restored.
    pub(super) only: Only,
    /// Which parts aren't.
    pub(super) not_restored: NotRestored,
}

impl Source {
    /// Returns the temporary folder for the set's own files.
    pub(super) fn staging(&self) -> Option<PathBuf> {
        match self {
            Self::Snapshots => None,
            Self::Repository(from) => Some(from.staging.clone()),
        }
    }

    /// Returns the dataset above the others, if it is made too.
    pub(super) fn made_parent(&self) -> Option<DatasetName> {
        match self {
            Self::Repository(from) if from.makes_parent => from.parent.clone(),
            _ => None,
        }
    }

    /// Returns the dataset below which the volumes are received.
    pub(super) fn parent(&self) -> Option<&DatasetName> {
        match self {
            Self::Snapshots => None,
            Self::Repository(from) => from.parent.as_ref(),
        }
    }

    /// Whether a system identifier is that of the set's cluster, or one that it had before or has had since:
    /// pg_upgrade gives a cluster a new one.
    pub(super) fn is_cluster(&self, set: &Manifest, identifier: SystemIdentifier) -> bool {
        let is_kin = match self {
            Self::Snapshots => false,
            Self::Repository(from) => from.kin.has_identifier(identifier),
        };
        is_kin || set.postgres.system_identifier == identifier
    }

    /// Returns the system identifiers for which that holds.
    pub(super) fn identifiers(&self, set: &Manifest) -> Vec<SystemIdentifier> {
        let mut all = BTreeSet::from([set.postgres.system_identifier]);
        if let Self::Repository(from) = self {
            all.extend(from.kin.identifiers());
        }
        all.into_iter().collect()
    }

    /// Returns what becomes holes.
    pub(super) fn not_restored(&self) -> NotRestored {
        match self {
            Self::Snapshots => NotRestored::default(),
            Self::Repository(from) => from.not_restored.clone(),
        }
    }

    /// Whether what exists is brought to the set's state.
    pub(super) fn is_delta(&self) -> bool {
        matches!(self, Self::Repository(from) if from.delta)
    }

    /// Returns what the existing datasets are rolled back to.
    pub(super) fn bases(
        &self,
        cx: &Context,
        placement: &Placement,
        there: &BTreeSet<DatasetName>,
    ) -> Result<BTreeMap<DatasetName, Base>> {
        match self {
            Self::Snapshots => Ok(BTreeMap::new()),
            Self::Repository(from) => from.bases(cx, placement, there),
        }
    }

    /// Returns the names that datasets have while they are received.
    pub(super) fn receiving(&self, placement: &Placement, id: &str) -> Vec<DatasetName> {
        let Self::Repository(from) = self else { return Vec::new() };
        let indexes = 0..placement.volumes.len();
        indexes.filter_map(|index| from.receiving(id, index)).collect()
    }

    /// Returns the snapshots that come with the received datasets.
    pub(super) fn received(&self, placement: &Placement, id: &str) -> Vec<String> {
        let Self::Repository(from) = self else { return Vec::new() };
        let names = placement.volumes.iter().enumerate().flat_map(|(index, volume)| {
            let datasets = [volume.dataset.clone(), from.receiving(id, index)];
            let raw = from.shipped_volume(volume).and_then(|shipped| shipped.raw.as_deref());
            let chain = raw.unwrap_or_default().iter().rev().map(|link| &link.snapshot);
            let mut names: Vec<_> = chain.collect();
            if names.is_empty() {
                names.push(&volume.origin.name);
            }
            let snapshots = |dataset: DatasetName| {
                let name = |name: &&String| dataset.snapshot(name).to_string();
                names.iter().map(name).collect::<Vec<_>>()
            };
            datasets.into_iter().flatten().flat_map(snapshots).collect::<Vec<_>>()
        });
        names.collect()
    }

    /// Makes the volumes.
    pub(super) fn make_volumes(
        &self,
        build: &Build,
        owner: Option<Credentials>,
    ) -> Result<Option<Written>> {
        match self {
            Self::Snapshots => make_clones(build).map(|()| None),
            Self::Repository(from) => from.make_volumes(build, owner),
        }
    }

    /// Removes what was only needed during the restore.
    pub(super) fn clean_up(&self) -> Result<()> {
        self.staging().map_or(Ok(()), |path| files::remove_tree(&path))
    }
}

fn marks(build: &Build) -> [(&'static str, String); 2] {
    [("lockstep:restore", build.id.clone()), ("lockstep:owner", build.cx.state.owner().to_owned())]
}

fn make_clones(build: &Build) -> Result<()> {
    for (index, volume) in build.placement.volumes.iter().enumerate() {
        let Some(dataset) = &volume.dataset else { continue };
        let mut properties = marks(build).to_vec();
        let has_data = build.placement.has_data(volume);
        if has_data {
            properties.extend(parked::properties());
        }
        let made = build.cx.zfs.clone_snapshot(&CloneSpec {
            origin: &volume.origin,
            dataset,
            mountpoint: &volume.mountpoint,
            is_written: true,
            // Snapshots of a restored cluster are taken as of any other.
            is_throwaway: build.request.clone.is_some(),
            properties: &properties,
        });
        made.map_err(|error| removed_meanwhile(build, &volume.origin, error))?;
        if has_data {
            parked::mount(&build.cx.zfs, dataset, &build.placement.data)?;
        }
        control::hold(&build.placement.data)?;
        steps::reached(&format!("restore.cloned-{}", index + 1))?;
    }
    Ok(())
}

/// Explains why there is no clone if a prune has removed the set since it was chosen: nothing keeps it until then.
fn removed_meanwhile(build: &Build, origin: &SnapshotName, error: Error) -> Error {
    match build.cx.zfs.find_snapshot(origin) {
        Ok(None) => Error::failed(format!(
            "set {} was removed while it was being restored: snapshot \"{origin}\" is gone",
            build.manifest.set
        ))
        .because(error)
        .with_hint(format!("restore another set: `{} list`", lockstep())),
        _ => error,
    }
}

impl FromRepository {
    /// Returns the GUID that a volume's snapshot gets: its own, or another if a part of it becomes holes, so that no
    /// increment is ever received on top.
    pub(super) fn guid(&self, shipped: &ShippedVolume) -> Result<u64> {
        if !self.only.is_all() {
            return Ok(self.only.mark(&shipped.delta));
        }
        let strange = |_| Error::failed(format!("\"{}\" is no GUID", shipped.delta));
        shipped.delta.parse().map_err(strange)
    }

    /// Returns the volume as the repository has it; `None` for one of pg_wal alone.
    pub(super) fn shipped_volume(&self, volume: &PlacedVolume) -> Option<&ShippedVolume> {
        self.shipped.volumes.iter().find(|shipped| shipped.dataset == volume.origin.dataset)
    }

    fn make_volumes(&self, build: &Build, owner: Option<Credentials>) -> Result<Option<Written>> {
        let set = build.manifest.set.as_str();
        files::remove_tree(&self.staging)?;
        files::create_directories(&self.staging)?;
        files::keep_private(&self.staging)?;
        repository::files::fetch(&self.repository, set, &build.manifest.files, &self.staging)?;
        steps::reached("restore.fetched")?;
        if let Some(parent) = self.parent.as_ref().filter(|_| self.makes_parent) {
            let mut properties = marks(build).to_vec();
            properties.push(("mountpoint", "none".to_owned()));
            build.cx.zfs.create(parent, &properties)?;
            let common = self.common_properties()?;
            let common: Vec<_> =
                common.iter().map(|(name, value)| (name.as_str(), value.clone())).collect();
            // What it rejects is reported for the datasets below it.
            for (name, value, error) in receive::set_as_far_as_taken(&build.cx.zfs, &common, parent)
            {
                tracing::debug!(dataset = %parent, error = %error.chain(), "it takes no {name}={value}");
            }
        }
        if self.parent.is_none() {
            return self.make_folders(build, owner).map(Some);
        }
        raw::announce(self, build)?;
        let (zfs, there) = (&build.cx.zfs, &build.there);
        let fresh = fold::fresh(self, build, there)?;
        guard::not_started(&build.placement)?;
        // Before anything of an older restore is changed, and after everything that may still refuse.
        build.begins_with_older()?;
        build.older.is_held.set(control::hold(&build.placement.data)?);
        let (manifest, lines) = (&build.manifest, &Progress::on_stderr());
        let one = |fresh: fold::Fresh<'_>, should_stop: &dyn Fn() -> bool| {
            fresh.receive(self, manifest, zfs, lines, should_stop)
        };
        let coming: BTreeSet<usize> = fresh.iter().map(|item| item.index).collect();
        let locked = side_by_side(AT_ONCE, fresh, one, |received| {
            let mut locked = Vec::new();
            let mut make = |index: usize| {
                let (placed, volume) =
                    (&build.placement.volumes[index], &build.manifest.volumes[index]);
                let Some(dataset) = &placed.dataset else { return Ok(()) };
                if !self.make_dataset(build, placed, index, volume, owner)? {
                    locked.push(dataset.to_string());
                }
                // Once it is mounted, and again each time that a volume brings it back.
                control::hold(&build.placement.data)?;
                build.has_whole(dataset, self.shipped_volume(placed).is_some())?;
                steps::reached(&format!("restore.received-{}", index + 1))
            };
            surplus::make_room(build)?;
            let volumes = 0..build.placement.volumes.len();
            volumes.filter(|index| !coming.contains(index)).try_for_each(&mut make)?;
            // The small ones get their names and mounts while the largest is received.
            coming.iter().try_for_each(|_| make(received.wait_any()?.0))?;
            Ok(locked)
        })?;
        // All are received first, so that the keys are asked for once.
        if locked.is_empty() {
            return Ok(None);
        }
        // Half a cluster is unusable: its postmaster.pid may even be that of the original, which runs.
        for placed in &build.placement.volumes {
            let Some(dataset) = &placed.dataset else { continue };
            match build.placement.has_data(placed) {
                true => drop(parked::park(zfs, dataset)?),
                false => zfs.unmount(dataset)?,
            }
        }
        Err(Refusal::KeysNotLoaded { datasets: locked }.into())
    }

    /// Restores into plain folders, the data directory's first: its pg_control is removed before anything of an older
    /// restore is changed.
    fn make_folders(&self, build: &Build, owner: Option<Credentials>) -> Result<Written> {
        let mut written = Written::default();
        let has_data = |volume: &SetVolume| volume.parts.iter().any(|p| p.kind == PartKind::Data);
        let mut volumes: Vec<_> =
            build.placement.volumes.iter().zip(&build.manifest.volumes).collect();
        volumes.sort_by_key(|(_, volume)| !has_data(volume));
        std::thread::scope(|scope| {
            // One is synced to disk while the next one is written.
            let mut syncing: Option<Syncing<'_>> = None;
            let mut owners = None;
            for (index, (placed, volume)) in volumes.into_iter().enumerate() {
                match self.shipped_volume(placed) {
                    Some(shipped) => {
                        let tree = self.tree(shipped)?;
                        // The data directory's volume is the first.
                        let data = volume.parts.iter().find(|part| part.kind == PartKind::Data);
                        if let Some(part) = data {
                            owners = Owners::in_set(build, &tree, &part.inside, owner)?;
                        }
                        if !build.older.is_changed.get() {
                            guard::not_started(&build.placement)?;
                        }
                        // Only now: if the names can't be read, the older restore gets its marker back.
                        build.older.is_changed.set(true);
                        build.begins_with_files()?;
                        surplus::make_room(build)?;
                        let (one, unsynced) =
                            self.make_folder(build, placed, volume, &tree, owners)?;
                        written.add(one);
                        let before =
                            syncing.replace(threads::start_in(scope, move || unsynced.sync())?);
                        before.map_or(Ok(()), synced)?;
                    }
                    None => make_wal_folders(placed, volume, owner)?,
                }
                steps::reached(&format!("restore.received-{}", index + 1))?;
            }
            syncing.map_or(Ok(()), synced)
        })?;
        steps::reached("restore.files")?;
        Ok(written)
    }

    /// Makes a volume's dataset, from what was received in parallel if it was. Returns `false` if its key isn't
    /// loaded; then it isn't mounted.
    fn make_dataset(
        &self,
        build: &Build,
        placed: &PlacedVolume,
        index: usize,
        volume: &SetVolume,
        owner: Option<Credentials>,
    ) -> Result<bool> {
        let Some(dataset) = &placed.dataset else { return Ok(true) };
        let zfs = &build.cx.zfs;
        let shipped = self.shipped_volume(placed);
        let receiving =
            shipped.map(|shipped| Receiving { from: self, build, index, placed, dataset, shipped });
        if build.there.contains(dataset) {
            return match receiving {
                Some(receiving) => receiving.catch_up(),
                None => {
                    mount_for_wal(zfs, dataset, &placed.mountpoint)?;
                    make_wal_folders(placed, volume, owner).map(|()| true)
                }
            };
        }
        let mountpoint = zfs.mountpoint_for(dataset, &placed.mountpoint)?;
        let kept = self.properties(shipped)?;
        let mut properties = marks(build).to_vec();
        properties.push(("mountpoint", mountpoint));
        // A parent may be readonly, and its children inherit that by default.
        properties.push(("readonly", "off".to_owned()));
        properties.extend(kept.iter().map(|(name, value)| (name.as_str(), value.clone())));
        if let Some(receiving) = receiving {
            return receiving.create(&properties);
        }
        // The parent's recordsize for tables doesn't suit WAL, which is written in order.
        properties.push(("recordsize", "128K".to_owned()));
        zfs.create(dataset, &properties)?;
        receive::warn_if_made_unsynced(zfs, dataset)?;
        make_wal_folders(placed, volume, owner).map(|()| true)
    }

    /// Returns the name of the `index`th volume's dataset while it is received.
    pub(super) fn receiving(&self, id: &str, index: usize) -> Option<DatasetName> {
        self.parent.as_ref().map(|parent| while_received(parent, id, index))
    }

    /// Returns the properties of the original dataset that its copy gets too.
    fn properties(&self, shipped: Option<&ShippedVolume>) -> Result<BTreeMap<String, String>> {
        let Some(shipped) = shipped else { return Ok(BTreeMap::new()) };
        let mut properties = match &shipped.raw {
            Some(_) => raw::segment(self, shipped)?.properties,
            None => self.state(shipped)?.properties,
        };
        // Whoever can write to a repository without a key could set any other (`sharenfs`, `mountpoint`).
        properties.retain(|name, _| is_kept(name));
        Ok(properties)
    }

    /// Returns the state of a volume that isn't stored raw.
    pub(super) fn state(&self, shipped: &ShippedVolume) -> Result<ImageState> {
        let descriptor =
            strata::delta::read_descriptor(&self.repository.strata, &shipped.image, &shipped.delta);
        ImageState::of(&descriptor.map_err(of_strata)?)
    }

    /// Returns the properties that all volumes have in common: they are set on the dataset above and inherited. Raw
    /// ones bring what they need.
    fn common_properties(&self) -> Result<BTreeMap<String, String>> {
        let plain = self.shipped.volumes.iter().filter(|volume| volume.raw.is_none());
        let mut all = plain.map(|volume| self.properties(Some(volume)));
        let mut common = all.next().transpose()?.unwrap_or_default();
        for other in all {
            let other = other?;
            common.retain(|name, value| other.get(name) == Some(value));
        }
        Ok(common)
    }

    fn tree(&self, shipped: &ShippedVolume) -> Result<ImageTree> {
        let depth = if self.delta { Depth::Runs } else { Depth::Names };
        ImageTree::read(&self.repository, &shipped.image, &shipped.delta, depth)
    }

    fn make_folder(
        &self,
        build: &Build,
        placed: &PlacedVolume,
        volume: &SetVolume,
        tree: &ImageTree,
        owners: Option<Owners>,
    ) -> Result<(Written, Unsynced)> {
        let data = volume.parts.iter().find(|part| part.kind == PartKind::Data);
        let others: Vec<PathBuf> = build
            .placement
            .volumes
            .iter()
            .map(|other| other.mountpoint.clone())
            .filter(|other| *other != placed.mountpoint)
            .collect();
        let zeroed = self.only.zeroed(tree, volume)?;
        let total = tree.file_bytes(&zeroed);
        if !self.delta {
            as_files::say_where_it_may_not_fit(&placed.mountpoint, total);
        }
        let lines = Progress::on_stderr();
        as_files::restore(&as_files::Volume {
            repository: &self.repository,
            tree,
            folder: &placed.mountpoint,
            data_inside: data.map(|part| part.inside.as_path()),
            apart: &placed.apart,
            delta: self.delta,
            others: &others,
            owners,
            zeroed: &zeroed,
            has_content: &build.has_content,
            bar: lines.bytes_of(volume.dataset.as_str(), total),
        })
    }
}

/// A thread that waits until a volume is on disk.
type Syncing<'scope> = std::thread::ScopedJoinHandle<'scope, Result<()>>;

fn synced(syncing: Syncing<'_>) -> Result<()> {
    let ended = |_| Err(Error::failed("a thread that syncs files ended early"));
    syncing.join().unwrap_or_else(ended)
}

/// Mounts an existing dataset of pg_wal alone, and checks that its mount point leads to it: WAL written to the file
/// system below would be hidden by the next mount.
fn mount_for_wal(zfs: &Zfs, dataset: &DatasetName, at: &Path) -> Result<()> {
    zfs.mount(dataset)?;
    let real = std::fs::canonicalize(at).map_err(Error::io("find", at))?;
    match Mounts::read()?.holding(&real) {
        Some(mount) if mount.is_of(dataset.as_str()) => Ok(()),
        other => Err(Error::failed(format!(
            "\"{}\" isn't on dataset \"{dataset}\", but on {}",
            at.display(),
            other.map_or_else(|| "no known mount".to_owned(), |m| format!("\"{}\"", m.source))
        ))
        .with_hint("look at `findmnt -A` and the dataset's mountpoint; unmount what hides it")),
    }
}

/// Makes the folders of a volume of pg_wal alone, from scratch.
fn make_wal_folders(
    placed: &PlacedVolume,
    volume: &SetVolume,
    owner: Option<Credentials>,
) -> Result<()> {
    for part in &volume.parts {
        let mut path = placed.mountpoint.clone();
        files::create_owned_directory(&path, owner)?;
        if placed.dataset.is_none() {
            // The segments would inherit them.
            files::remove_access_lists(&path)?;
        }
        for step in &part.inside {
            path.push(Path::new(step));
            files::create_owned_directory(&path, owner)?;
        }
    }
    Ok(())
}
