//! Tests what each rule keeps, by example, and all of them together against a naive statement of the rules.

use super::*;

#[test]
fn only_what_is_named_goes_and_not_what_is_needed() {
    let candidate = |id: &str, needed: bool| Candidate {
        id: id.into(),
        time: Timestamp::UNIX_EPOCH,
        needed: needed.then(|| Reason::CommonWith("x".into())).into_iter().collect(),
        is_left: false,
        label: None,
    };
    let sets = [candidate("a", false), candidate("b", true), candidate("c", false)];
    let kept = |named: &[&str]| -> Vec<String> {
        let named: Vec<String> = named.iter().map(|name| (*name).to_owned()).collect();
        let decided = decide_named(&sets, &named).into_iter().filter(Decision::is_kept);
        decided.map(|decision| decision.id).collect()
    };
    assert_eq!(kept(&["a"]), ["b", "c"]);
    assert_eq!(kept(&["a", "b", "c"]), ["b"]);
    assert_eq!(kept(&[]), ["a", "b", "c"]);
}

fn set(time: &str) -> Candidate {
    let (id, time) = (time.to_owned(), time.parse().unwrap());
    Candidate { id, time, needed: Vec::new(), is_left: false, label: None }
}

fn sets(times: &[&str]) -> Vec<Candidate> {
    times.iter().map(|time| set(time)).collect()
}

fn policy(text: &str) -> Policy {
    toml::from_str(text).unwrap()
}

const NOW: &str = "2026-11-24T12:00:00Z";

fn decisions(sets: &[Candidate], text: &str, zone: &TimeZone) -> Vec<Decision> {
    decide(sets, &policy(text), NOW.parse().unwrap(), zone)
}

/// Returns the kept sets with their reasons.
fn kept(times: &[&str], text: &str) -> Vec<String> {
    let all = decisions(&sets(times), text, &TimeZone::UTC);
    let words = |decision: &Decision| {
        let reasons: Vec<_> = decision.reasons.iter().map(ToString::to_string).collect();
        format!("{}: {}", decision.id, reasons.join(", "))
    };
    all.iter().filter(|decision| decision.is_kept()).map(words).collect()
}

#[test]
fn last_keeps_the_newest_whatever_the_order() {
    let times = ["2026-11-23T03:00:00Z", "2026-11-20T03:00:00Z", "2026-11-22T03:00:00Z"];
    assert_eq!(
        kept(&times, "last = 2"),
        ["2026-11-22T03:00:00Z: last 2", "2026-11-23T03:00:00Z: last 2"]
    );
    assert_eq!(kept(&times, "last = 9").len(), 3);
    assert_eq!(kept(&[], "last = 1"), Vec::<String>::new());
}

#[test]
fn a_period_keeps_its_newest_and_empty_periods_do_not_count() {
    let times = [
        "2026-11-18T23:59:59Z",
        "2026-11-20T00:00:00Z",
        "2026-11-20T23:59:59.999Z",
        "2026-11-23T01:00:00Z",
        "2026-11-23T02:00:00Z",
    ];
    assert_eq!(
        kept(&times, "daily = 3"),
        [
            "2026-11-18T23:59:59Z: daily 2026-11-18",
            "2026-11-20T23:59:59.999Z: daily 2026-11-20",
            "2026-11-23T02:00:00Z: daily 2026-11-23",
        ]
    );
    assert_eq!(kept(&times, "daily = 2").len(), 2);
    assert_eq!(
        kept(&times, "hourly = 2"),
        [
            "2026-11-23T01:00:00Z: hourly 2026-11-23 01:00",
            "2026-11-23T02:00:00Z: hourly 2026-11-23 02:00",
        ]
    );
}

#[test]
fn what_is_asked_for_is_kept_by_its_label_or_its_id() {
    let times = ["2026-11-01T00:00:00Z", "2026-11-02T00:00:00Z", "2026-11-03T00:00:00Z", NOW];
    let mut sets = sets(&times);
    for (set, label) in sets.iter_mut().zip(["before-upgrade", "nightly", "not before-x"]) {
        set.label = Some(label.into());
    }
    let reasons = |text: &str| -> Vec<String> {
        let all = decisions(&sets, text, &TimeZone::UTC).into_iter();
        let words =
            |d: Decision| d.reasons.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        all.map(words).collect()
    };
    assert_eq!(
        reasons("last = 1\nkeep = ['before-*', '2026-11-02T*']"),
        ["keep \"before-*\"", "keep \"2026-11-02T*\"", "", "last 1"]
    );
    // The whole label must match, in its exact case.
    assert_eq!(reasons("last = 1\nkeep = ['before', 'NIGHTLY', '']"), ["", "", "", "last 1"]);
    // It takes no place from the others, and two patterns are one reason.
    assert_eq!(
        reasons("last = 1\nkeep = ['*', 'night??']"),
        ["keep \"*\"", "keep \"*\"", "keep \"*\"", "last 1, keep \"*\""]
    );
}

#[test]
fn weeks_months_and_years() {
    // 2026-01-01 is in the week that began on 2025-12-29, the first of 2026.
    let times = ["2024-12-31T00:00:00Z", "2025-12-29T00:00:00Z", "2026-01-01T00:00:00Z"];
    assert_eq!(
        kept(&times, "weekly = 1\nmonthly = 2\nyearly = 5"),
        [
            "2024-12-31T00:00:00Z: yearly 2024",
            "2025-12-29T00:00:00Z: monthly 2025-12, yearly 2025",
            "2026-01-01T00:00:00Z: weekly 2026-W01, monthly 2026-01, yearly 2026",
        ]
    );
}

#[test]
fn within_counts_from_the_newest_set() {
    let times = ["2026-01-01T00:00:00Z", "2026-01-01T00:00:01Z", "2026-01-08T00:00:00Z"];
    assert_eq!(
        kept(&times, "within = '7d'"),
        ["2026-01-01T00:00:01Z: within 7d", "2026-01-08T00:00:00Z: within 7d"]
    );
    assert_eq!(kept(&times[1..], "within = '1h'"), ["2026-01-08T00:00:00Z: within 1h"]);
    assert_eq!(kept(&times, "within = '169h'").len(), 3);
}

/// Backups had failed for two weeks, or the clock was ahead for one of them.
#[test]
fn one_set_after_a_pause_does_not_make_all_others_old() {
    let mut times = vec!["2026-10-01T00:00:00Z"];
    times.extend(["2026-11-01T00:00:00Z", "2026-11-02T00:00:00Z", "2026-11-03T00:00:00Z"]);
    times.push("2026-11-20T00:00:00Z");
    assert_eq!(
        kept(&times, "within = '7d'"),
        [
            "2026-11-01T00:00:00Z: within 7d before a pause",
            "2026-11-02T00:00:00Z: within 7d before a pause",
            "2026-11-03T00:00:00Z: within 7d before a pause",
            "2026-11-20T00:00:00Z: within 7d",
        ]
    );
    times.push("2026-11-21T00:00:00Z");
    assert_eq!(kept(&times, "within = '7d'").len(), 5);
    // There are as many again.
    times.push("2026-11-22T00:00:00Z");
    assert_eq!(kept(&times, "within = '7d'").len(), 3);
    // Where each set is that far from the next, that is no pause.
    assert_eq!(kept(&times, "within = '12h'"), ["2026-11-22T00:00:00Z: within 12h"]);
}

#[test]
fn the_calendar_is_that_of_the_time_zone() {
    let zone = TimeZone::get("Europe/Berlin").unwrap();
    let ids = |text: &str, times: &[&str]| -> Vec<String> {
        let all = decisions(&sets(times), text, &zone);
        all.into_iter().filter(Decision::is_kept).map(|decision| decision.id).collect()
    };
    // One day in that zone, two in UTC.
    let times = ["2026-07-01T22:30:00Z", "2026-07-02T21:30:00Z"];
    assert_eq!(ids("daily = 9", &times), ["2026-07-02T21:30:00Z"]);
    assert_eq!(kept(&times, "daily = 9").len(), 2);
    // 02:30 comes twice when summer time ends.
    let times = ["2026-10-25T00:30:00Z", "2026-10-25T01:30:00Z"];
    assert_eq!(ids("hourly = 9", &times), times);
}

#[test]
fn a_set_from_the_future_does_not_make_the_others_old() {
    let times = ["2026-11-22T00:00:00Z", "2026-11-23T00:00:00Z", "2126-11-23T00:00:00Z"];
    assert_eq!(
        kept(&times, "last = 1\nwithin = '36h'"),
        [
            "2026-11-22T00:00:00Z: within 36h",
            "2026-11-23T00:00:00Z: last 1, within 36h",
            "2126-11-23T00:00:00Z: dated in the future",
        ]
    );
}

#[test]
fn the_newest_is_none_that_is_dated_later_than_now() {
    let now: Timestamp = "2026-11-23T00:00:00Z".parse().unwrap();
    let ids = ["20261121T000000Z-aaaa", "20261123T000459Z-bbbb", "20270601T000000Z-cccc"];
    let ahead = ids.map(|id| is_ahead(id, now));
    assert_eq!(ahead, [false, false, true], "five minutes are nothing");
    let found = |ids: &[&'static str]| newest(ids.iter().copied(), |id| id, now);
    assert_eq!(found(&ids), Some(ids[1]));
    assert_eq!(found(&ids[..1]), Some(ids[0]));
    assert_eq!(found(&ids[2..]), Some(ids[2]), "there is no other");
    assert_eq!(found(&[]), None);
    for id in ["", "latest", "20261399T000000Z-aaaa", "2027-06-01"] {
        assert!(!is_ahead(id, now), "{id}");
    }
}

/// On a new host whose clock is behind, every good set may be.
#[test]
fn what_is_passed_over_as_the_latest_is_said() {
    let now: Timestamp = "2026-11-22T12:00:00Z".parse().unwrap();
    let ids = ["20261121T000000Z-aaaa", "20261123T000000Z-bbbb", "20261124T000000Z-cccc"];
    let ids = ids.map(str::to_owned);
    let said = passed_over(&ids, &ids[0], "--repository offsite", now).unwrap();
    for words in [ids[1].as_str(), &ids[2], "`date -u`", "--repository offsite"] {
        assert!(said.contains(words), "{said}");
    }
    assert_eq!(passed_over(&ids[..1], &ids[0], "--local", now), None);
    assert_eq!(passed_over(&ids, &ids[2], "--local", now), None, "there was no other");
}

#[test]
fn what_is_needed_stays_and_uses_up_nothing() {
    let mut all = sets(&["2026-11-21T00:00:00Z", "2026-11-22T00:00:00Z", "2026-11-23T00:00:00Z"]);
    all[0].needed.push(Reason::CommonWith("repository offsite".into()));
    let decided = decisions(&all, "last = 1", &TimeZone::UTC);
    assert_eq!(decided[0].reasons[0].to_string(), "newest in common with repository offsite");
    assert_eq!([true, false, true], [0, 1, 2].map(|at| decided[at].is_kept()));
}

#[test]
fn what_was_left_behind_takes_no_place_and_goes_in_its_time() {
    let mut all = sets(&[
        "2026-11-20T00:00:00Z",
        "2026-11-21T00:00:00Z",
        "2026-11-22T00:00:00Z",
        "2026-11-22T06:00:00Z",
        "2026-11-23T00:00:00Z",
    ]);
    // The old host of a failover still runs.
    (all[3].is_left, all[4].is_left) = (true, true);
    let kept = |all: &[Candidate], text: &str| -> Vec<usize> {
        let decided = decisions(all, text, &TimeZone::UTC);
        (0..all.len()).filter(|at| decided[*at].is_kept()).collect()
    };
    assert_eq!(kept(&all, "last = 1"), [2, 4]);
    assert_eq!(kept(&all, "last = 2"), [1, 2, 3, 4]);
    assert_eq!(kept(&all, "daily = 1"), [2, 4]);
    assert_eq!(kept(&all, "daily = 2"), [1, 2, 3, 4]);
    assert_eq!(kept(&all, "within = '7h'"), [2, 4]);
    // It has stopped, and the cluster lives on.
    all.extend(sets(&["2026-11-23T01:00:00Z", "2026-11-24T01:00:00Z"]));
    assert_eq!(kept(&all, "last = 2"), [5, 6]);
    assert_eq!(kept(&all, "daily = 2"), [5, 6]);
}

#[test]
fn lengths_of_time() {
    for (text, seconds) in [("1h", 3600), ("36h", 36 * 3600), ("7d", 604_800), ("2w", 1_209_600)] {
        assert_eq!(text.parse::<Within>().unwrap().seconds, seconds, "{text}");
    }
    for text in
        ["", "h", "7", "-7d", "+7d", "1.5d", "7 d", "0h", "99999999999999999999d", "7m", "ü"]
    {
        assert!(text.parse::<Within>().is_err(), "{text}");
    }
}

/// The rules as one would state them: for each set and rule, count what is newer.
fn naive(all: &[Candidate], at: usize, policy: &Policy, now: Timestamp, zone: &TimeZone) -> bool {
    let me = &all[at];
    let key = |set: &Candidate| (set.time, set.id.clone());
    // For a set that its cluster lives on, left sets don't exist.
    let counts = |set: &&Candidate| set.time <= now && (me.is_left || !set.is_left);
    let past: Vec<_> = all.iter().filter(counts).collect();
    let newer: Vec<_> = past.iter().filter(|set| key(set) > key(me)).collect();
    if me.time > now || !me.needed.is_empty() || newer.len() < policy.last as usize {
        return true;
    }
    let newest = past.iter().map(|set| set.time).max().unwrap();
    if let Some(within) = &policy.within {
        let apart = |newer: Timestamp, older: Timestamp| newer.duration_since(older).as_secs();
        let reaches = |newest, set: &Candidate| apart(newest, set.time) < within.seconds;
        if reaches(newest, me) {
            return true;
        }
        // Those before a pause stay until there are as many after it.
        let (young, old): (Vec<&Candidate>, Vec<&Candidate>) =
            past.iter().copied().partition(|set| reaches(newest, set));
        let since = young.iter().map(|set| set.time).min().unwrap();
        let until = old.iter().map(|set| set.time).max().unwrap();
        let before = old.iter().filter(|set| reaches(until, set)).count();
        let is_paused = apart(since, until) >= within.seconds && before > young.len();
        if !me.is_left && is_paused && reaches(until, me) {
            return true;
        }
    }
    policy.periods().iter().any(|(period, count)| {
        let mine = period.of(me.time, zone);
        let mut periods: Vec<_> = newer.iter().map(|set| period.of(set.time, zone)).collect();
        let is_newest = !periods.contains(&mine);
        periods.sort();
        periods.dedup();
        is_newest && periods.len() < *count as usize
    })
}

#[test]
fn every_policy_is_as_the_rules_say_it() {
    let zones = [TimeZone::UTC, TimeZone::get("America/New_York").unwrap()];
    for seed in 0..400 {
        let mut random = fastrand::Rng::with_seed(seed);
        let now: Timestamp = NOW.parse().unwrap();
        let reach = [3 * 3600, 5 * 86_400, 90 * 86_400, 1500 * 86_400][random.usize(..4)];
        let has_left = seed % 2 == 1;
        let all: Vec<_> = (0..random.usize(..60))
            .map(|number| {
                // Some at the same moment, a few in the future.
                let step = [1, 3600][random.usize(..2)];
                let ago = random.i64(-reach / 40..reach) / step * step;
                let time = Timestamp::from_second(now.as_second() - ago).unwrap();
                let needed = match random.u8(..20) {
                    0 => vec![Reason::CommonWith("x".into())],
                    _ => Vec::new(),
                };
                let is_left = has_left && random.u8(..3) == 0;
                Candidate { id: format!("{number:03}"), time, needed, is_left, label: None }
            })
            .collect();
        let mut count = || if random.bool() { 0 } else { random.u32(..12) };
        let mut policy = Policy {
            last: count(),
            within: None,
            hourly: count(),
            daily: count(),
            weekly: count(),
            monthly: count(),
            yearly: count(),
            keep: Vec::new(),
        };
        if random.u8(..3) == 0 {
            let text = format!("{}{}", random.u32(1..40), ["h", "d", "w"][random.usize(..3)]);
            policy.within = Some(text.parse().unwrap());
        }
        let zone = &zones[random.usize(..2)];
        let decided = decide(&all, &policy, now, zone);
        assert_eq!(decided.len(), all.len());
        assert!(decided.is_sorted_by_key(|decision| decision.time), "seed {seed}: oldest first");
        for (at, set) in all.iter().enumerate() {
            let decision = decided.iter().find(|decision| decision.id == set.id).unwrap();
            let expected = naive(&all, at, &policy, now, zone);
            assert_eq!(decision.is_kept(), expected, "seed {seed}: {set:?} under {policy:?}");
        }
        if !policy.keeps_nothing()
            && let Some(newest) = decided.last()
        {
            assert!(newest.is_kept(), "seed {seed}: the newest is always kept");
        }
        // The remaining sets are judged the same way: a second run removes nothing.
        let left: Vec<_> = all
            .iter()
            .filter(|set| decided.iter().any(|d| d.id == set.id && d.is_kept()))
            .cloned()
            .collect();
        let again = decide(&left, &policy, now, zone);
        assert!(again.iter().all(Decision::is_kept), "seed {seed}: {policy:?}");
    }
}
