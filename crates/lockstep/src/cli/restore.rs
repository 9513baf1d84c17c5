//! `lockstep restore`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use pgfiles::lsn::Lsn;
use serde_json::{Value, json};

use super::Done;
use super::output::{self, JSON_VERSION, say, tell};
use super::text;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::postgres::conninfo::Conninfo;
use crate::postgres::instance;
use crate::postgres::target::{Action, Recovery, Standby, Target, local, parse_time};
use crate::process::quote;
use crate::repository;
use crate::restore::only::{NotRestored, Wanted};
use crate::restore::source::Origin;
use crate::restore::{self, Planned, Problem, Request, Restored, What};
use crate::volume::zfs::DatasetName;
use crate::words::bytes;

#[derive(Debug, Args)]
pub(super) struct Restore {
    /// A set's id, the beginning of one, or `latest`; without this, the newest set before the recovery target
    #[arg(value_name = "SET")]
    set: Option<String>,
    /// The folder to restore the cluster to: DIR/data, DIR/wal, DIR/tablespaces/OID
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
    #[command(flatten)]
    target: TargetArguments,
    #[command(flatten)]
    standby: StandbyArguments,
    /// Put a tablespace elsewhere; may be given several times
    #[arg(long = "tablespace", value_name = "OID_OR_NAME=DIR", value_parser = pair)]
    tablespaces: Vec<(String, PathBuf)>,
    /// Where the data comes from: snapshots (on this host), repository or repository:NAME
    #[arg(long, value_name = "FROM", default_value = "snapshots", value_parser = Origin::parse)]
    from: Origin,
    /// The form of the restored data; without this, clones of snapshots, or files from a repository
    #[arg(long = "as", value_enum)]
    form: Option<As>,
    /// Bring what is at DIR, or in the datasets, to the set's state, writing only what differs; also continues a
    /// restore that was cut off
    #[arg(long)]
    delta: bool,
    /// Restore only the files of this database and PostgreSQL's own; files of others become holes. May be given several
    /// times
    #[arg(long = "only-database", value_name = "NAME")]
    only_databases: Vec<String>,
    /// Restore only the files of this tablespace and the data directory; files of others become holes. May be given
    /// several times
    #[arg(long = "only-tablespace", value_name = "OID_OR_NAME")]
    only_tablespaces: Vec<String>,
    /// The dataset below which clones or received datasets are made; without this, clones are made next to their
    /// origins
    #[arg(long, value_name = "POOL/PATH", value_parser = DatasetName::new)]
    dataset: Option<DatasetName>,
    /// Start the server and wait until it accepts connections
    #[arg(long)]
    start: bool,
    /// The server's port; without this, --start chooses a free one
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
    /// Give the restored cluster a setting other than the original's; may be given several times
    #[arg(long = "setting", value_name = "NAME=VALUE", value_parser = setting)]
    settings: Vec<(String, String)>,
    /// Keep subscriptions running even if the original's data directory is on this host
    #[arg(long, requires = "start")]
    keep_subscriptions: bool,
    /// Let the restored cluster archive its WAL as the original did (a standby always does)
    #[arg(long)]
    keep_archiving: bool,
    /// Check everything and print where it would go; make nothing
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum As {
    /// Writable clones of the snapshots, which take no time and no space
    Clones,
    /// Datasets, received from a repository
    Zfs,
    /// Files on any file system, from a repository
    Files,
}

/// The options that make it a standby.
#[derive(Debug, Args)]
struct StandbyArguments {
    /// Make the restored cluster a standby, which keeps replaying what --primary streams or --restore-command fetches
    #[arg(long, conflicts_with_all = ["target", "target_timeline"])]
    standby: bool,
    /// The server that a standby follows, as a connection string without a password
    #[arg(long, value_name = "CONNINFO", requires = "standby")]
    primary: Option<String>,
    /// The standby's replication slot on --primary
    #[arg(long, value_name = "SLOT", requires = "primary", value_parser = text::slot)]
    slot: Option<String>,
}

impl StandbyArguments {
    fn standby(&self, restore_command: Option<&str>) -> Result<Option<Standby>> {
        if !self.standby {
            return Ok(None);
        }
        if self.primary.is_none() && restore_command.is_none() {
            return Err(Error::usage(
                "--standby with nothing to follow",
                "name its primary with --primary 'host=… user=…', or the way to the archive with --restore-command",
            ));
        }
        // This isn't left to the argument parser: its error would repeat a password in the text.
        let primary = self.primary.as_deref().map(Conninfo::of_primary).transpose();
        let primary = primary.map_err(|reason| {
            Error::usage(
                format!("the connection string of --primary can't be used: {reason}"),
                "write it as keywords, such as 'host=db1 user=replicator passfile=/…', the password in a file that \
                 the server's user can read",
            )
        })?;
        Ok(Some(Standby { primary, slot: self.slot.clone() }))
    }
}

/// The options that say where recovery ends; those of `restore` and `clone create`.
#[derive(Debug, Args)]
pub(super) struct TargetArguments {
    /// Recover to this time, with an offset, with a zone in brackets, or in this host's zone
    #[arg(long, value_name = "T", group = "target")]
    target_time: Option<String>,
    /// Recover to this LSN
    #[arg(long, value_name = "L", group = "target")]
    target_lsn: Option<Lsn>,
    /// Recover to the end of this transaction
    #[arg(long, value_name = "X", group = "target")]
    target_xid: Option<u64>,
    /// Recover to this restore point (made by pg_create_restore_point)
    #[arg(long, value_name = "N", group = "target", value_parser = text::restore_point)]
    target_name: Option<String>,
    /// Stop recovery as soon as the cluster is consistent
    #[arg(long, group = "target")]
    target_immediate: bool,
    /// End before the time, the LSN or the transaction, instead of after it
    #[arg(long, requires = "target")]
    target_exclusive: bool,
    /// Recover along this timeline: a number, `current` or `latest`
    #[arg(long, value_name = "T")]
    target_timeline: Option<String>,
    /// What to do when recovery reaches the target
    #[arg(long, value_enum, default_value_t = Action::Promote)]
    target_action: Action,
    /// A PostgreSQL restore_command that fetches WAL beyond the set's own
    #[arg(long, value_name = "CMD", value_parser = text::command)]
    restore_command: Option<String>,
}

impl TargetArguments {
    pub(super) fn recovery(&self, keep_archiving: bool) -> Result<Recovery> {
        let target = if let Some(text) = &self.target_time {
            Target::Time(parse_time(text)?)
        } else if let Some(lsn) = self.target_lsn {
            Target::Lsn(lsn)
        } else if let Some(xid) = self.target_xid {
            Target::Xid(xid)
        } else if let Some(name) = &self.target_name {
            Target::Name(name.clone())
        } else if self.target_immediate {
            Target::Immediate
        } else {
            Target::End
        };
        if target == Target::End && self.target_action != Action::Promote {
            return Err(Error::usage(
                format!("--target-action {} without a target", self.target_action.as_str()),
                "at the end of WAL PostgreSQL promotes, whatever recovery_target_action says: name a target with \
                 --target-time, --target-lsn, --target-xid, --target-name or --target-immediate",
            ));
        }
        if self.target_exclusive && matches!(target, Target::Name(_) | Target::Immediate) {
            return Err(Error::usage(
                format!("--target-exclusive with {target}"),
                "there is nothing to leave out: it goes with --target-time, --target-lsn and --target-xid",
            ));
        }
        if let Some(text) = &self.target_timeline {
            text::timeline(text)
                .map_err(|hint| Error::usage(format!("\"{text}\" is no timeline"), hint))?;
        }
        Ok(Recovery {
            target,
            exclusive: self.target_exclusive,
            timeline: self.target_timeline.clone(),
            action: self.target_action,
            restore_command: self.restore_command.clone(),
            set_is_shut_down: false,
            set_is_minimal: false,
            keep_archiving,
            standby: None,
        })
    }
}

fn pair(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((which, path)) if !which.is_empty() && path.starts_with('/') => {
            Ok((which.to_owned(), path.into()))
        }
        _ => Err("write OID=/DIR or NAME=/DIR, with an absolute folder".into()),
    }
}

/// Parses a setting; those that have their own option are refused.
fn setting(text: &str) -> Result<(String, String), String> {
    const OPTIONS: [(&str, &str); 8] = [
        ("archive_mode", "--keep-archiving"),
        ("data_directory", "--to"),
        ("max_logical_replication_workers", "--keep-subscriptions"),
        ("port", "--port"),
        ("primary_conninfo", "--primary"),
        ("primary_slot_name", "--slot"),
        ("restore_command", "--restore-command"),
        ("recovery_target", "--target-time and its like"),
    ];
    let is_of_a_name = |byte: u8| byte.is_ascii_alphanumeric() || b"_.".contains(&byte);
    let (name, value) = match text.split_once('=') {
        Some((name, value)) if !name.is_empty() && name.bytes().all(is_of_a_name) => (name, value),
        _ => return Err("write NAME=VALUE, with the name of a setting of PostgreSQL".into()),
    };
    let name = name.to_ascii_lowercase();
    // These aren't settings in postgresql.auto.conf: they are lines that read other files.
    if ["include", "include_dir", "include_if_exists"].contains(&name.as_str()) {
        return Err(format!("{name} is no setting: set what is in that file, each by its name"));
    }
    let is = |known: &str| name == known || known == "recovery_target" && name.starts_with(known);
    match OPTIONS.iter().find(|(known, _)| is(known)) {
        Some((_, option)) => Err(format!("{name} is set by {option}")),
        None => Ok((name, value.to_owned())),
    }
}

/// Prints the problems on stderr.
pub(super) fn say_problems(problems: &[Problem]) -> Done {
    for Problem { what, hint } in problems {
        tell!("problem: {what}");
        tell!("hint: {hint}");
    }
    if problems.is_empty() { Done::Well } else { Done::WithProblems }
}

/// Adds the same to the JSON value.
pub(super) fn put_problems(value: &mut Value, problems: &[Problem]) {
    if !problems.is_empty() {
        let problems = problems.iter().map(|it| json!({"what": it.what, "hint": it.hint}));
        value["problems"] = problems.collect();
    }
}

impl Restore {
    pub(super) fn run(&self, cx: &Context, json: bool) -> Result<Done> {
        let mut recovery = self.target.recovery(self.keep_archiving)?;
        recovery.standby = self.standby.standby(recovery.restore_command.as_deref())?;
        let request = Request {
            set: self.set.clone(),
            what: self.what()?,
            to: self.to.clone(),
            recovery,
            tablespaces: self.tablespaces.clone(),
            start: self.start,
            keep_subscriptions: self.keep_subscriptions,
            settings: self.settings.clone(),
            port: self.port,
            clone: None,
        };
        if self.dry_run {
            return show_plan(cx, &request, json);
        }
        let restored = restore::run(cx, &request).map_err(|error| {
            let Origin::Repository(name) = &self.from else { return error };
            match name.as_ref().or(cx.cluster.repositories.first()) {
                Some(name) => repository::named(cx, name, self.set.as_deref(), error),
                None => error,
            }
        })?;
        if json {
            output::print_json(&as_json(&restored, &request))?;
        } else {
            as_text(cx, &restored, &request);
        }
        Ok(say_problems(&restored.problems))
    }

    /// What is restored.
    fn what(&self) -> Result<What> {
        let only = Wanted {
            databases: self.only_databases.clone(),
            tablespaces: self.only_tablespaces.clone(),
        };
        let form = self.form.unwrap_or(match self.from {
            Origin::Snapshots => As::Clones,
            Origin::Repository(_) if self.dataset.is_some() => As::Zfs,
            Origin::Repository(_) => As::Files,
        });
        let repository = match &self.from {
            Origin::Snapshots if self.delta => {
                return Err(Error::usage(
                    "--delta needs --from repository",
                    "clones of this host's snapshots are made from scratch in moments: leave out --delta",
                ));
            }
            Origin::Snapshots if !only.is_all() => {
                return Err(Error::usage(
                    "a clone always has the whole snapshot",
                    "restore single databases or tablespaces with --from repository",
                ));
            }
            Origin::Snapshots if form != As::Clones => {
                return Err(Error::usage(
                    "snapshots of this host become clones",
                    "leave out --as, or restore --from repository",
                ));
            }
            Origin::Snapshots => return Ok(What::Clones { below: self.dataset.clone() }),
            Origin::Repository(_) if form == As::Clones => {
                return Err(Error::usage(
                    "sets from a repository can't be restored as clones",
                    "write --as zfs or --as files",
                ));
            }
            Origin::Repository(name) => name.clone(),
        };
        if form == As::Files {
            if let Some(dataset) = &self.dataset {
                return Err(Error::usage(
                    format!("--as files makes no datasets, and --dataset names \"{dataset}\""),
                    "for files on a dataset that is there, leave out --dataset and name a folder on it with --to; for new datasets write --as zfs",
                ));
            }
            return Ok(What::Files { repository, delta: self.delta, only });
        }
        let parent = self.dataset.clone().ok_or_else(|| {
            Error::usage(
                "--as zfs needs a place for the datasets",
                "name one with --dataset POOL/PATH: its children become data, wal and tablespace-OID",
            )
        })?;
        if self.delta && !only.is_all() {
            return Err(Error::usage(
                "a dataset that has everything can't be brought to a part of it",
                "leave out --delta, or restore --as files",
            ));
        }
        Ok(What::Datasets { repository, parent, delta: self.delta, only })
    }
}

fn show_plan(cx: &Context, request: &Request, json: bool) -> Result<Done> {
    let Planned { set, placement, goes_on, there } = restore::plan(cx, request)?;
    if json {
        let clones: Vec<_> = placement
            .volumes
            .iter()
            .map(|v| json!({"origin": v.origin.to_string(), "dataset": v.dataset, "mountpoint": v.mountpoint.display().to_string()}))
            .collect();
        let (time, local) = target_time(&request.recovery.target);
        output::print_json(&json!({
            "version": JSON_VERSION, "set": set.set, "clones": clones,
            "target_time": time, "target_time_local": local,
            "goes_on": goes_on, "there": there,
        }))?;
        return Ok(Done::Well);
    }
    if let (Some(time), local) = target_time(&request.recovery.target) {
        say!("recovery would end at {}", both(time, local));
    }
    if let Some(older) = goes_on {
        say!("it would go on with what an unfinished restore of set {older} has received");
    }
    say!("set {} would become:", set.set);
    let mut table = output::table(&["copy of", "dataset", "at"]);
    for volume in &placement.volumes {
        table.add_row([
            volume.origin.to_string(),
            volume.dataset.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string),
            output::path(&volume.mountpoint),
        ]);
    }
    output::print_table(&table);
    for dataset in there {
        say!("dataset {dataset} is there, and would be brought to the set's state");
    }
    Ok(Done::Well)
}

/// A target time as it was understood: in UTC, and in this host's time zone where that is known.
fn target_time(target: &Target) -> (Option<jiff::Timestamp>, Option<String>) {
    match target {
        Target::Time(time) => (Some(*time), local(*time)),
        _ => (None, None),
    }
}

/// The same for people.
fn both(time: jiff::Timestamp, local: Option<String>) -> String {
    let here = local.map(|local| format!(", here {local}")).unwrap_or_default();
    format!("{time}{here}")
}

fn as_json(restored: &Restored, request: &Request) -> Value {
    let (time, local) = target_time(&request.recovery.target);
    let placement = &restored.placement;
    let clones: Vec<_> =
        placement.volumes.iter().filter_map(|volume| volume.dataset.as_ref()).collect();
    let mut value = json!({
        "version": JSON_VERSION, "set": restored.set.set, "strategy": restored.set.strategy,
        "directory": placement.directory.display().to_string(),
        "data_directory": placement.data.display().to_string(),
        "datasets": clones, "port": restored.port, "started": restored.started,
        "socket_directory": restored.socket_directory.as_ref().map(|path| path.display().to_string()),
        "recovery": restored.recovery_log, "subscriptions_held": restored.holds_subscriptions,
        "standby": request.recovery.standby.is_some(),
        "target_time": time, "target_time_local": local,
    });
    let rest = &restored.not_restored;
    if *rest != NotRestored::default() {
        value["not_restored"] =
            json!({"databases": rest.databases, "tablespaces": rest.tablespaces});
    }
    put_problems(&mut value, &restored.problems);
    if let Some(written) = &restored.written {
        value["files"] = written.files.into();
        value["bytes_written"] = written.bytes_written.into();
        value["bytes_read"] = written.bytes_read.into();
        value["removed"] = written.removed.into();
    }
    value
}

fn as_text(cx: &Context, restored: &Restored, request: &Request) {
    crate::steps::end_with_the_reader();
    let placement = &restored.placement;
    say!("set {} is restored", restored.set.set);
    if let (Some(time), local) = target_time(&request.recovery.target) {
        say!("  target          {}", both(time, local));
    }
    say!("  data directory  {}", output::path(&placement.data));
    for volume in &placement.volumes {
        let at = output::path(&volume.mountpoint);
        match &volume.dataset {
            Some(dataset) => say!("  dataset         {dataset} at {at}"),
            None => say!("  folder          {at}"),
        }
        for apart in &volume.apart {
            say!("  folder          {}", output::path(&apart.folder));
        }
    }
    if let Some(written) = &restored.written {
        say!("  files           {}, {} written", written.files, bytes(written.bytes_written));
    }
    left_out(&restored.not_restored);
    if restored.holds_subscriptions {
        say!(
            "  max_logical_replication_workers is 0: the original's data directory is on this host, and"
        );
        say!("  subscriptions would take its changes. To continue them, run this and restart:");
        say!("    ALTER SYSTEM RESET max_logical_replication_workers");
    }
    if let Some(standby) = &request.recovery.standby {
        match &standby.primary {
            Some(primary) => say!("  a standby, of {}", primary.to_string().escape_debug()),
            None => say!("  a standby, of what its restore_command fetches"),
        }
    }
    match (restored.started, restored.port) {
        (true, Some(port)) => {
            let host = restored.socket_directory.as_deref().map(output::path).unwrap_or_default();
            say!(
                "  it accepts connections: psql -h {} -p {port} -U {}",
                quote(&host),
                quote(&cx.cluster.user)
            );
        }
        _ if request.start && !restored.problems.is_empty() => {
            say!("  it isn't running (see below): {}", start_command(cx, restored, &[]));
        }
        _ if request.start => {
            say!(
                "  it was shut down at its target, and so is each start that finds recovery.signal. To promote it there:"
            );
            say!("  {}", start_command(cx, restored, &["-c recovery_target_action=promote"]));
        }
        _ => {
            say!("  it isn't running: {}", start_command(cx, restored, &[]));
            say!(
                "  On the host of the original cluster use `restore --start` instead: a replayed CREATE"
            );
            say!("  TABLESPACE would write to the original's folder.");
        }
    }
}

/// Reports what exists in the restored cluster by name only.
fn left_out(rest: &NotRestored) {
    let quoted = |names: &[String]| {
        let names = names.iter().map(|name| format!("\"{}\"", name.escape_debug()));
        names.collect::<Vec<_>>().join(", ")
    };
    if !rest.databases.is_empty() {
        say!("  not restored: {}: DROP DATABASE them", quoted(&rest.databases));
    }
    if !rest.tablespaces.is_empty() {
        say!(
            "  not restored: what lies in tablespace {}: drop its tables",
            quoted(&rest.tablespaces)
        );
    }
}

/// The command that starts the restored server by hand: as which user, with which version's program. `options` are for
/// this start alone.
fn start_command(cx: &Context, restored: &Restored, options: &[&str]) -> String {
    let bin_dir = cx.cluster.bin_dir.as_deref();
    let user = cx.os_user().ok().flatten();
    let program = instance::bin_dir_of(bin_dir, restored.set.postgres.major, user)
        .map_or_else(|_| "pg_ctl".into(), |folder| output::path(&folder.join("pg_ctl")));
    let log = restored.placement.directory.join("log/server.log");
    let options: String = options.iter().map(|option| format!(" -o {}", quote(option))).collect();
    let start = format!(
        "{} -D {} -l {}{options} start",
        quote(&program),
        quote(&output::path(&restored.placement.data)),
        quote(&output::path(&log))
    );
    match cx.os_user() {
        Ok(Some(_)) => format!("runuser -u {} -- {start}", quote(&cx.cluster.os_user)),
        _ => start,
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        restore: Restore,
    }

    #[test]
    fn a_dataset_is_for_what_becomes_datasets() {
        let what = |form: &[&str]| {
            let words = "restore latest --to /r --from repository --dataset tank/x".split(' ');
            Line::parse_from(words.chain(form.iter().copied())).restore.what()
        };
        assert!(matches!(what(&[]), Ok(What::Datasets { .. })));
        assert!(matches!(what(&["--as", "zfs"]), Ok(What::Datasets { .. })));
        let refused = what(&["--as", "files"]).unwrap_err();
        assert!(refused.exit_code() == 2 && refused.to_string().contains("tank/x"), "{refused}");
    }
}
