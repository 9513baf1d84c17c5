//! Other layouts of a cluster's parts: one dataset for everything, pg_wal mounted inside the data directory, eight
//! datasets. Which strategies they allow, in which order their datasets are frozen, and that the set restores.

use crate::support::checker::Checker;
use crate::support::cluster::{Cluster, Stop};
use crate::support::command::{as_postgres, command, give_to_postgres, must, wait_until};
use crate::support::fixture::{Fixture, assert_clean};
use crate::support::layout::{
    Layout, eight_datasets, nested_wal, one_dataset, one_pool, two_pools_four_datasets,
};
use crate::support::ledger::Ledger;
use crate::support::lockstep::{LIMIT, Lockstep, Set, Steps, exit, json_of};
use crate::support::pools::property;
use std::path::PathBuf;

const SCALE: u32 = 1;

struct Prepared {
    fixture: Fixture,
    ledger: Ledger,
}

fn prepare(layout: Layout) -> Prepared {
    let fixture = Fixture::new(layout);
    fixture.pgbench_tables(SCALE);
    let ledger = Ledger::create(&fixture.cluster, "ts1", "ts2");
    Prepared { fixture, ledger }
}

impl Prepared {
    /// Takes a set while rows are written, restores it, checks it, and removes what was restored.
    fn proves(&self, strategy: &str) -> Set {
        let writers = self.ledger.start(&self.fixture.cluster);
        let lockstep = self.fixture.lockstep();
        let set = lockstep.backup(strategy);
        let expected = self.ledger.expected(set.floor_lsn);
        writers.stop();
        let directory = self.fixture.target(strategy);
        let restored = lockstep.restore_and_start(&set.id, &directory, &[]);
        let verdict = Checker::new(SCALE)
            .with_ledger(&self.ledger, expected)
            .check_and_stop(restored.server());
        verdict.assert_right(strategy);
        assert!(verdict.ledger_rows > 2, "the ledger had hardly any rows");
        self.fixture.discard_restored(&directory, &set.id);
        assert_clean(&self.fixture);
        set
    }

    fn dataset(&self, mount: &str) -> &str {
        let place = self.fixture.layout.datasets.iter().position(|dataset| dataset.mount == mount);
        &self.fixture.datasets[place.unwrap_or_else(|| panic!("nothing is mounted at {mount:?}"))]
    }
}

fn order(set: &Set) -> Vec<&str> {
    set.in_order().iter().map(|volume| volume.dataset.as_str()).collect()
}

#[test]
fn one_dataset_holds_all() {
    let prepared = prepare(one_dataset());
    let set = prepared.proves("atomic");
    assert_eq!(order(&set), [prepared.dataset("all")]);
    assert!(
        set.volumes[0].parts.len() >= 4,
        "data directory, pg_wal and two tablespaces: {:?}",
        set.volumes[0].parts
    );
    let set = prepared.proves("label");
    assert_labelled(&set, prepared.dataset("all"));
}

/// Only this dataset's snapshot of the set carries the label, for people who restore by hand.
#[track_caller]
fn assert_labelled(set: &Set, dataset: &str) {
    for volume in &set.volumes {
        let label = property(&volume.snapshot, "lockstep:backup_label");
        assert_eq!(label != "-", volume.dataset == dataset, "{}: {label:?}", volume.snapshot);
    }
}

#[test]
fn one_pool_is_one_transaction_group() {
    let prepared = prepare(one_pool());
    let set = prepared.proves("atomic");
    let groups: Vec<u64> = set.volumes.iter().map(|volume| volume.createtxg).collect();
    assert_eq!(groups.len(), 4, "{}", set.json);
    assert!(
        groups.iter().all(|group| *group == groups[0]),
        "several transaction groups: {groups:?}"
    );
    // The common parent holds no part. `-r` on it may be how they are frozen, but its snapshot isn't part of the set.
    let strays: Vec<_> =
        prepared.fixture.snapshots().into_iter().filter(|name| name.contains("/pg@")).collect();
    assert!(strays.is_empty(), "snapshots that belong to no volume: {strays:?}");
    let set = prepared.proves("label");
    assert_eq!(order(&set).last(), Some(&prepared.dataset("wal")), "pg_wal last");
    assert_labelled(&set, prepared.dataset("wal"));
}

#[test]
fn two_pools_allow_no_atomic_set() {
    let prepared = prepare(two_pools_four_datasets());
    let refused =
        prepared.fixture.lockstep().expect(exit::REFUSED, &["backup", "--strategy", "atomic"]);
    assert!(
        refused.stderr.contains("pool") && refused.stderr.contains("hint: "),
        "{}",
        refused.describe()
    );
    let refused =
        prepared.fixture.lockstep().expect(exit::REFUSED, &["backup", "--strategy", "cold"]);
    assert!(
        refused.stderr.contains("error: ") && refused.stderr.contains("hint: "),
        "{}",
        refused.describe()
    );
    assert_clean(&prepared.fixture);
    assert_eq!(
        prepared.fixture.snapshots(),
        Vec::<String>::new(),
        "a refused backup leaves no snapshot"
    );
}

#[test]
fn wal_mounted_inside_the_data_directory() {
    let prepared = prepare(nested_wal());
    let wal = prepared.fixture.datasets.last().expect("pg_wal's dataset comes last").clone();
    for strategy in ["label", "ordered"] {
        let set = prepared.proves(strategy);
        assert_eq!(order(&set).last(), Some(&wal.as_str()), "pg_wal last in {strategy}");
    }
}

#[test]
fn eight_datasets_in_two_pools() {
    let prepared = prepare(eight_datasets());
    let set = prepared.proves("label");
    assert_eq!(order(&set).len(), 8);
    assert_eq!(order(&set).last(), Some(&prepared.dataset("wal")), "pg_wal last");
    let set = prepared.proves("ordered");
    assert_eq!(order(&set).first(), Some(&prepared.dataset("data")), "the data directory first");
    assert_eq!(order(&set).last(), Some(&prepared.dataset("wal")), "pg_wal last");
}

/// A folder that PostgreSQL recreates may be a link to a RAM disk: restoring must not empty the live server's.
#[test]
fn a_link_out_of_the_data_directory_is_not_followed() {
    let prepared = prepare(two_pools_four_datasets());
    let cluster = &prepared.fixture.cluster;
    cluster.stop(Stop::Fast);
    let outside = prepared.fixture.owned("stat_tmp");
    let (link, settings) =
        (cluster.data.join("pg_stat_tmp"), cluster.data.join("postgresql.auto.conf"));
    std::fs::remove_dir_all(&link).expect("the folder can be removed");
    std::os::unix::fs::symlink(&outside, &link).expect("a link can be made");
    let kept = outside.join("kept");
    std::fs::write(&kept, "the live server's").expect("it is writable");
    // Somebody's tool keeps this file elsewhere.
    let moved = outside.join("auto.conf");
    std::fs::copy(&settings, &moved).expect("it can be copied");
    std::fs::set_permissions(&moved, std::os::unix::fs::PermissionsExt::from_mode(0o644))
        .expect("its mode can be changed");
    std::fs::remove_file(&settings).expect("it can be removed");
    std::os::unix::fs::symlink(&moved, &settings).expect("a link can be made");
    let before = std::fs::read(&moved).expect("it can be read");
    cluster.start();
    prepared.proves("label");
    assert!(kept.exists(), "the restore has emptied the live server's folder");
    assert!(
        std::fs::read(&moved).expect("it is there") == before,
        "the live server's settings were changed"
    );
}

/// A user who may connect but not take backups: the set is consistent by another strategy, and the problem is
/// reported.
#[test]
fn a_user_without_the_right_to_take_backups() {
    let fixture = Fixture::new(two_pools_four_datasets());
    fixture
        .cluster
        .execute(&["CREATE ROLE backup LOGIN REPLICATION", "GRANT pg_read_all_settings TO backup"]);
    let text = fixture.configuration("auto", true);
    let changed = text.replace("user = \"postgres\"", "user = \"backup\"");
    assert_ne!(text, changed);
    std::fs::write(fixture.config(), changed).expect("it can be written");
    let lockstep = fixture.lockstep();
    let taken = lockstep.expect(exit::PROBLEMS, &["backup", "--json"]);
    for words in
        ["may not call pg_backup_start", "taken with strategy ordered instead", "GRANT EXECUTE"]
    {
        assert!(taken.stderr.contains(words), "{words}: {}", taken.describe());
    }
    assert_eq!(json_of(&taken)["strategy"], "ordered", "{}", taken.describe());
    let checked = lockstep.expect(exit::PROBLEMS, &["check"]);
    assert!(checked.stdout.contains("may not call"), "{}", checked.describe());
    // Not if the strategy is explicitly requested.
    lockstep.expect(exit::DONE, &["backup", "--strategy", "ordered"]);
    fixture.cluster.execute(&[
        "GRANT EXECUTE ON FUNCTION pg_backup_start(text, boolean), pg_backup_stop(boolean) TO backup",
    ]);
    assert_eq!(lockstep.backup("auto").strategy, "label");
    assert_clean(&fixture);
}

/// The set has everything of a pg_hba.conf outside the data directory: the files that it includes, and its files of
/// names. The restored server's host has none of them.
#[test]
fn what_pg_hba_conf_includes_is_in_the_set() {
    let prepared = prepare(two_pools_four_datasets().major(18));
    let (fixture, cluster) = (&prepared.fixture, &prepared.fixture.cluster);
    let etc = fixture.owned("etc");
    let write = |name: &str, text: &str| {
        let path = etc.join(name);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("the test may");
        std::fs::write(&path, text).expect("the test may");
    };
    write("pg_hba.conf", "include_dir conf.d\ninclude_if_exists none\ninclude \"the rest\"\n");
    write("conf.d/a.conf", "local @names postgres trust\n");
    write("conf.d/names", "postgres # the first\ntemplate1\n");
    write("the rest", "local all all trust\n");
    write("pg_ident.conf", "include maps\n");
    write("maps", "m root postgres\n");
    cluster.execute(&[
        &format!("ALTER SYSTEM SET hba_file = '{}'", etc.join("pg_hba.conf").display()),
        &format!("ALTER SYSTEM SET ident_file = '{}'", etc.join("pg_ident.conf").display()),
    ]);
    cluster.stop(Stop::Fast);
    cluster.start();
    let rules = "SELECT type || ' ' || database::text || ' ' || user_name::text FROM pg_hba_file_rules \
                 UNION ALL SELECT map_name || pg_username FROM pg_ident_file_mappings";
    let wanted = cluster.column("postgres", rules);
    assert_eq!(wanted.len(), 3, "{wanted:?}");
    let set = fixture.lockstep().backup("label").id;
    std::fs::rename(&etc, etc.with_extension("away")).expect("the test may");
    let to = fixture.target("r");
    let restored = fixture.lockstep().restore_and_start(&set, &to, &[]);
    assert_eq!(restored.server().column("postgres", rules), wanted);
    restored.server().stop(Stop::Fast);
    std::fs::rename(etc.with_extension("away"), &etc).expect("the test may");
    std::fs::remove_file(etc.join("maps")).expect("the test may");
    let taken = fixture.lockstep().expect(exit::PROBLEMS, &["backup", "--json"]);
    let words = ["pg_ident.conf is", "so it isn't in the set", "which", "includes, isn't there"];
    assert!(words.iter().all(|words| taken.stderr.contains(words)), "{}", taken.describe());
    fixture.discard_restored(&to, &set);
}

/// Debian's layout: moves the configuration out of the data directory of a server that is stopped, with `more` at its
/// end. Returns the server, to be started and stopped by its configuration, and the folder.
#[track_caller]
fn with_its_configuration_moved(fixture: &Fixture, more: &str) -> (Cluster, PathBuf) {
    let cluster = &fixture.cluster;
    let etc = fixture.owned("etc");
    for name in ["postgresql.conf", "pg_hba.conf", "pg_ident.conf"] {
        must(as_postgres("mv", ["-t"]).args([&etc, &cluster.data.join(name)]));
    }
    let conf = etc.join("postgresql.conf");
    let text = std::fs::read_to_string(&conf).expect("it is there");
    let data = cluster.data.display();
    std::fs::write(&conf, format!("{text}\ndata_directory = '{data}'\n{more}"))
        .expect("the test may");
    (Cluster { data: etc.clone(), ..cluster.clone() }, etc)
}

/// The same of a running server, which is started again.
#[track_caller]
fn with_its_configuration_elsewhere(fixture: &Fixture, more: &str) -> (Cluster, PathBuf) {
    fixture.cluster.stop(Stop::Fast);
    let (elsewhere, etc) = with_its_configuration_moved(fixture, more);
    elsewhere.start();
    (elsewhere, etc)
}

/// Takes a set; returns it, its postgresql.conf, and what was said.
#[track_caller]
fn with_its_conf(lockstep: &Lockstep, fixture: &Fixture, code: i32) -> (Set, String, String) {
    let taken = lockstep.expect(code, &["--json", "backup"]);
    let set = Set::of(&json_of(&taken));
    let kept = fixture.state.join("clusters/main/sets").join(&set.id).join("config");
    let conf = std::fs::read_to_string(kept.join("postgresql.conf")).unwrap_or_default();
    (set, conf, taken.stderr)
}

/// `check` and `plan` say it too, before there is a set.
#[track_caller]
fn assert_check_and_plan_say(lockstep: &Lockstep, words: &str) {
    let checked = lockstep.expect(exit::PROBLEMS, &["--json", "check"]);
    let findings = json_of(&checked)["findings"].clone();
    let is_it = |finding: &serde_json::Value| {
        finding["subject"] == "configuration" && finding["what"].to_string().contains(words)
    };
    let found = findings.as_array().is_some_and(|all| all.iter().any(is_it));
    assert!(found, "{words}: {}", checked.describe());
    let planned = lockstep.json(&["plan"])["warnings"].clone();
    let is_it = |warning: &serde_json::Value| {
        warning["problem"] == true && warning["what"].to_string().contains(words)
    };
    assert!(planned.as_array().is_some_and(|all| all.iter().any(is_it)), "{words}: {planned}");
}

/// PostgreSQL applies no value that waits for a restart, and nothing of a file that has an error.
#[test]
fn a_set_has_all_that_a_postgresql_conf_elsewhere_says() {
    let fixture = Fixture::new(two_pools_four_datasets());
    let lockstep = fixture.lockstep();
    let more = "work_mem = '7MB'\nmax_prepared_transactions = 5\nmax_worker_processes = 12\n\
                search_path = 'public'\n";
    let (server, etc) = with_its_configuration_elsewhere(&fixture, more);
    server.execute(&["CREATE TABLE t AS SELECT 1 AS n"]);
    server.execute(&["BEGIN", "INSERT INTO t VALUES (2)", "PREPARE TRANSACTION 'open'"]);
    let conf = etc.join("postgresql.conf");
    let change = |from: &str, to: &str| {
        let text = std::fs::read_to_string(&conf).expect("it is there");
        assert!(text.contains(from), "{from}: {text}");
        std::fs::write(&conf, text.replace(from, to)).expect("the test may");
    };

    change("max_prepared_transactions = 5", "max_prepared_transactions = 50");
    change("max_worker_processes = 12", "max_worker_processes = 9");
    let (_, kept, _) = with_its_conf(&lockstep, &fixture, exit::DONE);
    for setting in ["max_prepared_transactions = '50'", "work_mem = '7MB'"] {
        assert!(kept.contains(setting), "{setting}: {kept}");
    }
    // Recovery needs what the server runs with.
    let (written, needed) = ("max_worker_processes = '9'", "max_worker_processes = '12'");
    let at = |setting: &str| kept.find(setting).unwrap_or_else(|| panic!("{setting}: {kept}"));
    assert!(at(written) < at(needed), "{kept}");

    // The server runs on, and a restart would fail.
    change("work_mem = '7MB'", "work_mem = '7MB'\nwrk_mem = '9MB'");
    let unknown = "unrecognized configuration parameter (wrk_mem)";
    assert_check_and_plan_say(&lockstep, unknown);
    let (set, kept, said) = with_its_conf(&lockstep, &fixture, exit::PROBLEMS);
    assert!(said.contains(unknown), "{said}");
    assert!(!kept.contains("wrk_mem"), "{kept}");
    let to = fixture.target("r");
    let restored = lockstep.restore_and_start(&set.id, &to, &[]);
    assert_eq!(restored.server().value("postgres", "SHOW work_mem"), "7MB");
    assert_eq!(restored.server().value("postgres", "SHOW max_worker_processes"), "12");
    restored.server().execute(&["COMMIT PREPARED 'open'"]);
    restored.server().stop(Stop::Fast);
    fixture.discard_restored(&to, &set.id);
    change("wrk_mem = '9MB'\n", "");

    // A role that may not read the file's settings.
    let role = "CREATE ROLE backup LOGIN REPLICATION; GRANT pg_read_all_settings TO backup; \
        GRANT EXECUTE ON FUNCTION pg_backup_start(text, boolean), pg_backup_stop(boolean) TO backup";
    server.execute(&role.split("; ").collect::<Vec<_>>());
    let text = fixture.configuration("auto", true);
    std::fs::write(fixture.config(), text.replace("user = \"postgres\"", "user = \"backup\""))
        .expect("it can be written");
    assert_check_and_plan_say(&lockstep, "permission denied");
    let (_, kept, said) = with_its_conf(&lockstep, &fixture, exit::PROBLEMS);
    assert!(said.contains("GRANT SELECT ON pg_file_settings"), "{said}");
    for setting in ["work_mem = '7MB'", "max_prepared_transactions = '5'"] {
        assert!(kept.contains(setting), "{setting}: {kept}");
    }
    server.execute(&[
        "GRANT SELECT ON pg_file_settings TO backup",
        "GRANT EXECUTE ON FUNCTION pg_show_all_file_settings() TO backup",
    ]);
    let (_, kept, _) = with_its_conf(&lockstep, &fixture, exit::DONE);
    for setting in ["max_prepared_transactions = '50'", "search_path = 'public'"] {
        assert!(kept.contains(setting), "{setting}: {kept}");
    }
    server.execute(&["ROLLBACK PREPARED 'open'"]);
    server.stop(Stop::Fast);
    assert_clean(&fixture);
}

/// Docker's way: the server is told where its configuration is, and initdb's stays in the data directory.
#[test]
fn an_unused_postgresql_conf_does_not_count() {
    let fixture = Fixture::new(one_pool());
    let (cluster, lockstep) = (&fixture.cluster, fixture.lockstep());
    let unused = ["postgresql.conf", "pg_hba.conf", "pg_ident.conf"].map(|name| {
        let path = cluster.data.join(name);
        let text = std::fs::read(&path).expect("initdb made it");
        (path, text)
    });
    let (server, etc) = with_its_configuration_elsewhere(&fixture, "work_mem = '7MB'\n");
    server.stop(Stop::Fast);
    for (path, text) in &unused {
        std::fs::write(path, text).expect("the test may");
        must(command("chown", ["postgres:"]).arg(path));
    }
    let options = format!("-c config_file={}", etc.join("postgresql.conf").display());
    let (data, log) = (cluster.data.display().to_string(), cluster.log.display().to_string());
    must(&mut cluster.tool("pg_ctl", ["-D", &data, "-l", &log, "-w", "-o", &options, "start"]));
    cluster.stop(Stop::Fast);
    // Nobody has said where it is yet.
    assert_check_and_plan_say(&lockstep, "the set has no configuration");
    with_its_conf(&lockstep, &fixture, exit::PROBLEMS);
    must(&mut cluster.tool("pg_ctl", ["-D", &data, "-l", &log, "-w", "-o", &options, "start"]));
    let live = lockstep.backup("label").id;
    cluster.stop(Stop::Fast);
    let (cold, kept, said) = with_its_conf(&lockstep, &fixture, exit::DONE);
    assert_eq!(cold.strategy, "cold");
    assert!(said.contains(&format!("the set has the configuration of set {live}")), "{said}");
    assert!(kept.contains("work_mem = '7MB'"), "{kept}");
    // Started on the data directory, the server uses what is there.
    cluster.start();
    cluster.stop(Stop::Fast);
    let (_, kept, said) = with_its_conf(&lockstep, &fixture, exit::DONE);
    assert!(kept.is_empty() && !said.contains("configuration"), "{kept}{said}");
    assert_clean(&fixture);
}

/// Files in the data directory may include others that are in no snapshot. The restored server's host has none of
/// them.
#[test]
fn what_files_in_the_data_directory_include_from_elsewhere_is_in_the_set() {
    let fixture = Fixture::new(two_pools_four_datasets().major(18));
    let (cluster, lockstep) = (&fixture.cluster, fixture.lockstep());
    let etc = fixture.owned("etc");
    let write =
        |name: &str, text: &str| std::fs::write(etc.join(name), text).expect("the test may");
    write("hba.conf", "local all @names trust\n");
    write("names", "nobody\n");
    std::fs::create_dir(etc.join("conf.d")).expect("the test may");
    write("conf.d/a.conf", "work_mem = '7MB'\ndata_directory = '/nowhere'\n");
    std::fs::create_dir(etc.join("empty.d")).expect("the test may");
    let append = |name: &str, line: &str| {
        let path = cluster.data.join(name);
        let text = std::fs::read_to_string(&path).expect("it is there");
        std::fs::write(&path, format!("{text}{line}\n")).expect("the test may");
    };
    let place = |name: &str| etc.join(name).display().to_string();
    append("postgresql.conf", &format!("include_dir '{}'", place("empty.d")));
    // Which the server can't open, and skips.
    let closed = fixture.root().join("closed");
    std::fs::create_dir(&closed).expect("the test may");
    std::fs::write(closed.join("x.conf"), "work_mem = '8MB'\n").expect("the test may");
    std::fs::set_permissions(&closed, std::os::unix::fs::PermissionsExt::from_mode(0o700))
        .expect("it is ours");
    let in_it = closed.join("x.conf");
    append("postgresql.conf", &format!("include_if_exists '{}'", in_it.display()));
    append("postgresql.conf", &format!("include_if_exists '{}/x'", in_it.display()));
    append("postgresql.conf", &format!("include_dir '{}'", place("conf.d")));
    append("postgresql.conf", &format!("data_directory = '{}'", cluster.data.display()));
    append("pg_hba.conf", &format!("include \"{}\"", place("hba.conf")));
    cluster.stop(Stop::Fast);
    cluster.start();
    let rules = "SELECT database::text || user_name::text FROM pg_hba_file_rules";
    let wanted = cluster.column("postgres", rules);
    assert!(wanted.iter().any(|rule| rule.contains("nobody")), "{wanted:?}");
    let live = lockstep.backup("label").id;
    cluster.stop(Stop::Fast);
    let (cold, kept, said) = with_its_conf(&lockstep, &fixture, exit::DONE);
    assert!(kept.contains("work_mem = '7MB'") && !said.contains("the configuration of"), "{said}");

    let away = etc.with_extension("away");
    std::fs::rename(&etc, &away).expect("the test may");
    for set in [&live, &cold.id] {
        let to = fixture.target(&format!("r-{set}"));
        let restored = lockstep.restore_and_start(set, &to, &[]);
        assert_eq!(restored.server().value("postgres", "SHOW work_mem"), "7MB");
        assert_eq!(restored.server().column("postgres", rules), wanted);
        restored.server().stop(Stop::Fast);
        fixture.discard_restored(&to, set);
    }
    // What isn't there can't be kept.
    assert_check_and_plan_say(&lockstep, "not everything that pg_hba.conf");
    with_its_conf(&lockstep, &fixture, exit::PROBLEMS);
    std::fs::rename(&away, &etc).expect("the test may");
    assert_clean(&fixture);
}

/// A stopped server doesn't say where its configuration is. With an in-place tablespace and a prepared transaction,
/// PostgreSQL's defaults wouldn't even recover; and after pg_resetwal pg_control doesn't say how many there may be.
#[test]
fn a_cold_set_has_the_configuration_that_lies_elsewhere() {
    let layout = two_pools_four_datasets().setting("allow_in_place_tablespaces", "on");
    let fixture = Fixture::new(layout.setting("max_prepared_transactions", "3"));
    let (cluster, lockstep) = (&fixture.cluster, fixture.lockstep());
    cluster.execute(&[
        "CREATE TABLESPACE inside LOCATION ''",
        "CREATE TABLE there TABLESPACE inside AS SELECT 7 AS n",
    ]);
    cluster.execute(&["BEGIN", "INSERT INTO there VALUES (8)", "PREPARE TRANSACTION 'open'"]);
    cluster.stop(Stop::Fast);
    let (elsewhere, _) = with_its_configuration_moved(&fixture, "work_mem = '7MB'\n");

    let reset = cluster.bin.join("pg_resetwal");
    must(as_postgres(reset, ["-D"]).arg(&cluster.data));
    let restored = |set: &str, name: &str, work_mem: &str| {
        let to = fixture.target(name);
        let restored = lockstep.restore_and_start(set, &to, &[]);
        let server = restored.server();
        // Without a pg_hba.conf only the server's user is let in.
        let ask = |statement: &str| {
            let psql = ["-X", "-A", "-t", "-c", statement, "postgres"];
            must(&mut server.tool("psql", psql)).trim_end().to_owned()
        };
        assert_eq!(ask("SHOW work_mem"), work_mem);
        ask("COMMIT PREPARED 'open'");
        assert_eq!(ask("SELECT sum(n) FROM there"), "15");
        server.stop(Stop::Fast);
        fixture.discard_restored(&to, set);
    };
    let first = lockstep.expect(exit::PROBLEMS, &["--json", "backup"]);
    assert!(first.stderr.contains("the set has no configuration"), "{}", first.describe());
    restored(&Set::of(&json_of(&first)).id, "without", "4MB");

    elsewhere.start();
    let live = lockstep.backup("label").id;
    elsewhere.stop(Stop::Fast);
    let second = lockstep.expect(exit::DONE, &["--json", "backup"]);
    let words = format!("the set has the configuration of set {live}");
    assert!(second.stderr.contains(&words), "{}", second.describe());
    restored(&Set::of(&json_of(&second)).id, "with", "7MB");
    assert_clean(&fixture);
}

/// Takes a set, and makes changes while its first try is held at this step.
#[track_caller]
fn with_changes(
    fixture: &Fixture,
    lockstep: &Lockstep,
    strategy: &str,
    step: &str,
    changes: impl FnOnce(),
) -> (Set, String) {
    let steps = Steps::new(fixture.root().join("steps-of-changes"));
    steps.hold(step);
    let arguments = ["--json", "backup", "--strategy", strategy];
    let mut program = lockstep.clone().with_steps(&steps).spawn(&arguments);
    steps.wait_reached(step, &mut program);
    changes();
    steps.release(step);
    let outcome = program.wait(LIMIT);
    assert_eq!(outcome.code, Some(exit::DONE), "{}", outcome.describe());
    (Set::of(&json_of(&outcome)), outcome.stderr)
}

#[track_caller]
fn assert_has(fixture: &Fixture, set: &str, databases: &[&str]) {
    let to = fixture.target(&format!("with-databases-{set}"));
    let restored = fixture.lockstep().restore_and_start(set, &to, &[]);
    for database in databases {
        let rows = restored.server().value(database, "SELECT count(*) FROM t");
        assert_eq!(rows, "100", "{database} in set {set}");
    }
    restored.server().stop(Stop::Immediate);
    fixture.discard_restored(&to, set);
}

/// Replaying a moved or copied database copies the old folder as it was frozen. After its removal that is nothing,
/// and PostgreSQL doesn't report it.
fn databases_moved_and_copied_meanwhile(major: u32) {
    let fixture = Fixture::new(two_pools_four_datasets().major(major));
    let (cluster, lockstep) = (&fixture.cluster, fixture.lockstep());
    cluster.execute(&["CREATE DATABASE shop TABLESPACE ts2"]);
    let table = "CREATE TABLE t AS SELECT generate_series(1, 100) AS n";
    cluster.connect("shop").batch_execute(table).expect("a table can be made");
    cluster.execute(&["CHECKPOINT"]);
    let (frozen, begun) = ("backup.after-snapshot-1", "backup.started");
    let move_to =
        |space: &str| cluster.execute(&[&format!("ALTER DATABASE shop SET TABLESPACE {space}")]);
    let taken_again = |set: &Set, said: &str, words: &str| {
        assert_eq!(set.tries, 2, "{words}: {said}");
        assert!(said.contains(words), "{words}: {said}");
    };

    // Between two snapshots; before the first one; and with pg_control's own checkpoint as the start.
    let (set, said) = with_changes(&fixture, &lockstep, "label", frozen, || move_to("pg_default"));
    taken_again(&set, &said, "was moved from tablespace");
    assert_has(&fixture, &set.id, &["shop"]);
    let (set, said) = with_changes(&fixture, &lockstep, "label", begun, || move_to("ts2"));
    taken_again(&set, &said, "was moved from pg_default to tablespace");
    assert_has(&fixture, &set.id, &["shop"]);
    let (set, said) = with_changes(&fixture, &lockstep, "ordered", frozen, || move_to("ts1"));
    taken_again(&set, &said, "was moved from tablespace");
    assert_has(&fixture, &set.id, &["shop"]);
    // There and back: everything is where it was.
    let (set, said) = with_changes(&fixture, &lockstep, "label", frozen, || {
        move_to("pg_default");
        move_to("ts1");
    });
    taken_again(&set, &said, "was moved from tablespace");
    assert_has(&fixture, &set.id, &["shop"]);

    // A copy of a database that stays is whole.
    let strategy = if major >= 15 { "STRATEGY file_copy" } else { "" };
    let copy = |name: &str, of: &str| {
        cluster.execute(&[&format!(
            "CREATE DATABASE {name} TEMPLATE {of} {strategy} TABLESPACE pg_default"
        )]);
    };
    let (set, _) = with_changes(&fixture, &lockstep, "label", frozen, || copy("second", "shop"));
    assert_eq!(set.tries, 1, "{}", set.json);
    assert_has(&fixture, &set.id, &["shop", "second"]);
    // Replay then copies a table's new file, but the copy's catalog names the old one.
    let (set, said) = with_changes(&fixture, &lockstep, "label", begun, || {
        copy("changed", "shop");
        cluster.connect("shop").batch_execute("VACUUM FULL t").expect("it is written anew");
    });
    taken_again(&set, &said, "which was written to after that");
    assert_has(&fixture, &set.id, &["shop", "changed"]);
    // If nobody can be asked, the database may be about to be removed.
    let silent = fixture.root().join("silent.toml");
    std::fs::write(&silent, fixture.configuration("auto", false)).expect("it can be written");
    let silent = Lockstep::new(&silent, &cluster.bin);
    cluster.execute(&["CHECKPOINT"]);
    let (set, said) = with_changes(&fixture, &silent, "ordered", frozen, || copy("third", "shop"));
    taken_again(&set, &said, "without a connection nobody can tell");
    assert_has(&fixture, &set.id, &["shop", "third"]);
    // Its removal holds a lock until its record is written, after the files are gone.
    let mut client = cluster.connect("postgres");
    let (set, said) = with_changes(&fixture, &lockstep, "label", frozen, || {
        copy("fourth", "shop");
        client
            .batch_execute("BEGIN; ALTER DATABASE shop RENAME TO removed")
            .expect("it is renamed");
    });
    client.batch_execute("ROLLBACK").expect("it isn't renamed after all");
    taken_again(&set, &said, "which is being removed");
    assert_has(&fixture, &set.id, &["shop", "fourth"]);
    let (set, said) = with_changes(&fixture, &lockstep, "label", frozen, || {
        copy("fifth", "shop");
        cluster.execute(&["DROP DATABASE shop"]);
    });
    taken_again(&set, &said, "which was removed");
    assert_has(&fixture, &set.id, &["second", "fifth"]);
    assert_clean(&fixture);
}

#[test]
fn databases_moved_and_copied_on_postgresql_14() {
    databases_moved_and_copied_meanwhile(14);
}

#[test]
fn databases_moved_and_copied_on_postgresql_15() {
    databases_moved_and_copied_meanwhile(15);
}

#[test]
fn databases_moved_and_copied_on_postgresql_18() {
    databases_moved_and_copied_meanwhile(18);
}

/// One transaction group is what a crash leaves, and that has no such window: the move's own checkpoint comes before
/// the removal.
#[test]
fn a_database_moved_before_an_atomic_set() {
    let fixture = Fixture::new(one_dataset());
    let cluster = &fixture.cluster;
    cluster.execute(&["CREATE DATABASE shop TABLESPACE ts1"]);
    let table = "CREATE TABLE t AS SELECT generate_series(1, 100) AS n";
    cluster.connect("shop").batch_execute(table).expect("a table can be made");
    let step = "backup.before-snapshot-1";
    let (set, _) = with_changes(&fixture, &fixture.lockstep(), "atomic", step, || {
        cluster.execute(&["ALTER DATABASE shop SET TABLESPACE pg_default"]);
    });
    assert_eq!((set.strategy.as_str(), set.tries), ("atomic", 1));
    assert_has(&fixture, &set.id, &["shop"]);
    assert_clean(&fixture);
}

/// PostgreSQL lets only crash recovery read such WAL.
#[test]
fn wal_level_minimal() {
    let layout = one_pool().setting("wal_level", "minimal").setting("max_wal_senders", "0");
    let fixture = Fixture::new(layout);
    let lockstep = fixture.lockstep();
    // A load that isn't in the WAL.
    let mut client = fixture.cluster.connect("postgres");
    client
        .batch_execute("BEGIN; CREATE TABLE t (n int) TABLESPACE ts1; INSERT INTO t SELECT generate_series(1, 100); COMMIT")
        .expect("a table can be filled");
    drop(client);
    let set = lockstep.backup("auto");
    assert_eq!(set.strategy, "atomic");
    assert_eq!(lockstep.json(&["show", &set.id])["chosen_because"], "wal_level is minimal");
    assert_has(&fixture, &set.id, &["postgres"]);
    let clone = lockstep.clone_create("dev", &[]);
    assert_eq!(clone.server().value("postgres", "SELECT count(*) FROM t"), "100");
    lockstep.expect(exit::DONE, &["clone", "destroy", "dev"]);

    let to = fixture.target("beyond");
    let to_text = to.to_str().expect("the harness' own paths are UTF-8");
    let end = fixture.cluster.value("postgres", "SELECT pg_current_wal_lsn()");
    fixture.cluster.stop(Stop::Fast);
    let cold = lockstep.backup("auto");
    assert_eq!(cold.strategy, "cold");
    assert_has(&fixture, &cold.id, &["postgres"]);
    for set in [&set.id, &cold.id] {
        for more in [
            &["--target-immediate", "--start"][..],
            &["--target-lsn", &end],
            &["--restore-command", "false"],
            &["--standby", "--restore-command", "false"],
        ] {
            let arguments: Vec<_> =
                ["restore", set, "--to", to_text].iter().chain(more).copied().collect();
            let refused = lockstep.expect(exit::REFUSED, &arguments);
            assert!(refused.stderr.contains("wal_level=minimal"), "{}", refused.describe());
            assert!(!to.exists(), "{more:?}");
        }
    }
    lockstep
        .expect(exit::REFUSED, &["clone", "create", "dev", "--set", &set.id, "--target-immediate"]);
    assert_eq!(fixture.clones(), [], "nothing is made");
}

/// PostgreSQL follows a relative link from the data directory's pg_tblspc like any other. One that a crash in CREATE
/// TABLESPACE has left behind is no tablespace of the server's, and stays as it is.
#[test]
fn a_relative_link_and_one_that_the_server_does_not_know() {
    let prepared = prepare(one_pool());
    let cluster = &prepared.fixture.cluster;
    cluster.stop(Stop::Fast);
    let links = cluster.data.join("pg_tblspc");
    let linked = |link: &std::path::Path| std::fs::read_link(link).expect("a link");
    let entries = std::fs::read_dir(&links).expect("a folder").flatten().map(|entry| entry.path());
    let of_ts1 = prepared.fixture.tablespace("ts1");
    let link = entries.into_iter().find(|link| linked(link) == of_ts1).expect("ts1's link");
    std::fs::remove_file(&link).expect("the test may");
    let up = links.components().skip(1).map(|_| "..").collect::<std::path::PathBuf>();
    let relative = up.join(of_ts1.strip_prefix("/").expect("an absolute path"));
    std::os::unix::fs::symlink(&relative, &link).expect("the test may");
    let mut version = std::fs::read_dir(&of_ts1).expect("a folder").flatten();
    let version = version.find(|entry| entry.file_name().to_string_lossy().starts_with("PG_"));
    let left = of_ts1.join("left");
    std::fs::create_dir_all(left.join(version.expect("it has one").file_name()))
        .expect("the test may");
    std::os::unix::fs::symlink(&left, links.join("99999")).expect("the test may");
    cluster.start();
    let set = prepared.proves("label");
    assert_eq!(set.tries, 1, "{}", set.json);
    assert_eq!(set.volumes.len(), 4, "{}", set.json);
}

/// PostgreSQL 14 and older: the folder of statistics and the trigger file outside the data directory are the
/// original's. A clone leaves them alone, and a restore needs neither.
#[test]
fn an_older_version_s_files_outside_are_the_original_s() {
    let fixture = Fixture::new(two_pools_four_datasets().major(14));
    let (cluster, lockstep) = (&fixture.cluster, fixture.lockstep());
    let (statistics, trigger) = (fixture.owned("statistics"), fixture.root().join("trigger"));
    let settings = [("stats_temp_directory", &statistics), ("promote_trigger_file", &trigger)];
    let conf = cluster.data.join("postgresql.conf");
    let mut text = std::fs::read_to_string(&conf).expect("it has a text");
    for (name, path) in settings {
        text.push_str(&format!("{name} = '{}'\n", path.display()));
    }
    std::fs::write(&conf, text).expect("it can be written");
    cluster.stop(Stop::Fast);
    cluster.start();
    fixture.pgbench_tables(SCALE);
    let inserted = "SELECT n_tup_ins FROM pg_stat_user_tables WHERE relname = 'pgbench_accounts'";
    let patience = std::time::Duration::from_secs(30);
    wait_until("rows are counted", patience, || cluster.value("postgres", inserted) == "100000");
    let set = lockstep.backup("label");
    lockstep.clone_create("dev", &[]);
    assert_eq!(cluster.value("postgres", inserted), "100000", "the clone took the statistics");
    lockstep.expect(exit::DONE, &["clone", "destroy", "dev"]);

    cluster.stop(Stop::Fast);
    std::fs::remove_dir_all(&statistics).expect("it can be removed");
    std::fs::write(&trigger, "").expect("it can be written");
    give_to_postgres(&trigger);
    let pause = ["--target-immediate", "--target-action", "pause"];
    let restored = lockstep.restore_and_start(&set.id, &fixture.target("paused"), &pause);
    let is_paused = || {
        let asked = restored.server().value("postgres", "SELECT pg_get_wal_replay_pause_state()");
        asked == "paused"
    };
    wait_until("it is paused", patience, is_paused);
    assert!(trigger.exists(), "the trigger is the original's");
    restored.server().stop(Stop::Fast);
}

/// The server that runs goes on with what it had, and no restored one starts.
#[test]
fn errors_of_the_configuration_are_told_before_a_restore() {
    let fixture = Fixture::new(one_pool());
    let lockstep = fixture.lockstep();
    let cluster = &fixture.cluster;
    let append = |name: &str, line: &str| {
        let path = cluster.data.join(name);
        let text = std::fs::read_to_string(&path).expect("it is there");
        std::fs::write(&path, format!("{text}{line}\n")).expect("the test may");
        text
    };
    let conf = append("postgresql.conf", "wrk_mem = '9MB'");
    assert_check_and_plan_say(&lockstep, "unrecognized configuration parameter (wrk_mem)");
    let set = Set::of(&json_of(&lockstep.expect(exit::PROBLEMS, &["--json", "backup"])));
    let to = fixture.target("wrong");
    let to = to.to_str().expect("UTF-8");
    let refused = lockstep.expect(exit::FAILED, &["restore", &set.id, "--to", to, "--start"]);
    assert!(refused.stderr.contains("wrk_mem"), "{}", refused.describe());
    assert!(refused.stderr.contains("restore without --start, correct"), "{}", refused.describe());

    std::fs::write(cluster.data.join("postgresql.conf"), conf).expect("the test may");
    let hba = append("pg_hba.conf", "lcal all all trust");
    assert_check_and_plan_say(&lockstep, "pg_hba.conf:");
    let refused = {
        let set = Set::of(&json_of(&lockstep.expect(exit::PROBLEMS, &["--json", "backup"])));
        lockstep.expect(exit::FAILED, &["clone", "create", "dev", "--set", &set.id])
    };
    assert!(refused.stderr.contains("take another set"), "{}", refused.describe());
    std::fs::write(cluster.data.join("pg_hba.conf"), hba).expect("the test may");
    lockstep.backup("label");
}
