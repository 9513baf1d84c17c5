//! Checks the code that recognizes and parses ZFS's output against everything that was captured.

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::ExitStatus;

use super::super::{Guid, Tagged, parse};
use super::*;

const OPENZFS: &str = "openzfs-2.1.11";
const ZFS_FUSE: &str = "zfs-fuse-0.7.0";

fn folder(version: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../testdata/zfs-output").join(version)
}

fn stdout(version: &str, command: &str) -> String {
    std::fs::read_to_string(folder(version).join(format!("{command}.stdout.txt"))).unwrap()
}

fn stderr(version: &str, command: &str) -> CommandError {
    let path = folder(version).join(format!("{command}.stderr.txt"));
    let stderr = std::fs::read_to_string(path).unwrap();
    CommandError::Exit { command: command.into(), status: ExitStatus::from_raw(256), stderr }
}

fn names_in(folder: PathBuf) -> BTreeSet<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// The captured commands whose stderr `says` recognizes.
fn recognized(version: &str, says: fn(&CommandError) -> bool) -> Vec<String> {
    let files = names_in(folder(version)).into_iter();
    let commands = files.filter_map(|name| Some(name.strip_suffix(".stderr.txt")?.to_owned()));
    let mut recognized: Vec<_> = commands.filter(|it| says(&stderr(version, it))).collect();
    recognized.sort();
    recognized
}

fn assert_recognized(version: &str, says: fn(&CommandError) -> bool, commands: &str) {
    assert_eq!(recognized(version, says), commands.split_whitespace().collect::<Vec<_>>());
}

#[test]
fn every_folder_of_captures_is_read() {
    let known = [OPENZFS, ZFS_FUSE].map(str::to_owned);
    assert_eq!(names_in(folder("")), BTreeSet::from(known), "a folder that these tests don't read");
}

#[test]
fn openzfs_is_understood() {
    let says = |says, commands| assert_recognized(OPENZFS, says, commands);
    says(
        is_absent,
        "bookmark-missing-snapshot bookmark-probe clone-no-parent destroy-clone-again
         destroy-missing-snapshot hold-missing holds-missing probe-one-missing-dataset
         probe-two-missing-datasets probe-two-missing-pools release-deferred-gone release-missing
         send-missing snapshot-missing-dataset snapshot-one-missing zfs-get-missing
         zfs-list-missing zfs-list-missing-no-p zpool-list-missing zpool-list-missing-no-p",
    );
    says(
        is_taken,
        "bookmark-exists clone-exists hold-again receive-exists snapshot-exists
         snapshot-one-exists",
    );
    says(
        is_busy,
        "destroy-busy destroy-held destroy-pool-busy destroy-several-snapshots unmount-busy",
    );
    // The disks of the captures' pools were there; this is what it says if they aren't.
    says(is_suspended, "");
    let (command, status) = (String::new(), ExitStatus::from_raw(256));
    let stderr = "cannot open 'sus/d': pool I/O is currently suspended\n".to_owned();
    let suspended = CommandError::Exit { command, status, stderr };
    assert!(is_suspended(&suspended) && !is_io_error(&suspended));
    let listed = "fast\tONLINE\t17\twait\nsus 1\tSUSPENDED\t-\tcontinue\nSUSPENDED\tDEGRADED\t18\twait\n\
                  on 2\tUNAVAIL\t-\tcontinue\n";
    let pools = parse::pools(listed);
    assert_eq!(pools.suspended, BTreeSet::from(["sus 1".to_owned()]));
    assert_eq!(pools.continuing, BTreeSet::from(["on 2".to_owned()]), "ZFS has to be asked");
    let guids = [("SUSPENDED".to_owned(), Guid::new(18)), ("fast".to_owned(), Guid::new(17))];
    assert_eq!(pools.guids, guids.into());
    says(is_held_already, "hold-again");
    says(knows_no_property, "zfs-get-unknown-property zfs-list-bad-column");
    says(knows_no_command, "zfs-unknown-command");
    // It takes several snapshots, and knows bookmarks.
    says(wants_one, "");
    says(knows_no_type, "");
}

#[test]
fn zfs_fuse_is_understood() {
    let says = |says, commands| assert_recognized(ZFS_FUSE, says, commands);
    says(
        is_absent,
        "clone-no-parent destroy-clone-again destroy-missing-snapshot hold-missing
         probe-one-missing-dataset release-deferred-gone release-missing send-missing
         snapshot-missing-dataset zfs-get-missing zfs-list-missing-no-p zpool-list-missing-no-p",
    );
    says(is_taken, "clone-exists hold-again receive-exists snapshot-exists");
    says(is_busy, "destroy-busy destroy-held destroy-pool-busy unmount-busy");
    says(is_held_already, "hold-again");
    // No capture was made while a file system was being unmounted; this is what zfs-fuse says then.
    says(is_io_error, "");
    let (command, status) = (String::new(), ExitStatus::from_raw(256));
    let stderr = "cannot receive incremental stream: I/O error\n".to_owned();
    assert!(is_io_error(&CommandError::Exit { command, status, stderr }));
    says(
        knows_no_property,
        "clone-list-of-snapshot receive-resume receive-resume-token zfs-get-fields
         zfs-get-unknown-property zfs-list-bad-column zfs-list-o zpool-get-all",
    );
    says(
        knows_no_command,
        "bookmark bookmark-exists bookmark-full-name bookmark-missing-snapshot bookmark-probe
         zfs-diff zfs-unknown-command zfs-version zpool-version",
    );
    says(
        wants_one,
        "probe-two-missing-datasets probe-two-missing-pools snapshot-one-exists
         snapshot-one-missing snapshot-two-datasets snapshot-two-pools",
    );
    // No capture asks only for bookmarks; this is what zfs-fuse says.
    says(knows_no_type, "");
    let (command, status) = (String::new(), ExitStatus::from_raw(512));
    let stderr = "invalid type 'bookmark'\nusage:\n".to_owned();
    assert!(knows_no_type(&CommandError::Exit { command, status, stderr }));
}

#[test]
fn properties_are_taken_apart() {
    for version in [OPENZFS, ZFS_FUSE] {
        let all = parse::properties(&stdout(version, "zfs-get-recursive-no-t"), |_| true).unwrap();
        assert_eq!(all.len(), 4, "{version}");
        let guid = |dataset: &str| parse::number(&all[dataset]["guid"], "guid").unwrap();
        assert_ne!(guid("vmcapa/data"), guid("vmcapa/wal"));
        assert!(all["vmcapa/with space"]["mountpoint"].ends_with("/vmcapa/with space"));
        for dataset in all.keys() {
            parse::dataset(dataset).unwrap();
        }
        // From a command that asked for a fourth column.
        let own =
            parse::properties(&stdout(version, "snapshot-get-user-properties"), |_| true).unwrap();
        let own = &own["vmcapa/data@tagged"];
        assert_eq!(own["lockstep:label"], "two words\tlocal");
        assert_eq!(own["lockstep:absent"], "-\t-");
        // A value of several lines can't be told from several values, so Lockstep writes none.
        let strange = parse::properties(&stdout(version, "snapshot-get-all"), |_| true).unwrap();
        assert_eq!(strange["vmcapa/data@tagged"]["lockstep:lines"], "one");
        assert_eq!(strange["two"]["three"], "local");
        assert!(parse::properties("two\tthree\n", |_| true).is_err());
    }
}

#[test]
fn snapshots_are_told_from_datasets() {
    for version in [OPENZFS, ZFS_FUSE] {
        let listed = stdout(version, "snapshot-list-all-types");
        let found: Vec<_> = parse::snapshots(&listed).collect();
        let expected = [
            ("vmcapa/data", "two"),
            ("vmcapa/data", "tagged"),
            ("vmcapa/wal", "two"),
            ("vmcapa/with space", "a b"),
        ];
        assert_eq!(found, expected, "{version}");
    }
}

#[test]
fn only_lockstep_s_own_snapshots_are_tagged() {
    for version in [OPENZFS, ZFS_FUSE] {
        // The captures have the properties, on snapshots without the set's name.
        let listed = stdout(version, "snapshot-list-user-property");
        let widened = |line: &str| line.replacen('\t', "\towner\t", 1);
        let lines: Vec<_> = listed.lines().map(widened).collect();
        assert!(lines.iter().any(|line| line == "vmcapa/data@tagged\towner\t01J\tcomplete"));
        assert_eq!(parse::tagged(&lines.join("\n")).unwrap(), []);
        let named = lines.join("\n").replace("@tagged", "@lockstep-01J");
        let [Tagged { snapshot, owner, set, state }] = &parse::tagged(&named).unwrap()[..] else {
            panic!("not one: {named}");
        };
        assert_eq!(snapshot.to_string(), "vmcapa/data@lockstep-01J");
        assert_eq!([owner, set, state], ["owner", "01J", "complete"]);
        assert!(parse::tagged(&listed).unwrap_err().to_string().contains("vmcapa/data@"));
    }
}

#[test]
fn clones_are_those_with_an_origin() {
    for version in [OPENZFS, ZFS_FUSE] {
        let listed = stdout(version, "zfs-list-o-of-version-23");
        let name_and_origin = |line: &str| {
            let columns: Vec<_> = line.split('\t').collect();
            format!("{}\t{}\n", columns[0], columns[columns.len() - 1])
        };
        let listed: String = listed.lines().map(name_and_origin).collect();
        assert_eq!(parse::clones(&listed).unwrap(), [], "{version}");
        let all = parse::properties(&stdout(version, "clone-get"), |_| true).unwrap();
        let origin = all["vmcapa/clone"]["origin"].trim_end_matches("\t-");
        let listed = format!("{listed}vmcapa/clone\t{origin}\n");
        assert_eq!(parse::clones(&listed).unwrap(), [("vmcapa/clone", "vmcapa/data@tagged")]);
        assert!(parse::clones("vmcapa").unwrap_err().to_string().contains("vmcapa"));
    }
}

#[test]
fn what_a_send_and_a_pool_can_do_is_read() {
    let flags =
        |version| parse::send_flags(stderr(version, "zfs-usage").stderr()).map(str::to_owned);
    assert_eq!(flags(OPENZFS).as_deref(), Some("DnPpRVvLecwhb"));
    assert_eq!(flags(ZFS_FUSE).as_deref(), Some("RDp"));
    assert_eq!(parse::send_flags("internal error"), None);
    let features = stdout(OPENZFS, "zpool-get-all");
    let line = |feature: &str| features.lines().find(|line| line.contains(feature)).unwrap();
    assert!(parse::has_feature(line("feature@bookmarks")));
    assert!(parse::has_feature(line("feature@lz4_compress")));
    assert!(!parse::has_feature(&line("feature@bookmarks").replace("enabled", "disabled")));
}
