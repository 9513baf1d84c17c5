//! Streams of one file, from old and new senders; the repository's tests use them too.

use sendstream::record::{Begin, Header, Object, ObjsetType, object_type};
use sendstream::{ByteOrder, Features, Writer};

/// Makes a stream of one file whose properties changed, without content: from a sender before OpenZFS 0.8, whose spill
/// flags are meaningless, or from a later one.
pub fn stream_of(knows_spill_flags: bool, from_guid: u64, to_guid: u64, object: u64) -> Vec<u8> {
    let begin = Begin {
        order: ByteOrder::Little,
        header_type: 1,
        features: Features::SA_SPILL,
        creation_time: 1_700_000_000,
        objset: ObjsetType::FileSystem,
        flags: if knows_spill_flags { Begin::FLAG_SPILL_BLOCK } else { 0 },
        to_guid,
        from_guid,
        to_name: b"tank/pg@s".to_vec(),
    };
    let header = Object {
        bonus_type: object_type::SA,
        bonus_len: 168,
        checksum_type: 7,
        compress: 2,
        ..Object::plain(object, object_type::PLAIN_FILE, 4096)
    };
    let mut writer = Writer::new(Vec::new(), &begin, &[]).unwrap();
    writer.record(&Header::Object(header), &[0; 168]).unwrap();
    writer.finish().unwrap()
}
