//! Names that must be quoted somewhere on their way: spaces, dots, colons, a newline, a backslash.

use crate::support::checker::Checker;
use crate::support::cluster::Stop;
use crate::support::command::give_to_postgres;
use crate::support::fixture::{Fixture, assert_clean};
use crate::support::layout::{long_name, odd_names, one_dataset};
use crate::support::ledger::Ledger;
use crate::support::lockstep::{Set, exit};
use crate::support::shipping::with_repository;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;

const SCALE: u32 = 1;

#[test]
fn odd_names_go_through_backup_restore_and_clone() {
    let fixture = Fixture::new(odd_names());
    fixture.pgbench_tables(SCALE);
    let ledger = Ledger::create(&fixture.cluster, "ts1", "ts2");
    let writers = ledger.start(&fixture.cluster);
    let lockstep = fixture.lockstep();

    let plan = lockstep.expect(exit::DONE, &["plan"]);
    for dataset in &fixture.datasets {
        assert!(
            plan.stdout.contains(dataset.as_str()),
            "`plan` doesn't show {dataset:?}: {}",
            plan.describe()
        );
    }
    let planned = lockstep.json(&["plan"]);
    assert!(planned.is_object(), "{planned}");

    for strategy in ["label", "ordered"] {
        let set = lockstep.backup(strategy);
        let expected = ledger.expected(set.floor_lsn);
        let mut datasets: Vec<_> =
            set.volumes.iter().map(|volume| volume.dataset.clone()).collect();
        let mut all = fixture.datasets.clone();
        datasets.sort();
        all.sort();
        assert_eq!(datasets, all, "every dataset, and none twice");

        let directory = fixture.target(&format!("re stored: {strategy}.1"));
        let restored = lockstep.restore_and_start(&set.id, &directory, &[]);
        let server = restored.server();
        let mut places = server.column(
            "postgres",
            "SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname LIKE 'ts%'",
        );
        places.sort();
        places.dedup();
        assert_eq!(places.len(), 2, "two tablespaces at two places: {places:?}");
        for link in fs::read_dir(restored.data.join("pg_tblspc"))
            .expect("a data directory has pg_tblspc")
            .flatten()
        {
            let place =
                fs::read_link(link.path()).expect("a tablespace that isn't in place is a link");
            assert!(place.starts_with(&directory), "{place:?} isn't the restored cluster's own");
        }
        let verdict = Checker::new(SCALE).with_ledger(&ledger, expected).check_and_stop(server);
        verdict.assert_right(strategy);
        assert!(verdict.ledger_rows > 2, "the ledger had hardly any rows");
        fixture.discard_restored(&directory, &set.id);
    }

    let clone = lockstep.clone_create("try-out", &[]);
    assert_eq!(clone.server().value("postgres", "SELECT count(*) FROM pgbench_accounts"), "100000");
    lockstep.expect(exit::DONE, &["clone", "destroy", "try-out"]);
    writers.stop();
    assert_clean(&fixture);
}

/// A repository names an image after its dataset, but allows only shorter names.
#[test]
fn a_dataset_with_a_long_name_is_shipped() {
    let fixture = Fixture::new(long_name());
    let lockstep = with_repository(&fixture);
    let cluster = &fixture.cluster;
    cluster.execute(&["CREATE TABLE t AS SELECT generate_series(1, 1000) AS n"]);
    lockstep.backup("label");
    cluster.execute(&["INSERT INTO t SELECT generate_series(1, 100)"]);
    let set = lockstep.backup("label");
    let volume = &set.json["repositories"][0]["volumes"][0];
    assert!(volume["base"].is_string(), "it is an increment: {}", set.json);
    lockstep.expect(exit::DONE, &["repo", "check", "--read-data"]);
    let to = fixture.target("long");
    let more = ["--from", "repository", "--as", "files"];
    let restored = lockstep.restore_and_start(&set.id, &to, &more);
    assert_eq!(restored.server().value("postgres", "SELECT count(*) FROM t"), "1100");
    restored.server().stop(Stop::Fast);
}

/// Below the data directory, where nobody but its owner made it, and deeper than a path may be long.
#[test]
fn a_path_longer_than_a_system_call_takes_is_shipped() {
    use rustix::fs::{Mode, OFlags, mkdirat, open, openat};
    let fixture = Fixture::new(one_dataset());
    let lockstep = with_repository(&fixture);
    let (cluster, flags) = (&fixture.cluster, OFlags::RDONLY | OFlags::DIRECTORY);
    let deep = |top: &std::path::Path, make: bool| {
        let mut folder = open(top, flags, Mode::empty()).expect("the data directory is a folder");
        for _ in 0..30 {
            let name = "d".repeat(200);
            if make {
                mkdirat(&folder, &name, Mode::RWXU).expect("a folder can be made");
            }
            folder = openat(&folder, &name, flags, Mode::empty()).expect("it is there");
        }
        folder
    };
    let bottom = deep(&cluster.data, true);
    let file = openat(&bottom, "file", OFlags::WRONLY | OFlags::CREATE, Mode::RUSR);
    rustix::io::write(file.expect("a file can be made"), b"text").expect("it can be written");
    cluster.execute(&["CREATE TABLE t AS SELECT generate_series(1, 1000) AS n"]);
    let set = lockstep.backup("label");
    cluster.execute(&["INSERT INTO t SELECT generate_series(1, 100)"]);
    lockstep.backup("label");
    let to = fixture.target("deep");
    let more = ["--from", "repository", "--as", "files"];
    let restored = lockstep.restore_and_start(&set.id, &to, &more);
    assert_eq!(restored.server().value("postgres", "SELECT count(*) FROM t"), "1000");
    let file = openat(deep(&restored.data, false), "file", OFlags::RDONLY, Mode::empty());
    let mut found = [0; 8];
    let length = rustix::io::read(file.expect("it is restored"), &mut found);
    assert_eq!(length.map(|length| &found[..length]), Ok(&b"text"[..]));
    restored.server().stop(Stop::Fast);
}

/// A backup's own text may hold anything that a label may.
#[test]
fn odd_label_is_kept() {
    let fixture = Fixture::new(odd_names());
    let lockstep = fixture.lockstep();
    let text = "before v1.5: \"quoted\" 'too' \\ back %p ünïcode";
    let taken = lockstep.json(&["backup", "--strategy", "label", "--label", text]);
    let set = taken["set"].as_str().expect("a set has an id");
    let shown = lockstep.json(&["show", set]).to_string();
    let quoted = serde_json::Value::from(text).to_string();
    assert!(shown.contains(quoted.trim_matches('"')), "{text:?} isn't shown: {shown}");
}

/// Shared catalogs and settings hold bytes: a UTF-8 database sends as it is what a database of another encoding
/// wrote.
#[test]
fn names_and_paths_that_are_not_utf_8() {
    let bytes = |text: &str| -> Vec<u8> {
        text.chars().map(|c| u8::try_from(u32::from(c)).expect("it is of LATIN1")).collect()
    };
    let fixture = Fixture::new(one_dataset());
    let (cluster, lockstep) = (&fixture.cluster, fixture.lockstep());
    let text = format!("{}/all/größe", fixture.mnt().display());
    let path = bytes(&text);
    let path = std::path::Path::new(OsStr::from_bytes(&path));
    fs::create_dir(path).expect("a folder can be made");
    give_to_postgres(path);
    cluster.execute(&["CREATE DATABASE l1 ENCODING 'LATIN1' TEMPLATE template0"]);
    let mut client = cluster.connect("l1");
    client
        .batch_execute(&format!("CREATE TABLESPACE \"größe\" LOCATION '{text}'"))
        .expect("a tablespace can be made");
    drop(client);
    let oid = cluster.value("postgres", "SELECT max(oid::int) FROM pg_tablespace");
    let link = fs::read_link(cluster.data.join("pg_tblspc").join(&oid)).expect("it is a link");
    assert_eq!(link, path, "the server has written LATIN1");
    let statement = format!(
        "DO $$ BEGIN EXECUTE format('CREATE TABLE t TABLESPACE %I AS SELECT generate_series(1, 100) AS n', \
         (SELECT spcname FROM pg_tablespace WHERE oid = {oid})); END $$"
    );
    cluster.connect("l1").batch_execute(&statement).expect("a table can be made");
    let settings = cluster.data.join("postgresql.auto.conf");
    let mut lines = fs::read(&settings).expect("it can be read");
    lines.extend(bytes("archive_command = 'test -d größe'\n"));
    fs::write(&settings, lines).expect("it can be written");
    cluster.execute(&["SELECT pg_reload_conf()"]);

    lockstep.expect(exit::DONE, &["plan"]);
    lockstep.run(&["check"]);
    for database in ["postgres", "l1"] {
        let config = fixture.root().join(format!("by-{database}.toml"));
        let wanted = format!("{}dbname = \"{database}\"\n", fixture.configuration("auto", true));
        fs::write(&config, wanted).expect("the configuration can be written");
        let by = crate::support::lockstep::Lockstep::new(&config, &cluster.bin);
        let set = Set::of(&by.json(&["backup", "--strategy", "label", "--label", "größe"]));
        let to = fixture.target(&set.id);
        let restored = lockstep.restore_and_start(&set.id, &to, &[]);
        assert_eq!(restored.server().value("l1", "SELECT count(*) FROM t"), "100", "{database}");
        fixture.discard_restored(&to, &set.id);
    }
    cluster.stop(Stop::Fast);
    lockstep.backup("cold");
    lockstep.expect(exit::DONE, &["list"]);
    cluster.start();
    assert_clean(&fixture);
}
