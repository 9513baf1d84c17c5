//! pg_filenode.map: arbitrary bytes, as they are and with a valid magic number and CRC.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pgfiles::relation_map::RelationMap;

fuzz_target!(|bytes: &[u8]| {
    let _ = RelationMap::parse(bytes);

    let mut file = bytes.to_vec();
    // The longer form belongs to 16 and later.
    let (length, crc_at) = if bytes.len() > 512 { (524, 520) } else { (512, 504) };
    file.resize(length, 0);
    file[..4].copy_from_slice(&0x592717_u32.to_le_bytes());
    let crc = crc32c::crc32c(&file[..crc_at]);
    file[crc_at..crc_at + 4].copy_from_slice(&crc.to_le_bytes());
    let Ok(map) = RelationMap::parse(&file) else { return };
    let first = u32::from_le_bytes([file[8], file[9], file[10], file[11]]);
    let count = u32::from_le_bytes([file[4], file[5], file[6], file[7]]);
    assert!(count == 0 || map.file_of(first).is_some());
});
