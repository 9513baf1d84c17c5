//! Compares the documents with the program: keys, exit codes, JSON shapes, names of tests, links, commands.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use clap::{CommandFactory, Parser};

use super::Arguments;
use crate::config::Config;
use crate::error::Error;
use crate::process::CommandError;
use crate::refusal::Refusal;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// README.md and the pages under docs.
fn pages() -> Vec<String> {
    let mut pages = vec!["README.md".to_owned()];
    for folder in ["docs", "docs/decisions"] {
        let entries = fs::read_dir(root().join(folder)).unwrap().flatten();
        let names = entries.map(|entry| entry.file_name().into_string().unwrap());
        let names = names.filter(|name| name.ends_with(".md"));
        pages.extend(names.map(|name| format!("{folder}/{name}")));
    }
    assert!(pages.len() > 15, "{pages:?}");
    pages
}

/// What is in backticks.
fn code(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// The text of each section, by its heading without the marks; the text before the first heading is under the empty
/// one.
fn sections(page: &str) -> BTreeMap<String, String> {
    let mut sections = BTreeMap::from([(String::new(), String::new())]);
    let mut heading = String::new();
    for line in page.lines() {
        if let Some(text) = line.strip_prefix("## ") {
            heading = text.to_owned();
        }
        let section = sections.entry(heading.clone()).or_default();
        section.push_str(line);
        section.push('\n');
    }
    sections
}

/// The rows of the tables whose first column has this heading.
fn rows<'a>(text: &'a str, head: &str) -> Vec<Vec<&'a str>> {
    let cells = |line: &'a str| -> Vec<&'a str> {
        line.trim_matches('|').split(" | ").map(str::trim).collect()
    };
    let mut rows = Vec::new();
    let mut inside = false;
    for line in text.lines() {
        if !line.starts_with('|') {
            inside = false;
        } else if inside && !line.starts_with("| ---") {
            rows.push(cells(line));
        } else {
            inside |= cells(line)[0] == head;
        }
    }
    rows
}

/// The keys that a table accepts: serde lists them when it meets one that it doesn't know.
fn keys_taken(table: &str) -> BTreeSet<String> {
    let error = toml::from_str::<Config>(&format!("{table}\nnosuch = 1\n")).unwrap_err();
    let error = error.to_string();
    let expected = error.split_once("expected").unwrap_or_else(|| panic!("{error}")).1;
    code(expected).map(str::to_owned).collect()
}

/// The keys in the first column of a section's tables.
fn keys_listed(section: &str, head: &str) -> BTreeSet<String> {
    let mut keys = BTreeSet::new();
    for row in rows(section, head) {
        let names = row[0].split('(').next().unwrap();
        let words = code(names).map(|text| text.split([' ', '.']).next().unwrap());
        keys.extend(words.filter(|word| !word.is_empty() && *word != "=").map(str::to_owned));
    }
    keys
}

#[test]
fn every_key_of_the_configuration_is_listed_and_no_other() {
    let page = read("docs/configuration.md");
    let sections = sections(&page);
    // Keys of tables that have their own heading.
    for (heading, head, table, headings) in [
        ("", "key", "", &["clusters", "repositories"][..]),
        ("`[clusters.NAME]`", "key", "[clusters.x]", &["retention", "clone"]),
        ("`[clusters.NAME.retention]`", "key", "[clusters.x.retention]", &[]),
        ("`[clusters.NAME.retention]`", "rule", "[clusters.x.retention.local]", &[]),
        ("`[clusters.NAME.clone]`", "key", "[clusters.x.clone]", &[]),
        ("`[repositories.NAME]`", "key", "[repositories.x]", &[]),
    ] {
        let section = sections.get(heading).unwrap_or_else(|| panic!("no section {heading}"));
        let mut listed = keys_listed(section, head);
        listed.extend(headings.iter().map(|key| (*key).to_owned()));
        assert_eq!(listed, keys_taken(table), "{heading}, the table of each {head}");
    }
}

#[test]
fn the_exit_codes_are_those_of_the_table() {
    let page = read("README.md");
    let rows = rows(&page, "code");
    let listed: BTreeMap<u8, &str> =
        rows.iter().map(|row| (row[0].parse().unwrap(), row[1])).collect();
    let none = || std::io::Error::from(std::io::ErrorKind::NotFound);
    let locked = |is_lease| Error::Locked { what: "x".into(), holder: "y".into(), is_lease };
    let errors = [
        (Error::failed("x"), "failed"),
        (Error::io("read", "/x")(none()), "failed"),
        (Error::usage("x", "y"), "wrong usage or configuration"),
        (Error::from(Box::new(Refusal::NoStrategy { needed: Vec::new() })), "refused"),
        (
            Error::from(Box::new(CommandError::Start {
                program: "x".into(),
                closed: None,
                source: none(),
            })),
            "failed",
        ),
        (locked(false), "another lockstep holds the lock"),
        (locked(true), "another lockstep holds the lock"),
        (Error::PlaceInUse { place: "x".into(), holder: "y".into() }, "another lockstep"),
        (Error::Interrupted { step: "x".into() }, "interrupted"),
    ];
    let mut codes = BTreeSet::from([0, 3]);
    assert!(listed[&0].starts_with("done") && listed[&3].starts_with("finished with problems"));
    for (error, words) in errors {
        assert!(listed[&error.exit_code()].starts_with(words), "{error}: {}", error.exit_code());
        codes.insert(error.exit_code());
    }
    assert_eq!(listed.keys().copied().collect::<BTreeSet<_>>(), codes);
}

/// The text outside of all parentheses.
fn outermost(text: &str) -> String {
    let mut depth = 0;
    let mut outer = String::new();
    for c in text.chars() {
        depth += i32::from(c == '(') - i32::from(c == ')');
        if depth == 0 {
            outer.push(c);
        }
    }
    outer
}

#[test]
fn the_keys_of_json_are_documented() {
    let page = read("docs/json.md");
    let mut shapes: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    let mut last = BTreeSet::new();
    for row in rows(&page, "command") {
        let keys: BTreeSet<_> = code(&outermost(row[1])).map(str::to_owned).collect();
        // `backup` is in two rows.
        for command in code(row[0]) {
            shapes.entry(command).or_default().extend(keys.iter().cloned());
        }
        last = keys;
    }
    assert!(last.contains("findings"), "the last row is that of `check`: {last:?}");
    let folder = root().join("crates/lockstep/tests/it/snapshots");
    let mut seen = 0;
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap();
        let Some(name) = name.strip_suffix(".json.snap") else { continue };
        // `list-damaged` is `list`.
        let command = match name {
            "restore-dry-run" => "restore --dry-run".to_owned(),
            _ => {
                let words: Vec<_> = name.split('-').collect();
                let both = words.iter().take(2).copied().collect::<Vec<_>>().join(" ");
                if shapes.contains_key(&*both) { both } else { words[0].to_owned() }
            }
        };
        let own = shapes.get(&*command).unwrap_or_else(|| panic!("{name}: no row `{command}`"));
        // "as `backup`"
        let others = own.iter().filter_map(|key| shapes.get(key.as_str())).flatten();
        let documented: BTreeSet<_> = own.iter().chain(others).collect();
        for line in fs::read_to_string(entry.path()).unwrap().lines() {
            let key = line.strip_prefix("  \"").and_then(|rest| rest.split_once("\":"));
            let Some((key, _)) = key else { continue };
            let known = key == "version" || documented.contains(&key.to_owned());
            assert!(known, "{name}: \"{key}\" isn't in the row of `{command}`");
            seen += 1;
        }
    }
    assert!(seen > 80, "{seen} keys");
}

/// Every Rust file below a folder.
fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|end| end == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn every_invariant_of_the_format_names_tests_that_exist() {
    let mut files = Vec::new();
    sources(&root().join("crates"), &mut files);
    let texts: Vec<_> = files.iter().map(|path| fs::read_to_string(path).unwrap()).collect();
    let page = read("docs/repository-format.md");
    let section = sections(&page).remove("Invariants").expect("the section is there");
    let is_number =
        |line: &str| line.split_once(". ").is_some_and(|(n, _)| n.parse::<u32>().is_ok());
    let mut invariants: Vec<String> = Vec::new();
    for line in section.lines() {
        match invariants.last_mut() {
            Some(last) if !is_number(line) => last.push_str(line),
            _ if is_number(line) => invariants.push(line.to_owned()),
            _ => {}
        }
    }
    assert!(invariants.len() >= 15, "{} invariants", invariants.len());
    for invariant in invariants {
        let is_name = |text: &&str| {
            let word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
            text.contains('_') && text.chars().all(word)
        };
        let names: Vec<_> = code(&invariant).filter(is_name).collect();
        assert!(!names.is_empty(), "no test holds: {invariant}");
        for name in names {
            // Either a test function or, where a macro makes the tests, the test's name.
            let definition = format!("fn {name}(");
            assert!(texts.iter().any(|text| text.contains(&definition)), "no test {name}");
        }
    }
}

/// The lines of a page outside of its fenced blocks, and those inside.
fn lines(page: &str) -> (Vec<&str>, Vec<&str>) {
    let (mut outside, mut inside) = (Vec::new(), Vec::new());
    let mut fenced = false;
    for line in page.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if fenced {
            inside.push(line);
        } else {
            outside.push(line);
        }
    }
    (outside, inside)
}

/// The anchors of a page's headings, as the usual renderers make them.
fn anchors(page: &str) -> BTreeSet<String> {
    let (outside, _) = lines(page);
    let headings = outside.into_iter().filter_map(|line| {
        let text = line.trim_start_matches('#');
        (text.len() < line.len()).then(|| text.trim())
    });
    let slug = |heading: &str| {
        let kept = heading.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        kept.collect::<String>().to_lowercase().replace(' ', "-")
    };
    headings.map(slug).collect()
}

#[test]
fn links_lead_to_files_and_headings() {
    let mut seen = 0;
    for name in pages() {
        let text = read(&name);
        let (outside, _) = lines(&text);
        let outside = outside.join("\n");
        for target in outside.split("](").skip(1).map(|rest| rest.split(')').next().unwrap()) {
            if target.contains("://") {
                continue;
            }
            let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
            let there = match path {
                "" => root().join(&name),
                path => root().join(&name).parent().unwrap().join(path),
            };
            assert!(there.exists(), "{name}: {target}");
            let found = anchor.is_empty() || anchors(&read(&there)).contains(anchor);
            assert!(found, "{name}: {target}: no such heading");
            seen += 1;
        }
    }
    assert!(seen > 40, "{seen} links");
}

/// The command lines of a page: what follows `lockstep` in its blocks and in backticks.
fn command_lines(page: &str) -> Vec<String> {
    let (outside, inside) = lines(page);
    let mut found = Vec::new();
    for line in inside.join("\n").replace("\\\n", " ").lines() {
        let is_prompt = line.starts_with("lockstep ") || line.starts_with("$ lockstep ");
        if is_prompt || line.contains(" root ") {
            let line = line.split(" #").next().unwrap();
            found.extend(line.split("lockstep ").skip(1).map(str::to_owned));
        }
    }
    let outside = outside.join(" ");
    let commands = Arguments::command();
    for span in code(&outside) {
        let (first, rest) = span.split_once(' ').unwrap_or((span, ""));
        if first == "lockstep" {
            found.push(rest.to_owned());
        } else if commands.find_subcommand(first).is_some() && rest.contains("--") {
            found.push(span.to_owned());
        }
    }
    found
}

/// Why a command line is wrong, as far as its commands and option names show; `None` where it isn't.
fn wrong(line: &str) -> Option<String> {
    let top = Arguments::command();
    let mut command = &top;
    let line = line.split([';', '|', '>', '$']).next().unwrap().replace(['[', ']'], "");
    let mut words = line.split_whitespace();
    while let Some(word) = words.next() {
        if let Some(option) = word.strip_prefix("--") {
            let (name, value) = option.split_once('=').unwrap_or((option, ""));
            if name.ends_with('…') || ["help", "version"].contains(&name) {
                continue;
            }
            let own = command.get_arguments().chain(top.get_arguments());
            let mut own = own.filter(|argument| argument.get_long() == Some(name));
            match own.next() {
                None => return Some(format!("{} has no --{name}", command.get_name())),
                Some(argument) if argument.get_action().takes_values() && value.is_empty() => {
                    words.next();
                }
                Some(_) => {}
            }
        } else if command.has_subcommands() && word.starts_with(|c: char| c.is_ascii_lowercase()) {
            match command.find_subcommand(word) {
                Some(found) => command = found,
                None => return Some(format!("{} has no command {word}", command.get_name())),
            }
        }
    }
    None
}

#[test]
fn commands_and_options_of_the_documents_exist() {
    for (line, why) in [
        ("--cluster main prune --dry-run", None),
        ("--cluster main bakup", Some("lockstep has no command bakup")),
        ("repo key add NAME --new-key-fil FILE", Some("add has no --new-key-fil")),
    ] {
        assert_eq!(wrong(line).as_deref(), why);
    }
    let mut seen = 0;
    for name in pages() {
        for line in command_lines(&read(&name)) {
            if let Some(why) = wrong(&line) {
                panic!("{name}: `{line}`: {why}");
            }
            seen += 1;
        }
    }
    assert!(seen > 60, "{seen} command lines");
}

/// A mirror's newest set is older than the mirror, which has what it received until its primary was lost.
#[test]
fn where_a_primary_is_lost_a_set_of_its_mirror_comes_first() {
    let page = read("docs/standby.md");
    let (_, text) = page.split_once("**A primary is lost**").expect("the page says what to do");
    let first = text.find("lockstep --cluster NAME backup");
    assert!(first.is_some(), "{text}");
    for then in ["restore latest", "mirror recreate NAME"] {
        assert!(first < text.find(then), "{then}: {text}");
    }
}

/// systemd units start commands that exist, and every timer has its service.
#[test]
fn units_of_systemd_run_commands_that_exist() {
    let folder = root().join("contrib/systemd");
    let names = fs::read_dir(&folder).unwrap().flatten();
    let names: BTreeSet<_> = names.map(|entry| entry.file_name().into_string().unwrap()).collect();
    let mut started = 0;
    for name in &names {
        if let Some(of) = name.strip_suffix(".timer") {
            assert!(names.contains(&format!("{of}.service")), "{name}");
            continue;
        }
        let unit = read(folder.join(name));
        // Earlier versions ignore it.
        assert!(!unit.contains("\nOnSuccess=") || unit.contains("Needs systemd 249"), "{name}");
        // The units that are started afterwards must exist.
        let after = unit.lines().filter_map(|line| line.split_once('='));
        for (_, other) in after.filter(|(key, _)| ["OnSuccess", "OnFailure"].contains(key)) {
            assert!(names.contains(&other.replace("@%i", "@")), "{name}: {other}");
        }
        for line in unit.lines().filter(|line| line.starts_with("Exec")) {
            let (_, command) = line.split_once('=').unwrap();
            let (program, arguments) = command.split_once(' ').unwrap();
            assert_eq!(program, "/usr/local/bin/lockstep", "{name}: {line}");
            let arguments = arguments.replace("%i", "main");
            let words = std::iter::once("lockstep").chain(arguments.split_whitespace());
            Arguments::try_parse_from(words).unwrap_or_else(|e| panic!("{name}: {line}: {e}"));
            started += 1;
        }
    }
    assert_eq!((names.len(), started), (7, 4));
}

/// Commands in messages that aren't typed on this host as they are, or name what they are about themselves.
const WITHOUT_CLUSTER: [&str; 5] = [
    // It takes the mirror's name; there are comments in PostgreSQL's files, too.
    "lockstep mirror",
    // It names the cluster.
    "lockstep --cluster ",
    // More comments in PostgreSQL's files, and a setting's value: nobody types them.
    "lockstep restore: ",
    "lockstep restore:\"",
    "lockstep clone {name}\"",
];

/// The lines of a source file that are neither comments nor tests, with their numbers.
fn lines_of_program(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let program = text.split("#[cfg(test)]\nmod ").next().unwrap();
    let lines = program.lines().enumerate().map(|(at, line)| (at + 1, line.trim_start()));
    lines.filter(|(_, line)| !line.starts_with("//"))
}

/// Where the configuration has several clusters, a command without one ends with a usage error.
#[test]
fn commands_in_messages_name_the_cluster() {
    let commands = Arguments::command();
    let is_command = |rest: &str| {
        let word = rest.split(|c: char| !c.is_ascii_lowercase()).next().unwrap();
        commands.find_subcommand(word).is_some()
    };
    let mut files = Vec::new();
    sources(&root().join("crates/lockstep/src"), &mut files);
    let (mut seen, mut found) = (0, Vec::new());
    for path in files {
        let name = path.file_name().unwrap().to_string_lossy();
        if name == "tests.rs" || name.ends_with("_tests.rs") {
            continue;
        }
        for (at, line) in lines_of_program(&read(&path)) {
            seen += 1;
            for (start, words) in line.match_indices("lockstep ") {
                let rest = &line[start..];
                if WITHOUT_CLUSTER.iter().any(|known| rest.starts_with(known)) {
                    continue;
                }
                if is_command(&rest[words.len()..]) {
                    found.push(format!("{}:{at}: {rest}", path.display()));
                }
            }
        }
    }
    assert!(seen > 20_000, "{seen} lines");
    assert!(found.is_empty(), "write context::lockstep() there:\n{}", found.join("\n"));
}
