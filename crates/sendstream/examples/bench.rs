//! The program that `bench/sendstream` runs: `bench generate BYTES BLOCK > STREAM`, `bench parse [--no-checksums] <
//! STREAM`.

use std::io::{BufWriter, Write as _};
use std::os::fd::AsFd;
use std::time::Instant;

use sendstream::record::{Begin, Free, Header, Object, ObjsetType, Write, object_type};
use sendstream::{ByteOrder, Features, ReadOptions, Reader, Result, Writer};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["generate", bytes, block] => generate(number(bytes)?, number(block)?),
        ["parse"] => parse(ReadOptions::default()),
        ["parse", "--no-checksums"] => parse(ReadOptions::default().without_checksums()),
        _ => Err(sendstream::Error::other(
            "usage: bench generate BYTES BLOCK | bench parse [--no-checksums]",
        )),
    }
}

fn number(text: &str) -> Result<u64> {
    text.parse().map_err(sendstream::Error::other)
}

/// Writes a full stream of a volume with about this many bytes in blocks of one size, none of them zeros.
fn generate(bytes: u64, block: u64) -> Result<()> {
    let begin = Begin {
        order: ByteOrder::Little,
        header_type: 1,
        features: Features::LARGE_BLOCKS,
        creation_time: 1_700_000_000,
        objset: ObjsetType::Volume,
        flags: Begin::FLAG_SPILL_BLOCK,
        to_guid: 1,
        from_guid: 0,
        to_name: b"tank/volume@bench".to_vec(),
    };
    let stdout = std::io::stdout().lock();
    let mut writer = Writer::new(BufWriter::with_capacity(1 << 20, stdout), &begin, &[])?;
    let object = Object::plain(1, object_type::ZVOL, block as u32);
    writer.record(&Header::Object(object), &[])?;
    let tail = Free { object: 1, offset: bytes.next_multiple_of(block), length: u64::MAX };
    writer.record(&Header::Free(tail), &[])?;
    let mut state = 1u64;
    let mut payload = vec![0u8; block as usize];
    for word in payload.chunks_exact_mut(8) {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        word.copy_from_slice(&state.to_le_bytes());
    }
    for offset in (0..bytes).step_by(block as usize) {
        payload[..8].copy_from_slice(&offset.to_le_bytes());
        let write = Write { checksum_type: 7, ..Write::plain(1, object_type::ZVOL, offset, block) };
        writer.record(&Header::Write(write), &payload)?;
    }
    writer.finish()?.flush()?;
    Ok(())
}

fn parse(options: ReadOptions) -> Result<()> {
    let start = Instant::now();
    // Standard input without std's own buffer.
    let input = std::fs::File::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    let mut reader = Reader::with_options(input, options)?;
    let mut records = 0u64;
    while reader.next_record()?.is_some() {
        records += 1;
    }
    let seconds = start.elapsed().as_secs_f64();
    let bytes = reader.bytes_read();
    println!(
        "{records} records, {bytes} bytes, {seconds:.3} s, {:.2} GB/s",
        bytes as f64 / seconds / 1e9
    );
    Ok(())
}
