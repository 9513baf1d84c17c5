//! /proc/self/mountinfo: which mount holds a path.
//!
//! The format is proc(5)'s: octal escapes for blanks and backslashes, a `-` before the file system's type. A mount
//! hides everything that was mounted before at its mount point or below. Hidden mounts stay in the list; only their
//! parents show that no path leads to them any more.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// One line of mountinfo.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Its own number.
    pub id: u32,
    /// The mount on which it was mounted; for the first one, a number that isn't listed.
    pub parent: u32,
    /// `st_dev` of its files, major and minor.
    pub device: (u32, u32),
    /// The folder of the file system that is mounted; `/` unless it is a bind mount.
    pub root: PathBuf,
    /// Where it is mounted.
    pub point: PathBuf,
    /// The mount's own options, such as `rw,nosuid`.
    pub options: String,
    /// The file system's type, such as `zfs`, `fuse.zfs` or `ext4`.
    pub fs_type: String,
    /// What is mounted; for ZFS, the dataset's name.
    pub source: String,
}

impl Mount {
    /// Whether this is a ZFS dataset (OpenZFS says `zfs`, zfs-fuse `fuse.zfs`).
    #[must_use]
    pub fn is_zfs(&self) -> bool {
        matches!(self.fs_type.as_str(), "zfs" | "fuse.zfs")
    }

    /// Whether this ZFS dataset, or snapshot, is what is mounted.
    #[must_use]
    pub fn is_of(&self, name: &str) -> bool {
        self.is_zfs() && self.source == name
    }

    /// Whether ZFS itself mounted a snapshot here because somebody looked into `.zfs/snapshot`. It stays for some
    /// minutes and hides nothing.
    #[must_use]
    pub fn is_looked_into(&self) -> bool {
        let parent = self.point.parent();
        let is_hidden = parent.is_some_and(|folder| folder.ends_with(".zfs/snapshot"));
        self.is_zfs() && self.source.contains('@') && is_hidden
    }
}

/// The mounts of this process, in the order they were made.
#[derive(Debug, Clone, Default)]
pub struct Mounts(Vec<Mount>);

impl Mounts {
    /// Reads the mounts of this process.
    ///
    /// # Errors
    /// When /proc can't be read.
    pub fn read() -> Result<Self> {
        let path = "/proc/self/mountinfo";
        let text = std::fs::read(path).map_err(Error::io("read", path))?;
        Ok(Self::parse(&text))
    }

    /// Parses mountinfo; lines of another format are ignored.
    #[must_use]
    pub fn parse(text: &[u8]) -> Self {
        Self(text.split(|&b| b == b'\n').filter_map(parse_line).collect())
    }

    /// The mount that holds `path`, which must be absolute and free of links.
    #[must_use]
    pub fn holding(&self, path: &Path) -> Option<&Mount> {
        let leads = |mount: &&Mount| path.starts_with(&mount.point);
        let shortest = |mount: &&Mount| mount.point.as_os_str().len();
        // Follows the kernel: from mount to mount, each time to the first on the path. A mount whose parent isn't
        // that one is hidden.
        let is_first = |mount: &&Mount| {
            mount.parent == mount.id || !self.0.iter().any(|other| other.id == mount.parent)
        };
        let mut at = self.0.iter().filter(is_first).filter(leads).min_by_key(shortest)?;
        for _ in &self.0 {
            let on_it = |mount: &&Mount| mount.parent == at.id && mount.id != at.id;
            match self.0.iter().filter(on_it).filter(leads).min_by_key(shortest) {
                Some(next) => at = next,
                None => break,
            }
        }
        Some(at)
    }

    /// The mounts strictly below `path`.
    pub fn below<'a>(&'a self, path: &'a Path) -> impl Iterator<Item = &'a Mount> {
        self.0.iter().filter(move |mount| mount.point.starts_with(path) && mount.point != path)
    }

    /// Where else a path is, because its file system is mounted more than once.
    #[must_use]
    pub fn other_places(&self, path: &Path) -> Vec<PathBuf> {
        let Some(at) = self.holding(path) else { return Vec::new() };
        let inside = Path::new("/").join(inside(at, path));
        let others = self.0.iter().filter(|other| other.id != at.id && other.device == at.device);
        let places = others
            .filter_map(|other| Some(other.point.join(inside.strip_prefix(&other.root).ok()?)));
        places.collect()
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Mount> {
        self.0.iter()
    }
}

fn parse_line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|&b| b == b' ');
    let number = |field: &[u8]| std::str::from_utf8(field).ok()?.parse::<u32>().ok();
    let (id, parent) = (number(fields.next()?)?, number(fields.next()?)?);
    let device = fields.next()?;
    let colon = device.iter().position(|&b| b == b':')?;
    let device = (number(&device[..colon])?, number(&device[colon + 1..])?);
    let root = unescape(fields.next()?);
    let point = unescape(fields.next()?);
    let options = String::from_utf8_lossy(fields.next()?).into_owned();
    let mut after = fields.skip_while(|field| *field != b"-").skip(1);
    let fs_type = unescape(after.next()?).to_string_lossy().into_owned();
    let source = unescape(after.next()?).to_string_lossy().into_owned();
    Some(Mount {
        id,
        parent,
        device,
        root: root.into(),
        point: point.into(),
        options,
        fs_type,
        source,
    })
}

fn unescape(field: &[u8]) -> OsString {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        let octal = |b: &u8| (b'0'..=b'7').contains(b);
        if byte == b'\\' && tail.len() >= 3 && tail[..3].iter().all(octal) {
            let value = tail[..3].iter().fold(0u32, |value, b| value * 8 + u32::from(b - b'0'));
            out.push(value as u8);
            rest = &tail[3..];
        } else {
            out.push(byte);
            rest = tail;
        }
    }
    OsString::from_vec(out)
}

/// `path` relative to `base` as a path inside the file system of `mount`.
#[must_use]
pub fn inside(mount: &Mount, path: &Path) -> PathBuf {
    let root = mount.root.strip_prefix("/").unwrap_or(&mount.root);
    let tail = path.strip_prefix(&mount.point).unwrap_or(Path::new(""));
    let joined = root.join(tail);
    // Joining an empty tail leaves a trailing slash; paths are compared byte by byte.
    let bytes = joined.as_os_str().as_bytes();
    PathBuf::from(std::ffi::OsStr::from_bytes(bytes.strip_suffix(b"/").unwrap_or(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &[u8] = br"27 1 254:0 / / rw,relatime - ext4 /dev/vda rw
43 27 0:40 / /srv/tank\0401 rw,relatime - fuse.zfs tank rw,user_id=0
45 43 0:42 / /srv/tank\0401/data rw,relatime shared:7 master:2 - zfs tank/n:e.s\040t rw,xattr
46 27 0:42 /sub /mnt/bind rw,nosuid - zfs tank/n:e.s\040t rw
garbage
";

    #[test]
    fn the_deepest_mount_holds_a_path() {
        let mounts = Mounts::parse(TEXT);
        let at = |path: &str| mounts.holding(Path::new(path)).unwrap().source.clone();
        assert_eq!(at("/srv/tank 1/data/base/1"), "tank/n:e.s t");
        assert_eq!(at("/srv/tank 1/database"), "tank");
        assert_eq!(at("/etc"), "/dev/vda");
        assert!(mounts.holding(Path::new("/srv/tank 1")).unwrap().is_zfs());
        assert_eq!(mounts.below(Path::new("/srv/tank 1")).count(), 1);
    }

    #[test]
    fn a_mount_over_a_parent_hides_what_is_below() {
        // Mounted over the parent of the dataset's mount point, over the dataset itself, and over what is mounted
        // over it.
        let line = |line: &str| [TEXT, line.as_bytes()].concat();
        let at = |text: &[u8], path: &str| {
            Mounts::parse(text).holding(Path::new(path)).map(|mount| mount.device)
        };
        let data = "/srv/tank 1/data/base";
        assert_eq!(at(TEXT, data), Some((0, 42)));
        assert_eq!(at(&line("50 27 0:50 / /srv rw - tmpfs tmpfs rw\n"), data), Some((0, 50)));
        let over = "50 45 0:50 / /srv/tank\\0401/data rw - tmpfs tmpfs rw\n";
        assert_eq!(at(&line(over), data), Some((0, 50)));
        let twice = format!("{over}51 50 0:51 / /srv/tank\\0401/data/base rw - ext4 /dev/vdb rw\n");
        assert_eq!(at(&line(&twice), data), Some((0, 51)));
        // Mounted before its parent was hidden, so no path leads there.
        let hidden = "50 27 0:50 / /srv rw - tmpfs x rw\n51 45 0:51 / /srv/tank\\0401/data/base rw - zfs t rw\n";
        assert_eq!(at(&line(hidden), data), Some((0, 50)));
        // rootfs is its own parent, and the root of a jail may not be a mount at all.
        assert_eq!(at(b"1 1 0:2 / / rw - rootfs rootfs rw\n", "/srv"), Some((0, 2)));
        assert_eq!(at(b"60 9 0:60 / /srv rw - zfs tank rw\n", "/srv/x"), Some((0, 60)));
        assert_eq!(at(b"60 9 0:60 / /srv rw - zfs tank rw\n", "/etc"), None);
    }

    #[test]
    fn a_snapshot_that_was_looked_into_is_told_from_a_mount() {
        let of = |point: &str, fs_type: &str, source: &str| {
            let line = format!("48 45 0:44 / {point} ro - {fs_type} {source} ro");
            parse_line(line.as_bytes()).unwrap().is_looked_into()
        };
        assert!(of("/srv/data/.zfs/snapshot/lockstep-1", "zfs", "tank/d@lockstep-1"));
        assert!(!of("/srv/data/other", "zfs", "tank/d@lockstep-1"));
        assert!(!of("/srv/data/.zfs/snapshot/lockstep-1", "zfs", "tank/other"));
        assert!(!of("/srv/data/.zfs/snapshot/lockstep-1", "ext4", "host@disk"));
    }

    #[test]
    fn a_bind_mount_is_seen_through() {
        let mounts = Mounts::parse(TEXT);
        let path = Path::new("/mnt/bind/data");
        let mount = mounts.holding(path).unwrap();
        assert_eq!(inside(mount, path), Path::new("sub/data"));
        let path = Path::new("/srv/tank 1/data");
        assert_eq!(inside(mounts.holding(path).unwrap(), path), Path::new(""));
    }
}
