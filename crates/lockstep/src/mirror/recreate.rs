//! `mirror recreate`: for a mirror whose WAL is gone, or whose timeline diverged from its primary's.
//!
//! Its datasets stay, and so do the snapshots of its old sets. What could go wrong: it ends half way. The record then
//! says `recreating`, the mirror is neither started nor backed up, and the command can be run again. Or the mirror was
//! promoted, perhaps because its primary was lost: what was written to it since is nowhere else. So that has to be said.

use std::path::PathBuf;

use pgfiles::control_file::DbState;

use super::create::{self, refuse};
use super::primary::{Facts, Primary};
use super::record::{Home, Kind, Phase, Place, Record};
use super::{fill, room, serve};
use crate::config::Config;
use crate::context::{Context, lockstep_of, program};
use crate::error::{Error, Result};
use crate::files;
use crate::names::ClusterName;
use crate::postgres::instance;
use crate::steps;
use crate::volume::zfs::DatasetName;
use crate::words::bytes;

/// How a mirror's data was replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// pg_rewind: only what differs since the timelines parted.
    Rewind,
    /// A fresh base backup.
    BaseBackup,
}

/// What is asked for by name.
#[derive(Debug, Clone)]
pub struct Asked {
    /// The connection string of another primary, without a password, that it is to follow from now on.
    pub from: Option<String>,
    /// The file with that one's password, if it has another.
    pub password_file: Option<PathBuf>,
    /// A base backup, even if pg_rewind would be enough.
    pub base_backup: bool,
    /// What was written to a promoted mirror may be lost.
    pub discard_writes: bool,
}

/// Replaces the mirror's data and starts it.
///
/// # Errors
/// When the mirror was promoted and its writes aren't to be discarded, the primary is another cluster or can't be
/// reached, space is short, or anything fails.
pub fn run(home: &Home, config: &Config, name: &ClusterName, asked: &Asked) -> Result<How> {
    home.find(name)?;
    let _lock = home.lock(name, "mirror recreate")?;
    let mut record = home.find(name)?;
    record.check_answers(&home.zfs)?;
    if matches!(record.phase, Phase::Making | Phase::Destroying) {
        return Err(Error::usage(
            format!("mirror \"{name}\" was never complete, or is being removed"),
            format!("`{} mirror destroy {name}` removes what is there of it", program()),
        ));
    }
    // No backup may freeze a mirror whose data is half old and half new.
    let cluster = record.as_cluster()?;
    let cx = Context::open_as(config, name.clone(), &cluster)?;
    let _sets = cx.lock("mirror recreate")?;
    record.check_mounted(&home.zfs)?;
    record.check_not_renamed(home)?;
    if !asked.discard_writes {
        refuse_promoted(&record)?;
    }
    let before = record.clone();
    if let Some(from) = &asked.from {
        record.primary = create::of_from(from)?.to_string();
    }
    if let Some(file) = create::absolute(asked.password_file.as_deref())? {
        record.password_file = Some(file);
    }
    let mut primary = Primary::connect(&record.conninfo()?, record.password_file.as_deref())?;
    let facts = primary.facts()?;
    check(home, &record, &facts)?;
    check_new(&before, &record, &mut primary, &facts)?;
    facts.warn_if_it_waits_for(&record.slot);
    let rewind = !asked.base_backup && may_rewind(&record, &mut primary, &facts)?;
    room::check(home, &record, rewind)?;
    add_tablespaces(home, &mut record, &facts)?;

    fill::end_fillers(&record);
    serve::stop(&record)?;
    // Only now: a mirror that is refused keeps what it has, and its server reads that whenever it connects.
    record.write_passfile()?;
    register_again(&before, &record)?;
    record.standby_settings = facts.settings;
    record.phase = Phase::Recreating;
    home.write(&record)?;
    steps::reached("mirror.recreate-recorded")?;
    // A slot that lost its WAL can't be used again; a new one keeps WAL from this moment on.
    primary.drop_slot(&record.slot)?;
    primary.make_slot(&record.slot)?;
    create::make_datasets(home, &record)?;
    record.check_mounted(&home.zfs)?;
    steps::reached("mirror.recreate-slot")?;
    let mut how = fill_again(home, &record, &facts, rewind)?;
    steps::reached("mirror.recreate-filled")?;
    fill::make_standby(&record, &mut primary)?;
    // Replay begins at the checkpoint before the timelines parted, from which on no slot has kept WAL on this primary.
    if how == How::Rewind && !serve::launch_fed(home, &mut record)? {
        tracing::warn!(
            "the primary no longer has WAL that the mirror needs after pg_rewind: taking a base backup instead"
        );
        // The slot has gone back to where the mirror asked for WAL.
        primary.drop_slot(&record.slot)?;
        primary.make_slot(&record.slot)?;
        how = fill_again(home, &record, &facts, false)?;
        fill::make_standby(&record, &mut primary)?;
    }
    if how == How::BaseBackup {
        serve::launch(home, &mut record)?;
    }
    record.phase = Phase::Ready;
    home.write(&record)?;
    if record.primary != before.primary {
        tracing::warn!(
            "if the former primary ({}) is another server and comes back, the mirror's slot keeps WAL there; run on it: SELECT pg_drop_replication_slot('{}')",
            before.primary,
            record.slot
        );
    }
    Ok(how)
}

/// Writes the mirror's file in the configuration again, with its new primary. One that somebody has edited is theirs.
fn register_again(before: &Record, record: &Record) -> Result<()> {
    let (old, new) = (before.as_toml()?, record.as_toml()?);
    if old == new {
        return Ok(());
    }
    let path = &record.registration;
    let text = std::fs::read_to_string(path).unwrap_or_default();
    if text == old {
        return files::publish(path, new.as_bytes());
    }
    if text != new {
        tracing::warn!(
            "\"{}\" isn't as Lockstep wrote it, and stays: write the new `primary`, and primary_password_file if that is another, into it",
            path.display()
        );
    }
    Ok(())
}

fn fill_again(home: &Home, record: &Record, facts: &Facts, rewind: bool) -> Result<How> {
    if rewind {
        match fill::rewind(home, record) {
            Ok(()) => return Ok(How::Rewind),
            Err(interrupted @ Error::Interrupted { .. }) => return Err(interrupted),
            Err(error) => {
                tracing::warn!(error = %error.chain(), "pg_rewind failed: taking a base backup instead");
            }
        }
    }
    // First of all pg_control: what a former base backup brought is a primary's, and without backup_label, which may be
    // removed before it, a mirror that was cut off here would look as if it had been promoted.
    files::opened::remove_in(&record.data(), |name| name == b"global")?;
    steps::reached("mirror.recreate-emptying")?;
    for place in record.places.iter().filter(|place| place.kind != Kind::Top) {
        files::empty_directory(&place.directory)?;
    }
    steps::reached("mirror.recreate-emptied")?;
    fill::base_backup(home, record, facts)?;
    Ok(How::BaseBackup)
}

/// Whether pg_rewind helps. It does where the mirror diverged from its primary; where it is merely behind, there is
/// nothing to rewind.
fn may_rewind(record: &Record, primary: &mut Primary, facts: &Facts) -> Result<bool> {
    if !facts.may_rewind || record.phase == Phase::Recreating {
        return Ok(false);
    }
    let Ok(control) = instance::read_control(&record.data()) else { return Ok(false) };
    // If a link doesn't exist yet, pg_rewind would make it, to the primary's own path.
    let links = instance::tablespace_links(&record.data())?;
    let is_linked = |oid: &u32| links.iter().any(|(known, _)| known == oid);
    if let Some((_, name, _)) = facts.tablespaces.iter().find(|(oid, _, _)| !is_linked(oid)) {
        tracing::info!("tablespace \"{name}\" is new on the primary: pg_rewind isn't tried");
        return Ok(false);
    }
    let timeline = primary.position()?.timeline;
    let ours = control.newest_timeline().get();
    Ok(u32::try_from(timeline).is_ok_and(|theirs| theirs > ours))
}

/// Refuses a mirror that was promoted: its server is, or was, a primary.
fn refuse_promoted(record: &Record) -> Result<()> {
    let was_cut_off = record.phase == Phase::Recreating;
    let is_left_running = was_cut_off && serve::is_running(record)?;
    // Half of its data is the primary's by then, with the primary's pg_control. But its server is started last, and goes
    // on if the command is interrupted while it waits for that; and then it may be stopped, as by a reboot. Until the
    // server has begun there is a backup_label: pg_basebackup writes it before all else and pg_control last, and
    // pg_rewind writes it before pg_control.
    let is_half = was_cut_off && !is_left_running && record.data().join("backup_label").exists();
    if is_half || record.data().join("standby.signal").exists() {
        return Ok(());
    }
    let Ok(control) = instance::read_control(&record.data()) else { return Ok(()) };
    if matches!(control.state, DbState::InArchiveRecovery | DbState::ShutDownedInRecovery) {
        return Ok(());
    }
    let name = &record.name;
    let what =
        format!("mirror \"{name}\" was promoted: what was written to it since is nowhere else");
    if was_cut_off {
        // Until a recreate has ended, no set is taken, and the server isn't started.
        let copy = match is_left_running {
            true => "leave it running and copy that out first (pg_dump)",
            false => "take a snapshot of each of its datasets first (zfs snapshot), which stays",
        };
        return refuse(
            what,
            format!(
                "an interrupted `mirror recreate` had left its server running, or was itself given --discard-writes. If somebody may need what was written, {copy}; then `{} mirror recreate {name} --discard-writes` makes it a standby again",
                program()
            ),
        );
    }
    refuse(
        what,
        format!(
            "if somebody may need that, take a set of it first, which stays: {0} backup; then `{1} mirror recreate {name} --discard-writes` makes it a standby again. While that set is there, it is the latest, and later ones count as left behind: get what you need out of it, and remove it with {0} prune --local --set ID",
            lockstep_of(name.as_str()),
            program()
        ),
    )
}

fn check(home: &Home, record: &Record, facts: &Facts) -> Result<()> {
    if facts.system_identifier.to_string() != record.system_identifier {
        return refuse(
            format!(
                "the primary is another cluster: its system identifier is {}, the mirror's was {}",
                facts.system_identifier, record.system_identifier
            ),
            "make a new mirror of it with `mirror create`",
        );
    }
    if let Some(data) = record.places.iter().find(|place| place.kind == Kind::Data) {
        let free = home.zfs.bytes(&data.dataset, "available")?;
        if free < facts.size {
            return refuse(
                format!(
                    "\"{}\" has {} left, and the primary holds {}: the old sets keep what they have",
                    data.dataset,
                    bytes(free),
                    bytes(facts.size)
                ),
                "destroy old sets, or enlarge the pool",
            );
        }
    }
    Ok(())
}

/// Checks that another server than before can feed the mirror: once its own server is stopped and its record says
/// `recreating`, only a base backup leads back. And a slot that is there already isn't the mirror's: another host's
/// mirror may have it, and what that one still needs would be gone.
fn check_new(before: &Record, record: &Record, primary: &mut Primary, facts: &Facts) -> Result<()> {
    let (old, new) = (before.conninfo()?, record.conninfo()?);
    if ["host", "hostaddr", "port"].iter().all(|key| old.get(key) == new.get(key)) {
        return Ok(());
    }
    create::check_role(facts)?;
    if primary.slot(&record.slot)?.is_some() {
        return refuse(
            format!("the server of --from has a slot \"{}\" already", record.slot),
            format!(
                "another mirror may need it. If none does, or it is this mirror's own (the same server at another address): {} mirror stop {}; on that server: SELECT pg_drop_replication_slot('{}'); then run this again",
                program(),
                record.name,
                record.slot
            ),
        );
    }
    create::check_free_slot(facts)
}

/// Adds a dataset for each tablespace that is new on the primary. Tablespaces that the primary no longer has keep
/// theirs, for the old sets; so does one that was renamed there.
fn add_tablespaces(home: &Home, record: &mut Record, facts: &Facts) -> Result<()> {
    for (oid, name, location) in &facts.tablespaces {
        let known = record.places.iter_mut().find_map(|known| match &mut known.kind {
            Kind::Tablespace { oid: known, location, .. } if known == oid => Some(location),
            _ => None,
        });
        match known {
            Some(known) => known.clone_from(location),
            None => {
                let (dataset, directory) = free_place(home, record, *oid, name)?;
                let (name, location) = (name.clone(), location.clone());
                let kind = Kind::Tablespace { oid: *oid, name, location };
                record.places.push(Place { kind, dataset, directory });
            }
        }
    }
    Ok(())
}

/// A dataset and folder for a new tablespace. One that was renamed or dropped may have those of its name.
fn free_place(
    home: &Home,
    record: &Record,
    oid: u32,
    name: &str,
) -> Result<(DatasetName, PathBuf)> {
    let top = record.places.iter().find(|place| place.kind == Kind::Top);
    let top = top.ok_or_else(|| Error::failed("the mirror's record has no dataset"))?;
    let by_name = create::leaf_of(oid, name);
    let with_oid = format!("{by_name}-{oid}");
    for leaf in [&by_name, &with_oid] {
        let dataset = create::below(&top.dataset, leaf)?;
        let directory = top.directory.join(leaf);
        let has_it = |place: &Place| place.dataset == dataset || place.directory == directory;
        if !record.places.iter().any(has_it) && !home.zfs.exists(dataset.as_str())? {
            return Ok((dataset, directory));
        }
    }
    let dataset = create::below(&top.dataset, &with_oid)?;
    refuse(
        format!("tablespace \"{name}\" is new on the primary, and dataset \"{dataset}\" exists"),
        "the mirror makes its own: zfs rename that one, or destroy it if nobody needs it",
    )
}
