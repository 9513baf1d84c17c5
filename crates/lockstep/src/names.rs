//! Names that are checked once and then trusted: clusters, sets, clones.
//!
//! They become file names, snapshot names, slot names and parts of dataset names, so each allows only what all of
//! these allow.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{self, Error};

/// A name with an invalid character or length.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{name}\" is no {kind}: {why}")]
pub struct NameError {
    name: String,
    kind: &'static str,
    why: &'static str,
}

fn check(name: &str, kind: &'static str) -> Result<(), NameError> {
    let wrong = |why| Err(NameError { name: name.to_owned(), kind, why });
    let mut characters = name.chars();
    match characters.next() {
        None => return wrong("it is empty"),
        Some(c) if !c.is_ascii_alphanumeric() => {
            return wrong("it begins with neither letter nor digit");
        }
        Some(_) => {}
    }
    if name.len() > 48 {
        return wrong("it is longer than 48 characters");
    }
    if !characters.all(|c| c.is_ascii_alphanumeric() || "._-".contains(c)) {
        return wrong("it may hold letters, digits, dots, dashes and underscores");
    }
    Ok(())
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(String);

        impl $type {
            /// Returns the name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $type {
            type Err = NameError;
            fn from_str(name: &str) -> Result<Self, NameError> {
                check(name, $kind)?;
                Ok(Self(name.to_owned()))
            }
        }

        impl TryFrom<String> for $type {
            type Error = NameError;
            fn try_from(name: String) -> Result<Self, NameError> {
                name.parse()
            }
        }

        impl From<$type> for String {
            fn from(name: $type) -> Self {
                name.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name!(
    /// A cluster's name in the configuration.
    ClusterName,
    "cluster name"
);
name!(
    /// A repository's name in the configuration.
    RepositoryName,
    "repository name"
);
name!(
    /// A backup set: the UTC time at which it began and four random characters, `20261123T194512Z-k3fa`; so sets sort
    /// by age.
    SetId,
    "set id"
);
name!(
    /// A throwaway server of `lockstep clone`.
    CloneName,
    "clone name"
);

impl SetId {
    /// Creates an id for a set that begins at `now`. Ids sort by time, even within a second: after the time, two
    /// characters say how much of the second had passed, and two more are random.
    ///
    /// # Errors
    /// When the system provides no random bytes.
    pub fn new(now: jiff::Timestamp) -> error::Result<Self> {
        let over = now.subsec_nanosecond().unsigned_abs() as usize * 1024 / 1_000_000_000;
        let mut suffix: String =
            [over / 32, over % 32].map(|n| char::from(DIGITS[n % 32])).into_iter().collect();
        suffix.push_str(&random_characters::<2>()?);
        Ok(Self(format!("{}-{suffix}", now.strftime("%Y%m%dT%H%M%SZ"))))
    }

    /// Returns when the set of this id was begun, to the second; nothing if it isn't such an id.
    #[must_use]
    pub fn begun_at(id: &str) -> Option<jiff::Timestamp> {
        let (time, _) = id.split_once('-')?;
        let time = jiff::civil::DateTime::strptime("%Y%m%dT%H%M%SZ", time).ok()?;
        jiff::tz::TimeZone::UTC.to_timestamp(time).ok()
    }

    /// Returns the name of this set's snapshots, without the dataset.
    #[must_use]
    pub fn snapshot_name(&self) -> String {
        format!("lockstep-{self}")
    }

    /// Returns the temporary slot's name; slots allow lower case, digits and underscores (slot.c).
    #[must_use]
    pub fn slot_name(&self) -> String {
        format!("lockstep_{}", self.0.to_lowercase().replace(['-', '.'], "_"))
    }
}

/// Which of some ids a user means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Meant {
    /// This one: it is the whole id, or the only one that begins like this.
    One(String),
    /// No id is or begins like this.
    Nothing,
    /// Several begin like this.
    Several(Vec<String>),
}

/// Finds the id that equals `which`, or the only one that begins with it. An empty text matches nothing: an empty
/// variable in a script must not mean the only set there is.
#[must_use]
pub fn meant<'a>(which: &str, ids: impl IntoIterator<Item = &'a str>) -> Meant {
    if which.is_empty() {
        return Meant::Nothing;
    }
    let mut found: Vec<_> = ids.into_iter().filter(|id| id.starts_with(which)).collect();
    found.sort_unstable();
    found.dedup();
    match found.as_slice() {
        [] => Meant::Nothing,
        [one] => Meant::One((*one).to_owned()),
        several if several.contains(&which) => Meant::One(which.to_owned()),
        several => Meant::Several(several.iter().map(|id| (*id).to_owned()).collect()),
    }
}

/// Checks that it consists of digits, and at least one: PostgreSQL names the files and folders of relations,
/// databases and tablespaces like this.
#[must_use]
pub fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// In byte order.
const DIGITS: &[u8; 32] = b"0123456789abcdefghijklmnopqrstuv";

/// Returns random bytes of the system's generator. Without them nothing is made that must be unique or secret.
///
/// # Errors
/// When the system has none.
pub fn random<const N: usize>() -> error::Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes)
        .map_err(|e| Error::failed("the system gives no random bytes").because(e))?;
    Ok(bytes)
}

/// Returns four random characters of `0-9a-v`.
///
/// # Errors
/// As [`random`].
pub fn random_suffix() -> error::Result<String> {
    random_characters::<4>()
}

/// Returns `N` of them.
///
/// # Errors
/// As [`random`].
pub fn random_characters<const N: usize>() -> error::Result<String> {
    let bytes = random::<N>()?;
    Ok(bytes.iter().map(|b| char::from(DIGITS[usize::from(b % 32)])).collect())
}

/// Whether a text is what [`random_characters`] returns for this `N`.
#[must_use]
pub fn are_random_characters<const N: usize>(text: &str) -> bool {
    text.len() == N && text.bytes().all(|byte| DIGITS.contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_beginning_means_the_only_id_that_has_it() {
        let ids = ["a", "ab", "b"];
        assert_eq!(meant("a", ids), Meant::One("a".into()), "its whole name");
        assert_eq!(meant("b", ids), Meant::One("b".into()));
        assert_eq!(meant("c", ids), Meant::Nothing);
        assert_eq!(meant("", ["b"]), Meant::Nothing);
        let several = Meant::Several(vec!["ab".into(), "ac".into()]);
        assert_eq!(meant("a", ["ac", "ab"]), several);
    }

    #[test]
    fn names_allow_what_files_snapshots_and_datasets_allow() {
        for good in ["main", "a", "pg15.prod-eu_1"] {
            assert_eq!(good.parse::<ClusterName>().unwrap().as_str(), good);
        }
        for bad in ["", "a/b", "a b", "-a", ".x", "a@b", "ü", &"x".repeat(49)] {
            assert!(bad.parse::<ClusterName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_number_is_digits_alone() {
        assert!(is_number("0") && is_number("16384"));
        for other in ["", "+1", "-1", "1.0", "16384_fsm", "١"] {
            assert!(!is_number(other), "{other}");
        }
    }

    #[test]
    fn random_characters_are_legal_everywhere() {
        let made = random_characters::<64>().unwrap();
        assert_eq!(made.len(), 64);
        assert!(are_random_characters::<64>(&made), "{made}");
        assert!(!are_random_characters::<64>(&made[1..]) && !are_random_characters::<1>("w"));
        assert_ne!(random::<16>().unwrap(), random::<16>().unwrap());
        assert_eq!(random_suffix().unwrap().len(), 4);
    }

    #[test]
    fn set_ids_sort_by_time_and_name_snapshots_and_slots() {
        let id = SetId::new("2026-11-23T19:45:12Z".parse().unwrap()).unwrap();
        assert!(id.as_str().starts_with("20261123T194512Z-00"), "{id}");
        let at = |time: &str| SetId::new(time.parse().unwrap()).unwrap();
        let ids = ["12Z", "12.002Z", "12.04Z", "12.5Z", "12.51Z", "12.999999999Z", "13Z"]
            .map(|second| at(&format!("2026-11-23T19:45:{second}")));
        assert!(ids.windows(2).all(|two| two[0] < two[1]), "{ids:?}");
        assert!(id.as_str().parse::<SetId>().is_ok());
        let slot = id.slot_name();
        assert!(slot.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_'));
        assert!(slot.len() < 64);
    }
}
