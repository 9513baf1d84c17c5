//! Settings that the original raised after the set was taken: recovery can't continue with less.

use std::path::Path;

use pgfiles::control_file::ControlFile;

use super::has_said;
use crate::postgres::recovery;
use crate::postgres::server::{LowerSetting, Server};
use crate::restore::build::Build;
use crate::restore::control;

/// Raises the settings that stopped recovery; returns whether any of them is new. Later starts need them too, so they
/// are written to the cluster's own settings. `before`: pg_control before recovery.
pub(super) fn raise(build: &mut Build, server: &Server, before: &ControlFile) -> bool {
    let mut lower: Vec<_> = server.lower_setting().into_iter().collect();
    if RAN_OUT.iter().any(|words| has_said(server, words))
        && let Ok(now) = control::read(&build.placement.data)
    {
        lower.extend(raised_meanwhile(before, &now, server.said()));
        if lower.iter().all(|setting| setting.name != PREPARED) {
            lower.extend(prepared(&build.placement.data, server.said()));
        }
    }
    let mut is_new = false;
    for LowerSetting { name, needed } in lower {
        let value = needed.to_string();
        if build.raised.contains(&(name.clone(), value.clone())) {
            continue;
        }
        tracing::info!(
            "{name} becomes {value} in the restored cluster: the original's was raised, and recovery can't continue with less"
        );
        recovery::put(&mut build.raised, name, value);
        is_new = true;
    }
    is_new
}

/// The server's messages (twophase.c, lock.c) when the replayed WAL needs more room than this server has. With
/// hot_standby off, PostgreSQL doesn't compare the settings, and finds out this way.
const RAN_OUT: [&str; 2] =
    ["maximum number of prepared transactions reached", "out of shared memory"];

const PREPARED: &str = "max_prepared_transactions";

/// Returns the settings that the original raised in the replayed WAL, according to pg_control
/// (XLOG_PARAMETER_CHANGE). If room for prepared transactions is lacking, also the original's value from the
/// beginning, if the server says that it has less.
fn raised_meanwhile(before: &ControlFile, now: &ControlFile, said: &[String]) -> Vec<LowerSetting> {
    let of = |control: &ControlFile| {
        [
            ("max_connections", control.max_connections),
            ("max_worker_processes", control.max_worker_processes),
            ("max_wal_senders", control.max_wal_senders),
            (PREPARED, control.max_prepared_transactions),
            ("max_locks_per_transaction", control.max_locks_per_transaction),
        ]
    };
    let current = current(said);
    let pairs = of(before).into_iter().zip(of(now));
    let raised = pairs.filter(|((name, before), (_, now))| {
        now > before || *name == PREPARED && current.is_some_and(|current| *now > current)
    });
    raised
        .filter_map(|(_, (name, now))| {
            Some(LowerSetting { name: name.to_owned(), needed: u32::try_from(now).ok()? })
        })
        .collect()
}

/// Returns the value of max_prepared_transactions that the server said was too low.
fn current(said: &[String]) -> Option<i32> {
    let hint = said.iter().rev().find(|line| line.contains(PREPARED))?;
    hint.split_once("(currently ")?.1.split_once(')')?.0.parse().ok()
}

/// Returns the room that the prepared transactions in pg_twophase need, if the server says that it has less: after
/// pg_resetwal pg_control doesn't say what the original had (RewriteControlFile in pg_resetwal.c writes 0).
fn prepared(data: &Path, said: &[String]) -> Option<LowerSetting> {
    let current = u32::try_from(current(said)?).ok()?;
    let count = std::fs::read_dir(data.join("pg_twophase")).ok()?.count();
    let needed = u32::try_from(count).ok().filter(|count| *count > current)?;
    Some(LowerSetting { name: PREPARED.to_owned(), needed })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_raised_in_what_was_replayed_is_read_from_pg_control() {
        let path =
            concat!(env!("CARGO_MANIFEST_DIR"), "/../pgfiles/testdata/17/production.pg_control");
        let before = ControlFile::parse(&std::fs::read(path).unwrap()).unwrap();
        let mut now = before.clone();
        let raised = |now: &ControlFile, said: &[String]| {
            let raised = raised_meanwhile(&before, now, said).into_iter();
            raised.map(|it| (it.name, it.needed)).collect::<Vec<_>>()
        };
        assert_eq!(raised(&now, &[]), []);
        now.max_prepared_transactions = before.max_prepared_transactions + 10;
        now.max_connections = before.max_connections - 1;
        now.max_locks_per_transaction = 200;
        let expected = [
            ("max_prepared_transactions".to_owned(), now.max_prepared_transactions as u32),
            ("max_locks_per_transaction".to_owned(), 200),
        ];
        assert_eq!(raised(&now, &[]), expected);
        // The set's own pg_control has a higher value than its configuration.
        let mut same = before.clone();
        same.max_prepared_transactions = 5;
        let hint = "t [7] HINT:  Increase max_prepared_transactions (currently 0).".to_owned();
        let before = same.clone();
        let raised = raised_meanwhile(&before, &same, &[hint]);
        assert_eq!((raised.len(), raised[0].needed), (1, 5));
        assert!(raised_meanwhile(&before, &same, &[]).is_empty());
    }

    #[test]
    fn what_is_prepared_needs_room() {
        let data = tempfile::tempdir().unwrap();
        let said = |current: u32| {
            [format!("t [7] HINT:  Increase \"max_prepared_transactions\" (currently {current}).")]
        };
        assert_eq!(prepared(data.path(), &said(0)), None);
        std::fs::create_dir(data.path().join("pg_twophase")).unwrap();
        for name in ["000002EA", "000002EB"] {
            std::fs::write(data.path().join("pg_twophase").join(name), b"").unwrap();
        }
        assert_eq!(prepared(data.path(), &said(0)).map(|it| it.needed), Some(2));
        assert_eq!(prepared(data.path(), &said(2)), None, "it ran out of room for later ones");
        assert_eq!(prepared(data.path(), &[]), None);
    }
}
