//! Volumes whose datasets ZFS encrypts: whether they are sent raw, and how a raw one gets into the repository.
//!
//! What is encrypted on disk must not leave the host in the clear. So by default, such a volume is sent as it is on
//! disk to a repository that has no key of its own: no content is looked into, no page is checked and nothing is left
//! out. A repository with a key gets it like any other volume.
//!
//! What could go wrong: the set's own WAL, which holds the same rows, is sent along in the clear. If pg_wal is sent
//! raw and the WAL is in its snapshot, it stays there; if the WAL was copied out of it, the shipment is refused
//! unless raw was requested explicitly.
//!
//! Or the dataset was received anew, without `-w`: its snapshots have their old GUIDs and other IVs, and no increment
//! from them can be received behind what is stored. Then all of the volume is sent.
//!
//! Or a segment that isn't whole any more is sent again, on another base or in full because the snapshot before it is no
//! longer on this host. Later segments are increments on it: all of them would count as whole again, and no restore
//! could receive them. So that is refused.

use std::collections::{BTreeMap, BTreeSet};

use strata::check::Doomed;
use strata::delta::{Descriptor, ImageOptions, ImageWriter};

use super::passing::STRIDE;
use super::route::{Bases, How};
use super::volume::{Sent, Shipment, journal_name, stored_bytes};
use crate::config::EncryptedDatasets;
use crate::context::{Context, lockstep};
use crate::error::{Error, Result};
use crate::plan::layout::PartKind;
use crate::process::quote;
use crate::refusal::Refusal;
use crate::repository::raw::{Segment, ingest, next_base, raw_image_name, stored_iv_sets};
use crate::repository::shipped::ShippedVolume;
use crate::repository::whole::Wholeness;
use crate::repository::{Repository, of_strata};
use crate::set::manifest::{Manifest, SetVolume, WalStored};
use crate::steps;
use crate::volume::zfs::{Base, DatasetName, Encryption, SendSpec};

/// Which parts of a set are encrypted.
pub(super) struct Encrypted {
    /// Datasets that are sent raw, each with the location of its key.
    raw: BTreeMap<DatasetName, String>,
    /// Datasets whose key isn't loaded: nobody can look into them.
    locked: BTreeSet<DatasetName>,
}

impl Encrypted {
    /// Looks at the datasets and decides how each is sent.
    ///
    /// # Errors
    /// When ZFS fails, or what was requested is impossible or not allowed.
    pub(super) fn find(cx: &Context, repository: &Repository, set: &Manifest) -> Result<Self> {
        let datasets: Vec<_> = set.volumes.iter().map(|volume| volume.dataset.clone()).collect();
        let encryption = cx.zfs.encryption(&datasets)?;
        let has_key = repository.strata.key().is_some();
        let mut found = Self { raw: BTreeMap::new(), locked: BTreeSet::new() };
        for (dataset, with) in encryption {
            let asked = repository.config.encrypted_datasets;
            if goes_raw(asked, has_key, &dataset, &with)? {
                if is_for_want_of_a_key(asked, has_key, &with) {
                    let said = wants_its_key(&dataset, &with);
                    tracing::warn!(repository = %repository.name, "{said}");
                }
                found.raw.insert(dataset.clone(), cx.zfs.key_location(&with.root)?);
            }
            if !with.key_loaded {
                found.locked.insert(dataset);
            }
        }
        if !has_key {
            found.check_wal(repository, set)?;
        }
        Ok(found)
    }

    /// Checks for WAL that was copied out of an encrypted dataset.
    fn check_wal(&self, repository: &Repository, set: &Manifest) -> Result<()> {
        let Some(dataset) = wal_volume(set).map(|volume| &volume.dataset) else { return Ok(()) };
        let mut beside = set.files.keys().filter_map(|name| name.strip_prefix("wal/"));
        if !self.is_raw(dataset) || beside.all(|name| name.ends_with(".history")) {
            return Ok(());
        }
        if repository.config.encrypted_datasets == EncryptedDatasets::Raw {
            tracing::warn!(
                %dataset, repository = %repository.name,
                "the set's own WAL was copied out of this encrypted dataset and isn't encrypted in the repository"
            );
            return Ok(());
        }
        let (dataset, repository) = (dataset.to_string(), repository.name.clone());
        Err(Refusal::WalInTheClear { dataset, repository }.into())
    }

    /// Checks whether it is sent raw.
    pub(super) fn is_raw(&self, dataset: &DatasetName) -> bool {
        self.raw.contains_key(dataset)
    }

    /// Checks whether the volume can be looked into.
    pub(super) fn is_open(&self, volume: &SetVolume) -> bool {
        !self.locked.contains(&volume.dataset)
    }

    /// Checks whether the set's WAL stays in pg_wal's snapshot, because that is sent raw.
    pub(super) fn keeps_wal(&self, set: &Manifest) -> bool {
        set.wal.stored == WalStored::Snapshot
            && wal_volume(set).is_some_and(|volume| self.is_raw(&volume.dataset))
    }

    /// Returns where the keys of the datasets sent raw are.
    pub(super) fn key_locations(&self) -> &BTreeMap<DatasetName, String> {
        &self.raw
    }
}

fn wal_volume(set: &Manifest) -> Option<&SetVolume> {
    let has_wal = |volume: &&SetVolume| volume.parts.iter().any(|p| p.kind == PartKind::Wal);
    set.volumes.iter().find(has_wal)
}

/// Decides whether an encrypted dataset is sent raw.
fn goes_raw(
    asked: EncryptedDatasets,
    has_key: bool,
    dataset: &DatasetName,
    with: &Encryption,
) -> Result<bool> {
    match asked {
        EncryptedDatasets::Raw => Ok(true),
        EncryptedDatasets::Auto => Ok(!has_key || !with.key_loaded),
        EncryptedDatasets::Plain if with.key_loaded => Ok(false),
        EncryptedDatasets::Plain => Err(Error::failed(format!(
            "the key of \"{dataset}\" isn't loaded: it can only be sent raw"
        ))
        .with_hint(format!(
            "`zfs load-key '{}'`, or encrypted_datasets = \"raw\" for this repository",
            with.root
        ))),
    }
}

/// Whether a dataset is sent raw only because its key isn't loaded.
fn is_for_want_of_a_key(asked: EncryptedDatasets, has_key: bool, with: &Encryption) -> bool {
    asked == EncryptedDatasets::Auto && has_key && !with.key_loaded
}

/// The dataset may be mounted: `zfs promote` of a clone moves the encryption root and leaves the loaded key behind
/// (dsl_dataset_promote_crypt_sync in dsl_crypt.c).
fn wants_its_key(dataset: &DatasetName, with: &Encryption) -> String {
    format!(
        "the key of \"{dataset}\" isn't loaded, so it is sent raw although the repository has a key: what is sent isn't checked and can't be restored as files, nor without the dataset's own key. To send it like any other: `zfs load-key {}` (also after a `zfs promote`, while it is mounted)",
        quote(with.root.as_str())
    )
}

/// A raw volume's route, before its shipment begins.
pub(super) struct RawWay {
    image: String,
    /// Its segment, if an interrupted shipment already stored it.
    there: Option<(Descriptor, Segment)>,
    /// What it is an increment to.
    base: Option<(Base, Segment)>,
    /// The segments that are there and whose chains have its own.
    later: Vec<Segment>,
}

impl RawWay {
    /// Returns the deltas that it is based on.
    fn goes_on_from(&self) -> impl Iterator<Item = &str> {
        let there = self.there.iter().map(|(_, segment)| segment);
        let base = self.base.iter().map(|(_, segment)| segment);
        there.chain(base).flat_map(|segment| &segment.chain).map(|link| link.guid.as_str())
    }

    /// Returns what is noted as needed by nobody, but will be needed.
    ///
    /// # Errors
    /// When the store fails.
    pub(super) fn noted(
        &self,
        there: &Wholeness<'_>,
        volume: &SetVolume,
        noted: &Doomed,
    ) -> Result<Vec<String>> {
        if noted.is_empty() {
            return Ok(Vec::new());
        }
        let deltas = there.image(&self.image)?;
        let mut found = deltas.noted(&volume.guid.to_string(), noted)?;
        for id in self.goes_on_from() {
            found.extend(deltas.noted(id, noted)?);
        }
        Ok(found)
    }

    /// Finds what is already there, and what the volume is an increment to.
    ///
    /// # Errors
    /// When ZFS or the store fails.
    pub(super) fn find(
        bases: &Bases<'_>,
        there: &Wholeness<'_>,
        volume: &SetVolume,
        how: How<'_>,
    ) -> Result<Self> {
        let image = raw_image_name(&volume.dataset);
        let deltas = there.image(&image)?;
        let guid = volume.guid.to_string();
        // A segment that is there is part of other sets' chains as it is, so no full one may replace it.
        let is_full = how.is_full() && !deltas.has(&guid);
        if is_full && !how.is_late {
            return Ok(Self { image, there: None, base: None, later: Vec::new() });
        }
        let mut ids = Vec::new();
        for id in deltas.ids() {
            if deltas.is_whole(id)? {
                ids.push(id.to_owned());
            }
        }
        let read = |id: &str| match deltas.whole(id)? {
            Some(descriptor) => {
                let segment = Segment::of(&descriptor)?;
                Ok::<_, Error>(Some((descriptor, segment)))
            }
            None => Ok(None),
        };
        if ids.contains(&guid) {
            // Its base may have been collected meanwhile.
            let there = read(&guid)?.filter(|(_, segment)| segment.is_whole(&ids));
            if there.is_some() {
                return Ok(Self { image, there, base: None, later: Vec::new() });
            }
        }
        // No chain has a snapshot that is new.
        let mut later = Vec::new();
        if how.is_late || deltas.has(&guid) {
            for id in ids.iter().filter(|id| **id != guid) {
                let segment = read(id)?.map(|(_, segment)| segment);
                later.extend(segment.filter(|it| it.chain.iter().any(|link| link.guid == guid)));
            }
        }
        if is_full {
            return Ok(Self { image, there: None, base: None, later });
        }
        // A set that arrived late may be a newer base than the one that it was sent on before.
        let keeps =
            |base: &Segment| !later.iter().any(|it| it.goes_on_otherwise(&guid, &base.chain));
        let is_known = |base: &Base| {
            let guid = base.guid.to_string();
            let there = ids.contains(&guid).then(|| read(&guid).ok().flatten()).flatten();
            there.is_some_and(|(_, segment)| segment.is_whole(&ids) && keeps(&segment))
        };
        let mut found = bases.of(volume, is_known)?;
        // A descriptor that was damaged in the store is found out when it is read.
        while let Some(guid) = found.first().map(|base| base.guid.to_string()) {
            if ids.contains(&guid) && read(&guid)?.is_some() {
                break;
            }
            found.remove(0);
        }
        let segment = |id: &str| {
            let gone = || Error::failed(format!("delta \"{id}\" of \"{image}\" isn't whole"));
            read(id)?.map(|(_, segment)| segment).ok_or_else(gone)
        };
        let full_every = if later.is_empty() { how.raw_full_every } else { u32::MAX };
        let base = next_base(found, &ids, full_every, keeps, segment)?;
        Ok(Self { image, there: None, base, later })
    }

    /// Ships the volume.
    ///
    /// # Errors
    /// When ZFS, the stream or the store fails.
    pub(super) fn ship(self, shipment: &Shipment<'_>, volume: &SetVolume) -> Result<ShippedVolume> {
        let (descriptor, segment) = match self.there {
            Some(there) => there,
            None => send(shipment, volume, &self.image, self.base, &self.later)?,
        };
        let stored = stored_bytes(shipment.repository, &descriptor)?;
        Ok(ShippedVolume::raw(volume.dataset.clone(), descriptor, segment, stored))
    }
}

/// Checks that the volume's segment may be sent as an increment on `base`, or in full: the `later` ones have to be
/// increments on it still.
fn assert_received_behind(
    volume: &SetVolume,
    base: Option<&Segment>,
    later: &[Segment],
) -> Result<()> {
    let (guid, before) = (volume.guid.to_string(), base.map_or(&[][..], |base| &base.chain[..]));
    let Some(other) = later.iter().find(|other| other.goes_on_otherwise(&guid, before)) else {
        return Ok(());
    };
    let last = other.chain.last().map_or("", |link| &link.snapshot);
    Err(Error::failed(format!(
        "{} can't be stored raw again: \"{last}\" is stored as an increment on how it was sent before, and couldn't be received behind it any more, because what it was an increment to itself is no longer on this host, or isn't whole in the repository",
        volume.snapshot
    ))
    .with_hint(format!(
        "sets that need a damaged segment can't be repaired: `{} ship --full` of a set that the repository never had begins anew",
        lockstep()
    )))
}

/// Sends and stores a segment.
fn send(
    shipment: &Shipment<'_>,
    volume: &SetVolume,
    image: &str,
    base: Option<(Base, Segment)>,
    later: &[Segment],
) -> Result<(Descriptor, Segment)> {
    assert_received_behind(volume, base.as_ref().map(|(_, segment)| segment), later)?;
    let repository = shipment.repository;
    let config = &repository.config;
    let spec = SendSpec {
        snapshot: &volume.snapshot,
        base: base.as_ref().map(|(base, _)| base.name.as_str()),
        raw: true,
        nice: config.nice,
        ionice: config.ionice,
    };
    let journal = journal_name(&repository.name, image, volume);
    let options =
        ImageOptions { resume: Some(shipment.journals.join(journal)), ..shipment.options.clone() };
    // Without a base: nothing in it can be read without the stream's own reader.
    let guid = volume.guid.to_string();
    let mut writer =
        ImageWriter::new(&repository.strata, image, &guid, None, &options).map_err(of_strata)?;
    let mut sent = Sent::new(shipment.zfs.send(&spec)?);
    let bar = shipment.progress.bytes(volume.dataset.as_str());
    let mut seen = 0;
    let from = base.as_ref().map(|(base, _)| base.guid.to_string());
    let stored = ingest(&mut sent, &mut writer, &guid, from.as_deref(), |bytes| {
        if bytes - seen >= STRIDE {
            bar.set_position(bytes);
            (shipment.check)()?;
            seen = bytes;
            steps::reached("ship.progress")?;
        }
        Ok(())
    });
    bar.finish_and_clear();
    let stored = sent.end(stored)?;
    if let Some(before) = &from
        && !stored.iv_sets.follow(stored_iv_sets(repository, image, before)?)
    {
        tracing::warn!(
            dataset = %volume.dataset,
            "it is encrypted otherwise than when its snapshot {before} was sent (was it received anew?): all of it is sent again"
        );
        drop(writer);
        return send(shipment, volume, image, None, later);
    }
    let key_location = shipment.key_locations.get(&volume.dataset).cloned();
    let properties = shipment.properties.get(volume.dataset.as_str()).cloned();
    let base = base.map(|(_, segment)| segment);
    let segment = stored.behind(base, key_location, properties.unwrap_or_default());
    writer.about(segment.to_about()?);
    steps::reached("ship.stream")?;
    let still = || (shipment.confirm)().map_err(strata::Error::caller);
    Ok((writer.finish_if(&still).map_err(of_strata)?, segment))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::prune::memory_store::Memory;
    use crate::repository::raw::stored_tests::repository;
    use crate::repository::raw::{Kind, Link};
    use crate::set::manifest::tests::manifest;
    use crate::set::manifest::{SetFile, SetPart};
    use crate::volume::zfs::Guid;

    /// A set whose pg_wal is in `wal`, with these files stored with it.
    fn set(wal: &str, stored: WalStored, files: &[&str]) -> Manifest {
        let mut set = manifest("20261101T000000Z-aaaa", vec![]);
        let parts = |kind| vec![SetPart { kind, path: "/x".into(), inside: "".into() }];
        let volume = |dataset: &str, kind| SetVolume {
            dataset: DatasetName::new(dataset).unwrap(),
            pool: "tank".into(),
            snapshot: DatasetName::new(dataset).unwrap().snapshot("s"),
            guid: Guid::new(1),
            createtxg: 1,
            order: 1,
            taken_at: set.started_at,
            parts: parts(kind),
        };
        let volumes = vec![volume("tank/data", PartKind::Data), volume(wal, PartKind::Wal)];
        set.volumes = volumes;
        set.wal.stored = stored;
        let file = SetFile { bytes: 1, blake3: String::new() };
        set.files = files.iter().map(|name| ((*name).to_owned(), file.clone())).collect();
        set
    }

    #[test]
    fn a_segment_within_other_chains_is_not_sent_on_another_base() {
        let segment = |guids: &[u64]| {
            let link = |guid: &u64| Link { guid: guid.to_string(), snapshot: format!("s{guid}") };
            Segment {
                version: 1,
                kind: Kind::Raw,
                chain: guids.iter().map(link).collect(),
                stream_bytes: 1,
                blake3: String::new(),
                key_location: None,
                properties: BTreeMap::new(),
            }
        };
        let mut set = set("tank/wal", WalStored::Files, &[]);
        let mut volume = set.volumes.remove(0);
        volume.guid = Guid::new(3);
        let later = [segment(&[1, 2, 3, 4])];
        let check = |base: Option<&Segment>| assert_received_behind(&volume, base, &later);
        check(Some(&segment(&[1, 2]))).unwrap();
        let error = check(None).unwrap_err();
        assert!(error.to_string().contains("\"s4\""), "{error}");
        assert!(error.hint().unwrap().contains("ship --full"), "{error}");
        assert!(check(Some(&segment(&[1]))).is_err());
        volume.guid = Guid::new(4);
        assert_received_behind(&volume, None, &later).unwrap();
    }

    #[test]
    fn a_key_that_is_not_loaded_is_named_if_the_repository_has_one() {
        let dataset = DatasetName::new("tank/data").unwrap();
        let with = |key_loaded| Encryption { key_loaded, root: DatasetName::new("tank").unwrap() };
        let is = |asked, has_key, loaded| is_for_want_of_a_key(asked, has_key, &with(loaded));
        assert!(is(EncryptedDatasets::Auto, true, false));
        assert!(!is(EncryptedDatasets::Auto, true, true), "it is sent like any other");
        assert!(!is(EncryptedDatasets::Auto, false, false), "it always is");
        assert!(!is(EncryptedDatasets::Raw, true, false), "it was asked for");
        let said = wants_its_key(&dataset, &with(false));
        assert!(said.contains("\"tank/data\"") && said.contains("`zfs load-key tank`"), "{said}");
    }

    #[test]
    fn wal_of_an_encrypted_dataset_stays_in_it_or_is_told_of() {
        let dataset = |name: &str| DatasetName::new(name).unwrap();
        let secret = ["tank/data", "tank/wal"].map(|name| (dataset(name), "prompt".to_owned()));
        let found = Encrypted { raw: secret.into(), locked: BTreeSet::new() };
        assert!(found.keeps_wal(&set("tank/wal", WalStored::Snapshot, &[])));
        assert!(!found.keeps_wal(&set("tank/wal", WalStored::Files, &[])));
        assert!(!found.keeps_wal(&set("tank/open", WalStored::Snapshot, &[])));

        let mut at = repository(Arc::new(Memory::default()));
        let copied = ["backup_label", "wal/000000010000000000000003"];
        let check = |at: &Repository, wal, files| {
            found.check_wal(at, &set(wal, WalStored::Files, files)).map_err(|e| e.exit_code())
        };
        assert_eq!(check(&at, "tank/wal", &copied), Err(4));
        assert_eq!(check(&at, "tank/open", &copied), Ok(()), "it lay in the clear");
        assert_eq!(check(&at, "tank/wal", &["backup_label", "wal/00000002.history"]), Ok(()));
        at.config.encrypted_datasets = EncryptedDatasets::Raw;
        assert_eq!(check(&at, "tank/wal", &copied), Ok(()), "asked for by name");
    }

    #[test]
    fn what_is_encrypted_on_disk_leaves_in_the_clear_only_to_be_sealed_or_when_asked() {
        use EncryptedDatasets::{Auto, Plain, Raw};
        let dataset = DatasetName::new("tank/pg/data").unwrap();
        let raw = |asked, has_key, key_loaded| {
            let root = DatasetName::new("tank/pg").unwrap();
            goes_raw(asked, has_key, &dataset, &Encryption { key_loaded, root })
        };
        for (asked, has_key, key_loaded, expected) in [
            (Auto, false, true, true),
            (Auto, false, false, true),
            (Auto, true, true, false),
            (Auto, true, false, true),
            (Raw, true, true, true),
            (Raw, false, false, true),
            (Plain, false, true, false),
            (Plain, true, true, false),
        ] {
            let found = raw(asked, has_key, key_loaded).unwrap();
            assert_eq!(found, expected, "{asked:?}, key {has_key}, loaded {key_loaded}");
        }
        let error = raw(Plain, false, false).unwrap_err();
        assert!(error.to_string().contains("tank/pg/data"), "{error}");
        assert!(error.hint().unwrap().contains("zfs load-key 'tank/pg'"), "{error}");
    }
}
