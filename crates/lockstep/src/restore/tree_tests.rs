//! What is changed in a restored tree, and what must never be: whatever links lead elsewhere.

use crate::plan::layout::PartKind::{Data, Wal};
use crate::plan::layout::tests::tablespace;
use crate::restore::placement::{Naming, place};
use crate::set::manifest::tests::{manifest, volume};
use pgfiles::lsn::SystemIdentifier;
use pgfiles::wal_name::WalSegmentSize;
use std::os::unix::fs::symlink;

use super::*;

#[test]
fn a_link_to_a_tablespace_is_corrected_however_its_path_is_written() {
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path().canonicalize().unwrap();
    let made = |name: &str| {
        std::fs::create_dir_all(root.join(name)).unwrap();
        root.join(name)
    };
    let (outer, inner, below) = (made("srv/ts"), made("srv/ts/in"), made("srv/ts/below"));
    let (one, two, other) = (made("r/tablespaces/1"), made("r/tablespaces/2"), made("other"));
    let (data, folder) = (made("r/data"), made("r/data/pg_tblspc"));
    symlink(root.join("srv"), root.join("alias")).unwrap();
    let (alias, gone) = (root.join("alias/ts"), root.join("gone"));
    let moved = [(outer.clone(), one.clone()), (inner.clone(), two.clone())];
    for (oid, target, leads_to) in [
        ("1", &one, &one),
        ("2", &outer, &one),
        ("3", &alias, &one),
        ("4", &alias.join("in"), &two),
        ("5", &below, &one.join("below")),
        ("6", &other, &other),
        ("7", &gone, &gone),
    ] {
        symlink(target, folder.join(oid)).unwrap();
        correct_links(&data, &moved).unwrap();
        assert_eq!(std::fs::read_link(folder.join(oid)).unwrap(), *leads_to, "{oid}");
    }
}

#[test]
fn what_a_mirror_s_server_lets_in_is_not_restored() {
    let kept =
        |bytes: &[u8]| SetFile { bytes: u64::try_from(bytes.len()).unwrap(), blake3: hash(bytes) };
    assert!(is_mirror_s("pg_hba.conf", &kept(serve::HBA)));
    assert!(!is_mirror_s("pg_hba.conf", &kept(b"local all all trust\n")));
    assert!(!is_mirror_s("pg_ident.conf", &kept(serve::HBA)));
    assert!(has_no_rules("pg_hba.conf", &kept(serve::NO_HBA)));
    assert!(!has_no_rules("pg_hba.conf", &kept(serve::HBA)));
    assert!(!is_mirror_s("pg_hba.conf", &kept(serve::NO_HBA)), "it is restored");
}

#[test]
fn a_link_in_the_place_of_a_folder_is_found() {
    let scratch = tempfile::tempdir().unwrap();
    let real = scratch.path().canonicalize().unwrap();
    // A link above DIR is the administrator's.
    symlink(&real, real.join("way")).unwrap();
    let directory = real.join("way/restore");
    let volumes = vec![
        volume("t/d", &[(Data, "/d", "15/main"), (Wal, "/d/pg_wal", "15/main/pg_wal")]),
        volume("t/1", &[(tablespace(1), "/1/one", "one")]),
    ];
    let manifest = manifest("20261123T194512Z-k3fa", volumes);
    let placement = place(&manifest, &directory, &[], &Naming::Folders).unwrap();
    let data = directory.join("volumes/data/15/main");
    for folder in ["pg_wal", "pg_tblspc", "global", "base", "pg_twophase"] {
        std::fs::create_dir_all(data.join(folder)).unwrap();
    }
    std::fs::create_dir_all(directory.join("volumes/tablespace-1/one")).unwrap();
    symlink("/1/one", data.join("pg_tblspc/1")).unwrap();
    assert_eq!(folder_elsewhere(&placement), None);
    let mut folders = vec![data.parent().unwrap().to_path_buf(), data.clone()];
    folders.extend(["pg_wal", "pg_tblspc", "global", "base"].map(|name| data.join(name)));
    folders.push(directory.join("volumes/tablespace-1/one"));
    for folder in folders {
        let aside = real.join("aside");
        std::fs::rename(&folder, &aside).unwrap();
        symlink(&aside, &folder).unwrap();
        assert_eq!(folder_elsewhere(&placement), Some(folder.clone()));
        std::fs::remove_file(&folder).unwrap();
        std::fs::rename(&aside, &folder).unwrap();
    }
}

#[test]
fn only_links_of_tablespaces_stay() {
    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path().canonicalize().unwrap();
    remove_other_links(&folder.join("none")).unwrap();
    std::fs::create_dir_all(folder.join("16385/PG_15_202209061")).unwrap();
    std::fs::write(folder.join("notes"), b"").unwrap();
    for name in ["16384", "16384.old", "016384", "fast", "+7", "99999999999"] {
        symlink("/srv/ts", folder.join(name)).unwrap();
    }
    remove_other_links(&folder).unwrap();
    let mut left = files::list(&folder).unwrap();
    left.sort();
    assert_eq!(left, ["16384", "16385", "notes"].map(|name| folder.join(name)));
}

/// One that was made and dropped during the backup is in the map, and in no part of the set.
#[test]
fn tablespace_map_names_no_path_of_the_original() {
    let volumes = vec![
        volume("t/d", &[(Data, "/d", ""), (Wal, "/d/pg_wal", "pg_wal")]),
        volume("t/1", &[(tablespace(1), "/1/one", "")]),
    ];
    let manifest = manifest("20261123T194512Z-k3fa", volumes);
    let placement = place(&manifest, Path::new("/r"), &[], &Naming::Folders).unwrap();
    let moved = |bytes: &[u8]| {
        let mut map = TablespaceMap::parse(bytes).unwrap();
        move_entries(&mut map, &placement);
        String::from_utf8(map.to_bytes()).unwrap()
    };
    assert_eq!(moved(b"1 /1/one\n7 /srv/for_a_moment\n"), "1 /r/tablespaces/1\n");
    assert_eq!(moved(b"7 /srv/for_a_moment\n"), "");
}

#[test]
fn the_original_s_segments_count_as_archived() {
    let scratch = tempfile::tempdir().unwrap();
    let pg_wal = scratch.path().canonicalize().unwrap();
    let segment_size = WalSegmentSize::DEFAULT;
    let identity = WalIdentity {
        system_identifier: SystemIdentifier::new(7),
        timeline: TimelineId::FIRST,
        segment_size,
    };
    let partial = "000000010000000000000004.partial";
    for name in ["000000010000000000000005", partial, "00000002.history", "xlogtemp.7"] {
        std::fs::write(pg_wal.join(name), b"").unwrap();
    }
    let waits = std::fs::File::create(pg_wal.join("000000010000000000000006")).unwrap();
    waits.set_len(segment_size.bytes().into()).unwrap();
    for _ in 0..2 {
        mark_segments(&pg_wal, identity, None).unwrap();
        let status = pg_wal.join("archive_status");
        let mut marks = files::list(&status).unwrap();
        marks.sort();
        let expected = ["000000010000000000000004.partial.done", "000000010000000000000005.done"];
        assert_eq!(marks, expected.map(|name| status.join(name)));
    }
}

#[test]
fn the_folder_on_which_a_dataset_of_logs_was_mounted_becomes_the_server_s() {
    assert!(rustix::process::geteuid().is_root(), "run as root: it makes another user's files");
    let scratch = tempfile::tempdir().unwrap();
    let data = scratch.path().canonicalize().unwrap();
    let names = ["log", "pg_log", "pg_stat_tmp", "other"];
    names.iter().for_each(|name| std::fs::create_dir(data.join(name)).unwrap());
    std::fs::write(data.join("pg_log/root_s"), b"").unwrap();
    let of = || names.map(|name| data.join(name).metadata().unwrap().uid());
    give_mount_points(&data, None).unwrap();
    assert_eq!(of(), [0; 4], "nobody else owns what is restored");
    give_mount_points(&data, Some(Credentials { uid: 65534, gid: 65534 })).unwrap();
    assert_eq!(of(), [65534, 0, 65534, 0]);
    assert!(!data.join("pg_replslot").exists());
}
