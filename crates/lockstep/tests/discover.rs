//! Where the parts are, and what is refused with its name: parts on other file systems, mounts inside or over a part,
//! links out of the data directory, in-place tablespaces, foreign files, a server that can't be asked.

mod support;

use std::fs;
use std::os::unix::fs::symlink;
use support::cluster::Stop;
use support::command::{command, give_to_postgres, must};
use support::fixture::{Fixture, assert_clean};
use support::layout::{one_dataset, two_pools_four_datasets};
use support::lockstep::exit;
use support::pools::{patiently, try_zfs, zfs};

#[test]
fn what_cannot_be_frozen_is_refused_by_name() {
    let fixture = Fixture::new(two_pools_four_datasets());
    let lockstep = fixture.lockstep();

    // A tablespace on the test's own file system.
    let elsewhere = fixture.owned("elsewhere");
    fixture
        .cluster
        .execute(&[&format!("CREATE TABLESPACE away LOCATION '{}'", elsewhere.display())]);
    for command in ["plan", "backup"] {
        let refused = lockstep.expect(exit::REFUSED, &[command]);
        for word in [
            "tablespace away",
            elsewhere.to_str().expect("UTF-8"),
            "can't be snapshotted",
            "hint: ",
        ] {
            assert!(refused.stderr.contains(word), "no {word:?}: {}", refused.describe());
        }
    }
    fixture.cluster.execute(&["DROP TABLESPACE away"]);

    // A dataset mounted inside the data directory: its files would be in no snapshot of it.
    let inside = fixture.cluster.data.join("base/inside");
    let nested = fixture.pools[1].dataset("nested", &inside, &[]);
    let refused = lockstep.expect(exit::REFUSED, &["backup"]);
    assert!(
        refused.stderr.contains(&nested) && refused.stderr.contains("base/inside"),
        "{}",
        refused.describe()
    );
    // If PostgreSQL doesn't need the files after a restore, it is a warning.
    let logs = fixture.cluster.data.join("log");
    zfs(&["set", &format!("mountpoint={}", logs.display()), &nested]);
    let planned = lockstep.json(&["plan"]);
    assert!(planned["warnings"].to_string().contains(&nested), "{planned}");
    lockstep.backup("label");
    patiently("zfs", &["destroy", &nested], || ()).expect("an idle dataset can be destroyed");
    let _ = fs::remove_dir(&inside);
    let _ = fs::remove_dir(&logs);

    // Free space.
    let config = fs::read_to_string(fixture.config()).expect("the configuration is there");
    fs::write(fixture.config(), format!("{config}min_free_mib = 100000000\n"))
        .expect("it can be written");
    let refused = lockstep.expect(exit::REFUSED, &["backup"]);
    assert!(
        refused.stderr.contains("bytes left") && refused.stderr.contains(&fixture.datasets[0]),
        "{}",
        refused.describe()
    );

    // A misspelt key.
    fs::write(fixture.config(), format!("{config}strategi = 1\n")).expect("it can be written");
    let wrong = lockstep.expect(exit::USAGE, &["plan"]);
    assert!(wrong.stderr.contains("strategi"), "{}", wrong.describe());
    fs::write(fixture.config(), config).expect("it can be written");
    assert_clean(&fixture);
}

#[test]
fn without_a_connection_only_what_is_provable_is_taken() {
    let fixture = Fixture::new(two_pools_four_datasets());
    fs::write(fixture.config(), fixture.configuration("auto", false)).expect("it can be written");
    let lockstep = fixture.lockstep();
    let planned = lockstep.json(&["plan"]);
    assert_eq!(planned["strategy"], "ordered", "{planned}");
    let order = planned["order"].as_array().expect("an order");
    let first = order.first().map(ToString::to_string).unwrap_or_default();
    let last = order.last().map(ToString::to_string).unwrap_or_default();
    assert!(first.contains("/data") && last.contains("/wal"), "{planned}");

    fixture.cluster.execute(&["CREATE TABLE seen AS SELECT 41 + 1 AS answer"]);
    let set = lockstep.backup("auto");
    assert_eq!((set.strategy.as_str(), set.floor_lsn), ("ordered", None));
    let directory = fixture.target("unconnected");
    let restored = lockstep.restore_and_start(&set.id, &directory, &[]);
    assert_eq!(restored.server().value("postgres", "SELECT answer FROM seen"), "42");
    fixture.discard_restored(&directory, &set.id);

    // If the strategy that needs a connection is requested, the error says what is missing.
    let refused = lockstep.expect(exit::REFUSED, &["backup", "--strategy", "label"]);
    assert!(refused.stderr.contains("\"host\""), "{}", refused.describe());

    // Nothing is provable if pg_wal must be frozen with the data while a server runs: all reasons are named.
    fixture
        .cluster
        .execute(&["ALTER SYSTEM SET wal_level = minimal", "ALTER SYSTEM SET max_wal_senders = 0"]);
    fixture.cluster.stop(Stop::Fast);
    fixture.cluster.start();
    let refused = lockstep.expect(exit::REFUSED, &["backup"]);
    for word in ["cold:", "label:", "atomic:", "ordered:", "wal_level is minimal", "hint: "] {
        assert!(refused.stderr.contains(word), "no {word:?}: {}", refused.describe());
    }
    assert_clean(&fixture);
}

#[test]
fn tablespaces_in_place_and_foreign_files() {
    let layout = one_dataset().setting("allow_in_place_tablespaces", "on");
    // A tablespace's own dataset, mounted where the others are folders.
    let layout = layout.dataset(0, "all/apart", "all/apart").tablespace("apart", "all/apart/files");
    let fixture = Fixture::new(layout);
    fs::write(fixture.mnt().join("all/somebody's notes.txt"), "x").expect("a file can be written");
    fixture.cluster.execute(&[
        "CREATE TABLESPACE inplace LOCATION ''",
        "CREATE TABLE there (n int) TABLESPACE inplace",
        "INSERT INTO there SELECT generate_series(1, 1000)",
    ]);
    let lockstep = fixture.lockstep();
    let planned = lockstep.json(&["plan"]);
    assert!(
        !planned["volumes"].to_string().contains("inplace"),
        "in place is no part of its own: {planned}"
    );
    let warnings = planned["warnings"].to_string();
    assert!(warnings.contains("also holds \\\"somebody's notes.txt\\\"\""), "{planned}");

    let set = lockstep.backup("label");
    let directory = fixture.target("in place");
    let restored = lockstep.restore_and_start(&set.id, &directory, &[]);
    let server = restored.server();
    assert_eq!(server.value("postgres", "SELECT count(*) FROM there"), "1000");
    assert!(
        server
            .value(
                "postgres",
                "SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname = 'inplace'"
            )
            .starts_with("pg_tblspc/")
    );
    fixture.discard_restored(&directory, &set.id);
    assert_clean(&fixture);
}

/// A database and one of PostgreSQL's own folders behind links, as administrators make them for a faster disk. They
/// would be in no snapshot, and a restored cluster would write to the live one's files.
#[test]
fn links_out_of_the_data_directory_are_refused() {
    let fixture = Fixture::new(two_pools_four_datasets());
    let lockstep = fixture.lockstep();
    fixture.cluster.execute(&["CREATE DATABASE fast"]);
    let oid =
        fixture.cluster.value("postgres", "SELECT oid FROM pg_database WHERE datname = 'fast'");
    let data = &fixture.cluster.data;
    let elsewhere = fixture.owned("fast disk");
    let lead_away = |name: &str| {
        let to = elsewhere.join(name.replace('/', "-"));
        must(&mut command("cp", ["-aT".as_ref(), data.join(name).as_os_str(), to.as_os_str()]));
        fs::remove_dir_all(data.join(name)).expect("a copied folder can be removed");
        symlink(&to, data.join(name)).expect("a link can be made");
        to
    };
    let database = format!("base/{oid}");
    for name in [database.as_str(), "pg_xact"] {
        fixture.cluster.stop(Stop::Fast);
        let to = lead_away(name);
        fixture.cluster.start();
        for arguments in [["plan"], ["backup"]] {
            let refused = lockstep.expect(exit::REFUSED, &arguments);
            let path = data.join(name).display().to_string();
            for word in [&path, &to.display().to_string(), "in no snapshot", "hint: "] {
                assert!(refused.stderr.contains(word), "no {word:?}: {}", refused.describe());
            }
        }
        let checked = lockstep.expect(exit::PROBLEMS, &["check"]);
        assert!(checked.stdout.contains(name), "{}", checked.describe());
        fixture.cluster.stop(Stop::Fast);
        // A set of the stopped cluster would lack them as well.
        lockstep.expect(exit::REFUSED, &["backup", "--strategy", "cold"]);
        fs::remove_file(data.join(name)).expect("a link can be removed");
        fs::rename(&to, data.join(name)).unwrap_or_else(|_| {
            must(&mut command("cp", ["-aT".as_ref(), to.as_os_str(), data.join(name).as_os_str()]));
        });
        fixture.cluster.start();
    }
    // Folders that PostgreSQL recreates may be anywhere.
    fixture.cluster.stop(Stop::Fast);
    lead_away("pg_stat_tmp");
    // Links that don't concern PostgreSQL are only reported, unless they lead into the live cluster.
    symlink("/etc/ssl", data.join("ssl")).expect("a link can be made");
    fixture.cluster.start();
    let set = lockstep.backup("label");
    let warned = set.json["warnings"].to_string();
    assert!(warned.contains("/ssl") && warned.contains("is a link to"), "{warned}");
    let live = data.join("live");
    symlink(data.join("global"), &live).expect("a link can be made");
    lockstep.expect(exit::REFUSED, &["backup"]);
    fs::remove_file(&live).expect("a link can be removed");
    assert_clean(&fixture);
}

/// Something is mounted over the folder in which the datasets are mounted. They are still in the list of mounts, but
/// the files at the data directory's path are different ones.
#[test]
fn datasets_behind_another_mount_are_not_taken_for_the_cluster() {
    let fixture = Fixture::new(two_pools_four_datasets());
    fixture.cluster.stop(Stop::Fast);
    let mnt = fixture.mnt();
    let aside = fixture.root().join("aside");
    must(&mut command("cp", ["-aT".as_ref(), mnt.as_os_str(), aside.as_os_str()]));
    must(&mut command("mount", ["--bind".as_ref(), aside.as_os_str(), mnt.as_os_str()]));
    let outcomes = ["plan", "backup"].map(|command| fixture.lockstep().run(&[command]));
    must(&mut command("umount", [&mnt]));
    for refused in outcomes {
        assert_eq!(refused.code, Some(exit::REFUSED), "{}", refused.describe());
        for word in ["data directory lies at", "can't be snapshotted", "hint: "] {
            assert!(refused.stderr.contains(word), "no {word:?}: {}", refused.describe());
        }
    }
    assert_eq!(fixture.snapshots(), [""; 0], "something else was frozen");
    assert_eq!(fixture.lockstep().backup("auto").strategy, "cold");
    assert_clean(&fixture);
}

/// A stopped server's pg_wal that lacks the segment in which recovery begins, as if its dataset weren't mounted.
#[test]
fn a_cold_set_without_its_wal_is_none() {
    let fixture = Fixture::new(two_pools_four_datasets());
    fixture.cluster.stop(Stop::Fast);
    let pg_wal = fs::canonicalize(fixture.cluster.data.join("pg_wal")).expect("it is there");
    let aside = fixture.root().join("aside");
    fs::create_dir(&aside).expect("it can be made");
    let is_segment = |name: &str| name.len() == 24;
    let names = fs::read_dir(&pg_wal).expect("it can be listed").flatten();
    let names = names.filter_map(|entry| entry.file_name().into_string().ok());
    let names: Vec<_> = names.filter(|name| is_segment(name)).collect();
    assert!(!names.is_empty());
    for name in &names {
        must(&mut command("mv", [pg_wal.join(name), aside.join(name)]));
    }
    let refused = fixture.lockstep().expect(exit::REFUSED, &["backup"]);
    for word in
        ["isn't whole", &names.iter().min().expect("one")[..], "check that all of pg_wal is there"]
    {
        assert!(refused.stderr.contains(word), "no {word:?}: {}", refused.describe());
    }
    assert_clean(&fixture);
    assert_eq!(fixture.snapshots(), [""; 0], "a set that can't be restored");
    for name in &names {
        must(&mut command("mv", [aside.join(name), pg_wal.join(name)]));
    }
    assert_eq!(fixture.lockstep().backup("auto").strategy, "cold");
}

/// After a boot at which a dataset couldn't be mounted, PostgreSQL continues, and the folder at its mount point is
/// empty. Here that folder is on a dataset too, as with inherited mountpoints.
#[test]
fn a_tablespace_whose_dataset_is_not_mounted_is_refused() {
    let fixture = Fixture::new(one_dataset());
    configure_retention(&fixture);
    let lockstep = fixture.lockstep();
    let place = fixture.mnt().join("all/late");
    let dataset = fixture.pools[0].dataset("late", &place, &[]);
    give_to_postgres(&place);
    fixture.cluster.execute(&[
        &format!("CREATE TABLESPACE late LOCATION '{}'", place.display()),
        "CREATE TABLE there TABLESPACE late AS SELECT 1 AS n",
    ]);
    let sets: Vec<_> = (0..2).map(|_| lockstep.backup("label").id).collect();
    fixture.cluster.stop(Stop::Fast);
    patiently("zfs", &["unmount", &dataset], || ()).expect("it is idle");
    fixture.cluster.start();
    assert!(fs::read_dir(&place).expect("a folder is below").next().is_none());

    let said = |words: &[&str]| {
        for command in ["plan", "backup"] {
            let refused = lockstep.expect(exit::REFUSED, &[command]);
            for word in words {
                assert!(refused.stderr.contains(word), "no {word:?}: {}", refused.describe());
            }
        }
        let checked = lockstep.expect(exit::PROBLEMS, &["check"]);
        assert!(checked.stdout.contains(words[0]), "{}", checked.describe());
        lockstep.run(&["prune"]);
        assert!(sets.iter().all(|set| lockstep.sets().contains(set)), "{sets:?} were pruned");
    };
    let not_mounted =
        [&*format!("dataset \"{dataset}\""), "should be mounted, but isn't", "tablespace late"];
    said(&[&not_mounted[..], &["hint: ", "zfs mount"]].concat());
    // A folder from the time before the dataset looks right.
    let version = fs::read_dir(fixture.tablespace("ts1")).expect("a tablespace").flatten().next();
    let version = version.expect("it has a folder").file_name();
    fs::create_dir(place.join(&version)).expect("a folder can be made");
    said(&not_mounted);
    // If no dataset has that mount point (its pool may not be imported), the folder itself is checked.
    fs::remove_dir(place.join(&version)).expect("it is empty");
    zfs(&["set", "mountpoint=none", &dataset]);
    let version = version.to_str().expect("UTF-8");
    said(&[&format!("has no folder \"{version}\""), "tablespace late", "hint: ", "zpool import"]);

    fixture.cluster.stop(Stop::Fast);
    fs::remove_dir(&place).expect("it is empty");
    zfs(&["set", &format!("mountpoint={}", place.display()), &dataset]);
    let _ = try_zfs(&["mount", &dataset]);
    fixture.cluster.start();
    lockstep.expect(exit::DONE, &["backup"]);
    assert_eq!(fixture.cluster.value("postgres", "SELECT n FROM there"), "1");
}

/// Keeps two sets on this host.
fn configure_retention(fixture: &Fixture) {
    let text = fixture.configuration("label", true);
    let text = format!("{text}\n[clusters.main.retention]\nlocal = {{ last = 2 }}\n");
    fs::write(fixture.config(), text).expect("the configuration can be written");
}
