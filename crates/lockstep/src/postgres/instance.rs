//! A data directory on disk: its parts, its pg_control, and whether a server runs in it.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pgfiles::control_file::ControlFile;

use crate::error::{Error, Result};
use crate::plan::facts::ServerFacts;
use crate::plan::layout::PartKind;
use crate::process::{Credentials, Program};
use crate::volume::discover::PartPath;

/// The path of pg_control in the data directory.
pub const PG_CONTROL: &str = "global/pg_control";

/// Reads pg_control. A server may be writing it: a torn read fails the CRC and is repeated.
///
/// # Errors
/// When the file can't be read, or stays wrong.
pub fn read_control(data_directory: &Path) -> Result<ControlFile> {
    read_control_at(&data_directory.join(PG_CONTROL))
}

/// The same for a file of another name.
///
/// # Errors
/// As [`read_control`].
pub fn read_control_at(path: &Path) -> Result<ControlFile> {
    let mut tries = 0;
    loop {
        let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
        match ControlFile::parse(&bytes) {
            Ok(control) => return Ok(control),
            Err(error) if tries >= 10 => {
                return Err(Error::failed(format!("\"{}\" is damaged", path.display()))
                    .because(error)
                    .with_hint("is this a data directory of PostgreSQL 13 to 18?"));
            }
            Err(_) => {
                tries += 1;
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }
}

/// The process that runs the data directory: postmaster.pid names it, and it is alive. Who it really is matters less
/// than never touching a running cluster.
///
/// # Errors
/// When postmaster.pid exists and can't be read.
pub fn postmaster(data_directory: &Path) -> Result<Option<u32>> {
    let path = data_directory.join("postmaster.pid");
    let text = match std::fs::read_to_string(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(Error::io("read", &path))?,
    };
    Ok(living(&text))
}

/// The process that holds a socket's lock file, if it is alive. A file that can't be read belongs to another user and
/// doesn't concern us.
#[must_use]
pub fn locked_by(lock: &Path) -> Option<u32> {
    living(&std::fs::read_to_string(lock).ok()?)
}

/// The process in a lock file's first line, if it is alive.
fn living(text: &str) -> Option<u32> {
    let pid = text.lines().next().and_then(|line| line.trim().parse::<i32>().ok());
    pid.filter(|&pid| is_alive(pid)).map(i32::unsigned_abs)
}

/// Whether a process is alive; a zombie isn't.
#[must_use]
pub fn is_alive(pid: i32) -> bool {
    let state = std::fs::read(format!("/proc/{}/stat", pid.unsigned_abs())).unwrap_or_default();
    // The state comes after the name, which is in parentheses and may contain anything.
    let behind = state.iter().rposition(|&b| b == b')').map(|at| &state[at + 1..]);
    behind.is_some_and(|rest| !matches!(rest.get(1), None | Some(b'Z' | b'X')))
}

/// The status in postmaster.pid (PM_STATUS in miscinit.c): `starting`, `stopping`, `ready`, `standby`.
#[must_use]
pub fn postmaster_status(data_directory: &Path) -> Option<String> {
    pid_line(data_directory, 7)
}

/// When the postmaster began, in seconds since 1970: the third line of postmaster.pid.
#[must_use]
pub fn postmaster_start(data_directory: &Path) -> Option<i64> {
    pid_line(data_directory, 2)?.parse().ok()
}

/// The port of a running server: the fourth line of postmaster.pid.
#[must_use]
pub fn port(data_directory: &Path) -> Option<u16> {
    pid_line(data_directory, 3)?.parse().ok()
}

/// Where a running server opened its socket: the fifth line of postmaster.pid.
#[must_use]
pub fn socket_directory(data_directory: &Path) -> Option<PathBuf> {
    pid_line(data_directory, 4).filter(|line| !line.is_empty()).map(PathBuf::from)
}

/// A line of postmaster.pid, counted from 0 (LOCK_FILE_LINE_* in pidfile.h count from 1).
fn pid_line(data_directory: &Path, number: usize) -> Option<String> {
    let text = std::fs::read_to_string(data_directory.join("postmaster.pid")).ok()?;
    Some(text.lines().nth(number)?.trim().to_owned())
}

/// The parts of the cluster, from the disk, with the tablespaces' names from the server.
///
/// # Errors
/// When the data directory, a link in pg_tblspc or pg_wal can't be read.
pub fn parts(data_directory: &Path, server: Option<&ServerFacts>) -> Result<Vec<PartPath>> {
    let wal = data_directory.join("pg_wal");
    let wal_path = match std::fs::read_link(&wal) {
        Ok(target) => data_directory.join(target),
        Err(_) => wal,
    };
    let mut parts = vec![
        PartPath { kind: PartKind::Data, path: data_directory.to_path_buf() },
        PartPath { kind: PartKind::Wal, path: wal_path },
    ];
    for (oid, path) in tablespace_links(data_directory)? {
        let name = server.and_then(|server| {
            let mut known = server.tablespaces.iter();
            known.find(|(known, _)| *known == oid).map(|(_, name)| name.clone())
        });
        parts.push(PartPath { kind: PartKind::Tablespace { oid, name }, path });
    }
    Ok(parts)
}

/// The links of pg_tblspc by OID. A folder in place of a link is an in-place tablespace: it belongs to the data
/// directory. If pg_tblspc doesn't exist, because the data directory is lost, there are none.
///
/// # Errors
/// When pg_tblspc can't be listed.
pub fn tablespace_links(data_directory: &Path) -> Result<Vec<(u32, PathBuf)>> {
    let folder = data_directory.join("pg_tblspc");
    let mut links = Vec::new();
    let entries = match std::fs::read_dir(&folder) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(links),
        other => other.map_err(Error::io("list", &folder))?,
    };
    for entry in entries {
        let entry = entry.map_err(Error::io("list", &folder))?;
        let oid = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok());
        let (Some(oid), Ok(target)) = (oid, std::fs::read_link(entry.path())) else { continue };
        links.push((oid, folder.join(target)));
    }
    links.sort();
    Ok(links)
}

/// Where PostgreSQL's programs of this major version are: the configured folder, or the usual places of Debian, Red
/// Hat and a build from source.
///
/// # Errors
/// When none has a `postgres`.
pub fn bin_dir(configured: Option<&Path>, major: Option<u32>) -> Result<PathBuf> {
    if let Some(path) = configured {
        if path.join("postgres").exists() {
            return Ok(path.to_path_buf());
        }
        return Err(Error::usage(
            format!("bin_dir \"{}\" has no postgres", path.display()),
            "name the folder that holds this cluster's postgres, pg_ctl and pg_waldump",
        ));
    }
    let major = major.map_or_else(String::new, |major| major.to_string());
    let usual = [
        format!("/usr/lib/postgresql/{major}/bin"),
        format!("/usr/pgsql-{major}/bin"),
        "/usr/local/pgsql/bin".to_owned(),
    ];
    usual.into_iter().map(PathBuf::from).find(|path| path.join("postgres").exists()).ok_or_else(
        || {
            Error::usage(
                format!("PostgreSQL {major} isn't in any of the usual places"),
                "set bin_dir of this cluster to the folder that holds its postgres",
            )
        },
    )
}

/// The same if the programs must be of this version. A set may be older than the cluster's last upgrade, and
/// `bin_dir` then has the new version; in that case it is one of the usual places. `user` is asked to run them: a
/// folder of programs may belong to the server's user, and then root mustn't.
///
/// # Errors
/// As [`bin_dir`], and when neither has that version.
pub fn bin_dir_of(
    configured: Option<&Path>,
    major: Option<u32>,
    user: Option<Credentials>,
) -> Result<PathBuf> {
    let is_right = |path: &Path| match (major, major_in(path, user)) {
        (Some(wanted), Some(found)) => wanted == found,
        // Its version is unknown; the server will report it.
        _ => true,
    };
    let first = bin_dir(configured, major)?;
    if is_right(&first) {
        return Ok(first);
    }
    if let Some(usual) = bin_dir(None, major).ok().filter(|path| is_right(path)) {
        return Ok(usual);
    }
    let wanted = major.unwrap_or_default();
    let found = major_in(&first, user).unwrap_or_default();
    Err(Error::usage(
        format!(
            "the set is of PostgreSQL {wanted}, and \"{}\" has PostgreSQL {found}",
            first.display()
        ),
        format!(
            "install PostgreSQL {wanted}; if it isn't in its usual place, set bin_dir of this cluster to the folder that holds its postgres"
        ),
    ))
}

/// The version of the `postgres` in a folder; `None` if it is unknown.
fn major_in(bin_dir: &Path, user: Option<Credentials>) -> Option<u32> {
    let postgres = Program::new(bin_dir.join("postgres"));
    let said = postgres.arg("--version").as_user(user).run().ok()?;
    major_of(&said.stdout)
}

/// The major version in what `postgres --version` prints: `postgres (PostgreSQL) 15.18 (Debian …)`.
#[must_use]
pub fn major_of(said: &str) -> Option<u32> {
    let version = said.split_once("(PostgreSQL)")?.1.trim_start();
    let digits = version.find(|c: char| !c.is_ascii_digit()).unwrap_or(version.len());
    version[..digits].parse().ok()
}

/// A path as bytes, as PostgreSQL's own files contain it.
#[must_use]
pub fn path_bytes(path: &Path) -> &[u8] {
    path.as_os_str().as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_lives_and_an_absurd_one_does_not() {
        assert!(is_alive(std::process::id().cast_signed()));
        assert!(!is_alive(i32::MAX));
    }

    #[test]
    fn the_version_is_read_from_what_postgres_prints() {
        assert_eq!(major_of("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)"), Some(15));
        assert_eq!(major_of("postgres (PostgreSQL) 19devel"), Some(19));
        assert_eq!(major_of("postgres (PostgreSQL)"), None);
        assert_eq!(major_of("something else 15"), None);
    }

    #[test]
    fn what_may_be_the_server_user_s_own_program_does_not_run_as_root() {
        assert!(rustix::process::geteuid().is_root(), "run as root: it becomes another user");
        let scratch = tempfile::tempdir().unwrap();
        let (path, program) = (scratch.path(), scratch.path().join("postgres"));
        std::fs::write(&program, "#!/bin/sh\necho \"postgres (PostgreSQL) $(id -u)\"\n").unwrap();
        for path in [path, program.as_path()] {
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
            std::fs::set_permissions(path, mode).unwrap();
        }
        let nobody = Credentials { uid: 65534, gid: 65534 };
        assert_eq!(bin_dir_of(Some(path), Some(65534), Some(nobody)).unwrap(), path);
    }

    #[test]
    fn programs_of_another_version_are_not_taken() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path();
        std::fs::write(path.join("postgres"), "#!/bin/sh\necho 'postgres (PostgreSQL) 7.4'\n")
            .unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(path.join("postgres"), mode).unwrap();
        assert_eq!(bin_dir_of(Some(path), Some(7), None).unwrap(), path);
        assert_eq!(bin_dir_of(Some(path), None, None).unwrap(), path);
        let error = bin_dir_of(Some(path), Some(8), None).unwrap_err();
        let words = "the set is of PostgreSQL 8, and ";
        assert!(error.to_string().starts_with(words), "{error}");
        assert_eq!(error.exit_code(), 2);
    }

    #[test]
    fn an_empty_data_directory_has_no_tablespaces() {
        let scratch = tempfile::tempdir().unwrap();
        let dir = scratch.path().join("lost");
        std::fs::create_dir_all(&dir).unwrap();
        assert_eq!(tablespace_links(&dir).unwrap(), []);
        assert_eq!(parts(&dir, None).unwrap().len(), 2);
    }

    #[test]
    fn a_stale_postmaster_pid_is_nobody() {
        let scratch = tempfile::tempdir().unwrap();
        let dir = scratch.path().join("pid");
        std::fs::create_dir_all(&dir).unwrap();
        assert_eq!(postmaster(&dir).unwrap(), None);
        std::fs::write(dir.join("postmaster.pid"), format!("{}\n/x\n", i32::MAX)).unwrap();
        assert_eq!(postmaster(&dir).unwrap(), None);
        let own = format!("{}\n/d\n1\n5432\n/s\n*\n 1 2\nready   \n", std::process::id());
        std::fs::write(dir.join("postmaster.pid"), own).unwrap();
        assert_eq!(postmaster(&dir).unwrap(), Some(std::process::id()));
        assert_eq!(postmaster_status(&dir).as_deref(), Some("ready"));
        assert_eq!(postmaster_start(&dir), Some(1));
    }
}
