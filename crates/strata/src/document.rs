//! JSON objects that carry a hash of themselves: `{"body":…,"blake3":"…"}`.
//!
//! The hash covers the body's bytes as they are in the file, so another program can check it without writing JSON the
//! way this crate does. Nothing may surround or separate them, so that every flipped bit is found.
//!
//! A hash doesn't prove who wrote the object. If the repository has a key, the objects that name everything else
//! (manifests and descriptors) carry a code under that key instead: `{"body":…,"mac":"…"}`. What could go wrong: an
//! object without the code is accepted, and anyone who can write to the store invents sets. So such an object is
//! refused there.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::error::{Error, Result};
use crate::frame::Key;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope<'a> {
    #[serde(borrow)]
    body: &'a RawValue,
    blake3: Option<&'a str>,
    mac: Option<&'a str>,
}

/// How an object is proven to be as it was written.
#[derive(Clone, Copy)]
pub(crate) enum Proof<'a> {
    /// By its own hash.
    Hash,
    /// By the repository's key, and the path in the repository.
    Key(&'a Key, &'a str),
}

impl Proof<'_> {
    fn name(self) -> &'static str {
        match self {
            Proof::Hash => "blake3",
            Proof::Key(..) => "mac",
        }
    }

    fn of(self, body: &str) -> blake3::Hash {
        match self {
            Proof::Hash => blake3::hash(body.as_bytes()),
            Proof::Key(key, path) => key.authenticate(path, body.as_bytes()),
        }
    }

    fn enveloped(self, body: &str) -> String {
        format!("{{\"body\":{body},\"{}\":\"{}\"}}", self.name(), self.of(body).to_hex())
    }
}

/// Returns the object's bytes; `path` is for errors.
pub fn write(path: &str, body: &impl Serialize) -> Result<Vec<u8>> {
    write_with(path, body, Proof::Hash)
}

/// Does the same with another proof.
pub(crate) fn write_with(path: &str, body: &impl Serialize, proof: Proof<'_>) -> Result<Vec<u8>> {
    let body = serde_json::to_string(body)
        .map_err(|error| Error::Index { object: path.to_string(), source: Box::new(error) })?;
    Ok(proof.enveloped(&body).into_bytes())
}

/// Reads an object and checks that it is as it was written.
pub fn read<T: DeserializeOwned>(path: &str, bytes: &[u8]) -> Result<T> {
    read_with(path, bytes, Proof::Hash)
}

/// Does the same with another proof.
pub(crate) fn read_with<T: DeserializeOwned>(
    path: &str,
    bytes: &[u8],
    proof: Proof<'_>,
) -> Result<T> {
    let damaged = |error: serde_json::Error| {
        Error::damaged(path, error.column() as u64, format!("it cannot be read: {error}"))
    };
    let envelope: Envelope<'_> = serde_json::from_slice(bytes).map_err(damaged)?;
    let body = envelope.body.get();
    let sealed = |why| Error::Sealed { object: path.to_string(), at: 0, why };
    let found = match (proof, envelope.blake3, envelope.mac) {
        (Proof::Hash, Some(hash), None) => hash,
        (Proof::Key(..), None, Some(code)) => code,
        (Proof::Hash, _, Some(_)) => return Err(sealed("no key was given")),
        (Proof::Hash, None, None) => return Err(Error::damaged(path, 0, "it has no hash")),
        (Proof::Key(..), ..) => {
            let why = "it has no code under the repository's key: anybody could have written it, or it comes from a version before there were codes (make a new repository then)";
            return Err(Error::damaged(path, 0, why));
        }
    };
    // Hashes are compared in constant time.
    if blake3::Hash::from_hex(found).ok() != Some(proof.of(body)) {
        let why = match proof {
            Proof::Hash => "its hash is wrong",
            Proof::Key(..) => {
                "its code doesn't match the repository's key and this path: it is damaged or changed, or it was written under another name"
            }
        };
        return Err(Error::damaged(path, 0, why));
    }
    if proof.enveloped(body).as_bytes() != bytes {
        return Err(Error::damaged(path, 0, "it contains more than its body and hash"));
    }
    serde_json::from_str(body).map_err(damaged)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flip_and_truncation_is_found() {
        let good = write("x.json", &serde_json::json!({"a": "text", "b": [1, 2.5, null]})).unwrap();
        read::<serde_json::Value>("x.json", &good).unwrap();
        for length in 0..good.len() {
            assert!(read::<serde_json::Value>("x.json", &good[..length]).is_err());
        }
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            let error = read::<serde_json::Value>("x.json", &bad).unwrap_err();
            assert!(error.to_string().contains("\"x.json\""), "{error}");
        }
    }

    #[test]
    fn with_a_key_nothing_made_without_it_is_taken() {
        let (key, other) = (Key::new([1; 32]), Key::new([2; 32]));
        let body = serde_json::json!({"a": 1});
        let proof = Proof::Key(&key, "sets/a.json");
        let take = |bytes: &[u8], proof| read_with::<serde_json::Value>("x.json", bytes, proof);
        let good = write_with("x.json", &body, proof).unwrap();
        assert_eq!(take(&good, proof).unwrap(), body);
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(take(&bad, proof).is_err(), "bit {bit}");
        }
        // A code under another key, one for another path, and a hash that anybody can make.
        for bad in [
            write_with("x.json", &body, Proof::Key(&other, "sets/a.json")).unwrap(),
            write_with("x.json", &body, Proof::Key(&key, "sets/b.json")).unwrap(),
            write("x.json", &body).unwrap(),
        ] {
            assert!(take(&bad, proof).is_err());
        }
        assert!(read::<serde_json::Value>("x.json", &good).is_err());
        let old = take(&write("x.json", &body).unwrap(), proof).unwrap_err().to_string();
        assert!(old.contains("before there were codes"), "{old}");
    }
}
