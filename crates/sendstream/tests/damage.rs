//! Truncated or damaged streams: the result is an error with its place or, if checksums are off, something bounded.

mod support;

use sendstream::fold::{StreamDelta, StreamSink, fold};
use sendstream::zpl::{NoContent, TreeBuilder};
use sendstream::{ErrorKind, ReadOptions, Reader, Result};

fn read(bytes: &[u8], options: ReadOptions) -> Result<u64> {
    let mut reader = Reader::with_options(bytes, options)?;
    let mut records = 0;
    while reader.next_record()?.is_some() {
        records += 1;
    }
    Ok(records)
}

/// Runs everything that looks at a stream, without checksums.
fn look(bytes: &[u8]) {
    let options = ReadOptions::default().without_checksums();
    let _ = read(bytes, options);
    let delta = || StreamDelta::new(Reader::with_options(bytes, options)?);
    if let Ok(delta) = delta() {
        let mut builder = TreeBuilder::new(NoContent);
        if fold(vec![delta], &mut builder).is_ok()
            && let Ok(tree) = builder.finish()
        {
            let _ = tree.walk(|_| Ok(()));
        }
    }
    if let Ok(delta) = delta() {
        let mut sink = StreamSink::new(std::io::sink());
        let _ = fold(vec![delta], &mut sink);
    }
}

/// A small generator, so that a failure can be reproduced.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % limit
    }
}

fn boundaries(bytes: &[u8]) -> Vec<usize> {
    let mut reader = Reader::new(bytes).unwrap();
    let mut found = Vec::new();
    while let Some(record) = reader.next_record().unwrap() {
        found.push(record.offset as usize);
    }
    found
}

const SMALL: [&str; 4] =
    ["fuse.plain.s3-s4", "pg8k.plain.s0-s1", "std128k.ce.s3-s4", "enc.w.s3-s4"];

#[test]
fn cut_at_every_record_and_anywhere() {
    let mut random = Random(1);
    for name in SMALL {
        let bytes = support::stream(name);
        let boundaries = boundaries(bytes);
        // A cut within the last record of the prefix lacks something else than a cut at its end, so try both.
        let step = boundaries.len().div_ceil(300);
        let mut cuts: Vec<usize> = boundaries.iter().copied().step_by(step).collect();
        cuts.extend((0..200).map(|_| random.below(bytes.len())));
        for cut in cuts {
            let error = read(&bytes[..cut], ReadOptions::default()).unwrap_err();
            assert!(
                matches!(error.kind(), ErrorKind::Truncated { .. }),
                "{name} cut at {cut}: {error}"
            );
            let place = error.place().unwrap();
            assert!(
                place.offset <= cut as u64 && cut as u64 - place.offset < 312 + (1 << 20),
                "{name} at {cut}"
            );
            assert!(
                boundaries.contains(&(place.offset as usize)) || place.record == 0,
                "{name} at {cut}: {error}"
            );
        }
    }
}

#[test]
fn every_cut_of_a_small_stream() {
    let bytes = support::stream("fuse.plain.s3-s4");
    for cut in (0..bytes.len()).step_by(17) {
        assert!(read(&bytes[..cut], ReadOptions::default()).is_err(), "cut at {cut}");
        if cut % 10 == 0 {
            look(&bytes[..cut]);
        }
    }
}

#[test]
fn bits_flipped_everywhere() {
    let mut random = Random(2);
    for name in SMALL {
        let mut bytes = support::stream(name).to_vec();
        let boundaries = boundaries(&bytes);
        let end = *boundaries.last().unwrap();
        let in_headers = (0..400).map(|_| 0).collect::<Vec<usize>>();
        let mut places: Vec<usize> = in_headers
            .iter()
            .map(|_| boundaries[random.below(boundaries.len())] + random.below(312))
            .collect();
        places.extend(0..312);
        places.extend((0..400).map(|_| random.below(bytes.len())));
        for place in places {
            let bit = 1u8 << random.below(8);
            bytes[place] ^= bit;
            let outcome = read(&bytes, ReadOptions::default());
            // Old senders leave the END record itself without a checksum, so its unused bytes may have any value.
            let unused = name.starts_with("fuse") && place >= end;
            assert!(outcome.is_err() || unused, "{name}: bit {bit} of byte {place} isn't noticed");
            look(&bytes);
            bytes[place] ^= bit;
        }
    }
}

#[test]
fn bytes_after_the_end() {
    let mut bytes = support::stream("fuse.plain.s3-s4").to_vec();
    bytes.push(0);
    let error = read(&bytes, ReadOptions::default()).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Trailing), "{error}");
}

#[test]
fn refused_by_name() {
    let patch = |name: &str, at: usize, value: u8| {
        let mut bytes = support::stream(name).to_vec();
        bytes[at] = value;
        read(&bytes, ReadOptions::default().without_checksums()).unwrap_err()
    };
    // The word with the features begins at byte 16, shifted by two bits.
    assert!(patch("pg8k.plain.s0", 16, 0b101).to_string().contains("dedup"));
    assert!(patch("pg8k.plain.s0", 18, 0b1000_0000).to_string().contains("redacted"));
    assert!(patch("pg8k.plain.s0", 17, 1).to_string().contains("unknown (bit 6)"));
    let second = boundaries(support::stream("pg8k.plain.s0"))[0];
    let byref = patch("pg8k.plain.s0", second, 6);
    assert!(
        byref.to_string().contains("WRITE_BYREF") && byref.hint().unwrap().contains("redup"),
        "{byref}"
    );
    assert!(patch("pg8k.plain.s0", second, 10).to_string().contains("REDACT"));
    assert!(patch("pg8k.plain.s0", second, 11).to_string().contains("record type"));
    // A package that announces two snapshots.
    let error = patch("pg8k.plain.s0", 16, 2);
    assert!(
        error.to_string().contains("package") && error.hint().unwrap().contains("-R"),
        "{error}"
    );
}

/// A stream that claims the largest size of everything must take no memory for missing data.
#[test]
fn claims_take_no_memory() {
    let mut bytes = support::stream("big1m.L.s0").to_vec();
    let mut reader = Reader::new(&bytes[..]).unwrap();
    let mut place = None;
    while let Some(record) = reader.next_record().unwrap() {
        if let sendstream::record::Header::Write(_) = record.header {
            place = Some(record.offset as usize);
            break;
        }
    }
    let place = place.unwrap();
    bytes[place + 32..place + 40].copy_from_slice(&(16u64 << 20).to_le_bytes());
    bytes.truncate(place + 312 + 1000);
    let error = read(&bytes, ReadOptions::default().without_checksums()).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Truncated { .. }), "{error}");
}

/// Found by fuzzing: blocks that overlapped by a few bytes produced pieces that no stream can hold.
#[test]
fn blocks_lie_in_sectors() {
    let mut bytes = support::stream("pg8k.plain.s0").to_vec();
    let options = ReadOptions::default().without_checksums();
    let mut place = None;
    let mut reader = Reader::new(&bytes[..]).unwrap();
    while let Some(record) = reader.next_record().unwrap() {
        if let sendstream::record::Header::Write(_) = record.header {
            place = Some(record.offset as usize);
            break;
        }
    }
    bytes[place.unwrap() + 24] = 16; // the offset
    let error = read(&bytes, options).unwrap_err();
    assert!(error.to_string().contains("multiple of 512"), "{error}");
}
