//! The first page of a WAL segment: what can be read is what its own name says.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pgfiles::WalSegment;
use pgfiles::wal_page::{SegmentHeader, check_segment_header};

fuzz_target!(|bytes: &[u8]| {
    let Ok(header) = SegmentHeader::parse(bytes) else { return };
    let segment = WalSegment::containing(header.timeline, header.page_addr, header.segment_size);
    let aligned = segment.start(header.segment_size) == header.page_addr;
    let checked =
        check_segment_header(bytes, segment, header.segment_size, Some(header.system_identifier));
    assert_eq!(checked.is_ok(), aligned);
});
