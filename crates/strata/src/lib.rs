//! A block repository: images as sorted deltas, folded so that the newest wins, on any object store.
//!
//! An *image* is a set of numbered objects, each with an opaque header and blocks at offsets. A *delta* says what
//! changed in an image since another delta; one without a base holds the whole image. A delta's data is in *packs*, in
//! compressed *frames*; the delta's *index* says where each block is, sorted by object and offset. A *fold* merges the
//! indexes of a chain of deltas in one pass and reads no block data; neighbouring deltas are merged into one the same
//! way. Nothing here knows what the objects are.
//!
//! `docs/repository-format.md` describes the format of what is stored and the order in which it is stored.

// Input from outside is never trusted: if it is wrong, the result is an error that says what it was.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod check;
pub mod delta;
pub mod document;
pub mod error;
pub mod fold;
pub mod frame;
mod id;
pub mod lease;
pub mod manifest;
mod many;
pub mod pack;
pub mod repack;
mod repository;
pub mod store;
pub mod threads;

pub use error::{Error, Result};
pub use id::{Ulid, check_name};
pub use many::read_many;
pub use repository::Repository;
