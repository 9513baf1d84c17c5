//! Why a `tablespace_map` was refused, with the line and the place, so that a person can look.

/// Why a `tablespace_map` was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TablespaceMapError {
    /// Not an OID, a space and a path.
    #[error("invalid line \"{line}\" in tablespace_map at offset \"{offset}\"")]
    InvalidLine {
        /// The line's beginning.
        line: String,
        /// Where the line begins, in bytes from the file's beginning.
        offset: usize,
    },
    /// A tablespace can't have the OID 0, and a path can't be empty or contain NUL.
    #[error("tablespace \"{oid}\" cannot be at \"{path}\"")]
    InvalidEntry {
        /// The tablespace.
        oid: u32,
        /// The path's beginning.
        path: String,
    },
    /// PostgreSQL would truncate the path.
    #[error(
        "the path of tablespace \"{oid}\" makes a line of \"{length}\" bytes in tablespace_map, at most 1023 are possible"
    )]
    TooLong {
        /// The tablespace.
        oid: u32,
        /// Bytes of the line, without escapes.
        length: usize,
    },
    /// Two lines for one tablespace.
    #[error("tablespace \"{oid}\" is in tablespace_map twice, again at offset \"{offset}\"")]
    Duplicate {
        /// The tablespace.
        oid: u32,
        /// Where the second line begins.
        offset: usize,
    },
    /// The file ends within a line.
    #[error("tablespace_map ends within the line at offset \"{offset}\"")]
    Truncated {
        /// Where the line begins.
        offset: usize,
    },
    /// PostgreSQL 13's format can't express this path.
    #[error(
        "the tablespace path \"{path}\" cannot be written into a tablespace_map of PostgreSQL 13"
    )]
    NotWritable {
        /// The path's beginning.
        path: String,
    },
}
