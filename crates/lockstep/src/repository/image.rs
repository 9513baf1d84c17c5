//! What a delta's descriptor says about the snapshot that it ends at: what is needed to begin a send stream again,
//! and what was left out.

use std::collections::BTreeMap;

use sendstream::record::{Begin, ObjsetType};
use sendstream::{ByteOrder, Features};
use serde::{Deserialize, Serialize};

use super::newer_form;
use super::shipped::{LeftOut, Pages};
use crate::error::{Error, Result};
use crate::set::manifest::json;
use crate::volume::zfs::DatasetName;

/// The newest known form.
const VERSION: u32 = 1;

/// The state of an image.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageState {
    /// 1.
    pub version: u32,
    /// BEGIN of the stream, with the features of every stream since the first.
    pub begin: StreamBegin,
    /// Properties of the dataset that matter to PostgreSQL, as `zfs get` printed them.
    pub properties: BTreeMap<String, String>,
    /// The length of the stream from `zfs send`, in bytes.
    pub stream_bytes: u64,
    /// Files whose content isn't stored, by reason.
    pub left_out: Vec<LeftOut>,
    /// The objects and generations of these files, ascending. If one is needed later, all of it has to be sent.
    pub left_out_objects: Vec<(u64, u64)>,
    /// What the page checksums said.
    pub pages: Pages,
}

/// BEGIN of a send stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StreamBegin {
    /// Whether the sender was big-endian.
    pub big_endian: bool,
    /// Feature bits.
    pub features: u64,
    /// Seconds since 1970 at which the snapshot was taken.
    pub creation_time: u64,
    /// The flags of BEGIN.
    pub flags: u32,
    /// The snapshot's GUID, as text.
    pub to_guid: String,
    /// `pool/dataset@snapshot`.
    pub to_name: String,
}

impl ImageState {
    /// Creates a state in the current form.
    #[must_use]
    pub fn new(begin: StreamBegin, properties: BTreeMap<String, String>) -> Self {
        Self {
            version: VERSION,
            begin,
            properties,
            stream_bytes: 0,
            left_out: Vec::new(),
            left_out_objects: Vec::new(),
            pages: Pages::default(),
        }
    }

    /// Returns the state as a descriptor's `about`.
    ///
    /// # Errors
    /// When it can't be expressed in JSON.
    pub fn to_about(&self) -> Result<serde_json::Value> {
        serde_json::to_value(self).map_err(json("describe an image"))
    }

    /// Reads the state from a descriptor.
    ///
    /// # Errors
    /// When the descriptor's `about` isn't such a state.
    pub fn of(descriptor: &strata::delta::Descriptor) -> Result<Self> {
        let what = || format!("delta \"{}\" of \"{}\"", descriptor.id, descriptor.image);
        let state: Self = serde_json::from_value(descriptor.about.clone())
            .map_err(|e| Error::failed(format!("{} is strange", what())).because(e))?;
        if state.version > VERSION {
            return Err(newer_form(&what(), state.version, VERSION));
        }
        Ok(state)
    }
}

impl StreamBegin {
    /// Returns the state after a stream; `before` is the state of its base.
    #[must_use]
    pub fn after(begin: &Begin, before: Option<&Self>) -> Self {
        Self {
            big_endian: begin.order == ByteOrder::Big,
            features: begin.features.0 | before.map_or(0, |before| before.features),
            creation_time: begin.creation_time,
            flags: begin.flags,
            to_guid: begin.to_guid.to_string(),
            to_name: String::from_utf8_lossy(&begin.to_name).into_owned(),
        }
    }

    /// Returns the BEGIN of a stream that produces this state from nothing, or from the snapshot `from`.
    ///
    /// # Errors
    /// When the GUID isn't a valid one.
    pub fn begin(&self, from: Option<u64>) -> Result<Begin> {
        let guid = self.to_guid.parse().map_err(|_| {
            Error::failed(format!("\"{}\" of {} is no GUID", self.to_guid, self.to_name))
        })?;
        // The stream written is neither compressed nor embedded, whatever came in.
        let plain = Features::COMPRESSED.union(Features::LZ4).union(Features::ZSTD);
        let plain = plain.union(Features::EMBED_DATA).union(Features::HOLDS);
        let mut flags = self.flags;
        if from.is_none() {
            flags &= !(Begin::FLAG_CLONE | Begin::FLAG_FREERECORDS);
        }
        Ok(Begin {
            order: if self.big_endian { ByteOrder::Big } else { ByteOrder::Little },
            header_type: 1,
            features: Features(self.features).without(plain),
            creation_time: self.creation_time,
            objset: ObjsetType::FileSystem,
            flags,
            to_guid: guid,
            from_guid: from.unwrap_or(0),
            to_name: self.to_name.clone().into_bytes(),
        })
    }
}

/// The longest name that an image may have ([`strata::check_name`]).
pub(super) const LONGEST: usize = 200;
/// How much of a longer name stays readable.
const READABLE: usize = 150;

/// Returns an image's name: the dataset's, with each byte that a store's path can't hold written as `+` and two hex
/// digits, and `=` for each slash.
#[must_use]
pub fn image_name(dataset: &DatasetName) -> String {
    name_within(dataset, LONGEST)
}

/// The same if it has at most `longest` characters. Of a longer name: its beginning, a comma (which no other name
/// contains), and a hash of the dataset's whole name.
pub(super) fn name_within(dataset: &DatasetName, longest: usize) -> String {
    let mut name = String::new();
    for byte in dataset.as_str().bytes() {
        match byte {
            b'/' => name.push('='),
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'_' | b'-' => {
                name.push(char::from(byte));
            }
            _ => name.push_str(&format!("+{byte:02x}")),
        }
    }
    if name.len() > longest {
        name.truncate(READABLE);
        let hash = blake3::hash(dataset.as_str().as_bytes()).to_hex();
        name.push(',');
        name.push_str(hash.get(..32).unwrap_or_default());
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_images_are_paths_and_one_to_one() {
        let name = |text: &str| image_name(&DatasetName::new(text).unwrap());
        assert_eq!(name("tank/pg/data"), "tank=pg=data");
        assert_eq!(name("tank/my pg:1"), "tank=my+20pg+3a1");
        assert!(strata::check_name("image", &name("tank/a b:c.d_e-f")).is_ok());
    }

    #[test]
    fn long_names_of_datasets_have_images_too() {
        let dataset = |length: usize| {
            let text = format!("tank/{}", "p".repeat(length - 5));
            (DatasetName::new(&text).unwrap(), text.replace('/', "="))
        };
        // Names that fitted before stay as they are.
        let (fits, name) = dataset(200);
        assert_eq!(image_name(&fits), name);
        let shorter = name_within(&fits, 196);
        assert!(shorter.len() == 183 && shorter.starts_with(&format!("{},", &name[..150])));
        let long = [dataset(201).0, dataset(202).0, dataset(255).0];
        let odd = ["a", "b"]
            .map(|end| DatasetName::new(&format!("tank/{}{end}", ": ".repeat(100))).unwrap());
        let names: Vec<_> = long.iter().chain(&odd).map(image_name).collect();
        for (at, name) in names.iter().enumerate() {
            assert!(strata::check_name("image", name).is_ok(), "{name}");
            assert!(!names[..at].contains(name), "{name}");
        }
    }

    #[test]
    fn features_are_those_of_all_streams() {
        let begin = |features: Features| Begin {
            order: ByteOrder::Little,
            header_type: 1,
            features,
            creation_time: 7,
            objset: ObjsetType::FileSystem,
            flags: Begin::FLAG_SPILL_BLOCK | Begin::FLAG_FREERECORDS,
            to_guid: u64::MAX,
            from_guid: 0,
            to_name: b"tank/pg@lockstep-1".to_vec(),
        };
        let first = StreamBegin::after(&begin(Features::LARGE_BLOCKS), None);
        let both = StreamBegin::after(&begin(Features::LARGE_DNODE), Some(&first));
        let out = both.begin(None).unwrap();
        assert_eq!(out.features, Features::LARGE_BLOCKS.union(Features::LARGE_DNODE));
        assert_eq!((out.to_guid, out.flags), (u64::MAX, Begin::FLAG_SPILL_BLOCK));
    }
}
