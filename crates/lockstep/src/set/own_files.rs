//! The files that are shipped along with a set's volumes: those beside its manifest, and the WAL in pg_wal's
//! snapshot.
//!
//! What could go wrong: the manifest was written from what pg_control said before the snapshot, and a checkpoint may
//! have happened in between. Then the segment of the earlier redo location may be gone, and recovery starts at
//! another. So without a backup_label, the snapshot's own pg_control decides.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use pgfiles::lsn::{Lsn, TimelineId};
use pgfiles::wal_name::WalFileName;

use crate::context::Context;
use crate::error::{Error, Result};
use crate::plan::layout::PartKind;
use crate::plan::strategy::Strategy;
use crate::postgres::wal_run::{Wanted, run};
use crate::postgres::{instance, wal};
use crate::refusal::Refusal;
use crate::set::manifest::{Manifest, Switch, WalStored, hash_file};

/// The set's WAL, as it is in pg_wal's snapshot.
pub(crate) struct FrozenWal {
    pg_wal: PathBuf,
    /// Where recovery starts, and the set's timeline, if the snapshot knows better than the manifest.
    start: Option<(Lsn, TimelineId)>,
    /// Segments and histories, by name.
    names: Vec<String>,
    /// Where it ends; `None` if the set's end is recovery's.
    pub(crate) end: Option<Lsn>,
}

/// Returns where the set's own WAL is, if it is in pg_wal's snapshot: the volume, and the folder in it.
pub(crate) fn wal_in_snapshot(manifest: &Manifest) -> Option<(usize, PathBuf)> {
    let (at, part) = manifest.parts().find(|(_, part)| part.kind == PartKind::Wal)?;
    (manifest.wal.stored == WalStored::Snapshot).then(|| (at, part.inside.clone()))
}

impl FrozenWal {
    /// Finds everything in it that recovery reads. `pg_wal` is where [`wal_in_snapshot`] is visible, `control` where
    /// the data directory's pg_control is, if it is accessible.
    ///
    /// # Errors
    /// [`Refusal::WalEndsEarly`]; an error when something that exists can't be read.
    pub(crate) fn find(
        manifest: &Manifest,
        pg_wal: PathBuf,
        control: Option<&Path>,
    ) -> Result<Self> {
        let mut names = manifest.wal.segments.clone();
        names.retain(|name| !is_beside(manifest, name));
        let mut found = Self { pg_wal, start: None, names, end: None };
        // With PostgreSQL's label, the end-of-backup record is the end, and everything up to there is named. Without
        // one, recovery continues to the end of what was frozen with the data.
        if manifest.strategy != Strategy::Label
            && let Some(wanted) = found.wanted(manifest, control)?
        {
            let identity = manifest.wal_identity()?;
            let elsewhere = |name: &str| is_beside(manifest, name);
            let run = run(&found.pg_wal, identity, &wanted, &elsewhere)?;
            let name = |segment: &pgfiles::WalSegment| segment.file_name(identity.segment_size);
            found.names.extend(run.segments.iter().map(name));
            found.end = Some(run.end);
        }
        // A cluster that has changed its timeline needs to know where.
        let size = manifest.wal_identity()?.segment_size;
        let is_history =
            |name: &String| matches!(WalFileName::parse(name, size), Ok(WalFileName::History(_)));
        found.names.extend(wal::names(&found.pg_wal)?.into_iter().filter(is_history));
        let mut seen = std::collections::BTreeSet::new();
        found.names.retain(|name| seen.insert(name.clone()));
        Ok(found)
    }

    fn wanted(&mut self, manifest: &Manifest, control: Option<&Path>) -> Result<Option<Wanted>> {
        let set = manifest.set.to_string();
        let floor = manifest.floor_lsn.unwrap_or(Lsn::INVALID);
        // A standby's pg_control says how far its data files are, and so does a floor that was written after the last
        // of them was frozen; a cluster that was stopped wrote nothing more.
        let has_end = manifest.strategy == Strategy::Ordered && manifest.floor_lsn.is_some();
        let to_the_end =
            !(has_end || manifest.postgres.standby || manifest.strategy == Strategy::Cold);
        let own = control.filter(|_| !manifest.files.contains_key("backup_label"));
        let Some(control) = own else {
            let timeline = manifest.timeline();
            let wanted =
                |start| Wanted { set, start, needed: floor.max(start), timeline, to_the_end };
            return Ok(manifest.start_lsn.map(wanted));
        };
        let control = instance::read_control_at(control)?;
        let (found, expected) = (control.system_identifier, manifest.postgres.system_identifier);
        if found != expected {
            let why = format!("pg_control is of cluster {found}, the manifest's is {expected}");
            return Err(Refusal::damaged(set, why).into());
        }
        let checkpoint = &control.checkpoint_copy;
        // The checkpoint's record itself is read first.
        let record = control.checkpoint.checked_add(1).unwrap_or(control.checkpoint);
        let timeline = control.newest_timeline();
        // A floor is on the newest; without one, all that is known is where recovery starts.
        let has_floor = manifest.floor_lsn.is_some();
        self.start =
            Some((checkpoint.redo, if has_floor { timeline } else { checkpoint.timeline }));
        Ok(Some(Wanted {
            set,
            start: checkpoint.redo,
            needed: floor.max(control.min_recovery_point).max(record),
            timeline,
            to_the_end,
        }))
    }

    /// Returns the LSNs between which a restored cluster replays, if known.
    pub(crate) fn replayed(&self, manifest: &Manifest) -> Option<(Lsn, Lsn)> {
        let start = self.start.map(|(start, _)| start).or(manifest.start_lsn)?;
        Some((start, self.end?))
    }
}

/// Whether the set has the segment from elsewhere.
fn is_beside(manifest: &Manifest, name: &str) -> bool {
    let is_in = |names: &[String]| names.iter().any(|known| known == name);
    is_in(&manifest.wal.fetched) || is_in(&manifest.wal.archived)
}

/// Returns the files that are shipped along, by name; the manifest then says that all WAL is in files. Without
/// `frozen` the WAL stays where it is.
pub(crate) fn take_files(
    cx: &Context,
    manifest: &mut Manifest,
    frozen: Option<&FrozenWal>,
) -> Result<BTreeMap<String, PathBuf>> {
    let directory = cx.state.set_directory(&manifest.set);
    let mut names: BTreeMap<String, PathBuf> =
        manifest.files.keys().map(|name| (name.clone(), directory.join(name))).collect();
    let Some(frozen) = frozen else { return Ok(names) };
    // What the backup checked begins no later than recovery does: it stays as it is.
    if let Some((start, timeline)) = frozen.start.filter(|_| manifest.wal.segments.is_empty()) {
        manifest.start_lsn = Some(start);
        if manifest.postgres.timeline != timeline {
            let size = manifest.wal_identity()?.segment_size;
            let history = wal::history(&frozen.pg_wal, size, timeline)?;
            manifest.postgres.history = history.switches().iter().map(Switch::from).collect();
            manifest.postgres.timeline = timeline;
        }
    }
    for name in &frozen.names {
        let path = frozen.pg_wal.join(name);
        let file = hash_file(&path).map_err(|error| match error {
            Error::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
                let why = format!("{name} is in its manifest and not in pg_wal's snapshot");
                Refusal::damaged(&manifest.set, why).into()
            }
            other => other,
        })?;
        manifest.files.insert(format!("wal/{name}"), file);
        names.insert(format!("wal/{name}"), path);
        if !manifest.wal.segments.contains(name) {
            manifest.wal.segments.push(name.clone());
        }
    }
    manifest.wal.stored = WalStored::Files;
    manifest.wal.fetched.clear();
    Ok(names)
}

#[cfg(test)]
#[path = "own_files_tests.rs"]
mod tests;
