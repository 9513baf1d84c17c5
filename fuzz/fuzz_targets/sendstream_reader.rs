//! Arbitrary bytes as a stream, with and without checksums; what can be read can be written back unchanged.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sendstream::{ReadOptions, Reader, record::Header};

fuzz_target!(|data: &[u8]| {
    let Some((choice, stream)) = data.split_first() else { return };
    let mut options = ReadOptions::default();
    if choice & 1 == 0 {
        options = options.without_checksums();
    }
    let Ok(mut reader) = Reader::with_options(stream, options) else { return };
    while let Ok(Some(record)) = reader.next_record() {
        assert!(record.payload.len() <= stream.len());
        if !matches!(record.header, Header::End(_)) {
            assert_eq!(record.header.payload_len(), record.payload.len() as u64);
        }
    }
});
