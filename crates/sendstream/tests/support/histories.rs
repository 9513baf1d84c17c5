//! Random histories of a data set: states, the streams that lead from one to the next, and a receiver that replays
//! them. The repository's tests use them too.
#![allow(dead_code, reason = "each test uses its part")]

use std::collections::BTreeMap;

use proptest::prelude::*;
use sendstream::fold::{StreamDelta, StreamSink, fold};
use sendstream::record::{
    Begin, Free, FreeObjects, Header, Object, ObjsetType, Sealed, Spill, Write, object_type,
};
use sendstream::{ByteOrder, Features, Reader, Writer};

pub fn begin(order: ByteOrder, from_guid: u64, to_guid: u64) -> Begin {
    Begin {
        order,
        header_type: 1,
        features: Features::SA_SPILL.union(Features::LARGE_BLOCKS).union(Features::LARGE_DNODE),
        creation_time: 1_700_000_000,
        objset: ObjsetType::FileSystem,
        flags: Begin::FLAG_SPILL_BLOCK,
        to_guid,
        from_guid,
        to_name: b"tank/model@s".to_vec(),
    }
}

pub fn write(object: u64, offset: u64, length: u64) -> Write {
    Write {
        object,
        kind: object_type::PLAIN_FILE,
        offset,
        logical_size: length,
        checksum_type: 7,
        flags: 0,
        compression: 0,
        key_checksum: [1, 2, 3, 4],
        key_properties: 5,
        compressed_size: 0,
        sealed: Sealed::default(),
    }
}

// --- the model: what a data set holds, in chunks of 512 bytes of one value each ---

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    pub generation: u64,
    pub block_size: u32,
    pub slots: u8,
    pub chunks: BTreeMap<u64, u8>,
    pub spill: Option<u8>,
}

pub type State = BTreeMap<u64, File>;

#[derive(Clone, Debug)]
pub enum Op {
    Create { object: u64, size: u32, slots: u8 },
    Remove { object: u64 },
    WriteBlock { object: u64, block: u64, value: u8 },
    PunchBlock { object: u64, block: u64 },
    Truncate { object: u64, block: u64 },
    SetSpill { object: u64, value: Option<u8> },
}

pub fn op() -> impl Strategy<Value = Op> {
    let object = 1..100u64;
    let sizes = prop::sample::select(vec![512u32, 1024, 4096, 131_072]);
    prop_oneof![
        4 => (object.clone(), sizes, prop::sample::select(vec![1u8, 1, 1, 2, 4]))
            .prop_map(|(object, size, slots)| Op::Create { object, size, slots }),
        2 => object.clone().prop_map(|object| Op::Remove { object }),
        8 => (object.clone(), 0..12u64, any::<u8>()).prop_map(|(object, block, value)| Op::WriteBlock { object, block, value }),
        3 => (object.clone(), 0..12u64).prop_map(|(object, block)| Op::PunchBlock { object, block }),
        2 => (object.clone(), 0..12u64).prop_map(|(object, block)| Op::Truncate { object, block }),
        3 => (object, prop::option::of(any::<u8>())).prop_map(|(object, value)| Op::SetSpill { object, value }),
    ]
}

/// Finds the next existing object, so that operations on random numbers often hit one of the few files.
fn nearest(state: &State, object: u64) -> Option<u64> {
    state.range(object..).next().or_else(|| state.iter().next()).map(|(object, _)| *object)
}

pub fn apply(state: &mut State, op: &Op, step: u64) {
    match *op {
        Op::Create { object, size, slots } => {
            let slots_free = (object..object + u64::from(slots)).all(|slot| {
                let below = state.range(..=slot).next_back();
                slot == object || below.is_none_or(|(at, _)| *at <= object)
            });
            let inside = state
                .range(..object)
                .next_back()
                .is_some_and(|(at, file)| at + u64::from(file.slots) > object);
            if slots_free && !inside {
                let generation = step * 1000 + object;
                let file = File {
                    generation,
                    block_size: size,
                    slots,
                    chunks: BTreeMap::new(),
                    spill: None,
                };
                state.insert(object, file);
            }
        }
        Op::Remove { object } => {
            if let Some(object) = nearest(state, object) {
                state.remove(&object);
            }
        }
        Op::WriteBlock { object, block, value } => {
            let Some(object) = nearest(state, object) else {
                return;
            };
            let file = state.get_mut(&object).unwrap();
            let per_block = u64::from(file.block_size / 512);
            for chunk in block * per_block..(block + 1) * per_block {
                file.chunks.insert(chunk, value);
            }
        }
        Op::PunchBlock { object, block } => {
            let Some(object) = nearest(state, object) else {
                return;
            };
            let file = state.get_mut(&object).unwrap();
            let per_block = u64::from(file.block_size / 512);
            file.chunks
                .retain(|chunk, _| !(block * per_block..(block + 1) * per_block).contains(chunk));
        }
        Op::Truncate { object, block } => {
            let Some(object) = nearest(state, object) else {
                return;
            };
            let file = state.get_mut(&object).unwrap();
            let end = block * u64::from(file.block_size / 512);
            file.chunks.retain(|chunk, _| *chunk < end);
        }
        Op::SetSpill { object, value } => {
            let Some(object) = nearest(state, object) else {
                return;
            };
            state.get_mut(&object).unwrap().spill = value;
        }
    }
}

// --- a sender: the difference of two states as a stream, in both orders that senders use ---

pub fn header(object: u64, file: &File) -> (Object, Vec<u8>) {
    let mut bonus = vec![0u8; 264];
    bonus[64..72].copy_from_slice(&file.generation.to_le_bytes());
    let header = Object {
        object,
        kind: object_type::PLAIN_FILE,
        bonus_type: object_type::ZNODE,
        block_size: file.block_size,
        bonus_len: 264,
        checksum_type: 0,
        compress: 0,
        dn_slots: file.slots,
        flags: if file.spill.is_some() { Object::FLAG_SPILL } else { 0 },
        raw_bonus_len: 0,
        indirect_block_shift: 0,
        levels: 0,
        block_pointers: 0,
        max_block_id: 0,
    };
    (header, bonus)
}

pub fn send(old: &State, new: &State, begin: &Begin, grouped: bool) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new(), begin, &[]).unwrap();
    let slot_range = |state: &State, object: u64| {
        state.get(&object).map(|file| object..object + u64::from(file.slots))
    };
    let in_new = |slot: u64| {
        new.range(..=slot).next_back().is_some_and(|(at, file)| slot < at + u64::from(file.slots))
    };
    for dnode_block in 0..4u64 {
        let mut content: Vec<u64> = Vec::new();
        for object in dnode_block * 32..(dnode_block + 1) * 32 {
            match (old.get(&object), new.get(&object)) {
                (before, Some(after)) if before != Some(after) => {
                    let (header, bonus) = header(object, after);
                    writer.record(&Header::Object(header), &bonus).unwrap();
                    let per_block = u64::from(after.block_size / 512);
                    let last = after.chunks.keys().next_back().map_or(0, |chunk| chunk / per_block);
                    let offset = (last + 1) * u64::from(after.block_size);
                    writer
                        .record(&Header::Free(Free { object, offset, length: u64::MAX }), &[])
                        .unwrap();
                    let same = before.filter(|before| before.generation == after.generation);
                    if let (Some(value), true) =
                        (after.spill, same.is_some_and(|before| before.spill == after.spill))
                    {
                        send_spill(&mut writer, object, value, Spill::FLAG_UNMODIFIED);
                    }
                    content.push(object);
                    if !grouped {
                        send_content(&mut writer, object, same, after);
                        content.clear();
                    }
                }
                (Some(_), None) if !in_new(object) => {
                    let count = slot_range(old, object).map_or(1, |range| range.end - range.start);
                    let count = (1..=count)
                        .take_while(|extra| !in_new(object + extra - 1))
                        .last()
                        .unwrap_or(1);
                    writer
                        .record(&Header::FreeObjects(FreeObjects { first: object, count }), &[])
                        .unwrap();
                }
                _ => {}
            }
        }
        for object in content {
            let after = &new[&object];
            let same = old.get(&object).filter(|before| before.generation == after.generation);
            send_content(&mut writer, object, same, after);
        }
    }
    writer.finish().unwrap()
}

fn send_spill(writer: &mut Writer<Vec<u8>>, object: u64, value: u8, flags: u8) {
    let spill = Spill {
        object,
        length: 512,
        flags,
        compression: 0,
        compressed_size: 0,
        sealed: Sealed::default(),
        kind: 0,
    };
    writer.record(&Header::Spill(spill), &[value; 512]).unwrap();
}

fn send_content(writer: &mut Writer<Vec<u8>>, object: u64, same: Option<&File>, after: &File) {
    let size = u64::from(after.block_size);
    let per_block = size / 512;
    let last = after.chunks.keys().next_back().map_or(0, |chunk| chunk / per_block);
    for block in 0..=last {
        let value = |file: &File| file.chunks.get(&(block * per_block)).copied();
        let (before, now) = (same.map(value), value(after));
        match now {
            Some(value) if before != Some(now) => {
                let write = write(object, block * size, size);
                writer.record(&Header::Write(write), &vec![value; size as usize]).unwrap();
            }
            // Holes of a number that was used before are sent even if they were always holes.
            None if before != Some(None) => {
                let free = Free { object, offset: block * size, length: size };
                writer.record(&Header::Free(free), &[]).unwrap();
            }
            _ => {}
        }
    }
    if let Some(value) =
        after.spill.filter(|_| same.is_none_or(|before| before.spill != after.spill))
    {
        send_spill(writer, object, value, 0);
    }
}

// --- a receiver: record after record, as zfs receive does ---

pub fn receive(state: &mut State, stream: &[u8]) {
    let mut reader = Reader::new(stream).unwrap();
    while let Some(record) = reader.next_record().unwrap() {
        match record.header {
            Header::Object(object) => {
                let generation = u64::from_le_bytes(record.payload[64..72].try_into().unwrap());
                for slot in object.object + 1..object.object + object.slots() {
                    state.remove(&slot);
                }
                let new = File {
                    generation,
                    block_size: object.block_size,
                    slots: object.dn_slots,
                    chunks: BTreeMap::new(),
                    spill: None,
                };
                let file = state.entry(object.object).or_insert_with(|| new.clone());
                if (file.block_size, file.slots, file.generation)
                    != (new.block_size, new.slots, new.generation)
                {
                    *file = new;
                }
                if !object.has_spill() {
                    file.spill = None;
                }
            }
            Header::FreeObjects(free) => {
                state.retain(|object, _| !(free.first..free.first + free.count).contains(object))
            }
            Header::Free(free) => {
                let range = free.offset / 512..free.offset.saturating_add(free.length) / 512;
                state
                    .get_mut(&free.object)
                    .unwrap()
                    .chunks
                    .retain(|chunk, _| !range.contains(chunk));
            }
            Header::Write(write) => {
                let file = state.get_mut(&write.object).unwrap();
                for (index, chunk) in record.payload.chunks(512).enumerate() {
                    assert!(chunk.iter().all(|byte| *byte == chunk[0]));
                    file.chunks.insert(write.offset / 512 + index as u64, chunk[0]);
                }
            }
            Header::Spill(spill) if spill.flags & Spill::FLAG_UNMODIFIED == 0 => {
                state.get_mut(&spill.object).unwrap().spill = Some(record.payload[0]);
            }
            _ => {}
        }
    }
}

pub fn folded(streams: &[Vec<u8>]) -> Vec<u8> {
    let deltas = streams
        .iter()
        .map(|bytes| StreamDelta::new(Reader::new(&bytes[..]).unwrap()).unwrap())
        .collect();
    let mut sink = StreamSink::new(Vec::new());
    fold(deltas, &mut sink).unwrap();
    sink.finish().unwrap()
}

/// Returns the states after each step, beginning with an empty one, and the stream of each step.
pub fn history(steps: &[Vec<Op>], grouped: bool) -> (Vec<State>, Vec<Vec<u8>>) {
    let mut states = vec![State::new()];
    let mut streams = Vec::new();
    for (number, ops) in steps.iter().enumerate() {
        let mut state = states[number].clone();
        for op in ops {
            apply(&mut state, op, number as u64 + 1);
        }
        let begin = begin(ByteOrder::Little, number as u64, number as u64 + 1);
        streams.push(send(&states[number], &state, &begin, grouped));
        states.push(state);
    }
    (states, streams)
}
