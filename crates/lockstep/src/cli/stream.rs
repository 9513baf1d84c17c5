//! `lockstep stream stat|tree|fold`: looks into send streams from files or standard input.

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use sendstream::fold::{StreamDelta, StreamSink, fold};
use sendstream::stat::{self, Statistics};
use sendstream::{Error, Reader, Result, input, listing};

/// Arguments of `lockstep stream`.
#[derive(Debug, Args)]
pub(super) struct StreamArgs {
    #[command(subcommand)]
    command: StreamCommand,
}

#[derive(Debug, Subcommand)]
enum StreamCommand {
    /// Show what a send stream is made of: records by kind, and changes by path or object
    Stat {
        /// The stream; - or no file means standard input
        file: Option<PathBuf>,
    },
    /// List the file system in a full stream and its incrementals, oldest first
    Tree {
        /// The streams; - is standard input
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
    /// Fold a full stream and its incrementals, oldest first, into one full stream on standard output
    Fold {
        /// The streams; - is standard input
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
}

/// Runs the command; data goes to standard output.
pub(super) fn run(args: &StreamArgs, json: bool) -> Result<()> {
    let stdout = io::stdout();
    match &args.command {
        StreamCommand::Stat { file } => {
            let file = file.as_deref().unwrap_or(Path::new("-"));
            let statistics = stat::collect(open(file)?).map_err(|error| named(file, error))?;
            let mut output = BufWriter::new(stdout.lock());
            if json {
                print_json(&statistics, &mut output)?
            } else {
                print_text(&statistics, &mut output)?
            }
            output.flush()?;
        }
        StreamCommand::Tree { files } => {
            let mut builder = listing::hashing_builder();
            fold(deltas(files)?, &mut builder)?;
            let tree = builder.finish()?;
            let mut output = BufWriter::new(stdout.lock());
            listing::write_listing(&tree, &mut output)?;
            output.flush()?;
        }
        StreamCommand::Fold { files } => {
            let mut deltas = deltas(files)?;
            let mut sink = StreamSink::new(BufWriter::with_capacity(256 << 10, stdout.lock()));
            fold(deltas.iter_mut().collect(), &mut sink)?;
            sink.finish()?;
        }
    }
    Ok(())
}

type Input = Reader<Box<dyn Read>>;

fn open(file: &Path) -> Result<Input> {
    let open = || -> Result<Input> {
        let raw: Box<dyn Read> = match file.to_str() {
            Some("-") => Box::new(io::stdin().lock()),
            _ => Box::new(File::open(file)?),
        };
        Reader::new(input::maybe_zstd(raw)?)
    };
    open().map_err(|error| named(file, error))
}

fn deltas(files: &[PathBuf]) -> Result<Vec<StreamDelta<Box<dyn Read>>>> {
    let delta = |file: &PathBuf| StreamDelta::new(open(file)?).map_err(|error| named(file, error));
    files.iter().map(delta).collect()
}

/// Puts the file's name before the error; its hint stays.
fn named(file: &Path, error: Error) -> Error {
    error.in_file(file)
}

fn print_text(statistics: &Statistics, output: &mut impl Write) -> io::Result<()> {
    let begin = &statistics.begin;
    writeln!(output, "snapshot\t{}", begin.to_name.escape_ascii())?;
    writeln!(output, "guid\t{}", begin.to_guid)?;
    match begin.is_full() {
        true => writeln!(output, "kind\tfull")?,
        false => writeln!(output, "kind\tincremental from GUID {}", begin.from_guid)?,
    }
    writeln!(output, "features\t{}", begin.features)?;
    writeln!(output, "bytes\t{}", statistics.bytes)?;
    writeln!(output, "\nrecord\tcount\tpayload\tlogical")?;
    for (kind, count) in statistics.kinds.iter() {
        writeln!(output, "{kind}\t{}\t{}\t{}", count.records, count.payload, count.logical)?;
    }
    match &statistics.paths {
        Some(paths) => {
            writeln!(output, "\npath\tblocks\tbytes")?;
            for (path, object) in paths {
                let count = statistics.objects.get(object).copied().unwrap_or_default();
                writeln!(output, "{}\t{}\t{}", escaped(path), count.blocks, count.bytes)?;
            }
        }
        None => {
            writeln!(output, "\nobject\ttype\tblocks\tbytes\tholes")?;
            for (object, count) in &statistics.objects {
                let kind = count.kind.map_or("-", stat::object_type_name);
                writeln!(
                    output,
                    "{object}\t{kind}\t{}\t{}\t{}",
                    count.blocks, count.bytes, count.holes
                )?;
            }
        }
    }
    Ok(())
}

fn print_json(statistics: &Statistics, output: &mut impl Write) -> io::Result<()> {
    let begin = &statistics.begin;
    let kinds = statistics.kinds.iter().map(|(kind, count)| {
        let counts = serde_json::json!({
            "records": count.records, "payload_bytes": count.payload, "logical_bytes": count.logical,
        });
        (kind.to_string(), counts)
    });
    let object = |object: &u64| {
        let count = statistics.objects.get(object).copied().unwrap_or_default();
        let kind = count.kind.map(stat::object_type_name);
        serde_json::json!({
            "object": object, "type": kind, "blocks": count.blocks, "bytes": count.bytes, "holes": count.holes,
        })
    };
    let changes: Vec<serde_json::Value> = match &statistics.paths {
        Some(paths) => paths
            .iter()
            .map(|(path, number)| {
                let mut change = object(number);
                change["path"] = escaped(path).into();
                change
            })
            .collect(),
        None => statistics.objects.keys().map(object).collect(),
    };
    let document = serde_json::json!({
        "version": 1,
        "snapshot": begin.to_name.escape_ascii().to_string(),
        // A GUID doesn't fit the numbers of a JavaScript program that reads JSON.
        "guid": begin.to_guid.to_string(),
        "from_guid": (!begin.is_full()).then(|| begin.from_guid.to_string()),
        "features": begin.features.to_string(),
        "bytes": statistics.bytes,
        "records": kinds.collect::<serde_json::Map<_, _>>(),
        "changes": changes,
    });
    serde_json::to_writer_pretty(&mut *output, &document)?;
    writeln!(output)
}

/// A path on one line, with non-UTF-8 bytes, backslashes and control characters escaped.
fn escaped(path: &[u8]) -> String {
    let mut text = String::new();
    for chunk in path.utf8_chunks() {
        for character in chunk.valid().chars() {
            match character {
                '\\' => text.push_str("\\\\"),
                control if control.is_control() => text.extend(control.escape_default()),
                other => text.push(other),
            }
        }
        text.extend(chunk.invalid().iter().map(|byte| format!("\\x{byte:02x}")));
    }
    text
}
