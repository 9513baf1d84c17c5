//! Ships a set in full again, after damage, although it is already in a repository: its deltas are replaced, each in
//! one step, and its manifest stays.
//!
//! What could go wrong: a manifest that no longer fits. It names deltas by the snapshots' GUIDs. A full delta of the
//! same snapshot that leaves out no more than the one it replaces yields the same content, for this set and for all
//! after it (`passing.rs`). The set's own files are compared before they are replaced. Manifests name raw segments
//! with their whole chain, so these aren't replaced.

use std::collections::BTreeSet;

use crate::context::lockstep;
use crate::error::{Error, Result};
use crate::repository::Shipped;
use crate::set::manifest::Manifest;
use crate::volume::zfs::Guid;

fn hint(repository: &str) -> String {
    format!(
        "ship another set in full; `{} repo check {repository}` says which sets are whole",
        lockstep()
    )
}

/// Checks that the set there is this one: of the same snapshots. Ids are made of the time and little chance, and hosts
/// whose timers run at the same moment can make the same one.
///
/// # Errors
/// When it is another host's.
pub(super) fn assert_same_set(
    there: &Shipped,
    manifest: &Manifest,
    repository: &str,
) -> Result<()> {
    let snapshots = |set: &Manifest| -> BTreeSet<Guid> {
        set.volumes.iter().map(|volume| volume.guid).collect()
    };
    if snapshots(&there.manifest) == snapshots(manifest) {
        return Ok(());
    }
    Err(Error::failed(format!(
        "repository \"{repository}\" has another host's set of the id {}: this one isn't in it",
        manifest.set
    ))
    .with_hint(format!(
        "did both begin at the same moment, or is one host a copy of the other? Take another backup, which gets an id of its own: {} backup",
        lockstep()
    )))
}

/// Checks that the set's manifest will fit after a full shipment.
///
/// # Errors
/// When a volume is stored raw.
pub(super) fn may_be_replaced(there: &Shipped, repository: &str) -> Result<()> {
    match there.raw().next() {
        None => Ok(()),
        Some(volume) => Err(Error::failed(format!(
            "set {} is in repository \"{repository}\" already, and \"{}\" is stored raw there: other sets need its segments as they are",
            there.manifest.set, volume.dataset
        ))
        .with_hint(hint(repository))),
    }
}

/// Checks that the manifest there still matches the set's files, before they are replaced.
///
/// # Errors
/// When it names other files.
pub(super) fn assert_same_files(
    there: &Shipped,
    manifest: &Manifest,
    repository: &str,
) -> Result<()> {
    let now = &manifest.files;
    match there.manifest.files.iter().find(|(name, file)| now.get(*name) != Some(file)) {
        Some((name, _)) => Err(differs(there, repository, &format!("another \"{name}\""))),
        None => Ok(()),
    }
}

/// Checks that the manifest there still matches the volumes.
///
/// # Errors
/// When it names other deltas.
pub(super) fn assert_same_volumes(
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
    if named(there) != named(shipped) {
        return Err(differs(there, repository, "other volumes"));
    }
    Ok(())
}

fn differs(there: &Shipped, repository: &str, what: &str) -> Error {
    let set = &there.manifest.set;
    Error::failed(format!(
        "set {set} is shipped in full to repository \"{repository}\", but its manifest there names {what}"
    ))
    .with_hint(hint(repository))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::set::manifest::tests::{manifest, volume};

    #[test]
    fn another_hosts_set_of_the_same_id_is_not_this_one() {
        let ours = manifest("20261123T194512Z-k3fa", vec![volume("tank/pg", &[])]);
        let mut there = Shipped::new(ours.clone(), Vec::new());
        // Its WAL and files differ from those of the manifest on this host.
        there.manifest.files.clear();
        assert_same_set(&there, &ours, "offsite").unwrap();
        there.manifest.volumes[0].guid = Guid::new(7);
        let error = assert_same_set(&there, &ours, "offsite").unwrap_err();
        assert!(error.to_string().contains("20261123T194512Z-k3fa"), "{error}");
        assert!(error.hint().is_some_and(|hint| hint.ends_with(" backup")), "{error}");
    }
}
