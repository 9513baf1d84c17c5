//! Removes a set from this host: completely, or not at all.
//!
//! 1. A journal entry names the snapshots, with their GUIDs.
//! 2. The manifest is withdrawn: from here on the set doesn't exist, and no restore can find it.
//! 3. The snapshots are checked again for dependents, before and after the holds are released: since the first check a
//!    restore may have cloned one, a shipment may have begun, somebody may be working in one, or another state_dir may
//!    have adopted the set. Then everything is put back.
//! 4. The snapshots are destroyed; then the set's files, then the entry.
//!
//! If it is killed before the second step, nothing has happened; after that, the next start finishes it by the same
//! steps. A snapshot of the right name with another GUID is somebody else's, and stays. One whose dataset was renamed
//! is looked for in its pool; if that pool isn't imported, in all pools that are.
//!
//! A full state_dir has no room for the entry, so a little space is reserved for it ([`keep_room`]).

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};

use super::at_work;
use super::journal::{self, RemovalJournal};
use super::manifest::{Manifest, SetVolume};
use super::notes;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::files::{self, reserve};
use crate::names::SetId;
use crate::process::quote;
use crate::steps;
use crate::volume::mounts::{Mount, Mounts};
use crate::volume::zfs::{Away, DatasetName, Guid, Marked, SnapshotFacts, SnapshotName, Standing};

/// How a removal ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Removal {
    /// The set is removed.
    Done,
    /// The set is as it was, for this reason.
    Left(String),
    /// Some of its snapshots are gone and one isn't: the next start continues.
    Unfinished(String),
}

/// Removes a set. `given_up`: the datasets whose snapshots stay where they are and are forgotten, because their pools
/// aren't available, or a `zfs promote` moved them elsewhere.
///
/// # Errors
/// When it was interrupted before it began, or its files can't be changed.
pub fn remove(cx: &Context, manifest: &Manifest, given_up: Vec<DatasetName>) -> Result<Removal> {
    let entry = RemovalJournal {
        set: manifest.set.clone(),
        snapshots: manifest
            .volumes
            .iter()
            .map(|volume| (volume.dataset.clone(), volume.guid))
            .collect(),
        createtxgs: manifest.volumes.iter().map(|volume| volume.createtxg).collect(),
        given_up,
        gives_up: false,
    };
    begin(cx, &entry)
}

/// Removes a set whose manifest can't be read, along with those snapshots that were found to be its own.
///
/// # Errors
/// As [`remove`].
pub fn remove_unread(cx: &Context, set: &SetId, own: &[Marked]) -> Result<Removal> {
    let of = |one: &Marked| (one.snapshot.dataset.clone(), one.facts.guid);
    let entry = RemovalJournal {
        set: set.clone(),
        snapshots: own.iter().map(of).collect(),
        createtxgs: own.iter().map(|one| one.facts.createtxg).collect(),
        given_up: Vec::new(),
        gives_up: false,
    };
    begin(cx, &entry)
}

fn begin(cx: &Context, entry: &RemovalJournal) -> Result<Removal> {
    write_to_remove(cx, &path(cx, entry), entry)?;
    if let Err(interrupted) = steps::reached("prune.journal") {
        files::remove_file(&path(cx, entry))?;
        return Err(interrupted);
    }
    cx.state.withdraw(&entry.set)?;
    // From here on a signal waits until this set is removed.
    let _ = steps::reached("prune.withdrawn");
    finish(cx, entry)
}

/// Reserves a little space in state_dir for the journal of a removal, if there is any; call it with the cluster's
/// lock held.
pub fn keep_room(cx: &Context) {
    if let Err(error) = reserve::make(&reserve_path(cx)) {
        tracing::debug!("nothing is kept back in state_dir: {}", error.chain());
    }
}

/// Writes a removal's entry before it begins; if the disk is full, into the reserved space.
///
/// # Errors
/// When it can't be written.
pub fn write_to_remove<T: serde::Serialize>(cx: &Context, path: &Path, entry: &T) -> Result<()> {
    let full = match journal::write(path, entry) {
        Err(full) if full.lacks_room() => full,
        written => return written,
    };
    let full = match reserve::give(&reserve_path(cx))? {
        true => {
            tracing::warn!("state_dir is full: the space reserved there for removals is used");
            match journal::write(path, entry) {
                Err(full) if full.lacks_room() => full,
                written => return written,
            }
        }
        false => full,
    };
    Err(Error::failed(full.chain()).with_hint(format!(
        "not even the journal of a removal fits into state_dir: free a few KiB on its file system, and run it again; you can delete what is in \"{}\", Lockstep makes it again",
        cx.state.path("tags").display()
    )))
}

fn reserve_path(cx: &Context) -> PathBuf {
    cx.state.path("reserve")
}

/// Finishes the removals that were cut off; call it with the cluster's lock held. What stays for now is reported and
/// isn't a failure: it must not prevent a backup.
///
/// # Errors
/// When a journal can't be read or the set's files can't be changed.
pub fn unfinished(cx: &Context) -> Result<()> {
    for (path, entry) in journal::read_all::<RemovalJournal>(&cx.state.path("removals"))? {
        if cx.state.is_complete(entry.set.as_str()) {
            // Its manifest was never withdrawn, or was put back.
            hold(cx, &entry, &now_named(cx, &entry)?.0)?;
            files::remove_file(&path)?;
            continue;
        }
        tracing::warn!(set = %entry.set, "finishing the removal of a set");
        match finish(cx, &entry)? {
            Removal::Done => {}
            Removal::Left(why) => tracing::warn!(set = %entry.set, "it is kept after all: {why}"),
            Removal::Unfinished(why) => {
                tracing::warn!(set = %entry.set, "it isn't completely removed yet: {why}");
            }
        }
    }
    Ok(())
}

/// A removal that was begun and isn't done.
#[derive(Debug, Clone)]
pub struct CutOff {
    entry: RemovalJournal,
    /// The datasets on pools that aren't available: it isn't done before they are, unless somebody gives them up.
    pub waits_for: BTreeMap<DatasetName, Away>,
}

impl CutOff {
    /// The set.
    #[must_use]
    pub fn set(&self) -> &SetId {
        &self.entry.set
    }

    /// Finishes it without what it waits for.
    ///
    /// # Errors
    /// As [`remove`].
    pub fn give_up(&self, cx: &Context) -> Result<Removal> {
        let mut entry = self.entry.clone();
        entry.given_up.extend(self.waits_for.keys().cloned());
        write_to_remove(cx, &path(cx, &entry), &entry)?;
        finish(cx, &entry)
    }
}

/// Returns the removals that were cut off; after [`unfinished`], those that couldn't be continued.
///
/// # Errors
/// When a journal can't be read, or ZFS can't be asked.
pub fn cut_off(cx: &Context) -> Result<Vec<CutOff>> {
    let begun = journal::read_all::<RemovalJournal>(&cx.state.path("removals"))?;
    let begun = begun.into_iter().map(|(_, entry)| entry);
    let look = |entry: RemovalJournal| {
        let datasets = || entry.snapshots.iter().map(|(of, _)| of).filter(|of| !entry.gives_up(of));
        let away = cx.zfs.all_away(datasets().map(DatasetName::pool))?;
        let waited = |of: &DatasetName| Some((of.clone(), *away.get(of.pool())?));
        let waits_for = datasets().filter_map(waited).collect();
        Ok(CutOff { entry, waits_for })
    };
    begun.filter(|entry| !cx.state.is_complete(entry.set.as_str())).map(look).collect()
}

/// Returns why a snapshot can't be destroyed, apart from Lockstep's own hold.
#[must_use]
pub fn stands(snapshot: &SnapshotName, standing: &Standing, own_hold: u64) -> Option<String> {
    if let Some(clone) = standing.clones.first() {
        return Some(format!("\"{clone}\" is a clone of \"{snapshot}\""));
    }
    (standing.holds > own_hold).then(|| format!("somebody else holds \"{snapshot}\""))
}

/// Returns how a set's snapshot came to its present name, if only its dataset or its pool was renamed.
#[must_use]
pub fn renaming(was: &SnapshotName, now: &SnapshotName) -> String {
    match was.dataset.pool() == now.dataset.pool() {
        true => "its dataset was renamed".into(),
        false => format!("pool \"{}\" was imported under another name", was.dataset.pool()),
    }
}

/// Returns what keeps a set's snapshot where it is now, if a `zfs promote` of a clone moved it there: its own dataset
/// is now a clone of it.
#[must_use]
pub fn promoted(of: &DatasetName, now: &SnapshotName, standing: &Standing) -> Option<String> {
    standing.clones.contains(of).then(|| {
        format!(
            "\"{now}\" went there with `zfs promote`, and \"{of}\" is a clone of it: zfs promote {} brings it back",
            quote(of.as_str())
        )
    })
}

/// Returns how a set's snapshot gets back to its dataset, if a `zfs promote` of a clone moved it away: as [`promoted`],
/// or along with a later one.
#[must_use]
pub fn comes_back(of: &DatasetName, now: &SnapshotName, standing: &Standing) -> Option<String> {
    promoted(of, now, standing).or_else(|| {
        standing.goes_with.contains(of).then(|| {
            format!(
                "\"{now}\" went there with `zfs promote`, and \"{of}\" is a clone of a later snapshot there: zfs promote {} brings it back",
                quote(of.as_str())
            )
        })
    })
}

/// A snapshot as it is in a set's manifest: its name, GUID and transaction group.
pub type Recorded = (SnapshotName, Guid, u64);

/// Returns a volume's snapshot, as the manifest has it.
#[must_use]
pub fn recorded(volume: &SetVolume) -> Recorded {
    (volume.snapshot.clone(), volume.guid, volume.createtxg)
}

/// Finds where those of these snapshots are that nothing has the name of any more.
///
/// # Errors
/// When ZFS fails.
pub fn moved<'a>(
    cx: &Context,
    volumes: impl Iterator<Item = &'a SetVolume>,
) -> Result<BTreeMap<SnapshotName, SnapshotName>> {
    let mut gone: Vec<_> = volumes.map(recorded).collect();
    let names: Vec<_> = gone.iter().map(|(snapshot, ..)| snapshot.clone()).collect();
    let there = cx.zfs.standing(&names)?;
    gone.retain(|(snapshot, ..)| !there.contains_key(snapshot));
    renamed(cx, &gone)
}

/// Finds where snapshots of sets are that are no longer on their datasets, by their old names: a `zfs rename` takes
/// the snapshots along, and so does a `zpool import` under another name. A snapshot with the same GUID and another
/// transaction group is a copy, and somebody else's, unless it carries this state_dir's mark: then it was received and
/// adopted. So is one in another pool that `zpool split` has made: that has another GUID than the set's. The snapshots of
/// each pool are listed once.
///
/// # Errors
/// When ZFS fails.
pub fn renamed(cx: &Context, gone: &[Recorded]) -> Result<BTreeMap<SnapshotName, SnapshotName>> {
    let away = cx.zfs.all_away(gone.iter().map(|one| one.0.dataset.pool()))?;
    let is_renamed = |pool: &str| away.get(pool) == Some(&Away::NotImported);
    let imported = match away.keys().any(|pool| is_renamed(pool)) {
        true => cx.zfs.pools()?,
        false => Vec::new(),
    };
    let mut by_pool: BTreeMap<DatasetName, Vec<&Recorded>> = BTreeMap::new();
    for one in gone {
        let pool = one.0.dataset.pool();
        let pools = match is_renamed(pool) {
            true => imported.clone(),
            false if away.contains_key(pool) => Vec::new(),
            false => vec![DatasetName::new(pool).map_err(Error::failed)?],
        };
        for pool in pools {
            by_pool.entry(pool).or_default().push(one);
        }
    }
    let mut renamed = BTreeMap::new();
    for (pool, gone) in by_pool {
        let names: BTreeSet<&str> = gone.iter().map(|(name, ..)| name.name.as_str()).collect();
        let named = cx.zfs.snapshots_named(&pool, |name| names.contains(name))?;
        let facts = cx.zfs.snapshot_facts(&named)?;
        let marked = marked(cx, &named)?;
        let mut there: BTreeMap<Guid, Vec<(SnapshotName, u64)>> = BTreeMap::new();
        for (found, facts) in named.into_iter().zip(facts) {
            there.entry(facts.guid).or_default().push((found, facts.createtxg));
        }
        for (snapshot, guid, createtxg) in gone {
            let alike = || there.get(guid).into_iter().flatten();
            let mut own = alike().filter(|(found, _)| marked.contains(found));
            let found = match (own.next(), own.next()) {
                (Some(own), None) => Some(own),
                _ => alike().find(|(_, found)| found == createtxg),
            };
            let found = found.map(|(found, _)| found);
            let found = found.filter(|found| *found != snapshot && found.name == snapshot.name);
            let found = found.filter(|_| !is_split_off(cx, snapshot, pool.as_str()));
            renamed.extend(found.map(|found| (snapshot.clone(), found.clone())));
        }
    }
    Ok(renamed)
}

/// Returns those that carry this state_dir's mark as their own, because it took or adopted them: a copy has it from its
/// stream.
fn marked(cx: &Context, snapshots: &[SnapshotName]) -> Result<BTreeSet<SnapshotName>> {
    let mut marked = cx.zfs.carrying(snapshots, "lockstep:owner")?;
    let standing = cx.zfs.standing(&marked.iter().cloned().collect::<Vec<_>>())?;
    marked.retain(|one| standing.get(one).is_some_and(|it| it.owner == cx.state.owner()));
    Ok(marked)
}

/// Whether another pool isn't the one, under another name, that a snapshot's set was taken on. If that one's GUID wasn't
/// noted, nobody knows.
fn is_split_off(cx: &Context, snapshot: &SnapshotName, pool: &str) -> bool {
    let was = || {
        let set: SetId = snapshot.name.strip_prefix("lockstep-")?.parse().ok()?;
        notes::pool_guid(cx, &set, snapshot.dataset.pool())
    };
    snapshot.dataset.pool() != pool && was().is_some_and(|was| cx.zfs.pool_guid(pool) != Some(was))
}

/// Returns the one among these that has this GUID and isn't a copy.
fn itself(
    cx: &Context,
    among: Vec<SnapshotName>,
    guid: Guid,
    createtxg: u64,
) -> Result<Option<SnapshotName>> {
    if among.is_empty() {
        return Ok(None);
    }
    let facts = cx.zfs.snapshot_facts(&among)?;
    let is_it = |facts: &SnapshotFacts| facts.createtxg == createtxg && facts.guid == guid;
    Ok(among.into_iter().zip(&facts).find(|(_, facts)| is_it(facts)).map(|(found, _)| found))
}

/// Returns the set's snapshots under their present names, and what those that exist are.
fn now_named(cx: &Context, entry: &RemovalJournal) -> Result<(Vec<SnapshotName>, AllStanding)> {
    let name = entry.set.snapshot_name();
    let mut named: Vec<_> = entry.snapshots.iter().map(|(of, _)| of.snapshot(&name)).collect();
    let mut there = cx.zfs.standing_alone(&named)?;
    let recorded = named.iter().zip(&entry.snapshots).zip(&entry.createtxgs);
    let mut gone: Vec<Recorded> = recorded
        .map(|((snapshot, (_, guid)), createtxg)| (snapshot.clone(), *guid, *createtxg))
        .collect();
    gone.retain(|(snapshot, guid, _)| {
        there.get(snapshot).is_none_or(|standing| standing.guid != *guid)
    });
    let renamed = renamed(cx, &gone)?;
    for (snapshot, guid, createtxg) in gone {
        if !renamed.contains_key(&snapshot) {
            let_go(cx, &snapshot.dataset, guid, createtxg)?;
        }
    }
    for snapshot in &mut named {
        if let Some(found) = renamed.get(snapshot) {
            *snapshot = found.clone();
        }
    }
    there.extend(cx.zfs.standing_alone(&renamed.into_values().collect::<Vec<_>>())?);
    Ok((named, there))
}

/// Releases a snapshot that somebody has renamed: it is theirs to keep, and without Lockstep's hold theirs to
/// destroy.
fn let_go(cx: &Context, dataset: &DatasetName, guid: Guid, createtxg: u64) -> Result<()> {
    if cx.zfs.away(dataset.pool())?.is_some() || !cx.zfs.exists(dataset.as_str())? {
        return Ok(());
    }
    let Some(found) = itself(cx, cx.zfs.snapshots_of(dataset)?, guid, createtxg)? else {
        return Ok(());
    };
    cx.zfs.release(&found)?;
    tracing::warn!(
        "\"{found}\" is a snapshot of the set that somebody renamed: it stays, and Lockstep doesn't hold it any more"
    );
    Ok(())
}

fn finish(cx: &Context, entry: &RemovalJournal) -> Result<Removal> {
    let (named, there) = now_named(cx, entry)?;
    // Before the release too: a snapshot that `zfs destroy -d` marked goes with its last hold, and can't be put back.
    let before = look(cx, entry, &named, &there, 1)?;
    if let Some(why) = before.in_the_way {
        return keep(cx, entry, &named, before.is_whole, why);
    }
    if let Some(why) = read_only(cx, named.iter().map(|snapshot| snapshot.dataset.pool())) {
        // No hold can be released there, and none has to be put back.
        return if before.is_whole {
            put_back(cx, entry, why)
        } else {
            Ok(Removal::Unfinished(why))
        };
    }
    let _ = steps::reached("prune.looked");
    for snapshot in named.iter().filter(|snapshot| !is_adopted(cx, snapshot, &there)) {
        cx.zfs.release(snapshot)?;
    }
    let Looked { ours, is_whole, in_the_way } =
        look(cx, entry, &named, &cx.zfs.standing_alone(&named)?, 0)?;
    if let Some(why) = in_the_way {
        return keep(cx, entry, &named, is_whole, why);
    }
    let _ = steps::reached("prune.released");
    for (number, at) in ours.iter().enumerate() {
        // A hold that is there again is that of a state_dir which adopts the set at this moment.
        if let Err(error) = cx.zfs.destroy_unheld(&named[*at]) {
            return keep(cx, entry, &named, is_whole && number == 0, error.chain());
        }
        let _ = steps::reached(&format!("prune.destroyed-{}", number + 1));
    }
    // A pool that is merely exported may come back with its snapshot.
    let waited_for = named.iter().zip(&entry.snapshots).filter(|(_, (of, _))| !entry.gives_up(of));
    let pools: BTreeSet<_> = waited_for.map(|(now, _)| now.dataset.pool()).collect();
    for pool in pools {
        if let Some(why) = cx.zfs.away(pool)? {
            let why = format!("pool \"{pool}\" {}", why.state());
            return Ok(Removal::Unfinished(why));
        }
    }
    files::remove_tree(&cx.state.set_directory(&entry.set))?;
    let _ = steps::reached("prune.files");
    files::remove_file(&path(cx, entry))?;
    let _ = steps::reached("prune.removed");
    Ok(Removal::Done)
}

type AllStanding = BTreeMap<SnapshotName, Standing>;

/// What exists of a set that is to be removed.
struct Looked {
    /// Which of its snapshots are there, by their places in the entry.
    ours: Vec<usize>,
    is_whole: bool,
    /// Why one of them can't be destroyed.
    in_the_way: Option<String>,
}

/// Looks at the set's snapshots, on each of which Lockstep has at most `own_holds` holds.
fn look(
    cx: &Context,
    entry: &RemovalJournal,
    named: &[SnapshotName],
    there: &AllStanding,
    own_holds: u64,
) -> Result<Looked> {
    let is_ours =
        |at: usize| there.get(&named[at]).is_some_and(|s| s.guid == entry.snapshots[at].1);
    let mut ours: Vec<_> = (0..named.len()).filter(|at| is_ours(*at)).collect();
    let is_whole = ours.len() == named.len();
    let promoted = |at: usize| promoted(&entry.snapshots[at].0, &named[at], there.get(&named[at])?);
    // The dataset itself stands on it.
    ours.retain(|at| !entry.gives_up(&entry.snapshots[*at].0) || promoted(*at).is_none());
    let is_adopted = |at: usize| is_adopted(cx, &named[at], there);
    let adopted = ours.iter().copied().find(|at| is_whole && is_adopted(*at));
    let mut in_the_way =
        adopted.map(|at| format!("\"{}\" belongs to another state_dir by now", named[at]));
    // What is left of an incomplete set is of no use to anybody, but another one's mark is never ignored.
    ours.retain(|at| !is_adopted(*at));
    let stands = |at: usize| stands(&named[at], there.get(&named[at])?, own_holds);
    if in_the_way.is_none() {
        in_the_way = ours.iter().find_map(|at| promoted(*at).or_else(|| stands(*at)));
    }
    if in_the_way.is_none() {
        let shipping = at_work::all(cx)?.remove(entry.set.as_str());
        in_the_way = shipping.map(|name| format!("it is being shipped to repository {name}"));
    }
    if in_the_way.is_none() {
        in_the_way = in_use(ours.iter().map(|at| &named[*at]))?;
    }
    Ok(Looked { ours, is_whole, in_the_way })
}

/// Whether a snapshot carries another state_dir's mark: that one has adopted the set since its removal was begun.
fn is_adopted(cx: &Context, snapshot: &SnapshotName, there: &AllStanding) -> bool {
    there.get(snapshot).is_some_and(|standing| standing.owner != cx.state.owner())
}

/// Returns why a snapshot is in use: somebody works in it, in `.zfs/snapshot`. ZFS mounts it when somebody looks
/// there, and leaves it mounted for a while: a mount that nobody works in is unmounted.
fn in_use<'a>(snapshots: impl Iterator<Item = &'a SnapshotName>) -> Result<Option<String>> {
    let mounts = Mounts::read()?;
    for snapshot in snapshots {
        let name = snapshot.to_string();
        let of_it = |mount: &&Mount| mount.is_looked_into() && mount.source == name;
        for mount in mounts.iter().filter(of_it) {
            if let Err(Errno::BUSY) = unmount(&mount.point, UnmountFlags::empty()) {
                let why = format!(
                    "somebody works in \"{}\" (`fuser -vm` names them)",
                    mount.point.display()
                );
                return Ok(Some(why));
            }
        }
    }
    Ok(None)
}

/// Puts a set back that is still complete; the removal of an incomplete one continues later.
fn keep(
    cx: &Context,
    entry: &RemovalJournal,
    named: &[SnapshotName],
    is_whole: bool,
    why: String,
) -> Result<Removal> {
    if !is_whole {
        return Ok(Removal::Unfinished(why));
    }
    hold(cx, entry, named)?;
    put_back(cx, entry, why)
}

fn put_back(cx: &Context, entry: &RemovalJournal, why: String) -> Result<Removal> {
    cx.state.put_back(&entry.set)?;
    files::remove_file(&path(cx, entry))?;
    Ok(Removal::Left(why))
}

/// Returns why no snapshot can be destroyed in one of these pools: it is imported read-only.
#[must_use]
pub fn read_only<'a>(cx: &Context, pools: impl Iterator<Item = &'a str>) -> Option<String> {
    let pools: BTreeSet<_> = pools.collect();
    let pool = pools.into_iter().find(|pool| cx.zfs.is_read_only(pool))?;
    Some(format!("pool \"{pool}\" is imported read-only"))
}

/// Holds all existing snapshots of the set, by their present names.
fn hold(cx: &Context, entry: &RemovalJournal, named: &[SnapshotName]) -> Result<()> {
    let there = cx.zfs.standing_alone(named)?;
    for (snapshot, (_, guid)) in named.iter().zip(&entry.snapshots) {
        if there.get(snapshot).is_some_and(|standing| standing.guid == *guid) {
            cx.zfs.hold(std::slice::from_ref(snapshot))?;
        }
    }
    Ok(())
}

fn path(cx: &Context, entry: &RemovalJournal) -> PathBuf {
    cx.state.path("removals").join(format!("{}.json", entry.set))
}
