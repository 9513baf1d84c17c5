//! Looks into a snapshot: through its `.zfs` folder or, if this ZFS has none, a temporary clone.
//!
//! A clone is recorded in a journal before it is made, so that the next start removes what a killed process left.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::context::Context;
use crate::error::{Error, Result};
use crate::files;
use crate::lock::Lock;
use crate::names::random_suffix;
use crate::restore::unfinished;
use crate::set::journal::{self, RestoreJournal};
use crate::volume::mounts::Mounts;
use crate::volume::zfs::{CloneSpec, DatasetName, SnapshotName};

/// Open views of snapshots; closed when dropped.
pub struct Views<'a> {
    cx: &'a Context<'a>,
    names: Vec<SnapshotName>,
    paths: Vec<PathBuf>,
    clones: Option<(RestoreJournal, Lock)>,
}

impl<'a> Views<'a> {
    /// Opens views of the snapshots.
    ///
    /// # Errors
    /// When one can't be opened.
    pub fn open(cx: &'a Context<'a>, snapshots: &[SnapshotName]) -> Result<Self> {
        let mut datasets: Vec<_> = snapshots.iter().map(|name| name.dataset.clone()).collect();
        datasets.sort();
        datasets.dedup();
        Self::open_in(cx, snapshots, &cx.zfs.mountpoints(&datasets)?)
    }

    /// The same if it is already known where the datasets are mounted.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_in(
        cx: &'a Context<'a>,
        snapshots: &[SnapshotName],
        mounted: &BTreeMap<DatasetName, PathBuf>,
    ) -> Result<Self> {
        let names = snapshots.to_vec();
        let mut views = Self { cx, names, paths: Vec::new(), clones: None };
        let hidden: Vec<_> = snapshots
            .iter()
            .map(|name| hidden_folder(mounted.get(&name.dataset), name))
            .collect::<Result<_>>()?;
        views.make_clones(snapshots, hidden)?;
        Ok(views)
    }

    /// Returns where the snapshot's root is, if there is a view of it.
    #[must_use]
    pub fn path(&self, snapshot: &SnapshotName) -> Option<&Path> {
        let at = self.names.iter().position(|name| name == snapshot)?;
        self.paths.get(at).map(PathBuf::as_path)
    }

    /// Returns all of them, for use by several threads.
    #[must_use]
    pub fn paths(&self) -> BTreeMap<SnapshotName, PathBuf> {
        self.names.iter().cloned().zip(self.paths.iter().cloned()).collect()
    }

    fn make_clones(
        &mut self,
        snapshots: &[SnapshotName],
        hidden: Vec<Option<PathBuf>>,
    ) -> Result<()> {
        let id = format!("view-{}", random_suffix()?);
        let folder = self.cx.state.path("views").join(&id);
        let needed: Vec<(&SnapshotName, DatasetName, PathBuf)> = snapshots
            .iter()
            .zip(&hidden)
            .enumerate()
            .filter(|(_, (_, hidden))| hidden.is_none())
            .map(|(at, (snapshot, _))| {
                let beside = snapshot.dataset.parent().unwrap_or_else(|| snapshot.dataset.clone());
                let name = beside.child(&format!("lockstep-{id}-{at}"));
                (snapshot, name, folder.join(at.to_string()))
            })
            .collect();
        if !needed.is_empty() {
            files::create_directories(&folder)?;
            let entry = RestoreJournal {
                id: id.clone(),
                datasets: needed.iter().map(|(_, dataset, _)| dataset.clone()).collect(),
                // No server runs in a view; the postmaster.pid in a clone is the live server's.
                data: folder.join("no-server"),
                places: needed
                    .iter()
                    .map(|(_, _, path)| path.clone())
                    .chain([folder.clone()])
                    .collect(),
                ..RestoreJournal::default()
            };
            let lock = unfinished::lock(self.cx, &id)?;
            journal::write(&unfinished::journal_path(self.cx, &id), &entry)?;
            self.clones = Some((entry, lock));
        }
        let mut clones = needed.iter();
        for hidden in hidden {
            let path = match hidden {
                Some(path) => path,
                None => {
                    let Some((origin, dataset, path)) = clones.next() else { continue };
                    self.cx.zfs.clone_snapshot(&CloneSpec {
                        origin,
                        dataset,
                        mountpoint: path,
                        is_written: false,
                        is_throwaway: true,
                        properties: &[
                            ("lockstep:restore", id.clone()),
                            ("lockstep:owner", self.cx.state.owner().to_owned()),
                            ("readonly", "on".to_owned()),
                        ],
                    })?;
                    path.clone()
                }
            };
            self.paths.push(path);
        }
        Ok(())
    }
}

impl Drop for Views<'_> {
    fn drop(&mut self) {
        let Some((entry, _lock)) = self.clones.take() else { return };
        let undone = unfinished::undo(self.cx, &entry)
            .and_then(|()| files::remove_file(&unfinished::journal_path(self.cx, &entry.id)));
        match undone {
            Ok(()) => unfinished::remove_lock(self.cx, &entry.id),
            Err(error) => {
                tracing::warn!(error = %error.chain(), "left for the next start to remove");
            }
        }
    }
}

/// Returns `.zfs/snapshot/NAME`, if this ZFS has it. All snapshots of a set have one name, and another dataset may be
/// mounted there by now, so what is visible there has to be this snapshot.
fn hidden_folder(mountpoint: Option<&PathBuf>, name: &SnapshotName) -> Result<Option<PathBuf>> {
    let Some(mountpoint) = mountpoint else { return Ok(None) };
    let folder = mountpoint.join(".zfs/snapshot").join(&name.name);
    match std::fs::read_dir(&folder) {
        Ok(_) => {
            let real = std::fs::canonicalize(&folder).map_err(Error::io("look into", &folder))?;
            let mounts = Mounts::read()?;
            let is_it = mounts.holding(&real).is_some_and(|mount| mount.source == name.to_string());
            Ok(is_it.then_some(folder))
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        // In a mount namespace of its own (a container's), the mount that ZFS makes for it isn't visible.
        Err(e) if e.raw_os_error() == Some(Errno::LOOP.raw_os_error()) => Ok(None),
        Err(e) => Err(Error::io("look into", &folder)(e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_that_this_namespace_does_not_see_needs_a_clone() {
        let scratch = tempfile::tempdir().unwrap();
        let mountpoint = scratch.path().to_path_buf();
        let name = DatasetName::new("t/d").unwrap().snapshot("lockstep-1");
        assert_eq!(hidden_folder(Some(&mountpoint), &name).unwrap(), None, "there is none");
        let folder = mountpoint.join(".zfs/snapshot");
        std::fs::create_dir_all(&folder).unwrap();
        // The kernel reports "Too many levels of symbolic links" for an automount that it can't make here.
        std::os::unix::fs::symlink("lockstep-1", folder.join("lockstep-1")).unwrap();
        assert_eq!(hidden_folder(Some(&mountpoint), &name).unwrap(), None);
        std::fs::remove_file(folder.join("lockstep-1")).unwrap();
        std::fs::write(folder.join("lockstep-1"), "").unwrap();
        assert!(hidden_folder(Some(&mountpoint), &name).is_err(), "anything else is an error");
    }
}
