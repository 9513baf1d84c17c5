//! The settings of a postgresql.conf that is outside the data directory, as its server knows them. They must be
//! written again for a restored cluster.
//!
//! What could go wrong: less is taken than the file has. A value that waits for a restart isn't "applied", and in a
//! file with an error nothing is (ProcessConfigFileInternal in guc-file.l). So a value that waits is taken from the
//! file, and for what the server itself can't take from there, the value that it runs with.

use std::collections::BTreeMap;

use postgres::Client;

use super::recovery;
use super::row::column;
use super::text::Text;
use crate::error::{Error, Result};

/// The settings, by name.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FileSettings {
    /// What the file sets, in its order.
    pub values: Vec<(String, String)>,
    /// Values that the server runs with and recovery can't do without: the file, for the next restart, has less.
    pub least: Vec<(String, String)>,
    /// Why these may not be the file's own values.
    pub doubt: Option<Doubt>,
}

/// Why the values are, in part or all of them, those that the server runs with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Doubt {
    /// The files have these errors.
    Errors(Vec<String>),
    /// `pg_file_settings` can't be read: the reason.
    Unreadable(String),
}

/// What a role needs for that; docs/configuration.md, "Rights", has it too.
pub const GRANT: &str = "GRANT SELECT ON pg_file_settings TO the user, and GRANT EXECUTE ON FUNCTION pg_show_all_file_settings() TO it";

impl Doubt {
    /// In words.
    #[must_use]
    pub fn words(&self) -> String {
        match self {
            Self::Errors(errors) => {
                format!("postgresql.conf or what it includes has errors: {}", errors.join(", "))
            }
            Self::Unreadable(why) => {
                format!(
                    "the settings of postgresql.conf, which is outside the data directory, can't be read: {why}"
                )
            }
        }
    }

    /// What to do.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::Errors(_) => {
                "no server starts with these files: correct them; pg_file_settings shows the errors"
                    .into()
            }
            Self::Unreadable(_) => format!(
                "values that wait for a restart aren't among them, nor those that this user's session has of its own: {GRANT}"
            ),
        }
    }
}

impl FileSettings {
    /// Renders them as one file, without includes, and without settings that point at the old places.
    #[must_use]
    pub fn flat(&self) -> Vec<u8> {
        const PLACES: [&str; 5] =
            ["data_directory", "config_file", "hba_file", "ident_file", "external_pid_file"];
        let mut text =
            "# the settings of the files outside the data directory, written by lockstep\n"
                .to_owned();
        for (name, value) in self.values.iter().filter(|(name, _)| !PLACES.contains(&name.as_str()))
        {
            text.push_str(&recovery::setting(name, value));
        }
        if !self.least.is_empty() {
            text.push_str("# the server ran with more, and recovery can't do with less\n");
        }
        for (name, value) in &self.least {
            text.push_str(&recovery::setting(name, value));
        }
        text.into_bytes()
    }
}

/// A row of pg_file_settings.
#[derive(Debug, Clone, Default)]
struct Line {
    place: String,
    name: Option<String>,
    value: Option<String>,
    error: Option<String>,
}

/// A row of pg_settings.
#[derive(Debug, Clone, Default)]
struct Running {
    value: String,
    /// It has this value from postgresql.conf or what that includes.
    from_file: bool,
    /// It is PostgreSQL's own default.
    is_default: bool,
    /// The file has another value, for the next restart.
    waits: bool,
}

type AllRunning = BTreeMap<String, Running>;

/// Asks the server for them.
///
/// # Errors
/// When a statement fails, except for one that needs a right beyond pg_read_all_settings.
pub fn read(client: &mut Client) -> Result<FileSettings> {
    // This marks in this session what waits for a restart, so it comes first.
    let lines = lines(client);
    let running = running(client)?;
    Ok(match lines {
        Ok(lines) => of_lines(&lines, &running),
        Err(error) if error.is_recovery_conflict() => return Err(error),
        Err(error) => of_running(&running, error.chain()),
    })
}

/// Returns the errors of pg_hba.conf and pg_ident.conf as the server sees them now: no server starts with them,
/// whatever the one that runs has read before. What this user may not ask isn't known.
///
/// # Errors
/// When a standby's replay cancels a statement.
pub fn errors_of_rules(client: &mut Client, version_num: u32) -> Result<Vec<String>> {
    let mut views = vec![("pg_hba.conf", "pg_hba_file_rules")];
    if version_num >= 150_000 {
        views.push(("pg_ident.conf", "pg_ident_file_mappings"));
    }
    let mut all = Vec::new();
    for (file, view) in views {
        let statement =
            format!("SELECT line_number, error FROM {view} WHERE error IS NOT NULL ORDER BY 1");
        let rows =
            client.query(&statement, &[]).map_err(|e| Error::sql("cannot read the rules", e));
        let line = |row: &postgres::Row| {
            let at: Option<i32> = column(row, 0)?;
            let error = column::<Text>(row, 1)?.lossy();
            Ok(format!("{file}:{}: {error}", at.unwrap_or_default()))
        };
        match rows.and_then(|rows| rows.iter().map(line).collect::<Result<Vec<_>>>()) {
            Ok(errors) => all.extend(errors),
            Err(error) if error.is_recovery_conflict() => return Err(error),
            Err(error) => {
                tracing::debug!(error = %error.chain(), "the errors of {file} aren't known");
            }
        }
    }
    Ok(all)
}

fn lines(client: &mut Client) -> Result<Vec<Line>> {
    let rows = client
        .query(
            "SELECT coalesce(sourcefile, ''), coalesce(sourceline, 0), name, setting, error
               FROM pg_file_settings ORDER BY seqno",
            &[],
        )
        .map_err(|e| Error::sql("cannot read pg_file_settings", e))?;
    let text = |row: &postgres::Row, at: usize| {
        column::<Option<Text>>(row, at).map(|text| text.map(|text| text.lossy()))
    };
    let line = |row: &postgres::Row| {
        Ok(Line {
            place: format!("{}:{}", text(row, 0)?.unwrap_or_default(), column::<i32>(row, 1)?),
            name: text(row, 2)?.map(|name| name.to_ascii_lowercase()),
            value: text(row, 3)?,
            error: text(row, 4)?,
        })
    };
    rows.iter().map(line).collect()
}

fn running(client: &mut Client) -> Result<AllRunning> {
    let rows = client
        .query(
            "SELECT lower(name), coalesce(current_setting(name, true), ''),
                    source = 'configuration file' AND coalesce(sourcefile, '') NOT LIKE '%/postgresql.auto.conf',
                    source = 'default', pending_restart
               FROM pg_settings",
            &[],
        )
        .map_err(|e| Error::sql("cannot read pg_settings", e))?;
    let setting = |row: &postgres::Row| {
        let value = column::<Text>(row, 1)?.lossy();
        let (from_file, is_default, waits) = (column(row, 2)?, column(row, 3)?, column(row, 4)?);
        let running = Running { value, from_file, is_default, waits };
        Ok((column::<Text>(row, 0)?.lossy(), running))
    };
    rows.iter().map(setting).collect()
}

/// What PostgreSQL says of a value that needs a restart, or isn't a valid one.
const NOT_APPLIED: &str = "setting could not be applied";
/// What it says of a setting that is no longer in the file, and needs a restart.
const NEEDS_RESTART: &str = "cannot be changed without restarting the server";

/// The file's values. Where an error keeps PostgreSQL from taking one, or from looking at any of them, it is the value
/// that the server runs with.
fn of_lines(lines: &[Line], running: &AllRunning) -> FileSettings {
    let of = |line: &Line| line.name.as_ref().and_then(|name| running.get(name));
    let is_wrong = |line: &&Line| match (line.error.as_deref(), &line.name) {
        (None, _) => false,
        (Some(NOT_APPLIED), Some(_)) => !of(line).is_some_and(|running| running.waits),
        (Some(error), None) => !error.ends_with(NEEDS_RESTART),
        (Some(_), Some(_)) => true,
    };
    let errors: Vec<String> = lines.iter().filter(is_wrong).map(words).collect();
    let stops_at = |line: &Line| line.error.as_deref().is_some_and(|error| error != NOT_APPLIED);
    let were_checked = !lines.iter().any(|line| is_wrong(&line) && stops_at(line));
    let mut values = Vec::new();
    // Every snapshot of the data directory has postgresql.auto.conf.
    for line in lines.iter().filter(|line| !line.place.contains("/postgresql.auto.conf:")) {
        let (Some(name), Some(written)) = (&line.name, &line.value) else { continue };
        let is_wrong = is_wrong(&line);
        let value = match running.get(name) {
            Some(running) if running.waits => Some(written),
            Some(running) if running.from_file && (is_wrong || !were_checked) => {
                Some(&running.value)
            }
            Some(_) => Some(written).filter(|_| !is_wrong),
            // A name of an extension that isn't loaded.
            None => Some(written).filter(|_| !is_wrong && (were_checked || name.contains('.'))),
        };
        match value {
            Some(value) => recovery::put(&mut values, name.clone(), value.clone()),
            None => values.retain(|(known, _)| known != name),
        }
    }
    if !errors.is_empty() {
        let is_set = |name: &String| values.iter().any(|(known, _)| known == name);
        let more: Vec<_> = from_file(running).filter(|(name, _)| !is_set(name)).collect();
        values.extend(more);
    }
    let least = least(&values, running);
    let doubt = (!errors.is_empty()).then_some(Doubt::Errors(errors));
    FileSettings { values, least, doubt }
}

fn words(line: &Line) -> String {
    let error = line.error.as_deref().unwrap_or_default();
    match &line.name {
        Some(name) => format!("{}: {error} ({name})", line.place),
        None => format!("{}: {error}", line.place),
    }
}

/// The values that the server runs with, if the file's own can't be read.
fn of_running(running: &AllRunning, why: String) -> FileSettings {
    let values: Vec<_> = from_file(running).collect();
    let least = least(&values, running);
    FileSettings { values, least, doubt: Some(Doubt::Unreadable(why)) }
}

fn from_file(running: &AllRunning) -> impl Iterator<Item = (String, String)> {
    let all = running.iter().filter(|(_, running)| running.from_file);
    all.map(|(name, running)| (name.clone(), running.value.clone()))
}

/// What the server runs with where `values` has less: the WAL says that recovery needs it (CheckRequiredParameterValues
/// in xlogrecovery.c).
fn least(values: &[(String, String)], running: &AllRunning) -> Vec<(String, String)> {
    const NEEDED: [&str; 5] = [
        "max_connections",
        "max_worker_processes",
        "max_wal_senders",
        "max_prepared_transactions",
        "max_locks_per_transaction",
    ];
    let lower = |name: &str| {
        let running = running.get(name).filter(|running| !running.is_default)?;
        let needed = running.value.parse::<i64>().ok()?;
        let written = values.iter().find(|(known, _)| known == name).map(|(_, value)| value);
        // A value in another notation doesn't count as enough.
        let is_enough =
            written.and_then(|value| value.parse::<i64>().ok()).is_some_and(|it| it >= needed);
        (!is_enough).then(|| (name.to_owned(), running.value.clone()))
    };
    NEEDED.into_iter().filter_map(lower).collect()
}

#[cfg(test)]
#[path = "file_settings_tests.rs"]
mod tests;
