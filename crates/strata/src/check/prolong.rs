//! Prolongs the locks of what is kept, in stores that lock what is written for some time.
//!
//! Sets share packs, so what today's set needs may have been written long ago. What could go wrong:
//!
//! - Something that a kept set needs isn't locked. So all of it is prolonged in time, also what was needed by nobody
//!   when that was done last, and is now.
//! - What is kept for its lock alone is locked again, for ever. So callers say which sets are kept for other reasons,
//!   and only what these need is prolonged.
//! - Millions of requests are made each day. So the note says until when all is locked ([`Locks`]), and how far an
//!   interrupted run came.

use std::collections::BTreeSet;

use super::Survey;
use super::locks::{Locks, MOST_LEFT, Next, lock_seconds};
use crate::error::{Error, Result};
use crate::id::Ulid;
use crate::lease::Still;
use crate::many::read_many;
use crate::repository::Repository;
use crate::store::StoreErrorKind;

/// Requests after which the lease is looked at.
const PART: usize = 128;
/// So many parts are done before it is noted how far it is.
const PARTS: usize = 128;

/// What is prolonged beside what the kept sets need, and when.
#[derive(Clone, Debug, Default)]
pub struct Prolonging {
    /// Paths in the store of what else is worth keeping.
    pub more: Vec<String>,
    /// What was deleted since the survey.
    pub gone: Vec<String>,
    /// Unix time.
    pub now: u64,
}

/// What was prolonged.
#[derive(Debug, Default)]
pub struct Prolonged {
    /// Objects whose locks were.
    pub count: u64,
    /// Why not all that should be; it is tried again by the next run.
    pub failed: Option<Error>,
}

impl Survey {
    /// Prolongs the locks of what the kept sets need, where that is due.
    ///
    /// What fails is in the result, and takes nothing away. The error is that of `still`, which is asked now and then:
    /// who has lost the lease leaves it to its holder.
    pub fn prolong(
        &self,
        repository: &Repository,
        what: &Prolonging,
        still: Still<'_>,
    ) -> Result<Prolonged> {
        let seconds = lock_seconds(repository);
        let mut prolonged = Prolonged::default();
        if seconds == 0 {
            return Ok(prolonged);
        }
        let locks = match Locks::read(repository) {
            Ok(locks) => locks,
            Err(error) => return Ok(Prolonged { failed: Some(error), ..prolonged }),
        };
        let mut work = Work { survey: self, repository, what, seconds, still, locks, lost: None };
        let ended = work.run(&mut prolonged);
        if let Some(lost) = work.lost {
            return Err(lost);
        }
        if let Err(error) = ended {
            prolonged.failed = Some(error);
        }
        Ok(prolonged)
    }
}

struct Work<'a> {
    survey: &'a Survey,
    repository: &'a Repository,
    what: &'a Prolonging,
    seconds: u64,
    still: Still<'a>,
    locks: Locks,
    /// What `still` said.
    lost: Option<Error>,
}

impl Work<'_> {
    fn run(&mut self, prolonged: &mut Prolonged) -> Result<()> {
        let now = self.what.now;
        let (until, from, again) = match self.locks.next(now, self.seconds) {
            Next::Nothing => return self.needed_again(prolonged),
            Next::Begin => (self.locks.begin(now, self.seconds), None, Vec::new()),
            Next::GoOn(packs) => {
                let until = self.locks.until().unwrap_or(now);
                // What was left out when it began may lie before where it goes on.
                let again = self.needed_by_now();
                (until, packs.and_then(|pack| Ulid::from_text(pack.as_bytes())), again)
            }
        };
        let gone: BTreeSet<&str> = self.what.gone.iter().map(String::as_str).collect();
        self.locks.leave_these(self.survey.left_out(&gone), now, MOST_LEFT);
        // Until it is locked.
        again.iter().for_each(|path| self.locks.leave(path.clone(), now));
        self.write()?;
        // What others need and isn't noted would count as locked, so it is.
        let (survey, repository) = (self.survey, self.repository);
        let is_unnoted = |path: &String| {
            !self.locks.is_left(path) && survey.is_needed_by_others(repository, path)
        };
        let unnoted: Vec<_> = survey.left_out(&gone).filter(is_unnoted).collect();
        let kept = survey.to_lock(repository, from, until, self.seconds);
        let more = self.what.more.iter().cloned();
        let paths = again.into_iter().chain(kept).chain(unnoted).chain(more);
        let missing = match self.lock(paths, until, prolonged) {
            Ok(missing) => missing,
            Err(error) => {
                // How far it came; the first error is the one to report.
                let _ = self.write();
                return Err(error);
            }
        };
        self.locks.end();
        self.write()?;
        missing.map_or(Ok(()), Err)
    }

    /// Locks what was left out and is needed by now.
    fn needed_again(&mut self, prolonged: &mut Prolonged) -> Result<()> {
        let again = self.needed_by_now();
        let Some(until) = self.locks.until().filter(|_| !again.is_empty()) else { return Ok(()) };
        let missing = self.lock(again.into_iter(), until, prolonged)?;
        self.write()?;
        missing.map_or(Ok(()), Err)
    }

    /// What was left out and is needed by a kept set now.
    fn needed_by_now(&self) -> Vec<String> {
        let left = self.locks.left();
        left.filter(|path| self.survey.is_kept(self.repository, path)).cloned().collect()
    }

    /// Locks all of these. What isn't there is left out, and the first such error given back.
    fn lock(
        &mut self,
        mut paths: impl Iterator<Item = String>,
        until: u64,
        prolonged: &mut Prolonged,
    ) -> Result<Option<Error>> {
        let mut missing = None;
        let (store, now) = (self.repository.store().clone(), self.what.now);
        for part in 1.. {
            let these: Vec<_> = paths.by_ref().take(PART).collect();
            let Some(last) = these.last() else { break };
            self.is_held()?;
            let lock = |path: &String| store.lock_until(path, until);
            read_many::<_, _, Error>(&these, lock, |path, locked| match locked {
                Ok(()) => {
                    self.locks.taken(path);
                    prolonged.count += 1;
                    Ok(())
                }
                Err(error) if error.kind == StoreErrorKind::NotFound => {
                    self.locks.leave(path.clone(), now);
                    missing.get_or_insert(error.into());
                    Ok(())
                }
                Err(error) => Err(error.into()),
            })?;
            let pack = self.repository.relative(last).strip_prefix("packs/");
            if let Some(pack) = pack.map(str::to_string) {
                self.locks.reached(pack);
                if part % PARTS == 0 {
                    self.write()?;
                }
            }
        }
        Ok(missing)
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
