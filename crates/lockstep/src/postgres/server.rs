//! A server that Lockstep starts: started, watched through recovery, stopped.
//!
//! How far it is is read from its log and from postmaster.pid (its eighth line, PM_STATUS_* in
//! miscadmin.h), so no right to connect is needed. What could go wrong: a server that dies in
//! recovery; its own last words are then the error.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::instance;
use crate::error::{Error, Result};
use crate::isolation::{self, Isolation};
use crate::process::{Credentials, Program, wait_timeout};
use crate::steps;

/// How long a server may take to stop before it is told more firmly.
const STOP_LIMIT: Duration = Duration::from_secs(120);

/// A server to be started.
#[derive(Debug)]
pub struct Launch<'a> {
    /// Where its `postgres` is.
    pub bin_dir: &'a Path,
    /// Its data directory.
    pub data: &'a Path,
    /// Where its stderr goes.
    pub log: &'a Path,
    /// Who it runs as.
    pub user: Option<Credentials>,
    /// Settings for this run alone.
    pub options: Vec<(String, String)>,
    /// Its mount namespace, where it gets one.
    pub isolation: Option<&'a Isolation>,
}

/// A server that was started.
#[derive(Debug)]
pub struct Server {
    child: Child,
    data: PathBuf,
    log: PathBuf,
    read: u64,
    said: Vec<String>,
}

/// How recovery ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It takes reads and writes.
    Ready,
    /// It is paused at the target and takes reads.
    Paused,
    /// It was shut down at the target.
    ShutDown,
    /// It is a standby and takes reads.
    Follows,
}

/// How to stop a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// With a checkpoint.
    Fast,
    /// Without: its data is thrown away anyway.
    Immediate,
}

/// Starts a server.
///
/// # Errors
/// When the program or its log can't be had.
pub fn start(launch: &Launch<'_>) -> Result<Server> {
    let log = File::options()
        .create(true)
        .append(true)
        .open(launch.log)
        .map_err(Error::io("open", launch.log))?;
    crate::files::give_to(launch.log, launch.user)?;
    let read = log.metadata().map_err(Error::io("look at", launch.log))?.len();
    let text = |path: &Path| {
        path.to_str().map(str::to_owned).ok_or_else(|| {
            Error::failed(format!(
                "\"{}\" isn't UTF-8: no server can be started there",
                path.display()
            ))
        })
    };
    let mut words = vec![text(&launch.bin_dir.join("postgres"))?, "-D".into(), text(launch.data)?];
    for (name, value) in &launch.options {
        words.extend(["-c".to_owned(), format!("{name}={value}")]);
    }
    let program = match launch.isolation {
        Some(isolation) => isolation::wrap(isolation, &words, launch.data, launch.user)?,
        None => {
            Program::new(&words[0]).args(&words[1..]).as_user(launch.user).current_dir(launch.data)
        }
    };
    let child = program.start(&log)?;
    Ok(Server {
        child,
        data: launch.data.to_path_buf(),
        log: launch.log.to_path_buf(),
        read,
        said: Vec::new(),
    })
}

impl Server {
    /// Waits until recovery has ended, telling `progress` what it says; `pauses`: a pause at the
    /// target is the end. The server must log to its stderr.
    ///
    /// # Errors
    /// When the server dies: its own words.
    pub fn wait_for_recovery(
        &mut self,
        pauses: bool,
        mut progress: impl FnMut(&str),
    ) -> Result<Outcome> {
        self.watch(
            "still in recovery",
            |words| progress(words),
            |server, has_ended| {
                if has_ended {
                    let wanted = server.has_said("shutdown at recovery target");
                    return wanted.then_some(Outcome::ShutDown);
                }
                // postmaster.pid says "ready" for a hot standby too, so the log has to tell.
                if server.has_said("database system is ready to accept connections") {
                    return Some(Outcome::Ready);
                }
                (pauses && server.is_paused()).then_some(Outcome::Paused)
            },
        )
    }

    /// Waits until a server that has nothing to recover, or is consistent already, accepts connections, wherever it logs;
    /// a standby with `hot_standby = off`, which accepts none, until it replays.
    ///
    /// # Errors
    /// When the server dies: its own words.
    pub fn wait_until_ready(&mut self) -> Result<()> {
        let is_up = |server: &Self, has_ended| {
            server.says(&["ready", "standby"], has_ended).then_some(Outcome::Ready)
        };
        self.watch("not ready yet", |_| (), is_up).map(drop)
    }

    /// Waits until a standby accepts read-only connections, or with `hot_standby = off` is consistent, telling `progress` what it says. The
    /// server must log to its stderr.
    ///
    /// # Errors
    /// When the server dies: its own words.
    pub fn wait_for_standby(&mut self, progress: impl FnMut(&str)) -> Result<()> {
        let is_consistent = |server: &Self, has_ended| {
            let lets_nobody_in = server.says(&["standby"], has_ended)
                && server.has_said("consistent recovery state reached");
            (lets_nobody_in || server.says(&["ready"], has_ended)).then_some(Outcome::Follows)
        };
        self.watch("not consistent yet", progress, is_consistent).map(drop)
    }

    /// Whether postmaster.pid has one of these: PM_STATUS_READY is written when connections are let in, on a hot standby
    /// too; one that lets nobody in has PM_STATUS_STANDBY from the beginning of recovery on.
    fn says(&self, states: &[&str], has_ended: bool) -> bool {
        let status = instance::postmaster_status(&self.data);
        !has_ended && status.is_some_and(|status| states.contains(&status.as_str()))
    }

    /// Reads the log until `done` sees an outcome; `done` is asked once more when the server has ended.
    fn watch(
        &mut self,
        idle: &str,
        mut progress: impl FnMut(&str),
        done: impl Fn(&Self, bool) -> Option<Outcome>,
    ) -> Result<Outcome> {
        let mut last_sign = Instant::now();
        loop {
            for line in self.new_lines() {
                if let Some(words) = recovery_words(&line) {
                    progress(words);
                    last_sign = Instant::now();
                }
                self.said.push(line);
            }
            if let Some(status) =
                self.child.try_wait().map_err(Error::io("wait for", &self.data))?
            {
                // What it wrote between the last look and its end.
                let rest = self.new_lines();
                self.said.extend(rest);
                return done(self, true).ok_or_else(|| self.death(status));
            }
            if let Some(outcome) = done(self, false) {
                return Ok(outcome);
            }
            if steps::interrupted() {
                return Err(Error::Interrupted { step: "server.ready".into() });
            }
            if last_sign.elapsed() > Duration::from_secs(30) {
                progress(idle);
                last_sign = Instant::now();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// What the server's log said of recovery.
    #[must_use]
    pub fn recovery_log(&self) -> Vec<String> {
        self.said.iter().filter_map(|line| recovery_words(line)).map(str::to_owned).collect()
    }

    /// Stops it and waits for its end.
    ///
    /// # Errors
    /// When it stays.
    pub fn stop(&mut self, how: Stop) -> Result<()> {
        signal(self.child.id().cast_signed(), how);
        let ended =
            wait_timeout(&mut self.child, STOP_LIMIT).map_err(Error::io("wait for", &self.data))?;
        match ended {
            Some(_) => Ok(()),
            None => Err(Error::failed(format!(
                "the server of \"{}\" (process {}) doesn't stop",
                self.data.display(),
                self.child.id()
            ))),
        }
    }

    /// Readers are let in before the target is reached, so both lines have to be there.
    fn is_paused(&self) -> bool {
        self.has_said("ready to accept read")
            && (self.has_said("pausing at the end of recovery")
                || self.has_said("recovery has paused"))
    }

    fn has_said(&self, words: &str) -> bool {
        self.said.iter().any(|line| line.contains(words))
    }

    fn new_lines(&mut self) -> Vec<String> {
        let mut text = Vec::new();
        let read = File::open(&self.log).and_then(|mut file| {
            file.seek(SeekFrom::Start(self.read))?;
            file.read_to_end(&mut text)
        });
        // Only whole lines; the rest is there the next time.
        let end = text.iter().rposition(|&b| b == b'\n').map_or(0, |at| at + 1);
        if read.is_err() || end == 0 {
            return Vec::new();
        }
        self.read += end as u64;
        String::from_utf8_lossy(&text[..end]).lines().map(str::to_owned).collect()
    }

    fn death(&self, status: std::process::ExitStatus) -> Error {
        let from = self.said.len().saturating_sub(12);
        let words = self.said[from..].join("\n  ");
        Error::failed(format!(
            "the server of \"{}\" ended in recovery ({status}); its last words:\n  {words}",
            self.data.display()
        ))
    }

    /// All that the server has said since its start.
    #[must_use]
    pub fn said(&self) -> &[String] {
        &self.said
    }
}

/// Stops the server that runs `data`, whoever started it; none is fine.
///
/// # Errors
/// When it stays.
pub fn stop(data: &Path, how: Stop) -> Result<()> {
    let Some(pid) = instance::postmaster(data)? else { return Ok(()) };
    let pid = pid.cast_signed();
    if !runs_in(pid, data) {
        return Ok(());
    }
    signal(pid, how);
    let deadline = Instant::now() + STOP_LIMIT;
    while instance::is_alive(pid) {
        if Instant::now() > deadline {
            return Err(Error::failed(format!(
                "the server of \"{}\" (process {pid}) doesn't stop",
                data.display()
            )));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn signal(pid: i32, how: Stop) {
    let signal = match how {
        Stop::Fast => Signal::INT,
        Stop::Immediate => Signal::QUIT,
    };
    if let Some(pid) = Pid::from_raw(pid) {
        // It may have gone by itself.
        let _ = kill_process(pid, signal);
    }
}

/// Whether the process works in `data`: a pid may have been given to somebody else since.
#[must_use]
pub fn runs_in(pid: i32, data: &Path) -> bool {
    let identity = |path: &Path| std::fs::metadata(path).map(|m| (m.dev(), m.ino()));
    match (identity(Path::new(&format!("/proc/{pid}/cwd"))), identity(data)) {
        (Ok(process), Ok(data)) => process == data,
        _ => false,
    }
}

/// The part of a log line that says how recovery goes.
fn recovery_words(line: &str) -> Option<&str> {
    const TOLD: [&str; 17] = [
        "database system was",
        "starting archive recovery",
        "starting point-in-time recovery",
        "starting backup recovery",
        "completed backup recovery",
        "restored log file",
        "redo starts at",
        "redo in progress",
        "redo done at",
        "consistent recovery state reached",
        "recovery stopping",
        "last completed transaction",
        "selected new timeline ID",
        "archive recovery complete",
        "pausing at the end of recovery",
        "database system is ready",
        "entering archive recovery",
    ];
    let (_, words) = line.split_once("LOG:  ")?;
    TOLD.iter().any(|told| words.contains(told)).then_some(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_words_of_recovery_are_told() {
        let line = "2026-11-23 19:45:12.1 UTC [7] LOG:  redo starts at 0/2000028";
        assert_eq!(recovery_words(line), Some("redo starts at 0/2000028"));
        assert_eq!(recovery_words("x [7] LOG:  listening on IPv4 address"), None);
        assert_eq!(recovery_words("x [7] FATAL:  redo starts at"), None);
    }

    #[test]
    fn a_pid_that_works_elsewhere_is_not_the_server() {
        assert!(!runs_in(std::process::id().cast_signed(), Path::new("/")));
    }
}
