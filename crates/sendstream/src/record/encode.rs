//! Encodes headers.

use super::*;

impl Header {
    /// Returns the header as bytes, with zeros for the running checksum.
    pub fn encode(&self, order: ByteOrder, payload_len: u32, to_guid: u64) -> [u8; HEADER_LEN] {
        let mut bytes = [0u8; HEADER_LEN];
        let mut put = Put { bytes: &mut bytes, order };
        match self {
            Header::Begin(begin) => put.begin(begin, payload_len),
            Header::Object(object) => put.object(object, to_guid),
            Header::FreeObjects(free) => {
                put.u32(0, 2).u64(8, free.first).u64(16, free.count).u64(24, to_guid);
            }
            Header::Write(write) => put.write(write, to_guid),
            Header::Free(free) => {
                put.u32(0, 4)
                    .u64(8, free.object)
                    .u64(16, free.offset)
                    .u64(24, free.length)
                    .u64(32, to_guid);
            }
            Header::End(end) => {
                put.u32(0, 5).sums(8, end.checksum).u64(40, to_guid);
            }
            Header::Spill(spill) => put.spill(spill, to_guid),
            Header::WriteEmbedded(write) => put.write_embedded(write, to_guid),
            Header::ObjectRange(range) => {
                put.u32(0, 9)
                    .u64(8, range.first)
                    .u64(16, range.slots)
                    .u64(24, to_guid)
                    .sealed(32, &range.sealed);
                put.raw(68, &[range.flags]);
            }
        }
        bytes
    }
}

struct Put<'a> {
    bytes: &'a mut [u8; HEADER_LEN],
    order: ByteOrder,
}

impl Put<'_> {
    fn u32(&mut self, at: usize, value: u32) -> &mut Self {
        self.order.put_u32(self.bytes, at, value);
        self
    }

    fn u64(&mut self, at: usize, value: u64) -> &mut Self {
        self.order.put_u64(self.bytes, at, value);
        self
    }

    fn sums(&mut self, at: usize, sums: [u64; 4]) -> &mut Self {
        for (i, sum) in sums.into_iter().enumerate() {
            self.u64(at + 8 * i, sum);
        }
        self
    }

    fn raw(&mut self, at: usize, bytes: &[u8]) -> &mut Self {
        if let Some(place) = self.bytes.get_mut(at..at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
        self
    }

    fn sealed(&mut self, at: usize, sealed: &Sealed) -> &mut Self {
        self.raw(at, &sealed.salt).raw(at + 8, &sealed.iv).raw(at + 20, &sealed.mac)
    }

    fn begin(&mut self, begin: &Begin, payload_len: u32) {
        let version = u64::from(begin.header_type & 3) | begin.features.0 << 2;
        self.u32(0, 0)
            .u32(4, payload_len)
            .u64(8, MAGIC)
            .u64(16, version)
            .u64(24, begin.creation_time);
        self.u32(32, begin.objset.to_raw())
            .u32(36, begin.flags)
            .u64(40, begin.to_guid)
            .u64(48, begin.from_guid);
        // The last byte stays the terminator.
        let name = &begin.to_name[..begin.to_name.len().min(255)];
        self.raw(56, name);
    }

    fn object(&mut self, object: &Object, to_guid: u64) {
        self.u32(0, 1).u64(8, object.object).u32(16, object.kind).u32(20, object.bonus_type);
        self.u32(24, object.block_size).u32(28, object.bonus_len);
        self.raw(32, &[object.checksum_type, object.compress, object.dn_slots, object.flags]);
        self.u32(36, object.raw_bonus_len).u64(40, to_guid);
        self.raw(48, &[object.indirect_block_shift, object.levels, object.block_pointers]);
        self.u64(56, object.max_block_id);
    }

    fn write(&mut self, write: &Write, to_guid: u64) {
        self.u32(0, 3)
            .u64(8, write.object)
            .u32(16, write.kind)
            .u64(24, write.offset)
            .u64(32, write.logical_size);
        self.u64(40, to_guid).raw(48, &[write.checksum_type, write.flags, write.compression]);
        self.sums(56, write.key_checksum)
            .u64(88, write.key_properties)
            .u64(96, write.compressed_size);
        self.sealed(104, &write.sealed);
    }

    fn spill(&mut self, spill: &Spill, to_guid: u64) {
        self.u32(0, 7).u64(8, spill.object).u64(16, spill.length).u64(24, to_guid);
        self.raw(32, &[spill.flags, spill.compression]).u64(40, spill.compressed_size);
        self.sealed(48, &spill.sealed).u32(84, spill.kind);
    }

    fn write_embedded(&mut self, write: &WriteEmbedded, to_guid: u64) {
        self.u32(0, 8)
            .u64(8, write.object)
            .u64(16, write.offset)
            .u64(24, write.length)
            .u64(32, to_guid);
        self.raw(40, &[write.compression, write.embedded_type]);
        self.u32(48, write.logical_size).u32(52, write.physical_size);
    }
}
