//! Checks PostgreSQL pages as their blocks are read.
//!
//! With `data_checksums` on, every page that isn't new carries a checksum of itself and its block number (PostgreSQL
//! `src/include/storage/checksum_impl.h`). A backup that reads each changed block anyway can verify them at little
//! cost. The caller says which objects are relations' files; the checker, used as a [`Sink`], reports which pages are
//! bad.

use std::ops::Range;

use pulp::Arch;

use crate::bytes::ByteOrder;
use crate::compress::Decompressor;
use crate::error::Result;
use crate::fold::{Piece, Sink, SpillBlock};
use crate::record::{Begin, Object};

/// Which part of which relation an object is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment<P> {
    /// How the caller identifies the file, usually by its path.
    pub path: P,
    /// The number after the file's name: 0 for `16384`, 3 for `16384.3`.
    pub number: u32,
}

/// How the cluster was built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageGeometry {
    /// Bytes per page, a power of two.
    pub page_size: u32,
    /// Pages per segment.
    pub pages_per_segment: u32,
}

impl Default for PageGeometry {
    /// 8 KiB pages and segments of 1 GiB, as in nearly every cluster.
    fn default() -> PageGeometry {
        PageGeometry { page_size: 8192, pages_per_segment: 131_072 }
    }
}

/// A page whose checksum is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadPage<P> {
    /// The file.
    pub path: P,
    /// The page's number in the relation, over all of its segments.
    pub block: u32,
    /// What the page says.
    pub stored: u16,
    /// What it should be.
    pub computed: u16,
}

/// Whether the pages read so far carry checksums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataChecksums {
    /// Every page read so far is all zeros.
    Unknown,
    /// Every page read so far has a 0 in place of the checksum, which no page with a checksum has.
    Off,
    /// Pages carry checksums.
    On,
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageReport<P> {
    /// Pages whose checksum is right.
    pub good: u64,
    /// Pages of zeros, which are allowed.
    pub zero: u64,
    /// Pages that aren't zeros and have no checksum.
    pub without_checksum: u64,
    /// Pages whose checksum is wrong.
    pub bad: u64,
    /// The first of them.
    pub bad_pages: Vec<BadPage<P>>,
    /// Pages of which only a part was read, if ZFS's blocks are smaller.
    pub partial: u64,
    /// Pages whose checksum is wrong but which recovery rewrites: see [`PageChecker::replayed`].
    pub replayed: u64,
}

impl<P> PageReport<P> {
    /// Whether the cluster has checksums, as far as the pages tell.
    pub fn data_checksums(&self) -> DataChecksums {
        match (self.good + self.bad, self.without_checksum) {
            (0, 0) => DataChecksums::Unknown,
            // Damage can make one checksum 0, but never those of all pages.
            (bad, _) if bad == self.bad && self.without_checksum > 0 && self.bad == 0 => {
                DataChecksums::Off
            }
            _ => DataChecksums::On,
        }
    }

    /// Returns how many pages are wrong: with checksums on, a page without one is wrong too.
    pub fn wrong(&self) -> u64 {
        match self.data_checksums() {
            DataChecksums::On => self.bad + self.without_checksum,
            _ => 0,
        }
    }
}

/// The most bad pages that are listed.
const NAMED: usize = 1000;
/// Where the checksum is in a page.
const CHECKSUM_AT: usize = 8;

/// Checks pages.
#[derive(Debug)]
pub struct PageChecker<P, F> {
    lookup: F,
    geometry: PageGeometry,
    order: ByteOrder,
    report: PageReport<P>,
    current: Option<(u64, Option<Segment<P>>)>,
    /// The beginning of a page, and its offset in the file.
    partial: (u64, Vec<u8>),
    decompressor: Decompressor,
    replayed: Range<u64>,
    checksums_are_on: bool,
}

impl<P: Clone, F: FnMut(u64) -> Option<Segment<P>>> PageChecker<P, F> {
    /// `lookup` returns the file of an object, or `None` if the object holds no pages.
    pub fn new(geometry: PageGeometry, lookup: F) -> PageChecker<P, F> {
        let report = PageReport {
            good: 0,
            zero: 0,
            without_checksum: 0,
            bad: 0,
            bad_pages: Vec::new(),
            partial: 0,
            replayed: 0,
        };
        PageChecker {
            lookup,
            geometry,
            order: ByteOrder::Little,
            report,
            current: None,
            partial: (0, Vec::new()),
            decompressor: Decompressor::new(),
            replayed: 0..0,
            checksums_are_on: false,
        }
    }

    /// Says that the cluster is known to have checksums, from pg_control. Then a page without one is bad, like any
    /// other with a wrong checksum. Otherwise the other pages decide.
    pub fn with_checksums(mut self) -> Self {
        self.checksums_are_on = true;
        self
    }

    /// Sets the LSNs that recovery replays. If a page was changed within them and a snapshot caught only a part of the
    /// write, recovery rewrites the page from the WAL. The page's own LSN is in its first bytes, which are written
    /// first.
    pub fn replayed(mut self, lsns: Range<u64>) -> Self {
        self.replayed = lsns;
        self
    }

    /// `pd_lsn`: two words, the upper one first (`PageXLogRecPtr` in PostgreSQL's `bufpage.h`).
    fn lsn(&self, page: &[u8]) -> u64 {
        let word = |at| u64::from(self.order.u32(page, at).unwrap_or(0));
        word(0) << 32 | word(4)
    }

    /// Returns what was found.
    pub fn finish(mut self) -> PageReport<P> {
        self.leave();
        self.report
    }

    /// Checks content of an object; it must come in ascending order.
    pub fn content(&mut self, object: u64, offset: u64, mut bytes: &[u8]) {
        if self.current.as_ref().is_none_or(|(current, _)| *current != object) {
            self.leave();
            self.current = Some((object, (self.lookup)(object)));
        }
        if !matches!(self.current, Some((_, Some(_)))) {
            return;
        }
        let page = u64::from(self.geometry.page_size);
        let mut offset = offset;
        if offset != self.partial.0 + self.partial.1.len() as u64 {
            self.drop_partial();
        }
        while !bytes.is_empty() {
            let start = offset - offset % page;
            let wanted = ((start + page - offset) as usize).min(bytes.len());
            let (now, later) = bytes.split_at(wanted);
            if offset == start && now.len() as u64 == page {
                self.page(start, now);
            } else {
                self.part(start, offset, now);
            }
            offset += now.len() as u64;
            bytes = later;
        }
    }

    fn part(&mut self, start: u64, offset: u64, bytes: &[u8]) {
        if offset == start {
            self.drop_partial();
            self.partial.0 = start;
        } else if self.partial.1.is_empty()
            || self.partial.0 + self.partial.1.len() as u64 != offset
        {
            // Its beginning was never read; count it once, at its end.
            self.drop_partial();
            let end = offset + bytes.len() as u64;
            self.report.partial += u64::from(end == start + u64::from(self.geometry.page_size));
            return;
        }
        self.partial.1.extend_from_slice(bytes);
        if self.partial.1.len() == self.geometry.page_size as usize {
            let page = std::mem::take(&mut self.partial.1);
            self.page(start, &page);
            self.partial.1 = page;
            self.partial.1.clear();
        }
    }

    fn drop_partial(&mut self) {
        self.report.partial += u64::from(!self.partial.1.is_empty());
        self.partial.1.clear();
    }

    fn leave(&mut self) {
        self.drop_partial();
        self.current = None;
    }

    fn page(&mut self, offset: u64, page: &[u8]) {
        let Some((_, Some(segment))) = &self.current else {
            return;
        };
        if page.iter().all(|byte| *byte == 0) {
            self.report.zero += 1;
            return;
        }
        let in_segment = (offset / u64::from(self.geometry.page_size)) as u32;
        let block =
            segment.number.wrapping_mul(self.geometry.pages_per_segment).wrapping_add(in_segment);
        let stored = self.order.u16(page, CHECKSUM_AT).unwrap_or(0);
        let computed = page_checksum(page, block, self.order);
        if stored == computed {
            self.report.good += 1;
        } else if self.replayed.contains(&self.lsn(page)) {
            self.report.replayed += 1;
        } else if stored == 0 && !self.checksums_are_on {
            self.report.without_checksum += 1;
        } else {
            self.report.bad += 1;
            if self.report.bad_pages.len() < NAMED {
                self.report.bad_pages.push(BadPage {
                    path: segment.path.clone(),
                    block,
                    stored,
                    computed,
                });
            }
        }
    }
}

impl<P: Clone, F: FnMut(u64) -> Option<Segment<P>>> Sink for PageChecker<P, F> {
    fn begin(&mut self, begin: &Begin) -> Result<()> {
        self.order = begin.order;
        Ok(())
    }

    fn object(&mut self, _header: &Object, _bonus: &[u8]) -> Result<()> {
        Ok(())
    }

    fn piece(&mut self, object: u64, piece: Piece<'_>) -> Result<()> {
        if self
            .current
            .as_ref()
            .is_some_and(|(current, segment)| *current == object && segment.is_none())
        {
            return Ok(());
        }
        let mut decompressor = std::mem::take(&mut self.decompressor);
        let content = piece.content(&mut decompressor);
        if let Ok(content) = &content {
            self.content(object, piece.offset, content);
        }
        let outcome = content.map(|_| ());
        self.decompressor = decompressor;
        outcome
    }

    fn spill(&mut self, _spill: SpillBlock<'_>) -> Result<()> {
        Ok(())
    }
}

const COLUMNS: usize = 32;
const PRIME: u32 = 16_777_619;
/// Where each column's hash begins; part of the format.
const BASES: [u32; COLUMNS] = [
    0x5B1F_36E9,
    0xB852_5960,
    0x02AB_50AA,
    0x1DE6_6D2A,
    0x79FF_467A,
    0x9BB9_F8A3,
    0x217E_7CD2,
    0x83E1_3D2C,
    0xF8D4_474F,
    0xE39E_B970,
    0x42C6_AE16,
    0x9932_16FA,
    0x7B09_3B5D,
    0x98DA_FF3C,
    0xF718_902A,
    0x0B1C_9CDB,
    0xE58F_764B,
    0x1876_36BC,
    0x5D7B_3BB1,
    0xE73D_E7DE,
    0x92BE_C979,
    0xCCA6_C0B2,
    0x304A_0979,
    0x85AA_43D4,
    0x7831_25BB,
    0x6CA8_EAA2,
    0xE407_EAC6,
    0x4B5C_FC3E,
    0x9FBF_8C76,
    0x15CA_20BE,
    0xF2CA_9FD3,
    0x959B_D756,
];

/// Returns the checksum of a page at a block number: 32 columns of FNV-1a hashes, folded; never 0.
pub fn page_checksum(page: &[u8], block: u32, order: ByteOrder) -> u16 {
    let hashes = Arch::new().dispatch(|| match order {
        ByteOrder::Little => columns::<false>(page),
        ByteOrder::Big => columns::<true>(page),
    });
    let folded = hashes.iter().fold(0, |sum, hash| sum ^ hash) ^ block;
    (folded % 65_535 + 1) as u16
}

/// Inlined into each of the dispatched functions; otherwise it would be compiled for the oldest processor.
#[inline(always)]
fn columns<const BIG: bool>(page: &[u8]) -> [u32; COLUMNS] {
    let mut hashes = BASES;
    let step = |hash: u32, value: u32| {
        let mixed = hash ^ value;
        mixed.wrapping_mul(PRIME) ^ (mixed >> 17)
    };
    for (index, row) in page.as_chunks::<{ 4 * COLUMNS }>().0.iter().enumerate() {
        let words = row.as_chunks::<4>().0;
        let mut values = [0u32; COLUMNS];
        for (value, word) in values.iter_mut().zip(words) {
            *value = if BIG { u32::from_be_bytes(*word) } else { u32::from_le_bytes(*word) };
        }
        if index == 0 {
            // The checksum itself counts as zero: in memory, it is the first half of the third word.
            values[CHECKSUM_AT / 4] &= if BIG { 0x0000_ffff } else { 0xffff_0000 };
        }
        for (hash, value) in hashes.iter_mut().zip(values) {
            *hash = step(*hash, value);
        }
    }
    for _ in 0..2 {
        for hash in &mut hashes {
            *hash = step(*hash, 0);
        }
    }
    hashes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(block: u32) -> Vec<u8> {
        let mut page: Vec<u8> =
            (0..8192u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 11) as u8).collect();
        let checksum = page_checksum(&page, block, ByteOrder::Little);
        page[8..10].copy_from_slice(&checksum.to_le_bytes());
        page
    }

    fn checker() -> PageChecker<&'static str, impl FnMut(u64) -> Option<Segment<&'static str>>> {
        PageChecker::new(PageGeometry::default(), |object| {
            (object < 10).then_some(Segment { path: "base/1/2", number: object as u32 })
        })
    }

    #[test]
    fn good_bad_zero_and_moved() {
        let mut checker = checker();
        checker.content(0, 0, &[page(0), vec![0; 8192], page(2)].concat());
        checker.content(1, 8192, &page(131_073));
        checker.content(2, 0, &page(7));
        checker.content(99, 0, &page(7));
        let report = checker.finish();
        assert_eq!((report.good, report.zero, report.bad, report.partial), (3, 1, 1, 0));
        assert_eq!(report.bad_pages[0].block, 262_144);
        assert_eq!(report.data_checksums(), DataChecksums::On);
    }

    #[test]
    fn a_page_that_recovery_writes_anew_may_be_torn() {
        let torn = |lsn: u64| {
            let mut page = page(0);
            page[..4].copy_from_slice(&((lsn >> 32) as u32).to_le_bytes());
            page[4..8].copy_from_slice(&(lsn as u32).to_le_bytes());
            page
        };
        let mut checker = checker().replayed(0x1_0000_0100..0x1_0000_0200);
        checker.content(0, 0, &torn(0x1_0000_0100));
        checker.content(1, 0, &torn(0x1_0000_00ff));
        checker.content(2, 0, &torn(0x1_0000_0200));
        let report = checker.finish();
        assert_eq!((report.replayed, report.bad), (1, 2));
    }

    #[test]
    fn pages_in_parts() {
        let mut checker = checker();
        let bytes = [page(0), page(1), page(2)].concat();
        for (index, part) in bytes.chunks(512).enumerate() {
            checker.content(0, 512 * index as u64, part);
        }
        // Only the second half, only the first half, and a page after them.
        checker.content(0, 5 * 8192 + 4096, &page(5)[4096..]);
        checker.content(0, 6 * 8192, &page(6)[..4096]);
        checker.content(0, 8 * 8192, &page(8));
        let report = checker.finish();
        assert_eq!((report.good, report.bad, report.partial), (4, 0, 2));
    }

    /// A page whose first sector was zeroed has a checksum of 0, even if it is the only such page in the volume.
    #[test]
    fn without_a_checksum_where_all_have_one() {
        let mut zeroed = page(3);
        zeroed[..512].fill(0);
        let mut checker = checker().with_checksums();
        checker.content(0, 3 * 8192, &zeroed);
        checker.content(0, 4 * 8192, &[0; 8192]);
        let report = checker.finish();
        assert_eq!((report.bad, report.zero, report.without_checksum), (1, 1, 0));
        assert_eq!(report.wrong(), 1);
        assert_eq!((report.bad_pages[0].block, report.bad_pages[0].stored), (3, 0));
    }

    #[test]
    fn checksums_off() {
        let mut checker = checker();
        let mut plain = page(0);
        plain[8..10].fill(0);
        checker.content(0, 0, &plain);
        let report = checker.finish();
        assert_eq!(report.data_checksums(), DataChecksums::Off);
        assert_eq!(report.wrong(), 0);
        assert_eq!(
            super::PageReport { good: 1, ..report.clone() }.wrong(),
            1,
            "one page without among others with"
        );
    }
}
