//! The file's text as PostgreSQL writes it, with each line damaged in turn; real files are in `tests/recorded.rs`.

use super::*;
use proptest::prelude::*;

const LABEL: &str = "START WAL LOCATION: 0/2000028 (file 000000010000000000000002)
CHECKPOINT LOCATION: 0/2000080
BACKUP METHOD: streamed
BACKUP FROM: primary
START TIME: 2026-03-01 12:00:00 UTC
LABEL: nightly
START TIMELINE: 1
";

fn parse(text: &str) -> Result<BackupLabel, BackupLabelError> {
    BackupLabel::parse(text.as_bytes())
}

#[test]
fn every_line_is_read() {
    let label = parse(LABEL).unwrap();
    assert_eq!(label.start_lsn.to_string(), "0/2000028");
    assert_eq!(label.start_segment_name, "000000010000000000000002");
    assert_eq!(label.checkpoint_lsn.to_string(), "0/2000080");
    assert_eq!((label.method, label.from), (BackupMethod::Streamed, BackupFrom::Primary));
    assert_eq!(label.start_time, "2026-03-01 12:00:00 UTC");
    assert_eq!(label.label, "nightly");
    assert_eq!(label.start_timeline, TimelineId::FIRST);
    assert_eq!(label.to_bytes(), LABEL.as_bytes());
    assert_eq!(LABEL.parse(), Ok(label));
}

#[test]
fn a_label_may_hold_anything_but_postgresqls_own_lines() {
    for text in [
        "",
        " ",
        "two\nlines",
        "LABEL: x",
        "a\nSTART TIMELINE: 9",
        "STOP TIME: \n",
        "ünïcödé",
        "\n\n",
        "a\r",
    ] {
        let written = LABEL.replace("nightly", text);
        let label = parse(&written).unwrap();
        assert_eq!(
            (label.label.as_str(), label.start_timeline),
            (text, TimelineId::FIRST),
            "{text:?}"
        );
        assert_eq!(label.to_bytes(), written.as_bytes());
    }
}

#[test]
fn an_incremental_backup_is_refused_by_name() {
    let incremental = format!("{LABEL}INCREMENTAL FROM LSN: 0/2000028\nINCREMENTAL FROM TLI: 1\n");
    assert_eq!(parse(&incremental), Err(BackupLabelError::Incremental));
    // PostgreSQL takes such a line for its own wherever it is.
    let in_label = LABEL.replace("nightly", "x\nINCREMENTAL FROM LSN: 0/1");
    assert_eq!(parse(&in_label), Err(BackupLabelError::Incremental));
}

#[test]
fn a_missing_line_is_named() {
    let lines: Vec<&str> = LABEL.lines().collect();
    for (index, missing) in lines.iter().enumerate() {
        let name = missing.split_inclusive(':').next().unwrap();
        let text: String =
            lines.iter().filter(|line| *line != missing).map(|line| format!("{line}\n")).collect();
        let error = parse(&text).unwrap_err();
        assert!(
            matches!(error, BackupLabelError::MissingLine { line, .. } if line == name),
            "{index}: {error:?}"
        );
    }
}

#[test]
fn each_value_is_checked() {
    for (from, to) in [
        ("0/2000028 (file", "0/200002G (file"),
        ("0/2000028 (file", "2000028 (file"),
        ("0/2000028 (file", "0/2000028 (File"),
        ("000000010000000000000002)", "000000010000000000000002"),
        ("000000010000000000000002", "00000001000000000000000a"),
        ("000000010000000000000002", "0000000100000000000002"),
        ("000000010000000000000002", "000000000000000000000002"),
        ("LOCATION: 0/2000080", "LOCATION: 0/2000080 "),
        ("METHOD: streamed", "METHOD: Streamed"),
        ("METHOD: streamed", "METHOD: "),
        ("FROM: primary", "FROM: master"),
        ("TIMELINE: 1", "TIMELINE: 0"),
        ("TIMELINE: 1", "TIMELINE: 1 "),
        ("TIMELINE: 1", "TIMELINE: +1"),
        ("TIMELINE: 1", "TIMELINE: 4294967296"),
        ("TIMELINE: 1", "TIMELINE: 1\nSTOP TIME: now"),
    ] {
        let error = parse(&LABEL.replace(from, to)).unwrap_err();
        assert!(matches!(error, BackupLabelError::InvalidValue { .. }), "{to:?}: {error:?}");
    }
    let swapped = LABEL.replace("0/2000080", "0/2000020");
    assert!(matches!(parse(&swapped), Err(BackupLabelError::CheckpointBeforeStart { .. })));
    let other = LABEL.replace("TIMELINE: 1", "TIMELINE: 2");
    assert!(matches!(parse(&other), Err(BackupLabelError::TimelinesDiffer { .. })));
    assert_eq!(BackupLabel::parse(b"START\xFF"), Err(BackupLabelError::NotUtf8 { offset: 5 }));
}

#[test]
fn an_error_points_at_the_value() {
    let error = parse(&LABEL.replace("primary", "moon")).unwrap_err().to_string();
    let offset = LABEL.find("primary").unwrap();
    assert_eq!(
        error,
        format!("invalid value \"moon\" of \"BACKUP FROM\" in backup_label at offset \"{offset}\"")
    );
    let error = parse(&LABEL.replace("TIMELINE: 1", "TIMELINE: x")).unwrap_err();
    let offset = LABEL.len() - 2;
    assert!(
        matches!(error, BackupLabelError::InvalidValue { offset: at, .. } if at == offset),
        "{error:?}"
    );
}

#[test]
fn the_segment_must_hold_the_start() {
    let label = parse(LABEL).unwrap();
    let segment = label.start_segment(WalSegmentSize::DEFAULT).unwrap();
    assert_eq!((segment.timeline, segment.number), (TimelineId::FIRST, 2));
    let other = WalSegmentSize::new(1 << 20).unwrap();
    assert!(matches!(label.start_segment(other), Err(BackupLabelError::SegmentDiffers { .. })));
    let odd =
        parse(&LABEL.replace("000000010000000000000002", "000000010000000000000FFF")).unwrap();
    assert!(matches!(
        odd.start_segment(WalSegmentSize::DEFAULT),
        Err(BackupLabelError::SegmentName(_))
    ));
}

#[test]
fn truncated_at_every_offset() {
    for length in 0..LABEL.len() {
        assert!(parse(&LABEL[..length]).is_err(), "{length}");
    }
}

fn labels() -> impl Strategy<Value = BackupLabel> {
    let methods = prop_oneof![Just(BackupMethod::Streamed), Just(BackupMethod::PgStartBackup)];
    let froms = prop_oneof![Just(BackupFrom::Primary), Just(BackupFrom::Standby)];
    let size = WalSegmentSize::DEFAULT;
    (any::<u64>(), any::<u64>(), 1u32.., methods, froms, "[^\n]{0,30}", "[a-zA-Z0-9 :\n\"ü]{0,40}")
        .prop_map(move |(a, b, timeline, method, from, start_time, label)| {
            let (start_lsn, checkpoint_lsn) = (Lsn::new(a.min(b)), Lsn::new(a.max(b)));
            let start_timeline = TimelineId::new(timeline).unwrap();
            let start_segment_name =
                WalSegment::containing(start_timeline, start_lsn, size).file_name(size);
            BackupLabel {
                start_lsn,
                start_segment_name,
                checkpoint_lsn,
                method,
                from,
                start_time,
                label,
                start_timeline,
            }
        })
}

proptest! {
    #[test]
    fn round_trips(label in labels()) {
        prop_assert_eq!(BackupLabel::parse(&label.to_bytes()), Ok(label.clone()));
        prop_assert!(label.start_segment(WalSegmentSize::DEFAULT).is_ok());
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
        let _ = BackupLabel::parse(&bytes);
    }

    #[test]
    fn one_byte_changed_never_panics_and_reads_back_what_it_says(at in 0..LABEL.len(), byte: u8) {
        let mut bytes = LABEL.as_bytes().to_vec();
        bytes[at] = byte;
        if let Ok(label) = BackupLabel::parse(&bytes) {
            prop_assert_eq!(BackupLabel::parse(&label.to_bytes()), Ok(label));
        }
    }
}
