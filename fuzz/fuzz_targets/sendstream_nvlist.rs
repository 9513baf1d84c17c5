//! Arbitrary bytes as a packed name-value list.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sendstream::NvList;

fuzz_target!(|data: &[u8]| {
    if let Ok(list) = NvList::parse(data) {
        assert!(list.pairs().count() <= data.len());
    }
});
