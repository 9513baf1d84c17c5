//! Tags of the pages that a repository has of a volume: what goes by is compared with them, and the
//! record before needn't be read. They lie in `state_dir`, 16 bytes a page, and are of this host alone.
//!
//! A page's tag is its POLYVAL (RFC 8452) under a key that is made at random and never leaves the host:
//! of two different pages the tags are the same with a chance of 2^-119 at most, whoever made them.
//!
//! What could go wrong: a tag of a page that the repository doesn't have, and a changed page is left
//! out. So tags are of one delta of one image in one repository, and of nothing else; they are written
//! in one transaction behind the descriptor of the next. What doesn't fit is thrown away, and the
//! snapshot before is read instead. Within an image a tag counts for the very file that it was taken
//! of (its generation, kind, slots and block size are the same): of such a one a fold keeps what isn't
//! written over (`StreamRules`).

use std::io::ErrorKind;
use std::ops::Range;
use std::path::{Path, PathBuf};

use polyval::Polyval;
use polyval::universal_hash::UniversalHash;
use redb::{Database, ReadableTable, Table, TableDefinition, WriteTransaction};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::files;
use crate::repository::header::ObjectHeader;

/// The bytes that one tag is of. Nearly every cluster has these as its page; where pages are larger,
/// parts of them are told apart.
pub const PAGE: u64 = 8192;
/// Tags of one row. Two rows fill a page of the file.
const ROW: u64 = 120;
/// Bytes of a tag. Nothing but zeros: not known.
const TAG: usize = 16;
/// What the file's cache may take of memory; two volumes are sent at once.
const CACHE: usize = 8 << 20;
/// The newest form that is known; another is thrown away.
const VERSION: u32 = 1;

/// What the file is about, under [`ABOUT_KEY`].
const ABOUT: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("about");
const ABOUT_KEY: &str = "about";
/// Files, by object number.
const FILES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("files");
/// Tags, by object and number of the row.
const TAGS: TableDefinition<'_, (u64, u64), &[u8]> = TableDefinition::new("tags");

/// An error of the file of tags.
pub type Stored<T> = std::result::Result<T, Box<redb::Error>>;

/// A volume's tags.
pub struct Tags {
    database: Database,
    path: PathBuf,
    about: About,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct About {
    version: u32,
    /// Of the repository.
    repository: String,
    image: String,
    /// The delta that they are the state after; none before the first.
    delta: Option<String>,
    /// Every file has gone by since they were begun.
    whole: bool,
    key: [u8; 16],
}

/// Which image, in which repository.
#[derive(Debug, Clone, Copy)]
pub struct Of<'a> {
    /// The repository's id.
    pub repository: &'a str,
    /// Its name.
    pub image: &'a str,
}

impl Tags {
    /// Those in the folder that are of the delta `base`; where there are none such, none are known. With
    /// no `base` they are begun anew.
    ///
    /// # Errors
    /// When the file can't be made.
    pub fn open(folder: &Path, of: Of<'_>, base: Option<&str>) -> Result<Self> {
        files::create_owned_directory(folder, None)?;
        let path = folder.join(file_name(of.image));
        if base.is_some() {
            match Self::read(&path) {
                Ok(Some(tags)) if tags.is_of(of, base) => return Ok(tags),
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "the tags of pages can't be used");
                }
            }
        }
        files::remove_file(&path)?;
        let mut key = [0; 16];
        getrandom::fill(&mut key)
            .map_err(|e| Error::failed("the system gives no random bytes").because(e))?;
        let about = About {
            version: VERSION,
            repository: of.repository.to_owned(),
            image: of.image.to_owned(),
            delta: base.map(str::to_owned),
            whole: base.is_none(),
            key,
        };
        let database = Self::make(&path).map_err(|e| failed("made", &path, e))?;
        Ok(Self { database, path, about })
    }

    fn make(path: &Path) -> Stored<Database> {
        Database::builder().set_cache_size(CACHE).create(path).map_err(boxed)
    }

    fn read(path: &Path) -> Stored<Option<Self>> {
        if !path.exists() {
            return Ok(None);
        }
        let database = Database::builder().set_cache_size(CACHE).open(path).map_err(boxed)?;
        let transaction = redb::ReadableDatabase::begin_read(&database).map_err(boxed)?;
        let about = match transaction.open_table(ABOUT) {
            Ok(table) => table.get(ABOUT_KEY).map_err(boxed)?.and_then(|about| {
                // Of another form: as if there were none.
                serde_json::from_slice(about.value()).ok()
            }),
            Err(redb::TableError::TableDoesNotExist(_)) => None,
            Err(error) => return Err(boxed(error)),
        };
        drop(transaction);
        Ok(about.map(|about| Self { database, path: path.to_owned(), about }))
    }

    fn is_of(&self, of: Of<'_>, base: Option<&str>) -> bool {
        let About { version, repository, image, delta, .. } = &self.about;
        (*version, &**repository, &**image, delta.as_deref())
            == (VERSION, of.repository, of.image, base)
    }

    /// Whether a page without a tag is one that the image doesn't have; else it may be one that never went by.
    #[must_use]
    pub fn are_whole(&self) -> bool {
        self.about.whole
    }

    /// Begins to write down what goes by.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn begin(&self) -> Result<WriteTransaction> {
        self.database.begin_write().map_err(|e| failed("written", &self.path, boxed(e)))
    }

    /// What went by is in the repository, as this delta.
    ///
    /// # Errors
    /// When that can't be written durably.
    pub fn commit(&self, transaction: WriteTransaction, delta: &str) -> Result<()> {
        let about = About { delta: Some(delta.to_owned()), ..self.about.clone() };
        let commit = || {
            let text = serde_json::to_vec(&about).unwrap_or_default();
            let mut table = transaction.open_table(ABOUT).map_err(boxed)?;
            table.insert(ABOUT_KEY, &*text).map_err(boxed)?;
            drop(table);
            transaction.commit().map_err(boxed)
        };
        commit().map_err(|e| failed("written", &self.path, e))
    }

    /// Throws them away.
    pub fn forget(self) {
        drop(self.database);
        if let Err(error) = files::remove_file(&self.path) {
            tracing::warn!(error = %error.chain(), "tags of pages that nothing is known about");
        }
    }
}

/// Removes the tags in the folder that are of none of these images.
///
/// # Errors
/// When one can't be removed.
pub fn sweep(folder: &Path, images: impl Iterator<Item = String>) -> Result<()> {
    let known: Vec<String> = images.map(|image| file_name(&image)).collect();
    let listed = match std::fs::read_dir(folder) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        listed => listed.map_err(Error::io("list", folder))?,
    };
    for entry in listed {
        let entry = entry.map_err(Error::io("list", folder))?;
        if !known.iter().any(|name| entry.file_name() == **name) {
            files::remove_file(&entry.path())?;
        }
    }
    Ok(())
}

/// An image's name may be longer than a file's.
fn file_name(image: &str) -> String {
    let hash = blake3::hash(image.as_bytes()).to_hex();
    format!("{}.redb", hash.get(..32).unwrap_or_default())
}

fn boxed(error: impl Into<redb::Error>) -> Box<redb::Error> {
    Box::new(error.into())
}

fn failed(what: &str, path: &Path, error: Box<redb::Error>) -> Error {
    Error::failed(format!("the tags of pages in \"{}\" can't be {what}", path.display()))
        .because(error)
}

/// What the tags say about a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    /// The image has it.
    Same,
    /// It has another one.
    Different,
    /// Nothing.
    Nothing,
}

/// Tags being compared with what goes by, and written anew.
pub struct Passed<'t> {
    files: Table<'t, u64, &'static [u8]>,
    tags: Table<'t, (u64, u64), &'static [u8]>,
    key: Polyval,
    /// The object at hand, if it has tags.
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
    /// Opens them for what is written down in `transaction`.
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

    /// An object begins, of which nothing behind `tail` counts; gives whether its content gets tags.
    ///
    /// # Errors
    /// When the file can't be read or written; so for the others below.
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

    /// Content goes by whose pages aren't told apart: of this object nothing is known from here on.
    pub fn other(&mut self, object: u64) -> Stored<()> {
        self.close_row()?;
        self.object = None;
        self.drop_objects(object..=object)
    }

    /// Compares the pages of a block at `offset` and keeps their tags.
    pub fn block(&mut self, offset: u64, bytes: &[u8]) -> Stored<Vec<Known>> {
        let Some(object) = self.object else {
            return Ok(vec![Known::Nothing; bytes.len().div_ceil(PAGE as usize)]);
        };
        if offset % PAGE != 0 {
            self.unknown(offset, bytes.len() as u64)?;
            return Ok(vec![Known::Nothing; bytes.len().div_ceil(PAGE as usize)]);
        }
        let mut known = Vec::with_capacity(bytes.len().div_ceil(PAGE as usize));
        for (number, content) in (offset / PAGE..).zip(bytes.chunks(PAGE as usize)) {
            // The last of a file's only block may be shorter; it has no tag.
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
            // Of a page of zeros, under any key.
            tag[0] = 1;
        }
        tag
    }

    /// Of this range of the object nothing is known.
    pub fn unknown(&mut self, offset: u64, length: u64) -> Stored<()> {
        let Some(object) = self.object.filter(|_| length > 0) else { return Ok(()) };
        let first = offset / PAGE;
        let end = offset.saturating_add(length).div_ceil(PAGE);
        // Rows of which all goes, and what of the rows around them.
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

    /// These objects are gone.
    pub fn freed(&mut self, first: u64, count: u64) -> Stored<()> {
        self.close_row()?;
        self.drop_objects(first..=first.saturating_add(count.saturating_sub(1)))
    }

    /// All of it is known that went by.
    pub fn finish(mut self) -> Stored<()> {
        self.close_row()
    }

    fn drop_objects(&mut self, objects: std::ops::RangeInclusive<u64>) -> Stored<()> {
        let keys = (*objects.start(), 0)..=(*objects.end(), u64::MAX);
        self.files.retain_in(objects, |_, _| false).map_err(boxed)?;
        self.tags.retain_in(keys, |_, _| false).map_err(boxed)
    }

    /// The row of an object, in memory.
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

/// What has to be the same for a file to be the one of before. A file without a generation never is.
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

#[cfg(test)]
#[path = "tags_tests.rs"]
mod tests;
