//! Compares what goes by with a volume's tags, and records its own tags.

use std::ops::{Range, RangeInclusive};

use polyval::Polyval;
use polyval::universal_hash::UniversalHash;
use redb::{ReadableTable, Table, TableDefinition, WriteTransaction};

use super::{PAGE, Stored, Tags, boxed, failed};
use crate::error::Result;
use crate::repository::header::ObjectHeader;

/// The number of tags in a row. Two rows fill a page of the file.
const ROW: u64 = 120;
/// The size of a tag, in bytes. All zeros means unknown.
const TAG: usize = 16;

/// Files, by object number.
const FILES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("files");
/// Tags, by object and row number.
const TAGS: TableDefinition<'_, (u64, u64), &[u8]> = TableDefinition::new("tags");

/// What the tags say about a page in the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    /// It is the same.
    Same,
    /// It is a different one.
    Different,
    /// Unknown.
    Nothing,
}

/// Tags that are compared with what goes by, and rewritten.
pub struct Passed<'t> {
    files: Table<'t, u64, &'static [u8]>,
    tags: Table<'t, (u64, u64), &'static [u8]>,
    key: Polyval,
    /// The current object, if it has tags.
    object: Option<u64>,
    row: Option<Row>,
}

struct Row {
    object: u64,
    number: u64,
    tags: Vec<u8>,
    is_changed: bool,
}

impl<'t> Passed<'t> {
    /// Opens them to be recorded in `transaction`.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn open(tags: &Tags, transaction: &'t WriteTransaction) -> Result<Self> {
        let open = || -> Stored<Self> {
            Ok(Self {
                files: transaction.open_table(FILES).map_err(boxed)?,
                tags: transaction.open_table(TAGS).map_err(boxed)?,
                key: Polyval::new(&tags.about.key.into()),
                object: None,
                row: None,
            })
        };
        open().map_err(|e| failed("opened", &tags.path, e))
    }

    /// Called when an object begins, of which nothing after `tail` counts; returns whether its content gets tags.
    ///
    /// # Errors
    /// When the file can't be read or written. The same holds for the methods below.
    pub fn object(
        &mut self,
        object: u64,
        header: Option<&ObjectHeader>,
        tail: Option<u64>,
    ) -> Stored<bool> {
        self.close_row()?;
        self.object = None;
        let large = header.filter(|header| u64::from(header.object.block_size) > PAGE);
        let Some(file) = large.and_then(file) else {
            self.drop_objects(object..=object)?;
            return Ok(false);
        };
        let before = self.files.get(object).map_err(boxed)?;
        let is_same = before.map(|before| before.value() == file);
        if is_same == Some(false) {
            self.drop_objects(object..=object)?;
        }
        if is_same != Some(true) {
            self.files.insert(object, &*file).map_err(boxed)?;
        }
        self.object = Some(object);
        if let Some(tail) = tail {
            self.unknown(tail, u64::MAX)?;
        }
        Ok(true)
    }

    /// Called for content whose pages aren't compared: from here on nothing is known of this object.
    pub fn other(&mut self, object: u64) -> Stored<()> {
        self.close_row()?;
        self.object = None;
        self.drop_objects(object..=object)
    }

    /// Compares the pages of a block at `offset` and keeps their tags.
    pub fn block(&mut self, offset: u64, bytes: &[u8]) -> Stored<Vec<Known>> {
        let Some(object) = self.object.filter(|_| offset.is_multiple_of(PAGE)) else {
            self.unknown(offset, bytes.len() as u64)?;
            return Ok(vec![Known::Nothing; bytes.len().div_ceil(PAGE as usize)]);
        };
        let mut known = Vec::with_capacity(bytes.len().div_ceil(PAGE as usize));
        for (number, content) in (offset / PAGE..).zip(bytes.chunks(PAGE as usize)) {
            // The last page of a file's only block may be shorter; it has no tag.
            let is_page = content.len() as u64 == PAGE;
            let tag = if is_page { self.tag(content) } else { [0; TAG] };
            let row = self.row(object, number / ROW)?;
            let at = (number % ROW) as usize * TAG;
            let Some(place) = row.tags.get_mut(at..at + TAG) else { continue };
            known.push(match &*place {
                before if before == [0; TAG] => Known::Nothing,
                before if before == tag => Known::Same,
                _ => Known::Different,
            });
            if *place != tag {
                place.copy_from_slice(&tag);
                row.is_changed = true;
            }
        }
        Ok(known)
    }

    fn tag(&self, page: &[u8]) -> [u8; TAG] {
        let mut hash = self.key.clone();
        hash.update_padded(page);
        let mut tag: [u8; TAG] = hash.finalize().into();
        if tag == [0; TAG] {
            // The tag of a page of zeros, under any key.
            tag[0] = 1;
        }
        tag
    }

    /// Called for a range of the object about which nothing is known.
    pub fn unknown(&mut self, offset: u64, length: u64) -> Stored<()> {
        let Some(object) = self.object.filter(|_| length > 0) else { return Ok(()) };
        let first = offset / PAGE;
        let end = offset.saturating_add(length).div_ceil(PAGE);
        // Rows that disappear completely, and the affected parts of the rows around them.
        let rows = first.div_ceil(ROW)..end / ROW;
        if rows.start < rows.end {
            self.close_row()?;
            let keys = (object, rows.start)..(object, rows.end);
            self.tags.retain_in(keys, |_, _| false).map_err(boxed)?;
        }
        let parts: [Range<u64>; 2] = if rows.start > rows.end {
            [first..end, 0..0]
        } else {
            [first..rows.start * ROW, rows.end * ROW..end]
        };
        for pages in parts.into_iter().filter(|pages| !pages.is_empty()) {
            let row = self.row(object, pages.start / ROW)?;
            let at = |page: u64| (page % ROW) as usize * TAG;
            let until = at(pages.end - 1) + TAG;
            if let Some(gone) = row.tags.get_mut(at(pages.start)..until) {
                gone.fill(0);
                row.is_changed = true;
            }
        }
        Ok(())
    }

    /// Called for objects that are gone.
    pub fn freed(&mut self, first: u64, count: u64) -> Stored<()> {
        self.close_row()?;
        self.drop_objects(first..=first.saturating_add(count.saturating_sub(1)))
    }

    /// Finishes: everything that went by is recorded.
    pub fn finish(mut self) -> Stored<()> {
        self.close_row()
    }

    fn drop_objects(&mut self, objects: RangeInclusive<u64>) -> Stored<()> {
        let keys = (*objects.start(), 0)..=(*objects.end(), u64::MAX);
        self.files.retain_in(objects, |_, _| false).map_err(boxed)?;
        self.tags.retain_in(keys, |_, _| false).map_err(boxed)
    }

    /// Returns a row of an object, in memory.
    fn row(&mut self, object: u64, number: u64) -> Stored<&mut Row> {
        let is_at_hand =
            self.row.as_ref().is_some_and(|row| (row.object, row.number) == (object, number));
        if !is_at_hand {
            self.close_row()?;
            let mut tags = vec![0; ROW as usize * TAG];
            if let Some(row) = self.tags.get((object, number)).map_err(boxed)?
                && let Some(known) = tags.get_mut(..row.value().len())
            {
                known.copy_from_slice(row.value());
            }
            self.row = Some(Row { object, number, tags, is_changed: false });
        }
        let row = self.row.as_mut();
        row.ok_or_else(|| boxed(std::io::Error::other("no row at hand")))
    }

    fn close_row(&mut self) -> Stored<()> {
        let Some(row) = self.row.take().filter(|row| row.is_changed) else { return Ok(()) };
        let key = (row.object, row.number);
        let used = row.tags.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        match row.tags.get(..used.next_multiple_of(TAG)) {
            Some(tags) if !tags.is_empty() => drop(self.tags.insert(key, tags).map_err(boxed)?),
            _ => drop(self.tags.remove(key).map_err(boxed)?),
        }
        Ok(())
    }
}

/// Returns what has to be the same for a file to be the same as before. A file without a generation never is.
fn file(header: &ObjectHeader) -> Option<Vec<u8>> {
    let generation = header.generation()?;
    let object = &header.object;
    let mut bytes = Vec::with_capacity(32);
    for number in [object.kind, object.bonus_type, object.bonus_len, object.block_size] {
        bytes.extend(number.to_le_bytes());
    }
    bytes.extend(object.slots().to_le_bytes());
    bytes.extend(generation.to_le_bytes());
    Some(bytes)
}
