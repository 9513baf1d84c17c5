//! Histories as PostgreSQL writes them, edited by hand, and damaged; the search against a naive model.

use super::*;
use proptest::prelude::*;

fn tli(number: u32) -> TimelineId {
    TimelineId::new(number).unwrap()
}

fn lsn(text: &str) -> Lsn {
    text.parse().unwrap()
}

const THREE: &[u8] =
    b"1\t0/5050518\tno recovery target specified\n\n2\t0/5052918\tbefore transaction 760\n";

#[test]
fn reads_and_writes_postgresqls_bytes() {
    let history = TimelineHistory::parse(tli(3), THREE).unwrap();
    assert_eq!(history.timeline(), tli(3));
    let switches: Vec<_> =
        history.switches().iter().map(|s| (s.timeline.get(), s.lsn.to_string())).collect();
    assert_eq!(switches, [(1, "0/5050518".to_owned()), (2, "0/5052918".to_owned())]);
    assert_eq!(history.switches()[1].reason, b"before transaction 760");
    assert_eq!(history.to_bytes(), THREE);
}

#[test]
fn branching_makes_the_childs_file() {
    let root = TimelineHistory::root(tli(1));
    assert_eq!(root.to_bytes(), b"");
    let two = root.branch(tli(2), lsn("0/5050518"), b"no recovery target specified").unwrap();
    let three = two.branch(tli(3), lsn("0/5052918"), b"before transaction 760").unwrap();
    assert_eq!(three.to_bytes(), THREE);
    assert!(matches!(
        two.branch(tli(2), lsn("0/6000000"), b""),
        Err(TimelineHistoryError::NotBelowChild { .. })
    ));
    assert!(matches!(
        two.branch(tli(1), lsn("0/6000000"), b""),
        Err(TimelineHistoryError::NotBelowChild { .. })
    ));
    for reason in [&b"two\nlines"[..], b"a\n5\t0/1\tx"] {
        assert!(two.branch(tli(3), lsn("0/6000000"), reason).is_err());
    }
}

#[test]
fn comments_blank_lines_and_odd_spacing() {
    let bytes = b"# a comment\n   \n\t\n  1 0/10 by hand\n\n#2\t0/15\tnot this\n2\t0/20\n 4\t 0/0000000030\t\xFF\xFE";
    let error = TimelineHistory::parse(tli(5), bytes).unwrap_err();
    assert!(
        matches!(error, TimelineHistoryError::NoPosition { .. }),
        "nine digits are no position: {error}"
    );
    let bytes = b"# a comment\n   \n\t\n  1 0/10 by hand\n\n#2\t0/15\tnot this\n2\t0/20\n 4\t 0/30\t\xFF\xFE";
    let history = TimelineHistory::parse(tli(5), bytes).unwrap();
    let reasons: Vec<_> = history.switches().iter().map(|s| s.reason.as_slice()).collect();
    assert_eq!(reasons, [&b" by hand"[..], b"", b"\xFF\xFE"]);
}

#[test]
fn empty_means_no_ancestors() {
    assert_eq!(TimelineHistory::parse(tli(1), b""), Ok(TimelineHistory::root(tli(1))));
    let comments = TimelineHistory::parse(tli(7), b"\n#\n").unwrap();
    assert_eq!((comments.timeline(), comments.switches()), (tli(7), &[][..]));
}

#[test]
fn refusals_name_the_line() {
    let parse = |bytes: &[u8]| TimelineHistory::parse(tli(4), bytes).unwrap_err();
    assert!(matches!(parse(b"x\t0/1\t\n"), TimelineHistoryError::NoTimeline { offset: 0, .. }));
    assert!(matches!(parse(b"0\t0/1\t\n"), TimelineHistoryError::NoTimeline { .. }));
    assert!(matches!(parse(b"-1\t0/1\t\n"), TimelineHistoryError::NoTimeline { .. }));
    assert!(matches!(parse(b"4294967296\t0/1\t\n"), TimelineHistoryError::NoTimeline { .. }));
    assert!(matches!(
        parse(b"1\t0/1\t\n2\t\n"),
        TimelineHistoryError::NoPosition { offset: 7, .. }
    ));
    assert!(matches!(parse(b"1"), TimelineHistoryError::NoPosition { .. }));
    assert!(matches!(parse(b"1\t0-1\tx"), TimelineHistoryError::NoPosition { .. }));
    assert!(matches!(
        parse(b"2\t0/1\t\n2\t0/2\t\n"),
        TimelineHistoryError::NotIncreasing { offset: 7, .. }
    ));
    assert!(matches!(parse(b"2\t0/1\t\n1\t0/2\t\n"), TimelineHistoryError::NotIncreasing { .. }));
    assert!(matches!(parse(b"4\t0/1\t\n"), TimelineHistoryError::NotBelowChild { .. }));
    assert!(matches!(parse(b"5\t0/1\t\n"), TimelineHistoryError::NotBelowChild { .. }));
}

#[test]
fn the_byte_at_a_switch_is_the_childs() {
    let history = TimelineHistory::parse(tli(3), b"1\t0/1000\t\n2\t0/2000\t\n").unwrap();
    for (at, timeline) in
        [("0/0", 1), ("0/FFF", 1), ("0/1000", 2), ("0/1FFF", 2), ("0/2000", 3), ("9/0", 3)]
    {
        assert_eq!(history.timeline_at(lsn(at)).get(), timeline, "{at}");
    }
    assert_eq!(history.switch_point(tli(1)), Some(lsn("0/1000")));
    assert_eq!(history.switch_point(tli(2)), Some(lsn("0/2000")));
    assert_eq!(history.switch_point(tli(3)), None);
    assert_eq!(history.switch_point(tli(9)), None);
}

#[test]
fn a_page_is_of_the_timeline_that_wrote_it_whatever_its_segment_is_called() {
    let history = TimelineHistory::parse(tli(3), b"1\t0/1000\t\n2\t0/2000\t\n").unwrap();
    for (named, at, timeline) in [
        (3, "0/0", 1),
        (3, "0/1000", 2),
        (3, "0/2000", 3),
        (3, "9/0", 3),
        (2, "9/0", 2),
        (1, "9/0", 1),
    ] {
        assert_eq!(history.timeline_of_page(tli(named), lsn(at)).get(), timeline, "{named} {at}");
    }
    assert_eq!(TimelineHistory::root(tli(4)).timeline_of_page(tli(4), lsn("0/0")).get(), 4);
}

#[test]
fn a_cluster_may_go_on_from_a_switch_but_not_from_beyond_it() {
    let history = TimelineHistory::parse(tli(3), b"1\t0/1000\t\n2\t0/2000\t\n").unwrap();
    for (timeline, at, expected) in [
        (1, "0/1", true),
        (1, "0/1000", true),
        (1, "0/1001", false),
        (2, "0/FFF", false),
        (2, "0/1000", true),
        (2, "0/2000", true),
        (2, "0/2001", false),
        (3, "0/1FFF", false),
        (3, "0/2000", true),
        (3, "FFFFFFFF/FFFFFFFF", true),
        (4, "0/3000", false),
        (1, "0/0", true),
        (2, "0/0", false),
    ] {
        assert_eq!(history.contains(tli(timeline), lsn(at)), expected, "{at} on {timeline}");
    }
}

/// If recovery stopped at an LSN, PostgreSQL writes a reason that itself ends with a newline; recorded in
/// `tests/live.rs`.
#[test]
fn what_was_read_is_kept_byte_for_byte() {
    let two = TimelineHistory::parse(tli(2), b"1\t0/4000138\tafter LSN 0/40000F8\n\n").unwrap();
    let three = two.branch(tli(3), lsn("0/5000000"), b"why").unwrap();
    let bytes = b"1\t0/4000138\tafter LSN 0/40000F8\n\n\n2\t0/5000000\twhy\n";
    assert_eq!(three.to_bytes(), bytes);
    assert_eq!(TimelineHistory::parse(tli(3), bytes), Ok(three));
    let commented = b"# by hand\n1\t0/10\tx";
    assert_eq!(TimelineHistory::parse(tli(2), commented).unwrap().to_bytes(), commented);
    // A file whose last line doesn't end with a newline, continued as PostgreSQL would.
    let continued = TimelineHistory::parse(tli(2), commented)
        .unwrap()
        .branch(tli(3), lsn("0/20"), b"y")
        .unwrap();
    assert_eq!(continued.to_bytes(), b"# by hand\n1\t0/10\tx\n2\t0/20\ty\n");
}

/// A recovery to timeline 2 that stopped before timeline 2 began still names 2 as the parent of its new timeline;
/// recorded from a server in `tests/live.rs`.
#[test]
fn a_parent_that_was_never_reached() {
    let history =
        TimelineHistory::parse(tli(3), b"1\t0/2000\t\n\n2\t0/1000\tafter LSN 0/1000\n").unwrap();
    for (at, timeline) in [("0/FFF", 1), ("0/1000", 3), ("0/1800", 3), ("0/2000", 3)] {
        assert_eq!(history.timeline_at(lsn(at)).get(), timeline, "{at}");
    }
    assert!(history.contains(tli(1), lsn("0/1000")));
    assert!(!history.contains(tli(1), lsn("0/1800")));
    assert!(!history.contains(tli(2), lsn("0/1800")));
}

#[test]
fn a_segment_with_a_switch_is_looked_for_under_both_names() {
    let size = WalSegmentSize::DEFAULT;
    let history = TimelineHistory::parse(tli(3), b"1\t0/2000028\t\n2\t0/5000000\t\n").unwrap();
    let names = |number| {
        history.timelines_of_segment(number, size).map(TimelineId::get).collect::<Vec<_>>()
    };
    assert_eq!(names(1), [1]);
    assert_eq!(names(2), [2, 1]);
    assert_eq!(names(4), [2, 1]);
    assert_eq!(names(5), [3, 2, 1]);
}

#[test]
fn truncated_at_every_offset_is_an_error_or_a_shorter_history() {
    for length in 0..THREE.len() {
        if let Ok(history) = TimelineHistory::parse(tli(3), &THREE[..length]) {
            assert!(history.switches().len() <= 2);
        }
    }
}

/// Increasing ancestors with any positions and reasons without newlines.
fn histories() -> impl Strategy<Value = TimelineHistory> {
    let reasons = proptest::collection::vec(any::<u8>(), 0..20);
    let switches = proptest::collection::vec((1u32..5, any::<u64>(), reasons), 0..6);
    (1u32..5, switches).prop_map(|(first, switches)| {
        let mut history = TimelineHistory::root(tli(first));
        for (step, lsn, mut reason) in switches {
            reason.retain(|&b| b != b'\n');
            let child = tli(history.timeline().get() + step);
            history = history.branch(child, Lsn::new(lsn), &reason).unwrap();
        }
        history
    })
}

proptest! {
    #[test]
    fn round_trips(history in histories()) {
        prop_assert_eq!(TimelineHistory::parse(history.timeline(), &history.to_bytes()), Ok(history));
    }

    #[test]
    fn the_search_agrees_with_postgresqls_walk(history in histories(), at: u64) {
        // tliOfPointInHistory: the list, newest first, each with [begin, end), where an end of 0 is open.
        let mut list = Vec::new();
        let mut begin = 0;
        for switch in history.switches() {
            list.insert(0, (switch.timeline, begin, switch.lsn.as_u64()));
            begin = switch.lsn.as_u64();
        }
        list.insert(0, (history.timeline(), begin, 0));
        let walk = list.iter().find(|(_, begin, end)| (*begin == 0 || *begin <= at) && (*end == 0 || at < *end));
        prop_assert_eq!(Some(history.timeline_at(Lsn::new(at))), walk.map(|(timeline, ..)| *timeline));
    }

    #[test]
    fn arbitrary_bytes_never_panic_and_round_trip_where_read(bytes: Vec<u8>, timeline in 1u32..) {
        if let Ok(history) = TimelineHistory::parse(tli(timeline), &bytes) {
            prop_assert_eq!(TimelineHistory::parse(tli(timeline), &history.to_bytes()), Ok(history));
        }
    }

    #[test]
    fn likely_bytes_never_panic_and_round_trip_where_read(text in "([0-9#\t ]{0,3}[0-9A-F]/[0-9A-F][\t\n a-z]{0,3}){0,5}") {
        if let Ok(history) = TimelineHistory::parse(tli(u32::MAX), text.as_bytes()) {
            prop_assert_eq!(TimelineHistory::parse(tli(u32::MAX), &history.to_bytes()), Ok(history));
        }
    }
}

#[test]
fn one_of_switches_is_what_its_file_is_read_as() {
    let switches = [(tli(1), Lsn::new(0x500_0000)), (tli(3), Lsn::new(0x1_0000_0028))];
    let made = TimelineHistory::from_switches(tli(4), switches).unwrap();
    assert_eq!(made, TimelineHistory::parse(tli(4), &made.to_bytes()).unwrap());
    assert_eq!(made.switch_point(tli(3)), Some(Lsn::new(0x1_0000_0028)));
    let none = TimelineHistory::from_switches(tli(1), []).unwrap();
    assert_eq!(none, TimelineHistory::root(tli(1)));
    for wrong in [[3, 1], [1, 1], [1, 4]] {
        let switches = wrong.map(|number| (tli(number), Lsn::INVALID));
        assert!(TimelineHistory::from_switches(tli(4), switches).is_err(), "{wrong:?}");
    }
}
