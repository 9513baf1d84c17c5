//! Whether the files of a cluster that no server answers for are those that its last server left.
//!
//! pg_control alone doesn't say it. A base backup's says "in production", as after a crash, while its recovery starts
//! elsewhere; and pg_rewind and pg_upgrade leave or make one that says "shut down" while they change the rest. What
//! could go wrong: a set of such files is taken for a crashed or a stopped cluster, and restores without an error to
//! wrong data.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use pgfiles::control_file::ControlFile;

use super::instance::{self, PG_CONTROL};
use super::{running, server};
use crate::error::{Error, Result};
use crate::plan::facts::{Unsettled, was_shut_down};
use crate::plan::layout::{Layout, Part, PartKind};
use crate::{files, process};

/// What says that the files are a base backup. A server that starts renames both once pg_control has what it needs of
/// them (StartupXLOG in xlog.c).
const OF_BASE_BACKUP: [&str; 2] = ["backup_label", "tablespace_map"];

/// PostgreSQL's programs that change the files of a cluster without a server, or with one of their own, and for which
/// postmaster.pid may say nothing.
const PROGRAMS: [&str; 5] =
    ["pg_rewind", "pg_upgrade", "pg_resetwal", "pg_basebackup", "pg_combinebackup"];

/// The length of a process's name (TASK_COMM_LEN of Linux, without the end).
const COMM: usize = 15;

/// Files that a server that shuts down writes before pg_control, and that are never empty. pg_rewind copies them all,
/// and begins by emptying them; it writes pg_control last.
const FILES: [&str; 2] = ["global/pg_filenode.map", "pg_logical/replorigin_checkpoint"];
const FOLDERS: [&str; 3] = ["pg_xact", "pg_multixact/offsets", "pg_multixact/members"];

/// The same, but what a failed CREATE DATABASE has left behind may be empty.
const OF_DATABASE: &str = "pg_filenode.map";

/// Looks at a cluster whose server can't be asked, or doesn't run. One that answers needs no look: it has replayed
/// what it began with, and up to PostgreSQL 14 a backup_label is that of an exclusive backup.
///
/// # Errors
/// When something that is there can't be read.
pub fn look(layout: &Layout, control: &ControlFile) -> Result<Option<Unsettled>> {
    let Some(data) = layout.parts.iter().find(|part| part.kind == PartKind::Data) else {
        return Ok(None);
    };
    let data = &data.real_path;
    if let Some(file) = of_base_backup(data)? {
        return Ok(Some(Unsettled {
            what: format!(
                "the cluster hasn't yet replayed the base backup that it was made from: \"{}\" is still there",
                file.display()
            ),
            needed: "start the server, and take the backup once it accepts connections; of a server that runs where Lockstep doesn't see it, set host, port and user, so that it can be asked".into(),
        }));
    }
    let has_server = instance::postmaster(data)?.is_some();
    if let Some((pid, name, place)) = at_work(&layout.parts, data, !has_server)? {
        return Ok(Some(Unsettled {
            what: format!("{name} (process {pid}) is at work on \"{}\"", place.display()),
            needed: "take the backup when it has ended; if it fails, what it leaves isn't a cluster that can be backed up".into(),
        }));
    }
    if let Some(folder) = of_pg_upgrade(data) {
        return Ok(Some(Unsettled {
            what: format!(
                "pg_upgrade hasn't ended well, or nobody has started the cluster since: \"{}\" is there",
                folder.display()
            ),
            needed: "if it failed, run it again on a new cluster; if it didn't, start the server: what pg_upgrade was given --retain for may stay".into(),
        }));
    }
    if has_server || !was_shut_down(control) {
        return Ok(None);
    }
    Ok(changed(data)?.map(|(file, how)| Unsettled {
        what: format!(
            "something has changed the files of the cluster since it was shut down: \"{}\" {how}",
            file.display()
        ),
        needed: "a pg_rewind that was cut off leaves this, and so does a copy that doesn't keep times. In the first case run pg_rewind again, to its end, or make the cluster anew; if you know that every file is right, start the server and stop it with pg_ctl stop -m fast".into(),
    }))
}

/// Returns the file that says that this is a base backup. Up to PostgreSQL 14 a server that is ready may have one
/// itself, because of an exclusive backup: a snapshot then holds what a power cut would have left.
fn of_base_backup(data: &Path) -> Result<Option<PathBuf>> {
    let mut files = OF_BASE_BACKUP.iter().map(|name| data.join(name));
    let Some(file) = files.find(|file| file.exists()) else { return Ok(None) };
    let is_ready = instance::postmaster_status(data).as_deref() == Some("ready");
    Ok((!is_ready || server::running(data)?.is_none()).then_some(file))
}

/// Returns a program that works on the cluster: its process, its name, and where.
fn at_work(parts: &[Part], data: &Path, alone: bool) -> Result<Option<(u32, String, PathBuf)>> {
    let own = std::process::id();
    for pid in process::ids().map_err(Error::io("list", "/proc"))? {
        if pid == own || running::is_postgres(pid) {
            continue;
        }
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        let name = name.trim_end();
        let known = PROGRAMS.iter().find(|program| program[..program.len().min(COMM)] == *name);
        if let Some(program) = known.filter(|program| {
            // Where these two write, an argument says; the folder that they were started in may be the one they read.
            let is_there = !matches!(**program, "pg_basebackup" | "pg_combinebackup");
            is_given(pid, data) || is_there && works_in(pid, data)
        }) {
            return Ok(Some((pid, (*program).to_owned(), data.to_owned())));
        }
        // Beside a server, whoever else writes there is its own, such as an archive_command.
        if let Some(file) = alone.then(|| writes(pid, parts)).flatten() {
            return Ok(Some((pid, name.to_owned(), file)));
        }
    }
    Ok(None)
}

/// Whether a process's working directory is this folder: pg_resetwal goes there, whatever named it (PGDATA).
fn works_in(pid: u32, folder: &Path) -> bool {
    files::are_one(&PathBuf::from(format!("/proc/{pid}/cwd")), folder)
}

/// Whether an argument of a process names this folder.
fn is_given(pid: u32, folder: &Path) -> bool {
    let of = |what: &str| PathBuf::from(format!("/proc/{pid}/{what}"));
    let is_it = |path: &Path| match path.strip_prefix("/") {
        Ok(below) => files::are_one(&of("root").join(below), folder),
        Err(_) => files::are_one(&of("cwd").join(path), folder),
    };
    let arguments = std::fs::read(of("cmdline")).unwrap_or_default();
    let mut arguments = arguments.split(|&byte| byte == 0).filter(|argument| !argument.is_empty());
    arguments.any(|argument| {
        // DIR, --target-pgdata=DIR, -DDIR.
        let value = argument.iter().position(|&byte| byte == b'=').map(|at| &argument[at + 1..]);
        let attached = argument.strip_prefix(b"-").and_then(|rest| rest.get(1..));
        [Some(argument), value, attached]
            .into_iter()
            .flatten()
            .any(|path| !path.is_empty() && is_it(Path::new(OsStr::from_bytes(path))))
    })
}

/// Returns a file of the cluster that a process has open for writing.
fn writes(pid: u32, parts: &[Part]) -> Option<PathBuf> {
    let open = std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
    open.flatten().find_map(|entry| {
        // This doesn't touch the file, which may be on a file system that doesn't answer.
        let path = std::fs::read_link(entry.path()).ok()?;
        if !parts.iter().any(|part| is_of_server(part, &path)) {
            return None;
        }
        let number = entry.file_name();
        let about = Path::new(&format!("/proc/{pid}/fdinfo")).join(number);
        let is_it = for_writing(&std::fs::read_to_string(about).ok()?)
            && files::are_one(&entry.path(), &path);
        is_it.then_some(path)
    })
}

/// Whether a file is in a part, and one that only PostgreSQL's own programs write: not configuration, not a log.
fn is_of_server(part: &Part, path: &Path) -> bool {
    let Ok(inside) = path.strip_prefix(&part.real_path) else { return false };
    let mut names = inside.iter().filter_map(OsStr::to_str);
    match (&part.kind, names.next(), names.next()) {
        (PartKind::Data, Some("base" | "global"), Some(_)) => true,
        (PartKind::Data, Some(first), Some(_)) => first.starts_with("pg_") && first != "pg_log",
        (PartKind::Data, ..) | (_, None, _) => false,
        _ => true,
    }
}

/// Whether `/proc/PID/fdinfo/N` says that the file is open for writing.
fn for_writing(about: &str) -> bool {
    let flags = about.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|flags| u32::from_str_radix(flags.trim(), 8).ok());
    // O_ACCMODE; O_RDONLY is 0.
    flags.is_some_and(|flags| flags & 3 != 0)
}

/// Returns the folder that pg_upgrade makes when it begins and removes when it has ended well (from PostgreSQL 15 on),
/// unless another server has been started since: pg_upgrade's own ones have the option -b.
fn of_pg_upgrade(data: &Path) -> Option<PathBuf> {
    let folder = data.join("pg_upgrade_output.d");
    let options = std::fs::read(data.join("postmaster.opts")).unwrap_or_default();
    let of_upgrade = options.is_empty()
        || options.split(u8::is_ascii_whitespace).any(|option| option == b"\"-b\"");
    (of_upgrade && folder.is_dir()).then_some(folder)
}

/// Returns a file that isn't as a server leaves it that shuts down, and what is wrong with it.
fn changed(data: &Path) -> Result<Option<(PathBuf, &'static str)>> {
    let control = data.join(PG_CONTROL);
    let last = about(&control)?.map(|(_, modified)| modified);
    let mut all: Vec<_> = FILES.iter().map(|name| (data.join(name), true)).collect();
    for folder in FOLDERS {
        all.extend(files::list(&data.join(folder))?.into_iter().map(|path| (path, true)));
    }
    let databases = files::list(&data.join("base"))?;
    all.extend(databases.iter().map(|folder| (folder.join(OF_DATABASE), false)));
    for (path, never_empty) in all {
        let Some((length, modified)) = about(&path)? else { continue };
        if never_empty && length == 0 {
            return Ok(Some((path, "is empty")));
        }
        if last.is_some_and(|last| modified > last) {
            return Ok(Some((path, "was written after pg_control, which a server writes last")));
        }
    }
    Ok(None)
}

/// Returns the length of a regular file and when it was written; `None` if there is none.
fn about(path: &Path) -> Result<Option<(u64, SystemTime)>> {
    use std::io::ErrorKind::{NotADirectory, NotFound};
    let found = match std::fs::metadata(path) {
        Err(e) if matches!(e.kind(), NotFound | NotADirectory) => return Ok(None),
        other => other.map_err(Error::io("look at", path))?,
    };
    let modified = found.modified().map_err(Error::io("look at", path))?;
    Ok(found.is_file().then_some((found.len(), modified)))
}

#[cfg(test)]
#[path = "settled_tests.rs"]
mod tests;
