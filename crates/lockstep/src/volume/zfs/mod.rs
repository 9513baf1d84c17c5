//! ZFS, by running `zfs` with an argument vector and `-H` output.
//!
//! What an implementation can do is found by its behaviour, once, and never from a version. The same code drives
//! OpenZFS 2.x and pool version 23 of zfs-fuse, whose `zfs list` and `zpool list` don't know `-p`, which takes one
//! snapshot per command, and which says "dataset is busy" for a moment after a process has left.

mod altroot;
mod clone;
mod encryption;
mod filesystem;
mod guid;
mod known;
mod parse;
mod said;
mod snapshot;
mod standing;
mod stream;
mod suspended;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use serde::{Deserialize, Serialize};

pub use clone::{CloneSpec, KEPT, KEPT_IF_KNOWN, Made, is_kept, is_set, while_received};
pub use encryption::{Encryption, is_another_key, is_local_key};
pub use filesystem::mountpoints_in;
pub use guid::Guid;
pub use snapshot::{Marked, SnapshotFacts, Tagged};
pub use standing::{GoesWith, Standing};
pub use stream::{Base, SendSpec, met_an_unmount};
pub use suspended::{Away, Suspended};

use crate::error::Result;
use crate::lock::Lock;
use crate::process::{CommandError, Output, Program};

/// The tag of Lockstep's holds.
pub const HOLD_TAG: &str = "lockstep";

/// A dataset's full name, `pool/path`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DatasetName(String);

impl TryFrom<String> for DatasetName {
    type Error = String;

    fn try_from(name: String) -> std::result::Result<Self, String> {
        Self::new(&name)
    }
}

impl From<DatasetName> for String {
    fn from(name: DatasetName) -> Self {
        name.0
    }
}

impl DatasetName {
    /// Checks a name that ZFS printed or a user wrote. Legal characters are those of zfs_namecheck.c: letters,
    /// digits, `-_.: ` and `/` between components.
    ///
    /// # Errors
    /// The reason, in words.
    pub fn new(name: &str) -> Result<Self, String> {
        let legal = |c: char| c.is_ascii_alphanumeric() || "-_.: /".contains(c);
        if name.is_empty() || name.starts_with(['/', '-']) || name.ends_with('/') {
            return Err(format!("\"{name}\" is no dataset name"));
        }
        if let Some(c) = name.chars().find(|c| !legal(*c)) {
            return Err(format!("\"{name}\" is no dataset name: it holds '{c}'"));
        }
        Ok(Self(name.to_owned()))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The pool: the name up to the first slash.
    #[must_use]
    pub fn pool(&self) -> &str {
        self.0.split('/').next().unwrap_or(&self.0)
    }

    /// The dataset above; `None` for a pool's root.
    #[must_use]
    pub fn parent(&self) -> Option<Self> {
        self.0.rsplit_once('/').map(|(parent, _)| Self(parent.to_owned()))
    }

    /// The dataset `leaf` below this one.
    #[must_use]
    pub fn child(&self, leaf: &str) -> Self {
        Self(format!("{}/{leaf}", self.0))
    }

    /// This dataset's snapshot `name`.
    #[must_use]
    pub fn snapshot(&self, name: &str) -> SnapshotName {
        SnapshotName { dataset: self.clone(), name: name.to_owned() }
    }

    /// The deepest dataset that is equal to or above all of `names`; `None` if they are in several pools.
    #[must_use]
    pub fn common_ancestor<'a>(names: impl IntoIterator<Item = &'a Self>) -> Option<Self> {
        let mut names = names.into_iter();
        let mut common: Vec<&str> = names.next()?.0.split('/').collect();
        for name in names {
            let same = common.iter().zip(name.0.split('/')).take_while(|(a, b)| *a == b).count();
            common.truncate(same);
        }
        (!common.is_empty()).then(|| Self(common.join("/")))
    }
}

impl fmt::Display for DatasetName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// `dataset@name`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SnapshotName {
    /// The dataset.
    pub dataset: DatasetName,
    /// The part after the `@`.
    pub name: String,
}

impl SnapshotName {
    /// Checks the part after the `@`: only the characters of `zfs_namecheck.c`, so it can't be a range (`%`) or a
    /// list (`,`) of snapshots to destroy.
    ///
    /// # Errors
    /// Why it isn't a name, in words.
    pub fn check(name: &str) -> Result<(), String> {
        let legal = |c: char| c.is_ascii_alphanumeric() || "-_.: ".contains(c);
        if name.is_empty() || !name.chars().all(legal) {
            return Err(format!("\"{name}\" is no name of a snapshot"));
        }
        Ok(())
    }
}

impl TryFrom<String> for SnapshotName {
    type Error = String;

    fn try_from(text: String) -> std::result::Result<Self, String> {
        let (dataset, name) = text.split_once('@').unwrap_or((&text, ""));
        Self::check(name).map_err(|_| format!("\"{text}\" is no snapshot"))?;
        Ok(DatasetName::new(dataset)?.snapshot(name))
    }
}

impl From<SnapshotName> for String {
    fn from(name: SnapshotName) -> Self {
        name.to_string()
    }
}

impl fmt::Display for SnapshotName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.dataset, self.name)
    }
}

/// Properties by dataset or snapshot, then by property.
pub type Properties = BTreeMap<String, BTreeMap<String, String>>;

/// The interface to ZFS.
#[derive(Debug, Default)]
pub struct Zfs {
    memory: known::Memory,
    /// The folders below which pools were imported, by pool.
    altroots: OnceLock<BTreeMap<String, PathBuf>>,
    /// What `zpool list` says of the pools.
    listed: OnceLock<suspended::Listed>,
    /// The lock files under which ZFS is changed, the newest last.
    locks: Mutex<Vec<Weak<File>>>,
}

impl Zfs {
    /// A handle that finds out what this ZFS can do; nothing is run yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The same, but what it finds out is kept in `zfs.json` in this folder.
    #[must_use]
    pub fn remembering_in(folder: &Path) -> Self {
        Self { memory: known::Memory::in_folder(folder), ..Self::default() }
    }

    /// From now on every `zfs` process inherits this lock, as long as it is held here or until a newer one is. So
    /// what a killed command has begun ends before the next command undoes it.
    pub fn work_under(&self, lock: &Lock) {
        let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        locks.retain(|lock| lock.strong_count() > 0);
        locks.push(Arc::downgrade(lock.file()));
    }

    fn held(&self) -> Option<Arc<File>> {
        let locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        locks.iter().rev().find_map(Weak::upgrade)
    }

    fn run<I, S>(&self, args: I) -> Result<Output, CommandError>
    where
        I: IntoIterator<Item = S>,
        S: AsRef<std::ffi::OsStr>,
    {
        Program::new("zfs").args(args).holding(self.held()).run()
    }

    /// Whether this ZFS takes several snapshots of one pool with one command, in one transaction group. The probe
    /// names two datasets in `pool` that don't exist. An implementation that can do it says that they don't exist,
    /// and one that can't says that there are too many arguments. Either way, nothing is made.
    ///
    /// # Errors
    /// When `zfs` can't be started.
    pub fn multi_snapshot(&self, pool: &str) -> Result<bool> {
        if let Some(known) = self.memory.multi_snapshot() {
            return Ok(known);
        }
        let absent = format!("{pool}/lockstep-probe-{}", crate::names::random_suffix()?);
        let probe = self.run(["snapshot", &format!("{absent}-a@x"), &format!("{absent}-b@x")]);
        let can = match probe {
            Err(error) if !error.is_answer() => return Err(error.into()),
            Err(error) => !said::wants_one(&error),
            // Snapshots of datasets that don't exist can't have been made; be careful all the same.
            Ok(_) => false,
        };
        self.memory.learn_multi_snapshot(can);
        Ok(can)
    }

    /// Properties of several datasets or snapshots in one call, with exact numbers.
    ///
    /// # Errors
    /// When one of them doesn't exist.
    pub fn get(&self, of: &[String], properties: &[&str]) -> Result<Properties> {
        if of.is_empty() {
            return Ok(Properties::new());
        }
        let mut args = vec!["get", "-Hp", "-o", "name,property,value"];
        let list = properties.join(",");
        args.push(&list);
        args.extend(of.iter().map(String::as_str));
        parse::properties(&self.run(args)?.stdout, |property| properties.contains(&property))
    }

    /// The same, plus those of `optional` that this ZFS knows (pool version 23 has no `sync`).
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn get_known(
        &self,
        of: &[String],
        needed: &[&str],
        optional: &[&str],
    ) -> Result<Properties> {
        let mut asked: Vec<&str> = optional.to_vec();
        asked.retain(|name| self.memory.property(name) != Some(false));
        let with = |asked: &[&str]| self.get(of, &[needed, asked].concat());
        match with(&asked) {
            Err(crate::error::Error::Command { error, .. }) if said::knows_no_property(&error) => {}
            other => {
                if other.is_ok() {
                    asked.iter().for_each(|name| self.memory.learn_property(name, true));
                }
                return other;
            }
        }
        // Find out which of them isn't known.
        let mut known = Vec::new();
        for name in asked.iter().copied() {
            let knows = match asked.len() {
                1 => false,
                _ => match self.get(of, &[name]) {
                    Err(crate::error::Error::Command { error, .. })
                        if said::knows_no_property(&error) =>
                    {
                        false
                    }
                    other => other.map(|_| true)?,
                },
            };
            self.memory.learn_property(name, knows);
            known.extend(knows.then_some(name));
        }
        with(&known)
    }

    /// The names of the datasets at and below `top`, the top first.
    ///
    /// # Errors
    /// When `top` doesn't exist.
    pub fn descendants(&self, top: &DatasetName) -> Result<Vec<DatasetName>> {
        let out =
            self.run(["list", "-H", "-t", "filesystem,volume", "-o", "name", "-r", top.as_str()])?;
        out.stdout.lines().map(parse::dataset).collect()
    }

    /// Whether the dataset exists.
    ///
    /// # Errors
    /// When ZFS fails for another reason.
    pub fn exists(&self, name: &str) -> Result<bool> {
        match self.run(["list", "-H", "-o", "name", name]) {
            Ok(_) => Ok(true),
            Err(error) if said::is_absent(&error) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Returns why a pool's datasets can't be listed; `None` if they can.
    ///
    /// # Errors
    /// When ZFS fails.
    pub fn away(&self, pool: &str) -> Result<Option<Away>> {
        match self.run(["list", "-H", "-o", "name", pool]) {
            Ok(_) => Ok(None),
            Err(error) if said::is_absent(&error) => Ok(Some(Away::NotImported)),
            Err(error) if said::is_suspended(&error) => Ok(Some(Away::Suspended)),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether a pool is imported read-only. zfs-fuse can't do that, and doesn't know the property.
    #[must_use]
    pub fn is_read_only(&self, pool: &str) -> bool {
        let said = Program::new("zpool").args(["list", "-H", "-o", "readonly", pool]).run();
        said.is_ok_and(|said| said.stdout.trim() == "on")
    }

    /// A pool's own GUID; `None` if it isn't imported. It stays with the pool under another name, but `zpool split`
    /// gives the new pool another one.
    #[must_use]
    pub fn pool_guid(&self, pool: &str) -> Option<Guid> {
        self.listed().guids.get(pool).copied()
    }

    /// Whether a pool has a feature switched off. A ZFS that doesn't know the feature can't say so.
    #[must_use]
    pub fn lacks_feature(&self, pool: &str, feature: &str) -> bool {
        let property = format!("feature@{feature}");
        let said = Program::new("zpool").args(["list", "-H", "-o", &property, pool]).run();
        said.is_ok_and(|said| said.stdout.trim() == "disabled")
    }

    /// Returns what ZFS says of a pool's blocks that can't be read back, if there are any.
    ///
    /// # Errors
    /// When ZFS fails.
    pub fn data_errors(&self, pool: &str) -> Result<Option<String>> {
        let said = Program::new("zpool").args(["status", pool]).run()?;
        Ok(parse::data_errors(&said.stdout).map(str::to_owned))
    }

    /// Returns those of these pools whose datasets can't be listed.
    ///
    /// # Errors
    /// When ZFS fails.
    pub fn all_away<'a>(
        &self,
        pools: impl Iterator<Item = &'a str>,
    ) -> Result<BTreeMap<String, Away>> {
        let mut all = BTreeMap::new();
        for pool in pools.collect::<BTreeSet<_>>() {
            all.extend(self.away(pool)?.map(|why| (pool.to_owned(), why)));
        }
        Ok(all)
    }

    /// The pools that are imported and not suspended.
    ///
    /// # Errors
    /// When ZFS fails.
    pub fn pools(&self) -> Result<Vec<DatasetName>> {
        let out = Program::new("zpool").args(["list", "-H", "-o", "name"]).run()?;
        let names = out.stdout.lines().filter(|name| !self.suspended().contains(*name));
        names.map(parse::dataset).collect()
    }

    /// Sets one property on several datasets or snapshots.
    ///
    /// # Errors
    /// When ZFS refuses it for one of them.
    pub fn set<T: fmt::Display>(&self, property: &str, value: &str, on: &[T]) -> Result<()> {
        if on.is_empty() {
            return Ok(());
        }
        let mut args = vec!["set".to_owned(), format!("{property}={value}")];
        args.extend(on.iter().map(T::to_string));
        self.run(args)?;
        Ok(())
    }

    /// Sets a property on a dataset that was mounted just now and that this ZFS may have to unmount for it.
    ///
    /// # Errors
    /// When it remains busy, or ZFS refuses.
    pub fn set_while_busy(&self, property: &str, value: &str, on: &DatasetName) -> Result<()> {
        Ok(self.run_while_busy(["set", &format!("{property}={value}"), on.as_str()])?)
    }

    /// Removes a dataset's own value of a property.
    ///
    /// # Errors
    /// When ZFS doesn't allow that.
    pub fn inherit(&self, property: &str, on: &DatasetName) -> Result<()> {
        self.run(["inherit", property, on.as_str()])?;
        Ok(())
    }

    /// Sets several properties on one dataset, with one command if this ZFS can do that.
    ///
    /// # Errors
    /// When ZFS refuses one of them.
    pub fn set_all(&self, properties: &[(&str, String)], on: &DatasetName) -> Result<()> {
        if properties.len() > 1 && self.memory.sets_several() != Some(false) {
            let words = properties.iter().map(|(name, value)| format!("{name}={value}"));
            let args = ["set".to_owned()].into_iter().chain(words).chain([on.to_string()]);
            if self.run(args).is_ok() {
                self.memory.learn_sets_several(true);
                return Ok(());
            }
            // zfs-fuse takes the second property for a dataset. Whether that was the reason, the next loop shows.
            self.set_one_by_one(properties, on)?;
            self.memory.learn_sets_several(false);
            return Ok(());
        }
        self.set_one_by_one(properties, on)
    }

    fn set_one_by_one(&self, properties: &[(&str, String)], on: &DatasetName) -> Result<()> {
        properties
            .iter()
            .try_for_each(|(name, value)| self.set(name, value, std::slice::from_ref(on)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> DatasetName {
        DatasetName::new(text).unwrap()
    }

    #[test]
    fn names_are_taken_apart() {
        assert_eq!(name("tank/pg/data").pool(), "tank");
        assert_eq!(name("tank/pg").parent(), Some(name("tank")));
        assert_eq!(name("tank").parent(), None);
        assert!(DatasetName::new("tank/n:e.s t-1_x").is_ok());
        for bad in ["", "/tank", "tank/", "-r", "tank@x", "tank#b", "tank/ü"] {
            assert!(DatasetName::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn snapshots_are_single_ones() {
        assert!(SnapshotName::check("lockstep-20261126T191853Z-2qiv").is_ok());
        for bad in ["", "a%b", "a,b", "a@b", "a/b", "a#b"] {
            assert!(SnapshotName::check(bad).is_err(), "{bad}");
            assert!(SnapshotName::try_from(format!("t/pg@{bad}")).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_common_ancestor_is_the_deepest() {
        let of = |names: &[&str]| {
            let names: Vec<_> = names.iter().map(|n| name(n)).collect();
            DatasetName::common_ancestor(&names).map(|n| n.to_string())
        };
        assert_eq!(of(&["t/pg/data", "t/pg/wal"]).as_deref(), Some("t/pg"));
        assert_eq!(of(&["t/pg", "t/pg/wal"]).as_deref(), Some("t/pg"));
        assert_eq!(of(&["t/pgdata", "t/pg"]).as_deref(), Some("t"));
        assert_eq!(of(&["t/a", "u/a"]), None);
    }
}
