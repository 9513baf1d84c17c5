//! The rows of the index files, and their columns.
//!
//! All numbers are unsigned 64-bit columns, names are text, opaque bytes are binary: plain columns that any reader
//! of Parquet shows.

use bytes::Bytes;

use super::{Block, Change, Entry, Extent};
use crate::id::Ulid;
use crate::pack::{Location, Packed};

/// What a column holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A number, never null.
    Number,
    /// A number that is mostly ascending, never null.
    Ascending,
    /// A number or null.
    OptionalNumber,
    /// Text or null, with few distinct values.
    OptionalText,
    /// Bytes or null.
    OptionalBytes,
}

/// A column's name and kind.
pub(crate) type Column = (&'static str, Kind);

/// A value of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cell<'a> {
    Null,
    Number(u64),
    Bytes(&'a [u8]),
    /// Written as text.
    Pack(Ulid),
}

impl<'a> Cell<'a> {
    fn of_bytes(bytes: Option<&'a Bytes>) -> Cell<'a> {
        bytes.map_or(Cell::Null, |bytes| Cell::Bytes(bytes))
    }

    fn of_number(number: Option<u64>) -> Cell<'a> {
        number.map_or(Cell::Null, Cell::Number)
    }

    fn number(&self) -> Option<u64> {
        match self {
            Cell::Number(number) => Some(*number),
            _ => None,
        }
    }

    fn bytes(&self) -> Option<&'a [u8]> {
        match self {
            Cell::Bytes(bytes) => Some(bytes),
            _ => None,
        }
    }

    /// Returns a copy: a slice would keep the page that it was read from in memory.
    fn copied(&self) -> Option<Bytes> {
        self.bytes().map(Bytes::copy_from_slice)
    }
}

/// A row of an index file.
pub(crate) trait Row: Sized {
    /// The file's name: `objects`, `extents`, `packs`.
    const TABLE: &'static str;
    const COLUMNS: &'static [Column];
    /// Passes the values to `each`, in the order of the columns.
    fn cells(&self, each: &mut dyn FnMut(Cell<'_>));
    /// Makes a row of the values; `None` if they don't form one.
    fn of(values: &[Cell<'_>]) -> Option<Self>;
}

impl Row for Entry {
    const TABLE: &'static str = "objects";
    const COLUMNS: &'static [Column] = &[
        ("object", Kind::Ascending),
        ("freed", Kind::Number),
        ("fresh", Kind::Number),
        ("tail", Kind::OptionalNumber),
        ("header", Kind::OptionalBytes),
        ("spill", Kind::OptionalBytes),
    ];

    fn cells(&self, each: &mut dyn FnMut(Cell<'_>)) {
        match self {
            Entry::Freed { first, count } => [
                Cell::Number(*first),
                Cell::Number(*count),
                Cell::Number(0),
                Cell::Null,
                Cell::Null,
                Cell::Null,
            ]
            .into_iter()
            .for_each(each),
            Entry::Changed(change) => [
                Cell::Number(change.object),
                Cell::Number(0),
                Cell::Number(change.fresh.into()),
                Cell::of_number(change.tail),
                Cell::of_bytes(change.header.as_ref()),
                Cell::of_bytes(change.spill.as_ref()),
            ]
            .into_iter()
            .for_each(each),
        }
    }

    fn of(values: &[Cell<'_>]) -> Option<Entry> {
        let [object, freed, fresh, tail, header, spill] = values else {
            return None;
        };
        let object = object.number()?;
        Some(match freed.number()? {
            0 => Entry::Changed(Change {
                object,
                fresh: fresh.number()? != 0,
                header: header.copied(),
                tail: tail.number(),
                spill: spill.copied(),
            }),
            count => Entry::Freed { first: object, count },
        })
    }
}

/// An extent and the object that it belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ExtentRow {
    pub(crate) object: u64,
    pub(crate) extent: Extent,
}

impl Row for ExtentRow {
    const TABLE: &'static str = "extents";
    const COLUMNS: &'static [Column] = &[
        ("object", Kind::Ascending),
        ("offset", Kind::Ascending),
        ("length", Kind::Number),
        ("pack", Kind::OptionalText),
        ("frame", Kind::Ascending),
        ("frame_length", Kind::Number),
        ("start", Kind::Ascending),
        ("size", Kind::Number),
        ("skip", Kind::Number),
        ("block_length", Kind::Number),
        ("form", Kind::Number),
        ("note", Kind::OptionalBytes),
    ];

    fn cells(&self, each: &mut dyn FnMut(Cell<'_>)) {
        let extent = &self.extent;
        let place = [self.object, extent.offset, extent.length];
        place.into_iter().for_each(|number| each(Cell::Number(number)));
        let none = Block::default();
        let block = extent.block.as_ref().unwrap_or(&none);
        let at = &block.location;
        each(match extent.block {
            Some(_) => Cell::Pack(at.pack),
            None => Cell::Null,
        });
        let numbers =
            [at.frame, at.frame_length, at.start, at.size, block.skip, block.length, block.form];
        numbers.into_iter().for_each(|number| each(Cell::Number(number)));
        each(Cell::of_bytes(block.note.as_ref()));
    }

    fn of(values: &[Cell<'_>]) -> Option<ExtentRow> {
        let [object, offset, length, pack, frame, frame_length, start, size, rest @ ..] = values
        else {
            return None;
        };
        let [skip, block_length, form, note] = rest else {
            return None;
        };
        let (offset, length) = (offset.number()?, length.number()?);
        let block = match pack {
            Cell::Null => None,
            _ => Some(Block {
                location: Location {
                    pack: Ulid::from_text(pack.bytes()?)?,
                    frame: frame.number()?,
                    frame_length: frame_length.number()?,
                    start: start.number()?,
                    size: size.number()?,
                },
                skip: skip.number()?,
                length: block_length.number()?,
                form: form.number()?,
                note: note.copied(),
            }),
        };
        Some(ExtentRow { object: object.number()?, extent: Extent { offset, length, block } })
    }
}

/// A pack that a delta's extents refer to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackRow {
    /// The pack.
    pub pack: Ulid,
    /// The size of its object.
    pub size: u64,
    /// How many bytes of content its frames hold.
    pub content: u64,
    /// How many of them the delta's extents refer to.
    pub live: u64,
}

impl PackRow {
    /// Returns the pack's own data, without what this delta refers to.
    pub fn packed(&self) -> Packed {
        Packed { pack: self.pack, size: self.size, content: self.content }
    }
}

impl Row for PackRow {
    const TABLE: &'static str = "packs";
    const COLUMNS: &'static [Column] = &[
        ("pack", Kind::OptionalText),
        ("size", Kind::Number),
        ("content", Kind::Number),
        ("live", Kind::Number),
    ];

    fn cells(&self, each: &mut dyn FnMut(Cell<'_>)) {
        each(Cell::Pack(self.pack));
        [self.size, self.content, self.live].into_iter().for_each(|n| each(Cell::Number(n)));
    }

    fn of(values: &[Cell<'_>]) -> Option<PackRow> {
        let [pack, size, content, live] = values else {
            return None;
        };
        let pack = Ulid::from_text(pack.bytes()?)?;
        let (size, content) = (size.number()?, content.number()?);
        Some(PackRow { pack, size, content, live: live.number()? })
    }
}
