//! A set that is in a repository already and is shipped again in full, after damage: its deltas are
//! replaced, each in one step, and its manifest stays.
//!
//! What could go wrong: a manifest that no longer fits. It names deltas by the snapshots' GUIDs, and
//! a full of the same snapshot is folded to the same as what it replaces, for this set and for all
//! that come after. Raw segments are named with all of their chain, so they are left alone.

use crate::error::{Error, Result};
use crate::repository::Shipped;

const HINT: &str = "ship another set in full; `lockstep repo check` says which sets are whole";

/// Whether the set's manifest fits what a full shipment makes of it.
///
/// # Errors
/// Where a volume is stored raw.
pub(super) fn may_be_replaced(there: &Shipped, repository: &str) -> Result<()> {
    match there.raw().next() {
        None => Ok(()),
        Some(volume) => Err(Error::failed(format!(
            "set {} is in repository \"{repository}\" already, and \"{}\" is stored raw there: other sets need its segments as they are",
            there.manifest.set, volume.dataset
        ))
        .with_hint(HINT)),
    }
}

/// Whether the manifest that is there is still true.
///
/// # Errors
/// Where it names other deltas, or other files of the set.
pub(super) fn assert_says_the_same(
    there: &Shipped,
    shipped: &Shipped,
    repository: &str,
) -> Result<()> {
    let named = |set: &Shipped| {
        let volumes = set.volumes.iter();
        let mut named: Vec<_> =
            volumes.map(|volume| (volume.image.clone(), volume.delta.clone())).collect();
        named.sort();
        named
    };
    let differs = |what: String| {
        Err(Error::failed(format!(
            "set {} was stored in full in repository \"{repository}\", but its manifest there names {what}",
            there.manifest.set
        ))
        .with_hint(HINT))
    };
    if named(there) != named(shipped) {
        return differs("other volumes".to_owned());
    }
    let now = &shipped.manifest.files;
    match there.manifest.files.iter().find(|(name, file)| now.get(*name) != Some(file)) {
        Some((name, _)) => differs(format!("another \"{name}\"")),
        None => Ok(()),
    }
}
