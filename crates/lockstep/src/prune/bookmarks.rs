//! Bookmarks in the place of a common set's snapshots: an increment can start from one, and it keeps
//! nothing on disk.
//!
//! A record says which bookmarks are Lockstep's and for which repositories: it is written before the
//! first is made, and goes once each of these repositories has a newer set of this host.

use super::in_common::Common;
use crate::context::Context;
use crate::error::Result;
use crate::files;
use crate::plan::layout::PartKind;
use crate::set::journal::{self, BookmarkRecord};
use crate::set::manifest::{Manifest, SetVolume};
use crate::set::removal;

/// Whether bookmarks can stand for all of the set's snapshots that are shipped.
pub(super) fn can_replace(cx: &Context, set: &Manifest) -> Result<bool> {
    for volume in shipped(cx, set)? {
        if !cx.zfs.has_bookmarks(&volume.pool)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Makes them.
///
/// # Errors
/// When one can't be made: the pool may not allow it.
pub(super) fn make(cx: &Context, set: &Manifest, repositories: Vec<String>) -> Result<()> {
    let volumes = shipped(cx, set)?;
    let record = BookmarkRecord {
        set: set.set.clone(),
        started_at: set.started_at,
        repositories,
        bookmarks: volumes.iter().map(|v| (v.dataset.clone(), v.guid)).collect(),
    };
    removal::write_to_remove(cx, &path(cx, &record), &record)?;
    for volume in volumes {
        cx.zfs.bookmark(&volume.snapshot, volume.guid)?;
    }
    Ok(())
}

/// Destroys those that nobody needs any more.
///
/// # Errors
/// When one can't be destroyed.
pub(super) fn clear(cx: &Context, commons: &[Common]) -> Result<()> {
    for record in records(cx)? {
        let is_behind = |common: &Common| {
            // Ids sort by time; the newest may be this one, which has just been removed.
            record.repositories.contains(&common.repository)
                && common.newest.as_deref().is_none_or(|newest| newest <= record.set.as_str())
        };
        // Where its set is here still, it stands for nothing.
        if commons.iter().any(is_behind) && !cx.state.is_complete(record.set.as_str()) {
            continue;
        }
        let name = record.set.snapshot_name();
        for (dataset, guid) in &record.bookmarks {
            cx.zfs.destroy_bookmark(&dataset.snapshot(&name), *guid)?;
        }
        files::remove_file(&path(cx, &record))?;
    }
    Ok(())
}

/// All records.
///
/// # Errors
/// When one can't be read.
fn records(cx: &Context) -> Result<Vec<BookmarkRecord>> {
    let all = journal::read_all(&cx.state.path("bookmarks"))?;
    Ok(all.into_iter().map(|(_, record)| record).collect())
}

/// The sets of which all bookmarks are there. Those of a pool that is away may come back.
///
/// # Errors
/// When a record can't be read, or ZFS fails.
pub(super) fn there(cx: &Context) -> Result<Vec<String>> {
    let mut sets = Vec::new();
    for record in records(cx)? {
        let name = record.set.snapshot_name();
        let mut are_there = true;
        for (dataset, guid) in &record.bookmarks {
            are_there &= cx.zfs.has_bookmark_of(&dataset.snapshot(&name), *guid)?
                || !cx.zfs.exists(dataset.pool())?;
        }
        if are_there {
            sets.push(record.set.to_string());
        }
    }
    Ok(sets)
}

fn path(cx: &Context, record: &BookmarkRecord) -> std::path::PathBuf {
    cx.state.path("bookmarks").join(format!("{}.json", record.set))
}

/// The volumes that are shipped: all but one of pg_wal alone, which is only if it is encrypted.
fn shipped<'a>(cx: &Context, set: &'a Manifest) -> Result<Vec<&'a SetVolume>> {
    let is_wal = |volume: &SetVolume| volume.parts.iter().all(|part| part.kind == PartKind::Wal);
    let wal = set.volumes.iter().filter(|volume| is_wal(volume));
    let wal: Vec<_> = wal.map(|volume| volume.dataset.clone()).collect();
    let encrypted = cx.zfs.encryption(&wal)?;
    let is_shipped =
        |volume: &&SetVolume| !is_wal(volume) || encrypted.contains_key(&volume.dataset);
    Ok(set.volumes.iter().filter(is_shipped).collect())
}
