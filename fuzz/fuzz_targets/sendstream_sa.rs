//! Arbitrary bytes as a registry, layouts, and attributes that use them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sendstream::zpl::{AttributeTables, Attributes, Zap, ZapValue, decode_attributes};

const NAMES: [&str; 12] = [
    "ZPL_MODE",
    "ZPL_SIZE",
    "ZPL_GEN",
    "ZPL_UID",
    "ZPL_GID",
    "ZPL_PARENT",
    "ZPL_FLAGS",
    "ZPL_MTIME",
    "ZPL_LINKS",
    "ZPL_SYMLINK",
    "ZPL_DXATTR",
    "ZPL_ATIME",
];

fuzz_target!(|data: &[u8]| {
    let Some((lengths, rest)) = data.split_first_chunk::<12>() else { return };
    let Some((layout, bonus)) = rest.split_first_chunk::<16>() else { return };
    let registry: Zap = NAMES
        .iter()
        .zip(lengths)
        .enumerate()
        .map(|(number, (name, length))| {
            let packed = u64::from(*length) << 24 | number as u64;
            (name.as_bytes().to_vec(), ZapValue { width: 8, numbers: vec![packed] })
        })
        .collect();
    let numbers = layout.iter().map(|number| u64::from(number % 13)).collect();
    let layouts: Zap = [(b"2".to_vec(), ZapValue { width: 2, numbers })].into_iter().collect();
    let tables = AttributeTables::new(&registry, &layouts);
    let mut attributes = Attributes::default();
    let _ = decode_attributes(1, &tables, bonus, &mut attributes);
    assert!(attributes.symlink.is_none_or(|target| target.len() <= bonus.len()));
});
