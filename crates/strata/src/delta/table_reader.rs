//! Reads one table of the index in order: one or a few row groups of bytes, and one page of each column, at a time.
//!
//! A file's footer holds the least and the greatest object of each row group, so a reader can go to an object without
//! reading what comes before it. What could go wrong: rows that are wanted are passed over and lost silently. So the
//! footer's numbers must ascend, and the rows that are read must be between them. If a file lacks these numbers,
//! nothing of it is passed over.

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
use parquet::file::statistics::Statistics;

use super::descriptor::IndexFile;
use super::rows::{Cell, Column, Kind, Row};
use super::table_writer::GROUPS;
use crate::error::{Error, Result};
use crate::repository::Repository;

/// Rows that are decoded at a time.
const BATCH: usize = 256;
/// A row group with at most this many rows is decoded at once, one column after another: a column that is being read
/// has a decompressor of its own, which takes more memory than that many values. Most increments have no larger row
/// group.
const FEW: usize = 4096;
const ENDS_EARLY: &str = "a column ends early";
/// A file of up to this size is read whole, though only a part of it may be wanted.
const SMALL: u64 = 256 << 10;

/// Some bytes of a file, with their offset.
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
    /// The least and the greatest object in it, if the footer has them.
    objects: Option<(u64, u64)>,
}

struct OpenFile {
    /// Its place among the table's files.
    number: usize,
    path: String,
    metadata: ParquetMetaData,
    groups: Vec<Group>,
    window: Window,
}

/// The row from which a table's rows are wanted.
#[derive(Clone, Copy, Debug)]
pub(crate) enum From {
    /// From the last row of this object or of one before it.
    AtOrBefore(u64),
    /// From the first row of this object or of one after it.
    AtOrAfter(u64),
}

/// A column's values that are decoded but not in a row yet.
#[derive(Default)]
struct Values {
    numbers: Vec<i64>,
    bytes: Vec<ByteArray>,
    levels: Vec<i16>,
    taken: Taken,
}

/// How many of a column's values, and of its levels, are already in a row.
#[derive(Clone, Copy, Default)]
struct Taken {
    values: usize,
    levels: usize,
}

impl Values {
    fn clear(&mut self) {
        self.numbers.clear();
        self.bytes.clear();
        self.levels.clear();
        self.taken = Taken::default();
    }

    /// Frees the memory that a row group with few rows took.
    fn shrink(&mut self) {
        self.clear();
        self.numbers.shrink_to(BATCH);
        self.bytes.shrink_to(BATCH);
        self.levels.shrink_to(BATCH);
    }
}

/// Reads a table.
pub(crate) struct TableReader<R> {
    repository: Repository,
    folder: String,
    files: Vec<IndexFile>,
    read_ahead: u64,
    /// The file that was read last.
    open: Option<OpenFile>,
    /// The file and the row group to read next.
    next: (usize, usize),
    /// Whether nothing was passed over just before these; if so, more of what follows is read in the same call.
    in_order: bool,
    columns: Vec<ColumnReader>,
    values: Vec<Values>,
    /// Rows of the row group that are in no batch yet.
    left: usize,
    /// How many of them have decoded values.
    decoded: usize,
    batch: VecDeque<R>,
}

impl<R: Row> TableReader<R> {
    /// Makes a reader of these files, in order; it reads up to `read_ahead` bytes (or one row group) in a call to the
    /// store.
    pub(crate) fn new(
        repository: &Repository,
        image: &str,
        files: &[IndexFile],
        read_ahead: u64,
    ) -> TableReader<R> {
        TableReader {
            repository: repository.clone(),
            folder: repository.image_path(image, ""),
            files: files.to_vec(),
            read_ahead,
            open: None,
            next: (0, 0),
            in_order: true,
            columns: Vec::new(),
            values: R::COLUMNS.iter().map(|_| Values::default()).collect(),
            left: 0,
            decoded: 0,
            batch: VecDeque::new(),
        }
    }

    /// Returns the next row.
    pub(crate) fn next(&mut self) -> Result<Option<R>> {
        while self.batch.is_empty() {
            if self.left > 0 {
                self.next_batch()?;
            } else if !self.next_group()? {
                return Ok(None);
            }
        }
        Ok(self.batch.pop_front())
    }

    /// Goes back to before the first row. The file that was read last stays open.
    pub(crate) fn rewind(&mut self) {
        self.go_to((0, 0));
    }

    /// Passes over row groups before the wanted ones, never back. Returns whether a row group follows.
    pub(crate) fn seek(&mut self, from: From) -> Result<bool> {
        if self.next.0 >= self.files.len() {
            return Ok(false);
        }
        self.in_order = false;
        let file = self.file_of(from)?;
        let groups = &self.open(file)?.groups;
        let group = match from {
            From::AtOrBefore(object) => groups
                .partition_point(|group| group.objects.is_some_and(|(least, _)| least <= object))
                .saturating_sub(1),
            From::AtOrAfter(object) => groups.partition_point(|group| {
                group.objects.is_some_and(|(_, greatest)| greatest < object)
            }),
        };
        if (file, group) < self.next {
            return Ok(false);
        }
        self.go_to((file, group));
        self.in_order = false;
        Ok(true)
    }

    /// Returns the file that holds the first wanted row, as far as the footers tell.
    fn file_of(&mut self, from: From) -> Result<usize> {
        // Files before `low` are too early; those from `high` on are too late.
        let (mut low, mut high) = (self.next.0, self.files.len());
        let open = self.open.as_ref().filter(|open| open.number >= low);
        if let Some((number, (least, greatest))) =
            open.and_then(|open| Some((open.number, open.objects()?)))
        {
            let is_here = match from {
                From::AtOrBefore(object) => (least..=greatest).contains(&object),
                From::AtOrAfter(object) => (least < object || number == low) && object <= greatest,
            };
            if is_here {
                return Ok(number);
            }
        }
        while high - low > 1 {
            match from {
                From::AtOrBefore(object) => {
                    let probe = low + (high - low) / 2;
                    let objects = self.open(probe)?.objects();
                    let is_early = objects.is_some_and(|(least, _)| least <= object);
                    if is_early { low = probe } else { high = probe }
                }
                From::AtOrAfter(object) => {
                    let probe = low + (high - low - 1) / 2;
                    let objects = self.open(probe)?.objects();
                    let is_early = objects.is_some_and(|(_, greatest)| greatest < object);
                    if is_early { low = probe + 1 } else { high = probe + 1 }
                }
            }
        }
        Ok(low)
    }

    fn go_to(&mut self, place: (usize, usize)) {
        self.next = place;
        self.in_order = true;
        self.columns.clear();
        self.values.iter_mut().for_each(Values::shrink);
        self.batch.clear();
        (self.left, self.decoded) = (0, 0);
    }

    /// Opens the next row group; returns false if there is none.
    fn next_group(&mut self) -> Result<bool> {
        self.columns.clear();
        self.values.iter_mut().for_each(Values::shrink);
        while self.next.0 < self.files.len() {
            let (file, group) = self.next;
            if group >= self.open(file)?.groups.len() {
                self.next = (file + 1, 0);
                continue;
            }
            let read_ahead = if self.in_order { self.read_ahead } else { 0 };
            let Some(open) = &mut self.open else {
                return Ok(false);
            };
            let bytes = open.group(group, &self.repository, read_ahead)?;
            let at = bytes.start;
            let metadata = open.metadata.row_group(group);
            let failed = |error| unreadable(&open.path, at, error);
            let rows = usize::try_from(metadata.num_rows()).unwrap_or(0);
            let chunk = Arc::new(bytes);
            let columns = metadata.columns().iter().take(R::COLUMNS.len());
            let columns = columns.map(|column| {
                let pages = SerializedPageReader::new(chunk.clone(), column, rows, None)?;
                Ok(get_column_reader(column.column_descr_ptr(), Box::new(pages)))
            });
            self.decoded = 0;
            if rows <= FEW {
                for ((column, values), (_, kind)) in columns.zip(&mut self.values).zip(R::COLUMNS) {
                    let read = read_column(&mut column.map_err(failed)?, *kind, rows, values);
                    if read.map_err(failed)? != rows {
                        return Err(Error::damaged(&open.path, at, ENDS_EARLY));
                    }
                }
                self.decoded = rows;
            } else {
                self.columns = columns.collect::<Result<_, ParquetError>>().map_err(failed)?;
            }
            self.next = (file, group + 1);
            self.in_order = true;
            self.left = rows;
            return Ok(true);
        }
        Ok(false)
    }

    /// Returns the `number`th file, opened.
    fn open(&mut self, number: usize) -> Result<&OpenFile> {
        if self.open.as_ref().is_none_or(|open| open.number != number) {
            // Drop the old one before opening the new one.
            self.open = None;
            self.open = Some(self.open_file(number)?);
        }
        self.open.as_ref().ok_or_else(|| Error::damaged(&self.folder, 0, "a table has no file"))
    }

    fn open_file(&self, number: usize) -> Result<OpenFile> {
        let Some(file) = self.files.get(number) else {
            return Err(Error::damaged(&self.folder, 0, "a table has fewer files than it says"));
        };
        let path = format!("{}{}", self.folder, file.name);
        let damaged = |why: &str| Error::damaged(&path, file.footer, why);
        // Read a small file whole.
        let whole = if self.in_order { self.read_ahead } else { self.read_ahead.min(SMALL) };
        let start = if file.size <= whole { 0 } else { file.footer };
        let window = Window { start, bytes: self.repository.read(&path, start..file.size)? };
        let footer = window.slice(file.footer..file.size).unwrap_or_default();
        if *blake3::hash(&footer).to_hex() != *file.blake3 {
            return Err(damaged("its footer's hash is wrong"));
        }
        // The metadata is followed by its length (4 bytes) and "PAR1".
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
        let known: Vec<_> = groups.iter().filter_map(|group| group.objects).collect();
        let ascend = known.is_sorted_by(|(_, before), (after, _)| before <= after);
        if !ascend || known.iter().any(|(least, greatest)| least > greatest) {
            return Err(damaged("its row groups are out of order"));
        }
        Ok(OpenFile { number, path, metadata, groups, window })
    }

    /// Makes rows of the decoded values; decodes more when they are used up.
    fn next_batch(&mut self) -> Result<()> {
        let group = self.next.1.saturating_sub(1);
        let (path, at, objects) = match &self.open {
            Some(open) => {
                let group = open.groups.get(group);
                let objects = group.and_then(|group| group.objects);
                (open.path.clone(), group.map_or(0, |group| group.range.start), objects)
            }
            None => (String::new(), 0, None),
        };
        if self.decoded == 0 {
            let want = self.left.min(BATCH);
            for ((column, values), (_, kind)) in
                self.columns.iter_mut().zip(&mut self.values).zip(R::COLUMNS)
            {
                values.clear();
                let read = read_column(column, *kind, want, values);
                if read.map_err(|error| unreadable(&path, at, error))? != want {
                    return Err(Error::damaged(&path, at, ENDS_EARLY));
                }
            }
            self.decoded = want;
        }
        let rows = self.decoded.min(BATCH);
        let mut taken: Vec<Taken> = self.values.iter().map(|values| values.taken).collect();
        let mut cells = Vec::with_capacity(R::COLUMNS.len());
        for _ in 0..rows {
            cells.clear();
            for (((_, kind), values), taken) in R::COLUMNS.iter().zip(&self.values).zip(&mut taken)
            {
                cells.push(cell(*kind, values, taken));
            }
            if let (Some((least, greatest)), Some(Cell::Number(object))) = (objects, cells.first())
                && !(least..=greatest).contains(object)
            {
                return Err(Error::damaged(&path, at, "a row doesn't belong to its row group"));
            }
            let row = R::of(&cells);
            self.batch.push_back(row.ok_or_else(|| {
                Error::damaged(&path, at, format!("a row isn't valid in \"{}\"", R::TABLE))
            })?);
        }
        self.values.iter_mut().zip(taken).for_each(|(values, taken)| values.taken = taken);
        self.left -= rows;
        self.decoded -= rows;
        Ok(())
    }
}

impl OpenFile {
    /// Returns the least and the greatest object in it, if its footer has them.
    fn objects(&self) -> Option<(u64, u64)> {
        let (first, last) = (self.groups.first()?.objects?, self.groups.last()?.objects?);
        Some((first.0, last.1))
    }

    /// Returns the bytes of a row group, checked; those that follow are read in the same call.
    fn group(&mut self, number: usize, repository: &Repository, read_ahead: u64) -> Result<Window> {
        let Some(group) = self.groups.get(number) else {
            return Err(Error::damaged(&self.path, 0, "it has fewer row groups than it says"));
        };
        let range = group.range.clone();
        let bytes = match self.window.slice(range.clone()) {
            Some(bytes) => bytes,
            None => {
                let ends = self.groups[number..].iter().map(|group| group.range.end);
                let end = ends
                    .take_while(|end| end - range.start <= read_ahead)
                    .last()
                    .unwrap_or(range.end);
                // Drop the old window before reading the new one.
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

/// Returns a column's value for the next row.
fn cell<'a>(kind: Kind, values: &'a Values, taken: &mut Taken) -> Cell<'a> {
    if is_optional(kind) {
        let level = taken.levels;
        taken.levels += 1;
        if values.levels.get(level) != Some(&1) {
            return Cell::Null;
        }
    }
    let index = taken.values;
    taken.values += 1;
    match kind {
        Kind::Number | Kind::Ascending | Kind::OptionalNumber => {
            values.numbers.get(index).map_or(Cell::Null, |number| Cell::Number(*number as u64))
        }
        Kind::OptionalText | Kind::OptionalBytes => {
            values.bytes.get(index).map_or(Cell::Null, |bytes| Cell::Bytes(bytes.data()))
        }
    }
}

/// Decodes up to `want` more rows of a column; returns how many rows there were.
fn read_column(
    column: &mut ColumnReader,
    kind: Kind,
    want: usize,
    values: &mut Values,
) -> Result<usize, ParquetError> {
    let levels = is_optional(kind).then_some(&mut values.levels);
    match column {
        ColumnReader::Int64ColumnReader(reader) => {
            read_rows(reader, want, levels, &mut values.numbers)
        }
        ColumnReader::ByteArrayColumnReader(reader) => {
            read_rows(reader, want, levels, &mut values.bytes)
        }
        _ => Err(ParquetError::General("a column of another type".to_string())),
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

/// Returns the row groups, which follow each other from the file's first byte on. Each is written as `end:hash`.
fn groups(metadata: &ParquetMetaData) -> Option<Vec<Group>> {
    let pairs = metadata.file_metadata().key_value_metadata()?;
    let text = pairs.iter().find(|pair| pair.key == GROUPS)?.value.as_deref()?;
    let mut start = 0;
    let mut groups = Vec::new();
    for (number, group) in text.split_ascii_whitespace().enumerate() {
        let (end, blake3) = group.split_once(':')?;
        let end = end.parse().ok().filter(|&end| end > start)?;
        let objects = objects_of(metadata, number);
        groups.push(Group { range: start..end, blake3: blake3.to_string(), objects });
        start = end;
    }
    Some(groups)
}

/// Returns the least and the greatest object of a row group.
fn objects_of(metadata: &ParquetMetaData, group: usize) -> Option<(u64, u64)> {
    let column = metadata.row_groups().get(group)?.columns().first()?;
    let Some(Statistics::Int64(numbers)) = column.statistics() else {
        return None;
    };
    // The column is declared as unsigned.
    Some((*numbers.min_opt()? as u64, *numbers.max_opt()? as u64))
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
