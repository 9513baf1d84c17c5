//! `lockstep.json`: that a folder or bucket is a repository, of which format, and its id.

use serde::{Deserialize, Serialize};
use strata::store::{Store, StoreErrorKind};

use super::of_store;
use crate::error::{Error, Result};
use crate::names::random_suffix;
use crate::set::manifest::json;

/// The newest format that is known.
const VERSION: u32 = 1;
const PATH: &str = "lockstep.json";

/// What `lockstep.json` says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Format {
    /// 1.
    pub version: u32,
    /// Tells this repository from every other.
    pub id: String,
}

impl Format {
    /// A new repository's.
    #[must_use]
    pub fn new() -> Self {
        Self { version: VERSION, id: (0..4).map(|_| random_suffix()).collect() }
    }

    /// Makes the store a repository; `false`: it is one already.
    ///
    /// # Errors
    /// When the store fails.
    pub fn create(&self, store: &Store) -> Result<bool> {
        let bytes = serde_json::to_vec_pretty(self).map_err(json("write lockstep.json"))?;
        match store.put_if_absent(PATH, bytes) {
            Ok(()) => Ok(true),
            Err(error) if error.kind == StoreErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(of_store(error)),
        }
    }

    /// Reads the store's; `name` is the repository's in the configuration.
    ///
    /// # Errors
    /// When there is none, or one of a newer version.
    pub fn read(store: &Store, name: &str) -> Result<Self> {
        let bytes = store.get(PATH).map_err(|error| match error.kind {
            StoreErrorKind::NotFound => {
                Error::failed(format!("repository \"{name}\" was never made: no {PATH} there"))
                    .with_hint(format!("make it with `lockstep repo init {name}`"))
            }
            _ => of_store(error),
        })?;
        let format: Self = serde_json::from_slice(&bytes)
            .map_err(|e| Error::failed(format!("{PATH} of \"{name}\" is damaged")).because(e))?;
        if format.version > VERSION {
            return Err(Error::failed(format!(
                "repository \"{name}\" has format {}, this lockstep knows {VERSION}",
                format.version
            ))
            .with_hint("use the version that made it, or a newer one"));
        }
        Ok(format)
    }
}

impl Default for Format {
    fn default() -> Self {
        Self::new()
    }
}
