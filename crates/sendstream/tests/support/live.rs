//! Real pools, for as long as a test runs.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

/// Runs a program, which must succeed; returns its standard output.
#[track_caller]
pub fn must(program: &str, arguments: &[&str]) -> Vec<u8> {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {}: {stderr}", output.status);
    output.stdout
}

/// Runs a program with standard input, which must succeed.
#[track_caller]
pub fn must_with(program: &str, arguments: &[&str], input: &[u8]) {
    use std::io::Write;
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let written = child.stdin.take().unwrap().write_all(input);
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {}: {stderr}", output.status);
    written.unwrap();
}

/// A pool on a sparse file, and a folder that every user may enter; both are removed when it is dropped.
pub struct Pool {
    pub name: String,
    pub folder: PathBuf,
}

impl Pool {
    pub fn new(what: &str) -> Pool {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("ss{}x{number}{what}", std::process::id());
        let folder = std::env::temp_dir().join(&name);
        fs::create_dir_all(&folder).unwrap();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
        let image = folder.join("image");
        fs::File::create(&image).unwrap().set_len(4 << 30).unwrap();
        // zfs-fuse mounts a moment after it reports success, so only datasets that are looked at are mounted, one by
        // one.
        must("zpool", &["create", "-m", "none", &name, image.to_str().unwrap()]);
        Pool { name, folder }
    }

    /// Returns where a dataset is mounted.
    pub fn path(&self, dataset: &str) -> PathBuf {
        self.folder.join(dataset)
    }

    /// Creates or clones a dataset and waits until it is mounted.
    pub fn mounted(&self, arguments: &[&str], dataset: &str) -> PathBuf {
        let path = self.path(dataset);
        let mountpoint = format!("mountpoint={}", path.display());
        let name = self.dataset(dataset);
        let (verb, rest) = arguments.split_first().unwrap();
        let mut all = vec![*verb, "-o", &mountpoint];
        all.extend(rest);
        all.push(&name);
        must("zfs", &all);
        // zfs-fuse reports the mount before it is done; for a moment the new root appears and disappears.
        let since = Instant::now();
        let parent = fs::metadata(&self.folder).unwrap().dev();
        let mut seen = 0;
        while seen < 5 {
            let there = fs::metadata(&path).is_ok_and(|metadata| metadata.dev() != parent);
            seen = if there && fs::read_dir(&path).is_ok() { seen + 1 } else { 0 };
            assert!(since.elapsed() < Duration::from_secs(30), "{name} isn't mounted");
            std::thread::sleep(Duration::from_millis(30));
        }
        path
    }

    pub fn dataset(&self, dataset: &str) -> String {
        format!("{}/{dataset}", self.name)
    }

    pub fn receive(&self, dataset: &str, stream: &[u8]) {
        must_with("zfs", &["receive", "-F", &self.dataset(dataset)], stream);
    }

    /// Returns a snapshot's GUID; zfs-fuse has no property for it, but a stream begins with it.
    pub fn guid(&self, snapshot: &str) -> u64 {
        let stream = must("zfs", &["send", &self.dataset(snapshot)]);
        sendstream::Reader::new(&stream[..]).unwrap().begin().to_guid
    }

    /// Returns what is in a snapshot, read through a clone (zfs-fuse has no `.zfs`).
    pub fn snapshot_listing(&self, snapshot: &str) -> String {
        let clone = format!("clone-{}", snapshot.replace('@', "-"));
        let path = self.mounted(&["clone", &self.dataset(snapshot)], &clone);
        let listing = listing(&path);
        patiently(&["destroy", &self.dataset(&clone)]);
        listing
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let since = Instant::now();
        while since.elapsed() < Duration::from_secs(30) {
            let destroyed = Command::new("zpool").args(["destroy", "-f", &self.name]).output();
            if destroyed.is_ok_and(|output| output.status.success()) {
                break;
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Retries, because a dataset stays busy for a moment after a process has left it.
fn patiently(arguments: &[&str]) {
    let since = Instant::now();
    loop {
        let output = Command::new("zfs").args(arguments).output().unwrap();
        if output.status.success() {
            return;
        }
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(since.elapsed() < Duration::from_secs(30), "zfs {arguments:?}: {stderr}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Returns the listing of a mounted tree, made as the recorded ones were.
pub fn listing(root: &Path) -> String {
    let mut text = format!("{}\n", sendstream::listing::HEADING);
    describe(root, ".", &mut text);
    below(root, "", &mut text);
    text
}

fn below(folder: &Path, prefix: &str, text: &mut String) {
    let mut entries: Vec<_> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    entries.sort();
    for name in entries {
        let path = folder.join(&name);
        let shown = format!("{prefix}{}", name.to_str().unwrap());
        describe(&path, &shown, text);
        if fs::symlink_metadata(&path).unwrap().is_dir() {
            below(&path, &format!("{shown}/"), text);
        }
    }
}

fn describe(path: &Path, shown: &str, text: &mut String) {
    let metadata = fs::symlink_metadata(path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
    let kind = metadata.file_type();
    let hash = |bytes: &[u8]| {
        Sha256::digest(bytes)[..16].iter().map(|byte| format!("{byte:02x}")).collect::<String>()
    };
    let (letter, size, hash) = if kind.is_dir() {
        ('d', "-".to_string(), "-".to_string())
    } else if kind.is_symlink() {
        let target = fs::read_link(path).unwrap();
        ('l', metadata.len().to_string(), hash(target.as_os_str().as_bytes()))
    } else if kind.is_file() {
        ('f', metadata.len().to_string(), hash(&fs::read(path).unwrap()))
    } else {
        ('s', "-".to_string(), "-".to_string())
    };
    *text += &format!(
        "{shown}\t{letter}\t{:04o}\t{}\t{}\t{size}\t{}\t{hash}\n",
        metadata.mode() & 0o7777,
        metadata.uid(),
        metadata.gid(),
        i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec()),
    );
}
