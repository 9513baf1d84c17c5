//! A raw volume's way into a repository and back, with PostgreSQL on it, where ZFS has no encryption: a `zfs` that
//! comes first in the program's PATH says that the data directory's dataset is encrypted. It marks its streams raw
//! when they are sent, and removes the mark when they are received. Everything else is real;
//! scripts/openzfs-tests/raw.sh uses real keys.

use crate::support::checker::Checker;
use crate::support::fixture::Fixture;
use crate::support::layout::two_pools_four_datasets;
use crate::support::load::{Load, Plan};
use crate::support::lockstep::{Lockstep, Set, exit};
use crate::support::pools::{path_with_turns, property, zfs};
use crate::support::shipping::{assert_received, discard, with_options};

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Sets (1) or clears (-1) the raw bit in BEGIN. END's checksum follows from that alone: fletcher4 is linear.
const MARK: &str = r#"
use integer;
binmode STDIN; binmode STDOUT; local $/; my $s = <STDIN>; my $by = $ARGV[0] * (1 << 26);
my $info = unpack("V", substr($s, 16, 4));
if ($ARGV[0] < 0 && !($info & 1 << 26)) { print $s; exit }
substr($s, 16, 4) = pack("V", $info + $by);
my $end = length($s) - 312; my $m = $end / 4 - 4;
my @sums = unpack("q<4", substr($s, $end + 8, 32));
my ($x, $y, $z) = ($m, $m + 1, $m + 2);
my $two = $x % 2 ? $x * ($y / 2) : $x / 2 * $y;
for ($x, $y, $z) { if ($_ % 3 == 0) { $_ /= 3; last } }
if ($x % 2 == 0) { $x /= 2 } else { $y /= 2 }
$sums[0] += $by; $sums[1] += $by * $m; $sums[2] += $by * $two; $sums[3] += $by * ($x * $y * $z);
substr($s, $end + 8, 32) = pack("q<4", @sums); print $s;
"#;

/// The `zfs` that pretends encryption.
struct Pretended {
    folder: PathBuf,
    parent: String,
}

impl Pretended {
    /// The data directory's dataset is encrypted, and so is what is received from it below `parent`.
    fn new(fixture: &Fixture) -> Pretended {
        let folder = fixture.root().join("pretended");
        fs::create_dir_all(&folder).expect("a folder can be made");
        let secret = format!("{}/data", fixture.pools[0].name);
        let parent = format!("{}/back", fixture.pools[0].name);
        fs::write(folder.join("mark.pl"), MARK).expect("it can be written");
        let script = format!(
            r#"#!/bin/sh
PATH=${{PATH#*:}}
status() {{
  case "$1" in
    '{secret}') echo available;;
    '{parent}/data') if [ -e '{here}/loaded' ]; then echo available; else echo unavailable; fi;;
    *) echo -;;
  esac
}}
case "$*" in
  "get -Hp -o name,property,value encryption,keystatus,encryptionroot "*)
    shift 5
    for dataset; do
      status=$(status "$dataset") encryption=aes-256-gcm root=$dataset
      [ "$status" != - ] || encryption=off root=-
      [ ! -e '{here}/inherits' ] || [ "$root" != '{parent}/data' ] || root='{parent}'
      printf '%s\tencryption\t%s\n' "$dataset" "$encryption"
      printf '%s\tkeystatus\t%s\n' "$dataset" "$status"
      printf '%s\tencryptionroot\t%s\n' "$dataset" "$root"
    done;;
  # It is asked once what it has been brought to is there. Before that zfs-fuse may have to mount it for the rollback.
  "get -Hp -o name,property,value guid,createtxg,creation {parent}/data@"*)
    [ ! -e '{here}/stale' ] || mv '{here}/stale' '{here}/received'
    exec zfs "$@";;
  "mount {parent}/data")
    if [ -e '{here}/received' ]; then echo "cannot mount '$2': Permission denied" >&2; exit 1; fi
    exec zfs "$@";;
  "unload-key {parent}/data") rm -f '{here}/loaded' '{here}/received';;
  "get -Hp -o name,property,value keylocation "*) printf '%s\tkeylocation\tprompt\n' "$6";;
  "send -w "*)
    shift 2
    echo "$*" >>'{here}/sent'
    zfs send "$@" >'{here}'/stream.$$ && perl '{here}/mark.pl' 1 <'{here}'/stream.$$;;
  receive*) perl '{here}/mark.pl' -1 >'{here}'/stream.$$ && zfs "$@" <'{here}'/stream.$$;;
  *) exec zfs "$@";;
esac
"#,
            here = folder.display()
        );
        fs::write(folder.join("zfs"), script).expect("it can be written");
        fs::set_permissions(folder.join("zfs"), fs::Permissions::from_mode(0o755))
            .expect("its mode can be set");
        Pretended { folder, parent }
    }

    fn asked_by(&self, lockstep: &Lockstep) -> Lockstep {
        let mut path = self.folder.clone().into_os_string();
        path.push(":");
        path.push(path_with_turns());
        lockstep.clone().with_environment("PATH", Path::new(&path))
    }
}

/// The GUIDs of the data directory's chain in the repository; `None` if it isn't raw.
fn chain(set: &Set) -> Option<Vec<String>> {
    let volumes = set.json["repositories"][0]["volumes"].as_array().expect("volumes");
    let data = volumes.iter().find(|volume| volume["dataset"].as_str().unwrap().ends_with("/data"));
    let others = volumes.iter().filter(|volume| volume.get("raw").is_some()).count();
    let raw = data.expect("it is shipped").get("raw")?.as_array().expect("a chain").clone();
    assert_eq!(others, 1, "nothing else is raw: {volumes:?}");
    assert_eq!(data.unwrap()["pages"]["not_checked"], "raw");
    Some(raw.iter().map(|link| link["guid"].as_str().unwrap().to_owned()).collect())
}

#[test]
fn a_raw_volume_goes_and_comes_back_with_its_key() {
    let fixture = Fixture::new(two_pools_four_datasets());
    fixture.pgbench_tables(1);
    let pretended = Pretended::new(&fixture);
    let lockstep = pretended.asked_by(&with_options(&fixture, "raw_full_every = 2"));
    let load = Load::start(&fixture.cluster, &["ts1", "ts2", "pg_default"], &Plan::all(3));
    let sets: Vec<Set> = (0..4).map(|_| lockstep.backup("label")).collect();
    load.stop();
    let guid = |at: usize| {
        let volume = sets[at].volumes.iter().find(|volume| volume.parts == ["data"]);
        volume.expect("the data directory").guid.clone()
    };
    let chains: Vec<_> = sets.iter().map(|set| chain(set).expect("it is raw")).collect();
    let expected = [vec![0], vec![0, 1], vec![0, 1, 2], vec![3]];
    assert_eq!(chains, expected.map(|chain| chain.into_iter().map(guid).collect::<Vec<_>>()));
    let sent = fs::read_to_string(pretended.folder.join("sent")).expect("it was sent raw");
    let increments: Vec<bool> = sent.lines().map(|line| line.starts_with("-i @")).collect();
    assert_eq!(increments, [false, true, true, false], "{sent}");

    // Commands say that a raw volume can't be looked into.
    let target = fixture.target("back");
    let to = target.to_str().expect("the harness' own paths are UTF-8");
    let parent = pretended.parent.as_str();
    let from = ["restore", &sets[2].id, "--to", to, "--from", "repository"];
    let refused = |more: &[&str]| {
        let outcome = lockstep.expect(exit::REFUSED, more);
        assert!(outcome.stderr.contains("is stored raw"), "{}", outcome.describe());
    };
    refused(&["ls", "latest", "data", "--from", "repository"]);
    refused(&["cat", "latest:data/PG_VERSION", "--from", "repository"]);
    refused(&[&from[..], &["--as", "files"]].concat());
    let as_zfs = [&from[..], &["--as", "zfs", "--dataset", parent]].concat();
    refused(&[&as_zfs[..], &["--only-database", "postgres"]].concat());
    lockstep.expect(exit::DONE, &["ls", "latest", "wal", "--from", "repository"]);

    // Without its key it is received, and the restore waits.
    let waits = lockstep.expect(exit::REFUSED, &as_zfs);
    assert!(waits.stderr.contains(&format!("zfs load-key {parent}/data")), "{}", waits.describe());
    let mounted = zfs(&["list", "-H", "-r", "-t", "filesystem", "-o", "mounted", parent]);
    assert!(!mounted.contains("yes"), "half a cluster is mounted: {mounted}");
    let name = format!("{parent}/data@lockstep-{}", sets[2].id);
    let snapshots = || {
        let all = zfs(&["list", "-H", "-t", "snapshot", "-o", "name", "-r", parent]);
        all.lines().filter(|line| line.contains("/data@")).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(snapshots(), [name.as_str()], "of its chain the set's snapshot stays");
    assert_eq!(
        property(&format!("{parent}/data"), "canmount"),
        "noauto",
        "`zfs mount -a` mounts it"
    );
    let received = property(&name, "createtxg");
    fs::write(pretended.folder.join("loaded"), "").expect("the key is loaded");
    let more = ["--from", "repository", "--as", "zfs", "--dataset", parent, "--delta"];
    let restored = lockstep.restore_and_start(&sets[2].id, &target, &more);
    assert_eq!(property(&name, "createtxg"), received, "it was received twice");
    let mounted = zfs(&["list", "-H", "-r", "-t", "filesystem", "-o", "mounted", parent]);
    assert!(!mounted.lines().skip(1).any(|line| line == "no"), "pg_wal too: {mounted}");
    assert_eq!(property(&format!("{parent}/data"), "canmount"), "on");
    assert_received(&fixture, &sets[2], parent);
    Checker::new(1).check_and_stop(restored.server()).assert_right("the third set");

    // The original's key was changed: the stream brought another one, and ZFS says that the key which is loaded is
    // available.
    let again = ["restore", &sets[2].id, "--to", to, "--from", "repository", "--as", "zfs"];
    let again = [&again[..], &["--dataset", parent, "--delta"]].concat();
    fs::write(pretended.folder.join("stale"), "").expect("it can be written");
    let waits = lockstep.expect(exit::REFUSED, &again);
    assert!(waits.stderr.contains(&format!("zfs load-key {parent}/data")), "{}", waits.describe());
    assert!(!pretended.folder.join("received").exists(), "its key is loaded still");
    let data = format!("{parent}/data");
    assert_eq!((&*property(&data, "mounted"), &*property(&data, "canmount")), ("no", "noauto"));
    fs::write(pretended.folder.join("loaded"), "").expect("the key is loaded");
    lockstep.expect(exit::DONE, &again);
    assert_eq!((&*property(&data, "mounted"), &*property(&data, "canmount")), ("yes", "on"));
    // The copy was given another key: the next increment would bring the original's.
    fs::write(pretended.folder.join("inherits"), "").expect("it can be written");
    for more in [&["--dry-run"][..], &[]] {
        let outcome = lockstep.expect(exit::REFUSED, &[&again[..], more].concat());
        let said = format!("the key of \"{data}\" was changed: it is now that of \"{parent}\"");
        assert!(outcome.stderr.contains(&said), "{}", outcome.describe());
        assert_eq!((&*property(&data, "mounted"), &*property(&data, "canmount")), ("yes", "on"));
    }
    fs::remove_file(pretended.folder.join("inherits")).expect("it is there");

    // A set whose chain has started again can't be applied on top; a set of the same chain can.
    let newer = ["restore", "latest", "--to", to, "--from", "repository", "--as", "zfs"];
    let newer = [&newer[..], &["--dataset", parent, "--delta"]].concat();
    let outcome = lockstep.expect(exit::REFUSED, &newer);
    assert!(
        outcome.stderr.contains("the snapshot with which the repository's data"),
        "{}",
        outcome.describe()
    );
    discard(&fixture, &target, parent);
    let restored = lockstep.restore_and_start(&sets[3].id, &target, &more[..6]);
    assert_received(&fixture, &sets[3], parent);
    Checker::new(1).check_and_stop(restored.server()).assert_right("the fourth set");
    discard(&fixture, &target, parent);
    lockstep.expect(exit::DONE, &["repo", "check", "--read-data"]);
}
