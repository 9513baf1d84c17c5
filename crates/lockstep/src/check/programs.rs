//! Checks PostgreSQL's own programs, which a restore and a clone need, while there is time, and not in the night in
//! which they are needed.

use super::{Finding, failure, ok, wrong};
use crate::context::Context;
use crate::error::Error;
use crate::postgres::instance;
use crate::process::Program;

const SUBJECT: &str = "bin_dir";

/// Checks that they are there and match the cluster's version.
pub(super) fn check(cx: &Context, major: Option<u32>) -> Finding {
    let bin_dir = match instance::bin_dir(cx.cluster.bin_dir.as_deref(), major) {
        Ok(bin_dir) => bin_dir,
        Err(error) => return failure(SUBJECT, &error),
    };
    let place = bin_dir.display();
    // The folder may be the server's user's.
    let user = cx.os_user().ok().flatten();
    let postgres = Program::new(bin_dir.join("postgres")).arg("--version").as_user(user);
    let said = match postgres.run() {
        Ok(output) => output.stdout.trim().to_owned(),
        Err(error) => return failure(SUBJECT, &Error::from(error)),
    };
    match (major, instance::major_of(&said)) {
        (Some(own), Some(found)) if own != found => wrong(
            SUBJECT,
            format!("\"{place}\" has {said}, and the cluster is of PostgreSQL {own}"),
            format!(
                "set bin_dir of this cluster to the folder that holds the postgres of {own}: otherwise nothing that is restored can be started"
            ),
        ),
        _ => ok(SUBJECT, format!("\"{place}\" has {said}")),
    }
}
