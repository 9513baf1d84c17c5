//! A whole set, compared file by file with the snapshots; over an older restore; interrupted; and where folders are
//! sent elsewhere.

use super::{FILES, Prepared, SCALE, folder_of, prepare, text};
use crate::support::checker::Checker;
use crate::support::cluster::{Cluster, Stop};
use crate::support::command::{command, must};
use crate::support::faults::assert_said;
use crate::support::fixture::Fixture;
use crate::support::layout::{one_dataset, one_pool, two_pools_four_datasets};
use crate::support::ledger::Ledger;
use crate::support::load::{Load, Plan};
use crate::support::lockstep::{LIMIT, Set, Steps, exit};
use crate::support::shipping::{objects, packs};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

/// Makes files of every kind that PostgreSQL doesn't have, next to its own.
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
        let expected = ledger.expected(set.floor_lsn);
        sets.push((set, expected));
    }
    load.stop();
    writers.stop();
    for (set, expected) in [&sets[1], &sets[2]] {
        let to = fixture.target(&set.id);
        let port = crate::support::fixture::free_port().to_string();
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
    let holes = fs::metadata(to.join("volumes/data/odd/holes")).expect("the file with holes");
    assert!(holes.blocks() * 512 < 1 << 20, "{} blocks for {} bytes", holes.blocks(), holes.len());
}

/// Stops the cluster with data in it, takes a set, and changes it: rows, removed files, new files.
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
    // Back in time and forward again; each is compared before the label and pg_control are written.
    let mut written = Vec::new();
    for set in [&second, &first, &second] {
        let json = prepared.restore_and_look(set, &to, &["--delta"], || {
            prepared.assert_same(set, &to);
        });
        written.push(json["bytes_written"].as_u64().expect("a number"));
    }
    // The first run only has to undo what the restore itself had changed: the label, pg_control, settings.
    assert!(written[0] < 100 << 10, "{written:?}, all of it is {whole}");
    assert!(written[1] < whole / 4 && written[2] < whole / 4, "{written:?} of {whole}");

    // Whatever is done to it, it is restored.
    let data = folder_of(&to, "data");
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
    // Links that lead outside: nothing at their targets may be touched.
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
    // Rights that the set doesn't give: to a file, to all that is made in a folder, and to it.
    let attributes = [
        ("pg/PG_VERSION-list", "system.posix_acl_access"),
        ("pg/global/1262", "system.posix_acl_access"),
        ("pg/global", "system.posix_acl_access"),
        ("pg/global", "system.posix_acl_default"),
        ("pg", "system.posix_acl_default"),
        ("pg/global/1262", "user.theirs"),
        ("pg/global/1262", "trusted.theirs"),
    ];
    fs::write(data.join("pg/PG_VERSION-list"), b"15").expect("it can be written");
    for (path, name) in attributes {
        let value = if name.starts_with("system.") { access_list() } else { b"x".to_vec() };
        rustix::fs::setxattr(data.join(path), name, &value, rustix::fs::XattrFlags::empty())
            .unwrap_or_else(|error| panic!("{path}: {name}: {error}"));
    }
    let (link, none) = (odd.join("long-link"), rustix::fs::XattrFlags::empty());
    rustix::fs::lsetxattr(&link, "trusted.theirs", b"x", none).expect("a link has some, too");
    let json = prepared.restore_and_look(&second, &to, &["--delta"], || {
        prepared.assert_same(&second, &to);
        let with_more = with_attributes(&to);
        assert!(with_more.is_empty(), "{with_more:?}");
    });
    assert!(json["removed"].as_u64().is_some_and(|removed| removed >= 8), "{json}");
    let left: Vec<_> = fs::read_dir(&outside).expect("it is there").flatten().collect();
    assert_eq!(left.len(), 1, "{left:?}");
    assert_eq!(fs::read(outside.join("kept")).expect("it is there"), b"kept");

    // If one of Lockstep's own folders is a link, that is refused, and so is one in which a server runs.
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

/// An access control list that lets user 65533 read (linux/posix_acl_xattr.h).
fn access_list() -> Vec<u8> {
    const NOBODY: u32 = u32::MAX;
    let entries: [(u16, u16, u32); 5] =
        [(1, 6, NOBODY), (2, 4, 65533), (4, 4, NOBODY), (0x10, 4, NOBODY), (0x20, 0, NOBODY)];
    let mut bytes = 2u32.to_le_bytes().to_vec();
    for (tag, rights, id) in entries {
        bytes.extend(tag.to_le_bytes().into_iter().chain(rights.to_le_bytes()));
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

/// Everything in a folder that has extended attributes, with their names.
fn with_attributes(folder: &Path) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut waiting = vec![folder.to_owned()];
    while let Some(path) = waiting.pop() {
        let mut names = [0; 4096];
        let length = rustix::fs::llistxattr(&path, &mut names[..]).expect("they can be listed");
        let names = String::from_utf8_lossy(&names[..length]).into_owned();
        if path.symlink_metadata().expect("it is there").is_dir() {
            waiting.extend(fs::read_dir(&path).expect("a folder").flatten().map(|it| it.path()));
        }
        if !names.is_empty() {
            found.push((path, names));
        }
    }
    found
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
fn a_full_disk_is_said_and_what_came_is_gone_on_with() {
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
    // A warning at the beginning, because a file system may compress; if it doesn't, an error at the end.
    for words in [
        "are written: it may not fit",
        "cannot write",
        "No space left on device",
        "hint: make room there",
    ] {
        assert!(failed.stderr.contains(words), "{words}: {}", failed.describe());
    }
    // With more room it continues.
    assert_said(&failed, &["What was received stays", "--delta continues with it", "`rm -r "]);
    assert!(!folder_of(&to, "data").join("pg/global/pg_control").exists());
    must(&mut command("mount", ["-o", "remount,size=1g", text(&small)]));
    let again = prepared.lockstep.expect(exit::REFUSED, &arguments);
    assert_said(&again, &["an unfinished restore of set", "hint: continue it", "--delta"]);
    let delta: Vec<&str> = arguments.iter().copied().chain(["--delta"]).collect();
    prepared.lockstep.expect(exit::DONE, &delta);
    must(&mut command("umount", [text(&small)]));
}

/// After `initdb --allow-group-access`, the group reads pg_wal too, though no repository has its dataset.
#[test]
fn the_group_may_enter_pg_wal() {
    let prepared = prepare(one_pool());
    let fixture = &prepared.fixture;
    fixture.cluster.stop(Stop::Fast);
    for name in ["data", "wal"] {
        fs::set_permissions(fixture.mnt().join(name), fs::Permissions::from_mode(0o750))
            .expect("it is ours");
    }
    fixture.cluster.start();
    let set = prepared.lockstep.backup("label");
    let parent = format!("{}/back", fixture.pools[0].name);
    let zfs = ["--from", "repository", "--as", "zfs", "--dataset", &parent];
    for (form, more) in [("files", &FILES[..]), ("zfs", &zfs)] {
        let to = fixture.target(form);
        prepared.lockstep.restore(&set.id, &to, more);
        for name in ["data", "wal"] {
            let mode = fs::metadata(to.join(name)).expect("it was restored").permissions().mode();
            assert_eq!(mode & 0o7777, 0o750, "{form}: {name}");
        }
    }
}

/// What is made in a folder inherits its default access control list. The set has none.
#[test]
fn nobody_gets_rights_from_the_folder_that_it_is_restored_to() {
    let prepared = prepare(one_pool());
    let set = prepared.lockstep.backup("label");
    let to = prepared.fixture.target("files");
    fs::create_dir(&to).expect("a folder can be made");
    fs::set_permissions(&to, fs::Permissions::from_mode(0o755)).expect("it is ours");
    let (name, none) = ("system.posix_acl_default", rustix::fs::XattrFlags::empty());
    rustix::fs::setxattr(&to, name, &access_list(), none).expect("it takes a list");
    prepared.lockstep.restore(&set.id, &to, &FILES);
    for part in ["data", "wal"] {
        let with_more = with_attributes(&folder_of(&to, part));
        assert!(with_more.is_empty(), "{part}: {with_more:?}");
    }
}

/// Somebody keeps a copy of hard links (`cp -al`). Whichever name of pg_control comes first, its own is given last.
#[test]
fn pg_control_may_have_another_name() {
    let prepared = prepare(two_pools_four_datasets());
    let data = prepared.fixture.mnt().join("data");
    let control = Path::new("pg/global/pg_control");
    for other in ["copy", "pg/global/z"] {
        fs::hard_link(data.join(control), data.join(other)).expect("a link can be made");
        let set = prepared.lockstep.backup("label");
        fs::remove_file(data.join(other)).expect("it can be removed");
        let to = prepared.fixture.target(&set.id);
        let whole: &[&str] = &[];
        for more in [whole, &["--delta"]] {
            prepared.restore_and_look(&set, &to, more, || {
                let there = folder_of(&to, "data");
                assert!(!there.join(control).exists(), "{other}: a server would start");
                let held = fs::read(there.join(control).with_extension("lockstep"));
                let copy = fs::read(there.join(other));
                assert_eq!(held.expect("it is held"), copy.expect("it is there"), "{other}");
            });
            assert!(folder_of(&to, "data").join(control).exists(), "{other}");
        }
    }
}

/// Somebody has copied an unfinished restore's pg_control to its place, and the copy is still there.
#[test]
fn a_pg_control_of_an_older_restore_is_not_taken_for_the_set_s() {
    let prepared = prepare(two_pools_four_datasets());
    let global = prepared.fixture.mnt().join("data/pg/global");
    fs::write(global.join("pg_control.lockstep"), [7_u8; 8192]).expect("it can be written");
    let set = prepared.lockstep.backup("label");
    let to = prepared.fixture.target("files");
    for more in [vec![], vec!["--delta"]] {
        let json = prepared.restore_and_look(&set, &to, &more, || {
            let held = folder_of(&to, "data").join("pg/global/pg_control.lockstep");
            assert_ne!(fs::read(held).expect("it is held"), [7_u8; 8192], "{more:?}");
        });
        assert!(json["files"].as_u64().is_some_and(|files| files > 900), "{json}");
    }
}

/// Hours of a restore aren't lost: killed or hung up, what was received stays for `--delta`, whatever command comes
/// next. If nothing was received, nothing stays.
#[test]
fn a_restore_that_was_cut_off_is_gone_on_with() {
    let prepared = prepare(two_pools_four_datasets());
    let Prepared { fixture, lockstep } = &prepared;
    let set = lockstep.backup("label");
    let empty = fixture.root().join("for the tablespace");
    fs::create_dir(&empty).expect("a folder can be made");
    let elsewhere = format!("ts2={}", empty.display());
    let journals = || {
        let all = fs::read_dir(fixture.state.join("clusters/main/restores")).expect("it is there");
        all.flatten().filter(|it| it.path().extension().is_some_and(|end| end == "json")).count()
    };
    for (step, comes) in [
        ("restore.fetched", false),
        ("restore.files-made", true),
        ("restore.files-read", true),
        ("restore.received-2", true),
        ("restore.files", true),
        ("restore.prepared", true),
        ("restore.settings", true),
        ("restore.control", true),
    ] {
        let to = fixture.target(step);
        let steps = Steps::new(fixture.root().join("steps"));
        steps.hold(step);
        let arguments: Vec<&str> =
            ["restore", &set.id, "--to", text(&to), "--tablespace", &elsewhere]
                .into_iter()
                .chain(FILES)
                .collect();
        let mut running = lockstep.clone().with_steps(&steps).spawn(&arguments);
        steps.wait_reached(step, &mut running);
        let data = folder_of(&to, "data").join("pg");
        let control = data.join("global/pg_control");
        let is_last = step == "restore.control";
        assert_eq!(control.exists(), is_last, "pg_control comes last, at {step}");
        running.kill();
        // Until it has ended, it holds its lock.
        assert_eq!(running.wait(LIMIT).signal, Some(9), "{step}");
        if comes {
            let checked = lockstep.run(&["check"]).stdout;
            let words = match is_last {
                true => "its pg_control is in place",
                false => "the same command with --delta continues",
            };
            assert!(checked.contains(words), "{step}: {checked}");
        }
        // Any restore cleans up first.
        let next = lockstep.expect(exit::USAGE, &["restore", "no-such-set", "--to", text(&to)]);
        assert_eq!(journals(), 0, "{step}: {}", next.describe());
        if !comes {
            assert!(!to.exists(), "{step}: {} is left", to.display());
            let left: Vec<_> = fs::read_dir(&empty).expect("it stays").flatten().collect();
            assert!(left.is_empty(), "{step}: {left:?}");
            continue;
        }
        assert_said(&next, &["a restore was cut off", "--delta continues with it"]);
        let delta: Vec<&str> = arguments.iter().copied().chain(["--delta"]).collect();
        let planned = [&delta[..], &["--dry-run"]].concat();
        assert!(!control.exists(), "{step}: a server would start");
        let refused = lockstep.expect(exit::REFUSED, &arguments);
        assert_said(&refused, &["an unfinished restore of set", "--delta"]);
        let planned = lockstep.expect(exit::DONE, &planned);
        let words = format!("would go on with what an unfinished restore of set {} has", set.id);
        assert!(planned.stdout.contains(&words), "{step}: {}", planned.describe());
        // Hung up because the connection is lost, with a backup in between.
        let hung_up =
            if step == "restore.files-read" { "restore.files" } else { "restore.files-read" };
        let steps = Steps::new(fixture.root().join("steps again"));
        steps.hold(hung_up);
        let mut running = lockstep.clone().with_steps(&steps).spawn(&delta);
        steps.wait_reached(hung_up, &mut running);
        running.signal(rustix::process::Signal::HUP);
        let outcome = running.wait(LIMIT);
        assert_eq!(outcome.code, Some(exit::INTERRUPTED), "{step}: {}", outcome.describe());
        assert_said(&outcome, &["What was received stays", "--delta continues with it"]);
        assert_eq!(journals(), 0, "{step}: {}", outcome.describe());
        if step == "restore.prepared" {
            lockstep.expect(exit::DONE, &["backup", "--no-ship"]);
        }
        let json = lockstep.json(&delta);
        let written = json["bytes_written"].as_u64().expect("a number");
        let is_all_there =
            !["restore.files-made", "restore.files-read", "restore.received-2"].contains(&step);
        assert!(!is_all_there || written < 1 << 20, "{step}: {json}");
        assert!(control.exists(), "{step}: {json}");
        fs::remove_dir_all(&to).expect("it can be removed");
        for name in fs::read_dir(&empty).expect("it is there").flatten() {
            fs::remove_dir_all(name.path()).expect("it can be removed");
        }
    }
}

/// A tablespace that is a folder of its dataset, as most are, is put where it was sent: it is meant to be on that
/// disk.
#[test]
fn a_folder_of_a_dataset_goes_where_it_is_sent() {
    let prepared = prepare(one_dataset());
    let Prepared { fixture, lockstep } = &prepared;
    let set = lockstep.backup("label").id;
    // One folder made beforehand, as somebody does who may not make folders there; and one that doesn't exist.
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
            assert!(!to.join("volumes/data").join(name).exists(), "{name} is in DIR as well");
        }
    };
    let restored = lockstep.restore_and_start(&set, &to, &more);
    assert_there();
    Checker::new(SCALE).check_and_stop(restored.server()).assert_right("sent elsewhere");
    // It is brought to a later set's state there.
    fixture.cluster.execute(&["UPDATE pgbench_accounts SET filler = 'x' WHERE aid < 1000"]);
    let later = lockstep.backup("label").id;
    fs::write(there.join("PG_junk"), "of nobody").expect("it can be written");
    more.push("--delta");
    let restored = lockstep.restore_and_start(&later, &to, &more);
    assert!(!there.join("PG_junk").exists(), "what the set doesn't have goes");
    assert_there();
    Checker::new(SCALE).check_and_stop(restored.server()).assert_right("brought up to date");

    // A dataset is restored as a whole, so the folder would have to become a link. That is reported first, and the
    // folder stays.
    let parent = format!("{}/back", fixture.pools[0].name);
    let other = fixture.owned("other");
    let place = format!("ts1={}", other.display());
    let to = fixture.target("zfs");
    let zfs = ["--from", "repository", "--as", "zfs", "--dataset", &parent, "--tablespace", &place];
    let arguments: Vec<&str> =
        ["restore", &later, "--to", text(&to)].into_iter().chain(zfs).collect();
    let refused = lockstep.expect(exit::USAGE, &arguments);
    assert_said(&refused, &["has to make it a link", "hint: rmdir"]);
    assert!(other.is_dir() && !to.exists());
    fs::remove_dir(&other).expect("it is empty");
    lockstep.restore(&later, &to, &zfs);
    assert!(other.is_symlink());
    let again = [&zfs[..], &["--delta"]].concat();
    let restored = lockstep.restore_and_start(&later, &to, &again);
    Checker::new(SCALE).check_and_stop(restored.server()).assert_right("over a link");
    // Not mounted, as a killed restore leaves it, the link leads nowhere but still belongs to the restore.
    let volume = to.join("volumes/data");
    must(&mut command("zfs", ["unmount", text(&volume)]));
    assert!(other.is_symlink() && !other.exists());
    lockstep.restore(&later, &to, &again);
    assert!(other.exists());
}

/// Restores the second set over the first, finished restore while these objects are away: that one stays as it is.
#[track_caller]
fn assert_left_as_it_was(lost: impl Fn(&Fixture) -> Vec<PathBuf>, says: &[&str]) {
    let prepared = prepare(two_pools_four_datasets());
    let (first, second) = two_sets(&prepared);
    let lockstep = &prepared.lockstep;
    let to = prepared.fixture.target("older");
    lockstep.restore(&first.id, &to, &FILES);
    let marker = fs::read(to.join(".lockstep-restore")).expect("it is there");
    let lost = lost(&prepared.fixture);
    assert!(!lost.is_empty(), "there are no such objects");
    let away = |path: &Path| PathBuf::from(format!("{}.away", text(path)));
    for path in &lost {
        fs::rename(path, away(path)).expect("it can be renamed");
    }
    let arguments = ["restore", &second.id, "--to", text(&to), "--delta"];
    let arguments: Vec<&str> = arguments.into_iter().chain(FILES).collect();
    let outcome = lockstep.run(&arguments);
    assert_eq!(outcome.code, Some(exit::FAILED), "{}", outcome.describe());
    assert_said(&outcome, says);
    assert!(to.join("data/global/pg_control").exists(), "pg_control is gone");
    assert_eq!(fs::read(to.join(".lockstep-restore")).expect("it is there"), marker);
    for path in &lost {
        fs::rename(away(path), path).expect("it can be renamed");
    }
    lockstep.restore(&second.id, &to, &[&FILES[..], &["--delta"]].concat());
}

#[test]
fn a_harmed_set_is_not_restored_over_a_finished_restore() {
    let lost = |fixture: &Fixture| packs(fixture).into_keys().collect();
    assert_left_as_it_was(lost, &["isn't whole in repository", "was not changed"]);
}

/// If the set's names can't be read, the marker still says which set is there.
#[test]
fn an_older_restore_that_was_not_changed_keeps_its_marker() {
    let lost = |fixture: &Fixture| {
        let mut all: Vec<PathBuf> = objects(fixture).into_keys().collect();
        // Not those of the sets' own files, which are read before.
        all.retain(|path| text(path).contains(".objects.") && !text(path).contains("files/"));
        all
    };
    assert_left_as_it_was(lost, &["error: "]);
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
    // The set's own files are in packs too, and are read separately.
    assert!(read <= stored && read > stored / 2, "{read} bytes read of {stored} stored");
    let server = Cluster { data: to.join("data"), ..prepared.fixture.cluster.clone() };
    assert!(!server.is_running(), "nothing was to be started");
}
