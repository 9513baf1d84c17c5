//! What a stream consists of: records and bytes by kind, and what changed, by object and, in a full stream, by path.

use std::collections::BTreeMap;
use std::io::Read;

use crate::error::Result;
use crate::fold::{Piece, Sink, SpillBlock, StreamDelta, fold};
use crate::reader::Reader;
use crate::record::{Begin, Header, Object, object_type};
use crate::zpl::{NoContent, TreeBuilder};

/// Records of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KindCount {
    /// How many.
    pub records: u64,
    /// Bytes of their payloads.
    pub payload: u64,
    /// The bytes that they represent: for a WRITE, the decompressed ones.
    pub logical: u64,
}

/// Counts by the kind's name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KindCounts {
    counts: [KindCount; KINDS.len()],
}

const KINDS: [&str; 9] = [
    "BEGIN",
    "OBJECT",
    "FREEOBJECTS",
    "WRITE",
    "WRITE_EMBEDDED",
    "FREE",
    "SPILL",
    "OBJECT_RANGE",
    "END",
];

impl KindCounts {
    pub(crate) fn add(&mut self, header: &Header, payload: u64) {
        let name = header.name();
        let logical = match header {
            Header::Write(write) => write.logical_size,
            Header::WriteEmbedded(write) => write.length,
            Header::Spill(spill) => spill.length,
            _ => payload,
        };
        for (count, _) in self.counts.iter_mut().zip(KINDS).filter(|(_, kind)| *kind == name) {
            count.records += 1;
            count.payload += payload;
            count.logical += logical;
        }
    }

    /// Returns the kinds that the stream has, in a fixed order.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, KindCount)> {
        KINDS.into_iter().zip(self.counts).filter(|(_, count)| count.records > 0)
    }

    /// Returns the count of a kind.
    pub fn get(&self, kind: &str) -> KindCount {
        self.iter().find(|(name, _)| *name == kind).map(|(_, count)| count).unwrap_or_default()
    }
}

/// What a stream writes into an object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ObjectCount {
    /// Its type (`DMU_OT_*`), if the stream says it.
    pub kind: Option<u32>,
    /// Blocks.
    pub blocks: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Ranges that become holes.
    pub holes: u64,
}

/// What a stream consists of.
#[derive(Clone, Debug)]
pub struct Statistics {
    /// The BEGIN record.
    pub begin: Begin,
    /// Whether the stream came in its own package (`zfs send -p`).
    pub packaged: bool,
    /// Records by kind.
    pub kinds: KindCounts,
    /// Bytes in total.
    pub bytes: u64,
    /// By object number.
    pub objects: BTreeMap<u64, ObjectCount>,
    /// Objects by path, sorted by path; `None` if names can't be known: in increments, in raw streams and in volumes.
    pub paths: Option<Vec<(Vec<u8>, u64)>>,
}

/// Reads a whole stream.
pub fn collect<R: Read>(reader: Reader<R>) -> Result<Statistics> {
    let begin = reader.begin().clone();
    let has_names =
        begin.is_full() && !begin.is_raw() && begin.objset == crate::record::ObjsetType::FileSystem;
    let has_names = has_names && !begin.features.contains(crate::Features::RESUMING);
    let mut objects = BTreeMap::new();
    let (reader, paths) = match has_names {
        true => {
            let mut delta = StreamDelta::new(reader)?;
            let mut sink = Counting { objects: &mut objects, tree: TreeBuilder::new(NoContent) };
            fold(vec![&mut delta], &mut sink)?;
            let tree = sink.tree.finish()?;
            let mut paths = Vec::new();
            tree.walk(|entry| {
                paths.push((entry.path.to_vec(), entry.object));
                Ok(())
            })?;
            (delta.into_reader(), Some(paths))
        }
        false => (count_records(reader, &mut objects)?, None),
    };
    Ok(Statistics {
        packaged: reader.package().is_some(),
        kinds: *reader.kinds(),
        bytes: reader.bytes_read(),
        begin,
        objects,
        paths,
    })
}

fn count_records<R: Read>(
    mut reader: Reader<R>,
    objects: &mut BTreeMap<u64, ObjectCount>,
) -> Result<Reader<R>> {
    while let Some(record) = reader.next_record()? {
        match record.header {
            Header::Object(object) => {
                objects.entry(object.object).or_default().kind = Some(object.kind)
            }
            Header::Write(write) => count_block(objects, write.object, write.logical_size),
            Header::WriteEmbedded(write) => count_block(objects, write.object, write.length),
            Header::Free(free) if !record.is_appendix => {
                objects.entry(free.object).or_default().holes += 1
            }
            _ => {}
        }
    }
    Ok(reader)
}

fn count_block(objects: &mut BTreeMap<u64, ObjectCount>, object: u64, bytes: u64) {
    let count = objects.entry(object).or_default();
    count.blocks += 1;
    count.bytes += bytes;
}

/// Counts what it passes on to the tree.
struct Counting<'a> {
    objects: &'a mut BTreeMap<u64, ObjectCount>,
    tree: TreeBuilder<NoContent>,
}

impl Sink for Counting<'_> {
    fn begin(&mut self, begin: &Begin) -> Result<()> {
        self.tree.begin(begin)
    }

    fn object(&mut self, header: &Object, bonus: &[u8]) -> Result<()> {
        self.objects.entry(header.object).or_default().kind = Some(header.kind);
        self.tree.object(header, bonus)
    }

    fn piece(&mut self, object: u64, piece: Piece<'_>) -> Result<()> {
        count_block(self.objects, object, piece.length);
        self.tree.piece(object, piece)
    }

    fn spill(&mut self, spill: SpillBlock<'_>) -> Result<()> {
        self.tree.spill(spill)
    }

    fn object_end(&mut self, object: u64) -> Result<()> {
        self.tree.object_end(object)
    }
}

/// Returns a readable name of an object type.
pub fn object_type_name(kind: u32) -> &'static str {
    match kind {
        object_type::PLAIN_FILE => "file",
        object_type::DIRECTORY => "directory",
        object_type::MASTER_NODE => "master node",
        object_type::UNLINKED_SET => "delete queue",
        object_type::ZVOL => "volume",
        object_type::ZVOL_PROP => "volume properties",
        object_type::SA_MASTER_NODE => "attributes",
        object_type::SA_REGISTRATION => "attribute registry",
        object_type::SA_LAYOUTS => "attribute layouts",
        _ => "other",
    }
}
