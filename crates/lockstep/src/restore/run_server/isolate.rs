//! The mount namespace that recovery runs in: what it replays by the original's paths ends up in the restored
//! cluster.

use std::path::{Path, PathBuf};

use pgfiles::lsn::Lsn;

use crate::context::Context;
use crate::error::Result;
use crate::files;
use crate::isolation::{self, Bind, Isolation};
use crate::plan::layout::PartKind;
use crate::postgres::wal::WalIdentity;
use crate::postgres::{instance, wal};
use crate::process::{Credentials, Program};
use crate::refusal::Refusal;
use crate::restore::build::Build;
use crate::restore::control;
use crate::set::manifest::SetPart;
use crate::volume::mounts::Mounts;

/// Prepares the namespace: the original tablespace paths lead to the restored cluster.
pub(super) fn isolate(
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
    for (oid, original) in created_later(build, bin_dir, user)? {
        if placement.tablespaces.contains_key(&oid) || binds.iter().any(|b| b.at == original) {
            continue;
        }
        let folder = placement.directory.join("tablespaces").join(oid.to_string());
        // Left by an older restore that --delta was asked to update: replay would find its files.
        forget_older(&folder)?;
        build.journal.own.push(folder.clone());
        binds.push(Bind { from: folder, at: original });
    }
    for at in binds.iter().map(|bind| &bind.at) {
        build.cx.zfs.reachable(at)?;
        let missing = at.ancestors().take_while(|path| !path.exists()).map(Path::to_path_buf);
        build.journal.places_of_others.extend(missing);
    }
    build.write_journal()?;
    let mut shown = Vec::new();
    for Bind { from, at } in binds {
        if !from.exists() {
            files::create_owned_directory(&from, user)?;
        }
        files::create_open_directories(&at)?;
        match isolation::may_be_shown_at(&at)? {
            true => shown.push(Bind { from, at }),
            false => tracing::warn!(
                "a tablespace of the original is at \"{}\", which is the system's here: recovery ends where it creates one there, unless that folder is made the server's user's first (`install -d -o`)",
                at.display()
            ),
        }
    }
    let binds = shown;
    let mut own: Vec<PathBuf> = placement.volumes.iter().map(|v| v.mountpoint.clone()).collect();
    own.sort();
    let mut writable = vec![placement.directory.clone()];
    // A tablespace that goes elsewhere may be on a file system of the host, which the server can't write to by
    // default.
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
    let control = match build.recovers_unseen() {
        true => Some(control::keep_place(&placement.data, user)?),
        false => None,
    };
    Ok(Some(Isolation { own, writable, binds, control, hidden: Vec::new() }))
}

/// Whether a folder inside `outer` is writable with it: not if another file system is mounted on the way.
fn is_writable_with(path: &Path, outer: &Path, points: &[&Path]) -> bool {
    let between =
        |point: &&Path| point.starts_with(outer) && **point != *outer && path.starts_with(point);
    path.starts_with(outer) && !points.iter().any(between)
}

/// Empties the place of a tablespace that recovery may create again.
fn forget_older(folder: &Path) -> Result<()> {
    if folder.is_symlink() {
        return files::remove_file(folder);
    }
    let strange = |path: &&PathBuf| {
        path.file_name().is_none_or(|name| !name.as_encoded_bytes().starts_with(b"PG_"))
    };
    match files::list(folder)?.iter().find(strange) {
        None => files::opened::remove_in(folder, |_| true),
        Some(path) => Err(Refusal::NotAnOlderRestore {
            path: folder.to_path_buf(),
            holds: format!("\"{}\", which isn't part of a tablespace", path.display()),
        }
        .into()),
    }
}

/// Returns tablespaces that the set doesn't have and that recovery may create: those that the live cluster has now,
/// and those in the set's own WAL.
fn created_later(
    build: &Build,
    bin_dir: &Path,
    user: Option<Credentials>,
) -> Result<Vec<(u32, PathBuf)>> {
    let live = &build.cx.cluster.data_directory;
    let mut all = match build.cx.zfs.suspended_at(live) {
        Some(_) => in_newest_set(build.cx)?,
        None if live.is_dir() => instance::tablespace_links(live)?,
        None => Vec::new(),
    };
    let Some(start) = build.manifest.start_lsn.filter(|_| build.recovery.replays()) else {
        return Ok(all);
    };
    all.extend(created_in_wal(build, bin_dir, user, start));
    Ok(all)
}

/// Returns the tablespaces that the live cluster had when its newest set here was taken: its data directory can't be
/// read.
fn in_newest_set(cx: &Context) -> Result<Vec<(u32, PathBuf)>> {
    let (sets, _) = cx.state.sets()?;
    let parts = sets.last().into_iter().flat_map(|set| &set.volumes).flat_map(|of| &of.parts);
    let of = |part: &SetPart| match part.kind {
        PartKind::Tablespace { oid, .. } => Some((oid, part.path.clone())),
        _ => None,
    };
    Ok(parts.filter_map(of).collect())
}

/// pg_waldump runs as the server's user, as all that reads what somebody else may have written.
fn created_in_wal(
    build: &Build,
    bin_dir: &Path,
    user: Option<Credentials>,
    start: Lsn,
) -> Vec<(u32, PathBuf)> {
    // Recovery may start on an earlier timeline than the set's.
    let own = build.manifest.timeline();
    let timeline = build.manifest.history().map_or(own, |history| history.timeline_at(start));
    let identity = build.manifest.wal_identity().map(|it| WalIdentity { timeline, ..it });
    let end = identity.map(|identity| wal::end_of_run(&build.placement.wal, identity, start));
    // It ends with an error where the WAL ends; what it printed before counts. Without an end it would wait five
    // seconds for the segment after the last.
    let text = end.and_then(|end| {
        let pg_waldump = Program::new(bin_dir.join("pg_waldump"))
            .arg("-p")
            .arg(&build.placement.wal)
            .args(["-r", "Tablespace", "-t", &timeline.get().to_string()])
            .args(["-s", &start.to_string(), "-e", &end.to_string()])
            .as_user(user);
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

/// Parses lines of pg_waldump such as `… desc: CREATE 16432 "/srv/ts"` (tblspcdesc.c).
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
