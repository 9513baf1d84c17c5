//! ZAP objects, small and large: the hash tables that store directories and other maps (OpenZFS
//! `include/sys/zap_impl.h`, `include/sys/zap_leaf.h`).

use std::borrow::Cow;
use std::collections::BTreeSet;

use crate::bytes::ByteOrder;
use crate::error::{Error, Result};

const BLOCK_MICRO: u64 = (1 << 63) + 3;
const BLOCK_HEADER: u64 = (1 << 63) + 1;
const BLOCK_LEAF: u64 = 1 << 63;
const MAGIC: u64 = 0x2_F52A_B2AB;
const LEAF_MAGIC: u32 = 0x2AB_1EAF;

/// The size of a micro ZAP's entries and of the header before them.
const MICRO_ENTRY: usize = 64;
/// A leaf consists of chunks of this size.
const CHUNK: usize = 24;
/// The bytes of a name or value in one chunk.
const CHUNK_DATA: usize = 21;
const CHUNK_ENTRY: u8 = 252;
const CHUNK_ARRAY: u8 = 251;

/// A value: integers of one, two, four or eight bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ZapValue {
    /// Bytes per integer.
    pub width: u8,
    /// The integers.
    pub numbers: Vec<u64>,
}

impl ZapValue {
    /// Returns the value, if it is a single number.
    pub fn single(&self) -> Option<u64> {
        if let [number] = self.numbers[..] { Some(number) } else { None }
    }
}

/// An object's content with its holes, in no more memory than the data takes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SparseContent {
    /// Ascending, not overlapping.
    pieces: Vec<(u64, Vec<u8>)>,
}

impl From<&[u8]> for SparseContent {
    fn from(bytes: &[u8]) -> SparseContent {
        SparseContent { pieces: vec![(0, bytes.to_vec())] }
    }
}

impl SparseContent {
    /// Appends data; returns false if it doesn't come after the existing data.
    pub fn push(&mut self, offset: u64, bytes: &[u8]) -> bool {
        let fits = offset
            >= self.pieces.last().map_or(0, |(start, bytes)| start + bytes.len() as u64)
            && offset.checked_add(bytes.len() as u64).is_some();
        if fits {
            self.pieces.push((offset, bytes.to_vec()));
        }
        fits
    }

    /// Returns how many bytes of data there are.
    pub fn data_len(&self) -> u64 {
        self.pieces.iter().map(|(_, bytes)| bytes.len() as u64).sum()
    }

    /// Returns a range, with zeros for holes; `None` if there is no data at its beginning.
    pub fn read(&self, offset: u64, length: usize) -> Option<Cow<'_, [u8]>> {
        let end = offset.checked_add(length as u64)?;
        let after = self.pieces.partition_point(|(start, _)| *start <= offset);
        let (start, bytes) = self.pieces.get(after.checked_sub(1)?)?;
        let skip = usize::try_from(offset - start)
            .ok()
            .filter(|skip| *skip < bytes.len() || length == 0)?;
        if let Some(range) = bytes.get(skip..skip + length) {
            return Some(Cow::Borrowed(range));
        }
        let mut range = bytes.get(skip..)?.to_vec();
        range.resize(length, 0);
        for (start, bytes) in self.pieces[after..].iter().take_while(|(start, _)| *start < end) {
            let place = &mut range[(start - offset) as usize..];
            let count = place.len().min(bytes.len());
            place[..count].copy_from_slice(&bytes[..count]);
        }
        Some(Cow::Owned(range))
    }
}

/// The entries of a ZAP object, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Zap {
    entries: Vec<(Vec<u8>, ZapValue)>,
}

impl Zap {
    /// Reads a ZAP from the content of its object, whose blocks are `block_size` long.
    pub fn parse(object: u64, content: &SparseContent, block_size: usize) -> Result<Zap> {
        let broken = |why: &str| Error::object(object, format!("not a ZAP: {why}"));
        if block_size as u64 > crate::record::MAX_BLOCK {
            return Err(broken("its blocks are too large"));
        }
        let first = content.read(0, block_size).ok_or_else(|| broken("it has no first block"))?;
        let entries = if let Some(order) = ByteOrder::of_magic_u64(&first, 0, BLOCK_MICRO) {
            micro(&first, order)
        } else if let Some(order) = ByteOrder::of_magic_u64(&first, 0, BLOCK_HEADER) {
            Fat { content, first: &first, block_size, order }.entries().map_err(broken)?
        } else {
            return Err(broken("its first block is of no known kind"));
        };
        Ok(entries.into_iter().collect())
    }

    /// Returns all entries, in the order of their names' bytes.
    pub fn entries(&self) -> impl ExactSizeIterator<Item = (&[u8], &ZapValue)> {
        self.entries.iter().map(|(name, value)| (&name[..], value))
    }

    /// Returns the value of a name.
    pub fn get(&self, name: &[u8]) -> Option<&ZapValue> {
        let at = self.entries.binary_search_by(|(found, _)| found[..].cmp(name)).ok()?;
        Some(&self.entries[at].1)
    }

    /// Returns the single number of a name.
    pub fn number(&self, name: &str) -> Option<u64> {
        self.get(name.as_bytes())?.single()
    }
}

impl FromIterator<(Vec<u8>, ZapValue)> for Zap {
    fn from_iter<I: IntoIterator<Item = (Vec<u8>, ZapValue)>>(entries: I) -> Zap {
        let mut entries: Entries = entries.into_iter().collect();
        entries.sort_by(|(a, _), (b, _)| a.cmp(b));
        Zap { entries }
    }
}

type Entries = Vec<(Vec<u8>, ZapValue)>;

/// Reads one block: a header, then entries of a number and a name of up to 49 bytes each.
fn micro(content: &[u8], order: ByteOrder) -> Entries {
    let chunks = content.chunks_exact(MICRO_ENTRY).skip(1);
    chunks
        .filter_map(|chunk| {
            let name =
                chunk[14..].split(|byte| *byte == 0).next().filter(|name| !name.is_empty())?;
            Some((name.to_vec(), ZapValue { width: 8, numbers: vec![order.u64(chunk, 0)?] }))
        })
        .collect()
}

struct Fat<'a> {
    content: &'a SparseContent,
    first: &'a [u8],
    block_size: usize,
    order: ByteOrder,
}

impl Fat<'_> {
    fn entries(&self) -> Result<Entries, &'static str> {
        if !self.block_size.is_power_of_two() || !(512..=16 << 20).contains(&self.block_size) {
            return Err("its block size is no power of two");
        }
        let field = |at: usize| self.order.u64(self.first, at).ok_or("it ends in its header");
        if field(8)? != MAGIC {
            return Err("its magic number is wrong");
        }
        let (table_block, shift) = (field(16)?, field(32)?);
        let length = u64::checked_shl(8, shift as u32)
            .filter(|length| shift < 60 && *length <= self.content.data_len());
        let length = length
            .and_then(|length| usize::try_from(length).ok())
            .ok_or("its table of leaves is too long")?;
        // The table of leaves is the second half of the header, or blocks of its own.
        let table = if table_block == 0 {
            self.first
                .get(self.block_size / 2..self.block_size)
                .and_then(|half| half.get(..length))
                .map(Cow::Borrowed)
        } else {
            self.position(table_block).and_then(|start| self.content.read(start, length))
        };
        let table = table.ok_or("its table of leaves lies outside")?;
        let leaves: BTreeSet<u64> =
            table.chunks_exact(8).filter_map(|entry| self.order.u64(entry, 0)).collect();
        let mut entries = Entries::new();
        for leaf in leaves {
            let start = self.position(leaf).filter(|_| leaf != 0);
            let block = start.and_then(|start| self.content.read(start, self.block_size));
            Leaf::new(&block.ok_or("a leaf lies outside")?, self.order)?.entries(&mut entries)?;
        }
        Ok(entries)
    }

    fn position(&self, block: u64) -> Option<u64> {
        block.checked_mul(self.block_size as u64)
    }
}

struct Leaf<'a> {
    chunks: &'a [u8],
    order: ByteOrder,
}

impl<'a> Leaf<'a> {
    fn new(block: &'a [u8], order: ByteOrder) -> Result<Leaf<'a>, &'static str> {
        if order.u64(block, 0) != Some(BLOCK_LEAF) || order.u32(block, 24) != Some(LEAF_MAGIC) {
            return Err("a leaf's magic number is wrong");
        }
        // 48 bytes of header, a hash table of two bytes for every 32 of the block, then chunks.
        let chunks = block.get(48 + block.len() / 16..).ok_or("a leaf is too short")?;
        Ok(Leaf { chunks, order })
    }

    fn chunk(&self, index: u16) -> Option<&'a [u8]> {
        let start = usize::from(index) * CHUNK;
        self.chunks.get(start..start + CHUNK)
    }

    fn entries(&self, entries: &mut Entries) -> Result<(), &'static str> {
        for chunk in self.chunks.chunks_exact(CHUNK).filter(|chunk| chunk[0] == CHUNK_ENTRY) {
            let width = chunk[1];
            let field = |at: usize| self.order.u16(chunk, at).unwrap_or(0);
            let (name_chunk, name_length) = (field(4), field(6));
            let (value_chunk, value_count) = (field(8), field(10));
            if !matches!(width, 1 | 2 | 4 | 8) {
                return Err("an entry's integers have no known width");
            }
            let mut name = self.array(name_chunk, usize::from(name_length))?;
            // Names are stored with their terminator.
            if name.last() == Some(&0) {
                name.pop();
            }
            let value = self.array(value_chunk, usize::from(value_count) * usize::from(width))?;
            // Integers are big-endian here, whatever the machine.
            let numbers = value.chunks_exact(width.into());
            let numbers = numbers
                .map(|bytes| bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)));
            entries.push((name, ZapValue { width, numbers: numbers.collect() }));
        }
        Ok(())
    }

    /// Returns bytes that are spread over a chain of chunks.
    fn array(&self, first: u16, length: usize) -> Result<Vec<u8>, &'static str> {
        if length > self.chunks.len() {
            return Err("a name or value is longer than its leaf");
        }
        let mut bytes = Vec::with_capacity(length);
        let mut next = first;
        while bytes.len() < length {
            let chunk = self.chunk(next).filter(|chunk| chunk[0] == CHUNK_ARRAY);
            let chunk = chunk.ok_or("a name or value leads outside its leaf")?;
            let take = CHUNK_DATA.min(length - bytes.len());
            bytes.extend_from_slice(&chunk[1..1 + take]);
            next = self.order.u16(chunk, 22).unwrap_or(u16::MAX);
        }
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn micro_in_both_orders() {
        for order in [ByteOrder::Little, ByteOrder::Big] {
            let mut block = vec![0u8; 512];
            order.put_u64(&mut block, 0, BLOCK_MICRO);
            order.put_u64(&mut block, 64, 34);
            block[78..82].copy_from_slice(b"ROOT");
            let zap = Zap::parse(1, &block[..].into(), 512).unwrap();
            assert_eq!(zap.number("ROOT"), Some(34));
            assert_eq!(zap.entries().len(), 1);
        }
    }

    /// Found by fuzzing: the size alone made it allocate.
    #[test]
    fn huge_blocks_take_no_memory() {
        assert!(Zap::parse(1, &[0; 64][..].into(), 1 << 31).is_err());
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(Zap::parse(1, &[][..].into(), 512).is_err());
        assert!(Zap::parse(1, &[0; 512][..].into(), 512).is_err());
        let mut header = vec![0u8; 1024];
        ByteOrder::Little.put_u64(&mut header, 0, BLOCK_HEADER);
        assert!(Zap::parse(1, &header[..].into(), 1024).is_err());
        ByteOrder::Little.put_u64(&mut header, 8, MAGIC);
        ByteOrder::Little.put_u64(&mut header, 32, 63);
        assert!(Zap::parse(1, &header[..].into(), 1024).is_err());
    }
}
