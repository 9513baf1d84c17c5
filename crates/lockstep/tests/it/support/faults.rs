//! Faults: the program is killed or told to stop at one of its steps, and what it leaves is checked.

use super::by_hand::write_as_postgres;
use super::cluster::Cluster;
use super::command::{Outcome, Running, wait_until};
use super::fixture::{Fixture, free_port};
use super::lockstep::{LIMIT, Lockstep, Steps};
use super::workspace::processes_of;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// For things that end by themselves, but not at once, such as the session of a killed client.
const MOMENT: Duration = Duration::from_secs(20);

/// The program with test hooks in their own directory.
#[derive(Debug)]
pub struct Hooks {
    /// The hooks.
    pub steps: Steps,
    lockstep: Lockstep,
    directory: PathBuf,
}

impl Hooks {
    /// New hooks; nothing is held.
    #[track_caller]
    pub fn new(fixture: &Fixture) -> Hooks {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let directory = fixture.root().join(format!("steps-{number}"));
        let steps = Steps::new(directory.clone());
        let lockstep = fixture.lockstep().with_steps(&steps);
        Hooks { steps, lockstep, directory }
    }

    /// New hooks with `step` held.
    #[track_caller]
    pub fn holding(fixture: &Fixture, step: &str) -> Hooks {
        let hooks = Hooks::new(fixture);
        hooks.steps.hold(step);
        hooks
    }

    /// The program with these hooks.
    pub fn lockstep(&self) -> &Lockstep {
        &self.lockstep
    }

    /// Starts the program and waits until it is held at `step`.
    #[track_caller]
    pub fn run_to(&self, step: &str, arguments: &[&str]) -> Running {
        let mut program = self.lockstep.spawn(arguments);
        self.steps.wait_reached(step, &mut program);
        program
    }

    /// Forgets that `step` was reached.
    pub fn forget(&self, step: &str) {
        let _ = fs::remove_file(self.directory.join(step));
    }
}

/// The steps that a command passes, as the program reports them.
#[track_caller]
pub fn steps_of(fixture: &Fixture, arguments: &[&str], at_least: usize) -> (Vec<String>, Outcome) {
    let hooks = Hooks::new(fixture);
    let outcome = hooks.lockstep().expect(0, arguments);
    let steps = hooks.steps.all_reached();
    assert!(
        steps.len() >= at_least,
        "only these steps were reached, is it built with its test hooks? {steps:?}"
    );
    (steps, outcome)
}

/// Runs a command to `step` and ends it with SIGKILL there.
#[track_caller]
pub fn kill_at(fixture: &Fixture, step: &str, arguments: &[&str]) -> Hooks {
    let hooks = Hooks::holding(fixture, step);
    let mut program = hooks.run_to(step, arguments);
    program.kill();
    let outcome = program.wait(LIMIT);
    assert_eq!(outcome.signal, Some(9), "{}", outcome.describe());
    hooks
}

/// Runs a command to `step` and sends it a signal there.
#[track_caller]
pub fn signal_at(
    fixture: &Fixture,
    step: &str,
    signal: rustix::process::Signal,
    arguments: &[&str],
) -> (Hooks, Outcome) {
    let hooks = Hooks::holding(fixture, step);
    let program = hooks.run_to(step, arguments);
    program.signal(signal);
    let outcome = program.wait(LIMIT);
    (hooks, outcome)
}

/// Everything that an unfinished command can leave: sessions, slots, snapshots, clones, journals, folders, servers.
/// Clones and folders that should exist are `allowed`.
#[track_caller]
pub fn remains(fixture: &Fixture, allowed: &[&str]) -> Vec<String> {
    let mut found = fixture.leftovers(allowed);
    let state = fixture.state.join("clusters/main");
    let is_allowed = |path: &Path| allowed.iter().any(|name| path.starts_with(name));
    for folder in ["unfinished", "removals", "bookmarks", "restores", "clones"] {
        let files = entries(&state.join(folder)).into_iter();
        // A lock file without a lock means nothing: the lock ends with its process.
        let files = files.filter(|path| path.extension().is_none_or(|end| end != "lock"));
        found.extend(files.filter(|path| !is_allowed(path)).map(|path| format!("file: {path:?}")));
    }
    let sets = entries(&state.join("sets")).into_iter();
    found.extend(
        sets.filter(|set| !set.join("manifest.json").exists())
            .map(|set| format!("folder of no set: {set:?}")),
    );
    for folder in [fixture.root().join("restored"), state.join("clone-data")] {
        for path in entries(&folder).into_iter().filter(|path| !is_allowed(path)) {
            found.push(format!("folder: {path:?}"));
            found
                .extend(processes_of(&path).iter().map(|pid| format!("process {pid} in {path:?}")));
        }
        // A server whose folder is gone still names it.
        for pid in processes_of(&folder) {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            if !allowed.iter().any(|name| line.contains(name)) && line.contains("postgres -D") {
                found.push(format!("process {pid}: {line}"));
            }
        }
    }
    found
}

/// Fails with the list if anything is left; waits for what disappears by itself in a moment.
#[track_caller]
pub fn assert_nothing_remains(fixture: &Fixture, allowed: &[&str], after: &str) {
    let since = Instant::now();
    loop {
        let found = remains(fixture, allowed);
        if found.is_empty() {
            return;
        }
        let waits = found.iter().all(|what| what.starts_with("session") || what.contains("slot"));
        assert!(
            waits && since.elapsed() < MOMENT,
            "{after}: this is left:\n  {}",
            found.join("\n  ")
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Waits until the killed program's session is gone, without another start of the program.
#[track_caller]
pub fn wait_for_no_session(fixture: &Fixture) {
    let sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name IN ('lockstep', 'lockstep slot')";
    wait_until("the program's session is gone", MOMENT, || {
        fixture.cluster.value("postgres", sessions) == "0"
    });
    let slots = fixture.cluster.column("postgres", "SELECT slot_name FROM pg_replication_slots");
    assert_eq!(slots, Vec::<String>::new(), "a slot outlives its session");
    // A backup can be started and stopped, so the server isn't in backup mode.
    let mut client = fixture.cluster.connect("postgres");
    for statement in ["SELECT pg_backup_start('probe', true)", "SELECT pg_backup_stop(false)"] {
        client.simple_query(statement).unwrap_or_else(|error| panic!("{statement}: {error}"));
    }
}

/// The arguments of a restore into `to`.
pub fn restore_arguments<'a>(set: &'a str, to: &'a Path, more: &[&'a str]) -> Vec<&'a str> {
    let to = to.to_str().expect("the harness' own paths are UTF-8");
    ["restore", set, "--to", to].into_iter().chain(more.iter().copied()).collect()
}

/// Whether a set can be restored, as far as that can be told without doing it: checks every snapshot by GUID and
/// every file by hash.
#[track_caller]
pub fn assert_restorable(fixture: &Fixture, set: &str) {
    let to = fixture.root().join("never-made");
    fixture.lockstep().expect(0, &restore_arguments(set, &to, &["--dry-run"]));
    assert!(!to.exists(), "a dry run made {to:?}");
}

/// A restored cluster that wasn't started, as an administrator would start it: with its own port, in no namespace.
#[track_caller]
pub fn server_by_hand(fixture: &Fixture, data: &Path) -> Cluster {
    let port = free_port();
    let conf = data.join("postgresql.auto.conf");
    let settings = fs::read_to_string(&conf).unwrap_or_default();
    write_as_postgres(&conf, &format!("{settings}\nport = {port}\n"));
    let log = fixture.root().join("log").join(format!("by-hand-{port}.log"));
    Cluster { data: data.to_owned(), port, log, ..fixture.cluster.clone() }
}

/// A file or folder as it can be seen from outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    inode: u64,
    mode: u32,
    owner: (u32, u32),
    modified: (i64, i64),
    content: Vec<u8>,
}

/// Everything below `directory`: inode, mode, owner, time and content of each entry.
#[track_caller]
pub fn walk(directory: &Path) -> BTreeMap<PathBuf, Entry> {
    let mut all = BTreeMap::new();
    let mut todo = vec![directory.to_owned()];
    while let Some(path) = todo.pop() {
        let meta = fs::symlink_metadata(&path)
            .unwrap_or_else(|error| panic!("cannot look at {path:?}: {error}"));
        let content = if meta.is_dir() {
            todo.extend(entries(&path));
            Vec::new()
        } else if meta.is_symlink() {
            fs::read_link(&path)
                .map(|to| to.into_os_string().into_encoded_bytes())
                .unwrap_or_default()
        } else {
            fs::read(&path).unwrap_or_else(|error| panic!("cannot read {path:?}: {error}"))
        };
        let entry = Entry {
            inode: meta.ino(),
            mode: meta.mode(),
            owner: (meta.uid(), meta.gid()),
            modified: (meta.mtime(), meta.mtime_nsec()),
            content,
        };
        all.insert(path, entry);
    }
    all
}

/// The names in which two walks differ.
pub fn differences(
    before: &BTreeMap<PathBuf, Entry>,
    after: &BTreeMap<PathBuf, Entry>,
) -> Vec<PathBuf> {
    let names = before.keys().chain(after.keys());
    let mut names: Vec<_> =
        names.filter(|name| before.get(*name) != after.get(*name)).cloned().collect();
    names.sort();
    names.dedup();
    names
}

/// The entries of a folder; none if it doesn't exist.
pub fn entries(folder: &Path) -> Vec<PathBuf> {
    let mut all: Vec<_> =
        fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    all.sort();
    all
}

/// Fails unless the program's stderr contains every one of `words`.
#[track_caller]
pub fn assert_said(outcome: &Outcome, words: &[&str]) {
    for word in words {
        assert!(outcome.stderr.contains(word), "{word:?} isn't said: {}", outcome.describe());
    }
}
