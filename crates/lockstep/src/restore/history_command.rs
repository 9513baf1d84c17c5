//! Timelines' histories by restore_command, as PostgreSQL gets them (RestoreArchivedFile in xlogarchive.c): a shell runs
//! it, as the server's user.
//!
//! What could go wrong: it needs what only the restored server has, its folder for example. Then it gives nothing, and
//! that is said; the server asks it again anyway.

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};

use pgfiles::lsn::TimelineId;

use crate::context::Context;
use crate::error::{Error, Result};
use crate::files;
use crate::process::{CommandError, Program};
use crate::steps;

/// What %r is where recovery has not come to a restart point.
const NO_RESTART_POINT: &str = "000000000000000000000000";
/// Beginning of the folders that a history is fetched into, followed by the process that does it.
const FOLDER: &str = "histories-";

/// The history of `timeline`; `None` where the command doesn't find it.
///
/// # Errors
/// When a folder for it can't be made, or what it gave can't be read.
pub(super) fn fetch(cx: &Context, command: &str, timeline: TimelineId) -> Result<Option<Vec<u8>>> {
    steps::reached("restore.history")?;
    let user = cx.os_user()?;
    let folder = Folder::make(&cx.state.path("staging"))?;
    files::create_owned_directory(&folder.0, user)?;
    let name = format!("{:08X}.history", timeline.get());
    let path = folder.0.join(&name);
    let text = expanded(command, &name, &path);
    let shell = Program::new("/bin/sh").args(["-c", &text]).as_user(user).current_dir(&folder.0);
    if let Err(error) = shell.run() {
        if !says_no(&error) {
            tracing::warn!(%error, "restore_command can't be asked for the history of timeline {timeline}");
        }
        return Ok(None);
    }
    match std::fs::read(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some).map_err(Error::io("read", &path)),
    }
}

/// Whether it ran and found nothing. The shell's own codes and signals mean something else (wait_result_is_any_signal in
/// wait_error.c).
fn says_no(error: &CommandError) -> bool {
    match error {
        CommandError::Exit { status, .. } => {
            status.signal().is_none() && status.code().is_some_and(|code| code <= 125)
        }
        _ => false,
    }
}

/// The command with its placeholders replaced (BuildRestoreCommand in shell_restore.c).
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

/// A folder for as long as it is needed.
struct Folder(PathBuf);

impl Folder {
    fn make(staging: &Path) -> Result<Self> {
        files::create_directories(staging)?;
        // Of those that were killed.
        for entry in std::fs::read_dir(staging).map_err(Error::io("list", staging))?.flatten() {
            let name = entry.file_name();
            let process = name.to_str().and_then(|name| name.strip_prefix(FOLDER));
            if process.is_some_and(|process| !Path::new("/proc").join(process).exists()) {
                files::remove_tree(&entry.path())?;
            }
        }
        let folder = Self(staging.join(format!("{FOLDER}{}", std::process::id())));
        files::remove_tree(&folder.0)?;
        Ok(folder)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = files::remove_tree(&self.0) {
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
        let staging = tempfile::tempdir().unwrap();
        // No process has a number beyond 2^22.
        let (dead, alive) = (format!("{FOLDER}9999999"), format!("{FOLDER}1"));
        for name in [&dead, &alive, "restore-ab12"] {
            std::fs::create_dir_all(staging.path().join(name).join("x")).unwrap();
        }
        let own = Folder::make(staging.path()).unwrap().0.clone();
        assert!(!staging.path().join(&dead).exists() && !own.exists());
        assert!(staging.path().join(&alive).exists());
        assert!(staging.path().join("restore-ab12").exists());
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
