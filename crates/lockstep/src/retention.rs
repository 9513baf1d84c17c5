//! Decides which sets are kept, and why: a pure function of what is there, a policy and the time.
//!
//! The rules are those of restic: each looks at all sets by itself, and a set that any of them keeps is kept. `last =
//! N` keeps the newest N. `daily = N` keeps the newest set of each of the last N days that have one (days without a
//! set don't count), and so on. `within` keeps what is younger than the given time before the *newest set*, not
//! before now: if backups have stopped, nothing is removed because of that. So the newest set is kept by every
//! policy.
//!
//! What could go wrong: after a pause of more than `within` one new set makes all others old, and if the clock was ahead
//! for a moment, it is the wrong one. So the sets before a pause stay until as many are there after it.
//!
//! A set that its cluster has left behind ([`crate::set::branches`]) takes no place from one that the cluster lives
//! on: the latter are judged as if there were no others. A left set is kept if the rules keep it among all sets, and
//! so goes in its time.
//!
//! What could go wrong: one set with a wrong clock, dated years ahead, would make all others old. So a set from the
//! future is kept, and counts for nothing else. Nor is it the newest, wherever that is asked for ([`newest`]).

use std::fmt;
use std::str::FromStr;

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use wildmatch::WildMatch;

use crate::config::table::from_tables;
use crate::context::lockstep;
use crate::names::SetId;
use crate::words;

/// How far the clock of another host that ships to the same repository may be ahead.
const TOLERANCE: SignedDuration = SignedDuration::from_mins(5);

/// Checks whether a set is dated in the future, by its id: its host's clock was wrong. A pure function.
#[must_use]
pub fn is_ahead(id: &str, now: Timestamp) -> bool {
    SetId::begun_at(id).is_some_and(|begun| begun.duration_since(now) > TOLERANCE)
}

/// Returns the newest of some sets, by their ids, which sort by time. A set dated in the future counts only if all
/// are. A pure function.
pub fn newest<S>(
    sets: impl IntoIterator<Item = S>,
    id: impl Fn(&S) -> &str,
    now: Timestamp,
) -> Option<S> {
    let newer = |a: &S, b: &S| {
        let key = |set| (!is_ahead(id(set), now), id(set));
        key(a).cmp(&key(b))
    };
    sets.into_iter().max_by(newer)
}

/// Sorts by the same order, newest first. A pure function.
#[must_use]
pub fn newest_first<S>(mut sets: Vec<S>, id: impl Fn(&S) -> &str, now: Timestamp) -> Vec<S> {
    let key = |set: &S| std::cmp::Reverse((!is_ahead(id(set), now), id(set).to_owned()));
    sets.sort_by_cached_key(key);
    sets
}

/// Returns what is wrong with one of the `damaged`, if it would be the newest together with what was `found`: it
/// isn't skipped silently. A pure function.
pub fn newest_damaged<I, E>(
    damaged: Vec<(I, E)>,
    found: Option<&str>,
    id: impl Fn(&I) -> &str,
    now: Timestamp,
) -> Option<E> {
    let (which, error) = newest(damaged, |(which, _)| id(which), now)?;
    let which = id(&which);
    (newest(found.into_iter().chain([which]), |id| id, now) == Some(which)).then_some(error)
}

/// Says what to do about a set dated in the future; `place` is the place option of `prune`.
#[must_use]
pub fn ahead_hint(id: &str, place: &str) -> String {
    format!(
        "is this host's clock right now (`date -u`)? If it isn't, set it, and nothing is wrong with the set. If it is, the clock was wrong when the set was taken: no rule counts it, and it stays until then; to be rid of it, once a newer backup is there: {} prune {place} --set {id}",
        lockstep()
    )
}

/// Says which of these sets, oldest first, would be newer than the one that was `chosen` as the latest, and are passed
/// over because they are dated in the future; `None` if none is. A pure function.
#[must_use]
pub fn passed_over(ids: &[String], chosen: &str, place: &str, now: Timestamp) -> Option<String> {
    let is_ahead = |id: &&String| id.as_str() > chosen && is_ahead(id, now);
    let ahead: Vec<_> = ids.iter().filter(is_ahead).cloned().collect();
    let newest = ahead.last()?;
    let hint = ahead_hint(newest, place);
    Some(format!(
        "dated later than now, so passed over as \"latest\": {}: {hint}",
        words::a_few(&ahead)
    ))
}

/// Which sets to keep.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(remote = "Self", deny_unknown_fields, default)]
pub struct Policy {
    /// How many of the newest sets.
    pub last: u32,
    /// Sets that are younger than this, counted back from the newest set.
    pub within: Option<Within>,
    /// The newest set of each of this many hours.
    pub hourly: u32,
    /// The same for days.
    pub daily: u32,
    /// The same for weeks, which begin on Monday.
    pub weekly: u32,
    /// The same for months.
    pub monthly: u32,
    /// The same for years.
    pub yearly: u32,
    /// Sets whose label or id matches one of these: `*` stands for any text, `?` for any character.
    pub keep: Vec<String>,
}

from_tables!(Policy);

impl Policy {
    /// Checks whether it could remove every set. `keep` alone could: nobody knows whether any set will have such a
    /// label.
    #[must_use]
    pub fn keeps_nothing(&self) -> bool {
        self.within.is_none() && self.last == 0 && self.periods().iter().all(|(_, n)| *n == 0)
    }

    fn periods(&self) -> [(Period, u32); 5] {
        [
            (Period::Hour, self.hourly),
            (Period::Day, self.daily),
            (Period::Week, self.weekly),
            (Period::Month, self.monthly),
            (Period::Year, self.yearly),
        ]
    }
}

/// A length of time: `36h`, `7d`, `2w`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Within {
    text: String,
    seconds: i64,
}

impl FromStr for Within {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("\"{text}\" is no length of time: write \"36h\", \"7d\" or \"2w\"");
        let unit = match text.chars().last() {
            Some('h') => 3600,
            Some('d') => 86_400,
            Some('w') => 7 * 86_400,
            _ => return Err(wrong()),
        };
        let digits = &text[..text.len() - 1];
        if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(wrong());
        }
        let seconds = digits.parse::<i64>().ok().and_then(|number| number.checked_mul(unit));
        // More than a thousand years is a typo.
        let seconds = seconds.filter(|s| *s > 0 && *s <= 1000 * 366 * 86_400).ok_or_else(wrong)?;
        Ok(Self { text: text.to_owned(), seconds })
    }
}

impl TryFrom<String> for Within {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl fmt::Display for Within {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// A calendar period.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Period {
    /// From :00 to :59.
    Hour,
    /// From midnight to midnight.
    Day,
    /// From Monday to Sunday.
    Week,
    /// From the first to the last day of a month.
    Month,
    /// From January to December.
    Year,
}

impl Period {
    /// Returns the rule's name in the configuration.
    #[must_use]
    pub fn rule(self) -> &'static str {
        match self {
            Self::Hour => "hourly",
            Self::Day => "daily",
            Self::Week => "weekly",
            Self::Month => "monthly",
            Self::Year => "yearly",
        }
    }

    /// Returns the period that contains a moment: two moments in the same period give the same text. The hour that
    /// occurs twice at the end of summer time counts as two.
    fn of(self, time: Timestamp, zone: &TimeZone) -> String {
        let format = match (self, zone == &TimeZone::UTC) {
            (Self::Hour, true) => "%Y-%m-%d %H:00",
            (Self::Hour, false) => "%Y-%m-%d %H:00%:z",
            (Self::Day, _) => "%Y-%m-%d",
            (Self::Week, _) => "%G-W%V",
            (Self::Month, _) => "%Y-%m",
            (Self::Year, _) => "%Y",
        };
        time.to_zoned_datetime(zone.clone()).strftime(format).to_string()
    }
}

/// A set as far as retention is concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Its id.
    pub id: String,
    /// When it was begun.
    pub time: Timestamp,
    /// Why it has to stay whatever the policy says.
    pub needed: Vec<Reason>,
    /// Its cluster continues along another timeline.
    pub is_left: bool,
    /// The label that the user gave it.
    pub label: Option<String>,
}

impl Candidate {
    /// Checks whether a pattern of `keep` matches it.
    fn is_like(&self, pattern: &str) -> bool {
        let pattern = WildMatch::new(pattern);
        pattern.matches(&self.id)
            || self.label.as_deref().is_some_and(|label| pattern.matches(label))
    }
}

/// Why a set is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// `last`.
    Last(u32),
    /// `within`.
    Within(Within),
    /// `within`, counted from the last set before a pause: fewer sets are younger than there were then.
    BeforePause(Within),
    /// The newest of a period: the rule's period, and which one.
    Newest(Period, String),
    /// `keep`: the pattern that matches it.
    Asked(String),
    /// It is dated in the future.
    Future,
    /// Other sets were named to be removed.
    NotNamed,
    /// The newest set that both this host and this repository have: the next increment starts there.
    CommonWith(String),
    /// The repository's store lets nobody delete it before this time.
    LockedUntil(Timestamp),
    /// A shipment to the repository of this name is working on it.
    BeingShipped(String),
    /// Its shipment to the repository of this name was interrupted, and the next one will resume it.
    Begun(String),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Last(count) => write!(f, "last {count}"),
            Self::Within(within) => write!(f, "within {within}"),
            Self::BeforePause(within) => write!(f, "within {within} before a pause"),
            Self::Newest(period, which) => write!(f, "{} {which}", period.rule()),
            Self::Asked(pattern) => write!(f, "keep \"{pattern}\""),
            Self::Future => f.write_str("dated in the future"),
            Self::NotNamed => f.write_str("not named"),
            Self::CommonWith(name) => write!(f, "newest in common with {name}"),
            Self::BeingShipped(name) => write!(f, "being shipped to repository {name}"),
            Self::Begun(name) => write!(f, "half shipped to repository {name}"),
            Self::LockedUntil(until) => {
                write!(f, "locked in the store until {}", until.strftime("%Y-%m-%d %H:%MZ"))
            }
        }
    }
}

/// What happens to a set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// Its id.
    pub id: String,
    /// When it was begun.
    pub time: Timestamp,
    /// Why it is kept; if empty, it is removed.
    pub reasons: Vec<Reason>,
}

impl Decision {
    /// Returns whether it is kept.
    #[must_use]
    pub fn is_kept(&self) -> bool {
        !self.reasons.is_empty()
    }
}

/// Decides about each set; the result is oldest first.
#[must_use]
pub fn decide(
    sets: &[Candidate],
    policy: &Policy,
    now: Timestamp,
    zone: &TimeZone,
) -> Vec<Decision> {
    let mut all: Vec<(&Candidate, Vec<Reason>)> =
        sets.iter().map(|set| (set, Vec::new())).collect();
    all.sort_by(|(a, _), (b, _)| (a.time, &a.id).cmp(&(b.time, &b.id)));
    let (future, counted): (Vec<_>, Vec<_>) =
        all.iter_mut().rev().partition(|(set, _)| set.time > now);
    for (_, reasons) in future {
        reasons.push(Reason::Future);
    }
    let mut living: Vec<_> = if counted.iter().any(|(set, _)| set.is_left) {
        let mut among_all: Vec<_> = counted.iter().map(|(set, _)| (*set, Vec::new())).collect();
        apply(policy, zone, among_all.iter_mut().collect());
        let (left, living): (Vec<_>, Vec<_>) =
            counted.into_iter().zip(among_all).partition(|((set, _), _)| set.is_left);
        left.into_iter().for_each(|((_, reasons), (_, found))| reasons.extend(found));
        living.into_iter().map(|(set, _)| set).collect()
    } else {
        counted
    };
    let paused = before_a_pause(policy, &living);
    for (_, reasons) in living.get_mut(paused).into_iter().flatten() {
        reasons.extend(policy.within.clone().map(Reason::BeforePause));
    }
    apply(policy, zone, living);
    all.into_iter()
        .map(|(set, mut reasons)| {
            let asked = policy.keep.iter().find(|pattern| set.is_like(pattern));
            reasons.extend(asked.cloned().map(Reason::Asked));
            reasons.extend(set.needed.iter().cloned());
            Decision { id: set.id.clone(), time: set.time, reasons }
        })
        .collect()
}

/// Returns which of these, newest first, `within` keeps in addition: after a pause at least that long, those that it
/// would keep if nothing had come since, unless as many have.
fn before_a_pause(
    policy: &Policy,
    counted: &[&mut (&Candidate, Vec<Reason>)],
) -> std::ops::Range<usize> {
    let Some(within) = &policy.within else { return 0..0 };
    let times: Vec<_> = counted.iter().map(|(set, _)| set.time).collect();
    let is_far = |newer: &Timestamp, older: &Timestamp| {
        newer.duration_since(*older).as_secs() >= within.seconds
    };
    let reached = |times: &[Timestamp]| {
        let newest = times.first();
        times.iter().take_while(|&time| newest.is_some_and(|newest| !is_far(newest, time))).count()
    };
    let (new, old) = times.split_at(reached(&times));
    let is_paused = new.last().zip(old.first()).is_some_and(|(new, old)| is_far(new, old));
    let before = reached(old);
    if is_paused && before > new.len() { new.len()..new.len() + before } else { 0..0 }
}

/// Applies each rule to these, newest first.
fn apply(policy: &Policy, zone: &TimeZone, mut counted: Vec<&mut (&Candidate, Vec<Reason>)>) {
    for (_, reasons) in counted.iter_mut().take(policy.last as usize) {
        reasons.push(Reason::Last(policy.last));
    }
    if let (Some(within), Some(newest)) = (&policy.within, counted.first().map(|(s, _)| s.time)) {
        for (set, reasons) in &mut counted {
            if newest.duration_since(set.time).as_secs() < within.seconds {
                reasons.push(Reason::Within(within.clone()));
            }
        }
    }
    for (period, count) in policy.periods() {
        let (mut left, mut last) = (count, None);
        for (set, reasons) in &mut counted {
            let which = Some(period.of(set.time, zone));
            if left == 0 {
                break;
            }
            if which != last {
                reasons.extend(which.clone().map(|which| Reason::Newest(period, which)));
                (left, last) = (left - 1, which);
            }
        }
    }
}

/// The same if the sets to remove are named: all others are kept, and so are needed ones.
#[must_use]
pub fn decide_named(sets: &[Candidate], named: &[String]) -> Vec<Decision> {
    let decide = |set: &Candidate| {
        let others = (!named.contains(&set.id)).then_some(Reason::NotNamed);
        let reasons = others.into_iter().chain(set.needed.iter().cloned()).collect();
        Decision { id: set.id.clone(), time: set.time, reasons }
    };
    sets.iter().map(decide).collect()
}

#[cfg(test)]
#[path = "retention_tests.rs"]
mod tests;
