//! A cluster that ships to a repository: its configuration, and comparisons of the repository with the snapshots.

use super::command::{must, run};
use super::fixture::Fixture;
use super::lockstep::{Lockstep, Set, exit, toml_string};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// The repository's name in the configuration.
pub const NAME: &str = "offsite";

/// The program with a configuration whose cluster ships to a repository in a folder, which is made.
#[track_caller]
pub fn with_repository(fixture: &Fixture) -> Lockstep {
    with_options(fixture, "")
}

/// The same, with more lines in the repository's table.
#[track_caller]
pub fn with_options(fixture: &Fixture, options: &str) -> Lockstep {
    let url = format!("file://{}", folder(fixture).display());
    let table = format!("url = {}\n{options}", toml_string(Path::new(&url)));
    let lockstep = configured(fixture, &[(NAME, table)], "");
    lockstep.expect(exit::DONE, &["repo", "init"]);
    lockstep
}

/// The program with a configuration whose cluster ships to these repositories, given as names and lines of their
/// tables, and with more tables. Nothing is made.
#[track_caller]
pub fn configured(fixture: &Fixture, repositories: &[(&str, String)], more: &str) -> Lockstep {
    let mut text = fixture.configuration("auto", true);
    let names: Vec<_> = repositories.iter().map(|(name, _)| format!("\"{name}\"")).collect();
    text.push_str(&format!("repositories = [{}]\n", names.join(", ")));
    for (name, table) in repositories {
        text.push_str(&format!("\n[repositories.{name}]\n{table}\n"));
    }
    text.push_str(more);
    let path = fixture.root().join("shipping.toml");
    fs::write(&path, text).expect("the configuration can be written");
    Lockstep::new(&path, &fixture.cluster.bin)
}

/// The lines of a repository's table: a bucket of an S3 server on this port.
pub fn s3_table(root: &Path, port: u16, bucket: &str, more: &str) -> String {
    let secret = secret_file(root, "s3.secret", "hunter2");
    format!(
        "url = \"s3://{bucket}/lockstep\"\nendpoint = \"http://127.0.0.1:{port}\"\nallow_http = true\n\
         access_key_id = \"AKIATEST\"\nsecret_access_key_file = {secret}\n{more}"
    )
}

/// A file that only its owner may read; its path as TOML.
pub fn secret_file(root: &Path, name: &str, content: &str) -> String {
    let path = root.join(name);
    fs::write(&path, content).expect("a secret can be written");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("it is ours");
    toml_string(&path)
}

/// Where the repository is.
pub fn folder(fixture: &Fixture) -> PathBuf {
    fixture.root().join("repository")
}

/// Names and sizes of everything in the repository.
pub fn objects(fixture: &Fixture) -> BTreeMap<PathBuf, u64> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![folder(fixture)];
    while let Some(folder) = waiting.pop() {
        for entry in fs::read_dir(&folder).expect("the repository can be listed").flatten() {
            let metadata = entry.metadata().expect("an object can be looked at");
            if metadata.is_dir() {
                waiting.push(entry.path());
            } else {
                found.insert(entry.path(), metadata.len());
            }
        }
    }
    found
}

/// The packs alone.
pub fn packs(fixture: &Fixture) -> BTreeMap<PathBuf, u64> {
    let mut all = objects(fixture);
    all.retain(|path, _| path.parent().is_some_and(|folder| folder.ends_with("packs")));
    all
}

/// A snapshot's contents: the line of `stream tree` for each path, without the path.
#[track_caller]
pub fn tree(fixture: &Fixture, snapshot: &str) -> BTreeMap<String, String> {
    let file = fixture.root().join("tree.stream");
    let mut send = super::command::command("zfs", ["send", snapshot]);
    send.stdout(fs::File::create(&file).expect("a file can be made"));
    let status = send.status().expect("zfs can be run");
    assert!(status.success(), "zfs send {snapshot}: {status}");
    let path = file.to_str().expect("the harness' own paths are UTF-8");
    let listed = must(&mut super::command::command(
        env!("CARGO_BIN_EXE_lockstep"),
        ["stream", "tree", path],
    ));
    let lines = listed.lines().filter_map(|line| line.split_once('\t'));
    let tree = lines.map(|(path, rest)| (path.to_owned(), rest.to_owned())).collect();
    fs::remove_file(&file).expect("it can be removed");
    tree
}

/// Whether a file's content may be left out of a repository because PostgreSQL recreates it.
pub fn may_be_left_out(path: &str) -> bool {
    let folders = [
        "pg_wal/",
        "pg_replslot/",
        "pg_stat_tmp/",
        "pg_dynshmem/",
        "pg_notify/",
        "pg_serial/",
        "pg_snapshots/",
        "pg_subtrans/",
    ];
    let name = path.rsplit('/').next().unwrap_or(path);
    folders.iter().any(|folder| path.starts_with(folder) || path.contains(&format!("/{folder}")))
        || path.contains("pgsql_tmp")
        || name.starts_with("pg_internal.init")
        || ["postmaster.pid", "postmaster.opts"].contains(&name)
        || (name.starts_with('t') && name.contains('_'))
}

/// Fails unless each received dataset's snapshot has the contents of the set's snapshot.
#[track_caller]
pub fn assert_received(fixture: &Fixture, set: &Set, parent: &str) {
    assert_received_as(fixture, set, parent, &|snapshot| tree(fixture, snapshot));
}

/// The same if the set's snapshots may be gone: `theirs` has the contents of each.
#[track_caller]
pub fn assert_received_as(
    fixture: &Fixture,
    set: &Set,
    parent: &str,
    theirs: &dyn Fn(&str) -> BTreeMap<String, String>,
) {
    for volume in &set.volumes {
        if volume.parts == ["wal"] {
            continue;
        }
        let name = volume.snapshot.split_once('@').map_or("", |(_, name)| name);
        let received = format!("{parent}/{}@{name}", volume.parts[0]);
        let (theirs, ours) = (theirs(&volume.snapshot), tree(fixture, &received));
        let unlogged = |path: &String| {
            let stem = path.split_once('_').map_or(path.as_str(), |(stem, _)| stem);
            theirs.contains_key(&format!("{}_init", stem.split('.').next().unwrap_or(stem)))
        };
        for (path, line) in &theirs {
            let found = ours.get(path).map(String::as_str).unwrap_or("nothing");
            let without_hash = |line: &str| line.rsplit_once('\t').map(|(rest, _)| rest.to_owned());
            let same = if may_be_left_out(path) || unlogged(path) {
                without_hash(found) == without_hash(line)
            } else {
                found == line
            };
            assert!(same, "{received}: {path}: {found:?}, the snapshot has {line:?}");
        }
        assert_eq!(theirs.len(), ours.len(), "{received} has more paths than the snapshot");
        let guid = must(&mut super::command::command(
            "zfs",
            ["get", "-Hp", "-o", "value", "guid", &received],
        ));
        assert_eq!(guid.trim(), volume.guid, "the GUID of {received}");
    }
}

/// Destroys what was received below `parent`.
#[track_caller]
pub fn discard(fixture: &Fixture, directory: &Path, parent: &str) {
    let server =
        super::cluster::Cluster { data: directory.join("data"), ..fixture.cluster.clone() };
    if server.is_running() {
        server.stop(super::cluster::Stop::Immediate);
    }
    super::command::wait_until(
        "the datasets can be destroyed",
        std::time::Duration::from_secs(60),
        || run(&mut super::command::command("zfs", ["destroy", "-r", parent])).ok(),
    );
    let _ = fs::remove_dir_all(directory);
}

/// The other host: the cluster with the same name, its data directory elsewhere, and its own state folder.
pub fn other_host(fixture: &Fixture, name: &str, data: &Path) -> Lockstep {
    let text = fs::read_to_string(fixture.root().join("shipping.toml")).expect("the configuration");
    let state = fixture.root().join(format!("state-{name}"));
    let other = text
        .replace(&toml_string(&fixture.state), &toml_string(&state))
        .replace(&toml_string(&fixture.cluster.data), &toml_string(data));
    assert_ne!(text, other);
    let path = fixture.root().join(format!("{name}.toml"));
    fs::write(&path, other).expect("it can be written");
    Lockstep::new(&path, &fixture.cluster.bin)
}
