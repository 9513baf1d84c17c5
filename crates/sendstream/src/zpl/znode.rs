//! Attributes as file systems of version 4 and before store them (OpenZFS `include/sys/zfs_sa.h`, `znode_phys_t`).

use super::attributes::{Attributes, FileType, Timestamp};
use crate::bytes::ByteOrder;
use crate::error::{Error, Result};

/// Length of the structure; a short symlink's target follows it.
const ZNODE_LEN: usize = 264;

/// Reads the bonus of an object with bonus type [`ZNODE`](crate::record::object_type::ZNODE).
pub(super) fn decode(object: u64, bonus: &[u8], order: ByteOrder) -> Result<Attributes> {
    if bonus.len() < ZNODE_LEN {
        return Err(Error::object(
            object,
            format!("its znode is {} bytes long instead of {ZNODE_LEN}", bonus.len()),
        ));
    }
    let field = |at: usize| order.u64(bonus, at).unwrap_or(0);
    let time = |at: usize| Timestamp { seconds: field(at) as i64, nanoseconds: field(at + 8) };
    let mut attributes = Attributes {
        atime: time(0),
        mtime: time(16),
        ctime: time(32),
        crtime: time(48),
        generation: field(64),
        mode: field(72),
        size: field(80),
        parent: field(88),
        links: field(96),
        xattr_directory: field(104),
        rdev: field(112),
        flags: field(120),
        uid: field(128),
        gid: field(136),
        symlink: None,
        xattrs: None,
    };
    if attributes.file_type() == FileType::Symlink {
        let length = usize::try_from(attributes.size).ok();
        let end = length.and_then(|length| ZNODE_LEN.checked_add(length));
        attributes.symlink = end.and_then(|end| bonus.get(ZNODE_LEN..end)).map(<[u8]>::to_vec);
    }
    Ok(attributes)
}
