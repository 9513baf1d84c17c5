//! Fetches timeline histories and segments with restore_command as PostgreSQL does (RestoreArchivedFile in
//! xlogarchive.c): a shell runs it as the server's user.
//!
//! What could go wrong: it can't be run, or can't reach the archive for the moment. That doesn't mean that there is
//! no such timeline: another set would be chosen. PostgreSQL distinguishes the two by the exit code, and ends
//! recovery; here it is an error. It is also an error if the command needs what only the restored server has, its
//! folder for example: then the set has to be named. Or it hangs: a signal ends it. Processes that it leaves behind
//! (ssh's ControlPersist) aren't waited for.

use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use pgfiles::lsn::TimelineId;

use crate::context::Context;
use crate::error::{Error, Result};
use crate::lock::{Lock, LockError};
use crate::process::{self, CommandError, Program, wait_timeout};
use crate::steps;
use crate::{files, names};

/// The value of %r before recovery has reached a restart point.
const NO_RESTART_POINT: &str = "000000000000000000000000";
/// Where the folders are made: any user that the command runs as can enter it. state_dir, or the folder in TMPDIR,
/// may not allow that.
const PLACE: &str = "/tmp";
/// How long it may run silently.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often to check for a request to stop.
const LOOK: Duration = Duration::from_millis(100);
/// The beginning of the names of folders that a history is fetched into, followed by the process id.
const FOLDER: &str = "lockstep-histories-";

/// Returns the history of `timeline`; `None` if the command doesn't find it.
///
/// # Errors
/// When the command neither delivers it nor says that it's missing, a folder for it can't be made, or the result
/// can't be read.
pub(super) fn fetch(cx: &Context, command: &str, timeline: TimelineId) -> Result<Option<Vec<u8>>> {
    steps::reached("restore.history")?;
    let name = format!("{:08X}.history", timeline.get());
    fetch_file(cx, command, &name, |path| match std::fs::read(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some).map_err(Error::io("read", path)),
    })
}

/// Fetches a file of this name and passes it to `look` while it exists; returns `None` if the command doesn't find
/// it.
///
/// # Errors
/// When the command neither delivers it nor says that it's missing, a folder for it can't be made, or `look` fails.
pub(super) fn fetch_file<T>(
    cx: &Context,
    command: &str,
    name: &str,
    look: impl FnOnce(&Path) -> Result<Option<T>>,
) -> Result<Option<T>> {
    let user = cx.os_user()?;
    let folder = Folder::make(Path::new(PLACE)).map_err(|error| {
        error.with_hint("what restore_command delivers is put there; name the set, and nothing has to be asked beforehand")
    })?;
    let inside = folder.path.join("history");
    files::create_owned_directory(&inside, user)?;
    let path = inside.join(name);
    let text = expanded(command, name, &path);
    let shell = Program::new("/bin/sh").args(["-c", &text]).as_user(user).current_dir(&inside);
    match run(&shell, &folder.path.join("said"), name)? {
        Ok(()) => {}
        Err(error) if says_no(&error) => return Ok(None),
        Err(error) => {
            steps::reached("restore.history-asked")?;
            return Err(Error::failed(format!(
                "restore_command neither delivers {name} nor reports it as missing"
            ))
            .because(error)
            .with_hint("PostgreSQL too would end recovery at an exit code above 125: does it run as os_user, and can it reach the archive? A command that needs the restored cluster's folder can't be asked beforehand: name the set"));
        }
    }
    look(&path)
}

/// Runs it to its end, or until a signal. Its output goes to the file `said`: a pipe would stay open as long as any
/// process that it leaves behind.
fn run(shell: &Program, said: &Path, name: &str) -> Result<Result<(), CommandError>> {
    let mut options = std::fs::OpenOptions::new();
    let file = options.write(true).create_new(true).mode(0o600).open(said);
    let mut child = match shell.start(&file.map_err(Error::io("create", said))?) {
        Ok(child) => child,
        Err(error) => return Ok(Err(error)),
    };
    let lost = |source| CommandError::Lost { command: shell.display(), source };
    let (since, mut is_told) = (Instant::now(), false);
    loop {
        match wait_timeout(&mut child, LOOK) {
            Err(error) => return Ok(Err(lost(error))),
            Ok(Some(status)) if status.success() => return Ok(Ok(())),
            Ok(Some(status)) => {
                let (command, stderr) = (shell.display(), process::tail_of(said));
                return Ok(Err(CommandError::Exit { command, status, stderr }));
            }
            Ok(None) if steps::interrupted() => {
                process::end_group(&mut child).map_err(lost).map_err(Box::new)?;
                return Err(Error::Interrupted { step: "restore.history".into() });
            }
            Ok(None) if since.elapsed() >= PATIENCE && !is_told => {
                is_told = true;
                tracing::info!("waiting for restore_command, which was asked for {name}");
            }
            Ok(None) => {}
        }
    }
}

/// Whether it ran and found nothing. The shell's own codes and signals mean something else (wait_result_is_any_signal
/// in wait_error.c).
fn says_no(error: &CommandError) -> bool {
    match error {
        CommandError::Exit { status, .. } => {
            status.signal().is_none() && status.code().is_some_and(|code| code <= 125)
        }
        _ => false,
    }
}

/// Returns the command with its placeholders replaced (BuildRestoreCommand in shell_restore.c).
fn expanded(command: &str, name: &str, path: &Path) -> String {
    let (mut text, mut rest) = (String::new(), command);
    while let Some((before, after)) = rest.split_once('%') {
        text.push_str(before);
        let mut following = after.chars();
        match following.next() {
            Some('f') => text.push_str(name),
            Some('p') => text.push_str(&path.display().to_string()),
            Some('r') => text.push_str(NO_RESTART_POINT),
            Some('%') => text.push('%'),
            _ => {
                text.push('%');
                following = after.chars();
            }
        }
        rest = following.as_str();
    }
    text + rest
}

/// A folder that is removed after use. It is locked meanwhile: to a container that shares /tmp with the host, the
/// other's processes look dead.
struct Folder {
    path: PathBuf,
    _lock: Lock,
}

impl Folder {
    fn make(place: &Path) -> Result<Self> {
        let own = rustix::process::geteuid().as_raw();
        // Removes folders of killed processes. What others put there is theirs.
        for entry in std::fs::read_dir(place).map_err(Error::io("list", place))?.flatten() {
            let name = entry.file_name();
            let process = name.to_str().and_then(|name| name.strip_prefix(FOLDER));
            let process = process.and_then(|name| name.split('-').next());
            let is_dead = process.is_some_and(|process| !Path::new("/proc").join(process).exists());
            if is_dead
                && entry.metadata().is_ok_and(|found| found.is_dir() && found.uid() == own)
                && let Ok(_lock) = Lock::of_folder(&entry.path())
            {
                files::remove_tree(&entry.path())?;
            }
        }
        let random = names::random_suffix()?;
        let path = place.join(format!("{FOLDER}{}-{random}", std::process::id()));
        // Others may enter it, but not write into it.
        let mut builder = std::fs::DirBuilder::new();
        builder.mode(0o700).create(&path).map_err(Error::io("create", &path))?;
        let lock = Lock::of_folder(&path).map_err(|error| match error {
            LockError::Held(_) => Error::failed(format!("\"{}\" was just removed", path.display())),
            LockError::Failed(error) => error,
        })?;
        let folder = Self { path, _lock: lock };
        let open = std::fs::Permissions::from_mode(0o711);
        std::fs::set_permissions(&folder.path, open).map_err(Error::io("open", &folder.path))?;
        Ok(folder)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = files::remove_tree(&self.path) {
            tracing::warn!(error = %error.chain(), "a folder stays for the next start to remove");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_are_replaced_as_postgresql_does() {
        let of = |command| expanded(command, "00000002.history", Path::new("/s/x"));
        assert_eq!(of("cp /archive/%f %p"), "cp /archive/00000002.history /s/x");
        assert_eq!(of("%f%%f %r%"), "00000002.history%f 000000000000000000000000%");
        assert_eq!(of("date +%d; é%é"), "date +%d; é%é");
    }

    #[test]
    fn folders_of_killed_processes_go_and_others_stay() {
        let place = tempfile::tempdir().unwrap();
        // No process id exceeds 2^22.
        let (dead, alive) = (format!("{FOLDER}9999999-ab12"), format!("{FOLDER}1-ab12"));
        let unseen = format!("{FOLDER}9999998-ab12");
        for name in [&dead, &alive, &unseen, "restore-ab12"] {
            std::fs::create_dir_all(place.path().join(name).join("x")).unwrap();
        }
        let _held = Lock::of_folder(&place.path().join(&unseen)).unwrap();
        let own = Folder::make(place.path()).unwrap();
        let path = own.path.clone();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o711);
        drop(own);
        assert!(!place.path().join(&dead).exists() && !path.exists());
        assert!(place.path().join(&alive).exists());
        assert!(place.path().join(&unseen).exists(), "its process is in another container");
        assert!(place.path().join("restore-ab12").exists());
    }

    #[test]
    fn what_it_leaves_behind_is_not_waited_for() {
        let scratch = tempfile::tempdir().unwrap();
        let shell = Program::new("/bin/sh").args(["-c", "sleep 30 & echo no >&2; exit 1"]);
        let since = Instant::now();
        let said = scratch.path().join("said");
        let error = run(&shell, &said, "00000002.history").unwrap().unwrap_err();
        assert!(since.elapsed() < Duration::from_secs(20), "it was waited for");
        assert!(says_no(&error) && error.stderr() == "no\n", "{error}");
        let whole = Program::new("/bin/sh").args(["-c", "exit 0"]);
        run(&whole, &scratch.path().join("other"), "x").unwrap().unwrap();
        let missing = Program::new("/no/such/shell");
        assert!(run(&missing, &scratch.path().join("none"), "x").unwrap().is_err());
    }

    #[test]
    fn a_command_that_is_not_there_does_not_say_no() {
        let code = |command| Program::new("/bin/sh").args(["-c", command]).run().unwrap_err();
        assert!(says_no(&code("exit 1")));
        for broken in ["/no/such/command", "kill -9 $$", "exit 126"] {
            assert!(!says_no(&code(broken)), "{broken}");
        }
    }
}
