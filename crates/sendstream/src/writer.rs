//! Writes a stream: the running checksum, the snapshot's GUID in every record, and END.

use std::io::Write as IoWrite;

use crate::checksum::Fletcher4;
use crate::error::{Error, ErrorKind, Result};
use crate::order::OrderCheck;
use crate::record::{Begin, CHECKSUM_AT, End, HEADER_LEN, Header};

/// Writes a stream.
#[derive(Debug)]
pub struct Writer<W> {
    output: W,
    begin: Begin,
    running: Fletcher4,
    order_check: OrderCheck,
    record_checksums: bool,
    bytes: u64,
    records: u64,
}

impl<W: IoWrite> Writer<W> {
    /// Writes BEGIN with its payload, which is empty for all but raw and resumed streams.
    pub fn new(output: W, begin: &Begin, payload: &[u8]) -> Result<Writer<W>> {
        let mut writer = Writer {
            output,
            begin: begin.clone(),
            running: Fletcher4::new(),
            order_check: OrderCheck::new(),
            record_checksums: true,
            bytes: 0,
            records: 0,
        };
        writer.put(&Header::Begin(begin.clone()), payload)?;
        Ok(writer)
    }

    /// Leaves out the checksum in each record, as senders before OpenZFS did; END always has one.
    pub fn without_record_checksums(mut self) -> Writer<W> {
        self.record_checksums = false;
        self
    }

    /// Writes a record. It must come in order, and its payload must have the length that the header says.
    pub fn record(&mut self, header: &Header, payload: &[u8]) -> Result<()> {
        if let Header::Begin(_) | Header::End(_) = header {
            return Err(Error::new(ErrorKind::Invalid {
                what: "a record to write",
                expected: "one between BEGIN and END",
                found: 0,
            }));
        }
        if header.payload_len() != payload.len() as u64 {
            return Err(Error::new(ErrorKind::Invalid {
                what: "the length of a payload to write",
                expected: "what its header says",
                found: payload.len() as u64,
            }));
        }
        self.order_check.check(header)?;
        self.put(header, payload)
    }

    /// Writes END and returns the output.
    pub fn finish(mut self) -> Result<W> {
        let checksum = self.running.sums();
        self.put(&Header::End(End { checksum }), &[])?;
        self.output.flush()?;
        Ok(self.output)
    }

    /// Returns the BEGIN record.
    pub fn begin(&self) -> &Begin {
        &self.begin
    }

    /// Returns the bytes written so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Returns the records written so far.
    pub fn records(&self) -> u64 {
        self.records
    }

    fn put(&mut self, header: &Header, payload: &[u8]) -> Result<()> {
        let order = self.begin.order;
        let payload_len = payload.len() as u64;
        let Ok(declared) = u32::try_from(payload_len) else {
            return Err(Error::new(ErrorKind::TooLarge {
                what: "a payload",
                limit: u32::MAX.into(),
                found: payload_len,
            }));
        };
        let mut bytes = header.encode(order, declared, self.begin.to_guid);
        self.running.update(&bytes[..CHECKSUM_AT], order);
        // In BEGIN, the name occupies the checksum's place.
        if self.record_checksums && !matches!(header, Header::Begin(_)) {
            for (i, sum) in self.running.sums().into_iter().enumerate() {
                order.put_u64(&mut bytes, CHECKSUM_AT + 8 * i, sum);
            }
        }
        self.running.update(&bytes[CHECKSUM_AT..], order);
        self.running.update(payload, order);
        self.output.write_all(&bytes)?;
        self.output.write_all(payload)?;
        self.bytes += HEADER_LEN as u64 + payload_len;
        self.records += 1;
        Ok(())
    }
}
