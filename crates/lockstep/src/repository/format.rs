//! `lockstep.json`: marks a folder or bucket as a repository, and says its format, its id, and whether it is
//! encrypted.

use serde::{Deserialize, Serialize};
use strata::document;
use strata::store::{Store, StoreErrorKind};

use super::{newer_form, of_store, of_strata};
use crate::context::lockstep;
use crate::error::{Error, Result};
use crate::names::random_characters;

/// The newest known format.
const VERSION: u32 = 1;
pub(super) const PATH: &str = "lockstep.json";
/// A limit larger than this file, or one with a key, ever gets, in bytes.
pub(super) const MAX_SIZE: u64 = 1 << 20;
/// The only cipher.
const CIPHER: &str = "aes-256-gcm";

/// What `lockstep.json` says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Format {
    /// 1.
    pub version: u32,
    /// Tells this repository apart from every other.
    pub id: String,
    /// How frames are sealed; omitted if they aren't.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encryption: Option<Encryption>,
}

/// How frames are sealed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Encryption {
    /// `aes-256-gcm`.
    pub cipher: String,
    /// The fingerprint of the data key.
    pub fingerprint: String,
}

/// What is in the place of `lockstep.json`.
pub(super) enum Found {
    /// The file.
    Format(Format),
    /// Nothing.
    Nothing,
    /// Bytes that nobody wrote, and the error that says so.
    Damaged(Error),
}

impl Format {
    /// Creates the content for a new repository, not encrypted.
    ///
    /// # Errors
    /// When the system provides no random bytes.
    pub fn new() -> Result<Self> {
        Ok(Self::of(random_characters::<16>()?))
    }

    /// Creates the content for the repository with this id, not encrypted.
    #[must_use]
    pub fn of(id: String) -> Self {
        Self { version: VERSION, id, encryption: None }
    }

    /// Returns the same with frames sealed by the data key that has this fingerprint.
    #[must_use]
    pub fn encrypted(self, fingerprint: String) -> Self {
        let cipher = CIPHER.to_owned();
        Self { encryption: Some(Encryption { cipher, fingerprint }), ..self }
    }

    /// Makes the store a repository; returns `false` if it already is one.
    ///
    /// # Errors
    /// When the store fails.
    pub fn create(&self, store: &Store) -> Result<bool> {
        let bytes = document::write(PATH, self).map_err(of_strata)?;
        match store.put_if_absent(PATH, bytes.clone()) {
            Ok(()) => Ok(true),
            // NFS sends link(2) again if the answer was lost, and then the file is this one's own.
            Err(error) if error.kind == StoreErrorKind::AlreadyExists => {
                match store.get_small(PATH, MAX_SIZE) {
                    Ok(there) => Ok(*there == *bytes),
                    Err(error) if error.kind == StoreErrorKind::TooLarge => Ok(false),
                    Err(error) => Err(of_store(error)),
                }
            }
            Err(error) => Err(of_store(error)),
        }
    }

    /// Puts it in the place of a damaged one, or of another repository's.
    ///
    /// # Errors
    /// When the store fails.
    pub(super) fn replace(&self, store: &Store) -> Result<()> {
        let bytes = document::write(PATH, self).map_err(of_strata)?;
        store.put(PATH, &[bytes.into()]).map_err(of_store)
    }

    /// Reads it from the store; `name` is the repository's name in the configuration.
    ///
    /// # Errors
    /// When there is none, or it is damaged or of a newer version.
    pub fn read(store: &Store, name: &str) -> Result<Self> {
        Self::find(store, name)?.ok_or_else(|| never_made(name))
    }

    /// The same as [`Format::read`], but returns `None` if the store is no repository.
    ///
    /// # Errors
    /// As [`Format::read`].
    pub fn find(store: &Store, name: &str) -> Result<Option<Self>> {
        match Self::look(store, name)? {
            Found::Format(format) => Ok(Some(format)),
            Found::Nothing => Ok(None),
            Found::Damaged(error) => Err(error),
        }
    }

    /// The same for a caller that can make a damaged one again.
    ///
    /// # Errors
    /// When it is of a newer version, or the store fails.
    pub(super) fn look(store: &Store, name: &str) -> Result<Found> {
        let damaged = |why: String| {
            let what = format!("{PATH} of repository \"{name}\" is damaged");
            let hint = format!(
                "it is small and never changes: put it back from a copy of the repository; if there is none, `{} repo init {name} --again` makes it again from what is there",
                lockstep()
            );
            Found::Damaged(Error::failed(what).because(why).with_hint(hint))
        };
        let bytes = match store.get_small(PATH, MAX_SIZE) {
            Ok(bytes) => bytes,
            Err(error) if error.kind == StoreErrorKind::NotFound => return Ok(Found::Nothing),
            Err(error) if error.kind == StoreErrorKind::TooLarge => {
                return Ok(damaged(error.to_string()));
            }
            // This is the first call to any repository, so one that can't be reached shows up here.
            Err(error) => {
                let error = of_store(error);
                let failed = Error::failed(format!("repository \"{name}\" can't be opened"))
                    .because(error.chain());
                return Err(match error.hint() {
                    Some(hint) => failed.with_hint(hint),
                    None => failed,
                });
            }
        };
        // The version is checked before everything that it may have changed.
        let format = match document::read::<serde_json::Value>(PATH, &bytes) {
            Ok(format) => format,
            Err(error) => return Ok(damaged(error.to_string())),
        };
        let version = format.get("version").and_then(serde_json::Value::as_u64).unwrap_or(0);
        if version > u64::from(VERSION) {
            return Err(newer_form(&format!("repository \"{name}\""), version, VERSION));
        }
        let strange = || format!("{PATH} of repository \"{name}\" is strange");
        let format: Self =
            serde_json::from_value(format).map_err(|e| Error::failed(strange()).because(e))?;
        match &format.encryption {
            Some(Encryption { cipher, .. }) if cipher != CIPHER => {
                let why = format!("its cipher is \"{cipher}\", not {CIPHER}");
                Err(Error::failed(strange()).because(why))
            }
            _ => Ok(Found::Format(format)),
        }
    }
}

pub(super) fn never_made(name: &str) -> Error {
    Error::usage(
        format!("repository \"{name}\" was never made: no {PATH} there"),
        format!("make it with `{} repo init {name}`", lockstep()),
    )
}

#[cfg(test)]
mod tests {
    use strata::store::ObjectStorage;

    use super::*;
    use crate::repository::keys;

    #[test]
    fn what_is_huge_is_not_read() {
        let scratch = tempfile::tempdir().unwrap();
        let folder = scratch.path().join("huge");
        let store = Store::new(ObjectStorage::folder(&folder).unwrap());
        std::fs::create_dir(folder.join("keys")).unwrap();
        for path in [PATH, "keys/a.json"] {
            // Larger than memory, yet no bytes on disk.
            std::fs::File::create(folder.join(path)).unwrap().set_len(1 << 42).unwrap();
        }
        let error = Format::read(&store, "offsite").unwrap_err().chain();
        assert!(error.contains("is damaged") && error.contains("larger than any"), "{error}");
        let (good, bad) = keys::list(&store).unwrap();
        assert!(good.is_empty() && bad.len() == 1 && bad[0].0 == "keys/a.json");
    }
}
