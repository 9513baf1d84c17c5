//! What `pg_lsn` accepts and prints, and what it must refuse.

use super::*;
use proptest::prelude::*;

#[test]
fn prints_as_pg_lsn_does() {
    assert_eq!(Lsn::new(0x16_B374_D848).to_string(), "16/B374D848");
    assert_eq!(Lsn::new(0x0200_0028).to_string(), "0/2000028");
    assert_eq!(Lsn::new(u64::MAX).to_string(), "FFFFFFFF/FFFFFFFF");
    assert_eq!(Lsn::INVALID.to_string(), "0/0");
}

#[test]
fn reads_what_pg_lsn_in_reads() {
    for (text, lsn) in [
        ("16/B374D848", 0x16_B374_D848),
        ("16/b374d848", 0x16_B374_D848),
        ("0/0", 0),
        ("0/02000028", 0x0200_0028),
        ("00000001/00000002", 0x1_0000_0002),
        ("FFFFFFFF/FFFFFFFF", u64::MAX),
    ] {
        assert_eq!(text.parse(), Ok(Lsn::new(lsn)), "{text}");
    }
}

#[test]
fn refuses_what_pg_lsn_in_refuses() {
    for text in [
        "",
        "/",
        "0",
        "0/",
        "/0",
        "0/0/0",
        "0/ 0",
        " 0/0",
        "0/0 ",
        "G/0",
        "0/G",
        "-1/0",
        "+1/0",
        "0x1/0",
        "123456789/0",
        "0/123456789",
        "0/0\n",
        "０/0",
        "0_0/0",
    ] {
        assert!(text.parse::<Lsn>().is_err(), "{text:?}");
    }
}

#[test]
fn errors_quote_the_value_and_stay_short() {
    let error = "x".repeat(1 << 20).parse::<Lsn>().unwrap_err().to_string();
    assert!(error.len() < 200, "{error}");
    let error = "a\nb".parse::<Lsn>().unwrap_err().to_string();
    assert_eq!(error, "\"a\\nb\" is not a WAL position such as \"16/B374D848\"");
}

#[test]
fn arithmetic_stops_at_both_ends() {
    let lsn = Lsn::new(10);
    assert_eq!(lsn.checked_add(5), Some(Lsn::new(15)));
    assert_eq!(lsn.checked_sub(10), Some(Lsn::INVALID));
    assert_eq!(lsn.checked_sub(11), None);
    assert_eq!(Lsn::new(u64::MAX).checked_add(1), None);
    assert_eq!(lsn.bytes_since(Lsn::new(4)), Some(6));
    assert_eq!(lsn.bytes_since(Lsn::new(11)), None);
}

#[test]
fn timelines_begin_at_one() {
    assert_eq!(TimelineId::new(0), None);
    assert_eq!(TimelineId::new(1), Some(TimelineId::FIRST));
    assert_eq!("4294967295".parse(), Ok(TimelineId::new(u32::MAX).unwrap()));
    for text in ["", "0", "00", "-1", "+1", "1 ", "4294967296", "0x1", "latest"] {
        assert!(text.parse::<TimelineId>().is_err(), "{text:?}");
    }
}

#[test]
fn system_identifiers_are_decimal() {
    assert_eq!("7711465982927306946".parse(), Ok(SystemIdentifier::new(7711465982927306946)));
    assert_eq!("18446744073709551615".parse(), Ok(SystemIdentifier::new(u64::MAX)));
    for text in ["", "18446744073709551616", "-1", "+1", "1e3", " 1"] {
        assert!(text.parse::<SystemIdentifier>().is_err(), "{text:?}");
    }
}

#[cfg(feature = "serde")]
#[test]
fn manifests_hold_text_where_a_number_would_lose_bits() {
    fn round_trip<T>(value: T, json: &str)
    where
        T: serde::Serialize + serde::de::DeserializeOwned + PartialEq + std::fmt::Debug,
    {
        assert_eq!(serde_json::to_string(&value).unwrap(), json);
        assert_eq!(serde_json::from_str::<T>(json).unwrap(), value);
    }
    round_trip(Lsn::new(u64::MAX), "\"FFFFFFFF/FFFFFFFF\"");
    round_trip(SystemIdentifier::new(u64::MAX), "\"18446744073709551615\"");
    round_trip(TimelineId::new(7).unwrap(), "7");
    assert!(serde_json::from_str::<TimelineId>("0").is_err());
    assert!(serde_json::from_str::<Lsn>("\"x\"").is_err());
    assert!(serde_json::from_str::<Lsn>("1").is_err());
}

proptest! {
    #[test]
    fn lsn_round_trips(value: u64) {
        let lsn = Lsn::new(value);
        prop_assert_eq!(lsn.to_string().parse(), Ok(lsn));
        prop_assert_eq!(lsn.to_string().to_lowercase().parse(), Ok(lsn));
    }

    #[test]
    fn anything_that_reads_as_an_lsn_is_one(text in "[0-9a-fA-F/x ]{0,20}") {
        if let Ok(lsn) = text.parse::<Lsn>() {
            prop_assert_eq!(lsn.to_string().parse(), Ok(lsn));
        }
    }
}
