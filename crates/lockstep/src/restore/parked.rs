//! Parks the dataset of an incomplete data directory: it isn't mounted, nor will the machine's next boot mount it.
//!
//! What could go wrong: a dataset that was rolled back, or was received and waits for its key, has pg_control in its
//! place, and its links lead to pg_wal and the tablespaces of the set's cluster. If it were mounted, a server would
//! start on it, alongside the original and into the original's files. So pg_control is renamed before anybody else
//! sees the dataset mounted, and canmount is reset after that: a restore that is killed in between leaves nothing
//! that starts.

use std::path::Path;

use super::control;
use crate::error::Result;
use crate::process::{CommandError, Program};
use crate::steps;
use crate::volume::zfs::{DatasetName, Zfs};

/// The previous canmount of a parked dataset.
const BEFORE: &str = "lockstep:canmount";

/// The hidden subcommand that mounts a dataset where nobody else sees it.
pub const SUBCOMMAND: &str = "internal-hold";

/// Returns the properties of a dataset that is parked before it is ever mounted.
pub(super) fn properties() -> [(&'static str, String); 2] {
    [(BEFORE, "on".to_owned()), ("canmount", "noauto".to_owned())]
}

/// Unmounts it, and keeps it so until [`mount`], [`release`] or an explicit `zfs mount`; returns whether it wasn't
/// parked before.
pub(super) fn park(zfs: &Zfs, dataset: &DatasetName) -> Result<bool> {
    // First: if somebody works in it, nothing is changed.
    zfs.unmount(dataset)?;
    let before = zfs.value(dataset, "canmount")?;
    if before != "on" {
        return Ok(false);
    }
    zfs.set_all(&[(BEFORE, before), ("canmount", "noauto".to_owned())], dataset).map(|()| true)
}

/// Whether it is parked.
pub(super) fn is_parked(zfs: &Zfs, dataset: &DatasetName) -> Result<bool> {
    Ok(zfs.value(dataset, "canmount")? == "noauto" && zfs.value(dataset, BEFORE)? != "-")
}

/// Lets it be mounted as before, also if a killed restore parked it. Whether it is mounted afterwards depends on the
/// ZFS: some unmount it for this.
pub(super) fn release(zfs: &Zfs, dataset: &DatasetName) -> Result<()> {
    let before = zfs.value(dataset, BEFORE)?;
    if before == "-" {
        return Ok(());
    }
    zfs.set_while_busy("canmount", &before, dataset)?;
    zfs.inherit(BEFORE, dataset)
}

/// Mounts a parked dataset for good, without its pg_control. If it fails, the dataset stays parked.
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

/// Mounts it in a mount namespace that ends with the program in it, and renames pg_control there: whenever this is
/// killed, nobody else has seen it mounted with its pg_control.
fn hold_unseen(dataset: &DatasetName, data: &Path) -> Result<()> {
    // zfs-fuse doesn't have this file and mounts for everybody; there pg_control is renamed after the mount.
    if !Path::new("/dev/zfs").exists() {
        return Ok(());
    }
    // The running program itself, even if an upgrade has replaced its file meanwhile.
    let own = format!("/proc/{}/exe", std::process::id());
    let program = Program::new("unshare")
        .args(["--mount", "--propagation", "private", "--"])
        .args([&own, SUBCOMMAND, dataset.as_str()])
        .arg(data);
    match program.run() {
        Ok(_) => Ok(()),
        // It was killed, and its caller may have been too.
        Err(error @ CommandError::Exit { status, .. }) if status.code().is_none() => {
            Err(error.into())
        }
        // No namespace can be made, or the dataset can't be mounted: mounting it for everybody will tell why.
        Err(error) => {
            tracing::debug!(%dataset, %error, "not held before it is mounted");
            Ok(())
        }
    }
}

/// The hidden subcommand, run in the namespace.
///
/// # Errors
/// When the dataset can't be mounted there, or pg_control can't be renamed.
pub fn run_hold(dataset: &str, data: &Path) -> Result<()> {
    let dataset = DatasetName::new(dataset).map_err(crate::error::Error::failed)?;
    Zfs::new().mount(&dataset)?;
    control::hold(data).map(drop)
}
