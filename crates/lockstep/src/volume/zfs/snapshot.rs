//! Takes, inspects, tags, holds and destroys snapshots.
//!
//! Only snapshots with Lockstep's own name are ever destroyed. What could go wrong: a recursive snapshot also makes
//! snapshots of datasets that weren't asked for. These strays are destroyed at once, by name, and the backup's
//! journal names the parent in case that is interrupted.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::standing::AT_ONCE;
use super::{DatasetName, Guid, HOLD_TAG, Properties, SnapshotName, Zfs, parse, said};
use crate::error::{Error, Result};
use crate::process::CommandError;
use crate::steps;

/// How long a command is retried while ZFS says "dataset is busy" (zfs-fuse says it for a second or two after a
/// process has left a clone).
pub(super) const BUSY_LIMIT: Duration = Duration::from_secs(20);

/// What ZFS says about a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SnapshotFacts {
    /// What distinguishes it from every other snapshot.
    pub guid: Guid,
    /// The transaction group that made it; equal numbers in one pool mean the same moment.
    pub createtxg: u64,
    /// Seconds since 1970.
    pub creation: i64,
}

/// A snapshot with Lockstep's user properties.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tagged {
    /// Its name.
    pub snapshot: SnapshotName,
    /// `lockstep:owner`: which state_dir made it.
    pub owner: String,
    /// `lockstep:set`.
    pub set: String,
    /// `lockstep:state`: `taking` or `complete`.
    pub state: String,
}

/// A snapshot with the marks of a set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Marked {
    /// Its name.
    pub snapshot: SnapshotName,
    /// What ZFS says about it.
    pub facts: SnapshotFacts,
    /// The marks were set on this very snapshot: they didn't come with a stream and aren't inherited from its
    /// dataset.
    pub is_local: bool,
}

impl Zfs {
    /// Takes all these snapshots, with as few commands as this ZFS allows.
    ///
    /// With `one_moment`, all are in one transaction group. That takes one command or, if ZFS takes one snapshot per
    /// command, `-r` on the common parent, after which the strays are destroyed (dsl_dataset.c makes a recursive
    /// snapshot in one sync task). Otherwise the order of `snapshots` is kept.
    ///
    /// # Errors
    /// When one can't be made; the caller must destroy those made before it.
    pub fn snapshot(
        &self,
        snapshots: &[SnapshotName],
        one_moment: bool,
        properties: &[(&str, String)],
    ) -> Result<()> {
        let Some(first) = snapshots.first() else { return Ok(()) };
        let mut options: Vec<String> = Vec::new();
        for (name, value) in properties {
            options.extend(["-o".to_owned(), format!("{name}={value}")]);
        }
        if snapshots.len() > 1 && self.multi_snapshot(first.dataset.pool())? {
            let names = snapshots.iter().map(SnapshotName::to_string);
            match self.run(["snapshot".to_owned()].into_iter().chain(options.clone()).chain(names))
            {
                // This isn't the ZFS that was probed.
                Err(error) if said::wants_one(&error) => self.memory.learn_multi_snapshot(false),
                other => return other.map(|_| ()).map_err(Into::into),
            }
        }
        if snapshots.len() > 1 && one_moment {
            return self.snapshot_below(snapshots, &options);
        }
        for snapshot in snapshots {
            let name = snapshot.to_string();
            self.run(["snapshot".to_owned()].into_iter().chain(options.clone()).chain([name]))?;
        }
        Ok(())
    }

    fn snapshot_below(&self, snapshots: &[SnapshotName], options: &[String]) -> Result<()> {
        let name = &snapshots[0].name;
        let wanted: BTreeSet<_> = snapshots.iter().map(|s| &s.dataset).collect();
        let Some(parent) = DatasetName::common_ancestor(wanted.iter().copied()) else {
            return Err(Error::failed(format!(
                "snapshots of several pools can't be one moment: {}",
                snapshots.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
            )));
        };
        let mut args = vec!["snapshot".to_owned(), "-r".to_owned()];
        args.extend_from_slice(options);
        args.push(parent.snapshot(name).to_string());
        self.run(args)?;
        steps::reached("backup.strays")?;
        for dataset in self.descendants(&parent)? {
            if !wanted.contains(&dataset) {
                self.destroy_snapshot(&dataset.snapshot(name))?;
            }
        }
        Ok(())
    }

    /// The snapshots named `wanted` on the datasets at and below `top`; none if it is gone.
    ///
    /// # Errors
    /// When ZFS fails.
    pub fn snapshots_named(
        &self,
        top: &DatasetName,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<Vec<SnapshotName>> {
        let args = ["list", "-H", "-t", "snapshot", "-o", "name", "-r", top.as_str()];
        let out = match self.run(args) {
            Err(error) if said::is_absent(&error) => return Ok(Vec::new()),
            other => other?,
        };
        let named = parse::snapshots(&out.stdout).filter(|(_, name)| wanted(name));
        named.map(|(dataset, name)| Ok(parse::dataset(dataset)?.snapshot(name))).collect()
    }

    /// GUID, transaction group and time of each, in the given order.
    ///
    /// # Errors
    /// When one is missing.
    pub fn snapshot_facts(&self, snapshots: &[SnapshotName]) -> Result<Vec<SnapshotFacts>> {
        let names: Vec<_> = snapshots.iter().map(SnapshotName::to_string).collect();
        let mut all = Properties::new();
        for some in names.chunks(AT_ONCE) {
            all.extend(self.get(some, &["guid", "createtxg", "creation"])?);
        }
        names
            .iter()
            .map(|name| {
                let value = |property: &str| {
                    let text = all.get(name).and_then(|of| of.get(property));
                    parse::number(
                        text.map_or("nothing", String::as_str),
                        &format!("{property} of \"{name}\""),
                    )
                };
                Ok(SnapshotFacts {
                    guid: Guid::new(value("guid")?),
                    createtxg: value("createtxg")?,
                    creation: value("creation")?.cast_signed(),
                })
            })
            .collect()
    }

    /// The same, but `None` for one that doesn't exist.
    ///
    /// # Errors
    /// When ZFS fails for another reason.
    pub fn find_snapshot(&self, snapshot: &SnapshotName) -> Result<Option<SnapshotFacts>> {
        match self.snapshot_facts(std::slice::from_ref(snapshot)) {
            Ok(facts) => Ok(facts.first().copied()),
            Err(Error::Command { error, .. }) if said::is_absent(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The snapshots of `dataset` that Lockstep tagged; none if the dataset is gone.
    ///
    /// # Errors
    /// When ZFS fails.
    pub fn tagged_snapshots(&self, dataset: &DatasetName) -> Result<Vec<Tagged>> {
        let columns = parse::TAGGED_COLUMNS;
        let args =
            ["list", "-H", "-t", "snapshot", "-d", "1", "-o", columns, "-r", dataset.as_str()];
        let out = match self.run(args) {
            Err(error) if said::is_absent(&error) => return Ok(Vec::new()),
            other => other?,
        };
        parse::tagged(&out.stdout)
    }

    /// The snapshots in all imported pools that have the marks of this set and this owner.
    ///
    /// # Errors
    /// When ZFS fails.
    pub fn marked_snapshots(&self, set: &str, owner: &str) -> Result<Vec<Marked>> {
        let wanted = format!("lockstep-{set}");
        let out = self.run(["list", "-H", "-t", "snapshot", "-o", "name"])?;
        let named = parse::snapshots(&out.stdout).filter(|(_, name)| *name == wanted);
        let named = named.map(|(of, name)| Ok(parse::dataset(of)?.snapshot(name)));
        let named = named.collect::<Result<Vec<SnapshotName>>>()?;
        let mut all = Vec::new();
        for some in named.chunks(AT_ONCE) {
            let mut args =
                ["get", "-H", "-o", "name,property,value,source"].map(str::to_owned).to_vec();
            args.push("lockstep:set,lockstep:owner".to_owned());
            args.extend(some.iter().map(SnapshotName::to_string));
            let marks = parse::sourced(&self.run(args)?.stdout)?;
            // Whether it was set here; `None` if it has another value.
            let of = |one: &SnapshotName, property: &str, expected: &str| {
                let (value, source) = marks.get(&(one.to_string(), property.to_owned()))?;
                (value == expected).then(|| source == "local")
            };
            let is_local = |one: &SnapshotName| {
                let (of_set, of_owner) =
                    (of(one, "lockstep:set", set)?, of(one, "lockstep:owner", owner)?);
                Some(of_set && of_owner)
            };
            let some: Vec<_> =
                some.iter().filter_map(|one| Some((one.clone(), is_local(one)?))).collect();
            let names: Vec<_> = some.iter().map(|(name, _)| name.clone()).collect();
            let facts = self.snapshot_facts(&names)?;
            let with_facts = some.into_iter().zip(facts);
            all.extend(with_facts.map(|((snapshot, is_local), facts)| Marked {
                snapshot,
                facts,
                is_local,
            }));
        }
        Ok(all)
    }

    /// Holds each snapshot, so that no `zfs destroy` removes it; it is no error if it is held already.
    ///
    /// # Errors
    /// When one can't be held.
    pub fn hold(&self, snapshots: &[SnapshotName]) -> Result<()> {
        if snapshots.is_empty() {
            return Ok(());
        }
        match self.hold_at_once(snapshots) {
            // OpenZFS holds all or none: if one was held already, that says nothing about the others.
            Err(error) if said::is_held_already(&error) => snapshots.iter().try_for_each(|one| {
                match self.hold_at_once(std::slice::from_ref(one)) {
                    Err(error) if said::is_held_already(&error) => Ok(()),
                    other => other.map_err(Into::into),
                }
            }),
            other => other.map_err(Into::into),
        }
    }

    fn hold_at_once(&self, snapshots: &[SnapshotName]) -> Result<(), CommandError> {
        let names = snapshots.iter().map(SnapshotName::to_string);
        self.run(["hold", HOLD_TAG].into_iter().map(str::to_owned).chain(names)).map(|_| ())
    }

    /// Releases Lockstep's hold and destroys the snapshot. It is no error if it is gone.
    ///
    /// # Errors
    /// When it can't be destroyed, for example because it has a clone.
    pub fn destroy_snapshot(&self, snapshot: &SnapshotName) -> Result<()> {
        let name = snapshot.to_string();
        match self.run(["release", HOLD_TAG, &name]) {
            Ok(_) => {}
            Err(error) if said::is_absent(&error) => return Ok(()),
            // Not held, so nothing to release. If another hold stops the destroy, that error says so.
            Err(error) => tracing::debug!(%name, stderr = error.stderr(), "no hold released"),
        }
        self.destroy(&name)
    }

    /// Destroys a snapshot that nobody holds, including Lockstep. It is no error if it is gone.
    ///
    /// # Errors
    /// When it can't be destroyed, for example because somebody holds it.
    pub fn destroy_unheld(&self, snapshot: &SnapshotName) -> Result<()> {
        self.destroy(&snapshot.to_string())
    }

    /// Returns those that have a property as their own: it was set here, isn't inherited from their dataset, and
    /// didn't come with a stream.
    ///
    /// # Errors
    /// When one doesn't exist, or ZFS fails.
    pub fn carrying(
        &self,
        snapshots: &[SnapshotName],
        property: &str,
    ) -> Result<BTreeSet<SnapshotName>> {
        let mut carrying = BTreeSet::new();
        for some in snapshots.chunks(AT_ONCE) {
            let args = ["get", "-H", "-o", "name,property,value,source", property];
            let args = args.into_iter().map(str::to_owned);
            let out = self.run(args.chain(some.iter().map(SnapshotName::to_string)))?;
            let marks = parse::sourced(&out.stdout)?;
            let is_own = |one: &&SnapshotName| {
                let found = marks.get(&(one.to_string(), property.to_owned()));
                found.is_some_and(|(_, source)| source == "local")
            };
            carrying.extend(some.iter().filter(is_own).cloned());
        }
        Ok(carrying)
    }

    /// `zfs destroy NAME`, retried while it is busy. It is no error if it is gone.
    pub(super) fn destroy(&self, name: &str) -> Result<()> {
        match self.run_while_busy(["destroy", name]) {
            Err(error) if said::is_absent(&error) => Ok(()),
            other => other.map_err(Into::into),
        }
    }

    /// Repeats a command as long as ZFS says that the dataset is busy.
    pub(super) fn run_while_busy<const N: usize>(
        &self,
        args: [&str; N],
    ) -> Result<(), CommandError> {
        let deadline = Instant::now() + BUSY_LIMIT;
        // Usually a moment is enough.
        let mut pause = Duration::from_millis(5);
        loop {
            match self.run(args) {
                Ok(_) => return Ok(()),
                Err(error) if said::is_busy(&error) && Instant::now() < deadline => {
                    std::thread::sleep(pause);
                    pause = (2 * pause).min(Duration::from_millis(100));
                }
                Err(error) => return Err(error),
            }
        }
    }
}
