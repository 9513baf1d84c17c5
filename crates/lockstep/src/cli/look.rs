//! `lockstep ls` and `lockstep cat`.

use std::ffi::OsString;
use std::io::{BufWriter, ErrorKind, Write};
use std::os::unix::ffi::OsStrExt;

use clap::Args;
use sendstream::zpl::{FileType, Timestamp};
use serde_json::{Value, json};

use super::Done;
use super::output::{self, JSON_VERSION};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::look::{Entry, Look};
use crate::names::SetId;
use crate::repository;
use crate::repository::{Repository, Shipped};
use crate::restore::source::Origin;
use crate::restore::unfinished;
use crate::set::manifest::Manifest;
use crate::steps;

#[derive(Debug, Args)]
pub(super) struct Ls {
    /// A set's id, the beginning of one, or `latest`
    #[arg(value_name = "SET")]
    set: String,
    /// What to list: data/…, wal/…, tablespaces/OID/…, files/…
    #[arg(value_name = "PATH", default_value = "")]
    path: OsString,
    /// List folders recursively
    #[arg(short = 'R', long)]
    recursive: bool,
    #[command(flatten)]
    place: PlaceArgument,
}

#[derive(Debug, Args)]
pub(super) struct Cat {
    /// A set and a file in it, as in latest:data/postgresql.conf
    #[arg(value_name = "SET:PATH")]
    what: OsString,
    #[command(flatten)]
    place: PlaceArgument,
}

#[derive(Debug, Args)]
struct PlaceArgument {
    /// Where to look: snapshots, repository or repository:NAME; without this, the snapshots if this host has the set,
    /// else the repository
    #[arg(long, value_name = "FROM", value_parser = Origin::parse)]
    from: Option<Origin>,
}

/// A set that was found.
enum Found {
    Here(Box<Manifest>),
    Stored(Box<(Repository, Shipped)>),
}

impl PlaceArgument {
    fn find(&self, cx: &Context, set: &str) -> Result<Found> {
        let here = || cx.find(set).map(|manifest| Found::Here(Box::new(manifest)));
        let name = match &self.from {
            Some(Origin::Snapshots) => return here(),
            None if cx.cluster.repositories.is_empty() || is_here(cx, set)? => return here(),
            None => None,
            Some(Origin::Repository(name)) => name.as_deref(),
        };
        let repository = repository::open_meant(cx, name)?;
        let shipped = repository.find(cx, set)?;
        Ok(Found::Stored(Box::new((repository, shipped))))
    }

    /// Looks into a set and returns what `run` made of it.
    fn look<T>(
        &self,
        cx: &Context,
        set: &str,
        run: impl FnOnce(&mut Look<'_>) -> Result<T>,
    ) -> Result<T> {
        match self.find(cx, set)? {
            Found::Stored(stored) => {
                steps::end_with_the_reader();
                run(&mut Look::into_repository(&stored.0, &stored.1))
            }
            // The temporary clone must be removed, so a reader that has gone is only an error until that is done.
            Found::Here(manifest) => {
                unfinished::remove(cx)?;
                let result = run(&mut Look::into_snapshots(cx, *manifest));
                steps::end_with_the_reader();
                if let Err(Error::Io { source, .. }) = &result
                    && source.kind() == ErrorKind::BrokenPipe
                {
                    let mut out = std::io::stdout();
                    let _ = out.write_all(b"\n").and_then(|()| out.flush());
                }
                result
            }
        }
    }
}

/// Whether this host has a set with this name, whole or not.
fn is_here(cx: &Context, set: &str) -> Result<bool> {
    let (sets, damaged) = cx.state.sets()?;
    let ids = sets.iter().map(|set| &set.set).chain(damaged.iter().map(|(id, _)| id));
    let mut ids = ids.map(SetId::as_str);
    Ok(ids.any(|id| set == "latest" || id.starts_with(set)))
}

impl Ls {
    pub(super) fn run(&self, cx: &Context, as_json: bool) -> Result<Done> {
        let path = self.path.as_bytes();
        self.place.look(cx, &self.set, |look| {
            if as_json {
                let mut entries = Vec::new();
                look.list(path, self.recursive, |entry| {
                    entries.push(to_json(&entry));
                    Ok(())
                })?;
                return output::print_json(&json!({
                    "version": JSON_VERSION, "set": look.set(), "entries": entries,
                }));
            }
            let mut out = BufWriter::new(std::io::stdout().lock());
            look.list(path, self.recursive, |entry| {
                let name = if entry.path.is_empty() { path } else { &entry.path };
                writeln!(out, "{}", line(&entry, name))
                    .map_err(Error::io("write to", "standard output"))
            })?;
            out.flush().map_err(Error::io("write to", "standard output"))
        })?;
        Ok(Done::Well)
    }
}

impl Cat {
    pub(super) fn run(&self, cx: &Context) -> Result<Done> {
        let what = self.what.as_bytes();
        let colon = what.iter().position(|byte| *byte == b':');
        let parts =
            colon.and_then(|at| Some((std::str::from_utf8(&what[..at]).ok()?, &what[at + 1..])));
        let (set, path) = parts.ok_or_else(|| {
            Error::usage(
                format!("\"{}\" names no file of a set", what.escape_ascii()),
                "write SET:PATH, as latest:data/postgresql.conf",
            )
        })?;
        let is_stored = self.place.look(cx, set, |look| {
            let mut out = BufWriter::with_capacity(1 << 20, std::io::stdout().lock());
            let is_stored = look.cat(path, &mut out)?;
            out.flush().map_err(Error::io("write to", "standard output"))?;
            Ok(is_stored)
        })?;
        if is_stored {
            return Ok(Done::Well);
        }
        // A reader of the output must not mistake this for an empty file.
        output::tell!(
            "\"{}\" isn't stored: PostgreSQL recreates it, so a restore has a hole of its size there",
            path.escape_ascii()
        );
        Ok(Done::WithProblems)
    }
}

/// A line as `ls -l` prints it, but always in the same form: mode, user, group, size, time, name.
fn line(entry: &Entry, name: &[u8]) -> String {
    let number = |number: Option<u64>| number.map_or_else(|| "-".to_owned(), |n| n.to_string());
    let mut text = format!(
        "{} {:>6} {:>6} {:>11} {:>30} {}",
        mode(entry),
        number(entry.owner.map(|(uid, _)| uid)),
        number(entry.owner.map(|(_, gid)| gid)),
        number(entry.size),
        entry.mtime.and_then(time).unwrap_or_else(|| "-".to_owned()),
        escaped(name),
    );
    if let Some(target) = &entry.target {
        text.push_str(&format!(" -> {}", escaped(target)));
    }
    if !entry.is_stored {
        text.push_str(" (not stored)");
    }
    text
}

/// Control characters and backslashes as escapes, everything else as it is.
fn escaped(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).chars().fold(String::new(), |mut text, c| {
        if c.is_control() || c == '\\' {
            text.extend(c.escape_default());
        } else {
            text.push(c);
        }
        text
    })
}

fn mode(entry: &Entry) -> String {
    let kind = if entry.kind == FileType::Regular { '-' } else { entry.kind.letter() };
    let letters = |shift: u32, special: bool, letter: char| -> [char; 3] {
        let bits = entry.mode >> shift;
        let bit = |mask: u64, letter: char| if bits & mask != 0 { letter } else { '-' };
        let run = match (bits & 1 != 0, special) {
            (true, true) => letter,
            (false, true) => letter.to_ascii_uppercase(),
            (true, false) => 'x',
            (false, false) => '-',
        };
        [bit(4, 'r'), bit(2, 'w'), run]
    };
    let all = [
        letters(6, entry.mode & 0o4000 != 0, 's'),
        letters(3, entry.mode & 0o2000 != 0, 's'),
        letters(0, entry.mode & 0o1000 != 0, 't'),
    ];
    std::iter::once(kind).chain(all.into_iter().flatten()).collect()
}

fn time(time: Timestamp) -> Option<String> {
    let nanoseconds = i32::try_from(time.nanoseconds).ok()?;
    let time = jiff::Timestamp::new(time.seconds, nanoseconds).ok()?;
    Some(time.strftime("%Y-%m-%dT%H:%M:%S.%9fZ").to_string())
}

fn to_json(entry: &Entry) -> Value {
    json!({
        "path": String::from_utf8_lossy(&entry.path), "type": entry.kind.letter().to_string(),
        "mode": format!("{:04o}", entry.mode), "uid": entry.owner.map(|(uid, _)| uid),
        "gid": entry.owner.map(|(_, gid)| gid), "size": entry.size,
        "mtime": entry.mtime.and_then(time),
        "target": entry.target.as_deref().map(String::from_utf8_lossy), "stored": entry.is_stored,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_one_line_and_says_everything() {
        let mut entry = Entry {
            path: Vec::new(),
            kind: FileType::Regular,
            mode: 0o4751,
            owner: Some((101, 7)),
            size: Some(8192),
            mtime: Some(Timestamp { seconds: -1, nanoseconds: 5 }),
            target: None,
            is_stored: true,
        };
        assert_eq!(
            line(&entry, b"a\nb\\\xc3\xa9"),
            "-rwsr-x--x    101      7        8192 1969-12-31T23:59:59.000000005Z a\\nb\\\\é"
        );
        entry.kind = FileType::Symlink;
        entry.mode = 0o1776;
        entry.target = Some(b"/x".to_vec());
        (entry.owner, entry.mtime, entry.is_stored) = (None, None, false);
        assert_eq!(
            line(&entry, b"l"),
            "lrwxrwxrwT      -      -        8192                              - l -> /x (not stored)"
        );
    }
}
