//! The judge of a restored cluster. It asks PostgreSQL's own tools and the ledger, and returns a list of what is
//! wrong.
//!
//! It must be able to say no: `tests/checker_proves_itself.rs` shows it clusters that are known to be corrupt.

use super::cluster::{Cluster, Stop, full};
use super::command::{Outcome, run};
use super::ledger::{Expected, Ledger, Wrong};
use std::fs::File;
use std::os::fd::AsRawFd;

/// One thing that is wrong with a restored cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Violation {
    /// A query failed: the table cannot be read.
    Unreadable {
        /// The query, or the program.
        what: String,
        /// The server's words.
        error: String,
    },
    /// pgbench's four sums differ.
    SumsDiffer {
        /// Of accounts, tellers, branches, and the history's deltas.
        sums: [i64; 4],
    },
    /// pgbench's tables don't have the number of rows that they were made with.
    Rows {
        /// Of accounts, tellers, branches.
        found: [i64; 3],
        /// The same, as they were made.
        made: [i64; 3],
    },
    /// pg_amcheck's report.
    Amcheck(String),
    /// pg_checksums' report.
    Checksums(String),
    /// The ledger's report.
    Ledger(Wrong),
    /// The server didn't stop, or is gone.
    Server(String),
}

/// What a restored cluster has to hold.
#[derive(Debug, Clone)]
pub struct Checker {
    /// pgbench's scale.
    pub scale: u32,
    /// The ledger with the rows that must be there, where one was written.
    pub ledger: Option<(Ledger, Expected)>,
}

/// The verdict.
#[derive(Debug, Clone, Default)]
pub struct Verdict {
    /// Everything that is wrong; empty if nothing is.
    pub violations: Vec<Violation>,
    /// The ledger's rows in the restored cluster.
    pub ledger_rows: usize,
}

impl Verdict {
    /// Fails with the list, unless it is empty.
    #[track_caller]
    pub fn assert_right(&self, what: &str) {
        let list: Vec<_> =
            self.violations.iter().take(20).map(|violation| format!("{violation:?}")).collect();
        assert!(
            list.is_empty(),
            "{what}: {} violations:\n  {}",
            self.violations.len(),
            list.join("\n  ")
        );
    }
}

impl Checker {
    /// Checks pgbench's tables at this scale.
    pub fn new(scale: u32) -> Checker {
        Checker { scale, ledger: None }
    }

    /// Checks the ledger too.
    pub fn with_ledger(mut self, ledger: &Ledger, expected: Expected) -> Checker {
        self.ledger = Some((ledger.clone(), expected));
        self
    }

    /// Checks a running cluster in full, stops it, and checks its pages' checksums.
    pub fn check_and_stop(&self, cluster: &Cluster) -> Verdict {
        let mut verdict = self.check_running(cluster);
        let violations = &mut verdict.violations;
        // The server may be in its own mount namespace, in which a tablespace's path means something else.
        let namespace =
            cluster.postmaster().and_then(|pid| File::open(format!("/proc/{pid}/ns/mnt")).ok());
        let Some(namespace) = namespace else {
            violations.push(Violation::Server("its postmaster is gone".to_owned()));
            return verdict;
        };
        cluster.stop(Stop::Fast);
        violations.extend(checksums(cluster, &namespace).err().map(Violation::Checksums));
        verdict
    }

    /// Checks a running cluster as far as that is possible while it runs.
    pub fn check_running(&self, cluster: &Cluster) -> Verdict {
        let mut verdict = Verdict::default();
        let violations = &mut verdict.violations;
        match sums(cluster) {
            Ok(sums) if sums.iter().any(|sum| *sum != sums[0]) => {
                violations.push(Violation::SumsDiffer { sums })
            }
            Ok(_) => (),
            Err(error) => {
                violations.push(unreadable("the sums of pgbench's tables", &full(&error)))
            }
        }
        let made = [100_000, 10, 1].map(|rows| rows * i64::from(self.scale));
        match counts(cluster) {
            Ok(found) if found != made => violations.push(Violation::Rows { found, made }),
            Ok(_) => (),
            Err(error) => {
                violations.push(unreadable("the number of pgbench's rows", &full(&error)))
            }
        }
        if let Some((ledger, expected)) = &self.ledger {
            match ledger.compare(cluster, *expected) {
                Ok((wrong, rows)) => {
                    violations.extend(wrong.into_iter().map(Violation::Ledger));
                    verdict.ledger_rows = rows;
                }
                Err(error) => violations.push(unreadable("the ledger", &full(&error))),
            }
        }
        violations.extend(amcheck(cluster).err());
        violations.extend(dump(cluster).err());
        verdict
    }
}

fn unreadable(what: &str, error: &str) -> Violation {
    Violation::Unreadable { what: what.to_owned(), error: error.to_owned() }
}

/// Uses sequential scans, so that the heaps are summed.
fn sums(cluster: &Cluster) -> Result<[i64; 4], postgres::Error> {
    let mut client = cluster.try_connect("postgres")?;
    client.batch_execute(
        "SET enable_indexscan = off; SET enable_indexonlyscan = off; SET enable_bitmapscan = off",
    )?;
    let row = client.query_one(
        "SELECT (SELECT sum(abalance) FROM pgbench_accounts)::bigint, (SELECT sum(tbalance) FROM pgbench_tellers)::bigint, \
         (SELECT sum(bbalance) FROM pgbench_branches)::bigint, (SELECT coalesce(sum(delta), 0) FROM pgbench_history)::bigint",
        &[],
    )?;
    Ok([0, 1, 2, 3].map(|column| row.get::<_, Option<i64>>(column).unwrap_or(i64::MIN)))
}

fn counts(cluster: &Cluster) -> Result<[i64; 3], postgres::Error> {
    let mut client = cluster.try_connect("postgres")?;
    client.batch_execute(
        "SET enable_indexscan = off; SET enable_indexonlyscan = off; SET enable_bitmapscan = off",
    )?;
    let row = client.query_one(
        "SELECT (SELECT count(*) FROM pgbench_accounts), (SELECT count(*) FROM pgbench_tellers), \
         (SELECT count(*) FROM pgbench_branches)",
        &[],
    )?;
    Ok([row.get(0), row.get(1), row.get(2)])
}

/// Every index against its heap, in every database.
fn amcheck(cluster: &Cluster) -> Result<(), Violation> {
    let options = ["--all", "--install-missing", "--heapallindexed", "--parent-check", "--jobs=2"];
    said(&run(&mut cluster.tool("pg_amcheck", options))).map_err(Violation::Amcheck)
}

/// Reads every row of every table, and the catalogues, in every database.
fn dump(cluster: &Cluster) -> Result<(), Violation> {
    let outcome = run(&mut cluster.tool("pg_dumpall", ["--no-sync", "-f", "/dev/null"]));
    said(&outcome).map_err(|error| unreadable("pg_dumpall", &error))
}

/// The checksums of all pages of a stopped cluster, seen from its server's mount namespace.
fn checksums(cluster: &Cluster, namespace: &File) -> Result<(), String> {
    let pinned = format!("--mount=/proc/{}/fd/{}", std::process::id(), namespace.as_raw_fd());
    let data = cluster.data.to_str().expect("the harness' own paths are UTF-8");
    let program = cluster.bin.join("pg_checksums");
    let mut inside = super::command::command("nsenter", [pinned.as_str(), "--"]);
    said(&run(inside.arg(program).args(["--check", "-D", data]).current_dir("/")))
}

fn said(outcome: &Outcome) -> Result<(), String> {
    if outcome.ok() {
        Ok(())
    } else {
        Err(format!("{}\n{}", outcome.stdout.trim(), outcome.stderr.trim()))
    }
}
