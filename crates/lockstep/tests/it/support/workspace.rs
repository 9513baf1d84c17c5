//! A test's own part of the machine: a directory, a name for its pools, and their removal.
//!
//! The name is `lt<pid>x<n>`; the directory is where the user postgres can enter it. Its owner holds a lock on a file
//! inside, so that the leftovers of a killed test can be told from the directory of a running one, and are removed.

use super::pools::{ensure_zfs, patiently, pool_names};
use rustix::fs::{FlockOperation, flock};
use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

const LOCK: &str = "owner.lock";

/// A directory and a prefix for pool names, both gone when this is dropped.
#[derive(Debug)]
pub struct Workspace {
    /// `lt<pid>x<n>`.
    pub name: String,
    /// The directory: short, and open to all users.
    pub root: PathBuf,
    _owner: File,
}

impl Workspace {
    /// Makes one, after removing what dead tests have left.
    #[track_caller]
    pub fn new() -> Workspace {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        assert!(
            rustix::process::geteuid().is_root(),
            "these tests make ZFS pools and run as root only"
        );
        ensure_zfs();
        let base = base();
        fs::create_dir_all(&base).unwrap_or_else(|error| panic!("cannot create {base:?}: {error}"));
        open_to_all(&base);
        let everyone =
            File::create(base.join("lock")).expect("the lock of all workspaces can be made");
        flock(&everyone, FlockOperation::LockExclusive)
            .expect("the lock of all workspaces can be waited for");
        remove_leftovers(&base);

        let name = format!("lt{}x{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let root = base.join(&name);
        fs::create_dir(&root).unwrap_or_else(|error| panic!("cannot create {root:?}: {error}"));
        open_to_all(&root);
        let owner = File::create(root.join(LOCK)).expect("a file can be made in a new directory");
        flock(&owner, FlockOperation::NonBlockingLockExclusive)
            .expect("nobody else has a new file");
        Workspace { name, root, _owner: owner }
    }

    /// A new directory inside, open to all users.
    #[track_caller]
    pub fn directory(&self, name: &str) -> PathBuf {
        let path = self.root.join(name);
        fs::create_dir_all(&path).unwrap_or_else(|error| panic!("cannot create {path:?}: {error}"));
        open_to_all(&path);
        path
    }

    /// The directory `images` for the files that pools are in: in memory, if `LOCKSTEP_TEST_IMAGES` names a place for it.
    #[track_caller]
    pub fn images(&self) -> PathBuf {
        let path = self.root.join("images");
        let Some(place) = images_of(&self.name) else {
            return self.directory("images");
        };
        fs::create_dir(&place).unwrap_or_else(|error| panic!("cannot create {place:?}: {error}"));
        symlink(&place, &path).unwrap_or_else(|error| panic!("cannot create {path:?}: {error}"));
        path
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.name, &self.root) {
            // A second panic during unwinding would abort and hide the first.
            if thread::panicking() {
                eprintln!("left behind, the next test tries again: {error}");
            } else {
                panic!("cannot clean up after the test: {error}");
            }
        }
    }
}

/// Where workspaces are made: `LOCKSTEP_TEST_DIR`, or a folder that every user can enter.
pub fn base() -> PathBuf {
    std::env::var_os("LOCKSTEP_TEST_DIR")
        .map_or_else(|| PathBuf::from("/var/tmp/lockstep-tests"), PathBuf::from)
}

fn images_of(name: &str) -> Option<PathBuf> {
    std::env::var_os("LOCKSTEP_TEST_IMAGES").map(|place| PathBuf::from(place).join(name))
}

fn open_to_all(path: &Path) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
        .expect("one's own directory's mode can be set");
}

fn remove_leftovers(base: &Path) {
    for entry in fs::read_dir(base).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if workspace_of(&name) != Some(&name) {
            continue;
        }
        let abandoned = match File::open(entry.path().join(LOCK)) {
            Ok(lock) => flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok(),
            Err(_) => true,
        };
        if abandoned && let Err(error) = remove(&name, &entry.path()) {
            eprintln!("leftover of a dead test stays for now: {error}");
        }
    }
    for pool in pool_names() {
        let Some(name) = workspace_of(&pool) else {
            continue;
        };
        let root = base.join(name);
        let process = name.trim_start_matches("lt").split('x').next().unwrap_or_default();
        if !root.exists() && !Path::new("/proc").join(process).exists() {
            let _ = remove(name, &root);
        }
    }
}

/// The workspace that a pool's or directory's name belongs to: its `lt<pid>x<n>`.
fn workspace_of(name: &str) -> Option<&str> {
    let rest = name.strip_prefix("lt")?;
    let pid = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let rest = rest[pid..].strip_prefix('x')?;
    let number = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    (pid > 0 && number > 0).then(|| &name[.."lt".len() + pid + "x".len() + number])
}

fn remove(name: &str, root: &Path) -> Result<(), String> {
    kill_processes_of(root);
    for pool in pool_names().iter().filter(|pool| workspace_of(pool) == Some(name)) {
        patiently("zpool", &["destroy", "-f", pool], || kill_processes_of(root))?;
    }
    for folder in images_of(name).iter().map(PathBuf::as_path).chain([root]) {
        match fs::remove_dir_all(folder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(format!("{}: {error}", folder.display()));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Kills every process that works in `root` or names it on its command line: servers, their children, the program.
fn kill_processes_of(root: &Path) {
    for _ in 0..50 {
        let found = processes_of(root);
        if found.is_empty() {
            return;
        }
        for pid in found {
            if let Some(pid) = rustix::process::Pid::from_raw(pid.cast_signed()) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// The processes that work in `root` or name it on their command line.
pub fn processes_of(root: &Path) -> Vec<u32> {
    let here = std::process::id();
    let numbers = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = numbers.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| *pid != here && belongs_to(*pid, root)).collect()
}

/// Whether a `zfs` command that names this dataset, or one below it, is running: those of a killed program go on.
pub fn is_at_work_on(dataset: &str) -> bool {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes.map(|entry| entry.path()).any(|process| {
        let is_zfs = fs::read(process.join("comm")).is_ok_and(|name| name.starts_with(b"zfs"));
        let line = fs::read(process.join("cmdline")).unwrap_or_default();
        is_zfs && String::from_utf8_lossy(&line).contains(dataset)
    })
}

fn belongs_to(pid: u32, root: &Path) -> bool {
    let process = Path::new("/proc").join(pid.to_string());
    let inside = fs::read_link(process.join("cwd")).is_ok_and(|cwd| cwd.starts_with(root));
    let line = fs::read(process.join("cmdline")).unwrap_or_default();
    inside || String::from_utf8_lossy(&line).contains(&format!("{}/", root.display()))
}
