//! What this host has seen of the timelines of a repository's sets.
//!
//! What could go wrong: each shipment asks whether the cluster has left its set behind, and each `latest` which sets it
//! has. Only all manifests together tell, and there may be ten thousand. But a set's manifest stays as it is for as long
//! as the set is there: so each is read once, and what it said of its timeline is written down on this host.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use strata::read_many;

use super::Repository;
use crate::context::Context;
use crate::error::Result;
use crate::files;
use crate::set::branches::{Branches, Member};
use crate::set::manifest::json;
use crate::steps;

/// The form of what is written down; another one counts as nothing.
const VERSION: u32 = 1;

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Seen {
    version: u32,
    /// The repository's own id.
    repository: String,
    sets: BTreeMap<String, Member>,
}

impl Repository {
    /// The branch that each cluster lives on which has sets there. One that can't be read tells nothing.
    ///
    /// # Errors
    /// When the store can't be listed, or it was interrupted.
    pub fn branches(&self, cx: &Context) -> Result<Branches> {
        self.members(cx).map(Branches::of)
    }

    /// What its sets say of their timelines, oldest first. One that can't be read says nothing.
    ///
    /// # Errors
    /// When the store can't be listed, or it was interrupted.
    pub fn members(&self, cx: &Context) -> Result<Vec<Member>> {
        self.members_seen(&cx.state.path("seen").join(format!("{}.json", self.name)))
    }

    /// The same, `path` being where it is written down.
    pub(crate) fn members_seen(&self, path: &Path) -> Result<Vec<Member>> {
        let ids = self.ids()?;
        let mut sets = recall(path, &self.id);
        let before = sets.len();
        sets.retain(|id, _| ids.binary_search(id).is_ok());
        let unknown: Vec<_> = ids.iter().filter(|id| !sets.contains_key(*id)).collect();
        let is_news = before != sets.len() || !unknown.is_empty();
        read_many(
            &unknown,
            |id| self.read_if_there(id),
            |id, shipped| {
                match shipped {
                    Ok(shipped) => {
                        let member = shipped.map(|set| ((*id).clone(), (&set.manifest).into()));
                        sets.extend(member);
                    }
                    Err(error) => {
                        tracing::debug!(set = %id, error = %error.chain(), "nobody knows its timeline");
                    }
                }
                steps::reached("repository.set")
            },
        )?;
        if is_news && let Err(error) = write(path, &self.id, &sets) {
            tracing::debug!(error = %error.chain(), "the sets' timelines are read again the next time");
        }
        Ok(sets.into_values().collect())
    }
}

fn recall(path: &Path, repository: &str) -> BTreeMap<String, Member> {
    let bytes = std::fs::read(path).unwrap_or_default();
    let seen = serde_json::from_slice::<Seen>(&bytes).ok();
    let seen = seen.filter(|seen| seen.version == VERSION && seen.repository == repository);
    seen.map(|seen| seen.sets).unwrap_or_default()
}

fn write(path: &Path, repository: &str, sets: &BTreeMap<String, Member>) -> Result<()> {
    let seen = Seen { version: VERSION, repository: repository.to_owned(), sets: sets.clone() };
    let bytes = serde_json::to_vec(&seen).map_err(json("write down the sets' timelines"))?;
    path.parent().map_or(Ok(()), files::create_directories)?;
    files::publish(path, &bytes)
}
