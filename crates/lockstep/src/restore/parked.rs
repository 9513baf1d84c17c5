//! The dataset of a data directory that isn't whole: not mounted, and not by the machine's next start either.
//!
//! What could go wrong: what is rolled back, or was received and waits for its key, has pg_control in its
//! place, and its links lead to pg_wal and the tablespaces of the cluster that the set is of. Mounted, a
//! server would start on it, beside the original and into its files.

use crate::error::Result;
use crate::volume::zfs::{DatasetName, Zfs};

/// What canmount was before, on a dataset that is parked.
const BEFORE: &str = "lockstep:canmount";

/// Unmounts it, and keeps it so until [`release`] or somebody mounts it by name; whether that wasn't so already.
pub(super) fn park(zfs: &Zfs, dataset: &DatasetName) -> Result<bool> {
    // First: where somebody works in it, nothing is changed.
    zfs.unmount(dataset)?;
    let before = zfs.value(dataset, "canmount")?;
    if before != "on" {
        return Ok(false);
    }
    zfs.set_all(&[(BEFORE, before), ("canmount", "noauto".to_owned())], dataset).map(|()| true)
}

/// Lets it be mounted as before, also what a killed restore has parked. It isn't mounted yet: a ZFS may
/// unmount it for this.
pub(super) fn release(zfs: &Zfs, dataset: &DatasetName) -> Result<()> {
    let before = zfs.value(dataset, BEFORE)?;
    if before == "-" {
        return Ok(());
    }
    zfs.set("canmount", &before, std::slice::from_ref(dataset))?;
    zfs.inherit(BEFORE, dataset)
}
