//! What the owner of a cluster should know although it doesn't stop a backup.

use serde::{Deserialize, Serialize};

use super::facts::Facts;
use super::strategy::Strategy;

/// A thing worth knowing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Warning {
    /// What is so, with the value.
    pub what: String,
    /// What follows, or what to do.
    pub hint: String,
}

fn warning(what: impl Into<String>, hint: impl Into<String>) -> Warning {
    Warning { what: what.into(), hint: hint.into() }
}

/// All warnings that the facts call for.
#[must_use]
pub fn of(facts: &Facts, strategy: Strategy) -> Vec<Warning> {
    let mut all = layout(facts);
    all.extend(server(facts, strategy));
    if facts.control.data_checksum_version == 0 {
        all.push(warning(
            "data checksums are off",
            "a bad page can't be told from a good one; enable them with pg_checksums while the server is stopped",
        ));
    }
    all
}

fn layout(facts: &Facts) -> Vec<Warning> {
    let mut all = Vec::new();
    for (index, volume) in facts.layout.volumes.iter().enumerate() {
        let name = &volume.dataset;
        let holds_data = facts.layout.own_wal_volume() != Some(index);
        if !volume.foreign.is_empty() {
            all.push(warning(
                format!("dataset \"{name}\" also holds {}", list(&volume.foreign)),
                "its snapshots keep these files too; give the cluster datasets of its own",
            ));
        }
        for nested in &volume.nested {
            all.push(warning(
                format!("\"{}\" is mounted at \"{}\"", nested.source, nested.point.display()),
                "its files aren't in the set; PostgreSQL doesn't need them after a restore",
            ));
        }
        if holds_data && volume.recordsize < u64::from(facts.control.block_size) {
            all.push(warning(
                format!("dataset \"{name}\" has recordsize {}", volume.recordsize),
                "a page of PostgreSQL spans records: it can be torn without full_page_writes",
            ));
        }
        if volume.sync == "disabled" {
            all.push(warning(
                format!("dataset \"{name}\" has sync=disabled"),
                "a power cut loses committed transactions, and a set taken in the last seconds",
            ));
        }
        if volume.available < facts.min_free.saturating_mul(4) {
            all.push(warning(
                format!("dataset \"{name}\" has only {} left", bytes(volume.available)),
                "snapshots keep what is overwritten; a full pool makes PostgreSQL PANIC",
            ));
        }
    }
    all
}

fn server(facts: &Facts, strategy: Strategy) -> Vec<Warning> {
    let server = match &facts.server {
        Ok(server) => server,
        // A standby's pg_control says where the set is consistent.
        Err(_) if facts.is_standby() => return Vec::new(),
        Err(no_server) if strategy != Strategy::Cold => {
            return vec![warning(
                no_server.words(),
                "the set has no floor LSN: targets inside it can't be checked before recovery",
            )];
        }
        Err(_) => return Vec::new(),
    };
    let mut all = Vec::new();
    if !server.fsync {
        all.push(warning("fsync is off", "a power cut can corrupt the live cluster"));
    }
    if server.in_recovery && !facts.has_primary {
        all.push(warning(
            "no \"primary\" is configured for this standby",
            "WAL that the standby has no more can't be fetched, and a quiet primary's archive gets the set's last segment late",
        ));
    }
    if !server.full_page_writes && !server.in_recovery {
        all.push(warning(
            "full_page_writes is off",
            "pg_backup_start forces it for the backup; the other strategies rest on ZFS writing a record whole",
        ));
    }
    if server.archive_mode == "off" && !server.in_recovery {
        all.push(warning(
            "archive_mode is off",
            "sets restore to their own end; point-in-time recovery beyond it needs an archive",
        ));
    }
    if !server.may_slot && strategy != Strategy::Atomic {
        all.push(warning(
            "no temporary replication slot can be made",
            "WAL that the set needs may be recycled meanwhile; such a set is refused and taken again",
        ));
    }
    all
}

fn list(names: &[String]) -> String {
    let shown: Vec<_> = names.iter().take(4).map(|name| format!("\"{name}\"")).collect();
    let more = names.len() - shown.len();
    match more {
        0 => shown.join(", "),
        _ => format!("{} and {more} more", shown.join(", ")),
    }
}

/// Bytes for people: `1.5 GiB`.
#[must_use]
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{count} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_short() {
        assert_eq!(bytes(512), "512 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(8 << 30), "8.0 GiB");
    }

    #[test]
    fn long_lists_are_cut() {
        let names: Vec<String> = (0..6).map(|n| n.to_string()).collect();
        assert_eq!(list(&names), "\"0\", \"1\", \"2\", \"3\" and 2 more");
    }
}
