//! Throwaway servers of every installed major version, run as a user who may run one.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU16, Ordering};

/// Returns folders of programs, one per major version: from scripts/fetch-postgres, otherwise Debian's.
pub fn installed() -> Vec<(u32, PathBuf)> {
    let mut caches: Vec<PathBuf> =
        std::env::var_os("LOCKSTEP_PG_CACHE").map(PathBuf::from).into_iter().collect();
    caches.push("/var/cache/lockstep/postgresql".into());
    caches.extend(std::env::home_dir().map(|home| home.join(".cache/lockstep/postgresql")));
    caches.push("/usr/lib/postgresql".into());
    let mut found = Vec::new();
    for major in super::MAJORS {
        let bins = caches.iter().map(|cache| cache.join(major.to_string()).join("bin"));
        match bins.into_iter().find(|bin| bin.join("postgres").exists()) {
            Some(bin) => found.push((major, bin)),
            None => {
                let words = "not installed (scripts/fetch-postgres brings 14 to 18)";
                // There is no package of 13 to fetch.
                let all = std::env::var_os("LOCKSTEP_ALL").is_some() && major > 13;
                assert!(!all, "LOCKSTEP_ALL: PostgreSQL {major}: {words}");
                say(&format!("SKIPPED PostgreSQL {major}: {words}"));
            }
        }
    }
    found
}

/// Bypasses the test harness, which hides what a passing test prints.
fn say(message: &str) {
    let _ = writeln!(std::io::stderr(), "{}: {message}", env!("CARGO_PKG_NAME"));
}

/// A folder that its servers' user owns. It is removed at the end, together with any process that still runs in it.
pub struct Lab {
    pub folder: PathBuf,
    bin: PathBuf,
    owner: Option<(u32, u32)>,
}

static NEXT_PORT: AtomicU16 = AtomicU16::new(54_810);

impl Lab {
    pub fn new(major: u32, bin: PathBuf, name: &str) -> Self {
        let folder =
            PathBuf::from(format!("/var/tmp/pgfiles-{name}-{major}-{}", std::process::id()));
        fs::create_dir(&folder).unwrap();
        let owner = (fs::metadata(&folder).unwrap().uid() == 0).then(|| (id("-u"), id("-g")));
        if let Some((uid, gid)) = owner {
            chown(&folder, Some(uid), Some(gid)).unwrap();
        }
        Lab { folder, bin, owner }
    }

    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.bin.join(program));
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("PG") {
                command.env_remove(name);
            }
        }
        command.env("LC_ALL", "C").env("TZ", "UTC").current_dir(&self.folder);
        if let Some((uid, gid)) = self.owner {
            command.uid(uid).gid(gid);
        }
        command
    }

    /// Returns the output of a program that must succeed.
    pub fn run(&self, program: &str, arguments: &[&str]) -> String {
        let output = self.command(program).args(arguments).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program} {arguments:?}: {stderr}");
        String::from_utf8(output.stdout).unwrap()
    }

    pub fn initdb(&self, name: &str, settings: &str) -> Server<'_> {
        let server = self.server(name);
        self.run(
            "initdb",
            &["-D", server.path(), "-A", "trust", "-U", "postgres", "--no-sync", "--wal-segsize=1"],
        );
        server.configure("fsync = off\nwal_keep_size = '1GB'\n");
        server.configure(settings);
        server
    }

    /// Returns a server whose data directory exists or will exist.
    pub fn server(&self, name: &str) -> Server<'_> {
        Server {
            lab: self,
            data: self.folder.join(name),
            port: NEXT_PORT.fetch_add(1, Ordering::Relaxed),
        }
    }

    /// Writes a file that the servers' user owns.
    pub fn write(&self, path: &Path, bytes: &[u8]) {
        fs::write(path, bytes).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
        if let Some((uid, gid)) = self.owner {
            chown(path, Some(uid), Some(gid)).unwrap();
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for entry in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            if entry.path().join("postmaster.pid").exists() {
                let _ = self
                    .command("pg_ctl")
                    .args(["stop", "-m", "immediate", "-D"])
                    .arg(entry.path())
                    .output();
            }
        }
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn id(what: &str) -> u32 {
    let output = Command::new("id").args([what, "postgres"]).output().unwrap();
    let number = String::from_utf8(output.stdout).unwrap();
    number.trim().parse().expect("servers don't run as root, and there is no user postgres")
}

/// One server.
pub struct Server<'a> {
    lab: &'a Lab,
    pub data: PathBuf,
    port: u16,
}

impl Server<'_> {
    pub fn path(&self) -> &str {
        self.data.to_str().unwrap()
    }

    pub fn configure(&self, settings: &str) {
        let path = self.data.join("postgresql.conf");
        let before = fs::read_to_string(&path).unwrap();
        self.lab.write(&path, format!("{before}\n{settings}\n").as_bytes());
    }

    /// Starts it and waits; returns the server's log if it doesn't start.
    pub fn start(&self) -> Result<(), String> {
        let log = self.data.with_extension("log");
        let _ = fs::remove_file(&log);
        let options =
            format!("-p {} -k {} -c listen_addresses=''", self.port, self.lab.folder.display());
        let status = self
            .lab
            .command("pg_ctl")
            .args([
                "start",
                "-w",
                "-s",
                "-t",
                "60",
                "-D",
                self.path(),
                "-l",
                log.to_str().unwrap(),
                "-o",
                &options,
            ])
            .output()
            .unwrap()
            .status;
        if status.success() { Ok(()) } else { Err(fs::read_to_string(log).unwrap_or_default()) }
    }

    pub fn stop(&self, mode: &str) {
        self.lab.run("pg_ctl", &["stop", "-w", "-s", "-D", self.path(), "-m", mode]);
    }

    /// Returns one value, as text.
    pub fn sql(&self, sql: &str) -> String {
        let (host, port) = (self.lab.folder.to_str().unwrap(), self.port.to_string());
        let arguments = [
            "-XqAt",
            "-v",
            "ON_ERROR_STOP=1",
            "-h",
            host,
            "-p",
            &port,
            "-U",
            "postgres",
            "-c",
            sql,
            "postgres",
        ];
        self.lab.run("psql", &arguments).trim().to_owned()
    }

    /// Makes a base backup of it.
    pub fn base_backup(&self, name: &str, more: &[&str]) -> Server<'_> {
        let copy = self.lab.server(name);
        let (host, port) = (self.lab.folder.to_str().unwrap(), self.port.to_string());
        let mut arguments = vec![
            "-h",
            host,
            "-p",
            &port,
            "-U",
            "postgres",
            "-D",
            copy.path(),
            "-c",
            "fast",
            "--no-sync",
        ];
        arguments.extend(more);
        self.lab.run("pg_basebackup", &arguments);
        copy
    }

    /// Waits, at most a minute, until the query returns `t`.
    pub fn wait(&self, sql: &str) {
        for _ in 0..600 {
            if self.sql(sql) == "t" {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        panic!("{sql} did not become true");
    }

    pub fn control_bytes(&self) -> Vec<u8> {
        fs::read(self.data.join("global/pg_control")).unwrap()
    }

    pub fn pg_controldata(&self) -> String {
        self.lab.run("pg_controldata", &["-D", self.path()])
    }
}
