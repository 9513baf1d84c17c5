//! Processes that a server has left running in its mount namespace: a restore_command's daemon (ssh with
//! ControlPersist, for example).
//!
//! What could go wrong: the namespace exists as long as a process in it, and keeps the restored cluster's datasets
//! mounted. They can't be destroyed or renamed, and ZFS only says that they are busy. So such processes are named;
//! they may belong to anybody, and none is ended.

use std::collections::BTreeMap;
use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::process;
use crate::volume::mounts::Mounts;
use crate::volume::zfs::DatasetName;

/// A mount namespace that isn't this process's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Namespace(u64, u64);

/// A process in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Left {
    pid: u32,
    command: String,
}

impl fmt::Display for Left {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} ({})", self.pid, self.command)
    }
}

/// Formats all of them for people.
#[must_use]
pub fn named(all: &[Left]) -> String {
    all.iter().map(Left::to_string).collect::<Vec<_>>().join(", ")
}

impl Namespace {
    /// Returns the mount namespace of a process; `None` if the process has gone, or is in the same one as this
    /// process.
    #[must_use]
    pub fn of(pid: u32) -> Option<Self> {
        let found = |pid: &str| {
            let link = std::fs::metadata(Path::new("/proc").join(pid).join("ns/mnt")).ok()?;
            Some(Self(link.dev(), link.ino()))
        };
        let (theirs, own) = (found(&pid.to_string())?, found("self")?);
        (theirs != own).then_some(theirs)
    }

    /// Returns the processes in it.
    #[must_use]
    pub fn processes(self) -> Vec<Left> {
        process::ids()
            .into_iter()
            .flatten()
            .filter(|pid| Self::of(*pid) == Some(self))
            .map(left)
            .collect()
    }
}

/// Returns processes of other mount namespaces in which one of these datasets is mounted.
#[must_use]
pub fn with_mounted(datasets: &[DatasetName]) -> Vec<Left> {
    let mut by_namespace: BTreeMap<Namespace, Vec<u32>> = BTreeMap::new();
    for pid in process::ids().into_iter().flatten() {
        if let Some(namespace) = Namespace::of(pid) {
            by_namespace.entry(namespace).or_default().push(pid);
        }
    }
    let has_one = |pids: &Vec<u32>| {
        let mounts =
            pids.first().and_then(|pid| std::fs::read(format!("/proc/{pid}/mountinfo")).ok());
        let mounts = Mounts::parse(&mounts.unwrap_or_default());
        mounts.iter().any(|mount| {
            mount.is_zfs() && datasets.iter().any(|dataset| dataset.as_str() == mount.source)
        })
    };
    let found = by_namespace.into_values().filter(has_one).flatten();
    found.map(left).collect()
}

fn left(pid: u32) -> Left {
    let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words = String::from_utf8_lossy(&words).replace('\0', " ");
    Left { pid, command: words.trim().escape_debug().to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::Program;
    use std::time::{Duration, Instant};

    #[test]
    fn who_is_in_another_namespace_is_named() {
        assert_eq!(Namespace::of(std::process::id()), None, "this one's own");
        assert_eq!(Namespace::of(u32::MAX), None, "none");
        if !crate::isolation::possible() {
            return;
        }
        let scratch = tempfile::tempdir().unwrap();
        let log = std::fs::File::create(scratch.path().join("log")).unwrap();
        let program = Program::new("unshare").args(["--mount", "--", "sleep", "614"]);
        let mut child = program.start(&log).unwrap();
        let since = Instant::now();
        let namespace = loop {
            match Namespace::of(child.id()) {
                Some(namespace) if named(&namespace.processes()).contains("(sleep 614)") => {
                    break namespace;
                }
                _ => assert!(since.elapsed() < Duration::from_secs(10)),
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        assert_eq!(named(&namespace.processes()), format!("process {} (sleep 614)", child.id()));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(namespace.processes(), []);
    }
}
