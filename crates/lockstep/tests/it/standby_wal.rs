//! WAL that a standby no longer has, where what "primary" names isn't its primary.

use crate::support::cluster::{Cluster, Stop};
use crate::support::command::{must, wait_until};
use crate::support::layout::two_pools_four_datasets;
use crate::support::lockstep::{LIMIT, Steps, exit};
use crate::support::standby::{Standby, set};
use std::fs;
use std::time::Duration;

/// As after pg_upgrade: another cluster answers at the primary's address. What its archiver says is about WAL of its own,
/// whose segments have the same names.
#[test]
fn another_cluster_s_archive_proves_nothing() {
    // No restartpoint comes meanwhile, which would move the redo point.
    let layout = two_pools_four_datasets().setting("checkpoint_timeout", "1h");
    let standby = Standby::new(layout.setting("wal_keep_size", "2GB"));
    let redo = "SELECT redo_wal_file FROM pg_control_checkpoint()";
    let segment = standby.ask(redo).expect("the standby can be asked");
    standby.primary.execute(&["SELECT pg_switch_wal()", "CREATE TABLE one (n int)"]);
    standby.catch_up();
    standby.primary.stop(Stop::Fast);

    let data = standby.fixture.owned("upgraded").join("data");
    let path = data.to_str().expect("the harness' own paths are UTF-8");
    let words = ["-D", path, "-U", "postgres", "--no-sync", "--wal-segsize=1"];
    must(&mut standby.primary.tool("initdb", words));
    let (port, socket) = (standby.primary.port, standby.primary.socket.clone());
    let log = standby.primary.log.with_file_name("upgraded.log");
    let other = Cluster { bin: standby.primary.bin.clone(), data, socket, port, log };
    let socket = other.socket.display();
    set(
        &other,
        &format!(
            "port = {port}\nunix_socket_directories = '{socket}'\nlisten_addresses = ''\n\
             archive_mode = on\narchive_command = 'true'\nwal_recycle = off\n"
        ),
    );
    other.start();
    let ahead =
        format!("SELECT coalesce(last_archived_wal > '{segment}', false) FROM pg_stat_archiver");
    wait_until("the other cluster's archiver is ahead", Duration::from_secs(60), || {
        let write = "SELECT pg_logical_emit_message(true, 'test', 'more')";
        other.execute(&[write, "SELECT pg_switch_wal()", "CHECKPOINT"]);
        let is_gone = !other.data.join("pg_wal").join(&segment).exists();
        is_gone && other.value("postgres", &ahead) == "t"
    });

    let steps = Steps::new(standby.fixture.root().join("steps"));
    steps.hold("backup.before-snapshot-3");
    let lockstep = standby.with_primary().with_steps(&steps);
    let mut running = lockstep.spawn(&["--json", "backup", "--strategy", "ordered"]);
    steps.wait_reached("backup.before-snapshot-3", &mut running);
    fs::remove_file(standby.fixture.cluster.data.join("pg_wal").join(&segment))
        .expect("the standby had it");
    steps.release("backup.before-snapshot-3");
    let refused = running.wait(LIMIT);
    assert_eq!(refused.code, Some(exit::REFUSED), "{}", refused.describe());
    let told = "WAL is gone from the standby's pg_wal";
    assert!(refused.stderr.contains(told), "{}", refused.describe());
    assert_eq!(standby.fixture.snapshots(), [""; 0], "a set without its WAL");
    other.stop(Stop::Immediate);
}
