//! Decides whether an object that a newer delta changes keeps what older deltas had in it.

use crate::bytes::ByteOrder;
use crate::record::{OLD_MAX_BLOCK, Object, object_type};

/// Magic number of system attributes.
const SA_MAGIC: u32 = 0x2F_505A;

/// What happens to older content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heritage {
    /// It is the same object: what isn't overwritten stays.
    Kept,
    /// The same file, sent once with and once without large blocks: its content stays, in the smaller blocks.
    KeptInBlocksOf(u32),
    /// The number was given to another object: nothing stays.
    Dropped,
}

/// Decides by the two headers.
///
/// `zfs receive` empties an object when its block size or its slots change or it loses a block pointer. It keeps the
/// content if the generation is the same and only `-L` was turned on (`receive_handle_existing_object`). An object with
/// another generation or type is a different object too: all of its blocks and holes are in the newer stream.
pub fn heritage(older: (&Object, &[u8]), newer: (&Object, &[u8]), order: ByteOrder) -> Heritage {
    let ((old, old_bonus), (new, new_bonus)) = (older, newer);
    if old.kind != new.kind
        || old.slots() != new.slots()
        || block_pointers(new) < block_pointers(old)
    {
        return Heritage::Dropped;
    }
    let generations = generation(old.bonus_type, old_bonus, order).zip(generation(
        new.bonus_type,
        new_bonus,
        order,
    ));
    if generations.is_some_and(|(old, new)| old != new) {
        return Heritage::Dropped;
    }
    if old.block_size == new.block_size {
        return Heritage::Kept;
    }
    let limit = OLD_MAX_BLOCK as u32;
    let (small, large) = (old.block_size.min(new.block_size), old.block_size.max(new.block_size));
    if old.kind == object_type::PLAIN_FILE
        && generations.is_some()
        && small == limit
        && large > limit
    {
        return Heritage::KeptInBlocksOf(small);
    }
    // Only the single block of a small file can change its size, and then it is in the newer stream.
    Heritage::Dropped
}

/// Returns how many block pointers fit next to the bonus (`deduce_nblkptr`).
fn block_pointers(object: &Object) -> u64 {
    if object.bonus_type == object_type::SA {
        return 1;
    }
    let room = object.slots() * 512 - 192;
    3.min(1 + room.saturating_sub(object.bonus_len.into()) / 128)
}

/// Returns the transaction in which a file was created, which distinguishes it from another file with the same number.
pub fn generation(bonus_type: u32, bonus: &[u8], order: ByteOrder) -> Option<u64> {
    match bonus_type {
        object_type::ZNODE => order.u64(bonus, 64),
        object_type::SA => {
            let order = ByteOrder::of_magic_u32(bonus, 0, SA_MAGIC)?;
            // Mode, size, generation: every layout of a file begins with these three (`zfs_quota.c`).
            let header = usize::from(order.u16(bonus, 4)? >> 10) * 8;
            order.u64(bonus, header + 16)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(block_size: u32) -> Object {
        let file = Object::plain(8, object_type::PLAIN_FILE, block_size);
        Object { bonus_type: object_type::ZNODE, bonus_len: 264, ..file }
    }

    fn bonus(generation: u64) -> Vec<u8> {
        let mut bonus = vec![0; 264];
        bonus[64..72].copy_from_slice(&generation.to_le_bytes());
        bonus
    }

    fn decide(old: (Object, u64), new: (Object, u64)) -> Heritage {
        heritage((&old.0, &bonus(old.1)), (&new.0, &bonus(new.1)), ByteOrder::Little)
    }

    #[test]
    fn what_makes_it_another_object() {
        let small = || file(8192);
        assert_eq!(decide((small(), 1), (small(), 1)), Heritage::Kept);
        assert_eq!(decide((small(), 1), (small(), 2)), Heritage::Dropped, "generation");
        assert_eq!(decide((small(), 1), (file(512), 1)), Heritage::Dropped, "block size");
        assert_eq!(
            decide((small(), 1), (Object { dn_slots: 2, ..small() }, 1)),
            Heritage::Dropped,
            "slots"
        );
        let directory = Object { kind: object_type::DIRECTORY, ..small() };
        assert_eq!(decide((small(), 1), (directory, 1)), Heritage::Dropped, "type");
        let no_bonus = Object { bonus_len: 0, bonus_type: 0, ..small() };
        assert_eq!(decide((no_bonus, 1), (small(), 1)), Heritage::Dropped, "fewer block pointers");
    }

    #[test]
    fn large_blocks_turned_on_and_off() {
        let (old, large) = (file(128 << 10), file(1 << 20));
        assert_eq!(
            decide((old.clone(), 1), (large.clone(), 1)),
            Heritage::KeptInBlocksOf(128 << 10)
        );
        assert_eq!(
            decide((large.clone(), 1), (old.clone(), 1)),
            Heritage::KeptInBlocksOf(128 << 10)
        );
        assert_eq!(decide((old, 1), (large, 2)), Heritage::Dropped);
    }
}
