//! What a backup costs the machine: the number of `zfs` and `zpool` processes that it starts. Each takes milliseconds
//! of a core that the server could use, so their number is limited here, and nothing that is known about ZFS is asked
//! twice. Also what `prune` and `check` cost if snapshots of many sets are gone.

use crate::support::commands::{CommandLog, pretending};
use crate::support::faults::{assert_nothing_remains, assert_restorable};
use crate::support::fixture::Fixture;
use crate::support::layout::two_pools_four_datasets;
use crate::support::pools::{property, release_and_destroy};
use crate::support::shipping::with_options;

use std::fs;

/// How often each subcommand may be run for a set of four datasets in two pools. The layout is read before the first
/// and after the last snapshot of data, and the snapshots' facts after the very last one. Whether a dataset isn't
/// mounted where it should be is asked once: otherwise a part would be frozen as an empty folder. And so is whether a
/// pool is suspended: reading a file there would never end.
const MOST: [(&str, usize); 6] = [
    ("zpool list", 1),
    ("zfs get", 3),
    ("zfs list", 1),
    ("zfs snapshot", 4),
    ("zfs hold", 1),
    ("zfs set", 1),
];

#[track_caller]
fn assert_few(commands: &[String], what: &str) {
    let all = commands.join("\n  ");
    for command in commands {
        let known = MOST.iter().any(|(name, _)| command.starts_with(&format!("{name} ")));
        assert!(known, "{what}: {command}\nall of them:\n  {all}");
    }
    for (name, most) in MOST {
        let name = format!("{name} ");
        let count = commands.iter().filter(|command| command.starts_with(&name)).count();
        assert!((1..=most).contains(&count), "{what}: {count} times {name}:\n  {all}");
    }
}

fn probes(commands: &[String]) -> usize {
    commands.iter().filter(|command| command.contains("lockstep-probe")).count()
}

#[test]
fn a_backup_starts_few_commands() {
    let fixture = Fixture::new(two_pools_four_datasets());
    let log = CommandLog::new(&fixture);
    let lockstep = log.watching(&fixture.lockstep());

    // The first backup finds out what this ZFS can do, and nothing twice.
    lockstep.backup("label");
    let first = log.take();
    assert_eq!(probes(&first), 1, "{first:#?}");
    assert!(first.len() <= 13, "{} commands:\n  {}", first.len(), first.join("\n  "));

    for (strategy, more) in
        [("label", &[][..]), ("label", &["--label", "two words"]), ("ordered", &[])]
    {
        let arguments = [&["--json", "backup", "--strategy", strategy], more].concat();
        let outcome = lockstep.expect(0, &arguments);
        assert_few(&log.take(), &outcome.command);
    }
    assert_nothing_remains(&fixture, &[], "four backups");

    // Another program under the same name: it may be another ZFS.
    log.replace_program();
    lockstep.backup("label");
    let after = log.take();
    assert_eq!(probes(&after), 1, "{after:#?}");
    lockstep.backup("label");
    assert_few(&log.take(), "the one after");
}

/// If something remembered is wrong, that costs a command, but no set.
#[test]
fn what_is_remembered_wrongly_spoils_nothing() {
    let fixture = Fixture::new(two_pools_four_datasets());
    let log = CommandLog::new(&fixture);
    let lockstep = log.watching(&fixture.lockstep());
    lockstep.json(&["plan"]);
    let file = fixture.state.join("zfs.json");
    let truth = fs::read_to_string(&file).expect("what ZFS can do is kept");
    log.take();
    for (from, to) in [("true", "false"), ("false", "true")] {
        let wrong = truth
            .replace(&format!("\"multi_snapshot\": {from}"), &format!("\"multi_snapshot\": {to}"))
            .replace(&format!("\"sync\": {from}"), &format!("\"sync\": {to}"));
        for strategy in ["label", "ordered"] {
            fs::write(&file, &wrong).expect("the test may write there");
            let set = lockstep.backup(strategy);
            assert_eq!(set.volumes.len(), 4, "{}", set.json);
            assert_restorable(&fixture, &set.id);
            for volume in &set.volumes {
                assert_eq!(property(&volume.snapshot, "lockstep:state"), "complete");
            }
        }
        assert_eq!(probes(&log.take()), 0, "what is known isn't asked");
    }
    // Neither does a file that can't be read.
    for damaged in ["", "{\"found_on\": 1"] {
        fs::write(&file, damaged).expect("the test may write there");
        lockstep.backup("label");
        assert_eq!(probes(&log.take()), 1, "{damaged:?}");
    }
    assert_nothing_remains(&fixture, &[], "backups with a wrong memory");
}

/// `check` and `repo check` cost no command for each set. If a dataset was destroyed, for example, all earlier sets are
/// broken: the pools are listed once, not once per set. And a snapshot that is removed meanwhile stops nothing.
#[test]
fn sets_cost_no_command_each_whether_their_snapshots_are_there_or_gone() {
    let fixture = Fixture::new(two_pools_four_datasets());
    let log = CommandLog::new(&fixture);
    let retention = "[clusters.main.retention]\nlocal = { last = 9 }\nrepository = { last = 9 }\n";
    let lockstep = log.watching(&with_options(&fixture, &format!("\n{retention}")));
    let count = |arguments: &[&str]| {
        log.take();
        lockstep.run(arguments);
        log.take().len()
    };
    let mut sets = vec![lockstep.backup("label")];
    let of_one = [count(&["check"]), count(&["repo", "check"])];
    sets.extend([(); 3].map(|()| lockstep.backup("label")));
    assert_eq!([count(&["check"]), count(&["repo", "check"])], of_one);
    // Two volumes of each.
    let break_sets = |range: std::ops::Range<usize>| {
        for volume in sets[range].iter().flat_map(|set| [&set.volumes[0], &set.volumes[3]]) {
            release_and_destroy(&volume.snapshot);
        }
    };
    let asked = |arguments: &[&str]| {
        log.take();
        lockstep.expect(3, arguments);
        let commands = log.take();
        commands.iter().filter(|command| command.contains(" -t snapshot ")).count()
    };
    break_sets(0..1);
    let (prune, check) = (["prune", "--dry-run"], ["check"]);
    let before = [asked(&prune), asked(&check)];
    assert!(before.iter().all(|count| (1..=30).contains(count)), "{before:?}");
    break_sets(1..3);
    assert_eq!([asked(&prune), asked(&check)], before);

    // Between the listing and the question.
    let going = &sets[2].volumes[1].snapshot;
    let cases =
        format!("*userrefs*) zfs release lockstep {going}; zfs destroy {going}; exec zfs \"$@\";;");
    let outcome = pretending(&fixture, &lockstep, "removing", &cases).expect(3, &["list"]);
    assert!(outcome.stdout.contains(&sets[3].id), "{outcome:?}");
}

/// What `prune` starts for each set that it removes: it lists no snapshots, of which the datasets may have a hundred
/// thousand, and the cluster is locked meanwhile.
#[test]
fn a_removal_asks_for_its_own_snapshots_alone() {
    let fixture = Fixture::new(two_pools_four_datasets());
    let log = CommandLog::new(&fixture);
    let retention = "[clusters.main.retention]\nlocal = { last = 1 }\n";
    let lockstep = log.watching(&with_options(&fixture, &format!("\n{retention}")));
    let cost_of_removing = |sets: usize| {
        (0..sets).for_each(|_| drop(lockstep.backup("label")));
        log.take();
        let json = lockstep.json(&["prune", "--local"]);
        let removed = json["places"][0]["removed"].as_array().map(Vec::len);
        assert_eq!(removed, Some(sets), "{json}");
        let commands = log.take();
        let lists = commands.iter().filter(|command| command.contains(" -t snapshot ")).count();
        // zfs-fuse may say "dataset is busy" for a moment; then that is repeated.
        let others = commands.iter().filter(|command| !command.starts_with("zfs destroy ")).count();
        (lists, others)
    };
    lockstep.backup("label");
    let (of_one, of_four) = (cost_of_removing(1), cost_of_removing(4));
    assert_eq!(of_four.0, of_one.0, "snapshots are listed for the plan alone");
    // For each of two pools: what the snapshots are and their clones, twice, whether it is read-only and whether it is
    // there. And one release for each of four datasets.
    assert!(of_four.1 <= of_one.1 + 3 * 16, "{of_one:?}, {of_four:?}");
}
