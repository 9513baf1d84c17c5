//! Names against a naive model: 128-bit arithmetic on positions, for every legal segment size.

use super::*;
use proptest::prelude::*;

const TLI: TimelineId = TimelineId::FIRST;

fn sizes() -> impl Strategy<Value = WalSegmentSize> {
    (20u32..=30).prop_map(|power| WalSegmentSize::new(1 << power).unwrap())
}

fn timelines() -> impl Strategy<Value = TimelineId> {
    (1u32..).prop_map(|number| TimelineId::new(number).unwrap())
}

#[test]
fn sizes_are_powers_of_two_within_limits() {
    for bytes in [1 << 20, 16 << 20, 64 << 20, 1 << 30] {
        assert_eq!(WalSegmentSize::new(bytes).unwrap().bytes(), bytes);
    }
    for bytes in [0, 1, 1 << 19, (1 << 20) + 1, 3 << 20, 1 << 31, u32::MAX] {
        assert_eq!(WalSegmentSize::new(bytes), Err(InvalidWalSegmentSize { bytes }));
    }
}

#[test]
fn names_as_servers_wrote_them() {
    // (segment size in MiB, position, name): from recorded backup_labels and pg_controldata.
    for (mib, lsn, name) in [
        (16, "0/2000028", "000000010000000000000002"),
        (16, "0/FFFFFFFF", "0000000100000000000000FF"),
        (16, "1/0", "000000010000000100000000"),
        (1, "0/E00028", "00000001000000000000000E"),
        (1, "1/0", "000000010000000100000000"),
        (1, "0/FFFFFFFF", "000000010000000000000FFF"),
        (64, "0/8000028", "000000010000000000000002"),
        (1024, "0/FFFFFFFF", "000000010000000000000003"),
        (1024, "16/B374D848", "000000010000001600000002"),
    ] {
        let size = WalSegmentSize::new(mib << 20).unwrap();
        let segment = WalSegment::containing(TLI, lsn.parse().unwrap(), size);
        assert_eq!(segment.file_name(size), name);
        assert_eq!(WalSegment::parse(name, size), Ok(segment));
    }
}

#[test]
fn a_boundary_belongs_to_the_next_segment_but_ends_the_one_before() {
    let size = WalSegmentSize::DEFAULT;
    let boundary: Lsn = "0/3000000".parse().unwrap();
    assert_eq!(WalSegment::containing(TLI, boundary, size).number, 3);
    assert_eq!(WalSegment::ending_at(TLI, boundary, size).number, 2);
    assert_eq!(WalSegment::ending_at(TLI, boundary.checked_add(1).unwrap(), size).number, 3);
    assert_eq!(WalSegment::ending_at(TLI, Lsn::INVALID, size).number, 0);
    let two = WalSegment { timeline: TLI, number: 2 };
    assert_eq!((two.start(size).as_u64(), two.end(size)), (0x0200_0000, boundary));
    assert_eq!(two.next().previous(), Some(two));
    assert_eq!(WalSegment { timeline: TLI, number: 0 }.previous(), None);
}

#[test]
fn ranges() {
    let size = WalSegmentSize::DEFAULT;
    let numbers = |from: &str, to: &str| -> Vec<u64> {
        WalSegment::range(TLI, from.parse().unwrap(), to.parse().unwrap(), size)
            .map(|s| s.number)
            .collect()
    };
    assert_eq!(numbers("0/2000028", "0/2000100"), [2]);
    assert_eq!(numbers("0/2000028", "0/3000000"), [2]);
    assert_eq!(numbers("0/2000028", "0/3000001"), [2, 3]);
    assert_eq!(numbers("0/2000000", "0/5000000"), [2, 3, 4]);
    assert_eq!(numbers("0/2000028", "0/2000028"), [0; 0]);
    assert_eq!(numbers("0/2000000", "0/2000000"), [0; 0]);
    assert_eq!(numbers("0/3000000", "0/2000000"), [0; 0]);
    let last = WalSegment::range(TLI, Lsn::new(u64::MAX - 1), Lsn::new(u64::MAX), size);
    assert_eq!(last.map(|s| s.number).collect::<Vec<_>>(), [u64::MAX >> 24]);
}

#[test]
fn all_four_kinds() {
    let size = WalSegmentSize::DEFAULT;
    let timeline = TimelineId::new(0xA).unwrap();
    // The middle word counts 4 GiB each: 256 segments of 16 MiB.
    let segment = WalSegment { timeline, number: 0x12 * 256 + 2 };
    for (name, expected) in [
        ("0000000A.history", WalFileName::History(timeline)),
        ("0000000A0000001200000002", WalFileName::Segment(segment)),
        ("0000000A0000001200000002.partial", WalFileName::Partial(segment)),
        (
            "0000000A0000001200000002.00000028.backup",
            WalFileName::BackupHistory { segment, offset: 0x28 },
        ),
    ] {
        assert_eq!(WalFileName::parse(name, size), Ok(expected));
        assert_eq!(expected.file_name(size), name);
        assert_eq!(expected.timeline(), timeline);
    }
}

#[test]
fn refusals() {
    let size = WalSegmentSize::DEFAULT;
    for name in [
        "",
        "0",
        "00000001.histor",
        "00000001.History",
        "0000000g.history",
        "00000001000000000000000",
        "0000000100000000000000020",
        "00000001000000000000000a",
        "00000001000000000000000G",
        "+00000010000000000000002",
        "000000010000000000000002.partia",
        "000000010000000000000002.PARTIAL",
        "000000010000000000000002.partial.gz",
        "000000010000000000000002.zst",
        "000000010000000000000002.0000002.backup",
        "000000010000000000000002.0000002g.backup",
        "000000010000000000000002_00000028.backup",
        "000000010000000000000002.00000028.backup ",
        "../00000001.history",
        "0000000100000000000000ü2",
        "00000001000000000000000ü",
        "0000000ü.history",
        "archive_status",
        "xlogtemp.123",
    ] {
        let error = WalFileName::parse(name, size).unwrap_err();
        assert!(matches!(error, WalNameError::NotWal { .. }), "{name:?}: {error:?}");
    }
    for name in ["000000000000000000000002", "00000000.history", "000000000000000000000002.partial"]
    {
        let error = WalFileName::parse(name, size).unwrap_err();
        assert!(matches!(error, WalNameError::TimelineZero { .. }), "{name:?}: {error:?}");
    }
    // 16 MiB segments are numbered 0 to FF within 4 GiB, and an offset is within the segment.
    for name in ["000000010000000000000100", "000000010000000000000002.01000000.backup"] {
        let error = WalFileName::parse(name, size).unwrap_err();
        assert!(matches!(error, WalNameError::WrongSegmentSize { .. }), "{name:?}: {error:?}");
    }
    // Other kinds of names aren't plain segments.
    assert!(WalSegment::parse("000000010000000000000002.partial", size).is_err());
    assert!(WalSegment::parse("00000001.history", size).is_err());
}

#[test]
fn numbers_beyond_the_address_space_do_not_wrap() {
    let beyond = WalSegment { timeline: TLI, number: u64::MAX };
    let size = WalSegmentSize::DEFAULT;
    assert_eq!(beyond.start(size), Lsn::new(u64::MAX));
    assert_eq!(beyond.end(size), Lsn::new(u64::MAX));
    assert_eq!(beyond.next(), beyond);
    assert!(
        WalSegment::parse(&beyond.file_name(size), size).is_err(),
        "never another segment's name"
    );
}

proptest! {
    #[test]
    fn positions_and_names_agree_with_wide_arithmetic(timeline in timelines(), lsn: u64, size in sizes()) {
        let bytes = u128::from(size.bytes());
        let segment = WalSegment::containing(timeline, Lsn::new(lsn), size);
        let start = u128::from(segment.number) * bytes;
        prop_assert!(start <= u128::from(lsn) && u128::from(lsn) < start + bytes);
        prop_assert_eq!(u128::from(segment.start(size).as_u64()), start);
        prop_assert_eq!(u128::from(segment.end(size).as_u64()), (start + bytes).min(u128::from(u64::MAX)));

        let name = segment.file_name(size);
        let (high, low) = (u128::from_str_radix(&name[8..16], 16).unwrap(), u128::from_str_radix(&name[16..], 16).unwrap());
        prop_assert_eq!(high * (1 << 32) + low * bytes, start);
        prop_assert_eq!(WalSegment::parse(&name, size), Ok(segment));
        prop_assert_eq!(WalSegment::ending_at(timeline, segment.end(size), size), segment);
    }

    #[test]
    fn every_kind_round_trips(timeline in timelines(), lsn: u64, size in sizes()) {
        let segment = WalSegment::containing(timeline, Lsn::new(lsn), size);
        let offset = u32::try_from(lsn % u64::from(size.bytes())).unwrap();
        for name in [
            WalFileName::Segment(segment),
            WalFileName::Partial(segment),
            WalFileName::History(timeline),
            WalFileName::BackupHistory { segment, offset },
        ] {
            prop_assert_eq!(WalFileName::parse(&name.file_name(size), size), Ok(name));
        }
    }

    #[test]
    fn a_range_is_what_a_scan_byte_by_byte_would_touch(from in 0u64..40, length in 0u64..40, size in sizes()) {
        // In steps of a quarter segment.
        let step = u64::from(size.bytes()) / 4;
        let (from, to) = (from * step, (from + length) * step);
        let mut touched: Vec<u64> = (from..to).step_by(usize::try_from(step).unwrap()).map(|at| at / (step * 4)).collect();
        touched.dedup();
        let range = WalSegment::range(TLI, Lsn::new(from), Lsn::new(to), size);
        prop_assert_eq!(range.clone().map(|s| s.number).collect::<Vec<_>>(), touched);
        prop_assert!(range.rev().is_sorted_by(|a, b| a > b));
    }

    #[test]
    fn arbitrary_names_never_panic_and_round_trip_where_read(name in "[0-9A-Fa-f.phistorybackupl]{0,48}", size in sizes()) {
        if let Ok(parsed) = WalFileName::parse(&name, size) {
            prop_assert_eq!(parsed.file_name(size), name);
        }
    }

    #[test]
    fn arbitrary_text_never_panics(name: String, size in sizes()) {
        let _ = WalFileName::parse(&name, size);
    }
}

#[test]
fn a_backup_s_note_is_known_by_its_name_alone() {
    // Segments of 1 MiB, of which a high word counts more than of larger ones.
    for name in
        ["000000010000000000000003.00000028.backup", "000000010000000000000FFF.000F0028.backup"]
    {
        assert!(is_backup_history(name), "{name}");
    }
    for name in [
        "000000010000000000000003",
        "000000010000000000000003.backup.ready",
        "00000001000000000000000.00000028.backup",
        "00000001000000000000000g.00000028.backup",
        "000000010000000000000003.partial",
        "00000002.history",
        ".backup",
        "",
    ] {
        assert!(!is_backup_history(name), "{name}");
    }
}
