//! The names and attributes of an image.
//!
//! A tree is made of what directories, links and the file system's own tables hold; the blocks of
//! regular files stay unread, and so do most of the indexes of them. What could go wrong: a name or a number in a repository is whatever
//! its writer made it, so [`check_name`] stands before every use of a name as a path.

use std::collections::{BTreeSet, HashSet};

use bytes::Bytes;
use sendstream::fold::Sink as _;
use sendstream::zpl::{NoContent, Node, Tree, TreeBuilder};
use strata::delta::{Descriptor, Extent, chain};
use strata::fold::{DataSink, Folded, Reading, fold, open_chain};
use strata::pack::FrameReader;

use super::header::StreamRules;
use super::image::ImageState;
use super::ingest::of_stream;
use super::unfold::{INDEX_MEMORY, ToStream};
use super::{Repository, of_strata};
use crate::error::{Error, Result};

/// Frames that are kept, in bytes, while a tree is read.
pub(super) const FRAME_MEMORY: usize = 16 << 20;

/// An image's files.
pub struct ImageTree {
    /// Names and attributes.
    pub tree: Tree<()>,
    /// Objects whose content isn't stored.
    pub left_out: HashSet<u64>,
    chain: Vec<Descriptor>,
}

impl ImageTree {
    /// Reads the tree of an image as it was at a delta.
    ///
    /// # Errors
    /// When the chain is broken or damaged, or it holds no file system.
    pub fn read(repository: &Repository, image: &str, delta: &str) -> Result<Self> {
        let chain = chain(&repository.strata, image, delta, None).map_err(of_strata)?;
        let newest = chain.last().ok_or_else(|| Error::failed("a chain of no deltas"))?;
        let state = ImageState::of(newest)?;
        let mut builder = TreeBuilder::new(NoContent);
        builder.begin(&state.begin.begin(None)?).map_err(of_stream)?;
        let readers = open_chain(&repository.strata, &chain, INDEX_MEMORY).map_err(of_strata)?;
        let mut frames = FrameReader::new(&repository.strata, FRAME_MEMORY);
        let mut names = Names::new(&mut builder, None);
        fold(readers, true, &StreamRules, &mut Reading::new(&mut frames, &mut names))
            .map_err(of_strata)?;
        let tree = builder.finish().map_err(of_stream)?;
        let left_out = state.left_out_objects.iter().map(|(object, _)| *object).collect();
        Ok(Self { tree, left_out, chain })
    }

    /// The deltas that it is made of, oldest first.
    #[must_use]
    pub fn chain(&self) -> &[Descriptor] {
        &self.chain
    }

    /// A file or folder.
    ///
    /// # Errors
    /// When the tree has a name of it and no more.
    pub fn node(&self, object: u64) -> Result<&Node<()>> {
        self.tree.node(object).ok_or_else(|| {
            Error::failed(format!("object {object} has a name and isn't in the repository"))
        })
    }

    /// The object at a path of names.
    #[must_use]
    pub fn find<'a>(&self, names: impl IntoIterator<Item = &'a [u8]>) -> Option<u64> {
        names.into_iter().try_fold(self.tree.root(), |folder, name| self.child(folder, name))
    }

    /// The object of a name in a folder.
    #[must_use]
    pub fn child(&self, folder: u64, name: &[u8]) -> Option<u64> {
        let children = &self.tree.node(folder)?.children;
        children.iter().find(|(known, _)| known == name).map(|(_, object)| *object)
    }
}

/// A name of the repository's as one of a file in a folder: no path, no way out of the folder.
///
/// # Errors
/// When it is none.
pub fn check_name(name: &[u8]) -> Result<()> {
    let is_name =
        !matches!(name, b"" | b"." | b"..") && !name.iter().any(|c| matches!(c, b'/' | 0));
    if is_name {
        return Ok(());
    }
    Err(Error::failed(format!("\"{}\" in the repository is no file's name", name.escape_ascii()))
        .with_hint("nothing of that name is written; whoever can write to the repository made it"))
}

/// Gives the builder what it looks at: of regular files nothing but their headers.
pub(super) struct Names<'a> {
    to: ToStream<'a, TreeBuilder<NoContent>>,
    /// None: all.
    wanted: Option<&'a BTreeSet<u64>>,
}

impl<'a> Names<'a> {
    pub(super) fn new(
        builder: &'a mut TreeBuilder<NoContent>,
        wanted: Option<&'a BTreeSet<u64>>,
    ) -> Self {
        Self { to: ToStream::new(builder, true), wanted }
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
        self.to.sink.needs_content()
    }

    fn data(&mut self, object: u64, offset: u64, content: &[u8]) -> strata::Result<()> {
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
