//! `lockstep mirror create|list|status|start|stop|destroy|recreate`.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::Done;
use super::output::{self, JSON_VERSION, say, tell};
use super::text;
use crate::config::Config;
use crate::context::{lockstep_of, program};
use crate::error::{Error, Result};
use crate::mirror::create::{self, Create};
use crate::mirror::record::{Kind, Phase};
use crate::mirror::recreate::{self, Asked, How};
use crate::mirror::status::{self, Status};
use crate::mirror::{Home, Record, destroy, serve};
use crate::names::ClusterName;
use crate::process::quote;
use crate::volume::zfs::DatasetName;
use crate::words::bytes;

#[derive(Debug, Args)]
pub(super) struct Mirror {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a standby on ZFS of a primary that is reached over the network, and start it
    Create(Box<CreateArguments>),
    /// List the mirrors
    List,
    /// Show how far mirrors lag behind, and why one doesn't advance
    Status {
        /// The mirror; without this, all of them
        name: Option<String>,
    },
    /// Start a mirror's server
    Start {
        /// The mirror
        name: String,
    },
    /// Stop a mirror's server
    Stop {
        /// The mirror
        name: String,
    },
    /// Remove a mirror: its server, its slot on the primary, its datasets
    Destroy {
        /// The mirror
        name: String,
        /// Also remove the backup sets that were taken of it
        #[arg(long)]
        with_sets: bool,
        /// Also with a pool that isn't imported, if that pool is gone for good
        #[arg(long)]
        lost: bool,
    },
    /// Synchronize a mirror's data with the primary again; its old sets stay
    Recreate {
        /// The mirror
        name: String,
        /// The server that is the primary now, as a connection string without a password; the mirror follows it from now on
        #[arg(long, value_name = "CONNINFO")]
        from: Option<String>,
        /// A file with that one's password in its first line; without this, the file that the mirror has
        #[arg(long, value_name = "FILE", requires = "from")]
        password_file: Option<PathBuf>,
        /// Use a new base backup even where pg_rewind would be enough
        #[arg(long)]
        base_backup: bool,
        /// Give up what was written to the mirror since it was promoted
        #[arg(long)]
        discard_writes: bool,
    },
}

#[derive(Debug, Args)]
struct CreateArguments {
    /// The mirror's name, which is also its cluster's name in the configuration
    name: String,
    /// The primary, as a connection string without a password
    #[arg(long, value_name = "CONNINFO")]
    from: String,
    /// The dataset to make; the datasets of the cluster's parts are made below it
    #[arg(long, value_name = "POOL/PATH")]
    dataset: String,
    /// Put a tablespace's dataset elsewhere; may be given several times
    #[arg(long, value_name = "NAME_OR_OID=POOL/PATH")]
    tablespace: Vec<String>,
    /// Where the dataset is mounted; without this, below its parent's mountpoint
    #[arg(long, value_name = "DIR")]
    directory: Option<PathBuf>,
    /// The server's port; without this, a free one is chosen
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
    /// A file with the primary's password in its first line
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// The name of the replication slot to make on the primary
    #[arg(long, value_name = "SLOT", value_parser = text::slot)]
    slot: Option<String>,
    /// The restore_command that reads the primary's WAL archive, used when streaming breaks
    #[arg(long, value_name = "CMD", value_parser = text::command)]
    restore_command: Option<String>,
    /// A PostgreSQL setting of the mirror's server; may be given several times
    #[arg(long, value_name = "NAME=VALUE")]
    setting: Vec<String>,
    /// The OS user that owns the files and runs the server
    #[arg(long, value_name = "USER", default_value = "postgres")]
    os_user: String,
    /// The folder with the PostgreSQL programs of the primary's version
    #[arg(long, value_name = "DIR")]
    bin_dir: Option<PathBuf>,
    /// Ship its sets to this repository of the configuration; may be given several times
    #[arg(long = "repository", value_name = "NAME")]
    repositories: Vec<String>,
    /// Check everything and print what would be made; make nothing
    #[arg(long)]
    dry_run: bool,
}

impl Mirror {
    pub(super) fn run(&self, config: &Config, file: &Path, json: bool) -> Result<Done> {
        let home = Home::open(config, file)?;
        match &self.command {
            Command::Create(arguments) => create(&home, config, arguments, json),
            Command::List => list(&home, json),
            Command::Status { name } => {
                let name = name.as_deref().map(parse_name).transpose()?;
                show_status(&status::look(&home, name.as_ref())?, json)
            }
            Command::Start { name } => {
                let (name, _lock) = locked(&home, name, "mirror start")?;
                let mut record = ready(&home, &name)?;
                // A unit that is enabled right after `mirror create` starts it once more.
                if serve::is_running(&record)? {
                    record.check_own(&home.zfs)?;
                    // Its server reads that whenever it connects: a new password needs no restart.
                    record.write_passfile()?;
                    return say(json, "started", &name, "is running already");
                }
                serve::start(&home, &mut record)?;
                say(json, "started", &name, "takes read-only connections")
            }
            Command::Stop { name } => {
                let (name, _lock) = locked(&home, name, "mirror stop")?;
                let record = home.find(&name)?;
                record.check_answers(&home.zfs)?;
                if serve::is_running(&record)? {
                    record.check_own(&home.zfs)?;
                }
                serve::stop(&record)?;
                say(json, "stopped", &name, "is stopped; its slot keeps WAL on the primary")
            }
            Command::Destroy { name, with_sets, lost } => {
                let name = parse_name(name)?;
                // The table is removed together with the mirror.
                let table = config.clusters.get(name.as_str());
                let stored = table.map(|table| table.repositories.join(", ")).unwrap_or_default();
                let also = destroy::Also { with_sets: *with_sets, is_lost: *lost };
                let gone = destroy::run(&home, config, &name, also)?;
                if !stored.is_empty() {
                    tell!(
                        "what it shipped to {stored} stays there, below clusters/{name}: a cluster of this name finds it again"
                    );
                }
                if let Some(statement) = &gone.left_on_primary {
                    tell!("the primary can't be reached; run there: {statement}");
                }
                say(json, "destroyed", &name, "is gone")?;
                Ok(if gone.left_on_primary.is_some() { Done::WithProblems } else { Done::Well })
            }
            Command::Recreate { name, from, password_file, base_backup, discard_writes } => {
                let name = parse_name(name)?;
                let asked = Asked {
                    from: from.clone(),
                    password_file: password_file.clone(),
                    base_backup: *base_backup,
                    discard_writes: *discard_writes,
                };
                let how = match recreate::run(&home, config, &name, &asked)? {
                    How::Rewind => "follows again, after pg_rewind",
                    How::BaseBackup => "follows again, from a fresh base backup",
                };
                say(json, "recreated", &name, how)
            }
        }
    }
}

fn parse_name(name: &str) -> Result<ClusterName> {
    name.parse().map_err(|e: crate::names::NameError| {
        Error::usage(e.to_string(), "choose a short name such as main or billing")
    })
}

fn locked(home: &Home, name: &str, command: &str) -> Result<(ClusterName, crate::lock::Lock)> {
    let name = parse_name(name)?;
    home.find(&name)?;
    let lock = home.lock(&name, command)?;
    Ok((name, lock))
}

fn ready(home: &Home, name: &ClusterName) -> Result<Record> {
    let record = home.find(name)?;
    record.check_answers(&home.zfs)?;
    let hint = match record.phase {
        Phase::Ready => return Ok(record),
        Phase::Recreating => format!("{} mirror recreate {name}", program()),
        Phase::Making | Phase::Destroying => format!("{} mirror destroy {name}", program()),
    };
    Err(Error::usage(format!("mirror \"{name}\" isn't complete"), hint))
}

fn say(json: bool, done: &str, name: &ClusterName, words: &str) -> Result<Done> {
    if json {
        output::print_json(&json!({"version": JSON_VERSION, done: name}))?;
    } else {
        crate::steps::end_with_the_reader();
        say!("mirror {name} {words}");
    }
    Ok(Done::Well)
}

/// Splits `LEFT=RIGHT`; both sides must be there.
fn pair<'a>(text: &'a str, option: &str) -> Result<(&'a str, &'a str)> {
    match text.split_once('=') {
        Some((left, right)) if !left.is_empty() => Ok((left, right)),
        _ => Err(Error::usage(format!("{option} \"{text}\" has no \"=\""), "see --help")),
    }
}

fn dataset(text: &str) -> Result<DatasetName> {
    DatasetName::new(text).map_err(|why| Error::usage(why, "write it as POOL/PATH"))
}

impl CreateArguments {
    fn wanted(&self) -> Result<Create> {
        let tablespaces = self.tablespace.iter().map(|text| {
            let (which, to) = pair(text, "--tablespace")?;
            Ok((which.to_owned(), dataset(to)?))
        });
        let settings = self.setting.iter().map(|text| {
            pair(text, "--setting").map(|(name, value)| (name.to_owned(), value.to_owned()))
        });
        Ok(Create {
            name: parse_name(&self.name)?,
            from: self.from.clone(),
            dataset: dataset(&self.dataset)?,
            tablespaces: tablespaces.collect::<Result<_>>()?,
            directory: self.directory.clone(),
            port: self.port,
            password_file: self.password_file.clone(),
            slot: self.slot.clone(),
            restore_command: self.restore_command.clone(),
            settings: settings.collect::<Result<_>>()?,
            os_user: self.os_user.clone(),
            bin_dir: self.bin_dir.clone(),
            repositories: self.repositories.clone(),
        })
    }
}

fn create(home: &Home, config: &Config, arguments: &CreateArguments, json: bool) -> Result<Done> {
    let wanted = arguments.wanted()?;
    let record = match arguments.dry_run {
        true => create::plan(home, config, &wanted)?,
        false => create::run(home, &wanted)?,
    };
    if let (1, None, Some((only, _))) =
        (config.clusters.len(), &config.default_cluster, config.clusters.first_key_value())
    {
        tracing::warn!(
            "the configuration has two clusters {}: commands without --cluster (cron, timers, scripts) end with exit code 2 until they say `--cluster {only}`, or the configuration has default_cluster = \"{only}\"",
            if arguments.dry_run { "then" } else { "now" }
        );
    }
    if json {
        output::print_json(&as_json(&record))?;
        return Ok(Done::Well);
    }
    tell_made(&record, arguments.dry_run);
    Ok(Done::Well)
}

/// Prints what was made, or would be.
fn tell_made(record: &Record, dry_run: bool) {
    crate::steps::end_with_the_reader();
    if dry_run {
        say!("mirror {} would be made:", record.name);
    } else {
        say!("mirror {} follows its primary, and is a cluster of the configuration:", record.name);
    }
    for place in &record.places {
        let what = match &place.kind {
            Kind::Top => "all of it".to_owned(),
            Kind::Data => "data directory".into(),
            Kind::Wal => "pg_wal".into(),
            Kind::Tablespace { name, location, .. } => format!("tablespace {name} ({location})"),
        };
        say!("  {:<40} {} at {}", place.dataset.to_string(), what, output::path(&place.directory));
    }
    say!("  slot {} on the primary, port {}", record.slot, record.port);
    if !dry_run {
        say!("take sets of it with: {} backup", lockstep_of(record.name.as_str()));
        if record.repositories.is_empty() {
            say!("they stay on this host: its repositories and retention go into");
        } else {
            say!(
                "they are shipped to:  {}; its retention goes into",
                record.repositories.join(", ")
            );
        }
        say!("                      {}", output::path(&record.registration));
        say!(
            "look into it with:    psql -h {} -p {} -U {}",
            quote(&output::path(&record.socket_directory)),
            record.port,
            quote(&record.superuser)
        );
    }
}

fn as_json(record: &Record) -> Value {
    let places: Vec<_> = record
        .places
        .iter()
        .map(|place| json!({"dataset": place.dataset, "directory": place.directory.display().to_string(), "holds": place.kind}))
        .collect();
    json!({
        "version": JSON_VERSION, "name": record.name, "primary": record.primary, "slot": record.slot,
        "data_directory": record.data().display().to_string(),
        "socket_directory": record.socket_directory.display().to_string(), "port": record.port,
        "system_identifier": record.system_identifier, "datasets": places,
        "created_at": record.created_at, "repositories": record.repositories, "registration": record.registration.display().to_string(),
    })
}

fn list(home: &Home, json: bool) -> Result<Done> {
    let records = home.records()?;
    if json {
        let all: Vec<_> = records.iter().map(as_json).collect();
        output::print_json(&json!({"version": JSON_VERSION, "mirrors": all}))?;
        return Ok(Done::Well);
    }
    crate::steps::end_with_the_reader();
    let mut table = output::table(&["mirror", "primary", "dataset", "port", "slot", "made"]);
    for record in &records {
        let top = record.places.iter().find(|place| place.kind == Kind::Top);
        table.add_row([
            record.name.to_string(),
            record.primary.clone(),
            top.map_or_else(String::new, |place| place.dataset.to_string()),
            record.port.to_string(),
            record.slot.clone(),
            record.created_at.strftime("%Y-%m-%d %H:%M:%SZ").to_string(),
        ]);
    }
    output::print_table(&table);
    Ok(Done::Well)
}

fn show_status(all: &[Status], json: bool) -> Result<Done> {
    if json {
        let mirrors: Vec<_> = all.iter().map(status_json).collect();
        output::print_json(&json!({"version": JSON_VERSION, "mirrors": mirrors}))?;
    } else {
        crate::steps::end_with_the_reader();
        let mut table = output::table(&["mirror", "lag", "seconds", "replayed", "slot", "state"]);
        for status in all {
            let own = status.seen.own.as_ref().ok();
            let slot = status.seen.primary.as_ref().ok().map(|theirs| match &theirs.slot {
                None => "gone".to_owned(),
                Some(slot) => slot.wal_status.clone().unwrap_or_else(|| "unused".into()),
            });
            table.add_row([
                status.record.name.to_string(),
                status.lag_bytes.map_or_else(|| "?".into(), bytes),
                status.lag_seconds.map_or_else(|| "?".into(), |seconds| format!("{seconds:.1}")),
                own.and_then(|own| own.replayed.clone()).unwrap_or_else(|| "?".into()),
                slot.unwrap_or_else(|| "?".into()),
                status.verdict.words(),
            ]);
        }
        output::print_table(&table);
        for status in all {
            if let Some(hint) = status.hint() {
                tell!("hint: {}: {hint}", status.record.name);
            }
        }
    }
    let well = all.iter().all(|status| status.verdict.is_well());
    Ok(if well { Done::Well } else { Done::WithProblems })
}

fn status_json(status: &Status) -> Value {
    let own = status.seen.own.as_ref().ok();
    let theirs = status.seen.primary.as_ref().ok();
    let slot = theirs.and_then(|theirs| theirs.slot.as_ref()).map(|slot| {
        json!({
            "active": slot.active, "wal_status": slot.wal_status, "restart_lsn": slot.restart_lsn,
            "kept_bytes": slot.kept_bytes, "safe_bytes": slot.safe_bytes,
        })
    });
    json!({
        "name": status.record.name, "running": status.seen.running,
        "state": status.verdict, "words": status.verdict.words(),
        "hint": status.hint(), "well": status.verdict.is_well(),
        "streams": own.map(|own| own.streams), "timeline": own.map(|own| own.timeline),
        "received_lsn": own.and_then(|own| own.received.clone()),
        "replayed_lsn": own.and_then(|own| own.replayed.clone()),
        "primary_lsn": theirs.map(|theirs| theirs.current.clone()),
        "lag_bytes": status.lag_bytes, "lag_seconds": status.lag_seconds, "slot": slot,
    })
}
