//! Parts of a set: one database or one tablespace, and holes in place of the others.

use super::{FILES, Prepared, prepare, text};
use crate::support::cluster::Stop;
use crate::support::command::{command, must};
use crate::support::faults::assert_said;
use crate::support::layout::{one_pool, two_pools_four_datasets};
use crate::support::lockstep::{LIMIT, Set, Steps, exit, json_of};
use crate::support::trees::usage;
use serde_json::json;
use std::fs;

#[test]
fn one_database_comes_back_and_the_others_are_holes() {
    let prepared = prepare(two_pools_four_datasets());
    let cluster = &prepared.fixture.cluster;
    cluster.execute(&[
        "CREATE DATABASE wanted",
        "CREATE DATABASE other TABLESPACE ts1",
        "CREATE DATABASE renamed",
        "ALTER DATABASE renamed RENAME TO \"by another name\"",
        "CREATE DATABASE dropped",
        "CHECKPOINT",
        "DROP DATABASE dropped",
    ]);
    for (database, tablespace) in [("wanted", "ts1"), ("other", "ts2"), ("wanted", "ts2")] {
        let mut client = cluster.connect(database);
        client
            .batch_execute(&format!(
                "CREATE TABLE in_{tablespace} TABLESPACE {tablespace} AS SELECT n, repeat('x', 500) AS t FROM generate_series(1, 20000) n"
            ))
            .expect("a table can be made");
    }
    let oid = |name: &str| {
        cluster.value("postgres", &format!("SELECT oid FROM pg_database WHERE datname = '{name}'"))
    };
    let (wanted, other) = (oid("wanted"), oid("other"));
    // As `pg_upgrade --link` to PostgreSQL 14 leaves it: another name in the former version's folder, where the
    // database had another OID.
    let file = cluster.data.join(cluster.value("wanted", "SELECT pg_relation_filepath('in_ts1')"));
    let space = file.ancestors().nth(3).expect("the tablespace");
    let former = space.join("PG_13_202007201/99999");
    fs::create_dir_all(&former).expect("it can be made");
    fs::hard_link(&file, former.join("16385")).expect("it can be linked");
    let set = prepared.lockstep.backup("label");

    let to = prepared.fixture.target("only");
    let restore: Vec<&str> =
        ["restore", &set.id, "--to", text(&to)].into_iter().chain(FILES).collect();
    let unknown: Vec<&str> =
        restore.iter().copied().chain(["--only-database", "no such"]).collect();
    let refused = prepared.lockstep.expect(exit::USAGE, &unknown);
    for words in ["has no database \"no such\"", "by another name", "wanted", "template1"] {
        assert!(refused.stderr.contains(words), "{words}: {}", refused.describe());
    }
    assert!(!to.exists(), "nothing is made for a name that isn't there");

    // As files, and as datasets.
    let parent = format!("{}/only", prepared.fixture.pools[0].name);
    let forms: [Vec<&str>; 2] =
        [FILES.to_vec(), vec!["--from", "repository", "--as", "zfs", "--dataset", &parent]];
    for form in forms {
        let more: Vec<&str> = form.iter().copied().chain(["--only-database", "wanted"]).collect();
        let restored = prepared.lockstep.restore_and_start(&set.id, &to, &more);
        let server = restored.server();
        let rest = &restored.json["not_restored"];
        // pg_database still has the row with the old name, and that of the dropped one, which has no files.
        assert_eq!(rest["databases"], json!(["by another name", "other", "renamed"]), "{rest}");
        assert_eq!(server.value("wanted", "SELECT count(*) FROM in_ts1"), "20000");
        assert_eq!(server.value("wanted", "SELECT sum(n) FROM in_ts2"), "200010000");
        let options =
            ["--database=wanted", "--database=postgres", "--install-missing", "--heapallindexed"];
        must(&mut server.tool("pg_amcheck", options));
        must(&mut server.tool("pg_dump", ["-f", "/dev/null", "wanted"]));
        let error = server.try_connect("other").err().expect("its files are holes");
        let words = crate::support::cluster::full(&error);
        assert!(words.contains("pg_filenode.map"), "{words}");
        let spaces: Vec<_> = ["data/base", "volumes/data/pg/base"]
            .iter()
            .map(|path| to.join(path))
            .chain(
                server
                    .column("postgres", "SELECT pg_tablespace_location(oid) FROM pg_tablespace")
                    .into_iter()
                    .filter(|path| !path.is_empty())
                    .flat_map(|path| {
                        fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path())
                    }),
            )
            .collect();
        let (mut seen, mut kept) = (0, 0);
        for space in spaces {
            let (blocks, sizes) = usage(&space.join(&other));
            // Pages that are in the set's WAL are written when it is replayed.
            assert!(blocks <= sizes / 8, "{}: {blocks} bytes on disk of {sizes}", space.display());
            seen += sizes;
            kept += usage(&space.join(&wanted)).0;
        }
        assert!(seen > 15 << 20, "the other database has its size: {seen}");
        assert!(kept > 15 << 20 || form.contains(&"zfs"), "the wanted one has its content: {kept}");
        server.execute(&["DROP DATABASE other"]);
        server.stop(Stop::Fast);
        if form.contains(&"zfs") {
            let guids = must(&mut command("zfs", ["get", "-Hpr", "-o", "value", "guid", &parent]));
            for volume in &set.volumes {
                assert!(!guids.contains(&volume.guid), "what isn't the snapshot has its GUID");
            }
            crate::support::shipping::discard(&prepared.fixture, &to, &parent);
        } else {
            fs::remove_dir_all(&to).expect("it can be removed");
        }
    }

    // One tablespace: the data directory and it.
    let more: Vec<&str> = FILES.into_iter().chain(["--only-tablespace", "ts1"]).collect();
    let restored = prepared.lockstep.restore_and_start(&set.id, &to, &more);
    assert_eq!(restored.json["not_restored"], json!({"databases": [], "tablespaces": ["ts2"]}));
    let server = restored.server();
    assert_eq!(server.value("wanted", "SELECT count(*) FROM in_ts1"), "20000");
    // Pages of zeros are new pages without rows.
    assert_eq!(server.value("wanted", "SELECT count(*) FROM in_ts2"), "0");
    let size = server.value("wanted", "SELECT pg_relation_size('in_ts2') > 10 << 20");
    assert_eq!(size, "t", "all of its pages are there");
    server.stop(Stop::Fast);
}

/// Where the WAL has no full pages, the set's own or that from an archive, changes to holes are skipped.
#[test]
fn parts_of_a_set_do_without_whole_pages() {
    let layout = one_pool().archive().setting("full_page_writes", "off");
    let prepared = prepare(layout.setting("autovacuum", "off"));
    let Prepared { fixture, lockstep } = &prepared;
    let cluster = &fixture.cluster;
    cluster.execute(&["CREATE DATABASE wanted", "CREATE DATABASE other"]);
    for database in ["wanted", "other"] {
        let mut client = cluster.connect(database);
        client.batch_execute("CREATE TABLE t AS SELECT 1 AS n").expect("a table can be made");
    }
    let change = || {
        cluster.execute(&["CHECKPOINT"]);
        let mut client = cluster.connect("other");
        client.batch_execute("INSERT INTO t VALUES (2)").expect("a row goes onto the same page");
    };
    let label = lockstep.backup("label").id;
    change();
    let atomic = lockstep.backup("atomic").id;
    change();
    let segment = cluster.value("postgres", "SELECT pg_walfile_name(pg_switch_wal())");
    crate::support::command::wait_until(
        "the segment is archived",
        crate::support::lockstep::LIMIT,
        || fixture.archive.join(&segment).exists(),
    );
    cluster.stop(Stop::Fast);
    let cold = lockstep.backup("cold").id;
    cluster.start();

    let to = fixture.target("only");
    let only = ["--from", "repository", "--as", "files", "--only-database", "wanted"];
    let arguments = |set: &str, more: &[&str]| -> Vec<String> {
        let all = ["restore", set, "--to", text(&to)].into_iter().chain(only);
        all.chain(more.iter().copied()).map(str::to_owned).collect()
    };
    let archive = format!("cp {}/%f %p", fixture.archive.display());
    let from_archive: Vec<_> =
        only.iter().copied().chain(["--restore-command", &archive]).collect();
    for (set, more) in
        [(&label, &only[..]), (&atomic, &only), (&cold, &only), (&label, &from_archive)]
    {
        let restored = lockstep.restore_and_start(set, &to, more);
        assert_eq!(restored.server().value("wanted", "SELECT sum(n) FROM t"), "1");
        restored.server().stop(Stop::Fast);
        fs::remove_dir_all(&to).expect("it can be removed");
    }
    let log = "adds lines to the server's log";
    let first_start = "start it the first time with `pg_ctl -o '-c ignore_invalid_pages=on' start`";
    let own = arguments(&label, &["--dry-run"]);
    let own = lockstep.expect(exit::DONE, &own.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(!own.stderr.contains(log), "{}", own.describe());
    assert_said(&own, &[first_start]);
    let more = arguments(&label, &["--dry-run", "--start", "--restore-command", &archive]);
    let more = lockstep.expect(exit::DONE, &more.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(!more.stderr.contains(first_start), "{}", more.describe());
    assert_said(&more, &[log]);
}

/// A prepared transaction that nobody could end any more, and tablespaces that no set knows by that name.
#[test]
fn what_belongs_to_no_part_of_a_set() {
    for major in [15, 17] {
        let layout = one_pool().major(major).setting("allow_in_place_tablespaces", "on");
        let prepared = prepare(layout.setting("max_prepared_transactions", "5"));
        let Prepared { fixture, lockstep } = &prepared;
        let cluster = &fixture.cluster;
        cluster.execute(&[
            "CREATE TABLESPACE inside LOCATION ''",
            "CREATE TABLE in_place TABLESPACE inside AS SELECT n FROM generate_series(1, 1000) n",
            "CREATE TABLE in_ts1 TABLESPACE ts1 AS SELECT n FROM generate_series(1, 1000) n",
            "CREATE TABLE in_ts2 TABLESPACE ts2 AS SELECT n FROM generate_series(1, 1000) n",
            "CREATE DATABASE wanted",
            "CREATE DATABASE other",
        ]);
        for database in ["wanted", "other"] {
            let begun = format!(
                "CREATE TABLE t AS SELECT 1 AS n; BEGIN; INSERT INTO t VALUES (2); PREPARE TRANSACTION 'of {database}'"
            );
            // Not in one transaction.
            let mut client = cluster.connect(database);
            for statement in begun.split("; ") {
                client.batch_execute(statement).expect("it can be prepared");
            }
        }
        let set = lockstep.backup("label").id;
        let to = fixture.target("only");

        let more: Vec<&str> = FILES.into_iter().chain(["--only-database", "wanted"]).collect();
        let restored = lockstep.restore_and_start(&set, &to, &more);
        let server = restored.server();
        let left = server.column("postgres", "SELECT gid FROM pg_prepared_xacts");
        assert_eq!(left, ["of wanted"], "{major}");
        server.execute(&["DROP DATABASE other"]);
        let mut client = server.connect("wanted");
        client.batch_execute("COMMIT PREPARED 'of wanted'").expect("it is there");
        assert_eq!(server.value("wanted", "SELECT sum(n) FROM t"), "3");
        drop(client);
        server.stop(Stop::Fast);
        fs::remove_dir_all(&to).expect("it can be removed");

        let more: Vec<&str> = FILES.into_iter().chain(["--only-tablespace", "ts1"]).collect();
        let restored = lockstep.restore_and_start(&set, &to, &more);
        let server = restored.server();
        for (table, rows) in [("in_place", "1000"), ("in_ts1", "1000"), ("in_ts2", "0")] {
            let count = format!("SELECT count(*) FROM {table}");
            assert_eq!(server.value("postgres", &count), rows, "{major} {table}");
        }
        server.stop(Stop::Fast);
    }
}

/// Without data checksums and wal_log_hints, VACUUM marks a page all-visible without logging it, even with
/// full_page_writes.
#[test]
fn a_vacuum_of_what_is_not_restored() {
    for major in [14, 17] {
        let layout = two_pools_four_datasets().major(major).setting("autovacuum", "off");
        let prepared = prepare(layout);
        let Prepared { fixture, lockstep } = &prepared;
        let cluster = &fixture.cluster;
        cluster.stop(Stop::Fast);
        must(&mut cluster.tool("pg_checksums", ["--disable", "-D", text(&cluster.data)]));
        cluster.start();
        assert_eq!(cluster.value("postgres", "SHOW data_checksums"), "off");
        assert_eq!(cluster.value("postgres", "SHOW full_page_writes"), "on");
        cluster.execute(&["CREATE DATABASE wanted", "CREATE DATABASE other"]);
        for database in ["wanted", "other"] {
            let mut client = cluster.connect(database);
            for n in 0..8 {
                for space in ["ts1", "ts2"] {
                    let table = format!(
                        "CREATE TABLE {space}_{n} TABLESPACE {space} AS SELECT n FROM generate_series(1, 1000) n"
                    );
                    client.batch_execute(&table).expect("a table can be made");
                }
            }
        }
        // Autovacuum runs meanwhile: in the set's own WAL, before the end of the backup.
        let steps = Steps::new(fixture.root().join("steps"));
        steps.hold("backup.layout");
        let mut running = lockstep.clone().with_steps(&steps).spawn(&["--json", "backup"]);
        steps.wait_reached("backup.layout", &mut running);
        for database in ["wanted", "other"] {
            cluster.connect(database).batch_execute("VACUUM").expect("it can be vacuumed");
        }
        steps.release("backup.layout");
        let outcome = running.wait(LIMIT);
        assert!(outcome.ok(), "{}", outcome.describe());
        let set = json_of(&outcome)["set"].as_str().expect("an id").to_owned();

        let to = fixture.target("only");
        for (what, mark, rest) in
            [("--only-database", "wanted", "ts2"), ("--only-tablespace", "ts1", "ts1")]
        {
            let more: Vec<&str> = FILES.into_iter().chain([what, mark]).collect();
            let restored = lockstep.restore_and_start(&set, &to, &more);
            let server = restored.server();
            let ignores = server.value("postgres", "SHOW ignore_invalid_pages");
            assert_eq!(ignores, "off", "{major}: it is for the first start alone");
            for table in ["ts1_0", &format!("{rest}_7")] {
                let sum = format!("SELECT sum(n) FROM {table}");
                assert_eq!(server.value("wanted", &sum), "500500", "{major} {what} {table}");
            }
            let options = ["--database=wanted", "--install-missing", "--heapallindexed"];
            if what == "--only-database" {
                must(&mut server.tool("pg_amcheck", options));
            }
            server.stop(Stop::Fast);
            let log = fs::read_to_string(to.join("log/server.log")).expect("its log");
            assert!(log.contains("is uninitialized"), "{major} {what}: the test tests nothing");
            fs::remove_dir_all(&to).expect("it can be removed");
        }
    }
}

/// A database that was created in a tablespace has everything there, even what it needs to be connected to.
#[test]
fn a_database_whose_own_tablespace_is_not_restored_is_named() {
    let prepared = prepare(two_pools_four_datasets());
    let cluster = &prepared.fixture.cluster;
    cluster.execute(&["CREATE DATABASE within TABLESPACE ts2", "CREATE DATABASE partly"]);
    for (database, tablespace) in [("within", "ts1"), ("partly", "ts2")] {
        let table = format!("CREATE TABLE t TABLESPACE {tablespace} AS SELECT 1 AS n");
        cluster.connect(database).batch_execute(&table).expect("a table can be made");
    }
    // While the backup is under way, one is copied file by file: recovery copies it again.
    let steps = Steps::new(prepared.fixture.root().join("steps"));
    steps.hold("backup.started");
    let backup = ["--json", "backup", "--strategy", "label"];
    let mut running = prepared.lockstep.clone().with_steps(&steps).spawn(&backup);
    steps.wait_reached("backup.started", &mut running);
    cluster.execute(&["CREATE DATABASE copy TEMPLATE partly STRATEGY file_copy"]);
    steps.release("backup.started");
    let set = Set::of(&json_of(&running.wait(LIMIT))).id;
    let to = prepared.fixture.target("only");
    let more: Vec<&str> = FILES.into_iter().chain(["--only-database", "copy"]).collect();
    let restored = prepared.lockstep.restore_and_start(&set, &to, &more);
    assert_eq!(restored.json["not_restored"]["databases"], json!(["within"]));
    assert_eq!(restored.server().value("copy", "SELECT count(*) FROM t"), "1");
    restored.server().stop(Stop::Fast);
    fs::remove_dir_all(&to).expect("it can be removed");

    let more: Vec<&str> = FILES.into_iter().chain(["--only-tablespace", "ts1"]).collect();
    let restored = prepared.lockstep.restore_and_start(&set, &to, &more);
    let not_restored = json!({"databases": ["within"], "tablespaces": ["ts2"]});
    assert_eq!(restored.json["not_restored"], not_restored);
    let server = restored.server();
    assert_eq!(server.value("partly", "SELECT count(*) FROM t"), "0");
    server.execute(&["DROP DATABASE within"]);
    server.stop(Stop::Fast);
    fs::remove_dir_all(&to).expect("it can be removed");

    let restore = [&["restore", &set, "--to", text(&to)], &more[..]].concat();
    let both = [&restore[..], &["--only-database", "partly"]].concat();
    let outcome = prepared.lockstep.expect(exit::DONE, &both);
    for said in ["not restored: \"copy\", \"within\": DROP DATABASE", "tablespace \"ts2\""] {
        assert!(outcome.stdout.contains(said), "{said}: {}", outcome.describe());
    }
}

/// After the set a new copy of a database takes the old one's place. The set knows it by another name alone.
#[test]
fn a_database_that_got_the_name_later_is_told() {
    let prepared = prepare(one_pool().archive());
    let Prepared { fixture, lockstep } = &prepared;
    let cluster = &fixture.cluster;
    cluster.execute(&["CREATE DATABASE shop", "CREATE DATABASE shop_new"]);
    let mut client = cluster.connect("shop_new");
    client.batch_execute("CREATE TABLE t AS SELECT 1 AS n").expect("a table can be made");
    drop(client);
    let set = lockstep.backup("label").id;
    cluster.execute(&["DROP DATABASE shop", "ALTER DATABASE shop_new RENAME TO shop"]);
    let segment = cluster.value("postgres", "SELECT pg_walfile_name(pg_switch_wal())");
    crate::support::command::wait_until("the segment is archived", LIMIT, || {
        fixture.archive.join(&segment).exists()
    });

    let to = fixture.target("only");
    let archive = format!("cp {}/%f %p", fixture.archive.display());
    let restore = |more: &[&str], code| {
        let port = crate::support::fixture::free_port().to_string();
        let start = ["--start", "--port", &port, "--restore-command", &archive];
        let wanted = ["--json", "restore", &set, "--to", text(&to), "--only-database", "shop"];
        let outcome = lockstep.expect(code, &[&wanted[..], &FILES[..], &start, more].concat());
        let restored = lockstep.restored(&json_of(&outcome));
        (outcome, restored)
    };
    let (outcome, restored) = restore(&[], exit::PROBLEMS);
    assert_said(
        &outcome,
        &[
            "problem: database \"shop\" (before: \"shop_new\") isn't restored",
            "hint: restore again",
        ],
    );
    assert!(restored.server().try_connect("shop").is_err(), "the test tests nothing");
    restored.server().stop(Stop::Fast);
    fs::remove_dir_all(&to).expect("it can be removed");

    let (_, restored) = restore(&["--only-database", "shop_new"], exit::DONE);
    assert_eq!(restored.server().value("shop", "SELECT n FROM t"), "1");
    restored.server().stop(Stop::Fast);
}
