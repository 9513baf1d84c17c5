//! Starts and stops a mirror's server.
//!
//! Settings that differ from the primary's are given on the command line and not in a file, so a set of the mirror
//! holds only the primary's own configuration. What could go wrong: a tablespace that the primary makes later is
//! replayed at the same path here, which on the primary's own host is the primary's own folder. So the server runs in
//! a mount namespace in which it can only write to its own datasets and a few usual places.

use super::primary::Primary;
use super::record::{Home, Record};
use super::{room, verdict};
use crate::context::program;
use crate::error::{Error, Result};
use crate::files;
use crate::postgres::server::{self, Launch, Outcome, Stop};
use crate::postgres::{instance, recovery};
use crate::steps;

/// Whether the mirror's server runs. After a crash of the machine, the number in its postmaster.pid may be that of any
/// other process.
///
/// # Errors
/// When its data directory can't be read.
pub fn is_running(record: &Record) -> Result<bool> {
    Ok(server::running(&record.data())?.is_some())
}

/// Starts the mirror's server and waits until it takes read-only connections.
///
/// # Errors
/// When it dies (with its own words), or a server runs on it already.
pub fn start(home: &Home, record: &mut Record) -> Result<()> {
    record.check_mounted(&home.zfs)?;
    room::check(home, record, true)?;
    refresh(home, record)?;
    launch(home, record)
}

/// Takes over the primary's settings that a hot standby must match, and makes its slot again if somebody dropped it.
/// If the primary can't be asked, the recorded values stay.
fn refresh(home: &Home, record: &mut Record) -> Result<()> {
    record.write_passfile()?;
    let asked = record
        .conninfo()
        .and_then(|conninfo| Primary::connect(&conninfo, record.password_file.as_deref()))
        .and_then(|mut primary| {
            // A slot that nobody can use would keep all of its WAL.
            primary.check_is(&record.system_identifier)?;
            Ok((primary.facts()?, primary))
        });
    match asked {
        Ok((facts, mut primary)) => {
            facts.warn_if_it_waits_for(&record.slot);
            let slot = primary.slot(&record.slot)?;
            if slot.as_ref().is_none_or(|slot| slot.is_lost() && !slot.active) {
                let was = if slot.is_some() { "was invalidated on" } else { "was gone from" };
                tracing::warn!(slot = %record.slot, "the slot {was} the primary, and is made again: WAL written meanwhile may be gone");
                primary.drop_slot(&record.slot)?;
                primary.make_slot(&record.slot)?;
            }
            record.standby_settings = facts.settings;
            home.write(record)
        }
        Err(error) => {
            tracing::warn!(error = %error.chain(), "the primary can't be asked: continuing with its last known settings");
            Ok(())
        }
    }
}

/// Starts it as recorded, and with higher settings if the WAL that it replays needs them.
pub(super) fn launch(home: &Home, record: &mut Record) -> Result<()> {
    if launch_fed(home, record)? {
        return Ok(());
    }
    Err(Error::failed(format!(
        "mirror \"{}\" isn't consistent, and the WAL that it needs is gone from its primary",
        record.name
    ))
    .with_hint(format!(
        "`{} mirror recreate {} --base-backup` takes a new base backup; with an archive, the mirror's restore_command can fetch that WAL",
        program(),
        record.name
    )))
}

/// The same. Returns false, with its server stopped, if it would wait for ever for WAL that its primary no longer has.
pub(super) fn launch_fed(home: &Home, record: &mut Record) -> Result<bool> {
    let user = record.credentials()?;
    let top = record.top();
    for folder in ["run", "log"] {
        files::create_owned_directory(&top.join(folder), user)?;
    }
    // The socket's folder doesn't keep others out: it may be /tmp.
    files::write_owned(&top.join("pg_hba.conf"), HBA, user)?;
    let (data, log) = (record.data(), record.log());
    files::rename_over(&log, &record.older_log())?;
    let isolation = room::isolation(home, record);
    let major = instance::read_control(&data)?.major_version();
    loop {
        let mut server = server::start(&Launch {
            bin_dir: &record.bin_dir,
            data: &data,
            log: &log,
            user,
            options: options(record, major),
            isolation: isolation.as_ref(),
        })?;
        let name = &record.name;
        let tell = |words: &str| tracing::info!("mirror {name}: {words}");
        let fed = steps::reached("mirror.launched")
            .and_then(|()| server.wait_for_fed_standby(tell, verdict::is_starved));
        let error = match fed {
            Ok(Outcome::Starved) => {
                server.stop(Stop::Fast)?;
                return Ok(false);
            }
            Ok(_) => return Ok(true),
            Err(error) => error,
        };
        server.stop_if_unseen(&error)?;
        // The primary once had a higher value than it has now, or than it had when it was last asked.
        let Some(lower) = server.lower_setting() else { return Err(error) };
        if !record.standby_settings.raise(&lower.name, lower.needed) {
            return Err(error);
        }
        tracing::info!(
            "mirror {name}: {} becomes {}, as the primary's was",
            lower.name,
            lower.needed
        );
        server.stop(Stop::Fast)?;
        home.write(record)?;
    }
}

/// Stops it cleanly; it is no error if it doesn't run.
///
/// # Errors
/// When it doesn't stop.
pub fn stop(record: &Record) -> Result<()> {
    server::stop(&record.data(), Stop::Fast)
}

/// The pg_hba.conf of mirrors' servers: only os_user and root can use the socket (unix_socket_permissions), so whoever
/// reaches it may connect. It isn't the primary's, and belongs to no set.
pub(crate) const HBA: &[u8] = b"# written by lockstep\nlocal all all trust\n";

/// The pg_hba.conf in a mirror's data directory if the primary keeps its own outside of it: what is restored from the
/// mirror's sets goes by it.
pub(crate) const NO_HBA: &[u8] =
    b"# written by lockstep mirror: the primary keeps its own elsewhere\nlocal all all peer\n";

/// The settings that differ from the primary's.
fn options(record: &Record, major: Option<u32>) -> Vec<(String, String)> {
    let top = record.top();
    let path = |path: &std::path::Path| path.display().to_string();
    let needed = &record.standby_settings;
    let mut all = vec![
        ("hba_file", path(&top.join("pg_hba.conf"))),
        ("external_pid_file", path(&record.run_directory().join("postmaster.pid"))),
        ("port", record.port.to_string()),
        ("unix_socket_directories", path(&record.socket_directory)),
        // Its pg_hba.conf asks for no password.
        ("unix_socket_permissions", "0700".into()),
        ("listen_addresses", String::new()),
        ("cluster_name", format!("lockstep mirror {}", record.name)),
        ("hot_standby", "on".into()),
        // The mirror is there for backups: replay waits for a query instead of cancelling it.
        ("max_standby_streaming_delay", "-1".into()),
        ("max_standby_archive_delay", "-1".into()),
        // So its queries need no old rows on the primary. Where the primary's file has it on, for a failover, the
        // mirror's slot would hold back VACUUM there: by as much as the mirror lags, and for good while it is stopped
        // (PhysicalReplicationSlotNewXmin in walsender.c).
        ("hot_standby_feedback", "off".into()),
        // Many mirrors share a host, and replay needs little memory.
        ("shared_buffers", "128MB".into()),
        ("huge_pages", "off".into()),
        ("max_connections", needed.max_connections.to_string()),
        ("max_worker_processes", needed.max_worker_processes.to_string()),
        ("max_wal_senders", needed.max_wal_senders.to_string()),
        ("max_prepared_transactions", needed.max_prepared_transactions.to_string()),
        ("max_locks_per_transaction", needed.max_locks_per_transaction.to_string()),
        // Its WAL is the primary's, and the primary archives it; its certificate is the primary's too.
        ("archive_mode", "off".into()),
        ("ssl", "off".into()),
        ("logging_collector", "off".into()),
        ("log_destination", "stderr".into()),
        ("lc_messages", "C".into()),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value))
    .collect::<Vec<_>>();
    all.extend(recovery::of_older(major));
    // In the primary's postgresql.conf these have no effect there. Here they would clean up its archive, hold replay
    // back, or end it at the target of an older recovery.
    all.extend(recovery::neutral());
    // PostgreSQL ends if the shell doesn't find the primary's command here (RestoreArchivedFile in xlogarchive.c).
    if record.restore_command.is_none() {
        all.push(("restore_command".to_owned(), String::new()));
    }
    // It needs hot_standby_feedback, and says so in the log again and again.
    if major.is_some_and(|major| major >= 17) {
        all.push(("sync_replication_slots".to_owned(), "off".to_owned()));
    }
    for (name, value) in &record.settings {
        all.retain(|(known, _)| known != name);
        all.push((name.clone(), value.clone()));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mirror::record::tests::record;

    #[test]
    fn own_settings_come_last_and_once() {
        let mut record = record();
        record.settings = vec![("shared_buffers".into(), "1GB".into())];
        let all = options(&record, Some(15));
        let of = |name: &str| all.iter().filter(|(n, _)| n == name).collect::<Vec<_>>();
        assert_eq!(of("shared_buffers"), [&("shared_buffers".to_owned(), "1GB".to_owned())]);
        assert_eq!(of("max_connections")[0].1, "100");
        assert_eq!(of("unix_socket_permissions")[0].1, "0700");
        assert_eq!((of("promote_trigger_file").len(), of("stats_temp_directory").len()), (1, 0));
        for (name, value) in [
            ("archive_cleanup_command", ""),
            ("recovery_min_apply_delay", "0"),
            ("recovery_target_time", ""),
            ("recovery_target_timeline", "latest"),
            ("restore_command", ""),
        ] {
            assert_eq!(of(name), [&(name.to_owned(), value.to_owned())]);
        }
        assert_eq!(of("hot_standby_feedback")[0].1, "off");
        assert!(of("sync_replication_slots").is_empty(), "15 doesn't know it");
        assert!(
            options(&record, Some(17)).contains(&("sync_replication_slots".into(), "off".into()))
        );
        // The primary's connection string isn't on the command line.
        assert!(of("primary_conninfo").is_empty());
    }

    #[test]
    fn its_own_restore_command_and_feedback_stay() {
        let mut record = record();
        record.restore_command = Some("cp /archive/%f %p".into());
        record.settings = vec![("hot_standby_feedback".into(), "on".into())];
        let all = options(&record, Some(15));
        // Its own restore_command is in postgresql.auto.conf, which the command line would override.
        assert!(!all.iter().any(|(name, _)| name == "restore_command"));
        let feedback: Vec<_> =
            all.iter().filter(|(name, _)| name == "hot_standby_feedback").collect();
        assert_eq!(feedback, [&("hot_standby_feedback".to_owned(), "on".to_owned())]);
    }
}
