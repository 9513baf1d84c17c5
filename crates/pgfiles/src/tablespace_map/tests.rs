//! Both ways of escaping, against models of PostgreSQL's own loops; real files are in `tests/recorded.rs`.

use super::*;
use proptest::prelude::*;

fn map(entries: &[(u32, &[u8])]) -> TablespaceMap {
    let entries = entries
        .iter()
        .map(|(oid, path)| TablespaceMapEntry::new(*oid, path.to_vec()).unwrap())
        .collect();
    TablespaceMap { entries }
}

#[test]
fn escapes_since_14() {
    let paths: [(&[u8], &[u8]); 7] = [
        (b"/plain", b"/plain"),
        (b"/with space", b"/with space"),
        (b"/new\nline", b"/new\\\nline"),
        (b"/carriage\rreturn", b"/carriage\\\rreturn"),
        (b"/back\\slash", b"/back\\\\slash"),
        (b"/both\\\n", b"/both\\\\\\\n"),
        (b"/\xFF\xFE not UTF-8", b"/\xFF\xFE not UTF-8"),
    ];
    for (path, escaped) in paths {
        let one = map(&[(16384, path)]);
        let bytes = [b"16384 ", escaped, b"\n"].concat();
        assert_eq!(one.to_bytes(), bytes);
        assert_eq!(TablespaceMap::parse(&bytes), Ok(one));
    }
}

#[test]
fn version_13_escapes_no_backslash() {
    let one = map(&[(16384, b"/back\\slash"), (16385, b"/new\nline"), (16386, b"/both\\\n")]);
    let bytes = b"16384 /back\\slash\n16385 /new\\\nline\n16386 /both\\\\\n\n";
    assert_eq!(one.to_bytes_13().unwrap(), bytes);
    assert_eq!(TablespaceMap::parse_13(bytes), Ok(one.clone()));
    // The same bytes mean another path to a later version, and vice versa.
    assert_eq!(TablespaceMap::parse(bytes).unwrap().entries[0].path, b"/backslash");
    assert_eq!(
        TablespaceMap::parse_13(&one.to_bytes()).unwrap().entries[0].path,
        b"/back\\\\slash"
    );
    for path in [&b"/ends with\\"[..], b" /begins with a space"] {
        let error = map(&[(1, b"/fine"), (16384, path)]).to_bytes_13().unwrap_err();
        assert!(matches!(error, TablespaceMapError::NotWritable { .. }), "{error:?}");
    }
}

#[test]
fn an_empty_file_has_no_tablespaces() {
    assert_eq!(TablespaceMap::parse(b""), Ok(TablespaceMap::default()));
    assert_eq!(TablespaceMap::default().to_bytes(), b"");
}

#[test]
fn empty_lines_and_both_line_ends_are_read_since_14() {
    let expected = map(&[(1, b"/a"), (2, b"/b")]);
    assert_eq!(TablespaceMap::parse(b"\n1 /a\r\n\r\n2 /b\r\n"), Ok(expected));
}

#[test]
fn refusals_name_the_line() {
    let error = |bytes: &[u8]| TablespaceMap::parse(bytes).unwrap_err();
    for line in [
        "x",
        "16384",
        "16384\t/a",
        " 16384 /a",
        "-1 /a",
        "+1 /a",
        "4294967296 /a",
        "0 /a",
        "16384 ",
        "1x /a",
        "1 /a\0b",
    ] {
        let bytes = format!("1 /first\n{line}\n");
        assert!(
            matches!(error(bytes.as_bytes()), TablespaceMapError::InvalidLine { offset: 9, .. }),
            "{line:?}"
        );
    }
    assert_eq!(error(b"1 /a\n2 /b\n1 /c\n"), TablespaceMapError::Duplicate { oid: 1, offset: 10 });
    assert_eq!(error(b"1 /a\n2 /b"), TablespaceMapError::Truncated { offset: 5 });
    assert_eq!(error(b"1 /a\\\n"), TablespaceMapError::Truncated { offset: 0 });
    assert_eq!(error(b"1 /a\\"), TablespaceMapError::Truncated { offset: 0 });
}

#[test]
fn a_path_that_postgresql_would_cut_off_is_refused() {
    let path = |length: usize| [&b"/"[..], &b"x".repeat(length - 1)].concat();
    let longest = 1023 - "16384 ".len();
    assert!(TablespaceMapEntry::new(16384, path(longest)).is_ok());
    let error = TablespaceMapEntry::new(16384, path(longest + 1)).unwrap_err();
    assert_eq!(error, TablespaceMapError::TooLong { oid: 16384, length: 1024 });
    // Escapes don't count: PostgreSQL removes them before it counts.
    let escaped = TablespaceMapEntry::new(16384, b"\\".repeat(longest)).unwrap();
    let map = TablespaceMap { entries: vec![escaped] };
    assert_eq!(TablespaceMap::parse(&map.to_bytes()), Ok(map));
    assert!(matches!(
        TablespaceMapEntry::new(0, b"/a".to_vec()),
        Err(TablespaceMapError::InvalidEntry { .. })
    ));
    assert!(matches!(
        TablespaceMapEntry::new(1, Vec::new()),
        Err(TablespaceMapError::InvalidEntry { .. })
    ));
}

#[test]
fn truncated_at_every_offset_is_an_error_or_whole_lines() {
    let whole = map(&[(16384, b"/a\\b"), (16385, b"/new\nline"), (16386, b"/c")]);
    let bytes = whole.to_bytes();
    for length in 0..bytes.len() {
        if let Ok(shorter) = TablespaceMap::parse(&bytes[..length]) {
            assert_eq!(shorter.entries, whole.entries[..shorter.entries.len()]);
        }
    }
}

#[cfg(unix)]
#[test]
fn paths_keep_their_bytes() {
    use std::os::unix::ffi::OsStrExt;
    let entry = TablespaceMapEntry::new(1, b"/\xFF\n".to_vec()).unwrap();
    assert_eq!(entry.to_path_buf().as_os_str().as_bytes(), b"/\xFF\n");
}

/// `read_tablespace_map` from 14 on, as a state machine over bytes.
fn model(bytes: &[u8]) -> Option<Vec<(String, Vec<u8>)>> {
    let (mut lines, mut line, mut was_backslash) = (Vec::new(), Vec::new(), false);
    for &byte in bytes {
        if !was_backslash && (byte == b'\n' || byte == b'\r') {
            if line.is_empty() {
                continue;
            }
            let space = line.iter().position(|&b| b == b' ')?;
            lines.push((
                String::from_utf8(line[..space].to_vec()).ok()?,
                line[space + 1..].to_vec(),
            ));
            line.clear();
        } else if !was_backslash && byte == b'\\' {
            was_backslash = true;
        } else {
            was_backslash = false;
            line.push(byte);
        }
    }
    (line.is_empty() && !was_backslash).then_some(lines)
}

fn paths() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![Just(b'\\'), Just(b'\n'), Just(b'\r'), Just(b' '), 1u8..];
    proptest::collection::vec(byte, 1..20)
}

fn maps() -> impl Strategy<Value = TablespaceMap> {
    proptest::collection::btree_map(1u32.., paths(), 0..5).prop_map(|entries| TablespaceMap {
        entries: entries
            .into_iter()
            .map(|(oid, path)| TablespaceMapEntry::new(oid, path).unwrap())
            .collect(),
    })
}

proptest! {
    #[test]
    fn round_trips(map in maps()) {
        let bytes = map.to_bytes();
        prop_assert_eq!(TablespaceMap::parse(&bytes), Ok(map.clone()));
        let read: Vec<_> = map.entries.iter().map(|entry| (entry.oid.to_string(), entry.path.clone())).collect();
        prop_assert_eq!(model(&bytes), Some(read));
    }

    #[test]
    fn round_trips_for_13_or_says_why_not(map in maps()) {
        match map.to_bytes_13() {
            Ok(bytes) => prop_assert_eq!(TablespaceMap::parse_13(&bytes), Ok(map)),
            Err(error) => {
                let unsayable = matches!(error, TablespaceMapError::NotWritable { .. });
                prop_assert!(unsayable, "{}", error);
            }
        }
    }

    #[test]
    fn what_is_read_is_what_postgresql_would_read(bytes in proptest::collection::vec(
        prop_oneof![Just(b'\\'), Just(b'\n'), Just(b'\r'), Just(b' '), Just(b'/'), b'0'..=b'9', any::<u8>()], 0..40)) {
        if let Ok(map) = TablespaceMap::parse(&bytes) {
            let read: Vec<_> = map.entries.iter().map(|entry| (entry.oid, entry.path.clone())).collect();
            let model: Vec<_> = model(&bytes).unwrap().into_iter().map(|(oid, path)| (oid.parse().unwrap(), path)).collect();
            prop_assert_eq!(read, model);
        }
        let _ = TablespaceMap::parse_13(&bytes);
    }
}
