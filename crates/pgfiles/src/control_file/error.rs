//! Why a `pg_control` was refused: each reason needs a different reaction from the caller.

use super::PG_CONTROL_FILE_SIZE;

/// Why a `pg_control` was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ControlFileError {
    /// Truncated, or another file.
    #[error("pg_control has \"{length}\" bytes instead of {PG_CONTROL_FILE_SIZE}")]
    WrongLength {
        /// Bytes given.
        length: usize,
    },
    /// Written by a PostgreSQL before 13 or after 18.
    #[error("unknown pg_control version \"{version}\" at offset 8 (known are 1300, 1700 and 1800)")]
    UnknownVersion {
        /// What was found.
        version: u32,
    },
    /// A big-endian machine wrote it.
    #[error("pg_control, version \"{version}\", was written on a machine of the other byte order")]
    ForeignEndianness {
        /// The version, read in that order.
        version: u32,
    },
    /// Damaged, torn by a concurrent write, or from a 32-bit machine.
    #[error("wrong CRC in pg_control: \"{stored:08X}\" is stored, \"{computed:08X}\" computed")]
    WrongCrc {
        /// The CRC in the file.
        stored: u32,
        /// The CRC of the bytes that it covers.
        computed: u32,
    },
    /// The machine that wrote it had other floating-point numbers.
    #[error(
        "pg_control was written on a machine with other floating-point numbers: \"{found}\" at offset 208"
    )]
    ForeignFloats {
        /// What was found in place of 1234567.
        found: String,
    },
    /// A value that no PostgreSQL writes, with a valid CRC.
    #[error("invalid value \"{value}\" of {field} in pg_control at offset \"{offset}\"")]
    InvalidValue {
        /// PostgreSQL's name of the field.
        field: &'static str,
        /// What was found, its first four bytes.
        value: u32,
        /// Bytes from the file's beginning.
        offset: usize,
    },
}
