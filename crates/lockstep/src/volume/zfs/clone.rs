//! Clones: writable copies of a set's snapshots, made in milliseconds.
//!
//! A clone takes its properties from its parent dataset and not from its origin, so those that
//! matter to PostgreSQL are copied from the origin's dataset.

use std::collections::BTreeSet;
use std::path::Path;

use super::standing::AT_ONCE;
use super::{DatasetName, Properties, SnapshotName, Zfs, parse, said};
use crate::error::Result;

/// The properties that a copy of a dataset gets too: a clone, or a dataset received from a repository.
pub const KEPT: [&str; 6] =
    ["recordsize", "compression", "atime", "logbias", "primarycache", "xattr"];
/// The same, for properties that pool version 23 doesn't have.
pub const KEPT_IF_KNOWN: [&str; 2] = ["redundant_metadata", ACLTYPE];

/// Whether files have access control lists, and of which kind. If it is off, lists that exist have no effect.
const ACLTYPE: &str = "acltype";

/// When a commit is on disk. A received dataset inherits it.
const SYNC: &str = "sync";

/// Whether a restored copy gets this property from its set.
#[must_use]
pub fn is_kept(property: &str) -> bool {
    KEPT.contains(&property) || KEPT_IF_KNOWN.contains(&property)
}

/// Whether a copy must have this property's value. Without access control lists, a ZFS that doesn't know them can
/// hold the copy.
#[must_use]
pub fn is_set(property: &str, value: &str) -> bool {
    value != "-" && !(property == ACLTYPE && ["off", "noacl"].contains(&value))
}

/// Whether a clone must have this property's value of its original. Beside its original it may inherit `sync=disabled`
/// from a dataset that the original has another value against: a clone that is kept must not lose commits that the
/// original wouldn't lose.
fn is_set_on_clone(property: &str, value: &str, is_throwaway: bool) -> bool {
    let is_needed = property != SYNC || (!is_throwaway && value != "disabled");
    is_needed && is_set(property, value)
}

/// A clone to be made.
#[derive(Debug, Clone)]
pub struct CloneSpec<'a> {
    /// The snapshot it starts from.
    pub origin: &'a SnapshotName,
    /// Its own name; in the origin's pool.
    pub dataset: &'a DatasetName,
    /// Where it is mounted.
    pub mountpoint: &'a Path,
    /// Whether settings that matter to a server are copied from the origin's dataset; a clone that is only read needs
    /// none.
    pub is_written: bool,
    /// Lockstep will remove it: no scheduled snapshots should be taken of it.
    pub is_throwaway: bool,
    /// User properties that say who owns it.
    pub properties: &'a [(&'a str, String)],
}

impl Zfs {
    /// Makes and mounts a clone.
    ///
    /// # Errors
    /// When ZFS refuses, or the mount point isn't text that ZFS takes.
    pub fn clone_snapshot(&self, spec: &CloneSpec<'_>) -> Result<()> {
        let mountpoint = self.mountpoint_for(spec.dataset, spec.mountpoint)?;
        let source = spec.origin.dataset.to_string();
        let inherited = match spec.is_written {
            true => {
                let optional = [&KEPT_IF_KNOWN[..], &[SYNC]].concat();
                self.get_known(std::slice::from_ref(&source), &KEPT, &optional)?
            }
            false => Properties::new(),
        };
        let mut args = vec!["clone".to_owned()];
        let mut option = |name: &str, value: &str| {
            args.extend(["-o".to_owned(), format!("{name}={value}")]);
        };
        option("mountpoint", &mountpoint);
        if spec.is_throwaway {
            // A snapshot taken by zfs-auto-snapshot or a similar tool would keep it from being destroyed.
            option("com.sun:auto-snapshot", "false");
        }
        if spec.is_written {
            // Otherwise it inherits readonly from the dataset above it, and there are pools where that is on by
            // default.
            option("readonly", "off");
        }
        for (name, value) in inherited.get(&source).into_iter().flatten() {
            if is_set_on_clone(name, value, spec.is_throwaway) {
                option(name, value);
            }
        }
        for (name, value) in spec.properties {
            option(name, value);
        }
        args.push(spec.origin.to_string());
        args.push(spec.dataset.to_string());
        self.run(args)?;
        Ok(())
    }

    /// Unmounts and destroys a dataset that carries `lockstep:restore=ID` as its own property. It is no error if the
    /// dataset is gone. One without the property wasn't made by that restore, and stays.
    ///
    /// # Errors
    /// When it remains busy.
    pub fn destroy_clone(&self, dataset: &DatasetName, restore_id: &str) -> Result<()> {
        let args = ["get", "-Hp", "-o", "value,source", "lockstep:restore", dataset.as_str()];
        let out = match self.run(args) {
            Err(error) if said::is_absent(&error) => return Ok(()),
            other => other?,
        };
        if out.stdout.trim_end() != format!("{restore_id}\tlocal")
            && !receiving_for(dataset, restore_id)
        {
            tracing::warn!(
                %dataset, restore = restore_id, says = out.stdout.trim_end(),
                "that restore didn't make this dataset, as its lockstep:restore shows: it stays"
            );
            return Ok(());
        }
        self.destroy(dataset.as_str())
    }

    /// The same for several datasets that are known to exist, the last first. One command looks at all of them;
    /// unless it shows that all are Lockstep's, they are checked one by one.
    ///
    /// # Errors
    /// As [`Self::destroy_clone`].
    pub fn destroy_clones(&self, datasets: &[DatasetName], restore_id: &str) -> Result<()> {
        let args = ["get", "-Hp", "-o", "name,value,source", "lockstep:restore"];
        let asked = args.into_iter().chain(datasets.iter().map(DatasetName::as_str));
        let said = match datasets.len() {
            2.. => self.run(asked).map(|out| out.stdout).unwrap_or_default(),
            _ => String::new(),
        };
        for dataset in datasets.iter().rev() {
            let ours = format!("{dataset}\t{restore_id}\tlocal");
            match said.lines().any(|line| line == ours) {
                true => self.destroy(dataset.as_str())?,
                false => self.destroy_clone(dataset, restore_id)?,
            }
        }
        Ok(())
    }
}

/// A dataset that a restore or a clone has made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Made {
    /// Its name.
    pub dataset: DatasetName,
    /// The snapshot that it is a clone of.
    pub origin: Option<SnapshotName>,
    /// `lockstep:restore`: the restore's id.
    pub restore: String,
    /// `lockstep:owner`: the state_dir that made it.
    pub owner: String,
}

impl Made {
    /// Whether it will be removed some day although its making is complete, as clones are. One that was promoted is
    /// somebody's.
    fn is_throwaway(&self) -> bool {
        self.restore.starts_with("clone-") && self.origin.is_some()
    }
}

impl Zfs {
    /// The datasets in all imported pools that carry a restore's mark as their own property, unless the restore has
    /// ended; and clones.
    ///
    /// # Errors
    /// When ZFS fails.
    pub fn unended(&self) -> Result<Vec<Made>> {
        let columns = parse::MADE_COLUMNS;
        let out = self.run(["list", "-H", "-t", "filesystem,volume", "-o", columns])?;
        let mut all = parse::made(&out.stdout)?;
        let mut own = BTreeSet::new();
        for some in all.chunks(AT_ONCE) {
            let args = [
                "get",
                "-H",
                "-o",
                "name,property,value,source",
                "lockstep:restore,lockstep:ended",
            ];
            let names = some.iter().map(|made| made.dataset.as_str());
            let marks = match self.run(args.into_iter().chain(names)) {
                // One has gone since; the next call reports the others.
                Err(error) if said::is_absent(&error) => continue,
                out => parse::sourced(&out?.stdout)?,
            };
            // User properties are inherited, so only local ones count.
            let is_own = |made: &Made, property: &str| {
                let found = marks.get(&(made.dataset.to_string(), property.to_owned()));
                found.is_some_and(|(_, source)| source == "local")
            };
            let unended = some.iter().filter(|made| {
                is_own(made, "lockstep:restore")
                    && (made.is_throwaway() || !is_own(made, "lockstep:ended"))
            });
            own.extend(unended.map(|made| made.dataset.clone()));
        }
        all.retain(|made| own.contains(&made.dataset));
        Ok(all)
    }

    /// Destroys a snapshot that was received into a dataset of that restore. It is no error if it is gone; a snapshot
    /// of another dataset stays.
    ///
    /// # Errors
    /// When the snapshot can't be destroyed.
    pub fn destroy_received(
        &self,
        dataset: &DatasetName,
        snapshot: &str,
        restore_id: &str,
    ) -> Result<()> {
        match self.carries(dataset, "lockstep:restore", restore_id)? {
            None => Ok(()),
            Some(carries) if carries || receiving_for(dataset, restore_id) => {
                match self.exists(snapshot)? {
                    true => self.destroy(snapshot),
                    false => Ok(()),
                }
            }
            // [`Self::destroy_clone`] reports that.
            Some(_) => Ok(()),
        }
    }
}

/// The name of a dataset while it is received: it can't carry a property before it is complete, so its name says who
/// owns it.
#[must_use]
pub fn while_received(parent: &DatasetName, restore_id: &str, index: usize) -> DatasetName {
    parent.child(&format!("{}{index}", receiving(restore_id)))
}

fn receiving(restore_id: &str) -> String {
    format!("lockstep-receiving-{restore_id}-")
}

fn receiving_for(dataset: &DatasetName, restore_id: &str) -> bool {
    let leaf = dataset.as_str().rsplit('/').next().unwrap_or_default();
    leaf.starts_with(&receiving(restore_id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn access_control_lists_are_kept_where_there_are_any() {
        for value in ["posix", "posixacl", "nfsv4"] {
            assert!(is_set(ACLTYPE, value));
        }
        for value in ["off", "noacl", "-"] {
            assert!(!is_set(ACLTYPE, value));
        }
        assert!(is_set("xattr", "off") && !is_set("xattr", "-"));
    }

    #[test]
    fn a_clone_that_is_kept_syncs_what_its_original_syncs() {
        for value in ["standard", "always"] {
            assert!(is_set_on_clone(SYNC, value, false) && !is_set_on_clone(SYNC, value, true));
        }
        assert!(!is_set_on_clone(SYNC, "disabled", false) && !is_set_on_clone(SYNC, "-", false));
        assert!(is_set_on_clone("atime", "off", true) && !is_set_on_clone(ACLTYPE, "off", true));
        assert!(!is_kept(SYNC), "what a set brings from elsewhere doesn't decide it");
    }

    #[test]
    fn a_copy_gets_what_is_stored_and_nothing_else() {
        assert!(["recordsize", "compression", "acltype"].into_iter().all(is_kept));
        let others =
            ["mountpoint", "sharenfs", "sharesmb", "setuid", "canmount", "lockstep:restore", ""];
        assert!(!others.into_iter().any(is_kept));
    }
}
