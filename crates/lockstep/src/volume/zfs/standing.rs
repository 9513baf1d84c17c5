//! What a snapshot is, and what stands on it: asked before one is destroyed.
//!
//! What could go wrong: a snapshot that was renamed into another's place, or one that somebody else
//! holds or has made a clone of. So identity is the GUID, holds are counted (`zfs holds` itself
//! doesn't work in zfs-fuse), and clones are looked for in all of the pool.
//!
//! Bookmarks are here too: they keep an increment's starting point when the snapshot goes. Pool
//! version 23 has none.

use std::collections::BTreeMap;

use super::{DatasetName, Guid, SnapshotName, Zfs, parse, said};
use crate::error::{Error, Result};
use crate::process::Program;

/// So many names are given to one command: a command line has its limits.
pub(super) const AT_ONCE: usize = 200;

/// A snapshot that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// What tells it from every other.
    pub guid: Guid,
    /// Bytes that only it has.
    pub used: u64,
    /// How many hold it, Lockstep included.
    pub holds: u64,
    /// `lockstep:owner`.
    pub owner: String,
    /// What was cloned from it.
    pub clones: Vec<DatasetName>,
}

impl Zfs {
    /// Looks at those of `snapshots` that are there.
    ///
    /// # Errors
    /// When ZFS fails.
    pub fn standing(&self, snapshots: &[SnapshotName]) -> Result<BTreeMap<SnapshotName, Standing>> {
        let mut by_dataset: BTreeMap<&DatasetName, Vec<&SnapshotName>> = BTreeMap::new();
        for snapshot in snapshots {
            by_dataset.entry(&snapshot.dataset).or_default().push(snapshot);
        }
        let mut there = Vec::new();
        for (dataset, wanted) in by_dataset {
            let found = self.snapshots_of(dataset)?;
            there.extend(found.into_iter().filter(|snapshot| wanted.contains(&snapshot)));
        }
        let mut clones = self.clones_by_origin(&there)?;
        let mut all = BTreeMap::new();
        for some in there.chunks(AT_ONCE) {
            let names: Vec<_> = some.iter().map(SnapshotName::to_string).collect();
            let values = self.get(&names, &["guid", "used", "userrefs", "lockstep:owner"])?;
            for (snapshot, name) in some.iter().zip(&names) {
                let text = |property: &str| {
                    values.get(name).and_then(|of| of.get(property)).map_or("", String::as_str)
                };
                let number = |property: &str| parse::number(text(property), property);
                let standing = Standing {
                    guid: Guid::new(number("guid")?),
                    used: number("used")?,
                    holds: number("userrefs")?,
                    owner: text("lockstep:owner").to_owned(),
                    clones: clones.remove(name).unwrap_or_default(),
                };
                all.insert(snapshot.clone(), standing);
            }
        }
        Ok(all)
    }

    /// All clones in the pools of `snapshots`, by the snapshot that they stand on.
    fn clones_by_origin(
        &self,
        snapshots: &[SnapshotName],
    ) -> Result<BTreeMap<String, Vec<DatasetName>>> {
        let mut pools: Vec<_> = snapshots.iter().map(|snapshot| snapshot.dataset.pool()).collect();
        pools.sort_unstable();
        pools.dedup();
        let mut clones: BTreeMap<String, Vec<DatasetName>> = BTreeMap::new();
        for pool in pools {
            let args = ["list", "-H", "-t", "filesystem,volume", "-o", "name,origin", "-r", pool];
            for (name, origin) in parse::clones(&self.run(args)?.stdout)? {
                clones.entry(origin.to_owned()).or_default().push(parse::dataset(name)?);
            }
        }
        Ok(clones)
    }

    /// Gives up Lockstep's hold; where there is none, or no snapshot, that is fine.
    ///
    /// # Errors
    /// When `zfs` can't be started.
    pub fn release(&self, snapshot: &SnapshotName) -> Result<()> {
        match self.run(["release", super::HOLD_TAG, &snapshot.to_string()]) {
            Err(error) if !error.is_answer() => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Whether bookmarks can be made in the pool. The probe names what doesn't exist there: a ZFS that
    /// knows bookmarks says that, another that it doesn't know the command. Then the pool has to
    /// have the feature.
    ///
    /// # Errors
    /// When `zfs` can't be started.
    pub fn has_bookmarks(&self, pool: &str) -> Result<bool> {
        let absent = format!("{pool}/lockstep-probe-{}", crate::names::random_suffix()?);
        match self.run(["bookmark", &format!("{absent}@x"), &format!("{absent}#x")]) {
            Err(error) if !error.is_answer() => return Err(error.into()),
            Err(error) if !said::knows_no_command(&error) => {}
            _ => return Ok(false),
        }
        match Program::new("zpool").args(["get", "-H", "feature@bookmarks", pool]).run() {
            Ok(out) => Ok(parse::has_feature(&out.stdout)),
            Err(error) if !error.is_answer() => Err(error.into()),
            Err(_) => Ok(false),
        }
    }

    /// Makes the bookmark `dataset#name` of the snapshot `dataset@name`; one of the same snapshot is fine.
    ///
    /// # Errors
    /// When the pool doesn't allow it, or another bookmark has the name.
    pub fn bookmark(&self, snapshot: &SnapshotName, guid: Guid) -> Result<()> {
        match self.run(["bookmark", &snapshot.to_string(), &mark_of(snapshot)]) {
            Err(error) if said::is_taken(&error) => {
                if self.bookmark_guid(snapshot)? == Some(guid) {
                    return Ok(());
                }
                Err(error.into())
            }
            other => other.map(|_| ()).map_err(Into::into),
        }
    }

    /// Destroys the bookmark of what was the snapshot, if it is that snapshot's.
    ///
    /// # Errors
    /// When ZFS fails.
    pub fn destroy_bookmark(&self, snapshot: &SnapshotName, guid: Guid) -> Result<()> {
        match self.bookmark_guid(snapshot)? {
            Some(found) if found == guid => self.destroy(&mark_of(snapshot)),
            _ => Ok(()),
        }
    }

    /// Whether the snapshot's bookmark is there, whether or not the snapshot is.
    ///
    /// # Errors
    /// When ZFS fails.
    pub fn has_bookmark_of(&self, snapshot: &SnapshotName, guid: Guid) -> Result<bool> {
        Ok(self.bookmark_guid(snapshot)? == Some(guid))
    }

    fn bookmark_guid(&self, snapshot: &SnapshotName) -> Result<Option<Guid>> {
        match self.run(["get", "-Hp", "-o", "value", "guid", &mark_of(snapshot)]) {
            Err(error) if said::is_absent(&error) => Ok(None),
            other => other?.stdout.trim_end().parse().map(Some).map_err(Error::failed),
        }
    }
}

fn mark_of(snapshot: &SnapshotName) -> String {
    format!("{}#{}", snapshot.dataset, snapshot.name)
}
