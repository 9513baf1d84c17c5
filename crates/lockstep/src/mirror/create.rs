//! `mirror create`: everything is checked first, then written to the record, then made.
//!
//! What could go wrong: any step may fail. That leaves the record in phase `making`, and the error path, or the next
//! `mirror` command, removes what it names.

use std::path::{Path, PathBuf};

use super::primary::{Facts, NAME_STANDBYS, Primary};
use super::record::{Home, Kind, PROPERTY, Phase, Place, Record};
use super::{destroy, fill, serve, settings};
use crate::config::Config;
use crate::context::program;
use crate::error::{Error, Result};
use crate::files;
use crate::names::ClusterName;
use crate::postgres::conninfo::Conninfo;
use crate::postgres::instance;
use crate::refusal::Refusal;
use crate::restore::run_server;
use crate::steps;
use crate::volume::zfs::DatasetName;
use crate::words::bytes;

/// The request of a `mirror create`.
#[derive(Debug, Clone)]
pub struct Create {
    /// The name of the mirror and of its cluster.
    pub name: ClusterName,
    /// The connection string of the primary, without a password.
    pub from: String,
    /// The top dataset; the others are made below it.
    pub dataset: DatasetName,
    /// Tablespaces that get a dataset elsewhere: name or OID, dataset.
    pub tablespaces: Vec<(String, DatasetName)>,
    /// Where the dataset is mounted; if left out, where ZFS mounts it.
    pub directory: Option<PathBuf>,
    /// The server's port; if left out, a free one is found.
    pub port: Option<u16>,
    /// A file with the primary's password in its first line.
    pub password_file: Option<PathBuf>,
    /// The slot on the primary.
    pub slot: Option<String>,
    /// How WAL is fetched from the primary's archive when streaming breaks.
    pub restore_command: Option<String>,
    /// Settings for the mirror's server.
    pub settings: Vec<(String, String)>,
    /// The user that owns the files and runs the server.
    pub os_user: String,
    /// Where PostgreSQL's programs are.
    pub bin_dir: Option<PathBuf>,
    /// The repositories that its sets are shipped to.
    pub repositories: Vec<String>,
}

/// Properties for a filesystem of PostgreSQL, where this ZFS knows them.
const PROPERTIES: [(&str, &str); 4] = [
    // Pages compress well; `on` is the fallback where lz4 isn't known.
    ("compression", "lz4"),
    // PostgreSQL never needs to know when a file was read.
    ("atime", "off"),
    // Extended attributes are in the dnode instead of in files of their own.
    ("xattr", "sa"),
    // Replay writes pages that can be replayed again, so they don't need the intent log.
    ("logbias", "throughput"),
];

/// Returns what would be made: runs every check and changes nothing.
///
/// # Errors
/// The reason why it can't be made.
pub fn plan(home: &Home, config: &Config, wanted: &Create) -> Result<Record> {
    let (record, _, _) = prepare(home, config, wanted)?;
    Ok(record)
}

/// Makes a mirror and starts it.
///
/// # Errors
/// The reason why it can't be made, or what went wrong; then nothing of it is left.
pub fn run(home: &Home, wanted: &Create) -> Result<Record> {
    let _lock = home.lock(&wanted.name, "mirror create")?;
    destroy::unfinished(home, Some(&wanted.name))?;
    // The unfinished mirror may have been in the configuration already. It no longer is, so read the configuration
    // again.
    let prepared = home.configuration().and_then(|config| prepare(home, &config, wanted));
    let (mut record, mut primary, facts) = prepared.inspect_err(|_| {
        if !home.record_path(&wanted.name).exists() {
            home.remove_lock(&wanted.name);
        }
    })?;
    if !facts.full_page_writes {
        tracing::warn!(
            "full_page_writes is off on the primary: strategy label can't be used on this mirror"
        );
    }
    // Until it is about to be made, another host's mirror may get a slot of that name: what undoes this one, perhaps days
    // after it was killed, must not drop that.
    let slot = std::mem::take(&mut record.slot);
    home.write(&record)?;
    let made = make(home, &mut record, &slot, &mut primary, &facts);
    if let Err(error) = made {
        drop(primary);
        if let Err(left) = destroy::take_away(home, &record, |_| Ok(())) {
            tracing::warn!(error = %left.chain(), "left for the next mirror command to remove");
        }
        return Err(error);
    }
    Ok(record)
}

fn make(
    home: &Home,
    record: &mut Record,
    slot: &str,
    primary: &mut Primary,
    facts: &Facts,
) -> Result<()> {
    steps::reached("mirror.recorded")?;
    make_datasets(home, record)?;
    // Otherwise the base backup would go to the file system below.
    record.check_mounted(&home.zfs)?;
    record.write_passfile()?;
    steps::reached("mirror.datasets")?;
    let named = Record { slot: slot.to_owned(), ..record.clone() };
    home.write(&named)?;
    *record = named;
    if !primary.make_new_slot(slot)? {
        // Another host's mirror was faster since the check. The slot is its own, and what is undone must not drop it.
        record.slot.clear();
        home.write(record)?;
        return refuse_slot(slot);
    }
    steps::reached("mirror.slot")?;
    fill::base_backup(home, record, facts)?;
    steps::reached("mirror.filled")?;
    fill::make_standby(record, primary)?;
    serve::launch(home, record)?;
    steps::reached("mirror.started")?;
    register(record)?;
    steps::reached("mirror.registered")?;
    record.phase = Phase::Ready;
    home.write(record)?;
    record.mark_complete(&home.zfs);
    steps::reached("mirror.done").or_else(|error| match error {
        // The mirror is already complete.
        Error::Interrupted { .. } => Ok(()),
        other => Err(other),
    })
}

/// Makes the mirror a cluster of the configuration.
fn register(record: &Record) -> Result<()> {
    if let Some(folder) = record.registration.parent() {
        files::create_directories(folder)?;
    }
    files::publish(&record.registration, record.as_toml()?.as_bytes())
}

/// Makes and mounts the datasets that don't exist yet.
pub(super) fn make_datasets(home: &Home, record: &Record) -> Result<()> {
    let user = record.credentials()?;
    for place in &record.places {
        if home.zfs.exists(place.dataset.as_str())? {
            continue;
        }
        let marks = [
            ("mountpoint", home.zfs.mountpoint_for(&place.dataset, &place.directory)?),
            // There are pools where it is on by default.
            ("readonly", "off".to_owned()),
            (PROPERTY, record.name.to_string()),
            ("lockstep:owner", home.owner.clone()),
            // Data: one page per record, so that a changed page is written, and sent, alone. WAL is written once and
            // read in order, which suits few large records.
            ("recordsize", if place.kind == Kind::Wal { "128K" } else { "8K" }.to_owned()),
        ];
        // ZFS makes missing folders above a mount point with the umask's mode.
        place.directory.parent().map_or(Ok(()), files::create_open_directories)?;
        home.zfs.create(&place.dataset, &marks)?;
        for (name, value) in PROPERTIES {
            suit(home, place, name, value);
        }
        files::create_owned_directory(&place.directory, user)?;
        steps::reached("mirror.dataset")?;
    }
    for folder in ["run", "log"] {
        files::create_owned_directory(&record.top().join(folder), user)?;
    }
    Ok(())
}

/// Sets a property that helps, but that this ZFS may not know.
fn suit(home: &Home, place: &Place, name: &str, value: &str) {
    let on = std::slice::from_ref(&place.dataset);
    // WAL is synced for every commit that is received.
    let value = if name == "logbias" && place.kind == Kind::Wal { "latency" } else { value };
    let result = match home.zfs.set(name, value, on) {
        Err(_) if name == "compression" => home.zfs.set(name, "on", on),
        other => other,
    };
    if let Err(error) = result {
        tracing::debug!(error = %error.chain(), dataset = %place.dataset, "goes without {name}={value}");
    }
}

pub(super) fn refuse<T>(what: impl Into<String>, needed: impl Into<String>) -> Result<T> {
    Err(Refusal::Mirror { what: what.into(), needed: needed.into() }.into())
}

/// Checks that the requested names are free, and that what they refer to is known.
fn check_names(home: &Home, config: &Config, wanted: &Create) -> Result<()> {
    let name = &wanted.name;
    if config.clusters.contains_key(name.as_str()) {
        return refuse(
            format!("the configuration has a cluster \"{name}\" already"),
            "choose another name, or remove that cluster from the configuration",
        );
    }
    if home.records()?.iter().any(|record| record.name == *name) {
        return refuse(
            format!("there is a mirror \"{name}\" already"),
            format!("choose another name; `{} mirror destroy {name}` removes that one", program()),
        );
    }
    if let Some(unknown) =
        wanted.repositories.iter().find(|n| !config.repositories.contains_key(*n))
    {
        let known: Vec<_> = config.repositories.keys().map(String::as_str).collect();
        return Err(Error::usage(
            format!("the configuration has no repository \"{unknown}\""),
            match known.is_empty() {
                true => format!("add a table [repositories.{unknown}] with its url"),
                false => format!("it has: {}", known.join(", ")),
            },
        ));
    }
    Ok(())
}

fn prepare(home: &Home, config: &Config, wanted: &Create) -> Result<(Record, Primary, Facts)> {
    check_names(home, config, wanted)?;
    settings::check_names(&wanted.settings)?;
    let conninfo = of_from(&wanted.from)?;
    let password_file = absolute(wanted.password_file.as_deref())?;
    let mut primary = Primary::connect(&conninfo, password_file.as_deref())?;
    let facts = primary.facts()?;
    check_primary(&mut primary, &facts, wanted)?;
    let bin_dir = instance::bin_dir(wanted.bin_dir.as_deref(), Some(facts.major))?;
    let directory = directory(home, wanted)?;
    // ZFS mounts over a folder that is there, and makes one that isn't.
    if !directory.exists() {
        files::refuse_read_only(&directory)?;
    }
    let places = places(&wanted.dataset, &directory, &wanted.tablespaces, &facts)?;
    check_places(home, &places, facts.size)?;
    let record = Record {
        name: wanted.name.clone(),
        phase: Phase::Making,
        created_at: jiff::Timestamp::now(),
        primary: conninfo.to_string(),
        password_file,
        slot: slot_name(wanted),
        system_identifier: facts.system_identifier.to_string(),
        places,
        made_folders: directory
            .ancestors()
            .take_while(|path| !path.exists())
            .map(Path::to_path_buf)
            .collect(),
        socket_directory: run_server::socket_directory(&directory),
        port: match wanted.port {
            Some(port) => {
                run_server::check_port(port, &[run_server::socket_directory(&directory)])?;
                port
            }
            None => run_server::free_port(0)?,
        },
        superuser: facts.superuser.clone(),
        dbname: facts.dbname.clone(),
        os_user: wanted.os_user.clone(),
        bin_dir,
        restore_command: wanted.restore_command.clone(),
        standby_settings: facts.settings,
        settings: wanted.settings.clone(),
        registration: home.registrations.join(format!("{}.toml", wanted.name)),
        repositories: wanted.repositories.clone(),
    };
    settings::check(&record)?;
    record.credentials()?;
    record.as_toml()?;
    if record.registration.exists() {
        return refuse(
            format!("\"{}\" exists", record.registration.display()),
            "it isn't Lockstep's: move it away, or choose another name",
        );
    }
    Ok((record, primary, facts))
}

/// Reads `--from`.
pub(super) fn of_from(from: &str) -> Result<Conninfo> {
    Conninfo::of_primary(from).and_then(Conninfo::for_lockstep).map_err(|why| {
        Error::usage(
            format!("--from: {why}"),
            "write it as keywords, such as 'host=db1 user=replicator', and the password into a file for --password-file",
        )
    })
}

/// Reads `--password-file`, which later commands need, too.
pub(super) fn absolute(password_file: Option<&Path>) -> Result<Option<PathBuf>> {
    let password_file = password_file.map(std::path::absolute).transpose();
    password_file.map_err(Error::io("find", "--password-file"))
}

fn slot_name(wanted: &Create) -> String {
    let safe = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' };
    wanted.slot.clone().unwrap_or_else(|| {
        let name: String = wanted.name.as_str().chars().map(safe).take(40).collect();
        format!("lockstep_mirror_{name}")
    })
}

fn check_primary(primary: &mut Primary, facts: &Facts, wanted: &Create) -> Result<()> {
    check_role(facts)?;
    let slot = slot_name(wanted);
    if primary.slot(&slot)?.is_some() {
        return refuse_slot(&slot);
    }
    if let Some(what) = facts.waits_for(&slot) {
        return refuse(what, NAME_STANDBYS);
    }
    check_free_slot(facts)?;
    // pg_basebackup uses two.
    if facts.free_senders < 2 {
        return refuse(
            format!("the primary has {} free WAL senders, and two are needed", facts.free_senders),
            "raise its max_wal_senders",
        );
    }
    Ok(())
}

/// Checks that the server of --from can feed a mirror, and says so where nobody will see whether it does.
pub(super) fn check_role(facts: &Facts) -> Result<()> {
    if facts.may_replicate {
        if facts.in_recovery {
            tracing::warn!(
                "the server of --from is itself a standby: whether that one follows can't be seen from here, so `{} mirror status` never calls this mirror well, and each of its sets has a problem (exit code 3); name the primary, if this host can reach it",
                program()
            );
        }
        return Ok(());
    }
    refuse(
        "the user of --from may not replicate",
        "ALTER ROLE … REPLICATION, and a line for \"replication\" in the primary's pg_hba.conf",
    )
}

pub(super) fn check_free_slot(facts: &Facts) -> Result<()> {
    if facts.free_slots >= 1 {
        return Ok(());
    }
    refuse("the primary has no free replication slot", "raise its max_replication_slots")
}

fn refuse_slot<T>(slot: &str) -> Result<T> {
    refuse(
        format!("the primary has a slot \"{slot}\" already"),
        "choose another with --slot; where nobody needs it: SELECT pg_drop_replication_slot(…)",
    )
}

/// Where the top dataset will be mounted.
fn directory(home: &Home, wanted: &Create) -> Result<PathBuf> {
    let path = match &wanted.directory {
        Some(path) => std::path::absolute(path).map_err(Error::io("find", path))?,
        None => {
            let Some(parent) = wanted.dataset.parent() else {
                return refuse(
                    format!("\"{}\" is a pool", wanted.dataset),
                    "name a dataset below it, such as POOL/mirrors/NAME",
                );
            };
            if !home.zfs.exists(parent.as_str())? {
                return refuse(
                    format!("there is no dataset \"{parent}\""),
                    format!("make it first: zfs create -p {parent}"),
                );
            }
            let leaf = wanted.dataset.as_str().rsplit('/').next().unwrap_or_default();
            match home.zfs.mountpoint(&parent)? {
                Some(above) => above.join(leaf),
                None => {
                    return refuse(
                        format!("\"{parent}\" isn't mounted anywhere"),
                        "say where with --directory",
                    );
                }
            }
        }
    };
    if path.exists() && !(path.is_dir() && files::is_empty_directory(&path)?) {
        return Err(Refusal::DirectoryNotEmpty { path }.into());
    }
    Ok(path)
}

/// The dataset of this name below a mirror's top dataset.
pub(super) fn below(top: &DatasetName, leaf: &str) -> Result<DatasetName> {
    DatasetName::new(&format!("{top}/{leaf}")).map_err(Error::failed)
}

/// The name of a tablespace's dataset and folder.
pub(super) fn leaf_of(oid: u32, name: &str) -> String {
    let plain = name.chars().all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c));
    if plain { format!("ts-{name}") } else { format!("ts-{oid}") }
}

/// The datasets, the top first. A pure function of the request and the primary's facts.
fn places(
    top: &DatasetName,
    directory: &Path,
    elsewhere: &[(String, DatasetName)],
    facts: &Facts,
) -> Result<Vec<Place>> {
    let place = |kind, dataset, directory| Place { kind, dataset, directory };
    let mut all = vec![
        place(Kind::Top, top.clone(), directory.to_path_buf()),
        place(Kind::Data, below(top, "data")?, directory.join("data")),
        place(Kind::Wal, below(top, "wal")?, directory.join("wal")),
    ];
    let mut used = Vec::new();
    for (oid, name, location) in &facts.tablespaces {
        let asked =
            elsewhere.iter().find(|(which, _)| *which == *name || *which == oid.to_string());
        used.extend(asked.map(|(which, _)| which.clone()));
        let leaf = leaf_of(*oid, name);
        let dataset = match asked {
            Some((_, dataset)) => dataset.clone(),
            None => below(top, &leaf)?,
        };
        let kind = Kind::Tablespace { oid: *oid, name: name.clone(), location: location.clone() };
        all.push(place(kind, dataset, directory.join(&leaf)));
    }
    if let Some((which, _)) = elsewhere.iter().find(|(which, _)| !used.contains(which)) {
        let known: Vec<_> = facts.tablespaces.iter().map(|(_, name, _)| name.as_str()).collect();
        return Err(Error::usage(
            format!("the primary has no tablespace \"{which}\""),
            format!("it has: {}", known.join(", ")),
        ));
    }
    for (at, place) in all.iter().enumerate() {
        if all[..at].iter().any(|other| other.dataset == place.dataset) {
            return Err(Error::usage(
                format!("dataset \"{}\" is named twice", place.dataset),
                "each part needs one of its own",
            ));
        }
    }
    Ok(all)
}

fn check_places(home: &Home, places: &[Place], size: u64) -> Result<()> {
    for place in places {
        home.zfs.mountpoint_for(&place.dataset, &place.directory)?;
        if home.zfs.exists(place.dataset.as_str())? {
            return refuse(
                format!("dataset \"{}\" exists", place.dataset),
                "a mirror makes its own: name one that isn't there",
            );
        }
        let parent = place.dataset.parent();
        let known = |parent: &DatasetName| places.iter().any(|other| other.dataset == *parent);
        match parent {
            Some(parent) if known(&parent) => {}
            Some(parent) if home.zfs.exists(parent.as_str())? => {
                let free = home.zfs.bytes(&parent, "available")?;
                // This doesn't count on compression.
                if free < size.saturating_add(size / 10) {
                    return refuse(
                        format!(
                            "\"{parent}\" has {} left, and the primary holds {}",
                            bytes(free),
                            bytes(size)
                        ),
                        "name a dataset in a larger pool",
                    );
                }
            }
            _ => {
                return refuse(
                    format!("dataset \"{}\" has no parent that exists", place.dataset),
                    "make its parent first: zfs create -p",
                );
            }
        }
    }
    Ok(())
}
