//! Builds the tree from objects as they come; file contents pass through and aren't kept.

use std::collections::BTreeMap;

use super::attributes::{Attributes, FileType};
use super::sa::{self, AttributeTables};
use super::tree::{Children, Node, Run, Tree};
use super::zap::{SparseContent, Zap};
use super::znode;
use crate::bytes::ByteOrder;
use crate::compress::Decompressor;
use crate::error::{Error, ErrorKind, Result};
use crate::fold::{Piece, Sink, SpillBlock};
use crate::record::{Begin, Object, ObjsetType, object_type};

/// Receives the content of regular files and volumes, one object at a time.
pub trait ContentVisitor {
    /// The result for an object.
    type Output;

    /// Begins an object with content; `size` is the file's. Returns false to skip it.
    fn begin(&mut self, object: u64, size: Option<u64>) -> bool;

    /// Receives data in ascending order; gaps are zeros. Blocks may go beyond the size.
    fn data(&mut self, offset: u64, bytes: &[u8]) -> Result<()>;

    /// Ends the object.
    fn end(&mut self, object: u64) -> Result<Option<Self::Output>>;
}

/// Skips all content.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoContent;

impl ContentVisitor for NoContent {
    type Output = ();

    fn begin(&mut self, _object: u64, _size: Option<u64>) -> bool {
        false
    }

    fn data(&mut self, _offset: u64, _bytes: &[u8]) -> Result<()> {
        Ok(())
    }

    fn end(&mut self, _object: u64) -> Result<Option<()>> {
        Ok(None)
    }
}

/// The largest directory that is read, in bytes; enough for ten million names and more.
const MAX_ZAP: u64 = 1 << 30;
/// The largest symbolic link: its target is a path, which takes at most a page.
const MAX_SYMLINK: u64 = 64 << 10;

/// Builds a [`Tree`] from the objects of a full fold.
#[derive(Debug)]
pub struct TreeBuilder<V: ContentVisitor = NoContent> {
    visitor: V,
    order: ByteOrder,
    objset: ObjsetType,
    decompressor: Decompressor,
    current: Option<Current>,
    /// Read when their objects end: in nearly every file system they come before most of the bonuses that need them.
    tables: Tables,
    nodes: BTreeMap<u64, Node<V::Output>>,
    /// Attributes that couldn't be read yet.
    deferred: Vec<Deferred>,
    maps: BTreeMap<u64, Zap>,
}

#[derive(Debug, Default)]
struct Tables {
    registry: Option<Zap>,
    layouts: Option<Zap>,
    ready: Option<AttributeTables>,
}

#[derive(Debug)]
struct Deferred {
    object: u64,
    bonus: Vec<u8>,
    spill: Option<Vec<u8>>,
    assumed_size: Option<u64>,
}

#[derive(Debug)]
struct Current {
    object: u64,
    header: Object,
    bonus: Vec<u8>,
    spill: Option<Vec<u8>>,
    keep: Keep,
    /// Content that is kept: of ZAPs and links.
    content: SparseContent,
    runs: Vec<Run>,
    visited: bool,
    size: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Keep {
    Nothing,
    Zap,
    Symlink,
    File,
}

impl<V: ContentVisitor> TreeBuilder<V> {
    /// Passes the content of files to `visitor`.
    pub fn new(visitor: V) -> TreeBuilder<V> {
        TreeBuilder {
            visitor,
            order: ByteOrder::Little,
            objset: ObjsetType::FileSystem,
            decompressor: Decompressor::new(),
            current: None,
            tables: Tables::default(),
            nodes: BTreeMap::new(),
            deferred: Vec::new(),
            maps: BTreeMap::new(),
        }
    }

    /// Whether the current object's content is used. If it isn't, a piece needs no payload.
    pub fn needs_content(&self) -> bool {
        let needs = |current: &Current| {
            current.visited || matches!(current.keep, Keep::Zap | Keep::Symlink)
        };
        self.current.as_ref().is_some_and(needs)
    }

    /// Returns an object that has passed. Its attributes are known if those that [`TreeBuilder::missing`] names passed
    /// before it.
    pub fn node(&self, object: u64) -> Option<&Node<V::Output>> {
        self.nodes.get(&object)
    }

    /// Takes an object that has passed out of the tree, once its attributes are known, so that the builder of a large
    /// tree can store it more compactly.
    pub fn take(&mut self, object: u64) -> Option<Node<V::Output>> {
        let is_late = self.deferred.binary_search_by_key(&object, |late| late.object).is_ok();
        if is_late { None } else { self.nodes.remove(&object) }
    }

    /// Returns the object number of the root directory, once the master node has passed.
    pub fn root(&self) -> Option<u64> {
        self.maps.get(&1)?.number("ROOT")
    }

    /// Returns the objects that must pass before any file's attributes can be read, as far as they are known; none once
    /// they have passed. For callers that pass single objects, not a whole file system in order.
    pub fn missing(&self) -> Vec<u64> {
        let Some(master) = self.maps.get(&1) else {
            return vec![1];
        };
        // File systems before version 5 have only one form of attributes.
        let Some(attributes) = master.number("SA_ATTRS").filter(|object| *object != 0) else {
            return Vec::new();
        };
        match self.maps.get(&attributes) {
            _ if self.tables.ready.is_some() => Vec::new(),
            None => vec![attributes],
            Some(tables) => {
                let names = ["REGISTRY", "LAYOUTS"];
                names.iter().filter_map(|name| tables.number(name)).collect()
            }
        }
    }

    /// Returns the tree.
    pub fn finish(mut self) -> Result<Tree<V::Output>> {
        if self.objset == ObjsetType::Volume {
            return self.finish_volume();
        }
        let master =
            self.maps.get(&1).ok_or_else(|| Error::object(1, "there is no master node"))?;
        let root = master
            .number("ROOT")
            .ok_or_else(|| Error::object(1, "the master node names no root"))?;
        let deferred = std::mem::take(&mut self.deferred);
        for late in deferred {
            let tables = self.tables.ready.as_ref();
            let tables =
                tables.ok_or_else(|| Error::object(1, "there are no attribute layouts"))?;
            let attributes =
                read_attributes(late.object, tables, &late.bonus, late.spill.as_deref())?;
            if late.assumed_size.is_some_and(|size| size != attributes.size) {
                return Err(Error::object(
                    late.object,
                    "its layout doesn't begin with mode and size",
                ));
            }
            self.place(late.object, attributes);
        }
        Ok(Tree { nodes: self.nodes, root, volume: None })
    }

    fn finish_volume(self) -> Result<Tree<V::Output>> {
        let size = self.maps.values().find_map(|map| map.number("size"));
        Ok(Tree { nodes: self.nodes, root: 1, volume: Some(size.unwrap_or(0)) })
    }

    fn place(&mut self, object: u64, attributes: Attributes) {
        if let Some(node) = self.nodes.get_mut(&object) {
            // A link's target from a data block was stored there before.
            let symlink = node.attributes.symlink.take();
            node.attributes = attributes;
            if node.attributes.symlink.is_none() {
                node.attributes.symlink = symlink;
            }
        }
    }

    fn classify(&self, header: &Object, bonus: &[u8]) -> (Keep, Option<u64>) {
        let mode_and_size = match header.bonus_type {
            object_type::SA => sa::mode_and_size(bonus),
            object_type::ZNODE => self.order.u64(bonus, 72).zip(self.order.u64(bonus, 80)),
            _ => None,
        };
        let size = mode_and_size.map(|(_, size)| size);
        let keep = match header.kind {
            object_type::MASTER_NODE
            | object_type::DIRECTORY
            | object_type::SA_MASTER_NODE
            | object_type::SA_REGISTRATION
            | object_type::SA_LAYOUTS
            | object_type::ZVOL_PROP => Keep::Zap,
            object_type::PLAIN_FILE => {
                match mode_and_size.map(|(mode, _)| FileType::from_mode(mode)) {
                    Some(FileType::Symlink) => Keep::Symlink,
                    _ => Keep::File,
                }
            }
            object_type::ZVOL => Keep::File,
            _ => Keep::Nothing,
        };
        (keep, size)
    }

    fn end_current(&mut self) -> Result<()> {
        let Some(current) = self.current.take() else {
            return Ok(());
        };
        let object = current.object;
        let content = if current.visited { self.visitor.end(object)? } else { None };
        let mut children = Children::default();
        if current.keep == Keep::Zap {
            let zap = Zap::parse(object, &current.content, current.header.block_size as usize);
            match current.header.kind {
                object_type::DIRECTORY => {
                    // An entry's upper bits hold its type.
                    let number = |value: u64| value & ((1 << 48) - 1);
                    let zap = zap?;
                    for (name, value) in zap.entries() {
                        if let Some(value) = value.single() {
                            children.push(name, number(value));
                        }
                    }
                }
                object_type::SA_REGISTRATION => self.tables.registry = Some(zap?),
                object_type::SA_LAYOUTS => self.tables.layouts = Some(zap?),
                _ => {
                    self.maps.insert(object, zap?);
                }
            }
            if let (None, Some(registry), Some(layouts)) =
                (&self.tables.ready, &self.tables.registry, &self.tables.layouts)
            {
                self.tables.ready = Some(AttributeTables::new(registry, layouts));
            }
        }
        let is_file = matches!(current.header.bonus_type, object_type::SA | object_type::ZNODE);
        if !is_file && current.header.kind != object_type::ZVOL {
            return Ok(());
        }
        let mut attributes = Attributes::default();
        if current.keep == Keep::Symlink {
            let length = current.size.and_then(|size| usize::try_from(size).ok()).unwrap_or(0);
            let length = Some(length).filter(|length| *length as u64 <= MAX_SYMLINK);
            let target = length.and_then(|length| current.content.read(0, length));
            attributes.symlink = target.map(|target| target.into_owned());
        }
        self.nodes.insert(object, Node { attributes, children, runs: current.runs, content });
        match current.header.bonus_type {
            object_type::ZNODE => {
                let attributes = znode::decode(object, &current.bonus, self.order)?;
                self.place(object, attributes);
            }
            object_type::SA => match &self.tables.ready {
                Some(tables) => {
                    let attributes =
                        read_attributes(object, tables, &current.bonus, current.spill.as_deref())?;
                    if current.size.is_some_and(|size| size != attributes.size) {
                        return Err(Error::object(
                            object,
                            "its layout doesn't begin with mode and size",
                        ));
                    }
                    self.place(object, attributes);
                }
                None => self.deferred.push(Deferred {
                    object,
                    bonus: current.bonus,
                    spill: current.spill,
                    assumed_size: current.size,
                }),
            },
            _ => {}
        }
        Ok(())
    }
}

fn read_attributes(
    object: u64,
    tables: &AttributeTables,
    bonus: &[u8],
    spill: Option<&[u8]>,
) -> Result<Attributes> {
    let mut attributes = Attributes::default();
    sa::decode(object, tables, bonus, &mut attributes)?;
    if let Some(spill) = spill {
        sa::decode(object, tables, spill, &mut attributes)?;
    }
    Ok(attributes)
}

impl<V: ContentVisitor> Sink for TreeBuilder<V> {
    fn begin(&mut self, begin: &Begin) -> Result<()> {
        if !begin.is_full() {
            let why = "a tree needs a full stream to begin with".to_string();
            return Err(Error::new(ErrorKind::Chain { why }));
        }
        self.order = begin.order;
        self.objset = begin.objset;
        Ok(())
    }

    fn object(&mut self, header: &Object, bonus: &[u8]) -> Result<()> {
        let (keep, size) = self.classify(header, bonus);
        let visited = keep == Keep::File && self.visitor.begin(header.object, size);
        self.current = Some(Current {
            object: header.object,
            header: header.clone(),
            bonus: bonus.get(..header.bonus_len as usize).unwrap_or(bonus).to_vec(),
            spill: None,
            keep,
            content: SparseContent::default(),
            runs: Vec::new(),
            visited,
            size,
        });
        Ok(())
    }

    fn piece(&mut self, object: u64, piece: Piece<'_>) -> Result<()> {
        let Some(current) = &mut self.current else {
            return Ok(());
        };
        let end = piece.offset + piece.length;
        match current.keep {
            Keep::Nothing => return Ok(()),
            Keep::File => {
                match current.runs.last_mut() {
                    Some(run) if run.offset + run.length == piece.offset => {
                        run.length += piece.length
                    }
                    _ => current.runs.push(Run { offset: piece.offset, length: piece.length }),
                }
                if current.visited {
                    self.visitor.data(piece.offset, piece.content(&mut self.decompressor)?)?;
                }
                return Ok(());
            }
            Keep::Symlink if end > MAX_SYMLINK => return Ok(()),
            Keep::Zap if end > MAX_ZAP => {
                let kind = ErrorKind::TooLarge { what: "a directory", limit: MAX_ZAP, found: end };
                return Err(Error::new(kind));
            }
            Keep::Symlink | Keep::Zap => {}
        }
        let content = piece.content(&mut self.decompressor)?;
        if !current.content.push(piece.offset, content) {
            return Err(Error::object(object, "its blocks are out of order"));
        }
        Ok(())
    }

    fn spill(&mut self, spill: SpillBlock<'_>) -> Result<()> {
        if let Some(current) = &mut self.current {
            current.spill = Some(spill.payload.to_vec());
        }
        Ok(())
    }

    fn object_end(&mut self, _object: u64) -> Result<()> {
        self.end_current()
    }
}
