//! `lockstep stream stat|tree|fold` on recorded streams, as a user types it.

use std::io::Write;
use std::process::{Command, Output, Stdio};

use crate::support::recordings::Recordings;

impl Recordings {
    fn lockstep(&self, arguments: &[&str], input: &[u8]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lockstep"));
        command.args(arguments).current_dir(&self.0);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_vec();
        let feeder = std::thread::spawn(move || drop(stdin.write_all(&input)));
        let output = child.wait_with_output().unwrap();
        feeder.join().unwrap();
        output
    }

    #[track_caller]
    fn good(&self, arguments: &[&str], input: &[u8]) -> Vec<u8> {
        let output = self.lockstep(arguments, input);
        assert!(
            output.status.success(),
            "{arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        output.stdout
    }
}

#[test]
fn tree_and_fold() {
    let recordings = Recordings::unpack("tree");
    let chain = ["pg8k.plain.s0", "pg8k.plain.s0-s1", "pg8k.plain.s1-s2"];
    let expected = recordings.read("pg8k.s2.tree");
    let tree = recordings.good(&[&["stream", "tree"], &chain[..]].concat(), b"");
    assert!(tree == expected);
    let folded = recordings.good(&[&["stream", "fold"], &chain[..]].concat(), b"");
    assert!(recordings.good(&["stream", "tree", "-"], &folded) == expected);
    // One of the chain compressed, one from standard input.
    let status =
        Command::new("zstd").args(["-q", "pg8k.plain.s0"]).current_dir(&recordings.0).status();
    assert!(status.unwrap().success());
    let mixed = ["stream", "tree", "pg8k.plain.s0.zst", "-", "pg8k.plain.s1-s2"];
    assert!(recordings.good(&mixed, &recordings.read("pg8k.plain.s0-s1")) == expected);
}

#[test]
fn stat_of_a_full_and_an_incremental_stream() {
    let recordings = Recordings::unpack("stat");
    let text =
        String::from_utf8(recordings.good(&["stream", "stat", "std128k.ce.s0"], b"")).unwrap();
    for line in [
        "snapshot\ttank/std128k1@s0",
        "guid\t13578110120754388558",
        "kind\tfull",
        "features\tsa-spill, embedded-data, lz4, compressed, large-dnode, zstd",
        "WRITE_EMBEDDED\t17\t720\t1053184",
        "base/empty\t0\t0",
    ] {
        assert!(text.lines().any(|found| found == line), "no line \"{line}\" in:\n{text}");
    }
    let input = recordings.read("pg8k.plain.s1-s2");
    let json = recordings.good(&["--json", "stream", "stat"], &input);
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    assert_eq!(json["version"], 1);
    assert_eq!(json["from_guid"], "10210675955031054337");
    assert_eq!(json["bytes"], input.len());
    assert_eq!(json["records"]["OBJECT"]["records"], 1618);
    assert_eq!(json["changes"].as_array().unwrap()[0]["type"], "master node");
}

#[test]
fn what_is_refused() {
    let recordings = Recordings::unpack("refused");
    let refused = |arguments: &[&str], text: &str, hint: &str| {
        let output = recordings.lockstep(arguments, b"");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && output.stdout.is_empty(), "{arguments:?}");
        assert!(stderr.contains(text) && stderr.contains(&format!("hint: {hint}")), "{stderr}");
    };
    refused(
        &["stream", "tree", "enc.w.s0"],
        "\"enc.w.s0\": cannot look into an encrypted stream",
        "a raw stream",
    );
    refused(
        &["stream", "tree", "pg8k.plain.s1-s2"],
        "a tree needs a full stream",
        "give one full stream first",
    );
    refused(
        &["stream", "stat", "guids.tsv"],
        "not a ZFS send stream",
        "is it the output of `zfs send`",
    );
    let missing = recordings.lockstep(&["stream", "stat", "nothing"], b"");
    assert!(String::from_utf8_lossy(&missing.stderr).contains("\"nothing\""), "{missing:?}");
}
