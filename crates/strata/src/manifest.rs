//! Manifests: each names a set of images that belong together. A manifest is written last, so if it exists, the set is
//! complete.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::id::check_name;
use crate::lease::Still;
use crate::many::read_many;
use crate::repository::Repository;

const FORMAT: u32 = 1;

/// A delta that a set needs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeltaId {
    /// The image.
    pub image: String,
    /// The delta.
    pub id: String,
}

/// A set of images.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// 1.
    pub format: u32,
    /// The set's id.
    pub id: String,
    /// When it was made, in seconds of Unix time.
    pub created: u64,
    /// The images' states, each given by the delta that ends its chain.
    pub deltas: Vec<DeltaId>,
    /// What the caller knows about the set; opaque.
    pub about: serde_json::Value,
}

impl Manifest {
    /// Makes a manifest in the current format.
    pub fn new(id: &str, created: u64, deltas: Vec<DeltaId>, about: serde_json::Value) -> Manifest {
        Manifest { format: FORMAT, id: id.to_string(), created, deltas, about }
    }

    /// Writes it, once everything that it names is stored. An existing manifest is never overwritten.
    pub fn write(&self, repository: &Repository) -> Result<()> {
        let path = path(repository, &self.id)?;
        for delta in &self.deltas {
            check_name("image", &delta.image)?;
            check_name("delta", &delta.id)?;
        }
        repository.store().put_if_absent(&path, repository.write_proven(&path, self)?)?;
        Ok(())
    }

    /// Reads the manifest of a set.
    pub fn read(repository: &Repository, id: &str) -> Result<Manifest> {
        let path = path(repository, id)?;
        let manifest: Manifest = repository.read_proven(&path)?;
        if manifest.format > FORMAT {
            return Err(Error::Format { object: path, found: manifest.format, known: FORMAT });
        }
        if manifest.id != id {
            return Err(Error::damaged(
                &path,
                0,
                format!("it is the manifest of set \"{}\"", manifest.id),
            ));
        }
        Ok(manifest)
    }

    /// Returns the ids of all sets, ascending. What has no set's name is somebody else's: another program's leftover
    /// (`._ID.json`, `ID (1).json`) isn't a set that can't be read.
    pub fn list(repository: &Repository) -> Result<Vec<String>> {
        let mut ids = Vec::new();
        let folder = repository.path("sets/");
        repository.store().list(folder.trim_end_matches('/'), |listed| {
            let name = listed.path.strip_prefix(&folder);
            let id = name.and_then(|name| name.strip_suffix(".json"));
            ids.extend(id.filter(|id| check_name("set", id).is_ok()).map(str::to_string));
        })?;
        ids.sort();
        ids.dedup();
        Ok(ids)
    }

    /// Reads the manifests of all sets, several at a time, and passes them to `each` in ascending order of their ids.
    pub fn read_all(
        repository: &Repository,
        mut each: impl FnMut(Manifest) -> Result<()>,
    ) -> Result<()> {
        let read = |id: &String| Manifest::read(repository, id);
        read_many(&Manifest::list(repository)?, read, |_, manifest| each(manifest?))
    }

    /// Deletes a set's manifest; what only this set needed is collected later.
    pub fn delete(repository: &Repository, id: &str) -> Result<()> {
        Ok(repository.store().delete(&path(repository, id)?)?)
    }

    /// Does the same, and calls `still` before each try.
    pub fn delete_if(repository: &Repository, id: &str, still: Still<'_>) -> Result<()> {
        repository.store().delete_if(&path(repository, id)?, still)
    }
}

fn path(repository: &Repository, id: &str) -> Result<String> {
    check_name("set", id)?;
    Ok(repository.path(&format!("sets/{id}.json")))
}
