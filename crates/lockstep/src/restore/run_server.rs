//! Starts a restored cluster: recovery in a private mount namespace, then, for a cluster that is to stay, another
//! start outside it.

mod explain;
mod isolate;
mod next_start;
mod ports;
mod raise;

use std::path::{Path, PathBuf};

use pgfiles::control_file::ControlFile;

use super::build::Build;
use super::source::Source;
use super::{Problem, Restored, behind, control, fetched, folders, standby, tree, whole_pages};
use crate::error::{Error, Result};
use crate::files;
use crate::isolation::Isolation;
use crate::names::is_number;
use crate::postgres::invalid_pages::IGNORE;
use crate::postgres::server::{self, Launch, Outcome, Server, Stop};
use crate::postgres::target::{Action, Recovery, Target};
use crate::postgres::{instance, recovery};
use crate::process::{Credentials, Program};
use crate::set::branches::Member;
use crate::steps;

pub use ports::{check_port, free_port};

pub(super) use explain::explain;
pub(crate) use ports::socket_directory;
pub(super) use ports::sockets;

use explain::came_to;
use isolate::isolate;
use next_start::needs_its_next_start;
use raise::raise;

/// Starts the server and waits until it accepts connections.
pub(super) fn start(
    build: &mut Build,
    user: Option<Credentials>,
    restored: &mut Restored,
) -> Result<()> {
    let bin_dir = build.cx.cluster.bin_dir.as_deref();
    let bin_dir = instance::bin_dir_of(bin_dir, build.manifest.postgres.major, user)?;
    let isolation = isolate(build, &bin_dir, user)?;
    let directory = build.placement.directory.clone();
    let (data, log) = (build.placement.data.clone(), directory.join("log/server.log"));
    let sockets = socket_directory(&directory);
    let mut options = first_options(
        &sockets,
        build.manifest.postgres.major,
        isolation.is_some() && build.request.clone.is_none(),
    );
    if is_for_nobody_yet(build) {
        // With hot_standby on, recovery pauses at a setting that the original raised meanwhile.
        options.push(("hot_standby".into(), "off".into()));
    } else if pauses(&build.recovery) {
        // With hot_standby off, PostgreSQL shuts down instead (validateRecoveryParameters in xlogrecovery.c).
        options.push(("hot_standby".into(), "on".into()));
    }
    if has_in_place_tablespaces(&data)? {
        options.push(("allow_in_place_tablespaces".into(), "on".into()));
    }
    if archives_what_it_fetches(build, &bin_dir, user) {
        options.push(("archive_mode".into(), "on".into()));
    }
    if build.request.what.is_a_part() {
        options.push((IGNORE.to_owned(), "on".to_owned()));
    }
    let isolated = isolation.as_ref();
    let launch =
        Launch { bin_dir: &bin_dir, data: &data, log: &log, user, options, isolation: isolated };
    let before = control::read(&data)?;
    let mut server = server::start(&launch)?;
    let recovered = recover_at_last(build, &launch, &mut server, &before, restored.port);
    if let Err(error) = &recovered {
        server.stop_if_unseen(error)?;
    }
    let (outcome, segments) = recovered?;
    restored.recovery_log = server.recovery_log();
    restored.started = outcome != Outcome::ShutDown;
    if outcome == Outcome::Ready {
        if goes_to_the_end_of_an_archive(&build.request.recovery) {
            let end = came_to(server.said());
            restored.problems.extend(fetched::problem(server.said(), segments, end.as_deref()));
        }
        look_behind(build, &bin_dir, server.said(), restored)?;
    }
    steps::reached("restore.recovered")?;
    let stays = matches!(outcome, Outcome::Ready | Outcome::Follows);
    if stays && build.request.clone.is_none() && isolated.is_some() {
        let raised_later = |build: &mut Build, server: &Server| raise(build, server, &before);
        let failed = move_out(build, &mut server, &launch, restored.port, raised_later)?;
        restored.started = failed.is_none();
        restored.problems.extend(failed.map(|error| doesn_t_start(build, &error)));
    } else if !stays && build.request.clone.is_none() {
        // It stays in its namespace, or was stopped there; its next start will be outside.
        correct_links(build, &data, isolated)?;
        control::release(&data)?;
        if outcome == Outcome::ShutDown {
            remove_places_of_others(build)?;
        }
    } else {
        // It ran outside a namespace, or it is a clone, which stays in its namespace. After a reboot somebody starts that
        // one outside of it, where a link that was replayed leads to the original's tablespace.
        correct_links(build, &data, isolated)?;
        if stays {
            belong_to_them(build)?;
        }
    }
    restored.socket_directory = instance::socket_directory(&data);
    Ok(())
}

/// Whether pg_tblspc has folders in place of links: recovery ends with a PANIC at one unless the setting allows them,
/// which an original that has them knows (CheckTablespaceDirectory in xlogrecovery.c).
fn has_in_place_tablespaces(data: &Path) -> Result<bool> {
    let is_one = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.is_some_and(is_number) && path.symlink_metadata().is_ok_and(|found| found.is_dir())
    };
    Ok(files::list(&data.join("pg_tblspc"))?.iter().any(is_one))
}

/// Whether recovery would have everything archived again that restore_command delivers (KeepFileRestoredFromArchive in
/// xlogarchive.c): an archive_command that doesn't overwrite would never get past the first of these files. A server that
/// isn't a standby archives the same with `on` as with `always`.
fn archives_what_it_fetches(build: &Build, bin_dir: &Path, user: Option<Credentials>) -> bool {
    let recovery = &build.recovery;
    if !recovery.keep_archiving || recovery.standby.is_some() || recovery.restore_command.is_none()
    {
        return false;
    }
    let data = &build.placement.data;
    let postgres = Program::new(bin_dir.join("postgres")).arg("-D").arg(data);
    let asked = postgres.args(["-C", "archive_mode"]).as_user(user).current_dir(data);
    asked.run_for_output().is_ok_and(|mode| mode.trim() == "always")
}

/// Waits until recovery is where it should end. If something stops it that another start resolves, starts it again.
/// Returns how it ended, and how many segments earlier starts had fetched.
fn recover_at_last(
    build: &mut Build,
    launch: &Launch<'_>,
    server: &mut Server,
    before: &ControlFile,
    port: Option<u16>,
) -> Result<(Outcome, usize)> {
    let (mut segments, mut has_met) = (0, false);
    loop {
        let error = match recover(build, server) {
            Ok(outcome) => return Ok((outcome, segments)),
            Err(error) => error,
        };
        if ends_where_it_is_consistent(build, server) {
            tracing::info!("consistent with the last record of the WAL: recovery ends there");
            whole_pages::verify(build, server)?;
            build.recovery.target = Target::End;
            // It has begun to recover: a cold set too goes on with recovery.signal, which needs a restore_command.
            build.recovery.set_is_shut_down = false;
            // What the archive has received meanwhile lies after that point.
            build.recovery.restore_command = None;
        } else if !raise(build, server, before)
            && !needs_its_next_start(launch.data, server, &mut has_met)
        {
            return Err(error);
        }
        segments += fetched::segments(server.said());
        server.stop(Stop::Fast)?;
        build.write_settings(port, launch.user)?;
        *server = server::start(launch)?;
    }
}

/// Checks whether recovery reached the end of the available WAL. If that can't be determined, it isn't the restored
/// cluster's fault.
fn look_behind(
    build: &Build,
    bin_dir: &Path,
    said: &[String],
    restored: &mut Restored,
) -> Result<()> {
    let Some(command) = &build.request.recovery.restore_command else { return Ok(()) };
    let to_the_end = goes_to_the_end_of_an_archive(&build.request.recovery);
    let end = match behind::End::find(build, said) {
        Ok(Some(end)) => end,
        Ok(None) => return Ok(()),
        Err(error) => {
            if to_the_end {
                tracing::warn!(error = %error.chain(), "can't tell whether the archive continues after the end of recovery");
            }
            return Ok(());
        }
    };
    if to_the_end {
        if restored.problems.is_empty() {
            restored.problems.extend(end.problem(build, command, said)?);
        }
        if restored.problems.is_empty() {
            restored.problems.extend(end.before_a_set(known_sets(build)));
        }
        end.warn_of_what_the_original_has(build, bin_dir, command);
    }
    restored.problems.extend(end.of_another_way(said));
    Ok(())
}

/// Returns what is known of the cluster's sets, on this host and in the repository that the restored one is from.
fn known_sets(build: &Build) -> Vec<Member> {
    let here = build.cx.state.sets().map(|(sets, _)| sets).unwrap_or_default();
    let mut all: Vec<Member> = here.iter().map(Member::from).collect();
    if let Source::Repository(from) = &build.source {
        match from.repository.members(build.cx) {
            Ok((members, _)) => all.extend(members),
            Err(error) => {
                tracing::debug!(error = %error.chain(), "the repository's sets can't be asked whether recovery ended early");
            }
        }
    }
    all
}

/// Whether recovery ends with a promotion, and nobody has to read before that.
fn is_for_nobody_yet(build: &Build) -> bool {
    let recovery = &build.recovery;
    let promotes = recovery.target == Target::End || recovery.action == Action::Promote;
    recovery.standby.is_none() && promotes
}

/// Whether recovery waits at its target, for somebody who reads.
fn pauses(recovery: &Recovery) -> bool {
    recovery.action == Action::Pause && recovery.target != Target::End
}

/// Whether recovery should replay everything in an archive, but PostgreSQL would end it at whatever prevents that.
fn goes_to_the_end_of_an_archive(asked: &Recovery) -> bool {
    asked.restore_command.is_some() && asked.target == Target::End && asked.standby.is_none()
}

/// Waits until recovery is where it should end.
fn recover(build: &Build, server: &mut Server) -> Result<Outcome> {
    if build.recovery.standby.is_some() {
        return standby::follow(build, server);
    }
    let pauses = pauses(&build.recovery);
    let waited = server.wait_for_recovery(pauses, |words| tracing::info!("recovery: {words}"));
    let outcome = waited.map_err(|error| explain(build, server, error))?;
    whole_pages::verify(build, server)?;
    Ok(outcome)
}

/// Whether recovery to `immediate` reached its target without noticing. PostgreSQL checks for the target before each
/// record and after commits (recoveryStopsBefore and recoveryStopsAfter in xlogrecovery.c), but not when the very
/// last record makes the cluster consistent. The end of the WAL is the same place then.
fn ends_where_it_is_consistent(build: &Build, server: &Server) -> bool {
    build.recovery.target == Target::Immediate
        && build.recovery.action == Action::Promote
        && has_said(server, NOT_REACHED)
        && has_said(server, CONSISTENT)
}

/// The server's message (xlogrecovery.c) when the WAL ended before the target.
const NOT_REACHED: &str = "recovery ended before configured recovery target was reached";
/// Its message when it is consistent.
const CONSISTENT: &str = "consistent recovery state reached";

fn has_said(server: &Server, words: &str) -> bool {
    server.said().iter().any(|line| line.contains(words))
}

/// From here on it is a cluster like any other, and people may use it: if the restore is killed, nothing of it is
/// removed.
fn belong_to_them(build: &mut Build) -> Result<()> {
    build.journal.started = true;
    build.write_journal()
}

/// Moves the server out of its namespace: recovery has ended, so nothing is replayed any more. A standby has replayed
/// everything that the set and the archive had, and its original runs elsewhere. Returns why the server doesn't start
/// with the original's settings, if it doesn't; everything is restored even then.
fn move_out(
    build: &mut Build,
    server: &mut Server,
    launch: &Launch<'_>,
    port: Option<u16>,
    raise: impl FnOnce(&mut Build, &Server) -> bool,
) -> Result<Option<Error>> {
    server.stop(Stop::Fast)?;
    correct_links(build, launch.data, launch.isolation)?;
    if build.recovery.standby.is_none() {
        build.end_recovery_settings(launch.user)?;
    } else if raise(build, server) {
        // It continued after it was consistent.
        build.write_settings(port, launch.user)?;
    }
    // Not earlier: until now a link may have led to a tablespace of the original.
    control::release(launch.data)?;
    belong_to_them(build)?;
    steps::reached("restore.moved")?;
    // From here on only its own configuration counts, as at every later start.
    let again = server::start(&Launch { isolation: None, options: Vec::new(), ..*launch });
    let failed = match again.and_then(|mut again| again.wait_until_ready()) {
        Err(interrupted @ Error::Interrupted { .. }) => return Err(interrupted),
        other => other.err(),
    };
    remove_places_of_others(build)?;
    Ok(failed)
}

/// Removes the mount points for others' paths: nothing is bound there any more.
fn remove_places_of_others(build: &Build) -> Result<()> {
    build.journal.places_of_others.iter().try_for_each(|path| folders::remove_empty(path))
}

/// Makes the problem for a cluster that is restored but doesn't start.
fn doesn_t_start(build: &Build, error: &Error) -> Problem {
    let conf = build.placement.data.join("postgresql.auto.conf");
    Problem {
        what: format!("the cluster is restored, but its server doesn't start: {}", error.chain()),
        hint: format!(
            "change the settings that can't be the original's on this host in \"{}\", and start it; or restore it again with --setting NAME=VALUE",
            conf.display()
        ),
    }
}

/// Turns the links that recovery made by the original's paths to the restored cluster's own folders; in the namespace
/// both are the same.
fn correct_links(build: &Build, data: &Path, isolation: Option<&Isolation>) -> Result<()> {
    let binds = isolation.iter().flat_map(|isolation| &isolation.binds);
    let moved: Vec<_> = binds.map(|bind| (bind.at.clone(), link_of(build, &bind.from))).collect();
    tree::correct_links(data, &moved)?;
    files::sync_directory(&data.join("pg_tblspc"))
}

/// Returns what a link in pg_tblspc should point to for a folder of the restored cluster.
fn link_of(build: &Build, real: &Path) -> PathBuf {
    let mut known = build.placement.tablespaces.values();
    known.find(|t| t.real == real).map_or_else(|| real.to_path_buf(), |t| t.link.clone())
}

/// Returns the options of Lockstep's own servers: they log where Lockstep reads, and open their socket where its path
/// fits.
///
/// `moves_out`: another start follows, so this one doesn't contact anything that the original talks to.
fn first_options(sockets: &Path, major: Option<u32>, moves_out: bool) -> Vec<(String, String)> {
    let mut options = [
        ("logging_collector", "off".to_owned()),
        ("log_destination", "stderr".to_owned()),
        ("log_min_messages", "warning".to_owned()),
        ("log_error_verbosity", "default".to_owned()),
        ("lc_messages", "C".to_owned()),
        ("unix_socket_directories", sockets.display().to_string()),
        ("listen_addresses", "localhost".to_owned()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .to_vec();
    if moves_out {
        options.extend(recovery::apart());
    }
    if major.is_some_and(|major| major >= 14) {
        // A snapshot's content is on disk: opening and syncing each file would take time in proportion to the
        // cluster's size.
        options.push(("recovery_init_sync_method".into(), "syncfs".into()));
    }
    options
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_moves_out_leaves_the_original_alone() {
        let value = |moves_out, name: &str| {
            let options = first_options(Path::new("/r/run"), Some(15), moves_out);
            options.into_iter().find(|(known, _)| known == name).map(|(_, value)| value)
        };
        for (name, expected) in [
            (recovery::NO_WORKERS, "0"),
            ("cron.launch_active_jobs", "off"),
            // pg_cron 1.4, Debian 12's, doesn't know the setting before.
            ("cron.use_background_workers", "on"),
            // Its workers are the original's.
            ("citus.recover_2pc_interval", "-1"),
            ("citus.defer_shard_delete_interval", "-1"),
        ] {
            assert_eq!(value(true, name).as_deref(), Some(expected), "{name}");
            assert_eq!(value(false, name), None, "{name}: a clone has it in postgresql.auto.conf");
        }
    }
}
