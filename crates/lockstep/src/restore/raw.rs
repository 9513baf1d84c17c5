//! Restores a volume that is stored raw into a dataset: the segments of its chain go one after another into `zfs
//! receive`. The dataset is encrypted like its original, with the same key.
//!
//! What could go wrong: nobody is there to load the key. A key in a file is loaded if the file is where the
//! original's was. Otherwise what was received stays as it is, not mounted, and the restore ends by saying which keys
//! to load; the same command with `--delta` then continues with what is there.

use std::io::{BufWriter, Write};

use super::build::Build;
use super::fold::ended;
use super::receive::Receiving;
use super::source::FromRepository;
use crate::error::{Error, Result};
use crate::process::quote;
use crate::repository::raw::{Link, Segment, copy};
use crate::repository::{ShippedVolume, of_strata};
use crate::steps;
use crate::volume::zfs::{DatasetName, is_another_key, is_local_key};

/// Returns the segments after `since`.
fn behind<'a>(chain: &'a [Link], since: Option<&str>) -> &'a [Link] {
    let at = since.and_then(|guid| chain.iter().position(|link| link.guid == guid));
    chain.get(at.map_or(0, |at| at + 1)..).unwrap_or_default()
}

/// Reads the metadata of the volume's segment.
pub(super) fn segment(from: &FromRepository, shipped: &ShippedVolume) -> Result<Segment> {
    let strata = &from.repository.strata;
    let descriptor = strata::delta::read_descriptor(strata, &shipped.image, &shipped.delta);
    Segment::of(&descriptor.map_err(of_strata)?)
}

/// Warns, before anything is received, about keys that this host doesn't have: they will be needed.
pub(super) fn announce(from: &FromRepository, build: &Build) -> Result<()> {
    for placed in &build.placement.volumes {
        let (Some(dataset), Some(shipped)) = (&placed.dataset, from.shipped_volume(placed)) else {
            continue;
        };
        // With --delta it may exist already, with its key.
        if shipped.raw.is_none() || build.there.contains(dataset) {
            continue;
        }
        let location = segment(from, shipped)?.key_location;
        if !location.as_deref().is_some_and(is_local_key) {
            tracing::warn!(
                dataset = %shipped.dataset,
                "stored raw, and its key isn't in a file on this host: the restore will stop before it is mounted"
            );
        }
    }
    Ok(())
}

impl Receiving<'_> {
    /// Receives the segments after the snapshot `since` into `dataset`, or all of them. Destroys the snapshots in
    /// between: the dataset keeps the set's.
    pub(super) fn receive_segments(
        &self,
        dataset: &DatasetName,
        since: Option<&str>,
    ) -> Result<()> {
        let Self { from, build, shipped, .. } = *self;
        let zfs = &build.cx.zfs;
        let chain = shipped.raw.as_deref().unwrap_or_default();
        let segments = behind(chain, since);
        for (at, link) in segments.iter().enumerate() {
            steps::reached("restore.segment")?;
            let mut child = zfs.receive(dataset)?;
            let result = (|| -> Result<()> {
                let mut output = BufWriter::with_capacity(1 << 20, &mut child);
                copy(&from.repository, &shipped.image, &link.guid, &mut output)?;
                output.flush().map_err(Error::io("write to", "zfs receive"))
            })();
            ended(result, child)?;
            let received = dataset.snapshot(&link.snapshot);
            let found = zfs.find_snapshot(&received)?.map(|facts| facts.guid.to_string());
            if found.as_ref() != Some(&link.guid) {
                return Err(Error::failed(format!(
                    "what was received as {received} has GUID {}, the set says {}",
                    found.as_deref().unwrap_or("none"),
                    link.guid
                )));
            }
            // The one before is no longer needed, unless it existed before the restore.
            if let Some(before) = at.checked_sub(1).and_then(|at| segments.get(at)) {
                zfs.destroy_snapshot(&dataset.snapshot(&before.snapshot))?;
            }
        }
        Ok(())
    }

    /// Mounts it if its key is loaded or can be. Returns `false` if its key isn't loaded and this host doesn't have
    /// it.
    ///
    /// An increment from after a `zfs change-key` of the original brings another wrapped key. ZFS still has the
    /// dataset's previous key loaded, and reports it as available.
    pub(super) fn mount_unlocked(&self) -> Result<bool> {
        let dataset = self.dataset;
        if !self.unlock()? {
            return Ok(false);
        }
        match self.mount_open() {
            Err(error) if is_another_key(&error) => {
                tracing::debug!(%dataset, error = %error.chain(), "the key that is loaded isn't its own any more");
            }
            other => return other.map(|()| true),
        }
        let failed = |error: Error| {
            let name = quote(dataset.as_str());
            let what = format!(
                "\"{dataset}\" can't be mounted with the key that is loaded: {}",
                error.chain()
            );
            let hint = format!(
                "was the original's key changed? `zfs unload-key {name} && zfs load-key {name}`, with the key of the set's time, then run the same command again"
            );
            Error::failed(what).with_hint(hint)
        };
        self.build.cx.zfs.unload_key(dataset).map_err(failed)?;
        if !self.unlock()? {
            return Ok(false);
        }
        self.mount_open().map(|()| true).map_err(|error| match is_another_key(&error) {
            true => failed(error),
            false => error,
        })
    }

    /// Whether the dataset can be mounted: its key is loaded, or could be loaded from where the original's was.
    pub(super) fn unlock(&self) -> Result<bool> {
        let Self { from, build, dataset, shipped, .. } = *self;
        let zfs = &build.cx.zfs;
        let encryption = zfs.encryption(std::slice::from_ref(dataset))?.remove(dataset);
        let Some(encryption) = encryption.filter(|encryption| !encryption.key_loaded) else {
            return Ok(true);
        };
        let own = zfs.key_location(&encryption.root)?;
        let original = segment(from, shipped)?.key_location;
        let locations = [Some(own.clone()), original.clone()].into_iter().flatten();
        match first_that_fits(locations, |location| zfs.load_key(&encryption.root, location)) {
            Ok(location) if location == own => Ok(true),
            Ok(location) => {
                tracing::info!(%dataset, %location, "its key is where the original's is");
                // So that the next boot finds it too.
                zfs.set("keylocation", &location, std::slice::from_ref(&encryption.root))?;
                Ok(true)
            }
            Err(others) => {
                let is_wrong = others.iter().any(|(location, _)| *location == own);
                for (location, error) in others {
                    tracing::warn!(%dataset, %location, error = %error.chain(), "this isn't its key");
                }
                // `zfs load-key` would try the wrong one again, and never ask for a passphrase.
                if let Some(original) = original.filter(|it| is_wrong && *it != own) {
                    zfs.set("keylocation", &original, std::slice::from_ref(&encryption.root))?;
                }
                Ok(false)
            }
        }
    }
}

/// Returns the first of these locations on this host whose key `load` takes, or what was wrong with each. A key that
/// doesn't fit is no problem if another one does: `zfs change-key` of the original may have come with another location.
fn first_that_fits<E>(
    locations: impl Iterator<Item = String>,
    load: impl Fn(&str) -> Result<(), E>,
) -> Result<String, Vec<(String, E)>> {
    let mut others = Vec::new();
    for location in locations.filter(|location| is_local_key(location)) {
        match load(&location) {
            Ok(()) => return Ok(location),
            Err(error) => others.push((location, error)),
        }
    }
    Err(others)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_does_not_fit_counts_only_if_none_does() {
        let scratch = tempfile::tempdir().unwrap();
        let [old, new] = ["old", "new"].map(|name| {
            let path = scratch.path().join(name);
            std::fs::write(&path, "key").unwrap();
            format!("file://{}", path.display())
        });
        let locations = || ["prompt".to_owned(), old.clone(), new.clone()].into_iter();
        let fits = |right: &str| {
            first_that_fits(locations(), |it| (it == right).then_some(()).ok_or("another"))
        };
        assert_eq!(fits(&new).unwrap(), new);
        assert_eq!(
            fits("prompt").unwrap_err(),
            [(old.clone(), "another"), (new.clone(), "another")]
        );
    }

    #[test]
    fn what_is_there_is_not_received_again() {
        let link = |guid: &str| Link { guid: guid.into(), snapshot: format!("s{guid}") };
        let chain = ["1", "2", "3"].map(link);
        let guids = |since| -> Vec<_> {
            behind(&chain, since).iter().map(|link| link.guid.as_str()).collect()
        };
        assert_eq!(guids(None), ["1", "2", "3"]);
        assert_eq!(guids(Some("1")), ["2", "3"]);
        assert!(guids(Some("3")).is_empty());
    }
}
