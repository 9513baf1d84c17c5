//! Operating system users: who owns a restored cluster and runs its server.

use crate::error::{Error, Result};
use crate::process::{Credentials, Program};

/// The ids of `user`, or `None` where this process already is that user. Asked of getent(1), so
/// that users from LDAP and the like are found too.
///
/// # Errors
/// When there is no such user, or this process may not become it.
pub fn credentials(user: &str) -> Result<Option<Credentials>> {
    let unknown = || {
        Error::usage(
            format!("there is no operating system user \"{user}\""),
            "set os_user of this cluster to the user that runs PostgreSQL",
        )
    };
    let out = Program::new("getent").args(["passwd", user]).run().map_err(|_| unknown())?;
    let mut fields = out.stdout.trim_end().split(':').skip(2).map(str::parse::<u32>);
    let (Some(Ok(uid)), Some(Ok(gid))) = (fields.next(), fields.next()) else {
        return Err(unknown());
    };
    let own = rustix::process::geteuid().as_raw();
    if own == uid {
        return Ok(None);
    }
    if own != 0 {
        return Err(Error::usage(
            format!("this process runs as uid {own} and can't become \"{user}\""),
            "run lockstep as root, or set os_user to the user you are",
        ));
    }
    Ok(Some(Credentials { uid, gid }))
}
