//! postgresql.conf as one file: included files replace the directive that includes them. Lines are parsed like
//! guc-file.l does.

use std::path::Path;

use super::includes::{self, Files, Whole, check_depth};
use super::recovery::{lines, name_of};
use crate::error::Result;

/// The complete text of the file at `path`; `None` if it doesn't exist. `read` reads a file if it exists.
///
/// # Errors
/// When one of the files can't be read or doesn't exist, or they include too much.
pub fn whole(
    path: &Path,
    read: impl Fn(&Path) -> Result<Option<Vec<u8>>>,
) -> Result<Option<Whole>> {
    includes::whole(path, read, expanded)
}

fn expanded(files: &mut Files, path: &Path, text: &[u8], depth: u32) -> Result<Vec<u8>> {
    check_depth(path, depth)?;
    let mut whole = Vec::with_capacity(text.len());
    for line in lines(text) {
        let included = match value_of_line(line) {
            Some(value) => files.included(path, &name_of(line), &value)?,
            None => None,
        };
        match included {
            Some(included) => {
                whole.extend(files.texts(path, included.lenient(), depth, expanded)?);
            }
            None => {
                whole.extend_from_slice(line);
                whole.push(b'\n');
            }
        }
    }
    Ok(whole)
}

/// Returns the last value that a text without includes gives to `name`.
#[must_use]
pub fn value_of(text: &[u8], name: &str) -> Option<Vec<u8>> {
    lines(text).filter(|line| name_of(line) == name.as_bytes()).filter_map(value_of_line).last()
}

/// Returns the value in a line, without its quotes (DeescapeQuotedString in guc-file.l).
fn value_of_line(line: &[u8]) -> Option<Vec<u8>> {
    let line = line.trim_ascii_start();
    let rest = line.get(name_of(line).len()..)?.trim_ascii_start();
    let rest = rest.strip_prefix(b"=").unwrap_or(rest).trim_ascii_start();
    let Some(quoted) = rest.strip_prefix(b"'") else {
        let ends = |byte: &u8| byte.is_ascii_whitespace() || *byte == b'#';
        let end = rest.iter().position(ends).unwrap_or(rest.len());
        return (end > 0).then(|| rest[..end].to_vec());
    };
    let (mut value, mut bytes) = (Vec::new(), quoted.iter().copied().peekable());
    while let Some(byte) = bytes.next() {
        match byte {
            b'\'' if bytes.next_if_eq(&b'\'').is_some() => value.push(b'\''),
            b'\'' => return Some(value),
            // Paths have no escaped control characters and no octal digits.
            b'\\' => value.push(bytes.next()?),
            _ => value.push(byte),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    #[test]
    fn what_is_included_stands_in_its_place() {
        let scratch = tempfile::tempdir().unwrap();
        let at = |name: &str| scratch.path().join(name);
        std::fs::create_dir_all(at("it's.d/empty")).unwrap();
        for (name, text) in [
            (
                "conf",
                "a = 1 # include 'x'\nInclude_Dir = 'it''s.d' # why\ninclude_if_exists 'none'\n\
                 include_dir 'it\\'s.d/empty'\ninclude_ = 1\n#include 'x'\ninclude 'it''s.d/b.conf'",
            ),
            ("it's.d/a.conf", "b = 2"),
            ("it's.d/b.conf", "include='../rest'\nc = 3\n"),
            ("rest", "d = 4"),
        ] {
            std::fs::write(at(name), text).unwrap();
        }
        let read = |path: &Path| match path.exists() {
            true => std::fs::read(path).map(Some).map_err(Error::io("read", path)),
            false => Ok(None),
        };
        let found = whole(&at("conf"), read).unwrap().unwrap();
        let text =
            "a = 1 # include 'x'\nb = 2\nd = 4\nc = 3\ninclude_ = 1\n#include 'x'\nd = 4\nc = 3\n";
        assert_eq!(String::from_utf8(found.text).unwrap(), text);
        for place in ["conf", "it's.d", "it's.d/empty", "none", "it's.d/../rest"] {
            assert!(found.places.contains(&at(place)), "{place}: {:?}", found.places);
        }
        assert!(whole(&at("none"), read).unwrap().is_none());
        for text in ["include 'gone'", "include 'conf'", "include_dir 'gone'"] {
            std::fs::write(at("conf"), text).unwrap();
            assert!(whole(&at("conf"), read).is_err(), "{text}");
        }
    }

    #[test]
    fn what_can_t_be_opened_is_skipped_where_it_need_not_be() {
        use rustix::io::Errno;
        let text_of = |conf: &str, errno: Errno| {
            let read = |path: &Path| match path.ends_with("conf") {
                true => Ok(Some(conf.as_bytes().to_vec())),
                false => Err(Error::io("read", path)(errno.into())),
            };
            whole(Path::new("/e/conf"), read).map(|whole| whole.unwrap().text)
        };
        let lenient = "include_if_exists 'other'\na = 1";
        for errno in [Errno::ACCESS, Errno::NOTDIR, Errno::LOOP] {
            assert_eq!(text_of(lenient, errno).unwrap(), b"a = 1\n");
            assert!(text_of("include 'other'", errno).is_err());
        }
        assert!(text_of(lenient, Errno::IO).is_err(), "it was opened, and isn't known");
    }

    #[test]
    fn the_last_value_counts() {
        let of = |text: &str| {
            value_of(text.as_bytes(), "hba_file").map(|it| String::from_utf8(it).unwrap())
        };
        assert_eq!(of("hba_file = '/a'\nHBA_FILE'/it''s \\'b\\''# no\n").unwrap(), "/it's 'b'");
        assert_eq!(of("hba_file a.conf # x").unwrap(), "a.conf");
        for text in ["", "#hba_file = 'a'", "hba_file = 'open", "hba_file =", "hba_files = 'a'"] {
            assert_eq!(of(text), None, "{text}");
        }
    }
}
