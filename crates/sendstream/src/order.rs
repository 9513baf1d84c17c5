//! The order that every sender keeps: objects are ascending, and so are the offsets within an object.
//!
//! Older senders (up to OpenZFS 0.8, zfs-fuse) first write the OBJECT records of a whole block of 32 dnodes, each
//! followed by the FREE of everything past its end, and then those objects' blocks; newer ones write each object's
//! blocks after its OBJECT record. So there are two ascending sequences: objects, and (object, offset) of content. A
//! spill block right after its OBJECT (unmodified, repeated for old receivers) belongs to the first sequence.

use crate::error::{Error, ErrorKind, Result};
use crate::record::Header;

/// Checks that records come in order.
#[derive(Clone, Debug, Default)]
pub struct OrderCheck {
    /// The least object number that the next OBJECT or FREEOBJECTS may have.
    next_object: u64,
    /// The least (object, offset) that the next content may have.
    next_content: (u64, u64),
    /// The object whose OBJECT record was the last record, not counting its tail and its unmodified spill block.
    just_announced: Option<u64>,
    /// The least first object of the next OBJECT_RANGE.
    next_range: u64,
}

impl OrderCheck {
    /// Starts before the first record.
    pub fn new() -> OrderCheck {
        OrderCheck::default()
    }

    /// Whether a FREE or SPILL belongs to the object announced just before it and isn't content in the second sequence.
    pub fn is_appendix(&self, header: &Header) -> bool {
        match header {
            Header::Free(free) => {
                free.length == u64::MAX && self.just_announced == Some(free.object)
            }
            Header::Spill(spill) => self.just_announced == Some(spill.object),
            _ => false,
        }
    }

    /// Checks the next record.
    pub fn check(&mut self, header: &Header) -> Result<()> {
        if self.is_appendix(header) {
            return Ok(());
        }
        self.just_announced = None;
        match header {
            Header::Object(object) => {
                let least = self.next_object.max(self.next_content.0.saturating_add(1));
                ascending("OBJECT", (object.object, 0), (least, 0))?;
                self.next_object = object.object.saturating_add(1);
                self.just_announced = Some(object.object);
            }
            Header::FreeObjects(free) => {
                ascending("FREEOBJECTS", (free.first, 0), (self.next_object, 0))?;
                self.next_object = free.first.saturating_add(free.count);
            }
            Header::Write(write) => {
                self.content("WRITE", write.object, write.offset, write.logical_size)?;
            }
            Header::WriteEmbedded(write) => {
                self.content("WRITE_EMBEDDED", write.object, write.offset, write.length)?;
            }
            Header::Free(free) => self.content("FREE", free.object, free.offset, free.length)?,
            Header::Spill(spill) => {
                // It comes after the object's last block: nothing more of the object may follow.
                self.content("SPILL", spill.object, u64::MAX, 0)?;
            }
            Header::ObjectRange(range) => {
                ascending("OBJECT_RANGE", (range.first, 0), (self.next_range, 0))?;
                self.next_range = range.first.saturating_add(range.slots);
            }
            Header::Begin(_) | Header::End(_) => {}
        }
        Ok(())
    }

    fn content(&mut self, what: &'static str, object: u64, offset: u64, length: u64) -> Result<()> {
        ascending(what, (object, offset), self.next_content)?;
        if object >= self.next_object {
            // This is content of an object that was never announced.
            return Err(Error::new(ErrorKind::Order {
                what,
                found: (object, offset),
                expected: (self.next_content.0, self.next_content.1),
            }));
        }
        self.next_content = (object, offset.saturating_add(length));
        Ok(())
    }
}

fn ascending(what: &'static str, found: (u64, u64), expected: (u64, u64)) -> Result<()> {
    if found >= expected {
        Ok(())
    } else {
        Err(Error::new(ErrorKind::Order { what, found, expected }))
    }
}
