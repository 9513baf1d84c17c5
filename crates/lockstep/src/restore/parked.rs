//! The dataset of a data directory that isn't whole: not mounted, and not by the machine's next start either.
//!
//! What could go wrong: what is rolled back, or was received and waits for its key, has pg_control in its
//! place, and its links lead to pg_wal and the tablespaces of the cluster that the set is of. Mounted, a
//! server would start on it, beside the original and into its files. So pg_control goes before anybody else sees the
//! dataset mounted, and canmount comes back after that: whoever kills the restore in between leaves nothing that starts.

use std::path::Path;

use super::control;
use crate::error::Result;
use crate::process::{CommandError, Program};
use crate::steps;
use crate::volume::zfs::{DatasetName, Zfs};

/// What canmount was before, on a dataset that is parked.
const BEFORE: &str = "lockstep:canmount";

/// The hidden subcommand that mounts a dataset where nobody else sees it.
pub const SUBCOMMAND: &str = "internal-hold";

/// What makes a dataset one that is parked, and was never mounted before.
pub(super) fn properties() -> [(&'static str, String); 2] {
    [(BEFORE, "on".to_owned()), ("canmount", "noauto".to_owned())]
}

/// Unmounts it, and keeps it so until [`mount`], [`release`] or somebody mounts it by name; whether that wasn't so
/// already.
pub(super) fn park(zfs: &Zfs, dataset: &DatasetName) -> Result<bool> {
    // First: where somebody works in it, nothing is changed.
    zfs.unmount(dataset)?;
    let before = zfs.value(dataset, "canmount")?;
    if before != "on" {
        return Ok(false);
    }
    zfs.set_all(&[(BEFORE, before), ("canmount", "noauto".to_owned())], dataset).map(|()| true)
}

/// Lets it be mounted as before, also what a killed restore has parked. Whether it is mounted then depends on the ZFS:
/// one may unmount it for this.
pub(super) fn release(zfs: &Zfs, dataset: &DatasetName) -> Result<()> {
    let before = zfs.value(dataset, BEFORE)?;
    if before == "-" {
        return Ok(());
    }
    zfs.set_while_busy("canmount", &before, dataset)?;
    zfs.inherit(BEFORE, dataset)
}

/// Mounts what is parked, for good and without its pg_control. Where it fails it is parked still.
pub(super) fn mount(zfs: &Zfs, dataset: &DatasetName, data: &Path) -> Result<()> {
    hold_unseen(dataset, data)?;
    zfs.mount(dataset)?;
    if let Err(error) = control::hold(data) {
        if let Err(busy) = zfs.unmount(dataset) {
            tracing::warn!(%dataset, error = %busy.chain(), "it stays mounted, and a server would start on it");
        }
        return Err(error);
    }
    steps::reached("restore.held")?;
    release(zfs, dataset)?;
    zfs.mount(dataset)
}

/// Mounts it in a mount namespace that ends with the program in it, and takes pg_control its name there: killed at
/// whatever point, nobody else has seen it mounted with its pg_control.
fn hold_unseen(dataset: &DatasetName, data: &Path) -> Result<()> {
    // zfs-fuse, which hasn't this file, mounts for all; there it is done once it is mounted.
    if !Path::new("/dev/zfs").exists() {
        return Ok(());
    }
    // This very program, also where an upgrade has put another in its place meanwhile.
    let own = format!("/proc/{}/exe", std::process::id());
    let program = Program::new("unshare")
        .args(["--mount", "--propagation", "private", "--"])
        .args([&own, SUBCOMMAND, dataset.as_str()])
        .arg(data);
    match program.run() {
        Ok(_) => Ok(()),
        // Killed, and perhaps so is whoever asked for it.
        Err(error @ CommandError::Exit { status, .. }) if status.code().is_none() => {
            Err(error.into())
        }
        // Where no namespace can be made, or the dataset can't be mounted: that it is mounted for all says why.
        Err(error) => {
            tracing::debug!(%dataset, %error, "not held before it is mounted");
            Ok(())
        }
    }
}

/// The hidden subcommand: what is done in the namespace.
///
/// # Errors
/// When it can't be mounted there, or pg_control be renamed.
pub fn run_hold(dataset: &str, data: &Path) -> Result<()> {
    let dataset = DatasetName::new(dataset).map_err(crate::error::Error::failed)?;
    Zfs::new().mount(&dataset)?;
    control::hold(data).map(drop)
}
