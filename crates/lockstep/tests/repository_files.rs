//! Sets out of a repository as plain files: what was restored against the snapshots, file by file; in place of an older
//! restore; parts of a cluster; single files.

mod support;

use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use support::checker::Checker;
use support::cluster::{Cluster, Stop};
use support::command::{command, must};
use support::faults::{assert_nothing_remains, assert_said};
use support::fixture::Fixture;
use support::layout::{Layout, one_dataset, one_pool, two_pools_four_datasets};
use support::ledger::{Expected, Ledger};
use support::load::{Load, Plan};
use support::lockstep::{Lockstep, Set, Steps, exit, json_of};
use support::shipping::{may_be_left_out, packs, tree, with_repository};
use support::trees::{tree_of, usage};

const SCALE: u32 = 1;
const FILES: [&str; 4] = ["--from", "repository", "--as", "files"];

struct Prepared {
    fixture: Fixture,
    lockstep: Lockstep,
}

fn prepare(layout: Layout) -> Prepared {
    let fixture = Fixture::new(layout);
    fixture.pgbench_tables(SCALE);
    let lockstep = with_repository(&fixture);
    Prepared { fixture, lockstep }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("the harness' own paths are UTF-8")
}

impl Prepared {
    /// Restores, stops before anything is changed in the files, gives each volume's folder to `look`, and goes on.
    fn restore_and_look(&self, set: &Set, to: &Path, more: &[&str], look: impl FnOnce()) -> Value {
        let steps = Steps::new(self.fixture.root().join("steps"));
        steps.hold("restore.files");
        let arguments = ["--json", "restore", &set.id, "--to", text(to)];
        let arguments: Vec<&str> =
            arguments.into_iter().chain(FILES).chain(more.iter().copied()).collect();
        let mut running = self.lockstep.clone().with_steps(&steps).spawn(&arguments);
        steps.wait_reached("restore.files", &mut running);
        let memory = most_memory(running.id());
        assert!(memory < 128 << 20, "{memory} bytes of memory");
        look();
        steps.release("restore.files");
        let outcome = running.wait(support::lockstep::LIMIT);
        assert!(outcome.ok(), "{}", outcome.describe());
        json_of(&outcome)
    }

    /// Fails unless the folders of a restore hold what the set's snapshots do.
    #[track_caller]
    fn assert_same(&self, set: &Set, to: &Path) {
        for (index, volume) in set.volumes.iter().enumerate() {
            if volume.parts != ["wal"] {
                let folder = folder_of(to, index, &volume.parts[0]);
                assert_same_tree(&tree(&self.fixture, &volume.snapshot), &folder);
            }
        }
    }
}

/// The most that a process has had in memory at once.
#[track_caller]
fn most_memory(process: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).expect("it runs");
    let most = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a line of it");
    let kilobytes: u64 = most.trim().trim_end_matches(" kB").parse().expect("a number");
    eprintln!("{} MB of memory at most", kilobytes >> 10);
    kilobytes << 10
}

/// Where a volume of a restore is.
fn folder_of(to: &Path, index: usize, part: &str) -> PathBuf {
    let own = to.join("volumes").join((index + 1).to_string());
    match part {
        _ if own.exists() => own,
        "data" | "wal" => to.join(part),
        other => to.join("tablespaces").join(other.trim_start_matches("tablespace-")),
    }
}

#[track_caller]
fn assert_same_tree(theirs: &BTreeMap<String, String>, folder: &Path) {
    let mut ours = tree_of(folder);
    // Its name comes last of all.
    let control = ours.keys().find(|path| path.ends_with("global/pg_control.lockstep")).cloned();
    if let Some(name) = control {
        let line = ours.remove(&name).expect("it was there");
        ours.insert(name.trim_end_matches(".lockstep").to_owned(), line);
    }
    for (path, line) in theirs {
        if path.starts_with("# path") {
            continue;
        }
        let found = ours.get(path).map_or("nothing", String::as_str);
        let unlogged = {
            let stem = path.split_once('_').map_or(path.as_str(), |(stem, _)| stem);
            let stem = stem.split('.').next().unwrap_or(stem);
            theirs.contains_key(&format!("{stem}_init"))
        };
        let without_hash = |line: &str| line.rsplit_once('\t').map(|(rest, _)| rest.to_owned());
        let same = if may_be_left_out(path) || unlogged {
            without_hash(found) == without_hash(line)
        } else {
            found == line
        };
        assert!(same, "{}: {path}: {found:?}, the snapshot has {line:?}", folder.display());
    }
    let more: Vec<_> = ours.keys().filter(|path| !theirs.contains_key(*path)).collect();
    assert!(more.is_empty(), "{}: more than the snapshot has: {more:?}", folder.display());
}

/// Files of every kind that PostgreSQL has none of, beside its own.
fn odd_files(folder: &Path) {
    let dir = folder.join("odd");
    fs::create_dir(&dir).expect("a folder can be made");
    let write = |name: &[u8], bytes: &[u8]| {
        fs::write(dir.join(OsStr::from_bytes(name)), bytes).expect("a file can be written");
    };
    write(b"empty", b"");
    write(b"with\nnewline\tand \\ and \xff\xfe", b"odd");
    write(b"-rf", b"option");
    write(&[b'n'; 255], b"long");
    let holes = fs::File::create(dir.join("holes")).expect("a file can be made");
    holes.write_all_at(b"in the middle", 40 << 20).expect("it can be written");
    holes.set_len((90 << 20) + 17).expect("it can be extended");
    let end = fs::File::create(dir.join("end")).expect("a file can be made");
    end.write_all_at(&[7; 9000], 300_000).expect("it can be written");
    fs::hard_link(dir.join("end"), dir.join("end-again")).expect("a link can be made");
    symlink("/nowhere/at all", dir.join("link")).expect("a link can be made");
    symlink("l".repeat(300), dir.join("long-link")).expect("a link can be made");
    must(&mut command("mkfifo", [text(&dir.join("pipe"))]));
    for n in 0..300 {
        write(format!("many-{n:03}-{}", "x".repeat(40)).as_bytes(), &[n as u8; 77]);
    }
    for (name, mode) in [("end", 0o4751), ("empty", 0o0), ("-rf", 0o600)] {
        fs::set_permissions(dir.join(name), fs::Permissions::from_mode(mode)).expect("chmod");
    }
    must(&mut command("chown", ["12345:54321", text(&dir.join("-rf"))]));
    must(&mut command(
        "touch",
        ["-h", "-d", "1969-12-31 12:00:00.123456789Z", text(&dir.join("link"))],
    ));
    must(&mut command("touch", ["-d", "2001-02-03 04:05:06.789Z", text(&dir.join("holes"))]));
    fs::create_dir(dir.join("deep")).expect("a folder can be made");
    must(&mut command("touch", ["-d", "2002-02-02 02:02:02Z", text(&dir.join("deep"))]));
    fs::set_permissions(dir.join("deep"), fs::Permissions::from_mode(0o1500)).expect("chmod");
}

#[test]
fn files_are_those_of_the_snapshots_and_the_server_starts() {
    let prepared = prepare(two_pools_four_datasets());
    let fixture = &prepared.fixture;
    odd_files(&fixture.mnt().join("data"));
    let ledger = Ledger::create(&fixture.cluster, "ts1", "ts2");
    let writers = ledger.start(&fixture.cluster);
    let load = Load::start(&fixture.cluster, &["ts1", "ts2", "pg_default"], &Plan::all(3));
    let mut sets = Vec::new();
    for strategy in ["label", "ordered", "label"] {
        let set = prepared.lockstep.backup(strategy);
        let expected = Expected {
            by_lsn: set.floor_lsn,
            none_after: Some(ledger.attempted()),
            ..Expected::default()
        };
        sets.push((set, expected));
    }
    load.stop();
    writers.stop();
    for (set, expected) in [&sets[1], &sets[2]] {
        let to = fixture.target(&set.id);
        let port = support::fixture::free_port().to_string();
        let more = ["--start", "--port", &port];
        let json = prepared.restore_and_look(set, &to, &more, || {
            prepared.assert_same(set, &to);
            assert_sparse(&to);
        });
        assert!(json["files"].as_u64().is_some_and(|files| files > 900), "{json}");
        assert_eq!(json["datasets"], serde_json::json!([]), "{json}");
        let restored = prepared.lockstep.restored(&json);
        let verdict =
            Checker::new(SCALE).with_ledger(&ledger, *expected).check_and_stop(restored.server());
        verdict.assert_right(&set.id);
        assert!(verdict.ledger_rows > 2, "the ledger had hardly any rows");
        fs::remove_dir_all(&to).expect("it can be removed");
    }
}

/// Holes stay holes: the file of 90 MB has one block.
#[track_caller]
fn assert_sparse(to: &Path) {
    let holes = fs::metadata(to.join("volumes/1/odd/holes"))
        .or_else(|_| fs::metadata(to.join("volumes/2/odd/holes")))
        .or_else(|_| fs::metadata(to.join("volumes/3/odd/holes")))
        .or_else(|_| fs::metadata(to.join("volumes/4/odd/holes")));
    let holes = holes.expect("the file with holes is in one of the volumes");
    assert!(holes.blocks() * 512 < 1 << 20, "{} blocks for {} bytes", holes.blocks(), holes.len());
}

/// Stops the cluster with something in it, takes a set, and changes it: rows, files gone, files new.
fn two_sets(prepared: &Prepared) -> (Set, Set) {
    let cluster = &prepared.fixture.cluster;
    odd_files(&prepared.fixture.mnt().join("data"));
    let first = prepared.lockstep.backup("label");
    cluster.execute(&[
        "UPDATE pgbench_accounts SET filler = 'changed' WHERE aid BETWEEN 5000 AND 5050",
        "CREATE TABLE later TABLESPACE ts1 AS SELECT generate_series(1, 1000) AS n",
        "DROP TABLE pgbench_history",
        "CREATE TABLE pgbench_history (tid int, bid int, aid int, delta int, mtime timestamp, filler char(22))",
    ]);
    let odd = prepared.fixture.mnt().join("data/odd");
    fs::remove_file(odd.join("end-again")).expect("it can be removed");
    fs::remove_dir(odd.join("deep")).expect("it can be removed");
    fs::write(odd.join("deep"), b"a file now").expect("it can be written");
    fs::remove_file(odd.join("pipe")).expect("it can be removed");
    fs::create_dir(odd.join("pipe")).expect("a folder can be made");
    let holes = fs::OpenOptions::new().write(true).open(odd.join("holes")).expect("it is there");
    holes.write_all_at(&[3; 5000], 60 << 20).expect("it can be written");
    holes.set_len(80 << 20).expect("it can be cut");
    (first, prepared.lockstep.backup("label"))
}

#[test]
fn only_what_differs_is_written_over_an_older_restore() {
    let prepared = prepare(two_pools_four_datasets());
    let (first, second) = two_sets(&prepared);
    let to = prepared.fixture.target("files");
    let whole = prepared.restore_and_look(&second, &to, &[], || ());
    let whole = whole["bytes_written"].as_u64().expect("a number");
    // Back in time, and forward again; each is compared before the label and pg_control are put in.
    let mut written = Vec::new();
    for set in [&second, &first, &second] {
        let json = prepared.restore_and_look(set, &to, &["--delta"], || {
            prepared.assert_same(set, &to);
        });
        written.push(json["bytes_written"].as_u64().expect("a number"));
    }
    // The first has only to mend what the restore itself had changed: the label, pg_control, settings.
    assert!(written[0] < 100 << 10, "{written:?}, all of it is {whole}");
    assert!(written[1] < whole / 4 && written[2] < whole / 4, "{written:?} of {whole}");

    // Whatever is done to it, it comes back.
    let data = folder_of(&to, index_of(&second, "data"), "data");
    let odd = data.join("odd");
    let relation = largest(&data.join("pg/base"));
    let bytes = fs::read(&relation).expect("a relation can be read");
    let file = fs::OpenOptions::new().write(true).open(&relation).expect("it can be opened");
    file.write_all_at(b"changed", bytes.len() as u64 / 2).expect("it can be written");
    must(&mut command("touch", ["-r", text(&data.join("pg/PG_VERSION")), text(&relation)]));
    file.set_len(bytes.len() as u64 + 12345).expect("it can be extended");
    let holes = fs::OpenOptions::new().write(true).open(odd.join("holes")).expect("it is there");
    holes.write_all_at(&[9; 100_000], 20 << 20).expect("it can be written");
    fs::remove_dir_all(data.join("pg/pg_xact")).expect("it can be removed");
    fs::write(data.join("pg/pg_xact"), b"a file").expect("it can be written");
    fs::create_dir_all(data.join("pg/base/77777/deep/er")).expect("folders can be made");
    fs::write(data.join("pg/base/77777/deep/er/x"), b"x").expect("it can be written");
    fs::set_permissions(data.join("pg/PG_VERSION"), fs::Permissions::from_mode(0o777))
        .expect("chmod");
    must(&mut command("chown", ["-R", "1:1", text(&data.join("pg/global"))]));
    // Links that lead out: nothing at their other ends may be touched.
    let outside = prepared.fixture.root().join("outside");
    fs::create_dir(&outside).expect("a folder can be made");
    fs::write(outside.join("kept"), b"kept").expect("it can be written");
    fs::remove_dir_all(data.join("pg/pg_multixact")).expect("it can be removed");
    symlink(&outside, data.join("pg/pg_multixact")).expect("a link can be made");
    symlink(&outside, data.join("pg/new-link")).expect("a link can be made");
    fs::remove_file(data.join("pg/PG_VERSION")).expect("it can be removed");
    symlink(outside.join("kept"), data.join("pg/PG_VERSION")).expect("a link can be made");
    fs::remove_file(odd.join("-rf")).expect("it can be removed");
    fs::hard_link(outside.join("kept"), odd.join("-rf")).expect("a link can be made");
    let json = prepared.restore_and_look(&second, &to, &["--delta"], || {
        prepared.assert_same(&second, &to);
    });
    assert!(json["removed"].as_u64().is_some_and(|removed| removed >= 8), "{json}");
    let left: Vec<_> = fs::read_dir(&outside).expect("it is there").flatten().collect();
    assert_eq!(left.len(), 1, "{left:?}");
    assert_eq!(fs::read(outside.join("kept")).expect("it is there"), b"kept");

    // A folder of Lockstep's own that is a link is refused, and so is one in which a server runs.
    must(&mut command("mv", [text(&to.join("volumes")), text(&outside.join("volumes"))]));
    symlink(outside.join("volumes"), to.join("volumes")).expect("a link can be made");
    let arguments = ["restore", &second.id, "--to", text(&to), "--delta"];
    let arguments: Vec<&str> = arguments.into_iter().chain(FILES).collect();
    let refused = prepared.lockstep.expect(exit::USAGE, &arguments);
    assert!(refused.stderr.contains("is a symbolic link"), "{}", refused.describe());
    fs::remove_file(to.join("volumes")).expect("it can be removed");
    must(&mut command("mv", [text(&outside.join("volumes")), text(&to.join("volumes"))]));

    let more: Vec<&str> = FILES.into_iter().chain(["--delta"]).collect();
    let restored = prepared.lockstep.restore_and_start(&second.id, &to, &more);
    let refused = prepared.lockstep.expect(exit::USAGE, &arguments);
    assert!(refused.stderr.contains("a server runs in"), "{}", refused.describe());
    let server = restored.server();
    assert_eq!(server.value("postgres", "SELECT count(*) FROM later"), "1000");
    Checker::new(SCALE).check_and_stop(server).assert_right("after many deltas");
}

fn index_of(set: &Set, part: &str) -> usize {
    let at = set.volumes.iter().position(|volume| volume.parts[0] == part);
    at.unwrap_or_else(|| panic!("no volume of {part}"))
}

fn largest(folder: &Path) -> PathBuf {
    let mut found = (0, PathBuf::new());
    let mut waiting = vec![folder.to_owned()];
    while let Some(folder) = waiting.pop() {
        for entry in fs::read_dir(&folder).expect("it can be listed").flatten() {
            let metadata = entry.metadata().expect("it can be looked at");
            if metadata.is_dir() {
                waiting.push(entry.path());
            } else if metadata.len() > found.0 {
                found = (metadata.len(), entry.path());
            }
        }
    }
    found.1
}

#[test]
fn a_full_disk_is_said_and_leaves_nothing() {
    let prepared = prepare(one_dataset());
    let set = prepared.lockstep.backup("label");
    let small = prepared.fixture.root().join("small");
    let space = prepared.fixture.root().join("space");
    for folder in [&small, &space] {
        fs::create_dir(folder).expect("a folder can be made");
    }
    must(&mut command("mount", ["-t", "tmpfs", "-o", "size=16m", "small", text(&small)]));
    let to = small.join("r");
    let arguments: Vec<&str> =
        ["restore", &set.id, "--to", text(&to)].into_iter().chain(FILES).collect();
    let failed = prepared.lockstep.expect(exit::FAILED, &arguments);
    for words in ["cannot write", "No space left on device", "hint: make room there"] {
        assert!(failed.stderr.contains(words), "{words}: {}", failed.describe());
    }
    let left: Vec<_> = fs::read_dir(&small).expect("it is there").flatten().collect();
    assert!(left.is_empty(), "{left:?}");
    must(&mut command("umount", [text(&small)]));
}

#[test]
fn a_restore_that_is_killed_leaves_nothing_at_the_next_start() {
    let prepared = prepare(two_pools_four_datasets());
    let set = prepared.lockstep.backup("label");
    let empty = prepared.fixture.root().join("for the tablespace");
    fs::create_dir(&empty).expect("a folder can be made");
    let elsewhere = format!("ts2={}", empty.display());
    for step in [
        "restore.files-made",
        "restore.files-read",
        "restore.received-2",
        "restore.files",
        "restore.prepared",
        "restore.settings",
    ] {
        let to = prepared.fixture.target(step);
        let steps = Steps::new(prepared.fixture.root().join("steps"));
        steps.hold(step);
        let arguments: Vec<&str> =
            ["restore", &set.id, "--to", text(&to), "--tablespace", &elsewhere]
                .into_iter()
                .chain(FILES)
                .collect();
        let mut running = prepared.lockstep.clone().with_steps(&steps).spawn(&arguments);
        steps.wait_reached(step, &mut running);
        let control = folder_of(&to, index_of(&set, "data"), "data").join("pg/global/pg_control");
        assert!(!control.exists(), "pg_control comes last, and is there at {step}");
        running.kill();
        drop(running);
        // Any restore cleans up before it begins.
        prepared.lockstep.expect(exit::USAGE, &["restore", "no-such-set", "--to", text(&to)]);
        assert!(!to.exists(), "{step}: {} is left", to.display());
        let left: Vec<_> = fs::read_dir(&empty).expect("it stays").flatten().collect();
        assert!(left.is_empty(), "{step}: {left:?}");
    }
}

/// A tablespace that is a folder of its dataset, as most are, is where it was sent: that disk is to hold it.
#[test]
fn a_folder_of_a_dataset_goes_where_it_is_sent() {
    let prepared = prepare(one_dataset());
    let Prepared { fixture, lockstep } = &prepared;
    let set = lockstep.backup("label").id;
    // Made beforehand, as whoever may not make folders there does; and one that isn't there.
    let (there, not_yet) = (fixture.owned("fast"), fixture.root().join("deep/fast2"));
    let sent = [format!("ts1={}", there.display()), format!("ts2={}", not_yet.display())];
    let mut more = FILES.to_vec();
    more.extend(["--tablespace", &sent[0], "--tablespace", &sent[1]]);
    let to = fixture.target("r");
    let assert_there = || {
        for folder in [&there, &not_yet] {
            let versions = fs::read_dir(folder).expect("it is there").flatten();
            let names: Vec<_> = versions.map(|entry| entry.file_name()).collect();
            assert!(names.len() == 1 && !folder.is_symlink(), "{folder:?}: {names:?}");
            let found = fs::metadata(folder).expect("it is there");
            assert_ne!(found.uid(), 0, "{folder:?} is its owner's");
        }
        for name in ["ts1", "ts2"] {
            assert!(!to.join("volumes/1").join(name).exists(), "{name} is in DIR as well");
        }
    };
    let restored = lockstep.restore_and_start(&set, &to, &more);
    assert_there();
    Checker::new(SCALE).check_and_stop(restored.server()).assert_right("sent elsewhere");
    // And is brought to a later set's state there.
    fixture.cluster.execute(&["UPDATE pgbench_accounts SET filler = 'x' WHERE aid < 1000"]);
    let later = lockstep.backup("label").id;
    fs::write(there.join("PG_junk"), "of nobody").expect("it can be written");
    more.push("--delta");
    let restored = lockstep.restore_and_start(&later, &to, &more);
    assert!(!there.join("PG_junk").exists(), "what the set doesn't have goes");
    assert_there();
    Checker::new(SCALE).check_and_stop(restored.server()).assert_right("brought up to date");

    // A dataset comes as a whole: what is there would have to become a link. It is said first, and stays.
    let parent = format!("{}/back", fixture.pools[0].name);
    let other = fixture.owned("other");
    let place = format!("ts1={}", other.display());
    let to = fixture.target("zfs");
    let zfs = ["--from", "repository", "--as", "zfs", "--dataset", &parent, "--tablespace", &place];
    let arguments: Vec<&str> =
        ["restore", &later, "--to", text(&to)].into_iter().chain(zfs).collect();
    let refused = lockstep.expect(exit::USAGE, &arguments);
    assert_said(&refused, &["can only become a link", "hint: rmdir"]);
    assert!(other.is_dir() && !to.exists());
    fs::remove_dir(&other).expect("it is empty");
    lockstep.restore(&later, &to, &zfs);
    assert!(other.is_symlink());
    let again = [&zfs[..], &["--delta"]].concat();
    let restored = lockstep.restore_and_start(&later, &to, &again);
    Checker::new(SCALE).check_and_stop(restored.server()).assert_right("over a link");
    // Not mounted, as a killed restore leaves it, the link leads nowhere, and is the restore's all the same.
    let volume = to.join("volumes/1");
    must(&mut command("zfs", ["unmount", text(&volume)]));
    assert!(other.is_symlink() && !other.exists());
    lockstep.restore(&later, &to, &again);
    assert!(other.exists());
}

#[test]
fn one_database_comes_back_and_the_others_are_holes() {
    let prepared = prepare(two_pools_four_datasets());
    let cluster = &prepared.fixture.cluster;
    cluster.execute(&[
        "CREATE DATABASE wanted",
        "CREATE DATABASE other TABLESPACE ts1",
        "CREATE DATABASE renamed",
        "ALTER DATABASE renamed RENAME TO \"by another name\"",
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
        // The row of the old name is in pg_database still.
        assert_eq!(rest["databases"], json!(["by another name", "other", "renamed"]), "{rest}");
        assert_eq!(server.value("wanted", "SELECT count(*) FROM in_ts1"), "20000");
        assert_eq!(server.value("wanted", "SELECT sum(n) FROM in_ts2"), "200010000");
        let options =
            ["--database=wanted", "--database=postgres", "--install-missing", "--heapallindexed"];
        must(&mut server.tool("pg_amcheck", options));
        must(&mut server.tool("pg_dump", ["-f", "/dev/null", "wanted"]));
        let error = server.try_connect("other").err().expect("its files are holes");
        let words = support::cluster::full(&error);
        assert!(words.contains("pg_filenode.map"), "{words}");
        let spaces: Vec<_> =
            ["data/base", "volumes/1/pg/base", "volumes/2/pg/base", "volumes/3/pg/base"]
                .iter()
                .map(|path| to.join(path))
                .chain(
                    server
                        .column("postgres", "SELECT pg_tablespace_location(oid) FROM pg_tablespace")
                        .into_iter()
                        .filter(|path| !path.is_empty())
                        .flat_map(|path| {
                            fs::read_dir(path)
                                .into_iter()
                                .flatten()
                                .flatten()
                                .map(|entry| entry.path())
                        }),
                )
                .collect();
        let (mut seen, mut kept) = (0, 0);
        for space in spaces {
            let (blocks, sizes) = usage(&space.join(&other));
            // What the set's WAL has of its pages is written when it is replayed.
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
            support::shipping::discard(&prepared.fixture, &to, &parent);
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
    let zeros = server.connect("wanted").simple_query("SELECT sum(n) FROM in_ts2");
    assert!(zeros.is_err() || server.value("wanted", "SELECT count(*) FROM in_ts2") == "0");
    server.stop(Stop::Fast);
}

/// Without whole pages in its WAL a set can't be replayed onto holes: that is known before anything is fetched, and
/// where only WAL beyond the set does it, the reason is named.
#[test]
fn parts_of_a_set_need_whole_pages() {
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
    support::command::wait_until("the segment is archived", support::lockstep::LIMIT, || {
        fixture.archive.join(&segment).exists()
    });
    cluster.stop(Stop::Fast);
    let cold = lockstep.backup("cold").id;
    cluster.start();

    let to = fixture.target("only");
    let only = ["--from", "repository", "--as", "files", "--only-database", "wanted"];
    let arguments = |set: &str, more: &[&str]| -> Vec<String> {
        let all = ["restore", set, "--to", text(&to)].into_iter().chain(only);
        all.chain(more.iter().copied()).map(str::to_owned).collect()
    };
    let expect = |code: i32, set: &str, more: &[&str]| {
        let all = arguments(set, more);
        lockstep.expect(code, &all.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let refused = expect(exit::REFUSED, &atomic, &["--start"]);
    assert_said(&refused, &["full_page_writes was off", "hint: restore all of it"]);
    assert!(!to.exists(), "it is said before anything is made");
    for set in [&label, &cold] {
        let restored = lockstep.restore_and_start(set, &to, &only);
        assert_eq!(restored.server().value("wanted", "SELECT sum(n) FROM t"), "1");
        restored.server().stop(Stop::Fast);
        fs::remove_dir_all(&to).expect("it can be removed");
    }
    let archive = format!("cp {}/%f %p", fixture.archive.display());
    let failed = expect(exit::FAILED, &label, &["--start", "--restore-command", &archive]);
    let warns = "where WAL from --restore-command changes what isn't restored";
    assert_said(&failed, &[warns, "hint: recovery came to a change of what isn't restored"]);
}

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
    // On this host and in the repository there is the same, but for what isn't stored there.
    let both = |arguments: &[&str]| -> Value {
        let of = |from| lockstep.json(&[arguments, &["--from", from]].concat());
        let (here, stored) = (of("snapshots"), of("repository"));
        let mut as_here = stored.clone();
        let entries = as_here["entries"].as_array_mut().expect("entries").iter_mut();
        for (entry, there) in entries.zip(here["entries"].as_array().expect("entries")) {
            entry["stored"] = true.into();
            // A mounted file system of zfs-fuse has whole seconds only.
            let time = |entry: &Value| entry["mtime"].as_str().map(str::to_owned);
            if let (Some(known), Some(whole)) = (time(entry), time(there))
                && whole.ends_with(".000000000Z")
            {
                entry["mtime"] = format!("{}.000000000Z", known.split('.').next().unwrap()).into();
            }
        }
        assert_eq!(here, as_here, "{arguments:?}");
        // Where nothing is said, it is this host's.
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

    // Content: of the cluster's files, of a file with holes, of the set's own.
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

    // What isn't stored, isn't there, or is no file.
    let here = cat_from("snapshots", &format!("data/{unlogged}"));
    assert_eq!((here.status.code(), here.stdout.len() % 8192), (Some(exit::DONE), 0));
    assert!(!here.stdout.is_empty(), "{unlogged}");
    let left_out = cat_from("repository", &format!("data/{unlogged}"));
    assert_eq!((left_out.status.code(), left_out.stdout.len()), (Some(exit::PROBLEMS), 0));
    assert!(String::from_utf8_lossy(&left_out.stderr).contains("isn't stored"));
    for wrong in ["data/nothing", "data/base", "data/pg_wal", "data/../x", "nowhere", ""] {
        assert_eq!(cat(wrong).status.code(), Some(exit::USAGE), "{wrong}");
    }
    // A reader that goes leaves no clone, and is no error.
    let mut program = command("sh", ["-c", "\"$0\" --config \"$1\" ls -R \"$2\" | head -n 1"]);
    let config = fixture.root().join("shipping.toml");
    program.arg(env!("CARGO_BIN_EXE_lockstep")).arg(config).arg(&set.id);
    let ended = program.output().expect("the program can be run");
    assert_eq!(ended.stderr, b"", "{}", String::from_utf8_lossy(&ended.stderr));
    assert_nothing_remains(fixture, &[], "looking into snapshots");
    // With the set gone from here it is the repository's; so is one that is asked for by its beginning.
    fixture.discard_set(&set.id);
    let here = lockstep.expect(exit::USAGE, &["ls", &set.id, "--from", "snapshots"]);
    assert!(here.stderr.contains(&set.id), "{}", here.stderr);
    assert_eq!(lockstep.json(&["ls", "-R", &set.id, "data"]), json);
    // One that is of several sets is said to be, and an empty variable in a script means none.
    lockstep.backup("cold");
    let several = lockstep.expect(exit::USAGE, &["show", "2", "--from", "repository"]);
    assert_said(&several, &["several sets of repository", "write more of it", &set.id]);
    let nothing = lockstep.expect(exit::USAGE, &["show", "", "--from", "repository"]);
    assert_said(&nothing, &["has no set \"\""]);
}

#[test]
fn a_restore_reads_each_frame_once() {
    let prepared = prepare(one_dataset());
    prepared.fixture.cluster.stop(Stop::Fast);
    let set = prepared.lockstep.backup("cold");
    let stored: u64 = packs(&prepared.fixture).values().sum();
    let to = prepared.fixture.target("cost");
    let json = prepared.lockstep.restore(&set.id, &to, &FILES).json;
    let read = json["bytes_read"].as_u64().expect("a number");
    // The set's own files are in packs too, and are read apart.
    assert!(read <= stored && read > stored / 2, "{read} bytes read of {stored} stored");
    let server = Cluster { data: to.join("data"), ..prepared.fixture.cluster.clone() };
    assert!(!server.is_running(), "nothing was to be started");
}
