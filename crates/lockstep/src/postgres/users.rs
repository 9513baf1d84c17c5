//! Operating system users: who owns a restored cluster and runs its server.

use crate::error::{Error, Result};
use crate::process::{Credentials, User};

/// The ids of `user`, or `None` where this process already is that user.
///
/// # Errors
/// When there is no such user, or this process may not become that user.
pub fn credentials(user: &str) -> Result<Option<Credentials>> {
    let found = User::find(user).ok_or_else(|| {
        Error::usage(
            format!("there is no operating system user \"{user}\""),
            "set os_user of this cluster to the user that runs PostgreSQL",
        )
    })?;
    let own = rustix::process::geteuid().as_raw();
    if own == found.ids.uid {
        return Ok(None);
    }
    if own != 0 {
        return Err(Error::usage(
            format!("this process runs as uid {own} and can't become \"{user}\""),
            "run lockstep as root, or set os_user to the user you are",
        ));
    }
    Ok(Some(found.ids))
}
