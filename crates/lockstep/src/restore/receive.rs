//! Restores a volume from a repository into a dataset with `zfs receive`: into a new one, or on top of an existing
//! one, from a snapshot that the repository knows.

use std::collections::BTreeMap;
use std::time::Duration;

use super::build::Build;
use super::fold::Fold;
use super::placement::PlacedVolume;
use super::source::FromRepository;
use super::{control, parked, received};
use crate::error::{Error, Result};
use crate::process::quote;
use crate::progress::Progress;
use crate::repository::ShippedVolume;
use crate::steps;
use crate::volume::mounts::Mounts;
use crate::volume::zfs::{DatasetName, Zfs, met_an_unmount};

/// How many times an increment is received if ZFS is still unmounting the dataset ([`met_an_unmount`]), and the pause
/// before each.
const RECEIVES: u32 = 3;
const RECEIVE_PAUSE: Duration = Duration::from_secs(1);

/// A volume that becomes a dataset.
pub(super) struct Receiving<'a> {
    pub(super) from: &'a FromRepository,
    pub(super) build: &'a Build<'a>,
    /// Its index among the set's volumes.
    pub(super) index: usize,
    pub(super) placed: &'a PlacedVolume,
    /// The dataset that it becomes.
    pub(super) dataset: &'a DatasetName,
    /// The volume as it is in the repository.
    pub(super) shipped: &'a ShippedVolume,
}

impl Receiving<'_> {
    /// Makes the dataset from what was received, and checks that its snapshot is the set's. Returns `false` if its
    /// key isn't loaded; then it isn't mounted.
    pub(super) fn create(&self, properties: &[(&str, String)]) -> Result<bool> {
        let Self { from, build, dataset, .. } = *self;
        let zfs = &build.cx.zfs;
        let name = from.receiving(&build.id, self.index);
        let receiving = name.unwrap_or_else(|| dataset.clone());
        // Others have been received in parallel before.
        if self.is_raw() {
            self.receive_segments(&receiving, None)?;
            steps::reached(&format!("restore.receiving-{}", self.index + 1))?;
        }
        let (mut own, mut other): (Vec<_>, Vec<_>) =
            properties.iter().cloned().partition(|(name, _)| name.starts_with("lockstep:"));
        if self.has_data() {
            // Before it has a mount point: once it has one, ZFS may mount it.
            own.extend(parked::properties());
        }
        zfs.set_all(&own, &receiving)?;
        zfs.rename(&receiving, dataset)?;
        // Values that it has by default or inherits don't have to be set.
        let mut names: Vec<_> =
            other.iter().map(|(name, _)| *name).filter(|it| !is_needed(it)).collect();
        names.push(SYNC);
        let mut has = zfs.get_known(&[dataset.to_string()], &NEEDED, &names)?;
        let has = has.remove(dataset.as_str()).unwrap_or_default();
        warn_if_unsynced(dataset, &has);
        // If the pool was imported below a folder, ZFS shows another mount point than was set.
        other.retain(|(name, value)| *name == "mountpoint" || has.get(*name) != Some(value));
        let (needed, for_writing): (Vec<_>, Vec<_>) =
            other.into_iter().partition(|(name, _)| is_needed(name));
        zfs.set_all(&needed, dataset)?;
        for (name, value, error) in set_as_far_as_taken(zfs, &for_writing, dataset) {
            tracing::warn!(
                error = %error.chain(),
                "\"{dataset}\" doesn't accept its original's {name}={value}: it is restored without. To set another value: `zfs set {name}=… {}`",
                quote(dataset.as_str())
            );
        }
        self.check()?;
        self.mount()
    }

    /// Brings an existing dataset to the set's state: what was written to it since is lost. Returns `false` if its
    /// key isn't loaded; then it isn't mounted.
    ///
    /// A rollback gives pg_control its name back. So the data directory's dataset isn't mounted from then on until it
    /// is complete, and stays unmounted if this fails.
    pub(super) fn catch_up(&self) -> Result<bool> {
        let Self { build, dataset, .. } = *self;
        let zfs = &build.cx.zfs;
        let base = build.bases.get(dataset).ok_or_else(|| {
            Error::failed(format!("nobody looked for what \"{dataset}\" is rolled back to"))
        })?;
        if self.has_data() {
            build.older.is_parked.set(parked::park(zfs, dataset)?);
            build.older.is_changed.set(true);
            self.roll_back_unmounted(&base.name)?;
            steps::reached("restore.rolled-back")?;
        } else {
            build.older.is_changed.set(true);
            self.roll_back_aside(&base.name)?;
        }
        let id = base.guid.to_string();
        let behind = if id == self.shipped.delta { Ok(()) } else { self.receive_behind(&id) };
        if let (Err(_), false) = (&behind, self.has_data())
            && let Err(error) = self.mount()
        {
            tracing::warn!(error = %error.chain(), "\"{dataset}\" stays unmounted");
        }
        behind?;
        self.check()?;
        // If its key isn't loaded it stays parked: otherwise `zfs mount -a` would mount it once the key is loaded.
        self.mount()
    }

    /// Rolls back a dataset that may be mounted. When OpenZFS mounts a file system, or rolls back a mounted one, it
    /// removes the files that were unlinked and still open in its snapshot (zfs_unlinked_drain in zfs_dir.c): a table
    /// that was dropped while an idle session had it open. The dataset is modified then, and `zfs receive` refuses it.
    fn roll_back_aside(&self, snapshot: &str) -> Result<()> {
        let Self { build, dataset, .. } = *self;
        let zfs = &build.cx.zfs;
        let is_mounted = Mounts::read()?.iter().any(|mount| mount.is_of(dataset.as_str()));
        match is_mounted.then(|| zfs.unmount(dataset)) {
            None | Some(Ok(())) => self.roll_back_unmounted(snapshot),
            // Somebody is in one of its folders, or another file system is mounted there.
            Some(Err(error)) => {
                tracing::debug!(error = %error.chain(), "\"{dataset}\" is rolled back mounted");
                zfs.rollback(snapshot)
            }
        }
    }

    /// Rolls back a dataset that isn't mounted, and leaves it unmounted.
    fn roll_back_unmounted(&self, snapshot: &str) -> Result<()> {
        let Self { build, dataset, .. } = *self;
        let zfs = &build.cx.zfs;
        let Err(error) = zfs.rollback(snapshot) else { return Ok(()) };
        // zfs-fuse has to mount it for a moment if anything was written to it.
        if !self.is_open()? || zfs.mount(dataset).is_err() {
            return Err(error);
        }
        let rolled_back = zfs.rollback(snapshot);
        let unmounted = zfs.unmount(dataset);
        if unmounted.is_err() && self.has_data() {
            control::hold(&build.placement.data)?;
        }
        rolled_back.and(unmounted)
    }

    /// Receives what follows a snapshot that the dataset has.
    fn receive_behind(&self, since: &str) -> Result<()> {
        if self.is_raw() {
            return self.receive_segments(self.dataset, Some(since));
        }
        let fold = Fold {
            from: self.from,
            manifest: &self.build.manifest,
            shipped: self.shipped,
            chain: &self.from.deltas(self.shipped, Some(since))?,
            since: Some(since),
        };
        let mut tries = 1;
        loop {
            let received =
                fold.receive(&self.build.cx.zfs, self.dataset, &Progress::on_stderr(), &|| false);
            let Err(error) = received else { return Ok(()) };
            if !met_an_unmount(&error) {
                return Err(error);
            }
            if self.received()? == Some(self.from.guid(self.shipped)?.to_string()) {
                tracing::debug!(dataset = %self.dataset, error = %error.chain(), "received all the same");
                return Ok(());
            }
            if tries == RECEIVES {
                return Err(error);
            }
            tracing::debug!(dataset = %self.dataset, error = %error.chain(), tries, "received again");
            tries += 1;
            std::thread::sleep(RECEIVE_PAUSE);
            steps::reached("restore.receive-again")?;
        }
    }

    /// Returns the GUID of the dataset's snapshot that has the name of the set's.
    fn received(&self) -> Result<Option<String>> {
        let snapshot = self.dataset.snapshot(&self.placed.origin.name);
        Ok(self.build.cx.zfs.find_snapshot(&snapshot)?.map(|facts| facts.guid.to_string()))
    }

    /// Checks that the received snapshot is the set's.
    fn check(&self) -> Result<()> {
        let snapshot = self.dataset.snapshot(&self.placed.origin.name);
        let found = self.received()?;
        let expected = self.from.guid(self.shipped)?.to_string();
        if found.as_deref() == Some(expected.as_str()) {
            received::mark(self.build, &snapshot);
            return Ok(());
        }
        Err(Error::failed(format!(
            "what was received as {snapshot} has GUID {}, the set says {expected}",
            found.as_deref().unwrap_or("none"),
        )))
    }

    /// Mounts it if possible; the data directory's dataset without its pg_control.
    fn mount(&self) -> Result<bool> {
        match self.is_raw() {
            true => self.mount_unlocked(),
            false => self.mount_open().map(|()| true),
        }
    }

    /// Mounts it; its key has to be loaded if it has one.
    pub(super) fn mount_open(&self) -> Result<()> {
        let Self { build, dataset, .. } = *self;
        match self.has_data() {
            true => parked::mount(&build.cx.zfs, dataset, &build.placement.data),
            false => build.cx.zfs.mount(dataset),
        }
    }

    /// Whether it is unencrypted, or its key is loaded or can be.
    fn is_open(&self) -> Result<bool> {
        Ok(!self.is_raw() || self.unlock()?)
    }

    fn is_raw(&self) -> bool {
        self.shipped.raw.is_some()
    }

    fn has_data(&self) -> bool {
        self.build.placement.has_data(self.placed)
    }
}

/// Without these it isn't where it has to be, or can't be written to.
const NEEDED: [&str; 2] = ["mountpoint", "readonly"];

fn is_needed(property: &str) -> bool {
    NEEDED.contains(&property)
}

/// When a commit is on disk. It isn't set on what is received, and inherited from the dataset above.
const SYNC: &str = "sync";

/// Whether a dataset with these properties loses what a server has committed, if the power fails. A ZFS that doesn't
/// know the property has no such datasets.
fn loses_commits(has: &BTreeMap<String, String>) -> bool {
    has.get(SYNC).is_some_and(|value| value == "disabled")
}

/// Warns of a dataset that inherits `sync=disabled`: also that of pg_wal, which isn't received. A power cut takes it back
/// by seconds, and the others along with it only if all are in one pool and none syncs.
fn warn_if_unsynced(dataset: &DatasetName, has: &BTreeMap<String, String>) {
    if loses_commits(has) {
        tracing::warn!("{}", unsynced(dataset));
    }
}

/// The same for a dataset that was made, and not received.
pub(super) fn warn_if_made_unsynced(zfs: &Zfs, dataset: &DatasetName) -> Result<()> {
    let mut has = zfs.get_known(&[dataset.to_string()], &["mountpoint"], &[SYNC])?;
    warn_if_unsynced(dataset, &has.remove(dataset.as_str()).unwrap_or_default());
    Ok(())
}

fn unsynced(dataset: &DatasetName) -> String {
    format!(
        "\"{dataset}\" inherits sync=disabled: a power cut loses committed transactions. If that isn't meant: `zfs set sync=standard {}`, and so on each other dataset of this restore, for with some of them alone a power cut can corrupt the cluster",
        quote(dataset.as_str())
    )
}

/// Sets properties that only affect how a dataset's data is written from now on, and returns those that were
/// rejected: an older pool or another ZFS may not know a value (zstd, records larger than 128K). What was received is
/// complete without them.
pub(super) fn set_as_far_as_taken<'a>(
    zfs: &Zfs,
    properties: &[(&'a str, String)],
    on: &DatasetName,
) -> Vec<(&'a str, String, Error)> {
    if properties.is_empty() || zfs.set_all(properties, on).is_ok() {
        return Vec::new();
    }
    let one = |(name, value): &(&'a str, String)| {
        let set = zfs.set(name, value, std::slice::from_ref(on));
        set.err().map(|error| (*name, value.clone(), error))
    };
    properties.iter().filter_map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sync_disabled_loses_commits() {
        let has = |value: &str| BTreeMap::from([(SYNC.to_owned(), value.to_owned())]);
        assert!(loses_commits(&has("disabled")));
        assert!(!loses_commits(&has("standard")) && !loses_commits(&has("always")));
        assert!(!loses_commits(&BTreeMap::new()), "zfs-fuse doesn't know it");
    }

    #[test]
    fn who_syncs_a_part_is_told_to_sync_all() {
        let said = unsynced(&DatasetName::new("tank/main/wal").unwrap());
        assert!(said.contains("zfs set sync=standard tank/main/wal"), "{said}");
        assert!(said.contains("each other dataset") && said.contains("can corrupt"), "{said}");
    }
}
