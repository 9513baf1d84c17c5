//! The program's one error type: variants for what callers branch on, and the exit code of each.
//!
//! `Display` says what failed and with which value, and omits the source; `main` prints the chain once and the hint
//! last. What could go wrong: an error loses the text of the program or server that caused it, which is all a DBA has
//! at three in the morning.

use std::path::{Path, PathBuf};

use crate::process::CommandError;
use crate::refusal::Refusal;

/// The result of nearly everything in the program.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What ended a command early.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The command line or the configuration is wrong. Exit code 2.
    #[error("{what}")]
    Usage {
        /// What is wrong, with the value.
        what: String,
        /// What to write instead.
        hint: String,
    },
    /// Not consistent or not safe: Lockstep could continue but refuses to. Exit code 4.
    #[error(transparent)]
    Refused(#[from] Box<Refusal>),
    /// Another lockstep holds a lock, usually the cluster's. Exit code 11.
    #[error("{what} is locked by {holder}")]
    Locked {
        /// What is locked, with its name: `cluster "main"`.
        what: String,
        /// Who holds it: process, command and since when.
        holder: String,
        /// Whether it is a lease in a repository, which another host may hold, rather than a lock of this host's.
        is_lease: bool,
    },
    /// Another restore is working on the same target. Exit code 11.
    #[error("another restore works on {place}: {holder}")]
    PlaceInUse {
        /// The folder or the dataset.
        place: String,
        /// The process and command working there.
        holder: String,
    },
    /// SIGINT or SIGTERM was received. Exit code 130.
    #[error("interrupted")]
    Interrupted {
        /// The step that would have come next.
        step: String,
    },
    /// A program that Lockstep ran failed.
    #[error("{error}")]
    Command {
        /// How it failed, in its own words.
        #[source]
        error: Box<CommandError>,
        /// What to do, if the caller knows more than the failure itself says.
        hint: Option<String>,
    },
    /// A statement or a connection failed.
    #[error("{what}")]
    Sql {
        /// What was asked of the server.
        what: String,
        /// The server's own words.
        #[source]
        source: Box<postgres::Error>,
        /// What to do, if more is known than the server says.
        hint: Option<String>,
    },
    /// A system call on a path failed.
    #[error("cannot {verb} \"{}\"", path.display())]
    Io {
        /// What was tried: `read`, `write`, `create`.
        verb: &'static str,
        /// The path.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
        /// What to do, if more is known than the reason says.
        hint: Option<String>,
    },
    /// A repository's store failed on an object, for now or for good: nothing says that the object is damaged or gone.
    #[error("{what}")]
    Store {
        /// What failed, with the object.
        what: String,
        /// What to do.
        hint: Option<String>,
        /// The store's own reason.
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    /// Anything else, with a hint if there is one.
    #[error("{what}")]
    Failed {
        /// What failed, with the value.
        what: String,
        /// What to do.
        hint: Option<String>,
        /// The underlying reason.
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
}

impl Error {
    /// A failure in words, without a source.
    pub fn failed(what: impl Into<String>) -> Self {
        Self::Failed { what: what.into(), hint: None, source: None }
    }

    /// A wrong command line or configuration.
    pub fn usage(what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Usage { what: what.into(), hint: hint.into() }
    }

    /// A failed statement.
    pub fn sql(what: impl Into<String>, source: postgres::Error) -> Self {
        Self::Sql { what: what.into(), source: Box::new(source), hint: None }
    }

    /// For `map_err` on file operations: `.map_err(Error::io("read", path))`.
    pub fn io(verb: &'static str, path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        move |source| Self::Io { verb, path, source, hint: None }
    }

    /// Adds a hint to the failure if it had none.
    #[must_use]
    pub fn with_hint(self, text: impl Into<String>) -> Self {
        match self.hint() {
            Some(_) => self,
            None => self.and_hint(&text.into()).unwrap_or_else(|error| error),
        }
    }

    /// Adds one more hint to the failure, if its kind takes one: failures with an exit code of their own stay what
    /// they are. The kind never changes, because callers branch on it.
    ///
    /// # Errors
    /// The unchanged failure.
    pub fn and_hint(self, text: &str) -> Result<Self> {
        let known = self.hint();
        let joined = known.map_or_else(|| text.to_owned(), |known| format!("{known}. {text}"));
        match self {
            Self::Failed { what, source, .. } => {
                Ok(Self::Failed { what, hint: Some(joined), source })
            }
            Self::Store { what, source, .. } => {
                Ok(Self::Store { what, hint: Some(joined), source })
            }
            Self::Command { error, .. } => Ok(Self::Command { error, hint: Some(joined) }),
            Self::Sql { what, source, .. } => Ok(Self::Sql { what, source, hint: Some(joined) }),
            Self::Io { verb, path, source, .. } => {
                Ok(Self::Io { verb, path, source, hint: Some(joined) })
            }
            Self::Usage { .. }
            | Self::Refused(_)
            | Self::Locked { .. }
            | Self::PlaceInUse { .. }
            | Self::Interrupted { .. } => Err(self),
        }
    }

    /// Adds an underlying reason to the failure. This is for failures that consist of words; all others already have
    /// a reason, and it stays in what they say.
    #[must_use]
    pub fn because(self, cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        let cause = cause.into();
        match self {
            Self::Failed { what, hint, source: None } => {
                Self::Failed { what, hint, source: Some(cause) }
            }
            Self::Store { what, hint, source: None } => {
                Self::Store { what, hint, source: Some(cause) }
            }
            Self::Store { .. } => {
                Self::Store { what: self.chain(), hint: self.hint(), source: Some(cause) }
            }
            Self::Failed { .. } | Self::Command { .. } | Self::Sql { .. } | Self::Io { .. } => {
                Self::Failed { what: self.chain(), hint: self.hint(), source: Some(cause) }
            }
            Self::Usage { what, hint } => Self::Usage { what: format!("{what}: {cause}"), hint },
            // These are reasons themselves.
            Self::Refused(_)
            | Self::Locked { .. }
            | Self::PlaceInUse { .. }
            | Self::Interrupted { .. } => self,
        }
    }

    /// Checks whether it, or its cause, is that nobody reads at a pipe's other end any more.
    #[must_use]
    pub fn is_broken_pipe(&self) -> bool {
        self.has_cause(|kind| kind == std::io::ErrorKind::BrokenPipe)
    }

    /// Checks whether it, or its cause, is that a file system or a quota is full.
    #[must_use]
    pub fn lacks_room(&self) -> bool {
        use std::io::ErrorKind::{QuotaExceeded, StorageFull};
        self.has_cause(|kind| matches!(kind, StorageFull | QuotaExceeded))
    }

    /// Checks whether a repository's store is full, and not a file system of this host that temporary files are on.
    #[must_use]
    pub fn lacks_room_in_store(&self) -> bool {
        matches!(self, Self::Store { .. }) && self.lacks_room()
    }

    fn has_cause(&self, is_it: impl Fn(std::io::ErrorKind) -> bool) -> bool {
        let mut next: Option<&(dyn std::error::Error + 'static)> = Some(self);
        while let Some(error) = next {
            if kind_of(error).is_some_and(&is_it) {
                return true;
            }
            next = error.source();
        }
        false
    }

    /// Checks whether a standby ended the statement because replay had to continue: the same statement may well
    /// succeed the next time (ERRCODE_T_R_SERIALIZATION_FAILURE in ProcessInterrupts, postgres.c).
    #[must_use]
    pub fn is_recovery_conflict(&self) -> bool {
        match self {
            Self::Sql { source, .. } => {
                source.code() == Some(&postgres::error::SqlState::T_R_SERIALIZATION_FAILURE)
            }
            _ => false,
        }
    }

    /// Returns the process's exit code; the table is in README.md and verified by a test.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage { .. } => 2,
            Self::Refused(_) => 4,
            Self::Locked { .. } | Self::PlaceInUse { .. } => 11,
            Self::Interrupted { .. } => 130,
            Self::Command { .. }
            | Self::Sql { .. }
            | Self::Io { .. }
            | Self::Store { .. }
            | Self::Failed { .. } => 1,
        }
    }

    /// Returns what the reader can do, if anything is known.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Usage { hint, .. } => Some(hint.clone()),
            Self::Refused(refusal) => Some(refusal.hint()),
            Self::Locked { is_lease: false, .. } | Self::PlaceInUse { .. } => {
                Some("wait for it to end; the lock goes with its process, however that ends".into())
            }
            Self::Locked { is_lease: true, .. } => Some(
                "wait for it to end; the lease of a host that is lost goes when it has expired"
                    .into(),
            ),
            Self::Store { hint, .. } | Self::Failed { hint, .. } => hint.clone(),
            Self::Command { hint: hint @ Some(_), .. }
            | Self::Sql { hint: hint @ Some(_), .. }
            | Self::Io { hint: hint @ Some(_), .. } => hint.clone(),
            Self::Command { error, hint: None } => error.hint(),
            Self::Sql { source, hint: None, .. } => {
                source.as_db_error().and_then(|db| db.hint().map(str::to_owned))
            }
            Self::Io { source, hint: None, .. } => {
                let is_root = rustix::process::geteuid().is_root();
                io_hint(source.kind(), is_root).map(str::to_owned)
            }
            Self::Interrupted { step } => Some(after_interruption(step).into()),
        }
    }

    /// Returns the error and its sources in one line, as `main` prints it.
    #[must_use]
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut source = std::error::Error::source(self);
        while let Some(cause) = source {
            let words = cause.to_string();
            if !text.ends_with(&words) {
                text = format!("{text}: {words}");
            }
            source = cause.source();
        }
        text
    }
}

/// Joins the words of an error and of all its causes, for an error that isn't passed on itself; the kind stays known
/// if it was a system error.
#[must_use]
pub fn kept(error: &(dyn std::error::Error + 'static)) -> Box<dyn std::error::Error + Send + Sync> {
    let words = strata::error::with_causes(error);
    let mut next = Some(error);
    while let Some(cause) = next {
        if let Some(kind) = kind_of(cause) {
            return Box::new(std::io::Error::new(kind, words));
        }
        next = cause.source();
    }
    words.into()
}

fn kind_of(error: &(dyn std::error::Error + 'static)) -> Option<std::io::ErrorKind> {
    error.downcast_ref::<std::io::Error>().map(std::io::Error::kind)
}

/// Says what an interrupted command leaves, by the step that would have come next. What it made is removed before the
/// command ends, or the message says that it wasn't.
fn after_interruption(step: &str) -> &'static str {
    match step.split('.').next() {
        Some("restore" | "server") => {
            "what it made is removed, if not now then by the next command of this cluster; but a cluster whose server was started stays, if a message above says so, and so does what was received from a repository, which isn't whole until the same command with --delta has run to its end"
        }
        Some("backup" | "clone" | "look") => {
            "nothing is left of it, unless a message above says so; then the next command of this cluster removes the rest"
        }
        Some("ship" | "lease") => {
            "the set is complete on this host; what was stored stays, and the next `ship` or `backup` continues from there"
        }
        Some("prune") => "the next `prune` or `backup` finishes what was begun",
        Some("check") => {
            "what it had found by then is printed; it keeps nothing, and the next one starts from the beginning: `--read-data=PERCENT` reads a part"
        }
        Some("mirror") => {
            "a mirror that wasn't finished is removed; `mirror status` shows one that existed before, and what to do"
        }
        _ => "nothing is left half done: run it again, and it continues",
    }
}

/// Hints for system errors that a user can do something about.
fn io_hint(kind: std::io::ErrorKind, is_root: bool) -> Option<&'static str> {
    use std::io::ErrorKind;
    match kind {
        ErrorKind::PermissionDenied if is_root => Some(
            "root itself may not: look at `lsattr` (a file that `chattr +i` keeps from change), at a file system of another host's, or at what takes rights from this process (a container, a systemd unit)",
        ),
        ErrorKind::PermissionDenied => {
            Some("run lockstep as root, or look at the folder's owner and mode")
        }
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            Some("make room there: nothing is lost, and the command can be run again")
        }
        ErrorKind::ReadOnlyFilesystem => Some(
            "mount it for writing (of a dataset: `zfs set readonly=off`), or name another folder",
        ),
        ErrorKind::ResourceBusy => Some(
            "look at `findmnt -A` for what is mounted there or below it: nothing behind a mount is removed",
        ),
        _ => None,
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(Box::new(refusal))
    }
}

impl From<CommandError> for Error {
    fn from(error: CommandError) -> Self {
        Self::from(Box::new(error))
    }
}

impl From<Box<CommandError>> for Error {
    fn from(error: Box<CommandError>) -> Self {
        Self::Command { error, hint: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_the_documented_ones() {
        let refused = Error::from(Refusal::NoStrategy { needed: vec![] });
        assert_eq!(Error::failed("x").exit_code(), 1);
        assert_eq!(Error::usage("x", "y").exit_code(), 2);
        assert_eq!(refused.exit_code(), 4);
        let locked = Error::Locked {
            what: "cluster \"main\"".into(),
            holder: "process 1".into(),
            is_lease: false,
        };
        assert_eq!(locked.exit_code(), 11);
        let in_use = Error::PlaceInUse { place: "\"/r\"".into(), holder: "process 1".into() };
        assert_eq!(in_use.exit_code(), 11);
        assert_eq!(Error::Interrupted { step: "backup.started".into() }.exit_code(), 130);
    }

    #[test]
    fn an_interruption_says_what_is_left_and_names_no_step() {
        for (step, words) in [
            ("backup.started", "nothing is left of it"),
            ("restore.placed", "until the same command with --delta has run to its end"),
            ("ship.views", "`ship`"),
            ("prune.planned", "finishes what was begun"),
            ("server.ready", "what it made is removed"),
            ("mirror.slot", "mirror status"),
            ("check.read", "starts from the beginning"),
            ("compact.still", "run it again"),
        ] {
            let error = Error::Interrupted { step: step.into() };
            assert_eq!(error.chain(), "interrupted");
            assert!(error.hint().is_some_and(|hint| hint.contains(words)), "{step}");
        }
    }

    #[test]
    fn only_a_lease_is_called_one() {
        let locked = |is_lease| {
            Error::Locked { what: "c".into(), holder: "h".into(), is_lease }.hint().unwrap()
        };
        assert!(!locked(false).contains("lease") && locked(true).contains("lease"));
    }

    #[test]
    fn who_meets_a_mount_is_told_to_look_for_it() {
        let busy = Error::io("remove", "/srv/pg/log")(rustix::io::Errno::BUSY.into());
        assert!(busy.hint().unwrap().contains("findmnt"));
    }

    #[test]
    fn root_is_not_told_to_become_root() {
        let denied = std::io::ErrorKind::PermissionDenied;
        assert!(io_hint(denied, false).unwrap().contains("as root"));
        let hint = io_hint(denied, true).unwrap();
        assert!(hint.contains("chattr +i") && !hint.contains("as root"), "{hint}");
    }

    #[test]
    fn no_hint_is_lost() {
        let io = |kind: std::io::ErrorKind| Error::io("read", "/srv/pg")(kind.into());
        let hinted = io(std::io::ErrorKind::InvalidData).with_hint("look at it");
        assert_eq!(hinted.hint().as_deref(), Some("look at it"));
        assert_eq!(hinted.chain(), "cannot read \"/srv/pg\": invalid data");
        assert_eq!(hinted.exit_code(), 1);
        // It keeps its kind, so callers still recognize it.
        assert!(
            matches!(hinted, Error::Io { source, .. } if source.kind() == std::io::ErrorKind::InvalidData)
        );
        let command = || {
            let missing = crate::process::Program::new("/not/there").run().unwrap_err();
            Error::from(missing)
        };
        let (known, chain) = (command().hint().unwrap(), command().chain());
        let both = command().and_hint("Then go on").unwrap();
        assert!(matches!(&both, Error::Command { error, .. } if !error.is_answer()));
        assert_eq!((both.hint().unwrap(), both.chain()), (format!("{known}. Then go on"), chain));
        let no_address = "port=x".parse::<postgres::Config>().unwrap_err();
        let sql = Error::sql("cannot connect", no_address).with_hint("write it");
        assert!(matches!(&sql, Error::Sql { .. }));
        assert_eq!(sql.hint().as_deref(), Some("write it"));
        // It already had one.
        let full = io(std::io::ErrorKind::StorageFull);
        let (known, both) = (full.hint().unwrap(), full.and_hint("Then go on").unwrap());
        assert_eq!(both.hint().unwrap(), format!("{known}. Then go on"));
        assert_eq!(both.with_hint("other").hint().unwrap(), format!("{known}. Then go on"));
        // An error with an exit code of its own keeps it, and its text.
        let usage = Error::usage("x", "y").and_hint("z").unwrap_err();
        assert_eq!((usage.exit_code(), usage.hint().as_deref()), (2, Some("y")));
    }

    #[test]
    fn no_reason_is_lost() {
        let twice = Error::failed("a").because("b").because("c");
        assert_eq!(twice.chain(), "a: b: c");
        let io = Error::io("read", "/srv/pg")(std::io::Error::other("disk on fire"));
        assert_eq!(io.because("heat").chain(), "cannot read \"/srv/pg\": disk on fire: heat");
        assert_eq!(Error::usage("x", "y").because("z").chain(), "x: z");
    }

    #[test]
    fn a_broken_pipe_is_known_through_all_that_passes_it_on() {
        let pipe = || std::io::Error::from(std::io::ErrorKind::BrokenPipe);
        assert!(Error::io("write to", "zfs receive")(pipe()).is_broken_pipe());
        let of_stream = crate::repository::ingest::of_stream(pipe().into());
        assert!(of_stream.is_broken_pipe(), "{of_stream:?}");
        let through_a_fold = strata::Error::caller(sendstream::Error::from(pipe()));
        let of_strata = crate::repository::of_strata(through_a_fold);
        assert!(of_strata.is_broken_pipe(), "{of_strata:?}");
        assert!(of_strata.chain().ends_with("broken pipe"), "{}", of_strata.chain());
        assert!(!Error::failed("a broken pipe of the house").is_broken_pipe());
    }

    #[test]
    fn a_full_folder_for_temporary_files_is_told_from_a_full_store() {
        use strata::store::{StoreError, StoreErrorKind};
        let full = || std::io::Error::from(std::io::ErrorKind::StorageFull);
        let of = crate::repository::of_strata;
        let spool = of(strata::Error::Spool { verb: "write", source: full() });
        let index = of(strata::Error::Index { object: "x".into(), source: Box::new(full()) });
        for local in [spool, index] {
            assert!(local.lacks_room() && !local.lacks_room_in_store(), "{local:?}");
            assert!(local.hint().is_some_and(|hint| hint.contains("TMPDIR")), "{local:?}");
        }
        let put = StoreError::new("put", "x", StoreErrorKind::Other);
        let put = StoreError { source: Some(Box::new(full())), ..put };
        let store = of(strata::Error::Store(put));
        assert!(store.lacks_room_in_store(), "{store:?}");
    }

    #[test]
    fn the_chain_names_every_cause_once() {
        let io = std::io::Error::other("disk on fire");
        let error = Error::io("read", "/srv/pg")(io);
        assert_eq!(error.chain(), "cannot read \"/srv/pg\": disk on fire");
    }
}
