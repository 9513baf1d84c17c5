//! JSON objects that carry a hash of themselves: `{"body":…,"blake3":"…"}`.
//!
//! The hash is that of the body's bytes as they are in the file, so another program can check it without writing
//! JSON the way this crate does. Nothing may be around or between them: every flipped bit is found.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::error::{Error, Result};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope<'a> {
    #[serde(borrow)]
    body: &'a RawValue,
    blake3: &'a str,
}

/// The object's bytes; `path` is for errors.
pub fn write(path: &str, body: &impl Serialize) -> Result<Vec<u8>> {
    let body = serde_json::to_string(body)
        .map_err(|error| Error::Index { object: path.to_string(), source: Box::new(error) })?;
    Ok(enveloped(&body).into_bytes())
}

fn enveloped(body: &str) -> String {
    format!("{{\"body\":{body},\"blake3\":\"{}\"}}", blake3::hash(body.as_bytes()).to_hex())
}

/// Reads one, if it is as it was written.
pub fn read<T: DeserializeOwned>(path: &str, bytes: &[u8]) -> Result<T> {
    let damaged = |error: serde_json::Error| {
        Error::damaged(path, error.column() as u64, format!("it cannot be read: {error}"))
    };
    let envelope: Envelope<'_> = serde_json::from_slice(bytes).map_err(damaged)?;
    let body = envelope.body.get();
    if *envelope.blake3 != *blake3::hash(body.as_bytes()).to_hex() {
        return Err(Error::damaged(path, 0, "its hash is wrong"));
    }
    if enveloped(body).as_bytes() != bytes {
        return Err(Error::damaged(path, 0, "there is something beside its body and hash"));
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
}
