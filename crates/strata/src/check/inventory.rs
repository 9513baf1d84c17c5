//! What is in a repository, by kind.

use std::collections::BTreeMap;

use crate::error::Result;
use crate::id::{Ulid, check_name};
use crate::manifest::DeltaId;
use crate::repository::Repository;
use crate::store::Listed;

/// Everything below the repository's folder.
#[derive(Debug, Default)]
pub struct Inventory {
    /// Manifests, by set.
    pub sets: BTreeMap<String, Listed>,
    /// Descriptors.
    pub deltas: BTreeMap<DeltaId, Listed>,
    /// Index files, by path.
    pub indexes: BTreeMap<String, Listed>,
    /// Packs.
    pub packs: BTreeMap<Ulid, Listed>,
    /// Paths of everything else, such as another program's copies with names that no object has.
    pub foreign: Vec<String>,
}

impl Inventory {
    /// Lists what exists.
    pub fn take(repository: &Repository) -> Result<Inventory> {
        let mut inventory = Inventory::default();
        let folder = repository.path("");
        repository.store().list(folder.trim_end_matches('/'), |listed| {
            let path = repository.relative(&listed.path).to_string();
            inventory.sort(&path, listed);
        })?;
        // A listing that was retried may return an object twice.
        inventory.foreign.sort();
        inventory.foreign.dedup();
        Ok(inventory)
    }

    /// Returns an inventory of this path alone.
    pub(super) fn of_one(repository: &Repository, path: &str) -> Inventory {
        let mut inventory = Inventory::default();
        let listed = Listed { path: path.to_string(), size: 0, modified: 0 };
        inventory.sort(repository.relative(path), listed);
        inventory
    }

    fn sort(&mut self, path: &str, listed: Listed) {
        let segments: Vec<&str> = path.split('/').collect();
        match segments[..] {
            ["packs", name] => {
                if let Some(pack) = Ulid::from_text(name.as_bytes()) {
                    self.packs.insert(pack, listed);
                    return;
                }
            }
            ["sets", name] => {
                let set = name.strip_suffix(".json");
                if let Some(set) = set.filter(|set| check_name("set", set).is_ok()) {
                    self.sets.insert(set.to_string(), listed);
                    return;
                }
            }
            ["volumes", image, name] if check_name("image", image).is_ok() => {
                let id = name.strip_suffix(".json");
                if let Some(id) = id.filter(|id| check_name("delta", id).is_ok()) {
                    let delta = DeltaId { image: image.to_string(), id: id.to_string() };
                    self.deltas.insert(delta, listed);
                    return;
                }
                if name.ends_with(".parquet") && check_name("index file", name).is_ok() {
                    self.indexes.insert(listed.path.clone(), listed);
                    return;
                }
            }
            ["leases", _, _] | ["doomed.json"] | ["locks.json"] => return,
            _ => {}
        }
        self.foreign.push(listed.path);
    }
}
