//! The program.

mod cli;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "lockstep")]
struct Arguments {
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Look into ZFS send streams
    Stream(cli::stream::StreamArgs),
}

fn main() -> std::process::ExitCode {
    let arguments = Arguments::parse();
    let Command::Stream(stream) = &arguments.command;
    let Err(error) = cli::stream::run(stream, arguments.json) else {
        return std::process::ExitCode::SUCCESS;
    };
    let mut message = format!("error: {error}");
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        message += &format!(": {cause}");
        source = cause.source();
    }
    eprintln!("{message}");
    if let Some(hint) = error.hint() {
        eprintln!("hint: {hint}");
    }
    std::process::ExitCode::FAILURE
}
