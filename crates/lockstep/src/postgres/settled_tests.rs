use std::fs;
use std::time::Duration;

use super::*;
use crate::plan::layout::tests::{layout, tablespace};

/// A data directory with the files that are looked at, of which pg_control is the newest.
fn stopped() -> tempfile::TempDir {
    let scratch = tempfile::tempdir().unwrap();
    let data = scratch.path();
    let of_databases = ["base/1/pg_filenode.map", "base/5/pg_filenode.map", "base/5/1247"];
    let of_pages = FOLDERS.map(|folder| format!("{folder}/0000"));
    let names = of_databases.into_iter().chain(FILES).chain(of_pages.iter().map(String::as_str));
    for name in names.chain([PG_CONTROL]) {
        let path = data.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, name).unwrap();
    }
    written(&data.join(PG_CONTROL), 5);
    scratch
}

/// Sets when a file was written, in seconds from now.
fn written(path: &Path, seconds: u64) {
    let at = SystemTime::now() + Duration::from_secs(seconds);
    fs::File::options().write(true).open(path).unwrap().set_modified(at).unwrap();
}

#[test]
fn what_was_written_since_a_cluster_was_shut_down_is_found() {
    let scratch = stopped();
    let data = scratch.path();
    assert_eq!(changed(data).unwrap(), None);
    // A relation's file says nothing, and what a failed CREATE DATABASE leaves may be empty.
    written(&data.join("base/5/1247"), 9);
    fs::write(data.join("base/1/pg_filenode.map"), "").unwrap();
    assert_eq!(changed(data).unwrap(), None);
    for name in ["pg_xact/0000", "pg_multixact/members/0000", "base/5/pg_filenode.map"] {
        let path = data.join(name);
        written(&path, 9);
        let (found, how) = changed(data).unwrap().unwrap();
        assert!(found == path && how.contains("after pg_control"), "{found:?} {how}");
        written(&path, 0);
    }
    for name in ["pg_multixact/offsets/0000", "global/pg_filenode.map"] {
        let path = data.join(name);
        fs::write(&path, "").unwrap();
        assert_eq!(changed(data).unwrap(), Some((path.clone(), "is empty")));
        fs::write(&path, "x").unwrap();
    }
    fs::remove_dir_all(data.join("pg_logical")).unwrap();
    assert_eq!(changed(data).unwrap(), None, "max_replication_slots = 0 leaves no such file");
}

#[test]
fn a_base_backup_and_what_pg_upgrade_leaves_are_found() {
    let scratch = tempfile::tempdir().unwrap();
    let data = scratch.path();
    assert_eq!((of_base_backup(data).unwrap(), of_pg_upgrade(data)), (None, None));
    for name in OF_BASE_BACKUP {
        let path = data.join(name);
        fs::write(&path, "").unwrap();
        // A status that a copy brought along: the process with this number is no server that runs here.
        let status = format!("{}\n/d\n1\n5432\n/s\n*\n1 2\nready   \n", std::process::id());
        fs::write(data.join("postmaster.pid"), status).unwrap();
        assert_eq!(of_base_backup(data).unwrap(), Some(path.clone()));
        fs::remove_file(&path).unwrap();
        fs::remove_file(data.join("postmaster.pid")).unwrap();
    }
    let folder = data.join("pg_upgrade_output.d");
    fs::create_dir(&folder).unwrap();
    assert_eq!(of_pg_upgrade(data), Some(folder.clone()), "no server has run there");
    let options = data.join("postmaster.opts");
    fs::write(&options, "/bin/postgres \"-D\" \"/d\" \"-p\" \"50432\" \"-b\"\n").unwrap();
    assert_eq!(of_pg_upgrade(data), Some(folder));
    fs::write(&options, "/bin/postgres \"-D\" \"/d-b\"\n").unwrap();
    assert_eq!(of_pg_upgrade(data), None, "it was started since");
}

#[test]
fn a_file_is_the_server_s_or_somebody_else_s() {
    let layout = layout(&[(PartKind::Data, "t"), (PartKind::Wal, "t"), (tablespace(1), "u")]);
    let is_one = |path: &str| layout.parts.iter().any(|part| is_of_server(part, Path::new(path)));
    for path in [
        "/t/data/base/5/1247",
        "/t/data/pg_xact/0000",
        "/t/wal/000000010000000000000001",
        "/u/tablespace-1/PG_15_202209061/5/1247",
    ] {
        assert!(is_one(path), "{path}");
    }
    for path in [
        "/t/data/.postgresql.conf.swp",
        "/t/data/pg_hba.conf",
        "/t/data/log/server.log",
        "/t/data/pg_log/server.log",
        "/t/data",
        "/t/database/base/5/1247",
        "/dev/null",
    ] {
        assert!(!is_one(path), "{path}");
    }
}

#[test]
fn who_writes_and_who_was_given_a_folder_is_seen_in_proc() {
    assert!(for_writing("pos:\t0\nflags:\t0100002\nmnt_id:\t30\n"));
    assert!(for_writing("flags:\t0100001\n"));
    assert!(!for_writing("pos:\t0\nflags:\t0100000\n") && !for_writing("pos:\t0\n"));
    let scratch = tempfile::tempdir().unwrap();
    let mut layout = layout(&[(PartKind::Wal, "t")]);
    layout.parts[0].real_path = fs::canonicalize(scratch.path()).unwrap();
    let path = layout.parts[0].real_path.join("000000010000000000000001");
    fs::write(&path, "x").unwrap();
    let own = std::process::id();
    let read = fs::File::open(&path).unwrap();
    assert_eq!(writes(own, &layout.parts), None);
    let write = fs::File::options().append(true).open(&path).unwrap();
    assert_eq!(writes(own, &layout.parts), Some(path));
    drop((read, write));
    let here = std::env::current_dir().unwrap();
    assert!(works_in(own, &here) && !works_in(own, scratch.path()) && !is_given(own, &here));
    assert!(!is_given(own, scratch.path()));
}
