//! The first segment of WAL that a set needs, of all sets wherever they are: an archive has to be kept from there on.
//!
//! What could go wrong: that too much is cleaned up. So a place that can't be asked, or a manifest that can't be read, is
//! an error, and no answer.

use pgfiles::wal_name::WalSegment;

use crate::context::Context;
use crate::error::{Error, Result};
use crate::repository::{
    self,
    kin::{Identity, Kin},
};
use crate::set::manifest::Manifest;

/// Of the sets on this host and in each repository of the cluster.
///
/// # Errors
/// When one of them can't be asked wholly, or there is no set at all.
pub fn find(cx: &Context) -> Result<String> {
    let (here, damaged) = cx.state.sets()?;
    first_error(damaged)?;
    let identity = Identity::of(cx, &here);
    let mut all = here;
    for name in &cx.cluster.repositories {
        let (sets, damaged) = repository::open(cx, name)?.sets()?;
        first_error(damaged)?;
        let kin = Kin::of(&identity, &sets);
        all.extend(sets.into_iter().filter(|set| kin.has(set)).map(|set| set.manifest));
    }
    let needed = all.iter().map(of_set).collect::<Result<Vec<_>>>()?;
    first(needed.into_iter().flatten()).ok_or_else(|| {
        Error::failed(format!("cluster \"{}\" has no set that needs WAL", cx.name)).with_hint(
            "without a set nothing says how long an archive is needed: `lockstep backup`",
        )
    })
}

fn first_error<T>(damaged: Vec<(T, Error)>) -> Result<()> {
    damaged.into_iter().next().map_or(Ok(()), |(_, error)| Err(error))
}

/// All segments that a set names, and the one in which its recovery starts.
fn of_set(set: &Manifest) -> Result<Vec<String>> {
    let mut names = set.wal.segments.clone();
    if let Some(start) = set.start_lsn {
        let identity = set.wal_identity()?;
        let segment = WalSegment::containing(identity.timeline, start, identity.segment_size);
        names.push(segment.file_name(identity.segment_size));
    }
    Ok(names)
}

/// The first by its place in the WAL: `pg_archivecleanup` doesn't look at the timeline either.
fn first(names: impl Iterator<Item = String>) -> Option<String> {
    // A timeline's history is kept whatever is cleaned up.
    let place = |name: &String| (name.len() == 24).then(|| name.get(8..).map(str::to_owned))?;
    names.filter_map(|name| Some((place(&name)?, name))).min().map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_counts_and_not_the_timeline() {
        let first = |names: &[&str]| first(names.iter().map(|name| (*name).to_owned()));
        let (old, new) = ("000000020000000000000003", "000000010000000000000005");
        assert_eq!(first(&[new, "00000002.history", old]).unwrap(), old);
        assert_eq!(first(&["00000002.history"]), None);
    }

    #[test]
    fn a_set_without_segments_needs_the_one_it_starts_in() {
        let mut set = crate::set::manifest::tests::manifest("20261105T110000Z-aaaa", vec![]);
        set.wal.segments.clear();
        set.start_lsn = Some("0/5000028".parse().unwrap());
        let timeline = set.postgres.timeline;
        assert_eq!(of_set(&set).unwrap(), [format!("{timeline:08X}0000000000000005")]);
        set.start_lsn = None;
        assert!(of_set(&set).unwrap().is_empty());
    }
}
