//! Arbitrary bytes as a ZAP, with blocks of any size.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sendstream::zpl::{SparseContent, Zap};

fuzz_target!(|data: &[u8]| {
    let Some((shift, content)) = data.split_first() else { return };
    let mut sparse = SparseContent::default();
    // In pieces, so that blocks cross their borders.
    let piece = if shift & 0x80 == 0 { content.len().max(1) } else { 777 };
    for (index, bytes) in content.chunks(piece).enumerate() {
        sparse.push((index * piece) as u64, bytes);
    }
    if let Ok(zap) = Zap::parse(1, &sparse, 1 << (shift & 31)) {
        for (name, _) in zap.entries() {
            let _ = zap.get(name);
        }
    }
});
