//! The lease that lets one host at a time write to a cluster's part of a repository. A thread renews it for as long
//! as it is held.
//!
//! What could go wrong: the holder dies. Its lease expires by itself. On the same host the next start takes it over,
//! because the local lock shows that its holder is gone. But a call that the holder had sent may still be on its way:
//! one that deletes what the next holder counts on. So if the store is another machine, the next start first waits
//! for as long as a call may take. The same goes for a holder that lives and gave up a call because the store didn't
//! answer in time: it doesn't give the lease back.
//!
//! Or the same repository has two names on this host, or got another one while a command works there: the local lock
//! is that of a name. So as long as any other of these locks is held, the lease is watched for a renewal first.
//!
//! A copy of this host, state_dir and all, gives the same name. So the name contains the machine, and a lease that is
//! renewed while it is waited for isn't taken over.
//!
//! Or the holder's clock was far ahead when it died, so its lease would never end. So a lease that ends later than
//! any taken now is believed only if it is seen to be renewed, as measured by the one clock that nobody sets. The same
//! goes for a lease that is damaged.
//!
//! Or the store says that the next generation exists, and lists none: a folder has its name, or the listing is of
//! earlier. Trying again at once would never end. So that is tried a few times, and is an error then.
//!
//! Or the holder stands still for longer than the lease lasts, and continues when another host has it. If only the
//! process stood still, this host's clock tells. The clock of a virtual machine that was stopped tells nothing,
//! because it stood still too. So anyone about to delete, replace or publish asks the store first.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use strata::lease::{Lease, Seen, Written};

use crate::config::Place;
use crate::context::{Context, lockstep};
use crate::error::{Error, Result};
use crate::repository::{Repository, of_strata, reserve, went_back};
use crate::set::at_work;
use crate::{steps, threads};

/// What the lease is for.
const WRITE: &str = "write";
/// How long it lasts without renewal, in seconds.
const SECONDS: u64 = 300;
/// It is renewed after this long, in seconds; earlier if the clock says that no more than half of its time is left: the
/// machine slept, or its clock was set.
const RENEWED: u64 = SECONDS / 3;
/// How long an answer of the store about the lease counts, while one object after another is deleted or replaced.
const CONFIRMED: Duration = Duration::from_secs(5);
/// How far clocks may differ, in seconds. A lease that ends later than a new one would, plus this, has a wrong clock.
const AHEAD: u64 = 300;
/// The hint when another host uses this host's name.
const COPIED: &str = "were state_dir and the machine copied, or has the repository two names here? each host needs a state_dir of its own";
/// The hint when there is no room for the lease, and none was kept back.
const NOT_EVEN_A_LEASE: &str = "there isn't even room for the lease that deleting needs: free a few KiB there by removing files that aren't the repository's or that a killed command left (`*#1`), and run it again: it deletes what no set has needed for the grace time";
/// The pause between two attempts to get the lease.
const PAUSE: Duration = Duration::from_secs(2);
/// How often in a row the store may refuse the next generation although nobody holds the lease.
const REFUSED: u32 = 30;
/// The pause between two such attempts: it has been given back meanwhile.
const MOMENT: Duration = Duration::from_millis(100);

/// A lease that is held and renewed.
#[derive(Debug)]
pub struct Held {
    stop: Arc<AtomicBool>,
    /// How it was lost, if it was.
    lost: Arc<OnceLock<String>>,
    /// The owner's name in the lease.
    owner: String,
    /// When it expires, in Unix time.
    expires: Arc<AtomicU64>,
    /// The lease, until it is given back.
    lease: Option<Arc<Mutex<Lease>>>,
    /// When the store was last asked whose lease it is.
    confirmed: Mutex<Instant>,
    thread: Option<JoinHandle<()>>,
    /// Where its generation is noted once it was given back.
    noted: Option<went_back::Place>,
}

impl Held {
    /// The same for a caller that deletes what nothing needs, without waiting. If there is no room for the lease, the
    /// room kept back for it is used. It warns if the storage went back to an older state.
    ///
    /// # Errors
    /// Those of [`Self::take`].
    pub fn take_to_delete(cx: &Context, repository: &Repository) -> Result<Self> {
        let held = Self::take_or_make_room(cx, repository)?;
        went_back::warn(cx, repository);
        Ok(held)
    }

    fn take_or_make_room(cx: &Context, repository: &Repository) -> Result<Self> {
        let full = match Self::take(cx, repository, Duration::ZERO) {
            Err(full) if full.lacks_room() => full,
            taken => return taken,
        };
        let taken = match reserve::give(repository)? {
            true => Self::take_with(cx, repository, Duration::ZERO),
            false => Err(full),
        };
        // A reserve whose creation was killed frees no room.
        taken.map_err(|error| match error.lacks_room() {
            true => Error::failed(error.chain()).with_hint(NOT_EVEN_A_LEASE),
            false => error,
        })
    }

    /// Takes the lease, waiting up to `patience` if another host holds it.
    ///
    /// The caller holds the local lock of this cluster and repository. So a lease of this very host was left by a
    /// killed process.
    ///
    /// # Errors
    /// [`Error::Locked`], which names the holder, or when the store fails.
    pub fn take(cx: &Context, repository: &Repository, patience: Duration) -> Result<Self> {
        let held = Self::take_with(cx, repository, patience)?;
        reserve::keep(repository);
        Ok(held)
    }

    fn take_with(cx: &Context, repository: &Repository, patience: Duration) -> Result<Self> {
        let owner = owner(cx);
        // What a process of this host has asked of a folder ends with the process.
        let call = match repository.config.place() {
            Ok(Place::Folder(_)) => Duration::ZERO,
            _ => Duration::from_secs(repository.config.timeout_seconds.into()),
        };
        let place = place(cx, repository);
        let unchanged = Duration::from_secs(SECONDS);
        // It may be a command under another name of this repository that holds the lease.
        let call = match at_work::is_any_beside(cx, &repository.name)? {
            true => call.max(unchanged),
            false => call,
        };
        let waits = Waits { patience, call, unchanged, place: &place };
        match waits.take(&repository.strata, &owner)? {
            Ok(lease) => {
                let (generation, token) = (lease.generation(), lease.token().to_owned());
                let before = lease.before().cloned();
                let mut held = Self::keep(lease, owner)?;
                held.noted =
                    Some(went_back::taken(cx, repository, before.as_ref(), generation, token)?);
                Ok(held)
            }
            Err(seen) => Err(locked(place, &seen, &owner)),
        }
    }

    fn keep(lease: Lease, owner: String) -> Result<Self> {
        let (stop, lost) = (Arc::new(AtomicBool::new(false)), Arc::new(OnceLock::new()));
        let own = owner.clone();
        let (stopped, gone) = (stop.clone(), lost.clone());
        let expires = Arc::new(AtomicU64::new(lease.expires()));
        let until = expires.clone();
        let lease = Arc::new(Mutex::new(lease));
        let renewing = lease.clone();
        // The lease was taken just now, and the store confirmed it.
        let mut renewed = Instant::now();
        let confirmed = Mutex::new(renewed);
        let renew = move || {
            while !stopped.load(Ordering::SeqCst) {
                std::thread::park_timeout(Duration::from_secs(1));
                let left = until.load(Ordering::SeqCst).saturating_sub(now());
                let is_fresh =
                    renewed.elapsed() < Duration::from_secs(RENEWED) && left > SECONDS / 2;
                if is_fresh || stopped.load(Ordering::SeqCst) {
                    continue;
                }
                let mut lease = inside(&renewing);
                match lease.renew(now()) {
                    Ok(()) => {
                        until.store(lease.expires(), Ordering::SeqCst);
                        renewed = Instant::now();
                    }
                    Err(strata::Error::LeaseLost { owner, .. }) => {
                        let how = lost_to(&owner, &own);
                        tracing::error!("the lease {how}");
                        let _ = gone.set(how);
                        break;
                    }
                    // Tried again in a second, until the lease has expired.
                    Err(error) if now() < lease.expires() => {
                        tracing::warn!(%error, "the lease could not be renewed");
                    }
                    Err(error) => {
                        tracing::error!(%error, "the lease has expired");
                        let _ = gone.set("has expired".to_owned());
                        break;
                    }
                }
            }
        };
        let lease = Some(lease);
        let mut held =
            Self { stop, lost, owner, expires, lease, confirmed, thread: None, noted: None };
        // If that fails, the lease is given back.
        held.thread = Some(threads::start(renew)?);
        Ok(held)
    }

    /// Checks that the lease is still held, as far as this host knows. It makes no call to the store, so call it
    /// often.
    ///
    /// # Errors
    /// When it was lost: nothing may be written any more.
    pub fn check(&self) -> Result<()> {
        match self.lost.get() {
            Some(how) => Err(not_held(how)),
            None if now() >= self.expires.load(Ordering::SeqCst) => Err(not_held("has expired")),
            None => Ok(()),
        }
    }

    /// Checks with the store that the lease is still held.
    ///
    /// # Errors
    /// When it was lost, or the store fails.
    pub fn confirm(&self) -> Result<()> {
        self.check()?;
        let asked = Instant::now();
        let lease = self.lease.as_deref().map(inside);
        match lease.map_or(Ok(()), |lease| lease.confirm()) {
            Ok(()) => {
                *inside(&self.confirmed) = asked;
                Ok(())
            }
            Err(strata::Error::LeaseLost { owner, .. }) => {
                let how = self.lost.get_or_init(|| lost_to(&owner, &self.owner));
                Err(not_held(how))
            }
            Err(error) => Err(of_strata(error)),
        }
    }

    /// Explains why work under the lease failed, given what the store said then ([`Self::confirm`]): if the lease was
    /// lost, that is the reason. What another host does meanwhile looks like damage.
    pub fn blamed(&self, error: Error, confirmed: Result<()>) -> Error {
        match (error, confirmed) {
            (interrupted @ Error::Interrupted { .. }, _) => interrupted,
            // A store that fails says nothing about the lease.
            (error, Err(lost))
                if self.check().is_err() && error.to_string() != lost.to_string() =>
            {
                lost.because(error)
            }
            (error, _) => error,
        }
    }

    /// Checks at the end of work of many steps that the lease was held all the time. Otherwise a machine that was
    /// stopped between an answer of the store and a later write wouldn't notice.
    ///
    /// # Errors
    /// When it was lost. A store that fails here says nothing about what was done.
    pub fn was_held(&self) -> Result<()> {
        match self.confirm() {
            Err(lost) if self.check().is_err() => Err(Error::failed(
                "what was written last may need something that another host has removed meanwhile",
            )
            .because(lost)
            .with_hint(format!(
                "`{} repo check` says whether sets are harmed, and how to repair them",
                lockstep()
            ))),
            _ => Ok(()),
        }
    }

    /// Checks before each step of longer work that it wasn't interrupted and that the lease is still held. The store
    /// is asked every few seconds.
    ///
    /// # Errors
    /// [`Error::Interrupted`] at this step, or those of [`Self::confirm`].
    pub fn still(&self, step: &str) -> Result<()> {
        steps::passed(step)?;
        let confirmed = *inside(&self.confirmed);
        if confirmed.elapsed() < CONFIRMED { self.check() } else { self.confirm() }
    }
}

/// How long to wait for what.
struct Waits<'a> {
    /// What the lease is for, in words.
    place: &'a str,
    /// For a lease that somebody holds.
    patience: Duration,
    /// For calls that a dead process of this host may have sent, or for a renewal if one may be alive.
    call: Duration,
    /// For a renewal of a lease that ends too late to be believed, or that is damaged.
    unchanged: Duration,
}

impl Waits<'_> {
    /// Takes the lease, or says who holds it.
    fn take(&self, strata: &strata::Repository, owner: &str) -> Result<Result<Lease, Seen>> {
        let since = Instant::now();
        let mut watched: Option<(u64, Instant)> = None;
        // Whether the lease was seen to be renewed or taken by another: then somebody is alive.
        let mut goes_on = false;
        let mut is_told = false;
        let mut refused = 0;
        loop {
            match Lease::acquire(strata, WRITE, owner, SECONDS, now()) {
                Ok(lease) => return Ok(Ok(lease)),
                Err(strata::Error::Leased { .. }) => {}
                Err(error) => return Err(of_strata(error)),
            }
            let Some(seen) = Lease::seen(strata, WRITE).map_err(of_strata)? else {
                refused += 1;
                if refused > REFUSED {
                    return Err(Error::failed(format!(
                        "nobody holds {}, and its store refuses the next lease as one that exists",
                        self.place
                    ))
                    .with_hint("look into leases/write there: is the next number that of a folder or link? remove what isn't Lockstep's. A store has to list what was written at once"));
                }
                std::thread::sleep(MOMENT);
                steps::reached("lease.waiting")?;
                continue;
            };
            refused = 0;
            let first = match watched {
                Some((generation, first)) if generation == seen.generation => first,
                before => {
                    goes_on |= before.is_some();
                    let first = Instant::now();
                    watched = Some((seen.generation, first));
                    if let Some((wait, why)) = self.counts_as_dead_after(&seen, owner)
                        && !goes_on
                        && !wait.is_zero()
                    {
                        tracing::warn!(
                            "{why}: it is taken over in {} seconds, unless its holder renews it",
                            wait.as_secs()
                        );
                    }
                    first
                }
            };
            match self.counts_as_dead_after(&seen, owner).filter(|_| !goes_on) {
                Some((wait, _)) => match wait.checked_sub(first.elapsed()) {
                    Some(left) if !left.is_zero() => {
                        std::thread::sleep(left.min(PAUSE));
                        steps::reached("lease.inheriting")?;
                    }
                    _ => match Lease::take_over(strata, WRITE, owner, SECONDS, now(), &seen) {
                        Ok(lease) => return Ok(Ok(lease)),
                        Err(strata::Error::Leased { .. }) => {}
                        Err(error) => return Err(of_strata(error)),
                    },
                },
                None if since.elapsed() >= self.patience => return Ok(Err(seen)),
                None => {
                    if !std::mem::replace(&mut is_told, true) {
                        tracing::warn!(
                            "{} is in use by {}: waiting up to {} seconds for it",
                            self.place,
                            holder(&seen, owner),
                            self.patience.as_secs()
                        );
                    }
                    std::thread::sleep(PAUSE);
                    steps::reached("lease.waiting")?;
                }
            }
        }
    }

    /// After how long without a change its holder is known to be gone, and why; nothing if its end is waited for.
    fn counts_as_dead_after(&self, seen: &Seen, owner: &str) -> Option<(Duration, String)> {
        if seen.owner == owner {
            let why = "a process of this host left the lease, and what it sent to the store may still be on its way";
            return Some((self.call, why.to_owned()));
        }
        doubt(seen).map(|why| (self.unchanged, why))
    }
}

/// Returns why a lease's end isn't believed: it is damaged, or it ends later than one taken just now could, even with
/// clocks that differ.
fn doubt(seen: &Seen) -> Option<String> {
    if let Some(damaged) = &seen.damaged {
        return Some(format!("nobody can tell who holds the lease: {damaged}"));
    }
    (seen.expires > now().saturating_add(SECONDS + AHEAD)).then(|| {
        format!(
            "the lease of {} lasts{}, longer than any: was its clock right?",
            seen.owner,
            until(seen.expires)
        )
    })
}

/// What becomes of such a lease.
pub(crate) const DOUBTFUL_HINT: &str = "if a clock is wrong, set it right; the next `ship` or `prune` waits five minutes, and takes the lease over unless its holder renews it";

/// Describes a lease that no correct clock wrote, or that is damaged.
///
/// # Errors
/// When the store fails.
pub(crate) fn doubtful(repository: &Repository) -> Result<Option<String>> {
    let seen = Lease::seen(&repository.strata, WRITE).map_err(of_strata)?;
    Ok(seen.as_ref().and_then(doubt))
}

/// Returns the highest generation there; `None` if there is none.
///
/// # Errors
/// When the store fails.
pub(super) fn latest(repository: &Repository) -> Result<Option<Written>> {
    Lease::latest(&repository.strata, WRITE).map_err(of_strata)
}

fn lost_to(owner: &str, own: &str) -> String {
    match owner == own {
        true => format!("was lost to \"{owner}\", which is this host's own name"),
        false => format!("was lost to \"{owner}\""),
    }
}

/// Nothing is left half changed under these locks, so a poisoned one is fine.
fn inside<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn not_held(how: &str) -> Error {
    Error::failed(format!("the lease on the repository {how}")).with_hint(
        match how.ends_with("own name") {
            true => COPIED,
            false => "run it again; are the clocks of both hosts right?",
        },
    )
}

impl Drop for Held {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
        let Some(lease) = self.lease.take().and_then(Arc::into_inner) else { return };
        let lease = lease.into_inner().unwrap_or_else(PoisonError::into_inner);
        if self.lost.get().is_some() {
            return;
        }
        if lease.is_in_doubt() {
            tracing::warn!(
                "the store didn't answer in time, and what was sent to it may still be on its way: the lease expires by itself"
            );
            return;
        }
        match (lease.release(now()), &self.noted) {
            (Ok(generation), Some(noted)) => noted.given_back(generation),
            (Ok(_), None) => {}
            (Err(error), _) => tracing::warn!(%error, "the lease expires by itself"),
        }
    }
}

/// Names this host, for others and for the next start here.
pub(super) fn owner(cx: &Context) -> String {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    named(&host, cx.state.owner(), &machine())
}

/// A copy of state_dir on another machine gets another name.
fn named(host: &str, owner: &str, machine: &str) -> String {
    format!("{host} ({owner}, machine {machine})")
}

/// Tells this machine apart from a copy of its disks, also after a restart. The machine's id itself isn't for others
/// to see (machine-id(5)).
fn machine() -> String {
    let of = ["/etc/machine-id", "/sys/class/dmi/id/product_uuid"];
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let hash =
        blake3::derive_key("lockstep 1 machine of a lease", of.map(read).join("\n").as_bytes());
    hash.iter().take(4).map(|byte| format!("{byte:02x}")).collect()
}

/// The end of the lease in words, if it is a valid time.
fn until(expires: u64) -> String {
    let at = i64::try_from(expires).ok().and_then(|at| jiff::Timestamp::from_second(at).ok());
    at.map_or(String::new(), |at| format!(" until {at}"))
}

/// What the lease is for, in words.
fn place(cx: &Context, repository: &Repository) -> String {
    format!("cluster \"{}\" in repository \"{}\"", cx.name, repository.name)
}

/// Says who holds it until when.
fn holder(seen: &Seen, own: &str) -> String {
    let until = match until(seen.expires) {
        none if none.is_empty() => none,
        until => format!("{until}, unless its holder renews it"),
    };
    let owner = match seen.owner == own {
        true => format!("{own}, this host's own name: {COPIED};"),
        false => seen.owner.clone(),
    };
    format!("{owner}{until}")
}

fn locked(what: String, seen: &Seen, own: &str) -> Error {
    Error::Locked { what, holder: holder(seen, own), is_lease: true }
}

fn now() -> u64 {
    u64::try_from(jiff::Timestamp::now().as_second()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use strata::store::{ObjectStorage, Retries, Store, StoreError, StoreErrorKind};

    use super::*;

    #[test]
    fn whoever_stood_still_for_too_long_writes_no_more() {
        let scratch = tempfile::tempdir().unwrap();
        let folder = scratch.path().join("lease");
        let store = Store::new(ObjectStorage::folder(&folder).unwrap());
        let repository = strata::Repository::new(store, "clusters/main", None).unwrap();
        let take = |owner, seconds, at| Lease::acquire(&repository, WRITE, owner, seconds, at);
        let held = Held::keep(take("this", 3600, now()).unwrap(), "this".into()).unwrap();
        held.check().unwrap();
        drop(held);
        // As if it had been taken a minute ago and nothing had run since.
        let held = Held::keep(take("this", 59, now() - 60).unwrap(), "this".into()).unwrap();
        let error = held.check().unwrap_err();
        assert!(error.to_string().contains("has expired"), "{error}");
        take("other", 3600, now()).unwrap();
        drop(held);
        assert!(take("third", 60, now()).is_err(), "what is another's isn't given back");
    }

    /// A laptop that slept for three minutes: the clock that measures the pause between two renewals slept too.
    #[test]
    fn who_slept_renews_the_lease_before_it_expires() {
        let scratch = tempfile::tempdir().unwrap();
        let repository = repository(&scratch);
        let lease = Lease::acquire(&repository, WRITE, "this", SECONDS, now() - 180).unwrap();
        let held = Held::keep(lease, "this".into()).unwrap();
        let begun = Instant::now();
        while held.expires.load(Ordering::SeqCst) < now() + SECONDS - 60 {
            assert!(begun.elapsed() < Duration::from_secs(30), "it isn't renewed");
            std::thread::sleep(Duration::from_millis(50));
        }
        held.confirm().unwrap();
    }

    #[test]
    fn whose_clock_stood_still_too_asks_the_store() {
        let scratch = tempfile::tempdir().unwrap();
        let folder = scratch.path().join("clock");
        let store = Store::new(ObjectStorage::folder(&folder).unwrap());
        let repository = strata::Repository::new(store, "clusters/main", None).unwrap();
        let take = |owner, seconds, at| Lease::acquire(&repository, WRITE, owner, seconds, at);
        let held = Held::keep(take("this", 300, now()).unwrap(), "this".into()).unwrap();
        held.confirm().unwrap();
        held.still("test.still").unwrap();
        // Ten minutes later everywhere else.
        let other = take("other", 300, now() + 600).unwrap();
        held.check().unwrap();
        let long_ago = Instant::now().checked_sub(CONFIRMED).unwrap();
        *held.confirmed.lock().unwrap() = long_ago;
        let error = held.still("test.still").unwrap_err();
        assert!(error.to_string().contains("was lost to \"other\""), "{error}");
        assert!(held.check().is_err() && held.confirm().is_err(), "from then on it is known here");
        assert!(held.was_held().unwrap_err().hint().unwrap().contains("repo check"));
        // What looks like damage is the other host's doing.
        let blamed = |error| held.blamed(error, held.confirm()).to_string();
        assert!(blamed(Error::failed("it does not exist")).contains("was lost to \"other\""));
        assert!(!blamed(Error::Interrupted { step: "test".into() }).contains("was lost"));
        drop(held);
        other.confirm().unwrap();
    }

    /// A store that doesn't answer in time whether it has deleted something.
    struct Slow(ObjectStorage);

    impl strata::store::Around for Slow {
        fn inner(&self) -> &dyn strata::store::Storage {
            &self.0
        }

        fn delete(&self, path: &str) -> strata::store::StoreResult<()> {
            match path.contains("/sets/") {
                true => Err(StoreError::new("delete", path, StoreErrorKind::TimedOut)),
                false => self.inner().delete(path),
            }
        }
    }

    #[test]
    fn who_got_no_answer_does_not_give_the_lease_back() {
        let scratch = tempfile::tempdir().unwrap();
        let slow = Slow(ObjectStorage::folder(&scratch.path().join("slow")).unwrap());
        let retries = Retries { tries: 2, first_pause: Duration::ZERO };
        let store = Store::with_retries(slow, retries);
        let repository = strata::Repository::new(store.clone(), "clusters/main", None).unwrap();
        let take = |owner| Lease::acquire(&repository, WRITE, owner, 300, now());
        drop(Held::keep(take("this").unwrap(), "this".into()).unwrap());
        let held = Held::keep(take("this").unwrap(), "this".into()).unwrap();
        store.delete("clusters/main/packs/x").unwrap();
        store.delete("clusters/main/sets/x.json").unwrap_err();
        drop(held);
        // It may be deleted yet: nobody counts on it until then.
        let seen = Lease::seen(&repository, WRITE).unwrap().unwrap();
        assert_eq!(seen.owner, "this");
        assert!(take("other").is_err());
    }

    const SHORT: Duration = Duration::from_millis(600);
    const SOON: Waits<'static> = Waits {
        place: "it",
        patience: Duration::ZERO,
        call: Duration::ZERO,
        unchanged: Duration::ZERO,
    };

    fn repository(scratch: &tempfile::TempDir) -> strata::Repository {
        let store = Store::new(ObjectStorage::folder(&scratch.path().join("r")).unwrap());
        strata::Repository::new(store, "clusters/main", None).unwrap()
    }

    #[test]
    fn what_a_dead_process_sent_is_waited_for() {
        let scratch = tempfile::tempdir().unwrap();
        let repository = repository(&scratch);
        let dead = || Lease::acquire(&repository, WRITE, "this", 300, now()).unwrap();
        drop(dead());
        let begun = Instant::now();
        let taken = Waits { call: SHORT, ..SOON }.take(&repository, "this").unwrap().unwrap();
        assert!(begun.elapsed() >= SHORT);
        taken.release(now()).unwrap();
        // After it was given back, there is nothing to wait for.
        let far = Waits { call: Duration::from_secs(600), ..SOON };
        far.take(&repository, "this").unwrap().unwrap().release(now()).unwrap();
        // Nor if the store's calls end with the process.
        drop(dead());
        SOON.take(&repository, "this").unwrap().unwrap();
    }

    #[test]
    fn a_next_generation_that_is_no_lease_is_not_tried_for_ever() {
        let scratch = tempfile::tempdir().unwrap();
        let repository = repository(&scratch);
        let lease = Lease::acquire(&repository, WRITE, "this", 300, now()).unwrap();
        let next = lease.release(now()).unwrap() + 1;
        let next = scratch.path().join(format!("r/clusters/main/leases/{WRITE}/{next:020}"));
        std::fs::create_dir(&next).unwrap();
        let error = SOON.take(&repository, "this").unwrap_err();
        assert!(error.hint().unwrap().contains("leases/write"), "{error}");
        std::fs::remove_dir(&next).unwrap();
        SOON.take(&repository, "this").unwrap().unwrap();
    }

    #[test]
    fn a_copy_of_this_host_that_lives_keeps_its_lease() {
        let scratch = tempfile::tempdir().unwrap();
        let repository = repository(&scratch);
        let mut copy = Lease::acquire(&repository, WRITE, "this", 300, now()).unwrap();
        std::thread::scope(|scope| {
            let taking = scope.spawn(|| {
                Waits { call: Duration::from_secs(8), ..SOON }.take(&repository, "this").unwrap()
            });
            std::thread::sleep(SHORT);
            copy.renew(now()).unwrap();
            assert_eq!(taking.join().unwrap().unwrap_err().owner, "this");
        });
        copy.confirm().unwrap();
        // If the copy had the lease all the same, the error says what may be wrong.
        let held = Held::keep(copy, "this".into()).unwrap();
        let seen = Lease::seen(&repository, WRITE).unwrap().unwrap();
        let other = Lease::take_over(&repository, WRITE, "this", 300, now(), &seen).unwrap();
        let error = held.confirm().unwrap_err();
        assert!(error.hint().unwrap().contains("copied"), "{error}");
        other.confirm().unwrap();
        let of = |machine| named("db1", "a1b2", machine);
        assert_ne!(of("1"), of("2"), "on another machine it has another name");
        assert_eq!(machine(), machine());
    }

    #[test]
    fn a_lease_that_ends_too_late_has_to_go_on() {
        let scratch = tempfile::tempdir().unwrap();
        let repository = repository(&scratch);
        let waits = Waits { unchanged: SHORT, ..SOON };
        let ends = now() + 1_000_000_000;
        let mut wrong = Lease::acquire(&repository, WRITE, "db2", 300, ends).unwrap();
        let seen = Lease::seen(&repository, WRITE).unwrap().unwrap();
        assert!(doubt(&seen).unwrap().contains(" until 20"), "{:?}", doubt(&seen));
        // The holder is alive.
        std::thread::scope(|scope| {
            let taking = scope.spawn(|| {
                let long = Waits { unchanged: Duration::from_secs(8), ..SOON };
                long.take(&repository, "this").unwrap()
            });
            std::thread::sleep(SHORT);
            wrong.renew(ends + 100).unwrap();
            assert_eq!(taking.join().unwrap().unwrap_err().owner, "db2");
        });
        let begun = Instant::now();
        let taken = waits.take(&repository, "this").unwrap().unwrap();
        assert!(begun.elapsed() >= SHORT && taken.expires() < now() + SECONDS + 1);
        assert!(wrong.renew(ends + 200).is_err());
        taken.release(now()).unwrap();
        // A damaged one has no end that could be believed.
        let lease = Lease::acquire(&repository, WRITE, "db2", 300, now()).unwrap();
        let generation = Lease::seen(&repository, WRITE).unwrap().unwrap().generation;
        let path = format!("clusters/main/leases/{WRITE}/{generation:020}");
        repository.store().put(&path, &[b"cut".to_vec().into()]).unwrap();
        let begun = Instant::now();
        waits.take(&repository, "this").unwrap().unwrap().release(now()).unwrap();
        assert!(begun.elapsed() >= SHORT && lease.confirm().is_err());
        // A lease that a correct clock wrote is believed, even if this host's clock is a little behind.
        Lease::acquire(&repository, WRITE, "db2", 300, now() + AHEAD / 2).unwrap();
        assert_eq!(waits.take(&repository, "this").unwrap().unwrap_err().owner, "db2");
    }
}
