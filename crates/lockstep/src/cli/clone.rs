//! `lockstep clone create|list|destroy`.

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::Done;
use super::output::{self, JSON_VERSION, say};
use super::restore::{TargetArguments, put_problems, say_problems};
use crate::clone::{self, Record};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::names::CloneName;

#[derive(Debug, Args)]
pub(super) struct Clone {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a writable server from a set, on a free port
    Create(Box<Create>),
    /// List the clones
    List,
    /// Stop a clone's server and remove all of the clone
    Destroy {
        /// The clone's name
        name: String,
        /// Also destroy a clone made by another state_dir, or with a pool that isn't imported, if that state_dir or
        /// pool is gone for good
        #[arg(long)]
        lost: bool,
    },
}

#[derive(Debug, Args)]
struct Create {
    /// The clone's name
    name: String,
    /// A set's id, the beginning of one, or `latest`; without this, the newest set before the recovery target
    #[arg(long, value_name = "SET")]
    set: Option<String>,
    /// The server's port; without this, a free one is chosen
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
    #[command(flatten)]
    target: TargetArguments,
}

impl Clone {
    pub(super) fn run(&self, cx: &Context, json: bool) -> Result<Done> {
        match &self.command {
            Command::Create(arguments) => return create(cx, arguments, json),
            Command::List => return list(cx, json),
            Command::Destroy { name, lost } => {
                let name = parse_name(name)?;
                clone::destroy(cx, &name, *lost)?;
                if json {
                    output::print_json(&json!({"version": JSON_VERSION, "destroyed": name}))?;
                } else {
                    say!("clone {name} is gone");
                }
            }
        }
        Ok(Done::Well)
    }
}

fn parse_name(name: &str) -> Result<CloneName> {
    name.parse().map_err(|e: crate::names::NameError| {
        Error::usage(e.to_string(), "choose a short name such as dev or before-migration")
    })
}

fn create(cx: &Context, arguments: &Create, json: bool) -> Result<Done> {
    let (record, problems) = clone::create(
        cx,
        &clone::Create {
            name: parse_name(&arguments.name)?,
            set: arguments.set.clone(),
            port: arguments.port,
            recovery: arguments.target.recovery(false)?,
        },
    )?;
    if json {
        let mut value = as_json(cx, &record);
        put_problems(&mut value, &problems);
        output::print_json(&value)?;
        return Ok(say_problems(&problems));
    }
    crate::steps::end_with_the_reader();
    say!("clone {} of set {} accepts connections:", record.name, record.set);
    say!(
        "  psql -h {} -p {} -U {}",
        crate::process::quote(&output::path(&record.socket_directory)),
        record.port,
        crate::process::quote(&cx.cluster.user)
    );
    say!("when you are done: {}", clone::destroy_command(&record.name, false));
    Ok(say_problems(&problems))
}

/// Lists the clones; those whose records can't be read are named on stderr and cause exit code 3.
fn list(cx: &Context, json: bool) -> Result<Done> {
    let (records, unread) = clone::list(cx)?;
    if json {
        let clones: Vec<_> = records.iter().map(|record| as_json(cx, record)).collect();
        let damaged: Vec<_> =
            unread.iter().map(|(name, e)| json!({"name": name, "error": e.chain()})).collect();
        output::print_json(
            &json!({"version": JSON_VERSION, "clones": clones, "damaged": damaged}),
        )?;
    } else {
        print_table(cx, &records);
    }
    for (_, error) in &unread {
        output::error(error);
    }
    Ok(if unread.is_empty() { Done::Well } else { Done::WithProblems })
}

fn print_table(cx: &Context, records: &[Record]) {
    crate::steps::end_with_the_reader();
    let mut table = output::table(&["clone", "set", "made", "port", "state", "data directory"]);
    for record in records {
        table.add_row([
            record.name.to_string(),
            record.set.to_string(),
            record.created_at.strftime("%Y-%m-%d %H:%M:%SZ").to_string(),
            record.port.to_string(),
            match record.is_running(&cx.zfs) {
                Some(true) => "running".into(),
                Some(false) => "stopped".into(),
                None => "on a suspended pool".into(),
            },
            output::path(&record.data_directory),
        ]);
    }
    output::print_table(&table);
}

fn as_json(cx: &Context, record: &Record) -> Value {
    json!({
        "version": JSON_VERSION, "name": record.name, "set": record.set, "port": record.port,
        "data_directory": record.data_directory.display().to_string(),
        "socket_directory": record.socket_directory.display().to_string(),
        "created_at": record.created_at, "running": record.is_running(&cx.zfs),
        "datasets": record.made.datasets,
    })
}
