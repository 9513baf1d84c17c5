//! The table of strategies, row by row: for each kind of facts, what is chosen and in which order, or what is
//! lacking.

use pgfiles::control_file::DbState;
use std::path::PathBuf;

use pgfiles::control_file::ControlFile;
use pgfiles::wal_name::WalSegmentSize;

use super::*;
use crate::plan::facts::{ConfigFiles, Configuration, NoServer, ServerFacts, Unsettled};
use crate::plan::layout::tests::{layout, tablespace};
use crate::plan::layout::{Layout, NestedMount, PartKind, Reserved};
use crate::volume::zfs::DatasetName;

use StrategyChoice as Ask;

/// pg_control of a running PostgreSQL 15 primary, with the usual values of the settings that matter here.
fn control() -> ControlFile {
    let bytes = include_bytes!("../../../pgfiles/testdata/15/production.pg_control");
    let mut control = ControlFile::parse(bytes).unwrap();
    control.wal_level = WalLevel::Replica;
    control.checkpoint_copy.full_page_writes = true;
    control
}

fn server() -> ServerFacts {
    ServerFacts {
        version_num: 150_018,
        version: "15.18".into(),
        system_identifier: control().system_identifier,
        data_directory: "/t/data".into(),
        in_recovery: false,
        full_page_writes: true,
        wal_level: "replica".into(),
        archive_mode: "on".into(),
        archiver: "cp".into(),
        fsync: true,
        may_backup: true,
        may_slot: true,
        tablespaces: vec![],
        idle_slots: vec![],
        archive_failed: None,
        following: None,
        config_files: ConfigFiles::default(),
    }
}

/// Four datasets in two pools.
fn apart() -> Layout {
    layout(&[
        (PartKind::Data, "t/data"),
        (PartKind::Wal, "u/wal"),
        (tablespace(1), "t/one"),
        (tablespace(2), "u/two"),
    ])
}

/// Three datasets in one pool.
fn together() -> Layout {
    layout(&[(PartKind::Data, "t/data"), (PartKind::Wal, "t/wal"), (tablespace(1), "t/one")])
}

/// pg_wal on the data directory's dataset.
fn shared(second: &str) -> Layout {
    layout(&[(PartKind::Data, "t/data"), (PartKind::Wal, "t/data"), (tablespace(1), second)])
}

/// A running primary that takes a connection.
pub(crate) fn primary(layout: Layout) -> Facts {
    Facts {
        layout,
        control: control(),
        postmaster: Some(4711),
        links: vec![],
        standby_signal: false,
        backup_label: false,
        unsettled: None,
        has_primary: false,
        primary: None,
        server: Ok(server()),
        configuration: Configuration::default(),
        multi_snapshot: false,
        checkpoint: CheckpointMode::Fast,
        min_free: 256 << 20,
        repositories_within: Vec::new(),
    }
}

/// The same, but it can't be asked.
fn silent(layout: Layout) -> Facts {
    Facts { server: Err(NoServer::NotConfigured), ..primary(layout) }
}

fn stopped(layout: Layout, state: DbState) -> Facts {
    let mut facts = Facts { postmaster: None, ..silent(layout) };
    facts.server = Err(NoServer::NotRunning);
    facts.control.state = state;
    facts
}

fn with(mut facts: Facts, change: impl FnOnce(&mut Facts)) -> Facts {
    change(&mut facts);
    facts
}

pub(crate) fn with_server(facts: Facts, change: impl FnOnce(&mut ServerFacts)) -> Facts {
    with(facts, |facts| change(facts.server.as_mut().unwrap()))
}

/// A plan in one line.
fn line(facts: &Facts, plan: &Plan) -> String {
    let words = plan.steps.iter().map(|step| match step {
        Step::Slot => "slot".to_owned(),
        Step::StartBackup { fast: true } => "start".into(),
        Step::StartBackup { fast: false } => "start-spread".into(),
        Step::Snapshot { volumes, one_moment } => {
            let names: Vec<_> = volumes
                .iter()
                .map(|&volume| facts.layout.volumes[volume].dataset.as_str())
                .collect();
            format!("{}{}", names.join("+"), if *one_moment { "!" } else { "" })
        }
        Step::CheckLayout => "layout".into(),
        Step::Floor => "floor".into(),
        Step::ReplayFloor => "replayed".into(),
        Step::FirstControl => "control".into(),
        Step::LastControl => "control-again".into(),
        Step::CheckRecovery => "standby".into(),
        Step::SwitchPrimary => "switch".into(),
        Step::StopBackup => "stop".into(),
        Step::TakeWal(WalSource::Frozen) => "wal-frozen".into(),
        Step::TakeWal(WalSource::Live) => "wal-live".into(),
        Step::CheckShutDown => "shut-down".into(),
    });
    format!("{}: {}", plan.strategy, words.collect::<Vec<_>>().join(" "))
}

#[track_caller]
fn planned(facts: &Facts, ask: Ask, expected: &str) {
    let plan = choose(facts, ask).unwrap_or_else(|refusal| panic!("{expected}: {refusal}"));
    assert_eq!(line(facts, &plan), expected);
}

#[track_caller]
fn refused(facts: &Facts, ask: Ask, words: &[&str]) -> Refusal {
    let refusal = match choose(facts, ask) {
        Ok(plan) => panic!("{words:?} expected, planned {}", line(facts, &plan)),
        Err(refusal) => refusal,
    };
    let said = format!("{refusal}; {}", refusal.hint());
    for word in words {
        assert!(said.contains(word), "{word:?} isn't said: {said}");
    }
    refusal
}

#[test]
fn a_connection_means_label() {
    let facts = primary(apart());
    let label = "label: slot start t/data t/one u/two layout stop u/wal wal-frozen";
    planned(&facts, Ask::Auto, label);
    planned(&facts, Ask::Label, label);
    let spread = with(primary(apart()), |facts| facts.checkpoint = CheckpointMode::Spread);
    planned(&spread, Ask::Auto, &label.replace("start", "start-spread"));
    // If ZFS takes several snapshots in one command: one command per pool, with pg_wal still separate and last.
    let multi = with(primary(apart()), |facts| facts.multi_snapshot = true);
    planned(&multi, Ask::Auto, "label: slot start t/data+t/one u/two layout stop u/wal wal-frozen");
    planned(
        &primary(together()),
        Ask::Auto,
        "label: slot start t/data t/one layout stop t/wal wal-frozen",
    );
}

#[test]
fn label_copies_the_wal_that_cannot_be_frozen_last() {
    planned(
        &primary(shared("u/one")),
        Ask::Auto,
        "label: slot start t/data u/one layout stop wal-live",
    );
    let with_tablespace =
        layout(&[(PartKind::Data, "t/data"), (PartKind::Wal, "u/x"), (tablespace(1), "u/x")]);
    planned(
        &primary(with_tablespace),
        Ask::Auto,
        "label: slot start t/data u/x layout stop wal-live",
    );
}

#[test]
fn ordered_freezes_the_data_directory_first_and_pg_wal_last() {
    let asked = primary(apart());
    planned(&asked, Ask::Ordered, "ordered: slot t/data t/one u/two layout floor u/wal wal-frozen");
    // The data directory alone, however many snapshots one command could take.
    let multi = with(primary(apart()), |facts| facts.multi_snapshot = true);
    planned(&multi, Ask::Ordered, "ordered: slot t/data t/one u/two layout floor u/wal wal-frozen");
    let more = layout(&[
        (PartKind::Data, "t/data"),
        (PartKind::Wal, "t/wal"),
        (tablespace(1), "t/one"),
        (tablespace(2), "u/two"),
        (tablespace(3), "t/three"),
    ]);
    let more = with(primary(more), |facts| facts.multi_snapshot = true);
    planned(
        &more,
        Ask::Ordered,
        "ordered: slot t/data t/one+t/three u/two layout floor t/wal wal-frozen",
    );
    // Without a connection there is neither a slot nor a floor.
    planned(&silent(apart()), Ask::Auto, "ordered: t/data t/one u/two layout u/wal wal-frozen");
}

#[test]
fn one_pool_without_a_connection_means_atomic() {
    planned(&silent(together()), Ask::Auto, "atomic: t/data+t/wal+t/one! layout");
    planned(&silent(shared("t/one")), Ask::Auto, "atomic: t/data+t/one! layout");
    // With a connection, what is flushed before the snapshot is in it.
    planned(&primary(together()), Ask::Atomic, "atomic: floor t/data+t/wal+t/one! layout");
    refused(
        &primary(apart()),
        Ask::Atomic,
        &["atomic is not possible", "several pools (t, u)", "label or ordered"],
    );
}

#[test]
fn a_cluster_that_is_shut_down_means_cold() {
    let cold = "cold: shut-down t/data t/one u/two u/wal shut-down layout";
    for state in [DbState::ShutDowned, DbState::ShutDownedInRecovery] {
        planned(&stopped(apart(), state), Ask::Auto, cold);
        planned(&stopped(apart(), state), Ask::Cold, cold);
    }
    refused(&primary(apart()), Ask::Cold, &["cold is not possible", "process 4711", "pg_ctl stop"]);
    // Ended without a shutdown checkpoint, so not cold; but the other strategies handle what a power cut leaves.
    let crashed = stopped(apart(), DbState::InProduction);
    refused(&crashed, Ask::Cold, &["cold is not possible", "in production"]);
    planned(&crashed, Ask::Auto, "ordered: t/data t/one u/two layout u/wal wal-frozen");
    planned(
        &stopped(together(), DbState::InProduction),
        Ask::Auto,
        "atomic: t/data+t/wal+t/one! layout",
    );
    // pg_control may say that it is shut down while a server is just starting on it.
    let starting = with(silent(apart()), |facts| facts.control.state = DbState::ShutDowned);
    refused(&starting, Ask::Cold, &["process 4711"]);
}

#[test]
fn label_says_what_it_lacks() {
    refused(
        &silent(apart()),
        Ask::Label,
        &["label is not possible", "no \"host\" is configured", "set host"],
    );
    let unreachable =
        Facts { server: Err(NoServer::Failed("connection refused".into())), ..primary(apart()) };
    refused(&unreachable, Ask::Label, &["no connection: connection refused"]);
    refused(&stopped(apart(), DbState::ShutDowned), Ask::Label, &["isn't running"]);
    let forbidden = with_server(primary(apart()), |server| server.may_backup = false);
    refused(&forbidden, Ask::Label, &["may not call", "GRANT EXECUTE"]);
    planned(
        &forbidden,
        Ask::Auto,
        "ordered: slot t/data t/one u/two layout floor u/wal wal-frozen",
    );
    assert_eq!(
        choose(&forbidden, Ask::Auto).unwrap().chosen_because,
        "this user may not call pg_backup_start and pg_backup_stop"
    );
}

#[test]
fn ordered_says_what_it_lacks() {
    refused(
        &primary(shared("u/one")),
        Ask::Ordered,
        &["ordered is not possible", "pg_wal shares its dataset", "dataset of its own"],
    );
    let minimal = with(silent(apart()), |facts| facts.control.wal_level = WalLevel::Minimal);
    refused(&minimal, Ask::Ordered, &["wal_level is minimal", "wal_level = replica"]);
}

#[test]
fn nothing_possible_names_what_each_would_need() {
    let none = silent(shared("u/one"));
    let refusal = refused(
        &none,
        Ask::Auto,
        &[
            "no strategy is provably consistent",
            "cold: a server runs",
            "label: no \"host\"",
            "atomic: the parts lie in several pools",
            "ordered: pg_wal shares",
        ],
    );
    assert!(matches!(refusal, Refusal::NoStrategy { needed } if needed.len() == 4));
    let minimal = with_server(primary(apart()), |server| server.wal_level = "minimal".into());
    let minimal = with(minimal, |facts| facts.control.wal_level = WalLevel::Minimal);
    refused(&minimal, Ask::Label, &["wal_level is minimal"]);
    refused(&minimal, Ask::Auto, &["label: wal_level is minimal", "ordered: wal_level is minimal"]);
    // In one pool, a bulk load and its commit are from the same moment.
    let one_pool = with(silent(together()), |facts| facts.control.wal_level = WalLevel::Minimal);
    planned(&one_pool, Ask::Auto, "atomic: t/data+t/wal+t/one! layout");
}

#[test]
fn pages_that_may_be_torn_need_full_page_writes() {
    let small = |facts: Facts| {
        with(facts, |facts| facts.layout.volumes.last_mut().unwrap().recordsize = 4096)
    };
    let off =
        |facts: Facts| with(facts, |facts| facts.control.checkpoint_copy.full_page_writes = false);
    for (ask, layout) in [(Ask::Ordered, apart as fn() -> Layout), (Ask::Atomic, together)] {
        for facts in [silent, primary] {
            let lacks = ["full_page_writes is off", "recordsize of 4096", "full_page_writes = on"];
            refused(&off(small(facts(layout()))), ask, &lacks);
            // Either one is enough.
            assert!(choose(&off(facts(layout())), ask).is_ok(), "8 KiB records are written whole");
            assert!(
                choose(&small(facts(layout())), ask).is_ok(),
                "full page images repair torn pages"
            );
        }
        // Switched off since the last checkpoint, or on only since then: both count as off.
        let switched =
            with_server(small(primary(layout())), |server| server.full_page_writes = false);
        refused(&switched, ask, &["full_page_writes is off"]);
    }
    // pg_backup_start forces full page images, and pg_wal's records aren't pages.
    assert!(choose(&off(small(primary(apart()))), Ask::Label).is_ok());
    let small_wal = with(off(silent(apart())), |facts| facts.layout.volumes[1].recordsize = 4096);
    planned(&small_wal, Ask::Ordered, "ordered: t/data t/one u/two layout u/wal wal-frozen");
}

/// ZFS takes what isn't synced back to the pool's last transaction group: all of it together, or the WAL alone.
#[test]
fn what_is_not_synced_goes_back_alone_unless_nothing_is() {
    let hints = |layout: Layout, unsynced: &[usize]| {
        let facts = with(primary(layout), |facts| {
            for volume in unsynced {
                facts.layout.volumes[*volume].sync = "disabled".into();
            }
        });
        let all = warnings::of(&facts, Strategy::Label, Ask::Label);
        let all = all.into_iter().filter(|warning| warning.what.contains("sync=disabled"));
        all.map(|warning| warning.hint).collect::<Vec<_>>()
    };
    assert_eq!(hints(together(), &[]), [""; 0]);
    let loses = hints(together(), &[0, 1, 2]);
    assert_eq!(loses.len(), 3);
    assert!(loses.iter().all(|hint| hint.starts_with("a power cut loses")), "{loses:?}");
    for (layout, unsynced) in [
        (together(), &[1][..]),
        (together(), &[0, 2][..]),
        (apart(), &[1][..]),
        (apart(), &[0, 1, 2, 3][..]),
    ] {
        let corrupts = hints(layout, unsynced);
        assert_eq!(corrupts.len(), unsynced.len());
        assert!(corrupts.iter().all(|hint| hint.contains("can corrupt")), "{corrupts:?}");
    }
}

/// A hot standby that takes a connection.
fn standby(layout: Layout) -> Facts {
    let facts = with_server(primary(layout), |server| server.in_recovery = true);
    with(facts, |facts| {
        facts.control.state = DbState::InArchiveRecovery;
        facts.standby_signal = true;
    })
}

/// A standby with hot_standby = off, or one that can't be asked.
fn silent_standby(layout: Layout) -> Facts {
    Facts { server: Err(NoServer::Failed("not accepting connections".into())), ..standby(layout) }
}

#[test]
fn label_on_a_standby_freezes_the_data_directory_last() {
    let label = "label: slot start u/two t/one t/data layout stop standby u/wal wal-frozen";
    planned(&standby(apart()), Ask::Auto, label);
    // Its own wal_level says nothing about the WAL that it replays.
    let minimal = with_server(standby(apart()), |server| server.wal_level = "minimal".into());
    planned(&minimal, Ask::Auto, label);
    let multi = with(standby(apart()), |facts| facts.multi_snapshot = true);
    planned(&multi, Ask::Auto, &label.replace("t/one t/data", "t/one+t/data"));
    planned(
        &standby(shared("u/one")),
        Ask::Auto,
        "label: slot start u/one t/data layout stop standby wal-live",
    );
    let asked = with(standby(apart()), |facts| facts.has_primary = true);
    planned(&asked, Ask::Auto, &format!("{label} switch"));
}

#[test]
fn ordered_on_a_standby_lies_between_two_looks_at_pg_control() {
    let ordered = "ordered: control t/data t/one u/two layout control-again u/wal wal-frozen";
    planned(&silent_standby(apart()), Ask::Auto, ordered);
    planned(&standby(apart()), Ask::Ordered, &ordered.replace(": ", ": slot "));
    // A label says where recovery starts, so pg_wal need not have a dataset of its own.
    planned(
        &silent_standby(shared("u/one")),
        Ask::Auto,
        "ordered: control t/data u/one layout control-again wal-live",
    );
    for signal in [true, false] {
        let by_disk = with(silent_standby(apart()), |facts| facts.standby_signal = signal);
        planned(&by_disk, Ask::Auto, ordered);
    }
}

#[test]
fn atomic_on_a_standby_takes_one_pool() {
    planned(
        &silent_standby(together()),
        Ask::Auto,
        "atomic: replayed t/data+t/wal+t/one! standby layout",
    );
    refused(&silent_standby(apart()), Ask::Atomic, &["several pools"]);
}

#[test]
fn a_standby_without_the_backup_api_needs_whole_pages_and_an_end_of_its_own_recovery() {
    let torn = with(silent_standby(together()), |facts| {
        facts.control.checkpoint_copy.full_page_writes = true;
        facts.layout.volumes[2].recordsize = 4096;
    });
    let unfinished = with(silent_standby(together()), |facts| facts.backup_label = true);
    let waiting = with(silent_standby(together()), |facts| {
        facts.control.backup_start_point = "0/3000028".parse().unwrap();
    });
    for ask in [Ask::Ordered, Ask::Atomic] {
        refused(&torn, ask, &["\"t/one\" has a recordsize of 4096", "use label"]);
        refused(&unfinished, ask, &["hasn't yet replayed the base backup"]);
        refused(&waiting, ask, &["hasn't yet replayed the base backup"]);
    }
    refused(&torn, Ask::Auto, &["no strategy", "label: no connection"]);
}

#[test]
fn a_stopped_standby_is_cold() {
    let stopped =
        with(stopped(apart(), DbState::ShutDownedInRecovery), |facts| facts.standby_signal = true);
    planned(&stopped, Ask::Auto, "cold: shut-down t/data t/one u/two u/wal shut-down layout");
    // Stopped before it had replayed its base backup, whose WAL isn't in the set.
    let waiting = with(stopped, |facts| facts.control.backup_end_required = true);
    refused(&waiting, Ask::Cold, &["cold is not possible", "hasn't yet replayed the base backup"]);
    refused(&waiting, Ask::Auto, &["no strategy", "cold: the standby hasn't yet replayed"]);
}

#[test]
fn no_strategy_takes_files_that_a_server_has_not_left_like_that() {
    for facts in [silent, silent_standby, |layout| stopped(layout, DbState::ShutDowned)] {
        let unsettled = with(facts(together()), |facts| {
            facts.unsettled =
                Some(Unsettled { what: "pg_rewind is at work".into(), needed: "wait".into() });
        });
        for ask in [Ask::Auto, Ask::Label, Ask::Ordered, Ask::Atomic, Ask::Cold] {
            refused(&unsettled, ask, &["pg_rewind is at work", "wait"]);
        }
    }
}

#[test]
fn a_dataset_s_name_leaves_room_for_a_set_s() {
    let at = |length: usize| {
        with(primary(together()), |facts| {
            let name = format!("t/{}", "d".repeat(length - 2));
            facts.layout.volumes[0].dataset = DatasetName::new(&name).unwrap();
        })
    };
    assert!(choose(&at(224), Ask::Auto).is_ok());
    refused(&at(225), Ask::Auto, &["has a name of 225 characters", "at most 224", "zfs rename"]);
}

#[test]
fn no_strategy_goes_over_a_full_pool_or_a_hidden_mount() {
    let asks = [Ask::Auto, Ask::Label, Ask::Ordered, Ask::Atomic, Ask::Cold];
    let nested = |harmless| {
        let mount = NestedMount {
            point: PathBuf::from("/t/one/x"),
            source: "v/x".into(),
            part: tablespace(1),
            harmless,
        };
        with(primary(together()), |facts| facts.layout.volumes[2].nested.push(mount))
    };
    let space = |left| with(primary(together()), |facts| facts.layout.volumes[1].available = left);
    for ask in asks {
        refused(
            &nested(false),
            ask,
            &["\"v/x\" is mounted at \"/t/one/x\"", "tablespace 1", "unmount"],
        );
        refused(
            &space((256 << 20) - 1),
            ask,
            &["\"t/wal\"", "268435455 bytes left", "min_free_mib"],
        );
    }
    // Each of pg_backup_start and pg_backup_stop may begin a segment.
    let large =
        |left| with(space(left), |facts| facts.control.wal_segment_size = WalSegmentSize::MAX);
    let needed = (256 << 20) + (2 << 30);
    for ask in [Ask::Auto, Ask::Label, Ask::Ordered] {
        refused(&large(needed - 1), ask, &["\"t/wal\"", &needed.to_string()]);
    }
    assert!(choose(&large(needed), Ask::Label).is_ok());
    let cold = with(stopped(together(), DbState::ShutDowned), |facts| {
        facts.control.wal_segment_size = WalSegmentSize::MAX;
        facts.layout.volumes[1].available = 256 << 20;
    });
    assert!(choose(&cold, Ask::Cold).is_ok(), "nothing begins a segment");
    let reserved = |own: u64| {
        with(primary(together()), |facts| {
            let lacking = Reserved::lacking(10 << 30, (10 << 30) - own, (11 << 30) - own);
            facts.layout.volumes[1].lacking = lacking;
        })
    };
    for ask in asks {
        let words = [
            "\"t/wal\"",
            "1073741825 bytes outside",
            "1073741824 are left",
            "refreservation=none t/wal",
        ];
        refused(&reserved((1 << 30) + 1), ask, &words);
    }
    assert!(choose(&reserved(1 << 30), Ask::Auto).is_ok());
    assert_eq!(Reserved::lacking(0, 0, 0), None, "nothing is reserved");
    assert!(choose(&nested(true), Ask::Auto).is_ok());
    assert!(choose(&space((256 + 2 * 16) << 20), Ask::Auto).is_ok());
}

/// Checks every plan that can be made against the rules of consistency.
#[test]
fn every_plan_keeps_the_rules() {
    let layouts = [apart(), together(), shared("u/one"), shared("t/one"), shared("t/data")];
    let mut plans = 0;
    for layout in layouts {
        for multi_snapshot in [false, true] {
            let kinds =
                [primary as fn(Layout) -> Facts, silent, standby, silent_standby, |layout| {
                    stopped(layout, DbState::ShutDowned)
                }];
            for facts in kinds {
                let facts = Facts { multi_snapshot, ..facts(layout.clone()) };
                for ask in [Ask::Auto, Ask::Label, Ask::Ordered, Ask::Atomic, Ask::Cold] {
                    if let Ok(plan) = choose(&facts, ask) {
                        keeps_the_rules(&facts, &plan);
                        plans += 1;
                    }
                }
            }
        }
    }
    assert!(plans > 60, "only {plans} plans were looked at");
}

fn keeps_the_rules(facts: &Facts, plan: &Plan) {
    let said = line(facts, plan);
    let place = |wanted: &dyn Fn(&Step) -> bool| plan.steps.iter().position(wanted);
    let groups: Vec<_> = plan.groups().collect();
    let order: Vec<usize> = groups.concat();
    let mut once = order.clone();
    once.sort_unstable();
    assert_eq!(
        once,
        (0..facts.layout.volumes.len()).collect::<Vec<_>>(),
        "each volume once: {said}"
    );
    for group in &groups {
        let pools: Vec<_> =
            group.iter().map(|&volume| facts.layout.volumes[volume].pool()).collect();
        assert!(pools.windows(2).all(|pair| pair[0] == pair[1]), "a command spans pools: {said}");
    }
    if facts.is_standby() && plan.strategy == Strategy::Label {
        let data = facts.layout.data_volumes();
        let of_data: Vec<_> = order.iter().filter(|volume| data.contains(volume)).collect();
        assert_eq!(of_data.last(), Some(&&0), "the data directory's volume last: {said}");
    } else {
        assert_eq!(order[0], 0, "the data directory's volume first: {said}");
    }
    if let (Some(wal), true) = (facts.layout.own_wal_volume(), plan.strategy != Strategy::Atomic) {
        assert_eq!(groups.last(), Some(&&[wal][..]), "pg_wal's volume last and alone: {said}");
    }
    let is_data = |step: &Step| matches!(step, Step::Snapshot { volumes, .. } if Some(volumes[0]) != facts.layout.own_wal_volume());
    let last_data = plan.steps.iter().rposition(is_data).unwrap();
    let layout = place(&|step| *step == Step::CheckLayout).expect("the layout is read again");
    assert!(last_data < layout, "the layout is read again after the last data snapshot: {said}");
    let stop = place(&|step| *step == Step::StopBackup);
    let start = place(&|step| matches!(step, Step::StartBackup { .. }));
    let slot = place(&|step| *step == Step::Slot);
    let wal = place(&|step| matches!(step, Step::TakeWal(_)));
    let first = place(&|step| matches!(step, Step::Snapshot { .. })).unwrap();
    let frozen = plan.steps.iter().rposition(|step| matches!(step, Step::Snapshot { .. })).unwrap();
    if facts.is_standby() && plan.strategy != Strategy::Cold {
        let end = match plan.strategy {
            Strategy::Ordered => Step::LastControl,
            _ => Step::CheckRecovery,
        };
        let end = place(&|step| *step == end).expect("a standby is looked at again");
        assert!(last_data < end && wal.is_none_or(|wal| end < wal), "{said}");
        let control = place(&|step| *step == Step::FirstControl);
        assert_eq!(control.is_some(), plan.strategy == Strategy::Ordered, "{said}");
        assert!(control.is_none_or(|control| control < first), "{said}");
    }
    match plan.strategy {
        Strategy::Label => {
            assert!(slot < start && start.unwrap() < first, "{said}");
            assert!(layout < stop.unwrap() && stop < wal, "{said}");
            if wal == place(&|step| *step == Step::TakeWal(WalSource::Frozen)) {
                assert!(stop.unwrap() < frozen, "frozen before its end was written: {said}");
            }
        }
        Strategy::Ordered => {
            assert_eq!(groups[0], [0], "pg_control's volume alone: {said}");
            assert!(slot.is_none_or(|slot| slot < first) && frozen < wal.unwrap(), "{said}");
            assert_eq!(slot.is_some(), facts.server.is_ok(), "{said}");
            let floor = place(&|step| *step == Step::Floor);
            assert!(floor.is_none_or(|floor| last_data < floor && floor < frozen), "{said}");
        }
        Strategy::Atomic => {
            assert!(groups.len() == 1 && wal.is_none() && start.is_none(), "{said}");
            assert!(
                matches!(&plan.steps[first], Step::Snapshot { one_moment: true, .. }),
                "{said}"
            );
        }
        Strategy::Cold => {
            let shut = place(&|step| *step == Step::CheckShutDown).unwrap();
            let again = plan.steps.iter().rposition(|step| *step == Step::CheckShutDown).unwrap();
            assert!(shut < first && frozen < again, "before and after: {said}");
        }
    }
}

#[test]
fn a_name_that_is_too_long_is_shortened_once_the_mount_point_is_the_dataset_s_own() {
    let name = format!("t/{}", "x".repeat(LONGEST_DATASET));
    let refusal = check_place(&primary(layout(&[(PartKind::Data, name.as_str())]))).unwrap_err();
    assert!(matches!(refusal, Refusal::NameTooLong { .. }), "{refusal}");
    let hint = refusal.hint();
    let (kept, renamed) = (hint.find("`zfs set mountpoint="), hint.find("`zfs rename`"));
    assert!(kept.is_some() && kept < renamed, "{hint}");
}
