//! Hand-made WAL; that of real servers is in `tests/live.rs`.

use super::*;
use proptest::prelude::*;

const PAGE: usize = 8192;
const START: u64 = 0x0300_0000;
const RM_HEAP: u8 = 10;
const PG_15: u16 = 0xD110;
const PG_14: u16 = 0xD10D;

/// A run of WAL that begins at a segment's start.
struct Wal {
    magic: u16,
    bytes: Vec<u8>,
    previous: u64,
}

impl Wal {
    fn new(magic: u16) -> Self {
        Self { magic, bytes: Vec::new(), previous: 0x02FF_FF00 }
    }

    fn here(&self) -> u64 {
        START + self.bytes.len() as u64
    }

    fn page_header(&mut self, info: u16, rest: usize) {
        let address = self.here();
        let is_long = address == START;
        self.bytes.extend(self.magic.to_le_bytes());
        self.bytes.extend((info | if is_long { LONG_HEADER } else { 0 }).to_le_bytes());
        self.bytes.extend(1u32.to_le_bytes());
        self.bytes.extend(address.to_le_bytes());
        self.bytes.extend(u32::try_from(rest).unwrap().to_le_bytes());
        self.bytes.resize(self.bytes.len() + if is_long { 20 } else { 4 }, 0);
    }

    fn record(&mut self, manager: u8, info: u8, data: &[u8]) -> Lsn {
        self.record_then(manager, info, data, usize::MAX)
    }

    /// Appends a record with the headers of its blocks.
    fn blocks(&mut self, manager: u8, info: u8, blocks: &[u8], data: &[u8]) -> Lsn {
        self.whole(manager, info, blocks, data, usize::MAX)
    }

    /// Appends a record of which only `written` bytes are written.
    fn record_then(&mut self, manager: u8, info: u8, data: &[u8], written: usize) -> Lsn {
        self.whole(manager, info, &[], data, written)
    }

    fn whole(&mut self, manager: u8, info: u8, blocks: &[u8], data: &[u8], written: usize) -> Lsn {
        let mut body = blocks.to_vec();
        body.extend([253, 0, 0, 252, 0, 0, 0, 0]);
        match u8::try_from(data.len()) {
            Ok(length) => body.extend([255, length]),
            Err(_) => {
                body.push(254);
                body.extend(u32::try_from(data.len()).unwrap().to_le_bytes());
            }
        }
        body.extend(data);
        let mut record = Vec::new();
        record.extend(u32::try_from(RECORD_HEADER + body.len()).unwrap().to_le_bytes());
        record.extend(7u32.to_le_bytes());
        record.extend(self.previous.to_le_bytes());
        record.extend([info, manager, 0, 0]);
        let crc = crc32c::crc32c_append(crc32c::crc32c(&body), &record);
        record.extend(crc.to_le_bytes());
        record.extend(body);
        if self.bytes.len().is_multiple_of(PAGE) {
            self.page_header(0, 0);
        }
        let at = self.here();
        let total = record.len();
        for (index, byte) in record.into_iter().enumerate().take(written) {
            if self.bytes.len().is_multiple_of(PAGE) {
                self.page_header(CONTINUED, total - index);
            }
            self.bytes.push(byte);
        }
        if written >= total {
            self.previous = at;
            self.bytes.resize(aligned(self.bytes.len()), 0);
        }
        Lsn::new(at)
    }

    fn copy(&mut self, from: (u32, u32), to: (u32, u32)) -> DatabaseRecord {
        let data: Vec<u8> =
            [to.1, to.0, from.1, from.0].iter().flat_map(|n| n.to_le_bytes()).collect();
        let at = self.record(RM_DATABASE, 0, &data);
        DatabaseRecord { at, change: Change::Copy { from: folder(from), to: folder(to) } }
    }

    fn drop(&mut self, info: u8, database: u32, tablespaces: &[u32]) -> DatabaseRecord {
        let count = u32::try_from(tablespaces.len()).unwrap();
        let numbers = [database, count].into_iter().chain(tablespaces.iter().copied());
        let data: Vec<u8> = numbers.flat_map(u32::to_le_bytes).collect();
        let at = self.record(RM_DATABASE, info, &data);
        let folders = tablespaces.iter().map(|tablespace| folder((*tablespace, database)));
        DatabaseRecord { at, change: Change::Drop(folders.collect()) }
    }
}

const fn folder((tablespace, database): (u32, u32)) -> Folder {
    Folder { tablespace, database }
}

/// Reads everything from `start` on; returns what was found, and the end.
fn read_from(start: u64, bytes: &[u8], until: u64) -> (Vec<DatabaseRecord>, u64) {
    let mut records = Records::new(Lsn::new(start), Lsn::new(until), WalSegmentSize::DEFAULT);
    let mut padded = bytes.to_vec();
    padded.resize(bytes.len().next_multiple_of(PAGE), 0xEE);
    let first = usize::try_from(start - START).unwrap() / PAGE;
    for (number, page) in padded.chunks(PAGE).enumerate().skip(first) {
        if records.page(Lsn::new(START + (number * PAGE) as u64), page) != Next::Page {
            break;
        }
    }
    let end = records.end().as_u64();
    (records.into_found(), end)
}

fn read(bytes: &[u8]) -> (Vec<DatabaseRecord>, u64) {
    read_from(START, bytes, u64::MAX)
}

/// Returns some records of a version, small ones and ones that span pages.
fn mixed(magic: u16, drop: u8) -> (Wal, Vec<DatabaseRecord>) {
    let mut wal = Wal::new(magic);
    let mut expected = Vec::new();
    wal.record(RM_HEAP, 0, b"x");
    expected.push(wal.copy((1663, 1), (16384, 16390)));
    wal.record(RM_HEAP, 0, &[7; 20_000]);
    // Later versions have this record between the two.
    wal.record(RM_DATABASE, if drop == 0x20 { 0x10 } else { 0x30 }, &[0; 8]);
    expected.push(wal.drop(drop, 16390, &[16384, 1663]));
    // So that the next record's header spans the page's end.
    let rest = PAGE - wal.bytes.len() % PAGE;
    wal.record(RM_HEAP, 0, &vec![1; rest - RECORD_HEADER - 13 - 16]);
    assert_eq!(wal.bytes.len() % PAGE, PAGE - 16, "the header is split");
    expected.push(wal.copy((16384, 5), (1663, 5)));
    expected.push(wal.drop(drop, 5, &(0..3000).collect::<Vec<_>>()));
    wal.record(RM_HEAP, 0, b"the end");
    (wal, expected)
}

#[test]
fn copies_and_drops_are_found_between_others_and_over_pages() {
    for (magic, drop) in [(PG_14, 0x10), (PG_15, 0x20)] {
        let (wal, expected) = mixed(magic, drop);
        let (found, end) = read(&wal.bytes);
        assert_eq!(found, expected);
        assert_eq!(end, wal.here());
    }
}

#[test]
fn it_begins_and_ends_where_it_is_told() {
    let (wal, expected) = mixed(PG_15, 0x20);
    let second = expected[1].at.as_u64();
    assert_eq!(read_from(second, &wal.bytes, u64::MAX).0, expected[1..]);
    // The record that begins there is still read, because it may be in progress.
    let (found, end) = read_from(START, &wal.bytes, second);
    assert_eq!(found, expected[..2]);
    assert!(end > second);
    assert_eq!(read_from(START, &wal.bytes, second - 1).0, expected[..1]);
}

#[test]
fn what_is_damaged_or_cut_off_is_the_end() {
    let (wal, expected) = mixed(PG_15, 0x20);
    for length in (0..wal.bytes.len()).step_by(11) {
        let (found, end) = read(&wal.bytes[..length]);
        assert_eq!(found, expected[..found.len()], "cut off at {length}");
        assert!(end <= (START + length as u64).next_multiple_of(8), "cut off at {length}");
    }
    for at in (LONG_HEADER_SIZE..wal.bytes.len()).step_by(13) {
        let mut bytes = wal.bytes.clone();
        bytes[at] ^= 0x40;
        let (found, end) = read(&bytes);
        assert_eq!(found, expected[..found.len()], "changed at {at}");
        // Padding and a page's timeline don't matter.
        assert!(end <= START + at as u64 || end == wal.here(), "changed at {at}: {end:x}");
    }
}

#[test]
fn behind_a_switch_comes_the_next_segment() {
    let mut wal = Wal::new(PG_15);
    wal.record(RM_HEAP, 0, b"x");
    wal.record(RM_XLOG, XLOG_SWITCH, &[]);
    let mut records = Records::new(Lsn::new(START), Lsn::new(u64::MAX), WalSegmentSize::DEFAULT);
    wal.bytes.resize(PAGE, 0);
    assert_eq!(records.page(Lsn::new(START), &wal.bytes), Next::Segment);
    assert_eq!(records.end(), Lsn::new(START + (16 << 20)));
}

#[test]
fn a_record_that_never_came_to_its_end_is_overwritten() {
    let mut wal = Wal::new(PG_15);
    wal.record(RM_HEAP, 0, b"x");
    wal.record_then(RM_DATABASE, 0, &[9; 20_000], PAGE - 400);
    wal.bytes.resize(PAGE, 0);
    wal.page_header(OVERWRITTEN, 0);
    let copy = wal.copy((1663, 1), (1663, 16390));
    assert_eq!(read(&wal.bytes), (vec![copy], wal.here()));
}

proptest! {
    #[test]
    fn arbitrary_pages_never_panic(bytes: Vec<u8>, start in 0..2 * PAGE as u64, known: bool) {
        let mut bytes = bytes;
        if known && bytes.len() >= 24 {
            bytes[..2].copy_from_slice(&PG_15.to_le_bytes());
            bytes[8..16].copy_from_slice(&START.to_le_bytes());
        }
        let mut records = Records::new(Lsn::new(START + start), Lsn::new(u64::MAX), WalSegmentSize::DEFAULT);
        records.page(Lsn::new(START), &bytes);
        records.page(Lsn::new(START + PAGE as u64), &bytes);
        prop_assert!(records.into_found().len() <= bytes.len());
    }
}

/// Returns a block's header: its flags, an image's information, and the relation if it isn't that of the previous
/// block.
fn block(
    id: u8,
    flags: u8,
    image: Option<u8>,
    relation: Option<(u32, u32)>,
    holes: bool,
) -> Vec<u8> {
    let mut bytes = vec![id, flags, 0, 0];
    if let Some(image) = image {
        bytes.extend([10, 0, 0, 0, image]);
        bytes.resize(bytes.len() + if holes { 2 } else { 0 }, 0);
    }
    if let Some((tablespace, database)) = relation {
        bytes.extend([tablespace, database, 2619].iter().flat_map(|n| n.to_le_bytes()));
    }
    bytes.extend(7u32.to_le_bytes());
    bytes
}

#[test]
fn of_a_copied_database_the_first_change_is_told() {
    // 15 has three compression methods; earlier versions had one.
    for (magic, compressed, other) in [(PG_14, 0x02, 0x04), (PG_15, 0x08, 0x02)] {
        let mut wal = Wal::new(magic);
        let of = |database| Some((1663, database));
        let touches =
            |wal: &mut Wal, blocks: &[Vec<u8>]| wal.blocks(RM_HEAP, 0, &blocks.concat(), b"data");
        touches(&mut wal, &[block(0, 0, None, of(5), false)]);
        let copied = wal.copy((1663, 5), (1663, 16390));
        // Another database's, the copy's own, and none.
        touches(&mut wal, &[block(0, 0, None, of(1), false), block(1, 0x80, None, None, false)]);
        touches(&mut wal, &[block(0, 0, None, of(16390), false)]);
        wal.record(RM_HEAP, 0, b"x");
        wal.record(RM_SMGR, 0x10, &[0; 16]);
        let images = [
            block(0, 0x10, Some(0x01 | compressed), of(1), true),
            block(1, 0x10, Some(0x01 | other), of(1), false),
            block(2, 0x90, Some(compressed), None, false),
            block(3, 0, None, of(5), false),
        ];
        let at = touches(&mut wal, &images);
        let first = DatabaseRecord { at, change: Change::Write(5) };
        touches(&mut wal, &images);
        let again = wal.copy((1663, 5), (1663, 16391));
        let relation: Vec<u8> =
            [1663u32, 5, 2619, 0].iter().flat_map(|n| n.to_le_bytes()).collect();
        let at = wal.record(RM_SMGR, 0x10, &relation);
        let made = DatabaseRecord { at, change: Change::Write(5) };
        let more = wal.copy((1663, 5), (1663, 16392));
        let truncated: Vec<u8> =
            [7u32, 1663, 5, 2619, 7].iter().flat_map(|n| n.to_le_bytes()).collect();
        let at = wal.record(RM_SMGR, 0x20, &truncated);
        let cut = DatabaseRecord { at, change: Change::Write(5) };
        assert_eq!(read(&wal.bytes).0, [copied, first, again, made, more, cut]);
    }
}
