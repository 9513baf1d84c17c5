//! What a snapshot is and what depends on it; this is checked before one is destroyed.
//!
//! What could go wrong: another snapshot was renamed into its place, or somebody else holds it or has made a clone of
//! it. So identity is the GUID, holds are counted (`zfs holds` itself doesn't work in zfs-fuse), and clones are
//! searched for in the whole pool.
//!
//! Bookmarks are here too: they keep an increment's starting point when the snapshot is destroyed. Pool version 23
//! has none.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Deref;
use std::sync::Arc;

use super::{DatasetName, Guid, Properties, SnapshotName, Zfs, parse, said};
use crate::error::{Error, Result};
use crate::process::Program;

/// How many names one command gets: the length of a command line is limited.
pub(super) const AT_ONCE: usize = 200;

/// An existing snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// What distinguishes it from every other snapshot.
    pub guid: Guid,
    /// Bytes that only it has.
    pub used: u64,
    /// The number of holds, including Lockstep's.
    pub holds: u64,
    /// `lockstep:owner`.
    pub owner: String,
    /// Its clones.
    pub clones: Vec<DatasetName>,
    /// The clones of it and of the later snapshots of its dataset, those of the newest first: `zfs promote` of one of
    /// them takes it along.
    pub goes_with: GoesWith,
}

/// The beginning of a list of clones. Where clones are of a recent snapshot, each of the thousands before it has nearly
/// all of them: a list for each would take gigabytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GoesWith {
    /// Those of the newest snapshot first; shared by the dataset's snapshots.
    all: Arc<[DatasetName]>,
    number: usize,
}

impl Deref for GoesWith {
    type Target = [DatasetName];

    fn deref(&self) -> &[DatasetName] {
        self.all.get(..self.number).unwrap_or_default()
    }
}

impl From<&[DatasetName]> for GoesWith {
    fn from(all: &[DatasetName]) -> Self {
        Self { all: all.into(), number: all.len() }
    }
}

/// Returns what goes along with those snapshots of a dataset that are `wanted`: `found` are all of them, in the order in
/// which they were taken.
fn going_with(
    found: &[SnapshotName],
    wanted: &BTreeSet<&SnapshotName>,
    clones: &BTreeMap<String, Vec<DatasetName>>,
) -> Vec<(String, GoesWith)> {
    let (mut later, mut numbers) = (Vec::new(), Vec::new());
    for snapshot in found.iter().rev() {
        let name = snapshot.to_string();
        later.extend(clones.get(&name).into_iter().flatten().cloned());
        // The others may be many.
        if wanted.contains(snapshot) {
            numbers.push((name, later.len()));
        }
    }
    let all: Arc<[DatasetName]> = later.into();
    let of = |(name, number)| (name, GoesWith { all: Arc::clone(&all), number });
    numbers.into_iter().map(of).collect()
}

impl Zfs {
    /// Looks at those of `snapshots` that exist and aren't on a suspended pool.
    ///
    /// # Errors
    /// When ZFS fails.
    pub fn standing(&self, snapshots: &[SnapshotName]) -> Result<BTreeMap<SnapshotName, Standing>> {
        let mut by_dataset: BTreeMap<&DatasetName, BTreeSet<&SnapshotName>> = BTreeMap::new();
        for snapshot in snapshots {
            by_dataset.entry(&snapshot.dataset).or_default().insert(snapshot);
        }
        let (mut there, mut of_each) = (Vec::new(), Vec::new());
        for (dataset, wanted) in by_dataset {
            let found = match self.snapshots_of(dataset) {
                Err(Error::Command { error, .. }) if said::is_suspended(&error) => continue,
                other => other?,
            };
            there.extend(found.iter().filter(|snapshot| wanted.contains(snapshot)).cloned());
            of_each.push((found, wanted));
        }
        let mut clones = self.clones_by_origin(&there)?;
        let mut going: BTreeMap<String, GoesWith> = BTreeMap::new();
        for (found, wanted) in &of_each {
            going.extend(going_with(found, wanted, &clones));
        }
        let mut all = self.without_clones(&there)?;
        for (snapshot, standing) in &mut all {
            let name = snapshot.to_string();
            standing.clones = clones.remove(&name).unwrap_or_default();
            standing.goes_with = going.remove(&name).unwrap_or_default();
        }
        Ok(all)
    }

    /// The same for the snapshots of one set, without listing the others of their datasets, of which there may be a
    /// hundred thousand. What would go along with them ([`Standing::goes_with`]) remains unknown.
    ///
    /// # Errors
    /// When ZFS fails.
    pub fn standing_alone(
        &self,
        snapshots: &[SnapshotName],
    ) -> Result<BTreeMap<SnapshotName, Standing>> {
        let mut by_pool: BTreeMap<&str, BTreeSet<SnapshotName>> = BTreeMap::new();
        for snapshot in snapshots {
            by_pool.entry(snapshot.dataset.pool()).or_default().insert(snapshot.clone());
        }
        let mut all = BTreeMap::new();
        for wanted in by_pool.into_values() {
            match self.without_clones(&wanted.into_iter().collect::<Vec<_>>()) {
                Err(Error::Command { error, .. }) if said::is_suspended(&error) => {}
                found => all.extend(found?),
            }
        }
        let there: Vec<_> = all.keys().cloned().collect();
        let mut clones = self.clones_by_origin(&there)?;
        for (snapshot, standing) in &mut all {
            standing.clones = clones.remove(&snapshot.to_string()).unwrap_or_default();
        }
        Ok(all)
    }

    /// Reads what those of `snapshots` are that exist, but not their clones.
    fn without_clones(
        &self,
        snapshots: &[SnapshotName],
    ) -> Result<BTreeMap<SnapshotName, Standing>> {
        let mut all = BTreeMap::new();
        for some in snapshots.chunks(AT_ONCE) {
            let names: Vec<_> = some.iter().map(SnapshotName::to_string).collect();
            let values =
                self.get_of_existing(&names, &["guid", "used", "userrefs", "lockstep:owner"])?;
            for (snapshot, name) in some.iter().zip(&names) {
                let Some(of) = values.get(name) else { continue };
                let text = |property: &str| of.get(property).map_or("", String::as_str);
                let number = |property: &str| parse::number(text(property), property);
                let standing = Standing {
                    guid: Guid::new(number("guid")?),
                    used: number("used")?,
                    holds: number("userrefs")?,
                    owner: text("lockstep:owner").to_owned(),
                    clones: Vec::new(),
                    goes_with: GoesWith::default(),
                };
                all.insert(snapshot.clone(), standing);
            }
        }
        Ok(all)
    }

    /// Properties of those of these snapshots that still exist: some may have been removed since they were listed.
    pub(super) fn get_of_existing(
        &self,
        names: &[String],
        properties: &[&str],
    ) -> Result<Properties> {
        match self.get(names, properties) {
            Err(Error::Command { error, .. }) if said::is_absent(&error) => {}
            got => return got,
        }
        if names.len() < 2 {
            return Ok(Properties::new());
        }
        let (one, other) = names.split_at(names.len() / 2);
        let mut all = self.get_of_existing(one, properties)?;
        all.extend(self.get_of_existing(other, properties)?);
        Ok(all)
    }

    /// All clones in the pools of `snapshots`, by their origin.
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

    /// Releases Lockstep's hold; it is no error if there is no hold, or no snapshot.
    ///
    /// # Errors
    /// When `zfs` can't be started.
    pub fn release(&self, snapshot: &SnapshotName) -> Result<()> {
        match self.run(["release", super::HOLD_TAG, &snapshot.to_string()]) {
            Err(error) if !error.is_answer() => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Whether bookmarks can be made in the pool. The probe names something that doesn't exist there. A ZFS that
    /// knows bookmarks says so; another says that it doesn't know the command. The pool must then have the feature as
    /// well.
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

    /// Makes the bookmark `dataset#name` of the snapshot `dataset@name`; it is no error if it exists for the same
    /// snapshot.
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

    /// Destroys the bookmark with the snapshot's name, if it was made from that snapshot.
    ///
    /// # Errors
    /// When ZFS fails.
    pub fn destroy_bookmark(&self, snapshot: &SnapshotName, guid: Guid) -> Result<()> {
        match self.bookmark_guid(snapshot)? {
            Some(found) if found == guid => self.destroy(&mark_of(snapshot)),
            _ => Ok(()),
        }
    }

    /// Whether the snapshot's bookmark exists, whether or not the snapshot still does.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_along_is_one_list_for_all_snapshots_of_a_dataset() {
        let dataset = DatasetName::new("t/pg").unwrap();
        let snapshot = |number| dataset.snapshot(&format!("s{number}"));
        let found: Vec<_> = (0..1000).map(snapshot).collect();
        let clone = |name: &str| DatasetName::new(name).unwrap();
        let clones = BTreeMap::from([
            ("t/pg@s999".to_owned(), vec![clone("t/newest"), clone("t/second")]),
            ("t/pg@s500".to_owned(), vec![clone("t/middle")]),
        ]);
        let wanted = found.iter().filter(|snapshot| **snapshot != found[700]).collect();
        let going: BTreeMap<_, _> = going_with(&found, &wanted, &clones).into_iter().collect();
        assert_eq!(going.len(), 999);
        let of = |number: usize| &going[&found[number].to_string()];
        let newest = [clone("t/newest"), clone("t/second")];
        assert_eq!(of(999)[..], newest);
        assert_eq!(of(501)[..], newest);
        for number in [500, 499, 0] {
            assert_eq!(of(number).len(), 3, "s{number}");
            assert!(of(number).contains(&clone("t/middle")));
        }
        assert!(Arc::ptr_eq(&of(0).all, &of(999).all), "one list");
        assert!(GoesWith::default().is_empty());
    }
}
