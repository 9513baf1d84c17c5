//! Names: ULIDs for packs and versions of index files, checked names for images, deltas, sets and leases.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::error::{Error, Result};

/// Crockford's alphabet.
const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";

/// A name that sorts by the time it was made: 48 bits of milliseconds, 80 random bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ulid(pub u128);

impl Ulid {
    /// Makes a new one.
    pub fn new() -> Result<Ulid> {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let mut random = [0; 16];
        getrandom::fill(&mut random).map_err(|error| Error::Random(error.to_string()))?;
        let random = u128::from_be_bytes(random) >> 48;
        Ok(Ulid((since.as_millis() & 0xFFFF_FFFF_FFFF) << 80 | random))
    }

    /// Returns its bytes, most significant first.
    pub fn to_bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }

    /// Returns its 26 characters.
    pub fn to_text(self) -> [u8; 26] {
        let mut text = [0; 26];
        for (index, letter) in text.iter_mut().enumerate() {
            *letter = ALPHABET[(self.0 >> (5 * (25 - index)) & 31) as usize];
        }
        text
    }

    /// Reads the 26 characters; only capitals are accepted, because only they are written.
    pub fn from_text(text: &[u8]) -> Option<Ulid> {
        if text.len() != 26 || text[0] > b'7' {
            return None;
        }
        let mut value = 0_u128;
        for letter in text {
            let digit = ALPHABET.iter().position(|known| known == letter)?;
            value = value << 5 | digit as u128;
        }
        Some(Ulid(value))
    }
}

impl fmt::Display for Ulid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_text().iter().try_for_each(|&letter| fmt::Write::write_char(f, letter.into()))
    }
}

impl FromStr for Ulid {
    type Err = Error;

    fn from_str(text: &str) -> Result<Ulid> {
        Ulid::from_text(text.as_bytes()).ok_or_else(|| Error::Invalid {
            what: "pack name",
            value: text.to_string(),
            expected: "a ULID of 26 characters",
        })
    }
}

/// Checks the name of an image, delta, set or lease. It must be one segment of a path that is the same on every store.
///
/// Callers whose names contain other characters (a ZFS dataset's slashes) encode them first.
pub fn check_name(what: &'static str, name: &str) -> Result<()> {
    let good = |letter: u8| letter.is_ascii_alphanumeric() || b"._-+=@,".contains(&letter);
    if name.is_empty() || name.len() > 200 || name.starts_with('.') || !name.bytes().all(good) {
        return Err(Error::Invalid {
            what,
            value: name.escape_default().to_string(),
            expected: "1 to 200 of A-Z a-z 0-9 . _ - + = @ , with no dot in front",
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ulids_are_read_as_written() {
        for value in [Ulid(0), Ulid(u128::MAX), Ulid::new().unwrap()] {
            assert_eq!(value.to_string().parse::<Ulid>().unwrap(), value);
        }
        assert!(Ulid::from_text(b"8ZZZZZZZZZZZZZZZZZZZZZZZZZ").is_none(), "more than 128 bits");
        assert!(Ulid::from_text(b"0000000000000000000000000u").is_none(), "not in the alphabet");
    }

    #[test]
    fn names_are_one_segment() {
        check_name("image", "tank=pg=data@1,5").unwrap();
        for bad in ["", ".", "..", "a/b", "a b", "a\n", "ä", "a%2Fb", "a#1"] {
            assert!(check_name("image", bad).is_err(), "{bad:?}");
        }
    }
}
