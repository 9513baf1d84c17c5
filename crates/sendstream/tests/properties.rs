//! Random streams written and read back; random histories folded and compared with a model that replays everything.

#[path = "support/histories.rs"]
mod histories;

use std::collections::BTreeMap;

use histories::{File, State, begin, folded, header, history, op, receive, write};
use proptest::prelude::*;
use sendstream::record::Header;
use sendstream::{ByteOrder, Reader, Writer};

/// Few enough for a debug build on a busy machine; PROPTEST_CASES overrides it.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(80)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), ..ProptestConfig::default() })]

    #[test]
    fn histories_fold_as_if_replayed(
        steps in prop::collection::vec(prop::collection::vec(op(), 0..25), 1..7),
        grouped in any::<bool>(),
        cut in any::<prop::sample::Index>(),
    ) {
        let (states, streams) = history(&steps, grouped);
        // The model itself: replaying every stream gives every state.
        let mut replayed = State::new();
        for (stream, state) in streams.iter().zip(&states[1..]) {
            receive(&mut replayed, stream);
            prop_assert_eq!(&replayed, state);
        }
        // Full folds.
        for length in 1..=streams.len() {
            let mut state = State::new();
            receive(&mut state, &folded(&streams[..length]));
            prop_assert_eq!(&state, &states[length]);
        }
        // From any snapshot to any later one.
        let first = cut.index(streams.len());
        for last in first + 1..=streams.len() {
            let mut state = states[first].clone();
            receive(&mut state, &folded(&streams[first..last]));
            prop_assert_eq!(&state, &states[last]);
        }
        // A fold of folds is the fold.
        if first > 0 {
            let halves = [folded(&streams[..first]), folded(&streams[first..])];
            let mut state = State::new();
            receive(&mut state, &folded(&halves));
            prop_assert_eq!(&state, &states[streams.len()]);
        }
    }

    #[test]
    fn records_written_are_read_again(
        big in any::<bool>(),
        objects in prop::collection::btree_map(1..1000u64, (0..300usize, prop::collection::btree_map(0..50u64, any::<u8>(), 0..5)), 0..20),
        checksums in any::<bool>(),
    ) {
        let order = if big { ByteOrder::Big } else { ByteOrder::Little };
        let begin = begin(order, 0, 77);
        let mut writer = Writer::new(Vec::new(), &begin, &[]).unwrap();
        if !checksums {
            writer = writer.without_record_checksums();
        }
        let mut expected = Vec::new();
        for (object, (bonus_len, blocks)) in &objects {
            let file = File { generation: 1, block_size: 4096, slots: 1, chunks: BTreeMap::new(), spill: None };
            let (mut header, _) = header(*object, &file);
            header.bonus_len = *bonus_len as u32;
            expected.push((Header::Object(header), vec![7; bonus_len.next_multiple_of(8)]));
            for (block, value) in blocks {
                let length = 512 * (1 + u64::from(*value % 8));
                expected.push((Header::Write(write(*object, block * 4096, length)), vec![*value; length as usize]));
            }
        }
        for (header, payload) in &expected {
            writer.record(header, payload).unwrap();
        }
        let bytes = writer.finish().unwrap();
        let mut reader = Reader::new(&bytes[..]).unwrap();
        prop_assert_eq!(reader.begin(), &begin);
        for (header, payload) in &expected {
            let record = reader.next_record().unwrap().unwrap();
            prop_assert_eq!(record.header, header);
            prop_assert_eq!(record.payload, &payload[..]);
        }
        let is_end = matches!(reader.next_record().unwrap().unwrap().header, Header::End(_));
        prop_assert!(is_end);
        prop_assert!(reader.next_record().unwrap().is_none());
    }
}
