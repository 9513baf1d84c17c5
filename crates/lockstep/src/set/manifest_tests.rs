//! A manifest goes through its file unchanged, and a changed file is never trusted.

use std::os::unix::ffi::OsStrExt;

use super::*;
use crate::plan::layout::tests::tablespace;

/// A path that isn't UTF-8.
fn raw(bytes: &[u8]) -> PathBuf {
    std::ffi::OsStr::from_bytes(bytes).into()
}

/// A volume and the parts on it: part, path in the cluster, path inside the volume.
pub(crate) fn volume(dataset: &str, parts: &[(PartKind, &str, &str)]) -> SetVolume {
    let dataset = DatasetName::new(dataset).unwrap();
    SetVolume {
        pool: dataset.pool().to_owned(),
        snapshot: dataset.snapshot("lockstep-20261123T194512Z-k3fa"),
        dataset,
        guid: Guid::new(u64::MAX),
        createtxg: 12_345,
        order: 1,
        taken_at: "2026-11-23T19:45:13Z".parse().unwrap(),
        parts: parts
            .iter()
            .map(|(kind, path, inside)| SetPart {
                kind: kind.clone(),
                path: path.into(),
                inside: inside.into(),
            })
            .collect(),
    }
}

/// A set of these volumes.
pub(crate) fn manifest(id: &str, volumes: Vec<SetVolume>) -> Manifest {
    Manifest {
        version: VERSION,
        set: id.parse().unwrap(),
        cluster: "main".parse().unwrap(),
        owner: "a1b2c3d4e5f6a7b8".into(),
        label: Some("before \"the\" migration, ünïcode".into()),
        strategy: Strategy::Label,
        consistent_because: "of the label".into(),
        chosen_because: "it was asked for".into(),
        postgres: PostgresIdentity {
            major: Some(15),
            system_identifier: SystemIdentifier::new(u64::MAX),
            timeline: TimelineId::new(3).unwrap(),
            history: vec![],
            wal_segment_size: 1 << 24,
            data_checksums: true,
            standby: true,
            wal_minimal: false,
            data_directory: "/srv/pg/data".into(),
        },
        started_at: "2026-11-23T19:45:12.25Z".parse().unwrap(),
        finished_at: "2026-11-23T19:45:14.125Z".parse().unwrap(),
        data_at: None,
        consistent_at: None,
        start_lsn: Some(Lsn::new(0x200_0028)),
        stop_lsn: Some(Lsn::new(0x1_0200_0138)),
        floor_lsn: None,
        volumes,
        wal: SetWal {
            segments: vec!["000000030000000000000002".into(), "00000003.history".into()],
            stored: WalStored::Files,
            fetched: vec![],
            archived: vec!["000000030000000000000001".into()],
        },
        files: [("backup_label".to_owned(), SetFile { bytes: 5, blake3: hash(b"label") })].into(),
        warnings: vec![Warning {
            what: "fsync is off".into(),
            hint: "a power cut".into(),
            problem: false,
        }],
        tries: 2,
        seconds: Seconds { checkpoint: 0.125, snapshots: 1.500_459_043, total: 1.682_792_41 },
        checksum: String::new(),
    }
}

fn sample() -> Manifest {
    let mut volumes = vec![
        volume("t/data", &[(PartKind::Data, "/srv/pg/data", "data"), (PartKind::Wal, "/w", "wal")]),
        volume("u/n:e.s t", &[(tablespace(16_401), "/srv/ts", "")]),
    ];
    volumes[1].parts[0].path = raw(b"/srv/new\nline \\ \xff");
    volumes[1].parts[0].kind = PartKind::Tablespace { oid: 16_401, name: Some("fast one".into()) };
    manifest("20261123T194512Z-k3fa", volumes)
}

/// The same with its checksum, as it is read back.
fn sealed(manifest: &Manifest) -> Manifest {
    Manifest { checksum: manifest.own_checksum().unwrap(), ..manifest.clone() }
}

#[test]
fn it_comes_back_as_it_was() {
    let manifest = sample();
    let bytes = manifest.to_bytes().unwrap();
    let back = Manifest::parse(&bytes).unwrap();
    assert_eq!(back, sealed(&manifest));
    assert_eq!(back.to_bytes().unwrap(), bytes, "written again it is the same file");
    let text = String::from_utf8(bytes).unwrap();
    // A path that isn't UTF-8 is distinguishable from every one that is; 64-bit numbers are text.
    assert!(text.contains("\"base64\"") && text.ends_with("}\n"), "{text}");
    assert!(text.contains("\"18446744073709551615\"") && text.contains("\"0/2000028\""), "{text}");
    assert_eq!(back.parts().count(), 3);
    assert_eq!(back.volumes[1].snapshot.to_string(), "u/n:e.s t@lockstep-20261123T194512Z-k3fa");
    assert_eq!(back.wal_identity().unwrap().timeline.get(), 3);
}

#[test]
fn paths_of_any_bytes_come_back() {
    for bytes in [
        &b"/plain"[..],
        b"/sp ace",
        b"/new\nline\\",
        b"/\xff\xfe",
        b"/{\"base64\":\"eA==\"}",
        b"/\xc3\xbc",
    ] {
        let mut manifest = sample();
        manifest.postgres.data_directory = raw(bytes);
        // Inside a volume it is relative.
        manifest.volumes[0].parts[0].inside = raw(&bytes[1..]);
        let back = Manifest::parse(&manifest.to_bytes().unwrap()).unwrap();
        assert_eq!(back.postgres.data_directory, raw(bytes));
        assert_eq!(back.volumes[0].parts[0].inside, raw(&bytes[1..]));
    }
}

/// Durations are floating-point numbers, and a parser that is one bit off would make a good set a damaged one.
#[test]
fn every_duration_comes_back() {
    let mut manifest = sample();
    let mut random = fastrand::Rng::with_seed(20_261_123);
    for _ in 0..500 {
        let seconds = random.u64(..10_000_000_000) as f64 / 1e9;
        manifest.seconds =
            Seconds { checkpoint: seconds / 7.0, snapshots: seconds, total: seconds * 3.0 };
        let back = Manifest::parse(&manifest.to_bytes().unwrap())
            .unwrap_or_else(|why| panic!("{:?}: {why}", manifest.seconds));
        assert_eq!(back.seconds, manifest.seconds);
    }
}

#[test]
fn cut_anywhere_it_is_refused() {
    let bytes = sample().to_bytes().unwrap();
    // The last byte is a newline, which says nothing.
    for length in 0..bytes.len() - 1 {
        assert!(
            Manifest::parse(&bytes[..length]).is_err(),
            "believed with {length} of {} bytes",
            bytes.len()
        );
    }
}

#[test]
fn with_a_flipped_bit_it_is_refused_or_says_the_same() {
    let manifest = sample();
    let mut bytes = manifest.to_bytes().unwrap();
    let whole = sealed(&manifest);
    let mut believed = Vec::new();
    for at in 0..bytes.len() {
        for bit in [at % 8, (at + 5) % 8] {
            bytes[at] ^= 1 << bit;
            if let Ok(read) = Manifest::parse(&bytes) {
                assert_eq!(read, whole, "byte {at}, bit {bit}");
                believed.push(at);
            }
            bytes[at] ^= 1 << bit;
        }
    }
    // Blanks, and the "Z" of a time.
    assert!(believed.len() < 60, "believed with flips at {believed:?}");
}

#[test]
fn another_format_is_refused() {
    let text = String::from_utf8(sample().to_bytes().unwrap()).unwrap();
    let newer = text.replacen("\"version\": 1", "\"version\": 2", 1);
    assert!(Manifest::parse(newer.as_bytes()).unwrap_err().contains("version 2"));
    let more = text.replacen("\"version\": 1", "\"version\": 1, \"flavour\": 1", 1);
    assert!(Manifest::parse(more.as_bytes()).unwrap_err().contains("flavour"));
    let swapped = text.replacen("\"order\": 1", "\"order\": 2", 1);
    assert!(Manifest::parse(swapped.as_bytes()).unwrap_err().contains("checksum"));
    for strange in ["", "null", "[]", "{}", "{\"version\": \"1\"}", "\0"] {
        assert!(Manifest::parse(strange.as_bytes()).is_err(), "{strange:?}");
    }
}

/// Anybody who can write to a repository can make a manifest with a valid checksum.
#[test]
fn a_value_that_cannot_be_is_refused_by_name_when_it_is_read() {
    let good = serde_json::to_value(sample()).unwrap();
    let with = |place: &str, value: serde_json::Value| {
        let mut manifest = good.clone();
        *manifest.pointer_mut(place).unwrap() = value;
        manifest["checksum"] = "".into();
        manifest["checksum"] = hash(&serde_json::to_vec(&manifest).unwrap()).into();
        Manifest::parse(&serde_json::to_vec(&manifest).unwrap()).unwrap_err()
    };
    for (place, value, words) in [
        ("/postgres/system_identifier", "7x".into(), "\"7x\" is not a system identifier"),
        ("/postgres/timeline", 0.into(), "0 is not a timeline"),
        ("/volumes/0/guid", "17a".into(), "\"17a\" is no GUID"),
        ("/volumes/0/snapshot", "t/data".into(), "\"t/data\" is no snapshot"),
        ("/volumes/0/snapshot", "t/data@a,b".into(), "\"t/data@a,b\" is no snapshot"),
    ] {
        let why = with(place, value);
        assert!(why.contains(words), "{place}: {why}");
    }
}

#[test]
fn files_are_hashed_in_pieces_as_in_one() {
    let path = std::env::temp_dir().join(format!("lockstep-hash-{}", std::process::id()));
    let bytes = vec![7u8; 300_000];
    std::fs::write(&path, &bytes).unwrap();
    assert_eq!(hash_file(&path).unwrap(), SetFile { bytes: 300_000, blake3: hash(&bytes) });
    std::fs::remove_file(&path).unwrap();
    assert!(hash_file(&path).is_err());
}
