//! One PostgreSQL server, the fixture's own or a restored one: started, stopped, killed, queried.

use super::command::{Outcome, as_postgres, must, run, wait_until};
use postgres::{Client, NoTls};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;

/// How a server is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// With a shutdown checkpoint.
    Fast,
    /// Without one: the next start recovers.
    Immediate,
}

/// A server, running or not.
#[derive(Debug, Clone)]
pub struct Cluster {
    /// Where the programs of its version are.
    pub bin: PathBuf,
    /// PGDATA.
    pub data: PathBuf,
    /// Where its socket is.
    pub socket: PathBuf,
    /// Its port, which is a part of its socket's name.
    pub port: u16,
    /// What pg_ctl is told to log to.
    pub log: PathBuf,
}

impl Cluster {
    /// A running server, identified by its data directory: postmaster.pid has the socket directory and the port.
    #[track_caller]
    pub fn running_in(data: &Path, bin: &Path, log: &Path) -> Cluster {
        let path = data.join("postmaster.pid");
        let text = fs::read_to_string(&path)
            .unwrap_or_else(|error| panic!("no server runs in {data:?}: {path:?}: {error}"));
        let line = |n: usize| {
            text.lines().nth(n).unwrap_or_else(|| panic!("{path:?} has no line {n}: {text}"))
        };
        Cluster {
            bin: bin.to_owned(),
            data: data.to_owned(),
            socket: PathBuf::from(line(4)),
            port: line(3).parse().unwrap_or_else(|_| panic!("{path:?} holds no port: {text}")),
            log: log.to_owned(),
        }
    }

    /// The command `program` of this server's version, run by its owner, set up to connect to it.
    pub fn tool<I>(&self, program: &str, arguments: I) -> Command
    where
        I: IntoIterator,
        I::Item: AsRef<std::ffi::OsStr>,
    {
        let mut command = as_postgres(self.bin.join(program), arguments);
        command
            .env("PGHOST", &self.socket)
            .env("PGPORT", self.port.to_string())
            .env("PGUSER", "postgres")
            .env("PGDATABASE", "postgres")
            .env("PGCONNECT_TIMEOUT", "10")
            .env("LC_ALL", "C.UTF-8");
        command
    }

    /// Starts the server and waits until it accepts connections.
    #[track_caller]
    pub fn start(&self) {
        let outcome = self.try_start();
        assert!(outcome.ok(), "{}\n--- its log\n{}", outcome.describe(), self.log_tail());
    }

    /// Tries to start the server.
    #[track_caller]
    pub fn try_start(&self) -> Outcome {
        let path =
            |path: &Path| path.to_str().expect("the harness' own paths are UTF-8").to_owned();
        let (data, log) = (path(&self.data), path(&self.log));
        run(&mut self.tool("pg_ctl", ["-D", &data, "-l", &log, "-w", "-t", "240", "start"]))
    }

    /// Stops the server and waits for its end.
    #[track_caller]
    pub fn stop(&self, how: Stop) {
        let mode = match how {
            Stop::Fast => "fast",
            Stop::Immediate => "immediate",
        };
        let data = self.data.to_str().expect("the harness' own paths are UTF-8");
        must(&mut self.tool("pg_ctl", ["-D", data, "-m", mode, "-w", "-t", "240", "stop"]));
    }

    /// SIGKILL for the postmaster and all its children, and waits until they are gone.
    #[track_caller]
    pub fn kill(&self) {
        let Some(postmaster) = self.postmaster() else {
            panic!("no server runs in {:?}", self.data)
        };
        let mut victims = children_of(postmaster);
        victims.insert(0, postmaster);
        for pid in &victims {
            if let Some(pid) = rustix::process::Pid::from_raw(pid.cast_signed()) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
        wait_until("a killed server's processes are gone", Duration::from_secs(20), || {
            victims.iter().all(|pid| is_gone(*pid))
        });
    }

    /// The postmaster's process id, if it is running.
    pub fn postmaster(&self) -> Option<u32> {
        let text = fs::read_to_string(self.data.join("postmaster.pid")).ok()?;
        let pid: u32 = text.lines().next()?.trim().parse().ok()?;
        (!is_gone(pid)).then_some(pid)
    }

    /// Whether its postmaster is running.
    pub fn is_running(&self) -> bool {
        self.postmaster().is_some()
    }

    /// A new connection.
    #[track_caller]
    pub fn connect(&self, database: &str) -> Client {
        self.try_connect(database).unwrap_or_else(|error| {
            panic!("cannot connect to {database} at {:?} port {}: {error}", self.socket, self.port)
        })
    }

    /// A new connection, if the server accepts one.
    pub fn try_connect(&self, database: &str) -> Result<Client, postgres::Error> {
        postgres::Config::new()
            .host_path(&self.socket)
            .port(self.port)
            .user("postgres")
            .dbname(database)
            .application_name("test")
            .connect_timeout(Duration::from_secs(10))
            .connect(NoTls)
    }

    /// Runs statements, each on its own, in the database `postgres`.
    #[track_caller]
    pub fn execute(&self, statements: &[&str]) {
        let mut client = self.connect("postgres");
        for statement in statements {
            client
                .batch_execute(statement)
                .unwrap_or_else(|error| panic!("{statement}: {}", full(&error)));
        }
    }

    /// The first column of the first row, as text.
    #[track_caller]
    pub fn value(&self, database: &str, query: &str) -> String {
        self.column(database, query).into_iter().next().unwrap_or_else(|| panic!("{query}: no row"))
    }

    /// The first column of all rows, as text; NULL is "".
    #[track_caller]
    pub fn column(&self, database: &str, query: &str) -> Vec<String> {
        let messages = self.connect(database).simple_query(query);
        let messages = messages.unwrap_or_else(|error| panic!("{query}: {}", full(&error)));
        let rows = messages.iter().filter_map(|message| match message {
            postgres::SimpleQueryMessage::Row(row) => {
                Some(row.get(0).unwrap_or_default().to_owned())
            }
            _ => None,
        });
        rows.collect()
    }

    /// Makes pgbench's tables in the database `postgres`, and the two procedures that the load needs.
    #[track_caller]
    pub fn pgbench_tables(&self, scale: u32, tablespace: &str, index_tablespace: &str) {
        let options =
            ["-i", "-q", "-I", "dtgvp", "-s", &scale.to_string(), "--tablespace", tablespace];
        let mut command = self.tool("pgbench", options);
        must(command.args(["--index-tablespace", index_tablespace, "postgres"]));
    }

    /// The end of the server's log, for messages.
    pub fn log_tail(&self) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }
}

/// A server's error with its own message, which this crate's `Display` leaves out.
pub fn full(error: &postgres::Error) -> String {
    match error.as_db_error() {
        Some(db) => {
            format!("{}: {} {}", db.code().code(), db.message(), db.detail().unwrap_or_default())
        }
        None => error.to_string(),
    }
}

/// Whether a process is gone, or only its exit status is left.
pub fn is_gone(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_none_or(|(_, rest)| rest.trim_start().starts_with(['Z', 'X']))
}

fn children_of(parent: u32) -> Vec<u32> {
    let numbers = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = numbers.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let parent_of = |pid: u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse::<u32>().ok()
    };
    pids.filter(|pid| parent_of(*pid) == Some(parent)).collect()
}

/// Where the programs of a major version are: the distribution's, or else what `scripts/fetch-postgres` says.
#[track_caller]
pub fn bin_of(major: u32) -> PathBuf {
    static KNOWN: Mutex<Vec<(u32, PathBuf)>> = Mutex::new(Vec::new());
    let mut known = KNOWN.lock().expect("no test panics while it holds this");
    if let Some((_, bin)) = known.iter().find(|(of, _)| *of == major) {
        return bin.clone();
    }
    let packaged = PathBuf::from(format!("/usr/lib/postgresql/{major}/bin"));
    let bin = if packaged.join("postgres").exists() && packaged.join("pg_amcheck").exists() {
        packaged
    } else {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/fetch-postgres");
        let fetch = Command::new(&script).arg(major.to_string()).output();
        match fetch {
            Ok(output) if output.status.success() => {
                PathBuf::from(String::from_utf8_lossy(&output.stdout).trim())
            }
            Ok(output) => panic!("{script:?} {major}: {}", String::from_utf8_lossy(&output.stderr)),
            Err(error) => {
                panic!("PostgreSQL {major} is not installed, and {script:?} cannot run: {error}")
            }
        }
    };
    known.push((major, bin.clone()));
    bin
}
