//! Adopts sets of a repository whose snapshots are on this host: after state_dir was lost, or when the pools were
//! moved to another host.
//!
//! A set's certificate, label and WAL are in its repository too, and its snapshots are identified by their GUIDs. So
//! the missing files are fetched, and the snapshots are marked as this state_dir's. What could go wrong: the
//! state_dir that took them still exists somewhere, and its owner prunes. So this is done only when somebody asks for
//! it explicitly, the other state_dir can't remove the snapshots afterwards, and a kill on the way leaves nothing
//! that counts as a set.
//!
//! A set that this state_dir has may carry another state_dir's marks: the other one adopted it, or this one lost its
//! own id. Then it can't be removed here. Two live state_dirs must not take it from each other each night, so it is
//! marked again only when it is requested by its id.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::Path;
use std::rc::Rc;

use crate::context::{Context, lockstep};
use crate::error::{Error, Result};
use crate::files;
use crate::names::{self, Meant, SetId};
use crate::repository::{self, Repository, Shipped, kin};
use crate::set::manifest::Manifest;
use crate::set::notes;
use crate::steps;
use crate::volume::zfs::{SnapshotName, Standing};

/// What is requested.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// Ids, or their beginnings; if empty, all sets whose snapshots are here.
    pub sets: Vec<String>,
    /// From these repositories only; if empty, from all of the cluster's.
    pub repositories: Vec<String>,
    /// Only report what would be done.
    pub dry_run: bool,
}

/// A set that is adopted, or marked again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Adopted {
    /// Its id.
    pub set: SetId,
    /// The repositories that have it, the one it is taken from first; for a set that was here already, as far as is
    /// known.
    pub repositories: Vec<String>,
    /// The other state_dirs whose marks its snapshots carry.
    pub owners: BTreeSet<String>,
    /// It was here already, with other state_dirs' marks.
    pub was_here: bool,
}

/// The result.
#[derive(Debug, Default)]
pub struct Report {
    /// Adopted, or to be adopted, oldest first.
    pub adopted: Vec<Adopted>,
    /// Sets that aren't completely on this host, with what is missing.
    pub elsewhere: Vec<(SetId, String)>,
    /// Sets that were this host's already.
    pub known: usize,
    /// Those of them that weren't requested by id and whose snapshots carry the marks of other state_dirs, with these
    /// state_dirs.
    pub marked: Vec<(SetId, BTreeSet<String>)>,
    /// Why a set couldn't be adopted, or a repository couldn't be read.
    pub failed: Vec<(String, Error)>,
}

/// Adopts sets.
///
/// # Errors
/// When another command works on the cluster's sets, a requested set is neither here nor in any repository, ZFS
/// fails, or it was interrupted. Problems with a single set or repository are in the report.
pub fn run(cx: &Context, request: &Request) -> Result<Report> {
    let mut names = match request.repositories.is_empty() {
        true => cx.cluster.repositories.clone(),
        false => repository::of_cluster(cx, &request.repositories)?,
    };
    let _lock = cx.lock("adopt")?;
    let (here, _) = cx.state.sets()?;
    let is_here = |id: &str| here.iter().any(|set| set.set.as_str() == id);
    if names.is_empty() && here.is_empty() {
        return Err(Error::usage(
            format!("cluster \"{}\" has no repository to take sets from", cx.name),
            format!(
                "add repositories = [\"NAME\"] to [clusters.{}]; a set's certificate is only in state_dir and in repositories",
                cx.name
            ),
        ));
    }
    if !request.sets.is_empty() && request.sets.iter().all(|id| is_here(id)) {
        // Sets that are here need no repository.
        names.clear();
    }
    let mut report = Report::default();
    let mut found = find(cx, &names, &mut report)?;
    let wanted = chosen(request, found.keys().chain(here.iter().map(|set| &set.set)))?;
    found.retain(|id, _| wanted.contains(id) && !is_here(id.as_str()));
    let before = found.len();
    found.retain(|id, _| !cx.state.is_of_another_cluster(id.as_str()));
    report.known = before - found.len();
    let here: Vec<_> = here.into_iter().filter(|set| wanted.contains(&set.set)).collect();
    // All are looked at together: each look takes several commands.
    let volumes = found.values().map(|there| &there.manifest).chain(&here);
    let named = volumes.flat_map(|set| &set.volumes).map(|volume| volume.snapshot.clone());
    let standing = cx.zfs.standing(&named.collect::<Vec<_>>())?;
    for set in &here {
        mark_anew(cx, request, set, &standing, &mut report)?;
    }
    for (id, there) in found {
        let owners = match owners(cx.state.owner(), &there.manifest, &standing) {
            Ok(owners) => owners,
            Err(missing) => {
                report.elsewhere.push((id, missing));
                continue;
            }
        };
        let repositories = there.at.iter().map(|(of, _)| of.name.clone()).collect();
        if !request.dry_run
            && let Err(error) = take_up(cx, &there)
        {
            report.failed(&id, error)?;
            continue;
        }
        report.adopted.push(Adopted { set: id, repositories, owners, was_here: false });
    }
    report.adopted.sort_by(|a, b| a.set.cmp(&b.set));
    Ok(report)
}

impl Report {
    /// Records a set that couldn't be adopted; the others continue.
    fn failed(&mut self, set: &SetId, error: Error) -> Result<()> {
        if matches!(error, Error::Interrupted { .. }) {
            return Err(error);
        }
        self.failed.push((format!("set {set}"), error));
        Ok(())
    }
}

/// Marks the snapshots of a set that is here as this state_dir's, if the set is requested by id and they carry
/// another's marks.
fn mark_anew(
    cx: &Context,
    request: &Request,
    set: &Manifest,
    standing: &BTreeMap<SnapshotName, Standing>,
    report: &mut Report,
) -> Result<()> {
    let is_named = !request.sets.is_empty();
    let owners = match owners(cx.state.owner(), set, standing) {
        Ok(owners) => owners,
        Err(missing) if is_named => return report.failed(&set.set, Error::failed(missing)),
        Err(_) => BTreeSet::new(),
    };
    if owners.is_empty() || !is_named {
        report.known += 1;
        report.marked.extend((!owners.is_empty()).then(|| (set.set.clone(), owners)));
        return Ok(());
    }
    if !request.dry_run
        && let Err(error) = mark(cx, set)
    {
        return report.failed(&set.set, error);
    }
    let known = notes::shipped_to(&cx.state, &set.set).into_iter().map(|known| known.repository);
    let (set, repositories) = (set.set.clone(), known.collect());
    report.adopted.push(Adopted { set, repositories, owners, was_here: true });
    Ok(())
}

/// Holds a set's snapshots, and marks them as this state_dir's.
fn mark(cx: &Context, set: &Manifest) -> Result<()> {
    let snapshots: Vec<_> = set.volumes.iter().map(|volume| volume.snapshot.clone()).collect();
    cx.zfs.hold(&snapshots)?;
    cx.zfs.set("lockstep:owner", cx.state.owner(), &snapshots)?;
    steps::reached("adopt.marked")
}

/// A set in repositories.
struct There {
    manifest: Manifest,
    at: Vec<(Rc<Repository>, jiff::Timestamp)>,
}

/// Finds the cluster's sets in these repositories, oldest first.
fn find(cx: &Context, names: &[String], report: &mut Report) -> Result<BTreeMap<SetId, There>> {
    let identity = kin::Identity::here(cx)?;
    let mut all = BTreeMap::new();
    for name in names {
        let opened = repository::open(cx, name).and_then(|opened| {
            let (sets, damaged) = opened.sets()?;
            let kin = kin::meant(&identity, &sets, name)?;
            let ours: Vec<_> = sets.into_iter().filter(|set| kin.has(set)).collect();
            Ok((Rc::new(opened), ours, damaged))
        });
        let (opened, sets, damaged) = match opened {
            Ok(opened) => opened,
            Err(error @ Error::Interrupted { .. }) => return Err(error),
            Err(error) => {
                report.failed.push((format!("repository {name}"), error));
                continue;
            }
        };
        for (id, error) in damaged {
            report.failed.push((format!("set {id} in repository {name}"), error));
        }
        for Shipped { manifest, shipped_at, .. } in sets {
            let entry = all.entry(manifest.set.clone());
            let there = entry.or_insert_with(|| There { manifest, at: Vec::new() });
            there.at.push((opened.clone(), shipped_at));
        }
    }
    Ok(all)
}

/// Returns those of `there` that are requested, by id or by its beginning; all if none is.
fn chosen<'a>(
    request: &Request,
    there: impl Iterator<Item = &'a SetId>,
) -> Result<BTreeSet<SetId>> {
    let there: BTreeSet<_> = there.collect();
    if request.sets.is_empty() {
        return Ok(there.into_iter().cloned().collect());
    }
    let mut wanted = BTreeSet::new();
    for which in &request.sets {
        let meant = names::meant(which, there.iter().map(|id| id.as_str()));
        let Meant::One(id) = meant else {
            return Err(Error::usage(
                format!("no one set here or in the cluster's repositories is called \"{which}\""),
                format!(
                    "`{0} list` and `{0} list --from repository` show the sets that exist; write the whole id",
                    lockstep()
                ),
            ));
        };
        wanted.extend(there.iter().find(|known| known.as_str() == id).map(|id| (*id).clone()));
    }
    Ok(wanted)
}

/// Returns the state_dirs whose marks a set's snapshots carry, without this one (`own`), or what of the set isn't
/// here. A pure function.
fn owners(
    own: &str,
    set: &Manifest,
    standing: &BTreeMap<SnapshotName, Standing>,
) -> Result<BTreeSet<String>, String> {
    if let Some((volume, found)) = set.first_gone(standing) {
        let what = if found.is_some() { "is another snapshot" } else { "isn't here" };
        return Err(format!("\"{}\" {what}", volume.snapshot));
    }
    let of_set = set.volumes.iter().filter_map(|volume| standing.get(&volume.snapshot));
    Ok(of_set.map(|standing| standing.owner.clone()).filter(|owner| owner != own).collect())
}

/// Fetches the files that belong to a manifest, holds and marks the snapshots, and writes the manifest last.
fn take_up(cx: &Context, there: &There) -> Result<()> {
    let set = &there.manifest;
    let directory = cx.state.set_directory(&set.set);
    files::create_directories(&directory)?;
    files::keep_private(&directory)?;
    let mut why = None;
    for (repository, _) in &there.at {
        match repository::files::fetch(repository, set.set.as_str(), &set.files, &directory) {
            Ok(()) => {
                why = None;
                break;
            }
            Err(error @ Error::Interrupted { .. }) => return Err(error),
            // Another repository may have it intact.
            Err(error) => why = why.or(Some(error)),
        }
    }
    if let Some(error) = why {
        return Err(error);
    }
    sync(set, &directory)?;
    steps::reached("adopt.fetched")?;
    mark(cx, set)?;
    for (repository, shipped_at) in &there.at {
        notes::note_shipped(cx, &set.set, &repository.name, &repository.id, *shipped_at)?;
    }
    notes::note_pools(cx, set);
    cx.state.publish(set)?;
    steps::reached("adopt.published")
}

/// Makes the set's files durable before the manifest that names them.
fn sync(set: &Manifest, directory: &Path) -> Result<()> {
    let mut folders = BTreeSet::from([directory.to_path_buf()]);
    for name in set.files.keys() {
        let path = directory.join(name);
        let file = File::open(&path).map_err(Error::io("open", &path))?;
        file.sync_all().map_err(Error::io("sync", &path))?;
        folders.extend(path.parent().map(Path::to_path_buf));
    }
    folders.iter().try_for_each(|folder| files::sync_directory(folder))
}
