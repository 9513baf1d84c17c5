//! Where recovery ends, and whether a set can get there.

use std::fmt;

use jiff::Timestamp;
use jiff::fmt::temporal::{Pieces, PiecesOffset};
use jiff::tz::{AmbiguousOffset, TimeZone};
use pgfiles::lsn::Lsn;

use super::conninfo::Conninfo;
use crate::error::{Error, Result};
use crate::refusal::Refusal;
use crate::set::manifest::Manifest;

/// Where recovery ends.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Target {
    /// At the end of the available WAL.
    #[default]
    End,
    /// recovery_target_time.
    Time(Timestamp),
    /// recovery_target_lsn.
    Lsn(Lsn),
    /// recovery_target_xid.
    Xid(u64),
    /// recovery_target_name.
    Name(String),
    /// As soon as the cluster is consistent.
    Immediate,
}

/// As part of a sentence: `target LSN 0/3000000 lies before …`.
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::End => write!(f, "the end of the WAL"),
            Self::Time(time) => write!(f, "time {time}"),
            Self::Lsn(lsn) => write!(f, "LSN {lsn}"),
            Self::Xid(xid) => write!(f, "transaction {xid}"),
            Self::Name(name) => write!(f, "restore point \"{name}\""),
            Self::Immediate => write!(f, "\"immediate\""),
        }
    }
}

/// What happens at the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Action {
    /// End recovery: the cluster takes writes, on a new timeline.
    #[default]
    Promote,
    /// Stay in recovery; the cluster can be read.
    Pause,
    /// Stop the server.
    Shutdown,
}

impl Action {
    /// The value of recovery_target_action.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Promote => "promote",
            Self::Pause => "pause",
            Self::Shutdown => "shutdown",
        }
    }
}

/// Everything that is requested of recovery.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Recovery {
    /// Where it ends.
    pub target: Target,
    /// It ends before what has this time, LSN or number, instead of after it (recovery_target_inclusive = off).
    pub exclusive: bool,
    /// recovery_target_timeline: a number, `current` or `latest` (PostgreSQL's default).
    pub timeline: Option<String>,
    /// What happens there.
    pub action: Action,
    /// How WAL beyond the set's own is fetched.
    pub restore_command: Option<String>,
    /// The set is of a cluster that was shut down, so it needs no recovery of its own.
    pub set_is_shut_down: bool,
    /// The set was taken with wal_level = minimal, so it is recovered as after a crash.
    pub set_is_minimal: bool,
    /// archive_mode stays as it was.
    pub keep_archiving: bool,
    /// Recovery doesn't end: the cluster becomes a standby.
    pub standby: Option<Standby>,
}

/// The server that a standby follows, if it doesn't only read what `restore_command` fetches.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Standby {
    /// primary_conninfo.
    pub primary: Option<Conninfo>,
    /// primary_slot_name.
    pub slot: Option<String>,
}

impl Recovery {
    /// The timeline that was given by its number. It may not be the set's own.
    #[must_use]
    pub fn asked_timeline(&self) -> Option<u32> {
        self.timeline.as_ref()?.parse().ok()
    }

    /// The signal file for this kind of recovery, if one is needed. A cold set without a target or an archive starts
    /// as it is, unless it is to archive: the archive may have the original's later segments of its timeline, under the
    /// names that it would give its own. A set with wal_level = minimal goes through crash recovery, because PostgreSQL
    /// refuses any other (CheckRequiredParameterValues in xlogrecovery.c). Every other restored cluster gets its own
    /// timeline, except a standby.
    #[must_use]
    pub fn signal(&self) -> Option<&'static str> {
        if self.standby.is_some() {
            return Some("standby.signal");
        }
        let is_whole = self.set_is_shut_down || self.set_is_minimal;
        let is_beside_the_original = self.keep_archiving && !self.set_is_minimal;
        let recovers = !is_whole
            || self.target != Target::End
            || self.restore_command.is_some()
            || self.asked_timeline().is_some()
            || is_beside_the_original;
        recovers.then_some("recovery.signal")
    }

    /// Whether the set's own WAL is replayed.
    #[must_use]
    pub fn replays(&self) -> bool {
        !self.set_is_shut_down || self.signal().is_some()
    }

    /// Whether recovery from this set is certain to reach its target, provided that the target is on the way to the
    /// timeline that recovery follows; only histories can tell that. A set that doesn't record when it became
    /// consistent counts as consistent from the time when it was finished. For an LSN its floor or else its stop LSN
    /// decides.
    #[must_use]
    pub fn comes_from(&self, manifest: &Manifest) -> bool {
        let own = manifest.timeline().get();
        let has_branched = self.asked_timeline().is_some_and(|asked| own > asked);
        let is_before = match &self.target {
            Target::Time(time) => manifest.consistent_at.unwrap_or(manifest.finished_at) <= *time,
            Target::Lsn(lsn) => {
                manifest.floor().or(manifest.stop_lsn).is_some_and(|floor| floor <= *lsn)
            }
            Target::End | Target::Xid(_) | Target::Name(_) | Target::Immediate => true,
        };
        let is_allowed = !manifest.postgres.wal_minimal || self.more_than_a_crash().is_none();
        is_before && !has_branched && is_allowed
    }

    /// What is requested that crash recovery can't do.
    fn more_than_a_crash(&self) -> Option<String> {
        match (&self.standby, &self.target, &self.restore_command) {
            (Some(_), ..) => Some("a standby".to_owned()),
            (None, Target::End, None) => self.asked_timeline().map(|it| format!("timeline {it}")),
            (None, Target::End, Some(_)) => Some("WAL of an archive".to_owned()),
            (None, target, _) => Some(target.to_string()),
        }
    }

    /// Refuses a target before the point where the set is consistent, as far as the manifest can tell; PostgreSQL
    /// refuses the rest.
    ///
    /// # Errors
    /// [`Refusal::TargetBeforeConsistency`] with the earliest possible target; [`Refusal::NeedsArchive`] if the set
    /// doesn't carry all of its WAL.
    pub fn check(&self, manifest: &Manifest) -> Result<(), Refusal> {
        if let Some(asked) = self.more_than_a_crash().filter(|_| manifest.postgres.wal_minimal) {
            return Err(Refusal::MinimalWal { set: manifest.set.to_string(), asked });
        }
        if !manifest.wal.archived.is_empty() && self.restore_command.is_none() {
            return Err(Refusal::NeedsArchive {
                set: manifest.set.to_string(),
                segments: manifest.wal.archived.clone(),
            });
        }
        let before = |earliest: String| {
            Err(Refusal::TargetBeforeConsistency { target: self.target.to_string(), earliest })
        };
        match (&self.target, manifest.floor(), manifest.consistent_at) {
            (Target::Lsn(lsn), Some(floor), _) if *lsn < floor => before(format!("LSN {floor}")),
            (Target::Time(time), _, Some(earliest)) if *time < earliest => {
                before(earliest.to_string())
            }
            _ => Ok(()),
        }
    }
}

/// Parses a time as people write it: RFC 3339, with or without the name of a zone; PostgreSQL's forms (`2026-11-23
/// 19:45:12.5+00`, `2026-11-23 19:45:12 UTC`), and that of `date '+%F %T %z'`. Without a zone, it is in this host's.
///
/// What could go wrong: ignoring a zone, or taking a local time that occurs twice or never, gives a moment that is
/// off by an hour or more, and nothing fails. So anything unclear is refused.
///
/// # Errors
/// [`Error::Usage`] with the forms that are understood, or the moments that could be meant.
pub fn parse_time(text: &str) -> Result<Timestamp> {
    parse_time_in(text, TimeZone::try_system)
}

/// The same, for a host in this zone.
fn parse_time_in(
    text: &str,
    here: impl FnOnce() -> Result<TimeZone, jiff::Error>,
) -> Result<Timestamp> {
    let wrong = |why: Option<jiff::Error>| {
        let why = why.map(|why| format!(": {why}")).unwrap_or_default();
        Error::usage(
            format!("\"{text}\" is no time{why}"),
            "write it as 2026-11-23T19:45:12Z, \"2026-11-23 19:45:12+01\", \"2026-11-23 19:45:12[Europe/Berlin]\", or without a zone for this host's",
        )
    };
    let plain = without_spaces(text.trim());
    let pieces = Pieces::parse(&plain).map_err(|_| wrong(None))?;
    let time = pieces.date().to_datetime(pieces.time().unwrap_or_default());
    let named = pieces.to_time_zone().map_err(|error| wrong(Some(error)))?;
    let zone = match (pieces.to_numeric_offset(), named) {
        (Some(offset), zone) => {
            let moment = offset.to_timestamp(time).map_err(|error| wrong(Some(error)))?;
            // `Z` says nothing about a zone given with it.
            let is_utc = matches!(pieces.offset(), Some(PiecesOffset::Zulu));
            return match zone.map(|zone| zone.to_offset(moment)).filter(|_| !is_utc) {
                Some(in_zone) if in_zone != offset => Err(Error::usage(
                    format!("\"{text}\" contradicts itself: at that time the offset of its zone is {in_zone}"),
                    "write one of the two: the offset, or the zone",
                )),
                _ => Ok(moment),
            };
        }
        (None, Some(zone)) => zone,
        (None, None) => here().map_err(|error| {
            Error::usage(
                format!("\"{text}\" has no zone, and this host's isn't known: {error}"),
                "write it with one, as 2026-11-23T19:45:12Z or \"2026-11-23 19:45:12+01\", or set TZ",
            )
        })?,
    };
    let found = zone.to_ambiguous_timestamp(time);
    let how_often = match found.offset() {
        AmbiguousOffset::Unambiguous { .. } => {
            return found.unambiguous().map_err(|error| wrong(Some(error)));
        }
        AmbiguousOffset::Gap { .. } => "no time: the clocks there were put forward and skipped it",
        AmbiguousOffset::Fold { .. } => "two times: the clocks there were put back and repeated it",
    };
    let candidates = [found.earlier(), found.later()].into_iter().flatten();
    let candidates: Vec<_> =
        candidates.map(|moment| format!("\"{}\"", in_zone(moment, &zone))).collect();
    Err(Error::usage(
        format!("\"{text}\" is {how_often}"),
        format!("write which is meant: {}", candidates.join(" or ")),
    ))
}

/// Removes the blank between the time and its zone: ` UTC` and ` GMT`, as PostgreSQL writes them to its log and its
/// backup_label, and ` +0100`, as `date` does.
fn without_spaces(text: &str) -> String {
    match text.rsplit_once(' ') {
        Some((time, "UTC" | "GMT" | "Z")) => format!("{time}Z"),
        Some((time, zone)) if zone.starts_with(['+', '-']) => format!("{time}{zone}"),
        _ => text.to_owned(),
    }
}

/// A moment in a zone: `2026-11-23 19:45:12.5+01:00`.
fn in_zone(moment: Timestamp, zone: &TimeZone) -> String {
    moment.to_zoned_datetime(zone.clone()).strftime("%Y-%m-%d %H:%M:%S%.f%:z").to_string()
}

/// A moment in this host's zone, if that is known.
#[must_use]
pub fn local(moment: Timestamp) -> Option<String> {
    TimeZone::try_system().ok().map(|zone| in_zone(moment, &zone))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::set::manifest::tests::manifest;

    #[test]
    fn times_are_read_in_the_usual_forms() {
        let utc = |text| parse_time(text).unwrap().to_string();
        assert_eq!(utc("2026-11-23T19:45:12Z"), "2026-11-23T19:45:12Z");
        assert_eq!(utc("2026-11-23 19:45:12.25+00"), "2026-11-23T19:45:12.25Z");
        assert_eq!(utc("2026-11-23 19:45:12-03:30"), "2026-11-23T23:15:12Z");
        assert_eq!(utc("2026-11-23 19:45:12+05"), "2026-11-23T14:45:12Z");
        assert!(parse_time("2026-11-23 19:45:12").is_ok());
        assert!(parse_time("2026-11-23").is_ok());
        for bad in ["", "now", "yesterday", "19:45", "2026-13-01", "é", "2026-11-23é9:45:12+01"] {
            assert_eq!(parse_time(bad).unwrap_err().exit_code(), 2, "{bad}");
        }
        // As PostgreSQL's log and backup_label, and `date '+%F %T %z'` print them.
        for text in [
            "2026-11-23 19:45:12 UTC",
            "2026-11-23 19:45:12 GMT",
            "2026-11-23 20:45:12 +0100",
            "2026-11-23 20:45:12 +01",
            "2026-11-23 14:45:12 -05:00",
            "2026-11-23 19:45:12z",
            "2026-11-23T20:45:12+01[u-ca=iso8601]",
        ] {
            assert_eq!(utc(text), "2026-11-23T19:45:12Z", "{text}");
        }
    }

    #[test]
    fn a_zone_that_is_named_is_that_of_the_time() {
        let utc = |text| parse_time(text).unwrap().to_string();
        for text in [
            "2025-11-27T14:29:49[Europe/Berlin]",
            "2025-11-27 14:29:49+01:00[Europe/Berlin]",
            "2025-11-27 13:29:49Z[Europe/Berlin]",
            "2025-11-27 08:29:49[America/New_York]",
        ] {
            assert_eq!(utc(text), "2025-11-27T13:29:49Z", "{text}");
        }
        let refused = |text| {
            let error = parse_time(text).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{text}");
            error.to_string()
        };
        let said = refused("2025-11-27 14:29:49-05:00[Europe/Berlin]");
        assert!(
            said.contains("contradicts itself: at that time the offset of its zone is +01"),
            "{said}"
        );
        assert!(refused("2025-11-27 14:29:49[Nonsense/Zone]").contains("Nonsense/Zone"));
        // Short names of zones are ambiguous.
        refused("2025-11-27 14:29:49 CET");
    }

    #[test]
    fn a_local_time_that_comes_twice_or_never_is_refused_with_what_could_be_meant() {
        let berlin = || TimeZone::get("Europe/Berlin");
        let at = |text: &str| parse_time_in(text, berlin);
        assert_eq!(at("2025-10-26 03:30:00").unwrap().to_string(), "2025-10-26T02:30:00Z");
        for (text, one, other) in [
            ("2025-10-26 02:30:00", "2025-10-26 02:30:00+02:00", "2025-10-26 02:30:00+01:00"),
            ("2025-03-30 02:30:00", "2025-03-30 01:30:00+01:00", "2025-03-30 03:30:00+02:00"),
        ] {
            for text in [text.to_owned(), format!("{text}[Europe/Berlin]")] {
                let error = at(&text).unwrap_err();
                assert_eq!(error.exit_code(), 2);
                let hint = error.hint().unwrap();
                assert!(hint.contains(one) && hint.contains(other), "{hint}");
                // The suggestions are understood.
                assert_ne!(at(one).unwrap(), at(other).unwrap());
            }
        }
        let unknown = || TimeZone::get("Nonsense/Zone");
        let error = parse_time_in("2025-10-26 02:30:00", unknown).unwrap_err();
        assert!(error.to_string().contains("this host's isn't known"), "{error}");
        parse_time_in("2025-10-26 02:30:00Z", unknown).unwrap();
    }

    #[test]
    fn a_target_is_told_in_words() {
        let said = |target: Target| target.to_string();
        assert_eq!(said(Target::Lsn(Lsn::new(0x0300_0000))), "LSN 0/3000000");
        let time = "2026-11-23T19:45:12Z";
        assert_eq!(said(Target::Time(parse_time(time).unwrap())), format!("time {time}"));
        assert_eq!(said(Target::Xid(740)), "transaction 740");
        assert_eq!(said(Target::Name("before it".into())), "restore point \"before it\"");
        assert_eq!(said(Target::Immediate), "\"immediate\"");
        assert_eq!(said(Target::End), "the end of the WAL");
    }

    #[test]
    fn recovery_comes_to_a_target_from_sets_before_it_and_on_its_timeline() {
        // Timeline 3, from 19:45:12.25 to 19:45:14.125, stop 1/2000138.
        let mut set = manifest("20261123T194512Z-k3fa", Vec::new());
        let to = |target: Target| Recovery { target, ..Recovery::default() };
        let time = |text| to(Target::Time(parse_time(text).unwrap()));
        let lsn = |text: &str| to(Target::Lsn(text.parse().unwrap()));
        assert!(!time("2026-11-23T19:45:14Z").comes_from(&set), "it was finished later");
        assert!(time("2026-11-23T19:45:15Z").comes_from(&set));
        set.consistent_at = Some("2026-11-23T19:45:13Z".parse().unwrap());
        assert!(time("2026-11-23T19:45:13Z").comes_from(&set));
        assert!(!time("2026-11-23T19:45:12.9Z").comes_from(&set));
        assert!(lsn("1/2000138").comes_from(&set) && !lsn("1/2000137").comes_from(&set));
        set.floor_lsn = Some(Lsn::new(0x300_0000));
        assert!(lsn("0/3000000").comes_from(&set) && !lsn("0/2FFFFFF").comes_from(&set));
        for (timeline, comes) in [("2", false), ("3", true), ("latest", true), ("current", true)] {
            let recovery = Recovery { timeline: Some(timeline.into()), ..lsn("0/4000000") };
            assert_eq!(recovery.comes_from(&set), comes, "{timeline}");
        }
    }

    #[test]
    fn a_set_of_minimal_wal_leads_nowhere_but_to_its_own_end() {
        let mut set = manifest("20261123T194512Z-k3fa", Vec::new());
        set.wal.archived.clear();
        set.postgres.wal_minimal = true;
        let end = Recovery::default();
        assert_eq!(end.check(&set), Ok(()));
        for asked in [
            Recovery { target: Target::Immediate, ..end.clone() },
            Recovery { target: Target::Lsn(Lsn::new(1 << 40)), ..end.clone() },
            Recovery { restore_command: Some("x".into()), ..end.clone() },
            Recovery { timeline: Some("7".into()), ..end.clone() },
            Recovery { standby: Some(Standby::default()), ..end },
        ] {
            let refused = asked.check(&set);
            assert!(matches!(refused, Err(Refusal::MinimalWal { .. })), "{asked:?}: {refused:?}");
            assert!(!asked.comes_from(&set), "{asked:?}");
        }
    }

    #[test]
    fn only_a_cold_set_without_a_target_starts_without_recovery() {
        let cold = Recovery { set_is_shut_down: true, ..Recovery::default() };
        let recovers = Some("recovery.signal");
        assert_eq!(cold.signal(), None);
        assert_eq!(Recovery { target: Target::Immediate, ..cold.clone() }.signal(), recovers);
        assert_eq!(
            Recovery { restore_command: Some("x".into()), ..cold.clone() }.signal(),
            recovers
        );
        // PostgreSQL says whether there is such a timeline.
        let along = |timeline: &str| Recovery { timeline: Some(timeline.into()), ..cold.clone() };
        assert_eq!(along("7").signal(), recovers);
        assert!(along("latest").signal().is_none() && along("current").signal().is_none());
        assert_eq!(Recovery::default().signal(), recovers);
        let archives = Recovery { keep_archiving: true, ..cold.clone() };
        assert_eq!(archives.signal(), recovers, "in a timeline of its own");
        assert_eq!(Recovery { set_is_minimal: true, ..archives }.signal(), None);
        let minimal = Recovery { set_is_minimal: true, ..Recovery::default() };
        assert_eq!(minimal.signal(), None);
        assert!(minimal.replays() && !cold.replays());
        let standby = Recovery { standby: Some(Standby::default()), ..cold };
        assert_eq!(standby.signal(), Some("standby.signal"));
    }
}
