//! Shipping: takes a set from this host into its repositories.
//!
//! Packs and indexes are written first and the manifest last: once it exists, the set is complete there. What an
//! interrupted shipment stored is used by the next one, or collected by `prune`.
//!
//! What could go wrong: a repository that can't be reached must not stop the others, nor make the set on this host
//! any less good.

pub(crate) mod begun;
mod full;
mod journals;
mod lost;
mod missing;
pub mod page_delta;
mod passing;
mod raw;
mod route;
mod shipping;
pub mod tags;
mod volume;
mod walk;

use std::cell::Cell;
use std::time::Duration;

use strata::delta::ImageOptions;
use strata::pack::PackOptions;
use strata::repack::RepackOptions;

use crate::context::Context;
use crate::error::{Error, Result};
use crate::files;
use crate::repository::harm::Harm;
use crate::repository::lease::Held;
use crate::repository::went_back::{self, WentBack};
use crate::repository::{self, Repository, Shipped, harm, known};
use crate::set::at_work::{self, AtWork};
use crate::set::branches::{Apart, LeftBehind};
use crate::set::manifest::Manifest;
use crate::set::notes;
use crate::set::unread;
use crate::steps;

pub use missing::{Missing, lost_for_good, missing};

use shipping::Shipping;

/// The size of a pack, in bytes. With two volumes at once, one pack of each under way and the frames being processed,
/// this bounds the memory.
const PACK_SIZE: u64 = 24 << 20;
/// How long to wait for another host's lease.
const PATIENCE: Duration = Duration::from_secs(600);

/// How much of a set to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// What the repository doesn't have yet.
    Increment,
    /// All of its volumes' content, even if it is already there: existing deltas are replaced.
    Full,
}

/// The outcome for a set in a repository.
#[derive(Debug)]
pub struct Outcome {
    /// The repository's name.
    pub repository: String,
    /// The set there, or why it isn't there.
    pub result: Result<Shipped>,
    /// Whether it was there already and nothing was sent.
    pub already: bool,
    /// What there is to report either way.
    pub beside: Beside,
}

impl Outcome {
    /// The outcome for a set whose manifest can't be read.
    #[must_use]
    pub fn damaged(repository: &str, error: Error) -> Self {
        Self {
            repository: repository.to_owned(),
            result: Err(error),
            already: false,
            beside: Beside { is_of_the_set: true, ..Beside::default() },
        }
    }

    /// Checks that the set is there and on the timeline its cluster lives on, that every page is right, also in the
    /// sets it may be based on, and that all other sets are whole there and none was lost.
    #[must_use]
    pub fn is_well(&self) -> bool {
        let is_well = |shipped: &Shipped| shipped.bad_pages() == 0;
        self.beside.left.is_none()
            && self.beside.apart.is_none()
            && self.beside.harmed.is_empty()
            && self.beside.went_back.is_none()
            && self.result.as_ref().is_ok_and(is_well)
            && self.beside.finished_first.as_ref().is_none_or(is_well)
    }
}

/// What is reported of a shipment however it ends.
#[derive(Debug, Default)]
pub struct Beside {
    /// It was there before, whether or not it could be replaced.
    pub was_there: bool,
    /// An older set whose interrupted full shipment was finished first.
    pub finished_first: Option<Shipped>,
    /// As far as can be told, the set itself is the cause of the failure: the repository may accept others.
    pub is_of_the_set: bool,
    /// Set if the set is there, but on a timeline that its cluster has left.
    pub left: Option<LeftBehind>,
    /// Set if the set is there, but on a timeline along which two clusters continued.
    pub apart: Option<Apart>,
    /// Sets of the repository that aren't whole there.
    pub harmed: Vec<Harm>,
    /// Set if the repository's storage went back to an older state, and sets are gone.
    pub went_back: Option<WentBack>,
}

impl Beside {
    /// Checks that all sets are whole, if that `is_doubtful` or some weren't the last time. In any case, what was
    /// shipped is there.
    fn look_for_harm(&mut self, cx: &Context, repository: &Repository, is_doubtful: bool) {
        match harm::look(cx, repository, is_doubtful) {
            Ok(harmed) => self.harmed = harmed,
            Err(error) => {
                tracing::warn!(repository = %repository.name, error = %error.chain(), "can't tell whether all sets are whole there");
            }
        }
    }

    /// Checks whether sets are gone because the repository's storage went back.
    fn look_back(&mut self, cx: &Context, repository: &Repository) {
        match went_back::lost(cx, repository) {
            Ok(found) => self.went_back = found,
            Err(error) => {
                tracing::warn!(repository = %repository.name, error = %error.chain(), "can't tell whether sets that were lost are there again");
            }
        }
    }

    /// Checks whether a set that is there is on a timeline that its cluster has left, or along which another one
    /// continues. In any case, it is there.
    fn look(&mut self, cx: &Context, repository: &Repository, shipped: &Shipped) {
        let (name, set) = (&repository.name, &shipped.manifest.set);
        match repository.branches(cx) {
            Ok(branches) => {
                for (other, why) in branches.untold() {
                    tracing::warn!(
                        "repository {name}: set {other} can't be read, so it is unknown whether the cluster lives on its timeline: {why}. {}",
                        unread::ways_out(other, Some(name))
                    );
                }
                self.left = branches.left_behind(&shipped.manifest);
                self.apart = branches.apart(&shipped.manifest).cloned();
            }
            Err(error) => {
                tracing::warn!(%set, error = %error.chain(), "the set is there, but it is unknown whether its cluster has left its timeline");
            }
        }
    }
}

/// Ships a set to the named repositories, one after another.
///
/// # Errors
/// Only when it is interrupted; other failures are in the outcomes.
pub fn run(
    cx: &Context,
    manifest: &Manifest,
    names: &[String],
    extent: Extent,
) -> Result<Vec<Outcome>> {
    let mut outcomes = Vec::new();
    for name in names {
        let mut beside = Beside::default();
        let (result, already) = match ship(cx, manifest, name, extent, &mut beside) {
            Err(error @ Error::Interrupted { .. }) => return Err(error),
            Err(error) => (Err(error), false),
            Ok((shipped, already)) => (Ok(shipped), already),
        };
        outcomes.push(Outcome { repository: name.clone(), result, already, beside });
    }
    Ok(outcomes)
}

/// Returns the set there, and whether it was there already.
fn ship(
    cx: &Context,
    manifest: &Manifest,
    name: &str,
    extent: Extent,
    beside: &mut Beside,
) -> Result<(Shipped, bool)> {
    let _lock = at_work::lock(cx, name, "ship")?;
    // Nobody would look for the set in another one that happens to be in its place.
    let repository = repository::open_known(cx, name)?;
    let there = find_there(&repository, manifest, beside)?;
    if let Some(there) = &there
        && extent == Extent::Increment
    {
        (beside.was_there, beside.is_of_the_set) = (true, true);
        beside.went_back = went_back::look(cx, &repository)?;
        let whole = lost::there(cx, &repository, there);
        beside.look_for_harm(cx, &repository, whole.is_err());
        whole?;
        note(cx, there, &repository);
        beside.look(cx, &repository, there);
        return Ok((there.clone(), true));
    }
    beside.was_there = there.is_some();
    beside.is_of_the_set = true;
    let _at_work = AtWork::on(cx, name, manifest)?;
    missing::assert_whole(cx, manifest)?;
    beside.is_of_the_set = false;
    let held = Held::take(cx, &repository, PATIENCE)?;
    beside.look_back(cx, &repository);
    steps::reached("ship.leased")?;
    // While this host waited for the lease, its holder may have removed the set.
    let there = find_there(&repository, manifest, beside)?;
    beside.was_there = there.is_some();
    let doubt = Cell::new(false);
    let shipping = Shipping {
        cx,
        manifest,
        repository: &repository,
        held: &held,
        there: there.as_ref(),
        extent,
        doubt: &doubt,
    };
    match (&there, extent) {
        (Some(there), _) => full::may_be_replaced(there, name)?,
        (None, Extent::Increment) => beside.finished_first = shipping.finish_before()?,
        (None, Extent::Full) => {}
    }
    let stored = shipping.store_and_publish();
    let stored = stored.map_err(|error| {
        let confirmed = held.confirm();
        // The store still answers: the next set's lease shows whether it can be written to.
        beside.is_of_the_set = confirmed.is_ok();
        held.blamed(error, confirmed)
    });
    let shipped = match (stored, &there) {
        (Err(error), Some(there)) if held.check().is_err() => {
            Err(lost::replaced(cx, &repository, there, error))
        }
        (stored, _) => stored,
    }?;
    beside.look(cx, &repository, &shipped);
    beside.look_for_harm(cx, &repository, doubt.get());
    // One of the sets that were lost may be the one that was shipped.
    beside.look_back(cx, &repository);
    Ok((shipped, false))
}

/// Returns the set there. One of another host may have got the same id.
fn find_there(
    repository: &Repository,
    manifest: &Manifest,
    beside: &mut Beside,
) -> Result<Option<Shipped>> {
    let there = repository.read_if_there(manifest.set.as_str())?;
    if let Some(there) = &there
        && let Err(another) = full::assert_same_set(there, manifest, &repository.name)
    {
        beside.is_of_the_set = true;
        return Err(another);
    }
    Ok(there)
}

/// Removes what is known of the pages, deltas and sets of repositories that nothing is shipped to any more. It is
/// found out again if one comes back.
///
/// # Errors
/// When these files can't be listed or removed.
pub(crate) fn forget_former(cx: &Context) -> Result<()> {
    let known = [
        ("seen", ".json"),
        (known::FOLDER, ".json"),
        (harm::FOLDER, ""),
        (went_back::FOLDER, ".json"),
    ];
    for (folder, end) in [("tags", ""), ("deltas", "")].into_iter().chain(known) {
        let folder = cx.state.path(folder);
        let entries = match std::fs::read_dir(&folder) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            entries => entries.map_err(Error::io("list", &folder))?,
        };
        for entry in entries {
            let entry = entry.map_err(Error::io("list", &folder))?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            let Some(name) = name.strip_suffix(end) else { continue };
            if cx.cluster.repositories.iter().any(|own| own == name) {
                continue;
            }
            // A command that began with another configuration may still work on it.
            match at_work::lock(cx, name, "prune") {
                Err(Error::Locked { .. }) => {}
                lock => {
                    let _lock = lock?;
                    files::remove_tree(&entry.path())?;
                }
            }
        }
    }
    Ok(())
}

/// Notes that the set is there. If that fails, the set is there all the same, and the next shipment sees it.
fn note(cx: &Context, shipped: &Shipped, repository: &Repository) {
    let (set, Repository { name, id, .. }) = (&shipped.manifest.set, repository);
    if let Err(error) = notes::note_shipped(cx, set, name, id, shipped.shipped_at) {
        tracing::warn!(%set, "it is in repository {name}, and that can't be noted: {}", error.chain());
    }
}

/// Returns how deltas and packs of this repository are written.
#[must_use]
pub fn options(repository: &Repository) -> ImageOptions {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = repository.config.threads.unwrap_or(cores).max(1);
    let level = repository.config.compression_level;
    let packs = PackOptions { pack_size: PACK_SIZE, level, threads, uploads: 1 };
    ImageOptions { packs, ..ImageOptions::default() }
}

/// Returns how packs of this repository are rewritten in which less than `live_percent` percent is still needed.
#[must_use]
pub fn repack_options(repository: &Repository, live_percent: u8, max_bytes: u64) -> RepackOptions {
    let images = options(repository);
    RepackOptions {
        live_percent: u64::from(live_percent),
        max_bytes,
        frame_size: images.frame_size,
        packs: images.packs,
        index: images.index,
        ..RepackOptions::default()
    }
}
