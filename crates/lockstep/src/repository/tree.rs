//! The names and attributes of an image.
//!
//! A tree is built from directories, links and the file system's own tables; the blocks of regular files stay unread,
//! and so do most of their indexes. What could go wrong: a name or a number in a repository is whatever its writer
//! made it. So [`check_name`] comes before every use of a name as a path.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashSet};

use bytes::Bytes;
use sendstream::fold::Sink as _;
use sendstream::zpl::{
    Attributes, FileType, NoContent, Node, Run, Timestamp, Tree, TreeBuilder, XattrValue,
};
use strata::delta::{Descriptor, Extent, chain};
use strata::fold::{DataSink, Folded, Reading, fold, open_chain};
use strata::pack::FrameReader;

use super::header::StreamRules;
use super::image::ImageState;
use super::ingest::of_stream;
use super::unfold::{INDEX_MEMORY, ToStream};
use super::{Repository, no_deltas, of_strata};
use crate::error::{Error, Result};

/// How many bytes of frames are kept while a tree is read.
pub(super) const FRAME_MEMORY: usize = 16 << 20;

/// An image's files.
pub struct ImageTree {
    /// Folders, links, and whatever else isn't plain.
    tree: Tree<()>,
    /// Files of which little needs to be known, by object.
    plain: Vec<Plain>,
    /// Where files have data, by object; empty if that wasn't requested.
    runs: Vec<(u64, Run)>,
    /// Objects whose content isn't stored.
    pub left_out: HashSet<u64>,
    chain: Vec<Descriptor>,
}

/// A regular file with one name and no extended attributes, as nearly all are: a cluster may have a million of them.
struct Plain {
    object: u64,
    size: u64,
    seconds: i64,
    nanoseconds: u32,
    mode: u32,
    uid: u32,
    gid: u32,
}

impl Plain {
    fn of(object: u64, node: &Node<()>) -> Option<Self> {
        let of = &node.attributes;
        let is_plain = of.file_type() == FileType::Regular
            && (of.links, of.xattr_directory) == (1, 0)
            && of.xattrs.is_none();
        Some(Self {
            object,
            size: of.size,
            seconds: of.mtime.seconds,
            nanoseconds: of.mtime.nanoseconds.try_into().ok()?,
            mode: of.mode.try_into().ok()?,
            uid: of.uid.try_into().ok()?,
            gid: of.gid.try_into().ok()?,
        })
        .filter(|_| is_plain)
    }

    fn attributes(&self) -> Attributes {
        let nanoseconds = self.nanoseconds.into();
        Attributes {
            mode: self.mode.into(),
            size: self.size,
            uid: self.uid.into(),
            gid: self.gid.into(),
            links: 1,
            mtime: Timestamp { seconds: self.seconds, nanoseconds },
            ..Attributes::default()
        }
    }
}

/// What to read of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// Names and attributes.
    Names,
    /// Also where files have data.
    Runs,
}

impl ImageTree {
    /// Reads the tree of an image as it was at a delta.
    ///
    /// # Errors
    /// When the chain is broken or damaged, or it holds no file system.
    pub fn read(repository: &Repository, image: &str, delta: &str, depth: Depth) -> Result<Self> {
        let chain = chain(&repository.strata, image, delta, None).map_err(of_strata)?;
        let newest = chain.last().ok_or_else(|| no_deltas(image, delta))?;
        let state = ImageState::of(newest)?;
        let mut builder = TreeBuilder::new(NoContent);
        builder.begin(&state.begin.begin(None)?).map_err(of_stream)?;
        let readers = open_chain(&repository.strata, &chain, INDEX_MEMORY).map_err(of_strata)?;
        let mut frames = FrameReader::new(&repository.strata, FRAME_MEMORY);
        let names = Names::new(&mut builder, None, depth == Depth::Runs);
        let mut slimming = Slimming { names, plain: Vec::new(), runs: Vec::new() };
        fold(readers, true, &StreamRules, &mut Reading::new(&mut frames, &mut slimming))
            .map_err(of_strata)?;
        let Slimming { plain, runs, .. } = slimming;
        let tree = builder.finish().map_err(of_stream)?;
        let left_out = state.left_out_objects.iter().map(|(object, _)| *object).collect();
        Ok(Self { tree, plain, runs, left_out, chain })
    }

    /// Returns the deltas that it is made of, oldest first.
    #[must_use]
    pub fn chain(&self) -> &[Descriptor] {
        &self.chain
    }

    /// Returns the root's object.
    #[must_use]
    pub fn root(&self) -> u64 {
        self.tree.root()
    }

    /// Returns the attributes of a file or folder, as far as a restore needs them; `None` if there is no such object.
    #[must_use]
    pub fn get(&self, object: u64) -> Option<Cow<'_, Attributes>> {
        match self.plain.binary_search_by_key(&object, |plain| plain.object) {
            Ok(at) => Some(Cow::Owned(self.plain.get(at)?.attributes())),
            Err(_) => Some(Cow::Borrowed(&self.tree.node(object)?.attributes)),
        }
    }

    /// Returns the attributes of a file or folder that has a name.
    ///
    /// # Errors
    /// When the tree has its name but not the object.
    pub fn attributes(&self, object: u64) -> Result<Cow<'_, Attributes>> {
        self.get(object).ok_or_else(|| {
            Error::failed(format!("object {object} has a name but isn't in the repository"))
        })
    }

    /// Returns the names in a folder and their objects, ordered by the names' bytes.
    pub fn children(&self, folder: u64) -> impl Iterator<Item = (&[u8], u64)> {
        self.tree.node(folder).into_iter().flat_map(|node| node.children.iter())
    }

    /// Returns where a file has data.
    pub fn runs(&self, object: u64) -> impl Iterator<Item = Run> {
        let first = self.runs.partition_point(|(of, _)| *of < object);
        self.runs[first..].iter().take_while(move |(of, _)| *of == object).map(|(_, run)| *run)
    }

    /// Returns the total size of regular files including holes, without files that aren't stored and those of
    /// `others`.
    #[must_use]
    pub fn file_bytes(&self, others: &HashSet<u64>) -> u64 {
        let plain = self.plain.iter().map(|plain| (plain.object, plain.size));
        let rest =
            self.tree.nodes().filter(|(_, node)| node.attributes.file_type() == FileType::Regular);
        let all = plain.chain(rest.map(|(object, node)| (object, node.attributes.size)));
        let is_stored = |object: &u64| !self.left_out.contains(object) && !others.contains(object);
        all.filter(|(object, _)| is_stored(object)).map(|(_, size)| size).sum()
    }

    /// Returns the names and values of a file's extended attributes.
    ///
    /// # Errors
    /// When they can't be read.
    pub fn xattrs(&self, object: u64) -> Result<Vec<(Vec<u8>, XattrValue)>> {
        self.tree.xattrs(object).map_err(of_stream)
    }

    /// Returns the object at a path of names.
    #[must_use]
    pub fn find<'a>(&self, names: impl IntoIterator<Item = &'a [u8]>) -> Option<u64> {
        names.into_iter().try_fold(self.tree.root(), |folder, name| self.child(folder, name))
    }

    /// Returns the object that a name in a folder stands for.
    #[must_use]
    pub fn child(&self, folder: u64, name: &[u8]) -> Option<u64> {
        self.tree.node(folder)?.children.find(name)
    }
}

/// Takes plain files out of the builder as they arrive.
struct Slimming<'a> {
    names: Names<'a>,
    plain: Vec<Plain>,
    runs: Vec<(u64, Run)>,
}

impl DataSink for Slimming<'_> {
    fn object(&mut self, object: &Folded) -> strata::Result<()> {
        self.names.object(object)
    }

    fn wants_extents(&mut self) -> bool {
        self.names.wants_extents()
    }

    fn skips(&mut self, object: u64, extent: &Extent) -> strata::Result<bool> {
        self.names.skips(object, extent)
    }

    fn data(&mut self, object: u64, offset: u64, content: &Bytes) -> strata::Result<()> {
        self.names.data(object, offset, content)
    }

    fn formed(&mut self, object: u64, extent: &Extent, bytes: &Bytes) -> strata::Result<()> {
        self.names.formed(object, extent, bytes)
    }

    fn object_end(&mut self, object: u64) -> strata::Result<()> {
        self.names.object_end(object)?;
        let builder = &mut *self.names.to.sink;
        let Some(node) = builder.node(object) else { return Ok(()) };
        self.runs.extend(node.runs.iter().map(|run| (object, *run)));
        if let Some(plain) = Plain::of(object, node)
            && builder.take(object).is_some()
        {
            self.plain.push(plain);
        }
        Ok(())
    }
}

/// Checks that a name from the repository can be a file's name in a folder: no path, no way out of the folder.
///
/// # Errors
/// When it can't be.
pub fn check_name(name: &[u8]) -> Result<()> {
    let is_name =
        !matches!(name, b"" | b"." | b"..") && !name.iter().any(|c| matches!(c, b'/' | 0));
    if is_name {
        return Ok(());
    }
    Err(Error::failed(format!("\"{}\" in the repository is no file's name", name.escape_ascii()))
        .with_hint(
            "no file of that name is written; somebody who can write to the repository made it",
        ))
}

/// Passes the builder what it looks at: of regular files, nothing but their headers.
pub(super) struct Names<'a> {
    to: ToStream<'a, TreeBuilder<NoContent>>,
    /// `None` means all.
    wanted: Option<&'a BTreeSet<u64>>,
    /// Also where regular files have data.
    runs: bool,
}

impl<'a> Names<'a> {
    pub(super) fn new(
        builder: &'a mut TreeBuilder<NoContent>,
        wanted: Option<&'a BTreeSet<u64>>,
        runs: bool,
    ) -> Self {
        Self { to: ToStream::new(builder, None), wanted, runs }
    }
}

impl DataSink for Names<'_> {
    fn wanted(&mut self, from: u64) -> strata::Result<Option<u64>> {
        Ok(self.wanted.map_or(Some(from), |wanted| wanted.range(from..).next().copied()))
    }

    fn object(&mut self, object: &Folded) -> strata::Result<()> {
        self.to.object(object)
    }

    fn wants_extents(&mut self) -> bool {
        self.runs || self.to.sink.needs_content()
    }

    fn skips(&mut self, object: u64, extent: &Extent) -> strata::Result<bool> {
        if self.to.sink.needs_content() {
            return Ok(false);
        }
        self.to.piece(object, extent.offset, extent.length, &[])?;
        Ok(true)
    }

    fn data(&mut self, object: u64, offset: u64, content: &Bytes) -> strata::Result<()> {
        self.to.data(object, offset, content)
    }

    fn formed(&mut self, object: u64, extent: &Extent, bytes: &Bytes) -> strata::Result<()> {
        self.to.formed(object, extent, bytes)
    }

    fn object_end(&mut self, object: u64) -> strata::Result<()> {
        self.to.object_end(object)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_leads_out_of_a_folder_is_no_name() {
        for good in [&b"16384"[..], b"...", b" ", b"a\nb", b"\xff\xfe", b"-rf"] {
            assert!(check_name(good).is_ok(), "{good:?}");
        }
        for bad in [&b""[..], b".", b"..", b"a/b", b"/", b"../x", b"a\0b"] {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
    }
}
