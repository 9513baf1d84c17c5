//! WAL names with every segment size, LSNs, and related numbers: what can be read has only one spelling.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pgfiles::{Lsn, SystemIdentifier, TimelineId, WalFileName, WalSegment, WalSegmentSize};

fuzz_target!(|text: &str| {
    for power in 20..=30 {
        let size = WalSegmentSize::new(1 << power).expect("a legal size");
        let Ok(name) = WalFileName::parse(text, size) else { continue };
        assert_eq!(name.file_name(size), text);
        if let WalFileName::Segment(segment) = name {
            let start = segment.start(size);
            assert_eq!(WalSegment::containing(segment.timeline, start, size), segment);
            assert_eq!(WalSegment::ending_at(segment.timeline, segment.end(size), size), segment);
        }
    }
    if let Ok(lsn) = text.parse::<Lsn>() {
        assert_eq!(lsn.to_string().parse(), Ok(lsn));
    }
    if let Ok(timeline) = text.parse::<TimelineId>() {
        assert_eq!(timeline.to_string().parse(), Ok(timeline));
    }
    if let Ok(system) = text.parse::<SystemIdentifier>() {
        assert_eq!(system.to_string().parse(), Ok(system));
    }
});
