//! backup_label: what can be read is written back unchanged, except for the spelling of numbers.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pgfiles::{BackupLabel, WalSegmentSize};

fuzz_target!(|bytes: &[u8]| {
    let Ok(label) = BackupLabel::parse(bytes) else { return };
    let written = label.to_bytes();
    assert!(written.len() <= bytes.len(), "grew");
    assert_eq!(BackupLabel::parse(&written).as_ref(), Ok(&label));
    if let Ok(segment) = label.start_segment(WalSegmentSize::DEFAULT) {
        assert_eq!(segment.file_name(WalSegmentSize::DEFAULT), label.start_segment_name);
    }
});
