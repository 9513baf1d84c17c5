//! The file system inside a stream: names and attributes from objects.
//!
//! Feed objects to a [`TreeBuilder`] (it is a [`fold::Sink`](crate::fold::Sink), so one stream or a whole chain will
//! do), then [`finish`](TreeBuilder::finish) it into a [`Tree`].

mod attributes;
mod builder;
mod sa;
mod tree;
mod zap;
mod znode;

pub use attributes::{Attributes, FileType, Timestamp};
pub use builder::{ContentVisitor, NoContent, TreeBuilder};
pub use sa::{AttributeTables, decode as decode_attributes};
pub use tree::{Children, Entry, Node, Run, Tree, XattrValue};
pub use zap::{SparseContent, Zap, ZapValue};
