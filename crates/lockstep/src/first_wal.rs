//! Finds the first segment of WAL that any set needs, wherever it is: an archive has to be kept from there on.
//!
//! What could go wrong: too much is cleaned up. So a place that doesn't answer, a manifest that can't be read, another
//! repository in the place of the known one, or one that has lost its sets is an error, never a result. And every set
//! counts, whichever cluster it belongs to: the data directory may be new since, or come from pg_upgrade. The first
//! name of all is right for each set, even if their segments differ in size: each set needs the segments from its own
//! first one on, and none before the first name of all.

use pgfiles::wal_name::WalSegment;

use crate::context::{Context, lockstep};
use crate::error::{Error, Result};
use crate::repository::kin::{self, Identity, Kin};
use crate::repository::{self, Repository};
use crate::set::manifest::Manifest;
use crate::set::{notes, unread};

/// Returns it for the sets on this host and in each repository of the cluster.
///
/// # Errors
/// When one of them doesn't answer in full, isn't the known one or has lost its sets, or there is no set at all.
pub fn find(cx: &Context) -> Result<String> {
    let (here, damaged) = cx.state.sets()?;
    if let Some((set, error)) = damaged.first() {
        let ways = unread::ways_out(set.as_str(), None);
        return Err(Error::failed(error.chain()).with_hint(ways));
    }
    let identity = Identity::of(cx, &here);
    let mut clusters = vec![Kin::of(&identity, &[])];
    let mut all = here.clone();
    for name in &cx.cluster.repositories {
        // If another one is in its place: the sets of the known one need their WAL too.
        let repository = repository::open_known(cx, name)?;
        let (sets, damaged) = repository.sets()?;
        if let Some((set, error)) = damaged.into_iter().next() {
            if matches!(error, Error::Store { .. }) {
                return Err(error);
            }
            let ways = unread::ways_out(&set, Some(name));
            let ways = format!("if its manifest can't be repaired, {ways}");
            return Err(error.and_hint(&ways).unwrap_or_else(|error| error));
        }
        if sets.is_empty() {
            assert_never_had_any(cx, &here, &repository)?;
        }
        clusters.push(Kin::of(&identity, &sets));
        all.extend(sets.into_iter().map(|set| set.manifest));
    }
    let mut needed = Vec::new();
    for set in &all {
        needed.extend(of_set(set)?.into_iter().map(|name| (name, set)));
    }
    let (first, set) = first(needed).ok_or_else(|| {
        Error::failed(format!("cluster \"{}\" has no set that needs WAL", cx.name)).with_hint(
            format!(
                "without a set nothing says how long an archive is needed: `{} backup`",
                lockstep()
            ),
        )
    })?;
    let of = set.postgres.system_identifier;
    if !clusters.iter().any(|kin| kin.has_identifier(of)) {
        tracing::warn!(
            "it is set {} that needs {first}, and it is of another cluster than this host's: its system identifier is {of}. As long as it is there, no later WAL is cleaned up. {}",
            set.set,
            kin::hint(cx.name.as_str(), of)
        );
    }
    Ok(first)
}

/// Checks that a repository without sets never had any. This host notes what it ships.
fn assert_never_had_any(cx: &Context, here: &[Manifest], repository: &Repository) -> Result<()> {
    let name = &repository.name;
    let is_noted = |set: &&Manifest| notes::is_shipped(cx, &set.set, name, Some(&repository.id));
    let Some(noted) = here.iter().rev().find(is_noted) else { return Ok(()) };
    let error = Error::failed(format!(
        "repository \"{name}\" has no set of cluster \"{}\", and set {} was shipped to it",
        cx.name, noted.set
    ));
    let others = repository.empty_hint().map_or_else(String::new, |hint| format!("{hint} "));
    Err(error.with_hint(format!(
        "{others}was its folder renamed or removed, or did its storage go back to an older state? If its sets are gone for good, `{} ship --missing` ships what this host has",
        lockstep()
    )))
}

/// Returns all segments that a set names, and the one in which its recovery starts.
fn of_set(set: &Manifest) -> Result<Vec<String>> {
    let mut names = set.wal.segments.clone();
    if let Some(start) = set.start_lsn {
        let identity = set.wal_identity()?;
        let segment = WalSegment::containing(identity.timeline, start, identity.segment_size);
        names.push(segment.file_name(identity.segment_size));
    }
    Ok(names)
}

/// Returns the first by its position in the WAL, with what needs it: `pg_archivecleanup` doesn't look at the timeline
/// either.
fn first<T>(needed: impl IntoIterator<Item = (String, T)>) -> Option<(String, T)> {
    // A timeline's history file is kept whatever is cleaned up.
    let place = |name: &String| (name.len() == 24).then(|| name.get(8..).map(str::to_owned))?;
    let placed = needed.into_iter().filter_map(|(name, by)| Some((place(&name)?, name, by)));
    placed.min_by(|a, b| (&a.0, &a.1).cmp(&(&b.0, &b.1))).map(|(_, name, by)| (name, by))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_counts_and_not_the_timeline() {
        let first = |names: &[&str]| {
            first(names.iter().map(|name| ((*name).to_owned(), ()))).map(|(name, ())| name)
        };
        let (old, new) = ("000000020000000000000003", "000000010000000000000005");
        assert_eq!(first(&[new, "00000002.history", old]).unwrap(), old);
        // For another cluster with segments of 1 MiB: its names go up to ...00000FFF, and no segment before the first
        // is needed by either.
        let small = "000000010000000000000FF0";
        assert_eq!(first(&[small, new]).unwrap(), new);
        assert_eq!(first(&["00000002.history"]), None);
    }

    #[test]
    fn a_set_without_segments_needs_the_one_it_starts_in() {
        let mut set = crate::set::manifest::tests::manifest("20261105T110000Z-aaaa", vec![]);
        set.wal.segments.clear();
        set.start_lsn = Some("0/5000028".parse().unwrap());
        let timeline = set.timeline().get();
        assert_eq!(of_set(&set).unwrap(), [format!("{timeline:08X}0000000000000005")]);
        set.start_lsn = None;
        assert!(of_set(&set).unwrap().is_empty());
    }
}
