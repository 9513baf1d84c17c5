//! A send stream as a delta.
//!
//! A stream may announce up to 32 objects (a block of dnodes) before their blocks, so up to that many entries are held
//! back until it is known which of them have blocks. That is all the memory it takes besides the reader's.

use std::collections::VecDeque;
use std::io::Read;

use super::{Block, BlockHeader, Change, Delta, Entry, Extent, SpillBlock};
use crate::error::{Error, ErrorKind, Result};
use crate::reader::Reader;
use crate::record::{Begin, DNODES_PER_BLOCK, Header, Spill};

/// A send stream as a delta.
#[derive(Debug)]
pub struct StreamDelta<R> {
    reader: Reader<R>,
    /// Entries that were announced but not passed on yet.
    waiting: VecDeque<Held>,
    current: Option<Held>,
    /// Whether the reader's current record hasn't been looked at yet.
    pending: bool,
    finished: bool,
}

#[derive(Debug)]
struct Held {
    entry: Entry,
    spill: Option<(Spill, Vec<u8>)>,
}

impl<R: Read> StreamDelta<R> {
    /// Takes a stream of which BEGIN has been read. Raw streams can't be looked into, and the rest of an interrupted
    /// stream has no beginning.
    pub fn new(reader: Reader<R>) -> Result<StreamDelta<R>> {
        if reader.begin().is_raw() {
            return Err(Error::new(ErrorKind::Raw { what: "look into" }));
        }
        if reader.begin().features.contains(crate::Features::RESUMING) {
            let why =
                "this is the rest of an interrupted send, whose beginning is elsewhere".to_string();
            return Err(Error::new(ErrorKind::Chain { why }));
        }
        let mut delta = StreamDelta {
            reader,
            waiting: VecDeque::new(),
            current: None,
            pending: false,
            finished: false,
        };
        delta.step()?;
        Ok(delta)
    }

    /// Returns the reader inside.
    pub fn reader(&self) -> &Reader<R> {
        &self.reader
    }

    /// Returns the reader and drops the rest.
    pub fn into_reader(self) -> Reader<R> {
        self.reader
    }

    /// Makes the next record the reader's current one.
    fn step(&mut self) -> Result<()> {
        self.pending = match self.reader.next_record()? {
            Some(record) => !matches!(record.header, Header::End(_)),
            None => false,
        };
        if !self.pending && !self.finished {
            // This is after END, whose checksum is right.
            self.finished = true;
        }
        Ok(())
    }

    /// Returns the object that the current record is content of, if it is content.
    fn content_object(&self) -> Option<u64> {
        let record = self.reader.record().filter(|_| self.pending)?;
        if record.is_appendix {
            return None;
        }
        match record.header {
            Header::Write(write) => Some(write.object),
            Header::WriteEmbedded(write) => Some(write.object),
            Header::Free(free) => Some(free.object),
            Header::Spill(spill) => Some(spill.object),
            _ => None,
        }
    }

    /// Reads announcements until it is known whether the first waiting entry has content.
    fn gather(&mut self) -> Result<Option<Held>> {
        loop {
            let front = self.waiting.front().map(|held| held.entry.object());
            if let Some(object) = self.content_object() {
                return Ok(match front {
                    Some(front) if front <= object => self.waiting.pop_front(),
                    // This is content of an object whose announcement isn't in the stream.
                    _ => Some(Held { entry: bare(object), spill: None }),
                });
            }
            let Some(record) = self.reader.record().filter(|_| self.pending) else {
                return Ok(self.waiting.pop_front());
            };
            let entry = match record.header {
                Header::Object(object) => Entry::Changed(Change {
                    object: object.object,
                    header: Some(object.clone()),
                    bonus: record.payload.to_vec(),
                    tail: None,
                }),
                // It frees nothing and may occur any number of times, so none is held back.
                Header::FreeObjects(free) if free.count == 0 => {
                    self.step()?;
                    continue;
                }
                Header::FreeObjects(free) => Entry::Freed { first: free.first, count: free.count },
                Header::Free(free) => {
                    // This is the tail of the object announced last.
                    if let Some(Held { entry: Entry::Changed(change), .. }) =
                        self.waiting.back_mut()
                    {
                        // Of several tails the lowest counts: nothing older is left from there on.
                        change.tail =
                            Some(change.tail.map_or(free.offset, |tail| tail.min(free.offset)));
                    }
                    self.step()?;
                    continue;
                }
                Header::Spill(spill) => {
                    let spill = (*spill, record.payload.to_vec());
                    if let Some(held) = self.waiting.back_mut() {
                        held.spill = Some(spill);
                    }
                    self.step()?;
                    continue;
                }
                _ => {
                    self.step()?;
                    continue;
                }
            };
            // An object's blocks come before the next block of dnodes is announced.
            let dnode_block = |object: u64| object / DNODES_PER_BLOCK;
            if front.is_some_and(|front| dnode_block(front) != dnode_block(entry.object())) {
                return Ok(self.waiting.pop_front());
            }
            self.waiting.push_back(Held { entry, spill: None });
            self.step()?;
        }
    }
}

fn bare(object: u64) -> Entry {
    Entry::Changed(Change { object, header: None, bonus: Vec::new(), tail: None })
}

impl<R: Read> StreamDelta<R> {
    /// Reads a spill block that follows the object's content.
    fn take_spill(&mut self) -> Result<()> {
        let (Some(current), true) = (&mut self.current, self.pending) else {
            return Ok(());
        };
        let Some(record) = self.reader.record() else {
            return Ok(());
        };
        if let Header::Spill(spill) = record.header
            && !record.is_appendix
            && spill.object == current.entry.object()
        {
            current.spill = Some((*spill, record.payload.to_vec()));
            self.step()?;
        }
        Ok(())
    }
}

impl<R: Read> Delta for StreamDelta<R> {
    fn begin(&self) -> &Begin {
        self.reader.begin()
    }

    fn entry(&self) -> Option<&Entry> {
        self.current.as_ref().map(|held| &held.entry)
    }

    fn next_entry(&mut self) -> Result<()> {
        while self.extent().is_some() {
            self.next_extent()?;
        }
        self.current = None;
        self.current = self.gather()?;
        self.take_spill()
    }

    fn extent(&self) -> Option<Extent> {
        let Entry::Changed(current) = &self.current.as_ref()?.entry else {
            return None;
        };
        let record = self.reader.record().filter(|record| self.pending && !record.is_appendix)?;
        let (object, extent) = match record.header {
            Header::Write(write) => (
                write.object,
                Extent { offset: write.offset, length: write.logical_size, is_data: true },
            ),
            Header::WriteEmbedded(write) => {
                (write.object, Extent { offset: write.offset, length: write.length, is_data: true })
            }
            Header::Free(free) => {
                (free.object, Extent { offset: free.offset, length: free.length, is_data: false })
            }
            _ => return None,
        };
        (object == current.object).then_some(extent)
    }

    fn next_extent(&mut self) -> Result<()> {
        if self.extent().is_some() {
            self.step()?;
            self.take_spill()?;
        }
        Ok(())
    }

    fn block(&mut self) -> Result<Block<'_>> {
        let record = self.reader.record().ok_or_else(|| Error::other("no block at hand"))?;
        let header = match record.header {
            Header::Write(write) => BlockHeader::Write(write),
            Header::WriteEmbedded(write) => BlockHeader::Embedded(write),
            _ => return Err(Error::other("no block at hand")),
        };
        Ok(Block { header, payload: record.payload })
    }

    fn spill(&self) -> Option<SpillBlock<'_>> {
        let (header, payload) = self.current.as_ref()?.spill.as_ref()?;
        Some(SpillBlock { header, payload })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ByteOrder;
    use crate::feature::Features;
    use crate::record::{Free, FreeObjects, Object, ObjsetType, object_type};
    use crate::writer::Writer;

    fn stream(records: impl IntoIterator<Item = Header>) -> Vec<u8> {
        let begin = Begin {
            order: ByteOrder::Little,
            header_type: Begin::STREAM,
            features: Features::default(),
            creation_time: 1,
            objset: ObjsetType::FileSystem,
            flags: 0,
            to_guid: 2,
            from_guid: 1,
            to_name: b"tank@2".to_vec(),
        };
        let mut stream = Vec::new();
        let mut writer = Writer::new(&mut stream, &begin, &[]).unwrap();
        records.into_iter().for_each(|record| writer.record(&record, &[]).unwrap());
        writer.finish().unwrap();
        stream
    }

    /// As the fold of a deletion and a new file writes it: everything that older deltas have of the object is gone.
    #[test]
    fn of_several_tails_the_lowest_counts() {
        let (object, length) = (5, u64::MAX);
        let announced = Object::plain(object, object_type::PLAIN_FILE, 4096);
        let frees = [0, 8192].map(|offset| Header::Free(Free { object, offset, length }));
        let stream = stream([Header::Object(announced)].into_iter().chain(frees));
        let mut delta = StreamDelta::new(Reader::new(&stream[..]).unwrap()).unwrap();
        delta.next_entry().unwrap();
        assert!(
            matches!(delta.entry(), Some(Entry::Changed(Change { tail: Some(0), .. }))),
            "{:?}",
            delta.entry()
        );
    }

    /// ZFS accepts a record that frees nothing, and the next record may begin at the same object: a stream of such
    /// records must take no memory.
    #[test]
    fn records_that_free_nothing_are_not_held_back() {
        let frees = std::iter::repeat_n(0, 1000).chain([1]);
        let stream =
            stream(frees.map(|count| Header::FreeObjects(FreeObjects { first: 5, count })));
        let mut delta = StreamDelta::new(Reader::new(&stream[..]).unwrap()).unwrap();
        delta.next_entry().unwrap();
        assert_eq!(delta.entry(), Some(&Entry::Freed { first: 5, count: 1 }));
        assert!(delta.waiting.capacity() < 32, "{}", delta.waiting.capacity());
        delta.next_entry().unwrap();
        assert_eq!(delta.entry(), None);
    }
}
