//! Paths and names inside a manifest: none may lead out of where it belongs.
//!
//! What could go wrong: a manifest comes from a repository, and anybody who can write there can write anything into
//! it; its own hash doesn't tell who made it. A restore runs as root, and writes the files and makes the folders that
//! the manifest names.

use std::path::{Component, Path};

use super::manifest::{Manifest, SetVolume};

/// Checks the paths and names in a manifest.
///
/// # Errors
/// The first that leads elsewhere, in words.
pub fn check(manifest: &Manifest) -> Result<(), String> {
    for (_, part) in manifest.parts() {
        if !stays_inside(&part.inside) {
            return Err(format!("\"{}\" is no path inside a volume", part.inside.display()));
        }
    }
    for name in manifest.files.keys() {
        if name.is_empty() || !stays_inside(Path::new(name)) {
            return Err(format!("\"{name}\" is no name of a file beside a manifest"));
        }
    }
    let wal = &manifest.wal;
    for name in wal.segments.iter().chain(&wal.fetched).chain(&wal.archived) {
        // 000000010000000000000001, 00000002.history, … (XLogFileName and its neighbours in
        // xlog_internal.h).
        let legal = |c: char| c.is_ascii_alphanumeric() || c == '.';
        if name.is_empty() || name.starts_with('.') || !name.chars().all(legal) {
            return Err(format!("\"{name}\" is no name of a WAL file"));
        }
    }
    for volume in &manifest.volumes {
        let SetVolume { dataset, pool, snapshot, .. } = volume;
        if snapshot.dataset != *dataset {
            return Err(format!("\"{snapshot}\" is no snapshot of {dataset}"));
        }
        if pool != dataset.pool() {
            return Err(format!("\"{pool}\" isn't the pool of {dataset}"));
        }
    }
    Ok(())
}

/// Whether it is relative and never goes upwards. Empty is the top itself.
fn stays_inside(path: &Path) -> bool {
    path.components().all(|step| matches!(step, Component::Normal(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_inside() {
        for good in ["", "pg", "pg/data", "wal/000000010000000000000001", "a..b/...c"] {
            assert!(stays_inside(Path::new(good)), "{good}");
        }
        for bad in ["/", "/etc/cron.d/x", "..", "pg/../..", "./pg"] {
            assert!(!stays_inside(Path::new(bad)), "{bad}");
        }
    }

    #[test]
    fn nothing_in_a_manifest_leads_elsewhere() {
        use crate::plan::layout::PartKind;
        use crate::set::manifest::{SetFile, tests::manifest, tests::volume};
        use crate::volume::zfs::DatasetName;
        let with = |inside: &str| {
            let data = volume("t/pg", &[(PartKind::Data, "/pg", inside)]);
            manifest("20261123T194512Z-k3fa", vec![data])
        };
        let good = with("pg");
        assert_eq!(check(&good), Ok(()));
        assert!(check(&with("/etc")).is_err());
        let file = SetFile { bytes: 0, blake3: String::new() };
        let mut bad = good.clone();
        bad.files.insert("/etc/cron.d/x".into(), file.clone());
        assert!(check(&bad).is_err());
        let mut bad = good.clone();
        bad.files.insert("wal/../../../x".into(), file);
        assert!(check(&bad).is_err());
        let mut bad = good.clone();
        bad.wal.segments.push("../postgresql.conf".into());
        assert!(check(&bad).is_err());
        let mut bad = good.clone();
        bad.volumes[0].snapshot = DatasetName::new("t/other").unwrap().snapshot("x");
        assert!(check(&bad).is_err());
        let mut bad = good;
        bad.volumes[0].pool = "u".into();
        assert_eq!(check(&bad), Err("\"u\" isn't the pool of t/pg".into()));
    }
}
