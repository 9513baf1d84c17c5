//! Decompression of blocks, each with the framing that ZFS gives it (OpenZFS `module/zfs/zio_compress.c`).
//!
//! ZFS rounds compressed blocks up to whole sectors, so the input may be longer than the compressed data.

mod framed;
mod simple;

use crate::error::{Error, ErrorKind, Result};

/// How a block is compressed (`enum zio_compress`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Compression {
    /// Not compressed.
    Off,
    /// LZJB, the oldest.
    Lzjb,
    /// zlib.
    Gzip,
    /// Runs of zeros.
    Zle,
    /// LZ4.
    Lz4,
    /// Zstandard.
    Zstd,
}

impl Compression {
    /// Converts a record's field; 0 means a record that isn't compressed.
    pub fn from_raw(raw: u8) -> Option<Compression> {
        Some(match raw {
            0 | 2 => Compression::Off,
            3 => Compression::Lzjb,
            5..=13 => Compression::Gzip,
            14 => Compression::Zle,
            15 => Compression::Lz4,
            16 => Compression::Zstd,
            _ => return None,
        })
    }

    /// Returns its name as in the property `compression`.
    pub fn name(self) -> &'static str {
        match self {
            Compression::Off => "off",
            Compression::Lzjb => "lzjb",
            Compression::Gzip => "gzip",
            Compression::Zle => "zle",
            Compression::Lz4 => "lz4",
            Compression::Zstd => "zstd",
        }
    }
}

/// Decompresses blocks, and keeps what it can reuse between them.
#[derive(Default)]
pub struct Decompressor {
    output: Vec<u8>,
    #[cfg(feature = "zstd")]
    zstd: framed::Zstd,
}

impl std::fmt::Debug for Decompressor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Decompressor")
            .field("capacity", &self.output.capacity())
            .finish_non_exhaustive()
    }
}

impl Decompressor {
    /// A new one.
    pub fn new() -> Decompressor {
        Decompressor::default()
    }

    /// Decompresses a block that is `length` bytes long when decompressed, at most 16 MiB.
    pub fn decompress(&mut self, raw: u8, input: &[u8], length: usize) -> Result<&[u8]> {
        self.decompress_padded(raw, input, length, length)
    }

    /// Does the same, and pads the result with zeros up to `padded`.
    pub(crate) fn decompress_padded(
        &mut self,
        raw: u8,
        input: &[u8],
        length: usize,
        padded: usize,
    ) -> Result<&[u8]> {
        let Some(algorithm) = Compression::from_raw(raw) else {
            return Err(Error::new(ErrorKind::NoDecompressor { algorithm: "unknown" }));
        };
        if length as u64 > crate::record::MAX_BLOCK {
            let limit = crate::record::MAX_BLOCK;
            return Err(Error::new(ErrorKind::TooLarge {
                what: "a block",
                limit,
                found: length as u64,
            }));
        }
        self.output.clear();
        self.output.resize(length, 0);
        let output = &mut self.output[..];
        let outcome = match algorithm {
            Compression::Off => match input.get(..length) {
                Some(whole) => {
                    output.copy_from_slice(whole);
                    Ok(())
                }
                None => Err("it is shorter than its length".to_string()),
            },
            Compression::Lzjb => simple::lzjb(input, output),
            Compression::Zle => simple::zle(input, output),
            #[cfg(feature = "gzip")]
            Compression::Gzip => framed::gzip(input, output),
            #[cfg(feature = "lz4")]
            Compression::Lz4 => framed::lz4(input, output),
            #[cfg(feature = "zstd")]
            Compression::Zstd => self.zstd.decompress(input, output),
            #[allow(
                unreachable_patterns,
                reason = "all of them, or none, by the features of the build"
            )]
            other => {
                return Err(Error::new(ErrorKind::NoDecompressor { algorithm: other.name() }));
            }
        };
        match outcome {
            Ok(()) => {
                self.output.resize(padded.max(length), 0);
                Ok(&self.output)
            }
            Err(why) => Err(Error::new(ErrorKind::Decompress { algorithm: algorithm.name(), why })),
        }
    }
}
