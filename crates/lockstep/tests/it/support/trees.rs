//! Compares trees of files: the contents of a folder, as `stream tree` would print them.

use super::command::{command, must};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Each path's line: type, mode, uid, gid, size, mtime and hash, separated by tabs. In paths, a backslash, a tab and a
/// line feed are written `\\`, `\t` and `\n`.
#[track_caller]
pub fn tree_of(root: &Path) -> BTreeMap<String, String> {
    let mut lines = BTreeMap::new();
    let mut waiting = vec![root.to_owned()];
    lines.insert(".".to_owned(), line(root));
    let (mut files, mut names) = (Vec::new(), Vec::new());
    while let Some(folder) = waiting.pop() {
        let entries =
            fs::read_dir(&folder).unwrap_or_else(|e| panic!("cannot list {folder:?}: {e}"));
        for entry in entries {
            let path = entry.expect("an entry can be read").path();
            let inside = path.strip_prefix(root).expect("it is below the root");
            let name = escaped(inside.as_os_str().as_bytes());
            lines.insert(name.clone(), line(&path));
            let kind = fs::symlink_metadata(&path).expect("it is there").file_type();
            if kind.is_dir() {
                waiting.push(path);
            } else if kind.is_file() {
                files.push(path);
                names.push(name);
            }
        }
    }
    for (name, hash) in names.iter().zip(hashes(&files)) {
        lines.get_mut(name).expect("it has a line").push_str(&hash);
    }
    lines
}

fn escaped(path: &[u8]) -> String {
    let mut bytes = Vec::new();
    for byte in path {
        match byte {
            b'\\' => bytes.extend(b"\\\\"),
            b'\t' => bytes.extend(b"\\t"),
            b'\n' => bytes.extend(b"\\n"),
            other => bytes.push(*other),
        }
    }
    // Both sides of a comparison are made the same way.
    String::from_utf8_lossy(&bytes).into_owned()
}

#[track_caller]
fn line(path: &Path) -> String {
    let metadata =
        fs::symlink_metadata(path).unwrap_or_else(|e| panic!("cannot look at {path:?}: {e}"));
    let kind = metadata.file_type();
    let (letter, size, hash) = if kind.is_dir() {
        ('d', "-".to_owned(), "-".to_owned())
    } else if kind.is_symlink() {
        let target = fs::read_link(path).expect("a link can be read");
        ('l', metadata.len().to_string(), sha256(target.as_os_str().as_bytes()))
    } else if kind.is_fifo() {
        ('p', "-".to_owned(), "-".to_owned())
    } else {
        // The hashes of all files are computed together.
        ('f', metadata.len().to_string(), String::new())
    };
    let mtime = i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec());
    format!(
        "{letter}\t{:04o}\t{}\t{}\t{size}\t{mtime}\t{hash}",
        metadata.mode() & 0o7777,
        metadata.uid(),
        metadata.gid(),
    )
}

#[track_caller]
fn sha256(bytes: &[u8]) -> String {
    let thread = std::thread::current().id();
    let path = std::env::temp_dir().join(format!("sha256-{}-{thread:?}", std::process::id()));
    fs::write(&path, bytes).expect("a temporary file can be written");
    let hash = hashes(std::slice::from_ref(&path)).remove(0);
    fs::remove_file(&path).expect("it can be removed");
    hash
}

/// The hashes of the contents of files, in order.
#[track_caller]
fn hashes(paths: &[PathBuf]) -> Vec<String> {
    let mut all = Vec::new();
    for some in paths.chunks(500) {
        let out = must(command("sha256sum", ["--zero", "--"]).args(some));
        all.extend(
            out.split('\0').filter(|line| !line.is_empty()).map(|line| line[..32].to_owned()),
        );
    }
    assert_eq!(all.len(), paths.len(), "a hash for each file");
    all
}

/// Bytes that a tree's files take on disk, and their sizes.
pub fn usage(root: &Path) -> (u64, u64) {
    let (mut blocks, mut sizes) = (0, 0);
    let mut waiting = vec![root.to_owned()];
    while let Some(folder) = waiting.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let metadata = fs::symlink_metadata(entry.path()).expect("it is there");
            if metadata.is_dir() {
                waiting.push(entry.path());
            } else if metadata.is_file() {
                blocks += metadata.blocks() * 512;
                sizes += metadata.len();
            }
        }
    }
    (blocks, sizes)
}
