//! Decodes headers; every field that decides how much is read next is checked here.

use super::*;
use crate::error::{Error, ErrorKind, Result};

/// Reads a header. `order` is `None` before the first record, which must be a BEGIN.
pub fn parse(bytes: &[u8; HEADER_LEN], order: Option<ByteOrder>) -> Result<(Parsed, ByteOrder)> {
    let order = match order {
        Some(order) => order,
        None => match ByteOrder::of_magic_u64(bytes, 8, MAGIC) {
            Some(order) => order,
            None => {
                let magic = ByteOrder::Little.u64(bytes, 8).unwrap_or(0);
                return Err(Error::new(ErrorKind::NotAStream { magic }));
            }
        },
    };
    let fields = Fields { bytes, order };
    let (header, to_guid) = match fields.u32(0) {
        0 => fields.begin()?,
        1 => fields.object()?,
        2 => fields.free_objects()?,
        3 => fields.write()?,
        4 => fields.free()?,
        5 => (Header::End(End { checksum: fields.sums(8) }), fields.u64(40)),
        6 => return Err(Error::new(ErrorKind::RefusedRecord("WRITE_BYREF"))),
        7 => fields.spill()?,
        8 => fields.write_embedded()?,
        9 => fields.object_range()?,
        10 => return Err(Error::new(ErrorKind::RefusedRecord("REDACT"))),
        other => return Err(invalid("the record type", "0 to 10", u64::from(other))),
    };
    let payload_len = match &header {
        Header::Begin(_) => u64::from(fields.u32(4)),
        other => other.payload_len(),
    };
    let checksum = match header {
        Header::Begin(_) => [0; 4],
        _ => fields.sums(CHECKSUM_AT),
    };
    Ok((Parsed { header, payload_len, to_guid, checksum }, order))
}

fn invalid(what: &'static str, expected: &'static str, found: u64) -> Error {
    Error::new(ErrorKind::Invalid { what, expected, found })
}

fn in_range(
    what: &'static str,
    expected: &'static str,
    value: u64,
    range: std::ops::RangeInclusive<u64>,
) -> Result<u64> {
    if range.contains(&value) { Ok(value) } else { Err(invalid(what, expected, value)) }
}

/// Checks that a block begins and ends at sectors. Otherwise a fold could cut pieces out of blocks that no stream can
/// hold (found by fuzzing).
fn in_sectors(what: &'static str, offset: u64, length: u64) -> Result<()> {
    let whole = |value: u64| value == u64::MAX || value.is_multiple_of(512);
    for value in [offset, length] {
        if !whole(value) {
            return Err(invalid(what, "a multiple of 512", value));
        }
    }
    Ok(())
}

struct Fields<'a> {
    bytes: &'a [u8; HEADER_LEN],
    order: ByteOrder,
}

// All offsets here are constants below HEADER_LEN, so the defaults are never used.
impl Fields<'_> {
    fn u8(&self, at: usize) -> u8 {
        self.bytes.get(at).copied().unwrap_or(0)
    }

    fn u32(&self, at: usize) -> u32 {
        self.order.u32(self.bytes, at).unwrap_or(0)
    }

    fn u64(&self, at: usize) -> u64 {
        self.order.u64(self.bytes, at).unwrap_or(0)
    }

    fn sums(&self, at: usize) -> [u64; 4] {
        [self.u64(at), self.u64(at + 8), self.u64(at + 16), self.u64(at + 24)]
    }

    fn array<const N: usize>(&self, at: usize) -> [u8; N] {
        self.bytes.get(at..at + N).and_then(|bytes| bytes.try_into().ok()).unwrap_or([0; N])
    }

    fn sealed(&self, at: usize) -> Sealed {
        Sealed { salt: self.array(at), iv: self.array(at + 8), mac: self.array(at + 20) }
    }

    fn object_number(&self, at: usize) -> Result<u64> {
        in_range("the object number", "1 to 2^48", self.u64(at), 1..=MAX_OBJECT)
    }

    fn begin(&self) -> Result<(Header, u64)> {
        let magic = self.u64(8);
        if magic != MAGIC {
            return Err(Error::new(ErrorKind::NotAStream { magic }));
        }
        let version = self.u64(16);
        let name = &self.bytes[56..];
        let name = name.split(|byte| *byte == 0).next().unwrap_or(name);
        let to_guid = self.u64(40);
        let begin = Begin {
            order: self.order,
            header_type: (version & 3) as u8,
            features: Features(version >> 2),
            creation_time: self.u64(24),
            objset: ObjsetType::from_raw(self.u32(32)),
            flags: self.u32(36),
            to_guid,
            from_guid: self.u64(48),
            to_name: name.to_vec(),
        };
        Ok((Header::Begin(begin), to_guid))
    }

    fn object(&self) -> Result<(Header, u64)> {
        let object = Object {
            object: self.object_number(8)?,
            kind: self.u32(16),
            bonus_type: self.u32(20),
            block_size: in_range(
                "OBJECT's block size",
                "512 to 16 MiB",
                self.u32(24).into(),
                512..=MAX_BLOCK,
            )? as u32,
            bonus_len: in_range(
                "OBJECT's bonus length",
                "at most 16192",
                self.u32(28).into(),
                0..=MAX_BONUS,
            )? as u32,
            checksum_type: self.u8(32),
            compress: self.u8(33),
            dn_slots: in_range("OBJECT's slots", "at most 32", self.u8(34).into(), 0..=32)? as u8,
            flags: self.u8(35),
            raw_bonus_len: in_range(
                "OBJECT's raw bonus length",
                "at most 16192",
                self.u32(36).into(),
                0..=MAX_BONUS,
            )? as u32,
            indirect_block_shift: self.u8(48),
            levels: self.u8(49),
            block_pointers: self.u8(50),
            max_block_id: self.u64(56),
        };
        if !object.block_size.is_multiple_of(512) {
            return Err(invalid(
                "OBJECT's block size",
                "a multiple of 512",
                object.block_size.into(),
            ));
        }
        Ok((Header::Object(object), self.u64(40)))
    }

    fn free_objects(&self) -> Result<(Header, u64)> {
        let free = FreeObjects { first: self.u64(8), count: self.u64(16) };
        if free.first.checked_add(free.count).is_none() {
            return Err(invalid("FREEOBJECTS' count", "a count that doesn't overflow", free.count));
        }
        Ok((Header::FreeObjects(free), self.u64(24)))
    }

    fn write(&self) -> Result<(Header, u64)> {
        let write = Write {
            object: self.object_number(8)?,
            kind: self.u32(16),
            offset: self.u64(24),
            logical_size: in_range(
                "WRITE's logical size",
                "512 to 16 MiB",
                self.u64(32),
                512..=MAX_BLOCK,
            )?,
            checksum_type: self.u8(48),
            flags: self.u8(49),
            compression: self.u8(50),
            key_checksum: self.sums(56),
            key_properties: self.u64(88),
            compressed_size: self.u64(96),
            sealed: self.sealed(104),
        };
        if write.offset.checked_add(write.logical_size).is_none() {
            return Err(invalid("WRITE's offset", "an offset that doesn't overflow", write.offset));
        }
        in_sectors("WRITE's offset or length", write.offset, write.logical_size)?;
        if write.compression != 0 {
            let what = "WRITE's compressed size";
            in_range(what, "1 to the logical size", write.compressed_size, 1..=write.logical_size)?;
        }
        Ok((Header::Write(write), self.u64(40)))
    }

    fn free(&self) -> Result<(Header, u64)> {
        let free =
            Free { object: self.object_number(8)?, offset: self.u64(16), length: self.u64(24) };
        if free.length != u64::MAX && free.offset.checked_add(free.length).is_none() {
            return Err(invalid("FREE's length", "a length that doesn't overflow", free.length));
        }
        in_sectors("FREE's offset or length", free.offset, free.length)?;
        Ok((Header::Free(free), self.u64(32)))
    }

    fn spill(&self) -> Result<(Header, u64)> {
        let spill = Spill {
            object: self.object_number(8)?,
            length: in_range("SPILL's length", "512 to 128 KiB", self.u64(16), 512..=MAX_SPILL)?,
            flags: self.u8(32),
            compression: self.u8(33),
            compressed_size: self.u64(40),
            sealed: self.sealed(48),
            kind: self.u32(84),
        };
        in_range(
            "SPILL's compressed size",
            "at most its length",
            spill.compressed_size,
            0..=spill.length,
        )?;
        Ok((Header::Spill(spill), self.u64(24)))
    }

    fn write_embedded(&self) -> Result<(Header, u64)> {
        let write = WriteEmbedded {
            object: self.object_number(8)?,
            offset: self.u64(16),
            length: in_range(
                "WRITE_EMBEDDED's length",
                "512 to 16 MiB",
                self.u64(24),
                512..=MAX_BLOCK,
            )?,
            compression: self.u8(40),
            embedded_type: self.u8(41),
            logical_size: self.u32(48),
            // A block pointer has 14 words of embedded content.
            physical_size: in_range(
                "WRITE_EMBEDDED's physical size",
                "1 to 112",
                self.u32(52).into(),
                1..=112,
            )? as u32,
        };
        if write.offset.checked_add(write.length).is_none() {
            return Err(invalid(
                "WRITE_EMBEDDED's offset",
                "an offset that doesn't overflow",
                write.offset,
            ));
        }
        in_sectors("WRITE_EMBEDDED's offset or length", write.offset, write.length)?;
        if write.embedded_type != 0 {
            return Err(invalid("WRITE_EMBEDDED's kind", "0 (data)", write.embedded_type.into()));
        }
        in_range(
            "WRITE_EMBEDDED's logical size",
            "1 to its length",
            write.logical_size.into(),
            1..=write.length,
        )?;
        Ok((Header::WriteEmbedded(write), self.u64(32)))
    }

    fn object_range(&self) -> Result<(Header, u64)> {
        let range = ObjectRange {
            first: self.u64(8),
            slots: in_range(
                "OBJECT_RANGE's slots",
                "32",
                self.u64(16),
                DNODES_PER_BLOCK..=DNODES_PER_BLOCK,
            )?,
            sealed: self.sealed(32),
            flags: self.u8(68),
        };
        if range.first.checked_add(range.slots).is_none() {
            return Err(invalid(
                "OBJECT_RANGE's first object",
                "one that doesn't overflow",
                range.first,
            ));
        }
        Ok((Header::ObjectRange(range), self.u64(24)))
    }
}
