//! pg_hba.conf and pg_ident.conf as one file: included files replace the directive that includes them, and so do
//! lists of names (`@FILE`). They are parsed like tokenize_auth_file and next_field_expand in hba.c do.
//!
//! What could go wrong: a file is stored without the files that it includes. The restored server then doesn't find
//! them and doesn't start, and the host that had them is gone.

use std::path::Path;

use super::includes::{self, Files, Whole, beside, check_depth};
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
    for (as_written, line) in logical_lines(text) {
        let tokens = tokens(&line);
        let included = match &tokens[..] {
            [what, name] if !what.goes_on => files.included(path, &what.value, &name.value)?,
            _ => None,
        };
        match included {
            Some(included) => whole.extend(files.texts(path, included, depth, expanded)?),
            None if tokens.iter().any(Token::is_list) => {
                let mut rest = 0;
                for token in tokens.iter().filter(|token| token.is_list()) {
                    whole.extend_from_slice(&line[rest..token.begin]);
                    whole.extend(list(files, path, token, depth)?.join(&b','));
                    rest = token.end;
                }
                whole.extend_from_slice(&line[rest..]);
                whole.push(b'\n');
            }
            None => {
                whole.extend_from_slice(as_written);
                if !as_written.ends_with(b"\n") {
                    whole.push(b'\n');
                }
            }
        }
    }
    Ok(whole)
}

/// The names in a file of names, as they are written there.
fn list(files: &mut Files, by: &Path, token: &Token, depth: u32) -> Result<Vec<Vec<u8>>> {
    let name = &token.value[1..];
    files.note(name);
    let path = beside(by, name);
    check_depth(&path, depth)?;
    let text = files.demand(&path, by)?;
    let mut names = Vec::new();
    for (_, line) in logical_lines(&text) {
        for token in tokens(&line) {
            match token.is_list() {
                true => names.extend(list(files, &path, &token, depth + 1)?),
                false => names.push(line[token.begin..token.end].to_vec()),
            }
        }
    }
    Ok(names)
}

/// The lines as they are written, and their contents: a backslash at the end joins the next line.
fn logical_lines(text: &[u8]) -> Vec<(&[u8], Vec<u8>)> {
    let (mut lines, mut line, mut begin, mut at) = (Vec::new(), Vec::new(), 0, 0);
    for part in text.split_inclusive(|byte| *byte == b'\n') {
        at += part.len();
        let plain = part.strip_suffix(b"\n").unwrap_or(part);
        let plain = plain.strip_suffix(b"\r").unwrap_or(plain);
        match plain.strip_suffix(b"\\") {
            Some(before) if at < text.len() => line.extend_from_slice(before),
            _ => {
                line.extend_from_slice(plain);
                lines.push((&text[begin..at], std::mem::take(&mut line)));
                begin = at;
            }
        }
    }
    lines
}

/// A word of a line.
#[derive(Debug, PartialEq, Eq)]
struct Token {
    begin: usize,
    end: usize,
    /// Its text without quotes.
    value: Vec<u8>,
    /// It begins with a quote, so `@` has no special meaning.
    is_quoted: bool,
    /// A comma follows, so the next token belongs to the same field.
    goes_on: bool,
}

impl Token {
    fn is_list(&self) -> bool {
        !self.is_quoted && self.value.len() > 1 && self.value.starts_with(b"@")
    }
}

/// The words of a line (next_token in hba.c).
fn tokens(line: &[u8]) -> Vec<Token> {
    let (mut all, mut at) = (Vec::new(), 0);
    let is_blank = |byte: u8| b" \t\r".contains(&byte);
    while let Some(&first) = line.get(at) {
        if is_blank(first) || first == b',' {
            at += 1;
            continue;
        }
        if first == b'#' {
            break;
        }
        let (begin, mut value, mut in_quotes, mut was_quote) = (at, Vec::new(), false, false);
        while let Some(&byte) = line.get(at).filter(|byte| in_quotes || !is_blank(**byte)) {
            if !in_quotes && (byte == b'#' || byte == b',') {
                break;
            }
            at += 1;
            // Two quotes inside quotes stand for one.
            let is_doubled = byte == b'"' && was_quote;
            if byte != b'"' || is_doubled {
                value.push(byte);
            }
            if byte == b'"' {
                in_quotes = !in_quotes;
                was_quote = !in_quotes;
            } else {
                was_quote = false;
            }
        }
        let goes_on = line.get(at) == Some(&b',');
        all.push(Token { begin, end: at, value, is_quoted: first == b'"', goes_on });
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;
    use std::collections::BTreeMap;
    use std::path::PathBuf;

    fn expand(files: &[(&str, &str)]) -> Result<String> {
        let all: BTreeMap<PathBuf, &str> =
            files.iter().map(|(path, text)| (PathBuf::from(path), *text)).collect();
        let read = |path: &Path| Ok(all.get(path).map(|text| text.as_bytes().to_vec()));
        let whole = whole(Path::new(files[0].0), read)?;
        Ok(String::from_utf8(whole.expect("the first is there").text).unwrap())
    }

    #[test]
    fn what_includes_nothing_stays_as_it_is() {
        let text = "# include x\nlocal all all peer # include y\nhost \"include\" \\\n  all ::1/128 trust\n\
                    local all,\"@team\" @ include\ninclude too many\n";
        assert_eq!(expand(&[("/e/hba", text)]).unwrap(), text);
        assert_eq!(expand(&[("/e/hba", "local all all peer")]).unwrap(), "local all all peer\n");
    }

    #[test]
    fn what_is_included_stands_in_its_place() {
        let text = expand(&[
            (
                "/e/hba",
                "a\n include \"my files/x\" # why\ninclude_if_exists none\ninclude_\\\nif_exists y\nz",
            ),
            ("/e/my files/x", "b\ninclude ../y"),
            ("/e/my files/../y", "c"),
            ("/e/y", "d\n"),
        ]);
        assert_eq!(text.unwrap(), "a\nb\nc\nd\nz\n");
        let error = expand(&[("/e/hba", "include x")]).unwrap_err();
        assert_eq!(error.chain(), "\"/e/x\", which \"/e/hba\" includes, isn't there");
    }

    #[test]
    fn files_of_names_become_lists() {
        let text = expand(&[
            ("/e/hba", "local @dbs,x postgres,@\"the team\"\tpeer # @not\n"),
            ("/e/dbs", "a, \"b c\"\n# no\n@/more\n"),
            ("/more", "d"),
            ("/e/the team", "e f\n"),
        ]);
        assert_eq!(text.unwrap(), "local a,\"b c\",d,x postgres,e,f\tpeer # @not\n");
        assert!(expand(&[("/e/hba", "local @gone all peer")]).is_err());
    }

    #[test]
    fn files_that_include_themselves_come_to_an_end() {
        for text in ["include hba\n", "include hba\ninclude hba\n", "local @hba all peer"] {
            let error = expand(&[("/e/hba", text)]).unwrap_err();
            assert!(error.chain().starts_with("too many files"), "{}", error.chain());
        }
    }

    #[test]
    fn a_folder_s_files_come_in_their_order() {
        let scratch = tempfile::tempdir().unwrap();
        for name in ["b.conf", "a.conf", ".c.conf", "d.txt", ".conf"] {
            std::fs::write(scratch.path().join(name), format!("{name}\n")).unwrap();
        }
        std::fs::create_dir(scratch.path().join("e.conf")).unwrap();
        let hba = scratch.path().join("hba");
        std::fs::write(&hba, "include_dir .\n").unwrap();
        let read = |path: &Path| std::fs::read(path).map(Some).map_err(Error::io("read", path));
        let found = whole(&hba, read).unwrap().unwrap();
        assert_eq!(found.text, b"a.conf\nb.conf\n");
        let place = scratch.path().join(".");
        assert!(found.places.contains(&hba) && found.places.contains(&place));
    }

    #[test]
    fn quotes_are_read_as_postgresql_reads_them() {
        let values = |line: &str| {
            let all = tokens(line.as_bytes()).into_iter();
            all.map(|token| String::from_utf8(token.value).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(values(r#"a"b "c "d""e",f  # g"#), ["ab c", "d\"e", "f"]);
        assert_eq!(values("\"open # to the end"), ["open # to the end"]);
        assert_eq!(values(" \t\r"), Vec::<String>::new());
    }
}
