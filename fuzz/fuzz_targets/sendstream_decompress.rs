//! Arbitrary bytes as a compressed block.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sendstream::Decompressor;

fuzz_target!(|data: &[u8]| {
    let Some((header, input)) = data.split_first_chunk::<3>() else { return };
    let length = usize::from(u16::from_le_bytes([header[1], header[2]])) + 1;
    if let Ok(output) = Decompressor::new().decompress(header[0] % 18, input, length) {
        assert_eq!(output.len(), length);
    }
});
