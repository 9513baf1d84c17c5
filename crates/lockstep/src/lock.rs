//! A lock for each cluster, and one for each folder that is restored to, held by flock(2): it goes with its process,
//! however that ends.
//!
//! The file's text, or for a folder the kernel, says who holds it, for the message of exit code 11. It is never
//! trusted for more than that.
//!
//! What could go wrong: Lockstep is killed, and a `zfs` that it started still makes its snapshot or clone, after the
//! next command has undone what it found. So such a `zfs` holds the lock too ([`Lock::file`]), and the next command
//! waits for it.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

use crate::error::{Error, Result};

/// How long to wait for a lock that is only being looked at: nobody looks for more than a moment, unless it was
/// stopped.
const LOOKED_AT: Duration = Duration::from_secs(5);

/// How long to wait for a program that a killed holder started.
const LEFT: Duration = Duration::from_secs(15);

/// A held lock; dropping it releases it.
#[derive(Debug)]
pub struct Lock {
    file: Arc<File>,
}

/// Why a lock wasn't obtained.
#[derive(Debug)]
pub enum LockError {
    /// Another process holds it and left this text.
    Held(String),
    /// The file couldn't be used.
    Failed(Error),
}

impl Lock {
    /// Takes the lock at `path` without waiting, as `command`.
    ///
    /// # Errors
    /// [`LockError::Held`] when it is taken.
    pub fn take(path: &Path, command: &str) -> Result<Self, LockError> {
        let since = Instant::now();
        let mut file = loop {
            let mut file = open(path)?;
            match Tried::on(&file, path)? {
                Tried::Had => break file,
                Tried::Gone => {}
                Tried::Held => {
                    let mut holder = String::new();
                    let _ = file.read_to_string(&mut holder);
                    let holder = holder.trim();
                    if is_gone(holder) {
                        if since.elapsed() < LEFT {
                            std::thread::sleep(Duration::from_millis(20));
                            continue;
                        }
                        return Err(LockError::Held(format!(
                            "{holder}, which can't be seen from here: it or a program that it started is still running"
                        )));
                    }
                    return Err(LockError::Held(if holder.is_empty() {
                        "a process that has only just started".into()
                    } else {
                        holder.to_owned()
                    }));
                }
            }
        };
        let text = format!(
            "process {} {} since {}\n",
            std::process::id(),
            run_as(command),
            jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ")
        );
        say(&mut file, &text);
        Ok(Self { file: Arc::new(file) })
    }

    /// Returns the file: whoever has it open holds the lock.
    #[must_use]
    pub fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Whether this error says that a process which runs this command holds a lock.
    #[must_use]
    pub fn is_by(error: &Error, command: &str) -> bool {
        matches!(error, Error::Locked { holder, .. } if holder.contains(&run_as(command)))
    }

    /// The same, but a lock that is held refuses the whole command; `what` says in words what is locked.
    ///
    /// # Errors
    /// [`Error::Locked`] with who holds it.
    pub fn take_or_refuse(path: &Path, what: impl Into<String>, command: &str) -> Result<Self> {
        Self::take(path, command).map_err(|error| match error {
            LockError::Held(holder) => Error::Locked { what: what.into(), holder, is_lease: false },
            LockError::Failed(error) => error,
        })
    }

    /// Checks whether another process holds the lock at `path`. Nothing is written, and a command that takes the lock
    /// at this moment gets it.
    ///
    /// # Errors
    /// When the file can't be opened.
    pub fn is_held(path: &Path) -> Result<bool> {
        let file = match File::open(path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(false),
            opened => opened.map_err(Error::io("open", path))?,
        };
        // Shared: several may look at a time, and a command that takes the lock can tell them apart from a holder.
        match flock(&file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => Ok(false),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(true),
            Err(e) => Err(Error::io("look at the lock", path)(e.into())),
        }
    }

    /// Takes the lock of a folder itself, without waiting and without writing anything. It counts for all who use the
    /// folder, whatever their state_dir is.
    ///
    /// # Errors
    /// [`LockError::Held`] when it is taken; when the folder doesn't exist.
    pub fn of_folder(path: &Path) -> Result<Self, LockError> {
        loop {
            let file =
                File::open(path).map_err(|e| LockError::Failed(Error::io("open", path)(e)))?;
            match Tried::on(&file, path)? {
                Tried::Had => return Ok(Self { file: Arc::new(file) }),
                Tried::Gone => {}
                Tried::Held => {
                    return Err(LockError::Held(
                        holder(&file).unwrap_or_else(|| "another process".into()),
                    ));
                }
            }
        }
    }
}

/// The result of an attempt.
enum Tried {
    /// It is ours.
    Had,
    /// Its last holder removed the file after this process opened it and before it locked it: the lock is on a file
    /// that nobody else will find.
    Gone,
    /// Another process holds it.
    Held,
}

impl Tried {
    fn on(file: &File, path: &Path) -> Result<Self, LockError> {
        let since = Instant::now();
        loop {
            match flock(file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) if is_still_at(file, path) => return Ok(Self::Had),
                Ok(()) => return Ok(Self::Gone),
                Err(rustix::io::Errno::WOULDBLOCK) if !is_only_looked_at(file) => {
                    return Ok(Self::Held);
                }
                Err(rustix::io::Errno::WOULDBLOCK) if since.elapsed() >= LOOKED_AT => {
                    return Ok(Self::Held);
                }
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(e) => return Err(LockError::Failed(Error::io("lock", path)(e.into()))),
            }
        }
    }
}

/// Writes into a lock's file who holds it. It is held without that, too: on a full file system that writes nothing in
/// place (ZFS) there is no room for these words, and the command that makes room begins with its lock.
fn say(file: &mut File, text: &str) {
    let said =
        file.set_len(0).and_then(|()| file.rewind()).and_then(|()| file.write_all(text.as_bytes()));
    if let Err(error) = said {
        tracing::debug!(%error, "a lock doesn't say who holds it");
        // Half of a process id is that of another one.
        let _ = file.set_len(0);
    }
}

/// The command in the words of who holds a lock.
fn run_as(command: &str) -> String {
    format!("(lockstep {command})")
}

/// Checks whether all that hold the file's lock are in [`Lock::is_held`], or here.
fn is_only_looked_at(file: &File) -> bool {
    flock(file, FlockOperation::NonBlockingLockShared).is_ok()
        && flock(file, FlockOperation::Unlock).is_ok()
}

/// Checks whether the process named in a lock's text has ended.
fn is_gone(holder: &str) -> bool {
    let process = holder.strip_prefix("process ").and_then(|rest| rest.split(' ').next());
    let process = process.and_then(|process| process.parse::<u32>().ok());
    process.is_some_and(|process| !Path::new("/proc").join(process.to_string()).exists())
}

/// Returns who holds a file's lock, as the kernel lists it: a folder can't carry a text.
fn holder(file: &File) -> Option<String> {
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    let metadata = file.metadata().ok()?;
    let process = process_in(&locks, metadata.dev(), metadata.ino())?;
    let command = std::fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
    let command = String::from_utf8_lossy(&command).replace('\0', " ");
    Some(match command.trim_end() {
        "" => format!("process {process}"),
        command => format!("process {process} ({})", command.escape_debug()),
    })
}

/// Parses lines such as `1: FLOCK  ADVISORY  WRITE 4711 00:2a:34 0 EOF` (proc(5)). For some file systems they show
/// another device than stat(2).
fn process_in(locks: &str, device: u64, inode: u64) -> Option<u32> {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let (exact, inode) = (format!("{major:02x}:{minor:02x}:{inode}"), format!(":{inode}"));
    let held = locks.lines().filter_map(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let [_, "FLOCK", _, _, process, place, ..] = fields[..] else { return None };
        place.ends_with(&inode).then_some((place == exact, process.parse().ok()?))
    });
    held.max_by_key(|(is_exact, _)| *is_exact).map(|(_, process)| process)
}

/// Whoever can open the file, if only for reading, can hold its lock, and stop all backups. So nobody else can; older
/// versions let others read it.
fn open(path: &Path) -> Result<File, LockError> {
    let opened = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .and_then(|file| {
            if file.metadata()?.mode() & 0o077 != 0 {
                file.set_permissions(Permissions::from_mode(0o600))?;
            }
            Ok(file)
        });
    opened.map_err(|e| LockError::Failed(Error::io("open", path)(e)))
}

fn is_still_at(file: &File, path: &Path) -> bool {
    let identity = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino());
    match (file.metadata(), std::fs::metadata(path)) {
        (Ok(open), Ok(named)) => identity(open) == identity(named),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_caller_is_told_who_holds_it() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("lock");
        let first = Lock::take(&path, "backup").unwrap();
        match Lock::take(&path, "backup") {
            Err(LockError::Held(holder)) => {
                assert!(
                    holder.contains(&format!("process {} (lockstep backup)", std::process::id()))
                );
            }
            other => panic!("{other:?}"),
        }
        let refused = Lock::take_or_refuse(&path, "cluster \"main\"", "backup").unwrap_err();
        assert_eq!(refused.exit_code(), 11);
        assert!(
            refused.to_string().starts_with("cluster \"main\" is locked by process "),
            "{refused}"
        );
        drop(first);
        assert!(Lock::take(&path, "backup").is_ok());
    }

    /// As on a full pool: not even `prune` would come to where it makes room.
    #[test]
    fn it_is_held_where_there_is_no_room_for_who_holds_it() {
        use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
        use std::os::fd::AsRawFd;
        let flags = MemfdFlags::ALLOW_SEALING | MemfdFlags::CLOEXEC;
        let full = memfd_create("lock", flags).unwrap();
        fcntl_add_seals(&full, SealFlags::GROW).unwrap();
        let path = std::path::PathBuf::from(format!("/proc/self/fd/{}", full.as_raw_fd()));
        assert!(std::fs::write(&path, "x").is_err(), "nothing can be written there");
        let held = Lock::take(&path, "prune").unwrap();
        assert!(Lock::is_held(&path).unwrap());
        match Lock::take(&path, "backup") {
            Err(LockError::Held(holder)) => assert!(!holder.is_empty()),
            other => panic!("{other:?}"),
        }
        drop(held);
        assert!(Lock::take(&path, "backup").is_ok());
    }

    #[test]
    fn nobody_else_can_open_it() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("lock");
        let mode = || std::fs::metadata(&path).unwrap().mode() & 0o777;
        drop(Lock::take(&path, "backup").unwrap());
        assert_eq!(mode(), 0o600);
        // As an older version made it.
        std::fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        drop(Lock::take(&path, "backup").unwrap());
        assert_eq!(mode(), 0o600);
    }

    #[test]
    fn what_a_killed_holder_started_is_waited_for() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("lock");
        let lock = Lock::take(&path, "backup").unwrap();
        let left =
            crate::process::Program::new("sleep").arg("1").holding(Some(lock.file().clone()));
        let since = Instant::now();
        std::thread::scope(|scope| {
            scope.spawn(move || left.run().unwrap());
            // As if this process had been killed: its own descriptor is closed, and the text names no living process.
            std::thread::sleep(Duration::from_millis(300));
            std::fs::write(&path, "process 4294967295 (lockstep backup) since 2026\n").unwrap();
            drop(lock);
            assert!(Lock::is_held(&path).unwrap());
            Lock::take(&path, "prune").unwrap();
            assert!(since.elapsed() >= Duration::from_secs(1));
        });
    }

    /// `prune --dry-run` in a loop must make no backup fail.
    #[test]
    fn whoever_looks_at_a_lock_is_in_nobody_s_way() {
        use std::sync::atomic::{AtomicBool, Ordering};
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("lock");
        assert!(!Lock::is_held(&path).unwrap() && !path.exists(), "looking makes no file");
        let held = Lock::take(&path, "ship").unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(Lock::is_held(&path).unwrap());
        drop(held);
        assert!(!Lock::is_held(&path).unwrap());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text, "nothing is written");
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !is_over.load(Ordering::SeqCst) {
                        Lock::is_held(&path).unwrap();
                    }
                });
            }
            let taken: Vec<_> = (0..500).filter_map(|_| Lock::take(&path, "ship").err()).collect();
            is_over.store(true, Ordering::SeqCst);
            assert!(taken.is_empty(), "{} times: {:?}", taken.len(), taken.first());
        });
    }

    #[test]
    fn a_folder_is_one_s_own_and_the_second_is_told_whose() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("folder");
        std::fs::create_dir_all(&path).unwrap();
        let first = Lock::of_folder(&path).unwrap();
        match Lock::of_folder(&path) {
            Err(LockError::Held(holder)) => {
                assert!(holder.starts_with(&format!("process {}", std::process::id())), "{holder}");
            }
            other => panic!("{other:?}"),
        }
        drop(first);
        assert!(Lock::of_folder(&path).is_ok());
        assert_eq!(std::fs::read_dir(&path).unwrap().count(), 0, "nothing is written");
    }

    #[test]
    fn who_holds_a_lock_is_read_from_the_kernel_s_list() {
        let locks = "1: POSIX  ADVISORY  WRITE 1 08:01:34 0 EOF\n2: FLOCK  ADVISORY  WRITE 2 00:2b:34 0 EOF\n\
                     3: FLOCK  ADVISORY  WRITE 3 00:2a:34 0 EOF\n3: -> FLOCK  ADVISORY  WRITE 4 00:2a:34 0 EOF\n\
                     4: FLOCK  ADVISORY  WRITE 5 00:2a:134 0 EOF\nstrange\n";
        assert_eq!(process_in(locks, rustix::fs::makedev(0, 0x2a), 34), Some(3));
        assert_eq!(process_in(locks, rustix::fs::makedev(9, 9), 134), Some(5));
        assert_eq!(process_in(locks, rustix::fs::makedev(0, 0x2a), 35), None);
    }

    #[test]
    fn a_lock_on_a_removed_file_is_no_lock() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("unlinked");
        let file = open(&path).unwrap();
        assert!(is_still_at(&file, &path));
        std::fs::remove_file(&path).unwrap();
        assert!(!is_still_at(&file, &path));
        let other = open(&path).unwrap();
        assert!(!is_still_at(&file, &path) && is_still_at(&other, &path));
    }
}
