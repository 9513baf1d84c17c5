//! What can be wrong with a stream: the place, what was expected, and what to do about it.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::feature::Features;

/// The result of most functions in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Where in the input an error was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Byte offset of the record's header from the start of the input.
    pub offset: u64,
    /// Index of the record; the first BEGIN is 0.
    pub record: u64,
}

/// An error with its place in the stream, if it has one.
#[derive(Debug)]
pub struct Error {
    file: Option<PathBuf>,
    place: Option<Place>,
    kind: Box<ErrorKind>,
}

/// What went wrong.
#[derive(Debug)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Reading the input or writing the output failed.
    Io(io::Error),
    /// The input ends inside a record, or before the END record.
    Truncated {
        /// What the bytes would have been.
        wanted: &'static str,
        /// How many bytes were needed.
        needed: u64,
        /// How many there were.
        got: u64,
    },
    /// The input doesn't begin with a BEGIN record.
    NotAStream {
        /// The eight bytes where the magic number should be.
        magic: u64,
    },
    /// A checksum in the stream differs from that of the bytes read.
    Checksum {
        /// Which one.
        what: &'static str,
        /// The checksum of the bytes that were read.
        computed: [u64; 4],
        /// The checksum that the stream carries.
        stored: [u64; 4],
    },
    /// The stream uses features that this crate refuses or doesn't know.
    Features(Features),
    /// A record type that is refused by name.
    RefusedRecord(&'static str),
    /// A package of several streams.
    Package {
        /// How many streams the package says it holds, where it says so.
        streams: Option<u64>,
    },
    /// Bytes after the END record.
    Trailing,
    /// A field has a value that no sender writes.
    Invalid {
        /// The record and field.
        what: &'static str,
        /// What a valid value is.
        expected: &'static str,
        /// What was found.
        found: u64,
    },
    /// A record comes before one that it must follow.
    Order {
        /// Kind of the record.
        what: &'static str,
        /// Object and offset of the record.
        found: (u64, u64),
        /// The least object and offset that could have come here.
        expected: (u64, u64),
    },
    /// A packed name-value list that can't be read.
    NvList(&'static str),
    /// A block that can't be decompressed.
    Decompress {
        /// The algorithm.
        algorithm: &'static str,
        /// Why.
        why: String,
    },
    /// A block compressed with an algorithm that this build leaves out or that is unknown.
    NoDecompressor {
        /// The algorithm.
        algorithm: &'static str,
    },
    /// An object of the file system inside is invalid.
    Object {
        /// Its number.
        object: u64,
        /// What is wrong.
        why: String,
    },
    /// A stream that doesn't follow the one before it.
    Chain {
        /// What is wrong.
        why: String,
    },
    /// A request that is impossible with an encrypted (raw) stream.
    Raw {
        /// What was requested.
        what: &'static str,
    },
    /// A limit of this crate was exceeded.
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// The limit.
        limit: u64,
        /// The size found.
        found: u64,
    },
    /// Something that a caller's own [`Delta`](crate::fold::Delta) or [`Sink`](crate::fold::Sink) reports.
    Other(Box<dyn std::error::Error + Send + Sync>),
}

impl Error {
    /// Makes an error without a place.
    pub fn new(kind: ErrorKind) -> Error {
        Error { file: None, place: None, kind: Box::new(kind) }
    }

    /// Wraps a caller's own error.
    pub fn other(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
        Error::new(ErrorKind::Other(error.into()))
    }

    /// Makes an error about an invalid object.
    pub fn object(object: u64, why: impl Into<String>) -> Error {
        Error::new(ErrorKind::Object { object, why: why.into() })
    }

    /// Adds a place to the error; an existing place is kept.
    pub fn at(mut self, offset: u64, record: u64) -> Error {
        self.place.get_or_insert(Place { offset, record });
        self
    }

    /// Adds a file to the error; an existing file is kept.
    pub fn in_file(mut self, file: &Path) -> Error {
        self.file.get_or_insert_with(|| file.to_owned());
        self
    }

    /// Returns where it is.
    pub fn place(&self) -> Option<Place> {
        self.place
    }

    /// Returns what it is.
    pub fn kind(&self) -> &ErrorKind {
        &self.kind
    }

    /// Returns what to do about it, if there is something.
    pub fn hint(&self) -> Option<&'static str> {
        Some(match *self.kind {
            ErrorKind::Package { .. } => {
                "send each dataset and snapshot by itself: without -R, and with -i in place of -I"
            }
            ErrorKind::NotAStream { .. } => {
                "is it the output of `zfs send`, and not compressed with anything but zstd?"
            }
            ErrorKind::Features(features) if features.contains(Features::REDACTED) => {
                "a redacted stream has holes where data was; send the snapshot itself"
            }
            ErrorKind::Features(features) if features.contains(Features::DEDUP) => {
                "deduplicated streams (zfs send -D) were abandoned by OpenZFS 2.0; `zstream redup` makes a plain one"
            }
            ErrorKind::RefusedRecord("WRITE_BYREF") => {
                "deduplicated streams (zfs send -D) were abandoned by OpenZFS 2.0; `zstream redup` makes a plain one"
            }
            ErrorKind::RefusedRecord("REDACT") => {
                "a redacted stream has holes where data was; send the snapshot itself"
            }
            ErrorKind::Raw { .. } => {
                "a raw stream (zfs send -w) can only be stored and received as it is; send without -w"
            }
            ErrorKind::Trailing => {
                "if the file contains several streams, put each into its own file"
            }
            ErrorKind::Chain { .. } => {
                "give one full stream first, then its incrementals, oldest first"
            }
            ErrorKind::NoDecompressor { .. } => {
                "send without -c, or build with this compression's feature"
            }
            ErrorKind::Truncated { .. } => "the stream was cut off; send it again",
            _ => return None,
        })
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.file {
            write!(f, "\"{}\": ", file.display())?;
        }
        match &*self.kind {
            ErrorKind::Io(_) => write!(f, "cannot read or write the stream")?,
            ErrorKind::Truncated { wanted, needed, got } => write!(
                f,
                "the stream ends within {wanted}: {needed} bytes are needed, {got} are left"
            )?,
            ErrorKind::NotAStream { magic } => write!(
                f,
                "not a ZFS send stream: expected the magic number 0x2f5bacbac, found {magic:#x}"
            )?,
            ErrorKind::Checksum { what, computed, stored } => write!(
                f,
                "the {what} checksum is wrong: the bytes give {:x}/{:x}/{:x}/{:x}, the stream says {:x}/{:x}/{:x}/{:x}",
                computed[0],
                computed[1],
                computed[2],
                computed[3],
                stored[0],
                stored[1],
                stored[2],
                stored[3]
            )?,
            ErrorKind::Features(features) => {
                write!(f, "the stream uses features that are refused: {features}")?
            }
            ErrorKind::RefusedRecord(name) => {
                write!(f, "the stream holds a {name} record, which is refused")?
            }
            ErrorKind::Package { streams: Some(streams) } => {
                write!(f, "this is a package of {streams} streams (zfs send -R, -I or -p)")?
            }
            ErrorKind::Package { streams: None } => {
                write!(f, "this is a package of several streams (zfs send -R or -I)")?
            }
            ErrorKind::Trailing => write!(f, "there are bytes after the END record")?,
            ErrorKind::Invalid { what, expected, found } => {
                write!(f, "{what} is \"{found}\" where {expected} was expected")?
            }
            ErrorKind::Order { what, found, expected } => write!(
                f,
                "{what} for object {} at offset {} comes too late: object {} at offset {} or later was expected",
                found.0, found.1, expected.0, expected.1
            )?,
            ErrorKind::NvList(why) => write!(f, "cannot read a name-value list: {why}")?,
            ErrorKind::Decompress { algorithm, why } => {
                write!(f, "cannot decompress a {algorithm} block: {why}")?
            }
            ErrorKind::NoDecompressor { algorithm } => {
                write!(f, "no decompressor for \"{algorithm}\"")?
            }
            ErrorKind::Object { object, why } => write!(f, "object {object}: {why}")?,
            ErrorKind::Chain { why } => write!(f, "{why}")?,
            ErrorKind::Raw { what } => write!(f, "cannot {what} an encrypted stream")?,
            ErrorKind::TooLarge { what, limit, found } => {
                write!(f, "{what} is {found} bytes, more than the limit of {limit}")?
            }
            ErrorKind::Other(error) => write!(f, "{error}")?,
        }
        match self.place {
            Some(place) => write!(f, " (record {} at byte {})", place.record, place.offset),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &*self.kind {
            ErrorKind::Io(error) => Some(error),
            ErrorKind::Other(error) => error.source(),
            _ => None,
        }
    }
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Error {
        Error::new(ErrorKind::Io(error))
    }
}
