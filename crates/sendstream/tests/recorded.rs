//! Every recorded stream is parsed with its checksums, and the writer must produce the same bytes.

mod support;

use sendstream::{Reader, Writer, record::Header};

#[test]
fn every_stream_parses_and_is_written_back_byte_for_byte() {
    let mut seen = 0;
    for name in support::streams() {
        let bytes = support::stream(name);
        let mut reader = Reader::new(bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
        let begin = reader.begin().clone();
        let mut writer = Writer::new(Vec::new(), &begin, reader.begin_payload()).unwrap();
        if name.starts_with("fuse.") {
            writer = writer.without_record_checksums();
        }
        while let Some(record) =
            reader.next_record().unwrap_or_else(|error| panic!("{name}: {error}"))
        {
            if !matches!(record.header, Header::End(_)) {
                writer.record(record.header, record.payload).unwrap();
            }
        }
        let written = writer.finish().unwrap();
        match reader.package() {
            // The package's header comes before it, the package's END after it.
            Some(_) => {
                assert!(bytes.windows(written.len()).any(|window| window == written), "{name}")
            }
            None => assert!(bytes == written, "{name}"),
        }
        seen += 1;
    }
    assert_eq!(seen, 36, "a recorded stream is missing, or a new one isn't listed here");
}

/// Encrypted streams pass through unchanged, header by header, without being looked into.
#[test]
fn raw_streams_pass_through_byte_for_byte() {
    for name in support::streams().into_iter().filter(|name| name.starts_with("enc.w")) {
        let bytes = support::stream(name);
        let mut reader = Reader::new(bytes).unwrap();
        assert!(reader.begin().is_raw() && !reader.begin_payload().is_empty());
        let mut passed = bytes[..312 + reader.begin_payload().len()].to_vec();
        while let Some(record) = reader.next_record().unwrap() {
            passed.extend_from_slice(record.header_bytes);
            passed.extend_from_slice(record.payload);
        }
        assert!(passed == bytes, "{name}");
    }
}
