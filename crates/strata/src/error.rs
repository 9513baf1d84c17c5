//! What can go wrong: what, with which value, and what to do about it.

use std::io;

use crate::store::StoreError;

/// The result of most functions in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of the repository.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A call to the store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An object's bytes aren't those that were written.
    #[error("object \"{object}\" is damaged at byte {at}: {why}")]
    Damaged {
        /// The object's path in the repository.
        object: String,
        /// The byte offset in it.
        at: u64,
        /// What is wrong.
        why: String,
    },
    /// An entry or extent that doesn't come after the previous one.
    #[error("{what} for object {object} at {offset} comes too late: {expected}")]
    Order {
        /// What came: `an entry`, `an extent`.
        what: &'static str,
        /// The object.
        object: u64,
        /// The offset in it, 0 for an entry.
        offset: u64,
        /// What could have come here.
        expected: String,
    },
    /// Deltas that don't follow each other.
    #[error("the deltas of image \"{image}\" do not form a chain: {why}")]
    Chain {
        /// The image.
        image: String,
        /// What is wrong.
        why: String,
    },
    /// An object of a whole image that no delta has a header for.
    #[error("object {object} has content but no header in any of the deltas")]
    NoHeader {
        /// Its number.
        object: u64,
    },
    /// An invalid value from outside.
    #[error("{what} \"{value}\" is not {expected}")]
    Invalid {
        /// What the value is for.
        what: &'static str,
        /// The value.
        value: String,
        /// What a valid one is.
        expected: &'static str,
    },
    /// The repository, or an object of it, was written by a newer version.
    #[error("object \"{object}\" has format {found}, the newest known is {known}")]
    Format {
        /// The object's path.
        object: String,
        /// Its format.
        found: u32,
        /// The newest that this crate reads.
        known: u32,
    },
    /// A sealed frame or a document with a code, but no key was given or the key is another one.
    #[error("object \"{object}\" is sealed at byte {at}, and {why}")]
    Sealed {
        /// The object's path.
        object: String,
        /// Where the frame begins; 0 for a document.
        at: u64,
        /// `no key was given`, `the key does not open it`.
        why: &'static str,
    },
    /// Somebody else holds the lease.
    #[error("lease \"{what}\" is held by \"{owner}\" until {until} (Unix time)")]
    Leased {
        /// The lease.
        what: String,
        /// Who holds it.
        owner: String,
        /// When it expires unless it is renewed.
        until: u64,
    },
    /// This process held the lease and has lost it.
    #[error("lease \"{what}\" was lost to \"{owner}\"")]
    LeaseLost {
        /// The lease.
        what: String,
        /// Who has it.
        owner: String,
    },
    /// Writing or reading a temporary file failed.
    #[error("cannot {verb} a temporary file")]
    Spool {
        /// `create`, `write`, `read`.
        verb: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// An index file that can't be written.
    #[error("cannot write the index \"{object}\"")]
    Index {
        /// The object's path.
        object: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A manifest or descriptor that is larger than any that is read.
    #[error("\"{object}\" isn't written, because it could not be read again: {why}")]
    TooLarge {
        /// The object's path.
        object: String,
        /// Its size.
        why: String,
    },
    /// The system starts no thread: a limit of memory or of processes.
    #[error("the system starts no more threads")]
    Thread {
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Random bytes are needed for a name, and the system has none.
    #[error("the system gives no random bytes: {0}")]
    Random(String),
    /// What the caller's own rules, sink or source reported.
    #[error(transparent)]
    Caller(Box<dyn std::error::Error + Send + Sync>),
}

/// Returns the messages of an error and of all its causes, each once, in one line.
#[must_use]
pub fn with_causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let words = cause.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        next = cause.source();
    }
    text
}

impl Error {
    /// Wraps an error of the caller's own.
    pub fn caller(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
        Error::Caller(error.into())
    }

    /// Reports damage of an object.
    pub(crate) fn damaged(object: &str, at: u64, why: impl Into<String>) -> Error {
        Error::Damaged { object: object.to_string(), at, why: why.into() }
    }

    /// Returns the store path of the object that is wrong or that the store failed on.
    #[must_use]
    pub fn object(&self) -> Option<&str> {
        match self {
            Error::Store(error) => Some(&error.path),
            Error::Damaged { object, .. }
            | Error::Format { object, .. }
            | Error::Sealed { object, .. }
            | Error::TooLarge { object, .. }
            | Error::Index { object, .. } => Some(object),
            _ => None,
        }
    }

    /// Whether an object that was wanted doesn't exist.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Error::Store(error) if error.kind == crate::store::StoreErrorKind::NotFound)
    }

    /// Whether the store failed on an object, which says nothing about the object itself.
    pub fn is_store_failure(&self) -> bool {
        use crate::store::StoreErrorKind::{NotFound, TooLarge};
        matches!(self, Error::Store(error) if !matches!(error.kind, NotFound | TooLarge))
    }

    /// Returns what to do about it, if there is something.
    pub fn hint(&self) -> Option<&'static str> {
        Some(match self {
            Error::Store(error) => return error.hint(),
            Error::Damaged { .. } => {
                "check the repository to see what else is damaged; what doesn't need this object can still be restored"
            }
            Error::Order { .. } => "sort the changes by object and offset before they are written",
            Error::Chain { .. } | Error::NoHeader { .. } => {
                "a delta of the chain was deleted or belongs to another image"
            }
            Error::Format { .. } => "use the version that wrote it, or a newer one",
            Error::Sealed { .. } => "is this the key that the repository was made with?",
            Error::Leased { .. } => {
                "wait until it is done; the lease of a host that died expires by itself"
            }
            Error::LeaseLost { .. } => "was this host paused for long, or is its clock wrong?",
            // An index is written to a temporary file first.
            Error::Spool { .. } | Error::Index { .. } => {
                "is there room in the folder for temporary files (TMPDIR)?"
            }
            Error::TooLarge { .. } => {
                "it names each segment of the set's own WAL, and each file whose content is left out: take a set with less of them (after a checkpoint; with larger WAL segments; with fewer unlogged tables in a dataset)"
            }
            Error::Thread { .. } => crate::threads::LIMITS,
            _ => return None,
        })
    }
}
