//! Changes in the restored tree: links, leftovers of the old server, pg_control, the label, the set's WAL.
//!
//! The clone of the data directory still points to the live cluster's pg_wal and tablespaces, so the links are
//! changed first of all.
//!
//! What could go wrong: a folder of the tree is a link. The set had it, or the server's user has just exchanged it, and
//! what is removed here would be the live cluster's, or root's. So each folder is opened before anything in it is
//! removed, by the names in the opened one.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use pgfiles::control_file::ControlFile;
use pgfiles::lsn::{Lsn, TimelineId};
use pgfiles::tablespace_map::TablespaceMap;
use pgfiles::wal_name::{WalFileName, WalSegment, is_backup_history};

use super::build::Build;
use super::placement::Placement;
use super::source::Source;
use super::{choice, control, own_places, prepared};
use crate::error::{Error, Result};
use crate::files::{self, opened};
use crate::mirror::serve;
use crate::plan::strategy::Strategy;
use crate::postgres::classify::STATE;
use crate::postgres::instance::{self, path_bytes};
use crate::postgres::wal::WalIdentity;
use crate::postgres::{copies, links, recovery, wal};
use crate::process::Credentials;
use crate::refusal::Refusal;
use crate::set::manifest::{CONFIGURATION, Manifest, SetFile, WalStored, hash, of_configuration};
use crate::set::own_files::FrozenWal;
use crate::volume::discover::HARMLESS;

/// A file of the set: a standby's pg_control, as it was after the last snapshot.
const KEPT_CONTROL: &str = "pg_control";

/// Files that belong only to the old server (basebackup.c and pg_rewind skip the same).
const FILES: [&str; 10] = [
    "postmaster.pid",
    "postmaster.opts",
    "backup_label",
    "backup_label.old",
    "tablespace_map",
    "tablespace_map.old",
    "recovery.signal",
    "standby.signal",
    "recovery.conf",
    "current_logfiles",
];

/// The .ready files are for the old archiver, and WAL summaries are made from scratch, as after a base backup
/// (basebackup.c sends both folders empty).
const WITHIN_WAL: [&str; 2] = [ARCHIVE_STATUS, "pg_wal/summaries"];
const ARCHIVE_STATUS: &str = "pg_wal/archive_status";

/// Turns the clones into one cluster.
pub(super) fn prepare(build: &Build, owner: Option<Credentials>) -> Result<()> {
    if let Some(link) = folder_elsewhere(&build.placement) {
        let why = format!("\"{}\" is a symbolic link, and no folder", link.display());
        return Err(damaged(build, why));
    }
    // A backup is refused for them, and was not in the past.
    for tablespace in build.placement.tablespaces.values() {
        if let Some(link) = links::in_tablespace(&tablespace.real)?.into_iter().next() {
            let (path, target) = (link.path.display(), link.target.display());
            let why = format!(
                "\"{path}\" is a link to \"{target}\", whose files are in no snapshot of it"
            );
            return Err(damaged(build, why));
        }
    }
    turn_links(build)?;
    clean(build, owner)?;
    prepared::remove_others(build)?;
    place_wal(build, owner)?;
    mark_archived(build, owner)?;
    check_end(build)?;
    place_control(build, owner)?;
    place_label(build, owner)?;
    place_configuration(build, owner)
}

/// Folders of a data directory in which something is changed. A backup is refused if one of them is a link.
const CHANGED: [&str; 4] = ["base", "global", "pg_tblspc", "pg_twophase"];

/// Returns a link in a volume where the set has a folder of the cluster: whoever owns it, it leads out of the volume.
fn folder_elsewhere(placement: &Placement) -> Option<PathBuf> {
    let folders = placement.volumes.iter().flat_map(|volume| {
        std::iter::once(&volume.mountpoint).chain(volume.apart.iter().map(|apart| &apart.folder))
    });
    let tops: Vec<&Path> = folders.map(PathBuf::as_path).collect();
    let parts = placement.tablespaces.values().map(|tablespace| tablespace.real.clone());
    let parts = parts.chain([placement.data.clone(), placement.wal.clone()]);
    let all = parts.chain(CHANGED.iter().map(|name| placement.data.join(name)));
    let link_in = |path: PathBuf| {
        let mut inside = path.ancestors().take_while(|step| !tops.contains(step));
        inside.find(|step| step.is_symlink()).map(Path::to_path_buf)
    };
    all.filter(|path| tops.iter().any(|top| path.starts_with(top))).find_map(link_in)
}

fn turn_links(build: &Build) -> Result<()> {
    let placement = &build.placement;
    for (link, target) in &placement.links {
        if let Some(parent) = link.parent() {
            files::create_open_directories(parent)?;
        }
        if build.source.is_delta() {
            unlink(link)?;
        }
        files::link(link, target)?;
    }
    if let Some(target) = &placement.wal_link {
        let link = placement.data.join("pg_wal");
        // Below the former mount there may be an older copy of pg_wal, from before it was mounted.
        if !link.is_symlink() {
            opened::remove_in(&link, |_| true)?;
        }
        unlink(&link)?;
        files::link(&link, target)?;
    }
    let folder = placement.data.join("pg_tblspc");
    remove_other_links(&folder)?;
    for (oid, _) in instance::tablespace_links(&placement.data)? {
        let link = folder.join(oid.to_string());
        unlink(&link)?;
        // A link that the manifest doesn't know belongs to no part: it must not lead anywhere.
        if let Some(tablespace) = placement.tablespaces.get(&oid) {
            files::link(&link, &tablespace.link)?;
        }
    }
    Ok(())
}

/// Removes the links in pg_tblspc that PostgreSQL didn't make: a tablespace's former place, or a name for people. A
/// server goes through all names there, removes temporary tables behind them when it starts, and empties unlogged ones
/// when recovery ends (RemovePgTempFiles in fd.c, ResetUnloggedRelations in reinit.c): those of the live cluster.
fn remove_other_links(folder: &Path) -> Result<()> {
    for path in files::list(folder)? {
        let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
        let is_oid = name.parse::<u32>().is_ok_and(|oid| oid.to_string() == name);
        if path.is_symlink() && !is_oid {
            tracing::warn!(
                "\"{}\" isn't restored: it is a link of no tablespace, and may lead into one of the original",
                path.display()
            );
            files::remove_owned(&path)?;
        }
    }
    Ok(())
}

/// Removes a link, or the empty folder that a nested dataset was mounted on.
fn unlink(path: &Path) -> Result<()> {
    if is_folder(path) {
        std::fs::remove_dir(path).map_err(Error::io("remove", path))
    } else {
        files::remove_owned(path)
    }
}

fn clean(build: &Build, owner: Option<Credentials>) -> Result<()> {
    let data = &build.placement.data;
    FILES.iter().try_for_each(|name| files::remove_owned(&data.join(name)))?;
    for name in STATE.iter().chain(&WITHIN_WAL) {
        let path = data.join(name);
        if *name == ARCHIVE_STATUS && keeps_archive_status(build) && !path.is_symlink() {
            continue;
        }
        // A link leads to the live server's folder: this cluster gets a folder of its own.
        if path.is_symlink() {
            files::remove_owned(&path)?;
            files::create_owned_directory(&path, owner)?;
        }
        opened::remove_in(&path, |_| true)?;
    }
    give_mount_points(data, owner)?;
    remove_named(&data.join("global"), b"pg_internal.init")?;
    remove_named(&data.join("base"), b"pgsql_tmp")?;
    for database in folders(&data.join("base"))? {
        remove_named(&database, b"pg_internal.init")?;
    }
    for tablespace in build.placement.tablespaces.values() {
        for version in folders(&tablespace.real)? {
            remove_named(&version, b"pgsql_tmp")?;
            for database in folders(&version)? {
                remove_named(&database, b"pg_internal.init")?;
            }
        }
    }
    Ok(())
}

/// Gives the folders on which datasets were mounted that no set has (one of logs) to the server's user: ZFS makes them
/// for root alone. With a log that it can't open no server starts, and without pg_stat_tmp autovacuum of PostgreSQL 14
/// does nothing.
fn give_mount_points(data: &Path, owner: Option<Credentials>) -> Result<()> {
    let Some(owner) = owner.filter(|owner| owner.uid != 0) else { return Ok(()) };
    for path in HARMLESS.map(|name| data.join(name)) {
        let found = std::fs::symlink_metadata(&path);
        let is_root_s = found.is_ok_and(|found| found.is_dir() && found.uid() == 0);
        if is_root_s && files::is_empty_directory(&path)? {
            files::create_owned_directory(&path, Some(owner))?;
        }
    }
    Ok(())
}

/// Removes everything in a folder whose name begins with `prefix`.
fn remove_named(folder: &Path, prefix: &[u8]) -> Result<()> {
    if !is_folder(folder) {
        return Ok(());
    }
    opened::remove_in(folder, |name| name.starts_with(prefix))
}

fn folders(folder: &Path) -> Result<Vec<PathBuf>> {
    Ok(files::list(folder)?.into_iter().filter(|path| is_folder(path)).collect())
}

/// Whether the path is a folder itself, and not a link to one.
fn is_folder(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir())
}

/// Puts the set's own WAL into pg_wal, in place of what the data snapshot contains there.
fn place_wal(build: &Build, owner: Option<Credentials>) -> Result<()> {
    let wal = &build.manifest.wal;
    let pg_wal = &build.placement.wal;
    let from = build.set_directory().join("wal");
    let data = &build.placement.data;
    let mode = files::mode_within(data.metadata().map_err(Error::io("look at", data))?.mode());
    if mode == files::mode_within(0o750) {
        // A pg_wal on a dataset of its own isn't stored in a repository: its folder was made from scratch.
        files::let_group_enter(pg_wal)?;
    }
    let place =
        |name: &String| files::copy_owned(&from.join(name), &pg_wal.join(name), mode, owner);
    if wal.stored == WalStored::Files {
        opened::remove_in(pg_wal, |name| !is_folder(&pg_wal.join(OsStr::from_bytes(name))))?;
        return wal.segments.iter().filter(|name| !wal.archived.contains(name)).try_for_each(place);
    }
    remove_backup_histories(pg_wal)?;
    wal.fetched.iter().try_for_each(place)?;
    // The snapshot was checked when the set was taken; this proves that it is still intact.
    let identity = build.manifest.wal_identity()?;
    let here = wal.segments.iter().filter(|name| !wal.archived.contains(name));
    let segments: Vec<_> =
        here.filter_map(|name| WalSegment::parse(name, identity.segment_size).ok()).collect();
    wal::check(pg_wal, identity, &segments)?;
    // If the manifest only names the first segment, all the others have to be there as well.
    let pg_control = control::held(&build.placement.data);
    FrozenWal::find(&build.manifest, pg_wal.clone(), Some(&pg_control)).map(drop)
}

/// Checks that the end of a set without a floor is on the way that recovery takes: only its WAL says where that is.
fn check_end(build: &Build) -> Result<()> {
    let set = &build.manifest;
    if set.floor_lsn.is_some() || !choice::is_checked_here(set, &build.recovery) {
        return Ok(());
    }
    let control = instance::read_control_at(&control::held(&build.placement.data))?;
    let (redo, timeline) = (control.checkpoint_copy.redo, control.checkpoint_copy.timeline);
    let mut known = set.clone();
    // Since a promotion, minRecoveryPoint is on the new timeline.
    let newest = control.newest_timeline();
    if newest > timeline {
        known.postgres.timeline = newest;
        known.floor_lsn = Some(control.min_recovery_point);
    } else {
        let identity = WalIdentity { timeline, ..set.wal_identity()? };
        let pg_wal = [build.placement.wal.clone()];
        let (_, end) = copies::read(&pg_wal, identity, redo, Lsn::new(u64::MAX))?;
        known.floor_lsn = Some(end);
    }
    choice::check_end(build.cx, &known, &build.recovery)
}

/// Removes the backup history files that the original's backups left for its archive, which has them already: their
/// `.done` files were removed with archive_status. The restored cluster's first backup would archive them again
/// (CleanupBackupHistory in xlog.c, XLogArchiveCheckDone in xlogarchive.c), and an archive_command that doesn't
/// overwrite would never get past them.
fn remove_backup_histories(pg_wal: &Path) -> Result<()> {
    opened::remove_in(pg_wal, |name| std::str::from_utf8(name).is_ok_and(is_backup_history))
}

/// Whether the set has all of the pg_wal of a cluster that was shut down, and goes on along its timeline: then which of
/// these files are in the archive is what archive_status says. Without it, checkpoints would have all of them archived
/// again (XLogArchiveCheckDone in xlogarchive.c), except a history that waits to be archived, which would never be.
fn keeps_archive_status(build: &Build) -> bool {
    build.recovery.set_is_shut_down
        && build.recovery.signal().is_none()
        && build.request.clone.is_none()
        && build.manifest.wal.stored == WalStored::Snapshot
        && matches!(build.source, Source::Snapshots)
}

/// Marks the segments in pg_wal as archived, as a base backup does (perform_base_backup in basebackup.c). Otherwise the
/// restored cluster's checkpoints would have them archived once it archives (XLogArchiveCheckDone in xlogarchive.c): an
/// archive_command that doesn't overwrite would never get past the first, and one that does would replace the whole
/// segment in the archive with the set's, which ends where the set does.
fn mark_archived(build: &Build, owner: Option<Credentials>) -> Result<()> {
    // What goes on along its timeline continues in these segments.
    if build.recovery.signal().is_none() || build.request.clone.is_some() {
        return Ok(());
    }
    mark_segments(&build.placement.wal, build.manifest.wal_identity()?, owner)
}

fn mark_segments(pg_wal: &Path, identity: WalIdentity, owner: Option<Credentials>) -> Result<()> {
    let status = pg_wal.join("archive_status");
    if !is_folder(&status) {
        files::create_owned_directory(&status, owner)?;
        let mode = pg_wal.metadata().map_err(Error::io("look at", pg_wal))?.mode();
        if files::mode_within(mode) == files::mode_within(0o750) {
            files::let_group_enter(&status)?;
        }
    }
    for name in wal::names(pg_wal)? {
        let is_archived = match WalFileName::parse(&name, identity.segment_size) {
            // There may be thousands that wait to be used: recovery removes them or writes to them.
            Ok(WalFileName::Segment(segment)) => {
                !matches!(wal::look(pg_wal, identity, segment, None), Ok(wal::Found::Unwritten(_)))
            }
            // What a promotion left of the old timeline. A base backup doesn't have it, and checkpoints treat it as a
            // segment (RemoveOldXlogFiles in xlog.c).
            Ok(WalFileName::Partial(_)) => true,
            _ => false,
        };
        if is_archived {
            files::write_owned(&status.join(name + ".done"), b"", owner)?;
        }
    }
    Ok(())
}

/// Changes pg_control as the strategy needs it.
fn place_control(build: &Build, owner: Option<Credentials>) -> Result<()> {
    let path = control::held(&build.placement.data);
    let control = if build.manifest.files.contains_key(KEPT_CONTROL) {
        // A standby's, read after the last snapshot: its minRecoveryPoint is the set's end.
        let bytes = build.read_set_file(KEPT_CONTROL)?;
        ControlFile::parse(&bytes).map_err(|e| damaged(build, format!("{KEPT_CONTROL}: {e}")))?
    } else {
        instance::read_control_at(&path)?
    };
    if control.system_identifier != build.manifest.postgres.system_identifier {
        return Err(damaged(
            build,
            format!(
                "pg_control in the snapshot is of cluster {}, the manifest's is {}",
                control.system_identifier, build.manifest.postgres.system_identifier
            ),
        ));
    }
    let changed = changed_control(&build.manifest, &control)?;
    changed.map_or(Ok(()), |bytes| files::write_owned(&path, &bytes, owner))
}

/// Returns the new pg_control, if it can't stay as it is.
fn changed_control(manifest: &Manifest, control: &ControlFile) -> Result<Option<Vec<u8>>> {
    // Then PostgreSQL itself refuses to end recovery before the floor, and to follow a timeline that left the set's own
    // before it: by a label it checks that of the checkpoint alone (InitWalRecovery in xlogrecovery.c). A standby's
    // pg_control has a minRecoveryPoint of its own, which must never become smaller.
    let floor = manifest.floor_lsn.filter(|floor| {
        let wanted = matches!(manifest.strategy, Strategy::Label | Strategy::Ordered)
            || manifest.postgres.standby;
        wanted && manifest.strategy != Strategy::Cold && *floor > control.min_recovery_point
    });
    let raised = floor.map(|floor| control.with_min_recovery_point(floor, manifest.timeline()));
    let raised = raised.or_else(|| without_end_of_promotion(manifest, control));
    if !manifest.files.contains_key("backup_label") {
        return Ok(raised);
    }
    // Recovery starts where backup_label says. Without the label PostgreSQL would start at
    // pg_control's own checkpoint and be silently corrupt; now it finds none there.
    let control = match raised {
        Some(bytes) => ControlFile::parse(&bytes)
            .map_err(|e| Error::failed("pg_control can't be rewritten").because(e))?,
        None => control.clone(),
    };
    Ok(Some(control.with_checkpoint_unusable()))
}

/// Between a promotion and the checkpoint after it, a primary's pg_control has a minRecoveryPoint: the record that
/// ended recovery (CreateEndOfRecoveryRecord in xlog.c). An `atomic` set of that time has newer pages. Crash recovery
/// doesn't look at it, and continues to the end of the WAL; but with recovery.signal PostgreSQL would call the cluster
/// consistent there, and end recovery at a target behind it (InitWalRecovery in xlogrecovery.c). Without the position,
/// crash recovery comes first, as for every other set of this strategy. The timeline stays: it is the newest.
fn without_end_of_promotion(manifest: &Manifest, control: &ControlFile) -> Option<Vec<u8>> {
    let is_of_primary = manifest.strategy == Strategy::Atomic && !manifest.postgres.standby;
    let timeline = TimelineId::new(control.min_recovery_point_timeline)?;
    (is_of_primary && control.min_recovery_point != Lsn::INVALID)
        .then(|| control.with_min_recovery_point(Lsn::INVALID, timeline))
}

fn damaged(build: &Build, why: String) -> Error {
    Refusal::damaged(&build.manifest.set, why).into()
}

fn place_label(build: &Build, owner: Option<Credentials>) -> Result<()> {
    let kept = &build.manifest.files;
    let data = &build.placement.data;
    if kept.contains_key("tablespace_map") {
        let map = build.read_set_file("tablespace_map")?;
        if !map.is_empty() {
            let map = moved_map(build, &map)?;
            if !map.is_empty() {
                files::write_owned(&data.join("tablespace_map"), &map, owner)?;
            }
        }
    }
    if kept.contains_key("backup_label") {
        let label = build.read_set_file("backup_label")?;
        files::write_owned(&data.join("backup_label"), &label, owner)?;
    }
    files::sync_directory(data)
}

/// Returns tablespace_map with the new places; PostgreSQL makes the links of pg_tblspc from it.
fn moved_map(build: &Build, bytes: &[u8]) -> Result<Vec<u8>> {
    let strange = |e| {
        Error::failed(format!("tablespace_map of set {} can't be rewritten", build.manifest.set))
            .because(e)
    };
    // PostgreSQL 13 wrote the file with fewer escapes (do_pg_start_backup in xlog.c).
    let old_form = build.manifest.postgres.major.is_some_and(|major| major <= 13);
    let parsed =
        if old_form { TablespaceMap::parse_13(bytes) } else { TablespaceMap::parse(bytes) };
    let mut map = parsed.map_err(strange)?;
    move_entries(&mut map, &build.placement);
    if old_form { map.to_bytes_13().map_err(strange) } else { Ok(map.to_bytes()) }
}

/// Changes the paths to the new places, and removes the entries of tablespaces that the set doesn't have: made when the
/// layout had just been read, and dropped before it was read again. With such an entry, PostgreSQL would make a link to
/// the original's path, and replay into whatever is there by now. Without it, replay makes a folder of its own in
/// pg_tblspc (TablespaceCreateDbspace in tablespace.c), and removes it with the tablespace.
fn move_entries(map: &mut TablespaceMap, placement: &Placement) {
    map.entries.retain_mut(|entry| {
        let known = placement.tablespaces.get(&entry.oid);
        if let Some(tablespace) = known {
            entry.path = path_bytes(&tablespace.link).to_vec();
        }
        known.is_some()
    });
}

/// Restores the configuration that the set has in files of its own; copies in the data directory weren't in use, or
/// include what was outside it.
fn place_configuration(build: &Build, owner: Option<Credentials>) -> Result<()> {
    for name in CONFIGURATION {
        let path = build.placement.data.join(name);
        let key = of_configuration(name);
        let kept = build.manifest.files.get(&key);
        let bytes = if kept.is_some_and(|kept| !is_mirror_s(name, kept)) {
            let bytes = build.read_set_file(&key)?;
            if kept.is_some_and(|kept| has_no_rules(name, kept)) {
                tracing::warn!(
                    "the set is a mirror's, and has no rules of its primary's pg_hba.conf, which was elsewhere: the restored cluster lets only \"{}\" in, over its socket",
                    build.cx.cluster.os_user
                );
            }
            if name == "postgresql.conf" {
                recovery::staying(&bytes, &build.placement.data)
            } else {
                bytes
            }
        } else if path.exists() {
            if name == "postgresql.conf" {
                stay_here(&build.placement.data, &path, owner)?;
            }
            continue;
        } else if name == "pg_hba.conf" {
            tracing::warn!(
                "the set has no pg_hba.conf: the restored cluster lets only \"{}\" in, over its socket",
                build.cx.cluster.os_user
            );
            b"# written by lockstep restore: the set had none\nlocal all all peer\n".to_vec()
        } else {
            if name == "postgresql.conf" {
                tracing::warn!(
                    "the set has no postgresql.conf: the restored cluster runs with PostgreSQL's defaults, and with what --setting gives it"
                );
            }
            b"# written by lockstep restore: the set had none\n".to_vec()
        };
        files::write_owned(&path, &bytes, owner)?;
    }
    Ok(())
}

/// Whether this is the pg_hba.conf of a mirror's own server, which sets of mirrors had in the past: it lets in whoever
/// may open the socket. The primary's is in the data directory.
fn is_mirror_s(name: &str, kept: &SetFile) -> bool {
    name == "pg_hba.conf" && kept.blake3 == hash(serve::HBA)
}

/// Whether this is what a mirror has in the place of a primary's pg_hba.conf that no base backup brought.
fn has_no_rules(name: &str, kept: &SetFile) -> bool {
    name == "pg_hba.conf" && kept.blake3 == hash(serve::NO_HBA)
}

/// Removes a `data_directory` from postgresql.conf: with it, a server that is started on this folder would run the
/// original's. postgresql.auto.conf can't override it.
fn stay_here(data: &Path, path: &Path, owner: Option<Credentials>) -> Result<()> {
    let Some(text) = read_of_data(data, path)? else { return Ok(()) };
    let changed = recovery::staying(&text, data);
    if changed == text { Ok(()) } else { files::write_owned(path, &changed, owner) }
}

/// Reads a file of a data directory, with the rights of the directory's owner: a link may lead to a file of root's,
/// whose text would then be written to a file of theirs. `None`: it doesn't exist, or the owner can't read it, and so
/// neither can their server.
fn read_of_data(data: &Path, path: &Path) -> Result<Option<Vec<u8>>> {
    match files::read_as(path, files::reader_of(data)?) {
        Err(error @ Error::Command { .. }) => {
            tracing::warn!(
                error = %error.chain(),
                "\"{}\" isn't taken over: the data directory's owner can't read it{}",
                path.display(),
                if path.is_symlink() { ", because it is a symbolic link to another user's file" } else { "" }
            );
            Ok(None)
        }
        read => read,
    }
}

/// Returns settings that say where the configuration is that was outside the data directory.
pub(super) fn places_of_configuration(
    manifest: &Manifest,
    placement: &Placement,
) -> Vec<(String, String)> {
    let files = [("hba_file", "pg_hba.conf"), ("ident_file", "pg_ident.conf")];
    let kept =
        files.iter().filter(|(_, name)| manifest.files.contains_key(&of_configuration(name)));
    let path = |name: &str| placement.data.join(name).display().to_string();
    kept.map(|(setting, name)| ((*setting).to_owned(), path(name))).collect()
}

/// Returns settings that lead to the restored cluster's own files, where the original's lead into its data directory.
pub(super) fn own_places(
    manifest: &Manifest,
    placement: &Placement,
) -> Result<Vec<(String, String)>> {
    let data = &placement.data;
    let reader = files::reader_of(data)?;
    let read = |path: &Path| match files::read_as(path, reader) {
        // Neither can the server, then.
        Err(Error::Command { .. }) => Ok(None),
        read => read,
    };
    own_places::settings(data, &manifest.postgres.data_directory, read)
}

/// Rewrites postgresql.auto.conf with `settings` at its end.
pub(crate) fn write_auto_conf(
    data: &Path,
    settings: &[(String, String)],
    owner: Option<Credentials>,
) -> Result<()> {
    let path = data.join("postgresql.auto.conf");
    let text = recovery::auto_conf(&read_of_data(data, &path)?.unwrap_or_default(), settings);
    files::write_owned(&path, &text, owner)
}

/// Changes links of pg_tblspc that lead to the first path of a pair in `moved` to the second: a replayed CREATE
/// TABLESPACE linked them by its original path.
pub(super) fn correct_links(data: &Path, moved: &[(PathBuf, PathBuf)]) -> Result<()> {
    for (oid, target) in instance::tablespace_links(data)? {
        let Some(new) = moved_to(&target, moved) else { continue };
        files::link(&data.join("pg_tblspc").join(OsStr::new(&oid.to_string())), &new)?;
    }
    Ok(())
}

/// Returns where a link should lead. A tablespace may have been made again in the same folder by another path to it,
/// over a symbolic link: recovery wrote to what was shown there, whatever the path.
fn moved_to(target: &Path, moved: &[(PathBuf, PathBuf)]) -> Option<PathBuf> {
    if let Some((_, new)) = moved.iter().find(|(old, _)| old == target) {
        return Some(new.clone());
    }
    if moved.iter().any(|(_, new)| new == target) {
        return None;
    }
    let target = std::fs::canonicalize(target).ok()?;
    let real = moved.iter().filter_map(|(old, new)| Some((std::fs::canonicalize(old).ok()?, new)));
    let around = real.filter(|(old, _)| target.starts_with(old));
    // One may be in the folder of another.
    let (old, new) = around.max_by_key(|(old, _)| old.components().count())?;
    let inside = target.strip_prefix(&old).ok()?;
    // join with an empty path leaves a trailing slash.
    Some(if inside.as_os_str().is_empty() { new.clone() } else { new.join(inside) })
}

#[cfg(test)]
#[path = "tree_tests.rs"]
mod tests;
