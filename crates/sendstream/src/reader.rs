//! Reads a stream record by record from any reader.
//!
//! A record's header and payload are adjacent in one buffer, and records borrow from it. The buffer grows only as bytes
//! arrive, and never beyond one header and one block, whatever the stream claims.

use std::io::Read;

use crate::bytes::ByteOrder;
use crate::checksum::Fletcher4;
use crate::error::{Error, ErrorKind, Result};
use crate::feature::Features;
use crate::nvlist::NvList;
use crate::order::OrderCheck;
use crate::record::{self, Begin, CHECKSUM_AT, HEADER_LEN, Header, MAX_BONUS, OLD_MAX_BLOCK};
use crate::stat::KindCounts;

/// How a stream is read.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct ReadOptions {
    /// Compute and compare checksums. Without it, streams are still checked for validity and order.
    pub verify: bool,
    /// The largest accepted payload of BEGIN.
    pub max_begin_payload: u32,
}

impl Default for ReadOptions {
    fn default() -> ReadOptions {
        ReadOptions { verify: true, max_begin_payload: 64 << 20 }
    }
}

impl ReadOptions {
    /// Returns the same options without checksums.
    pub fn without_checksums(mut self) -> ReadOptions {
        self.verify = false;
        self
    }
}

/// A record, borrowed from its [`Reader`].
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// What it is.
    pub header: &'a Header,
    /// What follows it.
    pub payload: &'a [u8],
    /// The header as it was read.
    pub header_bytes: &'a [u8],
    /// Its offset in the input.
    pub offset: u64,
    /// Its index in the input.
    pub index: u64,
    /// The running checksum in it; zeros if the sender leaves it out.
    pub checksum: [u64; 4],
    /// Whether it is an object's tail or unmodified spill block, not content in the sequence of content.
    pub is_appendix: bool,
}

/// Reads a stream.
#[derive(Debug)]
pub struct Reader<R> {
    input: Input<R>,
    options: ReadOptions,
    running: Fletcher4,
    order: ByteOrder,
    order_check: OrderCheck,
    begin: Begin,
    begin_payload: Vec<u8>,
    current: Option<Current>,
    /// Offset and index of the next record.
    next_offset: u64,
    next_index: u64,
    wrapper: Option<(Begin, Vec<u8>)>,
    ended: bool,
    kinds: KindCounts,
}

#[derive(Debug)]
struct Current {
    header: Header,
    payload_len: usize,
    offset: u64,
    index: u64,
    checksum: [u64; 4],
    is_appendix: bool,
}

impl<R: Read> Reader<R> {
    /// Reads BEGIN.
    pub fn new(input: R) -> Result<Reader<R>> {
        Reader::with_options(input, ReadOptions::default())
    }

    /// Reads BEGIN.
    pub fn with_options(input: R, options: ReadOptions) -> Result<Reader<R>> {
        let mut input = Input::new(input);
        let mut place = Place { offset: 0, index: 0 };
        let mut running = Fletcher4::new();
        let (mut begin, mut payload) = read_begin(&mut input, &options, &mut running, &mut place)?;
        let mut wrapper = None;
        if begin.header_type == Begin::PACKAGE {
            let streams = streams_in_package(&payload);
            if streams != Some(1) {
                return Err(Error::new(ErrorKind::Package { streams }).at(0, 0));
            }
            read_wrapper_end(&mut input, &options, &running, begin.order, &mut place)?;
            running = Fletcher4::new();
            let (inner, inner_payload) =
                read_begin(&mut input, &options, &mut running, &mut place)?;
            wrapper = Some((
                std::mem::replace(&mut begin, inner),
                std::mem::replace(&mut payload, inner_payload),
            ));
        }
        if begin.header_type != Begin::STREAM {
            let kind = ErrorKind::Invalid {
                what: "BEGIN's header type",
                expected: "1 (a stream)",
                found: begin.header_type.into(),
            };
            return Err(Error::new(kind).at(place.offset, place.index));
        }
        let mut kinds = KindCounts::default();
        kinds.add(&Header::Begin(begin.clone()), payload.len() as u64);
        Ok(Reader {
            input,
            options,
            running,
            order: begin.order,
            order_check: OrderCheck::new(),
            begin,
            begin_payload: payload,
            current: None,
            next_offset: place.offset,
            next_index: place.index,
            wrapper,
            ended: false,
            kinds,
        })
    }

    /// Returns the BEGIN record.
    pub fn begin(&self) -> &Begin {
        &self.begin
    }

    /// Returns BEGIN's payload: a packed name-value list in raw and resumed streams, otherwise empty.
    pub fn begin_payload(&self) -> &[u8] {
        &self.begin_payload
    }

    /// Returns the package around a single stream (`zfs send -p`): its BEGIN and the packed list of properties.
    pub fn package(&self) -> Option<(&Begin, &[u8])> {
        self.wrapper.as_ref().map(|(begin, payload)| (begin, &payload[..]))
    }

    /// Returns the counts of the records so far, by kind.
    pub fn kinds(&self) -> &KindCounts {
        &self.kinds
    }

    /// Returns the bytes of the records so far.
    pub fn bytes_read(&self) -> u64 {
        let current = self.current.as_ref();
        self.input.offset + current.map_or(0, |current| (HEADER_LEN + current.payload_len) as u64)
    }

    /// Moves to the next record and returns it; END is returned too, then `None`.
    pub fn next_record(&mut self) -> Result<Option<Record<'_>>> {
        Ok(if self.advance()? { self.record() } else { None })
    }

    /// Returns the current record.
    pub fn record(&self) -> Option<Record<'_>> {
        let current = self.current.as_ref()?;
        let bytes = self.input.filled();
        Some(Record {
            header: &current.header,
            header_bytes: bytes.get(..HEADER_LEN)?,
            payload: bytes.get(HEADER_LEN..HEADER_LEN + current.payload_len)?,
            offset: current.offset,
            index: current.index,
            checksum: current.checksum,
            is_appendix: current.is_appendix,
        })
    }

    /// Moves to the next record; returns false after END.
    pub fn advance(&mut self) -> Result<bool> {
        if let Some(done) = self.current.take() {
            self.input.consume(HEADER_LEN + done.payload_len);
            self.next_offset = self.input.offset;
        }
        if self.ended {
            return Ok(false);
        }
        let (offset, index) = (self.next_offset, self.next_index);
        match self.read_record(offset, index) {
            Ok(current) => {
                self.kinds.add(&current.header, current.payload_len as u64);
                self.ended = matches!(current.header, Header::End(_));
                self.current = Some(current);
                self.next_index += 1;
                if self.ended {
                    self.check_nothing_follows().map_err(|error| error.at(offset, index))?;
                }
                Ok(true)
            }
            Err(error) => {
                // After an error the stream is useless: report the end from then on.
                self.ended = true;
                Err(error.at(offset, index))
            }
        }
    }

    fn read_record(&mut self, offset: u64, index: u64) -> Result<Current> {
        self.input.fill(HEADER_LEN, "a record's header")?;
        let (parsed, _) = record::parse(self.input.header()?, Some(self.order))?;
        if let Header::Begin(_) = parsed.header {
            return Err(invalid("the record type", "any but BEGIN", 0));
        }
        if parsed.to_guid != self.begin.to_guid && parsed.to_guid != 0 {
            return Err(invalid("the record's toguid", "BEGIN's", parsed.to_guid));
        }
        self.check_against_begin(&parsed.header)?;
        let payload_len = parsed.payload_len as usize;
        self.input.fill(HEADER_LEN + payload_len, "a record's payload")?;
        if self.options.verify {
            self.verify(&parsed, payload_len)?;
        }
        let is_appendix = self.order_check.is_appendix(&parsed.header);
        self.order_check.check(&parsed.header)?;
        Ok(Current {
            header: parsed.header,
            payload_len,
            offset,
            index,
            checksum: parsed.checksum,
            is_appendix,
        })
    }

    fn verify(&mut self, parsed: &record::Parsed, payload_len: usize) -> Result<()> {
        let bytes = self.input.filled();
        let (header, rest) = bytes.split_at(CHECKSUM_AT);
        if let Header::End(end) = parsed.header {
            compare("stream's", self.running.sums(), end.checksum)?;
        }
        self.running.update(header, self.order);
        if parsed.checksum != [0; 4] {
            compare("record's", self.running.sums(), parsed.checksum)?;
        }
        self.running.update(&rest[..HEADER_LEN - CHECKSUM_AT + payload_len], self.order);
        Ok(())
    }

    /// Checks what depends on BEGIN.
    fn check_against_begin(&self, header: &Header) -> Result<()> {
        let raw = self.begin.is_raw();
        let large = self.begin.features.contains(Features::LARGE_BLOCKS);
        match header {
            Header::Object(object) if object.raw_bonus_len != 0 && !raw => Err(invalid(
                "OBJECT's raw bonus length",
                "0 in a stream that isn't raw",
                object.raw_bonus_len.into(),
            )),
            Header::Object(object)
                if object.raw_bonus_len != 0 && object.raw_bonus_len < object.bonus_len =>
            {
                Err(invalid(
                    "OBJECT's raw bonus length",
                    "at least the bonus length",
                    object.raw_bonus_len.into(),
                ))
            }
            Header::Write(write) if write.logical_size > OLD_MAX_BLOCK && !large => Err(invalid(
                "WRITE's logical size",
                "at most 128 KiB in a stream without large blocks",
                write.logical_size,
            )),
            Header::Write(write)
                if write.compression != 0
                    && !raw
                    && !self.begin.features.contains(Features::COMPRESSED) =>
            {
                Err(invalid(
                    "WRITE's compression",
                    "0 in a stream without compression",
                    write.compression.into(),
                ))
            }
            Header::Spill(spill) if spill.compressed_size != 0 && !raw => Err(invalid(
                "SPILL's compressed size",
                "0 in a stream that isn't raw",
                spill.compressed_size,
            )),
            Header::ObjectRange(range) if !raw => Err(invalid(
                "OBJECT_RANGE's first object",
                "no OBJECT_RANGE in a stream that isn't raw",
                range.first,
            )),
            _ => Ok(()),
        }
    }

    /// Checks that nothing follows END except the END of the package.
    fn check_nothing_follows(&mut self) -> Result<()> {
        if self.wrapper.is_some() {
            self.input.fill(2 * HEADER_LEN, "the package's END")?;
            let end: &[u8; HEADER_LEN] = match self.input.filled()[HEADER_LEN..].first_chunk() {
                Some(end) => end,
                None => return Ok(()),
            };
            match record::parse(end, Some(self.order))?.0.header {
                Header::End(_) => {}
                _ => return Err(Error::new(ErrorKind::Package { streams: None })),
            }
        }
        let length = if self.wrapper.is_some() { 2 * HEADER_LEN } else { HEADER_LEN };
        match self.input.has(length + 1)? {
            true => Err(Error::new(ErrorKind::Trailing)),
            false => Ok(()),
        }
    }
}

fn invalid(what: &'static str, expected: &'static str, found: u64) -> Error {
    Error::new(ErrorKind::Invalid { what, expected, found })
}

fn compare(what: &'static str, computed: [u64; 4], stored: [u64; 4]) -> Result<()> {
    if computed == stored {
        Ok(())
    } else {
        Err(Error::new(ErrorKind::Checksum { what, computed, stored }))
    }
}

struct Place {
    offset: u64,
    index: u64,
}

impl Place {
    fn pass<R>(&mut self, input: &Input<R>) {
        self.offset = input.offset;
        self.index += 1;
    }
}

fn read_begin<R: Read>(
    input: &mut Input<R>,
    options: &ReadOptions,
    running: &mut Fletcher4,
    place: &mut Place,
) -> Result<(Begin, Vec<u8>)> {
    let at = |error: Error| error.at(place.offset, place.index);
    input.fill(HEADER_LEN, "the BEGIN record").map_err(at)?;
    let (parsed, order) = record::parse(input.header().map_err(at)?, None).map_err(at)?;
    let Header::Begin(begin) = parsed.header else {
        return Err(at(invalid("the record type", "0 (BEGIN)", u64::MAX)));
    };
    let refused = begin.features.without(Features::SUPPORTED);
    if refused != Features::default() {
        return Err(at(Error::new(ErrorKind::Features(refused))));
    }
    if parsed.payload_len > options.max_begin_payload.into() {
        return Err(at(Error::new(ErrorKind::TooLarge {
            what: "BEGIN's payload",
            limit: options.max_begin_payload.into(),
            found: parsed.payload_len,
        })));
    }
    let length = HEADER_LEN + parsed.payload_len as usize;
    input.fill(length, "BEGIN's payload").map_err(at)?;
    if options.verify {
        running.update(&input.filled()[..length], order);
    }
    let payload = input.filled()[HEADER_LEN..length].to_vec();
    input.consume(length);
    place.pass(input);
    Ok((begin, payload))
}

fn read_wrapper_end<R: Read>(
    input: &mut Input<R>,
    options: &ReadOptions,
    running: &Fletcher4,
    order: ByteOrder,
    place: &mut Place,
) -> Result<()> {
    let at = |error: Error| error.at(place.offset, place.index);
    input.fill(HEADER_LEN, "the END of the package's header").map_err(at)?;
    let (parsed, _) = record::parse(input.header().map_err(at)?, Some(order)).map_err(at)?;
    let Header::End(end) = parsed.header else {
        return Err(at(invalid("the record after the package's header", "5 (END)", u64::MAX)));
    };
    if options.verify {
        compare("package header's", running.sums(), end.checksum).map_err(at)?;
    }
    input.consume(HEADER_LEN);
    place.pass(input);
    Ok(())
}

/// Returns how many snapshots a package's header announces, over all of its datasets.
fn streams_in_package(payload: &[u8]) -> Option<u64> {
    let list = NvList::parse(payload).ok()?;
    let datasets = list.get("fss")?.as_list()?;
    let mut streams = 0;
    for (_, dataset) in datasets.pairs() {
        streams += dataset.as_list()?.get("snaps")?.as_list()?.pairs().count() as u64;
    }
    Some(streams)
}

/// The buffer: `bytes[start..end]` has been read but not consumed.
#[derive(Debug)]
struct Input<R> {
    reader: R,
    bytes: Vec<u8>,
    start: usize,
    end: usize,
    /// Offset of `bytes[start]` in the input.
    offset: u64,
}

/// Large enough for few calls and few moves of remaining bytes, small enough for a core's cache.
const BUFFER: usize = 512 << 10;

impl<R> Input<R> {
    fn new(reader: R) -> Input<R> {
        Input { reader, bytes: vec![0; BUFFER], start: 0, end: 0, offset: 0 }
    }

    fn filled(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    fn header(&self) -> Result<&[u8; HEADER_LEN]> {
        let got = self.filled().len() as u64;
        let kind =
            ErrorKind::Truncated { wanted: "a record's header", needed: HEADER_LEN as u64, got };
        self.filled().first_chunk().ok_or_else(|| Error::new(kind))
    }

    fn consume(&mut self, count: usize) {
        self.start += count;
        self.offset += count as u64;
    }
}

impl<R: Read> Input<R> {
    fn fill(&mut self, needed: usize, wanted: &'static str) -> Result<()> {
        if self.has(needed)? {
            return Ok(());
        }
        let got = self.filled().len() as u64;
        Err(Error::new(ErrorKind::Truncated { wanted, needed: needed as u64, got }))
    }

    /// Reads until `needed` bytes are available; returns false if the input ends before.
    fn has(&mut self, needed: usize) -> Result<bool> {
        while self.end - self.start < needed {
            if self.bytes.len() - self.start < needed && self.start > 0 {
                self.bytes.copy_within(self.start..self.end, 0);
                self.end -= self.start;
                self.start = 0;
            }
            if self.end == self.bytes.len() {
                // The buffer is full and the record incomplete: double what has arrived, so that a mere claim takes no
                // memory.
                let limit = needed.max(BUFFER);
                self.bytes.resize(limit.min(2 * self.bytes.len()), 0);
            }
            match self.reader.read(&mut self.bytes[self.end..]) {
                Ok(0) => return Ok(false),
                Ok(count) => self.end += count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(true)
    }
}

// The sizes that `record::parse` accepts bound the buffer.
const _: () = assert!(MAX_BONUS < record::MAX_BLOCK && record::MAX_BLOCK < usize::MAX as u64);
