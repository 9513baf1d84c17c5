//! What the commands print, as text and as JSON, and the exit codes: the contract with people and with scripts.
//!
//! Ids, times and sizes are taken out before the comparison. After an intended change, run `cargo insta review`.

use crate::support::cluster::Stop;
use crate::support::command::{Outcome, command};
use crate::support::faults::{assert_said, restore_arguments};
use crate::support::fixture::Fixture;
use crate::support::layout::{one_dataset, two_pools_four_datasets};
use crate::support::lockstep::{Lockstep, exit, json_of};
use crate::support::pools::zfs;
use insta::{Settings, assert_snapshot};
use serde_json::json;

use std::fs;
use std::io::Write as _;
use std::path::Path;

/// What differs from run to run, in the order in which it is replaced.
const VARIES: &[(&str, &str)] = &[
    // How much recovery logs, and in which order, depends on the moment of the snapshot.
    (r#"(?s)"recovery": \[.*?\n  \]"#, r#""recovery": [...]"#),
    (r#""(checkpoint|snapshots|total)": [\d.]+(e-?\d+)?"#, r#""$1": [seconds]"#),
    // The PostgreSQL version of this machine, and its path.
    (r#"/[\w./-]+/bin(\\?") has"#, "[bin]$1 has"),
    (r"\(PostgreSQL\) \d+\.\d+( \([^)]*\))?", "(PostgreSQL) [version]"),
    (r"/[\w./-]+?/lt\d+x\d+", "[root]"),
    (r"\blt\d+x\d+", "[name]"),
    (r"\d{8}T\d{6}Z-[0-9a-v]{4}", "[set]"),
    (r"\d{8}t\d{6}z_[0-9a-v]{4}", "[set]"),
    (r"restore-[0-9a-v]{4}\b", "restore-[id]"),
    (r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(Z|\+00)?( UTC)?", "[time]"),
    (r"\b\d\d:\d\d:\d\dZ", "[time]"),
    (r"\b[0-9a-f]{64}\b", "[hash]"),
    (r#""owner": "\w+""#, r#""owner": "[owner]""#),
    (r"\b[0-9A-F]{24}\b", "[segment]"),
    (r"\b[0-9A-F]{1,8}/[0-9A-F]{5,8}\b", "[lsn]"),
    (r"\b\d{15,20}\b", "[number]"),
    (r"PostgreSQL \d+\.\d+( \([^)]*\))?", "PostgreSQL [version]"),
    (r#""(createtxg|available|port|bytes|own_bytes)": \d+"#, r#""$1": [number]"#),
    (r"\b\d+\.\d+ s\b", "[seconds] s"),
    (r"\b\d+(\.\d [KMG]i| )B\b", "[size]"),
    (r"\bprocess \d+", "process [pid]"),
    (r"-p \d+", "-p [port]"),
    (r"[\w./-]+/bin/pg_ctl", "[bin]/pg_ctl"),
    // Column widths depend on what was replaced.
    (r"(\S) {2,}", "$1  "),
    (r"\[number\]  \d+  \[time\]", "[number]  [txg]  [time]"),
    (r"  \d{4,5}  (running|stopped)", "  [port]  $1"),
];

/// Compares everything that a command printed with the snapshot of this name.
#[track_caller]
fn compare(name: &str, text: &str) {
    let mut settings = Settings::clone_current();
    settings.set_omit_expression(true);
    settings.set_prepend_module_to_snapshot(false);
    for (pattern, instead) in VARIES {
        settings.add_filter(pattern, *instead);
    }
    settings.bind(|| assert_snapshot!(name, text));
}

/// Runs a command that has to succeed, and compares what it prints on stdout.
#[track_caller]
fn prints(lockstep: &Lockstep, name: &str, arguments: &[&str]) -> Outcome {
    let outcome = lockstep.expect(exit::DONE, arguments);
    compare(name, &outcome.stdout);
    outcome
}

#[test]
fn what_the_commands_print() {
    let fixture = Fixture::new(two_pools_four_datasets().setting("autovacuum", "off"));
    let lockstep = fixture.lockstep();
    prints(&lockstep, "plan", &["plan"]);
    prints(&lockstep, "plan.json", &["plan", "--json"]);
    prints(&lockstep, "plan-ordered", &["plan", "--strategy", "ordered"]);
    prints(&lockstep, "list-empty", &["list"]);
    prints(&lockstep, "list-empty.json", &["list", "--json"]);
    // A monitor reports a cluster that was never backed up.
    compare("check-before-the-first-set", &lockstep.expect(exit::PROBLEMS, &["check"]).stdout);

    prints(&lockstep, "backup", &["backup", "--label", "before the migration"]);
    let outcome = prints(&lockstep, "backup.json", &["backup", "--json", "--strategy", "ordered"]);
    let set = json_of(&outcome)["set"].as_str().expect("a set has an id").to_owned();
    prints(&lockstep, "list", &["list"]);
    prints(&lockstep, "list.json", &["list", "--json"]);
    let older = lockstep.sets()[0].clone();
    prints(&lockstep, "show-label", &["show", &older]);
    prints(&lockstep, "show-label.json", &["show", &older, "--json"]);
    prints(&lockstep, "show-ordered", &["show", "latest"]);

    let to = fixture.target("r");
    prints(&lockstep, "restore-dry-run", &restore_arguments(&older, &to, &["--dry-run"]));
    prints(
        &lockstep,
        "restore-dry-run.json",
        &restore_arguments(&older, &to, &["--dry-run", "--json"]),
    );
    prints(&lockstep, "restore", &restore_arguments(&older, &to, &[]));
    fixture.discard_restored(&to, &older);
    prints(&lockstep, "restore-started", &restore_arguments(&older, &to, &["--start"]));
    fixture.discard_restored(&to, &older);
    prints(
        &lockstep,
        "restore-started.json",
        &restore_arguments(&set, &to, &["--start", "--json"]),
    );
    fixture.discard_restored(&to, &set);

    prints(&lockstep, "clone-create", &["clone", "create", "dev"]);
    prints(&lockstep, "clone-create.json", &["clone", "create", "test", "--set", &older, "--json"]);
    lockstep.restored(&lockstep.json(&["clone", "list"])["clones"][1]).server().stop(Stop::Fast);
    prints(&lockstep, "clone-list", &["clone", "list"]);
    prints(&lockstep, "clone-list.json", &["clone", "list", "--json"]);
    prints(&lockstep, "check", &["check"]);
    prints(&lockstep, "clone-destroy", &["clone", "destroy", "dev"]);
    prints(&lockstep, "clone-destroy.json", &["clone", "destroy", "test", "--json"]);
    prints(&lockstep, "check.json", &["check", "--json"]);

    // A damaged set: `list` names it on stderr and in its JSON.
    let manifest = fixture.state.join("clusters/main/sets").join(&set).join("manifest.json");
    fs::write(&manifest, "{\"version\": 1").expect("the test may write there");
    let listed = lockstep.expect(exit::PROBLEMS, &["list"]);
    compare("list-damaged", &format!("{}---\n{}", listed.stdout, listed.stderr));
    let listed = lockstep.expect(exit::PROBLEMS, &["list", "--json"]);
    compare("list-damaged.json", &listed.stdout);
    let checked = lockstep.expect(exit::PROBLEMS, &["check"]);
    compare("check-damaged", &checked.stdout);
}

/// A command does its work even if nobody reads its output, and a set that lacks a snapshot is named.
#[test]
fn what_nobody_reads_and_what_is_gone() {
    let fixture = Fixture::new(one_dataset());
    let lockstep = fixture.lockstep();
    let with_stdout_to = |stdout: &str, arguments: &[&str]| {
        let script = format!("( \"$0\" --config \"$@\"; echo \"status $?\" >&2 ) {stdout}");
        let mut shell = command("sh", ["-c", &script, env!("CARGO_BIN_EXE_lockstep")]);
        shell.arg(fixture.config()).args(arguments);
        String::from_utf8(shell.output().expect("sh can be run").stderr).expect("it is UTF-8")
    };
    let said = with_stdout_to("| true", &["backup"]);
    assert!(!said.contains("panicked"), "{said}");
    let said = with_stdout_to("> /dev/full", &["backup"]);
    assert!(said.contains("couldn't be written to stdout") && said.contains("status 1"), "{said}");
    assert_eq!(lockstep.sets().len(), 2);
    let said = with_stdout_to("> /dev/full", &["list"]);
    assert!(said.contains("status 1"), "{said}");
    // Nor does it matter to the exit code if nobody reads the error.
    for stderr in ["2> /dev/full", "2>&1 | true"] {
        let script = format!("(\"$0\" --config \"$@\"; echo $? > \"$STATUS\") {stderr}");
        let mut shell = command("sh", ["-c", &script, env!("CARGO_BIN_EXE_lockstep")]);
        let status = fixture.root().join("status");
        let arguments = ["prune", "--local", "--set", "no such set"];
        shell.arg(fixture.config()).args(arguments).env("STATUS", &status);
        shell.output().expect("sh can be run");
        let code = fs::read_to_string(&status).expect("the shell wrote it");
        assert_eq!(code.trim(), exit::USAGE.to_string(), "{stderr}");
    }

    let gone = &fixture.snapshots()[0];
    zfs(&["release", "lockstep", gone]);
    zfs(&["destroy", gone]);
    let listed = lockstep.expect(exit::PROBLEMS, &["list"]);
    assert!(listed.stdout.contains("incomplete"), "{}", listed.describe());
    assert_said(&listed, &[gone]);
    let damaged = &json_of(&lockstep.expect(exit::PROBLEMS, &["list", "--json"]))["damaged"];
    let set = lockstep.sets()[0].clone();
    assert_eq!(damaged[0]["set"], json!(set));
    assert_said(&lockstep.expect(exit::PROBLEMS, &["show", &set]), &[gone]);
    lockstep.expect(exit::DONE, &["show", "latest"]);

    // So is one of whose own files something is gone; whether it was changed is seen where it is read.
    let newest = lockstep.sets()[1].clone();
    let label = fixture.state.join("clusters/main/sets").join(&newest).join("backup_label");
    let mut bytes = fs::read(&label).expect("it is there");
    fs::write(&label, "").expect("the test may");
    let said = ["set ", &newest, "is damaged", "backup_label", "hint: "];
    for arguments in [&["list"][..], &["show", "latest"], &["show", "latest", "--json"]] {
        assert_said(&lockstep.expect(exit::PROBLEMS, arguments), &said);
    }
    bytes[0] ^= 1;
    fs::write(&label, bytes).expect("the test may");
    assert_said(&lockstep.expect(exit::PROBLEMS, &["show", "latest"]), &said);
}

#[test]
fn what_prune_prints() {
    let fixture = Fixture::new(two_pools_four_datasets().setting("autovacuum", "off"));
    let policy = "[clusters.main.retention]\nlocal = { last = 1 }\n";
    let text = format!("{}\n{policy}", fixture.configuration("auto", true));
    let lockstep = with_configuration(&fixture, "retention", &text);
    let older = lockstep.backup("label").id;
    lockstep.backup("label");
    prints(&lockstep, "prune-dry-run", &["prune", "--dry-run"]);
    prints(&lockstep, "prune-dry-run.json", &["prune", "--dry-run", "--json"]);
    let to = fixture.target("r");
    lockstep.restore(&older, &to, &[]);
    let left = lockstep.expect(exit::PROBLEMS, &["prune"]);
    compare("prune-left", &format!("{}---\n{}", left.stdout, left.stderr));
    fixture.discard_restored(&to, &older);
    prints(&lockstep, "prune", &["prune"]);
    prints(&lockstep, "prune.json", &["prune", "--json"]);
    let none = fixture.lockstep().expect(exit::USAGE, &["prune", "--local"]);
    compare("error-no-retention", &none.stderr);
}

/// The program with another configuration, written beside the fixture's own.
fn with_configuration(fixture: &Fixture, name: &str, text: &str) -> Lockstep {
    let path = fixture.root().join(format!("{name}.toml"));
    fs::write(&path, text).expect("a configuration can be written");
    Lockstep::new(&path, &fixture.cluster.bin)
}

/// Each exit code of the table, with its message: what failed, with the value, and what to do.
#[test]
fn exit_codes_and_what_is_said() {
    let fixture = Fixture::new(two_pools_four_datasets());
    let lockstep = fixture.lockstep();
    let set = lockstep.backup("label").id;
    let good = fixture.configuration("auto", true);
    let used = fixture.owned("used");
    fs::write(used.join("file"), "").expect("the test may write there");
    let used = used.to_str().expect("the harness' own paths are UTF-8");
    let never = fixture.target("never");
    let never = never.to_str().expect("the harness' own paths are UTF-8");

    let missing = Lockstep::new(Path::new("/no/such/lockstep.toml"), &fixture.cluster.bin);
    let misspelt = with_configuration(&fixture, "misspelt", &good.replace("strategy", "strategi"));
    let two = with_configuration(
        &fixture,
        "two",
        &format!("{good}\n[clusters.other]\ndata_directory = \"/other\"\n"),
    );
    let nobody = with_configuration(
        &fixture,
        "nobody",
        &good.replace("os_user = \"postgres\"", "os_user = \"nosuchuser\""),
    );
    let no_state = with_configuration(
        &fixture,
        "no-state",
        &good.replacen("state_dir = \"", "state_dir = \"/proc/nosuch", 1),
    );
    let elsewhere = with_configuration(
        &fixture,
        "elsewhere",
        &good.replacen("data_directory = \"", "data_directory = \"/nosuch", 1),
    );
    let restore = |more: &[&'static str]| {
        let mut all: Vec<String> = ["restore", &set, "--to", never].map(str::to_owned).to_vec();
        all.extend(more.iter().map(|word| (*word).to_owned()));
        all
    };
    let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let to_used: Vec<String> = ["restore", &set, "--to", used].map(str::to_owned).to_vec();
    let table: Vec<(&str, &Lockstep, Vec<String>, i32)> = vec![
        ("no-configuration", &missing, words("list"), exit::USAGE),
        ("misspelt-key", &misspelt, words("list"), exit::USAGE),
        ("which-cluster", &two, words("list"), exit::USAGE),
        ("unknown-cluster", &lockstep, words("--cluster nosuch list"), exit::USAGE),
        ("unknown-set", &lockstep, words("show nosuch"), exit::USAGE),
        ("unknown-clone", &lockstep, words("clone destroy nosuch"), exit::USAGE),
        ("bad-clone-name", &lockstep, words("clone create a/b"), exit::USAGE),
        ("bad-time", &lockstep, restore(&["--target-time", "yesterday"]), exit::USAGE),
        ("bad-timeline", &lockstep, restore(&["--target-timeline", "first"]), exit::USAGE),
        ("bad-tablespace", &lockstep, restore(&["--tablespace", "nosuch=/x"]), exit::USAGE),
        (
            "bad-label",
            &lockstep,
            vec!["backup".into(), "--label".into(), "two\nlines".into()],
            exit::USAGE,
        ),
        ("unknown-os-user", &nobody, restore(&[]), exit::USAGE),
        ("target-before-the-set", &lockstep, restore(&["--target-lsn", "0/1"]), exit::REFUSED),
        (
            "time-before-the-set",
            &lockstep,
            restore(&["--target-time", "2001-01-01 00:00:00Z"]),
            exit::REFUSED,
        ),
        ("folder-in-use", &lockstep, to_used, exit::REFUSED),
        ("atomic-in-two-pools", &lockstep, words("backup --strategy atomic"), exit::REFUSED),
        ("cold-while-it-runs", &lockstep, words("plan --strategy cold"), exit::REFUSED),
        ("no-state-dir", &no_state, words("list"), exit::FAILED),
        ("no-data-directory", &elsewhere, words("backup"), exit::USAGE),
    ];
    for (name, program, arguments, code) in &table {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let outcome = program.expect(*code, &arguments);
        assert!(outcome.stdout.is_empty(), "stdout is for data: {}", outcome.describe());
        compare(&format!("error-{name}"), &outcome.stderr);
    }
    // What clap says about a wrong command line is up to clap; the exit code is part of the contract.
    for line in [
        "",
        "nosuch",
        "backup --strategy nosuch",
        "restore latest",
        "restore latest --to /r --target-xid 7 --target-immediate",
        "restore latest --to /r --tablespace x",
        "clone",
    ] {
        lockstep.expect(
            exit::USAGE,
            &line.split(' ').filter(|word| !word.is_empty()).collect::<Vec<_>>(),
        );
    }
    // Somebody else is working on it.
    let lock =
        fs::File::options().read(true).write(true).open(fixture.state.join("clusters/main/lock"));
    let mut lock = lock.expect("a backup has made the lock's file");
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive)
        .expect("nobody has it");
    // The holder writes its process there. If that process has died, the program would wait for those that it
    // started.
    let own =
        format!("process {} (lockstep backup) since 2026-11-23T20:54:41Z\n", std::process::id());
    lock.set_len(0).and_then(|()| lock.write_all(own.as_bytes())).expect("the test may");
    let locked = lockstep.expect(exit::LOCKED, &["backup"]);
    compare("error-locked", &locked.stderr);
    drop(lock);
    assert_eq!(lockstep.sets(), [set]);
}

/// bash can read what is printed for it: it completes the command of a command.
#[test]
fn completions_are_read_by_the_shell() {
    let program = env!("CARGO_BIN_EXE_lockstep");
    let script = r#"source <("$0" completions bash); COMP_WORDS=(lockstep repo che); COMP_CWORD=2; _lockstep lockstep che repo; echo "${COMPREPLY[*]}""#;
    let completed = crate::support::command::run(&mut command("bash", ["-c", script, program]));
    assert!(completed.ok() && completed.stdout.trim() == "check", "{}", completed.describe());
}

/// As a unit or a container sets it where nobody has filled it in.
#[test]
fn an_empty_variable_names_no_configuration() {
    let lockstep = Lockstep::new(Path::new(""), Path::new("/nowhere"));
    let listed = lockstep.expect(exit::USAGE, &["list"]);
    let said = "cannot read the configuration \"/etc/lockstep/lockstep.toml\"";
    assert!(listed.stderr.contains(said), "{}", listed.describe());
}
