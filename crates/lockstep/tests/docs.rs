//! The commands of docs/recovery-by-hand.md, run as they stand: a page that nobody runs is wrong by the time it is needed.

mod support;

use support::checker::Checker;
use support::cluster::Cluster;
use support::command::{command, must};
use support::fixture::{Fixture, assert_clean};
use support::layout::one_pool;
use support::ledger::{Expected, Ledger};
use support::load::{Load, Plan};
use support::lockstep::Set;
use support::pools::path_with_turns;

const PAGE: &str = include_str!("../../../docs/recovery-by-hand.md");
const SCALE: u32 = 2;

/// The page's shell blocks: what stands behind `sh` on the fence's line, and the text.
fn blocks() -> Vec<(&'static str, String)> {
    let mut blocks = Vec::new();
    let mut lines = PAGE.lines();
    while let Some(line) = lines.next() {
        let Some(kind) = line.strip_prefix("```sh") else { continue };
        let text: Vec<_> = lines.by_ref().take_while(|line| *line != "```").collect();
        blocks.push((kind.trim(), text.join("\n")));
    }
    blocks
}

/// The first block with this cluster's values.
fn setup(fixture: &Fixture, set: &Set, to: &std::path::Path) -> String {
    let dataset = |part: &str| {
        let volume = set.volumes.iter().find(|volume| volume.parts == [part]);
        volume.unwrap_or_else(|| panic!("no volume holds {part} alone")).dataset.clone()
    };
    let tablespaces: Vec<_> = set
        .volumes
        .iter()
        .filter_map(|v| Some((v.parts.first()?.strip_prefix("tablespace-")?, &v.dataset)))
        .map(|(oid, dataset)| format!("{oid}={dataset}"))
        .collect();
    assert_eq!(tablespaces.len(), 2, "{:?}", set.volumes);
    format!(
        "set -euo pipefail\nSET={}\nTO='{}'\nDATA={}\nWAL={}\nTABLESPACES='{}'\nBIN={}\nPORT={}\n",
        set.id,
        to.display(),
        dataset("data"),
        dataset("wal"),
        tablespaces.join(" "),
        fixture.cluster.bin.display(),
        support::fixture::free_port(),
    )
}

fn shell(script: &str) -> String {
    must(command("bash", ["-c", script]).env("PATH", path_with_turns()))
}

#[test]
fn the_page_restores_a_set_without_the_program() {
    let fixture = Fixture::new(one_pool());
    fixture.pgbench_tables(SCALE);
    let ledger = Ledger::create(&fixture.cluster, "ts1", "ts2");
    let load = Load::start(&fixture.cluster, &["ts1", "ts2"], &Plan::all(1));
    let writers = ledger.start(&fixture.cluster);
    ledger.wait_for(20);
    let set = fixture.lockstep().backup("label");
    let expected = Expected {
        by_lsn: set.floor_lsn,
        none_after: Some(ledger.attempted()),
        ..Expected::default()
    };

    let blocks = blocks();
    assert_eq!(blocks.first().map(|(kind, _)| *kind), Some("setup"));
    assert_eq!(blocks.last().map(|(kind, _)| *kind), Some("cleanup"));
    assert!(blocks.len() >= 8, "the page has lost blocks");
    let to = fixture.owned("by hand").with_file_name("by-hand");
    let setup = setup(&fixture, &set, &to);
    let middle: Vec<_> =
        blocks[1..blocks.len() - 1].iter().map(|(_, text)| text.as_str()).collect();
    shell(&format!("{setup}{}", middle.join("\n")));

    let server =
        Cluster::running_in(&to.join("data"), &fixture.cluster.bin, &to.join("data/server.log"));
    let checker = Checker::new(SCALE).with_ledger(&ledger, expected);
    checker.check_running(&server).assert_right("restored by hand");

    shell(&format!("{setup}{}", blocks[blocks.len() - 1].1));
    assert!(!to.exists(), "the page's last block leaves {to:?}");
    writers.stop();
    load.stop();
    fixture.discard_set(&set.id);
    assert_clean(&fixture);
}
