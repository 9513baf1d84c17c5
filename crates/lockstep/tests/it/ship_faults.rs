//! What can go wrong on a set's way into a repository and back: killed at any point, a bad page, a repository that
//! can't be reached, a file whose content was left out and is needed later.

use crate::support::checker::Checker;
use crate::support::cluster::Stop;
use crate::support::command::must;
use crate::support::commands::CommandLog;
use crate::support::fixture::{Fixture, assert_clean};
use crate::support::layout::{one_pool, two_pools_four_datasets};
use crate::support::lockstep::{LIMIT, Set, Steps, exit, json_of};
use crate::support::shipping::{
    NAME, assert_received, discard, folder, packs, with_options, with_repository,
};
use std::fs;
use std::os::unix::fs::FileExt;

const SCALE: u32 = 3;

fn dataset<'a>(fixture: &'a Fixture, mount: &str) -> &'a str {
    let place = fixture.layout.datasets.iter().position(|dataset| dataset.mount == mount);
    &fixture.datasets[place.unwrap_or_else(|| panic!("nothing is mounted at {mount:?}"))]
}

fn zfs(arguments: &[&str]) -> String {
    must(&mut crate::support::command::command("zfs", arguments))
}

/// Tags of pages save reads. Tags that are lost, outdated, damaged or disabled cost reads, and nothing else.
#[test]
fn tags_that_are_lost_or_of_another_time_are_not_believed() {
    let fixture = Fixture::new(two_pools_four_datasets());
    for mount in ["data", "ts1", "ts2"] {
        zfs(&["set", "recordsize=128K", dataset(&fixture, mount)]);
    }
    fixture.pgbench_tables(SCALE);
    let plain = with_repository(&fixture);
    let log = CommandLog::new(&fixture);
    let lockstep = log.watching(&plain);
    let tags = fixture.state.join("clusters/main/tags").join(NAME);
    let aside = fixture.root().join("aside");
    let copy = |from: &std::path::Path, to: &std::path::Path| {
        let _ = fs::remove_dir_all(to);
        fs::create_dir(to).expect("it isn't there");
        for entry in fs::read_dir(from).expect("tags are kept").flatten() {
            fs::copy(entry.path(), to.join(entry.file_name())).expect("it can be copied");
        }
    };
    let files = || {
        let mut found: Vec<_> =
            fs::read_dir(&tags).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
        found.sort();
        found
    };
    let hides_snapshots = !folder_of_snapshots(&fixture).exists();
    let configuration = fixture.root().join("shipping.toml");
    let text = fs::read_to_string(&configuration).expect("the configuration");
    let mut sets = Vec::new();
    // What is done to the tags, and whether they can be used afterwards.
    for (n, (state, is_usable)) in [
        ("of nothing before", true),
        ("as they should be", true),
        ("of the time before", false),
        ("partly known", false),
        ("not to be written", false),
        ("lost", false),
        ("damaged", false),
        ("not wanted", false),
        ("wanted again", false),
    ]
    .into_iter()
    .enumerate()
    {
        fixture.cluster.execute(&[
            // Some pages of every record; some that were changed before, some that weren't.
            &format!("UPDATE pgbench_accounts SET filler = '{state}' WHERE aid % 997 IN ({n}, {n} + 1)"),
            &format!("CREATE TABLE made_{n} TABLESPACE ts1 AS SELECT n, repeat('x', 500) FROM generate_series(1, 3000) n"),
            "DELETE FROM pgbench_accounts WHERE aid > (SELECT max(aid) - 3000 FROM pgbench_accounts)",
            "VACUUM pgbench_accounts",
            "CHECKPOINT",
        ]);
        match state {
            "as they should be" => copy(&tags, &aside),
            "of the time before" => copy(&aside, &tags),
            "not to be written" => {
                fs::remove_dir_all(&tags).expect("they are there");
                fs::write(&tags, "in the way").expect("writable");
            }
            "lost" => fs::remove_file(&tags).expect("it is there"),
            "damaged" => files().iter().for_each(|path| {
                let file = fs::OpenOptions::new().write(true).open(path).expect("it is there");
                file.write_at(&[0xa5; 4096], 0).expect("it can be written");
            }),
            "not wanted" => {
                fs::write(&configuration, format!("{text}page_hashes = false\n")).expect("writable")
            }
            "wanted again" => fs::write(&configuration, &text).expect("writable"),
            _ => {}
        }
        log.take();
        let set = lockstep.backup("label");
        assert_eq!(set.json["repositories"][0]["complete"], true, "{state}: {}", set.json);
        let clones = log.take().iter().filter(|line| line.starts_with("zfs clone")).count();
        if hides_snapshots {
            // One more clone for each previous snapshot that must be read.
            let expected = if is_usable { 4 } else { 7 };
            assert_eq!(clones, expected, "{state}");
        } else {
            assert_eq!(clones, 0, "{state}");
        }
        let without = ["not to be written", "not wanted"].contains(&state);
        assert_eq!(files().len(), if without { 0 } else { 3 }, "{state}");
        if n > 0 {
            let (sent, stored) = bytes_of(&set);
            assert!(stored * 2 < sent, "{state}: {sent} bytes sent, {stored} stored");
        }
        sets.push((state, set));
    }
    for (state, set) in &sets {
        let parent = format!("{}/back", fixture.pools[0].name);
        let target = fixture.target("back");
        let more = ["--from", "repository", "--as", "zfs", "--dataset", &parent];
        let restored = plain.restore_and_start(&set.id, &target, &more);
        assert_received(&fixture, set, &parent);
        restored.server().execute(&["SELECT count(*) FROM pgbench_accounts"]);
        println!("{state}: as it was");
        discard(&fixture, &target, &parent);
    }
}

/// Where OpenZFS shows a dataset's snapshots.
fn folder_of_snapshots(fixture: &Fixture) -> std::path::PathBuf {
    fixture.cluster.data.join(".zfs/snapshot")
}

/// The bytes sent and the bytes stored, for all volumes.
fn bytes_of(set: &Set) -> (u64, u64) {
    let volumes = set.json["repositories"][0]["volumes"].as_array().expect("volumes");
    let sum = |key: &str| volumes.iter().filter_map(|volume| volume[key].as_u64()).sum();
    (sum("stream_bytes"), sum("stored_bytes"))
}

/// The file of a table in ts1.
fn file_of(fixture: &Fixture, table: &str) -> std::path::PathBuf {
    let path =
        fixture.cluster.value("postgres", &format!("SELECT pg_relation_filepath('{table}')"));
    fixture.cluster.data.join(path)
}

#[test]
fn killed_at_every_step_and_nothing_is_lost() {
    let fixture = Fixture::new(two_pools_four_datasets());
    // One volume whose pages have tags.
    zfs(&["set", "recordsize=128K", dataset(&fixture, "ts1")]);
    fixture.pgbench_tables(1);
    let lockstep = with_repository(&fixture);
    let steps = Steps::new(fixture.root().join("steps"));
    let hooked = lockstep.clone().with_steps(&steps);
    let mut last = lockstep.backup("label");
    for step in [
        "ship.leased",
        "ship.views",
        "ship.progress",
        "ship.stream",
        "ship.replacing",
        "ship.delta",
        "ship.stored",
        "ship.publishing",
        "ship.published",
    ] {
        fixture.cluster.execute(&["UPDATE pgbench_accounts SET filler = 'again'"]);
        steps.hold(step);
        let mut program = hooked.spawn(&["--json", "backup", "--strategy", "label"]);
        steps.wait_reached(step, &mut program);
        program.kill();
        // Its locks end with the process, not with the signal.
        program.wait(LIMIT);
        steps.release(step);
        let before = packs(&fixture).len();
        let id =
            lockstep.sets().pop().expect("the set is there: it was complete before it was shipped");
        assert_ne!(id, last.id, "{step}");
        // Earlier sets can be restored, whatever this one left.
        let listed = lockstep.json(&["list", "--from", "repository"]);
        let there: Vec<_> =
            listed["sets"].as_array().expect("sets").iter().map(|set| set["set"].clone()).collect();
        assert!(there.contains(&last.id.clone().into()), "{step}: {listed}");
        let shipped = lockstep.json(&["ship", &id]);
        assert_eq!(shipped["repositories"][0]["complete"], true, "{step}: {shipped}");
        if step == "ship.stored" {
            assert_eq!(
                packs(&fixture).len(),
                before + 1,
                "only the set's own files are stored again"
            );
        }
        let set = lockstep.json(&["list"])["sets"].as_array().expect("sets").last().cloned();
        last = Set::of(&set.expect("a set"));
        assert_clean(&fixture);
        let left =
            fs::read_dir(fixture.state.join("clusters/main/shipping")).map_or(0, Iterator::count);
        assert_eq!(left, 0, "{step}: a journal is left");
    }
    // Killed restores leave what they had received, and no server starts on it; otherwise they leave nothing.
    let parent = format!("{}/back", fixture.pools[0].name);
    let target = fixture.target("back");
    let to = target.to_str().expect("the harness' own paths are UTF-8");
    let arguments = [
        "restore",
        &last.id,
        "--to",
        to,
        "--from",
        "repository",
        "--as",
        "zfs",
        "--dataset",
        &parent,
    ];
    for step in [
        "restore.journal",
        "restore.fetched",
        "restore.receiving-1",
        "restore.received-2",
        "restore.prepared",
    ] {
        steps.hold(step);
        let mut program = hooked.spawn(&arguments);
        steps.wait_reached(step, &mut program);
        program.kill();
        // Its locks end with the process, not with the signal.
        program.wait(LIMIT);
        steps.release(step);
        // The next command removes what is left, or puts in order what stays.
        lockstep.json(&["ship", &last.id]);
        let left = zfs(&["list", "-H", "-o", "name"]);
        let stays = left.contains("/back");
        match step {
            "restore.prepared" => assert!(stays, "{step}: {left}"),
            // Whether a volume other than pg_wal's is complete by then depends on timing.
            "restore.received-2" => {}
            _ => assert!(!stays, "{step}: {left}"),
        }
        assert_eq!(target.exists(), stays, "{step}: {to}");
        if stays {
            assert!(!left.contains("receiving"), "{step}: {left}");
            assert!(
                !target.join("data/global/pg_control").exists(),
                "{step}: a server would start"
            );
            discard(&fixture, &target, &parent);
        }
        let staging =
            fs::read_dir(fixture.state.join("clusters/main/staging")).map_or(0, Iterator::count);
        assert_eq!(staging, 0, "{step}: files are left");
    }
    let more = ["--from", "repository", "--as", "zfs", "--dataset", &parent];
    let restored = lockstep.restore_and_start(&last.id, &target, &more);
    assert_received(&fixture, &last, &parent);
    Checker::new(1).check_and_stop(restored.server()).assert_right("after all that");
    discard(&fixture, &target, &parent);
}

/// If nobody reads on, `zfs send` complains about a broken pipe: that isn't the reason to report.
#[test]
fn a_repository_that_is_full_is_said_to_be_and_not_a_pipe_that_broke() {
    let fixture = Fixture::new(two_pools_four_datasets());
    let row = "(SELECT string_agg(md5(n::text || i), '') FROM generate_series(1, 60) i)";
    fixture.cluster.execute(&[
        &format!("CREATE TABLE large TABLESPACE ts1 AS SELECT n, {row} AS t FROM generate_series(1, 40000) n"),
        "CHECKPOINT",
    ]);
    let small = folder(&fixture);
    fs::create_dir_all(&small).expect("the test may write there");
    let on = small.as_os_str();
    let options: [&std::ffi::OsStr; 5] =
        ["-t".as_ref(), "tmpfs".as_ref(), "-o".as_ref(), "size=36m".as_ref(), "small".as_ref()];
    must(crate::support::command::command("mount", options).arg(on));
    let lockstep = with_repository(&fixture);
    let outcome = lockstep.run(&["--json", "backup"]);
    must(&mut crate::support::command::command("umount", [on]));
    assert_eq!(outcome.code, Some(exit::PROBLEMS), "{}", outcome.describe());
    let error = json_of(&outcome)["repositories"][0]["error"].to_string();
    assert!(!error.contains("roken pipe"), "{error}");
    assert!(error.contains("No space left"), "{error}");
}

#[test]
fn a_bad_page_is_named_and_the_set_is_kept() {
    let fixture = Fixture::new(two_pools_four_datasets());
    fixture.pgbench_tables(SCALE);
    let lockstep = with_repository(&fixture);
    let path = file_of(&fixture, "pgbench_branches");
    fixture.cluster.stop(Stop::Fast);
    let file = fs::OpenOptions::new().write(true).open(&path).expect("the table's file");
    file.write_all_at(b"rot", 4000).expect("it can be damaged");
    drop(file);
    fixture.cluster.start();
    let outcome = lockstep.expect(exit::PROBLEMS, &["--json", "backup", "--strategy", "label"]);
    let said = json_of(&outcome);
    let there = &said["repositories"][0];
    assert_eq!((&there["complete"], &there["bad_pages"]), (&true.into(), &1.into()), "{there}");
    let pages = there["volumes"].as_array().expect("volumes").iter();
    let bad: Vec<_> = pages
        .flat_map(|volume| volume["pages"]["bad_pages"].as_array().cloned())
        .flatten()
        .collect();
    let name = path.file_name().and_then(|name| name.to_str()).expect("a number");
    assert!(
        bad.len() == 1 && bad[0][0].as_str().is_some_and(|path| path.ends_with(name)),
        "{bad:?}"
    );
    assert_eq!(bad[0][1], 0, "the block's number: {bad:?}");
    // In the text output too.
    let text =
        lockstep.expect(exit::PROBLEMS, &["ship", said["set"].as_str().expect("an id")]).stdout;
    assert!(text.contains("DAMAGED PAGES") && text.contains(&format!("{name} block 0")), "{text}");
    // And later, by the command that `check` names.
    let checked = lockstep.expect(exit::PROBLEMS, &["check"]).stdout;
    let id = said["set"].as_str().expect("an id");
    let from = format!("repository:{}", crate::support::shipping::NAME);
    assert!(checked.contains(&format!(" show {id} --from {from}`")), "{checked}");
    let shown = lockstep.expect(exit::DONE, &["show", id, "--from", &from]).stdout;
    assert!(
        shown.contains("DAMAGED PAGES") && shown.contains(&format!("{name} block 0")),
        "{shown}"
    );
}

/// Garbage in place of a page's LSN isn't WAL that recovery will replay, and a page without a checksum can't be from
/// a cluster that has them.
#[test]
fn bad_pages_of_an_atomic_set_are_not_excused() {
    let fixture = Fixture::new(one_pool());
    fixture.pgbench_tables(SCALE);
    let lockstep = with_repository(&fixture);
    let path = file_of(&fixture, "pgbench_accounts");
    fixture.cluster.stop(Stop::Fast);
    let file = fs::OpenOptions::new().write(true).open(&path).expect("the table's file");
    file.write_all_at(&[0xa5; 8], 5 * 8192).expect("it can be damaged");
    file.write_all_at(&[0; 512], 7 * 8192).expect("it can be damaged");
    drop(file);
    fixture.cluster.start();
    let outcome = lockstep.expect(exit::PROBLEMS, &["--json", "backup", "--strategy", "atomic"]);
    let there = &json_of(&outcome)["repositories"][0];
    let pages = there["volumes"].as_array().expect("volumes").iter();
    let bad: Vec<_> = pages
        .flat_map(|volume| volume["pages"]["bad_pages"].as_array().cloned())
        .flatten()
        .map(|page| page[1].clone())
        .collect();
    assert_eq!((&there["bad_pages"], bad), (&2.into(), vec![5.into(), 7.into()]), "{there}");
}

#[test]
fn one_repository_that_fails_does_not_stop_the_other() {
    let fixture = Fixture::new(two_pools_four_datasets());
    fixture.pgbench_tables(1);
    let options = "\n[repositories.gone]\nurl = \"file:///proc/none\"\n";
    with_options(&fixture, options);
    let path = fixture.root().join("shipping.toml");
    let text = fs::read_to_string(&path).expect("the configuration");
    let both = format!("repositories = [\"gone\", \"{NAME}\"]");
    fs::write(&path, text.replace(&format!("repositories = [\"{NAME}\"]"), &both))
        .expect("writable");
    let lockstep = crate::support::lockstep::Lockstep::new(&path, &fixture.cluster.bin);
    let outcome = lockstep.expect(exit::PROBLEMS, &["--json", "backup"]);
    let said = json_of(&outcome);
    // The reason, once in the text output, with what to do.
    let told = outcome.stderr.matches("/proc/none").count();
    let why = "error: the set isn't in repository gone: ";
    assert!(told == 1 && outcome.stderr.contains(why), "{}", outcome.describe());
    let complete: Vec<_> = said["repositories"]
        .as_array()
        .expect("two")
        .iter()
        .map(|one| one["complete"].clone())
        .collect();
    assert_eq!(complete, [false, true], "{said}");
    // --no-ship doesn't contact the repositories.
    lockstep.json(&["backup", "--no-ship"]);
    assert_clean(&fixture);
}

#[test]
fn a_changed_record_costs_its_pages_and_a_restore_catches_up() {
    let fixture = Fixture::new(two_pools_four_datasets());
    for mount in ["data", "ts1", "ts2"] {
        zfs(&["set", "recordsize=128K", dataset(&fixture, mount)]);
    }
    fixture.pgbench_tables(SCALE);
    let lockstep = with_repository(&fixture);
    let first = lockstep.backup("label");
    let parent = format!("{}/standby", fixture.pools[0].name);
    let target = fixture.target("standby");
    let more = ["--from", "repository", "--as", "zfs", "--dataset", &parent];
    let restored = lockstep.restore_and_start(&first.id, &target, &more);
    restored.server().execute(&["CREATE TABLE junk AS SELECT generate_series(1, 1000)"]);
    restored.server().stop(Stop::Fast);

    fixture.cluster.execute(&[
        "CHECKPOINT",
        "UPDATE pgbench_accounts SET filler = 'x' WHERE aid IN (SELECT (random() * 290000)::int + 1 FROM generate_series(1, 40))",
        // Unlogged files are left out, and one that is logged from now on must be shipped in full.
        "CREATE UNLOGGED TABLE passing TABLESPACE ts1 AS SELECT generate_series(1, 20000) n",
        "CHECKPOINT",
    ]);
    let second = lockstep.backup("label");
    let of = |set: &Set, mount: &str| {
        let volumes = set.json["repositories"][0]["volumes"].as_array().expect("volumes").clone();
        let found =
            volumes.into_iter().find(|volume| volume["dataset"] == dataset(&fixture, mount));
        found.expect("it is among them")
    };
    let ts1 = of(&second, "ts1");
    let (sent, stored) = (
        ts1["stream_bytes"].as_u64().expect("a number"),
        ts1["stored_bytes"].as_u64().expect("a number"),
    );
    assert!(stored * 6 < sent, "{sent} bytes sent, {stored} stored: {ts1}");
    assert!(ts1["left_out"].to_string().contains("unlogged"), "{ts1}");
    fixture.cluster.execute(&[
        "ALTER TABLE passing SET LOGGED",
        "UPDATE passing SET n = n + 1 WHERE n % 7 = 0",
    ]);
    let third = lockstep.backup("ordered");

    // Each from where the one before it ended; what was written in between is gone.
    for set in [&second, &third] {
        let to = target.to_str().expect("the harness' own paths are UTF-8");
        // The folder is in use; only --delta may write there.
        lockstep.expect(
            exit::REFUSED,
            &[
                "restore",
                &set.id,
                "--to",
                to,
                "--from",
                "repository",
                "--as",
                "zfs",
                "--dataset",
                &parent,
            ],
        );
        let more = [&more[..], &["--delta"]].concat();
        let restored = lockstep.restore_and_start(&set.id, &target, &more);
        assert_received(&fixture, set, &parent);
        let server = restored.server();
        assert_eq!(server.value("postgres", "SELECT to_regclass('junk') IS NULL"), "t");
        let rows = if set.id == third.id { "20000" } else { "0" };
        assert_eq!(server.value("postgres", "SELECT count(*) FROM passing"), rows, "{}", set.id);
        Checker::new(SCALE).check_running(server).assert_right(&set.id);
        // The files of a running server aren't overwritten.
        let refused = lockstep.expect(
            exit::USAGE,
            &[
                "restore",
                &set.id,
                "--to",
                to,
                "--from",
                "repository",
                "--as",
                "zfs",
                "--dataset",
                &parent,
                "--delta",
            ],
        );
        assert!(refused.stderr.contains("a server runs"), "{}", refused.describe());
        server.stop(Stop::Fast);
    }
    // There is no increment back in time.
    let to = target.to_str().expect("the harness' own paths are UTF-8");
    let refused = lockstep.expect(
        exit::REFUSED,
        &[
            "restore",
            &first.id,
            "--to",
            to,
            "--from",
            "repository",
            "--as",
            "zfs",
            "--dataset",
            &parent,
            "--delta",
        ],
    );
    assert!(refused.stderr.contains("can't be brought to set"), "{}", refused.describe());
    assert!(folder(&fixture).exists());
    discard(&fixture, &target, &parent);
}
