//! Throwaway servers: `clone create`, `clone list`, `clone destroy`.
//!
//! A clone is a restore whose server stays in its mount namespace and which Lockstep remembers, so that it can remove
//! everything again.
//!
//! What could go wrong: a clone of another cluster or another state_dir has the same name. So each creation has an id
//! of its own, with a random mark. Its datasets carry the id, and nothing that carries another one is destroyed.

mod lost;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::away;
use crate::config::default_clone_settings;
use crate::context::{Context, lockstep};
use crate::error::{Error, Result};
use crate::files;
use crate::names::{self, CloneName, SetId};
use crate::postgres::target::{Action, Recovery};
use crate::postgres::{instance, recovery, server};
use crate::process;
use crate::restore::unfinished::{self, InTheWay};
use crate::restore::{self, CloneOptions, Problem, Request, Restored, What};
use crate::set::journal::{self, RestoreJournal};
use crate::set::manifest::path_text;
use crate::steps;
use crate::volume::zfs::Zfs;

/// The options of `clone create`.
#[derive(Debug, Clone)]
pub struct Create {
    /// The clone's name.
    pub name: CloneName,
    /// A set's id, its beginning, or `latest`; if left out, the newest set from which recovery reaches its target.
    pub set: Option<String>,
    /// The port; if left out, a free one.
    pub port: Option<u16>,
    /// Where recovery ends.
    pub recovery: Recovery,
}

/// The record of a clone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its name.
    pub name: CloneName,
    /// The set it was made from.
    pub set: SetId,
    /// When it was made.
    pub created_at: jiff::Timestamp,
    /// Its port.
    pub port: u16,
    /// Its data directory.
    #[serde(with = "path_text")]
    pub data_directory: PathBuf,
    /// Where its socket is.
    #[serde(with = "path_text")]
    pub socket_directory: PathBuf,
    /// What has to be removed with it.
    pub made: RestoreJournal,
}

impl Record {
    /// Whether its server runs; `None` if its pool is suspended, and nobody can tell.
    #[must_use]
    pub fn is_running(&self, zfs: &Zfs) -> Option<bool> {
        match zfs.suspended_at(&self.data_directory) {
            Some(_) => None,
            None => Some(server::running(&self.data_directory).ok().flatten().is_some()),
        }
    }

    /// Returns where a tablespace of it is if that isn't in its own folder. In clones that older versions made, links may
    /// lead to the original's tablespaces: only in its namespace its server saw its own folders there. Not to be asked
    /// while its pool is suspended.
    #[must_use]
    pub fn leads_out(&self) -> Option<PathBuf> {
        // The innermost folder of its name: if it is another than its own, too much leads out of it, and never too little.
        let mut above = self.data_directory.ancestors();
        let own = above.find(|folder| folder.ends_with(self.name.as_str()))?;
        let links = instance::tablespace_links(&self.data_directory).unwrap_or_default();
        links.into_iter().map(|(_, target)| target).find(|target| !target.starts_with(own))
    }
}

/// Makes a clone and starts its server. Returns its record and the problems that somebody should look at.
///
/// # Errors
/// Fails as a restore does; when there is a clone of this name; and when its server would be shut down at its target.
pub fn create(cx: &Context, create: &Create) -> Result<(Record, Vec<Problem>)> {
    if create.recovery.action == Action::Shutdown {
        return Err(Error::usage(
            "--target-action shutdown leaves a clone that nobody can connect to",
            "write pause to look at it as it was at the target, or leave it out to write to it; a cluster that \
             is shut down at its target is made by `restore --start`",
        ));
    }
    check_settings(cx.name.as_str(), &cx.cluster.clones.settings)?;
    let path = record_path(cx, &create.name);
    let _lock = unfinished::lock(cx, &format!("name-{}", create.name))?;
    // First of all: a clone of this name may be an interrupted one.
    unfinished::remove(cx)?;
    refuse_unfinished(cx, &create.name)?;
    if path.exists() {
        return Err(Error::usage(
            format!("there is a clone \"{}\" already", create.name),
            format!("take another name, or destroy it: {}", destroy_command(&create.name, false)),
        ));
    }
    refuse_unknown(cx, &create.name)?;
    let parent = cx.cluster.clones.directory.clone().unwrap_or_else(|| cx.state.path("clone-data"));
    let request = Request {
        set: create.set.clone(),
        what: What::Clones { below: None },
        to: parent.join(create.name.as_str()),
        recovery: create.recovery.clone(),
        tablespaces: Vec::new(),
        start: true,
        keep_subscriptions: false,
        settings: Vec::new(),
        port: create.port,
        clone: Some(CloneOptions {
            name: create.name.clone(),
            settings: settings(&cx.cluster.clones.settings, &create.name),
        }),
    };
    let mut record = None;
    let restored = restore::run_then(cx, &request, |restored, made| {
        let new = remember(create, restored, made)?;
        journal::write(&path, &new)?;
        record = Some(new);
        steps::reached("clone.registered")
    });
    unfinished::remove_lock(cx, &format!("name-{}", create.name));
    let problems = match restored {
        Ok(restored) => restored.problems,
        Err(error) => {
            files::remove_file(&path)?;
            return Err(error);
        }
    };
    let record = record.ok_or_else(|| Error::failed("the clone was made and not remembered"))?;
    Ok((record, problems))
}

/// Returns the id for a clone that is about to be made. No name contains a colon.
///
/// # Errors
/// When the system gives no random bytes.
pub fn new_id(name: &CloneName) -> Result<String> {
    Ok(format!("{ID}{name}:{}", names::random_characters::<8>()?))
}

/// Returns the name of the clone that has this id; `None` if it isn't a clone's id. Ids of older versions had no
/// mark.
#[must_use]
pub fn name_in(id: &str) -> Option<&str> {
    let rest = id.strip_prefix(ID)?;
    Some(rest.split_once(':').map_or(rest, |(name, _)| name))
}

/// The beginning of every clone's id.
const ID: &str = "clone-";

/// Returns the command that destroys a clone; `is_lost`: although another state_dir made it, or its pool is gone.
pub(crate) fn destroy_command(name: impl Display, is_lost: bool) -> String {
    format!("{} clone destroy {name}{}", lockstep(), if is_lost { " --lost" } else { "" })
}

/// Removes the record of the clone with this id, whose creation is undone. Another clone of its name stays. Ids of
/// other restores have no record.
///
/// # Errors
/// When its record can't be removed.
pub fn forget(cx: &Context, id: &str) -> Result<()> {
    let Some(path) = name_in(id).map(|name| record_path(cx, name)) else { return Ok(()) };
    match journal::read::<Record>(&path) {
        Ok(Some(record)) if record.made.id == id => files::remove_file(&path),
        _ => Ok(()),
    }
}

/// Refuses a name whose folder and datasets are still taken by an interrupted clone that can't be removed yet.
fn refuse_unfinished(cx: &Context, name: &CloneName) -> Result<()> {
    let all = journal::read_all::<RestoreJournal>(&cx.state.path("restores"))?;
    match all.iter().any(|(_, entry)| name_in(&entry.id) == Some(name.as_str())) {
        false => Ok(()),
        true => Err(Error::failed(format!(
            "what an unfinished clone \"{name}\" left couldn't be removed yet"
        ))
        .with_hint(format!("`{} check` says what keeps it from being removed", lockstep()))),
    }
}

/// Refuses a name of which there are datasets of a clone that this state_dir doesn't know.
fn refuse_unknown(cx: &Context, name: &CloneName) -> Result<()> {
    let of_it = lost::find(cx, name)?;
    if of_it.is_empty() {
        return Ok(());
    }
    let names: Vec<_> = of_it.iter().map(|made| format!("\"{}\"", made.dataset)).collect();
    Err(Error::usage(
        format!(
            "datasets of a clone \"{name}\" that this state_dir doesn't know: {}",
            names.join(", ")
        ),
        format!(
            "take another name; or, if nobody needs it (was state_dir lost while it ran?): {}",
            destroy_command(name, lost::is_theirs(cx, &of_it))
        ),
    ))
}

/// Refuses settings of the configuration that a clone can't have: Lockstep itself chooses its port and folder, and its
/// archive_command is the original's.
fn check_settings(cluster: &str, settings: &BTreeMap<String, String>) -> Result<()> {
    let value = |name: &str| settings.iter().find(|(it, _)| it.eq_ignore_ascii_case(name));
    let refuse = |name: &str, hint: &str| {
        let key = format!("clusters.{cluster}.clone.settings");
        Err(Error::usage(format!("{key} sets {name}"), hint.to_owned()))
    };
    for (name, hint) in [
        ("port", "remove it: `clone create --port` gives a clone its port"),
        ("data_directory", "remove it: clone.directory is the folder for clones"),
    ] {
        if value(name).is_some() {
            return refuse(name, hint);
        }
    }
    // As PostgreSQL reads the values of archive_mode (config_enum_lookup_by_name in guc.c).
    let is_off = |mode: &String| {
        ["off", "false", "no", "0"].into_iter().any(|off| mode.eq_ignore_ascii_case(off))
    };
    let has_own = ["archive_command", "archive_library"].into_iter().any(|it| value(it).is_some());
    match value("archive_mode") {
        Some((_, mode)) if !has_own && !is_off(mode) => refuse(
            "archive_mode",
            "remove it, or set archive_command too: a clone would archive into the original's archive",
        ),
        _ => Ok(()),
    }
}

/// Returns the settings of a clone; those of the configuration, which are its `own`, come last and so count.
fn settings(own: &BTreeMap<String, String>, name: &CloneName) -> Vec<(String, String)> {
    let mut settings = vec![
        ("cluster_name".to_owned(), format!("lockstep clone {name}")),
        // No standby follows a clone: its commits would wait forever.
        ("synchronous_standby_names".to_owned(), String::new()),
        ("logging_collector".to_owned(), "off".to_owned()),
        ("log_destination".to_owned(), "stderr".to_owned()),
        ("listen_addresses".to_owned(), "localhost".to_owned()),
    ];
    settings.extend(recovery::apart());
    settings.extend(default_clone_settings());
    for (name, value) in own {
        recovery::put(&mut settings, name.clone(), value.clone());
    }
    settings
}

fn remember(create: &Create, restored: &Restored, made: &RestoreJournal) -> Result<Record> {
    let strange = || Error::failed("the clone's server has no port or socket");
    Ok(Record {
        name: create.name.clone(),
        set: restored.set.set.clone(),
        created_at: jiff::Timestamp::now(),
        port: restored.port.ok_or_else(strange)?,
        data_directory: restored.placement.data.clone(),
        socket_directory: restored.socket_directory.clone().unwrap_or_default(),
        made: made.clone(),
    })
}

/// A clone whose record can't be read, by its name, and why.
pub type Unread = (String, Error);

/// Returns the clones of the cluster, by name, and those whose records can't be read.
///
/// # Errors
/// When the records can't be listed.
pub fn list(cx: &Context) -> Result<(Vec<Record>, Vec<Unread>)> {
    let (all, unread) = journal::read_each::<Record>(&cx.state.path("clones"))?;
    let mut all: Vec<Record> = all.into_iter().map(|(_, record)| record).collect();
    all.sort_by(|a, b| a.name.cmp(&b.name));
    let unread = unread.into_iter().map(|(path, error)| {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let error = unknown(&name, &error).with_hint(format!(
            "its server may still run: {} finds it by the marks of its datasets",
            destroy_command(&name, false)
        ));
        (name, error)
    });
    let mut unread: Vec<_> = unread.collect();
    unread.sort_by(|(a, _), (b, _)| a.cmp(b));
    Ok((all, unread))
}

fn unknown(name: impl Display, error: &Error) -> Error {
    Error::failed(format!("the record of clone \"{name}\" can't be read: {}", error.chain()))
}

/// Stops a clone's server and removes everything of it. `is_lost`: also for a clone that another state_dir made, or
/// that has datasets on a pool that isn't imported, if that state_dir or pool is gone for good.
///
/// # Errors
/// When there is no such clone, or a part of it remains; then it can be tried again.
pub fn destroy(cx: &Context, name: &CloneName, is_lost: bool) -> Result<()> {
    unfinished::remove(cx)?;
    let path = record_path(cx, name);
    let record = match journal::read::<Record>(&path) {
        Ok(Some(record)) if record.name == *name => record,
        Err(error @ Error::Io { .. }) => return Err(error),
        // A damaged record says as little as none.
        other => {
            let damaged = other.err();
            let record = match (lost::record(cx, name, is_lost)?, damaged) {
                (Some(record), _) => record,
                (None, Some(_)) if is_lost => {
                    tracing::warn!(
                        "no dataset of clone \"{name}\" was found: its record is removed"
                    );
                    return files::remove_file(&path);
                }
                (None, damaged) => return Err(none(cx, name, damaged.as_ref())),
            };
            // From here on the clone is known: after an interruption the next attempt resumes.
            journal::write(&path, &record)?;
            record
        }
    };
    steps::reached("clone.destroy-found")?;
    let _lock = unfinished::lock(cx, &record.made.id)?;
    // Another command may have destroyed it since it was read, and one of its name may have been made.
    let is_it = |now: Record| now.made.id == record.made.id;
    if !journal::read::<Record>(&path)?.is_some_and(is_it) {
        unfinished::remove_lock(cx, &record.made.id);
        let gone = format!("clone \"{name}\" was destroyed by another command meanwhile");
        let hint = format!("`{} clone list` shows those that are there now", lockstep());
        return Err(Error::failed(gone).with_hint(hint));
    }
    let (what, give_up) = (format!("clone \"{name}\""), destroy_command(name, true));
    away::refuse(&cx.zfs, &record.made.datasets, &what, &give_up, is_lost)?;
    refuse_renamed(cx, &record)?;
    // Before its server is stopped: half a clone is of no use.
    let in_the_way = unfinished::in_the_way(cx, &record.made)?;
    if !in_the_way.is_empty() {
        let commands: BTreeSet<_> =
            in_the_way.iter().map(|it| format!("`{}`", it.way_out)).collect();
        let commands: Vec<_> = commands.into_iter().collect();
        return Err(Error::failed(format!(
            "clone \"{name}\" can't be destroyed: {}",
            InTheWay::of_all(&in_the_way)
        ))
        .with_hint(format!(
            "if nobody needs that, {}, and then run it again: nothing was changed",
            commands.join(", ")
        )));
    }
    unfinished::stop(cx, &record.made)?;
    steps::reached("clone.destroy-stopped")?;
    unfinished::destroy_datasets(cx, &record.made)?;
    steps::reached("clone.destroy-datasets")?;
    unfinished::remove_folders(&record.made)?;
    files::remove_file(&path)?;
    unfinished::remove_lock(cx, &record.made.id);
    steps::reached("clone.destroy-done")
}

/// Refuses a clone if one of its datasets, or one above it, was renamed: under its new name nobody would know it any
/// more, and it would keep the set that it depends on. Somebody may have renamed it to keep it.
fn refuse_renamed(cx: &Context, record: &Record) -> Result<()> {
    let made = &record.made;
    let mut gone = Vec::new();
    for dataset in &made.datasets {
        if !cx.zfs.exists(dataset.as_str())? {
            gone.push(dataset);
        }
    }
    if gone.is_empty() {
        return Ok(());
    }
    let mut renamed = cx.zfs.unended()?;
    renamed.retain(|found| found.restore == made.id && !made.datasets.contains(&found.dataset));
    let Some(first) = renamed.first() else { return Ok(()) };
    let names: Vec<_> = renamed.iter().map(|found| format!("\"{}\"", found.dataset)).collect();
    Err(Error::failed(format!(
        "clone \"{}\" can't be destroyed: \"{}\" was renamed, and {} carries its mark",
        record.name,
        gone[0],
        names.join(", ")
    ))
    .with_hint(format!(
        "`zfs rename` it back, or destroy it if nobody needs it (`zfs destroy {}`), and then run it again: nothing was changed. To keep it: `zfs inherit lockstep:restore {0}` before that",
        process::quote(first.dataset.as_str())
    )))
}

/// Returns the error for a clone of which nothing was found; `damaged` is what is wrong with its record.
fn none(cx: &Context, name: &CloneName, damaged: Option<&Error>) -> Error {
    match damaged {
        None => Error::usage(
            format!("cluster \"{}\" has no clone \"{name}\"", cx.name),
            format!("`{} clone list` shows those that are there", lockstep()),
        ),
        Some(error) => unknown(name, error).with_hint(format!(
            "none of its datasets is on the pools that are imported; if all of its pools are, or are gone for good: {} removes the record",
            destroy_command(name, true)
        )),
    }
}

fn record_path(cx: &Context, name: impl Display) -> PathBuf {
    cx.state.path("clones").join(format!("{name}.json"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_a_clone_can_t_have_are_refused() {
        let check = |settings: &[(&str, &str)]| {
            let own = settings.iter().map(|(name, value)| ((*name).into(), (*value).into()));
            check_settings("main", &own.collect()).map_err(|error| error.to_string())
        };
        let refused = |name: &str| Err(format!("clusters.main.clone.settings sets {name}"));
        assert_eq!(check(&[("shared_buffers", "64MB"), ("archive_mode", "off")]), Ok(()));
        assert_eq!(check(&[("Port", "5500")]), refused("port"));
        assert_eq!(check(&[("data_directory", "/srv")]), refused("data_directory"));
        assert_eq!(check(&[("archive_mode", "OFF")]), Ok(()));
        assert_eq!(check(&[("archive_mode", "on")]), refused("archive_mode"));
        assert_eq!(check(&[("archive_mode", "on"), ("archive_command", "true")]), Ok(()));
    }

    #[test]
    fn a_setting_of_one_s_own_leaves_the_others_small() {
        let own = [("work_mem", "64MB"), ("max_wal_size", "4GB")];
        let own = own.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let all = settings(&own, &"dev".parse().unwrap());
        let of = |name: &str| {
            let found = all.iter().filter(|(it, _)| it == name);
            found.map(|(_, value)| value.as_str()).collect::<Vec<_>>()
        };
        assert_eq!(of("work_mem"), ["64MB"]);
        assert_eq!(of("max_wal_size"), ["4GB"]);
        assert_eq!((of("shared_buffers"), of("huge_pages")), (vec!["128MB"], vec!["off"]));
    }

    #[test]
    fn an_id_names_its_clone_and_no_other_has_it() {
        let name: CloneName = "before-1.0_x".parse().unwrap();
        let ids = [(); 2].map(|()| new_id(&name).unwrap());
        assert_ne!(ids[0], ids[1]);
        assert!(ids.iter().all(|id| name_in(id) == Some(name.as_str())), "{ids:?}");
        assert_eq!(name_in("clone-dev"), Some("dev"), "as older versions made them");
        assert_eq!(name_in("restore-ab12"), None);
    }
}
