//! Where a restored server is reached: its port and its socket.

use std::net::TcpListener;
use std::path::{Path, PathBuf};

use crate::context::Context;
use crate::error::{Error, Result};
use crate::postgres::instance;

/// The longest path of a Unix socket (sun_path), less the name that PostgreSQL adds.
const LONGEST_SOCKET_DIRECTORY: usize = 107 - "/.s.PGSQL.65535.lock".len();

/// Returns a port that nobody listens on, and that isn't `taken`: a server without listen_addresses has its port only
/// in its socket's name, where a bind can't see it.
///
/// # Errors
/// When there is none.
pub fn free_port(taken: u16) -> Result<u16> {
    let bind = || TcpListener::bind(("127.0.0.1", 0)).map(|socket| (socket.local_addr(), socket));
    // The first one is held until there is a second, so that the system doesn't return the same one twice.
    let first = bind().map_err(|e| Error::failed("no free port").because(e))?;
    let second = bind().map_err(|e| Error::failed("no free port").because(e))?;
    let ports = [first.0, second.0].into_iter().flatten().map(|address| address.port());
    ports.into_iter().find(|port| *port != taken).ok_or_else(|| Error::failed("no free port"))
}

/// Refuses a port that somebody listens on, before anything is made for it: by its number, or, for a server without
/// listen_addresses, by a socket of its name in one of these folders.
///
/// # Errors
/// [`Error::Usage`] when it is taken.
pub fn check_port(port: u16, sockets: &[PathBuf]) -> Result<()> {
    let taken = |by: String| {
        Error::usage(
            format!("port {port} is taken{by}"),
            "name another one with --port, or leave it out: then a free one is found",
        )
    };
    match TcpListener::bind(("127.0.0.1", port)) {
        Err(e) if e.kind() == std::io::ErrorKind::AddrInUse => return Err(taken(String::new())),
        // The server will report any other problem.
        _ => {}
    }
    for folder in sockets {
        let lock = folder.join(format!(".s.PGSQL.{port}.lock"));
        if let Some(pid) = instance::locked_by(&lock) {
            return Err(taken(format!(": \"{}\" is of process {pid}", lock.display())));
        }
    }
    Ok(())
}

/// Returns where a restored server may open its socket: first its own folder, then where the original does or did.
pub(in crate::restore) fn sockets(cx: &Context, directory: &Path) -> Vec<PathBuf> {
    let mut folders = vec![socket_directory(directory)];
    if cx.zfs.suspended_at(&cx.cluster.data_directory).is_none() {
        folders.extend(instance::socket_directory(&cx.cluster.data_directory));
    }
    let host = cx.cluster.host.iter().map(PathBuf::from);
    folders.extend(host.filter(|path| path.is_absolute()));
    folders.extend(["/tmp", "/var/run/postgresql"].map(PathBuf::from));
    folders
}

/// Returns where the server of `directory` opens its socket: in its folder `run`, if the path fits.
pub(crate) fn socket_directory(directory: &Path) -> PathBuf {
    let run = directory.join("run");
    // unix_socket_directories is a comma-separated list, and a quote in it would need quoting.
    let plain = run.to_str().is_some_and(|text| !text.contains([',', '"', ' ']));
    if plain && run.as_os_str().len() <= LONGEST_SOCKET_DIRECTORY { run } else { "/tmp".into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_found_before_anything_is_made() {
        let taken = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        let error = check_port(port, &[]).unwrap_err();
        assert_eq!((error.exit_code(), error.chain()), (2, format!("port {port} is taken")));
        drop(taken);
        // A server without listen_addresses only has its socket.
        let scratch = tempfile::tempdir().unwrap();
        let folders = [scratch.path().join("none"), scratch.path().to_path_buf()];
        let lock = scratch.path().join(format!(".s.PGSQL.{port}.lock"));
        assert!(check_port(port, &folders).is_ok());
        std::fs::write(&lock, format!("{}\n/data\n", i32::MAX)).unwrap();
        assert!(check_port(port, &folders).is_ok(), "nobody lives who could hold it");
        std::fs::write(&lock, format!("{}\n/data\n", std::process::id())).unwrap();
        let error = check_port(port, &folders).unwrap_err();
        assert!(error.chain().contains(&format!("port {port} is taken: \"{}", lock.display())));
    }

    #[test]
    fn a_long_or_odd_folder_gets_its_socket_elsewhere() {
        assert_eq!(socket_directory(Path::new("/r")), Path::new("/r/run"));
        assert_eq!(socket_directory(Path::new("/a, b")), Path::new("/tmp"));
        assert_eq!(
            socket_directory(Path::new(&format!("/{}", "x".repeat(100)))),
            Path::new("/tmp")
        );
    }
}
