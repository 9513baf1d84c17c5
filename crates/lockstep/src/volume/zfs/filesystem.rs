//! Datasets that Lockstep makes and keeps: they are made with marks that say who owns them, and destroyed only while
//! they carry these.
//!
//! What could go wrong: user properties are inherited, so a dataset below one of Lockstep's shows the same marks.
//! Only those set on the dataset itself count.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use super::{DatasetName, Guid, Properties, SnapshotName, Zfs, parse, said};
use crate::error::{Error, Result};

impl Zfs {
    /// Makes and mounts a filesystem whose parent exists.
    ///
    /// # Errors
    /// When ZFS refuses: it exists already, its parent doesn't, or a property isn't known.
    pub fn create(&self, dataset: &DatasetName, properties: &[(&str, String)]) -> Result<()> {
        let mut args = vec!["create".to_owned()];
        for (name, value) in properties {
            args.extend(["-o".to_owned(), format!("{name}={value}")]);
        }
        args.push(dataset.to_string());
        self.run(args)?;
        Ok(())
    }

    /// Where the dataset is, or would be, mounted; `None` for `none` and `legacy`.
    ///
    /// # Errors
    /// When it doesn't exist.
    pub fn mountpoint(&self, dataset: &DatasetName) -> Result<Option<PathBuf>> {
        let mut all = self.mountpoints(std::slice::from_ref(dataset))?;
        Ok(all.remove(dataset))
    }

    /// The same for several datasets in one command; those without a mount point are left out.
    ///
    /// # Errors
    /// When one of them doesn't exist.
    pub fn mountpoints(&self, datasets: &[DatasetName]) -> Result<BTreeMap<DatasetName, PathBuf>> {
        let names: Vec<_> = datasets.iter().map(DatasetName::to_string).collect();
        Ok(mountpoints_in(datasets, &self.get(&names, &["mountpoint"])?))
    }

    /// The mount point of each filesystem of all pools that ZFS mounts by itself.
    ///
    /// # Errors
    /// When ZFS fails.
    pub fn places(&self) -> Result<Vec<(DatasetName, PathBuf)>> {
        let args = ["list", "-H", "-t", "filesystem", "-o", "name,mountpoint,canmount"];
        parse::places(&self.run(args)?.stdout)
    }

    /// One property.
    ///
    /// # Errors
    /// When the dataset doesn't exist.
    pub fn value(&self, dataset: &DatasetName, property: &str) -> Result<String> {
        let mut all = self.get(&[dataset.to_string()], &[property])?;
        let of = all.remove(dataset.as_str()).and_then(|mut of| of.remove(property));
        of.ok_or_else(|| Error::failed(format!("\"zfs get\" says no {property} of \"{dataset}\"")))
    }

    /// One property as a number of bytes.
    ///
    /// # Errors
    /// When the dataset doesn't exist.
    pub fn bytes(&self, dataset: &DatasetName, property: &str) -> Result<u64> {
        parse::number(&self.value(dataset, property)?, property)
    }

    /// A dataset's own GUID: neither a rollback nor a receive changes it, and no other dataset gets it.
    ///
    /// # Errors
    /// When the dataset doesn't exist.
    pub fn guid(&self, dataset: &DatasetName) -> Result<Guid> {
        self.value(dataset, "guid")?.parse().map_err(Error::failed)
    }

    /// Whether the dataset carries `property=value` as its own; `None` if it is gone.
    ///
    /// # Errors
    /// When ZFS fails.
    pub fn carries(
        &self,
        dataset: &DatasetName,
        property: &str,
        value: &str,
    ) -> Result<Option<bool>> {
        Ok(self.sourced(dataset, property)?.map(|own| own == (value.into(), "local".into())))
    }

    /// The same, also if the property came with a stream; inherited from the dataset above it doesn't count.
    ///
    /// # Errors
    /// When ZFS fails.
    pub fn was_given(
        &self,
        dataset: &DatasetName,
        property: &str,
        value: &str,
    ) -> Result<Option<bool>> {
        Ok(self.sourced(dataset, property)?.map(|(found, source)| {
            found == value && ["local", "received"].contains(&source.as_str())
        }))
    }

    /// A property's value, and where it comes from; `None` if the dataset is gone.
    fn sourced(&self, dataset: &DatasetName, property: &str) -> Result<Option<(String, String)>> {
        let args = ["get", "-Hp", "-o", "value,source", property, dataset.as_str()];
        match self.run(args) {
            Err(error) if said::is_absent(&error) => Ok(None),
            other => {
                let said = other?.stdout;
                let (value, source) = said.trim_end().rsplit_once('\t').unwrap_or_default();
                Ok(Some((value.to_owned(), source.to_owned())))
            }
        }
    }

    /// Whether each of them carries the property as its own, whatever its value; false for an empty list.
    ///
    /// # Errors
    /// When one doesn't exist, or ZFS fails.
    pub fn all_carry(&self, datasets: &[DatasetName], property: &str) -> Result<bool> {
        if datasets.is_empty() {
            return Ok(false);
        }
        let args = ["get", "-Hp", "-o", "source", property];
        let out = self.run(args.into_iter().chain(datasets.iter().map(DatasetName::as_str)))?;
        let sources: Vec<_> = out.stdout.lines().collect();
        Ok(sources.len() == datasets.len() && sources.iter().all(|source| *source == "local"))
    }

    /// The datasets directly below this one; none if it doesn't exist.
    ///
    /// # Errors
    /// When ZFS fails.
    pub fn children(&self, of: &DatasetName) -> Result<BTreeSet<DatasetName>> {
        let args = ["list", "-H", "-t", "filesystem,volume", "-d", "1", "-o", "name", "-r"];
        let out = match self.run(args.into_iter().chain([of.as_str()])) {
            Err(error) if said::is_absent(&error) => return Ok(BTreeSet::new()),
            other => other?,
        };
        // A name that no restore would choose isn't one of its datasets.
        let names = out.stdout.lines().filter_map(|name| parse::dataset(name).ok());
        Ok(names.filter(|name| name != of).collect())
    }

    /// The filesystems in all imported pools that carry `property=value` as their own.
    ///
    /// # Errors
    /// When ZFS fails.
    pub fn all_with(&self, property: &str, value: &str) -> Result<Vec<DatasetName>> {
        let columns = format!("name,{property}");
        let listed = self.run(["list", "-H", "-t", "filesystem", "-o", &columns])?.stdout;
        let shown = listed.lines().filter_map(|line| line.split_once('\t'));
        let shown = shown.filter(|(_, shown)| *shown == value);
        let mut all = Vec::new();
        for (name, _) in shown {
            let name = parse::dataset(name)?;
            if self.carries(&name, property, value)? == Some(true) {
                all.push(name);
            }
        }
        Ok(all)
    }

    /// Destroys a dataset if it carries `property=value` as its own; returns whether it is gone.
    ///
    /// # Errors
    /// When it has snapshots or children, or remains busy.
    pub fn destroy_carrying(
        &self,
        dataset: &DatasetName,
        property: &str,
        value: &str,
    ) -> Result<bool> {
        match self.carries(dataset, property, value)? {
            None => Ok(true),
            Some(true) => self.destroy(dataset.as_str()).map(|()| true),
            Some(false) => Ok(false),
        }
    }

    /// All snapshots of the dataset itself, whoever took them; none if it is gone.
    ///
    /// # Errors
    /// When ZFS fails.
    pub fn snapshots_of(&self, dataset: &DatasetName) -> Result<Vec<SnapshotName>> {
        let args =
            ["list", "-H", "-t", "snapshot", "-d", "1", "-o", "name", "-r", dataset.as_str()];
        let out = match self.run(args) {
            Err(error) if said::is_absent(&error) => return Ok(Vec::new()),
            other => other?,
        };
        let names = parse::snapshots(&out.stdout);
        names.map(|(of, name)| Ok(parse::dataset(of)?.snapshot(name))).collect()
    }

    /// The clones in the dataset's pool whose origin is one of its snapshots.
    ///
    /// # Errors
    /// When ZFS fails.
    pub fn clones_of(&self, dataset: &DatasetName) -> Result<Vec<DatasetName>> {
        let args =
            ["list", "-H", "-t", "filesystem,volume", "-o", "name,origin", "-r", dataset.pool()];
        let out = self.run(args)?;
        let stands =
            |origin: &str| origin.split_once('@').is_some_and(|(of, _)| of == dataset.as_str());
        let clones = parse::clones(&out.stdout)?.into_iter();
        clones.filter(|(_, origin)| stands(origin)).map(|(name, _)| parse::dataset(name)).collect()
    }
}

/// The mount points in the answer to a query for `mountpoint`; datasets without one are left out.
#[must_use]
pub fn mountpoints_in(
    datasets: &[DatasetName],
    properties: &Properties,
) -> BTreeMap<DatasetName, PathBuf> {
    let of = |dataset: &DatasetName| {
        let value = properties.get(dataset.as_str())?.get("mountpoint")?;
        value.starts_with('/').then(|| value.into())
    };
    datasets.iter().filter_map(|name| Some((name.clone(), of(name)?))).collect()
}
