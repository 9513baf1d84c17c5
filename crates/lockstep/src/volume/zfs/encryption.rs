//! Native encryption: which datasets are encrypted, and their keys.
//!
//! What could go wrong: a ZFS that doesn't know the property `encryption` fails the whole command, so this is found
//! out once and remembered. While its key isn't loaded, a dataset can be sent raw and received, but neither mounted
//! nor sent in the clear.

use std::collections::BTreeMap;
use std::path::Path;

use super::{DatasetName, Zfs, said};
use crate::error::{Error, Result};

/// The property that doesn't exist if this ZFS has no encryption.
const ENCRYPTION: &str = "encryption";

/// An encrypted dataset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encryption {
    /// Its key is loaded.
    pub key_loaded: bool,
    /// The dataset that has the key: itself, or one above it.
    pub root: DatasetName,
}

impl Zfs {
    /// Returns those of `datasets` that are encrypted.
    ///
    /// # Errors
    /// When ZFS fails.
    pub fn encryption(
        &self,
        datasets: &[DatasetName],
    ) -> Result<BTreeMap<DatasetName, Encryption>> {
        if datasets.is_empty() || self.memory.property(ENCRYPTION) == Some(false) {
            return Ok(BTreeMap::new());
        }
        let names: Vec<_> = datasets.iter().map(DatasetName::to_string).collect();
        let found = match self.get(&names, &[ENCRYPTION, "keystatus", "encryptionroot"]) {
            Err(Error::Command { error, .. }) if said::knows_no_property(&error) => {
                self.memory.learn_property(ENCRYPTION, false);
                return Ok(BTreeMap::new());
            }
            other => other?,
        };
        self.memory.learn_property(ENCRYPTION, true);
        let mut encrypted = BTreeMap::new();
        for dataset in datasets {
            let value = |property: &str| {
                found
                    .get(dataset.as_str())
                    .and_then(|of| of.get(property))
                    .map_or("-", String::as_str)
            };
            if ["off", "-"].contains(&value(ENCRYPTION)) {
                continue;
            }
            let root = DatasetName::new(value("encryptionroot")).map_err(Error::failed)?;
            let key_loaded = value("keystatus") == "available";
            encrypted.insert(dataset.clone(), Encryption { key_loaded, root });
        }
        Ok(encrypted)
    }

    /// Where the key of an encryption root comes from: `prompt` or a URL.
    ///
    /// # Errors
    /// When ZFS fails.
    pub fn key_location(&self, root: &DatasetName) -> Result<String> {
        self.value(root, "keylocation")
    }

    /// Unloads a key.
    ///
    /// # Errors
    /// While something that needs it is mounted.
    pub fn unload_key(&self, root: &DatasetName) -> Result<()> {
        Ok(self.run_while_busy(["unload-key", root.as_str()])?)
    }

    /// Loads a key from a file. Nobody is prompted for it, because nobody may be there to answer.
    ///
    /// # Errors
    /// When it is the wrong key.
    pub fn load_key(&self, root: &DatasetName, location: &str) -> Result<()> {
        self.run(["load-key", "-L", location, root.as_str()])?;
        Ok(())
    }
}

/// Whether an encrypted dataset couldn't be mounted because the loaded key isn't its own. ZFS only says "permission
/// denied" then, which it also says to users without rights.
#[must_use]
pub fn is_another_key(error: &Error) -> bool {
    matches!(error, Error::Command { error, .. } if said::is_denied(error))
}

/// Whether a `keylocation` is an existing file on this host.
#[must_use]
pub fn is_local_key(location: &str) -> bool {
    location.strip_prefix("file://").is_some_and(|path| Path::new(path).is_file())
}
