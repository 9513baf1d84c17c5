//! The private mount namespace in which Lockstep's own servers recover.
//!
//! A replayed CREATE TABLESPACE uses the absolute path of the original cluster. Up to PostgreSQL 14 it first removes
//! what it finds there; from 15 on it continues with what is there, and later replay overwrites it
//! (create_tablespace_directories in commands/tablespace.c). On the source host that is the live cluster's directory.
//! So in the namespace the original paths lead to the restored cluster's own folders, and every file system but a few
//! is read-only: a path that nobody foresaw makes recovery fail, and leaves the live cluster alone.
//!
//! What could go wrong: such a path is `/etc`, or a folder of PATH. A manifest, the WAL and the links of the live data
//! directory name them, and none of these is root's. Then what the server's user writes to its own folder would be what
//! root's programs and those with the set-user-ID bit find there. So nothing is shown in place of what is root's.
//!
//! `unshare` makes the namespace and runs this program again as `internal-server`, which arranges
//! the mounts and becomes the server.

pub mod left;

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, MemfdFlags, Mode, OFlags, memfd_create};
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, UnmountFlags, mount_bind, mount_bind_recursive, mount_remount, unmount,
};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::process::{Credentials, Program};
use crate::set::manifest::{json, path_text, paths_text};
use crate::volume::mounts::{Mount, Mounts};

/// The hidden subcommand that arranges the mounts.
pub const SUBCOMMAND: &str = "internal-server";

/// What a server sees.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Isolation {
    /// The restored cluster's own mount points: writable, and the only clones that are visible.
    #[serde(with = "paths_text")]
    pub own: Vec<PathBuf>,
    /// Other folders that stay writable.
    #[serde(with = "paths_text")]
    pub writable: Vec<PathBuf>,
    /// Folders that are shown at other paths.
    pub binds: Vec<Bind>,
    /// pg_control, where it has another name for everybody else.
    pub control: Option<Bind>,
    /// Mount points of others that are hidden: a file system that is mounted here too stays busy when it is unmounted
    /// there, unless the host's mounts are shared.
    #[serde(with = "paths_text")]
    pub hidden: Vec<PathBuf>,
}

/// Shows `from` at `at`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bind {
    /// A folder or file of the restored cluster.
    #[serde(with = "path_text")]
    pub from: PathBuf,
    /// The original path; a file is there already.
    #[serde(with = "path_text")]
    pub at: PathBuf,
}

/// What the hidden subcommand reads from its standard input: with hundreds of tablespaces or other mirrors it is longer
/// than an argument may be (MAX_ARG_STRLEN in linux/binfmts.h, 128 KiB).
#[derive(Debug, Serialize, Deserialize)]
struct Order {
    isolation: Isolation,
    user: Option<(u32, u32)>,
    program: Vec<String>,
    #[serde(with = "path_text")]
    directory: PathBuf,
}

/// Folders that a server and a restore_command usually write to.
pub const USUAL: [&str; 6] = ["/tmp", "/var/tmp", "/run", "/var/run", "/var/log", "/var/spool"];

/// The kernel's own file systems: they hold no user's data, or only data in memory.
const PSEUDO: [&str; 17] = [
    "proc",
    "sysfs",
    "devtmpfs",
    "devpts",
    "tmpfs",
    "mqueue",
    "cgroup",
    "cgroup2",
    "debugfs",
    "tracefs",
    "securityfs",
    "pstore",
    "bpf",
    "configfs",
    "hugetlbfs",
    "fusectl",
    "binfmt_misc",
];

/// Where root's programs look for what they run and go by. `/usr/local/sbin` is often empty and the first in PATH.
const SYSTEM: [&str; 14] = [
    "/bin", "/boot", "/dev", "/etc", "/lib", "/lib32", "/lib64", "/libx32", "/proc", "/root",
    "/run", "/sbin", "/sys", "/usr",
];

/// Whether this process may make a namespace.
#[must_use]
pub fn possible() -> bool {
    rustix::process::geteuid().is_root()
}

/// Returns the command that runs `program` in `directory` as `user`, isolated.
///
/// # Errors
/// When a path in `isolation` can't be written down, or there is no memory for all of them.
pub fn wrap(
    isolation: &Isolation,
    program: &[String],
    directory: &Path,
    user: Option<Credentials>,
) -> Result<Program> {
    let order = Order {
        isolation: isolation.clone(),
        user: user.map(|user| (user.uid, user.gid)),
        program: program.to_vec(),
        directory: directory.to_path_buf(),
    };
    let order = serde_json::to_vec(&order).map_err(json("write the order"))?;
    let order = in_memory(&order)
        .map_err(|error| Error::failed("cannot keep the order in memory").because(error))?;
    // The running program itself, even if an upgrade has replaced its file meanwhile.
    let own = format!("/proc/{}/exe", std::process::id());
    Ok(Program::new("unshare")
        .args(["--mount", "--propagation", "slave", "--"])
        .arg(own)
        .arg(SUBCOMMAND)
        .becoming_another()
        .input(order))
}

/// Returns a file in memory with this content, to be read from its beginning.
fn in_memory(content: &[u8]) -> std::io::Result<File> {
    // Some systems allow no other kind (vm.memfd_noexec), and before Linux 6.3 there is none.
    let made = match memfd_create("order", MemfdFlags::CLOEXEC | MemfdFlags::NOEXEC_SEAL) {
        Err(Errno::INVAL) => memfd_create("order", MemfdFlags::CLOEXEC),
        other => other,
    };
    let mut file = File::from(made?);
    file.write_all(content)?;
    file.rewind()?;
    Ok(file)
}

/// The hidden subcommand: arranges the mounts and becomes the server. Returns only on an error.
///
/// # Errors
/// When a mount can't be arranged: then no server is started.
pub fn run_order(order: impl Read) -> Result<std::convert::Infallible> {
    let order: Order = serde_json::from_reader(order).map_err(json("read the order"))?;
    arrange(&order.isolation)?;
    let mut words = order.program.iter();
    let program = words.next().ok_or_else(|| Error::failed("the order names no program"))?;
    let user = order.user.map(|(uid, gid)| Credentials { uid, gid });
    let program = Program::new(program).args(words).as_user(user).current_dir(&order.directory);
    Err(program.exec().into())
}

fn arrange(isolation: &Isolation) -> Result<()> {
    // First of all: a bind over them would hide them, and a hidden mount can't be named any more.
    let mounts = Mounts::read()?;
    // But if the original is a restore itself, its tablespaces are on such clones, and what is bound there hides
    // them.
    let real = |bind: &Bind| std::fs::canonicalize(&bind.at).ok();
    let bound: Vec<PathBuf> = isolation.binds.iter().filter_map(real).collect();
    let holds_none = |mount: &&Mount| !bound.iter().any(|at| at.starts_with(&mount.point));
    let others = mounts.iter().filter(|mount| is_other_clone(mount, isolation));
    for mount in others.filter(holds_none) {
        // Visible here it would stay busy after its own server has gone.
        let _ = unmount(&mount.point, UnmountFlags::DETACH);
    }
    for point in isolation.hidden.iter().rev() {
        let _ = unmount(point, UnmountFlags::DETACH);
    }
    for path in isolation.writable.iter().filter(|path| path.is_dir()) {
        mount_bind_recursive(path, path).map_err(io("bind", path))?;
    }
    for mount in Mounts::read()?.iter() {
        if becomes_read_only(mount, isolation) {
            let flags = MountFlags::BIND | MountFlags::RDONLY | kept_flags(&mount.options);
            match mount_remount(&mount.point, flags, "") {
                // A mount that is hidden by another can't be named; nobody can write through it either.
                Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {}
                other => other.map_err(io("make read-only", &mount.point))?,
            }
        }
    }
    for Bind { from, at } in outer_first(&isolation.binds) {
        // A place inside another one that is now the restored cluster's: it may be missing there.
        std::fs::create_dir_all(at).map_err(Error::io("create", at))?;
        show(from, at)?;
    }
    isolation.control.iter().try_for_each(|Bind { from, at }| show(from, at))
}

fn show(from: &Path, at: &Path) -> Result<()> {
    let Some(place) = open_place(at).map_err(Error::io("open", at))? else {
        return Err(Error::failed(format!(
            "\"{}\" is the system's: nothing of a restored cluster is shown there",
            at.display()
        ))
        .with_hint("a link leads there since the restore looked: see who put it there (`namei -l` shows it)"));
    };
    mount_bind(from, in_proc(&place).as_path()).map_err(io("bind to", at))
}

/// Whether a folder or file of the restored cluster may be shown at this path, which exists: it isn't root's, or it is
/// an empty folder in which nobody looks for programs or configuration.
///
/// # Errors
/// When it can't be looked at.
pub fn may_be_shown_at(at: &Path) -> Result<bool> {
    open_place(at).map(|place| place.is_some()).map_err(Error::io("open", at))
}

/// Opens what is at a path, wherever links lead, if something may be shown there: a link could be another by the time
/// that the path is used again.
fn open_place(at: &Path) -> std::io::Result<Option<OwnedFd>> {
    let place = rustix::fs::open(at, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let found = rustix::fs::fstat(&place)?;
    if found.st_uid != 0 {
        return Ok(Some(place));
    }
    let is_folder = FileType::from_raw_mode(found.st_mode) == FileType::Directory;
    let is_empty = is_folder && std::fs::read_dir(in_proc(&place))?.next().is_none();
    let is_free = is_empty && !is_trusted(&std::fs::read_link(in_proc(&place))?);
    Ok(is_free.then_some(place))
}

/// A path of an open folder or file that no link can change.
fn in_proc(open: &OwnedFd) -> PathBuf {
    Path::new("/proc/self/fd").join(open.as_raw_fd().to_string())
}

/// Whether root's programs look there, or below it.
fn is_trusted(place: &Path) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::split_paths(&path).filter(|folder| folder.is_absolute());
    let mut all = SYSTEM.map(PathBuf::from).into_iter().chain(path);
    all.any(|folder| place.starts_with(&folder) || folder.starts_with(place))
}

/// Sorts outer folders first: a tablespace may be in the folder of another, and bound in the other order the outer
/// one would hide the inner.
fn outer_first(binds: &[Bind]) -> Vec<&Bind> {
    let mut sorted: Vec<_> = binds.iter().collect();
    sorted.sort_by_key(|bind| bind.at.components().count());
    sorted
}

fn io(verb: &'static str, path: &Path) -> impl FnOnce(rustix::io::Errno) -> Error {
    let path = path.to_path_buf();
    move |errno| Error::io(verb, path)(errno.into())
}

fn becomes_read_only(mount: &Mount, isolation: &Isolation) -> bool {
    let named = |paths: &[PathBuf]| paths.contains(&mount.point);
    !PSEUDO.contains(&mount.fs_type.as_str())
        && !named(&isolation.own)
        && !named(&isolation.writable)
}

fn is_other_clone(mount: &Mount, isolation: &Isolation) -> bool {
    let leaf = mount.source.rsplit('/').next().unwrap_or_default();
    let ours = leaf.starts_with("lockstep-clone-") || leaf.starts_with("lockstep-restore-");
    mount.is_zfs() && ours && !isolation.own.contains(&mount.point)
}

/// Returns the flags to keep: a remount sets all flags from scratch, so the mount's own have to be repeated.
fn kept_flags(options: &str) -> MountFlags {
    options.split(',').fold(MountFlags::empty(), |flags, option| {
        flags
            | match option {
                "nosuid" => MountFlags::NOSUID,
                "nodev" => MountFlags::NODEV,
                "noexec" => MountFlags::NOEXEC,
                "noatime" => MountFlags::NOATIME,
                "nodiratime" => MountFlags::NODIRATIME,
                "relatime" => MountFlags::RELATIME,
                _ => MountFlags::empty(),
            }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(point: &str, fs_type: &str, source: &str) -> Mount {
        Mount {
            id: 2,
            parent: 1,
            device: (0, 40),
            root: "/".into(),
            point: point.into(),
            options: "rw,nosuid,relatime".into(),
            fs_type: fs_type.into(),
            source: source.into(),
        }
    }

    #[test]
    fn everything_but_the_own_and_the_named_becomes_read_only() {
        let isolation = Isolation {
            own: vec!["/r/data".into()],
            writable: vec!["/r".into(), "/tmp".into()],
            ..Isolation::default()
        };
        let read_only = |point, fs| becomes_read_only(&mount(point, fs, "x"), &isolation);
        assert!(read_only("/", "ext4"));
        assert!(read_only("/srv/pg", "zfs"));
        // A live dataset below a writable folder is a mount of its own.
        assert!(read_only("/tmp/pg", "fuse.zfs"));
        assert!(!read_only("/r/data", "zfs"));
        assert!(!read_only("/tmp", "ext4"));
        assert!(!read_only("/dev/shm", "tmpfs"));
    }

    #[test]
    fn a_place_inside_another_is_bound_after_it() {
        let bind = |at: &str| Bind { from: "/r".into(), at: at.into() };
        let binds = [bind("/ts1/inner"), bind("/ts2"), bind("/ts1")];
        let order: Vec<_> = outer_first(&binds).iter().map(|bind| bind.at.clone()).collect();
        assert_eq!(order, ["/ts2", "/ts1", "/ts1/inner"].map(PathBuf::from));
    }

    #[test]
    fn other_clones_are_not_seen() {
        let isolation = Isolation { own: vec!["/a".into()], ..Isolation::default() };
        let other = |point, source| is_other_clone(&mount(point, "zfs", source), &isolation);
        assert!(other("/b", "tank/lockstep-clone-x-data"));
        assert!(!other("/a", "tank/lockstep-clone-x-data"));
        assert!(!other("/b", "tank/lockstep"));
    }

    #[test]
    fn nothing_is_shown_in_place_of_what_is_root_s() {
        use std::os::unix::fs::{chown, symlink};
        assert!(rustix::process::geteuid().is_root(), "run as root: it makes another user's files");
        let may = |path: &Path| may_be_shown_at(path).unwrap();
        for path in ["/", "/etc", "/usr/bin", "/etc/passwd", "/proc/self/fd"] {
            assert!(!may(Path::new(path)), "{path}");
        }
        let scratch = tempfile::tempdir().unwrap();
        let [link, made, theirs] = ["link", "made", "theirs"].map(|name| scratch.path().join(name));
        symlink("/etc", &link).unwrap();
        std::os::unix::fs::lchown(&link, Some(65534), Some(65534)).unwrap();
        assert!(!may(&link), "whose link it is doesn't matter");
        for folder in [&made, &theirs] {
            std::fs::create_dir(folder).unwrap();
            assert!(may(folder), "as the restore makes it where it is missing");
            std::fs::write(folder.join("file"), b"").unwrap();
            assert!(!may(folder) && !may(&folder.join("file")), "it isn't empty");
        }
        chown(&theirs, Some(65534), None).unwrap();
        assert!(may(&theirs), "a tablespace of the live cluster");
        for trusted in ["/usr/local/sbin", "/etc/new", "/usr", "/"] {
            assert!(is_trusted(Path::new(trusted)), "{trusted}");
        }
        assert!(!is_trusted(Path::new("/srv/ts")) && !is_trusted(Path::new("/etcetera")));
    }

    #[test]
    fn an_order_may_be_longer_than_an_argument() {
        assert!(rustix::process::geteuid().is_root(), "run as root: it makes a namespace");
        let mirror = |number| format!("/srv/mirrors/customer-{number}/tablespaces/16384").into();
        let hidden = (0..5000).map(mirror).collect();
        let isolation = Isolation { hidden, ..Isolation::default() };
        let program = wrap(&isolation, &["true".to_owned()], Path::new("/"), None).unwrap();
        // What `unshare` runs is this program of tests, which knows none of the subcommand's name.
        let mut started = program.start(&tempfile::tempfile().unwrap()).unwrap();
        assert!(started.wait().unwrap().success());
        let order = Order {
            isolation,
            user: Some((26, 27)),
            program: vec!["postgres".into()],
            directory: "/srv".into(),
        };
        let kept = in_memory(&serde_json::to_vec(&order).unwrap()).unwrap();
        let read: Order = serde_json::from_reader(kept).unwrap();
        assert_eq!((read.isolation, read.user), (order.isolation, order.user));
    }

    #[test]
    fn flags_are_kept() {
        assert_eq!(kept_flags("rw,nosuid,noexec"), MountFlags::NOSUID | MountFlags::NOEXEC);
    }
}
