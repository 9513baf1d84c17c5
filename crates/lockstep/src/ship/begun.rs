//! A full shipment that was interrupted while a newer set came: the older set goes on first.
//!
//! What could go wrong: the first full of a large cluster takes longer than the time between two
//! interruptions. What an interrupted shipment has stored fits its own snapshot only; so each newer set
//! would begin anew, and the repository would never get one.

use crate::context::Context;
use crate::error::Result;
use crate::repository::Repository;
use crate::repository::image::image_name;
use crate::repository::raw::raw_image_name;
use crate::repository::whole::Wholeness;
use crate::set::manifest::{Manifest, SetVolume};

use super::note_path;
use super::volume::journal_name;

/// The newest set before `manifest` of which a volume was begun, where the repository has nothing of
/// that volume yet. What only was to be an increment is begun anew for less.
///
/// # Errors
/// When the sets, the store or ZFS can't be read.
pub(super) fn before(
    cx: &Context,
    manifest: &Manifest,
    repository: &Repository,
    wholeness: &Wholeness<'_>,
) -> Result<Option<Manifest>> {
    let is_any =
        std::fs::read_dir(cx.state.path("shipping")).is_ok_and(|mut all| all.next().is_some());
    if !is_any {
        return Ok(None);
    }
    let (sets, _) = cx.state.sets()?;
    for set in sets.into_iter().rev().filter(|set| set.set < manifest.set) {
        if note_path(cx, &set, &repository.name).exists() {
            return Ok(None);
        }
        for volume in &set.volumes {
            if is_begun(cx, repository, volume, wholeness)? && is_there(cx, &set)? {
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
    for image in [image_name(&volume.dataset), raw_image_name(&volume.dataset)] {
        let journal = journal_name(&repository.name, &image, volume);
        if cx.state.path("shipping").join(journal).exists()
            && wholeness.image(&image)?.ids().next().is_none()
        {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether the set's snapshots are on this host still.
fn is_there(cx: &Context, set: &Manifest) -> Result<bool> {
    for volume in &set.volumes {
        let found = cx.zfs.find_snapshot(&volume.snapshot_name())?;
        if found.is_none_or(|facts| facts.guid.to_string() != volume.guid) {
            return Ok(false);
        }
    }
    Ok(true)
}
