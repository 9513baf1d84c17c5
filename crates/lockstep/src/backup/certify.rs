//! The last part of a backup: reads back GUIDs and txgs, places holds, writes and hashes the files that belong to the
//! manifest, and then the manifest itself and the marks on the snapshots.

use std::collections::BTreeMap;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use pgfiles::backup_label::BackupLabel;
use pgfiles::control_file::WalLevel;

use super::attempt::Attempt;
use crate::error::{Error, Result};
use crate::files;
use crate::plan::strategy::Strategy;
use crate::plan::{PartKind, explain};
use crate::postgres::wal;
use crate::refusal::Refusal;
use crate::set::manifest::{
    CONFIGURATION, Manifest, PostgresIdentity, SetFile, SetPart, SetVolume, Switch, VERSION,
    WalStored, hash_file, of_configuration,
};
use crate::set::unfinished::COMPLETE;
use crate::volume::zfs::SnapshotName;

/// The longest value of a user property in pool version 23 (ZAP_MAXVALUELEN), in bytes.
const LONGEST_PROPERTY: usize = 1024;

/// Reads back what ZFS made of the snapshots, and holds them.
pub(super) fn volumes(attempt: &Attempt) -> Result<Vec<SetVolume>> {
    let names: Vec<SnapshotName> = attempt.taken.iter().map(|(_, name, _)| name.clone()).collect();
    let facts = attempt.cx.zfs.snapshot_facts(&names)?;
    if attempt.plan.strategy == Strategy::Atomic
        && facts.windows(2).any(|pair| pair[0].createtxg != pair[1].createtxg)
    {
        let found = names.iter().zip(&facts).map(|(name, f)| format!("{name} {}", f.createtxg));
        let found = found.collect::<Vec<_>>().join(", ");
        return Err(Refusal::NotOneTransactionGroup { found }.into());
    }
    attempt.cx.zfs.hold(&names)?;
    let layout = &attempt.survey.facts.layout;
    attempt
        .taken
        .iter()
        .zip(facts)
        .map(|((volume, name, order), facts)| {
            Ok(SetVolume {
                dataset: name.dataset.clone(),
                pool: name.dataset.pool().to_owned(),
                snapshot: name.clone(),
                guid: facts.guid,
                createtxg: facts.createtxg,
                order: *order,
                taken_at: jiff::Timestamp::from_second(facts.creation)
                    .map_err(|e| Error::failed(format!("{name} has a strange time")).because(e))?,
                parts: layout
                    .parts_on(*volume)
                    .map(|part| SetPart {
                        kind: part.kind.clone(),
                        path: part.path.clone(),
                        inside: part.inside.clone(),
                    })
                    .collect(),
            })
        })
        .collect()
}

/// Writes the files that belong to the manifest, and hashes them.
pub(super) fn files(attempt: &Attempt) -> Result<BTreeMap<String, SetFile>> {
    let directory = attempt.cx.state.set_directory(&attempt.set);
    files::create_directories(&directory)?;
    if let Some(stopped) = &attempt.stopped {
        files::publish(&directory.join("backup_label"), &stopped.label_file)?;
        files::publish(&directory.join("tablespace_map"), &stopped.tablespace_map)?;
    }
    if let Some(label) = &attempt.own_label {
        files::publish(&directory.join("backup_label"), &label.to_bytes())?;
    }
    if let Some(control) = &attempt.last_control {
        files::publish(&directory.join("pg_control"), &control.to_bytes())?;
    }
    keep_configuration(attempt, &directory)?;
    let mut names = ["backup_label", "tablespace_map", "pg_control"].map(str::to_owned).to_vec();
    let beside = match attempt.wal.stored {
        WalStored::Files => &attempt.wal.segments,
        WalStored::Snapshot => &attempt.wal.fetched,
    };
    names.extend(beside.iter().map(|segment| format!("wal/{segment}")));
    names.extend(CONFIGURATION.map(of_configuration));
    let mut all = BTreeMap::new();
    for name in names {
        let path = directory.join(&name);
        if path.exists() {
            all.insert(name, hash_file(&path)?);
        }
    }
    Ok(all)
}

/// Keeps the configuration with the manifest if no snapshot has it.
fn keep_configuration(attempt: &Attempt, directory: &Path) -> Result<()> {
    let kept = &attempt.survey.facts.configuration.files;
    if !kept.is_empty() {
        files::create_directories(&directory.join("config"))?;
    }
    let publish =
        |name: &str, bytes: &[u8]| files::publish(&directory.join(of_configuration(name)), bytes);
    kept.iter().try_for_each(|(name, bytes)| publish(name, bytes))
}

/// Puts the manifest together.
pub(super) fn manifest(
    attempt: &Attempt,
    volumes: Vec<SetVolume>,
    files: BTreeMap<String, SetFile>,
) -> Result<Manifest> {
    let control = attempt.control();
    let stop_lsn = attempt.stopped.as_ref().map(|stopped| stopped.stop_lsn);
    let floor_lsn = attempt.label_end().or(attempt.floor.map(|(lsn, _)| lsn));
    // The earliest time that recovery may target. It is later than the floor if that was written before the snapshot:
    // PostgreSQL itself can't refuse a time between the two if a checkpoint is there, because it never sees a commit
    // of that time.
    let consistent_at = match (&attempt.stopped, attempt.floor, attempt.plan.strategy) {
        (Some(stopped), ..) => stopped.stopped_at,
        (None, Some((_, time)), Strategy::Ordered) => time,
        (None, Some((_, time)), _) => time.max(attempt.last_snapshot_at),
        (None, None, _) => attempt.last_snapshot_at,
    };
    let server = attempt.survey.facts.server.as_ref().ok();
    Ok(Manifest {
        version: VERSION,
        set: attempt.set.clone(),
        cluster: attempt.cx.name.clone(),
        owner: attempt.cx.state.owner().to_owned(),
        label: attempt.request.label.clone(),
        strategy: attempt.plan.strategy,
        consistent_because: explain::why_consistent(attempt.plan.strategy, attempt.is_standby())
            .to_owned(),
        chosen_because: attempt.plan.chosen_because.clone(),
        postgres: PostgresIdentity {
            major: server.map(crate::plan::ServerFacts::major).or(control.major_version()),
            system_identifier: control.system_identifier,
            timeline: attempt.timeline(),
            history: history(attempt),
            wal_segment_size: control.wal_segment_size.bytes(),
            data_checksums: control.data_checksum_version != 0,
            standby: attempt.is_standby(),
            wal_minimal: control.wal_level == WalLevel::Minimal,
            data_directory: attempt.cx.cluster.data_directory.clone(),
        },
        started_at: attempt.started_at,
        finished_at: jiff::Timestamp::now(),
        consistent_at: Some(consistent_at),
        data_at: attempt.survey.facts.data_at(attempt.started_at),
        start_lsn: Some(attempt.start_lsn()),
        stop_lsn,
        floor_lsn,
        volumes,
        wal: attempt.wal.clone(),
        files,
        warnings: attempt.plan.warnings.clone(),
        tries: attempt.tries,
        seconds: attempt.seconds,
        checksum: String::new(),
    })
}

/// Returns where the ancestors of the set's timeline were left: this shows which sets of several timelines follow
/// from each other. If it can't be read, that stays unknown, and the set is still good.
fn history(attempt: &Attempt) -> Vec<Switch> {
    let (segment_size, timeline) = (attempt.wal_identity().segment_size, attempt.timeline());
    let pg_wal = attempt.cx.cluster.data_directory.join("pg_wal");
    match wal::history(&pg_wal, segment_size, timeline) {
        Ok(history) => history.switches().iter().map(Switch::from).collect(),
        Err(error) => {
            tracing::warn!(error = %error.chain(), "the set doesn't record its timeline's history");
            Vec::new()
        }
    }
}

/// The user's own words for the set, as a property of each of its snapshots.
pub(super) fn words(attempt: &Attempt) -> Option<(&'static str, String)> {
    let words = attempt.request.label.as_ref().filter(|words| words.len() < LONGEST_PROPERTY)?;
    Some(("lockstep:label", words.clone()))
}

/// Returns backup_label and tablespace_map as properties, so that a set can be put together by hand from the
/// snapshots alone; nothing if there is no label, or none yet.
pub(super) fn label_properties(attempt: &Attempt) -> Vec<(&'static str, String)> {
    let own_label = attempt.own_label.as_ref().map(BackupLabel::to_bytes).unwrap_or_default();
    let (label, map) = match &attempt.stopped {
        Some(stopped) => (&stopped.label_file, stopped.tablespace_map.as_slice()),
        None => (&own_label, [].as_slice()),
    };
    [("lockstep:backup_label", label.as_slice()), ("lockstep:tablespace_map", map)]
        .map(|(property, bytes)| (property, STANDARD.encode(bytes)))
        .into_iter()
        .filter(|(_, text)| !text.is_empty() && text.len() < LONGEST_PROPERTY)
        .collect()
}

/// Marks the snapshots as those of a complete set. If all of them existed before the label (pg_wal on the data
/// directory's volume), the data directory's snapshot gets the label now.
pub(super) fn mark_complete(attempt: &Attempt) -> Result<()> {
    let zfs = &attempt.cx.zfs;
    if !attempt.labelled {
        let layout = &attempt.survey.facts.layout;
        let holds_data =
            |volume: usize| layout.parts_on(volume).any(|part| part.kind == PartKind::Data);
        let data = attempt.taken.iter().filter(|(volume, ..)| holds_data(*volume));
        let data: Vec<_> = data.map(|(_, name, _)| name).collect();
        for (property, text) in label_properties(attempt) {
            zfs.set(property, &text, &data)?;
        }
    }
    let names: Vec<_> = attempt.taken.iter().map(|(_, name, _)| name).collect();
    zfs.set("lockstep:state", COMPLETE, &names)
}
