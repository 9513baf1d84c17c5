//! Where each layout's parts go: pure text, no file system.

use super::*;
use crate::plan::layout::tests::tablespace;
use crate::set::manifest::tests::{manifest, volume};

const SET: &str = "20261123T194512Z-k3fa";
const DATA: PartKind = PartKind::Data;
const WAL: PartKind = PartKind::Wal;

fn named(oid: u32, name: &str) -> PartKind {
    PartKind::Tablespace { oid, name: Some(name.into()) }
}

/// Each part is its dataset's root.
fn own_volumes() -> Manifest {
    let volumes = vec![
        volume("t/pg/data", &[(DATA, "/pg/data", "")]),
        volume("t/pg/one", &[(named(1, "fast"), "/pg/one", "")]),
        volume("u/wal", &[(WAL, "/pg/wal", "")]),
    ];
    manifest(SET, volumes)
}

fn place_at(
    manifest: &Manifest,
    elsewhere: &[(&str, &str)],
    parent: Option<&str>,
) -> Result<Placement> {
    let elsewhere: Vec<_> =
        elsewhere.iter().map(|(which, path)| ((*which).to_owned(), PathBuf::from(path))).collect();
    let parent = parent.map(|name| DatasetName::new(name).unwrap());
    let naming = Naming::Clones { name: "restore-x", parent: parent.as_ref() };
    place(manifest, Path::new("/r"), &elsewhere, &naming)
}

fn placed(manifest: &Manifest) -> Placement {
    place_at(manifest, &[], None).unwrap()
}

fn mounts(placement: &Placement) -> Vec<(&str, &str)> {
    placement
        .volumes
        .iter()
        .map(|volume| {
            let dataset = volume.dataset.as_ref().map_or("", DatasetName::as_str);
            (dataset, volume.mountpoint.to_str().unwrap())
        })
        .collect()
}

fn links(placement: &Placement) -> Vec<(&str, &str)> {
    placement
        .links
        .iter()
        .map(|(link, to)| (link.to_str().unwrap(), to.to_str().unwrap()))
        .collect()
}

#[test]
fn volumes_of_their_own_are_mounted_in_place() {
    let placement = placed(&own_volumes());
    assert_eq!(
        mounts(&placement),
        [
            ("t/pg/lockstep-restore-x-data", "/r/data"),
            ("t/pg/lockstep-restore-x-tablespace-1", "/r/tablespaces/1"),
            ("u/lockstep-restore-x-wal", "/r/wal"),
        ]
    );
    assert!(placement.links.is_empty(), "{:?}", placement.links);
    assert_eq!(placement.data, Path::new("/r/data"));
    assert_eq!(
        (placement.wal.as_path(), placement.wal_link.as_deref()),
        (Path::new("/r/wal"), Some(Path::new("/r/wal")))
    );
    let tablespace = &placement.tablespaces[&1];
    assert_eq!(tablespace.original, Path::new("/pg/one"));
    assert_eq!(
        (&tablespace.link, &tablespace.real),
        (&PathBuf::from("/r/tablespaces/1"), &PathBuf::from("/r/tablespaces/1"))
    );
    assert_eq!(placement.volumes[0].origin.to_string(), format!("t/pg/data@lockstep-{SET}"));
}

#[test]
fn folders_of_one_volume_are_reached_by_links() {
    let all = volume(
        "t/all",
        &[
            (DATA, "/all/data", "data"),
            (WAL, "/all/wal", "wal"),
            (tablespace(1), "/all/a b", "a b"),
        ],
    );
    let placement = placed(&manifest(SET, vec![all]));
    assert_eq!(mounts(&placement), [("t/lockstep-restore-x-data", "/r/volumes/data")]);
    assert_eq!(
        links(&placement),
        [
            ("/r/data", "/r/volumes/data/data"),
            ("/r/wal", "/r/volumes/data/wal"),
            ("/r/tablespaces/1", "/r/volumes/data/a b"),
        ]
    );
    assert_eq!(placement.data, Path::new("/r/volumes/data/data"));
    assert_eq!(placement.wal, Path::new("/r/volumes/data/wal"));
    assert_eq!(placement.wal_link.as_deref(), Some(Path::new("/r/wal")));
    let tablespace = &placement.tablespaces[&1];
    assert_eq!(
        (tablespace.link.to_str(), tablespace.real.to_str()),
        (Some("/r/tablespaces/1"), Some("/r/volumes/data/a b"))
    );
}

#[test]
fn a_root_with_folders_of_other_parts_is_mounted_as_its_root_part() {
    // A tablespace in a folder of the data directory's own dataset, pg_wal in the data directory.
    let all = volume(
        "t/pg",
        &[(DATA, "/pg", ""), (WAL, "/pg/pg_wal", "pg_wal"), (tablespace(1), "/pg/ts/1", "ts/1")],
    );
    let placement = placed(&manifest(SET, vec![all]));
    assert_eq!(mounts(&placement), [("t/lockstep-restore-x-data", "/r/data")]);
    assert_eq!(placement.wal_link, None, "pg_wal is a folder in the data directory");
    assert_eq!(placement.wal, Path::new("/r/data/pg_wal"));
    assert!(
        links(&placement).contains(&("/r/tablespaces/1", "/r/data/ts/1")),
        "{:?}",
        placement.links
    );
}

#[test]
fn pg_wal_mounted_in_the_data_directory_becomes_a_link() {
    let volumes =
        vec![volume("t/data", &[(DATA, "/pg", "")]), volume("u/wal", &[(WAL, "/pg/pg_wal", "")])];
    let placement = placed(&manifest(SET, volumes));
    assert_eq!(mounts(&placement)[1], ("u/lockstep-restore-x-wal", "/r/wal"));
    assert_eq!(placement.wal_link.as_deref(), Some(Path::new("/r/wal")));
    assert_eq!(placement.wal, Path::new("/r/wal"));
    // A folder in the data directory other than pg_wal itself doesn't count either.
    let odd = volume("t/data", &[(DATA, "/pg", ""), (WAL, "/pg/x/pg_wal", "x/pg_wal")]);
    let placement = placed(&manifest(SET, vec![odd]));
    assert_eq!(placement.wal_link.as_deref(), Some(Path::new("/r/wal")));
    assert_eq!(links(&placement), [("/r/wal", "/r/data/x/pg_wal")]);
}

#[test]
fn tablespaces_go_where_they_are_sent() {
    for which in ["1", "fast"] {
        let placement = place_at(&own_volumes(), &[(which, "/elsewhere/fast")], None).unwrap();
        assert_eq!(mounts(&placement)[1].1, "/elsewhere/fast");
        assert_eq!(placement.tablespaces[&1].link, Path::new("/elsewhere/fast"));
    }
    // A folder of a volume can't be mounted alone: a link is made there.
    let two = volume("u/x", &[(tablespace(1), "/x/1", "1"), (tablespace(2), "/x/2", "2")]);
    let data = volume("t/d", &[(DATA, "/d", ""), (WAL, "/d/pg_wal", "pg_wal")]);
    let placement =
        place_at(&manifest(SET, vec![data, two]), &[("2", "/elsewhere")], None).unwrap();
    assert_eq!(
        mounts(&placement)[1],
        ("u/lockstep-restore-x-tablespace-1", "/r/volumes/tablespace-1")
    );
    let sent = ("/elsewhere", "/r/volumes/tablespace-1/2");
    assert!(links(&placement).contains(&sent), "{:?}", placement.links);
    assert_eq!(placement.tablespaces[&2].real, Path::new("/r/volumes/tablespace-1/2"));
}

/// When volumes become folders, a part can be put elsewhere alone, and what is in it goes with it.
#[test]
fn a_folder_of_a_volume_goes_where_it_is_sent_without_the_rest() {
    let three = [
        (tablespace(1), "/x/1", "1"),
        (tablespace(2), "/x/2", "2"),
        (tablespace(3), "/x/2/in", "2/in"),
    ];
    let data = volume("t/d", &[(DATA, "/d", ""), (WAL, "/d/pg_wal", "pg_wal")]);
    let manifest = manifest(SET, vec![data, volume("u/x", &three)]);
    let placed = |oid: &str, path: &str| {
        let elsewhere = [(oid.to_owned(), PathBuf::from(path))];
        place(&manifest, Path::new("/r"), &elsewhere, &Naming::Folders).unwrap()
    };
    let placement = placed("2", "/fast/2");
    let apart = FolderElsewhere { inside: "2".into(), folder: "/fast/2".into() };
    assert_eq!(placement.volumes[1].apart, [apart]);
    let real = |oid: u32| placement.tablespaces[&oid].real.to_str().unwrap();
    assert_eq!([real(1), real(2), real(3)], ["/r/volumes/tablespace-1/1", "/fast/2", "/fast/2/in"]);
    let links = links(&placement);
    assert!(links.contains(&("/r/tablespaces/1", "/r/volumes/tablespace-1/1")), "{links:?}");
    assert!(links.contains(&("/r/tablespaces/3", "/fast/2/in")), "{links:?}");
    assert!(!links.iter().any(|(link, _)| link.starts_with("/fast")), "{links:?}");
    let folders: Vec<_> = placement.folders().map(|path| path.to_str().unwrap()).collect();
    assert_eq!(folders, ["/r/data", "/r/volumes/tablespace-1", "/fast/2"]);
    // At its default place it is a link, as it is without being sent there.
    assert!(placed("2", "/r/tablespaces/2").volumes[1].apart.is_empty());
}

#[test]
fn a_tablespace_may_be_sent_where_it_goes_anyhow() {
    let own = place_at(&own_volumes(), &[], None).unwrap();
    let sent = place_at(&own_volumes(), &[("1", "/r/tablespaces/1")], None).unwrap();
    assert_eq!(own, sent);
    for other in ["/r/tablespaces/2", "/r/tablespaces", "/r/data/x", "/r/tablespaces/1/x"] {
        let error = place_at(&own_volumes(), &[("1", other)], None).unwrap_err();
        assert!(error.to_string().contains("lie in one another"), "{other}: {error}");
    }
}

#[test]
fn in_the_restore_s_own_folder_a_tablespace_has_one_place() {
    for other in ["/r/foo", "/r/deep/foo"] {
        let error = place_at(&own_volumes(), &[("1", other)], None).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("lies in \"/r\""), "{other}: {error}");
        assert!(error.hint().unwrap().contains("\"/r/tablespaces/1\""), "{other}");
    }
    assert!(place_at(&own_volumes(), &[("1", "/r2/foo")], None).is_ok());
}

#[test]
fn tablespaces_that_are_not_there_or_named_twice_are_wrong() {
    let wrong = |elsewhere: &[(&str, &str)]| {
        let error = place_at(&own_volumes(), elsewhere, None).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        format!("{error}; {}", error.hint().unwrap())
    };
    for which in ["2", "slow", "FAST", "", "data"] {
        let said = wrong(&[(which, "/x")]);
        assert!(said.contains(&format!("\"{which}\"")) && said.contains("fast (1)"), "{said}");
    }
    assert!(wrong(&[("fast", "/x"), ("1", "/y")]).contains("named twice"));
    let none =
        manifest(SET, vec![volume("t/d", &[(DATA, "/d", ""), (WAL, "/d/pg_wal", "pg_wal")])]);
    let error = place_at(&none, &[("1", "/x")], None).unwrap_err();
    assert!(error.hint().unwrap().contains("none"));
}

#[test]
fn clones_go_below_the_parent_that_is_named_and_stay_in_their_pool() {
    let placement = place_at(&own_volumes(), &[], Some("t/scratch")).unwrap();
    let datasets: Vec<_> = mounts(&placement).into_iter().map(|(dataset, _)| dataset).collect();
    assert_eq!(
        datasets,
        [
            "t/scratch/lockstep-restore-x-data",
            "t/scratch/lockstep-restore-x-tablespace-1",
            "u/lockstep-restore-x-wal"
        ]
    );
    // A pool's root dataset has no siblings.
    let root = manifest(SET, vec![volume("t", &[(DATA, "/t", ""), (WAL, "/t/pg_wal", "pg_wal")])]);
    assert_eq!(mounts(&placed(&root)), [("t/lockstep-restore-x-data", "/r/data")]);
}

#[test]
fn names_of_clones_never_meet() {
    let volumes = vec![
        volume("t/a/x", &[(DATA, "/a", "")]),
        volume("t/b/x", &[(tablespace(1), "/b", "")]),
        volume("t/c/x", &[(WAL, "/c", "")]),
    ];
    let placement = place_at(&manifest(SET, volumes), &[], Some("t/all")).unwrap();
    let mut datasets: Vec<_> = placement.volumes.iter().map(|volume| &volume.dataset).collect();
    datasets.sort();
    datasets.dedup();
    assert_eq!(datasets.len(), 3);
}

#[test]
fn a_set_without_its_parts_is_an_error() {
    let no_wal = manifest(SET, vec![volume("t/d", &[(DATA, "/d", "")])]);
    assert!(place_at(&no_wal, &[], None).unwrap_err().to_string().contains("no pg_wal"));
    let no_data = manifest(SET, vec![volume("t/w", &[(WAL, "/w", "")])]);
    assert!(place_at(&no_data, &[], None).unwrap_err().to_string().contains("no data directory"));
}
