//! The owners of a restored cluster's files: the user who owns the set's data directory becomes `os_user` here,
//! whatever numbers the two hosts use. Files of other users and groups keep their owners.
//!
//! Plain files get their owner as they are written. A received dataset has the set's own numbers, which are then
//! changed. The next `--delta` rolls the changes back and makes them again.
//!
//! What could go wrong: this host may have given the original's number to somebody else, who can change files while
//! they are walked through. So no link is followed, and no mount is entered.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Stat, Uid};
use rustix::io::Errno;

use super::as_files::place::FILE;
use super::build::Build;
use super::placement::PlacedVolume;
use crate::error::{Error, Result};
use crate::files;
use crate::files::opened::{FOLDER, is_mounted, list};
use crate::process::Credentials;
use crate::repository::tree::ImageTree;
use crate::steps;

/// Files between two checks whether to stop.
const LOOK_AROUND: u64 = 1024;

/// The user and group of the set's data directory, and those that replace them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Owners {
    from: Credentials,
    to: Credentials,
}

impl Owners {
    /// Returns what has to be changed, given the owner of the set's data directory; `None` if that is `to` already,
    /// and if files can't be given to another owner.
    fn new(from: Credentials, to: Option<Credentials>) -> Option<Self> {
        // PostgreSQL doesn't run on a data directory that root owns: nothing is changed then.
        to.filter(|to| *to != from && from.uid != 0).map(|to| Self { from, to })
    }

    /// The same, and logs it, for a set's data directory that is a folder of a volume.
    pub(super) fn in_set(
        build: &Build,
        tree: &ImageTree,
        data: &Path,
        to: Option<Credentials>,
    ) -> Result<Option<Self>> {
        let Some(folder) = tree.find(data.iter().map(OsStrExt::as_bytes)) else { return Ok(None) };
        let attributes = tree.attributes(folder)?;
        let ids = (u32::try_from(attributes.uid), u32::try_from(attributes.gid));
        // Numbers that are out of range are refused where they are used.
        let (Ok(uid), Ok(gid)) = ids else { return Ok(None) };
        let owners = Self::new(Credentials { uid, gid }, to);
        owners.iter().for_each(|owners| owners.say(build));
        Ok(owners)
    }

    fn say(&self, build: &Build) {
        let (Self { from, to }, os_user) = (self, &build.cx.cluster.os_user);
        tracing::info!(
            "the set's cluster is of user {} and group {}: here its files become those of {os_user}, {} and {}",
            from.uid,
            from.gid,
            to.uid,
            to.gid
        );
    }

    /// Returns the new owner of a file with this user and group. A file of root's that the cluster's group may read
    /// (a key) stays root's.
    pub(super) fn of(&self, uid: u32, gid: u32) -> (u32, u32) {
        let is_theirs = uid == self.from.uid;
        let is_their_group = gid == self.from.gid && (is_theirs || gid != 0);
        (if is_theirs { self.to.uid } else { uid }, if is_their_group { self.to.gid } else { gid })
    }
}

/// Changes the owners in what was restored as datasets.
pub(super) fn give(build: &Build, owner: Option<Credentials>) -> Result<()> {
    let placement = &build.placement;
    let of = |volume: &PlacedVolume| Some((volume.dataset.clone()?, volume.mountpoint.clone()));
    let datasets: Vec<_> = placement.volumes.iter().filter_map(of).collect();
    if datasets.is_empty() {
        return Ok(());
    }
    let found = placement.data.metadata().map_err(Error::io("look at", &placement.data))?;
    let from = Credentials { uid: found.uid(), gid: found.gid() };
    let Some(owners) = Owners::new(from, owner) else { return Ok(()) };
    owners.say(build);
    let mut walk = Walk { owners, seen: 0 };
    datasets.iter().try_for_each(|(dataset, place)| {
        if build.there.contains(dataset) {
            // After a rollback while mounted, zfs-fuse still reports the files' previous owners.
            build.cx.zfs.unmount(dataset)?;
            build.cx.zfs.mount(dataset)?;
        }
        let failed = |errno: rustix::io::Errno| Error::io("open", place)(errno.into());
        let folder = rustix::fs::open(place, FOLDER, Mode::empty()).map_err(failed)?;
        walk.root(&folder, place)?;
        walk.inside(&folder, place)
    })
}

struct Walk {
    owners: Owners,
    seen: u64,
}

impl Walk {
    /// Returns the owner that something has to get, if that differs.
    fn wanted(&self, stat: &Stat) -> Option<(Option<Uid>, Option<Gid>)> {
        let (uid, gid) = self.owners.of(stat.st_uid, stat.st_gid);
        let is_other = (uid, gid) != (stat.st_uid, stat.st_gid);
        is_other.then(|| (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid))))
    }

    fn root(&self, folder: &OwnedFd, path: &Path) -> Result<()> {
        let change = || match self.wanted(&rustix::fs::fstat(folder)?) {
            Some((uid, gid)) => rustix::fs::fchown(folder, uid, gid),
            None => Ok(()),
        };
        change().map_err(|errno| Error::io("change the owner of", path)(errno.into()))
    }

    fn inside(&mut self, folder: &OwnedFd, path: &Path) -> Result<()> {
        let failed = |errno: rustix::io::Errno| Error::io("list", path)(errno.into());
        for name in list(folder).map_err(failed)? {
            let name = OsStr::from_bytes(&name);
            let path = path.join(name);
            if self.seen.is_multiple_of(LOOK_AROUND) {
                steps::reached("restore.owners")?;
            }
            self.seen += 1;
            let inner = self
                .one(folder, name)
                .map_err(|errno| Error::io("change the owner of", &path)(errno.into()))?;
            if let Some(inner) = inner {
                self.inside(&inner, &path)?;
            }
        }
        Ok(())
    }

    /// Changes the owner of one name; returns the opened folder, if it is one and of this file system.
    fn one(&self, folder: &OwnedFd, name: &OsStr) -> rustix::io::Result<Option<OwnedFd>> {
        let stat = rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        let inner = match kind {
            FileType::Directory => {
                let inner = rustix::fs::openat(folder, name, FOLDER, Mode::empty())?;
                if is_mounted(folder, &inner)? {
                    return Ok(None);
                }
                Some(inner)
            }
            _ => None,
        };
        let Some((uid, gid)) = self.wanted(&stat) else { return Ok(inner) };
        let change = || rustix::fs::chownat(folder, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW);
        match change() {
            Err(Errno::PERM) if files::loosen(folder, name) => change()?,
            other => other?,
        }
        let mode = Mode::from_raw_mode(stat.st_mode);
        if kind == FileType::RegularFile && mode.intersects(Mode::SUID | Mode::SGID) {
            // Changing the owner has cleared these bits.
            let file = rustix::fs::openat(folder, name, FILE | OFlags::RDONLY, Mode::empty())?;
            rustix::fs::fchmod(file, mode)?;
        }
        Ok(inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn of(uid: u32, gid: u32) -> Credentials {
        Credentials { uid, gid }
    }

    #[test]
    fn the_owner_of_the_data_directory_is_another_here_and_others_stay() {
        let owners = Owners::new(of(26, 26), Some(of(105, 113))).unwrap();
        assert_eq!(owners.of(26, 26), (105, 113));
        assert_eq!(owners.of(0, 26), (0, 113), "a key that the group may read");
        assert_eq!(owners.of(26, 4), (105, 4));
        assert_eq!(owners.of(1000, 1000), (1000, 1000));
        // Root's group isn't the cluster's, whatever the cluster's was.
        let owners = Owners::new(of(26, 0), Some(of(105, 113))).unwrap();
        assert_eq!((owners.of(26, 0), owners.of(0, 0)), ((105, 113), (0, 0)));
    }

    #[test]
    fn where_nothing_differs_or_may_be_changed_nothing_is() {
        assert_eq!(Owners::new(of(26, 26), Some(of(26, 26))), None);
        assert_eq!(Owners::new(of(26, 26), None), None);
        assert_eq!(Owners::new(of(0, 0), Some(of(26, 26))), None);
        assert!(Owners::new(of(26, 26), Some(of(26, 27))).is_some());
    }
}
