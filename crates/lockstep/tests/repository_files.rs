//! Sets out of a repository as plain files: what was restored against the snapshots, file by file; in place of an older
//! restore; parts of a cluster; single files.

mod support;

use serde_json::Value;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use support::checker::Checker;
use support::cluster::{Cluster, Stop};
use support::command::{command, must};
use support::fixture::Fixture;
use support::layout::{Layout, one_dataset, two_pools_four_datasets};
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
    let ours = tree_of(folder);
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
