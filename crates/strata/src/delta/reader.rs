//! Reads a delta's index in order, from the beginning or from a given object.

use super::descriptor::Descriptor;
use super::rows::{ExtentRow, PackRow};
use super::table_reader::{From, TableReader};
use super::{Delta, Entry, Extent};
use crate::error::{Error, Result};
use crate::repository::Repository;

/// How an index is read.
#[derive(Clone, Copy, Debug)]
pub struct ReadOptions {
    /// Bytes of each table that are read in one call to the store; at least one row group.
    pub read_ahead: u64,
}

impl Default for ReadOptions {
    fn default() -> ReadOptions {
        ReadOptions { read_ahead: 256 << 10 }
    }
}

/// Reads a delta.
pub struct DeltaReader {
    descriptor: Descriptor,
    /// Path of the extents, for errors.
    path: String,
    objects: TableReader<Entry>,
    extents: TableReader<ExtentRow>,
    entry: Option<Entry>,
    extent: Option<ExtentRow>,
    is_begun: bool,
    /// The extents were skipped: they are read again when those of an entry are wanted.
    is_behind: bool,
}

impl DeltaReader {
    /// Opens a delta; nothing is read yet.
    pub fn new(repository: &Repository, descriptor: Descriptor, options: ReadOptions) -> Self {
        let image = &descriptor.image;
        let first = descriptor.extents.first().map_or("", |file| &file.name);
        DeltaReader {
            path: repository.image_path(image, first),
            objects: TableReader::new(repository, image, &descriptor.objects, options.read_ahead),
            extents: TableReader::new(repository, image, &descriptor.extents, options.read_ahead),
            entry: None,
            extent: None,
            is_begun: false,
            is_behind: false,
            descriptor,
        }
    }

    /// Goes back to before the first entry. For each table, the file that was read last stays open.
    pub fn rewind(&mut self) {
        self.objects.rewind();
        self.extents.rewind();
        (self.entry, self.extent) = (None, None);
        (self.is_begun, self.is_behind) = (false, false);
    }

    /// Returns the descriptor of the delta that it reads.
    pub fn descriptor(&self) -> &Descriptor {
        &self.descriptor
    }

    fn advance_extent(&mut self) -> Result<()> {
        let last = self.extent.take();
        self.extent = self.extents.next()?;
        let is_later = match (&last, &self.extent) {
            (Some(last), Some(extent)) if last.object == extent.object => {
                extent.extent.offset >= last.extent.end()
            }
            (Some(last), Some(extent)) => extent.object > last.object,
            _ => true,
        };
        if is_later { Ok(()) } else { Err(self.disorder("its extents are out of order")) }
    }

    fn disorder(&self, why: &str) -> Error {
        Error::damaged(&self.path, 0, why)
    }
}

impl Delta for DeltaReader {
    fn entry(&self) -> Option<&Entry> {
        self.entry.as_ref()
    }

    fn next_entry(&mut self) -> Result<()> {
        if !self.is_begun {
            self.is_begun = true;
            self.advance_extent()?;
        } else if self.entry.is_none() {
            return Ok(());
        }
        while !self.is_behind && self.extent().is_some() {
            self.advance_extent()?;
        }
        let last = self.entry.take();
        self.entry = self.objects.next()?;
        if let (Some(last), Some(entry)) = (&last, &self.entry)
            && entry.object() < last.end()
        {
            return Err(self.disorder("its objects are out of order"));
        }
        if self.is_behind {
            return Ok(());
        }
        // An extent that no entry claims would be lost silently.
        let stray = match (&self.entry, &self.extent) {
            (Some(Entry::Changed(change)), Some(extent)) => extent.object < change.object,
            (Some(entry), Some(extent)) => extent.object < entry.end(),
            (None, Some(_)) => true,
            (_, None) => false,
        };
        if stray { Err(self.disorder("an extent's object is not in the delta")) } else { Ok(()) }
    }

    fn extent(&self) -> Option<&Extent> {
        let Some(Entry::Changed(change)) = &self.entry else {
            return None;
        };
        self.extent.as_ref().filter(|row| row.object == change.object).map(|row| &row.extent)
    }

    fn next_extent(&mut self) -> Result<()> {
        if self.extent().is_some() {
            self.advance_extent()?;
        }
        Ok(())
    }

    fn seek(&mut self, object: u64) -> Result<()> {
        self.is_behind = true;
        if self.objects.seek(From::AtOrBefore(object))? || !self.is_begun {
            self.is_begun = true;
            self.entry = self.objects.next()?;
        }
        Ok(())
    }

    fn leave_extents(&mut self) {
        self.is_behind = true;
    }

    fn meet_extents(&mut self) -> Result<()> {
        let Some(entry) = self.entry.as_ref().filter(|_| self.is_behind) else {
            return Ok(());
        };
        let object = entry.object();
        self.is_behind = false;
        if self.extent.as_ref().is_none_or(|row| row.object < object) {
            self.extents.seek(From::AtOrAfter(object))?;
            self.extent = None;
            loop {
                self.advance_extent()?;
                if self.extent.as_ref().is_none_or(|row| row.object >= object) {
                    break;
                }
            }
        }
        Ok(())
    }
}

/// Passes each pack that a delta's extents refer to to `each`, in ascending order.
pub fn packs(
    repository: &Repository,
    descriptor: &Descriptor,
    mut each: impl FnMut(PackRow) -> Result<()>,
) -> Result<()> {
    let options = ReadOptions::default();
    let mut reader: TableReader<PackRow> =
        TableReader::new(repository, &descriptor.image, &descriptor.packs, options.read_ahead);
    while let Some(row) = reader.next()? {
        each(row)?;
    }
    Ok(())
}
