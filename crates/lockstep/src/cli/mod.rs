//! The command line: arguments, dispatch, and how results and errors are shown.
//!
//! stdout is data, stderr is for people. The spellings are a contract: scripts are written against
//! them.

mod adopt;
mod backup;
mod check;
mod clone;
mod list;
mod look;
mod mirror;
mod output;
mod plan;
mod prune;
mod repo;
mod restore;
mod ship;
mod stream;
mod text;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use tracing_subscriber::EnvFilter;

use crate::config::{Config, DEFAULT_PATH};
use crate::context::Context;
use crate::error::{Error, Result};

use crate::{context, isolation, progress, steps};

/// Consistent backups of a PostgreSQL cluster on several ZFS datasets, proven to restore.
#[derive(Debug, Parser)]
#[command(name = "lockstep", version, max_term_width = 100)]
struct Arguments {
    /// The configuration file [default: $LOCKSTEP_CONFIG, or /etc/lockstep/lockstep.toml]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The cluster to work on; needed if the configuration has several and no default_cluster
    #[arg(long, global = true, value_name = "NAME")]
    cluster: Option<String>,
    /// Print JSON on stdout
    #[arg(long, global = true)]
    json: bool,
    /// Log more on stderr; given twice, also every program that is run
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show which part of the cluster is on which dataset and how a backup would be taken; change nothing
    Plan(plan::Plan),
    /// Take a backup set
    Backup(backup::Backup),
    /// Ship a set to repositories, if it was taken with --no-ship or its shipping was interrupted
    Ship(ship::Ship),
    /// List the backup sets
    List(list::List),
    /// Show a set's certificate: snapshots, LSNs, WAL, and why it is consistent
    Show(list::Show),
    /// Restore a cluster from a set
    Restore(Box<restore::Restore>),
    /// List the files of a set, in its snapshots or in a repository
    Ls(look::Ls),
    /// Print a file of a set, from its snapshots or a repository
    Cat(look::Cat),
    /// Create, list and destroy throwaway writable servers made from sets
    Clone(clone::Clone),
    /// Remove the sets that no retention policy keeps
    Prune(prune::Prune),
    /// Say whether backups of this cluster work
    Check(check::Check),
    /// After state_dir was lost, recover the records of sets whose snapshots are on this host from a repository
    Adopt(adopt::Adopt),
    /// Manage ZFS standbys of primaries that aren't on ZFS
    Mirror(mirror::Mirror),
    /// Create, list, check and compact repositories, and manage their keys
    Repo(repo::Repo),
    /// Inspect and fold ZFS send streams; needs no configuration
    Stream(stream::StreamArgs),
    /// Print the completion script for a shell; needs no configuration
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Run a server in a mount namespace (used by Lockstep itself)
    #[command(name = isolation::SUBCOMMAND, hide = true)]
    InternalServer,
    /// Rename pg_control in a mount namespace (used by Lockstep itself)
    #[command(name = crate::restore::HOLD, hide = true)]
    InternalHold { dataset: String, data: PathBuf },
}

/// How a command that did not fail ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Done {
    /// Exit code 0.
    Well,
    /// Exit code 3: finished with problems.
    WithProblems,
}

/// Runs the program.
#[must_use]
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    start_log(arguments.verbose);
    let done = run(&arguments);
    match done.and_then(|done| output::all_said().map(|()| done)) {
        Ok(Done::Well) => ExitCode::SUCCESS,
        Ok(Done::WithProblems) => ExitCode::from(3),
        Err(error) => {
            output::error(&error);
            ExitCode::from(error.exit_code())
        }
    }
}

impl Arguments {
    /// Returns where the configuration is. A unit's or a container's variable may be set to nothing.
    fn configuration(&self) -> PathBuf {
        let set = || std::env::var_os("LOCKSTEP_CONFIG").filter(|file| !file.is_empty());
        let named = self.config.clone().or_else(|| set().map(PathBuf::from));
        named.unwrap_or_else(|| DEFAULT_PATH.into())
    }
}

fn run(arguments: &Arguments) -> Result<Done> {
    if matches!(arguments.command, Command::InternalServer) {
        return match isolation::run_order(std::io::stdin().lock()) {
            Err(error) => Err(error),
            Ok(never) => match never {},
        };
    }
    if let Command::InternalHold { dataset, data } = &arguments.command {
        return crate::restore::hold(dataset, data).map(|()| Done::Well);
    }
    if let Command::Stream(command) = &arguments.command {
        // This comes before signals are caught: a stream is only read, so Ctrl-C may end that anywhere.
        steps::end_with_the_reader();
        return stream::run(command, arguments.json)
            .map(|()| Done::Well)
            .map_err(crate::repository::ingest::of_stream);
    }
    if let Command::Completions { shell } = arguments.command {
        steps::end_with_the_reader();
        let mut text = Vec::new();
        clap_complete::generate(shell, &mut Arguments::command(), "lockstep", &mut text);
        output::line(format_args!("{}", String::from_utf8_lossy(&text).trim_end()));
        return Ok(Done::Well);
    }
    steps::catch_signals()?;
    let file = arguments.configuration();
    let config = Config::read(&file)?;
    if arguments.config.is_some() {
        // A command that is printed is typed elsewhere. Where it can't be made absolute, what was typed is best.
        let absolute = std::path::absolute(&file).unwrap_or_else(|_| file.clone());
        context::name_configuration(&absolute);
    }
    if let Command::Mirror(command) = &arguments.command {
        return command.run(&config, &file, arguments.json);
    }
    let cx = Context::open(&config, arguments.cluster.as_deref())?;
    cx.name_in_commands();
    let json = arguments.json;
    if json {
        progress::silence();
    }
    if matches!(
        arguments.command,
        Command::Plan(_) | Command::List(_) | Command::Show(_) | Command::Check(_)
    ) {
        steps::end_with_the_reader();
    }
    match &arguments.command {
        Command::Plan(command) => command.run(&cx, json),
        Command::Backup(command) => command.run(&cx, json),
        Command::Ship(command) => command.run(&cx, json),
        Command::List(command) => command.run(&cx, json),
        Command::Show(command) => command.run(&cx, json),
        Command::Restore(command) => command.run(&cx, json),
        Command::Ls(command) => command.run(&cx, json),
        Command::Cat(command) => command.run(&cx),
        Command::Clone(command) => command.run(&cx, json),
        Command::Prune(command) => command.run(&cx, json),
        Command::Check(command) => command.run(&cx, json),
        Command::Adopt(command) => command.run(&cx, json),
        Command::Repo(command) => command.run(&cx, json),
        Command::Mirror(_)
        | Command::Stream(_)
        | Command::Completions { .. }
        | Command::InternalServer
        | Command::InternalHold { .. } => Err(Error::failed("not reached")),
    }
}

fn start_log(verbose: u8) {
    let level = match verbose {
        0 => "lockstep=info,warn",
        1 => "lockstep=debug,info",
        _ => "lockstep=trace,debug",
    };
    let filter = EnvFilter::try_from_env("LOCKSTEP_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false)
        // A terminal that has gone away must not stop the undoing of what was begun.
        .log_internal_errors(false)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()));
    if verbose == 0 { log.without_time().init() } else { log.init() }
}

#[cfg(test)]
mod docs_tests;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn the_documented_spellings_are_taken() {
        for line in [
            "lockstep plan",
            "lockstep --config /x --cluster main --json backup --strategy ordered --label nightly --no-ship",
            "lockstep ship latest --repository offsite",
            "lockstep prune --local --repository offsite --set 20261124T041030Z-u1h6",
            "lockstep list --json",
            "lockstep list --from repository:offsite",
            "lockstep restore latest --to /r --from repository --as zfs --dataset tank/x",
            "lockstep restore latest --to /r --from repository:offsite --as files --delta --only-database a --only-database b",
            "lockstep show latest",
            "lockstep restore latest --to /r --target-time 2026-11-23T00:00:00Z --target-action pause",
            "lockstep restore 2026 --to /r --target-lsn 0/1 --target-timeline latest --restore-command x",
            "lockstep restore latest --to /r --from snapshots --as clones --dataset tank/x --start --port 5500",
            "lockstep restore latest --to /r --tablespace fast=/f --tablespace 16401=/g --target-immediate",
            "lockstep restore latest --to /r --from repository --as files --delta",
            "lockstep restore latest --to /r --start --setting listen_addresses=localhost --setting work_mem=1MB",
            "lockstep restore latest --to /r --from repository --only-database a --only-database b --only-tablespace 16400",
            "lockstep ls latest",
            "lockstep ls 2026 data/base -R --from repository:offsite --json",
            "lockstep cat latest:data/postgresql.conf --from repository",
            "lockstep clone create dev --set latest --port 5501 --target-name before-the-drop",
            "lockstep clone list",
            "lockstep clone destroy dev",
            "lockstep prune --dry-run --json",
            "lockstep prune --local --repository offsite --max-merge-bytes 1000000",
            "lockstep check",
            "lockstep adopt --dry-run",
            "lockstep adopt 20261124 --repository offsite",
            "lockstep mirror create main --from host=db1 --dataset tank/main --tablespace fast=ssd/fast --password-file /p",
            "lockstep mirror create main --from host=db1 --dataset tank/main --port 5501 --slot s --setting a=b --dry-run",
            "lockstep mirror create main --from host=db1 --dataset tank/main --repository offsite --repository near",
            "lockstep mirror list",
            "lockstep mirror status",
            "lockstep mirror status main --json",
            "lockstep mirror start main",
            "lockstep mirror stop main",
            "lockstep mirror destroy main --with-sets",
            "lockstep mirror recreate main --base-backup",
            "lockstep mirror recreate main --discard-writes",
            "lockstep mirror recreate main --from host=db2 --password-file /p",
            "lockstep repo init",
            "lockstep repo init offsite --json",
            "lockstep repo list",
            "lockstep repo check --read-data",
            "lockstep repo check offsite --read-data=5 --repair --json",
            "lockstep repo compact offsite --dry-run --max-bytes 10GiB --live 40",
            "lockstep repo key list offsite",
            "lockstep repo key add offsite --new-key-file /k --label new",
            "lockstep repo key add --new-passphrase-file /p",
            "lockstep repo key remove 0123abcd offsite",
            "lockstep stream stat",
            "lockstep stream tree full.zst incremental.zst",
            "lockstep --json stream stat -",
        ] {
            if let Err(error) = Arguments::try_parse_from(line.split(' ')) {
                panic!("{line}: {error}");
            }
        }
    }

    /// An empty value comes from a script's variable that isn't set. Options that refuse empty text by themselves
    /// aren't tested here: sets, clusters and repositories, because none has an empty name.
    #[test]
    fn an_empty_value_is_refused() {
        let standby = ["--standby", "--primary", "host=a"];
        for option in [
            "--to",
            "--from",
            "--as",
            "--dataset",
            "--tablespace",
            "--port",
            "--target-lsn",
            "--target-xid",
            "--target-name",
            "--target-action",
            "--restore-command",
            "--slot",
        ] {
            let mut line = vec!["lockstep", "restore", "latest"];
            if option != "--to" {
                line.extend(["--to", "/r"]);
            }
            if option == "--slot" {
                line.extend(standby);
            }
            assert!(
                Arguments::try_parse_from([&line[..], &[option, ""]].concat()).is_err(),
                "{option}"
            );
        }
        for line in [
            "lockstep clone create dev --target-name",
            "lockstep clone create dev --restore-command",
            "lockstep mirror create main --from host=a --dataset t/m --slot",
            "lockstep mirror create main --from host=a --dataset t/m --restore-command",
            "lockstep list --from",
            "lockstep prune --max-merge-bytes",
        ] {
            let words: Vec<&str> = line.split(' ').chain([""]).collect();
            assert!(Arguments::try_parse_from(words).is_err(), "{line}");
        }
    }

    #[test]
    fn two_targets_are_refused() {
        let line = "lockstep restore latest --to /r --target-xid 7 --target-immediate";
        assert!(Arguments::try_parse_from(line.split(' ')).is_err());
    }
}
