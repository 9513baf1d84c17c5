//! Positions in the WAL and the identities they belong to, as types that can't be mixed up.
//!
//! An LSN, a timeline and a system identifier are all plain integers in PostgreSQL; if they are swapped by accident,
//! the wrong thing is restored without an error. Here each is its own type, checked where it is created.

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;

/// A position in the WAL: bytes since the WAL's beginning, PostgreSQL's `XLogRecPtr` (`xlogdefs.h`).
///
/// Ordering is only meaningful within one timeline, or along one [`TimelineHistory`](crate::TimelineHistory).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(u64);

impl Lsn {
    /// `0/0`, which PostgreSQL uses for "no position" (`InvalidXLogRecPtr`).
    pub const INVALID: Lsn = Lsn(0);

    /// The position that many bytes from the WAL's beginning.
    pub const fn new(bytes: u64) -> Self {
        Lsn(bytes)
    }

    /// Bytes since the WAL's beginning.
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// The position `bytes` later; `None` beyond what 64 bits hold.
    pub const fn checked_add(self, bytes: u64) -> Option<Self> {
        match self.0.checked_add(bytes) {
            Some(sum) => Some(Lsn(sum)),
            None => None,
        }
    }

    /// The position `bytes` earlier; `None` before the WAL's beginning.
    pub const fn checked_sub(self, bytes: u64) -> Option<Self> {
        match self.0.checked_sub(bytes) {
            Some(difference) => Some(Lsn(difference)),
            None => None,
        }
    }

    /// Returns the bytes of WAL from `earlier` to here; `None` if `earlier` is in fact later.
    pub const fn bytes_since(self, earlier: Lsn) -> Option<u64> {
        self.0.checked_sub(earlier.0)
    }
}

/// As PostgreSQL 13 to 18 print it: two upper-case hexadecimal halves without leading zeros, `16/B374D848`.
impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

/// Reads what `pg_lsn_in` (`pg_lsn.c`) reads: one to eight hexadecimal digits of either case, a slash, and again one to
/// eight. So it also reads the zero-padded form that later versions print.
impl FromStr for Lsn {
    type Err = ParseLsnError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || ParseLsnError::new(text);
        let (high, low) = text.split_once('/').ok_or_else(error)?;
        let high = hex_word(high).ok_or_else(error)?;
        let low = hex_word(low).ok_or_else(error)?;
        Ok(Lsn(u64::from(high) << 32 | u64::from(low)))
    }
}

/// Reads one to eight hexadecimal digits, without sign or space.
fn hex_word(digits: &str) -> Option<u32> {
    let plain = (1..=8).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_hexdigit());
    plain.then(|| u32::from_str_radix(digits, 16).ok()).flatten()
}

/// The text isn't an LSN.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{value}\" is not a WAL position such as \"16/B374D848\"")]
pub struct ParseLsnError {
    value: String,
}

impl ParseLsnError {
    fn new(value: &str) -> Self {
        ParseLsnError { value: excerpt(value.as_bytes()) }
    }
}

/// A timeline's number, never 0 (`TimeLineID`, `xlogdefs.h`). A new cluster is on timeline 1; each promotion or
/// recovery to a point in time takes a higher one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TimelineId(NonZeroU32);

impl TimelineId {
    /// The timeline of a new cluster (`BootstrapTimeLineID`, `xlog.h`).
    pub const FIRST: TimelineId = TimelineId(NonZeroU32::MIN);

    /// Returns `None` for 0, which PostgreSQL uses for "no timeline".
    pub const fn new(number: u32) -> Option<Self> {
        match NonZeroU32::new(number) {
            Some(number) => Some(TimelineId(number)),
            None => None,
        }
    }

    /// The number.
    pub const fn get(self) -> u32 {
        self.0.get()
    }
}

/// Decimal, as in PostgreSQL's messages and settings (file names contain it in hexadecimal).
impl fmt::Display for TimelineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Reads decimal digits.
impl FromStr for TimelineId {
    type Err = ParseTimelineIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        digits(text)
            .and_then(|number| u32::try_from(number).ok())
            .and_then(TimelineId::new)
            .ok_or_else(|| ParseTimelineIdError { value: excerpt(text.as_bytes()) })
    }
}

/// The text isn't a timeline's number.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{value}\" is not a timeline (a number from 1 to 4294967295)")]
pub struct ParseTimelineIdError {
    value: String,
}

/// Distinguishes clusters: made by initdb, the same in `pg_control`, in each WAL segment's first page and on every
/// standby (`system_identifier`, `pg_control.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SystemIdentifier(u64);

impl SystemIdentifier {
    /// Takes the number as it is; every value is legal.
    pub const fn new(number: u64) -> Self {
        SystemIdentifier(number)
    }

    /// The number.
    pub const fn as_u64(self) -> u64 {
        self.0
    }
}

/// Decimal, as `pg_controldata` and `pg_control_system()` print it.
impl fmt::Display for SystemIdentifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Reads decimal digits.
impl FromStr for SystemIdentifier {
    type Err = ParseSystemIdentifierError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        digits(text)
            .map(SystemIdentifier)
            .ok_or_else(|| ParseSystemIdentifierError { value: excerpt(text.as_bytes()) })
    }
}

/// The text isn't a system identifier.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{value}\" is not a system identifier (a decimal number of 64 bits)")]
pub struct ParseSystemIdentifierError {
    value: String,
}

/// Reads decimal digits and nothing else: no sign, space or underscore.
pub(crate) fn digits(text: &str) -> Option<u64> {
    let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    plain.then(|| text.parse().ok()).flatten()
}

/// Returns at most 80 bytes of what was found, printable, for an error message: an input may be a gigabyte of noise.
pub(crate) fn excerpt(bytes: &[u8]) -> String {
    const LIMIT: usize = 80;
    let shown = bytes.get(..LIMIT).unwrap_or(bytes);
    let mut text: String = String::from_utf8_lossy(shown).escape_debug().collect();
    if shown.len() < bytes.len() {
        text.push('…');
    }
    text
}

#[cfg(feature = "serde")]
mod serde_impls;

#[cfg(test)]
mod tests;
