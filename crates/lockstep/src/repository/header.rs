//! An object's header as a repository keeps it: what a send stream's OBJECT record says, and its bonus.
//!
//! ```text
//! 0      1: the form
//! 1      1: big-endian; 2: the sender knew the spill flags (OpenZFS 0.8 and later); 4: no older spill counts
//! 2..18  type, bonus type, block size, bonus length: 32 bits each, little-endian
//! 18     checksum, compression, dnode slots, flags: 8 bits each
//! 22..   the bonus
//! ```
//!
//! What could go wrong: a header that is misread yields a file with another size or owner. So every length is
//! checked.

use bytes::Bytes;
use sendstream::record::Object;
use sendstream::{ByteOrder, fold};
use strata::fold::{Heritage, Rules};

const FORM: u8 = 1;
const BIG_ENDIAN: u8 = 1;
const SPILL_FLAGS: u8 = 2;
const ENDS_SPILL: u8 = 4;
/// Where the bonus begins.
const BONUS: usize = 22;

/// A parsed header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectHeader {
    /// The record; its `object` is not part of the header and is 0.
    pub object: Object,
    /// The bonus.
    pub bonus: Vec<u8>,
    /// The byte order of the stream it came from.
    pub order: ByteOrder,
    /// Whether the spill flags can be relied on.
    pub has_spill_flags: bool,
    /// Whether no spill of an older delta counts: a merge has taken in a header that ended it.
    pub ends_spill: bool,
}

impl ObjectHeader {
    /// Serializes the header as it is stored.
    #[must_use]
    pub fn to_bytes(&self) -> Bytes {
        let object = &self.object;
        let mut bytes = Vec::with_capacity(BONUS + self.bonus.len());
        let order = if self.order == ByteOrder::Big { BIG_ENDIAN } else { 0 };
        let flags = if self.has_spill_flags { SPILL_FLAGS } else { 0 };
        let ends = if self.ends_spill { ENDS_SPILL } else { 0 };
        bytes.extend([FORM, order | flags | ends]);
        for number in [object.kind, object.bonus_type, object.block_size, object.bonus_len] {
            bytes.extend(number.to_le_bytes());
        }
        bytes.extend([object.checksum_type, object.compress, object.dn_slots, object.flags]);
        bytes.extend(&self.bonus);
        bytes.into()
    }

    /// Parses what [`Self::to_bytes`] wrote.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let [form, flags] = *bytes.first_chunk::<2>()?;
        if form != FORM || flags & !(BIG_ENDIAN | SPILL_FLAGS | ENDS_SPILL) != 0 {
            return None;
        }
        let number = |at: usize| {
            let raw: [u8; 4] = bytes.get(at..at + 4)?.try_into().ok()?;
            Some(u32::from_le_bytes(raw))
        };
        let object = Object {
            object: 0,
            kind: number(2)?,
            bonus_type: number(6)?,
            block_size: number(10)?,
            bonus_len: number(14)?,
            checksum_type: *bytes.get(18)?,
            compress: *bytes.get(19)?,
            dn_slots: *bytes.get(20)?,
            flags: *bytes.get(21)?,
            raw_bonus_len: 0,
            indirect_block_shift: 0,
            levels: 0,
            block_pointers: 0,
            max_block_id: 0,
        };
        let bonus = bytes.get(BONUS..)?.to_vec();
        if bonus.len() as u64 != u64::from(object.bonus_len).next_multiple_of(8) {
            return None;
        }
        Some(Self {
            object,
            bonus,
            order: if flags & BIG_ENDIAN != 0 { ByteOrder::Big } else { ByteOrder::Little },
            has_spill_flags: flags & SPILL_FLAGS != 0,
            ends_spill: flags & ENDS_SPILL != 0,
        })
    }

    /// Returns the transaction group in which the file was created. It tells apart two files with the same object
    /// number.
    #[must_use]
    pub fn generation(&self) -> Option<u64> {
        fold::generation(self.object.bonus_type, &self.bonus, self.order)
    }
}

/// The rules of `zfs receive` (`module/zfs/dmu_recv.c`), as `sendstream` states them.
#[derive(Debug, Clone, Copy, Default)]
pub struct StreamRules;

impl Rules for StreamRules {
    fn heritage(&self, older: &[u8], newer: &[u8]) -> Heritage {
        // A header that can't be read is reported by whatever uses it; here nothing may be mixed.
        let (Some(old), Some(new)) = (ObjectHeader::parse(older), ObjectHeader::parse(newer))
        else {
            return Heritage::Dropped;
        };
        // Without the flags, an object whose properties change loses its spill block. The header says so from there on:
        // a merge drops the older one, and the properties may be back in the newer.
        let same = |object: &Object| (object.bonus_type, object.bonus_len, object.block_size);
        let spill =
            new.has_spill_flags || !new.ends_spill && same(&old.object) == same(&new.object);
        let ends_spill = !new.has_spill_flags && (old.ends_spill || !spill);
        match fold::heritage((&old.object, &old.bonus), (&new.object, &new.bonus), new.order) {
            fold::Heritage::Dropped => Heritage::Dropped,
            fold::Heritage::Kept => {
                let ended = (ends_spill && !new.ends_spill)
                    .then(|| ObjectHeader { ends_spill, ..new }.to_bytes());
                Heritage::Kept { header: ended, spill }
            }
            fold::Heritage::KeptInBlocksOf(size) => {
                let block_size = new.object.block_size.min(size);
                let object = Object { block_size, ..new.object };
                let header = ObjectHeader { object, ends_spill, ..new }.to_bytes();
                Heritage::Kept { header: Some(header), spill }
            }
        }
    }

    fn slots(&self, header: &[u8]) -> u64 {
        ObjectHeader::parse(header).map_or(1, |header| header.object.slots())
    }

    fn most_slots(&self) -> u64 {
        // The record has 8 bits for them; ZFS itself makes no more than 32.
        u8::MAX.into()
    }

    fn has_spill(&self, header: &[u8]) -> bool {
        ObjectHeader::parse(header)
            .is_none_or(|header| !header.has_spill_flags || header.object.has_spill())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sendstream::record::object_type;

    fn header() -> ObjectHeader {
        ObjectHeader {
            object: Object {
                object: 0,
                kind: object_type::PLAIN_FILE,
                bonus_type: object_type::ZNODE,
                block_size: 131_072,
                bonus_len: 261,
                checksum_type: 7,
                compress: 2,
                dn_slots: 1,
                flags: Object::FLAG_SPILL,
                raw_bonus_len: 0,
                indirect_block_shift: 0,
                levels: 0,
                block_pointers: 0,
                max_block_id: 0,
            },
            bonus: (0..264_u32).map(|n| n as u8).collect(),
            order: ByteOrder::Big,
            has_spill_flags: true,
            ends_spill: false,
        }
    }

    #[test]
    fn round_trips() {
        let header = header();
        assert_eq!(ObjectHeader::parse(&header.to_bytes()), Some(header));
    }

    #[test]
    fn truncated_at_every_offset_is_refused() {
        let bytes = header().to_bytes();
        for length in 0..bytes.len() {
            assert_eq!(ObjectHeader::parse(&bytes[..length]), None, "{length}");
        }
        assert_eq!(ObjectHeader::parse(&[&bytes[..], &[0]].concat()), None);
    }

    #[test]
    fn what_it_does_not_know_is_refused() {
        let mut bytes = header().to_bytes().to_vec();
        bytes[1] |= 8;
        assert_eq!(ObjectHeader::parse(&bytes), None);
        bytes[..2].copy_from_slice(&[2, 0]);
        assert_eq!(ObjectHeader::parse(&bytes), None);
    }

    #[test]
    fn a_spill_stays_with_the_flags_or_the_same_properties() {
        let rules = StreamRules;
        let old = header();
        let kept = |new: &ObjectHeader| match rules.heritage(&old.to_bytes(), &new.to_bytes()) {
            Heritage::Kept { spill, .. } => Some(spill),
            Heritage::Dropped => None,
        };
        assert_eq!(kept(&old), Some(true));
        let mut without = ObjectHeader { has_spill_flags: false, ..header() };
        assert_eq!(kept(&without), Some(true));
        without.object.bonus_len = 264;
        assert_eq!(kept(&without), Some(false));
        // A merge of the last two says the same.
        let back = ObjectHeader { has_spill_flags: false, ..header() };
        let merged = match rules.heritage(&without.to_bytes(), &back.to_bytes()) {
            Heritage::Kept { header: Some(merged), spill: false } => merged,
            other => panic!("{other:?}"),
        };
        let merged = ObjectHeader::parse(&merged).unwrap();
        assert_eq!(kept(&merged), Some(false), "what was ended in between stays ended");
        assert_eq!(merged, ObjectHeader { ends_spill: true, ..back.clone() });
        // What lies below a merge is ended by it, its own spill isn't.
        let ended = Heritage::Kept { header: Some(merged.to_bytes()), spill: true };
        assert_eq!(rules.heritage(&merged.to_bytes(), &back.to_bytes()), ended);
        let mut another = header();
        another.bonus[64] ^= 1;
        assert_eq!(kept(&another), None, "another generation is another file");
    }
}
