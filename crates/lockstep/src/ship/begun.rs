//! Continues an interrupted full shipment of an older set before a newer set is shipped.
//!
//! What could go wrong: the first full shipment of a large cluster takes longer than the time between two
//! interruptions. What an interrupted shipment has stored fits only its own snapshot. So each newer set would begin
//! from scratch, and the repository would never get one. Nor may what is stored be collected meanwhile, or the set be
//! pruned here: this module says what must stay.

use std::collections::BTreeSet;
use std::path::PathBuf;

use strata::Ulid;
use strata::check::Begun;
use strata::manifest::DeltaId;
use strata::pack::PackWriter;

use crate::context::Context;
use crate::error::{Error, Result};
use crate::repository::image::image_name;
use crate::repository::raw::raw_image_name;
use crate::repository::whole::Wholeness;
use crate::repository::{Repository, harm, of_strata};
use crate::set::manifest::{Manifest, SetVolume};
use crate::set::notes;
use crate::set::verify;

use super::volume::journal_name;

/// Returns the newest set before `manifest` of which a volume was begun, if the repository has nothing of that volume
/// yet. A shipment that was only to be an increment costs less to begin again.
///
/// # Errors
/// When the sets, the store or ZFS can't be read.
pub(super) fn before(
    cx: &Context,
    manifest: &Manifest,
    repository: &Repository,
) -> Result<Option<Manifest>> {
    let is_any =
        std::fs::read_dir(cx.state.path("shipping")).is_ok_and(|mut all| all.next().is_some());
    if !is_any {
        return Ok(None);
    }
    let memory = harm::memory(cx, repository);
    let wholeness = Wholeness::new(repository, &memory);
    let (sets, _) = cx.state.sets()?;
    for set in sets.into_iter().rev().filter(|set| set.set < manifest.set) {
        if notes::is_shipped(cx, &set.set, &repository.name, Some(&repository.id)) {
            return Ok(None);
        }
        for volume in &set.volumes {
            if is_begun(cx, repository, volume, &wholeness)? && is_there(cx, &set)? {
                return Ok(Some(set));
            }
        }
    }
    Ok(None)
}

fn is_begun(
    cx: &Context,
    repository: &Repository,
    volume: &SetVolume,
    wholeness: &Wholeness<'_>,
) -> Result<bool> {
    for (image, journal) in journals(cx, &repository.name, volume) {
        if journal.exists() && wholeness.image(&image)?.ids().next().is_none() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Checks that the set's snapshots are still on this host.
fn is_there(cx: &Context, set: &Manifest) -> Result<bool> {
    match verify::snapshots(cx, set) {
        Err(Error::Refused(_)) => Ok(false),
        checked => checked.map(|()| true),
    }
}

/// Returns what a shipment to the repository resumes from: the packs that the journals of this host's sets name, and
/// the deltas of finished volumes. Nothing of sets older than one that is known to be there: no shipment begins with
/// them.
///
/// # Errors
/// When the sets or a journal can't be read.
pub(crate) fn kept(cx: &Context, repository: &Repository) -> Result<Begun> {
    let mut kept = Begun::default();
    let (sets, _) = cx.state.sets()?;
    for set in since_the_last(cx, &repository.name, Some(&repository.id), &sets) {
        kept.packs.extend(packs(cx, repository, set)?);
        for volume in &set.volumes {
            for (image, _) in journals(cx, &repository.name, volume) {
                kept.deltas.insert(DeltaId { image, id: volume.guid.to_string() });
            }
        }
    }
    Ok(kept)
}

/// Returns the packs that a set's journals name: its shipment resumes from these, however old the set is.
///
/// # Errors
/// When a journal can't be read.
pub(super) fn packs(
    cx: &Context,
    repository: &Repository,
    set: &Manifest,
) -> Result<BTreeSet<Ulid>> {
    let mut packs = BTreeSet::new();
    for (_, journal) in set.volumes.iter().flat_map(|of| journals(cx, &repository.name, of)) {
        packs.extend(PackWriter::stored_before(&journal).map_err(of_strata)?);
    }
    Ok(packs)
}

/// Returns the newest of this host's `sets` (oldest first) whose shipment to the repository was interrupted, if no
/// newer one is known to be there: the next shipment resumes it. A set that isn't whole can't be resumed.
pub(crate) fn newest<'a>(
    cx: &Context,
    repository: &str,
    sets: &'a [Manifest],
    is_whole: impl Fn(&Manifest) -> bool,
) -> Option<&'a Manifest> {
    let is_begun = |set: &Manifest| {
        let mut journals = set.volumes.iter().flat_map(|of| journals(cx, repository, of));
        !notes::is_shipped(cx, &set.set, repository, None)
            && journals.any(|(_, journal)| journal.exists())
    };
    since_the_last(cx, repository, None, sets).find(|set| is_begun(set) && is_whole(set))
}

/// Returns the `sets` from the newest one known to be in the repository onwards, newest first.
fn since_the_last<'a>(
    cx: &Context,
    repository: &str,
    id: Option<&str>,
    sets: &'a [Manifest],
) -> impl Iterator<Item = &'a Manifest> {
    let last = sets.iter().rposition(|set| notes::is_shipped(cx, &set.set, repository, id));
    sets.iter().skip(last.unwrap_or(0)).rev()
}

/// Returns the images that a volume may go into, each with its journal.
fn journals(cx: &Context, repository: &str, volume: &SetVolume) -> [(String, PathBuf); 2] {
    let folder = cx.state.path("shipping");
    [image_name(&volume.dataset), raw_image_name(&volume.dataset)].map(|image| {
        let journal = folder.join(journal_name(repository, &image, volume));
        (image, journal)
    })
}
