//! `pg_filenode.map`: the files of those catalogs whose place can't be looked up in a catalog (`relmapper.c`).
//!
//! ```text
//! 0    4: magic number 0x592717
//! 4    4: how many mappings
//! 8    8 each: OID of the catalog, number of its file; room for 62 (to version 15) or 64 (from 16 on)
//! …    4: CRC-32C of all before; to version 15 four more bytes follow
//! ```

use std::fmt;

const MAGIC: u32 = 0x0059_2717;
const MAPPINGS: usize = 8;
/// The file's length and the CRC's offset: up to version 15, and from 16 on.
const FORMS: [(usize, usize); 2] = [(512, 504), (524, 520)];

/// Why a relation map was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RelationMapError {
    /// Its length is that of no version.
    #[error("the relation map is \"{length}\" bytes long, expected 512 or 524")]
    Length {
        /// Its length.
        length: usize,
    },
    /// It doesn't begin like one.
    #[error("the relation map's magic number is \"{found:#x}\", expected \"{MAGIC:#x}\"")]
    Magic {
        /// What is there.
        found: u32,
    },
    /// It is damaged.
    #[error("the relation map's CRC is \"{stored:#x}\", computed \"{computed:#x}\"")]
    Crc {
        /// What it says.
        stored: u32,
        /// What it should say.
        computed: u32,
    },
    /// It has more mappings than there is room for.
    #[error("the relation map has \"{count}\" mappings, but there is room for {most}")]
    Count {
        /// How many it says it has.
        count: u32,
        /// How many there is room for.
        most: usize,
    },
}

/// A relation map.
#[derive(Clone, PartialEq, Eq)]
pub struct RelationMap {
    mappings: Vec<(u32, u32)>,
}

impl RelationMap {
    /// Reads a whole file.
    pub fn parse(bytes: &[u8]) -> Result<RelationMap, RelationMapError> {
        let length = bytes.len();
        let form = FORMS.iter().find(|(known, _)| *known == length);
        let &(_, crc_at) = form.ok_or(RelationMapError::Length { length })?;
        let number = |at: usize| {
            let raw = bytes.get(at..at + 4).and_then(|raw| raw.try_into().ok());
            raw.map_or(0, u32::from_le_bytes)
        };
        if number(0) != MAGIC {
            return Err(RelationMapError::Magic { found: number(0) });
        }
        let (stored, computed) = (number(crc_at), crc32c::crc32c(&bytes[..crc_at]));
        if stored != computed {
            return Err(RelationMapError::Crc { stored, computed });
        }
        let (count, most) = (number(4), (crc_at - MAPPINGS) / 8);
        let count = usize::try_from(count)
            .ok()
            .filter(|count| *count <= most)
            .ok_or(RelationMapError::Count { count, most })?;
        let mapping = |n: usize| (number(MAPPINGS + 8 * n), number(MAPPINGS + 8 * n + 4));
        Ok(RelationMap { mappings: (0..count).map(mapping).collect() })
    }

    /// Returns the number of the file that holds a catalog, by the catalog's OID.
    pub fn file_of(&self, catalog: u32) -> Option<u32> {
        self.mappings.iter().find(|(oid, _)| *oid == catalog).map(|(_, file)| *file)
    }
}

impl fmt::Debug for RelationMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.mappings.iter().copied()).finish()
    }
}
