//! A file's attributes, in whichever form they were stored.

use std::fmt;

/// Seconds and nanoseconds since 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp {
    /// Seconds.
    pub seconds: i64,
    /// Nanoseconds.
    pub nanoseconds: u64,
}

impl Timestamp {
    /// Returns the nanoseconds since 1970.
    pub fn as_nanoseconds(self) -> i128 {
        i128::from(self.seconds) * 1_000_000_000 + i128::from(self.nanoseconds)
    }
}

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileType {
    /// A regular file.
    Regular,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// A block device.
    BlockDevice,
    /// A character device.
    CharacterDevice,
    /// Something else.
    Unknown,
}

impl FileType {
    /// Returns the type in a mode's upper bits.
    pub fn from_mode(mode: u64) -> FileType {
        match mode & 0o170_000 {
            0o100_000 => FileType::Regular,
            0o040_000 => FileType::Directory,
            0o120_000 => FileType::Symlink,
            0o010_000 => FileType::Fifo,
            0o140_000 => FileType::Socket,
            0o060_000 => FileType::BlockDevice,
            0o020_000 => FileType::CharacterDevice,
            _ => FileType::Unknown,
        }
    }

    /// Returns one letter, as `find -printf %y` prints it.
    pub fn letter(self) -> char {
        match self {
            FileType::Regular => 'f',
            FileType::Directory => 'd',
            FileType::Symlink => 'l',
            FileType::Fifo => 'p',
            FileType::Socket => 's',
            FileType::BlockDevice => 'b',
            FileType::CharacterDevice => 'c',
            FileType::Unknown => '?',
        }
    }
}

impl fmt::Display for FileType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.letter())
    }
}

/// A file's attributes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Type and permissions.
    pub mode: u64,
    /// Size in bytes; for a directory, the number of its entries plus two.
    pub size: u64,
    /// Transaction in which it was created.
    pub generation: u64,
    /// Owner.
    pub uid: u64,
    /// Group.
    pub gid: u64,
    /// The directory that it is in, or was first in.
    pub parent: u64,
    /// Number of names.
    pub links: u64,
    /// Device number.
    pub rdev: u64,
    /// ZFS's own flags.
    pub flags: u64,
    /// Object of the directory of extended attributes, or 0.
    pub xattr_directory: u64,
    /// Last access.
    pub atime: Timestamp,
    /// Last change of the content.
    pub mtime: Timestamp,
    /// Last change of the attributes.
    pub ctime: Timestamp,
    /// Creation.
    pub crtime: Timestamp,
    /// A symbolic link's target, if it is stored with the attributes.
    pub symlink: Option<Vec<u8>>,
    /// Packed extended attributes, if they are stored with the attributes.
    pub xattrs: Option<Vec<u8>>,
}

impl Attributes {
    /// Returns what the file is.
    pub fn file_type(&self) -> FileType {
        FileType::from_mode(self.mode)
    }

    /// Returns the permissions, with set-user-id, set-group-id and sticky.
    pub fn permissions(&self) -> u64 {
        self.mode & 0o7777
    }
}
