//! Tags of the pages that a repository has of a volume. Passing pages are compared with them, so the previous record
//! needn't be read. They are kept in `state_dir`, 16 bytes a page, and are valid on this host only.
//!
//! A page's tag is its POLYVAL (RFC 8452) under a random key that never leaves the host. Two different pages have the
//! same tag with a probability of at most 2^-119, whoever made them.
//!
//! What could go wrong: there is a tag for a page that the repository doesn't have, and a changed page is left out.
//! So tags belong to one delta of one image in one repository, and to nothing else; they are written in one
//! transaction after the descriptor of the next delta. Tags that don't fit are thrown away, and the previous snapshot
//! is read instead. Within an image, a tag counts only for the very file that it was taken of (same generation, kind,
//! slots and block size): of such a file a fold keeps what isn't overwritten (`StreamRules`).

mod passed;

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use redb::{Database, TableDefinition, WriteTransaction};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::files;

pub use passed::{Known, Passed};

/// How many bytes one tag covers. Nearly every cluster has pages of this size; larger pages are compared in parts.
pub const PAGE: u64 = 8192;
/// How much memory the file's cache may take; two volumes are sent at once.
const CACHE: usize = 8 << 20;
/// The newest known form; any other is thrown away.
const VERSION: u32 = 1;

/// What the file is about, under [`ABOUT_KEY`].
const ABOUT: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("about");
const ABOUT_KEY: &str = "about";

/// The result of an operation on the file of tags.
pub type Stored<T> = std::result::Result<T, Box<redb::Error>>;

/// A volume's tags.
pub struct Tags {
    database: Option<Database>,
    path: PathBuf,
    about: About,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct About {
    version: u32,
    /// The repository's id.
    repository: String,
    image: String,
    /// The delta after which they are valid; none before the first.
    delta: Option<String>,
    /// Whether every file has gone by since they were begun.
    whole: bool,
    key: [u8; 16],
}

/// An image in a repository.
#[derive(Debug, Clone, Copy)]
pub struct Of<'a> {
    /// The repository's id.
    pub repository: &'a str,
    /// Its name.
    pub image: &'a str,
}

impl Tags {
    /// Opens those in the folder that belong to the delta `base`; if there are none, no tags are known. Without a
    /// `base` they are begun from scratch.
    ///
    /// # Errors
    /// When the file can't be created.
    pub fn open(folder: &Path, of: Of<'_>, base: Option<&str>) -> Result<Self> {
        files::create_owned_directory(folder, None)?;
        let path = folder.join(file_name(of.image));
        let is_in_doubt = in_use(&path).exists();
        mark(&path)?;
        if base.is_some() && !is_in_doubt {
            match Self::read(&path) {
                Ok(Some(tags)) if tags.is_of(of, base) => return Ok(tags),
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "the tags of pages can't be used");
                }
            }
        }
        files::remove_file(&path)?;
        mark(&path)?;
        let about = About {
            version: VERSION,
            repository: of.repository.to_owned(),
            image: of.image.to_owned(),
            delta: base.map(str::to_owned),
            whole: base.is_none(),
            key: crate::names::random()?,
        };
        let database = Self::make(&path).map_err(|e| failed("made", &path, e))?;
        Ok(Self { database: Some(database), path, about })
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
                // Another form counts as none.
                serde_json::from_slice(about.value()).ok()
            }),
            Err(redb::TableError::TableDoesNotExist(_)) => None,
            Err(error) => return Err(boxed(error)),
        };
        drop(transaction);
        Ok(about.map(|about| Self { database: Some(database), path: path.to_owned(), about }))
    }

    fn is_of(&self, of: Of<'_>, base: Option<&str>) -> bool {
        let About { version, repository, image, delta, .. } = &self.about;
        (*version, &**repository, &**image, delta.as_deref())
            == (VERSION, of.repository, of.image, base)
    }

    /// Returns whether a page without a tag is one that the image doesn't have; otherwise it may be one that never
    /// went by.
    #[must_use]
    pub fn are_whole(&self) -> bool {
        self.about.whole
    }

    /// Begins to record what goes by.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn begin(&self) -> Result<WriteTransaction> {
        let closed = || boxed(std::io::Error::other("it is closed"));
        let database = self.database.as_ref().ok_or_else(closed);
        let begun = database.and_then(|database| database.begin_write().map_err(boxed));
        begun.map_err(|e| failed("written", &self.path, e))
    }

    /// Commits: what went by is now in the repository, as this delta.
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
    pub fn forget(mut self) {
        drop(self.database.take());
        if let Err(error) = files::remove_file(&self.path) {
            tracing::warn!(error = %error.chain(), "tags of pages that nothing is known about");
        }
    }
}

/// The database trusts its file, and panics on some damaged content. So the file is marked while it is in use, and
/// one whose last use didn't end is thrown away.
impl Drop for Tags {
    fn drop(&mut self) {
        drop(self.database.take());
        if !std::thread::panicking() {
            // A mark that stays costs the tags and nothing else.
            let _ = files::remove_file(&in_use(&self.path));
        }
    }
}

fn in_use(path: &Path) -> PathBuf {
    path.with_extension("in-use")
}

fn mark(path: &Path) -> Result<()> {
    let mark = in_use(path);
    std::fs::write(&mark, b"").map_err(Error::io("write", &mark))
}

/// Removes the tags in the folder that belong to none of these images.
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
        let path = entry.path().with_extension("redb");
        if !known.iter().any(|name| path.file_name() == Some(name.as_ref())) {
            files::remove_file(&entry.path())?;
        }
    }
    Ok(())
}

/// An image's name may be longer than a file's name can be.
fn file_name(image: &str) -> String {
    let hash = blake3::hash(image.as_bytes()).to_hex();
    format!("{}.redb", hash.get(..32).unwrap_or_default())
}

/// Returns the value, or nothing after a warning: tags save reads, and nothing depends on them.
pub fn or_none<T>(result: Result<T>) -> Option<T> {
    result
        .inspect_err(
            |error| tracing::warn!(error = %error.chain(), "the snapshot before is read instead"),
        )
        .ok()
}

fn boxed(error: impl Into<redb::Error>) -> Box<redb::Error> {
    Box::new(error.into())
}

fn failed(what: &str, path: &Path, error: Box<redb::Error>) -> Error {
    Error::failed(format!("the tags of pages in \"{}\" can't be {what}", path.display()))
        .because(error)
}

#[cfg(test)]
#[path = "tags_tests.rs"]
mod tests;
