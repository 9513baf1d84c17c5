//! The servers that run on this host, whoever started them, by their processes.
//!
//! What could go wrong: a folder is emptied or overwritten that a server uses as a tablespace or for its WAL, and the
//! configuration doesn't name that server's cluster.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::files;
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
