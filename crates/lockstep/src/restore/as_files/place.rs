//! A folder that is written into without ever following a link out of it.
//!
//! Every folder is reached from the root step by step, each opened by its name in the one before,
//! and a step that is a symbolic link is an error. `openat2` would do it in one call, but only on Linux.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::plan::{File, Plan};
use crate::error::{Error, Result};
use crate::files::opened::FOLDER;
use crate::restore::placement::{FolderElsewhere, place_of};

/// Combined with other flags: opens the file itself, and doesn't wait for a pipe's other end.
pub(in crate::restore) const FILE: OFlags =
    OFlags::NOFOLLOW.union(OFlags::NONBLOCK).union(OFlags::CLOEXEC).union(OFlags::NOCTTY);

/// The folder of a volume.
pub(super) struct Root {
    pub(super) fd: OwnedFd,
    path: PathBuf,
    /// Folders of the volume that are elsewhere, in the order of [`super::Volume::apart`].
    apart: Vec<(FolderElsewhere, OwnedFd)>,
}

impl Root {
    /// Opens it and the folders elsewhere; makes each of them, and its parents, if missing.
    pub(super) fn open(path: &Path, apart: &[FolderElsewhere]) -> Result<Self> {
        let open = |path: &Path| -> Result<OwnedFd> {
            crate::files::create_open_directories(path)?;
            rustix::fs::open(path, FOLDER, Mode::empty())
                .map_err(|e| Error::io("open", path)(e.into()))
        };
        let opened = |apart: &FolderElsewhere| Ok((apart.clone(), open(&apart.folder)?));
        let apart = apart.iter().map(opened).collect::<Result<_>>()?;
        Ok(Self { fd: open(path)?, path: path.to_path_buf(), apart })
    }

    /// Writes everything to disk: one call for a whole file system, instead of one for each file.
    pub(super) fn sync(&self) -> Result<()> {
        let all = std::iter::once((&self.fd, &self.path))
            .chain(self.apart.iter().map(|(apart, fd)| (fd, &apart.folder)));
        for (fd, path) in all {
            rustix::fs::syncfs(fd).map_err(|e| Error::io("sync", path)(e.into()))?;
        }
        Ok(())
    }

    /// Makes an error for `map_err`, about a path below the root.
    pub(super) fn failed(
        &self,
        verb: &'static str,
        inside: impl FnOnce() -> PathBuf,
    ) -> impl FnOnce(Errno) -> Error {
        move |errno| {
            let apart = self.apart.iter().map(|(apart, _)| apart);
            Error::io(verb, place_of(&self.path, apart, &inside()))(errno.into())
        }
    }

    /// Opens a folder of the plan.
    pub(super) fn folder(&self, plan: &Plan<'_>, folder: usize) -> Result<OwnedFd> {
        let failed = |e| self.failed("open", || plan.folder_path(folder))(e);
        let (apart, steps) = plan.way_to(folder);
        let top = apart.and_then(|which| self.apart.get(which)).map_or(&self.fd, |(_, fd)| fd);
        descend(top, &steps).map_err(failed)
    }

    /// Opens an existing file of the plan.
    pub(super) fn file(
        &self,
        plan: &Plan<'_>,
        file: &File<'_>,
        folder: impl AsFd,
        flags: OFlags,
    ) -> Result<OwnedFd> {
        rustix::fs::openat(folder, OsStr::from_bytes(file.name), FILE | flags, Mode::empty())
            .map_err(self.failed("open", || plan.file_path(file)))
    }
}

/// Opens the folder at the end of these steps.
pub(super) fn descend(top: &OwnedFd, steps: &[&[u8]]) -> rustix::io::Result<OwnedFd> {
    let mut fd = top.try_clone().map_err(|_| Errno::MFILE)?;
    for step in steps {
        fd = rustix::fs::openat(&fd, OsStr::from_bytes(step), FOLDER, Mode::empty())?;
    }
    Ok(fd)
}

/// Keeps the last opened folder open: neighbours are requested one after another.
pub(super) struct Folders<'a> {
    root: &'a Root,
    plan: &'a Plan<'a>,
    last: Option<(usize, OwnedFd)>,
}

impl<'a> Folders<'a> {
    pub(super) fn new(root: &'a Root, plan: &'a Plan<'a>) -> Self {
        Self { root, plan, last: None }
    }

    pub(super) fn get(&mut self, folder: usize) -> Result<&OwnedFd> {
        let fd = match self.last.take() {
            Some((known, fd)) if known == folder => fd,
            _ => self.root.folder(self.plan, folder)?,
        };
        Ok(&self.last.insert((folder, fd)).1)
    }
}
