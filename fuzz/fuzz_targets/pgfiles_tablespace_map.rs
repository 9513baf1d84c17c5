//! tablespace_map with both ways of escaping.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pgfiles::TablespaceMap;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(map) = TablespaceMap::parse(bytes) {
        assert_eq!(TablespaceMap::parse(&map.to_bytes()).as_ref(), Ok(&map));
    }
    if let Ok(map) = TablespaceMap::parse_13(bytes) {
        let written = map.to_bytes_13().expect("what 13 wrote it can write");
        assert_eq!(TablespaceMap::parse_13(&written).as_ref(), Ok(&map));
    }
});
