//! Lists and prints files of a set without a restore.

use super::{index_of, prepare};
use crate::support::cluster::Stop;
use crate::support::command::command;
use crate::support::faults::{assert_nothing_remains, assert_said};
use crate::support::layout::two_pools_four_datasets;
use crate::support::lockstep::exit;
use crate::support::shipping::tree;
use serde_json::Value;
use std::fs;
use std::os::unix::fs::FileExt;

#[test]
fn files_are_listed_and_read_without_a_restore() {
    let prepared = prepare(two_pools_four_datasets());
    let fixture = &prepared.fixture;
    fs::write(fixture.cluster.data.join("odd\nname"), b"odd").expect("it can be written");
    let holes = fs::File::create(fixture.cluster.data.join("holes")).expect("it can be made");
    holes.write_all_at(b"middle", 1 << 20).expect("it can be written");
    holes.set_len(3 << 20).expect("it can be extended");
    fixture
        .cluster
        .execute(&["CREATE UNLOGGED TABLE unlogged AS SELECT generate_series(1, 1000) n"]);
    let unlogged = fixture.cluster.value("postgres", "SELECT pg_relation_filepath('unlogged')");
    let set = prepared.lockstep.backup("label");
    let lockstep = &prepared.lockstep;
    // This host and the repository show the same, except for what isn't stored there.
    let both = |arguments: &[&str]| -> Value {
        let of = |from| lockstep.json(&[arguments, &["--from", from]].concat());
        let (here, stored) = (of("snapshots"), of("repository"));
        let mut as_here = stored.clone();
        let entries = as_here["entries"].as_array_mut().expect("entries").iter_mut();
        for (entry, there) in entries.zip(here["entries"].as_array().expect("entries")) {
            entry["stored"] = true.into();
            // A file system mounted by zfs-fuse only has whole seconds.
            let time = |entry: &Value| entry["mtime"].as_str().map(str::to_owned);
            if let (Some(known), Some(whole)) = (time(entry), time(there))
                && whole.ends_with(".000000000Z")
            {
                entry["mtime"] = format!("{}.000000000Z", known.split('.').next().unwrap()).into();
            }
        }
        assert_eq!(here, as_here, "{arguments:?}");
        // If nothing else is said, it is this host's set.
        assert_eq!(lockstep.json(arguments), here, "{arguments:?}");
        stored
    };
    let names = |arguments: &[&str]| -> Vec<String> {
        let json = both(arguments);
        let entries = json["entries"].as_array().expect("entries").iter();
        entries.map(|entry| entry["path"].as_str().expect("a path").to_owned()).collect()
    };
    assert_eq!(names(&["ls", &set.id]), ["data", "files", "tablespaces", "wal"]);
    assert!(names(&["ls", "latest", "files"]).contains(&"backup_label".to_owned()));
    let segments = names(&["ls", &set.id, "wal"]);
    assert!(!segments.is_empty() && segments[0].len() == 24, "{segments:?}");
    assert_eq!(names(&["ls", &set.id, "tablespaces"]).len(), 2);

    // All of the data directory, against the snapshot.
    let at = index_of(&set, "data");
    let theirs = tree(fixture, &set.volumes[at].snapshot);
    let json = both(&["ls", "-R", &set.id, "data"]);
    let ends = |from| {
        lockstep.json(&["ls", "-R", "latest", "--from", from])["entries"].as_array().map(Vec::len)
    };
    assert_eq!(ends("snapshots"), ends("repository"));
    let mut count = 0;
    for entry in json["entries"].as_array().expect("entries") {
        let path =
            entry["path"].as_str().expect("a path").replace('\\', "\\\\").replace('\n', "\\n");
        let line = theirs
            .get(&format!("pg/{path}"))
            .unwrap_or_else(|| panic!("no {path:?} in the snapshot"));
        let of: Vec<&str> = line.split('\t').collect();
        let number = |name: &str| entry[name].as_u64().map_or("-".to_owned(), |n| n.to_string());
        let found = [
            entry["type"].as_str().expect("a type"),
            entry["mode"].as_str().expect("a mode"),
            &number("uid"),
            &number("gid"),
            &number("size"),
        ];
        assert_eq!(found, of[..5], "{path}");
        let time: jiff::Timestamp =
            entry["mtime"].as_str().expect("a time").parse().expect("a time");
        assert_eq!(time.as_nanosecond().to_string(), of[5], "{path}");
        count += 1;
    }
    assert_eq!(count, theirs.keys().filter(|path| path.starts_with("pg/")).count());
    let text_lines = lockstep.expect(exit::DONE, &["ls", &set.id, "data/"]);
    let version = text_lines.stdout.lines().find(|line| line.ends_with(" PG_VERSION"));
    assert!(version.is_some_and(|line| line.starts_with("-rw-------")), "{}", text_lines.stdout);
    assert!(text_lines.stdout.contains(" odd\\nname\n"), "{}", text_lines.stdout);
    let wal = text_lines.stdout.lines().find(|line| line.contains(" pg_wal -> /"));
    assert!(wal.is_some_and(|line| line.starts_with('l')), "{}", text_lines.stdout);

    // Contents: of the cluster's files, of a file with holes, of the set's own files.
    let cat_from = |from: &str, what: &str| {
        let mut program = command(env!("CARGO_BIN_EXE_lockstep"), ["--config"]);
        let config = fixture.root().join("shipping.toml");
        program.arg(config).args(["cat", "--from", from]).arg(format!("{}:{what}", set.id));
        program.output().expect("the program can be run")
    };
    let cat = |what: &str| {
        let (here, stored) = (cat_from("snapshots", what), cat_from("repository", what));
        assert!(here.stdout == stored.stdout, "{what} differs");
        assert_eq!(here.status.code(), stored.status.code(), "{what}");
        stored
    };
    assert_eq!(cat("data/PG_VERSION").stdout, b"15\n");
    let holes = cat("data/holes").stdout;
    assert_eq!(holes, fs::read(fixture.cluster.data.join("holes")).expect("it is there"));
    assert_eq!(cat("data/odd\nname").stdout, b"odd");
    let label = cat("files/backup_label").stdout;
    assert!(label.starts_with(b"START WAL LOCATION"), "{}", String::from_utf8_lossy(&label));
    let segment = cat(&format!("wal/{}", segments[0])).stdout;
    assert_eq!(segment.len(), 16 << 20, "a segment");
    let ts1 =
        fixture.cluster.value("postgres", "SELECT oid FROM pg_tablespace WHERE spcname = 'ts1'");
    let file = fixture.cluster.value("postgres", "SELECT pg_relation_filepath('pgbench_accounts')");
    let inside = file.split_once(&format!("{ts1}/")).expect("it is in ts1").1;
    let accounts = cat(&format!("tablespaces/{ts1}/{inside}")).stdout;
    fixture.cluster.stop(Stop::Fast);
    let now = fs::read(fixture.tablespace("ts1").join(inside)).expect("it is there");
    assert_eq!(accounts.len(), now.len(), "{inside}");

    // Files whose content isn't stored, that don't exist, or that aren't files.
    let here = cat_from("snapshots", &format!("data/{unlogged}"));
    assert_eq!((here.status.code(), here.stdout.len() % 8192), (Some(exit::DONE), 0));
    assert!(!here.stdout.is_empty(), "{unlogged}");
    let left_out = cat_from("repository", &format!("data/{unlogged}"));
    assert_eq!((left_out.status.code(), left_out.stdout.len()), (Some(exit::PROBLEMS), 0));
    assert!(String::from_utf8_lossy(&left_out.stderr).contains("isn't stored"));
    for wrong in ["data/nothing", "data/base", "data/pg_wal", "data/../x", "nowhere", ""] {
        assert_eq!(cat(wrong).status.code(), Some(exit::USAGE), "{wrong}");
    }
    // A reader that ends early leaves no clone, and is no error.
    let mut program = command("sh", ["-c", "\"$0\" --config \"$1\" ls -R \"$2\" | head -n 1"]);
    let config = fixture.root().join("shipping.toml");
    program.arg(env!("CARGO_BIN_EXE_lockstep")).arg(config).arg(&set.id);
    let ended = program.output().expect("the program can be run");
    assert_eq!(ended.stderr, b"", "{}", String::from_utf8_lossy(&ended.stderr));
    assert_nothing_remains(fixture, &[], "looking into snapshots");
    // Once the set is gone from this host, the repository's is used; also if only the beginning of its name is given.
    fixture.discard_set(&set.id);
    let here = lockstep.expect(exit::USAGE, &["ls", &set.id, "--from", "snapshots"]);
    assert!(here.stderr.contains(&set.id), "{}", here.stderr);
    assert_eq!(lockstep.json(&["ls", "-R", &set.id, "data"]), json);
    // A beginning that several sets share is refused, and an empty variable in a script means none.
    lockstep.backup("cold");
    let several = lockstep.expect(exit::USAGE, &["show", "2", "--from", "repository"]);
    assert_said(&several, &["several sets of repository", "write more of it", &set.id]);
    let nothing = lockstep.expect(exit::USAGE, &["show", "", "--from", "repository"]);
    assert_said(&nothing, &["has no set \"\""]);
}
