//! Checks that the server's user can reach the target of the restore.
//!
//! What could go wrong: a folder on the way that only root may enter, such as /root. Everything would be restored,
//! and then no server could be started there.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::error::{Error, Result};
use crate::process::{Credentials, Program, quote};

/// An existing folder stays as it is, and so does each above it; so the server's user has to be able to enter them.
pub(super) fn check(directory: &Path, owner: Credentials, name: &str) -> Result<()> {
    let Some(there) = directory.ancestors().find(|path| path.is_dir()) else { return Ok(()) };
    if can_enter(there, owner) {
        return Ok(());
    }
    // Report the outermost of the folders that keep it out: a user who can't enter that can't reach the others.
    let mut steps: Vec<&Path> = there.ancestors().collect();
    steps.reverse();
    let mut steps = steps.into_iter().skip_while(|step| can_enter(step, owner));
    let closed = steps.next().unwrap_or(there);
    let found = std::fs::metadata(closed).map_err(Error::io("look at", closed))?;
    let path = quote(&closed.display().to_string());
    // Behind it nothing can be tried as that user.
    let behind = steps.filter(|step| is_closed_to(step, owner));
    let behind: String =
        behind.map(|step| format!(" {}", quote(&step.display().to_string()))).collect();
    Err(Error::usage(
        format!(
            "\"{}\" belongs to user {} with mode {:04o}: {name} can't enter it",
            closed.display(),
            found.uid(),
            found.mode() & 0o7777
        ),
        match closed == directory {
            true => format!("chown {name} {path}, or name a folder that doesn't exist yet"),
            false => format!("chmod o+x {path}{behind}, or restore to where {name} can go"),
        },
    ))
}

/// Whether its mode keeps the user out.
fn is_closed_to(folder: &Path, owner: Credentials) -> bool {
    std::fs::metadata(folder).is_ok_and(|found| {
        let bit = match (found.uid() == owner.uid, found.gid() == owner.gid) {
            (true, _) => 0o100,
            (false, true) => 0o010,
            (false, false) => 0o001,
        };
        found.mode() & bit == 0
    })
}

/// Asked as that user, so that access control lists count as well. If it can't be asked, the server will report it.
fn can_enter(folder: &Path, owner: Credentials) -> bool {
    let asked = Program::new("test").arg("-x").arg(folder).as_user(Some(owner)).run();
    asked.map_or_else(|error| !error.is_answer(), |_| true)
}
