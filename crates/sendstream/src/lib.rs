#![doc = include_str!("../README.md")]
// Input from outside is never trusted: if it is wrong, the result is an error that says what it was.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod bytes;
mod checksum;
mod compress;
mod error;
mod feature;
pub mod fold;
#[cfg(feature = "zstd")]
pub mod input;
#[cfg(feature = "listing")]
pub mod listing;
mod nvlist;
mod order;
pub mod pages;
mod reader;
pub mod record;
pub mod stat;
mod writer;
pub mod zpl;

pub use bytes::ByteOrder;
pub use checksum::Fletcher4;
pub use compress::{Compression, Decompressor};
pub use error::{Error, ErrorKind, Place, Result};
pub use feature::Features;
pub use nvlist::{NvList, Value};
pub use order::OrderCheck;
pub use reader::{ReadOptions, Reader, Record};
pub use writer::Writer;
