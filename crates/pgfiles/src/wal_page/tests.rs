//! A hand-made header, damaged in each field; real pages are in `tests/recorded.rs`.

use super::*;
use proptest::prelude::*;

const SYSTEM: SystemIdentifier = SystemIdentifier::new(7_711_465_982_927_306_946);
const SEGMENT: WalSegment = WalSegment { timeline: TimelineId::FIRST, number: 2 };

/// The header of PostgreSQL `magic`'s segment 2.
fn header(magic: u16) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(magic.to_le_bytes());
    bytes.extend(0x0006u16.to_le_bytes());
    bytes.extend(1u32.to_le_bytes());
    bytes.extend(0x0200_0000u64.to_le_bytes());
    bytes.extend(0u64.to_le_bytes());
    bytes.extend(SYSTEM.as_u64().to_le_bytes());
    bytes.extend((16u32 << 20).to_le_bytes());
    bytes.extend(8192u32.to_le_bytes());
    bytes
}

fn check(bytes: &[u8]) -> Result<SegmentHeader, WalPageError> {
    check_segment_header(bytes, SEGMENT, WalSegmentSize::DEFAULT, Some(SYSTEM))
}

#[test]
fn every_major_version_is_known_by_its_magic() {
    for (magic, major) in
        [(0xD106, 13), (0xD10D, 14), (0xD110, 15), (0xD113, 16), (0xD116, 17), (0xD118, 18)]
    {
        assert_eq!(check(&header(magic)).unwrap().major_version, major);
    }
    assert_eq!(check(&header(0xD101)), Err(WalPageError::UnknownMagic { magic: 0xD101 }));
    assert_eq!(check(&header(0x18D1)), Err(WalPageError::ForeignEndianness));
}

#[test]
fn each_field_is_checked() {
    let with = |at: usize, value: &[u8]| {
        let mut bytes = header(0xD118);
        bytes.splice(at..at + value.len(), value.iter().copied());
        check(&bytes).unwrap_err()
    };
    assert_eq!(with(2, &[0]), WalPageError::InvalidInfo { info: 0 });
    assert_eq!(with(3, &[1]), WalPageError::InvalidInfo { info: 0x0106 });
    assert_eq!(with(4, &[0]), WalPageError::TimelineZero);
    assert!(matches!(with(4, &[2]), WalPageError::OtherTimeline { .. }));
    assert!(matches!(with(11, &[1]), WalPageError::OtherPosition { .. }));
    assert!(matches!(with(24, &[0]), WalPageError::OtherCluster { .. }));
    assert!(matches!(with(32, &[1]), WalPageError::InvalidSegmentSize(_)));
    assert!(matches!(with(35, &[4]), WalPageError::OtherSegmentSize { .. }));
    assert_eq!(with(37, &[0]), WalPageError::InvalidBlockSize { bytes: 0 });
}

#[test]
fn the_first_segment_of_a_timeline_may_begin_on_the_one_before() {
    let later = WalSegment { timeline: TimelineId::new(3).unwrap(), ..SEGMENT };
    let found =
        check_segment_header(&header(0xD118), later, WalSegmentSize::DEFAULT, None).unwrap();
    assert_eq!(found.timeline, TimelineId::FIRST);
}

#[test]
fn a_segment_made_ahead_of_its_use_is_told_from_a_damaged_one() {
    assert_eq!(check(&[0; 8192]), Err(WalPageError::AllZero));
}

#[test]
fn truncated_at_every_offset() {
    let bytes = header(0xD118);
    for length in 0..bytes.len() {
        assert_eq!(check(&bytes[..length]), Err(WalPageError::TooShort { length }));
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
        let _ = check(&bytes);
    }

    #[test]
    fn arbitrary_fields_never_panic(fields in proptest::array::uniform32(any::<u8>())) {
        let mut bytes = header(0xD118);
        bytes.splice(4..36, fields);
        let _ = check(&bytes);
    }
}
