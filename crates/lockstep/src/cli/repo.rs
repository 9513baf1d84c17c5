//! `lockstep repo init|list|check|compact|key`: repositories as such.

mod tidy;

use std::fmt::Write as _;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::Done;
use super::output::{self, JSON_VERSION, say};
use crate::config::RepositoryConfig;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::repository::keys::{self, Source};
use crate::repository::wrap::Slot;
use crate::repository::{self, init, known, twice};

#[derive(Debug, Args)]
pub(super) struct Repo {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a repository; an existing one is left as it is
    Init {
        /// The repository; without this, all of the cluster's
        name: Option<String>,
        /// Make the repository's lockstep.json again from what is there, if it is lost, damaged or another one's
        #[arg(long, requires = "name")]
        again: bool,
        /// The id that the repository had, if neither this host nor its keys know it
        #[arg(long, value_name = "ID", requires = "again")]
        id: Option<String>,
        /// Make a new repository in place of the one that this host knows by this id, which is lost or no longer wanted
        #[arg(long, value_name = "ID", requires = "name", conflicts_with = "again")]
        instead_of: Option<String>,
    },
    /// List repositories, with what is in them
    List {
        /// The repository; without this, all of the cluster's
        name: Option<String>,
    },
    /// Check that everything the sets need is there and as it was written
    Check(tidy::Check),
    /// Delete what no set needs, and rewrite packs that are partly dead
    Compact(tidy::Compact),
    /// List, add and remove the keys that open an encrypted repository
    Key {
        #[command(subcommand)]
        command: KeyCommand,
    },
}

#[derive(Debug, Subcommand)]
enum KeyCommand {
    /// List the keys
    List {
        /// The repository; may be left out if the cluster has only one
        name: Option<String>,
    },
    /// Add a key; from then on each key opens the repository
    Add {
        /// The repository; may be left out if the cluster has only one
        name: Option<String>,
        #[command(flatten)]
        new: NewKey,
        /// A label for the key
        #[arg(long, value_name = "TEXT", default_value = "")]
        label: String,
    },
    /// Remove a key that is neither the last one nor the one that the configuration names
    Remove {
        /// The key's id, as `repo key list` shows it
        id: String,
        /// The repository; may be left out if the cluster has only one
        name: Option<String>,
    },
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct NewKey {
    /// A file with 32 bytes, or 64 hex digits
    #[arg(long, value_name = "FILE")]
    new_key_file: Option<PathBuf>,
    /// A file with a passphrase in its first line
    #[arg(long, value_name = "FILE")]
    new_passphrase_file: Option<PathBuf>,
}

impl Repo {
    pub(super) fn run(&self, cx: &Context, json: bool) -> Result<Done> {
        match &self.command {
            Command::Init { name, again, id, instead_of } => {
                let (id, instead_of) = (id.as_deref(), instead_of.as_deref());
                let how = init::How { again: *again, id, instead_of };
                init(cx, name.as_deref(), json, how)
            }
            Command::List { name } => tidy::list(cx, name.as_deref(), json),
            Command::Check(command) => command.run(cx, json),
            Command::Compact(command) => command.run(cx, json),
            Command::Key { command } => key(cx, command, json),
        }
    }
}

/// What to do with the id of an encrypted repository.
const KEEP: &str = "keep it with the copy of the key, elsewhere";

fn init(cx: &Context, name: Option<&str>, json: bool, how: init::How<'_>) -> Result<Done> {
    each(cx, name, json, |name, config| {
        repository::reachable(cx, config)?;
        let made = init::run(name, config, known::of(cx, name), how)?;
        known::note(cx, name, &made.id)?;
        if !made.is_new
            && let Ok(opened) = repository::open(cx, name)
            && let Some(other) = twice::other_name(cx, &opened)
        {
            tracing::warn!("{}; {}", twice::in_words(&opened, other), twice::HINT);
        }
        let words = match (made.is_new, made.is_again) {
            (true, _) => "made",
            (false, true) => "there again",
            (false, false) => "there already",
        };
        let encrypted = if made.is_encrypted { "encrypted" } else { "not encrypted" };
        let mut line = format!("repository {name} is {words}, {encrypted}: {}", config.url);
        if made.is_encrypted {
            let _ = write!(line, "\nits id is {}: {KEEP}", made.id);
        }
        let value = json!({
            "repository": name, "url": config.url, "id": made.id,
            "made": made.is_new, "made_again": made.is_again, "encrypted": made.is_encrypted,
        });
        Ok((line, value))
    })
}

/// The repositories to work on: the named one, or all of the cluster's.
fn meant(cx: &Context, name: Option<&str>) -> Result<Vec<String>> {
    match name {
        Some(name) => repository::config(cx, name).map(|_| vec![name.to_owned()]),
        None if cx.cluster.repositories.is_empty() => Err(Error::usage(
            format!("cluster \"{}\" has no repository", cx.name),
            format!(
                "add a table [repositories.NAME], and its name to clusters.{}.repositories",
                cx.name
            ),
        )),
        None => Ok(cx.cluster.repositories.clone()),
    }
}

/// The one repository to work on.
fn one(cx: &Context, name: Option<&str>) -> Result<String> {
    let mut names = meant(cx, name)?;
    match names.len() {
        1 => Ok(names.remove(0)),
        _ => Err(Error::usage(
            format!("cluster \"{}\" has several repositories", cx.name),
            format!("name one: {}", names.join(", ")),
        )),
    }
}

/// Does something with each of these repositories; if one fails, the others are still done.
fn each(
    cx: &Context,
    name: Option<&str>,
    json: bool,
    mut work: impl FnMut(&str, &RepositoryConfig) -> Result<(String, Value)>,
) -> Result<Done> {
    let names = meant(cx, name)?;
    let (mut values, mut done) = (Vec::new(), Done::Well);
    for name in &names {
        match repository::config(cx, name).and_then(|config| work(name, config)) {
            Ok((_, value)) if json => values.push(value),
            Ok((line, _)) => {
                crate::steps::end_with_the_reader();
                say!("{line}");
            }
            Err(error) if names.len() == 1 => return Err(error),
            Err(error) => {
                output::error(&error);
                values.push(json!({"repository": name, "error": error.chain()}));
                done = Done::WithProblems;
            }
        }
    }
    if json {
        output::print_json(&json!({"version": JSON_VERSION, "repositories": values}))?;
    }
    Ok(done)
}

fn key(cx: &Context, command: &KeyCommand, json: bool) -> Result<Done> {
    let (KeyCommand::List { name }
    | KeyCommand::Add { name, .. }
    | KeyCommand::Remove { name, .. }) = command;
    let name = one(cx, name.as_deref())?;
    let config = repository::config(cx, &name)?;
    repository::reachable(cx, config)?;
    let store = repository::store(config, &name)?;
    let format = known::format(cx, &store, &name)?;
    if format.encryption.is_none() {
        return Err(Error::usage(
            format!("repository \"{name}\" isn't encrypted, so it has no keys"),
            "make another one with key_file or passphrase_file in its table",
        ));
    }
    // If somebody else made the repository in the same moment, key slots of that other one open nothing here.
    let ours = |slot: &Slot| {
        format.encryption.as_ref().is_some_and(|with| with.fingerprint == slot.fingerprint)
    };
    let said = |verb: &str, slot: &str, words: String| {
        crate::steps::end_with_the_reader();
        match json {
            true => output::print_json(
                &json!({"version": JSON_VERSION, "repository": name, verb: slot}),
            ),
            false => {
                say!("{words}");
                Ok(())
            }
        }
    };
    match command {
        KeyCommand::List { .. } => {
            let (slots, bad) = keys::list(&store)?;
            let fitting: Vec<_> = slots.iter().filter(|slot| ours(slot)).cloned().collect();
            show(&name, &fitting, json)?;
            for (at, error) in bad.iter() {
                let failed = Error::failed(error.chain());
                output::error(&match keys::unread_hint(&name, at, error) {
                    Some(hint) => failed.with_hint(hint),
                    None => failed,
                });
            }
            if fitting.is_empty() && bad.is_empty() {
                output::error(&keys::none_fits(&name, &format, &slots));
            }
            let is_well = bad.is_empty() && !fitting.is_empty();
            return Ok(if is_well { Done::Well } else { Done::WithProblems });
        }
        KeyCommand::Add { new, label, .. } => {
            let source = match (&new.new_key_file, &new.new_passphrase_file) {
                (Some(path), _) => Source::KeyFile(path.clone()),
                (None, Some(path)) => Source::PassphraseFile(path.clone()),
                (None, None) => return Err(Error::usage("no new key", "see --help")),
            };
            let secret = source.read()?;
            if let Some(opened) = keys::open(&store, &name, config, &format)? {
                let slot = keys::add(&store, &opened.key, &secret, &format.id, label)?;
                let words = format!(
                    "key {} opens repository {name} too\nthe repository's id is {}: {KEEP}",
                    slot.id, format.id
                );
                said("added", &slot.id, words)?;
            }
        }
        KeyCommand::Remove { id, .. } => {
            if let Some(opened) = keys::open(&store, &name, config, &format)? {
                keys::remove(&store, &name, id, &opened)?;
                said("removed", id, format!("key {id} no longer opens repository {name}"))?;
            }
        }
    }
    Ok(Done::Well)
}

fn show(name: &str, slots: &[Slot], json: bool) -> Result<()> {
    if json {
        let keys: Vec<_> = slots
            .iter()
            .map(|slot| {
                json!({
                    "id": slot.id, "kind": slot.kdf.words(), "label": slot.label,
                    "created": slot.created,
                })
            })
            .collect();
        return output::print_json(
            &json!({"version": JSON_VERSION, "repository": name, "keys": keys}),
        );
    }
    crate::steps::end_with_the_reader();
    let mut table = output::table(&["key", "kind", "added", "label"]);
    for slot in slots {
        table.add_row([
            slot.id.clone(),
            slot.kdf.words().to_owned(),
            slot.created.strftime("%Y-%m-%d %H:%M:%SZ").to_string(),
            slot.label.escape_debug().to_string(),
        ]);
    }
    output::print_table(&table);
    Ok(())
}
