//! ZFS as the harness uses it: pools of sparse files, datasets, snapshots, clones, and the patience they need.
//!
//! Pools are global to the machine, so their names begin with the workspace's own. Only commands that zfs-fuse knows
//! are used: no `-p` for `list`, one snapshot per command, no `holds`.
//!
//! Two mounts at the same moment stop zfs-fuse 0.7.0 for good: it passes a new mount to its listener in two writes to
//! a pipe, without a lock. The listener takes the path of one for the length of the other, and waits for bytes that
//! never come. So with zfs-fuse, everything in the tests, including the program, finds a `zfs` and a `zpool` in its
//! PATH that take turns ([`path_with_turns`]).

use super::command::{command, must, run, wait_until};
use super::workspace::base;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

/// How long "dataset is busy" is accepted: ZFS says it for a moment after a process has left.
const BUSY_LIMIT: Duration = Duration::from_secs(30);

/// The PATH for everything that runs `zfs` and `zpool`: on zfs-fuse it begins with versions that wait for each other.
pub fn path_with_turns() -> OsString {
    static PATH: OnceLock<OsString> = OnceLock::new();
    let plain =
        || std::env::var_os("PATH").unwrap_or_else(|| "/usr/sbin:/usr/bin:/sbin:/bin".into());
    let made = PATH.get_or_init(|| {
        if Path::new("/dev/zfs").exists() {
            return plain();
        }
        let directory = base().join("bin");
        fs::create_dir_all(&directory)
            .unwrap_or_else(|error| panic!("cannot create {directory:?}: {error}"));
        for program in ["zfs", "zpool"] {
            take_turns(program, &directory, &plain());
        }
        let mut path = directory.into_os_string();
        path.push(":");
        path.push(plain());
        path
    });
    made.clone()
}

/// Writes a script `program` to `directory` that runs the real one, with a lock if that may mount something.
fn take_turns(program: &str, directory: &Path, path: &OsString) {
    let real =
        std::env::split_paths(path).map(|folder| folder.join(program)).find(|file| file.exists());
    let Some(real) = real else { return };
    let (real, lock) = (real.display(), base().join("mounts.lock"));
    let script = format!(
        "#!/bin/sh\ncase \"$1\" in\ncreate|clone|mount|set|inherit|rename|rollback|promote|import|receive|recv)\n\
         exec flock --no-fork '{}' '{real}' \"$@\";;\n*) exec '{real}' \"$@\";;\nesac\n",
        lock.display()
    );
    // Another test may be running the old one at this moment.
    let part = directory.join(format!("{program}.{}", std::process::id()));
    fs::write(&part, script).unwrap_or_else(|error| panic!("cannot write {part:?}: {error}"));
    fs::set_permissions(&part, fs::Permissions::from_mode(0o755))
        .expect("one's own file's mode can be set");
    fs::rename(&part, directory.join(program)).expect("a file can be renamed in its directory");
}

/// The command `zfs` or `zpool`.
fn tool(program: &str, arguments: &[&str]) -> Command {
    let mut command = command(program, arguments);
    command.env("PATH", path_with_turns());
    command
}

/// Runs `zfs`, which must succeed.
#[track_caller]
pub fn zfs(arguments: &[&str]) -> String {
    must(&mut tool("zfs", arguments))
}

/// Runs `zfs`; returns its standard error if it fails.
pub fn try_zfs(arguments: &[&str]) -> Result<String, String> {
    result(tool("zfs", arguments))
}

fn result(mut command: Command) -> Result<String, String> {
    let outcome = run(&mut command);
    if outcome.ok() { Ok(outcome.stdout) } else { Err(outcome.stderr) }
}

/// Runs `zfs` or `zpool`, again as long as it says that something is busy.
pub fn patiently(
    program: &str,
    arguments: &[&str],
    mut meanwhile: impl FnMut(),
) -> Result<String, String> {
    let since = Instant::now();
    loop {
        match result(tool(program, arguments)) {
            Err(error) if error.contains("busy") && since.elapsed() < BUSY_LIMIT => {
                meanwhile();
                thread::sleep(Duration::from_millis(100));
            }
            other => return other.map_err(|error| format!("{program} {arguments:?}: {error}")),
        }
    }
}

/// Makes sure that ZFS answers; starts zfs-fuse if it is installed but isn't running.
pub fn ensure_zfs() {
    let answers = || {
        command("zpool", ["list", "-H", "-o", "name"])
            .output()
            .is_ok_and(|output| output.status.success())
    };
    if answers() {
        return;
    }
    let started = command("zfs-fuse", ["-p", "/run/zfs-fuse-of-tests.pid"]).status();
    assert!(
        started.as_ref().is_ok_and(std::process::ExitStatus::success),
        "`zpool list` fails and zfs-fuse doesn't start ({started:?}): these tests need ZFS and root; apt-get install zfs-fuse"
    );
    wait_until("zfs-fuse answers `zpool list`", Duration::from_secs(20), answers);
}

/// The names of all pools of this machine.
pub fn pool_names() -> Vec<String> {
    let listed = command("zpool", ["list", "-H", "-o", "name"]).output();
    let text = listed
        .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
        .unwrap_or_default();
    text.lines().map(str::to_owned).filter(|name| name != "no pools available").collect()
}

/// One throwaway pool. The workspace that it belongs to destroys it.
#[derive(Debug, Clone)]
pub struct Pool {
    /// The pool's name, unique on the machine.
    pub name: String,
    /// Its sparse file.
    pub image: PathBuf,
}

impl Pool {
    /// Makes a pool of `size` bytes in a sparse file; its own root dataset isn't mounted.
    #[track_caller]
    pub fn create(name: &str, image: &Path, size: u64) -> Pool {
        let file = std::fs::File::create(image)
            .unwrap_or_else(|error| panic!("cannot create {image:?}: {error}"));
        file.set_len(size).expect("a sparse file can be made as large as one likes");
        let image_name = image.to_str().expect("the harness' own paths are UTF-8");
        must(&mut tool("zpool", &["create", "-m", "none", name, image_name]));
        Pool { name: name.to_owned(), image: image.to_owned() }
    }

    /// Makes the dataset `name` of this pool, mounted at `mountpoint`.
    #[track_caller]
    pub fn dataset(
        &self,
        name: &str,
        mountpoint: &Path,
        properties: &[(String, String)],
    ) -> String {
        let full = format!("{}/{name}", self.name);
        let mut arguments = vec!["create".to_owned(), "-p".to_owned()];
        let mountpoint = mountpoint.to_str().expect("the harness' own paths are UTF-8").to_owned();
        for (key, value) in
            std::iter::once(&("mountpoint".to_owned(), mountpoint)).chain(properties)
        {
            arguments.extend(["-o".to_owned(), format!("{key}={value}")]);
        }
        arguments.push(full.clone());
        zfs(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        full
    }

    /// All snapshots of the pool, as `dataset@name`.
    #[track_caller]
    pub fn snapshots(&self) -> Vec<String> {
        lines(&zfs(&["list", "-H", "-o", "name", "-t", "snapshot", "-r", &self.name]))
    }

    /// All datasets of the pool that are clones, each with the snapshot that it was made from.
    #[track_caller]
    pub fn clones(&self) -> Vec<Clone> {
        let listed =
            zfs(&["list", "-H", "-o", "name,origin", "-t", "filesystem", "-r", &self.name]);
        let pairs = listed.lines().filter_map(|line| line.split_once('\t'));
        pairs
            .filter(|(_, origin)| *origin != "-")
            .map(|(name, origin)| Clone { name: name.to_owned(), origin: origin.to_owned() })
            .collect()
    }
}

/// A dataset that was made from a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Clone {
    /// The dataset.
    pub name: String,
    /// The snapshot, as `dataset@name`.
    pub origin: String,
}

/// A property, with exact numbers.
#[track_caller]
pub fn property(of: &str, name: &str) -> String {
    zfs(&["get", "-Hp", "-o", "value", name, of]).trim_end_matches('\n').to_owned()
}

/// Destroys a dataset or a snapshot, waiting while it is busy. A held snapshot stays busy: see [`release_and_destroy`].
#[track_caller]
pub fn destroy(name: &str) {
    if let Err(error) = patiently("zfs", &["destroy", name], || ()) {
        panic!("{error}");
    }
}

/// Releases Lockstep's hold on a snapshot and destroys it.
#[track_caller]
pub fn release_and_destroy(snapshot: &str) {
    // Not every snapshot is held: one of an unfinished set may not be held yet.
    let _ = try_zfs(&["release", "lockstep", snapshot]);
    destroy(snapshot);
}

fn lines(text: &str) -> Vec<String> {
    text.lines().filter(|line| *line != "no datasets available").map(str::to_owned).collect()
}
