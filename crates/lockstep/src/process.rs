//! The only place that starts other programs: argv, never a shell.
//!
//! Every start is logged at debug level with its arguments and its duration; the error keeps the raw tail of stderr.
//! Children get their own process group, so that Ctrl-C ends Lockstep at the next step rather than a `zfs snapshot`
//! half way. A program whose output or input is abandoned early is killed and waited for. No program gets the
//! variables that open the stores: a server that stays would show them to anyone who may run programs in it. What runs
//! as another user gets a session of its own: with Lockstep's terminal it could type commands there (TIOCSTI in
//! tty_io.c, which asks for no right but that it is the process's own terminal), and root's shell would run them.
//!
//! What could go wrong: Lockstep is killed, and a program that it started continues. The next command undoes the
//! killed one, but doesn't know what that program makes afterwards. So a program can hold the lock under which it
//! works: see [`Program::holding`].

mod user;

use std::ffi::{OsStr, OsString};
use std::io::ErrorKind::{OutOfMemory, WouldBlock};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub use user::User;

/// How much of a failed program's stderr is kept, in bytes.
const STDERR_TAIL: usize = 8 * 1024;
/// The capacity of a pipe to a running program, in bytes: as much as any user may request.
const PIPE: usize = 1 << 20;

/// Where administrators' programs are, such as `zfs`. The PATH of cron jobs has none of these.
const ADMINISTRATORS: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// Returns the file of a program named without a folder: in PATH, otherwise where administrators' programs are.
#[must_use]
pub fn find(program: &OsStr) -> Option<PathBuf> {
    if Path::new(program).components().count() != 1 {
        return None;
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(ADMINISTRATORS.map(PathBuf::from));
    folders.map(|folder| folder.join(program)).find(|file| {
        file.metadata().is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
    })
}

/// A program couldn't be started, ended with an error, or it is unknown how it ended.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The program doesn't exist, may not be run, or can't run in its folder.
    #[error("cannot start \"{program}\"{}", in_folder(closed))]
    Start {
        /// The program's name.
        program: String,
        /// The folder that it was to run in, if its user can't enter that.
        closed: Option<PathBuf>,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// It ran, but its output or its end couldn't be read; it was killed.
    #[error("cannot follow \"{command}\" to its end")]
    Lost {
        /// The whole command line.
        command: String,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// It ran and failed.
    #[error("\"{command}\" failed ({status}): {}", without_usage(stderr))]
    Exit {
        /// The whole command line, for people to repeat.
        command: String,
        /// Its exit status.
        status: ExitStatus,
        /// The end of its stderr, verbatim.
        stderr: String,
    },
}

/// Returns the program's file; if there is none, its name, so that the system reports it.
fn with_folder(program: &OsStr) -> OsString {
    find(program).map_or_else(|| program.to_owned(), PathBuf::into_os_string)
}

fn in_folder(closed: &Option<PathBuf>) -> String {
    closed.as_ref().map_or_else(String::new, |folder| format!(" in \"{}\"", folder.display()))
}

/// Removes the pages of usage that `zfs` prints after its reason.
fn without_usage(stderr: &str) -> &str {
    stderr.split("\nusage:").next().unwrap_or(stderr).trim()
}

impl CommandError {
    /// Returns what the program wrote on stderr; empty if it never ran.
    #[must_use]
    pub fn stderr(&self) -> &str {
        match self {
            Self::Start { .. } | Self::Lost { .. } => "",
            Self::Exit { stderr, .. } => stderr,
        }
    }

    /// Returns whether the program ran and failed; otherwise nothing is known of what it would have said.
    #[must_use]
    pub fn is_answer(&self) -> bool {
        matches!(self, Self::Exit { .. })
    }

    /// Returns what to do about it, if that is known.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Start { closed: Some(folder), .. } => Some(format!(
                "its user can't enter \"{}\": look at owner and mode of it and of each folder above it (`namei -l {}`)",
                folder.display(),
                quote(&folder.display().to_string())
            )),
            // Neither the program nor its file is the reason: clone(2).
            Self::Start { source, .. } if matches!(source.kind(), WouldBlock | OutOfMemory) => {
                Some(strata::threads::LIMITS.into())
            }
            Self::Start { source, .. } if lacks_files(source) => Some(
                "raise the limit of this process (`ulimit -n`, LimitNOFILE of its systemd unit), or of the system (`sysctl fs.file-max`)".into(),
            ),
            Self::Start { program, .. } => {
                Some(format!("is \"{program}\" installed, and in the PATH of this user?"))
            }
            Self::Exit { stderr, .. } if stderr.contains("ermission denied") => {
                Some("run lockstep as root, or delegate the right with `zfs allow`".into())
            }
            Self::Exit { stderr, .. } if lacks_space(stderr) => Some(
                "make room there, raise the quota or refquota of the dataset or of one above it, or lower its refreservation; nothing is lost, and the command can be run again".into(),
            ),
            Self::Exit { stderr, .. } if stderr.contains("pool is read-only") => Some(
                "it was imported with readonly=on: export it and import it without (`zpool export`, `zpool import`)".into(),
            ),
            Self::Exit { stderr, .. } if stderr.contains("currently suspended") => Some(
                "`zpool status` says which disks are gone; once they are back: `zpool clear POOL`, and run it again".into(),
            ),
            Self::Exit { stderr, .. } if is_damage(stderr) => Some(
                "its disks can't give back some of what was written: `zpool status -v` names the files, and the snapshots that they are in".into(),
            ),
            Self::Lost { .. } | Self::Exit { .. } => None,
        }
    }
}

/// Whether this process, or the system, may open no more files.
fn lacks_files(error: &std::io::Error) -> bool {
    use rustix::io::Errno;
    matches!(Errno::from_io_error(error), Some(Errno::MFILE | Errno::NFILE))
}

/// Matches the words of the system and of `zfs receive` (libzfs_sendrecv.c).
fn lacks_space(stderr: &str) -> bool {
    ["out of space", "quota exceeded", "No space left"].iter().any(|words| stderr.contains(words))
}

/// Matches the words of the system and of ZFS for what can't be read back (libzfs_util.c).
fn is_damage(stderr: &str) -> bool {
    ["Input/output error", "I/O error"].iter().any(|words| stderr.contains(words))
}

/// What a program printed.
#[derive(Debug, Clone)]
pub struct Output {
    /// Standard output as text; bytes that aren't UTF-8 are replaced.
    pub stdout: String,
    /// The tail of standard error, likewise.
    pub stderr: String,
}

/// The user that a program runs as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Credentials {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

/// A program with its arguments, ready to run.
#[derive(Debug)]
pub struct Program {
    program: OsString,
    args: Vec<OsString>,
    credentials: Option<Credentials>,
    directory: Option<PathBuf>,
    environment: Vec<(&'static str, OsString)>,
    held: Option<Arc<std::fs::File>>,
    input: Option<std::fs::File>,
    becomes_another: bool,
}

impl Program {
    /// Creates the program `name`, looked up in PATH unless it is a path.
    pub fn new(name: impl AsRef<OsStr>) -> Self {
        Self {
            program: name.as_ref().to_owned(),
            args: Vec::new(),
            credentials: None,
            directory: None,
            environment: Vec::new(),
            held: None,
            input: None,
            becomes_another: false,
        }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<I, S>(mut self, args: I) -> Self
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Runs it as another user, with all of that user's groups, home and name (only root can).
    #[must_use]
    pub fn as_user(mut self, credentials: Option<Credentials>) -> Self {
        self.credentials = credentials;
        self
    }

    /// Says that it becomes another user by itself: it gets a session of its own too.
    #[must_use]
    pub fn becoming_another(mut self) -> Self {
        self.becomes_another = true;
        self
    }

    /// Runs it in a folder.
    #[must_use]
    pub fn current_dir(mut self, directory: &Path) -> Self {
        self.directory = Some(directory.to_path_buf());
        self
    }

    /// Adds a variable to its environment. Values aren't logged; a secret doesn't belong there either, because others
    /// can read it.
    #[must_use]
    pub fn env(mut self, name: &'static str, value: impl AsRef<OsStr>) -> Self {
        self.environment.push((name, value.as_ref().to_owned()));
        self
    }

    /// Gives it this file until it ends, as the standard input that it doesn't read, or, with [`Self::write_to`], as
    /// the standard output that it doesn't write to. So an flock(2) on the file lasts until the program ends, even if
    /// this process is killed earlier.
    #[must_use]
    pub fn holding(mut self, file: Option<Arc<std::fs::File>>) -> Self {
        self.held = file;
        self
    }

    /// Gives it this file as its standard input when it is started with [`Self::start`]; it is read from where the
    /// file is now, and only once.
    #[must_use]
    pub fn input(mut self, file: std::fs::File) -> Self {
        self.input = Some(file);
        self
    }

    /// Returns the command line as a person would type it.
    #[must_use]
    pub fn display(&self) -> String {
        std::iter::once(&self.program)
            .chain(&self.args)
            .map(|word| quote(&word.to_string_lossy()))
            .collect::<Vec<_>>()
            .join(" ")
    }

    fn command(&self) -> Command {
        if self.becomes_another || self.credentials.is_some() {
            // The leader of a group can't begin a session, and setsid(1) would fork. The session is a group, too.
            return self.command_after(Some("setsid"));
        }
        let mut command = self.command_here();
        command.process_group(0);
        command
    }

    fn command_here(&self) -> Command {
        self.command_after(None)
    }

    /// Returns the command, run by `first`, which becomes what follows it.
    fn command_after(&self, first: Option<&str>) -> Command {
        let mut words: Vec<OsString> = first.into_iter().map(OsString::from).collect();
        let known = self.credentials.map(|ids| (ids, User::find(&ids.uid.to_string())));
        if let Some((ids, known)) = &known {
            words.extend(user::becoming(*ids, known.as_ref()).map(OsString::from));
        }
        words.push(with_folder(&self.program));
        let mut command = Command::new(words.remove(0));
        command.args(words);
        if let Some((_, known)) = &known {
            // These belong to another user: libpq would look for certificates in root's home.
            for name in user::VARIABLES {
                command.env_remove(name);
            }
            command.envs(known.iter().flat_map(User::environment));
        }
        for (name, _) in std::env::vars_os().filter(|(name, _)| is_of_a_store(name)) {
            command.env_remove(name);
        }
        command.args(&self.args).env("LC_ALL", "C");
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        if let Some(directory) = &self.directory {
            command.current_dir(directory);
        }
        command
    }

    /// Refuses a folder that the program's user can't enter, because the process that starts it can.
    fn check_folder(&self) -> Result<(), CommandError> {
        let folder = self.directory.as_ref().filter(|_| self.credentials.is_some());
        match folder.filter(|folder| self.is_closed(folder)) {
            Some(_) => Err(self.start_error(std::io::ErrorKind::PermissionDenied.into())),
            None => Ok(()),
        }
    }

    /// Runs it to its end.
    ///
    /// # Errors
    /// When it can't be started or ends with a status other than 0.
    pub fn run(&self) -> Result<Output, CommandError> {
        let (output, status) = self.run_to_end()?;
        if status.success() {
            return Ok(output);
        }
        Err(CommandError::Exit { command: self.display(), status, stderr: output.stderr })
    }

    /// Runs it to its end and returns what it printed, however it ended.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn run_for_output(&self) -> Result<String, CommandError> {
        Ok(self.run_to_end()?.0.stdout)
    }

    fn run_to_end(&self) -> Result<(Output, ExitStatus), CommandError> {
        let began = Instant::now();
        let mut running = Piped::new(self, "run", self.held_or_null()?, Stdio::piped())?;
        running.pipe = running.child.stdout.take();
        let mut stdout = Vec::new();
        running.read_to_end(&mut stdout).map_err(|source| running.lost(source))?;
        let milliseconds = || began.elapsed().as_millis() as u64;
        let command = running.command.clone();
        let (status, stderr) = running.end()?;
        tracing::debug!(%command, %status, milliseconds = milliseconds(), "ended");
        Ok((Output { stdout: String::from_utf8_lossy(&stdout).into_owned(), stderr }, status))
    }

    fn held_or_null(&self) -> Result<Stdio, CommandError> {
        match &self.held {
            Some(file) => Ok(file.try_clone().map_err(|source| self.start_error(source))?.into()),
            None => Ok(Stdio::null()),
        }
    }

    /// Starts it and leaves it running, with both outputs appended to `log`.
    ///
    /// # Errors
    /// When it can't be started or the log can't be opened.
    pub fn start(&self, log: &std::fs::File) -> Result<Child, CommandError> {
        tracing::debug!(command = %self.display(), "start");
        self.check_folder()?;
        let out = log.try_clone().map_err(|source| self.start_error(source))?;
        let err = log.try_clone().map_err(|source| self.start_error(source))?;
        let input = match &self.input {
            Some(file) => file.try_clone().map_err(|source| self.start_error(source))?.into(),
            None => Stdio::null(),
        };
        self.command()
            .stdin(input)
            .stdout(out)
            .stderr(err)
            .spawn()
            .map_err(|source| self.start_error(source))
    }

    /// Runs it under `nice` and `ionice`, if requested.
    #[must_use]
    pub fn gently(mut self, nice: Option<u8>, idle_disk: Option<bool>) -> Self {
        let mut before: Vec<OsString> = Vec::new();
        if let Some(nice) = nice.filter(|nice| *nice > 0) {
            before.extend(["nice".into(), "-n".into(), nice.to_string().into()]);
        }
        if let Some(idle) = idle_disk {
            let class: &[&str] = if idle { &["-c", "3"] } else { &["-c", "2", "-n", "7"] };
            before.push("ionice".into());
            before.extend(class.iter().map(OsString::from));
        }
        if !before.is_empty() {
            before.push(with_folder(&std::mem::take(&mut self.program)));
            before.append(&mut self.args);
            self.program = before.remove(0);
            self.args = before;
        }
        self
    }

    /// Starts it, so that its output can be read while it runs.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn read_from(&self) -> Result<Piped<ChildStdout>, CommandError> {
        let mut piped = Piped::new(self, "start", Stdio::null(), Stdio::piped())?;
        piped.pipe = piped.child.stdout.take();
        Ok(piped.enlarged())
    }

    /// Starts it, so that its input can be written while it runs.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn write_to(&self) -> Result<Piped<ChildStdin>, CommandError> {
        let mut piped = Piped::new(self, "start", Stdio::piped(), self.held_or_null()?)?;
        piped.pipe = piped.child.stdin.take();
        Ok(piped.enlarged())
    }

    /// Replaces this process by the program, which has nothing to read; returns only when that failed.
    pub fn exec(&self) -> CommandError {
        if let Err(error) = self.check_folder() {
            return error;
        }
        let source = self.command_here().stdin(Stdio::null()).exec();
        self.start_error(source)
    }

    fn start_error(&self, source: std::io::Error) -> CommandError {
        let program = self.program.to_string_lossy().into_owned();
        let is_denied = source.kind() == std::io::ErrorKind::PermissionDenied;
        let closed = self.directory.clone().filter(|folder| is_denied && self.is_closed(folder));
        CommandError::Start { program, closed, source }
    }

    /// Checks whether its user can't enter a folder: the system then refuses just as it would refuse the program.
    fn is_closed(&self, folder: &Path) -> bool {
        let asked = Self::new("test").arg("-x").arg(folder).as_user(self.credentials).run();
        asked.is_err_and(|error| error.is_answer())
    }
}

/// A program that runs at the other end of a pipe. If dropped early, it is killed.
#[derive(Debug)]
pub struct Piped<P> {
    child: Child,
    command: String,
    pipe: Option<P>,
    stderr: Option<JoinHandle<String>>,
}

impl<P> Piped<P> {
    /// Starts it, with `doing` in the log. The caller says which pipe it uses.
    fn new(
        program: &Program,
        doing: &str,
        stdin: Stdio,
        stdout: Stdio,
    ) -> Result<Self, CommandError> {
        let command = program.display();
        tracing::debug!(%command, "{doing}");
        program.check_folder()?;
        let mut spawning = program.command();
        spawning.stdin(stdin).stdout(stdout).stderr(Stdio::piped());
        let mut child = spawning.spawn().map_err(|source| program.start_error(source))?;
        let stderr = child.stderr.take();
        let read = move || stderr.map(read_tail).unwrap_or_default();
        let stderr = std::thread::Builder::new().spawn(read).map_err(|source| {
            let _ = child.kill().and_then(|()| child.wait());
            program.start_error(source)
        })?;
        Ok(Self { child, command, pipe: None, stderr: Some(stderr) })
    }

    fn lost(&self, source: std::io::Error) -> CommandError {
        CommandError::Lost { command: self.command.clone(), source }
    }

    /// Waits for its end; returns its status and stderr.
    fn end(mut self) -> Result<(ExitStatus, String), CommandError> {
        let status = self.child.wait().map_err(|source| self.lost(source))?;
        let stderr = self.stderr.take().and_then(|thread| thread.join().ok()).unwrap_or_default();
        Ok((status, stderr))
    }

    /// Closes the pipe and waits for the program's end.
    ///
    /// # Errors
    /// When it ended with a status other than 0.
    pub fn finish(mut self) -> Result<(), CommandError> {
        self.pipe = None;
        let command = self.command.clone();
        let (status, stderr) = self.end()?;
        tracing::debug!(%command, %status, "ended");
        if status.success() {
            return Ok(());
        }
        Err(CommandError::Exit { command, status, stderr })
    }
}

impl<P: std::os::fd::AsFd> Piped<P> {
    /// Enlarges the pipe, so that both ends work for longer before one waits for the other. If the system refuses, it
    /// is slower and nothing else.
    fn enlarged(self) -> Self {
        if let Some(pipe) = &self.pipe {
            let _ = rustix::pipe::fcntl_setpipe_size(pipe, PIPE);
        }
        self
    }
}

impl<P> Drop for Piped<P> {
    fn drop(&mut self) {
        if self.stderr.is_some() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

impl<P: Read> Read for Piped<P> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.pipe.as_mut().map_or(Ok(0), |pipe| pipe.read(buffer))
    }
}

impl<P: Write> Write for Piped<P> {
    fn write(&mut self, buffer: &[u8]) -> std::io::Result<usize> {
        match &mut self.pipe {
            Some(pipe) => pipe.write(buffer),
            None => Err(std::io::ErrorKind::BrokenPipe.into()),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.pipe.as_mut().map_or(Ok(()), Write::flush)
    }
}

/// Waits for a child without blocking for longer than `limit`; `None` means that it still runs.
pub fn wait_timeout(child: &mut Child, limit: Duration) -> std::io::Result<Option<ExitStatus>> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Ends a program and what it started, and waits for it: first by request, then by killing it.
///
/// # Errors
/// When it can't be waited for.
pub fn end_group(child: &mut Child) -> std::io::Result<ExitStatus> {
    // Its process id is its group's id, and nobody else's before it is waited for.
    let group = rustix::process::Pid::from_raw(child.id().cast_signed());
    let tell = |signal| group.map(|group| rustix::process::kill_process_group(group, signal));
    // There may be none left.
    let _ = tell(rustix::process::Signal::TERM);
    std::thread::sleep(Duration::from_millis(200));
    let _ = tell(rustix::process::Signal::KILL);
    child.wait()
}

/// Returns the ids of this host's processes, as far as /proc shows them.
///
/// # Errors
/// When /proc can't be listed.
pub fn ids() -> std::io::Result<impl Iterator<Item = u32>> {
    let all = std::fs::read_dir("/proc")?.flatten();
    Ok(all.filter_map(|entry| entry.file_name().to_str()?.parse().ok()))
}

/// Returns the end of what a program printed into a file, verbatim except for invalid UTF-8.
#[must_use]
pub fn tail_of(path: &Path) -> String {
    std::fs::File::open(path).map(read_tail).unwrap_or_default()
}

fn read_tail(mut pipe: impl Read) -> String {
    let mut kept = Vec::new();
    let mut chunk = [0u8; 4096];
    while let Ok(n) = pipe.read(&mut chunk) {
        if n == 0 {
            break;
        }
        kept.extend_from_slice(&chunk[..n]);
        if kept.len() > 2 * STDERR_TAIL {
            kept.drain(..kept.len() - STDERR_TAIL);
        }
    }
    let from = kept.len().saturating_sub(STDERR_TAIL);
    String::from_utf8_lossy(&kept[from..]).into_owned()
}

/// Checks whether a variable may open a store, as strata reads them: a program has no use for it.
fn is_of_a_store(name: &OsStr) -> bool {
    ["AWS_", "AZURE_", "GOOGLE_"]
        .iter()
        .any(|of| name.as_encoded_bytes().starts_with(of.as_bytes()))
}

/// Quotes a word as a POSIX shell would need it; for showing commands, never for running them.
#[must_use]
pub fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "@%+=:,./-_".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_failure_keeps_stderr_and_the_command() {
        let error = Program::new("ls").arg("/no such place").run().unwrap_err();
        assert!(error.to_string().starts_with("\"ls '/no such place'\" failed (exit status: 2)"));
        assert!(error.stderr().contains("No such file"));
    }

    #[test]
    fn a_missing_program_says_so() {
        let error = Program::new("lockstep-no-such-program").run().unwrap_err();
        assert!(!error.is_answer());
        assert!(error.hint().is_some_and(|hint| hint.contains("installed")));
        let limited = rustix::io::Errno::AGAIN.into();
        let error = Program::new("lockstep-no-such-program").start_error(limited);
        assert!(error.hint().is_some_and(|hint| hint.contains("TasksMax")));
        let limited = rustix::io::Errno::MFILE.into();
        let error = Program::new("lockstep-no-such-program").start_error(limited);
        assert!(error.hint().is_some_and(|hint| hint.contains("ulimit -n")));
    }

    #[test]
    fn a_folder_that_its_user_can_t_enter_is_told_from_a_program_that_can_t_run() {
        let scratch = tempfile::tempdir().unwrap();
        let closed = scratch.path().join("closed");
        std::fs::create_dir(&closed).unwrap();
        std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o000)).unwrap();
        // Root may enter all folders, and nobody else may become another user.
        let is_root = rustix::process::geteuid().is_root();
        let nobody = is_root.then_some(Credentials { uid: 65534, gid: 65534 });
        let error = Program::new("/bin/true").as_user(nobody).current_dir(&closed).run();
        let error = error.unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("cannot start \"/bin/true\" in \"{}\"", closed.display())
        );
        let hint = error.hint().unwrap();
        assert!(hint.contains("can't enter") && !hint.contains("installed"), "{hint}");
        let file = scratch.path().join("no program");
        std::fs::write(&file, "").unwrap();
        let error = Program::new(&file).current_dir(Path::new("/")).run().unwrap_err();
        assert!(error.hint().is_some_and(|hint| hint.contains("installed")), "{error}");
    }

    #[test]
    fn a_pipe_is_read_to_its_end_and_a_failure_is_told() {
        let mut text = String::new();
        let mut piped = Program::new("echo").arg("x").gently(Some(5), None).read_from().unwrap();
        piped.read_to_string(&mut text).unwrap();
        assert_eq!(text, "x\n");
        piped.finish().unwrap();
        let mut failed = Program::new("ls").arg("/no such place").read_from().unwrap();
        failed.read_to_string(&mut text).unwrap();
        assert!(failed.finish().unwrap_err().stderr().contains("No such file"));
        let mut taken = Program::new("cat").write_to().unwrap();
        taken.write_all(b"y").unwrap();
        taken.finish().unwrap();
    }

    #[test]
    fn what_nobody_follows_to_its_end_is_killed() {
        let piped = Program::new("sleep").arg("1000").read_from().unwrap();
        let process = PathBuf::from(format!("/proc/{}", piped.child.id()));
        assert!(process.exists());
        let lost = piped.lost(std::io::Error::other("the pipe is gone"));
        assert_eq!(lost.to_string(), "cannot follow \"sleep 1000\" to its end");
        assert!(!lost.is_answer() && lost.stderr().is_empty());
        assert_eq!(crate::error::Error::from(lost).exit_code(), 1);
        drop(piped);
        assert!(!process.exists(), "it runs, or nobody has waited for it");
    }

    #[test]
    fn what_a_program_has_started_ends_with_it() {
        let scratch = tempfile::tempdir().unwrap();
        let text = "trap '' TERM; sleep 1000 & echo $! > pid; wait";
        let program = Program::new("/bin/sh").args(["-c", text]).current_dir(scratch.path());
        let log = std::fs::File::create(scratch.path().join("log")).unwrap();
        let mut child = program.start(&log).unwrap();
        let pid = loop {
            let text = std::fs::read_to_string(scratch.path().join("pid")).unwrap_or_default();
            if let Ok(pid) = text.trim().parse::<i32>() {
                break pid;
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        end_group(&mut child).unwrap();
        let gone = || !crate::postgres::instance::is_alive(pid);
        let since = Instant::now();
        while !gone() && since.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(gone());
    }

    #[test]
    fn what_runs_as_another_user_has_no_terminal_of_ours() {
        assert!(rustix::process::geteuid().is_root(), "run as root: it becomes another user");
        // Its id, its group's and its session's, of proc(5).
        let ids = |program: Program| {
            let text = program.arg("/proc/self/stat").run().unwrap().stdout;
            let (id, rest) = text.split_once(' ').unwrap();
            let after: Vec<_> = rest.rsplit_once(") ").unwrap().1.split(' ').collect();
            [id, after[2], after[3], after[4]].map(str::to_owned)
        };
        let nobody = Credentials { uid: 65534, gid: 65534 };
        let cat = || Program::new("cat");
        for program in [cat().as_user(Some(nobody)), cat().becoming_another()] {
            let [id, group, session, terminal] = ids(program);
            assert_eq!((&id, &id, "0"), (&group, &session, &*terminal));
        }
        let [id, group, session, _] = ids(cat());
        assert!(id == group && id != session, "what stays root's may ask at the terminal");
    }

    #[test]
    fn nothing_passes_through_a_shell() {
        let out = Program::new("echo").arg("$(id); `id` | cat").run().unwrap();
        assert_eq!(out.stdout, "$(id); `id` | cat\n");
    }

    #[test]
    fn what_opens_a_store_is_no_program_s() {
        for (name, is) in [
            ("AWS_SECRET_ACCESS_KEY", true),
            ("AZURE_STORAGE_ACCOUNT_KEY", true),
            ("GOOGLE_APPLICATION_CREDENTIALS", true),
            ("PATH", false),
            ("MY_AWS_KEY", false),
        ] {
            assert_eq!(is_of_a_store(OsStr::new(name)), is, "{name}");
        }
    }

    #[test]
    fn words_are_shown_quoted() {
        assert_eq!(quote("tank/pg@a:b"), "tank/pg@a:b");
        assert_eq!(quote("it's"), r"'it'\''s'");
        assert_eq!(quote(""), "''");
    }
}
