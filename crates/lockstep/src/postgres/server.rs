//! Starts a server, watches it through recovery, and stops it.
//!
//! The server's state is read from its log and from postmaster.pid (its eighth line, PM_STATUS_* in miscadmin.h), so
//! no permission to connect is needed. What could go wrong: the server dies in recovery. The error then contains its
//! own last words.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant, SystemTime};

use rustix::process::{Pid, Signal, kill_process};

use super::instance;
use super::invalid_pages::{IGNORE, InvalidPages};
use super::running;
use crate::error::{Error, Result};
use crate::files;
use crate::isolation::left::{self, Namespace};
use crate::isolation::{self, Isolation};
use crate::process::{Credentials, Program};
use crate::steps;

/// How long a server may take to stop if it has nothing to write first.
const STOP_LIMIT: Duration = Duration::from_secs(120);
/// How often a message says that a server is still being waited for.
const SIGN: Duration = Duration::from_secs(30);
/// How many of a dead server's last log lines are shown.
const LAST_WORDS: usize = 12;

/// A server to be started.
#[derive(Debug)]
pub struct Launch<'a> {
    /// Where its `postgres` is.
    pub bin_dir: &'a Path,
    /// Its data directory.
    pub data: &'a Path,
    /// The file that its stderr goes to.
    pub log: &'a Path,
    /// The user that it runs as.
    pub user: Option<Credentials>,
    /// Settings for this run only.
    pub options: Vec<(String, String)>,
    /// Its mount namespace, if it gets one.
    pub isolation: Option<&'a Isolation>,
}

/// A server that was started.
#[derive(Debug)]
pub struct Server {
    child: Child,
    data: PathBuf,
    log: File,
    read: u64,
    /// When it began, if its own settings may let a collector write its log.
    may_collect_since: Option<SystemTime>,
    said: Vec<String>,
    /// What it logged about pages that don't exist, if it was told to ignore that.
    invalid_pages: Option<InvalidPages>,
    /// Its mount namespace, once it is known to be in its own.
    namespace: Option<Namespace>,
}

/// How recovery ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It accepts reads and writes.
    Ready,
    /// It is paused at the target and accepts reads.
    Paused,
    /// It was shut down at the target.
    ShutDown,
    /// It is a standby and accepts reads.
    Follows,
    /// It is a standby that can't become consistent.
    Starved,
}

/// How to stop a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// With a checkpoint.
    Fast,
    /// Without a checkpoint: its data is thrown away anyway.
    Immediate,
}

/// Starts a server.
///
/// # Errors
/// When the program can't be started or its log can't be opened.
pub fn start(launch: &Launch<'_>) -> Result<Server> {
    let log = crate::files::open_log(launch.log, launch.user)?;
    let read = log.metadata().map_err(Error::io("look at", launch.log))?.len();
    let text = |path: &Path| {
        path.to_str().map(str::to_owned).ok_or_else(|| {
            Error::failed(format!(
                "\"{}\" isn't UTF-8: no server can be started there",
                path.display()
            ))
        })
    };
    let data = text(launch.data)?;
    let mut words = vec![text(&launch.bin_dir.join("postgres"))?, "-D".into(), data.clone()];
    // A configuration that belonged to another cluster may name that one's.
    let here = ("data_directory".to_owned(), data);
    for (name, value) in std::iter::once(&here).chain(&launch.options) {
        words.extend(["-c".to_owned(), format!("{name}={value}")]);
    }
    let program = match launch.isolation {
        Some(isolation) => isolation::wrap(isolation, &words, launch.data, launch.user)?,
        None => {
            Program::new(&words[0]).args(&words[1..]).as_user(launch.user).current_dir(launch.data)
        }
    };
    let has = |option: &str| launch.options.iter().any(|(name, _)| name == option);
    let may_collect_since = (!has("logging_collector")).then(SystemTime::now);
    let child = program.start(&log)?;
    let ignores = has(IGNORE);
    Ok(Server {
        child,
        data: launch.data.to_path_buf(),
        log,
        read,
        may_collect_since,
        said: Vec::new(),
        invalid_pages: ignores.then(InvalidPages::default),
        namespace: None,
    })
}

impl Server {
    /// Waits until recovery has ended and passes what the server says to `progress`; with `pauses`, a pause at the
    /// target counts as the end. The server must log to its stderr, in English and with details.
    ///
    /// # Errors
    /// When the server dies, with its own words.
    pub fn wait_for_recovery(
        &mut self,
        pauses: bool,
        mut progress: impl FnMut(&str),
    ) -> Result<Outcome> {
        self.watch(
            "still in recovery",
            "in recovery",
            |words| progress(words),
            |server, has_ended| {
                if has_ended {
                    let wanted = server.has_said("shutdown at recovery target");
                    return wanted.then_some(Outcome::ShutDown);
                }
                // postmaster.pid says "ready" for a hot standby too, so only the log can tell.
                if server.has_said("database system is ready to accept connections") {
                    return Some(Outcome::Ready);
                }
                (pauses && server.is_paused()).then_some(Outcome::Paused)
            },
        )
    }

    /// Waits until a server that has nothing to recover, or is already consistent, accepts connections, wherever it
    /// logs. A standby with `hot_standby = off` accepts none: for that, until it replays.
    ///
    /// # Errors
    /// When the server dies, with its own words.
    pub fn wait_until_ready(&mut self) -> Result<()> {
        let is_up = |server: &Self, has_ended| {
            server.says(&["ready", "standby"], has_ended).then_some(Outcome::Ready)
        };
        self.watch("not ready yet", "at its start", |_| (), is_up).map(drop)
    }

    /// Waits until a standby accepts read-only connections, or is consistent if it has `hot_standby = off`, and
    /// passes what it says to `progress`. The server must log to its stderr.
    ///
    /// # Errors
    /// When the server dies, with its own words.
    pub fn wait_for_standby(&mut self, progress: impl FnMut(&str)) -> Result<()> {
        self.wait_for_fed_standby(progress, |_| false).map(drop)
    }

    /// The same, but the outcome is [`Outcome::Starved`] once `is_starved` finds in what the server said that it can't
    /// get WAL that it needs: it would wait for that for ever.
    ///
    /// # Errors
    /// As [`Self::wait_for_standby`].
    pub fn wait_for_fed_standby(
        &mut self,
        progress: impl FnMut(&str),
        is_starved: impl Fn(&[String]) -> bool,
    ) -> Result<Outcome> {
        let done = |server: &Self, has_ended| {
            let lets_nobody_in = server.says(&["standby"], has_ended)
                && server.has_said("consistent recovery state reached");
            if lets_nobody_in || server.says(&["ready"], has_ended) {
                return Some(Outcome::Follows);
            }
            (!has_ended && is_starved(server.said())).then_some(Outcome::Starved)
        };
        self.watch("not consistent yet", "in recovery", progress, done)
    }

    /// Stops it if a signal ended the wait for it before it had a postmaster.pid: by that, whoever undoes finds a server.
    ///
    /// # Errors
    /// When it doesn't stop.
    pub fn stop_if_unseen(&mut self, error: &Error) -> Result<()> {
        match error {
            Error::Interrupted { .. } if instance::postmaster(&self.data)?.is_none() => {
                self.stop(Stop::Immediate)
            }
            _ => Ok(()),
        }
    }

    /// Whether postmaster.pid has one of these states. PM_STATUS_READY is written when connections are accepted, on a
    /// hot standby too. A server that accepts none has PM_STATUS_STANDBY from the beginning of recovery on.
    /// After a crash of the machine the file is the former server's, until this one writes its own.
    fn says(&self, states: &[&str], has_ended: bool) -> bool {
        let named = instance::postmaster(&self.data).ok().flatten();
        let is_own = !has_ended && named.is_some_and(|named| is_server(named, &self.data));
        let status = is_own.then(|| instance::postmaster_status(&self.data)).flatten();
        status.is_some_and(|status| states.contains(&status.as_str()))
    }

    /// Reads the log until `done` returns an outcome; `done` is asked once more when the server has ended. `when`
    /// says what the server was doing then.
    fn watch(
        &mut self,
        idle: &str,
        when: &str,
        mut progress: impl FnMut(&str),
        done: impl Fn(&Self, bool) -> Option<Outcome>,
    ) -> Result<Outcome> {
        let mut last_sign = Instant::now();
        loop {
            self.namespace = self.namespace.or_else(|| Namespace::of(self.child.id()));
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
                // What it logged between the last look and its end.
                let rest = self.new_lines();
                self.said.extend(rest);
                self.name_those_left();
                return done(self, true).ok_or_else(|| self.death(when, status));
            }
            if let Some(lower) = self.lower_setting() {
                return Err(self.cannot_go_on(&lower));
            }
            if let Some(outcome) = done(self, false) {
                return Ok(outcome);
            }
            if steps::interrupted() {
                return Err(Error::Interrupted { step: "server.ready".into() });
            }
            if last_sign.elapsed() > SIGN {
                progress(idle);
                last_sign = Instant::now();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// What the server's log says about recovery.
    #[must_use]
    pub fn recovery_log(&self) -> Vec<String> {
        self.said.iter().filter_map(|line| recovery_words(line)).map(str::to_owned).collect()
    }

    /// Stops it and waits for its end; with [`Stop::Fast`] for as long as its last checkpoint takes.
    ///
    /// # Errors
    /// When it doesn't stop, or a signal comes.
    pub fn stop(&mut self, how: Stop) -> Result<()> {
        let has_ended = self.child.try_wait().map_err(Error::io("wait for", &self.data))?;
        if has_ended.is_none() {
            signal(self.child.id().cast_signed(), how);
        }
        let (child, data) = (&mut self.child, &self.data);
        wait_for_end(how, child.id(), data, || {
            Ok(child.try_wait().map_err(Error::io("wait for", data))?.is_some())
        })?;
        let rest = self.new_lines();
        self.said.extend(rest);
        self.name_those_left();
        Ok(())
    }

    /// Reports processes that its restore_command has left in its mount namespace.
    fn name_those_left(&mut self) {
        let left = self.namespace.take().map(Namespace::processes).unwrap_or_default();
        if !left.is_empty() {
            tracing::warn!(
                "left running by recovery, perhaps by restore_command: {}. Until it ends, the datasets of \"{}\" are busy",
                left::named(&left),
                self.data.display()
            );
        }
    }

    /// Readers are let in before the target is reached, so both lines are needed. "recovery has paused" is logged for
    /// other pauses too (recoveryPausesHere in xlogrecovery.c).
    fn is_paused(&self) -> bool {
        self.has_said("ready to accept read") && self.has_said("pausing at the end of recovery")
    }

    fn has_said(&self, words: &str) -> bool {
        self.said.iter().any(|line| line.contains(words))
    }

    /// The setting that is too low for hot standby, if that has ended or halted recovery: the original's was raised
    /// in the WAL that is replayed.
    #[must_use]
    pub fn lower_setting(&self) -> Option<LowerSetting> {
        self.said.iter().rev().find_map(|line| LowerSetting::of(line))
    }

    /// From PostgreSQL 14 on, the server waits at that point and accepts readers, until somebody reads its log.
    fn cannot_go_on(&self, lower: &LowerSetting) -> Error {
        let LowerSetting { name, needed } = lower;
        Error::failed(format!(
            "recovery of \"{}\" halted before its end: a server that accepts readers needs {name} of at least {needed}, which is the original's",
            self.data.display()
        ))
    }

    fn new_lines(&mut self) -> Vec<String> {
        let (mut text, mut chunk) = (Vec::new(), [0; 8192]);
        while let Ok(length @ 1..) = self.log.read_at(&mut chunk, self.read + text.len() as u64) {
            text.extend_from_slice(&chunk[..length]);
        }
        // Only whole lines; the rest is read the next time.
        let end = text.iter().rposition(|&b| b == b'\n').map_or(0, |at| at + 1);
        if end == 0 {
            return Vec::new();
        }
        self.read += end as u64;
        let text = String::from_utf8_lossy(&text[..end]);
        let mut taken = |line: &&str| match &mut self.invalid_pages {
            Some(pages) => !pages.takes(line),
            None => true,
        };
        text.lines().filter(&mut taken).map(str::to_owned).collect()
    }

    fn death(&self, when: &str, status: std::process::ExitStatus) -> Error {
        let from = self.said.len().saturating_sub(LAST_WORDS);
        let mut words = self.said[from..].to_vec();
        words.extend(self.may_collect_since.iter().flat_map(|since| collected(&self.data, *since)));
        Error::failed(format!(
            "the server of \"{}\" ended {when} ({status}); its last words:\n  {}",
            self.data.display(),
            words.join("\n  ")
        ))
    }

    /// The folders in which pages didn't exist, for a server that was told to ignore that.
    pub fn invalid_pages(&self) -> impl Iterator<Item = &str> {
        self.invalid_pages.iter().flat_map(InvalidPages::folders)
    }

    /// Everything that the server has logged since its start, except about pages that don't exist.
    #[must_use]
    pub fn said(&self) -> &[String] {
        &self.said
    }
}

/// The end of the log that the collector of a server that began at this time wrote, read with the owner's rights;
/// nothing if it has none. Where it logs is known by a file, because its messages may be in any language. The
/// collector writes that file once it runs, and ends after the server.
#[must_use]
pub fn collected(data: &Path, began: SystemTime) -> Vec<String> {
    let Ok(reader) = files::reader_of(data) else { return Vec::new() };
    // A file system may keep times in whole seconds.
    let began = began.checked_sub(Duration::from_secs(1)).unwrap_or(began);
    let read = || {
        let written = data.join("current_logfiles").metadata().and_then(|found| found.modified());
        // An older one is of another server.
        written.ok().filter(|written| *written >= began)?;
        let named = files::read_as(&data.join("current_logfiles"), reader).ok()??;
        let named = String::from_utf8_lossy(&named).into_owned();
        let tail = Program::new("tail").args(["-n", &LAST_WORDS.to_string(), "--"]);
        let path = data.join(log_named(&named)?);
        tail.arg(path).as_user(reader).run_for_output().ok()
    };
    let deadline = Instant::now() + Duration::from_secs(1);
    loop {
        let text = read().unwrap_or_default();
        if text.contains("FATAL") || Instant::now() >= deadline {
            return text.lines().map(str::to_owned).collect();
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The plain text log file in the contents of current_logfiles, or else any other (update_metainfo_datafile in
/// syslogger.c).
fn log_named(text: &str) -> Option<&str> {
    let of = |line: &'_ str| line.starts_with("stderr ");
    let line = text.lines().find(|line| of(line)).or_else(|| text.lines().next())?;
    line.split_once(' ').map(|(_, path)| path)
}

/// Waits for a server's end. One that makes a checkpoint first takes as long as there is to write: only a signal ends
/// that wait. If a signal came before, there is a time limit.
fn wait_for_end(
    how: Stop,
    pid: u32,
    data: &Path,
    mut has_ended: impl FnMut() -> Result<bool>,
) -> Result<()> {
    let (began, was_interrupted) = (Instant::now(), steps::interrupted());
    let mut last_sign = began;
    let has_limit = how == Stop::Immediate || was_interrupted;
    while !has_ended()? {
        if has_limit && began.elapsed() > STOP_LIMIT {
            return Err(Error::failed(format!(
                "the server of \"{}\" (process {pid}) doesn't stop",
                data.display()
            )));
        }
        if !has_limit && steps::interrupted() {
            return Err(Error::Interrupted { step: "server.stopped".into() });
        }
        if last_sign.elapsed() > SIGN {
            tracing::info!(
                "the server of \"{}\" (process {pid}) has been writing its last checkpoint for {} s: still waiting for it",
                data.display(),
                began.elapsed().as_secs()
            );
            last_sign = Instant::now();
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Stops the server that runs `data`, whoever started it; it is no error if there is none.
///
/// # Errors
/// When it doesn't stop, or with [`Stop::Fast`] a signal comes.
pub fn stop(data: &Path, how: Stop) -> Result<()> {
    let Some(pid) = instance::postmaster(data)? else { return Ok(()) };
    if !runs_in(pid.cast_signed(), data) {
        return Ok(());
    }
    signal(pid.cast_signed(), how);
    wait_for_end(how, pid, data, || Ok(!instance::is_alive(pid.cast_signed())))
}

fn signal(pid: i32, how: Stop) {
    let signal = match how {
        Stop::Fast => Signal::INT,
        Stop::Immediate => Signal::QUIT,
    };
    if let Some(pid) = Pid::from_raw(pid) {
        // It may have ended by itself.
        let _ = kill_process(pid, signal);
    }
}

/// Whether the working directory of the process is `data`: its pid may have been reused since.
#[must_use]
pub fn runs_in(pid: i32, data: &Path) -> bool {
    files::are_one(Path::new(&format!("/proc/{pid}/cwd")), data)
}

/// The process of the server that runs `data`. After a crash of the machine, the number in postmaster.pid may belong
/// to another process, whose working directory is elsewhere. A server in a container has a different number here: it
/// is found by its working directory.
///
/// # Errors
/// When postmaster.pid exists and can't be read.
pub fn running(data: &Path) -> Result<Option<u32>> {
    let Some(named) = instance::postmaster(data)? else { return Ok(None) };
    if is_server(named, data) {
        return Ok(Some(named));
    }
    Ok(running::processes()?.find(|pid| runs_in(pid.cast_signed(), data)))
}

/// Whether the process that postmaster.pid names is the server of `data`, as far as can be seen.
fn is_server(named: u32, data: &Path) -> bool {
    runs_in(named.cast_signed(), data) || is_hidden(named, data)
}

/// Whether the working directory of a process is hidden from us although the process may be the server: it belongs to
/// the data directory's owner.
fn is_hidden(pid: u32, data: &Path) -> bool {
    let process = format!("/proc/{pid}");
    let cwd = std::fs::metadata(Path::new(&process).join("cwd"));
    let is_denied = cwd.is_err_and(|e| e.kind() == std::io::ErrorKind::PermissionDenied);
    let owner = |path: &Path| std::fs::metadata(path).map(|m| m.uid()).ok();
    is_denied && owner(Path::new(&process)) == owner(data)
}

/// A setting that is lower than the original's was at the point that recovery has reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LowerSetting {
    /// Its name.
    pub name: String,
    /// The least value that it must have.
    pub needed: u32,
}

impl LowerSetting {
    /// Parses the server's message: `max_connections = 40 is a lower setting than on the primary server, where its
    /// value was 200` (RecoveryRequiresIntParameter in xlogrecovery.c), before 14 `the master server (its value was
    /// 200)`.
    fn of(line: &str) -> Option<Self> {
        let (setting, rest) = line.split_once(" is a lower setting than on the ")?;
        let (name, _) = setting.rsplit_once(" = ")?;
        let (_, value) = rest.split_once("its value was ")?;
        let digits = value.find(|c: char| !c.is_ascii_digit()).unwrap_or(value.len());
        let name = name.rsplit(' ').next()?.to_owned();
        Some(Self { name, needed: value[..digits].parse().ok()? })
    }
}

/// The part of a log line that tells the progress of recovery.
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
    fn a_lower_setting_is_read_in_the_words_of_each_version() {
        let needed = |line: &str| LowerSetting::of(line).map(|it| (it.name, it.needed));
        let lines = [
            "t [7] DETAIL:  max_connections = 40 is a lower setting than on the primary server, where its value was 200.",
            "t [7] FATAL:  hot standby is not possible because max_connections = 40 is a lower setting than on the master server (its value was 200)",
        ];
        for line in lines {
            assert_eq!(needed(line), Some(("max_connections".to_owned(), 200)), "{line}");
        }
        assert_eq!(needed("t [7] LOG:  recovery has paused"), None);
        assert_eq!(needed("x = 1 is a lower setting than on the primary server"), None);
    }

    #[test]
    fn the_collector_s_log_is_found() {
        let text = "csvlog log/a.csv\nstderr /var/log/pg sql/a.log\n";
        assert_eq!(log_named(text), Some("/var/log/pg sql/a.log"));
        assert_eq!(log_named("jsonlog log/a.json\n"), Some("log/a.json"));
        assert_eq!(log_named(""), None);
    }

    #[test]
    fn a_collector_is_known_by_its_file_not_by_words() {
        let data = tempfile::tempdir().unwrap();
        let before = SystemTime::now();
        assert!(collected(data.path(), before).is_empty());
        std::fs::write(data.path().join("own.log"), "LOG:  eins\nFATAL:  zwei\n").unwrap();
        std::fs::write(data.path().join("current_logfiles"), "stderr own.log\n").unwrap();
        assert_eq!(collected(data.path(), before), ["LOG:  eins", "FATAL:  zwei"]);
        // What an older server, or the original, had left.
        let later = SystemTime::now() + Duration::from_secs(3);
        assert!(collected(data.path(), later).is_empty());
    }

    #[test]
    fn a_pid_that_works_elsewhere_is_not_the_server() {
        let own = std::process::id();
        assert!(!runs_in(own.cast_signed(), Path::new("/")));
        let scratch = tempfile::tempdir().unwrap();
        let file = scratch.path().join("postmaster.pid");
        assert_eq!(running(scratch.path()).unwrap(), None);
        // As after a crash of the machine: the number now belongs to this process.
        std::fs::write(&file, format!("{own}\n")).unwrap();
        assert_eq!(running(scratch.path()).unwrap(), None);
        let works_here = |name: &str| {
            let program = scratch.path().join(name);
            std::os::unix::fs::symlink("/bin/sleep", &program).unwrap();
            let program = Program::new(program).arg("100").current_dir(scratch.path());
            program.start(&File::create(scratch.path().join("log")).unwrap()).unwrap()
        };
        let mut shell = works_here("sh");
        assert_eq!(running(scratch.path()).unwrap(), None);
        std::fs::write(&file, format!("{}\n", shell.id())).unwrap();
        assert_eq!(running(scratch.path()).unwrap(), Some(shell.id()));
        // In a container, the server has another number than outside.
        std::fs::write(&file, format!("{own}\n")).unwrap();
        let mut server = works_here("postgres");
        // The name changes a moment after the program was started.
        let since = Instant::now();
        while !running::is_postgres(server.id()) && since.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(running(scratch.path()).unwrap(), Some(server.id()));
        for child in [&mut shell, &mut server] {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        assert_eq!(running(scratch.path()).unwrap(), None);
    }
}
