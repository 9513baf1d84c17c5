//! Starting a restored cluster: recovery in a private mount namespace, then, for a cluster that is
//! to stay, once more outside it.

use std::net::TcpListener;
use std::path::{Component, Path, PathBuf};

use pgfiles::control_file::ControlFile;
use pgfiles::lsn::Lsn;

use super::build::Build;
use super::{Problem, Restored, behind, fetched, original, standby, tree, unfinished, whole_pages};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::files;
use crate::isolation::{self, Bind, Isolation};
use crate::postgres::invalid_pages::IGNORE;
use crate::postgres::server::{self, Launch, LowerSetting, Outcome, Server, Stop};
use crate::postgres::target::{Action, Recovery, Target};
use crate::postgres::{instance, recovery, wal};
use crate::process::{Credentials, Program};
use crate::refusal::Refusal;
use crate::set::manifest::Manifest;
use crate::steps;
use crate::volume::mounts::Mounts;

/// The longest path of a Unix socket (sun_path), less the name that PostgreSQL adds.
const LONGEST_SOCKET_DIRECTORY: usize = 107 - "/.s.PGSQL.65535.lock".len();

/// A port that nobody listens on, and that isn't `taken`: a server without listen_addresses has its
/// port in its socket's name alone, where a bind can't see it.
///
/// # Errors
/// When there is none.
pub fn free_port(taken: u16) -> Result<u16> {
    let bind = || TcpListener::bind(("127.0.0.1", 0)).map(|socket| (socket.local_addr(), socket));
    // The first one is held until there is a second, so that the same isn't given twice.
    let first = bind().map_err(|e| Error::failed("no free port").because(e))?;
    let second = bind().map_err(|e| Error::failed("no free port").because(e))?;
    let ports = [first.0, second.0].into_iter().flatten().map(|address| address.port());
    ports.into_iter().find(|port| *port != taken).ok_or_else(|| Error::failed("no free port"))
}

/// Refuses a port that somebody listens on, before anything is made for it: by its number, or without
/// listen_addresses by a socket of its name in one of these folders.
///
/// # Errors
/// [`Error::Usage`] when it is taken.
pub fn check_port(port: u16, sockets: &[PathBuf]) -> Result<()> {
    let taken = |by: String| {
        Error::usage(
            format!("port {port} is taken{by}"),
            "name another one with --port, or leave it out: then a free one is found",
        )
    };
    match TcpListener::bind(("127.0.0.1", port)) {
        Err(e) if e.kind() == std::io::ErrorKind::AddrInUse => return Err(taken(String::new())),
        // What else there is to say, the server says.
        _ => {}
    }
    for folder in sockets {
        let lock = folder.join(format!(".s.PGSQL.{port}.lock"));
        if let Some(pid) = instance::locked_by(&lock) {
            return Err(taken(format!(": \"{}\" is of process {pid}", lock.display())));
        }
    }
    Ok(())
}

/// Where a restored server may open its socket: first in its own folder, then where the original does or did.
pub(super) fn sockets(cx: &Context, directory: &Path) -> Vec<PathBuf> {
    let mut folders = vec![socket_directory(directory)];
    folders.extend(instance::socket_directory(&cx.cluster.data_directory));
    let host = cx.cluster.host.iter().map(PathBuf::from);
    folders.extend(host.filter(|path| path.is_absolute()));
    folders.extend(["/tmp", "/var/run/postgresql"].map(PathBuf::from));
    folders
}

/// Starts the server and waits until it accepts connections.
pub(super) fn start(
    build: &mut Build,
    user: Option<Credentials>,
    restored: &mut Restored,
) -> Result<()> {
    let bin_dir =
        instance::bin_dir_of(build.cx.cluster.bin_dir.as_deref(), build.manifest.postgres.major)?;
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
        // Where readers are let in, recovery halts at a setting that the original raised meanwhile.
        options.push(("hot_standby".into(), "off".into()));
    }
    if !build.request.only.is_all() {
        options.push((IGNORE.to_owned(), "on".to_owned()));
    }
    let isolated = isolation.as_ref();
    let launch =
        Launch { bin_dir: &bin_dir, data: &data, log: &log, user, options, isolation: isolated };
    let before = instance::read_control(&data)?;
    let mut server = server::start(&launch)?;
    let (mut segments, mut has_met) = (0, false);
    let outcome = loop {
        let error = match recover(build, &mut server) {
            Ok(outcome) => break outcome,
            Err(error) => error,
        };
        if ends_where_it_is_consistent(build, &server) {
            tracing::info!("consistent with the last record of the WAL: recovery ends there");
            whole_pages::verify(build, &server)?;
            build.recovery.target = Target::End;
            // What the archive has got meanwhile lies behind that place.
            build.recovery.restore_command = None;
        } else if !raise(build, &server, &before)
            && !needs_its_next_start(&data, &server, &mut has_met)
        {
            return Err(error);
        }
        segments += fetched::segments(server.said());
        server.stop(Stop::Fast)?;
        build.write_settings(restored.port, user)?;
        server = server::start(&launch)?;
    };
    restored.recovery_log = server.recovery_log();
    restored.started = outcome != Outcome::ShutDown;
    if outcome == Outcome::Ready && goes_to_the_end_of_an_archive(&build.request.recovery) {
        let end = came_to(server.said());
        restored.problems.extend(fetched::problem(server.said(), segments, end.as_deref()));
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
        if outcome == Outcome::ShutDown {
            remove_places_of_others(build)?;
        }
    } else if stays {
        // Nothing of it is anywhere else than it seems.
        belong_to_them(build)?;
    }
    restored.socket_directory = instance::socket_directory(&data);
    Ok(())
}

/// Whether recovery went as far as there is WAL. What can't be found out about that is no fault of the restored cluster.
fn look_behind(
    build: &Build,
    bin_dir: &Path,
    said: &[String],
    restored: &mut Restored,
) -> Result<()> {
    let Some(command) = &build.request.recovery.restore_command else { return Ok(()) };
    let end = match behind::End::find(build, said) {
        Ok(Some(end)) => end,
        Ok(None) => return Ok(()),
        Err(error) => {
            tracing::warn!(error = %error.chain(), "nobody can tell whether the archive goes on behind the end of recovery");
            return Ok(());
        }
    };
    if restored.problems.is_empty() {
        restored.problems.extend(end.problem(build, command, said)?);
    }
    end.warn_of_what_the_original_has(build, bin_dir, command);
    Ok(())
}

/// Whether recovery ends with a promotion, before which nobody has to read.
fn is_for_nobody_yet(build: &Build) -> bool {
    let recovery = &build.recovery;
    let promotes = recovery.target == Target::End || recovery.action == Action::Promote;
    recovery.standby.is_none() && promotes
}

/// Raises the settings that kept recovery from going on; whether that is anything new. Later starts need them too, so
/// they are written to the cluster's own settings. `before`: pg_control before recovery.
fn raise(build: &mut Build, server: &Server, before: &ControlFile) -> bool {
    let mut lower: Vec<_> = server.lower_setting().into_iter().collect();
    if RAN_OUT.iter().any(|words| has_said(server, words))
        && let Ok(now) = instance::read_control(&build.placement.data)
    {
        lower.extend(raised_meanwhile(before, &now, server.said()));
    }
    let mut is_new = false;
    for LowerSetting { name, needed } in lower {
        let value = needed.to_string();
        if build.raised.contains(&(name.clone(), value.clone())) {
            continue;
        }
        tracing::info!(
            "{name} becomes {value} in the restored cluster: the original's was raised, and recovery can't go on with less"
        );
        recovery::put(&mut build.raised, name, value);
        is_new = true;
    }
    is_new
}

/// In the server's words (twophase.c, lock.c): what is replayed had more than this server has room for. Where nobody is
/// to read, PostgreSQL doesn't compare settings, and finds it out so.
const RAN_OUT: [&str; 2] =
    ["maximum number of prepared transactions reached", "out of shared memory"];

/// What pg_control says that the original was raised to in what was replayed (XLOG_PARAMETER_CHANGE); and where room for
/// prepared transactions is lacking, what it has had from the beginning, if the server says that it has less.
fn raised_meanwhile(before: &ControlFile, now: &ControlFile, said: &[String]) -> Vec<LowerSetting> {
    const PREPARED: &str = "max_prepared_transactions";
    let of = |control: &ControlFile| {
        [
            ("max_connections", control.max_connections),
            ("max_worker_processes", control.max_worker_processes),
            ("max_wal_senders", control.max_wal_senders),
            (PREPARED, control.max_prepared_transactions),
            ("max_locks_per_transaction", control.max_locks_per_transaction),
        ]
    };
    let hint = said.iter().rev().find(|line| line.contains(PREPARED));
    let current = hint
        .and_then(|line| line.split_once("(currently ")?.1.split_once(')')?.0.parse::<i32>().ok());
    let pairs = of(before).into_iter().zip(of(now));
    let raised = pairs.filter(|((name, before), (_, now))| {
        now > before || *name == PREPARED && current.is_some_and(|current| *now > current)
    });
    raised
        .filter_map(|(_, (name, now))| {
            Some(LowerSetting { name: name.to_owned(), needed: u32::try_from(now).ok()? })
        })
        .collect()
}

/// Whether recovery was to take what an archive has, and PostgreSQL would end it at whatever keeps it from that.
fn goes_to_the_end_of_an_archive(asked: &Recovery) -> bool {
    asked.restore_command.is_some() && asked.target == Target::End && asked.standby.is_none()
}

/// Whether recovery came to its end and met an unlogged relation's file there that its next start removes; `has_met`: it has
/// before, and isn't to do so twice.
///
/// A relation is unlogged by its init fork. An index of an unlogged table that was being built at the snapshot has its main
/// fork there and no init fork: the WAL brings it. PostgreSQL removes the main forks of unlogged relations when recovery
/// begins and copies their init forks there when it ends (ResetUnloggedRelations in reinit.c), before it is marked as ended,
/// so that the next start does it all again: with the init fork there from the beginning.
fn needs_its_next_start(data: &Path, server: &Server, has_met: &mut bool) -> bool {
    let Some(file) = server.said().iter().rev().find_map(|line| main_fork_in_the_way(line)) else {
        return false;
    };
    let mut init_fork = data.join(file).into_os_string();
    init_fork.push("_init");
    if *has_met || !Path::new(&init_fork).exists() {
        return false;
    }
    tracing::info!(
        "\"{file}\", of an unlogged relation that was being made when the set was taken, was in the way at the end of recovery: the next start removes it"
    );
    *has_met = true;
    true
}

/// The file in `… FATAL:  could not create file "base/5/16391": File exists` (copy_file in copydir.c).
fn main_fork_in_the_way(line: &str) -> Option<&str> {
    let (_, rest) = line.split_once("FATAL:  could not create file \"")?;
    let file = rest.strip_suffix("\": File exists")?;
    let is_relative = Path::new(file).components().all(|step| matches!(step, Component::Normal(_)));
    is_relative.then_some(file)
}

/// Waits until recovery is where it is to end.
fn recover(build: &Build, server: &mut Server) -> Result<Outcome> {
    if build.recovery.standby.is_some() {
        return standby::follow(build, server);
    }
    let pauses = build.recovery.action == Action::Pause && build.recovery.target != Target::End;
    let waited = server.wait_for_recovery(pauses, |words| tracing::info!("recovery: {words}"));
    let outcome = waited.map_err(|error| explain(build, server, error))?;
    whole_pages::verify(build, server)?;
    Ok(outcome)
}

/// Whether recovery to `immediate` came to its target without PostgreSQL's knowing: it looks for it before each record
/// and behind commits (recoveryStopsBefore and recoveryStopsAfter in xlogrecovery.c), and not where the last record of
/// all makes the cluster consistent. The end of the WAL is the same place then.
fn ends_where_it_is_consistent(build: &Build, server: &Server) -> bool {
    build.recovery.target == Target::Immediate
        && build.recovery.action == Action::Promote
        && has_said(server, NOT_REACHED)
        && has_said(server, CONSISTENT)
}

/// In the server's words (xlogrecovery.c): the WAL ended before the target.
const NOT_REACHED: &str = "recovery ended before configured recovery target was reached";
/// And that it is consistent.
const CONSISTENT: &str = "consistent recovery state reached";

fn has_said(server: &Server, words: &str) -> bool {
    server.said().iter().any(|line| line.contains(words))
}

/// From here on it is a cluster like any other, and people may use it: a kill takes nothing of it away.
fn belong_to_them(build: &mut Build) -> Result<()> {
    build.journal.started = true;
    build.write_journal()
}

/// Recovery has ended, so nothing is replayed any more: the server leaves its namespace. A standby's is past
/// all that the set and the archive had, and its original runs elsewhere. Gives why it doesn't start with the original's
/// settings, where it is so: all is restored then.
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
        // It went on after it was consistent.
        build.write_settings(port, launch.user)?;
    }
    // Not before: until now a link may have led to a tablespace of the original's.
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

/// Nothing is bound there any more.
fn remove_places_of_others(build: &Build) -> Result<()> {
    build.journal.places_of_others.iter().try_for_each(|path| unfinished::remove_place(path))
}

/// What is said of a cluster that is restored and doesn't start.
fn doesn_t_start(build: &Build, error: &Error) -> Problem {
    let conf = build.placement.data.join("postgresql.auto.conf");
    Problem {
        what: format!("it is restored, and its server doesn't start: {}", error.chain()),
        hint: format!(
            "set what can't be here as it was at the original in \"{}\", and start it; or restore it again with --setting NAME=VALUE",
            conf.display()
        ),
    }
}

/// Turns the links that recovery made by the original's paths to the restored cluster's own folders; in the
/// namespace these are the same.
fn correct_links(build: &Build, data: &Path, isolation: Option<&Isolation>) -> Result<()> {
    let binds = isolation.iter().flat_map(|isolation| &isolation.binds);
    let moved: Vec<_> = binds.map(|bind| (bind.at.clone(), link_of(build, &bind.from))).collect();
    tree::correct_links(data, &moved)?;
    files::sync_directory(&data.join("pg_tblspc"))
}

/// What a link in pg_tblspc should point at for a folder of the restored cluster.
fn link_of(build: &Build, real: &Path) -> PathBuf {
    let mut known = build.placement.tablespaces.values();
    known.find(|t| t.real == real).map_or_else(|| real.to_path_buf(), |t| t.link.clone())
}

/// Lockstep's own servers log where Lockstep reads, and open their socket where it fits.
///
/// `moves_out`: another server follows, so this one leaves alone whom the original talks to.
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
        options.push((recovery::NO_WORKERS.into(), "0".into()));
        // pg_cron connects where its table says: to the original, which would do each job twice.
        options.push(("cron.launch_active_jobs".into(), "off".into()));
    }
    if major.is_some_and(|major| major >= 14) {
        // What a snapshot holds is on disk: opening and syncing each file would take as long as
        // the cluster is large.
        options.push(("recovery_init_sync_method".into(), "syncfs".into()));
    }
    options
}

/// Where a server of `directory` opens its socket: in its folder `run`, where the name fits.
pub(crate) fn socket_directory(directory: &Path) -> PathBuf {
    let run = directory.join("run");
    // unix_socket_directories is a list between commas, and a quote in it would need quoting.
    let plain = run.to_str().is_some_and(|text| !text.contains([',', '"', ' ']));
    if plain && run.as_os_str().len() <= LONGEST_SOCKET_DIRECTORY { run } else { "/tmp".into() }
}

/// The namespace: the original tablespace paths lead to the restored cluster.
fn isolate(
    build: &mut Build,
    bin_dir: &Path,
    user: Option<Credentials>,
) -> Result<Option<Isolation>> {
    if !isolation::possible() {
        tracing::warn!(
            "not root: the server gets no mount namespace; a replayed CREATE TABLESPACE would use the original path"
        );
        return Ok(None);
    }
    let placement = build.placement.clone();
    let mut binds: Vec<Bind> = placement
        .tablespaces
        .values()
        .map(|t| Bind { from: t.real.clone(), at: t.original.clone() })
        .collect();
    for (oid, original) in created_later(build, bin_dir)? {
        if placement.tablespaces.contains_key(&oid) || binds.iter().any(|b| b.at == original) {
            continue;
        }
        let folder = placement.directory.join("tablespaces").join(oid.to_string());
        // Of an older restore, which --delta was asked to bring back: what is replayed would find its files.
        forget_older(&folder)?;
        build.journal.own.push(folder.clone());
        binds.push(Bind { from: folder, at: original });
    }
    for at in binds.iter().map(|bind| &bind.at) {
        let missing = at.ancestors().take_while(|path| !path.exists()).map(Path::to_path_buf);
        build.journal.places_of_others.extend(missing);
    }
    build.write_journal()?;
    for Bind { from, at } in &binds {
        if !from.exists() {
            files::create_owned_directory(from, user)?;
        }
        files::create_open_directories(at)?;
    }
    let mut own: Vec<PathBuf> = placement.volumes.iter().map(|v| v.mountpoint.clone()).collect();
    own.sort();
    let mut writable = vec![placement.directory.clone()];
    // A tablespace's, elsewhere: on a file system of the host, which isn't the server's to write to.
    let elsewhere = placement.folders().filter(|path| !path.starts_with(&placement.directory));
    writable.extend(elsewhere.cloned());
    writable.extend(isolation::USUAL.map(PathBuf::from));
    writable.extend(build.cx.cluster.clones.writable.iter().cloned());
    let real = writable.iter().filter_map(|path| std::fs::canonicalize(path).ok());
    let mut writable: Vec<_> = real.collect();
    writable.sort();
    writable.dedup();
    let mounts = Mounts::read()?;
    let points: Vec<&Path> = mounts.iter().map(|mount| mount.point.as_path()).collect();
    let outer = writable.clone();
    writable.retain(|path| {
        let is_within = |o: &PathBuf| o != path && is_writable_with(path, o, &points);
        !outer.iter().any(is_within) || own.contains(path)
    });
    Ok(Some(Isolation { own, writable, binds, hidden: Vec::new() }))
}

/// Whether a folder inside `outer` is writable with it: a file system of its own on the way isn't.
fn is_writable_with(path: &Path, outer: &Path, points: &[&Path]) -> bool {
    let between =
        |point: &&Path| point.starts_with(outer) && **point != *outer && path.starts_with(point);
    path.starts_with(outer) && !points.iter().any(between)
}

/// Empties the place of a tablespace that recovery may make anew.
fn forget_older(folder: &Path) -> Result<()> {
    if folder.is_symlink() {
        return files::remove_file(folder);
    }
    let strange = |path: &&PathBuf| {
        path.file_name().is_none_or(|name| !name.as_encoded_bytes().starts_with(b"PG_"))
    };
    match tree::list(folder)?.iter().find(strange) {
        None => files::empty_directory(folder),
        Some(path) => Err(Refusal::NotAnOlderRestore {
            path: folder.to_path_buf(),
            holds: format!("\"{}\", which is nothing of a tablespace", path.display()),
        }
        .into()),
    }
}

/// Tablespaces that the set doesn't have and that recovery may create: those of the live cluster
/// as it is now, and those in the set's own WAL.
fn created_later(build: &Build, bin_dir: &Path) -> Result<Vec<(u32, PathBuf)>> {
    let live = &build.cx.cluster.data_directory;
    let mut all = if live.is_dir() { instance::tablespace_links(live)? } else { Vec::new() };
    let Some(start) = build.manifest.start_lsn.filter(|_| build.recovery.replays()) else {
        return Ok(all);
    };
    all.extend(created_in_wal(build, bin_dir, start));
    Ok(all)
}

fn created_in_wal(build: &Build, bin_dir: &Path, start: Lsn) -> Vec<(u32, PathBuf)> {
    let identity = build.manifest.wal_identity();
    let end = identity.map(|identity| wal::end_of_run(&build.placement.wal, identity, start));
    // It ends with an error where the WAL ends; what it printed before is what counts. Without an
    // end it would wait five seconds for the segment after the last.
    let text = end.and_then(|end| {
        let pg_waldump = Program::new(bin_dir.join("pg_waldump"))
            .arg("-p")
            .arg(&build.placement.wal)
            .args(["-r", "Tablespace", "-t", &build.manifest.timeline().get().to_string()])
            .args(["-s", &start.to_string(), "-e", &end.to_string()]);
        Ok(pg_waldump.run_for_output()?)
    });
    let text = match text {
        Ok(text) => text,
        Err(error) => {
            tracing::warn!(error = %error.chain(), "can't look for new tablespaces in the set's WAL");
            return Vec::new();
        }
    };
    parse_creates(&text)
}

/// Lines of pg_waldump such as `… desc: CREATE 16432 "/srv/ts"` (tblspcdesc.c).
fn parse_creates(text: &str) -> Vec<(u32, PathBuf)> {
    text.lines()
        .filter_map(|line| {
            let (_, rest) = line.split_once("desc: CREATE ")?;
            let (oid, path) = rest.split_once(' ')?;
            let path = path.strip_prefix('"')?.strip_suffix('"')?;
            Some((oid.parse().ok()?, PathBuf::from(path)))
        })
        .filter(|(_, path)| path.is_absolute())
        .collect()
}

/// PostgreSQL's reason to end recovery, where Lockstep knows it.
pub(super) fn explain(build: &Build, server: &Server, error: Error) -> Error {
    let said = |words: &str| has_said(server, words);
    if said("requested recovery stop point is before consistent recovery point") {
        let earliest = match build.manifest.floor_lsn {
            Some(floor) => format!("LSN {floor}"),
            None => "the end of the WAL in the set".into(),
        };
        let target = build.recovery.target.to_string();
        return Refusal::TargetBeforeConsistency { target, earliest }.into();
    }
    if said(NOT_REACHED) && said(CONSISTENT) && build.recovery.target == Target::Immediate {
        return error.with_hint(
            "it became consistent with the last record of its WAL, where PostgreSQL neither pauses nor stops: leave out --target-action, and it is promoted there",
        );
    }
    if said(NOT_REACHED) {
        let end = came_to(server.said()).or_else(|| {
            let control = instance::read_control(&build.placement.data).ok()?;
            Some(format!("LSN {} at least", control.min_recovery_point))
        });
        let end = end.map_or_else(String::new, |end| format!("recovery came to {end}; "));
        return error.with_hint(match build.recovery.restore_command {
            None => format!(
                "{end}the set's own WAL ends before the target: give --restore-command so that recovery can fetch more, or check the target"
            ),
            Some(_) => match fetched::complaint(server.said()) {
                Some(line) => format!("{end}restore_command said \"{line}\": {}", fetched::hint(line)),
                None => format!(
                    "{end}take a target up to there, or see that restore_command finds what comes after it{}",
                    if original_runs(build) { ": the original runs here, and `SELECT pg_switch_wal()` on it has its last segment archived" } else { "" }
                ),
            },
        });
    }
    let is_standby = build.recovery.standby.is_some();
    if let Some(hint) = of_another_timeline(&build.manifest, is_standby, server.said()) {
        return error.with_hint(hint);
    }
    if said("Read-only file system") {
        return error.with_hint(
            "recovery wanted to write outside the restored cluster: name the folder in clone.writable if it may. That may be the log of a restore_command, or where a tablespace was made after the set: that one has to be the server's user's, and no other cluster's",
        );
    }
    // The first word of a server that has its settings and its memory (StartupXLOG in xlog.c).
    if said("FATAL:  ") && !said("database system was ") {
        return error.with_hint(not_as_there(build.request.clone.is_some()));
    }
    error
}

/// What to do where a server didn't so much as begin with recovery.
fn not_as_there(is_clone: bool) -> &'static str {
    if is_clone {
        "the server ended before recovery: what this host hasn't as the original's had it (memory, ssl files, libraries, locales) is set for clones in settings of [clusters.NAME.clone]"
    } else {
        "the server ended before recovery: what this host hasn't as the original's had it (memory, ssl files, libraries, locales) is set with --setting NAME=VALUE, as --setting shared_buffers=1GB or --setting ssl=off"
    }
}

/// Whether the cluster that the set is of runs on this host.
fn original_runs(build: &Build) -> bool {
    let all = original::here(build.cx, &build.manifest, &build.placement);
    all.iter().any(|data| server::running(data).is_ok_and(|running| running.is_some()))
}

/// Why recovery can't begin with the set, where it follows a timeline that doesn't have the set's end (InitWalRecovery in
/// xlogrecovery.c). PostgreSQL's own hint at that is for a server that has crashed: a copy without its backup_label starts,
/// and is silently wrong.
fn of_another_timeline(set: &Manifest, is_standby: bool, said: &[String]) -> Option<String> {
    let says = |words: &str| said.iter().any(|line| line.contains(words));
    let timeline = set.timeline();
    let id = &set.set;
    let before = format!("take a set from before the place where timeline {timeline} was left");
    let other = match is_standby {
        // Its primary's is the one that it has to follow.
        true => before,
        false => format!(
            "{before} (with --target-time and no set named it is found), or give --target-timeline {timeline} to recover along the set's own"
        ),
    };
    if says("is not a child of this server's history") {
        return Some(format!(
            "set {id} is of timeline {timeline}, which was left before the set's end for the one that recovery follows: {other}"
        ));
    }
    if !says("could not locate required checkpoint record")
        && !says("could not locate a valid checkpoint record")
    {
        return None;
    }
    let start = set.start_lsn.map_or_else(String::new, |start| format!(" (from {start} on)"));
    Some(format!(
        "the WAL that recovery reads isn't the one that set {id} was taken with{start}: is it of another timeline, or does restore_command give another cluster's? In the first case {other}. Leave backup_label where it is: without it the cluster would start, and be wrong"
    ))
}

/// How far recovery came, in the words of the server (PerformWalRecovery in xlogrecovery.c).
fn came_to(said: &[String]) -> Option<String> {
    let behind = |words: &str| {
        let rest = said.iter().rev().find_map(|line| line.split_once(words))?.1;
        (!rest.is_empty()).then_some(rest)
    };
    let lsn = behind("redo done at ").and_then(|rest| rest.split_whitespace().next());
    let time = behind("last completed transaction was at log time ");
    match (lsn, time) {
        (Some(lsn), Some(time)) => Some(format!("LSN {lsn}, its last commit is of {time}")),
        (Some(lsn), None) => Some(format!("LSN {lsn}")),
        (None, Some(time)) => Some(format!("a commit of {time}")),
        (None, None) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_far_recovery_came_is_read_from_the_log() {
        let lines =
            |lines: &[&str]| lines.iter().map(|line| (*line).to_owned()).collect::<Vec<_>>();
        let said = lines(&[
            "t [7] LOG:  redo done at 0/70000A0 system usage: CPU: user: 0.00 s",
            "t [7] LOG:  last completed transaction was at log time 2026-11-26 20:10:11.5+00",
            "t [7] FATAL:  recovery ended before configured recovery target was reached",
        ]);
        assert_eq!(
            came_to(&said).unwrap(),
            "LSN 0/70000A0, its last commit is of 2026-11-26 20:10:11.5+00"
        );
        assert_eq!(came_to(&said[..1]).unwrap(), "LSN 0/70000A0");
        assert_eq!(came_to(&lines(&["t [7] LOG:  redo starts at 0/7000028"])), None);
    }

    #[test]
    fn what_was_raised_in_what_was_replayed_is_read_from_pg_control() {
        let path =
            concat!(env!("CARGO_MANIFEST_DIR"), "/../pgfiles/testdata/17/production.pg_control");
        let before = ControlFile::parse(&std::fs::read(path).unwrap()).unwrap();
        let mut now = before.clone();
        let raised = |now: &ControlFile, said: &[String]| {
            let raised = raised_meanwhile(&before, now, said).into_iter();
            raised.map(|it| (it.name, it.needed)).collect::<Vec<_>>()
        };
        assert_eq!(raised(&now, &[]), []);
        now.max_prepared_transactions = before.max_prepared_transactions + 10;
        now.max_connections = before.max_connections - 1;
        now.max_locks_per_transaction = 200;
        let expected = [
            ("max_prepared_transactions".to_owned(), now.max_prepared_transactions as u32),
            ("max_locks_per_transaction".to_owned(), 200),
        ];
        assert_eq!(raised(&now, &[]), expected);
        // The set's own pg_control has more than its configuration.
        let mut same = before.clone();
        same.max_prepared_transactions = 5;
        let hint = "t [7] HINT:  Increase max_prepared_transactions (currently 0).".to_owned();
        let before = same.clone();
        let raised = raised_meanwhile(&before, &same, &[hint]);
        assert_eq!((raised.len(), raised[0].needed), (1, 5));
        assert!(raised_meanwhile(&before, &same, &[]).is_empty());
    }

    #[test]
    fn a_set_of_a_timeline_that_was_left_is_explained() {
        let set = crate::set::manifest::tests::manifest("20261123T194512Z-k3fa", Vec::new());
        let of = |is_standby, line: &str| {
            of_another_timeline(&set, is_standby, &["t LOG:  x".into(), line.to_owned()])
        };
        let hint = |line: &str| of(false, line);
        let not_a_child = "FATAL:  requested timeline 4 is not a child of this server's history";
        let no_checkpoint = "FATAL:  could not locate required checkpoint record at 0/2000060";
        for line in [not_a_child, no_checkpoint] {
            let hint = hint(line).unwrap();
            assert!(hint.contains("--target-timeline 3"), "{hint}");
            assert!(!hint.contains("remov"), "{hint}");
        }
        assert_eq!(hint("FATAL:  the database system is starting up"), None);
        // Which --standby forbids.
        assert!(!of(true, not_a_child).unwrap().contains("--target-timeline"));
    }

    #[test]
    fn a_main_fork_in_the_way_is_read_from_the_log() {
        let file = |rest: &str| main_fork_in_the_way(&format!("t [7] {rest}")).map(str::to_owned);
        let found = file("FATAL:  could not create file \"base/5/16391\": File exists");
        assert_eq!(found.as_deref(), Some("base/5/16391"));
        for other in [
            "FATAL:  could not create file \"base/5/16391\": No space left on device",
            "FATAL:  could not create file \"/srv/x\": File exists",
            "FATAL:  could not create file \"base/../../x\": File exists",
            "LOG:  could not create file \"base/5/16391\": File exists",
        ] {
            assert_eq!(file(other), None, "{other}");
        }
    }

    #[test]
    fn a_taken_port_is_found_before_anything_is_made() {
        let taken = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        let error = check_port(port, &[]).unwrap_err();
        assert_eq!((error.exit_code(), error.chain()), (2, format!("port {port} is taken")));
        drop(taken);
        // A server without listen_addresses has its socket alone.
        let scratch = tempfile::tempdir().unwrap();
        let folders = [scratch.path().join("none"), scratch.path().to_path_buf()];
        let lock = scratch.path().join(format!(".s.PGSQL.{port}.lock"));
        assert!(check_port(port, &folders).is_ok());
        std::fs::write(&lock, format!("{}\n/data\n", i32::MAX)).unwrap();
        assert!(check_port(port, &folders).is_ok(), "nobody lives who could hold it");
        std::fs::write(&lock, format!("{}\n/data\n", std::process::id())).unwrap();
        let error = check_port(port, &folders).unwrap_err();
        assert!(error.chain().contains(&format!("port {port} is taken: \"{}", lock.display())));
    }

    #[test]
    fn created_tablespaces_are_found_in_the_wal() {
        let text = "rmgr: Tablespace  len (rec/tot): 38/ 38, tx: 7, lsn: 0/1, prev 0/0, desc: CREATE 16432 \"/srv/my ts\"\n\
                    rmgr: Tablespace  len (rec/tot): 38/ 38, tx: 7, lsn: 0/1, prev 0/0, desc: DROP 16432\n\
                    rmgr: Tablespace  len (rec/tot): 38/ 38, tx: 7, lsn: 0/1, prev 0/0, desc: CREATE 16433 \"pg_tblspc/16433\"\n";
        assert_eq!(parse_creates(text), [(16432, PathBuf::from("/srv/my ts"))]);
    }

    #[test]
    fn a_folder_on_a_file_system_of_its_own_is_not_writable_with_the_outer_one() {
        let is_with = |path: &str, points: &[&str]| {
            let points: Vec<&Path> = points.iter().map(Path::new).collect();
            is_writable_with(Path::new(path), Path::new("/var/tmp"), &points)
        };
        assert!(is_with("/var/tmp/r", &["/", "/var", "/var/tmp", "/var/tmp/s"]));
        assert!(!is_with("/var/tmp/r", &["/", "/var/tmp/r"]));
        assert!(!is_with("/var/tmp/pool/r", &["/", "/var/tmp/pool"]));
        assert!(!is_with("/srv/r", &["/"]));
    }

    #[test]
    fn a_long_or_odd_folder_gets_its_socket_elsewhere() {
        assert_eq!(socket_directory(Path::new("/r")), Path::new("/r/run"));
        assert_eq!(socket_directory(Path::new("/a, b")), Path::new("/tmp"));
        assert_eq!(
            socket_directory(Path::new(&format!("/{}", "x".repeat(100)))),
            Path::new("/tmp")
        );
    }
}
