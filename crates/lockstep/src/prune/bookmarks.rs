//! Replaces a common set's snapshots with bookmarks: an increment can start from one, and it keeps nothing on disk.
//!
//! A record says which bookmarks are Lockstep's and for which repositories. It is written before the first bookmark
//! is created, and removed once each of these repositories has a newer set of this host.
//!
//! What could go wrong: somebody else's bookmark has the name, and is of the same snapshot (`syncoid --create-bookmark`
//! names its bookmarks after snapshots); it serves as well, and is never destroyed. Or a repository gets another name in
//! the configuration. So a record of the newest set that any repository has stays, whatever the repository's name is; and
//! a name that the cluster no longer has may belong to a repository that doesn't answer. Or a pool isn't imported, or is
//! suspended: its bookmarks come back with it, and nobody else would ever destroy them.

use std::collections::BTreeMap;

use super::in_common::Common;
use crate::context::Context;
use crate::error::Result;
use crate::files;
use crate::plan::layout::PartKind;
use crate::set::journal::{self, BookmarkRecord};
use crate::set::manifest::{Manifest, SetVolume};
use crate::set::removal;
use crate::volume::zfs::{Away, DatasetName};

/// Checks that bookmarks can replace all of the set's snapshots that are shipped.
pub(super) fn can_replace(cx: &Context, set: &Manifest) -> Result<bool> {
    for volume in shipped(cx, set)? {
        if !cx.zfs.has_bookmarks(&volume.pool)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Creates them.
///
/// # Errors
/// When one can't be created: the pool may not allow it.
pub(super) fn make(cx: &Context, set: &Manifest, repositories: Vec<String>) -> Result<()> {
    let volumes = shipped(cx, set)?;
    let mut record = BookmarkRecord {
        set: set.set.clone(),
        started_at: set.started_at,
        repositories,
        bookmarks: volumes.iter().map(|v| (v.dataset.clone(), v.guid)).collect(),
        others: Vec::new(),
    };
    let before = journal::read::<BookmarkRecord>(&path(cx, &record))?;
    for volume in &volumes {
        if !is_made(before.as_ref(), &volume.dataset)
            && cx.zfs.has_bookmark_of(&volume.snapshot, volume.guid)?
        {
            record.others.push(volume.dataset.clone());
        }
    }
    removal::write_to_remove(cx, &path(cx, &record), &record)?;
    for volume in volumes {
        cx.zfs.bookmark(&volume.snapshot, volume.guid)?;
    }
    Ok(())
}

/// Checks whether an attempt that was cut off may have made the dataset's bookmark: its record is written before. A pure
/// function.
fn is_made(before: Option<&BookmarkRecord>, dataset: &DatasetName) -> bool {
    before.is_some_and(|record| record.own().any(|(own, _)| own == dataset))
}

/// Destroys the bookmarks that nobody needs any more. Those of a pool that isn't available wait for it.
///
/// # Errors
/// When one can't be destroyed.
pub(super) fn clear(cx: &Context, commons: &[Common]) -> Result<()> {
    let mut all = records(cx)?;
    let bookmarks = all.iter().flat_map(|record| &record.bookmarks);
    let away = cx.zfs.all_away(bookmarks.map(|(dataset, _)| dataset.pool()))?;
    all.retain(|record| !has_away(record, &away));
    for record in all {
        // As long as its set is still here, it replaces nothing.
        let is_needed = is_needed(&record, commons, &cx.cluster.repositories);
        if is_needed && !cx.state.is_complete(record.set.as_str()) {
            continue;
        }
        let name = record.set.snapshot_name();
        for (dataset, guid) in record.own() {
            cx.zfs.destroy_bookmark(&dataset.snapshot(&name), *guid)?;
        }
        files::remove_file(&path(cx, &record))?;
    }
    Ok(())
}

/// Checks whether a record has bookmarks on one of the pools that are `away`. A pure function.
fn has_away(record: &BookmarkRecord, away: &BTreeMap<String, Away>) -> bool {
    record.bookmarks.iter().any(|(dataset, _)| away.contains_key(dataset.pool()))
}

/// Checks whether the next increment to a repository may start from a record's bookmarks. `names` are those of the
/// cluster's repositories. A pure function.
fn is_needed(record: &BookmarkRecord, commons: &[Common], names: &[String]) -> bool {
    let was_renamed = record.repositories.iter().any(|name| !names.contains(name));
    let is_for = |common: &Common| was_renamed || record.repositories.contains(&common.repository);
    // Ids sort by time; the newest may be this set, which has just been removed.
    commons.iter().any(|common| match common.newest.as_deref() {
        None => is_for(common),
        Some(newest) if newest == record.set.as_str() => true,
        Some(newest) => is_for(common) && newest < record.set.as_str(),
    })
}

/// Returns all records.
///
/// # Errors
/// When one can't be read.
fn records(cx: &Context) -> Result<Vec<BookmarkRecord>> {
    let all = journal::read_all(&cx.state.path("bookmarks"))?;
    Ok(all.into_iter().map(|(_, record)| record).collect())
}

/// Returns the sets whose bookmarks all exist. Those of a pool that isn't imported, or is suspended, may come
/// back.
///
/// # Errors
/// When a record can't be read, or ZFS fails.
pub(super) fn there(cx: &Context) -> Result<Vec<String>> {
    let mut sets = Vec::new();
    for record in records(cx)? {
        let name = record.set.snapshot_name();
        let mut are_there = true;
        for (dataset, guid) in &record.bookmarks {
            are_there &= cx.zfs.away(dataset.pool())?.is_some()
                || cx.zfs.has_bookmark_of(&dataset.snapshot(&name), *guid)?;
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

/// Returns the volumes that are shipped: all but one of pg_wal alone, which is shipped only if it is encrypted.
fn shipped<'a>(cx: &Context, set: &'a Manifest) -> Result<Vec<&'a SetVolume>> {
    let is_wal = |volume: &SetVolume| volume.parts.iter().all(|part| part.kind == PartKind::Wal);
    let wal = set.volumes.iter().filter(|volume| is_wal(volume));
    let wal: Vec<_> = wal.map(|volume| volume.dataset.clone()).collect();
    let encrypted = cx.zfs.encryption(&wal)?;
    let is_shipped =
        |volume: &&SetVolume| !is_wal(volume) || encrypted.contains_key(&volume.dataset);
    Ok(set.volumes.iter().filter(is_shipped).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::zfs::Guid;

    #[test]
    fn a_record_stays_as_long_as_a_pool_of_its_bookmarks_is_away() {
        let of = |dataset: &str| (DatasetName::new(dataset).unwrap(), Guid::new(7));
        let record = BookmarkRecord {
            set: "20261122T000000Z-bbbb".parse().unwrap(),
            started_at: jiff::Timestamp::UNIX_EPOCH,
            repositories: vec!["near".into()],
            bookmarks: vec![of("tank/pg"), of("fast/ts")],
            others: Vec::new(),
        };
        let is = |pools: &[(&str, Away)]| {
            let away = pools.iter().map(|(pool, why)| ((*pool).to_owned(), *why));
            has_away(&record, &away.collect())
        };
        assert!(is(&[("fast", Away::NotImported)]) && is(&[("tank", Away::Suspended)]));
        assert!(!is(&[("other", Away::NotImported)]) && !is(&[]));
    }

    #[test]
    fn a_bookmark_that_was_there_before_is_somebody_else_s() {
        let text = r#"{"set": "20261122T000000Z-bbbb", "started_at": "2026-11-22T00:00:00Z",
            "repositories": ["near"], "bookmarks": [["tank/pg", "7"], ["fast/ts", "8"]]}"#;
        let mut record: BookmarkRecord = serde_json::from_str(text).unwrap();
        let of = |record: &BookmarkRecord| {
            record.own().map(|(dataset, _)| dataset.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(of(&record), ["tank/pg", "fast/ts"], "as older versions wrote it");
        let [pg, ts] = ["tank/pg", "fast/ts"].map(|name| DatasetName::new(name).unwrap());
        record.others.push(pg.clone());
        assert_eq!(of(&record), ["fast/ts"]);
        // The next attempt knows which of the two it made.
        assert!(is_made(Some(&record), &ts) && !is_made(Some(&record), &pg));
        assert!(!is_made(None, &ts));
    }

    #[test]
    fn a_record_stays_until_its_repositories_have_a_newer_set_whatever_they_are_called() {
        let [older, set, newer] =
            ["20261121T000000Z-aaaa", "20261122T000000Z-bbbb", "20261123T000000Z-cccc"];
        let record = BookmarkRecord {
            set: set.parse().unwrap(),
            started_at: jiff::Timestamp::UNIX_EPOCH,
            repositories: vec!["near".into()],
            bookmarks: Vec::new(),
            others: Vec::new(),
        };
        let is = |commons: &[(&str, Option<&str>)]| {
            let names: Vec<_> = commons.iter().map(|(name, _)| (*name).to_owned()).collect();
            let common = |(repository, newest): &(&str, Option<&str>)| Common {
                repository: (*repository).to_owned(),
                newest: newest.map(str::to_owned),
                problem: None,
            };
            is_needed(&record, &commons.iter().map(common).collect::<Vec<_>>(), &names)
        };
        for (newest, expected) in
            [(None, true), (Some(older), true), (Some(set), true), (Some(newer), false)]
        {
            assert_eq!(is(&[("near", newest)]), expected, "{newest:?}");
            assert_eq!(is(&[("renamed", newest)]), expected, "{newest:?}");
        }
        // It still has a name, so it isn't the other one.
        assert!(!is(&[("near", Some(newer)), ("far", None)]));
        assert!(!is(&[("near", Some(newer)), ("far", Some(older))]));
        // But whatever it was made for, nothing else starts from there.
        assert!(is(&[("near", Some(newer)), ("far", Some(set))]));
        assert!(!is(&[]), "no repository is left");
    }
}
