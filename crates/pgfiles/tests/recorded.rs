//! Real files of PostgreSQL 14 to 18, and 13's made from 14's, compared with PostgreSQL's own tools and bytes.

mod support {
    pub mod controldata;
    mod files;
    pub use files::*;
}

use pgfiles::backup_label::{BackupFrom, BackupMethod};
use pgfiles::control_file::{ControlFileError, DbState, WalLevel};
use pgfiles::wal_page::{SegmentHeader, WalPageError, check_segment_header};
use pgfiles::{
    BackupLabel, ControlFile, Lsn, SystemIdentifier, TablespaceMap, TimelineHistory, TimelineId,
    WalFileName, WalSegment, WalSegmentSize,
};
use support::{MAJORS, control_files, controldata, recordings};

fn tli(number: u32) -> TimelineId {
    TimelineId::new(number).unwrap()
}

#[test]
fn every_field_is_what_pg_controldata_says() {
    for (name, major, bytes, said) in control_files() {
        let control = ControlFile::parse(&bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
        let differences = controldata::differences(&controldata::expected(&control, major), &said);
        assert!(differences.is_empty(), "{name}:\n{}", differences.join("\n"));
        assert_eq!(control.major_version(), Some(major), "{name}");
        assert_eq!(control.to_bytes(), bytes, "{name}");
        // pg_controldata doesn't print it.
        let level = (major >= 17).then_some(control.wal_level);
        assert_eq!(control.checkpoint_copy.wal_level, level, "{name}");
    }
}

#[test]
fn the_recordings_hold_what_they_are_there_for() {
    let mut states = Vec::new();
    for (name, _, bytes, _) in control_files() {
        let control = ControlFile::parse(&bytes).unwrap();
        let state = name.rsplit('/').next().unwrap();
        let expected = match state {
            "production" | "crashed" | "promoted" => DbState::InProduction,
            "shutdown" => DbState::ShutDowned,
            "standby" | "restoring" => DbState::InArchiveRecovery,
            "standby-shutdown" => DbState::ShutDownedInRecovery,
            _ => panic!("{name} is in no list"),
        };
        assert_eq!(control.state, expected, "{name}");
        assert_eq!(
            control.min_recovery_point != Lsn::INVALID,
            state.starts_with("standby") || state == "restoring",
            "{name}"
        );
        assert_eq!(control.backup_end_required, state == "restoring", "{name}");
        assert_eq!(
            control.checkpoint_copy.timeline,
            tli(if state == "promoted" { 3 } else { 1 }),
            "{name}"
        );
        if !name.contains("segments-of") {
            assert_eq!(
                (control.max_connections, control.wal_level),
                (37, WalLevel::Logical),
                "{name}"
            );
        }
        states.push(control.wal_segment_size.bytes() >> 20);
    }
    for mib in [1, 16, 64] {
        assert!(states.contains(&mib), "no cluster with segments of {mib} MiB");
    }
}

#[test]
fn every_single_bit_of_every_control_file_matters() {
    for (name, major, bytes, _) in control_files() {
        let used = if major >= 18 { 292 } else { 288 };
        for at in 0..used + 4 {
            for bit in 0..8 {
                let mut damaged = bytes.clone();
                damaged[at] ^= 1 << bit;
                let error = ControlFile::parse(&damaged).unwrap_err();
                let caught = match at {
                    8..12 => matches!(error, ControlFileError::UnknownVersion { .. }),
                    _ => matches!(error, ControlFileError::WrongCrc { .. }),
                };
                assert!(caught, "{name}: bit {bit} of byte {at}: {error}");
            }
        }
    }
}

#[test]
fn version_13_has_the_format_of_14_and_a_catalog_version_of_its_own() {
    for recording in recordings().iter().filter(|recording| recording.major == 14) {
        for (name, mut bytes) in recording.files(".pg_control") {
            bytes[12..16].copy_from_slice(&202_007_201u32.to_le_bytes());
            let crc = crc32c::crc32c(&bytes[..288]);
            bytes[288..292].copy_from_slice(&crc.to_le_bytes());
            let control = ControlFile::parse(&bytes).unwrap();
            assert_eq!(control.major_version(), Some(13), "{name}");
        }
    }
}

#[test]
fn backup_labels_are_read_and_written_byte_for_byte() {
    let mut seen = 0;
    for recording in recordings() {
        for (name, bytes) in recording.files(".backup_label") {
            let place = format!("{}/{name}", recording.folder.display());
            let label =
                BackupLabel::parse(&bytes).unwrap_or_else(|error| panic!("{place}: {error}"));
            assert_eq!(label.to_bytes(), bytes, "{place}");
            let standby = name == "standby";
            assert_eq!(
                label.from,
                if standby { BackupFrom::Standby } else { BackupFrom::Primary },
                "{place}"
            );
            let exclusive = name == "exclusive";
            let method =
                if exclusive { BackupMethod::PgStartBackup } else { BackupMethod::Streamed };
            assert_eq!(label.method, method, "{place}");
            let segment = label.start_segment(recording.segment_size()).unwrap();
            assert_eq!(segment.timeline, tli(1), "{place}");
            for length in 0..bytes.len() {
                assert!(
                    BackupLabel::parse(&bytes[..length]).is_err(),
                    "{place}, {length} bytes of it"
                );
            }
            seen += 1;
        }
    }
    assert_eq!(seen, MAJORS.len() * 4 + 1);
}

#[test]
fn a_label_made_from_a_standbys_control_file_is_the_one_its_server_wrote() {
    // The standby wrote its label right after the control file was recorded, from the same restartpoint.
    for recording in recordings() {
        let Some(bytes) = recording.files(".backup_label").remove("standby") else {
            continue;
        };
        let control = ControlFile::parse(&recording.file("standby.pg_control")).unwrap();
        let theirs = BackupLabel::parse(&bytes).unwrap();
        let ours = BackupLabel::from_control_file(
            &control,
            BackupFrom::Standby,
            &theirs.start_time,
            &theirs.label,
        )
        .unwrap();
        assert_eq!(ours.to_bytes(), bytes, "{}", recording.folder.display());
    }
}

#[test]
fn tablespace_maps_are_read_and_written_byte_for_byte() {
    let mut seen = 0;
    for recording in recordings() {
        for (name, bytes) in recording.files(".tablespace_map") {
            let place = format!("{}/{name}", recording.folder.display());
            let map =
                TablespaceMap::parse(&bytes).unwrap_or_else(|error| panic!("{place}: {error}"));
            assert_eq!(map.to_bytes(), bytes, "{place}");
            if name == "primary" && !place.contains("segments-of") {
                let mut endings: Vec<_> = map
                    .entries
                    .iter()
                    .map(|entry| entry.path.rsplit(|&b| b == b'/').next().unwrap())
                    .collect();
                endings.sort_unstable();
                let expected: [&[u8]; 7] = [
                    b"back\\slash",
                    b"both\\\nin a row",
                    b"carriage\rreturn",
                    b"ends with\\",
                    b"new\nline",
                    b"plain",
                    b"with space",
                ];
                assert_eq!(endings, expected, "{place}");
                // 13 would write the same paths differently, and can't write the last one at all.
                let sayable =
                    map.entries.iter().filter(|entry| !entry.path.ends_with(b"\\")).cloned();
                let sayable = TablespaceMap { entries: sayable.collect() };
                let bytes = sayable.to_bytes_13().unwrap();
                assert_ne!(bytes, sayable.to_bytes());
                assert_eq!(TablespaceMap::parse_13(&bytes), Ok(sayable));
                assert!(map.to_bytes_13().is_err());
            }
            seen += 1;
        }
    }
    assert_eq!(seen, MAJORS.len() * 4);
}

#[test]
fn histories_are_read_and_written_byte_for_byte() {
    let mut seen = 0;
    for recording in recordings() {
        for (name, bytes) in recording.files(".history") {
            let place = format!("{}/{name}", recording.folder.display());
            let file_name = format!("{name}.history");
            let Ok(WalFileName::History(timeline)) =
                WalFileName::parse(&file_name, WalSegmentSize::DEFAULT)
            else {
                panic!("{place} is no history's name")
            };
            let history = TimelineHistory::parse(timeline, &bytes)
                .unwrap_or_else(|error| panic!("{place}: {error}"));
            assert_eq!(history.to_bytes(), bytes, "{place}");
            let parents: Vec<_> =
                history.switches().iter().map(|switch| switch.timeline.get()).collect();
            assert_eq!(parents, (1..timeline.get()).collect::<Vec<_>>(), "{place}");
            // Rebuilt step by step, as the servers did.
            let mut again = TimelineHistory::root(tli(1));
            for (switch, child) in history.switches().iter().zip(2..) {
                again = again.branch(tli(child), switch.lsn, &switch.reason).unwrap();
            }
            assert_eq!(again, history, "{place}");
            seen += 1;
        }
    }
    assert_eq!(seen, MAJORS.len() * 2);
}

#[test]
fn first_pages_tell_what_their_names_say() {
    let mut seen = 0;
    for recording in recordings() {
        let (size, control) = (recording.segment_size(), recording.control());
        for (name, page) in recording.files(".page") {
            let place = format!("{}/{name}", recording.folder.display());
            let segment = WalSegment::parse(&name, size).unwrap();
            // The standby's segment belongs to the same cluster as its primary's.
            let check = |segment, size, system| check_segment_header(&page, segment, size, system);
            let header = check(segment, size, Some(control.system_identifier))
                .unwrap_or_else(|error| panic!("{place}: {error}"));
            assert_eq!(header.major_version, recording.major, "{place}");
            assert_eq!(header.block_size, control.wal_block_size, "{place}");
            assert_eq!(header.timeline < segment.timeline, segment.timeline > tli(1), "{place}");

            let stranger = SystemIdentifier::new(control.system_identifier.as_u64() + 1);
            assert!(matches!(
                check(segment, size, Some(stranger)),
                Err(WalPageError::OtherCluster { .. })
            ));
            let other = WalSegmentSize::new(size.bytes() * 2).unwrap();
            assert!(matches!(
                check(segment, other, None),
                Err(WalPageError::OtherSegmentSize { .. })
            ));
            assert!(matches!(
                check(segment.next(), size, None),
                Err(WalPageError::OtherPosition { .. })
            ));
            for length in 0..40 {
                assert!(
                    SegmentHeader::parse(&page[..length]).is_err(),
                    "{place}, {length} bytes of it"
                );
            }

            if recording.major == 14 {
                let mut thirteen = page.clone();
                thirteen[..2].copy_from_slice(&0xD106u16.to_le_bytes());
                assert_eq!(SegmentHeader::parse(&thirteen).unwrap().major_version, 13, "{place}");
            }
            seen += 1;
        }
    }
    assert_eq!(seen, MAJORS.len() * 4);
}
