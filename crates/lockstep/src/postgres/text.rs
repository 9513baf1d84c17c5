//! Text as a server sends it, which need not be UTF-8.
//!
//! To PostgreSQL, a name, a path or a setting is a sequence of bytes. Shared catalogs hold names written in a
//! database of another encoding, and a UTF-8 database sends them as they are. Reading them as a `String` would be an
//! error in the middle of a backup.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use postgres::types::{FromSql, Type, accepts};

/// The bytes of a text.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Text(Vec<u8>);

impl Text {
    /// For people: what isn't UTF-8 becomes U+FFFD.
    #[must_use]
    pub fn lossy(&self) -> String {
        String::from_utf8_lossy(&self.0).into_owned()
    }

    /// Byte for byte.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    /// As a path, byte for byte.
    #[must_use]
    pub fn into_path(self) -> PathBuf {
        PathBuf::from(OsString::from_vec(self.0))
    }
}

impl<'a> FromSql<'a> for Text {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(raw.to_vec()))
    }

    accepts!(TEXT, VARCHAR, NAME, BPCHAR, UNKNOWN);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_taken_whatever_its_bytes_are() {
        let text = Text::from_sql(&Type::TEXT, b"gr\xf6\xdfe").unwrap();
        assert_eq!(text.lossy(), "gr\u{fffd}\u{fffd}e");
        assert_eq!(text.clone().into_bytes(), b"gr\xf6\xdfe");
        assert_eq!(text.into_path().as_os_str().as_encoded_bytes(), b"gr\xf6\xdfe");
        assert!(
            <Text as FromSql>::accepts(&Type::NAME) && !<Text as FromSql>::accepts(&Type::INT4)
        );
    }
}
