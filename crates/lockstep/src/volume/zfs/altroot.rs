//! Pools that were imported below a folder (`zpool import -R DIR`): ZFS puts DIR before every `mountpoint`, including
//! those that Lockstep sets.
//!
//! What could go wrong: DIR is applied twice, and the dataset's files are looked for where it was meant to be
//! mounted. So DIR is left out of the value that is set, and a path that isn't below DIR is refused.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::{DatasetName, Zfs};
use crate::error::{Error, Result};
use crate::process::{Program, quote};

impl Zfs {
    /// The value of `mountpoint` that mounts the dataset at `place`.
    ///
    /// # Errors
    /// When its pool was imported below a folder that `place` isn't in, or the path isn't text that ZFS takes.
    pub fn mountpoint_for(&self, dataset: &DatasetName, place: &Path) -> Result<String> {
        let altroot = self.altroot(dataset.pool())?;
        let mountpoint = match &altroot {
            None => place.to_path_buf(),
            Some(altroot) => below(altroot, place).ok_or_else(|| {
                let pool = dataset.pool();
                Error::usage(
                    format!(
                        "dataset \"{dataset}\" can't be mounted at \"{}\": pool \"{pool}\" was imported with altroot \"{}\"",
                        place.display(),
                        altroot.display()
                    ),
                    format!(
                        "choose a folder below \"{}\"; or import the pool without it: `zpool export {}`, then `zpool import {}`",
                        altroot.display(),
                        quote(pool),
                        quote(pool)
                    ),
                )
            })?,
        };
        mountpoint.into_os_string().into_string().map_err(|_| {
            Error::failed(format!(
                "ZFS can't mount at \"{}\": the path isn't UTF-8",
                place.display()
            ))
        })
    }

    /// The folder that the pool was imported below. All pools are asked, once: it only changes with an import.
    fn altroot(&self, pool: &str) -> Result<Option<PathBuf>> {
        if self.altroots.get().is_none() {
            let out = Program::new("zpool").args(["list", "-H", "-o", "name,altroot"]).run()?;
            // Another thread may have stored the same before.
            let _ = self.altroots.set(altroots(&out.stdout));
        }
        Ok(self.altroots.get().and_then(|all| all.get(pool)).map(|altroot| {
            // Paths are compared with links resolved.
            std::fs::canonicalize(altroot).unwrap_or_else(|_| altroot.clone())
        }))
    }
}

/// Parses `zpool list -H -o name,altroot`: `-` means none. "no pools available" has no second column.
fn altroots(text: &str) -> BTreeMap<String, PathBuf> {
    let columns = text.lines().filter_map(|line| line.split_once('\t'));
    let set = columns.filter(|(_, altroot)| altroot.starts_with('/'));
    set.map(|(pool, altroot)| (pool.to_owned(), PathBuf::from(altroot))).collect()
}

fn below(altroot: &Path, place: &Path) -> Option<PathBuf> {
    place.strip_prefix(altroot).ok().map(|rest| Path::new("/").join(rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_altroot_is_left_out_and_what_is_beside_it_is_nothing() {
        // The same with zfs-fuse 0.7.0 and OpenZFS; the last line is from zfs-fuse without a pool.
        let all = altroots("tank\t-\na b\t/mnt/a\nno pools available\n");
        assert_eq!(all, BTreeMap::from([("a b".to_owned(), PathBuf::from("/mnt/a"))]));
        let of = |place: &str| below(Path::new("/mnt/a"), Path::new(place));
        assert_eq!(of("/mnt/a/srv/pg"), Some("/srv/pg".into()));
        assert_eq!(of("/mnt/a"), Some("/".into()));
        assert_eq!((of("/mnt/ab"), of("/srv/pg")), (None, None));
        assert_eq!(below(Path::new("/"), Path::new("/srv")), Some("/srv".into()));
    }
}
