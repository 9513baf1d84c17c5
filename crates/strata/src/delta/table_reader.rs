//! Reads one table of the index in order: one or a few row groups of bytes, and one page of each column, at a time.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use bytes::{Buf, Bytes};
use parquet::basic::{Repetition, Type as Physical};
use parquet::column::reader::{ColumnReader, ColumnReaderImpl, get_column_reader};
use parquet::data_type::{ByteArray, DataType};
use parquet::errors::ParquetError;
use parquet::file::metadata::{ParquetMetaData, ParquetMetaDataReader};
use parquet::file::reader::{ChunkReader, Length};
use parquet::file::serialized_reader::SerializedPageReader;

use super::descriptor::IndexFile;
use super::rows::{Cell, Column, Kind, Row};
use super::table_writer::GROUPS;
use crate::error::{Error, Result};
use crate::repository::Repository;

/// Rows that are decoded at a time.
const BATCH: usize = 256;

/// Some bytes of a file, at their place.
struct Window {
    start: u64,
    bytes: Bytes,
}

impl Window {
    fn slice(&self, range: Range<u64>) -> Option<Bytes> {
        let start = usize::try_from(range.start.checked_sub(self.start)?).ok()?;
        let end = usize::try_from(range.end.checked_sub(self.start)?).ok()?;
        (start <= end && end <= self.bytes.len()).then(|| self.bytes.slice(start..end))
    }
}

impl Length for Window {
    fn len(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }
}

impl ChunkReader for Window {
    type T = bytes::buf::Reader<Bytes>;

    fn get_read(&self, start: u64) -> Result<Self::T, ParquetError> {
        let end = self.len();
        let bytes = self.slice(start..end);
        bytes.map(Buf::reader).ok_or_else(|| ParquetError::EOF("outside its row group".into()))
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes, ParquetError> {
        let end = start.saturating_add(length as u64);
        self.slice(start..end).ok_or_else(|| ParquetError::EOF("outside its row group".into()))
    }
}

struct Group {
    range: Range<u64>,
    blake3: String,
}

struct OpenFile {
    path: String,
    metadata: ParquetMetaData,
    groups: Vec<Group>,
    next: usize,
    window: Window,
}

/// A column's values of a batch.
#[derive(Default)]
struct Values {
    numbers: Vec<i64>,
    bytes: Vec<ByteArray>,
    levels: Vec<i16>,
}

/// Reads a table.
pub(crate) struct TableReader<R> {
    repository: Repository,
    folder: String,
    files: VecDeque<IndexFile>,
    read_ahead: u64,
    open: Option<OpenFile>,
    columns: Vec<ColumnReader>,
    values: Vec<Values>,
    left: usize,
    batch: VecDeque<R>,
}

impl<R: Row> TableReader<R> {
    /// Reads files in order, up to `read_ahead` bytes (or one row group) in a call to the store.
    pub(crate) fn new(
        repository: &Repository,
        image: &str,
        files: &[IndexFile],
        read_ahead: u64,
    ) -> TableReader<R> {
        TableReader {
            repository: repository.clone(),
            folder: repository.image_path(image, ""),
            files: files.iter().cloned().collect(),
            read_ahead,
            open: None,
            columns: Vec::new(),
            values: R::COLUMNS.iter().map(|_| Values::default()).collect(),
            left: 0,
            batch: VecDeque::new(),
        }
    }

    /// The next row.
    pub(crate) fn next(&mut self) -> Result<Option<R>> {
        while self.batch.is_empty() {
            if self.left > 0 {
                self.decode()?;
            } else if !self.next_group()? {
                return Ok(None);
            }
        }
        Ok(self.batch.pop_front())
    }

    /// Opens the next row group; false where there is none.
    fn next_group(&mut self) -> Result<bool> {
        self.columns.clear();
        loop {
            if self.open.as_ref().is_none_or(|open| open.next >= open.groups.len()) {
                self.open = None;
                let Some(file) = self.files.pop_front() else {
                    return Ok(false);
                };
                self.open = Some(self.open_file(&file)?);
                continue;
            }
            let Some(open) = &mut self.open else {
                return Ok(false);
            };
            let bytes = open.group(&self.repository, self.read_ahead)?;
            let at = bytes.start;
            let group = open.metadata.row_group(open.next);
            let failed = |error| unreadable(&open.path, at, error);
            let rows = usize::try_from(group.num_rows()).unwrap_or(0);
            let chunk = Arc::new(bytes);
            for column in group.columns().iter().take(R::COLUMNS.len()) {
                let pages = SerializedPageReader::new(chunk.clone(), column, rows, None);
                let pages = Box::new(pages.map_err(failed)?);
                self.columns.push(get_column_reader(column.column_descr_ptr(), pages));
            }
            open.next += 1;
            self.left = rows;
            return Ok(true);
        }
    }

    fn open_file(&self, file: &IndexFile) -> Result<OpenFile> {
        let path = format!("{}{}", self.folder, file.name);
        let damaged = |why: &str| Error::damaged(&path, file.footer, why);
        // A small file is read at once.
        let start = if file.size <= self.read_ahead { 0 } else { file.footer };
        let window = Window { start, bytes: self.repository.read(&path, start..file.size)? };
        let footer = window.slice(file.footer..file.size).unwrap_or_default();
        if *blake3::hash(&footer).to_hex() != *file.blake3 {
            return Err(damaged("its footer's hash is wrong"));
        }
        // After the metadata its length (4 bytes) and "PAR1".
        let length = footer.len().checked_sub(8).and_then(|end| footer.get(end..end + 4));
        let length = length
            .and_then(|length| length.try_into().ok())
            .map(|length| u32::from_le_bytes(length) as usize)
            .and_then(|length| (footer.len() - 8).checked_sub(length))
            .ok_or_else(|| damaged("its footer is too short"))?;
        let metadata = ParquetMetaDataReader::decode_metadata(&footer[length..footer.len() - 8])
            .map_err(|error| unreadable(&path, file.footer, error))?;
        check_columns(&metadata, R::COLUMNS).map_err(|why| damaged(&why))?;
        let groups = groups(&metadata)
            .filter(|groups| groups.len() == metadata.num_row_groups())
            .filter(|groups| groups.last().map_or(0, |group| group.range.end) <= file.footer)
            .ok_or_else(|| damaged("its footer lacks the row groups' hashes"))?;
        Ok(OpenFile { path, metadata, groups, next: 0, window })
    }

    fn decode(&mut self) -> Result<()> {
        let want = self.left.min(BATCH);
        let (path, at) = match &self.open {
            Some(open) => {
                let group = open.next.saturating_sub(1);
                (open.path.clone(), open.groups.get(group).map_or(0, |group| group.range.start))
            }
            None => (String::new(), 0),
        };
        let failed = |error| unreadable(&path, at, error);
        for ((column, values), (_, kind)) in
            self.columns.iter_mut().zip(&mut self.values).zip(R::COLUMNS)
        {
            values.numbers.clear();
            values.bytes.clear();
            values.levels.clear();
            let levels = is_optional(*kind).then_some(&mut values.levels);
            let read = match column {
                ColumnReader::Int64ColumnReader(reader) => {
                    read_rows(reader, want, levels, &mut values.numbers)
                }
                ColumnReader::ByteArrayColumnReader(reader) => {
                    read_rows(reader, want, levels, &mut values.bytes)
                }
                _ => Err(ParquetError::General("a column of another type".to_string())),
            };
            if read.map_err(failed)? != want {
                return Err(Error::damaged(&path, at, "a column ends early"));
            }
        }
        self.left -= want;
        let mut taken = vec![0; R::COLUMNS.len()];
        let mut cells = Vec::with_capacity(R::COLUMNS.len());
        for row in 0..want {
            cells.clear();
            for (((_, kind), values), taken) in R::COLUMNS.iter().zip(&self.values).zip(&mut taken)
            {
                cells.push(cell(*kind, values, row, taken));
            }
            let row = R::of(&cells);
            self.batch.push_back(row.ok_or_else(|| {
                Error::damaged(&path, at, format!("a row is none of \"{}\"", R::TABLE))
            })?);
        }
        Ok(())
    }
}

impl OpenFile {
    /// The bytes of the next row group, checked; others that follow are read along.
    fn group(&mut self, repository: &Repository, read_ahead: u64) -> Result<Window> {
        let Some(group) = self.groups.get(self.next) else {
            return Err(Error::damaged(&self.path, 0, "it has fewer row groups than it says"));
        };
        let range = group.range.clone();
        let bytes = match self.window.slice(range.clone()) {
            Some(bytes) => bytes,
            None => {
                let ends = self.groups[self.next..].iter().map(|group| group.range.end);
                let end = ends
                    .take_while(|end| end - range.start <= read_ahead)
                    .last()
                    .unwrap_or(range.end);
                // The old window goes before the new one comes.
                self.window = Window { start: 0, bytes: Bytes::new() };
                let bytes = repository.read(&self.path, range.start..end)?;
                self.window = Window { start: range.start, bytes };
                self.window.slice(range.clone()).unwrap_or_default()
            }
        };
        if *blake3::hash(&bytes).to_hex() != *group.blake3 {
            return Err(Error::damaged(&self.path, range.start, "a row group's hash is wrong"));
        }
        Ok(Window { start: range.start, bytes })
    }
}

fn is_optional(kind: Kind) -> bool {
    !matches!(kind, Kind::Number | Kind::Ascending)
}

fn cell<'a>(kind: Kind, values: &'a Values, row: usize, taken: &mut usize) -> Cell<'a> {
    if is_optional(kind) && values.levels.get(row) != Some(&1) {
        return Cell::Null;
    }
    let index = *taken;
    *taken += 1;
    match kind {
        Kind::Number | Kind::Ascending | Kind::OptionalNumber => {
            values.numbers.get(index).map_or(Cell::Null, |number| Cell::Number(*number as u64))
        }
        Kind::OptionalText | Kind::OptionalBytes => {
            values.bytes.get(index).map_or(Cell::Null, |bytes| Cell::Bytes(bytes.data()))
        }
    }
}

fn read_rows<T: DataType>(
    reader: &mut ColumnReaderImpl<T>,
    want: usize,
    mut levels: Option<&mut Vec<i16>>,
    values: &mut Vec<T::T>,
) -> Result<usize, ParquetError> {
    let mut rows = 0;
    while rows < want {
        let (read, _, _) = reader.read_records(want - rows, levels.as_deref_mut(), None, values)?;
        if read == 0 {
            break;
        }
        rows += read;
    }
    Ok(rows)
}

/// Row groups follow each other from the file's first byte on; each is `end:hash`.
fn groups(metadata: &ParquetMetaData) -> Option<Vec<Group>> {
    let pairs = metadata.file_metadata().key_value_metadata()?;
    let text = pairs.iter().find(|pair| pair.key == GROUPS)?.value.as_deref()?;
    let mut start = 0;
    let mut groups = Vec::new();
    for group in text.split_ascii_whitespace() {
        let (end, blake3) = group.split_once(':')?;
        let end = end.parse().ok().filter(|&end| end > start)?;
        groups.push(Group { range: start..end, blake3: blake3.to_string() });
        start = end;
    }
    Some(groups)
}

fn check_columns(metadata: &ParquetMetaData, columns: &[Column]) -> Result<(), String> {
    let schema = metadata.file_metadata().schema_descr();
    for (index, (name, kind)) in columns.iter().enumerate() {
        let found = (index < schema.num_columns()).then(|| schema.column(index));
        let physical = match kind {
            Kind::OptionalText | Kind::OptionalBytes => Physical::BYTE_ARRAY,
            _ => Physical::INT64,
        };
        let is_that = found.is_some_and(|found| {
            found.path().string() == *name
                && found.physical_type() == physical
                && found.max_rep_level() == 0
                && (found.self_type().get_basic_info().repetition() == Repetition::OPTIONAL)
                    == is_optional(*kind)
        });
        if !is_that {
            return Err(format!("column {index} is not \"{name}\""));
        }
    }
    Ok(())
}

fn unreadable(path: &str, at: u64, error: ParquetError) -> Error {
    Error::damaged(path, at, format!("it cannot be read as Parquet: {error}"))
}
