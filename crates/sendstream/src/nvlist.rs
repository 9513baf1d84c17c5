//! Packed name-value lists, in both encodings (OpenZFS `module/nvpair/nvpair.c`): XDR, which package headers and
//! extended attributes use, and native, which the BEGIN records of raw and resumed streams use.

use crate::bytes::ByteOrder;
use crate::error::{Error, ErrorKind, Result};

/// A list of names and values, in the order of the packed list.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NvList {
    pairs: Vec<(Vec<u8>, Value)>,
}

/// A value.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Value {
    /// There is no value; only the name's presence counts.
    Flag,
    /// A boolean.
    Bool(bool),
    /// An unsigned number of any width.
    Unsigned(u64),
    /// A signed number of any width.
    Signed(i64),
    /// A string, without its terminator.
    String(Vec<u8>),
    /// An array of bytes.
    Bytes(Vec<u8>),
    /// An array of numbers.
    Numbers(Vec<u64>),
    /// An array of strings.
    Strings(Vec<Vec<u8>>),
    /// A list.
    List(NvList),
    /// An array of lists.
    Lists(Vec<NvList>),
}

impl Value {
    /// Returns the list, if it is one.
    pub fn as_list(&self) -> Option<&NvList> {
        if let Value::List(list) = self { Some(list) } else { None }
    }

    /// Returns the bytes of a string or of an array of bytes.
    pub fn as_bytes(&self) -> Option<&[u8]> {
        match self {
            Value::String(bytes) | Value::Bytes(bytes) => Some(bytes),
            _ => None,
        }
    }
}

impl NvList {
    /// Unpacks a list.
    pub fn parse(bytes: &[u8]) -> Result<NvList> {
        let (Some(&encoding), Some(&endian)) = (bytes.first(), bytes.get(1)) else {
            return Err(bad("it ends in its header"));
        };
        let mut input = Input { bytes, at: 4, order: ByteOrder::Big, depth: 0 };
        match (encoding, endian) {
            (0, 0) => input.native(),
            (0, 1) => {
                input.order = ByteOrder::Little;
                input.native()
            }
            (1, _) => input.xdr(),
            _ => Err(bad("unknown encoding")),
        }
    }

    /// Returns the value of a name.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.pairs.iter().find(|(found, _)| found == name.as_bytes()).map(|(_, value)| value)
    }

    /// Returns all names and values.
    pub fn pairs(&self) -> impl Iterator<Item = (&[u8], &Value)> {
        self.pairs.iter().map(|(name, value)| (&name[..], value))
    }
}

fn bad(why: &'static str) -> Error {
    Error::new(ErrorKind::NvList(why))
}

/// OpenZFS itself stops at 20 (`nvpair_max_recursion`).
const MAX_DEPTH: usize = 20;

struct Input<'a> {
    bytes: &'a [u8],
    at: usize,
    order: ByteOrder,
    depth: usize,
}

// Numbers of the types (`data_type_t`).
mod kind {
    pub const BOOLEAN: u32 = 1;
    pub const BYTE: u32 = 2;
    pub const INT16: u32 = 3;
    pub const UINT16: u32 = 4;
    pub const INT32: u32 = 5;
    pub const UINT32: u32 = 6;
    pub const INT64: u32 = 7;
    pub const UINT64: u32 = 8;
    pub const STRING: u32 = 9;
    pub const BYTE_ARRAY: u32 = 10;
    pub const INT16_ARRAY: u32 = 11;
    pub const UINT16_ARRAY: u32 = 12;
    pub const INT32_ARRAY: u32 = 13;
    pub const UINT32_ARRAY: u32 = 14;
    pub const INT64_ARRAY: u32 = 15;
    pub const UINT64_ARRAY: u32 = 16;
    pub const STRING_ARRAY: u32 = 17;
    pub const HRTIME: u32 = 18;
    pub const NVLIST: u32 = 19;
    pub const NVLIST_ARRAY: u32 = 20;
    pub const BOOLEAN_VALUE: u32 = 21;
    pub const INT8: u32 = 22;
    pub const UINT8: u32 = 23;
    pub const BOOLEAN_ARRAY: u32 = 24;
    pub const INT8_ARRAY: u32 = 25;
    pub const UINT8_ARRAY: u32 = 26;
    pub const DOUBLE: u32 = 27;
}

impl<'a> Input<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let end = self.at.checked_add(count).ok_or_else(|| bad("a length overflows"))?;
        let taken = self.bytes.get(self.at..end).ok_or_else(|| bad("it ends too early"))?;
        self.at = end;
        Ok(taken)
    }

    fn u32(&mut self) -> Result<u32> {
        let order = self.order;
        order.u32(self.take(4)?, 0).ok_or_else(|| bad("it ends too early"))
    }

    fn u64(&mut self) -> Result<u64> {
        let order = self.order;
        order.u64(self.take(8)?, 0).ok_or_else(|| bad("it ends too early"))
    }

    /// Checks that the remaining bytes can hold `count` items of at least `width` bytes each.
    fn check_count(&self, count: u32, width: usize) -> Result<usize> {
        let count = count as usize;
        match count.checked_mul(width) {
            Some(length) if length <= self.bytes.len().saturating_sub(self.at) => Ok(count),
            _ => Err(bad("an array is longer than what is left")),
        }
    }

    fn deeper<T>(&mut self, inner: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if self.depth >= MAX_DEPTH {
            return Err(bad("it is nested too deeply"));
        }
        self.depth += 1;
        let result = inner(self);
        self.depth -= 1;
        result
    }

    // --- XDR: everything big-endian, in units of four bytes ---

    fn xdr(&mut self) -> Result<NvList> {
        self.u32()?; // version
        self.u32()?; // flags
        let mut list = NvList::default();
        loop {
            let start = self.at;
            let (encoded, decoded) = (self.u32()?, self.u32()?);
            if decoded == 0 {
                return Ok(list);
            }
            let name = self.xdr_string()?;
            let (kind, count) = (self.u32()?, self.u32()?);
            let value = self.xdr_value(kind, count)?;
            let end =
                start.checked_add(encoded as usize).ok_or_else(|| bad("a length overflows"))?;
            match value {
                Some(value) => {
                    if self.at != end {
                        return Err(bad("a pair's length isn't that of its value"));
                    }
                    list.pairs.push((name, value));
                }
                None => return Err(bad("unknown type")),
            }
        }
    }

    fn xdr_padded(&mut self, length: usize) -> Result<Vec<u8>> {
        let bytes = self.take(length)?.to_vec();
        self.take(length.next_multiple_of(4) - length)?;
        Ok(bytes)
    }

    fn xdr_string(&mut self) -> Result<Vec<u8>> {
        let length = self.u32()?;
        let length = self.check_count(length, 1)?;
        self.xdr_padded(length)
    }

    /// Reads an array that repeats its length.
    fn xdr_numbers(&mut self, wide: bool) -> Result<Vec<u64>> {
        let count = self.u32()?;
        let count = self.check_count(count, if wide { 8 } else { 4 })?;
        (0..count).map(|_| if wide { self.u64() } else { self.u32().map(u64::from) }).collect()
    }

    fn xdr_value(&mut self, kind: u32, count: u32) -> Result<Option<Value>> {
        use kind::*;
        Ok(Some(match kind {
            BOOLEAN => Value::Flag,
            BYTE | UINT8 => Value::Unsigned(u64::from(self.u32()? as u8)),
            UINT16 => Value::Unsigned(u64::from(self.u32()? as u16)),
            UINT32 => Value::Unsigned(u64::from(self.u32()?)),
            UINT64 | DOUBLE => Value::Unsigned(self.u64()?),
            INT8 => Value::Signed(i64::from(self.u32()? as i8)),
            INT16 => Value::Signed(i64::from(self.u32()? as i16)),
            INT32 => Value::Signed(i64::from(self.u32()? as i32)),
            INT64 | HRTIME => Value::Signed(self.u64()? as i64),
            BOOLEAN_VALUE => Value::Bool(self.u32()? != 0),
            STRING => Value::String(self.xdr_string()?),
            BYTE_ARRAY => {
                let length = self.check_count(count, 1)?;
                Value::Bytes(self.xdr_padded(length)?)
            }
            INT8_ARRAY | UINT8_ARRAY | INT16_ARRAY | UINT16_ARRAY | INT32_ARRAY | UINT32_ARRAY
            | BOOLEAN_ARRAY
                if count > 0 =>
            {
                Value::Numbers(self.xdr_numbers(false)?)
            }
            INT64_ARRAY | UINT64_ARRAY if count > 0 => Value::Numbers(self.xdr_numbers(true)?),
            INT8_ARRAY..=UINT8_ARRAY | INT16_ARRAY..=UINT64_ARRAY | BOOLEAN_ARRAY => {
                Value::Numbers(Vec::new())
            }
            STRING_ARRAY => {
                let count = self.check_count(count, 4)?;
                Value::Strings((0..count).map(|_| self.xdr_string()).collect::<Result<_>>()?)
            }
            NVLIST => Value::List(self.deeper(Self::xdr)?),
            NVLIST_ARRAY => {
                let count = self.check_count(count, 16)?;
                Value::Lists((0..count).map(|_| self.deeper(Self::xdr)).collect::<Result<_>>()?)
            }
            _ => return Ok(None),
        }))
    }

    // --- native: the structures as they were in memory, aligned to eight bytes ---

    fn native(&mut self) -> Result<NvList> {
        self.u32()?; // version
        self.u32()?; // flags
        self.native_pairs()
    }

    fn native_pairs(&mut self) -> Result<NvList> {
        let mut list = NvList::default();
        loop {
            let start = self.at;
            let size = self.u32()? as usize;
            if size == 0 {
                return Ok(list);
            }
            let end = start.checked_add(size).ok_or_else(|| bad("a length overflows"))?;
            let whole = self.bytes.get(start..end).ok_or_else(|| bad("it ends too early"))?;
            let order = self.order;
            let header =
                || Some((order.u16(whole, 4)?, order.u32(whole, 8)?, order.u32(whole, 12)?));
            let (name_size, count, kind) =
                header().ok_or_else(|| bad("a pair is shorter than its header"))?;
            let name_end = 16 + usize::from(name_size);
            let name =
                whole.get(16..name_end).ok_or_else(|| bad("a name is longer than its pair"))?;
            let name = name.strip_suffix(&[0]).ok_or_else(|| bad("a name has no end"))?.to_vec();
            let body = whole.get(name_end.next_multiple_of(8)..).unwrap_or(&[]);
            // Nested lists follow their pair.
            self.at = end;
            let value = self.native_value(kind, count, body)?;
            list.pairs.push((name, value));
        }
    }

    fn native_value(&mut self, kind: u32, count: u32, body: &[u8]) -> Result<Value> {
        use kind::*;
        let order = self.order;
        let short = || bad("a value is longer than its pair");
        let byte = || body.first().copied().ok_or_else(short);
        let half = || order.u16(body, 0).ok_or_else(short);
        let word = || order.u32(body, 0).ok_or_else(short);
        let long = || order.u64(body, 0).ok_or_else(short);
        let array = |width: usize| -> Result<Vec<u64>> {
            let length = (count as usize).checked_mul(width).ok_or_else(short)?;
            let numbers = body.get(..length).ok_or_else(short)?.chunks_exact(width);
            Ok(numbers
                .filter_map(|number| match width {
                    1 => Some(u64::from(number[0])),
                    2 => order.u16(number, 0).map(u64::from),
                    4 => order.u32(number, 0).map(u64::from),
                    _ => order.u64(number, 0),
                })
                .collect())
        };
        Ok(match kind {
            BOOLEAN => Value::Flag,
            BYTE | UINT8 => Value::Unsigned(u64::from(byte()?)),
            UINT16 => Value::Unsigned(u64::from(half()?)),
            UINT32 => Value::Unsigned(u64::from(word()?)),
            UINT64 | DOUBLE => Value::Unsigned(long()?),
            INT8 => Value::Signed(i64::from(byte()? as i8)),
            INT16 => Value::Signed(i64::from(half()? as i16)),
            INT32 => Value::Signed(i64::from(word()? as i32)),
            INT64 | HRTIME => Value::Signed(long()? as i64),
            BOOLEAN_VALUE => Value::Bool(word()? != 0),
            STRING => {
                Value::String(until_zero(body).ok_or_else(|| bad("a string has no end"))?.to_vec())
            }
            BYTE_ARRAY => Value::Bytes(body.get(..count as usize).ok_or_else(short)?.to_vec()),
            INT8_ARRAY | UINT8_ARRAY => Value::Numbers(array(1)?),
            INT16_ARRAY | UINT16_ARRAY => Value::Numbers(array(2)?),
            INT32_ARRAY | UINT32_ARRAY | BOOLEAN_ARRAY => Value::Numbers(array(4)?),
            INT64_ARRAY | UINT64_ARRAY => Value::Numbers(array(8)?),
            STRING_ARRAY => {
                // An array of pointers, then the strings.
                let mut rest = (count as usize)
                    .checked_mul(8)
                    .and_then(|skip| body.get(skip..))
                    .ok_or_else(short)?;
                let mut strings = Vec::new();
                for _ in 0..count {
                    let string = until_zero(rest).ok_or_else(|| bad("a string has no end"))?;
                    strings.push(string.to_vec());
                    rest = &rest[string.len() + 1..];
                }
                Value::Strings(strings)
            }
            NVLIST => Value::List(self.deeper(Self::native_pairs)?),
            NVLIST_ARRAY => {
                // Each list takes at least its end mark.
                let count = self.check_count(count, 4)?;
                Value::Lists(
                    (0..count).map(|_| self.deeper(Self::native_pairs)).collect::<Result<_>>()?,
                )
            }
            _ => return Err(bad("unknown type")),
        })
    }
}

fn until_zero(bytes: &[u8]) -> Option<&[u8]> {
    bytes.iter().position(|byte| *byte == 0).map(|end| &bytes[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A list with a number, a byte array and a list in it, as `nvlist_pack` with XDR writes it.
    fn xdr_sample() -> Vec<u8> {
        let mut bytes = vec![1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
        let mut pair = |encoded: u32, name: &[u8], kind: u32, value: &[u8]| {
            for word in [encoded, 32, name.len() as u32] {
                bytes.extend(word.to_be_bytes());
            }
            bytes.extend(name);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
            bytes.extend(kind.to_be_bytes());
            bytes.extend(if kind == kind::BYTE_ARRAY { 3u32 } else { 1 }.to_be_bytes());
            bytes.extend(value);
        };
        pair(32, b"guid", kind::UINT64, &7u64.to_be_bytes());
        pair(28, b"user", kind::BYTE_ARRAY, b"abc\0");
        pair(40, b"list", kind::NVLIST, &[0; 16]);
        bytes.extend([0; 8]);
        bytes
    }

    #[test]
    fn xdr() {
        let list = NvList::parse(&xdr_sample()).unwrap();
        assert_eq!(list.get("guid"), Some(&Value::Unsigned(7)));
        assert_eq!(list.get("user").and_then(Value::as_bytes), Some(&b"abc"[..]));
        assert_eq!(list.get("list").and_then(Value::as_list), Some(&NvList::default()));
        assert_eq!(list.pairs().count(), 3);
    }

    #[test]
    fn truncated_anywhere() {
        let sample = xdr_sample();
        for length in 0..sample.len() {
            assert!(NvList::parse(&sample[..length]).is_err(), "length {length}");
        }
    }

    #[test]
    fn nesting_is_limited() {
        // Lists nested without end.
        let mut bytes = vec![1, 1, 0, 0];
        for _ in 0..1000 {
            for word in [0u32, 1, 99, 32, 1] {
                bytes.extend(word.to_be_bytes());
            }
            bytes.extend(b"x\0\0\0");
            bytes.extend(kind::NVLIST.to_be_bytes());
            bytes.extend(1u32.to_be_bytes());
        }
        assert!(NvList::parse(&bytes).is_err());
    }
}
