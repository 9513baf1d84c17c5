//! The records of a stream, as OpenZFS lays them out (`include/sys/zfs_ioctl.h`, `dmu_replay_record_t`).
//!
//! Every record is a header of 312 bytes and a payload whose length follows from the header. The last 32 bytes of
//! every header but BEGIN's hold the running checksum of everything before them, or zeros.

mod decode;
mod encode;

pub use decode::parse;

use crate::bytes::ByteOrder;
use crate::feature::Features;

/// Length of every header.
pub const HEADER_LEN: usize = 312;
/// Where the running checksum begins in a header.
pub const CHECKSUM_AT: usize = HEADER_LEN - 32;
/// The magic number in BEGIN.
pub const MAGIC: u64 = 0x2_f5ba_cbac;
/// The largest block in ZFS.
pub const MAX_BLOCK: u64 = 16 << 20;
/// The largest spill block: system attributes never use more.
pub const MAX_SPILL: u64 = 128 << 10;
/// The largest block without [`Features::LARGE_BLOCKS`].
pub const OLD_MAX_BLOCK: u64 = 128 << 10;
/// The bonus area of the largest dnode (32 slots).
pub const MAX_BONUS: u64 = 32 * 512 - 192;
/// Object numbers are 48 bits.
pub const MAX_OBJECT: u64 = 1 << 48;
/// Slots in a block of dnodes; objects come in the order of these blocks.
pub const DNODES_PER_BLOCK: u64 = 32;

/// The object types that are used here (`include/sys/dmu.h`).
pub mod object_type {
    /// A file's data; a symlink is one too.
    pub const PLAIN_FILE: u32 = 19;
    /// A directory: a ZAP of names.
    pub const DIRECTORY: u32 = 20;
    /// Object 1 of a file system.
    pub const MASTER_NODE: u32 = 21;
    /// Files that are open and have no name.
    pub const UNLINKED_SET: u32 = 22;
    /// A volume's data.
    pub const ZVOL: u32 = 23;
    /// A volume's properties.
    pub const ZVOL_PROP: u32 = 24;
    /// Bonus type: the attributes of version 4 and before.
    pub const ZNODE: u32 = 17;
    /// Bonus type: system attributes.
    pub const SA: u32 = 44;
    /// ZAP with the registry's and the layouts' object numbers.
    pub const SA_MASTER_NODE: u32 = 45;
    /// ZAP of attribute names.
    pub const SA_REGISTRATION: u32 = 46;
    /// ZAP of attribute layouts.
    pub const SA_LAYOUTS: u32 = 47;
}

/// What kind of data set a stream holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ObjsetType {
    /// A file system.
    FileSystem,
    /// A volume.
    Volume,
    /// Anything else.
    Other(u32),
}

impl ObjsetType {
    fn from_raw(raw: u32) -> ObjsetType {
        match raw {
            2 => ObjsetType::FileSystem,
            3 => ObjsetType::Volume,
            other => ObjsetType::Other(other),
        }
    }

    fn to_raw(self) -> u32 {
        match self {
            ObjsetType::FileSystem => 2,
            ObjsetType::Volume => 3,
            ObjsetType::Other(raw) => raw,
        }
    }
}

/// The first record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Begin {
    /// The byte order of the whole stream.
    pub order: ByteOrder,
    /// 1 for a stream, 2 for a package of streams.
    pub header_type: u8,
    /// What the stream uses.
    pub features: Features,
    /// Seconds since 1970 at which the snapshot was taken.
    pub creation_time: u64,
    /// File system or volume.
    pub objset: ObjsetType,
    /// `FLAG_*`.
    pub flags: u32,
    /// GUID of the snapshot.
    pub to_guid: u64,
    /// GUID of the snapshot or bookmark that the stream is an increment to; 0 for a full stream.
    pub from_guid: u64,
    /// `pool/dataset@snapshot`.
    pub to_name: Vec<u8>,
}

impl Begin {
    /// [`Self::header_type`] of a stream of one snapshot (`DMU_SUBSTREAM` of `zfs_ioctl.h`).
    pub const STREAM: u8 = 1;
    /// [`Self::header_type`] of a package of several streams (`DMU_COMPOUNDSTREAM`).
    pub const PACKAGE: u8 = 2;
    /// The snapshot's origin was a clone's.
    pub const FLAG_CLONE: u32 = 1 << 0;
    /// A full stream that contains FREE and FREEOBJECTS records.
    pub const FLAG_FREERECORDS: u32 = 1 << 2;
    /// [`Object::FLAG_SPILL`] and [`Spill::FLAG_UNMODIFIED`] are valid.
    pub const FLAG_SPILL_BLOCK: u32 = 1 << 3;

    /// Whether the stream needs no earlier snapshot.
    pub fn is_full(&self) -> bool {
        self.from_guid == 0
    }

    /// Whether the stream is encrypted as it is on disk.
    pub fn is_raw(&self) -> bool {
        self.features.contains(Features::RAW)
    }

    /// Whether the spill flags of the records can be relied on.
    pub fn has_spill_flags(&self) -> bool {
        self.flags & Begin::FLAG_SPILL_BLOCK != 0
    }
}

/// An object exists with these properties; its bonus is the payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// Its number.
    pub object: u64,
    /// [`object_type`].
    pub kind: u32,
    /// Usually [`object_type::SA`] or [`object_type::ZNODE`].
    pub bonus_type: u32,
    /// Block size, at most 128 KiB without [`Features::LARGE_BLOCKS`].
    pub block_size: u32,
    /// Bytes of bonus.
    pub bonus_len: u32,
    /// Checksum property.
    pub checksum_type: u8,
    /// Compression property.
    pub compress: u8,
    /// Dnode slots it takes; 0 means 1.
    pub dn_slots: u8,
    /// `FLAG_*`.
    pub flags: u8,
    /// Raw streams: length of the encrypted bonus.
    pub raw_bonus_len: u32,
    /// Raw streams: log2 of the size of indirect blocks.
    pub indirect_block_shift: u8,
    /// Raw streams: levels of indirection.
    pub levels: u8,
    /// Raw streams: block pointers in the dnode.
    pub block_pointers: u8,
    /// Raw streams: the last block's number.
    pub max_block_id: u64,
}

impl Object {
    /// Makes an object of one dnode slot, without a bonus and without the fields of raw streams.
    pub fn plain(object: u64, kind: u32, block_size: u32) -> Object {
        Object {
            object,
            kind,
            bonus_type: 0,
            block_size,
            bonus_len: 0,
            checksum_type: 0,
            compress: 0,
            dn_slots: 1,
            flags: 0,
            raw_bonus_len: 0,
            indirect_block_shift: 0,
            levels: 0,
            block_pointers: 0,
            max_block_id: 0,
        }
    }

    /// The object has a spill block.
    pub const FLAG_SPILL: u8 = 1 << 2;

    /// Returns the dnode slots that it takes, at least 1.
    pub fn slots(&self) -> u64 {
        u64::from(self.dn_slots.max(1))
    }

    /// Whether [`Object::FLAG_SPILL`] is set.
    pub fn has_spill(&self) -> bool {
        self.flags & Object::FLAG_SPILL != 0
    }
}

/// Objects that don't exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FreeObjects {
    /// The first.
    pub first: u64,
    /// How many.
    pub count: u64,
}

/// Key material that raw streams carry with a block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sealed {
    /// Salt of the key.
    pub salt: [u8; 8],
    /// Initialization vector.
    pub iv: [u8; 12],
    /// Message authentication code.
    pub mac: [u8; 16],
}

/// A block's content, which is the payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// The object.
    pub object: u64,
    /// The object's type.
    pub kind: u32,
    /// Offset in the object.
    pub offset: u64,
    /// Length in the object.
    pub logical_size: u64,
    /// How the sender's pool checksums it.
    pub checksum_type: u8,
    /// Bit 0: the key may be used to find duplicates.
    pub flags: u8,
    /// 0 if the payload isn't compressed.
    pub compression: u8,
    /// The sender's checksum of the block on disk.
    pub key_checksum: [u64; 4],
    /// Sizes and compression on disk.
    pub key_properties: u64,
    /// Length of the payload if it is compressed or raw.
    pub compressed_size: u64,
    /// Raw streams.
    pub sealed: Sealed,
}

impl Write {
    /// Makes a block whose payload is its plain content, without data about the sender's pool.
    pub fn plain(object: u64, kind: u32, offset: u64, length: u64) -> Write {
        Write {
            object,
            kind,
            offset,
            logical_size: length,
            checksum_type: 2, // off
            flags: 0,
            compression: 0,
            key_checksum: [0; 4],
            key_properties: 0,
            compressed_size: 0,
            sealed: Sealed::default(),
        }
    }
}

/// A range of an object that is a hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Free {
    /// The object.
    pub object: u64,
    /// Where the hole begins.
    pub offset: u64,
    /// How long it is; `u64::MAX` means to the end.
    pub length: u64,
}

/// An object's spill block, which is the payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spill {
    /// The object.
    pub object: u64,
    /// Length of the block.
    pub length: u64,
    /// `FLAG_*`.
    pub flags: u8,
    /// Raw streams: compression.
    pub compression: u8,
    /// Raw streams: length of the payload.
    pub compressed_size: u64,
    /// Raw streams.
    pub sealed: Sealed,
    /// Raw streams: type.
    pub kind: u32,
}

impl Spill {
    /// The block is the same as in the previous snapshot; receivers that know the flag ignore it.
    pub const FLAG_UNMODIFIED: u8 = 1 << 2;
}

/// A block so small that it was stored in its block pointer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteEmbedded {
    /// The object.
    pub object: u64,
    /// Offset in the object.
    pub offset: u64,
    /// Length in the object.
    pub length: u64,
    /// Compression of the payload.
    pub compression: u8,
    /// Kind of embedding; 0 is data.
    pub embedded_type: u8,
    /// Length of the content when decompressed.
    pub logical_size: u32,
    /// Length of the content in the payload, which is padded to 8 bytes.
    pub physical_size: u32,
}

/// Raw streams: key material for a block of dnodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ObjectRange {
    /// The first object.
    pub first: u64,
    /// How many slots.
    pub slots: u64,
    /// Key material.
    pub sealed: Sealed,
    /// Like [`Object::flags`].
    pub flags: u8,
}

/// The last record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// The checksum of everything before.
    pub checksum: [u64; 4],
}

/// A record's header.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::large_enum_variant, reason = "one lives at a time, in its reader")]
pub enum Header {
    /// See [`Begin`].
    Begin(Begin),
    /// See [`Object`].
    Object(Object),
    /// See [`FreeObjects`].
    FreeObjects(FreeObjects),
    /// See [`Write`].
    Write(Write),
    /// See [`Free`].
    Free(Free),
    /// See [`End`].
    End(End),
    /// See [`Spill`].
    Spill(Spill),
    /// See [`WriteEmbedded`].
    WriteEmbedded(WriteEmbedded),
    /// See [`ObjectRange`].
    ObjectRange(ObjectRange),
}

impl Header {
    /// Returns the record's name, as OpenZFS spells it.
    pub fn name(&self) -> &'static str {
        match self {
            Header::Begin(_) => "BEGIN",
            Header::Object(_) => "OBJECT",
            Header::FreeObjects(_) => "FREEOBJECTS",
            Header::Write(_) => "WRITE",
            Header::Free(_) => "FREE",
            Header::End(_) => "END",
            Header::Spill(_) => "SPILL",
            Header::WriteEmbedded(_) => "WRITE_EMBEDDED",
            Header::ObjectRange(_) => "OBJECT_RANGE",
        }
    }

    /// Returns the length of the payload that follows; BEGIN's is only in [`Parsed::payload_len`].
    pub fn payload_len(&self) -> u64 {
        match self {
            Header::Object(object) if object.raw_bonus_len != 0 => u64::from(object.raw_bonus_len),
            Header::Object(object) => u64::from(object.bonus_len).next_multiple_of(8),
            Header::Write(write) if write.compression != 0 => write.compressed_size,
            Header::Write(write) => write.logical_size,
            Header::Spill(spill) if spill.compressed_size != 0 => spill.compressed_size,
            Header::Spill(spill) => spill.length,
            Header::WriteEmbedded(write) => u64::from(write.physical_size).next_multiple_of(8),
            _ => 0,
        }
    }
}

/// A parsed header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parsed {
    /// The header.
    pub header: Header,
    /// Length of the payload.
    pub payload_len: u64,
    /// The snapshot's GUID, which every record repeats.
    pub to_guid: u64,
    /// The running checksum up to here; zeros if the sender leaves it out.
    pub checksum: [u64; 4],
}
