//! Leases: they make sure that only one process at a time does what must not be done twice at once. The store's
//! create-only write is the only lock.
//!
//! A lease is a series of generations, `leases/<what>/<generation>`, each written once by put-if-absent; the highest
//! says who holds the lease until when. Taking it, renewing it, taking it over after it has expired and giving it back
//! are the same step: create the next generation, then check that it is the highest. Of all that try, one succeeds,
//! whatever their clocks say; the clock decides only when a lease has expired. Generations never restart, so a process
//! that comes late with an old one sees a higher one and steps back.
//!
//! What could go wrong: the highest generation is damaged, and nobody knows who holds the lease until when. So it
//! counts as held, by an unknown holder and without an end. A holder that is alive renews it; one that isn't is found
//! out by other means than the clock (`take_over`).
//!
//! Or the storage is exchanged below a holder: its disk is unmounted, or an older state is put back. A renewal would
//! take the lease there, and all that follows would count on what isn't there. So a holder goes on only where its own
//! last generation is.
//!
//! Or the store lets nobody delete (a retention of the bucket, missing rights), and generations pile up. So a step
//! tries no further than the first that stays: thousands of refusals would take longer than the lease lasts.

use serde::{Deserialize, Serialize};

use crate::document;
use crate::error::{Error, Result};
use crate::id::{Ulid, check_name};
use crate::repository::Repository;

const FORMAT: u32 = 1;
/// The holder that a damaged generation no longer names.
const UNKNOWN: &str = "an unknown holder";
/// How often in a row a generation may be deleted while it is being read.
const LOOKS: usize = 20;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    format: u32,
    what: String,
    generation: u64,
    owner: String,
    /// Tells two holders with the same name apart.
    token: String,
    /// Unix time.
    expires: u64,
    released: bool,
    /// Why it can't be read, if it is damaged: then only the path's own values are known.
    #[serde(skip)]
    damaged: Option<String>,
}

/// Called before each step that only a lease's holder may do, to check that the lease is still held. An error stops the
/// work there.
///
/// A process that was paused for longer than the lease lasts (in a stopped virtual machine) continues where it was.
/// Meanwhile another process may have come to need what the first was about to delete or overwrite. Long work also
/// calls it in between, so that it can be ended: at every call, what is stored is complete.
pub type Still<'a> = &'a dyn Fn() -> Result<()>;

/// For a caller that is alone with a repository and so has no lease to lose.
pub const HELD: Still<'static> = &|| Ok(());

/// A lease that is held.
#[derive(Debug)]
pub struct Lease {
    repository: RepositoryHandle,
    body: Body,
    seconds: u64,
    before: Option<Written>,
}

/// A generation, and who wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// The generation.
    pub generation: u64,
    /// The owner's name.
    pub owner: String,
    /// The holder's own, which no other has: the same from taking the lease until it is given back. Empty if the
    /// generation is damaged.
    pub token: String,
}

impl From<&Body> for Written {
    fn from(body: &Body) -> Written {
        let Body { generation, owner, token, .. } = body;
        Written { generation: *generation, owner: owner.clone(), token: token.clone() }
    }
}

/// A lease that somebody holds or has left without giving it back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The holder.
    pub owner: String,
    /// The generation; each renewal has the next one.
    pub generation: u64,
    /// When it expires unless it is renewed, in Unix time.
    pub expires: u64,
    /// Why it can't be read, if it is damaged: then neither the holder nor the end is known, and it never expires.
    pub damaged: Option<String>,
}

/// Keeps the store out of the debug output.
struct RepositoryHandle(Repository);

impl std::fmt::Debug for RepositoryHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Repository")
    }
}

impl Lease {
    /// Takes a lease for `seconds` from `now` (Unix time), if nobody holds it.
    pub fn acquire(
        repository: &Repository,
        what: &str,
        owner: &str,
        seconds: u64,
        now: u64,
    ) -> Result<Lease> {
        Lease::take(repository, what, owner, seconds, now, None)
    }

    /// Returns the lease as it is in the store; `None` if nobody has taken it or it was given back.
    pub fn seen(repository: &Repository, what: &str) -> Result<Option<Seen>> {
        let held = newest(repository, what)?.filter(|newest| !newest.released);
        Ok(held.map(|Body { owner, generation, expires, damaged, .. }| Seen {
            owner,
            generation,
            expires,
            damaged,
        }))
    }

    /// Returns the highest generation there is, whoever wrote it; `None` if the lease was never taken.
    pub fn latest(repository: &Repository, what: &str) -> Result<Option<Written>> {
        Ok(newest(repository, what)?.as_ref().map(Written::from))
    }

    /// Takes over a lease before it expires. For callers that know, by other means than the clock, that the holder in
    /// `seen` is gone. If anybody has renewed or taken the lease since, it stays theirs.
    pub fn take_over(
        repository: &Repository,
        what: &str,
        owner: &str,
        seconds: u64,
        now: u64,
        seen: &Seen,
    ) -> Result<Lease> {
        Lease::take(repository, what, owner, seconds, now, Some(seen))
    }

    fn take(
        repository: &Repository,
        what: &str,
        owner: &str,
        seconds: u64,
        now: u64,
        dead: Option<&Seen>,
    ) -> Result<Lease> {
        check_name("lease", what)?;
        let newest = newest(repository, what)?;
        let is_held = |held: &&Body| !held.released && now < held.expires;
        let goes_on = |held: &&Body| dead.is_none_or(|dead| dead.generation != held.generation);
        if let Some(held) = newest.as_ref().filter(is_held).filter(goes_on) {
            return Err(leased(held));
        }
        let before = newest.as_ref().map(Written::from);
        let body = Body {
            format: FORMAT,
            what: what.to_string(),
            generation: newest.map_or(0, |newest| newest.generation).saturating_add(1),
            owner: owner.to_string(),
            token: Ulid::new()?.to_string(),
            expires: now.saturating_add(seconds),
            released: false,
            damaged: None,
        };
        match step(repository, &body, None)? {
            Step::Ours(body) => Ok(Lease {
                repository: RepositoryHandle(repository.clone()),
                body,
                seconds,
                before,
            }),
            Step::Anothers { newest, .. } => Err(leased(&newest)),
        }
    }

    /// Renews it, for as long again from `now`. If somebody took it over, it is lost.
    pub fn renew(&mut self, now: u64) -> Result<()> {
        self.go_on(now.saturating_add(self.seconds), false)
    }

    /// Checks in the store that nobody has taken the lease over. If nobody has, this takes one listing and one read.
    ///
    /// The clock isn't enough: after a virtual machine was stopped for a while, its clock lags behind the others, by
    /// which the lease has expired.
    pub fn confirm(&self) -> Result<()> {
        let Body { what, generation, token, .. } = &self.body;
        let is_highest =
            generations(&self.repository.0, what)?.into_iter().max() == Some(*generation);
        if is_highest && self.is_there()? {
            return Ok(());
        }
        let owner = match newest(&self.repository.0, what)? {
            // This is a renewal whose answer was lost.
            Some(newest) if newest.token == *token && !newest.released => return Ok(()),
            newest => newest.map_or_else(|| "nobody".to_string(), |newest| newest.owner),
        };
        Err(Error::LeaseLost { what: what.clone(), owner })
    }

    /// Whether its own generation is there. A network file system may list a folder as it was a minute ago, and longer
    /// after a pause, but it asks the server when a file is opened; and whoever takes the lease over deletes this one.
    fn is_there(&self) -> Result<bool> {
        let Body { what, generation, token, .. } = &self.body;
        match read(&self.repository.0, what, *generation) {
            Ok(there) => Ok(there.token == *token),
            // Whoever holds a damaged one goes on: the next can be read again.
            Err(Error::Damaged { .. }) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Gives it back, and returns the generation that says so.
    pub fn release(mut self, now: u64) -> Result<u64> {
        self.go_on(now, true)?;
        Ok(self.body.generation)
    }

    /// Whether a call of its store was given up without an answer ([`Store::is_in_doubt`](crate::store::Store)).
    pub fn is_in_doubt(&self) -> bool {
        self.repository.0.store().is_in_doubt()
    }

    /// Returns its generation.
    pub fn generation(&self) -> u64 {
        self.body.generation
    }

    /// Returns its token ([`Written::token`]).
    pub fn token(&self) -> &str {
        &self.body.token
    }

    /// Returns the highest generation that was there when it was taken.
    pub fn before(&self) -> Option<&Written> {
        self.before.as_ref()
    }

    /// Returns when it expires, in Unix time.
    pub fn expires(&self) -> u64 {
        self.body.expires
    }

    fn go_on(&mut self, expires: u64, released: bool) -> Result<()> {
        for _ in 0..LOOKS {
            let generation = self.body.generation + 1;
            let body = Body { generation, expires, released, ..self.body.clone() };
            match step(&self.repository.0, &body, Some(self.body.generation))? {
                Step::Ours(stored) => {
                    let is_done = stored == body;
                    self.body = stored;
                    if is_done {
                        return Ok(());
                    }
                    // This is an earlier try whose answer was lost: others rely on what it says, so the next generation
                    // is written.
                }
                // Another process waited for the lease and has taken it already.
                Step::Anothers { is_written: true, .. } if released => return Ok(()),
                Step::Anothers { newest, .. } => {
                    let what = self.body.what.clone();
                    return Err(Error::LeaseLost { what, owner: newest.owner });
                }
            }
        }
        Err(Error::LeaseLost { what: self.body.what.clone(), owner: "many at once".to_string() })
    }
}

/// What the store shows after a generation has been tried.
enum Step {
    /// The newest is this holder's and of the generation that was tried. Its content may differ: it may be what an
    /// earlier try of the same generation wrote.
    Ours(Body),
    /// The newest is another holder's or a later one, even if the generation that was tried `is_written`.
    Anothers { newest: Body, is_written: bool },
}

/// Creates a generation and returns which one is the newest. A holder's `own` last one has to be there: nobody else
/// deletes it as long as it is the highest.
fn step(repository: &Repository, body: &Body, own: Option<u64>) -> Result<Step> {
    let path = path(repository, &body.what, body.generation);
    let is_written = match repository.store().put_if_absent(&path, document::write(&path, body)?) {
        Ok(()) => true,
        Err(error) if error.kind == crate::store::StoreErrorKind::AlreadyExists => false,
        Err(error) => return Err(error.into()),
    };
    for _ in 0..LOOKS {
        match newest(repository, &body.what)? {
            Some(newest) if newest.token == body.token && newest.generation == body.generation => {
                let mut older = generations(repository, &body.what)?;
                // A folder's listing can miss the highest: see below.
                if older.iter().any(|generation| *generation > body.generation) {
                    continue;
                }
                older.retain(|generation| *generation < body.generation);
                if own.is_some_and(|own| !older.contains(&own)) {
                    repository.store().delete(&path)?;
                    let (what, owner) = (body.what.clone(), "nobody".to_string());
                    return Err(Error::LeaseLost { what, owner });
                }
                delete_older(repository, &body.what, older);
                return Ok(Step::Ours(newest));
            }
            Some(newest) => {
                if is_written {
                    // A higher generation existed: this one came late.
                    repository.store().delete(&path)?;
                }
                return Ok(Step::Anothers { newest, is_written });
            }
            // It has just been written, and so was a higher one, whose holder has deleted this one, after a folder's names
            // were read and before each was looked at: those that are gone by then aren't listed.
            None if is_written => {}
            None => break,
        }
    }
    Err(Error::LeaseLost { what: body.what.clone(), owner: "nobody".to_string() })
}

/// Deletes generations that no longer matter. If deleting one fails, the next step does it: the oldest comes first,
/// because a retention ends first for it.
fn delete_older(repository: &Repository, what: &str, mut older: Vec<u64>) {
    older.sort_unstable();
    for generation in older {
        if repository.store().delete(&path(repository, what, generation)).is_err() {
            break;
        }
    }
}

fn leased(held: &Body) -> Error {
    Error::Leased { what: held.what.clone(), owner: held.owner.clone(), until: held.expires }
}

fn path(repository: &Repository, what: &str, generation: u64) -> String {
    repository.path(&format!("leases/{what}/{generation:020}"))
}

fn generations(repository: &Repository, what: &str) -> Result<Vec<u64>> {
    let mut generations = Vec::new();
    let folder = repository.path(&format!("leases/{what}"));
    repository.store().list(&folder, |listed| {
        let name = listed.path.rsplit('/').next().unwrap_or_default();
        generations.extend(name.parse::<u64>().ok().filter(|_| name.len() == 20));
    })?;
    Ok(generations)
}

/// Returns the highest generation. A damaged one is held by an unknown holder, without an end.
fn newest(repository: &Repository, what: &str) -> Result<Option<Body>> {
    for _ in 0..LOOKS {
        let Some(generation) = generations(repository, what)?.into_iter().max() else {
            return Ok(None);
        };
        match read(repository, what, generation) {
            Ok(body) => return Ok(Some(body)),
            Err(error @ Error::Damaged { .. }) => {
                return Ok(Some(Body {
                    format: FORMAT,
                    what: what.to_string(),
                    generation,
                    owner: UNKNOWN.to_string(),
                    token: String::new(),
                    expires: u64::MAX,
                    released: false,
                    damaged: Some(error.to_string()),
                }));
            }
            // A higher generation has appeared, and this one was deleted.
            Err(error) if error.is_not_found() => continue,
            Err(error) => return Err(error),
        }
    }
    Err(Error::LeaseLost { what: what.to_string(), owner: "many at once".to_string() })
}

fn read(repository: &Repository, what: &str, generation: u64) -> Result<Body> {
    let path = path(repository, what, generation);
    let body: Body = document::read(&path, &repository.read_document(&path)?)?;
    if body.format > FORMAT {
        return Err(Error::Format { object: path, found: body.format, known: FORMAT });
    }
    if body.what != what || body.generation != generation {
        return Err(Error::damaged(&path, 0, "it belongs to another lease"));
    }
    Ok(body)
}
