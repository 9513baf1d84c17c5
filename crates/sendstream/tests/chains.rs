//! Chains of recorded streams are folded, and the tree inside must be the recorded tree at every snapshot.

#[path = "support/one_file.rs"]
mod one_file;
mod support;

use one_file::stream_of;
use sendstream::fold::{StreamDelta, StreamSink, fold};
use sendstream::listing::{hashing_builder, write_listing};
use sendstream::{Reader, Result};

fn deltas<'a>(streams: &[&'a [u8]]) -> Vec<StreamDelta<&'a [u8]>> {
    streams.iter().map(|bytes| StreamDelta::new(Reader::new(*bytes).unwrap()).unwrap()).collect()
}

fn listing(streams: &[&[u8]]) -> Result<String> {
    let mut builder = hashing_builder();
    fold(deltas(streams), &mut builder)?;
    let mut text = Vec::new();
    write_listing(&builder.finish()?, &mut text)?;
    Ok(String::from_utf8(text).unwrap())
}

fn folded(streams: &[&[u8]]) -> Vec<u8> {
    let mut sink = StreamSink::new(Vec::new());
    fold(deltas(streams), &mut sink).unwrap();
    sink.finish().unwrap()
}

fn assert_same(what: &str, found: &str, expected: &str) {
    let rounded = what.contains("fuse").then(|| support::whole_seconds::whole_seconds(found));
    let found = rounded.as_deref().unwrap_or(found);
    if found == expected {
        return;
    }
    let lines = found.lines().zip(expected.lines());
    let (found_line, expected_line) =
        lines.clone().find(|(a, b)| a != b).unwrap_or(("(end)", "(end)"));
    panic!(
        "{what}: {} lines instead of {}; first difference:\n found    {found_line}\n expected {expected_line}",
        found.lines().count(),
        expected.lines().count()
    );
}

/// Checks that the tree of the chain, and of the stream that the chain folds into, is the recorded one; and the GUID.
fn check(names: &[&str], dataset: &str, snapshot: &str) {
    let streams: Vec<&[u8]> = names.iter().map(|name| support::stream(name)).collect();
    let what = names.join(" + ");
    let expected = support::tree(&format!("{dataset}.{snapshot}"));
    assert_same(
        &what,
        &listing(&streams).unwrap_or_else(|error| panic!("{what}: {error}")),
        expected,
    );
    let folded = folded(&streams);
    assert_same(&format!("folded {what}"), &listing(&[&folded]).unwrap(), expected);
    let reader = Reader::new(&folded[..]).unwrap();
    assert!(reader.begin().is_full());
    assert_eq!(reader.begin().to_guid, support::guid(dataset, snapshot), "{what}");
}

fn check_chain(dataset: &str, flags: &str) {
    let names: Vec<String> = std::iter::once(format!("{dataset}.{flags}.s0"))
        .chain((0..4).map(|step| format!("{dataset}.{flags}.s{step}-s{}", step + 1)))
        .collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    for length in 1..=names.len() {
        check(&names[..length], dataset, &format!("s{}", length - 1));
    }
}

#[test]
fn pg8k() {
    check_chain("pg8k", "plain");
}

#[test]
fn std128k() {
    check_chain("std128k", "plain");
}

#[test]
fn std128k_compressed_and_embedded() {
    check_chain("std128k", "ce");
}

#[test]
fn big1m_large_blocks() {
    check_chain("big1m", "L");
}

#[test]
fn fuse() {
    check_chain("fuse", "plain");
}

#[test]
fn from_a_bookmark() {
    check(&["pg8k.plain.s0", "pg8k.plain.s0-s1", "pg8k.bookmark.b1-s4"], "pg8k", "s4");
}

#[test]
fn one_increment_over_four_snapshots() {
    check(&["std128k.plain.s0", "std128k.plain.s0-s4"], "std128k", "s4");
}

#[test]
fn with_properties() {
    check(&["std128k.props.s4"], "std128k", "s4");
}

#[test]
fn large_blocks_turned_on_and_off_in_the_chain() {
    check(&["big1m.plain.s0"], "big1m", "s0");
    check(&["big1m.plain.s0", "big1m.L.s0-s1"], "big1m", "s1");
    check(&["big1m.L.s0", "big1m.L.s0-s1", "big1m.plain.s1-s2"], "big1m", "s2");
    check(
        &["big1m.plain.s0", "big1m.L.s0-s1", "big1m.plain.s1-s2", "big1m.L.s2-s3"],
        "big1m",
        "s3",
    );
}

#[test]
fn increments_fold_into_one_increment() {
    for (dataset, flags) in [
        ("pg8k", "plain"),
        ("std128k", "plain"),
        ("std128k", "ce"),
        ("big1m", "L"),
        ("fuse", "plain"),
    ] {
        let step = |from: u32| format!("{dataset}.{flags}.s{from}-s{}", from + 1);
        let steps: Vec<&[u8]> =
            (0..4).map(|from| support::stream(Box::leak(step(from).into_boxed_str()))).collect();
        let base = support::stream(&format!("{dataset}.{flags}.s0"));
        for (first, last) in [(0, 4), (0, 2), (1, 4)] {
            let one = folded(&steps[first..last]);
            let reader = Reader::new(&one[..]).unwrap();
            assert_eq!(reader.begin().from_guid, support::guid(dataset, &format!("s{first}")));
            let mut chain = vec![base];
            chain.extend(&steps[..first]);
            chain.push(&one);
            chain.extend(&steps[last..]);
            let expected = support::tree(&format!("{dataset}.s4"));
            assert_same(
                &format!("{dataset} s{first}-s{last} as one"),
                &listing(&chain).unwrap(),
                expected,
            );
        }
    }
}

#[test]
fn volume() {
    let listing = listing(&[support::stream("vol.plain.s0")]).unwrap();
    let line = listing.lines().nth(1).unwrap();
    assert!(line.starts_with(".\tv\t-\t-\t-\t"), "{line}");
    let again = folded(&[support::stream("vol.plain.s0")]);
    assert_same("folded volume", &self::listing(&[&again]).unwrap(), &listing);
}

#[test]
fn what_does_not_follow_is_refused() {
    let (s0, s12) = (support::stream("pg8k.plain.s0"), support::stream("pg8k.plain.s1-s2"));
    let error = listing(&[s0, s12]).unwrap_err();
    assert!(error.to_string().contains("GUID 10210675955031054337"), "{error}");
    assert!(error.hint().unwrap().contains("full stream first"));
    let error = listing(&[s12]).unwrap_err();
    assert!(error.to_string().contains("full stream"), "{error}");
}

#[test]
fn encrypted_streams_are_not_looked_into() {
    let error = StreamDelta::new(Reader::new(support::stream("enc.w.s0")).unwrap()).unwrap_err();
    assert!(error.to_string().contains("encrypted"), "{error}");
}

/// Extended attributes of both kinds: `xattr=sa` stores them with the attributes, `xattr=on` in hidden directories.
#[test]
fn extended_attributes() {
    use sendstream::zpl::{NoContent, TreeBuilder, XattrValue};
    let xattrs = |name: &str| {
        let mut builder = TreeBuilder::new(NoContent);
        fold(deltas(&[support::stream(name)]), &mut builder).unwrap();
        let tree = builder.finish().unwrap();
        let mut found = Vec::new();
        tree.walk(|entry| {
            for (name, value) in tree.xattrs(entry.object)? {
                let path = String::from_utf8_lossy(entry.path).into_owned();
                found.push((path, String::from_utf8_lossy(&name).into_owned(), value));
            }
            Ok(())
        })
        .unwrap();
        found
    };
    let inline = xattrs("std128k.plain.s0");
    println!("{:?}", inline.iter().map(|(path, name, _)| (path, name)).collect::<Vec<_>>());
    assert!(
        inline
            .iter()
            .any(|(_, _, value)| matches!(value, XattrValue::Inline(bytes) if bytes.len() > 1000))
    );
    let hidden = xattrs("pg8k.plain.s0");
    assert!(hidden.iter().any(|(_, _, value)| matches!(value, XattrValue::Object(_))));
    let names = |found: &[(String, String, XattrValue)]| -> Vec<(String, String)> {
        found.iter().map(|(path, name, _)| (path.clone(), name.clone())).collect()
    };
    assert_eq!(names(&inline), names(&hidden));
}

#[test]
fn increments_of_both_sides_of_openzfs_0_8_are_refused_where_nobody_can_tell() {
    let fold_of = |flags: [bool; 2], from: u64, objects: [u64; 2]| {
        let first = stream_of(flags[0], from, 2, objects[0]);
        let second = stream_of(flags[1], 2, 3, objects[1]);
        fold(deltas(&[&first, &second]), &mut StreamSink::new(Vec::new()))
    };
    for flags in [[false, true], [true, false]] {
        let error = fold_of(flags, 1, [5, 9]).unwrap_err();
        assert!(error.to_string().contains("before 0.8"), "{error}");
        // The newer stream has a record of the same object; and a full stream has everything.
        fold_of(flags, 1, [5, 5]).unwrap();
        fold_of(flags, 0, [5, 9]).unwrap();
    }
    fold_of([true; 2], 1, [5, 9]).unwrap();
    fold_of([false; 2], 1, [5, 9]).unwrap();
}
