//! Repositories as older versions of Lockstep wrote them, in testdata/repositories: each one can still be opened,
//! checked, looked into and restored. A writer and a reader that change together would pass every other test.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::support::cluster::{Cluster, Stop};
use crate::support::command::{command, must};
use crate::support::fixture::Fixture;
use crate::support::layout::one_dataset;
use crate::support::lockstep::{Lockstep, exit, toml_string};
use crate::support::shipping::{configured, may_be_left_out, tree};
use crate::support::trees::tree_of;
use lockstep::config::Config;
use lockstep::context::Context;
use lockstep::repository::unfold::unfold;
use sendstream::fold::StreamSink;
use serde_json::json;
use strata::manifest::Manifest;

/// Every folder of testdata/repositories; each has a test of its name below.
const FROZEN: [&str; 2] = ["v1/plain", "v1/sealed"];

#[test]
fn every_frozen_repository_is_opened() {
    let mut found = BTreeSet::new();
    for version in fs::read_dir(testdata()).expect("it is there").flatten() {
        let entries = fs::read_dir(version.path()).expect("a folder for each version").flatten();
        let folders =
            entries.filter(|entry| entry.path().is_dir() && entry.file_name() != "expected");
        found.extend(folders.map(|folder| {
            let path = folder.path();
            let name = path.strip_prefix(testdata()).expect("it is below").to_owned();
            name.to_str().expect("UTF-8").to_owned()
        }));
    }
    assert_eq!(found, FROZEN.map(str::to_owned).into(), "no test opens what isn't named here");
}

#[test]
fn v1_plain() {
    check(FROZEN[0]);
}

#[test]
fn v1_sealed() {
    check(FROZEN[1]);
}

fn testdata() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/repositories")
}

/// A folder of the test, removed with it.
struct Desk(PathBuf);

impl Desk {
    fn new(name: &str) -> Desk {
        let path =
            crate::support::workspace::base().join(format!("frozen-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).expect("a folder can be made");
        Desk(path)
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The trees of the three sets, by set and part: the lines of `stream tree` for what was backed up.
type Expected = BTreeMap<String, BTreeMap<String, String>>;

fn expected(version: &Path) -> Expected {
    let mut sets = Expected::new();
    for file in fs::read_dir(version.join("expected")).expect("it is there").flatten() {
        let text = fs::read_to_string(file.path()).expect("it can be read");
        let lines = text.lines().filter_map(|line| line.split_once('\t'));
        let name = file.file_name().to_str().expect("UTF-8").trim_end_matches(".tree").to_owned();
        let lines = lines.filter(|(path, _)| *path != "# path");
        sets.insert(name, lines.map(|(path, rest)| (path.to_owned(), rest.to_owned())).collect());
    }
    sets
}

/// Opens a copy and runs everything that only reads.
fn check(frozen: &str) {
    let source = testdata().join(frozen);
    let version = source.parent().expect("it lies in a version's folder");
    let desk = Desk::new(&frozen.replace('/', "-"));
    let repository = desk.0.join("repository");
    must(&mut command("cp", ["-r", text(&source), text(&repository)]));
    let before = content(&repository);
    // Git doesn't keep modes, and a key that others may read is refused.
    let key = crate::support::shipping::secret_file(&desk.0, "key", &key_of(version));
    let sealed =
        if frozen.ends_with("sealed") { format!("key_file = {key}\n") } else { String::new() };
    let url = toml_string(Path::new(&format!("file://{}", repository.display())));
    let config = desk.0.join("lockstep.toml");
    // No cluster and no ZFS, as after a fire.
    let words = format!(
        "state_dir = {}\n[clusters.main]\ndata_directory = {}\nrepositories = [\"old\"]\n\
         [repositories.old]\nurl = {url}\n{sealed}",
        toml_string(&desk.0.join("state")),
        toml_string(&desk.0.join("data")),
    );
    fs::write(&config, words).expect("it can be written");
    let lockstep = Lockstep::new(&config, &crate::support::cluster::bin_of(15));

    let sets = expected(version);
    assert_eq!(sets.len(), 3, "a full delta and two increments");
    let checked = &lockstep.json(&["repo", "check", "--read-data"])["repositories"][0];
    assert_eq!(
        (&checked["harmed"], &checked["counts"]["sets"]),
        (&json!([]), &json!(3)),
        "{checked}"
    );
    let listed = lockstep.json(&["list", "--from", "repository"]);
    let listed: BTreeSet<_> = listed["sets"]
        .as_array()
        .unwrap_or_else(|| panic!("no sets: {listed}"))
        .iter()
        .map(|set| set["set"].as_str().expect("an id").to_owned())
        .collect();
    assert_eq!(listed, sets.keys().cloned().collect());

    for (set, tree) in &sets {
        let note = lockstep.expect(exit::DONE, &["cat", &format!("{set}:data/note")]).stdout;
        assert_eq!(note, NOTES[sets.keys().position(|known| known == set).expect("it is there")]);
        let wal = lockstep.json(&["ls", set, "wal"]);
        assert!(wal.to_string().contains(SEGMENT), "{wal}");

        let to = desk.0.join(set);
        let arguments =
            ["restore", set, "--to", text(&to), "--from", "repository", "--as", "files"];
        lockstep.expect(exit::DONE, &arguments);
        assert_same(set, tree, &to);
        let hash = |line: &str| line.rsplit('\t').next().map(str::to_owned);
        let segment = format!("wal/{SEGMENT}");
        assert_eq!(
            hash(&tree_of(&to.join("volumes/data"))[&segment]),
            hash(&tree[&segment]),
            "{set}"
        );
    }
    assert_streams(&config, &desk.0, &sets);
    assert_eq!(content(&repository), before, "who only reads changes nothing");
}

/// Fails unless a set's full stream, and the first set's stream plus the increment from it, contain what was backed
/// up.
#[track_caller]
fn assert_streams(config: &Path, desk: &Path, sets: &Expected) {
    let config = Config::read(config).expect("the test's own");
    let context = Context::open(&config, None).expect("it has one cluster");
    let repository = lockstep::repository::open(&context, "old").expect("it is there");
    let mut first = None;
    for (set, expected) in sets {
        let manifest = Manifest::read(&repository.strata, set).expect("it is complete");
        let delta = manifest.deltas.iter().find(|delta| delta.image != "@files").expect("a volume");
        let write = |since: Option<&str>| {
            let mut sink = StreamSink::new(Vec::new());
            unfold(&repository, &delta.image, &delta.id, since, &mut sink).expect("it is unfolded");
            let path = desk.join(format!("{set}.{}.stream", since.unwrap_or("full")));
            fs::write(&path, sink.finish().expect("it ends")).expect("it can be written");
            path
        };
        let mut chains = vec![vec![write(None)]];
        match &first {
            None => first = Some((chains[0][0].clone(), delta.id.clone())),
            Some((full, id)) => chains.push(vec![full.clone(), write(Some(id))]),
        }
        for chain in chains {
            let mut program = command(env!("CARGO_BIN_EXE_lockstep"), ["stream", "tree"]);
            let listed = must(program.args(&chain));
            let found = listed.lines().filter_map(|line| line.split_once('\t'));
            let found: BTreeMap<_, _> = found.filter(|(path, _)| *path != "# path").collect();
            assert_eq!(found.len(), expected.len(), "{chain:?}");
            for (path, line) in expected {
                // For files whose content isn't stored, everything else is there.
                let rest = |line: &str| line.rsplit_once('\t').map(|(rest, _)| rest.to_owned());
                let same = found.get(path.as_str()).is_some_and(|found| {
                    *found == line || is_made_anew(path) && rest(found) == rest(line)
                });
                assert!(same, "{chain:?}: {path}: {:?}, not {line:?}", found.get(path.as_str()));
            }
        }
    }
}

/// Fails unless what was restored is what was backed up, except for what a restore itself adds and what isn't stored.
#[track_caller]
fn assert_same(set: &str, expected: &BTreeMap<String, String>, to: &Path) {
    let mut compared = 0;
    let found = tree_of(&to.join("volumes/data"));
    // A restore empties the folders whose files PostgreSQL recreates.
    for (path, line) in expected.iter().filter(|(path, _)| !is_made_anew(path)) {
        let ours = found.get(path).unwrap_or_else(|| panic!("{set}: no {path}"));
        let fields = |line: &str, which: &[usize]| -> Vec<String> {
            let all: Vec<_> = line.split('\t').collect();
            which.iter().map(|field| all[*field].to_owned()).collect()
        };
        let is_link = line.starts_with('l');
        let is_written = path.ends_with("postgresql.auto.conf")
            || path.ends_with("global/pg_control")
            || line.starts_with('d');
        // Type and mode always; the owner too, unless it is a link that now leads elsewhere; size, time and content,
        // unless a restore writes the file.
        let which: &[usize] = match (is_link, is_written) {
            (true, _) => &[0, 1],
            (_, true) => &[0, 1, 2, 3],
            _ => &[0, 1, 2, 3, 4, 5, 6],
        };
        assert_eq!(fields(ours, which), fields(line, which), "{set}: {path}");
        compared += usize::from(which.len() == 7);
    }
    assert!(compared > 20, "{set}: {compared} files compared");
}

/// Files that a restore, or the server after it, recreates; the WAL is the set's own.
fn is_made_anew(path: &str) -> bool {
    may_be_left_out(path) || path.starts_with("wal/")
}

/// Everything in a folder.
fn content(folder: &Path) -> BTreeMap<String, String> {
    tree_of(folder).into_iter().filter(|(_, line)| line.starts_with('f')).collect()
}

fn key_of(version: &Path) -> String {
    fs::read_to_string(version.join("sealed.key")).expect("the key lies beside the repository")
}

fn text(path: &Path) -> &str {
    path.to_str().expect("the harness' own paths are UTF-8")
}

/// The contents of the file `note` of the data directory in each set.
const NOTES: [&str; 3] = ["the first set\n", "the second\n", "and the third set\n"];

/// The WAL segment stored with each set.
const SEGMENT: &str = "000000010000000000000020";

/// Makes the repositories for a new version; testdata/repositories/v1/README.md says when and how.
#[test]
#[ignore = "what it makes is frozen"]
fn make() {
    let into =
        PathBuf::from(std::env::var_os("LOCKSTEP_FREEZE").expect("a folder to make them in"));
    fs::create_dir_all(into.join("expected")).expect("a folder can be made");
    let fixture = Fixture::new(one_dataset());
    let cluster = &fixture.cluster;
    let stages = stages(cluster);
    cluster.stop(Stop::Fast);
    // Segments of 1 MiB that contain only a checkpoint.
    let data = cluster.data.clone();
    let reset = ["-f", "--wal-segsize=1", "-D", text(&data)];
    must(&mut cluster.tool("pg_resetwal", reset));
    strip(&data);

    let key = format!("{}\n", "0123456789abcdef".repeat(4));
    fs::write(into.join("sealed.key"), &key).expect("it can be written");
    let key = crate::support::shipping::secret_file(fixture.root(), "key", &key);
    let table = |name: &str, more: &str| {
        let url = format!("file://{}", into.join(name).display());
        format!("url = {}\n{more}", toml_string(Path::new(&url)))
    };
    let sealed = table("sealed", &format!("key_file = {key}\n"));
    let lockstep = configured(&fixture, &[("plain", table("plain", "")), ("sealed", sealed)], "");
    for name in ["plain", "sealed"] {
        lockstep.expect(exit::DONE, &["repo", "init", name]);
    }
    for (note, files) in NOTES.iter().zip(&stages) {
        for (path, bytes) in files {
            put(&data.join(path), bytes);
        }
        fs::write(data.join("note"), note).expect("it can be written");
        change(&data.join("odd"), note);
        let set = lockstep.backup("cold");
        let lines: Vec<_> = tree(&fixture, &set.volumes[0].snapshot)
            .iter()
            .map(|(path, line)| format!("{path}\t{line}\n"))
            .collect();
        fs::write(into.join("expected").join(format!("{}.tree", set.id)), lines.concat())
            .expect("it can be written");
        // Sets of the same second have no order.
        std::thread::sleep(std::time::Duration::from_millis(1100));
    }
}

/// The contents of two tables' files at three times: in the first one pages change, the second one is rewritten.
fn stages(cluster: &Cluster) -> Vec<BTreeMap<String, Vec<u8>>> {
    cluster.execute(&[
        "CREATE TABLE t AS SELECT n, md5(n::text) AS words FROM generate_series(1, 2000) n",
        "CREATE TABLE u TABLESPACE ts1 AS SELECT n FROM generate_series(1, 700) n",
    ]);
    let mut stages = Vec::new();
    for step in [
        "SELECT 1",
        "UPDATE t SET words = 'changed' WHERE n IN (3, 900, 1999)",
        "DELETE FROM t WHERE n > 800",
    ] {
        cluster.execute(&[step, "VACUUM t, u", "CHECKPOINT"]);
        let paths = ["t", "u"].map(|table| {
            cluster.value("postgres", &format!("SELECT pg_relation_filepath('{table}')"))
        });
        let read = |path: String| {
            let bytes = fs::read(cluster.data.join(&path)).expect("a relation can be read");
            (path, bytes)
        };
        stages.push(paths.map(read).into());
    }
    stages
}

/// Writes in place, so that blocks that don't differ may stay as they are.
fn put(path: &Path, bytes: &[u8]) {
    let file = fs::OpenOptions::new().write(true).open(path).expect("it is there");
    let old = fs::read(path).expect("it can be read");
    for (n, page) in bytes.chunks(8192).enumerate() {
        if old.get(n * 8192..n * 8192 + page.len()) != Some(page) {
            std::os::unix::fs::FileExt::write_all_at(&file, page, n as u64 * 8192)
                .expect("written");
        }
    }
    file.set_len(bytes.len() as u64).expect("it can be cut");
}

/// Removes all but a few relations: an example needn't start.
fn strip(data: &Path) {
    let keep = ["PG_VERSION", "pg_filenode.map", "pg_control", "1247", "1262", "1260"];
    for folder in ["global", "base/1", "base/4", "base/5"] {
        for entry in fs::read_dir(data.join(folder)).expect("it is there").flatten() {
            let name = entry.file_name().to_str().expect("UTF-8").to_owned();
            let of_ours = name.parse::<u32>().is_ok_and(|number| number >= 16384);
            if !keep.contains(&name.as_str()) && !of_ours {
                fs::remove_file(entry.path()).expect("it can be removed");
            }
        }
    }
}

/// Unusual files: sparse, truncated, removed, a folder in place of a file, a link, a reused inode number.
fn change(odd: &Path, note: &str) {
    use std::os::unix::fs::FileExt;
    let holes = |at: u64, length: u64| {
        let mut options = fs::OpenOptions::new();
        let file = options.write(true).create(true).truncate(false).open(odd.join("holes"));
        let file = file.expect("it can be opened");
        file.write_all_at(note.as_bytes(), at).expect("it can be written");
        file.set_len(length).expect("it can be cut");
    };
    if note == NOTES[0] {
        fs::create_dir(odd).expect("a folder can be made");
        holes(300_000, 1 << 20);
        fs::write(odd.join("goes"), vec![7; 50_000]).expect("it can be written");
        fs::write(odd.join("with space and \\ and\nline"), "odd").expect("it can be written");
        std::os::unix::fs::symlink("l".repeat(200), odd.join("link")).expect("a link can be made");
    } else if note == NOTES[1] {
        holes(700_000, 900_000);
        fs::remove_file(odd.join("goes")).expect("it can be removed");
        fs::create_dir(odd.join("goes")).expect("a folder can be made");
        fs::write(odd.join("goes/inside"), vec![8; 200_000]).expect("it can be written");
    } else {
        holes(10, 400_000);
        for n in 0..60 {
            let name = format!("many-{n:03}-{}", "x".repeat(40));
            fs::write(odd.join(name), [n; 77]).expect("it can be written");
        }
    }
}
