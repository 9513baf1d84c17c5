//! The program as its users see it: a command line, an exit code, data on stdout, messages on stderr.
//!
//! Nothing in the tests reaches into the program. [`Steps`] drives its test hooks: at a named step it can be slowed
//! down, held and watched.

use super::cluster::Cluster;
use super::command::{Outcome, Running, command, wait_until};
use super::pools::path_with_turns;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// How long one command of the program may take.
pub const LIMIT: Duration = Duration::from_secs(300);

/// The exit codes of the contract.
pub mod exit {
    /// Done.
    pub const DONE: i32 = 0;
    /// Failed.
    pub const FAILED: i32 = 1;
    /// The command line is wrong.
    pub const USAGE: i32 = 2;
    /// Finished, with problems.
    pub const PROBLEMS: i32 = 3;
    /// Refused: it wouldn't be consistent, or wouldn't be safe.
    pub const REFUSED: i32 = 4;
    /// Somebody else has the lock.
    pub const LOCKED: i32 = 11;
    /// Interrupted.
    pub const INTERRUPTED: i32 = 130;
}

/// The program with one configuration.
#[derive(Debug, Clone)]
pub struct Lockstep {
    config: PathBuf,
    bin: PathBuf,
    environment: Vec<(String, PathBuf)>,
}

/// What `backup --json` says.
#[derive(Debug, Clone)]
pub struct Set {
    /// The set's id.
    pub id: String,
    /// The strategy that was used.
    pub strategy: String,
    /// Where recovery starts.
    pub start_lsn: Option<Lsn>,
    /// Everything committed before it is in the set; no target may be before it.
    pub floor_lsn: Option<Lsn>,
    /// Its volumes.
    pub volumes: Vec<Volume>,
    /// How many times it was taken until the layout stayed the same.
    pub tries: u64,
    /// The whole value.
    pub json: Value,
}

/// One dataset's snapshot in a set.
#[derive(Debug, Clone)]
pub struct Volume {
    /// The dataset.
    pub dataset: String,
    /// The snapshot, as `dataset@name`.
    pub snapshot: String,
    /// The snapshot's GUID, in decimal.
    pub guid: String,
    /// The transaction group.
    pub createtxg: u64,
    /// Its position in the order.
    pub order: u64,
    /// The parts on it.
    pub parts: Vec<String>,
}

/// A position in the WAL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Lsn(pub u64);

impl Lsn {
    /// Parses PostgreSQL's own form, `16/B374D848`.
    #[track_caller]
    pub fn parse(text: &str) -> Lsn {
        let halves = text
            .split_once('/')
            .map(|(high, low)| (u64::from_str_radix(high, 16), u64::from_str_radix(low, 16)));
        match halves {
            Some((Ok(high), Ok(low))) => Lsn(high << 32 | low),
            _ => panic!("{text:?} is no LSN"),
        }
    }
}

impl std::fmt::Display for Lsn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

/// What `restore --json` or `clone create --json` says, and the server, if one was started.
#[derive(Debug, Clone)]
pub struct Restored {
    /// The data directory.
    pub data: PathBuf,
    /// The server, if it was started.
    pub cluster: Option<Cluster>,
    /// The whole value.
    pub json: Value,
}

impl Restored {
    /// The server, which must have been started.
    #[track_caller]
    pub fn server(&self) -> &Cluster {
        self.cluster.as_ref().unwrap_or_else(|| panic!("restored without a server: {}", self.json))
    }
}

impl Lockstep {
    /// The program with this configuration file; `bin` is where the PostgreSQL programs are.
    pub fn new(config: &Path, bin: &Path) -> Lockstep {
        Lockstep { config: config.to_owned(), bin: bin.to_owned(), environment: Vec::new() }
    }

    /// The same, its test hooks driven by `steps`.
    pub fn with_steps(self, steps: &Steps) -> Lockstep {
        self.with_environment("LOCKSTEP_STEPS_DIR", &steps.directory)
    }

    /// The same, with a variable of its environment set to a path or a list of them.
    pub fn with_environment(mut self, name: &str, value: &Path) -> Lockstep {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Runs it to its end, whatever the result.
    #[track_caller]
    pub fn run(&self, arguments: &[&str]) -> Outcome {
        self.spawn(arguments).wait(LIMIT)
    }

    /// Starts it in the background.
    #[track_caller]
    pub fn spawn(&self, arguments: &[&str]) -> Running {
        let mut program = command(env!("CARGO_BIN_EXE_lockstep"), arguments);
        program.current_dir("/").env("PATH", path_with_turns());
        program.env("LOCKSTEP_CONFIG", &self.config);
        for (name, value) in &self.environment {
            program.env(name, value);
        }
        Running::start(&mut program)
    }

    /// Runs it to its end, which must be this exit code.
    #[track_caller]
    pub fn expect(&self, code: i32, arguments: &[&str]) -> Outcome {
        let outcome = self.run(arguments);
        assert!(outcome.code == Some(code), "expected exit code {code}: {}", outcome.describe());
        outcome
    }

    /// Runs it with `--json` to its end, which must be exit code 0.
    #[track_caller]
    pub fn json(&self, arguments: &[&str]) -> Value {
        let arguments: Vec<&str> =
            std::iter::once("--json").chain(arguments.iter().copied()).collect();
        json_of(&self.expect(exit::DONE, &arguments))
    }

    /// Takes a set.
    #[track_caller]
    pub fn backup(&self, strategy: &str) -> Set {
        Set::of(&self.json(&["backup", "--strategy", strategy]))
    }

    /// Restores into `directory` without starting anything.
    #[track_caller]
    pub fn restore(&self, set: &str, directory: &Path, more: &[&str]) -> Restored {
        let to = directory.to_str().expect("the harness' own paths are UTF-8");
        let arguments: Vec<&str> =
            ["restore", set, "--to", to].into_iter().chain(more.iter().copied()).collect();
        self.restored(&self.json(&arguments))
    }

    /// Restores into `directory`, starts a server there, and waits until it accepts connections.
    #[track_caller]
    pub fn restore_and_start(&self, set: &str, directory: &Path, more: &[&str]) -> Restored {
        let port = super::fixture::free_port().to_string();
        let more: Vec<&str> = more.iter().copied().chain(["--start", "--port", &port]).collect();
        let restored = self.restore(set, directory, &more);
        assert!(
            restored.cluster.is_some(),
            "not started, though it was asked for: {}",
            restored.json
        );
        restored
    }

    /// Makes a throwaway server.
    #[track_caller]
    pub fn clone_create(&self, name: &str, more: &[&str]) -> Restored {
        let arguments: Vec<&str> =
            ["clone", "create", name].into_iter().chain(more.iter().copied()).collect();
        self.restored(&self.json(&arguments))
    }

    /// What a successful `restore --json` or `clone create --json` printed.
    #[track_caller]
    pub fn restored(&self, json: &Value) -> Restored {
        let data = PathBuf::from(text(json, "data_directory"));
        let directory = data.parent().expect("a data directory lies in a directory");
        let started = json["started"].as_bool().unwrap_or(json["socket_directory"].is_string());
        let cluster = started.then(|| Cluster::running_in(&data, &self.bin, &log_of(directory)));
        Restored { data, cluster, json: json.clone() }
    }

    /// The ids of all complete sets, as `list` prints them.
    #[track_caller]
    pub fn sets(&self) -> Vec<String> {
        // Exit code 3 if one isn't whole.
        let listed = json_of(&self.run(&["--json", "list"]));
        let sets = listed["sets"]
            .as_array()
            .unwrap_or_else(|| panic!("`list --json` has no array \"sets\": {listed}"));
        sets.iter().map(|set| text(set, "set")).collect()
    }
}

impl Set {
    /// Parses the output of `backup --json`.
    #[track_caller]
    pub fn of(json: &Value) -> Set {
        let lsn = |name: &str| match &json[name] {
            Value::Null => None,
            Value::String(text) => Some(Lsn::parse(text)),
            other => panic!("{name:?} is neither a string nor null: {other}"),
        };
        let volumes = json["volumes"].as_array().unwrap_or_else(|| panic!("no volumes: {json}"));
        Set {
            id: text(json, "set"),
            strategy: text(json, "strategy"),
            start_lsn: lsn("start_lsn"),
            floor_lsn: lsn("floor_lsn"),
            volumes: volumes.iter().map(Volume::of).collect(),
            tries: json["tries"].as_u64().unwrap_or_else(|| panic!("no number of tries: {json}")),
            json: json.clone(),
        }
    }

    /// The volumes in the order in which they were taken.
    pub fn in_order(&self) -> Vec<&Volume> {
        let mut volumes: Vec<_> = self.volumes.iter().collect();
        volumes.sort_by_key(|volume| volume.order);
        volumes
    }
}

impl Volume {
    #[track_caller]
    fn of(json: &Value) -> Volume {
        let parts =
            json["parts"].as_array().unwrap_or_else(|| panic!("a volume without parts: {json}"));
        let dataset = text(json, "dataset");
        let snapshot = text(json, "snapshot");
        let snapshot =
            if snapshot.contains('@') { snapshot } else { format!("{dataset}@{snapshot}") };
        Volume {
            snapshot,
            dataset,
            guid: number(json, "guid"),
            createtxg: number(json, "createtxg")
                .parse()
                .unwrap_or_else(|_| panic!("createtxg is no number: {json}")),
            order: number(json, "order")
                .parse()
                .unwrap_or_else(|_| panic!("order is no number: {json}")),
            parts: parts
                .iter()
                .map(|part| part.as_str().map_or_else(|| part.to_string(), str::to_owned))
                .collect(),
        }
    }
}

/// The standard output of a successful `--json` command: one JSON value and nothing else.
#[track_caller]
pub fn json_of(outcome: &Outcome) -> Value {
    serde_json::from_str(&outcome.stdout)
        .unwrap_or_else(|error| panic!("stdout is not JSON: {error}: {}", outcome.describe()))
}

#[track_caller]
fn text(json: &Value, name: &str) -> String {
    json[name].as_str().unwrap_or_else(|| panic!("no string {name:?} in {json}")).to_owned()
}

/// 64-bit numbers may be strings, because readers in other languages lose the last digits of a number.
#[track_caller]
fn number(json: &Value, name: &str) -> String {
    match &json[name] {
        Value::Number(number) => number.to_string(),
        Value::String(text) => text.clone(),
        other => panic!("{name:?} is no number but {other} in {json}"),
    }
}

/// The log of a server that the program started: the file with that ending in its directory.
fn log_of(directory: &Path) -> PathBuf {
    let files = fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
    files
        .into_iter()
        .find(|path| path.extension().is_some_and(|end| end == "log"))
        .unwrap_or_else(|| directory.join("server.log"))
}

/// A TOML basic string.
pub fn toml_string(path: &Path) -> String {
    let text = path.to_str().expect("the harness' own paths are UTF-8");
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            '\n' => quoted.push_str("\\n"),
            other => quoted.push(other),
        }
    }
    quoted.push('"');
    quoted
}

/// The program's test hooks: a directory in which it notes each step that it reaches, and checks whether to wait
/// there.
#[derive(Debug)]
pub struct Steps {
    directory: PathBuf,
}

impl Steps {
    /// A fresh set of hooks in a new directory.
    #[track_caller]
    pub fn new(directory: PathBuf) -> Steps {
        let _ = fs::remove_dir_all(&directory);
        fs::create_dir_all(&directory)
            .unwrap_or_else(|error| panic!("cannot create {directory:?}: {error}"));
        Steps { directory }
    }

    /// Makes the program sleep at `step`.
    pub fn delay(&self, step: &str, how_long: Duration) {
        self.write(&format!("{step}.delay"), &how_long.as_millis().to_string());
    }

    /// Makes the program wait at `step` until [`Steps::release`]. Forgets that it was reached before.
    pub fn hold(&self, step: &str) {
        let _ = fs::remove_file(self.directory.join(step));
        self.write(&format!("{step}.hold"), "");
    }

    /// Lets it continue.
    pub fn release(&self, step: &str) {
        let _ = fs::remove_file(self.directory.join(format!("{step}.hold")));
    }

    /// When `step` was first reached or, if it was passed again, last reached; `None` if not yet.
    pub fn reached(&self, step: &str) -> Option<SystemTime> {
        fs::metadata(self.directory.join(step)).ok()?.modified().ok()
    }

    /// All steps reached so far.
    pub fn all_reached(&self) -> Vec<String> {
        let files = fs::read_dir(&self.directory).into_iter().flatten().flatten();
        let names = files.map(|entry| entry.file_name().to_string_lossy().into_owned());
        let mut names: Vec<_> =
            names.filter(|name| !name.ends_with(".delay") && !name.ends_with(".hold")).collect();
        names.sort();
        names
    }

    /// Waits until the program has reached `step`; fails if it ends before.
    #[track_caller]
    pub fn wait_reached(&self, step: &str, program: &mut Running) {
        wait_until(
            &format!("step {step} is reached; reached so far: {:?}", self.all_reached()),
            LIMIT,
            || {
                // Asked first: a program that has just passed the step may end at once.
                let is_running = program.is_running();
                let reached = self.reached(step).is_some();
                if !reached && !is_running {
                    let said = program.ended().map(|outcome| outcome.describe());
                    panic!(
                        "the program ended before step {step} (is it built with its test hooks?); reached: {:?}\n{}",
                        self.all_reached(),
                        said.unwrap_or_default()
                    );
                }
                reached
            },
        );
    }

    fn write(&self, name: &str, content: &str) {
        fs::write(self.directory.join(name), content)
            .expect("a file can be written in the steps' directory");
    }
}
