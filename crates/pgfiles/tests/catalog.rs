//! Databases read from the files of servers of every installed major version, and from truncated or changed copies of
//! such files.

#![cfg(unix)]

#[allow(dead_code, reason = "each test file uses its own part of the harness")]
mod support {
    pub mod server;
    pub const MAJORS: [u32; 6] = [13, 14, 15, 16, 17, 18];
}

use pgfiles::RelationMap;
use pgfiles::database_catalog::{DatabaseRow, FIRST_NORMAL_OID, PG_DATABASE, databases};
use std::collections::BTreeSet;
use std::fs;
use support::server::{Lab, Server, installed};

fn files(server: &Server) -> (Vec<u8>, Vec<u8>) {
    let global = server.data.join("global");
    let map = fs::read(global.join("pg_filenode.map")).unwrap();
    let number = RelationMap::parse(&map).unwrap().file_of(PG_DATABASE).unwrap();
    (map, fs::read(global.join(number.to_string())).unwrap())
}

fn rows(server: &Server) -> BTreeSet<DatabaseRow> {
    let listed = server.sql("SELECT oid || ' ' || datname FROM pg_database");
    let row = |line: &str| {
        let (oid, name) = line.split_once(' ').unwrap();
        DatabaseRow { oid: oid.parse().unwrap(), name: name.as_bytes().to_vec() }
    };
    listed.lines().map(row).collect()
}

#[test]
fn the_databases_of_every_version_are_found() {
    let mut seen = 0;
    for (major, bin) in installed() {
        let lab = Lab::new(major, bin, "catalog");
        let server = lab.initdb("primary", "");
        server.start().unwrap();
        server.sql("CREATE DATABASE \"with blanks and é\"");
        server.sql("CREATE DATABASE dropped");
        server.sql("CREATE DATABASE renamed");
        server.sql("ALTER DATABASE renamed RENAME TO another");
        server.sql("DROP DATABASE dropped");
        server.sql("CHECKPOINT");
        let (map, heap) = files(&server);
        let found = databases(&heap).unwrap();
        let expected = rows(&server);
        assert!(expected.is_subset(&found), "PostgreSQL {major}: {found:?}, not {expected:?}");
        // There may be older versions of rows, of databases that exist or existed.
        let names: BTreeSet<_> = found.iter().map(|row| row.name.as_slice()).collect();
        let known: [&[u8]; 7] = [
            b"postgres",
            b"template0",
            b"template1",
            b"another",
            b"renamed",
            b"dropped",
            "with blanks and é".as_bytes(),
        ];
        assert!(names.iter().all(|name| known.contains(name)), "PostgreSQL {major}: {found:?}");
        for row in &found {
            let system = row.name == b"postgres" || row.name.starts_with(b"template");
            assert_eq!(row.oid < FIRST_NORMAL_OID, system, "PostgreSQL {major}: {row:?}");
        }
        // The catalog gets a new file, and the map points to it.
        server.sql("VACUUM FULL pg_database");
        server.sql("CHECKPOINT");
        let (new_map, new_heap) = files(&server);
        assert_ne!(new_map, map, "PostgreSQL {major}");
        assert_eq!(databases(&new_heap).unwrap(), expected, "PostgreSQL {major}");
        damage(&map, &heap);
        server.stop("fast");
        seen += 1;
    }
    assert!(seen > 0, "no PostgreSQL is installed");
}

/// Truncated anywhere or with any byte changed, the result is an error or a value, never a panic; for the map always an
/// error.
fn damage(map: &[u8], heap: &[u8]) {
    for end in 0..map.len() {
        assert!(RelationMap::parse(&map[..end]).is_err(), "{end} bytes of a map");
    }
    for at in 0..map.len() {
        let mut changed = map.to_vec();
        changed[at] ^= 0x41;
        // Up to version 15 the last four bytes are unused.
        let is_padding = map.len() == 512 && at >= 508;
        assert_eq!(RelationMap::parse(&changed).is_ok(), is_padding, "byte {at} of a map changed");
    }
    for end in 0..heap.len() {
        let cut = databases(&heap[..end]);
        assert_eq!(cut.is_ok(), end.is_multiple_of(8192), "{end} bytes of a heap");
    }
    for at in 0..heap.len().min(8192) {
        for bits in [0x01, 0x80, 0xff] {
            let mut changed = heap.to_vec();
            changed[at] ^= bits;
            let _ = databases(&changed);
        }
    }
}
