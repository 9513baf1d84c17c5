//! The commands of docs/after-a-restore.md, run exactly as written: a lost host, restores that replace the original,
//! and restores that are removed.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support;
use crate::support::cluster::{Cluster, Stop};
use crate::support::command::{command, must, wait_until};
use crate::support::fixture::{Fixture, assert_clean};
use crate::support::layout::{Layout, Wal, two_pools_four_datasets};
use crate::support::lockstep::{LIMIT, Lockstep, Restored, Set, exit};
use crate::support::pools::path_with_turns;
use crate::support::shipping;

const PAGE: &str = include_str!("../../../../docs/after-a-restore.md");
const COUNT: &str = "SELECT count(*) FROM pgbench_accounts";

/// The page's shell block of this name.
fn block(name: &str) -> String {
    let fence = format!("```sh {name}");
    let lines = PAGE.lines().skip_while(|line| **line != fence).skip(1);
    let text: Vec<_> = lines.take_while(|line| *line != "```").collect();
    assert!(!text.is_empty(), "the page has no block {name}");
    text.join("\n")
}

/// The folder given as `--to`: `data` in it is a link.
fn folder(restored: &Restored) -> &str {
    restored.json["directory"].as_str().expect("a restore says where it is")
}

/// Removes a restore with the page's commands, and its set; nothing else is left.
fn remove(fixture: &Fixture, restored: &Restored, set: &Set) {
    run(fixture, restored, "", &["remove"]);
    fixture.discard_set(&set.id);
    assert_clean(fixture);
}

/// Runs blocks of the page, with this restore's values instead of those in the first block.
fn run(fixture: &Fixture, restored: &Restored, places: &str, names: &[&str]) {
    must(&mut shell(fixture, restored, places, names));
}

fn shell(fixture: &Fixture, restored: &Restored, places: &str, names: &[&str]) -> Command {
    let server = restored.server();
    let oids: Vec<_> = ["ts1", "ts2"]
        .map(|name| {
            let oid = format!("SELECT oid FROM pg_tablespace WHERE spcname = '{name}'");
            let oid = if server.is_running() { server.value("postgres", &oid) } else { "0".into() };
            format!("{oid}={}", fixture.tablespace(name).display())
        })
        .into();
    let values = [
        ("TO", folder(restored).to_owned()),
        ("PGDATA", fixture.cluster.data.display().to_string()),
        ("WAL", fixture.mnt().join("wal/pg_wal").display().to_string()),
        ("TABLESPACES", oids.join(" ")),
        ("PLACES", places.to_owned()),
        ("BIN", fixture.cluster.bin.display().to_string()),
        (
            "PSQL",
            format!(
                "{}/psql -h {} -p {} -U postgres -d postgres",
                fixture.cluster.bin.display(),
                server.socket.display(),
                server.port
            ),
        ),
    ];
    let mut script = "set -euo pipefail\n".to_owned();
    for line in block("setup").lines() {
        match values.iter().find(|(name, _)| line.starts_with(&format!("{name}="))) {
            Some((name, value)) => script.push_str(&format!("{name}='{value}'\n")),
            None => script.push_str(&format!("{line}\n")),
        }
    }
    names.iter().for_each(|name| script.push_str(&format!("{}\n", block(name))));
    let mut shell = command("bash", ["-c", &script]);
    shell.env("PATH", path_with_turns());
    shell
}

/// The settings that the page says to set again: the fixture sets them all with `ALTER SYSTEM`.
fn set_again(fixture: &Fixture, server: &Cluster) {
    let auto = std::fs::read_to_string(server.data.join("postgresql.auto.conf"));
    let auto = auto.expect("it is readable");
    let is_left = |line: &str| line.starts_with("recovery_") && !line.starts_with("recovery_init_");
    let has = |name: &str| auto.contains(name);
    assert!(!has("archive_mode") && !has("cron.") && !auto.lines().any(is_left), "{auto}");
    let port = format!("ALTER SYSTEM SET port = {}", fixture.cluster.port);
    server.execute(&[&port, "ALTER SYSTEM SET archive_mode = on"]);
}

/// Checks that it is now the original: it has its settings and paths, and can be backed up.
fn serves(fixture: &Fixture, lockstep: &Lockstep, rows: &str) -> Set {
    fixture.cluster.start();
    assert_eq!(fixture.cluster.value("postgres", COUNT), rows);
    for (setting, value) in
        [("restore_command", ""), ("external_pid_file", ""), ("recovery_target_action", "pause")]
    {
        assert_eq!(fixture.cluster.value("postgres", &format!("SHOW {setting}")), value);
    }
    // Its server had no archive when it was promoted; what it wrote then is left to the server that has one.
    let history = fixture.cluster.data.join("pg_wal/archive_status/00000002.history");
    let is_left =
        ["ready", "done"].iter().any(|to| history.with_extension(format!("history.{to}")).exists());
    assert!(is_left, "the new timeline's history isn't archived");
    for name in ["ts1", "ts2"] {
        let query = format!(
            "SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname = '{name}'"
        );
        let place = fixture.cluster.value("postgres", &query);
        assert_eq!(Path::new(&place), fixture.tablespace(name));
    }
    let set = lockstep.backup("label");
    archives(fixture);
    set
}

/// After the first backup, archiving continues into an archive that has the original's files and never gets the same
/// name twice; also once checkpoints remove the original's segments.
fn archives(fixture: &Fixture) {
    let failed = || fixture.cluster.value("postgres", "SELECT failed_count FROM pg_stat_archiver");
    for _ in 0..3 {
        let segment = fixture.cluster.value("postgres", "SELECT pg_walfile_name(pg_switch_wal())");
        wait_until(&format!("{segment} is archived, or archiving fails"), LIMIT, || {
            fixture.archive.join(&segment).exists() || failed() != "0"
        });
        let name = "SELECT last_failed_wal FROM pg_stat_archiver";
        assert_eq!(failed(), "0", "{}", fixture.cluster.value("postgres", name));
        fixture.cluster.execute(&["CHECKPOINT"]);
    }
}

/// The original's archive has the backup history file of its backup.
fn note_is_archived(fixture: &Fixture) {
    wait_until("the backup's note is archived", LIMIT, || {
        let names = std::fs::read_dir(&fixture.archive).expect("it can be listed");
        names.flatten().any(|name| name.file_name().to_string_lossy().ends_with(".backup"))
    });
}

fn zfs(arguments: &[&str]) -> String {
    must(command("zfs", arguments).env("PATH", path_with_turns()))
}

#[test]
fn a_host_that_is_gone_comes_back_in_its_place() {
    let fixture = Fixture::new(two_pools_four_datasets().archive());
    fixture.pgbench_tables(1);
    let rows = fixture.cluster.value("postgres", COUNT);
    shipping::with_repository(&fixture).backup("label");
    note_is_archived(&fixture);
    // Everything on the old host is gone or out of the way: its server, its datasets, its state.
    fixture.cluster.stop(Stop::Immediate);
    let away = "for n in $(seq 20); do zfs unmount \"$0\" && break; sleep 1; done; zfs set mountpoint=none \"$0\"";
    for dataset in &fixture.datasets {
        must(command("bash", ["-c", away, dataset]).env("PATH", path_with_turns()));
    }
    std::fs::remove_dir_all(&fixture.state).expect("the test may");

    let config = fixture.root().join("new.toml");
    let text = format!(
        "state_dir = \"{0}/new-state\"\n[clusters.main]\ndata_directory = \"{1}\"\nbin_dir = \"{2}\"\n\
         repositories = [\"{3}\"]\n[repositories.{3}]\nurl = \"file://{4}\"\n",
        fixture.root().display(),
        fixture.cluster.data.display(),
        fixture.cluster.bin.display(),
        shipping::NAME,
        shipping::folder(&fixture).display()
    );
    std::fs::write(&config, text).expect("the test may write there");
    let fresh = Lockstep::new(&config, &fixture.cluster.bin);
    fresh.expect(exit::DONE, &["list", "--from", "repository"]);
    let parent = format!("{}/main", fixture.pools[0].name);
    let more = ["--from", "repository", "--as", "zfs", "--dataset", &parent];
    let restored = fresh.restore_and_start("latest", &fixture.target("main"), &more);

    let oid = |name: &str| {
        let query = format!("SELECT oid FROM pg_tablespace WHERE spcname = '{name}'");
        restored.server().value("postgres", &query)
    };
    let mnt = fixture.mnt();
    let places = [
        (format!("{parent}/data"), mnt.join("data")),
        (format!("{parent}/wal"), mnt.join("wal")),
        (format!("{parent}/tablespace-{}", oid("ts1")), mnt.join("ts1")),
        (format!("{parent}/tablespace-{}", oid("ts2")), mnt.join("ts2")),
    ];
    let places: Vec<_> =
        places.iter().map(|(name, at)| format!("{name}={}", at.display())).collect();
    run(&fixture, &restored, &places.join(" "), &["reset"]);
    set_again(&fixture, restored.server());
    run(&fixture, &restored, &places.join(" "), &["stop", "datasets", "links"]);
    assert!(!Path::new(folder(&restored)).exists());

    let again = shipping::configured(
        &fixture,
        &[(shipping::NAME, format!("url = \"file://{}\"", shipping::folder(&fixture).display()))],
        "",
    );
    let set = serves(&fixture, &again, &rows);
    assert_eq!(set.json["repositories"][0]["complete"], true, "{}", set.json);
}

#[test]
fn clones_take_the_place_of_the_original_and_keep_its_sets() {
    let fixture = Fixture::new(two_pools_four_datasets().archive());
    fixture.pgbench_tables(1);
    let rows = fixture.cluster.value("postgres", COUNT);
    let lockstep = fixture.lockstep();
    let set = lockstep.backup("label");
    note_is_archived(&fixture);
    fixture.cluster.execute(&["TRUNCATE pgbench_accounts"]);
    let restored = lockstep.restore_and_start(&set.id, &fixture.target("main"), &[]);
    fixture.cluster.stop(Stop::Fast);
    run(&fixture, &restored, "", &["reset"]);
    set_again(&fixture, restored.server());
    run(&fixture, &restored, "", &["stop", "clones", "links"]);

    let next = serves(&fixture, &lockstep, &rows);
    // The set is still whole: it can be restored again.
    let to: PathBuf = fixture.target("again");
    let restored = lockstep.restore_and_start(&set.id, &to, &[]);
    assert_eq!(restored.server().value("postgres", COUNT), rows);
    run(&fixture, &restored, "", &["remove"]);
    let before: Vec<_> = fixture.datasets.iter().map(|name| format!("{name}-before")).collect();
    for dataset in &before {
        zfs(&["destroy", "-r", dataset]);
    }
    for set in [set, next] {
        fixture.discard_set(&set.id);
    }
    assert_clean(&fixture);
}

/// A tablespace's dataset is rarely busy, and was exchanged below the running server; the data directory's is.
#[test]
fn nothing_changes_places_while_the_original_runs() {
    let fixture = Fixture::new(two_pools_four_datasets());
    let lockstep = fixture.lockstep();
    let set = lockstep.backup("label");
    let restored = lockstep.restore_and_start(&set.id, &fixture.target("main"), &[]);
    let [a, b] = [0, 1].map(|at| fixture.pools[at].name.as_str());
    let names = || zfs(&["list", "-H", "-o", "name,origin,mountpoint", "-r", a, b]);
    let before = names();
    let outcome = support::command::run(&mut shell(&fixture, &restored, "", &["stop", "clones"]));
    assert!(!outcome.ok(), "{}", outcome.describe());
    assert!(outcome.stderr.contains("the original's server runs in "), "{}", outcome.describe());
    assert!(outcome.stderr.contains("(postgres) for good"), "{}", outcome.describe());
    assert!(fixture.cluster.is_running());
    assert_eq!(names(), before);
    remove(&fixture, &restored, &set);
}

/// A cold set that goes on along its timeline has the history's `.done`, and so has what archived while it recovered: an
/// archive_command that doesn't overwrite would fail for good. And after a crash, the number in the original's
/// postmaster.pid is another process's: nobody could stop that "server".
#[test]
fn a_history_in_the_archive_and_the_number_of_another_process_are_no_hindrance() {
    let fixture = Fixture::new(two_pools_four_datasets());
    let lockstep = fixture.lockstep();
    let set = lockstep.backup("label");
    let restored = lockstep.restore_and_start(&set.id, &fixture.target("main"), &[]);
    let status = restored.server().data.join("pg_wal/archive_status");
    let mark = |to: &str| status.join(format!("00000002.history.{to}"));
    std::fs::write(mark("done"), b"").expect("the test may");
    run(&fixture, &restored, "", &["reset"]);
    assert!(!mark("ready").exists(), "it would be archived again");
    std::fs::remove_file(mark("done")).expect("the test may");
    run(&fixture, &restored, "", &["reset"]);
    assert!(mark("ready").exists(), "it would never be archived");

    fixture.cluster.stop(Stop::Fast);
    let pid_file = fixture.cluster.data.join("postmaster.pid");
    std::fs::write(&pid_file, format!("{}\n", std::process::id())).expect("the test may");
    run(&fixture, &restored, "", &["stop"]);
    assert!(!restored.server().is_running());
    std::fs::remove_file(&pid_file).expect("it is there");
    remove(&fixture, &restored, &set);
}

/// With the data directory's dataset, those below it would be renamed, and the cluster would be in pieces; what was
/// live among them would be destroyed with `…-before`.
#[test]
fn clones_of_datasets_that_are_below_one_another_change_no_places() {
    let layout = Layout::new(&["a"], "data/pg", Wal::Linked("wal/pg_wal".to_owned()))
        .dataset(0, "data", "data")
        .dataset(0, "data/wal", "wal")
        .dataset(0, "data/ts1", "ts1")
        .dataset(0, "data/ts2", "ts2")
        .tablespace("ts1", "ts1")
        .tablespace("ts2", "ts2");
    let fixture = Fixture::new(layout);
    let lockstep = fixture.lockstep();
    let set = lockstep.backup("label");
    let restored = lockstep.restore_and_start(&set.id, &fixture.target("main"), &[]);
    fixture.cluster.stop(Stop::Fast);
    let pool = &fixture.pools[0].name;
    let names = || zfs(&["list", "-H", "-o", "name,origin,mountpoint", "-r", pool]);
    let before = names();
    let outcome = support::command::run(&mut shell(&fixture, &restored, "", &["stop", "clones"]));
    assert!(!outcome.ok(), "{}", outcome.describe());
    assert!(outcome.stderr.contains("and renamed with it: "), "{}", outcome.describe());
    assert_eq!(names(), before);
    remove(&fixture, &restored, &set);
}

/// A ZFS with encryption refuses to promote such a clone (dsl_dataset_promote_crypt_check in dsl_crypt.c), when those
/// before it have changed places already. If the original is a clone itself, it promotes it, and refuses to rename it
/// (dsl_dir_rename_crypt_check). zfs-fuse has no encryption: a function says here where the keys are, and which mount
/// point is one that ZFS doesn't mount at.
#[test]
fn clones_that_cannot_take_their_original_s_place_change_none() {
    let fixture = Fixture::new(two_pools_four_datasets());
    let lockstep = fixture.lockstep();
    let set = lockstep.backup("label");
    let pool = &fixture.pools[0].name;
    let elsewhere = format!("{pool}/elsewhere");
    zfs(&["create", "-o", "mountpoint=none", &elsewhere]);
    let more = ["--dataset", &elsewhere];
    let restored = lockstep.restore_and_start(&set.id, &fixture.target("main"), &more);
    fixture.cluster.stop(Stop::Fast);
    let names = || zfs(&["list", "-H", "-o", "name,origin,mountpoint", "-r", pool]);
    let before = names();
    run(&fixture, &restored, "", &["stop"]);
    let original = &fixture.datasets[0];
    let cases = [
        (
            format!(
                "*' encryptionroot {elsewhere}') echo -;; *' encryptionroot '*) echo '{pool}';;"
            ),
            "it can't be promoted",
        ),
        (
            format!(
                "*' encryptionroot {elsewhere}'|*' encryptionroot {pool}') echo -;; \
                 *' encryptionroot '*) echo '{pool}/own';;"
            ),
            "it can't be promoted",
        ),
        (format!("*' mountpoint {original}') echo legacy;;"), "has mountpoint=legacy"),
    ];
    for (case, reason) in cases {
        let says = format!("zfs() {{ case \"$*\" in {case} *) command zfs \"$@\";; esac; }}\n");
        let blocks = shell(&fixture, &restored, "", &["clones"]);
        let script = blocks.get_args().last().and_then(|script| script.to_str()).expect("a script");
        let mut blocks = command("bash", ["-c", &(says + script)]);
        blocks.env("PATH", path_with_turns());
        let outcome = support::command::run(&mut blocks);
        assert!(!outcome.ok(), "{}", outcome.describe());
        assert!(outcome.stderr.contains(reason), "{}", outcome.describe());
        assert_eq!(names(), before);
    }
    run(&fixture, &restored, "", &["remove"]);
    zfs(&["destroy", &elsewhere]);
    fixture.discard_set(&set.id);
    assert_clean(&fixture);
}

/// Neither block moves files: the restored cluster would be removed with the folder, and the links of the cluster that
/// it was to replace changed.
#[test]
fn a_cluster_that_was_not_moved_is_not_removed() {
    let fixture = Fixture::new(two_pools_four_datasets());
    let lockstep = shipping::with_repository(&fixture);
    let set = lockstep.backup("label");
    let more = ["--from", "repository", "--as", "files"];
    let restored = lockstep.restore_and_start(&set.id, &fixture.target("files"), &more);
    fixture.cluster.stop(Stop::Fast);
    let link = || std::fs::read_link(fixture.cluster.data.join("pg_wal")).ok();
    let before = link();
    let moved = fixture.target("moved");
    for names in [&["stop", "clones", "links"][..], &["links"][..]] {
        let outcome = support::command::run(&mut shell(&fixture, &restored, "", names));
        assert!(!outcome.ok(), "{}", outcome.describe());
        assert!(outcome.stderr.contains("is still in "), "{}", outcome.describe());
        assert!(restored.data.join("global/pg_control").exists(), "{}", outcome.describe());
        assert_eq!(link(), before);
    }
    // `data` is a link here: who moves it has moved nothing.
    let data = Path::new(folder(&restored)).join("data");
    assert!(data.is_symlink());
    std::fs::rename(&data, &moved).expect("the test may");
    let outcome = support::command::run(&mut shell(&fixture, &restored, "", &["links"]));
    assert!(outcome.stderr.contains("is still in "), "{}", outcome.describe());
    assert!(moved.join("global/pg_control").exists(), "{}", outcome.describe());
    assert_eq!(link(), before);
    std::fs::remove_file(&moved).expect("the test may");
    remove(&fixture, &restored, &set);
}

/// ZFS allows blanks in names, and what comes before one may be the name of another dataset.
#[test]
fn a_name_with_a_blank_is_one_name() {
    let scratch = tempfile::tempdir().expect("a folder can be made");
    let (to, log) = (scratch.path().join("to"), scratch.path().join("log"));
    std::fs::create_dir(&to).expect("a folder can be made");
    let zfs = format!(
        "zfs() {{\n\
         case \"$*\" in\n\
         'list -H -o name,mountpoint') printf 'tank/my\\t/live\\ntank/my pg\\t{0}/data\\n';;\n\
         *lockstep:restore*) echo local;;\n\
         'list '*) printf '%s\\n' \"${{@: -1}}\";;\n\
         *) printf '%s|' \"$@\" >> '{1}';;\n\
         esac\n}}\n",
        to.display(),
        log.display()
    );
    let setup = block("setup").replace("TO=/restore/main", &format!("TO='{}'", to.display()));
    let script = format!("{setup}\nset -o pipefail\n{zfs}{}\n", block("remove"));
    must(&mut command("bash", ["-c", &script]));
    let destroyed = std::fs::read_to_string(&log).expect("something was destroyed");
    assert_eq!(destroyed, "destroy|-r|tank/my pg|");
}

#[test]
fn a_restore_goes_and_leaves_nothing() {
    let fixture = Fixture::new(two_pools_four_datasets());
    fixture.pgbench_tables(1);
    let lockstep = shipping::with_repository(&fixture);
    let set = lockstep.backup("label");
    let restored = lockstep.restore_and_start(&set.id, &fixture.target("clones"), &[]);
    // Somebody's copy of one of its datasets, with the properties.
    let own = restored.json["datasets"][0].as_str().expect("its dataset");
    let copy = format!("{}/copy", fixture.pools[0].name);
    zfs(&["snapshot", &format!("{own}@sent")]);
    let send = format!("zfs send -p {own}@sent | zfs receive -u {copy}");
    must(command("sh", ["-c", &send]).env("PATH", path_with_turns()));
    run(&fixture, &restored, "", &["remove"]);
    zfs(&["destroy", "-r", &copy]);
    let parent = format!("{}/main", fixture.pools[0].name);
    let more = ["--from", "repository", "--as", "zfs", "--dataset", &parent];
    let restored = lockstep.restore_and_start(&set.id, &fixture.target("datasets"), &more);
    // Somebody's dataset below one of them, which `zfs destroy -r` would take along.
    let own = restored.json["datasets"][0].as_str().expect("its dataset");
    let theirs = format!("{own}/theirs");
    zfs(&["create", "-o", "mountpoint=none", &theirs]);
    let outcome = support::command::run(&mut shell(&fixture, &restored, "", &["remove"]));
    assert!(!outcome.ok(), "{}", outcome.describe());
    assert!(outcome.stderr.contains("and destroyed with it: "), "{}", outcome.describe());
    assert!(restored.server().is_running(), "nothing was changed");
    zfs(&["destroy", &theirs]);
    run(&fixture, &restored, "", &["remove"]);
    zfs(&["destroy", &parent]);
    fixture.discard_set(&set.id);
    assert_clean(&fixture);
}
