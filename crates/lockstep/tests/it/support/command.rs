//! Running other programs: argv only, as root or as the operating system's user `postgres`, with a time limit.

use std::ffi::OsStr;
use std::io::Read;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

/// How long a program of PostgreSQL or ZFS may take before the test gives up on it.
pub const LIMIT: Duration = Duration::from_secs(300);

/// The user that owns test clusters and runs their servers.
pub const OS_USER: &str = "postgres";

/// The result of a program that ended: its exit code or signal, and all its output.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The command line, for messages.
    pub command: String,
    /// The exit code; `None` after a signal.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
    /// From its start to its end.
    pub took: Duration,
}

impl Outcome {
    /// Whether it ended with code 0.
    pub fn ok(&self) -> bool {
        self.code == Some(0)
    }

    /// Everything known about the run, for a panic message.
    pub fn describe(&self) -> String {
        let ending = match (self.code, self.signal) {
            (Some(code), _) => format!("exit code {code}"),
            (None, Some(signal)) => format!("signal {signal}"),
            (None, None) => "no exit code".to_owned(),
        };
        format!(
            "{}\n  {ending} after {:.2?}\n--- stdout\n{}\n--- stderr\n{}",
            self.command, self.took, self.stdout, self.stderr
        )
    }
}

/// A program that runs in the background; both of its outputs are collected.
#[derive(Debug)]
pub struct Running {
    child: Child,
    command: String,
    since: Instant,
    stdout: Option<thread::JoinHandle<Vec<u8>>>,
    stderr: Option<thread::JoinHandle<Vec<u8>>>,
}

impl Running {
    /// Starts `command` with no input.
    #[track_caller]
    pub fn start(command: &mut Command) -> Running {
        let line = line_of(command);
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {line}: {error}"));
        let stdout = child.stdout.take().map(collect);
        let stderr = child.stderr.take().map(collect);
        Running { child, command: line, since: Instant::now(), stdout, stderr }
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has not ended yet.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Sends SIGKILL: no chance to clean up.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
    }

    /// Sends SIGTERM, unless it has ended by itself.
    pub fn terminate(&mut self) {
        if self.is_running() {
            self.signal(rustix::process::Signal::TERM);
        }
    }

    /// Sends a signal to the process only, not to its children.
    pub fn signal(&self, signal: rustix::process::Signal) {
        if let Some(pid) = rustix::process::Pid::from_raw(self.child.id().cast_signed()) {
            let _ = rustix::process::kill_process(pid, signal);
        }
    }

    /// Waits for its end; after `limit` it is killed and the test fails.
    #[track_caller]
    pub fn wait(self, limit: Duration) -> Outcome {
        match self.wait_or_kill(limit) {
            (outcome, false) => outcome,
            (outcome, true) => panic!("not done after {limit:?}, killed: {}", outcome.describe()),
        }
    }

    /// Waits for its end, and kills it after `limit`; returns whether it had to be killed.
    #[track_caller]
    pub fn wait_or_kill(mut self, limit: Duration) -> (Outcome, bool) {
        let mut pause = Duration::from_millis(1);
        let mut killed = false;
        let status: ExitStatus = loop {
            match self.child.try_wait() {
                Ok(Some(status)) => break status,
                Ok(None) if self.since.elapsed() > limit => {
                    let _ = self.child.kill();
                    killed = true;
                    break self.child.wait().expect("a killed child can be waited for");
                }
                Ok(None) => thread::sleep(pause),
                Err(error) => panic!("cannot wait for {}: {error}", self.command),
            }
            pause = (pause * 2).min(Duration::from_millis(20));
        };
        (self.outcome(status), killed)
    }

    /// What it has said, if it has ended already.
    #[track_caller]
    pub fn ended(&mut self) -> Option<Outcome> {
        let status = self.child.try_wait().ok()??;
        Some(self.outcome(status))
    }

    #[track_caller]
    fn outcome(&mut self, status: ExitStatus) -> Outcome {
        let took = self.since.elapsed();
        let line = self.command.clone();
        let stdout = ending(&line, "stdout", self.stdout.take());
        let stderr = ending(&line, "stderr", self.stderr.take());
        Outcome {
            command: line,
            code: status.code(),
            signal: status.signal(),
            stdout,
            stderr,
            took,
        }
    }
}

fn collect(mut pipe: impl Read + Send + 'static) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = pipe.read_to_end(&mut bytes);
        bytes
    })
}

/// What was read until the pipe's end. If a server were left running with our pipe as its output, every `$(lockstep
/// …)` in a user's script would wait for ever, so that counts as a failure.
#[track_caller]
fn ending(line: &str, name: &str, reader: Option<thread::JoinHandle<Vec<u8>>>) -> String {
    let Some(reader) = reader else {
        return String::new();
    };
    let since = Instant::now();
    while !reader.is_finished() {
        assert!(
            since.elapsed() < Duration::from_secs(10),
            "{line} has ended, but a process that it started still holds its {name} open"
        );
        thread::sleep(Duration::from_millis(2));
    }
    String::from_utf8_lossy(&reader.join().unwrap_or_default()).into_owned()
}

fn line_of(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| format!("{word:?}")).collect::<Vec<_>>().join(" ")
}

/// Runs a program to its end, whatever the result.
#[track_caller]
pub fn run(command: &mut Command) -> Outcome {
    Running::start(command).wait(LIMIT)
}

/// Runs a program to its end, which must be exit code 0; returns its standard output.
#[track_caller]
pub fn must(command: &mut Command) -> String {
    let outcome = run(command);
    assert!(outcome.ok(), "{}", outcome.describe());
    outcome.stdout
}

/// A command with its arguments.
pub fn command<I>(program: impl AsRef<OsStr>, arguments: I) -> Command
where
    I: IntoIterator,
    I::Item: AsRef<OsStr>,
{
    let mut command = Command::new(program);
    command.args(arguments);
    command
}

/// The same, run by [`OS_USER`] in a directory that it can read.
pub fn as_postgres<I>(program: impl AsRef<OsStr>, arguments: I) -> Command
where
    I: IntoIterator,
    I::Item: AsRef<OsStr>,
{
    let (uid, gid) = postgres_ids();
    let mut command = command(program, arguments);
    command.uid(uid).gid(gid).current_dir("/");
    command
}

/// User and group id of [`OS_USER`].
pub fn postgres_ids() -> (u32, u32) {
    static IDS: OnceLock<(u32, u32)> = OnceLock::new();
    *IDS.get_or_init(|| {
        let passwd = std::fs::read_to_string("/etc/passwd").expect("/etc/passwd can be read");
        let entry = passwd
            .lines()
            .map(|line| line.split(':').collect::<Vec<_>>())
            .find(|fields| fields.first() == Some(&OS_USER))
            .unwrap_or_else(|| panic!("these tests need the operating system user {OS_USER:?}"));
        let number = |field: usize| entry[field].parse().expect("ids in /etc/passwd are numbers");
        (number(2), number(3))
    })
}

/// Makes `path` belong to [`OS_USER`].
#[track_caller]
pub fn give_to_postgres(path: &Path) {
    let (uid, gid) = postgres_ids();
    std::os::unix::fs::chown(path, Some(uid), Some(gid))
        .unwrap_or_else(|error| panic!("cannot give {path:?} to {OS_USER}: {error}"));
}

/// Waits until `ready` returns true; fails with `what` after `limit`.
#[track_caller]
pub fn wait_until(what: &str, limit: Duration, mut ready: impl FnMut() -> bool) {
    let since = Instant::now();
    while !ready() {
        assert!(since.elapsed() < limit, "waited {limit:?} in vain: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}
