//! System attributes, as file systems of version 5 store them (OpenZFS `include/sys/sa_impl.h`, `module/zfs/sa.c`).
//!
//! Every file's bonus, and its spill block if it has one, begins with the number of a layout: a list of attributes
//! whose names and lengths are in a registry. Both the layouts and the registry are ZAPs in the file system.

use std::collections::BTreeMap;

use super::attributes::{Attributes, Timestamp};
use super::zap::Zap;
use crate::bytes::ByteOrder;
use crate::error::{Error, Result};

const MAGIC: u32 = 0x2F_505A;

/// Names, lengths and layouts of a file system's attributes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AttributeTables {
    /// By number.
    attributes: BTreeMap<u16, Registered>,
    /// Attribute numbers, by layout number.
    layouts: BTreeMap<u16, Vec<u16>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Registered {
    name: Vec<u8>,
    /// 0 if each file has its own length.
    length: u16,
}

impl AttributeTables {
    /// Reads the two ZAPs.
    pub fn new(registry: &Zap, layouts: &Zap) -> AttributeTables {
        let mut tables = AttributeTables::default();
        for (name, value) in registry.entries() {
            // Number in bits 0 to 15, length in bits 24 to 39.
            let Some(packed) = value.single() else {
                continue;
            };
            let registered = Registered { name: name.to_vec(), length: (packed >> 24) as u16 };
            tables.attributes.insert(packed as u16, registered);
        }
        for (name, value) in layouts.entries() {
            let number = std::str::from_utf8(name).ok().and_then(|name| name.parse().ok());
            let Some(number) = number else { continue };
            tables
                .layouts
                .insert(number, value.numbers.iter().map(|number| *number as u16).collect());
        }
        tables
    }
}

/// Reads the attributes in a bonus or spill block into `into`; others are left unchanged.
pub fn decode(
    object: u64,
    tables: &AttributeTables,
    bytes: &[u8],
    into: &mut Attributes,
) -> Result<()> {
    let broken = |why: String| Error::object(object, why);
    let Some(order) = ByteOrder::of_magic_u32(bytes, 0, MAGIC) else {
        return Err(broken("its attributes have no magic number".into()));
    };
    let info =
        order.u16(bytes, 4).ok_or_else(|| broken("its attributes end in their header".into()))?;
    let (number, header) = (info & 0x3ff, usize::from(info >> 10) * 8);
    // In a bonus that holds system attributes, layout 0 means layout 1.
    let number = number.max(1);
    let layout = tables
        .layouts
        .get(&number)
        .ok_or_else(|| broken(format!("attribute layout {number} is unknown")))?;
    let mut at = header.max(8);
    let mut variable = 0;
    for attribute in layout {
        let Some(registered) = tables.attributes.get(attribute) else {
            return Err(broken(format!("attribute {attribute} of layout {number} is unknown")));
        };
        let length = match registered.length {
            0 => {
                // The lengths of variable attributes are in the header, from byte 6 on.
                let place = 6 + 2 * variable;
                variable += 1;
                order.u16(bytes, place).filter(|_| place + 2 <= header)
            }
            length => Some(length),
        };
        let length =
            length.ok_or_else(|| broken(format!("attribute {attribute} has no length")))?;
        let value = bytes
            .get(at..at + usize::from(length))
            .ok_or_else(|| broken(format!("attribute {attribute} lies outside its block")))?;
        store(&registered.name, value, order, into);
        at = (at + usize::from(length)).next_multiple_of(8);
    }
    Ok(())
}

fn store(name: &[u8], value: &[u8], order: ByteOrder, into: &mut Attributes) {
    let number = order.u64(value, 0);
    let time = number.zip(order.u64(value, 8));
    let time =
        time.map(|(seconds, nanoseconds)| Timestamp { seconds: seconds as i64, nanoseconds });
    let set_number = |place: &mut u64| *place = number.unwrap_or(*place);
    let set_time = |place: &mut Timestamp| *place = time.unwrap_or(*place);
    match name {
        b"ZPL_MODE" => set_number(&mut into.mode),
        b"ZPL_SIZE" => set_number(&mut into.size),
        b"ZPL_GEN" => set_number(&mut into.generation),
        b"ZPL_UID" => set_number(&mut into.uid),
        b"ZPL_GID" => set_number(&mut into.gid),
        b"ZPL_PARENT" => set_number(&mut into.parent),
        b"ZPL_LINKS" => set_number(&mut into.links),
        b"ZPL_RDEV" => set_number(&mut into.rdev),
        b"ZPL_FLAGS" => set_number(&mut into.flags),
        b"ZPL_XATTR" => set_number(&mut into.xattr_directory),
        b"ZPL_ATIME" => set_time(&mut into.atime),
        b"ZPL_MTIME" => set_time(&mut into.mtime),
        b"ZPL_CTIME" => set_time(&mut into.ctime),
        b"ZPL_CRTIME" => set_time(&mut into.crtime),
        b"ZPL_SYMLINK" => into.symlink = Some(value.to_vec()),
        b"ZPL_DXATTR" => into.xattrs = Some(value.to_vec()),
        _ => {}
    }
}

/// Returns mode and size, which begin every layout of a file, without knowing the layout (`module/zfs/zfs_quota.c`
/// relies on this too).
pub(super) fn mode_and_size(bonus: &[u8]) -> Option<(u64, u64)> {
    let order = ByteOrder::of_magic_u32(bonus, 0, MAGIC)?;
    let header = usize::from(order.u16(bonus, 4)? >> 10) * 8;
    Some((order.u64(bonus, header)?, order.u64(bonus, header + 8)?))
}
