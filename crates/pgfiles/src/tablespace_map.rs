//! `tablespace_map`: where the tablespaces of a base backup are.
//!
//! When PostgreSQL starts with a `backup_label`, it recreates the links of `pg_tblspc` from this file and removes the
//! file. So with a wrong path, the restored cluster writes into somebody else's tablespace. Each line is an OID, one
//! space, the path, a newline. A path may itself contain newlines, so PostgreSQL escapes with a backslash: carriage
//! returns and newlines up to 13, and from 14 on backslashes too (`do_pg_backup_start`, `xlog.c`;
//! `read_tablespace_map`, `xlogrecovery.c`).

mod error;

pub use error::TablespaceMapError;

use crate::lsn::{digits, excerpt};
use std::collections::BTreeSet;

/// The content of a `tablespace_map`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct TablespaceMap {
    /// In the file's order.
    pub entries: Vec<TablespaceMapEntry>,
}

/// One tablespace.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TablespaceMapEntry {
    /// Its OID, the name of its link in `pg_tblspc`.
    pub oid: u32,
    /// The link's target: bytes, as in any path, never empty, without NUL.
    pub path: Vec<u8>,
}

/// Bytes of a line that PostgreSQL reads; it truncates longer ones silently (`MAXPGPATH` minus the final NUL).
const MAX_LINE: usize = 1023;

impl TablespaceMapEntry {
    /// Makes an entry that PostgreSQL reads as intended.
    ///
    /// # Errors
    /// If the OID is 0, the path is empty or contains NUL, or OID, space and path are longer than 1023 bytes.
    pub fn new(oid: u32, path: Vec<u8>) -> Result<Self, TablespaceMapError> {
        if oid == 0 || path.is_empty() || path.contains(&0) {
            return Err(TablespaceMapError::InvalidEntry { oid, path: excerpt(&path) });
        }
        let length = oid.to_string().len() + 1 + path.len();
        if length > MAX_LINE {
            return Err(TablespaceMapError::TooLong { oid, length });
        }
        Ok(TablespaceMapEntry { oid, path })
    }

    /// Returns the path, for use with `std::fs`.
    #[cfg(unix)]
    pub fn to_path_buf(&self) -> std::path::PathBuf {
        use std::os::unix::ffi::OsStrExt;
        std::ffi::OsStr::from_bytes(&self.path).into()
    }
}

/// Which bytes of a path are escaped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dialect {
    /// PostgreSQL 13: `\n` and `\r`.
    Old,
    /// PostgreSQL 14 on: `\n`, `\r` and the backslash.
    Current,
}

impl TablespaceMap {
    /// Reads a file of PostgreSQL 14 or later.
    ///
    /// # Errors
    /// If a line isn't an OID, a space and a path that [`TablespaceMapEntry::new`] would accept, an OID occurs twice,
    /// or the file ends within a line.
    pub fn parse(bytes: &[u8]) -> Result<Self, TablespaceMapError> {
        parse(bytes, Dialect::Current)
    }

    /// Reads a file of PostgreSQL 13, which doesn't escape backslashes.
    ///
    /// # Errors
    /// Like [`TablespaceMap::parse`].
    pub fn parse_13(bytes: &[u8]) -> Result<Self, TablespaceMapError> {
        parse(bytes, Dialect::Old)
    }

    /// Returns the file for PostgreSQL 14 or later, byte for byte as it writes it.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.write(Dialect::Current)
    }

    /// Returns the file for PostgreSQL 13.
    ///
    /// # Errors
    /// If a path ends with a backslash or begins with white space, because that version can't express it.
    pub fn to_bytes_13(&self) -> Result<Vec<u8>, TablespaceMapError> {
        let bytes = self.write(Dialect::Old);
        if Self::parse_13(&bytes).as_ref() == Ok(self) {
            return Ok(bytes);
        }
        let unsayable = |entry: &&TablespaceMapEntry| {
            let one = TablespaceMap { entries: vec![(*entry).clone()] };
            Self::parse_13(&one.write(Dialect::Old)).as_ref() != Ok(&one)
        };
        let path = self
            .entries
            .iter()
            .find(unsayable)
            .map(|entry| excerpt(&entry.path))
            .unwrap_or_default();
        Err(TablespaceMapError::NotWritable { path })
    }

    /// Returns the entry of a tablespace.
    pub fn get(&self, oid: u32) -> Option<&TablespaceMapEntry> {
        self.entries.iter().find(|entry| entry.oid == oid)
    }

    fn write(&self, dialect: Dialect) -> Vec<u8> {
        let mut bytes = Vec::new();
        for entry in &self.entries {
            bytes.extend_from_slice(entry.oid.to_string().as_bytes());
            bytes.push(b' ');
            for &byte in &entry.path {
                if matches!(byte, b'\n' | b'\r') || (byte == b'\\' && dialect == Dialect::Current) {
                    bytes.push(b'\\');
                }
                bytes.push(byte);
            }
            bytes.push(b'\n');
        }
        bytes
    }
}

fn parse(bytes: &[u8], dialect: Dialect) -> Result<TablespaceMap, TablespaceMapError> {
    let mut entries = Vec::new();
    let mut seen = BTreeSet::new();
    let mut line = Vec::new();
    let mut line_offset = 0;
    let mut position = 0;
    while let Some(&byte) = bytes.get(position) {
        let following = bytes.get(position + 1).copied();
        let escape = byte == b'\\'
            && match dialect {
                Dialect::Old => matches!(following, Some(b'\n' | b'\r')),
                Dialect::Current => true,
            };
        match (escape, byte) {
            (true, _) => {
                line.push(following.ok_or(TablespaceMapError::Truncated { offset: line_offset })?);
                position += 2;
            }
            // Since 14, `read_tablespace_map` skips an empty line, so that lines may end with both.
            (false, b'\n' | b'\r') if line.is_empty() && dialect == Dialect::Current => {
                position += 1;
                line_offset = position;
            }
            (false, b'\n' | b'\r') => {
                let entry = entry(&line, line_offset, dialect)?;
                if !seen.insert(entry.oid) {
                    return Err(TablespaceMapError::Duplicate {
                        oid: entry.oid,
                        offset: line_offset,
                    });
                }
                entries.push(entry);
                line.clear();
                position += 1;
                line_offset = position;
            }
            (false, byte) => {
                line.push(byte);
                position += 1;
            }
        }
    }
    if line_offset < bytes.len() {
        return Err(TablespaceMapError::Truncated { offset: line_offset });
    }
    Ok(TablespaceMap { entries })
}

fn entry(
    line: &[u8],
    offset: usize,
    dialect: Dialect,
) -> Result<TablespaceMapEntry, TablespaceMapError> {
    let invalid = || TablespaceMapError::InvalidLine { line: excerpt(line), offset };
    let space = line.iter().position(|&b| b == b' ').ok_or_else(invalid)?;
    let (oid, path) = line.split_at(space);
    let oid = std::str::from_utf8(oid).ok().and_then(digits).ok_or_else(invalid)?;
    let oid = u32::try_from(oid).map_err(|_| invalid())?;
    let path = match dialect {
        // In 13, sscanf's "%s %n" ends the OID.
        Dialect::Old => path.trim_ascii_start(),
        Dialect::Current => path.strip_prefix(b" ").ok_or_else(invalid)?,
    };
    TablespaceMapEntry::new(oid, path.to_vec()).map_err(|error| match error {
        TablespaceMapError::InvalidEntry { .. } => invalid(),
        other => other,
    })
}

#[cfg(test)]
mod tests;
