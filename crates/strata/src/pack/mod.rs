//! Packs: frames one after another, nothing between them, under `packs/<ULID>`.

mod ahead;
mod compressor;
mod pool;
mod reader;
mod resume;
mod windows;
mod writer;

pub(crate) use ahead::Ahead;
pub use reader::{FrameReader, walk};
pub use writer::{PackOptions, PackWriter, Packed, Placed};

use crate::id::Ulid;

/// Where some bytes are: in which frame, and where in its content.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Location {
    /// The pack.
    pub pack: Ulid,
    /// The frame's offset in it.
    pub frame: u64,
    /// The frame's length in it.
    pub frame_length: u64,
    /// Where the bytes begin in the frame's content.
    pub start: u64,
    /// How many bytes there are.
    pub size: u64,
}
