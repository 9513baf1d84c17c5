//! PostgreSQL's own programs, which a restore and a clone need: found out when there is time, and not
//! in the night in which they are needed.

use super::{Finding, failure, ok, wrong};
use crate::context::Context;
use crate::error::Error;
use crate::postgres::instance;
use crate::process::Program;

const SUBJECT: &str = "bin_dir";

/// Whether they are there, and of the cluster's own version.
pub(super) fn check(cx: &Context, major: Option<u32>) -> Finding {
    let bin_dir = match instance::bin_dir(cx.cluster.bin_dir.as_deref(), major) {
        Ok(bin_dir) => bin_dir,
        Err(error) => return failure(SUBJECT, &error),
    };
    let place = bin_dir.display();
    let said = match Program::new(bin_dir.join("postgres")).arg("--version").run() {
        Ok(output) => output.stdout.trim().to_owned(),
        Err(error) => return failure(SUBJECT, &Error::from(error)),
    };
    match (major, major_of(&said)) {
        (Some(own), Some(found)) if own != found => wrong(
            SUBJECT,
            format!("\"{place}\" has {said}, and the cluster is of PostgreSQL {own}"),
            format!(
                "set bin_dir of this cluster to the folder that holds the postgres of {own}: nothing that is restored could be started"
            ),
        ),
        _ => ok(SUBJECT, format!("\"{place}\" has {said}")),
    }
}

/// The major version in what `postgres --version` prints: `postgres (PostgreSQL) 15.18 (Debian …)`.
fn major_of(said: &str) -> Option<u32> {
    let version = said.split_once("(PostgreSQL)")?.1.trim_start();
    let digits = version.find(|c: char| !c.is_ascii_digit()).unwrap_or(version.len());
    version[..digits].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_read_from_what_postgres_prints() {
        assert_eq!(major_of("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)"), Some(15));
        assert_eq!(major_of("postgres (PostgreSQL) 19devel"), Some(19));
        assert_eq!(major_of("postgres (PostgreSQL)"), None);
        assert_eq!(major_of("something else 15"), None);
    }
}
