//! The commands of docs/recovery-by-hand.md, the clean-up of docs/archive.md, and bench/repository, run exactly as
//! written: what nobody runs is wrong by the time it is needed.

use std::path::Path;

use crate::support::checker::Checker;
use crate::support::cluster::{Cluster, Stop};
use crate::support::command::{command, must, run, wait_until};
use crate::support::fixture::{Fixture, assert_clean};
use crate::support::layout::one_pool;
use crate::support::ledger::Ledger;
use crate::support::load::{Load, Plan};
use crate::support::lockstep::{LIMIT, Set, exit};
use crate::support::pools::path_with_turns;
use crate::support::shipping::with_options;

const PAGE: &str = include_str!("../../../../docs/recovery-by-hand.md");
const ARCHIVE: &str = include_str!("../../../../docs/archive.md");
const SCALE: u32 = 2;

/// The page's shell blocks: the word after `sh` on the fence's line, and the text.
fn blocks() -> Vec<(&'static str, String)> {
    let mut blocks = Vec::new();
    let mut lines = PAGE.lines();
    while let Some(line) = lines.next() {
        let Some(kind) = line.strip_prefix("```sh") else { continue };
        let text: Vec<_> = lines.by_ref().take_while(|line| *line != "```").collect();
        blocks.push((kind.trim(), text.join("\n")));
    }
    blocks
}

/// The first block with this cluster's values.
fn setup(fixture: &Fixture, set: &Set, to: &std::path::Path) -> String {
    let dataset = |part: &str| {
        let volume = set.volumes.iter().find(|volume| volume.parts == [part]);
        volume.unwrap_or_else(|| panic!("no volume holds {part} alone")).dataset.clone()
    };
    let tablespaces: Vec<_> = set
        .volumes
        .iter()
        .filter_map(|v| Some((v.parts.first()?.strip_prefix("tablespace-")?, &v.dataset)))
        .map(|(oid, dataset)| format!("{oid}={dataset}"))
        .collect();
    assert_eq!(tablespaces.len(), 2, "{:?}", set.volumes);
    format!(
        "set -euo pipefail\nSET={}\nTO='{}'\nDATA={}\nWAL={}\nTABLESPACES='{}'\nBIN={}\nPORT={}\nCONFIG='{}'\n",
        set.id,
        to.display(),
        dataset("data"),
        dataset("wal"),
        tablespaces.join(" "),
        fixture.cluster.bin.display(),
        crate::support::fixture::free_port(),
        fixture.state.join("clusters/main/sets").join(&set.id).join("config").display(),
    )
}

fn shell(script: &str) -> String {
    must(command("bash", ["-c", script]).env("PATH", path_with_turns()))
}

/// Settings in postgresql.conf that refer to the original. Each line alone would lead a clone that keeps it astray.
fn settings_that_lead_back(cluster: &Cluster, touched: &Path) -> String {
    let (data, touched) = (cluster.data.display(), touched.display());
    format!(
        "data_directory = '{data}'\nHBA_FILE '{data}/pg_hba.conf'\nident_file='{data}/pg_ident.conf'\n\
         \texternal_pid_file = '{data}/external.pid'\nlogging_collector = on\n\
         recovery_target_name = 'of an older restore'\nrecovery_min_apply_delay = '1h'\n\
         recovery_end_command = 'touch {touched}'\narchive_cleanup_command = 'touch {touched}'\n"
    )
}

/// Appends to the cluster's postgresql.conf.
fn configure(cluster: &Cluster, text: &str) {
    let path = cluster.data.join("postgresql.conf");
    let old = std::fs::read_to_string(&path).expect("initdb wrote it");
    std::fs::write(&path, old + text).expect("root may write everywhere");
}

/// The page from its second block to the last but one.
fn body() -> String {
    let blocks = blocks();
    assert_eq!(blocks.first().map(|(kind, _)| *kind), Some("setup"));
    assert_eq!(blocks.last().map(|(kind, _)| *kind), Some("cleanup"));
    assert!(blocks.len() >= 9, "the page has lost blocks");
    let middle: Vec<_> =
        blocks[1..blocks.len() - 1].iter().map(|(_, text)| text.as_str()).collect();
    middle.join("\n")
}

fn cleanup() -> String {
    blocks().pop().expect("the page has blocks").1
}

#[test]
fn the_page_restores_a_set_without_the_program() {
    let fixture = Fixture::new(one_pool());
    fixture.pgbench_tables(SCALE);
    let ledger = Ledger::create(&fixture.cluster, "ts1", "ts2");
    let touched = fixture.root().join("touched");
    configure(&fixture.cluster, &settings_that_lead_back(&fixture.cluster, &touched));
    // A folder of which a restored cluster isn't given the contents may be a link.
    let slots = fixture.cluster.data.join("pg_replslot");
    std::fs::remove_dir(&slots).expect("it is empty without a slot");
    std::os::unix::fs::symlink(fixture.owned("slots"), &slots).expect("its name is free");
    let load = Load::start(&fixture.cluster, &["ts1", "ts2"], &Plan::all(1));
    let writers = ledger.start(&fixture.cluster);
    ledger.wait_for(20);
    let set = fixture.lockstep().backup("label");
    let expected = ledger.expected(set.floor_lsn);
    // The day on which the page is needed: the server is down, and nothing would keep it from starting.
    writers.stop();
    load.stop();
    fixture.cluster.stop(Stop::Fast);
    let control = |cluster: &Cluster| std::fs::read(cluster.data.join("global/pg_control")).ok();
    let as_it_was = control(&fixture.cluster);

    let to = fixture.owned("by hand").with_file_name("by-hand");
    let setup = setup(&fixture, &set, &to);
    shell(&format!("{setup}{}", body()));
    assert!(!fixture.cluster.is_running(), "the page has started the original");
    assert_eq!(control(&fixture.cluster), as_it_was, "the page has changed the original");
    assert!(!touched.exists(), "a command of the original's recovery ran");
    let own = to.join("data/pg_replslot").symlink_metadata().expect("the server needs it");
    assert!(own.is_dir(), "the clone has the original's replication slots");

    let server =
        Cluster::running_in(&to.join("data"), &fixture.cluster.bin, &to.join("data/server.log"));
    assert_eq!(server.value("postgres", "SHOW data_directory"), to.join("data").to_string_lossy());
    assert_eq!(server.value("postgres", "SHOW max_logical_replication_workers"), "0");
    let checker = Checker::new(SCALE).with_ledger(&ledger, expected);
    checker.check_running(&server).assert_right("restored by hand");

    shell(&format!("{setup}{}", cleanup()));
    assert!(!to.exists(), "the page's last block leaves {to:?}");
    fixture.cluster.start();
    fixture.discard_set(&set.id);
    assert_clean(&fixture);
}

#[test]
fn the_page_starts_nothing_where_a_setting_still_names_the_original() {
    let fixture = Fixture::new(one_pool());
    // In a file that postgresql.conf includes, which step 4 doesn't reach.
    let included = format!("data_directory = '{}'\n", fixture.cluster.data.display());
    std::fs::write(fixture.cluster.data.join("more.conf"), included).unwrap();
    configure(&fixture.cluster, "include = 'more.conf'\n");
    let set = fixture.lockstep().backup("label");
    fixture.cluster.stop(Stop::Fast);

    let to = fixture.owned("by hand").with_file_name("by-hand");
    let setup = setup(&fixture, &set, &to);
    let script = format!("{setup}{}", body());
    let outcome = run(command("bash", ["-c", &script]).env("PATH", path_with_turns()));
    assert!(!outcome.ok() && outcome.stderr.contains("this would start"), "{}", outcome.describe());
    assert!(!fixture.cluster.is_running() && !to.join("data/postmaster.pid").exists());

    let without_a_server = cleanup().replace("kill -QUIT", "true");
    shell(&format!("{setup}{without_a_server}"));
    fixture.cluster.start();
    fixture.discard_set(&set.id);
    assert_clean(&fixture);
}

/// Typed block by block, nothing stops after a clone that couldn't be made, or in a new shell that knows no TO; and
/// whoever types it may be in the live cluster's data directory.
#[test]
fn the_page_changes_nothing_in_the_folder_where_it_is_typed() {
    let scratch = tempfile::tempdir().expect("a folder can be made");
    let live = scratch.path().join("live");
    let names = [
        "postmaster.pid",
        "postgresql.conf",
        "postgresql.auto.conf",
        "pg_wal/archive_status/1",
        "pg_replslot/mine",
        "base/pg_internal.init",
    ];
    for name in names {
        let path = live.join(name);
        std::fs::create_dir_all(path.parent().expect("it is below a folder"))
            .expect("the test may");
        std::fs::write(path, "primary_conninfo = 'host=db1'\n").expect("the test may");
    }
    let all = || {
        let listed = must(&mut command("find", [&live]));
        let texts = names.iter().map(|name| std::fs::read_to_string(live.join(name)).ok());
        (listed, texts.collect::<Vec<_>>())
    };
    let before = all();
    let nowhere = scratch.path().join("nowhere");
    // Nothing that needs ZFS, starts a server or waits.
    let middle = blocks().into_iter().map(|(_, text)| text);
    let middle: Vec<_> = middle.filter(|text| text.contains("/data\" && {")).collect();
    assert_eq!(middle.len(), 6, "each block that works in a folder goes there");
    for text in middle {
        for to in [format!("TO='{}'\n", nowhere.display()), "unset TO\n".to_owned()] {
            let others = "WAL=none\nDATA=none\nTABLESPACES=\nPORT=1\nCONFIG=/none\n";
            let script = format!("{to}{others}{text}");
            let outcome = run(command("bash", ["-c", &script]).current_dir(&live));
            assert!(!outcome.ok(), "{}", outcome.describe());
            assert_eq!(all(), before, "{}", outcome.describe());
        }
    }
}

#[test]
fn the_page_takes_the_configuration_of_a_set_where_no_snapshot_has_it() {
    let fixture = Fixture::new(one_pool());
    let outside = fixture.owned("etc");
    for name in ["postgresql.conf", "pg_hba.conf", "pg_ident.conf"] {
        must(command("mv", [fixture.cluster.data.join(name)]).arg(&outside));
    }
    fixture.cluster.stop(Stop::Fast);
    let conf = outside.join("postgresql.conf");
    let (data, etc) = (fixture.cluster.data.display(), outside.display());
    let text = std::fs::read_to_string(&conf).unwrap();
    let text = format!(
        "{text}data_directory = '{data}'\nhba_file = '{etc}/pg_hba.conf'\nident_file = '{etc}/pg_ident.conf'\nwork_mem = '7MB'\n"
    );
    std::fs::write(&conf, text).unwrap();
    let options = format!("-c config_file={}", conf.display());
    let log = fixture.cluster.log.display().to_string();
    let start = ["-D", &data.to_string(), "-l", &log, "-w", "-o", &options, "start"];
    must(&mut fixture.cluster.tool("pg_ctl", start));
    let set = fixture.lockstep().backup("label");

    let to = fixture.owned("by hand").with_file_name("by-hand");
    let setup = setup(&fixture, &set, &to);
    shell(&format!("{setup}{}", body()));
    let server =
        Cluster::running_in(&to.join("data"), &fixture.cluster.bin, &to.join("data/server.log"));
    assert_eq!(server.value("postgres", "SHOW work_mem"), "7MB");
    assert_eq!(server.value("postgres", "SHOW data_directory"), to.join("data").to_string_lossy());

    shell(&format!("{setup}{}", cleanup()));
    fixture.discard_set(&set.id);
    assert_clean(&fixture);
}

/// PostgreSQL runs it again where a crash came between its end and the note of that.
#[test]
fn the_archive_command_of_the_page_can_be_run_again_and_overwrites_nothing() {
    let scratch = tempfile::tempdir().expect("a folder can be made");
    let (archive, segment) = (scratch.path().join("kept"), scratch.path().join("segment"));
    std::fs::create_dir(&archive).expect("a folder can be made");
    let text = ARCHIVE.lines().find_map(|line| line.strip_prefix("archive_command = '"));
    let text = text.and_then(|text| text.strip_suffix('\'')).expect("the page has it");
    let script = text
        .replace("/archive", &archive.display().to_string())
        .replace("%p", &segment.display().to_string())
        .replace("%f", "0001");
    let archives = |content: &str| {
        std::fs::write(&segment, content).expect("the test may");
        run(&mut command("sh", ["-c", &script])).ok()
    };
    let kept = || std::fs::read_to_string(archive.join("0001")).ok();
    assert!(archives("one") && archives("one"), "{script}");
    assert_eq!(kept().as_deref(), Some("one"));
    assert!(!archives("two"), "another file of the same name is an error");
    assert_eq!(kept().as_deref(), Some("one"));
    // What a crash in the middle leaves.
    std::fs::rename(archive.join("0001"), archive.join(".0001")).expect("the test may");
    assert!(archives("three"));
    assert_eq!(kept().as_deref(), Some("three"));
}

/// An archive that is cleaned up as the page describes serves the oldest set, wherever that is. If a place can't be
/// asked, nothing is removed.
#[test]
fn the_archive_is_kept_for_the_oldest_set_of_all() {
    let fixture = Fixture::new(one_pool().archive().setting("autovacuum", "off"));
    let lockstep = with_options(&fixture, "\n[clusters.main.retention]\nlocal = { last = 1 }\n");
    let cluster = &fixture.cluster;
    let next_segment = || {
        cluster.execute(&["CREATE TABLE IF NOT EXISTS t (n int)", "INSERT INTO t VALUES (1)"]);
        let segment = cluster.value("postgres", "SELECT pg_walfile_name(pg_switch_wal())");
        wait_until("it is archived", LIMIT, || fixture.archive.join(&segment).exists());
        segment
    };
    let before = next_segment();
    let older = lockstep.backup("label");
    let rows = cluster.value("postgres", "SELECT count(*) FROM t");
    let between = next_segment();
    lockstep.backup("label");
    let newest = lockstep.backup("label");
    lockstep.expect(exit::DONE, &["prune", "--local"]);
    assert!(lockstep.sets().contains(&newest.id) && !lockstep.sets().contains(&older.id));

    let line = ARCHIVE.lines().find(|line| line.starts_with("pg_archivecleanup /archive"));
    let line = line.expect("the page has it");
    // For the program under test.
    let program = env!("CARGO_BIN_EXE_lockstep");
    let config = fixture.root().join("shipping.toml");
    let clean = |config: &Path| {
        let program = format!("'{program}' --config '{}'", config.display());
        let archive = format!("'{}'", fixture.archive.display());
        let script = line.replace(" /archive ", &format!(" {archive} "));
        let script = script.replace("$(lockstep ", &format!("$({program} "));
        let path = format!("{}:{}", cluster.bin.display(), path_with_turns().to_string_lossy());
        run(command("bash", ["-c", &script]).env("PATH", path))
    };
    // A repository that can't be reached.
    let repository = crate::support::shipping::folder(&fixture);
    let away = fixture.root().join("away");
    std::fs::rename(&repository, &away).expect("the test may rename it");
    let outcome = clean(&config);
    assert!(!outcome.ok() && fixture.archive.join(&before).exists(), "{}", outcome.describe());
    std::fs::rename(&away, &repository).expect("the test may rename it");

    let outcome = clean(&config);
    assert!(outcome.ok(), "{}", outcome.describe());
    assert!(!fixture.archive.join(&before).exists(), "nobody needs it: {}", outcome.describe());
    assert!(fixture.archive.join(&between).exists(), "the older set needs it");
    let first = lockstep.json(&["list", "--first-wal"]);
    assert_eq!(first["first_wal"], older.json["wal"]["segments"][0], "{first}");
    let archive = format!("cp {}/%f %p", fixture.archive.display());
    let more = ["--from", "repository", "--as", "files", "--restore-command", &archive];
    let restored = lockstep.restore_and_start(&older.id, &fixture.target("r"), &more);
    let found = restored.server().value("postgres", "SELECT count(*) FROM t");
    assert!(found > rows, "it came no further than the set: {found}");
    restored.server().stop(Stop::Fast);
}

/// On a cluster that is too small for meaningful figures: what the bench calls exists, and it prints its tables. The
/// other benches work the same way and take too long to run each time.
#[test]
fn the_bench_of_the_repository_runs() {
    let bench = concat!(env!("CARGO_MANIFEST_DIR"), "/../../bench/repository");
    let small = ["--size", "0.02", "--rounds", "1", "--restores", "1", "--chain", "3"];
    let said = must(command(bench, small).env("LOCKSTEP", env!("CARGO_BIN_EXE_lockstep")));
    assert!(said.contains("behind 3 increments / behind none"), "{said}");
}
