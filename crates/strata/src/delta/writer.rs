//! Writes a delta's index from entries in ascending order.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::descriptor::{Descriptor, FORMAT, write_descriptor};
use super::rows::{ExtentRow, PackRow};
use super::table_writer::TableWriter;
use super::{Change, Entry, Extent};
use crate::error::{Error, Result};
use crate::id::{Ulid, check_name};
use crate::lease::{HELD, Still};
use crate::pack::Packed;
use crate::repository::Repository;
use crate::threads;

/// How an index is written.
#[derive(Clone, Debug)]
pub struct IndexOptions {
    /// Rows of a row group, which a reader reads at a time.
    pub group_rows: usize,
    /// Bytes of headers, spills and notes at which a row group ends early.
    pub group_bytes: usize,
    /// Row groups of a file. A reader keeps a file's footer in memory, so further rows go to another file.
    pub file_groups: usize,
    /// The folder of temporary files; the system's if `None`.
    pub spool: Option<PathBuf>,
}

impl Default for IndexOptions {
    fn default() -> IndexOptions {
        IndexOptions { group_rows: 32 << 10, group_bytes: 256 << 10, file_groups: 512, spool: None }
    }
}

/// Writes the index of a delta, which exists once [`DeltaWriter::finish`] has returned.
///
/// Entries must come in ascending order of objects, with no object twice or within a freed range. A changed object is
/// followed by its extents, in ascending order and without overlaps. Anything else is refused with an error that names
/// it.
pub struct DeltaWriter {
    repository: Repository,
    descriptor: Descriptor,
    objects: TableWriter<Entry>,
    extents: TableWriter<ExtentRow>,
    packs: TableWriter<PackRow>,
    /// The current entry: its spill may come after its extents.
    held: Option<Change>,
    /// No object below this may come; `None` if no more may come.
    next_object: Option<u64>,
    /// No extent of the current entry may begin below this; `None` if no more may come.
    next_offset: Option<u64>,
    live: BTreeMap<Ulid, u64>,
}

impl DeltaWriter {
    /// Starts a delta named `id`, which changes `base`. If a delta of this name exists, the new one replaces it.
    pub fn new(
        repository: &Repository,
        image: &str,
        id: &str,
        base: Option<&str>,
        options: &IndexOptions,
    ) -> Result<DeltaWriter> {
        check_name("image", image)?;
        check_name("delta", id)?;
        if let Some(base) = base {
            check_name("delta", base)?;
        }
        // A unique stem: writing the same delta again never touches these files.
        let stem = format!("{id}.{}", Ulid::new()?);
        Ok(DeltaWriter {
            repository: repository.clone(),
            objects: TableWriter::new(repository, image, &stem, options)?,
            extents: TableWriter::new(repository, image, &stem, options)?,
            packs: TableWriter::new(repository, image, &stem, options)?,
            descriptor: Descriptor {
                format: FORMAT,
                image: image.to_string(),
                id: id.to_string(),
                base: base.map(str::to_string),
                objects: Vec::new(),
                extents: Vec::new(),
                packs: Vec::new(),
                about: serde_json::Value::Null,
            },
            held: None,
            next_object: Some(0),
            next_offset: None,
            live: BTreeMap::new(),
        })
    }

    fn claim(&mut self, object: u64, count: u64) -> Result<()> {
        if self.next_object.is_none_or(|next| object < next) || count == 0 {
            return Err(Error::Order {
                what: "an entry",
                object,
                offset: 0,
                expected: match (count, self.next_object) {
                    (0, _) => "it frees no object".to_string(),
                    (_, Some(next)) => format!("object {next} or later could have come"),
                    (_, None) => "no object could have come".to_string(),
                },
            });
        }
        if let Some(held) = self.held.take() {
            self.objects.push(&Entry::Changed(held))?;
        }
        self.next_object = object.checked_add(count);
        Ok(())
    }

    /// Records that these objects no longer exist.
    pub fn freed(&mut self, first: u64, count: u64) -> Result<()> {
        self.claim(first, count)?;
        self.next_offset = None;
        self.objects.push(&Entry::Freed { first, count })
    }

    /// Records that this object is new or changed; its extents follow.
    pub fn changed(&mut self, change: Change) -> Result<()> {
        self.claim(change.object, 1)?;
        self.next_offset = Some(0);
        self.held = Some(change);
        Ok(())
    }

    /// Sets the spill of the current object.
    pub fn spill(&mut self, spill: bytes::Bytes) -> Result<()> {
        match &mut self.held {
            Some(change) => {
                change.spill = Some(spill);
                Ok(())
            }
            None => Err(Error::Order {
                what: "a spill",
                object: 0,
                offset: 0,
                expected: "an object could have come".to_string(),
            }),
        }
    }

    /// Sets what the caller knows about the image's state, for its descriptor.
    pub fn about(&mut self, about: serde_json::Value) {
        self.descriptor.about = about;
    }

    /// Returns the current object.
    pub fn object(&self) -> Option<u64> {
        self.held.as_ref().map(|change| change.object)
    }

    /// Checks that an extent may come here, and reserves its range.
    pub(super) fn claim_extent(&mut self, offset: u64, length: u64, is_data: bool) -> Result<u64> {
        let end = offset.checked_add(length);
        // A hole may be unbounded; data must have an end.
        let ends_well = end.is_some() || (length == u64::MAX && !is_data);
        match (self.object(), self.next_offset) {
            (Some(object), Some(next)) if offset >= next && length > 0 && ends_well => {
                self.next_offset = if length == u64::MAX { None } else { end };
                Ok(object)
            }
            (object, next) => Err(Error::Order {
                what: "an extent",
                object: object.unwrap_or(0),
                offset,
                expected: match (object, next) {
                    (None, _) => "an object must come first".to_string(),
                    (_, Some(next)) if offset < next => {
                        format!("offset {next} or later could have come")
                    }
                    (_, Some(_)) => format!("it can't be {length} bytes long"),
                    (_, None) => "nothing comes after what is up to the end".to_string(),
                },
            }),
        }
    }

    /// Writes an extent whose range was reserved.
    pub(super) fn write_extent(&mut self, object: u64, extent: Extent) -> Result<()> {
        if let Some(block) = &extent.block {
            *self.live.entry(block.location.pack).or_default() += block.location.size;
        }
        self.extents.push(&ExtentRow { object, extent })
    }

    /// Adds an extent of the current object whose bytes are already in a pack.
    pub fn extent(&mut self, extent: Extent) -> Result<()> {
        let object = self.claim_extent(extent.offset, extent.length, extent.block.is_some())?;
        self.write_extent(object, extent)
    }

    /// Writes what is left, with the descriptor last. `sizes` must give the size of each pack that an extent refers to.
    pub fn finish(self, sizes: impl IntoIterator<Item = Packed>) -> Result<Descriptor> {
        self.finish_if(sizes, HELD)
    }

    /// Does the same, and calls `still` before each try to write the descriptor.
    pub fn finish_if(
        self,
        sizes: impl IntoIterator<Item = Packed>,
        still: Still<'_>,
    ) -> Result<Descriptor> {
        let DeltaWriter { repository, mut descriptor, mut objects, extents, mut packs, .. } = self;
        if let Some(held) = self.held {
            objects.push(&Entry::Changed(held))?;
        }
        let mut live = self.live;
        let mut rows = Vec::new();
        for Packed { pack, size, content } in sizes {
            if let Some(live) = live.remove(&pack) {
                rows.push(PackRow { pack, size, content, live });
            }
        }
        if let Some((pack, _)) = live.pop_first() {
            return Err(Error::Chain {
                image: descriptor.image,
                why: format!("an extent lies in pack {pack}, whose size nobody gave"),
            });
        }
        rows.sort_by_key(|row| row.pack);
        for row in &rows {
            packs.push(row)?;
        }
        // In parallel: each waits for the store and its disk far longer than it computes.
        let (objects, extents, packs) = std::thread::scope(|scope| {
            let objects = threads::start_in(scope, || objects.finish())?;
            let extents = threads::start_in(scope, || extents.finish())?;
            Ok::<_, Error>((objects.join(), extents.join(), packs.finish()))
        })?;
        let ended = |_| Error::caller("a thread that writes an index ended early");
        descriptor.objects = objects.map_err(ended)??;
        descriptor.extents = extents.map_err(ended)??;
        descriptor.packs = packs?;
        write_descriptor(&repository, &descriptor, still)?;
        Ok(descriptor)
    }
}
