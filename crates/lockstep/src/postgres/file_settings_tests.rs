//! What is taken of rows as PostgreSQL 15 prints them.

use super::*;

/// The settings that a server runs with: their value, and what is to be said of it: `f` from the file, `w` another
/// value waits, `d` the default.
fn running(all: &[(&str, &str, &str)]) -> AllRunning {
    let row = |&(name, value, is): &(&str, &str, &str)| {
        let has = |letter: char| is.contains(letter);
        let value = value.to_owned();
        let (from_file, is_default, waits) = (has('f'), has('d'), has('w'));
        (name.to_owned(), Running { value, from_file, is_default, waits })
    };
    all.iter().map(row).collect()
}

fn line(name: &str, value: &str, error: Option<&str>) -> Line {
    let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let (name, value) = (text(name), text(value));
    Line { place: "/etc/postgresql.conf:7".into(), name, value, error: error.map(str::to_owned) }
}

/// As text, one a line.
fn text(settings: &FileSettings) -> String {
    let join = |all: &[(String, String)]| {
        all.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ")
    };
    format!("{} | {}", join(&settings.values), join(&settings.least))
}

const UNKNOWN: &str = "unrecognized configuration parameter";

#[test]
fn what_waits_for_a_restart_is_what_the_file_says() {
    let running = running(&[
        ("max_connections", "70", "fw"),
        ("max_prepared_transactions", "5", "fw"),
        ("max_wal_senders", "12", "fw"),
        ("max_worker_processes", "8", "d"),
        ("work_mem", "7MB", "f"),
    ]);
    let settings = of_lines(
        &[
            line("max_connections", "90", Some(NOT_APPLIED)),
            line("work_mem", "6MB", None),
            line("max_prepared_transactions", "2", Some(NOT_APPLIED)),
            line("work_mem", "7MB", None),
            line(
                "",
                "",
                Some(
                    "parameter \"max_wal_senders\" cannot be changed without restarting the server",
                ),
            ),
        ],
        &running,
    );
    // Recovery needs at least what the server ran with.
    assert_eq!(
        text(&settings),
        "max_connections=90 max_prepared_transactions=2 work_mem=7MB | max_wal_senders=12 max_prepared_transactions=5"
    );
    assert_eq!(settings.doubt, None);
    let flat = String::from_utf8(settings.flat()).unwrap();
    assert!(flat.find("= '2'") < flat.find("max_prepared_transactions = '5'"), "{flat}");
}

#[test]
fn of_a_file_with_an_error_postgresql_takes_nothing() {
    let running = running(&[
        ("max_connections", "70", "fw"),
        ("work_mem", "7MB", "f"),
        ("jit", "off", "f"),
        ("statement_timeout", "0", ""),
        ("port", "5432", "d"),
    ]);
    let lines = [
        line("max_connections", "90", None),
        line("work_mem", "12 parsecs", None),
        line("statement_timeout", "1min", None),
        line("wrk_mem", "9MB", Some(UNKNOWN)),
        line("app.name", "x", None),
        line("not_looked_at", "x", None),
        Line { place: "/d/postgresql.auto.conf:3".into(), ..line("port", "5433", None) },
    ];
    let settings = of_lines(&lines, &running);
    assert_eq!(
        text(&settings),
        "max_connections=90 work_mem=7MB statement_timeout=1min app.name=x jit=off | "
    );
    let Some(Doubt::Errors(errors)) = settings.doubt else { panic!("{settings:?}") };
    assert_eq!(errors, [format!("/etc/postgresql.conf:7: {UNKNOWN} (wrk_mem)")]);
    let with = |error: Line| of_lines(&[line("work_mem", "8MB", None), error], &running);
    let broken = with(line("", "", Some("syntax error")));
    assert_eq!(text(&broken), "work_mem=7MB jit=off max_connections=70 | ");
    assert_eq!(
        broken.doubt,
        Some(Doubt::Errors(vec!["/etc/postgresql.conf:7: syntax error".into()]))
    );
}

#[test]
fn a_value_that_is_not_valid_is_the_running_one() {
    let running = running(&[("work_mem", "7MB", "f"), ("jit", "on", "d"), ("port", "1", "f")]);
    let lines = [
        line("work_mem", "12 parsecs", Some(NOT_APPLIED)),
        line("jit", "off", None),
        line("jit", "perhaps", Some(NOT_APPLIED)),
        line("port", "5433", None),
    ];
    let settings = of_lines(&lines, &running);
    assert_eq!(text(&settings), "work_mem=7MB port=5433 | ");
    assert!(matches!(&settings.doubt, Some(Doubt::Errors(errors)) if errors.len() == 2));
}

#[test]
fn without_the_right_to_read_it_the_running_values_count() {
    let running = running(&[
        ("work_mem", "7MB", "f"),
        ("max_connections", "200", ""),
        ("max_wal_senders", "10", "d"),
        ("statement_timeout", "0", ""),
    ]);
    let settings = of_running(&running, "permission denied".into());
    assert_eq!(text(&settings), "work_mem=7MB | max_connections=200");
    let doubt = settings.doubt.unwrap();
    assert!(doubt.words().contains("permission denied") && doubt.hint().contains(GRANT));
}

#[test]
fn places_of_the_original_are_left_out() {
    let values = [("hba_file", "/etc/hba"), ("data_directory", "/d"), ("work_mem", "it's")];
    let values = values.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    let flat = FileSettings { values, ..FileSettings::default() }.flat();
    let flat = String::from_utf8(flat).unwrap();
    assert_eq!(flat.lines().skip(1).collect::<Vec<_>>(), ["work_mem = 'it''s'"]);
}
