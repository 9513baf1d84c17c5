//! The recorded streams, unpacked in memory.
#![allow(dead_code, reason = "each test uses its part")]

pub mod live;
pub mod whole_seconds;

use std::collections::BTreeMap;
use std::sync::OnceLock;

/// Returns every recorded file by name.
fn files() -> &'static BTreeMap<String, Vec<u8>> {
    static FILES: OnceLock<BTreeMap<String, Vec<u8>>> = OnceLock::new();
    FILES.get_or_init(|| {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/streams/streams.tar.zst");
        let archive = zstd::decode_all(std::fs::File::open(path).unwrap()).unwrap();
        untar(&archive)
    })
}

/// Unpacks plain ustar: a header of 512 bytes, the file, padding to 512.
fn untar(mut archive: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    while let Some((header, rest)) = archive.split_first_chunk::<512>() {
        let field = |range: std::ops::Range<usize>| {
            let text = header[range].split(|byte| *byte == 0).next().unwrap();
            std::str::from_utf8(text).unwrap().trim()
        };
        if field(0..100).is_empty() {
            break;
        }
        let size = usize::from_str_radix(field(124..136), 8).unwrap();
        files.insert(field(0..100).to_owned(), rest[..size].to_vec());
        archive = &rest[size.next_multiple_of(512)..];
    }
    files
}

/// Returns the names of all recorded streams.
pub fn streams() -> Vec<&'static str> {
    let is_stream = |name: &&str| !name.ends_with(".tree") && *name != "guids.tsv";
    files().keys().map(String::as_str).filter(is_stream).collect()
}

/// Returns a recorded stream.
pub fn stream(name: &str) -> &'static [u8] {
    files().get(name).unwrap_or_else(|| panic!("no recorded stream {name}"))
}

/// Returns a recorded tree.
pub fn tree(name: &str) -> &'static str {
    std::str::from_utf8(stream(&format!("{name}.tree"))).unwrap()
}

/// Returns the GUID of a recorded snapshot (`pg8k`, `s0`).
pub fn guid(dataset: &str, snapshot: &str) -> u64 {
    let wanted = match dataset {
        "fuse" => format!("fuse:tank2/corp1@{snapshot}"),
        other => format!("tank/{other}1@{snapshot}"),
    };
    let lines = std::str::from_utf8(stream("guids.tsv")).unwrap().lines();
    let line = lines.filter_map(|line| line.split_once('\t')).find(|(name, _)| *name == wanted);
    line.unwrap_or_else(|| panic!("no GUID of {wanted}")).1.trim().parse().unwrap()
}
