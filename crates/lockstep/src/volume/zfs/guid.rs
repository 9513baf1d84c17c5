//! A snapshot's GUID.
//!
//! What could go wrong: a GUID is a 64-bit number, like a transaction group or an LSN. It is stored as text, because
//! readers of JSON lose the low bits of a number. Compared as text, it would differ if somebody wrote a zero before
//! it, and text that isn't a GUID would be noticed only when ZFS is asked for it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::names::is_number;

/// Unique for ever; send and receive keep it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Guid(u64);

impl Guid {
    /// The GUID with this number.
    #[must_use]
    pub const fn new(number: u64) -> Self {
        Self(number)
    }
}

impl FromStr for Guid {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = text.parse().ok().filter(|_| is_number(text));
        number.map(Self).ok_or_else(|| format!("\"{}\" is no GUID", text.escape_debug()))
    }
}

impl TryFrom<String> for Guid {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Guid> for String {
    fn from(guid: Guid) -> Self {
        guid.to_string()
    }
}

/// Decimal, as ZFS prints it.
impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_a_number_of_64_bits_written_as_text() {
        let most = Guid::new(u64::MAX);
        let text = serde_json::to_string(&most).unwrap();
        assert_eq!(text, "\"18446744073709551615\"");
        assert_eq!(serde_json::from_str::<Guid>(&text).unwrap(), most);
        for wrong in ["", "x", "-1", "+1", " 1", "18446744073709551616"] {
            assert_eq!(wrong.parse::<Guid>(), Err(format!("\"{wrong}\" is no GUID")));
        }
        assert!(serde_json::from_str::<Guid>("1").is_err(), "a number");
    }
}
