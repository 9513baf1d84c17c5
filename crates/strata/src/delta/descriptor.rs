//! A delta's descriptor: its id, its base, its files and their hashes. It is written last: with it, the delta exists.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::id::check_name;
use crate::lease::Still;
use crate::repository::Repository;

/// The newest format that this crate reads.
pub(crate) const FORMAT: u32 = 1;

/// An index file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IndexFile {
    /// Its name in the image's folder.
    pub name: String,
    /// Its size.
    pub size: u64,
    /// How many rows it has.
    pub rows: u64,
    /// Where its last row group ends; everything from here on is its footer.
    pub footer: u64,
    /// BLAKE3 of the footer, which holds the hash of each row group.
    pub blake3: String,
}

/// A delta.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Descriptor {
    /// 1.
    pub format: u32,
    /// What it is a delta of.
    pub image: String,
    /// Its name.
    pub id: String,
    /// The delta that it changes; `None` if this delta is the whole image.
    pub base: Option<String>,
    /// Entries, in ascending order over all the files.
    pub objects: Vec<IndexFile>,
    /// Extents, in ascending order over all the files.
    pub extents: Vec<IndexFile>,
    /// The packs that hold the extents' blocks, in ascending order over all the files.
    pub packs: Vec<IndexFile>,
    /// What the caller knows about the image's state; opaque. A merge keeps the newest's.
    #[serde(default, skip_serializing_if = "serde_json::Value::is_null")]
    pub about: serde_json::Value,
}

impl Descriptor {
    /// All of its index files.
    pub fn files(&self) -> impl Iterator<Item = &IndexFile> {
        self.objects.iter().chain(&self.extents).chain(&self.packs)
    }

    /// How many extents it has.
    pub fn extent_count(&self) -> u64 {
        self.extents.iter().map(|file| file.rows).sum()
    }
}

/// Returns the path of a delta's descriptor.
pub fn descriptor_path(repository: &Repository, image: &str, id: &str) -> Result<String> {
    check_name("image", image)?;
    check_name("delta", id)?;
    Ok(repository.image_path(image, &format!("{id}.json")))
}

/// Reads a descriptor and checks that it belongs to this delta.
pub fn read_descriptor(repository: &Repository, image: &str, id: &str) -> Result<Descriptor> {
    let path = descriptor_path(repository, image, id)?;
    let descriptor: Descriptor = repository.read_proven(&path)?;
    if descriptor.format > FORMAT {
        return Err(Error::Format { object: path, found: descriptor.format, known: FORMAT });
    }
    if descriptor.image != image || descriptor.id != id {
        let why = format!("it describes delta \"{}\" of \"{}\"", descriptor.id, descriptor.image);
        return Err(Error::damaged(&path, 0, why));
    }
    for file in descriptor.files() {
        check_name("index file", &file.name)?;
    }
    Ok(descriptor)
}

pub(crate) fn write_descriptor(
    repository: &Repository,
    descriptor: &Descriptor,
    still: Still<'_>,
) -> Result<()> {
    let path = descriptor_path(repository, &descriptor.image, &descriptor.id)?;
    let bytes = repository.write_proven(&path, descriptor)?;
    repository.store().put_if(&path, &[bytes.into()], still)
}

/// Returns the deltas that an image is folded from, oldest first: from the one without a base, or from the one after
/// `after`.
pub fn chain(
    repository: &Repository,
    image: &str,
    id: &str,
    after: Option<&str>,
) -> Result<Vec<Descriptor>> {
    let mut chain: Vec<Descriptor> = Vec::new();
    let mut seen = BTreeSet::new();
    let mut next = Some(id.to_string());
    while let Some(id) = next {
        if after == Some(id.as_str()) {
            chain.reverse();
            return Ok(chain);
        }
        let descriptor = read_descriptor(repository, image, &id)?;
        next = descriptor.base.clone();
        if !seen.insert(id.clone()) {
            return Err(broken(image, format!("delta \"{id}\" comes from itself")));
        }
        chain.push(descriptor);
    }
    if let Some(after) = after {
        return Err(broken(image, format!("delta \"{id}\" does not come after \"{after}\"")));
    }
    chain.reverse();
    Ok(chain)
}

fn broken(image: &str, why: String) -> Error {
    Error::Chain { image: image.to_string(), why }
}
