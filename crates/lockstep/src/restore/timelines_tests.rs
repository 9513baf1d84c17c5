//! Sets before and after the point where their timeline was left, with all the sources that may tell and without.

use super::*;
use crate::postgres::target::Target;
use crate::set::manifest::SetFile;
use crate::set::manifest::tests::manifest;

fn tli(number: u32) -> TimelineId {
    TimelineId::new(number).unwrap()
}

/// A set that is consistent at 0/`end`000000.
fn set(second: u32, timeline: u32, end: u64) -> Manifest {
    let mut set = manifest(&format!("20261123T1945{second:02}Z-k3fa"), Vec::new());
    set.postgres.timeline = tli(timeline);
    set.floor_lsn = Some(Lsn::new(end << 24));
    set.files.clear();
    set
}

/// The same, with its timeline's history.
fn with_history(mut set: Manifest) -> Manifest {
    let file = SetFile { bytes: 1, blake3: String::new() };
    set.files.insert(history_of(set.timeline()), file);
    set
}

/// Timeline 1 was left at 0/5000000 for 2, and 2 at 0/7000000 for 3.
fn history(of: TimelineId) -> Option<Vec<u8>> {
    match of.get() {
        2 => Some(b"1\t0/5000000\tx\n".to_vec()),
        3 => Some(b"1\t0/5000000\tx\n2\t0/7000000\ty\n".to_vec()),
        _ => None,
    }
}

/// Says for each set whether it leads there, with the histories of these timelines in the archive.
fn ways(timeline: Option<&str>, archived: &[u32], sets: &[Manifest]) -> Vec<String> {
    let recovery = Recovery {
        target: Target::Lsn(Lsn::new(u64::MAX)),
        timeline: timeline.map(str::to_owned),
        ..Recovery::default()
    };
    let ask = |of: TimelineId| Ok(history(of).filter(|_| archived.contains(&of.get())));
    let read = |set: &Manifest, name: &str| {
        assert_eq!(name, history_of(set.timeline()));
        history(set.timeline()).ok_or_else(|| Error::failed("none"))
    };
    let mut timelines = Timelines::new(&recovery, Box::new(ask), Box::new(read));
    sets.iter().for_each(|set| timelines.learn(set, recovery.comes_from(set)));
    let way = |set: &Manifest| match timelines.way(set).unwrap() {
        Way::Leads => "leads".to_owned(),
        Way::Left(left) => format!("left for {}", left.to),
        Way::Unknown(timeline) => format!("needs {timeline}"),
    };
    sets.iter().map(way).collect()
}

#[test]
fn a_set_behind_the_branch_of_its_timeline_is_not_on_the_way() {
    let sets = [set(1, 1, 4), set(2, 1, 5), set(3, 1, 6)];
    for timeline in [None, Some("latest"), Some("2")] {
        assert_eq!(ways(timeline, &[2], &sets), ["leads", "leads", "left for 2"], "{timeline:?}");
    }
    // Each continues along its own.
    for (timeline, archived) in [(Some("current"), &[2][..]), (Some("1"), &[2]), (None, &[])] {
        assert_eq!(ways(timeline, archived, &sets), ["leads"; 3], "{timeline:?}");
    }
    assert_eq!(ways(Some("2"), &[], &sets), ["needs 2"; 3]);
    // Whatever the histories say: a later timeline doesn't lead back to an earlier one.
    assert_eq!(ways(Some("1"), &[], &[set(4, 2, 6)]), ["left for 1"]);
}

#[test]
fn latest_is_the_last_before_a_gap_as_postgresql_finds_it() {
    let sets = [set(1, 1, 6), set(2, 2, 6), set(3, 2, 8)];
    assert_eq!(ways(None, &[2, 3], &sets), ["left for 3", "leads", "left for 3"]);
    assert_eq!(ways(None, &[3], &sets[1..]), ["leads", "left for 3"]);
    // From timeline 1 PostgreSQL doesn't get to 3; but there is a set of 2, and its history is nowhere.
    assert_eq!(ways(None, &[3], &sets), ["needs 2", "leads", "left for 3"]);
    assert_eq!(ways(Some("3"), &[3], &sets), ["left for 3", "leads", "left for 3"]);
}

#[test]
fn what_sets_carry_tells_where_the_archive_does_not() {
    let sets = [set(1, 1, 4), with_history(set(2, 2, 6)), set(3, 1, 6)];
    for timeline in [None, Some("current"), Some("2")] {
        assert_eq!(ways(timeline, &[], &sets), ["leads", "leads", "left for 2"], "{timeline:?}");
    }
    let sets = [set(1, 1, 4), set(2, 2, 6), set(3, 1, 6)];
    assert_eq!(ways(None, &[], &sets), ["needs 2", "leads", "needs 2"]);
    // A set that doesn't say where it ends.
    let mut endless = set(3, 1, 6);
    (endless.floor_lsn, endless.stop_lsn, endless.start_lsn) = (None, None, None);
    assert_eq!(ways(Some("2"), &[2], &[endless]), ["needs 2"]);
}

#[test]
fn what_manifests_tell_is_as_good_as_a_file() {
    use crate::set::manifest::Switch;
    let told = |mut set: Manifest| {
        set.postgres.history = vec![Switch { timeline: tli(1), lsn: Lsn::new(5 << 24) }];
        set
    };
    let sets = [set(1, 1, 4), told(set(2, 2, 6)), set(3, 1, 6)];
    assert_eq!(ways(None, &[], &sets), ["leads", "leads", "left for 2"]);
    // Also if that set is older than those that were looked at so far.
    let recovery = Recovery { target: Target::Lsn(Lsn::new(u64::MAX)), ..Recovery::default() };
    let none = |_: &Manifest, _: &str| -> Result<Vec<u8>> { Err(Error::failed("none")) };
    let mut timelines = Timelines::new(&recovery, Box::new(|_| Ok(None)), Box::new(none));
    timelines.learn_told(&Member::from(&sets[1]));
    // A set from before manifests told histories.
    timelines.learn_told(&Member::from(&set(4, 3, 7)));
    timelines.learn(&sets[2], true);
    assert!(matches!(timelines.way(&sets[2]).unwrap(), Way::Left(_)));
}

#[test]
fn timelines_of_before_pg_upgrade_tell_nothing_of_those_since() {
    use crate::set::manifest::Switch;
    let told = |mut set: Manifest| {
        set.postgres.history = vec![Switch { timeline: tli(1), lsn: Lsn::new(5 << 24) }];
        set
    };
    let upgraded = |mut set: Manifest| {
        set.postgres.system_identifier = SystemIdentifier::new(8);
        set
    };
    // pg_upgrade begins at timeline 1 again, after all of the old cluster's WAL.
    let new = [upgraded(set(7, 1, 9)), upgraded(set(8, 1, 10))];
    for of_two in [set(2, 2, 6), told(set(2, 2, 6)), with_history(set(2, 2, 6))] {
        let mut sets = vec![of_two];
        sets.extend(new.clone());
        for timeline in [None, Some("current"), Some("1")] {
            let ways = ways(timeline, &[], &sets);
            assert_eq!(ways[1..], ["leads", "leads"], "{timeline:?}");
        }
        assert_eq!(ways(Some("2"), &[], &sets), ["leads", "needs 2", "needs 2"]);
    }
    // As the list of all sets tells them.
    let recovery = Recovery { target: Target::Lsn(Lsn::new(u64::MAX)), ..Recovery::default() };
    let none = |_: &Manifest, _: &str| -> Result<Vec<u8>> { Err(Error::failed("none")) };
    let mut timelines = Timelines::new(&recovery, Box::new(|_| Ok(None)), Box::new(none));
    timelines.learn_told(&Member::from(&told(set(2, 2, 6))));
    timelines.learn(&new[0], true);
    assert_eq!(timelines.way(&new[0]).unwrap(), Way::Leads);
}

#[test]
fn a_damaged_history_is_an_error_that_names_it() {
    let recovery = Recovery::default();
    let ask = |_| Ok(Some(b"nonsense\n".to_vec()));
    let timelines = Timelines::new(&recovery, Box::new(ask), Box::new(|_, _| Ok(Vec::new())));
    let error = timelines.way(&set(1, 1, 4)).unwrap_err();
    assert!(
        error.chain().contains("the history of timeline 2 that restore_command gave is damaged")
    );
}

#[test]
fn the_refusal_names_what_fits_and_what_is_missing() {
    let recovery = Recovery { target: Target::Lsn(Lsn::new(7 << 24)), ..Recovery::default() };
    let (one, two) = (set(1, 1, 4), set(2, 2, 6));
    let error = unknown(&recovery, tli(2), &[&two, &one]);
    let said = error.chain();
    for words in ["LSN 0/7000000", "00000002.history", "20261123T194501Z-k3fa (timeline 1)"] {
        assert!(said.contains(words), "{said}");
    }
    assert!(error.hint().unwrap().contains("--target-timeline"));
}
