//! Wraps the data key of a repository: pure functions from a secret to a slot and back.
//!
//! ```text
//! key file    ─ BLAKE3 derive_key("lockstep 1 key file", file ‖ salt) ─┐
//! passphrase  ─ argon2id(passphrase, salt, parameters) ────────────────┴─ AES-256-GCM ─ the data key
//! ```
//!
//! What could go wrong: a key opens the wrong repository's slot (so the ids of the repository and of the slot are
//! sealed along with it), a nonce is used twice (so each wrapping has its own salt and thus its own key), and
//! parameters from the store take all of the memory (so they are bounded).

use aes_gcm::aead::{Aead, KeyInit, Payload};
use aes_gcm::{Aes256Gcm, Key as AesKey, Nonce};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::names::{random, random_characters};

/// The newest known form of a slot.
pub(super) const VERSION: u32 = 1;

/// The key that seals a repository's frames. Never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct DataKey([u8; 32]);

impl DataKey {
    /// Creates a new one.
    ///
    /// # Errors
    /// When the system has no random bytes.
    pub fn new() -> Result<Self> {
        random().map(Self)
    }

    /// Tells this key apart from every other, and reveals nothing about it.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        hex(&blake3::derive_key("lockstep 1 fingerprint of a data key", &self.0))
    }

    /// Returns the key in the repository crate's type.
    #[must_use]
    pub fn for_strata(&self) -> strata::frame::Key {
        strata::frame::Key::new(self.0)
    }
}

impl std::fmt::Debug for DataKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DataKey(..)")
    }
}

/// The secret that a person has. Never shown.
#[derive(Clone)]
pub enum Secret {
    /// The content of a key file.
    KeyFile([u8; 32]),
    /// A passphrase.
    Passphrase(Vec<u8>),
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::KeyFile(_) => "KeyFile(..)",
            Self::Passphrase(_) => "Passphrase(..)",
        })
    }
}

/// How a secret becomes a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Kdf {
    /// It is already a key; a salt is mixed in.
    KeyFile,
    /// RFC 9106, version 1.3.
    Argon2id {
        /// Memory, in KiB.
        memory_kib: u32,
        /// Passes over it.
        passes: u32,
        /// Lanes.
        lanes: u32,
    },
}

impl Kdf {
    /// What new passphrases get: 64 MiB three times is more than OWASP asks for, and a third of a second.
    pub const PASSPHRASE: Self = Self::Argon2id { memory_kib: 64 << 10, passes: 3, lanes: 1 };

    /// In words, for `repo key list`.
    #[must_use]
    pub fn words(&self) -> &'static str {
        match self {
            Self::KeyFile => "key file",
            Self::Argon2id { .. } => "passphrase",
        }
    }
}

/// The data key, wrapped with one secret: `keys/<id>.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Slot {
    /// 1.
    pub version: u32,
    /// Its name: the repository's id, `-` and eight random characters. Before that, it was these eight alone.
    pub id: String,
    /// The label given when it was added.
    pub label: String,
    /// When it was added, by the host's clock.
    pub created: jiff::Timestamp,
    /// The fingerprint of the data key that it wraps.
    pub fingerprint: String,
    /// How the secret becomes the wrapping key.
    pub kdf: Kdf,
    /// 16 random bytes, in hex.
    pub salt: String,
    /// 12 random bytes, in hex.
    pub nonce: String,
    /// The data key's 32 bytes and the seal's 16, in hex.
    pub wrapped: String,
}

/// Wraps the data key of the repository `repository` with `secret`.
///
/// # Errors
/// When the system has no random bytes, or not the memory that a passphrase takes.
pub fn wrap(
    key: &DataKey,
    secret: &Secret,
    passphrase: Kdf,
    repository: &str,
    label: &str,
) -> Result<Slot> {
    let kdf = match secret {
        Secret::KeyFile(_) => Kdf::KeyFile,
        Secret::Passphrase(_) => passphrase,
    };
    let (salt, nonce): ([u8; 16], [u8; 12]) = (random()?, random()?);
    let mut slot = Slot {
        version: VERSION,
        id: id_in(repository, &random_characters::<8>()?),
        label: label.to_owned(),
        created: jiff::Timestamp::now(),
        fingerprint: key.fingerprint(),
        kdf,
        salt: hex(&salt),
        nonce: hex(&nonce),
        wrapped: String::new(),
    };
    let Some(wrapping) = derive(secret, kdf, &salt)? else {
        return Err(Error::failed("a passphrase needs argon2id"));
    };
    let along = along(repository, &slot);
    let wrapped = wrapping
        .encrypt(&Nonce::from(nonce), Payload { msg: &key.0, aad: &along })
        .map_err(|_| Error::failed("the data key cannot be wrapped"))?;
    slot.wrapped = hex(&wrapped);
    Ok(slot)
}

/// Returns the data key if this secret opens the slot; `None` if not, or if it is of the other kind.
///
/// # Errors
/// When the slot's values are impossible, or there isn't the memory that a passphrase takes.
pub fn unwrap(slot: &Slot, secret: &Secret, repository: &str) -> Result<Option<DataKey>> {
    let strange = |what: &str| {
        Error::failed(format!("key \"{}\" of the repository has a strange {what}", slot.id))
    };
    let salt = unhex::<16>(&slot.salt).ok_or_else(|| strange("salt"))?;
    let nonce = unhex::<12>(&slot.nonce).ok_or_else(|| strange("nonce"))?;
    let wrapped = unhex::<48>(&slot.wrapped).ok_or_else(|| strange("content"))?;
    let Some(wrapping) = derive(secret, slot.kdf, &salt)? else { return Ok(None) };
    let along = along(repository, slot);
    let opened = wrapping.decrypt(&Nonce::from(nonce), Payload { msg: &wrapped, aad: &along });
    let key = opened.ok().and_then(|bytes| bytes.try_into().ok()).map(DataKey);
    Ok(key.filter(|key| key.fingerprint() == slot.fingerprint))
}

/// Makes the id of a slot. It begins with the id of its repository: nothing opens the slot without that, and
/// `lockstep.json` may be lost. A repository's id in any other form than Lockstep's own can't be part of a path.
fn id_in(repository: &str, random: &str) -> String {
    match !repository.is_empty() && repository.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        true => format!("{repository}-{random}"),
        false => random.to_owned(),
    }
}

/// Returns the id of the repository that a slot says it is of. Only opening the slot proves it.
#[must_use]
pub fn repository_of(slot: &Slot) -> Option<&str> {
    slot.id.rsplit_once('-').map(|(repository, _)| repository)
}

/// What is sealed along with the key: a slot opens only in its own repository and under its own name.
fn along(repository: &str, slot: &Slot) -> Vec<u8> {
    format!("lockstep 1 slot\n{repository}\n{}\n{}\n", slot.id, slot.fingerprint).into_bytes()
}

/// Derives the wrapping key; `None` if the secret is of another kind than the slot's.
fn derive(secret: &Secret, kdf: Kdf, salt: &[u8; 16]) -> Result<Option<Aes256Gcm>> {
    let key = match (secret, kdf) {
        (Secret::KeyFile(file), Kdf::KeyFile) => {
            let mut hasher = blake3::Hasher::new_derive_key("lockstep 1 key file");
            *hasher.update(file).update(salt).finalize().as_bytes()
        }
        (Secret::Passphrase(text), Kdf::Argon2id { memory_kib, passes, lanes }) => {
            argon2id(text, salt, memory_kib, passes, lanes)?
        }
        _ => return Ok(None),
    };
    Ok(Some(Aes256Gcm::new(&AesKey::<Aes256Gcm>::from(key))))
}

fn argon2id(text: &[u8], salt: &[u8], memory: u32, passes: u32, lanes: u32) -> Result<[u8; 32]> {
    let failed =
        |why: String| Error::failed("a passphrase cannot be made a key with argon2id").because(why);
    if memory > 1 << 20 || passes > 64 || lanes > 64 {
        return Err(failed(format!(
            "{memory} KiB, {passes} passes and {lanes} lanes are more than 1 GiB, 64 and 64"
        )));
    }
    let parameters = argon2::Params::new(memory, passes, lanes, Some(32))
        .map_err(|error| failed(error.to_string()))?;
    let mut key = [0; 32];
    argon2::Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, parameters)
        .hash_password_into(text, salt, &mut key)
        .map_err(|error| failed(error.to_string()))?;
    Ok(key)
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Parses exactly `N` bytes from as many pairs of hex digits.
pub(super) fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    if text.len() != 2 * N || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUICK: Kdf = Kdf::Argon2id { memory_kib: 32, passes: 1, lanes: 1 };

    fn secrets() -> [Secret; 2] {
        [Secret::KeyFile([7; 32]), Secret::Passphrase(b"correct horse".to_vec())]
    }

    #[test]
    fn a_secret_opens_what_it_wrapped_and_nothing_else() {
        let key = DataKey::new().unwrap();
        for secret in secrets() {
            let slot = wrap(&key, &secret, QUICK, "repo", "mine").unwrap();
            assert_eq!(unwrap(&slot, &secret, "repo").unwrap(), Some(key.clone()));
            assert_eq!(unwrap(&slot, &secret, "other").unwrap(), None, "another repository's");
            let moved = Slot { id: "other".into(), ..slot.clone() };
            assert_eq!(unwrap(&moved, &secret, "repo").unwrap(), None, "another slot's name");
            for wrong in [
                Secret::KeyFile([8; 32]),
                Secret::Passphrase(b"battery staple".to_vec()),
                Secret::Passphrase(vec![7; 32]),
            ] {
                assert_eq!(unwrap(&slot, &wrong, "repo").unwrap(), None, "{wrong:?}");
            }
        }
    }

    #[test]
    fn a_slot_says_of_which_repository_it_is() {
        let [secret, _] = secrets();
        let made =
            |repository| wrap(&DataKey::new().unwrap(), &secret, QUICK, repository, "").unwrap();
        assert_eq!(repository_of(&made("o0mv3k2p9x8y7z6w")), Some("o0mv3k2p9x8y7z6w"));
        // What is no part of a path, and the slots of before.
        for other in ["", "a/b", "..", "a-b"] {
            let slot = made(other);
            assert_eq!((repository_of(&slot), slot.id.len()), (None, 8), "{other}");
        }
    }

    #[test]
    fn every_flip_of_what_is_wrapped_is_found() {
        let key = DataKey::new().unwrap();
        let [secret, _] = secrets();
        let slot = wrap(&key, &secret, QUICK, "repo", "mine").unwrap();
        type Field = fn(&mut Slot) -> &mut String;
        let fields: [Field; 3] =
            [|slot| &mut slot.wrapped, |slot| &mut slot.nonce, |slot| &mut slot.salt];
        for field in fields {
            for at in 0..field(&mut slot.clone()).len() {
                let mut bad = slot.clone();
                let text = field(&mut bad);
                let instead = if text.as_bytes()[at] == b'0' { "1" } else { "0" };
                text.replace_range(at..=at, instead);
                assert_eq!(unwrap(&bad, &secret, "repo").unwrap(), None, "digit {at}");
            }
        }
        for strange in ["", "0", "zz", "é"] {
            let bad = Slot { salt: strange.into(), ..slot.clone() };
            assert!(unwrap(&bad, &secret, "repo").is_err(), "{strange:?}");
        }
    }

    #[test]
    fn parameters_from_the_store_are_bounded() {
        let [_, secret] = secrets();
        let slot = wrap(&DataKey::new().unwrap(), &secret, QUICK, "repo", "").unwrap();
        for kdf in [
            Kdf::Argon2id { memory_kib: u32::MAX, passes: 1, lanes: 1 },
            Kdf::Argon2id { memory_kib: 32, passes: u32::MAX, lanes: 1 },
            Kdf::Argon2id { memory_kib: 0, passes: 0, lanes: 0 },
        ] {
            let bad = Slot { kdf, ..slot.clone() };
            assert!(unwrap(&bad, &secret, "repo").is_err(), "{kdf:?}");
        }
    }

    #[test]
    fn nothing_shows_a_secret() {
        let key = DataKey([0x5a; 32]);
        assert_eq!(format!("{key:?}"), "DataKey(..)");
        assert_eq!(format!("{:?}", Secret::KeyFile([0x5a; 32])), "KeyFile(..)");
        assert_eq!(format!("{:?}", Secret::Passphrase(b"x".to_vec())), "Passphrase(..)");
        assert!(!key.fingerprint().contains("5a5a5a5a"));
    }

    #[test]
    fn a_slot_is_read_as_written() {
        let [_, secret] = secrets();
        let slot = wrap(&DataKey::new().unwrap(), &secret, Kdf::PASSPHRASE, "repo", "ä").unwrap();
        let text = serde_json::to_string(&slot).unwrap();
        assert!(
            text.contains(r#""kdf":{"kind":"argon2id","memory_kib":65536,"passes":3,"lanes":1}"#)
        );
        assert_eq!(serde_json::from_str::<Slot>(&text).unwrap(), slot);
    }
}
