use super::*;
use crate::plan::layout::PartKind;
use crate::plan::layout::tests::layout;
use crate::plan::strategy::tests::{primary, with_server};
use crate::set::manifest::Manifest;
use crate::set::manifest::tests::manifest;

fn severity_of(findings: &[Finding], subject: &str) -> Vec<Severity> {
    let of = findings.iter().filter(|finding| finding.subject == subject);
    of.map(|finding| finding.severity).collect()
}

fn facts() -> Facts {
    primary(layout(&[(PartKind::Data, "t/data"), (PartKind::Wal, "t/wal")]))
}

fn following(streams: bool, should_stream: bool) -> Facts {
    with_server(facts(), |server| {
        server.in_recovery = true;
        let (caught_up, replayed) = (true, "0/7000000".to_owned());
        let last_commit = Some("2026-11-01T00:00:00Z".parse().unwrap());
        server.following = Some(Following {
            streams,
            should_stream,
            caught_up,
            paused: false,
            replayed,
            last_commit,
        });
    })
}

#[test]
fn archiving_that_fails_is_an_error_and_not_ok_as_well() {
    let well = ordered(of_facts(&facts(), StrategyChoice::Auto));
    assert_eq!(severity_of(&well, "archiving"), [Severity::Ok]);
    for facts in [
        with_server(facts(), |server| server.archive_failed = Some("00000001".repeat(3))),
        with_server(facts(), |server| server.archiver = String::new()),
    ] {
        let found = ordered(of_facts(&facts, StrategyChoice::Auto));
        assert_eq!(severity_of(&found, "archiving"), [Severity::Error], "{found:?}");
    }
}

#[test]
fn a_backup_s_note_that_keeps_the_archive_is_told_with_what_to_do() {
    let name = "000000010000000000000003.00000028.backup";
    let failed = with_server(facts(), |server| server.archive_failed = Some(name.to_owned()));
    let found = ordered(of_facts(&failed, StrategyChoice::Auto));
    let hint = found.iter().find(|it| it.subject == "archiving").unwrap().hint.as_deref().unwrap();
    assert!(hint.contains(&format!("pg_wal/archive_status/{name}.ready")), "{hint}");
}

#[test]
fn a_standby_that_does_not_follow_is_an_error_unless_an_archive_feeds_it() {
    assert_eq!(of_standby(&following(true, true)).severity, Severity::Ok);
    assert_eq!(of_standby(&following(false, false)).severity, Severity::Ok);
    assert_eq!(of_standby(&following(false, true)).severity, Severity::Error);
}

#[test]
fn a_set_is_as_old_as_its_data() {
    let now: jiff::Timestamp = "2026-11-05T12:00:00Z".parse().unwrap();
    let mut set = manifest("20261105T110000Z-aaaa", vec![]);
    set.started_at = "2026-11-05T11:00:00Z".parse().unwrap();
    assert_eq!(sets::too_old(&set, 26, now), None);
    set.data_at = Some("2026-11-04T12:00:00Z".parse().unwrap());
    assert_eq!(sets::too_old(&set, 26, now), None);
    set.data_at = Some("2026-11-01T12:00:00Z".parse().unwrap());
    for (standby, hint) in [(true, "follow its primary"), (false, "is data_directory where")] {
        set.postgres.standby = standby;
        let old = sets::too_old(&set, 26, now).unwrap();
        let why = &old.what;
        assert!(
            why.contains("data that is 96 hours old") && why.contains("2026-11-01 12:00:00Z"),
            "{why}"
        );
        assert!(!old.is_set && old.hint.contains(hint), "{old:?}");
    }
    // A cold set's data is older than the set; that no newer set was taken is the timer's business.
    set.started_at = "2026-11-04T10:00:00Z".parse().unwrap();
    for data_at in [None, set.data_at] {
        set.data_at = data_at;
        let old = sets::too_old(&set, 26, now).unwrap();
        assert_eq!((&*old.what, old.is_set), ("is 26 hours old", true));
        assert!(old.hint.contains("timer"), "{old:?}");
    }
}

/// An unchanged page doesn't go by again, so the newest set's own count doesn't include it.
#[test]
fn the_newest_set_has_the_damaged_pages_of_what_it_stands_on() {
    use crate::repository::shipped::{Pages, Shipped, ShippedVolume};
    let set = |day: u8, base: Option<u8>, bad: u64| {
        let volume = |image: &str, bad| ShippedVolume {
            dataset: crate::volume::zfs::DatasetName::new("t/data").unwrap(),
            image: image.into(),
            delta: day.to_string(),
            base: base.map(|day| day.to_string()),
            stream_bytes: 0,
            stored_bytes: 0,
            left_out: Vec::new(),
            pages: Pages { bad, ..Pages::default() },
            raw: None,
        };
        let id = format!("202611{day:02}T110000Z-aaaa");
        Shipped::new(manifest(&id, vec![]), vec![volume("data", bad), volume("more", 0)])
    };
    let sets = [set(1, None, 2), set(2, None, 3), set(3, Some(2), 0), set(4, Some(3), 0)];
    let below = |newest: &Shipped, sets: &[Shipped]| -> Vec<_> {
        sets::damaged_below(newest, sets).into_iter().collect()
    };
    assert_eq!(below(&sets[3], &sets), [("20261102T110000Z-aaaa".to_owned(), 3)]);
    assert_eq!(below(&sets[1], &sets), [], "a full one stands on nothing");
    assert_eq!(below(&sets[3], &sets[2..]), [], "what was removed isn't looked at");
    // A nonsensical cycle comes to an end.
    assert_eq!(below(&set(5, Some(4), 0), &[set(4, Some(3), 0), set(3, Some(4), 0)]), []);
}

/// A data directory that nobody uses any more is backed up forever, and each set is whole.
#[test]
fn a_cluster_that_is_shut_down_has_data_of_its_last_checkpoint() {
    let mut stopped = facts();
    stopped.postmaster = None;
    stopped.server = Err(NoServer::NotRunning);
    stopped.control.state = pgfiles::control_file::DbState::ShutDowned;
    let checkpoint = jiff::Timestamp::from_second(stopped.control.checkpoint_copy.time).unwrap();
    assert_eq!(stopped.data_at(jiff::Timestamp::now()), Some(checkpoint));
    assert_ne!(
        severity_of(&of_facts(&stopped, StrategyChoice::Auto), "connection"),
        [Severity::Error]
    );
    stopped.server = Err(NoServer::Another("its data_directory is \"/new\"".into()));
    let found = of_facts(&stopped, StrategyChoice::Auto);
    assert_eq!(severity_of(&found, "connection"), [Severity::Error]);
    let plan = strategy::choose(&stopped, StrategyChoice::Auto).unwrap();
    assert!(plan.warnings[0].problem && plan.warnings[0].what.contains("/new"));
    let found = of_facts(&stopped, StrategyChoice::Cold);
    assert_eq!(severity_of(&found, "connection"), [Severity::Ok], "it was asked for");
}

#[test]
fn what_a_standby_holds_is_of_now_only_where_it_follows() {
    let now = jiff::Timestamp::now();
    assert_eq!(facts().data_at(now), None, "a primary");
    assert_eq!(following(true, true).data_at(now), Some(now));
    let old: jiff::Timestamp = "2026-11-01T00:00:00Z".parse().unwrap();
    assert_eq!(following(false, true).data_at(now), Some(old));
    let behind = with_server(following(true, true), |server| {
        server.following.as_mut().unwrap().caught_up = false;
    });
    assert_eq!(behind.data_at(now), Some(old), "replay is paused");
    // If the primary is asked, its word counts: a standby that streams from another one keeps streaming when the
    // primary is dead.
    let asked = |seen, streams| {
        let facts = Facts { primary: Some(seen), ..following(streams, !streams) };
        facts.data_at(now)
    };
    assert_eq!(asked(PrimarySeen::Reached, true), Some(now));
    assert_eq!(asked(PrimarySeen::Reached, false), Some(now), "fed by an archive");
    for seen in [
        PrimarySeen::Unreachable("refused".into()),
        PrimarySeen::InRecovery,
        PrimarySeen::Behind(16 << 20),
    ] {
        assert_eq!(asked(seen, true), Some(old));
    }
}

/// Without `host`, as with `hot_standby = off`, nobody says whether it follows: its sets were as young as the last
/// backup, for ever.
#[test]
fn a_standby_that_can_not_be_asked_has_data_of_its_last_restartpoint() {
    let mut silent = facts();
    silent.server = Err(NoServer::NotConfigured);
    let checkpoint = jiff::Timestamp::from_second(silent.control.checkpoint_copy.time).unwrap();
    let now = checkpoint + jiff::SignedDuration::from_hours(200);
    assert_eq!(silent.data_at(now), None, "a primary");
    silent.control.state = pgfiles::control_file::DbState::InArchiveRecovery;
    assert_eq!(silent.data_at(now), Some(checkpoint));
    let said = of_standby(&silent);
    let day = checkpoint.strftime("%Y-%m-%d").to_string();
    assert!(said.severity == Severity::Ok && said.what.contains(&day), "{said:?}");
    let mut set = manifest("20261105T110000Z-aaaa", vec![]);
    (set.started_at, set.data_at, set.postgres.standby) = (now, silent.data_at(now), true);
    let old = sets::too_old(&set, 26, now).unwrap();
    assert!(!old.is_set && old.what.contains(&day), "{old:?}");
}

/// A standby may stream from another one whose own primary is dead.
#[test]
fn a_primary_that_can_not_be_asked_is_a_problem_and_one_that_is_ahead_a_warning() {
    let of = |seen, paused| {
        let facts = with_server(following(true, true), |server| {
            server.following.as_mut().unwrap().paused = paused;
        });
        let facts = Facts { primary: seen, ..facts };
        let plan = strategy::choose(&facts, StrategyChoice::Auto).unwrap();
        let of_data = plan.warnings.into_iter().filter(|w| w.what.contains("2026-11-01 00:00:00Z"));
        let said: Vec<_> = of_data.map(|w| (w.problem, w.what)).collect();
        (said, of_standby(&facts).severity)
    };
    assert_eq!(of(None, false), (vec![], Severity::Ok), "an idle primary is no reason to cry");
    assert_eq!(of(Some(PrimarySeen::Reached), false), (vec![], Severity::Ok));
    let (said, _) = of(Some(PrimarySeen::Unreachable("no connection: refused".into())), false);
    assert!(said[0].0 && said[0].1.contains("refused"), "{said:?}");
    let (said, _) = of(Some(PrimarySeen::InRecovery), false);
    assert!(said[0].0 && said[0].1.contains("in recovery itself"), "{said:?}");
    let facts = Facts { primary: Some(PrimarySeen::Beside), ..facts() };
    let plan = strategy::choose(&facts, StrategyChoice::Auto).unwrap();
    // What was written to it since is lost with its data.
    let promoted = plan.warnings.iter().find(|w| w.what.contains("was promoted")).unwrap();
    assert!(promoted.problem && promoted.hint.contains("nowhere else"), "{promoted:?}");
    let (said, severity) = of(Some(PrimarySeen::Behind(16 << 20)), false);
    assert!(!said[0].0 && said[0].1.contains("16.0 MiB"), "{said:?}");
    assert_eq!(severity, Severity::Warning);
    let (said, severity) = of(None, true);
    assert!(!said[0].0 && said[0].1.contains("replay is paused"), "{said:?}");
    assert_eq!(severity, Severity::Warning);
}

/// What used to be silent: the nightly backup of a dead mirror.
#[test]
fn a_set_of_a_dead_standby_and_one_without_the_connection_that_was_meant_have_a_problem() {
    let problems = |facts: &Facts, choice| {
        let plan = strategy::choose(facts, choice).unwrap();
        let all = plan.warnings.into_iter().filter(|warning| warning.problem);
        all.map(|warning| warning.what).collect::<Vec<_>>()
    };
    let auto = StrategyChoice::Auto;
    assert_eq!(problems(&following(true, true), auto), [""; 0]);
    let said = problems(&following(false, true), auto);
    assert!(said[0].contains("nothing streams") && said[0].contains("2026-11-01"), "{said:?}");

    let mut stopped = facts();
    stopped.postmaster = None;
    stopped.server = Err(NoServer::NotRunning);
    stopped.control.state = pgfiles::control_file::DbState::ShutDownedInRecovery;
    assert!(problems(&stopped, auto)[0].contains("the standby is stopped"));
    assert_eq!(problems(&stopped, StrategyChoice::Cold), [""; 0], "it was stopped for it");
    stopped.control.state = pgfiles::control_file::DbState::ShutDowned;
    assert_eq!(problems(&stopped, auto), [""; 0], "a primary");

    let mut refused = facts();
    refused.server = Err(NoServer::Failed("host \"/run\", port 1, user \"u\": refused".into()));
    let said = problems(&refused, auto);
    assert!(said[0].contains("port 1") && said[0].contains("refused"), "{said:?}");
    assert_eq!(problems(&refused, StrategyChoice::Atomic), [""; 0], "it was asked for");
    refused.server = Err(NoServer::NotConfigured);
    assert_eq!(problems(&refused, auto), [""; 0]);
}

/// Whether or not others ship to the same repository: what this host took has to arrive, and to stay.
#[test]
fn a_host_whose_sets_no_longer_arrive_is_told() {
    use super::sets::ThisHost;
    let set = |day: u32| {
        let mut set = manifest(&format!("202611{day:02}T000000Z-aaaa"), vec![]);
        set.started_at = format!("2026-11-{day:02}T00:00:00Z").parse().unwrap();
        set
    };
    let sets: Vec<_> = (10..=20).map(set).collect();
    let at = |day: usize| sets.get(day - 10);
    let now = "2026-11-20T01:00:00Z".parse().unwrap();
    let check = |noted: Option<_>, there: Option<_>, newest: Option<&str>| {
        let noted = noted.map(|set| (set, there == Some(set)));
        let this = ThisHost { sets: &sets, noted, there };
        let found = this.check("repository offsite", newest, 26, now);
        found.map(|found| (found.severity, found.what))
    };
    let others = Some("20261120T003000Z-bbbb");
    assert_eq!(check(at(20), at(20), others), None);
    assert_eq!(check(at(20), None, others), None, "pruned by the other host");
    assert_eq!(check(at(19), at(19), others), None, "today's may be on its way");
    let (severity, what) = check(at(12), at(12), others).unwrap();
    assert_eq!(severity, Severity::Error);
    assert!(what.contains("20261112T000000Z-aaaa, is 193 hours old"), "{what}");
    let (_, what) = check(None, None, others).unwrap();
    assert!(what.starts_with("no set of this host is in it"), "{what}");
    // If no other host ships: the age of the newest set there is another finding.
    assert_eq!(check(at(12), at(12), Some("20261112T000000Z-aaaa")), None);
    // Noted, and gone along with everything after it.
    for newest in [None, Some("20261115T000000Z-bbbb")] {
        let (severity, what) = check(at(18), at(14), newest).unwrap();
        assert_eq!(severity, Severity::Error);
        assert!(what.starts_with("set 20261118T000000Z-aaaa was shipped to it"), "{what}");
    }
    // It is there, but looks like another cluster's: after pg_upgrade, if nobody configured the former identifier.
    let noted = at(18).map(|set| (set, true));
    let this = ThisHost { sets: &sets, noted, there: None };
    assert_eq!(this.check("repository offsite", None, 26, now), None);
}

/// The old host of a failover still runs, and its sets are the newest.
#[test]
fn a_cluster_that_was_left_and_its_sets_are_errors() {
    use crate::set::branches::{Branches, Member};
    use crate::set::manifest::Switch;
    use pgfiles::lsn::{Lsn, TimelineId};
    let mut control = facts().control;
    let set = |day: u32, timeline: u32, end: u64| {
        let mut set = manifest(&format!("202611{day:02}T000000Z-aaaa"), vec![]);
        set.postgres.system_identifier = control.system_identifier;
        set.postgres.timeline = TimelineId::new(timeline).unwrap();
        set.floor_lsn = Some(Lsn::new(end << 24));
        if timeline == 2 {
            set.postgres.history =
                vec![Switch { timeline: TimelineId::FIRST, lsn: Lsn::new(5 << 24) }];
        }
        set
    };
    let mut sets = vec![set(1, 1, 4), set(2, 2, 6), set(3, 1, 7)];
    let now = "2026-12-01T00:00:00Z".parse().unwrap();
    let found = |sets: &[Manifest], control: &_| {
        let timelines = Branches::of(sets.iter().map(Member::from), now);
        branches::check("repository offsite", &timelines, sets.last(), Some(control))
    };
    control.checkpoint_copy.timeline = TimelineId::FIRST;
    (control.checkpoint, control.min_recovery_point) = (Lsn::new(8 << 24), Lsn::INVALID);
    control.min_recovery_point_timeline = 0;
    let said = found(&sets, &control);
    assert!(said[0].what.starts_with("its newest set 20261103T000000Z-aaaa is left"), "{said:?}");
    assert!(said[1].what.starts_with("this host's cluster is on timeline 1, which"), "{said:?}");
    assert!(said.iter().all(|one| one.severity == Severity::Error && one.hint.is_some()));
    // The new host reports it about the set, not about itself; and nothing once it has taken the next set.
    control.checkpoint_copy.timeline = TimelineId::new(2).unwrap();
    assert_eq!(found(&sets, &control).len(), 1);
    sets.push(set(4, 2, 9));
    assert_eq!(found(&sets, &control), []);
    // Another cluster continued along timeline 2, and began there before this one's set had ended.
    let mut two = sets.clone();
    for (at, set) in two.iter_mut().enumerate().skip(1) {
        set.postgres.standby = false;
        set.postgres.timeline = TimelineId::new(2).unwrap();
        set.owner = format!("host {at}");
        set.start_lsn = Some(Lsn::new(5 << 24));
        (set.started_at, set.finished_at) = [0, 60]
            .map(|more| jiff::Timestamp::from_second(at as i64 * 3600 + more).unwrap())
            .into();
    }
    two.pop();
    let said = found(&two, &control);
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0].what.starts_with("two clusters went on along timeline 2"), "{said:?}");
    assert!(said[0].hint.as_ref().unwrap().contains("lockstep prune --set"), "{said:?}");
    // A set that can't be read may be on a higher timeline than all others.
    let why = crate::error::Error::failed("it is damaged");
    let timelines = Branches::of(sets.iter().map(Member::from), now).beside([("one", &why)]);
    let said = branches::untold("repository offsite", &timelines, "offsite");
    assert!(said[0].what.contains("set one can't be read") && said[0].severity == Severity::Error);
    assert!(said[0].hint.as_ref().unwrap().contains("--repository offsite --set one"), "{said:?}");
    // A standby that hasn't reached the switch yet.
    control.checkpoint_copy.timeline = TimelineId::FIRST;
    control.checkpoint = Lsn::new(4 << 24);
    assert_eq!(found(&sets, &control), []);
}
