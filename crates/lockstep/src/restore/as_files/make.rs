//! The names: folders, links and files of the right size, without their content.
//!
//! In a folder that isn't empty, everything that the set doesn't have, or has as another kind, is removed. A file
//! that stays is cut or extended to its size, and zeroed where the set has holes.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{Advice, AtFlags, FallocateFlags, Mode, OFlags, SeekFrom};
use rustix::io::Errno;
use sendstream::zpl::{FileType, Run};

use super::Volume;
use super::place::{FILE, Root, descend};
use super::plan::{File, Plan};
use crate::error::{Error, Result};
use crate::files::opened::{list, remove};
use crate::steps;

/// What was found while the names were made.
#[derive(Default)]
pub(super) struct Made {
    /// Files that were there before: their content has to be compared.
    pub(super) existing: HashSet<usize>,
    /// Files that can't be made: sockets and devices.
    pub(super) passed_over: HashSet<usize>,
    /// Bytes that were zeroed in existing files.
    pub(super) bytes_zeroed: u64,
    /// Names that were removed.
    pub(super) removed: u64,
}

/// Removes the pg_control of an older restore: from now on no server starts on it.
pub(super) fn remove_control(root: &Root, plan: &Plan) -> Result<()> {
    let Some((at, name)) = plan.control else { return Ok(()) };
    let path = || plan.folder_path(at).join(OsStr::from_bytes(name));
    match descend(&root.fd, &plan.steps_to(at)) {
        Ok(folder) => remove(&folder, name)
            .and_then(|_| rustix::fs::fsync(&folder))
            .map_err(root.failed("remove", path)),
        // Another cluster's layout, or no cluster at all.
        Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR) => Ok(()),
        Err(errno) => Err(root.failed("open", || plan.folder_path(at))(errno)),
    }
}

/// Makes the names.
pub(super) fn make(volume: &Volume<'_>, plan: &Plan, root: &Root) -> Result<Made> {
    let mut made = Made::default();
    let others: Vec<&Path> =
        volume.others.iter().filter_map(|other| other.strip_prefix(volume.folder).ok()).collect();
    for folder in 0..plan.folders.len() {
        steps::reached("restore.files-folder")?;
        let fd = if plan.is_top(folder) {
            root.folder(plan, folder)?
        } else {
            make_folder(volume, plan, root, folder, &mut made)?
        };
        let maker = Maker { volume, plan, root, folder, fd: &fd };
        if volume.delta {
            maker.remove_others(&others, &mut made)?;
        }
        for file in plan.folders[folder].files.clone() {
            maker.file(file, &mut made)?;
        }
    }
    // Only now does every first name exist.
    for (at, folder) in plan.folders.iter().enumerate().filter(|(_, f)| !f.links.is_empty()) {
        let fd = root.folder(plan, at)?;
        for (first, name) in &folder.links {
            make_link(plan, root, (at, &fd), *first, name, &mut made)?;
        }
    }
    Ok(made)
}

fn make_folder(
    volume: &Volume<'_>,
    plan: &Plan,
    root: &Root,
    folder: usize,
    made: &mut Made,
) -> Result<OwnedFd> {
    let failed = |errno| root.failed("create", || plan.folder_path(folder))(errno);
    let (parent, name) = (plan.folders[folder].parent, plan.folders[folder].name);
    let parent = root.folder(plan, parent)?;
    // Until its owner is set, nobody else can look in.
    let mkdir = || rustix::fs::mkdirat(&parent, OsStr::from_bytes(name), Mode::RWXU);
    match mkdir() {
        Err(Errno::EXIST) if volume.delta => match root.folder(plan, folder) {
            Ok(fd) => return Ok(fd),
            Err(_) => {
                made.removed += remove(&parent, name).map_err(failed)?;
                mkdir().map_err(failed)?;
            }
        },
        other => other.map_err(failed)?,
    }
    root.folder(plan, folder)
}

fn make_link(
    plan: &Plan,
    root: &Root,
    (folder, fd): (usize, &OwnedFd),
    first: usize,
    name: &[u8],
    made: &mut Made,
) -> Result<()> {
    if made.passed_over.contains(&first) {
        return Ok(());
    }
    let failed = |errno| {
        root.failed("link", || plan.folder_path(folder).join(OsStr::from_bytes(name)))(errno)
    };
    let file = &plan.files[first];
    let from = root.folder(plan, file.folder)?;
    made.removed += remove(fd, name).map_err(failed)?;
    rustix::fs::linkat(
        &from,
        OsStr::from_bytes(file.name),
        fd,
        OsStr::from_bytes(name),
        AtFlags::empty(),
    )
    .map_err(failed)
}

struct Maker<'a> {
    volume: &'a Volume<'a>,
    plan: &'a Plan<'a>,
    root: &'a Root,
    folder: usize,
    fd: &'a OwnedFd,
}

impl Maker<'_> {
    /// Removes what the set doesn't have in this folder.
    fn remove_others(&self, others: &[&Path], made: &mut Made) -> Result<()> {
        let folder = &self.plan.folders[self.folder];
        let files = self.plan.files[folder.files.clone()].iter();
        let mut known: HashSet<&[u8]> = files.map(|file| file.name).collect();
        known.extend(folder.folders.iter().map(|at| self.plan.folders[*at].name));
        known.extend(folder.links.iter().map(|(_, name)| *name));
        let here = self.plan.folder_path(self.folder);
        let failed = |verb| self.root.failed(verb, || here.clone());
        for name in list(self.fd).map_err(failed("list"))? {
            // A ZFS with `snapdir=visible` shows it in a dataset's root: nobody can remove it.
            if self.plan.is_top(self.folder) && name == b".zfs" {
                continue;
            }
            let path = here.join(OsStr::from_bytes(&name));
            // Another volume's folder, or one above it, isn't this volume's to remove.
            if known.contains(&*name) || others.iter().any(|other| other.starts_with(&path)) {
                continue;
            }
            made.removed +=
                remove(self.fd, &name).map_err(self.root.failed("remove", || path.clone()))?;
        }
        Ok(())
    }

    fn file(&self, at: usize, made: &mut Made) -> Result<()> {
        let file = &self.plan.files[at];
        let failed = |errno| self.root.failed("create", || self.plan.file_path(file))(errno);
        let name = OsStr::from_bytes(file.name);
        match file.kind {
            FileType::Regular => return self.regular(at, file, made),
            FileType::Symlink => {
                let attributes = self.volume.tree.attributes(file.object)?;
                let target = attributes.symlink.as_deref().ok_or_else(|| {
                    let path = self.plan.file_path(file);
                    Error::failed(format!("the link \"{}\" has no target", path.display()))
                })?;
                let found = rustix::fs::readlinkat(self.fd, name, Vec::new());
                if found.is_ok_and(|found| found.as_bytes() == target) && !file.is_linked {
                    return Ok(());
                }
                self.clear(file, made)?;
                rustix::fs::symlinkat(OsStr::from_bytes(target), self.fd, name).map_err(failed)?;
            }
            FileType::Fifo => {
                self.clear(file, made)?;
                let kind = rustix::fs::FileType::Fifo;
                rustix::fs::mknodat(self.fd, name, kind, Mode::RUSR | Mode::WUSR, 0)
                    .map_err(failed)?;
            }
            other => {
                // A socket belongs to a server that is gone; a device could be any device of this machine.
                tracing::warn!(
                    path = %self.plan.file_path(file).display(),
                    kind = %other,
                    "not restored: neither a file nor a folder nor a link"
                );
                self.clear(file, made)?;
                made.passed_over.insert(at);
            }
        }
        Ok(())
    }

    /// Removes what has the file's name.
    fn clear(&self, file: &File, made: &mut Made) -> Result<()> {
        if self.volume.delta {
            made.removed += remove(self.fd, file.name)
                .map_err(self.root.failed("remove", || self.plan.file_path(file)))?;
        }
        Ok(())
    }

    fn regular(&self, at: usize, file: &File, made: &mut Made) -> Result<()> {
        let failed = |verb| self.root.failed(verb, || self.plan.file_path(file));
        let size = self.volume.tree.attributes(file.object)?.size;
        if self.volume.delta && !file.is_linked {
            let is_zeroed = self.volume.zeroed.contains(&file.object);
            let runs = self.volume.tree.runs(file.object).filter(|_| !is_zeroed);
            if let Some(fd) = self.open_existing(file)? {
                let found = rustix::fs::fstat(&fd).map_err(failed("look at"))?;
                if found.st_size.cast_unsigned() != size {
                    rustix::fs::ftruncate(&fd, size).map_err(failed("resize"))?;
                }
                forget_cached(&fd);
                made.bytes_zeroed += empty_holes(&fd, runs, size).map_err(failed("write"))?;
                made.existing.insert(at);
                return Ok(());
            }
        }
        self.clear(file, made)?;
        let fd = rustix::fs::openat(
            self.fd,
            OsStr::from_bytes(file.name),
            FILE | OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY,
            Mode::RUSR | Mode::WUSR,
        )
        .map_err(failed("create"))?;
        rustix::fs::ftruncate(&fd, size).map_err(failed("resize"))
    }

    /// Opens what has the file's name, if it is a regular file with this name alone: a file with a link elsewhere
    /// must not be changed here.
    fn open_existing(&self, file: &File) -> Result<Option<OwnedFd>> {
        let name = OsStr::from_bytes(file.name);
        let stat = match rustix::fs::statat(self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Ok(None),
            other => other.map_err(self.root.failed("look at", || self.plan.file_path(file)))?,
        };
        let is_regular =
            |mode| rustix::fs::FileType::from_raw_mode(mode) == rustix::fs::FileType::RegularFile;
        if !is_regular(stat.st_mode) || stat.st_nlink != 1 {
            return Ok(None);
        }
        let fd = self.root.file(self.plan, file, self.fd, OFlags::RDWR)?;
        // By now the opened file may be a different one.
        let stat = rustix::fs::fstat(&fd)
            .map_err(self.root.failed("look at", || self.plan.file_path(file)))?;
        Ok((is_regular(stat.st_mode) && stat.st_nlink == 1).then_some(fd))
    }
}

/// Makes the next reads of a file come from the disk.
///
/// What the system couldn't write (a disk that failed, a thin volume that was full) stays in its memory on ext4 and XFS,
/// and counts as written there: `sync` says it once, and that ended the restore which `--delta` continues now. Compared
/// with that memory nothing would differ, and the disk would never get it. What is still to be written stays in memory,
/// and the sync at the end says whether it came to the disk.
fn forget_cached(fd: &OwnedFd) {
    if let Err(error) = rustix::fs::fadvise(fd, 0, None, Advice::DontNeed) {
        tracing::debug!(%error, "compared with what may only be in memory");
    }
}

/// Zeroes everything between the runs; returns how many bytes weren't zero.
fn empty_holes(
    fd: &OwnedFd,
    runs: impl Iterator<Item = Run>,
    size: u64,
) -> rustix::io::Result<u64> {
    let mut changed = 0;
    let mut position = 0;
    let ends = runs.map(|run| (run.offset, run.offset.saturating_add(run.length)));
    for (start, end) in ends.chain([(size, size)]) {
        changed += empty(fd, position, start.min(size))?;
        position = end.min(size).max(position);
    }
    Ok(changed)
}

/// Zeroes a range.
fn empty(fd: &OwnedFd, from: u64, to: u64) -> rustix::io::Result<u64> {
    let mut buffer = vec![0; 64 << 10];
    let (mut position, mut changed) = (from, 0);
    while position < to {
        // If the file system knows no holes, all of it is data.
        position = match rustix::fs::seek(fd.as_fd(), SeekFrom::Data(position)) {
            Ok(data) => data,
            Err(Errno::NXIO) => return Ok(changed),
            Err(Errno::INVAL) => position,
            Err(errno) => return Err(errno),
        };
        if position >= to {
            break;
        }
        let room = buffer.len().min(usize::try_from(to - position).unwrap_or(usize::MAX));
        let length = rustix::io::pread(fd, &mut buffer[..room], position)?;
        if length == 0 {
            break;
        }
        if buffer[..length].iter().any(|byte| *byte != 0) {
            punch(fd, position, length)?;
            changed += length as u64;
        }
        position += length as u64;
    }
    Ok(changed)
}

fn punch(fd: &OwnedFd, position: u64, length: usize) -> rustix::io::Result<()> {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    match rustix::fs::fallocate(fd, flags, position, length as u64) {
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => write_all(fd, &vec![0; length], position),
        other => other,
    }
}

/// Writes all the bytes at a position.
pub(super) fn write_all(
    fd: &OwnedFd,
    mut bytes: &[u8],
    mut position: u64,
) -> rustix::io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::pwrite(fd, bytes, position) {
            Ok(0) => return Err(Errno::IO),
            Ok(length) => {
                bytes = &bytes[length..];
                position += length as u64;
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::IoSliceMut;

    use rustix::io::ReadWriteFlags;

    use super::*;

    #[test]
    fn what_is_compared_comes_from_the_disk() {
        let scratch = tempfile::tempdir().unwrap();
        let flags = FILE | OFlags::CREATE | OFlags::RDWR;
        let path = scratch.path().join("file");
        let fd = rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR).unwrap();
        write_all(&fd, &[7; 64 << 10], 0).unwrap();
        rustix::fs::fsync(&fd).unwrap();
        // This reads nothing from a disk.
        let in_memory = || {
            let mut bytes = [0; 4096];
            let mut into = [IoSliceMut::new(&mut bytes)];
            rustix::io::preadv2(&fd, &mut into, 0, ReadWriteFlags::NOWAIT)
        };
        let is_tmpfs = rustix::fs::fstatfs(&fd).unwrap().f_type == 0x0102_1994;
        if is_tmpfs || in_memory() != Ok(4096) {
            // It is nowhere else, or the file system doesn't tell.
            return;
        }
        // Another processor may still be about to count it as used.
        let is_forgotten = (0..100).any(|_| {
            forget_cached(&fd);
            std::thread::sleep(std::time::Duration::from_millis(10));
            in_memory() == Err(Errno::AGAIN)
        });
        assert!(is_forgotten);
    }
}
