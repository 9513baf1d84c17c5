//! Clones that this state_dir doesn't know: it was lost while they ran, or it was restored from a copy made before
//! them. All that is known of such a clone comes from its datasets: their marks, their origins, and where they are
//! mounted.
//!
//! What could go wrong: another state_dir still exists and manages the clone; or somebody has taken it over and
//! mounted it elsewhere. So in the first case the user has to say that it's lost, and in the second the clone stays.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::{Record, destroy_command, name_in};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::names::{CloneName, SetId};
use crate::postgres::instance;
use crate::restore::{strays, unfinished};
use crate::set::journal::RestoreJournal;
use crate::survey;
use crate::volume::mounts::Mounts;
use crate::volume::zfs::{DatasetName, Made};

/// Finds the datasets of this cluster's clones that have this name and that this state_dir doesn't know.
///
/// # Errors
/// When ZFS or the state can't be read.
pub(super) fn find(cx: &Context, name: &CloneName) -> Result<Vec<Made>> {
    let datasets = datasets(cx)?;
    let mut found = strays::find(cx, &datasets)?;
    found.retain(|made| {
        name_in(&made.restore) == Some(name.as_str())
            && made.origin.as_ref().is_some_and(|of| datasets.contains(&of.dataset))
    });
    Ok(found)
}

/// Returns the cluster's datasets, as its sets name them; without a set, those that it is on now.
fn datasets(cx: &Context) -> Result<Vec<DatasetName>> {
    let (sets, _) = cx.state.sets()?;
    let volumes = sets.into_iter().flat_map(|set| set.volumes).map(|volume| volume.dataset);
    let datasets: BTreeSet<_> = volumes.collect();
    if !datasets.is_empty() {
        return Ok(datasets.into_iter().collect());
    }
    let layout = survey::take(cx)?.facts.layout;
    Ok(layout.volumes.into_iter().map(|volume| volume.dataset).collect())
}

/// Whether any of them belongs to another state_dir.
pub(super) fn is_theirs(cx: &Context, made: &[Made]) -> bool {
    made.iter().any(|made| made.owner != cx.state.owner())
}

/// Returns the record that is needed to destroy such a clone; `None` if there is none. `is_lost`: the state_dir that
/// made it is lost.
///
/// # Errors
/// [`Error::Usage`] for a clone of another state_dir that isn't said to be lost; an error when its datasets aren't
/// where a clone has them.
pub(super) fn record(cx: &Context, name: &CloneName, is_lost: bool) -> Result<Option<Record>> {
    let mut made = find(cx, name)?;
    let Some(first) = made.first().cloned() else { return Ok(None) };
    // If several have this name, take one at a time.
    made.retain(|other| other.restore == first.restore && other.owner == first.owner);
    if first.owner != cx.state.owner() && !is_lost {
        return Err(Error::usage(
            format!("clone \"{name}\" was made by another state_dir: \"{}\"", first.dataset),
            format!(
                "destroy it there; if that state_dir is gone for good: {}",
                destroy_command(name, is_theirs(cx, &made))
            ),
        ));
    }
    let elsewhere = |what: &str| {
        let commands: Vec<_> = made.iter().collect();
        Error::failed(format!("clone \"{name}\" can't be destroyed: {what}")).with_hint(format!(
            "it may be somebody's by now; if nobody needs it, stop its server and then: {}",
            strays::commands(&commands)
        ))
    };
    let origin = first.origin.as_ref().and_then(|of| of.name.strip_prefix("lockstep-"));
    let set = origin.and_then(|id| id.parse::<SetId>().ok());
    let set =
        set.ok_or_else(|| elsewhere(&format!("\"{}\" is no clone of a set", first.dataset)))?;
    let places = mounted(cx, &made)?;
    let directory = places.first().and_then(|place| directory_of(place)).map(Path::to_path_buf);
    let directory = directory
        .filter(|directory| {
            places.len() == made.len()
                && directory.ends_with(name.as_str())
                && places.iter().all(|place| directory_of(place) == Some(directory.as_path()))
        })
        .ok_or_else(|| elsewhere("its datasets aren't mounted where a clone has them"))?;
    let data = directory.join("data");
    let data = std::fs::canonicalize(&data).unwrap_or(data);
    let created = i64::try_from(cx.zfs.bytes(&first.dataset, "creation")?).unwrap_or_default();
    Ok(Some(Record {
        name: name.clone(),
        set,
        created_at: jiff::Timestamp::from_second(created).unwrap_or_default(),
        port: instance::port(&data).unwrap_or_default(),
        socket_directory: directory.join("run"),
        made: RestoreJournal {
            id: first.restore,
            datasets: made.iter().map(|made| made.dataset.clone()).collect(),
            data: data.clone(),
            places: inside(&directory, places),
            own: unfinished::own_in(&directory),
            // Another clone's folder, if it has that one's marker.
            alone_in: vec![directory],
            started: true,
            ..RestoreJournal::default()
        },
        data_directory: data,
    }))
}

/// Returns where each is mounted, or would be: a folder above them may have been renamed since.
fn mounted(cx: &Context, made: &[Made]) -> Result<Vec<PathBuf>> {
    let mounts = Mounts::read()?;
    let datasets: Vec<_> = made.iter().map(|made| made.dataset.clone()).collect();
    let mut places = cx.zfs.mountpoints(&datasets)?;
    let place = |dataset: &DatasetName| {
        let of_it = mounts.iter().filter(|mount| mount.source == dataset.as_str());
        of_it.last().map(|mount| mount.point.clone()).or_else(|| places.remove(dataset))
    };
    Ok(datasets.iter().filter_map(place).collect())
}

/// Returns the clone's folder, given where one of its datasets is mounted: `DIR/data`, `DIR/volumes/PART`
/// ([`crate::restore::placement`]).
fn directory_of(place: &Path) -> Option<&Path> {
    let above = place.parent()?;
    match above.file_name()?.to_str() {
        Some("tablespaces" | "volumes") => above.parent(),
        _ => Some(above),
    }
}

/// Returns the mount points, links and folders that are empty once the clone's datasets are gone, innermost first.
fn inside(directory: &Path, mounted: Vec<PathBuf>) -> Vec<PathBuf> {
    let [tablespaces, volumes] = ["tablespaces", "volumes"].map(|name| directory.join(name));
    let mut places = mounted;
    for folder in [tablespaces.as_path(), directory] {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        places.extend(entries.map(|entry| entry.path()).filter(|path| path.is_symlink()));
    }
    places.extend([tablespaces, volumes, directory.to_path_buf()]);
    places.sort_by_key(|path| std::cmp::Reverse(path.components().count()));
    places.dedup();
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clones_folder_is_above_its_mount_points() {
        for place in ["/c/dev/data", "/c/dev/wal", "/c/dev/tablespaces/16384", "/c/dev/volumes/wal"]
        {
            assert_eq!(directory_of(Path::new(place)), Some(Path::new("/c/dev")), "{place}");
        }
        assert_eq!(directory_of(Path::new("/")), None);
    }
}
