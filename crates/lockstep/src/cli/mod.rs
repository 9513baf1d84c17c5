//! The command line.

pub mod stream;
