//! The servers that run on this host, whoever started them, by their processes.
//!
//! What could go wrong: a folder is emptied or overwritten that a server uses as a tablespace or for its WAL, and the
//! configuration doesn't name that server's cluster.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::files;
use crate::isolation::left::Namespace;
use crate::plan::layout::{Part, PartKind};
use crate::postgres::instance;
use crate::process;
use crate::volume::discover::PartPath;
use crate::volume::zfs::Zfs;

/// A server that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Running {
    /// One of its processes.
    pub pid: u32,
    /// Its data directory: the working directory of its processes.
    pub data: PathBuf,
}

/// Returns the servers whose data directory can be seen here. One on a suspended pool is left out: nothing there can be
/// looked at. So is one that has removed its postmaster.pid: it has just stopped, and its last processes are ending.
///
/// # Errors
/// When the processes can't be listed.
pub fn all(zfs: &Zfs) -> Result<Vec<Running>> {
    let mut found = BTreeMap::new();
    for pid in processes()? {
        let Ok(data) = std::fs::read_link(format!("/proc/{pid}/cwd")) else { continue };
        let is_seen = zfs.suspended_at(&data).is_none() && is_the_same(pid, &data);
        if is_seen && data.join("postmaster.pid").exists() {
            found.entry(data).or_insert(pid);
        }
    }
    Ok(found.into_iter().map(|(data, pid)| Running { pid, data }).collect())
}

/// Returns the processes of PostgreSQL.
pub(super) fn processes() -> Result<impl Iterator<Item = u32>> {
    let all = process::ids().map_err(Error::io("list", "/proc"))?;
    Ok(all.filter(|pid| is_postgres(*pid)))
}

/// Whether a process has the name of PostgreSQL's program: a shell in a data directory doesn't.
pub(super) fn is_postgres(pid: u32) -> bool {
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    ["postgres", "postmaster"].contains(&name.trim_end())
}

impl Running {
    /// Returns its parts, as far as its processes see at those paths what is seen here: in the mount namespace of a
    /// clone the original's paths lead to the clone's own folders.
    pub fn parts(&self, zfs: &Zfs) -> Vec<PartPath> {
        let mut parts = instance::parts(&self.data, None).unwrap_or_default();
        parts.retain(|part| {
            zfs.suspended_at(&part.path).is_none() && is_the_same(self.pid, &part.path)
        });
        parts
    }
}

/// Whether a process sees the same folder at this path.
fn is_the_same(pid: u32, path: &Path) -> bool {
    let Ok(below) = path.strip_prefix("/") else { return false };
    files::are_one(&Path::new(&format!("/proc/{pid}/root")).join(below), path)
}

/// Returns a part at whose path the server of this cluster sees another folder than is seen here, and one of the
/// server's processes: it is in a mount namespace of its own (a container's, or that of a unit with `BindPaths=`), and
/// what it writes there is somewhere else. What can't be looked at isn't told.
///
/// # Errors
/// When the processes can't be listed.
pub fn seen_elsewhere(
    parts: &[Part],
    is_reachable: impl Fn(&Path) -> bool,
) -> Result<Option<(u32, &Part)>> {
    let Some(data) = parts.iter().find(|part| part.kind == PartKind::Data) else {
        return Ok(None);
    };
    for pid in processes()? {
        let cwd = PathBuf::from(format!("/proc/{pid}/cwd"));
        let Ok(folder) = std::fs::read_link(&cwd) else { continue };
        let is_its = Namespace::of(pid).is_some()
            && is_reachable(&folder)
            && files::are_one(&cwd, &data.real_path);
        if !is_its {
            continue;
        }
        let is_another = |part: &&Part| {
            // In a container the data directory may have another path, and pg_wal be mounted in it.
            let there = match part.path.strip_prefix(&data.path) {
                Ok(inside) => cwd.join(inside),
                Err(_) => PathBuf::from(format!("/proc/{pid}/root"))
                    .join(part.path.strip_prefix("/").unwrap_or(&part.path)),
            };
            part.kind != PartKind::Data && are_two(&there, &part.real_path)
        };
        if let Some(part) = parts.iter().find(is_another) {
            return Ok(Some((pid, part)));
        }
    }
    Ok(None)
}

/// Whether two paths lead to two folders. Each is looked at once: a process that ends between two looks has no folder
/// any more, and sees none elsewhere.
fn are_two(one: &Path, other: &Path) -> bool {
    let folder = |path: &Path| std::fs::metadata(path).ok().filter(std::fs::Metadata::is_dir);
    let identity = |path: &Path| folder(path).map(|found| (found.dev(), found.ino()));
    identity(one).zip(identity(other)).is_some_and(|(one, other)| one != other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::layout::tests::{layout, tablespace};
    use crate::process::Program;
    use std::time::{Duration, Instant};

    /// A backend of a busy server ends at any moment.
    #[test]
    fn what_is_gone_by_now_is_not_elsewhere() {
        let scratch = tempfile::tempdir().unwrap();
        let of = |name: &str| scratch.path().join(name);
        ["one", "two"].iter().for_each(|name| std::fs::create_dir(of(name)).unwrap());
        std::fs::write(of("file"), "").unwrap();
        assert!(are_two(&of("one"), &of("two")) && !are_two(&of("one"), &of("one/.")));
        for other in ["gone", "file"] {
            assert!(!are_two(&of(other), &of("one")) && !are_two(&of("one"), &of(other)));
        }
    }

    /// A program with PostgreSQL's name, in a namespace in which other folders are mounted over a tablespace's and over
    /// pg_wal.
    #[test]
    fn parts_that_the_server_sees_elsewhere_are_told() {
        if !crate::isolation::possible() {
            return;
        }
        let scratch = tempfile::tempdir().unwrap();
        let of = |name: &str| scratch.path().join(name);
        for folder in ["data/pg_wal", "same", "other", "new"] {
            std::fs::create_dir_all(of(folder)).unwrap();
        }
        let sleep = ["/usr/bin/sleep", "/bin/sleep"].into_iter().find(|it| Path::new(it).exists());
        std::fs::copy(sleep.unwrap(), of("postgres")).unwrap();
        let kinds = [(PartKind::Data, "t/d"), (PartKind::Wal, "t/w")];
        let tablespaces = [(tablespace(5), "t/a"), (tablespace(6), "t/b")];
        let mut parts = layout(&[kinds, tablespaces].concat()).parts;
        for (part, name) in parts.iter_mut().zip(["data", "data/pg_wal", "same", "other"]) {
            (part.path, part.real_path) = (of(name), of(name));
        }
        let told = |parts: &[Part]| {
            let found = seen_elsewhere(parts, |_| true).unwrap();
            found.map(|(pid, part)| (pid, part.kind.clone()))
        };
        assert_eq!(told(&parts), None, "no server runs");
        let log = std::fs::File::create(of("log")).unwrap();
        let script = "cd \"$0\" && mount --bind new \"$1\" && cd data && exec ../postgres 615";
        let started = |over: &str| {
            let program = Program::new("unshare").args(["--mount", "--", "sh", "-c", script]);
            program.arg(scratch.path()).arg(over).start(&log).unwrap()
        };
        for (over, kind) in [("other", tablespace(6)), ("data/pg_wal", PartKind::Wal)] {
            let mut child = started(over);
            let since = Instant::now();
            while told(&parts).is_none() {
                assert!(since.elapsed() < Duration::from_secs(10), "{over}");
                std::thread::sleep(Duration::from_millis(10));
            }
            assert_eq!(told(&parts), Some((child.id(), kind.clone())));
            let rest: Vec<_> = parts.iter().filter(|part| part.kind != kind).cloned().collect();
            assert_eq!(told(&rest), None, "the same folders on both sides");
            child.kill().unwrap();
            child.wait().unwrap();
        }
        assert_eq!(told(&parts), None);
    }
}
