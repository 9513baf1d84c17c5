//! How a mirror gets its data: pg_basebackup or pg_rewind, run as os_user in the mirror's own folder `run`. If
//! Lockstep is killed meanwhile, the next start finds them there and ends them.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::primary::{Facts, Primary};
use super::record::{Home, Kind, Record};
use super::room;
use super::serve::NO_HBA;
use crate::error::{Error, Result};
use crate::files;
use crate::isolation;
use crate::process::{self, Program};
use crate::restore;
use crate::steps;
use crate::words::bytes;

/// How often progress is reported.
const PROGRESS: Duration = Duration::from_secs(10);

/// Takes a base backup into the mirror's empty folders.
///
/// pg_basebackup takes the first mapping of a path. So those of tablespaces that were dropped are left out: the
/// primary may have another at such a path by now.
pub(super) fn base_backup(home: &Home, record: &Record, facts: &Facts) -> Result<()> {
    let mut program = Program::new(record.bin_dir.join("pg_basebackup"))
        .args(["--checkpoint=fast", "--wal-method=stream", "--no-password", "--slot"])
        .arg(&record.slot)
        .arg("--pgdata")
        .arg(record.data())
        .arg("--waldir")
        .arg(record.wal())
        .arg("--dbname")
        .arg(record.conninfo()?.to_string());
    let has = |oid: u32| facts.tablespaces.iter().any(|(known, _, _)| *known == oid);
    for place in &record.places {
        if let Kind::Tablespace { oid, location, .. } = &place.kind
            && has(*oid)
        {
            program = program.arg("--tablespace-mapping").arg(mapping(location, &place.directory));
        }
    }
    let program = program.as_user(record.credentials()?).current_dir(&record.run_directory());
    run(home, record, program, facts.size)
}

/// Runs pg_rewind, which copies the pages that differ since the timelines parted from the primary.
///
/// pg_rewind makes the links of pg_tblspc as the primary has them and writes through them. A tablespace that was made
/// since then on the primary's own host would lead to the primary's live files. So it is called only if the mirror
/// has all tablespaces, and it may write only where the mirror's server may: a tablespace that is made at this very
/// moment makes it fail.
pub(super) fn rewind(home: &Home, record: &Record) -> Result<()> {
    let conninfo = record.conninfo()?.with_default("dbname", "postgres");
    let text = |path: PathBuf| path.display().to_string();
    let words = [
        text(record.bin_dir.join("pg_rewind")),
        "--target-pgdata".into(),
        text(record.data()),
        "--source-server".into(),
        conninfo.to_string(),
    ];
    let (folder, user) = (record.run_directory(), record.credentials()?);
    let program = match room::isolation(home, record) {
        Some(isolation) => isolation::wrap(&isolation, &words, &folder, user)?,
        None => Program::new(&words[0]).args(&words[1..]).as_user(user).current_dir(&folder),
    };
    run(home, record, program, 0)
}

/// `OLD=NEW` with the "=" in them escaped, as pg_basebackup reads it (tablespace_list_append).
fn mapping(old: &str, new: &Path) -> String {
    let escaped = |text: &str| text.replace('=', r"\=");
    format!("{}={}", escaped(old), escaped(&new.display().to_string()))
}

/// Runs a program that fills the mirror, and reports its progress.
fn run(home: &Home, record: &Record, program: Program, size: u64) -> Result<()> {
    let user = record.credentials()?;
    let log_path = record.top().join("log/fill.log");
    files::remove_file(&log_path)?;
    let log = files::open_log(&log_path, user)?;
    let mut child = program.start(&log)?;
    let (began, mut told) = (Instant::now(), Instant::now());
    let status = loop {
        if let Some(status) = child.try_wait().map_err(Error::io("wait for", &log_path))? {
            break status;
        }
        if steps::interrupted() {
            let _ = child.kill();
            let _ = child.wait();
            return Err(Error::Interrupted { step: "mirror.filled".into() });
        }
        if told.elapsed() > PROGRESS {
            told = Instant::now();
            let used = record.places.iter().filter_map(|p| home.zfs.bytes(&p.dataset, "used").ok());
            tracing::info!(
                "{} on the datasets after {} s; the primary has {} before compression",
                bytes(used.sum()),
                began.elapsed().as_secs(),
                bytes(size)
            );
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    ended(&program, status, &log_path)
}

fn ended(program: &Program, status: ExitStatus, log: &Path) -> Result<()> {
    if status.success() {
        return Ok(());
    }
    let text = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<_> = text.lines().collect();
    let last = lines[lines.len().saturating_sub(6)..].join("\n  ");
    Err(Error::failed(format!("\"{}\" failed ({status}):\n  {last}", program.display())))
}

/// Ends programs that still fill the mirror for a Lockstep that was killed. Somebody's shell or psql may be in that
/// folder too, and with it this very process: they stay.
pub(super) fn end_fillers(record: &Record) {
    let (folder, data) = (record.run_directory(), record.data());
    for pid in process::ids().into_iter().flatten() {
        let cwd = std::fs::read_link(format!("/proc/{pid}/cwd"));
        let is_one = cwd.is_ok_and(|cwd| cwd == folder)
            && pid != std::process::id()
            && std::fs::read(format!("/proc/{pid}/cmdline"))
                .is_ok_and(|words| is_filler(&words, &data));
        if let (true, Some(pid)) = (is_one, Pid::from_raw(pid.cast_signed())) {
            tracing::warn!(
                pid = pid.as_raw_nonzero().get(),
                "ending what a killed command left running"
            );
            // It may have ended by itself.
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

/// Whether a command line names the data directory, as those of pg_basebackup and pg_rewind do, and that of the server
/// by which pg_rewind ends a recovery.
fn is_filler(words: &[u8], data: &Path) -> bool {
    words.split(|byte| *byte == 0).any(|word| word == data.as_os_str().as_bytes())
}

/// Makes the data directory a standby of its primary.
pub(super) fn make_standby(record: &Record, primary: &mut Primary) -> Result<()> {
    let user = record.credentials()?;
    let data = record.data();
    let conninfo = record.conninfo()?.with("application_name", &record.slot).without("dbname");
    let mut settings = vec![
        ("primary_conninfo".to_owned(), conninfo.to_string()),
        ("primary_slot_name".to_owned(), record.slot.clone()),
        ("recovery_target_timeline".to_owned(), "latest".to_owned()),
    ];
    if let Some(command) = &record.restore_command {
        settings.push(("restore_command".to_owned(), command.clone()));
    }
    restore::write_auto_conf(&data, &settings, user)?;
    files::write_owned(&data.join("standby.signal"), b"", user)?;
    complete_configuration(record, primary)
}

/// Writes the configuration files that Debian keeps in /etc, where no base backup includes them.
fn complete_configuration(record: &Record, primary: &mut Primary) -> Result<()> {
    let user = record.credentials()?;
    let missing = |name: &str| -> Option<PathBuf> {
        let path = record.data().join(name);
        (!path.exists()).then_some(path)
    };
    if let Some(path) = missing("postgresql.conf") {
        files::write_owned(&path, &primary.file_settings().flat(), user)?;
    }
    for name in ["pg_hba.conf", "pg_ident.conf"] {
        if let Some(path) = missing(name) {
            let text: &[u8] = match name {
                "pg_hba.conf" => NO_HBA,
                _ => b"# written by lockstep mirror: the primary keeps its own elsewhere\n",
            };
            files::write_owned(&path, text, user)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_fills_the_data_directory_is_ended() {
        let is = |words: &[u8]| is_filler(words, Path::new("/m/data"));
        assert!(is(b"/bin/pg_basebackup\0--slot\0s\0--pgdata\0/m/data\0--waldir\0/m/wal\0"));
        assert!(is(b"/bin/pg_rewind\0--target-pgdata\0/m/data\0"));
        assert!(is(b"/bin/postgres\0--single\0-F\0-D\0/m/data\0template1\0"));
        let others = [&b"-bash\0"[..], b"psql\0-h\0/m/run\0", b"tail\0/m/data/PG_VERSION\0", b""];
        assert!(!others.into_iter().any(is));
    }

    #[test]
    fn a_mapping_escapes_its_own_sign() {
        assert_eq!(mapping("/a=b", Path::new("/m/ts")), r"/a\=b=/m/ts");
    }
}
