//! Raw streams, recorded and made up, in a repository: they come back byte for byte; an incomplete one is never
//! stored as a whole one; damage is found; and nobody is told that a raw volume can be looked into.

use std::sync::Arc;

use sendstream::ByteOrder;
use sendstream::record::{Begin, ObjsetType};
use strata::check::{CheckOptions, check as check_strata};
use strata::delta::{ImageOptions, read_descriptor};
use strata::manifest::Manifest as Stored;
use strata::pack::PackOptions;
use strata::store::testing::{Fault, Faulty};
use strata::store::{Retries, Storage, Store};

use super::*;
use crate::look::Look;
use crate::plan::layout::PartKind;
use crate::prune::memory_store::Memory;
use crate::repository::shipped::{FILES_IMAGE, Shipped, ShippedVolume};
use crate::set::manifest::tests::manifest;
use crate::set::manifest::{SetPart, SetVolume, WalStored};

#[path = "../../tests/it/support/recordings.rs"]
mod recordings;
use recordings::Recordings;

pub(crate) fn repository(storage: Arc<dyn Storage>) -> Repository {
    let retries = Retries { tries: 1, first_pause: std::time::Duration::ZERO };
    let strata =
        strata::Repository::new(Store::shared(storage, retries), "clusters/main", None).unwrap();
    let config = toml::from_str("url = 'file:///none'").unwrap();
    Repository { name: "offsite".into(), config, id: "0".into(), strata }
}

fn dataset() -> DatasetName {
    DatasetName::new("tank/pg").unwrap()
}

pub(crate) fn image() -> String {
    raw_image_name(&dataset())
}

fn small() -> ImageOptions {
    let packs = PackOptions { pack_size: 3 << 20, level: 1, threads: 1, uploads: 1 };
    ImageOptions { packs, ..ImageOptions::default() }
}

/// BEGIN of a raw stream.
fn begin(guid: u64, from: u64) -> Begin {
    Begin {
        order: ByteOrder::Little,
        header_type: 1,
        features: Features::RAW,
        creation_time: 1,
        objset: ObjsetType::FileSystem,
        flags: 0,
        to_guid: guid,
        from_guid: from,
        to_name: format!("tank/pg@lockstep-{guid}").into_bytes(),
    }
}

/// A raw stream that holds nothing but this many bytes of BEGIN's payload.
fn made_up(begin: &Begin, bytes: usize) -> Vec<u8> {
    let payload: Vec<u8> = (0..bytes).map(|at| (at * 7 + bytes) as u8).collect();
    sendstream::Writer::new(Vec::new(), begin, &payload).unwrap().finish().unwrap()
}

/// A made-up stream from the previous snapshot, or from nothing.
pub(crate) fn stream(guid: u64, from: Option<u64>) -> Vec<u8> {
    made_up(&begin(guid, from.unwrap_or(0)), 8 * (10 + guid as usize))
}

fn guids_of(stream: &[u8]) -> (u64, u64) {
    let reader = Reader::new(stream).unwrap();
    (reader.begin().to_guid, reader.begin().from_guid)
}

fn store(repository: &Repository, stream: &[u8]) -> Result<(Descriptor, Segment)> {
    let (guid, from) = guids_of(stream);
    let base = match from {
        0 => None,
        from => Some(Segment::of(
            &read_descriptor(&repository.strata, &image(), &from.to_string()).map_err(of_strata)?,
        )?),
    };
    try_store(repository, stream, guid, base)
}

/// Stores a stream that is expected to lead to `guid`.
fn try_store(
    repository: &Repository,
    mut stream: &[u8],
    guid: u64,
    base: Option<Segment>,
) -> Result<(Descriptor, Segment)> {
    let guid = guid.to_string();
    let mut writer =
        ImageWriter::new(&repository.strata, &image(), &guid, None, &small()).map_err(of_strata)?;
    let from = base.as_ref().and_then(|base| base.chain.last()).map(|link| link.guid.clone());
    let stored = ingest(&mut stream, &mut writer, &guid, from.as_deref(), |_| Ok(()))?;
    let segment = stored.behind(base, Some("prompt".into()), BTreeMap::new());
    writer.about(segment.to_about()?);
    Ok((writer.finish().map_err(of_strata)?, segment))
}

/// Publishes a set of one raw volume.
pub(crate) fn publish(repository: &Repository, set: &str, stream: &[u8]) -> Result<Segment> {
    let (descriptor, segment) = store(repository, stream)?;
    let volume = ShippedVolume::raw(dataset(), descriptor, segment.clone(), 100);
    let part = |kind| SetPart { kind, path: "/srv/pg".into(), inside: "".into() };
    let mut manifest = manifest(set, vec![]);
    manifest.volumes = vec![SetVolume {
        dataset: dataset(),
        pool: "tank".into(),
        snapshot: dataset().snapshot(&format!("lockstep-{set}")),
        guid: volume.delta.parse().unwrap(),
        createtxg: 1,
        order: 1,
        taken_at: manifest.started_at,
        parts: vec![part(PartKind::Data)],
    }];
    manifest.files = BTreeMap::new();
    let options = small();
    let files = ImageWriter::new(&repository.strata, FILES_IMAGE, set, None, &options);
    files.and_then(ImageWriter::finish).map_err(of_strata)?;
    repository.publish(&Shipped::new(manifest, vec![volume]))?;
    Ok(segment)
}

/// What `zfs receive` would get for a set, stream after stream.
pub(crate) fn received(repository: &Repository, set: &str) -> Result<Vec<Vec<u8>>> {
    let shipped = repository.read(set)?;
    let volume = &shipped.volumes[0];
    let give = |link: &Link| {
        let mut bytes = Vec::new();
        copy(repository, &volume.image, &link.guid, &mut bytes).map(|_| bytes)
    };
    volume.raw.as_ref().unwrap().iter().map(give).collect()
}

fn set_id(number: usize) -> String {
    format!("202611{:02}T000000Z-aaaa", number + 1)
}

#[test]
fn recorded_streams_come_back_byte_for_byte() {
    let recordings = Recordings::unpack("raw");
    let streams = recordings.chain("enc", "w");
    let repository = repository(Arc::new(Memory::default()));
    for (number, stream) in streams.iter().enumerate() {
        publish(&repository, &set_id(number), stream).unwrap();
    }
    for number in 0..streams.len() {
        let set = set_id(number);
        assert!(received(&repository, &set).unwrap() == streams[..=number], "{set}");
        // The manifest names the chain and the files: nothing else has to be known to keep them.
        let deltas = Stored::read(&repository.strata, &set).unwrap().deltas;
        assert_eq!(deltas.len(), number + 2);
        let volume = &repository.read(&set).unwrap().volumes[0];
        assert_eq!(volume.pages.not_checked.as_deref(), Some("raw"));
        assert_eq!(volume.stream_bytes, streams[number].len() as u64);
        assert_eq!(volume.base.is_none(), number == 0);
    }
    let (last, _) = guids_of(&streams[4]);
    let segment =
        Segment::of(&read_descriptor(&repository.strata, &image(), &last.to_string()).unwrap());
    let names: Vec<_> = segment.unwrap().chain.into_iter().map(|link| link.snapshot).collect();
    assert_eq!(names, ["s0", "s1", "s2", "s3", "s4"]);
    let report = check_strata(&repository.strata, &CheckOptions::default()).unwrap();
    assert!(report.problems.is_empty() && report.orphans.is_empty(), "{report:?}");
}

/// A snapshot that was received without `-w` has the same GUID and other IVs: nothing can be received behind it.
#[test]
fn an_increment_counts_on_the_ivs_of_the_segment_before() {
    let recordings = Recordings::unpack("raw-ivs");
    let repository = repository(Arc::new(Memory::default()));
    let mut before = IvSets::default();
    for (number, stream) in recordings.chain("enc", "w").iter().enumerate() {
        publish(&repository, &set_id(number), stream).unwrap();
        let said = IvSets::of(Reader::new(&stream[..]).unwrap().begin_payload());
        let there = stored_iv_sets(&repository, &image(), &guids_of(stream).0.to_string()).unwrap();
        assert!(there == said && said.to.is_some(), "{number}: {there:?}, {said:?}");
        assert!(said.follow(before), "{number}: {said:?} after {before:?}");
        assert!(!said.follow(IvSets { to: Some(1), ..before }), "{number}: received anew");
        before = said;
    }
    // A stream that says nothing, of a ZFS from before there were IV sets.
    publish(&repository, &set_id(9), &stream(1, None)).unwrap();
    assert_eq!(stored_iv_sets(&repository, &image(), "1").unwrap(), IvSets::default());
}

#[test]
fn a_stream_that_was_cut_or_changed_is_not_stored() {
    let recordings = Recordings::unpack("raw-cut");
    let stream = recordings.read("enc.w.s0-s1");
    let (guid, from) = guids_of(&stream);
    let base = || {
        let link = Link { guid: from.to_string(), snapshot: "s0".into() };
        let (blake3, iv_sets) = (String::new(), IvSets::default());
        let ingested = Ingested { link, bytes: 1, blake3, iv_sets };
        Some(ingested.behind(None, None, BTreeMap::new()))
    };
    let memory = Memory::default();
    let repository = repository(Arc::new(memory.clone()));
    let refused = |bytes: &[u8], what: &str| {
        let stored = try_store(&repository, bytes, guid, base());
        assert!(stored.is_err(), "{what}");
        let there = memory.paths("volumes/");
        assert!(!there.iter().any(|path| path.ends_with(".json")), "{what}: {there:?}");
    };
    let mut random = fastrand::Rng::with_seed(3);
    let ends = [0, 1, 311, 312, stream.len() - 312, stream.len() - 1];
    for end in ends.into_iter().chain((0..30).map(|_| random.usize(..stream.len()))) {
        refused(&stream[..end], &format!("cut at {end}"));
    }
    for _ in 0..60 {
        let (at, bit) = (random.usize(..stream.len()), random.u8(..8));
        let mut flipped = stream.clone();
        flipped[at] ^= 1 << bit;
        refused(&flipped, &format!("bit {bit} of byte {at} flipped"));
    }
    refused(&[&stream[..], b"x"].concat(), "a byte more");
    refused(&[&stream[..], &stream[..]].concat(), "two streams");
    try_store(&repository, &stream, guid, base()).expect("as it was recorded");
}

#[test]
fn only_the_stream_that_was_asked_for_is_stored() {
    let repository = repository(Arc::new(Memory::default()));
    let good = begin(7, 0);
    let wrong = |words: &str, begin: &Begin| {
        let error = try_store(&repository, &made_up(begin, 80), 7, None).unwrap_err();
        assert!(error.chain().contains(words), "{words}: {}", error.chain());
    };
    wrong("isn't raw", &Begin { features: Features::LARGE_BLOCKS, ..good.clone() });
    let resumed = Features::RAW.union(Features::RESUMING);
    wrong("from its beginning", &Begin { features: resumed, ..good.clone() });
    wrong("no file system", &Begin { objset: ObjsetType::Volume, ..good.clone() });
    wrong("has GUID 8", &Begin { to_guid: 8, ..good.clone() });
    wrong("starts from 5, not nothing", &Begin { from_guid: 5, ..good.clone() });
    wrong("names no snapshot", &Begin { to_name: b"tank/pg".to_vec(), ..good.clone() });
    wrong("names no snapshot", &Begin { to_name: b"tank/pg@a/b".to_vec(), ..good.clone() });
    try_store(&repository, &made_up(&good, 80), 7, None).unwrap();
}

#[test]
fn damage_is_found_and_names_the_sets_whose_chains_have_it() {
    let memory = Memory::default();
    let repository = repository(Arc::new(memory.clone()));
    let streams = [stream(1, None), stream(2, Some(1)), stream(3, Some(2)), stream(4, None)];
    for (number, stream) in streams.iter().enumerate() {
        publish(&repository, &set_id(number), stream).unwrap();
    }
    let chains = [vec![0], vec![0, 1], vec![0, 1, 2], vec![3]];
    let mut harmed_by_packs = BTreeSet::new();
    let paths = memory.paths("volumes/").into_iter().chain(memory.paths("packs/"));
    let paths: Vec<String> = paths.filter(|path| !path.contains(FILES_IMAGE)).collect();
    assert!(paths.len() >= 4 * 5, "{paths:?}");
    for path in paths {
        let good = memory.get(&path).unwrap();
        let mut flipped = good.to_vec();
        flipped[good.len() / 2] ^= 4;
        for (bytes, what) in [
            (None, "deleted"),
            (Some(good.slice(..good.len() / 2)), "truncated"),
            (Some(flipped.into()), "flipped"),
        ] {
            match bytes {
                None => memory.delete(&path).unwrap(),
                Some(bytes) => memory.put(&path, &[bytes]).unwrap(),
            }
            let options = CheckOptions { read_data: true, known: vec![] };
            let report = check_strata(&repository.strata, &options).unwrap();
            let harmed: BTreeSet<String> =
                report.problems.iter().flat_map(|problem| problem.sets.clone()).collect();
            assert!(!harmed.is_empty(), "{what} {path}: not found");
            for (number, chain) in chains.iter().enumerate() {
                let set = set_id(number);
                match received(&repository, &set) {
                    Ok(given) => {
                        let wanted = chain.iter().map(|at| &streams[*at]);
                        assert!(given.iter().eq(wanted), "{what} {path}: {set} is wrong");
                    }
                    Err(error) => {
                        assert!(harmed.contains(&set), "{what} {path}: {set}: {error}");
                    }
                }
            }
            if path.contains("/packs/") {
                harmed_by_packs.insert(harmed);
            }
            memory.put(&path, std::slice::from_ref(&good)).unwrap();
        }
    }
    // Damage to a full stream's pack harms all sets that come from it, damage to the last one's only that set.
    let sets = |numbers: &[usize]| numbers.iter().map(|n| set_id(*n)).collect::<BTreeSet<_>>();
    assert_eq!(
        harmed_by_packs,
        BTreeSet::from([sets(&[0, 1, 2]), sets(&[1, 2]), sets(&[2]), sets(&[3])])
    );
}

#[test]
fn a_swapped_stream_is_not_given_on() {
    let memory = Memory::default();
    let repository = repository(Arc::new(memory.clone()));
    publish(&repository, &set_id(0), &stream(1, None)).unwrap();
    // Another stream under the same name, whole in itself: only the segment's own hash tells them apart.
    let descriptor = read_descriptor(&repository.strata, &image(), "1").unwrap();
    let mut writer = ImageWriter::new(&repository.strata, &image(), "1", None, &small()).unwrap();
    let other = made_up(&begin(1, 0), 8 * 11 + 8);
    ingest(&mut &other[..], &mut writer, "1", None, |_| Ok(())).unwrap();
    writer.about(descriptor.about);
    writer.finish().unwrap();
    let error = received(&repository, &set_id(0)).unwrap_err();
    assert!(error.to_string().contains("isn't the stream that was stored"), "{error}");
}

/// Whoever can write to a repository without a key gives another stream the right hash too.
#[test]
fn what_is_not_the_raw_stream_is_not_given_on() {
    let repository = repository(Arc::new(Memory::default()));
    publish(&repository, &set_id(0), &stream(1, None)).unwrap();
    let stored = read_descriptor(&repository.strata, &image(), "1").unwrap();
    let segment = Segment::of(&stored).unwrap();
    let good = begin(1, 0);
    let put = |other: &[u8]| {
        let options = small();
        let writer = ImageWriter::new(&repository.strata, &image(), "1", None, &options);
        let mut writer = writer.unwrap();
        let header = Some(Bytes::from_static(b"stream"));
        writer.changed(Change { object: STREAM, header, ..Change::default() }).unwrap();
        writer.data(0, other).unwrap();
        let blake3 = blake3::hash(other).to_hex().to_string();
        let about = Segment { stream_bytes: other.len() as u64, blake3, ..segment.clone() };
        writer.about(about.to_about().unwrap());
        writer.finish().unwrap();
        received(&repository, &set_id(0))
    };
    for (words, begin) in [
        ("isn't raw", Begin { features: Features::LARGE_BLOCKS, ..good.clone() }),
        ("has GUID 8", Begin { to_guid: 8, ..good.clone() }),
        ("starts from 5, not nothing", Begin { from_guid: 5, ..good.clone() }),
    ] {
        let error = put(&made_up(&begin, 88)).unwrap_err();
        assert!(error.chain().contains(words), "{words}: {}", error.chain());
    }
    let other = made_up(&good, 88);
    assert!(put(&other).unwrap() == [other]);
}

#[test]
fn dead_at_any_call_of_a_shipment() {
    let streams = [stream(1, None), stream(2, Some(1))];
    let ship = |repository: &Repository| -> Result<()> {
        for (number, stream) in streams.iter().enumerate() {
            if repository.read_if_there(&set_id(number))?.is_none() {
                publish(repository, &set_id(number), stream)?;
            }
        }
        Ok(())
    };
    let whole = |repository: &Repository, why: &str| {
        let (sets, damaged) = repository.sets().unwrap();
        assert!(damaged.is_empty(), "{why}");
        for (number, set) in sets.iter().enumerate() {
            let given = received(repository, set.manifest.set.as_str());
            assert!(given.unwrap() == streams[..=number], "{why}: set {number}");
        }
        sets.len()
    };
    for fault in [Fault::StopBefore, Fault::StopAfter] {
        for at in 0.. {
            let why = format!("{fault:?} at call {at}");
            let memory = Memory::default();
            let faulty = Faulty::new(Arc::new(memory.clone()), at, fault);
            let died = ship(&repository(Arc::new(faulty.clone())));
            let alive = repository(Arc::new(memory));
            whole(&alive, &why);
            if died.is_ok() {
                assert!(at > 10, "only {at} calls");
                break;
            }
            ship(&alive).unwrap_or_else(|error| panic!("{why}: {}", error.chain()));
            assert_eq!(whole(&alive, &why), 2, "{why}");
        }
    }
}

#[test]
fn what_is_stored_raw_cannot_be_looked_into() {
    let repository = repository(Arc::new(Memory::default()));
    publish(&repository, &set_id(0), &stream(1, None)).unwrap();
    let mut shipped = repository.read(&set_id(0)).unwrap();
    shipped.manifest.wal.stored = WalStored::Snapshot;
    let look = |path: &str| {
        let mut seen = Vec::new();
        let listed =
            Look::into_repository(&repository, &shipped).list(path.as_bytes(), false, |entry| {
                seen.push(String::from_utf8(entry.path).unwrap());
                Ok(())
            });
        listed.map(|()| seen)
    };
    for path in ["data", "data/base/5"] {
        let error = look(path).unwrap_err();
        assert_eq!(error.exit_code(), 4, "{error}");
        assert!(error.to_string().contains("\"tank/pg\" is stored raw"), "{error}");
        assert!(error.hint().unwrap().contains("--as zfs"), "{error}");
    }
    assert_eq!(look("files").unwrap(), Vec::<String>::new());
    let error =
        Look::into_repository(&repository, &shipped).cat(b"data/PG_VERSION", &mut Vec::new());
    assert_eq!(error.unwrap_err().exit_code(), 4);
    // WAL in a raw volume can't be looked into either; WAL stored with the set can.
    let wal =
        SetPart { kind: PartKind::Wal, path: "/srv/pg/pg_wal".into(), inside: "pg_wal".into() };
    shipped.manifest.volumes[0].parts.push(wal);
    let list = |shipped: &Shipped| {
        Look::into_repository(&repository, shipped).list(b"wal", false, |_| Ok(()))
    };
    assert_eq!(list(&shipped).unwrap_err().exit_code(), 4);
    shipped.manifest.wal.stored = WalStored::Files;
    list(&shipped).unwrap();
}
