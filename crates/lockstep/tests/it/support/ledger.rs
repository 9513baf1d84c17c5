//! A ledger of what was committed when, kept by the test and compared with what a restored cluster holds.
//!
//! One session inserts rows, one commit each, in the order of their ids. A second one inserts rows that are never
//! committed: rolled back at once, or left in an open transaction for a while and then rolled back. For each row, the
//! test records whether it was attempted, when its commit returned, and the WAL position at that time.

use super::cluster::{Cluster, full};
use super::lockstep::Lsn;
use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};

/// Ids from here on belong to rows that are never committed.
const NEVER: i64 = 1 << 40;

/// The pause between two commits: enough to cross every step of a backup, without filling the pools.
const PAUSE: Duration = Duration::from_millis(4);

/// The result for one row; its id is its position in the list, from 1.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    /// When the commit had returned, and the WAL position then; `None` if it isn't known to be committed.
    pub committed: Option<(SystemTime, Lsn)>,
}

#[derive(Debug, Default)]
struct Book {
    rows: Vec<Row>,
    never: i64,
    errors: Vec<String>,
}

/// The writers' book. It outlives them: a stopped ledger can be started again on the same tables.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    book: Arc<Mutex<Book>>,
}

/// The two writers, until stopped or dropped.
#[derive(Debug)]
pub struct Writers {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

/// Something in the ledger that can't be right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wrong {
    /// A row is missing although its commit had returned in time.
    Missing(i64),
    /// A later commit is there, but an earlier one isn't.
    Hole(i64),
    /// A row of a transaction that never committed is there.
    NeverCommitted(i64),
    /// A row that was written after the backup, or by nobody.
    Unknown(i64),
    /// A row's content doesn't have its checksum.
    Damaged(i64),
    /// A row is there twice.
    Twice(i64),
}

/// Which rows a restored cluster must have.
#[derive(Debug, Clone, Copy, Default)]
pub struct Expected {
    /// All rows whose commit had returned by then.
    pub by_time: Option<SystemTime>,
    /// All rows whose commit is before this WAL position.
    pub by_lsn: Option<Lsn>,
    /// No row that was attempted when this many rows were already in the book.
    pub none_after: Option<usize>,
}

impl Ledger {
    /// Makes the table, its heap in one tablespace and its index in another.
    #[track_caller]
    pub fn create(cluster: &Cluster, tablespace: &str, index_tablespace: &str) -> Ledger {
        cluster.execute(&[&format!(
            "CREATE TABLE ledger (id bigint PRIMARY KEY USING INDEX TABLESPACE {index_tablespace}, \
             payload text NOT NULL, sum text NOT NULL) TABLESPACE {tablespace}"
        )]);
        Ledger::default()
    }

    /// Starts writing; the first rows are committed when this returns.
    #[track_caller]
    pub fn start(&self, cluster: &Cluster) -> Writers {
        let stop = Arc::new(AtomicBool::new(false));
        let committing = (self.clone(), cluster.clone(), Arc::clone(&stop));
        let abandoning = committing.clone();
        let threads = vec![
            thread::spawn(move || {
                let (ledger, cluster, stop) = committing;
                ledger.note(ledger.commit_rows(&cluster, &stop));
            }),
            thread::spawn(move || {
                let (ledger, cluster, stop) = abandoning;
                ledger.note(ledger.abandon_rows(&cluster, &stop));
            }),
        ];
        let writers = Writers { stop, threads };
        self.wait_for(2);
        writers
    }

    fn commit_rows(&self, cluster: &Cluster, stop: &AtomicBool) -> Result<(), postgres::Error> {
        let mut client = cluster.try_connect("postgres")?;
        let insert = client.prepare(
            "INSERT INTO ledger SELECT $1, p, md5(p) FROM (SELECT repeat(md5($1::bigint::text), 4 + ($1 % 5)::int) AS p) AS x",
        )?;
        let place = client.prepare("SELECT pg_current_wal_insert_lsn()::text")?;
        while !stop.load(Ordering::Relaxed) {
            let id = {
                let mut book = self.book.lock().expect("no writer panics with the book open");
                book.rows.push(Row { committed: None });
                i64::try_from(book.rows.len()).expect("nobody writes so many rows")
            };
            client.execute(&insert, &[&id])?;
            let at = SystemTime::now();
            let lsn = Lsn::parse(client.query_one(&place, &[])?.get(0));
            let mut book = self.book.lock().expect("no writer panics with the book open");
            book.rows.last_mut().expect("this writer's own row").committed = Some((at, lsn));
            drop(book);
            thread::sleep(PAUSE);
        }
        Ok(())
    }

    fn abandon_rows(&self, cluster: &Cluster, stop: &AtomicBool) -> Result<(), postgres::Error> {
        let mut client = cluster.try_connect("postgres")?;
        while !stop.load(Ordering::Relaxed) {
            let id = {
                let mut book = self.book.lock().expect("no writer panics with the book open");
                book.never += 10;
                NEVER + book.never
            };
            let mut transaction = client.transaction()?;
            let insert = "INSERT INTO ledger SELECT i, i::text, md5(i::text) FROM generate_series($1::bigint, $1 + 9) AS i";
            transaction.execute(insert, &[&id])?;
            // Every other one stays open during a snapshot or two.
            let open = if id % 20 == 0 { 30 } else { 1 };
            for _ in 0..open {
                if !stop.load(Ordering::Relaxed) {
                    thread::sleep(Duration::from_millis(25));
                }
            }
            transaction.rollback()?;
        }
        Ok(())
    }

    fn note(&self, ended: Result<(), postgres::Error>) {
        if let Err(error) = ended {
            self.book
                .lock()
                .expect("no writer panics with the book open")
                .errors
                .push(full(&error));
        }
    }

    /// What a set holds that has just been taken: everything before its floor, and nothing attempted later.
    pub fn expected(&self, floor_lsn: Option<Lsn>) -> Expected {
        Expected { by_lsn: floor_lsn, none_after: Some(self.attempted()), by_time: None }
    }

    /// How many rows were attempted so far.
    pub fn attempted(&self) -> usize {
        self.book.lock().expect("no writer panics with the book open").rows.len()
    }

    /// The errors of the writers' sessions; empty unless a test stops the server while they write.
    pub fn errors(&self) -> Vec<String> {
        self.book.lock().expect("no writer panics with the book open").errors.clone()
    }

    /// Waits until `more` additional rows are committed.
    #[track_caller]
    pub fn wait_for(&self, more: usize) {
        let aim = self.attempted() + more;
        super::command::wait_until("the ledger's writer goes on", Duration::from_secs(60), || {
            assert!(
                self.errors().is_empty(),
                "the ledger's writers have ended: {:?}",
                self.errors()
            );
            self.attempted() > aim
        });
    }

    /// Compares the restored cluster's table with the book. Returns what is wrong, and how many rows there are.
    pub fn compare(
        &self,
        restored: &Cluster,
        expected: Expected,
    ) -> Result<(Vec<Wrong>, usize), postgres::Error> {
        let mut client = restored.try_connect("postgres")?;
        let rows = client.query("SELECT id, md5(payload) = sum FROM ledger ORDER BY id", &[])?;
        let rows: Vec<(i64, bool)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
        let book = self.book.lock().expect("no writer panics with the book open");
        Ok((judge(&book.rows, &rows, expected), rows.len()))
    }
}

/// The rule itself: compares the table with the book.
pub fn judge(book: &[Row], table: &[(i64, bool)], expected: Expected) -> Vec<Wrong> {
    let mut wrong = Vec::new();
    let mut present = HashSet::new();
    let last_possible = expected.none_after.unwrap_or(book.len()).min(book.len());
    for (id, intact) in table {
        if !present.insert(*id) {
            wrong.push(Wrong::Twice(*id));
        }
        if !intact {
            wrong.push(Wrong::Damaged(*id));
        }
        if *id > NEVER {
            wrong.push(Wrong::NeverCommitted(*id));
        } else if usize::try_from(*id).map_or(true, |id| id == 0 || id > last_possible) {
            wrong.push(Wrong::Unknown(*id));
        }
    }
    let newest = present.iter().filter(|id| **id < NEVER).max().copied().unwrap_or(0);
    for (id, row) in (1_i64..).zip(book) {
        let Some((at, lsn)) = row.committed else {
            continue;
        };
        let in_time = expected.by_time.is_some_and(|limit| at <= limit);
        let in_wal = expected.by_lsn.is_some_and(|limit| lsn <= limit);
        if present.contains(&id) {
            continue;
        }
        if in_time || in_wal {
            wrong.push(Wrong::Missing(id));
        } else if id < newest {
            wrong.push(Wrong::Hole(id));
        }
    }
    wrong
}

impl Writers {
    /// Stops both and waits for them.
    pub fn stop(self) {
        drop(self);
    }
}

impl Drop for Writers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
