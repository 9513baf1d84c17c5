//! The settings that `mirror create --setting` asks for, checked before anything is made.
//!
//! What could go wrong: a setting keeps the mirror's server from starting, and that shows only after the base backup;
//! or the server starts where Lockstep doesn't look for it.

use super::record::Record;
use crate::error::{Error, Result};
use crate::process::{CommandError, Program};

/// Settings that have an option of their own, or by which Lockstep finds the server and reads its log; and where to
/// say it instead.
const RESERVED: [(&str, &str); 16] = [
    ("config_file", OWN),
    ("data_directory", "--directory and --dataset say where the mirror is"),
    ("external_pid_file", OWN),
    ("hba_file", OWN),
    ("hot_standby", OWN),
    ("ident_file", OWN),
    ("lc_messages", OWN),
    ("log_destination", OWN),
    ("logging_collector", OWN),
    ("port", "--port sets it"),
    ("primary_conninfo", "--from sets it"),
    ("primary_slot_name", "--slot sets it"),
    ("promote_trigger_file", OWN),
    ("restore_command", "--restore-command sets it"),
    ("unix_socket_directories", OWN),
    ("unix_socket_permissions", OWN),
];

const OWN: &str = "Lockstep sets it itself, and relies on its value";

/// Refuses what Lockstep sets itself.
///
/// # Errors
/// [`Error::Usage`] with the setting.
pub(super) fn check_names(settings: &[(String, String)]) -> Result<()> {
    for (name, _) in settings {
        let lower = name.to_ascii_lowercase();
        let known = RESERVED.iter().find(|(reserved, _)| *reserved == lower);
        let why = match known {
            Some((_, why)) => *why,
            None if lower.starts_with("recovery_target") => {
                "a mirror follows its primary to the end"
            }
            None => continue,
        };
        return Err(Error::usage(format!("--setting {name}: a mirror can't have it"), why));
    }
    Ok(())
}

/// Asks PostgreSQL whether it knows the settings and takes their values. Whether this host has what they name (an
/// address, a library) only the server's start shows.
///
/// # Errors
/// [`Error::Usage`] with PostgreSQL's words; also when its program can't be run.
pub(super) fn check(record: &Record) -> Result<()> {
    if record.settings.is_empty() {
        return Ok(());
    }
    // With -C it prints a setting and ends, before it looks at a data directory (PostmasterMain in postmaster.c).
    let mut program = Program::new(record.bin_dir.join("postgres"))
        .args([
            "-D",
            "/",
            "-C",
            "cluster_name",
            "-c",
            "config_file=/dev/null",
            "-c",
            "lc_messages=C",
        ])
        .as_user(record.credentials()?);
    for (name, value) in &record.settings {
        program = program.arg("-c").arg(format!("{name}={value}"));
    }
    match program.run() {
        Ok(_) => Ok(()),
        Err(CommandError::Exit { stderr, .. }) => Err(Error::usage(
            format!("PostgreSQL doesn't take --setting: {}", reason(&stderr)),
            "nothing was made; correct it, or leave it out",
        )),
        Err(other) => Err(other.into()),
    }
}

/// Returns what a server said, without the time and number of its process.
fn reason(stderr: &str) -> &str {
    let fatal = stderr.lines().find_map(|line| line.split_once("FATAL:  "));
    fatal.map_or(stderr.trim(), |(_, words)| words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lockstep_relies_on_is_refused() {
        let check = |name: &str| check_names(&[(name.to_owned(), "1".to_owned())]);
        for name in ["port", "Unix_Socket_Permissions", "recovery_target_lsn", "restore_command"] {
            let error = check(name).unwrap_err();
            assert!(error.to_string().contains(&format!("--setting {name}")), "{error}");
        }
        for name in [
            "shared_buffers",
            "listen_addresses",
            "max_wal_size",
            "auto_explain.log_nested_statements",
        ] {
            check(name).unwrap();
        }
    }

    #[test]
    fn the_reason_is_the_server_s_own() {
        let said = "2026-11-28 09:54:17.125 GMT [22852] FATAL:  unrecognized configuration parameter \"nope\"\n";
        assert_eq!(reason(said), "unrecognized configuration parameter \"nope\"");
        assert_eq!(reason("no library\n"), "no library");
    }
}
