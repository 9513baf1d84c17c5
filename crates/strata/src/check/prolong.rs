//! Prolongs the locks of what is kept, in stores that lock what is written for some time.
//!
//! Sets share packs, so what today's set needs may have been written long ago. What could go wrong:
//!
//! - Something that a kept set needs isn't locked. So all of it is prolonged in time, including what nothing needed at
//!   the last run and a kept set needs now.
//! - One object that can't be locked keeps the later ones from being locked. So it is skipped, reported, and tried
//!   again.
//! - What is kept only because it is locked is locked again, forever. So callers say which sets are kept for other
//!   reasons, and only what these need is prolonged.
//! - Millions of requests are made each day. So the note says until when everything is locked ([`Locks`]), and how far
//!   an interrupted run came.

use std::collections::BTreeSet;

use super::Survey;
use super::locks::{Locks, MOST_LEFT, Next, lock_seconds};
use crate::error::{Error, Result};
use crate::id::Ulid;
use crate::lease::Still;
use crate::many::read_many;
use crate::repository::Repository;
use crate::store::StoreErrorKind;

/// Requests after which the lease is checked.
const PART: usize = 128;
/// After this many parts, the progress is noted.
const PARTS: usize = 128;

/// What is prolonged besides what the kept sets need, and when.
#[derive(Clone, Debug, Default)]
pub struct Prolonging {
    /// Store paths of what else is worth keeping.
    pub more: Vec<String>,
    /// What was deleted since the survey.
    pub gone: Vec<String>,
    /// Unix time.
    pub now: u64,
}

/// What was prolonged.
#[derive(Debug, Default)]
pub struct Prolonged {
    /// The number of objects whose locks were prolonged.
    pub count: u64,
    /// Why not everything was prolonged: the first error. The next run tries again.
    pub failed: Option<Error>,
}

impl Survey {
    /// Prolongs the locks of what the kept sets need, if that is due.
    ///
    /// Failures are in the result and don't undo anything. An error comes only from `still`, which is called now and
    /// then: a process that has lost the lease leaves the work to its holder.
    pub fn prolong(
        &self,
        repository: &Repository,
        what: &Prolonging,
        still: Still<'_>,
    ) -> Result<Prolonged> {
        let seconds = lock_seconds(repository);
        let prolonged = Prolonged::default();
        if seconds == 0 {
            return Ok(prolonged);
        }
        let locks = match Locks::read(repository) {
            Ok(locks) => locks,
            Err(error) => return Ok(Prolonged { failed: Some(error), ..prolonged }),
        };
        let mut work = Work {
            survey: self,
            repository,
            what,
            seconds,
            still,
            locks,
            until: 0,
            prolonged,
            is_refused: false,
            lost: None,
        };
        let ended = work.run();
        if let Some(lost) = work.lost {
            return Err(lost);
        }
        let failed = ended.err().or(work.prolonged.failed);
        Ok(Prolonged { failed, ..work.prolonged })
    }
}

struct Work<'a> {
    survey: &'a Survey,
    repository: &'a Repository,
    what: &'a Prolonging,
    seconds: u64,
    still: Still<'a>,
    locks: Locks,
    /// Until when it locks.
    until: u64,
    prolonged: Prolonged,
    /// The store refused to lock something that exists and is needed.
    is_refused: bool,
    /// The error of `still`.
    lost: Option<Error>,
}

impl Work<'_> {
    fn run(&mut self) -> Result<()> {
        let now = self.what.now;
        let (from, again) = match self.locks.next(now, self.seconds) {
            Next::Nothing => return self.needed_again(),
            Next::Begin => {
                self.until = self.locks.begin(now, self.seconds);
                (None, Vec::new())
            }
            Next::GoOn(packs) => {
                self.until = self.locks.until().unwrap_or(now);
                // What was left out before may come before the point where the run continues.
                let again = self.needed_by_now();
                (packs.and_then(|pack| Ulid::from_text(pack.as_bytes())), again)
            }
        };
        let gone: BTreeSet<&str> = self.what.gone.iter().map(String::as_str).collect();
        self.locks.leave_these(self.survey.left_out(&gone), now, MOST_LEFT);
        // They stay left out until they are locked.
        again.iter().for_each(|path| self.locks.leave(path.clone(), now));
        self.write()?;
        // What others need and isn't noted would count as locked, so it is locked too.
        let (survey, repository, what) = (self.survey, self.repository, self.what);
        let is_unnoted = |path: &String| {
            !self.locks.is_left(path) && survey.is_needed_by_others(repository, path)
        };
        let unnoted: Vec<_> = survey.left_out(&gone).filter(is_unnoted).collect();
        let kept = survey.to_lock(repository, from, self.until, self.seconds);
        // First a few that always exist: if these can be locked, a refusal of others is due to the objects themselves.
        let first = what.more.iter().cloned().chain(again);
        let locked = self.lock(first).and_then(|()| self.lock_in_order(kept));
        if let Err(error) = locked.and_then(|()| self.lock(unnoted.into_iter())) {
            // Note the progress; the first error is the one to report.
            let _ = self.write();
            return Err(error);
        }
        // If something was refused, the next run continues after the packs and tries that again.
        if !self.is_refused {
            self.locks.end();
        }
        self.write()
    }

    /// Locks what was left out and is needed now.
    fn needed_again(&mut self) -> Result<()> {
        let again = self.needed_by_now();
        let Some(until) = self.locks.until().filter(|_| !again.is_empty()) else { return Ok(()) };
        self.until = until;
        self.lock(again.into_iter())?;
        if self.is_refused {
            // The packs have been locked, but not everything.
            self.locks.reopen(self.survey.last_kept_pack().map(|pack| pack.to_string()));
        }
        self.write()
    }

    /// Returns what was left out and is needed by a kept set now.
    fn needed_by_now(&self) -> Vec<String> {
        let left = self.locks.left();
        left.filter(|path| self.survey.is_kept(self.repository, path)).cloned().collect()
    }

    /// Locks what the kept sets need, packs first and in ascending order, and notes the progress.
    ///
    /// Only this progress says how far a run has come: anything skipped before it would never be locked.
    fn lock_in_order(&mut self, mut paths: impl Iterator<Item = String>) -> Result<()> {
        for number in 1.. {
            let part: Vec<_> = paths.by_ref().take(PART).collect();
            if part.is_empty() {
                break;
            }
            self.lock_part(&part)?;
            let mut names = part.iter().rev().map(|path| self.repository.relative(path));
            if let Some(pack) = names.find_map(|name| name.strip_prefix("packs/")) {
                self.locks.reached(pack);
                if number % PARTS == 0 {
                    self.write()?;
                }
            }
        }
        Ok(())
    }

    /// Locks all of these.
    fn lock(&mut self, mut paths: impl Iterator<Item = String>) -> Result<()> {
        loop {
            let part: Vec<_> = paths.by_ref().take(PART).collect();
            if part.is_empty() {
                return Ok(());
            }
            self.lock_part(&part)?;
        }
    }

    /// Locks these. What doesn't exist or can't be locked is left out, and the first such error is kept.
    fn lock_part(&mut self, part: &[String]) -> Result<()> {
        self.is_held()?;
        let (store, until, now) = (self.repository.store().clone(), self.until, self.what.now);
        let (locks, prolonged) = (&mut self.locks, &mut self.prolonged);
        let mut refused = 0;
        let lock = |path: &String| store.lock_until(path, until);
        read_many::<_, _, Error>(part, lock, |path, locked| match locked {
            Ok(()) => {
                locks.taken(path);
                prolonged.count += 1;
                Ok(())
            }
            Err(error) if is_of_this_object(error.kind) => {
                refused += usize::from(error.kind != StoreErrorKind::NotFound);
                locks.leave(path.clone(), now);
                prolonged.failed.get_or_insert(error.into());
                Ok(())
            }
            Err(error) => Err(error.into()),
        })?;
        self.is_refused |= refused > 0;
        // A client that may lock nothing isn't refused a hundred thousand times.
        let is_hopeless = refused == PART && prolonged.count == 0;
        prolonged.failed.take_if(|_| is_hopeless).map_or(Ok(()), Err)
    }

    fn is_held(&mut self) -> Result<()> {
        (self.still)().map_err(|error| {
            let words = error.to_string();
            self.lost.get_or_insert(error);
            Error::caller(words)
        })
    }

    fn write(&mut self) -> Result<()> {
        self.is_held()?;
        self.locks.write(self.repository)
    }
}

/// Whether the error says nothing about other objects: this one doesn't exist, is hidden, or is under somebody else's
/// hold.
fn is_of_this_object(kind: StoreErrorKind) -> bool {
    use StoreErrorKind::{NotFound, Other, PermissionDenied, Retained};
    matches!(kind, NotFound | PermissionDenied | Retained | Other)
}
