//! The lease that lets one host at a time write to a cluster's part of a repository, renewed by a
//! thread for as long as it is held.
//!
//! What could go wrong: the holder dies. Its lease expires by itself; on the same host the next
//! start takes it over at once, for the local lock says that its holder is gone. Or the holder stands
//! still for longer than the lease lasts, and goes on when another host has it. Where only the process
//! stood still, this host's clock tells; the clock of a virtual machine that was stopped tells nothing, it
//! stood still too. So whoever is about to delete, to replace or to publish asks the store.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use strata::lease::Lease;

use crate::context::Context;
use crate::error::{Error, Result};
use crate::repository::{Repository, of_strata};
use crate::steps;

/// What the lease is on.
const WRITE: &str = "write";
/// How long it lasts unless it is renewed, in seconds.
const SECONDS: u64 = 300;
/// For so long what the store said of it counts, where one object after another is deleted or replaced.
const CONFIRMED: Duration = Duration::from_secs(5);
/// Between two tries to get it.
const PAUSE: Duration = Duration::from_secs(2);

/// A lease that is held and renewed.
#[derive(Debug)]
pub struct Held {
    stop: Arc<AtomicBool>,
    lost: Arc<AtomicBool>,
    /// Unix time.
    expires: Arc<AtomicU64>,
    /// There until it is given back.
    lease: Option<Arc<Mutex<Lease>>>,
    /// When the store was last asked whose it is.
    confirmed: Mutex<Instant>,
    thread: Option<JoinHandle<()>>,
}

impl Held {
    /// Takes the lease, waiting for as long as `patience` where another host holds it.
    ///
    /// The caller holds the local lock of this cluster and repository: so a lease of this very
    /// host's is one that a killed process left.
    ///
    /// # Errors
    /// [`Error::Locked`] with who holds it, or when the store fails.
    pub fn take(cx: &Context, repository: &Repository, patience: Duration) -> Result<Self> {
        let owner = owner(cx);
        let since = Instant::now();
        let lease = loop {
            let taken =
                Lease::acquire_or_inherit(&repository.strata, WRITE, &owner, SECONDS, now());
            match taken {
                Ok(lease) => break lease,
                Err(strata::Error::Leased { owner, until, .. }) => {
                    if since.elapsed() >= patience {
                        return Err(locked(cx, repository, &owner, until));
                    }
                    std::thread::sleep(PAUSE);
                    steps::reached("lease.waiting")?;
                }
                Err(error) => return Err(of_strata(error)),
            }
        };
        Ok(Self::keep(lease))
    }

    fn keep(lease: Lease) -> Self {
        let (stop, lost) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let (stopped, gone) = (stop.clone(), lost.clone());
        let expires = Arc::new(AtomicU64::new(lease.expires()));
        let until = expires.clone();
        let lease = Arc::new(Mutex::new(lease));
        let renewing = lease.clone();
        // It was taken just now, and the store said so.
        let mut renewed = Instant::now();
        let confirmed = Mutex::new(renewed);
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::SeqCst) {
                std::thread::park_timeout(Duration::from_secs(1));
                if renewed.elapsed() < Duration::from_secs(SECONDS / 3) {
                    continue;
                }
                let mut lease = inside(&renewing);
                match lease.renew(now()) {
                    Ok(()) => {
                        until.store(lease.expires(), Ordering::SeqCst);
                        renewed = Instant::now();
                    }
                    Err(error @ strata::Error::LeaseLost { .. }) => {
                        tracing::error!(%error, "another host writes now");
                        gone.store(true, Ordering::SeqCst);
                        break;
                    }
                    // Tried again in a second, until it has expired.
                    Err(error) if now() < lease.expires() => {
                        tracing::warn!(%error, "the lease could not be renewed");
                    }
                    Err(error) => {
                        tracing::error!(%error, "the lease has expired");
                        gone.store(true, Ordering::SeqCst);
                        break;
                    }
                }
            }
        });
        Self { stop, lost, expires, lease: Some(lease), confirmed, thread: Some(thread) }
    }

    /// That it is still held, as far as this host knows. It is to be asked often: no call to the store is made.
    ///
    /// # Errors
    /// When it was lost: then nothing may be written any more.
    pub fn check(&self) -> Result<()> {
        match self.lost.load(Ordering::SeqCst) {
            true => Err(not_held("was lost to another host")),
            false if now() >= self.expires.load(Ordering::SeqCst) => Err(not_held("has expired")),
            false => Ok(()),
        }
    }

    /// That the store says so too.
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
                self.lost.store(true, Ordering::SeqCst);
                Err(not_held(&format!("was lost to \"{owner}\"")))
            }
            Err(error) => Err(of_strata(error)),
        }
    }

    /// For work of many steps, before each: that it wasn't interrupted, and that the lease is still held; the store is
    /// asked every few seconds.
    ///
    /// # Errors
    /// [`Error::Interrupted`] at this step, or those of [`Self::confirm`].
    pub fn still(&self, step: &str) -> Result<()> {
        steps::passed(step)?;
        let confirmed = *inside(&self.confirmed);
        if confirmed.elapsed() < CONFIRMED { self.check() } else { self.confirm() }
    }
}

/// Nothing is half changed under these locks.
fn inside<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn not_held(how: &str) -> Error {
    Error::failed(format!("the lease on the repository {how}"))
        .with_hint("run it again; are the clocks of both hosts right?")
}

impl Drop for Held {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let Some(thread) = self.thread.take() else { return };
        thread.thread().unpark();
        let _ = thread.join();
        let Some(lease) = self.lease.take().and_then(Arc::into_inner) else { return };
        let lease = lease.into_inner().unwrap_or_else(PoisonError::into_inner);
        if !self.lost.load(Ordering::SeqCst)
            && let Err(error) = lease.release(now())
        {
            tracing::warn!(%error, "the lease expires by itself");
        }
    }
}

/// Who this is, for others and for the next start here.
fn owner(cx: &Context) -> String {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    format!("{host} ({})", cx.state.owner())
}

fn locked(cx: &Context, repository: &Repository, owner: &str, until: u64) -> Error {
    let until = i64::try_from(until).ok().and_then(|at| jiff::Timestamp::from_second(at).ok());
    let until = until.map_or(String::new(), |at| format!(" until {at}, unless it goes on"));
    Error::Locked {
        what: format!("cluster \"{}\" in repository \"{}\"", cx.name, repository.name),
        holder: format!("{owner}{until}"),
        is_lease: true,
    }
}

fn now() -> u64 {
    u64::try_from(jiff::Timestamp::now().as_second()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use strata::store::{ObjectStorage, Store};

    use super::*;

    #[test]
    fn whoever_stood_still_for_too_long_writes_no_more() {
        let scratch = tempfile::tempdir().unwrap();
        let folder = scratch.path().join("lease");
        let store = Store::new(ObjectStorage::folder(&folder).unwrap());
        let repository = strata::Repository::new(store, "clusters/main", None).unwrap();
        let take = |owner, seconds, at| Lease::acquire(&repository, WRITE, owner, seconds, at);
        let held = Held::keep(take("this", 3600, now()).unwrap());
        held.check().unwrap();
        drop(held);
        // As if it had been taken a minute ago, and nothing had run since.
        let held = Held::keep(take("this", 59, now() - 60).unwrap());
        let error = held.check().unwrap_err();
        assert!(error.to_string().contains("has expired"), "{error}");
        take("other", 3600, now()).unwrap();
        drop(held);
        assert!(take("third", 60, now()).is_err(), "what is another's isn't given back");
    }

    #[test]
    fn whose_clock_stood_still_too_asks_the_store() {
        let scratch = tempfile::tempdir().unwrap();
        let folder = scratch.path().join("clock");
        let store = Store::new(ObjectStorage::folder(&folder).unwrap());
        let repository = strata::Repository::new(store, "clusters/main", None).unwrap();
        let take = |owner, seconds, at| Lease::acquire(&repository, WRITE, owner, seconds, at);
        let held = Held::keep(take("this", 300, now()).unwrap());
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
        drop(held);
        other.confirm().unwrap();
    }
}
