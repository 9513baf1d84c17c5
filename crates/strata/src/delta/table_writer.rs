//! Writes one table of the index: rows into row groups of bounded size, row groups into files of bounded number.
//!
//! Files are written to a temporary file first, so that an upload can be tried again. Each row group's bytes are
//! hashed; the hashes are in the footer (key `strata.groups`), and the footer's hash is in the descriptor. So a reader
//! checks every byte without reading a file twice.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use parquet::basic::{Compression, Encoding, LogicalType, Repetition, Type as Physical, ZstdLevel};
use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterPropertiesPtr};
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::types::{ColumnPath, Type, TypePtr};

use super::descriptor::IndexFile;
use super::rows::{Cell, Column, Kind, Row};
use super::writer::IndexOptions;
use crate::error::{Error, Result};
use crate::repository::Repository;

/// Rows of a data page, which is what a reader holds of each column.
const PAGE_ROWS: usize = 2048;
/// Key of the row groups' hashes in the footer.
pub(crate) const GROUPS: &str = "strata.groups";

/// The Parquet writer's target: a temporary file that is hashed as it is written.
struct Spool {
    file: BufWriter<File>,
    hasher: blake3::Hasher,
    length: u64,
}

#[derive(Clone)]
struct Shared(Arc<Mutex<Spool>>);

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Spool> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let mut spool = self.lock();
        let written = spool.file.write(bytes)?;
        spool.hasher.update(&bytes[..written]);
        spool.length += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.lock().file.flush()
    }
}

struct OpenFile {
    writer: SerializedFileWriter<Shared>,
    spool: Shared,
    groups: Vec<String>,
    rows: u64,
}

/// A column's values of the current row group.
#[derive(Default)]
struct Buffer {
    numbers: Vec<i64>,
    bytes: Vec<ByteArray>,
    levels: Vec<i16>,
}

/// Writes a table.
pub(super) struct TableWriter<R> {
    repository: Repository,
    folder: String,
    /// The files' common name, without the part that differs.
    stem: String,
    options: IndexOptions,
    properties: WriterPropertiesPtr,
    schema: TypePtr,
    buffers: Vec<Buffer>,
    rows: usize,
    /// Bytes of the opaque columns in the current row group.
    bytes: usize,
    open: Option<OpenFile>,
    files: Vec<IndexFile>,
    row: std::marker::PhantomData<R>,
}

impl<R: Row> TableWriter<R> {
    pub(super) fn new(
        repository: &Repository,
        image: &str,
        stem: &str,
        options: &IndexOptions,
    ) -> Result<TableWriter<R>> {
        let object = format!("{stem}.{}.parquet", R::TABLE);
        let failed = |error| index_error(&object, error);
        Ok(TableWriter {
            repository: repository.clone(),
            folder: repository.image_path(image, ""),
            stem: stem.to_string(),
            options: options.clone(),
            properties: properties(R::COLUMNS).map_err(failed)?,
            schema: schema(R::TABLE, R::COLUMNS).map_err(failed)?,
            buffers: R::COLUMNS.iter().map(|_| Buffer::default()).collect(),
            rows: 0,
            bytes: 0,
            open: None,
            files: Vec::new(),
            row: std::marker::PhantomData,
        })
    }

    /// Adds a row. The caller keeps the order.
    pub(super) fn push(&mut self, row: &R) -> Result<()> {
        let (mut buffers, mut opaque) = (self.buffers.iter_mut(), 0);
        row.cells(&mut |cell| {
            let Some(buffer) = buffers.next() else {
                return;
            };
            buffer.levels.push(if cell == Cell::Null { 0 } else { 1 });
            match cell {
                Cell::Null => {}
                // The column is declared as unsigned.
                Cell::Number(number) => buffer.numbers.push(number as i64),
                Cell::Bytes(bytes) => {
                    opaque += bytes.len();
                    buffer.bytes.push(bytes.to_vec().into());
                }
                Cell::Pack(pack) => buffer.bytes.push(pack.to_text().to_vec().into()),
            }
        });
        self.bytes += opaque;
        self.rows += 1;
        if self.rows >= self.options.group_rows || self.bytes >= self.options.group_bytes {
            self.end_group()?;
        }
        Ok(())
    }

    fn end_group(&mut self) -> Result<()> {
        if self.rows == 0 {
            return Ok(());
        }
        let name = self.next_name();
        let mut open = match self.open.take() {
            Some(open) => open,
            None => self.open_file(&name)?,
        };
        let failed = |error| index_error(&name, error);
        let mut group = open.writer.next_row_group().map_err(failed)?;
        for ((_, kind), buffer) in R::COLUMNS.iter().zip(&mut self.buffers) {
            write_column(&mut group, *kind, buffer).map_err(failed)?;
            buffer.numbers.clear();
            buffer.bytes.clear();
            buffer.levels.clear();
        }
        group.close().map_err(failed)?;
        open.writer.flush().map_err(|source| Error::Spool { verb: "write", source })?;
        open.rows += self.rows as u64;
        (self.rows, self.bytes) = (0, 0);
        {
            let mut spool = open.spool.lock();
            open.groups.push(format!("{}:{}", spool.length, spool.hasher.finalize().to_hex()));
            spool.hasher.reset();
        }
        if open.groups.len() >= self.options.file_groups {
            self.end_file(open)?;
        } else {
            self.open = Some(open);
        }
        Ok(())
    }

    /// Returns `<stem>.extents.parquet`, then `<stem>.extents.1.parquet` and so on.
    fn next_name(&self) -> String {
        match self.files.len() {
            0 => format!("{}.{}.parquet", self.stem, R::TABLE),
            number => format!("{}.{}.{number}.parquet", self.stem, R::TABLE),
        }
    }

    fn open_file(&self, name: &str) -> Result<OpenFile> {
        let file = spool_file(&self.options.spool)
            .map_err(|source| Error::Spool { verb: "create", source })?;
        let spool = Shared(Arc::new(Mutex::new(Spool {
            file: BufWriter::with_capacity(64 << 10, file),
            hasher: blake3::Hasher::new(),
            length: 0,
        })));
        let writer =
            SerializedFileWriter::new(spool.clone(), self.schema.clone(), self.properties.clone())
                .map_err(|error| index_error(name, error))?;
        Ok(OpenFile { writer, spool, groups: Vec::new(), rows: 0 })
    }

    /// Writes the footer and uploads the file.
    fn end_file(&mut self, mut open: OpenFile) -> Result<()> {
        let name = self.next_name();
        let failed = |error| index_error(&name, error);
        let footer = open.spool.lock().length;
        let groups = KeyValue::new(GROUPS.to_string(), open.groups.join(" "));
        open.writer.append_key_value_metadata(groups);
        open.writer.close().map_err(failed)?;
        let mut spool = open.spool.lock();
        spool.file.flush().map_err(|source| Error::Spool { verb: "write", source })?;
        let (size, blake3) = (spool.length, spool.hasher.finalize().to_hex().to_string());
        let path = format!("{}{name}", self.folder);
        self.repository.store().put_file(&path, spool.file.get_mut(), size)?;
        self.files.push(IndexFile { name, size, rows: open.rows, footer, blake3 });
        Ok(())
    }

    /// Uploads what is left; returns the files, in order.
    pub(super) fn finish(mut self) -> Result<Vec<IndexFile>> {
        self.end_group()?;
        // A table without rows is still written as a file, so that a folder of them can be read as one table.
        let open = match self.open.take() {
            Some(open) => Some(open),
            None if self.files.is_empty() => Some(self.open_file(&self.next_name())?),
            None => None,
        };
        if let Some(open) = open {
            self.end_file(open)?;
        }
        Ok(self.files)
    }
}

fn spool_file(folder: &Option<PathBuf>) -> std::io::Result<File> {
    match folder {
        Some(folder) => tempfile::tempfile_in(folder),
        None => tempfile::tempfile(),
    }
}

fn write_column<W: Write + Send>(
    group: &mut SerializedRowGroupWriter<'_, W>,
    kind: Kind,
    buffer: &Buffer,
) -> Result<(), ParquetError> {
    let Some(mut column) = group.next_column()? else {
        return Err(ParquetError::General("the schema has fewer columns than the row".to_string()));
    };
    match kind {
        Kind::Number | Kind::Ascending => {
            column.typed::<Int64Type>().write_batch(&buffer.numbers, None, None)?;
        }
        Kind::OptionalNumber => {
            column.typed::<Int64Type>().write_batch(&buffer.numbers, Some(&buffer.levels), None)?;
        }
        Kind::OptionalText | Kind::OptionalBytes => {
            column.typed::<ByteArrayType>().write_batch(
                &buffer.bytes,
                Some(&buffer.levels),
                None,
            )?;
        }
    }
    column.close()
}

fn properties(columns: &[Column]) -> Result<WriterPropertiesPtr, ParquetError> {
    let mut builder = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(3)?))
        .set_created_by("strata 1".to_string())
        .set_data_page_row_count_limit(PAGE_ROWS)
        .set_write_batch_size(PAGE_ROWS)
        .set_dictionary_page_size_limit(64 << 10)
        .set_statistics_enabled(EnabledStatistics::None)
        .set_offset_index_disabled(true);
    for (name, kind) in columns {
        let path = ColumnPath::from(*name);
        match kind {
            Kind::Ascending => {
                builder = builder
                    .set_column_dictionary_enabled(path.clone(), false)
                    .set_column_encoding(path, Encoding::DELTA_BINARY_PACKED);
            }
            Kind::OptionalBytes => {
                builder = builder
                    .set_column_dictionary_enabled(path.clone(), false)
                    .set_column_encoding(path, Encoding::PLAIN);
            }
            _ => {}
        }
    }
    // Lets a reader skip row groups of other objects.
    builder = builder.set_column_statistics_enabled("object".into(), EnabledStatistics::Chunk);
    Ok(Arc::new(builder.build()))
}

/// Returns the table's schema.
pub(super) fn schema(table: &str, columns: &[Column]) -> Result<TypePtr, ParquetError> {
    let fields = columns
        .iter()
        .map(|(name, kind)| {
            let (physical, logical, repetition) = match kind {
                Kind::Number | Kind::Ascending => {
                    (Physical::INT64, Some(unsigned()), Repetition::REQUIRED)
                }
                Kind::OptionalNumber => (Physical::INT64, Some(unsigned()), Repetition::OPTIONAL),
                Kind::OptionalText => {
                    (Physical::BYTE_ARRAY, Some(LogicalType::String), Repetition::OPTIONAL)
                }
                Kind::OptionalBytes => (Physical::BYTE_ARRAY, None, Repetition::OPTIONAL),
            };
            Type::primitive_type_builder(name, physical)
                .with_logical_type(logical)
                .with_repetition(repetition)
                .build()
                .map(Arc::new)
        })
        .collect::<Result<Vec<_>, _>>()?;
    Ok(Arc::new(Type::group_type_builder(table).with_fields(fields).build()?))
}

fn unsigned() -> LogicalType {
    LogicalType::integer(64, false)
}

fn index_error(object: &str, error: ParquetError) -> Error {
    Error::Index { object: object.to_string(), source: Box::new(error) }
}
