//! Settings that name files in the original's data directory by their absolute paths. Patroni writes `hba_file` so, and
//! an older restore of a cluster whose configuration was outside its data directory did. The restored cluster has these
//! files too, and has to go by its own.
//!
//! What could go wrong: it reads and writes the original's, as long as that is there, and doesn't start once it isn't.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use crate::error::Result;
use crate::postgres::{conf, recovery};

/// Settings whose values are paths, and the file's name if a restore itself sets it.
const PATHS: [(&str, Option<&str>); 9] = [
    ("hba_file", Some("pg_hba.conf")),
    ("ident_file", Some("pg_ident.conf")),
    ("krb_server_keyfile", None),
    ("log_directory", None),
    ("ssl_ca_file", None),
    ("ssl_cert_file", None),
    ("ssl_crl_file", None),
    ("ssl_dh_params_file", None),
    ("ssl_key_file", None),
];

/// Returns such settings, with the same places in `data`. `original` is the data directory that the set was taken from.
pub(super) fn settings(
    data: &Path,
    original: &Path,
    read: impl Fn(&Path) -> Result<Option<Vec<u8>>>,
) -> Result<Vec<(String, String)>> {
    let changed = read(&data.join("postgresql.auto.conf"))?.unwrap_or_default();
    let of_a_restore = recovery::written_by_a_restore(&changed);
    let conf = data.join("postgresql.conf");
    // If what it includes can't be read, no server starts with it, and the server says so.
    let written = match conf::whole(&conf, &read) {
        Ok(whole) => whole.map(|whole| whole.text),
        Err(_) => read(&conf)?,
    };
    let written = written.unwrap_or_default();
    let originals = [Some(original.to_path_buf()), std::fs::canonicalize(original).ok()];
    let mut all = Vec::new();
    for (setting, file) in PATHS {
        let value = conf::value_of(&changed, setting).or_else(|| conf::value_of(&written, setting));
        let Some(value) = value.map(|bytes| PathBuf::from(OsString::from_vec(bytes))) else {
            continue;
        };
        if value.starts_with(data) {
            continue;
        }
        let inside = originals.iter().flatten().find_map(|from| value.strip_prefix(from).ok());
        let inside = inside.map(Path::to_path_buf).or_else(|| {
            let is_ours = || conf::value_of(of_a_restore, setting).is_some();
            file.filter(|_| is_ours()).map(PathBuf::from)
        });
        let Some(own) = inside.map(|inside| data.join(inside)) else { continue };
        // PostgreSQL makes this folder itself.
        if setting == "log_directory" || own.exists() {
            all.push((setting.to_owned(), own.display().to_string()));
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    #[test]
    fn what_is_in_the_original_s_data_directory_is_in_the_restored_one() {
        let scratch = tempfile::tempdir().unwrap();
        let data = scratch.path().canonicalize().unwrap();
        for name in ["pg_hba.conf", "pg_ident.conf", "server.key"] {
            std::fs::write(data.join(name), b"").unwrap();
        }
        let read = |path: &Path| match path.exists() {
            true => std::fs::read(path).map(Some).map_err(Error::io("read", path)),
            false => Ok(None),
        };
        let of = |conf: &str, auto: &str| {
            std::fs::write(data.join("postgresql.conf"), conf).unwrap();
            std::fs::write(data.join("postgresql.auto.conf"), auto).unwrap();
            settings(&data, Path::new("/srv/pg"), read).unwrap()
        };
        let own =
            |setting: &str, name: &str| (setting.to_owned(), data.join(name).display().to_string());
        let ours = "# written by lockstep restore:\n";
        assert_eq!(
            of("hba_file = '/srv/pg/pg_hba.conf'\nlog_directory='/srv/pg/log'\n", ""),
            [own("hba_file", "pg_hba.conf"), own("log_directory", "log")]
        );
        assert_eq!(
            of("", &format!("{ours}ident_file = '/older/data/pg_ident.conf'\n")),
            [own("ident_file", "pg_ident.conf")]
        );
        assert_eq!(of("include 'gone'\nssl_key_file '/srv/pg/server.key'", "").len(), 1);
        for (conf, auto) in [
            ("hba_file = 'pg_hba.conf'\n", String::new()),
            ("hba_file = '/etc/pg_hba.conf'\nlog_directory = '/var/log/pg'\n", String::new()),
            ("", format!("hba_file = '/etc/pg_hba.conf'\n{ours}port = '1'\n")),
            ("ssl_key_file = '/srv/pg/gone'\nhba_file='/srv/pg2/pg_hba.conf'", String::new()),
            ("", format!("{ours}hba_file = '{}'\n", data.join("pg_hba.conf").display())),
        ] {
            assert_eq!(of(conf, &auto), [], "{conf} {auto}");
        }
    }
}
