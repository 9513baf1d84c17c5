//! Where a cluster's state is under state_dir.
//!
//! ```text
//! owner                            the id of this state_dir: whose snapshots are whose
//! zfs.json                         what this machine's ZFS can do, found out once a day
//! clusters/NAME/lock               flock: one backup at a time
//! clusters/NAME/lock.waiting       flock: a backup waits until a prune gives way
//! clusters/NAME/reserve            reserved space for the journal of a removal
//! clusters/NAME/sets/ID/           manifest.json (written last), backup_label, tablespace_map, wal/, config/, and the
//!                                  repositories that have or had it (shipped.REPOSITORY.json, pruned.REPOSITORY);
//!                                  the GUIDs of its pools (pools.json)
//! clusters/NAME/unfinished/ID      a backup that has begun: the datasets it may have snapshots on
//! clusters/NAME/removals/ID        a removal that has begun: the set's snapshots
//! clusters/NAME/bookmarks/ID       bookmarks that stand for a removed set's snapshots
//! clusters/NAME/restores/ID        a restore that has begun: its datasets and folder
//! clusters/NAME/shipping/…         what an interrupted shipment has stored
//! clusters/NAME/deltas/REPOSITORY/ what is known of a repository's deltas, so that they aren't read again
//! clusters/NAME/seen/REPOSITORY.json  what is known of the timelines of its sets
//! clusters/NAME/ship-REPOSITORY.*  flock: one shipment or prune at a time; and the sets that it works on
//! clusters/NAME/tags/REPOSITORY/…  tags of the pages that a repository has
//! clusters/NAME/clones/NAME        a throwaway server
//! clusters/NAME/clone-data/NAME/   its folders, unless clone.directory names another place
//! clusters/NAME/staging/ID/        what a restore needs temporarily
//! clusters/NAME/views/ID/          mounts of clones of snapshots that can't be looked into
//! ```

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use pgfiles::lsn::SystemIdentifier;

use super::branches::{Branches, Member};
use super::manifest::Manifest;
use super::notes;
use crate::context::lockstep;
use crate::error::{Error, Result};
use crate::files;
use crate::lock::Lock;
use crate::names::{self, ClusterName, Meant, SetId, random_characters};
use crate::process;
use crate::refusal::Refusal;
use crate::repository::seen;
use crate::retention;
use crate::steps;
use crate::volume::zfs::DatasetName;
use crate::words;

/// The manifest's file name.
const MANIFEST: &str = "manifest.json";
/// Its name while the set is being removed.
const WITHDRAWN: &str = "manifest.withdrawn";

/// How long a prune is waited for, and the pause between two looks.
const PATIENCE: Duration = Duration::from_secs(600);
const PAUSE: Duration = Duration::from_millis(100);

/// A set whose manifest can't be read, and why.
pub type Damaged = (SetId, Error);

/// The state of one cluster.
#[derive(Debug)]
pub struct State {
    cluster: ClusterName,
    directory: PathBuf,
    owner: String,
    /// Where else sets may be.
    pub(super) repositories: Vec<String>,
}

impl State {
    /// Opens it, and makes what is missing.
    ///
    /// # Errors
    /// When state_dir can't be used.
    pub fn open(state_dir: &Path, cluster: &ClusterName) -> Result<Self> {
        let directory = state_dir.join("clusters").join(cluster.as_str());
        // Whatever the umask: servers of clones run in it, as os_user.
        files::create_open_directories(&directory)?;
        // The rest is for nobody else: fetched WAL holds rows; restored files have owners and modes of their own.
        for folder in ["sets", "unfinished", "removals", "bookmarks", "restores", "clones"] {
            files::create_directories(&directory.join(folder))?;
            files::keep_private(&directory.join(folder))?;
        }
        // These are made when they are needed.
        for folder in ["deltas", "generations", "harmed", "known", "seen", "shipping", "tags"] {
            let folder = directory.join(folder);
            if folder.is_dir() {
                files::keep_private(&folder)?;
            }
        }
        let owner = owner_of(state_dir)?;
        Ok(Self { cluster: cluster.clone(), directory, owner, repositories: Vec::new() })
    }

    /// Does the same, and records where else the cluster's sets may be.
    #[must_use]
    pub fn with_repositories(self, names: &[String]) -> Self {
        Self { repositories: names.to_vec(), ..self }
    }

    /// Returns the id of this state_dir.
    #[must_use]
    pub fn owner(&self) -> &str {
        &self.owner
    }

    /// Returns the path of a folder or file of this cluster's state.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Returns the path of a folder or file in state_dir that isn't one cluster's.
    #[must_use]
    pub fn of_host(&self, name: &str) -> PathBuf {
        let state_dir = self.directory.ancestors().nth(2);
        state_dir.unwrap_or(&self.directory).join(name)
    }

    /// Returns the folder of a set.
    #[must_use]
    pub fn set_directory(&self, set: &SetId) -> PathBuf {
        self.directory.join("sets").join(set.as_str())
    }

    /// Takes the cluster's lock for `command`.
    ///
    /// # Errors
    /// [`Error::Locked`] with its holder.
    pub fn lock(&self, command: &str) -> Result<Lock> {
        let what = format!("cluster \"{}\"", self.cluster);
        Lock::take_or_refuse(&self.path("lock"), what, command)
    }

    /// Does the same. A first prune may remove sets for hours: it is waited for, and looks after each of them whether
    /// somebody waits.
    ///
    /// # Errors
    /// [`Error::Locked`] with its holder; when the command was interrupted.
    pub fn lock_before_prune(&self, command: &str) -> Result<Lock> {
        let refused = match self.lock(command) {
            Err(refused) if Lock::is_by(&refused, "prune") => refused,
            taken => return taken,
        };
        let Ok(_waiting) = Lock::take(&self.path("lock.waiting"), command) else {
            return Err(refused);
        };
        tracing::warn!("{refused}: waiting until it has removed the set that it is at");
        let since = Instant::now();
        loop {
            std::thread::sleep(PAUSE);
            steps::reached("lock.waiting")?;
            match self.lock(command) {
                Err(refused) if Lock::is_by(&refused, "prune") && since.elapsed() < PATIENCE => {}
                taken => return taken,
            }
        }
    }

    /// Whether somebody waits until a prune gives way.
    #[must_use]
    pub fn is_waited_for(&self) -> bool {
        Lock::is_held(&self.path("lock.waiting")).unwrap_or(false)
    }

    /// Whether the set is complete.
    #[must_use]
    pub fn is_complete(&self, set: &str) -> bool {
        self.directory.join("sets").join(set).join(MANIFEST).exists()
    }

    /// Returns the folders of all clusters of this state_dir, configured or not.
    fn clusters(&self) -> Result<impl Iterator<Item = Result<PathBuf>>> {
        clusters_in(self.directory.parent().unwrap_or(&self.directory))
    }

    /// Returns the other clusters of this state_dir that have complete sets, configured or not, and how many sets.
    ///
    /// # Errors
    /// When a folder can't be read.
    pub fn other_clusters(&self) -> Result<Vec<(String, usize)>> {
        let mut all = Vec::new();
        for cluster in self.clusters()? {
            let cluster = cluster?;
            let sets = cluster.join("sets");
            if cluster != self.directory && sets.is_dir() {
                let name = cluster.file_name().unwrap_or_default().to_string_lossy().into_owned();
                all.push((name, complete_in(&sets)?.len()));
            }
        }
        all.retain(|(_, sets)| *sets > 0);
        all.sort();
        Ok(all)
    }

    /// Returns a folder of each cluster of this state_dir, if it exists.
    ///
    /// # Errors
    /// When they can't be listed.
    pub fn of_all_clusters(&self, name: &str) -> Result<Vec<PathBuf>> {
        let mut folders = Vec::new();
        for cluster in self.clusters()? {
            folders.extend(Some(cluster?.join(name)).filter(|folder| folder.is_dir()));
        }
        Ok(folders)
    }

    /// Whether another cluster of this state_dir has the set, or is taking or removing it.
    #[must_use]
    pub fn is_of_another_cluster(&self, set: &str) -> bool {
        self.folders_with(set).any(|folder| folder != self.directory)
    }

    /// Whether a cluster of this state_dir, this one included, has the set, or is taking or removing it at this moment.
    #[must_use]
    pub fn is_known(&self, set: &str) -> bool {
        // A journal goes once the manifest is there: if it went between the two looks, that is there now.
        self.folders_with(set).next().is_some() || self.is_complete(set)
    }

    /// Checks that the id of a set that is about to be taken is its own; its journal has to be written before, so that
    /// of two clusters that begin at the same moment at least one sees the other. Where they share a dataset, the
    /// second snapshot of that name fails, and what undoes it would destroy the first.
    ///
    /// # Errors
    /// When another cluster of this state_dir has a set of this id.
    pub fn assert_own(&self, set: &SetId) -> Result<()> {
        if !self.is_of_another_cluster(set.as_str()) {
            return Ok(());
        }
        Err(Error::failed(format!("another cluster of this state_dir has a set {set}"))
            .with_hint("both began at the same moment, and nothing was made: run it again"))
    }

    /// Returns the cluster of this state_dir that has the set, or is taking or removing it.
    #[must_use]
    pub fn cluster_with(&self, set: &SetId) -> Option<String> {
        let folder = self.folders_with(set.as_str()).next()?;
        Some(folder.file_name()?.to_string_lossy().into_owned())
    }

    fn folders_with(&self, set: &str) -> impl Iterator<Item = PathBuf> {
        let (manifest, journal) =
            (Path::new("sets").join(set).join(MANIFEST), format!("{set}.json"));
        self.clusters().into_iter().flatten().flatten().filter(move |folder| {
            let journals = ["unfinished", "removals"];
            folder.join(&manifest).exists()
                || journals.iter().any(|kind| folder.join(kind).join(&journal).exists())
        })
    }

    /// Writes the manifest: from here on the set exists.
    ///
    /// # Errors
    /// When it can't be written durably.
    pub fn publish(&self, manifest: &Manifest) -> Result<()> {
        let directory = self.set_directory(&manifest.set);
        files::publish(&directory.join(MANIFEST), &manifest.to_bytes()?)?;
        files::sync_directory(&self.path("sets"))
    }

    /// Withdraws the manifest: from here on the set doesn't exist. A missing manifest is fine.
    ///
    /// # Errors
    /// When this can't be made durable.
    pub fn withdraw(&self, set: &SetId) -> Result<()> {
        self.rename(set, MANIFEST, WITHDRAWN)
    }

    /// Puts the manifest of a complete set back.
    ///
    /// # Errors
    /// When it doesn't exist, or this can't be made durable.
    pub fn put_back(&self, set: &SetId) -> Result<()> {
        self.rename(set, WITHDRAWN, MANIFEST)
    }

    fn rename(&self, set: &SetId, from: &str, to: &str) -> Result<()> {
        let directory = self.set_directory(set);
        let from = directory.join(from);
        match std::fs::rename(&from, directory.join(to)) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
            other => {
                other.map_err(Error::io("rename", &from))?;
                files::sync_directory(&directory)
            }
        }
    }

    /// Returns the manifests of all complete sets, oldest first, and for those that can't be read the id and the
    /// reason. A set that is removed meanwhile isn't a set any more.
    ///
    /// # Errors
    /// When the folder can't be listed.
    pub fn sets(&self) -> Result<(Vec<Manifest>, Vec<Damaged>)> {
        Ok(self.manifests(self.complete()?))
    }

    /// Returns the ids of all complete sets, oldest first.
    pub(crate) fn complete(&self) -> Result<Vec<SetId>> {
        complete_in(&self.path("sets"))
    }

    fn manifests(&self, ids: Vec<SetId>) -> (Vec<Manifest>, Vec<Damaged>) {
        let (mut good, mut bad) = (Vec::new(), Vec::new());
        for id in ids {
            match self.read(&id) {
                Ok(manifest) => good.push(manifest),
                // Withdrawn since it was listed: a removal is running.
                Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {}
                Err(error) => bad.push((id, error)),
            }
        }
        (good, bad)
    }

    /// Returns the newest set by its manifest, whatever its timeline: of the cluster of these system identifiers, if
    /// there are sets of it.
    ///
    /// # Errors
    /// [`Error::Usage`] if there is none; an error when a newer one is damaged.
    pub fn newest(&self, own: &[SystemIdentifier]) -> Result<Manifest> {
        let (sets, damaged) = self.sets()?;
        let (sets, _) = of_cluster(sets, own);
        let now = jiff::Timestamp::now();
        self.or_damaged(retention::newest(sets, |set| set.set.as_str(), now), damaged, now)
    }

    /// Returns the newest set that the cluster of these system identifiers hasn't left behind. As in repositories, a
    /// set of another cluster counts only if there is none of it: initdb or pg_upgrade may have been run, a set taken,
    /// and the former cluster put back.
    fn latest(&self, own: &[SystemIdentifier]) -> Result<Manifest> {
        let (sets, damaged) = self.sets()?;
        let now = jiff::Timestamp::now();
        // This host has also seen a shipped set in a repository.
        let seen = self.path("seen");
        let told = damaged.iter().map(|(id, error)| (id, error, seen::told(&seen, id.as_str())));
        let (told, untold): (Vec<_>, Vec<_>) = told.partition(|(.., told)| told.is_some());
        let told = told.into_iter().filter_map(|(.., told)| told);
        let branches = Branches::of(sets.iter().map(Member::from).chain(told), now)
            .beside(untold.into_iter().map(|(id, error, _)| (id, error)));
        let sets = retention::newest_first(sets, |set| set.set.as_str(), now);
        let is_ahead = |set: &&Manifest| retention::is_ahead(set.set.as_str(), now);
        let ahead: Vec<_> = sets.iter().filter(is_ahead).map(|set| set.set.clone()).collect();
        let (sets, others) = of_cluster(sets, own);
        let (newest, passed_over) = branches.newest(sets, |set| set);
        if let Some(said) = passed_over.said() {
            tracing::warn!("{said}");
        }
        for id in ahead.iter().filter(|id| newest.as_ref().is_some_and(|newest| newest.set < **id))
        {
            tracing::warn!(set = %id, "passed over: {}", retention::ahead_hint(id.as_str(), "--local"));
        }
        let newest = self.or_damaged(newest, damaged, now)?;
        branches.assert_told(newest.set.as_str(), None)?;
        if let Some(doubt) = branches.doubt(&newest) {
            tracing::warn!(set = %newest.set, "{doubt}");
        }
        if let Some(other) = others.first() {
            let (set, of) = (&other.set, other.postgres.system_identifier);
            // By `formerly` the sets of a later cluster, such as that of a pg_upgrade that was undone, would be the
            // latest of this one.
            let hint = match *set < newest.set {
                true => format!(
                    "If that is this cluster before pg_upgrade: formerly = [\"{of}\"] in [clusters.{}]",
                    self.cluster
                ),
                false => {
                    "It was taken later: was the former cluster put back? If not, is data_directory right? Else name the set".to_owned()
                }
            };
            tracing::warn!(
                "there are sets of another cluster than the one in data_directory, and \"latest\" is none of them: the newest is {set}, of system identifier {of}. {hint}"
            );
        } else if !own.is_empty() {
            tell_another(&newest, own);
        }
        Ok(newest)
    }

    /// A damaged newer set isn't skipped silently.
    fn or_damaged(
        &self,
        newest: Option<Manifest>,
        damaged: Vec<Damaged>,
        now: jiff::Timestamp,
    ) -> Result<Manifest> {
        let found = newest.as_ref().map(|newest| newest.set.as_str());
        if let Some(error) = retention::newest_damaged(damaged, found, SetId::as_str, now) {
            return Err(error);
        }
        newest.ok_or_else(|| self.none("latest", &format!("take one with `{} backup`", lockstep())))
    }

    fn none(&self, which: &str, hint: &str) -> Error {
        let here = if self.repositories.is_empty() { "" } else { " on this host" };
        let what = format!("cluster \"{}\" has no set \"{which}\"{here}", self.cluster);
        let hint = match self.repositories.is_empty() {
            true => hint.to_owned(),
            false => {
                format!(
                    "{hint}; for those of {} use --from repository",
                    self.repositories.join(", ")
                )
            }
        };
        Error::usage(what, hint)
    }

    /// Finds the set that a user means: by its id, its unique beginning, or `latest`, the newest that the cluster
    /// hasn't left behind: that of these system identifiers, if there are sets of it.
    ///
    /// # Errors
    /// [`Error::Usage`] if there is none, with those that exist.
    pub fn find(&self, which: &str, own: &[SystemIdentifier]) -> Result<Manifest> {
        if which == "latest" {
            return self.latest(own);
        }
        let (sets, damaged) = self.sets()?;
        let none =
            || self.none(which, &format!("`{} list` shows those that are there", lockstep()));
        let ids = sets.iter().map(|set| &set.set).chain(damaged.iter().map(|(id, _)| id));
        let id = match names::meant(which, ids.map(SetId::as_str)) {
            Meant::One(id) => id,
            Meant::Nothing => return Err(none()),
            Meant::Several(all) => {
                return Err(Error::usage(
                    format!("several sets of cluster \"{}\" begin with \"{which}\"", self.cluster),
                    format!("write more of it: {}", words::a_few(&all)),
                ));
            }
        };
        if let Some((_, error)) = damaged.into_iter().find(|(damaged, _)| damaged.as_str() == id) {
            return Err(error);
        }
        let found = sets.into_iter().find(|set| set.set.as_str() == id);
        found.ok_or_else(none)
    }

    /// Returns the repositories of the configuration that a set was shipped to, by its own notes alone: this is
    /// called for each of many incomplete sets.
    #[must_use]
    pub fn repositories_with(&self, set: &SetId) -> Vec<String> {
        let shipped = notes::shipped_to(self, set).into_iter().map(|known| known.repository);
        shipped.filter(|name| self.repositories.contains(name)).collect()
    }

    /// Returns the datasets that a manifest names, also a damaged one, as far as it can be read at all. Nothing else
    /// in it can be trusted: existing snapshots have to prove themselves by their own marks.
    #[must_use]
    pub fn datasets_named(&self, set: &SetId) -> Vec<DatasetName> {
        let bytes = std::fs::read(self.set_directory(set).join(MANIFEST)).unwrap_or_default();
        let value: serde_json::Value = serde_json::from_slice(&bytes).unwrap_or_default();
        let volumes = value["volumes"].as_array().into_iter().flatten();
        let names = volumes.filter_map(|volume| volume["dataset"].as_str());
        names.filter_map(|name| DatasetName::new(name).ok()).collect()
    }

    fn read(&self, set: &SetId) -> Result<Manifest> {
        let path = self.set_directory(set).join(MANIFEST);
        let bytes = std::fs::read(&path).map_err(Error::io("read", &path))?;
        let damaged = |why: String| {
            let why = format!("\"{}\": {why}", path.display());
            let repositories = self.repositories_with(set);
            Error::from(Refusal::SetDamaged { set: set.to_string(), why, repositories })
        };
        let manifest = Manifest::parse(&bytes).map_err(damaged)?;
        if manifest.set != *set {
            return Err(damaged(format!("it is the manifest of set {}", manifest.set)));
        }
        Ok(manifest)
    }

    /// Reads a file of a set, checked against the manifest's hash.
    ///
    /// # Errors
    /// [`Refusal::SetDamaged`] when it is gone or differs.
    pub fn read_set_file(&self, manifest: &Manifest, name: &str) -> Result<Vec<u8>> {
        read_file_of(&self.set_directory(&manifest.set), manifest, name)
    }
}

/// Reads a file of a set whose files are in `directory`, checked against the manifest's hash.
///
/// # Errors
/// [`Refusal::SetDamaged`] when it is gone or differs.
pub fn read_file_of(directory: &Path, manifest: &Manifest, name: &str) -> Result<Vec<u8>> {
    let path = directory.join(name);
    let damaged = |why: String| {
        let why = format!("\"{}\" {why}", path.display());
        Error::from(Refusal::damaged(&manifest.set, why))
    };
    let bytes = std::fs::read(&path).map_err(|e| damaged(format!("can't be read: {e}")))?;
    let expected =
        manifest.files.get(name).ok_or_else(|| damaged("isn't in the manifest".into()))?;
    let found = super::manifest::hash(&bytes);
    if found != expected.blake3 {
        return Err(damaged(format!("has hash {found}, the manifest says {}", expected.blake3)));
    }
    Ok(bytes)
}

/// Returns the sets of this folder whose manifests exist.
fn complete_in(folder: &Path) -> Result<Vec<SetId>> {
    let mut ids = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(Error::io("list", folder))? {
        let entry = entry.map_err(Error::io("list", folder))?;
        let id = entry.file_name().to_str().and_then(|name| name.parse::<SetId>().ok());
        ids.extend(id.filter(|_| entry.path().join(MANIFEST).exists()));
    }
    ids.sort();
    Ok(ids)
}

/// Returns the id of a state_dir, which it gets at its first use.
///
/// # Errors
/// When it can't be read or written; or when its file is missing or damaged and there are sets: with another id their
/// snapshots would count as another state_dir's.
pub fn owner_of(state_dir: &Path) -> Result<String> {
    let path = &state_dir.join("owner");
    let is_missing = |e: &std::io::Error| e.kind() == ErrorKind::NotFound;
    let found = std::fs::read(path);
    // A link that leads nowhere is replaced: it would always be there first.
    let is_first = found.as_ref().is_err_and(is_missing) && !path.is_symlink();
    let how = match found {
        Err(e) if is_missing(&e) => "is missing".to_owned(),
        read => {
            let bytes = read.map_err(Error::io("read", path))?;
            match bytes.trim_ascii() {
                [] => "is empty".to_owned(),
                id => match std::str::from_utf8(id).ok().filter(|id| is_owner(id)) {
                    Some(id) => return Ok(id.to_owned()),
                    None => format!("is damaged: \"{}\" is no id", beginning(id).escape_ascii()),
                },
            }
        }
    };
    refuse_with_sets(state_dir, path, &how)?;
    let owner = random_characters::<OWNER>()?;
    let text = format!("{owner}\n");
    if !is_first {
        files::publish(path, text.as_bytes())?;
    } else if !files::publish_first(path, text.as_bytes())? {
        // Another command was faster, and may have marked snapshots with its id by now.
        return owner_of(state_dir);
    }
    Ok(owner)
}

/// The length of a state_dir's id.
const OWNER: usize = 16;

fn is_owner(text: &str) -> bool {
    names::are_random_characters::<OWNER>(text)
}

fn beginning(bytes: &[u8]) -> &[u8] {
    &bytes[..bytes.len().min(2 * OWNER)]
}

fn clusters_in(folder: &Path) -> Result<impl Iterator<Item = Result<PathBuf>>> {
    let entries = std::fs::read_dir(folder).map_err(Error::io("list", folder))?;
    Ok(entries.map(move |entry| Ok(entry.map_err(Error::io("list", folder))?.path())))
}

/// Refuses the id's file at `path`, with which something is wrong, if a cluster of this state_dir has sets, and names
/// the ids in their manifests.
fn refuse_with_sets(state_dir: &Path, path: &Path, how: &str) -> Result<()> {
    let clusters = state_dir.join("clusters");
    if !clusters.is_dir() {
        return Ok(());
    }
    let mut all = Vec::new();
    for cluster in clusters_in(&clusters)? {
        let sets = cluster?.join("sets");
        if sets.is_dir() {
            all.extend(complete_in(&sets)?.into_iter().map(|set| (set, sets.clone())));
        }
    }
    if all.is_empty() {
        return Ok(());
    }
    all.sort();
    let mut owners = Vec::new();
    for (set, sets) in all.iter().rev() {
        let bytes = std::fs::read(sets.join(set.as_str()).join(MANIFEST)).unwrap_or_default();
        let value: serde_json::Value = serde_json::from_slice(&bytes).unwrap_or_default();
        let owner = value["owner"].as_str().map(str::to_owned);
        owners.extend(owner.filter(|owner| is_owner(owner) && !owners.contains(owner)));
    }
    let shows = "`zfs get -r lockstep:owner DATASET` shows it on their snapshots";
    let hint = match owners.as_slice() {
        [] => format!("write the id into it: {shows}"),
        [newest, older @ ..] => {
            let (id, path) = (process::quote(newest), process::quote(&path.display().to_string()));
            let older = match older {
                [] => String::new(),
                older => format!("older sets have {}; ", older.join(", ")),
            };
            format!(
                "`echo {id} > {path}`: that is the newest set's; {older}if sets were adopted, {shows}"
            )
        }
    };
    Err(Error::failed(format!(
        "the file \"{}\" {how}: it had the id of this state_dir, by which its snapshots are known",
        path.display()
    ))
    .with_hint(hint))
}

/// Splits sets into those of the cluster of these system identifiers and those of others, in their order. If there are
/// none of it, or nobody knows which it is, all count.
pub(crate) fn of_cluster(
    sets: Vec<Manifest>,
    own: &[SystemIdentifier],
) -> (Vec<Manifest>, Vec<Manifest>) {
    let is_own = |set: &Manifest| own.contains(&set.postgres.system_identifier);
    if !sets.iter().any(is_own) {
        return (sets, Vec::new());
    }
    sets.into_iter().partition(is_own)
}

/// Warns if a set that was chosen is of another cluster than that of these system identifiers.
pub(crate) fn tell_another(set: &Manifest, own: &[SystemIdentifier]) {
    let found = set.postgres.system_identifier;
    if !own.contains(&found) {
        tracing::warn!(
            set = %set.set,
            "it is of another cluster than the one in data_directory: its system identifier is {found}"
        );
    }
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
