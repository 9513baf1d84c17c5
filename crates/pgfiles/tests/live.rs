//! Claims about what a server does with these files, tested on servers of every installed major version.

#![cfg(unix)]

mod support {
    pub mod controldata;
    pub mod server;
    pub const MAJORS: [u32; 6] = [13, 14, 15, 16, 17, 18];
}

use pgfiles::backup_label::BackupFrom;
use pgfiles::control_file::{DbState, UNUSABLE_CHECKPOINT};
use pgfiles::database_records::{Change, Next, Records};
use pgfiles::{BackupLabel, ControlFile, Lsn, TimelineHistory, TimelineId, WalSegment};
use std::collections::BTreeSet;
use std::fs;
use support::controldata;
use support::server::{Lab, Server, installed};

fn control(server: &Server) -> ControlFile {
    ControlFile::parse(&server.control_bytes()).unwrap()
}

/// Checks every field of a file that was written a moment ago.
fn assert_as_pg_controldata_says(server: &Server, major: u32) -> ControlFile {
    let control = control(server);
    let differences =
        controldata::differences(&controldata::expected(&control, major), &server.pg_controldata());
    assert!(differences.is_empty(), "PostgreSQL {major}:\n{}", differences.join("\n"));
    control
}

#[test]
fn control_files_agree_with_pg_controldata() {
    for (major, bin) in installed() {
        let lab = Lab::new(major, bin, "control");
        let primary =
            lab.initdb("primary", "max_connections = 23\nwal_level = minimal\nmax_wal_senders = 0");
        primary.start().unwrap();
        primary.sql("CREATE TABLE t AS SELECT generate_series(1, 1000) AS i");
        primary.sql("CHECKPOINT");
        let running = assert_as_pg_controldata_says(&primary, major);
        assert_eq!((running.state, running.max_connections), (DbState::InProduction, 23));
        assert_eq!(
            running.system_identifier.to_string(),
            primary.sql("SELECT system_identifier FROM pg_control_system()")
        );
        assert_eq!(
            running.checkpoint_copy.redo.to_string(),
            primary.sql("SELECT redo_lsn FROM pg_control_checkpoint()")
        );
        primary.stop("fast");
        assert_eq!(assert_as_pg_controldata_says(&primary, major).state, DbState::ShutDowned);
    }
}

#[test]
fn an_unusable_checkpoint_needs_its_backup_label() {
    for (major, bin) in installed() {
        let lab = Lab::new(major, bin, "unusable");
        let primary = lab.initdb("primary", "");
        primary.start().unwrap();
        primary.sql("CREATE TABLE t AS SELECT generate_series(1, 1000) AS i");
        let restored = primary.base_backup("restored", &["-X", "stream"]);

        let pg_control = restored.data.join("global/pg_control");
        let unusable = control(&restored).with_checkpoint_unusable();
        lab.write(&pg_control, &unusable);
        let said = restored.pg_controldata();
        assert!(said.contains(&UNUSABLE_CHECKPOINT.to_string()), "pg_controldata reads it: {said}");
        assert!(!said.contains("CRC"), "{said}");

        let label = restored.data.join("backup_label");
        let kept = fs::read(&label).unwrap();
        fs::remove_file(&label).unwrap();
        let refuses = |how: &str| {
            let log = restored.start().expect_err("it started without its backup_label");
            assert!(
                log.contains("could not locate a valid checkpoint record"),
                "PostgreSQL {major}, {how}: {log}"
            );
            assert_eq!(restored.control_bytes(), unusable, "the refusal changed pg_control");
        };
        refuses("crash recovery");
        // With an archive that has every segment, the requested one (number 0) still doesn't exist.
        let archive = primary.data.join("pg_wal");
        restored.configure(&format!("restore_command = 'cp \"{}/%f\" \"%p\"'", archive.display()));
        lab.write(&restored.data.join("recovery.signal"), b"");
        refuses("archive recovery");
        fs::remove_file(restored.data.join("recovery.signal")).unwrap();

        lab.write(&label, &kept);
        restored.start().unwrap_or_else(|log| panic!("PostgreSQL {major}: {log}"));
        assert_eq!(restored.sql("SELECT count(*) FROM t"), "1000");
        assert!(control(&restored).checkpoint > UNUSABLE_CHECKPOINT);
    }
}

#[test]
fn a_standbys_files_start_from_a_label_made_here_but_not_short_of_min_recovery_point() {
    for (major, bin) in installed() {
        let lab = Lab::new(major, bin, "standby");
        let primary = lab.initdb("primary", "");
        primary.start().unwrap();
        primary.sql("CREATE TABLE t AS SELECT generate_series(1, 1000) AS i");
        let standby = primary.base_backup("standby", &["-X", "stream", "-R"]);
        standby.start().unwrap();
        primary.sql("INSERT INTO t SELECT generate_series(1, 1000)");
        primary.sql("CHECKPOINT");
        let end = primary.sql("SELECT pg_current_wal_flush_lsn()");
        standby.wait(&format!("SELECT pg_last_wal_replay_lsn() >= '{end}'"));
        standby.sql("CHECKPOINT");
        standby.stop("immediate");
        let crashed = assert_as_pg_controldata_says(&standby, major);
        assert_eq!(crashed.state, DbState::InArchiveRecovery);

        // As if its files had been snapshotted: no signal to follow a primary, a label, an unusable checkpoint.
        fs::remove_file(standby.data.join("standby.signal")).unwrap();
        lab.write(&standby.data.join("recovery.signal"), b"");
        lab.write(&standby.data.join("postgresql.auto.conf"), b"restore_command = 'false'\n");
        let label = BackupLabel::from_control_file(
            &crashed,
            BackupFrom::Standby,
            "2026-03-01 12:00:00 UTC",
            "ours",
        )
        .unwrap();
        let place = |bytes: &[u8]| {
            lab.write(&standby.data.join("backup_label"), &label.to_bytes());
            lab.write(&standby.data.join("global/pg_control"), bytes);
        };

        // A minRecoveryPoint that the WAL doesn't reach is observed, with a label as the backup's end and also without
        // one.
        let beyond = Lsn::new(0x7F_1234_5678);
        let bytes = crashed.with_min_recovery_point(beyond, TimelineId::FIRST);
        let refuses = |why: &str| {
            let log = standby.start().expect_err("it started short of its minRecoveryPoint");
            assert!(log.contains(why), "PostgreSQL {major}: {log}");
        };
        lab.write(&standby.data.join("global/pg_control"), &bytes);
        refuses("WAL ends before consistent recovery point");
        place(&ControlFile::parse(&bytes).unwrap().with_checkpoint_unusable());
        refuses("WAL ends before end of online backup");
        let refused = assert_as_pg_controldata_says(&standby, major);
        assert_eq!((refused.backup_end_point, refused.checkpoint), (beyond, crashed.checkpoint));

        let _ = fs::remove_file(standby.data.join("backup_label.old"));
        place(&crashed.with_checkpoint_unusable());
        standby.start().unwrap_or_else(|log| panic!("PostgreSQL {major}: {log}"));
        standby.wait("SELECT NOT pg_is_in_recovery()");
        assert_eq!(standby.sql("SELECT count(*) FROM t"), "2000");
    }
}

#[test]
fn a_target_timeline_that_is_never_reached_is_named_as_the_parent() {
    for (major, bin) in installed() {
        let lab = Lab::new(major, bin, "history");
        let primary = lab.initdb("primary", "");
        primary.start().unwrap();
        primary.sql("CREATE TABLE t (i int)");
        let early = primary.base_backup("early", &["-X", "none"]);
        let second = primary.base_backup("second", &["-X", "none"]);
        primary.sql("INSERT INTO t VALUES (1)");
        let before: Lsn = primary.sql("SELECT pg_current_wal_insert_lsn()").parse().unwrap();
        primary.sql("INSERT INTO t VALUES (2)");
        let later: Lsn = primary.sql("SELECT pg_current_wal_insert_lsn()").parse().unwrap();
        primary.sql("INSERT INTO t VALUES (3)");
        primary.sql("SELECT pg_switch_wal()");
        primary.stop("fast");

        let recover = |server: &Server, from: &Server, settings: &str| {
            let wal = from.data.join("pg_wal");
            server.configure(&format!(
                "restore_command = 'cp \"{}/%f\" \"%p\"'\nrecovery_target_action = 'promote'\n{settings}",
                wal.display()
            ));
            lab.write(&server.data.join("recovery.signal"), b"");
            server.start().unwrap_or_else(|log| panic!("PostgreSQL {major}: {log}"));
            server.wait("SELECT NOT pg_is_in_recovery()");
        };
        let history = |server: &Server, number: u32| {
            let timeline = TimelineId::new(number).unwrap();
            let bytes = fs::read(server.data.join(format!("pg_wal/{number:08X}.history"))).unwrap();
            let history = TimelineHistory::parse(timeline, &bytes).unwrap();
            assert_eq!(history.to_bytes(), bytes, "PostgreSQL {major}");
            history
        };

        recover(&second, &primary, &format!("recovery_target_lsn = '{later}'"));
        let two = history(&second, 2);
        let left = two.switches()[0].lsn;
        assert!(before < left);
        second.stop("fast");
        // All segments in one place, as an archive would have them.
        for entry in fs::read_dir(second.data.join("pg_wal")).unwrap() {
            let entry = entry.unwrap();
            if entry.file_name().to_string_lossy().starts_with("00000002") {
                lab.write(
                    &primary.data.join("pg_wal").join(entry.file_name()),
                    &fs::read(entry.path()).unwrap(),
                );
            }
        }

        recover(
            &early,
            &primary,
            &format!("recovery_target_timeline = '2'\nrecovery_target_lsn = '{before}'"),
        );
        let three = history(&early, 3);
        let parents: Vec<u32> =
            three.switches().iter().map(|switch| switch.timeline.get()).collect();
        assert_eq!(parents, [1, 2], "PostgreSQL {major}");
        let (first, last) = (three.switches()[0].lsn, three.switches()[1].lsn);
        assert!(
            last < first,
            "PostgreSQL {major}: timeline 2 is left at {last}, before it began at {first}"
        );
        assert_eq!(three.timeline_at(last), TimelineId::new(3).unwrap());
        assert_eq!(three.timeline_at(Lsn::new(last.as_u64() - 1)), TimelineId::FIRST);
        assert!(
            three.contains(TimelineId::FIRST, last) && !three.contains(TimelineId::FIRST, first)
        );
    }
}

/// Returns the records between two positions, each as `pg_waldump` prints it.
fn database_records(server: &Server, start: Lsn, until: Lsn) -> Vec<String> {
    let size = control(server).wal_segment_size;
    let mut records = Records::new(start, until, size);
    let mut segment = WalSegment::containing(TimelineId::FIRST, start, size);
    'all: loop {
        let path = server.data.join("pg_wal").join(segment.file_name(size));
        let bytes = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let first = segment.start(size);
        let pages = bytes.chunks(8192).zip((first.as_u64()..).step_by(8192));
        for (page, address) in pages.filter(|(_, address)| address + 8192 > start.as_u64()) {
            match records.page(Lsn::new(address), page) {
                Next::Page => {}
                Next::Segment => break,
                Next::End => break 'all,
            }
        }
        segment = segment.next();
    }
    assert!(records.end() >= until, "it came to {} of {until}", records.end());
    let said = records.into_found().into_iter().map(|record| {
        let what = match record.change {
            Change::Copy { from, to } => format!("copy dir {from} to {to}"),
            Change::Drop(folders) => {
                let folders: Vec<_> = folders.iter().map(ToString::to_string).collect();
                format!("dir {}", folders.join(" "))
            }
            Change::Write(database) => format!("write {database}"),
        };
        format!("{} {what}", record.at)
    });
    said.collect()
}

/// Returns the databases that a line of `pg_waldump` names: `rel 1663/5/2619` of a block, and the path of a file.
fn databases(line: &str) -> impl Iterator<Item = u32> {
    let words = line.split([' ', ',']).zip(line.split([' ', ',']).skip(1));
    let of_word = |(before, word): (&str, &str)| {
        let mut parts = word.split('/').rev();
        let is_named =
            before == "rel" || word.starts_with("base/") || word.starts_with("pg_tblspc/");
        parts.next().filter(|_| is_named)?;
        parts.next()?.parse().ok()
    };
    words.filter_map(of_word)
}

#[test]
fn copies_of_databases_are_found_as_pg_waldump_finds_them() {
    for (major, bin) in installed() {
        let lab = Lab::new(major, bin, "databases");
        let primary = lab.initdb("primary", "wal_keep_size = 512\nwal_compression = on");
        primary.start().unwrap();
        let place = lab.folder.join("space");
        primary.sql(&format!(
            "COPY (SELECT) TO PROGRAM 'cat > /dev/null; mkdir -m 700 {}'",
            place.display()
        ));
        let strategy = if major >= 15 { "STRATEGY file_copy" } else { "" };
        let start = primary.sql("SELECT redo_lsn FROM pg_control_checkpoint()");
        primary.sql(&format!("CREATE TABLESPACE space LOCATION '{}'", place.display()));
        primary.sql("CREATE DATABASE plain");
        primary.sql(
            "CREATE TABLE t AS SELECT i, repeat(md5(i::text), 9) FROM generate_series(1, 60000) i",
        );
        primary.sql(&format!("CREATE DATABASE shop {strategy}"));
        primary.sql("ALTER DATABASE shop SET TABLESPACE space");
        primary.sql("SELECT pg_switch_wal()");
        primary.sql(&format!("CREATE DATABASE copy TEMPLATE postgres {strategy}"));
        primary.sql("CREATE TABLE u AS SELECT * FROM t");
        primary.sql(&format!("CREATE DATABASE again TEMPLATE postgres {strategy}"));
        primary.sql("UPDATE t SET i = i + 1 WHERE i < 9");
        primary.sql(&format!("CREATE DATABASE other TEMPLATE shop {strategy}"));
        primary.sql("DROP DATABASE shop");
        primary.sql("SELECT pg_logical_emit_message(true, 'the', 'end')");
        let until = primary.sql("SELECT pg_current_wal_flush_lsn()");
        let found = database_records(&primary, start.parse().unwrap(), until.parse().unwrap());
        let wal = primary.data.join("pg_wal");
        let dumped =
            lab.run("pg_waldump", &["-p", wal.to_str().unwrap(), "-s", &start, "-e", &until]);
        let mut sources = BTreeSet::<u32>::new();
        let expected: Vec<_> = dumped
            .lines()
            .filter_map(|line| {
                let at: Lsn = line.split_once("lsn: ")?.1.split_once(',')?.0.parse().ok()?;
                if !line.starts_with("rmgr: Database") {
                    let written = databases(line).find(|database| sources.remove(database))?;
                    return Some(format!("{at} write {written}"));
                }
                let (_, what) = line.split_once("desc: ")?.1.split_once(' ')?;
                if let Some((from, _)) =
                    what.strip_prefix("copy dir ").and_then(|copy| copy.split_once(" to "))
                {
                    sources.insert(from.split_once('/')?.1.parse().ok()?);
                }
                (!what.starts_with("create dir")).then(|| format!("{at} {what}"))
            })
            .collect();
        assert_eq!(found, expected, "PostgreSQL {major}");
        let copies = if major >= 15 { 5 } else { 6 };
        assert_eq!(found.iter().filter(|line| line.contains("copy")).count(), copies, "{found:?}");
        assert!(found.iter().filter(|line| line.contains("write")).count() >= 2, "{found:?}");
        primary.stop("fast");
    }
}
