//! The heap of `pg_database`: names and OIDs of databases, read without a server (`bufpage.h`, `itemid.h`,
//! `htup_details.h`, `pg_database.h`).
//!
//! Which version of a row is visible depends on the state of transactions, which is stored elsewhere. So every version
//! is returned: those of databases that were renamed or dropped are included until they are vacuumed away, and a
//! database that was created after the last checkpoint may be only in the WAL. OID and name have been the first two
//! columns, of fixed width and never null, since version 12.

use std::collections::BTreeSet;

use crate::numbers::{number_16, number_32};

/// OID of `pg_database` in the [relation map](crate::relation_map) of `global`.
pub const PG_DATABASE: u32 = 1262;
/// OIDs from here on belong to what users created (`transam.h`, FirstNormalObjectId).
pub const FIRST_NORMAL_OID: u32 = 16384;

const PAGE_HEADER: usize = 24;
const LINE_POINTER: usize = 4;
/// A line pointer's state: it points to a tuple.
const NORMAL: u32 = 1;
const TUPLE_HEADER: usize = 23;
const NAME: usize = 64;

/// Why a heap was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DatabaseCatalogError {
    /// The first page's header has an impossible page size, or the heap ends within a page.
    #[error("the heap of pg_database is \"{length}\" bytes long, in pages of \"{page_size}\"")]
    PageSize {
        /// The heap's length.
        length: usize,
        /// What the first page says.
        page_size: usize,
    },
    /// A page's header is impossible.
    #[error("page \"{page}\" of pg_database's heap has an invalid header")]
    Page {
        /// The page's number.
        page: usize,
    },
    /// A tuple is outside its page or holds no name.
    #[error("tuple \"{tuple}\" of page \"{page}\" of pg_database's heap is invalid")]
    Tuple {
        /// The page's number.
        page: usize,
        /// The tuple's number, counted from 1.
        tuple: usize,
    },
}

/// A version of a database's row.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DatabaseRow {
    /// Its OID: the name of its folder in `base`.
    pub oid: u32,
    /// Its name, in the encoding in which it was created.
    pub name: Vec<u8>,
}

/// Returns all versions of all rows of a heap, each pair of OID and name once.
pub fn databases(heap: &[u8]) -> Result<BTreeSet<DatabaseRow>, DatabaseCatalogError> {
    let mut rows = BTreeSet::new();
    if heap.is_empty() {
        return Ok(rows);
    }
    // Page size and layout version share a field: the version is below 256.
    let page_size = usize::from(number_16(heap, 18).unwrap_or(0) & 0xff00);
    let length = heap.len();
    if !page_size.is_power_of_two() || page_size < 1024 || !length.is_multiple_of(page_size) {
        return Err(DatabaseCatalogError::PageSize { length, page_size });
    }
    for (number, page) in heap.chunks_exact(page_size).enumerate() {
        read_page(number, page, &mut rows)?;
    }
    Ok(rows)
}

fn read_page(
    number: usize,
    page: &[u8],
    rows: &mut BTreeSet<DatabaseRow>,
) -> Result<(), DatabaseCatalogError> {
    let lower = usize::from(number_16(page, 12).unwrap_or(0));
    let upper = usize::from(number_16(page, 14).unwrap_or(0));
    if upper == 0 && page.iter().all(|byte| *byte == 0) {
        // It was added to the file, and nothing was written yet.
        return Ok(());
    }
    if lower < PAGE_HEADER || lower > upper || upper > page.len() {
        return Err(DatabaseCatalogError::Page { page: number });
    }
    let pointers = page[PAGE_HEADER..lower].chunks_exact(LINE_POINTER);
    for (index, pointer) in pointers.enumerate() {
        let pointer = number_32(pointer, 0).unwrap_or(0);
        // 15 bits of offset, 2 of state, 15 of length.
        let (offset, state, length) = (pointer & 0x7fff, pointer >> 15 & 3, pointer >> 17);
        if state != NORMAL {
            continue;
        }
        let strange = DatabaseCatalogError::Tuple { page: number, tuple: index + 1 };
        let tuple = (offset as usize).checked_add(length as usize);
        let tuple = tuple.and_then(|end| page.get(offset as usize..end));
        rows.insert(tuple.and_then(read_tuple).ok_or(strange)?);
    }
    Ok(())
}

fn read_tuple(tuple: &[u8]) -> Option<DatabaseRow> {
    let data = usize::from(*tuple.get(22)?);
    let columns = tuple.get(data..).filter(|_| data >= TUPLE_HEADER)?;
    let oid = number_32(columns, 0)?;
    let name = columns.get(4..4 + NAME)?;
    let name = name.split(|byte| *byte == 0).next().filter(|name| !name.is_empty())?;
    (oid != 0).then(|| DatabaseRow { oid, name: name.to_vec() })
}
