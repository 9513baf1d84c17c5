//! A frame: about 1 MiB of block data, compressed, sealed where there is a key, hashed.
//!
//! ```text
//!  0..4   "stF1"
//!  4      1: the payload is zstd; 2: it is sealed
//!  5..8   zero
//!  8..12  length of the content, little-endian
//! 12..16  length of the payload (with the 16 bytes of the seal), little-endian
//! 16..48  BLAKE3 of: the pack's ULID (16 bytes, big-endian), the frame's offset in the pack (8, little-endian),
//!         bytes 0..16, the payload
//! 48..    the payload
//! ```
//!
//! The hash covers the frame's place, so a frame that is read from another pack or offset isn't taken for this one.
//!
//! **Nonces.** Each pack has a key of its own, derived from the data key and the pack's ULID, and a frame's nonce is
//! its offset in the pack. A pack's name is used once and no two frames begin at the same offset, so no pair of key and
//! nonce occurs twice; a pack that is uploaded again carries the same bytes. Bytes 0..16 are authenticated with the
//! payload.

use aes_gcm::aead::{Aead, KeyInit, Payload};
use aes_gcm::{Aes256Gcm, Key as AesKey, Nonce};

use crate::error::{Error, Result};
use crate::id::Ulid;

/// Length of the header before the payload.
pub const HEADER: usize = 48;
/// The most content a frame may have, and so the most memory that a reader needs for one.
pub const MAX_CONTENT: usize = 32 << 20;
/// Length of the seal.
const TAG: usize = 16;
const MAGIC: &[u8; 4] = b"stF1";
const ZSTD: u8 = 1;
const SEALED: u8 = 2;

/// The repository's data key. It is never shown.
#[derive(Clone)]
pub struct Key([u8; 32]);

impl Key {
    /// Makes a key of 32 random bytes that the caller keeps.
    pub fn new(bytes: [u8; 32]) -> Key {
        Key(bytes)
    }

    fn of_pack(&self, pack: Ulid) -> Aes256Gcm {
        let mut hasher = blake3::Hasher::new_derive_key("strata 1 key of a pack");
        hasher.update(&self.0).update(&pack.to_bytes());
        let key: [u8; 32] = *hasher.finalize().as_bytes();
        Aes256Gcm::new(&AesKey::<Aes256Gcm>::from(key))
    }

    /// Returns the code of a document at a path of the repository.
    pub(crate) fn authenticate(&self, path: &str, body: &[u8]) -> blake3::Hash {
        let key = blake3::derive_key("strata 1 key of documents", &self.0);
        let mut hasher = blake3::Hasher::new_keyed(&key);
        // No path contains a zero byte.
        hasher.update(path.as_bytes()).update(&[0]).update(body);
        hasher.finalize()
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key(..)")
    }
}

/// Where a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place<'a> {
    /// Path of the pack, for errors.
    pub path: &'a str,
    /// The pack.
    pub pack: Ulid,
    /// The frame's offset in it.
    pub at: u64,
}

/// Content, compressed where that makes it smaller.
#[derive(Clone, Debug)]
pub struct Compressed {
    content_length: usize,
    is_zstd: bool,
    payload: Vec<u8>,
    /// The content's hash, if it was requested.
    hash: Option<u128>,
}

impl Compressed {
    /// Returns how long the content is.
    pub(crate) fn content_length(&self) -> u64 {
        self.content_length as u64
    }

    /// Returns the content's hash, if it was requested.
    pub(crate) fn content_hash(&self) -> Option<u128> {
        self.hash
    }
}

/// Compresses the contents of frames one after another, so that zstd's tables are allocated once.
pub(crate) struct Squeezer {
    zstd: zstd::bulk::Compressor<'static>,
    hashes: bool,
}

impl Squeezer {
    /// Makes one with this level of zstd; with `hashes` the content is hashed too.
    pub(crate) fn new(level: i32, hashes: bool) -> Result<Squeezer> {
        let zstd = zstd::bulk::Compressor::new(level).map_err(Error::caller)?;
        Ok(Squeezer { zstd, hashes })
    }

    /// Compresses a content. This needs nothing else, so it may run on any thread.
    pub(crate) fn compress(&mut self, content: Vec<u8>) -> Result<Compressed> {
        let content_length = content.len();
        if content_length > MAX_CONTENT {
            return Err(Error::Invalid {
                what: "length of a frame",
                value: content_length.to_string(),
                expected: "at most 32 MiB",
            });
        }
        let hash = self.hashes.then(|| content_hash(&content));
        let (is_zstd, payload) = match self.zstd.compress(&content) {
            Ok(payload) if payload.len() < content_length => (true, payload),
            _ => (false, content),
        };
        Ok(Compressed { content_length, is_zstd, payload, hash })
    }
}

/// Distinguishes a content from another one that was to be written to the same place before. Every byte that is written
/// goes through this hash, so it is a fast one (XXH3). What is stored has a hash that nobody can forge.
pub(crate) fn content_hash(content: &[u8]) -> u128 {
    twox_hash::XxHash3_128::oneshot(content)
}

/// Compresses one frame's content.
pub fn compress(content: Vec<u8>, level: i32) -> Result<Compressed> {
    Squeezer::new(level, false)?.compress(content)
}

/// Returns the frame's bytes at its place.
pub fn finish(compressed: Compressed, place: Place<'_>, key: Option<&Key>) -> Result<Vec<u8>> {
    let Compressed { content_length, is_zstd, mut payload, .. } = compressed;
    let stored = payload.len() + if key.is_some() { TAG } else { 0 };
    let mut frame = Vec::with_capacity(HEADER + stored);
    frame.extend_from_slice(MAGIC);
    let flags = if is_zstd { ZSTD } else { 0 } | if key.is_some() { SEALED } else { 0 };
    frame.extend_from_slice(&[flags, 0, 0, 0]);
    // Both are at most 32 MiB.
    frame.extend_from_slice(&(content_length as u32).to_le_bytes());
    frame.extend_from_slice(&(stored as u32).to_le_bytes());
    if let Some(key) = key {
        payload = key
            .of_pack(place.pack)
            .encrypt(&nonce(place.at), Payload { msg: &payload, aad: &frame })
            .map_err(|_| Error::damaged(place.path, place.at, "it cannot be sealed"))?;
    }
    let hash = hash(place, &frame, &payload);
    frame.extend_from_slice(&hash);
    frame.extend_from_slice(&payload);
    Ok(frame)
}

/// Returns the length of the frame that begins with these bytes; `None` if they don't begin a frame.
pub fn length(header: &[u8]) -> Option<usize> {
    let payload = u32::from_le_bytes(header.get(12..16)?.try_into().ok()?) as usize;
    (header.get(..4)? == MAGIC && payload <= MAX_CONTENT + TAG).then_some(HEADER + payload)
}

/// Returns the content length that the header states, unchecked; 0 if it is cut short.
pub(crate) fn content_length(header: &[u8]) -> usize {
    let bytes = header.get(8..12).and_then(|bytes| bytes.try_into().ok());
    bytes.map_or(0, |bytes| u32::from_le_bytes(bytes) as usize)
}

/// Returns a frame's content, if the frame is the one that was written to this place.
pub fn open(frame: &[u8], place: Place<'_>, key: Option<&Key>) -> Result<Vec<u8>> {
    let mut content = Vec::new();
    Opener::default().open(frame, place, key, &mut content)?;
    Ok(content)
}

/// Opens frames one after another, so that zstd's tables are allocated once.
#[derive(Default)]
pub(crate) struct Opener {
    zstd: Option<zstd::bulk::Decompressor<'static>>,
}

impl Opener {
    /// Puts the content of a frame into `content`, whose allocation is reused, if the frame is the one that was written
    /// to this place.
    pub(crate) fn open(
        &mut self,
        frame: &[u8],
        place: Place<'_>,
        key: Option<&Key>,
        content: &mut Vec<u8>,
    ) -> Result<()> {
        let damaged = |why: &str| Error::damaged(place.path, place.at, why);
        let (Some(header), Some(stored_hash), Some(payload)) =
            (frame.get(..16), frame.get(16..HEADER), frame.get(HEADER..))
        else {
            return Err(damaged("the frame ends in its header"));
        };
        match length(header) {
            None => return Err(damaged("no frame begins here")),
            Some(length) if length != frame.len() => {
                return Err(damaged(&format!(
                    "the frame is {length} bytes, {} are there",
                    frame.len()
                )));
            }
            Some(_) => {}
        }
        if hash(place, header, payload) != stored_hash {
            return Err(damaged("the frame's hash is wrong"));
        }
        let flags = header[4];
        if flags & !(ZSTD | SEALED) != 0 {
            return Err(damaged("the frame has unknown flags"));
        }
        let content_length = content_length(header);
        if content_length > MAX_CONTENT {
            return Err(damaged("the frame's content is larger than a frame's may be"));
        }
        let sealed = |why| Error::Sealed { object: place.path.to_string(), at: place.at, why };
        let opened;
        let payload = match (flags & SEALED != 0, key) {
            (true, Some(key)) => {
                opened = key
                    .of_pack(place.pack)
                    .decrypt(&nonce(place.at), Payload { msg: payload, aad: header })
                    .map_err(|_| sealed("the key does not open it"))?;
                &opened[..]
            }
            (true, None) => return Err(sealed("no key was given")),
            // Anyone who can write to the store must not be able to put an unsealed frame in place of a sealed one.
            (false, Some(_)) => {
                return Err(damaged("the frame is not sealed, though there is a key"));
            }
            (false, None) => payload,
        };
        content.clear();
        if flags & ZSTD == 0 {
            content.extend_from_slice(payload);
        } else {
            content.reserve_exact(content_length);
            self.decompress(payload, content)
                .map_err(|error| damaged(&format!("the frame cannot be decompressed: {error}")))?;
        }
        if content.len() != content_length {
            return Err(damaged("the frame's content has another length than the frame says"));
        }
        Ok(())
    }

    fn decompress(&mut self, payload: &[u8], content: &mut Vec<u8>) -> std::io::Result<()> {
        let zstd = match &mut self.zstd {
            Some(zstd) => zstd,
            none => none.insert(zstd::bulk::Decompressor::new()?),
        };
        zstd.decompress_to_buffer(payload, content)?;
        Ok(())
    }
}

fn nonce(at: u64) -> Nonce<aes_gcm::aead::consts::U12> {
    let mut nonce = [0; 12];
    nonce[..8].copy_from_slice(&at.to_le_bytes());
    nonce.into()
}

fn hash(place: Place<'_>, header: &[u8], payload: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&place.pack.to_bytes()).update(&place.at.to_le_bytes());
    *hasher.update(header).update(payload).finalize().as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: Place<'static> = Place { path: "packs/x", pack: Ulid(7), at: 99 };

    fn contents() -> [Vec<u8>; 3] {
        let mut random = fastrand::Rng::with_seed(1);
        [Vec::new(), vec![5; 3000], (0..3000).map(|_| random.u8(..)).collect()]
    }

    fn frame(content: &[u8], key: Option<&Key>) -> Vec<u8> {
        finish(compress(content.to_vec(), 3).unwrap(), PLACE, key).unwrap()
    }

    #[test]
    fn every_flip_and_truncation_is_an_error_that_names_the_place() {
        let key = Key::new([3; 32]);
        for key in [None, Some(&key)] {
            for content in contents() {
                let good = frame(&content, key);
                assert_eq!(open(&good, PLACE, key).unwrap(), content);
                for length in 0..good.len() {
                    let error = open(&good[..length], PLACE, key).unwrap_err();
                    assert!(
                        error.to_string().contains("\"packs/x\" is damaged at byte 99"),
                        "{error}"
                    );
                }
                let mut bad = good.clone();
                for bit in 0..good.len() * 8 {
                    bad[bit / 8] ^= 1 << (bit % 8);
                    assert!(open(&bad, PLACE, key).is_err(), "bit {bit}");
                    bad[bit / 8] ^= 1 << (bit % 8);
                }
            }
        }
    }

    #[test]
    fn a_frame_opens_at_its_own_place_only() {
        let good = frame(b"abc", None);
        assert!(open(&good, Place { at: 98, ..PLACE }, None).is_err());
        assert!(open(&good, Place { pack: Ulid(8), ..PLACE }, None).is_err());
    }

    #[test]
    fn sealed_frames_need_their_key_and_open_ones_are_refused_where_there_is_one() {
        let (ours, other) = (Key::new([3; 32]), Key::new([4; 32]));
        let good = frame(&[7; 100], Some(&ours));
        let error = open(&good, PLACE, Some(&other)).unwrap_err();
        assert!(error.to_string().contains("the key does not open it"), "{error}");
        assert!(error.hint().is_some());
        assert!(matches!(open(&good, PLACE, None), Err(Error::Sealed { .. })));
        assert!(open(&frame(b"abc", None), PLACE, Some(&ours)).is_err());
        assert!(!format!("{ours:?}").contains('3'), "a key is never shown");
    }

    #[test]
    fn arbitrary_bytes_never_panic() {
        let mut random = fastrand::Rng::with_seed(2);
        for _ in 0..2000 {
            let length = random.usize(..200);
            let mut bytes: Vec<u8> = (0..length).map(|_| random.u8(..)).collect();
            if length > 4 {
                bytes[..4].copy_from_slice(MAGIC);
            }
            assert!(open(&bytes, PLACE, None).is_err());
        }
    }
}
