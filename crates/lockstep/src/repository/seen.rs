//! What this host has seen of the timelines of a repository's sets.
//!
//! What could go wrong: each shipment asks whether the cluster has left its set behind, and each `latest` asks which
//! sets it has. Only all manifests together tell, and there may be ten thousand. But a set's manifest doesn't change
//! as long as the set exists. So each is read once, and what it says about its timeline is written down on this host.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use strata::manifest::Manifest as Stored;
use strata::read_many;

use super::known::Known;
use super::shipped::Damaged;
use super::{Repository, of_strata};
use crate::context::Context;
use crate::error::Result;
use crate::files;
use crate::set::branches::{Branches, Member};
use crate::set::manifest::json;
use crate::steps;

/// The form of the note; a note in any other form is ignored.
const VERSION: u32 = 2;
/// Its folder in the cluster's state.
pub(super) const FOLDER: &str = "seen";

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Seen {
    version: u32,
    /// The repository's own id.
    repository: String,
    sets: BTreeMap<String, Member>,
}

impl Repository {
    /// Returns the branch that each cluster with sets there lives on.
    ///
    /// # Errors
    /// Those of [`Self::members`].
    pub fn branches(&self, cx: &Context) -> Result<Branches> {
        let (members, untold) = self.members(cx)?;
        Ok(Branches::of(members, jiff::Timestamp::now())
            .beside(untold.iter().map(|(set, why)| (set, why))))
    }

    /// Returns what the sets say about their timelines, oldest first; and the damaged ones, which say nothing unless
    /// this host has read them before.
    ///
    /// # Errors
    /// When the store fails, or the command was interrupted.
    pub fn members(&self, cx: &Context) -> Result<(Vec<Member>, Vec<Damaged>)> {
        self.members_seen(&path(cx, &self.name))
    }

    /// The same; `path` is where it is written down.
    pub(crate) fn members_seen(&self, path: &Path) -> Result<(Vec<Member>, Vec<Damaged>)> {
        let ids = self.ids()?;
        let mut sets = recall(path, &self.id);
        let before = sets.len();
        sets.retain(|id, _| ids.binary_search(id).is_ok());
        let unknown: Vec<_> = ids.iter().filter(|id| !sets.contains_key(*id)).collect();
        let is_news = before != sets.len() || !unknown.is_empty();
        let mut untold = Vec::new();
        read_many(
            &unknown,
            |id| Stored::read(&self.strata, id),
            |id, stored| {
                let shipped = match stored {
                    // It was removed in the meantime.
                    Err(error) if error.is_not_found() => return Ok(()),
                    // For all anybody knows, it may be on the living branch.
                    Err(error @ strata::Error::Store(_)) => return Err(of_strata(error)),
                    stored => stored.map_err(of_strata).and_then(|stored| self.shipped(id, stored)),
                };
                match shipped {
                    Ok(shipped) => drop(sets.insert((*id).clone(), (&shipped.manifest).into())),
                    Err(error) => untold.push(((*id).clone(), error)),
                }
                steps::reached("repository.set")
            },
        )?;
        if is_news && let Err(error) = write(path, &self.id, &sets) {
            tracing::debug!(error = %error.chain(), "the sets' timelines are read again the next time");
        }
        Ok((sets.into_values().collect(), untold))
    }
}

pub(super) fn path(cx: &Context, repository: &str) -> PathBuf {
    cx.state.path(FOLDER).join(format!("{repository}.json"))
}

/// Returns which repository's sets were seen, with the newest of them.
pub(super) fn known(path: &Path) -> Option<Known> {
    let seen = read(path)?;
    Some(Known { id: seen.repository, newest: seen.sets.into_keys().next_back() })
}

/// Checks whether a set whose id begins like this was seen there; for `latest`, any set at all.
pub(super) fn has(path: &Path, which: Option<&str>) -> bool {
    let begin = which.filter(|which| *which != "latest").unwrap_or_default();
    read(path).is_some_and(|seen| seen.sets.keys().any(|set| set.starts_with(begin)))
}

/// Returns the sets that were in the repository the last time that all of them were looked at, under its name, or else
/// under one that the cluster no longer uses.
pub(super) fn ids(cx: &Context, repository: &Repository) -> BTreeSet<String> {
    let of_it = |path: &Path| read(path).filter(|seen| seen.repository == repository.id);
    let seen = under_any_name(cx, repository, FOLDER, of_it);
    seen.map(|seen| seen.sets.into_keys().collect()).unwrap_or_default()
}

/// Forgets sets that this host has removed from the repository: they aren't missed there. A failure is reported only
/// in the log: it takes a storage that goes back as well for one of them to be called lost.
pub(crate) fn forget(cx: &Context, repository: &Repository, removed: &[String]) {
    let path = path(cx, &repository.name);
    let Some(mut seen) = read(&path).filter(|seen| seen.repository == repository.id) else {
        return;
    };
    let before = seen.sets.len();
    seen.sets.retain(|id, _| !removed.contains(id));
    if before != seen.sets.len()
        && let Err(error) = write(&path, &repository.id, &seen.sets)
    {
        tracing::debug!(error = %error.chain(), "sets that were removed are still noted as seen there");
    }
}

/// Returns what `read` finds in the notes of this folder: in that of the repository's name, or else in one of a name
/// that the cluster no longer uses.
pub(super) fn under_any_name<T>(
    cx: &Context,
    repository: &Repository,
    folder: &str,
    read: impl Fn(&Path) -> Option<T>,
) -> Option<T> {
    let folder = cx.state.path(folder);
    let own = folder.join(format!("{}.json", repository.name));
    read(&own).or_else(|| of_former_names(cx, &folder).iter().find_map(|path| read(path)))
}

fn of_former_names(cx: &Context, folder: &Path) -> Vec<PathBuf> {
    let files = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let is_former = |path: &PathBuf| {
        let mut in_use = cx.cluster.repositories.iter().map(|own| format!("{own}.json"));
        !in_use.any(|own| path.file_name().is_some_and(|name| *name == *own))
    };
    files.map(|file| file.path()).filter(is_former).collect()
}

/// Returns the repository's own id as of the last time its sets' timelines were read.
pub(crate) fn id_of(cx: &Context, name: &str) -> Option<String> {
    read(&path(cx, name)).map(|seen| seen.repository)
}

/// Returns what was seen of a set's timeline in any repository; `folder` holds the notes.
pub(crate) fn told(folder: &Path, set: &str) -> Option<Member> {
    let files = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut seen = files.filter_map(|file| read(&file.path()));
    seen.find_map(|mut seen| seen.sets.remove(set))
}

fn recall(path: &Path, repository: &str) -> BTreeMap<String, Member> {
    let seen = read(path).filter(|seen| seen.repository == repository);
    seen.map(|seen| seen.sets).unwrap_or_default()
}

fn read(path: &Path) -> Option<Seen> {
    let bytes = std::fs::read(path).ok()?;
    let seen = serde_json::from_slice::<Seen>(&bytes).ok();
    seen.filter(|seen| seen.version == VERSION)
}

fn write(path: &Path, repository: &str, sets: &BTreeMap<String, Member>) -> Result<()> {
    let seen = Seen { version: VERSION, repository: repository.to_owned(), sets: sets.clone() };
    let bytes = serde_json::to_vec(&seen).map_err(json("write down the sets' timelines"))?;
    path.parent().map_or(Ok(()), files::create_directories)?;
    files::publish(path, &bytes)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;
    use strata::store::{Around, Retries, Storage, Store, StoreError, StoreErrorKind, StoreResult};

    use super::*;
    use crate::prune::memory_store::Memory;
    use crate::repository::Shipped;
    use crate::set::manifest::tests::manifest;

    const SETS: [&str; 3] =
        ["20261121T000000Z-aaaa", "20261122T000000Z-bbbb", "20261123T000000Z-cccc"];

    /// A store that can't return one of its objects.
    struct Broken(Memory, &'static str);

    impl Around for Broken {
        fn inner(&self) -> &dyn Storage {
            &self.0
        }

        fn get_small(&self, path: &str, most: u64) -> StoreResult<Bytes> {
            match path.contains(self.1) {
                true => Err(StoreError::new("get", path, StoreErrorKind::PermissionDenied)),
                false => self.0.get_small(path, most),
            }
        }
    }

    fn repository(storage: impl Storage + 'static) -> Repository {
        let retries = Retries { tries: 1, first_pause: std::time::Duration::ZERO };
        let store = Store::shared(Arc::new(storage), retries);
        Repository {
            name: "offsite".into(),
            config: toml::from_str("url = 'file:///none'").unwrap(),
            id: "0".into(),
            strata: strata::Repository::new(store, "clusters/main", None).unwrap(),
        }
    }

    #[test]
    fn a_manifest_that_cannot_be_had_is_not_passed_over() {
        let memory = Memory::default();
        let whole = repository(memory.clone());
        for set in SETS {
            whole.publish(&Shipped::new(manifest(set, vec![]), vec![])).unwrap();
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("offsite.json");
        // The store fails: asking again may get an answer.
        let broken = repository(Broken(memory.copy(), SETS[1]));
        let error = broken.members_seen(&path).unwrap_err();
        assert!(error.chain().contains(SETS[1]), "{}", error.chain());
        assert!(!path.exists(), "half of it is written down");
        // It is damaged, and this is reported.
        let damaged = memory.copy();
        let name = &damaged.paths(SETS[1])[0];
        damaged.put(name, &[Bytes::from_static(b"{}")]).unwrap();
        let (members, untold) = repository(damaged.clone()).members_seen(&path).unwrap();
        let ids: Vec<_> = members.iter().map(|member| member.set.as_str()).collect();
        assert_eq!((ids, untold.len()), (vec![SETS[0], SETS[2]], 1));
        assert_eq!(untold[0].0, SETS[1]);
        assert!(told(folder.path(), SETS[0]).is_some() && told(folder.path(), SETS[1]).is_none());
        // Unless it was read before.
        assert_eq!(whole.members_seen(&path).unwrap().0.len(), 3);
        let (members, untold) = repository(damaged).members_seen(&path).unwrap();
        assert_eq!((members.len(), untold.len()), (3, 0));
    }
}
