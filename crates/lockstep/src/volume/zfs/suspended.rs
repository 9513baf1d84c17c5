//! Pools that ZFS has suspended because their disks are gone (`failmode=wait`, the default, or `continue`).
//!
//! What could go wrong: a process that reads a file there waits in the kernel until `zpool clear`, and not even
//! SIGKILL ends it: a read sets atime, which needs a transaction group. `readlink` and `readdir` wait as well. So the
//! pool of a path is found in the list of mounts before the path is touched. `zpool list` and `zfs list` answer all
//! the same.
//!
//! With `failmode=continue` all of that waits as well (dmu_tx_try_assign in dmu_tx.c, if called with TXG_WAIT), but
//! OpenZFS before 2.2 doesn't list such a pool as SUSPENDED (zpool_get_state_str in libzfs_pool.c). `zfs list` is
//! refused there all the same.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};

use super::{Guid, Zfs, parse};
use crate::error::Result;
use crate::process::{Program, quote};
use crate::refusal::Refusal;
use crate::volume::mounts::Mounts;

/// How many links of one path are followed, as in the kernel (MAXSYMLINKS).
const MOST_LINKS: usize = 40;

/// Where a path on a suspended pool leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Suspended {
    /// The pool.
    pub pool: String,
    /// The path without links, except those that are on the pool itself.
    pub path: PathBuf,
}

/// What is known of the pools that are imported.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Listed {
    /// Those that are suspended.
    pub(super) suspended: BTreeSet<String>,
    /// Those with `failmode=continue` that may be suspended although they aren't listed as such.
    pub(super) continuing: BTreeSet<String>,
    /// Their GUIDs.
    pub(super) guids: BTreeMap<String, Guid>,
}

/// Why the datasets of a pool can't be listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Away {
    /// It isn't imported.
    NotImported,
    /// ZFS has suspended it.
    Suspended,
}

impl Away {
    /// What is the matter with the pool.
    #[must_use]
    pub fn state(self) -> &'static str {
        match self {
            Self::NotImported => "isn't imported",
            Self::Suspended => "is suspended",
        }
    }

    /// The command that brings the pool back.
    #[must_use]
    pub fn command(self, pool: &str) -> String {
        match self {
            Self::NotImported => format!("zpool import {}", quote(pool)),
            Self::Suspended => format!("zpool clear {}", quote(pool)),
        }
    }
}

impl Zfs {
    /// Returns where the path leads if that is on a suspended pool. Touches nothing there.
    #[must_use]
    pub fn suspended_at(&self, path: &Path) -> Option<Suspended> {
        // Asked for each path that is looked at: usually nothing is suspended, and that is known by now.
        if self.listed.get().is_some_and(|listed| listed.suspended.is_empty()) {
            return None;
        }
        let mounts = Mounts::read().ok()?;
        if !mounts.iter().any(|mount| mount.is_zfs()) || self.suspended().is_empty() {
            return None;
        }
        let path = std::path::absolute(path).ok()?;
        lead(&path, &mounts, self.suspended(), |link| std::fs::read_link(link).ok())
    }

    /// Checks that a path can be touched.
    ///
    /// # Errors
    /// [`Refusal::PoolSuspended`] when it is on a suspended pool.
    pub fn reachable(&self, path: &Path) -> Result<()> {
        match self.suspended_at(path) {
            None => Ok(()),
            Some(Suspended { pool, .. }) => {
                Err(Refusal::PoolSuspended { pool, what: path.display().to_string() }.into())
            }
        }
    }

    /// Checks that a dataset can be changed.
    ///
    /// # Errors
    /// [`Refusal::PoolSuspended`] when its pool is suspended.
    pub fn answers(&self, dataset: &super::DatasetName) -> Result<()> {
        let pool = dataset.pool();
        if !self.suspended().contains(pool) {
            return Ok(());
        }
        Err(Refusal::PoolSuspended { pool: pool.to_owned(), what: dataset.to_string() }.into())
    }

    /// The suspended pools; `zpool` is asked once. If it can't be asked, there are none: a restore as files needs no
    /// ZFS.
    pub(crate) fn suspended(&self) -> &BTreeSet<String> {
        &self.listed().suspended
    }

    pub(super) fn listed(&self) -> &Listed {
        self.listed.get_or_init(|| {
            let columns = "name,health,guid,failmode";
            let listed = Program::new("zpool").args(["list", "-H", "-o", columns]).run();
            match listed {
                Ok(out) => {
                    let mut listed = parse::pools(&out.stdout);
                    for pool in std::mem::take(&mut listed.continuing) {
                        // What else is the matter with it is told where it is needed.
                        if matches!(self.away(&pool), Ok(Some(Away::Suspended))) {
                            listed.suspended.insert(pool);
                        }
                    }
                    listed
                }
                Err(error) => {
                    tracing::debug!(%error, "can't tell whether a pool is suspended");
                    Listed::default()
                }
            }
        })
    }
}

/// Follows a path from link to link, except on the suspended `pools`. A link there would hide where the path leads, but
/// no mount point is below a link, so the path is then on that pool. A pure function.
fn lead(
    path: &Path,
    mounts: &Mounts,
    pools: &BTreeSet<String>,
    read_link: impl Fn(&Path) -> Option<PathBuf>,
) -> Option<Suspended> {
    let pool_at = |path: &Path| {
        let mount = mounts.holding(path).filter(|mount| mount.is_zfs())?;
        let pool = mount.source.split(['/', '@']).next()?;
        pools.get(pool).cloned()
    };
    let steps = |path: &Path| -> Vec<OsString> {
        path.components().rev().map(|step| step.as_os_str().to_owned()).collect()
    };
    let mut at = PathBuf::from("/");
    let mut left = steps(path);
    let mut links = 0;
    while let Some(step) = left.pop() {
        match Path::new(&step).components().next() {
            Some(Component::ParentDir) => {
                at.pop();
                continue;
            }
            Some(Component::Normal(name)) => at.push(name),
            Some(Component::RootDir) => {
                at = PathBuf::from("/");
                continue;
            }
            _ => continue,
        }
        if links < MOST_LINKS
            && pool_at(&at).is_none()
            && let Some(target) = read_link(&at)
        {
            links += 1;
            at.pop();
            left.extend(steps(&target));
        }
    }
    pool_at(&at).map(|pool| Suspended { pool, path: at })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_followed_up_to_the_suspended_pool() {
        let mounts = Mounts::parse(
            b"1 0 8:1 / / rw - ext4 /dev/sda rw\n\
              2 1 0:40 / /srv/s rw - zfs sus/d rw\n\
              3 2 0:41 / /srv/s/wal rw - zfs tank/wal rw\n\
              4 1 0:42 / /tank rw - zfs tank rw\n\
              5 1 0:40 /sub /bind rw - zfs sus/d rw\n\
              6 1 0:43 / /sus rw - ext4 sus rw\n",
        );
        let pools = BTreeSet::from(["sus".to_owned()]);
        let read_link = |link: &Path| {
            let link = link.to_str().expect("it is text");
            assert!(
                !link.starts_with("/srv/s/") || link.starts_with("/srv/s/wal"),
                "{link} is touched"
            );
            assert!(link != "/srv/s" && !link.starts_with("/bind"), "{link} is touched");
            let target = match link {
                "/var/pg" => "../srv",
                "/tank/ts" => "/var/pg/s/ts",
                "/tank/loop" => "loop",
                "/srv/s/wal/away" => "/bind/x",
                _ => return None,
            };
            Some(PathBuf::from(target))
        };
        let at = |path: &str| {
            let found = lead(Path::new(path), &mounts, &pools, read_link);
            found.map(|found| {
                assert_eq!(found.pool, "sus");
                found.path.display().to_string()
            })
        };
        for (path, leads_to) in [
            ("/srv/s", "/srv/s"),
            ("/srv/s/base/1", "/srv/s/base/1"),
            ("/bind/y", "/bind/y"),
            // Over links elsewhere, relative and absolute.
            ("/var/pg/s/global", "/srv/s/global"),
            ("/tank/ts/PG_15", "/srv/s/ts/PG_15"),
            ("/srv/s/wal/away", "/bind/x"),
        ] {
            assert_eq!(at(path).as_deref(), Some(leads_to), "{path}");
        }
        // What is mounted below the pool's dataset isn't on it, nor does a name make a pool.
        for path in
            ["/", "/srv", "/srv/s/wal/0001", "/srv/sus", "/tank/loop", "/tank/../srv", "/sus/x"]
        {
            assert_eq!(at(path), None, "{path}");
        }
    }
}
