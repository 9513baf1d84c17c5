//! Files made from a real one, damaged in ways that the CRC can't show; everything else is in `tests/recorded.rs`.

use super::*;
use proptest::prelude::*;

/// A PostgreSQL 18 primary's file.
const REAL: &[u8; PG_CONTROL_FILE_SIZE] = include_bytes!("../../testdata/18/production.pg_control");
/// The same for 16, in the oldest format.
const OLDEST: &[u8; PG_CONTROL_FILE_SIZE] =
    include_bytes!("../../testdata/16/production.pg_control");

/// Returns the file with bytes replaced and its CRC corrected.
fn with(file: &[u8], at: usize, value: &[u8]) -> Vec<u8> {
    let layout = Layout::of(file.try_into().unwrap()).unwrap();
    let mut bytes = file.to_vec();
    bytes[at..at + value.len()].copy_from_slice(value);
    layout.write_crc(&mut bytes);
    bytes
}

#[test]
fn truncated_or_extended() {
    for length in 0..REAL.len() {
        assert_eq!(
            ControlFile::parse(&REAL[..length]),
            Err(ControlFileError::WrongLength { length })
        );
    }
    let longer = [&REAL[..], b"\0"].concat();
    assert_eq!(ControlFile::parse(&longer), Err(ControlFileError::WrongLength { length: 8193 }));
}

#[test]
fn versions_and_byte_orders_are_told_apart_before_the_crc() {
    let mut bytes = REAL.to_vec();
    bytes[8..12].copy_from_slice(&1201u32.to_le_bytes());
    assert_eq!(ControlFile::parse(&bytes), Err(ControlFileError::UnknownVersion { version: 1201 }));
    bytes[8..12].copy_from_slice(&1800u32.to_be_bytes());
    assert_eq!(
        ControlFile::parse(&bytes),
        Err(ControlFileError::ForeignEndianness { version: 1800 })
    );
    assert_eq!(
        ControlFile::parse(&[0; 8192]),
        Err(ControlFileError::UnknownVersion { version: 0 })
    );
}

#[test]
fn values_no_server_writes_are_refused_by_name() {
    for (file, at, value, field) in [
        (REAL, 16, &[7u8][..], "state"),
        (REAL, 48, &[0; 4], "checkPointCopy.ThisTimeLineID"),
        (REAL, 56, &[2], "checkPointCopy.fullPageWrites"),
        (REAL, 60, &[3], "checkPointCopy.wal_level"),
        (REAL, 168, &[2], "backupEndRequired"),
        (REAL, 172, &[3], "wal_level"),
        (REAL, 176, &[2], "wal_log_hints"),
        (REAL, 200, &[255], "track_commit_timestamp"),
        (REAL, 217, &[0x21], "blcksz"),
        (REAL, 225, &[0], "xlog_blcksz"),
        (REAL, 228, &[1], "xlog_seg_size"),
        (REAL, 248, &[2], "float8ByVal"),
        (REAL, 256, &[2], "default_char_signedness"),
    ] {
        let error = ControlFile::parse(&with(file, at, value)).unwrap_err();
        assert!(
            matches!(error, ControlFileError::InvalidValue { field: named, offset, .. } if named == field && offset <= at),
            "{field}: {error:?}"
        );
    }
    // What is padding or part of the nonce in 1300 isn't taken for the later formats' fields.
    let padding = ControlFile::parse(&with(OLDEST, 60, &[3])).unwrap();
    assert_eq!(padding.checkpoint_copy.wal_level, None);
    let nonce = ControlFile::parse(&with(OLDEST, 256, &[2])).unwrap();
    assert_eq!((nonce.default_char_signedness, nonce.mock_authentication_nonce[0]), (None, 2));
    let floats = with(REAL, 208, &1.5f64.to_le_bytes());
    assert_eq!(
        ControlFile::parse(&floats),
        Err(ControlFileError::ForeignFloats { found: "1.5".into() })
    );
}

#[test]
fn majors() {
    for (catalog, major) in [
        (202_007_201, Some(13)),
        (202_107_181, Some(14)),
        (202_209_061, Some(15)),
        (202_307_071, Some(16)),
        (202_307_072, None),
    ] {
        let bytes = with(OLDEST, 12, &u32::to_le_bytes(catalog));
        assert_eq!(ControlFile::parse(&bytes).unwrap().major_version(), major);
    }
    assert_eq!(ControlFile::parse(REAL).unwrap().major_version(), Some(18));
}

#[test]
fn what_lies_behind_the_crc_is_kept() {
    // Forks may store things of their own there.
    let mut bytes = REAL.to_vec();
    bytes[4096..4100].copy_from_slice(b"fork");
    let control = ControlFile::parse(&bytes).unwrap();
    assert_eq!(control.to_bytes(), bytes);
    assert_eq!(control.with_checkpoint_unusable()[4096..4100], *b"fork");
}

/// Returns the offsets at which two files differ.
fn differences(a: &[u8], b: &[u8]) -> Vec<usize> {
    assert_eq!((a.len(), b.len()), (PG_CONTROL_FILE_SIZE, PG_CONTROL_FILE_SIZE));
    (0..a.len()).filter(|&at| a[at] != b[at]).collect()
}

#[test]
fn writers_change_their_fields_and_the_crc_alone() {
    for (file, crc) in [(OLDEST, 288..292), (REAL, 292..296)] {
        let control = ControlFile::parse(file).unwrap();

        let bytes = control.with_checkpoint_unusable();
        let written = ControlFile::parse(&bytes).unwrap();
        assert_eq!(written.checkpoint, UNUSABLE_CHECKPOINT);
        assert_eq!(written.checkpoint_copy, control.checkpoint_copy);
        assert!(
            differences(file, &bytes).iter().all(|at| (32..40).contains(at) || crc.contains(at))
        );

        let (lsn, timeline) = (Lsn::new(0x1234_5678_9ABC), TimelineId::new(7).unwrap());
        let bytes = control.with_min_recovery_point(lsn, timeline);
        let written = ControlFile::parse(&bytes).unwrap();
        assert_eq!((written.min_recovery_point, written.min_recovery_point_timeline), (lsn, 7));
        assert_eq!(written.checkpoint, control.checkpoint);
        assert!(
            differences(file, &bytes).iter().all(|at| (136..148).contains(at) || crc.contains(at))
        );
    }
}

#[test]
fn the_unusable_checkpoint_is_in_no_segment_that_exists() {
    use crate::wal_name::WalSegment;
    assert_ne!(UNUSABLE_CHECKPOINT, Lsn::INVALID);
    for power in 20..=30 {
        let size = WalSegmentSize::new(1 << power).unwrap();
        assert_eq!(WalSegment::containing(TimelineId::FIRST, UNUSABLE_CHECKPOINT, size).number, 0);
    }
    // XRecOffIsValid: not within a page's header, or PostgreSQL would complain of the position itself.
    assert!(UNUSABLE_CHECKPOINT.as_u64() % 8192 >= 40);
}

proptest! {
    #[test]
    fn arbitrary_fields_under_a_right_crc_never_panic(at in 0usize..288, value: [u8; 4], oldest: bool) {
        let file: &[u8] = if oldest { OLDEST } else { REAL };
        let mut bytes = file.to_vec();
        bytes[at..at + 4].copy_from_slice(&value);
        if let Ok(layout) = Layout::of(bytes.as_slice().try_into().unwrap()) {
            layout.write_crc(&mut bytes);
            if let Ok(control) = ControlFile::parse(&bytes) {
                prop_assert_eq!(control.to_bytes(), bytes);
            }
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 400), version in 0usize..3) {
        bytes.resize(PG_CONTROL_FILE_SIZE, 0);
        bytes[8..12].copy_from_slice(&[1300u32, 1700, 1800][version].to_le_bytes());
        let layout = Layout::of(bytes.as_slice().try_into().unwrap()).unwrap();
        let wrong = matches!(ControlFile::parse(&bytes), Err(ControlFileError::WrongCrc { .. }));
        prop_assert!(wrong);
        layout.write_crc(&mut bytes);
        let _ = ControlFile::parse(&bytes);
    }

    #[test]
    fn a_label_is_made_of_any_control_file(redo: u64, behind in 0u64..1 << 40, timeline in 1u32.., text in "[a-z\n]{0,20}") {
        let checkpoint = redo.saturating_add(behind);
        let bytes = with(REAL, 32, &checkpoint.to_le_bytes());
        let bytes = with(&bytes, 40, &redo.to_le_bytes());
        let control = ControlFile::parse(&with(&bytes, 48, &timeline.to_le_bytes())).unwrap();
        let from = crate::backup_label::BackupFrom::Standby;
        let label = crate::BackupLabel::from_control_file(&control, from, "2026-03-01 12:00:00 UTC", &text).unwrap();
        prop_assert_eq!(label.start_lsn, control.checkpoint_copy.redo);
        prop_assert_eq!(label.checkpoint_lsn, control.checkpoint);
        prop_assert!(label.start_segment(control.wal_segment_size).is_ok());
    }
}

#[test]
fn a_label_that_could_not_be_read_back_is_not_made() {
    use crate::backup_label::{BackupFrom, BackupLabel, BackupLabelError};
    let control = ControlFile::parse(REAL).unwrap();
    let make = |time: &str, label: &str| {
        BackupLabel::from_control_file(&control, BackupFrom::Primary, time, label)
    };
    assert!(make("now", "fine").is_ok());
    assert!(make("now", &"x".repeat(1024)).is_ok());
    assert_eq!(make("now", &"x".repeat(1025)), Err(BackupLabelError::NotWritable));
    assert!(make("two\nlines", "fine").is_err());
    assert!(make("now", "a\nINCREMENTAL FROM LSN: 0/1").is_err());
    // A start time that contains "LABEL: " would move the border between the two.
    assert_eq!(make("now\nLABEL: a", "b"), Err(BackupLabelError::NotWritable));
    // A file made unusable names a checkpoint where there is none.
    let unusable = ControlFile::parse(&control.with_checkpoint_unusable()).unwrap();
    let refused = BackupLabel::from_control_file(&unusable, BackupFrom::Primary, "now", "x");
    assert!(matches!(refused, Err(BackupLabelError::CheckpointBeforeStart { .. })));
}
