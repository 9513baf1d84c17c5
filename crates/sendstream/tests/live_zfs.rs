//! A real `zfs receive` accepts what is folded here, and the result is the same there. Needs root and ZFS.

mod support;

use std::process::{Command, Stdio};
use std::time::Duration;

use sendstream::Reader;
use sendstream::fold::{StreamDelta, StreamSink, fold};
use sendstream::listing::{hashing_builder, write_listing};
use sendstream::pages::{DataChecksums, PageChecker, PageGeometry, Segment};
use sendstream::zpl::{NoContent, Tree, TreeBuilder};
use support::live::{Pool, must};

fn deltas<'a>(streams: &[&'a [u8]]) -> Vec<StreamDelta<&'a [u8]>> {
    streams.iter().map(|bytes| StreamDelta::new(Reader::new(*bytes).unwrap()).unwrap()).collect()
}

fn folded(streams: &[&[u8]]) -> Vec<u8> {
    let mut sink = StreamSink::new(Vec::new());
    fold(deltas(streams), &mut sink).unwrap();
    sink.finish().unwrap()
}

fn tree_listing(streams: &[&[u8]]) -> String {
    let mut builder = hashing_builder();
    fold(deltas(streams), &mut builder).unwrap();
    let mut text = Vec::new();
    write_listing(&builder.finish().unwrap(), &mut text).unwrap();
    String::from_utf8(text).unwrap()
}

#[track_caller]
fn assert_same(found: &str, expected: &str) {
    let (found, expected) = (
        support::whole_seconds::whole_seconds(found),
        support::whole_seconds::whole_seconds(expected),
    );
    let difference = found.lines().zip(expected.lines()).find(|(a, b)| a != b);
    assert!(found == expected, "first difference: {difference:?}");
}

#[test]
fn recorded_chain_is_received_at_every_step() {
    let pool = Pool::new("rec");
    let streams: Vec<&[u8]> = std::iter::once("fuse.plain.s0".to_string())
        .chain((0..4).map(|step| format!("fuse.plain.s{step}-s{}", step + 1)))
        .map(|name| support::stream(&name))
        .collect();
    for length in 1..=streams.len() {
        let snapshot = format!("s{}", length - 1);
        let dataset = format!("upto{length}");
        pool.receive(&dataset, &folded(&streams[..length]));
        let restored = |snapshot: &str| pool.snapshot_listing(&format!("{dataset}@{snapshot}"));
        assert_same(&restored(&snapshot), support::tree(&format!("fuse.{snapshot}")));
        assert_eq!(pool.guid(&format!("{dataset}@{snapshot}")), support::guid("fuse", &snapshot));
        // The source's own increments can be received on top.
        for (step, increment) in streams.iter().enumerate().skip(length) {
            pool.receive(&dataset, increment);
            assert_same(&restored(&format!("s{step}")), support::tree(&format!("fuse.s{step}")));
        }
    }
    // All steps as one increment, on top of the source's own full stream.
    pool.receive("byone", streams[0]);
    pool.receive("byone", &folded(&streams[1..]));
    assert_same(&pool.snapshot_listing("byone@s4"), support::tree("fuse.s4"));
    assert_eq!(pool.guid("byone@s4"), support::guid("fuse", "s4"));
}

/// A PostgreSQL server in a dataset, stopped when dropped.
struct Server {
    data: String,
    socket: String,
}

const BIN: &str = "/usr/lib/postgresql/15/bin";

impl Server {
    fn start(pool: &Pool) -> Server {
        let folder = pool.mounted(&["create", "-o", "recordsize=8K"], "pg");
        let data = folder.join("data").to_str().unwrap().to_owned();
        let socket = pool.folder.join("socket").to_str().unwrap().to_owned();
        for folder in [&data, &socket] {
            must("install", &["-d", "-o", "postgres", "-g", "postgres", "-m", "700", folder]);
        }
        let server = Server { data, socket };
        server.run("initdb", &["-D", &server.data, "--data-checksums", "--no-sync", "-A", "trust"]);
        let options = format!("-c listen_addresses= -k {} -c shared_buffers=16MB", server.socket);
        let log = format!("{}/log", server.socket);
        server.run("pg_ctl", &["-D", &server.data, "-w", "-l", &log, "-o", &options, "start"]);
        server
    }

    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new("runuser");
        command
            .args(["-u", "postgres", "--", &format!("{BIN}/{program}")])
            .args(arguments)
            .current_dir("/");
        command.stdout(Stdio::null());
        command
    }

    fn run(&self, program: &str, arguments: &[&str]) {
        let status = self.command(program, arguments).stderr(Stdio::null()).status().unwrap();
        assert!(status.success(), "{program} {arguments:?}: {status}");
    }

    fn sql(&self, sql: &str) {
        self.run("psql", &["-h", &self.socket, "-d", "postgres", "-c", sql]);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ =
            self.command("pg_ctl", &["-D", &self.data, "-m", "immediate", "-w", "stop"]).status();
    }
}

/// Returns path and segment of the relation files in a tree.
fn relation_files(tree: &Tree<()>) -> std::collections::HashMap<u64, Segment<String>> {
    let mut files = std::collections::HashMap::new();
    tree.walk(|entry| {
        let path = String::from_utf8_lossy(entry.path).into_owned();
        let Some((folder, name)) = path.rsplit_once('/') else {
            return Ok(());
        };
        let (name, number) = name.split_once('.').unwrap_or((name, "0"));
        let name = name.split('_').next().unwrap_or(name);
        let is_relation = (folder.contains("/base/") || folder.ends_with("/global"))
            && name.bytes().all(|byte| byte.is_ascii_digit());
        if let (true, Ok(number)) = (is_relation, number.parse()) {
            files.insert(entry.object, Segment { path, number });
        }
        Ok(())
    })
    .unwrap();
    files
}

#[test]
fn a_cluster_under_load_in_twenty_increments() {
    let pool = Pool::new("load");
    let server = Server::start(&pool);
    server.run("pgbench", &["-h", &server.socket, "-i", "-q", "-s", "3", "postgres"]);
    let load = ["-h", &server.socket, "-n", "-c", "4", "-T", "600", "postgres"];
    let mut pgbench = server.command("pgbench", &load).stderr(Stdio::null()).spawn().unwrap();
    let mut streams: Vec<Vec<u8>> = Vec::new();
    for step in 0..=21 {
        let name = pool.dataset(&format!("pg@s{step}"));
        must("zfs", &["snapshot", &name]);
        streams.push(match step {
            0 => must("zfs", &["send", &name]),
            _ => must("zfs", &["send", "-i", &format!("@s{}", step - 1), &name]),
        });
        // What a cluster does besides updating rows: tables are created, shrink and are dropped, and with them object
        // numbers.
        match step % 4 {
            0 => server.sql(&format!(
                "create table t{step} as select g, repeat('x', 500) from generate_series(1, 4000) g"
            )),
            1 => server.sql(&format!("truncate t{}", step - 1)),
            2 => server.sql(&format!("drop table t{}", step - 2)),
            _ => server.sql("checkpoint"),
        }
        std::thread::sleep(Duration::from_millis(300));
    }
    pgbench.kill().unwrap();
    pgbench.wait().unwrap();
    drop(server);

    let streams: Vec<&[u8]> = streams.iter().map(Vec::as_slice).collect();
    for last in [0, 7, 20] {
        let expected = pool.snapshot_listing(&format!("pg@s{last}"));
        let files = expected.lines().count();
        assert!(files > 900, "a whole cluster has more files than {files}");
        assert_same(&tree_listing(&streams[..=last]), &expected);
        let stream = folded(&streams[..=last]);
        let target = format!("restored{last}");
        pool.receive(&target, &stream);
        assert_same(&pool.snapshot_listing(&format!("{target}@s{last}")), &expected);
        let snapshot = |dataset: &str| pool.guid(&format!("{dataset}@s{last}"));
        assert_eq!(snapshot(&target), snapshot("pg"));
        // The source's next increment can be received on top.
        pool.receive(&target, streams[last + 1]);
        let next = pool.snapshot_listing(&format!("pg@s{}", last + 1));
        assert_same(&pool.snapshot_listing(&format!("{target}@s{}", last + 1)), &next);
    }
    check_pages(&streams);
}

/// Every page of a snapshot taken under load must be good, and a damaged one must be found.
fn check_pages(streams: &[&[u8]]) {
    let mut builder = TreeBuilder::new(NoContent);
    fold(deltas(streams), &mut builder).unwrap();
    let files = relation_files(&builder.finish().unwrap());
    let check = || PageChecker::new(PageGeometry::default(), |object| files.get(&object).cloned());
    let mut checker = check();
    fold(deltas(streams), &mut checker).unwrap();
    let report = checker.finish();
    assert!(report.good > 3000, "{report:?}");
    assert_eq!((report.bad, report.without_checksum, report.partial), (0, 0, 0), "{report:?}");
    assert_eq!(report.data_checksums(), DataChecksums::On);

    // The pages of an increment, and one of them once more, damaged.
    let mut checker = check();
    let mut reader = Reader::new(streams[streams.len() - 1]).unwrap();
    let mut damaged = 0;
    while let Some(record) = reader.next_record().unwrap() {
        if let sendstream::record::Header::Write(write) = record.header
            && files.contains_key(&write.object)
            && record.payload.len() == 8192
        {
            checker.content(write.object, write.offset, record.payload);
            if damaged > 0 || record.payload.iter().all(|byte| *byte == 0) {
                continue;
            }
            let mut page = record.payload.to_vec();
            page[5000] ^= 1;
            checker.content(write.object, write.offset, &page);
            damaged += 1;
        }
    }
    let report = checker.finish();
    assert!(report.good > 10);
    assert_eq!((report.bad, damaged), (1, 1), "{report:?}");
}
