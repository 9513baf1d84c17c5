//! Streams from files, uncompressed or compressed with zstd.

use std::io::{BufReader, Cursor, Read};

use crate::error::Result;

const ZSTD_MAGIC: [u8; 4] = [0x28, 0xB5, 0x2F, 0xFD];

/// Decompresses input that begins with zstd's magic number; passes other input through unchanged.
pub fn maybe_zstd<'a>(mut input: impl Read + 'a) -> Result<Box<dyn Read + 'a>> {
    let mut start = Vec::with_capacity(4);
    input.by_ref().take(4).read_to_end(&mut start)?;
    let is_zstd = start == ZSTD_MAGIC;
    let whole = Cursor::new(start).chain(input);
    if !is_zstd {
        return Ok(Box::new(whole));
    }
    let mut decoder =
        zstd::stream::read::Decoder::with_buffer(BufReader::with_capacity(128 << 10, whole))?;
    // This is what `zstd --long=27` writes; allowing more would allow unbounded memory.
    decoder.window_log_max(27)?;
    Ok(Box::new(decoder))
}
