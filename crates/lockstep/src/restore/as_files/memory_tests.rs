//! How much memory a restore of many files takes: an image is made up, restored, and restored again over that.
//!
//! `LOCKSTEP_FILES` sets the number of files, in folders of a thousand.

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use sendstream::ByteOrder;
use sendstream::record::{Object, object_type};
use strata::delta::{Change, ImageOptions, ImageWriter};
use strata::store::{ObjectStorage, Retries, Store};

use super::{Volume, restore};
use crate::repository::Repository;
use crate::repository::header::ObjectHeader;
use crate::repository::image::{ImageState, StreamBegin};
use crate::repository::tree::{Depth, ImageTree};

const IMAGE: &str = "tank=many";
const ROOT: u64 = 2;
const IN_A_FOLDER: u64 = 1000;
const FIRST_FILE: u64 = 1 << 20;
/// One in so many files isn't empty.
const FILLED: u64 = 8;

/// The process's peak since the last reset.
fn most_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

fn header(kind: u32, mode: u64, size: u64) -> bytes::Bytes {
    let mut bonus = vec![0; 264];
    let has_node = kind != object_type::MASTER_NODE;
    for (at, value) in [(16, 1_700_000_000), (72, mode), (80, size), (96, 1)] {
        ByteOrder::Little.put_u64(&mut bonus, at, value);
    }
    let object = Object {
        bonus_type: if has_node { object_type::ZNODE } else { 0 },
        bonus_len: if has_node { 264 } else { 0 },
        checksum_type: 7,
        compress: 2,
        ..Object::plain(0, kind, 128 << 10)
    };
    let bonus = if has_node { bonus } else { Vec::new() };
    let order = ByteOrder::Little;
    ObjectHeader { object, bonus, order, has_spill_flags: false, ends_spill: false }.to_bytes()
}

/// Makes a table of names and numbers in one block.
fn table(entries: impl Iterator<Item = (String, u64)>) -> Vec<u8> {
    let mut block = vec![0; 64];
    ByteOrder::Little.put_u64(&mut block, 0, (1 << 63) + 3);
    for (name, value) in entries {
        let mut chunk = [0; 64];
        ByteOrder::Little.put_u64(&mut chunk, 0, value);
        chunk[14..14 + name.len()].copy_from_slice(name.as_bytes());
        block.extend(chunk);
    }
    block
}

fn write_image(repository: &Repository, files: u64) {
    let mut writer =
        ImageWriter::new(&repository.strata, IMAGE, "1", None, &ImageOptions::default()).unwrap();
    let mut object = |object: u64, header: bytes::Bytes, content: &[u8]| {
        let header = Some(header);
        writer.changed(Change { object, header, ..Change::default() }).unwrap();
        if !content.is_empty() {
            writer.data(0, content).unwrap();
        }
    };
    let master = table([("ROOT".to_owned(), ROOT)].into_iter());
    object(1, header(object_type::MASTER_NODE, 0, 0), &master);
    let folders = files.div_ceil(IN_A_FOLDER);
    let folder = |mode| header(object_type::DIRECTORY, mode, 2);
    let names = (0..folders).map(|at| (format!("{}", 16384 + at), ROOT + 1 + at));
    object(ROOT, folder(0o40700), &table(names));
    for at in 0..folders {
        let names = (at * IN_A_FOLDER..files.min((at + 1) * IN_A_FOLDER))
            .map(|file| (format!("{}", 100_000 + file), FIRST_FILE + file));
        object(ROOT + 1 + at, folder(0o40700), &table(names));
    }
    for file in 0..files {
        let content = file.to_le_bytes();
        let content = if file % FILLED == 0 { &content[..] } else { &[] };
        let header = header(object_type::PLAIN_FILE, 0o100_600, content.len() as u64);
        object(FIRST_FILE + file, header, content);
    }
    let begin = StreamBegin {
        big_endian: false,
        features: 0,
        creation_time: 0,
        flags: 0,
        to_guid: "1".into(),
        to_name: "tank/many@1".into(),
    };
    writer.about(ImageState::new(begin, BTreeMap::new()).to_about().unwrap());
    writer.finish().unwrap();
}

#[test]
fn a_million_files_fit_into_memory() {
    let files = std::env::var("LOCKSTEP_FILES").ok().and_then(|text| text.parse().ok());
    let files: u64 = files.unwrap_or(20_000);
    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path().join("many");
    let storage = ObjectStorage::folder(&folder.join("store")).unwrap();
    let retries = Retries { tries: 1, first_pause: Duration::ZERO };
    let store = Store::with_retries(storage, retries);
    let repository = Repository {
        name: "test".into(),
        config: toml::from_str("url = 'file:///unused'").unwrap(),
        id: "test".into(),
        strata: strata::Repository::new(store, "clusters/main", None).unwrap(),
    };
    write_image(&repository, files);
    let to: PathBuf = folder.join("restored");
    for (what, delta, depth) in [("anew", false, Depth::Names), ("over it", true, Depth::Runs)] {
        std::fs::write("/proc/self/clear_refs", "5").unwrap();
        let (before, begun) = (most_memory(), Instant::now());
        let tree = ImageTree::read(&repository, IMAGE, "1", depth).unwrap();
        let read = most_memory();
        let volume = Volume {
            repository: &repository,
            tree: &tree,
            folder: &to,
            data_inside: None,
            delta,
            apart: &[],
            others: &[],
            owners: None,
            zeroed: &HashSet::new(),
            has_content: &std::sync::atomic::AtomicBool::new(false),
            bar: indicatif::ProgressBar::hidden(),
        };
        let (written, unsynced) = restore(&volume).unwrap();
        unsynced.sync().unwrap();
        assert_eq!(written.files, files);
        let filled = files.div_ceil(FILLED) * 8;
        assert_eq!(written.bytes_written, if delta { 0 } else { filled });
        let most = most_memory();
        eprintln!(
            "{files} files {what} in {:.1?}: {} MiB before, {} MiB with the names, {} MiB at most, {} bytes a file",
            begun.elapsed(),
            before >> 20,
            read >> 20,
            most >> 20,
            most.saturating_sub(before) / files
        );
        // What every restore takes, and a file's name, place and attributes.
        assert!(most < (96 << 20) + files * 160, "{what}: {most} bytes");
    }
    let last = to.join(format!("{}", 16384 + (files - 1) / IN_A_FOLDER));
    assert_eq!(std::fs::read_dir(last).unwrap().count() as u64, (files - 1) % IN_A_FOLDER + 1);
}
