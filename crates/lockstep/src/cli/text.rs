//! Arguments of the command line that only PostgreSQL interprets. What it wouldn't accept is refused here, before
//! anything is made.
//!
//! What could go wrong: a script's variable that isn't set. An empty recovery_target_name is no target at all, so
//! recovery continues to the end of the WAL.

/// The longest name of a restore point (MAXFNAMELEN in xlog_internal.h, less its terminating zero), in bytes.
const LONGEST_POINT: usize = 63;
/// The longest name of a slot (NAMEDATALEN, less its terminating zero), in bytes.
const LONGEST_SLOT: usize = 63;

/// A restore point's name (check_recovery_target_name in xlogrecovery.c).
pub(super) fn restore_point(text: &str) -> Result<String, String> {
    match text.len() {
        0 => Err("it is empty: is a variable not set?".into()),
        1..=LONGEST_POINT => Ok(text.to_owned()),
        length => Err(format!(
            "it has {length} bytes, and a restore point's name may have at most {LONGEST_POINT}"
        )),
    }
}

/// A timeline to recover along: a number as people write it, `current` or `latest`. Otherwise returns what to write.
///
/// PostgreSQL takes a number that begins with 0 for an octal one, or with 0x for a hexadecimal one
/// (check_recovery_target_timeline in xlogrecovery.c): it would recover along another timeline than the one that was
/// checked here, without an error.
pub(super) fn timeline(text: &str) -> Result<(), String> {
    let number = text.parse::<u32>().ok().filter(|number| *number > 0);
    if ["current", "latest"].contains(&text) || number.is_some_and(|it| it.to_string() == text) {
        return Ok(());
    }
    let is_of_a_name = text.len() == 8 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let of_a_name = u32::from_str_radix(text, 16).ok().filter(|it| is_of_a_name && *it > 0);
    Err(match of_a_name {
        Some(timeline) => format!(
            "the names of segments and histories have timelines in hexadecimal: for {text} write {timeline}"
        ),
        None => "write a number, current or latest".into(),
    })
}

/// A restore_command.
pub(super) fn command(text: &str) -> Result<String, String> {
    match text.trim().is_empty() {
        true => {
            Err("it is empty: is a variable not set? If there is no archive, leave it out".into())
        }
        false => Ok(text.to_owned()),
    }
}

/// A replication slot's name (ReplicationSlotValidateName in slot.c).
pub(super) fn slot(text: &str) -> Result<String, String> {
    let is_legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    if text.is_empty() {
        return Err("it is empty: is a variable not set?".into());
    }
    if text.len() > LONGEST_SLOT || !text.chars().all(is_legal) {
        return Err(format!(
            "a slot's name may only have lower-case letters, digits and _, at most {LONGEST_SLOT} of them"
        ));
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_empty_or_too_long_is_refused() {
        assert!(restore_point("").is_err() && restore_point(&"é".repeat(32)).is_err());
        for name in ["before the drop", " ", &"x".repeat(63)] {
            assert_eq!(restore_point(name).as_deref(), Ok(name));
        }
        assert!(command("").is_err() && command(" \n\t").is_err());
        assert_eq!(command("cp /a/%f %p").as_deref(), Ok("cp /a/%f %p"));
    }

    #[test]
    fn a_timeline_is_what_postgresql_takes_it_for() {
        for text in ["current", "latest", "1", "10", "4294967295"] {
            assert_eq!(timeline(text), Ok(()), "{text}");
        }
        for text in ["", "0", "010", "+2", " 2", "0x10", "-1", "first", "4294967296", "00000000"] {
            assert_eq!(timeline(text), Err("write a number, current or latest".into()), "{text}");
        }
        for (text, number) in [("00000002", "2"), ("00000010", "16"), ("0000000A", "10")] {
            let hint = timeline(text).unwrap_err();
            assert!(hint.ends_with(&format!("for {text} write {number}")), "{hint}");
        }
    }

    #[test]
    fn a_slot_is_called_as_postgresql_takes_it() {
        for bad in ["", "Bad", "bad-slot", "é", &"x".repeat(64)] {
            assert!(slot(bad).is_err(), "{bad}");
        }
        assert_eq!(slot("standby_2").as_deref(), Ok("standby_2"));
    }
}
