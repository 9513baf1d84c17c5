//! A full shipment that was interrupted while a newer set came: the older set goes on first.
//!
//! What could go wrong: the first full of a large cluster takes longer than the time between two
//! interruptions. What an interrupted shipment has stored fits its own snapshot only; so each newer set
//! would begin anew, and the repository would never get one.

use crate::context::Context;
use crate::error::{Error, Result};
use crate::repository::Repository;
use crate::repository::image::image_name;
use crate::repository::raw::raw_image_name;
use crate::repository::whole::Wholeness;
use crate::restore::check_snapshots;
use crate::set::manifest::{Manifest, SetVolume};

use super::volume::journal_name;
use super::{note_path, remembered_deltas};

/// The newest set before `manifest` of which a volume was begun, where the repository has nothing of
/// that volume yet. What only was to be an increment is begun anew for less.
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
    let memory = remembered_deltas(cx, repository);
    let wholeness = Wholeness::new(repository, &memory);
    let (sets, _) = cx.state.sets()?;
    for set in sets.into_iter().rev().filter(|set| set.set < manifest.set) {
        if note_path(cx, &set, &repository.name).exists() {
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
    match check_snapshots(cx, set) {
        Err(Error::Refused(_)) => Ok(false),
        checked => checked.map(|()| true),
    }
}
