//! Files that hold a secret: a key, a passphrase, an access key.
//!
//! What could go wrong: everybody on the host can read a secret, or it ends up in an error or a log. So a file that
//! others may read is refused, and its content never appears in any message. Or the path names a pipe, and opening it
//! waits forever.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;

use crate::error::{Error, Result};

/// Larger than any secret; a larger file was named by mistake.
const LARGEST: u64 = 64 << 10;

/// What a key file is called in errors.
pub(super) const KEY_FILE: &str = "key file";
/// Makes a key, and overwrites none: there may be no other copy of it.
pub(super) const NEW_KEY: &str = "`(umask 077; set -C; head -c 32 /dev/urandom > FILE)`";

/// How the first one is made, where a command makes it.
fn for_new(what: &str) -> String {
    match what {
        KEY_FILE => format!(". For a new repository: {NEW_KEY}; keep a copy elsewhere"),
        _ => String::new(),
    }
}

/// Reads a whole secret file; `what` says in errors what it holds: `key file`.
///
/// # Errors
/// When it can't be read, is larger than any secret, or may be read by anyone but its owner.
pub fn read(path: &Path, what: &str) -> Result<Vec<u8>> {
    let shown = path.display();
    // Opening a pipe would wait for somebody who writes to it.
    let flags = OFlags::NONBLOCK.bits() as i32;
    let mut file = match File::options().read(true).custom_flags(flags).open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(Error::usage(
                format!("the {what} \"{shown}\" isn't there"),
                format!(
                    "is the path right, and its file system mounted? If nobody has a copy of it any more, it is lost: it can't be made again{}",
                    for_new(what)
                ),
            ));
        }
        opened => opened.map_err(Error::io("read", path))?,
    };
    // Metadata of the open file: the name could be another file's by now.
    let metadata = file.metadata().map_err(Error::io("read", path))?;
    if !metadata.is_file() {
        return Err(Error::usage(format!("the {what} \"{shown}\" is no file"), "name a file"));
    }
    let mode = metadata.mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(Error::usage(
            format!("the {what} \"{shown}\" may be read by others: its mode is {mode:03o}"),
            format!("chmod 600 {}", crate::process::quote(&shown.to_string())),
        ));
    }
    let mut bytes = Vec::new();
    file.by_ref().take(LARGEST + 1).read_to_end(&mut bytes).map_err(Error::io("read", path))?;
    if bytes.len() as u64 > LARGEST {
        return Err(Error::usage(
            format!("the {what} \"{shown}\" has more than {LARGEST} bytes"),
            "is it the right file?",
        ));
    }
    Ok(bytes)
}

/// Returns the first line of a secret file, without the line ending.
///
/// # Errors
/// As [`read`], and when the line is empty.
pub fn read_line(path: &Path, what: &str) -> Result<Vec<u8>> {
    let bytes = read(path, what)?;
    let line = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if line.is_empty() {
        return Err(Error::usage(
            format!("the {what} \"{}\" has nothing in its first line", path.display()),
            "the secret is all of the first line",
        ));
    }
    Ok(line.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_pipe_is_no_secret_and_is_not_waited_for() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("pipe");
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        let (told, heard) = std::sync::mpsc::channel();
        std::thread::spawn(move || told.send(read(&path, "key file").unwrap_err().to_string()));
        let error = heard.recv_timeout(std::time::Duration::from_secs(60));
        assert!(error.is_ok_and(|error| error.contains("is no file")));
    }

    #[test]
    fn what_others_may_read_is_no_secret() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("secret");
        std::fs::write(&path, "first line\r\nsecond\n").unwrap();
        let mode = |mode| {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        for open in [0o644, 0o640, 0o604, 0o602] {
            mode(open);
            let error = read_line(&path, "key file").unwrap_err();
            assert!(error.to_string().contains("may be read by others"), "{error}");
            assert!(error.hint().unwrap().starts_with("chmod 600"), "{error}");
        }
        mode(0o600);
        assert_eq!(read_line(&path, "key file").unwrap(), b"first line");
        // A word that no random folder name contains.
        std::fs::write(&path, "\nin the second line").unwrap();
        let error = read_line(&path, "passphrase file").unwrap_err().to_string();
        assert!(error.contains("passphrase file") && !error.contains("second"), "{error}");
    }
}
